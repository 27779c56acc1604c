//! Breaker on the real parts: a rule that goes wrong under load goes back by itself, and nothing is lost.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use clickhouse::Row;
use serde::Deserialize;
use serde_json::Value;
use support::clickhouse_server::ClickHouse;
use support::deployment::{Deployment, RULES, RULES_STATUS, live, parts};
use support::guests::{rejecting, trapping};
use support::kafka::ApacheKafka;
use support::sluice::Sluice;
use support::verdicts::{Traffic, read};

/// A second rule beside the shipped one, and what is said of it.
const EXTRA: &str = "validators/extra.wasm";
const EXTRA_STATUS: &str = "validators/extra.status.json";

/// Everything: each payload is a JSON object.
fn rejecting_all() -> Vec<u8> {
    rejecting(b'{', 0)
}

/// Payloads begin with `{"user_id":` and a number: two in five of these begin with a 1, and one in twenty
/// with a 9.
fn rejecting_many() -> Vec<u8> {
    rejecting(b'1', 11)
}

fn rejecting_some() -> Vec<u8> {
    rejecting(b'9', 11)
}

fn trips(sluice: &Sluice, module: &str, action: &str) -> f64 {
    sluice.metric(&format!(
        r#"sluice_breaker_trips_total{{action="{action}",module="{module}",pipeline="purchases"}}"#
    ))
}

fn reason(status: &Value) -> &str {
    status["problem"]["reason"].as_str().unwrap_or_default()
}

/// Lets so many more records through.
fn wait_for_records(sluice: &Sluice, records: u64) {
    let until = sluice.settled() + records;
    sluice.wait_until("records went through", |sluice| sluice.settled() >= until);
}

/// Runs `story` on a host while 1,000 records a second come in, until it ends; then every one of them is
/// in the table or a dead letter, once.
fn under_load(seed: u64, mode: &str, story: impl FnOnce(&Deployment, &Sluice, &ApacheKafka, &ClickHouse)) {
    let (kafka, clickhouse) = parts();
    let deployment = Deployment::new();
    let configuration = deployment
        .configuration(&kafka, &clickhouse)
        .set("PIPELINES__PURCHASES__BREAKER__MODE", mode)
        .set("PIPELINES__PURCHASES__BREAKER__WINDOW", "5s");
    let sluice = Sluice::start(&configuration);
    deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    let traffic = Traffic::generate_small(seed, 300_000, 0.02);
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| traffic.send_until(kafka.bootstrap(), "purchases", 1_000.0, &enough));
        // Whatever fails in the story, the sender ends.
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for_records(&sluice, 1_000);
            story(&deployment, &sluice, &kafka, &clickhouse);
        }));
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("sent");
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
    let partitions = |sluice: &Sluice| {
        let status = sluice.status();
        status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default()
    };
    sluice.wait_until("the topic is drained", |sluice| {
        partitions(sluice).iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
    });
    assert_eq!(sluice.stop(), Some(0));

    let mut ends: BTreeMap<(i32, i64), u32> = BTreeMap::new();
    for place in clickhouse.rows::<(i32, i64)>("SELECT _partition, _offset FROM purchases") {
        *ends.entry(place).or_default() += 1;
    }
    for letter in read(kafka.bootstrap(), "purchases.dead-letters") {
        let number = |name| letter.header(name).and_then(|value| value.parse::<i64>().ok()).unwrap();
        let place = (number("sluice.partition") as i32, number("sluice.offset"));
        *ends.entry(place).or_default() += 1;
    }
    for record in read(kafka.bootstrap(), "purchases") {
        let place = (record.partition, record.offset);
        assert_eq!(ends.remove(&place), Some(1), "times that record {place:?} ended");
    }
    assert_eq!(ends, BTreeMap::new(), "ends of records that do not exist");
}

#[derive(Row, Deserialize)]
struct Event {
    event: String,
    revision: String,
    instead_of: String,
    by: String,
    reason: String,
}

fn events(clickhouse: &ClickHouse, name: &str, event: &str) -> Vec<Event> {
    clickhouse.rows(&format!(
        "SELECT event, revision, instead_of, by, reason FROM sluice_deployments \
         WHERE name = '{name}' AND event = '{event}' ORDER BY at, sequence"
    ))
}

