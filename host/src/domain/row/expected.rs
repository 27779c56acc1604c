//! Expected: a row as somebody wrote it by hand against the row that came, column by column.
//!
//! Values are compared as what they are, not as they are spelled: `19.9` is `"19.90"` in a decimal, and
//! `2026-01-31T13:00:00+01:00` is `2026-01-31 12:00:00` in a point in time. What is not named is not
//! compared, of columns and of the elements of a named tuple alike, so that a new column breaks no case.

use core::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value};

use super::{ColumnType, Output};
use crate::domain::spelling::closest;

/// Longest text of a value in a difference, in bytes.
const SHOWN_BYTES: usize = 200;

/// A value that is not the expected one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Another value.
    #[error("column {path}: expected {expected}, came {actual}")]
    Value {
        /// Column, and where in it: `lines[2].sku`.
        path: String,
        /// As JSON.
        expected: String,
        /// As JSON.
        actual: String,
    },
    /// The output has no such column.
    #[error("there is no column `{name}`; {cure}")]
    NoColumn {
        /// As expected.
        name: String,
        /// What may have been meant.
        cure: String,
    },
    /// A column that should have been named.
    #[error("column {name} is not expected, came {actual}")]
    Unexpected {
        /// Column.
        name: String,
        /// As JSON.
        actual: String,
    },
}

impl Output {
    /// How `actual`, made by [`Output::row_to_json`], differs from what was `expected`; with `is_exact`,
    /// every column has to be expected.
    pub fn differences(
        &self,
        expected: &Map<String, Value>,
        actual: &Map<String, Value>,
        is_exact: bool,
    ) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (name, expected) in expected {
            let column = self.columns.iter().find(|column| column.name == *name);
            match column.zip(actual.get(name)) {
                Some((column, actual)) => {
                    compare(&column.column_type, name, expected, actual, &mut differences);
                }
                None => {
                    let columns: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
                    let cure = match closest(name, columns.iter().copied()) {
                        Some(column) => format!("did you mean `{column}`?"),
                        None => format!("the columns are {}", shortened(columns.join(", "))),
                    };
                    differences.push(Difference::NoColumn { name: name.clone(), cure });
                }
            }
        }
        if is_exact {
            let unexpected = actual.iter().filter(|(name, _)| !expected.contains_key(*name));
            differences.extend(unexpected.map(|(name, actual)| Difference::Unexpected {
                name: name.clone(),
                actual: shortened(actual.to_string()),
            }));
        }
        differences
    }
}

/// Appends the first difference in each part; recursion is bounded by the nesting of types.
fn compare(
    column_type: &ColumnType,
    path: &str,
    expected: &Value,
    actual: &Value,
    differences: &mut Vec<Difference>,
) {
    let is_same = match (column_type.stored(), expected, actual) {
        (ColumnType::Nullable(_), Value::Null, Value::Null) => true,
        (ColumnType::Nullable(_), Value::Null, _) | (ColumnType::Nullable(_), _, Value::Null) => false,
        (ColumnType::Nullable(inner), ..) => {
            return compare(inner, path, expected, actual, differences);
        }
        (ColumnType::Array(element), Value::Array(expected), Value::Array(actual))
            if expected.len() == actual.len() =>
        {
            for (index, (expected, actual)) in expected.iter().zip(actual).enumerate() {
                compare(element, &format!("{path}[{index}]"), expected, actual, differences);
            }
            return;
        }
        (ColumnType::Map(_, element), Value::Object(expected), Value::Object(actual))
            if expected.len() == actual.len() && expected.keys().all(|key| actual.contains_key(key)) =>
        {
            for (key, expected) in expected {
                compare(element, &format!("{path}.{key}"), expected, &actual[key], differences);
            }
            return;
        }
        (ColumnType::Tuple(elements), Value::Object(expected), Value::Object(actual))
            if expected.keys().all(|name| actual.contains_key(name)) =>
        {
            for (name, element) in elements {
                let name = name.as_deref().unwrap_or_default();
                if let Some((expected, actual)) = expected.get(name).zip(actual.get(name)) {
                    compare(element, &format!("{path}.{name}"), expected, actual, differences);
                }
            }
            return;
        }
        (ColumnType::Tuple(elements), Value::Array(expected), actual) if expected.len() == elements.len() => {
            let actual: Vec<&Value> = match actual {
                Value::Array(values) => values.iter().collect(),
                Value::Object(values) => values.values().collect(),
                _ => Vec::new(),
            };
            for (index, ((_, element), (expected, actual))) in
                elements.iter().zip(expected.iter().zip(actual)).enumerate()
            {
                compare(element, &format!("{path}.{}", index + 1), expected, actual, differences);
            }
            return;
        }
        (scalar, expected, actual) => is_same_scalar(scalar, expected, actual),
    };
    if !is_same {
        differences.push(Difference::Value {
            path: path.to_owned(),
            expected: shortened(expected.to_string()),
            actual: shortened(actual.to_string()),
        });
    }
}

