//! Registry: from files and settings to a chain, everything that is wrong reported at once.
//!
//! State: weak references to the modules that are alive, so that a chain loaded again compiles only
//! what changed, and to the tallies and the shadows of those that run.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domain::module::{ArchivedModule, module_revision};
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::modules::ShadowReport;
use crate::pipeline::ports::ModuleIdentity;

use super::chain::{Attached, SingleModule, WasmChain};
use super::engine::WasmEngine;
use super::folder::{ChainSettings, ModuleFile};
use super::limits::{Limits, ModuleLimits};
use super::metrics::WasmMetrics;
use super::module::{Module, ModuleFault};
use super::shadow::Shadows;
use super::tally::{Tallies, Tally};

/// Part of one core that shadows get where nothing else is said.
const SHADOW_SHARE: f64 = 0.1;

/// One thing that keeps a chain from loading.
#[derive(Debug)]
pub struct LoadProblem {
    /// File or folder.
    pub path: PathBuf,
    /// What is wrong with it and what to do.
    pub fault: ModuleFault,
}

impl fmt::Display for LoadProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "module {} {}", self.path.display(), self.fault)
    }
}

/// Everything that keeps a chain from loading.
#[derive(Debug, thiserror::Error)]
pub struct LoadError {
    /// At least one, in the order in which records meet the modules.
    pub problems: Vec<LoadProblem>,
    /// Modules that passed: as long as somebody has them, another try does not compile them again.
    pub passed: Vec<Arc<Module>>,
}

