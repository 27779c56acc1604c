use proptest::prelude::*;

use super::*;
use crate::domain::row::{ColumnDefinition, ColumnType};

const LIMITS: AnswerLimits = AnswerLimits { rows_per_record: 10_000, output_bytes_per_record: 1 << 20 };

fn outputs() -> Vec<Output> {
    let column = |name: &str, column_type: &str| ColumnDefinition {
        name: name.to_owned(),
        column_type: ColumnType::parse(column_type).unwrap(),
    };
    vec![
        Output { name: "numbers".to_owned(), columns: [column("n", "UInt16")].into_iter().collect() },
        Output { name: "texts".to_owned(), columns: [column("t", "String")].into_iter().collect() },
    ]
}

fn rejection(index: u32, code: &str) -> GuestRejection {
    GuestRejection { index, code: code.to_owned(), field: None, reason: "because".to_owned() }
}

fn rows(bytes: &[u8], row_ends: &[u32], rows_per_record: &[u32]) -> OutputRows {
    OutputRows {
        bytes: bytes.to_vec(),
        row_ends: row_ends.to_vec(),
        rows_per_record: rows_per_record.to_vec(),
    }
}

fn check(numbers: OutputRows, texts: OutputRows) -> Result<Answer, Fault> {
    check_mapped(&outputs(), LIMITS, &[4, 7], vec![numbers, texts], [])
}

fn fault(numbers: OutputRows) -> String {
    let Fault { refusal, suspects } = check(numbers, rows(b"", &[], &[0, 0])).unwrap_err();
    assert!(suspects.is_empty());
    assert_eq!((refusal.kind, refusal.code.as_str()), (RejectionKind::BadRow, "bad_answer"));
    refusal.reason
}

#[test]
fn rejections_become_positions() {
    let answer = check_rejections(&[2, 5, 9], vec![rejection(5, "malformed"), rejection(9, "late")]).unwrap();
    let seen: Vec<_> = answer
        .refusals
        .iter()
        .map(|(position, refusal)| (*position, refusal.kind, refusal.code.as_str()))
        .collect();
    assert_eq!(seen, [(1, RejectionKind::Malformed, "malformed"), (2, RejectionKind::Rejected, "late")]);
}

#[test]
fn rejections_of_other_records_are_no_answer() {
    let reason = |rejections| check_rejections(&[2, 5, 9], rejections).unwrap_err().refusal.reason;
    assert!(reason(vec![rejection(3, "x")]).contains("record 3, which the module was not asked about"));
    assert!(reason(vec![rejection(u32::MAX, "x")]).contains("was not asked about"));
    assert!(reason(vec![rejection(5, "x"), rejection(5, "x")]).contains("record 5 is repeated"));
    assert!(reason(vec![rejection(9, "x"), rejection(2, "x")]).contains("record 2 is repeated or out of"));
}

#[test]
fn codes_fields_and_reasons_are_made_safe() {
    let given = GuestRejection {
        index: 0,
        code: format!("Über Limit\n{}", "x".repeat(100)),
        field: Some("a\0b".to_owned()),
        reason: "ä".repeat(2000),
    };
    let refusal = Refusal::from_guest(given);
    assert!(refusal.code.starts_with("_ber_Limit_xxx"), "{}", refusal.code);
    assert_eq!(refusal.code.len(), CODE_BYTES);
    assert_eq!(refusal.field.as_deref(), Some("a b"));
    assert!(refusal.reason.len() <= REASON_BYTES && refusal.reason.ends_with("ä…"));
    assert_eq!(Refusal::from_guest(rejection(0, "")).code, "rejected");
}

#[test]
fn good_rows_pass_as_they_are() {
    let answer = check(rows(&[1, 0, 2, 0], &[2, 4], &[0, 2]), rows(b"\x01a", &[2], &[1, 0])).unwrap();
    assert_eq!(answer.refusals, []);
    assert_eq!(answer.outputs[0].rows_per_record, [0, 2]);
    assert_eq!(answer.outputs[1].bytes, b"\x01a");
}

#[test]
fn lists_that_disagree_are_no_answer() {
    assert!(fault(rows(&[1, 0], &[2], &[1])).contains("1 entries for 2 records"));
    assert!(fault(rows(&[1, 0], &[2], &[1, 1])).contains("counts 2 rows, row-ends has 1"));
    assert!(fault(rows(&[1, 0], &[2], &[u32::MAX, 1])).contains("counts 4294967296 rows"));
    assert!(fault(rows(&[1, 0, 2, 0], &[4, 2], &[1, 1])).contains("row 1 ends at 2, before"));
    assert!(fault(rows(&[1, 0, 2, 0], &[2, 3], &[1, 1])).contains("ends at 3, the bytes at 4"));
    assert!(fault(rows(&[1, 0], &[2, 4], &[1, 1])).contains("ends at 4, the bytes at 2"));
    assert!(fault(rows(&[1, 0], &[], &[0, 0])).contains("ends at 0, the bytes at 2"));
    let fault = check_mapped(&outputs(), LIMITS, &[4], vec![], []).unwrap_err();
    assert_eq!(fault.refusal.reason, "rows for 0 outputs, but init declared 2");
}

#[test]
fn a_bad_row_makes_its_record_a_suspect() {
    let fault = check(rows(&[1, 0, 9, 2, 0], &[3, 5], &[1, 1]), rows(b"\x01a\x01b", &[2, 4], &[1, 1]));
    let Fault { refusal, suspects } = fault.unwrap_err();
    assert_eq!(suspects, [0]);
    assert_eq!((refusal.kind, refusal.code.as_str()), (RejectionKind::BadRow, "bad_row"));
    assert_eq!(refusal.reason, "output `numbers`: the columns take 2 bytes, the row has 3");
}

