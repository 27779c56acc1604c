//! `sluice check` as a script runs it: the program itself, against an embedded broker, an embedded
//! ClickHouse (`make libchdb`) and the shipped modules (`make modules`).

mod support;

use std::path::PathBuf;
use std::process::Command;

use sluice::embedded::broker::EmbeddedBroker;
use sluice::embedded::{EmbeddedClickHouse, EmbeddedOptions};
use support::guests::purchase_modules;
use support::sluice::root;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sluice");

fn repository() -> PathBuf {
    // Modules and their cases as they are now.
    purchase_modules();
    root()
}

/// The shipped configuration in this environment.
fn sluice(command: &str, arguments: &[&str], brokers: &str, url: &str) -> (i32, String) {
    let output = Command::new(PROGRAM)
        .current_dir(repository())
        .arg(command)
        .args(arguments)
        .env("SLUICE__KAFKA__BROKERS", brokers)
        .env("SLUICE__CLICKHOUSE__URL", url)
        .env_remove("SLUICE_CONFIG")
        .output()
        .expect("sluice runs");
    let code = output.status.code().expect("no signal");
    let errors = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(code == 0, errors.is_empty(), "{errors}");
    (code, String::from_utf8(output.stdout).expect("UTF-8"))
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

/// The text without what differs from run to run.
fn stable(text: &str, brokers: &str, url: &str) -> String {
    let text = text.replace(brokers, "<brokers>").replace(url, "<url>");
    let words = text.split_inclusive([' ', '\n']).scan("", |before, word| {
        let shown = match *before {
            "revision " => word.replace(word.trim_end(), "<revision>"),
            "version " => word.replace(word.trim_end(), "<version>"),
            _ => word.to_owned(),
        };
        *before = word;
        Some(shown)
    });
    words.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_looked_at_and_told() {
    let broker = EmbeddedBroker::start(&[("purchases", 12), ("purchases.dead-letters", 1)]).expect("started");
    let brokers = broker.bootstrap();
    let options = EmbeddedOptions { program: Some(PROGRAM.into()), ..EmbeddedOptions::default() };
    let clickhouse = EmbeddedClickHouse::start(options).await.expect("started");
    let url = clickhouse.url();
    let run = |command: &str, arguments: &[&str]| {
        let (code, text) = sluice(command, arguments, &brokers, &url);
        (code, stable(&text, &brokers, &url))
    };

    let (code, text) = run("check", &[]);
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!("before-the-first-start", text);

    assert_eq!(run("migrate", &[]).0, 0);
    let (code, text) = run("check", &[]);
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!("all-is-well", text);

    let client = clickhouse::Client::default().with_url(&url);
    let of = |engine: &str, columns: &str| {
        format!(
            "CREATE TABLE default.other ENGINE = {engine} ORDER BY tuple() \
             SETTINGS non_replicated_deduplication_window = 10000 AS SELECT {columns} FROM default.purchases"
        )
    };
    for (engine, columns, cure) in [
        ("MergeTree", "* EXCEPT _offset", "add the columns _topic, _partition and _offset"),
        ("ReplacingMergeTree", "*", "only of a plain MergeTree, and not of a ReplacingMergeTree"),
    ] {
        client.query(&of(engine, columns)).execute().await.expect("created");
        let output = Command::new(PROGRAM)
            .current_dir(repository())
            .arg("check")
            .env("SLUICE__KAFKA__BROKERS", &brokers)
            .env("SLUICE__CLICKHOUSE__URL", &url)
            .env("SLUICE__PIPELINES__PURCHASES__TABLES__PURCHASES", "other")
            .env_remove("SLUICE_CONFIG")
            .output()
            .expect("sluice runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(
            output.status.success() && text.contains("may lose a batch") && text.contains(cure),
            "{text}"
        );
        client.query("DROP TABLE default.other").execute().await.expect("dropped");
    }

    let alter = "ALTER TABLE default.purchases DROP COLUMN payment_currency, MODIFY COLUMN training_id String, \
                 ADD COLUMN coupon String";
    client.query(alter).execute().await.expect("altered");
    let (code, text) = run("check", &[]);
    assert_eq!(code, 1, "{text}");
    insta::assert_snapshot!("a-table-that-does-not-fit", text);

    let (code, text) = sluice("check", &["--json"], &brokers, &url);
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["ok"], false);
    let failed: Vec<_> = report["checks"].as_array().expect("a list").iter().collect();
    let failed: Vec<_> = failed.into_iter().filter(|check| check["verdict"] == "failed").collect();
    assert_eq!(
        (failed.len(), &failed[0]["check"], &failed[0]["subject"]),
        (1, &"table".into(), &"purchases".into())
    );
}

#[test]
fn what_is_away_is_told_with_the_cure_and_the_rest_is_looked_at() {
    let (brokers, address) = (nobody(), nobody());
    let url = format!("http://{address}");
    let (code, text) = sluice("check", &["--timeout", "1s"], &brokers, &url);
    assert_eq!(code, 1);
    insta::assert_snapshot!("away", stable(&text, &brokers, &url).replace(&address, "<address>"));
}

#[test]
fn a_faulty_configuration_is_told_and_nothing_else_is_tried() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("sluice.yaml");
    std::fs::write(&file, "kafka: {brokers: [], topics: x}\n").expect("written");
    let file = file.display().to_string();
    let (code, text) = sluice("check", &["--config", &file], "localhost:1", "localhost:2");
    assert_eq!(code, 1);
    insta::assert_snapshot!(
        "a-faulty-configuration",
        text.replace(&directory.path().display().to_string(), "<base>")
    );
}

#[test]
fn modules_that_are_not_there_do_not_hide_what_else_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("sluice.yaml");
    let yaml = "clickhouse: {migrate_at_start: false}\n\
                pipelines: {purchases: {topics: [purchases], mapper: nowhere.wasm}}\n";
    std::fs::write(&file, yaml).expect("written");
    let broker = EmbeddedBroker::start(&[("purchases", 3)]).expect("started");
    let url = format!("http://{}", nobody());
    let arguments = ["--timeout", "5s", "--config", &file.display().to_string()];
    let (code, text) = sluice("check", &arguments, &broker.bootstrap(), &url);
    assert_eq!(code, 1);
    for expected in [
        "pipelines.purchases.mapper failed:",
        "topic          purchases ok: 3 partitions",
        "topic          purchases.dead-letters failed: (pipelines.purchases.dead_letter_topic) does not exist",
        "modules        purchases skipped:",
        "clickhouse     http",
    ] {
        assert!(text.contains(expected), "{expected}\n---\n{text}");
    }
}

#[test]
fn a_cache_that_others_can_write_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a folder");
    let open = folder.path().join("open");
    std::fs::create_dir(&open).expect("a folder");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("set");
    for (cache, verdict, words) in [
        (open, "warning", "can be written by others (mode 777)"),
        (folder.path().join("none"), "ok", "compiled modules are kept here"),
    ] {
        let nobody = nobody();
        let output = Command::new(PROGRAM)
            .current_dir(repository())
            .args(["check", "--json", "--timeout", "100ms"])
            .env("SLUICE__KAFKA__BROKERS", &nobody)
            .env("SLUICE__CLICKHOUSE__URL", format!("http://{nobody}"))
            .env("SLUICE__MODULES__CACHE", &cache)
            .env_remove("SLUICE_CONFIG")
            .output()
            .expect("sluice runs");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let report = report.to_string();
        assert!(report.contains(words) && report.contains(verdict), "{report}");
        assert!(cache.ends_with("open") || !cache.exists(), "it changes nothing");
    }
}
