//! Loading modules: what is refused, with which words, and that all of it is said at once.
//!
//! The reader of these messages has just copied a file into a folder; each says what was found and
//! what to do.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use sluice::wasm::{Compiler, Limits};
use support::guests::{
    CONTRACT, ModuleFolder, engine, hostile_mapper, hostile_validator, tight, typed, validator_with_init,
    with_prelude,
};

/// What loading says of a single validator of these bytes.
fn refused(bytes: &[u8]) -> String {
    refused_within(bytes, tight())
}

fn refused_within(bytes: &[u8], limits: Limits) -> String {
    let modules = ModuleFolder::new(limits);
    modules.write("validators/rule.wasm", bytes);
    let error = modules.load_error();
    error.strip_prefix("module validators/rule.wasm ").unwrap_or_else(|| panic!("{error}")).to_owned()
}

#[track_caller]
fn assert_starts(message: &str, start: &str) {
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn files_that_are_not_wasm() {
    let cure = "; copy the .wasm file that the compiler made";
    for (bytes, found) in [
        (&b""[..], "the file is empty"),
        (b"(module)", "it looks like the WebAssembly text format"),
        (b"#!/bin/sh\necho hello\n", "it looks like text"),
        (b"\x1f\x8b\x08\x00", "it looks like gzip"),
        (b"\0asm\x02\0\0\0", "it begins like wasm, but with a version that nobody knows"),
        (b"\x7fELF\x02\x01", "it does not begin with \\0asm"),
    ] {
        assert_eq!(refused(bytes), format!("is not WebAssembly: {found}{cure}"));
    }
}

#[test]
fn files_that_are_cut_short() {
    let whole = hostile_validator(|text| text);
    for end in [9, whole.len() / 2, whole.len() - 1] {
        let message = refused(&whole[..end]);
        assert_starts(&message, "does not compile: ");
        assert!(
            message.ends_with("; a file that was cut short looks like this, so copy it again"),
            "{message}"
        );
    }
}

#[test]
fn file_size_obeyed_and_violated() {
    let bytes = hostile_validator(|text| text);
    let largest = hostile_mapper(|text| text).len().max(bytes.len());
    let limits = |file_bytes| Limits { file_bytes, ..tight() };
    let modules = ModuleFolder::new(limits(largest));
    modules.write("validators/rule.wasm", &bytes);
    modules.load().unwrap_or_else(|error| panic!("{error}"));

    let message = refused_within(&vec![0; largest + 1], limits(largest));
    let cure = "make it smaller (opt-level, strip), or raise file_bytes";
    assert_eq!(message, format!("is larger than {largest} bytes; {cure}"));
}

#[test]
fn a_core_module_without_a_component_type() {
    let message = refused(&wat::parse_str("(module)").expect("wat"));
    assert_starts(
        &message,
        "is a core module that cannot be wrapped: it carries no component type; build it",
    );
}

#[test]
fn a_core_module_whose_type_promises_what_it_lacks() {
    let message = refused(&typed("(module (memory (export \"memory\") 1))", CONTRACT, "validator"));
    assert_starts(&message, "is a core module that cannot be wrapped: ");
    assert!(message.contains("sluice:module/validate@0.1.0"), "{message}");
}

#[test]
fn imports_that_nobody_offers() {
    // What a build for wasm32-wasip1 gives.
    let wasi = hostile_validator(|text| {
        let import =
            r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#;
        text.replacen("(module", &format!("(module {import}"), 1)
    });
    let message = refused(&wasi);
    assert_starts(
        &message,
        "imports `wasi_snapshot_preview1`, but a module may import nothing but sluice:module/log (no clock",
    );
    assert!(message.contains("build it for wasm32-unknown-unknown"), "{message}");

    // A component that asks for a clock, rightly typed.
    let clock = format!(
        "{CONTRACT}\ninterface clock {{ now: func() -> u64; }}\nworld late {{ import clock; export validate; }}"
    );
    let late = with_prelude(include_str!("../../testdata/guests/validator.wat")).replacen(
        "(module",
        r#"(module (import "sluice:module/clock@0.1.0" "now" (func $now (result i64)))"#,
        1,
    );
    let message = refused(&typed(&late, &clock, "late"));
    assert_starts(
        &message,
        "imports `sluice:module/clock@0.1.0`, but a module may import nothing but sluice:module/log (no clock",
    );
}

#[test]
fn another_version_of_the_contract() {
    let text = with_prelude(include_str!("../../testdata/guests/validator.wat")).replace("@0.1.0", "@0.2.0");
    let message = refused(&typed(&text, &CONTRACT.replace("@0.1.0", "@0.2.0"), "validator"));
    assert_eq!(
        message,
        "speaks version 0.2.0 of the module contract, this host speaks 0.1.0; \
         rebuild it with the SDK of this host"
    );
}

#[test]
fn the_right_version_with_other_types() {
    let contract = CONTRACT.replace("partition: u32,", "partition: u64,");
    assert_ne!(contract, CONTRACT);
    let text = with_prelude(include_str!("../../testdata/guests/validator.wat"));
    let message = refused(&typed(&text, &contract, "validator"));
    assert_starts(&message, "does not fit this host: ");
    assert!(message.contains("field partition: expected `u32` found `u64`"), "{message}");
}

#[test]
fn a_component_of_another_world() {
    let component = wat::parse_str(
        r#"(component
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func (export "run") (canon lift (core func $i "f"))))"#,
    );
    let message = refused(&component.expect("wat"));
    assert_starts(&message, "is no Sluice module: it exports run and neither sluice:module/validate nor");
    let message = refused(&wat::parse_str("(component)").expect("wat"));
    assert_starts(&message, "is no Sluice module: it exports nothing and");
}

