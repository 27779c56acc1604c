//! Hostile guests: whatever a module does costs the records that it did it on, and nothing else.
//!
//! Each guest misbehaves on the records whose payload begins with a certain letter
//! (`testdata/guests`), so every test shows the verdict on that record and that its neighbours go
//! through. Limits are tested obeyed and violated.

mod support;

use std::time::Duration;

use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::verdict::{ChunkVerdicts, Rejection, RejectionKind, Stage};
use sluice::pipeline::ports::Chain;
use sluice::wasm::{Limits, WasmEngine};
use support::guests::{ModuleFolder, chunk, hostile_mapper, hostile_validator, tight, validator_with_init};

fn hostile(limits: Limits) -> ModuleFolder {
    let modules = ModuleFolder::new(limits);
    modules.write("validators/hostile.wasm", &hostile_validator(|text| text));
    modules
}

/// The hostile mapper alone.
fn mapper_only(limits: Limits) -> ModuleFolder {
    let mut modules = ModuleFolder::new(limits);
    modules.settings.validators = None;
    modules
}

fn run(modules: &ModuleFolder, chunk: &Chunk) -> ChunkVerdicts {
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    chain.runner().run(chunk)
}

/// The rows of each record, as text.
fn texts(verdicts: &ChunkVerdicts) -> Vec<Vec<String>> {
    let [rows] = &verdicts.outputs[..] else { panic!("one output") };
    let mut start = 0;
    let mut ends = rows.row_ends.iter();
    let texts = rows
        .rows_per_record
        .iter()
        .map(|count| {
            ends.by_ref()
                .take(*count as usize)
                .map(|end| {
                    let row = &rows.bytes[start..*end as usize];
                    start = *end as usize;
                    assert_eq!(row[0] as usize, row.len() - 1, "a short string fills its row");
                    String::from_utf8_lossy(&row[1..]).into_owned()
                })
                .collect()
        })
        .collect();
    assert_eq!((ends.next(), start), (None, rows.bytes.len()));
    texts
}

/// Runs `a`, the letter, `b`, the letter, `c` in one chunk: the letter's records are refused, the
/// others come through. Answers the refusal.
fn refusal(modules: &ModuleFolder, letter: &str) -> Rejection {
    let verdicts = run(modules, &chunk(["a", letter, "b", letter, "c"]));
    assert_eq!(texts(&verdicts), [vec!["a"], vec![], vec!["b"], vec![], vec!["c"]]);
    let [(1, first), (3, second)] = &verdicts.rejections[..] else { panic!("{:?}", verdicts.rejections) };
    assert_eq!(first, second);
    assert!(first.revision.is_some());
    first.clone()
}

#[track_caller]
fn assert_refused(rejection: &Rejection, stage: Stage, kind: RejectionKind, code: &str, reason: &str) {
    let seen = (rejection.stage, rejection.kind, rejection.code.as_str(), rejection.reason.as_str());
    assert_eq!(seen, (stage, kind, code, reason));
}

use RejectionKind::{BadRow, Malformed, Memory, Rejected, Timeout, Trap};
use Stage::{Map, Validate};

const UNREACHABLE: &str = "wasm trap: wasm `unreachable` instruction executed";

#[test]
fn rejections_keep_their_code_field_and_reason() {
    let modules = hostile(tight());
    let rejection = refusal(&modules, "r");
    assert_refused(&rejection, Validate, Rejected, "no_thanks", "the guest said so");
    assert_eq!((&*rejection.module, rejection.field.as_deref()), ("hostile", Some("a.b")));
    let rejection = refusal(&modules, "m");
    assert_refused(&rejection, Validate, Malformed, "malformed", "the guest said so");
    assert_eq!(rejection.field, None);

    let rejection = refusal(&mapper_only(tight()), "r");
    assert_refused(&rejection, Map, Rejected, "no_thanks", "the guest said so");
    assert_eq!(&*rejection.module, "mapper");
}

#[test]
fn no_row_one_row_two_rows() {
    let verdicts = run(&mapper_only(tight()), &chunk(["a", "f", "2"]));
    assert_eq!(texts(&verdicts), [vec!["a"], vec![], vec!["2", "2"]]);
    assert_eq!(verdicts.rejections, []);
}

#[test]
fn a_chunk_without_survivors_has_no_rows() {
    let verdicts = run(&hostile(tight()), &chunk(["r", "r"]));
    assert_eq!(verdicts.rejections.len(), 2);
    assert_eq!(verdicts.outputs[0].rows_per_record, [0, 0]);
}

