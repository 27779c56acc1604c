//! The wasm host: from module files to verdicts on chunks.
//!
//! [`ModuleRegistry`] loads, checks and compiles modules and puts them together to a [`WasmChain`];
//! workers run its runners. A guest gets columns, settings, memory and time, and at most a log to write
//! to; what it answers is checked before it is used.
//!
//! | file | |
//! | --- | --- |
//! | `bindings.rs` | generated from the contract |
//! | `engine.rs`, `limits.rs` | the engine, its clock, and what a guest may take |
//! | `compiler.rs` | from a file to code, in a process of its own |
//! | `folder.rs`, `module.rs`, `registry.rs` | from files and settings to a chain |
//! | `interface.rs` | what a module imports and exports, for people |
//! | `watcher.rs`, `status_file.rs` | when files change, and what is said beside them |
//! | `instance.rs` | one call; `domain/answer.rs` says whether its answer is one |
//! | `log.rs` | what modules say to those who run them |
//! | `bisect.rs`, `chain.rs` | from calls to verdicts |
//! | `shadow.rs` | revisions that are shown what the live ones were, without effect |
//! | `cases.rs`, `compare.rs` | what a module should say, and what another revision says |
//! | `tally.rs` | what became of the records that each revision was shown |

mod bindings;
mod bisect;
mod cases;
mod chain;
mod compare;
mod compiler;
mod engine;
mod folder;
mod instance;
mod interface;
mod limits;
mod log;
mod metrics;
mod module;
mod registry;
mod shadow;
mod status_file;
mod tally;
mod watcher;

pub use cases::{CasesFault, GoldenCases, cases_path};
pub use chain::{SingleModule, WasmChain};
pub use compare::{Comparison, said};
pub use compiler::{CacheError, CodeCache, Compiler, CompilerProcess};
pub use engine::{EngineError, TICK, WasmEngine};
pub use folder::{ChainSettings, ModuleFile, ModuleFolder, module_name};
pub use interface::Interface;
pub use limits::{Limits, ModuleLimits};
pub use metrics::WasmMetrics;
pub use module::{CONTRACT_VERSION, Module, ModuleFault, canonical_settings};
pub use registry::{LoadError, LoadProblem, ModuleRegistry};
pub use status_file::StatusFiles;
pub use tally::Tally;
pub use watcher::ModuleWatcher;
