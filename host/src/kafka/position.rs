//! Position: where a partition is read from when it is assigned, and what is pending there.
//!
//! That is the group's committed offset, or, where there is none, the start that the configuration
//! says; exactly-once, batches that the metadata of the offset lists come first, and are not read as new
//! records. At-least-once they are: its flow recovers nothing.
//! A start at the end is committed before anything is read, since the end is somewhere else after a
//! restart; the rest of librdkafka's resets (`auto.offset.reset`) go to the earliest record that there is,
//! never past any.

use std::time::Duration;

use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::domain::intent::{IntentError, PendingBatches};
use crate::domain::ledger::PartitionId;

/// Longest wait for one answer about offsets, inside a rebalance.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) partition: PartitionId,
    /// Where the group goes on: pending batches begin here. `None` where that is not known.
    pub(super) committed: Option<i64>,
    /// First offset that is no part of a pending batch. `None` where that is not known.
    pub(super) read_from: Option<i64>,
    pub(super) pending: PendingBatches,
}

/// Why positions are not known.
#[derive(Debug)]
pub(super) enum Unknown {
    /// The brokers do not say yet.
    Offsets(String),
    /// They say what cannot be read, so that nothing must be read there.
    Metadata(String),
}

impl Unknown {
    fn metadata(PartitionId { topic, partition }: &PartitionId, error: &IntentError) -> Self {
        Self::Metadata(format!("topic {topic}, partition {partition} cannot be read on: {error}"))
    }
}

impl From<KafkaError> for Unknown {
    fn from(error: KafkaError) -> Self {
        Self::Offsets(error.to_string())
    }
}

/// Positions that librdkafka is to look up itself.
pub(super) fn unknown(partitions: &TopicPartitionList) -> Vec<Position> {
    let elements = partitions.elements();
    let unknown = |(topic, partition): (&str, i32)| Position {
        partition: PartitionId { topic: topic.into(), partition },
        committed: None,
        read_from: None,
        pending: PendingBatches::default(),
    };
    elements.iter().map(|element| unknown((element.topic(), element.partition()))).collect()
}

/// Asks for the committed offsets of `partitions`, and commits the end where a group starts there.
/// Exactly-once a plain commit is good enough for that: nobody has an offset of the partition in a
/// transaction, else the answer would have been that it is not known, and nothing is pending there; it
/// is fenced by this generation, and where it is refused in part the rest is found when this is done again.
pub(super) fn look_up<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    partitions: &TopicPartitionList,
    from_latest: bool,
    exactly_once: bool,
) -> Result<Vec<Position>, Unknown> {
    let committed = consumer.committed_offsets(partitions.clone(), ANSWER_TIMEOUT)?;
    let mut starts = TopicPartitionList::new();
    let mut positions = Vec::new();
    let mut foreign = None;
    for element in committed.elements() {
        element.error()?;
        let partition = PartitionId { topic: element.topic().into(), partition: element.partition() };
        let (offset, metadata) = match element.offset() {
            Offset::Offset(offset) => (offset, element.metadata()),
            _ => {
                let (low, end) =
                    consumer.fetch_watermarks(&partition.topic, partition.partition, ANSWER_TIMEOUT)?;
                if from_latest {
                    let end = Offset::Offset(end);
                    starts.add_partition_offset(&partition.topic, partition.partition, end)?;
                }
                (if from_latest { end } else { low }, "")
            }
        };
        let pending = match PendingBatches::decode(metadata).map(Option::unwrap_or_default) {
            _ if !exactly_once => PendingBatches::default(),
            // Other consumers write there too, and what they write says nothing of batches.
            Err(error @ IntentError::Foreign { .. }) => {
                foreign = Some(error);
                PendingBatches::default()
            }
            pending => pending.map_err(|error| Unknown::metadata(&partition, &error))?,
        };
        positions.push(Position {
            committed: Some(offset),
            read_from: Some(offset.max(end_of(&pending, &partition))),
            partition,
            pending,
        });
    }
    if let Some(error) = foreign {
        tracing::warn!(%error, "nothing is taken to be pending");
    }
    if starts.count() > 0 {
        consumer.commit(&starts, CommitMode::Sync)?;
    }
    Ok(positions)
}

/// Offset after the last record of the partition in a pending batch; 0 where there is none.
fn end_of(pending: &PendingBatches, partition: &PartitionId) -> i64 {
    let slices = pending.intents().iter().filter_map(|intent| intent.slice(partition));
    slices.map(|slice| slice.end).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::intent::{Intent, IntentSlice, VerdictDigest};
    use crate::domain::ledger::BatchId;
    use crate::domain::verdict::Revision;

    fn partition(number: i32) -> PartitionId {
        PartitionId { topic: "purchases".into(), partition: number }
    }

    fn intent(id: u128, slices: &[(i32, i64, i64)]) -> Intent {
        let slices = slices.iter().map(|(number, start, end)| IntentSlice {
            partition: partition(*number),
            start: *start,
            end: *end,
        });
        let chain = [Revision([7; 32])].into();
        Intent::new(BatchId(id), slices.collect(), chain, Vec::new(), VerdictDigest::default())
            .expect("a sound intent")
    }

    #[test]
    fn reading_goes_on_after_the_last_pending_batch_of_the_partition() {
        let batches =
            PendingBatches::new(vec![intent(1, &[(0, 10, 20), (1, 5, 90)]), intent(2, &[(0, 20, 33)])]);
        assert_eq!(end_of(&batches, &partition(0)), 33);
        assert_eq!(end_of(&batches, &partition(1)), 90);
        assert_eq!(end_of(&batches, &partition(2)), 0);
    }
}