#[test]
fn a_mapper_among_the_validators_and_the_reverse() {
    let modules = ModuleFolder::new(tight());
    modules.write("validators/rule.wasm", &hostile_mapper(|text| text));
    modules.write("mapper.wasm", &hostile_validator(|text| text));
    assert_eq!(
        modules.load_error(),
        "module validators/rule.wasm is a mapper, but a validator is due here; \
         name it as the pipeline's mapper and take it out of the folder of validators\n\
         module mapper.wasm is a validator, but a mapper is due here; put it into the folder of validators"
    );
}

#[test]
fn a_component_is_taken_as_well_as_a_core_module() {
    let core = hostile_validator(|text| text);
    let component = wit_component::ComponentEncoder::default()
        .module(&core)
        .expect("a module")
        .encode()
        .expect("encodes");
    let modules = ModuleFolder::new(tight());
    modules.write("validators/rule.wasm", &component);
    modules.load().unwrap_or_else(|error| panic!("{error}"));
}

/// Half of the quarter of a second that a call has.
const TOO_SLOW: &str = "needs more than 125ms for init, which is half of its call_timeout; init runs before every \
                        call, and what only just fits fails on a busy machine: do less in init, or raise call_timeout";

#[test]
fn init_that_fails() {
    let settings = "(settings: {})";
    assert_eq!(
        refused(&validator_with_init("(unreachable)")),
        format!("fails in init: wasm trap: wasm `unreachable` instruction executed {settings}")
    );
    assert_eq!(
        refused(&validator_with_init("(call $hoard) (unreachable)")),
        format!("fails in init: asked for 16842752 bytes of memory; the limit is 16777216 {settings}")
    );
    let started = Instant::now();
    assert_eq!(refused(&validator_with_init("(call $endless) (unreachable)")), TOO_SLOW);
    assert!(started.elapsed() < Duration::from_secs(5));
    // The error case of `init`: discriminant 1, then the text.
    let refuses = "(i32.store (i32.const 0) (i32.const 1)) (i32.store (i32.const 4) (i32.const 288)) \
                   (i32.store (i32.const 8) (i32.const 17)) (i32.const 0)";
    assert_eq!(refused(&validator_with_init(refuses)), "refuses its settings: the guest said so");
}

