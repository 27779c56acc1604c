//! Inserts in every way that a client may send them, whole and broken.

use std::time::Duration;

use clickhouse::Row;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::plain_http::{connect, post, read_answer, send, url_encode};
use crate::{client, count, execute, start};

#[derive(Row, Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Purchase {
    id: u64,
    at: i64,
    kind: String,
    note: Option<String>,
    tags: Vec<String>,
    price: u32,
}

const PURCHASES: &str = "CREATE TABLE purchases (id UInt64, at DateTime64(3, 'UTC'), kind LowCardinality(String), \
    note Nullable(String), tags Array(String), price UInt32, made DateTime DEFAULT now()) ENGINE = MergeTree ORDER BY id";

#[tokio::test]
async fn typed_rows_come_back_as_they_went() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, PURCHASES).await;
    let rows: Vec<Purchase> = (0..1_000)
        .map(|id| Purchase {
            id,
            at: 1_764_000_000_123 + id as i64,
            kind: ["yoga", "box"][id as usize % 2].into(),
            note: (id % 3 == 0).then(|| format!("note {id}")),
            tags: (0..id % 4).map(|tag| format!("tag {tag}")).collect(),
            price: id as u32 * 100,
        })
        .collect();
    let mut insert = client.insert::<Purchase>("purchases").await.unwrap();
    for row in &rows {
        insert.write(row).await.unwrap();
    }
    insert.end().await.unwrap();
    let read: Vec<Purchase> =
        client.query("SELECT ?fields FROM purchases ORDER BY id").fetch_all().await.unwrap();
    assert_eq!(read, rows);
    let shown: String =
        client.query("SELECT toString(at) FROM purchases WHERE id = 0").fetch_one().await.unwrap();
    assert_eq!(shown, "2025-11-24 16:00:00.123");
    // The crate checks a row against the table before it sends it; a wrong one must be seen.
    assert!(client.insert::<(u64, String)>("purchases").await.is_err());
}

/// RowBinary of `(UInt32, String)`.
fn row_binary(rows: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (a, s) in rows {
        bytes.extend(a.to_le_bytes());
        let mut length = s.len();
        while length >= 0x80 {
            bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(s);
    }
    bytes
}

const PAIRS: &str = "CREATE TABLE pairs (a UInt32, extra UInt8 DEFAULT 7, s String) ENGINE = MergeTree ORDER BY a \
    SETTINGS non_replicated_deduplication_window = 100";

#[tokio::test]
async fn raw_row_binary_with_columns_in_lz4() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, PAIRS).await;
    let all: Vec<u8> = (0..=255).collect();
    let rows = 300_000;
    let body = row_binary((0..rows).map(|a| (a, all.clone())));
    assert!(body.len() > 70 << 20);
    let mut insert = client
        .insert_formatted_with("INSERT INTO pairs (a, s) FORMAT RowBinary")
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplication_token", "sluice:test:1");
    for piece in body.chunks(1 << 20) {
        insert.send(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
    }
    insert.end().await.unwrap();
    let (read, extra, same): (u64, u64, u64) = client
        .query("SELECT count(), sum(extra), countIf(s = (SELECT arrayStringConcat(arrayMap(n -> char(n), range(256))))) FROM pairs")
        .fetch_one()
        .await
        .unwrap();
    assert_eq!((read, extra, same), (u64::from(rows), u64::from(rows) * 7, u64::from(rows)));
    // One insert is one block, or a token would not cover it.
    let blocks: u64 = client
        .query("SELECT uniqExact(min_block_number) FROM system.parts WHERE table = 'pairs' AND level = 0")
        .fetch_one()
        .await
        .unwrap();
    assert_eq!(blocks, 1);
}

