//! Wire: the payload of a metadata text, byte by byte as docs/INTENT_FORMAT.md has it.
//!
//! Tables first (topics with their partitions, modules, chains), then the batches, which refer to
//! them by number. Numbers are LEB128 varints. A reader trusts no count: it is held against the
//! bytes that are left before anything is allocated for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::ledger::{BatchId, PartitionId};
use crate::domain::verdict::Revision;

use super::{ForcedKind, ForcedRun, Intent, IntentFault, IntentSlice, VerdictDigest};

/// Bits of a group's head that hold the kind; the module is above them.
const KIND_BITS: u32 = 2;
/// Least bytes of a batch: identity, digest, chain, members, one slice, no forced rejections.
const LEAST_BATCH: usize = 16 + 8 + 1 + 3 + 1 + 1;

/// The payload of a list.
pub(super) fn write(intents: &[Intent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1024);
    let starts = first_starts(intents);
    let partitions: BTreeMap<&PartitionId, usize> =
        starts.keys().enumerate().map(|(index, partition)| (*partition, index)).collect();
    let revisions: BTreeSet<Revision> =
        intents.iter().flat_map(|intent| intent.chain.iter().copied()).collect();
    let mut chains: Vec<&[Revision]> = Vec::new();
    for intent in intents {
        if !chains.contains(&&*intent.chain) {
            chains.push(&intent.chain);
        }
    }
    write_partitions(&mut bytes, &starts);
    write_number(&mut bytes, revisions.len() as u64);
    revisions.iter().for_each(|revision| bytes.extend_from_slice(&revision.0));
    write_number(&mut bytes, chains.len() as u64);
    for chain in &chains {
        write_number(&mut bytes, chain.len() as u64);
        for revision in *chain {
            write_number(&mut bytes, revisions.range(..revision).count() as u64);
        }
    }
    write_number(&mut bytes, intents.len() as u64);
    let mut expected = starts;
    for intent in intents {
        bytes.extend_from_slice(&intent.id.0.to_be_bytes());
        bytes.extend_from_slice(&intent.digest.0.to_be_bytes());
        let chain = chains.iter().take_while(|chain| **chain != &*intent.chain).count();
        write_number(&mut bytes, chain as u64);
        let members: Vec<usize> = intent.slices.iter().map(|slice| partitions[&slice.partition]).collect();
        write_members(&mut bytes, &members);
        for slice in &intent.slices {
            let moved = expected.insert(&slice.partition, slice.end).map_or(0, |end| slice.start - end);
            write_number(&mut bytes, ((slice.end - slice.start - 1) as u64) << 1 | u64::from(moved != 0));
            if moved != 0 {
                write_number(&mut bytes, (moved.unsigned_abs() - 1) << 1 | u64::from(moved < 0));
            }
        }
        write_forced(&mut bytes, intent);
    }
    bytes
}

/// Every partition of the list with the start of its first slice.
fn first_starts(intents: &[Intent]) -> BTreeMap<&PartitionId, i64> {
    let mut starts = BTreeMap::new();
    for slice in intents.iter().flat_map(|intent| &intent.slices) {
        starts.entry(&slice.partition).or_insert(slice.start);
    }
    starts
}

fn write_partitions(bytes: &mut Vec<u8>, starts: &BTreeMap<&PartitionId, i64>) {
    let mut topics: Vec<(&str, Vec<(i32, i64)>)> = Vec::new();
    for (partition, start) in starts {
        match topics.last_mut() {
            Some((topic, of_topic)) if **topic == *partition.topic => {
                of_topic.push((partition.partition, *start));
            }
            _ => topics.push((&partition.topic, vec![(partition.partition, *start)])),
        }
    }
    write_number(bytes, topics.len() as u64);
    for (topic, of_topic) in topics {
        write_number(bytes, topic.len() as u64);
        bytes.extend_from_slice(topic.as_bytes());
        write_number(bytes, of_topic.len() as u64);
        let mut next = 0;
        for (number, start) in of_topic {
            write_number(bytes, (i64::from(number) - next) as u64);
            write_number(bytes, start as u64);
            next = i64::from(number) + 1;
        }
    }
}

