//! Inserter: brings the rows of one sealed batch into ClickHouse, retrying for as long as it takes,
//! and says where each of its records has ended.
//!
//! Invariants:
//! - [`Inserter::deliver`] returns only when every record of the batch is inserted, filtered or to be
//!   dead-lettered. At-least-once its dead letters are published by then; exactly-once they go into the
//!   transaction that settles the batch.
//! - Every attempt to insert the same rows has the same token, also in another process that recovers the
//!   batch: pieces of a batch that ClickHouse refuses are cut, and named, by its slices alone.
//! - A token that may be used up by an earlier attempt is not believed where the table can be asked: ClickHouse
//!   notes a token before it has the rows, and a server that is killed between has the one without the others.
//!   The next token, which is the same for everybody, takes its place while the table has no row at all of
//!   these slices; so whoever sends another token knows that all before it came to nothing.
//! - An outage is waited out; only a record that ClickHouse refuses by itself becomes a dead letter
//!   (`kind=insert`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::batch::{Batch, Selection};
use crate::domain::intent::IntentSlice;
use crate::domain::ledger::{Delivery, Outcome, PartitionId};
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::domain::verdict::{DeadLetter, Rejection, RejectionKind, Stage};

use super::binding::TableBinding;
use super::budget::Budget;
use super::lane::SealedBatch;
use super::metrics::PipelineMetrics;
use super::ports::{DeadLetterSink, InsertError, InsertRequest, Sink, Unpublished};
use super::recovery::differences;
use super::trouble::{Trouble, TroubleScope};

/// Source of randomness: batch identities and jitter.
pub type Entropy = Arc<dyn Fn() -> u128 + Send + Sync>;

/// A number in 0.0..1.0.
pub(super) fn jitter(entropy: &Entropy) -> f64 {
    (entropy() as u32) as f64 / f64::from(u32::MAX)
}

/// Where a batch comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Sealed by this process and never sent before.
    Sealed,
    /// Formed again as it was; it may have been sent before.
    Recovered,
    /// Formed again, but not as it was.
    Different {
        /// Why.
        code: &'static str,
        /// Records that are gone.
        lost: Vec<IntentSlice>,
    },
}

/// A batch whose rows are in ClickHouse.
#[derive(Debug)]
pub struct Delivered {
    /// What was delivered; its share of the byte budget is still held.
    pub sealed: SealedBatch,
    /// Where it came from.
    pub origin: Origin,
    /// How the records of each partition ended.
    pub outcomes: BTreeMap<PartitionId, Outcome>,
    /// Dead letters of each partition that are not published yet.
    pub letters: BTreeMap<PartitionId, Vec<DeadLetter>>,
}

impl Delivered {
    /// Dead letters of one partition.
    pub fn letters_of(&self, partition: &PartitionId) -> &[DeadLetter] {
        self.letters.get(partition).map_or(&[], Vec::as_slice)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Inserter<S, D> {
    pub(super) pipeline: Arc<str>,
    pub(super) delivery: Delivery,
    pub(super) sink: Arc<S>,
    pub(super) dead_letters: Arc<D>,
    pub(super) budget: Budget,
    pub(super) policy: RetryPolicy,
    pub(super) trouble: Trouble,
    pub(super) metrics: PipelineMetrics,
    pub(super) entropy: EntropySource,
}

/// [`Entropy`] with a `Debug` that says nothing.
#[derive(Clone)]
pub struct EntropySource(pub Entropy);

impl std::fmt::Debug for EntropySource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("EntropySource")
    }
}

/// How often rows are sent under another token, since the table has none of them though it took the last.
const OTHER_TOKENS: usize = 2;

/// What is marked by it is the token after the one without it.
const NEXT_TOKEN: char = '~';

/// How rows went in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// There are none.
    Nothing,
    /// By the first attempt.
    AtOnce,
    /// By a later one: an earlier one may have brought them there, or only their token.
    Later,
}

