//! Recovery: forms a pending batch again that an earlier owner of a partition left behind.
//!
//! All slices of the batch are read again, whosoever their partitions are now, and run through the
//! recorded revisions with the recorded forced rejections. What comes out must have the recorded digest.
//! Then it is the same batch, and sending it under its old token is harmless, however often and by
//! whomsoever that was done before. Where it cannot be formed again (retention took records, a revision is
//! gone, a module that is not a function of its record) the batch that a second run gives is sent under
//! the same token all the same: either it goes in as it is, or the token shows that the first one did.
//! From then on the table does not change any more, and `differences` says of every record where it
//! ended, by asking the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::sleep;

use crate::domain::batch::{Batch, Part};
use crate::domain::chunk::{Chunk, ChunkBuilder};
use crate::domain::intent::{ForcedKind, Intent, IntentSlice, digest};
use crate::domain::ledger::{Outcome, PartitionId};
use crate::domain::retry::RetryPolicy;
use crate::domain::verdict::{DeadLetter, Rejection, RejectionKind, Stage};

use super::binding::{BoundChain, ChainSlot};
use super::budget::Budget;
use super::inserter::{EntropySource, Origin, jitter};
use super::lane::SealedBatch;
use super::metrics::PipelineMetrics;
use super::ports::{Archive, Forced};
use super::trouble::Trouble;

/// See the module documentation.
#[derive(Debug)]
pub struct Recovery<A> {
    pub(super) pipeline: Arc<str>,
    pub(super) archive: Arc<A>,
    /// Stands in for a chain that is not kept any more.
    pub(super) current: ChainSlot,
    pub(super) budget: Budget,
    pub(super) policy: RetryPolicy,
    pub(super) trouble: Trouble,
    pub(super) metrics: PipelineMetrics,
    pub(super) entropy: EntropySource,
}

impl<A: Archive> Recovery<A> {
    /// Forms a batch again, for as long as it takes.
    pub async fn form(&self, intent: &Intent) -> (SealedBatch, Origin) {
        let trouble = self.trouble.scope(format!("recover batch {}", intent.id()));
        for attempt in 0u32.. {
            let reason = match self.attempt(intent).await {
                Ok((sealed, origin)) => {
                    let how = if matches!(origin, Origin::Recovered) { "same" } else { "different" };
                    self.metrics.recoveries.with_label_values(&[&*self.pipeline, how]).inc();
                    return (sealed, origin);
                }
                Err(reason) => reason,
            };
            trouble.report(&reason);
            self.metrics.retries.with_label_values(&[&*self.pipeline, "recover"]).inc();
            sleep(self.policy.wait(attempt, jitter(&self.entropy.0))).await;
        }
        unreachable!("the attempts have no end")
    }

    async fn attempt(&self, intent: &Intent) -> Result<(SealedBatch, Origin), String> {
        let read = self.archive.records(intent.slices()).await.map_err(|error| error.to_string())?;
        let recorded = self.archive.chain(intent.chain()).await?;
        let gone = recorded.is_none();
        let chain = recorded.unwrap_or_else(|| self.current.current());
        let mut parts = Vec::new();
        let mut holds = Vec::new();
        for chunk in read.chunks {
            let forced = if gone { Vec::new() } else { forced(intent, &chunk) };
            let verdicts = self.archive.judge(&chain, chunk.clone(), forced.clone()).await?;
            if !gone {
                steady(&chunk, &verdicts.rejections, &forced)?;
            }
            holds.push(self.budget.take(chunk.footprint() + verdicts.footprint()));
            parts.push(Part { chunk, verdicts: Arc::new(verdicts), epoch: 0 });
        }
        let code = if !read.lost.is_empty() {
            Some("retention")
        } else if gone {
            Some("revision_gone")
        } else {
            (digest(&parts) != intent.digest()).then_some("verdicts_differ")
        };
        let origin = match code {
            None => Origin::Recovered,
            Some(code) => {
                askable(&chain)?;
                tracing::warn!(batch = %intent.id(), code, "a pending batch cannot be formed again as it was; \
                    the table is asked for each of its records");
                Origin::Different { code, lost: read.lost }
            }
        };
        let batch = Batch::reseal(intent.id(), parts, intent.slices());
        Ok((SealedBatch { batch, chain, holds }, origin))
    }
}

