//! Ledger: the delivery state machine. It knows, for every partition of this host, what has been
//! consumed, sealed into batches, inserted and committed, and answers the questions that keep records
//! from being lost or repeated: how far may the group's position move, which batches must its metadata
//! list, and which of them may be sent.
//!
//! A batch is *sealed*, then *intended* (it stands in the commit metadata of all its partitions), then
//! each of its slices *ends* (its rows are in ClickHouse), and is *settled* when a commit moves the
//! position of its partition past it. At-least-once, a batch is as good as intended when it is sealed.
//!
//! Invariants; the tests below check them against a naive model:
//! - a commit point never passes a record that is not inserted, filtered or to be dead-lettered with it;
//! - a commit point never goes back while the partition stays assigned;
//! - a batch is listed in the metadata of all its partitions that this host has, or of none, and stays
//!   listed until its slice is settled; what is listed for a partition was sealed in that order;
//! - nothing is intended behind a batch that is still being recovered, nor beyond what metadata holds;
//! - `consumed = inserted + filtered + dead_lettered + in_flight`, for every partition, always;
//! - what belongs to an earlier assignment of a partition (an older epoch) changes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::intent::{Intent, PendingBatches, bounds};

/// What a pipeline promises of its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// Each ends in the table, in the dead-letter topic or filtered; after a crash maybe twice.
    AtLeastOnce,
    /// Each ends there once.
    #[default]
    ExactlyOnce,
}

impl Delivery {
    /// The word used in the configuration and in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at-least-once",
            Self::ExactlyOnce => "exactly-once",
        }
    }
}

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId {
    /// Topic.
    pub topic: Arc<str>,
    /// Number.
    pub partition: i32,
}

/// Which assignment of a partition something belongs to; grows with every assignment of this host.
pub type Epoch = u64;

/// Identity of a batch: drawn at random when it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u128);

impl std::fmt::Display for BatchId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Consecutive records `[start, end)` of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Partition.
    pub partition: PartitionId,
    /// Assignment under which the records were consumed.
    pub epoch: Epoch,
    /// Offset of the first record.
    pub start: i64,
    /// Offset after the last record.
    pub end: i64,
}

/// How the records of a slice ended, or of a partition so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records with a row in ClickHouse.
    pub inserted: u64,
    /// Records that gave no row, on purpose.
    pub filtered: u64,
    /// Records in the dead-letter topic.
    pub dead_lettered: u64,
}

impl Outcome {
    /// Number of records.
    pub fn records(&self) -> u64 {
        self.inserted + self.filtered + self.dead_lettered
    }

    /// Adds the records of `other`.
    pub fn add(&mut self, other: &Self) {
        self.inserted += other.inserted;
        self.filtered += other.filtered;
        self.dead_lettered += other.dead_lettered;
    }
}

/// A partition as the ledger sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Where the group went on reading when the partition was assigned, once that is known.
    pub resumed: Option<i64>,
    /// Offset of the next record to consume, once one was consumed.
    pub next_offset: Option<i64>,
    /// Offset committed under this assignment.
    pub committed: Option<i64>,
    /// Records consumed under this assignment, those of recovered batches included.
    pub consumed: u64,
    /// How those that are settled ended.
    pub outcome: Outcome,
}

impl Standing {
    /// Where a new owner would go on reading, as far as it is known.
    pub fn position(&self) -> Option<i64> {
        self.committed.or(self.resumed)
    }

    /// Records that are not settled.
    pub fn in_flight(&self) -> u64 {
        self.consumed - self.outcome.records()
    }
}

#[derive(Debug)]
struct PendingSlice {
    batch: BatchId,
    start: i64,
    end: i64,
    /// Found in the metadata when the partition was assigned.
    recovered: bool,
    ended: Option<Outcome>,
}

#[derive(Debug)]
struct PartitionLedger {
    epoch: Epoch,
    standing: Standing,
    /// Slices by offset, from the oldest that is not settled on.
    pending: VecDeque<PendingSlice>,
}

