//! Column types: what ClickHouse calls the type of a column, as `DESCRIBE TABLE` shows it.
//!
//! A [`ColumnType`] is parsed from such a name and printed back in ClickHouse's own spelling.
//! Invariants that the row walker leans on: nesting is at most [`MAXIMUM_NESTING`] deep, and a value
//! of any type takes at least one byte in RowBinary (types of no width, `Tuple()`,
//! `FixedString(0)` and `Nothing`, are refused), so that time is bounded by bytes.

mod compatible;
mod parse;

use std::fmt;
use std::str::FromStr;

pub use compatible::Incompatible;

/// Deepest nesting of `Array`, `Map`, `Tuple`, `Nullable` and `LowCardinality` that is accepted.
pub const MAXIMUM_NESTING: usize = 32;

/// Why a text is not the name of a column type that rows can be filled with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column type `{type_name}`: {problem}")]
pub struct UnknownColumnType {
    /// The text, shortened where it is very long.
    pub type_name: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// A type whose every bit pattern of `width` bytes is a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainType {
    name: &'static str,
    width: usize,
}

impl PlainType {
    const fn new(name: &'static str, width: usize) -> Self {
        Self { name, width }
    }

    /// Name in ClickHouse.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bytes of one value.
    pub fn width(self) -> usize {
        self.width
    }
}

/// All plain types: <https://clickhouse.com/docs/interfaces/formats/RowBinary> gives the widths.
const PLAIN_TYPES: [PlainType; 19] = [
    PlainType::new("Int8", 1),
    PlainType::new("Int16", 2),
    PlainType::new("Int32", 4),
    PlainType::new("Int64", 8),
    PlainType::new("Int128", 16),
    PlainType::new("Int256", 32),
    PlainType::new("UInt8", 1),
    PlainType::new("UInt16", 2),
    PlainType::new("UInt32", 4),
    PlainType::new("UInt64", 8),
    PlainType::new("UInt128", 16),
    PlainType::new("UInt256", 32),
    PlainType::new("Float32", 4),
    PlainType::new("Float64", 8),
    PlainType::new("BFloat16", 2),
    PlainType::new("Date", 2),
    PlainType::new("UUID", 16),
    PlainType::new("IPv4", 4),
    PlainType::new("IPv6", 16),
];

/// Underlying integer of an enumeration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnumWidth {
    /// `Enum8`: one signed byte.
    One,
    /// `Enum16`: two signed bytes.
    Two,
}

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Integers, floats, `Date`, `UUID`, `IPv4`, `IPv6`.
    Plain(PlainType),
    /// `Bool`.
    Bool,
    /// `String`: any bytes, not only UTF-8.
    String,
    /// `FixedString(N)`.
    FixedString(usize),
    /// `Date32`: days since 1970-01-01 as `i32`, 1900-01-01 to 2299-12-31.
    Date32,
    /// `DateTime`, with its time zone: seconds since 1970-01-01 UTC as `u32`.
    DateTime(Option<String>),
    /// `DateTime64(P)`, with its time zone: ticks of 10^-P seconds as `i64`.
    DateTime64(u8, Option<String>),
    /// `Time`: seconds as `i32`, within 999:59:59 of zero.
    Time,
    /// `Time64(P)`: ticks of 10^-P seconds as `i64`.
    Time64(u8),
    /// `Decimal(P, S)`: a signed integer of 4, 8, 16 or 32 bytes, of at most P digits.
    Decimal {
        /// Digits in all, 1 to 76.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// `Enum8` or `Enum16`.
    Enum {
        /// Bytes of one value.
        width: EnumWidth,
        /// Number and name, by increasing number.
        values: Vec<(i16, String)>,
    },
    /// `Nullable(T)`.
    Nullable(Box<ColumnType>),
    /// `LowCardinality(T)`: in RowBinary the same as `T`.
    LowCardinality(Box<ColumnType>),
    /// `Array(T)`.
    Array(Box<ColumnType>),
    /// `Map(K, V)`: in RowBinary the same as `Array(Tuple(K, V))`.
    Map(Box<ColumnType>, Box<ColumnType>),
    /// `Tuple(...)`, its elements named or not; never empty.
    Tuple(Vec<(Option<String>, ColumnType)>),
    /// `SimpleAggregateFunction(f, T)`: in RowBinary the same as `T`.
    SimpleAggregateFunction(String, Box<ColumnType>),
}

impl FromStr for ColumnType {
    type Err = UnknownColumnType;

    fn from_str(type_name: &str) -> Result<Self, UnknownColumnType> {
        Self::parse(type_name)
    }
}

