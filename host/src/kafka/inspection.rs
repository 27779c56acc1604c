//! Inspection: what a consumer group has committed, and records at given offsets, without joining the
//! group. Nothing is written; every call blocks.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, KafkaResult};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::client::{KafkaSettings, client_config};
use super::reader::{OwnedRecord, ReadError, ReaderContext, owned};

/// Ranges no further apart are read in one go: asking anew costs more than reading on.
const NEAR: i64 = 1024;

/// A partition as its group left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionPosition {
    /// Number.
    pub partition: i32,
    /// Offset of the first record that is still there.
    pub low: i64,
    /// Offset after the last record.
    pub end: i64,
    /// Offset at which the group goes on; `None` where nothing is committed.
    pub committed: Option<i64>,
    /// Text committed with it.
    pub metadata: String,
}

/// See the module documentation.
pub struct Inspector {
    consumer: BaseConsumer<ReaderContext>,
    timeout: Duration,
}

impl Inspector {
    /// A client that sees what `group` committed. `timeout` is the longest wait for one answer or record.
    ///
    /// # Errors
    /// When librdkafka refuses the settings.
    pub fn new(settings: &KafkaSettings, group: &str, timeout: Duration) -> KafkaResult<Self> {
        let consumer = client_config(settings)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "50")
            .create_with_context(ReaderContext)?;
        Ok(Self { consumer, timeout })
    }

    /// Every partition of a topic.
    ///
    /// # Errors
    /// When the brokers cannot be asked, or do not know the topic.
    pub fn positions(&self, topic: &str) -> Result<Vec<PartitionPosition>, ReadError> {
        let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
        let metadata = self.consumer.fetch_metadata(Some(topic), self.timeout).map_err(failed)?;
        let mut asked = TopicPartitionList::new();
        for found in metadata.topics() {
            if let Some(error) = found.error() {
                return Err(failed(ClientError::MetadataFetch(error.into())));
            }
            for partition in found.partitions() {
                asked.add_partition(topic, partition.id());
            }
        }
        let committed = self.consumer.committed_offsets(asked, self.timeout).map_err(failed)?;
        let mut positions = Vec::new();
        for element in committed.elements() {
            element.error().map_err(failed)?;
            let partition = element.partition();
            let (low, end) =
                self.consumer.fetch_watermarks(topic, partition, self.timeout).map_err(failed)?;
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            let metadata = element.metadata().to_owned();
            positions.push(PartitionPosition { partition, low, end, committed, metadata });
        }
        positions.sort_by_key(|position| position.partition);
        Ok(positions)
    }

    /// Offset of the first record of a partition at or after a time (milliseconds since 1970-01-01
    /// UTC); `None` where there is none.
    ///
    /// # Errors
    /// When the brokers cannot be asked.
    pub fn offset_at(
        &self,
        topic: &str,
        partition: i32,
        milliseconds: i64,
    ) -> Result<Option<i64>, ReadError> {
        let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
        let mut asked = TopicPartitionList::new();
        asked.add_partition_offset(topic, partition, Offset::Offset(milliseconds)).map_err(failed)?;
        let found = self.consumer.offsets_for_times(asked, self.timeout).map_err(failed)?;
        let element = found.find_partition(topic, partition);
        Ok(element.and_then(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// Hands every record in `ranges`, `[start, end)`, increasing and apart, to `consume`, in order.
    ///
    /// # Errors
    /// When the partition cannot be read.
    pub fn records(
        &self,
        topic: &str,
        partition: i32,
        ranges: &[(i64, i64)],
        mut consume: impl FnMut(OwnedRecord),
    ) -> Result<(), ReadError> {
        for near in ranges.chunk_by(|(_, end), (start, _)| start - end <= NEAR) {
            self.read(topic, partition, near, &mut consume)?;
        }
        Ok(())
    }

    fn read(
        &self,
        topic: &str,
        partition: i32,
        ranges: &[(i64, i64)],
        consume: &mut impl FnMut(OwnedRecord),
    ) -> Result<(), ReadError> {
        let failed = |source| ReadError::Kafka { topic: topic.to_owned(), source };
        let (Some((start, _)), Some((_, end))) = (ranges.first(), ranges.last()) else { return Ok(()) };
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(*start)).map_err(failed)?;
        self.consumer.assign(&assignment).map_err(failed)?;
        let mut last = Instant::now();
        loop {
            match self.consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    let offset = message.offset();
                    if offset >= *end {
                        return Ok(());
                    }
                    let range = ranges.partition_point(|(_, end)| *end <= offset);
                    if ranges.get(range).is_some_and(|(start, _)| *start <= offset) {
                        consume(owned(&message));
                    }
                    if offset + 1 == *end {
                        return Ok(());
                    }
                }
                Some(Err(ClientError::PartitionEOF(_))) => return Ok(()),
                Some(Err(source)) => return Err(failed(source)),
                None if last.elapsed() > self.timeout => {
                    return Err(ReadError::Stalled { topic: topic.to_owned(), waited: self.timeout });
                }
                None => {}
            }
        }
    }
}
