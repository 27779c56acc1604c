//! Offsets: committed offsets with their metadata, and the transactions that move them.
//!
//! As Kafka's coordinators have it: a transactional commit is fenced by the group's generation when it
//! is written, waits for the decision about its transaction, and shows when the markers are written. Of
//! two commits of a partition the one *written* last wins, whichever shows last. A producer that begins
//! anew, and a transaction that takes too long, fence what went before by the epoch.

use std::collections::BTreeSet;

use sluice::domain::intent::{Intent, PendingBatches};
use sluice::domain::ledger::BatchId;

use crate::plan::Plan;
use crate::process::Membership;
use crate::rules;
use crate::world::World;

/// Where the group goes on reading a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) metadata: String,
    /// What the metadata lists.
    pub(crate) pending: PendingBatches,
    /// Why it cannot be read, if it cannot.
    pub(crate) fault: Option<String>,
    /// Place in the order of writing.
    written: u64,
}

impl Committed {
    fn new(offset: i64, metadata: &str, written: u64) -> Self {
        let read = PendingBatches::decode(metadata);
        let fault = read.as_ref().err().map(ToString::to_string);
        let pending = read.ok().flatten().unwrap_or_default();
        Self { offset, metadata: metadata.to_owned(), pending, fault, written }
    }
}

/// A step of one partition: its number, offset and metadata.
pub(crate) type Point = (usize, i64, String);

/// A dead letter as the world sees it: partition and offset of its record.
pub(crate) type Letter = (usize, i64);

/// Why the coordinator does not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Another producer took over, or the transaction took too long.
    Fenced,
    /// The transaction before is not finished; ask again.
    Concurrent,
    /// The group does not know the member, or has another generation.
    Generation,
    /// There is no such transaction.
    State,
}

struct Transaction {
    number: u64,
    decided: Option<bool>,
    offsets: Vec<(usize, Committed)>,
    letters: Vec<Letter>,
}

/// The state of one transactional id.
#[derive(Default)]
struct Producer {
    epoch: i64,
    open: Option<Transaction>,
    /// The one that ended last, and how.
    last: (u64, bool),
}

/// See the module documentation.
pub(crate) struct Offsets {
    pub(crate) committed: Vec<Committed>,
    /// Every batch of which it was decided that it is listed.
    pub(crate) intended: BTreeSet<BatchId>,
    producers: Vec<Producer>,
    written: u64,
}

impl Offsets {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            committed: vec![Committed::default(); plan.partitions],
            intended: BTreeSet::new(),
            producers: (0..plan.hosts).map(|_| Producer::default()).collect(),
            written: 0,
        }
    }

    /// Whether no transaction is open.
    pub(crate) fn at_rest(&self) -> bool {
        self.producers.iter().all(|producer| producer.open.is_none())
    }

    /// What is committed; `None` while a transaction is open that may change it.
    pub(crate) fn stable(&self, partition: usize) -> Option<&Committed> {
        let moves = |open: &Transaction| open.offsets.iter().any(|(moved, _)| *moved == partition);
        let unstable = self.producers.iter().filter_map(|producer| producer.open.as_ref()).any(moves);
        (!unstable).then(|| &self.committed[partition])
    }
}

/// InitProducerId: the epoch of a producer that begins anew.
pub(crate) fn begin_producer(world: &mut World, host: usize) -> Result<i64, Refusal> {
    let producer = &mut world.kafka.offsets.producers[host];
    match &producer.open {
        None => {
            producer.epoch += 1;
            Ok(producer.epoch)
        }
        Some(open) => {
            if open.decided.is_none() {
                producer.epoch += 1;
                decide(world, host, false);
            }
            Err(Refusal::Concurrent)
        }
    }
}

/// The open transaction of that number; it opens with the first request that names it.
fn open(world: &mut World, host: usize, epoch: i64, number: u64) -> Result<&mut Transaction, Refusal> {
    let timeout = world.plan.transaction_timeout;
    let producer = &mut world.kafka.offsets.producers[host];
    if producer.epoch != epoch {
        return Err(Refusal::Fenced);
    }
    match &producer.open {
        Some(open) if open.number == number && open.decided.is_none() => {}
        Some(open) if open.number < number && open.decided.is_some() => return Err(Refusal::Concurrent),
        Some(_) => return Err(Refusal::State),
        None if number <= producer.last.0 => return Err(Refusal::State),
        None => {
            let (offsets, letters) = (Vec::new(), Vec::new());
            producer.open = Some(Transaction { number, decided: None, offsets, letters });
            world.after(timeout, move |world| {
                let producer = &mut world.kafka.offsets.producers[host];
                if producer.open.as_ref().is_some_and(|open| open.number == number && open.decided.is_none())
                {
                    producer.epoch += 1;
                    world.note(|| format!("kafka: transaction {number} of host {host} took too long"));
                    decide(world, host, false);
                }
            });
        }
    }
    world.kafka.offsets.producers[host].open.as_mut().ok_or(Refusal::State)
}

