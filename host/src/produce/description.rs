//! Generator descriptions: the YAML file that says what a record looks like and how it goes wrong.
//!
//! `docs/GENERATOR.md` is the reference for authors. The types here are what the file holds;
//! [`Description::read`] reads it and reports every mistake at once. Pure data: making records is
//! the business of [`super::generator`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use yaml_rust2::Yaml;

use super::message::FieldPath;
use super::text::TextPattern;

/// A generator description, read but not yet checked against itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// What relative times are counted from.
    pub base_time: BaseTime,
    /// Field whose value becomes the message's key; no key without it.
    #[serde(default)]
    pub key: Option<FieldPath>,
    /// Tables of values that belong together; one row of each is drawn a record.
    #[serde(default)]
    pub tables: BTreeMap<String, Table>,
    /// The good record, field by field, in the order of the file.
    pub record: ObjectMaker,
    /// Ways of spoiling a good record.
    #[serde(default, deserialize_with = "named_faults")]
    pub faults: Vec<Fault>,
}

/// What relative times are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseTime {
    /// The clock at the moment that a record is made: for a live imitation.
    Now,
    /// A fixed instant: the same seed gives the same bytes for ever.
    Fixed(Timestamp),
}

/// Rows of values that belong together, such as a training's title, category and price.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// How strongly the first rows are favoured; 0 is evenly.
    #[serde(default)]
    pub skew: u32,
    /// The rows: column name to value.
    pub rows: Vec<BTreeMap<String, Value>>,
}

/// An object's fields in order.
#[derive(Clone, Debug, Default)]
pub struct ObjectMaker {
    /// Name and maker.
    pub fields: Vec<(String, Maker)>,
}

/// How one value is made.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// Always this value.
    Literal(Value),
    /// A whole number in a range.
    Integer(IntegerMaker),
    /// One of a list.
    Choice(Vec<Alternative>),
    /// A random UUID, version 4, lower case.
    Uuid,
    /// Text with placeholders.
    Text(TextPattern),
    /// An RFC 3339 timestamp.
    Timestamp(TimestampMaker),
    /// The first field less the second.
    Difference([FieldPath; 2]),
    /// A percentage of another field, rounded down.
    Percentage(Box<PercentageMaker>),
    /// The same value as an earlier field.
    Same(FieldPath),
    /// `table.column` of the row drawn for this record.
    Cell(CellPath),
    /// Made in a share of the records, absent from the others.
    Optional(Box<OptionalMaker>),
    /// A nested object.
    Object(ObjectMaker),
}

/// See [`Maker::Integer`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntegerMaker {
    /// Least value.
    pub from: i64,
    /// Greatest value, included.
    pub to: i64,
    /// Distance between neighbouring values, counted from `from`.
    #[serde(default = "one")]
    pub step: u64,
    /// How strongly small values are favoured: the smallest of `skew + 1` draws.
    #[serde(default)]
    pub skew: u32,
}

fn one() -> u64 {
    1
}

/// One of a choice: `value`, or `{ value: .., weight: .. }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Alternative {
    /// A value with its weight.
    Weighted(WeightedValue),
    /// A value of weight 1.
    Plain(Value),
}

/// See [`Alternative::Weighted`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedValue {
    /// The value.
    pub value: Value,
    /// Its weight among the others.
    pub weight: u64,
}

impl Alternative {
    /// Weight among the others.
    pub fn weight(&self) -> u64 {
        match self {
            Self::Weighted(weighted) => weighted.weight,
            Self::Plain(_) => 1,
        }
    }

    /// The value.
    pub fn value(&self) -> &Value {
        match self {
            Self::Weighted(weighted) => &weighted.value,
            Self::Plain(value) => value,
        }
    }
}

/// See [`Maker::Timestamp`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestampMaker {
    /// Earliest, relative to the base time or to `after`.
    pub from: Span,
    /// Latest, relative to the same.
    pub to: Span,
    /// Timestamp field that `from` and `to` are relative to, instead of the base time.
    #[serde(default)]
    pub after: Option<FieldPath>,
    /// Rounded down to a multiple of this; a second by default.
    #[serde(default = "Span::second")]
    pub every: Span,
    /// UTC offsets to write it in, one drawn a record; `Z` by default.
    #[serde(default = "UtcOffset::only_utc")]
    pub offsets: Vec<UtcOffset>,
}

/// See [`Maker::Percentage`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PercentageMaker {
    /// Field that the percentage is of.
    pub of: FieldPath,
    /// Maker of the whole number of percent.
    pub percent: Maker,
}

