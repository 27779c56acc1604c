//! What happened to modules, and what was decided about them, kept by the real engine.

#[path = "support/clickhouse.rs"]
mod support;

use std::collections::BTreeMap;

use sluice::clickhouse::deployments::{Deployments, DeploymentsError};
use sluice::clickhouse::settings::ClickHouseSettings;
use sluice::domain::deployment::{Doubt, EventKind, Hold, HoldKind, NewEvent, Standing};
use sluice::domain::retry::Retryability;
use sluice::domain::verdict::{Revision, Stage};
use support::{database, execute, text};

const A: Revision = Revision([0xa1; 32]);
const B: Revision = Revision([0xb2; 32]);
const C: Revision = Revision([0xc3; 32]);

const PIPELINE: &str = "purchases";
const RULES: (Stage, &str) = (Stage::Validate, "10-rules");

async fn deployments(name: &str) -> (Deployments, ClickHouseSettings) {
    let settings = database(name).await;
    let deployments = Deployments::new(&settings);
    deployments.ensure().await.expect("the table is made");
    (deployments, settings)
}

fn event(event: EventKind, revision: Option<Revision>, instead_of: Option<Revision>) -> NewEvent {
    NewEvent { event, revision, instead_of, by: "host-1".into(), reason: "it's ü\n\\ `why`".into() }
}

fn live(revision: Revision) -> NewEvent {
    event(EventKind::Live, Some(revision), None)
}

async fn record(deployments: &Deployments, (stage, name): (Stage, &str), event: &NewEvent) {
    deployments.record(PIPELINE, name, stage, event).await.expect("it is kept");
}

async fn standing(deployments: &Deployments, (stage, name): (Stage, &str)) -> Standing {
    let mut all = deployments.standing(PIPELINE).await.expect("it is read");
    all.remove(&(stage, name.to_owned())).unwrap_or_default()
}

#[tokio::test]
async fn what_happened_comes_back_newest_first() {
    let (deployments, settings) = deployments("deployments_history").await;
    let rolled_back = event(EventKind::RolledBack, Some(A), Some(B));
    for event in [&live(A), &live(B), &rolled_back] {
        record(&deployments, RULES, event).await;
    }
    record(&deployments, (Stage::Map, RULES.1), &live(B)).await;
    deployments.record("others", RULES.1, RULES.0, &live(B)).await.expect("it is kept");

    let history = deployments.history(PIPELINE, RULES.1, RULES.0, 2).await.expect("it is read");
    let of = |revision: Revision| Some(hex::encode(revision.0));
    let seen: Vec<_> = history
        .iter()
        .map(|event| (&*event.event, event.revision.clone(), event.instead_of.clone()))
        .collect();
    assert_eq!(seen, [("rolled-back", of(A), of(B)), ("live", of(B), None)]);
    assert_eq!((&*history[0].by, &*history[0].reason), ("host-1", "it's ü\n\\ `why`"));
    let at: jiff::Timestamp = history[0].at.parse().expect("RFC 3339");
    let known =
        text(&settings.client(), "SELECT toUnixTimestamp64Milli(max(at)) FROM sluice_deployments").await;
    assert!(at.as_millisecond() <= known.parse().unwrap() && history[0].at.ends_with('Z'), "{known}");
    assert_eq!(deployments.history(PIPELINE, "unknown", Stage::Map, 9).await, Ok(vec![]));

    let uncommented =
        "SELECT count() FROM system.columns WHERE database = 'deployments_history' AND comment = ''";
    assert_eq!(text(&settings.client(), uncommented).await, "0");
}

#[tokio::test]
async fn how_modules_stand_is_what_happened_to_them_in_the_order_of_their_host() {
    let (deployments, settings) = deployments("deployments_standing").await;
    assert_eq!(deployments.standing(PIPELINE).await.map(|all| all.len()), Ok(0));
    // The clock of the server stands still, as within a millisecond.
    let frozen = "ALTER TABLE sluice_deployments MODIFY COLUMN at DEFAULT toDateTime64('2026-01-02 03:04:05', 3, 'UTC')";
    execute(&settings.client(), frozen).await;
    let twin = deployments.clone();
    for event in [live(B), live(A), live(B), live(A)] {
        record(&deployments, RULES, &event).await;
        record(&twin, RULES, &event).await;
    }
    let expected = Standing { live: Some(A), previous: Some(B), ..Standing::default() };
    assert_eq!(standing(&deployments, RULES).await, expected);

    let hold = |kind, run, instead_of| {
        let (by, reason) = ("host-1".into(), "it's ü\n\\ `why`".into());
        let since = "2026-01-02T03:04:05.000Z".into();
        Some(Hold { kind, run, instead_of, by, reason, since, is_of_breaker: false })
    };
    record(&deployments, RULES, &event(EventKind::RolledBack, Some(B), Some(A))).await;
    let rolled_back = hold(HoldKind::RolledBack, Some(B), Some(A));
    let expected = Standing { doubts: BTreeMap::from([(A, Doubt::ByPerson)]), ..expected };
    assert_eq!(standing(&deployments, RULES).await, Standing { hold: rolled_back, ..expected.clone() });
    record(&deployments, RULES, &event(EventKind::Pinned, None, None)).await;
    let pinned = hold(HoldKind::Pinned, None, None);
    assert_eq!(standing(&deployments, RULES).await, Standing { hold: pinned, ..expected.clone() });
    record(&deployments, RULES, &event(EventKind::Released, None, None)).await;
    assert_eq!(standing(&deployments, RULES).await, expected);
    record(&deployments, RULES, &event(EventKind::RolledBack, Some(B), Some(A))).await;
    assert!(standing(&deployments, RULES).await.hold.is_some(), "the same hold again, after a release");
    record(&deployments, RULES, &event(EventKind::RolledBack, Some(B), Some(C))).await;
    record(&deployments, RULES, &event(EventKind::Released, Some(C), None)).await;
    record(&deployments, RULES, &event(EventKind::Removed, None, None)).await;
    let removed = standing(&deployments, RULES).await;
    let doubts = BTreeMap::from([(A, Doubt::ByPerson), (C, Doubt::Released)]);
    assert_eq!((removed.live, removed.doubts), (None, doubts), "all that was rolled back to one revision");

    // Modules of one name in both stages, and of other pipelines, are others.
    record(&deployments, (Stage::Map, RULES.1), &live(B)).await;
    deployments.record("others", RULES.1, RULES.0, &live(B)).await.expect("it is kept");
    let all = deployments.standing(PIPELINE).await.expect("it is read");
    let modules = [RULES, (Stage::Map, RULES.1)].map(|(stage, name)| (stage, name.to_owned()));
    assert_eq!(all.keys().collect::<Vec<_>>(), modules.iter().collect::<Vec<_>>());
    assert_eq!(all[&modules[1]], Standing { live: Some(B), ..Standing::default() });
}

