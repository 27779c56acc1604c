//! Kafka: the source log of every partition, the dead-letter topic as `read_committed` sees it, and
//! both coordinators ([`crate::group`], [`crate::offsets`]).

use std::sync::Arc;

use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::ledger::PartitionId;

use crate::group::Group;
use crate::offsets::Offsets;
use crate::plan::{Plan, Random};

/// Most tables of a mapper.
pub(crate) const OUTPUTS: usize = 2;

/// How often a record ended, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Rows by table.
    pub(crate) rows: [u32; OUTPUTS],
    /// Dead letters that can be read.
    pub(crate) letters: u32,
}

/// A record of the source topic.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    /// Its payload, which its verdict depends on.
    pub(crate) kind: u8,
    pub(crate) ended: Ended,
    /// Retention took it before the group had passed it.
    pub(crate) taken: bool,
}

/// A partition of the source topic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Every record that there ever was.
    pub(crate) records: Vec<Record>,
    /// Offset of the oldest record that is still there.
    pub(crate) start: i64,
    /// Offset of the next record.
    pub(crate) end: i64,
}

impl Log {
    /// Records with an offset in `start..end`, still there or not.
    pub(crate) fn range(&self, start: i64, end: i64) -> std::ops::Range<usize> {
        let at = |offset: i64| self.records.partition_point(|record| record.offset < offset);
        at(start)..at(end.max(start))
    }

    pub(crate) fn record(&mut self, offset: i64) -> Option<&mut Record> {
        let index = self.records.binary_search_by_key(&offset, |record| record.offset).ok()?;
        Some(&mut self.records[index])
    }

    fn append(&mut self, plan: &Plan, random: &mut Random) {
        if random.chance(plan.gaps) {
            self.end += random.between(1, 3) as i64;
        }
        let kind = *random.pick(&plan.kinds);
        self.records.push(Record { offset: self.end, kind, ended: Ended::default(), taken: false });
        self.end += 1;
    }

    /// Chunks of at most `most` records, of the records that are there with an offset in `start..end`.
    pub(crate) fn chunk(&self, partition: usize, start: i64, end: i64, most: usize) -> Option<Arc<Chunk>> {
        let range = self.range(start.max(self.start), end);
        let records = &self.records[range];
        let records = &records[..records.len().min(most)];
        let id = partition_id(partition);
        let mut builder = ChunkBuilder::new(id.topic, id.partition, records.first()?.offset);
        for record in records {
            builder.push(record.offset, 0, None, Some(&[record.kind]), []);
        }
        Some(Arc::new(builder.build()))
    }
}

/// See the module documentation.
pub(crate) struct Kafka {
    pub(crate) logs: Vec<Log>,
    pub(crate) group: Group,
    pub(crate) offsets: Offsets,
}

impl Kafka {
    pub(crate) fn new(plan: &Plan, random: &mut Random) -> Self {
        let mut logs = vec![Log::default(); plan.partitions];
        for log in &mut logs {
            for _ in 0..random.between(1, plan.records) {
                log.append(plan, random);
            }
        }
        Self { logs, group: Group::default(), offsets: Offsets::new(plan) }
    }

    /// Some records come in.
    pub(crate) fn produce(&mut self, plan: &Plan, random: &mut Random) {
        for log in &mut self.logs {
            for _ in 0..random.below(plan.records / 2) {
                log.append(plan, random);
            }
        }
        // Control records at the end are offsets without a record.
        if random.chance(plan.gaps) {
            let log = random.below(self.logs.len() as u64) as usize;
            self.logs[log].end += 1;
        }
    }

    /// Retention takes the head of a partition; returns which, and where it starts now.
    pub(crate) fn retain(&mut self, random: &mut Random) -> (usize, i64) {
        let partition = random.below(self.logs.len() as u64) as usize;
        let committed = self.offsets.committed[partition].offset;
        let log = &mut self.logs[partition];
        // Around the group's offset: that is where it matters.
        let start = (committed + random.between(0, 6) as i64 - 2).clamp(log.start, log.end);
        log.start = start;
        for record in &mut log.records {
            record.taken |= record.offset < start && record.offset >= committed;
        }
        (partition, start)
    }
}

/// The partition of a number.
pub(crate) fn partition_id(partition: usize) -> PartitionId {
    thread_local! {
        static TOPIC: Arc<str> = Arc::from("topic");
    }
    PartitionId { topic: TOPIC.with(Arc::clone), partition: partition as i32 }
}
