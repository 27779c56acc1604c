//! Sink: sends one batch as one INSERT, once.
//!
//! State: a pool of connections, metrics, and the headers of INSERTs. Invariants: a request is one block
//! on the server, so that its deduplication token stands for all of it, whatever the server's profiles
//! say; the body is sent whole or the server drops it; bytes are taken only by columns of the types that
//! they were written for (`header.rs`); an error is permanent only if the table's columns still are
//! what the header says.
//!
//! That last point matters because rows are walked before they come here: what ClickHouse refuses may be
//! a column that changed, not a record that is bad. So the sink asks for the table's columns again before
//! it believes it. Where they changed and take the same bytes with the same meaning (a value more in an
//! `Enum`, a `LowCardinality`), it goes on with another header.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clickhouse::{Client, Row};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use serde::Deserialize;

use super::exception::{ErrorKind, ServerError};
use super::header::{Headers, header};
use super::holdings::{holdings, rows_ahead};
use super::schema::{BoundTable, SchemaError, TableSchema};
use super::settings::ClickHouseSettings;
use super::table_name::{Quoted, TableName};
use crate::domain::intent::IntentSlice;
use crate::domain::ledger::PartitionId;
use crate::domain::retry::Retryability;
use crate::domain::row::Output;
use crate::pipeline::binding::TableBinding;
use crate::pipeline::ports::{InsertError, InsertRequest, RowsAhead, Sink};

/// Bytes compressed and handed to the connection at a time: about a millisecond of a runtime thread.
const SEND_BYTES: usize = 1 << 20;

/// ClickHouse's own default of rows a block; a batch may have more.
const DEFAULT_BLOCK_ROWS: usize = 1_048_449;

/// Settings that newer servers have and older refuse, with the values that a batch needs: each could
/// undo what the settings in `send` say, were it in a profile of the server.
const GUARDS: [(&str, &str); 4] = [
    // Overrides `insert_deduplicate`.
    ("deduplicate_insert", "enable"),
    // With these two a block ends at so many bytes, whatever the least sizes are.
    ("use_strict_insert_block_limits", "0"),
    ("max_insert_block_size_bytes", "0"),
    // Types in a header are text.
    ("input_format_binary_decode_types_in_binary_format", "0"),
];

/// Metrics of the sink.
#[derive(Clone, Debug)]
pub struct ClickHouseMetrics {
    insert_seconds: HistogramVec,
    insert_bytes: IntCounterVec,
    inserted_rows: IntCounterVec,
    errors: IntCounterVec,
}

impl ClickHouseMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let seconds = HistogramOpts::new(
            "sluice_clickhouse_insert_seconds",
            "Time from sending an INSERT to ClickHouse's answer, good or bad.",
        )
        .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
        let counter =
            |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let metrics = Self {
            insert_seconds: HistogramVec::new(seconds, &["table"])?,
            insert_bytes: counter(
                "sluice_clickhouse_insert_bytes_total",
                "Bytes of rows that ClickHouse took, before compression.",
                "table",
            )?,
            inserted_rows: counter(
                "sluice_clickhouse_inserted_rows_total",
                "Rows that ClickHouse took; a repeated INSERT that it recognised by its token counts again.",
                "table",
            )?,
            errors: counter(
                "sluice_clickhouse_errors_total",
                "INSERTs that failed, by whether they are sent again.",
                "retryable",
            )?,
        };
        registry.register(Box::new(metrics.insert_seconds.clone()))?;
        registry.register(Box::new(metrics.insert_bytes.clone()))?;
        registry.register(Box::new(metrics.inserted_rows.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        for retryable in ["true", "false"] {
            metrics.errors.with_label_values(&[retryable]);
        }
        Ok(metrics)
    }
}

/// Sends batches to ClickHouse. Clones share connections and metrics.
#[derive(Clone)]
pub struct ClickHouseSink {
    client: Client,
    timeout: Duration,
    metrics: ClickHouseMetrics,
    headers: Arc<Headers>,
    /// Those of [`GUARDS`] that the server knew when a table was bound last.
    guards: Arc<RwLock<Vec<String>>>,
}

#[derive(Row, Deserialize)]
struct NameRow {
    name: String,
}

impl std::fmt::Debug for ClickHouseSink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClickHouseSink").field("client", &self.client).finish_non_exhaustive()
    }
}

impl ClickHouseSink {
    /// A sink with a pool of its own. Connects when it is first used.
    pub fn new(settings: &ClickHouseSettings, metrics: ClickHouseMetrics) -> Self {
        let (client, timeout) = (settings.client(), settings.request_timeout);
        Self { client, timeout, metrics, headers: Arc::default(), guards: Arc::default() }
    }

