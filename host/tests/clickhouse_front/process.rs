//! The life of the child process: restarts, kills, parents, wrong starts.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice::embedded::{EmbeddedClickHouse, EmbeddedOptions};

use crate::plain_http::post;
use crate::{client, count, execute, options, start};

#[tokio::test]
async fn a_restart_keeps_address_and_data() {
    let mut clickhouse = start().await;
    let url = clickhouse.url();
    execute(&client(&clickhouse), "CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a").await;
    execute(&client(&clickhouse), "INSERT INTO t VALUES (1), (2)").await;
    let first = clickhouse.pid().unwrap();
    clickhouse.halt().await.unwrap();
    assert_eq!(clickhouse.pid(), None);
    assert!(client(&clickhouse).query("SELECT 1").execute().await.is_err());
    clickhouse.restart().await.unwrap();
    assert_eq!(clickhouse.url(), url);
    assert_ne!(clickhouse.pid().unwrap(), first);
    assert_eq!(count(&client(&clickhouse), "t").await, 2);
    let data = clickhouse.data().to_path_buf();
    clickhouse.stop().await.unwrap();
    assert!(!data.exists(), "a temporary folder goes in the end");
}

#[tokio::test]
async fn a_named_data_folder_stays() {
    let folder = tempfile::tempdir().unwrap();
    let data = Some(folder.path().join("clickhouse"));
    let clickhouse =
        EmbeddedClickHouse::start(EmbeddedOptions { data: data.clone(), ..options() }).await.unwrap();
    execute(&client(&clickhouse), "CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a").await;
    execute(&client(&clickhouse), "INSERT INTO t VALUES (1)").await;
    // A second process on the same folder must not get it.
    let error = EmbeddedClickHouse::start(EmbeddedOptions { data: data.clone(), ..options() })
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("another process has the folder open"), "{error}");
    // Dropped, that is killed, and gone: the folder is free.
    drop(clickhouse);
    let clickhouse = EmbeddedClickHouse::start(EmbeddedOptions { data, ..options() }).await.unwrap();
    assert_eq!(count(&client(&clickhouse), "t").await, 1);
}

/// Batches of 100 rows, each under its token, until ClickHouse goes away. Answers how many it
/// acknowledged.
async fn insert_until_gone(client: clickhouse::Client, writer: u64) -> u64 {
    let mut acknowledged = 0;
    while insert_batch(&client, writer, acknowledged).await {
        acknowledged += 1;
    }
    acknowledged
}

async fn insert_batch(client: &clickhouse::Client, writer: u64, batch: u64) -> bool {
    insert_under(client, writer, batch, &format!("{writer}:{batch}")).await
}

