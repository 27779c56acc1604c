//! Line: one golden case as an analyst writes it.
//!
//! | key | |
//! | --- | --- |
//! | `payload` | the record's payload: text stands for itself, any other JSON for its own text, letter by letter; `null` is a record without one |
//! | `payload_hex` | the same in hex digits, for bytes that are no text |
//! | `key` | as `payload`; none without it |
//! | `headers` | an object of names and values as `payload`, or a list of pairs where a name repeats |
//! | `timestamp` | Kafka's, in milliseconds or as RFC 3339; none without it |
//! | `topic`, `partition`, `offset` | `cases`, 0 and counting without them |
//! | `name` | what the case is called where it fails |
//! | `accepted` | `true`: the module does not reject it |
//! | `filtered` | `true`: a mapper makes no row of it |
//! | `rejected` | the code, or `true` for any |
//! | `field` | with `rejected`: the field that the rejection names, `null` for none |
//! | `row` | the only row of a mapper with one output |
//! | `rows` | a list of rows, or an object of such lists by output |
//! | `exact` | `true`: rows have no columns, and outputs no rows, but those named |
//!
//! Payload and key keep the spelling that they have in the line, so that `1.0`, a number of 30 digits or a
//! key that stands twice reach the module as they were written.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Map, Value};

use crate::domain::spelling::one_of;

use super::expectation::{Expectation, ExpectedRows};
use super::{CaseRecord, Header};

const KEYS: [&str; 16] = [
    "payload",
    "payload_hex",
    "key",
    "headers",
    "timestamp",
    "topic",
    "partition",
    "offset",
    "name",
    "accepted",
    "filtered",
    "rejected",
    "field",
    "row",
    "rows",
    "exact",
];

/// Keys that say what is expected.
const EXPECTATIONS: [&str; 5] = ["accepted", "filtered", "rejected", "row", "rows"];

/// Digits that a JSON number has at most to be read without loss.
const EXACT_DIGITS: usize = 15;

/// Name, record and expectation of one case.
pub(super) fn parse(text: &[u8]) -> Result<(Option<String>, CaseRecord, Expectation), String> {
    let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8; save the file as UTF-8".to_owned())?;
    let entries = Entries::of(text)?;
    for (key, _) in &entries.0 {
        if !KEYS.contains(&key.as_str()) {
            return Err(format!("there is no key `{key}`; {}", one_of(key, KEYS)));
        }
    }
    Ok((entries.name()?, entries.record()?, entries.expectation()?))
}

/// The keys of a line, with the text of their values.
struct Entries<'a>(Vec<(String, &'a str)>);

