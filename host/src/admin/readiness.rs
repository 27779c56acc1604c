//! Readiness: whether Sluice takes records through, and if not, why.

use serde::Serialize;

use super::AdminSources;

/// What `/ready` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Readiness {
    /// Whether every pipeline takes records through.
    pub(super) ready: bool,
    /// Why not, each with the name of its pipeline; empty when ready.
    pub(super) reasons: Vec<String>,
}

impl Readiness {
    /// As of now.
    pub(super) fn of(sources: &AdminSources) -> Self {
        let mut reasons = sources.not_ready.borrow().clone();
        for pipeline in &sources.pipelines {
            let status = pipeline.borrow();
            reasons.extend(status.not_ready.iter().map(|reason| format!("{}: {reason}", status.name)));
            // Its task is gone, so what it said last is all that will ever come.
            if pipeline.has_changed().is_err() {
                reasons.push(format!("{}: the pipeline has stopped", status.name));
            }
        }
        Self { ready: reasons.is_empty(), reasons }
    }
}
