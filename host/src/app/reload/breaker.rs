//! Breaker: watches how fresh revisions do on this host's records, and rolls back one that does far worse
//! than what it replaced. What is far worse, `domain/breaker.rs` decides.
//!
//! State: a watch a live module and a list of the revisions that may be gone back to ([`Earned`]), in its entry.
//! Whatever replaces another revision is on probation: a file while records flow, and what an operator holds
//! in its place. What a start finds as it was left is not. A revision is compared with the last one that
//! came through its probation, and goes back to that: neither is the first of two bad files the measure of the
//! second, nor what somebody pinned for a moment, nor what the breaker itself rolled back. While it is held
//! by an operator, nothing is judged: that is a decision. A rollback is kept as an event, so that every host
//! follows it, and holds until the file changes or an operator releases the module; a released revision is
//! warned about and no more, whenever it comes, since a person has seen the figures.
//!
//! A rule that comes back under its name soon after its file was removed replaces what was there: `rm` and
//! `cp` is how some people copy. It is compared with that, and goes back to that, not to no rule at all,
//! which would let everything through that either of the two was there to stop; if it is the same revision, its
//! probation goes on. Soon is within the probation:
//! after that a removal was meant, and nobody expects a rule to come back that was taken away long ago.
//! This is remembered here and not read from the events: they do not tell when, nor what the rule did.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clickhouse::deployments::Standings;
use crate::domain::breaker::{
    Baseline, BreakerMode, BreakerSettings, Earned, Finding, Probation, Window, judge,
};
use crate::domain::deployment::{EventKind, Standing};
use crate::domain::verdict::{Revision, Stage};
use crate::wasm::{Module, Tally};

use super::entry::Entry;
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
    /// What it goes back to, so that it need not be compiled again.
    kept: Option<Arc<Module>>,
}

/// A revision on probation.
#[derive(Clone)]
struct Fresh {
    probation: Probation,
    before: Before,
    /// Why somebody should look at it; said once.
    warning: Option<String>,
}

/// What a fresh revision is compared with, and goes back to.
#[derive(Clone, Copy)]
struct Before {
    baseline: Baseline,
    /// None where there was no such rule.
    revision: Option<Revision>,
}

/// What is known of a rule whose file is gone.
struct Left {
    since: Duration,
    earned: Earned,
    /// What was live, if it was on probation.
    fresh: Option<(Revision, Fresh)>,
}

/// Rules whose files are gone, for as long as they may come back.
#[derive(Default)]
pub(super) struct Departed(BTreeMap<Key, Left>);

impl Departed {
    fn leave(&mut self, key: &Key, left: Left, probation: Duration) {
        let at = left.since;
        self.0.retain(|_, left| at.saturating_sub(left.since) < probation);
        self.0.insert(key.clone(), left);
    }