fn is_same_scalar(column_type: &ColumnType, expected: &Value, actual: &Value) -> bool {
    let texts = expected.as_str().zip(actual.as_str());
    match column_type {
        ColumnType::Plain(plain) => match plain.name() {
            "Float32" => is_same_float(expected, actual, |one, other| one as f32 == other as f32),
            // JSON numbers may be read a step beside what they say.
            "Float64" => is_same_float(expected, actual, |one, other| {
                one == other || (one - other).abs() <= other.abs() * 1e-15
            }),
            // Some three digits are all that it holds.
            "BFloat16" => {
                is_same_float(expected, actual, |one, other| (one - other).abs() <= other.abs() / 256.0)
            }
            "Date" => expected == actual,
            "UUID" => texts.is_some_and(|(expected, actual)| expected.eq_ignore_ascii_case(actual)),
            "IPv4" => is_same_parsed::<Ipv4Addr>(texts),
            "IPv6" => is_same_parsed::<Ipv6Addr>(texts),
            _ => is_same_number(expected, actual),
        },
        ColumnType::Decimal { .. } => is_same_number(expected, actual),
        ColumnType::FixedString(_) => texts.is_some_and(|(expected, actual)| {
            expected.trim_end_matches('\0') == actual.trim_end_matches('\0')
        }),
        ColumnType::DateTime(_) | ColumnType::DateTime64(..) => {
            let points = texts.map(|(expected, actual)| (point_in_time(expected), point_in_time(actual)));
            points.is_some_and(|(expected, actual)| expected.is_some() && expected == actual)
        }
        ColumnType::Time | ColumnType::Time64(_) => {
            let trimmed = |text: &str| match text.split_once('.') {
                Some((whole, fraction)) => format!("{whole}.{}", fraction.trim_end_matches('0')),
                None => format!("{text}."),
            };
            texts.is_some_and(|(expected, actual)| trimmed(expected) == trimmed(actual))
        }
        _ => expected == actual,
    }
}

fn is_same_parsed<T: std::str::FromStr + PartialEq>(texts: Option<(&str, &str)>) -> bool {
    texts.is_some_and(|(expected, actual)| {
        let (expected, actual) = (expected.parse::<T>().ok(), actual.parse::<T>().ok());
        expected.is_some() && expected == actual
    })
}

fn is_same_float(expected: &Value, actual: &Value, is_same: impl Fn(f64, f64) -> bool) -> bool {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    match (number(expected), number(actual)) {
        (Some(expected), Some(actual)) => is_same(expected, actual) || expected.is_nan() && actual.is_nan(),
        _ => false,
    }
}

fn is_same_number(expected: &Value, actual: &Value) -> bool {
    let digits = |value: &Value| match value {
        Value::Number(number) => Digits::of(&number.to_string()),
        Value::String(text) => Digits::of(text),
        _ => None,
    };
    let expected = digits(expected);
    expected.is_some() && expected == digits(actual)
}

/// A number as its digits without zeros on either side, and the power of ten of the last one.
#[derive(PartialEq, Eq)]
struct Digits {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Digits {
    fn of(text: &str) -> Option<Self> {
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, i64::from(exponent.parse::<i32>().ok()?)),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let digits = all.trim_end_matches('0');
        let dropped = (all.len() - digits.len()) as i64;
        let digits = digits.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: 0 });
        }
        Some(Self { is_negative, digits, exponent: exponent - fraction.len() as i64 + dropped })
    }
}

/// With an offset, or in UTC without one.
fn point_in_time(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(timestamp) = text.parse::<jiff::Timestamp>() {
        return Some(timestamp);
    }
    let civil: jiff::civil::DateTime = text.parse().ok()?;
    jiff::tz::Offset::UTC.to_timestamp(civil).ok()
}

