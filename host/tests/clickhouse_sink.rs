//! The sink and the schema check against the real engine.

#[path = "support/clickhouse.rs"]
mod support;

use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use sluice::clickhouse::exception::CODES;
use sluice::clickhouse::schema::{SchemaError, TableSchema};
use sluice::clickhouse::settings::{ClickHouseSettings, TransferCompression};
use sluice::clickhouse::sink::{ClickHouseMetrics, ClickHouseSink};
use sluice::domain::retry::Retryability;
use sluice::domain::row::{ColumnDefinition, ColumnType, Output, encode_string};
use sluice::pipeline::ports::{InsertError, InsertRequest, Sink};
use support::{database, execute, text};

fn sink(settings: &ClickHouseSettings) -> (ClickHouseSink, Registry) {
    let registry = Registry::new();
    let metrics = ClickHouseMetrics::register(&registry).expect("the names are free");
    (ClickHouseSink::new(settings, metrics), registry)
}

fn output(columns: &[(&str, &str)]) -> Output {
    let definition = |(name, type_name): &(&str, &str)| ColumnDefinition {
        name: (*name).into(),
        column_type: ColumnType::parse(type_name).expect("the type is known"),
    };
    Output { name: "rows".into(), columns: columns.iter().map(definition).collect() }
}

/// Columns, each as its name and type apart by a space.
fn definitions(columns: &[&str]) -> Arc<[ColumnDefinition]> {
    let definition = |column: &&str| {
        let (name, of) = column.split_once(' ').expect("a name and a type");
        ColumnDefinition { name: name.into(), column_type: ColumnType::parse(of).expect("a type") }
    };
    columns.iter().map(definition).collect()
}

fn request(table: &str, columns: &[&str], rows: usize, body: &[u8], token: &str) -> InsertRequest {
    InsertRequest {
        table: table.into(),
        columns: definitions(columns),
        rows,
        body: bytes::Bytes::copy_from_slice(body),
        token: token.into(),
    }
}