/// Which partitions: the first, and a bit map from it to the last.
fn write_members(bytes: &mut Vec<u8>, members: &[usize]) {
    let (Some(first), Some(last)) = (members.first(), members.last()) else { return };
    let mut map = vec![0u8; (last - first) / 8 + 1];
    for member in members {
        map[(member - first) / 8] |= 1 << ((member - first) % 8);
    }
    write_number(bytes, *first as u64);
    write_number(bytes, map.len() as u64);
    bytes.extend_from_slice(&map);
}

/// Groups of runs: those of one slice, module and kind.
fn write_forced(bytes: &mut Vec<u8>, intent: &Intent) {
    let mut groups: BTreeMap<(usize, usize, ForcedKind), Vec<&ForcedRun>> = BTreeMap::new();
    for run in &intent.forced {
        groups.entry((run.slice, run.module, run.kind)).or_default().push(run);
    }
    write_number(bytes, groups.len() as u64);
    for ((slice, module, kind), runs) in groups {
        let kind = match kind {
            ForcedKind::Timeout => 0,
            ForcedKind::Memory => 1,
        };
        write_number(bytes, (module as u64) << KIND_BITS | kind);
        write_number(bytes, slice as u64);
        write_number(bytes, runs.len() as u64);
        let mut after = intent.slices[slice].start;
        for run in runs {
            let length = (run.end - run.start) as u64;
            write_number(bytes, ((run.start - after) as u64) << 1 | u64::from(length > 1));
            if length > 1 {
                write_number(bytes, length - 2);
            }
            after = run.end;
        }
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Why a payload is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireFault {
    #[error("it ends too early")]
    End,
    #[error("bytes follow its end")]
    Rest,
    #[error("a number is out of its range")]
    Number,
    #[error("a topic is not text, or out of order")]
    Topic,
    #[error("it lists no batch")]
    NoBatch,
    #[error("a batch has {0}")]
    Intent(#[from] IntentFault),
}

/// The list of a payload, with at least one batch.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Intent>, WireFault> {
    let mut reader = Reader { bytes };
    let partitions = reader.partitions()?;
    let mut revisions = Vec::new();
    for _ in 0..reader.count(32)? {
        revisions.push(Revision(reader.array()?));
    }
    let mut chains: Vec<Arc<[Revision]>> = Vec::new();
    for _ in 0..reader.count(1)? {
        let modules = reader.count(1)?;
        let module = |_| Ok(*revisions.get(reader.index()?).ok_or(WireFault::Number)?);
        chains.push((0..modules).map(module).collect::<Result<_, WireFault>>()?);
    }
    let mut expected: Vec<i64> = partitions.iter().map(|(_, start)| *start).collect();
    let mut intents = Vec::new();
    for _ in 0..reader.count(LEAST_BATCH)? {
        let id = BatchId(u128::from_be_bytes(reader.array()?));
        let digest = VerdictDigest(u64::from_be_bytes(reader.array()?));
        let chain = Arc::clone(chains.get(reader.index()?).ok_or(WireFault::Number)?);
        let mut slices = Vec::new();
        for member in reader.members(partitions.len())? {
            let (start, end) = reader.range(expected[member])?;
            expected[member] = end;
            slices.push(IntentSlice { partition: partitions[member].0.clone(), start, end });
        }
        let forced = reader.forced(&slices)?;
        intents.push(Intent::new(id, slices, chain, forced, digest)?);
    }
    if !reader.bytes.is_empty() {
        return Err(WireFault::Rest);
    }
    if intents.is_empty() {
        return Err(WireFault::NoBatch);
    }
    Ok(intents)
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireFault> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(WireFault::End)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireFault> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(WireFault::End)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, WireFault> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return Err(WireFault::Number);
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(WireFault::Number)
    }

    fn index(&mut self) -> Result<usize, WireFault> {
        usize::try_from(self.number()?).map_err(|_| WireFault::Number)
    }

    /// A number of things that take at least `each` bytes.
    fn count(&mut self, each: usize) -> Result<usize, WireFault> {
        let count = self.index()?;
        if count > self.bytes.len() / each { Err(WireFault::End) } else { Ok(count) }
    }

    fn partitions(&mut self) -> Result<Vec<(PartitionId, i64)>, WireFault> {
        let mut partitions = Vec::new();
        let mut before: Option<Arc<str>> = None;
        for _ in 0..self.count(4)? {
            let length = self.count(1)?;
            let topic: Arc<str> =
                std::str::from_utf8(self.take(length)?).map_err(|_| WireFault::Topic)?.into();
            if before.as_ref().is_some_and(|before| *before >= topic) {
                return Err(WireFault::Topic);
            }
            let mut next = 0u64;
            for _ in 0..self.count(2)? {
                let number = next.checked_add(self.number()?).ok_or(WireFault::Number)?;
                let partition = i32::try_from(number).map_err(|_| WireFault::Number)?;
                let start = i64::try_from(self.number()?).map_err(|_| WireFault::Number)?;
                partitions.push((PartitionId { topic: Arc::clone(&topic), partition }, start));
                next = number + 1;
            }
            before = Some(topic);
        }
        Ok(partitions)
    }

    fn members(&mut self, partitions: usize) -> Result<Vec<usize>, WireFault> {
        let first = self.index()?;
        let length = self.count(1)?;
        let mut members = Vec::new();
        for (index, byte) in self.take(length)?.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let member = first.checked_add(8 * index + bit).ok_or(WireFault::Number)?;
                if member >= partitions {
                    return Err(WireFault::Number);
                }
                members.push(member);
            }
        }
        Ok(members)
    }

    fn range(&mut self, expected: i64) -> Result<(i64, i64), WireFault> {
        let head = self.number()?;
        let mut start = expected;
        if head & 1 == 1 {
            let moved = self.number()?;
            let distance = ((moved >> 1) as i64).checked_add(1).ok_or(WireFault::Number)?;
            start = if moved & 1 == 0 { start.checked_add(distance) } else { start.checked_sub(distance) }
                .ok_or(WireFault::Number)?;
        }
        let end = start.checked_add((head >> 1) as i64).and_then(|last| last.checked_add(1));
        Ok((start, end.ok_or(WireFault::Number)?))
    }

    fn forced(&mut self, slices: &[IntentSlice]) -> Result<Vec<ForcedRun>, WireFault> {
        let mut forced = Vec::new();
        for _ in 0..self.count(4)? {
            let head = self.index()?;
            let kind = match head & ((1 << KIND_BITS) - 1) {
                0 => ForcedKind::Timeout,
                1 => ForcedKind::Memory,
                _ => return Err(WireFault::Number),
            };
            let module = head >> KIND_BITS;
            let slice = self.index()?;
            let mut after = slices.get(slice).ok_or(WireFault::Number)?.start;
            for _ in 0..self.count(1)? {
                let head = self.number()?;
                let length = if head & 1 == 1 { self.number()?.checked_add(2) } else { Some(1) };
                let length = length.and_then(|length| i64::try_from(length).ok()).ok_or(WireFault::Number)?;
                let start = after.checked_add((head >> 1) as i64).ok_or(WireFault::Number)?;
                let end = start.checked_add(length).ok_or(WireFault::Number)?;
                forced.push(ForcedRun { slice, start, end, module, kind });
                after = end;
            }
        }
        forced.sort_by_key(|run| (run.slice, run.start));
        Ok(forced)
    }
}