/// Produce: dead letters in a transaction. Sent again, they are there once.
pub(crate) fn add_letters(
    world: &mut World,
    host: usize,
    epoch: i64,
    number: u64,
    letters: Vec<Letter>,
) -> Result<(), Refusal> {
    open(world, host, epoch, number)?.letters = letters;
    Ok(())
}

/// TxnOffsetCommit: offsets in a transaction.
pub(crate) fn add_offsets(
    world: &mut World,
    host: usize,
    epoch: i64,
    number: u64,
    membership: Membership,
    points: &[Point],
) -> Result<(), Refusal> {
    let known = world.kafka.group.knows(membership);
    world.kafka.offsets.written += 1;
    let written = world.kafka.offsets.written;
    let transaction = open(world, host, epoch, number)?;
    if !known {
        return Err(Refusal::Generation);
    }
    let committed =
        |(partition, offset, metadata): &Point| (*partition, Committed::new(*offset, metadata, written));
    transaction.offsets.extend(points.iter().map(committed));
    Ok(())
}

/// EndTxn. Asked again, the answer is the same.
pub(crate) fn end(
    world: &mut World,
    host: usize,
    epoch: i64,
    number: u64,
    commit: bool,
) -> Result<(), Refusal> {
    let producer = &world.kafka.offsets.producers[host];
    if producer.epoch != epoch {
        return Err(Refusal::Fenced);
    }
    match &producer.open {
        Some(open) if open.number == number => match open.decided {
            None => decide(world, host, commit),
            Some(decided) if decided == commit => {}
            Some(_) => return Err(Refusal::State),
        },
        _ if producer.last == (number, commit) => {}
        _ => return Err(Refusal::State),
    }
    Ok(())
}

fn decide(world: &mut World, host: usize, commit: bool) {
    let offsets = &mut world.kafka.offsets;
    let Some(open) = &mut offsets.producers[host].open else { return };
    open.decided = Some(commit);
    if commit {
        let intents = open.offsets.iter().flat_map(|(_, committed)| committed.pending.intents());
        offsets.intended.extend(intents.map(Intent::id));
    }
    let delay = if world.calm { 0 } else { world.random.below(world.plan.marker_delay + 1) };
    world.after(delay, move |world| show(world, host));
}

/// The markers of a decided transaction are written.
fn show(world: &mut World, host: usize) {
    let producer = &mut world.kafka.offsets.producers[host];
    let Some(Transaction { number, decided, offsets, letters }) = producer.open.take() else { return };
    let commit = decided == Some(true);
    producer.last = (number, commit);
    world.note(|| {
        let outcome = if commit { "committed" } else { "aborted" };
        format!(
            "kafka: transaction {number} of host {host} {outcome}: {}, letters {letters:?}",
            shown(&offsets)
        )
    });
    if !commit {
        return;
    }
    for (partition, offset) in letters {
        rules::letter_shown(world, partition, offset);
    }
    let mut moved = Vec::new();
    for (partition, new) in offsets {
        let committed = &mut world.kafka.offsets.committed[partition];
        if committed.written <= new.written {
            moved.push((partition, committed.offset));
            *committed = new;
        }
    }
    rules::committed(world, &moved);
}

fn shown(offsets: &[(usize, Committed)]) -> String {
    let shown = |(partition, committed): &(usize, Committed)| {
        format!("{partition}@{} [{}]", committed.offset, rules::listed(&committed.pending))
    };
    offsets.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// OffsetCommit: shows at once.
pub(crate) fn commit_plainly(
    world: &mut World,
    membership: Membership,
    points: &[Point],
) -> Result<(), Refusal> {
    if !world.kafka.group.knows(membership) {
        return Err(Refusal::Generation);
    }
    let offsets = &mut world.kafka.offsets;
    offsets.written += 1;
    let mut moved = Vec::new();
    let mut new = Vec::new();
    for (partition, offset, metadata) in points {
        new.push((*partition, Committed::new(*offset, metadata, offsets.written)));
        moved.push((*partition, offsets.committed[*partition].offset));
    }
    for (partition, committed) in &new {
        offsets.intended.extend(committed.pending.intents().iter().map(Intent::id));
        offsets.committed[*partition] = committed.clone();
    }
    world.note(|| format!("kafka: plain commit of member {}: {}", membership.member, shown(&new)));
    rules::committed(world, &moved);
    Ok(())
}
