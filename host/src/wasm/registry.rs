//! Registry: from files and settings to a chain, everything that is wrong reported at once.
//!
//! State: weak references to the modules that are alive, so that a chain loaded again compiles only
//! what changed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use serde_json::Value;

use crate::domain::module::{ArchivedModule, module_revision};
use crate::domain::verdict::{Revision, Stage};

use super::chain::WasmChain;
use super::engine::WasmEngine;
use super::limits::Limits;
use super::metrics::WasmMetrics;
use super::module::{Module, ModuleFault, canonical_settings};

/// Where the modules of one pipeline are and what they are given.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainSettings {
    /// Name of the pipeline, for metrics and logs.
    pub pipeline: String,
    /// Folder whose every `*.wasm` is a validator, in name order. Hidden files are left alone, and
    /// so are `*.shadow.wasm`, which are reserved. `None` for no validators.
    pub validators: Option<PathBuf>,
    /// The mapper's file.
    pub mapper: PathBuf,
    /// Settings by module name (file name without `.wasm`). A name without a module is allowed,
    /// since removing a validator's file removes the rule; it is logged.
    pub settings: BTreeMap<String, Value>,
    /// What each module may take.
    pub limits: Limits,
}

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
    alive: Mutex<HashMap<(Stage, String, Revision), Weak<Module>>>,
}

impl ModuleRegistry {
    /// An empty registry.
    pub fn new(engine: WasmEngine, metrics: WasmMetrics) -> Self {
        Self { engine, metrics, alive: Mutex::default() }
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
        let mut files = Vec::new();
        if let Some(folder) = &settings.validators {
            match validator_files(folder) {
                Ok(found) => files = found,
                Err(error) => problems.push(LoadProblem { path: folder.clone(), fault: error.into() }),
            }
        }
        let mut validators: Vec<Arc<Module>> = Vec::new();
        for path in files {
            match self.load_file(settings, &path, Stage::Validate) {
                Ok((module, file)) => {
                    validators.push(module);
                    archived.push(file);
                }
                Err(fault) => problems.push(LoadProblem { path, fault }),
            }
        }
        let path = settings.mapper.clone();
        let mapper = match self.load_file(settings, &path, Stage::Map) {
            Ok((module, _))
                if validators.iter().any(|other| other.identity().name == module.identity().name) =>
            {
                problems.push(LoadProblem { path, fault: ModuleFault::SameName });
                None
            }
            Ok((module, file)) => {
                archived.push(file);
                Some(module)
            }
            Err(fault) => {
                problems.push(LoadProblem { path, fault });
                None
            }
        };
        let Some(mapper) = mapper.filter(|_| problems.is_empty()) else {
            return Err(LoadError { problems });
        };
        for name in settings.settings.keys() {
            let mut names = validators.iter().chain([&mapper]).map(|module| &module.identity().name);
            if !names.any(|module| **module == **name) {
                tracing::warn!(
                    pipeline = settings.pipeline,
                    module = name,
                    "settings for a module that is not there"
                );
            }
        }
        Ok((self.chain(validators, mapper, &settings.pipeline), archived))
    }

    /// A chain of archived modules, validators in order and then the mapper, for recovery: it judges
    /// as the chain did that they were archived from, within other `limits`
    /// ([`Limits::for_recovery`]). What is alive is not compiled again. Its metrics are those of the
    /// modules' names in `pipeline`. Blocking, for as long as compiling takes.
    ///
    /// # Errors
    /// Everything that is wrong, not only the first thing; also content that is not what it is kept as.
    pub fn load_archived(
        &self,
        pipeline: &str,
        modules: Vec<ArchivedModule>,
        limits: &Limits,
    ) -> Result<WasmChain, LoadError> {
        let problem = |path: String, fault| LoadProblem { path: path.into(), fault };
        let stages: Vec<_> = modules.iter().map(|module| module.stage).collect();
        let is_chain = stages.split_last().is_some_and(|(last, validators)| {
            *last == Stage::Map && validators.iter().all(|stage| *stage == Stage::Validate)
        });
        if !is_chain {
            return Err(LoadError { problems: vec![problem("archive".to_owned(), ModuleFault::NoChain)] });
        }
        let mut problems = Vec::new();
        let mut loaded = Vec::with_capacity(modules.len());
        for module in modules {
            let path = format!("{} (archived, revision {})", module.name, module.revision);
            match self.load_again(module, limits) {
                Ok(module) => loaded.push(module),
                Err(fault) => problems.push(problem(path, fault)),
            }
        }
        match loaded.pop() {
            Some(mapper) if problems.is_empty() => Ok(self.chain(loaded, mapper, pipeline)),
            _ => Err(LoadError { problems }),
        }
    }

