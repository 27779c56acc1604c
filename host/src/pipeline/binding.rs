//! Binding: a chain together with the tables that its outputs go to.

use std::sync::{Arc, RwLock};

use crate::domain::chunk::Chunk;
use crate::domain::provenance::Provenance;
use crate::domain::row::ColumnDefinition;

use super::ports::Chain;

/// Where the rows of one output go.
#[derive(Clone, Debug)]
pub struct TableBinding {
    /// Table, `name` or `database.name`.
    pub table: Arc<str>,
    /// Columns of the INSERT, with the types in which the bytes are written: those of the output, then
    /// those of provenance.
    pub columns: Arc<[ColumnDefinition]>,
    /// Provenance columns that the table has.
    pub provenance: Provenance,
    /// Whether rows can be seen as soon as they are inserted, and are not merged away: a plain `MergeTree`.
    pub shows_every_row: bool,
}

impl TableBinding {
    /// Whether the table can tell which records it holds.
    pub fn can_be_asked(&self) -> bool {
        self.provenance.identifies_records()
    }

    /// Whether the table can tell which records it lacks.
    pub fn can_be_doubted(&self) -> bool {
        self.shows_every_row && self.can_be_asked()
    }

    /// Appends the provenance columns of one row.
    pub fn append_provenance(&self, buffer: &mut Vec<u8>, chunk: &Chunk, offset: i64, revision: &str) {
        self.provenance.append(buffer, &chunk.topic, chunk.partition, offset, revision);
    }
}

/// A chain whose outputs are checked against their tables.
pub struct BoundChain {
    /// Validators and mapper.
    pub chain: Arc<dyn Chain>,
    /// One entry an output, in the order of the outputs.
    pub tables: Vec<TableBinding>,
}

impl std::fmt::Debug for BoundChain {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "BoundChain({})", self.chain.revision())
    }
}

/// The chain that new chunks meet. A reload puts another one in; chunks that are on their way
/// finish with the one they started with.
#[derive(Clone, Debug)]
pub struct ChainSlot(Arc<RwLock<Arc<BoundChain>>>);

impl ChainSlot {
    /// A slot with its first chain.
    pub fn new(chain: Arc<BoundChain>) -> Self {
        Self(Arc::new(RwLock::new(chain)))
    }

    /// The chain of the moment.
    pub fn current(&self) -> Arc<BoundChain> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Puts another chain in.
    pub fn publish(&self, chain: Arc<BoundChain>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = chain;
    }
}
