//! What the chain costs, in nanoseconds a record: the purchase modules in wasm against the same code
//! natively, the boundary alone, the walk over RowBinary, what small chunks pay, and what shadows take from
//! a worker.
//!
//! `cargo bench -p sluice --bench chain` prints a table; with `-- --json` one line of JSON, which
//! `make bench` collects. Words after `--` are the cases to run (for a profiler), all without any. Time is the
//! thread's processor time, page faults included; cases take turns over many rounds and the best round counts,
//! since the machine is rarely quiet. Cases that are compared with one another are of as many records.

#[path = "../tests/support/guests.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod guests;
#[path = "chain/shadows.rs"]
mod shadows;

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use purchase_rows::PurchaseRows;
use purchase_rules::PurchaseRules;
use shadows::{Both, Shadowed};
use sluice::domain::chunk::{Chunk, MAXIMUM_RECORDS};
use sluice::domain::verdict::OutputRows;
use sluice::pipeline::ports::{Chain, ChainRunner};
use sluice::wasm::{ChainSettings, Limits, Module, ModuleRegistry, WasmChain, WasmMetrics};
use sluice_sdk::bindings::types::Records;
use sluice_sdk::{adapter, testing};

const ROUNDS: usize = 40;
/// How often a round of the whole chain goes through all chunks: so often (some 150 ms) that shadows, which
/// rest for some 20 ms each time, are shown about as much in every round.
const PASSES: usize = 10;

/// What a clock of processor time shows.
#[expect(unsafe_code, reason = "the standard library has no clock of processor time")]
fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec that outlives the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "this system has a clock of processor time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time that this thread has spent on a processor.
fn processor_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Time that all other threads of this process have spent on processors.
fn processor_time_of_others() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(processor_time())
}

fn chunks(lines: &[Vec<u8>], records: usize) -> Vec<Chunk> {
    guests::chunks(lines, records, 0, |builder, offset, line| {
        builder.push(offset, guests::ARRIVAL, Some(b"0123456789abcdef"), Some(line), []);
    })
}

/// A chunk as a native module gets it.
fn native_records(chunk: &Chunk) -> Records {
    Records {
        topic: chunk.topic.to_string(),
        partition: chunk.partition as u32,
        base_offset: chunk.base_offset as u64,
        offset_deltas: chunk.offset_deltas.clone(),
        timestamps: chunk.timestamps.clone(),
        payloads: chunk.payloads.bytes.clone(),
        payload_ends: chunk.payloads.ends.clone(),
        payload_nulls: chunk.payloads.nulls.clone(),
        keys: chunk.keys.bytes.clone(),
        key_ends: chunk.keys.ends.clone(),
        key_nulls: chunk.keys.nulls.clone(),
        header_ends: chunk.header_ends.clone(),
        header_names: chunk.header_names.bytes.clone(),
        header_name_ends: chunk.header_names.ends.clone(),
        header_values: chunk.header_values.bytes.clone(),
        header_value_ends: chunk.header_values.ends.clone(),
        header_value_nulls: chunk.header_values.nulls.clone(),
    }
}

/// The chain as a native program would have it. Answers the number of rows.
fn run_native(rules: &PurchaseRules, rows: &PurchaseRows, records: &Records) -> usize {
    let mut selected: Vec<u32> = (0..records.payload_ends.len() as u32).collect();
    let rejections = adapter::validate(rules, records, &selected);
    let mut rejected = rejections.iter().map(|rejection| rejection.index).peekable();
    selected.retain(|index| rejected.next_if_eq(index).is_none());
    let mapped = adapter::map(rows, records, &selected);
    mapped.outputs[0].row_ends.len()
}

/// A module folder whose chain does nothing: one validator that accepts, one mapper that filters.
fn empty_chain(validators: usize) -> Box<dyn ChainRunner> {
    let modules = guests::ModuleFolder::new(Limits::default());
    let accept = r#"
        (func (export "sluice:module/validate@0.1.0#init") (param i32 i32) (result i32) (i32.const 0))
        (func (export "sluice:module/validate@0.1.0#validate") (param i32) (result i32) (i32.const 0))"#;
    for index in 0..validators {
        let module = guests::typed(&guests::with_prelude(accept), guests::CONTRACT, "validator");
        modules.write(&format!("validators/{index}.wasm"), &module);
    }
    // Memory from the heap on is zero: as many zeros as there are records.
    let filter = r#"
        (data (i32.const 4) "\00\02\00\00\01\00\00\00")
        (data (i32.const 512) "\58\02\00\00\01\00\00\00\10\02\00\00\01\00\00\00")
        (data (i32.const 528) "\60\02\00\00\01\00\00\00\68\02\00\00\05\00\00\00")
        (data (i32.const 600) "x\00\00\00\00\00\00\00n\00\00\00\00\00\00\00UInt8")
        (func (export "sluice:module/map@0.1.0#init") (param i32 i32) (result i32) (i32.const 0))
        (func (export "sluice:module/map@0.1.0#map") (param $arguments i32) (result i32)
          (local $count i32)
          (local.set $count (i32.load offset=140 (local.get $arguments)))
          (i32.store (i32.const 112)
            (call $allocate (i32.const 4) (i32.shl (local.get $count) (i32.const 2))))
          (i32.store (i32.const 116) (local.get $count))
          (i32.store (i32.const 64) (i32.const 96))
          (i32.store (i32.const 68) (i32.const 1))
          (i32.const 64))"#;
    let mapper = guests::typed(&guests::with_prelude(filter), guests::CONTRACT, "mapper");
    modules.write("mapper.wasm", &mapper);
    modules.load().unwrap_or_else(|error| panic!("{error}")).runner()
}

