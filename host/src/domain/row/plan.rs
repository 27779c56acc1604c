//! Plan: the columns of a row compiled into steps, so that a walk does the least it can.
//!
//! Runs of columns in which every bit pattern is a value become one step that only counts bytes;
//! tuples are flattened into their surroundings. What is left are lengths, flags and bounded numbers.

use std::fmt;

use super::ColumnDefinition;
use crate::domain::column_type::{ColumnType, EnumWidth, decimal_width};

/// Days of 1900-01-01 and 2299-12-31, the ends of `Date32`.
const DATE32_DAYS: (i32, i32) = (-25_567, 120_529);
/// Seconds of 1900-01-01 00:00:00 and of 2300-01-01 00:00:00, the ends of `DateTime64`.
const DATE_TIME64_SECONDS: (i128, i128) = (-2_208_988_800, 10_413_792_000);
/// 1000 hours: `Time` and `Time64` stay below it on both sides.
const TIME_SECONDS: i128 = 3_600_000;

/// A row's steps, in the order of the bytes.
#[derive(Clone, Debug)]
pub(super) struct RowPlan {
    steps: Vec<RowStep>,
    /// By column: its bytes where it is nothing but a run, else 0. Finds which one was cut off.
    widths: Vec<usize>,
}

#[derive(Clone, Debug)]
struct RowStep {
    /// First column that this step belongs to.
    column: usize,
    step: Step,
}

/// One thing to do about the bytes at hand.
#[derive(Clone, Debug)]
enum Step {
    /// So many bytes, whatever they are.
    Skip(usize),
    /// A length, then so many bytes.
    Text,
    /// 0 or 1.
    Bool,
    /// One of a set of bytes: bit `b` of the 256.
    Byte(Box<[u64; 4]>),
    /// One of a sorted list of numbers.
    Number16(Box<[i16]>),
    /// A number within bounds, both inclusive.
    Number32(i32, i32),
    /// A number within bounds, both inclusive.
    Number64(i64, i64),
    /// A number whose absolute value is at most this.
    Number128(u128),
    /// A number whose absolute value is below this, in four words, lowest first.
    Number256(Box<[u64; 4]>),
    /// 1, or 0 and then the steps.
    Nullable(Box<[Step]>),
    /// A count, then so many values of a plain type of this width.
    PlainArray(usize),
    /// A count, then so many times the steps, which take at least `least` bytes each time.
    Array { least: usize, steps: Box<[Step]> },
}

/// A fault where it is found; the caller knows the names.
pub(super) struct PlanFault {
    pub(super) column: usize,
    pub(super) position: usize,
    pub(super) problem: Problem,
}

/// What is wrong at a position.
#[derive(Clone, Copy, Debug)]
pub(super) enum Problem {
    Short { wanted: u64, left: usize },
    LongLength,
    TooMany { count: u64, least: usize, left: usize },
    NotBool(u8),
    NotNullFlag(u8),
    NotInEnum(i16),
    OutOfRange,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { wanted, left } => {
                write!(formatter, "{wanted} bytes are due, {left} are left of the row")
            }
            Self::LongLength => formatter.write_str("a length that does not fit into 64 bits"),
            Self::TooMany { count, least, left } => write!(
                formatter,
                "{count} elements of at least {least} bytes are due, {left} bytes are left of the row"
            ),
            Self::NotBool(byte) => write!(formatter, "{byte} is not a Bool, which is 0 or 1"),
            Self::NotNullFlag(byte) => {
                write!(formatter, "{byte} is not a null flag, which is 0 for a value and 1 for a null")
            }
            Self::NotInEnum(number) => write!(formatter, "the Enum has no value {number}"),
            Self::OutOfRange => formatter.write_str("a number beyond the range of the column's type"),
        }
    }
}

/// Where a step ends. The fault is boxed so that the good case fits into registers: with that, and the
/// common steps without a call, a row of 15 columns and 109 bytes takes 17 ns, against 24 before.
type Walked<T = usize> = Result<T, Box<(usize, Problem)>>;

