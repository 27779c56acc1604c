//! Sends messages and waits until the broker has confirmed every one.
//!
//! State: one librdkafka producer, served by the calling thread. A full queue is waited for, never
//! an error. The first failed delivery ends the run: what is queued is given its time, the rest is
//! not sent. Messages of one key keep their order and arrive once (idempotent producer).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use super::message::Message;
use super::topic;

/// Where and how to send.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// `host:port`, more than one separated by commas.
    pub brokers: String,
    /// Topic; it must exist, unless `create_topic` is set.
    pub topic: String,
    /// Codec of the batches.
    pub compression: Compression,
    /// Any librdkafka property; these win over everything above.
    pub properties: Vec<(String, String)>,
    /// Messages a second; as fast as possible without it.
    pub rate: Option<f64>,
    /// How long to wait for a broker at the start, and for each delivery.
    pub timeout: Duration,
    /// Makes the topic with this many partitions if it is missing.
    pub create_topic: Option<u32>,
}

impl ProducerOptions {
    /// As fast as possible, uncompressed, to a topic that exists.
    pub fn new(brokers: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            topic: topic.into(),
            compression: Compression::None,
            properties: Vec::new(),
            rate: None,
            timeout: Duration::from_secs(30),
            create_topic: None,
        }
    }

    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "sluice-produce")
            // Retries must neither double nor reorder: the numbers of a test depend on it.
            .set("enable.idempotence", "true")
            // The partitioner of Kafka's own clients: a key lands where they would put it.
            .set("partitioner", "murmur2_random")
            .set("compression.type", self.compression.as_str())
            .set("linger.ms", "10")
            .set("message.timeout.ms", self.timeout.as_millis().to_string());
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }
}

/// Properties of [`ProducerOptions::client_config`] that only a producer has.
pub(super) const PRODUCER_ONLY: [&str; 5] =
    ["enable.idempotence", "partitioner", "compression.type", "linger.ms", "message.timeout.ms"];

/// Codec of the batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// zlib's.
    Gzip,
    /// Google's.
    Snappy,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

impl Compression {
    /// librdkafka's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Messages given to the producer.
    pub sent: u64,
    /// Of these, confirmed by the broker.
    pub delivered: u64,
    /// Payload and key bytes of the confirmed ones.
    pub bytes: u64,
    /// Since the first message.
    pub elapsed: Duration,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Messages confirmed by the broker.
    pub produced: u64,
    /// Their payload and key bytes.
    pub bytes: u64,
    /// Messages that the broker did not take.
    pub failed: u64,
    /// From the first message to the last confirmation.
    pub elapsed: Duration,
    /// The caller ended the run before the messages did.
    pub stopped: bool,
}

impl fmt::Display for Summary {
    /// `produced=10000 bytes=2700000 seconds=1.203 rate=8312/s`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for a person to read")]
        let rate = if seconds > 0.0 { self.produced as f64 / seconds } else { 0.0 };
        let Self { produced, bytes, .. } = self;
        write!(formatter, "produced={produced} bytes={bytes} seconds={seconds:.3} rate={rate:.0}/s")
    }
}

/// Why messages could not all be delivered.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// librdkafka refuses a property.
    #[error("the producer's properties are refused: {0}; check --property")]
    Settings(#[source] KafkaError),
    /// No broker answered.
    #[error(
        "no broker answered at {brokers} within {}: {detail}; check --brokers and that Kafka is running",
        humantime::format_duration(*timeout)
    )]
    NoBroker {
        /// As given.
        brokers: String,
        /// How long was waited.
        timeout: Duration,
        /// The client's last complaint.
        detail: String,
    },
    /// The topic does not exist.
    #[error(
        "topic `{topic}` does not exist at {brokers}; create it with --create-topic PARTITIONS, \
         or: kafka-topics.sh --bootstrap-server {brokers} --create --topic {topic} --partitions 12"
    )]
    TopicMissing {
        /// As given.
        topic: String,
        /// As given.
        brokers: String,
    },
    /// The topic could not be made.
    #[error(
        "cannot create topic `{topic}`: {detail}; create it by other means, then leave --create-topic out"
    )]
    TopicNotCreated {
        /// As given.
        topic: String,
        /// Why.
        detail: String,
    },
    /// A message was not taken.
    #[error(
        "message {index} was not delivered: {detail}; {} of the messages sent were delivered and {} were not",
        summary.produced, summary.failed
    )]
    NotDelivered {
        /// Number of the first such message, from 0.
        index: u64,
        /// Why.
        detail: String,
        /// What else happened.
        summary: Summary,
    },
}

/// What the delivery callbacks have seen.
#[derive(Default)]
struct Deliveries {
    delivered: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    /// Number of the first message that failed, and why.
    first_failure: Mutex<Option<(u64, String)>>,
    /// The client's last complaint, which says more than a failed request does.
    last_error: Mutex<String>,
}

impl Deliveries {
    fn fail(&self, index: u64, detail: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if first.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
            *first = Some((index, detail));
        }
    }

    fn last_error(&self) -> String {
        self.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        // "All brokers are down" follows every single complaint, and says less.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            reason.clone_into(&mut self.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        match result {
            Ok(message) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                let bytes = message.payload_len() + message.key_len();
                self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err((error, _)) => {
                let complaint = self.last_error();
                let detail =
                    if complaint.is_empty() { error.to_string() } else { format!("{error} ({complaint})") };
                self.fail(index as u64, detail);
            }
        }
    }
}

