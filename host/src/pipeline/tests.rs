//! The flow over fakes, with paused time: nothing here waits for real.

mod exactly_once;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::domain::batch::BatchLimits;
use crate::domain::chunk::{Chunk, ChunkBuilder};
use crate::domain::intent::{IntentSlice, PendingBatches};
use crate::domain::ledger::{Delivery, Epoch, PartitionId};
use crate::domain::provenance::Provenance;
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::domain::row::{ColumnDefinition, ColumnType, Output};
use crate::domain::verdict::{
    ChunkVerdicts, DeadLetter, OutputRows, Rejection, RejectionKind, Revision, Stage,
};

use super::binding::{BoundChain, ChainSlot, TableBinding};
use super::budget::Budget;
use super::event::{Assignment, Event, Judged, Taken};
use super::flow::{Collaborators, Flow, FlowError, FlowSettings};
use super::metrics::PipelineMetrics;
use super::ports::{
    Archive, Chain, ChainRunner, Commit, CommitError, CommitPoint, DeadLetterSink, Forced, InsertError,
    InsertRequest, KafkaError, ModuleIdentity, OffsetStore, Reread, Sink, Unpublished,
};
use super::status::PipelineStatus;
use super::trouble::Trouble;

/// Judges by the payload: `f` is filtered, `x` rejected, anything else is its own row.
struct FakeChain(u8, [ModuleIdentity; 1]);

impl Chain for FakeChain {
    fn revision(&self) -> Revision {
        Revision([self.0; 32])
    }
    fn modules(&self) -> &[ModuleIdentity] {
        &self.1
    }
    fn outputs(&self) -> &[Output] {
        &[]
    }
    fn runner(&self) -> Box<dyn ChainRunner> {
        Box::new(FakeRunner(self.revision()))
    }
}

struct FakeRunner(Revision);

impl ChainRunner for FakeRunner {
    fn run_again(&mut self, chunk: &Chunk, _: &[Forced]) -> ChunkVerdicts {
        let mut rows = OutputRows::default();
        let mut rejections = Vec::new();
        for index in 0..chunk.len() {
            let payload = chunk.record(index).payload.unwrap_or_default();
            let mapped = !matches!(payload, b"f" | b"x");
            if mapped {
                rows.bytes.extend_from_slice(payload);
                rows.row_ends.push(rows.bytes.len() as u32);
            } else if payload == b"x" {
                rejections.push((index as u32, rejection()));
            }
            rows.rows_per_record.push(u32::from(mapped));
        }
        ChunkVerdicts { chain: self.0, outputs: vec![rows], rejections }
    }
}

fn rejection() -> Rejection {
    Rejection {
        stage: Stage::Validate,
        module: "rules".into(),
        revision: Some(Revision([1; 32])),
        kind: RejectionKind::Rejected,
        code: "no".into(),
        field: None,
        reason: "no".into(),
    }
}

/// ClickHouse, the dead-letter topic and the group's offsets, in memory. Answers come from scripts;
/// an empty script means that all is well.
#[derive(Default)]
struct World {
    inserts: Mutex<Vec<InsertRequest>>,
    insert_answers: Mutex<VecDeque<Retryability>>,
    /// A row with this byte is refused for good.
    refused_byte: Mutex<Option<u8>>,
    letters: Mutex<Vec<DeadLetter>>,
    letter_failures: Mutex<u32>,
    commits: Mutex<Vec<CommitPoint>>,
    commit_failures: Mutex<u32>,
    commit_time: Mutex<Duration>,
    /// Payloads of each partition from offset 0, to be read again.
    log: Mutex<BTreeMap<i32, Vec<u8>>>,
}

impl World {
    fn rows(&self) -> Vec<u8> {
        let mut rows: Vec<u8> =
            self.inserts.lock().unwrap().iter().flat_map(|insert| insert.body.to_vec()).collect();
        rows.sort_unstable();
        rows
    }

    fn committed(&self, partition: i32) -> Option<i64> {
        let commits = self.commits.lock().unwrap();
        commits.iter().rev().find(|point| point.partition == partition).map(|point| point.offset)
    }
}

