//! Flow: one task a pipeline that hears every event, owns all of the pipeline's state and decides.
//!
//! State: the ledger, the partitions with their reorder buffers, the lanes, the batches that wait for
//! their intent or for a place, the deliveries, what was delivered and is not settled, and the commit
//! under way. Nothing else touches it, so there are no locks and one order of events. Each branch of its
//! `select!` is cancel-safe: receiving an event, joining a delivery, polling the commit, and sleeping.
//!
//! A batch goes: lane -> `sealed` -> (intended by a commit) -> `ready` -> delivery -> `delivered` ->
//! (settled by a commit). At-least-once, and when it is recovered, it begins at `ready`.

mod partitions;
mod report;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::domain::batch::BatchLimits;
use crate::domain::intent::Intent;
use crate::domain::ledger::{BatchId, Delivery, Epoch, Ledger, Outcome, PartitionId};
use crate::domain::retry::RetryPolicy;
use crate::domain::verdict::{DeadLetter, Revision};

use super::binding::{BoundChain, ChainSlot};
use super::budget::Budget;
use super::committer::{Answer, Committer};
use super::event::{Event, Judged};
use super::inserter::{Delivered, Entropy, EntropySource, Inserter, Origin};
use super::lane::{Lane, SealedBatch};
use super::metrics::PipelineMetrics;
use super::partition::Partition;
use super::ports::{Archive, CommitError, DeadLetterSink, OffsetStore, Sink};
use super::recovery::Recovery;
use super::status::PipelineStatus;
use super::trouble::Trouble;

/// How often the status is published.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Most bytes of dead letters in one commit: what fits well into the time that a transaction may take.
const COMMIT_LETTER_BYTES: usize = 16 << 20;

/// What a flow is to do.
#[derive(Clone, Debug)]
pub struct FlowSettings {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Guarantee.
    pub delivery: Delivery,
    /// When a batch is sealed.
    pub batch: BatchLimits,
    /// Most batches in delivery at once.
    pub concurrent_inserts: usize,
    /// Longest wait for what is in flight when partitions go or the process stops.
    pub drain_timeout: Duration,
    /// Waits between attempts.
    pub retry: RetryPolicy,
}

/// What a flow talks to.
pub struct Collaborators<S, D, O, A> {
    /// ClickHouse.
    pub sink: Arc<S>,
    /// Dead-letter topic, at-least-once.
    pub dead_letters: Arc<D>,
    /// Group offsets; exactly-once with the dead letters.
    pub offsets: Arc<O>,
    /// Records and revisions of pending batches.
    pub archive: Arc<A>,
    /// Chain of the moment, for the status.
    pub chain: ChainSlot,
    /// In-flight bytes.
    pub budget: Budget,
    /// Why records cannot go through, for the status.
    pub trouble: Trouble,
    /// Metrics.
    pub metrics: PipelineMetrics,
    /// Batch identities and jitter.
    pub entropy: Entropy,
    /// Where the status goes.
    pub status: watch::Sender<PipelineStatus>,
}

/// Why a flow ended before everything was settled. Offsets of unfinished records are not
/// committed: they are read again after a restart.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The drain deadline passed.
    #[error(
        "{records} records of pipeline {pipeline} were still in flight after {waited:?}; they are read again \
         at the next start (raise resources.drain_timeout if this happens on every stop): {trouble}"
    )]
    Unfinished {
        /// Pipeline.
        pipeline: Arc<str>,
        /// Records in flight.
        records: u64,
        /// Drain timeout.
        waited: Duration,
        /// What stood in the way, as far as it is known.
        trouble: String,
    },
    /// A part of the pipeline is gone.
    #[error("pipeline {pipeline} cannot go on: {reason}")]
    Broken {
        /// Pipeline.
        pipeline: Arc<str>,
        /// What happened.
        reason: String,
    },
}

struct Revocation {
    partitions: Vec<(PartitionId, Epoch)>,
    release: SyncSender<()>,
    deadline: Instant,
}

/// A delivery under way.
struct Delivering {
    task: AbortHandle,
    is_recovery: bool,
}

/// See the module documentation.
pub struct Flow<S, D, O, A> {
    settings: FlowSettings,
    started: Instant,
    ledger: Ledger,
    partitions: BTreeMap<PartitionId, (Epoch, Partition)>,
    end_offsets: BTreeMap<PartitionId, i64>,
    lanes: Vec<Lane>,
    sealed: VecDeque<SealedBatch>,
    ready: VecDeque<SealedBatch>,
    /// Batches of earlier owners that wait for a place among the recoveries.
    recoverable: VecDeque<Intent>,
    deliveries: JoinSet<Result<Delivered, String>>,
    delivering: HashMap<BatchId, Delivering>,
    delivered: HashMap<BatchId, Delivered>,
    inserter: Arc<Inserter<S, D>>,
    recovery: Arc<Recovery<A>>,
    committer: Committer<O>,
    revocation: Option<Revocation>,
    stopping: Option<Instant>,
    intake_trouble: Vec<String>,
    status_due: Instant,
    chain: ChainSlot,
    shown: Option<Arc<BoundChain>>,
    budget: Budget,
    trouble: Trouble,
    metrics: PipelineMetrics,
    entropy: Entropy,
    status: watch::Sender<PipelineStatus>,
}

