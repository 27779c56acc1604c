//! One record of a chunk, borrowed from the columns as they were received.

use serde::Deserialize;

use crate::Rejection;
use crate::bindings::types::Records;
use crate::json;

/// One Kafka message. Nothing is copied: every accessor is a slice of the chunk's columns.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    records: &'a Records,
    index: usize,
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(records: &'a Records, index: usize) -> Self {
        Self { records, index }
    }

    /// The payload; `None` for a tombstone, which is not the same as an empty payload.
    #[inline]
    pub fn payload(&self) -> Option<&'a [u8]> {
        let records = self.records;
        value(&records.payloads, &records.payload_ends, &records.payload_nulls, self.index)
    }

    /// The key; `None` where the record has none, which is not the same as an empty key.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        let records = self.records;
        value(&records.keys, &records.key_ends, &records.key_nulls, self.index)
    }

    /// The headers, in their order: name and value, `None` for a value that is absent. A name may
    /// come more than once.
    #[inline]
    pub fn headers(&self) -> Headers<'a> {
        let range = range(&self.records.header_ends, self.index);
        Headers { records: self.records, next: range.start, end: range.end }
    }

    /// The value of the last header called `name`, if there is one and its value is not absent.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(candidate, _)| *candidate == name).last()?.1
    }

    /// Kafka's timestamp in milliseconds since 1970-01-01 UTC; `None` where the record has none.
    #[inline]
    pub fn timestamp(&self) -> Option<i64> {
        let timestamp = self.records.timestamps[self.index];
        (timestamp >= 0).then_some(timestamp)
    }

    /// The topic that it came from.
    #[inline]
    pub fn topic(&self) -> &'a str {
        &self.records.topic
    }

    /// The partition of that topic.
    #[inline]
    pub fn partition(&self) -> u32 {
        self.records.partition
    }

    /// Its offset in that partition.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.records.base_offset + u64::from(self.records.offset_deltas[self.index])
    }

    /// Reads the payload as JSON. Strings without escapes are borrowed if the type asks for `&str`
    /// or `Cow<str>` (with `#[serde(borrow)]`).
    ///
    /// # Errors
    /// A rejection that says what is wrong and where, as [`json::from_slice`] does; code `tombstone`
    /// where there is no payload.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T, Rejection> {
        match self.payload() {
            Some(payload) => json::from_slice(payload).map_err(Rejection::from),
            None => Err(Rejection::new("tombstone", "the record has no payload")),
        }
    }
}

/// The headers of a record, in order.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    records: &'a Records,
    next: usize,
    end: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.end {
            return None;
        }
        let (records, index) = (self.records, self.next);
        self.next += 1;
        let name = &records.header_names[range(&records.header_name_ends, index)];
        let value =
            value(&records.header_values, &records.header_value_ends, &records.header_value_nulls, index);
        // The contract says that names are UTF-8: the host has checked.
        Some((std::str::from_utf8(name).unwrap_or_default(), value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for Headers<'_> {}

#[inline]
fn range(ends: &[u32], index: usize) -> std::ops::Range<usize> {
    let start = if index == 0 { 0 } else { ends[index - 1] as usize };
    start..ends[index] as usize
}

#[inline]
fn value<'a>(bytes: &'a [u8], ends: &[u32], nulls: &[u32], index: usize) -> Option<&'a [u8]> {
    if !nulls.is_empty() && nulls.binary_search(&(index as u32)).is_ok() {
        return None;
    }
    Some(&bytes[range(ends, index)])
}

#[cfg(test)]
mod tests {
    use crate::testing::{self, record};
    use crate::{NoSettings, Record, Rejection, Validator};

    /// Rejects every record with all that it sees of it as the reason.
    struct Mirror;

    impl Validator for Mirror {
        type Settings = NoSettings;

        fn new(_: NoSettings) -> Result<Self, String> {
            Ok(Self)
        }

        fn validate(&self, record: &Record<'_>) -> Result<(), Rejection> {
            Err(Rejection::new(
                "seen",
                format!(
                    "{} {} {} {:?} {:?} {:?} {:?}",
                    record.topic(),
                    record.partition(),
                    record.offset(),
                    record.timestamp(),
                    record.key(),
                    record.payload(),
                    record.headers().collect::<Vec<_>>(),
                ),
            ))
        }
    }

    #[test]
    fn absent_and_empty_stay_apart() {
        let seen = testing::validate::<Mirror>(
            "{}",
            [
                record(b"").key(b"k").header("a", b"1").null_header("b").timestamp(5),
                testing::tombstone().offset(9).header("c", b""),
                record(b"p").key(b""),
            ],
        );
        let reasons: Vec<_> = seen.into_iter().map(|verdict| verdict.unwrap_err().reason).collect();
        assert_eq!(
            reasons,
            [
                "test 0 0 Some(5) Some([107]) Some([]) [(\"a\", Some([49])), (\"b\", None)]",
                "test 0 9 None None None [(\"c\", Some([]))]",
                "test 0 10 None Some([]) Some([112]) []",
            ]
        );
    }
}