impl Sink for World {
    async fn insert(&self, request: InsertRequest) -> Result<(), InsertError> {
        let refuse = |retryability, message: &str| {
            Err(InsertError { retryability, code: None, message: message.into() })
        };
        sleep(Duration::from_millis(10)).await;
        if let Some(answer) = self.insert_answers.lock().unwrap().pop_front() {
            return refuse(answer, "scripted");
        }
        if self.refused_byte.lock().unwrap().is_some_and(|byte| request.body.contains(&byte)) {
            return refuse(Retryability::Permanent, "cannot parse");
        }
        let mut inserts = self.inserts.lock().unwrap();
        let is_known = |token: &str| inserts.iter().any(|insert| insert.token == token);
        if !is_known(&request.token) {
            inserts.push(request);
        }
        Ok(())
    }
    async fn held(&self, _: &TableBinding, _: &IntentSlice) -> Result<Vec<i64>, InsertError> {
        Err(InsertError { retryability: Retryability::Retry, code: None, message: "cannot be asked".into() })
    }
}

impl Archive for World {
    async fn records(&self, slices: &[IntentSlice]) -> Result<Reread, KafkaError> {
        let log = self.log.lock().unwrap();
        let chunks = slices.iter().map(|slice| {
            let payloads = &log[&slice.partition.partition];
            chunk_of(
                slice.partition.partition,
                slice.start,
                &payloads[slice.start as usize..slice.end as usize],
            )
        });
        Ok(Reread { chunks: chunks.map(Arc::new).collect(), lost: vec![] })
    }
    async fn chain(&self, revisions: &[Revision]) -> Result<Option<Arc<BoundChain>>, String> {
        Ok(Some(bound(revisions[0].0[0])))
    }
    async fn judge(
        &self,
        chain: &Arc<BoundChain>,
        chunk: Arc<Chunk>,
        forced: Vec<Forced>,
    ) -> Result<ChunkVerdicts, String> {
        Ok(chain.chain.runner().run_again(&chunk, &forced))
    }
}

fn chunk_of(number: i32, offset: i64, payloads: &[u8]) -> Chunk {
    let mut builder = ChunkBuilder::new("topic".into(), number, offset);
    for (index, payload) in payloads.iter().enumerate() {
        builder.push(offset + index as i64, 0, None, Some(&[*payload]), []);
    }
    builder.build()
}

impl DeadLetterSink for World {
    /// A failure is of the first letter; the others are confirmed.
    async fn publish(&self, letters: &[DeadLetter]) -> Result<(), Unpublished> {
        sleep(Duration::from_millis(5)).await;
        let mut failures = self.letter_failures.lock().unwrap();
        let failed = usize::from(*failures > 0);
        *failures = failures.saturating_sub(1);
        self.letters.lock().unwrap().extend_from_slice(&letters[failed..]);
        if failed == 0 {
            return Ok(());
        }
        let error = KafkaError { retryability: Retryability::Retry, message: "away".into() };
        Err(Unpublished { places: vec![0], error })
    }
}

impl OffsetStore for World {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let time = *self.commit_time.lock().unwrap();
        sleep(time.max(Duration::from_millis(5))).await;
        let mut failures = self.commit_failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(CommitError::Refused("rebalancing".into()));
        }
        self.commits.lock().unwrap().extend(commit.points);
        self.letters.lock().unwrap().extend(commit.letters);
        Ok(())
    }
}

/// Numbers that were drawn, by any harness: identities of batches are unlike each other everywhere.
static DRAWN: AtomicU64 = AtomicU64::new(1);

struct Harness {
    world: Arc<World>,
    events: mpsc::Sender<Event>,
    budget: Budget,
    chain: ChainSlot,
    status: watch::Receiver<PipelineStatus>,
    flow: JoinHandle<Result<(), FlowError>>,
    sequences: BTreeMap<(i32, Epoch), u64>,
}

fn partition(number: i32) -> PartitionId {
    PartitionId { topic: "topic".into(), partition: number }
}

fn bound(revision: u8) -> Arc<BoundChain> {
    let table = TableBinding {
        table: "table".into(),
        columns: Arc::from([ColumnDefinition { name: "value".into(), column_type: ColumnType::String }]),
        provenance: Provenance::default(),
        shows_every_row: true,
    };
    let module =
        ModuleIdentity { name: "rows".into(), stage: Stage::Map, revision: Revision([revision; 32]) };
    Arc::new(BoundChain { chain: Arc::new(FakeChain(revision, [module])), tables: vec![table] })
}

impl Harness {
    fn start(batch: BatchLimits) -> Self {
        Self::deliver(Delivery::AtLeastOnce, batch)
    }

