//! Breaker: whether a fresh revision of a module does so much worse than the one before it that it has to
//! go.
//!
//! Two shares are looked at, over a [`Window`] of the newest records: of those that the revision was shown,
//! how many it *rejected* (codes of its own, `malformed` among them: what cannot be read is the sender's
//! doing as often as the module's), and how many it *faulted* on (trap, timeout, memory, an answer that is
//! none). [`judge`] compares each with the [`Baseline`]: with the share `b` of the revision before, a share
//! above `b + t * (1 - b)` is too much, `t` being the threshold: the part of what was let through before
//! that may be lost.
//!
//! Small numbers prove nothing, so bounds are compared and not shares: the lower end of Wilson's interval
//! for the fresh revision, four standard deviations below (chance alone takes a share that is exactly at
//! the limit past it once in 30,000 looks), and its upper end for the revision before, three above
//! (E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, 1927).
//!
//! A revision is watched for its [`Probation`] alone: what goes bad later is the data's doing.
//!
//! Pure: times are given, as what has passed since some moment.

use std::collections::VecDeque;
use std::ops::Sub;
use std::time::Duration;

mod earned;

pub use earned::Earned;

/// Standard deviations for the fresh revision, and for the one before.
const DOUBTS: (f64, f64) = (4.0, 3.0);
/// A window keeps samples no closer to each other than this part of it, so that it stays small.
const SAMPLES: u32 = 100;

/// What the breaker does about a revision that does far worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerMode {
    /// Nothing.
    Off,
    /// It says so.
    Warn,
    /// It rolls it back, and says so.
    RollBack,
}

impl BreakerMode {
    /// The word used in the configuration and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::RollBack => "roll-back",
        }
    }
}

/// What is far worse. Shares are from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerSettings {
    /// What is done about it.
    pub mode: BreakerMode,
    /// How far back records count.
    pub window: Duration,
    /// How long a revision is watched.
    pub probation: Duration,
    /// Records below which nothing is judged; a window reaches back until it has them.
    pub records: u64,
    /// Part of what was accepted before that may be rejected.
    pub rejections: f64,
    /// Part of what went well before that may be faulted on.
    pub faults: f64,
    /// Part of the records that a revision may reject of whose predecessor nothing is known, or which
    /// has none: it is there to reject.
    pub new_rule_rejections: f64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            mode: BreakerMode::RollBack,
            window: Duration::from_secs(60),
            probation: Duration::from_secs(600),
            records: 200,
            rejections: 0.2,
            faults: 0.02,
            new_rule_rejections: 0.9,
        }
    }
}

/// What became of the records that a revision was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub seen: u64,
    /// Those that it said no to.
    pub rejected: u64,
    /// Those that it trapped on, took too much time or memory for, or answered badly for.
    pub faulted: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            seen: self.seen.saturating_sub(earlier.seen),
            rejected: self.rejected.saturating_sub(earlier.rejected),
            faulted: self.faulted.saturating_sub(earlier.faulted),
        }
    }
}

/// The newest records of one revision, from counts that only ever grow.
#[derive(Clone, Debug)]
pub struct Window {
    span: Duration,
    records: u64,
    /// Counts at moments, both increasing; the window begins with the first. Never empty.
    samples: VecDeque<(Duration, Counts)>,
}

impl Window {
    /// A window that begins at `at`, where the counts are `counts`.
    pub fn new(settings: &BreakerSettings, at: Duration, counts: Counts) -> Self {
        let samples = VecDeque::from([(at, counts)]);
        Self { span: settings.window, records: settings.records, samples }
    }

    /// Takes the counts at `at`.
    pub fn note(&mut self, at: Duration, counts: Counts) {
        if self.samples.back().is_some_and(|(_, newest)| *newest == counts) {
            return;
        }
        let apart = self.span / SAMPLES;
        let is_close = |(before, _): &(Duration, Counts)| at.saturating_sub(*before) < apart;
        if self.samples.len() > 1 && self.samples.get(self.samples.len() - 2).is_some_and(is_close) {
            self.samples.pop_back();
        }
        self.samples.push_back((at, counts));
        while let Some((next, since)) = self.samples.get(1)
            && at.saturating_sub(*next) >= self.span
            && (counts - *since).seen >= self.records
        {
            self.samples.pop_front();
        }
    }

    /// What became of the records in it.
    pub fn recent(&self) -> Counts {
        match (self.samples.front(), self.samples.back()) {
            (Some((_, oldest)), Some((_, newest))) => *newest - *oldest,
            _ => Counts::default(),
        }
    }
}