/// A type, one of its values in RowBinary, and that value as SQL shows it.
fn samples() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let ticks = 1_704_067_200_123i64; // 2024-01-01 00:00:00.123 UTC
    let wide = |number: i128| [number.to_le_bytes(), [if number < 0 { 0xff } else { 0 }; 16]].concat();
    let uuid = b"\xe7\x11\xb3\x5c\x04\xc4\xf0\x61\xa0\xdb\xd3\x6a\x00\xa6\x7b\x90".to_vec();
    let mut address = vec![0; 16];
    address[15] = 1;
    vec![
        ("Int8", vec![0x80], "-128"),
        ("Int16", (-300i16).to_le_bytes().to_vec(), "-300"),
        ("Int32", (-70_000i32).to_le_bytes().to_vec(), "-70000"),
        ("Int64", i64::MIN.to_le_bytes().to_vec(), "-9223372036854775808"),
        ("Int128", (-7i128).to_le_bytes().to_vec(), "-7"),
        ("Int256", wide(-8), "-8"),
        ("UInt8", vec![255], "255"),
        ("UInt16", 65_535u16.to_le_bytes().to_vec(), "65535"),
        ("UInt32", u32::MAX.to_le_bytes().to_vec(), "4294967295"),
        ("UInt64", u64::MAX.to_le_bytes().to_vec(), "18446744073709551615"),
        ("UInt128", 9u128.to_le_bytes().to_vec(), "9"),
        ("UInt256", wide(10), "10"),
        ("Float32", 1.5f32.to_le_bytes().to_vec(), "1.5"),
        ("Float64", (-0.25f64).to_le_bytes().to_vec(), "-0.25"),
        ("BFloat16", vec![0x80, 0x3f], "1"),
        ("Bool", vec![1], "true"),
        ("String", b"\x05gr\xc3\xbcn".to_vec(), "grün"),
        ("FixedString(3)", b"abc".to_vec(), "abc"),
        ("Date", 19_723u16.to_le_bytes().to_vec(), "2024-01-01"),
        ("Date32", (-25_567i32).to_le_bytes().to_vec(), "1900-01-01"),
        ("DateTime('UTC')", 1_704_067_200u32.to_le_bytes().to_vec(), "2024-01-01 00:00:00"),
        ("DateTime64(3, 'UTC')", ticks.to_le_bytes().to_vec(), "2024-01-01 00:00:00.123"),
        ("DateTime64(0, 'UTC')", 10_413_791_999i64.to_le_bytes().to_vec(), "2299-12-31 23:59:59"),
        ("Time", 3_599_999i32.to_le_bytes().to_vec(), "999:59:59"),
        ("Time64(3)", (-3_599_999_999i64).to_le_bytes().to_vec(), "-999:59:59.999"),
        ("UUID", uuid, "61f0c404-5cb3-11e7-907b-a6006ad3dba0"),
        ("Decimal(9, 2)", (-12_345i32).to_le_bytes().to_vec(), "-123.45"),
        ("Decimal(18, 4)", 12_345i64.to_le_bytes().to_vec(), "1.2345"),
        ("Decimal(38, 1)", 12_345i128.to_le_bytes().to_vec(), "1234.5"),
        ("Decimal(76, 3)", wide(-12_345), "-12.345"),
        ("Enum8('a' = -1, 'it\\'s' = 2)", vec![2], "it's"),
        ("Enum16('a' = 300)", 300i16.to_le_bytes().to_vec(), "a"),
        ("IPv4", vec![1, 0, 0, 127], "127.0.0.1"),
        ("IPv6", address, "::1"),
        ("Nullable(UInt16)", vec![0, 1, 0], "1"),
        ("Nullable(String)", vec![1], "\\N"),
        ("LowCardinality(String)", b"\x01x".to_vec(), "x"),
        ("LowCardinality(Nullable(String))", b"\x00\x01y".to_vec(), "y"),
        ("Array(String)", b"\x02\x01a\x00".to_vec(), "['a','']"),
        ("Array(Array(Nullable(UInt8)))", vec![2, 2, 0, 5, 1, 0], "[[5,NULL],[]]"),
        ("Map(LowCardinality(String), UInt16)", b"\x01\x01k\x02\x01".to_vec(), "{'k':258}"),
        ("Tuple(a UInt8, `b c` String)", b"\x07\x01z".to_vec(), "(7,'z')"),
        ("Array(Tuple(UInt8, Tuple(String, Bool)))", b"\x01\x07\x01z\x00".to_vec(), "[(7,('z',false))]"),
        ("SimpleAggregateFunction(max, UInt64)", 11u64.to_le_bytes().to_vec(), "11"),
    ]
}

#[tokio::test]
async fn rows_of_every_type_are_read_back_as_they_were_sent() {
    let settings = database("round_trip").await;
    let client = settings.client();
    let samples = samples();
    let names: Vec<String> = (0..samples.len()).map(|index| format!("c`{index}")).collect();
    let columns: Vec<(&str, &str)> =
        names.iter().map(String::as_str).zip(samples.iter().map(|(name, ..)| *name)).collect();
    let definitions: Vec<String> =
        columns.iter().map(|(name, of)| format!("`{}` {of}", name.replace('`', "\\`"))).collect();
    let create = format!("CREATE TABLE t ({}) ENGINE = MergeTree ORDER BY ()", definitions.join(", "));
    let client = client.with_setting("enable_time_time64_type", "1");
    execute(&client, &create).await;

    // What DESCRIBE shows is what the parser prints, for every type.
    let described =
        text(&client, "SELECT type FROM system.columns WHERE database = 'round_trip' ORDER BY position")
            .await;
    let canonical: Vec<String> =
        samples.iter().map(|(name, ..)| ColumnType::parse(name).expect("known").to_string()).collect();
    assert_eq!(described.lines().collect::<Vec<_>>(), canonical);

    let output = output(&columns);
    let row: Vec<u8> = samples.iter().flat_map(|(_, bytes, _)| bytes.clone()).collect();
    assert_eq!(output.walk_row(&row), Ok(row.len()));
    for compression in [TransferCompression::Lz4, TransferCompression::None] {
        let (sink, _) = sink(&ClickHouseSettings { compression, ..settings.clone() });
        let bound = sink.bind("round_trip.t", &output).await.expect("the output fits");
        let request = InsertRequest {
            table: bound.table.clone(),
            columns: bound.columns.clone(),
            rows: 2,
            body: [row.clone(), row.clone()].concat().into(),
            token: format!("{compression:?}"),
        };
        sink.insert(request).await.expect("ClickHouse takes the rows");
    }
    for (name, (of, _, expected)) in names.iter().zip(&samples) {
        let column = name.replace('`', "\\`");
        let found = text(&client, &format!("SELECT `{column}` FROM t")).await;
        assert_eq!(found.lines().collect::<Vec<_>>(), [*expected; 4], "{of}");
    }
}

