//! Deployments: what happened to modules and what was decided about them, for all hosts of a pipeline.
//!
//! State: the table `sluice_deployments` in the database of the connection, a row an event, only ever
//! added to, and for each writer the number of its last event. Invariants: events of one writer are read
//! in the order in which they were written; those of several by the time of the server that took them,
//! which is as good as the servers' clocks agree.
//!
//! Recording an event that may have arrived already is harmless: see [`crate::domain::deployment`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use clickhouse::Row;
use serde::{Deserialize, Serialize};

use super::exception::{ErrorKind, ServerError};
use super::own_table::OwnTable;
use super::settings::ClickHouseSettings;
use crate::domain::deployment::{EventKind, NewEvent, Standing};
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::modules::ModuleEvent;

/// Name of the table. Where it has to be replicated, make it by hand before the first start.
pub const DEPLOYMENTS_TABLE: &str = "sluice_deployments";

/// Why an event was not kept, or events were not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentsError {
    /// The table is not there and could not be made.
    #[error(
        "cannot create the table that keeps what is decided about modules: {error}; have somebody who may create \
         it execute:\n{statement}"
    )]
    Create {
        /// What makes it.
        statement: String,
        /// Why not.
        error: ServerError,
    },
    /// ClickHouse cannot be asked or told.
    #[error("cannot {doing} {DEPLOYMENTS_TABLE}: {error}")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        error: ServerError,
    },
    /// A row that nothing of ours wrote.
    #[error(
        "{DEPLOYMENTS_TABLE} has a row whose {column} is `{value}`, which is none; remove it with DELETE FROM \
         {table} WHERE pipeline = {pipeline} AND {column} = {literal}"
    )]
    Damaged {
        /// Table, quoted.
        table: String,
        /// Column at fault.
        column: &'static str,
        /// What it holds.
        value: String,
        /// The same, as SQL has it.
        literal: String,
        /// Pipeline, as SQL has it.
        pipeline: String,
    },
}

impl DeploymentsError {
    /// Whether waiting may help.
    pub fn retryability(&self) -> Retryability {
        match self {
            // As with migrations: only a server that is away comes back by itself at a start.
            Self::Create { error, .. } if error.kind != ErrorKind::Server => Retryability::Permanent,
            Self::Create { .. } => Retryability::Retry,
            Self::Server { error, .. } => error.kind.retryability(),
            Self::Damaged { .. } => Retryability::Permanent,
        }
    }
}

#[derive(Row, Serialize)]
struct NewRow<'a> {
    pipeline: &'a str,
    stage: &'a str,
    name: &'a str,
    sequence: u64,
    event: &'a str,
    revision: &'a str,
    instead_of: &'a str,
    by: &'a str,
    reason: &'a str,
}

#[derive(Row, Deserialize)]
struct EventRow {
    stage: String,
    name: String,
    milliseconds: i64,
    event: String,
    revision: String,
    instead_of: String,
    by: String,
    reason: String,
}

/// What [`EventRow`] is read of.
const EVENT_COLUMNS: &str = "toString(stage) AS stage, toString(name) AS name, \
    toUnixTimestamp64Milli(at) AS milliseconds, toString(event) AS event, revision, instead_of, \
    toString(by) AS by, reason";

/// Modules of one pipeline, by stage and name, and how each stands.
pub type Standings = BTreeMap<(Stage, String), Standing>;

/// The events of modules. Clones share connections and count their events together.
#[derive(Clone, Debug)]
pub struct Deployments {
    table: OwnTable,
    /// Number of the last event.
    last: Arc<AtomicU64>,
}

impl Deployments {
    /// Connects when it is first used.
    pub fn new(settings: &ClickHouseSettings) -> Self {
        Self { table: OwnTable::new(settings, DEPLOYMENTS_TABLE), last: Arc::default() }
    }

    /// Makes the table where it is not there.
    ///
    /// # Errors
    /// With the statement to execute, where this user may not.
    pub async fn ensure(&self) -> Result<(), DeploymentsError> {
        if self.table.exists().await.map_err(|error| server("look for", error))? {
            return Ok(());
        }
        let statement = self.statement();
        let created = self.table.create(&statement).await;
        created.map_err(|error| DeploymentsError::Create { statement, error: error.into() })
    }

    /// Whoever looks into the table without our tools finds what it is.
    fn statement(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {}\n(\n    \
             pipeline LowCardinality(String) COMMENT 'Pipeline that the module is of',\n    \
             stage LowCardinality(String) COMMENT 'validate or map',\n    \
             name LowCardinality(String) COMMENT 'File name without .wasm',\n    \
             at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When the event was recorded, by this server',\n    \
             sequence UInt64 COMMENT 'Order of the events of one host within a millisecond: microseconds since \
             1970 by its own clock, and always more than before',\n    \
             event LowCardinality(String) COMMENT 'live: the revision of the file went live; removed: the file is \
             gone; rolled-back: a person has revision held until the file is another than instead_of; tripped: the \
             breaker has; pinned: revision is held until released; released: the file counts again',\n    \
             revision String COMMENT 'Revision that the event is about, in hex as in sluice_revisions; empty for \
             none',\n    \
             instead_of String COMMENT 'Revision of the file that a rollback stands in for, in hex; empty for \
             none',\n    \
             by LowCardinality(String) COMMENT 'Host or person that did it',\n    \
             reason String COMMENT 'Why, in a sentence'\n)\n\
             ENGINE = MergeTree\nORDER BY (pipeline, stage, name, at, sequence)\n\
             COMMENT 'What happened to modules and what was decided about them; rows are only added'",
            self.table.name
        )
    }

