//! The flow from chunk to settled batch, over ports.
//!
//! Architecture invariant: this module knows its collaborators only by the traits in [`ports`],
//! and imports nothing from an adapter (`kafka`, `clickhouse`, `wasm`, `admin`, `embedded`).

pub mod ports;
pub mod status;
