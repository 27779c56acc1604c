//! One module of a pipeline on this host: what judges records, what its file holds, and what became of that.

use std::path::PathBuf;
use std::sync::Arc;

use crate::domain::breaker::Earned;
use crate::domain::deployment::HoldKind;
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::modules::{Gate, ModuleReport, ModuleState, Problem, RevisionSince};
use crate::wasm::{Module, ModuleFault};

use super::breaker::Watch;
use super::gate::{self, CasesOutcome};
use super::scan::{CasesContent, Stamp};

/// What judges records, since when (RFC 3339).
#[derive(Clone)]
pub(super) struct Live {
    pub(super) module: Arc<Module>,
    pub(super) since: String,
}

impl Live {
    pub(super) fn now(module: Arc<Module>) -> Self {
        Self { module, since: now() }
    }

    pub(super) fn revision(&self) -> Revision {
        self.module.identity().revision
    }
}

/// Why a revision was not taken, and whether to try it again though nothing has changed.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) gate: Gate,
    pub(super) reason: String,
    /// What it lacks is this machine's or a server's doing.
    pub(super) is_transient: bool,
}

impl Refusal {
    pub(super) fn of(fault: &ModuleFault) -> Self {
        use ModuleFault as Fault;
        let gate = match fault {
            Fault::Read(_) | Fault::NotAFile | Fault::Growing | Fault::Name | Fault::TooLarge { .. } => {
                Gate::Read
            }
            Fault::NotWasm { .. }
            | Fault::Compile(_)
            | Fault::Wrap(_)
            | Fault::CompileTime { .. }
            | Fault::CompileMemory { .. }
            | Fault::CompilerCrashed(_)
            | Fault::Compiler(_) => Gate::Compile,
            _ => Gate::Contract,
        };
        Self::by(gate, fault.retryability(), fault)
    }

    pub(super) fn new(gate: Gate, reason: impl Into<String>) -> Self {
        Self { gate, reason: reason.into(), is_transient: false }
    }

    /// Of what a server said, which may be another thing later.
    pub(super) fn by(gate: Gate, retryability: Retryability, reason: &impl ToString) -> Self {
        let is_transient = retryability == Retryability::Retry;
        Self { gate, reason: reason.to_string(), is_transient }
    }

    pub(super) fn transient(gate: Gate, reason: impl Into<String>) -> Self {
        Self { gate, reason: reason.into(), is_transient: true }
    }
}

/// What is wrong with a shadow that has nothing to be compared with.
pub(super) const ORPHAN: &str =
    "has no live module of its name beside it, so it is not run: copy that, or rename the shadow";

/// See the module documentation.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) stage: Stage,
    pub(super) path: PathBuf,
    pub(super) is_shadow: bool,
    /// What judges records; of a shadow, what is run beside that.
    pub(super) live: Option<Live>,
    /// A shadow without a live module of its name.
    pub(super) is_orphan: bool,
    /// Revision of the file, since when it is known, and the cases beside it.
    pub(super) found: Option<(Revision, String, CasesContent)>,
    /// What is held in place of the file, and why.
    pub(super) held: Option<(HoldKind, String)>,
    /// How the live revision does, where a breaker watches it.
    pub(super) watch: Option<Watch>,
    /// What the breaker may go back to.
    pub(super) earned: Earned,
    /// Revision that was due when it was tried last.
    pub(super) tried: Option<Revision>,
    /// Why what was found, or what is held, is not live.
    pub(super) refusal: Option<Refusal>,
    /// There is no file.
    pub(super) is_missing: bool,
    /// What the file looked like when nothing was left to do with it.
    pub(super) seen: Option<Stamp>,
    /// How the golden cases came out, with the content and the module that it is about.
    pub(super) cases: Option<(CasesContent, Revision, CasesOutcome)>,
}

impl Entry {
    pub(super) fn new(name: String, stage: Stage, path: PathBuf, is_shadow: bool) -> Self {
        Self {
            name,
            stage,
            path,
            is_shadow,
            live: None,
            is_orphan: false,
            found: None,
            held: None,
            watch: None,
            earned: Earned::default(),
            tried: None,
            refusal: None,
            is_missing: false,
            seen: None,
            cases: None,
        }
    }