    /// Checks an output against its table, and remembers the table's types to tell later whether they
    /// changed.
    ///
    /// # Errors
    /// When the table is not there or the output does not fit it, with what mends it; or when
    /// ClickHouse cannot be asked.
    pub async fn bind(&self, table: &str, output: &Output) -> Result<BoundTable, SchemaError> {
        self.bind_to(self.schema(table).await?, output).await
    }

    /// As [`Self::bind`], for exactly-once delivery: the table must also remember INSERTs, of which
    /// `pending` are unsettled at once ([`TableSchema::require_deduplication`]).
    ///
    /// # Errors
    /// As [`Self::bind`], and when the table remembers too little.
    pub async fn bind_deduplicating(
        &self,
        table: &str,
        output: &Output,
        pending: u64,
    ) -> Result<BoundTable, SchemaError> {
        let schema = self.schema(table).await?;
        schema.require_deduplication(pending)?;
        self.bind_to(schema, output).await
    }

    async fn bind_to(&self, schema: TableSchema, output: &Output) -> Result<BoundTable, SchemaError> {
        let bound = schema.bind(output)?;
        let known = self
            .client
            .query("SELECT name FROM system.settings WHERE name IN ?")
            .bind(GUARDS.map(|(name, _)| name).as_slice())
            .fetch_all::<NameRow>()
            .await
            .map_err(|error| SchemaError::Server { table: bound.table.to_string(), error: error.into() })?;
        *self.guards.write().unwrap_or_else(PoisonError::into_inner) =
            known.into_iter().map(|row| row.name).collect();
        self.headers.put(&bound.table, &bound.columns, header(&schema, &bound.columns)?);
        Ok(bound)
    }

    /// The table as it is now. A server that does not answer is an outage here, too.
    async fn schema(&self, table: &str) -> Result<TableSchema, SchemaError> {
        let read = tokio::time::timeout(self.timeout, TableSchema::read(&self.client, table));
        read.await.unwrap_or_else(|_| {
            let error = ServerError::from(clickhouse::error::Error::TimedOut);
            Err(SchemaError::Server { table: table.to_owned(), error })
        })
    }

    /// Sends a request under the types that the table has, as far as they take its bytes.
    async fn attempt(&self, request: &InsertRequest) -> Result<(), InsertError> {
        let InsertRequest { table, columns, .. } = request;
        let current = async || header(&self.schema(table).await?, columns);
        let mut under = match self.headers.get(table, columns) {
            Some(known) => known,
            None => {
                let made = current().await.map_err(InsertError::from)?;
                self.headers.put(table, columns, made.clone());
                made
            }
        };
        let mut rebound = false;
        loop {
            let Err(refusal) = self.send(request, under.clone()).await else { return Ok(()) };
            if !matches!(refusal.kind, ErrorKind::Data | ErrorKind::Schema) {
                return Err(refusal.into());
            }
            match current().await {
                Ok(now) if now == under => return Err(refusal.into()),
                // Changed once more meanwhile, or of several servers behind one name each has its own.
                Ok(_) if rebound => return Err(ServerError { kind: ErrorKind::Schema, ..refusal }.into()),
                Ok(now) => {
                    tracing::info!(table = %table, "columns of the table changed their types, and still take the rows");
                    self.headers.put(table, columns, now.clone());
                    (under, rebound) = (now, true);
                }
                // Then the rows are not at fault, and their message must not say so.
                Err(change) => {
                    let refusal = ServerError { kind: ErrorKind::Schema, ..refusal };
                    let message = format!("{change}\nClickHouse refused the rows: {refusal}");
                    return Err(InsertError { message, ..refusal.into() });
                }
            }
        }
    }

