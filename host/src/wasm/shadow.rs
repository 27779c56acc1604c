//! Shadows: revisions that are shown what a live module was shown, and take no part.
//!
//! A worker that is through with a module hands a copy of the chunk, and what the live revision said of
//! it, to the one thread that runs shadows, and goes on. That thread asks the shadow and compares.
//!
//! State: of each shadow the comparison so far, whether a chunk of it is on its way, and until when it has
//! had its share of time. Invariants:
//! - The stream waits for nothing: at most one chunk a shadow is on its way, and while it is, or while the
//!   shadow has had its share, records are counted as skipped and not copied.
//! - All shadows together take no more than their share of one core: after a chunk that took `t`, a shadow
//!   rests for `t * (shadows / share - 1)`.
//! - What is compared was judged by the very live revision that the comparison is about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::domain::chunk::Chunk;
use crate::domain::verdict::{ChunkVerdicts, Revision, Stage};
use crate::pipeline::modules::ShadowReport;
use crate::pipeline::ports::ModuleIdentity;

use super::chain::SingleModule;
use super::compare::Comparison;
use super::metrics::{ShadowMetrics, WasmMetrics};
use super::module::Module;

/// Chunks on their way to the thread; one a shadow, so that more shadows than these skip more.
const QUEUE: usize = 64;

/// A chunk, and what the live revision said of the records at `selected`.
struct Observation {
    shadow: Arc<Shadow>,
    chunk: Chunk,
    selected: Vec<u32>,
    live: ChunkVerdicts,
}

/// One shadow beside one live revision.
struct Shadow {
    live: Revision,
    module: SingleModule,
    comparison: Mutex<Comparison>,
    skipped: AtomicU64,
    /// A chunk is on its way or being run.
    is_busy: AtomicBool,
    /// When it may be shown the next.
    rested: Mutex<Instant>,
    metrics: ShadowMetrics,
    /// Number of shadows, this one among them.
    count: Arc<AtomicUsize>,
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shadow {
    fn skip(&self, records: usize) {
        self.skipped.fetch_add(records as u64, Ordering::Relaxed);
        self.metrics.skipped(records as u64);
    }

    fn report(&self) -> ShadowReport {
        let mut report = self.comparison.lock().unwrap_or_else(PoisonError::into_inner).report();
        report.skipped += self.skipped.load(Ordering::Relaxed);
        report
    }

    fn run(&self, observation: &Observation) {
        let Observation { chunk, selected, live, .. } = observation;
        let said = self.module.run(chunk, selected);
        let mut comparison = self.comparison.lock().unwrap_or_else(PoisonError::into_inner);
        let before = comparison.counts().clone();
        comparison.add_chunk(chunk, selected, live, &said);
        self.metrics.compared(&before, comparison.counts());
    }
}

/// Where the workers hand over what one module of a pipeline judged.
#[derive(Default)]
pub(super) struct ShadowSlot {
    /// Whether there is a shadow: all that a worker asks where there is none.
    is_taken: AtomicBool,
    shadow: Mutex<Option<(Arc<Shadow>, Sender<Observation>)>>,
}

impl ShadowSlot {
    /// Hands over what `live` said of the records of `chunk` at `selected`, if a shadow has time for it.
    /// Never waits.
    pub(super) fn observe(
        &self,
        live: Revision,
        chunk: &Chunk,
        selected: &[u32],
        verdicts: impl FnOnce() -> ChunkVerdicts,
    ) {
        if !self.is_taken.load(Ordering::Relaxed) {
            return;
        }
        let taken = self.shadow.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((shadow, thread)) = taken.filter(|(shadow, _)| shadow.live == live) else { return };
        let is_tired = || Instant::now() < *shadow.rested.lock().unwrap_or_else(PoisonError::into_inner);
        if is_tired() || shadow.is_busy.swap(true, Ordering::AcqRel) {
            return shadow.skip(selected.len());
        }
        let (chunk, selected) = (chunk.clone(), selected.to_vec());
        let observation = Observation { shadow: shadow.clone(), chunk, selected, live: verdicts() };
        if let Err(refused) = thread.try_send(observation) {
            shadow.skip(refused.into_inner().selected.len());
            shadow.is_busy.store(false, Ordering::Release);
        }
    }
}

/// Which slot: pipeline, stage and name.
type Key = (String, Stage, Arc<str>);

/// The shadows of the process.
pub(super) struct Shadows {
    slots: Mutex<HashMap<Key, Weak<ShadowSlot>>>,
    /// Started with the first shadow.
    thread: Mutex<Option<Sender<Observation>>>,
    /// How many there are.
    count: Arc<AtomicUsize>,
    share: f64,
}

impl std::fmt::Debug for Shadows {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shadows").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Shadows {
    /// None yet; all of them will have this share of one core.
    pub(super) fn new(share: f64) -> Self {
        Self { slots: Mutex::default(), thread: Mutex::default(), count: Arc::default(), share }
    }

