//! Metrics of the chain: how long modules take, how often they are called, how they fail; and of compiling.
//!
//! Labels are bounded: pipelines and modules come from the configuration and the folders, kinds
//! from [`RejectionKind`], sources from [`CodeSource`].

use std::time::Duration;

use prometheus::core::{AtomicF64, AtomicU64, GenericCounter};
use prometheus::{
    Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
    exponential_buckets,
};

use crate::domain::verdict::RejectionKind;
use crate::pipeline::modules::ShadowReport;

use super::compiler::CodeSource;

/// Kinds of failure of a call; the other kinds are verdicts, not failures.
const FAULTS: [RejectionKind; 4] =
    [RejectionKind::Trap, RejectionKind::Timeout, RejectionKind::Memory, RejectionKind::BadRow];

/// The chain's metrics in one registry.
#[derive(Clone, Debug)]
pub struct WasmMetrics {
    seconds: CounterVec,
    calls: IntCounterVec,
    faults: IntCounterVec,
    /// Of modules that are run to see what they say, and not for the stream.
    hidden: ModuleMetrics,
    unjudged: IntCounterVec,
    log_lines_dropped: IntCounterVec,
    shadows: IntCounterVec,
    compiling: CompileMetrics,
}

impl WasmMetrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When the registry has metrics of the same name already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["pipeline", "module"];
        let metrics = Self {
            seconds: CounterVec::new(
                Opts::new(
                    "sluice_module_seconds_total",
                    "Time spent in a module, making its instances included",
                ),
                &labels,
            )?,
            calls: IntCounterVec::new(
                Opts::new("sluice_module_calls_total", "Calls of a module; normally one a chunk"),
                &labels,
            )?,
            faults: IntCounterVec::new(
                Opts::new(
                    "sluice_module_faults_total",
                    "Calls of a module that ended in a trap, a timeout, too much memory or a bad answer",
                ),
                &["pipeline", "module", "kind"],
            )?,
            hidden: ModuleMetrics::hidden()?,
            unjudged: IntCounterVec::new(
                Opts::new(
                    "sluice_module_unjudged_total",
                    "Records refused without being run, since the module had used up their chunk's time",
                ),
                &labels,
            )?,
            log_lines_dropped: IntCounterVec::new(
                Opts::new(
                    "sluice_module_log_lines_dropped_total",
                    "Lines of a module that are not in the log, since it wrote too many",
                ),
                &labels,
            )?,
            shadows: IntCounterVec::new(
                Opts::new(
                    "sluice_shadow_records_total",
                    "Records that a module's shadow was to judge, by how it differs from the live revision",
                ),
                &["pipeline", "module", "difference"],
            )?,
            compiling: CompileMetrics::register(registry)?,
        };
        registry.register(Box::new(metrics.seconds.clone()))?;
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.faults.clone()))?;
        registry.register(Box::new(metrics.shadows.clone()))?;
        registry.register(Box::new(metrics.unjudged.clone()))?;
        registry.register(Box::new(metrics.log_lines_dropped.clone()))?;
        Ok(metrics)
    }

    /// Of compiling.
    pub(super) fn compiling(&self) -> CompileMetrics {
        self.compiling.clone()
    }

    /// Counters that nobody sees.
    pub(super) fn hidden(&self) -> ModuleMetrics {
        self.hidden.clone()
    }

    /// The counters of a module's shadow, looked up once.
    pub(super) fn shadow(&self, pipeline: &str, module: &str) -> ShadowMetrics {
        ShadowMetrics(
            DIFFERENCES
                .map(|(difference, _)| self.shadows.with_label_values(&[pipeline, module, difference])),
        )
    }

    /// The counters of one module, looked up once.
    pub(super) fn module(&self, pipeline: &str, module: &str) -> ModuleMetrics {
        ModuleMetrics {
            seconds: self.seconds.with_label_values(&[pipeline, module]),
            calls: self.calls.with_label_values(&[pipeline, module]),
            faults: FAULTS
                .map(|kind| (kind, self.faults.with_label_values(&[pipeline, module, kind.as_str()]))),
            unjudged: self.unjudged.with_label_values(&[pipeline, module]),
            log_lines_dropped: self.log_lines_dropped.with_label_values(&[pipeline, module]),
        }
    }
}

