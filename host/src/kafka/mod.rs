//! Kafka: consumer group and intake, dead-letter producer, offsets.
//!
//! Everything goes through librdkafka (crate `rdkafka`); unsafe code is in `queue`,
//! and where `intake` gives it the client's handle.

use rdkafka::config::RDKafkaLogLevel;

pub mod client;
pub mod dead_letters;
mod group;
pub mod intake;
pub mod metadata;
pub mod offsets;
mod queue;
pub mod reader;

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
