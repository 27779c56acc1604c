//! Transactions: commits of the consumer group exactly-once, each one Kafka transaction that holds the
//! dead letters and the offsets of all its points, or nothing of them.
//!
//! A thread of its own does one commit after the other, since librdkafka's calls block. Whoever waits
//! for one may stop waiting: the commit goes on to its end, and the next begins after it. The thread
//! holds no consumer, so it keeps no group alive, and ends when the handles are gone.
//!
//! Invariants:
//! - a commit carries the membership of the moment at which it began, and none without one begins, so
//!   a host that has lost its partitions is refused by the coordinator;
//! - an answer is final. Until the broker has been asked to commit, nothing can happen any more once
//!   this gives up. After that, where the broker's answer stays out or is an error, a new producer of
//!   the same transactional id concludes what is open, and the committed offsets tell how it ended;
//! - a producer whose transaction failed does no further one. A request that is still under way could
//!   arrive in the next one, and move offsets back; and librdkafka miscounts its messages after one
//!   was refused. Its successor concludes the transaction, and has a higher epoch, which fences the rest;
//! - no producer begins while anything that was there before it is undecided (`transactions/leftovers.rs`).

mod clients;
mod leftovers;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::oneshot;

use crate::domain::verdict::DeadLetter;
use crate::pipeline::ports::{Commit, CommitError, CommitPoint, OffsetStore};

use super::dead_letters::{Envelope, QUEUE_FULL_WAIT, cure};
use super::identity::TopicIdentities;
use super::intake::GroupConsumer;
use super::membership::{Membership, TransactionFault};
use super::offsets::{list, topics};
use clients::{DELIVERY_TIMEOUT, TRANSACTION_TIMEOUT, TransactionContext, TransactionalProducer, reader};

use leftovers::Leftovers;

pub use clients::TransactionSettings;
pub(super) use leftovers::HANGING_CURE;

/// Longest single call, after which it is looked whether anybody still waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for an answer about offsets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to begin with a new producer before that is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Age at which a producer that could not begin makes way for a new one.
const BEGINNING: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a commit, after which a new producer asks what became of it. By then the
/// brokers have aborted what they had not committed.
const OUTCOME_PATIENCE: Duration = Duration::from_secs(2 * TRANSACTION_TIMEOUT.as_secs());
/// Wait before a failed step is done again.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for a call that librdkafka does not bound: it may not come back at all where the group's coordinator
/// goes off the list of brokers meanwhile (its issue 5511).
const STUCK: Duration = Duration::from_secs(DELIVERY_TIMEOUT.as_secs() + 4);
/// So often within a [`FENCING_PERIOD`] a producer may be fenced before another process must be the cause.
const FENCINGS: usize = 3;
const FENCING_PERIOD: Duration = Duration::from_secs(60);

/// See the module documentation. Clones do their commits on one thread.
#[derive(Clone)]
pub struct TransactionalOffsets {
    requests: Sender<Request>,
    /// Set when the last handle is gone.
    _closing: Arc<CloseOnDrop>,
}

struct Request {
    commit: Commit,
    answer: oneshot::Sender<Result<(), CommitError>>,
}

