//! Reload on the real parts: an analyst copies files into the folder while records flow.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clickhouse::Row;
use serde::Deserialize;
use serde_json::Value;
use support::clickhouse_server::ClickHouse;
use support::guests::purchase_modules;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, PATIENCE, Sluice};
use support::verdicts::{Repeats, Traffic};

/// A copy of the shipped modules that may be changed, and a host's configuration with it.
struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("validators")).expect("a folder");
        let this = Self { folder };
        this.copy("validators/purchase-rules.wasm", &this.rules(0));
        this.copy(
            "purchase-rows.wasm",
            &std::fs::read(purchase_modules().join("purchase-rows.wasm")).unwrap(),
        );
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The shipped validator as revision `number`: a custom section makes the difference, which changes
    /// nothing that it says (<https://webassembly.github.io/spec/core/binary/modules.html#custom-section>).
    fn rules(&self, number: u8) -> Vec<u8> {
        let mut bytes = std::fs::read(purchase_modules().join("validators/purchase-rules.wasm")).unwrap();
        bytes.extend([0, 3, 1, b'r', number]);
        bytes
    }

    /// As `cp` does.
    fn copy(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("copied");
    }

    /// As rsync and careful people do.
    fn replace(&self, name: &str, bytes: &[u8]) {
        let hidden = self.path(&format!("{name}.new"));
        std::fs::write(&hidden, bytes).expect("copied");
        std::fs::rename(hidden, self.path(name)).expect("renamed");
    }

    fn status(&self, name: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.path(name)).ok()?;
        Some(serde_json::from_str(&text).expect("a status file is whole whenever it is read"))
    }

    #[track_caller]
    fn wait_for(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status(name);
            if let Some(status) = status.as_ref().filter(|status| condition(status)) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "waited in vain until {name} says {what}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn configuration(&self, kafka: &ApacheKafka, clickhouse: &ClickHouse) -> Configuration {
        let path = |name: &str| self.path(name).display().to_string();
        Configuration::new(kafka.bootstrap(), &clickhouse.url())
            .set("PIPELINES__PURCHASES__VALIDATORS", &path("validators"))
            .set("PIPELINES__PURCHASES__MAPPER", &path("purchase-rows.wasm"))
            .set("PIPELINES__PURCHASES__BATCH__ROWS", "2000")
            .set("PIPELINES__PURCHASES__BATCH__LINGER", "200ms")
            .set("MODULES__POLL", "1s")
    }
}

fn parts() -> (ApacheKafka, ClickHouse) {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 4);
    kafka.create_topic_with("purchases.dead-letters", 1, &[("max.message.bytes", "4194304")]);
    (kafka, ClickHouse::start())
}

fn is_done(sluice: &Sluice) -> bool {
    let status = sluice.status();
    let all = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
    all.len() == 4 && all.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
}

const RULES: &str = "validators/purchase-rules.wasm";
const RULES_STATUS: &str = "validators/purchase-rules.status.json";

fn live(status: &Value) -> String {
    status["live"]["revision"].as_str().unwrap_or_default().to_owned()
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
    let folder = Folder::new();
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
    let folder = Folder::new();
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

/// After a restart the same revisions are live, whatever the files hold by then.
#[test]
fn a_bad_file_does_not_keep_a_host_from_starting_again() {
    let (kafka, clickhouse) = parts();
    let folder = Folder::new();
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
    let folder = Folder::new();
    folder.copy(RULES, b"not a module");
    let (code, said) = folder.configuration(&kafka, &clickhouse).run_to_the_end();
    assert_eq!(code, Some(1));
    assert!(said.contains("is not WebAssembly"), "{said}");
    assert!(Path::new(&folder.path(RULES)).exists());
}
