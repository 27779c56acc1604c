//! Days and points in time: `Date`, `Date32`, `DateTime`, `DateTime64`.
//!
//! Ranges are ClickHouse's own: what is outside is refused, not clamped as ClickHouse would.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use super::{OutOfRange, Scalar, Value};
use crate::timestamp::{Timestamp, civil_from_days, days_from_civil, is_day};

/// The time zone of a column's type: how ClickHouse shows the point in time, not what is stored.
pub trait Zone {
    /// The zone's name in the type; `None` for a column without one.
    const NAME: Option<&'static str>;
}

/// `DateTime('UTC')`, `DateTime64(P, 'UTC')`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Utc;

impl Zone for Utc {
    const NAME: Option<&'static str> = Some("UTC");
}

/// `DateTime`, `DateTime64(P)`: shown in the server's time zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerZone;

impl Zone for ServerZone {
    const NAME: Option<&'static str> = None;
}

#[cold]
fn out_of_range(value: impl fmt::Display, column: &str, first: &str, last: &str) -> OutOfRange {
    OutOfRange::new(format!("{value} does not fit {column}, which holds {first} to {last}"))
}

/// A day as text.
fn day(days: i64) -> String {
    let (year, month, day) = civil_from_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

macro_rules! dates {
    ($($(#[$documentation:meta])* $name:ident($stored:ty) $first:literal to $last:literal, $range:expr;)*) => {$(
        $(#[$documentation])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($stored);

        impl $name {
            /// From a day of the calendar.
            ///
            /// # Errors
            /// When the calendar or the column lacks it.
            pub fn new(year: i32, month: u32, day: u32) -> Result<Self, OutOfRange> {
                if !is_day(i64::from(year), month, day) {
                    return Err(OutOfRange::new(format!("{year:04}-{month:02}-{day:02} is no day")));
                }
                Self::from_days(days_from_civil(i64::from(year), month, day))
            }

            /// From days since 1970-01-01.
            ///
            /// # Errors
            /// When the column lacks that day.
            #[inline]
            pub fn from_days(days: i64) -> Result<Self, OutOfRange> {
                if !$range.contains(&days) {
                    // Days beyond what a timestamp can say are not worth a calendar.
                    let value = if days.unsigned_abs() < 4_000_000 { self::day(days) } else { format!("day {days}") };
                    return Err(out_of_range(value, stringify!($name), $first, $last));
                }
                Ok(Self(days as $stored))
            }

            /// Days since 1970-01-01.
            pub const fn days(self) -> $stored {
                self.0
            }
        }

        impl TryFrom<Timestamp> for $name {
            type Error = OutOfRange;

            /// The UTC day.
            #[inline]
            fn try_from(timestamp: Timestamp) -> Result<Self, OutOfRange> {
                Self::from_days(timestamp.days())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&day(i64::from(self.0)))
            }
        }

        impl Value for $name {
            fn type_name() -> String {
                stringify!($name).to_owned()
            }

            #[inline]
            fn encode(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.0.to_le_bytes());
            }
        }

        impl Scalar for $name {}
    )*};
}

dates! {
    /// A `Date` column: a day from 1970-01-01 to 2149-06-06.
    Date(u16) "1970-01-01" to "2149-06-06", 0..=65_535_i64;
    /// A `Date32` column: a day from 1900-01-01 to 2299-12-31.
    Date32(i32) "1900-01-01" to "2299-12-31", -25_567..=120_529_i64;
}

/// A `DateTime` column: whole seconds from 1970-01-01 to 2106-02-07 06:28:15 UTC. `Z` is the zone
/// in the column's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DateTime<Z = Utc>(u32, PhantomData<Z>);

impl<Z: Zone> DateTime<Z> {
    /// From seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// When the column cannot hold them.
    #[inline]
    pub fn from_seconds(seconds: i64) -> Result<Self, OutOfRange> {
        match u32::try_from(seconds) {
            Ok(seconds) => Ok(Self(seconds, PhantomData)),
            Err(_) => Err(out_of_range(
                format_args!("second {seconds}"),
                "DateTime",
                "1970-01-01T00:00:00Z",
                "2106-02-07T06:28:15Z",
            )),
        }
    }

    /// Seconds since 1970-01-01 UTC.
    pub const fn seconds(self) -> u32 {
        self.0
    }
}

impl<Z: Zone> TryFrom<Timestamp> for DateTime<Z> {
    type Error = OutOfRange;

    /// The second that the timestamp is in.
    #[inline]
    fn try_from(timestamp: Timestamp) -> Result<Self, OutOfRange> {
        Self::from_seconds(timestamp.seconds())
    }
}

impl<Z: Zone> Value for DateTime<Z> {
    fn type_name() -> String {
        match Z::NAME {
            Some(zone) => format!("DateTime('{zone}')"),
            None => "DateTime".to_owned(),
        }
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.to_le_bytes());
    }
}

