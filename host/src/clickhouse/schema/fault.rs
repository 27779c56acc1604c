//! Fault: what does not fit between an output and its table, and the statement that mends it.

use super::DefaultKind;
use crate::clickhouse::exception::{ErrorKind, ServerError};
use crate::clickhouse::table_name::{Quoted, TableName};
use crate::domain::provenance::ProvenanceColumn;
use crate::pipeline::ports::InsertError;

/// Why an output is not bound to a table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The table is not there (yet): waiting may help.
    #[error(
        "table `{table}` is not in database `{database}`: create it (`sluice migrate` runs \
         config/migrations), or name another one in the pipeline's `tables`"
    )]
    NoTable {
        /// Table as configured.
        table: String,
        /// Where it was looked for.
        database: String,
    },
    /// The output and the table do not fit together.
    #[error("{}", listed(table, faults))]
    Unfit {
        /// Table as configured.
        table: String,
        /// Everything that does not fit.
        faults: Vec<SchemaFault>,
    },
    /// ClickHouse cannot be asked: waiting may help.
    #[error("cannot read the columns of table `{table}`: {error}")]
    Server {
        /// Table as configured.
        table: String,
        /// Why.
        error: ServerError,
    },
}

impl From<SchemaError> for InsertError {
    /// A table that does not take the rows: they wait for it.
    fn from(error: SchemaError) -> Self {
        match error {
            SchemaError::Server { error, .. } => error.into(),
            error => {
                let kind = ErrorKind::Schema;
                let message = format!("{error}; {}", kind.cure());
                Self { retryability: kind.retryability(), code: None, message }
            }
        }
    }
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchemaFault {
    /// The table lacks a column of the output.
    Missing {
        /// Column.
        column: String,
        /// Its type in the output.
        declared: String,
    },
    /// The column has another type.
    Type {
        /// Column.
        column: String,
        /// Its type in the output.
        declared: String,
        /// Its type in the table.
        found: String,
        /// What differs.
        reason: String,
    },
    /// The column is computed by ClickHouse.
    Computed {
        /// Column.
        column: String,
        /// `MATERIALIZED` or `ALIAS`.
        kind: DefaultKind,
    },
    /// The output has the column twice.
    Twice {
        /// Column.
        column: String,
    },
    /// The output has a column that the host fills.
    Reserved {
        /// Column.
        column: String,
    },
    /// A provenance column of a type that does not hold what belongs there.
    Provenance {
        /// Column.
        column: ProvenanceColumn,
        /// Its type in the table.
        found: String,
    },
    /// The table remembers too few tokens.
    Window {
        /// How many it remembers.
        window: u64,
        /// How many it must.
        least: u64,
        /// The setting that says so.
        setting: &'static str,
        /// Whether the table has a partition key.
        partitioned: bool,
    },
    /// The table forgets tokens too soon.
    Seconds {
        /// For how long it remembers them.
        seconds: u64,
        /// For how long it must.
        least: u64,
        /// The setting that says so.
        setting: &'static str,
    },
    /// The engine remembers no tokens at all.
    Engine {
        /// Engine.
        engine: String,
    },
}

impl SchemaFault {
    /// What is wrong and what mends it.
    fn describe(&self, table: &str) -> String {
        let alter = match table.parse::<TableName>() {
            Ok(name) => format!("ALTER TABLE {name}"),
            Err(_) => format!("ALTER TABLE {}", Quoted(table)),
        };
        match self {
            Self::Missing { column, declared } => format!(
                "column `{column}` is not in the table: {alter} ADD COLUMN {} {declared}, or leave it out of \
                 the mapper's output",
                Quoted(column)
            ),
            Self::Type { column, declared, found, reason } => {
                // ClickHouse wants to know what becomes of the nulls that are there.
                let nulls = found.starts_with("Nullable(") && !declared.starts_with("Nullable(");
                let default = if nulls { " DEFAULT (what a null becomes)" } else { "" };
                format!(
                    "column `{column}` is {found} in the table but {declared} in the mapper's output ({reason}): \
                     declare {found} in the mapper, or {alter} MODIFY COLUMN {} {declared}{default}",
                    Quoted(column)
                )
            }
            Self::Computed { column, kind } => {
                let kind = if *kind == DefaultKind::Alias { "ALIAS" } else { "MATERIALIZED" };
                format!(
                    "column `{column}` is {kind}, so ClickHouse computes it and takes no value: leave it out of \
                     the mapper's output, or turn it into a DEFAULT column with {alter} MODIFY COLUMN"
                )
            }
            Self::Twice { column } => format!("column `{column}` stands twice in the mapper's output"),
            Self::Reserved { column } => format!(
                "column `{column}` is filled by the host where the table has it: leave it out of the mapper's \
                 output"
            ),
            Self::Provenance { column, found } => format!(
                "provenance column `{}` is {found} in the table but must be {}: {alter} MODIFY COLUMN {} {}",
                column.name(),
                column.types().join(" or "),
                Quoted(column.name()),
                column.types()[0]
            ),
            Self::Window { window, least, setting, partitioned } => format!(
                "the table remembers {window} INSERTs{}, and exactly-once needs at least {least} to recognise a \
                 repeated one: {alter} MODIFY SETTING {setting} = {}, or set the pipeline's delivery to \
                 at-least-once",
                if *partitioned {
                    " (an INSERT counts once for each table partition that it has rows for)"
                } else {
                    ""
                },
                least.next_multiple_of(10_000),
            ),
            Self::Seconds { seconds, least, setting } => format!(
                "the table forgets INSERTs after {seconds} seconds, and exactly-once needs {least} to recognise \
                 one that is repeated after an outage: {alter} MODIFY SETTING {setting} = {least}, or set the \
                 pipeline's delivery to at-least-once"
            ),
            Self::Engine { engine } => format!(
                "engine {engine} does not recognise repeated INSERTs: bind the pipeline to a MergeTree table, or \
                 set its delivery to at-least-once"
            ),
        }
    }
}

fn listed(table: &str, faults: &[SchemaFault]) -> String {
    let mut text = format!("table `{table}` does not fit");
    for fault in faults {
        text.push_str("\n  ");
        text.push_str(&fault.describe(table));
    }
    text
}