const PIPELINE: &str = "purchases";

fn registry() -> ModuleRegistry {
    let metrics = WasmMetrics::register(&prometheus::Registry::new()).expect("fresh registry");
    ModuleRegistry::new(guests::engine(), metrics)
}

fn purchase_chain(registry: &ModuleRegistry) -> WasmChain {
    let modules = guests::purchase_modules();
    let chain = registry.load_chain(&ChainSettings {
        pipeline: PIPELINE.to_owned(),
        validators: Some(modules.join("validators")),
        mapper: modules.join("purchase-rows.wasm"),
        settings: Default::default(),
        limits: Limits::default().into(),
    });
    chain.unwrap_or_else(|error| panic!("{error}"))
}

fn purchase_runner() -> Box<dyn ChainRunner> {
    purchase_chain(&registry()).runner()
}

/// A case: its key in the JSON, what it is, and a round of it, which answers how many records it was and how
/// long they took.
struct Case<'a> {
    key: &'static str,
    what: &'static str,
    round: Box<dyn FnMut() -> (usize, Duration) + 'a>,
    best: Duration,
    records: usize,
}

impl<'a> Case<'a> {
    /// A case all of whose round counts.
    fn new(key: &'static str, what: &'static str, mut round: impl FnMut() -> usize + 'a) -> Self {
        Self::timed(key, what, move || timed(&mut round))
    }

    /// A case whose round knows which part of it counts.
    fn timed(key: &'static str, what: &'static str, round: impl FnMut() -> (usize, Duration) + 'a) -> Self {
        Self { key, what, round: Box::new(round), best: Duration::MAX, records: 1 }
    }

    fn nanoseconds(&self) -> f64 {
        self.best.as_nanos() as f64 / self.records as f64
    }
}

/// What `work` answers, and the processor time that it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = processor_time();
    let answer = work();
    (answer, processor_time() - started)
}

fn run_all(runner: &mut dyn ChainRunner, chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| black_box(runner.run(chunk)).outputs[0].rows_per_record.len()).sum()
}

