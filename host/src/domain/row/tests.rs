//! Rows against a naive model: values are made as trees and encoded one by one, and the walk must
//! take exactly their bytes, whatever the plan merged.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A type with one of its values in RowBinary, written the plain way.
type Sample = (String, Vec<u8>);

fn text() -> impl Strategy<Value = Vec<u8>> {
    // Lengths on both sides of the one-byte lengths.
    prop_oneof![4 => vec(any::<u8>(), 0..8), 1 => vec(any::<u8>(), 120..140)]
}

fn encoded_length(length: usize) -> Vec<u8> {
    if length < 128 { vec![length as u8] } else { vec![(length % 128) as u8 | 128, (length / 128) as u8] }
}

fn scalar() -> impl Strategy<Value = Sample> {
    let plain = prop_oneof![
        Just(("UInt8", 1)),
        Just(("Int16", 2)),
        Just(("UInt32", 4)),
        Just(("Int64", 8)),
        Just(("UInt128", 16)),
        Just(("Int256", 32)),
        Just(("Float32", 4)),
        Just(("Float64", 8)),
        Just(("BFloat16", 2)),
        Just(("Date", 2)),
        Just(("DateTime('UTC')", 4)),
        Just(("UUID", 16)),
        Just(("IPv4", 4)),
        Just(("IPv6", 16)),
        Just(("FixedString(5)", 5)),
    ]
    .prop_flat_map(|(name, width)| (Just(name.to_owned()), vec(any::<u8>(), width)));
    prop_oneof![
        6 => plain,
        4 => text().prop_map(|value| {
            let mut bytes = encoded_length(value.len());
            bytes.extend(value);
            ("String".to_owned(), bytes)
        }),
        1 => any::<bool>().prop_map(|value| ("Bool".to_owned(), vec![u8::from(value)])),
        1 => (-25_567i32..=120_529).prop_map(|days| ("Date32".to_owned(), days.to_le_bytes().to_vec())),
        1 => (-2_208_988_800_000i64..10_413_792_000_000)
            .prop_map(|ticks| ("DateTime64(3)".to_owned(), ticks.to_le_bytes().to_vec())),
        1 => any::<i64>().prop_filter("1900", |ticks| *ticks >= -2_208_988_800_000_000_000)
            .prop_map(|ticks| ("DateTime64(9)".to_owned(), ticks.to_le_bytes().to_vec())),
        1 => (-3_599_999i32..=3_599_999).prop_map(|time| ("Time".to_owned(), time.to_le_bytes().to_vec())),
        1 => (-9_999i32..=9_999)
            .prop_map(|number| ("Decimal(4, 2)".to_owned(), number.to_le_bytes().to_vec())),
        1 => (-999_999_999_999i64..=999_999_999_999)
            .prop_map(|number| ("Decimal(12, 2)".to_owned(), number.to_le_bytes().to_vec())),
        1 => any::<i64>().prop_map(|number| {
            ("Decimal(20, 2)".to_owned(), i128::from(number).to_le_bytes().to_vec())
        }),
        1 => any::<i128>().prop_map(|number| {
            let mut bytes = number.to_le_bytes().to_vec();
            bytes.extend([if number < 0 { 0xff } else { 0 }; 16]);
            ("Decimal(40, 2)".to_owned(), bytes)
        }),
        1 => prop_oneof![Just(-128i8), Just(0), Just(127)].prop_map(|number| {
            ("Enum8('a' = -128, 'b' = 0, 'c' = 127)".to_owned(), number.to_le_bytes().to_vec())
        }),
        1 => prop_oneof![Just(-300i16), Just(7)].prop_map(|number| {
            ("Enum16('a' = -300, 'b' = 7)".to_owned(), number.to_le_bytes().to_vec())
        }),
    ]
}

/// Several values of one type cannot be drawn from samples of different types, so an array repeats
/// its element; what differs between elements is tried by the tests with fixed bytes below.
fn sample() -> impl Strategy<Value = Sample> {
    scalar().prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            (inner.clone(), any::<bool>()).prop_filter_map("no such Nullable", |((name, value), null)| {
                let forbidden = ["Nullable", "Array", "Map", "LowCardinality"];
                (!forbidden.iter().any(|prefix| name.starts_with(prefix))).then(|| {
                    let bytes = if null { vec![1] } else { [vec![0], value].concat() };
                    (format!("Nullable({name})"), bytes)
                })
            }),
            (inner.clone(), 0usize..140).prop_map(|((name, value), count)| {
                (format!("Array({name})"), [encoded_length(count), value.repeat(count)].concat())
            }),
            (inner.clone(), inner.clone(), 0usize..4).prop_map(|((key, a), (value, b), count)| {
                let pair = [a, b].concat();
                (format!("Map({key}, {value})"), [encoded_length(count), pair.repeat(count)].concat())
            }),
            vec(inner.clone(), 1..4).prop_map(|elements| {
                let names = elements.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
                let bytes = elements.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
                (format!("Tuple({names})"), bytes)
            }),
            inner.prop_map(|(name, bytes)| (format!("SimpleAggregateFunction(any, {name})"), bytes)),
        ]
    })
}

