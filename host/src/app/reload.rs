//! Reload: from the files of a pipeline's modules, and what was decided about them, to the chain that new
//! chunks meet.
//!
//! A pass looks at all files, decides for each module which revision is due (the file's, unless one is
//! held in its place), takes each that is not live yet through the gate (`gate.rs`), and publishes one new
//! chain of everything that passed and of what was live before for everything that did not. Passes are
//! made when the watcher says that files changed, when an operator orders something, when something that
//! a pass lacked may be there again, and every `modules.poll`, which also notices what other hosts
//! decided and what became of the tables.
//!
//! State: an entry a module, the chain of the moment, and chains that were published before and may still
//! be in use. Invariants:
//! - what is published passed every check, is archived, and is kept as an event, before a record meets it;
//! - a file that does not pass takes nothing away: the revision before it goes on;
//! - after a restart the same revisions are live: what the file cannot give comes out of the archive.

mod entry;
mod gate;
mod metrics;
mod orders;
mod scan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::deployments::{Deployments, DeploymentsError, Standings};
use crate::clickhouse::sink::ClickHouseSink;
use crate::config::{Delivery, PipelineConfig};
use crate::domain::deployment::{EventKind, Hold, HoldKind, NewEvent, Standing};
use crate::domain::module::ArchivedModule;
use crate::domain::retry::Retryability;
use crate::domain::row::Output;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::binding::{BoundChain, ChainSlot};
use crate::pipeline::modules::{Gate, ModuleOrder, ModuleReport, ModuleState};
use crate::pipeline::ports::Chain as _;
use crate::wasm::{
    ChainSettings, LoadError, Module, ModuleFault, ModuleRegistry, ModuleWatcher, StatusFiles, WasmChain,
};

use entry::{Entry, Live, Refusal};
use gate::{Candidate, Trial};
use scan::{Found, Scan};

pub(super) use gate::Preconditions;
pub(super) use metrics::ReloadMetrics;

/// Wait after a pass that lacked something, before the next.
const AGAIN: Duration = Duration::from_secs(1);
/// The same where a file was still being written.
const SOON: Duration = Duration::from_millis(200);

/// Modules by stage and name, and shadows beside them, in the order in which records meet them.
type Key = (Stage, String, bool);

/// What a reloader works with.
pub(super) struct Collaborators {
    pub(super) registry: Arc<ModuleRegistry>,
    pub(super) sink: Arc<ClickHouseSink>,
    pub(super) revisions: RevisionArchive,
    pub(super) deployments: Deployments,
    pub(super) metrics: ReloadMetrics,
    pub(super) reports: watch::Sender<Vec<ModuleReport>>,
    /// Name of this process.
    pub(super) host: String,
    /// Longest time between two looks at everything.
    pub(super) poll: Duration,
}

/// See the module documentation.
pub(super) struct Reloader {
    pipeline: PipelineConfig,
    settings: Arc<ChainSettings>,
    with: Collaborators,
    preconditions: Preconditions,
    watcher: ModuleWatcher,
    status_files: StatusFiles,
    entries: BTreeMap<Key, Entry>,
    standings: Standings,
    /// Why what is decided for all hosts cannot be read; what was read last goes on.
    standings_trouble: Option<String>,
    folder_trouble: Option<String>,
    /// What new chunks meet; none before the first pass that came to its end.
    chain: Option<ChainSlot>,
    retired: Vec<Arc<BoundChain>>,
    due: Instant,
    /// Whether the pass under way lacked something.
    lacks: Option<Duration>,
    shown: BTreeMap<Key, (ModuleState, Option<Revision>, Option<String>)>,
    /// States that the metrics show.
    states: Vec<(String, ModuleState)>,
    /// Modules of the first look, so that the first pass finds them alive.
    preloaded: Vec<Arc<Module>>,
}

/// Why a first chain could not be made.
pub(super) enum FirstFault {
    /// Something is away.
    Again(String),
    /// Somebody has to change something.
    Never(anyhow::Error),
}

impl FirstFault {
    fn of<E: Into<anyhow::Error> + ToString>(error: E, retryability: Retryability) -> Self {
        match retryability {
            Retryability::Retry => Self::Again(error.to_string()),
            Retryability::Permanent => Self::Never(error.into()),
        }
    }

    fn of_deployments(error: DeploymentsError) -> Self {
        let retryability = error.retryability();
        Self::of(error, retryability)
    }
}

