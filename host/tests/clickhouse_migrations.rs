//! Migrations against the real engine: once, in order, by one host at a time.

#[path = "support/clickhouse.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use sluice::clickhouse::migrations::{MigrationError, Migrations, Migrator};
use sluice::clickhouse::schema::TableSchema;
use sluice::clickhouse::settings::ClickHouseSettings;
use sluice::domain::retry::Retryability;
use support::{database, execute, settings, text};

fn migrations(files: &[(&str, &str)]) -> Migrations {
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned()));
    Migrations::from_files(files).expect("they are migrations")
}

/// Statements that fail or count when they are executed twice.
fn fragile() -> Migrations {
    migrations(&[
        ("0001_table.sql", "CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a; INSERT INTO t SELECT 1"),
        ("0002_more.sql", "ALTER TABLE t ADD COLUMN b String;\nINSERT INTO t VALUES (2, 'x;y');"),
    ])
}

async fn apply(
    settings: &ClickHouseSettings,
    migrations: &Migrations,
) -> Result<Vec<String>, MigrationError> {
    let applied = Migrator::new(settings).apply(migrations).await?;
    Ok(applied.into_iter().map(|migration| migration.file.clone()).collect())
}

async fn locks(settings: &ClickHouseSettings) -> String {
    let sql = "SELECT name FROM system.tables WHERE database = currentDatabase() AND name LIKE '%lock%'";
    text(&settings.client(), sql).await
}

#[tokio::test]
async fn the_shipped_migrations_make_the_purchases_table() {
    let settings = settings("shipped");
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/migrations");
    let shipped = Migrations::load(&directory).expect("the shipped files are migrations");
    let migrator = Migrator::new(&settings);
    assert_eq!(migrator.pending(&shipped).await.expect("it can be asked").len(), shipped.all().len());
    let databases = "SELECT count() FROM system.databases WHERE name = 'shipped'";
    let anywhere = settings.client().with_database("system");
    assert_eq!(text(&anywhere, databases).await, "0", "asking what is pending changes nothing");

    assert_eq!(apply(&settings, &shipped).await.expect("they apply").len(), shipped.all().len());
    assert_eq!(apply(&settings, &shipped).await.expect("nothing is left"), [""; 0]);
    assert_eq!(locks(&settings).await, "");

    let table = TableSchema::read(&settings.client(), "purchases").await.expect("the table is there");
    assert_eq!(table.require_deduplication(10_000), Ok(()));
    let found: Vec<_> =
        table.columns.iter().map(|column| format!("{} {}", column.name, column.type_name)).collect();
    assert_eq!(
        found,
        [
            "purchase_id String",
            "user_id UInt64",
            "trainer_id UInt64",
            "timestamp DateTime64(3, 'UTC')",
            "training_type LowCardinality(String)",
            "training_id UInt64",
            "training_title String",
            "training_category LowCardinality(String)",
            "price_cents UInt32",
            "discount_cents UInt32",
            "session_date Date",
            "payment_method LowCardinality(String)",
            "payment_status LowCardinality(String)",
            "payment_amount_cents UInt32",
            "payment_currency LowCardinality(String)",
            "created_at DateTime('UTC')",
            "_topic LowCardinality(String)",
            "_partition Int32",
            "_offset Int64",
            "_revision LowCardinality(String)",
        ]
    );
}

#[tokio::test]
async fn hosts_that_start_together_apply_each_file_once() {
    let settings = settings("together");
    let migrations = fragile();
    let hosts = (0..6).map(|_| apply(&settings, &migrations));
    let applied: Vec<_> = futures::future::join_all(hosts).await;
    let mut applied: Vec<_> = applied.into_iter().map(|host| host.expect("no host fails")).collect();
    applied.sort();
    assert_eq!(applied.pop().expect("there are hosts"), ["0001_table.sql", "0002_more.sql"]);
    assert!(applied.iter().all(Vec::is_empty), "{applied:?}");
    assert_eq!(text(&settings.client(), "SELECT a, b FROM t ORDER BY a").await, "1\t\n2\tx;y");
    assert_eq!(text(&settings.client(), "SELECT count() FROM sluice_migrations").await, "2");
    assert_eq!(locks(&settings).await, "");
}

#[tokio::test]
async fn the_lock_of_a_dead_host_is_broken_once() {
    let settings = database("dead_host").await;
    let create =
        "CREATE TABLE sluice_migrations_lock (a UInt8) ENGINE = Memory COMMENT 'held by dead since 5'";
    execute(&settings.client(), create).await;
    let migrations = fragile();
    let hosts = (0..6).map(|_| apply(&settings, &migrations));
    for host in futures::future::join_all(hosts).await {
        host.expect("no host fails");
    }
    assert_eq!(text(&settings.client(), "SELECT count() FROM t").await, "2");
    // Long dead, so its table went too.
    assert_eq!(locks(&settings).await, "");
}

