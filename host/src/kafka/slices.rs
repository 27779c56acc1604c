//! Slices: records that were read before, read once more, for a batch that is formed again.
//!
//! Through a plain assignment outside of the group, so that the partitions of other hosts can be read
//! as well; one slice after the other. Records come as the intake made them: the same bytes, and none of
//! aborted transactions. What the log no longer has is told, not passed over in silence.
//!
//! A slice is read to its end when a record behind it comes, or the end of the log: its last records may
//! have been compacted away, or be control records of transactions, which are not shown. What the intake
//! has read before was committed, so the end of what is committed does not lie within a slice.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::domain::chunk::{Chunk, ChunkBuilder, MAXIMUM_RECORDS};
use crate::domain::intent::IntentSlice;
use crate::domain::ledger::PartitionId;
use crate::domain::retry::Retryability;
use crate::pipeline::ports::{KafkaError, Reread};

use super::client::outside_group;
use super::copy::Copy;
use super::log;
use super::queue::{Message, MessageQueue};

/// Longest wait for one answer about a topic or a partition.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for messages.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// So often it must be said that a topic, or the end of a slice, is not there: brokers that have just
/// started, or become a leader, may not know it yet.
const ANSWERS: u32 = 3;
/// Wait between two such questions.
const ANSWER_PAUSE: Duration = Duration::from_millis(500);

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct SliceReader {
    client: ClientConfig,
    patience: Duration,
}

impl SliceReader {
    /// A reader with the settings that all clients have. `patience` is the longest wait for a record.
    pub fn new(mut client: ClientConfig, patience: Duration) -> Self {
        outside_group(&mut client);
        client
            // Never joined; librdkafka wants a name all the same.
            .set("group.id", "sluice-slices")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            // Where retention takes the next record while it is waited for, that must not go unnoticed.
            .set("auto.offset.reset", "error");
        Self { client, patience }
    }

    /// Reads every slice to its end, and tells what is lost. One attempt. It goes on to its end even
    /// when nobody waits for it any more.
    ///
    /// # Errors
    /// When the brokers do not answer, or no record comes for longer than the patience.
    pub async fn read(&self, slices: &[IntentSlice]) -> Result<Reread, KafkaError> {
        let (reader, slices) = (self.clone(), slices.to_vec());
        let read = tokio::task::spawn_blocking(move || reader.read_blocking(slices));
        let reason = match read.await {
            Ok(Ok(reread)) => return Ok(reread),
            Ok(Err(reason)) => reason,
            Err(error) => error.to_string(),
        };
        let message =
            format!("records cannot be read again: {reason}; check that the brokers can be reached");
        Err(KafkaError { retryability: Retryability::Retry, message })
    }

    fn read_blocking(&self, mut slices: Vec<IntentSlice>) -> Result<Reread, String> {
        let reader = SliceConsumer::new(&self.client).map_err(|error| error.to_string())?;
        let consumer = &reader.consumer;
        slices.sort();
        let mut reread = Reread::default();
        let mut counts: BTreeMap<Arc<str>, i32> = BTreeMap::new();
        for slice in slices {
            let (topic, partition) = (&slice.partition.topic, slice.partition.partition);
            let named = |error: ClientError| format!("topic {topic}, partition {partition}: {error}");
            let count = match counts.get(topic) {
                Some(count) => *count,
                None => {
                    let count = partition_count(consumer, topic).map_err(named)?;
                    counts.insert(topic.clone(), count);
                    count
                }
            };
            let there = if partition < count { log_range(consumer, &slice).map_err(named)? } else { 0..0 };
            let (left, lost) = split(&slice, there);
            reread.lost.extend(lost);
            if let Some(slice) = left {
                self.read_slice(&reader, &slice, &mut reread.chunks)
                    .map_err(|reason| format!("topic {topic}, partition {partition}: {reason}"))?;
            }
        }
        Ok(reread)
    }

    /// Appends the records of a slice of which the log has both ends.
    fn read_slice(
        &self,
        SliceConsumer { queue, consumer }: &SliceConsumer,
        slice: &IntentSlice,
        chunks: &mut Vec<Arc<Chunk>>,
    ) -> Result<(), String> {
        let partition = slice.partition.partition;
        let topic = &*slice.partition.topic;
        let mut assignment = TopicPartitionList::new();
        queue.forward(topic, partition);
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(slice.start))
            .and_then(|()| consumer.assign(&assignment))
            .map_err(|error| error.to_string())?;
        let mut builder: Option<ChunkBuilder> = None;
        let mut last = Instant::now();
        let (mut is_read, mut failure) = (false, None);
        while !is_read {
            queue.read(POLL_TIMEOUT, MAXIMUM_RECORDS, |message| {
                if message.partition() != partition || message.topic() != topic {
                    return;
                }
                if message.is_partition_end() {
                    is_read = true;
                } else if let Some(error) = message.error() {
                    failure = failure.take().or(Some(error));
                } else if message.offset() < slice.end {
                    last = Instant::now();
                    chunks.extend(append(&mut builder, slice, &message));
                }
                is_read |= message.offset() + 1 >= slice.end;
            });
            if let Some(error) = failure {
                return Err(error);
            }
            if !is_read && last.elapsed() > self.patience {
                return Err(format!("no record came for {}", humantime::format_duration(self.patience)));
            }
            // Errors of the client are served here.
            consumer.poll(Duration::ZERO);
        }
        chunks.extend(builder.map(|builder| Arc::new(builder.build())));
        consumer.unassign().map_err(|error| error.to_string())
    }
}

