//! Intake: the one thread of a pipeline that reads Kafka: group membership, chunks, back-pressure.
//!
//! It owns the consumer, the partitions' chunk builders and epochs. Records are copied once, into
//! their chunk's columns, and librdkafka's buffer is freed at once. While the byte budget is spent
//! it reads nothing but goes on serving the group, so membership is kept and nothing is dropped.
//! Records in a builder that is not full yet are not announced to the flow: when their partition
//! goes, they are forgotten, and its next owner reads them again.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::mpsc;

use crate::domain::chunk::{ChunkBuilder, MAXIMUM_RECORDS};
use crate::domain::ledger::{Epoch, PartitionId};
use crate::pipeline::binding::ChainSlot;
use crate::pipeline::budget::Budget;
use crate::pipeline::event::{Event, Taken};
use crate::pipeline::workers::{Job, Workers};

use super::log;
use super::queue::{Message, MessageQueue};

/// Longest wait for messages, and for rebalances while nothing may be read.
const READ_TIMEOUT: Duration = Duration::from_millis(20);
/// Longest time that a record waits in a builder while other partitions keep the reads full.
const BUILDER_AGE: Duration = Duration::from_millis(20);
/// How often the ends of the partitions and the state of the brokers are looked at.
const SURVEY_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for an answer about offsets; the intake reads nothing meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What an intake is to do.
#[derive(Clone, Debug)]
pub struct IntakeSettings {
    /// Topics to subscribe to.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group: String,
    /// Where a group without committed offsets starts: `earliest` or `latest`.
    pub start: &'static str,
    /// Longest wait in a rebalance for the flow to settle what is in flight.
    pub drain_timeout: Duration,
}

/// What an intake talks to.
#[derive(Clone, Debug)]
pub struct IntakeCollaborators {
    /// The flow.
    pub events: mpsc::Sender<Event>,
    /// Where chunks are judged.
    pub workers: Workers,
    /// Chain for new chunks.
    pub chain: ChainSlot,
    /// Bytes in flight.
    pub budget: Budget,
}

/// The group consumer, shared with the offset store.
pub(super) type GroupConsumer = BaseConsumer<GroupContext>;

const RUNNING: u8 = 0;
const STOPPING: u8 = 1;
const CLOSING: u8 = 2;

/// Handle on the intake thread.
pub struct Intake {
    consumer: Arc<GroupConsumer>,
    state: Arc<AtomicU8>,
    thread: std::thread::JoinHandle<()>,
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
            .set("auto.offset.reset", settings.start);
        // The KIP-848 protocol has its assignors at the broker and refuses this property.
        if client.get("group.protocol").is_none_or(|protocol| protocol == "classic")
            && client.get("partition.assignment.strategy").is_none()
        {
            client.set("partition.assignment.strategy", "cooperative-sticky");
        }
        client.set_log_level(RDKafkaLogLevel::Info);
        let context = GroupContext {
            queue: MessageQueue::detached(),
            slots: Mutex::default(),
            events: with.events.clone(),
            drain_timeout: settings.drain_timeout,
            trouble: Mutex::new(Some("kafka: joining the consumer group".into())),
        };
        let consumer: Arc<GroupConsumer> = Arc::new(client.create_with_context(context)?);
        attach(&consumer);
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        let state = Arc::new(AtomicU8::new(RUNNING));
        let thread = std::thread::Builder::new()
            .name("kafka-intake".into())
            .spawn({
                let (consumer, state) = (consumer.clone(), state.clone());
                let from_latest = settings.start == "latest";
                move || Reader { consumer, state, with, from_latest, told: None }.run()
            })
            .map_err(|error| {
                KafkaError::ClientCreation(format!("cannot start the intake thread: {error}"))
            })?;
        Ok(Self { consumer, state, thread })
    }

    /// Where this group's offsets are committed.
    pub fn offset_store(&self) -> super::offsets::GroupOffsets {
        super::offsets::GroupOffsets::new(self.consumer.clone())
    }

    /// A handle that stops the reading, from anywhere.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.state.clone())
    }

    /// Leaves the group and waits for the thread. Blocking. Everything else that holds the
    /// consumer (the offset store) must be gone, else the group is left when that goes.
    pub fn close(self) {
        self.state.store(CLOSING, Ordering::Release);
        drop(self.consumer);
        if self.thread.join().is_err() {
            tracing::error!("the kafka intake thread panicked");
        }
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

/// A partition that is ours.
#[derive(Debug)]
struct Slot {
    id: PartitionId,
    epoch: Epoch,
    next_sequence: u64,
    /// Whether the flow knows where the group goes on reading.
    resumed: bool,
    builder: Option<(ChunkBuilder, Instant)>,
}

#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    epochs: Epoch,
}

