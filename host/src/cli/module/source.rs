//! Source: a module for a command, from a file, with the settings and limits that the configuration or the
//! command line gives it.
//!
//! A configuration is not needed: an analyst's machine may have the file and nothing else. Without one a
//! module has no settings and the default limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::app;
use crate::config::{Config, PipelineConfig};
use crate::domain::module::ArchivedModule;
use crate::domain::verdict::Stage;
use crate::telemetry;
use crate::wasm::{
    ChainSettings, Limits, Module, ModuleFault, ModuleRegistry, SingleModule, WasmMetrics, module_name,
};

/// Looked for where no configuration is named.
const CONFIGURATION: &str = "config/sluice.yaml";

/// Where the settings and limits of a module come from.
#[derive(clap::Args, Debug)]
#[group(id = "module_source")]
pub(super) struct SourceArguments {
    /// Configuration file with the module's settings and limits; config/sluice.yaml, if there is one.
    /// Environment variables SLUICE__SECTION__KEY override it.
    #[arg(long, short, env = "SLUICE_CONFIG")]
    config: Option<PathBuf>,
    /// Name of the module, where a file is called otherwise: settings and limits go by it, and so does the
    /// archive of revisions.
    #[arg(long)]
    name: Option<String>,
    /// Pipeline of the module, where several give it settings.
    #[arg(long, short)]
    pipeline: Option<String>,
    /// Settings in place of those in the configuration: a JSON object, or @FILE with one.
    #[arg(long, value_name = "JSON|@FILE")]
    settings: Option<String>,
}

/// What loads modules for a command.
pub(super) struct Workshop {
    registry: ModuleRegistry,
    config: Option<Config>,
    name: Option<String>,
    pipeline: Option<String>,
    settings: Option<Value>,
}

/// A module that passed the checks that need no database.
pub(super) struct Loaded {
    pub(super) module: Arc<Module>,
    pub(super) file: ArchivedModule,
}

impl Workshop {
    pub(super) fn open(arguments: &SourceArguments) -> Result<Self> {
        let path = match &arguments.config {
            Some(path) => Some(path.clone()),
            None => Some(PathBuf::from(CONFIGURATION)).filter(|path| path.exists()),
        };
        // The modules that it names need not be there.
        let config = path.map(|path| Config::load_without_modules(&path)).transpose()?;
        if let Some(name) = &arguments.pipeline {
            let Some(config) = &config else {
                bail!("--pipeline needs a configuration; name one with --config");
            };
            let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
            if !names.contains(&name.as_str()) {
                bail!("there is no pipeline `{name}`; there is {}", names.join(", "));
            }
        }
        let settings = arguments.settings.as_deref().map(settings).transpose()?;
        let registry =
            ModuleRegistry::new(app::wasm_engine(1)?, WasmMetrics::register(&telemetry::registry())?);
        let SourceArguments { name, pipeline, .. } = arguments;
        Ok(Self { registry, config, name: name.clone(), pipeline: pipeline.clone(), settings })
    }

    /// The name that was given, or that of the file.
    pub(super) fn name(&self, path: &Path) -> Result<String, ModuleFault> {
        self.name.clone().map_or_else(|| module_name(path), Ok)
    }

    /// The name that was given.
    pub(super) fn given_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The configuration, where a command cannot do without.
    pub(super) fn config(&self) -> Result<&Config> {
        self.config.as_ref().ok_or_else(|| {
            anyhow!(
                "this needs a configuration, and there is no {CONFIGURATION} here; name one with --config"
            )
        })
    }

    /// The pipeline that was named, or the only one.
    pub(super) fn pipeline(&self) -> Result<&PipelineConfig> {
        let pipelines = &self.config()?.pipelines;
        match (&self.pipeline, pipelines.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => {
                let names: Vec<&str> = pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
                bail!("there is more than one pipeline; choose with --pipeline: {}", names.join(", "))
            }
            (Some(name), all) => all
                .iter()
                .find(|pipeline| pipeline.name == *name)
                .with_context(|| format!("there is no pipeline `{name}`")),
        }
    }