impl ColumnType {
    /// Reads a type name as `DESCRIBE TABLE` and `system.columns` show it, or one of the common
    /// SQL aliases that `CREATE TABLE` takes (`INT`, `TEXT`, `DOUBLE` and the like).
    ///
    /// # Errors
    /// When it is not a type name, or a type that rows cannot be filled with
    /// (`AggregateFunction`, `JSON`, `Dynamic`, `Variant`, `Nothing` and others).
    pub fn parse(type_name: &str) -> Result<Self, UnknownColumnType> {
        parse::parse(type_name)
    }

    /// The type that decides about the bytes: without `LowCardinality` and `SimpleAggregateFunction`.
    pub fn stored(&self) -> &Self {
        let mut stored = self;
        while let Self::LowCardinality(inner) | Self::SimpleAggregateFunction(_, inner) = stored {
            stored = inner;
        }
        stored
    }

    fn plain(name: &str) -> Option<Self> {
        PLAIN_TYPES.iter().find(|plain| plain.name == name).copied().map(Self::Plain)
    }
}

/// Bytes of a `Decimal` of this precision.
pub(super) fn decimal_width(precision: u8) -> usize {
    match precision {
        ..=9 => 4,
        10..=18 => 8,
        19..=38 => 16,
        _ => 32,
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(plain) => formatter.write_str(plain.name),
            Self::Bool => formatter.write_str("Bool"),
            Self::String => formatter.write_str("String"),
            Self::FixedString(width) => write!(formatter, "FixedString({width})"),
            Self::Date32 => formatter.write_str("Date32"),
            Self::DateTime(None) => formatter.write_str("DateTime"),
            Self::DateTime(Some(zone)) => write!(formatter, "DateTime({})", Quoted(zone, '\'')),
            Self::DateTime64(precision, None) => write!(formatter, "DateTime64({precision})"),
            Self::DateTime64(precision, Some(zone)) => {
                write!(formatter, "DateTime64({precision}, {})", Quoted(zone, '\''))
            }
            Self::Time => formatter.write_str("Time"),
            Self::Time64(precision) => write!(formatter, "Time64({precision})"),
            Self::Decimal { precision, scale } => write!(formatter, "Decimal({precision}, {scale})"),
            Self::Enum { width, values } => {
                formatter.write_str(match width {
                    EnumWidth::One => "Enum8(",
                    EnumWidth::Two => "Enum16(",
                })?;
                for (index, (number, name)) in values.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(formatter, "{comma}{} = {number}", Quoted(name, '\''))?;
                }
                formatter.write_str(")")
            }
            Self::Nullable(inner) => write!(formatter, "Nullable({inner})"),
            Self::LowCardinality(inner) => write!(formatter, "LowCardinality({inner})"),
            Self::Array(inner) => write!(formatter, "Array({inner})"),
            Self::Map(key, value) => write!(formatter, "Map({key}, {value})"),
            Self::Tuple(elements) => {
                formatter.write_str("Tuple(")?;
                for (index, (name, element)) in elements.iter().enumerate() {
                    formatter.write_str(if index == 0 { "" } else { ", " })?;
                    match name {
                        Some(name) if is_bare_identifier(name) => write!(formatter, "{name} {element}")?,
                        Some(name) => write!(formatter, "{} {element}", Quoted(name, '`'))?,
                        None => write!(formatter, "{element}")?,
                    }
                }
                formatter.write_str(")")
            }
            Self::SimpleAggregateFunction(function, inner) => {
                write!(formatter, "SimpleAggregateFunction({function}, {inner})")
            }
        }
    }
}

/// Whether ClickHouse takes `name` as an identifier without quotes.
fn is_bare_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Text in quotes, escaped as ClickHouse's `writeAnyQuotedString` does.
struct Quoted<'a>(&'a str, char);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        let Self(text, quote) = *self;
        formatter.write_char(quote)?;
        for character in text.chars() {
            match character {
                '\u{8}' => formatter.write_str("\\b")?,
                '\u{c}' => formatter.write_str("\\f")?,
                '\n' => formatter.write_str("\\n")?,
                '\r' => formatter.write_str("\\r")?,
                '\t' => formatter.write_str("\\t")?,
                '\0' => formatter.write_str("\\0")?,
                '\\' => formatter.write_str("\\\\")?,
                _ if character == quote => write!(formatter, "\\{quote}")?,
                _ => formatter.write_char(character)?,
            }
        }
        formatter.write_char(quote)
    }
}
