//! Values: how one key's value is read, from the file's types or from a variable's text.

use std::net::SocketAddr;
use std::time::Duration;

use config::ValueKind;

use crate::domain::secret::Secret;
use crate::domain::spelling::one_of;

/// A value that is not a section.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'v> {
    /// Text of the file, or any variable.
    Text(&'v str),
    /// Whole number; only from the file.
    Integer(i128),
    /// Number with a fraction; only from the file.
    Float(f64),
    /// `true` or `false`; only from the file.
    Boolean(bool),
    /// A list; only from the file.
    List(&'v [config::Value]),
    /// A section.
    Section,
}

impl<'v> Scalar<'v> {
    /// Looks at a value of the `config` crate.
    pub(super) fn of(kind: &'v ValueKind) -> Self {
        match kind {
            ValueKind::String(text) => Self::Text(text),
            ValueKind::I64(number) => Self::Integer((*number).into()),
            ValueKind::U64(number) => Self::Integer((*number).into()),
            ValueKind::I128(number) => Self::Integer(*number),
            ValueKind::U128(number) => Self::Integer(i128::try_from(*number).unwrap_or(i128::MAX)),
            ValueKind::Float(number) => Self::Float(*number),
            ValueKind::Boolean(value) => Self::Boolean(*value),
            ValueKind::Array(values) => Self::List(values),
            ValueKind::Nil => Self::Text(""),
            ValueKind::Table(_) => Self::Section,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text("") => "empty text".to_owned(),
            Self::Text(text) => format!("`{text}`"),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number}"),
            Self::Boolean(value) => format!("`{value}`"),
            Self::List(_) => "a list".to_owned(),
            Self::Section => "a section".to_owned(),
        }
    }
}

/// Why a value cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) problem: String,
    pub(super) cure: String,
}

impl Refusal {
    fn kind<T>(kind: &str, scalar: &Scalar<'_>, cure: &str) -> Result<T, Self> {
        Err(Self { problem: format!("{} is not {kind}", scalar.shown()), cure: cure.to_owned() })
    }
}

/// A type that a key may have.
pub(super) trait Leaf: Sized {
    /// What the documentation calls it.
    const KIND: &'static str;

    /// Reads one value.
    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal>;
}

impl Leaf for String {
    const KIND: &'static str = "text";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        match scalar {
            Scalar::Text("") => Refusal::kind("a value", scalar, "write something, or remove the key"),
            Scalar::Text(text) => Ok((*text).to_owned()),
            Scalar::Integer(_) | Scalar::Float(_) | Scalar::Boolean(_) => {
                Refusal::kind("text", scalar, "write it in quotes")
            }
            _ => Refusal::kind("text", scalar, "write one text"),
        }
    }
}

impl Leaf for Secret {
    const KIND: &'static str = "secret text";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        match scalar {
            Scalar::Text(text) => Ok(Self::new(*text)),
            // Not shown, and not turned back into text: 00123 would come out as 123.
            _ => Err(Refusal { problem: "not text".to_owned(), cure: "write it in quotes".to_owned() }),
        }
    }
}

impl Leaf for bool {
    const KIND: &'static str = "true or false";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        match scalar {
            Scalar::Boolean(value) => Ok(*value),
            Scalar::Text("true") => Ok(true),
            Scalar::Text("false") => Ok(false),
            _ => Refusal::kind("true or false", scalar, "write true or false"),
        }
    }
}

impl Leaf for u64 {
    const KIND: &'static str = "whole number";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        let read = match scalar {
            Scalar::Integer(number) => u64::try_from(*number).ok(),
            Scalar::Text(text) => text.parse().ok(),
            _ => None,
        };
        read.map_or_else(|| Refusal::kind("a whole number", scalar, "write digits, such as 4"), Ok)
    }
}

impl Leaf for Duration {
    const KIND: &'static str = "duration";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        const CURE: &str = "write a number and a unit, such as 500ms, 30s or 2m";
        match scalar {
            Scalar::Text(text) => {
                humantime::parse_duration(text).or_else(|_| Refusal::kind("a duration", scalar, CURE))
            }
            Scalar::Integer(_) => Refusal::kind("a duration: its unit is missing", scalar, CURE),
            _ => Refusal::kind("a duration", scalar, CURE),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ByteSize(pub(super) u64);

impl Leaf for ByteSize {
    const KIND: &'static str = "byte size";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        let read = match scalar {
            Scalar::Integer(number) => u64::try_from(*number).ok(),
            Scalar::Text(text) => parse_bytes(text),
            _ => None,
        };
        read.map(ByteSize).map_or_else(
            || {
                Refusal::kind(
                    "a byte size",
                    scalar,
                    "write a whole number and a unit: B, KiB, MiB, GiB, kB, MB or GB",
                )
            },
            Ok,
        )
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A part of something, from 0 to 1; written as a percentage.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Share(pub(super) f64);

impl Leaf for Share {
    const KIND: &'static str = "percentage";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        let percent = match scalar {
            Scalar::Text(text) => text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok()),
            _ => None,
        };
        percent
            .filter(|percent| (0.0..=100.0).contains(percent))
            .map(|percent| Self(percent / 100.0))
            .map_or_else(
                || Refusal::kind("a percentage", scalar, "write a number from 0 to 100 and %, such as 20%"),
                Ok,
            )
    }
}