#[cold]
fn at<T>(position: usize, problem: Problem) -> Walked<T> {
    Err(Box::new((position, problem)))
}

impl RowPlan {
    pub(super) fn new(columns: &[ColumnDefinition]) -> Self {
        let mut steps: Vec<RowStep> = Vec::new();
        let mut widths = Vec::with_capacity(columns.len());
        for (column, definition) in columns.iter().enumerate() {
            let mut own = Vec::new();
            compile(&definition.column_type, &mut own);
            widths.push(match own.as_slice() {
                [Step::Skip(width)] => *width,
                _ => 0,
            });
            // Only whole columns join a run, so that `locate` can count through it.
            let joins = column > 0 && widths[column - 1] > 0 && widths[column] > 0;
            match steps.last_mut() {
                Some(RowStep { step: Step::Skip(run), .. }) if joins => *run += widths[column],
                _ => steps.extend(own.into_iter().map(|step| RowStep { column, step })),
            }
        }
        Self { steps, widths }
    }

    /// Bytes that one row takes at the start of `bytes`.
    #[inline]
    pub(super) fn walk(&self, bytes: &[u8]) -> Result<usize, PlanFault> {
        let mut position = 0;
        for RowStep { column, step } in &self.steps {
            // What most columns are, without a call.
            let walked = match step {
                Step::Skip(width) => skip(bytes, position, *width as u64),
                Step::Text => text(bytes, position),
                other => other.walk(bytes, position),
            };
            position = match walked {
                Ok(end) => end,
                Err(fault) => return Err(self.locate(*column, fault.0, fault.1)),
            };
        }
        Ok(position)
    }

    /// A run of columns is cut off in the one where the bytes end.
    #[cold]
    fn locate(&self, mut column: usize, mut position: usize, problem: Problem) -> PlanFault {
        if let Problem::Short { mut left, .. } = problem {
            while let Some(width) = self.widths.get(column).copied().filter(|width| *width > 0) {
                if width > left {
                    let problem = Problem::Short { wanted: width as u64, left };
                    return PlanFault { column, position, problem };
                }
                (left, position, column) = (left - width, position + width, column + 1);
            }
        }
        PlanFault { column, position, problem }
    }
}

fn compile(column_type: &ColumnType, steps: &mut Vec<Step>) {
    let step = match column_type.stored() {
        ColumnType::Plain(plain) => Step::Skip(plain.width()),
        ColumnType::FixedString(width) => Step::Skip(*width),
        ColumnType::DateTime(_) => Step::Skip(4),
        ColumnType::String => Step::Text,
        ColumnType::Bool => Step::Bool,
        ColumnType::Date32 => Step::Number32(DATE32_DAYS.0, DATE32_DAYS.1),
        ColumnType::DateTime64(precision, _) => {
            let (low, high) = DATE_TIME64_SECONDS;
            seconds(low * ticks(*precision), high * ticks(*precision) - 1)
        }
        ColumnType::Time => Step::Number32(1 - TIME_SECONDS as i32, TIME_SECONDS as i32 - 1),
        ColumnType::Time64(precision) => {
            let end = TIME_SECONDS * ticks(*precision);
            seconds(1 - end, end - 1)
        }
        ColumnType::Decimal { precision, .. } => decimal(*precision),
        ColumnType::Enum { width: EnumWidth::One, values } => {
            let mut set = [0u64; 4];
            for (number, _) in values {
                let byte = *number as u8;
                set[usize::from(byte >> 6)] |= 1 << (byte & 63);
            }
            Step::Byte(Box::new(set))
        }
        ColumnType::Enum { width: EnumWidth::Two, values } => {
            Step::Number16(values.iter().map(|(number, _)| *number).collect())
        }
        ColumnType::Nullable(inner) => Step::Nullable(nested(&[inner])),
        ColumnType::Array(element) => array(nested(&[element])),
        ColumnType::Map(key, value) => array(nested(&[key, value])),
        ColumnType::Tuple(elements) => {
            for (_, element) in elements {
                compile(element, steps);
            }
            return;
        }
        ColumnType::LowCardinality(_) | ColumnType::SimpleAggregateFunction(..) => {
            unreachable!("stored() looks through these")
        }
    };
    match (steps.last_mut(), step) {
        (Some(Step::Skip(run)), Step::Skip(width)) => *run += width,
        (_, step) => steps.push(step),
    }
}

