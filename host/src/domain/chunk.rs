//! Chunk: up to 1,024 consecutive records of one partition, stored column by column.
//!
//! The columns are those of the module contract (`guest-sdk/wit/module.wit`), so a chunk crosses
//! into wasm without being rearranged. A chunk is immutable once built; [`ChunkBuilder`] copies
//! each record in once, and nothing copies it again until it is a dead letter.

use std::sync::Arc;

use super::ledger::PartitionId;

/// Most records in a chunk. Larger chunks gain nothing at the wasm boundary (docs/ARCHITECTURE.md).
pub const MAXIMUM_RECORDS: usize = 1024;

/// Payload bytes after which a chunk is closed, so that one call to a module stays short.
pub const TARGET_BYTES: usize = 1 << 20;

/// Bytes of a record's content: key, payload, header names and values together.
pub fn content_bytes<'a>(
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> usize {
    let length = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
    let headers = headers.into_iter().map(|(name, value)| name.len() + length(value));
    length(key) + length(payload) + headers.sum::<usize>()
}

/// A column of byte strings: value `i` is `bytes[ends[i-1]..ends[i]]`; some may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// All values, one after the other.
    pub bytes: Vec<u8>,
    /// End of each value in `bytes`.
    pub ends: Vec<u32>,
    /// Indexes, increasing, of the values that are absent rather than empty.
    pub nulls: Vec<u32>,
}

impl Column {
    /// Appends a value; `None` is absent.
    pub fn push(&mut self, value: Option<&[u8]>) {
        match value {
            Some(bytes) => self.bytes.extend_from_slice(bytes),
            None => self.nulls.push(self.ends.len() as u32),
        }
        self.ends.push(self.bytes.len() as u32);
    }

    /// Value `index`, `None` where it is absent.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        if self.nulls.binary_search(&(index as u32)).is_ok() {
            return None;
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..self.ends[index] as usize])
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn footprint(&self) -> usize {
        self.bytes.len() + 4 * (self.ends.len() + self.nulls.len())
    }
}

/// One record of a chunk, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Payload; `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Key; `None` where the record has none.
    pub key: Option<&'a [u8]>,
    /// Kafka's timestamp in milliseconds since 1970-01-01 UTC, -1 where it has none.
    pub timestamp: i64,
    /// Offset in its partition.
    pub offset: i64,
}

/// Up to [`MAXIMUM_RECORDS`] consecutive records of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Topic of every record.
    pub topic: Arc<str>,
    /// Partition of every record.
    pub partition: i32,
    /// Offset of the first record.
    pub base_offset: i64,
    /// Offset of each record, less `base_offset`; strictly increasing.
    pub offset_deltas: Vec<u32>,
    /// Milliseconds since 1970-01-01 UTC, -1 where a record has none.
    pub timestamps: Vec<i64>,
    /// Payloads.
    pub payloads: Column,
    /// Keys.
    pub keys: Column,
    /// Headers of record `i` are `header_ends[i-1]..header_ends[i]` of the two columns below.
    pub header_ends: Vec<u32>,
    /// Header names, UTF-8, none absent.
    pub header_names: Column,
    /// Header values.
    pub header_values: Column,
}

impl Chunk {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.offset_deltas.len()
    }

    /// Whether there is no record; a built chunk always has one.
    pub fn is_empty(&self) -> bool {
        self.offset_deltas.is_empty()
    }

    /// Offset of record `index`.
    pub fn offset(&self, index: usize) -> i64 {
        self.base_offset + i64::from(self.offset_deltas[index])
    }

    /// Partition that its records are of.
    pub fn partition_id(&self) -> PartitionId {
        PartitionId { topic: self.topic.clone(), partition: self.partition }
    }

    /// Index of the first record at `offset` or after it; [`Self::len`] where there is none.
    pub fn first_at(&self, offset: i64) -> usize {
        self.offset_deltas.partition_point(|delta| self.base_offset + i64::from(*delta) < offset)
    }

    /// Offset after the last record: where the next chunk may start.
    pub fn end_offset(&self) -> i64 {
        self.offset(self.len() - 1) + 1
    }

    /// Record `index`.
    pub fn record(&self, index: usize) -> RecordRef<'_> {
        RecordRef {
            payload: self.payloads.get(index),
            key: self.keys.get(index),
            timestamp: self.timestamps[index],
            offset: self.offset(index),
        }
    }

    /// Headers of record `index`: name and value, in the order of the record.
    pub fn headers(&self, index: usize) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let start = if index == 0 { 0 } else { self.header_ends[index - 1] as usize };
        (start..self.header_ends[index] as usize).map(|header| {
            let name = self.header_names.get(header).unwrap_or_default();
            (std::str::from_utf8(name).unwrap_or_default(), self.header_values.get(header))
        })
    }

    /// Bytes that this chunk holds in memory: what it takes from the in-flight budget. A chunk of one
    /// small record costs some hundred bytes and a dozen allocations, here and in what is made of it.
    pub fn footprint(&self) -> usize {
        const OVERHEAD: usize = 1024;
        OVERHEAD
            + self.payloads.footprint()
            + self.keys.footprint()
            + self.header_names.footprint()
            + self.header_values.footprint()
            + 4 * (self.header_ends.len() + self.offset_deltas.len())
            + 8 * self.timestamps.len()
    }
}