    pub(super) fn live_revision(&self) -> Option<Revision> {
        self.live.as_ref().map(Live::revision)
    }

    /// Whether what the file holds runs, and nothing is left to do but to look whether it changes.
    pub(super) fn is_settled(&self) -> bool {
        let found = self.found.as_ref().map(|(revision, _, cases)| (Some(*revision), *cases));
        let told = self.cases.as_ref().and_then(|(content, ..)| *content);
        let is_undisturbed = self.refusal.is_none() && self.held.is_none() && !self.is_missing;
        is_undisturbed && found == Some((self.live_revision(), told))
    }

    fn state(&self) -> ModuleState {
        match (&self.refusal, &self.held) {
            (Some(refusal), _) if refusal.is_transient => ModuleState::Waiting,
            (Some(_), _) => ModuleState::Refused,
            (None, Some((HoldKind::Pinned, _))) => ModuleState::Pinned,
            (None, Some((HoldKind::RolledBack, _))) => ModuleState::RolledBack,
            (None, None) if self.is_missing => ModuleState::Missing,
            (None, None) if self.is_shadow => ModuleState::Shadow,
            (None, None) => ModuleState::Live,
        }
    }

    fn problem(&self) -> Option<Problem> {
        let failing = || {
            let (_, _, outcome) = self.cases.as_ref()?;
            let reason = format!("it runs, but it {}", gate::failing(outcome)?);
            Some(Problem { gate: Some(Gate::Cases), reason })
        };
        let missing = || {
            let reason = "its file is gone; the last good revision goes on: copy the file again".to_owned();
            self.is_missing.then_some(Problem { gate: None, reason })
        };
        let warned = || {
            let reason = self.watch.as_ref()?.warning()?.to_owned();
            Some(Problem { gate: None, reason })
        };
        match (&self.refusal, &self.held) {
            (Some(refusal), _) => Some(Problem { gate: Some(refusal.gate), reason: refusal.reason.clone() }),
            (None, Some((_, reason))) => Some(Problem { gate: None, reason: reason.clone() }),
            (None, None) if self.is_orphan => Some(Problem { gate: None, reason: ORPHAN.to_owned() }),
            (None, None) => missing().or_else(warned).or_else(failing),
        }
    }

    pub(super) fn report(&self, pipeline: &str) -> ModuleReport {
        let since = |revision: Revision, since: &str| RevisionSince {
            revision: revision.to_string(),
            since: since.to_owned(),
        };
        ModuleReport {
            pipeline: pipeline.to_owned(),
            name: self.name.clone(),
            stage: self.stage,
            file: self.path.display().to_string(),
            is_shadow: self.is_shadow,
            state: self.state(),
            // A shadow judges nothing.
            live: self
                .live
                .as_ref()
                .filter(|_| !self.is_shadow)
                .map(|live| since(live.revision(), &live.since)),
            found: self.found.as_ref().map(|(revision, known, _)| since(*revision, known)),
            cases: self.cases.as_ref().and_then(|(_, _, outcome)| outcome.as_ref().ok().cloned()),
            problem: self.problem(),
        }
    }
}

/// RFC 3339, UTC, in milliseconds.
pub(super) fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_a_file_does_to_its_compiler_is_refused_and_what_the_machine_does_is_waited_out() {
        let second = Duration::from_secs(1);
        for fault in [
            ModuleFault::CompileTime { limit: second },
            ModuleFault::CompileMemory { limit: 1 },
            ModuleFault::CompilerCrashed("its stack overflows".to_owned()),
            ModuleFault::InitSlow { allowed: second },
        ] {
            assert!(!Refusal::of(&fault).is_transient, "{fault}");
        }
        let refusal = Refusal::of(&ModuleFault::Compiler("killed".to_owned()));
        assert!(refusal.is_transient && refusal.gate == Gate::Compile);
    }
}
