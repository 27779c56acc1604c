//! A look at all module files of a pipeline: what each holds now.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::domain::module::ArchivedModule;
use crate::wasm::{CasesFault, ChainSettings, GoldenCases, ModuleFault, ModuleFile, cases_path};

/// SHA-256 of a file of golden cases, or of why it cannot be read; `None` where there is none.
pub(super) type CasesContent = Option<[u8; 32]>;

/// The golden cases beside a module's file, as they were when the module was read: what is tried is what
/// was found, whoever writes to the file meanwhile.
pub(super) struct CasesFile {
    bytes: Result<Option<Vec<u8>>, CasesFault>,
}

impl CasesFile {
    /// Of a module that brings none, such as an archived one.
    pub(super) fn none() -> Self {
        Self { bytes: Ok(None) }
    }

    pub(super) fn content(&self) -> CasesContent {
        match &self.bytes {
            Ok(None) => None,
            Ok(Some(bytes)) => Some(Sha256::digest(bytes).into()),
            Err(fault) => Some(Sha256::digest(fault.to_string()).into()),
        }
    }

    /// The cases; `None` where there is no file.
    pub(super) fn parse(self) -> Result<Option<GoldenCases>, CasesFault> {
        self.bytes?.map(|bytes| GoldenCases::parse(&bytes)).transpose()
    }
}

/// One file and what it holds.
pub(super) struct Found {
    pub(super) file: ModuleFile,
    pub(super) content: Result<ArchivedModule, ModuleFault>,
    pub(super) cases: CasesFile,
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
            let cases = CasesFile { bytes: GoldenCases::read(&cases_path(&file.path)) };
            Found { file, content, cases }
        });
        Self { found: found.collect(), missing: folder.missing }
    }
}
