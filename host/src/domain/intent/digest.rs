//! Digest of verdicts: a batch that is formed again must come out as it was, and this shows it.
//!
//! The digest is a sum: every record with a row or a rejection has a 64-bit hash of its own, over
//! its place and its verdict, and the digest of a set of records is the sum of theirs (modulo
//! 2^64). So it does not matter how the records are spread over chunks, which a second read decides
//! anew, nor in which order the partitions come. A record that is filtered counts as nothing: that it is still there, or
//! was compacted away since, makes no difference to what is inserted.
//!
//! It guards against accidents, such as a module with a memory of its own, not against forgery.
//! CityHash in the version that ClickHouse froze takes a quarter of the time of SHA-256 here
//! (docs/INTENT_FORMAT.md).

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Range};

use crate::domain::batch::Part;
use crate::domain::chunk::Chunk;
use crate::domain::verdict::ChunkVerdicts;

/// Digest of the verdicts on a set of records; see the module documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VerdictDigest(pub u64);

impl fmt::Display for VerdictDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

impl Add for VerdictDigest {
    type Output = Self;

    /// Digest of both sets together, which have no record in common.
    fn add(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }
}

impl Sum for VerdictDigest {
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests.fold(Self::default(), Add::add)
    }
}

/// Digest of the verdicts on every record of `parts`.
pub fn digest(parts: &[Part]) -> VerdictDigest {
    let whole = |part: &Part| VerdictDigest::of(&part.chunk, &part.verdicts, 0..part.chunk.len() as u32);
    parts.iter().map(whole).sum()
}

