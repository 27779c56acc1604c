//! Folder: which module files a pipeline has, and what one of them holds.
//!
//! A validator is a `*.wasm` in the folder of validators, in name order; the mapper is one file. A
//! `*.shadow.wasm` beside either is tried without effect. Names that begin with a dot are left alone:
//! they are what copying tools and Kubernetes' volumes make on the way.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use crate::domain::module::{ArchivedModule, module_revision};
use crate::domain::verdict::Stage;

use super::limits::ModuleLimits;
use super::module::{ModuleFault, canonical_settings};

/// End of a module's file name.
const MODULE: &str = ".wasm";
/// End of a shadow's.
const SHADOW: &str = ".shadow.wasm";
/// Longest name of a module in bytes.
const NAME_BYTES: usize = 128;

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
    pub limits: ModuleLimits,
}

/// A file that is a module, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// File name without `.wasm` and `.shadow.wasm`.
    pub name: String,
    /// `Validate` or `Map`.
    pub stage: Stage,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is tried beside the module of its name.
    pub is_shadow: bool,
}

/// What a pipeline has of module files.
#[derive(Debug)]
pub struct ModuleFolder {
    /// Validators in name order, then the mapper (whether its file is there or not), shadows among them.
    pub files: Vec<ModuleFile>,
    /// The folder of validators, and why it could not be listed; it has no files above then.
    pub missing: Option<(PathBuf, std::io::Error)>,
}

impl ChainSettings {
    /// Looks for files. Blocking.
    pub fn folder(&self) -> ModuleFolder {
        let mut files = Vec::new();
        let mut missing = None;
        if let Some(folder) = &self.validators {
            match validators(folder) {
                Ok(found) => files = found,
                Err(error) => missing = Some((folder.clone(), error)),
            }
        }
        let name =
            self.mapper.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let shadow = self.mapper.with_file_name(format!("{name}{SHADOW}"));
        let file = |path, is_shadow| ModuleFile { name: name.clone(), stage: Stage::Map, path, is_shadow };
        if shadow.exists() {
            files.push(file(shadow, true));
        }
        files.push(file(self.mapper.clone(), false));
        ModuleFolder { files, missing }
    }

    /// Reads a module's file whole, with its settings. Blocking.
    ///
    /// # Errors
    /// When it cannot be read, is too large or is still being written, or its name or settings cannot be.
    pub fn read(&self, path: &Path, stage: Stage) -> Result<ArchivedModule, ModuleFault> {
        self.read_as(module_name(path)?, path, stage)
    }

    /// Reads a file as that of module `name`, whatever the file is called. Blocking.
    ///
    /// # Errors
    /// As those of [`Self::read`].
    pub fn read_as(&self, name: String, path: &Path, stage: Stage) -> Result<ArchivedModule, ModuleFault> {
        let bytes = read_whole(path, self.limits.of(&name).file_bytes)?;
        let settings = canonical_settings(self.settings.get(&name).unwrap_or(&Value::Null))?;
        Ok(ArchivedModule { revision: module_revision(&bytes, &settings), stage, name, bytes, settings })
    }

    /// Says of settings and limits for modules that are not among `names` that they have no effect.
    pub fn warn_of_strangers<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) {
        for module in self.settings.keys() {
            if !names.clone().any(|name| name == module) {
                tracing::warn!(pipeline = self.pipeline, module, "settings for a module that is not there");
            }
        }
        for module in self.limits.by_module.keys() {
            if !names.clone().any(|name| name == module) {
                tracing::warn!(pipeline = self.pipeline, module, "limits for a module that is not there");
            }
        }
    }
}

/// Every module file of a folder in name order, shadows among them.
fn validators(folder: &Path) -> std::io::Result<Vec<ModuleFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let file_name = entry?.file_name();
        let text = file_name.to_string_lossy();
        let Some(stem) = text.strip_suffix(MODULE).filter(|_| !text.starts_with('.')) else { continue };
        let shadow = text.strip_suffix(SHADOW);
        files.push(ModuleFile {
            name: shadow.unwrap_or(stem).to_owned(),
            stage: Stage::Validate,
            path: folder.join(&file_name),
            is_shadow: shadow.is_some(),
        });
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// A module's name is its file's, without `.wasm`; it goes into headers and labels.
///
/// # Errors
/// When the file's name cannot be one.
pub fn module_name(path: &Path) -> Result<String, ModuleFault> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(SHADOW).or(name.strip_suffix(MODULE)).unwrap_or(name);
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(char::is_control) {
        return Err(ModuleFault::Name);
    }
    Ok(name.to_owned())
}

/// Reads a file that must not grow past `limit`, and notices one that is still being written.
fn read_whole(path: &Path, limit: usize) -> Result<Bytes, ModuleFault> {
    // Before it is opened: opening a pipe waits for somebody to write to it.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(ModuleFault::NotAFile);
    }
    if found.len() > limit as u64 {
        return Err(ModuleFault::TooLarge { limit });
    }
    let mut file = std::fs::File::open(path)?;
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
