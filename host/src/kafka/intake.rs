//! Intake: the one thread of a pipeline that reads Kafka: group membership, chunks, back-pressure.
//!
//! It owns the consumer, and what is read of the partitions ([`domain::reading`](crate::domain::reading)).
//! Records are copied once, into their chunk's columns, and librdkafka's buffer is freed at once. While the
//! byte budget is spent it reads nothing but goes on serving the group, so membership is kept and nothing is dropped.
//! Records of a chunk that is not full yet are not announced to the flow: when their partition goes,
//! they are forgotten, and its next owner reads them again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use tokio::sync::mpsc;

use crate::domain::chunk::MAXIMUM_RECORDS;
use crate::domain::ledger::Delivery;
use crate::domain::reading::{Arrival, ReadChunk};
use crate::pipeline::binding::ChainSlot;
use crate::pipeline::budget::Budget;
use crate::pipeline::event::{DeathNotice, Event, Taken};
use crate::pipeline::ports::Tables;
use crate::pipeline::workers::{Job, Refused, Workers};

use super::copy::Copy;
use super::group::{GroupContext, Slot, rebalance_timeout};
use super::offsets::GroupOffsets;
use super::queue::Message;
use super::transactions::{TransactionSettings, TransactionalOffsets};

/// Longest wait for messages, and for rebalances while nothing may be read.
const READ_TIMEOUT: Duration = Duration::from_millis(20);
/// Longest time that a record waits for its chunk to become full while other partitions keep the reads full.
const WAITING_AGE: Duration = Duration::from_millis(20);
/// How often the ends of the partitions and the state of the brokers are looked at.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait before full workers are asked again; the group is served meanwhile.
const HAND_OVER_WAIT: Duration = Duration::from_millis(2);

/// What an intake is to do.
#[derive(Clone, Debug)]
pub struct IntakeSettings {
    /// Topics to subscribe to.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group: String,
    /// Where a group without committed offsets starts: `earliest` or `latest`.
    pub start: &'static str,
    /// Exactly-once nothing is read before the group's offsets, and what is pending there, are known.
    pub delivery: Delivery,
    /// Longest time that partitions which go are drained for.
    pub drain_timeout: Duration,
}

/// What an intake talks to.
#[derive(Clone)]
pub struct IntakeCollaborators {
    /// The flow.
    pub events: mpsc::Sender<Event>,
    /// Where chunks are judged.
    pub workers: Workers,
    /// Chain for new chunks.
    pub chain: ChainSlot,
    /// Bytes in flight.
    pub budget: Budget,
    /// What the pipeline fills, where a partition must not be read whose next records it holds already.
    pub tables: Option<Arc<dyn Tables>>,
}

impl std::fmt::Debug for IntakeCollaborators {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IntakeCollaborators").finish_non_exhaustive()
    }
}

/// The group consumer, shared with the offset store.
pub(super) type GroupConsumer = BaseConsumer<GroupContext>;

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;
const CLOSING: u8 = 2;

