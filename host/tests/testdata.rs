//! The committed test data: made by the generator, byte by byte, and true to the real modules.
//!
//! `SLUICE_UPDATE_TESTDATA=1 cargo test -p sluice --test testdata` writes the files anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use purchase_rows::PurchaseRows;
use purchase_rules::PurchaseRules;
use serde_json::{Value, json};
use sluice::produce::{
    Description, ExpectedVerdict, Generated, Generator, GeneratorOptions, LineOptions, Lines, Message,
};
use sluice_sdk::testing::{self, TestRecord, record, tombstone};

/// When the records arrive, as far as the rules know: soon after the description's base time.
const RECEIVED: i64 = 1_770_000_000_000;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

fn generator(seed: u64, fault_share: f64, lines_only: bool) -> Generator {
    let description = Description::read(&testdata("purchases.generator.yaml")).unwrap();
    Generator::new(description, GeneratorOptions { seed, fault_share, lines_only }).unwrap()
}

/// Compares a committed file with what it must be, or writes it where that is asked for.
fn assert_committed(name: &str, expected: &str) {
    let path = testdata(name);
    if std::env::var_os("SLUICE_UPDATE_TESTDATA").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    let difference = committed.lines().zip(expected.lines()).position(|(left, right)| left != right);
    assert!(
        committed == expected,
        "testdata/{name} is not what the generator makes (first difference in line {:?}); if the change is \
         meant, write it anew: SLUICE_UPDATE_TESTDATA=1 cargo test -p sluice --test testdata",
        difference.map(|line| line + 1),
    );
}

#[test]
fn purchases_are_what_the_generator_makes() {
    let generator = generator(1, 0.05, true);
    let (mut lines, mut expected) = (String::new(), String::new());
    for index in 0..10_000 {
        let generated = generator.generate(index, Timestamp::UNIX_EPOCH);
        lines.push_str(std::str::from_utf8(generated.message.payload.as_deref().unwrap()).unwrap());
        lines.push('\n');
        expected.push_str(&ExpectedVerdict::from(&generated).to_line());
        expected.push('\n');
    }
    assert_committed("purchases.txt", &lines);
    assert_committed("purchases.expected.jsonl", &expected);
    assert_eq!(lines.lines().count(), 10_000, "no fault breaks a line");
}

