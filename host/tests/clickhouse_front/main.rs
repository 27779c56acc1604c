//! The embedded ClickHouse: its HTTP front through the `clickhouse` crate and through plain HTTP, and
//! the life of its process. Needs libchdb (`make libchdb`).

mod inserts;
mod plain_http;
mod process;
mod statements;

use clickhouse::Client;
use sluice::embedded::{EmbeddedClickHouse, EmbeddedOptions};

/// Options for a child of the program under test.
fn options() -> EmbeddedOptions {
    EmbeddedOptions { program: Some(env!("CARGO_BIN_EXE_sluice").into()), ..EmbeddedOptions::default() }
}

async fn start() -> EmbeddedClickHouse {
    EmbeddedClickHouse::start(options()).await.expect("ClickHouse starts")
}

fn client(clickhouse: &EmbeddedClickHouse) -> Client {
    Client::default().with_url(clickhouse.url())
}

async fn execute(client: &Client, sql: &str) {
    client.query(sql).execute().await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn count(client: &Client, table: &str) -> u64 {
    client.query(&format!("SELECT count() FROM {table}")).fetch_one().await.expect("the table is there")
}
