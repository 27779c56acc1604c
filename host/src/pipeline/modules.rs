//! Modules as operators and analysts see them: which revision of each judges records, what became of
//! its file, and what they may order.
//!
//! Whoever loads the modules publishes [`ModuleReport`]s and answers [`ModuleOrder`]s; the admin server and
//! the status files beside the modules show the former, and `orders.rs` hands on the latter.

use serde::Serialize;
use tokio::sync::oneshot;

use crate::domain::verdict::Stage;

/// What has become of a module's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleState {
    /// The file's revision judges records.
    Live,
    /// The file did not pass a check; its last good revision, if there is one, judges records.
    Refused,
    /// It cannot be checked yet: something that a check needs is away.
    Waiting,
    /// A revision is held in place of the file's: an operator or the breaker rolled it back.
    RolledBack,
    /// An operator pinned a revision; what the file holds does not matter.
    Pinned,
    /// There is no file, and its last good revision goes on: only a mapper's, or when the folder is gone.
    Missing,
    /// It is tried beside the live one, without effect.
    Shadow,
}

impl ModuleState {
    /// Every state, for metrics.
    pub const ALL: [Self; 7] = [
        Self::Live,
        Self::Refused,
        Self::Waiting,
        Self::RolledBack,
        Self::Pinned,
        Self::Missing,
        Self::Shadow,
    ];

    /// The word used in status files, metrics, logs and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
            Self::RolledBack => "rolled-back",
            Self::Pinned => "pinned",
            Self::Missing => "missing",
            Self::Shadow => "shadow",
        }
    }
}

/// Check that a file met last, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// The file is read whole, and is neither too large nor still being written.
    Read,
    /// It is WebAssembly, compiles within its limits, and is wrapped if it is a core module.
    Compile,
    /// It is of the right world and version, imports nothing that is not offered, and takes its settings.
    Contract,
    /// Its golden cases come out as written.
    Cases,
    /// What it fills fits the tables, and delivery's preconditions hold.
    Tables,
    /// It is kept in the archive.
    Archive,
}

impl Gate {
    /// The word used in status files and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compile => "compile",
            Self::Contract => "contract",
            Self::Cases => "cases",
            Self::Tables => "tables",
            Self::Archive => "archive",
        }
    }
}

/// How golden cases came out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CasesReport {
    /// Cases that came out as written.
    pub passed: usize,
    /// What is wrong with the others, one text each, with the line; not all of them where there are many.
    pub failed: Vec<String>,
    /// Number of those that did not.
    pub failures: usize,
}

impl CasesReport {
    /// Why a revision whose cases came out like this is not taken, if it is not.
    pub fn problem(&self) -> Option<String> {
        (self.failures > 0).then(|| {
            format!(
                "fails {} of its {} golden cases: {}; mend the module or its cases",
                self.failures,
                self.failures + self.passed,
                self.failed.first().map_or("", String::as_str)
            )
        })
    }
}

/// A revision, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RevisionSince {
    /// First 12 hex digits.
    pub revision: String,
    /// RFC 3339, UTC.
    pub since: String,
}

/// Why a file's revision does not judge records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Check that it did not pass; none where it was rolled back or pinned.
    pub gate: Option<Gate>,
    /// What is wrong and what to do.
    pub reason: String,
}

/// One module of one pipeline, on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleReport {
    /// Pipeline.
    pub pipeline: String,
    /// File name without `.wasm` (and without `.shadow`).
    pub name: String,
    /// `validate` or `map`.
    #[serde(serialize_with = "stage_word")]
    pub stage: Stage,
    /// Where its file is or was.
    pub file: String,
    /// Whether it is the shadow of the module of its name.
    pub is_shadow: bool,
    /// What has become of the file.
    pub state: ModuleState,
    /// Revision that judges records, and since when; none if none does.
    pub live: Option<RevisionSince>,
    /// Revision of the file, where it could be read, and since when it is known.
    pub found: Option<RevisionSince>,
    /// Golden cases of the file, where there are any and they were run.
    pub cases: Option<CasesReport>,
    /// Why the file's revision does not judge records, or what else is wrong with it.
    pub problem: Option<Problem>,
}

fn stage_word<S: serde::Serializer>(stage: &Stage, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(stage.as_str())
}

