//! One embedded ClickHouse for all tests of a binary, and a database of its own for each test.

use std::sync::OnceLock;
use std::time::Duration;

use clickhouse::Client;
use sluice::clickhouse::settings::ClickHouseSettings;
use sluice::embedded::{EmbeddedClickHouse, EmbeddedOptions};

/// The server of this binary. It ends with the process, which holds its standard input.
fn url() -> &'static str {
    static SERVER: OnceLock<(tokio::runtime::Runtime, EmbeddedClickHouse, String)> = OnceLock::new();
    let (_, _, url) = SERVER.get_or_init(|| {
        // On a thread of its own, for the caller is within its test's runtime.
        std::thread::spawn(|| {
            // Statics are never dropped, so this folder is cleared by the next run instead.
            let data =
                std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME")).join("data");
            let _ = std::fs::remove_dir_all(&data);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime starts");
            let options = EmbeddedOptions {
                program: Some(env!("CARGO_BIN_EXE_sluice").into()),
                data: Some(data),
                ..EmbeddedOptions::default()
            };
            let server = runtime
                .block_on(EmbeddedClickHouse::start(options))
                .expect("the embedded ClickHouse starts; `make libchdb` fetches its library");
            let url = server.url();
            (runtime, server, url)
        })
        .join()
        .expect("the server's thread does not panic")
    });
    url
}

/// Settings of a database that does not exist yet.
pub(crate) fn settings(database: &str) -> ClickHouseSettings {
    ClickHouseSettings {
        url: url().into(),
        database: database.into(),
        request_timeout: Duration::from_secs(60),
        ..ClickHouseSettings::default()
    }
}

/// Settings of a new, empty database.
pub(crate) async fn database(name: &str) -> ClickHouseSettings {
    let settings = settings(name);
    execute(&settings.client().with_database("system"), &format!("CREATE DATABASE {name}")).await;
    settings
}

/// Executes a statement that must succeed.
pub(crate) async fn execute(client: &Client, sql: &str) {
    client.query_raw(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Result of a query, a line a row, values apart by tabs.
pub(crate) async fn text(client: &Client, sql: &str) -> String {
    let mut cursor = client.query_raw(sql).fetch_bytes("TSVRaw").expect("the query is sent");
    let bytes = cursor.collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    String::from_utf8(bytes.to_vec()).expect("the answer is UTF-8").trim_end_matches('\n').to_owned()
}
