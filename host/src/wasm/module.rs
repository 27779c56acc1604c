//! Modules: from the bytes of a file to a program that passed its trial.
//!
//! A file may be a component, or a core module that carries its component type (what cargo makes of
//! a crate with the SDK), which is wrapped (`compiler.rs`). What a module lacks is said with the cure, because
//! the reader is an analyst who has just copied a file.
//!
//! A [`Module`] is immutable and is shared by every chain and thread that runs it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};

use crate::domain::answer::clean;
use crate::domain::module::module_revision;
use crate::domain::retry::Retryability;
use crate::domain::row::{ColumnDefinition, ColumnType, Output};
use crate::domain::verdict::{RejectionKind, Revision, Stage};
use crate::pipeline::ports::ModuleIdentity;

use super::bindings::{mapper::MapperPre, types, validator::ValidatorPre};
use super::engine::WasmEngine;
use super::instance::{Instance, InstanceState, StartFault};
use super::limits::Limits;
use super::log::{self, LOG_INTERFACE, ModuleLog};

/// Version of the module contract that this host speaks (`guest-sdk/wit/module.wit`).
pub const CONTRACT_VERSION: &str = "0.1.0";

/// Columns that the host adds to rows by itself; a mapper must not name them.
const PROVENANCE_COLUMNS: [&str; 4] = ["_topic", "_partition", "_offset", "_revision"];
/// Outputs of one mapper, and columns of one output.
const MOST_OUTPUTS: usize = 16;
const MOST_COLUMNS: usize = 1000;
/// How often `init` is tried where it takes too long.
const TRIALS: usize = 3;
/// Longest name of an output or a column.
const NAME_BYTES: usize = 256;