#[tokio::test]
async fn a_token_is_taken_once_and_a_batch_is_one_block() {
    let settings = database("tokens").await;
    let client = settings.client();
    let create = "CREATE TABLE t (a UInt8, s String) ENGINE = MergeTree ORDER BY () \
                  SETTINGS non_replicated_deduplication_window = 100";
    execute(&client, create).await;
    let (sink, registry) = sink(&settings);
    let few = |token: &str| request("t", &["s String", "a UInt8"], 2, b"\x01x\x01\x01y\x02", token);
    for token in ["one", "one", "two", "one", "two"] {
        sink.insert(few(token)).await.expect("ClickHouse takes the rows");
    }
    assert_eq!(text(&client, "SELECT count(), sum(a) FROM t").await, "4\t6");

    // More rows than ClickHouse puts into one block by itself, and more bytes than one send.
    execute(&client, "TRUNCATE TABLE t").await;
    let rows = 1_200_000;
    let body = b"\x01x\x01".repeat(rows);
    sink.insert(request("t", &["s String", "a UInt8"], rows, &body, "many"))
        .await
        .expect("ClickHouse takes the rows");
    let parts = "SELECT count(), sum(rows) FROM system.parts WHERE database = 'tokens' AND active";
    assert_eq!(text(&client, parts).await, format!("1\t{rows}"));

    let families = registry.gather();
    let value = |name: &str| {
        let family = families.iter().find(|family| family.name() == name).expect("the metric is there");
        family.get_metric()[0].get_counter().get_value()
    };
    assert_eq!(value("sluice_clickhouse_inserted_rows_total"), 10.0 + rows as f64);
    assert_eq!(value("sluice_clickhouse_insert_bytes_total"), 30.0 + body.len() as f64);
    assert_eq!(value("sluice_clickhouse_errors_total"), 0.0);
    // No rows, no request: this table does not exist.
    sink.insert(request("nowhere", &["a UInt8"], 0, b"", "none")).await.expect("there is nothing to do");
}

async fn refusal(sink: &ClickHouseSink, request: InsertRequest) -> (Retryability, Option<i32>, String) {
    let InsertError { retryability, code, message } =
        sink.insert(request).await.expect_err("ClickHouse refuses the rows");
    (retryability, code, message)
}

