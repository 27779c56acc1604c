//! Limits: what a module may take, and the limiter that holds one instance to it.
//!
//! State: [`InstanceLimiter`] lives in the store of one instance and adds up all its linear
//! memories and tables, so that a component cannot take its limit once a memory. It remembers that
//! it refused something: a trap that follows is the memory limit's doing, not a bug on its own.

use std::collections::BTreeMap;
use std::time::Duration;

use wasmtime::ResourceLimiter;

use crate::domain::answer::AnswerLimits;

use super::engine::TICK;

/// Table elements that every slot of the pool has room for; no limit may be above.
pub(super) const POOL_TABLE_ELEMENTS: usize = 65_536;
/// Linear memory that every slot of the pool has room for; no limit may be above.
pub(super) const POOL_MEMORY_BYTES: usize = 1 << 32;
/// Linear memories of one component. Compilers make one; componentize-py makes two.
pub(super) const MEMORIES: usize = 4;
/// Tables of one component.
pub(super) const TABLES: usize = 32;
/// Largest module file that may be allowed.
pub(super) const LARGEST_FILE: usize = 1 << 30;
/// Memory that compiling may be allowed: with less than the first, hardly a module compiles.
const COMPILE_MEMORY: std::ops::RangeInclusive<usize> = 64 << 20..=64 << 30;
/// Longest time that compiling may be allowed, and the shortest: the system counts in seconds.
const COMPILE_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// Longest time that a call may be allowed.
const LONGEST_CALL_TIMEOUT: Duration = Duration::from_secs(600);
/// A chunk's rows keep 32-bit ends even where each record gives as much as it may.
const LARGEST_OUTPUT_PER_RECORD: usize = (u32::MAX as usize) / crate::domain::chunk::MAXIMUM_RECORDS;

/// What one module may take. A limit of a call costs the record that violates it, never its neighbours;
/// the others cost the module: it is not taken, and what ran before goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of linear memory of one instance, all its memories together.
    pub memory_bytes: usize,
    /// Longest time of one call: for a whole chunk (normally one or two milliseconds) or, where
    /// that fails, for a single record. `chain.rs` says when a record is blamed.
    pub call_timeout: Duration,
    /// Largest module file in bytes.
    pub file_bytes: usize,
    /// Bytes of all rows of one record, all outputs together.
    pub output_bytes_per_record: usize,
    /// Rows of one record in one output.
    pub rows_per_record: u32,
    /// Elements of one instance's tables together.
    pub table_elements: usize,
    /// Core instances inside one module.
    pub instances: usize,
    /// Processor time of the process that compiles it, in whole seconds. Not the time that passes: a busy
    /// machine must not refuse a module.
    pub compile_timeout: Duration,
    /// Bytes of memory of that process.
    pub compile_memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            call_timeout: Duration::from_secs(1),
            file_bytes: 64 << 20,
            output_bytes_per_record: 1 << 20,
            rows_per_record: 10_000,
            table_elements: POOL_TABLE_ELEMENTS,
            instances: 32,
            compile_timeout: Duration::from_secs(60),
            compile_memory_bytes: 1 << 30,
        }
    }
}

/// What each module of a pipeline may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleLimits {
    /// Those that have none of their own.
    pub default: Limits,
    /// By the module's name.
    pub by_module: BTreeMap<String, Limits>,
}

impl From<Limits> for ModuleLimits {
    fn from(default: Limits) -> Self {
        Self { default, by_module: BTreeMap::new() }
    }
}

impl ModuleLimits {
    /// Those of a module.
    pub fn of(&self, module: &str) -> &Limits {
        self.by_module.get(module).unwrap_or(&self.default)
    }

    /// [`Limits::for_recovery`] of every module.
    pub fn for_recovery(&self) -> Self {
        let by_module = self.by_module.iter().map(|(name, limits)| (name.clone(), limits.for_recovery()));
        Self { default: self.default.for_recovery(), by_module: by_module.collect() }
    }
}