/// Why bytes are not a module that can run here.
#[derive(Debug, thiserror::Error)]
pub enum ModuleFault {
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A folder, a socket or the like.
    #[error("is not a file; copy the .wasm file that the compiler made")]
    NotAFile,
    /// Its length changed while it was read.
    #[error("is still being written; copy it under another name first, then rename it")]
    Growing,
    /// A file name that cannot be a module's name.
    #[error("has a name that cannot name a module; use 1 to 128 bytes of UTF-8 without control characters")]
    Name,
    /// A validator is named like the mapper.
    #[error("has the name of a validator, and settings and metrics go by name; rename one of them")]
    SameName,
    /// The file is larger than allowed.
    #[error("is larger than {limit} bytes; make it smaller (opt-level, strip), or raise file_bytes")]
    TooLarge {
        /// Limit in bytes.
        limit: usize,
    },
    /// Not WebAssembly.
    #[error("is not WebAssembly: {found}; copy the .wasm file that the compiler made")]
    NotWasm {
        /// What its first bytes look like.
        found: &'static str,
    },
    /// Damaged, or wasm that this engine cannot take.
    #[error("does not compile: {0}; a file that was cut short looks like this, so copy it again")]
    Compile(String),
    /// It takes too long to compile.
    #[error(
        "takes more than {limit:?} of processor time to compile; leave parts of it out or make more modules of it, \
         or raise compile_timeout"
    )]
    CompileTime {
        /// Limit.
        limit: Duration,
    },
    /// It takes too much memory to compile.
    #[error(
        "takes more than {limit} bytes of memory to compile; leave parts of it out or make more modules of it, \
         or raise compile_memory"
    )]
    CompileMemory {
        /// Limit in bytes.
        limit: usize,
    },
    /// The compiler did not survive it. It has a process of its own.
    #[error(
        "makes the compiler crash ({0}); a damaged file does that, so copy it again; should it stay like this, \
         tell us"
    )]
    CompilerCrashed(String),
    /// There was no compiler, or something else ended it; the module may be fine.
    #[error("could not be compiled, which is this machine's doing: {0}")]
    Compiler(String),
    /// A core module without a component type, or with one that does not fit.
    #[error("is a core module that cannot be wrapped: {0}")]
    Wrap(String),
    /// It imports something.
    #[error(
        "imports {names}, but a module may import nothing but {LOG_INTERFACE} (no clock, files, network or \
         random numbers); in Rust, build it for wasm32-unknown-unknown and leave out what asks for them"
    )]
    Imports {
        /// What it imports.
        names: String,
    },
    /// A module of the other world.
    #[error("is a {found}, but a {due} is due here; {cure}")]
    WrongWorld {
        /// World that it exports.
        found: &'static str,
        /// World that is due.
        due: &'static str,
        /// What to do.
        cure: &'static str,
    },
    /// Another contract version.
    #[error(
        "speaks version {found} of the module contract, this host speaks {CONTRACT_VERSION}; rebuild it with the SDK of this host"
    )]
    WrongVersion {
        /// Version that it exports.
        found: String,
    },
    /// Neither world.
    #[error(
        "is no Sluice module: it exports {exports} and neither sluice:module/validate nor sluice:module/map; \
         build it with the SDK"
    )]
    NoWorld {
        /// What it exports.
        exports: String,
    },
    /// The right name with other types, or too many parts.
    #[error("does not fit this host: {0}; rebuild it with the SDK of this host")]
    Unfit(String),
    /// Archived modules that are no chain.
    #[error("is no chain: validators and then one mapper are due, by the stages that the archive has")]
    NoChain,
    /// An archived module whose content is not what it is kept as.
    #[error(
        "has revision {found}, but is kept as {recorded}: what the archive holds of it is damaged; delete it there, \
         and the batches that it judged are not formed again"
    )]
    OtherRevision {
        /// Revision that it is kept as.
        recorded: Revision,
        /// Revision of its bytes and settings.
        found: Revision,
    },
    /// Limits that cannot hold.
    #[error("cannot be held to its limits: {0}")]
    Limits(String),
    /// Settings that are not an object.
    #[error("has settings that are not a map of names to values, but {0}")]
    Settings(&'static str),
    /// `init` answered with an error.
    #[error("refuses its settings: {0}")]
    InitRefused(String),
    /// `init` trapped, took too long or too much memory.
    #[error("fails in init: {reason} (settings: {settings})")]
    InitFailed {
        /// What happened.
        reason: String,
        /// Settings that it was given.
        settings: String,
    },
    /// `init` leaves too little of its time.
    #[error(
        "needs more than {allowed:?} for init, which is half of its call_timeout; init runs before every call, and \
         what only just fits fails on a busy machine: do less in init, or raise call_timeout"
    )]
    InitSlow {
        /// What it may take.
        allowed: Duration,
    },
    /// What `init` declared is no set of outputs.
    #[error("declares outputs that cannot be: {0}")]
    Outputs(String),
    /// No slot or memory for the trial; the module may be fine.
    #[error("could not be tried: {0}; free memory or run fewer workers")]
    Host(String),
}

impl ModuleFault {
    /// Whether the same file may pass when it is tried again: where this machine did not let it be tried, or it
    /// is still being copied. A compiler that crashed or ran out of its own limits would do so again.
    pub fn retryability(&self) -> Retryability {
        match self {
            Self::Compiler(_) | Self::Host(_) | Self::Growing => Retryability::Retry,
            _ => Retryability::Permanent,
        }
    }
}

/// A compiled module with its imports resolved (there are none), by world.
#[derive(Clone)]
pub(super) enum Program {
    Validator(ValidatorPre<InstanceState>),
    Mapper(MapperPre<InstanceState>),
}

