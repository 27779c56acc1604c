//! Log: the lines of modules, in the host's own log.
//!
//! It is all that a module may import, and it gives nothing back: neither time nor an outcome. What a
//! module writes is bounded in length and number and cannot pass for the host's own lines: control
//! characters are replaced, and each line carries module, revision and the target `sluice::module`.
//!
//! State: a [`ModuleLog`] a module and chain, shared by its instances: tokens for lines, and how many
//! lines were dropped for want of one. A line that is dropped is not even read.
//!
//! Lines of `init` are shown when a module is tried, not for each instance: they are the same each time.
//! Lines of a second run, in recovery, are not shown: they were when the record was judged first.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{AtomicU64, GenericCounter};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

use crate::domain::answer::clean;
use crate::pipeline::ports::ModuleIdentity;

use super::bindings::log::Level;
use super::instance::InstanceState;

/// The interface, without its version.
pub(super) const LOG_INTERFACE: &str = "sluice:module/log";
/// Longest line in bytes.
const LINE_BYTES: usize = 1024;
/// Lines a second that a module may write for long.
const LINES_A_SECOND: u32 = 10;
/// Lines that it may write at once, after it was silent.
const BURST: u32 = 50;
/// How often the log says that lines are dropped.
const PERIOD: Duration = Duration::from_secs(60);

/// Where the lines of one module go.
#[derive(Debug)]
pub(super) struct ModuleLog {
    /// None while the module is tried.
    pipeline: Option<Arc<str>>,
    module: ModuleIdentity,
    dropped: Option<GenericCounter<AtomicU64>>,
    rate: Mutex<Rate>,
}

impl ModuleLog {
    /// For the module of a pipeline; `dropped` counts the lines that are not shown.
    pub(super) fn new(
        pipeline: &str,
        module: &ModuleIdentity,
        dropped: GenericCounter<AtomicU64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            pipeline: Some(pipeline.into()),
            module: module.clone(),
            dropped: Some(dropped),
            rate: Mutex::default(),
        })
    }

    /// For a module on trial.
    pub(super) fn trial(module: &ModuleIdentity) -> Arc<Self> {
        Arc::new(Self { pipeline: None, module: module.clone(), dropped: None, rate: Mutex::default() })
    }

    /// Shows a line, or drops it unread.
    fn write<'a>(&self, level: Level, now: Instant, line: impl FnOnce() -> Cow<'a, str>) {
        let is_shown = match level {
            Level::Debug => tracing::enabled!(target: "sluice::module", tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(target: "sluice::module", tracing::Level::INFO),
            Level::Warn => tracing::enabled!(target: "sluice::module", tracing::Level::WARN),
            Level::Error => tracing::enabled!(target: "sluice::module", tracing::Level::ERROR),
        };
        if !is_shown {
            return;
        }
        let admission = self.rate.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
        let pipeline = self.pipeline.as_deref();
        let ModuleIdentity { name: module, revision, .. } = &self.module;
        match admission {
            Admission::Shown => {
                let text = shown(&line());
                macro_rules! event {
                    ($level:ident) => {
                        tracing::$level!(target: "sluice::module", pipeline, %module, %revision, "{text}")
                    };
                }
                match level {
                    Level::Debug => event!(debug),
                    Level::Info => event!(info),
                    Level::Warn => event!(warn),
                    Level::Error => event!(error),
                }
            }
            Admission::Dropped { say } => {
                if let Some(counter) = &self.dropped {
                    counter.inc();
                }
                if let Some(dropped) = say {
                    tracing::warn!(
                        pipeline,
                        %module,
                        %revision,
                        dropped,
                        "a module logs more than {LINES_A_SECOND} lines a second; the rest is dropped"
                    );
                }
            }
        }
    }
}

/// A line as it is shown.
fn shown(line: &str) -> String {
    // Not all of it is copied: it may be as large as the module's memory.
    let beginning = &line[..line.floor_char_boundary(LINE_BYTES + char::MAX.len_utf8())];
    clean(beginning.to_owned(), LINE_BYTES)
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Shown,
    Dropped {
        /// Now and then: how many were, since this was said last.
        say: Option<u64>,
    },
}

/// A bucket of tokens, one a line.
#[derive(Debug, Default)]
struct Rate {
    /// Spent tokens, in time that it takes to get them back; from when.
    debt: Duration,
    at: Option<Instant>,
    dropped: u64,
    said: Option<Instant>,
}

impl Rate {
    fn admit(&mut self, now: Instant) -> Admission {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.debt = self.debt.saturating_sub(passed);
        let price = Duration::from_secs(1) / LINES_A_SECOND;
        if self.debt + price <= price * BURST {
            self.debt += price;
            return Admission::Shown;
        }
        self.dropped += 1;
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= PERIOD);
        let say = is_due.then(|| {
            self.said = Some(now);
            std::mem::take(&mut self.dropped)
        });
        Admission::Dropped { say }
    }
}

/// Offers the import to components that have it; others do without.
pub(super) fn link(linker: &mut Linker<InstanceState>, version: &str) -> wasmtime::Result<()> {
    let mut interface = linker.instance(&format!("{LOG_INTERFACE}@{version}"))?;
    interface.func_wrap(
        "log",
        |store: StoreContextMut<'_, InstanceState>, (level, line): (Level, WasmStr)| {
            if let Some(log) = store.data().log() {
                log.write(level, Instant::now(), || {
                    line.to_str(&store).unwrap_or_else(|_| "(a line that is not UTF-8)".into())
                });
            }
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_rate_and_now_and_then_a_word_of_what_is_dropped() {
        let start = Instant::now();
        let mut rate = Rate::default();
        for _ in 0..BURST {
            assert_eq!(rate.admit(start), Admission::Shown);
        }
        assert_eq!(rate.admit(start), Admission::Dropped { say: Some(1) });
        assert_eq!(rate.admit(start), Admission::Dropped { say: None });
        // Ten a second, however many are written.
        let mut shown = 0;
        for milliseconds in 1..=3000u64 {
            shown += u32::from(rate.admit(start + Duration::from_millis(milliseconds)) == Admission::Shown);
        }
        assert_eq!(shown, 3 * LINES_A_SECOND);
        let later = start + PERIOD;
        for _ in 0..BURST {
            assert_eq!(rate.admit(later), Admission::Shown, "silence fills the bucket");
        }
        let dropped = 1 + 3000 - u64::from(shown) + 1;
        assert_eq!(rate.admit(later), Admission::Dropped { say: Some(dropped) });
    }

    #[test]
    fn lines_are_cut_at_a_character_and_have_no_control_characters() {
        assert_eq!(shown("a\nb\u{1b}[31mc"), "a b [31mc");
        let long = "ä".repeat(LINE_BYTES);
        let cut = shown(&long);
        assert!(cut.len() <= LINE_BYTES && cut.ends_with("ä…"), "{}", cut.len());
        let fits = "x".repeat(LINE_BYTES);
        assert_eq!(shown(&fits), fits);
        assert_eq!(shown(&(fits.clone() + "x")).len(), LINE_BYTES);
    }
}
