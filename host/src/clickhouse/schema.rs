//! Schema: what a table's columns are, and whether a mapper's output fits them.
//!
//! [`TableSchema::read`] asks the server once; everything after that is a pure comparison, so that
//! every case is tested without one. All faults of a table are told together, each with its cure.

mod fault;

use std::sync::Arc;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::exception::ServerError;
use super::table_name::{NoTableName, TableName};
use crate::domain::provenance::{Provenance, ProvenanceColumn};
use crate::domain::row::{ColumnDefinition, ColumnType, Output};
use crate::pipeline::binding::TableBinding;

pub use fault::{SchemaError, SchemaFault};

const REPLICATED_WINDOW: &str = "replicated_deduplication_window";
const REPLICATED_SECONDS: &str = "replicated_deduplication_window_seconds";
/// The least that a table must remember.
const LEAST_WINDOW: u64 = 1_000;
/// How long a replicated table must remember INSERTs: a week, as ClickHouse's default was until 25.9,
/// and as long as Kafka by default keeps the records that a batch would be formed of again.
const LEAST_SECONDS: u64 = 604_800;
/// ClickHouse's default of `max_partitions_per_insert_block`: an INSERT into more is refused.
const PARTITIONS_PER_INSERT: u64 = 100;

/// What a column is when a row does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultKind {
    /// The type's own default: 0, an empty string, NULL.
    None,
    /// `DEFAULT expression`.
    Default,
    /// `EPHEMERAL`: only used by other columns' expressions.
    Ephemeral,
    /// `MATERIALIZED expression`: always computed.
    Materialized,
    /// `ALIAS expression`: not stored.
    Alias,
}

impl DefaultKind {
    fn parse(text: &str) -> Self {
        match text {
            "DEFAULT" => Self::Default,
            "EPHEMERAL" => Self::Ephemeral,
            "MATERIALIZED" => Self::Materialized,
            "ALIAS" => Self::Alias,
            _ => Self::None,
        }
    }

    /// Whether an INSERT may name such a column.
    fn insertable(&self) -> bool {
        !matches!(self, Self::Materialized | Self::Alias)
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// Name.
    pub name: String,
    /// Type as ClickHouse names it; it may be one that no module can fill.
    pub type_name: String,
    /// What it is when a row does not say.
    pub default: DefaultKind,
}

/// A table as it is on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// `name` or `database.name`, as it was asked for.
    pub table: Arc<str>,
    /// Engine, such as `MergeTree`.
    pub engine: String,
    /// How many INSERTs the table remembers by their token; `None` where the engine has no such memory
    /// of its own (a view, `Distributed`, `Null`), 0 where it is switched off.
    pub deduplication_window: Option<u64>,
    /// How long it remembers them at most, in seconds, where that is bounded (`Replicated...`).
    pub deduplication_seconds: Option<u64>,
    /// Whether the table has a partition key: then an INSERT takes one place of the window for every
    /// partition that it has rows for.
    pub partitioned: bool,
    /// Columns in their order.
    pub columns: Vec<TableColumn>,
}

/// An output that fits its table, and what an INSERT for it looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundTable {
    /// Table, `name` or `database.name`.
    pub table: Arc<str>,
    /// Columns of the INSERT, with the types in which the bytes are written: those of the output, then
    /// those of provenance.
    pub columns: Arc<[ColumnDefinition]>,
    /// Provenance columns that the table has.
    pub provenance: Provenance,
    /// Whether rows can be seen as soon as they are inserted, and are not merged away: replicas lag, and other
    /// engines than a plain `MergeTree` make one row of several.
    pub shows_every_row: bool,
    /// Columns that nobody fills and that have no DEFAULT: every row has 0, '' or NULL in them.
    pub unfilled: Vec<String>,
}

impl BoundTable {
    /// What the pipeline needs of it.
    pub fn binding(&self) -> TableBinding {
        TableBinding {
            table: self.table.clone(),
            columns: self.columns.clone(),
            provenance: self.provenance.clone(),
            shows_every_row: self.shows_every_row,
        }
    }
}

#[derive(Row, Deserialize)]
struct TableRow {
    engine: String,
    engine_full: String,
    partition_key: String,
}

#[derive(Row, Deserialize)]
struct ColumnRow {
    name: String,
    type_name: String,
    default_kind: String,
}

#[derive(Row, Deserialize)]
struct SettingRow {
    value: String,
}

