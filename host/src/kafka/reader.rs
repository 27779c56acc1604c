//! Reader: a whole topic from its first record to its present end, outside any group.
//!
//! For reading back what was written: the demo's summary, tests, and the dead-letter commands.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::log;

/// Longest wait for one answer about a topic.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends librdkafka's log to ours, and nothing at the end of a partition, which is no error here.
#[derive(Clone, Debug)]
pub(super) struct ReaderContext;

impl ClientContext for ReaderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(%error, reason, "kafka reader error");
        }
    }
}

impl ConsumerContext for ReaderContext {}

type ReaderConsumer = BaseConsumer<ReaderContext>;

/// Why a topic could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Kafka refused something.
    #[error("cannot read topic {topic}: {source}; check that it exists and that the brokers can be reached")]
    Kafka {
        /// Topic.
        topic: String,
        /// Reason.
        source: ClientError,
    },
    /// Nothing came for a while.
    #[error("topic {topic} did not give all of its records within {waited:?}; try again")]
    Stalled {
        /// Topic.
        topic: String,
        /// Longest wait.
        waited: Duration,
    },
}

/// One record, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Milliseconds since 1970-01-01 UTC, -1 where the record has none.
    pub timestamp: i64,
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Payload.
    pub payload: Option<Vec<u8>>,
    /// Headers in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl OwnedRecord {
    /// Last value of a header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(header, _)| header == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// Records between the first and the end offset of every partition, by partition. Blocking.
///
/// # Errors
/// When the topic or a partition cannot be asked.
pub fn record_counts(client: &ClientConfig, topic: &str) -> Result<Vec<i64>, ReadError> {
    let consumer = consumer(client, topic)?;
    let ranges = ranges(&consumer, topic)?;
    Ok(ranges.into_iter().map(|(_, low, high)| high - low).collect())
}

/// Hands every record of a topic to `consume`, in offset order within a partition. Blocking.
/// Only what committed transactions wrote is seen, unless `client` says otherwise.
///
/// # Errors
/// When the topic cannot be read to the end that it has now; `patience` is the longest wait for a record.
pub fn read_all(
    client: &ClientConfig,
    topic: &str,
    patience: Duration,
    mut consume: impl FnMut(OwnedRecord),
) -> Result<(), ReadError> {
    let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
    let consumer = consumer(client, topic)?;
    let mut open = ranges(&consumer, topic)?;
    open.retain(|(_, low, high)| low < high);
    let mut assignment = TopicPartitionList::new();
    for (partition, low, _) in &open {
        assignment.add_partition_offset(topic, *partition, Offset::Offset(*low)).map_err(failed)?;
    }
    consumer.assign(&assignment).map_err(failed)?;
    let mut last = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                last = Instant::now();
                let (partition, offset) = (message.partition(), message.offset());
                if open.iter().any(|(number, _, high)| *number == partition && offset < *high) {
                    consume(owned(&message));
                }
            }
            // The end of a partition, where control records of transactions may stand last.
            Some(Err(ClientError::PartitionEOF(partition))) => {
                open.retain(|(number, ..)| *number != partition);
            }
            Some(Err(source)) => return Err(failed(source)),
            None if last.elapsed() > patience => {
                return Err(ReadError::Stalled { topic: topic.to_owned(), waited: patience });
            }
            None => {}
        }
    }
    Ok(())
}

fn consumer(client: &ClientConfig, topic: &str) -> Result<ReaderConsumer, ReadError> {
    client
        .clone()
        // Never joined; librdkafka wants a name all the same.
        .set("group.id", "sluice-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .create_with_context(ReaderContext)
        .map_err(|source| ReadError::Kafka { topic: topic.to_owned(), source })
}

/// Partition, first offset and end of each partition.
fn ranges(consumer: &ReaderConsumer, topic: &str) -> Result<Vec<(i32, i64, i64)>, ReadError> {
    let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).map_err(failed)?;
    let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
    partitions
        .map(|partition| {
            let watermarks = consumer.fetch_watermarks(topic, partition.id(), ANSWER_TIMEOUT);
            let (low, high) = watermarks.map_err(failed)?;
            Ok((partition.id(), low, high))
        })
        .collect()
}

pub(super) fn owned(message: &impl Message) -> OwnedRecord {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    OwnedRecord {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
    }
}
