//! Lane: turns the rows of up to 64 partitions into batches.
//!
//! ClickHouse wants few, large inserts, so a batch spans the partitions of its lane. The number of
//! partitions is bounded so that what a batch must remember of each fits into Kafka's commit
//! metadata (4,096 bytes) for every one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::batch::{Batch, BatchLimits, BatchPlanner, Part};
use crate::domain::intent::{bounds, forced_runs};
use crate::domain::ledger::{BatchId, PartitionId};

use super::binding::BoundChain;
use super::budget::Hold;
use super::event::Judged;

/// A sealed batch with what it holds on to until it settles.
#[derive(Debug)]
pub struct SealedBatch {
    /// Rows and rejections.
    pub batch: Batch,
    /// Chain that made them, with its tables.
    pub chain: Arc<BoundChain>,
    /// Shares of the byte budget.
    pub holds: Vec<Hold>,
}

impl SealedBatch {
    /// The batch without the partitions that `keep` refuses, under another identity; `None` when
    /// nothing is left. What was dropped stays in the budget until the rest settles.
    pub fn without(mut self, keep: impl Fn(&PartitionId) -> bool, id: BatchId) -> Option<Self> {
        let slices = std::mem::take(&mut self.batch.slices);
        let parts = std::mem::take(&mut self.batch.parts);
        let parts: Vec<Part> = parts.into_iter().filter(|part| keep(&part.partition())).collect();
        if parts.is_empty() {
            return None;
        }
        self.batch = Batch::seal(id, parts);
        for slice in &mut self.batch.slices {
            if let Some(old) = slices.iter().find(|old| old.partition == slice.partition) {
                slice.start = old.start;
            }
        }
        Some(self)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Lane {
    /// Each with the offset at which its last slice ended under this assignment.
    partitions: BTreeMap<PartitionId, Option<i64>>,
    planner: BatchPlanner,
    chain: Option<Arc<BoundChain>>,
    parts: Vec<Part>,
    holds: Vec<Hold>,
    /// Runs of rejections that an intent must list.
    forced_runs: usize,
}

impl Lane {
    /// A lane without partitions.
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            partitions: BTreeMap::new(),
            planner: BatchPlanner::new(limits),
            chain: None,
            parts: Vec::new(),
            holds: Vec::new(),
            forced_runs: 0,
        }
    }

    /// Whether another partition fits in.
    pub fn has_room_for(&self, partition: &PartitionId) -> bool {
        bounds::lane_holds(self.partitions.keys().chain([partition]))
    }

    /// Adds a partition.
    pub fn join(&mut self, partition: PartitionId) {
        self.partitions.insert(partition, None);
    }

    /// Removes a partition. Its records that are not sealed are dropped: whoever gets the
    /// partition reads them again.
    pub fn leave(&mut self, partition: &PartitionId) {
        if self.partitions.remove(partition).is_none() {
            return;
        }
        let mut kept_holds = Vec::new();
        let mut kept_parts = Vec::new();
        for (part, hold) in self.parts.drain(..).zip(self.holds.drain(..)) {
            if part.partition() != *partition {
                kept_parts.push(part);
                kept_holds.push(hold);
            }
        }
        (self.parts, self.holds) = (kept_parts, kept_holds);
    }

    /// Whether the lane has this partition.
    pub fn has(&self, partition: &PartitionId) -> bool {
        self.partitions.contains_key(partition)
    }

    /// Adds a chunk, and returns the batches that this seals: the one before, when the chain
    /// changed or an intent could not list more of it, and the one that the chunk filled. `draw` draws
    /// an identity.
    pub fn add(
        &mut self,
        judged: Judged,
        now: Duration,
        mut draw: impl FnMut() -> BatchId,
    ) -> Vec<SealedBatch> {
        let mut sealed = Vec::new();
        let part = Part { chunk: judged.taken.chunk, verdicts: judged.verdicts, epoch: judged.taken.epoch };
        let forced = forced_runs(&part);
        let chain_changed = self.chain.as_ref().is_some_and(|chain| !Arc::ptr_eq(chain, &judged.taken.chain));
        if chain_changed || (forced > 0 && self.forced_runs + forced > bounds::FORCED_RUNS) {
            sealed.extend(self.seal(&mut draw));
        }
        let full = self.planner.add(part.rows(), part.row_bytes(), now);
        self.chain = Some(judged.taken.chain);
        self.parts.push(part);
        self.holds.push(judged.taken.hold);
        self.forced_runs += forced;
        if full {
            sealed.extend(self.seal(&mut draw));
        }
        sealed
    }

