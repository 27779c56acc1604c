//! What the integration tests share: the real parts, started and stopped around a test.
//!
//! Every test binary includes this module whole (`mod support;`) and uses a part of it.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this module")]

pub mod clickhouse_server;
pub mod deployment;
pub mod guests;
pub mod kafka;
pub mod member;
pub mod proxy;
pub mod sluice;
pub mod verdicts;
