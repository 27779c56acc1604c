//! The consumer group, seen from outside: what is committed, and how often it was formed anew.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::{ClientConfig, Offset};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) partition: i32,
    /// Offset of the next record to read; the first one where nothing is committed.
    pub(super) offset: i64,
    pub(super) metadata: String,
    /// Offset after the last record.
    pub(super) end: i64,
}

/// A client that asks about a group and never joins it.
pub(super) struct Group {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Group {
    pub(super) fn new(brokers: &str, group: &str, topic: &str, partitions: i32) -> Self {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .expect("a consumer can be made");
        Self { consumer, topic: topic.to_owned(), partitions }
    }

    /// Every partition, where the broker answers.
    pub(super) fn committed(&self) -> Result<Vec<Committed>, String> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(&self.topic, 0, self.partitions - 1);
        let answer = self.consumer.committed_offsets(asked, ANSWER).map_err(|error| error.to_string())?;
        let committed = answer.elements().into_iter().map(|element| {
            element.error().map_err(|error| error.to_string())?;
            let watermarks = self.consumer.fetch_watermarks(&self.topic, element.partition(), ANSWER);
            let (low, end) = watermarks.map_err(|error| error.to_string())?;
            let offset = if let Offset::Offset(offset) = element.offset() { offset } else { low };
            Ok(Committed {
                partition: element.partition(),
                offset,
                metadata: element.metadata().to_owned(),
                end,
            })
        });
        committed.collect()
    }

    /// Records behind the committed offsets, over all partitions.
    pub(super) fn passed(&self) -> Result<i64, String> {
        Ok(self.committed()?.iter().map(|partition| partition.offset).sum())
    }
}

/// How often Apache Kafka opened the group's coordinator before it had read the group and its offsets, by the
/// broker's log. A broker that loses and regains its partition of `__consumer_offsets` while it still reads
/// it takes the end of the first reading for that of the second (4.3.1, `CoordinatorRuntime`).
pub(super) fn opened_early(broker_log: &str, group: &str) -> usize {
    let ours = broker_log.lines().find_map(|line| {
        let (_, rest) = line.split_once("topic=__consumer_offsets partition=")?;
        let (partition, rest) = rest.split_once(']')?;
        rest.contains(group).then_some(partition)
    });
    let Some(partition) = ours else { return 0 };
    let ignored = format!(
        "Ignored load completion from __consumer_offsets-{partition} because context is in ACTIVE state"
    );
    broker_log.lines().filter(|line| line.contains(&ignored)).count()
}

/// The group's last generation by the broker's log: it was formed that often.
pub(super) fn generations(broker_log: &str, group: &str) -> u64 {
    let stabilized = format!("Stabilized group {group} generation ");
    let generation = |line: &str| {
        let (_, rest) = line.split_once(&stabilized)?;
        rest.split(' ').next()?.parse().ok()
    };
    broker_log.lines().filter_map(generation).max().unwrap_or(0)
}