/// Text that fits into a line.
fn shortened(mut text: String) -> String {
    if text.len() > SHOWN_BYTES {
        text.truncate(text.floor_char_boundary(SHOWN_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ColumnDefinition;
    use super::*;

    fn found(type_name: &str, expected: &Value, actual: &Value) -> Vec<String> {
        let column_type = ColumnType::parse(type_name).unwrap();
        let mut differences = Vec::new();
        compare(&column_type, "c", expected, actual, &mut differences);
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_the_same_however_they_are_spelled() {
        for (type_name, expected, actual) in [
            ("Decimal(10, 2)", json!(19.9), json!("19.90")),
            ("Decimal(10, 2)", json!("0019.9"), json!("19.90")),
            ("Decimal(10, 2)", json!(-0.0), json!("0.00")),
            ("Decimal(38, 0)", json!("1e3"), json!("1000")),
            ("UInt64", json!("18446744073709551615"), json!(u64::MAX)),
            ("Int32", json!(5.0), json!(5)),
            ("Float32", json!(0.1), json!(0.1f32)),
            ("Float64", json!("nan"), json!("nan")),
            ("BFloat16", json!(2.7), json!(2.703125)),
            ("DateTime", json!("2026-01-31T13:00:00+01:00"), json!("2026-01-31 12:00:00")),
            ("DateTime64(3)", json!("2026-01-31 12:00:00"), json!("2026-01-31 12:00:00.000")),
            (
                "DateTime64(3, 'Europe/Vienna')",
                json!("2026-01-31T12:00:00Z"),
                json!("2026-01-31 12:00:00.000"),
            ),
            ("Time64(3)", json!("01:02:03.5"), json!("01:02:03.500")),
            ("FixedString(4)", json!("ab"), json!("ab\0\0")),
            (
                "UUID",
                json!("61F0C404-5CB3-11E7-907B-A6006AD3DBA0"),
                json!("61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
            ),
            ("IPv6", json!("2001:DB8:0::1"), json!("2001:db8::1")),
            ("LowCardinality(Nullable(String))", json!(null), json!(null)),
            ("Map(String, UInt8)", json!({"b": 2, "a": 1}), json!({"a": 1, "b": 2})),
            ("Tuple(a UInt8, b String)", json!({"b": "x"}), json!({"a": 1, "b": "x"})),
            ("Tuple(a UInt8, b String)", json!([1, "x"]), json!({"a": 1, "b": "x"})),
        ] {
            assert_eq!(found(type_name, &expected, &actual), Vec::<String>::new(), "{type_name}");
        }
    }

    #[test]
    fn what_differs_is_told_where_it_stands() {
        for (type_name, expected, actual, difference) in [
            ("Decimal(10, 2)", json!(19.91), json!("19.90"), r#"column c: expected 19.91, came "19.90""#),
            ("Decimal(10, 2)", json!(199), json!("19.90"), r#"column c: expected 199, came "19.90""#),
            ("Int32", json!(-5), json!(5), "column c: expected -5, came 5"),
            ("UInt8", json!("one"), json!(1), r#"column c: expected "one", came 1"#),
            ("UInt8", json!(null), json!(0), "column c: expected null, came 0"),
            ("Nullable(UInt8)", json!(0), json!(null), "column c: expected 0, came null"),
            ("String", json!(1), json!("1"), r#"column c: expected 1, came "1""#),
            (
                "DateTime",
                json!("today"),
                json!("2026-01-31 12:00:00"),
                r#"column c: expected "today", came "2026-01-31 12:00:00""#,
            ),
            ("Array(UInt8)", json!([1, 2]), json!([1, 3]), "column c[1]: expected 2, came 3"),
            ("Array(UInt8)", json!([1]), json!([1, 3]), "column c: expected [1], came [1,3]"),
            ("Map(String, UInt8)", json!({"a": 2}), json!({"a": 1}), "column c.a: expected 2, came 1"),
            (
                "Map(String, UInt8)",
                json!({"b": 1}),
                json!({"a": 1}),
                r#"column c: expected {"b":1}, came {"a":1}"#,
            ),
            (
                "Tuple(a UInt8)",
                json!({"b": 1}),
                json!({"a": 1}),
                r#"column c: expected {"b":1}, came {"a":1}"#,
            ),
            ("Tuple(UInt8, UInt8)", json!([1, 2]), json!([1, 3]), "column c.2: expected 2, came 3"),
        ] {
            assert_eq!(found(type_name, &expected, &actual), [difference], "{type_name}");
        }
    }

    #[test]
    fn named_columns_are_compared_and_the_others_only_where_the_case_is_exact() {
        let columns = ["total", "country"].map(|name| ColumnDefinition {
            name: name.into(),
            column_type: ColumnType::parse("String").unwrap(),
        });
        let output = Output { name: "orders".into(), columns: columns.to_vec().into() };
        let actual = json!({"total": "1", "country": "AT"});
        let actual = actual.as_object().unwrap();
        let told = |expected: Value, is_exact| {
            let differences = output.differences(expected.as_object().unwrap(), actual, is_exact);
            differences.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(json!({"total": "1"}), false), Vec::<String>::new());
        assert_eq!(told(json!({"total": "1"}), true), [r#"column country is not expected, came "AT""#]);
        assert_eq!(told(json!({"totl": "1"}), false), ["there is no column `totl`; did you mean `total`?"]);
        assert_eq!(
            told(json!({"price": "1"}), false),
            ["there is no column `price`; the columns are total, country"]
        );
    }
}