/// Collects consecutive records of one partition into a [`Chunk`].
#[derive(Debug)]
pub struct ChunkBuilder {
    chunk: Chunk,
}

impl ChunkBuilder {
    /// An empty chunk that starts at `base_offset`.
    pub fn new(topic: Arc<str>, partition: i32, base_offset: i64) -> Self {
        Self {
            chunk: Chunk {
                topic,
                partition,
                base_offset,
                offset_deltas: Vec::new(),
                timestamps: Vec::new(),
                payloads: Column::default(),
                keys: Column::default(),
                header_ends: Vec::new(),
                header_names: Column::default(),
                header_values: Column::default(),
            },
        }
    }

    /// Appends a record. `offset` must be greater than that of the record before.
    pub fn push<'a>(
        &mut self,
        offset: i64,
        timestamp: i64,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) {
        debug_assert!(self.chunk.is_empty() || offset >= self.chunk.end_offset());
        self.chunk.offset_deltas.push((offset - self.chunk.base_offset) as u32);
        self.chunk.timestamps.push(timestamp);
        self.chunk.keys.push(key);
        self.chunk.payloads.push(payload);
        for (name, value) in headers {
            self.chunk.header_names.push(Some(name.as_bytes()));
            self.chunk.header_values.push(value);
        }
        self.chunk.header_ends.push(self.chunk.header_names.len() as u32);
    }

    /// Whether a record at `offset` with `bytes` of content ([`content_bytes`]) must go into the next chunk: this one is full, or the offset does not follow or is
    /// too far from its base. A record alone is always taken; Kafka keeps one far under what 32-bit ends can hold.
    pub fn refuses(&self, offset: i64, bytes: usize) -> bool {
        let chunk = &self.chunk;
        let columns = [&chunk.payloads, &chunk.keys, &chunk.header_names, &chunk.header_values];
        let held: usize = columns.iter().map(|column| column.bytes.len()).sum();
        !self.chunk.is_empty()
            && (offset < self.chunk.end_offset()
                || self.chunk.len() >= MAXIMUM_RECORDS
                || held + bytes > TARGET_BYTES
                || offset - self.chunk.base_offset > i64::from(u32::MAX))
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.chunk.len()
    }

    /// Whether there is no record yet.
    pub fn is_empty(&self) -> bool {
        self.chunk.is_empty()
    }

    /// The chunk.
    pub fn build(self) -> Chunk {
        self.chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder() -> ChunkBuilder {
        ChunkBuilder::new("topic".into(), 3, 100)
    }

    #[test]
    fn absent_and_empty_stay_apart() {
        let mut builder = builder();
        builder.push(100, 7, None, Some(b""), [("a", None), ("b", Some(b"".as_slice()))]);
        builder.push(105, -1, Some(b"key"), None, []);
        let chunk = builder.build();
        assert_eq!(chunk.record(0), RecordRef { payload: Some(b""), key: None, timestamp: 7, offset: 100 });
        assert_eq!(
            chunk.record(1),
            RecordRef { payload: None, key: Some(b"key"), timestamp: -1, offset: 105 }
        );
        assert_eq!(chunk.headers(0).collect::<Vec<_>>(), [("a", None), ("b", Some(b"".as_slice()))]);
        assert_eq!(chunk.headers(1).count(), 0);
        assert_eq!(chunk.end_offset(), 106);
    }

    #[test]
    fn a_full_chunk_refuses_and_an_empty_one_takes_anything() {
        let mut full = builder();
        assert!(!full.refuses(100, 10 * TARGET_BYTES));
        for offset in 0..MAXIMUM_RECORDS as i64 {
            assert!(!full.refuses(100 + offset, 1));
            full.push(100 + offset, 0, None, Some(b"x"), []);
        }
        assert!(full.refuses(2000, 1));

        let mut far = builder();
        far.push(100, 0, None, None, []);
        assert!(far.refuses(101 + i64::from(u32::MAX), 1));
        assert!(far.refuses(101, TARGET_BYTES + 1));
        assert!(!far.refuses(101, TARGET_BYTES));
    }
}