/// A module that passed its trial. Its file's bytes are not among what it keeps: they may be 64 MiB,
/// and after compiling only the archive wants them.
pub struct Module {
    identity: ModuleIdentity,
    settings: String,
    limits: Limits,
    program: Program,
    outputs: Vec<Output>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Module")
            .field("identity", &self.identity)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// Checks, compiles and tries `bytes` as a module for `stage`, with settings that are canonical
    /// JSON. Takes as long as compiling does: not for a worker thread.
    ///
    /// # Errors
    /// Whatever makes it unfit, with the cure.
    pub fn load(
        engine: &WasmEngine,
        name: &str,
        stage: Stage,
        bytes: &[u8],
        settings: String,
        limits: &Limits,
    ) -> Result<Self, ModuleFault> {
        check_limits(limits)?;
        let revision = module_revision(bytes, &settings);
        if bytes.len() > limits.file_bytes {
            return Err(ModuleFault::TooLarge { limit: limits.file_bytes });
        }
        let component = engine.compile(bytes, limits)?;
        let program = program(engine, &component, stage)?;
        let identity = ModuleIdentity { name: Arc::from(name), stage, revision };
        Self::try_out(engine, identity, program, settings, limits)
    }

    /// Starts a program as every call will, and takes note of what it declares.
    fn try_out(
        engine: &WasmEngine,
        identity: ModuleIdentity,
        program: Program,
        settings: String,
        limits: &Limits,
    ) -> Result<Self, ModuleFault> {
        let allowed = limits.call_timeout / 2;
        let log = || Some(ModuleLog::trial(&identity));
        let mut started = Instance::start(engine, &program, &settings, limits, allowed, log());
        // A machine that is busy for a moment is not a slow init.
        for _ in 1..TRIALS {
            if matches!(&started, Err(StartFault::Failed(refusal)) if refusal.kind == RejectionKind::Timeout)
            {
                started = Instance::start(engine, &program, &settings, limits, allowed, log());
            }
        }
        let (_, declared) = started.map_err(|fault| match fault {
            StartFault::Host(reason) => ModuleFault::Host(reason),
            StartFault::Unfit(reason) => ModuleFault::Unfit(reason),
            StartFault::Refused(text) => ModuleFault::InitRefused(clean(text, 4096)),
            StartFault::Failed(refusal) if refusal.kind == RejectionKind::Timeout => {
                ModuleFault::InitSlow { allowed }
            }
            StartFault::Failed(refusal) => {
                ModuleFault::InitFailed { reason: refusal.reason, settings: clean(settings.clone(), 256) }
            }
        })?;
        let outputs = match identity.stage {
            Stage::Map => outputs(declared).map_err(ModuleFault::Outputs)?,
            Stage::Validate | Stage::Insert | Stage::Recover => Vec::new(),
        };
        Ok(Self { identity, settings, limits: limits.clone(), program, outputs })
    }

    /// Name, stage and revision.
    pub fn identity(&self) -> &ModuleIdentity {
        &self.identity
    }

    /// The same module under another name and other limits, without compiling it again. It is not
    /// tried again either: the limits must give it at least what it passed its trial with.
    pub(super) fn again(&self, name: &str, limits: &Limits) -> Self {
        Self {
            identity: ModuleIdentity { name: Arc::from(name), ..self.identity.clone() },
            settings: self.settings.clone(),
            limits: limits.clone(),
            program: self.program.clone(),
            outputs: self.outputs.clone(),
        }
    }

    /// The same module under another name and other limits, tried within them, without compiling it again.
    ///
    /// # Errors
    /// When the limits are too narrow for it.
    pub(super) fn within(
        &self,
        engine: &WasmEngine,
        name: &str,
        limits: &Limits,
    ) -> Result<Self, ModuleFault> {
        check_limits(limits)?;
        let identity = ModuleIdentity { name: Arc::from(name), ..self.identity.clone() };
        Self::try_out(engine, identity, self.program.clone(), self.settings.clone(), limits)
    }

    /// Its settings as canonical JSON, which is what `init` is given.
    pub fn settings(&self) -> &str {
        &self.settings
    }

    /// What it may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it fills; empty for a validator.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }
}

fn check_limits(limits: &Limits) -> Result<(), ModuleFault> {
    limits.problems().into_iter().next().map_or(Ok(()), |problem| Err(ModuleFault::Limits(problem)))
}

