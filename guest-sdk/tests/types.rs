//! Every column type through `#[derive(Row)]`, the mapper's adapter and back.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_sdk::testing::{self, record};
use sluice_sdk::{
    Date, Date32, DateTime, DateTime64, Decimal, Enum8, Enum16, FixedString, LowCardinality, Map, Mapper,
    NoSettings, Output, Outputs, Record, Rejection, Row, ServerZone, Timestamp, Tuple, Uuid, Value, Zone,
};

#[derive(Clone, Copy, Enum8)]
enum Level {
    Low = -128,
    #[row(rename = "it's, high")]
    High = 127,
}

#[derive(Clone, Copy, Enum16)]
enum Size {
    Small,
    Huge = 32_767,
}

#[derive(Tuple)]
struct Point<T> {
    x: T,
    #[row(rename = "the y")]
    y: Option<T>,
}

struct Berlin;

impl Zone for Berlin {
    const NAME: Option<&'static str> = Some("Europe/Berlin");
}

#[derive(Row)]
#[row(output = "everything")]
struct Everything<'a> {
    int8: i8,
    int16: i16,
    int32: i32,
    int64: i64,
    int128: i128,
    uint8: u8,
    uint16: u16,
    uint32: u32,
    uint64: u64,
    uint128: u128,
    float32: f32,
    float64: f64,
    boolean: bool,
    string: String,
    text: &'a str,
    cow: Cow<'a, str>,
    bytes: &'a [u8],
    owned_bytes: Vec<u8>,
    fixed: FixedString<4>,
    date: Date,
    date32: Date32,
    date_time: DateTime,
    date_time_here: DateTime<ServerZone>,
    date_time64: DateTime64<3>,
    date_time64_berlin: DateTime64<9, Berlin>,
    uuid: Uuid,
    decimal32: Decimal<9, 2>,
    decimal64: Decimal<18, 4>,
    decimal128: Decimal<38, 0>,
    level: Level,
    size: Size,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
    present: Option<&'a str>,
    absent: Option<u64>,
    nullable_level: Option<Level>,
    low: LowCardinality<&'a str>,
    low_nullable: LowCardinality<Option<&'a str>>,
    array: Vec<u16>,
    slice: &'a [Option<i8>],
    nested: Vec<Vec<&'a str>>,
    map: Map<&'a str, u8>,
    tree: BTreeMap<String, Vec<u8>>,
    table: HashMap<u8, Option<bool>>,
    pair: (u8, &'a str),
    point: Point<i32>,
    points: Vec<Point<u8>>,
    #[row(type = "Array(UInt8)")]
    byte_array: Vec<u8>,
    #[row(rename = "type")]
    kind: &'a str,
    r#final: bool,
}

fn everything<'a>() -> Everything<'a> {
    let moment = Timestamp::parse("2026-01-31T13:45:00.123456789Z").unwrap();
    Everything {
        int8: i8::MIN,
        int16: i16::MIN,
        int32: i32::MIN,
        int64: i64::MIN,
        int128: i128::MIN,
        uint8: u8::MAX,
        uint16: u16::MAX,
        uint32: u32::MAX,
        uint64: u64::MAX,
        uint128: u128::MAX,
        float32: 1.5,
        float64: -0.1,
        boolean: true,
        string: "é".repeat(100),
        text: "",
        cow: Cow::Borrowed("cow"),
        bytes: b"\0a",
        owned_bytes: vec![b'b'],
        fixed: FixedString::new("abcd").unwrap(),
        date: Date::new(2149, 6, 6).unwrap(),
        date32: Date32::new(1900, 1, 1).unwrap(),
        date_time: DateTime::try_from(moment).unwrap(),
        date_time_here: DateTime::from_seconds(0).unwrap(),
        date_time64: DateTime64::try_from(moment).unwrap(),
        date_time64_berlin: DateTime64::try_from(moment).unwrap(),
        uuid: Uuid::parse("61f0c404-5cb3-11e7-907b-a6006ad3dba0").unwrap(),
        decimal32: Decimal::from_units(-1).unwrap(),
        decimal64: Decimal::parse("123456.7").unwrap(),
        decimal128: Decimal::from_units(10i128.pow(37)).unwrap(),
        level: Level::High,
        size: Size::Huge,
        ipv4: Ipv4Addr::new(1, 2, 3, 4),
        ipv6: "2001:db8::1".parse().unwrap(),
        present: Some("x"),
        absent: None,
        nullable_level: Some(Level::Low),
        low: LowCardinality("low"),
        low_nullable: LowCardinality(None),
        array: vec![1, 2],
        slice: &[Some(-1), None],
        nested: vec![vec!["a", "b"], vec![]],
        map: Map(vec![("b", 2), ("a", 1)]),
        tree: BTreeMap::from([("k".to_owned(), vec![b'v'])]),
        table: HashMap::from([(2, Some(true)), (1, None)]),
        pair: (7, "seven"),
        point: Point { x: -1, y: None },
        points: vec![Point { x: 1, y: Some(2) }],
        byte_array: vec![1, 2],
        kind: "kind",
        r#final: false,
    }
}

