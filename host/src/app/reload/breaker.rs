//! Breaker: watches how fresh revisions do on this host's records, and rolls back one that does far worse
//! than what it replaced. What is far worse, `domain/breaker.rs` decides.
//!
//! State: a watch a live module, in its entry. A revision is fresh when it comes from a file and replaces
//! another while records flow; what a start finds as it was left is not. It is compared with the last
//! revision that was *not* fresh, and goes back to that: two bad files in a row do not make the first one
//! the measure of the second. A rollback is kept as an event, so that every host follows it, and holds
//! until the file changes or an operator releases the module; a released revision is warned about and no
//! more, since a person has seen the figures.
//!
//! A rule that comes back under its name soon after its file was removed replaces what was there: `rm` and
//! `cp` is how some people copy. It is compared with that, and goes back to that, not to no rule at all,
//! which would let everything through that either of the two was there to stop. Soon is within the probation:
//! after that a removal was meant, and nobody expects a rule to come back that was taken away long ago.
//! This is remembered here and not read from the events: they do not tell when, nor what the rule did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::domain::breaker::{Baseline, BreakerMode, BreakerSettings, Finding, Probation, Window, judge};
use crate::domain::deployment::EventKind;
use crate::domain::verdict::{Revision, Stage};
use crate::wasm::{Module, Tally};

use super::gate::Candidate;
use super::{AGAIN, Key, Reloader, has_run};

/// Time between two looks at the tallies.
pub(super) const LOOK: Duration = Duration::from_millis(250);

/// How a live revision does.
pub(super) struct Watch {
    module: Arc<Module>,
    tally: Arc<Tally>,
    window: Window,
    /// What it is taken to do while it has seen too little to say.
    otherwise: Baseline,
    fresh: Option<Fresh>,
}

/// A revision on probation.
struct Fresh {
    probation: Probation,
    mode: BreakerMode,
    before: Before,
    /// Why somebody should look at it; said once.
    warning: Option<String>,
}

/// What a fresh revision is compared with, and goes back to.
#[derive(Clone)]
struct Before {
    baseline: Baseline,
    /// None where there was no such rule.
    revision: Option<Revision>,
    /// Kept so that it need not be compiled again.
    _module: Option<Arc<Module>>,
}

/// What became of rules whose files are gone: when, and what one of the same name would be compared with.
#[derive(Default)]
pub(super) struct Departed(BTreeMap<Key, (Duration, Before)>);

impl Departed {
    fn leave(&mut self, key: &Key, at: Duration, before: Before, probation: Duration) {
        self.0.retain(|_, (since, _)| at.saturating_sub(*since) < probation);
        // Its code may go: the archive has the module.
        self.0.insert(key.clone(), (at, Before { _module: None, ..before }));
    }

    fn come_back(&mut self, key: &Key, at: Duration, probation: Duration) -> Option<Before> {
        let (since, before) = self.0.remove(key)?;
        (at.saturating_sub(since) < probation).then_some(before)
    }
}

/// What became of a look.
enum News {
    Warned,
    /// The probation is over, and with it what was warned of.
    Cleared,
    Trip(Trip),
}

/// A revision that has to go.
pub(super) struct Trip {
    revision: Revision,
    before: Option<Revision>,
    reason: String,
}

impl Watch {
    /// What is to be said of the revision in reports.
    pub(super) fn warning(&self) -> Option<&str> {
        self.fresh.as_ref()?.warning.as_deref()
    }

    fn revision(&self) -> Revision {
        self.module.identity().revision
    }

    /// What a revision that replaces this one is compared with.
    fn before(&mut self, settings: &BreakerSettings, at: Duration) -> Before {
        if let Some(fresh) = &self.fresh {
            return fresh.before.clone();
        }
        self.window.note(at, self.tally.counts());
        Before {
            baseline: Baseline::of(self.window.recent(), settings, self.otherwise),
            revision: Some(self.revision()),
            _module: Some(self.module.clone()),
        }
    }

    fn look(&mut self, settings: &BreakerSettings, at: Duration) -> Option<News> {
        self.window.note(at, self.tally.counts());
        let recent = self.window.recent();
        let revision = self.revision();
        let fresh = self.fresh.as_mut()?;
        if let Some(Finding { is_grave, reason }) = judge(settings, fresh.before.baseline, recent) {
            let before = fresh.before.revision;
            if is_grave && fresh.mode == BreakerMode::RollBack {
                return Some(News::Trip(Trip { revision, before, reason }));
            }
            if fresh.warning.is_none() {
                let what = if is_grave { "the breaker would roll it back: " } else { "the breaker warns: " };
                fresh.warning = Some(format!("{what}{reason}; see whether that is meant"));
                return Some(News::Warned);
            }
        }
        if !fresh.probation.is_over(settings, at, recent) {
            return None;
        }
        let was_warned = fresh.warning.is_some();
        self.fresh = None;
        was_warned.then_some(News::Cleared)
    }
}

impl Reloader {
    /// Remembers what a rule did whose file is gone.
    pub(super) fn depart(&mut self, key: &Key, watch: Option<Watch>) {
        let Some(mut watch) = watch else { return };
        let (settings, at) = (&self.pipeline.breaker, self.started.elapsed());
        self.departed.leave(key, at, watch.before(settings, at), settings.probation);
    }

