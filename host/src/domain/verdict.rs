//! Verdicts: what the chain said of a record, and the dead letter that a rejection becomes.
//!
//! A bad record is a verdict, never an `Err`: the types here are data, and every record of a chunk
//! has exactly one of mapped, filtered or rejected.

use std::fmt;
use std::sync::Arc;

use super::chunk::{Chunk, content_bytes};
use super::ledger::PartitionId;

/// Identity of a module or of a chain: a SHA-256, shown by its first 12 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub [u8; 32]);

impl Revision {
    /// The revision whose 64 hex digits these are.
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut revision = [0; 32];
        hex::decode_to_slice(digits, &mut revision).ok()?;
        Some(Self(revision))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Revision({self})")
    }
}

/// Where in the flow a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// A validator.
    Validate,
    /// The mapper.
    Map,
    /// ClickHouse refused the row.
    Insert,
    /// A batch that was pending at a crash could not be formed again as it was.
    Recover,
}

impl Stage {
    /// The word used in headers, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Map => "map",
            Self::Insert => "insert",
            Self::Recover => "recover",
        }
    }
}

/// What kind of refusal it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectionKind {
    /// A module said no.
    Rejected,
    /// A module said that the payload is not even readable (code `malformed`).
    Malformed,
    /// A module trapped on this record.
    Trap,
    /// A module took too long over this record.
    Timeout,
    /// A module asked for more memory than it may have.
    Memory,
    /// A module answered something that is not an answer, or a row that is not one.
    BadRow,
    /// ClickHouse refused this record's rows, and only these.
    Insert,
    /// Its batch was pending at a crash and could not be formed again; the table does not hold it.
    Unrecovered,
}

impl RejectionKind {
    /// Every kind, for metrics and tests.
    pub const ALL: [Self; 8] = [
        Self::Rejected,
        Self::Malformed,
        Self::Trap,
        Self::Timeout,
        Self::Memory,
        Self::BadRow,
        Self::Insert,
        Self::Unrecovered,
    ];

    /// The word used in headers, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Malformed => "malformed",
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::BadRow => "bad-row",
            Self::Insert => "insert",
            Self::Unrecovered => "unrecovered",
        }
    }
}

/// Why one record was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Where.
    pub stage: Stage,
    /// Name of the module at fault (its file name without `.wasm`), or of the table for `insert`.
    pub module: Arc<str>,
    /// Revision of that module; `None` for `insert`.
    pub revision: Option<Revision>,
    /// What kind of refusal.
    pub kind: RejectionKind,
    /// Stable, machine-readable reason.
    pub code: String,
    /// Path of the field at fault.
    pub field: Option<String>,
    /// One sentence for a person.
    pub reason: String,
}

/// Rows of one output for one chunk, already walked: every row parses as the declared columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputRows {
    /// RowBinary, in the declared column order.
    pub bytes: Vec<u8>,
    /// End of each row in `bytes`.
    pub row_ends: Vec<u32>,
    /// How many rows each record gave: of the *chunk* in verdicts, of those selected in an answer.
    pub rows_per_record: Vec<u32>,
}

/// What the chain said of every record of a chunk.
///
/// A record is rejected if `rejections` has its index, mapped if it has a row in some output, and
/// filtered otherwise. A rejected record has no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkVerdicts {
    /// Revision of the chain that spoke.
    pub chain: Revision,
    /// One entry for each output of the mapper, in declared order.
    pub outputs: Vec<OutputRows>,
    /// Record index and why, by increasing index, at most one a record.
    pub rejections: Vec<(u32, Rejection)>,
}

/// What was said of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordVerdict<'a> {
    /// Accepted, with its rows in each output, in declared order; a validator has no outputs. None in any
    /// is filtered.
    Accepted(Vec<Vec<&'a [u8]>>),
    /// Refused.
    Rejected(&'a Rejection),
}

impl OutputRows {
    /// The rows of each record, in order.
    pub fn by_record(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        let mut ends = self.row_ends.iter();
        let mut start = 0;
        self.rows_per_record.iter().map(move |count| {
            let row = |end: &u32| {
                let row = &self.bytes[start..*end as usize];
                start = *end as usize;
                row
            };
            ends.by_ref().take(*count as usize).map(row).collect()
        })
    }
}

impl ChunkVerdicts {
    /// One verdict a record, in order, of a chunk of so many records.
    pub fn by_record(&self, records: usize) -> Vec<RecordVerdict<'_>> {
        let mut verdicts = vec![RecordVerdict::Accepted(Vec::with_capacity(self.outputs.len())); records];
        for output in &self.outputs {
            for (verdict, rows) in verdicts.iter_mut().zip(output.by_record()) {
                if let RecordVerdict::Accepted(outputs) = verdict {
                    outputs.push(rows);
                }
            }
        }
        for (index, rejection) in &self.rejections {
            verdicts[*index as usize] = RecordVerdict::Rejected(rejection);
        }
        verdicts
    }

    /// Bytes that these verdicts hold in memory, for the in-flight budget.
    pub fn footprint(&self) -> usize {
        let rows: usize = self
            .outputs
            .iter()
            .map(|rows| rows.bytes.len() + 4 * (rows.row_ends.len() + rows.rows_per_record.len()))
            .sum();
        let rejections: usize = self
            .rejections
            .iter()
            .map(|(_, rejection)| {
                size_of::<Rejection>()
                    + rejection.code.len()
                    + rejection.reason.len()
                    + rejection.field.as_ref().map_or(0, String::len)
            })
            .sum();
        rows + rejections
    }
}