async fn insert_under(client: &clickhouse::Client, writer: u64, batch: u64, token: &str) -> bool {
    let mut insert = client
        .insert_formatted_with("INSERT INTO t (writer, batch, row) FORMAT RowBinary")
        .with_setting("insert_deduplication_token", token)
        .with_setting("async_insert", "0");
    let rows: Vec<u8> =
        (0..100_u64).flat_map(|row| [writer, batch, row]).flat_map(u64::to_le_bytes).collect();
    insert.send(rows.into()).await.is_ok() && insert.end().await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_no_acknowledged_row_and_no_token_adds_rows_twice() {
    let mut clickhouse = start().await;
    execute(&client(&clickhouse), "CREATE TABLE t (writer UInt64, batch UInt64, row UInt64) ENGINE = MergeTree ORDER BY (writer, batch) SETTINGS non_replicated_deduplication_window = 10000").await;
    let mut sent = [0_u64; 3];
    for round in 0..3 {
        let base = round * 10;
        let writers =
            (0..3).map(|writer| tokio::spawn(insert_until_gone(client(&clickhouse), base + writer)));
        let writers: Vec<_> = writers.collect();
        tokio::time::sleep(Duration::from_millis(150 + 130 * round)).await;
        clickhouse.kill().await.unwrap();
        for (writer, running) in writers.into_iter().enumerate() {
            sent[writer] = running.await.unwrap();
        }
        assert!(sent.iter().sum::<u64>() > 3, "the kill must come in the middle of inserts: {sent:?}");
        clickhouse.restart().await.unwrap();
        let client = client(&clickhouse);
        for (writer, &acknowledged) in sent.iter().enumerate() {
            let writer = base + writer as u64;
            let sql = "SELECT uniqExact(batch, row) FROM t WHERE writer = ? AND batch < ?";
            let kept: u64 = client.query(sql).bind(writer).bind(acknowledged).fetch_one().await.unwrap();
            assert_eq!(kept, acknowledged * 100, "acknowledged rows of writer {writer}");
            // Everything again, the one that was cut off included: each batch is there once, but for the one that
            // was cut off, of which the server may have the token and not the rows. Then another token helps.
            for batch in 0..=acknowledged {
                assert!(insert_batch(&client, writer, batch).await);
            }
            let sql = "SELECT count(), uniqExact(batch, row) FROM t WHERE writer = ?";
            let there = async || client.query(sql).bind(writer).fetch_one::<(u64, u64)>().await.unwrap();
            if there().await == (acknowledged * 100, acknowledged * 100) {
                println!("writer {writer}: the token of batch {acknowledged} is used up without rows");
                assert!(
                    insert_under(&client, writer, acknowledged, &format!("{writer}:{acknowledged}~")).await
                );
            }
            let all = (acknowledged + 1) * 100;
            assert_eq!(there().await, (all, all), "writer {writer}");
        }
    }
}

/// `sluice clickhouse` as a person runs it; answers its first line too.
fn run(arguments: &[&str]) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("clickhouse")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

/// Waits for the end, at most twenty seconds; then it is killed, and the test fails.
fn ended(mut child: Child) -> (bool, String) {
    let patience = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (child.wait().unwrap().success(), said)
}

#[test]
fn it_stops_on_a_signal() {
    for signal in ["TERM", "INT"] {
        let (child, line) = run(&[]);
        assert!(line.starts_with("listening on http://127.0.0.1:"), "{line}");
        let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let (success, said) = ended(child);
        assert!(success, "{signal}: {said}");
    }
}

#[tokio::test]
async fn a_dropped_one_leaves_nothing() {
    let clickhouse = start().await;
    let (pid, data) = (clickhouse.pid().unwrap(), clickhouse.data().to_path_buf());
    assert!(Path::new(&format!("/proc/{pid}")).exists() && data.exists());
    // Of its own process group: Ctrl-C in a terminal goes to the parent's.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = state.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap();
    assert_eq!(group, pid.to_string());
    drop(clickhouse);
    assert!(!Path::new(&format!("/proc/{pid}")).exists() && !data.exists());
}

#[test]
fn it_stops_with_its_parent() {
    let (mut child, line) = run(&["--exit-with-parent"]);
    assert!(line.starts_with("listening on "), "{line}");
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it runs as long as its input is open");
    drop(child.stdin.take());
    let (success, said) = ended(child);
    assert!(success, "{said}");
}

#[test]
fn wrong_starts_say_what_to_do() {
    let refused = |arguments: &[&str], expected: &str| {
        let (child, line) = run(arguments);
        assert_eq!(line, "");
        let (success, said) = ended(child);
        assert!(!success && said.contains(expected), "{said}");
    };
    refused(&["--library", "/nowhere/libchdb.so"], "run `make libchdb`");
    refused(&["--library", "/proc/self/exe"], "cannot load /proc/self/exe");
    refused(&["--listen", "0.0.0.0:0"], "set --user and --password");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&["--listen", &taken.local_addr().unwrap().to_string()], "choose another with --listen");
    let file = tempfile::NamedTempFile::new().unwrap();
    refused(&["--path", &file.path().display().to_string()], "cannot make the data folder");
}

#[tokio::test]
async fn a_missing_library_is_told_to_the_parent() {
    let library = Some(Path::new("/nowhere/libchdb.so").to_path_buf());
    let error =
        EmbeddedClickHouse::start(EmbeddedOptions { library, ..options() }).await.unwrap_err().to_string();
    assert!(error.contains("did not start") && error.contains("run `make libchdb`"), "{error}");
    let program = Some("/nowhere/sluice".into());
    let error =
        EmbeddedClickHouse::start(EmbeddedOptions { program, ..options() }).await.unwrap_err().to_string();
    assert!(error.contains("cannot run /nowhere/sluice"), "{error}");
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused() {
    let mut clickhouse = start().await;
    execute(&client(&clickhouse), "CREATE TABLE t (a String) ENGINE = MergeTree ORDER BY a").await;
    clickhouse.halt().await.unwrap();
    let address = clickhouse.url().trim_start_matches("http://").to_owned();
    let (mut child, _) = run(&[
        "--path",
        &clickhouse.data().display().to_string(),
        "--listen",
        &address,
        "--max-body-bytes",
        "1000",
    ]);
    let target = "/?query=INSERT%20INTO%20t%20FORMAT%20CSV";
    let answer = post(&clickhouse, target, vec![b'x'; 1_001]).await;
    assert_eq!((answer.status, answer.exception()), (413, 229));
    assert_eq!(post(&clickhouse, target, vec![b'x'; 1_000]).await.status, 200);
    assert_eq!(count(&client(&clickhouse), "t").await, 1);
    child.kill().unwrap();
    child.wait().unwrap();
}
