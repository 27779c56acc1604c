//! The deterministic simulation of the delivery code: the real flow over a world of fakes that loses, delays,
//! reorders, refuses and half answers, while hosts crash at every await, freeze, go on as zombies, and
//! partitions move. One seed decides everything.
//!
//! `SIMULATION_SCHEDULES=n` runs so many schedules of each guarantee, from `SIMULATION_FIRST=n` on (0 by default);
//! `SIMULATION_SEED=n` runs one, of the guarantee that the test is of, and prints what happened:
//!
//! ```text
//! SIMULATION_SEED=4711 cargo test -p sluice --test simulation exactly_once -- --nocapture
//! ```
//!
//! What it does not show: requests of a transaction that arrive when a later transaction of the same producer
//! is open (brokers before KIP-890 may mistake them), records that retention takes while an INSERT of them is
//! under way, and records of which a second run of the chain says something else than the first, which may
//! end twice or, where a host that was thrown out of the group recovers before it knows, nowhere.

#[path = "simulation/chain.rs"]
mod chain;
#[path = "simulation/clickhouse.rs"]
mod clickhouse;
#[path = "simulation/group.rs"]
mod group;
#[path = "simulation/host.rs"]
mod host;
#[path = "simulation/intake.rs"]
mod intake;
#[path = "simulation/kafka.rs"]
mod kafka;
#[path = "simulation/offsets.rs"]
mod offsets;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/planted.rs"]
mod planted;
#[path = "simulation/planting.rs"]
mod planting;
#[path = "simulation/ports.rs"]
mod ports;
#[path = "simulation/process.rs"]
mod process;
#[path = "simulation/rules.rs"]
mod rules;
#[path = "simulation/schedule.rs"]
mod schedule;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/world.rs"]
mod world;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use plan::Plan;
use planted::Planted;
use sluice::domain::ledger::Delivery;

/// A broken rule, and the seed that broke it.
struct Failure {
    seed: u64,
    rule: String,
}

/// Runs schedules of these seeds on every core; returns the least seed that broke a rule.
fn search(delivery: Delivery, planted: Option<Planted>, seeds: Range<u64>) -> Option<Failure> {
    let (next, found) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let work = || {
        let mut failure: Option<Failure> = None;
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || seed > found.load(Ordering::Relaxed) {
                return failure;
            }
            if let Some(rule) = schedule::run(Plan::draw(seed, delivery, planted), false).violation {
                found.fetch_min(seed, Ordering::Relaxed);
                failure = failure.filter(|before| before.seed < seed).or(Some(Failure { seed, rule }));
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let failures = threads.into_iter().filter_map(|thread| thread.join().expect("no panic"));
        failures.min_by_key(|failure| failure.seed)
    })
}

/// Runs one schedule and prints what happened.
fn replay(delivery: Delivery, planted: Option<Planted>, seed: u64) -> Option<String> {
    let outcome = schedule::run(Plan::draw(seed, delivery, planted), true);
    for line in &outcome.trace {
        println!("{line}");
    }
    outcome.violation
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}: not a number")))
}

/// No schedule of a guarantee breaks a rule.
fn holds(delivery: Delivery, test: &str, schedules: u64) {
    if let Some(seed) = variable("SIMULATION_SEED") {
        assert_eq!(replay(delivery, None, seed), None, "seed {seed}");
        return;
    }
    let schedules = variable("SIMULATION_SCHEDULES").unwrap_or(schedules);
    let first = variable("SIMULATION_FIRST").unwrap_or(0);
    let started = Instant::now();
    if let Some(Failure { seed, rule }) = search(delivery, None, first..first + schedules) {
        panic!(
            "seed {seed} breaks a rule: {rule}\nreplay it with\n    \
             SIMULATION_SEED={seed} cargo test -p sluice --test simulation {test} -- --nocapture"
        );
    }
    println!("{schedules} schedules hold, {:.1?}", started.elapsed());
}

