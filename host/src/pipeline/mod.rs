//! The flow from chunk to settled batch, over ports.
//!
//! Architecture invariant: this module knows its collaborators only by the traits in [`ports`],
//! and imports nothing from an adapter (`kafka`, `clickhouse`, `wasm`, `admin`, `embedded`).

pub mod binding;
pub mod budget;
pub mod committer;
pub mod event;
pub mod flow;
pub mod inserter;
pub mod lane;
pub mod metrics;
pub mod modules;
pub mod orders;
pub mod partition;
pub mod ports;
pub mod recovery;
pub mod status;
pub mod trouble;
pub mod workers;

#[cfg(test)]
mod tests;