    /// The slot of a module, shared by all chains of a pipeline that have a module of its name.
    pub(super) fn slot(&self, pipeline: &str, stage: Stage, name: &Arc<str>) -> Arc<ShadowSlot> {
        let key = (pipeline.to_owned(), stage, name.clone());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = slots.get(&key).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(ShadowSlot::default());
        slots.insert(key, Arc::downgrade(&slot));
        slot
    }

    /// Runs `shadow` beside `live`, which a chain of the pipeline has. The comparison begins anew unless
    /// these two are compared already.
    pub(super) fn set(
        &self,
        pipeline: &str,
        live: &Module,
        shadow: SingleModule,
        metrics: &WasmMetrics,
    ) -> std::io::Result<()> {
        let ModuleIdentity { name, stage, revision } = live.identity();
        let slot = self.slot(pipeline, *stage, name);
        let mut taken = slot.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, _)) = &*taken
            && known.live == *revision
            && known.module.module().identity().revision == shadow.module().identity().revision
        {
            return Ok(());
        }
        let thread = self.thread()?;
        self.count.fetch_add(1, Ordering::Relaxed);
        let shadow = Shadow {
            live: *revision,
            comparison: Mutex::new(Comparison::new(live, shadow.module())),
            module: shadow,
            skipped: AtomicU64::new(0),
            is_busy: AtomicBool::new(false),
            rested: Mutex::new(Instant::now()),
            metrics: metrics.shadow(pipeline, name),
            count: self.count.clone(),
        };
        *taken = Some((Arc::new(shadow), thread));
        slot.is_taken.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the shadow of a module, if it has one.
    pub(super) fn unset(&self, pipeline: &str, stage: Stage, name: &Arc<str>) {
        let slot = self.slot(pipeline, stage, name);
        slot.is_taken.store(false, Ordering::Relaxed);
        slot.shadow.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// How the shadow of a module compares; none where it has none.
    pub(super) fn report(&self, pipeline: &str, stage: Stage, name: &Arc<str>) -> Option<ShadowReport> {
        let slot = self.slot(pipeline, stage, name);
        let taken = slot.shadow.lock().unwrap_or_else(PoisonError::into_inner).clone();
        taken.map(|(shadow, _)| shadow.report())
    }

    fn thread(&self) -> std::io::Result<Sender<Observation>> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*thread {
            return Ok(thread.clone());
        }
        let (sender, queue) = bounded(QUEUE);
        let share = self.share;
        std::thread::Builder::new().name("wasm-shadow".into()).spawn(move || run(&queue, share))?;
        Ok(thread.insert(sender).clone())
    }
}

/// Ends when the last shadow and the registry are gone.
fn run(queue: &Receiver<Observation>, share: f64) {
    for observation in queue {
        let started = Instant::now();
        let shadow = observation.shadow.clone();
        shadow.run(&observation);
        // It takes time, too, to free what was copied.
        drop(observation);
        let rest = rest(started.elapsed(), shadow.count.load(Ordering::Relaxed), share);
        *shadow.rested.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + rest;
        shadow.is_busy.store(false, Ordering::Release);
    }
}

/// How long a shadow rests after it took `elapsed`, so that `count` of them take `share` of a core.
fn rest(elapsed: Duration, count: usize, share: f64) -> Duration {
    elapsed.mul_f64((count.max(1) as f64 / share - 1.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadows_rest_for_what_they_took_beyond_their_share() {
        let second = Duration::from_secs(1);
        assert_eq!(rest(second, 1, 0.5), second);
        assert_eq!(rest(second, 1, 0.1), second * 9);
        assert_eq!(rest(second, 3, 0.1), second * 29);
        assert_eq!(rest(second, 1, 1.0), Duration::ZERO);
        assert_eq!(rest(second, 0, 1.0), Duration::ZERO);
    }

    #[test]
    fn chains_of_a_pipeline_share_a_modules_slot_while_one_lives() {
        let shadows = Shadows::new(0.1);
        let rules: Arc<str> = "rules".into();
        let slot = shadows.slot("purchases", Stage::Validate, &rules);
        assert!(Arc::ptr_eq(&slot, &shadows.slot("purchases", Stage::Validate, &rules)));
        assert!(!Arc::ptr_eq(&slot, &shadows.slot("purchases", Stage::Map, &rules)));
        drop(slot);
        shadows.slot("other", Stage::Validate, &rules);
        assert_eq!(shadows.slots.lock().unwrap().len(), 1);
    }
}