/// What librdkafka calls back into, on the intake thread.
#[derive(Debug)]
pub(super) struct GroupContext {
    queue: MessageQueue,
    slots: Mutex<Slots>,
    events: mpsc::Sender<Event>,
    drain_timeout: Duration,
    trouble: Mutex<Option<String>>,
}

impl GroupContext {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn assign(&self, partitions: &TopicPartitionList) {
        let mut assigned = Vec::new();
        let mut slots = self.slots();
        for element in partitions.elements() {
            self.queue.forward(element.topic(), element.partition());
            slots.epochs += 1;
            let epoch = slots.epochs;
            let id = PartitionId { topic: element.topic().into(), partition: element.partition() };
            slots.slots.retain(|slot| slot.id != id);
            assigned.push((id.clone(), epoch));
            slots.slots.push(Slot { id, epoch, next_sequence: 0, resumed: false, builder: None });
        }
        drop(slots);
        self.set_trouble(None);
        // The flow is gone only when the pipeline is closing.
        let _ = self.events.blocking_send(Event::Assigned(assigned));
    }

    fn revoke(&self, partitions: &TopicPartitionList, lost: bool) {
        let mut ids = Vec::new();
        let mut slots = self.slots();
        for element in partitions.elements() {
            let id = PartitionId { topic: element.topic().into(), partition: element.partition() };
            slots.slots.retain(|slot| slot.id != id);
            ids.push(id);
        }
        drop(slots);
        let (release, released) = sync_channel(1);
        if self.events.blocking_send(Event::Revoked { partitions: ids, lost, release }).is_ok() {
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
            self.set_trouble(Some(format!(
                "kafka: no broker can be reached ({reason}); check kafka.brokers and the network"
            )));
        }
    }
}

impl ConsumerContext for GroupContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.assign(partitions),
            Rebalance::Revoke(partitions) => self.revoke(partitions, consumer.assignment_lost()),
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed; the group will try again"),
        }
    }
}

struct Reader {
    consumer: Arc<GroupConsumer>,
    state: Arc<AtomicU8>,
    with: IntakeCollaborators,
    /// Whether a group without committed offsets starts at the end.
    from_latest: bool,
    told: Option<String>,
}