#[test]
fn traps() {
    assert_refused(&refusal(&hostile(tight()), "T"), Validate, Trap, "trap", UNREACHABLE);
    assert_refused(&refusal(&mapper_only(tight()), "T"), Map, Trap, "trap", UNREACHABLE);
    let rejection = refusal(&hostile(tight()), "Z");
    assert_refused(&rejection, Validate, Trap, "trap", "wasm trap: call stack exhausted");
}

#[test]
fn a_trap_on_the_last_of_a_full_chunk() {
    let payloads = (0..1024).map(|index| if index == 1023 { "T" } else { "a" });
    let verdicts = run(&hostile(tight()), &chunk(payloads));
    assert_eq!(verdicts.rejections.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1023]);
    assert_eq!(verdicts.outputs[0].row_ends.len(), 1023);
}

#[test]
fn traps_on_every_record_of_a_full_chunk() {
    let verdicts = run(&hostile(tight()), &chunk(vec!["T"; 1024]));
    assert!(verdicts.rejections.iter().map(|(index, _)| *index).eq(0..1024));
}

#[test]
fn endless_loops() {
    for modules in [hostile(tight()), mapper_only(tight())] {
        let rejection = refusal(&modules, "L");
        assert_eq!((rejection.kind, rejection.code.as_str()), (Timeout, "timeout"));
        assert_eq!(rejection.reason, "no answer within 250 ms");
    }
}

/// The value of a series of the hostile validator.
fn metric(modules: &ModuleFolder, name: &str) -> f64 {
    let text = prometheus::TextEncoder::new().encode_to_string(&modules.metrics.gather()).expect("text");
    let series = format!("{name}{{module=\"hostile\"");
    let line = text.lines().find(|line| line.starts_with(&series));
    let line = line.unwrap_or_else(|| panic!("{series}\n{text}"));
    line.rsplit_once(' ').expect("a value").1.parse().expect("a number")
}

#[test]
fn endless_loops_on_every_record_have_a_bounded_cost() {
    // 20 ms, which is the shortest deadline, too: each call that fails takes all of it.
    let limits = Limits { call_timeout: Duration::from_millis(20), ..tight() };
    let modules = hostile(limits);
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let mut runner = chain.runner();
    let mut run = |payloads: Vec<&str>| {
        let before = metric(&modules, "sluice_module_calls_total");
        let verdicts = runner.run(&chunk(payloads));
        (metric(&modules, "sluice_module_calls_total") - before, verdicts)
    };
    let (calls, verdicts) = run(vec!["L"; 1024]);
    assert!(calls <= 11.0, "{calls} calls");
    assert_eq!(verdicts.rejections.len(), 1024);
    for (_, rejection) in &verdicts.rejections {
        assert_eq!((rejection.kind, rejection.code.as_str()), (Timeout, "timeout"), "{rejection:?}");
    }
    let last = &verdicts.rejections[1023].1.reason;
    assert!(last.starts_with("not judged: the module lost ") && last.ends_with("of this chunk"), "{last}");
    let unjudged = verdicts.rejections.iter().filter(|(_, rejection)| rejection.reason == *last).count();
    assert_eq!(metric(&modules, "sluice_module_unjudged_total"), unjudged as f64);
    assert!(unjudged >= 1000, "{unjudged}");

    // It goes on like this, and gets less each time; its neighbours in the mapper are as ever.
    let more: Vec<_> = (0..4).map(|_| run(vec!["L"; 1024]).0).collect();
    assert!(more[0] <= 7.0 && more[3] <= 4.0, "{more:?} calls");
    // It mends its ways, and is searched as ever.
    let (calls, verdicts) = run(vec!["a"; 1024]);
    assert_eq!((calls, verdicts.rejections.len()), (1.0, 0));
    let (calls, _) = run(vec!["L"; 1024]);
    assert!(calls > 7.0, "{calls} calls");
}

#[test]
fn every_failure_on_every_record_is_bounded_in_calls() {
    for (letter, kind) in
        [("T", Trap), ("Z", Trap), ("H", Memory), ("X", BadRow), ("P", BadRow), ("N", BadRow)]
    {
        let modules = hostile(Limits { memory_bytes: 1 << 20, ..tight() });
        let verdicts = run(&modules, &chunk(vec![letter; 256]));
        assert!(verdicts.rejections.iter().map(|(index, _)| *index).eq(0..256), "{letter}");
        assert_eq!(verdicts.rejections[0].1.kind, kind, "{letter}");
        let calls = metric(&modules, "sluice_module_calls_total");
        assert!(calls <= 511.0, "{letter}: {calls} calls");
    }
}

