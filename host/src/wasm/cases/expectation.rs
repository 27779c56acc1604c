//! Expectation: what a case wants, held against what a module said.

use serde_json::{Map, Value};

use crate::domain::row::Output;
use crate::domain::spelling::one_of;
use crate::domain::verdict::{RecordVerdict, Rejection, Stage};
use crate::wasm::compare::said;
use crate::wasm::module::Module;

/// Most differences of one case that are told.
const TOLD: usize = 5;

/// What a module must say.
#[derive(Debug, PartialEq)]
pub(super) enum Expectation {
    /// No rejection.
    Accepted,
    /// No rejection, and no rows.
    Filtered,
    /// A rejection, by its code and field where they are given; `Some(None)` is a rejection of no field.
    Rejected { code: Option<String>, field: Option<Option<String>> },
    /// These rows.
    Rows { rows: ExpectedRows, is_exact: bool },
}

/// Rows as they are expected.
#[derive(Debug, PartialEq)]
pub(super) enum ExpectedRows {
    /// Of the only output.
    Only(Vec<Map<String, Value>>),
    /// By output; of an output that is not named nothing is expected.
    ByOutput(Vec<(String, Vec<Map<String, Value>>)>),
}

impl Expectation {
    /// Compares; the error says what was expected and what came.
    pub(super) fn judge(&self, module: &Module, verdict: &RecordVerdict<'_>) -> Result<(), String> {
        let outputs = module.outputs();
        let is_validator = module.identity().stage != Stage::Map;
        let came = || said(outputs, verdict);
        match (self, verdict) {
            (Self::Filtered | Self::Rows { .. }, _) if is_validator => {
                Err("a validator makes no rows; write \"accepted\": true, or \"rejected\" with the code"
                    .to_owned())
            }
            (Self::Accepted, RecordVerdict::Accepted(_)) => Ok(()),
            (Self::Accepted, _) => Err(format!("expected accepted, came {}", came())),
            (Self::Filtered, RecordVerdict::Accepted(rows)) if rows.iter().all(Vec::is_empty) => Ok(()),
            (Self::Filtered, _) => Err(format!("expected filtered, came {}", came())),
            (Self::Rejected { code, field }, RecordVerdict::Rejected(rejection)) => {
                let is_code = code.as_ref().is_none_or(|code| *code == rejection.code);
                let is_field = field.as_ref().is_none_or(|field| *field == rejection.field);
                if is_code && is_field {
                    Ok(())
                } else {
                    Err(format!("expected {}, came {}", self.text(), came()))
                }
            }
            (Self::Rejected { .. }, RecordVerdict::Accepted(_)) => {
                Err(format!("expected {}, came {}", self.text(), came()))
            }
            (Self::Rows { .. }, RecordVerdict::Rejected(Rejection { .. })) => {
                Err(format!("expected rows, came {}", came()))
            }
            (Self::Rows { rows, is_exact }, RecordVerdict::Accepted(found)) => {
                rows.judge(outputs, found, *is_exact)
            }
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Rejected { code, field } => {
                let code = code.as_ref().map_or_else(String::new, |code| format!(" {code}"));
                let field = match field {
                    Some(Some(field)) => format!(" ({field})"),
                    Some(None) => " (no field)".to_owned(),
                    None => String::new(),
                };
                format!("rejected{code}{field}")
            }
            Self::Accepted => "accepted".to_owned(),
            Self::Filtered => "filtered".to_owned(),
            Self::Rows { .. } => "rows".to_owned(),
        }
    }
}

impl ExpectedRows {
    fn judge(&self, outputs: &[Output], found: &[Vec<&[u8]>], is_exact: bool) -> Result<(), String> {
        let names = || outputs.iter().map(|output| output.name.as_str());
        let expected: Vec<(&str, &[Map<String, Value>])> = match self {
            Self::Only(rows) => match outputs {
                [output] => vec![(&output.name, rows)],
                _ => {
                    return Err(format!(
                        "the mapper has {} outputs; write rows by output: {{\"rows\": {{\"{}\": [...]}}}}",
                        outputs.len(),
                        names().next().unwrap_or_default()
                    ));
                }
            },
            Self::ByOutput(rows) => {
                rows.iter().map(|(name, rows)| (name.as_str(), rows.as_slice())).collect()
            }
        };
        if let Some((stranger, _)) = expected.iter().find(|(name, _)| !names().any(|known| known == *name)) {
            let known: Vec<&str> = names().collect();
            return Err(format!("there is no output `{stranger}`; {}", one_of(stranger, known)));
        }
        let mut problems = Vec::new();
        for (output, found) in outputs.iter().zip(found) {
            let expected = expected.iter().find(|(name, _)| *name == output.name).map(|(_, rows)| *rows);
            match expected {
                Some(expected) => compare(output, expected, found, is_exact, &mut problems),
                None if is_exact && !found.is_empty() => {
                    problems.push(format!(
                        "output {}: no rows are expected, came {}",
                        output.name,
                        found.len()
                    ));
                }
                None => {}
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let more = problems.len().saturating_sub(TOLD);
        problems.truncate(TOLD);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(format!("{}{more}", problems.join("; ")))
    }
}

fn compare(
    output: &Output,
    expected: &[Map<String, Value>],
    found: &[&[u8]],
    is_exact: bool,
    problems: &mut Vec<String>,
) {
    if expected.len() != found.len() {
        let shown: Vec<String> = found
            .iter()
            .take(TOLD)
            .filter_map(|row| output.row_to_json(row).ok())
            .map(|row| Value::Object(row).to_string())
            .collect();
        problems.push(format!(
            "output {}: expected {}, came {}: [{}]",
            output.name,
            rows(expected.len()),
            rows(found.len()),
            shown.join(",")
        ));
        return;
    }
    for (index, (expected, row)) in expected.iter().zip(found).enumerate() {
        match output.row_to_json(row) {
            Ok(actual) => problems.extend(output.differences(expected, &actual, is_exact).into_iter().map(
                |difference| match found.len() {
                    1 => format!("output {}, {difference}", output.name),
                    _ => format!("output {}, row {}, {difference}", output.name, index + 1),
                },
            )),
            // It was walked, so that the host itself is wrong here.
            Err(fault) => problems.push(format!("output {}, row {}: {fault}", output.name, index + 1)),
        }
    }
}

fn rows(count: usize) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}
