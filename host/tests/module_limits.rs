//! Limits of single modules: each holds for its module and for no other, when it is loaded, when records
//! are judged, when they are judged again in recovery, and from the moment that it is changed.

mod support;

use std::time::Duration;

use sluice::domain::verdict::{ChunkVerdicts, Stage};
use sluice::pipeline::ports::Chain;
use sluice::wasm::{Compiler, Limits};
use support::guests::{ModuleFolder, bomb, chunk, engine, hostile_mapper, hostile_validator, tight};

/// The hostile validator and the hostile mapper; `module` has limits of its own.
fn limited(module: &str, limits: Limits) -> ModuleFolder {
    let mut modules = ModuleFolder::new(tight());
    modules.write("validators/hostile.wasm", &hostile_validator(|text| text));
    modules.settings.limits.by_module.insert(module.to_owned(), limits);
    modules
}

fn run(modules: &ModuleFolder, letters: &[&str]) -> ChunkVerdicts {
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    chain.runner().run(&chunk(letters))
}

/// Which records were refused by what, with which words.
fn refusals(verdicts: &ChunkVerdicts) -> Vec<(u32, Stage, &str)> {
    verdicts
        .rejections
        .iter()
        .map(|(index, rejection)| (*index, rejection.stage, rejection.reason.as_str()))
        .collect()
}

#[test]
fn limits_of_a_call_hold_for_their_module_alone() {
    // `H` hoards memory in either; `G` and `2` are for the mapper.
    for (module, limits, letter, stage, reason) in [
        (
            "hostile",
            Limits { memory_bytes: 2 << 20, ..tight() },
            "H",
            Stage::Validate,
            "asked for 2162688 bytes of memory; the limit is 2097152",
        ),
        (
            "hostile",
            Limits { call_timeout: Duration::from_millis(100), ..tight() },
            "L",
            Stage::Validate,
            "no answer within 100 ms",
        ),
        (
            "mapper",
            Limits { output_bytes_per_record: 2_000_000, ..tight() },
            "G",
            Stage::Map,
            "2097156 bytes of rows up to output `texts`; the limit for a record is 2000000",
        ),
        (
            "mapper",
            Limits { rows_per_record: 1, ..tight() },
            "2",
            Stage::Map,
            "2 rows in output `texts`; the limit is 1",
        ),
    ] {
        let verdicts = run(&limited(module, limits.clone()), &["a", letter, "b"]);
        assert_eq!(refusals(&verdicts), [(1, stage, reason)]);
        // Of a module that is not there, they mean nothing: what holds for all is another figure, or no obstacle.
        let verdicts = run(&limited("nobody", limits), &["a", letter, "b"]);
        assert!(!refusals(&verdicts).contains(&(1, stage, reason)), "{:?}", verdicts.rejections);
    }
}

#[test]
fn a_wider_limit_lets_its_module_do_more() {
    let modules = limited("mapper", Limits { output_bytes_per_record: 2_097_156, ..tight() });
    assert_eq!(refusals(&run(&modules, &["a", "G", "b"])), []);
}

#[test]
fn limits_of_loading_hold_for_their_module_alone() {
    let size = hostile_validator(|text| text).len();
    assert!(hostile_mapper(|text| text).len() > 100);
    let with_table = hostile_validator(|text| text.replacen("(module", "(module (table 101 funcref)", 1));
    for (limits, bytes, reason) in [
        (
            Limits { file_bytes: 100, ..tight() },
            hostile_validator(|text| text),
            "is larger than 100 bytes; make it smaller (opt-level, strip), or raise file_bytes",
        ),
        (
            Limits { table_elements: 100, ..tight() },
            with_table,
            "fails in init: asked for 101 table elements; the limit is 100 (settings: {})",
        ),
    ] {
        let modules = limited("hostile", limits.clone());
        modules.write("validators/hostile.wasm", &bytes);
        assert_eq!(modules.load_error(), format!("module validators/hostile.wasm {reason}"));
        let modules = limited("nobody", limits);
        modules.write("validators/hostile.wasm", &bytes);
        modules.load().unwrap_or_else(|error| panic!("{error}"));
    }
    // And wider than for the others.
    let mut modules = limited("hostile", Limits { file_bytes: size, ..tight() });
    modules.settings.limits.default.file_bytes = 10;
    let error = modules.load_error();
    assert!(error.starts_with("module mapper.wasm is larger than 10 bytes"), "{error}");
}

