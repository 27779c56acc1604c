//! Values: the Rust types of ClickHouse's column types, and their bytes in RowBinary
//! (<https://clickhouse.com/docs/interfaces/formats/RowBinary>).
//!
//! Invariant: a value that exists fits its column. Whatever might not fit (a date beyond 2149, a
//! decimal with too many digits) is refused when the value is made, as an [`OutOfRange`] that the
//! author has to handle; encoding cannot fail and never truncates.

mod compound;
mod decimal;
mod identity;
mod time;

use std::borrow::Cow;
use std::fmt;

pub use compound::{Dictionary, LowCardinality, Map};
pub use decimal::Decimal;
pub use identity::{FixedString, Uuid};
pub use time::{Date, Date32, DateTime, DateTime64, ServerZone, Utc, Zone};

use crate::Rejection;

/// A Rust value of a ClickHouse type.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a value of a ClickHouse column",
    note = "see the table of types in the README of sluice-sdk"
)]
pub trait Value {
    /// The ClickHouse type, as `DESCRIBE TABLE` shows it.
    fn type_name() -> String;

    /// Appends the value in RowBinary.
    fn encode(&self, bytes: &mut Vec<u8>);

    /// The type of a sequence of these: `Array(...)`, but `String` for bytes.
    #[doc(hidden)]
    fn sequence_type_name() -> String {
        format!("Array({})", Self::type_name())
    }

    /// Appends a sequence of these.
    #[doc(hidden)]
    fn encode_sequence(values: &[Self], bytes: &mut Vec<u8>)
    where
        Self: Sized,
    {
        encode_length(values.len(), bytes);
        for value in values {
            value.encode(bytes);
        }
    }
}

/// A value that may stand in a `Nullable(...)`: anything but arrays, maps, tuples, and values that
/// are nullable or of low cardinality already.
///
/// ```compile_fail,E0277
/// let nullable_array = <Option<Vec<u16>> as sluice_sdk::Value>::type_name();
/// ```
#[diagnostic::on_unimplemented(message = "ClickHouse has no `Nullable` of `{Self}`")]
pub trait Scalar: Value {}

/// A value that its column cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    message: String,
}

impl OutOfRange {
    #[cold]
    pub(crate) fn new(message: String) -> Self {
        Self { message }
    }
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for OutOfRange {}

impl From<OutOfRange> for Rejection {
    fn from(error: OutOfRange) -> Self {
        Self::new("out_of_range", error.message)
    }
}

/// Appends a length as an unsigned LEB128.
#[inline]
pub(crate) fn encode_length(mut length: usize, bytes: &mut Vec<u8>) {
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

macro_rules! numbers {
    ($($rust:ty => $name:literal),* $(,)?) => {$(
        impl Value for $rust {
            fn type_name() -> String {
                $name.to_owned()
            }

            #[inline]
            fn encode(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl Scalar for $rust {}
    )*};
}

numbers! {
    i8 => "Int8", i16 => "Int16", i32 => "Int32", i64 => "Int64", i128 => "Int128",
    u16 => "UInt16", u32 => "UInt32", u64 => "UInt64", u128 => "UInt128",
    f32 => "Float32", f64 => "Float64",
}

impl Value for u8 {
    fn type_name() -> String {
        "UInt8".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(*self);
    }

    fn sequence_type_name() -> String {
        "String".to_owned()
    }

    #[inline]
    fn encode_sequence(values: &[Self], bytes: &mut Vec<u8>) {
        encode_length(values.len(), bytes);
        bytes.extend_from_slice(values);
    }
}

impl Scalar for u8 {}

impl Value for bool {
    fn type_name() -> String {
        "Bool".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }
}

impl Scalar for bool {}

impl Value for str {
    fn type_name() -> String {
        "String".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        u8::encode_sequence(self.as_bytes(), bytes);
    }
}

impl Scalar for str {}

impl Value for String {
    fn type_name() -> String {
        str::type_name()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        self.as_str().encode(bytes);
    }
}

impl Scalar for String {}

// A column of strings holds any bytes, so `Vec<u8>` and `&[u8]` are strings, not arrays.
impl Scalar for Vec<u8> {}
impl Scalar for [u8] {}

impl<T: Value + ?Sized> Value for &T {
    fn type_name() -> String {
        T::type_name()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        T::encode(self, bytes);
    }
}

impl<T: Scalar + ?Sized> Scalar for &T {}

impl<T: Value + ToOwned + ?Sized> Value for Cow<'_, T> {
    fn type_name() -> String {
        T::type_name()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        T::encode(self, bytes);
    }
}

impl<T: Scalar + ToOwned + ?Sized> Scalar for Cow<'_, T> {}

#[cfg(test)]
pub(crate) fn encoded(value: impl Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_leb128() {
        for (length, expected) in [
            (0, vec![0]),
            (127, vec![0x7f]),
            (128, vec![0x80, 1]),
            (300, vec![0xac, 2]),
            (u32::MAX as usize, vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            let mut bytes = Vec::new();
            encode_length(length, &mut bytes);
            assert_eq!(bytes, expected, "{length}");
        }
    }

    #[test]
    fn numbers_are_little_endian() {
        assert_eq!(encoded(-2i8), [0xfe]);
        assert_eq!(encoded(0x0102u16), [2, 1]);
        assert_eq!(encoded(-2i128), [&[0xfe], &[0xff; 15][..]].concat());
        assert_eq!(encoded(1.0f32), [0, 0, 0x80, 0x3f]);
        assert_eq!(encoded(true), [1]);
        assert_eq!((u8::type_name(), i128::type_name()), ("UInt8".into(), "Int128".into()));
    }

    #[test]
    fn bytes_are_strings() {
        assert_eq!(encoded("ab"), [2, b'a', b'b']);
        assert_eq!(encoded(vec![0u8, 0xff]), [2, 0, 0xff]);
        assert_eq!(encoded(Cow::Borrowed("x")), [1, b'x']);
        assert_eq!(encoded("é".to_owned()), [2, 0xc3, 0xa9]);
        assert_eq!(<Vec<u8>>::type_name(), "String");
        assert_eq!(<&[u8]>::type_name(), "String");
        assert_eq!(<Option<Vec<u8>>>::type_name(), "Nullable(String)");
    }
}
