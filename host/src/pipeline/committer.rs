//! Committer: moves the group's position, one commit in flight at a time.
//!
//! Invariant: what it commits comes from the ledger, so never passes a record that is not settled by
//! it. A refused commit is not repeated as it was: after a wait the ledger is asked again, and by then
//! a partition may have gone.

use std::sync::Arc;

use futures::future::BoxFuture;
use humantime::format_duration;
use tokio::time::{Duration, Instant};

use crate::domain::ledger::Plan;
use crate::domain::retry::RetryPolicy;
use crate::domain::verdict::DeadLetter;

use super::inserter::{EntropySource, jitter};
use super::metrics::PipelineMetrics;
use super::ports::{Commit, CommitError, CommitPoint, OffsetStore};
use super::trouble::Trouble;

const ABOUT: &str = "commit offsets";
/// After which a commit that is not answered is told.
const SLOW: Duration = Duration::from_secs(10);

/// How a commit ended.
pub type Answer = (Plan, Result<(), CommitError>);

/// See the module documentation.
pub struct Committer<O> {
    pub(super) pipeline: Arc<str>,
    pub(super) offsets: Arc<O>,
    pub(super) policy: RetryPolicy,
    pub(super) trouble: Trouble,
    pub(super) metrics: PipelineMetrics,
    pub(super) entropy: EntropySource,
    pub(super) in_flight: Option<BoxFuture<'static, Answer>>,
    pub(super) began: Instant,
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
}

impl<O: OffsetStore> Committer<O> {
    /// Whether a commit may begin: none is in flight and no wait is on.
    pub fn is_free(&self, now: Instant) -> bool {
        self.in_flight.is_none() && self.not_before.is_none_or(|time| time <= now)
    }

    /// Begins a commit. Only while [`Self::is_free`].
    pub fn begin(&mut self, plan: Plan, letters: Vec<DeadLetter>) {
        debug_assert!(self.in_flight.is_none());
        self.began = Instant::now();
        let point = |point: &crate::domain::ledger::Point| CommitPoint {
            topic: point.partition.topic.clone(),
            partition: point.partition.partition,
            offset: point.offset,
            metadata: point.metadata.clone(),
        };
        let commit = Commit { points: plan.points.iter().map(point).collect(), letters };
        let offsets = self.offsets.clone();
        self.in_flight = Some(Box::pin(async move { (plan, offsets.commit(commit).await) }));
    }

    /// Waits for the commit in flight, forever when there is none.
    /// Cancel-safe: the commit stays in flight.
    pub async fn finish(&mut self) -> Answer {
        let Some(commit) = &mut self.in_flight else { return std::future::pending().await };
        let answer = commit.await;
        self.in_flight = None;
        answer
    }

    /// Tells of a commit that is not answered, until it is.
    pub fn watch(&self, now: Instant) {
        if self.in_flight.is_some() && now >= self.began + SLOW {
            self.trouble
                .report(ABOUT, &format!("kafka has not answered for more than {}", format_duration(SLOW)));
        }
    }

    /// Takes note of how a commit ended: after a refusal the next one waits.
    pub fn heed(&mut self, result: &Result<(), CommitError>, now: Instant) {
        match result {
            Ok(()) => {
                self.forget();
            }
            Err(error) => {
                self.trouble.report(ABOUT, &error.to_string());
                self.metrics.retries.with_label_values(&[&*self.pipeline, "commit"]).inc();
                self.not_before = Some(now + self.policy.wait(self.failures, jitter(&self.entropy.0)));
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// There is nothing to commit any more: what failed is nobody's trouble here.
    pub fn forget(&mut self) {
        self.trouble.clear(ABOUT);
        (self.failures, self.not_before) = (0, None);
    }

    /// When to try again after a failure.
    pub fn deadline(&self) -> Option<Instant> {
        self.not_before
    }
}
