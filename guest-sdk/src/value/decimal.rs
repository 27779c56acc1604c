//! `Decimal(P, S)`: exact decimals of up to 38 digits.

use std::fmt;

use super::{OutOfRange, Scalar, Value};

/// A `Decimal(P, S)` column: `P` digits (1 to 38), `S` of them after the point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal<const P: u8, const S: u8>(i128);

impl<const P: u8, const S: u8> Decimal<P, S> {
    const LIMIT: i128 = {
        assert!(1 <= P && P <= 38, "a Decimal has 1 to 38 digits");
        assert!(S <= P, "a Decimal has no more digits after the point than digits");
        10i128.pow(P as u32)
    };

    /// From the number of units of the last digit: `Decimal::<9, 2>::from_units(1999)` is 19.99.
    ///
    /// # Errors
    /// When it has more than `P` digits.
    pub fn from_units(units: impl Into<i128>) -> Result<Self, OutOfRange> {
        let units = units.into();
        if units <= -Self::LIMIT || units >= Self::LIMIT {
            return Err(OutOfRange::new(format!("{units} has more than {P} digits")));
        }
        Ok(Self(units))
    }

    /// From text such as `-19.99`; digits may be missing after the point, but none may be too many.
    ///
    /// # Errors
    /// When the text is not a decimal number, or the column cannot hold it exactly.
    pub fn parse(text: &str) -> Result<Self, OutOfRange> {
        let unfit = || OutOfRange::new(format!("`{text:.50}` does not fit Decimal({P}, {S})"));
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
        if whole.is_empty() || fraction.is_empty() {
            return Err(unfit());
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > usize::from(S) {
            return Err(unfit());
        }
        let padding = usize::from(S) - fraction.len();
        let mut units: i128 = 0;
        for digit in whole.bytes().chain(fraction.bytes()).chain(std::iter::repeat_n(b'0', padding)) {
            if !digit.is_ascii_digit() {
                return Err(unfit());
            }
            units = units.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
            if units >= Self::LIMIT {
                return Err(unfit());
            }
        }
        Ok(Self(if negative { -units } else { units }))
    }

    /// The number of units of the last digit.
    pub const fn units(self) -> i128 {
        self.0
    }
}

impl<const P: u8, const S: u8> fmt::Display for Decimal<P, S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let unit = 10u128.pow(u32::from(S));
        let (whole, fraction) = (self.0.unsigned_abs() / unit, self.0.unsigned_abs() % unit);
        if S == 0 {
            write!(formatter, "{sign}{whole}")
        } else {
            write!(formatter, "{sign}{whole}.{fraction:0width$}", width = usize::from(S))
        }
    }
}

impl<const P: u8, const S: u8> Value for Decimal<P, S> {
    fn type_name() -> String {
        format!("Decimal({P}, {S})")
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        let width = match P {
            0..=9 => 4,
            10..=18 => 8,
            _ => 16,
        };
        bytes.extend_from_slice(&self.0.to_le_bytes()[..width]);
    }
}

impl<const P: u8, const S: u8> Scalar for Decimal<P, S> {}

#[cfg(test)]
mod tests {
    use super::super::encoded;
    use super::*;

    #[test]
    fn the_digits_decide_the_width() {
        assert_eq!(encoded(Decimal::<9, 2>::from_units(-1).unwrap()), [0xff; 4]);
        assert_eq!(encoded(Decimal::<18, 2>::from_units(1).unwrap()), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded(Decimal::<38, 0>::from_units(-1).unwrap()), [0xff; 16]);
        assert_eq!(Decimal::<38, 10>::type_name(), "Decimal(38, 10)");
    }

    #[test]
    fn text_is_taken_exactly_or_not_at_all() {
        for (text, units) in [("19.99", 1999), ("-0.5", -50), ("7", 700), ("007.10", 710), ("1.5000", 150)] {
            assert_eq!(Decimal::<5, 2>::parse(text).map(Decimal::units), Ok(units), "{text}");
        }
        for text in ["", "-", ".5", "5.", "1.999", "1e2", "+1", "1000", "--1", "1.-5", " 1"] {
            assert!(Decimal::<5, 2>::parse(text).is_err(), "{text}");
        }
        assert_eq!(Decimal::<5, 2>::parse("-0.05").unwrap().to_string(), "-0.05");
        assert_eq!(Decimal::<5, 0>::parse("12").unwrap().to_string(), "12");
    }

    #[test]
    fn digits_beyond_the_column_are_refused() {
        assert_eq!(Decimal::<2, 0>::from_units(99).map(Decimal::units), Ok(99));
        assert_eq!(Decimal::<2, 0>::from_units(-100).unwrap_err().to_string(), "-100 has more than 2 digits");
        let nines = 10i128.pow(38) - 1;
        assert!(Decimal::<38, 0>::from_units(nines).is_ok());
        assert!(Decimal::<38, 0>::from_units(nines + 1).is_err());
        assert!(Decimal::<38, 0>::parse(&"9".repeat(39)).is_err());
        assert!(Decimal::<38, 38>::parse(&format!("0.{}", "9".repeat(38))).is_ok());
    }
}
