//! Group: what librdkafka calls back into when partitions come and go, and what of them is ours.
//!
//! State: a slot for every assigned partition, with its epoch, sequence and chunk builder, and the
//! troubles of the group. Callbacks run on the intake thread, inside its `poll`, so the mutexes are
//! never contended; they are there because librdkafka's types ask for `Sync`.
//!
//! Where a partition is read from is decided here, before it is assigned: at the group's committed
//! offset, or, where there is none, at the start that the configuration says. A start at the end is
//! committed before anything is read, since the end is somewhere else after a restart; the rest of
//! librdkafka's resets (`auto.offset.reset`) go to the earliest record that there is, never past any.

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;

use crate::domain::chunk::ChunkBuilder;
use crate::domain::intent::PendingBatches;
use crate::domain::ledger::{Epoch, PartitionId};
use crate::pipeline::event::{Assignment, Event};

use super::log;
use super::queue::MessageQueue;

/// Longest wait for one answer about offsets, inside a rebalance.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A partition that is ours.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: PartitionId,
    pub(super) epoch: Epoch,
    pub(super) next_sequence: u64,
    /// Least offset that the next record may have.
    pub(super) next_offset: i64,
    pub(super) builder: Option<(ChunkBuilder, Instant)>,
}

/// The partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    epochs: Epoch,
}

impl Slots {
    /// An epoch that was never given before.
    pub(super) fn next_epoch(&mut self) -> Epoch {
        self.epochs += 1;
        self.epochs
    }
}

/// Why nothing comes in, by what it is about.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    joining: bool,
    brokers: Option<String>,
    partitions: BTreeMap<(String, i32), String>,
}

impl Troubles {
    /// What is said of them at `/ready`.
    pub(super) fn list(&self) -> Vec<String> {
        let joining = self.joining.then(|| "kafka: joining the consumer group".to_owned());
        joining.into_iter().chain(self.brokers.clone()).chain(self.partitions.values().cloned()).collect()
    }

    /// Whether there is none, without making the list.
    pub(super) fn is_empty(&self) -> bool {
        !self.joining && self.brokers.is_none() && self.partitions.is_empty()
    }

    /// A broker answered.
    pub(super) fn brokers_answer(&mut self) {
        self.brokers = None;
    }

    /// Whether the brokers were last heard to be away.
    pub(super) fn brokers_are_away(&self) -> bool {
        self.brokers.is_some()
    }

    pub(super) fn brokers_fail(&mut self, reason: String) {
        self.brokers = Some(reason);
    }

    /// A partition cannot be read.
    pub(super) fn partition_fails(&mut self, topic: &str, partition: i32, reason: &str) {
        let text = format!("kafka: topic {topic}, partition {partition} cannot be read: {reason}");
        self.partitions.insert((topic.to_owned(), partition), text);
    }

    /// A record of a partition came.
    pub(super) fn partition_reads(&mut self, topic: &str, partition: i32) {
        self.partitions.remove(&(topic.to_owned(), partition));
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct GroupContext {
    pub(super) queue: MessageQueue,
    slots: Mutex<Slots>,
    troubles: Mutex<Troubles>,
    events: mpsc::Sender<Event>,
    drain_timeout: Duration,
    from_latest: bool,
}

impl GroupContext {
    pub(super) fn new(events: mpsc::Sender<Event>, drain_timeout: Duration, from_latest: bool) -> Self {
        Self {
            queue: MessageQueue::detached(),
            slots: Mutex::default(),
            troubles: Mutex::new(Troubles { joining: true, ..Troubles::default() }),
            events,
            drain_timeout,
            from_latest,
        }
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets in `partitions` where each is to be read from, as far as that can be learned. What is left
    /// unset librdkafka looks up itself, and resets to the earliest record.
    fn position(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let committed = consumer.committed_offsets(partitions.clone(), ANSWER_TIMEOUT)?;
        let mut starts = TopicPartitionList::new();
        for element in committed.elements() {
            element.error()?;
            let (topic, partition) = (element.topic(), element.partition());
            let offset = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => {
                    let (low, end) = consumer.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)?;
                    if self.from_latest {
                        starts.add_partition_offset(topic, partition, Offset::Offset(end))?;
                    }
                    if self.from_latest { end } else { low }
                }
            };
            partitions.set_partition_offset(topic, partition, Offset::Offset(offset))?;
        }
        if starts.count() > 0 {
            consumer.commit(&starts, CommitMode::Sync)?;
        }
        Ok(())
    }

    fn assign(&self, partitions: &TopicPartitionList) {
        let mut assigned = Vec::new();
        let mut slots = self.slots();
        for element in partitions.elements() {
            self.queue.forward(element.topic(), element.partition());
            let epoch = slots.next_epoch();
            let id = PartitionId { topic: element.topic().into(), partition: element.partition() };
            let position = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            slots.slots.retain(|slot| slot.id != id);
            assigned.push(Assignment {
                partition: id.clone(),
                epoch,
                position,
                pending: PendingBatches::default(),
            });
            let next_offset = position.unwrap_or(0);
            slots.slots.push(Slot { id, epoch, next_sequence: 0, next_offset, builder: None });
        }
        drop(slots);
        self.troubles().joining = false;
        // The flow is gone only when the pipeline is closing.
        let _ = self.events.blocking_send(Event::Assigned(assigned));
    }

    fn revoke(&self, partitions: &TopicPartitionList, lost: bool) {
        let mut revoked = Vec::new();
        let mut slots = self.slots();
        for element in partitions.elements() {
            let ours =
                |slot: &Slot| slot.id.partition == element.partition() && *slot.id.topic == *element.topic();
            if let Some(index) = slots.slots.iter().position(ours) {
                let slot = slots.slots.swap_remove(index);
                self.troubles().partition_reads(&slot.id.topic, slot.id.partition);
                revoked.push((slot.id, slot.epoch));
            }
        }
        drop(slots);
        let (release, released) = sync_channel(1);
        if self.events.blocking_send(Event::Revoked { partitions: revoked, lost, release }).is_ok() {
            // The flow keeps its own deadline; the margin is for it to notice.
            let _ = released.recv_timeout(self.drain_timeout + Duration::from_secs(5));
        }
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka client error");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.troubles().brokers_fail(format!(
                "kafka: no broker can be reached ({reason}); check kafka.brokers and the network"
            ));
        }
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let done = match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                if let Err(error) = self.position(consumer, partitions) {
                    tracing::warn!(%error, "the committed offsets are not known; librdkafka looks them up");
                }
                self.assign(partitions);
                if cooperative {
                    consumer.incremental_assign(partitions)
                } else {
                    consumer.assign(partitions)
                }
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                self.revoke(partitions, consumer.assignment_lost());
                if cooperative { consumer.incremental_unassign(partitions) } else { consumer.unassign() }
            }
            error => {
                tracing::warn!(error = ?error, "rebalance failed; the group will try again");
                consumer.unassign()
            }
        };
        if let Err(error) = done {
            let reason = format!("kafka refuses a rebalance: {error}");
            let _ = self.events.blocking_send(Event::Broken(reason));
        }
    }
}