/// Everything [`PASSES`] times.
fn pass(mut all: impl FnMut() -> usize) -> usize {
    (0..PASSES).map(|_| all()).sum()
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let lines = guests::lines();
    let full = chunks(&lines, MAXIMUM_RECORDS);
    let hundred = chunks(&lines[..2_000], 100);
    let ten = chunks(&lines[..1_000], 10);
    let one = chunks(&lines[..200], 1);
    let natives: Vec<_> = full.iter().map(native_records).collect();
    let rules = testing::new_validator::<PurchaseRules>("{}").expect("settings");
    let rows = testing::new_mapper::<PurchaseRows>("{}").expect("settings");
    let mut runner = purchase_runner();
    let answers: Vec<OutputRows> = full.iter().flat_map(|chunk| runner.run(chunk).outputs).collect();
    let output = {
        let modules = guests::purchase_modules();
        let bytes = std::fs::read(modules.join("purchase-rows.wasm")).expect("the mapper");
        let stage = sluice::domain::verdict::Stage::Map;
        let module =
            Module::load(&guests::engine(), "rows", stage, &bytes, "{}".to_owned(), &Limits::default());
        module.unwrap_or_else(|error| panic!("{error}")).outputs()[0].clone()
    };
    let [mut small, mut smaller, mut smallest] = [purchase_runner(), purchase_runner(), purchase_runner()];
    let [mut two, mut three] = [empty_chain(1), empty_chain(2)];
    // A chunk for each shadow, and then none for hours; what the program does; every chunk for each.
    let mut resting = Shadowed::new(registry().with_shadow_share(1e-6));
    let shared = RefCell::new(Shadowed::new(registry()));
    let light = RefCell::new(Shadowed::new(registry()));
    let mut shown = Shadowed::new(registry().with_shadow_share(f64::INFINITY));
    resting.run_all(&full[..1]);
    resting.settle();
    let [mut same, mut other] = [Both::new(&full, false), Both::new(&full, true)];

    let mut cases = vec![
        Case::new("native", "the purchase modules as native functions", || {
            pass(|| natives.iter().map(|records| black_box(run_native(&rules, &rows, records))).sum())
        }),
        Case::new("chain", "the purchase modules in wasm, chunks of 1,024", || {
            pass(|| run_all(&mut *runner, &full))
        }),
        Case::new("chain_100", "the same, chunks of 100", || run_all(&mut *small, &hundred)),
        Case::new("chain_10", "the same, chunks of 10", || run_all(&mut *smaller, &ten)),
        Case::new("chain_1", "the same, chunks of 1", || pass(|| run_all(&mut *smallest, &one))),
        Case::new("empty_2", "two modules that do nothing", || run_all(&mut *two, &full)),
        Case::new("empty_3", "three modules that do nothing", || run_all(&mut *three, &full)),
        Case::new("walk", "the walk over rows in RowBinary", || {
            for rows in &answers {
                let mut start = 0;
                for end in &rows.row_ends {
                    let row = &rows.bytes[start..*end as usize];
                    assert_eq!(output.walk_row(black_box(row)), Ok(row.len()));
                    start = *end as usize;
                }
            }
            answers.iter().map(|rows| rows.row_ends.len()).sum()
        }),
        Case::new("chain_with_shadows_resting", "the chain, its two shadows shown no record", || {
            pass(|| resting.run_all(&full))
        }),
        Case::timed("chain_with_shadows", "the chain, its two shadows with their share of time", || {
            let mut shared = shared.borrow_mut();
            // A stream that goes on has shadows that are tired already.
            shared.run_all(&full);
            shared.observe(|shadowed| pass(|| shadowed.run_all(&full)))
        }),
        Case::timed("chain_1_with_shadows", "the same, chunks of 1", || {
            let mut light = light.borrow_mut();
            light.run_all(&one);
            light.observe(|shadowed| pass(|| shadowed.run_all(&one)))
        }),
        Case::timed("chain_with_shadows_shown", "the chain, its two shadows shown every record", || {
            let mut spent = Duration::ZERO;
            let records = pass(|| {
                full.iter()
                    .map(|chunk| {
                        shown.settle();
                        let (records, took) = timed(|| shown.run_all(std::slice::from_ref(chunk)));
                        spent += took;
                        records
                    })
                    .sum()
            });
            (records, spent)
        }),
        Case::new("compare", "the comparison of two revisions that give the same rows", || same.compare()),
        Case::new("compare_other", "the same where every row is another", || other.compare()),
    ];
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if !chosen.is_empty() {
        cases.retain(|case| chosen.iter().any(|key| key == case.key));
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let (records, took) = (case.round)();
            case.records = records;
            case.best = case.best.min(took);
        }
    }

    let nanoseconds =
        |key: &str| cases.iter().find(|case| case.key == key).map_or(f64::NAN, Case::nanoseconds);
    let boundary = nanoseconds("empty_3") - nanoseconds("empty_2");
    let over = |key: &str, without: &str| nanoseconds(key) / nanoseconds(without);
    let [seen, seen_light] = [&shared, &light].map(|shadowed| shadowed.borrow().seen());
    // Of each figure its name in the JSON, what it is, and as many decimals as tell something.
    let parts = [
        ("chain_over_native", "wasm over native", over("chain", "native"), 2),
        (
            "chain_with_shadows_over_chain",
            "with shadows over without",
            over("chain_with_shadows", "chain"),
            3,
        ),
        (
            "chain_1_with_shadows_over_chain_1",
            "the same, chunks of 1",
            over("chain_1_with_shadows", "chain_1"),
            3,
        ),
        (
            "chain_with_shadows_resting_over_chain",
            "with shadows that are shown nothing over without",
            over("chain_with_shadows_resting", "chain"),
            3,
        ),
        (
            "chain_with_shadows_shown_over_chain",
            "with shadows that are shown everything over without",
            over("chain_with_shadows_shown", "chain"),
            3,
        ),
        ("shadows_compared", "part of their records that shadows were shown", seen.compared(), 3),
        ("shadows_compared_1", "the same, chunks of 1", seen_light.compared(), 3),
        ("shadows_cores", "of a core, which the shadows took meanwhile", seen.cores(), 3),
    ];
    if json {
        let mut figures: serde_json::Map<_, _> = cases
            .iter()
            .map(|case| (format!("{}_ns", case.key), serde_json::json!(case.nanoseconds().round())))
            .collect();
        let rounded = |value: f64, decimals| {
            let scale = 10f64.powi(decimals);
            serde_json::json!((value * scale).round() / scale)
        };
        figures.insert("boundary_ns".to_owned(), rounded(boundary, 1));
        figures.extend(parts.map(|(key, _, part, decimals)| (key.to_owned(), rounded(part, decimals))));
        println!("{}", serde_json::json!({ "bench": "chain", "unit": "ns/record", "figures": figures }));
        return;
    }
    println!("ns a record, best of {ROUNDS} rounds");
    for case in &cases {
        println!("{:>10.1}  {}", case.nanoseconds(), case.what);
    }
    println!("{boundary:>10.1}  one module's boundary alone (three empty modules less two)");
    for (_, what, part, decimals) in parts {
        println!("{part:>10.*}  {what}", decimals as usize);
    }
}
