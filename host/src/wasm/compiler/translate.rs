//! Translation: from the bytes of a module's file to machine code, in whatever process.
//!
//! Everything that reads what an unknown compiler wrote is here: validation, the component type, the
//! wrapping of core modules, and the compiler itself. None of it runs guest code, but all of it can be
//! made to run for hours, to eat memory, or to overflow the stack, which ends the process.

use serde::{Deserialize, Serialize};
use wasmtime::{Engine, OutOfMemory};
use wit_component::ComponentEncoder;

use crate::domain::answer::clean;
use crate::wasm::module::ModuleFault;

/// Longest reason in bytes; it goes into logs and status files.
const REASON_BYTES: usize = 2048;

/// Why no code came of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Untranslatable {
    /// Damaged, or wasm that the engine cannot take.
    Compile(String),
    /// A core module without a component type, or with one that does not fit.
    Wrap(String),
    /// It imports this, which nothing offers.
    Imports(String),
    /// There was no memory left.
    Memory,
}

impl Untranslatable {
    fn compile(error: &wasmtime::Error) -> Self {
        if error.is::<OutOfMemory>() { Self::Memory } else { Self::Compile(reason(format!("{error:#}"))) }
    }
}

fn reason(text: String) -> String {
    clean(text, REASON_BYTES)
}

/// How a file is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Component,
    Core,
}

impl Encoding {
    /// From the first eight bytes (<https://webassembly.github.io/spec/core/binary/modules.html>).
    pub(super) fn of(bytes: &[u8]) -> Result<Self, ModuleFault> {
        let found = match bytes {
            [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => return Ok(Self::Core),
            [0, b'a', b's', b'm', _, 0, 1, 0, ..] => return Ok(Self::Component),
            [] => "the file is empty",
            [0, b'a', b's', b'm', ..] => "it begins like wasm, but with a version that nobody knows",
            [b'(', ..] => "it looks like the WebAssembly text format",
            [0x1f, 0x8b, ..] => "it looks like gzip",
            _ if bytes.iter().take(512).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
                "it looks like text"
            }
            _ => "it does not begin with \\0asm",
        };
        Err(ModuleFault::NotWasm { found })
    }
}

/// Machine code of `file` for engines with the settings of `engine`, as wasmtime serializes it.
pub(super) fn translate(engine: &Engine, file: &[u8], encoding: Encoding) -> Result<Vec<u8>, Untranslatable> {
    let precompile = |component: &[u8]| {
        engine.precompile_component(component).map_err(|error| Untranslatable::compile(&error))
    };
    match encoding {
        Encoding::Component => precompile(file),
        Encoding::Core => precompile(&wrap(engine, file)?),
    }
}

fn wrap(engine: &Engine, module: &[u8]) -> Result<Vec<u8>, Untranslatable> {
    // The encoder panics on some modules that were cut short.
    wasmtime::Module::validate(engine, module).map_err(|error| Untranslatable::compile(&error))?;
    let (typed, _) = wit_component::metadata::decode(module)
        .map_err(|error| Untranslatable::Compile(reason(format!("{error:#}"))))?;
    if typed.is_none() {
        return Err(Untranslatable::Wrap(
            "it carries no component type; build it with the SDK, whose macros add it".to_owned(),
        ));
    }
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| {
            let text = format!("{error:#}");
            // The last thing named is what nothing offers.
            match text.rsplit('`').nth(1) {
                Some(name) if text.contains("import") => Untranslatable::Imports(reason(format!("`{name}`"))),
                _ => Untranslatable::Wrap(reason(format!("{text}; rebuild it with the SDK of this host"))),
            }
        })
}
