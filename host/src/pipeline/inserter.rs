//! Inserter: brings one sealed batch to its end: rows into ClickHouse, rejections into the
//! dead-letter topic, retrying for as long as it takes.
//!
//! Invariant: [`Inserter::deliver`] returns only when every record of the batch is inserted,
//! filtered or dead-lettered. An outage is waited out; only a record that ClickHouse refuses by
//! itself becomes a dead letter (`kind=insert`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::batch::{Batch, Selection};
use crate::domain::ledger::{Outcome, Slice};
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::domain::verdict::{DeadLetter, Rejection, RejectionKind, Stage};

use super::binding::TableBinding;
use super::lane::SealedBatch;
use super::metrics::PipelineMetrics;
use super::ports::{DeadLetterSink, InsertRequest, Sink, Unpublished};
use super::trouble::Trouble;

/// Source of randomness: batch identities and jitter.
pub type Entropy = Arc<dyn Fn() -> u128 + Send + Sync>;

/// A number in 0.0..1.0.
pub(super) fn jitter(entropy: &Entropy) -> f64 {
    (entropy() as u32) as f64 / f64::from(u32::MAX)
}

/// A batch at its end.
#[derive(Debug)]
pub struct Delivered {
    /// What was delivered; its share of the byte budget is still held.
    pub sealed: SealedBatch,
    /// How the records of each slice ended.
    pub outcomes: Vec<(Slice, Outcome)>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Inserter<S, D> {
    pub(super) pipeline: Arc<str>,
    pub(super) sink: Arc<S>,
    pub(super) dead_letters: Arc<D>,
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

impl<S: Sink, D: DeadLetterSink> Inserter<S, D> {
    /// Brings a batch to its end. Cancel-safe: a cancelled delivery leaves the offsets uncommitted.
    ///
    /// # Errors
    /// When it never can: the dead-letter producer is refused for good.
    pub async fn deliver(self: Arc<Self>, sealed: SealedBatch) -> Result<Delivered, String> {
        let started = Instant::now();
        let mut refused: Vec<DeadLetter> = Vec::new();
        // A record with rows in two tables is one dead letter, whichever table refused it.
        let mut known: HashSet<(usize, u32)> = HashSet::new();
        for (output, table) in sealed.chain.tables.iter().enumerate() {
            let letters = self.insert(&sealed, output, table).await;
            refused.extend(
                letters
                    .into_iter()
                    .filter(|letter| known.insert((Arc::as_ptr(&letter.chunk).addr(), letter.index))),
            );
        }
        let outcomes = sealed.batch.outcomes(&refused);
        let mut letters = sealed.batch.rejected();
        letters.append(&mut refused);
        self.publish(letters).await?;
        let pipeline = &*self.pipeline;
        self.metrics.batches.with_label_values(&[pipeline]).inc();
        self.metrics.batch_seconds.with_label_values(&[pipeline]).observe(started.elapsed().as_secs_f64());
        Ok(Delivered { sealed, outcomes })
    }

    /// Inserts the rows of one output; returns the records that ClickHouse refused one by one.
    async fn insert(&self, sealed: &SealedBatch, output: usize, table: &TableBinding) -> Vec<DeadLetter> {
        let batch = &sealed.batch;
        let revision = sealed.chain.chain.revision().to_string();
        let token = format!("sluice:{}:{}", self.pipeline, batch.id);
        let mut refused = Vec::new();
        let mut queue: Vec<(Selection, String)> = vec![(batch.all(), token)];
        while let Some((selection, token)) = queue.pop() {
            let Err(reason) = self.send(batch, &selection, output, table, &revision, &token).await else {
                continue;
            };
            if let Some((first, second)) = selection.halves() {
                self.metrics.recuts.with_label_values(&[&self.pipeline]).inc();
                tracing::warn!(table = %table.table, records = selection.records(), reason,
                    "clickhouse refuses the rows of this batch for good; looking for the record at fault");
                queue.push((second, format!("{token}.1")));
                queue.push((first, format!("{token}.0")));
            } else {
                refused.push(batch.refused(
                    &selection,
                    Rejection {
                        stage: Stage::Insert,
                        module: table.table.clone(),
                        revision: None,
                        kind: RejectionKind::Insert,
                        code: "insert".into(),
                        field: None,
                        reason,
                    },
                ));
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
    ) -> Result<(), String> {
        let (body, rows) = batch.encode(selection, output, |buffer, chunk, offset| {
            table.append_provenance(buffer, chunk, offset, revision);
        });
        if rows == 0 {
            return Ok(());
        }
        let request = InsertRequest {
            table: table.table.clone(),
            columns: table.columns.clone(),
            rows,
            body: body.into(),
            token: token.to_owned(),
        };
        let about = format!("insert into {}", table.table);
        for attempt in 0.. {
            match self.sink.insert(request.clone()).await {
                Ok(()) => break,
                Err(error) if error.retryability == Retryability::Permanent => {
                    self.trouble.clear(&about);
                    return Err(error.message);
                }
                Err(error) => self.wait(&about, "insert", attempt, &error.message).await,
            }
        }
        self.trouble.clear(&about);
        Ok(())
    }

    async fn publish(&self, mut letters: Vec<DeadLetter>) -> Result<(), String> {
        let about = "publish dead letters";
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
                self.wait(about, "dead_letter", attempt, &error.message).await;
                attempt = attempt.saturating_add(1);
            }
        }
        self.trouble.clear(about);
        Ok(())
    }

    async fn wait(&self, about: &str, operation: &str, attempt: u32, reason: &str) {
        self.trouble.report(about, reason);
        self.metrics.retries.with_label_values(&[&*self.pipeline, operation]).inc();
        let wait: Duration = self.policy.wait(attempt, jitter(&self.entropy.0));
        tracing::debug!(about, reason, attempt, ?wait, "trying again");
        sleep(wait).await;
    }
}
