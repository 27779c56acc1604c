//! Values that name things: `UUID`, `IPv4`, `IPv6`, `FixedString`.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::{OutOfRange, Scalar, Value};

/// A `UUID` column. Its serde form is text such as `61f0c404-5cb3-11e7-907b-a6006ad3dba0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// From 32 hex digits, with hyphens in the usual places or without any. `None` for other text.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let hyphens: &[usize] = match text.len() {
            32 => &[],
            36 => &[8, 13, 18, 23],
            _ => return None,
        };
        let mut value: u128 = 0;
        for (index, &byte) in text.iter().enumerate() {
            if hyphens.contains(&index) {
                if byte != b'-' {
                    return None;
                }
                continue;
            }
            value = value << 4 | u128::from((byte as char).to_digit(16)?);
        }
        Some(Self(value.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                formatter.write_str("-")?;
            }
            write!(formatter, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Uuid;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a UUID")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Uuid, E> {
                Uuid::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl Value for Uuid {
    fn type_name() -> String {
        "UUID".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        // Two 64-bit halves, the high one first, each little-endian.
        let value = u128::from_be_bytes(self.0);
        bytes.extend_from_slice(&((value >> 64) as u64).to_le_bytes());
        bytes.extend_from_slice(&(value as u64).to_le_bytes());
    }
}

impl Scalar for Uuid {}

impl Value for Ipv4Addr {
    fn type_name() -> String {
        "IPv4".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&u32::from(*self).to_le_bytes());
    }
}

impl Scalar for Ipv4Addr {}

impl Value for Ipv6Addr {
    fn type_name() -> String {
        "IPv6".to_owned()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.octets());
    }
}

impl Scalar for Ipv6Addr {}

/// A `FixedString(N)` column: exactly `N` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FixedString<const N: usize>(pub [u8; N]);

impl<const N: usize> FixedString<N> {
    /// From up to `N` bytes; a shorter value is filled up with zeros, as ClickHouse does.
    ///
    /// # Errors
    /// When there are more than `N` bytes.
    pub fn new(value: impl AsRef<[u8]>) -> Result<Self, OutOfRange> {
        let value = value.as_ref();
        let mut bytes = [0; N];
        match bytes.get_mut(..value.len()) {
            Some(start) => start.copy_from_slice(value),
            None => {
                return Err(OutOfRange::new(format!("{} bytes do not fit FixedString({N})", value.len())));
            }
        }
        Ok(Self(bytes))
    }
}

impl<const N: usize> Value for FixedString<N> {
    fn type_name() -> String {
        const { assert!(N > 0, "FixedString(0) does not exist") };
        format!("FixedString({N})")
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0);
    }
}

impl<const N: usize> Scalar for FixedString<N> {}

#[cfg(test)]
mod tests {
    use super::super::encoded;
    use super::*;

    #[test]
    fn a_uuid_is_two_little_endian_halves() {
        let uuid = Uuid::parse("00112233-4455-6677-8899-AABBCCDDEEFF").unwrap();
        assert_eq!(uuid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(Uuid::parse("00112233445566778899aabbccddeeff"), Some(uuid));
        assert_eq!(
            encoded(uuid),
            [0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88]
        );
        for text in ["", "00112233-4455-6677-8899-aabbccddeef", "0011223344556677-8899-aabb-ccddeeff-"] {
            assert_eq!(Uuid::parse(text), None, "{text}");
        }
        assert_eq!(Uuid::parse("0011223344556677-899-aabb-ccddeefff0"), None);
    }

    #[test]
    fn addresses() {
        assert_eq!(encoded(Ipv4Addr::new(1, 2, 3, 4)), [4, 3, 2, 1]);
        assert_eq!(encoded(Ipv6Addr::LOCALHOST)[15], 1);
    }

    #[test]
    fn a_fixed_string_is_filled_up_and_never_cut() {
        assert_eq!(encoded(FixedString::<3>::new("ab").unwrap()), [b'a', b'b', 0]);
        assert_eq!(FixedString::<3>::type_name(), "FixedString(3)");
        let error = FixedString::<3>::new("abcd").unwrap_err();
        assert_eq!(error.to_string(), "4 bytes do not fit FixedString(3)");
    }
}
