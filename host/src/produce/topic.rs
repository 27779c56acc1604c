//! The topic must be there before anything is sent: a broker that makes topics by itself would
//! make one with the wrong number of partitions, and nobody would notice.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::ProducerContext;
use rdkafka::types::RDKafkaErrorCode;

use super::sender::{ProduceError, ProducerOptions};

/// Checks that the topic exists, or makes it if [`ProducerOptions::create_topic`] says so.
pub(super) fn ensure<C: ProducerContext>(
    client: &Client<C>,
    config: &ClientConfig,
    options: &ProducerOptions,
    last_error: impl Fn() -> String,
) -> Result<(), ProduceError> {
    let deadline = Instant::now() + options.timeout;
    if exists(client, options, deadline, &last_error)? {
        return Ok(());
    }
    let Some(partitions) = options.create_topic else {
        return Err(ProduceError::TopicMissing {
            topic: options.topic.clone(),
            brokers: options.brokers.clone(),
        });
    };
    create(config, options, partitions)?;
    // The controller has said yes; the brokers hear of it a little later.
    while !exists(client, options, deadline, &last_error)? {
        if Instant::now() >= deadline {
            return Err(ProduceError::TopicNotCreated {
                topic: options.topic.clone(),
                detail: "it was created, but no broker knows of it yet".to_owned(),
            });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether the cluster lists the topic. All topics are asked for, because asking for one by name
/// may create it.
fn exists<C: ProducerContext>(
    client: &Client<C>,
    options: &ProducerOptions,
    deadline: Instant,
    last_error: impl Fn() -> String,
) -> Result<bool, ProduceError> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
    let metadata = client.fetch_metadata(None, left).map_err(|error| {
        // A client's own errors name the broker; the metadata request only says that it failed.
        let detail = last_error();
        ProduceError::NoBroker {
            brokers: options.brokers.clone(),
            timeout: options.timeout,
            detail: if detail.is_empty() { error.to_string() } else { detail },
        }
    })?;
    Ok(metadata.topics().iter().any(|topic| topic.name() == options.topic && !topic.partitions().is_empty()))
}

fn create(config: &ClientConfig, options: &ProducerOptions, partitions: u32) -> Result<(), ProduceError> {
    let failed = |detail: String| ProduceError::TopicNotCreated { topic: options.topic.clone(), detail };
    let number = i32::try_from(partitions).map_err(|error| failed(error.to_string()))?;
    let admin: AdminClient<DefaultClientContext> =
        admin_config(config).create().map_err(ProduceError::Settings)?;
    // -1: as many replicas as the brokers are set up for.
    let topic = NewTopic::new(&options.topic, number, TopicReplication::Fixed(-1));
    let admin_options =
        AdminOptions::new().request_timeout(Some(options.timeout)).operation_timeout(Some(options.timeout));
    // On a thread of its own, so that callers inside a runtime may wait here too.
    let created = std::thread::scope(|scope| {
        let request = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.map(|runtime| runtime.block_on(admin.create_topics([&topic], &admin_options)))
        };
        scope.spawn(request).join()
    });
    let results = created
        .map_err(|_| failed("the request panicked".to_owned()))?
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(explain(&error)))?;
    match results.into_iter().next() {
        // Somebody else was quicker.
        Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
        Some(Err((_, code))) => Err(failed(code.to_string())),
        None => Err(failed("the broker answered without a result".to_owned())),
    }
}

fn explain(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::UnsupportedFeature) => {
            "this broker cannot create topics on request (an embedded mock cannot)".to_owned()
        }
        _ => error.to_string(),
    }
}

/// An admin client has no use for a producer's own properties, and warns of each.
fn admin_config(config: &ClientConfig) -> ClientConfig {
    let mut admin = config.clone();
    for name in super::sender::PRODUCER_ONLY {
        admin.remove(name);
    }
    admin
}
