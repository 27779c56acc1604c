//! JSON: a row as the object that ClickHouse's `JSONEachRow` shows of it, for people and golden cases.
//!
//! Nothing is lost on the way: integers of up to 64 bits are JSON numbers, as ClickHouse shows them by
//! default since 25.8; wider integers and decimals are text with all their digits, because most readers
//! of JSON make a double of every number. Points in time are in UTC, whatever the zone of the column, so
//! that the same row reads the same on every host. Floats that JSON has no number for are the text `nan`,
//! `inf` and `-inf`, so that they are not taken for a null. Bytes that are no UTF-8 show as U+FFFD, as
//! with `output_format_json_validate_utf8`; of the keys of a `Map` that repeat, the last one shows.

use core::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Number, Value};

use super::{ColumnType, Output, RowFault};
use crate::domain::column_type::{EnumWidth, decimal_width};

impl Output {
    /// The columns of one row, in the declared order.
    ///
    /// # Errors
    /// When `row` is not exactly one row of the declared columns; one that was walked is.
    pub fn row_to_json(&self, row: &[u8]) -> Result<Map<String, Value>, RowFault> {
        let mut rest = row;
        let mut shown = Map::with_capacity(self.columns.len());
        let fault = |column: &str, left: usize, problem: String| RowFault {
            column: column.to_owned(),
            position: row.len() - left,
            problem,
        };
        for column in &self.columns {
            let left = rest.len();
            let value = value(&column.column_type, &mut rest).ok_or_else(|| {
                fault(&column.name, left, format!("the bytes are no value of {}", column.column_type))
            })?;
            shown.insert(column.name.clone(), value);
        }
        if !rest.is_empty() {
            let column = self.columns.last().map_or("", |column| column.name.as_str());
            return Err(fault(column, rest.len(), format!("{} bytes follow the row", rest.len())));
        }
        Ok(shown)
    }
}

/// The value at the start of `bytes`, which move past it. Recursion is bounded by the nesting of types.
fn value(column_type: &ColumnType, bytes: &mut &[u8]) -> Option<Value> {
    Some(match column_type.stored() {
        ColumnType::Plain(plain) => plain_value(plain.name(), take(bytes, plain.width())?),
        ColumnType::Bool => match take(bytes, 1)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return None,
        },
        ColumnType::String => {
            let length = usize::try_from(length(bytes)?).ok()?;
            text(take(bytes, length)?)
        }
        ColumnType::FixedString(width) => text(take(bytes, *width)?),
        ColumnType::Date32 => Value::String(date(i64::from(i32::from_le_bytes(fixed(bytes)?)))?),
        ColumnType::DateTime(_) => Value::String(moment(i128::from(u32::from_le_bytes(fixed(bytes)?)), 0)?),
        ColumnType::DateTime64(precision, _) => {
            Value::String(moment(i128::from(i64::from_le_bytes(fixed(bytes)?)), *precision)?)
        }
        ColumnType::Time => Value::String(time(i64::from(i32::from_le_bytes(fixed(bytes)?)), 0)),
        ColumnType::Time64(precision) => Value::String(time(i64::from_le_bytes(fixed(bytes)?), *precision)),
        ColumnType::Decimal { precision, scale } => {
            Value::String(decimal(take(bytes, decimal_width(*precision))?, usize::from(*scale)))
        }
        ColumnType::Enum { width, values } => {
            let number = match width {
                EnumWidth::One => i16::from(i8::from_le_bytes(fixed(bytes)?)),
                EnumWidth::Two => i16::from_le_bytes(fixed(bytes)?),
            };
            let (_, name) = values.iter().find(|(value, _)| *value == number)?;
            Value::String(name.clone())
        }
        ColumnType::Nullable(inner) => match take(bytes, 1)? {
            [0] => value(inner, bytes)?,
            [1] => Value::Null,
            _ => return None,
        },
        ColumnType::Array(element) => {
            let count = length(bytes)?;
            // Not made as large as the count says: that may be a lie.
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(value(element, bytes)?);
            }
            Value::Array(values)
        }
        ColumnType::Map(key, element) => {
            let count = length(bytes)?;
            let mut entries = Map::new();
            for _ in 0..count {
                let key = match value(key, bytes)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                entries.insert(key, value(element, bytes)?);
            }
            Value::Object(entries)
        }
        ColumnType::Tuple(elements) => tuple(elements, bytes)?,
        ColumnType::LowCardinality(_) | ColumnType::SimpleAggregateFunction(..) => {
            unreachable!("stored() looks through these")
        }
    })
}