/// A compressed block as ClickHouse frames it.
fn block(method: u8, raw: &[u8], data: &[u8]) -> Vec<u8> {
    let mut checked = vec![method];
    checked.extend((data.len() as u32 + 9).to_le_bytes());
    checked.extend((raw.len() as u32).to_le_bytes());
    checked.extend(data);
    let mut block = cityhash_rs::cityhash_102_128(&checked).rotate_right(64).to_le_bytes().to_vec();
    block.extend(checked);
    block
}

#[tokio::test]
async fn compressed_bodies_are_checked_before_anything_is_inserted() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, PAIRS).await;
    let target = format!("/?decompress=1&query={}", url_encode("INSERT INTO pairs (a, s) FORMAT RowBinary"));
    let rows = |first: u32| row_binary((first..first + 10).map(|a| (a, vec![b'x'; 50])));
    let (first, second, third) = (rows(0), rows(10), rows(20));
    let zstd = block(0x90, &first, &zstd::bulk::compress(&first, 3).unwrap());
    let lz4 = block(0x82, &second, &lz4_flex::block::compress(&second));
    let plain = block(0x02, &third, &third);
    let mixed = [zstd.clone(), lz4, plain].concat();
    assert_eq!(post(&clickhouse, &target, &mixed).await.status, 200);
    assert_eq!(count(&client, "pairs").await, 30);

    // The last byte of the last block: the good blocks before it go nowhere.
    let mut damaged =
        [rows(100), rows(110)].map(|raw| block(0x82, &raw, &lz4_flex::block::compress(&raw))).concat();
    *damaged.last_mut().unwrap() ^= 1;
    let answer = post(&clickhouse, &target, &damaged).await;
    assert_eq!((answer.status, answer.exception()), (500, 40));
    let cut = &mixed[..mixed.len() - 1];
    assert_eq!(post(&clickhouse, &target, cut).await.exception(), 271);
    assert_eq!(post(&clickhouse, &target, &first).await.exception(), 271);
    // Whole blocks around half a row.
    let half = row_binary([(200, vec![b'x'; 50])]);
    let half = &half[..half.len() - 1];
    assert_eq!(post(&clickhouse, &target, block(0x02, half, half)).await.exception(), 33);
    assert_eq!(count(&client, "pairs").await, 30);

    // A whole body in zstd.
    let target = format!("/?query={}", url_encode("INSERT INTO pairs (a, s) FORMAT RowBinary"));
    let body = zstd::bulk::compress(&rows(300), 3).unwrap();
    let answer = send(&clickhouse, "POST", &target, &[("Content-Encoding", "zstd")], &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(count(&client, "pairs").await, 40);
    let answer = send(&clickhouse, "POST", &target, &[("Content-Encoding", "br")], &body).await;
    assert_eq!(answer.exception(), 48);
}

#[tokio::test]
async fn data_may_stand_in_the_statement() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, PAIRS).await;
    let answer = post(&clickhouse, "/", "INSERT INTO pairs (a, s) VALUES (1 + 1, ';'), (3, 'it''s');").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("X-ClickHouse-Summary").unwrap().contains("\"written_rows\":\"2\""));
    execute(&client, "INSERT INTO pairs (a, s) FORMAT JSONEachRow {\"a\":4,\"s\":\"json\"}\n{\"a\":5}").await;
    execute(&client, "INSERT INTO pairs (a, s) SELECT 6, 'select'").await;
    post(&clickhouse, "/?query=INSERT%20INTO%20pairs%20(a,s)%20VALUES", "(7, 'url')").await;
    client
        .query("INSERT INTO pairs (a, s) VALUES ({a:UInt32}, {s:String})")
        .param("a", 8)
        .param("s", "p")
        .execute()
        .await
        .unwrap();
    // Longer than any SQL may be.
    let values: Vec<String> = (100..50_100).map(|a| format!("({a}, 'value {a}')")).collect();
    let answer =
        post(&clickhouse, "/", format!("INSERT INTO pairs (a, s) VALUES {}", values.join(","))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sum: u64 = client.query("SELECT sum(a) FROM pairs WHERE a < 100").fetch_one().await.unwrap();
    assert_eq!((sum, count(&client, "pairs").await), (2 + 3 + 4 + 5 + 6 + 7 + 8, 50_007));
}