/// What a fresh revision is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// There was no such module: nothing was rejected, nothing failed.
    NoRule,
    /// There was one, but it has seen too little to tell.
    Unknown,
    /// What the revision before did.
    Measured(Counts),
}

impl Baseline {
    /// Of a revision that did this lately; `otherwise` if that is too little.
    pub fn of(recent: Counts, settings: &BreakerSettings, otherwise: Self) -> Self {
        if recent.seen >= settings.records { Self::Measured(recent) } else { otherwise }
    }
}

/// That a revision does far worse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is so bad that it has to go; if not, somebody should look at it.
    pub is_grave: bool,
    /// What it does and what the one before did, in words for a person.
    pub reason: String,
}

/// How long a fresh revision is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probation {
    /// When it went live.
    pub since: Duration,
}

impl Probation {
    /// Whether it is over: it has lasted, and the revision has seen enough to be judged. One that went live
    /// in a quiet night is watched when the records come.
    pub fn is_over(&self, settings: &BreakerSettings, at: Duration, recent: Counts) -> bool {
        at.saturating_sub(self.since) >= settings.probation && recent.seen >= settings.records
    }
}

/// Whether a revision that did `fresh` does far worse than the one before; faults weigh more.
pub fn judge(settings: &BreakerSettings, baseline: Baseline, fresh: Counts) -> Option<Finding> {
    if fresh.seen < settings.records {
        return None;
    }
    let measured = match baseline {
        Baseline::Measured(counts) => Some(counts),
        Baseline::NoRule | Baseline::Unknown => None,
    };
    let before =
        |count: fn(Counts) -> u64| measured.map_or(0.0, |counts| upper(count(counts), counts.seen, DOUBTS.1));
    let is_beyond = |count: u64, before: f64, threshold: f64| {
        lower(count, fresh.seen, DOUBTS.0) > before + threshold * (1.0 - before)
    };
    let finding = |is_grave, what: &str, count: fn(Counts) -> u64| {
        let than = match baseline {
            Baseline::Measured(counts) => {
                format!("; the revision before {what} {}", part(count(counts), counts.seen))
            }
            Baseline::Unknown => "; the revision before has seen too few to compare".to_owned(),
            Baseline::NoRule => "; it is a new rule".to_owned(),
        };
        Some(Finding { is_grave, reason: format!("it {what} {}{than}", part(count(fresh), fresh.seen)) })
    };
    if is_beyond(fresh.faulted, before(|counts| counts.faulted), settings.faults) {
        return finding(true, "failed (trap, timeout, memory, bad answer) on", |counts| counts.faulted);
    }
    let rejected = before(|counts| counts.rejected);
    let is_many = is_beyond(fresh.rejected, rejected, settings.rejections);
    let is_nearly_all = is_beyond(fresh.rejected, 0.0, settings.new_rule_rejections);
    let is_grave = match baseline {
        Baseline::Measured(_) if is_many => true,
        Baseline::NoRule | Baseline::Unknown if is_nearly_all => true,
        Baseline::NoRule if is_many => false,
        _ => return None,
    };
    finding(is_grave, "rejected", |counts| counts.rejected)
}

fn part(count: u64, seen: u64) -> String {
    let percent = count as f64 * 100.0 / seen.max(1) as f64;
    // 99.96 % is not all of them.
    let percent = if count < seen { percent.min(99.9) } else { percent };
    format!("{count} of {seen} records ({percent:.1} %)")
}

/// Lower end of Wilson's interval for `count` of `seen`, `doubt` standard deviations wide each way.
fn lower(count: u64, seen: u64, doubt: f64) -> f64 {
    let (centre, half) = wilson(count, seen, doubt);
    (centre - half).max(0.0)
}

/// Upper end of it.
fn upper(count: u64, seen: u64, doubt: f64) -> f64 {
    let (centre, half) = wilson(count, seen, doubt);
    (centre + half).min(1.0)
}

fn wilson(count: u64, seen: u64, doubt: f64) -> (f64, f64) {
    if seen == 0 {
        return (0.5, 0.5);
    }
    let (seen, square) = (seen as f64, doubt * doubt);
    let share = (count as f64 / seen).min(1.0);
    let scale = 1.0 + square / seen;
    let centre = (share + square / (2.0 * seen)) / scale;
    let half = doubt * (share * (1.0 - share) / seen + square / (4.0 * seen * seen)).sqrt() / scale;
    (centre, half)
}

#[cfg(test)]
mod tests;