/// An object where every element has a name, as with `output_format_json_named_tuples_as_objects`.
fn tuple(elements: &[(Option<String>, ColumnType)], bytes: &mut &[u8]) -> Option<Value> {
    let names: Option<Vec<&String>> = elements.iter().map(|(name, _)| name.as_ref()).collect();
    let mut values = Vec::with_capacity(elements.len());
    for (_, element) in elements {
        values.push(value(element, bytes)?);
    }
    Some(match names {
        Some(names) => Value::Object(names.into_iter().cloned().zip(values).collect()),
        None => Value::Array(values),
    })
}

/// `bytes` are as many as the type takes.
fn plain_value(name: &str, bytes: &[u8]) -> Value {
    match name {
        "Int128" | "Int256" => Value::String(integer(bytes, true)),
        "UInt128" | "UInt256" => Value::String(integer(bytes, false)),
        "Float32" => float32(f32::from_bits(low_word(bytes) as u32)),
        // The upper half of a Float32.
        "BFloat16" => float32(f32::from_bits((low_word(bytes) as u32) << 16)),
        "Float64" => float64(f64::from_bits(low_word(bytes))),
        "Date" => date(low_word(bytes) as i64).map_or(Value::Null, Value::String),
        "UUID" => {
            // Two words, the upper one first (<https://clickhouse.com/docs/interfaces/formats/RowBinary>).
            let (upper, lower) = bytes.split_at(8);
            let number = u128::from(low_word(upper)) << 64 | u128::from(low_word(lower));
            Value::String(uuid::Uuid::from_u128(number).to_string())
        }
        "IPv4" => Value::String(Ipv4Addr::from(low_word(bytes) as u32).to_string()),
        "IPv6" => {
            let mut octets = [0; 16];
            octets.copy_from_slice(bytes);
            Value::String(Ipv6Addr::from(octets).to_string())
        }
        signed if signed.starts_with('I') => {
            let unused = 64 - 8 * bytes.len() as u32;
            Value::Number((((low_word(bytes) << unused) as i64) >> unused).into())
        }
        _ => Value::Number(low_word(bytes).into()),
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    bytes.split_off(..count)
}

fn fixed<const WIDTH: usize>(bytes: &mut &[u8]) -> Option<[u8; WIDTH]> {
    take(bytes, WIDTH)?.try_into().ok()
}

/// LEB128 of at most 64 bits.
fn length(bytes: &mut &[u8]) -> Option<u64> {
    let mut length = 0u64;
    for index in 0..10 {
        let [byte] = fixed::<1>(bytes)?;
        let group = u64::from(byte & 0x7f);
        if index == 9 && group > 1 {
            return None;
        }
        length |= group << (7 * index);
        if byte < 0x80 {
            return Some(length);
        }
    }
    None
}

/// Up to eight bytes, the lowest first.
fn low_word(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn text(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}

/// Its own shortest digits, not those of the double that it fits into.
fn float32(number: f32) -> Value {
    float64(number.to_string().parse().unwrap_or(f64::from(number)))
}

fn float64(number: f64) -> Value {
    let unlike = |text: &str| Value::String(text.to_owned());
    match Number::from_f64(number) {
        Some(number) => Value::Number(number),
        None if number.is_nan() => unlike("nan"),
        None if number > 0.0 => unlike("inf"),
        None => unlike("-inf"),
    }
}

/// A whole number of up to 32 bytes, the lowest first.
fn integer(bytes: &[u8], is_signed: bool) -> String {
    /// As many digits as a step takes off: 10^19 fits into 64 bits.
    const STEP: (u128, usize) = (10_000_000_000_000_000_000, 19);
    let mut words: Vec<u64> = bytes.chunks(8).map(low_word).collect();
    let is_negative = is_signed && bytes.last().is_some_and(|byte| byte >> 7 == 1);
    if is_negative {
        // The last word may hold fewer than eight bytes; their sign goes on.
        let unused = 64 - 8 * ((bytes.len() - 1) % 8 + 1) as u32;
        if let Some(last) = words.last_mut() {
            *last = (((*last << unused) as i64) >> unused) as u64;
        }
        let mut carry = true;
        for word in &mut words {
            (*word, carry) = (!*word).overflowing_add(carry.into());
        }
    }
    let mut groups: Vec<u128> = Vec::new();
    loop {
        let mut remainder = 0u128;
        for word in words.iter_mut().rev() {
            let number = remainder << 64 | u128::from(*word);
            (*word, remainder) = ((number / STEP.0) as u64, number % STEP.0);
        }
        groups.push(remainder);
        if words.iter().all(|word| *word == 0) {
            break;
        }
    }
    let mut digits = groups.pop().unwrap_or_default().to_string();
    for group in groups.iter().rev() {
        digits.push_str(&format!("{group:0width$}", width = STEP.1));
    }
    if is_negative { format!("-{digits}") } else { digits }
}

/// With all digits of the scale, zeros at the end too.
fn decimal(bytes: &[u8], scale: usize) -> String {
    let number = integer(bytes, true);
    let (sign, digits) = number.strip_prefix('-').map_or(("", number.as_str()), |digits| ("-", digits));
    if scale == 0 {
        return number;
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

fn date(days: i64) -> Option<String> {
    let span = jiff::Span::new().try_days(days).ok()?;
    let date = jiff::civil::date(1970, 1, 1).checked_add(span).ok()?;
    Some(format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()))
}

/// Ticks of 10^-precision seconds since 1970-01-01 UTC.
fn moment(ticks: i128, precision: u8) -> Option<String> {
    let scale = 10i128.pow(precision.into());
    let (seconds, fraction) = (ticks.div_euclid(scale), ticks.rem_euclid(scale));
    let day = date(i64::try_from(seconds.div_euclid(86_400)).ok()?)?;
    let second = seconds.rem_euclid(86_400);
    let clock = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    Some(match precision {
        0 => format!("{day} {clock}"),
        _ => format!("{day} {clock}.{fraction:0width$}", width = usize::from(precision)),
    })
}

fn time(ticks: i64, precision: u8) -> String {
    let sign = if ticks < 0 { "-" } else { "" };
    let scale = 10u64.pow(precision.into());
    let (seconds, fraction) = (ticks.unsigned_abs() / scale, ticks.unsigned_abs() % scale);
    let clock = format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match precision {
        0 => clock,
        _ => format!("{clock}.{fraction:0width$}", width = usize::from(precision)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ColumnDefinition;
    use super::*;

    fn shown(type_name: &str, bytes: &[u8]) -> String {
        let column_type = ColumnType::parse(type_name).unwrap();
        let columns = vec![ColumnDefinition { name: "c".into(), column_type }];
        let output = Output { name: "rows".into(), columns: columns.into() };
        assert_eq!(output.walk_row(bytes), Ok(bytes.len()), "{type_name}: the test's own bytes");
        output.row_to_json(bytes).unwrap()["c"].to_string()
    }

    #[test]
    fn every_digit_is_shown() {
        let wide = |low: i128, high: i128| [low.to_le_bytes(), high.to_le_bytes()].concat();
        for (type_name, bytes, expected) in [
            ("UInt64", u64::MAX.to_le_bytes().to_vec(), "18446744073709551615"),
            ("Int64", i64::MIN.to_le_bytes().to_vec(), "-9223372036854775808"),
            ("Int16", (-2i16).to_le_bytes().to_vec(), "-2"),
            ("UInt128", u128::MAX.to_le_bytes().to_vec(), r#""340282366920938463463374607431768211455""#),
            ("Int128", i128::MIN.to_le_bytes().to_vec(), r#""-170141183460469231731687303715884105728""#),
            (
                "UInt256",
                wide(-1, -1),
                r#""115792089237316195423570985008687907853269984665640564039457584007913129639935""#,
            ),
            (
                "Int256",
                wide(0, i128::MIN),
                r#""-57896044618658097711785492504343953926634992332820282019728792003956564819968""#,
            ),
            ("Int256", wide(10i128.pow(19), 0), r#""10000000000000000000""#),
            ("Decimal(9, 2)", (-5i32).to_le_bytes().to_vec(), r#""-0.05""#),
            ("Decimal(18, 2)", 1990i64.to_le_bytes().to_vec(), r#""19.90""#),
            ("Decimal(38, 0)", 7i128.to_le_bytes().to_vec(), r#""7""#),
            ("Decimal(76, 40)", wide(-1, -1), r#""-0.0000000000000000000000000000000000000001""#),
            ("Float32", 0.1f32.to_le_bytes().to_vec(), "0.1"),
            ("Float64", f64::NEG_INFINITY.to_le_bytes().to_vec(), r#""-inf""#),
            ("BFloat16", vec![0xc0, 0x3f], "1.5"),
        ] {
            assert_eq!(shown(type_name, &bytes), expected, "{type_name}");
        }
    }

    #[test]
    fn bytes_that_are_no_row_are_a_fault_and_not_a_panic() {
        let types = ["UInt64", "String", "Array(String)", "Map(String, Bool)", "Enum8('a' = 1)", "UUID"];
        for type_name in types {
            let column_type = ColumnType::parse(type_name).unwrap();
            let columns = vec![ColumnDefinition { name: "c".into(), column_type }];
            let output = Output { name: "rows".into(), columns: columns.into() };
            for bytes in [&[][..], &[2], &[0xff; 9], &[0xff; 12]] {
                let fault = output.row_to_json(bytes).unwrap_err();
                assert_eq!(fault.column, "c", "{type_name}: {fault}");
            }
        }
    }
}