/// One record of each fault, in a form that any language can read. What is too long to be
/// committed is left out.
#[test]
fn bad_input_is_what_the_generator_makes() {
    let generator = generator(1, 0.0, false);
    let mut lines = String::new();
    for generated in generator.each_fault(0, Timestamp::UNIX_EPOCH) {
        let Message { key, payload, headers, .. } = &generated.message;
        if payload.as_ref().is_some_and(|payload| payload.len() > 64 * 1024) {
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let mut line = json!({
            "name": generated.fault,
            "key": key.as_deref().map(|key| text(key).expect("keys are text")),
            "headers": headers.iter().map(|(name, value)| json!([name, value.as_deref().and_then(text)])).collect::<Vec<_>>(),
        });
        match payload {
            None => line["payload"] = Value::Null,
            Some(bytes) => match text(bytes) {
                Some(text) => line["payload"] = text.into(),
                None => line["payload_hex"] = hex::encode(bytes).into(),
            },
        }
        let expected = ExpectedVerdict { key: None, fault: None, ..ExpectedVerdict::from(&generated) };
        let mut expected = serde_json::to_value(expected).unwrap();
        expected.as_object_mut().unwrap().shift_remove("index");
        line["expect"] = expected;
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    assert_committed("bad_input.jsonl", &lines);
}

/// What the real modules, run natively, say of these messages.
fn judge(messages: &[Message]) -> Vec<(&'static str, Option<String>, Option<String>)> {
    let records = |kept: &dyn Fn(usize) -> bool| -> Vec<TestRecord> {
        let kept = messages.iter().enumerate().filter(|(at, _)| kept(*at));
        kept.map(|(_, message)| {
            let mut record = message.payload.as_ref().map_or_else(tombstone, record).timestamp(RECEIVED);
            if let Some(key) = &message.key {
                record = record.key(key);
            }
            for (name, value) in &message.headers {
                record = match value {
                    Some(value) => record.header(name, value),
                    None => record.null_header(name),
                };
            }
            record
        })
        .collect()
    };
    let verdicts = testing::validate::<PurchaseRules>("{}", records(&|_| true));
    let mapped = testing::map::<PurchaseRows>("{}", records(&|at| verdicts[at].is_ok()));
    let mut by_mapper = mapped.verdicts.iter().enumerate();
    let judged = verdicts.iter().map(|verdict| match verdict {
        Err(rejection) => Some(rejection.clone()),
        Ok(()) => {
            let (at, verdict) = by_mapper.next().unwrap();
            let rows = mapped.rows_of("purchases", at).len();
            assert_eq!(rows, usize::from(verdict.is_ok()), "one row, or none for a rejected purchase");
            verdict.clone().err()
        }
    });
    judged
        .map(|rejection| match rejection {
            None => ("mapped", None, None),
            Some(rejection) => {
                ("rejected", Some(rejection.code.to_string()), rejection.field.map(|field| field.to_string()))
            }
        })
        .collect()
}

fn assert_verdicts<'a>(
    expected: impl Iterator<Item = (ExpectedVerdict, Message)> + 'a,
) -> BTreeMap<String, u64> {
    let (expected, messages): (Vec<_>, Vec<_>) = expected.unzip();
    let mut wrong = Vec::new();
    let mut faults = BTreeMap::new();
    for ((expected, message), (verdict, code, field)) in expected.iter().zip(&messages).zip(judge(&messages))
    {
        *faults.entry(expected.fault.clone().unwrap_or_default()).or_default() += 1;
        if (expected.verdict.as_str(), &expected.code, &expected.field) != (verdict, &code, &field) {
            let payload = message.payload.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let payload: String = payload.chars().take(600).collect();
            wrong.push(format!("{}\n  got {verdict} {code:?} {field:?} for {payload}", expected.to_line()));
        }
        let kind = code.map(|code| if code == "malformed" { "malformed" } else { "rejected" });
        assert_eq!(expected.kind.as_deref(), kind, "{}", expected.to_line());
    }
    assert!(wrong.is_empty(), "{} verdicts are not as expected:\n{}", wrong.len(), wrong.join("\n"));
    faults
}

fn expected_of(generated: Generated<'_>) -> (ExpectedVerdict, Message) {
    (ExpectedVerdict::from(&generated), generated.message)
}

#[test]
fn the_modules_meet_every_expected_verdict_of_the_file() {
    let expected = std::fs::read_to_string(testdata("purchases.expected.jsonl")).unwrap();
    let expected = expected.lines().map(|line| serde_json::from_str::<ExpectedVerdict>(line).unwrap());
    let options = LineOptions { key: Some("purchase_id".into()), raw: true, repeat: false };
    let lines = Lines::open(&testdata("purchases.txt"), options).unwrap();
    let faults = assert_verdicts(expected.zip(lines));
    assert_eq!(faults.values().sum::<u64>(), 10_000);
    assert!((9_400..9_600).contains(&faults[""]), "a share of 5 %: {faults:?}");
}

#[test]
fn the_modules_meet_every_expected_verdict_of_each_fault() {
    let generator = generator(7, 0.0, false);
    let every = (0..40).flat_map(|round| generator.each_fault(round * 1_000, Timestamp::UNIX_EPOCH));
    assert_verdicts(every.filter(|generated| generated.message.payload_size() < 64 * 1024).map(expected_of));
    let once = generator.each_fault(0, Timestamp::UNIX_EPOCH);
    let largest = once.max_by_key(|generated| generated.message.payload_size()).unwrap();
    assert!(largest.message.payload_size() > 1024 * 1024);
    assert_verdicts(std::iter::once(expected_of(largest)));
}

#[test]
fn a_mix_of_any_seed_meets_its_expected_verdicts() {
    for seed in 100..104 {
        let generator = generator(seed, 0.5, false);
        let faults = assert_verdicts(
            (0..2_000).map(|index| expected_of(generator.generate(index, Timestamp::UNIX_EPOCH))),
        );
        assert!(faults.len() > 30, "{faults:?}");
    }
}

#[test]
fn there_is_a_fault_for_every_code() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let section =
        readme.split("## Why a purchase is rejected").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: BTreeSet<String> = section
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .collect();
    assert!(documented.len() > 10, "the table of codes has moved: {documented:?}");
    let generator = generator(1, 0.0, false);
    let every = generator.each_fault(0, Timestamp::UNIX_EPOCH);
    let made: BTreeSet<String> =
        every.filter_map(|generated| ExpectedVerdict::from(&generated).code).collect();
    assert_eq!(made, documented);
}

#[test]
fn the_reference_has_a_working_example_and_every_name() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/GENERATOR.md");
    let reference = std::fs::read_to_string(reference).unwrap();
    let example = reference.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |yaml: &str| {
        std::fs::write(file.path(), yaml).unwrap();
        Description::read(file.path())
    };
    let options = GeneratorOptions { seed: 7, fault_share: 0.5, lines_only: false };
    let generator = Generator::new(read(example).unwrap(), options).unwrap();
    assert_eq!(generator.each_fault(0, Timestamp::UNIX_EPOCH).count(), 3);
    // A wrong name is answered with the list of the right ones.
    for (from, to) in
        [("order_id: uuid", "order_id: x"), ("[truncate]", "[x]"), ("expect: mapped", "expect: x")]
    {
        let error = read(&example.replace(from, to)).unwrap_err().to_string();
        let names = error.split("expected").nth(1).unwrap_or_default();
        let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
        assert!(names.len() >= 3, "{error}");
        for name in names {
            let forms = [format!("`{name}`"), format!("`{{ {name}: "), format!("{{ {name}: {{")];
            assert!(forms.iter().any(|form| reference.contains(form)), "docs/GENERATOR.md lacks `{name}`");
        }
    }
}