#[test]
fn limits_of_compiling_hold_for_their_module_alone() {
    let compiler = Compiler::child_of(env!("CARGO_BIN_EXE_sluice").into());
    let mut modules = ModuleFolder::on(engine().with_compiler(compiler), tight());
    modules.write("validators/narrow.wasm", &bomb(1, 60_000));
    modules.write("validators/wide.wasm", &bomb(1, 60_000));
    let limits = |compile_memory_bytes| Limits {
        compile_memory_bytes,
        compile_timeout: Duration::from_secs(600),
        ..tight()
    };
    modules.settings.limits.by_module.insert("narrow".to_owned(), limits(64 << 20));
    modules.settings.limits.by_module.insert("wide".to_owned(), limits(4 << 30));
    let error = modules.load_error();
    let [narrow, wide] = &error.lines().collect::<Vec<_>>()[..] else { panic!("{error}") };
    assert!(narrow.contains("narrow.wasm takes more than 67108864 bytes of memory to compile"), "{narrow}");
    assert!(wide.contains("wide.wasm is no Sluice module"), "{wide}");
}

#[test]
fn limits_that_cannot_hold_are_refused_for_their_module() {
    let error = limited("mapper", Limits { instances: 0, ..tight() }).load_error();
    assert_eq!(error, "module mapper.wasm cannot be held to its limits: instances is 0; set it to 1 to 1000");
}

#[test]
fn a_second_run_is_held_to_the_modules_own_limits() {
    let own = Limits { rows_per_record: 1, call_timeout: Duration::from_millis(50), ..tight() };
    let modules = limited("mapper", own.clone());
    let first = run(&modules, &["a", "2", "b"]);
    let (chain, archived) = modules.load_and_archive();
    let mut alive = Some(chain);
    for _ in 0..2 {
        // With the modules still there, then compiled anew.
        let again = modules.load_archived(archived.clone()).unwrap_or_else(|error| panic!("{error}"));
        alive.take();
        let limits: Vec<_> = again.loaded().map(|module| module.limits().clone()).collect();
        assert_eq!(limits, [tight().for_recovery(), own.for_recovery()]);
        let second = again.runner().run_again(&chunk(["a", "2", "b"]), &[]);
        assert_eq!((second.rejections, second.outputs), (first.rejections.clone(), first.outputs.clone()));
    }
}

#[test]
fn a_limit_that_is_changed_counts_from_the_next_load_on_and_nothing_else_is_loaded_again() {
    let mut modules = limited("mapper", Limits { rows_per_record: 1, ..tight() });
    let narrow = modules.load().unwrap_or_else(|error| panic!("{error}"));
    modules.settings.limits.by_module.clear();
    let wide = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let rejected = |chain: &sluice::wasm::WasmChain| chain.runner().run(&chunk(["2"])).rejections.len();
    assert_eq!((rejected(&narrow), rejected(&wide)), (1, 0));
    assert_eq!(narrow.revision(), wide.revision(), "limits are no part of what a module is");
    let is_same: Vec<_> =
        narrow.loaded().zip(wide.loaded()).map(|(one, other)| std::sync::Arc::ptr_eq(one, other)).collect();
    assert_eq!(is_same, [true, false]);

    // Too narrow even for init: tried again, though it was compiled already.
    modules.write(
        "validators/hostile.wasm",
        &hostile_validator(|text| {
            text.replace(r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 20)"#)
        }),
    );
    let roomy = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let limits = Limits { memory_bytes: 1 << 20, ..tight() };
    modules.settings.limits.by_module.insert("hostile".to_owned(), limits);
    let error = modules.load_error();
    assert!(error.contains("fails in init: asked for 1310720 bytes of memory"), "{error}");
    drop(roomy);
}
