//! Status file: `name.status.json` beside `name.wasm`, which is where an analyst looks.
//!
//! State: what was written last, so that a file is written when something new is to be said or somebody
//! removed it, and not otherwise. It is written under a hidden name and renamed, so that nobody reads
//! half of one. A folder that cannot be written to costs the files and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::pipeline::modules::ModuleReport;

/// End of a status file's name.
const STATUS: &str = ".status.json";

/// What stands in a file: the report, and who wrote it.
#[derive(Serialize)]
struct Content<'a> {
    #[serde(flatten)]
    report: &'a ModuleReport,
    /// Name of the process; hosts that share a folder share its status files.
    host: &'a str,
}

/// The status files of one pipeline.
#[derive(Debug)]
pub struct StatusFiles {
    host: String,
    written: BTreeMap<PathBuf, String>,
    /// Why a folder could not be written to; said once.
    refused: BTreeMap<PathBuf, io::ErrorKind>,
}

impl StatusFiles {
    /// Of the process `host`.
    pub fn new(host: String) -> Self {
        Self { host, written: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Writes what is new, and removes the files of modules that are gone. Blocking.
    pub fn write(&mut self, reports: &[ModuleReport]) {
        let mut due: BTreeMap<PathBuf, String> = BTreeMap::new();
        for report in reports {
            let content = Content { report, host: &self.host };
            match serde_json::to_string_pretty(&content) {
                Ok(text) => drop(due.insert(path_of(Path::new(&report.file)), text + "\n")),
                Err(error) => tracing::error!(module = report.name, %error, "its status cannot be written"),
            }
        }
        for path in self.written.keys().filter(|path| !due.contains_key(*path)) {
            // An error says that somebody was faster, or that it could not be written either.
            let _ = std::fs::remove_file(path);
        }
        self.written.retain(|path, _| due.contains_key(path));
        for (path, text) in due {
            if self.written.get(&path) == Some(&text) && path.exists() {
                continue;
            }
            let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
            match replace(&path, &text) {
                Ok(()) => {
                    self.refused.remove(&folder);
                    self.written.insert(path, text);
                }
                Err(error) if self.refused.get(&folder) == Some(&error.kind()) => {}
                Err(error) => {
                    tracing::warn!(
                        file = %path.display(), %error,
                        "status files of modules cannot be written here; see /modules of the admin server instead"
                    );
                    self.refused.insert(folder, error.kind());
                }
            }
        }
    }
}

/// `rules/a.wasm` has its status in `rules/a.status.json`, `a.shadow.wasm` in `a.shadow.status.json`.
fn path_of(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}{STATUS}"))
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".sluice-").suffix(STATUS).tempfile_in(folder)?;
    std::fs::write(file.path(), text)?;
    // Whoever may read the folder may read it.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Stage;
    use crate::pipeline::modules::{ModuleState, Problem};

    fn report(folder: &Path, name: &str, reason: Option<&str>) -> ModuleReport {
        ModuleReport {
            pipeline: "purchases".into(),
            name: name.into(),
            stage: Stage::Validate,
            file: folder.join(format!("{name}.wasm")).display().to_string(),
            is_shadow: false,
            state: if reason.is_some() { ModuleState::Refused } else { ModuleState::Live },
            live: None,
            found: None,
            cases: None,
            problem: reason.map(|reason| Problem { gate: None, reason: reason.into() }),
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_says_what_its_module_is_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut status = StatusFiles::new("first".into());
        status.write(&[
            report(folder.path(), "a", Some("is not WebAssembly")),
            report(folder.path(), "b", None),
        ]);
        assert_eq!(files(folder.path()), ["a.status.json", "b.status.json"]);
        let text = std::fs::read_to_string(folder.path().join("a.status.json")).unwrap();
        let content: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&content["state"], &content["host"]), (&"refused".into(), &"first".into()));
        assert_eq!(content["problem"]["reason"], "is not WebAssembly");

        status.write(&[report(folder.path(), "a", None)]);
        assert_eq!(files(folder.path()), ["a.status.json"]);
        let text = std::fs::read_to_string(folder.path().join("a.status.json")).unwrap();
        assert!(text.contains(r#""state": "live""#), "{text}");
    }

    #[test]
    fn a_file_that_somebody_removed_is_written_again_and_one_that_says_it_all_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.status.json");
        let mut status = StatusFiles::new("first".into());
        let reports = [report(folder.path(), "a", None)];
        status.write(&reports);
        std::fs::remove_file(&path).unwrap();
        status.write(&reports);
        std::fs::write(&path, "another host's").unwrap();
        status.write(&reports);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "another host's");
    }

    #[test]
    fn a_folder_that_is_not_there_costs_the_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let mut status = StatusFiles::new("first".into());
        status.write(&[report(&gone, "a", None)]);
        std::fs::create_dir(&gone).unwrap();
        status.write(&[report(&gone, "a", None)]);
        assert_eq!(files(&gone), ["a.status.json"]);
    }
}