#[tokio::test]
async fn the_lock_of_a_living_host_is_waited_for() {
    let settings = database("living_host").await;
    let client = settings.client();
    let now = text(&client, "SELECT toUnixTimestamp(now())").await;
    let create = format!(
        "CREATE TABLE sluice_migrations_lock (a UInt8) ENGINE = Memory COMMENT 'held by other since {now}'"
    );
    execute(&client, &create).await;
    let migrations = fragile();
    let mut host = std::pin::pin!(apply(&settings, &migrations));
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut host).await;
    assert!(waited.is_err(), "it did not wait: {waited:?}");
    execute(&client, "DROP TABLE sluice_migrations_lock").await;
    assert_eq!(host.await.expect("it goes on").len(), 2);
}

#[tokio::test]
async fn a_changed_file_is_refused_and_nothing_else_is_applied() {
    let settings = settings("changed_file");
    apply(&settings, &fragile()).await.expect("they apply");
    let changed = migrations(&[
        ("0001_table.sql", "CREATE TABLE t (a UInt16) ENGINE = MergeTree ORDER BY a"),
        ("0002_more.sql", "SELECT 1"),
        ("0003_new.sql", "CREATE TABLE u (a UInt8) ENGINE = MergeTree ORDER BY a"),
    ]);
    let error = apply(&settings, &changed).await.expect_err("the file was changed");
    assert!(matches!(error, MigrationError::Edited { .. }), "{error}");
    assert!(error.to_string().contains("`0001_table.sql` was changed after it was applied"), "{error}");
    assert_eq!(text(&settings.client(), "SELECT count() FROM system.tables WHERE name = 'u'").await, "0");
}

#[tokio::test]
async fn a_file_that_fails_is_named_by_line_and_done_again_when_mended() {
    let settings = settings("fails");
    let first =
        ("0001_a.sql", "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x;\n\nNONSENSE;");
    let error = apply(&settings, &migrations(&[first])).await.expect_err("the statement is nonsense");
    let message = error.to_string();
    assert!(message.contains("`0001_a.sql`, line 3: Code: 62"), "{message}");
    assert_eq!(error.retryability(), Retryability::Permanent);
    assert_eq!(locks(&settings).await, "");
    let mended = (first.0, "CREATE TABLE IF NOT EXISTS a (x UInt8) ENGINE = MergeTree ORDER BY x; SELECT 1");
    assert_eq!(apply(&settings, &migrations(&[mended])).await.expect("it applies"), ["0001_a.sql"]);
}

#[tokio::test]
async fn a_server_that_is_away_can_be_waited_for() {
    let settings = ClickHouseSettings { url: "http://127.0.0.1:1".into(), ..Default::default() };
    let error = apply(&settings, &fragile()).await.expect_err("nobody is there");
    assert_eq!(error.retryability(), Retryability::Retry, "{error}");
}

fn sluice_migrate(settings: &ClickHouseSettings, directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("migrate")
        .arg("--config")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/sluice.yaml"))
        .args(arguments)
        .env("SLUICE__CLICKHOUSE__URL", &settings.url)
        .env("SLUICE__CLICKHOUSE__DATABASE", &settings.database)
        .env("SLUICE__CLICKHOUSE__MIGRATIONS", directory)
        .output()
        .expect("the program runs")
}

#[tokio::test]
async fn the_command_plans_applies_and_refuses() {
    let settings = settings("command");
    let directory = tempfile::tempdir().expect("a folder can be made");
    let file = directory.path().join("0001_a.sql");
    std::fs::write(&file, "CREATE TABLE a (x UInt8) ENGINE = MergeTree ORDER BY x;\n")
        .expect("it is written");
    let run = |arguments: &[&str]| {
        let output = sluice_migrate(&settings, directory.path(), arguments);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it is UTF-8");
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let planned = run(&["--dry-run"]);
    assert!(planned.0 && planned.1.contains("-- 0001_a.sql\nCREATE TABLE a (x UInt8)"), "{planned:?}");
    let applied = run(&[]);
    assert!(applied.0 && applied.1.contains("applied 0001_a.sql"), "{applied:?}");
    let again = run(&["--dry-run"]);
    assert!(again.0 && again.1 == "nothing to apply\n", "{again:?}");
    std::fs::write(&file, "SELECT 1").expect("it is written");
    let refused = run(&[]);
    assert!(!refused.0 && refused.2.contains("was changed after it was applied"), "{refused:?}");
}