impl Reloader {
    pub(super) fn new(pipeline: PipelineConfig, settings: ChainSettings, with: Collaborators) -> Self {
        let watcher = ModuleWatcher::start(&settings);
        let status_files = StatusFiles::new(with.host.clone());
        Self {
            pipeline,
            settings: Arc::new(settings),
            with,
            preconditions: Preconditions::default(),
            watcher,
            status_files,
            entries: BTreeMap::new(),
            standings: Standings::new(),
            standings_trouble: None,
            folder_trouble: None,
            chain: None,
            retired: Vec::new(),
            due: Instant::now(),
            lacks: None,
            shown: BTreeMap::new(),
            states: Vec::new(),
            preloaded: Vec::new(),
        }
    }

    /// Loads what the files hold, without asking anybody else, so that what is wrong with them shows at once.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(super) async fn preload(&mut self) -> Result<(), LoadError> {
        let (registry, settings) = (self.with.registry.clone(), self.settings.clone());
        let loaded = tokio::task::spawn_blocking(move || registry.load_chain(&settings)).await;
        match loaded {
            Ok(Ok(chain)) => {
                self.preloaded = chain.loaded().cloned().collect();
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(error) => {
                tracing::error!(%error, "looking at module files failed");
                Ok(())
            }
        }
    }

    /// What the mapper fills by the first look; nothing where that failed.
    pub(super) fn preloaded_outputs(&self) -> Vec<Output> {
        self.preloaded.iter().flat_map(|module| module.outputs()).cloned().collect()
    }

    /// Whether a chain of the pipeline was live before, on whatever host.
    pub(super) async fn has_run(&self) -> Result<bool, FirstFault> {
        self.kept().await.map(|standings| has_run(&standings)).map_err(FirstFault::of_deployments)
    }

    /// What is kept of the pipeline's modules; the table is made where it is not there.
    async fn kept(&self) -> Result<Standings, DeploymentsError> {
        self.with.deployments.ensure().await?;
        self.with.deployments.standing(&self.pipeline.name).await
    }

    /// What the pipeline's tables must be like, beyond what the mapper fills.
    pub(super) fn require(&mut self, preconditions: Preconditions) {
        self.preconditions = preconditions;
    }

    /// Makes the first chain, of the files or of what is live by the events that are kept.
    ///
    /// # Errors
    /// When a module does not pass and no earlier revision of the pipeline can stand in.
    pub(super) async fn first(&mut self) -> Result<ChainSlot, FirstFault> {
        self.with.revisions.ensure().await.map_err(|error| {
            let retryability = error.retryability();
            FirstFault::of(error, retryability)
        })?;
        self.standings = self.kept().await.map_err(FirstFault::of_deployments)?;
        self.pass().await;
        let has_run = has_run(&self.standings);
        let refused = self.entries.values().filter(|entry| !entry.is_shadow).filter_map(|entry| {
            let refusal = entry.refusal.as_ref()?;
            (entry.live.is_none() && !(has_run && entry.stage == Stage::Validate && !refusal.is_transient))
                .then(|| (refusal, format!("module {} {}", entry.path.display(), refusal.reason)))
        });
        let (transient, permanent): (Vec<_>, Vec<_>) = refused.partition(|(refusal, _)| refusal.is_transient);
        let text = |problems: Vec<(&Refusal, String)>| {
            problems.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
        };
        if !permanent.is_empty() {
            return Err(FirstFault::Never(anyhow!(text(permanent))));
        }
        if let Some(trouble) = &self.folder_trouble
            && !has_run
        {
            return Err(FirstFault::Never(anyhow!("{trouble}")));
        }
        match (&self.chain, transient.is_empty()) {
            (Some(chain), true) => Ok(chain.clone()),
            (_, false) => Err(FirstFault::Again(text(transient))),
            (None, true) => Err(FirstFault::Again("the modules are not ready yet".to_owned())),
        }
    }