/// Handle on the intake thread.
pub struct Intake {
    consumer: Option<Arc<GroupConsumer>>,
    state: Arc<AtomicU8>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Intake {
    /// Joins the group and starts the thread.
    ///
    /// # Errors
    /// When a setting is refused by librdkafka, or the thread by the system.
    pub fn start(
        mut client: ClientConfig,
        settings: IntakeSettings,
        with: IntakeCollaborators,
    ) -> Result<Self, KafkaError> {
        client
            .set("group.id", &settings.group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "false")
            // Records of open or aborted transactions are not there; nor are offsets of open ones known.
            .set("isolation.level", "read_committed")
            // Never past a record: `group` decides where a group without offsets starts.
            .set("auto.offset.reset", "earliest");
        // The KIP-848 protocol has its assignors at the broker and refuses this property.
        if client.get("group.protocol").is_none_or(|protocol| protocol == "classic")
            && client.get("partition.assignment.strategy").is_none()
        {
            client.set("partition.assignment.strategy", "cooperative-sticky");
        }
        client.set_log_level(RDKafkaLogLevel::Info);
        let rebalance_timeout = rebalance_timeout(&mut client, settings.drain_timeout);
        let tables = with.tables.clone();
        let context = GroupContext::new(with.events.clone(), tables, &settings, rebalance_timeout);
        let consumer: Arc<GroupConsumer> = Arc::new(client.create_with_context(context)?);
        attach(&consumer);
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let state = Arc::new(AtomicU8::new(RUNNING));
        let thread = std::thread::Builder::new()
            .name("kafka-intake".into())
            .spawn({
                let (consumer, state) = (consumer.clone(), state.clone());
                let topic = settings.topics.first().cloned().unwrap_or_default();
                let pending = VecDeque::new();
                move || Reader { consumer, state, with, topic, pending, told: Vec::new(), told_held: 0 }.run()
            })
            .map_err(|error| {
                KafkaError::ClientCreation(format!("cannot start the intake thread: {error}"))
            })?;
        Ok(Self { consumer: Some(consumer), state, thread: Some(thread) })
    }

    /// Where this group's offsets are committed.
    ///
    /// # Panics
    /// Never: the consumer is there until [`Self::close`].
    pub fn offset_store(&self) -> GroupOffsets {
        let consumer = self.consumer.clone().expect("the intake is not closed");
        let identities = consumer.context().identities.clone();
        GroupOffsets::new(consumer, identities)
    }

    /// Where this group's offsets are committed exactly-once, each commit a transaction. One a pipeline:
    /// a second one of the same settings fences the first. For an intake whose delivery is exactly-once.
    ///
    /// # Errors
    /// When a setting is refused by librdkafka, or the thread by the system.
    ///
    /// # Panics
    /// Never: the consumer is there until [`Self::close`].
    pub fn transactional_offsets(
        &self,
        client: ClientConfig,
        settings: TransactionSettings,
    ) -> Result<TransactionalOffsets, KafkaError> {
        let consumer = self.consumer.as_ref().expect("the intake is not closed");
        let identities = consumer.context().identities.clone();
        TransactionalOffsets::start(client, settings, Arc::downgrade(consumer), identities)
    }

    /// A handle that stops the reading, from anywhere.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.state.clone())
    }

    /// Leaves the group and waits for the thread. Blocking. Everything else that holds the
    /// consumer (the offset store) must be gone, else the group is left when that goes.
    pub fn close(mut self) {
        self.state.store(CLOSING, Ordering::Release);
        self.consumer = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the kafka intake thread panicked");
        }
    }
}

impl Drop for Intake {
    /// Where a pipeline dies without closing, its thread must not go on reading for nobody.
    fn drop(&mut self) {
        self.state.store(CLOSING, Ordering::Release);
    }
}

/// Stops an intake: no more chunks, but the group is kept until [`Intake::close`].
#[derive(Clone, Debug)]
pub struct Stopper(Arc<AtomicU8>);