#[test]
fn a_revision_that_does_far_worse_goes_back_by_itself_and_one_that_does_not_stays() {
    under_load(51, "roll-back", |deployment, sluice, _, clickhouse| {
        let first = live(&deployment.status(RULES_STATUS).unwrap());
        deployment.replace(RULES, &rejecting_all());
        let status =
            deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        assert_eq!(live(&status), first);
        assert_ne!(status["found"]["revision"], first.as_str());
        assert!(reason(&status).contains("the breaker saw that it rejected"), "{status}");
        assert!(reason(&status).contains("the revision before rejected"), "{status}");
        assert!(reason(&status).contains("copy a mended file, or release it"), "{status}");
        assert_eq!(trips(sluice, "purchase-rules", "roll-back"), 1.0);
        sluice.wait_until("the log says so", |sluice| sluice.log().contains("rolled back"));

        // It stays so, whatever else is looked at: the file has not changed.
        deployment.replace(RULES, &rejecting_all());
        wait_for_records(sluice, 1_500);
        assert_eq!(deployment.status(RULES_STATUS).unwrap()["state"], "rolled-back");

        // One in twenty more is somebody's purpose.
        deployment.replace(RULES, &rejecting_some());
        let status = deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
        let slight = live(&status);
        wait_for_records(sluice, 3_000);
        let status = deployment.status(RULES_STATUS).unwrap();
        assert_eq!((live(&status), &status["problem"]), (slight, &Value::Null));

        // It is on probation itself yet, so a bad successor goes back beyond it.
        deployment.replace(RULES, &trapping());
        let status =
            deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        assert_eq!(live(&status), first);
        assert!(reason(&status).contains("it failed (trap"), "{status}");
        assert_eq!(trips(sluice, "purchase-rules", "roll-back"), 2.0);
        assert_eq!(trips(sluice, "purchase-rules", "warn"), 0.0);

        let kept = events(clickhouse, "purchase-rules", "tripped");
        assert_eq!(kept.len(), 2);
        for event in &kept {
            assert_eq!(event.event, "tripped");
            assert!(event.revision.starts_with(&first) && event.instead_of.len() == 64);
            assert!(!event.by.is_empty() && event.reason.contains(" of "), "{}", event.reason);
        }
        // What is back is watched no more, and runs.
        wait_for_records(sluice, 1_000);
        assert_eq!(live(&deployment.status(RULES_STATUS).unwrap()), first);
    });
}

