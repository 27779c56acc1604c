//! RowBinary back into text, much as ClickHouse shows values.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::type_name::Kind;
use crate::timestamp::civil_from_days;

/// The value at the start of `bytes`, which move past it. `None` where they are no such value.
pub(super) fn value(kind: &Kind, bytes: &mut &[u8]) -> Option<String> {
    Some(match kind {
        Kind::Integer(16, false) => u128::from_le_bytes(take(bytes, 16)?.try_into().ok()?).to_string(),
        Kind::Integer(width, signed) => integer(take(bytes, *width)?, *signed).to_string(),
        Kind::Float32 => f32::from_le_bytes(take(bytes, 4)?.try_into().ok()?).to_string(),
        Kind::Float64 => f64::from_le_bytes(take(bytes, 8)?.try_into().ok()?).to_string(),
        Kind::Bool => match take(bytes, 1)? {
            [0] => "false".to_owned(),
            [1] => "true".to_owned(),
            _ => return None,
        },
        Kind::String => {
            let length = length(bytes)?;
            text(take(bytes, length)?)
        }
        Kind::FixedString(length) => text(take(bytes, *length)?),
        Kind::Date(width) => day(integer(take(bytes, *width)?, *width == 4) as i64),
        Kind::DateTime => moment(integer(take(bytes, 4)?, false) as i64, 0),
        Kind::DateTime64(digits) => moment(integer(take(bytes, 8)?, true) as i64, *digits),
        Kind::Uuid => {
            let high = integer(take(bytes, 8)?, false) as u64;
            let low = integer(take(bytes, 8)?, false) as u64;
            crate::Uuid((u128::from(high) << 64 | u128::from(low)).to_be_bytes()).to_string()
        }
        Kind::Ipv4 => Ipv4Addr::from(integer(take(bytes, 4)?, false) as u32).to_string(),
        Kind::Ipv6 => Ipv6Addr::from(<[u8; 16]>::try_from(take(bytes, 16)?).ok()?).to_string(),
        Kind::Decimal(width, scale) => decimal(integer(take(bytes, *width)?, true), *scale),
        Kind::Enum(width, variants) => {
            let number = integer(take(bytes, *width)?, true);
            variants.iter().find(|variant| i128::from(variant.1) == number)?.0.clone()
        }
        Kind::Nullable(inner) => match take(bytes, 1)? {
            [0] => value(inner, bytes)?,
            [1] => "NULL".to_owned(),
            _ => return None,
        },
        Kind::Array(inner) => {
            let length = length(bytes)?;
            let values = (0..length).map(|_| value(inner, bytes)).collect::<Option<Vec<_>>>()?;
            format!("[{}]", values.join(", "))
        }
        Kind::Map(key, inner) => {
            let length = length(bytes)?;
            let pairs = (0..length)
                .map(|_| Some(format!("{}: {}", value(key, bytes)?, value(inner, bytes)?)))
                .collect::<Option<Vec<_>>>()?;
            format!("{{{}}}", pairs.join(", "))
        }
        Kind::Tuple(elements) => {
            let values = elements.iter().map(|element| value(element, bytes)).collect::<Option<Vec<_>>>()?;
            format!("({})", values.join(", "))
        }
    })
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    bytes.split_off(..length)
}

fn length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..63).step_by(7) {
        let byte = take(bytes, 1)?[0];
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(length);
        }
    }
    None
}

/// Up to 16 bytes, the least significant first.
fn integer(bytes: &[u8], signed: bool) -> i128 {
    let mut value: i128 = 0;
    for &byte in bytes.iter().rev() {
        value = value << 8 | i128::from(byte);
    }
    let unused = 128 - 8 * bytes.len() as u32;
    if signed { value << unused >> unused } else { value }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn day(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

fn moment(ticks: i64, digits: u32) -> String {
    let scale = 10i64.pow(digits);
    let (seconds, fraction) = (ticks.div_euclid(scale), ticks.rem_euclid(scale));
    let second = seconds.rem_euclid(86_400);
    let clock = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
    let date = day(seconds.div_euclid(86_400));
    match digits {
        0 => format!("{date} {clock}"),
        _ => format!("{date} {clock}.{fraction:0width$}", width = digits as usize),
    }
}

fn decimal(units: i128, scale: usize) -> String {
    let sign = if units < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", units.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}
