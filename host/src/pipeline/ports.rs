//! Ports: what the flow needs of the world, as traits that domain types cross.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::domain::chunk::Chunk;
use crate::domain::intent::{ForcedKind, IntentSlice};
use crate::domain::ledger::PartitionId;
use crate::domain::retry::Retryability;
use crate::domain::row::{ColumnDefinition, Output};
use crate::domain::verdict::{ChunkVerdicts, DeadLetter, Revision, Stage};

use super::binding::{BoundChain, TableBinding};

/// One module of a chain, for status and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleIdentity {
    /// File name without `.wasm`.
    pub name: Arc<str>,
    /// `Validate` or `Map`.
    pub stage: Stage,
    /// SHA-256 over its bytes and its settings.
    pub revision: Revision,
}

/// The validators, in order, then the mapper, at one set of revisions. Immutable: a reload makes
/// another chain, and workers pick it up at the next chunk.
pub trait Chain: Send + Sync + 'static {
    /// SHA-256 over the revisions of its modules, in order.
    fn revision(&self) -> Revision;
    /// The modules, in the order in which records meet them.
    fn modules(&self) -> &[ModuleIdentity];
    /// What the mapper fills, in the order of [`ChunkVerdicts::outputs`].
    fn outputs(&self) -> &[Output];
    /// A runner for one worker thread.
    fn runner(&self) -> Box<dyn ChainRunner>;
}

/// A chain with the instances of one worker thread.
pub trait ChainRunner: Send {
    /// Runs every record of `chunk` through the chain. Blocking, and it cannot fail: whatever a
    /// module does is a verdict on the records that it did it on.
    fn run(&mut self, chunk: &Chunk) -> ChunkVerdicts {
        self.run_again(chunk, &[])
    }

    /// Runs a chunk a second time, in recovery: records in `forced`, by increasing index, are rejected
    /// as they were the first time, without meeting that module; what they met before it they meet again.
    fn run_again(&mut self, chunk: &Chunk, forced: &[Forced]) -> ChunkVerdicts;
}

/// A record of a chunk that must be rejected, whatever a second run would say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forced {
    /// Index in the chunk.
    pub index: u32,
    /// Index, in the chain, of the module that it failed in.
    pub module: usize,
    /// As what.
    pub kind: ForcedKind,
}

/// One INSERT: all rows of one batch for one table.
#[derive(Clone, Debug)]
pub struct InsertRequest {
    /// Table, `name` or `database.name`.
    pub table: Arc<str>,
    /// Columns in the order of the row bytes, with the types in which these are written.
    pub columns: Arc<[ColumnDefinition]>,
    /// Number of rows in `body`.
    pub rows: usize,
    /// RowBinary.
    pub body: Bytes,
    /// `insert_deduplication_token`: sending a request again with the same token adds nothing.
    pub token: String,
}

/// Why ClickHouse did not take a batch.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct InsertError {
    /// Whether to send the identical bytes again.
    pub retryability: Retryability,
    /// ClickHouse's exception code, where it answered with one.
    pub code: Option<i32>,
    /// What happened and what to do.
    pub message: String,
}

/// Where rows go.
pub trait Sink: Send + Sync + 'static {
    /// Sends one INSERT and waits for ClickHouse's answer. After an error nothing is known: the
    /// rows may be there. One attempt; repeating is the caller's decision.
    fn insert(&self, request: InsertRequest) -> impl Future<Output = Result<(), InsertError>> + Send;
    /// Offsets in `slice` of which the table holds a row, increasing, by the provenance columns, which
    /// must be there ([`TableBinding::can_be_asked`]). One attempt.
    fn held(
        &self,
        table: &TableBinding,
        slice: &IntentSlice,
    ) -> impl Future<Output = Result<Vec<i64>, InsertError>> + Send;
}

