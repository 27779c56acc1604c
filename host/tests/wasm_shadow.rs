//! Shadows of real guests: what they are shown, what is compared, and that they cost the stream nothing.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::domain::chunk::Chunk;
use sluice::domain::module::{ArchivedModule, module_revision};
use sluice::domain::verdict::{ChunkVerdicts, Stage};
use sluice::pipeline::modules::ShadowReport;
use sluice::pipeline::ports::Chain as _;
use sluice::wasm::{Module, WasmChain};
use support::guests::{
    ModuleFolder, chunk, hostile_mapper, hostile_validator, looping, rejecting, tight, trapping,
};
use support::sluice::PATIENCE;

/// Rules that reject `r` and then `x`, and the mapper.
fn folder(shadow_share: f64) -> ModuleFolder {
    let folder = ModuleFolder::new(tight()).with_shadow_share(shadow_share);
    folder.write("validators/first.wasm", &hostile_validator(|text| text));
    folder.write("validators/second.wasm", &rejecting(b'x', 0));
    folder
}

fn load(folder: &ModuleFolder) -> WasmChain {
    folder.load().unwrap_or_else(|error| panic!("{error}"))
}

/// Starts `bytes` as the shadow of the module of this name.
fn shadow(folder: &ModuleFolder, chain: &WasmChain, name: &str, bytes: Vec<u8>) -> Arc<Module> {
    let live = chain.loaded().find(|module| &*module.identity().name == name).expect("it is live").clone();
    let file = ArchivedModule {
        revision: module_revision(&bytes, "{}"),
        stage: live.identity().stage,
        name: name.to_owned(),
        bytes: bytes.into(),
        settings: "{}".to_owned(),
    };
    let module = folder.registry().load(&file, &folder.settings).unwrap_or_else(|fault| panic!("{fault}"));
    folder.registry().shadow("tests", &live, module).expect("a thread");
    live
}

fn report(folder: &ModuleFolder, stage: Stage, name: &str) -> ShadowReport {
    folder.registry().shadow_report("tests", stage, &name.into()).expect("it has a shadow")
}

fn run(chain: &WasmChain, chunk: &Chunk) -> ChunkVerdicts {
    chain.runner().run(chunk)
}

