//! Status: what a pipeline says of itself to operators (`/status`, `/ready`).

use serde::Serialize;

/// A pipeline at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PipelineStatus {
    /// Name in the configuration.
    pub name: String,
    /// `at-least-once` or `exactly-once`.
    pub delivery: &'static str,
    /// Why it cannot take records through right now; empty when all is well.
    pub not_ready: Vec<String>,
    /// Revision of the chain that new chunks meet.
    pub chain: String,
    /// Its modules in order.
    pub modules: Vec<ModuleStatus>,
    /// Assigned partitions, by topic and number.
    pub partitions: Vec<PartitionStatus>,
    /// Bytes held between intake and settlement.
    pub in_flight_bytes: u64,
    /// Most bytes that may be held.
    pub in_flight_limit_bytes: u64,
}

/// A module of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ModuleStatus {
    /// File name without `.wasm`.
    pub name: String,
    /// `validate` or `map`.
    pub stage: &'static str,
    /// First 12 hex digits.
    pub revision: String,
}

/// A partition of this host. `consumed = inserted + filtered + dead_lettered + in_flight`, always,
/// in records since it was assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartitionStatus {
    /// Topic.
    pub topic: String,
    /// Number.
    pub partition: i32,
    /// Offset that a new owner would start at.
    pub committed_offset: Option<i64>,
    /// Offset of the next record to consume.
    pub next_offset: Option<i64>,
    /// Records between the committed offset and the end of the partition, where the end is known.
    pub lag: Option<i64>,
    /// Records taken in.
    pub consumed: u64,
    /// Records with a row in ClickHouse.
    pub inserted: u64,
    /// Records that gave no rows, on purpose.
    pub filtered: u64,
    /// Records in the dead-letter topic.
    pub dead_lettered: u64,
    /// Records on their way.
    pub in_flight: u64,
}
