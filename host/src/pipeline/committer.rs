//! Committer: moves the group's position, one commit in flight at a time.
//!
//! Invariant: what it commits comes from the ledger, so never passes an unsettled record. A refused
//! commit is not repeated as it was: after a wait the ledger is asked again, and by then a
//! partition may have gone.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::domain::ledger::{Epoch, Ledger, PartitionId};
use crate::domain::retry::RetryPolicy;

use super::inserter::{EntropySource, jitter};
use super::metrics::PipelineMetrics;
use super::ports::{Commit, CommitError, CommitPoint, OffsetStore};
use super::trouble::Trouble;

const ABOUT: &str = "commit offsets";

type Points = Vec<(PartitionId, Epoch, i64)>;

/// See the module documentation.
pub struct Committer<O> {
    pub(super) pipeline: Arc<str>,
    pub(super) offsets: Arc<O>,
    pub(super) policy: RetryPolicy,
    pub(super) trouble: Trouble,
    pub(super) metrics: PipelineMetrics,
    pub(super) entropy: EntropySource,
    pub(super) in_flight: Option<BoxFuture<'static, (Points, Result<(), CommitError>)>>,
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
}

impl<O: OffsetStore> Committer<O> {
    /// Begins a commit if there is something to commit, none is in flight and no wait is on.
    pub fn begin(&mut self, ledger: &mut Ledger, now: Instant) {
        if self.in_flight.is_some() || self.not_before.is_some_and(|time| now < time) {
            return;
        }
        let points = ledger.begin_commit();
        if points.is_empty() {
            return;
        }
        let request = points
            .iter()
            .map(|(partition, _, offset)| CommitPoint {
                topic: partition.topic.clone(),
                partition: partition.partition,
                offset: *offset,
                metadata: String::new(),
            })
            .collect();
        let offsets = self.offsets.clone();
        self.in_flight = Some(Box::pin(async move { (points, offsets.commit(Commit { points: request, letters: Vec::new() }).await) }));
    }

    /// Waits for the commit in flight, forever when there is none, and tells the ledger.
    /// Cancel-safe: the commit stays in flight.
    pub async fn finish(&mut self) -> (Points, Result<(), CommitError>) {
        match &mut self.in_flight {
            Some(commit) => {
                let answer = commit.await;
                self.in_flight = None;
                answer
            }
            None => std::future::pending().await,
        }
    }

    /// Tells the ledger how a commit ended.
    pub fn settle(
        &mut self,
        ledger: &mut Ledger,
        (points, result): (Points, Result<(), CommitError>),
        now: Instant,
    ) {
        match result {
            Ok(()) => {
                self.trouble.clear(ABOUT);
                (self.failures, self.not_before) = (0, None);
                for (partition, epoch, offset) in points {
                    ledger.committed(&partition, epoch, offset);
                }
            }
            Err(error) => {
                self.trouble.report(ABOUT, &error.to_string());
                self.metrics.retries.with_label_values(&[&*self.pipeline, "commit"]).inc();
                self.not_before = Some(now + self.policy.wait(self.failures, jitter(&self.entropy.0)));
                self.failures = self.failures.saturating_add(1);
                for (partition, epoch, _) in points {
                    ledger.commit_failed(&partition, epoch);
                }
            }
        }
    }

    /// When to try again after a failure.
    pub fn deadline(&self) -> Option<Instant> {
        self.not_before
    }
}