/// Runs one chunk and waits until a shadow has been compared on so many records.
fn compared(
    folder: &ModuleFolder,
    chain: &WasmChain,
    chunk: &Chunk,
    stage: Stage,
    name: &str,
) -> ShadowReport {
    let before = report(folder, stage, name).records;
    run(chain, chunk);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = report(folder, stage, name);
        if report.records > before {
            return report;
        }
        assert!(Instant::now() < deadline, "nothing is compared: {report:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn offsets(report: &ShadowReport, difference: &str) -> Vec<i64> {
    report
        .samples
        .iter()
        .filter(|sample| sample.difference == difference)
        .map(|sample| sample.offset)
        .collect()
}

#[test]
fn a_validators_shadow_is_shown_what_its_live_module_was() {
    let folder = folder(1.0);
    let chain = load(&folder);
    let live = shadow(&folder, &chain, "second", rejecting(b'y', 0));
    // The first rule takes the records with r: neither the second nor its shadow sees them.
    let chunk = chunk(["r", "x", "y", "a", "r", "y"]);
    let report = compared(&folder, &chain, &chunk, Stage::Validate, "second");
    assert_eq!((report.records, report.same), (4, 1));
    assert_eq!((report.newly_accepted, report.newly_rejected), (1, 2));
    assert_eq!((report.other_code, report.other_rows, report.faults, report.skipped), (0, 0, 0, 0));
    assert_eq!(report.live, live.identity().revision.to_string());
    assert_eq!(offsets(&report, "newly_accepted"), [101]);
    assert_eq!(offsets(&report, "newly_rejected"), [105, 102], "the newest first");
    let sample = report.samples.iter().find(|sample| sample.offset == 102).expect("it is there");
    assert_eq!((&*sample.topic, sample.partition, &*sample.live), ("purchases", 3, "accepted"));
    assert!(sample.shadow.starts_with("rejected "), "{}", sample.shadow);

    let again = compared(&folder, &chain, &chunk, Stage::Validate, "second");
    assert_eq!((again.records, again.newly_rejected), (8, 4));
    let metric = |difference: &str| {
        let families = folder.metrics.gather();
        let family = families.iter().find(|family| family.name() == "sluice_shadow_records_total");
        let metric = family.and_then(|family| {
            family
                .get_metric()
                .iter()
                .find(|metric| metric.get_label().iter().any(|label| label.value() == difference))
        });
        metric.map_or(0.0, |metric| metric.get_counter().get_value())
    };
    // The counters follow the report.
    let deadline = Instant::now() + PATIENCE;
    while metric("newly_rejected") < 4.0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((metric("newly_rejected"), metric("newly_accepted"), metric("same")), (4.0, 2.0, 2.0));
}

#[test]
fn a_mappers_shadow_is_compared_row_by_row() {
    let folder = folder(1.0);
    let chain = load(&folder);
    // The letter after the one that is due, in the column of another name.
    let other = |text: String| {
        let changed = text.replacen(
            "(call $byte (local.get $letter))",
            "(call $byte (i32.add (local.get $letter) (i32.eq (local.get $letter) (i32.const 97))))",
            1,
        );
        assert_ne!(changed, text);
        changed
    };
    shadow(&folder, &chain, "mapper", hostile_mapper(other));
    // x is rejected before the mapper, f gives no row, 2 gives two.
    let chunk = chunk(["a", "b", "x", "f", "2", "a"]);
    let report = compared(&folder, &chain, &chunk, Stage::Map, "mapper");
    assert_eq!((report.records, report.same, report.other_rows), (5, 3, 2));
    let sample = &report.samples[0];
    assert_eq!((sample.offset, sample.difference), (105, "other_rows"));
    assert_eq!((&*sample.live, &*sample.shadow), (r#"[{"text":"a"}]"#, r#"[{"text":"b"}]"#));
}

#[test]
fn another_live_revision_or_shadow_begins_anew_and_the_same_goes_on() {
    let folder = folder(1.0);
    let chain = load(&folder);
    shadow(&folder, &chain, "second", rejecting(b'y', 0));
    let chunk = chunk(["x", "y"]);
    compared(&folder, &chain, &chunk, Stage::Validate, "second");
    shadow(&folder, &chain, "second", rejecting(b'y', 0));
    assert_eq!(report(&folder, Stage::Validate, "second").records, 2);
    shadow(&folder, &chain, "second", rejecting(b'z', 0));
    let anew = report(&folder, Stage::Validate, "second");
    assert_eq!((anew.records, anew.samples.len()), (0, 0));
    let all = compared(&folder, &chain, &chunk, Stage::Validate, "second");
    assert_eq!((all.newly_accepted, all.newly_rejected, all.same), (1, 0, 1));

    folder.write("validators/second.wasm", &rejecting(b'y', 0));
    let next = load(&folder);
    let live = shadow(&folder, &next, "second", rejecting(b'z', 0));
    // What the revision before still judges is not held against this one.
    run(&chain, &chunk);
    let report = compared(&folder, &next, &chunk, Stage::Validate, "second");
    assert_eq!((report.records, report.live), (2, live.identity().revision.to_string()));

    folder.registry().end_shadow("tests", Stage::Validate, &"second".into());
    assert_eq!(folder.registry().shadow_report("tests", Stage::Validate, &"second".into()), None);
    run(&next, &chunk);
}

#[test]
fn whatever_a_shadow_does_the_verdicts_are_those_of_the_live_ones() {
    let payloads: Vec<String> = (0..200).map(|number| ["a", "x", "r", "2"][number % 4].to_owned()).collect();
    let chunk = chunk(payloads);
    let without = run(&load(&folder(1.0)), &chunk);
    for bytes in [trapping(), hostile_validator(|text| text), rejecting(b'a', 0)] {
        let folder = folder(1.0);
        let chain = load(&folder);
        shadow(&folder, &chain, "second", bytes);
        assert_eq!(run(&chain, &chunk), without);
    }
    let folder = folder(1.0);
    let chain = load(&folder);
    shadow(&folder, &chain, "second", trapping());
    let report = compared(&folder, &chain, &chunk, Stage::Validate, "second");
    assert_eq!((report.records, report.faults), (150, 150));
}

/// A shadow that hangs is shown one chunk, which takes it a timeout at least; then it rests for 999 times as
/// long as that took, so that all that follows is skipped.
#[test]
fn a_shadow_that_takes_long_is_shown_little_and_the_stream_goes_on() {
    let folder = folder(0.001);
    let chain = load(&folder);
    shadow(&folder, &chain, "second", looping());
    let chunk = chunk(["a", "x"]);
    let without = run(&load(&self::folder(1.0)), &chunk);
    for _ in 0..20 {
        assert_eq!(run(&chain, &chunk), without);
    }
    let report = report(&folder, Stage::Validate, "second");
    assert_eq!((report.skipped, report.records - report.faults), (38, 0));
}