/// Rows that a table holds of records which the group has yet to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsAhead {
    /// Partition of the records.
    pub partition: PartitionId,
    /// Offset from which on it was asked.
    pub start: i64,
    /// Table.
    pub table: Arc<str>,
    /// Number of rows.
    pub rows: u64,
    /// Least offset.
    pub first: i64,
    /// Greatest offset.
    pub last: i64,
}

/// What a pipeline fills, asked before partitions are read.
pub trait Tables: Send + Sync + 'static {
    /// Where tables hold rows of records at these offsets or after them, by the provenance columns; tables
    /// without them say nothing. Does not block: the answer comes over the channel. One attempt.
    fn rows_ahead(
        &self,
        starts: Vec<(PartitionId, i64)>,
    ) -> oneshot::Receiver<Result<Vec<RowsAhead>, String>>;
}

/// Why dead letters or offsets did not reach Kafka.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct KafkaError {
    /// Whether to try again.
    pub retryability: Retryability,
    /// What happened and what to do.
    pub message: String,
}

/// Dead letters that are not confirmed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unpublished {
    /// Their places among those that were to be published, increasing; never none.
    pub places: Vec<usize>,
    /// Why the first of them is not. Permanent: this producer will never publish again.
    pub error: KafkaError,
}

/// Where rejected records go.
pub trait DeadLetterSink: Send + Sync + 'static {
    /// Publishes and waits until the brokers confirmed every one, or will not. An unconfirmed one may
    /// be there all the same.
    fn publish(&self, letters: &[DeadLetter]) -> impl Future<Output = Result<(), Unpublished>> + Send;
}

/// A partition and the offset at which the group goes on reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitPoint {
    /// Topic.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset of the next record to read.
    pub offset: i64,
    /// Text stored with the offset; empty unless batches are pending.
    pub metadata: String,
}

/// A step of the group: the offsets move, and the dead letters are there, or nothing of it is.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Where the group goes on; one a partition.
    pub points: Vec<CommitPoint>,
    /// Dead letters of the records that the points pass. None at-least-once: those are published before.
    pub letters: Vec<DeadLetter>,
}

/// Why a commit did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Nothing of it happened, nor will; another may.
    #[error("{0}")]
    Refused(String),
    /// This process will never commit anything again.
    #[error("{0}")]
    Broken(String),
}

/// Where consumed offsets are kept.
pub trait OffsetStore: Send + Sync + 'static {
    /// Commits everything in one step, fenced by this host's membership of the group, and waits for the
    /// outcome. With dead letters it is a transaction. An answer is final: an outcome that is not known
    /// yet is waited for. At-least-once, where a step done twice does no harm, a refused one may have
    /// happened.
    fn commit(&self, commit: Commit) -> impl Future<Output = Result<(), CommitError>> + Send;
}

/// What reading slices a second time gave.
#[derive(Clone, Debug, Default)]
pub struct Reread {
    /// Records, by partition and offset.
    pub chunks: Vec<Arc<Chunk>>,
    /// What is no longer there: retention took it.
    pub lost: Vec<IntentSlice>,
}

/// What a batch is formed of a second time.
pub trait Archive: Send + Sync + 'static {
    /// Reads slices again, whosoever their partitions are, without the group. One attempt.
    fn records(&self, slices: &[IntentSlice]) -> impl Future<Output = Result<Reread, KafkaError>> + Send;
    /// The chain of these revisions (validators in order, then the mapper), with its tables, given more
    /// time for a record than usual; `None` where one of them is not kept. One attempt.
    fn chain(
        &self,
        revisions: &[Revision],
    ) -> impl Future<Output = Result<Option<Arc<BoundChain>>, String>> + Send;
    /// Runs a chunk through such a chain once more ([`ChainRunner::run_again`]), off the runtime's threads.
    fn judge(
        &self,
        chain: &Arc<BoundChain>,
        chunk: Arc<Chunk>,
        forced: Vec<Forced>,
    ) -> impl Future<Output = Result<ChunkVerdicts, String>> + Send;
}