impl PartitionLedger {
    /// Slices that a commit may pass.
    fn ended(&self) -> usize {
        self.pending.iter().take_while(|slice| slice.ended.is_some()).count()
    }

    /// Where the group goes on reading once `settled` slices are settled.
    fn offset_after(&self, settled: usize) -> Option<i64> {
        let passed = settled.checked_sub(1).and_then(|last| self.pending.get(last)).map(|slice| slice.end);
        passed.or(self.standing.position()).or(self.pending.front().map(|slice| slice.start))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Sealed,
    Intending,
    Intended,
}

#[derive(Debug)]
struct PendingBatch {
    stage: Stage,
    /// None at-least-once.
    intent: Option<Intent>,
    /// Slices of it that are pending here.
    slices: usize,
}

/// A partition's part of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Partition.
    pub partition: PartitionId,
    /// Assignment under which it is ours.
    pub epoch: Epoch,
    /// Offset of the next record to read.
    pub offset: i64,
    /// What is pending, as text.
    pub metadata: String,
    /// Batches whose slice this settles, oldest first.
    pub settles: Vec<BatchId>,
}

/// What one commit is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where partitions go on; never none.
    pub points: Vec<Point>,
    /// Batches that it intends, oldest first.
    pub intends: Vec<BatchId>,
}

/// What a commit that happened has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// How the records ended that are settled now.
    pub settled: Vec<(PartitionId, Outcome)>,
    /// Batches that may be sent now.
    pub intended: Vec<BatchId>,
    /// Batches that have nothing left here.
    pub done: Vec<BatchId>,
}

/// What is left of a partition that went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Its last standing.
    pub standing: Standing,
    /// Batches that are not intended and must be sealed anew without it: its next owner reads its
    /// records again, and nothing tells it that they were in this batch.
    pub dissolved: Vec<BatchId>,
    /// Batches that have nothing left here; whoever has their partitions recovers them.
    pub done: Vec<BatchId>,
}

/// Metadata by the batches that it lists, made once for all partitions of a commit that list the same.
type Texts = BTreeMap<Vec<BatchId>, String>;

/// See the module documentation.
#[derive(Debug)]
pub struct Ledger {
    delivery: Delivery,
    partitions: BTreeMap<PartitionId, PartitionLedger>,
    batches: BTreeMap<BatchId, PendingBatch>,
    /// Batches that are not intended yet, in the order of sealing.
    sealed: VecDeque<BatchId>,
}

impl Ledger {
    /// A ledger without partitions.
    pub fn new(delivery: Delivery) -> Self {
        Self { delivery, partitions: BTreeMap::new(), batches: BTreeMap::new(), sealed: VecDeque::new() }
    }

    /// Begins to account for a partition at which the group goes on reading from `position`, where that
    /// is known, with the batches that its metadata lists. Returns those that are not known here, which
    /// must be recovered. An earlier assignment must have been revoked.
    pub fn assign(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        position: Option<i64>,
        listed: &PendingBatches,
    ) -> Vec<BatchId> {
        debug_assert!(!self.partitions.contains_key(&partition));
        let mut pending = VecDeque::new();
        let mut unknown = Vec::new();
        for intent in listed.intents() {
            let Some(slice) = intent.slice(&partition) else { continue };
            let (batch, recovered) = (intent.id(), true);
            pending.push_back(PendingSlice {
                batch,
                start: slice.start,
                end: slice.end,
                recovered,
                ended: None,
            });
            let known = self.batches.entry(batch).or_insert_with(|| {
                unknown.push(batch);
                PendingBatch { stage: Stage::Intended, intent: Some(intent.clone()), slices: 0 }
            });
            known.slices += 1;
        }
        let standing = Standing { resumed: position, ..Standing::default() };
        self.partitions.insert(partition, PartitionLedger { epoch, standing, pending });
        unknown
    }

