//! A second run of archived modules gives the verdicts of the first: the ground that recovery stands on.
//!
//! Guests are the hostile ones of `testdata/guests`: what a record does to them is its first letter.

mod support;

use bytes::Bytes;
use sluice::domain::batch::Part;
use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::intent::{ForcedKind, VerdictDigest, digest};
use sluice::domain::module::module_revision;
use sluice::domain::verdict::{ChunkVerdicts, RejectionKind, Stage};
use sluice::pipeline::ports::{Chain, Forced};
use sluice::wasm::WasmChain;
use support::guests::{ModuleFolder, chunk, hostile_validator, tight};

/// A record that must be rejected again, by its offset.
type ForcedOffset = (i64, usize, ForcedKind);

/// Two hostile validators in front of the hostile mapper, told apart by what they do it on: they
/// reject `x`, `y` and `r`, and loop on `L`, `K` and `J`.
fn folder() -> ModuleFolder {
    let folder = ModuleFolder::new(tight());
    let rejecting = |letter: u8, looping: u8| {
        move |text: String| {
            let change = |text: String, from: &str, to: String| {
                assert!(text.contains(from), "{from}");
                text.replace(from, &to)
            };
            let text = change(text, "(i32.const 114)) ;; r", format!("(i32.const {letter})) ;; r"));
            change(text, "(i32.const 76)) (then (call $endless))", {
                format!("(i32.const {looping})) (then (call $endless))")
            })
        }
    };
    folder.write("validators/10-first.wasm", &hostile_validator(rejecting(b'x', b'L')));
    folder.write("validators/20-second.wasm", &hostile_validator(rejecting(b'y', b'K')));
    let mapper = support::guests::hostile_mapper(|text| {
        text.replace("(i32.const 76)) (then (call $endless))", "(i32.const 74)) (then (call $endless))")
    });
    folder.write("mapper.wasm", &mapper);
    folder
}

/// Records in pieces of so many, at their offsets.
fn cut(whole: &Chunk, sizes: &[usize]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let (mut next, mut sizes) = (0, sizes.iter().cycle());
    while next < whole.len() {
        let end = (next + sizes.next().expect("it cycles")).min(whole.len());
        let mut builder = ChunkBuilder::new(whole.topic.clone(), whole.partition, whole.offset(next));
        for index in next..end {
            let record = whole.record(index);
            builder.push(record.offset, record.timestamp, record.key, record.payload, whole.headers(index));
        }
        chunks.push(builder.build());
        next = end;
    }
    chunks
}

fn run(chain: &WasmChain, chunks: &[Chunk], forced: &[ForcedOffset]) -> Vec<ChunkVerdicts> {
    let mut runner = chain.runner();
    let run = |chunk: &Chunk| {
        let forced: Vec<Forced> = (0..chunk.len() as u32)
            .filter_map(|index| {
                let of = |(offset, ..): &&ForcedOffset| *offset == chunk.offset(index as usize);
                let (_, module, kind) = *forced.iter().find(of)?;
                Some(Forced { index, module, kind })
            })
            .collect();
        if forced.is_empty() { runner.run(chunk) } else { runner.run_again(chunk, &forced) }
    };
    chunks.iter().map(run).collect()
}

/// What an intent would record of these verdicts.
fn forced(chain: &WasmChain, chunks: &[Chunk], verdicts: &[ChunkVerdicts]) -> Vec<ForcedOffset> {
    let of_chunk = |(chunk, verdicts): (&Chunk, &ChunkVerdicts)| {
        let forced = verdicts.rejections.iter().filter_map(|(index, rejection)| {
            let kind = ForcedKind::of(rejection.kind)?;
            let module = chain.modules().iter().position(|module| module.name == rejection.module)?;
            Some((chunk.offset(*index as usize), module, kind))
        });
        forced.collect::<Vec<_>>()
    };
    chunks.iter().zip(verdicts).flat_map(of_chunk).collect()
}