/// See [`Maker::Optional`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionalMaker {
    /// Share of the records that have the field, from 0 to 1.
    pub share: f64,
    /// How it is made.
    pub make: Maker,
}

/// `table.column`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CellPath {
    /// Name of the table.
    pub table: String,
    /// Name of the column.
    pub column: String,
}

/// A way of spoiling a good record.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Unique name, in snake case.
    pub name: String,
    /// Weight among the faults.
    #[serde(default = "one")]
    pub weight: u64,
    /// What is done to the record, in order: changes of fields first, then of bytes.
    pub alter: Vec<Alteration>,
    /// What the chain must say of the result.
    pub expect: Expectation,
}

/// One change to a good record.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alteration {
    /// Gives a field another value; a new field goes last.
    Set(SetField),
    /// Takes a field away.
    Remove(FieldPath),
    /// Writes this text where the field's JSON value was, as it stands.
    Raw(RawField),
    /// Writes the field a second time, with the same value, right behind the first.
    Repeat(FieldPath),
    /// Puts arrays within arrays where the field's value was.
    Nest(NestField),
    /// Fills a text field up to a size in bytes.
    Fill(FillField),
    /// Puts the byte 0xFF, which UTF-8 never has, in front of a text field's value.
    InvalidUtf8(FieldPath),
    /// Puts the record into an array of one.
    Array,
    /// Cuts the text off at a random place before its end.
    Truncate,
    /// Replaces the whole payload by this text.
    Payload(String),
    /// No bytes at all, which is not the same as a tombstone.
    Empty,
    /// A null payload.
    Tombstone,
    /// A null key.
    NullKey,
    /// Adds a header.
    Header(AddedHeader),
}

/// See [`Alteration::Set`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetField {
    /// Which field.
    pub field: FieldPath,
    /// How its value is made; other fields that it refers to are those of the record as it is.
    pub to: Maker,
}

/// See [`Alteration::Raw`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawField {
    /// Which field.
    pub field: FieldPath,
    /// The text, which need not be JSON.
    pub text: String,
}

/// See [`Alteration::Nest`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NestField {
    /// Which field.
    pub field: FieldPath,
    /// How many arrays.
    pub depth: u32,
}

/// See [`Alteration::Fill`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FillField {
    /// Which field.
    pub field: FieldPath,
    /// Size of the text in bytes.
    pub bytes: u32,
}

/// See [`Alteration::Header`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedHeader {
    /// Name.
    pub name: String,
    /// Value; null without it.
    #[serde(default)]
    pub value: Option<String>,
}

/// What the chain must say of a record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expectation {
    /// A row.
    Mapped,
    /// No row, on purpose.
    Filtered,
    /// A dead letter.
    Rejected(ExpectedRejection),
}

/// See [`Expectation::Rejected`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedRejection {
    /// `kind` of the dead letter; `rejected` by default.
    #[serde(default = "rejected")]
    pub kind: String,
    /// Its code.
    pub code: String,
    /// Its field, where it names one.
    #[serde(default)]
    pub field: Option<String>,
}

fn rejected() -> String {
    crate::domain::verdict::RejectionKind::Rejected.as_str().to_owned()
}

/// A signed length of time, written as `-90d`, `15m`, `1h 30m`; whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Span {
    /// Milliseconds.
    pub milliseconds: i64,
}

impl Span {
    fn second() -> Self {
        Self { milliseconds: 1_000 }
    }

    /// As jiff counts.
    pub fn duration(self) -> SignedDuration {
        SignedDuration::from_millis(self.milliseconds)
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (sign, length) = text.strip_prefix('-').map_or((1, text.as_str()), |length| (-1, length));
        let length = humantime::parse_duration(length.trim())
            .map_err(|error| format!("`{text}` is not a length of time such as -90d or 15m: {error}"))?;
        let milliseconds = i64::try_from(length.as_millis())
            .map_err(|_| format!("`{text}` is too long: write less than 290 million years"))?;
        Ok(Self { milliseconds: sign * milliseconds })
    }
}

/// A UTC offset, written as `Z` or `+03:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UtcOffset {
    /// `None` is written as `Z`.
    pub offset: Option<Offset>,
}

impl UtcOffset {
    fn only_utc() -> Vec<Self> {
        vec![Self { offset: None }]
    }
}

