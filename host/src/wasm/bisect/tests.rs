use super::*;
use crate::domain::answer::Refusal;
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
    searched: Searched,
}

const FRESH: Lenience = Lenience::After { exhausted: 0 };
const ENDLESS: Poison = Poison::Slow(Duration::from_secs(1_000_000));

fn run(count: usize, poison: impl Fn(usize) -> Option<Poison>) -> Seen {
    run_within(FRESH, Duration::ZERO, count, poison)
}

/// Every instance takes `start` to make.
fn run_within(
    lenience: Lenience,
    start: Duration,
    count: usize,
    poison: impl Fn(usize) -> Option<Poison>,
) -> Seen {
    let mut seen = Seen::default();
    let mut order = Vec::new();
    let (mut calls, mut time, mut alone) = (0, Duration::ZERO, BTreeSet::new());
    let searched = bisect(
        count,
        TIMEOUT,
        lenience,
        |range, deadline| {
            calls += 1;
            time += start;
            if range.len() == 1 {
                alone.insert(range.start);
            }
            let attempt = |result, call| Attempt { result, start, call };
            let mut elapsed = Duration::from_micros(20);
            let mut suspects = Vec::new();
            for position in range.clone() {
                match poison(position) {
                    Some(Poison::Trap) => {
                        time += elapsed;
                        return attempt(Err(Refusal::new(RejectionKind::Trap, "trap", "").into()), elapsed);
                    }
                    Some(Poison::BadRow) => suspects.push(position - range.start),
                    Some(Poison::Slow(duration)) => elapsed += duration,
                    None => {}
                }
                if elapsed > deadline {
                    time += deadline;
                    let late = Refusal::new(RejectionKind::Timeout, "timeout", "late");
                    return attempt(Err(late.into()), deadline);
                }
            }
            time += elapsed;
            if !suspects.is_empty() {
                let refusal = Refusal::new(RejectionKind::BadRow, "bad_row", "");
                return attempt(Err(Fault { refusal, suspects }), elapsed);
            }
            attempt(Ok(Answer::default()), elapsed)
        },
        |range, answer| {
            order.extend(range.clone());
            if answer.refusals.is_empty() {
                return seen.answered.extend(range);
            }
            assert_eq!(answer.refusals.len(), range.len(), "all of a range is refused or none");
            for (position, refusal) in answer.refusals {
                seen.refused.insert(range.start + position, refusal);
            }
        },
    );
    assert_eq!(order, (0..count).collect::<Vec<_>>(), "every record once, in order");
    let unjudged = seen.refused.values().filter(|refusal| is_unjudged(refusal)).count();
    assert_eq!(unjudged, searched.unjudged);
    for (position, refusal) in &seen.refused {
        assert_ne!(alone.contains(position), is_unjudged(refusal), "{position} was accused: {refusal:?}");
    }
    Seen { calls, time, searched, ..seen }
}

