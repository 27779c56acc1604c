//! What a recovery needs, of three adapters: records from Kafka, revisions from the archive in
//! ClickHouse, and the engine that runs them again.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::sink::ClickHouseSink;
use crate::config::PipelineConfig;
use crate::domain::chunk::Chunk;
use crate::domain::intent::IntentSlice;
use crate::domain::verdict::{ChunkVerdicts, Revision};
use crate::kafka::slices::SliceReader;
use crate::pipeline::binding::BoundChain;
use crate::pipeline::ports::{Archive, Chain, Forced, KafkaError, Reread};
use crate::wasm::{ModuleLimits, ModuleRegistry};

/// See the module documentation.
pub(super) struct PipelineArchive {
    pub(super) pipeline: PipelineConfig,
    pub(super) limits: ModuleLimits,
    pub(super) records: SliceReader,
    pub(super) revisions: RevisionArchive,
    pub(super) registry: Arc<ModuleRegistry>,
    pub(super) sink: Arc<ClickHouseSink>,
    /// The chain that was asked for last: a host leaves several batches of one chain behind.
    pub(super) last: Mutex<Option<LastChain>>,
}

/// Revisions with the chain that they make.
type LastChain = (Vec<Revision>, Arc<BoundChain>);

impl PipelineArchive {
    fn last(&self, revisions: &[Revision]) -> Option<Arc<BoundChain>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(kept, _)| kept == revisions).map(|(_, chain)| chain.clone())
    }
}

impl Archive for PipelineArchive {
    async fn records(&self, slices: &[IntentSlice]) -> Result<Reread, KafkaError> {
        self.records.read(slices).await
    }

    async fn chain(&self, revisions: &[Revision]) -> Result<Option<Arc<BoundChain>>, String> {
        if let Some(chain) = self.last(revisions) {
            return Ok(Some(chain));
        }
        let modules = self.revisions.fetch(revisions).await.map_err(|error| error.to_string())?;
        let Some(modules) = modules.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let (registry, pipeline) = (self.registry.clone(), self.pipeline.name.clone());
        let limits = self.limits.for_recovery();
        // Compiling takes a tenth of a second a module.
        let load = move || registry.load_archived(&pipeline, modules, &limits);
        let chain = tokio::task::spawn_blocking(load).await.map_err(|error| error.to_string())?;
        let chain =
            chain.map_err(|error| format!("a module of a pending batch does not run any more: {error}"))?;
        let mut tables = Vec::new();
        for output in chain.outputs() {
            let bound = self.sink.bind(self.pipeline.table(&output.name), output).await;
            tables.push(bound.map_err(|error| error.to_string())?.binding());
        }
        let bound = Arc::new(BoundChain { chain: Arc::new(chain), tables });
        let kept = (revisions.to_vec(), bound.clone());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(Some(bound))
    }

    async fn judge(
        &self,
        chain: &Arc<BoundChain>,
        chunk: Arc<Chunk>,
        forced: Vec<Forced>,
    ) -> Result<ChunkVerdicts, String> {
        let chain = chain.clone();
        let judge = move || chain.chain.runner().run_again(&chunk, &forced);
        tokio::task::spawn_blocking(judge).await.map_err(|error| format!("a second run failed: {error}"))
    }
}
