//! The archive of modules against the real engine.

#[path = "support/clickhouse.rs"]
mod support;

use bytes::Bytes;
use sluice::clickhouse::archive::{ArchiveError, RevisionArchive};
use sluice::clickhouse::settings::{ClickHouseSettings, TransferCompression};
use sluice::domain::module::{ArchivedModule, module_revision};
use sluice::domain::retry::Retryability;
use sluice::domain::verdict::{Revision, Stage};
use sluice::pipeline::ports::ModuleIdentity;
use support::{database, execute, text};

fn module(stage: Stage, name: &str, bytes: impl Into<Bytes>, settings: &str) -> ArchivedModule {
    let (bytes, settings) = (bytes.into(), settings.to_owned());
    ArchivedModule { revision: module_revision(&bytes, &settings), stage, name: name.into(), bytes, settings }
}

async fn archive(name: &str) -> (RevisionArchive, ClickHouseSettings) {
    let settings = database(name).await;
    let archive = RevisionArchive::new(&settings);
    archive.ensure().await.expect("the table is made");
    (archive, settings)
}

#[tokio::test]
async fn modules_come_back_as_they_were_kept() {
    let (archive, settings) = archive("archive_round_trip").await;
    let client = settings.client();
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let rules = module(Stage::Validate, "10-rules", all, r#"{"a":[1,"ü\n"]}"#);
    let empty = module(Stage::Validate, "20-leer üñ'`\\", Bytes::new(), "{}");
    let rows = module(Stage::Map, "rows", &b"\0asm"[..], "{}");
    let unasked = module(Stage::Map, "unasked", &b"\0asm2"[..], "{}");
    let modules = [rules.clone(), empty.clone(), rows.clone(), unasked];
    archive.store(&modules).await.expect("they are kept");

    let unknown = Revision([7; 32]);
    let found = archive.fetch(&[empty.revision, unknown, rules.revision, rows.revision]).await;
    assert_eq!(found, Ok(vec![Some(empty), None, Some(rules.clone()), Some(rows.clone())]));
    assert_eq!(archive.fetch(&[]).await, Ok(vec![]));
    // A validator at the mapper's place is not the module that was there.
    assert_eq!(archive.fetch(&[rows.revision, rules.revision]).await, Ok(vec![None, None]));

    // Anybody can read it: the first twelve digits are those of logs and dead letters.
    let query = format!(
        "SELECT name, stage, settings, length(bytes), first_seen > now() - 60 FROM sluice_revisions \
         WHERE startsWith(revision, '{}')",
        rules.revision
    );
    let seen = text(&client, &query).await;
    assert_eq!(seen, "10-rules\tvalidate\t{\"a\":[1,\"ü\\n\"]}\t100000\t1");
    let uncommented =
        "SELECT count() FROM system.columns WHERE database = 'archive_round_trip' AND comment = ''";
    assert_eq!(text(&client, uncommented).await, "0");
    // And can recompute the revision with ClickHouse alone, as the column's comment says.
    let recomputed = "SELECT count() FROM sluice_revisions WHERE revision = lower(hex(SHA256(concat(\
                      reinterpretAsFixedString(toUInt64(length(bytes))), bytes, settings))))";
    assert_eq!(text(&client, recomputed).await, "4");
}

#[tokio::test]
async fn a_few_digits_find_the_revisions_of_a_module() {
    let (archive, settings) = archive("archive_find").await;
    let old = module(Stage::Map, "rows", &b"old"[..], "{}");
    let new = module(Stage::Map, "rows", &b"new"[..], "{}");
    archive.store(&[old.clone(), new.clone()]).await.expect("they are kept");
    let others = [
        ArchivedModule { name: "other".into(), ..new.clone() },
        ArchivedModule { stage: Stage::Validate, ..new.clone() },
    ];
    archive.store(&others).await.expect("they are kept");
    // The old one was seen longer ago; and once more by another host.
    let client = settings.client();
    let digits = hex::encode(old.revision.0);
    let again = format!(
        "INSERT INTO sluice_revisions SELECT * EXCEPT first_seen, first_seen - 60 AS first_seen \
         FROM sluice_revisions WHERE revision = '{digits}'"
    );
    execute(&client, &again).await;
    let past = format!(
        "ALTER TABLE sluice_revisions DELETE WHERE revision = '{digits}' AND first_seen > now() - 30"
    );
    execute(&client, &format!("{past} SETTINGS mutations_sync = 1")).await;

    assert_eq!(archive.find("rows", Stage::Map, "").await, Ok(vec![new.revision, old.revision]));
    assert_eq!(archive.find("rows", Stage::Map, &digits[..9]).await, Ok(vec![old.revision]));
    assert_eq!(archive.find("rows", Stage::Map, &digits.to_uppercase()).await, Ok(vec![old.revision]));
    assert_eq!(archive.find("rows", Stage::Map, "%").await, Ok(vec![]));
    assert_eq!(archive.find("rows", Stage::Validate, &digits).await, Ok(vec![]));
    assert_eq!(archive.fetch_one(old.revision, Stage::Map).await, Ok(Some(old.clone())));
    assert_eq!(archive.fetch_one(old.revision, Stage::Validate).await, Ok(None));
}

#[tokio::test]
async fn what_is_there_is_not_sent_again_and_a_new_name_is() {
    let (archive, settings) = archive("archive_again").await;
    let client = settings.client();
    let rows = "SELECT count() FROM sluice_revisions";
    let rules = module(Stage::Validate, "rules", &b"rules"[..], "{}");
    let twice = [rules.clone(), rules.clone()];
    for _ in 0..2 {
        archive.ensure().await.expect("it is there");
        archive.store(&twice).await.expect("they are kept");
        assert_eq!(text(&client, rows).await, "1");
    }
    archive.store(&[]).await.expect("nothing to do");

    // The same content renamed, configured otherwise, or as a mapper, is a row of its own.
    let renamed = ArchivedModule { name: "rules-2".into(), ..rules.clone() };
    let mapper = ArchivedModule { stage: Stage::Map, ..rules.clone() };
    let configured = module(Stage::Validate, "rules", &b"rules"[..], r#"{"a":1}"#);
    archive.store(&[renamed.clone(), mapper.clone(), configured.clone()]).await.expect("they are kept");
    assert_eq!(text(&client, rows).await, "4");
    let found = archive.fetch(&[configured.revision, rules.revision, mapper.revision]).await;
    assert_eq!(found, Ok(vec![Some(configured), Some(renamed), Some(mapper)]));

    // Two hosts that found it missing at once both sent it: readers see one, and a merge leaves one.
    execute(&client, "INSERT INTO sluice_revisions SELECT * FROM sluice_revisions").await;
    assert_eq!(archive.fetch(&[rules.revision]).await.map(|found| found.len()), Ok(1));
    execute(&client, "OPTIMIZE TABLE sluice_revisions FINAL").await;
    assert_eq!(text(&client, rows).await, "4");
}

#[tokio::test]
async fn the_largest_module_fits() {
    for (compression, name) in
        [(TransferCompression::Lz4, "archive_large_lz4"), (TransferCompression::None, "archive_large")]
    {
        let (_, settings) = archive(name).await;
        let archive = RevisionArchive::new(&ClickHouseSettings { compression, ..settings });
        // Noise, so that no compression makes it small.
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        let large = module(Stage::Map, "large", noise.take(64 << 20).collect::<Vec<u8>>(), "{}");
        archive.store(std::slice::from_ref(&large)).await.expect("it is kept");
        let found = archive.fetch(&[large.revision]).await.expect("it is found");
        assert!(found == [Some(large)], "other bytes came back");
    }
}

#[tokio::test]
async fn a_row_that_is_not_what_it_is_kept_as_is_an_error_with_its_cure() {
    let (archive, settings) = archive("archive_damaged").await;
    let client = settings.client();
    let good = module(Stage::Map, "good", &b"good"[..], "{}");
    archive.store(std::slice::from_ref(&good)).await.expect("it is kept");
    let forged = Revision([0xab; 32]);
    let forge = format!(
        "INSERT INTO sluice_revisions (revision, stage, name, bytes, settings) \
         VALUES ('{}', 'map', 'forged', 'x', '{{}}')",
        "ab".repeat(32)
    );
    execute(&client, &forge).await;
    let error = archive.fetch(&[forged]).await.expect_err("it is forged");
    assert_eq!(error.retryability(), Retryability::Permanent);
    let message = error.to_string();
    assert!(message.contains("map module `forged`"), "{message}");
    let cure =
        format!("DELETE FROM `archive_damaged`.`sluice_revisions` WHERE revision = '{}'", "ab".repeat(32));
    assert!(message.contains(&cure), "{message}");
    execute(&client, &cure).await;
    assert_eq!(archive.fetch(&[forged]).await, Ok(vec![None]));
    assert_eq!(archive.fetch(&[good.revision]).await, Ok(vec![Some(good)]));
}

#[tokio::test]
async fn who_may_not_create_the_table_is_told_what_to_have_executed() {
    let settings = database("archive_rights").await;
    let client = settings.client();
    let mut limited = settings.clone();
    limited.server_settings.insert("readonly".into(), "2".into());
    let archive = RevisionArchive::new(&limited);
    let error = archive.ensure().await.expect_err("it may not");
    assert_eq!(error.retryability(), Retryability::Permanent);
    let ArchiveError::Create { statement, error: because } = &error else { panic!("{error}") };
    assert!(because.has_code(164), "{because}");
    assert!(error.to_string().contains(statement.as_str()));

    let rows = module(Stage::Map, "rows", &b"rows"[..], "{}");
    let missing = archive.store(std::slice::from_ref(&rows)).await.expect_err("there is no table");
    assert_eq!(missing.retryability(), Retryability::Retry, "somebody may make it");
    assert!(missing.to_string().contains("cannot read sluice_revisions: Code: 60"), "{missing}");

    // Somebody else executes it, and from then on the right to create is not needed.
    execute(&client, statement).await;
    archive.ensure().await.expect("it is there");
    let refused = archive.store(std::slice::from_ref(&rows)).await.expect_err("it may not write either");
    assert!(refused.to_string().contains("cannot write to sluice_revisions: Code: 164"), "{refused}");
    RevisionArchive::new(&settings).store(std::slice::from_ref(&rows)).await.expect("this user may");
    assert_eq!(archive.fetch(&[rows.revision]).await, Ok(vec![Some(rows)]));
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    let settings = ClickHouseSettings { url: "http://127.0.0.1:1".into(), ..Default::default() };
    let archive = RevisionArchive::new(&settings);
    let rows = module(Stage::Map, "rows", &b"rows"[..], "{}");
    for error in [
        archive.ensure().await.expect_err("nobody is there"),
        archive.store(std::slice::from_ref(&rows)).await.expect_err("nobody is there"),
        archive.fetch(&[rows.revision]).await.expect_err("nobody is there"),
    ] {
        assert_eq!(error.retryability(), Retryability::Retry, "{error}");
        assert!(error.to_string().contains("cannot reach ClickHouse"), "{error}");
    }
}

#[tokio::test]
async fn the_revision_of_a_row_leads_to_the_modules_that_passed_it() {
    let (archive, settings) = archive("archive_chains").await;
    let rules = module(Stage::Validate, "rules", &b"\0asm"[..], r#"{"most":7}"#);
    archive.store(std::slice::from_ref(&rules)).await.expect("it is kept");
    let identity = ModuleIdentity { name: "rules".into(), stage: Stage::Validate, revision: rules.revision };
    let chain = Revision([0xab; 32]);
    for _ in 0..2 {
        let modules = std::slice::from_ref(&identity);
        archive.store_chain("purchases", chain, modules).await.expect("it is kept");
    }
    let query = format!(
        "SELECT module.name, module.settings FROM (SELECT arrayJoin(JSONExtractArrayRaw(settings)) AS part \
         FROM sluice_revisions WHERE stage = 'chain' AND startsWith(revision, '{chain}')) AS chain \
         JOIN sluice_revisions AS module ON module.revision = JSONExtractString(chain.part, 'revision')"
    );
    assert_eq!(text(&settings.client(), &query).await, "rules\t{\"most\":7}");
    // A chain is no module of a batch.
    assert_eq!(archive.fetch(&[chain]).await, Ok(vec![None]));
}
