//! Compare: what two revisions of a module say of the same records.
//!
//! State: counts by kind of difference, and the newest records of each kind. Memory is bounded by
//! [`SAMPLES`] and [`SHOWN_BYTES`], however many records differ.
//!
//! Pure: verdicts come in, a report goes out. Who runs the modules, and on what, is the caller's.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value};

use crate::domain::answer::clean;
use crate::domain::chunk::Chunk;
use crate::domain::row::Output;
use crate::domain::verdict::{ChunkVerdicts, RecordVerdict, Rejection, RejectionKind};
use crate::pipeline::modules::{ShadowReport, ShadowSample};

use super::module::Module;

/// Samples of each kind.
const SAMPLES: usize = 5;
/// Longest text of one side of a sample, in bytes.
const SHOWN_BYTES: usize = 2048;
/// Most rows of one output that a sample shows.
const SHOWN_ROWS: usize = 10;

/// The comparison of one revision, the live one, with another.
#[derive(Debug)]
pub struct Comparison {
    /// Without samples.
    counts: ShadowReport,
    samples: BTreeMap<&'static str, VecDeque<ShadowSample>>,
    live_outputs: Vec<Output>,
    other_outputs: Vec<Output>,
    /// Whether both fill the same columns: in others the same bytes are other rows.
    has_same_outputs: bool,
}

impl Comparison {
    /// Nothing compared yet.
    pub fn new(live: &Module, other: &Module) -> Self {
        let counts = ShadowReport {
            live: live.identity().revision.to_string(),
            shadow: other.identity().revision.to_string(),
            ..ShadowReport::default()
        };
        Self::of(counts, live.outputs().to_vec(), other.outputs().to_vec())
    }

    fn of(counts: ShadowReport, live_outputs: Vec<Output>, other_outputs: Vec<Output>) -> Self {
        let has_same_outputs = live_outputs == other_outputs;
        Self { counts, samples: BTreeMap::new(), live_outputs, other_outputs, has_same_outputs }
    }

    /// Compares what both said of the records of `chunk` at `selected` (increasing).
    pub fn add_chunk(
        &mut self,
        chunk: &Chunk,
        selected: &[u32],
        live: &ChunkVerdicts,
        other: &ChunkVerdicts,
    ) {
        let (live, other) = (live.by_record(chunk.len()), other.by_record(chunk.len()));
        self.add(chunk, selected.iter().map(|index| *index as usize), &live, &other);
    }