/// The forced rejections among the records of a chunk.
fn forced(intent: &Intent, chunk: &Chunk) -> Vec<Forced> {
    if intent.forced().is_empty() {
        return Vec::new();
    }
    let partition = chunk.partition_id();
    (0..chunk.len())
        .filter_map(|index| {
            let (module, kind) = intent.forced_at(&partition, chunk.offset(index))?;
            Some(Forced { index: index as u32, module, kind })
        })
        .collect()
}

/// Whether every rejection that another run might not repeat is a forced one.
fn steady(chunk: &Chunk, rejections: &[(u32, Rejection)], forced: &[Forced]) -> Result<(), String> {
    let new = rejections.iter().find(|(index, rejection)| {
        ForcedKind::of(rejection.kind).is_some()
            && forced.binary_search_by_key(index, |forced| forced.index).is_err()
    });
    let Some((index, rejection)) = new else { return Ok(()) };
    Err(format!(
        "topic {}, partition {}, offset {}: module {} fails in recovery ({}) on a record that it judged before \
         the crash; nothing is given up, it is tried again: give this host more processor time or memory",
        chunk.topic,
        chunk.partition,
        chunk.offset(*index as usize),
        rejection.module,
        rejection.reason
    ))
}

fn askable(chain: &BoundChain) -> Result<(), String> {
    match chain.tables.iter().find(|table| !table.can_be_asked()) {
        None => Ok(()),
        Some(table) => Err(format!(
            "a pending batch cannot be formed again as it was, and table {} cannot be asked which records it holds: \
             add the columns _topic, _partition and _offset to it (docs/DELIVERY.md)",
            table.table
        )),
    }
}

/// Where the records of a batch that came out differently have ended, given the offsets that the
/// tables hold and the records that ClickHouse refused: how many of each partition, and what is to be
/// dead-lettered.
pub(super) fn differences(
    batch: &Batch,
    held: &BTreeMap<PartitionId, BTreeSet<i64>>,
    code: &str,
    lost: &[IntentSlice],
    refused: &[DeadLetter],
) -> (BTreeMap<PartitionId, Outcome>, Vec<DeadLetter>) {
    let none = BTreeSet::new();
    let held_of = |partition: &PartitionId| held.get(partition).unwrap_or(&none);
    let mut outcomes: BTreeMap<PartitionId, Outcome> =
        batch.slices.iter().map(|slice| (slice.partition.clone(), Outcome::default())).collect();
    let mut letters = Vec::new();
    let refusal = |chunk: &Arc<Chunk>, index: u32| {
        let mut all = refused.iter();
        all.find(|letter| letter.index == index && Arc::ptr_eq(&letter.chunk, chunk))
    };
    // When the table has just the rows of this run, this run's word counts for what has none, too.
    let ours = lost.is_empty()
        && batch.parts.iter().all(|part| {
            let held = held_of(&part.partition());
            (0..part.chunk.len()).all(|record| {
                let inserted = part.is_mapped(record) && refusal(&part.chunk, record as u32).is_none();
                inserted == held.contains(&part.chunk.offset(record))
            })
        });
    for part in &batch.parts {
        let partition = part.partition();
        let held = held_of(&partition);
        let outcome = outcomes.entry(partition).or_default();
        let mut rejections = part.verdicts.rejections.iter().peekable();
        for index in 0..part.chunk.len() as u32 {
            let rejection = rejections.next_if(|(rejected, _)| *rejected == index).map(|(_, why)| why);
            let rejection = rejection.or(refusal(&part.chunk, index).map(|letter| &letter.rejection));
            if held.contains(&part.chunk.offset(index as usize)) {
                outcome.inserted += 1;
            } else if rejection.is_none() && ours {
                outcome.filtered += 1;
            } else {
                let rejection = rejection.cloned().unwrap_or_else(|| unrecovered(code));
                letters.push(DeadLetter { chunk: part.chunk.clone(), index, rejection });
                outcome.dead_lettered += 1;
            }
        }
    }
    for slice in lost {
        let held = held_of(&slice.partition);
        let outcome = outcomes.entry(slice.partition.clone()).or_default();
        for offset in slice.start..slice.end {
            if held.contains(&offset) {
                outcome.inserted += 1;
                continue;
            }
            // Nothing of the record is left but its place.
            let topic = slice.partition.topic.clone();
            let mut builder = ChunkBuilder::new(topic, slice.partition.partition, offset);
            builder.push(offset, -1, None, None, []);
            let (chunk, rejection) = (Arc::new(builder.build()), unrecovered(code));
            letters.push(DeadLetter { chunk, index: 0, rejection });
            outcome.dead_lettered += 1;
        }
    }
    (outcomes, letters)
}