impl TableSchema {
    /// Asks ClickHouse about a table.
    ///
    /// # Errors
    /// [`SchemaError::NoTable`] when it is not there, [`SchemaError::Server`] when ClickHouse cannot be
    /// asked.
    pub async fn read(client: &Client, table: &str) -> Result<Self, SchemaError> {
        let name: TableName = table.parse().map_err(|NoTableName(_)| SchemaError::NoTable {
            table: table.to_owned(),
            database: client.database().unwrap_or("default").to_owned(),
        })?;
        Self::read_named(client, table, &name).await
    }

    async fn read_named(client: &Client, table: &str, name: &TableName) -> Result<Self, SchemaError> {
        let failed = |error| SchemaError::Server { table: table.to_owned(), error: ServerError::from(error) };
        let database = name.database.as_deref().or(client.database()).unwrap_or("default");
        let found = client
            .query(
                "SELECT engine, engine_full, partition_key FROM system.tables WHERE database = ? AND name = ?",
            )
            .bind(database)
            .bind(&name.table)
            .fetch_optional::<TableRow>()
            .await
            .map_err(failed)?;
        let Some(TableRow { engine, engine_full, partition_key }) = found else {
            return Err(SchemaError::NoTable { table: table.to_owned(), database: database.to_owned() });
        };
        let columns = client
            .query(
                "SELECT name, type AS type_name, default_kind FROM system.columns \
                 WHERE database = ? AND table = ? ORDER BY position",
            )
            .bind(database)
            .bind(&name.table)
            .fetch_all::<ColumnRow>()
            .await
            .map_err(failed)?;
        let number = async |setting: &str, server_table: &str| match table_setting(&engine_full, setting) {
            Some(number) => Ok(number),
            None => {
                let server = format!("SELECT value FROM system.{server_table} WHERE name = ?");
                let row = client.query(&server).bind(setting).fetch_optional::<SettingRow>().await;
                Ok(row.map_err(failed)?.and_then(|row| row.value.parse().ok()).unwrap_or(0))
            }
        };
        let (mut deduplication_window, mut deduplication_seconds) = (None, None);
        if let Some((setting, server_table)) = window_setting(&engine) {
            deduplication_window = Some(number(setting, server_table).await?);
            if setting == REPLICATED_WINDOW {
                deduplication_seconds = Some(number(REPLICATED_SECONDS, server_table).await?);
            }
        }
        let column = |ColumnRow { name, type_name, default_kind }| TableColumn {
            name,
            type_name,
            default: DefaultKind::parse(&default_kind),
        };
        Ok(Self {
            table: table.into(),
            engine,
            deduplication_window,
            deduplication_seconds,
            partitioned: !partition_key.is_empty(),
            columns: columns.into_iter().map(column).collect(),
        })
    }

    /// Checks whether columns with these names and types can be inserted.
    ///
    /// # Errors
    /// [`SchemaError::Unfit`] with every fault.
    pub fn check(&self, definitions: &[ColumnDefinition]) -> Result<(), SchemaError> {
        self.unless(definitions.iter().filter_map(|definition| self.fault(definition)).collect())
    }

    /// Whether replicas share the table's tokens and parts, which are kept together then.
    pub fn is_replicated(&self) -> bool {
        is_replicated(&self.engine)
    }

    /// Binds an output to this table: checks its columns, finds those of provenance.
    ///
    /// # Errors
    /// [`SchemaError::Unfit`] with every fault.
    pub fn bind(&self, output: &Output) -> Result<BoundTable, SchemaError> {
        let mut faults = Vec::new();
        for (index, definition) in output.columns.iter().enumerate() {
            if ProvenanceColumn::named(&definition.name).is_some() {
                faults.push(SchemaFault::Reserved { column: definition.name.clone() });
            } else if output.columns[..index].iter().any(|other| other.name == definition.name) {
                faults.push(SchemaFault::Twice { column: definition.name.clone() });
            } else {
                faults.extend(self.fault(definition));
            }
        }
        let provenance = self.provenance().unwrap_or_else(|fault| {
            faults.push(fault);
            Provenance::default()
        });
        self.unless(faults)?;
        let columns: Arc<[_]> = output.columns.iter().chain(provenance.columns()).cloned().collect();
        let unfilled = self.columns.iter().filter(|column| {
            column.default == DefaultKind::None && columns.iter().all(|other| other.name != column.name)
        });
        Ok(BoundTable {
            table: self.table.clone(),
            shows_every_row: self.engine == "MergeTree",
            unfilled: unfilled.map(|column| column.name.clone()).collect(),
            columns,
            provenance,
        })
    }