impl Limits {
    /// What is wrong with these limits, one sentence each, naming the field; empty when all is well.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut within = |field: &str, value: u64, least: u64, most: u64| {
            if value < least || value > most {
                problems.push(format!("{field} is {value}; set it to {least} to {most}"));
            }
        };
        within("memory_bytes", self.memory_bytes as u64, 1 << 16, POOL_MEMORY_BYTES as u64);
        within("file_bytes", self.file_bytes as u64, 1, LARGEST_FILE as u64);
        within(
            "output_bytes_per_record",
            self.output_bytes_per_record as u64,
            1,
            LARGEST_OUTPUT_PER_RECORD as u64,
        );
        within("rows_per_record", u64::from(self.rows_per_record), 1, 1_000_000);
        within("table_elements", self.table_elements as u64, 1, POOL_TABLE_ELEMENTS as u64);
        within("instances", self.instances as u64, 1, 1000);
        let (least, most) = COMPILE_MEMORY.into_inner();
        within("compile_memory", self.compile_memory_bytes as u64, least as u64, most as u64);
        if !(TICK * 2..=LONGEST_CALL_TIMEOUT).contains(&self.call_timeout) {
            problems.push(format!("call_timeout is {:?}; set it to 10ms to 600s", self.call_timeout));
        }
        if !COMPILE_TIMEOUT.contains(&self.compile_timeout) {
            problems.push(format!("compile_timeout is {:?}; set it to 1s to 600s", self.compile_timeout));
        }
        problems
    }

    /// The limits under which records are judged a second time: ten times the time, so that a slower
    /// machine does not refuse what the first run took, and no limit on the file and on compiling it, which
    /// were kept when it was archived. Everything else as it is, for it has a say in the verdicts.
    pub fn for_recovery(&self) -> Self {
        Self {
            call_timeout: self.call_timeout.saturating_mul(10).min(LONGEST_CALL_TIMEOUT),
            file_bytes: LARGEST_FILE,
            compile_timeout: *COMPILE_TIMEOUT.end(),
            compile_memory_bytes: *COMPILE_MEMORY.end(),
            ..self.clone()
        }
    }

    /// Whether a module that passed its trial within these passes it within `other`.
    pub(super) fn at_most(&self, other: &Self) -> bool {
        self.memory_bytes <= other.memory_bytes
            && self.call_timeout <= other.call_timeout
            && self.file_bytes <= other.file_bytes
            && self.table_elements <= other.table_elements
            && self.instances <= other.instances
    }

    /// Those of what a record gives.
    pub(super) fn answer(&self) -> AnswerLimits {
        let Self { rows_per_record, output_bytes_per_record, .. } = *self;
        AnswerLimits { rows_per_record, output_bytes_per_record }
    }

    /// Bytes that one answer may make the host allocate. Lists may overlap in the guest's memory, so
    /// that memory alone bounds nothing: a thousand reasons can all point at the same megabytes.
    pub(super) fn answer_bytes(&self) -> usize {
        self.memory_bytes.saturating_add(1 << 20)
    }
}

/// What a limiter refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// This many bytes of linear memory in all.
    Memory(usize),
    /// This many table elements in all.
    Table(usize),
}

/// Holds one instance to its limits; lives in its store.
#[derive(Debug)]
pub(super) struct InstanceLimiter {
    memory_limit: usize,
    table_limit: usize,
    instances: usize,
    memory: usize,
    table: usize,
    refused: Option<Refused>,
    host_failure: Option<String>,
}

impl InstanceLimiter {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory_limit: limits.memory_bytes,
            table_limit: limits.table_elements,
            instances: limits.instances,
            memory: 0,
            table: 0,
            refused: None,
            host_failure: None,
        }
    }

    /// Takes note that a new call begins: what was refused before is not its doing.
    pub(super) fn begin_call(&mut self) {
        self.refused = None;
    }

    /// The first thing refused in this call.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Why the machine could not give what the limits allow; that is nobody's fault in the guest.
    pub(super) fn host_failure(&self) -> Option<&str> {
        self.host_failure.as_deref()
    }
}

/// Whether `taken` may grow by `desired - current` within `limit` and the declared `maximum`.
fn grow(
    taken: &mut usize,
    current: usize,
    desired: usize,
    maximum: Option<usize>,
    limit: usize,
) -> Result<(), usize> {
    let total = taken.saturating_add(desired.saturating_sub(current));
    if total > limit || maximum.is_some_and(|maximum| desired > maximum) {
        return Err(total);
    }
    *taken = total;
    Ok(())
}

