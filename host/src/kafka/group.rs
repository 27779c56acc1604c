//! Group: what librdkafka calls back into when partitions come and go, and what of them is ours.
//!
//! State: a slot for every assigned partition, with what is read of it, and the troubles of the group.
//! Callbacks run on the intake thread, inside its `poll`, so the mutexes are never contended; they are
//! there because librdkafka's types ask for `Sync`.
//!
//! Where a partition is read from is decided here, before it is assigned ([`position`](super::position)),
//! or, exactly-once, soon after, once the tables were asked ([`withheld`](super::withheld));
//! and every partition that goes is settled before it is given back, however long that takes: a commit
//! that is still under way could reach the coordinator under a newer generation.

use std::collections::BTreeMap;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;

use crate::domain::ledger::{Delivery, Epoch, PartitionId};
use crate::domain::reading::Reading;
use crate::pipeline::event::{Assignment, Event};
use crate::pipeline::ports::Tables;

use super::identity::{Doubt, TopicIdentities};
use super::intake::IntakeSettings;
use super::log;
use super::position::{self, Position, Unknown};
use super::queue::MessageQueue;
use super::transactions::HANGING_CURE;
use super::withheld::{self, Looked, Withheld};

/// Least [`rebalance_timeout`].
const REBALANCE_TIMEOUT: Duration = Duration::from_secs(120);
/// How much longer it is than the longest drain.
const BEYOND_DRAIN: Duration = Duration::from_secs(60);
/// Time after which the brokers have ended every transaction that may hold offsets.
const UNSTABLE: Duration = Duration::from_secs(30);
/// Time without an assignment after which it is said what may be the cause.
const HELD_UP: Duration = Duration::from_secs(30);
/// Wait before they are asked for again.
const POSITION_PAUSE: Duration = Duration::from_millis(500);

/// A partition that is ours.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) reading: Reading,
    /// When the oldest record that is in no chunk yet was read.
    pub(super) waiting_since: Instant,
}

/// The partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) slots: Vec<Slot>,
    /// The newest epoch: each is given once.
    epochs: Epoch,
}

/// How long the group waits in a rebalance for a member that does not answer (`max.poll.interval.ms`). All
/// its partitions stand still meanwhile, so that it is as short as a drain allows, unless the user says
/// otherwise; librdkafka wants it no shorter than the session.
pub(super) fn rebalance_timeout(client: &mut ClientConfig, drain_timeout: Duration) -> Duration {
    let milliseconds = |client: &ClientConfig, name| client.get(name).and_then(|text| text.parse().ok());
    if let Some(interval) = milliseconds(client, "max.poll.interval.ms") {
        return Duration::from_millis(interval);
    }
    let session = milliseconds(client, "session.timeout.ms").map_or(Duration::ZERO, Duration::from_millis);
    let interval = REBALANCE_TIMEOUT.max(drain_timeout + BEYOND_DRAIN).max(session);
    client.set("max.poll.interval.ms", interval.as_millis().to_string());
    interval
}

/// Why nothing comes in, by what it is about.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    group: String,
    /// Waiting for an assignment since then.
    joining: Option<Instant>,
    offsets: Option<String>,
    /// Why it is not known yet what the tables hold.
    tables: Option<String>,
    brokers: Option<String>,
    partitions: BTreeMap<(String, i32), String>,
}

impl Troubles {
    /// What is said of them at `/ready`.
    pub(super) fn list(&self) -> Vec<String> {
        let joining = self.joining.map(|since| self.joining_since(since));
        let others =
            self.offsets.iter().chain(&self.tables).chain(&self.brokers).chain(self.partitions.values());
        joining.into_iter().chain(others.cloned()).collect()
    }

    fn joining_since(&self, since: Instant) -> String {
        let group = &self.group;
        if since.elapsed() < HELD_UP {
            return format!("kafka: joining the consumer group {group}");
        }
        format!(
            "kafka: no assignment from the consumer group {group} for more than {}: a member that does not \
             answer holds it up, for max.poll.interval.ms at most; `kafka-consumer-groups.sh --describe \
             --members --group {group}` lists the members, and if none of them is alive restart the broker \
             that coordinates the group",
            humantime::format_duration(HELD_UP)
        )
    }

