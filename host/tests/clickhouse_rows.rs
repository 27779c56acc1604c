//! Rows as JSON against ClickHouse itself: what people are shown of a row is what the table would show.

#[path = "support/clickhouse.rs"]
#[allow(dead_code, reason = "this test needs a part of it")]
mod support;

use clickhouse::Client;
use serde_json::{Map, Value};
use sluice::domain::row::{ColumnDefinition, ColumnType, Output};

/// A type, and an expression of ClickHouse's SQL that makes a value of it of the row number `n`, the ends of
/// its range among them.
const COLUMNS: [(&str, &str); 41] = [
    ("Int8", "toInt8(n * 37)"),
    ("Int16", "toInt16(n * 4099)"),
    ("Int32", "toInt32(n * 268435399)"),
    ("Int64", "if(n = 0, toInt64(-9223372036854775808), toInt64(cityHash64(n)))"),
    (
        "Int128",
        "toInt128(cityHash64(n)) * toInt128(if(n % 2 = 0, -9223372036854775807, 9223372036854775807))",
    ),
    (
        "Int256",
        "toInt256(cityHash64(n)) * toInt256('-57896044618658097711785492504343953926634992332820282')",
    ),
    ("UInt8", "toUInt8(n * 37)"),
    ("UInt16", "toUInt16(n * 4099)"),
    ("UInt32", "toUInt32(cityHash64(n))"),
    ("UInt64", "if(n = 0, 18446744073709551615, cityHash64(n))"),
    ("UInt128", "toUInt128('340282366920938463463374607431768211455') - n"),
    (
        "UInt256",
        "toUInt256('115792089237316195423570985008687907853269984665640564039457584007913129639935') - n",
    ),
    ("Float32", "toFloat32(n / 7 - 3)"),
    ("Float64", "multiIf(n = 0, nan, n = 1, inf, n = 2, -inf, exp(n - 20) / 3)"),
    ("Bool", "n % 2 = 1"),
    ("String", "multiIf(n = 0, '', n = 1, 'a \"quote\" \\\\ \\n', n = 2, repeat('ü', 100), toString(n))"),
    ("FixedString(5)", "toFixedString(toString(n), 5)"),
    ("Date", "toDate(n * 3000 % 65536)"),
    ("Date32", "toDate32('1900-01-01') + n * 3500"),
    ("DateTime", "toDateTime(n * 100000000)"),
    ("DateTime('UTC')", "toDateTime(n * 100000000, 'UTC')"),
    ("DateTime64(0)", "toDateTime64(n * 250000000, 0)"),
    ("DateTime64(3, 'UTC')", "toDateTime64('1900-01-01 00:00:00.001', 3, 'UTC') + toIntervalDay(n * 3500)"),
    ("DateTime64(9, 'UTC')", "toDateTime64('1969-12-31 23:59:59.999999999', 9, 'UTC') + toIntervalSecond(n)"),
    ("UUID", "reinterpretAsUUID(reinterpretAsFixedString(toUInt128(cityHash64(n)) * 18446744073709551557))"),
    ("IPv4", "toIPv4(toUInt32(cityHash64(n)))"),
    (
        "IPv6",
        "multiIf(n = 0, toIPv6('::'), n = 1, toIPv6('::ffff:1.2.3.4'), n = 2, toIPv6('2001:db8:0:1::1'), toIPv6('fe80::1'))",
    ),
    ("Decimal(9, 2)", "toDecimal32(toInt32(n) - 20, 2) / 8"),
    ("Decimal(18, 4)", "toDecimal64(toInt64(n) - 20, 4) / 3"),
    ("Decimal(38, 10)", "toDecimal128(toInt64(n) - 20, 10) / 7"),
    ("Decimal(76, 20)", "toDecimal256(toInt64(n) - 20, 20) / 7"),
    ("Enum8('a' = -128, 'b' = 0, 'c' = 127)", "transform(n % 3, [0, 1, 2], ['a', 'b', 'c'], 'a')"),
    ("Enum16('a' = -300, 'b' = 300)", "if(n % 2 = 0, 'a', 'b')"),
    ("Nullable(UInt16)", "if(n % 2 = 0, NULL, n)"),
    ("LowCardinality(Nullable(String))", "if(n % 3 = 0, NULL, toString(n % 5))"),
    ("Array(Nullable(String))", "arrayMap(i -> if(i % 3 = 1, NULL, toString(i)), range(n % 200))"),
    ("Array(Array(Int16))", "[[], [toInt16(n)], [1, -2]]"),
    ("Map(String, UInt64)", "map('a', n, 'b', 18446744073709551615)"),
    ("Map(UInt8, Array(String))", "map(1, ['x'], 2, [])"),
    ("Tuple(UInt8, String)", "(n, toString(n))"),
    (
        "Tuple(a UInt8, b Tuple(c Decimal(9, 2), d Nullable(String)))",
        "(n, (toDecimal32(toInt32(n), 2), NULL))",
    ),
];

