//! `sluice produce` and `produce::send` against a broker: librdkafka's mock cluster, over TCP.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluice::produce::{Message, ProduceError, ProducerOptions, Progress, Summary, send};

const TOPIC: &str = "purchases";
const PARTITIONS: i32 = 3;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
    cluster
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_PRODUCE_")) {
        command.env_remove(name);
    }
    command.arg("produce").args(arguments);
    command
}

/// Runs `sluice produce` against the cluster's topic.
fn produce(cluster: &Cluster, arguments: &[&str]) -> Output {
    let brokers = cluster.bootstrap_servers();
    let mut command = command(&["--brokers", &brokers, "--topic", TOPIC]);
    command.args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the summary line says was produced; the command must have succeeded.
fn produced(output: &Output) -> u64 {
    assert!(output.status.success(), "{}{}", stdout(output), stderr(output));
    let stdout = stdout(output);
    let summary = stdout.lines().last().unwrap();
    let words: Vec<(&str, &str)> = summary.split(' ').filter_map(|word| word.split_once('=')).collect();
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["produced", "bytes", "seconds", "rate"], "{summary}");
    words[0].1.parse().unwrap()
}

/// Everything in the topic, partition by partition, in order.
fn consume(cluster: &Cluster) -> Vec<Message> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut left = 0;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(TOPIC, partition, Duration::from_secs(10)).unwrap();
        left += high - low;
        assignment.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut messages = Vec::new();
    while left > 0 {
        let message = consumer.poll(Duration::from_secs(10)).expect("a message in time").unwrap();
        let headers = message.headers().into_iter().flat_map(rdkafka::message::Headers::iter);
        messages.push(Message {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                .collect(),
            timestamp: message.timestamp().to_millis(),
        });
        left -= 1;
    }
    messages
}