/// A rejected record as it is published to the dead-letter topic (DESIGN: payload, key, headers
/// and timestamp as they came, plus the `sluice.*` headers).
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Chunk that holds the original record.
    pub chunk: Arc<Chunk>,
    /// Its index there.
    pub index: u32,
    /// Why it was refused.
    pub rejection: Rejection,
}

/// Name of the header that counts how often a record was dead-lettered; replay carries it on.
pub const ATTEMPT_HEADER: &str = "sluice.attempt";

impl DeadLetter {
    /// Partition that the record came from.
    pub fn partition(&self) -> PartitionId {
        self.chunk.partition_id()
    }

    /// Bytes of the record, about as many as it takes in the dead-letter topic without our headers.
    pub fn bytes(&self) -> usize {
        let index = self.index as usize;
        let record = self.chunk.record(index);
        content_bytes(record.key, record.payload, self.chunk.headers(index))
    }

    /// The `sluice.*` headers, in their documented order. Values are UTF-8.
    pub fn headers(&self, pipeline: &str) -> Vec<(&'static str, String)> {
        let record = self.chunk.record(self.index as usize);
        let attempt = self
            .chunk
            .headers(self.index as usize)
            .filter(|(name, _)| *name == ATTEMPT_HEADER)
            .filter_map(|(_, value)| std::str::from_utf8(value?).ok()?.parse::<u64>().ok())
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        let rejection = &self.rejection;
        let mut headers = vec![
            ("sluice.pipeline", pipeline.to_owned()),
            ("sluice.topic", self.chunk.topic.to_string()),
            ("sluice.partition", self.chunk.partition.to_string()),
            ("sluice.offset", record.offset.to_string()),
            ("sluice.timestamp", record.timestamp.to_string()),
            ("sluice.stage", rejection.stage.as_str().to_owned()),
            ("sluice.module", rejection.module.to_string()),
        ];
        headers.extend(rejection.revision.map(|revision| ("sluice.revision", revision.to_string())));
        headers.push(("sluice.kind", rejection.kind.as_str().to_owned()));
        headers.push(("sluice.code", rejection.code.clone()));
        headers.extend(rejection.field.clone().map(|field| ("sluice.field", field)));
        headers.push(("sluice.reason", rejection.reason.clone()));
        headers.push((ATTEMPT_HEADER, attempt.to_string()));
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chunk::ChunkBuilder;

    fn letter(headers: &[(&str, Option<&[u8]>)]) -> DeadLetter {
        let mut builder = ChunkBuilder::new("purchases".into(), 4, 40);
        builder.push(42, 1_700_000_000_000, Some(b"k"), Some(b"{"), headers.iter().copied());
        DeadLetter {
            chunk: Arc::new(builder.build()),
            index: 0,
            rejection: Rejection {
                stage: Stage::Validate,
                module: "purchase-rules".into(),
                revision: Some(Revision([0xab; 32])),
                kind: RejectionKind::Malformed,
                code: "malformed".into(),
                field: None,
                reason: "not JSON: EOF at byte 1".into(),
            },
        }
    }

    #[test]
    fn a_revision_is_all_of_its_digits() {
        let revision = Revision([0xab; 32]);
        assert_eq!(Revision::from_hex(&"ab".repeat(32)), Some(revision));
        assert_eq!(Revision::from_hex(&hex::encode(revision.0)), Some(revision));
        for digits in ["", "abab", &"ab".repeat(33), &"xy".repeat(32)] {
            assert_eq!(Revision::from_hex(digits), None);
        }
    }

    #[test]
    fn the_envelope_has_its_documented_headers() {
        insta::assert_debug_snapshot!(letter(&[]).headers("purchases"));
    }

    #[test]
    fn a_replayed_record_counts_its_attempts() {
        let headers = letter(&[(ATTEMPT_HEADER, Some(b"3")), ("x", None)]).headers("purchases");
        assert_eq!(headers.last(), Some(&(ATTEMPT_HEADER, "4".to_owned())));
        let nonsense = letter(&[(ATTEMPT_HEADER, Some(b"many"))]).headers("purchases");
        assert_eq!(nonsense.last(), Some(&(ATTEMPT_HEADER, "1".to_owned())));
    }
}
