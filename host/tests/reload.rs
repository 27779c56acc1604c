//! Reload on the real parts: an analyst copies files into the folder while records flow.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use clickhouse::Row;
use serde::Deserialize;
use support::deployment::{Deployment, RULES, RULES_STATUS, live, parts};
use support::proxy::{Answers, Proxy};
use support::sluice::Sluice;
use support::verdicts::{Repeats, Traffic};

fn is_done(sluice: &Sluice) -> bool {
    let status = sluice.status();
    let all = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
    all.len() == 4 && all.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
}

#[derive(Row, Deserialize)]
struct ChainRow {
    revision: String,
    settings: String,
}

/// Revisions swap all the time, bad files come in between, and every record ends once, under a chain that
/// was published, with only one revision of each module in it.
#[test]
fn swaps_under_load_lose_nothing_and_bad_files_change_nothing() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    let sluice = Sluice::start(&folder.configuration(&kafka, &clickhouse));
    folder.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    // So many that they last for longer than the swaps.
    let traffic = Traffic::generate(41, 200_000, 0.02);
    let enough = AtomicBool::new(false);
    let mut seen = BTreeSet::new();
    let traffic = std::thread::scope(|scope| {
        let sending = scope.spawn(|| traffic.send_until(kafka.bootstrap(), "purchases", 1_000.0, &enough));
        for swap in 1..=40u8 {
            let before = live(&folder.wait_for(RULES_STATUS, "live", |status| status["state"] == "live"));
            if swap % 5 == 0 {
                folder.copy(RULES, &folder.rules(swap)[..1000]);
                let refused = folder.wait_for(RULES_STATUS, "refused", |status| status["state"] == "refused");
                assert_eq!(live(&refused), before, "the revision before goes on: {refused}");
                assert!(
                    refused["problem"]["reason"]
                        .as_str()
                        .is_some_and(|reason| reason.contains("copy it again"))
                );
            }
            if swap % 2 == 0 {
                folder.copy(RULES, &folder.rules(swap));
            } else {
                folder.replace(RULES, &folder.rules(swap));
            }
            let after = folder.wait_for(RULES_STATUS, "another revision", |status| {
                status["state"] == "live" && live(status) != before
            });
            assert_eq!(after["live"]["revision"], after["found"]["revision"]);
            seen.insert(live(&after));
        }
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("sent")
    });
    sluice.wait_until("the topic is drained", is_done);
    assert_eq!(seen.len(), 40);
    let published = sluice
        .metric(r#"sluice_module_reloads_total{module="purchase-rules",pipeline="purchases",state="live"}"#);
    assert!(published >= 40.0, "{published}");
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());

    // Every row leads to the modules that let it through.
    let used: Vec<String> = clickhouse.rows("SELECT DISTINCT _revision FROM purchases");
    assert!(used.len() > 1, "no swap happened while records flowed");
    let chains: Vec<ChainRow> =
        clickhouse.rows("SELECT revision, settings FROM sluice_revisions WHERE stage = 'chain'");
    for revision in used {
        let chain = chains.iter().find(|chain| chain.revision.starts_with(&revision));
        let chain = chain.unwrap_or_else(|| panic!("no chain {revision} is archived"));
        assert_eq!(chain.settings.matches("purchase-rules").count(), 1);
    }
}

