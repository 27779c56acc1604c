//! Kafka: consumer group and intake, dead-letter producer, offsets.

pub mod client;
