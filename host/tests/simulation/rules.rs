//! Rules: what must hold, checked when it could first be broken.
//!
//! - exactly once: no record has a row twice, two dead letters, or one of each, unless a second run of the
//!   chain says something else of it than the first; what is inserted was
//!   intended; offsets never go back; the text of an intent is in the metadata of every partition of its
//!   batch that has not passed it;
//! - always: a commit passes no record that has not ended; metadata can be read and is no longer
//!   than Kafka takes; in the end every record has ended, and the accounts of every host add up.

use sluice::domain::intent::bounds::METADATA_LIMIT;
use sluice::domain::intent::{Intent, PendingBatches};
use sluice::domain::ledger::{BatchId, Delivery};
use sluice::pipeline::status::{PartitionStatus, PipelineStatus};

use crate::chain::rows_of;
use crate::kafka::Record;
use crate::plan::Plan;
use crate::world::World;

/// A table took a row of a record.
pub(crate) fn row_inserted(world: &mut World, partition: usize, offset: i64, output: usize) {
    count(world, partition, offset, |record| record.ended.rows[output] += 1);
}

/// A dead letter can be read.
pub(crate) fn letter_shown(world: &mut World, partition: usize, offset: i64) {
    let log = &mut world.kafka.logs[partition];
    if offset < log.start && log.record(offset).is_none() {
        return; // Of what retention took, nobody knows which offsets had a record.
    }
    count(world, partition, offset, |record| record.ended.letters += 1);
}

fn count(world: &mut World, partition: usize, offset: i64, count: impl FnOnce(&mut Record)) {
    let Some(record) = world.kafka.logs[partition].record(offset) else {
        world.violate(|| format!("a record that there never was: partition {partition}, offset {offset}"));
        return;
    };
    count(record);
    let record = record.clone();
    let plan = world.plan.clone();
    if plan.delivery == Delivery::ExactlyOnce && is_too_often(&record, &plan) {
        world.violate(|| format!("twice: partition {partition}, {record:?}"));
    }
}

/// A batch under this token is being inserted: its intent must have been committed.
pub(crate) fn intended(world: &mut World, token: &str) {
    let id = token.split(':').nth(2).and_then(|id| id.split(['.', '~']).next()).unwrap_or_default();
    if world.plan.delivery == Delivery::ExactlyOnce
        && !token.is_empty()
        && !u128::from_str_radix(id, 16).is_ok_and(|id| world.kafka.offsets.intended.contains(&BatchId(id)))
    {
        world.violate(|| format!("inserted without an intent: {token}"));
    }
}

/// The committed offsets of these partitions moved, from where they were.
pub(crate) fn committed(world: &mut World, moved: &[(usize, i64)]) {
    let plan = world.plan.clone();
    let exactly_once = plan.delivery == Delivery::ExactlyOnce;
    for &(partition, before) in moved {
        let committed = &world.kafka.offsets.committed[partition];
        let (offset, length) = (committed.offset, committed.metadata.len());
        let fault = committed.fault.clone();
        if length > METADATA_LIMIT {
            world.violate(|| format!("metadata of {length} bytes: partition {partition}"));
        }
        if let Some(fault) = fault {
            world.violate(|| format!("metadata that cannot be read: {fault}"));
        }
        if exactly_once && offset < before {
            world.violate(|| format!("partition {partition} goes back from {before} to {offset}"));
        }
        let log = &world.kafka.logs[partition];
        let end = log.end;
        let mut passed = log.records[log.range(before, offset)].iter();
        if let Some(open) = passed.find(|record| !record.taken && !has_ended(record, &plan)).cloned() {
            world.violate(|| format!("passed before it ended: partition {partition}, {open:?}"));
        }
        if offset > end {
            world.violate(|| format!("partition {partition} is at {offset}, behind its end {end}"));
        }
    }
    if exactly_once {
        all_or_none(world);
    }
}

fn all_or_none(world: &mut World) {
    let committed = &world.kafka.offsets.committed;
    let mut missing = None;
    for (partition, listing) in committed.iter().enumerate() {
        for intent in listing.pending.intents() {
            for slice in intent.slices() {
                let other = slice.partition.partition as usize;
                let lists = |listed: &Intent| listed.id() == intent.id();
                if committed[other].offset < slice.end
                    && !committed[other].pending.intents().iter().any(lists)
                {
                    missing = Some((intent.id(), partition, other));
                }
            }
        }
    }
    if let Some((id, partition, other)) = missing {
        world.violate(|| format!("batch {id} is listed by partition {partition} and not by {other}"));
    }
}

