//! Chain: the validators, then the mapper, over one chunk at a time.
//!
//! State: none between chunks. A call gets an instance of its own, made for it and dropped after it,
//! so that what a module says of a record cannot depend on the records before (DESIGN 5: verdicts
//! must be repeatable), and a guest's memory cannot grow with uptime.
//!
//! What that costs, in ns a record (`cargo bench --bench chain`, the purchase modules, 405 bytes a
//! record, making instances and `init` included), against instances kept from chunk to chunk:
//!
//! | records in a chunk | 1,024 | 100 | 10 | 1 |
//! | --- | --- | --- | --- | --- |
//! | new instances | 2,030 | 2,380 | 5,530 | 34,600 |
//! | kept instances | 1,940 | 2,000 | 2,540 | 7,000 |
//!
//! That is 5 % of a full chunk. Small chunks pay more and can: they are what there is when little
//! comes in, and a chain that falls behind gets full ones.
//!
//! What a chain does remember of a module, across chunks, is whether it exhausts the time that a chunk may lose
//! (`bisect.rs`); that decides how soon its records are refused as timeouts, which an intent records.
//!
//! Invariants:
//! - A runner has at most one instance at a time, so the pool never runs dry by workers alone.
//! - Every record of a chunk gets exactly one verdict, and a refused record has no rows.
//! - Nothing of the host's own trouble (no slot, no memory) becomes a verdict: the runner waits.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::domain::answer::{Answer, Refusal};
use crate::domain::chunk::{Chunk, ChunkBuilder};
use crate::domain::row::Output;
use crate::domain::verdict::{ChunkVerdicts, OutputRows, Rejection, Revision};
use crate::pipeline::ports::{Chain, ChainRunner, Forced, ModuleIdentity};

use super::bisect::{Attempt, Lenience, bisect};
use super::engine::WasmEngine;
use super::instance::{CallFault, Instance, StartFault};
use super::log::ModuleLog;
use super::metrics::{ModuleMetrics, WasmMetrics};
use super::module::Module;
use super::shadow::ShadowSlot;
use super::tally::Tally;

/// Longest wait before an instance is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Longest time that the start of an instance gets, once shorter times did not suffice.
const LONGEST_START: Duration = Duration::from_secs(600);

/// The validators, in order, then the mapper, at one set of revisions. Immutable; cheap to clone.
///
/// Dropping the last reference unmaps the modules' code (about 0.3 ms), so whoever swaps chains
/// keeps the old one until the runners have let go of it.
#[derive(Clone)]
pub struct WasmChain {
    inner: Arc<Inner>,
}

struct Inner {
    engine: WasmEngine,
    revision: Revision,
    identities: Vec<ModuleIdentity>,
    validators: Vec<Link>,
    mapper: Link,
}

struct Link {
    module: Arc<Module>,
    metrics: ModuleMetrics,
    tally: Arc<Tally>,
    shadow: Arc<ShadowSlot>,
    log: Arc<ModuleLog>,
    /// Chunks, one after the other, that exhausted what they may lose. Approximate: runners share it.
    exhausted: AtomicU32,
}

/// What chains of one pipeline share for a module, from one to the next: where it is counted what becomes
/// of the records that a revision is shown, and where its shadow gets them.
#[derive(Default)]
pub(super) struct Attached {
    pub(super) tally: Arc<Tally>,
    pub(super) shadow: Arc<ShadowSlot>,
}

/// Whether records meet the chain for the first time, or again, in recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    First,
    /// Verdicts must be those of the first run, at whatever cost.
    Again,
}

impl std::fmt::Debug for WasmChain {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("WasmChain")
            .field("revision", &self.inner.revision)
            .field("modules", &self.inner.identities)
            .finish_non_exhaustive()
    }
}

