//! Leftovers: what transactions of before still hold when a producer begins: offsets of the group, and records of
//! the dead-letter topic.
//!
//! Apache Kafka concludes a transaction without telling those of its partitions that have no leader at that moment:
//! it takes them for deleted (4.3.1, `TransactionMarkerChannelManager`; a broker that starts again after a crash is in
//! that state for seconds). What the transaction holds there hangs, though the coordinator says that it has ended, and
//! the *next* transaction of the same producer decides about it: offsets of an aborted one are committed by one that has
//! nothing to do with it, without its dead letters. Seen, and tried: docs/DELIVERY.md, "Transactions that hang".
//!
//! So no producer begins before all that was there has been decided. Other producers' transactions pass in
//! milliseconds, and the brokers abort what a dead host left open; what then stays needs an operator.
//!
//! State: what has not been seen decided since the producer was initialised. It only shrinks.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::clients::TransactionSettings;
use super::{ANSWER_TIMEOUT, PAUSE};

/// Longest wait for offsets. Those that a transaction holds are not answered at all.
const OFFSETS_TIMEOUT: Duration = Duration::from_secs(1);
/// How many partitions are named.
const NAMED: usize = 5;

/// What to do about a transaction that hangs.
pub(in crate::kafka) const HANGING_CURE: &str = "; if the brokers can be reached and this stays so for \
     minutes, a transaction hangs that they take for ended: list it with `kafka-transactions.sh \
     --bootstrap-server ... find-hanging --broker-id ... --max-transaction-timeout 1`, and end each line of \
     that with `kafka-transactions.sh ... abort --topic ... --partition ... --start-offset ...`; if there is \
     none, restart the broker that coordinates the group";

/// A partition of a source topic, of whose offset it is not known that no transaction holds it.
type Held = (String, i32);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    listed: Option<Listed>,
}

#[derive(Debug)]
struct Listed {
    offsets: Vec<Held>,
    /// Partition of the dead-letter topic, and where it ended.
    letters: Vec<(i32, i64)>,
}

impl Leftovers {
    /// Looks until nothing is left, or the deadline has passed; that may be exceeded by a few answers. `reader` reads
    /// the group's offsets.
    ///
    /// # Errors
    /// What is left, or is not known.
    pub(super) fn look(
        &mut self,
        reader: &ClientConfig,
        settings: &TransactionSettings,
        deadline: Instant,
    ) -> Result<(), String> {
        let unknown =
            |error: ClientError| format!("it is not known what transactions of before hold: {error}");
        let consumer: BaseConsumer = reader.create().map_err(unknown)?;
        let listed = match &mut self.listed {
            Some(listed) => listed,
            None => {
                let listed = Listed::of(&consumer, reader, settings).map_err(unknown)?;
                self.listed.insert(listed)
            }
        };
        loop {
            listed.look(&consumer, settings, deadline).map_err(unknown)?;
            if listed.offsets.is_empty() && listed.letters.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(listed.complaint(settings));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Listed {
    fn of(
        consumer: &BaseConsumer,
        reader: &ClientConfig,
        settings: &TransactionSettings,
    ) -> Result<Self, ClientError> {
        let mut offsets = Vec::new();
        for topic in &settings.topics {
            offsets
                .extend(partitions(consumer, topic)?.into_iter().map(|partition| (topic.clone(), partition)));
        }
        let topic = &settings.dead_letter_topic;
        let mut letters = Vec::new();
        let mut uncommitted = reader.clone();
        let uncommitted: BaseConsumer = uncommitted.set("isolation.level", "read_uncommitted").create()?;
        for partition in partitions(consumer, topic)? {
            let (_, end) = uncommitted.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?;
            letters.push((partition, end));
        }
        Ok(Self { offsets, letters })
    }

    fn look(
        &mut self,
        consumer: &BaseConsumer,
        settings: &TransactionSettings,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        let mut letters = Vec::new();
        for (partition, end) in &self.letters {
            // Up to there every transaction is decided.
            let (_, stable) =
                consumer.fetch_watermarks(&settings.dead_letter_topic, *partition, ANSWER_TIMEOUT)?;
            if stable < *end {
                letters.push((*partition, *end));
            }
        }
        self.letters = letters;
        // All at once, and where that is not answered fewer and fewer: others commit all the time.
        let mut size = self.offsets.len();
        while size > 0 && !self.offsets.is_empty() {
            let mut left = Vec::new();
            for some in self.offsets.chunks(size) {
                if Instant::now() >= deadline || !are_decided(consumer, some)? {
                    left.extend_from_slice(some);
                }
            }
            self.offsets = left;
            size /= 2;
        }
        Ok(())
    }

    fn complaint(&self, settings: &TransactionSettings) -> String {
        let named = |partitions: Vec<String>| {
            let more = partitions.len().saturating_sub(NAMED);
            let named = partitions[..partitions.len() - more].join(", ");
            if more > 0 { format!("{named} and {more} more") } else { named }
        };
        let offsets: Vec<_> =
            self.offsets.iter().map(|(topic, partition)| format!("{topic} {partition}")).collect();
        let letters: Vec<_> = self.letters.iter().map(|(partition, _)| partition.to_string()).collect();
        let mut held = Vec::new();
        if !offsets.is_empty() {
            held.push(format!("the offsets of group {} in {}", settings.group, named(offsets)));
        }
        if !letters.is_empty() {
            let topic = &settings.dead_letter_topic;
            held.push(format!("records of topic {topic} in partition {}", named(letters)));
        }
        format!("a transaction of before still holds {}{HANGING_CURE}", held.join(" and "))
    }
}

/// Partitions of a topic; none where there is no such topic.
fn partitions(consumer: &BaseConsumer, topic: &str) -> Result<Vec<i32>, ClientError> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    let mut partitions = Vec::new();
    for topic in metadata.topics() {
        match topic.error().map(Code::from) {
            None => partitions.extend(topic.partitions().iter().map(|partition| partition.id())),
            Some(Code::UnknownTopicOrPartition | Code::InvalidTopic) => {}
            Some(code) => return Err(ClientError::MetadataFetch(code)),
        }
    }
    Ok(partitions)
}

/// Whether no transaction holds any of these offsets.
fn are_decided(consumer: &BaseConsumer, partitions: &[Held]) -> Result<bool, ClientError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, Offset::Invalid)?;
    }
    match consumer.committed_offsets(list, OFFSETS_TIMEOUT) {
        Ok(committed) => {
            committed.elements().iter().try_for_each(|element| element.error())?;
            Ok(true)
        }
        Err(error) if error.rdkafka_error_code() == Some(Code::OperationTimedOut) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named_with_the_cure() {
        let settings = TransactionSettings {
            topics: vec!["purchases".into()],
            group: "sluice-purchases".into(),
            instance: "one".into(),
            dead_letter_topic: "purchases.dead-letters".into(),
            pipeline: "purchases".into(),
        };
        let offsets = (0..7).map(|partition| ("purchases".to_owned(), partition)).collect();
        let complaint = Listed { offsets, letters: vec![(2, 6541)] }.complaint(&settings);
        let expected = "a transaction of before still holds the offsets of group sluice-purchases in purchases 0, \
                        purchases 1, purchases 2, purchases 3, purchases 4 and 2 more and records of topic \
                        purchases.dead-letters in partition 2; if the brokers can be reached";
        assert!(complaint.starts_with(expected), "{complaint}");
        assert!(complaint.contains("find-hanging") && complaint.contains("abort --topic"), "{complaint}");
    }
}
