//! Golden cases on the real parts: what they say of a file decides whether its revision judges records.

mod support;

use serde_json::Value;
use support::deployment::{Deployment, RULES, RULES_STATUS, live, parts};
use support::sluice::{Sluice, root};

const CASES: &str = "validators/purchase-rules.cases.jsonl";

/// A purchase that the shipped modules take.
fn purchase() -> String {
    let all = std::fs::read_to_string(root().join("testdata/purchases.txt")).expect("test data");
    all.lines().next().expect("a line").to_owned()
}

fn reason(status: &Value) -> &str {
    status["problem"]["reason"].as_str().unwrap_or_default()
}

fn is_live(status: &Value, what: &str) -> bool {
    status["state"] == "live"
        && reason(status).contains(what)
        && (what.is_empty() == reason(status).is_empty())
}

#[test]
fn a_revision_that_fails_its_cases_stays_out_and_what_is_live_stays_live() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    let configuration = folder.configuration(&kafka, &clickhouse);
    let sluice = Sluice::start(&configuration);
    let first = live(&folder.wait_for(RULES_STATUS, "live", |status| is_live(status, "")));
    let wrong =
        format!("# as it should not be\n{{\"payload\": {}, \"rejected\": \"too_dear\"}}\n", purchase());
    let right = format!(
        "{{\"payload\": {}, \"accepted\": true}}\n{{\"payload\": \"\", \"rejected\": \"malformed\"}}",
        purchase()
    );

    // Of a module that is live, changed cases are told, and it goes on.
    folder.copy(CASES, wrong.as_bytes());
    let failing =
        "it runs, but it fails 1 of its 1 golden cases: line 2: expected rejected too_dear, came accepted";
    let status = folder.wait_for(RULES_STATUS, "failing cases", |status| is_live(status, failing));
    assert_eq!((live(&status), &status["problem"]["gate"]), (first.clone(), &"cases".into()));
    assert_eq!((&status["cases"]["passed"], &status["cases"]["failures"]), (&0.into(), &1.into()));

    // A new file does not pass them.
    folder.copy(RULES, &folder.rules(1));
    let status = folder.wait_for(RULES_STATUS, "refused", |status| status["state"] == "refused");
    assert_eq!((live(&status), &status["problem"]["gate"]), (first.clone(), &"cases".into()));
    assert!(reason(&status).starts_with("fails 1 of its 1 golden cases: line 2: "), "{status}");
    assert!(reason(&status).ends_with("; mend the module or its cases"), "{status}");

    // Mended cases let it in, without another copy of the module.
    folder.replace(CASES, right.as_bytes());
    let status = folder.wait_for(RULES_STATUS, "live", |status| is_live(status, ""));
    let second = live(&status);
    assert_ne!(second, first);
    assert_eq!((&status["cases"]["passed"], &status["cases"]["failures"]), (&2.into(), &0.into()));

    // Cases that cannot be read are told, and refuse what is new.
    folder.copy(CASES, format!("{right}\n{{\"paylod\": 1, \"accepted\": true}}\n").as_bytes());
    let unreadable =
        "golden cases that cannot be read: line 3: there is no key `paylod`; did you mean `payload`?";
    folder.wait_for(RULES_STATUS, "unreadable cases", |status| is_live(status, unreadable));
    folder.copy(RULES, &folder.rules(2));
    let status = folder.wait_for(RULES_STATUS, "refused", |status| status["state"] == "refused");
    assert_eq!(live(&status), second);
    assert!(reason(&status).contains(unreadable), "{status}");

    // A start brings back what was live, and does not let cases take a rule away.
    let restart = |sluice: Sluice| {
        assert_eq!(sluice.stop(), Some(0));
        std::fs::remove_file(folder.path(RULES_STATUS)).expect("there is a status file");
        Sluice::start(&configuration)
    };
    let sluice = restart(sluice);
    let status = folder.wait_for(RULES_STATUS, "refused", |status| status["state"] == "refused");
    assert_eq!(live(&status), second);
    folder.copy(RULES, &folder.rules(1));
    folder.wait_for(RULES_STATUS, "the second revision", |status| is_live(status, unreadable));
    let sluice = restart(sluice);
    let status = folder.wait_for(RULES_STATUS, "live all the same", |status| is_live(status, unreadable));
    assert_eq!(live(&status), second);

    std::fs::remove_file(folder.path(CASES)).expect("there are cases");
    let status = folder.wait_for(RULES_STATUS, "no cases", |status| is_live(status, ""));
    assert_eq!((live(&status), &status["cases"]), (second, &Value::Null));
    assert_eq!(sluice.stop(), Some(0));
}

#[test]
fn a_pipeline_that_never_ran_does_not_start_with_a_mapper_that_fails_its_cases() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    let cases =
        format!("{{\"name\": \"cheap\", \"payload\": {}, \"row\": {{\"price_cents\": 1}}}}\n", purchase());
    folder.copy("purchase-rows.cases.jsonl", cases.as_bytes());
    let (code, said) = folder.configuration(&kafka, &clickhouse).run_to_the_end();
    assert_eq!(code, Some(1));
    let told = "fails 1 of its 1 golden cases: line 1 (cheap): output purchases, column price_cents: expected 1, came 3500";
    assert!(said.contains(told), "{said}");
}