impl WasmChain {
    /// A chain of `validators`, in order, and `mapper`, each with what is attached to it.
    pub(super) fn new(
        engine: WasmEngine,
        validators: Vec<Arc<Module>>,
        mapper: Arc<Module>,
        pipeline: &str,
        metrics: &WasmMetrics,
        attached: impl Fn(&ModuleIdentity) -> Attached,
    ) -> Self {
        let link = |module: Arc<Module>| {
            let metrics = metrics.module(pipeline, &module.identity().name);
            let log = ModuleLog::new(pipeline, module.identity(), metrics.log_lines_dropped.clone());
            let Attached { tally, shadow } = attached(module.identity());
            Link { module, metrics, tally, shadow, log, exhausted: AtomicU32::new(0) }
        };
        let validators: Vec<_> = validators.into_iter().map(link).collect();
        let mapper = link(mapper);
        let identities: Vec<_> =
            validators.iter().chain([&mapper]).map(|link| link.module.identity().clone()).collect();
        let revision = chain_revision(&identities);
        Self { inner: Arc::new(Inner { engine, revision, identities, validators, mapper }) }
    }

    /// The modules themselves, in the order in which records meet them.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<Module>> {
        self.inner.validators.iter().chain([&self.inner.mapper]).map(|link| &link.module)
    }
}

/// SHA-256 over stage, name and revision of each module, in order.
fn chain_revision(modules: &[ModuleIdentity]) -> Revision {
    let mut hash = Sha256::new();
    for module in modules {
        hash.update(module.stage.as_str());
        hash.update([0]);
        hash.update(&*module.name);
        hash.update([0]);
        hash.update(module.revision.0);
    }
    Revision(hash.finalize().into())
}

impl Chain for WasmChain {
    fn revision(&self) -> Revision {
        self.inner.revision
    }

    fn modules(&self) -> &[ModuleIdentity] {
        &self.inner.identities
    }

    fn outputs(&self) -> &[Output] {
        self.inner.mapper.module.outputs()
    }

    fn runner(&self) -> Box<dyn ChainRunner> {
        Box::new(Runner { chain: Arc::clone(&self.inner) })
    }
}

struct Runner {
    chain: Arc<Inner>,
}

impl ChainRunner for Runner {
    fn run(&mut self, chunk: &Chunk) -> ChunkVerdicts {
        self.judge(chunk, &[], Run::First)
    }

    fn run_again(&mut self, chunk: &Chunk, forced: &[Forced]) -> ChunkVerdicts {
        self.judge(chunk, forced, Run::Again)
    }
}

impl Runner {
    fn judge(&self, chunk: &Chunk, forced: &[Forced], run: Run) -> ChunkVerdicts {
        let chain = &*self.chain;
        let mut rejections: Vec<(u32, Rejection)> = Vec::new();
        let mut alive: Vec<u32> = (0..chunk.len() as u32).collect();
        for (module, validator) in chain.validators.iter().enumerate() {
            force(&mut rejections, &mut alive, validator, module, forced);
            if alive.is_empty() {
                break;
            }
            let known = rejections.len();
            judge(&chain.engine, validator, chunk, &alive, run, |range, answer| {
                refuse(&mut rejections, validator, &alive[range], answer.refusals);
            });
            let refused = rejections[known..].iter();
            validator.tally.add(alive.len(), refused.clone().map(|(_, rejection)| rejection));
            validator.observe(chunk, &alive, &rejections[known..], &[]);
            let mut refused = refused.map(|(index, _)| *index).peekable();
            alive.retain(|index| refused.next_if_eq(index).is_none());
        }

        force(&mut rejections, &mut alive, &chain.mapper, chain.validators.len(), forced);
        let mut rows = RowCollector::new(chain.mapper.module.outputs().len(), chunk.len());
        if !alive.is_empty() {
            let known = rejections.len();
            judge(&chain.engine, &chain.mapper, chunk, &alive, run, |range, answer| {
                refuse(&mut rejections, &chain.mapper, &alive[range.clone()], answer.refusals);
                rows.append(&alive[range], answer.outputs);
            });
            let refused = rejections[known..].iter();
            chain.mapper.tally.add(alive.len(), refused.map(|(_, rejection)| rejection));
            chain.mapper.observe(chunk, &alive, &rejections[known..], &rows.outputs);
        }
        rejections.sort_by_key(|(index, _)| *index);
        ChunkVerdicts { chain: chain.revision, outputs: rows.outputs, rejections }
    }
}

