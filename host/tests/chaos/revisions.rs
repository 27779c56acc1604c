//! Revisions of the purchase modules that differ in identity and not in what they do: a custom section
//! at the end of a WebAssembly module changes its bytes alone, and a tolerance that no test record comes
//! near changes its settings alone.

use std::path::{Path, PathBuf};

use crate::support::guests::purchase_modules;
use crate::support::sluice::Configuration;

/// How many there are.
pub(super) const COUNT: usize = 4;

/// A folder of module folders, one a revision.
pub(super) struct Revisions {
    folder: tempfile::TempDir,
}

impl Revisions {
    /// Builds the modules, if need be, and changes them.
    pub(super) fn build() -> Self {
        let (source, folder) = (purchase_modules(), tempfile::tempdir().expect("a folder"));
        for revision in 0..COUNT {
            let target = folder.path().join(revision.to_string());
            std::fs::create_dir_all(target.join("validators")).expect("a folder");
            // Of the four, each differs from each: in the rules, in the mapper, or in both.
            copy(&source, &target, "validators/purchase-rules.wasm", revision & 1);
            copy(&source, &target, "purchase-rows.wasm", revision >> 1);
        }
        Self { folder }
    }

    /// The configuration with this revision of the modules.
    pub(super) fn configure(&self, configuration: Configuration, revision: usize) -> Configuration {
        let folder = self.folder.path().join(revision.to_string());
        let path = |name: &str| folder.join(name).display().to_string();
        let tolerance = (300 + revision).to_string();
        configuration
            .set("PIPELINES__PURCHASES__VALIDATORS", &path("validators"))
            .set("PIPELINES__PURCHASES__MAPPER", &path("purchase-rows.wasm"))
            .set("PIPELINES__PURCHASES__SETTINGS__PURCHASE_RULES__FUTURE_TOLERANCE_SECONDS", &tolerance)
    }
}

fn copy(source: &Path, target: &Path, name: &str, mark: usize) {
    let from: PathBuf = source.join(name);
    let mut bytes = std::fs::read(&from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    if mark > 0 {
        // Section 0, its size, the length of its name, its name, its content.
        bytes.extend([0, 7, 5]);
        bytes.extend(b"chaos");
        bytes.push(u8::try_from(mark).expect("a small number"));
    }
    std::fs::write(target.join(name), bytes).expect("written");
}
