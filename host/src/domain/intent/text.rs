//! Text: how bytes become a metadata string that is recognised as ours, whole and unchanged.
//!
//! `sluice1:` and base64url, without padding, of the payload and the first four bytes of its
//! SHA-256. Base64 is read strictly, so that a payload has exactly one text.

use sha2::{Digest, Sha256};

/// Version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;
const MARK: &str = "sluice";
const PREFIX: &str = "sluice1:";
const CHECKSUM_BYTES: usize = 4;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Why the metadata of a partition cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntentError {
    /// Something else writes there.
    #[error(
        "the metadata {start:?} was not written by sluice: another program commits offsets of this group; \
         give the pipeline a group of its own, or, when that program is gone for good, commit the same \
         offset with empty metadata"
    )]
    Foreign {
        /// How the text begins.
        start: String,
    },
    /// A newer host wrote it.
    #[error(
        "the metadata is of format {version}, and this sluice reads format 1: a newer one wrote it; start that \
         version, and let it settle what is pending before going back"
    )]
    NewerVersion {
        /// Version of the text.
        version: u32,
    },
    /// It was ours, but is not as it was written.
    #[error(
        "the metadata is cut short or changed ({reason}), so the pending batches are not known; restore the \
         committed metadata of this partition if there is a copy of it, otherwise compare the table by \
         the provenance columns before committing an offset with empty metadata"
    )]
    Damaged {
        /// What was found.
        reason: String,
    },
}

pub(super) fn damaged(reason: impl Into<String>) -> IntentError {
    IntentError::Damaged { reason: reason.into() }
}

/// Length of the text of a payload.
pub(super) fn length(payload: usize) -> usize {
    PREFIX.len() + ((payload + CHECKSUM_BYTES) * 4).div_ceil(3)
}

/// The text of a payload.
pub(super) fn write(payload: &[u8]) -> String {
    let mut text = String::with_capacity(length(payload.len()));
    text.push_str(PREFIX);
    let checked = [payload, &checksum(payload)].concat();
    for group in checked.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let digits = [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift) as usize & 63]));
        text.extend(&digits[..=group.len()]);
    }
    text
}

/// The payload of a text.
pub(super) fn read(text: &str) -> Result<Vec<u8>, IntentError> {
    let (version, encoded) =
        split(text).ok_or_else(|| IntentError::Foreign { start: text.chars().take(40).collect() })?;
    if version != VERSION {
        return Err(IntentError::NewerVersion { version });
    }
    let mut payload = decode(encoded.as_bytes()).ok_or_else(|| damaged("not base64"))?;
    let Some(end) = payload.len().checked_sub(CHECKSUM_BYTES) else { return Err(damaged("too short")) };
    let stored = payload.split_off(end);
    if stored != checksum(&payload) {
        return Err(damaged("the checksum differs"));
    }
    Ok(payload)
}

/// Version and what follows, if the text begins as ours do.
fn split(text: &str) -> Option<(u32, &str)> {
    let (version, encoded) = text.strip_prefix(MARK)?.split_once(':')?;
    let digits = version.bytes().all(|byte| byte.is_ascii_digit()) && !version.starts_with('0');
    version.parse().ok().filter(|_| digits).map(|version| (version, encoded))
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash: [u8; 32] = Sha256::digest(payload).into();
    [hash[0], hash[1], hash[2], hash[3]]
}

fn decode(encoded: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(encoded.len() / 4 * 3 + 2);
    for group in encoded.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            bits = bits << 6 | sextet(*digit)?;
        }
        bits <<= 6 * (4 - group.len());
        let length = group.len() * 6 / 8;
        let [_, decoded @ ..] = bits.to_be_bytes();
        // A lone digit holds no byte, and bits beyond the last byte must be zero.
        if group.len() == 1 || decoded[length..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&decoded[..length]);
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Base64url of bytes, as RFC 4648 has it.
    fn base64(bytes: &[u8]) -> String {
        let text = write(bytes);
        let checksum = write(&[]);
        assert_eq!(checksum.len(), length(0));
        text[PREFIX.len()..].to_owned()
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        // The test vectors of RFC 4648 as far as the checksum behind them leaves them whole.
        for (bytes, expected) in [("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\u{3ff}?", "z78_")] {
            assert!(base64(bytes.as_bytes()).starts_with(expected), "{bytes}");
        }
        assert_eq!(decode(b"Zm8"), Some(b"fo".to_vec()));
        assert_eq!(decode(b"Zg"), Some(b"f".to_vec()));
        for malformed in ["Zm9", "Zh", "Z", "Zm9vZ", "Zm8=", "Zm+v", "Zm/v", "Zm v"] {
            assert_eq!(decode(malformed.as_bytes()), None, "{malformed}");
        }
    }

    #[test]
    fn what_is_not_ours_says_whose_it_may_be() {
        for foreign in [
            "AQAAAYx",
            "sluice",
            "sluice:",
            "sluicex1:",
            "sluice01:AAAA",
            "sluice+1:AAAA",
            "1:AAAA",
            "Sluice1:AAAA",
            "ü",
        ] {
            assert!(matches!(read(foreign), Err(IntentError::Foreign { .. })), "{foreign}");
        }
        assert_eq!(read("sluice2:AAAA"), Err(IntentError::NewerVersion { version: 2 }));
        assert_eq!(read("sluice1:AAAA"), Err(damaged("too short")));
        assert_eq!(read("sluice1:AAAAAA"), Err(damaged("the checksum differs")));
        assert_eq!(read("sluice1:AAAAA$"), Err(damaged("not base64")));
    }

    proptest! {
        #[test]
        fn any_payload_comes_back(payload in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = write(&payload);
            prop_assert_eq!(text.len(), length(payload.len()));
            prop_assert_eq!(read(&text), Ok(payload));
        }
    }
}