/// Times of compiling, by where the code came from.
#[derive(Clone, Debug)]
pub(super) struct CompileMetrics([(CodeSource, Histogram); CodeSource::ALL.len()]);

impl CompileMetrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        // From half a millisecond, for the cache, to half a minute.
        let options = HistogramOpts::new(
            "sluice_module_compile_seconds",
            "Time from a module's bytes to code that can run, where that succeeded, by where the code came from",
        )
        .buckets(exponential_buckets(0.0005, 4.0, 9)?);
        let seconds = HistogramVec::new(options, &["source"])?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Self(CodeSource::ALL.map(|source| (source, seconds.with_label_values(&[source.as_str()])))))
    }

    /// Counts a module whose code is there.
    pub(super) fn compiled(&self, source: CodeSource, elapsed: Duration) {
        if let Some((_, seconds)) = self.0.iter().find(|(other, _)| *other == source) {
            seconds.observe(elapsed.as_secs_f64());
        }
    }
}

/// One number of a report.
type Number = fn(&ShadowReport) -> u64;

/// Kinds of difference, and where a report has their numbers.
const DIFFERENCES: [(&str, Number); 7] = [
    ("same", |report| report.same),
    ("newly_rejected", |report| report.newly_rejected),
    ("newly_accepted", |report| report.newly_accepted),
    ("other_code", |report| report.other_code),
    ("other_rows", |report| report.other_rows),
    ("faults", |report| report.faults),
    ("skipped", |report| report.skipped),
];

/// The counters of one shadow.
#[derive(Clone, Debug)]
pub(super) struct ShadowMetrics([GenericCounter<AtomicU64>; DIFFERENCES.len()]);

impl ShadowMetrics {
    /// Counts what a report has more than the one before.
    pub(super) fn compared(&self, before: &ShadowReport, now: &ShadowReport) {
        for (counter, (_, number)) in self.0.iter().zip(DIFFERENCES) {
            counter.inc_by(number(now).saturating_sub(number(before)));
        }
    }

    /// Counts records that the shadow was not shown.
    pub(super) fn skipped(&self, records: u64) {
        let skipped = ShadowReport { skipped: records, ..ShadowReport::default() };
        self.compared(&ShadowReport::default(), &skipped);
    }
}

/// The counters of one module.
#[derive(Clone, Debug)]
pub(super) struct ModuleMetrics {
    pub(super) seconds: GenericCounter<AtomicF64>,
    pub(super) calls: GenericCounter<AtomicU64>,
    pub(super) unjudged: GenericCounter<AtomicU64>,
    pub(super) log_lines_dropped: GenericCounter<AtomicU64>,
    faults: [(RejectionKind, GenericCounter<AtomicU64>); FAULTS.len()],
}

impl ModuleMetrics {
    fn hidden() -> Result<Self, prometheus::Error> {
        let faults = IntCounter::new("faults", "Calls that failed")?;
        Ok(Self {
            seconds: Counter::new("seconds", "Time spent")?,
            calls: IntCounter::new("calls", "Calls")?,
            unjudged: IntCounter::new("unjudged", "Records refused without being run")?,
            log_lines_dropped: IntCounter::new("log_lines_dropped", "Lines that are not in the log")?,
            faults: FAULTS.map(|kind| (kind, faults.clone())),
        })
    }

    /// Counts a call that failed.
    pub(super) fn fault(&self, kind: RejectionKind) {
        if let Some((_, counter)) = self.faults.iter().find(|(fault, _)| *fault == kind) {
            counter.inc();
        }
    }
}
