//! Batch: the rows that go into one INSERT a table, and the plan of when to seal and how to re-cut.
//!
//! A batch keeps the chunks and verdicts that it came from until it is settled: a re-cut encodes
//! subsets of them again, and a record that ClickHouse refuses is dead-lettered with its original
//! bytes. Slices and parts are by partition and offset, so that a batch formed again has its rows in
//! the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::chunk::Chunk;
use super::intent::IntentSlice;
use super::ledger::{BatchId, Epoch, Outcome, PartitionId, Slice};
use super::verdict::{ChunkVerdicts, DeadLetter, Rejection};

/// When a batch is sealed: whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Rows, summed over the outputs.
    pub rows: usize,
    /// Row bytes, summed over the outputs.
    pub bytes: usize,
    /// Time since the first record.
    pub linger: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows: 100_000, bytes: 32 << 20, linger: Duration::from_secs(1) }
    }
}

/// Decides when the batch that is being filled is sealed. `now` is any monotonic time.
#[derive(Clone, Debug)]
pub struct BatchPlanner {
    limits: BatchLimits,
    rows: usize,
    bytes: usize,
    opened: Option<Duration>,
}

impl BatchPlanner {
    /// A planner with nothing in it.
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, rows: 0, bytes: 0, opened: None }
    }

    /// Accounts for a chunk with this many rows. Returns whether the batch is full.
    pub fn add(&mut self, rows: usize, bytes: usize, now: Duration) -> bool {
        self.opened.get_or_insert(now);
        self.rows += rows;
        self.bytes += bytes;
        self.rows >= self.limits.rows || self.bytes >= self.limits.bytes
    }

    /// When the batch must be sealed at the latest, if anything is in it.
    pub fn deadline(&self) -> Option<Duration> {
        self.opened.map(|opened| opened + self.limits.linger)
    }

    /// Starts over.
    pub fn clear(&mut self) {
        *self = Self::new(self.limits);
    }
}

/// A chunk and what the chain said of it.
#[derive(Clone, Debug)]
pub struct Part {
    /// Records.
    pub chunk: Arc<Chunk>,
    /// Verdicts on them.
    pub verdicts: Arc<ChunkVerdicts>,
    /// Assignment under which the chunk was consumed.
    pub epoch: Epoch,
}

impl Part {
    /// Rows over all outputs.
    pub fn rows(&self) -> usize {
        self.verdicts.outputs.iter().map(|rows| rows.row_ends.len()).sum()
    }

    /// Row bytes over all outputs.
    pub fn row_bytes(&self) -> usize {
        self.verdicts.outputs.iter().map(|rows| rows.bytes.len()).sum()
    }

    /// Whether a record has rows.
    pub fn is_mapped(&self, record: usize) -> bool {
        self.verdicts.outputs.iter().any(|rows| rows.rows_per_record[record] > 0)
    }

    /// Partition of the chunk.
    pub fn partition(&self) -> PartitionId {
        self.chunk.partition_id()
    }
}

/// Some of the offsets of a batch: ranges, each within one slice.
///
/// A batch that ClickHouse refuses is cut in halves of its offset space, whether there are records or
/// not. So the pieces depend on nothing but the slices: whoever forms the batch again cuts it the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<(usize, Range<i64>)>);

impl Selection {
    /// Both halves, or `None` for one offset, which cannot be cut.
    pub fn halves(&self) -> Option<(Self, Self)> {
        let length = |range: &Range<i64>| range.end - range.start;
        let mut left = self.0.iter().map(|(_, range)| length(range)).sum::<i64>() / 2;
        if left == 0 {
            return None;
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (slice, range) in &self.0 {
            let taken = left.min(length(range));
            left -= taken;
            let middle = range.start + taken;
            if range.start < middle {
                first.push((*slice, range.start..middle));
            }
            if middle < range.end {
                second.push((*slice, middle..range.end));
            }
        }
        Some((Self(first), Self(second)))
    }
}

/// A sealed batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Drawn when it was sealed.
    pub id: BatchId,
    /// Chunks with their verdicts, all of one chain, by partition and offset.
    pub parts: Vec<Part>,
    /// What it covers, one slice a partition, by topic and number.
    pub slices: Vec<Slice>,
    /// Parts of each slice.
    parts_of: Vec<Range<usize>>,
}