fn digest_of(chunks: Vec<Chunk>, verdicts: Vec<ChunkVerdicts>) -> VerdictDigest {
    let parts = chunks.into_iter().zip(verdicts);
    let parts: Vec<_> = parts
        .map(|(chunk, verdicts)| Part { chunk: chunk.into(), verdicts: verdicts.into(), epoch: 1 })
        .collect();
    digest(&parts)
}

/// Calls of a module, and those of them that failed as `kind`.
fn counted(folder: &ModuleFolder, module: &str, kind: &str) -> (u64, u64) {
    let value = |name: &str, labels: &[(&str, &str)]| {
        let families = folder.metrics.gather();
        let family = families.iter().find(|family| family.name() == name).expect("the metric is there");
        let found: Vec<_> = family
            .get_metric()
            .iter()
            .filter(|metric| {
                labels.iter().all(|(name, value)| {
                    metric.get_label().iter().any(|label| label.name() == *name && label.value() == *value)
                })
            })
            .collect();
        let [metric] = found[..] else { panic!("{name} {labels:?}: {} of them", found.len()) };
        metric.get_counter().get_value() as u64
    };
    let calls = value("sluice_module_calls_total", &[("pipeline", "tests"), ("module", module)]);
    let faults = [("pipeline", "tests"), ("module", module), ("kind", kind)];
    (calls, value("sluice_module_faults_total", &faults))
}

#[test]
fn archived_modules_say_again_what_they_said_however_the_records_are_cut() {
    let folder = folder();
    let (chain, archived) = folder.load_and_archive();
    let names: Vec<_> = archived.iter().map(|module| (&*module.name, module.stage)).collect();
    assert_eq!(
        names,
        [("10-first", Stage::Validate), ("20-second", Stage::Validate), ("mapper", Stage::Map)]
    );
    assert!(archived.iter().zip(chain.modules()).all(|(kept, runs)| kept.revision == runs.revision));

    // Rows, two rows, no rows, rejections of every stage, traps, memory, loops, bad rows; and `c`,
    // which is rejected by an instance that was called before.
    let letters = "axbyc2fcTrHKdLxJWeychLawRcg";
    let whole = chunk(letters.split("").filter(|letter| !letter.is_empty()));
    let chunks = cut(&whole, &[10]);
    let verdicts = run(&chain, &chunks, &[]);
    let kinds = |kind: RejectionKind| {
        let all = verdicts.iter().flat_map(|verdicts| &verdicts.rejections);
        all.filter(|(_, rejection)| rejection.kind == kind).count()
    };
    assert_eq!((kinds(RejectionKind::Timeout), kinds(RejectionKind::Memory)), (4, 1));
    assert!(kinds(RejectionKind::Trap) == 1 && kinds(RejectionKind::BadRow) >= 2);
    let forced = forced(&chain, &chunks, &verdicts);
    let modules: Vec<_> = forced.iter().map(|(_, module, _)| *module).collect();
    assert_eq!(modules, [0, 1, 0, 2, 0], "H, K, L, J, L");
    let first = digest_of(chunks, verdicts);
    let timeouts = ["10-first", "20-second", "mapper"].map(|name| counted(&folder, name, "timeout").1);

    // On a host that has never seen the files.
    drop(chain);
    let other = ModuleFolder::new(tight());
    for folder in [&folder, &other] {
        let again = folder.load_archived(archived.clone()).unwrap_or_else(|error| panic!("{error}"));
        for sizes in [&[27][..], &[1], &[3, 7, 2], &[13, 1]] {
            let chunks = cut(&whole, sizes);
            let verdicts = run(&again, &chunks, &forced);
            assert_eq!(digest_of(chunks, verdicts), first, "chunks of {sizes:?}");
        }
    }
    // Nobody was asked again what it loops on, in either folder.
    let again = ["10-first", "20-second", "mapper"].map(|name| counted(&folder, name, "timeout").1);
    assert_eq!(again, timeouts);
    let elsewhere = ["10-first", "20-second", "mapper"].map(|name| counted(&other, name, "timeout").1);
    assert_eq!(elsewhere, [0, 0, 0]);
}