#[test]
fn a_new_rule_may_reject_much_but_not_all_and_who_releases_it_is_warned() {
    under_load(52, "roll-back", |deployment, sluice, _, clickhouse| {
        deployment.copy(EXTRA, &rejecting_many());
        let status = deployment.wait_for(EXTRA_STATUS, "a warning", |status| !reason(status).is_empty());
        assert_eq!(status["state"], "live");
        assert!(reason(&status).contains("the breaker warns: it rejected"), "{status}");
        assert!(reason(&status).contains("it is a new rule"), "{status}");
        assert_eq!(trips(sluice, "extra", "warn"), 1.0);

        deployment.copy(EXTRA, &rejecting_all());
        let status =
            deployment.wait_for(EXTRA_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        assert_eq!(status["live"], Value::Null, "there was no such rule before");
        assert!(reason(&status).contains("rolled back to no rule at all"), "{status}");
        let kept = events(clickhouse, "extra", "tripped");
        assert_eq!((kept.len(), kept[0].revision.as_str()), (1, ""));
        let inserted = || {
            let count: Vec<u64> = clickhouse.rows("SELECT count() FROM purchases");
            count[0]
        };
        let before = inserted();
        sluice.wait_until("rows come again", |_| inserted() > before + 1_000);

        // A person who has seen the figures may have it all the same.
        clickhouse.execute(
            "INSERT INTO sluice_deployments (pipeline, stage, name, sequence, event, by) \
             VALUES ('purchases', 'validate', 'extra', 0, 'released', 'an analyst')",
        );
        let status = deployment.wait_for(EXTRA_STATUS, "a warning", |status| {
            status["state"] == "live" && !reason(status).is_empty()
        });
        assert!(reason(&status).contains("the breaker would roll it back"), "{status}");
        wait_for_records(sluice, 1_000);
        assert_eq!(deployment.status(EXTRA_STATUS).unwrap()["state"], "live");

        // That goes for the same file that was away for a moment, too.
        std::fs::remove_file(deployment.path(EXTRA)).expect("removed");
        sluice.wait_until("the rule is gone", |_| !events(clickhouse, "extra", "removed").is_empty());
        let gone = events(clickhouse, "extra", "live").len();
        deployment.copy(EXTRA, &rejecting_all());
        sluice.wait_until("the rule is back", |_| events(clickhouse, "extra", "live").len() > gone);
        wait_for_records(sluice, 1_500);
        let status = deployment.status(EXTRA_STATUS).unwrap();
        assert_eq!(status["state"], "live", "{status}");
        assert!(reason(&status).contains("the breaker would roll it back"), "{status}");
        assert_eq!(trips(sluice, "extra", "roll-back"), 1.0);
    });
}

/// What an operator decides about the rules, as other hosts find it.
fn decide(clickhouse: &ClickHouse, event: &str, revision: &str) {
    clickhouse.execute(&format!(
        "INSERT INTO sluice_deployments (pipeline, stage, name, sequence, event, revision, by) \
         VALUES ('purchases', 'validate', 'purchase-rules', 0, '{event}', '{revision}', 'an operator')"
    ));
}

#[test]
fn what_was_pinned_for_a_moment_is_nothing_to_go_back_to() {
    under_load(55, "roll-back", |deployment, sluice, _, clickhouse| {
        let first = live(&deployment.status(RULES_STATUS).unwrap());
        deployment.replace(RULES, &rejecting_all());
        deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        let bad = events(clickhouse, "purchase-rules", "tripped")[0].instead_of.clone();

        // Somebody wants to see it for himself, and has seen enough.
        decide(clickhouse, "pinned", &bad);
        let status = deployment.wait_for(RULES_STATUS, "pinned", |status| status["state"] == "pinned");
        assert!(bad.starts_with(&live(&status)), "{status}");
        wait_for_records(sluice, 1_000);
        deployment.replace(RULES, &rejecting_some());
        decide(clickhouse, "released", "");
        let status = deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
        assert!(!bad.starts_with(&live(&status)), "{status}");

        deployment.replace(RULES, &trapping());
        let status =
            deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        assert_eq!(live(&status), first, "{status}");
        assert!(reason(&status).contains("it failed (trap"), "{status}");
        wait_for_records(sluice, 1_000);
    });
}

/// `rm` and `cp`, with a look between. Two in five is what a new rule may reject.
#[test]
fn a_rule_that_is_removed_and_copied_again_is_compared_with_what_was_there() {
    under_load(54, "roll-back", |deployment, sluice, _, clickhouse| {
        let first = live(&deployment.status(RULES_STATUS).unwrap());
        std::fs::remove_file(deployment.path(RULES)).expect("removed");
        sluice
            .wait_until("the rule is gone", |_| !events(clickhouse, "purchase-rules", "removed").is_empty());
        deployment.copy(RULES, &rejecting_many());
        let status =
            deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
        assert_eq!(live(&status), first);
        assert!(reason(&status).contains("the revision before rejected"), "{status}");
        let kept = events(clickhouse, "purchase-rules", "tripped");
        assert_eq!(kept.len(), 1);
        assert!(kept[0].revision.starts_with(&first), "{}", kept[0].revision);
        wait_for_records(sluice, 1_000);
    });
}

#[test]
fn a_file_that_changed_while_no_host_ran_is_on_probation() {
    let (kafka, clickhouse) = parts();
    let deployment = Deployment::new();
    let configuration = deployment.configuration(&kafka, &clickhouse);
    let sluice = Sluice::start(&configuration);
    let first = live(&deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live"));
    assert_eq!(sluice.stop(), Some(0));

    deployment.replace(RULES, &rejecting_all());
    let sluice = Sluice::start(&configuration);
    Traffic::generate_small(56, 2_000, 0.0).send(kafka.bootstrap(), "purchases");
    let status = deployment.wait_for(RULES_STATUS, "rolled-back", |status| status["state"] == "rolled-back");
    assert_eq!(live(&status), first);
    assert!(reason(&status).contains("the revision before has seen too few to compare"), "{status}");
    assert_eq!(sluice.stop(), Some(0));
}

#[test]
fn a_breaker_that_is_to_warn_does_nothing_else() {
    under_load(53, "warn", |deployment, sluice, _, clickhouse| {
        deployment.replace(RULES, &trapping());
        let status = deployment.wait_for(RULES_STATUS, "a warning", |status| !reason(status).is_empty());
        assert_eq!(
            (&status["state"], &status["live"]["revision"]),
            (&"live".into(), &status["found"]["revision"])
        );
        assert!(reason(&status).contains("the breaker would roll it back: it failed"), "{status}");
        assert_eq!(trips(sluice, "purchase-rules", "warn"), 1.0);
        wait_for_records(sluice, 1_000);
        assert_eq!(deployment.status(RULES_STATUS).unwrap()["state"], "live");
        assert_eq!(events(clickhouse, "purchase-rules", "tripped").len(), 0);
        assert_eq!(trips(sluice, "purchase-rules", "warn"), 1.0, "it is said once");
    });
}
