//! A folder of modules that an analyst copies files into while a host runs them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::clickhouse_server::ClickHouse;
use super::guests::purchase_modules;
use super::kafka::ApacheKafka;
use super::sluice::{Configuration, PATIENCE};

/// The shipped validator's file, and what is said beside it.
pub const RULES: &str = "validators/purchase-rules.wasm";
/// Its status file.
pub const RULES_STATUS: &str = "validators/purchase-rules.status.json";

/// The revision that judges records, by a status file.
pub fn live(status: &Value) -> String {
    status["live"]["revision"].as_str().unwrap_or_default().to_owned()
}

/// A broker with the shipped topics of four partitions, and a ClickHouse.
pub fn parts() -> (ApacheKafka, ClickHouse) {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 4);
    kafka.create_topic_with("purchases.dead-letters", 1, &[("max.message.bytes", "4194304")]);
    (kafka, ClickHouse::start())
}

/// A copy of the shipped modules that may be changed, and a host's configuration with it.
pub struct Deployment {
    folder: tempfile::TempDir,
}

impl Deployment {
    /// The shipped modules, the validator as revision 0.
    pub fn new() -> Self {
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

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The shipped validator as revision `number`: a custom section makes the difference, which changes
    /// nothing that it says (<https://webassembly.github.io/spec/core/binary/modules.html#custom-section>).
    pub fn rules(&self, number: u8) -> Vec<u8> {
        let mut bytes = std::fs::read(purchase_modules().join("validators/purchase-rules.wasm")).unwrap();
        bytes.extend([0, 3, 1, b'r', number]);
        bytes
    }

    /// As `cp` does.
    pub fn copy(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("copied");
    }

    /// As rsync and careful people do.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        let hidden = self.path(&format!("{name}.new"));
        std::fs::write(&hidden, bytes).expect("copied");
        std::fs::rename(hidden, self.path(name)).expect("renamed");
    }

    /// What a status file says, if it is there.
    pub fn status(&self, name: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.path(name)).ok()?;
        Some(serde_json::from_str(&text).expect("a status file is whole whenever it is read"))
    }

    /// Waits until a status file says something.
    #[track_caller]
    pub fn wait_for(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
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

    /// A host that runs these modules.
    pub fn configuration(&self, kafka: &ApacheKafka, clickhouse: &ClickHouse) -> Configuration {
        let path = |name: &str| self.path(name).display().to_string();
        Configuration::new(kafka.bootstrap(), &clickhouse.url())
            .set("PIPELINES__PURCHASES__VALIDATORS", &path("validators"))
            .set("PIPELINES__PURCHASES__MAPPER", &path("purchase-rows.wasm"))
            .set("PIPELINES__PURCHASES__BATCH__ROWS", "2000")
            .set("PIPELINES__PURCHASES__BATCH__LINGER", "200ms")
            .set("MODULES__POLL", "1s")
    }
}