#[test]
fn a_file_that_goes_takes_its_rule_along_and_a_folder_that_goes_does_not() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    let sluice = Sluice::start(&folder.configuration(&kafka, &clickhouse));
    let modules = |sluice: &Sluice| {
        let status = sluice.status();
        let modules = status["pipelines"][0]["modules"].as_array().cloned().unwrap_or_default();
        modules.iter().map(|module| module["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    sluice.wait_until("the chain is shown", |sluice| modules(sluice) == ["purchase-rules", "purchase-rows"]);
    folder.copy("validators/another.wasm", &folder.rules(9));
    sluice.wait_until("there are two rules", |sluice| {
        modules(sluice) == ["another", "purchase-rules", "purchase-rows"]
    });
    std::fs::remove_file(folder.path("validators/another.wasm")).unwrap();
    sluice.wait_until("the rule is gone", |sluice| modules(sluice) == ["purchase-rules", "purchase-rows"]);
    assert_eq!(folder.status("validators/another.status.json"), None);

    // The whole folder: as when a volume is not mounted.
    std::fs::rename(folder.path("validators"), folder.path("elsewhere")).unwrap();
    sluice.wait_until("the folder is missed", |sluice| {
        sluice.metric(r#"sluice_module_state{module="purchase-rules",pipeline="purchases",state="missing"}"#)
            == 1.0
    });
    assert_eq!(modules(&sluice), ["purchase-rules", "purchase-rows"]);
    std::fs::rename(folder.path("elsewhere"), folder.path("validators")).unwrap();
    sluice.wait_until("it is back", |sluice| {
        sluice.metric(r#"sluice_module_state{module="purchase-rules",pipeline="purchases",state="live"}"#)
            == 1.0
    });
    // The mapper's file: there is no pipeline without a mapper.
    std::fs::remove_file(folder.path("purchase-rows.wasm")).unwrap();
    let status =
        folder.wait_for("purchase-rows.status.json", "missing", |status| status["state"] == "missing");
    assert!(!live(&status).is_empty());
    assert_eq!(sluice.stop(), Some(0));
}

/// That it is gone has to be kept: what was live by the events stands in for a bad file at the next start.
#[test]
fn a_rule_that_is_removed_while_clickhouse_is_away_stays_removed() {
    const OTHER: &str = "validators/another.wasm";
    const OTHER_STATUS: &str = "validators/another.status.json";
    let (kafka, clickhouse) = parts();
    let proxy = Proxy::start(Answers::All);
    let url = clickhouse.url();
    let address = url.strip_prefix("http://").and_then(|address| address.parse().ok());
    proxy.forward_to(address.expect("http://address:port"));
    let folder = Deployment::new();
    folder.copy(OTHER, &folder.rules(9));
    let behind = format!("http://{}", proxy.address());
    let configuration = folder.configuration(&kafka, &clickhouse).set("CLICKHOUSE__URL", &behind);
    let sluice = Sluice::start(&configuration);
    folder.wait_for(OTHER_STATUS, "live", |status| status["state"] == "live");

    proxy.refuse(true);
    std::fs::remove_file(folder.path(OTHER)).unwrap();
    sluice.wait_until("it is seen", |_| folder.status(OTHER_STATUS).is_none());
    let runs = |sluice: &Sluice| sluice.status()["pipelines"][0]["modules"].to_string().contains("another");
    assert!(runs(&sluice), "it goes on until that can be kept");
    proxy.refuse(false);
    sluice.wait_until("it is gone", |sluice| !runs(sluice));
    assert_eq!(sluice.stop(), Some(0));

    folder.copy(OTHER, b"not a module");
    let sluice = Sluice::start(&configuration);
    let status = folder.wait_for(OTHER_STATUS, "refused", |status| status["state"] == "refused");
    assert_eq!(status["live"], serde_json::Value::Null);
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);
    assert!(!runs(&sluice));
    assert_eq!(sluice.stop(), Some(0));
}

/// After a restart the same revisions are live, whatever the files hold by then.
#[test]
fn a_bad_file_does_not_keep_a_host_from_starting_again() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    let configuration = folder.configuration(&kafka, &clickhouse);
    let sluice = Sluice::start(&configuration);
    let first = live(&folder.wait_for(RULES_STATUS, "live", |status| status["state"] == "live"));
    folder.copy(RULES, b"not a module");
    folder.copy("validators/another.wasm", b"nor this");
    folder.wait_for("validators/another.status.json", "refused", |status| status["state"] == "refused");
    assert_eq!(sluice.stop(), Some(0));

    let sluice = Sluice::start(&configuration);
    let refused = folder.wait_for(RULES_STATUS, "refused", |status| status["state"] == "refused");
    assert_eq!(live(&refused), first);
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);
    folder.copy(RULES, &folder.rules(3));
    folder.wait_for(RULES_STATUS, "the mended file", |status| {
        status["state"] == "live" && live(status) != first
    });
    assert_eq!(sluice.stop(), Some(0));
}

/// Without an earlier revision there is nothing to go on with.
#[test]
fn a_first_start_with_a_bad_file_says_so() {
    let (kafka, clickhouse) = parts();
    let folder = Deployment::new();
    folder.copy(RULES, b"not a module");
    let (code, said) = folder.configuration(&kafka, &clickhouse).run_to_the_end();
    assert_eq!(code, Some(1));
    assert!(said.contains("is not WebAssembly"), "{said}");
    assert!(folder.path(RULES).exists());
}