#[test]
fn a_forced_record_meets_what_stands_before_its_module_and_nothing_behind() {
    let folder = folder();
    let (chain, _) = folder.load_and_archive();
    let records = chunk(["x", "a", "y", "x", "b", "c"]);
    let forced = [
        // Rejected by the first validator, before the module that it failed in is reached.
        Forced { index: 0, module: 1, kind: ForcedKind::Timeout },
        Forced { index: 1, module: 1, kind: ForcedKind::Memory },
        Forced { index: 4, module: 2, kind: ForcedKind::Timeout },
    ];
    let verdicts = chain.runner().run_again(&records, &forced);
    let seen: Vec<_> = verdicts
        .rejections
        .iter()
        .map(|(index, rejection)| {
            (*index, &*rejection.module, rejection.stage, rejection.kind, rejection.code.as_str())
        })
        .collect();
    use RejectionKind::{Memory, Rejected, Timeout};
    assert_eq!(
        seen,
        [
            (0, "10-first", Stage::Validate, Rejected, "no_thanks"),
            (1, "20-second", Stage::Validate, Memory, "out_of_memory"),
            (2, "20-second", Stage::Validate, Rejected, "no_thanks"),
            (3, "10-first", Stage::Validate, Rejected, "no_thanks"),
            (4, "mapper", Stage::Map, Timeout, "timeout"),
        ]
    );
    for (_, rejection) in &verdicts.rejections {
        let module = chain.modules().iter().find(|module| module.name == rejection.module);
        assert_eq!(rejection.revision, module.map(|module| module.revision));
    }
    assert_eq!(verdicts.rejections[1].1.reason, "memory when it was judged first; not judged again");
    assert_eq!(verdicts.outputs[0].rows_per_record, [0, 0, 0, 0, 0, 1]);
    assert_eq!(verdicts.outputs[0].bytes, b"\x01c");
    assert_eq!(verdicts.chain, chain.revision());
    // One call each: nothing was looked for.
    for module in ["10-first", "20-second", "mapper"] {
        assert_eq!(counted(&folder, module, "timeout"), (1, 0), "{module}");
    }
}

#[test]
fn a_module_all_of_whose_records_are_forced_is_not_called() {
    let folder = folder();
    let (chain, _) = folder.load_and_archive();
    let records = chunk(["L", "L", "L"]);
    let all = |module: usize| [0, 1, 2].map(|index| Forced { index, module, kind: ForcedKind::Timeout });
    for (module, calls) in [(0, [0, 0, 0]), (1, [1, 0, 0]), (2, [1, 1, 0])] {
        let records = if module == 0 { &records } else { &chunk(["a", "b", "c"]) };
        let before = ["10-first", "20-second", "mapper"].map(|name| counted(&folder, name, "timeout").0);
        let verdicts = chain.runner().run_again(records, &all(module));
        let after = ["10-first", "20-second", "mapper"].map(|name| counted(&folder, name, "timeout").0);
        assert_eq!([0, 1, 2].map(|index| after[index] - before[index]), calls, "forced in {module}");
        assert_eq!(verdicts.rejections.len(), 3);
        let name = &chain.modules()[module].name;
        assert!(verdicts.rejections.iter().all(|(_, rejection)| rejection.module == *name));
        assert_eq!(verdicts.outputs[0].rows_per_record, [0, 0, 0]);
        assert_eq!(verdicts.outputs[0].row_ends, [0u32; 0]);
    }
}

