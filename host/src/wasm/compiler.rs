//! Compiler: from a module's file to a component that can run here, without a risk to the stream.
//!
//! Whoever may copy a file into a folder could otherwise stop the host: a file can be made that takes an
//! hour to compile, or all memory, or overflows the stack of a parser, which ends the process. So files are
//! read by a process of their own ([`Compiler::child`]): this very program, started anew as `sluice
//! compile-module`, bound to time and memory, which answers with machine code or with what is wrong.
//! `sluice run` and `sluice check` compile like this. [`Compiler::in_process`] does the same work where it
//! is called, bound to nothing, for tests and tools that are not this program.
//!
//! | file | |
//! | --- | --- |
//! | `translate.rs` | the work itself, in whatever process |
//! | `child.rs`, `inside.rs`, `protocol.rs` | the process, seen from outside, from inside, and between |
//! | `pauses.rs` | files that wait for a machine that has the memory |
//! | `cache.rs` | what was compiled before |
//!
//! State: the cache's folder, and which files wait.

mod cache;
mod child;
mod inside;
mod pauses;
mod protocol;
mod translate;

use std::path::PathBuf;
use std::time::Instant;

use wasmtime::Engine;
use wasmtime::component::Component;

use super::limits::Limits;
use super::module::ModuleFault;

pub use cache::{CacheError, CodeCache};
pub use inside::CompilerProcess;

use cache::CodeName;
use child::Child;
use translate::{Encoding, translate};

/// How files become code.
#[derive(Clone, Debug)]
pub struct Compiler {
    place: Place,
    cache: Option<CodeCache>,
}

#[derive(Clone, Debug)]
enum Place {
    InProcess,
    Child(Child),
}

/// Where code came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CodeSource {
    /// It was compiled before.
    Cache,
    /// A process of its own compiled it.
    Child,
    /// This process did.
    InProcess,
}

impl CodeSource {
    /// Every source.
    pub(super) const ALL: [Self; 3] = [Self::Cache, Self::Child, Self::InProcess];

    /// The word used in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Child => "child",
            Self::InProcess => "in_process",
        }
    }
}

impl Compiler {
    /// Compiles where it is called: neither `compile_timeout` nor `compile_memory_bytes` holds, and a file
    /// that crashes the compiler crashes the process.
    pub fn in_process() -> Self {
        Self { place: Place::InProcess, cache: None }
    }

    /// Compiles in a process of its own: this program, which must be `sluice`.
    pub fn child() -> Self {
        // Not the path that it was started by: an upgrade may have put another program there.
        Self::child_of(PathBuf::from("/proc/self/exe"))
    }

    /// The same with the `sluice` program at `program`.
    pub fn child_of(program: PathBuf) -> Self {
        Self { place: Place::Child(Child::new(program)), cache: None }
    }

    /// Looks into `cache` first, and keeps there what it compiles.
    #[must_use]
    pub fn with_cache(self, cache: CodeCache) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// A component of a file, for `engine`, and where its code came from. Blocking, for as long as compiling
    /// takes.
    pub(super) fn component(
        &self,
        engine: &Engine,
        file: &[u8],
        limits: &Limits,
    ) -> Result<(Component, CodeSource), ModuleFault> {
        let encoding = Encoding::of(file)?;
        let cached = self.cache.as_ref().map(|cache| (cache, CodeName::new(engine, file)));
        if let Some((cache, name)) = &cached
            && let Some(code) = cache.get(name)
        {
            match load(engine, &code) {
                Ok(component) => return Ok((component, CodeSource::Cache)),
                // Its name says that it is for this engine, so that this is nothing an upgrade does.
                Err(error) => cache.remove(name, &format!("wasmtime does not take it: {error:#}")),
            }
        }
        let started = Instant::now();
        let (code, source) = match &self.place {
            Place::InProcess => {
                let code = translate(engine, file, encoding).map_err(|refused| refused.fault(limits))?;
                (code, CodeSource::InProcess)
            }
            Place::Child(child) => (child.translate(file, limits)?, CodeSource::Child),
        };
        tracing::debug!(bytes = file.len(), code = code.len(), elapsed = ?started.elapsed(), "module compiled");
        let component = load(engine, &code).map_err(|error| {
            ModuleFault::Compiler(format!(
                "its code cannot be loaded: {error:#}; see `ulimit -v` and `ulimit -d`"
            ))
        })?;
        if let Some((cache, name)) = &cached {
            cache.put(name, &code);
        }
        Ok((component, source))
    }
}

/// Maps code that was compiled here.
#[expect(unsafe_code, reason = "wasmtime cannot check machine code")]
fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the code is what wasmtime's own compiler wrote, of the same executable with the same settings:
    // in this process; in a child that this process started and whose pipe nobody else has, with length and
    // digest, so that it is all of it; or earlier, kept under a seal that only this installation's key makes
    // (`cache.rs` says against whom that holds). A child is as much to be trusted as this process: it is
    // apart because it may crash or hang, not because it would lie. That the code is for this engine and
    // this processor, wasmtime checks.
    unsafe { Component::deserialize(engine, code) }
}