#[tokio::test]
async fn bad_rows_are_permanent() {
    let settings = database("bad_rows").await;
    let client = settings.client();
    let (sink, registry) = sink(&settings);
    execute(
        &client,
        "CREATE TABLE c (a UInt8, CONSTRAINT even CHECK a % 2 = 0) ENGINE = MergeTree ORDER BY a",
    )
    .await;
    let (retryability, code, message) = refusal(&sink, request("c", &["a UInt8"], 1, &[3], "t")).await;
    assert_eq!((retryability, code), (Retryability::Permanent, Some(469)), "{message}");
    assert!(message.contains("even"), "{message}");

    // Rows that end within a row. Nothing says that the table changed, so it is the rows.
    execute(&client, "CREATE TABLE s (a String) ENGINE = MergeTree ORDER BY a").await;
    let bound = sink.bind("s", &output(&[("a", "String")])).await.expect("it fits");
    assert_eq!(*bound.columns, *definitions(&["a String"]));
    let (retryability, code, message) =
        refusal(&sink, request("s", &["a String"], 1, b"\x09short", "t")).await;
    assert_eq!((retryability, code), (Retryability::Permanent, Some(33)), "{message}");

    // Too many partitions for one block: smaller batches have fewer.
    execute(&client, "CREATE TABLE p (a UInt8) ENGINE = MergeTree PARTITION BY a ORDER BY a").await;
    let all: Vec<u8> = (0..=255).collect();
    let (retryability, code, message) = refusal(&sink, request("p", &["a UInt8"], 256, &all, "t")).await;
    assert_eq!((retryability, code), (Retryability::Permanent, Some(252)), "{message}");
    sink.insert(request("p", &["a UInt8"], 64, &all[..64], "t")).await.expect("a smaller batch is taken");

    for table in ["c", "s"] {
        assert_eq!(text(&client, &format!("SELECT count() FROM {table}")).await, "0");
    }
    let families = registry.gather();
    let errors = families.iter().find(|family| family.name() == "sluice_clickhouse_errors_total");
    let permanent = errors.expect("the metric is there").get_metric().iter();
    let permanent = permanent.filter(|metric| metric.get_label()[0].value() == "false");
    assert_eq!(permanent.map(|metric| metric.get_counter().get_value()).sum::<f64>(), 3.0);
}