    /// Compares what both said of those records of `chunk`, by index, that are `selected` (increasing).
    fn add(
        &mut self,
        chunk: &Chunk,
        selected: impl Iterator<Item = usize>,
        live: &[RecordVerdict<'_>],
        other: &[RecordVerdict<'_>],
    ) {
        // To show a record takes many times as long as to compare it, and a revision may differ on every one:
        // only those are shown that stay among the newest.
        let mut newest: BTreeMap<&'static str, VecDeque<usize>> = BTreeMap::new();
        for index in selected {
            if let Some(difference) = self.count(&live[index], &other[index]) {
                keep(newest.entry(difference).or_default(), index);
            }
        }
        for (difference, indexes) in newest {
            for index in indexes {
                let sample = self.sample(chunk, index, difference, &live[index], &other[index]);
                keep(self.samples.entry(difference).or_default(), sample);
            }
        }
    }

    /// Counts a record by what both said of it; answers the kind of difference, if there is one.
    fn count(&mut self, live: &RecordVerdict<'_>, other: &RecordVerdict<'_>) -> Option<&'static str> {
        let report = &mut self.counts;
        report.records += 1;
        let (count, difference) = match (live, other) {
            (_, RecordVerdict::Rejected(rejection)) if is_fault(rejection) => (&mut report.faults, "faults"),
            (RecordVerdict::Accepted(_), RecordVerdict::Rejected(_)) => {
                (&mut report.newly_rejected, "newly_rejected")
            }
            (RecordVerdict::Rejected(_), RecordVerdict::Accepted(_)) => {
                (&mut report.newly_accepted, "newly_accepted")
            }
            (RecordVerdict::Rejected(live), RecordVerdict::Rejected(other)) if live.code != other.code => {
                (&mut report.other_code, "other_code")
            }
            (RecordVerdict::Accepted(live), RecordVerdict::Accepted(other))
                if !self.has_same_outputs || live != other =>
            {
                (&mut report.other_rows, "other_rows")
            }
            _ => {
                report.same += 1;
                return None;
            }
        };
        *count += 1;
        Some(difference)
    }

    /// Counts records that the other revision was not shown.
    pub fn skip(&mut self, records: u64) {
        self.counts.skipped += records;
    }

    /// How they compare so far, without samples.
    pub fn counts(&self) -> &ShadowReport {
        &self.counts
    }

    /// How they compare so far; of each kind the newest sample first.
    pub fn report(&self) -> ShadowReport {
        let samples = self.samples.values().flat_map(|samples| samples.iter().rev()).cloned();
        ShadowReport { samples: samples.collect(), ..self.counts.clone() }
    }

    fn sample(
        &self,
        chunk: &Chunk,
        index: usize,
        difference: &'static str,
        live: &RecordVerdict<'_>,
        other: &RecordVerdict<'_>,
    ) -> ShadowSample {
        let (live, other) = match (live, other) {
            (RecordVerdict::Accepted(live), RecordVerdict::Accepted(other)) => {
                let (mut live, mut other) =
                    (rows(&self.live_outputs, live), rows(&self.other_outputs, other));
                leave_out_what_is_same(&mut live, &mut other);
                (accepted(&live), accepted(&other))
            }
            _ => (said(&self.live_outputs, live), said(&self.other_outputs, other)),
        };
        ShadowSample {
            topic: chunk.topic.to_string(),
            partition: chunk.partition,
            offset: chunk.offset(index),
            difference,
            live,
            shadow: other,
        }
    }
}

/// Adds what is newer than all before, and lets go of the oldest where it is one too many.
fn keep<T>(newest: &mut VecDeque<T>, newer: T) {
    if newest.len() == SAMPLES {
        newest.pop_front();
    }
    newest.push_back(newer);
}

/// The module broke; it did not judge.
fn is_fault(rejection: &Rejection) -> bool {
    !matches!(rejection.kind, RejectionKind::Rejected | RejectionKind::Malformed)
}

/// A verdict as text: `accepted`, `filtered`, rows as JSON, or code, field and reason.
pub fn said(outputs: &[Output], verdict: &RecordVerdict<'_>) -> String {
    match verdict {
        RecordVerdict::Accepted(found) => accepted(&rows(outputs, found)),
        RecordVerdict::Rejected(Rejection { code, field, reason, .. }) => {
            let field = field.as_ref().map_or_else(String::new, |field| format!(" ({field})"));
            clean(format!("rejected {code}{field}: {reason}"), SHOWN_BYTES)
        }
    }
}

type Rows = Vec<(String, Vec<Map<String, Value>>)>;

/// Rows by output, as they are shown.
fn rows(outputs: &[Output], found: &[Vec<&[u8]>]) -> Rows {
    let shown = |(output, rows): (&Output, &Vec<&[u8]>)| {
        let row = |row: &&[u8]| {
            // They were walked, so that this is a row; should it be none, its bytes are shown.
            output
                .row_to_json(row)
                .unwrap_or_else(|_| Map::from_iter([("bytes".into(), hex::encode(row).into())]))
        };
        (output.name.clone(), rows.iter().take(SHOWN_ROWS).map(row).collect())
    };
    outputs.iter().zip(found).map(shown).collect()
}

/// Where two sides have the same outputs and numbers of rows, only columns that differ are of interest.
fn leave_out_what_is_same(live: &mut Rows, other: &mut Rows) {
    let is_alike = live.len() == other.len()
        && live.iter().zip(&*other).all(|(live, other)| live.0 == other.0 && live.1.len() == other.1.len());
    if !is_alike {
        return;
    }
    for ((_, live), (_, other)) in live.iter_mut().zip(other) {
        for (live, other) in live.iter_mut().zip(other) {
            let same: Vec<String> = live
                .iter()
                .filter(|(name, value)| other.get(*name) == Some(*value))
                .map(|(name, _)| name.clone())
                .collect();
            for name in same {
                live.remove(&name);
                other.remove(&name);
            }
        }
    }
}

fn accepted(rows: &Rows) -> String {
    let object = |row: &Map<String, Value>| Value::Object(row.clone());
    let list = |rows: &[Map<String, Value>]| Value::Array(rows.iter().map(object).collect());
    let text = match rows.as_slice() {
        [] => "accepted".to_owned(),
        all if all.iter().all(|(_, rows)| rows.is_empty()) => "filtered".to_owned(),
        [(_, rows)] => list(rows).to_string(),
        all => Value::Object(all.iter().map(|(name, rows)| (name.clone(), list(rows))).collect()).to_string(),
    };
    clean(text, SHOWN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chunk::ChunkBuilder;
    use crate::domain::row::{ColumnDefinition, ColumnType};
    use crate::domain::verdict::{OutputRows, Revision, Stage};

    fn outputs(columns: &[(&str, &str)]) -> Vec<Output> {
        let column = |(name, type_name): &(&str, &str)| ColumnDefinition {
            name: (*name).to_owned(),
            column_type: ColumnType::parse(type_name).unwrap(),
        };
        vec![Output { name: "rows".into(), columns: columns.iter().map(column).collect() }]
    }

    fn comparison(live: Vec<Output>, other: Vec<Output>) -> Comparison {
        Comparison::of(ShadowReport::default(), live, other)
    }

    fn rejection(kind: RejectionKind, code: &str) -> Rejection {
        Rejection {
            stage: Stage::Validate,
            module: "rules".into(),
            revision: None,
            kind,
            code: code.into(),
            field: Some("total".into()),
            reason: "because".into(),
        }
    }

    fn chunk(records: i64) -> Chunk {
        let mut builder = ChunkBuilder::new("orders".into(), 3, 100);
        for offset in 100..100 + records {
            builder.push(offset, -1, None, None, []);
        }
        builder.build()
    }

    #[test]
    fn every_record_counts_once_by_its_kind() {
        let columns = [("id", "UInt8"), ("total", "UInt8")];
        let mut comparison = comparison(outputs(&columns), outputs(&columns));
        let no = rejection(RejectionKind::Rejected, "too_small");
        let other_code = rejection(RejectionKind::Malformed, "malformed");
        let trap = rejection(RejectionKind::Trap, "trap");
        let accept = |rows: &[&'static [u8]]| RecordVerdict::Accepted(vec![rows.to_vec()]);
        let chunk = chunk(8);
        let pairs = [
            (accept(&[&[1, 2]]), accept(&[&[1, 2]])),
            (RecordVerdict::Rejected(&no), RecordVerdict::Rejected(&no)),
            (accept(&[&[1, 2]]), RecordVerdict::Rejected(&no)),
            (RecordVerdict::Rejected(&no), accept(&[])),
            (RecordVerdict::Rejected(&no), RecordVerdict::Rejected(&other_code)),
            (accept(&[&[1, 2]]), accept(&[&[1, 3]])),
            (accept(&[&[1, 2]]), accept(&[&[1, 2], &[3, 4]])),
            (RecordVerdict::Rejected(&trap), RecordVerdict::Rejected(&trap)),
        ];
        let (live, other): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        comparison.add(&chunk, 0..8, &live, &other);
        comparison.skip(7);
        let report = comparison.report();
        assert_eq!(comparison.counts(), &ShadowReport { samples: vec![], ..report.clone() });
        assert_eq!((report.records, report.same, report.skipped), (8, 2, 7));
        assert_eq!((report.newly_rejected, report.newly_accepted, report.other_code), (1, 1, 1));
        assert_eq!((report.other_rows, report.faults), (2, 1));
        let told: Vec<_> = report
            .samples
            .iter()
            .map(|sample| (sample.offset, sample.difference, sample.live.as_str(), sample.shadow.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                (107, "faults", "rejected trap (total): because", "rejected trap (total): because"),
                (103, "newly_accepted", "rejected too_small (total): because", "filtered"),
                (102, "newly_rejected", r#"[{"id":1,"total":2}]"#, "rejected too_small (total): because"),
                (
                    104,
                    "other_code",
                    "rejected too_small (total): because",
                    "rejected malformed (total): because"
                ),
                (106, "other_rows", r#"[{"id":1,"total":2}]"#, r#"[{"id":1,"total":2},{"id":3,"total":4}]"#),
                (105, "other_rows", r#"[{"total":2}]"#, r#"[{"total":3}]"#),
            ]
        );
    }

    #[test]
    fn the_same_bytes_in_other_columns_are_other_rows() {
        let mut comparison = comparison(outputs(&[("a", "UInt8")]), outputs(&[("b", "UInt8")]));
        let rows = || OutputRows { bytes: vec![1], row_ends: vec![1], rows_per_record: vec![1] };
        let verdicts =
            || ChunkVerdicts { chain: Revision([0; 32]), outputs: vec![rows()], rejections: vec![] };
        comparison.add_chunk(&chunk(1), &[0], &verdicts(), &verdicts());
        let report = comparison.report();
        assert_eq!(report.other_rows, 1);
        assert_eq!((&*report.samples[0].live, &*report.samples[0].shadow), (r#"[{"a":1}]"#, r#"[{"b":1}]"#));
    }

    #[test]
    fn samples_are_the_newest_and_few() {
        let mut comparison = comparison(vec![], vec![]);
        let no = rejection(RejectionKind::Rejected, &"x".repeat(64));
        let chunk = chunk(100);
        let (accepted, rejected) = (RecordVerdict::Accepted(vec![]), RecordVerdict::Rejected(&no));
        let mut add = |rejected_by_other: &[usize]| {
            let mut other = vec![accepted.clone(); 100];
            rejected_by_other.iter().for_each(|index| other[*index] = rejected.clone());
            comparison.add(&chunk, 0..100, &vec![accepted.clone(); 100], &other);
            let report = comparison.report();
            (report.newly_rejected, report.samples.iter().map(|sample| sample.offset).collect::<Vec<_>>())
        };
        let all: Vec<usize> = (0..100).collect();
        assert_eq!(add(&all), (100, vec![199, 198, 197, 196, 195]));
        // Of two chunks, the later first.
        assert_eq!(add(&[3, 50]), (102, vec![150, 103, 199, 198, 197]));
        assert_eq!(add(&[]), (102, vec![150, 103, 199, 198, 197]));
        assert_eq!(comparison.report().samples[0].live, "accepted");
    }
}