impl<'a> Entries<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        // The whole line first: serde_json says best what is wrong with it.
        let whole: Value = serde_json::from_str(text).map_err(|error| {
            let column = error.column();
            let text = error.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
            format!("is not JSON: {reason} (column {column}); a case is one JSON object on one line")
        })?;
        if !whole.is_object() {
            return Err("is no JSON object; write {\"payload\": ..., \"accepted\": true}".to_owned());
        }
        let mut entries: Vec<(String, &str)> = Vec::new();
        let mut rest = &text[1..];
        loop {
            rest = rest.trim_ascii_start();
            if rest.starts_with('}') {
                return Ok(Self(entries));
            }
            let (key, after) = leading(rest.trim_start_matches(','))?;
            let key: String = serde_json::from_str(key).map_err(|error| error.to_string())?;
            let after = after.trim_ascii_start().trim_start_matches(':');
            let (value, after) = leading(after)?;
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(format!("has the key `{key}` twice; keep one of them"));
            }
            entries.push((key, value));
            rest = after;
        }
    }

    fn raw(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| *value)
    }

    fn value(&self, key: &str) -> Result<Option<Value>, String> {
        self.raw(key).map(|raw| parsed(key, raw)).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        match self.value(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("`{key}` is text; put it into quotes")),
        }
    }

    fn number(&self, key: &str, most: i64) -> Result<Option<i64>, String> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let number = value.as_i64().filter(|number| (0..=most).contains(number));
        number.map(Some).ok_or_else(|| format!("`{key}` is a whole number, 0 to {most}"))
    }

    /// A key that is `true` where it is there.
    fn is_true(&self, key: &str) -> Result<bool, String> {
        match self.value(key)? {
            None => Ok(false),
            Some(Value::Bool(true)) => Ok(true),
            Some(_) => Err(format!("`{key}` is true or is left out")),
        }
    }

    fn name(&self) -> Result<Option<String>, String> {
        self.text("name")
    }

    fn record(&self) -> Result<CaseRecord, String> {
        let payload = match (self.raw("payload"), self.text("payload_hex")?) {
            (Some(raw), None) => bytes("payload", raw)?,
            (None, Some(digits)) => Some(
                hex::decode(&digits)
                    .map_err(|_| "`payload_hex` is pairs of hex digits, as in \"00ff\"".to_owned())?,
            ),
            (Some(_), Some(_)) => {
                return Err("has both `payload` and `payload_hex`; keep one of them".to_owned());
            }
            (None, None) => {
                return Err("has no `payload`; write null for a record that has none".to_owned());
            }
        };
        let key = self.raw("key").map(|raw| bytes("key", raw)).transpose()?.flatten();
        Ok(CaseRecord {
            topic: self.text("topic")?.unwrap_or_else(|| "cases".to_owned()),
            partition: self.number("partition", i32::MAX.into())?.unwrap_or(0) as i32,
            // So that the offsets that count on from it stay offsets.
            offset: self.number("offset", i64::MAX / 2)?,
            timestamp: self.timestamp()?,
            key,
            payload,
            headers: self.headers()?,
        })
    }

    fn timestamp(&self) -> Result<i64, String> {
        let wrong =
            || "`timestamp` is milliseconds since 1970, or text like \"2026-01-31T20:00:00Z\"".to_owned();
        match self.value("timestamp")? {
            None => Ok(-1),
            Some(Value::Number(number)) => number.as_i64().filter(|number| *number >= 0).ok_or_else(wrong),
            Some(Value::String(text)) => {
                text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond).map_err(|_| wrong())
            }
            Some(_) => Err(wrong()),
        }
    }

    fn headers(&self) -> Result<Vec<Header>, String> {
        let wrong = || {
            "`headers` is an object of names and values, or a list of pairs [\"name\", \"value\"]".to_owned()
        };
        let value_bytes = |value: &Value| bytes("headers", &value.to_string());
        match self.value("headers")? {
            None => Ok(Vec::new()),
            Some(Value::Object(headers)) => {
                headers.iter().map(|(name, value)| Ok((name.clone(), value_bytes(value)?))).collect()
            }
            Some(Value::Array(pairs)) => pairs
                .iter()
                .map(|pair| match pair.as_array().map(Vec::as_slice) {
                    Some([Value::String(name), value]) => Ok((name.clone(), value_bytes(value)?)),
                    _ => Err(wrong()),
                })
                .collect(),
            Some(_) => Err(wrong()),
        }
    }

    fn expectation(&self) -> Result<Expectation, String> {
        let given: Vec<&str> = EXPECTATIONS.into_iter().filter(|key| self.raw(key).is_some()).collect();
        let [expected] = given[..] else {
            return Err(match given[..] {
                [] => "says nothing about what is expected; add accepted, filtered, rejected, row or rows"
                    .to_owned(),
                _ => format!("expects {} at once; keep one of them", given.join(" and ")),
            });
        };
        if expected != "rejected" && self.raw("field").is_some() {
            return Err("`field` goes with `rejected`; leave it out".to_owned());
        }
        let is_exact = self.is_true("exact")?;
        if is_exact && !matches!(expected, "row" | "rows") {
            return Err("`exact` goes with `row` or `rows`; leave it out".to_owned());
        }
        match expected {
            "accepted" => self.is_true("accepted").map(|_| Expectation::Accepted),
            "filtered" => self.is_true("filtered").map(|_| Expectation::Filtered),
            "rejected" => self.rejected(),
            _ => self.rows(expected, is_exact),
        }
    }

    fn rejected(&self) -> Result<Expectation, String> {
        let code = match self.value("rejected")? {
            Some(Value::String(code)) => Some(code),
            Some(Value::Bool(true)) => None,
            _ => return Err("`rejected` is the code in quotes, or true for any".to_owned()),
        };
        let field = match self.value("field")? {
            None => None,
            Some(Value::Null) => Some(None),
            Some(Value::String(field)) => Some(Some(field)),
            Some(_) => return Err("`field` is text in quotes, or null where no field is named".to_owned()),
        };
        Ok(Expectation::Rejected { code, field })
    }

    fn rows(&self, key: &str, is_exact: bool) -> Result<Expectation, String> {
        if let Some(number) = self.raw(key).and_then(inexact_number) {
            return Err(format!(
                "{number} has more digits than a JSON number keeps; put it into quotes: \"{number}\""
            ));
        }
        let wrong = "a row is an object of columns and values";
        let row = |value: Value| match value {
            Value::Object(columns) => Ok(columns),
            _ => Err(format!("in `{key}`: {wrong}")),
        };
        let list = |value: Value| -> Result<Vec<Map<String, Value>>, String> {
            match value {
                Value::Array(rows) => rows.into_iter().map(row).collect(),
                Value::Object(_) => Err(
                    "`rows` is a list of rows, or an object of such lists by output; for one row write `row`"
                        .to_owned(),
                ),
                _ => Err(format!("in `{key}`: {wrong}, rows are a list of them")),
            }
        };
        let rows = match (key, self.value(key)?.unwrap_or_default()) {
            ("row", value) => ExpectedRows::Only(vec![row(value)?]),
            (_, Value::Object(outputs)) => ExpectedRows::ByOutput(
                outputs
                    .into_iter()
                    .map(|(output, rows)| Ok((output, list(rows)?)))
                    .collect::<Result<_, String>>()?,
            ),
            (_, value) => ExpectedRows::Only(list(value)?),
        };
        Ok(Expectation::Rows { rows, is_exact })
    }
}

