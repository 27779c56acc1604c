//! Engine: the one wasmtime engine of the process, its pool of instance slots and its clock.
//!
//! State: the engine, and a thread that advances its epoch every [`TICK`] and ends once the engine
//! is gone (it holds it weakly). Guest code compares the epoch with its deadline at every loop and
//! function entry, which is what stops an endless loop; it costs about a fifth of the guest's speed.
//!
//! Invariant: what a guest computes depends on nothing but its input. NaNs and relaxed SIMD are
//! canonical, threads are off, and the one import that is linked gives nothing back (`log.rs`).

use std::time::{Duration, Instant};

use wasmtime::component::Component;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

use super::compiler::Compiler;
use super::instance::InstanceState;
use super::limits::{Limits, MEMORIES, POOL_MEMORY_BYTES, POOL_TABLE_ELEMENTS, TABLES};
use super::metrics::CompileMetrics;
use super::module::ModuleFault;

/// How often the epoch advances: the resolution of call timeouts.
pub const TICK: Duration = Duration::from_millis(5);

/// Bytes that an instance wrote which stay mapped, set back to their first contents, for the next in
/// its slot. A full chunk writes some hundred pages, and a page fault costs more than the copy that
/// it is for. A module's boundary, for records of 405 bytes: with 64 KiB 222 ns a record, with 1 MiB
/// 52, with 2 or 4 MiB 44 to 47 (a debug build of wasmtime; 33 in a release build with 2 MiB). A slot
/// that was used holds on to so much memory, and as many are used as workers times modules.
const KEEP_RESIDENT: usize = 2 << 20;
/// The same before Linux 6.7, which cannot tell the pages that were written: there the first bytes
/// are set back whether written or not, and in most guests they are stack that never was.
const KEEP_RESIDENT_BLINDLY: usize = 64 << 10;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The pool did not fit, or this machine lacks something.
    #[error(
        "cannot prepare {slots} wasm instance slots (about {gibibytes} GiB of address space, not of memory): \
         {reason}; raise `ulimit -v`, or run fewer workers"
    )]
    Pool {
        /// Slots asked for.
        slots: u32,
        /// Address space that they need.
        gibibytes: u64,
        /// wasmtime's own words.
        reason: String,
    },
    /// The thread that advances the epoch did not start.
    #[error("cannot start the thread that times wasm calls: {0}; raise the limit of threads")]
    Ticker(std::io::Error),
}

/// The process's wasm engine. Cheap to clone; make one.
#[derive(Clone)]
pub struct WasmEngine {
    engine: Engine,
    slots: u32,
    compiler: Compiler,
    metrics: Option<CompileMetrics>,
}

impl std::fmt::Debug for WasmEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("WasmEngine").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl WasmEngine {
    /// An engine for `workers` worker threads, which compiles in this process. A worker has one instance
    /// at a time; the pool has room for four each, and for modules on trial beside them.
    pub fn new(workers: usize) -> Result<Self, EngineError> {
        let slots = u32::try_from(workers).unwrap_or(u32::MAX).saturating_mul(4).saturating_add(24).min(4096);
        let engine = Engine::new(&config(slots)).map_err(|error| EngineError::Pool {
            slots,
            gibibytes: u64::from(slots) * (POOL_MEMORY_BYTES as u64 >> 30),
            reason: format!("{error:#}"),
        })?;
        let weak = engine.weak();
        std::thread::Builder::new()
            .name("wasm-ticker".into())
            .spawn(move || {
                while let Some(engine) = weak.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            })
            .map_err(EngineError::Ticker)?;
        Ok(Self { engine, slots, compiler: Compiler::in_process(), metrics: None })
    }

    /// The same engine, whose modules are compiled by `compiler`.
    #[must_use]
    pub fn with_compiler(self, compiler: Compiler) -> Self {
        Self { compiler, ..self }
    }

    /// The same engine, which counts what it compiles.
    pub(super) fn counting(self, metrics: CompileMetrics) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    /// Compiles a module's file; a tenth of a second for one of 150 KB. Not for a worker thread.
    pub(super) fn compile(&self, file: &[u8], limits: &Limits) -> Result<Component, ModuleFault> {
        let started = Instant::now();
        let (component, source) = self.compiler.component(&self.engine, file, limits)?;
        if let Some(metrics) = &self.metrics {
            metrics.compiled(source, started.elapsed());
        }
        Ok(component)
    }

