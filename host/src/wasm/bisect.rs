//! Bisection: from a call that failed down to the records that made it fail.
//!
//! A chunk is one call. Where that fails, its records are run again in halves, on fresh instances,
//! until the poison records stand alone; only they are refused, and what was answered for the rest
//! is kept. Where the answer shows whom to suspect, the suspects are run alone at once.
//!
//! What that may cost is bounded, for a module that fails on everything must not hold the stream up.
//! Lost time is that of failing calls, each up to its deadline (the rest is a busy machine's doing), and,
//! once a call has failed, that of making instances. A chunk goes through up to three stages:
//!
//! 1. *Search*, in halves. Parts get a short deadline (a sixteenth of the timeout), since a part that
//!    is cut short by mistake is merely halved again: one endless record in 1,024 costs about 2.6
//!    timeouts, not 21. A timeout counts at the second time only, which gets the full timeout.
//! 2. Once [`SEARCH`] timeouts are lost, *alone*: each record that is left is run once, by itself, with
//!    the short deadline or less: eight times what the slowest answer so far took.
//! 3. Once another [`ALONE`] timeouts are lost, *unjudged*: what is left is refused without being run.
//!
//! So a chunk loses at most [`SEARCH`] + [`ALONE`] timeouts, and one call of each stage more. A module
//! that does this chunk after chunk gets less to search with each time ([`Lenience`]), down to one timeout.
//!
//! Invariants:
//! - A record is refused only after it was run alone and seen failing, or as unjudged.
//! - Refusals of the stages 2 and 3 that a second run might not repeat are timeouts, whose offsets an
//!   intent records; so is one of a record that was never run. The second run has no bounds (`Lenience::unbounded`).
//! - A failure that takes no time (a trap) costs at most two calls a record, each as dear as the
//!   records in it.
//!
//! Pure: the calls and their times come from the caller.

use std::ops::Range;
use std::time::Duration;

use crate::domain::answer::{Answer, Fault, Refusal, TIMEOUT};
use crate::domain::verdict::RejectionKind;

use super::engine::TICK;

/// Timeouts that a chunk may lose before its records are run alone.
pub(super) const SEARCH: u32 = 8;
/// Timeouts that it may lose after that before the rest is not run at all.
pub(super) const ALONE: u32 = 2;
/// The fraction of the timeout that a part of the chunk gets.
const SHORT: u32 = 16;
/// Least deadline of a record alone: the clock's resolution, and a thread that is not scheduled.
const SHORTEST: Duration = TICK.saturating_mul(4);
/// How many times as long as the slowest answer so far a record may take in the second stage.
const MARGIN: u32 = 8;

/// One call: what came of it, and what it took.
pub(super) struct Attempt {
    pub(super) result: Result<Answer, Fault>,
    /// Making the instance.
    pub(super) start: Duration,
    /// The call itself.
    pub(super) call: Duration,
}

/// How much a chunk may lose, from how those before it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lenience {
    /// As much as finding every poison record takes.
    Unbounded,
    /// So many chunks, one after the other, were not searched to their end.
    After { exhausted: u32 },
}

impl Lenience {
    fn search(self, timeout: Duration) -> Duration {
        match self {
            Self::Unbounded => Duration::MAX,
            Self::After { exhausted } => timeout * (SEARCH >> exhausted.min(SEARCH.ilog2())),
        }
    }
}

/// How a chunk went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Searched {
    /// The first stage did not suffice.
    pub(super) exhausted: bool,
    /// Records that were refused without being run.
    pub(super) unjudged: usize,
}

/// Runs `count` records through `attempt` and gives what was answered to `collect`, in order and
/// without gaps. `attempt` gets positions and a deadline for the call.
pub(super) fn bisect(
    count: usize,
    timeout: Duration,
    lenience: Lenience,
    mut attempt: impl FnMut(Range<usize>, Duration) -> Attempt,
    mut collect: impl FnMut(Range<usize>, Answer),
) -> Searched {
    let short = (timeout / SHORT).max(SHORTEST).min(timeout);
    let search = lenience.search(timeout);
    let mut lost = Duration::ZERO;
    let mut lost_alone = Duration::ZERO;
    let mut slowest_answer: Option<Duration> = None;
    let mut searched = Searched::default();
    let mut pending = vec![(0..count, timeout)];
    while let Some((range, deadline)) = pending.pop() {
        let is_exhausted = lost >= search;
        searched.exhausted |= is_exhausted;
        if is_exhausted && lost_alone >= timeout * ALONE {
            searched.unjudged += range.len();
            let refusals = (0..range.len()).map(|position| (position, unjudged(lost + lost_alone)));
            collect(range.clone(), Answer { refusals: refusals.collect(), ..Answer::default() });
            continue;
        }
        if is_exhausted && range.len() > 1 {
            pending.extend(range.rev().map(|position| (position..position + 1, short)));
            continue;
        }
        let deadline = match slowest_answer {
            Some(slowest) if is_exhausted => (slowest * MARGIN).max(SHORTEST).min(deadline),
            _ => deadline,
        };
        let is_first = range.len() == count;
        let Attempt { result, start, call } = attempt(range.clone(), deadline);
        let lost = if is_exhausted { &mut lost_alone } else { &mut lost };
        if !is_first || result.is_err() {
            *lost = lost.saturating_add(start);
        }
        let Fault { mut refusal, suspects } = match result {
            Ok(answer) => {
                slowest_answer = slowest_answer.max(Some(call));
                collect(range, answer);
                continue;
            }
            Err(fault) => fault,
        };
        *lost = lost.saturating_add(call.min(deadline));
        if range.len() > 1 {
            let parts = if suspects.is_empty() { halves(range) } else { around(range, &suspects) };
            pending.extend(parts.into_iter().rev().map(|part| (part, short)));
            continue;
        }
        if refusal.kind == RejectionKind::Timeout {
            if is_exhausted {
                refusal.reason.push_str(
                    " (less than the timeout, since the module had used up this chunk's time already)",
                );
            } else {
                let Attempt { result, start, call } = attempt(range.clone(), timeout);
                *lost = lost.saturating_add(start);
                match result {
                    Ok(answer) => {
                        collect(range, answer);
                        continue;
                    }
                    Err(again) => refusal = again.refusal,
                }
                *lost = lost.saturating_add(call.min(timeout));
            }
        }
        collect(range, Answer { refusals: vec![(0, refusal)], ..Answer::default() });
    }
    searched
}

/// The code is that of a timeout: an intent records the two as one, and what helps is the same, to mend
/// the module and to replay what it did not judge in time.
fn unjudged(lost: Duration) -> Refusal {
    Refusal::new(
        RejectionKind::Timeout,
        TIMEOUT,
        format!("not judged: the module lost {} ms on other records of this chunk", lost.as_millis()),
    )
}

fn halves(range: Range<usize>) -> Vec<Range<usize>> {
    let middle = range.start + range.len() / 2;
    vec![range.start..middle, middle..range.end]
}

/// The suspects alone, and what lies between them together. Positions are relative to `range`.
fn around(range: Range<usize>, suspects: &[usize]) -> Vec<Range<usize>> {
    let mut parts = Vec::with_capacity(2 * suspects.len() + 1);
    let mut start = range.start;
    for suspect in suspects.iter().map(|suspect| range.start + suspect) {
        parts.push(start..suspect);
        parts.push(suspect..suspect + 1);
        start = suspect + 1;
    }
    parts.push(start..range.end);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests;
