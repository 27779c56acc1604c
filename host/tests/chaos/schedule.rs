//! What is to happen, from a seed alone.
//!
//! Invariant: the same seed gives the same events, whatever becomes of them. Faults are dealt like
//! cards from a shuffled pack, so that a short run has seen every kind.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::revisions;

/// Kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL.
    KillHost,
    KillClickHouse,
    KillBroker,
    /// A host that was not there joins the group.
    Join,
    /// A host drains (SIGTERM) and stays away.
    Leave,
    /// A host drains and comes back with another revision of the modules.
    Swap,
    /// SIGSTOP, mostly for longer than the session timeout, then SIGCONT.
    Freeze,
    /// The same of the broker, which is off its own list of brokers for a moment after that.
    FreezeBroker,
    /// Connections between a host and a server are cut.
    Cut,
    /// Everything between a host and a server takes longer.
    Delay,
    /// Nothing comes through, and nobody is told.
    Stall,
    /// Nothing comes through, and connections are refused.
    Refuse,
    /// A commit, or a step of a transaction, happens and its answer is lost.
    SwallowCommit,
    /// An INSERT happens and its answer is lost.
    SwallowInsert,
}

/// How many of each are in the pack.
const PACK: [(Fault, usize); 14] = [
    (Fault::KillHost, 7),
    (Fault::KillClickHouse, 2),
    (Fault::KillBroker, 1),
    (Fault::Join, 1),
    (Fault::Leave, 1),
    (Fault::Swap, 2),
    (Fault::Freeze, 2),
    (Fault::FreezeBroker, 1),
    (Fault::Cut, 2),
    (Fault::Delay, 1),
    (Fault::Stall, 2),
    (Fault::Refuse, 1),
    (Fault::SwallowCommit, 3),
    (Fault::SwallowInsert, 3),
];

/// Between a host and which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Kafka,
    ClickHouse,
}

/// One event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Since the event before.
    pub(super) after: Duration,
    pub(super) fault: Fault,
    /// The host it is for; another where this one is not there.
    pub(super) slot: usize,
    pub(super) peer: Peer,
    /// From 0 to 1: how long it lasts, within what is usual for the fault.
    pub(super) length: f64,
    /// Answers to swallow.
    pub(super) count: u64,
    /// Revision of the modules that the host comes back with, if it changes.
    pub(super) revision: Option<usize>,
}

/// See the module documentation.
pub(super) struct Schedule {
    random: StdRng,
    pack: Vec<Fault>,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), pack: Vec::new() }
    }

    /// The next events, before the group is given the time to make progress.
    pub(super) fn burst(&mut self, slots: usize) -> Vec<Event> {
        let length = self.random.random_range(3..=8);
        (0..length).map(|_| self.event(slots)).collect()
    }

    fn event(&mut self, slots: usize) -> Event {
        if self.pack.is_empty() {
            self.pack = PACK.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect();
            self.pack.shuffle(&mut self.random);
        }
        let fault = self.pack.pop().expect("the pack was filled");
        let random = &mut self.random;
        let (changes, other) = (random.random_bool(0.3), random.random_range(0..revisions::COUNT));
        Event {
            after: Duration::from_millis(random.random_range(1_000..4_000)),
            fault,
            slot: random.random_range(0..slots),
            peer: if random.random_bool(0.6) { Peer::Kafka } else { Peer::ClickHouse },
            length: random.random_range(0.0..1.0),
            count: random.random_range(1..=3),
            revision: (changes || fault == Fault::Swap).then_some(other),
        }
    }
}

impl Event {
    /// How long it lasts, between `from` and `to` milliseconds.
    pub(super) fn lasting(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from) + Duration::from_millis(to - from).mul_f64(self.length)
    }
}
