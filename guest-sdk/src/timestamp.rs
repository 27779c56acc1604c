//! Points in time: RFC 3339 text, and the calendar that columns need.
//!
//! Written here rather than taken from a calendar crate: a module needs one text format and two
//! conversions, and these few lines parse in a tenth of a microsecond without a time zone
//! database in every module. Tests hold them against `jiff`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};

use crate::Rejection;

const SECONDS_PER_DAY: i64 = 86_400;

/// A point in time with nanoseconds, in UTC. Its serde form is RFC 3339 text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanoseconds: u32,
}

/// Text that is not an RFC 3339 date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampError;

impl fmt::Display for TimestampError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("expected an RFC 3339 timestamp such as 2026-01-31T13:45:00Z")
    }
}

impl std::error::Error for TimestampError {}

impl From<TimestampError> for Rejection {
    fn from(error: TimestampError) -> Self {
        Self::new("wrong_type", error.to_string())
    }
}

impl Timestamp {
    /// From seconds and nanoseconds since 1970-01-01 UTC; the nanoseconds count forward, also
    /// before 1970. `None` if there are more than 999,999,999 of them.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Option<Self> {
        if nanoseconds < 1_000_000_000 { Some(Self { seconds, nanoseconds }) } else { None }
    }

    /// From milliseconds since 1970-01-01 UTC, as Kafka has them.
    pub const fn from_milliseconds(milliseconds: i64) -> Self {
        Self {
            seconds: milliseconds.div_euclid(1000),
            nanoseconds: milliseconds.rem_euclid(1000) as u32 * 1_000_000,
        }
    }

    /// From RFC 3339 text (<https://www.rfc-editor.org/rfc/rfc3339>, `date-time`): a date, `T`, a
    /// time, and `Z` or an offset. Digits beyond the nanoseconds are dropped; a leap second, which
    /// must be the last of a UTC day, is the first second of the next, as POSIX has it.
    ///
    /// # Errors
    /// When the text is anything else, or names a day that the calendar lacks.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        parse(text.as_bytes()).ok_or(TimestampError)
    }

    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`seconds`](Self::seconds).
    pub const fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }

    /// Whole milliseconds since 1970-01-01 UTC, rounded down; held at the ends of `i64`.
    pub const fn milliseconds(self) -> i64 {
        self.seconds.saturating_mul(1000).saturating_add(self.nanoseconds as i64 / 1_000_000)
    }

    /// Days from 1970-01-01 to its UTC day.
    pub const fn days(self) -> i64 {
        self.seconds.div_euclid(SECONDS_PER_DAY)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with as many digits of the second as there are.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.days());
        let second = self.seconds.rem_euclid(SECONDS_PER_DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanoseconds != 0 {
            let digits = format!("{:09}", self.nanoseconds);
            write!(formatter, ".{}", digits.trim_end_matches('0'))?;
        }
        formatter.write_str("Z")
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Timestamp;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an RFC 3339 timestamp")
            }

            #[inline]
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                parse(text.as_bytes()).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar
/// (<https://howardhinnant.github.io/date_algorithms.html>, `days_from_civil`).
pub(crate) const fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month as i64 + 9) % 12) + 2) / 5 + day as i64 - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The inverse of [`days_from_civil`]: year, month and day.
pub(crate) const fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Whether the calendar has this day.
pub(crate) const fn is_day(year: i64, month: u32, day: u32) -> bool {
    let length = match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    1 <= day && day <= length
}

/// `digits` ASCII digits at `start`.
#[inline]
fn number(text: &[u8], start: usize, digits: usize) -> Option<u32> {
    let mut value = 0;
    for &byte in text.get(start..start + digits)? {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + u32::from(digit);
    }
    Some(value)
}

