//! What exactly-once rests on in ClickHouse, against the real engine: a batch is one block and taken
//! once by its token, whatever profiles say; what the window counts; what holds where an INSERT ends
//! halfway; and what a table says that it holds.

#[path = "support/clickhouse.rs"]
mod support;

use bytes::Bytes;
use prometheus::Registry;
use sluice::clickhouse::schema::{BoundTable, SchemaError};
use sluice::clickhouse::settings::ClickHouseSettings;
use sluice::clickhouse::sink::{ClickHouseMetrics, ClickHouseSink};
use sluice::domain::intent::IntentSlice;
use sluice::domain::ledger::PartitionId;
use sluice::domain::retry::Retryability;
use sluice::domain::row::{ColumnDefinition, ColumnType, Output, encode_string};
use sluice::pipeline::ports::{InsertRequest, Sink};
use support::{database, execute, text};

fn sink(settings: &ClickHouseSettings) -> ClickHouseSink {
    let metrics = ClickHouseMetrics::register(&Registry::new()).expect("the names are free");
    ClickHouseSink::new(settings, metrics)
}

fn output(columns: &[(&str, &str)]) -> Output {
    let definition = |(name, type_name): &(&str, &str)| ColumnDefinition {
        name: (*name).into(),
        column_type: ColumnType::parse(type_name).expect("the type is known"),
    };
    Output { name: "rows".into(), columns: columns.iter().map(definition).collect() }
}

fn request(bound: &BoundTable, rows: usize, body: impl Into<Bytes>, token: &str) -> InsertRequest {
    let (table, columns) = (bound.table.clone(), bound.columns.clone());
    InsertRequest { table, columns, rows, body: body.into(), token: token.into() }
}

/// Settings under which everything that could be wrong for a batch is, as a profile of the server
/// might have it.
fn against_us(settings: &ClickHouseSettings) -> ClickHouseSettings {
    let mut settings = settings.clone();
    for (name, value) in [
        ("async_insert", "1"),
        ("wait_for_async_insert", "0"),
        ("insert_deduplicate", "0"),
        ("deduplicate_insert", "disable"),
        ("deduplicate_blocks_in_dependent_materialized_views", "0"),
        ("use_strict_insert_block_limits", "1"),
        ("max_insert_block_size", "1000"),
        ("max_insert_block_size_bytes", "100000"),
        ("min_insert_block_size_rows", "1000"),
        ("min_insert_block_size_bytes", "100000"),
        ("max_insert_threads", "8"),
        ("max_block_size", "1000"),
        ("min_chunk_bytes_for_parallel_parsing", "1000"),
    ] {
        settings.server_settings.insert(name.into(), value.into());
    }
    settings
}

#[tokio::test]
async fn a_batch_is_one_block_and_taken_once_whatever_the_profile_says() {
    let settings = database("one_block").await;
    let client = settings.client();
    let create =
        "(s String) ENGINE = MergeTree ORDER BY () SETTINGS non_replicated_deduplication_window = 100";
    execute(&client, &format!("CREATE TABLE t {create}")).await;
    execute(&client, &format!("CREATE TABLE seen {create}")).await;
    execute(&client, "CREATE MATERIALIZED VIEW v TO seen AS SELECT s FROM t").await;

    let mut mebibytes = Vec::new();
    for letter in 0..100u8 {
        encode_string(&mut mebibytes, &vec![letter; 1 << 20]);
    }
    let batches = [(300_000, b"\x03abc".repeat(300_000), "rows"), (100, mebibytes, "bytes")];
    let parts = |table: &str| {
        format!(
            "SELECT count(), sum(rows) FROM system.parts \
             WHERE database = 'one_block' AND table = '{table}' AND active"
        )
    };
    // A merge would make one part of two as well.
    execute(&client, "SYSTEM STOP MERGES t").await;
    execute(&client, "SYSTEM STOP MERGES seen").await;
    for settings in [settings.clone(), against_us(&settings)] {
        let sink = sink(&settings);
        let bound = sink.bind("t", &output(&[("s", "String")])).await.expect("it fits");
        for (rows, body, token) in &batches {
            for repeat in 0..2 {
                sink.insert(request(&bound, *rows, body.clone(), token)).await.expect("ClickHouse takes it");
                for table in ["t", "seen"] {
                    let found = text(&client, &parts(table)).await;
                    assert_eq!(found, format!("1\t{rows}"), "{token}, {table}, repeat {repeat}");
                }
            }
            execute(&client, "TRUNCATE TABLE t").await;
            execute(&client, "TRUNCATE TABLE seen").await;
        }
    }
}

