//! Kafka: consumer group and intake, dead-letter producer, offsets, transactions.
//!
//! Everything goes through librdkafka (crate `rdkafka`); unsafe code is in `queue`, `membership`
//! and `identity`, and where `intake` and `slices` give the former a client's handle.

use rdkafka::config::RDKafkaLogLevel;

pub mod client;
mod copy;
pub mod dead_letters;
mod group;
mod identity;
pub mod inspection;
pub mod intake;
mod membership;
pub mod metadata;
pub mod offsets;
mod position;
mod queue;
pub mod reader;
pub mod slices;
pub mod transactions;
mod withheld;

/// Sends librdkafka's log to ours.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => tracing::error!(facility, "{message}"),
        RDKafkaLogLevel::Warning => tracing::warn!(facility, "{message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "{message}"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, "{message}"),
    }
}
