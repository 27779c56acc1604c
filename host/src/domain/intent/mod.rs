//! Intent: what is written into Kafka's commit metadata before a batch is inserted, so that whoever
//! owns a partition next can form the very same batch again.
//!
//! [`Intent`] is one batch, [`PendingBatches`] what the metadata of one partition lists. Their text
//! and its bounds are described in docs/INTENT_FORMAT.md; `wire` and `text` write and read it.
//!
//! Invariants:
//! - an intent has one slice a partition, by topic and number, none of them empty;
//! - forced rejections lie within the slices, in their order, and do not overlap;
//! - reading never panics, whatever the text, and holds memory in proportion to it.

pub mod bounds;
mod digest;
mod text;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batch::{Batch, Part};
use super::ledger::{BatchId, PartitionId, Slice};
use super::verdict::{Rejection, RejectionKind, Revision, Stage};

pub use digest::{VerdictDigest, digest};
pub use text::IntentError;

/// Records `[start, end)` of one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IntentSlice {
    /// Partition.
    pub partition: PartitionId,
    /// Offset of the first record, or where the slice before ended.
    pub start: i64,
    /// Offset after the last record.
    pub end: i64,
}

impl From<&Slice> for IntentSlice {
    fn from(slice: &Slice) -> Self {
        Self { partition: slice.partition.clone(), start: slice.start, end: slice.end }
    }
}

/// Kinds of rejection that a second run might not repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ForcedKind {
    /// The module took too long: on another machine it may not.
    Timeout,
    /// The module was refused memory: with another limit it may not be.
    Memory,
}

impl ForcedKind {
    /// The kind under which a rejection must be recorded; `None` where a second run repeats it.
    pub fn of(kind: RejectionKind) -> Option<Self> {
        match kind {
            RejectionKind::Timeout => Some(Self::Timeout),
            RejectionKind::Memory => Some(Self::Memory),
            RejectionKind::Rejected
            | RejectionKind::Malformed
            | RejectionKind::Trap
            | RejectionKind::BadRow
            | RejectionKind::Insert
            | RejectionKind::Unrecovered => None,
        }
    }

    /// The rejection that it stands for.
    pub fn rejection_kind(self) -> RejectionKind {
        match self {
            Self::Timeout => RejectionKind::Timeout,
            Self::Memory => RejectionKind::Memory,
        }
    }
}

/// Consecutive records that must be rejected when the batch is formed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForcedRun {
    /// Index of their slice.
    pub slice: usize,
    /// Offset of the first.
    pub start: i64,
    /// Offset after the last.
    pub end: i64,
    /// Index, in the chain, of the module that they failed in.
    pub module: usize,
    /// Kind of the rejection.
    pub kind: ForcedKind,
}

/// What is wrong with the parts of an intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntentFault {
    /// Nothing to insert.
    #[error("no slice")]
    NoSlice,
    /// Slices are not what they must be.
    #[error("slices that are empty, or not one a partition by topic and number")]
    Slices,
    /// Forced rejections are not what they must be.
    #[error("forced rejections outside of their slice, or not in order")]
    Forced,
    /// There is no module, or a forced rejection names one that the chain does not have.
    #[error("no module, or a forced rejection of a module that is not in the chain")]
    Module,
}

/// A sealed batch, as it is written down before its INSERT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    id: BatchId,
    slices: Vec<IntentSlice>,
    chain: Arc<[Revision]>,
    forced: Vec<ForcedRun>,
    digest: VerdictDigest,
}

