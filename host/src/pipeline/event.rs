//! Events: everything that the flow of a pipeline hears, over one bounded channel, so that their
//! order is the order in which they happened at the sender.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::domain::chunk::Chunk;
use crate::domain::intent::PendingBatches;
use crate::domain::ledger::{Epoch, PartitionId};
use crate::domain::verdict::ChunkVerdicts;

use super::binding::BoundChain;
use super::budget::Hold;

/// A chunk on its way through the workers.
#[derive(Debug)]
pub struct Taken {
    /// Assignment under which it was consumed.
    pub epoch: Epoch,
    /// Position among the chunks of its partition and epoch, from 0.
    pub sequence: u64,
    /// Records.
    pub chunk: Arc<Chunk>,
    /// Chain that judges it.
    pub chain: Arc<BoundChain>,
    /// Its share of the byte budget.
    pub hold: Hold,
}

impl Taken {
    /// Partition of the chunk.
    pub fn partition(&self) -> PartitionId {
        self.chunk.partition_id()
    }
}

/// A chunk with its verdicts.
#[derive(Debug)]
pub struct Judged {
    /// As it was taken.
    pub taken: Taken,
    /// What the chain said.
    pub verdicts: Arc<ChunkVerdicts>,
}

/// A partition that is ours from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Partition.
    pub partition: PartitionId,
    /// Grows with every assignment.
    pub epoch: Epoch,
    /// Where the group goes on reading it, where that is known: its committed offset, mostly. Pending
    /// batches begin there; the intake reads on after them.
    pub position: Option<i64>,
    /// Batches that the metadata of the committed offset lists.
    pub pending: PendingBatches,
}

/// Tells the flow when a thread that it waits for dies of a panic.
#[derive(Debug)]
pub struct DeathNotice<'a> {
    events: &'a mpsc::Sender<Event>,
    who: &'static str,
}

impl<'a> DeathNotice<'a> {
    /// To be held by the thread `who` for as long as it works for the flow.
    pub fn new(events: &'a mpsc::Sender<Event>, who: &'static str) -> Self {
        Self { events, who }
    }
}

impl Drop for DeathNotice<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = format!("{} panicked; this is a defect of sluice, please report it", self.who);
            // The flow may be gone already, and then nobody waits.
            let _ = self.events.blocking_send(Event::Broken(reason));
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub enum Event {
    /// Partitions are ours from now on, each under a new epoch. A partition that was ours already
    /// begins anew.
    Assigned(Vec<Assignment>),
    /// Partitions are to be given up: settle what is in flight, then answer. Where they are lost
    /// already nothing can be committed for them any more.
    Revoked {
        /// Which, under which assignment.
        partitions: Vec<(PartitionId, Epoch)>,
        /// Whether the group gave them away without asking.
        lost: bool,
        /// Dropped or sent to when they may go.
        release: std::sync::mpsc::SyncSender<()>,
    },
    /// A chunk was taken in; its verdicts follow.
    Consumed {
        /// Partition.
        partition: PartitionId,
        /// Assignment.
        epoch: Epoch,
        /// Number of records.
        records: u64,
        /// Offset after the last one.
        end: i64,
    },
    /// A worker is done with a chunk.
    Judged(Judged),
    /// End offsets of partitions, as far as they are known.
    EndOffsets(Vec<(PartitionId, i64)>),
    /// Why nothing comes in right now; empty when all is well.
    IntakeTrouble(Vec<String>),
    /// How many partitions are assigned but held: the tables have rows of what is yet to be read there.
    Held(usize),
    /// Intake has stopped for good: no more chunks come.
    IntakeStopped,
    /// Something that must not happen happened; the pipeline ends.
    Broken(String),
}
