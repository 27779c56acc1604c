//! Recovery: forms a pending batch again that an earlier owner of a partition left behind.
//!
//! All slices of the batch are read again, whosoever their partitions are now, and run through the
//! recorded revisions with the recorded forced rejections. What comes out must have the recorded digest.
//! Then it is the same batch, and sending it under its old token is harmless, however often and by
//! whomsoever that was done before. Where it cannot be formed again (retention took records, a revision is
//! gone, a module that is not a function of its record) the batch that a second run gives is sent under
//! the same token all the same: either it goes in as it is, or the token shows that the first one did.
//! From then on the table does not change any more, and [`differences`] says of every record where it
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
    let partition = PartitionId { topic: chunk.topic.clone(), partition: chunk.partition };
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
