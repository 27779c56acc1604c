//! Shadows on the real parts: a file beside a live module sees live records, and changes nothing.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use support::deployment::{Deployment, RULES_STATUS, parts};
use support::guests::{rejecting, trapping};
use support::sluice::Sluice;
use support::verdicts::{Repeats, Traffic};

const SHADOW: &str = "validators/purchase-rules.shadow.wasm";
const SHADOW_STATUS: &str = "validators/purchase-rules.shadow.status.json";

fn compared(sluice: &Sluice, module: &str, difference: &str) -> f64 {
    sluice.metric(&format!(
        r#"sluice_shadow_records_total{{difference="{difference}",module="{module}",pipeline="purchases"}}"#
    ))
}

#[test]
fn shadows_see_live_records_and_every_record_ends_as_without_them() {
    let (kafka, clickhouse) = parts();
    let deployment = Deployment::new();
    let sluice = Sluice::start(&deployment.configuration(&kafka, &clickhouse));
    deployment.wait_for(RULES_STATUS, "live", |status| status["state"] == "live");
    let traffic = Traffic::generate_small(61, 200_000, 0.05);
    let enough = AtomicBool::new(false);
    let traffic = std::thread::scope(|scope| {
        let sending = scope.spawn(|| traffic.send_until(kafka.bootstrap(), "purchases", 1_000.0, &enough));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // It rejects one in twenty that the live one accepts, and accepts what that rejects.
            deployment.copy(SHADOW, &rejecting(b'9', 11));
            let status = deployment.wait_for(SHADOW_STATUS, "shadow", |status| status["state"] == "shadow");
            assert_eq!((&status["live"], &status["problem"]), (&Value::Null, &Value::Null));
            for difference in ["same", "newly_rejected", "newly_accepted"] {
                sluice.wait_until(difference, |sluice| compared(sluice, "purchase-rules", difference) > 0.0);
            }
            assert_eq!(compared(&sluice, "purchase-rules", "faults"), 0.0);

            deployment.replace(SHADOW, &trapping());
            sluice.wait_until("it traps", |sluice| compared(sluice, "purchase-rules", "faults") > 0.0);

            // The same bytes as the live mapper's: it says the same of everything.
            let rows = std::fs::read(deployment.path("purchase-rows.wasm")).unwrap();
            deployment.copy("purchase-rows.shadow.wasm", &rows);
            sluice.wait_until("rows are compared", |sluice| compared(sluice, "purchase-rows", "same") > 0.0);
            assert_eq!(compared(&sluice, "purchase-rows", "other_rows"), 0.0);

            deployment.copy("validators/nobody.shadow.wasm", &rejecting(b'9', 11));
            let status = deployment.wait_for("validators/nobody.shadow.status.json", "a problem", |status| {
                !status["problem"].is_null()
            });
            let reason = status["problem"]["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("has no live module of its name"), "{status}");

            std::fs::remove_file(deployment.path(SHADOW)).unwrap();
            sluice.wait_until("its status is gone", |_| deployment.status(SHADOW_STATUS).is_none());
        }));
        enough.store(true, Ordering::Relaxed);
        let traffic = sending.join().expect("sent");
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
        traffic
    });
    sluice.wait_until("the topic is drained", |sluice| {
        let status = sluice.status();
        let partitions = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
        partitions.len() == 4
            && partitions.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
    });
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}