/// Whether the group is through with every record and nothing is pending.
pub(crate) fn is_through(world: &World) -> bool {
    let offsets = &world.kafka.offsets;
    if world.plan.delivery == Delivery::AtLeastOnce {
        // A commit that was given up may still move an offset back: nobody minds.
        let mut records = world.kafka.logs.iter().flat_map(|log| &log.records);
        return records.all(|record| record.taken || has_ended(record, &world.plan));
    }
    world.inserts_under_way == 0
        && offsets.at_rest()
        && world.kafka.logs.iter().zip(&offsets.committed).all(|(log, committed)| {
            let last = log.records.last().map_or(0, |record| record.offset + 1);
            (committed.offset >= last || log.start >= last) && committed.metadata.is_empty()
        })
}

/// In the end.
pub(crate) fn all_ended(world: &mut World) {
    let plan = world.plan.clone();
    for partition in 0..plan.partitions {
        let log = &world.kafka.logs[partition];
        let wrong = log.records.iter().find(|record| !record.taken && !has_ended(record, &plan));
        if let Some(record) = wrong.cloned() {
            world.violate(|| format!("not as it must end: partition {partition}, {record:?}"));
        }
    }
}

/// What a host says, in the end, of a partition of which not everything consumed has ended.
pub(crate) fn unaccounted(delivery: Delivery, status: &PipelineStatus) -> Option<&PartitionStatus> {
    if delivery == Delivery::AtLeastOnce {
        return None; // It may read again, and again be at it, what has ended before.
    }
    status.partitions.iter().find(|partition| {
        let ended = partition.inserted + partition.filtered + partition.dead_lettered;
        partition.in_flight > 0 || partition.consumed != ended
    })
}

fn is_too_often(record: &Record, plan: &Plan) -> bool {
    let rows = rows_of(record.kind, plan.outputs);
    let ended = record.ended;
    if is_unstable(record.kind, plan) {
        return false;
    }
    // Where the table had to be asked, a row of one table and a dead letter may meet.
    let both = ended.letters > 0 && ended.rows[0] > 0 && !(plan.outputs > 1 && plan.may_lose_batches());
    both || ended.letters > 1 || ended.rows.iter().zip(rows).any(|(there, may)| *there > may)
}

/// Whether a second run may say something else of a record than the first: nothing can keep it from being there
/// twice then, since no batch that a second run forms is known to be the one that the first sent.
fn is_unstable(kind: u8, plan: &Plan) -> bool {
    kind == b'u' || (plan.archive_gap && matches!(kind, b't' | b'v'))
}

/// Whether a record ended in one of the ways in which its kind may end.
fn has_ended(record: &Record, plan: &Plan) -> bool {
    let rows = rows_of(record.kind, plan.outputs);
    let ended = record.ended;
    if plan.delivery == Delivery::AtLeastOnce {
        let inserted = record.kind != b'q' && ended.rows.iter().zip(rows).all(|(there, must)| *there >= must);
        return record.kind == b'f' || ended.letters > 0 || (record.kind != b'x' && inserted);
    }
    if is_unstable(record.kind, plan) {
        // A host that was thrown out, and does not know yet, may recover what its owner sealed and is about to
        // send: then the rows of the one are there, and the word of the other counts.
        let has_rivals = plan.hosts > 1 || plan.chaos.replace > 0;
        return has_rivals
            || ended.letters > 0
            || ended.rows.iter().zip(rows).all(|(there, must)| *there >= must);
    }
    let lost = plan.may_lose_batches() && ended.letters == 1;
    !is_too_often(record, plan)
        && match record.kind {
            b'f' => true,
            b'x' => ended.letters == 1,
            b't' | b'v' => ended.letters == 1 || ended.rows == rows,
            b'q' => ended.letters == 1 && ended.rows[0] == 0 && (ended.rows[1] == rows[1] || lost),
            _ => lost || (ended.letters == 0 && ended.rows == rows),
        }
}

/// The batches of a list, for the trace.
pub(crate) fn listed(pending: &PendingBatches) -> String {
    let shown = |intent: &Intent| {
        let slices: Vec<_> = intent
            .slices()
            .iter()
            .map(|slice| format!("{}@{}..{}", slice.partition.partition, slice.start, slice.end))
            .collect();
        format!("{}: {}", short(&intent.id().to_string()), slices.join(" "))
    };
    pending.intents().iter().map(shown).collect::<Vec<_>>().join("; ")
}

/// The beginning of a batch's identity, which tells it apart in a trace.
pub(crate) fn short(id: &str) -> &str {
    id.get(..6).unwrap_or(id)
}
