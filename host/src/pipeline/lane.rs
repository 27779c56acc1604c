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
