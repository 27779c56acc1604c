//! How partitions come to a flow and go from it.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::intent::Intent;
use crate::domain::ledger::{BatchId, Epoch, PartitionId, Revoked};
use crate::pipeline::event::Assignment;
use crate::pipeline::lane::Lane;
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::partition::Partition;
use crate::pipeline::ports::{Archive, DeadLetterSink, OffsetStore, Sink};

use super::{Flow, Revocation};

impl<S: Sink, D: DeadLetterSink, O: OffsetStore, A: Archive> Flow<S, D, O, A> {
    pub(super) fn assign(&mut self, partitions: Vec<Assignment>) {
        self.release();
        let event = [&*self.settings.pipeline, "assigned"];
        self.metrics.rebalances.with_label_values(&event).inc_by(partitions.len() as u64);
        // One that was ours already begins anew.
        self.abandon(partitions.iter().map(|assignment| &assignment.partition));
        for Assignment { partition, epoch, position, pending } in partitions {
            tracing::info!(position, pending = pending.intents().len(), topic = %partition.topic,
                partition = partition.partition, "partition assigned");
            let unknown = self.ledger.assign(partition.clone(), epoch, position, &pending);
            let is_unknown = |intent: &&Intent| unknown.contains(&intent.id());
            self.recoverable.extend(pending.intents().iter().filter(is_unknown).cloned());
            let PipelineMetrics { consumed, inserted, filtered, dead_lettered, abandoned, .. } =
                &self.metrics;
            // So that a rate begins at zero and not at the first record.
            for counter in [consumed, inserted, filtered, dead_lettered, abandoned] {
                self.count(counter, &partition, 0);
            }
            // A batch that is delivered already, for a partition that shares it.
            for intent in pending.intents() {
                let outcome = self
                    .delivered
                    .get(&intent.id())
                    .and_then(|delivered| delivered.outcomes.get(&partition).copied());
                if let Some(outcome) = outcome {
                    self.end(intent.id(), &partition, &outcome);
                }
            }
            self.partitions.insert(partition.clone(), (epoch, Partition::default()));
            match self.lanes.iter_mut().find(|lane| lane.has_room_for(&partition)) {
                Some(lane) => lane.join(partition),
                None => {
                    let mut lane = Lane::new(self.settings.batch);
                    lane.join(partition);
                    self.lanes.push(lane);
                }
            }
        }
    }

    pub(super) fn revoke(
        &mut self,
        partitions: Vec<(PartitionId, Epoch)>,
        lost: bool,
        release: SyncSender<()>,
    ) {
        self.release();
        let event = [&*self.settings.pipeline, if lost { "lost" } else { "revoked" }];
        self.metrics.rebalances.with_label_values(&event).inc_by(partitions.len() as u64);
        let wait = if lost { Duration::ZERO } else { self.settings.drain_timeout };
        self.revocation = Some(Revocation { partitions, release, deadline: Instant::now() + wait });
    }

    pub(super) fn finish_revocation(&mut self, now: Instant) {
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
        let ours = partitions.iter().filter(|(partition, epoch)| self.ledger.owns(partition, *epoch));
        let ours: Vec<PartitionId> = ours.map(|(partition, _)| partition.clone()).collect();
        self.abandon(&ours);
        if self.partitions.is_empty() {
            self.committer.forget();
        }
        for partition in ours {
            self.end_offsets.remove(&partition);
            let number = partition.partition.to_string();
            let labels = [&*self.settings.pipeline, &*partition.topic, &number];
            // Gauges of a partition that is not ours would lie; an error says that there is none.
            let _ = self.metrics.lag.remove_label_values(&labels);
            let _ = self.metrics.in_flight.remove_label_values(&labels);
        }
        // Where the intake has ended nobody listens.
        let _ = release.send(());
    }

    /// Forgets the assignments of partitions; what was on its way is read again, or recovered, by
    /// whoever has them next. Only between two commits.
    fn abandon<'a>(&mut self, partitions: impl IntoIterator<Item = &'a PartitionId>) {
        let mut dissolved = Vec::new();
        let mut done = Vec::new();
        for partition in partitions {
            self.partitions.remove(partition);
            for lane in &mut self.lanes {
                lane.leave(partition);
            }
            let Some(revoked) = self.ledger.revoke(partition) else { continue };
            let Revoked { standing, .. } = revoked;
            self.count(&self.metrics.abandoned, partition, standing.in_flight());
            tracing::info!(topic = %partition.topic, partition = partition.partition,
                committed = standing.committed, unfinished = standing.in_flight(), "partition released");
            dissolved.extend(revoked.dissolved);
            done.extend(revoked.done);
        }
        self.forget(&done);
        dissolved.retain(|batch| !done.contains(batch));
        dissolved.sort_unstable();
        dissolved.dedup();
        for batch in dissolved {
            self.dissolve(batch);
        }
    }

    /// Seals a batch anew that nobody knows of yet, without the partitions that went.
    fn dissolve(&mut self, old: BatchId) {
        let Some(place) = self.sealed.iter().position(|sealed| sealed.batch.id == old) else { return };
        let Some(sealed) = self.sealed.remove(place) else { return };
        let id = BatchId((self.entropy)());
        let Some(rest) = sealed.without(|partition| self.partitions.contains_key(partition), id) else {
            return;
        };
        let intent = self.intent_of(&rest);
        self.ledger.replace(old, id, &rest.batch.slices, intent);
        self.sealed.insert(place, rest);
    }
}
