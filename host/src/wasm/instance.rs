//! Instances: one guest in one store, from start to its only call.
//!
//! An instance is made, initialised, called once and dropped. `chain.rs` says why. Whatever ends a
//! call early is turned into a [`Refusal`] here: which of trap, timeout, memory or bad answer it was.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use crate::domain::answer::{
    Answer, Fault, GuestRejection, OUT_OF_MEMORY, Refusal, TIMEOUT, check_mapped, check_rejections,
};
use crate::domain::chunk::Chunk;
use crate::domain::verdict::{OutputRows, RejectionKind};

use super::bindings::{mapper, types, validator};
use super::engine::{WasmEngine, ticks};
use super::limits::{InstanceLimiter, Limits, Refused};
use super::log::ModuleLog;
use super::module::{Module, Program};

/// Why an instance did not come up.
#[derive(Debug)]
pub(super) enum StartFault {
    /// The pool or the machine had nothing left. Not the module's fault: try again.
    Host(String),
    /// It cannot be put together: other types than the contract's, or too many parts.
    Unfit(String),
    /// The module answered its settings with an error.
    Refused(String),
    /// It trapped, took too long or wanted too much memory.
    Failed(Refusal),
}

/// Why a call gave no answer.
#[derive(Debug)]
pub(super) enum CallFault {
    /// The machine had no memory left that the guest may have. Not the module's fault: try again.
    Host(String),
    /// The guest's doing, on one of the records.
    Guest(Fault),
}

/// What the store of one instance holds.
pub(super) struct InstanceState {
    pub(super) limiter: InstanceLimiter,
    log: Option<Arc<ModuleLog>>,
}

impl InstanceState {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { limiter: InstanceLimiter::new(limits), log: None }
    }

    /// Where the guest's lines go; `None`: nowhere.
    pub(super) fn log(&self) -> Option<&Arc<ModuleLog>> {
        self.log.as_ref()
    }
}

/// A guest that is ready for its call.
pub(super) enum Instance {
    Validator(Store<InstanceState>, validator::Validator),
    Mapper(Store<InstanceState>, mapper::Mapper),
}

impl Instance {
    /// Makes a new instance and calls its `init`, all within `timeout`. For a mapper answers the
    /// outputs that it declares too. What `init` says goes to `log`.
    pub(super) fn start(
        engine: &WasmEngine,
        program: &Program,
        settings: &str,
        limits: &Limits,
        timeout: Duration,
        log: Option<Arc<ModuleLog>>,
    ) -> Result<(Self, Vec<types::Output>), StartFault> {
        let mut store = engine.store(limits, timeout);
        store.data_mut().log = log;
        match program {
            Program::Validator(pre) => {
                let guest = pre
                    .instantiate(&mut store)
                    .map_err(|error| start_fault(&store, &error, limits, timeout))?;
                guest
                    .sluice_module_validate()
                    .call_init(&mut store, settings)
                    .map_err(|error| start_fault(&store, &error, limits, timeout))?
                    .map_err(StartFault::Refused)?;
                Ok((Self::Validator(store, guest), Vec::new()))
            }
            Program::Mapper(pre) => {
                let guest = pre
                    .instantiate(&mut store)
                    .map_err(|error| start_fault(&store, &error, limits, timeout))?;
                let outputs = guest
                    .sluice_module_map()
                    .call_init(&mut store, settings)
                    .map_err(|error| start_fault(&store, &error, limits, timeout))?
                    .map_err(StartFault::Refused)?;
                Ok((Self::Mapper(store, guest), outputs))
            }
        }
    }

    /// Hands the records of `chunk` at `selected` to the guest and checks what it says. Lines for the
    /// log go to `log`.
    pub(super) fn call(
        self,
        module: &Module,
        chunk: &Chunk,
        selected: &[u32],
        timeout: Duration,
        log: Option<Arc<ModuleLog>>,
    ) -> Result<Answer, CallFault> {
        let limits = module.limits();
        let records = records(chunk);
        match self {
            Self::Validator(mut store, guest) => {
                begin(&mut store, timeout, log);
                let rejections = guest
                    .sluice_module_validate()
                    .call_validate(&mut store, records, selected)
                    .map_err(|error| failed_call(&store, &error, limits, timeout))?;
                let rejections = rejections.into_iter().map(GuestRejection::from);
                check_rejections(selected, rejections).map_err(CallFault::Guest)
            }
            Self::Mapper(mut store, guest) => {
                begin(&mut store, timeout, log);
                let mapped = guest
                    .sluice_module_map()
                    .call_map(&mut store, records, selected)
                    .map_err(|error| failed_call(&store, &error, limits, timeout))?;
                let outputs = mapped.outputs.into_iter().map(OutputRows::from).collect();
                let rejections = mapped.rejections.into_iter().map(GuestRejection::from);
                check_mapped(module.outputs(), limits.answer(), selected, outputs, rejections)
                    .map_err(CallFault::Guest)
            }
        }
    }
}

