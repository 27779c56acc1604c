//! Guests for tests: hostile ones from `testdata/guests`, real ones from `modules/`, and what runs them.
//!
//! Hostile guests are written in WebAssembly text, because they tell lies (ends that overlap, lists
//! outside their memory) that no compiler would tell. They get their component type here, as an SDK
//! would give it to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::module::ArchivedModule;
use sluice::wasm::{ChainSettings, Limits, LoadError, ModuleRegistry, WasmChain, WasmEngine, WasmMetrics};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The contract as it stands.
pub const CONTRACT: &str = include_str!("../../../guest-sdk/wit/module.wit");
const PRELUDE: &str = include_str!("../../../testdata/guests/prelude.wat");
const VALIDATOR: &str = include_str!("../../../testdata/guests/validator.wat");
const MAPPER: &str = include_str!("../../../testdata/guests/mapper.wat");
const CHOOSY: &str = include_str!("../../../testdata/guests/choosy.wat");
const TALKER: &str = include_str!("../../../testdata/guests/talker.wat");

/// `wat`, a core module, with the component type of `world` in `contract`.
pub fn typed(wat: &str, contract: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(wat).expect("the guest is WebAssembly text");
    let mut resolve = Resolve::default();
    let package = resolve.push_str("module.wit", contract).expect("the contract is WIT");
    let world = resolve.select_world(&[package], Some(world)).expect("the contract has the world");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("embeds");
    module
}

/// Text of a core module: the prelude, then `body`.
pub fn with_prelude(body: &str) -> String {
    format!("(module\n{PRELUDE}\n{body}\n)")
}

/// The hostile validator, after `change` to its text.
pub fn hostile_validator(change: impl Fn(String) -> String) -> Vec<u8> {
    typed(&change(with_prelude(VALIDATOR)), CONTRACT, "validator")
}

/// The hostile validator with another body of `init`, which answers an address (0: all is well).
pub fn validator_with_init(init: &str) -> Vec<u8> {
    hostile_validator(|text| {
        let plain = "validate@0.1.0#init\") (param i32 i32) (result i32)\n  (i32.const 0))";
        assert!(text.contains(plain));
        text.replace(plain, &format!("validate@0.1.0#init\") (param i32 i32) (result i32)\n  {init})"))
    })
}

/// The hostile validator, which does to every purchase (a JSON object) what it does to `letter`.
pub fn hostile_to_purchases(letter: char) -> Vec<u8> {
    hostile_validator(|text| {
        let constant = format!("(i32.const {}))", letter as u32);
        assert!(text.contains(&constant), "{letter}");
        text.replace(&constant, &format!("(i32.const {}))", '{' as u32))
    })
}

/// The hostile mapper, after `change` to its text.
pub fn hostile_mapper(change: impl Fn(String) -> String) -> Vec<u8> {
    typed(&change(with_prelude(MAPPER)), CONTRACT, "mapper")
}

/// The validator that rejects what its settings say.
pub fn choosy_validator() -> Vec<u8> {
    changed_choosy(&[])
}

/// One that rejects what has `letter` at byte `place` of its payload, whatever its settings.
pub fn rejecting(letter: u8, place: usize) -> Vec<u8> {
    changed_choosy(&[
        ("(i32.gt_u (local.get $length) (i32.const 11))", "(i32.const 0)".to_owned()),
        ("$letter (mut i32) (i32.const -1)", format!("$letter (mut i32) (i32.const {letter})")),
        // Of $letter in the prelude, which is the first to load a byte.
        ("(i32.load8_u", format!("(i32.load8_u offset={place}")),
    ])
}

/// One that traps, whatever it is shown.
pub fn trapping() -> Vec<u8> {
    changed_choosy(&[("(local.set $count", "(unreachable) (local.set $count".to_owned())])
}

/// One that never answers.
pub fn looping() -> Vec<u8> {
    changed_choosy(&[("(local.set $count", "(call $endless) (local.set $count".to_owned())])
}

fn changed_choosy(changes: &[(&str, String)]) -> Vec<u8> {
    let change = |text: String, (from, to): &(&str, String)| {
        assert!(text.contains(from), "{from} is in no guest any more");
        text.replacen(from, to, 1)
    };
    typed(&changes.iter().fold(with_prelude(CHOOSY), change), CONTRACT, "validator")
}

/// The validator that logs, after `change` to its text.
pub fn talking_validator(change: impl Fn(&str) -> String) -> Vec<u8> {
    let import = r#"(module (import "sluice:module/log@0.1.0" "log" (func $log (param i32 i32 i32)))"#;
    typed(&with_prelude(&change(TALKER)).replacen("(module", import, 1), CONTRACT, "validator")
}

/// The shipped validator with one letter changed: the package of the interface that its component type exports.
/// A parser follows names in a circle then, until its stack is full, for which Rust ends the process.
pub fn overflowing_validator() -> Vec<u8> {
    let path = purchase_modules().join("validators/purchase-rules.wasm");
    let mut bytes = std::fs::read(path).expect("built");
    let exported = b"\x04\x00\x1csluice:module/validate@0.1.0";
    let place = bytes.windows(exported.len()).position(|part| part == exported).expect("a component type");
    bytes[place + 3] = b'r';
    bytes
}