impl LoadError {
    /// Whether another try may succeed with the files as they are.
    pub fn retryability(&self) -> Retryability {
        let is_permanent = |problem: &LoadProblem| problem.fault.retryability() == Retryability::Permanent;
        if self.problems.iter().any(is_permanent) { Retryability::Permanent } else { Retryability::Retry }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            write!(formatter, "{}{problem}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Loads modules and puts chains together. One for the process.
#[derive(Debug)]
pub struct ModuleRegistry {
    engine: WasmEngine,
    metrics: WasmMetrics,
    alive: Mutex<HashMap<Key, Weak<Module>>>,
    tallies: Tallies,
    shadows: Shadows,
}

/// What makes a module the same: pipelines may give one file other limits, and each keeps its own.
type Key = (Stage, String, Revision, Limits);

impl ModuleRegistry {
    /// An empty registry.
    pub fn new(engine: WasmEngine, metrics: WasmMetrics) -> Self {
        Self {
            engine: engine.counting(metrics.compiling()),
            metrics,
            alive: Mutex::default(),
            tallies: Tallies::default(),
            shadows: Shadows::new(SHADOW_SHARE),
        }
    }

    /// The same with another part of one core for all shadows together; it is above 0, and 0.1 otherwise.
    #[must_use]
    pub fn with_shadow_share(self, share: f64) -> Self {
        Self { shadows: Shadows::new(share), ..self }
    }

    /// Loads every module of a pipeline. Blocking, for as long as compiling takes.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing.
    pub fn load_chain(&self, settings: &ChainSettings) -> Result<WasmChain, LoadError> {
        self.load_chain_and_files(settings).map(|(chain, _)| chain)
    }

    /// As [`Self::load_chain`], with what the archive keeps of each module, in the order in which
    /// records meet them. The chain was made of these very bytes: the files may be others by now, so
    /// what is archived must not be read again. Nothing else holds on to them, so their memory (up to
    /// [`Limits::file_bytes`] a module) is free once the caller has archived them.
    ///
    /// # Errors
    /// As [`Self::load_chain`].
    pub fn load_chain_and_files(
        &self,
        settings: &ChainSettings,
    ) -> Result<(WasmChain, Vec<ArchivedModule>), LoadError> {
        let mut problems = Vec::new();
        let mut archived = Vec::new();
        let mut modules: Vec<Arc<Module>> = Vec::new();
        let folder = settings.folder();
        if let Some((path, error)) = folder.missing {
            problems.push(LoadProblem { path, fault: error.into() });
        }
        for ModuleFile { stage, path, .. } in folder.files.into_iter().filter(|file| !file.is_shadow) {
            let loaded = settings.read(&path, stage).and_then(|file| Ok((self.load(&file, settings)?, file)));
            match loaded {
                Ok((module, _))
                    if modules.iter().any(|other| other.identity().name == module.identity().name) =>
                {
                    problems.push(LoadProblem { path, fault: ModuleFault::SameName });
                }
                Ok((module, file)) => {
                    modules.push(module);
                    archived.push(file);
                }
                Err(fault) => problems.push(LoadProblem { path, fault }),
            }
        }
        let is_mapper = |module: &mut Arc<Module>| module.identity().stage == Stage::Map;
        let Some(mapper) = modules.pop_if(|module| problems.is_empty() && is_mapper(module)) else {
            return Err(LoadError { problems, passed: modules });
        };
        settings.warn_of_strangers(modules.iter().chain([&mapper]).map(|module| &*module.identity().name));
        Ok((self.compose(modules, mapper, &settings.pipeline), archived))
    }

    /// A chain of archived modules, validators in order and then the mapper, for recovery: it judges
    /// as the chain did that they were archived from, within other `limits`
    /// ([`ModuleLimits::for_recovery`]), which go by the names that they are archived under. What is alive is not compiled again. Its metrics are those of the
    /// modules' names in `pipeline`. Blocking, for as long as compiling takes.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing; also content that is not what it is kept as.
    pub fn load_archived(
        &self,
        pipeline: &str,
        modules: Vec<ArchivedModule>,
        limits: &ModuleLimits,
    ) -> Result<WasmChain, LoadError> {
        let problem = |path: String, fault| LoadProblem { path: path.into(), fault };
        let stages: Vec<_> = modules.iter().map(|module| module.stage).collect();
        let is_chain = stages.split_last().is_some_and(|(last, validators)| {
            *last == Stage::Map && validators.iter().all(|stage| *stage == Stage::Validate)
        });
        if !is_chain {
            let problems = vec![problem("archive".to_owned(), ModuleFault::NoChain)];
            return Err(LoadError { problems, passed: Vec::new() });
        }
        let mut problems = Vec::new();
        let mut loaded = Vec::with_capacity(modules.len());
        for module in modules {
            let path = format!("{} (archived, revision {})", module.name, module.revision);
            let limits = limits.of(&module.name).clone();
            match self.load_again(module, &limits) {
                Ok(module) => loaded.push(module),
                Err(fault) => problems.push(problem(path, fault)),
            }
        }
        match loaded.pop() {
            Some(mapper) if problems.is_empty() => {
                // What is judged again was counted, and shown to shadows, when it was judged first.
                let attached = |_: &ModuleIdentity| Attached::default();
                Ok(WasmChain::new(self.engine.clone(), loaded, mapper, pipeline, &self.metrics, attached))
            }
            mapper => {
                loaded.extend(mapper);
                Err(LoadError { problems, passed: loaded })
            }
        }
    }

    /// A chain of `validators`, in order, and `mapper`; its metrics are those of `pipeline`.
    pub fn compose(&self, validators: Vec<Arc<Module>>, mapper: Arc<Module>, pipeline: &str) -> WasmChain {
        let attached = |module: &ModuleIdentity| Attached {
            tally: self.tally(pipeline, module),
            shadow: self.shadows.slot(pipeline, module.stage, &module.name),
        };
        WasmChain::new(self.engine.clone(), validators, mapper, pipeline, &self.metrics, attached)
    }

    /// What became of the records that the chains of `pipeline` showed to a revision of a module.
    pub fn tally(&self, pipeline: &str, module: &ModuleIdentity) -> Arc<Tally> {
        self.tallies.of(pipeline, module)
    }

    /// `module` on its own, for golden cases and comparisons.
    pub fn single(&self, module: Arc<Module>) -> SingleModule {
        SingleModule::new(self.engine.clone(), module, &self.metrics)
    }

    /// Runs `shadow` beside `live`, which the chain of `pipeline` has, from its next chunk on. Where these
    /// two are compared already, that goes on; otherwise the comparison begins anew.
    ///
    /// # Errors
    /// When the system refuses the thread that runs shadows.
    pub fn shadow(&self, pipeline: &str, live: &Module, shadow: Arc<Module>) -> std::io::Result<()> {
        self.shadows.set(pipeline, live, self.single(shadow), &self.metrics)
    }

    /// Ends the shadow of a module, if it has one.
    pub fn end_shadow(&self, pipeline: &str, stage: Stage, name: &Arc<str>) {
        self.shadows.unset(pipeline, stage, name);
    }

    /// How the shadow of a module compares so far; none where it has none.
    pub fn shadow_report(&self, pipeline: &str, stage: Stage, name: &Arc<str>) -> Option<ShadowReport> {
        self.shadows.report(pipeline, stage, name)
    }

    fn load_again(&self, module: ArchivedModule, limits: &Limits) -> Result<Arc<Module>, ModuleFault> {
        let ArchivedModule { revision: recorded, stage, name, bytes, settings } = module;
        let found = module_revision(&bytes, &settings);
        if found != recorded {
            return Err(ModuleFault::OtherRevision { recorded, found });
        }
        if let Some(alive) = self.alive(stage, recorded, |alive| alive.at_most(limits)) {
            return Ok(Arc::new(alive.again(&name, limits)));
        }
        // It does not go among those that are alive: nothing but this batch has its limits.
        Module::load(&self.engine, &name, stage, &bytes, settings, limits).map(Arc::new)
    }

    /// Loads one module, or finds it alive. Blocking, for as long as compiling takes.
    ///
    /// # Errors
    /// What makes it unfit, with the cure.
    pub fn load(&self, file: &ArchivedModule, settings: &ChainSettings) -> Result<Arc<Module>, ModuleFault> {
        let limits = settings.limits.of(&file.name);
        let ArchivedModule { revision, stage, name, bytes, settings } = file;
        let key = (*stage, name.clone(), *revision, limits.clone());
        let alive =
            self.alive.lock().unwrap_or_else(PoisonError::into_inner).get(&key).and_then(Weak::upgrade);
        if let Some(module) = alive {
            return Ok(module);
        }
        let compiled = self.alive(*stage, *revision, |_| bytes.len() <= limits.file_bytes);
        let module = match compiled {
            Some(module) => module.within(&self.engine, name, limits),
            None => Module::load(&self.engine, name, *stage, bytes, settings.clone(), limits),
        };
        let module = Arc::new(module?);
        let mut modules = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(key, Arc::downgrade(&module));
        Ok(module)
    }

    /// A module that is alive, under whatever name (names are no part of what a module says), and with
    /// limits that will do.
    fn alive(
        &self,
        stage: Stage,
        revision: Revision,
        will_do: impl Fn(&Limits) -> bool,
    ) -> Option<Arc<Module>> {
        let modules = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        modules.iter().find_map(|((other_stage, _, other, limits), module)| {
            (*other_stage == stage && *other == revision && will_do(limits)).then(|| module.upgrade())?
        })
    }
}
