//! The pure core: records, verdicts, rows, batches and the ledger.
//!
//! Architecture invariant: nothing in here knows tokio, rdkafka, wasmtime, a clock, randomness or
//! I/O. Time and jitter come in as arguments, so every decision is tested without waiting.

pub mod answer;
pub mod audit;
pub mod batch;
pub mod breaker;
pub mod chunk;
pub mod column_type;
pub mod deployment;
pub mod intent;
pub mod ledger;
pub mod module;
pub mod provenance;
pub mod reading;
pub mod retry;
pub mod row;
pub mod secret;
pub mod spelling;
pub mod verdict;
