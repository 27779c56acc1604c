//! What a pipeline's tables hold, for an intake that must not read what they hold already.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clickhouse::sink::ClickHouseSink;
use crate::domain::ledger::PartitionId;
use crate::pipeline::binding::{BoundChain, ChainSlot};
use crate::pipeline::ports::{RowsAhead, Tables};

/// The tables that the chain of the moment fills.
pub(super) struct PipelineTables {
    pub(super) chain: ChainSlot,
    pub(super) sink: Arc<ClickHouseSink>,
    pub(super) runtime: Handle,
}

impl Tables for PipelineTables {
    fn rows_ahead(
        &self,
        starts: Vec<(PartitionId, i64)>,
    ) -> oneshot::Receiver<Result<Vec<RowsAhead>, String>> {
        let (answer, receiver) = oneshot::channel();
        let (chain, sink) = (self.chain.current(), self.sink.clone());
        self.runtime.spawn(async move {
            // Where the intake is gone nobody wants to know.
            let _ = answer.send(ask(&chain, &sink, &starts).await);
        });
        receiver
    }
}

async fn ask(
    chain: &BoundChain,
    sink: &ClickHouseSink,
    starts: &[(PartitionId, i64)],
) -> Result<Vec<RowsAhead>, String> {
    let mut ahead = Vec::new();
    for table in chain.tables.iter().filter(|table| table.can_be_asked()) {
        let rows = sink.rows_ahead(&table.table, starts).await.map_err(|error| {
            format!("clickhouse: which records table {} holds is not known yet: {error}", table.table)
        })?;
        ahead.extend(rows);
    }
    Ok(ahead)
}
