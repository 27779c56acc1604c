//! Own table: a table that Sluice keeps for itself, in the database of the connection.
//!
//! Where it has to be replicated, make it by hand before the first start: what is there is left alone.

use std::time::Duration;

use clickhouse::{Client, Row, RowWrite};
use serde::Deserialize;

use super::settings::ClickHouseSettings;
use super::table_name::TableName;

#[derive(Row, Deserialize)]
struct CountRow {
    count: u64,
}

/// See the module documentation. Clones share connections.
#[derive(Clone, Debug)]
pub(super) struct OwnTable {
    pub(super) client: Client,
    pub(super) name: TableName,
    timeout: Duration,
}

impl OwnTable {
    /// Connects when it is first used.
    pub(super) fn new(settings: &ClickHouseSettings, table: &str) -> Self {
        // What is kept must be there when the answer comes: others act on the strength of it.
        let client = settings.client().with_setting("async_insert", "0");
        let name = TableName { database: Some(settings.database.clone()), table: table.to_owned() };
        Self { client, name, timeout: settings.request_timeout }
    }

    /// Whether it is there. Most starts find it so, and need no right to create tables.
    pub(super) async fn exists(&self) -> clickhouse::error::Result<bool> {
        let sql = "SELECT count() AS count FROM system.tables WHERE database = ? AND name = ?";
        let query = self.client.clone().with_database("system").query(sql);
        let query = query.bind(self.name.database.as_deref().unwrap_or_default()).bind(&self.name.table);
        Ok(query.fetch_one::<CountRow>().await?.count > 0)
    }

    /// Executes the statement that makes it.
    pub(super) async fn create(&self, statement: &str) -> clickhouse::error::Result<()> {
        self.client.query_raw(statement).execute().await
    }

    /// Adds a row.
    pub(super) async fn insert<R: RowWrite>(&self, row: &R::Value<'_>) -> clickhouse::error::Result<()> {
        let insert = self.client.insert_unescaped::<R>(&self.name.to_string()).await?;
        let mut insert = insert.with_timeouts(Some(self.timeout), Some(self.timeout));
        insert.write(row).await?;
        insert.end().await
    }
}