/// A component of so many functions of so many multiplications and additions each: no Sluice module, which
/// shows once it is compiled, but that takes as long as one likes.
pub fn bomb(functions: usize, operations: usize) -> Vec<u8> {
    /// Unsigned LEB128.
    fn number(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(0x80 | (number & 0x7f) as u8);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }
    let section = |id: u8, content: &[u8]| [&[id], &number(content.len())[..], content].concat();
    // No locals; local 0 = local 0 * local 1 + local 0, many times; local 0.
    let operation = [0x20, 0, 0x20, 1, 0x7e, 0x20, 0, 0x7c, 0x21, 0];
    let body = [&[0], &operation.repeat(operations)[..], &[0x20, 0, 0x0b]].concat();
    let body = [&number(body.len())[..], &body].concat();
    let module = [
        b"\0asm\x01\0\0\0".to_vec(),
        // One type: two 64-bit integers to one.
        section(1, &[1, 0x60, 2, 0x7e, 0x7e, 1, 0x7e]),
        section(3, &[number(functions), vec![0; functions]].concat()),
        section(10, &[number(functions), body.repeat(functions)].concat()),
    ]
    .concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module)].concat()
}

/// Limits that tests reach quickly: 16 MiB and a quarter of a second.
pub fn tight() -> Limits {
    Limits {
        memory_bytes: 16 << 20,
        call_timeout: Duration::from_millis(250),
        file_bytes: 8 << 20,
        ..Limits::default()
    }
}

/// One engine for the test process, as in production.
pub fn engine() -> WasmEngine {
    static ENGINE: OnceLock<WasmEngine> = OnceLock::new();
    ENGINE.get_or_init(|| WasmEngine::new(8).expect("an engine")).clone()
}

/// A folder with modules, and the settings that load them.
pub struct ModuleFolder {
    folder: tempfile::TempDir,
    /// Settings of the chain; change them before loading.
    pub settings: ChainSettings,
    /// Metrics of the chains loaded from here.
    pub metrics: prometheus::Registry,
    registry: ModuleRegistry,
}

impl ModuleFolder {
    /// An empty folder of validators, and the hostile mapper.
    pub fn new(limits: Limits) -> Self {
        Self::on(engine(), limits)
    }

    /// The same on an engine of its own.
    pub fn on(engine: WasmEngine, limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let validators = folder.path().join("validators");
        std::fs::create_dir(&validators).expect("a folder");
        let metrics = prometheus::Registry::new();
        let settings = ChainSettings {
            pipeline: "tests".to_owned(),
            validators: Some(validators),
            mapper: folder.path().join("mapper.wasm"),
            settings: BTreeMap::new(),
            limits: limits.into(),
        };
        let registry = ModuleRegistry::new(engine, WasmMetrics::register(&metrics).expect("fresh registry"));
        let this = Self { folder, settings, metrics, registry };
        this.write("mapper.wasm", &hostile_mapper(|text| text));
        this
    }

    /// Writes a file, by its path within the folder.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }

    /// Path of a file within the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives a module settings.
    pub fn configure(&mut self, module: &str, settings: Value) {
        self.settings.settings.insert(module.to_owned(), settings);
    }

    /// What loads it.
    pub fn registry(&self) -> &ModuleRegistry {
        &self.registry
    }

    /// The same, with all of a core for shadows, or a part of it.
    pub fn with_shadow_share(self, share: f64) -> Self {
        Self { registry: self.registry.with_shadow_share(share), ..self }
    }

    /// Loads the chain.
    pub fn load(&self) -> Result<WasmChain, LoadError> {
        self.registry.load_chain(&self.settings)
    }

    /// Loads the chain, and what an archive keeps of it.
    pub fn load_and_archive(&self) -> (WasmChain, Vec<ArchivedModule>) {
        self.registry.load_chain_and_files(&self.settings).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Loads an archived chain, as recovery does.
    pub fn load_archived(&self, modules: Vec<ArchivedModule>) -> Result<WasmChain, LoadError> {
        let limits = self.settings.limits.for_recovery();
        self.registry.load_archived(&self.settings.pipeline, modules, &limits)
    }

    /// What a load says, without the folder's own name.
    pub fn load_error(&self) -> String {
        let error = self.load().expect_err("the chain must not load").to_string();
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// A chunk of these payloads at offsets from 100.
pub fn chunk<P: AsRef<[u8]>>(payloads: impl IntoIterator<Item = P>) -> Chunk {
    let mut builder = ChunkBuilder::new("purchases".into(), 3, 100);
    for (offset, payload) in (100..).zip(payloads) {
        builder.push(offset, 1_700_000_000_000, Some(b"key"), Some(payload.as_ref()), []);
    }
    builder.build()
}

/// After the base time of the test data, 2026-01-31T20:00:00Z: when its records arrive.
pub const ARRIVAL: i64 = 1_769_904_000_000;

/// The lines of testdata/purchases.txt.
pub fn lines() -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/purchases.txt");
    let text = std::fs::read(file).expect("testdata/purchases.txt");
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

/// Lines as chunks of so many records of one partition, from offset 0; `push` adds a line at an offset.
pub fn chunks(
    lines: &[Vec<u8>],
    records: usize,
    partition: i32,
    push: impl Fn(&mut ChunkBuilder, i64, &[u8]),
) -> Vec<Chunk> {
    let mut offsets = 0..;
    let chunk = |lines: &[Vec<u8>]| {
        let mut builder = ChunkBuilder::new("purchases".into(), partition, offsets.start);
        for (line, offset) in lines.iter().zip(&mut offsets) {
            push(&mut builder, offset, line);
        }
        builder.build()
    };
    lines.chunks(records).map(chunk).collect()
}

/// The folder of the purchase pipeline's modules, built as `make modules` does:
/// `validators/purchase-rules.wasm` and `purchase-rows.wasm`.
pub fn purchase_modules() -> PathBuf {
    static BUILD: OnceLock<()> = OnceLock::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    BUILD.get_or_init(|| {
        let mut command = std::process::Command::new(root.join("deploy/modules.sh"));
        let output = command.arg("build").output().expect("deploy/modules.sh starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the modules do not build, see `make modules`: {said}");
    });
    root.join("target/modules/purchases")
}
