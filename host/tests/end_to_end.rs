//! The whole program on embedded parts: outages that are waited out, starts that are refused, the
//! demo. Delivery itself is proven on Apache Kafka, in `delivery.rs`.

mod support;

use std::process::Command;
use std::time::Duration;

use sluice::embedded::broker::EmbeddedBroker;
use support::clickhouse_server::ClickHouse;
use support::sluice::{Configuration, Sluice, root};
use support::verdicts::{Repeats, Traffic};

const TOPIC: &str = "purchases";
const DEAD_LETTERS: &str = "purchases.dead-letters";

fn broker() -> EmbeddedBroker {
    EmbeddedBroker::start(&[(TOPIC, 4), (DEAD_LETTERS, 1)]).expect("the embedded broker starts")
}

fn configuration(broker: &EmbeddedBroker, clickhouse: &ClickHouse) -> Configuration {
    Configuration::new(&broker.bootstrap(), &clickhouse.url())
        // The embedded broker has no real transactions.
        .set("PIPELINES__PURCHASES__DELIVERY", "at-least-once")
        .set("PIPELINES__PURCHASES__BATCH__ROWS", "500")
        .set("PIPELINES__PURCHASES__BATCH__LINGER", "100ms")
}

fn assigned(sluice: &Sluice) -> bool {
    sluice.status()["pipelines"][0]["partitions"].as_array().map_or(0, Vec::len) == 4
}

#[test]
fn clickhouse_may_go_away_and_nothing_is_dead_lettered_for_it() {
    let broker = broker();
    let mut clickhouse = ClickHouse::start();
    let traffic = Traffic::generate_small(3, 6_000, 0.05);
    let sluice = Sluice::start(&configuration(&broker, &clickhouse));
    sluice.wait_until("every partition is assigned", assigned);
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);

    std::thread::scope(|scope| {
        let brokers = broker.bootstrap();
        let traffic = &traffic;
        let sending = scope.spawn(move || traffic.send_paced(&brokers, TOPIC, 400.0));
        sluice.wait_until("some records are settled", |sluice| sluice.settled() >= 500);
        clickhouse.kill();
        sluice.wait_until("it says that it waits for clickhouse", |sluice| {
            let (code, body) = sluice.get("/ready");
            code == 503 && body.contains("insert into purchases")
        });
        assert!(!sending.is_finished(), "the kill came too late to prove anything");
        assert_eq!(sluice.get("/live").0, 200);
        std::thread::sleep(Duration::from_secs(2));
        clickhouse.restart();
    });
    sluice.wait_until("everything is settled", |sluice| sluice.settled() >= 6_000);
    sluice.wait_until("it is ready again", |sluice| sluice.get("/ready").0 == 200);
    insta::assert_snapshot!("metrics", metric_names(&sluice));
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(&broker.bootstrap(), TOPIC, DEAD_LETTERS, &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

/// Two pipelines of one process have their own topics, groups, tables and dead letters.
#[test]
fn two_pipelines_run_side_by_side() {
    let topics = [("east", 2), ("east.dead", 1), ("west", 3), ("west.dead", 1)];
    let broker = EmbeddedBroker::start(&topics).expect("the embedded broker starts");
    let clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let modules = root().join("target/modules/purchases");
    let (validators, mapper) = (modules.join("validators"), modules.join("purchase-rows.wasm"));
    let pipeline = |name: &str| {
        format!(
            "  {name}:\n    topics: [{name}]\n    group: sluice-{name}\n    dead_letter_topic: {name}.dead\n    \
             delivery: at-least-once\n    validators: {}\n    mapper: {}\n    tables: {{ purchases: purchases_{name} }}\n    \
             batch: {{ linger: 100ms }}\n",
            validators.display(),
            mapper.display()
        )
    };
    let file = folder.path().join("sluice.yaml");
    let migrations = root().join("config/migrations");
    let text = format!(
        "clickhouse: {{ migrations: {}, migrate_at_start: false }}\npipelines:\n{}{}",
        migrations.display(),
        pipeline("east"),
        pipeline("west")
    );
    std::fs::write(&file, text).expect("the file is written");
    let configuration = Configuration::new(&broker.bootstrap(), &clickhouse.url()).with_file(file);
    let (success, _, error) = configuration.command(&["migrate"]);
    assert!(success, "{error}");
    for name in ["east", "west"] {
        clickhouse.execute(&format!("CREATE TABLE purchases_{name} AS purchases"));
    }

    let east = Traffic::generate_small(31, 1_000, 0.1);
    let west = Traffic::generate_small(37, 1_500, 0.1);
    east.send(&broker.bootstrap(), "east");
    west.send(&broker.bootstrap(), "west");
    let sluice = Sluice::start(&configuration);
    let settled = |sluice: &Sluice, pipeline: usize, records: u64| {
        let status = sluice.status();
        let partitions = status["pipelines"][pipeline]["partitions"].as_array().cloned().unwrap_or_default();
        let ended = |partition: &serde_json::Value| {
            partition["consumed"].as_u64().unwrap_or(0) - partition["in_flight"].as_u64().unwrap_or(0)
        };
        partitions.iter().map(ended).sum::<u64>() == records
    };
    sluice.wait_until("both are drained", |sluice| settled(sluice, 0, 1_000) && settled(sluice, 1, 1_500));
    assert_eq!(sluice.stop(), Some(0));
    let brokers = broker.bootstrap();
    assert_eq!(
        east.check_table(&brokers, "east", "east.dead", &clickhouse, "purchases_east"),
        Repeats::default()
    );
    assert_eq!(
        west.check_table(&brokers, "west", "west.dead", &clickhouse, "purchases_west"),
        Repeats::default()
    );
}

/// Every metric of ours with its type and labels, as dashboards and alerts know them.
fn metric_names(sluice: &Sluice) -> String {
    let (code, text) = sluice.get("/metrics");
    assert_eq!(code, 200);
    let mut names = std::collections::BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE sluice_")) {
        let (name, kind) = line.split_once(' ').expect("a name and a type");
        let sample = text.lines().find(|line| {
            line.strip_prefix("sluice_")
                .and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with("_count{"))
        });
        let labels: Vec<_> = sample
            .and_then(|sample| sample.split_once('{')?.1.split_once('}'))
            .map(|(labels, _)| {
                labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0)).collect()
            })
            .unwrap_or_default();
        names.insert(format!("sluice_{name}"), format!("{kind} {}", labels.join(" ")));
    }
    names.into_iter().map(|(name, rest)| format!("{name} {rest}\n")).collect()
}