struct CloseOnDrop(Arc<AtomicBool>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl TransactionalOffsets {
    /// Starts the thread, which at once concludes a transaction that a process of this name left open.
    ///
    /// # Errors
    /// When a setting is refused by librdkafka, or the thread by the system.
    pub(super) fn start(
        client: ClientConfig,
        settings: TransactionSettings,
        consumer: Weak<GroupConsumer>,
        identities: Arc<TopicIdentities>,
    ) -> Result<Self, ClientError> {
        let producer = settings.producer(client.clone());
        let mut session = Session {
            reader: reader(client, &settings.group),
            client: producer,
            settings,
            consumer,
            identities,
            closing: Arc::default(),
            producer: None,
            created: Instant::now(),
            is_initialised: false,
            leftovers: None,
            fencings: VecDeque::new(),
        };
        // So that a bad setting shows here.
        session.producer = Some(Arc::new(session.create()?));
        let closing = session.closing.clone();
        let (requests, received) = channel();
        std::thread::Builder::new()
            .name("kafka-commits".into())
            .spawn(move || session.run(&received))
            .map_err(|error| ClientError::ClientCreation(format!("cannot start a thread: {error}")))?;
        Ok(Self { requests, _closing: Arc::new(CloseOnDrop(closing)) })
    }
}

impl OffsetStore for TransactionalOffsets {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let gone = || CommitError::Broken("the thread that commits offsets is gone".into());
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request { commit, answer }).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// How a transaction ended that was not committed.
enum Failure {
    /// Nothing of it happened, nor will.
    Abandoned(String),
    /// It may have happened.
    Unknown(String),
    /// Nothing of it happened, nor ever will before somebody changes something.
    Denied(String),
}

struct Session {
    settings: TransactionSettings,
    client: ClientConfig,
    reader: ClientConfig,
    consumer: Weak<GroupConsumer>,
    identities: Arc<TopicIdentities>,
    closing: Arc<AtomicBool>,
    producer: Option<Arc<TransactionalProducer>>,
    created: Instant,
    is_initialised: bool,
    /// What the producer's transactions must wait for; none once nothing is left.
    leftovers: Option<Leftovers>,
    fencings: VecDeque<Instant>,
}

impl Session {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            // Concludes what the last commit, or a process before this one, left open: until then its
            // partitions cannot be read by their next owner. What fails here fails in the next commit too.
            match self.prepare() {
                Ok(producer) => self.producer = Some(producer),
                Err(reason) => tracing::warn!(%reason, "kafka transactions cannot be begun yet"),
            }
            let Ok(Request { commit, answer }) = requests.recv() else { return };
            // Nobody waits for an answer when the pipeline is closing.
            let _ = answer.send(self.commit(&commit));
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    fn create(&self) -> Result<TransactionalProducer, ClientError> {
        self.client.create_with_context(TransactionContext::default())
    }

    /// The producer, ready to begin a transaction; every other one of its id is fenced by then.
    fn prepare(&mut self) -> Result<Arc<TransactionalProducer>, CommitError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let producer = match self.producer.take() {
                Some(producer) => producer,
                None => {
                    (self.is_initialised, self.created) = (false, Instant::now());
                    Arc::new(self.create().map_err(|error| CommitError::Broken(error.to_string()))?)
                }
            };
            if self.is_initialised {
                return self.wait_for_leftovers(producer, deadline);
            }
            let Err(fault) = producer.init_transactions(CALL_TIMEOUT).map_err(fault_of) else {
                (self.is_initialised, self.leftovers) = (true, Some(Leftovers::default()));
                return self.wait_for_leftovers(producer, deadline);
            };
            if let Some(reason) = self.settings.denial(fault.code) {
                return Err(CommitError::Broken(reason));
            }
            if fault.retriable {
                // The same call resumes; unless librdkafka has lost its way.
                self.producer = (self.created.elapsed() < BEGINNING).then_some(producer);
            } else {
                self.count_fencing(fault.code)?;
                std::thread::sleep(PAUSE);
            }
            if Instant::now() >= deadline || self.is_closing() {
                return Err(CommitError::Refused(format!(
                    "kafka does not begin transactions: {fault}; check that the brokers can be reached"
                )));
            }
        }
    }

    /// The producer, once nothing of before is undecided.
    fn wait_for_leftovers(
        &mut self,
        producer: Arc<TransactionalProducer>,
        deadline: Instant,
    ) -> Result<Arc<TransactionalProducer>, CommitError> {
        let Some(leftovers) = &mut self.leftovers else { return Ok(producer) };
        match leftovers.look(&self.reader, &self.settings, deadline) {
            Ok(()) => {
                self.leftovers = None;
                Ok(producer)
            }
            Err(reason) => {
                self.producer = Some(producer);
                Err(CommitError::Refused(format!("kafka: {reason}")))
            }
        }
    }

    /// Notes that another producer of this id was started, if `code` says so.
    fn count_fencing(&mut self, code: Code) -> Result<(), CommitError> {
        if !matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) {
            return Ok(());
        }
        let now = Instant::now();
        self.fencings.push_back(now);
        self.fencings.retain(|fencing| now.duration_since(*fencing) < FENCING_PERIOD);
        if self.fencings.len() <= FENCINGS {
            return Ok(());
        }
        Err(CommitError::Broken(format!(
            "another process uses the transactional id {}, and each fences the other: give each process its \
             own kafka.instance (SLUICE__KAFKA__INSTANCE), now {:?} here",
            self.settings.transactional_id(),
            self.settings.instance
        )))
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), CommitError> {
        if commit.points.is_empty() {
            return Err(CommitError::Refused("a commit without offsets would not be fenced".into()));
        }
        let membership = self.consumer.upgrade().and_then(|consumer| Membership::of(&consumer));
        let Some(membership) = membership else {
            return Err(CommitError::Refused(
                "this host is no member of the consumer group at the moment; it joins again by itself".into(),
            ));
        };
        let producer = self.prepare()?;
        if let Err(doubt) = self.identities.confirm(producer.client(), topics(&commit.points)) {
            self.producer = Some(producer);
            return Err(doubt.into());
        }
        match self.transact(&producer, &Arc::new(membership), commit) {
            Ok(()) => {
                self.producer = Some(producer);
                Ok(())
            }
            Err(Failure::Denied(reason)) => Err(CommitError::Broken(reason)),
            Err(Failure::Abandoned(reason)) => {
                self.count_producer_fencing(&producer)?;
                Err(CommitError::Refused(reason))
            }
            Err(Failure::Unknown(reason)) => {
                tracing::warn!(reason, "a commit may have happened or not; asking the brokers");
                // The outcome comes first: the next commit may still say that there is another process.
                let fencing = self.count_producer_fencing(&producer);
                drop(producer);
                self.conclude(&commit.points, &reason, fencing)
            }
        }
    }

    fn count_producer_fencing(&mut self, producer: &TransactionalProducer) -> Result<(), CommitError> {
        producer.client().fatal_error().map_or(Ok(()), |(code, _)| self.count_fencing(code))
    }

    fn transact(
        &self,
        producer: &Arc<TransactionalProducer>,
        membership: &Arc<Membership>,
        commit: &Commit,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let abandon = |error: ClientError| {
            Failure::Abandoned(format!("kafka does not take the commit: {}", fault_of(error)))
        };
        let list = list(&commit.points).map_err(|error| Failure::Denied(error.to_string()))?;
        producer.context().forget();
        producer.begin_transaction().map_err(abandon)?;
        for letter in &commit.letters {
            self.produce(producer, letter);
        }
        // One call has all the time: where it runs out, librdkafka does not resume it.
        while let Err(fault) = send_offsets(producer, membership, &list)? {
            if !fault.retriable || began.elapsed() >= DELIVERY_TIMEOUT || self.is_closing() {
                return Err(self.give_up(producer, &fault, commit.letters.len()));
            }
            std::thread::sleep(PAUSE);
        }
        // Before the commit is asked for, so that what a broker refuses is known not to have happened.
        while let Err(error) = producer.flush(CALL_TIMEOUT) {
            if began.elapsed() >= TRANSACTION_TIMEOUT || self.is_closing() {
                return Err(abandon(error));
            }
        }
        if let Some(error) = producer.context().failure() {
            let reason = self.unpublished(&error, commit.letters.len());
            return Err(Failure::Abandoned(reason));
        }
        let asked = Instant::now();
        let mut was_slow = None;
        while let Err(fault) = producer.commit_transaction(CALL_TIMEOUT).map_err(fault_of) {
            if !fault.retriable || asked.elapsed() >= OUTCOME_PATIENCE || self.is_closing() {
                return Err(Failure::Unknown(fault.to_string()));
            }
            was_slow = Some(fault);
        }
        // A broker that crashed meanwhile may have left it hanging, and say that it is committed.
        was_slow.map_or(Ok(()), |fault| Err(Failure::Unknown(fault.to_string())))
    }

    fn produce(&self, producer: &TransactionalProducer, letter: &DeadLetter) {
        let Envelope { key, payload, timestamp, headers } = Envelope::of(letter, &self.settings.pipeline);
        let mut record = BaseRecord::to(&self.settings.dead_letter_topic).headers(headers);
        (record.key, record.payload, record.timestamp) = (key, payload, timestamp);
        // Once one has failed the transaction does, and the rest need not be tried.
        while producer.context().failure().is_none() {
            match producer.send(record) {
                Ok(()) => return,
                Err((ClientError::MessageProduction(Code::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(QUEUE_FULL_WAIT);
                }
                Err((error, _)) => return producer.context().fail(error),
            }
        }
    }

    /// Ends a transaction whose offsets were not taken.
    fn give_up(&self, producer: &TransactionalProducer, fault: &TransactionFault, letters: usize) -> Failure {
        if let Some(reason) = self.settings.denial(fault.code) {
            return Failure::Denied(reason);
        }
        let reason = match producer.context().failure() {
            Some(error) => self.unpublished(&error, letters),
            None if fault.code == Code::TopicAuthorizationFailed => format!(
                "kafka refuses the offsets: {fault}; allow this user to read the topics of the pipeline and \
                 to write to topic {}",
                self.settings.dead_letter_topic
            ),
            None => format!("kafka refuses the offsets: {fault}"),
        };
        Failure::Abandoned(reason)
    }

    fn unpublished(&self, error: &ClientError, letters: usize) -> String {
        let topic = &self.settings.dead_letter_topic;
        format!("{letters} dead letters did not reach topic {topic}: {error}; {}", cure(error))
    }

    /// Learns how a commit ended that may have happened. Waits for as long as it takes.
    fn conclude(
        &mut self,
        points: &[CommitPoint],
        reason: &str,
        fencing: Result<(), CommitError>,
    ) -> Result<(), CommitError> {
        let closing = || CommitError::Broken(format!("stopped before the outcome was known: {reason}"));
        if fencing.is_err() {
            // The other process concludes what is open as well, so that the offsets alone need asking.
            tracing::error!("this process and another fence each other");
        } else {
            loop {
                match self.prepare() {
                    Ok(producer) => {
                        self.producer = Some(producer);
                        break;
                    }
                    Err(CommitError::Broken(reason)) => return Err(CommitError::Broken(reason)),
                    Err(_) if self.is_closing() => return Err(closing()),
                    Err(CommitError::Refused(reason)) => tracing::warn!(reason, "still asking"),
                }
            }
        }
        let happened = loop {
            match self.is_committed(points) {
                Ok(happened) => break happened,
                Err(_) if self.is_closing() => return Err(closing()),
                Err(error) => {
                    tracing::warn!(%error, "the committed offsets are not known yet; asking again");
                    std::thread::sleep(PAUSE);
                }
            }
        };
        tracing::info!(happened, "the outcome of the commit is known");
        if happened {
            return Ok(());
        }
        fencing.and(Err(CommitError::Refused(format!("kafka did not keep the commit: {reason}"))))
    }

    /// Whether the group's offsets are these. None are known while a transaction that holds some is open.
    fn is_committed(&self, points: &[CommitPoint]) -> Result<bool, ClientError> {
        let reader: BaseConsumer = self.reader.create()?;
        let committed = reader.committed_offsets(list(points)?, ANSWER_TIMEOUT)?;
        for element in committed.elements() {
            element.error()?;
        }
        Ok(points.iter().all(|point| {
            committed.find_partition(&point.topic, point.partition).is_some_and(|element| {
                element.offset() == Offset::Offset(point.offset) && element.metadata() == point.metadata
            })
        }))
    }
}

/// Adds offsets to the transaction, on a thread of its own. If that never comes back, the producer and the thread
/// stay with it: a successor of the producer fences whatever it still sends.
fn send_offsets(
    producer: &Arc<TransactionalProducer>,
    membership: &Arc<Membership>,
    list: &TopicPartitionList,
) -> Result<Result<(), TransactionFault>, Failure> {
    let (answer, answered) = channel();
    let (producer, membership, list) = (producer.clone(), membership.clone(), list.clone());
    let send = move || {
        let sent = membership.send_offsets(producer.client(), &list, DELIVERY_TIMEOUT);
        // Nobody waits any more where it took too long.
        let _ = answer.send(sent);
    };
    if let Err(error) = std::thread::Builder::new().name("kafka-offsets".into()).spawn(send) {
        return Err(Failure::Abandoned(format!("cannot start a thread: {error}")));
    }
    answered.recv_timeout(STUCK).map_err(|_| {
        tracing::error!("librdkafka does not come back from a commit; going on with another producer");
        Failure::Unknown("librdkafka does not come back from it".into())
    })
}

fn fault_of(error: ClientError) -> TransactionFault {
    match error {
        ClientError::Transaction(error) => error.into(),
        // A flush that takes longer than the call is the one other error there is, and nothing is lost by it.
        error => TransactionFault {
            code: error.rdkafka_error_code().unwrap_or(Code::Unknown),
            message: error.to_string(),
            retriable: matches!(error, ClientError::Flush(_)),
        },
    }
}