#[test]
fn a_row_that_ends_too_early_makes_its_neighbour_a_suspect_too() {
    let fault = check(rows(&[], &[], &[0, 0]), rows(b"\x01a\x01b", &[1, 4], &[1, 1])).unwrap_err();
    assert_eq!(fault.suspects, [0, 1]);
}

#[test]
fn a_record_is_a_suspect_once_however_many_outputs_are_bad() {
    let fault = check(rows(&[1], &[1], &[0, 1]), rows(b"\x09a", &[2], &[0, 1])).unwrap_err();
    assert_eq!(fault.suspects, [1]);
    assert!(fault.refusal.reason.contains("`numbers`"));
}

#[test]
fn a_rejected_record_has_no_rows() {
    let given = vec![rows(&[1, 0], &[2], &[0, 1]), rows(b"", &[], &[0, 0])];
    let fault = check_mapped(&outputs(), LIMITS, &[4, 7], given, [rejection(7, "x")]).unwrap_err();
    assert_eq!(fault.suspects, [1]);
    assert_eq!(fault.refusal.reason, "a record is rejected and yet has rows in output `numbers`");
}

#[test]
fn output_limits_obeyed_and_violated() {
    let limits = AnswerLimits { rows_per_record: 2, output_bytes_per_record: 6 };
    let check = |numbers: OutputRows, texts: OutputRows| {
        check_mapped(&outputs(), limits, &[0], vec![numbers, texts], []).err().map(|fault| fault.refusal.code)
    };
    let two = || rows(&[1, 0, 2, 0], &[2, 4], &[2]);
    assert_eq!(check(two(), rows(b"\x01a", &[2], &[1])), None);
    assert_eq!(check(two(), rows(b"\x02ab", &[3], &[1])).as_deref(), Some("output_too_large"));
    let three = rows(&[1, 0, 2, 0, 3, 0], &[2, 4, 6], &[3]);
    assert_eq!(check(three, rows(b"", &[], &[0])).as_deref(), Some("too_many_rows"));
}

/// Rows for `records` records that are nearly those of [`outputs`], so that some of the answers are good
/// and the others are wrong in any of its lists.
fn any_rows(records: usize, row: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = OutputRows> {
    let rows = prop::collection::vec(prop::collection::vec(row, 0..3), records);
    let lie = prop::option::weighted(0.3, (0..3usize, any::<prop::sample::Index>(), any::<u32>()));
    (rows, lie).prop_map(|(rows, lie)| {
        let mut given = OutputRows { bytes: Vec::new(), row_ends: Vec::new(), rows_per_record: Vec::new() };
        for rows in rows {
            given.rows_per_record.push(rows.len() as u32);
            for row in rows {
                given.bytes.extend(row);
                given.row_ends.push(given.bytes.len() as u32);
            }
        }
        let list = match lie {
            Some((0, ..)) => &mut given.row_ends,
            Some((1, ..)) => &mut given.rows_per_record,
            Some((_, place, value)) => {
                let end = place.index(given.bytes.len() + 1);
                given.bytes.resize(end, value as u8);
                return given;
            }
            None => return given,
        };
        if let Some((_, place, value)) = lie.filter(|_| !list.is_empty()) {
            // Small ones are likelier to be overlooked than those that are beyond everything.
            let place = place.index(list.len());
            list[place] = if value % 2 == 0 { value } else { value % 8 };
        }
        given
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever a mapper says: nothing panics, and what is taken is what the flow relies on.
    #[test]
    fn any_answer_is_refused_or_sound(
        selected in prop::collection::btree_set(0..12u32, 4..=4),
        numbers in any_rows(4, prop::collection::vec(any::<u8>(), 2..=2)),
        texts in any_rows(4, prop_oneof![
            9 => prop::collection::vec(any::<u8>(), 0..5).prop_map(|text| [&[text.len() as u8][..], &text[..]].concat()),
            1 => prop::collection::vec(any::<u8>(), 0..5),
        ]),
        rejected in prop::collection::vec(0..12u32, 0..3),
    ) {
        let selected: Vec<u32> = selected.into_iter().collect();
        let rejections = rejected.iter().map(|index| rejection(*index, "code"));
        let outputs = outputs();
        match check_mapped(&outputs, LIMITS, &selected, vec![numbers, texts], rejections) {
            Ok(answer) => {
                let refused: Vec<usize> = answer.refusals.iter().map(|(position, _)| *position).collect();
                prop_assert!(refused.is_sorted_by(|one, next| one < next));
                prop_assert!(refused.iter().all(|position| rejected.contains(&selected[*position])));
                for (output, rows) in outputs.iter().zip(&answer.outputs) {
                    prop_assert_eq!(rows.rows_per_record.len(), selected.len());
                    prop_assert!(refused.iter().all(|position| rows.rows_per_record[*position] == 0));
                    let count: u32 = rows.rows_per_record.iter().sum();
                    prop_assert_eq!(count as usize, rows.row_ends.len());
                    let mut start = 0;
                    for end in &rows.row_ends {
                        let row = &rows.bytes[start..*end as usize];
                        prop_assert_eq!(output.walk_row(row), Ok(row.len()));
                        start = *end as usize;
                    }
                    prop_assert_eq!(start, rows.bytes.len());
                }
            }
            Err(Fault { refusal, suspects }) => {
                prop_assert_eq!(refusal.kind, RejectionKind::BadRow);
                prop_assert!(suspects.is_sorted_by(|one, next| one < next));
                prop_assert!(suspects.iter().all(|position| *position < selected.len()));
            }
        }
    }
}
