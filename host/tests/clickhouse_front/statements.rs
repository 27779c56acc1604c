//! Queries, errors, settings, parameters, credentials, limits.

use sluice::embedded::{Credentials, EmbeddedClickHouse, EmbeddedOptions};

use crate::plain_http::{get, post, send, url_encode};
use crate::{client, execute, options, start};

#[tokio::test]
async fn curl_gets_what_it_is_used_to() {
    let clickhouse = start().await;
    for target in ["/ping", "/", "/replicas_status"] {
        let answer = get(&clickhouse, target).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "Ok.\n"), "{target}");
    }
    // The statement in the URL, in the body, or in both.
    assert_eq!(get(&clickhouse, "/?query=SELECT%201%2B1").await.text(), "2\n");
    assert_eq!(post(&clickhouse, "/", "SELECT 1, 'a' -- done").await.text(), "1\ta\n");
    assert_eq!(post(&clickhouse, "/?query=SELECT", " 3;").await.text(), "3\n");
    // Its format: from the statement, the URL, the header.
    let json = post(&clickhouse, "/", "SELECT 1 AS x FORMAT JSONEachRow").await;
    assert_eq!(json.text(), "{\"x\":1}\n");
    assert_eq!(json.header("X-ClickHouse-Format"), Some("JSONEachRow"));
    assert!(json.header("Content-Type").unwrap().starts_with("application/x-ndjson"));
    assert_eq!(post(&clickhouse, "/?default_format=CSV", "SELECT 1, 'a'").await.text(), "1,\"a\"\n");
    let header = send(&clickhouse, "POST", "/", &[("X-ClickHouse-Format", "CSV")], b"SELECT 'a'").await;
    assert_eq!(header.text(), "\"a\"\n");
    // Query id and database.
    let answer = post(&clickhouse, "/?database=system&query_id=my-id", "SELECT count() FROM one").await;
    assert_eq!((answer.text().as_str(), answer.header("X-ClickHouse-Query-Id")), ("1\n", Some("my-id")));
    assert!(answer.header("X-ClickHouse-Summary").unwrap().contains("\"result_rows\":\"1\""));
}

#[tokio::test]
async fn errors_carry_code_status_and_text() {
    let clickhouse = start().await;
    let expect = async |target: &str, body: &str, status: u16, code: i32| {
        let answer = post(&clickhouse, target, body).await;
        assert_eq!((answer.status, answer.exception()), (status, code), "{target} {body}: {}", answer.text());
        answer.text()
    };
    let text = expect("/", "SELECT * FROM missing", 404, 60).await;
    assert!(text.contains("missing") && text.contains("UNKNOWN_TABLE"), "{text}");
    expect("/", "SELEKT 1", 400, 62).await;
    expect("/", "", 400, 62).await;
    expect("/", "SELECT 1; SELECT 2", 400, 62).await;
    expect("/?no_such_setting=1", "SELECT 1", 404, 115).await;
    expect("/?database=missing", "SELECT 1", 404, 81).await;
    expect("/", "SELECT throwIf(number = 100000) FROM numbers(200000)", 500, 395).await;
    expect("/", "INSERT INTO missing FORMAT CSV\n1", 404, 60).await;
    expect("/", "SELECT sleep(0.2) SETTINGS max_execution_time = 0.01", 408, 159).await;
    expect("/?session_id=s", "SELECT 1", 501, 48).await;
    expect("/?compress=1", "SELECT 1", 501, 48).await;
    let refused = get(&clickhouse, "/?query=CREATE%20TABLE%20t%20(a%20Int8)%20ENGINE%3DMemory").await;
    assert_eq!((refused.status, refused.exception()), (500, 164));
    let error = client(&clickhouse).query("SELECT * FROM missing").execute().await.unwrap_err();
    assert!(
        matches!(&error, clickhouse::error::Error::BadResponse(text) if text.contains("Code: 60")),
        "{error}"
    );
}

#[tokio::test]
async fn nothing_of_a_request_outlives_it() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    let setting = "SELECT toUInt64(value) FROM system.settings WHERE name = 'max_block_size'";
    let usual: u64 = client.query(setting).fetch_one().await.unwrap();
    for _ in 0..20 {
        let changed: u64 =
            client.query(setting).with_setting("max_block_size", "1234").fetch_one().await.unwrap();
        assert_eq!(changed, 1234);
        let after: u64 = client.query(setting).fetch_one().await.unwrap();
        assert_eq!(after, usual);
    }
    execute(&client, "SET max_block_size = 77").await;
    execute(&client, "USE system").await;
    execute(&client, "CREATE TEMPORARY TABLE passing (a Int8)").await;
    assert_eq!(client.query(setting).fetch_one::<u64>().await.unwrap(), usual);
    assert_eq!(client.query("SELECT currentDatabase()").fetch_one::<String>().await.unwrap(), "default");
    assert_eq!(post(&clickhouse, "/", "SELECT * FROM passing").await.exception(), 60);
    // A value cannot leave its quotes.
    let tag = "it's \\ ' , max_block_size = 5 -- ";
    let shown: String = client
        .query("SELECT value FROM system.settings WHERE name = 'log_comment'")
        .with_setting("log_comment", tag)
        .fetch_one()
        .await
        .unwrap();
    assert_eq!(shown, tag);
}

