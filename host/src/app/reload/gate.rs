//! Gate: what a revision passes before it may judge records, off the threads that run the stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::app::preconditions::{Filled, pending_inserts};
use crate::clickhouse::schema::SchemaError;
use crate::clickhouse::sink::ClickHouseSink;
use crate::config::{Delivery, PipelineConfig};
use crate::domain::module::ArchivedModule;
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::binding::TableBinding;
use crate::pipeline::modules::{CasesReport, Gate};
use crate::pipeline::ports::Chain as _;
use crate::wasm::{ChainSettings, Module, ModuleRegistry, WasmChain};

use super::Collaborators;
use super::entry::Refusal;
use super::scan::CasesFile;

/// What is due for a module.
pub(super) enum Trial {
    /// What its file holds.
    File(ArchivedModule),
    /// A revision that ran before.
    Archived(Revision, Stage),
    /// No module.
    Nothing,
    /// What its file holds cannot be read.
    Refused,
}

/// What passed its trial.
pub(super) enum Candidate {
    Module { module: Arc<Module>, file: Box<ArchivedModule> },
    Nothing,
}

impl Candidate {
    pub(super) fn revision(&self) -> Option<Revision> {
        match self {
            Self::Module { module, .. } => Some(module.identity().revision),
            Self::Nothing => None,
        }
    }

    pub(super) fn file(&self) -> Option<&ArchivedModule> {
        match self {
            Self::Module { file, .. } => Some(file),
            Self::Nothing => None,
        }
    }
}

/// A file's golden cases, and what they have to say.
pub(super) struct DueCases {
    pub(super) file: CasesFile,
    /// Whether a revision that fails them is refused. One that judged records before is not: that it would
    /// not pass today is told, and the rule goes on.
    pub(super) is_binding: bool,
}

/// Compiles, starts and tries a revision; answers how its golden cases came out too.
pub(super) async fn try_out(
    with: &Collaborators,
    settings: &Arc<ChainSettings>,
    (name, trial): (&str, Trial),
    cases: DueCases,
) -> Result<(Candidate, Option<CasesOutcome>), (Refusal, Option<CasesOutcome>)> {
    let (file, is_file) = match trial {
        Trial::File(file) => (file, true),
        Trial::Archived(revision, stage) => {
            let fetched = with.revisions.fetch_one(revision, stage).await;
            let fetched =
                fetched.map_err(|error| (Refusal::by(Gate::Archive, error.retryability(), &error), None))?;
            let lost =
                || Refusal::new(Gate::Archive, format!("revision {revision} is not in the archive any more"));
            let file = fetched.ok_or_else(|| (lost(), None))?;
            // Another module of the same content may have been archived under its own name.
            (ArchivedModule { name: name.to_owned(), ..file }, false)
        }
        Trial::Nothing | Trial::Refused => return Ok((Candidate::Nothing, None)),
    };
    let (registry, settings) = (with.registry.clone(), settings.clone());
    let loaded = tokio::task::spawn_blocking(move || {
        let module = registry.load(&file, &settings);
        (module, file)
    });
    let (module, file) = loaded
        .await
        .map_err(|error| (Refusal::new(Gate::Compile, format!("the check itself failed: {error}")), None))?;
    let module = module.map_err(|fault| (Refusal::of(&fault), None))?;
    // A revision from the archive passed its own; those beside the file are for the file.
    let DueCases { file: cases, is_binding } = cases;
    let cases = if is_file { cases } else { CasesFile::none() };
    let outcome = run_cases(&with.registry, &module, cases).await.map_err(|refusal| (refusal, None))?;
    if let Some(reason) = outcome.as_ref().and_then(failing).filter(|_| is_binding) {
        return Err((Refusal::new(Gate::Cases, reason), outcome));
    }
    Ok((Candidate::Module { module, file: Box::new(file) }, outcome))
}

/// How golden cases came out, or why they cannot be run.
pub(super) type CasesOutcome = Result<CasesReport, String>;

/// Runs the golden cases beside a module's file, if there are any.
///
/// # Errors
/// Where this machine could not.
pub(super) async fn run_cases(
    registry: &Arc<ModuleRegistry>,
    module: &Arc<Module>,
    cases: CasesFile,
) -> Result<Option<CasesOutcome>, Refusal> {
    let single = registry.single(module.clone());
    let run = tokio::task::spawn_blocking(move || match cases.parse() {
        Ok(cases) => cases.map(|cases| Ok(cases.run(&single))),
        Err(fault) => Some(Err(fault.to_string())),
    });
    run.await.map_err(|error| Refusal::transient(Gate::Cases, format!("the check itself failed: {error}")))
}

/// Why cases that came out like this refuse a revision, if they do.
pub(super) fn failing(outcome: &CasesOutcome) -> Option<String> {
    match outcome {
        Ok(report) => report.problem(),
        Err(reason) => Some(reason.clone()),
    }
}

/// What the tables of a pipeline must be like, beyond what the mapper fills.
#[derive(Clone, Debug, Default)]
pub(in crate::app) struct Preconditions {
    /// Partitions of each topic.
    partitions: BTreeMap<String, usize>,
    /// INSERTs into a table that other pipelines may have pending.
    others: BTreeMap<String, u64>,
}

impl Preconditions {
    /// Of tables that the pipelines of `others` insert into as well.
    pub(in crate::app) fn new(others: &[Filled<'_>], partitions: BTreeMap<String, usize>) -> Self {
        let tables = others.iter().flat_map(|(pipeline, outputs)| {
            outputs.iter().map(|output| pipeline.table(&output.name).to_owned())
        });
        let pending = |table: String| {
            let pending = pending_inserts(&table, others, &partitions);
            (table, pending)
        };
        let others = tables.map(pending).collect();
        Self { partitions, others }
    }

    /// Binds the outputs of a chain to their tables.
    pub(super) async fn bind(
        &self,
        sink: &ClickHouseSink,
        pipeline: &PipelineConfig,
        chain: &WasmChain,
    ) -> Result<Vec<TableBinding>, Refusal> {
        let mut tables = Vec::new();
        for output in chain.outputs() {
            let table = pipeline.table(&output.name);
            let bound = if pipeline.delivery == Delivery::ExactlyOnce {
                let own = pending_inserts(table, &[(pipeline, chain.outputs())], &self.partitions);
                let others = self.others.get(table).copied().unwrap_or_default();
                sink.bind_deduplicating(table, output, own + others).await
            } else {
                sink.bind(table, output).await
            };
            let bound = bound.map_err(|error| match error {
                SchemaError::Server { error, .. } if error.kind.retryability() == Retryability::Retry => {
                    Refusal::transient(Gate::Tables, error.to_string())
                }
                error => {
                    let text =
                        format!("declares output {} that does not fit table {table}: {error}", output.name);
                    Refusal::new(Gate::Tables, text)
                }
            })?;
            tables.push(bound.binding());
        }
        Ok(tables)
    }
}

/// Whether INSERTs would be the same.
pub(super) fn are_same_tables(one: &[TableBinding], other: &[TableBinding]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| one.table == other.table && one.columns == other.columns)
}