struct Everyone;

impl Mapper for Everyone {
    type Settings = NoSettings;
    type Outputs = Output<Everything<'static>>;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, _: &Record<'_>, out: &mut Self::Outputs) -> Result<(), Rejection> {
        out.emit(everything());
        Ok(())
    }
}

/// Column, type, and the value of [`everything`] as ClickHouse shows it.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("int8", "Int8", "-128"),
    ("int16", "Int16", "-32768"),
    ("int32", "Int32", "-2147483648"),
    ("int64", "Int64", "-9223372036854775808"),
    ("int128", "Int128", "-170141183460469231731687303715884105728"),
    ("uint8", "UInt8", "255"),
    ("uint16", "UInt16", "65535"),
    ("uint32", "UInt32", "4294967295"),
    ("uint64", "UInt64", "18446744073709551615"),
    ("uint128", "UInt128", "340282366920938463463374607431768211455"),
    ("float32", "Float32", "1.5"),
    ("float64", "Float64", "-0.1"),
    ("boolean", "Bool", "true"),
    ("text", "String", ""),
    ("cow", "String", "cow"),
    ("bytes", "String", "\0a"),
    ("owned_bytes", "String", "b"),
    ("fixed", "FixedString(4)", "abcd"),
    ("date", "Date", "2149-06-06"),
    ("date32", "Date32", "1900-01-01"),
    ("date_time", "DateTime('UTC')", "2026-01-31 13:45:00"),
    ("date_time_here", "DateTime", "1970-01-01 00:00:00"),
    ("date_time64", "DateTime64(3, 'UTC')", "2026-01-31 13:45:00.123"),
    ("date_time64_berlin", "DateTime64(9, 'Europe/Berlin')", "2026-01-31 13:45:00.123456789"),
    ("uuid", "UUID", "61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
    ("decimal32", "Decimal(9, 2)", "-0.01"),
    ("decimal64", "Decimal(18, 4)", "123456.7000"),
    ("decimal128", "Decimal(38, 0)", "10000000000000000000000000000000000000"),
    ("level", "Enum8('Low' = -128, 'it\\'s, high' = 127)", "it's, high"),
    ("size", "Enum16('Small' = 0, 'Huge' = 32767)", "Huge"),
    ("ipv4", "IPv4", "1.2.3.4"),
    ("ipv6", "IPv6", "2001:db8::1"),
    ("present", "Nullable(String)", "x"),
    ("absent", "Nullable(UInt64)", "NULL"),
    ("nullable_level", "Nullable(Enum8('Low' = -128, 'it\\'s, high' = 127))", "Low"),
    ("low", "LowCardinality(String)", "low"),
    ("low_nullable", "LowCardinality(Nullable(String))", "NULL"),
    ("array", "Array(UInt16)", "[1, 2]"),
    ("slice", "Array(Nullable(Int8))", "[-1, NULL]"),
    ("nested", "Array(Array(String))", "[[a, b], []]"),
    ("map", "Map(String, UInt8)", "{b: 2, a: 1}"),
    ("tree", "Map(String, String)", "{k: v}"),
    ("table", "Map(UInt8, Nullable(Bool))", "{1: NULL, 2: true}"),
    ("pair", "Tuple(UInt8, String)", "(7, seven)"),
    ("point", "Tuple(x Int32, `the y` Nullable(Int32))", "(-1, NULL)"),
    ("points", "Array(Tuple(x UInt8, `the y` Nullable(UInt8)))", "[(1, 2)]"),
    ("byte_array", "Array(UInt8)", "[1, 2]"),
    ("type", "String", "kind"),
    ("final", "Bool", "false"),
];