/// Settings as JSON with the keys of every object in order, so that the same settings give the same
/// revision however the configuration file orders them. `null` is no settings: `{}`.
///
/// # Errors
/// When the settings are not an object.
pub fn canonical_settings(settings: &Value) -> Result<String, ModuleFault> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
            }
            Value::Array(values) => values.iter().map(sorted).collect(),
            other => other.clone(),
        }
    }
    match settings {
        Value::Null => Ok("{}".to_owned()),
        Value::Object(_) => Ok(sorted(settings).to_string()),
        Value::Bool(_) => Err(ModuleFault::Settings("a boolean")),
        Value::Number(_) => Err(ModuleFault::Settings("a number")),
        Value::String(_) => Err(ModuleFault::Settings("a string")),
        Value::Array(_) => Err(ModuleFault::Settings("a list")),
    }
}

/// Checks the imports and the world, in the order in which an author wants to hear of them.
fn program(engine: &WasmEngine, component: &Component, stage: Stage) -> Result<Program, ModuleFault> {
    let component_type = component.component_type();
    let imports: Vec<_> = component_type
        .imports(engine.inner())
        .filter(|(_, import)| !is_types_only(engine.inner(), &import.ty))
        .filter(|(name, _)| !is_log(name))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    if !imports.is_empty() {
        return Err(ModuleFault::Imports { names: imports.join(", ") });
    }
    let exports: Vec<String> =
        component_type.exports(engine.inner()).map(|(name, _)| name.to_owned()).collect();
    let version = |interface: &str| {
        exports.iter().find_map(|export| {
            let (name, version) = export.split_once('@').unwrap_or((export.as_str(), "none"));
            (name == interface).then(|| version.to_owned())
        })
    };
    let (validate, map) = (version("sluice:module/validate"), version("sluice:module/map"));
    let (due, other) = if stage == Stage::Map { (map, validate) } else { (validate, map) };
    let Some(found) = due else {
        return Err(match other {
            Some(_) if stage == Stage::Map => ModuleFault::WrongWorld {
                found: "validator",
                due: "mapper",
                cure: "put it into the folder of validators",
            },
            Some(_) => ModuleFault::WrongWorld {
                found: "mapper",
                due: "validator",
                cure: "name it as the pipeline's mapper and take it out of the folder of validators",
            },
            None => ModuleFault::NoWorld {
                exports: if exports.is_empty() {
                    "nothing".to_owned()
                } else {
                    clean(exports.join(", "), 256)
                },
            },
        });
    };
    if !is_compatible(&found) {
        return Err(ModuleFault::WrongVersion { found });
    }
    let unfit = |error: wasmtime::Error| ModuleFault::Unfit(format!("{error:#}"));
    let mut linker = Linker::<InstanceState>::new(engine.inner());
    log::link(&mut linker, CONTRACT_VERSION).map_err(unfit)?;
    let pre = linker.instantiate_pre(component).map_err(unfit)?;
    if stage == Stage::Map {
        MapperPre::new(pre).map(Program::Mapper).map_err(unfit)
    } else {
        ValidatorPre::new(pre).map(Program::Validator).map_err(unfit)
    }
}

/// Before 1.0 a minor version is a contract of its own; patches only explain.
fn is_compatible(version: &str) -> bool {
    let series = |version: &str| version.rsplit_once('.').map(|(series, _)| series.to_owned());
    series(version) == series(CONTRACT_VERSION)
}

/// Whether an import is the one that the host offers.
fn is_log(import: &str) -> bool {
    import
        .split_once('@')
        .is_some_and(|(interface, version)| interface == LOG_INTERFACE && is_compatible(version))
}

/// Whether an import is only a name for types, which every component of the contract has.
pub(super) fn is_types_only(engine: &Engine, item: &ComponentItem) -> bool {
    match item {
        ComponentItem::Type(_) => true,
        ComponentItem::ComponentInstance(instance) => {
            instance.exports(engine).all(|(_, export)| is_types_only(engine, &export.ty))
        }
        _ => false,
    }
}