/// Why rows did not go in.
struct RefusedRows {
    reason: String,
    /// Whether they may be there all the same, from an attempt that was not answered.
    unsure: bool,
}

impl<S: Sink, D: DeadLetterSink> Inserter<S, D> {
    /// Brings a batch to its end. Cancel-safe: a cancelled delivery leaves the batch pending.
    ///
    /// # Errors
    /// When it never can: the dead-letter producer is refused for good.
    pub async fn deliver(self: Arc<Self>, sealed: SealedBatch, origin: Origin) -> Result<Delivered, String> {
        let started = Instant::now();
        let mut refused: Vec<DeadLetter> = Vec::new();
        // A record with rows in two tables is one dead letter, whichever table refused it.
        let mut known: HashSet<(usize, u32)> = HashSet::new();
        for (output, table) in sealed.chain.tables.iter().enumerate() {
            let letters = self.insert(&sealed, output, table, &origin).await;
            refused.extend(
                letters
                    .into_iter()
                    .filter(|letter| known.insert((Arc::as_ptr(&letter.chunk).addr(), letter.index))),
            );
        }
        let can_be_asked = sealed.chain.tables.iter().all(TableBinding::can_be_asked);
        let (outcomes, mut letters) = match &origin {
            // A run in between that came out differently may have left less under the token.
            Origin::Recovered if can_be_asked => {
                let held = self.held(&sealed, &refused).await;
                differences(&sealed.batch, &held, "verdicts_differ", &[], &refused)
            }
            Origin::Sealed | Origin::Recovered => {
                let mut letters = sealed.batch.rejected();
                let outcomes = sealed.batch.outcomes(&refused);
                letters.append(&mut refused);
                (outcomes, letters)
            }
            Origin::Different { code, lost } => {
                let held = self.held(&sealed, &refused).await;
                differences(&sealed.batch, &held, code, lost, &refused)
            }
        };
        if self.delivery == Delivery::AtLeastOnce {
            self.publish(std::mem::take(&mut letters)).await?;
        }
        let pipeline = &*self.pipeline;
        self.metrics.batches.with_label_values(&[pipeline]).inc();
        self.metrics.batch_seconds.with_label_values(&[pipeline]).observe(started.elapsed().as_secs_f64());
        let mut of_partition: BTreeMap<PartitionId, Vec<DeadLetter>> = BTreeMap::new();
        for letter in letters {
            of_partition.entry(letter.partition()).or_default().push(letter);
        }
        Ok(Delivered { sealed, origin, outcomes, letters: of_partition })
    }