impl ResourceLimiter for InstanceLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = grow(&mut self.memory, current, desired, maximum, self.memory_limit);
        self.refused = self.refused.or(grown.err().map(Refused::Memory));
        Ok(grown.is_ok())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = grow(&mut self.table, current, desired, maximum, self.table_limit);
        self.refused = self.refused.or(grown.err().map(Refused::Table));
        Ok(grown.is_ok())
    }

    /// Ends the call: a guest that went on would fail for want of memory that it may have.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.host_failure = Some(format!("{error:#}"));
        Err(error)
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> InstanceLimiter {
        let limits = Limits { memory_bytes: 1000, table_elements: 10, ..Limits::default() };
        InstanceLimiter::new(&limits)
    }

    #[test]
    fn memory_obeyed_up_to_the_last_byte_over_all_memories() {
        let mut limiter = limiter();
        assert!(limiter.memory_growing(0, 400, None).unwrap());
        assert!(limiter.memory_growing(0, 500, None).unwrap());
        assert!(limiter.memory_growing(400, 500, None).unwrap());
        assert_eq!(limiter.refused(), None);
    }

    #[test]
    fn memory_violated_is_refused_and_remembered() {
        let mut limiter = limiter();
        assert!(limiter.memory_growing(0, 600, None).unwrap());
        assert!(!limiter.memory_growing(0, 401, None).unwrap());
        assert!(limiter.memory_growing(0, 400, None).unwrap(), "what was refused is not counted");
        assert_eq!(limiter.refused(), Some(Refused::Memory(1001)));
    }

    #[test]
    fn a_declared_maximum_is_a_limit_too() {
        let mut limiter = limiter();
        assert!(!limiter.memory_growing(0, 300, Some(200)).unwrap());
        assert_eq!(limiter.refused(), Some(Refused::Memory(300)));
    }

    #[test]
    fn memory_that_the_machine_lacks_ends_the_call() {
        let mut limiter = limiter();
        assert!(limiter.memory_growing(0, 400, None).unwrap());
        assert!(limiter.memory_grow_failed(wasmtime::Error::msg("out of pages")).is_err());
        assert_eq!((limiter.refused(), limiter.host_failure()), (None, Some("out of pages")));
    }

    #[test]
    fn tables_obeyed_and_violated() {
        let mut limiter = limiter();
        assert!(limiter.table_growing(0, 10, None).unwrap());
        assert!(!limiter.table_growing(10, 11, None).unwrap());
        assert_eq!(limiter.refused(), Some(Refused::Table(11)));
    }

    #[test]
    fn recovery_has_more_time_and_nothing_else_that_a_verdict_depends_on() {
        let limits = Limits { call_timeout: Duration::from_millis(30), file_bytes: 7, ..Limits::default() };
        let longer = limits.for_recovery();
        assert_eq!(longer.call_timeout, Duration::from_millis(300));
        let Limits { call_timeout, compile_timeout, compile_memory_bytes, .. } = limits.clone();
        let same =
            Limits { call_timeout, compile_timeout, compile_memory_bytes, file_bytes: 7, ..longer.clone() };
        assert_eq!(same, limits);
        assert!(limits.at_most(&longer) && !longer.at_most(&limits));
        let longest = Limits { call_timeout: LONGEST_CALL_TIMEOUT, ..Limits::default() }.for_recovery();
        assert_eq!(longest.problems(), Vec::<String>::new());
    }

    #[test]
    fn the_defaults_are_fine_and_nonsense_is_named() {
        assert_eq!(Limits::default().problems(), Vec::<String>::new());
        let limits = Limits {
            call_timeout: Duration::ZERO,
            memory_bytes: 1,
            compile_timeout: Duration::from_secs(601),
            compile_memory_bytes: 2,
            ..Limits::default()
        };
        assert_eq!(
            limits.problems(),
            [
                "memory_bytes is 1; set it to 65536 to 4294967296",
                "compile_memory is 2; set it to 67108864 to 68719476736",
                "call_timeout is 0ns; set it to 10ms to 600s",
                "compile_timeout is 601s; set it to 1s to 600s"
            ]
        );
    }

    #[test]
    fn a_module_has_its_own_limits_or_those_of_all_also_in_recovery() {
        let own = Limits { rows_per_record: 7, ..Limits::default() };
        let mut limits = ModuleLimits::from(Limits { rows_per_record: 5, ..Limits::default() });
        limits.by_module.insert("rows".to_owned(), own.clone());
        assert_eq!((limits.of("rows"), limits.of("rules").rows_per_record), (&own, 5));
        let longer = limits.for_recovery();
        assert_eq!(longer.of("rows"), &own.for_recovery());
        assert_eq!(longer.of("rules"), &limits.default.for_recovery());
    }
}
