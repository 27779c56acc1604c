//! What it costs to load a module: compiled in this process, compiled in a process of its own, and found in
//! the cache, in milliseconds of the time that passes until the module has passed its trial.
//!
//! `cargo bench -p sluice --bench compile` prints a table; with `-- --json` one line of JSON, which `make
//! bench` collects. Ways take turns over many rounds and the best round counts, since the machine is rarely
//! quiet: compare the columns with each other.

#[path = "../tests/support/guests.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod guests;

use std::time::{Duration, Instant};

use sluice::domain::verdict::Stage;
use sluice::wasm::{CodeCache, Compiler, Limits, Module, WasmEngine};

const ROUNDS: usize = 15;

/// A way to load: its key in the JSON, and an engine that goes it.
struct Way {
    key: &'static str,
    engine: WasmEngine,
    best: Duration,
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let folder = tempfile::tempdir().expect("a folder");
    let child = || Compiler::child_of(env!("CARGO_BIN_EXE_sluice").into());
    let cache = CodeCache::open(&folder.path().join("compiled"), None, 1 << 30).expect("a cache");
    let modules = guests::purchase_modules();
    let mut figures = serde_json::Map::<String, serde_json::Value>::new();
    for (name, stage, path) in [
        ("purchase-rules", Stage::Validate, "validators/purchase-rules.wasm"),
        ("purchase-rows", Stage::Map, "purchase-rows.wasm"),
    ] {
        let bytes = std::fs::read(modules.join(path)).expect("a module");
        let way = |key, compiler| Way {
            key,
            engine: guests::engine().with_compiler(compiler),
            best: Duration::MAX,
        };
        let mut ways = [
            way("in_process", Compiler::in_process()),
            way("child", child()),
            way("cache", child().with_cache(cache.clone())),
        ];
        for _ in 0..ROUNDS {
            for way in &mut ways {
                let started = Instant::now();
                let limits = Limits::default();
                let module = Module::load(&way.engine, name, stage, &bytes, "{}".to_owned(), &limits);
                let elapsed = started.elapsed();
                module.unwrap_or_else(|error| panic!("{error}"));
                way.best = way.best.min(elapsed);
            }
        }
        let milliseconds = |way: &Way| (way.best.as_secs_f64() * 1e5).round() / 1e2;
        if !json {
            println!("{name}, {} KB of wasm", bytes.len() / 1000);
            for way in &ways {
                println!("  {:<12} {:>9.2} ms", way.key, milliseconds(way));
            }
        }
        let module = name.replace('-', "_");
        figures.extend(ways.iter().map(|way| (format!("{module}_{}_ms", way.key), milliseconds(way).into())));
    }
    if json {
        println!("{}", serde_json::json!({ "bench": "compile", "figures": figures }));
    }
}