    /// Inserts the rows of one output; returns the records that ClickHouse refused one by one, or lost.
    async fn insert(
        &self,
        sealed: &SealedBatch,
        output: usize,
        table: &TableBinding,
        origin: &Origin,
    ) -> Vec<DeadLetter> {
        let batch = &sealed.batch;
        let revision = sealed.chain.chain.revision().to_string();
        let token = format!("sluice:{}:{}", self.pipeline, batch.id);
        let mut refused = Vec::new();
        let mut queue: Vec<(Selection, String)> = vec![(batch.all(), token)];
        // Without the record at fault, rows would go in that were refused, and went in by pieces, before.
        let may_be_there_in_pieces = matches!(origin, Origin::Different { lost, .. } if !lost.is_empty());
        while let Some((selection, token)) = queue.pop() {
            if may_be_there_in_pieces {
                let (held, mapped) = self.count_held(batch, &selection, output, table).await;
                if held == mapped {
                    continue;
                }
                if held > 0
                    && let Some((first, second)) = selection.halves()
                {
                    queue.push((second, format!("{token}.1")));
                    queue.push((first, format!("{token}.0")));
                    continue;
                }
            }
            let answer = self.send(batch, &selection, output, table, &revision, &token).await;
            let RefusedRows { reason, unsure } = match answer {
                Ok(taken) => {
                    let is_repeated =
                        taken == Taken::Later || *origin != Origin::Sealed || token.ends_with(NEXT_TOKEN);
                    if taken == Taken::Nothing || !is_repeated || !table.can_be_doubted() {
                        continue;
                    }
                    let held = self.held_of(batch, &selection, output, table).await;
                    let has_none = held.iter().all(|(_, offsets)| offsets.is_empty());
                    if let Some(next) = next_token(&token).filter(|_| has_none) {
                        self.metrics.retries.with_label_values(&[&*self.pipeline, "reinsert"]).inc();
                        tracing::warn!(table = %table.table, token,
                            "clickhouse remembers these rows and has none of them; they go in under another token");
                        queue.push((selection, next));
                    } else if *origin == Origin::Sealed {
                        let reason = "clickhouse remembers the rows of this record and does not have them";
                        let rejection = rejection(table, "rows_missing", reason.to_owned());
                        refused.extend(batch.lacking(&selection, output, &held, &rejection));
                    }
                    continue;
                }
                Err(refused) => refused,
            };
            if (unsure || *origin != Origin::Sealed) && table.can_be_asked() {
                let (held, mapped) = self.count_held(batch, &selection, output, table).await;
                if held == mapped {
                    continue;
                }
            }
            let rejection = rejection(table, "insert", reason);
            if let Some(letter) = batch.refused(&selection, output, &rejection) {
                refused.push(letter);
            } else if let Some((first, second)) = selection.halves() {
                self.metrics.recuts.with_label_values(&[&self.pipeline]).inc();
                tracing::warn!(table = %table.table, token, reason = rejection.reason,
                    "clickhouse refuses these rows for good; looking for the record at fault");
                queue.push((second, format!("{token}.1")));
                queue.push((first, format!("{token}.0")));
            }
        }
        refused
    }

    /// Sends the selected rows until ClickHouse takes them, or refuses them for good.
    async fn send(
        &self,
        batch: &Batch,
        selection: &Selection,
        output: usize,
        table: &TableBinding,
        revision: &str,
        token: &str,
    ) -> Result<Taken, RefusedRows> {
        let (body, rows) = batch.encode(selection, output, |buffer, chunk, offset| {
            table.append_provenance(buffer, chunk, offset, revision);
        });
        if rows == 0 {
            return Ok(Taken::Nothing);
        }
        // A second copy of the rows: to be counted for as long as it is there.
        let _hold = self.budget.take(body.capacity());
        let request = InsertRequest {
            table: table.table.clone(),
            columns: table.columns.clone(),
            rows,
            body: body.into(),
            token: token.to_owned(),
        };
        let trouble = self.trouble.scope(format!("insert into {}", table.table));
        let mut unsure = false;
        for attempt in 0.. {
            match self.sink.insert(request.clone()).await {
                Ok(()) => return Ok(if attempt == 0 { Taken::AtOnce } else { Taken::Later }),
                Err(InsertError { retryability: Retryability::Permanent, message, .. }) => {
                    return Err(RefusedRows { reason: message, unsure });
                }
                Err(error) => {
                    unsure |= error.code.is_none();
                    self.wait(&trouble, "insert", attempt, &error.message).await;
                }
            }
        }
        unreachable!("the attempts have no end")
    }

    /// Of each of the selected slices the offsets of which the table holds a row.
    async fn held_of(
        &self,
        batch: &Batch,
        selection: &Selection,
        output: usize,
        table: &TableBinding,
    ) -> Vec<(PartitionId, BTreeSet<i64>)> {
        let mut held = Vec::new();
        for (slice, _) in batch.mapped(selection, output) {
            let offsets = self.ask(table, &slice).await.into_iter().collect();
            held.push((slice.partition, offsets));
        }
        held
    }

    /// How many of the selected records that have rows in this output the table holds, and how many there are.
    async fn count_held(
        &self,
        batch: &Batch,
        selection: &Selection,
        output: usize,
        table: &TableBinding,
    ) -> (usize, usize) {
        let (mut there, mut all) = (0, 0);
        let held = self.held_of(batch, selection, output, table).await;
        for ((_, mapped), (_, held)) in batch.mapped(selection, output).into_iter().zip(held) {
            there += mapped.iter().filter(|offset| held.contains(offset)).count();
            all += mapped.len();
        }
        (there, all)
    }