/// Bytes as a person writes them, in the largest unit that divides them.
pub(super) fn show_bytes(bytes: u64) -> String {
    [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift)
        .map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

impl Leaf for SocketAddr {
    const KIND: &'static str = "address and port";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        let read = if let Scalar::Text(text) = scalar { text.parse().ok() } else { None };
        let cure =
            "write an IP address and a port, such as 127.0.0.1:9464, or 0.0.0.0:9464 for every interface";
        read.map_or_else(|| Refusal::kind("an IP address and a port", scalar, cure), Ok)
    }
}

/// A list of names: a list in the file, or one text with commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names(pub(super) Vec<String>);

impl Leaf for Names {
    const KIND: &'static str = "list of names";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        const CURE: &str = "write [one, two] or \"one,two\"";
        let names: Vec<String> = match scalar {
            Scalar::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            Scalar::List(values) => {
                let read = |value: &config::Value| String::read(&Scalar::of(&value.kind));
                values.iter().map(read).collect::<Result<_, _>>()?
            }
            _ => return Refusal::kind("a list of names", scalar, CURE),
        };
        if names.is_empty() || names.iter().any(String::is_empty) {
            let problem = "the list has no name, or an empty one".to_owned();
            return Err(Refusal { problem, cure: CURE.to_owned() });
        }
        Ok(Self(names))
    }
}

/// Reads one of a few words.
pub(super) fn word<T: Copy>(scalar: &Scalar<'_>, words: &[(&'static str, T)]) -> Result<T, Refusal> {
    let given = match scalar {
        Scalar::Text(text) => *text,
        // YAML has words of its own, so `level: off` may not arrive as text.
        Scalar::Boolean(true) => "true",
        Scalar::Boolean(false) => "off",
        _ => "",
    };
    words.iter().find(|(word, _)| *word == given).map(|(_, value)| *value).ok_or_else(|| Refusal {
        problem: format!("{} is not a value of this key", scalar.shown()),
        cure: one_of(given, words.iter().map(|(word, _)| *word)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_have_units() {
        for (text, bytes) in [("0", 0), ("17", 17), ("32MiB", 32 << 20), ("1 GiB", 1 << 30), ("5kB", 5_000)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-1", "1 mib", "1MiBs", "99999999999GiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
        for bytes in [0, 17, 1 << 10, 32 << 20, (32 << 20) + 1, 3 << 30] {
            assert_eq!(parse_bytes(&show_bytes(bytes)), Some(bytes));
        }
    }

    #[test]
    fn a_percentage_says_that_it_is_one() {
        let read = |text| Share::read(&Scalar::Text(text)).ok().map(|Share(share)| share);
        assert_eq!(["20%", "2.5 %", "0%", "100%"].map(read), [Some(0.2), Some(0.025), Some(0.0), Some(1.0)]);
        assert_eq!(["20", "", "%", "-1%", "101%", "NaN%", "inf%", "x%"].map(read), [None; 8]);
        assert!(Share::read(&Scalar::Float(0.2)).is_err());
    }

    #[test]
    fn text_of_a_variable_is_coerced_and_a_number_of_the_file_is_not_text() {
        assert_eq!(u64::read(&Scalar::Text("12")), Ok(12));
        assert_eq!(bool::read(&Scalar::Text("true")), Ok(true));
        assert_eq!(Secret::read(&Scalar::Text("00123")), Ok(Secret::new("00123")));
        assert!(Secret::read(&Scalar::Integer(123)).is_err());
        assert!(String::read(&Scalar::Integer(123)).is_err());
        assert!(Duration::read(&Scalar::Integer(3)).is_err());
        assert_eq!(Names::read(&Scalar::Text("a, b")), Ok(Names(vec!["a".into(), "b".into()])));
        assert!(Names::read(&Scalar::Text("a,")).is_err());
    }
}
