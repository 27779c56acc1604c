//! Exactly once on the real parts, case by case: Apache Kafka, the ClickHouse engine, the sluice
//! program, hosts that are killed at a chosen moment and others that take over. `chaos` is the same at
//! moments that nobody chose.

mod rebalance;
mod recovery;
mod refusals;
mod replay;
mod schema;
mod stage;

#[path = "../support/mod.rs"]
mod support;
