//! Ports: what the flow needs of the world, as traits that domain types cross.

use std::sync::Arc;

use bytes::Bytes;

use crate::domain::chunk::Chunk;
use crate::domain::retry::Retryability;
use crate::domain::row::Output;
use crate::domain::verdict::{ChunkVerdicts, DeadLetter, Revision, Stage};

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
    fn run(&mut self, chunk: &Chunk) -> ChunkVerdicts;
}

/// One INSERT: all rows of one batch for one table.
#[derive(Clone, Debug)]
pub struct InsertRequest {
    /// Table, `name` or `database.name`.
    pub table: Arc<str>,
    /// Columns in the order of the row bytes.
    pub columns: Arc<[String]>,
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

/// Where consumed offsets are kept.
pub trait OffsetStore: Send + Sync + 'static {
    /// Commits all points in one request and waits for the answer.
    fn commit(&self, points: Vec<CommitPoint>) -> impl Future<Output = Result<(), KafkaError>> + Send;
}