    /// A store for one instance, held to `limits`, whose code is stopped after `timeout`.
    pub(super) fn store(&self, limits: &Limits, timeout: Duration) -> Store<InstanceState> {
        let mut store = Store::new(&self.engine, InstanceState::new(limits));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.answer_bytes());
        store.epoch_deadline_trap();
        store.set_epoch_deadline(ticks(timeout));
        store
    }

    /// The engine underneath.
    pub(super) fn inner(&self) -> &Engine {
        &self.engine
    }
}

/// Ticks after which `timeout` has certainly passed: the tick that is under way counts for nothing.
pub(super) fn ticks(timeout: Duration) -> u64 {
    let whole = timeout.as_nanos().div_ceil(TICK.as_nanos());
    u64::try_from(whole).unwrap_or(u64::MAX / 2).saturating_add(1)
}

fn config(slots: u32) -> Config {
    let keep_resident = if PoolingAllocationConfig::is_pagemap_scan_available() {
        KEEP_RESIDENT
    } else {
        KEEP_RESIDENT_BLINDLY
    };
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(8))
        .total_memories(slots)
        .total_tables(slots.saturating_mul(4))
        .max_memories_per_component(MEMORIES as u32)
        .max_tables_per_component(TABLES as u32)
        .max_memory_size(POOL_MEMORY_BYTES)
        .table_elements(POOL_TABLE_ELEMENTS)
        .max_unused_warm_slots(slots)
        .linear_memory_keep_resident(keep_resident)
        .table_keep_resident(KEEP_RESIDENT_BLINDLY)
        .pagemap_scan(Enabled::Auto);
    let mut config = settings();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Settings of an engine that only compiles: what it makes runs on a [`WasmEngine`]. It has no pool, whose
/// address space it does not need, and one thread, for what it may take is limited.
pub(super) fn compile_settings() -> Config {
    let mut config = settings();
    config.parallel_compilation(false);
    config
}

/// What the code depends on.
fn settings() -> Config {
    let mut config = Config::new();
    config
        // It costs 340 ns a call, and no module waits for anything.
        .concurrency_support(false)
        .epoch_interruption(true)
        // Guests are stripped, so a backtrace would say nothing and make every trap dearer.
        .wasm_backtrace_max_frames(None)
        // Not bounded by the reserved address space, and so slow and hard to limit.
        .wasm_memory64(false)
        // The same verdict on every host, whatever its processor.
        .relaxed_simd_deterministic(true)
        .cranelift_nan_canonicalization(true);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_never_shorter_than_asked_for() {
        assert_eq!(ticks(Duration::ZERO), 1);
        assert_eq!(ticks(Duration::from_millis(1)), 2);
        assert_eq!(ticks(Duration::from_millis(5)), 2);
        assert_eq!(ticks(Duration::from_secs(1)), 201);
        assert!(ticks(Duration::MAX) > 0);
    }

    #[test]
    fn what_one_that_only_compiles_makes_runs_here() {
        struct Bytes(Vec<u8>);
        impl std::hash::Hasher for Bytes {
            fn write(&mut self, bytes: &[u8]) {
                self.0.extend_from_slice(bytes);
            }

            fn finish(&self) -> u64 {
                0
            }
        }
        let needs = |engine: &Engine| {
            let mut bytes = Bytes(Vec::new());
            std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut bytes);
            bytes.0
        };
        let only_compiles = Engine::new(&compile_settings()).unwrap();
        let runs = WasmEngine::new(1).unwrap();
        assert!(!needs(&only_compiles).is_empty());
        assert_eq!(needs(&only_compiles), needs(runs.inner()));
    }

    #[test]
    fn the_ticker_ends_with_the_engine() {
        let engine = WasmEngine::new(1).unwrap();
        let weak = engine.inner().weak();
        drop(engine);
        // The ticker may hold it for the length of one increment.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while weak.upgrade().is_some() {
            assert!(std::time::Instant::now() < deadline, "something still holds the engine");
            std::thread::sleep(TICK);
        }
    }
}