    /// Forgets a partition; what is still on its way for it no longer counts.
    pub fn revoke(&mut self, partition: &PartitionId) -> Option<Revoked> {
        let ledger = self.partitions.remove(partition)?;
        let mut revoked = Revoked { standing: ledger.standing, ..Revoked::default() };
        for slice in ledger.pending {
            let Some(batch) = self.batches.get(&slice.batch) else { continue };
            debug_assert!(batch.stage != Stage::Intending, "a partition goes only between two commits");
            let dissolved = batch.stage == Stage::Sealed;
            if self.let_go(slice.batch) {
                revoked.done.push(slice.batch);
            } else if dissolved {
                revoked.dissolved.push(slice.batch);
            }
        }
        Some(revoked)
    }

    /// Whether the partition is ours under this very assignment.
    pub fn owns(&self, partition: &PartitionId, epoch: Epoch) -> bool {
        self.partitions.get(partition).is_some_and(|ledger| ledger.epoch == epoch)
    }

    /// Whether anything of the batch is pending here.
    pub fn knows(&self, batch: BatchId) -> bool {
        self.batches.contains_key(&batch)
    }

    /// Whether all partitions of the batch have been this host's ever since it was sealed: nobody else can
    /// have recovered it. Always at-least-once, where nobody does.
    pub fn is_ours_alone(&self, batch: BatchId) -> bool {
        let Some(intent) = self.intent(batch) else { return true };
        intent.slices().iter().all(|slice| {
            let pending = self.partitions.get(&slice.partition).map(|ledger| &ledger.pending);
            pending.is_some_and(|pending| {
                pending.iter().any(|pending| pending.batch == batch && !pending.recovered)
            })
        })
    }

    /// The intent of a batch that is pending here.
    pub fn intent(&self, batch: BatchId) -> Option<&Intent> {
        self.batches.get(&batch)?.intent.as_ref()
    }

    /// Records that `records` records up to `end` were taken in. Returns false, and changes
    /// nothing, when the partition is no longer ours under `epoch`.
    pub fn consume(&mut self, partition: &PartitionId, epoch: Epoch, records: u64, end: i64) -> bool {
        let Some(ledger) = self.current(partition, epoch) else { return false };
        debug_assert!(ledger.standing.next_offset.is_none_or(|next| next < end));
        ledger.standing.consumed += records;
        ledger.standing.next_offset = Some(end);
        true
    }

    /// Records that a batch was sealed over `slices`, all of them of partitions that are ours. Slices of a
    /// partition are sealed in order. Exactly-once it has an intent.
    pub fn seal(&mut self, batch: BatchId, slices: &[Slice], intent: Option<Intent>) {
        let mut sealed = 0;
        for slice in slices {
            let Some(ledger) = self.current(&slice.partition, slice.epoch) else { continue };
            debug_assert!(ledger.pending.back().is_none_or(|before| before.end <= slice.start));
            let (start, end) = (slice.start, slice.end);
            ledger.pending.push_back(PendingSlice { batch, start, end, recovered: false, ended: None });
            sealed += 1;
        }
        debug_assert_eq!(sealed, slices.len(), "a lane has only partitions that are ours");
        self.enter(batch, sealed, intent);
    }

    /// Puts a batch that was sealed anew, over slices of the old one, in the place of the old one.
    pub fn replace(&mut self, old: BatchId, batch: BatchId, slices: &[Slice], intent: Option<Intent>) {
        let place = self.sealed.iter().position(|sealed| *sealed == old);
        let mut sealed = 0;
        for slice in slices {
            let Some(ledger) = self.current(&slice.partition, slice.epoch) else { continue };
            for pending in ledger.pending.iter_mut().filter(|pending| pending.batch == old) {
                (pending.batch, sealed) = (batch, sealed + 1);
            }
        }
        self.batches.remove(&old);
        self.sealed.retain(|sealed| *sealed != old);
        self.enter(batch, sealed, intent);
        if let Some(place) = place
            && self.sealed.back() == Some(&batch)
        {
            self.sealed.pop_back();
            self.sealed.insert(place, batch);
        }
    }

    fn enter(&mut self, batch: BatchId, slices: usize, intent: Option<Intent>) {
        let stage = match self.delivery {
            Delivery::AtLeastOnce => Stage::Intended,
            Delivery::ExactlyOnce => Stage::Sealed,
        };
        debug_assert!(stage == Stage::Intended || intent.is_some());
        self.batches.insert(batch, PendingBatch { stage, intent, slices });
        if stage == Stage::Sealed {
            self.sealed.push_back(batch);
        }
    }