#[tokio::test]
async fn a_user_who_may_not_write_waits_for_the_right() {
    let settings = database("read_only").await;
    execute(&settings.client(), "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    let mut limited = settings.clone();
    limited.server_settings.insert("readonly".into(), "2".into());
    let (sink, _) = sink(&limited);
    sink.bind("t", &output(&[("a", "UInt8")])).await.expect("it may look");
    let (retryability, code, message) = refusal(&sink, request("t", &["a UInt8"], 1, &[1], "t")).await;
    assert_eq!((retryability, code), (Retryability::Retry, Some(164)), "{message}");
    assert!(message.contains("check clickhouse.user, its password and its rights"), "{message}");
}

#[tokio::test]
async fn a_table_that_changed_stops_the_rows_and_dead_letters_none() {
    let settings = database("changed").await;
    let client = settings.client();
    let (sink, _) = sink(&settings);
    let columns = output(&[("a", "UInt8"), ("b", "UInt8")]);
    let rows = || request("t", &["a UInt8", "b UInt8"], 1, &[3, 4], "t");
    let create = "CREATE TABLE t (a UInt8, b UInt8) ENGINE = MergeTree ORDER BY a";
    execute(&client, create).await;
    sink.bind("t", &columns).await.expect("it fits");
    sink.insert(rows()).await.expect("ClickHouse takes the rows");

    execute(&client, "ALTER TABLE t MODIFY COLUMN b String").await;
    let (retryability, code, message) = refusal(&sink, rows()).await;
    assert_eq!((retryability, code), (Retryability::Retry, Some(117)), "{message}");
    assert!(
        message.contains("column `b` is String in the table but UInt8 in the mapper's output"),
        "{message}"
    );

    execute(&client, "ALTER TABLE t DROP COLUMN b").await;
    let (retryability, code, message) = refusal(&sink, rows()).await;
    assert_eq!((retryability, code), (Retryability::Retry, Some(16)), "{message}");

    execute(&client, "DROP TABLE t").await;
    let (retryability, code, message) = refusal(&sink, rows()).await;
    assert_eq!((retryability, code), (Retryability::Retry, Some(60)), "{message}");
    assert!(message.contains("mend the table"), "{message}");

    execute(&client, create).await;
    sink.insert(rows()).await.expect("mended, the same rows go on");
}

#[tokio::test]
async fn a_column_whose_bytes_would_mean_something_else_takes_none() {
    let settings = database("retyped").await;
    let client = settings.client();
    let (sink, _) = sink(&settings);
    let create = "CREATE TABLE t (n UInt32, s String) ENGINE = MergeTree ORDER BY () \
                  SETTINGS non_replicated_deduplication_window = 100";
    execute(&client, create).await;
    let bound = sink.bind("t", &output(&[("n", "UInt32"), ("s", "String")])).await.expect("it fits");
    // Three bytes of text after a length: four bytes of a FixedString, too.
    let body = [3_000_000_000u32.to_le_bytes().as_slice(), b"\x03abc"].concat();
    let rows = |token: &str| InsertRequest {
        table: bound.table.clone(),
        columns: bound.columns.clone(),
        rows: 1,
        body: body.clone().into(),
        token: token.into(),
    };
    sink.insert(rows("1")).await.expect("ClickHouse takes the row");

    let changes = [
        ("n Int32", "column `n` is Int32 in the table but UInt32", "n UInt32"),
        ("n Float32", "column `n` is Float32 in the table but UInt32", "n UInt32"),
        ("s FixedString(4)", "column `s` is FixedString(4) in the table but String", "s String"),
    ];
    for (number, (damage, reason, cure)) in (2..).zip(changes) {
        execute(&client, "TRUNCATE TABLE t").await;
        let alter = |change: &str| format!("ALTER TABLE t MODIFY COLUMN {change}");
        execute(&client, &alter(damage)).await;
        let token = number.to_string();
        let (retryability, code, message) = refusal(&sink, rows(&token)).await;
        assert_eq!((retryability, code), (Retryability::Retry, Some(117)), "{message}");
        assert!(message.contains(reason) && message.contains("mend the table"), "{message}");
        assert_eq!(text(&client, "SELECT count() FROM t").await, "0");
        execute(&client, &alter(cure)).await;
        for _ in 0..2 {
            sink.insert(rows(&token)).await.expect("mended, the same row goes on");
        }
        assert_eq!(text(&client, "SELECT n, s FROM t").await, "3000000000\tabc");
    }
}

#[tokio::test]
async fn a_column_whose_bytes_still_mean_the_same_goes_on_under_the_same_token() {
    let settings = database("compatible").await;
    let client = settings.client();
    let create = "CREATE TABLE t (e Enum8('a' = 1), s String, d DateTime, n Decimal(10, 2), \
                  t Tuple(a UInt8)) ENGINE = MergeTree ORDER BY () \
                  SETTINGS non_replicated_deduplication_window = 100";
    execute(&client, create).await;
    let columns = ["e Enum8('a' = 1)", "s String", "d DateTime", "n Decimal(10, 2)", "t Tuple(a UInt8)"];
    let row = [[1].as_slice(), b"\x01x", &0u32.to_le_bytes(), &1234i64.to_le_bytes(), &[7]].concat();
    let of = |token: &str| request("t", &columns, 1, &row, token);
    let (sink, _) = sink(&settings);
    sink.insert(of("0")).await.expect("ClickHouse takes the row");
    let changes = [
        "e Enum8('a' = 1, 'b' = 2)",
        "s LowCardinality(String)",
        "d DateTime('Asia/Tokyo')",
        "n Decimal(12, 2)",
    ];
    for (number, change) in changes.iter().enumerate() {
        execute(&client, &format!("ALTER TABLE t MODIFY COLUMN {change}")).await;
        // What was taken before the change is known after it.
        for token in [number, number + 1] {
            sink.insert(of(&token.to_string())).await.unwrap_or_else(|error| panic!("{change}: {error}"));
        }
        let count =
            text(&client, "SELECT count(), countIf(toString(n) = '12.34' AND s = 'x' AND e = 'a') FROM t")
                .await;
        assert_eq!(count, format!("{0}\t{0}", number + 2), "{change}");
    }
}

#[tokio::test]
async fn rows_of_another_binding_are_sent_under_types_that_hold_them() {
    let settings = database("bindings").await;
    let client = settings.client();
    execute(&client, "CREATE TABLE t (n UInt32) ENGINE = MergeTree ORDER BY ()").await;
    let (sink, _) = sink(&settings);
    let before = sink.bind("t", &output(&[("n", "UInt32")])).await.expect("it fits");
    execute(&client, "ALTER TABLE t MODIFY COLUMN n Int32").await;
    let after = sink.bind("t", &output(&[("n", "Int32")])).await.expect("the new mapper fits the new table");
    let of = |columns: &Arc<[ColumnDefinition]>, number: u32| InsertRequest {
        columns: columns.clone(),
        ..request("t", &[], 1, &number.to_le_bytes(), &number.to_string())
    };
    sink.insert(of(&after.columns, 1)).await.expect("ClickHouse takes the row");
    let (retryability, _, message) = refusal(&sink, of(&before.columns, u32::MAX)).await;
    assert_eq!(retryability, Retryability::Retry, "{message}");
    sink.insert(of(&after.columns, 2)).await.expect("those of the new mapper go on");
    assert_eq!(text(&client, "SELECT sum(n) FROM t").await, "3");
}

#[tokio::test]
async fn a_server_that_is_away_or_silent_is_an_outage() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let settings =
        ClickHouseSettings { url, request_timeout: Duration::from_millis(200), ..Default::default() };
    let (sink, _) = sink(&settings);
    let silent = refusal(&sink, request("t", &["a UInt8"], 1, &[1], "t"));
    let (retryability, code, message) =
        tokio::time::timeout(Duration::from_secs(10), silent).await.expect("the timeout holds");
    assert_eq!((retryability, code), (Retryability::Retry, None));
    assert!(message.contains("clickhouse.request_timeout"), "{message}");
    drop(listener);
    let (retryability, code, message) = refusal(&sink, request("t", &["a UInt8"], 1, &[1], "t")).await;
    assert_eq!((retryability, code), (Retryability::Retry, None));
    assert!(message.contains("cannot reach ClickHouse") && message.contains("refused"), "{message}");
    let error = sink.bind("t", &output(&[("a", "UInt8")])).await.expect_err("nobody is there");
    assert!(matches!(error, SchemaError::Server { .. }), "{error}");
}

