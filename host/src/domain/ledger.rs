//! Ledger: the delivery state machine. It knows, for every partition of this host, what has been
//! consumed, sealed into batches, settled and committed, and answers the one question that keeps
//! records from being lost: up to which offset may the group's position move?
//!
//! Invariants; the tests below check the first two against a naive model:
//! - a commit point never passes a record that is not inserted, filtered or dead-lettered;
//! - a commit point never goes back while the partition stays assigned;
//! - `consumed = inserted + filtered + dead_lettered + in_flight`, for every partition, always;
//! - what belongs to an earlier assignment of a partition (an older epoch) changes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

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
    /// Offset up to which everything is settled, once something is.
    pub settled: Option<i64>,
    /// Offset committed under this assignment.
    pub committed: Option<i64>,
    /// Records consumed under this assignment.
    pub consumed: u64,
    /// How they ended.
    pub outcome: Outcome,
}

impl Standing {
    /// Where a new owner would go on reading, as far as it is known.
    pub fn position(&self) -> Option<i64> {
        self.committed.or(self.resumed)
    }

    /// Records on their way.
    pub fn in_flight(&self) -> u64 {
        self.consumed - self.outcome.records()
    }
}

#[derive(Debug)]
struct PendingSlice {
    batch: BatchId,
    end: i64,
    settled: bool,
}

#[derive(Debug)]
struct PartitionLedger {
    epoch: Epoch,
    standing: Standing,
    /// Sealed slices by offset, from the oldest unsettled one on.
    pending: VecDeque<PendingSlice>,
    committing: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    partitions: BTreeMap<PartitionId, PartitionLedger>,
}

impl Ledger {
    /// Begins to account for a partition that is read from `position`, where that is known. An
    /// earlier assignment of it is forgotten.
    pub fn assign(&mut self, partition: PartitionId, epoch: Epoch, position: Option<i64>) {
        self.partitions.insert(
            partition,
            PartitionLedger {
                epoch,
                standing: Standing { resumed: position, ..Standing::default() },
                pending: VecDeque::new(),
                committing: false,
            },
        );
    }

    /// Forgets a partition; what is still on its way for it no longer counts.
    pub fn revoke(&mut self, partition: &PartitionId) -> Option<Standing> {
        self.partitions.remove(partition).map(|ledger| ledger.standing)
    }