    /// Records how the records of a slice ended. Returns how many of them count as consumed only now,
    /// since the batch was recovered; `None`, and changes nothing, when that slice is not pending here.
    pub fn end(&mut self, batch: BatchId, partition: &PartitionId, outcome: &Outcome) -> Option<u64> {
        let ledger = self.partitions.get_mut(partition)?;
        let pending = ledger.pending.iter_mut().find(|pending| pending.batch == batch)?;
        if pending.ended.replace(*outcome).is_some() {
            return None;
        }
        let consumed = if pending.recovered { outcome.records() } else { 0 };
        ledger.standing.consumed += consumed;
        Some(consumed)
    }

    /// What the next commit is to do: move every partition past what has ended, and intend what may
    /// be. `letter_bytes` tells how much a slice brings into it; no more than `most_letter_bytes` are
    /// taken, but for one slice. `None` when there is nothing to do. No other commit may be under
    /// way; the plan must come back by [`Self::committed`] or [`Self::refused`].
    pub fn plan(
        &mut self,
        letter_bytes: impl Fn(BatchId, &PartitionId) -> usize,
        most_letter_bytes: usize,
    ) -> Option<Plan> {
        let mut settled: BTreeMap<PartitionId, usize> = BTreeMap::new();
        let mut bytes = 0;
        for (partition, ledger) in &self.partitions {
            let mut taken = 0;
            for slice in ledger.pending.range(..ledger.ended()) {
                bytes += letter_bytes(slice.batch, partition);
                if bytes > most_letter_bytes && (taken > 0 || !settled.is_empty()) {
                    break;
                }
                taken += 1;
            }
            if taken > 0 {
                settled.insert(partition.clone(), taken);
            }
            if bytes > most_letter_bytes {
                break;
            }
        }
        let mut texts = Texts::new();
        let intends = self.intend(&settled, &mut texts);
        let mut touched: BTreeSet<&PartitionId> = settled.keys().collect();
        let of_batch = |batch: &BatchId| self.batches[batch].intent.iter().flat_map(Intent::slices);
        touched.extend(intends.iter().flat_map(of_batch).map(|slice| &slice.partition));
        let mut points = Vec::new();
        for partition in touched {
            let Some(ledger) = self.partitions.get(partition) else { continue };
            let taken = settled.get(partition).copied().unwrap_or(0);
            let Some(offset) = ledger.offset_after(taken) else { continue };
            let listed = self.listed(ledger, taken);
            let metadata = self.text(listed, &mut texts).to_owned();
            let settles = ledger.pending.range(..taken).map(|slice| slice.batch).collect();
            points.push(Point {
                partition: partition.clone(),
                epoch: ledger.epoch,
                offset,
                metadata,
                settles,
            });
        }
        (!points.is_empty()).then_some(Plan { points, intends })
    }

    /// Batches that the next commit intends, given what it settles; they count as being intended.
    fn intend(&mut self, settled: &BTreeMap<PartitionId, usize>, texts: &mut Texts) -> Vec<BatchId> {
        let mut intends = Vec::new();
        for batch in self.sealed.clone() {
            let fits = self.intent(batch).is_some_and(|intent| {
                intent.slices().iter().all(|slice| self.fits(&slice.partition, batch, settled, texts))
            });
            if let Some(pending) = self.batches.get_mut(&batch).filter(|_| fits) {
                pending.stage = Stage::Intending;
                intends.push(batch);
            }
        }
        self.sealed.retain(|batch| !intends.contains(batch));
        intends
    }