fn output(type_names: &[&str]) -> Output {
    let definition = |(index, name): (usize, &&str)| ColumnDefinition {
        name: format!("c{index}"),
        column_type: ColumnType::parse(name).unwrap(),
    };
    Output { name: "rows".into(), columns: type_names.iter().enumerate().map(definition).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_row_is_walked_to_its_end_and_a_part_of_it_is_none(
        samples in vec(sample(), 1..8), after in vec(any::<u8>(), 0..4), cut in any::<prop::sample::Index>(),
    ) {
        let names: Vec<&str> = samples.iter().map(|(name, _)| name.as_str()).collect();
        let output = output(&names);
        let mut row: Vec<u8> = samples.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let length = row.len();
        let cut = cut.index(length);
        row.extend(after);
        prop_assert_eq!(output.walk_row(&row), Ok(length));

        let fault = output.walk_row(&row[..cut]).unwrap_err();
        prop_assert!(fault.position <= cut);
        // The fault names the column whose bytes are not all there.
        let column: usize = fault.column[1..].parse().unwrap();
        let start: usize = samples[..column].iter().map(|(_, bytes)| bytes.len()).sum();
        prop_assert!(start <= cut && cut < start + samples[column].1.len(), "{} cut at {}", fault, cut);
    }

    #[test]
    fn any_bytes_are_walked_or_refused(
        samples in vec(sample(), 1..8), bytes in vec(any::<u8>(), 0..64), flip in any::<prop::sample::Index>(),
    ) {
        let names: Vec<&str> = samples.iter().map(|(name, _)| name.as_str()).collect();
        let output = output(&names);
        if let Ok(end) = output.walk_row(&bytes) {
            prop_assert!(end <= bytes.len());
        }
        let mut row: Vec<u8> = samples.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let flip = flip.index(row.len());
        row[flip] ^= 0xff;
        if let Ok(end) = output.walk_row(&row) {
            prop_assert!(end <= row.len());
        }
    }

    #[test]
    fn what_is_encoded_is_walked(value in text(), number in any::<u64>()) {
        let mut row = Vec::new();
        encode_string(&mut row, &value);
        encode_u64(&mut row, number);
        encode_u32(&mut row, number as u32);
        encode_i64(&mut row, number as i64);
        encode_i32(&mut row, number as i32);
        let length = row.len();
        prop_assert_eq!(output(&["String", "UInt64", "UInt32", "Int64", "Int32"]).walk_row(&row), Ok(length));
        row.clear();
        encode_length(&mut row, number);
        prop_assert!(row.len() <= 10);
    }
}

fn fault(type_names: &[&str], bytes: &[u8]) -> String {
    output(type_names).walk_row(bytes).unwrap_err().to_string()
}

#[test]
fn elements_of_different_lengths_are_each_walked() {
    let bytes = b"\x03\x00\x01a\x02bcrest";
    assert_eq!(output(&["Array(String)"]).walk_row(bytes), Ok(7));
    let bytes = b"\x03\x01\x00\x01a\x01rest";
    assert_eq!(output(&["Array(Nullable(String))"]).walk_row(bytes), Ok(6));
    let bytes = b"\x02\x01k\x02\x07\x00\x08\x00\x00\x00rest";
    assert_eq!(output(&["Map(String, Array(UInt16))"]).walk_row(bytes), Ok(10));
}

#[test]
fn hostile_lengths_and_counts_fail_at_once() {
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]; // 2^60
    let with = |rest: usize| [huge.as_slice(), &vec![0; rest]].concat();
    assert!(fault(&["String"], &with(9)).contains("1152921504606846976 bytes are due, 9 are left"));
    for element in ["UInt8", "UInt256", "String", "Array(UInt8)", "Nullable(UInt64)", "Tuple(String, UInt8)"]
    {
        let message = fault(&[&format!("Array({element})")], &with(1000));
        assert!(message.contains("column `c0`") && message.contains(" are due"), "{message}");
    }
    assert!(fault(&["Map(String, String)"], &with(1000)).contains("elements of at least 2 bytes"));
    let deep = format!("{}String{}", "Array(".repeat(32), ")".repeat(32));
    assert!(output(&[&deep]).walk_row(&vec![1; 1 << 16]).is_ok());
    assert!(fault(&[&deep], &[1; 33]).contains("are due"));
    // A million arrays, each of one empty array, and so on: time follows the bytes.
    let mut wide = Vec::new();
    encode_length(&mut wide, 1 << 20);
    wide.extend(vec![0; 1 << 20]);
    assert_eq!(output(&["Array(Array(Array(UInt8)))"]).walk_row(&wide), Ok(wide.len()));
    assert!(fault(&["Array(UInt64)"], &[0xff; 12]).contains("does not fit into 64 bits"));
    assert!(fault(&["String"], &[0x80; 12]).contains("does not fit into 64 bits"));
    assert!(fault(&["String"], &[0x80; 4]).contains("5 bytes are due, 4 are left"));
    assert_eq!(output(&["String"]).walk_row(&[0x81, 0x80, 0x00, b'a']), Ok(4));
}

