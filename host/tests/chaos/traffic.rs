//! The steady producer, and what is known of each record that it sent.
//!
//! Records are generated as they are sent and again when they are checked, from the seed and their
//! number alone, so a run of any length holds none of them. A header carries the number.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use sluice::produce::{
    Description, Generated, Generator, GeneratorOptions, Message, ProduceError, ProducerOptions, Summary,
    send,
};

use crate::support::sluice::root;

/// Header with the record's number.
const NUMBER: &str = "test.number";
/// Share of the records that end as dead letters, or are strange but good.
const FAULT_SHARE: f64 = 0.05;
/// Longest time that a record may wait for its acknowledgement; a broker is away for seconds only.
const ACKNOWLEDGEMENT: Duration = Duration::from_secs(240);

/// Makes record `number` of a seed, and what is to be expected of it.
pub(super) struct Traffic {
    generator: Generator,
}

impl Traffic {
    /// Purchases of this seed.
    pub(super) fn new(seed: u64) -> Self {
        let description = Description::read(&root().join("testdata/purchases.generator.yaml"));
        let options = GeneratorOptions { seed, fault_share: FAULT_SHARE, lines_only: false };
        let generator = Generator::new(description.expect("the description is there"), options);
        Self { generator: generator.expect("the description is sound") }
    }

    /// Record `number`, as it is sent.
    pub(super) fn record(&self, number: u64) -> Generated<'_> {
        // The description has a base time of its own.
        let mut generated = self.generator.generate(number, Timestamp::UNIX_EPOCH);
        generated.message.headers.push((NUMBER.to_owned(), Some(number.to_string().into_bytes())));
        generated
    }

    /// The purchase that a good record tells of.
    pub(super) fn purchase(message: &Message) -> Option<String> {
        let payload: serde_json::Value = serde_json::from_slice(message.payload.as_deref()?).ok()?;
        Some(payload["purchase_id"].as_str()?.to_owned())
    }
}

/// The number of a record, by its headers.
pub(super) fn number(record: &sluice::kafka::reader::OwnedRecord) -> Option<u64> {
    record.header(NUMBER)?.parse().ok()
}

/// A producer under way.
pub(super) struct Producer {
    enough: Arc<AtomicBool>,
    delivered: Arc<AtomicU64>,
    thread: JoinHandle<Result<Summary, ProduceError>>,
}

impl Producer {
    /// Sends `rate` records a second until it is stopped.
    pub(super) fn start(seed: u64, brokers: &str, topic: &str, rate: f64) -> Self {
        let options = ProducerOptions {
            rate: Some(rate),
            timeout: ACKNOWLEDGEMENT,
            ..ProducerOptions::new(brokers, topic)
        };
        let (enough, delivered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (enough, delivered) = (enough.clone(), delivered.clone());
            move || {
                let traffic = Traffic::new(seed);
                let messages = (0..).map(|number| traffic.record(number).message);
                send(messages, &options, |progress| {
                    delivered.store(progress.delivered, Ordering::Relaxed);
                    if enough.load(Ordering::Relaxed) {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
            }
        });
        Self { enough, delivered, thread }
    }

    /// Records acknowledged so far.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Whether it ended although nobody stopped it.
    pub(super) fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it; returns how many records are in the topic.
    pub(super) fn stop(self) -> Result<u64, String> {
        self.enough.store(true, Ordering::Relaxed);
        let summary = self.thread.join().map_err(|_| "the producer panicked".to_owned())?;
        summary.map(|summary| summary.produced).map_err(|error| format!("the producer failed: {error}"))
    }
}