    fn come_back(&mut self, key: &Key, at: Duration, probation: Duration) -> Option<Left> {
        let left = self.0.remove(key)?;
        (at.saturating_sub(left.since) < probation).then_some(left)
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

    /// What it did, if it may be gone back to.
    fn earned(&mut self, settings: &BreakerSettings, at: Duration) -> Option<(Revision, Baseline)> {
        if self.fresh.is_some() {
            return None;
        }
        self.window.note(at, self.tally.counts());
        Some((self.revision(), Baseline::of(self.window.recent(), settings, self.otherwise)))
    }

    fn look(&mut self, settings: &BreakerSettings, at: Duration, mode: BreakerMode) -> Option<News> {
        self.window.note(at, self.tally.counts());
        let recent = self.window.recent();
        let revision = self.revision();
        let fresh = self.fresh.as_mut()?;
        if mode != BreakerMode::Off
            && let Some(Finding { is_grave, reason }) = judge(settings, fresh.before.baseline, recent)
        {
            let before = fresh.before.revision;
            if is_grave && mode == BreakerMode::RollBack {
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

/// What is done about a live revision if it does far worse.
fn mode_of(entry: &Entry, standing: Option<&Standing>, revision: Revision, mode: BreakerMode) -> BreakerMode {
    match standing {
        _ if entry.held.is_some() => BreakerMode::Off,
        Some(standing) if standing.is_released(revision) => BreakerMode::Warn,
        _ => mode,
    }
}

impl Reloader {
    /// Remembers what a rule did whose file is gone.
    pub(super) fn depart(&mut self, key: &Key, mut entry: Entry) {
        let (settings, at) = (&self.pipeline.breaker, self.started.elapsed());
        let Some(watch) = &mut entry.watch else { return };
        if let Some((revision, baseline)) = watch.earned(settings, at) {
            entry.earned.note(revision, baseline);
        }
        let fresh = watch.fresh.clone().map(|fresh| (watch.revision(), fresh));
        let left = Left { since: at, earned: entry.earned, fresh };
        self.departed.leave(key, left, settings.probation);
    }

    /// A watch over what goes live for a module; none where nothing does. `standings` are from before that.
    pub(super) fn watch(&mut self, key: &Key, candidate: &Candidate, standings: &Standings) -> Option<Watch> {
        let settings = &self.pipeline.breaker;
        if key.2 || settings.mode == BreakerMode::Off {
            return None;
        }
        let at = self.started.elapsed();
        let entry = self.entries.get_mut(key)?;
        let mut replaced = entry.watch.take();
        if let Some((revision, baseline)) = replaced.as_mut().and_then(|watch| watch.earned(settings, at)) {
            entry.earned.note(revision, baseline);
        }
        let Candidate::Module { module, .. } = candidate else { return None };
        let revision = module.identity().revision;
        let standing = standings.get(&(key.0, key.1.clone()));
        let is_broken = |revision| standing.is_some_and(|standing| standing.is_broken(revision));
        let mut left = None;
        if replaced.is_none() {
            left = self.departed.come_back(key, at, settings.probation);
            if let Some(left) = &mut left {
                entry.earned = std::mem::take(&mut left.earned);
            }
            // What ran when the process before this one ended, or what did before that was broken.
            let known = standing.filter(|standing| self.is_start && standing.live.is_some());
            if let Some(known) = known
                && let Some(known) = known.live.filter(|live| !is_broken(*live)).or(known.previous)
            {
                entry.earned.note(known, Baseline::Unknown);
            }
        }
        let fallback = entry.earned.fallback(is_broken);
        let before = match fallback {
            Some((revision, baseline)) => Before { baseline, revision: Some(revision) },
            None => Before { baseline: Baseline::NoRule, revision: None },
        };
        let hold = standing.and_then(|standing| standing.hold.as_ref());
        let hold = hold.filter(|hold| entry.held.is_some() && hold.run == Some(revision));
        // A person goes back to what had earned it, or the breaker of another host to what had earned it there.
        let is_back = hold.is_some_and(|hold| {
            hold.is_of_breaker || (!is_broken(revision) && entry.earned.baseline(revision).is_some())
        });
        let is_as_it_was =
            before.revision == Some(revision) || is_back || (self.is_start && !has_run(standings));
        // There is no stream without a mapper, so there is nothing to go back to.
        let is_only_mapper = key.0 == Stage::Map && before.revision.is_none();
        let fresh = (!is_as_it_was && !is_only_mapper).then(|| match left.and_then(|left| left.fresh) {
            Some((same, fresh)) if same == revision => fresh,
            _ => Fresh { probation: Probation { since: at }, before, warning: None },
        });
        let tally = self.with.registry.tally(&self.pipeline.name, module.identity());
        let window = Window::new(settings, at, tally.counts());
        let otherwise = entry.earned.baseline(revision).unwrap_or(Baseline::Unknown);
        let replaced = replaced.and_then(|watch| match before.revision {
            Some(before) if watch.revision() == before => Some(watch.module),
            _ => watch.kept,
        });
        let kept = replaced.filter(|_| fresh.is_some());
        Some(Watch { module: module.clone(), tally, window, otherwise, fresh, kept })
    }

    /// Looks at what became of records since, and does what has to be done about it.
    pub(super) async fn look(&mut self) {
        let at = self.started.elapsed();
        let mut has_news = false;
        let mut trips = Vec::new();
        let settings = &self.pipeline.breaker;
        for (key, entry) in &mut self.entries {
            let Some(mut watch) = entry.watch.take() else { continue };
            let standing = self.standings.get(&(key.0, key.1.clone()));
            let mode = mode_of(entry, standing, watch.revision(), settings.mode);
            let news = watch.look(settings, at, mode);
            entry.watch = Some(watch);
            match news {
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
        let event = (EventKind::Tripped, before, Some(revision));
        let reason = format!("the breaker saw that {reason}");
        match self.decide_for_all(key, event, self.with.host.clone(), reason.clone()).await {
            Ok(()) => {
                // Whoever reads in the status file that it is so finds it counted.
                tracing::error!(pipeline, module, %revision, back, reason, "module rolled back by the breaker");
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
        let left = |digit, at| {
            let mut earned = Earned::default();
            earned.note(Revision([digit; 32]), Baseline::Unknown);
            Left { since: seconds(at), earned, fresh: None }
        };
        let mut departed = Departed::default();
        departed.leave(&key("a"), left(1, 0), probation);
        departed.leave(&key("b"), left(2, 10), probation);
        let mut earned =
            |name, at| departed.come_back(&key(name), seconds(at), probation).map(|left| left.earned);
        assert_eq!(earned("a", 599), Some(left(1, 0).earned));
        assert_eq!(earned("a", 599), None, "it is back");
        assert_eq!(earned("b", 610), None, "that is long ago");

        for number in 0..100 {
            departed.leave(&key(&number.to_string()), left(3, number * 100), probation);
        }
        assert_eq!(departed.0.len(), 6, "what nobody asks for is forgotten");
    }
}
