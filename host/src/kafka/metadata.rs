//! Metadata: whether the brokers can be reached and the topics are there, before anything is read.
//!
//! [`survey`] asks a client of its own, made from the same settings as all others, so that TLS, SASL
//! and rights are tried as well. Topics are never created by asking for them.
//! [`check_transactions`] asks more than a question: it begins as the process itself would.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::types::RDKafkaRespErr;

use crate::domain::retry::Retryability;

use super::client::{KafkaSettings, client_config};
use super::transactions::TransactionSettings;

/// Events of a client that may wait before the one that tells why no broker answers.
const EVENTS: usize = 100;

/// A topic that somebody needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicNeed {
    /// Its name.
    pub topic: String,
    /// Key of the configuration that names it, for messages.
    pub key: String,
}

/// What the brokers said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSurvey {
    /// `host:port` of every broker, in the order of their ids.
    pub brokers: Vec<String>,
    /// For each need, in the same order, the number of partitions or what is wrong.
    pub topics: Vec<Result<usize, TopicFault>>,
}

/// What is wrong with a topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("topic {} ({}) {problem}", need.topic, need.key)]
pub struct TopicFault {
    /// Which one, and who needs it.
    pub need: TopicNeed,
    /// What is wrong with it.
    pub problem: TopicProblem,
}

/// What can be wrong with a topic. Each message ends with what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicProblem {
    /// The brokers do not know it.
    #[error("does not exist: create it (`kafka-topics.sh --create --topic {0}`), or name another one")]
    Missing(String),
    /// The brokers do not let this client see it.
    #[error(
        "may not be read by this client: allow its user to describe it, or mend sasl.* in kafka.properties"
    )]
    Denied,
    /// The brokers are not in order yet.
    #[error(
        "is not served at the moment ({0}): wait until its partitions have leaders, or look after its brokers"
    )]
    Unserved(String),
}

/// Why Kafka cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// librdkafka refuses the settings.
    #[error("librdkafka refuses the settings: {0}; mend kafka.properties")]
    Settings(#[source] KafkaError),
    /// Nobody answers.
    #[error(
        "no broker answers at {brokers} within {}: {reason}; \
         check kafka.brokers (SLUICE__KAFKA__BROKERS), the network, and TLS and SASL in kafka.properties",
        humantime::format_duration(*timeout)
    )]
    Unreachable {
        /// `kafka.brokers`.
        brokers: String,
        /// How long it was tried.
        timeout: Duration,
        /// What librdkafka said last.
        reason: String,
    },
    /// Topics are not as they have to be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Topics(Vec<TopicFault>),
    /// The brokers do no transactions, or not for this user.
    #[error("{0}")]
    Transactions(String),
}

impl MetadataError {
    /// Whether it may mend itself while it is waited for.
    pub fn retryability(&self) -> Retryability {
        let waiting_helps = match self {
            Self::Settings(_) | Self::Transactions(_) => false,
            Self::Unreachable { .. } => true,
            Self::Topics(faults) => {
                faults.iter().all(|fault| matches!(fault.problem, TopicProblem::Unserved(_)))
            }
        };
        if waiting_helps { Retryability::Retry } else { Retryability::Permanent }
    }
}

/// Asks for the brokers and for every topic. Blocking, no longer than `timeout`.
///
/// # Errors
/// When the brokers cannot be asked; what is wrong with a topic is in the survey.
pub fn survey(
    settings: &KafkaSettings,
    needs: &[TopicNeed],
    timeout: Duration,
) -> Result<ClusterSurvey, MetadataError> {
    let deadline = Instant::now() + timeout;
    let mut client = client_config(settings);
    // Whatever the properties say: a check changes nothing.
    client.set("allow.auto.create.topics", "false").set_log_level(RDKafkaLogLevel::Info);
    let client: BaseConsumer<Listener> =
        client.create_with_context(Listener::default()).map_err(MetadataError::Settings)?;
    let ask = |topic: Option<&str>| {
        let left = deadline.saturating_duration_since(Instant::now());
        client.fetch_metadata(topic, left.max(Duration::from_millis(1))).map_err(|error| {
            // What librdkafka met on the way waits in its queue.
            // A poll serves one event of several kinds and tells only of some.
            for _ in 0..EVENTS {
                client.poll(Duration::ZERO);
            }
            let reason = client.context().last_words().unwrap_or_else(|| error.to_string());
            MetadataError::Unreachable { brokers: settings.brokers.clone(), timeout, reason }
        })
    };
    let mut brokers = Vec::new();
    let mut topics = Vec::new();
    for need in needs {
        let metadata = ask(Some(&need.topic))?;
        brokers = brokers_of(&metadata);
        topics.push(judge(need, metadata.topics().first()));
    }
    if needs.is_empty() {
        brokers = brokers_of(&ask(None)?);
    }
    Ok(ClusterSurvey { brokers, topics })
}