fn nested(types: &[&ColumnType]) -> Box<[Step]> {
    let mut steps = Vec::new();
    for column_type in types {
        compile(column_type, &mut steps);
    }
    steps.into()
}

fn array(steps: Box<[Step]>) -> Step {
    match *steps {
        [Step::Skip(width)] => Step::PlainArray(width),
        _ => Step::Array { least: steps.iter().map(Step::least).sum(), steps },
    }
}

fn ticks(precision: u8) -> i128 {
    10i128.pow(precision.into())
}

/// Bounds that lie beyond 64 bits (nanoseconds after 2262) do not bound.
fn seconds(low: i128, high: i128) -> Step {
    let within = |bound: i128| bound.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    Step::Number64(within(low), within(high))
}

fn decimal(precision: u8) -> Step {
    match decimal_width(precision) {
        4 => {
            let high = 10i32.pow(precision.into()) - 1;
            Step::Number32(-high, high)
        }
        8 => {
            let high = 10i64.pow(precision.into()) - 1;
            Step::Number64(-high, high)
        }
        16 => Step::Number128(10u128.pow(precision.into()) - 1),
        _ => {
            let mut words = [1u64, 0, 0, 0];
            for _ in 0..precision {
                let mut carry = 0u128;
                for word in &mut words {
                    let product = u128::from(*word) * 10 + carry;
                    *word = product as u64;
                    carry = product >> 64;
                }
            }
            Step::Number256(Box::new(words))
        }
    }
}

impl Step {
    /// Fewest bytes that it takes; never 0.
    fn least(&self) -> usize {
        match self {
            Self::Skip(width) => *width,
            Self::Number16(_) => 2,
            Self::Number32(..) => 4,
            Self::Number64(..) => 8,
            Self::Number128(_) => 16,
            Self::Number256(_) => 32,
            Self::Text | Self::Bool | Self::Byte(_) | Self::Nullable(_) => 1,
            Self::PlainArray(_) | Self::Array { .. } => 1,
        }
    }

