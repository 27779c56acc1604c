//! `sluice audit` on the real parts: Apache Kafka, the ClickHouse engine, the sluice program. Clean after a
//! clean run; then each thing that can be wrong is made, and named.

mod support;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;

use support::clickhouse_server::ClickHouse;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, PATIENCE, Sluice};
use support::verdicts::{Traffic, read};

const TOPIC: &str = "purchases";
const DEAD_LETTER_TOPIC: &str = "purchases.dead-letters";
const PARTITIONS: usize = 3;
const RECORDS: u64 = 3_000;

fn is_done(sluice: &Sluice) -> bool {
    let status = sluice.status();
    let all = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
    all.len() == PARTITIONS
        && all.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
}

/// Exit code, and the object that was printed.
fn audit(configuration: &Configuration, more: &[&str]) -> (i32, Value) {
    let (code, text, errors) = audit_text(configuration, &[&["--json"], more].concat());
    let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{errors}"));
    (code, value)
}

/// Exit code, standard output and error.
fn audit_text(configuration: &Configuration, more: &[&str]) -> (i32, String, String) {
    let output = configuration.prepare(&[&["audit"], more].concat()).output().expect("sluice runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("no signal");
    (code, text(&output.stdout), text(&output.stderr))
}

/// The offsets of one kind of finding, over all partitions, as `partition/first-last`.
fn found(audit: &Value, key: &str) -> Vec<String> {
    let partitions = audit["pipelines"][0]["partitions"].as_array().expect("partitions");
    let ranges = partitions.iter().flat_map(|partition| {
        let ranges = partition[key]["ranges"].as_array().expect("ranges");
        ranges.iter().map(|range| format!("{}/{}-{}", partition["partition"], range["first"], range["last"]))
    });
    ranges.collect()
}

fn total(audit: &Value, key: &str) -> u64 {
    audit["pipelines"][0]["totals"][key].as_u64().unwrap_or_else(|| panic!("{key}: {audit}"))
}

#[test]
fn a_clean_run_is_clean_and_everything_that_is_wrong_is_named() {
    let kafka = ApacheKafka::start();
    kafka.create_topic(TOPIC, 3);
    kafka.create_topic_with(DEAD_LETTER_TOPIC, 1, &[("max.message.bytes", "4194304")]);
    let clickhouse = ClickHouse::start();
    let traffic = Traffic::generate(31, RECORDS, 0.1);
    traffic.send(kafka.bootstrap(), TOPIC);
    let configuration = Configuration::new(kafka.bootstrap(), &clickhouse.url());
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("the topic is drained", is_done);
    assert_eq!(sluice.stop(), Some(0));

    let (code, clean) = audit(&configuration, &[]);
    assert_eq!(code, 0, "{clean}");
    let faults = traffic.faults() as u64;
    assert_eq!(total(&clean, "consumed"), RECORDS);
    assert_eq!(total(&clean, "inserted"), RECORDS - faults);
    assert_eq!(total(&clean, "dead_lettered"), faults);

    // A row deleted, another twice, a dead letter twice, a dead letter of a record that has a row.
    let places: Vec<(i32, i64)> = clickhouse.rows(
        "SELECT _partition, _offset FROM purchases WHERE _offset > 10 ORDER BY _partition, _offset LIMIT 3",
    );
    let here = |(partition, offset): (i32, i64)| format!("_partition = {partition} AND _offset = {offset}");
    let shown = |(partition, offset): (i32, i64)| format!("{partition}/{offset}-{offset}");
    let [deleted, doubled, both] = places[..] else { panic!("{places:?}") };
    clickhouse.execute(&format!(
        "ALTER TABLE purchases DELETE WHERE {} SETTINGS mutations_sync = 1",
        here(deleted)
    ));
    clickhouse.execute(&format!(
        "INSERT INTO purchases SELECT * FROM purchases WHERE {} SETTINGS insert_deduplicate = 0",
        here(doubled)
    ));
    let letters = read(kafka.bootstrap(), DEAD_LETTER_TOPIC);
    let letter = letters.first().expect("there are dead letters");
    let origin = |name| letter.header(name).and_then(|value| value.parse::<i64>().ok()).expect("a number");
    let repeated = (origin("sluice.partition") as i32, origin("sluice.offset"));
    dead_letter(&kafka, repeated);
    dead_letter(&kafka, both);

    let (code, wrong) = audit(&configuration, &[]);
    assert_eq!(code, 1, "{wrong}");
    assert_eq!(found(&wrong, "missing"), [shown(deleted)]);
    assert_eq!(found(&wrong, "repeated_rows"), [shown(doubled)]);
    assert_eq!(found(&wrong, "repeated_dead_letters"), [shown(repeated)]);
    assert_eq!(found(&wrong, "inserted_and_dead_lettered"), [shown(both)]);
    assert_eq!(total(&wrong, "consumed"), RECORDS);
    let (code, text, _) = audit_text(&configuration, &[]);
    assert_eq!(code, 1, "{text}");
    let line = format!(
        "purchases/{}: 1 record in no table and not in the dead-letter topic: {}",
        deleted.0, deleted.1
    );
    assert!(text.lines().any(|printed| printed == line), "{line:?} is not in\n{text}");

    // What stands before `--from` is not looked at.
    let from = places.iter().map(|(_, offset)| offset + 1).max().expect("some").max(repeated.1 + 1);
    let (code, later) = audit(&configuration, &["--from", &from.to_string()]);
    assert_eq!(code, 0, "{later}");
    assert!(total(&later, "consumed") < RECORDS);
    let (code, none) = audit(&configuration, &["--from", "2099-01-01T00:00:00Z"]);
    assert_eq!((code, total(&none, "consumed")), (0, 0));

    // Without its offsets a table says nothing.
    clickhouse.execute("ALTER TABLE purchases DROP INDEX offsets, DROP COLUMN _offset");
    let (code, _, errors) = audit_text(&configuration, &[]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("cannot be asked which records it holds"), "{errors}");
}

#[test]
fn an_audit_that_cannot_look_says_so() {
    let kafka = ApacheKafka::start();
    kafka.create_topic(TOPIC, 1);
    kafka.create_topic(DEAD_LETTER_TOPIC, 1);
    let configuration = Configuration::new(kafka.bootstrap(), "http://127.0.0.1:9");
    let (code, _, errors) = audit_text(&configuration, &[]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("cannot reach ClickHouse"), "{errors}");
    let (code, _, errors) = audit_text(&configuration, &["--pipeline", "orders"]);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("there is purchases"), "{errors}");
}

/// Produces one that says it is of the record at this place.
fn dead_letter(kafka: &ApacheKafka, (partition, offset): (i32, i64)) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .create()
        .expect("a producer can be made");
    let (partition, offset) = (partition.to_string(), offset.to_string());
    let headers = [
        ("sluice.pipeline", "purchases"),
        ("sluice.topic", TOPIC),
        ("sluice.partition", &partition),
        ("sluice.offset", &offset),
    ];
    let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(*value) })
    });
    let record = BaseRecord::<str, str>::to(DEAD_LETTER_TOPIC).payload("again").key("key").headers(headers);
    producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    producer.flush(PATIENCE).expect("the broker acknowledges");
}