#[inline]
fn parse(text: &[u8]) -> Option<Timestamp> {
    // 2026-01-31T13:45:00Z is the shortest form.
    if text.len() < 20
        || text[4] != b'-'
        || text[7] != b'-'
        || text[10] | 0x20 != b't'
        || text[13] != b':'
        || text[16] != b':'
    {
        return None;
    }
    let (year, month, day) = (i64::from(number(text, 0, 4)?), number(text, 5, 2)?, number(text, 8, 2)?);
    let (hour, minute, second) = (number(text, 11, 2)?, number(text, 14, 2)?, number(text, 17, 2)?);
    if !is_day(year, month, day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }

    let mut next = 19;
    let mut nanoseconds = 0;
    if text[next] == b'.' {
        next += 1;
        let start = next;
        let mut weight = 100_000_000;
        while let Some(digit) = text.get(next).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9)
        {
            nanoseconds += u32::from(digit) * weight;
            weight /= 10;
            next += 1;
        }
        if next == start {
            return None;
        }
    }

    let offset_minutes = match *text.get(next)? {
        b'Z' | b'z' if text.len() == next + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == next + 6 && text[next + 3] == b':' => {
            let (hours, minutes) = (number(text, next + 1, 2)?, number(text, next + 4, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let minutes = i64::from(hours * 60 + minutes);
            if sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };

    let seconds = days_from_civil(year, month, day) * SECONDS_PER_DAY
        + i64::from(hour * 3600 + minute * 60 + second)
        - offset_minutes * 60;
    if second == 60 && seconds.rem_euclid(SECONDS_PER_DAY) != 0 {
        return None;
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(text: &str) -> Option<i64> {
        Timestamp::parse(text).ok().map(Timestamp::milliseconds)
    }

    #[test]
    fn rfc_3339_is_read_in_all_its_forms() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00z", 0),
            ("1969-12-31T23:59:59.999Z", -1),
            ("2026-01-31T13:45:00.5Z", 1_769_867_100_500),
            ("2026-01-31T13:45:00.123456789123Z", 1_769_867_100_123),
            ("2026-01-31T13:45:00+05:30", 1_769_847_300_000),
            ("2026-01-31T13:45:00-00:00", 1_769_867_100_000),
            ("2024-02-29T00:00:00Z", 1_709_164_800_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("2017-01-01T00:59:60+01:00", 1_483_228_800_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000),
        ] {
            assert_eq!(milliseconds(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-01-31",
            "2026-01-31 13:45:00Z",
            "2026-01-31T13:45:00",
            "2026-01-31T13:45Z",
            "2026-1-31T13:45:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T13:60:00Z",
            "2026-01-31T13:45:61Z",
            "2026-01-31T13:45:60Z",
            "2026-01-31T13:45:00.Z",
            "2026-01-31T13:45:00,5Z",
            "2026-01-31T13:45:00+0530",
            "2026-01-31T13:45:00+24:00",
            "2026-01-31T13:45:00+05:60",
            "2026-01-31T13:45:00Zz",
            "2026-01-31T13:45:00Z ",
            " 2026-01-31T13:45:00Z",
            "+026-01-31T13:45:00Z",
            "2026-01-31T1３:45:00Z",
        ] {
            assert_eq!(milliseconds(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_of_ten_thousand_years_goes_there_and_back_as_jiff_has_it() {
        let epoch = jiff::civil::date(1970, 1, 1);
        let mut date = jiff::civil::date(0, 1, 1);
        let mut days = days_from_civil(0, 1, 1);
        assert_eq!(days, i64::from(epoch.until(date).unwrap().get_days()));
        loop {
            let (year, month, day) = (i64::from(date.year()), date.month() as u32, date.day() as u32);
            assert_eq!(days_from_civil(year, month, day), days, "{date}");
            assert_eq!(civil_from_days(days), (year, month, day), "{date}");
            assert!(is_day(year, month, day), "{date}");
            let Ok(tomorrow) = date.tomorrow() else { break };
            assert_eq!(is_day(year, month, day + 1), tomorrow.month() == date.month(), "{date}");
            date = tomorrow;
            days += 1;
        }
    }

    #[test]
    fn text_goes_there_and_back_as_jiff_has_it() {
        // A fixed walk over the range, odd in seconds and nanoseconds.
        let mut seconds: i64 = -62_167_219_200;
        while seconds < 253_402_300_800 - 86_400 {
            let nanoseconds = (seconds.rem_euclid(1_000_003) * 997) as u32;
            let theirs = jiff::Timestamp::new(seconds, 0).unwrap()
                + jiff::SignedDuration::from_nanos(i64::from(nanoseconds));
            let ours = Timestamp::new(seconds, nanoseconds).unwrap();
            let text = ours.to_string();
            assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), theirs, "{text}");
            assert_eq!(Timestamp::parse(&theirs.to_string()).unwrap(), ours, "{text}");
            seconds += 86_400 * 17 + 12_345;
        }
    }
}