/// What `sluice run` says when it refuses to start.
fn refusal(configuration: &Configuration) -> String {
    let (success, _, error) = configuration.command(&["run"]);
    assert!(!success, "it started: {error}");
    error.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_start_that_cannot_work_is_refused_with_the_key_and_the_cure() {
    let broker = broker();
    let clickhouse = ClickHouse::start();
    let good = || configuration(&broker, &clickhouse);

    let error = refusal(&good().set("PIPELINES__PURCHASES__TOPICS", "sales"));
    assert!(error.contains("pipelines.purchases.topics") && error.contains("--create"), "{error}");

    // The runs above have migrated; without its table, and migrations off, the start is refused.
    clickhouse.execute("RENAME TABLE purchases TO elsewhere");
    let unmigrated = || good().set("CLICKHOUSE__MIGRATE_AT_START", "false");
    let error = refusal(&unmigrated());
    assert!(error.contains("purchases") && error.contains("sluice migrate"), "{error}");

    clickhouse.execute(
        "CREATE TABLE purchases (purchase_id String, user_id String) ENGINE = MergeTree ORDER BY purchase_id",
    );
    let error = refusal(&unmigrated());
    assert!(
        error.contains("user_id") && error.contains("UInt64") && error.contains("ALTER TABLE"),
        "{error}"
    );
    assert!(error.contains("trainer_id"), "every fault at once: {error}");

    let error = refusal(&good().set("PIPELINES__PURCHASES__MAPPER", "nowhere.wasm"));
    assert!(error.contains("pipelines.purchases.mapper") && error.contains("nowhere.wasm"), "{error}");

    let rules = root().join("target/modules/purchases/validators/purchase-rules.wasm");
    let error = refusal(&good().set("PIPELINES__PURCHASES__MAPPER", &rules.to_string_lossy()));
    assert!(error.contains("purchase-rules.wasm") && error.contains("mapper"), "{error}");

    let error = refusal(&good().set("ADMIN__LISTEN", "nonsense").set("PIPELINES__PURCHASES__GRUOP", "x"));
    assert!(error.contains("admin.listen") && error.contains("gruop"), "{error}");
}

#[test]
fn a_broker_that_is_not_there_yet_is_waited_for() {
    let clickhouse = ClickHouse::start();
    let sluice = Sluice::start(&Configuration::new("127.0.0.1:1", &clickhouse.url()));
    sluice.wait_until("it says what it waits for", |sluice| {
        let (code, body) = sluice.get("/ready");
        code == 503 && body.contains("127.0.0.1:1")
    });
    assert_eq!(sluice.get("/live").0, 200);
    // A signal ends the wait.
    assert_eq!(sluice.stop(), Some(1));
}

#[test]
fn the_demo_counts_every_record_once_and_shows_what_each_revision_let_through() {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("demo")
        .current_dir(root())
        .output()
        .expect("the demo runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        text.lines().last(),
        Some("demo: produced=10000 inserted=9435 filtered=0 dead_lettered=565 in_flight=0")
    );
    // Half of the records met the changed rule, which rejects what the first one let through.
    let ends: Vec<_> = text.lines().map(str::trim_end).collect();
    let rule = |line: &str| ends.iter().any(|end| end.ends_with(line));
    assert!(rule("4746       254") && rule("4689       311  nothing_paid 102"), "{text}");
    assert!(text.contains("half-copied.status.json") && text.contains(r#""state": "refused""#), "{text}");
}