impl Stopper {
    /// Stops the reading; the flow hears [`Event::IntakeStopped`].
    pub fn stop(&self) {
        // Not from CLOSING back to STOPPING.
        let _ = self.0.compare_exchange(RUNNING, STOPPING, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[expect(unsafe_code, reason = "the queue needs the client's raw handle")]
fn attach(consumer: &Arc<GroupConsumer>) {
    // SAFETY: the reader closes the queue before it gives up its hold on the consumer, and until
    // then the client is alive.
    unsafe { consumer.context().queue.attach(consumer.client().native_ptr()) };
}

struct Reader {
    consumer: Arc<GroupConsumer>,
    state: Arc<AtomicU8>,
    with: IntakeCollaborators,
    /// One of the topics, to ask the brokers for.
    topic: String,
    /// Chunks that the workers had no room for; nothing is read while there are any.
    pending: VecDeque<Job>,
    told: Vec<String>,
    told_held: usize,
}

impl Reader {
    fn run(mut self) {
        let events = self.with.events.clone();
        let notice = DeathNotice::new(&events, "the kafka intake thread");
        let mut surveyed: Option<Instant> = None;
        let mut stopped = false;
        // Bytes of a record lately, to size a read by what the budget has left.
        let mut record_bytes = 1024;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state == CLOSING {
                break;
            }
            self.hand_over();
            if state == STOPPING && !stopped && self.pending.is_empty() {
                stopped = true;
                self.send(Event::IntakeStopped);
            }
            let available = self.with.budget.available();
            let reading = state == RUNNING && available > 0 && self.pending.is_empty();
            let wait = if self.pending.is_empty() { READ_TIMEOUT } else { HAND_OVER_WAIT };
            self.serve_group(if reading { Duration::ZERO } else { wait });
            if let Err(error) = self.consumer.context().read_withheld(&self.consumer) {
                self.send(Event::Broken(format!("kafka refuses to read a partition: {error}")));
            }
            if reading {
                let maximum = (available / record_bytes).clamp(1, MAXIMUM_RECORDS);
                self.read(maximum, &mut record_bytes);
            }
            self.tell_trouble();
            if surveyed.is_none_or(|last| last.elapsed() >= SURVEY_INTERVAL) {
                self.survey();
                surveyed = Some(Instant::now());
            }
        }
        self.consumer.context().queue.close();
        drop(notice);
    }

    /// Serves rebalances and errors; messages come through the queue, not through here.
    fn serve_group(&self, timeout: Duration) {
        match self.consumer.poll(timeout) {
            None => {}
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                self.send(Event::Broken(format!("kafka refuses this consumer for good: {code}")));
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "kafka consumer error");
                self.consumer.context().troubles().brokers_fail(format!("kafka: {error}"));
            }
            // A message here would mean that its partition was not forwarded: reading on would lose it.
            Some(Ok(_)) => self.send(Event::Broken(
                "a record came past the intake's queue; this is a defect of sluice, please report it".into(),
            )),
        }
    }

    fn read(&mut self, maximum: usize, record_bytes: &mut usize) {
        let consumer = self.consumer.clone();
        let context = consumer.context();
        let mut slots = context.slots();
        let waiting = slots.slots.iter().any(|slot| slot.reading.is_waiting());
        let timeout = if waiting { Duration::ZERO } else { READ_TIMEOUT };
        let now = Instant::now();
        let mut outgoing = Vec::new();
        let mut broken = None;
        let mut current: Option<(*const std::ffi::c_void, i32, usize)> = None;
        let count = context.queue.read(timeout, maximum, |message| {
            if let Some(error) = message.error() {
                broken = broken.take().or(self.refused(&message, &error));
                return;
            }
            let (topic, partition) = (message.topic_identity(), message.partition());
            let index = match current {
                Some((last, number, index)) if last == topic && number == partition => index,
                _ => {
                    let found = slots.slots.iter().position(|slot| {
                        let id = slot.reading.partition();
                        id.partition == partition && *id.topic == *message.topic()
                    });
                    // A partition that was taken away while its messages were under way.
                    let Some(index) = found else { return };
                    current = Some((topic, partition, index));
                    let mut troubles = context.troubles();
                    if !troubles.is_empty() {
                        troubles.brokers_answer();
                        troubles.partition_reads(message.topic(), partition);
                    }
                    index
                }
            };
            let slot = &mut slots.slots[index];
            let (offset, expected) = (message.offset(), slot.reading.next_offset());
            match slot.reading.arrival(offset, || message.partition_end()) {
                Arrival::New => outgoing.extend(take(slot, &message, now, record_bytes)),
                Arrival::Again => {
                    tracing::debug!(topic = message.topic(), partition, offset, expected, "a record comes again");
                }
                // What is in flight is of a log that is gone. Only the group's offset says what is settled.
                Arrival::OtherLog => {
                    broken = broken.take().or(Some(format!(
                        "topic {}, partition {partition}: offsets went back from {expected} to {offset}: the topic \
                         was made again, or its log was cut off; start again, to go on at the group's offset",
                        message.topic()
                    )));
                }
            }
        });
        if let Some(reason) = broken {
            // Nothing of this read goes on: what follows the hole must not be committed past it.
            self.send(Event::Broken(reason));
            return;
        }
        // Everything that waits goes out when the queue ran dry, else only what has become old.
        let dry = count < maximum;
        for slot in &mut slots.slots {
            if dry || now.duration_since(slot.waiting_since) >= WAITING_AGE {
                outgoing.extend(slot.reading.finish());
            }
        }
        drop(slots);
        for read in outgoing {
            self.dispatch(read);
        }
    }