#[test]
fn an_init_that_takes_its_time_is_counted() {
    // Five million rounds for every instance, of which a module that traps would have 2,047 made.
    let slow = "(local $n i32) (loop $more (br_if $more (i32.ne (i32.const 5000000) \
                (local.tee $n (i32.add (local.get $n) (i32.const 1)))))) (i32.const 0)";
    let modules = ModuleFolder::new(Limits { call_timeout: Duration::from_millis(200), ..tight() });
    modules.write("validators/hostile.wasm", &validator_with_init(slow));
    let verdicts = run(&modules, &chunk(vec!["T"; 1024]));
    assert_eq!(verdicts.rejections.len(), 1024);
    assert_eq!(verdicts.rejections[0].1.kind, Trap);
    let calls = metric(&modules, "sluice_module_calls_total");
    let unjudged = metric(&modules, "sluice_module_unjudged_total");
    assert!(calls < 2047.0 && unjudged > 0.0, "{calls} calls, {unjudged} not judged");
}

#[test]
fn a_guest_that_works_for_a_while() {
    // From offset 200 on it traps on everything, as one whose data ran out.
    let bomb = |text: String| {
        let count = "(local.set $count (i32.load offset=140 (local.get $arguments)))";
        assert!(text.contains(count));
        let fuse = "(if (i64.ge_u (i64.load offset=16 (local.get $arguments)) (i64.const 200)) (then (unreachable)))";
        text.replace(count, &format!("{count} {fuse}"))
    };
    let modules = ModuleFolder::new(tight());
    modules.write("validators/hostile.wasm", &hostile_validator(bomb));
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let mut runner = chain.runner();
    let at = |offset: i64| {
        let mut builder = ChunkBuilder::new("purchases".into(), 3, offset);
        for offset in offset..offset + 4 {
            builder.push(offset, 0, None, Some(b"a"), []);
        }
        builder.build()
    };
    assert_eq!(runner.run(&at(100)).rejections, []);
    let verdicts = runner.run(&at(200));
    assert_eq!(verdicts.rejections.len(), 4);
    assert_refused(&verdicts.rejections[0].1, Validate, Trap, "trap", UNREACHABLE);
    assert_eq!(runner.run(&at(100)).rejections, [], "it depends on the record alone");
}

#[test]
fn thousands_of_functions_are_refused_or_run() {
    let functions: String = (0..4000)
        .map(|number| format!("(func (param i32) (result i32) (i32.mul (local.get 0) (i32.const {number})))"))
        .collect();
    let modules = hostile(tight());
    modules.write(
        "validators/hostile.wasm",
        &hostile_validator(|text| {
            let end = text.rfind(')').expect("a module ends");
            format!("{}{functions})", &text[..end])
        }),
    );
    match modules.load() {
        Ok(chain) => {
            let verdicts = chain.runner().run(&chunk(["a", "T", "b"]));
            assert_eq!(texts(&verdicts), [vec!["a"], vec![], vec!["b"]]);
        }
        Err(error) => assert!(error.to_string().contains("compil"), "{error}"),
    }
}

#[test]
fn memory_violated() {
    for (modules, stage) in [(hostile(tight()), Validate), (mapper_only(tight()), Map)] {
        let rejection = refusal(&modules, "H");
        let reason = "asked for 16842752 bytes of memory; the limit is 16777216";
        assert_refused(&rejection, stage, Memory, "out_of_memory", reason);
    }
}

#[test]
fn memory_obeyed() {
    // `h` takes all there is, is refused more, and carries on: that is its good right.
    let verdicts = run(&hostile(tight()), &chunk(["a", "h", "b"]));
    assert_eq!(verdicts.rejections, []);
    // As does a module that begins with all the memory it may have.
    let modules = hostile(tight());
    let whole =
        |text: String| text.replace(r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 256)"#);
    modules.write("validators/hostile.wasm", &hostile_validator(whole));
    assert_eq!(refusal(&modules, "r").code, "no_thanks");
}

#[test]
fn a_trap_after_a_refusal_in_init_is_a_trap() {
    let modules = hostile(tight());
    let greedy = |text: String| {
        let init = "validate@0.1.0#init\") (param i32 i32) (result i32)\n";
        assert!(text.contains(init));
        text.replace(init, &format!("{init} (call $hoard)"))
    };
    modules.write("validators/hostile.wasm", &hostile_validator(greedy));
    assert_refused(&refusal(&modules, "T"), Validate, Trap, "trap", UNREACHABLE);
}