/// The JSON value at the start of `text`, and what follows it.
fn leading(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim_ascii_start();
    let mut values = Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(IgnoredAny)) => Ok(text.split_at(values.byte_offset())),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("ends too early".to_owned()),
    }
}

fn parsed(key: &str, raw: &str) -> Result<Value, String> {
    serde_json::from_str(raw).map_err(|error| format!("`{key}` cannot be read: {error}"))
}

/// Text stands for itself, `null` for nothing, anything else for its own text.
fn bytes(key: &str, raw: &str) -> Result<Option<Vec<u8>>, String> {
    match raw.as_bytes()[0] {
        b'"' => match parsed(key, raw)? {
            Value::String(text) => Ok(Some(text.into_bytes())),
            _ => Err(format!("`{key}` cannot be read")),
        },
        b'n' => Ok(None),
        _ => Ok(Some(raw.as_bytes().to_vec())),
    }
}

/// A number in `raw`, outside of strings, that would lose digits on the way through a double.
fn inexact_number(raw: &str) -> Option<&str> {
    let bytes = raw.as_bytes();
    let mut position = 0;
    while position < bytes.len() {
        match bytes[position] {
            b'"' => {
                position += 1;
                while position < bytes.len() && bytes[position] != b'"' {
                    position += if bytes[position] == b'\\' { 2 } else { 1 };
                }
                position += 1;
            }
            b'-' | b'0'..=b'9' => {
                let start = position;
                while position < bytes.len()
                    && matches!(bytes[position], b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')
                {
                    position += 1;
                }
                let number = &raw[start..position];
                let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
                let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
                let is_whole = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
                if digits > EXACT_DIGITS && !is_whole {
                    return Some(number);
                }
            }
            _ => position += 1,
        }
    }
    None
}