#[tokio::test]
async fn parameters_bring_any_byte() {
    let clickhouse = start().await;
    let all: Vec<u8> = (0..=255).collect();
    let mut escaped = Vec::new();
    for &byte in &all {
        match byte {
            0 => escaped.extend(b"\\0"),
            b'\t' => escaped.extend(b"\\t"),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            b'\\' => escaped.extend(b"\\\\"),
            _ => escaped.push(byte),
        }
    }
    let target = format!("/?default_format=RowBinary&param_bytes={}", url_encode(&escaped));
    let answer = post(&clickhouse, &target, "SELECT {bytes:String}").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.body, [&[0x80, 0x02], all.as_slice()].concat());
    // The same through a form.
    let form = [
        b"--edge\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {bytes:String}\r\n"
            .as_slice(),
        b"--edge\r\nContent-Disposition: form-data; name=\"param_bytes\"\r\n\r\n",
        &escaped,
        b"\r\n--edge--\r\n",
    ]
    .concat();
    let content_type = ("Content-Type", "multipart/form-data; boundary=edge");
    let answer = send(&clickhouse, "POST", "/?default_format=RowBinary", &[content_type], &form).await;
    assert_eq!(answer.body, [&[0x80, 0x02], all.as_slice()].concat(), "{}", answer.text());
    // And through the crate.
    let text = "tab\t line\n quote' back\\slash \u{1F980}";
    let echo: Echo = client(&clickhouse)
        .query("SELECT {text:String} AS text, {a:Int32} + {a:Int32} AS sum, {list:Array(String)} AS list")
        .param("text", text)
        .param("a", -21)
        .param("list", vec!["a'b", "c\\d"])
        .fetch_one::<Echo>()
        .await
        .unwrap();
    assert_eq!(echo, Echo { text: text.into(), sum: -42, list: vec!["a'b".into(), "c\\d".into()] });
    assert_eq!(post(&clickhouse, "/", "SELECT {missing:String}").await.exception(), 456);
}

#[derive(clickhouse::Row, serde::Deserialize, Debug, PartialEq)]
struct Echo {
    text: String,
    sum: i64,
    list: Vec<String>,
}

#[derive(clickhouse::Row, serde::Deserialize, Debug, PartialEq)]
struct Column {
    name: String,
    r#type: String,
    default_kind: String,
}

#[tokio::test]
async fn columns_can_be_asked_for() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, "CREATE DATABASE shop").await;
    let client = client.with_database("shop");
    execute(&client, "CREATE TABLE t (id UInt64, at DateTime64(3, 'UTC'), kind LowCardinality(String), made DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY id").await;
    let columns = "SELECT name, type, default_kind FROM system.columns WHERE database = currentDatabase() AND table = 't' ORDER BY position";
    let columns: Vec<Column> = client.query(columns).fetch_all().await.unwrap();
    let expected = [
        ("id", "UInt64", ""),
        ("at", "DateTime64(3, 'UTC')", ""),
        ("kind", "LowCardinality(String)", ""),
        ("made", "DateTime", "DEFAULT"),
    ];
    let expected = expected.map(|(name, kind, default)| Column {
        name: name.into(),
        r#type: kind.into(),
        default_kind: default.into(),
    });
    assert_eq!(columns, expected);
    let described = post(&clickhouse, "/?database=shop&default_format=CSV", "DESCRIBE TABLE t").await;
    assert!(described.text().starts_with("\"id\",\"UInt64\",\"\",\"\""), "{}", described.text());
    assert_eq!(described.text().lines().count(), 4);
}

#[tokio::test]
async fn the_password_is_asked_for() {
    let credentials = Some(Credentials { user: "sluice".into(), password: "it's secret".into() });
    let clickhouse = EmbeddedClickHouse::start(EmbeddedOptions { credentials, ..options() }).await.unwrap();
    assert_eq!(get(&clickhouse, "/ping").await.status, 200);
    for headers in [&[][..], &[("X-ClickHouse-User", "sluice"), ("X-ClickHouse-Key", "wrong")]] {
        let answer = send(&clickhouse, "POST", "/", headers, b"SELECT 1").await;
        assert_eq!((answer.status, answer.exception()), (403, 516));
    }
    let basic =
        send(&clickhouse, "POST", "/", &[("Authorization", "Basic c2x1aWNlOml0J3Mgc2VjcmV0")], b"SELECT 1")
            .await;
    assert_eq!(basic.text(), "1\n");
    let client = client(&clickhouse);
    assert!(client.query("SELECT 1").execute().await.is_err());
    execute(&client.with_user("sluice").with_password("it's secret"), "SELECT 1").await;
}

#[tokio::test]
async fn an_answer_above_the_limit_is_an_error_not_memory() {
    let clickhouse = start().await;
    // 256 MiB is the limit; this would be 800 MB.
    let answer =
        post(&clickhouse, "/?default_format=RowBinary", "SELECT number FROM numbers(100000000)").await;
    assert_eq!((answer.status, answer.exception()), (500, 396));
    // What fits comes whole, and what stays inside is not counted.
    let answer = post(&clickhouse, "/?default_format=RowBinary", "SELECT number FROM numbers(2000000)").await;
    assert_eq!((answer.status, answer.body.len()), (200, 16_000_000));
    let client = client(&clickhouse);
    execute(&client, "CREATE TABLE t (n UInt64) ENGINE = Null").await;
    execute(&client, "INSERT INTO t SELECT number FROM numbers(50000000)").await;
}
