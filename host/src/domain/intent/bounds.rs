//! Bounds within which the pending batches of a lane always fit into Kafka's commit metadata.
//!
//! How they were chosen, with the figures: docs/INTENT_FORMAT.md. Whatever keeps to all of them
//! fits (a test builds the worst case); what exceeds one of them may still fit, since the worst of
//! everything seldom meets, and [`PendingBatches::fits`](super::PendingBatches::fits) tells.

use crate::domain::ledger::PartitionId;

/// Kafka's default `offset.metadata.max.bytes`: longer metadata is refused, and the commit with it.
pub const METADATA_LIMIT: usize = 4096;

/// Most batches of a lane that are pending at once.
pub const PENDING_BATCHES: usize = 4;

/// Most partitions in a lane.
pub const PARTITIONS: usize = 64;

/// Highest partition number that the bounds were computed for.
pub const PARTITION_NUMBER: i32 = 99_999;

/// Most bytes that the topics of a lane take: for each its name and [`TOPIC_OVERHEAD`]. One topic
/// with the longest name that Kafka allows (249) fits in.
pub const TOPIC_BYTES: usize = 300;

/// What a topic takes besides its name.
pub const TOPIC_OVERHEAD: usize = 3;

/// Most validators in a chain; the mapper comes on top.
pub const VALIDATORS: usize = 15;

/// Most different modules over the pending batches of a lane. The new chain of a reload that would
/// exceed this waits until batches of the old one have settled.
pub const REVISIONS: usize = VALIDATORS + 1;

/// Most different chains over the pending batches of a lane.
pub const CHAINS: usize = PENDING_BATCHES;

/// Most runs of forced rejections in a batch: consecutive records, same module, same kind.
pub const FORCED_RUNS: usize = 8;

/// Most offsets that a batch spans, summed over its slices. Records that compaction took away
/// count too.
pub const SPAN: i64 = 1 << 24;

/// Whether a lane may consist of `partitions`.
pub fn lane_holds<'a>(partitions: impl IntoIterator<Item = &'a PartitionId>) -> bool {
    let (mut count, mut topics) = (0, std::collections::BTreeSet::new());
    for partition in partitions {
        count += 1;
        topics.insert(&*partition.topic);
    }
    count <= PARTITIONS
        && topics.iter().map(|topic| topic.len() + TOPIC_OVERHEAD).sum::<usize>() <= TOPIC_BYTES
}