impl<Z: Zone> Scalar for DateTime<Z> {}

/// A `DateTime64(P)` column: `P` (0 to 9) digits of the second, from 1900-01-01 to 2299-12-31 UTC,
/// with nanoseconds to 2262-04-11. `Z` is the zone in the column's type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DateTime64<const P: u8, Z = Utc>(i64, PhantomData<Z>);

impl<const P: u8, Z: Zone> DateTime64<P, Z> {
    const TICKS_PER_SECOND: i64 = {
        assert!(P <= 9, "a DateTime64 has 0 to 9 digits of the second");
        10i64.pow(P as u32)
    };
    const SECONDS: RangeInclusive<i64> =
        days_from_civil(1900, 1, 1) * 86_400..=days_from_civil(2300, 1, 1) * 86_400 - 1;

    /// From ticks of `10^-P` seconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// When the column cannot hold them.
    pub fn from_ticks(ticks: i64) -> Result<Self, OutOfRange> {
        let seconds = ticks.div_euclid(Self::TICKS_PER_SECOND);
        if !Self::SECONDS.contains(&seconds) {
            return Err(Self::unfit(format_args!("tick {ticks}")));
        }
        Ok(Self(ticks, PhantomData))
    }

    /// Ticks of `10^-P` seconds since 1970-01-01 UTC.
    pub const fn ticks(self) -> i64 {
        self.0
    }

    #[cold]
    fn unfit(value: impl fmt::Display) -> OutOfRange {
        let last = if P == 9 { "2262-04-11T23:47:16.854775807Z" } else { "2299-12-31T23:59:59Z" };
        out_of_range(value, &format!("DateTime64({P})"), "1900-01-01T00:00:00Z", last)
    }
}

impl<const P: u8, Z: Zone> TryFrom<Timestamp> for DateTime64<P, Z> {
    type Error = OutOfRange;

    /// The tick that the timestamp is in.
    #[inline]
    fn try_from(timestamp: Timestamp) -> Result<Self, OutOfRange> {
        let seconds = timestamp.seconds();
        if !Self::SECONDS.contains(&seconds) {
            return Err(Self::unfit(timestamp));
        }
        let nanoseconds_per_tick = 1_000_000_000 / Self::TICKS_PER_SECOND;
        // Only nanoseconds after 2262 overflow: the bounds above rule out all else.
        seconds
            .checked_mul(Self::TICKS_PER_SECOND)
            .and_then(|ticks| ticks.checked_add(i64::from(timestamp.nanoseconds()) / nanoseconds_per_tick))
            .map(|ticks| Self(ticks, PhantomData))
            .ok_or_else(|| Self::unfit(timestamp))
    }
}

impl<const P: u8, Z: Zone> Value for DateTime64<P, Z> {
    fn type_name() -> String {
        match Z::NAME {
            Some(zone) => format!("DateTime64({P}, '{zone}')"),
            None => format!("DateTime64({P})"),
        }
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.0.to_le_bytes());
    }
}