#[test]
fn a_start_function_that_fails() {
    let with_start = |start: &str| {
        let start = format!("(module (start $begin) (func $begin {start})");
        hostile_validator(move |text| text.replacen("(module", &start, 1))
    };
    assert_starts(&refused(&with_start("(unreachable)")), "fails in init: wasm trap: wasm `unreachable`");
    assert_eq!(refused(&with_start("(call $endless)")), TOO_SLOW);
}

#[test]
fn memory_that_is_too_large_from_the_start() {
    let bytes = hostile_validator(|text| {
        text.replace(r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 257)"#)
    });
    let message = refused(&bytes);
    assert_starts(&message, "fails in init: asked for 16842752 bytes of memory; the limit is 16777216");
}

#[test]
fn tables_obeyed_and_violated() {
    let with_table = |elements: usize| {
        let table = format!("(module (table {elements} funcref)");
        hostile_validator(move |text| text.replacen("(module", &table, 1))
    };
    let limits = || Limits { table_elements: 100, ..tight() };
    let modules = ModuleFolder::new(limits());
    modules.write("validators/rule.wasm", &with_table(100));
    modules.load().unwrap_or_else(|error| panic!("{error}"));
    let message = refused_within(&with_table(101), limits());
    assert_starts(&message, "fails in init: asked for 101 table elements; the limit is 100");
}

