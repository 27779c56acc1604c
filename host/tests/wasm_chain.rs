//! The chain with real guests: the purchase modules, compiled to wasm, against what is expected of
//! every line of the test data and against the same code compiled natively.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use purchase_rows::PurchaseRows;
use purchase_rules::PurchaseRules;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice::domain::chunk::{Chunk, ChunkBuilder, MAXIMUM_RECORDS};
use sluice::domain::verdict::{ChunkVerdicts, RejectionKind, Stage};
use sluice::pipeline::ports::Chain;
use sluice::wasm::{ChainSettings, Limits, LoadError, ModuleRegistry, WasmChain, WasmMetrics};
use sluice_sdk::testing::{self, TestRecord};
use support::guests::{self, ARRIVAL, engine, lines, purchase_modules};

fn load(settings: &[(&str, Value)]) -> Result<WasmChain, LoadError> {
    let modules = purchase_modules();
    let metrics = WasmMetrics::register(&prometheus::Registry::new()).expect("fresh registry");
    ModuleRegistry::new(engine(), metrics).load_chain(&ChainSettings {
        pipeline: "purchases".to_owned(),
        validators: Some(modules.join("validators")),
        mapper: modules.join("purchase-rows.wasm"),
        settings: settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        limits: Limits::default().into(),
    })
}

fn chain() -> WasmChain {
    load(&[]).unwrap_or_else(|error| panic!("{error}"))
}

/// Lines as chunks of so many records.
fn chunks(lines: &[Vec<u8>], records: usize) -> Vec<Chunk> {
    guests::chunks(lines, records, 7, |builder, offset, line| {
        builder.push(offset, ARRIVAL, None, Some(line), [("source", Some(b"test".as_slice()))]);
    })
}

/// A verdict on one record, by what both the wasm chain and the native code say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Rows(Vec<Vec<u8>>),
    Rejected { code: String, field: Option<String>, reason: String },
}

fn said(verdicts: &ChunkVerdicts) -> Vec<Said> {
    let [rows] = &verdicts.outputs[..] else { panic!("one output") };
    let mut start = 0;
    let mut ends = rows.row_ends.iter();
    let mut said: Vec<_> = rows
        .rows_per_record
        .iter()
        .map(|count| {
            let rows = ends.by_ref().take(*count as usize).map(|end| {
                let row = rows.bytes[start..*end as usize].to_vec();
                start = *end as usize;
                row
            });
            Said::Rows(rows.collect())
        })
        .collect();
    for (index, rejection) in &verdicts.rejections {
        let index = *index as usize;
        assert_eq!(said[index], Said::Rows(vec![]), "a rejected record has no rows");
        said[index] = Said::Rejected {
            code: rejection.code.clone(),
            field: rejection.field.clone(),
            reason: rejection.reason.clone(),
        };
    }
    said
}

fn run(chain: &WasmChain, lines: &[Vec<u8>], records: usize) -> Vec<Said> {
    let mut runner = chain.runner();
    chunks(lines, records).iter().flat_map(|chunk| said(&runner.run(chunk))).collect()
}

#[derive(Deserialize)]
struct Expected {
    index: usize,
    verdict: String,
    kind: Option<String>,
    code: Option<String>,
    field: Option<String>,
}

#[test]
fn every_line_of_the_test_data_gets_its_expected_verdict() {
    let lines = lines();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/purchases.expected.jsonl");
    let expected = std::fs::read_to_string(file).expect("testdata/purchases.expected.jsonl");
    let expected: Vec<Expected> =
        expected.lines().map(|line| serde_json::from_str(line).expect("an expectation")).collect();
    assert_eq!((lines.len(), expected.len()), (10_000, 10_000));

    let chain = chain();
    let mut runner = chain.runner();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (chunk, expected) in chunks(&lines, MAXIMUM_RECORDS).iter().zip(expected.chunks(MAXIMUM_RECORDS)) {
        let verdicts = runner.run(chunk);
        let rejections: BTreeMap<_, _> = verdicts.rejections.iter().cloned().collect();
        for (index, expected) in (0u32..).zip(expected) {
            let rows = verdicts.outputs[0].rows_per_record[index as usize];
            let rejection = rejections.get(&index);
            let (verdict, rows_due) = match rejection {
                Some(_) => ("rejected", 0),
                None => ("mapped", 1),
            };
            assert_eq!((verdict, rows), (expected.verdict.as_str(), rows_due), "line {}", expected.index);
            let found = rejection.map(|rejection| {
                (rejection.kind.as_str(), rejection.code.as_str(), rejection.field.as_deref())
            });
            let due = expected
                .code
                .as_deref()
                .map(|code| (expected.kind.as_deref().unwrap_or_default(), code, expected.field.as_deref()));
            assert_eq!(found, due, "line {}: {rejection:?}", expected.index);
            *seen.entry(verdict).or_default() += 1;
        }
    }
    assert!(seen["mapped"] > 9_000 && seen["rejected"] > 300, "{seen:?}");
}

