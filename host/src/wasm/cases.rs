//! Golden cases: what a module must say of some records, in `name.cases.jsonl` beside `name.wasm`.
//!
//! One JSON object a line: a record, and what is expected of it (`line.rs` has the keys). Blank lines and
//! lines that begin with `#` or `//` are left out, so that an analyst can say why. A file is read to its
//! end whatever is wrong with it, and every fault has its line.
//!
//! Cases run through the calls, limits and bisection that judge records, many to a call, as in the stream.
//! What bounds them: [`MOST_CASES_BYTES`], [`MOST_CASES`], and that nothing more is run once a case took a
//! module's whole time: a module that hangs on one of its own cases costs one chunk, not all of them.

mod expectation;
mod line;

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::domain::answer::clean;
use crate::domain::chunk::{ChunkBuilder, content_bytes};
use crate::domain::verdict::{RecordVerdict, RejectionKind};
use crate::pipeline::modules::CasesReport;

use super::chain::SingleModule;

use expectation::Expectation;

/// Largest file of golden cases.
const MOST_CASES_BYTES: usize = 8 << 20;
/// Most cases of one module.
const MOST_CASES: usize = 10_000;
/// Cases that go to the module in one call.
const CHUNK: usize = 256;
/// Cases that may take all of a module's time, as they are expected to.
const MOST_LATE: usize = 8;
/// Failures, and faults of a file, that are told; all are counted.
const TOLD: usize = 20;
/// Longest text of one of them, in bytes.
const TOLD_BYTES: usize = 1024;

/// Why a file holds no cases that could be run.
#[derive(Debug, thiserror::Error)]
pub enum CasesFault {
    /// It cannot be read.
    #[error("has golden cases that cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// Too many bytes.
    #[error("has golden cases of more than {MOST_CASES_BYTES} bytes; keep those that tell something new")]
    TooLarge,
    /// Too many lines.
    #[error("has more than {MOST_CASES} golden cases; keep those that tell something new")]
    TooMany,
    /// Lines that are no cases.
    #[error("has golden cases that cannot be read: {}", told.join("; "))]
    Lines {
        /// What is wrong and what to do, with the line; not all where there are many.
        told: Vec<String>,
        /// Number of such lines.
        count: usize,
    },
}

/// Golden cases of `name.wasm` are in `name.cases.jsonl` beside it.
pub fn cases_path(module: &Path) -> PathBuf {
    module.with_extension("cases.jsonl")
}

/// The golden cases of one module.
#[derive(Debug)]
pub struct GoldenCases {
    cases: Vec<Case>,
}

/// One of them.
#[derive(Debug)]
struct Case {
    /// From 1.
    line: usize,
    /// What its author calls it.
    name: Option<String>,
    record: CaseRecord,
    expectation: Expectation,
}

/// Name and value.
type Header = (String, Option<Vec<u8>>);

/// The record of a case.
#[derive(Debug, PartialEq)]
struct CaseRecord {
    topic: String,
    partition: i32,
    /// None counts on from the case before.
    offset: Option<i64>,
    timestamp: i64,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<Header>,
}

impl CaseRecord {
    fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }
}

impl GoldenCases {
    /// The bytes of a file of cases, no more of it than may be; `None` where there is none. Blocking.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub fn read(path: &Path) -> Result<Option<Vec<u8>>, CasesFault> {
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(MOST_CASES_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > MOST_CASES_BYTES { Err(CasesFault::TooLarge) } else { Ok(Some(bytes)) }
    }

    /// Understands the content of a file of cases.
    ///
    /// # Errors
    /// Everything that is wrong with it, by line.
    pub fn parse(bytes: &[u8]) -> Result<Self, CasesFault> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let mut cases = Vec::new();
        let (mut told, mut count) = (Vec::new(), 0);
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let text = text.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") || text.starts_with(b"//") {
                continue;
            }
            if cases.len() == MOST_CASES {
                return Err(CasesFault::TooMany);
            }
            let line = index + 1;
            match line::parse(text) {
                Ok((name, record, expectation)) => cases.push(Case { line, name, record, expectation }),
                Err(problem) => {
                    count += 1;
                    if told.len() < TOLD {
                        told.push(clean(format!("line {line}: {problem}"), TOLD_BYTES));
                    }
                }
            }
        }
        if count > 0 { Err(CasesFault::Lines { told, count }) } else { Ok(Self { cases }) }
    }

    /// Number of cases.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether the file has none.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Has a module judge every record and compares with what is expected. Blocking.
    pub fn run(&self, module: &SingleModule) -> CasesReport {
        let mut report = CasesReport::default();
        let mut rest = self.cases.as_slice();
        let mut late = 0;
        while !rest.is_empty() {
            let (chunk, taken) = chunk(rest);
            let (cases, later) = rest.split_at(taken);
            rest = later;
            let selected: Vec<u32> = (0..chunk.len() as u32).collect();
            let verdicts = module.run(&chunk, &selected);
            let mut hangs = false;
            for (case, verdict) in cases.iter().zip(verdicts.by_record(chunk.len())) {
                let is_late = matches!(&verdict, RecordVerdict::Rejected(found) if found.kind == RejectionKind::Timeout);
                late += usize::from(is_late);
                match case.expectation.judge(module.module(), &verdict) {
                    Ok(()) => report.passed += 1,
                    Err(problem) => {
                        hangs |= is_late;
                        case.fail(&mut report, problem);
                    }
                }
            }
            hangs |= late > MOST_LATE;
            if hangs && !rest.is_empty() {
                report.failures += rest.len();
                let text = format!(
                    "line {} and {} more: not run, since the module used up its time on a case before",
                    rest[0].line,
                    rest.len() - 1
                );
                report.failed.push(text);
                return report;
            }
        }
        report
    }
}

impl Case {
    fn fail(&self, report: &mut CasesReport, problem: String) {
        report.failures += 1;
        if report.failed.len() < TOLD {
            let name = self.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
            report.failed.push(clean(format!("line {}{name}: {problem}", self.line), TOLD_BYTES));
        }
    }
}

/// As many of the first cases as fit into one chunk, and how many they are: at least one. Records of a
/// chunk are of one partition, by increasing offset.
fn chunk(cases: &[Case]) -> (crate::domain::chunk::Chunk, usize) {
    let first = &cases[0].record;
    let base = first.offset.unwrap_or(0);
    let mut builder = ChunkBuilder::new(first.topic.as_str().into(), first.partition, base);
    let mut next = base;
    for Case { record, .. } in cases {
        let offset = record.offset.unwrap_or(next);
        let (key, payload) = (record.key.as_deref(), record.payload.as_deref());
        let bytes = content_bytes(key, payload, record.headers());
        let is_elsewhere = record.topic != first.topic || record.partition != first.partition;
        if is_elsewhere || builder.len() == CHUNK || offset < next || builder.refuses(offset, bytes) {
            break;
        }
        builder.push(offset, record.timestamp, key, payload, record.headers());
        next = offset + 1;
    }
    let taken = builder.len();
    (builder.build(), taken)
}

#[cfg(test)]
mod tests;