    /// Whether a partition's metadata takes the batch in, once the commit has settled what it does.
    fn fits(
        &self,
        partition: &PartitionId,
        batch: BatchId,
        settled: &BTreeMap<PartitionId, usize>,
        texts: &mut Texts,
    ) -> bool {
        let Some(ledger) = self.partitions.get(partition) else { return false };
        let taken = settled.get(partition).copied().unwrap_or(0);
        let before = ledger.pending.range(taken..).take_while(|slice| slice.batch != batch);
        // In order, and never behind a batch that another host may be recovering, too.
        let in_order = before.clone().all(|slice| {
            let listed = self.batches.get(&slice.batch).is_some_and(|batch| batch.stage != Stage::Sealed);
            listed && !slice.recovered
        });
        let listed: Vec<BatchId> = before.map(|slice| slice.batch).chain([batch]).collect();
        in_order
            && listed.len() <= bounds::PENDING_BATCHES
            && (listed.len() == 1 || self.text(listed, texts).len() <= bounds::METADATA_LIMIT)
    }

    /// What the metadata of a partition lists, once `settled` slices are settled.
    fn listed(&self, ledger: &PartitionLedger, settled: usize) -> Vec<BatchId> {
        let pending = ledger.pending.range(settled..).map(|slice| slice.batch);
        let intended = |batch: &BatchId| {
            self.batches
                .get(batch)
                .is_some_and(|batch| batch.stage != Stage::Sealed && batch.intent.is_some())
        };
        pending.filter(intended).collect()
    }

    /// What metadata that lists these batches says.
    fn text<'t>(&self, batches: Vec<BatchId>, texts: &'t mut Texts) -> &'t str {
        texts.entry(batches).or_insert_with_key(|batches| {
            let intents = batches.iter().filter_map(|batch| self.intent(*batch).cloned());
            PendingBatches::new(intents.collect()).encode()
        })
    }

    /// The commit happened.
    pub fn committed(&mut self, plan: &Plan) -> Committed {
        let mut committed = Committed::default();
        for Point { partition, epoch, offset, settles, .. } in &plan.points {
            let Some(ledger) = self.current(partition, *epoch) else { continue };
            ledger.standing.committed = ledger.standing.committed.max(Some(*offset));
            let mut settled = Outcome::default();
            for slice in ledger.pending.drain(..settles.len()) {
                settled.add(&slice.ended.unwrap_or_default());
            }
            ledger.standing.outcome.add(&settled);
            committed.settled.push((partition.clone(), settled));
            committed.done.extend(settles.iter().filter(|batch| self.let_go(**batch)));
        }
        for batch in &plan.intends {
            if let Some(pending) = self.batches.get_mut(batch) {
                pending.stage = Stage::Intended;
                committed.intended.push(*batch);
            }
        }
        committed
    }

    /// The commit did not happen.
    pub fn refused(&mut self, plan: &Plan) {
        for batch in plan.intends.iter().rev() {
            if let Some(pending) = self.batches.get_mut(batch) {
                pending.stage = Stage::Sealed;
                self.sealed.push_front(*batch);
            }
        }
    }

    /// One slice less of a batch; whether that was the last.
    fn let_go(&mut self, batch: BatchId) -> bool {
        let Some(pending) = self.batches.get_mut(&batch) else { return false };
        pending.slices -= 1;
        if pending.slices > 0 {
            return false;
        }
        self.batches.remove(&batch);
        self.sealed.retain(|sealed| *sealed != batch);
        true
    }

    /// Whether everything consumed of the partition is settled, or it is not ours.
    pub fn is_drained(&self, partition: &PartitionId) -> bool {
        self.partitions
            .get(partition)
            .is_none_or(|ledger| ledger.pending.is_empty() && ledger.standing.in_flight() == 0)
    }

    /// Whether [`Self::is_drained`] holds for every partition.
    pub fn all_drained(&self) -> bool {
        self.partitions.keys().all(|partition| self.is_drained(partition))
    }

    /// Every partition of this host, by topic and number.
    pub fn standings(&self) -> impl Iterator<Item = (&PartitionId, &Standing)> {
        self.partitions.iter().map(|(partition, ledger)| (partition, &ledger.standing))
    }

    fn current(&mut self, partition: &PartitionId, epoch: Epoch) -> Option<&mut PartitionLedger> {
        self.partitions.get_mut(partition).filter(|ledger| ledger.epoch == epoch)
    }
}

#[cfg(test)]
mod tests;