fn unrecovered(code: &str) -> Rejection {
    let why = match code {
        "retention" => "kafka deleted records of its batch before the batch could be formed again",
        "revision_gone" => "a module that judged it is not in the archive any more",
        _ => "its verdict came out differently the second time: a module is not a function of its record",
    };
    Rejection {
        stage: Stage::Recover,
        module: "recovery".into(),
        revision: None,
        kind: RejectionKind::Unrecovered,
        code: code.to_owned(),
        field: None,
        reason: format!("the host that had this record crashed, the table does not hold it, and {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ledger::BatchId;
    use crate::domain::verdict::{ChunkVerdicts, OutputRows, Revision};

    fn id(partition: i32) -> PartitionId {
        PartitionId { topic: "topic".into(), partition }
    }

    fn rejection(kind: RejectionKind) -> Rejection {
        Rejection {
            stage: Stage::Validate,
            module: "rules".into(),
            revision: None,
            kind,
            code: kind.as_str().into(),
            field: None,
            reason: "no".into(),
        }
    }

    /// Records from `base` on, as this run judged them: `f` is filtered, `x` rejected, others have a row.
    fn part(partition: i32, base: i64, letters: &str) -> Part {
        let mut builder = ChunkBuilder::new("topic".into(), partition, base);
        let mut rows = OutputRows::default();
        let mut rejections = Vec::new();
        for (index, letter) in (0u32..).zip(letters.bytes()) {
            builder.push(base + i64::from(index), 0, None, Some(&[letter]), []);
            let is_mapped = !matches!(letter, b'f' | b'x');
            if is_mapped {
                rows.bytes.push(letter);
                rows.row_ends.push(rows.bytes.len() as u32);
            }
            if letter == b'x' {
                rejections.push((index, rejection(RejectionKind::Rejected)));
            }
            rows.rows_per_record.push(u32::from(is_mapped));
        }
        let verdicts = ChunkVerdicts { chain: Revision([1; 32]), outputs: vec![rows], rejections };
        Part { chunk: Arc::new(builder.build()), verdicts: Arc::new(verdicts), epoch: 0 }
    }

    fn batch(parts: Vec<Part>) -> Batch {
        Batch::seal(BatchId(1), parts)
    }

    fn slice(partition: i32, start: i64, end: i64) -> IntentSlice {
        IntentSlice { partition: id(partition), start, end }
    }

    /// What became of each partition (inserted, filtered, dead-lettered), and of each dead letter.
    type Found = (Vec<(i32, [u64; 3])>, Vec<(i32, i64, String)>);

    fn found(
        batch: &Batch,
        held: &[(i32, &[i64])],
        code: &str,
        lost: &[IntentSlice],
        refused: &[DeadLetter],
    ) -> Found {
        let held =
            held.iter().map(|(partition, offsets)| (id(*partition), offsets.iter().copied().collect()));
        let (outcomes, letters) = differences(batch, &held.collect(), code, lost, refused);
        let outcome = |(partition, outcome): (PartitionId, Outcome)| {
            (partition.partition, [outcome.inserted, outcome.filtered, outcome.dead_lettered])
        };
        let letter = |letter: &DeadLetter| {
            let Rejection { kind, code, .. } = &letter.rejection;
            let offset = letter.chunk.offset(letter.index as usize);
            (letter.chunk.partition, offset, format!("{} {code}", kind.as_str()))
        };
        (outcomes.into_iter().map(outcome).collect(), letters.iter().map(letter).collect())
    }

    #[test]
    fn where_the_table_has_the_rows_of_this_run_its_word_counts() {
        let batch = batch(vec![part(0, 10, "afx"), part(1, 5, "f")]);
        let (outcomes, letters) = found(&batch, &[(0, &[10])], "verdicts_differ", &[], &[]);
        assert_eq!(outcomes, [(0, [1, 1, 1]), (1, [0, 1, 0])]);
        assert_eq!(letters, [(0, 12, "rejected rejected".into())]);
    }

    #[test]
    fn where_the_table_has_the_rows_of_the_first_run_what_it_lacks_is_dead_lettered() {
        // The first run mapped the last two; this one maps the first alone.
        let batch = batch(vec![part(0, 10, "afx")]);
        let (outcomes, letters) = found(&batch, &[(0, &[11, 12])], "verdicts_differ", &[], &[]);
        assert_eq!(outcomes, [(0, [2, 0, 1])]);
        assert_eq!(letters, [(0, 10, "unrecovered verdicts_differ".into())]);
    }

    #[test]
    fn one_difference_anywhere_makes_all_that_has_no_row_doubtful() {
        // Partition 0 looks like this run, but 1 shows that the rows are those of the first.
        let batch = batch(vec![part(0, 0, "afx"), part(1, 0, "ab")]);
        let (outcomes, letters) = found(&batch, &[(0, &[0]), (1, &[0])], "revision_gone", &[], &[]);
        assert_eq!(outcomes, [(0, [1, 0, 2]), (1, [1, 0, 1])]);
        let expected = [
            (0, 1, "unrecovered revision_gone".into()),
            (0, 2, "rejected rejected".into()),
            (1, 1, "unrecovered revision_gone".into()),
        ];
        assert_eq!(letters, expected);
    }

    #[test]
    fn what_is_lost_is_in_the_table_or_a_dead_letter_without_a_payload() {
        let parts = vec![part(0, 3, "af")];
        let batch = Batch::reseal(BatchId(1), parts.clone(), &[slice(0, 0, 5), slice(1, 7, 9)]);
        let lost = [slice(0, 0, 3), slice(1, 7, 9)];
        let (outcomes, letters) = found(&batch, &[(0, &[1, 3]), (1, &[8])], "retention", &lost, &[]);
        assert_eq!(outcomes, [(0, [2, 0, 3]), (1, [1, 0, 1])]);
        let unrecovered = |partition, offset| (partition, offset, "unrecovered retention".into());
        // What has no row was filtered or not: with records missing, nobody can tell.
        assert_eq!(letters, [unrecovered(0, 4), unrecovered(0, 0), unrecovered(0, 2), unrecovered(1, 7)]);

        let held = BTreeMap::from([(id(1), BTreeSet::from([8]))]);
        let (_, letters) = differences(&batch, &held, "retention", &lost[1..], &[]);
        let lost = letters.last().expect("one is lost");
        let record = lost.chunk.record(lost.index as usize);
        assert_eq!((record.offset, record.payload, record.key), (7, None, None));
    }

    #[test]
    fn what_clickhouse_refuses_is_a_dead_letter_of_that_kind_unless_it_is_there() {
        let batch = batch(vec![part(0, 0, "abf")]);
        let refused = DeadLetter {
            chunk: batch.parts[0].chunk.clone(),
            index: 1,
            rejection: rejection(RejectionKind::Insert),
        };
        let refused = [refused];
        let (outcomes, letters) = found(&batch, &[(0, &[0])], "verdicts_differ", &[], &refused);
        assert_eq!(outcomes, [(0, [1, 1, 1])]);
        assert_eq!(letters, [(0, 1, "insert insert".into())]);

        // The first run's row of it went in: then the rows are the first run's.
        let (outcomes, letters) = found(&batch, &[(0, &[0, 1])], "verdicts_differ", &[], &refused);
        assert_eq!(outcomes, [(0, [2, 0, 1])]);
        assert_eq!(letters, [(0, 2, "unrecovered verdicts_differ".into())]);
    }

    #[test]
    fn every_record_is_counted_once_whatever_the_table_holds() {
        let batch = batch(vec![part(0, 0, "afxb"), part(1, 4, "xa")]);
        let lost = [slice(2, 0, 3)];
        for held in 0u32..1 << 9 {
            let offsets = |first: u32, base: i64, count: u32| -> Vec<i64> {
                (0..count)
                    .filter(|bit| held >> (first + bit) & 1 == 1)
                    .map(|bit| base + i64::from(bit))
                    .collect()
            };
            let (first, second, third) = (offsets(0, 0, 4), offsets(4, 4, 2), offsets(6, 0, 3));
            let held = [(0, &first[..]), (1, &second), (2, &third)];
            for lost in [&lost[..], &[]] {
                let (outcomes, letters) = found(&batch, &held, "retention", lost, &[]);
                let of = |partition: i32| outcomes.iter().find(|(other, _)| *other == partition);
                let records = |partition| of(partition).map_or(0, |(_, counts)| counts.iter().sum::<u64>());
                let expected = [4, 2, if lost.is_empty() { 0 } else { 3 }];
                assert_eq!([0, 1, 2].map(records), expected, "{held:?}");
                for (partition, offset, _) in &letters {
                    let rows = held[*partition as usize].1;
                    assert!(!rows.contains(offset), "{offset} of {partition} is in both: {held:?}");
                }
            }
        }
    }
}
