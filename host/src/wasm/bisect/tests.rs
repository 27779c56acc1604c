use super::*;
use crate::wasm::answer::Refusal;
use std::collections::{BTreeMap, BTreeSet};

const TIMEOUT: Duration = Duration::from_secs(1);
const SHORT_DEADLINE: Duration = Duration::from_micros(62_500);

/// What one record does to a call that holds it.
#[derive(Clone, Copy, PartialEq)]
enum Poison {
    Trap,
    /// Has a bad row, which shows.
    BadRow,
    /// Takes this long; over the deadline it is a timeout.
    Slow(Duration),
}

#[derive(Default)]
struct Seen {
    answered: Vec<usize>,
    refused: BTreeMap<usize, Refusal>,
    calls: usize,
    time: Duration,
}

fn run(count: usize, poison: impl Fn(usize) -> Option<Poison>) -> Seen {
    let mut seen = Seen::default();
    let mut order = Vec::new();
    let (mut calls, mut time, mut alone) = (0, Duration::ZERO, BTreeSet::new());
    bisect(
        count,
        TIMEOUT,
        |range, deadline| {
            calls += 1;
            if range.len() == 1 {
                alone.insert(range.start);
            }
            let mut elapsed = Duration::from_micros(20);
            let mut suspects = Vec::new();
            for position in range.clone() {
                match poison(position) {
                    Some(Poison::Trap) => {
                        time += elapsed;
                        return (Err(Refusal::new(RejectionKind::Trap, "trap", "").into()), elapsed);
                    }
                    Some(Poison::BadRow) => suspects.push(position - range.start),
                    Some(Poison::Slow(duration)) => elapsed += duration,
                    None => {}
                }
                if elapsed > deadline {
                    time += deadline;
                    return (Err(Refusal::new(RejectionKind::Timeout, "timeout", "late").into()), deadline);
                }
            }
            time += elapsed;
            if !suspects.is_empty() {
                let refusal = Refusal::new(RejectionKind::BadRow, "bad_row", "");
                return (Err(Fault { refusal, suspects }), elapsed);
            }
            (Ok(Answer::default()), elapsed)
        },
        |range, answer| {
            order.extend(range.clone());
            match answer.refusals.first() {
                Some((_, refusal)) => {
                    assert_eq!(range.len(), 1);
                    seen.refused.insert(range.start, refusal.clone());
                }
                None => seen.answered.extend(range),
            }
        },
    );
    assert_eq!(order, (0..count).collect::<Vec<_>>(), "every record once, in order");
    assert!(seen.refused.keys().all(|position| alone.contains(position)), "accused without being run alone");
    Seen { calls, time, ..seen }
}

#[test]
fn a_good_chunk_is_one_call() {
    let seen = run(1024, |_| None);
    assert_eq!((seen.calls, seen.answered.len()), (1, 1024));
}

#[test]
fn one_trap_costs_twenty_calls_and_no_neighbour() {
    let seen = run(1024, |position| (position == 700).then_some(Poison::Trap));
    assert_eq!(seen.refused.keys().collect::<Vec<_>>(), [&700]);
    assert_eq!(seen.answered.len(), 1023);
    assert_eq!(seen.calls, 21);
}

#[test]
fn suspects_are_run_alone_at_once() {
    let seen = run(1024, |position| [0, 700, 701].contains(&position).then_some(Poison::BadRow));
    assert_eq!(seen.refused.keys().collect::<Vec<_>>(), [&0, &700, &701]);
    assert_eq!((seen.answered.len(), seen.calls), (1021, 6));
    let seen = run(1024, |_| Some(Poison::BadRow));
    assert_eq!((seen.refused.len(), seen.calls), (1024, 1025));
}

#[test]
fn a_suspect_that_is_fine_alone_goes_through() {
    let mut refused = 0;
    bisect(
        3,
        TIMEOUT,
        |range, _| {
            let refusal = Refusal::new(RejectionKind::BadRow, "bad_row", "");
            let fault = Fault { refusal, suspects: vec![1, 2] };
            (if range.len() > 1 { Err(fault) } else { Ok(Answer::default()) }, Duration::ZERO)
        },
        |_, answer| refused += answer.refusals.len(),
    );
    assert_eq!(refused, 0);
}

#[test]
fn traps_everywhere_cost_two_calls_a_record() {
    let seen = run(1024, |_| Some(Poison::Trap));
    assert_eq!((seen.refused.len(), seen.calls), (1024, 2047));
}

#[test]
fn one_endless_record_is_found_in_less_than_three_timeouts() {
    let endless = Poison::Slow(Duration::MAX / 4);
    let seen = run(1024, |position| (position == 0).then_some(endless));
    assert_eq!(seen.refused.keys().collect::<Vec<_>>(), [&0]);
    assert!(seen.time < TIMEOUT * 3, "{:?}", seen.time);
    assert_eq!(seen.refused[&0].reason, "late", "it had the full timeout");
}

#[test]
fn endless_everywhere_has_a_bounded_cost() {
    let seen = run(1024, |_| Some(Poison::Slow(Duration::MAX / 4)));
    assert_eq!(seen.refused.len(), 1024);
    assert!(seen.time < TIMEOUT * (BUDGET + 2) + SHORT_DEADLINE * 1024, "{:?}", seen.time);
    assert!(seen.refused[&1023].reason.contains("less than the timeout"));
    assert!(!seen.refused[&0].reason.contains("less than the timeout"));
}

#[test]
fn slow_records_are_not_blamed_for_each_other() {
    // 1,024 records of 20 ms each: far over the timeout together, each fine alone.
    let seen = run(1024, |_| Some(Poison::Slow(Duration::from_millis(20))));
    assert_eq!(seen.answered.len(), 1024);
}

#[test]
fn a_record_that_needs_most_of_the_timeout_gets_it() {
    let slow = Poison::Slow(Duration::from_millis(900));
    let seen = run(64, |position| (position % 32 == 5).then_some(slow));
    assert_eq!(seen.refused.len(), 0);
    assert_eq!(seen.answered.len(), 64);
}

#[test]
fn a_timeout_counts_at_the_second_time_only() {
    let mut calls = 0;
    let mut refused = 0;
    bisect(
        1,
        TIMEOUT,
        |_, deadline| {
            calls += 1;
            assert_eq!(deadline, TIMEOUT);
            let late = || Err(Refusal::new(RejectionKind::Timeout, "timeout", "late").into());
            (if calls == 1 { late() } else { Ok(Answer::default()) }, TIMEOUT)
        },
        |_, answer| refused += answer.refusals.len(),
    );
    assert_eq!((calls, refused), (2, 0));
}