    /// Whether there is none, without making the list.
    pub(super) fn is_empty(&self) -> bool {
        self.joining.is_none()
            && self.offsets.is_none()
            && self.tables.is_none()
            && self.brokers.is_none()
            && self.partitions.is_empty()
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
pub(super) struct GroupContext {
    pub(super) queue: MessageQueue,
    pub(super) identities: Arc<TopicIdentities>,
    slots: Mutex<Slots>,
    troubles: Mutex<Troubles>,
    withheld: Mutex<Withheld>,
    tables: Option<Arc<dyn Tables>>,
    events: mpsc::Sender<Event>,
    from_latest: bool,
    exactly_once: bool,
    /// Longest wait for the committed offsets exactly-once: below the [`rebalance_timeout`], after which the
    /// group would give the partitions to somebody else.
    position_patience: Duration,
}

impl GroupContext {
    pub(super) fn new(
        events: mpsc::Sender<Event>,
        tables: Option<Arc<dyn Tables>>,
        settings: &IntakeSettings,
        rebalance_timeout: Duration,
    ) -> Self {
        let troubles =
            Troubles { group: settings.group.clone(), joining: Some(Instant::now()), ..Troubles::default() };
        Self {
            queue: MessageQueue::detached(),
            identities: Arc::default(),
            slots: Mutex::default(),
            troubles: Mutex::new(troubles),
            withheld: Mutex::default(),
            tables,
            events,
            from_latest: settings.start == "latest",
            exactly_once: settings.delivery == Delivery::ExactlyOnce,
            position_patience: rebalance_timeout * 3 / 4,
        }
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each of `partitions` is read from. Exactly-once nothing else is done before that is known: what
    /// is pending there must not be read as new. At-least-once librdkafka looks up what is unknown.
    fn positions(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<Vec<Position>, String> {
        let began = Instant::now();
        loop {
            // First, since offsets found after that are of these topics, or of ones that the next commit notices.
            let elements = partitions.elements();
            let topics = elements.iter().map(|element| element.topic());
            let looked_up = match self.identities.confirm(consumer.client(), topics) {
                Ok(()) => position::look_up(consumer, partitions, self.from_latest, self.exactly_once),
                Err(Doubt::MadeAgain(reason)) => return Err(reason),
                Err(Doubt::Unknown(reason)) => Err(Unknown::Offsets(reason)),
            };
            match looked_up {
                Ok(positions) => {
                    if self.troubles().offsets.take().is_some() {
                        self.tell_troubles();
                    }
                    return Ok(positions);
                }
                Err(Unknown::Metadata(reason)) => return Err(reason),
                Err(Unknown::Offsets(reason)) if !self.exactly_once => {
                    tracing::warn!(reason, "the committed offsets are not known; librdkafka looks them up");
                    return Ok(position::unknown(partitions));
                }
                Err(Unknown::Offsets(reason)) if began.elapsed() >= self.position_patience => {
                    return Err(format!(
                        "the committed offsets are not known after {}: {reason}{HANGING_CURE}",
                        humantime::format_duration(self.position_patience)
                    ));
                }
                Err(Unknown::Offsets(_)) if self.events.is_closed() => {
                    return Err("stopped before the committed offsets were known".into());
                }
                Err(Unknown::Offsets(reason)) => {
                    let mut trouble = format!("kafka: the committed offsets are not known yet: {reason}");
                    if began.elapsed() >= UNSTABLE {
                        trouble.push_str(HANGING_CURE);
                    }
                    if self.troubles().offsets.replace(trouble.clone()).as_ref() != Some(&trouble) {
                        tracing::warn!(reason, "the committed offsets are not known yet; asking again");
                        self.tell_troubles();
                    }
                    std::thread::sleep(POSITION_PAUSE);
                }
            }
        }
    }

    /// The reader tells them too, but not while it is held up in a rebalance.
    fn tell_troubles(&self) {
        let list = self.troubles().list();
        let _ = self.events.blocking_send(Event::IntakeTrouble(list));
    }

    /// What librdkafka is to be told of an assignment.
    fn assignment(&self, positions: &[Position]) -> Result<TopicPartitionList, KafkaError> {
        let mut partitions = TopicPartitionList::with_capacity(positions.len());
        for Position { partition: id, read_from, .. } in positions {
            self.queue.forward(&id.topic, id.partition);
            let mut element = partitions.add_partition(&id.topic, id.partition);
            element.set_offset(read_from.map_or(Offset::Stored, Offset::Offset))?;
        }
        self.troubles().joining = None;
        Ok(partitions)
    }

    /// Tells the flow that partitions are ours and are read.
    fn announce(&self, positions: Vec<Position>) {
        let mut assigned = Vec::new();
        let mut slots = self.slots();
        for Position { partition: id, committed, read_from, pending } in positions {
            slots.epochs += 1;
            let epoch = slots.epochs;
            slots.slots.retain(|slot| *slot.reading.partition() != id);
            assigned.push(Assignment { partition: id.clone(), epoch, position: committed, pending });
            let reading = Reading::new(id, epoch, read_from.unwrap_or(0));
            slots.slots.push(Slot { reading, waiting_since: Instant::now() });
        }
        drop(slots);
        // The flow is gone only when the pipeline is closing.
        let _ = self.events.blocking_send(Event::Assigned(assigned));
    }

    fn withheld(&self) -> MutexGuard<'_, Withheld> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many partitions are not read for what the tables have.
    pub(super) fn held(&self) -> usize {
        self.withheld().held()
    }

    /// Assigns partitions; those of which the tables are to be asked first are paused.
    fn take(
        &self,
        consumer: &BaseConsumer<Self>,
        positions: Vec<Position>,
        cooperative: bool,
    ) -> Result<(), KafkaError> {
        let partitions = self.assignment(&positions)?;
        let assign = || {
            if cooperative { consumer.incremental_assign(&partitions) } else { consumer.assign(&partitions) }
        };
        if self.tables.is_none() {
            self.announce(positions);
            return assign();
        }
        assign()?;
        consumer.pause(&partitions)?;
        self.withheld().add(positions);
        Ok(())
    }

    /// Reads those of the withheld partitions of which the tables hold nothing that is still to be read.
    ///
    /// # Errors
    /// When librdkafka does not let them be read.
    pub(super) fn read_withheld(&self, consumer: &BaseConsumer<Self>) -> Result<(), KafkaError> {
        let Some(tables) = self.tables.as_ref().filter(|_| !self.withheld().is_empty()) else {
            return Ok(());
        };
        let look_up = |partitions: &TopicPartitionList| {
            position::look_up(consumer, partitions, self.from_latest, self.exactly_once).map_err(|unknown| {
                match unknown {
                    Unknown::Offsets(reason) => {
                        format!("kafka: the committed offsets are not known yet: {reason}")
                    }
                    Unknown::Metadata(reason) => reason,
                }
            })
        };
        let Looked { free, held, tables } = self.withheld().look(&**tables, look_up);
        let mut troubles = self.troubles();
        if let Some(asked) = tables {
            troubles.tables = asked.err();
        }
        for (partition, reason) in held {
            let place = (partition.topic.to_string(), partition.partition);
            if troubles.partitions.get(&place) != Some(&reason) {
                tracing::error!(reason, "a partition is not read");
                troubles.partitions.insert(place, reason);
            }
        }
        for Position { partition, .. } in &free {
            troubles.partition_reads(&partition.topic, partition.partition);
        }
        drop(troubles);
        if free.is_empty() {
            return Ok(());
        }
        withheld::read_on(consumer, &free)?;
        self.announce(free);
        Ok(())
    }

    fn revoke(&self, partitions: &TopicPartitionList, lost: bool) {
        let mut revoked = Vec::new();
        let mut slots = self.slots();
        for element in partitions.elements() {
            let partition = PartitionId { topic: element.topic().into(), partition: element.partition() };
            let index = slots.slots.iter().position(|slot| *slot.reading.partition() == partition);
            let epoch = index.map(|index| slots.slots.swap_remove(index).reading.epoch());
            if self.withheld().remove(&partition) || epoch.is_some() {
                self.troubles().partition_reads(&partition.topic, partition.partition);
            }
            revoked.extend(epoch.map(|epoch| (partition, epoch)));
        }
        drop(slots);
        if lost {
            self.troubles().joining = Some(Instant::now());
        }
        let (release, released) = sync_channel(1);
        if self.events.blocking_send(Event::Revoked { partitions: revoked, lost, release }).is_ok() {
            // The flow keeps the deadline, and answers only when no commit is under way. One that is gone
            // drops its end.
            let _ = released.recv();
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
                // Where nothing may be read, nothing is assigned: an answer is owed, and the pipeline ends.
                let assigned = self.positions(consumer, partitions).unwrap_or_else(|reason| {
                    let _ = self.events.blocking_send(Event::Broken(reason));
                    Vec::new()
                });
                self.take(consumer, assigned, cooperative)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(properties: &[(&str, &str)], drain_timeout: u64) -> (u64, Option<String>) {
        let mut client = ClientConfig::new();
        for (name, value) in properties {
            client.set(*name, *value);
        }
        let timeout = rebalance_timeout(&mut client, Duration::from_secs(drain_timeout));
        (timeout.as_secs(), client.get("max.poll.interval.ms").map(str::to_owned))
    }

    #[test]
    fn a_rebalance_waits_for_the_longest_drain_and_session_or_as_the_user_says() {
        assert_eq!(timeout(&[], 30), (120, Some("120000".into())));
        assert_eq!(timeout(&[], 240), (300, Some("300000".into())));
        assert_eq!(timeout(&[("session.timeout.ms", "400000")], 30), (400, Some("400000".into())));
        assert_eq!(timeout(&[("max.poll.interval.ms", "45000")], 240), (45, Some("45000".into())));
    }
}