    /// Whether the partition is ours under this very assignment.
    pub fn owns(&self, partition: &PartitionId, epoch: Epoch) -> bool {
        self.partitions.get(partition).is_some_and(|ledger| ledger.epoch == epoch)
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

    /// Records that a batch was sealed over `slices`. Slices of a partition are sealed in order.
    pub fn seal(&mut self, batch: BatchId, slices: &[Slice]) {
        for slice in slices {
            if let Some(ledger) = self.current(&slice.partition, slice.epoch) {
                debug_assert!(ledger.pending.back().is_none_or(|before| before.end <= slice.start));
                ledger.pending.push_back(PendingSlice { batch, end: slice.end, settled: false });
            }
        }
    }

    /// Records how every record of a slice of a batch ended.
    /// Returns false, and changes nothing, when the partition is no longer ours under that epoch.
    pub fn settle(&mut self, batch: BatchId, slice: &Slice, outcome: &Outcome) -> bool {
        let Some(ledger) = self.current(&slice.partition, slice.epoch) else { return false };
        let Some(pending) =
            ledger.pending.iter_mut().find(|pending| pending.batch == batch && pending.end == slice.end)
        else {
            return false;
        };
        if pending.settled {
            return false;
        }
        pending.settled = true;
        ledger.standing.outcome.add(outcome);
        while ledger.pending.front().is_some_and(|pending| pending.settled) {
            ledger.standing.settled = ledger.pending.pop_front().map(|pending| pending.end);
        }
        true
    }

    /// Partitions whose position may move, with the offset that it may move to. They count as
    /// being committed until [`Self::committed`] or [`Self::commit_failed`].
    pub fn begin_commit(&mut self) -> Vec<(PartitionId, Epoch, i64)> {
        let mut points = Vec::new();
        for (partition, ledger) in &mut self.partitions {
            if let Some(settled) = ledger.standing.settled
                && ledger.standing.committed < Some(settled)
                && !ledger.committing
            {
                ledger.committing = true;
                points.push((partition.clone(), ledger.epoch, settled));
            }
        }
        points
    }

    /// Kafka has the offset.
    pub fn committed(&mut self, partition: &PartitionId, epoch: Epoch, offset: i64) {
        if let Some(ledger) = self.current(partition, epoch) {
            ledger.committing = false;
            ledger.standing.committed = ledger.standing.committed.max(Some(offset));
        }
    }

    /// Kafka does not have the offset, as far as we know; it will be offered again.
    pub fn commit_failed(&mut self, partition: &PartitionId, epoch: Epoch) {
        if let Some(ledger) = self.current(partition, epoch) {
            ledger.committing = false;
        }
    }

    /// Whether everything consumed of the partition is settled and committed, or it is not ours.
    pub fn is_drained(&self, partition: &PartitionId) -> bool {
        self.partitions.get(partition).is_none_or(|ledger| {
            ledger.standing.in_flight() == 0 && ledger.standing.committed >= ledger.standing.settled
        })
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partition(number: i32) -> PartitionId {
        PartitionId { topic: "topic".into(), partition: number }
    }

    fn slice(number: i32, epoch: Epoch, start: i64, end: i64) -> Slice {
        Slice { partition: partition(number), epoch, start, end }
    }

    fn inserted(records: u64) -> Outcome {
        Outcome { inserted: records, ..Outcome::default() }
    }

    #[test]
    fn an_unsettled_batch_holds_the_position_back() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), 1, None);
        ledger.consume(&partition(0), 1, 20, 20);
        let (first, second) = (slice(0, 1, 0, 10), slice(0, 1, 10, 20));
        ledger.seal(BatchId(1), std::slice::from_ref(&first));
        ledger.seal(BatchId(2), std::slice::from_ref(&second));
        ledger.settle(BatchId(2), &second, &inserted(10));
        assert_eq!(ledger.begin_commit(), []);
        ledger.settle(BatchId(1), &first, &inserted(10));
        assert_eq!(ledger.begin_commit(), [(partition(0), 1, 20)]);
        assert!(!ledger.is_drained(&partition(0)));
        ledger.committed(&partition(0), 1, 20);
        assert!(ledger.all_drained());
    }

    #[test]
    fn one_commit_at_a_time_and_a_failed_one_is_offered_again() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), 1, None);
        ledger.consume(&partition(0), 1, 5, 5);
        ledger.seal(BatchId(1), &[slice(0, 1, 0, 5)]);
        ledger.settle(BatchId(1), &slice(0, 1, 0, 5), &inserted(5));
        assert_eq!(ledger.begin_commit().len(), 1);
        assert_eq!(ledger.begin_commit(), []);
        ledger.commit_failed(&partition(0), 1);
        assert_eq!(ledger.begin_commit(), [(partition(0), 1, 5)]);
    }

    #[test]
    fn an_earlier_assignment_changes_nothing() {
        let mut ledger = Ledger::default();
        ledger.assign(partition(0), 1, None);
        ledger.consume(&partition(0), 1, 5, 5);
        ledger.seal(BatchId(1), &[slice(0, 1, 0, 5)]);
        ledger.revoke(&partition(0));
        ledger.assign(partition(0), 2, None);
        ledger.settle(BatchId(1), &slice(0, 1, 0, 5), &inserted(5));
        assert!(!ledger.consume(&partition(0), 1, 5, 10));
        assert_eq!(ledger.begin_commit(), []);
        assert_eq!(ledger.standings().next(), Some((&partition(0), &Standing::default())));
    }

    /// What the ledger must say, from first principles: every record of every partition with its
    /// own flags.
    #[derive(Default)]
    struct Model {
        settled: Vec<[bool; 64]>,
    }

    impl Model {
        fn prefix(&self, partition: usize) -> i64 {
            self.settled[partition].iter().take_while(|settled| **settled).count() as i64
        }
    }

    proptest! {
        #[test]
        fn commits_follow_the_contiguous_settled_prefix(
            // Lengths of consecutive slices, spread over 3 partitions, and the order of settling.
            lengths in prop::collection::vec((0usize..3, 1i64..5), 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let mut ledger = Ledger::default();
            let mut model = Model { settled: vec![[false; 64]; 3] };
            for number in 0..3 {
                ledger.assign(partition(number), 1, None);
            }
            let mut ends = [0i64; 3];
            let mut open = Vec::new();
            for (index, (number, length)) in lengths.into_iter().enumerate() {
                let start = ends[number];
                ends[number] += length;
                let slice = slice(number as i32, 1, start, ends[number]);
                ledger.consume(&slice.partition, 1, length as u64, slice.end);
                ledger.seal(BatchId(index as u128), std::slice::from_ref(&slice));
                open.push((BatchId(index as u128), slice));
            }
            let mut last = [0i64; 3];
            for pick in order {
                if open.is_empty() { break }
                let (batch, slice) = open.swap_remove(pick.index(open.len()));
                ledger.settle(batch, &slice, &inserted((slice.end - slice.start) as u64));
                let number = slice.partition.partition as usize;
                model.settled[number][slice.start as usize..slice.end as usize].fill(true);
                for (partition, epoch, offset) in ledger.begin_commit() {
                    let number = partition.partition as usize;
                    prop_assert_eq!(offset, model.prefix(number));
                    prop_assert!(offset > last[number]);
                    last[number] = offset;
                    ledger.committed(&partition, epoch, offset);
                }
                for (partition, standing) in ledger.standings() {
                    let number = partition.partition as usize;
                    prop_assert_eq!(last[number], model.prefix(number));
                    let settled = model.settled[number].iter().filter(|settled| **settled).count() as u64;
                    prop_assert_eq!(standing.outcome.records(), settled);
                    prop_assert_eq!(standing.consumed, settled + standing.in_flight());
                }
            }
            prop_assert_eq!(ledger.all_drained(), open.is_empty());
        }
    }
}