#[tokio::test]
async fn a_body_that_breaks_off_inserts_nothing() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, "CREATE TABLE numbers (a UInt32) ENGINE = MergeTree ORDER BY a").await;
    let target = "/?query=INSERT%20INTO%20numbers%20FORMAT%20CSV";
    // A length that is not kept; the socket closes.
    let mut socket = connect(&clickhouse).await;
    let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1\n2\n3\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    drop(socket);
    // Chunks without the last one; the write side closes, so that an answer can come.
    let mut socket = connect(&clickhouse).await;
    let head =
        format!("POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1\n2\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    // The crate's insert that is dropped before its end.
    let mut insert = client.insert_formatted_with("INSERT INTO numbers FORMAT CSV");
    insert.send(bytes::Bytes::from_static(b"5\n6\n")).await.unwrap();
    drop(insert);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count(&client, "numbers").await, 0);
    // The same requests, complete.
    let mut socket = connect(&clickhouse).await;
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1\n2\n\r\n0\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_answer(socket).await.status, 200);
    assert_eq!(count(&client, "numbers").await, 2);
}

#[tokio::test]
async fn a_token_adds_its_rows_once() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, PAIRS).await;
    let insert = async |token: &str, first: u32| {
        let mut insert = client
            .insert_formatted_with("INSERT INTO pairs (a, s) FORMAT RowBinary")
            .with_setting("insert_deduplication_token", token)
            .with_setting("async_insert", "0");
        insert.send(row_binary((first..first + 10).map(|a| (a, b"s".to_vec()))).into()).await.unwrap();
        insert.end().await.unwrap();
    };
    for _ in 0..3 {
        insert("sluice:p:one", 0).await;
        assert_eq!(count(&client, "pairs").await, 10);
    }
    insert("sluice:p:two", 0).await;
    assert_eq!(count(&client, "pairs").await, 20);
    // Many at once, each of ten tokens four times.
    let inserts = (0..40).map(|number| insert_token(number % 10, &client));
    futures::future::join_all(inserts).await;
    assert_eq!(count(&client, "pairs").await, 20 + 10 * 10);
}

async fn insert_token(number: u32, client: &clickhouse::Client) {
    let mut insert = client
        .insert_formatted_with("INSERT INTO pairs (a, s) FORMAT RowBinary")
        .with_setting("insert_deduplication_token", format!("sluice:many:{number}"));
    insert.send(row_binary((0..10).map(|a| (a, b"s".to_vec()))).into()).await.unwrap();
    insert.end().await.unwrap();
}

#[tokio::test]
async fn a_refused_insert_says_why_and_adds_nothing() {
    let clickhouse = start().await;
    let client = client(&clickhouse);
    execute(&client, "CREATE TABLE checked (a UInt32, CONSTRAINT small CHECK a < 100) ENGINE = MergeTree PARTITION BY a ORDER BY a").await;
    let rows = |numbers: std::ops::Range<u32>| numbers.map(|a| format!("{a}\n")).collect::<String>();
    let target = "/?query=INSERT%20INTO%20checked%20FORMAT%20CSV";
    assert_eq!(post(&clickhouse, target, rows(95..105)).await.exception(), 469);
    let limit = format!("{target}&max_partitions_per_insert_block=10");
    assert_eq!(post(&clickhouse, &limit, rows(0..20)).await.exception(), 252);
    assert_eq!(post(&clickhouse, target, "1\nx\n").await.status, 400);
    assert_eq!(count(&client, "checked").await, 0);
    assert_eq!(post(&clickhouse, target, rows(0..20)).await.status, 200);
    assert_eq!(count(&client, "checked").await, 20);
}