#[test]
fn wasm_and_native_say_the_same() {
    let lines = lines();
    let wasm = run(&chain(), &lines, MAXIMUM_RECORDS);
    let records: Vec<TestRecord> =
        lines.iter().map(|line| testing::record(line).timestamp(ARRIVAL)).collect();
    let judged = testing::validate::<PurchaseRules>("{}", records.clone());
    let mapped = testing::map::<PurchaseRows>("{}", records);
    for (index, wasm) in wasm.iter().enumerate() {
        let native = match judged[index].as_ref().and(mapped.verdicts[index].as_ref()) {
            Ok(()) => {
                let rows = mapped.rows_of("purchases", index).iter();
                Said::Rows(rows.map(|row| row.bytes.clone()).collect())
            }
            Err(rejection) => Said::Rejected {
                code: rejection.code.to_string(),
                field: rejection.field.as_ref().map(ToString::to_string),
                reason: rejection.reason.to_string(),
            },
        };
        assert_eq!(*wasm, native, "line {index}");
    }
}

#[test]
fn the_size_of_a_chunk_changes_nothing() {
    let lines = &lines()[..2_000];
    let chain = chain();
    let whole = run(&chain, lines, MAXIMUM_RECORDS);
    for records in [1, 7, 256] {
        assert_eq!(run(&chain, lines, records), whole, "chunks of {records}");
    }
}

#[test]
fn runners_on_several_threads_say_the_same() {
    let lines = lines();
    let chain = chain();
    let alone = run(&chain, &lines, MAXIMUM_RECORDS);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| run(&chain, &lines, MAXIMUM_RECORDS))).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), alone);
        }
    });
}

#[test]
fn bad_input_is_refused_between_good_neighbours() {
    let good = lines().swap_remove(0);
    let mut deep = b"{\"user_id\":".to_vec();
    deep.extend(std::iter::repeat_n(b'[', 200_000));
    let mut large = good[..good.len() - 1].to_vec();
    large.extend_from_slice(b",\"extra\":\"");
    large.resize(1 << 20, b'x');
    large.extend_from_slice(b"\"}");
    let twice = [b"{\"user_id\":1,", &good[1..]].concat();
    type Case<'a> = (&'a str, Option<&'a [u8]>, Option<&'a str>);
    let bad: [Case<'_>; 8] = [
        ("empty", Some(b""), Some("malformed")),
        ("tombstone", None, Some("tombstone")),
        ("not UTF-8", Some(b"{\"user_id\":\"\xff\xfe\"}"), Some("malformed")),
        ("cut short", Some(&good[..good.len() / 2]), Some("malformed")),
        ("a list", Some(b"[1, 2]"), Some("malformed")),
        ("deep", Some(&deep), Some("malformed")),
        ("a mebibyte", Some(&large), None),
        ("a key twice", Some(&twice), Some("duplicate_field")),
    ];
    let chain = chain();
    for (what, payload, code) in bad {
        let mut builder = ChunkBuilder::new("purchases".into(), 0, 0);
        let unknown = [("x-unknown", Some(b"\xff\x00".as_slice())), ("x-null", None)];
        for (offset, payload) in (0..).zip([Some(good.as_slice()), payload, Some(&good)]) {
            builder.push(offset, ARRIVAL, None, payload, unknown);
        }
        let verdicts = chain.runner().run(&builder.build());
        let found: Vec<_> =
            verdicts.rejections.iter().map(|(index, rejection)| (*index, rejection.code.as_str())).collect();
        let due: Vec<_> = code.map(|code| (1, code)).into_iter().collect();
        assert_eq!(found, due, "{what}: {:?}", verdicts.rejections);
        let rows = [1, u32::from(code.is_none()), 1];
        assert_eq!(verdicts.outputs[0].rows_per_record, rows, "{what}");
    }
}

#[test]
fn settings_reach_the_module() {
    let lines = &lines()[..100];
    let chain = load(&[("purchase-rules", json!({"currencies": ["XXX"]}))]);
    let chain = chain.unwrap_or_else(|error| panic!("{error}"));
    let mut runner = chain.runner();
    let verdicts = runner.run(&chunks(lines, 100)[0]);
    let refused =
        verdicts.rejections.iter().filter(|(_, rejection)| rejection.code == "currency_not_allowed");
    assert!(refused.count() > 80, "{:?}", verdicts.rejections);
    let (_, rejection) = &verdicts.rejections[0];
    assert_eq!((&*rejection.module, rejection.stage), ("purchase-rules", Stage::Validate));
    assert_eq!(rejection.kind, RejectionKind::Rejected);
    assert_eq!(rejection.revision, Some(chain.modules()[0].revision));
}

#[test]
fn settings_that_a_module_does_not_know_are_refused_at_load() {
    let error = load(&[("purchase-rules", json!({"curencies": ["EUR"]}))]).expect_err("refused").to_string();
    assert!(error.contains("purchase-rules.wasm refuses its settings: "), "{error}");
    assert!(error.contains("curencies"), "{error}");
}