impl<S: Sink, D: DeadLetterSink, O: OffsetStore, A: Archive> Flow<S, D, O, A> {
    /// A flow without partitions.
    pub fn new(settings: FlowSettings, with: Collaborators<S, D, O, A>) -> Self {
        with.metrics.begin(&settings.pipeline);
        let entropy = EntropySource(with.entropy.clone());
        let inserter = Inserter {
            pipeline: settings.pipeline.clone(),
            delivery: settings.delivery,
            sink: with.sink,
            dead_letters: with.dead_letters,
            budget: with.budget.clone(),
            policy: settings.retry,
            trouble: with.trouble.clone(),
            metrics: with.metrics.clone(),
            entropy: entropy.clone(),
        };
        let recovery = Recovery {
            pipeline: settings.pipeline.clone(),
            archive: with.archive,
            current: with.chain.clone(),
            budget: with.budget.clone(),
            policy: settings.retry,
            trouble: with.trouble.clone(),
            metrics: with.metrics.clone(),
            entropy: entropy.clone(),
        };
        let committer = Committer {
            pipeline: settings.pipeline.clone(),
            offsets: with.offsets,
            policy: settings.retry,
            trouble: with.trouble.clone(),
            metrics: with.metrics.clone(),
            entropy,
            in_flight: None,
            began: Instant::now(),
            failures: 0,
            not_before: None,
        };
        let now = Instant::now();
        Self {
            ledger: Ledger::new(settings.delivery),
            settings,
            started: now,
            partitions: BTreeMap::new(),
            end_offsets: BTreeMap::new(),
            lanes: Vec::new(),
            sealed: VecDeque::new(),
            ready: VecDeque::new(),
            recoverable: VecDeque::new(),
            deliveries: JoinSet::new(),
            delivering: HashMap::new(),
            delivered: HashMap::new(),
            inserter: Arc::new(inserter),
            recovery: Arc::new(recovery),
            committer,
            revocation: None,
            stopping: None,
            intake_trouble: Vec::new(),
            status_due: now,
            chain: with.chain,
            shown: None,
            budget: with.budget,
            trouble: with.trouble,
            metrics: with.metrics,
            entropy: with.entropy,
            status: with.status,
        }
    }

