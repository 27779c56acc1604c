//! Flow: one task a pipeline that hears every event, owns all of the pipeline's state and decides.
//!
//! State: the ledger, the partitions with their reorder buffers, the lanes, the sealed batches that
//! wait for a place, the deliveries and the commit under way. Nothing else touches it, so there are
//! no locks and one order of events. Each branch of its `select!` is cancel-safe: receiving an
//! event, joining a delivery, polling the commit, and sleeping.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::domain::batch::BatchLimits;
use crate::domain::ledger::{BatchId, Epoch, Ledger, PartitionId, Standing};
use crate::domain::retry::RetryPolicy;

use super::binding::{BoundChain, ChainSlot};
use super::budget::Budget;
use super::committer::Committer;
use super::event::{Assignment, Event, Judged};
use super::inserter::{Delivered, Entropy, EntropySource, Inserter};
use super::lane::{Lane, SealedBatch};
use super::metrics::PipelineMetrics;
use super::partition::Partition;
use super::ports::{DeadLetterSink, ModuleIdentity, OffsetStore, Sink};
use super::status::{ModuleStatus, PartitionStatus, PipelineStatus};
use super::trouble::Trouble;

/// How often the status is published.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// What a flow is to do.
#[derive(Clone, Debug)]
pub struct FlowSettings {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Guarantee, as shown in the status.
    pub delivery: &'static str,
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
pub struct Collaborators<S, D, O> {
    /// ClickHouse.
    pub sink: Arc<S>,
    /// Dead-letter topic.
    pub dead_letters: Arc<D>,
    /// Group offsets.
    pub offsets: Arc<O>,
    /// Chain of the moment, for the status.
    pub chain: ChainSlot,
    /// In-flight bytes, for the status.
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

/// See the module documentation.
pub struct Flow<S, D, O> {
    settings: FlowSettings,
    started: Instant,
    ledger: Ledger,
    partitions: BTreeMap<PartitionId, (Epoch, Partition)>,
    end_offsets: BTreeMap<PartitionId, i64>,
    lanes: Vec<Lane>,
    sealed: VecDeque<SealedBatch>,
    deliveries: JoinSet<Result<Delivered, String>>,
    inserter: Arc<Inserter<S, D>>,
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

impl<S: Sink, D: DeadLetterSink, O: OffsetStore> Flow<S, D, O> {
    /// A flow without partitions.
    pub fn new(settings: FlowSettings, with: Collaborators<S, D, O>) -> Self {
        with.metrics.begin(&settings.pipeline);
        let entropy = EntropySource(with.entropy.clone());
        let inserter = Inserter {
            pipeline: settings.pipeline.clone(),
            sink: with.sink,
            dead_letters: with.dead_letters,
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
            failures: 0,
            not_before: None,
        };
        let now = Instant::now();
        Self {
            settings,
            started: now,
            ledger: Ledger::default(),
            partitions: BTreeMap::new(),
            end_offsets: BTreeMap::new(),
            lanes: Vec::new(),
            sealed: VecDeque::new(),
            deliveries: JoinSet::new(),
            inserter: Arc::new(inserter),
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

    /// Runs until intake has stopped and everything is settled and committed.
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
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear(event)?,
                    None => return Err(self.broken("its intake ended without saying so")),
                },
                Some(delivered) = self.deliveries.join_next() => match delivered {
                    Ok(Ok(delivered)) => self.settle(&delivered),
                    Ok(Err(reason)) => return Err(self.broken(&reason)),
                    Err(error) => return Err(self.broken(&format!("a delivery failed: {error}"))),
                },
                answer = self.committer.finish() => {
                    self.committer.settle(&mut self.ledger, answer, Instant::now());
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn hear(&mut self, event: Event) -> Result<(), FlowError> {
        match event {
            Event::Assigned(partitions) => self.assign(partitions),
            Event::Revoked { partitions, lost, release } => self.revoke(partitions, lost, release),
            Event::Consumed { partition, epoch, records, end } => {
                if self.ledger.consume(&partition, epoch, records, end) {
                    self.count(&self.metrics.consumed, &partition, records);
                }
            }
            Event::Judged(judged) => self.judged(judged),
            Event::EndOffsets(offsets) => self.end_offsets.extend(offsets),
            Event::IntakeTrouble(reasons) => self.intake_trouble = reasons,
            Event::IntakeStopped => {
                self.stopping = Some(Instant::now() + self.settings.drain_timeout);
                self.seal_all();
            }
            Event::Broken(reason) => return Err(self.broken(&reason)),
        }
        Ok(())
    }

    /// Does everything that has become possible or due.
    fn advance(&mut self, now: Instant) {
        let draining = self.revocation.is_some() || self.stopping.is_some();
        let due = now - self.started;
        for lane in &mut self.lanes {
            if draining || lane.deadline().is_some_and(|deadline| deadline <= due) {
                self.sealed.extend(lane.seal(|| BatchId((self.entropy)())).inspect(|sealed| {
                    self.ledger.seal(sealed.batch.id, &sealed.batch.slices);
                }));
            }
        }
        while self.deliveries.len() < self.settings.concurrent_inserts
            && let Some(sealed) = self.sealed.pop_front()
        {
            self.deliveries.spawn(self.inserter.clone().deliver(sealed));
        }
        let expired = self.revocation.as_ref().is_some_and(|revocation| now >= revocation.deadline);
        if !expired {
            self.committer.begin(&mut self.ledger, now);
        }
        self.finish_revocation(now);
        if now >= self.status_due {
            self.publish_status();
            self.status_due = now + STATUS_INTERVAL;
        }
    }

    fn next_deadline(&self) -> Instant {
        let lanes = self.lanes.iter().filter_map(Lane::deadline).map(|deadline| self.started + deadline);
        let others = [
            self.committer.deadline().filter(|deadline| *deadline > Instant::now()),
            self.revocation
                .as_ref()
                .map(|revocation| revocation.deadline)
                .filter(|deadline| *deadline > Instant::now()),
            self.stopping,
        ];
        lanes.chain(others.into_iter().flatten()).fold(self.status_due, Instant::min)
    }

    fn assign(&mut self, partitions: Vec<Assignment>) {
        self.release();
        let event = [&*self.settings.pipeline, "assigned"];
        self.metrics.rebalances.with_label_values(&event).inc_by(partitions.len() as u64);
        for Assignment { partition, epoch, position, .. } in partitions {
            tracing::info!(position, topic = %partition.topic, partition = partition.partition, "partition assigned");
            self.abandon(&partition);
            self.ledger.assign(partition.clone(), epoch, position);
            let PipelineMetrics { consumed, inserted, filtered, dead_lettered, abandoned, .. } =
                &self.metrics;
            // So that a rate begins at zero and not at the first record.
            for counter in [consumed, inserted, filtered, dead_lettered, abandoned] {
                self.count(counter, &partition, 0);
            }
            self.partitions.insert(partition.clone(), (epoch, Partition::default()));
            for lane in &mut self.lanes {
                lane.leave(&partition);
            }
            match self.lanes.iter_mut().find(|lane| lane.has_room()) {
                Some(lane) => lane.join(partition),
                None => {
                    let mut lane = Lane::new(self.settings.batch);
                    lane.join(partition);
                    self.lanes.push(lane);
                }
            }
        }
    }

    fn revoke(&mut self, partitions: Vec<(PartitionId, Epoch)>, lost: bool, release: SyncSender<()>) {
        self.release();
        let event = [&*self.settings.pipeline, if lost { "lost" } else { "revoked" }];
        self.metrics.rebalances.with_label_values(&event).inc_by(partitions.len() as u64);
        let wait = if lost { Duration::ZERO } else { self.settings.drain_timeout };
        self.revocation = Some(Revocation { partitions, release, deadline: Instant::now() + wait });
        self.seal_all();
    }

    fn finish_revocation(&mut self, now: Instant) {
        let Some(revocation) = &self.revocation else { return };
        let drained = revocation.partitions.iter().all(|(partition, epoch)| {
            !self.ledger.owns(partition, *epoch) || self.ledger.is_drained(partition)
        });
        // A commit under way is waited for past the deadline too: one that reached the broker after
        // the next owner's would move its offset back.
        if self.committer.in_flight.is_some() || (!drained && now < revocation.deadline) {
            return;
        }
        self.release();
    }

    /// Lets the revoked partitions go, settled or not. Those that were assigned anew meanwhile stay.
    fn release(&mut self) {
        let Some(Revocation { partitions, release, .. }) = self.revocation.take() else { return };
        for (partition, epoch) in partitions {
            if !self.ledger.owns(&partition, epoch) {
                continue;
            }
            let standing = self.abandon(&partition).unwrap_or_default();
            tracing::info!(topic = %partition.topic, partition = partition.partition,
                committed = standing.committed, unfinished = standing.in_flight(), "partition released");
            self.partitions.remove(&partition);
            self.end_offsets.remove(&partition);
            for lane in &mut self.lanes {
                lane.leave(&partition);
            }
            let number = partition.partition.to_string();
            let labels = [&*self.settings.pipeline, &*partition.topic, &number];
            // Gauges of a partition that is not ours would lie; an error says that there is none.
            let _ = self.metrics.lag.remove_label_values(&labels);
            let _ = self.metrics.in_flight.remove_label_values(&labels);
        }
        // The intake may have given up waiting, and then nobody listens.
        let _ = release.send(());
    }

    /// Forgets a partition's assignment; what was on its way is read again by whoever has it next.
    fn abandon(&mut self, partition: &PartitionId) -> Option<Standing> {
        let standing = self.ledger.revoke(partition)?;
        self.count(&self.metrics.abandoned, partition, standing.in_flight());
        Some(standing)
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
            let sealed = lane.add(judged, now, || BatchId((self.entropy)()));
            for sealed in sealed {
                self.ledger.seal(sealed.batch.id, &sealed.batch.slices);
                self.sealed.push_back(sealed);
            }
        }
    }

    fn seal_all(&mut self) {
        for lane in &mut self.lanes {
            if let Some(sealed) = lane.seal(|| BatchId((self.entropy)())) {
                self.ledger.seal(sealed.batch.id, &sealed.batch.slices);
                self.sealed.push_back(sealed);
            }
        }
    }

    fn settle(&mut self, delivered: &Delivered) {
        for (slice, outcome) in &delivered.outcomes {
            if !self.ledger.settle(delivered.sealed.batch.id, slice, outcome) {
                continue; // Counted as abandoned when its partition went.
            }
            self.count(&self.metrics.inserted, &slice.partition, outcome.inserted);
            self.count(&self.metrics.filtered, &slice.partition, outcome.filtered);
            self.count(&self.metrics.dead_lettered, &slice.partition, outcome.dead_lettered);
        }
    }

    fn count(&self, counter: &prometheus::IntCounterVec, partition: &PartitionId, records: u64) {
        let labels = [&*self.settings.pipeline, &*partition.topic, &partition.partition.to_string()];
        counter.with_label_values(&labels).inc_by(records);
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

    /// Shows the modules of the chain in the metrics, and no longer those of the chain before.
    fn show_revisions(&mut self, chain: &Arc<BoundChain>) {
        if self.shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, chain)) {
            return;
        }
        let labels = |module: &ModuleIdentity| {
            let (stage, revision) = (module.stage.as_str().to_owned(), module.revision.to_string());
            [self.settings.pipeline.to_string(), module.name.to_string(), stage, revision]
        };
        for module in self.shown.iter().flat_map(|shown| shown.chain.modules()) {
            // An error says that the label set is gone already.
            let _ =
                self.metrics.revisions.remove_label_values(&labels(module).each_ref().map(String::as_str));
        }
        for module in chain.chain.modules() {
            self.metrics.revisions.with_label_values(&labels(module)).set(1);
        }
        self.shown = Some(chain.clone());
    }