/// [`survey`], with every fault of a topic as an error; otherwise the partitions of each topic.
///
/// # Errors
/// All that is wrong, not only the first thing.
pub fn check(
    settings: &KafkaSettings,
    needs: &[TopicNeed],
    timeout: Duration,
) -> Result<BTreeMap<String, usize>, MetadataError> {
    let mut partitions = BTreeMap::new();
    let mut faults = Vec::new();
    for (need, topic) in needs.iter().zip(survey(settings, needs, timeout)?.topics) {
        match topic {
            Ok(count) => drop(partitions.insert(need.topic.clone(), count)),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(partitions) } else { Err(MetadataError::Topics(faults)) }
}

/// Whether the brokers do transactions for this user, as `exactly-once` needs them. It registers the
/// transactional id, which fences another process of that name and concludes what one has left open; so
/// it is for a start, not for a check beside a running process. librdkafka's mock cluster passes: it
/// does take part in transactions, but forgets what they are for. Blocking, no longer than `timeout`.
///
/// # Errors
/// When they do not, with what has to change, or when they do not answer.
pub fn check_transactions(
    settings: &KafkaSettings,
    transactions: &TransactionSettings,
    timeout: Duration,
) -> Result<(), MetadataError> {
    let client = transactions.producer(client_config(settings));
    let producer: BaseProducer = client.create().map_err(MetadataError::Settings)?;
    producer.init_transactions(timeout).map_err(|error| {
        let code = match &error {
            KafkaError::Transaction(error) => Some(error.code()),
            error => error.rdkafka_error_code(),
        };
        match code.and_then(|code| transactions.denial(code)) {
            Some(reason) => MetadataError::Transactions(reason),
            None => MetadataError::Unreachable {
                brokers: settings.brokers.clone(),
                timeout,
                reason: format!("transactions cannot be begun: {error}"),
            },
        }
    })
}

fn brokers_of(metadata: &rdkafka::metadata::Metadata) -> Vec<String> {
    let mut brokers: Vec<_> = metadata.brokers().iter().collect();
    brokers.sort_by_key(|broker| broker.id());
    brokers.iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect()
}

fn judge(need: &TopicNeed, topic: Option<&MetadataTopic>) -> Result<usize, TopicFault> {
    let fault = |problem| Err(TopicFault { need: need.clone(), problem });
    let missing = || fault(TopicProblem::Missing(need.topic.clone()));
    let Some(topic) = topic else { return missing() };
    if let Some(error) = topic.error() {
        return match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION => missing(),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => fault(TopicProblem::Denied),
            error => fault(TopicProblem::Unserved(RDKafkaErrorCode::from(error).to_string())),
        };
    }
    match topic.partitions().iter().find(|partition| partition.leader() < 0) {
        Some(partition) => {
            fault(TopicProblem::Unserved(format!("partition {} has no leader", partition.id())))
        }
        None if topic.partitions().is_empty() => missing(),
        None => Ok(topic.partitions().len()),
    }
}

/// Remembers what librdkafka complained about, since its answer is only "transport failure".
#[derive(Debug, Default)]
struct Listener(Mutex<Option<String>>);

impl Listener {
    fn last_words(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Listener {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
        // That all brokers are down says less than why the last one was.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // "host:9092/bootstrap: Connect to ... failed: Connection refused (after 0ms in state CONNECT)"
            let words = reason.split_once("/bootstrap: ").map_or(reason, |(_, words)| words);
            let words = words.split_once(" (after ").map_or(words, |(words, _)| words);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.to_owned());
        }
    }
}