    fn deliver(delivery: Delivery, batch: BatchLimits) -> Self {
        let world = Arc::new(World::default());
        let budget = Budget::new(1 << 20);
        let chain = ChainSlot::new(bound(1));
        let (status_sender, status) = watch::channel(PipelineStatus::default());
        let flow = Flow::new(
            FlowSettings {
                pipeline: "test".into(),
                delivery,
                batch,
                concurrent_inserts: 2,
                drain_timeout: Duration::from_secs(30),
                retry: RetryPolicy::default(),
            },
            Collaborators {
                sink: world.clone(),
                dead_letters: world.clone(),
                offsets: world.clone(),
                archive: world.clone(),
                chain: chain.clone(),
                budget: budget.clone(),
                trouble: Trouble::default(),
                metrics: PipelineMetrics::register(&prometheus::Registry::new()).unwrap(),
                entropy: Arc::new(|| u128::from(DRAWN.fetch_add(1, Ordering::Relaxed))),
                status: status_sender,
            },
        );
        let (events, receiver) = mpsc::channel(64);
        let flow = tokio::spawn(flow.run(receiver));
        Self { world, events, budget, chain, status, flow, sequences: BTreeMap::new() }
    }

    async fn send(&self, event: Event) {
        self.events.send(event).await.unwrap();
    }

    async fn assign(&self, number: i32, epoch: Epoch) {
        self.assign_at(number, epoch, None, PendingBatches::default()).await;
    }

    async fn assign_at(&self, number: i32, epoch: Epoch, position: Option<i64>, pending: PendingBatches) {
        let partition = partition(number);
        self.send(Event::Assigned(vec![Assignment { partition, epoch, position, pending }])).await;
    }

    /// Announces a chunk of one-byte payloads and returns it judged, not sent yet.
    async fn take(&mut self, number: i32, epoch: Epoch, offset: i64, payloads: &[u8]) -> Judged {
        let chunk = Arc::new(chunk_of(number, offset, payloads));
        let (records, end) = (chunk.len() as u64, chunk.end_offset());
        self.send(Event::Consumed { partition: partition(number), epoch, records, end }).await;
        let sequence = self.sequences.entry((number, epoch)).or_default();
        let chain = self.chain.current();
        let verdicts = Arc::new(chain.chain.runner().run(&chunk));
        let hold = self.budget.take(chunk.footprint());
        let taken = Taken { epoch, sequence: *sequence, chunk, chain, hold };
        *sequence += 1;
        Judged { taken, verdicts }
    }

    async fn feed(&mut self, number: i32, epoch: Epoch, offset: i64, payloads: &[u8]) {
        let judged = self.take(number, epoch, offset, payloads).await;
        self.send(Event::Judged(judged)).await;
    }

    async fn revoke(&self, number: i32, epoch: Epoch, lost: bool) -> Receiver<()> {
        let (release, released) = sync_channel(1);
        self.send(Event::Revoked { partitions: vec![(partition(number), epoch)], lost, release }).await;
        released
    }