    /// Offsets of the batch of which any of its tables holds a row; of a record that a table refuses, only
    /// that table counts, since it is a dead letter though the others took it.
    async fn held(
        &self,
        sealed: &SealedBatch,
        refused: &[DeadLetter],
    ) -> BTreeMap<PartitionId, BTreeSet<i64>> {
        let mut held: BTreeMap<PartitionId, BTreeSet<i64>> = BTreeMap::new();
        for table in &sealed.chain.tables {
            for slice in &sealed.batch.slices {
                let partition = slice.partition.clone();
                let offsets = self.ask(table, &slice.into()).await.into_iter().filter(|offset| {
                    let of_record = |letter: &&DeadLetter| {
                        letter.partition() == partition
                            && letter.chunk.offset(letter.index as usize) == *offset
                    };
                    refused.iter().find(of_record).is_none_or(|letter| letter.rejection.module == table.table)
                });
                held.entry(partition.clone()).or_default().extend(offsets);
            }
        }
        held
    }

    async fn ask(&self, table: &TableBinding, slice: &IntentSlice) -> Vec<i64> {
        let trouble = self.trouble.scope(format!("ask {} what it holds", table.table));
        for attempt in 0.. {
            match self.sink.held(table, slice).await {
                Ok(offsets) => return offsets,
                // A question that is refused for good may be allowed once somebody has looked.
                Err(error) => self.wait(&trouble, "ask", attempt, &error.message).await,
            }
        }
        unreachable!("the attempts have no end")
    }

    async fn publish(&self, mut letters: Vec<DeadLetter>) -> Result<(), String> {
        let trouble = self.trouble.scope("publish dead letters");
        let mut attempt = 0;
        while !letters.is_empty() {
            let answer = self.dead_letters.publish(&letters).await;
            let open: Vec<usize> =
                answer.as_ref().err().map(|error| error.places.clone()).unwrap_or_default();
            let mut place = 0..;
            // Only what is not confirmed is sent again: the others would be there twice.
            letters.retain(|letter| {
                let keep = place.next().is_some_and(|place| open.binary_search(&place).is_ok());
                if !keep {
                    let rejection = &letter.rejection;
                    let labels = [&*self.pipeline, rejection.kind.as_str(), &*rejection.module];
                    self.metrics.dead_letters.with_label_values(&labels).inc();
                }
                keep
            });
            if let Err(Unpublished { error, .. }) = answer {
                if error.retryability == Retryability::Permanent {
                    return Err(error.message);
                }
                self.wait(&trouble, "dead_letter", attempt, &error.message).await;
                attempt = attempt.saturating_add(1);
            }
        }
        Ok(())
    }

    async fn wait(&self, trouble: &TroubleScope, operation: &str, attempt: u32, reason: &str) {
        trouble.report(reason);
        self.metrics.retries.with_label_values(&[&*self.pipeline, operation]).inc();
        let wait: Duration = self.policy.wait(attempt, jitter(&self.entropy.0));
        tracing::debug!(operation, reason, attempt, ?wait, "trying again");
        sleep(wait).await;
    }
}

/// The token after this one, unless there were enough.
fn next_token(token: &str) -> Option<String> {
    let marks = token.len() - token.trim_end_matches(NEXT_TOKEN).len();
    (marks < OTHER_TOKENS).then(|| format!("{token}{NEXT_TOKEN}"))
}

/// Why the table of an output has no rows of a record.
fn rejection(table: &TableBinding, code: &str, reason: String) -> Rejection {
    Rejection {
        stage: Stage::Insert,
        module: table.table.clone(),
        revision: None,
        kind: RejectionKind::Insert,
        code: code.to_owned(),
        field: None,
        reason,
    }
}