#[test]
fn rejections_that_are_none() {
    let modules = hostile(tight());
    for (letter, reason) in [
        ("X", "a rejection of record 100000, which the module was not asked about"),
        ("D", "the rejection of record 0 is repeated or out of order"),
        ("N", "the answer cannot be read: invalid utf-8 sequence of 1 bytes from index 0"),
    ] {
        assert_refused(&refusal(&modules, letter), Validate, BadRow, "bad_answer", reason);
    }
    let rejection = refusal(&modules, "P");
    assert_eq!((rejection.kind, rejection.code.as_str()), (BadRow, "bad_answer"));
}

#[test]
fn what_a_rejection_says_is_cut_and_cleaned() {
    let modules = hostile(tight());
    let rejection = refusal(&modules, "g");
    assert_eq!((rejection.kind, rejection.code.as_str()), (Rejected, "no_thanks"));
    assert_eq!(rejection.reason.len(), 1024);
    assert!(rejection.reason.ends_with("x…"), "{}", &rejection.reason[1000..]);
    let rejection = refusal(&modules, "U");
    assert_eq!((rejection.kind, rejection.code.as_str()), (Rejected, "rejected"));
    assert_eq!((rejection.field.as_deref(), rejection.reason.as_str()), (Some("   "), ""));
}

#[test]
fn lists_that_overlap_cannot_blow_the_host_up() {
    let rejection = refusal(&hostile(tight()), "A");
    let reason = "the answer is larger than 17825792 bytes";
    assert_refused(&rejection, Validate, BadRow, "output_too_large", reason);
}

#[test]
fn rows_that_are_none() {
    let modules = mapper_only(tight());
    for (letter, code, reason) in [
        ("C", "bad_answer", "output `texts`: rows-per-record counts 2 rows, row-ends has 1"),
        ("B", "bad_answer", "output `texts`: row 1 ends at 1, before the row ahead of it (2)"),
        ("E", "bad_answer", "output `texts`: the last row ends at 1000002, the bytes at 2"),
        ("O", "bad_answer", "output `texts`: the last row ends at 1, the bytes at 2"),
        ("R", "bad_answer", "a record is rejected and yet has rows in output `texts`"),
        ("w", "bad_row", "output `texts`: the columns take 1 bytes, the row has 2"),
    ] {
        assert_refused(&refusal(&modules, letter), Map, BadRow, code, reason);
    }
    let rejection = refusal(&modules, "W");
    assert_eq!((rejection.kind, rejection.code.as_str()), (BadRow, "bad_row"));
    assert!(rejection.reason.starts_with("output `texts`: column `text`"), "{}", rejection.reason);
    let rejection = refusal(&modules, "P");
    assert_eq!((rejection.kind, rejection.code.as_str()), (BadRow, "bad_answer"));
}

#[test]
fn output_of_a_record_violated() {
    let rejection = refusal(&mapper_only(tight()), "G");
    let reason = "2097156 bytes of rows up to output `texts`; the limit for a record is 1048576";
    assert_refused(&rejection, Map, BadRow, "output_too_large", reason);
}

#[test]
fn output_of_a_record_obeyed() {
    let limits = Limits { output_bytes_per_record: 2_097_156, ..tight() };
    let verdicts = run(&mapper_only(limits), &chunk(["a", "G", "b"]));
    assert_eq!(verdicts.rejections, []);
    assert_eq!(verdicts.outputs[0].row_ends, [2, 2_097_158, 2_097_160]);
}

#[test]
fn output_of_a_chunk_that_is_too_large_is_taken_in_parts() {
    // Twelve rows of 2 MiB are more than one answer may hold, and each is fine alone. (The guest
    // has room for one at a time, so what it says for several is beyond its memory or too large.)
    let limits = Limits { output_bytes_per_record: 2_097_156, ..tight() };
    let verdicts = run(&mapper_only(limits), &chunk(vec!["G"; 12]));
    assert_eq!(verdicts.rejections, []);
    assert_eq!(verdicts.outputs[0].bytes.len(), 12 * 2_097_156);
}

#[test]
fn rows_of_a_record_obeyed_and_violated() {
    let limits = |rows_per_record| Limits { rows_per_record, ..tight() };
    let rejection = refusal(&mapper_only(limits(1)), "2");
    assert_refused(&rejection, Map, BadRow, "too_many_rows", "2 rows in output `texts`; the limit is 1");
    let verdicts = run(&mapper_only(limits(2)), &chunk(["a", "2"]));
    assert_eq!(texts(&verdicts), [vec!["a"], vec!["2", "2"]]);
}

