//! A look at all module files of a pipeline: what each holds now.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::domain::module::ArchivedModule;
use crate::wasm::{ChainSettings, ModuleFault, ModuleFile};

/// SHA-256 of a file of golden cases; `None` where there is none.
pub(super) type CasesContent = Option<[u8; 32]>;

/// One file and what it holds.
pub(super) struct Found {
    pub(super) file: ModuleFile,
    pub(super) content: Result<ArchivedModule, ModuleFault>,
    pub(super) cases: CasesContent,
}

/// All files at one moment.
pub(super) struct Scan {
    /// In the order in which records meet the modules.
    pub(super) found: Vec<Found>,
    /// Why the folder of validators could not be listed; nothing is known of them then.
    pub(super) missing: Option<(PathBuf, std::io::Error)>,
}

impl Scan {
    /// Reads everything. Blocking.
    pub(super) fn take(settings: &ChainSettings) -> Self {
        let folder = settings.folder();
        let found = folder.files.into_iter().map(|file| {
            let content = settings.read(&file.path, file.stage);
            let cases = std::fs::read(cases_path(&file.path)).ok().map(|bytes| Sha256::digest(bytes).into());
            Found { file, content, cases }
        });
        Self { found: found.collect(), missing: folder.missing }
    }
}

/// Golden cases of `name.wasm` are in `name.cases.jsonl` beside it.
pub(super) fn cases_path(module: &std::path::Path) -> PathBuf {
    module.with_extension("cases.jsonl")
}