#[tokio::test]
async fn an_output_is_checked_against_the_real_table() {
    let settings = database("schema_check").await;
    let client = settings.client();
    let (sink, _) = sink(&settings);
    let create = "CREATE TABLE t (a UInt8, n Nullable(String), w UInt16 DEFAULT 1, d DateTime DEFAULT now(), \
                  m UInt8 MATERIALIZED a + 1, l UInt8 ALIAS a, _topic LowCardinality(String), \
                  _partition UInt32, _offset UInt64, _revision String) ENGINE = MergeTree ORDER BY a \
                  SETTINGS non_replicated_deduplication_window = 1234";
    execute(&client, create).await;
    let bound = sink.bind("t", &output(&[("a", "UInt8")])).await.expect("it fits");
    let columns = [
        "a UInt8",
        "_topic LowCardinality(String)",
        "_partition UInt32",
        "_offset UInt64",
        "_revision String",
    ];
    assert_eq!(*bound.columns, *definitions(&columns));
    assert_eq!(bound.unfilled, ["n"]);
    assert!(bound.provenance.identifies_records());

    let mut body = vec![7];
    bound.provenance.append(&mut body, "purchases", 3, 4_000_000_000, "abababababab");
    sink.insert(request("t", &columns, 1, &body, "t")).await.expect("ClickHouse takes the row");
    let found = text(&client, "SELECT a, m, _topic, _partition, _offset, _revision FROM t").await;
    assert_eq!(found, "7\t8\tpurchases\t3\t4000000000\tabababababab");

    let wrong = output(&[("a", "Int8"), ("m", "UInt8"), ("l", "UInt8"), ("x", "Date"), ("n", "String")]);
    let message = sink.bind("t", &wrong).await.expect_err("it does not fit").to_string();
    assert_eq!(message.lines().count(), 6, "{message}");
    // The cures that are statements mend what they say they mend.
    execute(&client, "ALTER TABLE `t` ADD COLUMN `x` Date").await;
    let wider = output(&[("x", "Date"), ("w", "UInt32")]);
    let message = sink.bind("t", &wider).await.expect_err("it does not fit").to_string();
    let cure = "ALTER TABLE `t` MODIFY COLUMN `w` UInt32";
    assert!(message.ends_with(cure), "{message}");
    execute(&client, cure).await;
    sink.bind("t", &wider).await.expect("it fits now");

    let schema = TableSchema::read(&client, "t").await.expect("it is there");
    assert_eq!(schema.deduplication_window, Some(1234));
    assert_eq!(schema.require_deduplication(1234), Ok(()));
    execute(&client, "CREATE TABLE bare (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    let bare = TableSchema::read(&client, "schema_check.bare").await.expect("it is there");
    assert_eq!(bare.deduplication_window, Some(0));
    let message = bare.require_deduplication(1).expect_err("there is no window").to_string();
    assert!(message.contains("non_replicated_deduplication_window = 10000"), "{message}");
    let cure = "ALTER TABLE `schema_check`.`bare` MODIFY SETTING non_replicated_deduplication_window = 10000";
    assert!(message.contains(cure), "{message}");
    execute(&client, cure).await;
    let mended = TableSchema::read(&client, "bare").await.expect("it is there");
    assert_eq!(mended.require_deduplication(10_000), Ok(()));

    let message = sink.bind("nowhere", &output(&[])).await.expect_err("it is not there").to_string();
    assert!(message.contains("table `nowhere` is not in database `schema_check`"), "{message}");
}

#[tokio::test]
async fn values_beyond_a_range_that_we_refuse_are_ones_that_clickhouse_takes_and_misreads() {
    let settings = database("misread").await;
    let client = settings.client();
    let (sink, _) = sink(&settings);
    let create =
        "CREATE TABLE t (e Enum8('a' = 1), d Decimal(2, 0), t Date32) ENGINE = MergeTree ORDER BY ()";
    execute(&client, create).await;
    let row = [[9].as_slice(), &123i32.to_le_bytes(), &200_000i32.to_le_bytes()].concat();
    sink.insert(request("t", &["e Enum8('a' = 1)", "d Decimal(2, 0)", "t Date32"], 1, &row, "t"))
        .await
        .expect("it takes them without a word");
    assert_eq!(text(&client, "SELECT count() FROM t").await, "1");
    let broken = client.query_raw("SELECT e FROM t").fetch_bytes("TSV").expect("sent").collect().await;
    assert!(broken.is_err(), "a number that is no value of the Enum cannot be read any more");
    let fault = output(&[("e", "Enum8('a' = 1)")]).walk_row(&row).expect_err("the walk refuses it");
    assert!(fault.to_string().contains("the Enum has no value 9"));
}

#[tokio::test]
async fn the_codes_are_those_of_clickhouse() {
    let settings = database("codes").await;
    let names = text(
        &settings.client(),
        "SELECT number, errorCodeToName(toUInt32(number)) AS name FROM numbers(1, 2000) WHERE name != ''",
    )
    .await;
    for (code, name, ..) in CODES {
        assert!(names.lines().any(|line| line == format!("{code}\t{name}")), "{code} is not {name}");
    }
}

#[test]
fn strings_of_any_length_are_encoded_as_clickhouse_reads_them() {
    // Lengths on both sides of each byte of the length.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it starts");
    runtime.block_on(async {
        let settings = database("lengths").await;
        let client = settings.client();
        execute(&client, "CREATE TABLE t (s String) ENGINE = MergeTree ORDER BY ()").await;
        let (sink, _) = sink(&settings);
        let lengths = [0, 1, 127, 128, 16_383, 16_384, 2_097_152];
        let mut body = Vec::new();
        for length in lengths {
            encode_string(&mut body, &vec![b'x'; length]);
        }
        sink.insert(request("t", &["s String"], lengths.len(), &body, "t")).await.expect("it takes the rows");
        let found = text(&client, "SELECT length(s) AS l FROM t ORDER BY l").await;
        assert_eq!(found, lengths.map(|length| length.to_string()).join("\n"));
    });
}
