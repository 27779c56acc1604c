//! Apache Kafka as the tests start it: topics, records, a foreign client, transactions, a crash.
//!
//! This proves the stage that the end-to-end tests stand on, not Sluice: that the broker of
//! `deploy/kafka` is a real one, keeps what it acknowledged, and is gone afterwards.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use support::kafka::ApacheKafka;

type PlainProducer = ThreadedProducer<rdkafka::producer::DefaultProducerContext>;

const PATIENCE: Duration = Duration::from_secs(30);

/// What `kcat` reads from the start of a topic to its end, a record a line.
fn kcat(kafka: &ApacheKafka, topic: &str, format: &str) -> Vec<String> {
    let output = Command::new("kcat")
        .args(["-b", kafka.bootstrap(), "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", format])
        .output()
        .expect("kcat is installed: run `make setup`");
    assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

fn producer(kafka: &ApacheKafka, properties: &[(&str, &str)]) -> PlainProducer {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", kafka.bootstrap()).set("acks", "all");
    for (key, value) in properties {
        settings.set(*key, *value);
    }
    settings.create().expect("a producer can be made")
}

#[test]
fn a_foreign_client_reads_what_was_produced_even_after_a_crash() {
    let mut kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 3);

    let producer = producer(&kafka, &[]);
    for number in 0..300 {
        let key = format!("key-{number}");
        let payload = format!("{{\"number\":{number}}}");
        let record = BaseRecord::to("purchases")
            .partition(number % 3)
            .key(&key)
            .payload(&payload)
            .timestamp(1_700_000_000_000 + i64::from(number))
            .headers(OwnedHeaders::new().insert(Header { key: "origin", value: Some("test") }));
        producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    }
    producer.flush(PATIENCE).expect("the broker acknowledges");

    let mut expected: Vec<String> = (0..300)
        .map(|number| {
            let timestamp = 1_700_000_000_000_i64 + number;
            format!(
                "{} {} key-{number} {timestamp} origin=test {{\"number\":{number}}}",
                number % 3,
                number / 3
            )
        })
        .collect();
    expected.sort();

    let format = "%p %o %k %T %h %s\n";
    let mut read = kcat(&kafka, "purchases", format);
    read.sort();
    assert_eq!(read, expected);

    kafka.kill();
    assert!(!kafka.is_running());
    let bootstrap = kafka.bootstrap().to_owned();
    kafka.restart();
    assert_eq!(kafka.bootstrap(), bootstrap);
    let mut read = kcat(&kafka, "purchases", format);
    read.sort();
    assert_eq!(read, expected, "acknowledged records outlive a killed broker");
}

#[test]
fn an_aborted_transaction_is_not_seen_and_a_newer_producer_fences_the_older() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("letters", 1);
    let transactional = [("transactional.id", "letters-writer"), ("transaction.timeout.ms", "10000")];
    let send = |producer: &PlainProducer, payload: &str| {
        let record = BaseRecord::<(), str>::to("letters").payload(payload);
        producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    };

    let older = producer(&kafka, &transactional);
    older.init_transactions(PATIENCE).expect("initialised");
    older.begin_transaction().expect("begun");
    send(&older, "aborted");
    older.flush(PATIENCE).expect("written");
    older.abort_transaction(PATIENCE).expect("aborted");
    older.begin_transaction().expect("begun");
    send(&older, "committed");
    older.commit_transaction(PATIENCE).expect("committed");
    older.begin_transaction().expect("begun");
    send(&older, "fenced");
    older.flush(PATIENCE).expect("written");

    let newer = producer(&kafka, &transactional);
    newer.init_transactions(PATIENCE).expect("initialised");
    older.commit_transaction(PATIENCE).expect_err("the older producer is fenced");

    // kcat reads committed records only, as librdkafka does unless told otherwise.
    assert_eq!(kcat(&kafka, "letters", "%s\n"), ["committed"]);
}

#[test]
fn nothing_is_left_when_the_handle_is_dropped() {
    let kafka = ApacheKafka::start();
    let directory = kafka.directory().to_owned();
    assert!(kafka.is_running());
    assert_eq!(processes_naming(&directory), 1, "the broker's command line names its directory");

    drop(kafka);
    assert_eq!(processes_naming(&directory), 0, "the broker's process is gone");
    assert!(!directory.exists(), "its directory too");
}

/// How many processes have `directory` in their command line (a zombie has none).
fn processes_naming(directory: &Path) -> usize {
    let directory = directory.to_str().expect("text").as_bytes();
    let processes = std::fs::read_dir("/proc").expect("a system with /proc");
    processes
        .filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok())
        .filter(|command_line| command_line.windows(directory.len()).any(|window| window == directory))
        .count()
}
