//! A member of a consumer group: the intake itself, with a chain that filters every record, and its events.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::ledger::Delivery;
use sluice::domain::row::Output;
use sluice::domain::verdict::{ChunkVerdicts, DeadLetter, Rejection, RejectionKind, Revision, Stage};
use sluice::kafka::intake::{Intake, IntakeCollaborators, IntakeSettings};
use sluice::kafka::transactions::{TransactionSettings, TransactionalOffsets};
use sluice::pipeline::binding::{BoundChain, ChainSlot};
use sluice::pipeline::budget::Budget;
use sluice::pipeline::event::{Assignment, Event};
use sluice::pipeline::ports::{Chain, ChainRunner, Commit, CommitPoint, Forced, ModuleIdentity};
use sluice::pipeline::workers::Workers;
use tokio::sync::mpsc;

/// Longest wait for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(120);

struct FilterAll;

impl Chain for FilterAll {
    fn revision(&self) -> Revision {
        Revision([1; 32])
    }
    fn modules(&self) -> &[ModuleIdentity] {
        &[]
    }
    fn outputs(&self) -> &[Output] {
        &[]
    }
    fn runner(&self) -> Box<dyn ChainRunner> {
        Box::new(Self)
    }
}

impl ChainRunner for FilterAll {
    fn run(&mut self, _: &Chunk) -> ChunkVerdicts {
        ChunkVerdicts { chain: self.revision(), outputs: Vec::new(), rejections: Vec::new() }
    }
    fn run_again(&mut self, chunk: &Chunk, _: &[Forced]) -> ChunkVerdicts {
        self.run(chunk)
    }
}

/// See the module documentation. It leaves the group when dropped.
pub struct Member {
    intake: Option<Intake>,
    events: mpsc::Receiver<Event>,
    client: ClientConfig,
    topics: Vec<String>,
    group: String,
}

impl Member {
    /// Joins the group; `properties` are librdkafka's.
    pub fn join(
        bootstrap: &str,
        group: &str,
        topic: &str,
        delivery: Delivery,
        properties: &[(&str, &str)],
    ) -> Self {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", bootstrap);
        for (name, value) in properties {
            client.set(*name, *value);
        }
        let (events, heard) = mpsc::channel(1024);
        // The thread ends with the intake's handle on the queue.
        let (workers, _) = Workers::start(1).expect("a thread can be started");
        let chain = Arc::new(BoundChain { chain: Arc::new(FilterAll), tables: Vec::new() });
        let settings = IntakeSettings {
            topics: vec![topic.to_owned()],
            group: group.to_owned(),
            start: "earliest",
            delivery,
            drain_timeout: Duration::from_secs(30),
        };
        let with = IntakeCollaborators {
            events,
            workers,
            chain: ChainSlot::new(chain),
            budget: Budget::new(64 << 20),
            tables: None,
        };
        let intake = Intake::start(client.clone(), settings, with).expect("the intake starts");
        let topics = vec![topic.to_owned()];
        Self { intake: Some(intake), events: heard, client, topics, group: group.to_owned() }
    }

    /// Its offsets, committed by transactions under this name.
    pub fn offsets(&self, instance: &str, dead_letter_topic: &str) -> TransactionalOffsets {
        let settings = TransactionSettings {
            topics: self.topics.clone(),
            group: self.group.clone(),
            instance: instance.to_owned(),
            dead_letter_topic: dead_letter_topic.to_owned(),
            pipeline: "purchases".to_owned(),
        };
        let intake = self.intake.as_ref().expect("not closed");
        intake.transactional_offsets(self.client.clone(), settings).expect("the thread starts")
    }

    /// The next event that `wanted` takes. Partitions to be given up are let go at once.
    pub async fn next<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let next = async {
            loop {
                let event = self.events.recv().await.expect("the intake lives");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.unwrap_or_else(|_| panic!("waited for {what}"))
    }

    /// Waits until it has `count` partitions.
    pub async fn assigned(&mut self, count: usize) -> Vec<Assignment> {
        let mut all: Vec<Assignment> = Vec::new();
        self.next("an assignment", |event| {
            match event {
                Event::Assigned(assigned) => all.extend(assigned),
                Event::Revoked { partitions, .. } => {
                    all.retain(|have| !partitions.iter().any(|(gone, _)| *gone == have.partition));
                }
                Event::Broken(reason) => panic!("{reason}"),
                _ => {}
            }
            (all.len() == count).then_some(())
        })
        .await;
        all.sort_by_key(|assignment| assignment.partition.partition);
        all
    }

    /// Leaves the group.
    pub async fn leave(mut self) {
        let intake = self.intake.take().expect("not closed");
        let closing = tokio::task::spawn_blocking(move || intake.close());
        // Partitions are let go when their events are.
        while self.events.recv().await.is_some() {}
        closing.await.expect("closed");
    }
}

/// A commit of one partition.
pub fn commit(topic: &str, partition: i32, offset: i64, metadata: &str, letters: Vec<DeadLetter>) -> Commit {
    Commit { points: vec![point(topic, partition, offset, metadata)], letters }
}

/// One point of a commit.
pub fn point(topic: &str, partition: i32, offset: i64, metadata: &str) -> CommitPoint {
    CommitPoint { topic: topic.into(), partition, offset, metadata: metadata.to_owned() }
}

/// A dead letter with this payload.
pub fn letter(topic: &str, offset: i64, payload: &[u8]) -> DeadLetter {
    let mut builder = ChunkBuilder::new(topic.into(), 0, offset);
    builder.push(offset, 1_700_000_000_000, Some(b"key"), Some(payload), [("origin", Some(&b"test"[..]))]);
    let rejection = Rejection {
        stage: Stage::Validate,
        module: "purchase-rules".into(),
        revision: Some(Revision([1; 32])),
        kind: RejectionKind::Rejected,
        code: "test".into(),
        field: None,
        reason: "a test".into(),
    };
    DeadLetter { chunk: Arc::new(builder.build()), index: 0, rejection }
}

/// Committed offset and metadata of a partition, once no open transaction holds it.
pub fn committed(bootstrap: &str, group: &str, topic: &str, partition: i32) -> Option<(i64, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer can be made");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        if let Ok(list) = consumer.committed_offsets(list, Duration::from_secs(10)) {
            let element = list.find_partition(topic, partition).expect("asked for");
            if element.error().is_ok() {
                return match element.offset() {
                    Offset::Offset(offset) => Some((offset, element.metadata().to_owned())),
                    _ => None,
                };
            }
        }
        assert!(std::time::Instant::now() < deadline, "the offsets are not known");
        std::thread::sleep(Duration::from_millis(200));
    }
}