/// As [`Output::row_to_json`] says that it shows a row, but that integers of 64 bits are quoted too: that
/// setting holds for all wider ones, and a JSON number would lose their digits in this test.
const FORMAT: &str = "SETTINGS session_timezone = 'UTC', output_format_json_quote_64bit_integers = 1, \
                      output_format_json_quote_decimals = 1, output_format_decimal_trailing_zeros = 1, \
                      output_format_json_named_tuples_as_objects = 1, output_format_json_quote_denormals = 1, \
                      date_time_output_format = 'simple'";

fn output() -> Output {
    let column = |(index, (type_name, _)): (usize, &(&str, &str))| ColumnDefinition {
        name: format!("c{index}"),
        column_type: ColumnType::parse(type_name).expect("a column type"),
    };
    Output { name: "rows".into(), columns: COLUMNS.iter().enumerate().map(column).collect() }
}

async fn fetch(client: &Client, format: &str, type_and_value: &[String]) -> Vec<u8> {
    let sql = format!(
        "SELECT {} FROM (SELECT number AS n FROM numbers(40)) ORDER BY n {FORMAT}",
        type_and_value.join(", ")
    );
    let mut cursor = client.query_raw(&sql).fetch_bytes(format).expect("the query is sent");
    cursor.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}")).to_vec()
}

/// Floats are read from JSON a step beside what they say at times, and integers of 64 bits are quoted on one side.
fn is_same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Number(ours), Value::Number(theirs)) => {
            let (ours, theirs) = (ours.as_f64().expect("a float"), theirs.as_f64().expect("a float"));
            (ours - theirs).abs() <= theirs.abs() * 1e-15
        }
        (Value::Number(ours), Value::String(theirs)) => ours.to_string() == *theirs,
        (Value::Array(ours), Value::Array(theirs)) => {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| is_same(ours, theirs))
        }
        (Value::Object(ours), Value::Object(theirs)) => {
            ours.keys().eq(theirs.keys())
                && ours.values().zip(theirs.values()).all(|(ours, theirs)| is_same(ours, theirs))
        }
        _ => ours == theirs,
    }
}

#[tokio::test]
async fn a_row_is_shown_as_clickhouse_shows_it() {
    let client = support::database("rows").await.client();
    let columns: Vec<String> = COLUMNS
        .iter()
        .enumerate()
        .map(|(index, (type_name, value))| {
            format!("CAST({value}, '{}') AS c{index}", type_name.replace('\\', "\\\\").replace('\'', "\\'"))
        })
        .collect();
    let output = output();
    let binary = fetch(&client, "RowBinary", &columns).await;
    let json = String::from_utf8(fetch(&client, "JSONEachRow", &columns).await).expect("UTF-8");
    let mut rest = binary.as_slice();
    let mut rows = 0;
    for line in json.lines() {
        let theirs: Map<String, Value> = serde_json::from_str(line).expect("JSON");
        let length = output.walk_row(rest).unwrap_or_else(|fault| panic!("{fault}: {line}"));
        let ours = output.row_to_json(&rest[..length]).expect("a row that was walked is one");
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for column in &output.columns {
            let (ours, theirs) = (&ours[&column.name], &theirs[&column.name]);
            let name = &column.column_type;
            assert!(is_same(ours, theirs), "{name}: we show {ours}, ClickHouse {theirs}");
        }
        // What ClickHouse shows can be written into a golden case as it is.
        assert_eq!(output.differences(&theirs, &ours, true), []);
        rest = &rest[length..];
        rows += 1;
    }
    assert_eq!((rows, rest.len()), (40, 0));
}
