//! What is fuzzed: decoders of bytes that others write. Each target takes any bytes, panics where an
//! invariant does not hold, and answers whether the bytes were taken, by which a driver without
//! coverage knows that it got somewhere.
//!
//! The package around this file fuzzes it by coverage; `host/tests/fuzz.rs` runs it in `make test`.

use sha2::{Digest, Sha256};

use super::domain::answer::{AnswerLimits, GuestRejection, check_mapped, check_rejections};
use super::domain::column_type::ColumnType;
use super::domain::intent::PendingBatches;
use super::domain::row::{ColumnDefinition, Output};
use super::domain::verdict::{OutputRows, RejectionKind};

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

/// What a guest answers to a call, as [`Said::read`] lays it out. A validator's if the first byte is odd.
pub fn answer(data: &[u8]) -> bool {
    let limits = AnswerLimits { rows_per_record: 3, output_bytes_per_record: 20 };
    let declared = [("numbers", &["UInt16"][..]), ("texts", &["String", "Nullable(UInt8)"])].map(declare);
    let said = Said::read(data, declared.len());
    let Said { is_mapped, selected, rejections, outputs } = &said;
    let result = if *is_mapped {
        check_mapped(&declared, limits, selected, outputs.clone(), rejections.clone())
    } else {
        check_rejections(selected, rejections.clone())
    };
    assert_eq!(result.is_ok(), said.is_sound(&declared, limits), "what is sound is taken, and nothing else");
    match result {
        Ok(answer) => {
            assert_eq!(&answer.outputs, if *is_mapped { outputs } else { &[][..] }, "rows stay as they are");
            assert_eq!(answer.refusals.len(), rejections.len());
            for ((position, refusal), said) in answer.refusals.iter().zip(rejections) {
                assert_eq!(selected[*position], said.index);
                assert!(matches!(refusal.kind, RejectionKind::Rejected | RejectionKind::Malformed));
                assert_eq!(refusal.kind == RejectionKind::Malformed, refusal.code == "malformed");
                let is_plain =
                    |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
                assert!((1..=64).contains(&refusal.code.len()) && refusal.code.chars().all(is_plain));
                let field = refusal.field.as_deref();
                for (text, longest) in [(field, 256), (Some(&*refusal.reason), 1024)] {
                    let text = text.unwrap_or_default();
                    assert!(text.len() <= longest && !text.contains(char::is_control));
                }
                assert_ne!(field, Some(""));
            }
            true
        }
        Err(fault) => {
            assert_eq!(fault.refusal.kind, RejectionKind::BadRow);
            assert!(!fault.refusal.reason.is_empty() && !fault.refusal.code.is_empty());
            assert!(fault.suspects.is_sorted_by(|one, next| one < next));
            assert!(fault.suspects.iter().all(|position| *position < selected.len()));
            false
        }
    }
}

fn declare((name, columns): (&str, &[&str])) -> Output {
    let column = |(place, name): (usize, &&str)| ColumnDefinition {
        name: format!("column{place}"),
        column_type: name.parse().expect("a type"),
    };
    Output { name: name.to_owned(), columns: columns.iter().enumerate().map(column).collect() }
}

/// An answer and what it answers to.
struct Said {
    is_mapped: bool,
    selected: Vec<u32>,
    rejections: Vec<GuestRejection>,
    outputs: Vec<OutputRows>,
}

impl Said {
    /// Any bytes are an answer. Lists begin with their length, a byte. What is missing at the end is zero.
    ///
    /// 1. A byte: odd for a validator's.
    /// 2. The selected records, each a byte: how many are left out before it.
    /// 3. Rejections: index, code, field and reason, texts with their length in front, control characters and all.
    /// 4. A byte: odd for an output too many. For each output: rows of each record; row ends, each as its distance
    ///    from the end before, a signed byte; bytes of the rows.
    ///
    /// Indexes and numbers of rows of 255 are the largest that there is.
    fn read(data: &[u8], outputs: usize) -> Self {
        let mut bytes = data.iter().copied();
        let mut byte = move || bytes.next().unwrap_or(0);
        let is_mapped = byte() % 2 == 0;
        let mut next = 0u32;
        let selected = (0..byte())
            .map(|_| {
                let index = next + u32::from(byte());
                next = index + 1;
                index
            })
            .collect();
        let rejections = (0..byte())
            .map(|_| GuestRejection {
                index: number(byte()),
                code: text(&mut byte),
                field: Some(text(&mut byte)).filter(|field| !field.starts_with('-')),
                reason: text(&mut byte).repeat(9),
            })
            .collect();
        let outputs = (0..outputs + usize::from(byte() % 2))
            .map(|_| {
                let rows_per_record = (0..byte()).map(|_| number(byte())).collect();
                let mut end = 0u32;
                let row_ends = (0..byte())
                    .map(|_| {
                        end = end.wrapping_add_signed(i32::from(byte().cast_signed()));
                        end
                    })
                    .collect();
                let rows = (0..byte()).map(|_| byte()).collect();
                OutputRows { bytes: rows, row_ends, rows_per_record }
            })
            .collect();
        Self { is_mapped, selected, rejections, outputs }
    }

    /// Whether the contract allows it: said once more, record by record, where the host goes list by list.
    fn is_sound(&self, declared: &[Output], limits: AnswerLimits) -> bool {
        let rejected: Vec<u32> = self.rejections.iter().map(|rejection| rejection.index).collect();
        if !rejected.is_sorted_by(|one, next| one < next)
            || !rejected.iter().all(|index| self.selected.contains(index))
        {
            return false;
        }
        if !self.is_mapped {
            return true;
        }
        let has_shape = |rows: &OutputRows| {
            let counted: usize = rows.rows_per_record.iter().map(|count| *count as usize).sum();
            rows.rows_per_record.len() == self.selected.len()
                && counted == rows.row_ends.len()
                && rows.row_ends.is_sorted()
                && rows.row_ends.last().map_or(0, |end| *end as usize) == rows.bytes.len()
        };
        if self.outputs.len() != declared.len() || !self.outputs.iter().all(has_shape) {
            return false;
        }
        let of_outputs: Vec<_> =
            self.outputs.iter().map(|rows| rows.by_record().collect::<Vec<_>>()).collect();
        self.selected.iter().enumerate().all(|(position, index)| {
            let mut bytes = 0;
            of_outputs.iter().zip(declared).all(|(records, output)| {
                let rows = &records[position];
                bytes += rows.iter().map(|row| row.len()).sum::<usize>();
                rows.iter().all(|row| output.walk_row(row) == Ok(row.len()))
                    && rows.len() <= limits.rows_per_record as usize
                    && (rows.is_empty() || !rejected.contains(index))
            }) && bytes <= limits.output_bytes_per_record
        })
    }
}

fn number(byte: u8) -> u32 {
    if byte == u8::MAX { u32::MAX } else { byte.into() }
}

fn text(byte: &mut impl FnMut() -> u8) -> String {
    let bytes: Vec<u8> = (0..byte()).map(|_| byte()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
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