#[test]
fn a_second_run_has_ten_times_the_time_and_says_a_timeout_that_was_not_recorded() {
    let mut folder = folder();
    folder.settings.limits.default.call_timeout = std::time::Duration::from_millis(20);
    let (chain, archived) = folder.load_and_archive();
    let again = folder.load_archived(archived.clone()).unwrap_or_else(|error| panic!("{error}"));
    drop(chain);
    let compiled = folder.load_archived(archived).unwrap_or_else(|error| panic!("{error}"));
    for chain in [again, compiled] {
        let verdicts = chain.runner().run_again(&chunk(["a", "L"]), &[]);
        let [(1, rejection)] = &verdicts.rejections[..] else { panic!("{:?}", verdicts.rejections) };
        assert_eq!(rejection.reason, "no answer within 200 ms");
    }
}

#[test]
fn what_was_not_judged_is_not_judged_again() {
    let mut folder = folder();
    folder.settings.limits.default.call_timeout = std::time::Duration::from_millis(20);
    let (chain, archived) = folder.load_and_archive();
    // The module hangs on so many that it is given up, and records that it would accept are refused unrun.
    let whole = chunk((0..300).map(|index| if index % 10 == 0 { "a" } else { "L" }));
    let chunks = cut(&whole, &[300]);
    let verdicts = run(&chain, &chunks, &[]);
    let unjudged = |(index, rejection): &&(u32, sluice::domain::verdict::Rejection)| {
        index % 10 == 0 && rejection.reason.starts_with("not judged")
    };
    assert!(verdicts[0].rejections.iter().filter(unjudged).count() > 20, "{:?}", verdicts[0].rejections);
    let forced = forced(&chain, &chunks, &verdicts);
    assert_eq!(forced.len(), verdicts[0].rejections.len(), "every one is recorded");
    let first = digest_of(chunks, verdicts);

    let other = ModuleFolder::new(tight());
    let again = other.load_archived(archived).unwrap_or_else(|error| panic!("{error}"));
    for sizes in [&[300][..], &[7], &[100, 1]] {
        let chunks = cut(&whole, sizes);
        let verdicts = run(&again, &chunks, &forced);
        assert_eq!(digest_of(chunks, verdicts), first, "chunks of {sizes:?}");
    }
    assert_eq!(counted(&other, "10-first", "timeout").1, 0, "nothing that was refused is run");
}

#[test]
fn settings_and_names_are_part_of_what_is_archived() {
    let mut folder = folder();
    folder.configure("10-first", serde_json::json!({"b": 0.1, "a": [1e300, {"d": 1, "c": 2}]}));
    let (chain, archived) = folder.load_and_archive();
    assert_eq!(archived[0].settings, r#"{"a":[1e+300,{"c":2,"d":1}],"b":0.1}"#);
    let again = folder.load_archived(archived.clone()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(again.revision(), chain.revision());
    assert_eq!(again.modules(), chain.modules());

    let mut renamed = archived;
    renamed[0].name = "renamed".into();
    let again = folder.load_archived(renamed).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(&*again.modules()[0].name, "renamed");
    assert_eq!(again.modules()[0].revision, chain.modules()[0].revision);
}

#[test]
fn what_is_not_what_it_is_kept_as_is_refused() {
    let folder = folder();
    let (_, archived) = folder.load_and_archive();
    let mut damaged = archived.clone();
    damaged[1].settings = r#"{"a":1}"#.into();
    damaged[2].bytes = Bytes::from_static(b"\0asm");
    let error = folder.load_archived(damaged).expect_err("it is damaged").to_string();
    let revision = archived[1].revision;
    let found = module_revision(&archived[1].bytes, r#"{"a":1}"#);
    let expected =
        format!("20-second (archived, revision {revision}) has revision {found}, but is kept as {revision}");
    assert!(error.contains(&expected), "{error}");
    assert_eq!(error.lines().count(), 2, "both are told: {error}");

    for chain in [&archived[..2], &archived[1..1], &[archived[2].clone(), archived[2].clone()]] {
        let error = folder.load_archived(chain.to_vec()).expect_err("it is no chain").to_string();
        assert!(error.contains("is no chain"), "{error}");
    }
    folder.load_archived(archived[2..].to_vec()).expect("a mapper alone is a chain");
}
