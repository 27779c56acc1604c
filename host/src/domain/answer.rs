//! Answers: what a guest said, checked before a byte of it is believed.
//!
//! An answer is taken whole or not at all. Some lies show which record they are about (a row that is
//! not one): these are its *suspects*, and `wasm/bisect.rs` runs them alone. A suspect is not a culprit: a
//! record whose rows end too early makes its neighbour's rows start too early.
//!
//! Pure: every lie is tested, and fuzzed, without a guest.

use super::intent::ForcedKind;
use super::row::Output;
use super::verdict::{OutputRows, RejectionKind};

/// Longest code of a rejection in bytes; codes are what operators filter and count by.
const CODE_BYTES: usize = 64;
/// Longest field path in bytes.
const FIELD_BYTES: usize = 256;
/// Longest reason in bytes; it becomes a Kafka header.
const REASON_BYTES: usize = 1024;
/// The code by which a module says that a payload is not even readable.
const MALFORMED: &str = "malformed";

/// Code of a record that took too long. Another run might not meet it, so it is part of the digest of verdicts.
pub const TIMEOUT: &str = "timeout";
/// Code of a record that wanted too much memory, which another run might not meet either.
pub const OUT_OF_MEMORY: &str = "out_of_memory";

/// What one record may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Rows in one output.
    pub rows_per_record: u32,
    /// Bytes of all rows, all outputs together.
    pub output_bytes_per_record: usize,
}

/// A rejection as a guest words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRejection {
    /// Index in the chunk of the record that it is about.
    pub index: u32,
    /// By which operators filter and count.
    pub code: String,
    /// Path of the field that is wrong.
    pub field: Option<String>,
    /// For people.
    pub reason: String,
}

/// Why a record was refused, without the module's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal it is.
    pub kind: RejectionKind,
    /// Safe in a header, a metric and a query.
    pub code: String,
    /// Path of the field that is wrong.
    pub field: Option<String>,
    /// For people, cleaned and cut.
    pub reason: String,
}

impl Refusal {
    /// A refusal that is the host's own judgement.
    pub fn new(kind: RejectionKind, code: &str, reason: impl Into<String>) -> Self {
        Self { kind, code: code.to_owned(), field: None, reason: clean(reason.into(), REASON_BYTES) }
    }

    /// What an intent says of a record that was refused for a reason that another run might not meet.
    pub fn repeated(kind: ForcedKind) -> Self {
        let code = match kind {
            ForcedKind::Timeout => TIMEOUT,
            ForcedKind::Memory => OUT_OF_MEMORY,
        };
        let kind = kind.rejection_kind();
        Self::new(kind, code, format!("{} when it was judged first; not judged again", kind.as_str()))
    }

    /// The answer as a whole is not one.
    fn bad_answer(reason: impl Into<String>) -> Self {
        Self::new(RejectionKind::BadRow, "bad_answer", reason)
    }

    fn from_guest(rejection: GuestRejection) -> Self {
        let code = clean_code(&rejection.code);
        Self {
            kind: if code == MALFORMED { RejectionKind::Malformed } else { RejectionKind::Rejected },
            code,
            field: rejection.field.map(|field| clean(field, FIELD_BYTES)).filter(|field| !field.is_empty()),
            reason: clean(rejection.reason, REASON_BYTES),
        }
    }
}

/// Why an answer, or a call, is good for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What a record is refused for if the call was about it alone.
    pub refusal: Refusal,
    /// Positions, increasing, of the records that it may be about; empty where nothing is known.
    pub suspects: Vec<usize>,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, suspects: Vec::new() }
    }
}

/// A checked answer. Records are named by their position among those selected.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Position and why, by increasing position.
    pub refusals: Vec<(usize, Refusal)>,
    /// One an output; `rows_per_record` has one entry a selected record, 0 for those refused. Empty
    /// for a validator.
    pub outputs: Vec<OutputRows>,
}

/// Checks a validator's answer.
pub fn check_rejections(
    selected: &[u32],
    rejections: impl IntoIterator<Item = GuestRejection>,
) -> Result<Answer, Fault> {
    Ok(Answer { refusals: positions(selected, rejections)?, ..Answer::default() })
}

/// Checks a mapper's answer and walks every row of it. `outputs` has rows of each declared output, with one
/// entry a selected record in `rows_per_record`.
pub fn check_mapped(
    declared: &[Output],
    limits: AnswerLimits,
    selected: &[u32],
    outputs: Vec<OutputRows>,
    rejections: impl IntoIterator<Item = GuestRejection>,
) -> Result<Answer, Fault> {
    if outputs.len() != declared.len() {
        let reason = format!("rows for {} outputs, but init declared {}", outputs.len(), declared.len());
        return Err(Refusal::bad_answer(reason).into());
    }
    let refusals = positions(selected, rejections)?;
    let mut bad_rows = Vec::new();
    let mut bytes_per_record = vec![0usize; selected.len()];
    for (output, rows) in declared.iter().zip(&outputs) {
        check_shape(output, selected, rows)?;
        for (position, _) in &refusals {
            if rows.rows_per_record[*position] != 0 {
                let name = &output.name;
                let reason = format!("a record is rejected and yet has rows in output `{name}`");
                bad_rows.push((*position, Refusal::bad_answer(reason)));
            }
        }
        walk(output, limits, rows, &mut bytes_per_record, &mut bad_rows);
    }
    // Stable, so that of several faults of one record the first output's stays.
    bad_rows.sort_by_key(|(position, _)| *position);
    bad_rows.dedup_by_key(|(position, _)| *position);
    if let Some((_, refusal)) = bad_rows.first().cloned() {
        return Err(Fault {
            refusal,
            suspects: bad_rows.into_iter().map(|(position, _)| position).collect(),
        });
    }
    Ok(Answer { refusals, outputs })
}