impl Intent {
    /// An intent of its parts: `chain` has the validators in order, then the mapper.
    ///
    /// # Errors
    /// [`IntentFault`] when the parts do not keep the invariants of this module.
    pub fn new(
        id: BatchId,
        slices: Vec<IntentSlice>,
        chain: Arc<[Revision]>,
        forced: Vec<ForcedRun>,
        digest: VerdictDigest,
    ) -> Result<Self, IntentFault> {
        let sound = |slice: &IntentSlice| {
            slice.partition.partition >= 0 && slice.start >= 0 && slice.start < slice.end
        };
        if slices.is_empty() {
            return Err(IntentFault::NoSlice);
        }
        if !slices.iter().all(sound)
            || !slices.is_sorted_by(|before, after| before.partition < after.partition)
        {
            return Err(IntentFault::Slices);
        }
        let within = |run: &ForcedRun| {
            run.start < run.end
                && slices.get(run.slice).is_some_and(|slice| slice.start <= run.start && run.end <= slice.end)
        };
        let ordered =
            forced.is_sorted_by(|before, after| (before.slice, before.end) <= (after.slice, after.start));
        if !forced.iter().all(within) || !ordered {
            return Err(IntentFault::Forced);
        }
        if chain.is_empty() || forced.iter().any(|run| run.module >= chain.len()) {
            return Err(IntentFault::Module);
        }
        Ok(Self { id, slices, chain, forced, digest })
    }

    /// The intent of a sealed batch, whose records ran through `chain`.
    ///
    /// # Errors
    /// [`IntentFault`] when the batch has records of two assignments of a partition, or `chain`
    /// is not the one that rejected its records.
    pub fn of(batch: &Batch, chain: Arc<[Revision]>) -> Result<Self, IntentFault> {
        let mut slices: Vec<IntentSlice> = batch.slices.iter().map(IntentSlice::from).collect();
        slices.sort();
        let index: BTreeMap<&PartitionId, usize> =
            slices.iter().enumerate().map(|(index, slice)| (&slice.partition, index)).collect();
        let mut runs: Vec<Runs> = slices.iter().map(|_| Runs::default()).collect();
        for part in &batch.parts {
            let slice = *index.get(&part.partition()).ok_or(IntentFault::Slices)?;
            runs[slice].add(slice, part, &chain)?;
        }
        let forced = runs.into_iter().flat_map(|runs| runs.runs).collect();
        Self::new(batch.id, slices, chain, forced, digest(&batch.parts))
    }

    /// Identity, which the deduplication token is made of.
    pub fn id(&self) -> BatchId {
        self.id
    }

    /// Every slice, by topic and partition.
    pub fn slices(&self) -> &[IntentSlice] {
        &self.slices
    }

    /// The slice of a partition.
    pub fn slice(&self, partition: &PartitionId) -> Option<&IntentSlice> {
        let index = self.slices.binary_search_by(|slice| slice.partition.cmp(partition)).ok()?;
        Some(&self.slices[index])
    }

    /// Revisions of the validators, in order, and of the mapper.
    pub fn chain(&self) -> &Arc<[Revision]> {
        &self.chain
    }

    /// Every run of forced rejections, by slice and offset.
    pub fn forced(&self) -> &[ForcedRun] {
        &self.forced
    }

    /// Whether the record must be rejected: by which module of the chain, and as what.
    pub fn forced_at(&self, partition: &PartitionId, offset: i64) -> Option<(usize, ForcedKind)> {
        let slice = self.slices.binary_search_by(|slice| slice.partition.cmp(partition)).ok()?;
        let run = self.forced.partition_point(|run| (run.slice, run.end) <= (slice, offset));
        let run = self.forced.get(run).filter(|run| run.slice == slice && run.start <= offset)?;
        Some((run.module, run.kind))
    }

    /// Digest of its verdicts.
    pub fn digest(&self) -> VerdictDigest {
        self.digest
    }
}

/// Runs of forced rejections that `part` adds to a batch; a batch may have
/// [`bounds::FORCED_RUNS`] of them.
pub fn forced_runs(part: &Part) -> usize {
    let mut before: Option<(u32, &Rejection)> = None;
    let mut runs = 0;
    for (index, rejection) in &part.verdicts.rejections {
        if ForcedKind::of(rejection.kind).is_none() {
            continue;
        }
        let goes_on = before.is_some_and(|(last, other)| {
            last + 1 == *index
                && (other.kind, other.stage, other.revision)
                    == (rejection.kind, rejection.stage, rejection.revision)
        });
        runs += usize::from(!goes_on);
        before = Some((*index, rejection));
    }
    runs
}