/// Something that happened to a module, as kept for all hosts of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleEvent {
    /// RFC 3339, UTC, by the clock of the table that keeps it.
    pub at: String,
    /// `live`, `removed`, `rolled-back`, `tripped`, `pinned` or `released`.
    pub event: String,
    /// Revision that the event is about: the one that went live, is held, or was rolled back and is
    /// released; none where none is. In hex, whole.
    pub revision: Option<String>,
    /// Revision of the file that `revision` stands in for, if it holds for that file only. In hex, whole.
    pub instead_of: Option<String>,
    /// Host or person that did it.
    pub by: String,
    /// Why, in a sentence.
    pub reason: String,
}

/// What an operator may order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleAction {
    /// Run an earlier revision (first digits of its hex suffice; none: the one before the live one)
    /// until the file changes.
    Rollback {
        /// Digits of a revision.
        to: Option<String>,
    },
    /// Run a revision (none: the live one), whatever the file holds, until it is released.
    Pin {
        /// Digits of a revision.
        to: Option<String>,
    },
    /// End a rollback or a pin: the file counts again.
    Release,
}

impl ModuleAction {
    /// The word for it in paths and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Rollback { .. } => "rollback",
            Self::Pin { .. } => "pin",
            Self::Release => "release",
        }
    }
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No such pipeline, module or revision.
    #[error("{0}")]
    NotFound(String),
    /// It makes no sense as things are, or could mean several modules or revisions.
    #[error("{0}")]
    Refused(String),
    /// Something that it needs is away; try again.
    #[error("{0}")]
    Unavailable(String),
}

/// An order to a pipeline, or a question, about one of its modules.
#[derive(Debug)]
pub struct ModuleOrder {
    /// File name without `.wasm`.
    pub module: String,
    /// What.
    pub request: ModuleRequest,
}

/// What is asked, each with where its answer goes. What nobody waits for any more is not begun.
#[derive(Debug)]
pub enum ModuleRequest {
    /// Do something; the answer says in a sentence what was done.
    Act {
        /// What.
        action: ModuleAction,
        /// Who asks, for the history.
        by: String,
        /// Why, for the history; may be empty.
        reason: String,
        /// What was done.
        answer: oneshot::Sender<Result<String, OrderError>>,
    },
    /// What happened to it, newest first, at most `limit`.
    History {
        /// Most events.
        limit: usize,
        /// The events.
        answer: oneshot::Sender<Result<Vec<ModuleEvent>, OrderError>>,
    },
    /// How its shadow compares.
    Shadow {
        /// The comparison so far.
        answer: oneshot::Sender<Result<ShadowReport, OrderError>>,
    },
}

impl ModuleRequest {
    /// Whether nobody waits for the answer any more.
    pub fn is_given_up(&self) -> bool {
        match self {
            Self::Act { answer, .. } => answer.is_closed(),
            Self::History { answer, .. } => answer.is_closed(),
            Self::Shadow { answer } => answer.is_closed(),
        }
    }
}

/// How a shadow compares to the live module beside it, since both run. One record counts once in
/// `records` and in exactly one of the others, but `skipped` ones, which count nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ShadowReport {
    /// Revision of the live module.
    pub live: String,
    /// Revision of the shadow.
    pub shadow: String,
    /// Records that both judged.
    pub records: u64,
    /// Same verdict, same rows.
    pub same: u64,
    /// The shadow rejects what the live one accepts.
    pub newly_rejected: u64,
    /// The shadow accepts what the live one rejects.
    pub newly_accepted: u64,
    /// Both reject, with another code.
    pub other_code: u64,
    /// Both accept, with other rows.
    pub other_rows: u64,
    /// Records that the shadow trapped, ran out of time or memory on, or answered badly for.
    pub faults: u64,
    /// Records that the shadow was not shown, so that it costs no more than its share of time.
    pub skipped: u64,
    /// The newest records of each kind that differ.
    pub samples: Vec<ShadowSample>,
}

/// A record on which two revisions differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShadowSample {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// How they differ: the name of the counter.
    pub difference: &'static str,
    /// What the live one says: `accepted`, `filtered`, its rows as JSON (where both have as many, only
    /// what differs in them), or code and reason.
    pub live: String,
    /// What the shadow says.
    pub shadow: String,
}