/// Turns rejections by index into refusals by position; indexes must be selected and increasing.
fn positions(
    selected: &[u32],
    rejections: impl IntoIterator<Item = GuestRejection>,
) -> Result<Vec<(usize, Refusal)>, Refusal> {
    let mut refusals = Vec::new();
    let mut next = 0;
    for rejection in rejections {
        let index = rejection.index;
        let Some(position) = selected[next..].iter().position(|candidate| *candidate == index) else {
            return Err(Refusal::bad_answer(if selected[..next].contains(&index) {
                format!("the rejection of record {index} is repeated or out of order")
            } else {
                format!("a rejection of record {index}, which the module was not asked about")
            }));
        };
        refusals.push((next + position, Refusal::from_guest(rejection)));
        next += position + 1;
    }
    Ok(refusals)
}

/// Whether the three lists of one output agree with each other.
fn check_shape(output: &Output, selected: &[u32], rows: &OutputRows) -> Result<(), Refusal> {
    let name = &output.name;
    if rows.rows_per_record.len() != selected.len() {
        return Err(Refusal::bad_answer(format!(
            "output `{name}`: rows-per-record has {} entries for {} records",
            rows.rows_per_record.len(),
            selected.len()
        )));
    }
    let counted: u64 = rows.rows_per_record.iter().map(|rows| u64::from(*rows)).sum();
    if counted != rows.row_ends.len() as u64 {
        return Err(Refusal::bad_answer(format!(
            "output `{name}`: rows-per-record counts {counted} rows, row-ends has {}",
            rows.row_ends.len()
        )));
    }
    if let Some(at) = rows.row_ends.windows(2).position(|ends| ends[0] > ends[1]) {
        return Err(Refusal::bad_answer(format!(
            "output `{name}`: row {} ends at {}, before the row ahead of it ({})",
            at + 1,
            rows.row_ends[at + 1],
            rows.row_ends[at]
        )));
    }
    let end = rows.row_ends.last().map_or(0, |end| *end as usize);
    if end != rows.bytes.len() {
        return Err(Refusal::bad_answer(format!(
            "output `{name}`: the last row ends at {end}, the bytes at {}",
            rows.bytes.len()
        )));
    }
    Ok(())
}

/// Walks the rows of one output whose shape was checked; appends the first fault of each record.
fn walk(
    output: &Output,
    limits: AnswerLimits,
    rows: &OutputRows,
    bytes_per_record: &mut [usize],
    bad_rows: &mut Vec<(usize, Refusal)>,
) {
    let mut ends = rows.row_ends.iter();
    let mut start = 0;
    for (position, count) in rows.rows_per_record.iter().enumerate() {
        let first = start;
        let mut fault = None;
        for end in ends.by_ref().take(*count as usize) {
            let end = *end as usize;
            if fault.is_none() {
                fault = walk_one(output, &rows.bytes[start..end]);
            }
            start = end;
        }
        bytes_per_record[position] += start - first;
        if *count > limits.rows_per_record {
            fault = Some(Refusal::new(
                RejectionKind::BadRow,
                "too_many_rows",
                format!("{count} rows in output `{}`; the limit is {}", output.name, limits.rows_per_record),
            ));
        } else if bytes_per_record[position] > limits.output_bytes_per_record {
            fault = Some(Refusal::new(
                RejectionKind::BadRow,
                "output_too_large",
                format!(
                    "{} bytes of rows up to output `{}`; the limit for a record is {}",
                    bytes_per_record[position], output.name, limits.output_bytes_per_record
                ),
            ));
        }
        bad_rows.extend(fault.map(|fault| (position, fault)));
    }
}

fn walk_one(output: &Output, row: &[u8]) -> Option<Refusal> {
    let problem = match output.walk_row(row) {
        Ok(walked) if walked == row.len() => return None,
        Ok(walked) => format!("the columns take {walked} bytes, the row has {}", row.len()),
        Err(fault) => fault.to_string(),
    };
    Some(Refusal::new(RejectionKind::BadRow, "bad_row", format!("output `{}`: {problem}", output.name)))
}

/// A code that is safe in a header, a metric and a query: ASCII letters, digits, `_ - .`.
fn clean_code(code: &str) -> String {
    let safe = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    let mut code: String = code
        .chars()
        .map(|character| if safe(character) { character } else { '_' })
        .take(CODE_BYTES)
        .collect();
    if code.is_empty() {
        code.push_str("rejected");
    }
    code
}

/// Text for a header: no control characters, at most `limit` bytes.
pub fn clean(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - '…'.len_utf8()));
        text.push('…');
    }
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, " ");
    }
    text
}

#[cfg(test)]
mod tests;