/// One module on its own, as golden cases and comparisons run it: by the very calls, limits and bisection
/// of a chain, without showing in the metrics. Cheap to clone.
#[derive(Clone)]
pub struct SingleModule {
    engine: WasmEngine,
    link: Arc<Link>,
}

impl SingleModule {
    pub(super) fn new(engine: WasmEngine, module: Arc<Module>, metrics: &WasmMetrics) -> Self {
        let log = ModuleLog::trial(module.identity());
        let metrics = metrics.hidden();
        let Attached { tally, shadow } = Attached::default();
        let link = Link { module, metrics, tally, shadow, log, exhausted: AtomicU32::new(0) };
        Self { engine, link: Arc::new(link) }
    }

    /// What runs.
    pub fn module(&self) -> &Arc<Module> {
        &self.link.module
    }

    /// What the module says of the records of `chunk` at `selected` (increasing); of the others it is not
    /// asked, and they have neither rows nor a rejection. Blocking.
    pub fn run(&self, chunk: &Chunk, selected: &[u32]) -> ChunkVerdicts {
        let link = &*self.link;
        let mut rejections = Vec::new();
        let mut rows = RowCollector::new(link.module.outputs().len(), chunk.len());
        if !selected.is_empty() {
            judge(&self.engine, link, chunk, selected, Run::First, |range, answer| {
                refuse(&mut rejections, link, &selected[range.clone()], answer.refusals);
                rows.append(&selected[range], answer.outputs);
            });
        }
        ChunkVerdicts { chain: link.module.identity().revision, outputs: rows.outputs, rejections }
    }
}

impl Link {
    /// Lets the shadow, if there is one, see what the module said of the records of `chunk` at `selected`.
    fn observe(
        &self,
        chunk: &Chunk,
        selected: &[u32],
        rejections: &[(u32, Rejection)],
        outputs: &[OutputRows],
    ) {
        let revision = self.module.identity().revision;
        self.shadow.observe(revision, chunk, selected, || ChunkVerdicts {
            chain: revision,
            outputs: outputs.to_vec(),
            rejections: rejections.to_vec(),
        });
    }
}

/// Rejects those of the records still alive that are forced to be rejected by this module.
fn force(
    rejections: &mut Vec<(u32, Rejection)>,
    alive: &mut Vec<u32>,
    link: &Link,
    module: usize,
    forced: &[Forced],
) {
    let mut forced = forced.iter().filter(|forced| forced.module == module).peekable();
    if forced.peek().is_none() {
        return;
    }
    let mut refusals = Vec::new();
    let mut rest = Vec::with_capacity(alive.len());
    for (position, index) in alive.iter().enumerate() {
        while forced.next_if(|forced| forced.index < *index).is_some() {}
        match forced.next_if(|forced| forced.index == *index) {
            Some(forced) => refusals.push((position, Refusal::repeated(forced.kind))),
            None => rest.push(*index),
        }
    }
    refuse(rejections, link, alive, refusals);
    *alive = rest;
}

/// Adds the module's identity to refusals, and the records' indexes in the chunk.
fn refuse(
    rejections: &mut Vec<(u32, Rejection)>,
    link: &Link,
    selected: &[u32],
    refusals: Vec<(usize, Refusal)>,
) {
    let ModuleIdentity { name, stage, revision } = link.module.identity();
    rejections.extend(refusals.into_iter().map(|(position, Refusal { kind, code, field, reason })| {
        let rejection = Rejection {
            stage: *stage,
            module: Arc::clone(name),
            revision: Some(*revision),
            kind,
            code,
            field,
            reason,
        };
        (selected[position], rejection)
    }));
}

