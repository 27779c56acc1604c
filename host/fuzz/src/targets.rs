//! What is fuzzed: decoders of bytes that others write. Each target takes any bytes, panics where an
//! invariant does not hold, and answers whether the bytes were taken, by which a driver without
//! coverage knows that it got somewhere.
//!
//! The package around this file fuzzes it by coverage; `host/tests/fuzz.rs` runs it in `make test`.

use sha2::{Digest, Sha256};

use super::domain::column_type::ColumnType;
use super::domain::intent::PendingBatches;
use super::domain::row::{ColumnDefinition, Output};

/// Commit metadata as it stands in Kafka, where other programs write, too.
pub fn intent_text(data: &[u8]) -> bool {
    std::str::from_utf8(data).is_ok_and(is_pending)
}

/// The payload within such a text: with the right checksum, which bytes at random never have.
pub fn intent_payload(data: &[u8]) -> bool {
    let checksum = Sha256::digest(data);
    is_pending(&format!("sluice1:{}", base64url(&[data, &checksum[..4]].concat())))
}

/// Whether a text lists batches; then it is the text of these, and of no others.
fn is_pending(text: &str) -> bool {
    match PendingBatches::decode(text) {
        Ok(Some(list)) => {
            assert!(!list.intents().is_empty(), "a list of nothing has no text");
            let again = list.encode();
            assert_eq!(again.len(), list.encoded_len());
            assert_eq!(
                PendingBatches::decode(&again).as_ref(),
                Ok(&Some(list)),
                "what is read is what is written"
            );
            true
        }
        Ok(None) => {
            assert_eq!(text, "");
            false
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// A column type, a line break and a row of that column: a mapper declares the one and writes the other.
pub fn row(data: &[u8]) -> bool {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return false };
    let (name, row) = (&data[..end], &data[end + 1..]);
    let Ok(column_type) = std::str::from_utf8(name).unwrap_or_default().parse::<ColumnType>() else {
        return false;
    };
    assert_eq!(column_type.to_string().parse().as_ref(), Ok(&column_type), "a type is known by its name");
    let column = ColumnDefinition { name: "column".to_owned(), column_type };
    let output = Output { name: "output".to_owned(), columns: [column].into_iter().collect() };
    let Ok(length) = output.walk_row(row) else { return false };
    assert!(length <= row.len(), "a row ends within its bytes");
    assert_eq!(output.walk_row(&row[..length]), Ok(length), "what follows a row does not matter");
    if let Some(shorter) = length.checked_sub(1) {
        assert!(output.walk_row(&row[..shorter]).is_err(), "a part of a row is none");
    }
    true
}

/// RFC 4648, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digits = bytes.chunks(3).flat_map(|group| {
        let bits =
            [16, 8, 0].iter().zip(group).fold(0u32, |bits, (shift, byte)| bits | u32::from(*byte) << shift);
        [18, 12, 6, 0]
            .into_iter()
            .take(group.len() + 1)
            .map(move |shift| ALPHABET[(bits >> shift) as usize & 63])
    });
    digits.map(char::from).collect()
}