    async fn finish(self) -> (Arc<World>, Result<(), FlowError>) {
        self.send(Event::IntakeStopped).await;
        (self.world, self.flow.await.unwrap())
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn every_record_ends_once_and_the_position_follows() {
    let mut harness = Harness::start(BatchLimits::default());
    harness.assign(0, 1).await;
    harness.assign(1, 2).await;
    harness.feed(0, 1, 10, b"abxf").await;
    harness.feed(1, 2, 0, b"c").await;
    sleep(seconds(2)).await;
    let status = harness.status.borrow().clone();
    assert_eq!(status.not_ready, [] as [String; 0]);
    let first = &status.partitions[0];
    assert_eq!((first.consumed, first.inserted, first.filtered), (4, 2, 1));
    assert_eq!((first.dead_lettered, first.in_flight, first.committed_offset), (1, 0, Some(14)));
    assert_eq!(harness.budget.held(), 0);
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.rows(), b"abc");
    // Both partitions went into one insert.
    assert_eq!(world.inserts.lock().unwrap().len(), 1);
    assert_eq!(world.letters.lock().unwrap().len(), 1);
    assert_eq!((world.committed(0), world.committed(1)), (Some(14), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn chunks_that_come_out_of_order_wait_for_their_turn() {
    let mut harness = Harness::start(BatchLimits { rows: 2, ..BatchLimits::default() });
    harness.assign(0, 1).await;
    let first = harness.take(0, 1, 0, b"ab").await;
    let second = harness.take(0, 1, 2, b"cd").await;
    harness.send(Event::Judged(second)).await;
    sleep(seconds(5)).await;
    assert_eq!(harness.world.rows(), b"");
    harness.send(Event::Judged(first)).await;
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.rows(), b"abcd");
    assert_eq!(world.committed(0), Some(4));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out_and_shown_and_dead_letters_nothing() {
    let mut harness = Harness::start(BatchLimits::default());
    harness.world.insert_answers.lock().unwrap().extend([Retryability::Retry; 20]);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"ab").await;
    sleep(seconds(20)).await;
    assert_eq!(harness.status.borrow().not_ready, ["insert into table: scripted"]);
    assert_eq!(harness.world.committed(0), None);
    sleep(seconds(600)).await;
    assert_eq!(harness.status.borrow().not_ready, [] as [String; 0]);
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), world.committed(0)), (b"ab".to_vec(), Some(2)));
    assert_eq!(world.letters.lock().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_clickhouse_refuses_is_found_and_its_neighbours_go_in() {
    let mut harness = Harness::start(BatchLimits::default());
    *harness.world.refused_byte.lock().unwrap() = Some(b'q');
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"abcq").await;
    harness.feed(0, 1, 4, b"degh").await;
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.rows(), b"abcdegh");
    let letters = world.letters.lock().unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].rejection.kind, RejectionKind::Insert);
    assert_eq!(letters[0].chunk.offset(letters[0].index as usize), 3);
    assert_eq!(world.committed(0), Some(8));
    let inserts = world.inserts.lock().unwrap();
    let tokens: std::collections::BTreeSet<_> = inserts.iter().map(|insert| &insert.token).collect();
    assert_eq!(tokens.len(), inserts.len());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_committed_while_dead_letters_are_not_confirmed() {
    let mut harness = Harness::start(BatchLimits::default());
    *harness.world.letter_failures.lock().unwrap() = 5;
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"axx").await;
    sleep(Duration::from_millis(1400)).await;
    assert_eq!(harness.world.committed(0), None);
    assert_eq!(harness.status.borrow().not_ready, ["publish dead letters: away"]);
    let (world, result) = harness.finish().await;
    result.unwrap();
    // The one that was confirmed at once is not there again for the other's sake.
    assert_eq!(world.letters.lock().unwrap().len(), 2);
    assert_eq!(world.committed(0), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_not_answered_is_shown_until_it_is() {
    let mut harness = Harness::start(BatchLimits::default());
    *harness.world.commit_time.lock().unwrap() = seconds(40);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    sleep(seconds(8)).await;
    assert_eq!(harness.status.borrow().not_ready, [] as [String; 0]);
    sleep(seconds(10)).await;
    let expected = ["commit offsets: kafka has not answered for more than 10s"];
    assert_eq!(harness.status.borrow().not_ready, expected);
    sleep(seconds(30)).await;
    assert_eq!(harness.status.borrow().not_ready, [] as [String; 0]);
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.committed(0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_commit_is_made_again() {
    let mut harness = Harness::start(BatchLimits::default());
    *harness.world.commit_failures.lock().unwrap() = 3;
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.committed(0), Some(1));
}

#[tokio::test(start_paused = true)]
async fn the_body_of_an_insert_is_in_the_budget_while_it_is_under_way() {
    let mut harness = Harness::start(BatchLimits::default());
    *harness.world.insert_answers.lock().unwrap() = [Retryability::Retry; 1_000].into();
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"abc").await;
    let (budget, records) = (harness.budget.clone(), harness.budget.held());
    sleep(seconds(2)).await;
    assert!(budget.held() >= records + 3, "{} of {records}", budget.held());
    harness.world.insert_answers.lock().unwrap().clear();
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), budget.held()), (b"abc".to_vec(), 0));
}