    /// Keeps an event. Where this fails it may have been kept all the same: record it again.
    ///
    /// # Errors
    /// When ClickHouse does not confirm it.
    pub async fn record(
        &self,
        pipeline: &str,
        name: &str,
        stage: Stage,
        event: &NewEvent,
    ) -> Result<(), DeploymentsError> {
        let digits = |revision: Option<Revision>| revision.map(|revision| hex::encode(revision.0));
        let revision = digits(event.revision).unwrap_or_default();
        let instead_of = digits(event.instead_of).unwrap_or_default();
        let row = NewRow {
            pipeline,
            stage: stage.as_str(),
            name,
            sequence: self.next(),
            event: event.event.as_str(),
            revision: &revision,
            instead_of: &instead_of,
            by: &event.by,
            reason: &event.reason,
        };
        self.table.insert::<NewRow<'_>>(&row).await.map_err(|error| server("write to", error))
    }

    /// Number of the next event: above all of this process, and, unless the clock was set back, above
    /// those of the process before it.
    fn next(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let next = |last: u64| now.max(last.saturating_add(1));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_else(|last| last))
    }

    /// What happened to a module, newest first, at most `limit` events.
    ///
    /// # Errors
    /// When ClickHouse cannot be asked.
    pub async fn history(
        &self,
        pipeline: &str,
        name: &str,
        stage: Stage,
        limit: usize,
    ) -> Result<Vec<ModuleEvent>, DeploymentsError> {
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM {} AS events \
             WHERE events.pipeline = ? AND events.stage = ? AND events.name = ? \
             ORDER BY at DESC, sequence DESC LIMIT ?",
            self.table.name
        );
        let query = self.table.client.query(&sql).bind(pipeline).bind(stage.as_str()).bind(name).bind(limit);
        let rows = query.fetch_all::<EventRow>().await.map_err(|error| server("read", error))?;
        let some = |digits: String| Some(digits).filter(|digits| !digits.is_empty());
        let event = |row: EventRow| ModuleEvent {
            at: timestamp(row.milliseconds),
            event: row.event,
            revision: some(row.revision),
            instead_of: some(row.instead_of),
            by: row.by,
            reason: row.reason,
        };
        Ok(rows.into_iter().map(event).collect())
    }

    /// How every module of a pipeline stands that anything ever happened to.
    ///
    /// # Errors
    /// When ClickHouse cannot be asked, or a row holds what it cannot.
    pub async fn standing(&self, pipeline: &str) -> Result<Standings, DeploymentsError> {
        // Of the same event of the same revisions only the last tells anything: so the answer does not grow
        // with the number of hosts and starts, and what is left has the same outcome.
        let sql = format!(
            "SELECT {EVENT_COLUMNS} FROM \
             (SELECT * FROM {} WHERE pipeline = ? ORDER BY at DESC, sequence DESC \
             LIMIT 1 BY stage, name, event, revision, instead_of) AS events \
             ORDER BY at, sequence",
            self.table.name
        );
        let query = self.table.client.query(&sql).bind(pipeline);
        let rows = query.fetch_all::<EventRow>().await.map_err(|error| server("read", error))?;
        let damaged = |column, value: &str| DeploymentsError::Damaged {
            table: self.table.name.to_string(),
            column,
            value: value.to_owned(),
            literal: literal(value),
            pipeline: literal(pipeline),
        };
        let revision = |column, digits: &str| match digits {
            "" => Ok(None),
            digits => Revision::from_hex(digits).map(Some).ok_or_else(|| damaged(column, digits)),
        };
        let mut modules: BTreeMap<(Stage, String), Vec<(NewEvent, String)>> = BTreeMap::new();
        for row in rows {
            let stages = [Stage::Validate, Stage::Map];
            let stage = stages.into_iter().find(|stage| stage.as_str() == row.stage);
            let stage = stage.ok_or_else(|| damaged("stage", &row.stage))?;
            let event = NewEvent {
                event: EventKind::parse(&row.event).ok_or_else(|| damaged("event", &row.event))?,
                revision: revision("revision", &row.revision)?,
                instead_of: revision("instead_of", &row.instead_of)?,
                by: row.by,
                reason: row.reason,
            };
            modules.entry((stage, row.name)).or_default().push((event, timestamp(row.milliseconds)));
        }
        Ok(modules.into_iter().map(|(module, events)| (module, Standing::of(events))).collect())
    }
}

/// RFC 3339 in UTC, to the millisecond.
fn timestamp(milliseconds: i64) -> String {
    // `DateTime64` holds years that jiff has, too.
    jiff::Timestamp::from_millisecond(milliseconds)
        .unwrap_or_default()
        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .to_string()
}

/// A string as SQL has it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn server(doing: &'static str, error: clickhouse::error::Error) -> DeploymentsError {
    DeploymentsError::Server { doing, error: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_whatever_the_clock_says() {
        let deployments = Deployments::new(&ClickHouseSettings::default());
        let first = deployments.next();
        assert!(first > 1_700_000_000_000_000, "{first}");
        let ahead = first + 1_000_000_000;
        deployments.last.store(ahead, Ordering::Relaxed);
        assert_eq!((deployments.next(), deployments.clone().next()), (ahead + 1, ahead + 2));
    }

    #[test]
    fn times_are_those_of_rfc_3339_and_literals_hold_anything() {
        assert_eq!(timestamp(1_700_000_000_070), "2023-11-14T22:13:20.070Z");
        assert_eq!(literal("a'b\\"), r"'a\'b\\'");
    }
}