    /// Where it ends that starts at `position`. Recursion is bounded by the nesting of types.
    fn walk(&self, bytes: &[u8], position: usize) -> Walked {
        match self {
            Self::Skip(width) => skip(bytes, position, *width as u64),
            Self::Text => text(bytes, position),
            Self::Bool => match fixed::<1>(bytes, position)? {
                [0 | 1] => Ok(position + 1),
                [byte] => at(position, Problem::NotBool(byte)),
            },
            Self::Byte(set) => {
                let [byte] = fixed::<1>(bytes, position)?;
                let known = set[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1;
                within(known, position, 1, Problem::NotInEnum(i16::from(byte as i8)))
            }
            Self::Number16(values) => {
                let number = i16::from_le_bytes(fixed(bytes, position)?);
                within(values.binary_search(&number).is_ok(), position, 2, Problem::NotInEnum(number))
            }
            Self::Number32(low, high) => {
                let number = i32::from_le_bytes(fixed(bytes, position)?);
                within((*low..=*high).contains(&number), position, 4, Problem::OutOfRange)
            }
            Self::Number64(low, high) => {
                let number = i64::from_le_bytes(fixed(bytes, position)?);
                within((*low..=*high).contains(&number), position, 8, Problem::OutOfRange)
            }
            Self::Number128(bound) => {
                let number = i128::from_le_bytes(fixed(bytes, position)?);
                within(number.unsigned_abs() <= *bound, position, 16, Problem::OutOfRange)
            }
            Self::Number256(bound) => {
                let number = fixed(bytes, position)?;
                within(below(&number, bound), position, 32, Problem::OutOfRange)
            }
            Self::Nullable(steps) => match fixed::<1>(bytes, position)? {
                [0] => walk_all(steps, bytes, position + 1),
                [1] => Ok(position + 1),
                [flag] => at(position, Problem::NotNullFlag(flag)),
            },
            Self::PlainArray(width) => {
                let (count, start) = length(bytes, position)?;
                match count.checked_mul(*width as u64) {
                    Some(total) => skip(bytes, start, total),
                    None => {
                        at(position, Problem::TooMany { count, least: *width, left: bytes.len() - start })
                    }
                }
            }
            Self::Array { least, steps } => {
                let (count, start) = length(bytes, position)?;
                let left = bytes.len() - start;
                if count > (left / least) as u64 {
                    return at(position, Problem::TooMany { count, least: *least, left });
                }
                let mut end = start;
                for _ in 0..count {
                    end = walk_all(steps, bytes, end)?;
                }
                Ok(end)
            }
        }
    }
}

fn walk_all(steps: &[Step], bytes: &[u8], mut position: usize) -> Walked {
    for step in steps {
        position = step.walk(bytes, position)?;
    }
    Ok(position)
}

#[inline]
fn within(holds: bool, position: usize, width: usize, problem: Problem) -> Walked {
    if holds { Ok(position + width) } else { at(position, problem) }
}

/// `position` never passes `bytes.len()`: every step checks before it moves.
#[inline]
fn skip(bytes: &[u8], position: usize, width: u64) -> Walked {
    let left = bytes.len() - position;
    if width <= left as u64 {
        Ok(position + width as usize)
    } else {
        at(position, Problem::Short { wanted: width, left })
    }
}

#[inline]
fn text(bytes: &[u8], position: usize) -> Walked {
    let (length, start) = length(bytes, position)?;
    skip(bytes, start, length)
}

#[inline]
fn fixed<const WIDTH: usize>(bytes: &[u8], position: usize) -> Walked<[u8; WIDTH]> {
    match bytes[position..].first_chunk() {
        Some(chunk) => Ok(*chunk),
        None => at(position, Problem::Short { wanted: WIDTH as u64, left: bytes.len() - position }),
    }
}

/// A length or count in LEB128 and where it ends. Padding with zero groups is taken, as ClickHouse
/// takes it, up to its ten bytes.
#[inline]
fn length(bytes: &[u8], position: usize) -> Walked<(u64, usize)> {
    match bytes.get(position) {
        Some(byte) if *byte < 0x80 => Ok((u64::from(*byte), position + 1)),
        _ => long_length(bytes, position),
    }
}

fn long_length(bytes: &[u8], position: usize) -> Walked<(u64, usize)> {
    let mut value = 0u64;
    for (index, byte) in bytes[position..].iter().take(10).enumerate() {
        let group = u64::from(byte & 0x7f);
        if index == 9 && group > 1 {
            break;
        }
        value |= group << (7 * index);
        if *byte < 0x80 {
            return Ok((value, position + index + 1));
        }
    }
    let left = bytes.len() - position;
    let problem =
        if left < 10 { Problem::Short { wanted: left as u64 + 1, left } } else { Problem::LongLength };
    at(position, problem)
}

/// Whether the absolute value of a signed number of 256 bits is below `bound`.
fn below(number: &[u8; 32], bound: &[u64; 4]) -> bool {
    let mut words = [0u64; 4];
    for (word, bytes) in words.iter_mut().zip(number.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    if words[3] >> 63 == 1 {
        let mut carry = true;
        for word in &mut words {
            (*word, carry) = (!*word).overflowing_add(carry.into());
        }
    }
    words.iter().rev().lt(bound.iter().rev())
}