    /// Follows the files and obeys orders until `stop`.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<ModuleOrder>, stop: CancellationToken) {
        loop {
            let due = self.due;
            // All of them are cancel-safe; what is not taken in one round is in the next.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.watcher.changed() => {}
                () = tokio::time::sleep_until(due.into()) => self.refresh().await,
                Some(order) = orders.recv() => {
                    self.obey(order).await;
                    continue;
                }
            }
            self.pass().await;
        }
    }

    /// Reads what was decided for all hosts.
    async fn refresh(&mut self) {
        match self.with.deployments.standing(&self.pipeline.name).await {
            Ok(standings) => {
                self.standings = standings;
                self.standings_trouble = None;
            }
            Err(error) => {
                if self.standings_trouble.is_none() {
                    tracing::warn!(
                        pipeline = self.pipeline.name, %error,
                        "what other hosts decided about modules is not known; going on with what was"
                    );
                }
                self.standings_trouble = Some(error.to_string());
            }
        }
    }

    /// Looks at everything and publishes what passes. See the module documentation.
    async fn pass(&mut self) {
        self.lacks = None;
        self.watcher.renew();
        let settings = self.settings.clone();
        let scan = match tokio::task::spawn_blocking(move || Scan::take(&settings)).await {
            Ok(scan) => scan,
            Err(error) => {
                tracing::error!(%error, "looking at module files failed");
                self.due = Instant::now() + AGAIN;
                return;
            }
        };
        let removed = self.take_note(&scan);
        let candidates = self.try_out(scan.found).await;
        self.deploy(candidates, removed).await;
        self.tell().await;
        self.retire();
        self.due = Instant::now() + self.lacks.map_or(self.with.poll, |wait| wait.min(self.with.poll));
    }

    /// Brings the entries up to what files there are; returns the modules whose files are gone.
    fn take_note(&mut self, scan: &Scan) -> Vec<Key> {
        self.folder_trouble = scan
            .missing
            .as_ref()
            .map(|(folder, error)| format!("module {} cannot be read: {error}", folder.display()));
        let there: BTreeMap<Key, &Found> = scan
            .found
            .iter()
            .map(|found| ((found.file.stage, found.file.name.clone(), found.file.is_shadow), found))
            .collect();
        for (key, found) in &there {
            let (stage, name, is_shadow) = key.clone();
            let path = found.file.path.clone();
            self.entries.entry(key.clone()).or_insert_with(|| Entry::new(name, stage, path, is_shadow));
        }
        let is_known = scan.missing.is_none();
        let gone: Vec<Key> = self.entries.keys().filter(|key| !there.contains_key(*key)).cloned().collect();
        let mut removed = Vec::new();
        for key in gone {
            if key.0 == Stage::Validate && !is_known && !key.2 {
                // The folder is gone, not the rule.
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.is_missing = true;
                }
            } else if let Some(entry) = self.entries.remove(&key)
                && entry.live.is_some()
                && !key.2
            {
                removed.push(key);
            }
        }
        removed
    }

    /// Takes through its trial what is due and not live.
    async fn try_out(&mut self, found: Vec<Found>) -> BTreeMap<Key, Candidate> {
        let mut candidates = BTreeMap::new();
        for Found { file, content, cases } in found {
            let key = (file.stage, file.name.clone(), file.is_shadow);
            let is_written_to = self.watcher.is_written_to(&file.path);
            let standing = self.standings.get(&(file.stage, file.name.clone())).cloned();
            let standing = if file.is_shadow { Standing::default() } else { standing.unwrap_or_default() };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let content = match content {
                Ok(_) if is_written_to => {
                    self.lacks = Some(SOON);
                    continue;
                }
                Err(ModuleFault::Growing) => {
                    self.lacks = Some(SOON);
                    continue;
                }
                Err(ModuleFault::Read(error))
                    if error.kind() == std::io::ErrorKind::NotFound && entry.live.is_some() =>
                {
                    entry.is_missing = true;
                    entry.refusal = None;
                    continue;
                }
                Err(fault) => {
                    entry.is_missing = false;
                    entry.found = None;
                    entry.refusal = Some(Refusal { is_transient: false, ..Refusal::of(&fault) });
                    None
                }
                Ok(content) => {
                    entry.is_missing = false;
                    if entry.found.as_ref().is_none_or(|(known, ..)| *known != content.revision) {
                        entry.found = Some((content.revision, entry::now(), cases));
                    }
                    Some(content)
                }
            };
            let found = content.as_ref().map(|content| content.revision);
            let hold = standing.hold.clone().filter(|hold| is_in_force(hold, found));
            let trial = match (&hold, content) {
                (Some(hold), _) if hold.run.is_none() => Trial::Nothing,
                (Some(hold), content) => match (hold.run, content) {
                    (Some(run), Some(content)) if content.revision == run => Trial::File(content),
                    (Some(run), _) => Trial::Archived(run, key.0),
                    (None, _) => Trial::Nothing,
                },
                (None, Some(content)) => Trial::File(content),
                (None, None) => Trial::Refused,
            };
            entry.held = hold.as_ref().map(|hold| (hold.kind, reason_of(hold)));
            self.decide(key, trial, cases, &standing, &mut candidates).await;
        }
        candidates
    }

    /// Tries what is due for one module, unless that is live already or was refused before.
    async fn decide(
        &mut self,
        key: Key,
        trial: Trial,
        cases: scan::CasesContent,
        standing: &Standing,
        candidates: &mut BTreeMap<Key, Candidate>,
    ) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let due = match &trial {
            Trial::File(file) => Some(file.revision),
            Trial::Archived(revision, _) => Some(*revision),
            Trial::Nothing => {
                entry.refusal = None;
                if entry.live.is_some() {
                    candidates.insert(key, Candidate::Nothing);
                }
                return;
            }
            Trial::Refused => None,
        };
        if let Some(due) = due {
            let is_same = entry.found.as_ref().is_some_and(|(_, _, known)| *known == cases);
            if entry.live_revision() == Some(due) {
                entry.refusal = None;
                if let Some(live) = entry.live.clone()
                    && entry.cases.as_ref().is_none_or(|(content, of, _)| (*content, *of) != (cases, due))
                {
                    let report = gate::run_cases(&self.with.registry, &live.module, &entry.path, cases).await;
                    entry.cases = report.ok().flatten().map(|report| (cases, due, report));
                }
                if let Some((_, _, known)) = &mut entry.found {
                    *known = cases;
                }
                return;
            }
            let was_refused = entry.refusal.as_ref().is_some_and(|refusal| !refusal.is_transient);
            let is_known = was_refused && is_same && entry.tried == Some(due);
            if let Some((_, _, known)) = &mut entry.found {
                *known = cases;
            }
            if !is_known {
                entry.tried = Some(due);
                let path = entry.path.clone();
                match gate::try_out(&self.with, &self.settings, (&key.1, trial), &path, cases).await {
                    Ok((candidate, report)) => {
                        entry.refusal = None;
                        entry.cases = report.map(|report| (cases, due, report));
                        candidates.insert(key, candidate);
                        return;
                    }
                    Err((refusal, report)) => {
                        if refusal.is_transient {
                            self.lacks = Some(AGAIN);
                        }
                        entry.cases = report.map(|report| (cases, due, report));
                        entry.refusal = Some(refusal);
                    }
                }
            }
        }
        // At a start nothing is live yet: what was live before stands in for what does not pass.
        if entry.live.is_none()
            && !entry.is_shadow
            && let Some(before) = standing.live
            && Some(before) != due
        {
            let path = entry.path.clone();
            let trial = Trial::Archived(before, key.0);
            match gate::try_out(&self.with, &self.settings, (&key.1, trial), &path, None).await {
                Ok((candidate, _)) => drop(candidates.insert(key, candidate)),
                Err((refusal, _)) if refusal.is_transient => self.lacks = Some(AGAIN),
                Err((refusal, _)) => tracing::error!(
                    module = key.1, revision = %before, reason = refusal.reason,
                    "the revision that was live before does not run either"
                ),
            }
        }
    }

    /// Puts together what is live, what passed and what is left; publishes it where it is another chain.
    async fn deploy(&mut self, mut candidates: BTreeMap<Key, Candidate>, removed: Vec<Key>) {
        loop {
            let mut validators = Vec::new();
            let mut mapper = None;
            for (key, entry) in self.entries.iter().filter(|(key, _)| !key.2) {
                let module = match candidates.get(key) {
                    Some(Candidate::Module { module, .. }) => Some(module.clone()),
                    Some(Candidate::Nothing) => None,
                    None => entry.live.as_ref().map(|live| live.module.clone()),
                };
                match key.0 {
                    Stage::Map => mapper = module,
                    _ => validators.extend(module),
                }
            }
            let Some(mapper) = mapper else { return };
            if let Some((key, refusal)) = self.misfit(&validators, &mapper, &candidates) {
                self.refuse(&key, refusal);
                candidates.remove(&key);
                continue;
            }
            let chain = self.with.registry.compose(validators, mapper, &self.pipeline.name);
            let current = self.chain.as_ref().map(ChainSlot::current);
            let is_new = current.as_ref().is_none_or(|current| !is_same_chain(current, &chain));
            let bound = self.preconditions.bind(&self.with.sink, &self.pipeline, &chain).await;
            let tables = match bound {
                Ok(tables) => tables,
                Err(refusal) => {
                    let key = (Stage::Map, self.mapper_name(), false);
                    if candidates.remove(&key).is_some() {
                        self.refuse(&key, refusal);
                        continue;
                    }
                    // What is live does not fit any more, or nobody can be asked: INSERTs say the rest.
                    if refusal.is_transient {
                        self.lacks = Some(AGAIN);
                        for key in candidates.keys().cloned().collect::<Vec<_>>() {
                            self.refuse(&key, refusal.clone());
                        }
                    } else if let Some(entry) = self.entries.get_mut(&key) {
                        entry.refusal = Some(refusal);
                        self.lacks = Some(AGAIN);
                    }
                    return;
                }
            };
            let is_rebound =
                current.as_ref().is_some_and(|current| !gate::are_same_tables(&current.tables, &tables));
            if is_new || is_rebound {
                if let Err(refusal) = self.keep(&chain, &candidates, &removed).await {
                    self.lacks = Some(AGAIN);
                    for key in candidates.keys().cloned().collect::<Vec<_>>() {
                        self.refuse(&key, refusal.clone());
                    }
                    if candidates.is_empty() {
                        tracing::warn!(
                            pipeline = self.pipeline.name,
                            reason = refusal.reason,
                            "a chain waits"
                        );
                        // The rule goes on until its removal can be kept.
                        self.with.metrics.waiting(&self.pipeline.name);
                    }
                    return;
                }
                self.publish(Arc::new(BoundChain { chain: Arc::new(chain), tables }));
            }
            for (key, candidate) in candidates {
                let Some(entry) = self.entries.get_mut(&key) else { continue };
                entry.live = match candidate {
                    Candidate::Module { module, .. } => Some(Live::now(module)),
                    Candidate::Nothing => None,
                };
            }
            return;
        }
    }

    /// A candidate that cannot be in this chain, and why.
    fn misfit(
        &self,
        validators: &[Arc<Module>],
        mapper: &Arc<Module>,
        candidates: &BTreeMap<Key, Candidate>,
    ) -> Option<(Key, Refusal)> {
        let is_candidate = |key: &Key| matches!(candidates.get(key), Some(Candidate::Module { .. }));
        let name = &mapper.identity().name;
        if validators.iter().any(|validator| validator.identity().name == *name) {
            let fault = ModuleFault::SameName;
            let keys = [Stage::Map, Stage::Validate].map(|stage| (stage, name.to_string(), false));
            let key = keys.into_iter().find(is_candidate)?;
            return Some((key, Refusal::of(&fault)));
        }
        if self.pipeline.delivery == Delivery::ExactlyOnce
            && let Some(fault) = super::preconditions::chain_fault(&self.pipeline, validators.len())
        {
            let key = candidates.keys().rev().find(|key| {
                key.0 == Stage::Validate
                    && is_candidate(key)
                    && self.entries.get(*key).is_some_and(|entry| entry.live.is_none())
            });
            return key.map(|key| (key.clone(), Refusal::new(Gate::Tables, fault)));
        }
        None
    }

    fn refuse(&mut self, key: &Key, refusal: Refusal) {
        if refusal.is_transient {
            self.lacks = Some(AGAIN);
        }
        if let Some(entry) = self.entries.get_mut(key) {
            entry.refusal = Some(refusal);
        }
    }

    fn mapper_name(&self) -> String {
        self.entries
            .keys()
            .find(|key| key.0 == Stage::Map && !key.2)
            .map(|key| key.1.clone())
            .unwrap_or_default()
    }

    /// Archives what is new, and keeps what happens.
    async fn keep(
        &self,
        chain: &WasmChain,
        candidates: &BTreeMap<Key, Candidate>,
        removed: &[Key],
    ) -> Result<(), Refusal> {
        let files: Vec<ArchivedModule> = candidates.values().filter_map(Candidate::file).cloned().collect();
        let archived = async {
            self.with.revisions.store(&files).await?;
            self.with.revisions.store_chain(&self.pipeline.name, chain.revision(), chain.modules()).await
        };
        archived.await.map_err(|error| Refusal::by(Gate::Archive, error.retryability(), &error))?;
        let live =
            candidates.iter().filter(|(key, _)| !key.2).map(|(key, candidate)| (key, candidate.revision()));
        let gone = removed.iter().map(|key| (key, None));
        for ((stage, name, _), revision) in live.chain(gone) {
            if self.standings.get(&(*stage, name.clone())).and_then(|standing| standing.live) == revision {
                // Another host said so, or this one before it was started again.
                continue;
            }
            let event = NewEvent {
                event: if revision.is_some() { EventKind::Live } else { EventKind::Removed },
                revision,
                instead_of: None,
                by: self.with.host.clone(),
                reason: String::new(),
            };
            let kept = self.with.deployments.record(&self.pipeline.name, name, *stage, &event).await;
            kept.map_err(|error| Refusal::by(Gate::Archive, error.retryability(), &error))?;
        }
        Ok(())
    }

    fn publish(&mut self, chain: Arc<BoundChain>) {
        tracing::info!(pipeline = self.pipeline.name, chain = %chain.chain.revision(), "chain published");
        match &self.chain {
            Some(slot) => {
                self.retired.push(slot.current());
                slot.publish(chain);
            }
            None => self.chain = Some(ChainSlot::new(chain)),
        }
    }

    /// Lets go of chains that nobody uses any more, where unmapping their code delays nothing.
    fn retire(&mut self) {
        let unused: Vec<_> = self.retired.extract_if(.., |chain| Arc::strong_count(chain) == 1).collect();
        if !unused.is_empty() {
            drop(tokio::task::spawn_blocking(move || drop(unused)));
        }
    }

    /// Says how everything stands: reports, status files, metrics, log.
    async fn tell(&mut self) {
        let name = self.pipeline.name.clone();
        let reports: Vec<ModuleReport> = self.entries.values().map(|entry| entry.report(&name)).collect();
        for ((key, entry), report) in self.entries.iter().zip(&reports) {
            let reason = report.problem.as_ref().map(|problem| problem.reason.clone());
            let news = (report.state, entry.live_revision(), reason.clone());
            if self.shown.get(key) == Some(&news) {
                continue;
            }
            let live = report.live.as_ref().map(|live| live.revision.as_str());
            let found = report.found.as_ref().map(|found| found.revision.as_str());
            self.with.metrics.reloaded(&name, &key.1, report.state);
            let (state, module, file) = (report.state.as_str(), &key.1, &report.file);
            match reason {
                None => tracing::info!(pipeline = name, module, state, live, found, file, "module"),
                Some(reason) => {
                    tracing::warn!(pipeline = name, module, state, live, found, file, reason, "module");
                }
            }
            self.shown.insert(key.clone(), news);
        }
        self.shown.retain(|key, _| self.entries.contains_key(key));
        let states: Vec<_> = reports.iter().map(|report| (report.name.clone(), report.state)).collect();
        self.with.metrics.show(&name, &self.states, &states);
        self.states = states;
        let mut status_files = std::mem::replace(&mut self.status_files, StatusFiles::new(String::new()));
        self.with.reports.send_replace(reports.clone());
        let written = tokio::task::spawn_blocking(move || {
            status_files.write(&reports);
            status_files
        });
        self.status_files = written.await.unwrap_or_else(|_| StatusFiles::new(self.with.host.clone()));
    }
}