    /// Runs until intake has stopped and everything is settled.
    ///
    /// # Errors
    /// [`FlowError`] when that cannot be reached; unfinished records stay uncommitted.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), FlowError> {
        loop {
            let now = Instant::now();
            self.advance(now);
            if self.stopping.is_some() && self.ledger.all_drained() && self.committer.in_flight.is_none() {
                self.publish_status();
                return Ok(());
            }
            if self.stopping.is_some_and(|deadline| now >= deadline) {
                return Err(self.unfinished());
            }
            let deadline = self.next_deadline();
            // In this order: what frees memory and places comes before what takes them.
            tokio::select! {
                biased;
                answer = self.committer.finish() => self.conclude(answer)?,
                Some(delivered) = self.deliveries.join_next() => match delivered {
                    Ok(Ok(delivered)) => self.delivered(delivered),
                    Ok(Err(reason)) => return Err(self.broken(&reason)),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(self.broken(&format!("a delivery failed: {error}"))),
                },
                event = events.recv() => match event {
                    Some(event) => self.hear(event).await?,
                    None => return Err(self.broken("its intake ended without saying so")),
                },
                () = sleep_until(deadline) => {}
            }
        }
    }

    async fn hear(&mut self, event: Event) -> Result<(), FlowError> {
        match event {
            Event::Assigned(partitions) => {
                self.between_commits().await?;
                self.assign(partitions);
            }
            Event::Revoked { partitions, lost, release } => {
                if self.revocation.is_some() {
                    self.between_commits().await?;
                }
                self.revoke(partitions, lost, release);
            }
            Event::Consumed { partition, epoch, records, end } => {
                if self.ledger.consume(&partition, epoch, records, end) {
                    self.count(&self.metrics.consumed, &partition, records);
                }
            }
            Event::Judged(judged) => self.judged(judged),
            Event::EndOffsets(offsets) => self.end_offsets.extend(offsets),
            Event::IntakeTrouble(reasons) => self.intake_trouble = reasons,
            Event::Held(partitions) => {
                let held = self.metrics.held.with_label_values(&[&*self.settings.pipeline]);
                held.set(partitions as i64);
            }
            Event::IntakeStopped => self.stopping = Some(Instant::now() + self.settings.drain_timeout),
            Event::Broken(reason) => return Err(self.broken(&reason)),
        }
        Ok(())
    }

    /// Waits for the commit under way, if any: partitions come and go only between two commits.
    async fn between_commits(&mut self) -> Result<(), FlowError> {
        if self.committer.in_flight.is_some() {
            let answer = self.committer.finish().await;
            self.conclude(answer)?;
        }
        Ok(())
    }

    /// Does everything that has become possible or due.
    fn advance(&mut self, now: Instant) {
        self.seal_due(now);
        let expired = self.revocation.as_ref().is_some_and(|revocation| now >= revocation.deadline);
        if !expired && self.committer.is_free(now) {
            self.commit();
        }
        self.start_deliveries();
        self.finish_revocation(now);
        if now >= self.status_due {
            self.committer.watch(now);
            self.publish_status();
            self.status_due = now + STATUS_INTERVAL;
        }
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let lanes = self.lanes.iter().filter(|lane| !self.is_held_up(lane)).filter_map(Lane::deadline);
        let others = [
            self.committer.deadline().filter(|deadline| *deadline > now),
            self.revocation.as_ref().map(|revocation| revocation.deadline).filter(|deadline| *deadline > now),
            self.stopping,
        ];
        let lanes = lanes.map(|deadline| self.started + deadline);
        lanes.chain(others.into_iter().flatten()).fold(self.status_due, Instant::min)
    }

    /// Whether a batch of the lane waits already: until that has a place, rows are better off in a
    /// larger batch than in another one.
    fn is_held_up(&self, lane: &Lane) -> bool {
        let mut waiting = self.sealed.iter().chain(&self.ready);
        waiting.any(|sealed| sealed.batch.slices.iter().any(|slice| lane.has(&slice.partition)))
    }

    fn seal_due(&mut self, now: Instant) {
        let draining = self.revocation.is_some() || self.stopping.is_some();
        let due = now - self.started;
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let is_due = lane.deadline().is_some_and(|deadline| deadline <= due) && !self.is_held_up(lane);
            if draining || is_due {
                let entropy = self.entropy.clone();
                if let Some(sealed) = self.lanes[index].seal(|| BatchId(entropy())) {
                    self.enter(sealed);
                }
            }
        }
    }

    /// Takes in what a lane has sealed.
    fn enter(&mut self, sealed: SealedBatch) {
        let intent = self.intent_of(&sealed);
        self.ledger.seal(sealed.batch.id, &sealed.batch.slices, intent);
        match self.settings.delivery {
            Delivery::AtLeastOnce => self.ready.push_back(sealed),
            Delivery::ExactlyOnce => self.sealed.push_back(sealed),
        }
    }

    fn intent_of(&self, sealed: &SealedBatch) -> Option<Intent> {
        if self.settings.delivery == Delivery::AtLeastOnce {
            return None;
        }
        let chain: Arc<[Revision]> =
            sealed.chain.chain.modules().iter().map(|module| module.revision).collect();
        Some(Intent::of(&sealed.batch, chain).expect("a lane seals batches that intents can tell of"))
    }

    /// Recoveries have places of their own: one that cannot go on holds up its partitions, not others.
    fn start_deliveries(&mut self) {
        let places = self.settings.concurrent_inserts;
        let recoveries = self.delivering.values().filter(|delivering| delivering.is_recovery).count();
        let free = places.saturating_sub(self.delivering.len() - recoveries).min(self.ready.len());
        for sealed in self.ready.drain(..free) {
            let id = sealed.batch.id;
            let task = self.deliveries.spawn(self.inserter.clone().deliver(sealed, Origin::Sealed));
            self.delivering.insert(id, Delivering { task, is_recovery: false });
        }
        let free = places.saturating_sub(recoveries).min(self.recoverable.len());
        for intent in self.recoverable.drain(..free) {
            let id = intent.id();
            let (inserter, recovery) = (self.inserter.clone(), self.recovery.clone());
            let task = self.deliveries.spawn(async move {
                let (sealed, origin) = recovery.form(&intent).await;
                inserter.deliver(sealed, origin).await
            });
            self.delivering.insert(id, Delivering { task, is_recovery: true });
        }
    }

    fn delivered(&mut self, delivered: Delivered) {
        let id = delivered.sealed.batch.id;
        self.delivering.remove(&id);
        if !self.ledger.knows(id) {
            return; // Its partitions went; whoever has them recovers it.
        }
        if delivered.origin == Origin::Sealed && !self.ledger.is_ours_alone(id) {
            // Whoever has its other partitions may have sent less of it first, under the same tokens: now
            // that nothing of it can change any more, the table says what is there.
            let Delivered { sealed, .. } = delivered;
            let task = self.deliveries.spawn(self.inserter.clone().deliver(sealed, Origin::Recovered));
            self.delivering.insert(id, Delivering { task, is_recovery: true });
            return;
        }
        for (partition, outcome) in &delivered.outcomes {
            self.end(id, partition, outcome);
        }
        self.delivered.insert(id, delivered);
    }

    /// A slice of a batch has ended, if it is one of ours.
    fn end(&mut self, batch: BatchId, partition: &PartitionId, outcome: &Outcome) {
        if let Some(consumed) = self.ledger.end(batch, partition, outcome) {
            self.count(&self.metrics.consumed, partition, consumed);
        }
    }

    /// Begins a commit when there is something to settle or to intend.
    fn commit(&mut self) {
        let letter_bytes = |batch: BatchId, partition: &PartitionId| {
            let letters = self.delivered.get(&batch).map(|delivered| delivered.letters_of(partition));
            letters.unwrap_or_default().iter().map(DeadLetter::bytes).sum()
        };
        let Some(plan) = self.ledger.plan(letter_bytes, COMMIT_LETTER_BYTES) else { return };
        let mut letters: Vec<DeadLetter> = Vec::new();
        for point in &plan.points {
            for delivered in point.settles.iter().filter_map(|batch| self.delivered.get(batch)) {
                letters.extend_from_slice(delivered.letters_of(&point.partition));
            }
        }
        self.committer.begin(plan, letters);
    }

    /// A commit has ended.
    fn conclude(&mut self, (plan, result): Answer) -> Result<(), FlowError> {
        self.committer.heed(&result, Instant::now());
        match result {
            Ok(()) => {}
            Err(CommitError::Broken(reason)) => return Err(self.broken(&reason)),
            Err(CommitError::Refused(_)) => {
                self.ledger.refused(&plan);
                return Ok(());
            }
        }
        for point in &plan.points {
            for delivered in point.settles.iter().filter_map(|batch| self.delivered.get(batch)) {
                for DeadLetter { rejection, .. } in delivered.letters_of(&point.partition) {
                    let labels = [&*self.settings.pipeline, rejection.kind.as_str(), &*rejection.module];
                    self.metrics.dead_letters.with_label_values(&labels).inc();
                }
            }
        }
        let committed = self.ledger.committed(&plan);
        for (partition, outcome) in &committed.settled {
            self.count(&self.metrics.inserted, partition, outcome.inserted);
            self.count(&self.metrics.filtered, partition, outcome.filtered);
            self.count(&self.metrics.dead_lettered, partition, outcome.dead_lettered);
        }
        for batch in committed.intended {
            if let Some(place) = self.sealed.iter().position(|sealed| sealed.batch.id == batch) {
                self.ready.extend(self.sealed.remove(place));
            }
        }
        self.forget(&committed.done);
        Ok(())
    }

    /// Lets go of batches that have nothing left here.
    fn forget(&mut self, batches: &[BatchId]) {
        for batch in batches {
            self.delivered.remove(batch);
            if let Some(delivering) = self.delivering.remove(batch) {
                delivering.task.abort();
            }
        }
        self.sealed.retain(|sealed| !batches.contains(&sealed.batch.id));
        self.ready.retain(|sealed| !batches.contains(&sealed.batch.id));
        self.recoverable.retain(|intent| !batches.contains(&intent.id()));
    }

    fn judged(&mut self, judged: Judged) {
        let partition = judged.taken.partition();
        let Some((epoch, reorder)) = self.partitions.get_mut(&partition) else { return };
        if *epoch != judged.taken.epoch {
            return;
        }
        let now = Instant::now() - self.started;
        for judged in reorder.reorder(judged) {
            let Some(lane) = self.lanes.iter_mut().find(|lane| lane.has(&partition)) else { return };
            for sealed in lane.add(judged, now, || BatchId((self.entropy)())) {
                self.enter(sealed);
            }
        }
    }

    fn unfinished(&self) -> FlowError {
        FlowError::Unfinished {
            pipeline: self.settings.pipeline.clone(),
            records: self.ledger.standings().map(|(_, standing)| standing.in_flight()).sum(),
            waited: self.settings.drain_timeout,
            trouble: self.trouble.list().join("; "),
        }
    }

    fn broken(&self, reason: &str) -> FlowError {
        FlowError::Broken { pipeline: self.settings.pipeline.clone(), reason: reason.to_owned() }
    }
}
