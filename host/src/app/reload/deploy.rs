//! Deploy: from what passed its trial to the chain that new chunks meet.
//!
//! What is published is archived and kept as an event first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::app::preconditions::chain_fault;
use crate::config::Delivery;
use crate::domain::deployment::{EventKind, NewEvent};
use crate::domain::module::ArchivedModule;
use crate::domain::verdict::Stage;
use crate::pipeline::binding::{BoundChain, ChainSlot};
use crate::pipeline::modules::Gate;
use crate::pipeline::ports::Chain as _;
use crate::wasm::{Module, ModuleFault, WasmChain};

use super::entry::{Live, Refusal};
use super::gate::{self, Candidate};
use super::{AGAIN, Key, Reloader};

impl Reloader {
    /// Puts together what is live, what passed and what is left; publishes it where it is another chain.
    pub(super) async fn deploy(&mut self, mut candidates: BTreeMap<Key, Candidate>) {
        // Shadows are in no chain.
        let shadows: Vec<Key> = candidates.keys().filter(|key| key.2).cloned().collect();
        for (key, candidate) in shadows.into_iter().filter_map(|key| candidates.remove_entry(&key)) {
            if let (Some(entry), Candidate::Module { module, .. }) = (self.entries.get_mut(&key), candidate) {
                entry.live = Some(Live::now(module));
            }
        }
        loop {
            let mut validators = Vec::new();
            let mut mapper = None;
            for (key, entry) in self.entries.iter().filter(|(key, _)| !key.2) {
                let module = match candidates.get(key) {
                    Some(Candidate::Module { module, .. }) => Some(module.clone()),
                    Some(Candidate::Nothing) => None,
                    None => entry.live.as_ref().map(|live| live.module.clone()),
                };
                match key.0 {
                    Stage::Map => mapper = module,
                    _ => validators.extend(module),
                }
            }
            let Some(mapper) = mapper else { return };
            if let Some((key, refusal)) = self.misfit(&validators, &mapper, &candidates) {
                self.refuse(&key, refusal);
                candidates.remove(&key);
                continue;
            }
            let chain = self.with.registry.compose(validators, mapper, &self.pipeline.name);
            let current = self.chain.as_ref().map(ChainSlot::current);
            let is_new = current.as_ref().is_none_or(|current| !is_same_chain(current, &chain));
            let bound = self.preconditions.bind(&self.with.sink, &self.pipeline, &chain).await;
            let tables = match bound {
                Ok(tables) => tables,
                Err(refusal) => {
                    let key = (Stage::Map, self.mapper_name(), false);
                    if candidates.remove(&key).is_some() {
                        self.refuse(&key, refusal);
                        continue;
                    }
                    // What is live does not fit any more, or nobody can be asked: INSERTs say the rest.
                    if refusal.is_transient {
                        self.lacks = Some(AGAIN);
                        for key in candidates.keys().cloned().collect::<Vec<_>>() {
                            self.refuse(&key, refusal.clone());
                        }
                    } else if let Some(entry) = self.entries.get_mut(&key) {
                        entry.refusal = Some(refusal);
                        self.lacks = Some(AGAIN);
                    }
                    return;
                }
            };
            let is_rebound =
                current.as_ref().is_some_and(|current| !gate::are_same_tables(&current.tables, &tables));
            // As it is before what goes live now: for a start, that is what the process before it left.
            let before = self.standings.clone();
            if is_new || is_rebound {
                if let Err(refusal) = self.keep(&chain, &candidates).await {
                    self.lacks = Some(AGAIN);
                    for key in candidates.keys().cloned().collect::<Vec<_>>() {
                        self.refuse(&key, refusal.clone());
                    }
                    if candidates.is_empty() {
                        let removed: Vec<_> = self.removed.iter().map(|key| key.1.as_str()).collect();
                        tracing::warn!(
                            pipeline = self.pipeline.name,
                            removed = removed.join(", "),
                            gate = refusal.gate.as_str(),
                            reason = refusal.reason,
                            "new chain waits"
                        );
                        // The rule goes on until its removal can be kept.
                        self.with.metrics.waiting(&self.pipeline.name);
                    }
                    return;
                }
                self.removed.clear();
                self.publish(Arc::new(BoundChain { chain: Arc::new(chain), tables }));
                // What was just kept counts for what is kept next.
                self.refresh().await;
            }
            for (key, candidate) in candidates {
                let watch = self.watch(&key, &candidate, &before);
                let Some(entry) = self.entries.get_mut(&key) else { continue };
                entry.live = match candidate {
                    Candidate::Module { module, .. } => Some(Live::now(module)),
                    Candidate::Nothing => None,
                };
                entry.watch = watch;
            }
            self.is_start = false;
            return;
        }
    }