/// Runs the `selected` records of `chunk` through one module: one call, or a bisection.
fn judge(
    engine: &WasmEngine,
    link: &Link,
    chunk: &Chunk,
    selected: &[u32],
    run: Run,
    collect: impl FnMut(Range<usize>, Answer),
) {
    let module = &*link.module;
    let attempt = |range: Range<usize>, deadline: Duration| {
        // Only what is looked for: a call's cost is that of its records, not of the chunk.
        let part = (range.len() < selected.len()).then(|| {
            let excerpt = excerpt(chunk, &selected[range.clone()]);
            let all: Vec<u32> = (0..excerpt.len() as u32).collect();
            (excerpt, all)
        });
        let (chunk, selected) = part.as_ref().map_or((chunk, selected), |(excerpt, all)| (excerpt, all));
        let started = Instant::now();
        let mut patience = Patience::new(module);
        let attempt = loop {
            let (instance, start) = start(engine, module, &mut patience);
            let called = Instant::now();
            let log = (run == Run::First).then(|| link.log.clone());
            let result = match instance.call(module, chunk, selected, deadline, log) {
                Ok(answer) => Ok(answer),
                Err(CallFault::Guest(fault)) => Err(fault),
                Err(CallFault::Host(reason)) => {
                    patience.wait(&reason);
                    continue;
                }
            };
            break Attempt { result, start, call: called.elapsed() };
        };
        link.metrics.calls.inc();
        link.metrics.seconds.inc_by(started.elapsed().as_secs_f64());
        if let Err(fault) = &attempt.result {
            link.metrics.fault(fault.refusal.kind);
        }
        attempt
    };
    let lenience = match run {
        Run::First => Lenience::After { exhausted: link.exhausted.load(Ordering::Relaxed) },
        Run::Again => Lenience::Unbounded,
    };
    let searched = bisect(selected.len(), module.limits().call_timeout, lenience, attempt, collect);
    if run == Run::Again {
        return;
    }
    if searched.exhausted {
        link.exhausted.fetch_add(1, Ordering::Relaxed);
        link.metrics.unjudged.inc_by(searched.unjudged as u64);
    } else {
        link.exhausted.store(0, Ordering::Relaxed);
    }
}

/// Waits for what is the machine's trouble, longer each time and without an end.
struct Patience<'a> {
    module: &'a Module,
    wait: Duration,
}

impl<'a> Patience<'a> {
    fn new(module: &'a Module) -> Self {
        Self { module, wait: Duration::from_millis(10) }
    }