/// Whether a chain was live: every one has a mapper.
fn has_run(standings: &Standings) -> bool {
    let was_live = |standing: &Standing| standing.live.is_some() || standing.previous.is_some();
    standings.iter().any(|((stage, _), standing)| *stage == Stage::Map && was_live(standing))
}

/// Whether a hold counts, given the revision of the file.
fn is_in_force(hold: &Hold, found: Option<Revision>) -> bool {
    match hold.kind {
        HoldKind::Pinned => true,
        // A file that cannot be read is not another one.
        HoldKind::RolledBack => found.is_none() || hold.instead_of == found,
    }
}

fn reason_of(hold: &Hold) -> String {
    let what = match (hold.kind, hold.run) {
        (HoldKind::RolledBack, Some(run)) => format!("rolled back to {run}"),
        (HoldKind::RolledBack, None) => "rolled back to no rule at all".to_owned(),
        (HoldKind::Pinned, Some(run)) => format!("pinned to {run}"),
        (HoldKind::Pinned, None) => "pinned to no rule at all".to_owned(),
    };
    let end = match hold.kind {
        HoldKind::RolledBack => "copy a mended file, or release it",
        HoldKind::Pinned => "the file counts again once it is released",
    };
    let why = if hold.reason.is_empty() { String::new() } else { format!(": {}", hold.reason) };
    format!("{what} by {} at {}{why}; {end} (sluice module release)", hold.by, hold.since)
}

fn is_same_chain(bound: &BoundChain, chain: &WasmChain) -> bool {
    bound.chain.revision() == chain.revision()
}
