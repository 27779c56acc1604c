//! Metrics of reloading. Labels are bounded: modules come from the folders, states are few.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::domain::breaker::BreakerMode;
use crate::pipeline::modules::ModuleState;

/// Metrics of all reloaders in one registry.
#[derive(Clone, Debug)]
pub(in crate::app) struct ReloadMetrics {
    reloads: IntCounterVec,
    states: IntGaugeVec,
    waiting: IntCounterVec,
    broke: IntCounterVec,
}

impl ReloadMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When the registry has metrics of the same name already.
    pub(in crate::app) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            reloads: IntCounterVec::new(
                Opts::new(
                    "sluice_module_reloads_total",
                    "Times that a module came into a state, or a new revision of it did",
                ),
                &["pipeline", "module", "state"],
            )?,
            states: IntGaugeVec::new(
                Opts::new("sluice_module_state", "1 for the state that a module's file is in"),
                &["pipeline", "module", "state"],
            )?,
            waiting: IntCounterVec::new(
                Opts::new("sluice_chain_waits_total", "Times that a new chain had to wait for ClickHouse"),
                &["pipeline"],
            )?,
            broke: IntCounterVec::new(
                Opts::new(
                    "sluice_breaker_trips_total",
                    "Times that the breaker warned of a fresh revision of a module, or rolled it back",
                ),
                &["pipeline", "module", "action"],
            )?,
        };
        registry.register(Box::new(metrics.reloads.clone()))?;
        registry.register(Box::new(metrics.states.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        registry.register(Box::new(metrics.broke.clone()))?;
        Ok(metrics)
    }

    pub(super) fn reloaded(&self, pipeline: &str, module: &str, state: ModuleState) {
        self.reloads.with_label_values(&[pipeline, module, state.as_str()]).inc();
    }

    pub(super) fn waiting(&self, pipeline: &str) {
        self.waiting.with_label_values(&[pipeline]).inc();
    }

    /// Counts what the breaker did.
    pub(super) fn broke(&self, pipeline: &str, module: &str, action: BreakerMode) {
        self.broke.with_label_values(&[pipeline, module, action.as_str()]).inc();
    }

    /// Shows these states, and no other ones of `before`.
    pub(super) fn show(
        &self,
        pipeline: &str,
        before: &[(String, ModuleState)],
        now: &[(String, ModuleState)],
    ) {
        for (module, state) in before.iter().filter(|shown| !now.contains(shown)) {
            // An error says that it is gone already.
            let _ = self.states.remove_label_values(&[pipeline, module, state.as_str()]);
        }
        for (module, state) in now {
            self.states.with_label_values(&[pipeline, module, state.as_str()]).set(1);
        }
    }
}
