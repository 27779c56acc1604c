//! `sluice module` as an analyst runs it: the program itself, on the shipped modules, hostile ones and
//! embedded servers.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluice::clickhouse::archive::RevisionArchive;
use sluice::clickhouse::settings::ClickHouseSettings;
use sluice::domain::module::{ArchivedModule, module_revision};
use sluice::domain::verdict::Stage;
use sluice::embedded::broker::EmbeddedBroker;
use support::clickhouse_server::ClickHouse;
use support::guests::{choosy_validator, hostile_validator, purchase_modules};
use support::sluice::{PATIENCE, root};

/// A folder to work in, without a configuration unless one is written.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, content).expect("written");
        path
    }

    fn copy(&self, module: &str) {
        let from = purchase_modules().join(module);
        let name = Path::new(module).file_name().and_then(|name| name.to_str()).expect("a name");
        self.write(name, std::fs::read(from).expect("built"));
    }

    /// Exit code and standard output of `sluice module ARGUMENTS`, run in the folder; standard error must
    /// be empty unless it could not do its work.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .current_dir(self.folder.path())
            .arg("module")
            .args(arguments)
            .env_remove("SLUICE_CONFIG")
            .output()
            .expect("sluice runs");
        let code = output.status.code().expect("no signal");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(code == 2, !errors.is_empty(), "{said}{errors}");
        let folder = self.folder.path().display().to_string();
        (code, format!("{said}{errors}").replace(&folder, "<folder>"))
    }
}

