//! Generated records with their expected verdicts, and the check that every one was met.
//!
//! Each record carries its number in a header, so that it is known again in the source topic and,
//! since headers come through unchanged, in the dead-letter topic; the table is joined by partition
//! and offset.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use sluice::kafka::reader::{OwnedRecord, read_all};
use sluice::produce::{
    Description, Expectation, Generated, Generator, GeneratorOptions, Message, ProducerOptions, send,
};

use super::clickhouse_server::ClickHouse;
use super::sluice::root;

/// Header with the record's number.
const NUMBER: &str = "test.number";

/// Generated records.
pub struct Traffic {
    messages: Vec<Message>,
    expectations: Vec<Expectation>,
}

/// How often records ended where they should, beyond once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    pub rows: usize,
    pub dead_letters: usize,
}

impl Traffic {
    /// `count` purchases, of which `fault_share` have a fault of any kind; some take a MiB.
    pub fn generate(seed: u64, count: u64, fault_share: f64) -> Self {
        Self::generate_some(seed, count, fault_share, false)
    }

    /// As [`Self::generate`], without the largest: the embedded broker keeps 5 MiB a partition.
    pub fn generate_small(seed: u64, count: u64, fault_share: f64) -> Self {
        Self::generate_some(seed, count, fault_share, true)
    }

    fn generate_some(seed: u64, count: u64, fault_share: f64, lines_only: bool) -> Self {
        let description = Description::read(&root().join("testdata/purchases.generator.yaml")).unwrap();
        let options = GeneratorOptions { seed, fault_share, lines_only };
        let generator = Generator::new(description, options).unwrap();
        let now = jiff::Timestamp::now();
        Self::of((0..count).map(|index| generator.generate(index, now)))
    }

    /// One record of every fault that there is, a payload of a MiB among them, each between good ones.
    pub fn every_fault() -> Self {
        let description = Description::read(&root().join("testdata/purchases.generator.yaml")).unwrap();
        let options = GeneratorOptions { seed: 29, fault_share: 0.0, lines_only: false };
        let generator = Generator::new(description, options).unwrap();
        let now = jiff::Timestamp::now();
        let good = (0..).map(|index| generator.generate(index, now));
        Self::of(generator.each_fault(1_000, now).zip(good).flat_map(|(faulty, good)| [faulty, good]))
    }