#[tokio::test]
async fn events_of_hosts_are_in_the_order_in_which_the_server_took_them() {
    let (here, settings) = deployments("deployments_hosts").await;
    record(&here, RULES, &live(A)).await;
    // A host whose own clock is years behind.
    let late = "INSERT INTO sluice_deployments (pipeline, stage, name, sequence, event, revision) \
                VALUES ('purchases', 'validate', '10-rules', 7, 'live', repeat('b2', 32))";
    // Not within the same millisecond, where their own clocks decide.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    execute(&settings.client(), late).await;
    assert_eq!(
        standing(&here, RULES).await,
        Standing { live: Some(B), previous: Some(A), ..Standing::default() }
    );
}

#[tokio::test]
async fn a_row_that_nothing_of_ours_wrote_is_an_error_with_its_cure() {
    let (deployments, settings) = deployments("deployments_damaged").await;
    record(&deployments, RULES, &live(A)).await;
    let before = standing(&deployments, RULES).await;
    for values in [
        "('purchases', 'validate', '10-rules', 'live', 'it\\'s')",
        "('purchases', 'validate', '10-rules', 'dead', '')",
        "('purchases', 'insert', '10-rules', 'live', '')",
    ] {
        let forge = format!(
            "INSERT INTO sluice_deployments (pipeline, stage, name, event, revision) VALUES {values}"
        );
        execute(&settings.client(), &forge).await;
        let error = deployments.standing(PIPELINE).await.expect_err("it is forged");
        assert_eq!(error.retryability(), Retryability::Permanent);
        let message = error.to_string();
        let (_, cure) = message.split_once("remove it with ").expect("a cure");
        execute(&settings.client(), cure).await;
        assert_eq!(standing(&deployments, RULES).await, before, "{cure}");
    }
}

#[tokio::test]
async fn who_may_not_create_the_table_is_told_what_to_have_executed() {
    let settings = database("deployments_rights").await;
    let mut limited = settings.clone();
    limited.server_settings.insert("readonly".into(), "2".into());
    let deployments = Deployments::new(&limited);
    let error = deployments.ensure().await.expect_err("it may not");
    assert_eq!(error.retryability(), Retryability::Permanent);
    let DeploymentsError::Create { statement, error: because } = &error else { panic!("{error}") };
    assert!(because.has_code(164), "{because}");
    assert!(error.to_string().contains(statement.as_str()));
    let missing = deployments.standing(PIPELINE).await.expect_err("there is no table");
    assert_eq!(missing.retryability(), Retryability::Retry, "somebody may make it");
    assert!(missing.to_string().contains("cannot read sluice_deployments: Code: 60"), "{missing}");

    // Somebody else executes it, and from then on the right to create is not needed.
    execute(&settings.client(), statement).await;
    deployments.ensure().await.expect("it is there");
    assert_eq!(deployments.standing(PIPELINE).await.map(|all| all.len()), Ok(0));
    let refused =
        deployments.record(PIPELINE, "a", Stage::Map, &live(A)).await.expect_err("it may not write");
    assert!(refused.to_string().contains("cannot write to sluice_deployments: Code: 164"), "{refused}");
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let settings = ClickHouseSettings { url: "http://127.0.0.1:1".into(), ..Default::default() };
    let deployments = Deployments::new(&settings);
    for error in [
        deployments.ensure().await.expect_err("nobody is there"),
        deployments.record(PIPELINE, "a", Stage::Map, &live(A)).await.expect_err("nobody is there"),
        deployments.history(PIPELINE, "a", Stage::Map, 1).await.expect_err("nobody is there"),
        deployments.standing(PIPELINE).await.expect_err("nobody is there"),
    ] {
        assert_eq!(error.retryability(), Retryability::Retry, "{error}");
        assert!(error.to_string().contains("cannot reach ClickHouse"), "{error}");
    }
}