    /// What is to be done about an error in place of a message: a reason to stop where librdkafka goes
    /// on behind records that it could not read, else trouble that is shown until the partition is read.
    fn refused(&self, message: &Message<'_>, error: &str) -> Option<String> {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        tracing::warn!(error, topic, partition, offset, "kafka cannot read a partition");
        if message.is_unreadable() {
            return Some(format!(
                "topic {topic}, partition {partition}, offset {offset}: records that cannot be read ({error}), \
                 and reading on would lose them; mend the partition, or move the group's offset past them on purpose"
            ));
        }
        self.consumer.context().troubles().partition_fails(topic, partition, error);
        None
    }

    /// Hands chunks to the workers, as far as they have room.
    fn hand_over(&mut self) {
        while let Some(job) = self.pending.pop_front() {
            match self.with.workers.offer(job) {
                Ok(()) => {}
                Err(Refused::Full(job)) => {
                    self.pending.push_front(*job);
                    return;
                }
                Err(Refused::Gone) => self.send(Event::Broken("the wasm worker threads are gone".into())),
            }
        }
    }

    fn dispatch(&mut self, read: ReadChunk) {
        let ReadChunk { partition, epoch, sequence, chunk } = read;
        let hold = self.with.budget.take(chunk.footprint());
        let (records, end) = (chunk.len() as u64, chunk.end_offset());
        self.send(Event::Consumed { partition, epoch, records, end });
        let taken = Taken { epoch, sequence, chunk, chain: self.with.chain.current(), hold };
        self.pending.push_back(Job { taken, events: self.with.events.clone() });
        self.hand_over();
    }

    fn survey(&mut self) {
        let context = self.consumer.context();
        let ends: Vec<_> = context
            .slots()
            .slots
            .iter()
            .filter_map(|slot| {
                let id = slot.reading.partition();
                let end = context.queue.end_offset(&id.topic, id.partition)?;
                Some((id.clone(), end))
            })
            .collect();
        self.send(Event::EndOffsets(ends));
        if context.troubles().brokers_are_away()
            && self.consumer.client().fetch_metadata(Some(&self.topic), SURVEY_INTERVAL).is_ok()
        {
            context.troubles().brokers_answer();
        }
    }

    /// Tells the flow why nothing comes in, and how much is held, when that has changed.
    fn tell_trouble(&mut self) {
        let held = self.consumer.context().held();
        if held != self.told_held {
            self.told_held = held;
            self.send(Event::Held(held));
        }
        let troubles = self.consumer.context().troubles();
        if troubles.is_empty() && self.told.is_empty() {
            return;
        }
        let list = troubles.list();
        drop(troubles);
        if list != self.told {
            self.told.clone_from(&list);
            self.send(Event::IntakeTrouble(list));
        }
    }

    fn send(&self, event: Event) {
        // The flow is gone only when the pipeline is closing.
        let _ = self.with.events.blocking_send(event);
    }
}

/// Copies a new message into the chunk that is being read; returns the one before where that was full.
fn take(slot: &mut Slot, message: &Message<'_>, now: Instant, record_bytes: &mut usize) -> Option<ReadChunk> {
    let copy = Copy::of(message);
    *record_bytes = (*record_bytes * 7 + copy.bytes() + 64) / 8;
    let was_waiting = slot.reading.is_waiting();
    let full = slot.reading.take(message.offset(), copy.bytes(), |builder| copy.push_to(builder));
    if full.is_some() || !was_waiting {
        slot.waiting_since = now;
    }
    full
}