    fn chain(&self, validators: Vec<Arc<Module>>, mapper: Arc<Module>, pipeline: &str) -> WasmChain {
        WasmChain::new(self.engine.clone(), validators, mapper, pipeline, &self.metrics)
    }

    fn load_again(&self, module: ArchivedModule, limits: &Limits) -> Result<Arc<Module>, ModuleFault> {
        let ArchivedModule { revision: recorded, stage, name, bytes, settings } = module;
        let found = module_revision(&bytes, &settings);
        if found != recorded {
            return Err(ModuleFault::OtherRevision { recorded, found });
        }
        // Under whatever name: names are no part of what a module says.
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(
            |((other_stage, _, other), module)| {
                (*other_stage == stage && *other == recorded).then(|| module.upgrade())?
            },
        );
        if let Some(alive) = alive.filter(|alive| alive.limits().at_most(limits)) {
            return Ok(Arc::new(alive.again(&name, limits)));
        }
        // It does not go among those that are alive: there, its limits would have the next load of a
        // chain compile what runs.
        Module::load(&self.engine, &name, stage, &bytes, settings, limits).map(Arc::new)
    }

    fn load_file(
        &self,
        settings: &ChainSettings,
        path: &Path,
        stage: Stage,
    ) -> Result<(Arc<Module>, ArchivedModule), ModuleFault> {
        let name = module_name(path)?;
        let bytes = read_whole(path, settings.limits.file_bytes)?;
        let given = canonical_settings(settings.settings.get(&name).unwrap_or(&Value::Null))?;
        let revision = module_revision(&bytes, &given);
        let file = ArchivedModule { revision, stage, name, bytes, settings: given };
        Ok((self.load(&file, &settings.limits)?, file))
    }

    /// Loads one module, or finds it alive.
    fn load(&self, file: &ArchivedModule, limits: &Limits) -> Result<Arc<Module>, ModuleFault> {
        let ArchivedModule { revision, stage, name, bytes, settings } = file;
        let key = (*stage, name.clone(), *revision);
        let alive = |modules: &HashMap<_, Weak<Module>>| {
            modules.get(&key).and_then(Weak::upgrade).filter(|module| module.limits() == limits)
        };
        if let Some(module) = alive(&self.alive.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(module);
        }
        let module = Arc::new(Module::load(&self.engine, name, *stage, bytes, settings.clone(), limits)?);
        let mut modules = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(key, Arc::downgrade(&module));
        Ok(module)
    }
}

/// Every `*.wasm` of a folder in name order, without hidden files and reserved names.
fn validator_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text.ends_with(".wasm") && !text.starts_with('.') && !text.ends_with(".shadow.wasm") {
            files.push(folder.join(&name));
        }
    }
    files.sort();
    Ok(files)
}

/// A module's name is its file's, without `.wasm`; it goes into headers and labels.
fn module_name(path: &Path) -> Result<String, ModuleFault> {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    if name.is_empty() || name.len() > 128 || name.contains(char::is_control) {
        return Err(ModuleFault::Name);
    }
    Ok(name.to_owned())
}

/// Reads a file that must not grow past `limit`, and notices one that is still being written.
fn read_whole(path: &Path, limit: usize) -> Result<Bytes, ModuleFault> {
    let mut file = std::fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ModuleFault::NotAFile);
    }
    let mut bytes = Vec::new();
    (&mut file).take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(ModuleFault::TooLarge { limit });
    }
    if file.metadata()?.len() != bytes.len() as u64 {
        return Err(ModuleFault::Growing);
    }
    Ok(bytes.into())
}