#[test]
fn a_guest_remembers_nothing_from_one_call_to_the_next() {
    let chain = hostile(tight()).load().expect("loads");
    let mut runner = chain.runner();
    for _ in 0..3 {
        assert_eq!(runner.run(&chunk(["a", "c"])).rejections, []);
    }
}

#[test]
fn a_pool_that_runs_dry_is_waited_for() {
    // 24 slots, and 40 threads that each hold one for a quarter of a second: the others wait, and no
    // record is refused for it.
    let modules = ModuleFolder::on(WasmEngine::new(0).expect("an engine"), tight());
    modules.write("validators/hostile.wasm", &hostile_validator(|text| text));
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let barrier = std::sync::Barrier::new(40);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let mut runner = chain.runner();
                barrier.wait();
                let verdicts = runner.run(&chunk(["L"]));
                let kinds: Vec<_> = verdicts.rejections.iter().map(|(_, rejection)| rejection.kind).collect();
                assert_eq!(kinds, [Timeout], "{:?}", verdicts.rejections);
            });
        }
    });
}

#[test]
fn validators_see_what_is_left_and_the_mapper_sees_the_rest() {
    let modules = ModuleFolder::new(tight());
    let accepting = |letter: &'static str| {
        // Takes `r` for another letter, so that each validator rejects its own.
        move |text: String| {
            text.replace("(i32.const 114)) ;; r", &format!("(i32.const {})) ;; r", letter.as_bytes()[0]))
        }
    };
    modules.write("validators/10-x.wasm", &hostile_validator(accepting("x")));
    modules.write("validators/20-y.wasm", &hostile_validator(accepting("y")));
    modules.write("validators/.hidden.wasm", b"still being copied");
    modules.write("validators/30.shadow.wasm", b"reserved");
    modules.write("validators/notes.txt", b"not a module");
    let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<_> = chain.modules().iter().map(|module| (&*module.name, module.stage)).collect();
    assert_eq!(names, [("10-x", Validate), ("20-y", Validate), ("mapper", Map)]);

    let verdicts = chain.runner().run(&chunk(["y", "x", "f", "r", "a", "x"]));
    let seen: Vec<_> =
        verdicts.rejections.iter().map(|(index, rejection)| (*index, &*rejection.module)).collect();
    assert_eq!(seen, [(0, "20-y"), (1, "10-x"), (3, "mapper"), (5, "10-x")]);
    assert_eq!(texts(&verdicts), [vec![], vec![], vec![], vec![], vec!["a".to_owned()], vec![]]);
    assert_eq!(verdicts.chain, chain.revision());
}

#[test]
fn faults_are_counted_by_kind() {
    let modules = hostile(tight());
    run(&modules, &chunk(["a", "T", "H"]));
    let text = prometheus::TextEncoder::new().encode_to_string(&modules.metrics.gather()).expect("text");
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
        line.rsplit_once(' ').expect("a value").1.parse::<f64>().expect("a number")
    };
    // The whole, [T, H], T, H: the first and second fail with the trap that comes first.
    let faults = |kind: &str| {
        value(&format!("sluice_module_faults_total{{kind=\"{kind}\",module=\"hostile\",pipeline=\"tests\"}}"))
    };
    assert_eq!((faults("trap"), faults("memory"), faults("timeout")), (3.0, 1.0, 0.0));
    assert_eq!(value("sluice_module_calls_total{module=\"hostile\""), 5.0);
    assert_eq!(value("sluice_module_calls_total{module=\"mapper\""), 1.0);
    assert!(value("sluice_module_seconds_total{module=\"hostile\"") > 0.0);
}

#[test]
fn a_mapper_that_is_put_right_in_between_makes_another_chain() {
    let modules = mapper_only(tight());
    let before = modules.load().expect("loads");
    let again = modules.load().expect("loads");
    assert_eq!(before.revision(), again.revision());
    modules
        .write("mapper.wasm", &hostile_mapper(|text| text.replace("the guest said so", "the guest says so")));
    let after = modules.load().expect("loads");
    assert_ne!(before.revision(), after.revision());
    // Both run side by side: whoever holds the old chain finishes with it.
    assert_eq!(before.runner().run(&chunk(["r"])).rejections[0].1.reason, "the guest said so");
    assert_eq!(after.runner().run(&chunk(["r"])).rejections[0].1.reason, "the guest says so");
}