/// What `init` declared, as the domain's outputs.
fn outputs(declared: Vec<types::Output>) -> Result<Vec<Output>, String> {
    if declared.is_empty() || declared.len() > MOST_OUTPUTS {
        return Err(format!("{} outputs; a mapper has 1 to {MOST_OUTPUTS}", declared.len()));
    }
    let mut outputs: Vec<Output> = Vec::with_capacity(declared.len());
    for types::Output { name, columns } in declared {
        check_name("an output", &name)?;
        if outputs.iter().any(|output| output.name == name) {
            return Err(format!("two outputs are named `{name}`"));
        }
        if columns.is_empty() || columns.len() > MOST_COLUMNS {
            return Err(format!(
                "output `{name}` has {} columns; it needs 1 to {MOST_COLUMNS}",
                columns.len()
            ));
        }
        let mut definitions: Vec<ColumnDefinition> = Vec::with_capacity(columns.len());
        for column in columns {
            let place = format!("output `{name}`, column `{}`", clean(column.name.clone(), NAME_BYTES));
            check_name("a column", &column.name)?;
            if PROVENANCE_COLUMNS.contains(&column.name.as_str()) {
                return Err(format!("{place}: the host fills this column by itself; leave it out"));
            }
            if definitions.iter().any(|definition| definition.name == column.name) {
                return Err(format!("{place} is declared twice"));
            }
            let column_type =
                ColumnType::parse(&column.type_name).map_err(|error| format!("{place}: {error}"))?;
            definitions.push(ColumnDefinition { name: column.name, column_type });
        }
        outputs.push(Output { name, columns: definitions.into_iter().collect() });
    }
    Ok(outputs)
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(char::is_control) {
        return Err(format!(
            "{what} is named {:?}; use 1 to {NAME_BYTES} bytes without control characters",
            clean(name.to_owned(), NAME_BYTES)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_canonical_at_every_depth() {
        let one = json!({"b": [{"z": 1, "a": 2}], "a": {"y": null, "x": 1.5}});
        let other = json!({"a": {"x": 1.5, "y": null}, "b": [{"a": 2, "z": 1}]});
        let canonical = canonical_settings(&one).unwrap();
        assert_eq!(canonical, r#"{"a":{"x":1.5,"y":null},"b":[{"a":2,"z":1}]}"#);
        assert_eq!(canonical, canonical_settings(&other).unwrap());
        assert_eq!(canonical_settings(&Value::Null).unwrap(), "{}");
        assert!(canonical_settings(&json!([1])).unwrap_err().to_string().contains("a list"));
    }

    #[test]
    fn a_patch_is_compatible_and_a_minor_version_is_not() {
        assert!(is_compatible("0.1.0") && is_compatible("0.1.7"));
        assert!(!is_compatible("0.2.0") && !is_compatible("1.1.0") && !is_compatible("none"));
    }

    #[test]
    fn names_that_nobody_can_use_are_refused() {
        let column = |name: &str| types::Column { name: name.to_owned(), type_name: "String".to_owned() };
        let output = |name: &str, columns| types::Output { name: name.to_owned(), columns };
        let refused = |declared| outputs(declared).unwrap_err();
        assert_eq!(refused(vec![]), "0 outputs; a mapper has 1 to 16");
        assert_eq!(refused(vec![output("a", vec![])]), "output `a` has 0 columns; it needs 1 to 1000");
        assert_eq!(
            refused(vec![output("a", vec![column("x")]), output("a", vec![column("x")])]),
            "two outputs are named `a`"
        );
        assert_eq!(
            refused(vec![output("a", vec![column("x"), column("x")])]),
            "output `a`, column `x` is declared twice"
        );
        assert!(refused(vec![output("a", vec![column("_offset")])]).contains("fills this column by itself"));
        assert!(refused(vec![output("", vec![column("x")])]).contains("an output is named"));
    }
}
