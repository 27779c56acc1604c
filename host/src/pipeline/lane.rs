//! Lane: turns the rows of up to 64 partitions into batches.
//!
//! ClickHouse wants few, large inserts, so a batch spans the partitions of its lane. The number of
//! partitions is bounded so that what a batch must remember of each fits into Kafka's commit
//! metadata (4,096 bytes) for every one of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::batch::{Batch, BatchLimits, BatchPlanner, Part};
use crate::domain::ledger::{BatchId, PartitionId};

use super::binding::BoundChain;
use super::budget::Hold;
use super::event::Judged;

/// Most partitions in a lane.
pub const PARTITIONS: usize = 64;

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

/// See the module documentation.
#[derive(Debug)]
pub struct Lane {
    partitions: BTreeSet<PartitionId>,
    planner: BatchPlanner,
    chain: Option<Arc<BoundChain>>,
    parts: Vec<Part>,
    holds: Vec<Hold>,
}

impl Lane {
    /// A lane without partitions.
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            partitions: BTreeSet::new(),
            planner: BatchPlanner::new(limits),
            chain: None,
            parts: Vec::new(),
            holds: Vec::new(),
        }
    }

    /// Whether another partition fits in.
    pub fn has_room(&self) -> bool {
        self.partitions.len() < PARTITIONS
    }

    /// Adds a partition.
    pub fn join(&mut self, partition: PartitionId) {
        self.partitions.insert(partition);
    }

    /// Removes a partition. Its records that are not sealed are dropped: whoever gets the
    /// partition reads them again.
    pub fn leave(&mut self, partition: &PartitionId) {
        if !self.partitions.remove(partition) {
            return;
        }
        let mut kept_holds = Vec::new();
        let mut kept_parts = Vec::new();
        for (part, hold) in self.parts.drain(..).zip(self.holds.drain(..)) {
            if part.chunk.partition != partition.partition || part.chunk.topic != partition.topic {
                kept_parts.push(part);
                kept_holds.push(hold);
            }
        }
        (self.parts, self.holds) = (kept_parts, kept_holds);
    }

    /// Whether the lane has this partition.
    pub fn has(&self, partition: &PartitionId) -> bool {
        self.partitions.contains(partition)
    }

    /// Adds a chunk, and returns the batches that this seals: the one before, when the chain
    /// changed, and the one that the chunk filled. `draw` draws an identity.
    pub fn add(
        &mut self,
        judged: Judged,
        now: Duration,
        mut draw: impl FnMut() -> BatchId,
    ) -> Vec<SealedBatch> {
        let mut sealed = Vec::new();
        if self.chain.as_ref().is_some_and(|chain| !Arc::ptr_eq(chain, &judged.taken.chain)) {
            sealed.extend(self.seal(&mut draw));
        }
        let part = Part { chunk: judged.taken.chunk, verdicts: judged.verdicts, epoch: judged.taken.epoch };
        let full = self.planner.add(part.rows(), part.row_bytes(), now);
        self.chain = Some(judged.taken.chain);
        self.parts.push(part);
        self.holds.push(judged.taken.hold);
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
        let chain = self.chain.take()?;
        if self.parts.is_empty() {
            return None;
        }
        Some(SealedBatch {
            batch: Batch::seal(draw(), std::mem::take(&mut self.parts)),
            chain,
            holds: std::mem::take(&mut self.holds),
        })
    }
}