    /// When the batch in the making must be sealed.
    pub fn deadline(&self) -> Option<Duration> {
        self.planner.deadline()
    }

    /// Seals what there is.
    pub fn seal(&mut self, mut draw: impl FnMut() -> BatchId) -> Option<SealedBatch> {
        self.planner.clear();
        self.forced_runs = 0;
        let chain = self.chain.take()?;
        if self.parts.is_empty() {
            return None;
        }
        let mut batch = Batch::seal(draw(), std::mem::take(&mut self.parts));
        for slice in &mut batch.slices {
            if let Some(end) = self.partitions.get_mut(&slice.partition) {
                // No record lies between, and an intent takes less room when its slices touch.
                slice.start = end.replace(slice.end).unwrap_or(slice.start);
            }
        }
        Some(SealedBatch { batch, chain, holds: std::mem::take(&mut self.holds) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chunk::{Chunk, ChunkBuilder};
    use crate::domain::intent::{Intent, PendingBatches};
    use crate::domain::row::Output;
    use crate::domain::verdict::{ChunkVerdicts, OutputRows, Rejection, RejectionKind, Revision, Stage};
    use crate::pipeline::budget::Budget;
    use crate::pipeline::event::Taken;
    use crate::pipeline::ports::{Chain, ChainRunner, ModuleIdentity};

    const MAPPER: Revision = Revision([1; 32]);

    /// A chain by name only: what it would say is given to the lane.
    struct NamedChain;

    impl Chain for NamedChain {
        fn revision(&self) -> Revision {
            MAPPER
        }
        fn modules(&self) -> &[ModuleIdentity] {
            &[]
        }
        fn outputs(&self) -> &[Output] {
            &[]
        }
        fn runner(&self) -> Box<dyn ChainRunner> {
            unreachable!("lanes run nothing")
        }
    }

    fn chain() -> Arc<BoundChain> {
        Arc::new(BoundChain { chain: Arc::new(NamedChain), tables: Vec::new() })
    }

    fn id(partition: i32) -> PartitionId {
        PartitionId { topic: "topic".into(), partition }
    }

    fn lane(partitions: i32) -> Lane {
        let limits = BatchLimits { rows: 1_000, ..BatchLimits::default() };
        let mut lane = Lane::new(limits);
        (0..partitions).for_each(|partition| lane.join(id(partition)));
        lane
    }

    /// A chunk from `base` on: `t` took too long, others have a row.
    fn judged(chain: &Arc<BoundChain>, partition: i32, base: i64, letters: &str) -> Judged {
        let mut builder = ChunkBuilder::new("topic".into(), partition, base);
        let mut rows = OutputRows::default();
        let mut rejections = Vec::new();
        for (index, letter) in (0u32..).zip(letters.bytes()) {
            builder.push(base + i64::from(index), 0, None, None, []);
            if letter == b't' {
                let rejection = Rejection {
                    stage: Stage::Map,
                    module: "mapper".into(),
                    revision: Some(MAPPER),
                    kind: RejectionKind::Timeout,
                    code: "timeout".into(),
                    field: None,
                    reason: String::new(),
                };
                rejections.push((index, rejection));
            } else {
                rows.bytes.push(letter);
                rows.row_ends.push(rows.bytes.len() as u32);
            }
            rows.rows_per_record.push(u32::from(letter != b't'));
        }
        let chunk: Arc<Chunk> = Arc::new(builder.build());
        let verdicts = ChunkVerdicts { chain: MAPPER, outputs: vec![rows], rejections };
        let hold = Budget::new(1_000).take(1);
        let taken = Taken { epoch: 1, sequence: 0, chunk, chain: chain.clone(), hold };
        Judged { taken, verdicts: Arc::new(verdicts) }
    }

    /// Adds a chunk; returns the batches that this seals.
    fn add(lane: &mut Lane, judged: Judged) -> Vec<SealedBatch> {
        lane.add(judged, Duration::ZERO, || BatchId(7))
    }

    fn intent(sealed: &SealedBatch) -> Intent {
        Intent::of(&sealed.batch, [MAPPER].into()).expect("a lane seals batches that intents can tell of")
    }

    /// Slices of a batch: partition, start and end.
    fn slices(sealed: &SealedBatch) -> Vec<(i32, i64, i64)> {
        let slices = sealed.batch.slices.iter();
        slices.map(|slice| (slice.partition.partition, slice.start, slice.end)).collect()
    }

    #[test]
    fn a_batch_is_sealed_before_it_has_more_forced_runs_than_an_intent_may_list() {
        let (chain, mut lane) = (chain(), lane(2));
        // Runs: 4, then 4 more, then one too many.
        assert!(add(&mut lane, judged(&chain, 0, 0, "tattatat")).is_empty());
        assert!(add(&mut lane, judged(&chain, 1, 0, "atatatat")).is_empty());
        assert!(add(&mut lane, judged(&chain, 1, 8, "aaaa")).is_empty(), "without a run it goes in");
        let sealed = add(&mut lane, judged(&chain, 0, 8, "at"));
        let [first] = &sealed[..] else { panic!("{sealed:?}") };
        assert_eq!(slices(first), [(0, 0, 8), (1, 0, 12)]);
        assert_eq!(intent(first).forced().len(), bounds::FORCED_RUNS);
        // What made it too many is the first of the next, which has room again.
        assert!(add(&mut lane, judged(&chain, 1, 12, "tatatatatatata")).is_empty());
        let second = lane.seal(|| BatchId(8)).expect("there is something");
        assert_eq!(slices(&second), [(0, 8, 10), (1, 12, 26)]);
        assert_eq!(intent(&second).forced().len(), bounds::FORCED_RUNS);
        assert!(lane.seal(|| BatchId(9)).is_none());
    }

    #[test]
    fn a_chunk_with_too_many_forced_runs_shares_its_batch_with_no_others_and_fits() {
        let (chain, mut lane) = (chain(), lane(2));
        assert!(add(&mut lane, judged(&chain, 0, 0, "ta")).is_empty());
        let runs = "ta".repeat(512);
        assert_eq!(add(&mut lane, judged(&chain, 1, 0, &runs)).len(), 1);
        let sealed = add(&mut lane, judged(&chain, 0, 2, "ta"));
        let [large] = &sealed[..] else { panic!("{sealed:?}") };
        assert_eq!(slices(large), [(1, 0, 1024)]);
        assert_eq!(intent(large).forced().len(), 512);
        assert!(PendingBatches::new(vec![intent(large)]).fits());
    }

    #[test]
    fn slices_touch_within_an_assignment() {
        let (chain, mut lane) = (chain(), lane(2));
        let sealed = |lane: &mut Lane, chunks: &[(i32, i64, &str)]| {
            for (partition, base, letters) in chunks {
                assert!(add(lane, judged(&chain, *partition, *base, letters)).is_empty());
            }
            slices(&lane.seal(|| BatchId(7)).expect("there is something"))
        };
        // Offsets without a record, by compaction or transactions, lie between chunks and between batches.
        assert_eq!(sealed(&mut lane, &[(0, 5, "aa"), (0, 9, "a"), (1, 3, "a")]), [(0, 5, 10), (1, 3, 4)]);
        assert_eq!(sealed(&mut lane, &[(0, 20, "a")]), [(0, 10, 21)]);
        assert_eq!(sealed(&mut lane, &[(1, 30, "a"), (0, 21, "a")]), [(0, 21, 22), (1, 4, 31)]);
        // Under another assignment nothing is known of what came before.
        lane.leave(&id(0));
        lane.join(id(0));
        assert_eq!(sealed(&mut lane, &[(0, 50, "a"), (1, 40, "a")]), [(0, 50, 51), (1, 31, 41)]);
    }

    #[test]
    fn a_batch_is_of_one_chain_and_forgets_partitions_that_leave() {
        let (old, new, mut lane) = (chain(), chain(), lane(2));
        assert!(add(&mut lane, judged(&old, 0, 0, "aa")).is_empty());
        assert!(add(&mut lane, judged(&old, 1, 0, "a")).is_empty());
        let sealed = add(&mut lane, judged(&new, 0, 2, "a"));
        let [first] = &sealed[..] else { panic!("{sealed:?}") };
        assert_eq!(slices(first), [(0, 0, 2), (1, 0, 1)]);
        assert!(Arc::ptr_eq(&first.chain, &old));
        assert!(add(&mut lane, judged(&new, 1, 1, "a")).is_empty());
        lane.leave(&id(0));
        let second = lane.seal(|| BatchId(8)).expect("there is something");
        assert_eq!((slices(&second), second.holds.len()), (vec![(1, 1, 2)], 1));
        assert!(Arc::ptr_eq(&second.chain, &new));
    }
}