    fn of<'g>(records: impl Iterator<Item = Generated<'g>>) -> Self {
        let (mut messages, mut expectations) = (Vec::new(), Vec::new());
        for (number, generated) in records.enumerate() {
            let mut message = generated.message;
            message.headers.push((NUMBER.to_owned(), Some(number.to_string().into_bytes())));
            messages.push(message);
            expectations.push(generated.expectation.clone());
        }
        Self { messages, expectations }
    }

    /// Bytes of the largest payload.
    pub fn largest(&self) -> usize {
        self.messages.iter().map(Message::payload_size).max().unwrap_or(0)
    }

    /// Number of records that are to be dead-lettered.
    pub fn faults(&self) -> usize {
        self.expectations.iter().filter(|expected| matches!(expected, Expectation::Rejected(_))).count()
    }

    /// Sends everything, as fast as it goes, and waits for the acknowledgements.
    pub fn send(&self, brokers: &str, topic: &str) {
        self.send_with(&ProducerOptions::new(brokers, topic));
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// The records from place `at` on, to be sent apart. [`Self::and`] puts them behind again.
    pub fn split_off(&mut self, at: usize) -> Self {
        Self { messages: self.messages.split_off(at), expectations: self.expectations.split_off(at) }
    }

    /// These records and those that were behind them.
    pub fn and(mut self, mut other: Self) -> Self {
        self.messages.append(&mut other.messages);
        self.expectations.append(&mut other.expectations);
        self
    }

    /// Sends everything at `rate` records a second.
    pub fn send_paced(&self, brokers: &str, topic: &str, rate: f64) {
        self.send_with(&ProducerOptions { rate: Some(rate), ..ProducerOptions::new(brokers, topic) });
    }

    /// Sends at `rate` records a second until `enough` is set; returns what was sent.
    pub fn send_until(mut self, brokers: &str, topic: &str, rate: f64, enough: &AtomicBool) -> Self {
        let options = ProducerOptions { rate: Some(rate), ..ProducerOptions::new(brokers, topic) };
        let go_on = || {
            if enough.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let summary = send(self.messages.clone(), &larger(options), |_| go_on()).unwrap();
        assert!(summary.stopped, "everything was sent before it was enough");
        self.messages.truncate(summary.produced as usize);
        self.expectations.truncate(summary.produced as usize);
        self
    }

    fn send_with(&self, options: &ProducerOptions) {
        let summary =
            send(self.messages.clone(), &larger(options.clone()), |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(summary.produced, self.messages.len() as u64);
    }

    /// Checks that every record is in the table or in the dead-letter topic, as expected, with its
    /// original bytes, and nothing else is there. Returns what is there more than once.
    pub fn check(
        &self,
        brokers: &str,
        topic: &str,
        dead_letter_topic: &str,
        clickhouse: &ClickHouse,
    ) -> Repeats {
        self.check_table(brokers, topic, dead_letter_topic, clickhouse, "purchases")
    }

    /// As [`Self::check`], with the name of the table.
    pub fn check_table(
        &self,
        brokers: &str,
        topic: &str,
        dead_letter_topic: &str,
        clickhouse: &ClickHouse,
        table: &str,
    ) -> Repeats {
        let source = read(brokers, topic);
        assert_eq!(source.len(), self.messages.len(), "records in the source topic");
        let mut rows: BTreeMap<(i32, i64), Vec<String>> = BTreeMap::new();
        for (partition, offset, purchase) in clickhouse
            .rows::<(i32, i64, String)>(&format!("SELECT _partition, _offset, purchase_id FROM {table}"))
        {
            rows.entry((partition, offset)).or_default().push(purchase);
        }
        let mut letters: BTreeMap<(i32, i64), Vec<OwnedRecord>> = BTreeMap::new();
        for letter in read(brokers, dead_letter_topic) {
            assert_eq!(letter.header("sluice.topic"), Some(topic));
            let number = |name| letter.header(name).and_then(|value| value.parse().ok()).unwrap();
            let origin = (number("sluice.partition") as i32, number("sluice.offset"));
            letters.entry(origin).or_default().push(letter);
        }
        let mut repeats = Repeats::default();
        let mut seen = BTreeSet::new();
        for record in &source {
            let number: usize = record.header(NUMBER).unwrap().parse().unwrap();
            assert!(seen.insert(number), "record {number} is in the source topic twice");
            let origin = (record.partition, record.offset);
            let (rows, letters) = (rows.remove(&origin), letters.remove(&origin));
            match &self.expectations[number] {
                Expectation::Mapped => {
                    let rows = rows.unwrap_or_else(|| panic!("record {number} is lost: {record:?}"));
                    assert_eq!(letters, None, "record {number} is in the table and a dead letter");
                    let payload: serde_json::Value =
                        serde_json::from_slice(record.payload.as_ref().unwrap()).unwrap();
                    assert!(rows.iter().all(|purchase| *purchase == payload["purchase_id"]));
                    repeats.rows += rows.len() - 1;
                }
                Expectation::Filtered => panic!("the purchase modules filter nothing"),
                Expectation::Rejected(expected) => {
                    let letters = letters.unwrap_or_else(|| panic!("record {number} is lost: {record:?}"));
                    assert_eq!(rows, None, "record {number} is in the table and a dead letter");
                    for letter in &letters {
                        let kind = letter.header("sluice.kind");
                        assert_eq!(kind, Some(expected.kind.as_str()), "record {number}: {letter:?}");
                        let code = letter.header("sluice.code");
                        assert_eq!(code, Some(expected.code.as_str()), "record {number}: {letter:?}");
                        let field = letter.header("sluice.field");
                        assert_eq!(field, expected.field.as_deref(), "record {number}: {letter:?}");
                        unchanged(record, letter);
                    }
                    repeats.dead_letters += letters.len() - 1;
                }
            }
        }
        assert_eq!(rows, BTreeMap::new(), "rows of records that do not exist");
        assert_eq!(letters, BTreeMap::new(), "dead letters of records that do not exist");
        repeats
    }
}

/// For payloads of a MiB and more.
fn larger(options: ProducerOptions) -> ProducerOptions {
    let limit = ("message.max.bytes".to_owned(), "4194304".to_owned());
    ProducerOptions { properties: vec![limit], ..options }
}

/// Payload, key, timestamp and headers of a dead letter are those of the record.
pub fn unchanged(record: &OwnedRecord, letter: &OwnedRecord) {
    assert_eq!(letter.payload, record.payload);
    assert_eq!(letter.key, record.key);
    assert_eq!(letter.timestamp, record.timestamp);
    assert_eq!(letter.headers[..record.headers.len()], record.headers);
}

/// Every record of a topic.
pub fn read(brokers: &str, topic: &str) -> Vec<OwnedRecord> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers);
    let mut records = Vec::new();
    read_all(&client, topic, Duration::from_secs(30), |record| records.push(record)).unwrap();
    records
}
