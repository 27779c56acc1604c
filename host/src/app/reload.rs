//! Reload: from the files of a pipeline's modules, and what was decided about them, to the chain that new
//! chunks meet.
//!
//! A pass looks at all files (`scan.rs`), decides for each module which revision is due (the file's, unless
//! one is held in its place; `due.rs`), takes each that is not live yet through the gate (`gate.rs`), and
//! publishes one new chain of everything that passed and of what was live before for everything that did not
//! (`deploy.rs`). Then it says how everything stands (`tell.rs`). Between passes it looks how fresh revisions
//! do (`breaker.rs`). Passes are made when the watcher says that
//! files changed, when an operator orders something, when something that a pass lacked may be there again,
//! and every `modules.poll`, which also notices what other hosts decided and what became of the tables.
//!
//! State: an entry a module, the chain of the moment, and chains that were published before and may still
//! be in use. Invariants:
//! - what is published passed every check, is archived, and is kept as an event, before a record meets it;
//! - a file that does not pass takes nothing away: the revision before it goes on;
//! - after a restart the same revisions are live: what the file cannot give comes out of the archive.

mod breaker;
mod deploy;
mod due;
mod entry;
mod gate;
mod metrics;
mod orders;
mod scan;
mod shadows;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::deployments::{Deployments, DeploymentsError, Standings};
use crate::clickhouse::sink::ClickHouseSink;
use crate::config::PipelineConfig;
use crate::domain::deployment::Standing;
use crate::domain::retry::Retryability;
use crate::domain::row::Output;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::binding::{BoundChain, ChainSlot};
use crate::pipeline::modules::{ModuleOrder, ModuleReport, ModuleState};
use crate::wasm::{ChainSettings, LoadError, Module, ModuleRegistry, ModuleWatcher, StatusFiles};

use entry::{Entry, Refusal};
use scan::Scan;

pub(super) use gate::Preconditions;
pub(super) use metrics::ReloadMetrics;

/// Wait after a pass that lacked something, before the next.
const AGAIN: Duration = Duration::from_secs(1);
/// The same where a file was still being written.
const SOON: Duration = Duration::from_millis(200);
/// So many looks that no event asked for, and files are read that look as before.
const WHOLE_LOOK: u32 = 12;

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
    shadowed: Vec<shadows::Shadowed>,
    due: Instant,
    /// Looks that no event asked for.
    looks: u32,
    /// When it was made: the breaker's times begin here.
    started: Instant,
    /// No chain has been published yet.
    is_start: bool,
    /// Rules that were live and whose files are gone, until that is kept.
    removed: BTreeSet<Key>,
    departed: breaker::Departed,
    /// Until when the breaker rolls nothing back.
    rest: Instant,
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
            shadowed: Vec::new(),
            due: Instant::now(),
            looks: 0,
            started: Instant::now(),
            is_start: true,
            removed: BTreeSet::new(),
            departed: breaker::Departed::default(),
            rest: Instant::now(),
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
        let mut looks = tokio::time::interval(breaker::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            // All of them are cancel-safe; what is not taken in one round is in the next.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.watcher.changed() => self.read_all(),
                () = tokio::time::sleep_until(due.into()) => {
                    self.looks = self.looks.wrapping_add(1);
                    if self.looks.is_multiple_of(WHOLE_LOOK) {
                        self.read_all();
                    }
                    self.refresh().await;
                }
                _ = looks.tick(), if self.has_breaker() => {
                    self.look().await;
                    continue;
                }
                Some(order) = orders.recv() => {
                    self.obey(order).await;
                    continue;
                }
            }
            self.pass().await;
        }
    }

    /// Has the next pass read every file, whatever it looks like.
    fn read_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.seen = None;
        }
    }

    /// Files that need not be read while they look like this.
    fn settled(&self) -> BTreeMap<PathBuf, scan::Stamp> {
        let is_held = |key: &Key, entry: &Entry| {
            let standing = self.standings.get(&(key.0, key.1.clone()));
            standing.is_some_and(|standing| standing.hold_against(entry.live_revision()).is_some())
        };
        let settled = self.entries.iter().filter(|(key, entry)| entry.is_settled() && !is_held(key, entry));
        settled.filter_map(|(_, entry)| Some((entry.path.clone(), entry.seen?))).collect()
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
        let (settings, settled) = (self.settings.clone(), self.settled());
        let scan = match tokio::task::spawn_blocking(move || Scan::take(&settings, &settled)).await {
            Ok(scan) => scan,
            Err(error) => {
                tracing::error!(%error, "looking at module files failed");
                self.due = Instant::now() + AGAIN;
                return;
            }
        };
        self.take_note(&scan);
        let candidates = self.try_out(scan.found).await;
        self.deploy(candidates).await;
        self.pair_shadows();
        self.tell().await;
        self.retire();
        self.due = Instant::now() + self.lacks.map_or(self.with.poll, |wait| wait.min(self.with.poll));
    }
}

/// Whether a chain was live: every one has a mapper.
fn has_run(standings: &Standings) -> bool {
    let was_live = |standing: &Standing| standing.live.is_some() || standing.previous.is_some();
    standings.iter().any(|((stage, _), standing)| *stage == Stage::Map && was_live(standing))
}