/// How many partitions a topic has; none where it is gone.
fn partition_count(consumer: &BaseConsumer<SliceContext>, topic: &str) -> Result<i32, ClientError> {
    for answer in 1.. {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let error = found.and_then(|found| found.error()).map(Code::from);
        match (found, error) {
            (Some(found), None) if !found.partitions().is_empty() => {
                return Ok(found.partitions().len() as i32);
            }
            (Some(_), Some(error))
                if !matches!(error, Code::UnknownTopicOrPartition | Code::UnknownTopic) =>
            {
                return Err(ClientError::MetadataFetch(error));
            }
            _ if answer >= ANSWERS => break,
            _ => std::thread::sleep(ANSWER_PAUSE),
        }
    }
    Ok(0)
}

/// First offset of the log of a slice's partition, and the end of what is committed there.
fn log_range(consumer: &BaseConsumer<SliceContext>, slice: &IntentSlice) -> Result<Range<i64>, ClientError> {
    let PartitionId { topic, partition } = &slice.partition;
    for answer in 1.. {
        let (low, end) = consumer.fetch_watermarks(topic, *partition, ANSWER_TIMEOUT)?;
        if end >= slice.end || answer >= ANSWERS {
            return Ok(low..end);
        }
        std::thread::sleep(ANSWER_PAUSE);
    }
    unreachable!("the answers are counted")
}

/// What of a slice is there, and what is not, by offset.
fn split(slice: &IntentSlice, there: Range<i64>) -> (Option<IntentSlice>, Vec<IntentSlice>) {
    let part = |range: Range<i64>| {
        (range.start < range.end).then(|| IntentSlice {
            partition: slice.partition.clone(),
            start: range.start,
            end: range.end,
        })
    };
    let start = there.start.clamp(slice.start, slice.end);
    let end = there.end.clamp(start, slice.end);
    let lost = [part(slice.start..start), part(end..slice.end)];
    (part(start..end), lost.into_iter().flatten().collect())
}

/// Copies a record as the intake does; returns the chunk before when that was full.
fn append(
    builder: &mut Option<ChunkBuilder>,
    slice: &IntentSlice,
    message: &Message<'_>,
) -> Option<Arc<Chunk>> {
    let copy = Copy::of(message);
    let full =
        builder.take_if(|builder| copy.is_refused_by(builder)).map(|builder| Arc::new(builder.build()));
    let of = &slice.partition;
    let first = message.offset();
    copy.push_to(builder.get_or_insert_with(|| ChunkBuilder::new(of.topic.clone(), of.partition, first)));
    full
}

/// A consumer of no group, and the queue that its messages come to, which must go first.
struct SliceConsumer {
    queue: MessageQueue,
    consumer: BaseConsumer<SliceContext>,
}

impl SliceConsumer {
    #[expect(unsafe_code, reason = "the queue needs the client's raw handle")]
    fn new(client: &ClientConfig) -> Result<Self, ClientError> {
        let consumer: BaseConsumer<_> = client.create_with_context(SliceContext)?;
        let queue = MessageQueue::detached();
        // SAFETY: the queue is closed when this is dropped, before the consumer is.
        unsafe { queue.attach(consumer.client().native_ptr()) };
        Ok(Self { queue, consumer })
    }
}

impl Drop for SliceConsumer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Sends librdkafka's log to ours.
#[derive(Clone, Debug)]
struct SliceContext;

impl ClientContext for SliceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::warn!(%error, reason, "kafka slice reader error");
    }
}

impl ConsumerContext for SliceContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_log_lacks_at_either_end_is_lost() {
        let slice = |start, end| IntentSlice {
            partition: PartitionId { topic: "purchases".into(), partition: 3 },
            start,
            end,
        };
        let whole = slice(10, 20);
        for (there, left, lost) in [
            (0..30, Some((10, 20)), vec![]),
            (10..20, Some((10, 20)), vec![]),
            (15..30, Some((15, 20)), vec![(10, 15)]),
            (0..13, Some((10, 13)), vec![(13, 20)]),
            (12..18, Some((12, 18)), vec![(10, 12), (18, 20)]),
            (20..30, None, vec![(10, 20)]),
            (40..40, None, vec![(10, 20)]),
            (0..10, None, vec![(10, 20)]),
            (0..0, None, vec![(10, 20)]),
        ] {
            let expected = (
                left.map(|(start, end)| slice(start, end)),
                lost.into_iter().map(|(start, end)| slice(start, end)).collect::<Vec<_>>(),
            );
            assert_eq!(split(&whole, there.clone()), expected, "{there:?}");
        }
    }
}
