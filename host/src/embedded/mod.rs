//! The parts that run inside or beside the process for `demo` and tests.
//!
//! ClickHouse is the real engine, as a library, behind its HTTP interface. It runs in a process of
//! its own (`sluice clickhouse`), so that the host speaks HTTP to it as to any server, and so that a
//! test can kill it. [`EmbeddedClickHouse`] is that process as seen from its parent.

pub mod broker;
mod clickhouse_front;
mod clickhouse_process;
mod libchdb;

pub use clickhouse_front::{ClickHouseFront, Credentials, FrontError, FrontOptions};
pub use clickhouse_process::{EmbeddedClickHouse, EmbeddedError, EmbeddedOptions};
pub use libchdb::{Exception, LibchdbError, find_library};
