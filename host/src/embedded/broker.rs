//! An embedded Kafka broker: librdkafka's mock cluster, in this process, on loopback.
//!
//! Good for a demo and for tests of the flow: groups, offsets and outside clients over TCP work.
//! Its limits: 5 MiB or 100,000 message sets a partition (older data vanishes), transactions that
//! only pretend, no data after the process ends. Delivery is proven on Apache Kafka instead.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// A running broker; it stops when dropped.
pub struct EmbeddedBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

/// Why the embedded broker did not start.
#[derive(Debug, thiserror::Error)]
#[error("the embedded broker cannot {action}: {source}; this is a defect of sluice, please report it")]
pub struct EmbeddedBrokerError {
    action: String,
    source: rdkafka::error::KafkaError,
}

impl EmbeddedBroker {
    /// Starts one broker with these topics and their numbers of partitions.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn start(topics: &[(&str, i32)]) -> Result<Self, EmbeddedBrokerError> {
        let fail = |action: String| move |source| EmbeddedBrokerError { action, source };
        let cluster = MockCluster::new(1).map_err(fail("start".into()))?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1).map_err(fail(format!("create topic {topic}")))?;
        }
        Ok(Self { cluster })
    }

    /// `host:port`, for `kafka.brokers`.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Takes the broker off the network, as an outage would; its data stays.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn go_down(&self) -> Result<(), EmbeddedBrokerError> {
        self.cluster
            .broker_down(-1)
            .map_err(|source| EmbeddedBrokerError { action: "go down".into(), source })
    }

    /// Brings the broker back.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn come_back(&self) -> Result<(), EmbeddedBrokerError> {
        self.cluster
            .broker_up(-1)
            .map_err(|source| EmbeddedBrokerError { action: "come back".into(), source })
    }
}
