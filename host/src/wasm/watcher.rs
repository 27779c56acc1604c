//! Watcher: says when the modules of a pipeline may have changed.
//!
//! The system's events make it quick, and a slow poll makes it sure: network mounts and Kubernetes'
//! volumes change without events, and a watch ends with the folder that it is on. What changed is not
//! said; whoever hears of it looks at all files, which are few.
//!
//! State: watches by folder, with the identity of the folder that they are on, and the files that
//! somebody is writing to. A file that is written to is not ripe until it is closed or left alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::folder::ChainSettings;

/// How long files must be left alone before they are looked at.
const SETTLE: Duration = Duration::from_millis(100);
/// After so long without a write, a file counts as whole though nobody closed it.
const ABANDONED: Duration = Duration::from_secs(5);

/// Folders, and what they were when a watch was put on them.
type Watched = BTreeMap<PathBuf, Option<FolderIdentity>>;

/// Device and inode on Unix: another folder under the same path has another.
type FolderIdentity = (u64, u64);

#[derive(Debug, Default)]
struct Seen {
    /// When something happened last that has not been told.
    changed: Mutex<Option<Instant>>,
    /// Files that were written to and not closed since, and when last.
    writing: Mutex<HashMap<PathBuf, Instant>>,
    woken: Notify,
}

/// See the module documentation.
#[derive(Debug)]
pub struct ModuleWatcher {
    watcher: Option<RecommendedWatcher>,
    watched: Watched,
    seen: Arc<Seen>,
}

impl ModuleWatcher {
    /// Watches the folders of a pipeline's modules. Where the system has no events to give, the poll
    /// alone remains; that is logged.
    pub fn start(settings: &ChainSettings) -> Self {
        let seen: Arc<Seen> = Arc::default();
        let heard = seen.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| heard.hear(event));
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(
                    pipeline = settings.pipeline,
                    %error,
                    "no events about module files; changes are found by looking again and again"
                );
            })
            .ok();
        let mapper = settings.mapper.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folders: BTreeSet<PathBuf> =
            settings.validators.iter().cloned().chain(mapper.map(Path::to_path_buf)).collect();
        let watched = folders.into_iter().map(|folder| (folder, None)).collect();
        let mut this = Self { watcher, watched, seen };
        this.renew();
        this
    }

    /// Puts watches on folders that are others than they were, or are there again. Whoever looks at the
    /// files does so after this, so that nothing happens in between unseen.
    pub fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for (folder, known) in &mut self.watched {
            let now = identity(folder);
            if now == *known {
                continue;
            }
            // An error says that the watch has gone with its folder.
            let _ = watcher.unwatch(folder);
            *known = now.filter(|_| match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "cannot watch a folder of modules");
                    false
                }
            });
        }
    }

    /// Waits until something happened to the files and they were left alone since. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let changed = *self.seen.changed.lock().unwrap_or_else(PoisonError::into_inner);
            match changed {
                None => self.seen.woken.notified().await,
                Some(last) if last.elapsed() < SETTLE => tokio::time::sleep(SETTLE - last.elapsed()).await,
                Some(last) => {
                    let mut changed = self.seen.changed.lock().unwrap_or_else(PoisonError::into_inner);
                    // Unless more has happened since.
                    if *changed == Some(last) {
                        *changed = None;
                        return;
                    }
                }
            }
        }
    }

    /// Whether somebody is writing to the file.
    pub fn is_written_to(&self, file: &Path) -> bool {
        let mut writing = self.seen.writing.lock().unwrap_or_else(PoisonError::into_inner);
        writing.retain(|_, last| last.elapsed() < ABANDONED);
        writing.contains_key(file)
    }
}