    async fn send(&self, request: &InsertRequest, header: Bytes) -> Result<(), ServerError> {
        let statement = insert_statement(request)?;
        // The parser cuts blocks at `max_insert_block_size` rows, and the squashing after it passes a
        // block on at `min_insert_block_size_rows` rows or `..._bytes` bytes (0 is no limit).
        let block_rows = request.rows.max(DEFAULT_BLOCK_ROWS).to_string();
        let mut insert = self
            .client
            .insert_formatted_with(statement)
            .with_timeouts(Some(self.timeout), Some(self.timeout))
            // The answer must mean that the rows are stored, and the token is ours, not a hash of a
            // block that the server puts together from several clients.
            .with_setting("async_insert", "0")
            .with_setting("input_format_with_names_use_header", "1")
            .with_setting("input_format_with_types_use_header", "1")
            .with_setting("insert_deduplicate", "1")
            .with_setting("insert_deduplication_token", &request.token)
            // A first attempt may have reached the table and failed in a view behind it: the second is
            // then dropped by the table, but must still reach the view.
            .with_setting("deduplicate_blocks_in_dependent_materialized_views", "1")
            .with_setting("max_insert_block_size", &block_rows)
            .with_setting("min_insert_block_size_rows", &block_rows)
            .with_setting("min_insert_block_size_bytes", "0");
        for (name, value) in GUARDS {
            if self.guards.read().unwrap_or_else(PoisonError::into_inner).iter().any(|known| known == name) {
                insert = insert.with_setting(name, value);
            }
        }
        insert.send(header).await?;
        let mut rest = request.body.clone();
        while !rest.is_empty() {
            insert.send(rest.split_to(rest.len().min(SEND_BYTES))).await?;
        }
        insert.end().await?;
        Ok(())
    }
}

impl ClickHouseSink {
    /// Where a table holds rows of records at these offsets or after them; see [`rows_ahead`].
    ///
    /// # Errors
    /// When ClickHouse cannot be asked.
    pub async fn rows_ahead(
        &self,
        table: &Arc<str>,
        starts: &[(PartitionId, i64)],
    ) -> Result<Vec<RowsAhead>, ServerError> {
        rows_ahead(&self.client, table, starts).await
    }
}

impl Sink for ClickHouseSink {
    async fn insert(&self, request: InsertRequest) -> Result<(), InsertError> {
        if request.rows == 0 {
            return Ok(());
        }
        let started = Instant::now();
        let outcome = self.attempt(&request).await;
        let table = [request.table.as_ref()];
        let metrics = &self.metrics;
        metrics.insert_seconds.with_label_values(&table).observe(started.elapsed().as_secs_f64());
        let error = match outcome {
            Ok(()) => {
                metrics.insert_bytes.with_label_values(&table).inc_by(request.body.len() as u64);
                metrics.inserted_rows.with_label_values(&table).inc_by(request.rows as u64);
                return Ok(());
            }
            Err(error) => error,
        };
        let retryable = error.retryability == Retryability::Retry;
        metrics.errors.with_label_values(&[if retryable { "true" } else { "false" }]).inc();
        tracing::warn!(
            table = %request.table,
            rows = request.rows,
            bytes = request.body.len(),
            token = request.token,
            code = error.code,
            retryable,
            error = error.message,
            "INSERT failed"
        );
        Err(error)
    }

    async fn held(&self, table: &TableBinding, slice: &IntentSlice) -> Result<Vec<i64>, InsertError> {
        let mut held = Vec::new();
        holdings(&self.client, &[&*table.table], slice, |offset, _| held.push(offset)).await?;
        Ok(held)
    }
}

fn insert_statement(request: &InsertRequest) -> Result<String, ServerError> {
    let table: TableName = request.table.parse()?;
    let columns: Vec<String> =
        request.columns.iter().map(|column| Quoted(&column.name).to_string()).collect();
    Ok(format!("INSERT INTO {table} ({}) FORMAT RowBinaryWithNamesAndTypes", columns.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::row::{ColumnDefinition, ColumnType};

    #[test]
    fn names_in_the_statement_are_quoted() {
        let request = |table: &str| InsertRequest {
            table: table.into(),
            columns: ["a", "b`c"]
                .map(|name| ColumnDefinition { name: name.to_owned(), column_type: ColumnType::Bool })
                .into(),
            rows: 1,
            body: "x".into(),
            token: "t".into(),
        };
        assert_eq!(
            insert_statement(&request("shop.t")),
            Ok("INSERT INTO `shop`.`t` (`a`, `b\\`c`) FORMAT RowBinaryWithNamesAndTypes".into())
        );
        assert!(insert_statement(&request("")).is_err());
    }

    #[test]
    fn metrics_have_their_names() {
        let registry = Registry::new();
        let metrics = ClickHouseMetrics::register(&registry).unwrap();
        metrics.insert_seconds.with_label_values(&["t"]).observe(0.1);
        metrics.insert_bytes.with_label_values(&["t"]).inc();
        metrics.inserted_rows.with_label_values(&["t"]).inc();
        let families = registry.gather();
        let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
        assert_eq!(
            names,
            [
                "sluice_clickhouse_errors_total",
                "sluice_clickhouse_insert_bytes_total",
                "sluice_clickhouse_insert_seconds",
                "sluice_clickhouse_inserted_rows_total",
            ]
        );
        assert!(ClickHouseMetrics::register(&registry).is_err());
    }
}