fn is_unjudged(refusal: &Refusal) -> bool {
    refusal.reason.starts_with("not judged: ")
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
        FRESH,
        |range, _| {
            let refusal = Refusal::new(RejectionKind::BadRow, "bad_row", "");
            let fault = Fault { refusal, suspects: vec![1, 2] };
            let result = if range.len() > 1 { Err(fault) } else { Ok(Answer::default()) };
            Attempt { result, start: Duration::ZERO, call: Duration::ZERO }
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
    let seen = run(1024, |position| (position == 0).then_some(ENDLESS));
    assert_eq!(seen.refused.keys().collect::<Vec<_>>(), [&0]);
    assert!(seen.time < TIMEOUT * 3, "{:?}", seen.time);
    assert_eq!(seen.refused[&0].reason, "late", "it had the full timeout");
    assert_eq!(seen.searched, Searched::default());
}

#[test]
fn endless_everywhere_has_a_bounded_cost() {
    let seen = run(1024, |_| Some(ENDLESS));
    assert_eq!(seen.refused.len(), 1024);
    assert!(seen.time < TIMEOUT * (SEARCH + ALONE + 2), "{:?}", seen.time);
    // Six are searched for, 32 run alone, at a sixteenth each. The rest is not run.
    assert!(seen.calls < 100, "{} calls", seen.calls);
    assert_eq!(seen.refused[&0].reason, "late");
    assert!(seen.refused[&8].reason.contains("less than the timeout"));
    let unjudged = &seen.refused[&1023];
    assert_eq!((unjudged.kind, unjudged.code.as_str()), (RejectionKind::Timeout, "timeout"));
    assert!(unjudged.reason.contains(" ms on other records of this chunk"), "{}", unjudged.reason);
    assert!(seen.searched.exhausted && seen.searched.unjudged > 900);
}

#[test]
fn a_module_that_goes_on_like_this_gets_less() {
    let after = |exhausted| {
        let seen = run_within(Lenience::After { exhausted }, Duration::ZERO, 1024, |_| Some(ENDLESS));
        assert!(seen.searched.exhausted);
        seen.time
    };
    let times: Vec<_> = [0, 1, 2, 3, 4, u32::MAX].map(after).into();
    assert!(times.is_sorted_by(|one, next| one >= next), "{times:?}");
    assert!(times[3] < TIMEOUT * (1 + ALONE) + SHORT_DEADLINE * 2, "{times:?}");
    assert_eq!(times[3], times[5], "one timeout is the least");
}

#[test]
fn neighbours_of_many_endless_records_go_through() {
    // One in twelve hangs; the others take no time, which is learned, so that little is lost on each.
    for exhausted in [0, 3] {
        let poison = |position: usize| (position % 12 == 7).then_some(ENDLESS);
        let seen = run_within(Lenience::After { exhausted }, Duration::ZERO, 1024, poison);
        assert_eq!(seen.refused.len(), 1024 / 12, "after {exhausted}");
        assert_eq!(seen.searched, Searched { exhausted: true, unjudged: 0 });
        assert!(seen.time < TIMEOUT * (SEARCH + ALONE + 2), "{:?}", seen.time);
    }
}

#[test]
fn instances_that_are_dear_to_make_count() {
    let start = TIMEOUT * 9 / 10;
    let seen = run_within(FRESH, start, 1024, |_| Some(Poison::Trap));
    assert_eq!(seen.refused.len(), 1024);
    assert!(seen.time < TIMEOUT * (SEARCH + ALONE + 2), "{:?}", seen.time);
    assert!(seen.refused.values().any(|refusal| refusal.kind == RejectionKind::Trap));
    // A good chunk costs one, however dear it is.
    let seen = run_within(FRESH, TIMEOUT * 100, 1024, |_| None);
    assert_eq!((seen.calls, seen.searched), (1, Searched::default()));
}

#[test]
fn a_second_run_judges_everything() {
    let start = TIMEOUT * 9 / 10;
    let seen = run_within(Lenience::Unbounded, start, 1024, |_| Some(Poison::Trap));
    assert_eq!((seen.refused.len(), seen.calls), (1024, 2047));
    assert!(seen.refused.values().all(|refusal| refusal.kind == RejectionKind::Trap));
    assert_eq!(seen.searched, Searched::default());
    let seen = run_within(Lenience::Unbounded, Duration::ZERO, 64, |_| Some(ENDLESS));
    assert!(seen.refused.values().all(|refusal| refusal.reason == "late"), "each had the full timeout");
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
        FRESH,
        |_, deadline| {
            calls += 1;
            assert_eq!(deadline, TIMEOUT);
            let late = || Err(Refusal::new(RejectionKind::Timeout, "timeout", "late").into());
            let result = if calls == 1 { late() } else { Ok(Answer::default()) };
            Attempt { result, start: Duration::ZERO, call: TIMEOUT }
        },
        |_, answer| refused += answer.refusals.len(),
    );
    assert_eq!((calls, refused), (2, 0));
}
