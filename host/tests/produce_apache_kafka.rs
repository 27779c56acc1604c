//! `sluice produce` on Apache Kafka itself: what the mock cluster cannot show. Topics made on
//! request and never by accident, and keys where Kafka's own clients would put them.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::kafka::ApacheKafka;

fn produce(kafka: &ApacheKafka, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(["produce", "--brokers", kafka.bootstrap(), "--topic", "purchases"])
        .args(arguments)
        .output()
        .expect("sluice runs")
}

/// Partitions of the topic; 0 if the broker does not list it.
fn partitions(kafka: &ApacheKafka) -> usize {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a client");
    let metadata = consumer.fetch_metadata(None, Duration::from_secs(30)).expect("the broker answers");
    let topic = metadata.topics().iter().find(|topic| topic.name() == "purchases");
    topic.map_or(0, |topic| topic.partitions().len())
}

#[test]
fn a_topic_is_made_on_request_and_never_by_accident() {
    // The broker would make any topic that it is asked about by name.
    let kafka = ApacheKafka::start_with(&[("auto.create.topics.enable", "true")]);
    let description = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/purchases.generator.yaml");
    let description = description.to_str().expect("a path that is text");
    let generate = ["--generate", description, "--count", "1000"];

    let refused = produce(&kafka, &generate);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("topic `purchases` does not exist"), "{error}");
    assert_eq!(partitions(&kafka), 0, "the check itself made no topic");

    for round in 1..=2 {
        let output = produce(&kafka, &[&generate[..], &["--create-topic", "6"]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "round {round}: {error}");
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("produced=1000 "));
        assert_eq!(partitions(&kafka), 6, "an existing topic is left as it is");
    }

    // Each key went to the partition that Kafka's own clients choose: murmur2, as in
    // `org.apache.kafka.common.utils.Utils`.
    let output = Command::new("kcat")
        .args([
            "-b",
            kafka.bootstrap(),
            "-C",
            "-t",
            "purchases",
            "-o",
            "beginning",
            "-e",
            "-q",
            "-f",
            "%p %k\n",
        ])
        .output()
        .expect("kcat is installed: run `make setup`");
    let output = String::from_utf8(output.stdout).expect("keys are text");
    assert_eq!(output.lines().count(), 2_000);
    for line in output.lines() {
        let (partition, key) = line.split_once(' ').expect("a partition and a key");
        let expected = (murmur2(key.as_bytes()) & 0x7fff_ffff) % 6;
        assert_eq!(partition, expected.to_string(), "{key}");
    }
}

/// MurmurHash2, 32 bits, with Kafka's seed, for keys of a multiple of four bytes, as UUIDs are.
fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let (words, rest) = key.as_chunks::<4>();
    assert!(rest.is_empty(), "written for whole words only");
    let length = u32::try_from(key.len()).expect("a short key");
    let mut hash = words.iter().fold(0x9747_b28c ^ length, |hash, word| {
        let word = u32::from_le_bytes(*word).wrapping_mul(M);
        hash.wrapping_mul(M) ^ (word ^ (word >> 24)).wrapping_mul(M)
    });
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}