    /// A candidate that cannot be in this chain, and why.
    fn misfit(
        &self,
        validators: &[Arc<Module>],
        mapper: &Arc<Module>,
        candidates: &BTreeMap<Key, Candidate>,
    ) -> Option<(Key, Refusal)> {
        let is_candidate = |key: &Key| matches!(candidates.get(key), Some(Candidate::Module { .. }));
        let name = &mapper.identity().name;
        if validators.iter().any(|validator| validator.identity().name == *name) {
            let fault = ModuleFault::SameName;
            let keys = [Stage::Map, Stage::Validate].map(|stage| (stage, name.to_string(), false));
            let key = keys.into_iter().find(is_candidate)?;
            return Some((key, Refusal::of(&fault)));
        }
        if self.pipeline.delivery == Delivery::ExactlyOnce
            && let Some(fault) = chain_fault(&self.pipeline, validators.len())
        {
            let key = candidates.keys().rev().find(|key| {
                key.0 == Stage::Validate
                    && is_candidate(key)
                    && self.entries.get(*key).is_some_and(|entry| entry.live.is_none())
            });
            return key.map(|key| (key.clone(), Refusal::new(Gate::Tables, fault)));
        }
        None
    }

    fn refuse(&mut self, key: &Key, refusal: Refusal) {
        if refusal.is_transient {
            self.lacks = Some(AGAIN);
        }
        if let Some(entry) = self.entries.get_mut(key) {
            entry.refusal = Some(refusal);
        }
    }

    fn mapper_name(&self) -> String {
        self.entries
            .keys()
            .find(|key| key.0 == Stage::Map && !key.2)
            .map(|key| key.1.clone())
            .unwrap_or_default()
    }

    /// Archives what is new, and keeps what happens.
    async fn keep(&self, chain: &WasmChain, candidates: &BTreeMap<Key, Candidate>) -> Result<(), Refusal> {
        let files: Vec<ArchivedModule> = candidates.values().filter_map(Candidate::file).cloned().collect();
        let archived = async {
            self.with.revisions.store(&files).await?;
            self.with.revisions.store_chain(&self.pipeline.name, chain.revision(), chain.modules()).await
        };
        archived.await.map_err(|error| Refusal::by(Gate::Archive, error.retryability(), &error))?;
        let live = candidates.iter().map(|(key, candidate)| (key, candidate.revision()));
        let gone = self.removed.iter().map(|key| (key, None));
        for ((stage, name, _), revision) in live.chain(gone) {
            if self.standings.get(&(*stage, name.clone())).and_then(|standing| standing.live) == revision {
                // Another host said so, or this one before it was started again.
                continue;
            }
            let event = NewEvent {
                event: if revision.is_some() { EventKind::Live } else { EventKind::Removed },
                revision,
                instead_of: None,
                by: self.with.host.clone(),
                reason: String::new(),
            };
            let kept = self.with.deployments.record(&self.pipeline.name, name, *stage, &event).await;
            kept.map_err(|error| Refusal::by(Gate::Archive, error.retryability(), &error))?;
        }
        Ok(())
    }

    fn publish(&mut self, chain: Arc<BoundChain>) {
        tracing::info!(pipeline = self.pipeline.name, chain = %chain.chain.revision(), "chain published");
        match &self.chain {
            Some(slot) => {
                self.retired.push(slot.current());
                slot.publish(chain);
            }
            None => self.chain = Some(ChainSlot::new(chain)),
        }
    }

    /// Lets go of chains that nobody uses any more, where unmapping their code delays nothing.
    pub(super) fn retire(&mut self) {
        let unused: Vec<_> = self.retired.extract_if(.., |chain| Arc::strong_count(chain) == 1).collect();
        if !unused.is_empty() {
            drop(tokio::task::spawn_blocking(move || drop(unused)));
        }
    }
}

fn is_same_chain(bound: &BoundChain, chain: &WasmChain) -> bool {
    bound.chain.revision() == chain.revision()
}