impl<const P: u8, Z: Zone> Scalar for DateTime64<P, Z> {}

#[cfg(test)]
mod tests {
    use super::super::encoded;
    use super::*;

    fn timestamp(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn dates_end_where_their_columns_end() {
        assert_eq!(encoded(Date::new(1970, 1, 2).unwrap()), [1, 0]);
        assert_eq!(encoded(Date::new(2149, 6, 6).unwrap()), [0xff, 0xff]);
        assert_eq!(
            Date::new(2149, 6, 7).unwrap_err().to_string(),
            "2149-06-07 does not fit Date, which holds 1970-01-01 to 2149-06-06"
        );
        assert!(Date::new(1969, 12, 31).is_err());
        assert_eq!(Date::new(2023, 2, 29).unwrap_err().to_string(), "2023-02-29 is no day");
        assert_eq!(Date32::new(1900, 1, 1).unwrap().days(), -25_567);
        assert!(Date32::new(1899, 12, 31).is_err());
        assert_eq!(Date32::new(2299, 12, 31).unwrap().to_string(), "2299-12-31");
        assert!(Date32::new(2300, 1, 1).is_err());
        assert!(Date::from_days(i64::MAX).is_err() && Date::from_days(i64::MIN).is_err());
        assert_eq!(Date::try_from(timestamp("2024-02-29T23:59:59-01:00")).unwrap().to_string(), "2024-03-01");
    }

    #[test]
    fn a_date_time_is_refused_beyond_32_bits() {
        let last = <DateTime>::try_from(timestamp("2106-02-07T06:28:15.9Z")).unwrap();
        assert_eq!(last.seconds(), u32::MAX);
        assert!(<DateTime>::try_from(timestamp("2106-02-07T06:28:16Z")).is_err());
        assert!(<DateTime>::try_from(timestamp("1969-12-31T23:59:59Z")).is_err());
        assert_eq!(<DateTime>::type_name(), "DateTime('UTC')");
        assert_eq!(<DateTime<ServerZone>>::type_name(), "DateTime");
    }

    #[test]
    fn a_date_time_64_keeps_its_digits() {
        let moment = timestamp("2026-01-31T13:45:00.123456789Z");
        assert_eq!(<DateTime64<3>>::try_from(moment).unwrap().ticks(), 1_769_867_100_123);
        assert_eq!(<DateTime64<0>>::try_from(moment).unwrap().ticks(), 1_769_867_100);
        assert_eq!(<DateTime64<9>>::try_from(moment).unwrap().ticks(), 1_769_867_100_123_456_789);
        assert_eq!(<DateTime64<3>>::try_from(timestamp("1969-12-31T23:59:59.9999Z")).unwrap().ticks(), -1);
        assert_eq!(<DateTime64<3>>::type_name(), "DateTime64(3, 'UTC')");
        assert_eq!(<DateTime64<6, ServerZone>>::type_name(), "DateTime64(6)");
    }

    #[test]
    fn a_date_time_64_ends_where_clickhouse_ends() {
        assert!(<DateTime64<3>>::try_from(timestamp("1900-01-01T00:00:00Z")).is_ok());
        assert!(<DateTime64<3>>::try_from(timestamp("1899-12-31T23:59:59.999Z")).is_err());
        assert!(<DateTime64<8>>::try_from(timestamp("2299-12-31T23:59:59.999Z")).is_ok());
        assert!(<DateTime64<3>>::try_from(timestamp("2300-01-01T00:00:00Z")).is_err());
        assert!(<DateTime64<9>>::try_from(timestamp("2262-04-11T23:47:16.854775807Z")).is_ok());
        assert!(<DateTime64<9>>::try_from(timestamp("2262-04-11T23:47:16.854775808Z")).is_err());
        assert!(<DateTime64<3>>::from_ticks(i64::MAX).is_err());
        assert_eq!(<DateTime64<3>>::from_ticks(-1).unwrap().ticks(), -1);
    }
}