    fn publish_status(&mut self) {
        let mut not_ready = self.trouble.list();
        not_ready.extend(self.intake_trouble.iter().cloned());
        if self.stopping.is_some() {
            not_ready.push("shutting down".into());
        }
        let chain = self.chain.current();
        let pipeline = &*self.settings.pipeline.clone();
        self.metrics.ready.with_label_values(&[pipeline]).set(i64::from(not_ready.is_empty()));
        self.metrics.in_flight_bytes.with_label_values(&[pipeline]).set(self.budget.held() as i64);
        self.show_revisions(&chain);
        let partitions = self.ledger.standings().map(|(id, standing)| self.partition_status(id, standing));
        self.status.send_replace(PipelineStatus {
            name: pipeline.to_owned(),
            delivery: self.settings.delivery,
            not_ready,
            chain: chain.chain.revision().to_string(),
            modules: chain
                .chain
                .modules()
                .iter()
                .map(|module| ModuleStatus {
                    name: module.name.to_string(),
                    stage: module.stage.as_str(),
                    revision: module.revision.to_string(),
                })
                .collect(),
            partitions: partitions.collect(),
            in_flight_bytes: self.budget.held() as u64,
            in_flight_limit_bytes: self.budget.limit() as u64,
        });
    }

    fn partition_status(&self, id: &PartitionId, standing: &Standing) -> PartitionStatus {
        let end = self.end_offsets.get(id);
        let lag = end.zip(standing.position()).map(|(end, position)| (end - position).max(0));
        let number = id.partition.to_string();
        let labels = [&*self.settings.pipeline, &*id.topic, &number];
        self.metrics.in_flight.with_label_values(&labels).set(standing.in_flight() as i64);
        if let Some(lag) = lag {
            self.metrics.lag.with_label_values(&labels).set(lag);
        }
        PartitionStatus {
            topic: id.topic.to_string(),
            partition: id.partition,
            committed_offset: standing.position(),
            next_offset: standing.next_offset,
            lag,
            consumed: standing.consumed,
            inserted: standing.outcome.inserted,
            filtered: standing.outcome.filtered,
            dead_lettered: standing.outcome.dead_lettered,
            in_flight: standing.in_flight(),
        }
    }
}