/// Forced rejections of one slice, while its parts are gone through.
#[derive(Default)]
struct Runs {
    runs: Vec<ForcedRun>,
    /// Records of the parts so far, and the number among them of the last forced one.
    records: usize,
    last: Option<usize>,
}

impl Runs {
    fn add(&mut self, slice: usize, part: &Part, chain: &[Revision]) -> Result<(), IntentFault> {
        for (index, rejection) in &part.verdicts.rejections {
            let Some(kind) = ForcedKind::of(rejection.kind) else { continue };
            let module = module_of(rejection, chain).ok_or(IntentFault::Module)?;
            let (number, offset) = (self.records + *index as usize, part.chunk.offset(*index as usize));
            // No record lies between two neighbours, so a run may pass over offsets without one.
            let follows = self.last.is_some_and(|last| last + 1 == number);
            match self.runs.last_mut() {
                Some(run) if follows && (run.module, run.kind) == (module, kind) => run.end = offset + 1,
                _ => self.runs.push(ForcedRun { slice, start: offset, end: offset + 1, module, kind }),
            }
            self.last = Some(number);
        }
        self.records += part.chunk.len();
        Ok(())
    }
}

fn module_of(rejection: &Rejection, chain: &[Revision]) -> Option<usize> {
    let (mapper, validators) = chain.split_last()?;
    match rejection.stage {
        Stage::Validate => validators.iter().position(|revision| Some(*revision) == rejection.revision),
        Stage::Map => (Some(*mapper) == rejection.revision).then_some(validators.len()),
        Stage::Insert | Stage::Recover => None,
    }
}

/// The batches that the metadata of a partition lists, in the order in which they were sealed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingBatches {
    intents: Vec<Intent>,
}

impl PendingBatches {
    /// A list in the order in which the batches were sealed.
    pub fn new(intents: Vec<Intent>) -> Self {
        Self { intents }
    }

    /// The batches.
    pub fn intents(&self) -> &[Intent] {
        &self.intents
    }

    /// The batches that have a slice of this partition: what its metadata lists. Its text is never
    /// longer than that of the whole list.
    pub fn of_partition(&self, partition: &PartitionId) -> Self {
        let lists = |intent: &&Intent| intent.slice(partition).is_some();
        Self { intents: self.intents.iter().filter(lists).cloned().collect() }
    }

    /// The text of each of `partitions`, made once for all that list the same batches.
    pub fn texts<'a>(&self, partitions: impl IntoIterator<Item = &'a PartitionId>) -> Vec<String> {
        let mut texts: BTreeMap<Vec<bool>, String> = BTreeMap::new();
        let text = |partition: &PartitionId| {
            let listed = self.intents.iter().map(|intent| intent.slice(partition).is_some()).collect();
            texts.entry(listed).or_insert_with(|| self.of_partition(partition).encode()).clone()
        };
        partitions.into_iter().map(text).collect()
    }

    /// The text for Kafka's commit metadata; empty when nothing is pending.
    pub fn encode(&self) -> String {
        if self.intents.is_empty() { String::new() } else { text::write(&wire::write(&self.intents)) }
    }

    /// Length of the text.
    pub fn encoded_len(&self) -> usize {
        if self.intents.is_empty() { 0 } else { text::length(wire::write(&self.intents).len()) }
    }

    /// Whether Kafka takes the text.
    pub fn fits(&self) -> bool {
        self.encoded_len() <= bounds::METADATA_LIMIT
    }

    /// Reads the metadata of a partition; `None` when nothing is pending.
    ///
    /// # Errors
    /// [`IntentError`] when the text is not ours, of a newer version, or damaged.
    pub fn decode(text: &str) -> Result<Option<Self>, IntentError> {
        if text.is_empty() {
            return Ok(None);
        }
        let payload = text::read(text)?;
        let intents = wire::read(&payload).map_err(|fault| text::damaged(fault.to_string()))?;
        Ok(Some(Self { intents }))
    }
}