    /// Reads, compiles and tries a file, as what it is: a validator or a mapper. The outer error is of this
    /// command, the inner one is why the module would be refused.
    pub(super) fn load_file(&self, path: &Path) -> Result<Result<Loaded, ModuleFault>> {
        let name = match self.name(path) {
            Ok(name) => name,
            Err(fault) => return Ok(Err(fault)),
        };
        let settings = self.chain_settings(&name, path)?;
        let file = match settings.read_as(name, path, Stage::Validate) {
            Ok(file) => file,
            Err(ModuleFault::Read(error)) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(self.load(file, &settings))
    }

    /// Compiles and tries a module that was kept, with the settings that it was kept with.
    pub(super) fn load_kept(&self, file: ArchivedModule) -> Result<Result<Loaded, ModuleFault>> {
        let settings = self.chain_settings(&file.name, Path::new(""))?;
        Ok(self.load(file, &settings))
    }

    /// A module by itself, for golden cases and comparisons.
    pub(super) fn single(&self, loaded: &Loaded) -> SingleModule {
        self.registry.single(loaded.module.clone())
    }

    fn load(&self, mut file: ArchivedModule, settings: &ChainSettings) -> Result<Loaded, ModuleFault> {
        let module = match self.registry.load(&file, settings) {
            // Nobody said which it is.
            Err(ModuleFault::WrongWorld { .. }) => {
                file.stage = if file.stage == Stage::Map { Stage::Validate } else { Stage::Map };
                self.registry.load(&file, settings)?
            }
            other => other?,
        };
        Ok(Loaded { module, file })
    }

    /// Settings and limits for the module `name`.
    fn chain_settings(&self, name: &str, path: &Path) -> Result<ChainSettings> {
        let mut chosen = match self.pipeline_of(name)? {
            Some((config, pipeline)) => app::chain_settings(config, pipeline),
            None => ChainSettings {
                pipeline: String::new(),
                validators: None,
                mapper: path.to_owned(),
                settings: BTreeMap::new(),
                limits: self
                    .config
                    .as_ref()
                    .map_or_else(Limits::default, |config| config.modules.clone())
                    .into(),
            },
        };
        if let Some(settings) = &self.settings {
            chosen.settings.insert(name.to_owned(), settings.clone());
        }
        Ok(chosen)
    }

    /// The pipeline that was named, or the one that gives the module settings or limits.
    fn pipeline_of(&self, name: &str) -> Result<Option<(&Config, &PipelineConfig)>> {
        let Some(config) = &self.config else { return Ok(None) };
        if self.pipeline.is_some() {
            return Ok(Some((config, self.pipeline()?)));
        }
        let giving: Vec<&PipelineConfig> =
            config.pipelines.iter().filter(|pipeline| gives(pipeline, name) != (None, None)).collect();
        match giving.as_slice() {
            [] => Ok(None),
            [first, rest @ ..]
                if self.settings.is_some()
                    || rest.iter().all(|other| gives(other, name) == gives(first, name)) =>
            {
                Ok(Some((config, first)))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|pipeline| pipeline.name.as_str()).collect();
                bail!(
                    "pipelines give module {name} different settings or limits; choose with --pipeline: {}",
                    names.join(", ")
                )
            }
        }
    }
}

/// What a pipeline gives a module.
fn gives<'p>(pipeline: &'p PipelineConfig, module: &str) -> (Option<&'p Value>, Option<&'p Limits>) {
    (pipeline.settings.get(module), pipeline.limits.get(module))
}

/// A JSON object, or `@FILE` with one.
fn settings(text: &str) -> Result<Value> {
    let json = match text.strip_prefix('@') {
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read the settings in {file}"))?
        }
        None => text.to_owned(),
    };
    let value: Value = serde_json::from_str(&json).with_context(|| {
        format!("--settings {text} is no JSON; write --settings '{{\"key\": 1}}' or @FILE")
    })?;
    if !value.is_object() {
        bail!("--settings {text} is no JSON object; write --settings '{{\"key\": 1}}' or @FILE");
    }
    Ok(value)
}
