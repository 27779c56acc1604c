//! Dead letters: rejected records as they came, with the `sluice.*` headers, delivery confirmed by
//! every in-sync replica before the source offset may be committed.

use std::time::Duration;

use futures::future::join_all;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use crate::domain::retry::Retryability;
use crate::domain::verdict::DeadLetter;
use crate::pipeline::ports::{DeadLetterSink, KafkaError, Unpublished};

use super::log;

/// Wait while librdkafka's own queue is full.
pub(super) const QUEUE_FULL_WAIT: Duration = Duration::from_millis(20);

/// See the module documentation.
pub struct DeadLetterProducer {
    producer: FutureProducer<ProducerContext>,
    topic: String,
    pipeline: String,
}

#[derive(Clone, Debug)]
struct ProducerContext;

impl ClientContext for ProducerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::warn!(%error, reason, "dead-letter producer error");
    }
}

impl DeadLetterProducer {
    /// A producer to `topic`, for `pipeline`.
    ///
    /// # Errors
    /// When a setting is refused by librdkafka.
    pub fn new(mut client: ClientConfig, topic: &str, pipeline: &str) -> Result<Self, ClientError> {
        producer_settings(&mut client);
        let producer = client.create_with_context(ProducerContext)?;
        Ok(Self { producer, topic: topic.to_owned(), pipeline: pipeline.to_owned() })
    }

    /// Waits until everything is out, at most `timeout`. Blocking.
    pub fn flush(&self, timeout: Duration) {
        if let Err(error) = self.producer.flush(timeout) {
            tracing::warn!(%error, "dead letters are still under way; their records will be read again");
        }
    }

    async fn send(&self, letter: &DeadLetter) -> Result<(), ClientError> {
        let Envelope { key, payload, timestamp, headers } = Envelope::of(letter, &self.pipeline);
        let mut message = FutureRecord::to(&self.topic).headers(headers);
        (message.key, message.payload, message.timestamp) = (key, payload, timestamp);
        let delivery = loop {
            match self.producer.send_result(message) {
                Ok(delivery) => break delivery,
                Err((ClientError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    message = back;
                    tokio::time::sleep(QUEUE_FULL_WAIT).await;
                }
                Err((error, _)) => return Err(error),
            }
        };
        match delivery.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(ClientError::Canceled),
        }
    }
}

impl DeadLetterSink for DeadLetterProducer {
    async fn publish(&self, letters: &[DeadLetter]) -> Result<(), Unpublished> {
        let answers = join_all(letters.iter().map(|letter| self.send(letter))).await;
        let failed: Vec<(usize, ClientError)> = answers
            .into_iter()
            .enumerate()
            .filter_map(|(place, answer)| answer.err().map(|error| (place, error)))
            .collect();
        let Some((_, error)) = failed.first() else { return Ok(()) };
        let fatal = self.producer.client().fatal_error();
        let reason = match &fatal {
            Some((code, reason)) => format!("{code}: {reason}; mend that and restart sluice"),
            None => format!("{error}; {}", cure(error)),
        };
        let message = format!(
            "{} of {} dead letters did not reach topic {}: {reason}",
            failed.len(),
            letters.len(),
            self.topic
        );
        let retryability = if fatal.is_some() { Retryability::Permanent } else { Retryability::Retry };
        let places = failed.iter().map(|(place, _)| *place).collect();
        Err(Unpublished { places, error: KafkaError { retryability, message } })
    }
}

/// What every producer of dead letters has, on top of what all clients have.
pub(super) fn producer_settings(client: &mut ClientConfig) {
    client.set("acks", "all").set("enable.idempotence", "true");
    // Consumer properties that kafka.properties may hold would only draw warnings here.
    for property in ["group.protocol", "group.instance.id", "session.timeout.ms", "heartbeat.interval.ms"]
        .into_iter()
        .chain(["partition.assignment.strategy", "max.poll.interval.ms"])
    {
        client.remove(property);
    }
    for (property, value) in [
        ("linger.ms", "5"),
        ("compression.type", "lz4"),
        // The broker decides how large a message may be, not this client.
        ("message.max.bytes", "104857600"),
    ] {
        if client.get(property).is_none() {
            client.set(property, value);
        }
    }
}

/// A dead letter as a message: the record as it came, with the `sluice.*` headers.
pub(super) struct Envelope<'l> {
    pub(super) key: Option<&'l [u8]>,
    pub(super) payload: Option<&'l [u8]>,
    /// Milliseconds since 1970-01-01 UTC; `None` where the record has none.
    pub(super) timestamp: Option<i64>,
    pub(super) headers: OwnedHeaders,
}

impl<'l> Envelope<'l> {
    pub(super) fn of(letter: &'l DeadLetter, pipeline: &str) -> Self {
        let index = letter.index as usize;
        let record = letter.chunk.record(index);
        let mut headers = OwnedHeaders::new();
        for (key, value) in letter.chunk.headers(index) {
            headers = headers.insert(Header { key, value });
        }
        for (key, value) in &letter.headers(pipeline) {
            headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
        }
        let timestamp = (record.timestamp >= 0).then_some(record.timestamp);
        Self { key: record.key, payload: record.payload, timestamp, headers }
    }
}

/// What to do about a dead letter that the brokers do not take.
pub(super) fn cure(error: &ClientError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            "raise max.message.bytes of that topic above that of the source topic"
        }
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            "create that topic"
        }
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => "allow this user to write to that topic",
        _ => "check that the brokers can be reached",
    }
}
