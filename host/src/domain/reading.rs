//! Reading: what is read of one partition under one assignment: which record comes next, and into which chunk
//! it goes.
//!
//! Invariant: chunks are numbered in the order of their offsets, without overlap, and hold every record that
//! was taken in; the tests below check it.

use std::sync::Arc;

use super::chunk::{Chunk, ChunkBuilder};
use super::ledger::{Epoch, PartitionId};

/// What a record is that the client hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// One that was not read yet. Offsets may be missing before it: control records, compaction.
    New,
    /// One that was read: the client has fetched it again, as librdkafka may around a rebalance.
    Again,
    /// One of another log, at an offset that was read: the topic was made again, or its log was cut off.
    OtherLog,
}

/// A chunk that was read.
#[derive(Clone, Debug)]
pub struct ReadChunk {
    /// Partition.
    pub partition: PartitionId,
    /// Assignment under which it was read.
    pub epoch: Epoch,
    /// Number of the chunk, from 0 in every assignment.
    pub sequence: u64,
    /// Its records.
    pub chunk: Arc<Chunk>,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Reading {
    partition: PartitionId,
    epoch: Epoch,
    next_sequence: u64,
    next_offset: i64,
    builder: Option<ChunkBuilder>,
}

impl Reading {
    /// Reads a partition from the record at `offset` on, or from the first one that there is after it.
    pub fn new(partition: PartitionId, epoch: Epoch, offset: i64) -> Self {
        Self { partition, epoch, next_sequence: 0, next_offset: offset, builder: None }
    }

    /// Partition.
    pub fn partition(&self) -> &PartitionId {
        &self.partition
    }

    /// Assignment.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Least offset that a new record may have.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// What a record at `offset` is. Where it is not new, the `end` of the partition is asked for, as the broker
    /// told it with the record: a log that was read further than it goes is another one.
    pub fn arrival(&self, offset: i64, end: impl FnOnce() -> Option<i64>) -> Arrival {
        if offset >= self.next_offset {
            Arrival::New
        } else if end().is_some_and(|end| end >= self.next_offset) {
            Arrival::Again
        } else {
            Arrival::OtherLog
        }
    }

    /// Takes in a new record at `offset`, of so many `bytes` of content, which `push` copies; returns the chunk
    /// before it where there is no place for it.
    pub fn take(
        &mut self,
        offset: i64,
        bytes: usize,
        push: impl FnOnce(&mut ChunkBuilder),
    ) -> Option<ReadChunk> {
        debug_assert!(offset >= self.next_offset, "{offset} was read already");
        let is_full = self.builder.as_ref().is_some_and(|builder| builder.refuses(offset, bytes));
        let full = if is_full { self.finish() } else { None };
        let PartitionId { topic, partition } = &self.partition;
        let builder =
            self.builder.get_or_insert_with(|| ChunkBuilder::new(Arc::clone(topic), *partition, offset));
        push(builder);
        self.next_offset = offset + 1;
        full
    }

    /// Whether there are records that are in no chunk yet.
    pub fn is_waiting(&self) -> bool {
        self.builder.is_some()
    }

    /// What waits, as the next chunk.
    pub fn finish(&mut self) -> Option<ReadChunk> {
        let chunk = Arc::new(self.builder.take()?.build());
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Some(ReadChunk { partition: self.partition.clone(), epoch: self.epoch, sequence, chunk })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chunk::MAXIMUM_RECORDS;

    fn reading(offset: i64) -> Reading {
        Reading::new(PartitionId { topic: "topic".into(), partition: 3 }, 7, offset)
    }

    fn take(reading: &mut Reading, offset: i64) -> Option<ReadChunk> {
        reading.take(offset, 1, |builder| builder.push(offset, 0, None, Some(b"x"), []))
    }

    #[test]
    fn a_record_that_comes_again_is_told_from_one_of_another_log_by_the_end_of_the_partition() {
        // All before 58,686 was read, and 58,683 comes: of the same log, to which nothing or something was added.
        let reading = reading(58_686);
        for end in [58_686, 58_690] {
            assert_eq!(reading.arrival(58_683, || Some(end)), Arrival::Again);
        }
        for end in [Some(58_685), Some(1), None] {
            assert_eq!(reading.arrival(58_683, || end), Arrival::OtherLog);
        }
        for offset in [58_686, 58_999] {
            assert_eq!(reading.arrival(offset, || panic!("nothing is to be asked")), Arrival::New);
        }
    }

    #[test]
    fn every_record_is_in_one_chunk_and_chunks_follow_each_other() {
        let mut reading = reading(10);
        let mut chunks = Vec::new();
        let mut taken = Vec::new();
        let mut offset = 10;
        for number in 0..3 * MAXIMUM_RECORDS as i64 {
            // Some offsets are missing; at two places a chunk is taken before it is full.
            offset += 1 + i64::from(number % 7 == 0);
            assert_eq!(reading.arrival(offset, || panic!("nothing is to be asked")), Arrival::New);
            chunks.extend(take(&mut reading, offset));
            taken.push(offset);
            if number == 5 || number == 1_500 {
                chunks.extend(reading.finish());
                assert!(!reading.is_waiting());
            }
        }
        assert!(reading.is_waiting());
        chunks.extend(reading.finish());
        assert!(reading.finish().is_none());
        assert_eq!(reading.next_offset(), offset + 1);
        assert_eq!(chunks.iter().map(|read| read.sequence).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(chunks.iter().all(|read| read.epoch == 7 && read.partition == *reading.partition()));
        let offsets: Vec<i64> = chunks
            .iter()
            .flat_map(|read| (0..read.chunk.len()).map(|index| read.chunk.offset(index)))
            .collect();
        assert_eq!(offsets, taken);
    }
}
