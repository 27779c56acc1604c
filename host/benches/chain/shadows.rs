//! The purchase chain with a shadow beside each of its modules, which is the very file that is live, and the
//! comparison of two revisions on its own.
//!
//! State: of a chain, how many records its shadows were to judge, and what was seen of them while it was timed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sluice::domain::chunk::Chunk;
use sluice::domain::verdict::{ChunkVerdicts, Stage};
use sluice::pipeline::modules::ShadowReport;
use sluice::pipeline::ports::{Chain, ChainRunner, ModuleIdentity};
use sluice::wasm::{Comparison, ModuleRegistry, WasmChain};

use super::{PIPELINE, processor_time_of_others, purchase_chain, registry, timed};

/// Records that shadows were to judge, and the time that went by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    compared: u64,
    skipped: u64,
    /// By the clock on the wall.
    passed: Duration,
    /// Of all threads but the worker's.
    others: Duration,
}

impl Seen {
    /// Part of the records that were compared; the others were skipped.
    pub(super) fn compared(&self) -> f64 {
        self.compared as f64 / (self.compared + self.skipped) as f64
    }

    /// What the other threads took, as a part of one core.
    pub(super) fn cores(&self) -> f64 {
        self.others.as_secs_f64() / self.passed.as_secs_f64()
    }
}

/// The purchase chain, a validator and a mapper, with a shadow beside each.
pub(super) struct Shadowed {
    registry: ModuleRegistry,
    chain: WasmChain,
    runner: Box<dyn ChainRunner>,
    /// Records that the chain has handed to its shadows or has not, both shadows together.
    judged: u64,
    seen: Seen,
}

impl Shadowed {
    /// With the share of time that the registry gives to shadows.
    pub(super) fn new(registry: ModuleRegistry) -> Self {
        let chain = purchase_chain(&registry);
        for live in chain.loaded() {
            registry.shadow(PIPELINE, live, live.clone()).expect("a thread for shadows");
        }
        Self { runner: chain.runner(), registry, chain, judged: 0, seen: Seen::default() }
    }

    /// Runs the chain. Answers the number of records.
    pub(super) fn run_all(&mut self, chunks: &[Chunk]) -> usize {
        let mut records = 0;
        for chunk in chunks {
            let verdicts = black_box(self.runner.run(chunk));
            let refused = verdicts.rejections.iter().filter(|(_, refused)| refused.stage == Stage::Validate);
            // The mapper and its shadow get what the validator accepts.
            self.judged += (2 * chunk.len() - refused.count()) as u64;
            records += chunk.len();
        }
        records
    }

    /// The same, timed, and remembers how many records the shadows were shown meanwhile.
    pub(super) fn observe(&mut self, run: impl FnOnce(&mut Self) -> usize) -> (usize, Duration) {
        let (before, started, others) = (self.reports(), Instant::now(), processor_time_of_others());
        let measured = timed(|| run(self));
        self.seen.others += processor_time_of_others().saturating_sub(others);
        self.seen.passed += started.elapsed();
        let after = self.reports();
        let total = |reports: &[ShadowReport], number: fn(&ShadowReport) -> u64| -> u64 {
            reports.iter().map(number).sum()
        };
        let more = |number| total(&after, number) - total(&before, number);
        self.seen.compared += more(|report| report.records);
        self.seen.skipped += more(|report| report.skipped);
        measured
    }

    /// What was seen of the shadows while [`Self::observe`] ran.
    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    /// Waits until the shadows are done with what they were shown.
    pub(super) fn settle(&self) {
        let done = || -> u64 { self.reports().iter().map(|report| report.records + report.skipped).sum() };
        while done() < self.judged {
            // Not asleep: the caches are to be as warm as those of a worker that goes on.
            std::thread::yield_now();
        }
        // What it says is the last thing but one that the thread does before it takes the next.
        std::thread::sleep(Duration::from_micros(50));
    }

    fn reports(&self) -> Vec<ShadowReport> {
        let report = |live: &ModuleIdentity| {
            self.registry.shadow_report(PIPELINE, live.stage, &live.name).expect("it has a shadow")
        };
        self.chain.modules().iter().map(report).collect()
    }
}

/// What two revisions of the mapper say of the same chunks.
pub(super) struct Both {
    comparison: Comparison,
    chunks: Vec<(Chunk, Vec<u32>, ChunkVerdicts, ChunkVerdicts)>,
}

impl Both {
    /// The other revision says the same, or gives rows of which each `is_another`.
    pub(super) fn new(chunks: &[Chunk], is_another: bool) -> Self {
        let registry = registry();
        let mapper = purchase_chain(&registry).loaded().last().expect("the mapper").clone();
        let single = registry.single(mapper.clone());
        let both = chunks.iter().map(|chunk| {
            let all: Vec<u32> = (0..chunk.len() as u32).collect();
            let live = single.run(chunk, &all);
            let mut other = live.clone();
            let rows = &mut other.outputs[0];
            let ends = rows.row_ends.iter().map(|end| *end as usize);
            for start in [0].into_iter().chain(ends).take(rows.row_ends.len()).filter(|_| is_another) {
                // The purchase's name, its length first; after it the buyer.
                let buyer = start + 1 + usize::from(rows.bytes[start]);
                rows.bytes[buyer] ^= 1;
            }
            (chunk.clone(), all, live, other)
        });
        Self { comparison: Comparison::new(&mapper, &mapper), chunks: both.collect() }
    }

    /// Compares it all. Answers the number of records.
    pub(super) fn compare(&mut self) -> usize {
        for (chunk, selected, live, other) in &self.chunks {
            self.comparison.add_chunk(chunk, selected, black_box(live), black_box(other));
        }
        self.chunks.iter().map(|(chunk, ..)| chunk.len()).sum()
    }
}