#[test]
fn values_that_clickhouse_would_misread_are_faults() {
    let hundred = [100u8, 0, 0, 0, 0, 0, 0, 0];
    let limit = |digits: u32| 10i128.pow(digits).to_le_bytes();
    let wide = |number: i128| [number.to_le_bytes(), [if number < 0 { 0xff } else { 0 }; 16]].concat();
    for (type_name, bytes, problem) in [
        ("Bool", &[2u8][..], "2 is not a Bool"),
        ("Nullable(UInt8)", &[2, 0], "2 is not a null flag"),
        ("Enum8('a' = 1, 'b' = -1)", &[0], "the Enum has no value 0"),
        ("Enum8('a' = 1, 'b' = -1)", &[0x80], "the Enum has no value -128"),
        ("Enum16('a' = 300)", &[1, 0], "the Enum has no value 1"),
        ("Date32", &120_530i32.to_le_bytes(), "beyond the range"),
        ("Date32", &(-25_568i32).to_le_bytes(), "beyond the range"),
        ("DateTime64(3)", &10_413_792_000_000i64.to_le_bytes(), "beyond the range"),
        ("DateTime64(0)", &(-2_208_988_801i64).to_le_bytes(), "beyond the range"),
        ("Time", &3_600_000i32.to_le_bytes(), "beyond the range"),
        ("Time64(3)", &(-3_600_000_000i64).to_le_bytes(), "beyond the range"),
        ("Decimal(2, 0)", &hundred[..4], "beyond the range"),
        ("Decimal(18, 0)", &limit(18)[..8], "beyond the range"),
        ("Decimal(20, 0)", &limit(20), "beyond the range"),
        ("Decimal(38, 0)", &i128::MIN.to_le_bytes(), "beyond the range"),
        ("Decimal(39, 0)", &[[0; 31].as_slice(), &[0x80]].concat(), "beyond the range"),
        ("Decimal(76, 0)", &[[0xff; 31].as_slice(), &[0x7f]].concat(), "beyond the range"),
    ] {
        let message = fault(&["UInt8", type_name], &[[9].as_slice(), bytes].concat());
        assert!(message.starts_with("column `c1`, byte 1 of the row:"), "{message}");
        assert!(message.contains(problem), "{type_name}: {message}");
    }
    // The last values within.
    let ok =
        |type_name: &str, bytes: &[u8]| assert_eq!(output(&[type_name]).walk_row(bytes), Ok(bytes.len()));
    ok("Decimal(2, 0)", &(-99i32).to_le_bytes());
    ok("Decimal(38, 0)", &(-(10i128.pow(38) - 1)).to_le_bytes());
    ok("Decimal(39, 0)", &wide(i128::MIN));
    ok("DateTime64(9)", &i64::MAX.to_le_bytes());
    ok("String", b"\x02\xff\xfe");
}

#[test]
fn the_column_that_is_cut_off_is_named() {
    let types = ["UInt8", "UInt32", "Tuple(UInt8, String)", "UInt16", "Tuple(String, UInt8)", "UInt64"];
    let row = [1, 2, 0, 0, 0, 3, 1, b'a', 4, 0, 1, b'b', 5, 6, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(output(&types).walk_row(&row), Ok(row.len()));
    for (cut, expected) in [
        (0, "column `c0`, byte 0 of the row: 1 bytes are due, 0 are left"),
        (3, "column `c1`, byte 1 of the row: 4 bytes are due, 2 are left"),
        (5, "column `c2`, byte 5 of the row: 1 bytes are due, 0 are left"),
        (7, "column `c2`, byte 7 of the row: 1 bytes are due, 0 are left"),
        (9, "column `c3`, byte 8 of the row: 2 bytes are due, 1 are left"),
        (12, "column `c4`, byte 12 of the row: 1 bytes are due, 0 are left"),
        (20, "column `c5`, byte 13 of the row: 8 bytes are due, 7 are left"),
    ] {
        assert!(fault(&types, &row[..cut]).starts_with(expected), "{}", fault(&types, &row[..cut]));
    }
}

#[test]
fn no_columns_take_no_bytes() {
    assert_eq!(output(&[]).walk_row(b"x"), Ok(0));
}