impl ConsumerContext for Listener {}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::kafka::client::Properties;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn settings(brokers: String) -> KafkaSettings {
        KafkaSettings { brokers, instance: None, properties: Properties::default() }
    }

    fn need(topic: &str) -> TopicNeed {
        TopicNeed { topic: topic.into(), key: "pipelines.purchases.topics".into() }
    }

    #[test]
    fn topics_are_counted() {
        let cluster = MockCluster::new(2).expect("a mock cluster");
        cluster.create_topic("purchases", 12, 1).expect("created");
        let settings = settings(cluster.bootstrap_servers());
        let survey = survey(&settings, &[need("purchases")], TIMEOUT).expect("answered");
        assert_eq!(survey.topics, [Ok(12)]);
        assert_eq!(survey.brokers.join(","), cluster.bootstrap_servers());
        let partitions = check(&settings, &[need("purchases")], TIMEOUT).expect("all is well");
        assert_eq!(partitions, [("purchases".to_owned(), 12)].into());
    }

    #[test]
    fn every_topic_with_a_fault_is_named_with_its_key_and_the_cure() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        for topic in ["gone", "locked", "electing"] {
            cluster.create_topic(topic, 1, 1).expect("created");
        }
        let fail = |topic, error| cluster.topic_error(topic, error).expect("set");
        fail("gone", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        fail("locked", RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
        fail("electing", RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
        let settings = settings(cluster.bootstrap_servers());
        let needs = [need("gone"), need("locked"), need("electing")];
        let error = check(&settings, &needs, TIMEOUT).expect_err("three faults");
        assert_eq!(error.retryability(), Retryability::Permanent);
        insta::assert_snapshot!(error);
        let error = check(&settings, &[need("electing")], TIMEOUT).expect_err("a fault");
        assert_eq!(error.retryability(), Retryability::Retry);
    }

    #[test]
    fn brokers_that_do_not_answer_are_told_with_the_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let timeout = Duration::from_secs(1);
        let error =
            check(&settings(address.clone()), &[need("purchases")], timeout).expect_err("nobody there");
        assert_eq!(error.retryability(), Retryability::Retry);
        let error = error.to_string();
        assert!(error.contains(&format!("no broker answers at {address} within 1s")), "{error}");
        assert!(error.contains("Connection refused") && error.contains("kafka.brokers"), "{error}");
        let error = check(&settings("nowhere.invalid:9092".into()), &[], timeout).expect_err("no such host");
        assert!(error.to_string().contains("resolve"), "{error}");
    }

    #[test]
    fn transactions_are_begun_or_what_is_in_the_way_is_named() {
        use rdkafka::mocking::MockCoordinator;
        use rdkafka::types::RDKafkaApiKey;

        let transactions = TransactionSettings {
            topics: vec!["purchases".into()],
            group: "sluice-purchases".into(),
            instance: "one".into(),
            dead_letter_topic: "purchases.dead-letters".into(),
            pipeline: "purchases".into(),
        };
        let cluster = MockCluster::new(1).expect("a mock cluster");
        let id = transactions.transactional_id();
        cluster.coordinator(MockCoordinator::Transaction(id), 1).expect("set");
        let settings = settings(cluster.bootstrap_servers());
        check_transactions(&settings, &transactions, TIMEOUT).expect("begun");
        let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::InitProducerId, &[denied]);
        let error = check_transactions(&settings, &transactions, TIMEOUT).expect_err("denied");
        assert_eq!(error.retryability(), Retryability::Permanent);
        assert!(error.to_string().contains("--transactional-id sluice-purchases-one"), "{error}");
    }

    #[test]
    fn asking_creates_nothing() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        let settings = settings(cluster.bootstrap_servers());
        for _ in 0..2 {
            let survey = survey(&settings, &[need("never-made")], TIMEOUT).expect("answered");
            assert!(
                matches!(&survey.topics[0], Err(fault) if matches!(fault.problem, TopicProblem::Missing(_)))
            );
        }
    }
}