    fn wait(&mut self, reason: &str) {
        let module = &self.module.identity().name;
        tracing::warn!(%module, reason, "this machine cannot run a module right now; trying again");
        std::thread::sleep(self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

/// A new instance. The module passed its trial and computes nothing but its settings, so a failure
/// here is the machine's too (no slot, no memory, starved of time). Also how long the making took, without
/// the failures before it.
fn start(engine: &WasmEngine, module: &Module, patience: &mut Patience<'_>) -> (Instance, Duration) {
    let mut timeout = module.limits().call_timeout;
    loop {
        let started = Instant::now();
        let reason = match Instance::start(
            engine,
            module.program(),
            module.settings(),
            module.limits(),
            timeout,
            None,
        ) {
            Ok((instance, _)) => return (instance, started.elapsed()),
            Err(StartFault::Host(reason) | StartFault::Unfit(reason) | StartFault::Refused(reason)) => reason,
            Err(StartFault::Failed(refusal)) => refusal.reason,
        };
        patience.wait(&reason);
        timeout = timeout.saturating_mul(2).min(LONGEST_START);
    }
}

/// The records at `selected`, as a chunk of their own.
fn excerpt(chunk: &Chunk, selected: &[u32]) -> Chunk {
    let mut builder = ChunkBuilder::new(Arc::clone(&chunk.topic), chunk.partition, chunk.base_offset);
    for index in selected {
        let record = chunk.record(*index as usize);
        let headers = chunk.headers(*index as usize);
        builder.push(record.offset, record.timestamp, record.key, record.payload, headers);
    }
    builder.build()
}

/// Puts the rows of a chunk together from its answers.
struct RowCollector {
    outputs: Vec<OutputRows>,
    records: usize,
}

impl RowCollector {
    fn new(outputs: usize, records: usize) -> Self {
        let empty = || OutputRows { rows_per_record: vec![0; records], ..OutputRows::default() };
        Self { outputs: std::iter::repeat_with(empty).take(outputs).collect(), records }
    }

    /// Appends the rows of the records at `selected`. A poison record has no outputs at all.
    fn append(&mut self, selected: &[u32], outputs: Vec<OutputRows>) {
        for (collected, rows) in self.outputs.iter_mut().zip(outputs) {
            if selected.len() == self.records {
                // The usual case, without copying a byte: one answer is the chunk's.
                *collected = rows;
                continue;
            }
            for (index, count) in selected.iter().zip(&rows.rows_per_record) {
                collected.rows_per_record[*index as usize] = *count;
            }
            if collected.row_ends.is_empty() {
                collected.bytes = rows.bytes;
                collected.row_ends = rows.row_ends;
            } else {
                let shift = collected.bytes.len() as u32;
                collected.bytes.extend_from_slice(&rows.bytes);
                collected.row_ends.extend(rows.row_ends.iter().map(|end| end + shift));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Stage;

    fn identity(stage: Stage, name: &str, byte: u8) -> ModuleIdentity {
        ModuleIdentity { name: name.into(), stage, revision: Revision([byte; 32]) }
    }

    #[test]
    fn a_chain_revision_sees_order_names_stages_and_revisions() {
        let [a, b, mapper] = [
            identity(Stage::Validate, "a", 1),
            identity(Stage::Validate, "b", 2),
            identity(Stage::Map, "m", 3),
        ];
        let base = chain_revision(&[a.clone(), b.clone(), mapper.clone()]);
        assert_eq!(base, chain_revision(&[a.clone(), b.clone(), mapper.clone()]));
        assert_ne!(base, chain_revision(&[b.clone(), a.clone(), mapper.clone()]));
        assert_ne!(base, chain_revision(&[a.clone(), mapper.clone()]));
        let renamed = ModuleIdentity { name: "c".into(), ..b.clone() };
        assert_ne!(base, chain_revision(&[a.clone(), renamed, mapper.clone()]));
        let changed = ModuleIdentity { revision: Revision([9; 32]), ..b };
        assert_ne!(base, chain_revision(&[a, changed, mapper]));
    }

    fn rows(bytes: &[u8], row_ends: &[u32], rows_per_record: &[u32]) -> OutputRows {
        OutputRows {
            bytes: bytes.to_vec(),
            row_ends: row_ends.to_vec(),
            rows_per_record: rows_per_record.to_vec(),
        }
    }

    #[test]
    fn answers_join() {
        let mut collector = RowCollector::new(1, 6);
        collector.append(&[0, 2], vec![rows(b"aabbb", &[2, 5], &[1, 1])]);
        collector.append(&[3], vec![]);
        collector.append(&[4, 5], vec![rows(b"yzz", &[1, 3], &[0, 2])]);
        assert_eq!(collector.outputs, [rows(b"aabbbyzz", &[2, 5, 6, 8], &[1, 0, 1, 0, 0, 2])]);
    }

    #[test]
    fn the_only_answer_is_taken_as_it_is() {
        let mut collector = RowCollector::new(1, 2);
        collector.append(&[0, 1], vec![rows(b"ab", &[1, 2], &[0, 2])]);
        assert_eq!(collector.outputs, [rows(b"ab", &[1, 2], &[0, 2])]);
    }
}