#[tokio::test(start_paused = true)]
async fn a_revoked_partition_is_settled_and_committed_before_it_goes() {
    let mut harness = Harness::start(BatchLimits { linger: seconds(3600), ..BatchLimits::default() });
    harness.assign(0, 1).await;
    harness.assign(1, 2).await;
    let late = harness.take(0, 1, 0, b"ab").await;
    let released = harness.revoke(0, 1, false).await;
    sleep(seconds(1)).await;
    assert!(released.try_recv().is_err());
    // The worker finishes after the revocation was announced; that still counts.
    harness.send(Event::Judged(late)).await;
    sleep(seconds(1)).await;
    released.try_recv().unwrap();
    assert_eq!(harness.world.committed(0), Some(2));
    assert_eq!(harness.status.borrow().partitions.len(), 1);
    harness.finish().await.1.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_partition_goes_at_once_and_is_not_committed() {
    let mut harness = Harness::start(BatchLimits::default());
    harness.assign(0, 1).await;
    let late = harness.take(0, 1, 0, b"ab").await;
    let released = harness.revoke(0, 1, true).await;
    sleep(Duration::from_millis(1)).await;
    released.try_recv().unwrap();
    harness.send(Event::Judged(late)).await;
    sleep(seconds(5)).await;
    assert_eq!(harness.budget.held(), 0);
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.committed(0), world.rows()), (None, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_lost_partition_goes_only_after_the_commit_that_is_under_way() {
    let mut harness =
        Harness::start(BatchLimits { linger: Duration::from_millis(1), ..BatchLimits::default() });
    *harness.world.commit_time.lock().unwrap() = seconds(3);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    sleep(seconds(1)).await;
    let released = harness.revoke(0, 1, true).await;
    sleep(seconds(1)).await;
    assert!(released.try_recv().is_err());
    sleep(seconds(2)).await;
    released.try_recv().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_that_comes_late_leaves_the_next_assignment_alone() {
    let mut harness =
        Harness::start(BatchLimits { linger: Duration::from_millis(1), ..BatchLimits::default() });
    *harness.world.commit_time.lock().unwrap() = seconds(60);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    sleep(seconds(1)).await;
    // Lost while its commit hangs; the group gives the partition back before that is over.
    let released = harness.revoke(0, 1, true).await;
    sleep(seconds(1)).await;
    assert!(released.try_recv().is_err());
    harness.assign(0, 2).await;
    harness.feed(0, 2, 0, b"ab").await;
    *harness.world.commit_time.lock().unwrap() = Duration::ZERO;
    sleep(seconds(120)).await;
    released.try_recv().unwrap();
    let status = harness.status.borrow().clone();
    assert_eq!((status.partitions.len(), status.partitions[0].inserted), (1, 2));
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!(world.committed(0), Some(2));
}

#[tokio::test(start_paused = true)]
async fn offsets_that_go_back_begin_the_partition_anew() {
    let mut harness =
        Harness::start(BatchLimits { linger: Duration::from_millis(1), ..BatchLimits::default() });
    harness.assign(0, 1).await;
    harness.feed(0, 1, 1_000, b"ab").await;
    sleep(seconds(1)).await;
    assert_eq!(harness.world.committed(0), Some(1_002));
    let late = harness.take(0, 1, 1_002, b"c").await;
    harness.assign(0, 2).await;
    harness.send(Event::Judged(late)).await;
    harness.feed(0, 2, 5, b"d").await;
    let (world, result) = harness.finish().await;
    result.unwrap();
    assert_eq!((world.rows(), world.committed(0)), (b"abd".to_vec(), Some(6)));
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_cannot_be_settled_is_released_at_the_deadline() {
    let mut harness = Harness::start(BatchLimits::default());
    harness.world.insert_answers.lock().unwrap().extend([Retryability::Retry; 1000]);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    let released = harness.revoke(0, 1, false).await;
    sleep(seconds(29)).await;
    assert!(released.try_recv().is_err());
    sleep(seconds(2)).await;
    released.try_recv().unwrap();
    assert_eq!(harness.world.committed(0), None);
}

#[tokio::test(start_paused = true)]
async fn past_the_drain_deadline_the_flow_says_what_is_unfinished_and_commits_nothing_of_it() {
    let mut harness = Harness::start(BatchLimits::default());
    harness.world.insert_answers.lock().unwrap().extend([Retryability::Retry; 1000]);
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"abc").await;
    let (world, result) = harness.finish().await;
    assert!(matches!(result, Err(FlowError::Unfinished { records: 3, .. })), "{result:?}");
    assert_eq!(world.committed(0), None);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_of_one_chain() {
    let mut harness = Harness::start(BatchLimits { linger: seconds(3600), ..BatchLimits::default() });
    harness.assign(0, 1).await;
    harness.feed(0, 1, 0, b"a").await;
    harness.chain.publish(bound(2));
    harness.feed(0, 1, 1, b"b").await;
    sleep(seconds(1)).await;
    // The change sealed the batch before it; the new one waits for its linger.
    assert_eq!(harness.world.rows(), b"a");
    assert_eq!(harness.status.borrow().chain, Revision([2; 32]).to_string());
    harness.finish().await.1.unwrap();
}
