//! Bisection: from a call that failed down to the records that made it fail.
//!
//! A chunk is one call. Where that fails, its records are run again in halves, on fresh instances,
//! until the poison records stand alone; only they are refused, and what was answered for the rest
//! is kept. Where the answer shows whom to suspect, the suspects are run alone at once.
//!
//! Invariants:
//! - A record is refused only after it was run alone and seen failing.
//! - A timeout counts only at the second time, and the second time gets the full timeout.
//! - Cost: parts get a short deadline (a sixteenth of the timeout), since a part that is cut short
//!   by mistake is merely halved again. One endless record in 1,024 thus costs about 2.7 timeouts, not
//!   21. Once failing calls have taken [`BUDGET`] timeouts of a chunk, each record that is left is run
//!   alone, once, with the short deadline: a module that hangs on everything costs at most about
//!   `BUDGET + 2 + 1,024 / 16` timeouts a chunk. That is the one case in which a record is refused
//!   for less than the full timeout, and its reason says so.
//! - A failure that takes no time (a trap) costs at most two calls a record, each as dear as the
//!   records in it.
//!
//! Pure: the calls and their times come from the caller.

use std::ops::Range;
use std::time::Duration;

use crate::domain::verdict::RejectionKind;

use super::answer::{Answer, Fault};
use super::engine::TICK;

/// Timeouts' worth of failing calls after which a chunk is gone through the short way.
pub(super) const BUDGET: u32 = 16;
/// The fraction of the timeout that a part of the chunk gets.
const SHORT: u32 = 16;

/// Runs `count` records through `attempt` and gives what was answered to `collect`, in order and
/// without gaps. `attempt` gets positions and a deadline, and says how long it took.
pub(super) fn bisect(
    count: usize,
    timeout: Duration,
    mut attempt: impl FnMut(Range<usize>, Duration) -> (Result<Answer, Fault>, Duration),
    mut collect: impl FnMut(Range<usize>, Answer),
) {
    let short = (timeout / SHORT).max(TICK * 4).min(timeout);
    let budget = timeout * BUDGET;
    let mut wasted = Duration::ZERO;
    let mut pending = vec![(0..count, timeout)];
    while let Some((range, deadline)) = pending.pop() {
        let exhausted = wasted >= budget;
        if exhausted && range.len() > 1 {
            pending.extend(range.rev().map(|position| (position..position + 1, short)));
            continue;
        }
        let (result, elapsed) = attempt(range.clone(), deadline);
        let Fault { mut refusal, suspects } = match result {
            Ok(answer) => {
                collect(range, answer);
                continue;
            }
            Err(fault) => fault,
        };
        wasted = wasted.saturating_add(elapsed);
        if range.len() > 1 {
            let parts = if suspects.is_empty() { halves(range) } else { around(range, &suspects) };
            pending.extend(parts.into_iter().rev().map(|part| (part, short)));
            continue;
        }
        if refusal.kind == RejectionKind::Timeout {
            if exhausted {
                refusal.reason.push_str(
                    " (less than the timeout, since the module had used up this chunk's time already)",
                );
            } else {
                let (second, elapsed) = attempt(range.clone(), timeout);
                match second {
                    Ok(answer) => {
                        collect(range, answer);
                        continue;
                    }
                    Err(again) => refusal = again.refusal,
                }
                wasted = wasted.saturating_add(elapsed);
            }
        }
        collect(range, Answer { refusals: vec![(0, refusal)], ..Answer::default() });
    }
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