#[test]
fn every_type_has_its_name_and_comes_back_as_it_was() {
    let mapped = testing::map::<Everyone>("{}", [record("x")]);
    let row = mapped.rows("everything")[0];
    let columns = testing::columns::<Everyone>();
    assert_eq!(columns.len(), EXPECTED.len() + 1);
    for (name, type_name, value) in EXPECTED {
        assert!(
            columns.contains(&("everything".into(), (*name).into(), (*type_name).into())),
            "{name} {type_name} in {columns:?}"
        );
        assert_eq!(&row[*name], *value, "{name}");
    }
    // A length of two bytes.
    assert_eq!(&row["string"], "é".repeat(100));
}

#[derive(Row)]
#[row(output = "good")]
struct Good<T> {
    word: T,
}

#[derive(Row)]
#[row(output = "letters")]
struct Letter {
    letter: u8,
}

#[derive(Outputs)]
struct Words {
    words: Output<Good<String>>,
    letters: Output<Letter>,
}

/// A word, and a row for each of its letters up to an exclamation mark, which is refused.
struct Spelling;

impl Mapper for Spelling {
    type Settings = NoSettings;
    type Outputs = Words;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, record: &Record<'_>, out: &mut Words) -> Result<(), Rejection> {
        let word = record.payload().unwrap_or_default();
        if !word.is_empty() {
            out.words.emit(&Good { word: String::from_utf8(word.to_vec()).unwrap() });
        }
        for &letter in word {
            if letter == b'!' {
                return Err(Rejection::new("loud", "no shouting"));
            }
            out.letters.emit(Letter { letter });
        }
        Ok(())
    }
}

#[test]
fn a_record_has_rows_in_several_outputs_and_a_rejected_one_in_none() {
    let mapped = testing::map::<Spelling>("{}", ["ab", "", "xy!", "!", "c"].map(record));
    let failed: Vec<bool> = mapped.verdicts.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, false, true, true, false]);
    let words: Vec<&str> = mapped.rows("good").iter().map(|row| &row["word"]).collect();
    assert_eq!(words, ["ab", "c"]);
    let letters: Vec<&str> = mapped.rows("letters").iter().map(|row| &row["letter"]).collect();
    assert_eq!(letters, ["97", "98", "99"]);
    let counts: Vec<usize> = (0..5).map(|record| mapped.rows_of("letters", record).len()).collect();
    assert_eq!(counts, [2, 0, 0, 0, 1]);
}

#[derive(Outputs)]
struct Twice {
    first: Output<Letter>,
    second: Output<Letter>,
}

struct Confused;

impl Mapper for Confused {
    type Settings = NoSettings;
    type Outputs = Twice;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, _: &Record<'_>, out: &mut Twice) -> Result<(), Rejection> {
        out.first.emit(Letter { letter: 1 });
        out.second.emit(Letter { letter: 2 });
        Ok(())
    }
}

#[test]
fn two_outputs_of_one_name_are_refused() {
    let error = testing::new_mapper::<Confused>("{}").err();
    assert_eq!(error.as_deref(), Some("two outputs are called `letters`: give each row type its own"));
}

struct Lying;

#[derive(Row)]
#[row(output = "lies")]
struct Lie {
    #[row(type = "UInt64")]
    small: u8,
}

impl Mapper for Lying {
    type Settings = NoSettings;
    type Outputs = Output<Lie>;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, _: &Record<'_>, out: &mut Self::Outputs) -> Result<(), Rejection> {
        out.emit(Lie { small: 1 });
        Ok(())
    }
}

#[test]
#[should_panic(expected = "column `small`: its bytes are no UInt64")]
fn a_type_that_does_not_fit_its_field_is_found_by_a_test() {
    testing::map::<Lying>("{}", [record("x")]);
}

#[test]
fn enums_keep_their_numbers() {
    let mut bytes = Vec::new();
    Level::Low.encode(&mut bytes);
    Size::Small.encode(&mut bytes);
    Size::Huge.encode(&mut bytes);
    assert_eq!(bytes, [0x80, 0, 0, 0xff, 0x7f]);
}