    /// A watch over what goes live for a module; none where nothing does.
    pub(super) fn watch(&mut self, key: &Key, candidate: &Candidate) -> Option<Watch> {
        let Candidate::Module { module, .. } = candidate else { return None };
        let settings = &self.pipeline.breaker;
        if key.2 || settings.mode == BreakerMode::Off {
            return None;
        }
        let at = self.started.elapsed();
        let revision = module.identity().revision;
        let known = self.standings.get(&(key.0, key.1.clone())).and_then(|standing| standing.live);
        let has_run = has_run(&self.standings);
        let is_start = self.is_start;
        let departed = self.departed.come_back(key, at, settings.probation);
        let entry = self.entries.get_mut(key)?;
        let is_of_file =
            entry.held.is_none() && entry.found.as_ref().is_some_and(|(found, ..)| *found == revision);
        let before = match &mut entry.watch {
            Some(watch) => watch.before(settings, at),
            None if is_start && known.is_some() => {
                Before { baseline: Baseline::Unknown, revision: known, _module: None }
            }
            None => {
                let none = Before { baseline: Baseline::NoRule, revision: None, _module: None };
                departed.unwrap_or(none)
            }
        };
        let is_as_it_was = before.revision == Some(revision) || (is_start && !has_run);
        // There is no stream without a mapper, so there is nothing to go back to.
        let is_only_mapper = key.0 == Stage::Map && before.revision.is_none();
        let tally = self.with.registry.tally(&self.pipeline.name, module.identity());
        let window = Window::new(settings, at, tally.counts());
        let otherwise = if is_as_it_was { before.baseline } else { Baseline::Unknown };
        let mode = if entry.rolled_back == Some(revision) { BreakerMode::Warn } else { settings.mode };
        let fresh = (is_of_file && !is_as_it_was && !is_only_mapper).then(|| Fresh {
            probation: Probation { since: at },
            mode,
            before,
            warning: None,
        });
        Some(Watch { module: module.clone(), tally, window, otherwise, fresh })
    }

    /// Looks at what became of records since, and does what has to be done about it.
    pub(super) async fn look(&mut self) {
        let at = self.started.elapsed();
        let mut has_news = false;
        let mut trips = Vec::new();
        for (key, entry) in &mut self.entries {
            match entry.watch.as_mut().and_then(|watch| watch.look(&self.pipeline.breaker, at)) {
                Some(News::Trip(trip)) => trips.push((key.clone(), trip)),
                Some(News::Warned) => {
                    has_news = true;
                    self.with.metrics.broke(&self.pipeline.name, &key.1, BreakerMode::Warn);
                }
                Some(News::Cleared) => has_news = true,
                None => {}
            }
        }
        if has_news {
            self.tell().await;
        }
        if Instant::now() < self.rest {
            return;
        }
        for (key, trip) in trips {
            // If it cannot be kept, or what it goes back to does not run, then not at every look.
            self.rest = Instant::now() + AGAIN;
            self.trip(&key, trip).await;
        }
    }

    async fn trip(&mut self, key: &Key, trip: Trip) {
        let Trip { revision, before, reason } = trip;
        let (pipeline, module) = (self.pipeline.name.clone(), key.1.clone());
        let back = before.map_or_else(|| "no rule at all".to_owned(), |before| before.to_string());
        self.refresh().await;
        let standing = self.standings.get(&(key.0, key.1.clone()));
        if standing.is_some_and(|standing| standing.hold_against(Some(revision)).is_some()) {
            // Another host was faster.
            return self.pass().await;
        }
        let event = (EventKind::RolledBack, before, Some(revision));
        let reason = format!("the breaker saw that {reason}");
        match self.decide_for_all(key, event, self.with.host.clone(), reason.clone()).await {
            Ok(()) => {
                // Whoever reads in the status file that it is so finds it counted.
                tracing::error!(pipeline, module, %revision, back, reason, "rolled back");
                self.with.metrics.broke(&pipeline, &module, BreakerMode::RollBack);
                self.follow().await;
            }
            Err(error) => tracing::warn!(
                pipeline, module, %revision, back, reason, %error,
                "a rollback is due and cannot be kept yet; trying again"
            ),
        }
    }

    /// Whether there is anything to watch.
    pub(super) fn has_breaker(&self) -> bool {
        self.pipeline.breaker.mode != BreakerMode::Off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_is_gone_is_remembered_once_and_for_its_probation() {
        let probation = Duration::from_secs(600);
        let seconds = Duration::from_secs;
        let key = |name: &str| (Stage::Validate, name.to_owned(), false);
        let before = |digit| Before {
            baseline: Baseline::Unknown,
            revision: Some(Revision([digit; 32])),
            _module: None,
        };
        let mut departed = Departed::default();
        departed.leave(&key("a"), seconds(0), before(1), probation);
        departed.leave(&key("b"), seconds(10), before(2), probation);
        let mut revision =
            |name, at| departed.come_back(&key(name), seconds(at), probation).map(|before| before.revision);
        assert_eq!(revision("a", 599), Some(before(1).revision));
        assert_eq!(revision("a", 599), None, "it is back");
        assert_eq!(revision("b", 610), None, "that is long ago");

        for number in 0..100 {
            departed.leave(&key(&number.to_string()), seconds(number * 100), before(3), probation);
        }
        assert_eq!(departed.0.len(), 6, "what nobody asks for is forgotten");
    }
}
