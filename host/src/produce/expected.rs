//! Expected verdicts as JSON lines, beside the records that they are about.

use serde::{Deserialize, Serialize};

use super::description::Expectation;
use super::generator::Generated;

/// One line of an `.expected.jsonl` file: what the chain must say of one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedVerdict {
    /// Number of the record, from 0: line `index + 1` of the file beside it.
    pub index: u64,
    /// Its key, where it has one that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Name of its fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// `mapped`, `filtered` or `rejected`.
    pub verdict: String,
    /// Kind of the dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Code of the rejection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl From<&Generated<'_>> for ExpectedVerdict {
    fn from(generated: &Generated<'_>) -> Self {
        let (verdict, rejection) = match generated.expectation {
            Expectation::Mapped => ("mapped", None),
            Expectation::Filtered => ("filtered", None),
            Expectation::Rejected(rejection) => ("rejected", Some(rejection)),
        };
        let key = generated.message.key.as_deref();
        Self {
            index: generated.index,
            key: key.and_then(|key| std::str::from_utf8(key).ok()).map(str::to_owned),
            fault: generated.fault.map(str::to_owned),
            verdict: verdict.to_owned(),
            kind: rejection.map(|rejection| rejection.kind.clone()),
            code: rejection.map(|rejection| rejection.code.clone()),
            field: rejection.and_then(|rejection| rejection.field.clone()),
        }
    }
}

impl ExpectedVerdict {
    /// The line, without its line feed.
    pub fn to_line(&self) -> String {
        // Strings and a number: serialising them cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}