    /// Checks what `exactly-once` needs of the table: that it remembers INSERTs by their tokens until
    /// their outcome is known, of which `pending` may be unknown at once.
    ///
    /// The window counts parts, not INSERTs: a partitioned table needs a place for each partition that
    /// an INSERT may have rows for. A window of `LEAST_WINDOW` is the least in any case, as room for
    /// the INSERTs of others between a crash and the recovery. And a replicated table is also emptied
    /// by time, by default after an hour since ClickHouse 25.10, while a batch may wait for its recovery
    /// for as long as everything is down.
    ///
    /// # Errors
    /// [`SchemaError::Unfit`] with the statement that mends it.
    pub fn require_deduplication(&self, pending: u64) -> Result<(), SchemaError> {
        let parts = if self.partitioned { PARTITIONS_PER_INSERT } else { 1 };
        let least = pending.saturating_mul(parts).max(LEAST_WINDOW);
        let (Some(window), Some((setting, _))) = (self.deduplication_window, window_setting(&self.engine))
        else {
            return self.unless(vec![SchemaFault::Engine { engine: self.engine.clone() }]);
        };
        let mut faults = Vec::new();
        if window < least {
            faults.push(SchemaFault::Window { window, least, setting, partitioned: self.partitioned });
        }
        if let Some(seconds) = self.deduplication_seconds.filter(|seconds| *seconds < LEAST_SECONDS) {
            faults.push(SchemaFault::Seconds { seconds, least: LEAST_SECONDS, setting: REPLICATED_SECONDS });
        }
        self.unless(faults)
    }

    fn unless(&self, faults: Vec<SchemaFault>) -> Result<(), SchemaError> {
        if faults.is_empty() {
            return Ok(());
        }
        Err(SchemaError::Unfit { table: self.table.to_string(), faults })
    }

    fn fault(&self, definition: &ColumnDefinition) -> Option<SchemaFault> {
        let ColumnDefinition { name, column_type: declared } = definition;
        let Some(column) = self.columns.iter().find(|column| column.name == *name) else {
            return Some(SchemaFault::Missing { column: name.clone(), declared: declared.to_string() });
        };
        if !column.default.insertable() {
            return Some(SchemaFault::Computed { column: name.clone(), kind: column.default.clone() });
        }
        let reason = match ColumnType::parse(&column.type_name) {
            Ok(found) => declared.compatible_with(&found).err().map(|incompatible| incompatible.reason),
            Err(unknown) => Some(unknown.problem),
        };
        reason.map(|reason| SchemaFault::Type {
            column: name.clone(),
            declared: declared.to_string(),
            found: column.type_name.clone(),
            reason,
        })
    }

    fn provenance(&self) -> Result<Provenance, SchemaFault> {
        let mut definitions = Vec::new();
        for column in &self.columns {
            let Some(wanted) = ProvenanceColumn::named(&column.name) else { continue };
            if !column.default.insertable() {
                return Err(SchemaFault::Computed {
                    column: column.name.clone(),
                    kind: column.default.clone(),
                });
            }
            let column_type = ColumnType::parse(&column.type_name)
                .map_err(|_| SchemaFault::Provenance { column: wanted, found: column.type_name.clone() })?;
            definitions.push(ColumnDefinition { name: column.name.clone(), column_type });
        }
        Provenance::of(&definitions)
            .map_err(|fault| SchemaFault::Provenance { column: fault.column, found: fault.found })
    }
}

/// The setting that keeps an engine's tokens, and the system table with the server's default of it.
fn window_setting(engine: &str) -> Option<(&'static str, &'static str)> {
    if !engine.ends_with("MergeTree") {
        return None;
    }
    if is_replicated(engine) {
        Some((REPLICATED_WINDOW, "replicated_merge_tree_settings"))
    } else {
        Some(("non_replicated_deduplication_window", "merge_tree_settings"))
    }
}

fn is_replicated(engine: &str) -> bool {
    engine.starts_with("Replicated") || engine.starts_with("Shared")
}

/// A numeric setting out of `MergeTree ORDER BY a SETTINGS x = 1, y = 2`.
fn table_setting(engine_full: &str, setting: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once("SETTINGS ")?;
    settings.split(',').find_map(|assignment| {
        let (name, value) = assignment.split_once('=')?;
        (name.trim() == setting).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests;