#[tokio::test]
async fn an_insert_that_ended_between_two_partitions_is_completed_by_its_token() {
    let settings = database("halfway").await;
    let client = settings.client();
    execute(
        &client,
        "CREATE TABLE t (a UInt8) ENGINE = MergeTree PARTITION BY a ORDER BY a \
         SETTINGS non_replicated_deduplication_window = 100",
    )
    .await;
    let sink = sink(&settings);
    let bound = sink.bind("t", &output(&[("a", "UInt8")])).await.expect("it fits");
    // A crash leaves the parts of some partitions there, with their tokens, and not of others.
    sink.insert(request(&bound, 2, vec![1, 3], "batch")).await.expect("ClickHouse takes the rows");
    for _ in 0..2 {
        sink.insert(request(&bound, 4, vec![1, 2, 3, 4], "batch")).await.expect("ClickHouse takes the rows");
        let found = text(&client, "SELECT a, count() FROM t GROUP BY a ORDER BY a").await;
        assert_eq!(found, "1\t1\n2\t1\n3\t1\n4\t1");
    }
}

#[tokio::test]
async fn the_window_counts_parts_so_a_partitioned_table_needs_more_of_it() {
    let settings = database("window").await;
    let client = settings.client();
    let create = |table: &str, window: u32| {
        format!(
            "CREATE TABLE {table} (a UInt8) ENGINE = MergeTree PARTITION BY a ORDER BY a \
             SETTINGS non_replicated_deduplication_window = {window}"
        )
    };
    execute(&client, &create("small", 3)).await;
    execute(&client, &create("large", 1_000)).await;
    let sink = sink(&settings);
    let columns = output(&[("a", "UInt8")]);
    for (table, rows) in [("small", "10"), ("large", "5")] {
        let bound = sink.bind(table, &columns).await.expect("it fits");
        for _ in 0..2 {
            sink.insert(request(&bound, 5, vec![1, 2, 3, 4, 5], "batch")).await.expect("it takes the rows");
        }
        assert_eq!(text(&client, &format!("SELECT count() FROM {table}")).await, rows, "{table}");
    }
    let error = sink.bind_deduplicating("large", &columns, 11).await.expect_err("it is too small for that");
    assert!(error.to_string().contains("needs at least 1100 "), "{error}");
    // Room for three INSERTs is not what a window of three is here; the check knows.
    let error = sink.bind_deduplicating("small", &columns, 1).await.expect_err("it is too small");
    assert!(matches!(error, SchemaError::Unfit { .. }), "{error}");
    sink.bind_deduplicating("large", &columns, 10).await.expect("ten INSERTs are at most 1,000 parts");
}

#[tokio::test]
async fn what_a_view_writes_to_needs_a_window_of_its_own() {
    let settings = database("views").await;
    let client = settings.client();
    let window = "SETTINGS non_replicated_deduplication_window = 100";
    for (table, settings) in [("t", window), ("remembers", window), ("forgets", "")] {
        execute(&client, &format!("CREATE TABLE {table} (a UInt8) ENGINE = MergeTree ORDER BY a {settings}"))
            .await;
    }
    let limited = format!(
        "CREATE TABLE limited (a UInt8, CONSTRAINT small CHECK a < 5) ENGINE = MergeTree ORDER BY a {window}"
    );
    execute(&client, &limited).await;
    for target in ["remembers", "forgets", "limited"] {
        execute(&client, &format!("CREATE MATERIALIZED VIEW v_{target} TO {target} AS SELECT a FROM t"))
            .await;
    }
    let sink = sink(&settings);
    let bound = sink.bind("t", &output(&[("a", "UInt8")])).await.expect("it fits");
    let counts = "SELECT (SELECT count() FROM t), (SELECT count() FROM remembers), \
                  (SELECT count() FROM forgets), (SELECT count() FROM limited)";
    for expected in ["1\t1\t1\t1", "1\t1\t2\t1"] {
        sink.insert(request(&bound, 1, vec![1], "one")).await.expect("it takes the row");
        assert_eq!(text(&client, counts).await, expected);
    }
    // A view that fails leaves the table and other views with the rows; mended, it gets them by the
    // same token, and they do not get them again.
    let error = sink.insert(request(&bound, 1, vec![9], "two")).await.expect_err("a view refuses it");
    assert_eq!((error.retryability, error.code), (Retryability::Retry, Some(469)), "{error}");
    assert_eq!(text(&client, "SELECT count() FROM t").await, "2", "cut into pieces, it would be taken again");
    execute(&client, "ALTER TABLE limited DROP CONSTRAINT small").await;
    for _ in 0..2 {
        sink.insert(request(&bound, 1, vec![9], "two")).await.expect("it takes the row");
        let found = text(&client, counts).await;
        let counts: Vec<&str> = found.split('\t').collect();
        assert_eq!((counts[0], counts[1], counts[3]), ("2", "2", "2"), "{found}");
    }
}