impl Seen {
    fn hear(&self, event: notify::Result<Event>) {
        let Ok(event) = event else {
            // Events were lost, or a watch broke: look.
            return self.tell();
        };
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => {
                writing.extend(event.paths.iter().map(|path| (path.clone(), Instant::now())));
            }
            // What comes in by a rename is whole, whoever wrote to a file of that name before.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => {
                writing.retain(|path, _| !event.paths.contains(path));
            }
            // Reading, our own first of all.
            EventKind::Access(_) => return,
            _ => {}
        }
        drop(writing);
        if event.paths.is_empty() || event.paths.iter().any(|path| is_of_interest(path)) {
            self.tell();
        }
    }

    fn tell(&self) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.woken.notify_one();
    }
}

/// Everything but what is written here itself: status files, and the names that they have on the way.
fn is_of_interest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    !name.ends_with(".status.json")
}

fn identity(folder: &Path) -> Option<FolderIdentity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().filter(|entry| entry.is_dir()).map(|entry| (entry.dev(), entry.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    const LONG: Duration = Duration::from_secs(30);
    /// Several times what a change needs to be told.
    const QUIET: Duration = Duration::from_millis(600);

    fn watch(folder: &Path) -> ModuleWatcher {
        ModuleWatcher::start(&ChainSettings {
            pipeline: "tests".into(),
            validators: Some(folder.join("rules")),
            mapper: folder.join("rows.wasm"),
            settings: BTreeMap::new(),
            limits: super::super::ModuleLimits::default(),
        })
    }

    async fn told(watcher: &mut ModuleWatcher) {
        tokio::time::timeout(LONG, watcher.changed()).await.expect("a change is told");
    }

    async fn is_quiet(watcher: &mut ModuleWatcher) -> bool {
        tokio::time::timeout(QUIET, watcher.changed()).await.is_err()
    }

    #[tokio::test]
    async fn every_way_in_which_a_file_changes_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        fs::create_dir(&rules).unwrap();
        let mut watcher = watch(folder.path());
        let steps: [(&str, &dyn Fn() -> std::io::Result<()>); 6] = [
            ("create", &|| fs::write(rules.join("a.wasm"), "1")),
            ("overwrite", &|| fs::write(rules.join("a.wasm"), "2")),
            ("rename", &|| fs::rename(rules.join("a.wasm"), rules.join("b.wasm"))),
            ("link", &|| std::os::unix::fs::symlink("b.wasm", rules.join("c.wasm"))),
            ("delete", &|| fs::remove_file(rules.join("b.wasm"))),
            ("mapper", &|| fs::write(folder.path().join("rows.wasm"), "1")),
        ];
        for (name, step) in steps {
            step().unwrap();
            told(&mut watcher).await;
            assert!(is_quiet(&mut watcher).await, "{name} is told twice");
        }
    }

    #[tokio::test]
    async fn reading_and_status_files_are_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        fs::create_dir(&rules).unwrap();
        fs::write(rules.join("a.wasm"), "1").unwrap();
        let mut watcher = watch(folder.path());
        fs::read(rules.join("a.wasm")).unwrap();
        fs::write(rules.join(".a.status.json"), "{}").unwrap();
        fs::rename(rules.join(".a.status.json"), rules.join("a.status.json")).unwrap();
        assert!(is_quiet(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_file_that_somebody_writes_to_is_known_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        fs::create_dir(&rules).unwrap();
        let mut watcher = watch(folder.path());
        let path = rules.join("a.wasm");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"first").unwrap();
        told(&mut watcher).await;
        assert!(watcher.is_written_to(&path));
        drop(file);
        told(&mut watcher).await;
        assert!(!watcher.is_written_to(&path));
    }

    #[tokio::test]
    async fn a_folder_that_comes_back_is_watched_again() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        let mut watcher = watch(folder.path());
        assert!(is_quiet(&mut watcher).await);
        for _ in 0..2 {
            fs::create_dir(&rules).unwrap();
            told(&mut watcher).await;
            watcher.renew();
            fs::write(rules.join("a.wasm"), "1").unwrap();
            told(&mut watcher).await;
            fs::remove_dir_all(&rules).unwrap();
            told(&mut watcher).await;
            watcher.renew();
        }
    }
}
