//! Plan: what a seed decides of a schedule before it begins. Every fault is drawn to be absent, rare
//! or frequent, so that schedules differ in what they are about, and not only in when it happens.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use sluice::domain::ledger::Delivery;

use crate::planted::Planted;

/// All randomness of a schedule.
pub(crate) struct Random(StdRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..count`; 0 where there is none.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        if count == 0 { 0 } else { self.0.next_u64() % count }
    }

    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub(crate) fn chance(&mut self, chance: f64) -> bool {
        chance > 0.0 && ((self.0.next_u64() >> 11) as f64) < chance * (1u64 << 53) as f64
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// How a way through the network behaves, in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// Usual time one way, at most.
    pub(crate) latency: u64,
    /// Chance that a message takes `slow` at most instead.
    pub(crate) slow_chance: f64,
    pub(crate) slow: u64,
    /// Chance that a message never arrives.
    pub(crate) loss: f64,
    /// After which the sender no longer waits for an answer.
    pub(crate) timeout: u64,
}

/// What happens to hosts and servers: how often relative to each other. 0 never.
#[derive(Clone, Debug)]
pub(crate) struct Chaos {
    /// Milliseconds between two blows, at most.
    pub(crate) interval: u64,
    pub(crate) crash: u64,
    pub(crate) freeze: u64,
    /// A frozen process is replaced by a new one, and goes on as a zombie.
    pub(crate) replace: u64,
    /// A host stops in order and comes back.
    pub(crate) stop: u64,
    /// A host cannot reach Kafka for a while.
    pub(crate) cut: u64,
    pub(crate) clickhouse_away: u64,
    pub(crate) retention: u64,
    /// A host gets another chain.
    pub(crate) publish: u64,
    /// Records come in.
    pub(crate) produce: u64,
}

/// See the module documentation. Times are in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) delivery: Delivery,
    pub(crate) planted: Option<Planted>,
    pub(crate) hosts: usize,
    pub(crate) partitions: usize,
    /// Records of a partition at the start, at most.
    pub(crate) records: u64,
    /// Tables.
    pub(crate) outputs: usize,
    /// How long there are faults.
    pub(crate) duration: u64,
    pub(crate) cooperative: bool,
    pub(crate) session_timeout: u64,
    pub(crate) rebalance_timeout: u64,
    pub(crate) transaction_timeout: u64,
    /// From the decision about a transaction until it shows, at most.
    pub(crate) marker_delay: u64,
    pub(crate) kafka: Network,
    pub(crate) clickhouse: Network,
    /// Chance that ClickHouse refuses an INSERT that it would take later.
    pub(crate) insert_refusals: f64,
    /// Chance that ClickHouse notes a token, and is killed before it has the rows.
    pub(crate) lost_rows: f64,
    /// Tokens that a table remembers.
    pub(crate) window: usize,
    pub(crate) chaos: Chaos,
    /// Records for each kind, relative to each other.
    pub(crate) kinds: Vec<u8>,
    /// Chance that a record has an offset that does not follow.
    pub(crate) gaps: f64,
    /// Chance that a fetch begins before its place, so that records come again.
    pub(crate) again: f64,
    /// Whether one chain is missing in the archive.
    pub(crate) archive_gap: bool,
    pub(crate) batch_rows: usize,
    pub(crate) linger: u64,
    pub(crate) concurrent_inserts: usize,
    pub(crate) drain_timeout: u64,
    pub(crate) budget: usize,
    /// Records of a chunk, at most.
    pub(crate) chunk: u64,
    /// Time that a worker takes for a chunk, at most.
    pub(crate) judging: u64,
}

fn network(random: &mut Random, timeout: u64) -> Network {
    let trouble = *random.pick(&[0.0, 0.0, 0.02, 0.1]);
    Network {
        latency: *random.pick(&[1, 4, 12]),
        slow_chance: *random.pick(&[0.0, 0.02, 0.1, 0.25]),
        slow: *random.pick(&[50, 150, 600]),
        loss: trouble,
        timeout,
    }
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn draw(seed: u64, delivery: Delivery, planted: Option<Planted>) -> Self {
        // Not the stream that decides about the run: a change here must not shift everything there.
        let random = &mut Random::new(seed ^ 0x5eed_0f91_a4b3);
        let kafka = network(random, 80);
        let clickhouse = network(random, *Random::new(seed).pick(&[60, 200]));
        let mut often = |choices: &[u64]| *random.pick(choices);
        let chaos = Chaos {
            interval: often(&[30, 60, 150]),
            crash: often(&[0, 1, 4]),
            freeze: often(&[0, 1, 3]),
            replace: often(&[0, 0, 1]),
            stop: often(&[0, 1, 2]),
            cut: often(&[0, 1, 3]),
            clickhouse_away: often(&[0, 0, 1]),
            retention: often(&[0, 0, 0, 1]),
            publish: often(&[0, 1, 2]),
            produce: often(&[1, 3]),
        };
        let mut kinds = b"mmmm".to_vec();
        for kind in *b"ffxxxttttqqvvvd" {
            if random.chance(0.5) {
                kinds.push(kind);
            }
        }
        if random.chance(0.1) {
            kinds.extend(b"uu");
        }
        let archive_gap = random.chance(0.05);
        let drain_timeout = *random.pick(&[20, 100, 400]);
        Self {
            seed,
            delivery,
            planted,
            hosts: random.between(1, 3) as usize,
            partitions: random.between(1, 4) as usize,
            records: *random.pick(&[4, 8, 16]),
            outputs: 1 + usize::from(random.chance(0.25)),
            duration: *random.pick(&[200, 400, 800]),
            cooperative: random.chance(0.6),
            session_timeout: *random.pick(&[60, 120]),
            // A member that drains its partitions must have the time to join after that.
            rebalance_timeout: drain_timeout + *random.pick(&[80, 300]),
            transaction_timeout: *random.pick(&[100, 250]),
            marker_delay: *random.pick(&[1, 10, 60]),
            kafka,
            clickhouse,
            insert_refusals: *random.pick(&[0.0, 0.0, 0.1]),
            window: *random.pick(&[1_000, 10_000]),
            chaos,
            kinds,
            gaps: *random.pick(&[0.0, 0.2]),
            archive_gap,
            batch_rows: *random.pick(&[2, 6, 1_000]),
            linger: *random.pick(&[2, 10, 30]),
            concurrent_inserts: random.between(1, 3) as usize,
            drain_timeout,
            budget: *random.pick(&[4_000, 1 << 20]),
            chunk: *random.pick(&[1, 3, 8]),
            judging: *random.pick(&[1, 5, 30]),
            lost_rows: *random.pick(&[0.0, 0.0, 0.05, 0.2]),
            again: *random.pick(&[0.0, 0.0, 0.02, 0.2]),
        }
    }

    /// Whether a batch may be impossible to form again.
    pub(crate) fn may_lose_batches(&self) -> bool {
        self.archive_gap || self.chaos.retention > 0 || self.kinds.contains(&b'u')
    }
}