fn lines(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

fn payload_text(text: &str) -> Message {
    Message { payload: Some(text.as_bytes().to_vec()), ..Message::default() }
}

fn go_on(_: &Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn every_line_arrives_with_its_key() {
    let cluster = cluster();
    let file = lines(b"{\"id\":\"a\",\"n\":1}\n{\"id\":\"b\"}\n{\"id\":\"a\",\"n\":2}\n{\"other\":1}\n");
    let output = produce(&cluster, &["--file", path(&file), "--key-field", "id"]);
    assert_eq!(produced(&output), 4);
    let mut messages: Vec<_> =
        consume(&cluster).into_iter().map(|message| (message.key, message.payload)).collect();
    // Both of one key are in one partition, in order; a stable sort keeps that.
    messages.sort_by(|left, right| left.0.cmp(&right.0));
    let pair = |key: Option<&str>, payload: &str| {
        (key.map(|key| key.as_bytes().to_vec()), Some(payload.as_bytes().to_vec()))
    };
    assert_eq!(
        messages,
        [
            pair(None, "{\"other\":1}"),
            pair(Some("a"), "{\"id\":\"a\",\"n\":1}"),
            pair(Some("a"), "{\"id\":\"a\",\"n\":2}"),
            pair(Some("b"), "{\"id\":\"b\"}"),
        ]
    );
}

#[test]
fn the_committed_purchases_arrive_whole() {
    let cluster = cluster();
    let file = testdata("purchases.txt");
    let refused = produce(&cluster, &["--file", file.to_str().unwrap()]);
    assert!(!refused.status.success() && stderr(&refused).contains("--raw"), "{}", stderr(&refused));
    let arguments = ["--file", file.to_str().unwrap(), "--key-field", "purchase_id", "--raw"];
    assert_eq!(produced(&produce(&cluster, &arguments)), 10_000);
    let mut arrived: Vec<String> = consume(&cluster)
        .into_iter()
        .map(|message| String::from_utf8(message.payload.unwrap()).unwrap())
        .collect();
    let committed = std::fs::read_to_string(&file).unwrap();
    let mut sent: Vec<&str> = committed.lines().collect();
    arrived.sort();
    sent.sort_unstable();
    assert!(arrived == sent, "{} of {} lines", arrived.len(), sent.len());
}

#[test]
fn a_line_that_is_not_json_stops_everything_before_it_starts() {
    let cluster = cluster();
    let file = lines(b"{\"id\":\"a\"}\n{\"id\":\n");
    let output = produce(&cluster, &["--file", path(&file)]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains(path(&file)) && error.contains("line 2: not JSON") && error.contains("--raw"),
        "{error}"
    );
    assert_eq!(consume(&cluster), []);
    assert_eq!(produced(&produce(&cluster, &["--file", path(&file), "--raw"])), 2);
    assert_eq!(consume(&cluster).len(), 2);
}

#[test]
fn a_file_is_repeated_up_to_the_count() {
    let cluster = cluster();
    let file = lines(b"1\n2\n3\n");
    assert_eq!(produced(&produce(&cluster, &["--file", path(&file), "--loop", "--count", "8"])), 8);
    let mut counts = BTreeMap::<_, u32>::new();
    for message in consume(&cluster) {
        *counts.entry(message.payload.unwrap()).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [3, 3, 2]);
}

#[test]
fn options_come_from_the_environment() {
    let cluster = cluster();
    let output = command(&[])
        .env("SLUICE_PRODUCE_BROKERS", cluster.bootstrap_servers())
        .env("SLUICE_PRODUCE_TOPIC", TOPIC)
        .env("SLUICE_PRODUCE_GENERATE", testdata("purchases.generator.yaml"))
        .env("SLUICE_PRODUCE_COUNT", "20")
        .env("SLUICE_PRODUCE_RATE", "2000/s")
        .env("SLUICE_PRODUCE_LOOP", "true")
        .env("SLUICE_PRODUCE_RAW", "false")
        .env("SLUICE_PRODUCE_COMPRESSION", "zstd")
        .env("SLUICE_PRODUCE_PROPERTIES", "linger.ms=1;batch.size=2000")
        .output()
        .unwrap();
    assert_eq!(produced(&output), 20);
    assert_eq!(consume(&cluster).len(), 20);
}

#[test]
fn generated_records_arrive_with_their_expected_verdicts_beside_them() {
    let cluster = cluster();
    let description = testdata("purchases.generator.yaml");
    let expected = tempfile::NamedTempFile::new().unwrap();
    let arguments = [
        "--generate",
        description.to_str().unwrap(),
        "--seed",
        "3",
        "--count",
        "500",
        "--fault-share",
        "0.4",
        "--expected",
        path(&expected),
    ];
    assert_eq!(produced(&produce(&cluster, &arguments)), 500);
    let messages = consume(&cluster);
    let tombstones = messages.iter().filter(|message| message.payload.is_none()).count();
    let empty = messages.iter().filter(|message| message.payload.as_deref() == Some(&[])).count();
    let expected = std::fs::read_to_string(expected.path()).unwrap();
    let faults = |name: &str| expected.lines().filter(|line| line.contains(&format!("\"{name}\""))).count();
    assert_eq!(expected.lines().count(), 500);
    assert!(tombstones > 0 && empty > 0, "{tombstones} tombstones and {empty} empty payloads");
    assert_eq!((tombstones, empty), (faults("tombstone"), faults("empty_payload")));
}

#[test]
fn one_of_each_fault_arrives_even_the_large_one() {
    let cluster = cluster();
    let description = testdata("purchases.generator.yaml");
    let arguments = ["--generate", description.to_str().unwrap(), "--each-fault"];
    let refused = produce(&cluster, &arguments);
    assert!(!refused.status.success(), "a mebibyte is more than the default of message.max.bytes");
    assert!(stderr(&refused).contains("was not delivered"), "{}", stderr(&refused));
    assert!(
        stdout(&refused).starts_with("produced="),
        "the summary comes all the same: {}",
        stdout(&refused)
    );

    let cluster = self::cluster();
    let output = produce(&cluster, &[&arguments[..], &["--property", "message.max.bytes=2000000"]].concat());
    let messages = consume(&cluster);
    assert_eq!(produced(&output), messages.len() as u64);
    assert!(messages.iter().any(|message| message.payload_size() > 1024 * 1024));
}

#[test]
fn payloads_can_be_written_to_a_file_instead() {
    let out = tempfile::NamedTempFile::new().unwrap();
    let description = testdata("purchases.generator.yaml");
    let arguments = ["--generate", description.to_str().unwrap(), "--count", "100", "--fault-share", "0.05"];
    let output = command(&arguments).args(["--out", path(&out)]).output().unwrap();
    assert_eq!(produced(&output), 100);
    let written = std::fs::read_to_string(out.path()).unwrap();
    let committed = std::fs::read_to_string(testdata("purchases.txt")).unwrap();
    assert!(
        committed.starts_with(&written) && written.lines().count() == 100,
        "the same seed, the same lines"
    );
}

#[test]
fn wrong_arguments_say_what_is_right() {
    let description = testdata("purchases.generator.yaml");
    let description = description.to_str().unwrap();
    for (arguments, part) in [
        (&["--generate", description, "--out", "/dev/null"][..], "--count N, or --loop"),
        (&["--out", "/dev/null"], "--file <FILE>|--generate"),
        (&["--file", "a", "--generate", description, "--out", "/dev/null"], "cannot be used with"),
        (&["--file", "/nonexistent", "--out", "/dev/null"], "cannot read /nonexistent"),
        (&["--file", description], "--brokers"),
        (&["--generate", description, "--fault-share", "5", "--out", "/dev/null"], "from 0 to 1"),
    ] {
        let output = command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_full_queue_is_waited_for() {
    let cluster = cluster();
    let options = ProducerOptions {
        properties: vec![("queue.buffering.max.messages".to_owned(), "7".to_owned())],
        ..ProducerOptions::new(cluster.bootstrap_servers(), TOPIC)
    };
    let summary = send((0..500).map(|n| payload_text(&n.to_string())), &options, go_on).unwrap();
    assert_eq!((summary.produced, summary.failed, summary.stopped), (500, 0, false));
    let mut arrived: Vec<u32> = consume(&cluster)
        .into_iter()
        .map(|message| String::from_utf8(message.payload.unwrap()).unwrap().parse().unwrap())
        .collect();
    arrived.sort_unstable();
    assert!(arrived.into_iter().eq(0..500), "each once");
}

#[test]
fn nothing_that_a_message_has_is_lost() {
    let cluster = cluster();
    let sent = [
        Message { timestamp: Some(1_700_000_000_123), ..Message::default() },
        Message {
            key: Some(Vec::new()),
            payload: Some(Vec::new()),
            headers: vec![
                ("trace".to_owned(), Some(vec![0, 255])),
                ("trace".to_owned(), None),
                ("empty".to_owned(), Some(Vec::new())),
            ],
            timestamp: Some(1_700_000_000_124),
        },
    ];
    let options = ProducerOptions::new(cluster.bootstrap_servers(), TOPIC);
    let summary = send(sent.clone(), &options, go_on).unwrap();
    assert_eq!((summary.produced, summary.bytes), (2, 0));
    let mut arrived = consume(&cluster);
    arrived.sort_by_key(|message| message.timestamp);
    assert_eq!(arrived, sent);
}

#[test]
fn every_codec_works() {
    use sluice::produce::Compression::{Gzip, Lz4, None, Snappy, Zstd};
    let cluster = cluster();
    let text = "compress me ".repeat(100);
    for compression in [None, Gzip, Snappy, Lz4, Zstd] {
        let options =
            ProducerOptions { compression, ..ProducerOptions::new(cluster.bootstrap_servers(), TOPIC) };
        let summary = send(vec![payload_text(&text); 10], &options, go_on);
        assert_eq!(summary.unwrap().produced, 10, "{compression:?}");
    }
    let arrived = consume(&cluster);
    assert!(
        arrived.len() == 50
            && arrived.iter().all(|message| message.payload.as_deref() == Some(text.as_bytes()))
    );
}

#[test]
fn a_missing_broker_is_said_in_time() {
    let started = Instant::now();
    let arguments = ["--brokers", "127.0.0.1:1", "--topic", TOPIC, "--timeout", "2s"];
    let file = lines(b"1\n");
    let output = command(&arguments).args(["--file", path(&file)]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let error = stderr(&output);
    assert!(error.contains("no broker answered at 127.0.0.1:1 within 2s"), "{error}");
    assert!(error.contains("Connection refused") && error.contains("--brokers"), "{error}");
}

#[test]
fn a_missing_topic_is_not_made_by_accident() {
    let cluster = cluster();
    let brokers = cluster.bootstrap_servers();
    let options = ProducerOptions::new(&brokers, "elsewhere");
    let error = send([payload_text("1")], &options, go_on).unwrap_err();
    assert!(matches!(error, ProduceError::TopicMissing { .. }), "{error}");
    assert!(error.to_string().contains("--create-topic PARTITIONS"), "{error}");
    let again = send([payload_text("1")], &options, go_on).unwrap_err();
    assert!(matches!(again, ProduceError::TopicMissing { .. }), "asking did not create it: {again}");
    // The mock has no such request; a broker that has is met in the tests on Apache Kafka.
    let options = ProducerOptions { create_topic: Some(2), timeout: Duration::from_secs(1), ..options };
    let error = send([payload_text("1")], &options, go_on).unwrap_err();
    assert!(matches!(error, ProduceError::TopicNotCreated { .. }), "{error}");
}

#[test]
fn a_refused_property_is_named() {
    let cluster = cluster();
    let file = lines(b"1\n");
    let output = produce(&cluster, &["--file", path(&file), "--property", "no.such.thing=1"]);
    let error = stderr(&output);
    assert!(
        !output.status.success() && error.contains("no.such.thing") && error.contains("--property"),
        "{error}"
    );
}

#[test]
fn a_failed_delivery_fails_the_run() {
    let cluster = cluster();
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
    );
    // Without idempotence such an error is final for its batch alone.
    let file = lines(b"1\n");
    let output = produce(&cluster, &["--file", path(&file), "--property", "enable.idempotence=false"]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stdout(&output).starts_with("produced=0 "), "{}", stdout(&output));
    let error = stderr(&output);
    assert!(error.contains("message 0 was not delivered") && error.contains("uthoriz"), "{error}");
}

#[test]
fn the_caller_can_stop_a_run_and_what_was_sent_is_confirmed() {
    let cluster = cluster();
    let options =
        ProducerOptions { rate: Some(200.0), ..ProducerOptions::new(cluster.bootstrap_servers(), TOPIC) };
    let endless = std::iter::repeat_with(|| payload_text("x"));
    let summary: Summary = send(endless, &options, |progress| {
        if progress.sent >= 20 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert!(summary.stopped && summary.produced >= 20, "{summary:?}");
    assert_eq!(consume(&cluster).len() as u64, summary.produced);
}

#[test]
fn an_interrupt_flushes_and_reports() {
    let cluster = cluster();
    let description = testdata("purchases.generator.yaml");
    let brokers = cluster.bootstrap_servers();
    let mut child =
        command(&["--brokers", &brokers, "--topic", TOPIC, "--loop", "--rate", "500/s", "--generate"])
            .arg(description)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while consume(&cluster).is_empty() {
        assert!(Instant::now() < deadline, "nothing arrived");
        std::thread::sleep(Duration::from_millis(50));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(produced(&output), consume(&cluster).len() as u64);
    assert!(stderr(&output).contains("stopping"), "{}", stderr(&output));
}