/// How often the caller hears of progress, at most.
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How many messages are handed over between two looks at deliveries and the clock.
const SERVE_EVERY: u64 = 64;

/// Sends all `messages` and waits until each is confirmed. Blocks; call it from a thread that may.
///
/// `progress` is called about ten times a second, also while waiting. When it answers
/// [`ControlFlow::Break`], no further message is taken, those under way are waited for, and the
/// summary has `stopped` set.
///
/// # Errors
/// [`ProduceError`]; with `NotDelivered` some messages may have been delivered.
pub fn send(
    messages: impl IntoIterator<Item = Message>,
    options: &ProducerOptions,
    progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Summary, ProduceError> {
    let config = options.client_config();
    let producer: BaseProducer<Deliveries> =
        config.create_with_context(Deliveries::default()).map_err(ProduceError::Settings)?;
    topic::ensure(producer.client(), &config, options, || {
        // One event a call is served at least, more while there is time.
        producer.poll(Duration::from_millis(20));
        producer.context().last_error()
    })?;
    let mut run = Run {
        producer,
        options,
        progress,
        started: Instant::now(),
        reported: Instant::now(),
        sent: 0,
        stopped: false,
    };
    for message in messages {
        if !run.wait_for_turn() || !run.send(message) {
            break;
        }
    }
    run.finish()
}

/// A run under way.
struct Run<'a, P> {
    producer: BaseProducer<Deliveries>,
    options: &'a ProducerOptions,
    progress: P,
    started: Instant,
    reported: Instant,
    sent: u64,
    stopped: bool,
}

impl<P: FnMut(&Progress) -> ControlFlow<()>> Run<'_, P> {
    fn deliveries(&self) -> &Deliveries {
        self.producer.context()
    }

    /// Whether the run goes on: nobody stopped it, and nothing failed.
    fn goes_on(&self) -> bool {
        !self.stopped && self.deliveries().failed.load(Ordering::Relaxed) == 0
    }

    /// Serves deliveries for `wait`, and tells the caller how far things are.
    fn serve(&mut self, wait: Duration) {
        self.producer.poll(wait);
        if self.reported.elapsed() >= REPORT_EVERY {
            self.report();
        }
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let progress = Progress {
            sent: self.sent,
            delivered: self.deliveries().delivered.load(Ordering::Relaxed),
            bytes: self.deliveries().bytes.load(Ordering::Relaxed),
            elapsed: self.started.elapsed(),
        };
        if (self.progress)(&progress).is_break() {
            self.stopped = true;
        }
    }

    /// Waits until the rate allows the next message. False ends the run.
    fn wait_for_turn(&mut self) -> bool {
        if let Some(rate) = self.options.rate {
            #[expect(clippy::cast_precision_loss, reason = "exact to 2^53 messages")]
            let due = Duration::try_from_secs_f64(self.sent as f64 / rate).unwrap_or(Duration::MAX);
            // Shorter waits than a millisecond are made up for by the next ones.
            while self.goes_on() {
                let left = due.saturating_sub(self.started.elapsed());
                if left < Duration::from_millis(1) {
                    break;
                }
                self.serve(left.min(REPORT_EVERY));
            }
        }
        if self.sent.is_multiple_of(SERVE_EVERY) {
            self.serve(Duration::ZERO);
        }
        self.goes_on()
    }

    /// Hands one message over, waiting while the queue is full. False ends the run.
    fn send(&mut self, message: Message) -> bool {
        let Ok(opaque) = usize::try_from(self.sent) else { return false };
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.options.topic, opaque);
        record.key = message.key.as_deref();
        record.payload = message.payload.as_deref();
        record.timestamp = message.timestamp;
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            record.headers = Some(message.headers.iter().fold(headers, |headers, (key, value)| {
                headers.insert(Header { key, value: value.as_deref() })
            }));
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => {
                    self.sent += 1;
                    return true;
                }
                Err((error, returned)) => {
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                        self.deliveries().fail(self.sent, error.to_string());
                        return false;
                    }
                    record = returned;
                    self.serve(Duration::from_millis(1));
                    if !self.goes_on() {
                        return false;
                    }
                }
            }
        }
    }

    /// Waits for everything under way; `message.timeout.ms` bounds that.
    fn finish(mut self) -> Result<Summary, ProduceError> {
        let stopped = self.stopped;
        while self.producer.in_flight_count() > 0 {
            // Asks librdkafka not to linger; running into the short timeout only means: not yet.
            let _ = self.producer.flush(Duration::from_millis(10));
            self.serve(Duration::ZERO);
        }
        self.report();
        let deliveries = self.deliveries();
        let summary = Summary {
            produced: deliveries.delivered.load(Ordering::Relaxed),
            bytes: deliveries.bytes.load(Ordering::Relaxed),
            failed: deliveries.failed.load(Ordering::Relaxed),
            elapsed: self.started.elapsed(),
            stopped,
        };
        let first = deliveries.first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match first {
            None => Ok(summary),
            Some((index, detail)) => Err(ProduceError::NotDelivered { index, detail, summary }),
        }
    }
}