impl VerdictDigest {
    /// Digest of the verdicts on the records of `chunk` whose indexes are in `range`.
    ///
    /// # Panics
    /// When `range` is not within the chunk, or the verdicts are not of this chunk.
    pub fn of(chunk: &Chunk, verdicts: &ChunkVerdicts, range: Range<u32>) -> Self {
        let place = hash(&[chunk.topic.as_bytes(), &chunk.partition.to_le_bytes()].concat());
        let mut next_row: Vec<usize> = verdicts
            .outputs
            .iter()
            .map(|rows| rows.rows_per_record[..range.start as usize].iter().map(|rows| *rows as usize).sum())
            .collect();
        let first = verdicts.rejections.partition_point(|(index, _)| *index < range.start);
        let mut rejections = verdicts.rejections[first..].iter().peekable();
        let mut canonical = Vec::with_capacity(512);
        let mut sum = 0u64;
        for index in range {
            canonical.clear();
            canonical.extend_from_slice(&place.to_le_bytes());
            canonical.extend_from_slice(&chunk.offset(index as usize).to_le_bytes());
            let header = canonical.len();
            for (output, (rows, next)) in verdicts.outputs.iter().zip(&mut next_row).enumerate() {
                for row in *next..*next + rows.rows_per_record[index as usize] as usize {
                    let start = if row == 0 { 0 } else { rows.row_ends[row - 1] as usize };
                    let bytes = &rows.bytes[start..rows.row_ends[row] as usize];
                    canonical.extend_from_slice(&(output as u32).to_le_bytes());
                    canonical.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                    canonical.extend_from_slice(bytes);
                }
                *next += rows.rows_per_record[index as usize] as usize;
            }
            if let Some((_, rejection)) = rejections.next_if(|(rejected, _)| *rejected == index) {
                // No output has this number, so a rejection is never taken for a row.
                canonical.extend_from_slice(&u32::MAX.to_le_bytes());
                canonical.extend_from_slice(rejection.kind.as_str().as_bytes());
                canonical.push(0);
                canonical.extend_from_slice(rejection.code.as_bytes());
            }
            if canonical.len() > header {
                sum = sum.wrapping_add(hash(&canonical));
            }
        }
        Self(sum)
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let hash = cityhash_rs::cityhash_102_128(bytes);
    (hash ^ (hash >> 64)) as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::chunk::ChunkBuilder;
    use crate::domain::verdict::{OutputRows, Rejection, RejectionKind, Revision, Stage};

    /// Verdict on one record: rows of two outputs, or a rejection.
    #[derive(Clone, Debug)]
    enum Verdict {
        Rows(Vec<Vec<u8>>, Vec<Vec<u8>>),
        Rejected(RejectionKind, String),
    }

    fn part(partition: i32, base: i64, verdicts: &[Verdict]) -> Part {
        let mut builder = ChunkBuilder::new("topic".into(), partition, base);
        let mut outputs = vec![OutputRows::default(), OutputRows::default()];
        let mut rejections = Vec::new();
        for (index, verdict) in verdicts.iter().enumerate() {
            builder.push(base + index as i64, 0, None, Some(b"p"), []);
            let none = Vec::new();
            let rows = match verdict {
                Verdict::Rows(first, second) => [first, second],
                Verdict::Rejected(kind, code) => {
                    let rejection = Rejection {
                        stage: Stage::Validate,
                        module: "rules".into(),
                        revision: Some(Revision([1; 32])),
                        kind: *kind,
                        code: code.clone(),
                        field: None,
                        reason: String::new(),
                    };
                    rejections.push((index as u32, rejection));
                    [&none, &none]
                }
            };
            for (output, rows) in outputs.iter_mut().zip(rows) {
                for row in rows {
                    output.bytes.extend_from_slice(row);
                    output.row_ends.push(output.bytes.len() as u32);
                }
                output.rows_per_record.push(rows.len() as u32);
            }
        }
        let verdicts = ChunkVerdicts { chain: Revision([0; 32]), outputs, rejections };
        Part { chunk: Arc::new(builder.build()), verdicts: Arc::new(verdicts), epoch: 1 }
    }

    fn row(bytes: &[u8]) -> Verdict {
        Verdict::Rows(vec![bytes.to_vec()], vec![])
    }

    #[test]
    fn every_part_of_a_verdict_counts() {
        let rejected = |kind, code: &str| Verdict::Rejected(kind, code.to_owned());
        let rows = |rows: &[&[u8]]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
        let filtered = Verdict::Rows(vec![], vec![]);
        let batches = [
            vec![part(0, 0, &[row(b"ab"), filtered.clone()])],
            vec![part(0, 0, &[row(b"ac"), filtered.clone()])],
            vec![part(0, 0, &[filtered.clone(), row(b"ab")])],
            vec![part(0, 1, &[filtered.clone(), row(b"ab")])],
            vec![part(1, 0, &[row(b"ab")])],
            vec![part(0, 0, &[row(b"a"), row(b"b")])],
            vec![part(0, 0, &[Verdict::Rows(rows(&[b"a", b"b"]), vec![])])],
            vec![part(0, 0, &[Verdict::Rows(rows(&[b"ab", b""]), vec![])])],
            vec![part(0, 0, &[Verdict::Rows(vec![], rows(&[b"ab"]))])],
            vec![part(0, 0, &[rejected(RejectionKind::Timeout, "timeout")])],
            vec![part(0, 0, &[rejected(RejectionKind::Memory, "timeout")])],
            vec![part(0, 0, &[rejected(RejectionKind::Timeout, "time")])],
            vec![part(0, 0, std::slice::from_ref(&filtered))],
        ];
        let digests: Vec<_> = batches.iter().map(|parts| digest(parts)).collect();
        for (index, one) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(one), "{:?}", batches[index]);
        }
    }

    #[test]
    fn the_digest_of_a_batch_is_frozen() {
        // It stands in the metadata of hosts that are down: another value is another format.
        let parts =
            [part(3, 40, &[row(b"row"), Verdict::Rejected(RejectionKind::Timeout, "timeout".into())])];
        assert_eq!(digest(&parts).to_string(), "e6ffdb14937ab667");
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        let rows = || prop::collection::vec(prop::collection::vec(any::<u8>(), 0..4), 0..3);
        prop_oneof![
            4 => (rows(), rows()).prop_map(|(first, second)| Verdict::Rows(first, second)),
            1 => "[a-z]{0,3}".prop_map(|code| Verdict::Rejected(RejectionKind::Rejected, code)),
        ]
    }

    proptest! {
        #[test]
        fn chunk_boundaries_and_order_do_not_matter(
            verdicts in prop::collection::vec(verdict(), 1..12),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(verdicts.len());
            let whole = part(7, 100, &verdicts);
            let second = part(7, 100 + cut as i64, &verdicts[cut..]);
            let mut pieces = vec![second.clone()];
            if cut > 0 {
                pieces.push(part(7, 100, &verdicts[..cut]));
            }
            let digested = digest(std::slice::from_ref(&whole));
            prop_assert_eq!(digest(&pieces), digested);
            let of = |range| VerdictDigest::of(&whole.chunk, &whole.verdicts, range);
            let (cut, end) = (cut as u32, verdicts.len() as u32);
            prop_assert_eq!(of(cut..end), digest(&[second]));
            prop_assert_eq!(of(0..cut) + of(cut..end), digested);
        }
    }
}
