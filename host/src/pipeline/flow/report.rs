//! What a flow shows of itself: metrics and status.

use std::sync::Arc;

use crate::domain::ledger::{PartitionId, Standing};
use crate::pipeline::binding::BoundChain;
use crate::pipeline::ports::{DeadLetterSink, ModuleIdentity, OffsetStore, Sink};
use crate::pipeline::status::{ModuleStatus, PartitionStatus, PipelineStatus};

use super::Flow;

impl<S: Sink, D: DeadLetterSink, O: OffsetStore, A> Flow<S, D, O, A> {
    pub(super) fn count(&self, counter: &prometheus::IntCounterVec, partition: &PartitionId, records: u64) {
        let labels = [&*self.settings.pipeline, &*partition.topic, &partition.partition.to_string()];
        counter.with_label_values(&labels).inc_by(records);
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

    pub(super) fn publish_status(&mut self) {
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
            delivery: self.settings.delivery.as_str(),
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
