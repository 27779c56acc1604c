//! What a run leaves: a folder with the events, each at its time, and the logs of everybody.
//!
//! Invariant: what is written is on disk at once, so that a run that hangs or panics leaves it too.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The event log of every run is kept; the rest only of one that failed.
const EVENTS: &str = "events.log";
/// What the brokers logged, one after the other.
const BROKER: &str = "broker.log";

/// See the module documentation.
pub(super) struct Folder {
    path: PathBuf,
    events: File,
    began: Instant,
}

impl Folder {
    /// `target/chaos/SEED`, emptied.
    pub(super) fn new(seed: u64) -> Self {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
        let path = target.join("chaos").join(seed.to_string());
        // It may not be there.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the folder can be made");
        let events = File::create(path.join(EVENTS)).expect("the event log can be made");
        Self { path, events, began: Instant::now() }
    }

    /// A line of the event log.
    pub(super) fn event(&mut self, text: impl std::fmt::Display) {
        let (now, since) = (jiff::Timestamp::now(), self.began.elapsed().as_secs_f64());
        writeln!(self.events, "{now:.3} {since:8.3} {text}").expect("the event log is written");
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file.
    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).expect("written");
    }

    /// Appends the log of a broker that has ended.
    pub(super) fn append_broker_log(path: &Path, log: &Path) {
        let text = std::fs::read(log).unwrap_or_default();
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(&text)).expect("the broker's log is kept");
    }

    /// Where the brokers' logs are.
    pub(super) fn broker_log(&self) -> PathBuf {
        self.file(BROKER)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes everything but the event log.
    pub(super) fn keep_events_only(&self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name() != EVENTS {
                // What cannot be removed stays.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}