impl Batch {
    /// Seals `parts`, those of a partition in offset order and of one assignment.
    pub fn seal(id: BatchId, mut parts: Vec<Part>) -> Self {
        parts.sort_by_cached_key(Part::partition);
        let mut slices: Vec<Slice> = Vec::new();
        let mut parts_of: Vec<Range<usize>> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let (partition, start, end) = (part.partition(), part.chunk.base_offset, part.chunk.end_offset());
            match (slices.last_mut(), parts_of.last_mut()) {
                (Some(slice), Some(of)) if slice.partition == partition => {
                    debug_assert!(slice.epoch == part.epoch && slice.end <= start);
                    (slice.end, of.end) = (end, index + 1);
                }
                _ => {
                    slices.push(Slice { partition, epoch: part.epoch, start, end });
                    parts_of.push(index..index + 1);
                }
            }
        }
        Self { id, parts, slices, parts_of }
    }

    /// A batch formed again over the slices of its intent, whatever records were found there.
    pub fn reseal(id: BatchId, mut parts: Vec<Part>, slices: &[IntentSlice]) -> Self {
        parts.sort_by_cached_key(|part| (part.partition(), part.chunk.base_offset));
        let mut parts_of = Vec::new();
        let mut next = 0;
        for slice in slices {
            let first = next;
            while parts.get(next).is_some_and(|part| part.partition() == slice.partition) {
                next += 1;
            }
            parts_of.push(first..next);
        }
        let slice = |slice: &IntentSlice| Slice {
            partition: slice.partition.clone(),
            epoch: 0,
            start: slice.start,
            end: slice.end,
        };
        Self { id, parts, slices: slices.iter().map(slice).collect(), parts_of }
    }

    /// Every offset.
    pub fn all(&self) -> Selection {
        let whole = |(index, slice): (usize, &Slice)| (index, slice.start..slice.end);
        Selection(self.slices.iter().enumerate().map(whole).collect())
    }

    /// The records of a selection: parts, with ranges of record indexes.
    fn records<'a>(&'a self, selection: &'a Selection) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        selection.0.iter().flat_map(|(slice, offsets)| {
            self.parts_of[*slice].clone().filter_map(|part| {
                let chunk = &self.parts[part].chunk;
                let range = chunk.first_at(offsets.start)..chunk.first_at(offsets.end);
                (!range.is_empty()).then_some((part, range))
            })
        })
    }

    /// Rows of one output for the selected records, each followed by what `append` adds to it
    /// (provenance columns). Returns the bytes and the number of rows.
    pub fn encode(
        &self,
        selection: &Selection,
        output: usize,
        mut append: impl FnMut(&mut Vec<u8>, &Chunk, i64),
    ) -> (Vec<u8>, usize) {
        let rows_of = |part: usize| &self.parts[part].verdicts.outputs[output];
        let bytes = self.records(selection).map(|(part, _)| rows_of(part).bytes.len());
        let rows = self.records(selection).map(|(part, _)| rows_of(part).row_ends.len());
        // Provenance of a row seldom takes more than 64 bytes; a short guess costs one more copy.
        let mut buffer = Vec::with_capacity(bytes.sum::<usize>() + 64 * rows.sum::<usize>());
        let mut count = 0;
        for (part, range) in self.records(selection) {
            let chunk = &self.parts[part].chunk;
            let rows = rows_of(part);
            let before = &rows.rows_per_record[..range.start];
            let mut row = before.iter().map(|rows| *rows as usize).sum::<usize>();
            let mut start = if row == 0 { 0 } else { rows.row_ends[row - 1] as usize };
            for record in range {
                for _ in 0..rows.rows_per_record[record] {
                    let end = rows.row_ends[row] as usize;
                    buffer.extend_from_slice(&rows.bytes[start..end]);
                    append(&mut buffer, chunk, chunk.offset(record));
                    (start, row, count) = (end, row + 1, count + 1);
                }
            }
        }
        (buffer, count)
    }

    /// The selected slices, each with the offsets of its records that have rows in this output.
    pub fn mapped(&self, selection: &Selection, output: usize) -> Vec<(IntentSlice, Vec<i64>)> {
        let of_range = |(slice, offsets): &(usize, Range<i64>)| {
            let one = Selection(vec![(*slice, offsets.clone())]);
            let mapped = self.records(&one).flat_map(|(part, range)| {
                let Part { chunk, verdicts, .. } = &self.parts[part];
                let rows = &verdicts.outputs[output].rows_per_record;
                range.filter(|record| rows[*record] > 0).map(|record| chunk.offset(record))
            });
            let partition = self.slices[*slice].partition.clone();
            (IntentSlice { partition, start: offsets.start, end: offsets.end }, mapped.collect())
        };
        selection.0.iter().map(of_range).collect()
    }

    /// The selected records that have rows in this output and are not at the offsets that are `held` of each
    /// partition, as dead letters.
    pub fn lacking(
        &self,
        selection: &Selection,
        output: usize,
        held: &[(PartitionId, BTreeSet<i64>)],
        rejection: &Rejection,
    ) -> Vec<DeadLetter> {
        let is_held = |partition: &PartitionId, offset: i64| {
            held.iter().any(|(other, offsets)| other == partition && offsets.contains(&offset))
        };
        let lacking = self.records(selection).flat_map(|(part, range)| {
            let Part { chunk, verdicts, .. } = &self.parts[part];
            let (rows, partition) = (&verdicts.outputs[output].rows_per_record, chunk.partition_id());
            range.filter(move |record| rows[*record] > 0 && !is_held(&partition, chunk.offset(*record))).map(
                |record| DeadLetter {
                    chunk: chunk.clone(),
                    index: record as u32,
                    rejection: rejection.clone(),
                },
            )
        });
        lacking.collect()
    }

    /// Records that the chain rejected, as dead letters.
    pub fn rejected(&self) -> Vec<DeadLetter> {
        let of_part = |part: &Part| {
            let chunk = part.chunk.clone();
            part.verdicts
                .rejections
                .iter()
                .map(move |(index, rejection)| DeadLetter {
                    chunk: chunk.clone(),
                    index: *index,
                    rejection: rejection.clone(),
                })
                .collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of_part).collect()
    }

    /// The record of a selection that has only one with rows in this output, dead-lettered since
    /// ClickHouse refuses them; `None` where several have.
    pub fn refused(&self, selection: &Selection, output: usize, rejection: &Rejection) -> Option<DeadLetter> {
        let mut mapped = self.records(selection).flat_map(|(part, range)| {
            let rows = &self.parts[part].verdicts.outputs[output].rows_per_record;
            range.filter(|record| rows[*record] > 0).map(move |record| (part, record))
        });
        let (part, record) = mapped.next()?;
        if mapped.next().is_some() {
            return None;
        }
        let (chunk, rejection) = (self.parts[part].chunk.clone(), rejection.clone());
        Some(DeadLetter { chunk, index: record as u32, rejection })
    }

    /// How the records of each partition ended, given the records that ClickHouse refused.
    pub fn outcomes(&self, refused: &[DeadLetter]) -> BTreeMap<PartitionId, Outcome> {
        let mut outcomes = BTreeMap::new();
        for (slice, parts) in self.slices.iter().zip(&self.parts_of) {
            let mut outcome = Outcome::default();
            for part in &self.parts[parts.clone()] {
                let mapped = (0..part.chunk.len()).filter(|record| part.is_mapped(*record)).count() as u64;
                let rejected = part.verdicts.rejections.len() as u64;
                let refused =
                    refused.iter().filter(|letter| Arc::ptr_eq(&letter.chunk, &part.chunk)).count() as u64;
                outcome.add(&Outcome {
                    inserted: mapped - refused,
                    filtered: part.chunk.len() as u64 - mapped - rejected,
                    dead_lettered: rejected + refused,
                });
            }
            outcomes.insert(slice.partition.clone(), outcome);
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::chunk::ChunkBuilder;
    use crate::domain::verdict::{OutputRows, RejectionKind, Revision, Stage};

    /// A part whose record `i` gives `rows[i]` one-byte rows that say which record they are of.
    fn part(partition: i32, base: i64, rows: &[u32]) -> Part {
        let mut builder = ChunkBuilder::new("topic".into(), partition, base);
        let mut output = OutputRows::default();
        for (index, count) in rows.iter().enumerate() {
            builder.push(base + index as i64, 0, None, Some(b"p"), []);
            for _ in 0..*count {
                output.bytes.push((base + index as i64) as u8);
                output.row_ends.push(output.bytes.len() as u32);
            }
            output.rows_per_record.push(*count);
        }
        let verdicts = ChunkVerdicts { chain: Revision([0; 32]), outputs: vec![output], rejections: vec![] };
        Part { chunk: Arc::new(builder.build()), verdicts: Arc::new(verdicts), epoch: 1 }
    }

    fn insert_rejection() -> Rejection {
        Rejection {
            stage: Stage::Insert,
            module: "table".into(),
            revision: None,
            kind: RejectionKind::Insert,
            code: "insert".into(),
            field: None,
            reason: String::new(),
        }
    }

    #[test]
    fn a_planner_is_due_by_rows_bytes_or_linger() {
        let limits = BatchLimits { rows: 10, bytes: 100, linger: Duration::from_secs(1) };
        let mut planner = BatchPlanner::new(limits);
        assert_eq!(planner.deadline(), None);
        assert!(!planner.add(9, 1, Duration::from_secs(5)));
        assert_eq!(planner.deadline(), Some(Duration::from_secs(6)));
        assert!(planner.add(1, 1, Duration::from_secs(9)));
        assert_eq!(planner.deadline(), Some(Duration::from_secs(6)));
        planner.clear();
        assert_eq!(planner.deadline(), None);
        assert!(planner.add(1, 100, Duration::ZERO));
    }

    #[test]
    fn a_batch_has_one_slice_a_partition() {
        let parts = vec![part(0, 10, &[1, 1]), part(1, 0, &[1]), part(0, 12, &[0])];
        let batch = Batch::seal(BatchId(1), parts);
        let ranges: Vec<_> =
            batch.slices.iter().map(|slice| (slice.partition.partition, slice.start, slice.end)).collect();
        assert_eq!(ranges, [(0, 10, 13), (1, 0, 1)]);
    }

    #[test]
    fn outcomes_count_refused_records_as_dead_lettered() {
        let batch = Batch::seal(BatchId(1), vec![part(0, 10, &[1, 0, 2])]);
        assert!(batch.refused(&batch.all(), 0, &insert_rejection()).is_none());
        let (first, _) = batch.all().halves().unwrap();
        let refused = batch.refused(&first, 0, &insert_rejection()).unwrap();
        assert_eq!(refused.chunk.offset(refused.index as usize), 10);
        let outcome = batch.outcomes(&[refused])[&batch.slices[0].partition];
        assert_eq!(outcome, Outcome { inserted: 1, filtered: 1, dead_lettered: 1 });
    }

    #[test]
    fn a_batch_formed_again_has_the_same_rows_and_pieces_however_it_was_chunked() {
        let batch = Batch::seal(BatchId(1), vec![part(1, 5, &[1, 2]), part(0, 10, &[1, 1, 1])]);
        let slices: Vec<IntentSlice> = batch.slices.iter().map(IntentSlice::from).collect();
        let chunks = vec![part(0, 12, &[1]), part(1, 5, &[1, 2]), part(0, 10, &[1, 1])];
        let again = Batch::reseal(BatchId(1), chunks, &slices);
        let mut queue = vec![batch.all()];
        assert_eq!(again.all(), batch.all());
        while let Some(selection) = queue.pop() {
            let append = |_: &mut Vec<u8>, _: &Chunk, _: i64| {};
            assert_eq!(again.encode(&selection, 0, append), batch.encode(&selection, 0, append));
            assert_eq!(again.mapped(&selection, 0), batch.mapped(&selection, 0));
            queue.extend(selection.halves().into_iter().flat_map(|(first, second)| [first, second]));
        }
    }

    proptest! {
        #[test]
        fn cutting_down_to_records_keeps_every_row_once_and_in_order(
            shape in prop::collection::vec(prop::collection::vec(0u32..4, 1..6), 1..5),
        ) {
            let mut base = 0;
            let mut parts = Vec::new();
            for rows in &shape {
                parts.push(part(0, base, rows));
                base += rows.len() as i64;
            }
            let batch = Batch::seal(BatchId(1), parts);
            let append = |buffer: &mut Vec<u8>, _: &Chunk, offset: i64| buffer.push(offset as u8);
            let (whole, rows) = batch.encode(&batch.all(), 0, append);
            let expected: Vec<u8> = shape.concat().iter().enumerate()
                .flat_map(|(record, count)| vec![record as u8; 2 * *count as usize]).collect();
            prop_assert_eq!(&whole, &expected);
            prop_assert_eq!(rows * 2, whole.len());

            let mut queue = vec![batch.all()];
            let mut pieces = Vec::new();
            while let Some(selection) = queue.pop() {
                match selection.halves() {
                    Some((first, second)) => {
                        queue.push(second);
                        queue.push(first);
                    }
                    None => pieces.extend(batch.encode(&selection, 0, append).0),
                }
            }
            prop_assert_eq!(pieces, whole);
        }
    }
}