/// The text without what another compiler makes different.
fn stable(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once("  ") {
        Some(("module", rest)) => {
            format!("module  {}, <size> bytes", rest.trim().split(',').next().unwrap_or_default())
        }
        Some(("revision", _)) => "revision  <revision>".to_owned(),
        Some((side @ ("a" | "b"), rest)) if rest.contains("revision") => {
            format!("{side}  {} <revision>", rest.rsplit_once(' ').unwrap_or_default().0)
        }
        _ => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

#[test]
fn inspect_says_what_a_module_is() {
    let desk = Desk::new();
    for module in ["purchase-rows.wasm", "validators/purchase-rules.wasm"] {
        desk.copy(module);
    }
    let (code, text) = desk.run(&["inspect", "purchase-rows.wasm"]);
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!("inspect-a-mapper", stable(&text));

    desk.write("purchase-rules.cases.jsonl", "{\"payload\": null, \"rejected\": \"tombstone\"}\n");
    let settings = r#"{"currencies": ["EUR"], "methods": ["card"]}"#;
    let (code, text) = desk.run(&["inspect", "purchase-rules.wasm", "--settings", settings]);
    assert_eq!(code, 0, "{text}");
    insta::assert_snapshot!("inspect-a-validator", stable(&text));
    desk.write("settings.json", settings);
    let again = desk.run(&["inspect", "purchase-rules.wasm", "--settings", "@settings.json"]);
    assert_eq!(again, (0, text));
}

#[test]
fn inspect_says_why_a_module_would_be_refused() {
    let desk = Desk::new();
    desk.copy("validators/purchase-rules.wasm");
    desk.write("text.wasm", "#!/bin/sh\n");
    for (arguments, expected) in [
        (vec!["text.wasm"], "refused   it is not WebAssembly: it looks like text"),
        (
            vec!["purchase-rules.wasm", "--settings", r#"{"currency": "EUR"}"#],
            "refused   it refuses its settings: settings:",
        ),
    ] {
        let (code, text) = desk.run(&[&["inspect"], arguments.as_slice()].concat());
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(expected), "{text}");
    }
    desk.write("purchase-rules.cases.jsonl", "{}");
    let (code, text) = desk.run(&["inspect", "purchase-rules.wasm"]);
    assert_eq!(code, 1);
    assert!(text.contains("cases     refused: it has golden cases that cannot be read: line 1"), "{text}");
    for (arguments, expected) in [
        (vec!["nowhere.wasm"], "error: cannot read nowhere.wasm"),
        (vec!["purchase-rules.wasm", "--settings", "[]"], "is no JSON object"),
        (vec!["purchase-rules.wasm", "--pipeline", "a"], "--pipeline needs a configuration"),
        (vec!["purchase-rules.wasm", "--config", "no.yaml"], "no.yaml"),
    ] {
        let (code, text) = desk.run(&[&["inspect"], arguments.as_slice()].concat());
        assert_eq!(code, 2, "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn settings_come_from_the_configuration_by_the_name_of_the_module() {
    let desk = Desk::new();
    desk.copy("validators/purchase-rules.wasm");
    let pipeline = |currency: &str| {
        format!(
            "{{topics: [t], mapper: rows.wasm, settings: {{purchase-rules: {{currencies: [{currency}]}}}}}}"
        )
    };
    let config = |a: &str, b: &str| {
        format!(
            "clickhouse: {{migrate_at_start: false}}\npipelines:\n  a: {}\n  b: {}\n  c: {{topics: [t], mapper: rows.wasm}}\n",
            pipeline(a),
            pipeline(b).replace("topics: [t]", "topics: [u]")
        )
    };
    desk.write("config/sluice.yaml", config("EUR", "EUR"));
    let (code, text) = desk.run(&["inspect", "purchase-rules.wasm"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(r#"settings  {"currencies":["EUR"]}"#), "{text}");
    desk.write("config/sluice.yaml", config("EUR", "USD"));
    let (code, text) = desk.run(&["inspect", "purchase-rules.wasm"]);
    assert_eq!(code, 2);
    assert!(text.contains("different settings or limits; choose with --pipeline: a, b"), "{text}");
    let (code, text) = desk.run(&["inspect", "purchase-rules.wasm", "--pipeline", "b"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(r#"settings  {"currencies":["USD"]}"#), "{text}");
}

#[test]
fn test_runs_the_cases_beside_the_file() {
    let desk = Desk::new();
    desk.copy("purchase-rows.wasm");
    let (code, text) = desk.run(&["test", "purchase-rows.wasm"]);
    assert_eq!(code, 2);
    assert!(text.contains("there is no purchase-rows.cases.jsonl; write golden cases into it"), "{text}");

    let purchase = std::fs::read_to_string(root().join("testdata/purchases.txt")).expect("test data");
    let purchase = purchase.lines().next().expect("a line");
    let cases = [
        format!(r#"{{"payload": {purchase}, "row": {{"price_cents": 3500, "user_id": "173658"}}}}"#),
        format!(r#"{{"name": "dear", "payload": {purchase}, "row": {{"price_cents": 3501, "titel": "x"}}}}"#),
        format!(r#"{{"payload": {purchase}, "rows": []}}"#),
        format!(r#"{{"payload": {purchase}, "filtered": true}}"#),
        format!(r#"{{"payload": {purchase}, "row": {{"price_cents": 3500}}, "exact": true}}"#),
        format!(r#"{{"payload": {purchase}, "rows": {{"purchase": []}}}}"#),
        format!(r#"{{"payload": {purchase}, "rejected": "no_such_code"}}"#),
        r#"{"payload": "{}", "rejected": "missing_field", "field": "trainer_id"}"#.to_owned(),
        r#"{"payload": "{}", "rejected": true}"#.to_owned(),
        r#"{"payload": "{}", "accepted": true}"#.to_owned(),
    ];
    desk.write("purchase-rows.cases.jsonl", cases.join("\n"));
    let (code, text) = desk.run(&["test", "purchase-rows.wasm"]);
    assert_eq!(code, 1);
    insta::assert_snapshot!("failing-cases", text);

    desk.write("good.jsonl", format!("{}\n{}\n", cases[0], cases[8]));
    let (code, text) = desk.run(&["test", "purchase-rows.wasm", "--cases", "good.jsonl"]);
    assert_eq!((code, text.as_str()), (0, "good.jsonl: 2 passed, 0 failed\n"));
    desk.write("bad.jsonl", "{}\n");
    assert_eq!(desk.run(&["test", "purchase-rows.wasm", "--cases", "bad.jsonl"]).0, 1);
}

#[test]
fn the_shipped_modules_say_what_their_cases_say() {
    let desk = Desk::new();
    for module in ["validators/purchase-rules", "purchase-rows"] {
        let file = purchase_modules().join(format!("{module}.wasm")).display().to_string();
        let (code, text) = desk.run(&["test", &file]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains(" passed, 0 failed"), "{text}");
    }
}

#[test]
fn a_module_that_breaks_fails_its_cases_and_the_program_goes_on() {
    let desk = Desk::new();
    desk.write("hostile.wasm", hostile_validator(|text| text));
    // What the guest does goes by the first letter of a payload; 512 cases are more than one call.
    let loops = "{\"payload\": \"L\", \"accepted\": true}\n";
    let fine = "{\"payload\": \"a\", \"accepted\": true}\n";
    desk.write("hostile.cases.jsonl", [loops, &fine.repeat(511)].concat());
    let (code, text) = desk.run(&["test", "hostile.wasm"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("line 1: expected accepted, came rejected timeout: "), "{text}");
    assert!(text.contains("line 257 and 255 more: not run, since the module used up its time"), "{text}");
    assert!(text.ends_with("hostile.cases.jsonl: 255 passed, 257 failed\n"), "{text}");
}

#[test]
fn test_says_what_a_module_makes_of_a_file() {
    let desk = Desk::new();
    desk.write("choosy.wasm", choosy_validator());
    desk.write("input.jsonl", "apple\n\nbanana\r\n  x\ncherry");
    let settings = r#"{"reject":"b"}"#;
    let (code, text) = desk.run(&["test", "choosy.wasm", "--input", "input.jsonl", "--settings", settings]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("input", text);
}

#[test]
fn diff_says_where_two_modules_differ() {
    let desk = Desk::new();
    for name in ["a.wasm", "b.wasm"] {
        desk.write(name, choosy_validator());
    }
    desk.copy("purchase-rows.wasm");
    let settings = r#"{a: {reject: "x"}, b: {reject: "y"}}"#;
    let config = format!(
        "clickhouse: {{migrate_at_start: false}}\npipelines: {{p: {{topics: [t], mapper: rows.wasm, settings: {settings}}}}}\n"
    );
    desk.write("config/sluice.yaml", config);
    desk.write("input.jsonl", "x1\ny1\nz1\nx2\n");
    let (code, text) = desk.run(&["diff", "a.wasm", "b.wasm", "--input", "input.jsonl"]);
    assert_eq!(code, 1, "{text}");
    insta::assert_snapshot!("diff", stable(&text));
    let (code, text) = desk.run(&["diff", "a.wasm", "b.wasm", "--input", "input.jsonl", "--name", "a"]);
    assert_eq!(code, 0, "the same bytes with the same settings are the same: {text}");
    assert!(!text.contains("settings"), "{text}");
    let (code, text) = desk.run(&["diff", "a.wasm", "b.wasm"]);
    assert_eq!(code, 2);
    assert!(text.contains("<--input <INPUT>|--topic>"), "both ways are named: {text}");
    let (code, text) = desk.run(&["inspect", "b.wasm", "--name", "a"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("module    a,") && text.contains(r#"settings  {"reject":"x"}"#), "{text}");
    desk.write("same.jsonl", "z1\nz2\n");
    assert_eq!(desk.run(&["diff", "a.wasm", "b.wasm", "--input", "same.jsonl"]).0, 0);
    let (code, text) = desk.run(&["diff", "a.wasm", "purchase-rows.wasm", "--input", "same.jsonl"]);
    assert_eq!(code, 2);
    assert!(text.contains("is a validator and purchase-rows.wasm a mapper; compare two of a kind"), "{text}");
}

/// What runs is in the archive, what it judged is in the topic.
#[test]
fn diff_compares_a_revision_of_the_archive_on_the_newest_records_of_the_topic() {
    let desk = Desk::new();
    let broker = EmbeddedBroker::start(&[("orders", 3)]).expect("started");
    let clickhouse = ClickHouse::start();
    let (bytes, settings) = (choosy_validator(), r#"{"reject":"x"}"#.to_owned());
    let revision = module_revision(&bytes, &settings);
    let kept = ArchivedModule {
        revision,
        stage: Stage::Validate,
        name: "choosy".into(),
        bytes: bytes.clone().into(),
        settings,
    };
    let archive =
        RevisionArchive::new(&ClickHouseSettings { url: clickhouse.url(), ..ClickHouseSettings::default() });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        archive.ensure().await.expect("the table is made");
        archive.store(&[kept]).await.expect("it is kept");
    });
    desk.write("choosy.wasm", bytes);
    desk.write(
        "config/sluice.yaml",
        format!(
            "kafka: {{brokers: \"{}\"}}\nclickhouse: {{url: \"{}\", migrate_at_start: false}}\n\
             pipelines: {{p: {{topics: [orders], mapper: rows.wasm, settings: {{choosy: {{reject: \"y\"}}}}}}}}\n",
            broker.bootstrap(),
            clickhouse.url()
        ),
    );
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", broker.bootstrap()).create().expect("a producer");
    for partition in 0..3 {
        // Too old to be among the newest ten of each.
        let payloads =
            (0..30).map(|number| if number < 20 { "x old".to_owned() } else { format!("z{number}") });
        for payload in payloads.chain(["x".to_owned(), "y".to_owned()]) {
            let record = BaseRecord::<(), _>::to("orders").partition(partition).payload(&payload);
            producer.send(record).expect("there is room");
        }
    }
    producer.flush(PATIENCE).expect("the broker takes them");

    let digits = revision.to_string();
    let (code, text) = desk.run(&["diff", &digits, "choosy.wasm", "--topic", "--last", "36", "--json"]);
    assert_eq!(code, 1, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (key, count) in [("records", 36), ("same", 30), ("newly_accepted", 3), ("newly_rejected", 3)] {
        assert_eq!(report[key], count, "{key}: {report}");
    }
    assert_eq!(report["live"], digits.as_str());
    let (code, text) = desk.run(&["diff", "0123456789", "choosy.wasm", "--topic"]);
    assert_eq!(code, 2);
    assert!(text.contains("no revision of module choosy begins with 0123456789"), "{text}");
    // A file that is called otherwise, as one that was just built.
    desk.write("new/choosy-2.wasm", choosy_validator());
    let (code, text) = desk.run(&["diff", &digits, "new/choosy-2.wasm", "--topic"]);
    assert!(code == 2 && text.contains("--name says which module it is of"), "{text}");
    let arguments = ["diff", &digits, "new/choosy-2.wasm", "--topic", "--last", "36", "--name", "choosy"];
    let (code, text) = desk.run(&arguments);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(r#"  b  choosy: {"reject":"y"}"#) && !text.contains("--name"), "{text}");
}