impl Reader {
    fn run(mut self) {
        let mut surveyed: Option<Instant> = None;
        let mut stopped = false;
        // Bytes of a record lately, to size a read by what the budget has left.
        let mut record_bytes = 1024;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state == CLOSING {
                break;
            }
            if state == STOPPING && !stopped {
                stopped = true;
                self.send(Event::IntakeStopped);
            }
            let available = self.with.budget.available();
            let reading = !stopped && available > 0;
            self.serve_group(if reading { Duration::ZERO } else { READ_TIMEOUT });
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
                self.consumer.context().set_trouble(Some(format!("kafka: {error}")));
            }
            // A message here would mean that its partition was not forwarded: reading on would lose it.
            Some(Ok(_)) => self.send(Event::Broken(
                "a record came past the intake's queue; this is a defect of sluice, please report it".into(),
            )),
        }
    }

    fn read(&mut self, maximum: usize, record_bytes: &mut usize) {
        let context = self.consumer.context();
        let mut slots = context.slots();
        let waiting = slots.slots.iter().any(|slot| slot.builder.is_some());
        let timeout = if waiting { Duration::ZERO } else { READ_TIMEOUT };
        let now = Instant::now();
        let mut full = Vec::new();
        let mut current: Option<(*const std::ffi::c_void, i32, usize)> = None;
        let count = context.queue.read(timeout, maximum, |message| {
            if let Some(error) = message.error() {
                tracing::warn!(error, topic = message.topic(), partition = message.partition(), "kafka");
                return;
            }
            let (topic, partition) = (message.topic_identity(), message.partition());
            let index = match current {
                Some((last, number, index)) if last == topic && number == partition => index,
                _ => {
                    let found = slots.slots.iter().position(|slot| {
                        slot.id.partition == partition && *slot.id.topic == *message.topic()
                    });
                    // A partition that was taken away while its messages were under way.
                    let Some(index) = found else { return };
                    current = Some((topic, partition, index));
                    index
                }
            };
            if let Some(chunk) = append(&mut slots.slots[index], &message, now, record_bytes) {
                full.push((index, chunk));
            }
        });
        // Everything that waits goes out when the queue ran dry, else only what has become old.
        let dry = count < maximum;
        for (index, slot) in slots.slots.iter_mut().enumerate() {
            if slot
                .builder
                .as_ref()
                .is_some_and(|(_, since)| dry || now.duration_since(*since) >= BUILDER_AGE)
                && let Some((builder, _)) = slot.builder.take()
            {
                full.push((index, builder));
            }
        }
        let chunks: Vec<_> = full
            .into_iter()
            .map(|(index, builder)| {
                let slot = &mut slots.slots[index];
                slot.next_sequence += 1;
                (slot.id.clone(), slot.epoch, slot.next_sequence - 1, builder)
            })
            .collect();
        drop(slots);
        if count > 0 && context.trouble().is_some() {
            context.set_trouble(None);
        }
        for (partition, epoch, sequence, builder) in chunks {
            self.dispatch(partition, epoch, sequence, builder);
        }
    }

    fn dispatch(&self, partition: PartitionId, epoch: Epoch, sequence: u64, builder: ChunkBuilder) {
        let chunk = Arc::new(builder.build());
        let hold = self.with.budget.take(chunk.footprint());
        let (records, end) = (chunk.len() as u64, chunk.end_offset());
        self.send(Event::Consumed { partition, epoch, records, end });
        let taken = Taken { epoch, sequence, chunk, chain: self.with.chain.current(), hold };
        if self.with.workers.judge(Job { taken, events: self.with.events.clone() }).is_err() {
            self.send(Event::Broken("the wasm worker threads are gone".into()));
        }
    }

    /// Tells the flow where the group goes on reading partitions that are new here. A failure is
    /// met again at the next survey.
    fn tell_resumed(&self) -> Result<(), KafkaError> {
        let context = self.consumer.context();
        let fresh: Vec<(PartitionId, Epoch)> = context
            .slots()
            .slots
            .iter()
            .filter(|slot| !slot.resumed)
            .map(|slot| (slot.id.clone(), slot.epoch))
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut request = TopicPartitionList::with_capacity(fresh.len());
        for (id, _) in &fresh {
            request.add_partition(&id.topic, id.partition);
        }
        let committed = self.consumer.committed_offsets(request, ANSWER_TIMEOUT)?;
        let mut resumed = Vec::new();
        for (id, epoch) in fresh {
            let offset = match committed.find_partition(&id.topic, id.partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => {
                    let (low, high) =
                        self.consumer.fetch_watermarks(&id.topic, id.partition, ANSWER_TIMEOUT)?;
                    if self.from_latest { high } else { low }
                }
            };
            resumed.push((id, epoch, offset));
        }
        for slot in &mut context.slots().slots {
            slot.resumed |= resumed.iter().any(|(id, epoch, _)| *id == slot.id && *epoch == slot.epoch);
        }
        self.send(Event::Resumed(resumed));
        Ok(())
    }

    fn survey(&mut self) {
        if let Err(error) = self.tell_resumed() {
            tracing::debug!(%error, "the committed offsets are not known yet");
        }
        let context = self.consumer.context();
        let slots = context.slots();
        let ends: Vec<_> = slots
            .slots
            .iter()
            .filter_map(|slot| {
                let end = context.queue.end_offset(&slot.id.topic, slot.id.partition)?;
                Some((slot.id.clone(), end))
            })
            .collect();
        let assigned = !slots.slots.is_empty();
        drop(slots);
        if assigned
            && context.trouble().is_some()
            && self.consumer.client().fetch_metadata(None, SURVEY_INTERVAL).is_ok()
        {
            context.set_trouble(None);
        }
        self.send(Event::EndOffsets(ends));
    }

    /// Tells the flow why nothing comes in, when that has changed.
    fn tell_trouble(&mut self) {
        let trouble = self.consumer.context().trouble();
        if trouble != self.told {
            self.told.clone_from(&trouble);
            self.send(Event::IntakeTrouble(trouble.into_iter().collect()));
        }
    }

    fn send(&self, event: Event) {
        // The flow is gone only when the pipeline is closing.
        let _ = self.with.events.blocking_send(event);
    }
}

/// Copies a message into its partition's builder; returns the builder before when it was full.
fn append(
    slot: &mut Slot,
    message: &Message<'_>,
    now: Instant,
    record_bytes: &mut usize,
) -> Option<ChunkBuilder> {
    let (key, payload, headers) = (message.key(), message.payload(), message.headers());
    let length = |value: Option<&[u8]>| value.map_or(0, <[u8]>::len);
    let header_bytes: usize = headers.iter().map(|(name, value)| name.len() + length(*value)).sum();
    let content = length(payload) + length(key) + header_bytes;
    *record_bytes = (*record_bytes * 7 + content + 64) / 8;
    let offset = message.offset();
    let full = match &slot.builder {
        Some((builder, _)) if builder.refuses(offset, content) => slot.builder.take(),
        _ => None,
    };
    let (builder, _) = slot
        .builder
        .get_or_insert_with(|| (ChunkBuilder::new(slot.id.topic.clone(), slot.id.partition, offset), now));
    let headers = headers.iter().map(|(name, value)| (&**name, *value));
    builder.push(offset, message.timestamp(), key, payload, headers);
    full.map(|(builder, _)| builder)
}