#[test]
fn at_least_once_loses_nothing() {
    holds(Delivery::AtLeastOnce, "at_least_once", 10_000);
}

#[test]
fn exactly_once_ends_every_record_once() {
    holds(Delivery::ExactlyOnce, "exactly_once", 100_000);
}

#[test]
fn one_seed_is_one_run() {
    for seed in 0..60 {
        for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
            let run = || schedule::run(Plan::draw(seed, delivery, None), true).trace;
            let (first, second) = (run(), run());
            let differs = first.iter().zip(&second).find(|(first, second)| first != second);
            assert_eq!(differs, None, "{delivery:?}, seed {seed}");
            assert_eq!(first.len(), second.len(), "{delivery:?}, seed {seed}");
        }
    }
}

/// What must have happened in some schedule, in the words of the trace: else the rest proves little.
const CORNERS: [&str; 25] = [
    "is dead",
    "is frozen",
    "and replaced",
    "stops reading",
    "records unfinished",
    "lost its membership",
    ", lost",
    "some withheld",
    "is handed out",
    "is cut off from kafka",
    "clickhouse is away",
    "not now",
    "has that token",
    "refused for good",
    "has the token and none of the rows",
    "~ rows",
    ".0.1 rows",
    "pending [",
    "starts at",
    "gets another chain",
    "took too long",
    "aborted",
    "the transaction was aborted",
    "the group has another generation",
    "not a member of the group",
];

#[test]
fn the_schedules_reach_every_corner() {
    let mut open = CORNERS.to_vec();
    for seed in 0..1_000 {
        let trace = schedule::run(Plan::draw(seed, Delivery::ExactlyOnce, None), true).trace;
        open.retain(|corner| !trace.iter().any(|line| line.contains(corner)));
        if open.is_empty() {
            return;
        }
    }
    panic!("never seen: {open:?}");
}

/// A planted bug is found within so many schedules.
fn finds(planted: Planted, schedules: u64) {
    if let Some(seed) = variable("SIMULATION_SEED") {
        assert_ne!(replay(Delivery::ExactlyOnce, Some(planted), seed), None, "seed {seed}");
        return;
    }
    let found = search(Delivery::ExactlyOnce, Some(planted), 0..schedules);
    let Failure { seed, rule } =
        found.unwrap_or_else(|| panic!("{planted:?} is not found in {schedules} schedules"));
    println!("{planted:?} is found by seed {seed}: {rule}");
}

#[test]
fn finds_batches_without_intent() {
    finds(Planted::NoIntent, 100);
}

#[test]
fn finds_a_table_without_deduplication() {
    finds(Planted::NoToken, 1_000);
}

#[test]
fn finds_rejections_that_are_not_recorded() {
    finds(Planted::NoForced, 10_000);
}

#[test]
fn finds_intents_of_some_partitions_only() {
    finds(Planted::Partial, 1_000);
}

#[test]
fn finds_recovery_of_what_is_settled() {
    finds(Planted::Stale, 10_000);
}

#[test]
fn finds_dead_letters_of_other_partitions() {
    finds(Planted::AllLetters, 10_000);
}

#[test]
fn finds_commits_before_the_insert() {
    finds(Planted::CommitBeforeInsert, 100);
}

#[test]
fn finds_plain_commits_that_overlap_transactions() {
    finds(Planted::Overlapping, 10_000);
}

#[test]
fn finds_pieces_under_tokens_of_their_own() {
    finds(Planted::RandomPieces, 1_000);
}

#[test]
fn finds_tokens_that_are_believed() {
    finds(Planted::BelievedTokens, 1_000);
}

#[test]
fn finds_records_that_come_again_and_are_taken_for_those_of_another_log() {
    finds(Planted::TakenForOtherLog, 1_000);
}

#[test]
fn finds_inserts_without_token_after_revocation() {
    finds(Planted::InsertAfterRevocation, 10_000);
}