impl From<types::Rejection> for GuestRejection {
    fn from(types::Rejection { index, code, field, reason }: types::Rejection) -> Self {
        Self { index, code, field, reason }
    }
}

impl From<types::Rows> for OutputRows {
    fn from(types::Rows { bytes, row_ends, rows_per_record }: types::Rows) -> Self {
        Self { bytes, row_ends, rows_per_record }
    }
}

fn begin(store: &mut Store<InstanceState>, timeout: Duration, log: Option<Arc<ModuleLog>>) {
    store.data_mut().limiter.begin_call();
    store.data_mut().log = log;
    store.set_epoch_deadline(ticks(timeout));
}

/// The chunk's columns, as the contract names them.
fn records(chunk: &Chunk) -> types::Records<'_> {
    types::Records {
        topic: &chunk.topic,
        partition: chunk.partition.cast_unsigned(),
        base_offset: chunk.base_offset.cast_unsigned(),
        offset_deltas: &chunk.offset_deltas,
        timestamps: &chunk.timestamps,
        payloads: &chunk.payloads.bytes,
        payload_ends: &chunk.payloads.ends,
        payload_nulls: &chunk.payloads.nulls,
        keys: &chunk.keys.bytes,
        key_ends: &chunk.keys.ends,
        key_nulls: &chunk.keys.nulls,
        header_ends: &chunk.header_ends,
        header_names: &chunk.header_names.bytes,
        header_name_ends: &chunk.header_names.ends,
        header_values: &chunk.header_values.bytes,
        header_value_ends: &chunk.header_values.ends,
        header_value_nulls: &chunk.header_values.nulls,
    }
}

fn start_fault(
    store: &Store<InstanceState>,
    error: &wasmtime::Error,
    limits: &Limits,
    timeout: Duration,
) -> StartFault {
    if let Some(failure) = store.data().limiter.host_failure() {
        StartFault::Host(failure.to_owned())
    } else if error.is::<Trap>() || store.data().limiter.refused().is_some() {
        StartFault::Failed(refusal(store, error, limits, timeout))
    } else if error.is::<PoolConcurrencyLimitError>() || error.is::<std::io::Error>() {
        StartFault::Host(format!("{error:#}"))
    } else {
        StartFault::Unfit(format!("{error:#}"))
    }
}

fn failed_call(
    store: &Store<InstanceState>,
    error: &wasmtime::Error,
    limits: &Limits,
    timeout: Duration,
) -> CallFault {
    match store.data().limiter.host_failure() {
        Some(failure) => CallFault::Host(failure.to_owned()),
        None => CallFault::Guest(refusal(store, error, limits, timeout).into()),
    }
}

/// Which kind of failure ended a call.
fn refusal(
    store: &Store<InstanceState>,
    error: &wasmtime::Error,
    limits: &Limits,
    timeout: Duration,
) -> Refusal {
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::Interrupt) {
        return Refusal::new(
            RejectionKind::Timeout,
            TIMEOUT,
            format!("no answer within {} ms", timeout.as_millis()),
        );
    }
    // A guest that is refused memory usually aborts, and an abort is a trap like any other.
    match store.data().limiter.refused() {
        Some(Refused::Memory(bytes)) => {
            return Refusal::new(
                RejectionKind::Memory,
                OUT_OF_MEMORY,
                format!("asked for {bytes} bytes of memory; the limit is {}", limits.memory_bytes),
            );
        }
        Some(Refused::Table(elements)) => {
            return Refusal::new(
                RejectionKind::Memory,
                OUT_OF_MEMORY,
                format!("asked for {elements} table elements; the limit is {}", limits.table_elements),
            );
        }
        None => {}
    }
    match trap {
        Some(
            Trap::InvalidChar
            | Trap::StringOutOfBounds
            | Trap::ListOutOfBounds
            | Trap::InvalidDiscriminant
            | Trap::UnalignedPointer,
        )
        | None => not_an_answer(error, limits),
        Some(trap) => Refusal::new(RejectionKind::Trap, "trap", trap.to_string()),
    }
}

/// The guest returned, but what it returned could not be read.
fn not_an_answer(error: &wasmtime::Error, limits: &Limits) -> Refusal {
    // wasmtime has no type for this error; the test `gigantic_output` holds the words.
    let reason = error.root_cause().to_string();
    if reason.contains("fuel allocated for hostcalls") {
        return Refusal::new(
            RejectionKind::BadRow,
            "output_too_large",
            format!("the answer is larger than {} bytes", limits.answer_bytes()),
        );
    }
    Refusal::new(RejectionKind::BadRow, "bad_answer", format!("the answer cannot be read: {reason}"))
}
