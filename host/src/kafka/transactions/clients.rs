//! Clients: how the producer of transactions is set up, and the reader of what became of them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::producer::{DeliveryResult, ProducerContext, ThreadedProducer};

use crate::kafka::client::outside_group;
use crate::kafka::dead_letters::producer_settings;
use crate::kafka::log;

/// Age at which the brokers abort a transaction. They look for such ones every 10 s, so a host that
/// died in the middle of a commit holds its partitions back for 20 s at most; a commit takes
/// milliseconds, and one that is slower than this is refused and comes again.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which a dead letter that no broker has confirmed is given up, and its transaction with it.
pub(super) const DELIVERY_TIMEOUT: Duration = Duration::from_secs(8);

/// What the transactions of a pipeline are made with.
#[derive(Clone, Debug)]
pub struct TransactionSettings {
    /// Topics whose offsets are committed.
    pub topics: Vec<String>,
    /// Consumer group, the same as the intake's.
    pub group: String,
    /// Name of this process among those of the group (`kafka.instance`).
    pub instance: String,
    /// Topic of the dead letters.
    pub dead_letter_topic: String,
    /// Pipeline, as it shows in their headers.
    pub pipeline: String,
}

impl TransactionSettings {
    /// `transactional.id` of the producer; rights to it may have to be granted.
    pub fn transactional_id(&self) -> String {
        format!("{}-{}", self.group, self.instance)
    }

    /// What has to change at the brokers before they do any transaction.
    pub(in crate::kafka) fn denial(&self, code: Code) -> Option<String> {
        let (id, group) = (self.transactional_id(), &self.group);
        Some(match code {
            Code::TransactionalIdAuthorizationFailed => format!(
                "kafka does not let this user do transactions as {id}: allow it Write and Describe on that \
                 transactional id (`kafka-acls.sh --add --operation Write --operation Describe \
                 --transactional-id {id} ...`)"
            ),
            Code::ClusterAuthorizationFailed => {
                "kafka does not let this user do transactions: allow it IdempotentWrite on the cluster \
                 (`kafka-acls.sh --add --operation IdempotentWrite --cluster ...`)"
                    .to_owned()
            }
            Code::GroupAuthorizationFailed => format!(
                "kafka does not let this user commit offsets of group {group}: allow it Read on that group \
                 (`kafka-acls.sh --add --operation Read --group {group} ...`)"
            ),
            Code::UnsupportedFeature => {
                "these brokers do not do transactions: use Apache Kafka 2.8 or newer, or set the pipeline's \
                 delivery to at-least-once"
                    .to_owned()
            }
            Code::InvalidTransactionTimeout => format!(
                "these brokers allow no transaction of {}: raise their transaction.max.timeout.ms",
                humantime::format_duration(TRANSACTION_TIMEOUT)
            ),
            _ => return None,
        })
    }

    /// Settings of the producer, on top of those of every client.
    pub(in crate::kafka) fn producer(&self, mut client: ClientConfig) -> ClientConfig {
        producer_settings(&mut client);
        // librdkafka refuses what is longer than the transaction, and this is none of the user's concern.
        client.remove("delivery.timeout.ms");
        let socket = client.get("socket.timeout.ms").and_then(|timeout| timeout.parse::<u128>().ok());
        if socket.is_some_and(|timeout| timeout > DELIVERY_TIMEOUT.as_millis()) {
            client.remove("socket.timeout.ms");
        }
        client
            .set("transactional.id", self.transactional_id())
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string());
        client
    }
}

/// A client that reads the group's offsets, and is no member of it: one that is must not be asked by
/// a commit that a rebalance waits for.
pub(super) fn reader(mut client: ClientConfig, group: &str) -> ClientConfig {
    outside_group(&mut client);
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        // Offsets in an open transaction are not known yet.
        .set("isolation.level", "read_committed");
    client
}

pub(super) type TransactionalProducer = ThreadedProducer<TransactionContext>;

/// Remembers why the first dead letter of a transaction was not taken.
#[derive(Default)]
pub(super) struct TransactionContext(Mutex<Option<ClientError>>);

impl TransactionContext {
    /// Why the first one was not taken.
    pub(super) fn failure(&self) -> Option<ClientError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn fail(&self, error: ClientError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ClientContext for TransactionContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What ends a transaction is told by whoever waits for it; it is no alert of its own.
        let level = if facility == "TXNERR" { RDKafkaLogLevel::Warning } else { level };
        log(level, facility, message);
    }

    fn error(&self, error: ClientError, reason: &str) {
        tracing::warn!(%error, reason, "transactional producer error");
    }
}

impl ProducerContext for TransactionContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, _)) = result else { return };
        // Purged is what an abort does to the others.
        if !matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight)) {
            self.fail(error.clone());
        }
    }
}
