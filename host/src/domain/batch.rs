//! Batch: the rows that go into one INSERT a table, and the plan of when to seal and how to re-cut.
//!
//! A batch keeps the chunks and verdicts that it came from until it is settled: a re-cut encodes
//! subsets of them again, and a record that ClickHouse refuses is dead-lettered with its original
//! bytes. Slices and parts are in the order in which they were added, offsets rising within a
//! partition.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::chunk::Chunk;
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

    fn partition(&self) -> PartitionId {
        PartitionId { topic: self.chunk.topic.clone(), partition: self.chunk.partition }
    }
}

/// Some of the records of a batch: ranges of record indexes, each within one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(Vec<(usize, Range<u32>)>);

impl Selection {
    /// Number of records.
    pub fn records(&self) -> usize {
        self.0.iter().map(|(_, range)| range.len()).sum()
    }

    /// Both halves, or `None` for one record, which cannot be cut.
    pub fn halves(&self) -> Option<(Self, Self)> {
        let mut left = self.records() / 2;
        if left == 0 {
            return None;
        }
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (part, range) in &self.0 {
            let taken = left.min(range.len()) as u32;
            left -= taken as usize;
            let middle = range.start + taken;
            if range.start < middle {
                first.push((*part, range.start..middle));
            }
            if middle < range.end {
                second.push((*part, middle..range.end));
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
    /// Chunks with their verdicts, all of one chain.
    pub parts: Vec<Part>,
    /// What it covers, one slice a partition and assignment.
    pub slices: Vec<Slice>,
}

impl Batch {
    /// Seals `parts`.
    pub fn seal(id: BatchId, parts: Vec<Part>) -> Self {
        let mut slices: Vec<Slice> = Vec::new();
        let mut of_partition: BTreeMap<(PartitionId, Epoch), usize> = BTreeMap::new();
        for part in &parts {
            let (partition, start, end) = (part.partition(), part.chunk.base_offset, part.chunk.end_offset());
            match of_partition.get(&(partition.clone(), part.epoch)) {
                Some(&slice) => slices[slice].end = end,
                None => {
                    of_partition.insert((partition.clone(), part.epoch), slices.len());
                    slices.push(Slice { partition, epoch: part.epoch, start, end });
                }
            }
        }
        Self { id, parts, slices }
    }

    /// Every record.
    pub fn all(&self) -> Selection {
        let whole = |(index, part): (usize, &Part)| (index, 0..part.chunk.len() as u32);
        Selection(self.parts.iter().enumerate().map(whole).collect())
    }

    /// Rows of one output for the selected records, each followed by what `append` adds to it
    /// (provenance columns). Returns the bytes and the number of rows.
    pub fn encode(
        &self,
        selection: &Selection,
        output: usize,
        mut append: impl FnMut(&mut Vec<u8>, &Chunk, i64),
    ) -> (Vec<u8>, usize) {
        let bytes =
            selection.0.iter().map(|(part, _)| self.parts[*part].verdicts.outputs[output].bytes.len());
        let rows =
            selection.0.iter().map(|(part, _)| self.parts[*part].verdicts.outputs[output].row_ends.len());
        // Provenance of a row seldom takes more than 64 bytes; a short guess costs one more copy.
        let mut buffer = Vec::with_capacity(bytes.sum::<usize>() + 64 * rows.sum::<usize>());
        let mut count = 0;
        for (part, range) in &selection.0 {
            let Part { chunk, verdicts, .. } = &self.parts[*part];
            let rows = &verdicts.outputs[output];
            let before = &rows.rows_per_record[..range.start as usize];
            let mut row = before.iter().map(|rows| *rows as usize).sum::<usize>();
            let mut start = if row == 0 { 0 } else { rows.row_ends[row - 1] as usize };
            for record in range.clone() {
                for _ in 0..rows.rows_per_record[record as usize] {
                    let end = rows.row_ends[row] as usize;
                    buffer.extend_from_slice(&rows.bytes[start..end]);
                    append(&mut buffer, chunk, chunk.offset(record as usize));
                    (start, row, count) = (end, row + 1, count + 1);
                }
            }
        }
        (buffer, count)
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

    /// The only record of a selection of one, dead-lettered because ClickHouse refuses its rows.
    ///
    /// # Panics
    /// When the selection is empty.
    pub fn refused(&self, selection: &Selection, rejection: Rejection) -> DeadLetter {
        let (part, range) = &selection.0[0];
        DeadLetter { chunk: self.parts[*part].chunk.clone(), index: range.start, rejection }
    }

    /// How the records of each slice ended, given the records that ClickHouse refused.
    pub fn outcomes(&self, refused: &[DeadLetter]) -> Vec<(Slice, Outcome)> {
        let mut outcomes: Vec<_> =
            self.slices.iter().map(|slice| (slice.clone(), Outcome::default())).collect();
        for part in &self.parts {
            let partition = part.partition();
            let Some((_, outcome)) = outcomes
                .iter_mut()
                .find(|(slice, _)| slice.partition == partition && slice.epoch == part.epoch)
            else {
                continue;
            };
            let mapped = (0..part.chunk.len())
                .filter(|record| part.verdicts.outputs.iter().any(|rows| rows.rows_per_record[*record] > 0))
                .count() as u64;
            let rejected = part.verdicts.rejections.len() as u64;
            let refused =
                refused.iter().filter(|letter| Arc::ptr_eq(&letter.chunk, &part.chunk)).count() as u64;
            outcome.add(&Outcome {
                inserted: mapped - refused,
                filtered: part.chunk.len() as u64 - mapped - rejected,
                dead_lettered: rejected + refused,
            });
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
        let (first, _) = batch.all().halves().unwrap();
        let refused = batch.refused(&first, insert_rejection());
        assert_eq!(refused.chunk.offset(refused.index as usize), 10);
        let outcome = batch.outcomes(&[refused])[0].1;
        assert_eq!(outcome, Outcome { inserted: 1, filtered: 1, dead_lettered: 1 });
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
                        prop_assert_eq!(first.records() + second.records(), selection.records());
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