#[test]
fn instances_obeyed_and_violated() {
    // A part of its own for one import: several core instances once it is put together.
    let importing =
        hostile_validator(|text| text.replacen("(module", r#"(module (import "part" "run" (func $run))"#, 1));
    let part = typed(r#"(module (func (export "run")))"#, "package a:part; world part {}", "part");
    let component = wit_component::ComponentEncoder::default()
        .module(&importing)
        .and_then(|encoder| encoder.adapter("part", &part))
        .and_then(|mut encoder| encoder.encode())
        .expect("encodes");
    let limits = |instances| Limits { instances, ..tight() };
    let loads = |instances| {
        let modules = ModuleFolder::new(limits(instances));
        modules.write("validators/rule.wasm", &component);
        modules.load().is_ok()
    };
    let parts = (1..=8).find(|instances| loads(*instances)).expect("loads with enough instances");
    assert!(parts > 1);
    let message = refused_within(&component, limits(parts - 1));
    assert_starts(&message, "does not fit this host: resource limit exceeded: instance count too high");
}

#[test]
fn limits_that_cannot_hold() {
    let limits = Limits { output_bytes_per_record: usize::MAX, ..tight() };
    let message = refused_within(&hostile_validator(|text| text), limits);
    assert_starts(
        &message,
        "cannot be held to its limits: output_bytes_per_record is 18446744073709551615; set",
    );
}

#[test]
fn outputs_that_cannot_be() {
    let mapper = |from: &'static str, to: &'static str| {
        let modules = ModuleFolder::new(tight());
        assert_eq!(from.len(), to.len(), "the constants keep their places");
        modules.write("mapper.wasm", &hostile_mapper(|text| text.replace(from, to)));
        modules.load_error()
    };
    let start = "module mapper.wasm declares outputs that cannot be: ";
    assert_starts(&mapper("String\")", "Strong\")"), &format!("{start}output `texts`, column `text`: "));
    assert_starts(&mapper("(data (i32.const 600) \"texts", "(data (i32.const 600) \"te\\0a"), start);
}

#[test]
fn settings_that_are_not_a_map() {
    let mut modules = ModuleFolder::new(tight());
    modules.write("validators/rule.wasm", &hostile_validator(|text| text));
    modules.configure("rule", json!(["a"]));
    assert_eq!(
        modules.load_error(),
        "module validators/rule.wasm has settings that are not a map of names to values, but a list"
    );
}

#[test]
fn settings_make_the_revision_and_their_order_does_not() {
    let mut modules = ModuleFolder::new(tight());
    modules.write("validators/rule.wasm", &hostile_validator(|text| text));
    let mut revision = |settings| {
        modules.configure("rule", settings);
        let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
        chain.loaded().next().expect("a module").identity().revision
    };
    let one = revision(json!({"a": 1, "b": 2}));
    assert_eq!(one, revision(json!({"b": 2, "a": 1})));
    assert_ne!(one, revision(json!({"a": 1, "b": 3})));
}

#[test]
fn files_that_are_not_there() {
    let mut modules = ModuleFolder::new(tight());
    modules.settings.mapper = modules.path("missing.wasm");
    modules.settings.validators = Some(modules.path("nowhere"));
    assert_eq!(
        modules.load_error(),
        "module nowhere cannot be read: No such file or directory (os error 2)\n\
         module missing.wasm cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn files_that_cannot_be_read_to_their_end() {
    // Larger than anything, and all of it a hole: refused by its length, not after it was read.
    let modules = ModuleFolder::new(tight());
    let sparse = std::fs::File::create(modules.path("validators/rule.wasm")).expect("a file");
    sparse.set_len(200 << 20).expect("a hole");
    let message = modules.load_error();
    assert_starts(&message, "module validators/rule.wasm is larger than 8388608 bytes; make it smaller");
    std::fs::remove_file(modules.path("validators/rule.wasm")).expect("removed");

    // Nobody ever writes to it, so that opening it would never end.
    let pipe = std::process::Command::new("mkfifo").arg(modules.path("validators/rule.wasm")).status();
    assert!(pipe.expect("mkfifo runs").success());
    let message = modules.load_error();
    assert_starts(&message, "module validators/rule.wasm is not a file; copy the .wasm file");
    std::fs::remove_file(modules.path("validators/rule.wasm")).expect("removed");

    std::os::unix::fs::symlink("/dev/zero", modules.path("validators/rule.wasm")).expect("a link");
    assert_starts(&modules.load_error(), "module validators/rule.wasm is not a file; copy the .wasm file");
}

#[test]
fn a_folder_and_a_name_that_is_taken() {
    let modules = ModuleFolder::new(tight());
    std::fs::create_dir(modules.path("validators/folder.wasm")).expect("a folder");
    modules.write("validators/mapper.wasm", &hostile_validator(|text| text));
    assert_eq!(
        modules.load_error(),
        "module validators/folder.wasm is not a file; copy the .wasm file that the compiler made\n\
         module mapper.wasm has the name of a validator, and settings and metrics go by name; rename one of them"
    );
}

#[test]
fn a_module_that_is_alive_is_not_loaded_twice() {
    let modules = ModuleFolder::new(tight());
    modules.write("validators/rule.wasm", &hostile_validator(|text| text));
    let (one, other) = (modules.load().expect("loads"), modules.load().expect("loads"));
    for (module, again) in one.loaded().zip(other.loaded()) {
        assert!(std::sync::Arc::ptr_eq(module, again));
    }
}

/// A changed byte of the component type can overflow the stack of its parser, which ends the process; so these
/// are compiled by a process of their own, and that one is what the host does.
#[test]
fn a_file_that_is_damaged_anywhere_is_refused_or_runs_and_never_the_machines_fault() {
    let compiler = Compiler::child_of(env!("CARGO_BIN_EXE_sluice").into());
    let modules = ModuleFolder::on(engine().with_compiler(compiler), tight());
    let load = |bytes: &[u8]| {
        modules.write("validators/rule.wasm", bytes);
        modules.load().map(drop).map_err(|error| error.to_string())
    };
    let whole = hostile_validator(|text| text);
    let typed = whole.windows(14).position(|part| part == b"component-type").expect("a component type");
    let in_type = typed..whole.len();
    let elsewhere = (0..typed).step_by(37);
    let mut refused = 0;
    for index in elsewhere.chain(in_type.step_by(5)) {
        // Another bit each time.
        let mut other = whole.clone();
        other[index] ^= 1 << (index % 8);
        for bytes in [&other[..], &whole[..index]] {
            let loaded = load(bytes);
            let is_fine =
                loaded.as_ref().map_or_else(|error| !error.contains("this machine's doing"), |()| true);
            assert!(is_fine, "byte {index}: {loaded:?}");
            refused += usize::from(loaded.is_err());
        }
    }
    assert!(refused > 100, "{refused}");
    load(&whole).expect("the whole file is fine");
}
