//! Metadata: whether the brokers can be reached and the topics are there, with what to do if not.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};

use crate::domain::retry::Retryability;

use super::client::{KafkaSettings, client_config};

/// A topic that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicNeed {
    /// Topic.
    pub topic: String,
    /// Key of the configuration that names it.
    pub key: String,
}

/// Why the topics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// A property is refused by librdkafka.
    #[error("kafka.properties: {0}; see librdkafka's CONFIGURATION.md for names and values")]
    Settings(ClientError),
    /// No broker answers: waiting may help.
    #[error(
        "no broker of kafka.brokers ({brokers}) answered within {waited:?}: {reason}; check the address, \
         the network, and security.protocol in kafka.properties"
    )]
    Unreachable {
        /// As configured.
        brokers: String,
        /// Longest wait.
        waited: Duration,
        /// librdkafka's words.
        reason: ClientError,
    },
    /// Topics are missing or may not be used.
    #[error("{}", .0.join("\n"))]
    Topics(Vec<String>),
}

impl MetadataError {
    /// Whether waiting may help.
    pub fn retryability(&self) -> Retryability {
        match self {
            Self::Unreachable { .. } => Retryability::Retry,
            Self::Settings(_) | Self::Topics(_) => Retryability::Permanent,
        }
    }
}

/// Partitions of every topic that is needed. Blocking.
///
/// # Errors
/// When no broker answers within `timeout`, or with every topic that is missing or refused.
pub fn check(
    kafka: &KafkaSettings,
    needs: &[TopicNeed],
    timeout: Duration,
) -> Result<BTreeMap<String, usize>, MetadataError> {
    let mut config = client_config(kafka);
    config.set("group.id", "sluice-metadata");
    let consumer: BaseConsumer = config.create().map_err(MetadataError::Settings)?;
    let unreachable =
        |reason| MetadataError::Unreachable { brokers: kafka.brokers.clone(), waited: timeout, reason };
    // All topics, since asking for one by name may create it where the broker does so by itself.
    let metadata = consumer.fetch_metadata(None, timeout).map_err(unreachable)?;
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for need in needs {
        match metadata.topics().iter().find(|topic| topic.name() == need.topic) {
            Some(topic) => match topic.error().map(RDKafkaErrorCode::from) {
                None => {
                    found.insert(need.topic.clone(), topic.partitions().len());
                }
                Some(error) => problems.push(format!("{}: topic `{}`: {error}", need.key, need.topic)),
            },
            None => problems.push(format!(
                "{}: topic `{}` is not there, or this user may not see it; create it, such as with \
                 kafka-topics.sh --bootstrap-server {} --create --topic {} --partitions 12",
                need.key, need.topic, kafka.brokers, need.topic
            )),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(MetadataError::Topics(problems)) }
}