impl TryFrom<String> for UtcOffset {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "Z" {
            return Ok(Self { offset: None });
        }
        let parse = || {
            let sign = match text.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = text.get(1..)?.split_once(':')?;
            let seconds = i32::from_str(hours).ok()? * 3_600 + i32::from_str(minutes).ok()? * 60;
            Offset::from_seconds(sign * seconds).ok()
        };
        let offset = parse().ok_or_else(|| format!("`{text}` is not a UTC offset such as Z or +03:00"))?;
        Ok(Self { offset: Some(offset) })
    }
}

impl TryFrom<String> for CellPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (table, column) = text
            .split_once('.')
            .ok_or_else(|| format!("`{text}` is not a cell: write table.column, such as trainings.title"))?;
        Ok(Self { table: table.to_owned(), column: column.to_owned() })
    }
}

impl FromStr for BaseTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "now" {
            return Ok(Self::Now);
        }
        let instant = text
            .parse()
            .map_err(|error| format!("`{text}` is neither `now` nor an RFC 3339 timestamp: {error}"))?;
        Ok(Self::Fixed(instant))
    }
}

impl<'de> Deserialize<'de> for BaseTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ObjectMaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = ObjectMaker;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("fields with their makers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ObjectMaker, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    // The error must name the field, which serde does not do by itself.
                    let maker = map.next_value().map_err(|error| de::Error::custom(within(&name, &error)))?;
                    fields.push((name, maker));
                }
                Ok(ObjectMaker { fields })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// `error` with the name of the field that it happened in: `` `training.title`: ... ``.
fn within(name: &str, error: &dyn fmt::Display) -> String {
    let error = error.to_string();
    match error.strip_prefix('`').and_then(|rest| rest.split_once("`: ")) {
        Some((inner, rest)) => format!("`{name}.{inner}`: {rest}"),
        None => format!("`{name}`: {error}"),
    }
}

/// Faults, each error under the fault's name.
fn named_faults<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Fault>, D::Error> {
    let faults = Vec::<Value>::deserialize(deserializer)?;
    let read = |(position, fault): (usize, Value)| {
        let name = fault.get("name").and_then(Value::as_str).map_or(position.to_string(), str::to_owned);
        Fault::deserialize(fault).map_err(|error| de::Error::custom(format!("fault {name}: {error}")))
    };
    faults.into_iter().enumerate().map(read).collect()
}

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file cannot be read.
    #[error("cannot read the generator description {path}: {source}; check the path")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML, or not of the documented shape.
    #[error("generator description {path}: {detail}; docs/GENERATOR.md has every key")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Where and what.
        detail: String,
    },
    /// It contradicts itself.
    #[error("generator description is wrong:{}", problems.iter().map(|p| format!("\n  - {p}")).collect::<String>())]
    Wrong {
        /// Everything that is wrong with it.
        problems: Vec<String>,
    },
}

impl Description {
    /// Reads a description file.
    ///
    /// # Errors
    /// [`DescriptionError::Read`] and [`DescriptionError::Shape`].
    pub fn read(path: &Path) -> Result<Self, DescriptionError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| DescriptionError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|detail| DescriptionError::Shape { path: path.to_owned(), detail })
    }

    /// Parses YAML; the error says where and what.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // Straight from the parser, since the order of the fields counts, which `config` loses.
        let documents = yaml_rust2::YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
        let [document] = documents.as_slice() else {
            return Err(format!("holds {} YAML documents instead of one", documents.len()));
        };
        let value = from_yaml(document).map_err(|place| format!("{place} is not a value that JSON has"))?;
        Self::deserialize(value).map_err(|error| error.to_string())
    }
}

/// YAML as JSON, in the same order; the error shows what JSON cannot say.
fn from_yaml(yaml: &Yaml) -> Result<Value, String> {
    let strange = || Err(format!("{yaml:?}"));
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(boolean) => (*boolean).into(),
        Yaml::Integer(integer) => (*integer).into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Real(text) => match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
            Some(number) => number.into(),
            None => return strange(),
        },
        Yaml::Array(items) => items.iter().map(from_yaml).collect::<Result<_, _>>()?,
        Yaml::Hash(entries) => {
            let fields = entries.iter().map(|(key, value)| match key {
                Yaml::String(key) => Ok((key.clone(), from_yaml(value)?)),
                Yaml::Integer(key) => Ok((key.to_string(), from_yaml(value)?)),
                Yaml::Boolean(key) => Ok((key.to_string(), from_yaml(value)?)),
                _ => Err(format!("the key {key:?}")),
            });
            Value::Object(fields.collect::<Result<_, _>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => return strange(),
    })
}