#[tokio::test]
async fn a_table_that_forgets_is_refused_with_the_statement_that_mends_it() {
    let settings = database("forgets").await;
    let client = settings.client();
    let sink = sink(&settings);
    let columns = output(&[("a", "UInt8")]);
    execute(&client, "CREATE TABLE none (a UInt8) ENGINE = MergeTree ORDER BY a").await;
    execute(
        &client,
        "CREATE TABLE small (a UInt8) ENGINE = ReplacingMergeTree PARTITION BY a ORDER BY a \
         SETTINGS index_granularity = 1024, non_replicated_deduplication_window = 4799",
    )
    .await;
    execute(&client, "CREATE TABLE gone (a UInt8) ENGINE = Null").await;
    execute(&client, "CREATE TABLE seen (a UInt8) ENGINE = Memory").await;
    for (table, pending, says) in [
        ("none", 48, "remembers 0 INSERTs, and exactly-once needs at least 1000 "),
        ("small", 48, "remembers 4799 INSERTs (an INSERT counts once for each table partition"),
    ] {
        let message = sink.bind_deduplicating(table, &columns, pending).await.expect_err(table).to_string();
        assert!(message.contains(says), "{message}");
        let cure = message.split_once(": ALTER ").and_then(|(_, rest)| rest.split_once(", or set"));
        let cure = format!("ALTER {}", cure.unwrap_or_else(|| panic!("no cure: {message}")).0);
        execute(&client, &cure).await;
        sink.bind_deduplicating(table, &columns, pending).await.expect("mended, it fits");
    }
    for (table, engine) in [("gone", "Null"), ("seen", "Memory")] {
        let message = sink.bind_deduplicating(table, &columns, 1).await.expect_err(table).to_string();
        assert!(
            message.contains(&format!("engine {engine} does not recognise repeated INSERTs")),
            "{message}"
        );
        sink.bind(table, &columns).await.expect("at-least-once does not need it");
    }
}

fn slice(topic: &str, partition: i32, start: i64, end: i64) -> IntentSlice {
    IntentSlice { partition: PartitionId { topic: topic.into(), partition }, start, end }
}

#[tokio::test]
async fn a_table_says_which_offsets_it_holds() {
    let settings = database("held").await;
    let client = settings.client();
    let sink = sink(&settings);
    for (table, topic, partition, offset) in
        [("signed", "LowCardinality(String)", "Int32", "Int64"), ("unsigned", "String", "UInt32", "UInt64")]
    {
        execute(
            &client,
            &format!(
                "CREATE TABLE {table} (a UInt8, _topic {topic}, _partition {partition}, _offset {offset}, \
                 _revision String) ENGINE = MergeTree ORDER BY a"
            ),
        )
        .await;
        let bound = sink.bind(table, &output(&[("a", "UInt8")])).await.expect("it fits");
        let binding = bound.binding();
        assert!(binding.can_be_asked());
        let far = i64::MAX - 1;
        let places = [
            // A record with two rows is held once; a topic's name may be anything.
            ("it's `\\ ü", 3, 10),
            ("it's `\\ ü", 3, 10),
            ("it's `\\ ü", 3, 12),
            ("it's `\\ ü", 3, 19),
            ("it's `\\ ü", 3, 20),
            ("it's `\\ ü", 4, 11),
            ("other", 3, 13),
            ("other", 3, far),
            ("other", 0, 0),
        ];
        let mut body = Vec::new();
        for (topic, partition, offset) in places {
            body.push(1);
            bound.provenance.append(&mut body, topic, partition, offset, "abababababab");
        }
        sink.insert(request(&bound, places.len(), body, "t")).await.expect("it takes the rows");
        let held = async |slice: IntentSlice| sink.held(&binding, &slice).await.expect("it answers");
        assert_eq!(held(slice("it's `\\ ü", 3, 10, 20)).await, [10, 12, 19]);
        assert_eq!(held(slice("it's `\\ ü", 3, 11, 19)).await, [12]);
        assert_eq!(held(slice("it's `\\ ü", 3, 13, 19)).await, [0i64; 0]);
        assert_eq!(held(slice("it's `\\ ü", 4, 0, far)).await, [11]);
        assert_eq!(held(slice("it's `\\ ü", 5, 0, far)).await, [0i64; 0]);
        assert_eq!(held(slice("other", 3, 0, i64::MAX)).await, [13, far]);
        assert_eq!(held(slice("other", 0, 0, 1)).await, [0]);
        assert_eq!(held(slice("nowhere", 0, 0, far)).await, [0i64; 0]);
    }
    execute(&client, "DROP TABLE signed").await;
    let bound = sink.bind("unsigned", &output(&[("a", "UInt8")])).await.expect("it fits");
    let gone = sluice::pipeline::binding::TableBinding { table: "signed".into(), ..bound.binding() };
    let error = sink.held(&gone, &slice("other", 0, 0, 1)).await.expect_err("it is gone");
    assert_eq!(error.code, Some(60), "{error}");
    assert_eq!(error.retryability, Retryability::Retry);
}
