//! Sluice: a WebAssembly-extensible stream processor.
//!
//! It reads Kafka, runs every record through sandboxed wasm modules (validators, then a mapper),
//! and batches the rows into ClickHouse; what a module refuses, traps on or times out on goes to
//! a dead-letter topic, original bytes intact. `docs/ARCHITECTURE.md` is the map of the house.
//!
//! Dependency arrow, checked by `tests/layering.rs`:
//! `domain <- pipeline <- {kafka, clickhouse, wasm, admin, embedded, produce} <- app <- cli <- main`;
//! adapters never import each other.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clickhouse;
pub mod config;
pub mod domain;
pub mod embedded;
pub mod kafka;
pub mod pipeline;
pub mod produce;
pub mod shutdown;
pub mod telemetry;
pub mod wasm;
