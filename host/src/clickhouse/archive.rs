//! Archive: the modules that ever judged records, by content, so that any host can run any of them.
//!
//! State: the table `sluice_revisions` in the database of the connection, a row a module. Invariants:
//! what is read is what its revision stands for, or an error; a module is sent only where the table
//! lacks it (bytes, settings, stage and name).
//!
//! The engine is `ReplacingMergeTree` by revision, stage and name: two hosts that start together may
//! both find a module missing and both send it, and a row of up to 64 MiB that stands twice is worth
//! merging away. Readers never rely on that: of several rows of a revision any one will do.

use bytes::Bytes;
use clickhouse::Row;
use serde::{Deserialize, Serialize};

use super::exception::{ErrorKind, ServerError};
use super::own_table::OwnTable;
use super::settings::ClickHouseSettings;
use crate::domain::module::ArchivedModule;
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::ports::ModuleIdentity;

/// Name of the table. Where it has to be replicated, make it by hand before the first start.
pub const ARCHIVE_TABLE: &str = "sluice_revisions";

/// Stage of a row that is a chain: its settings list the modules.
const CHAIN: &str = "chain";

/// Why modules were not archived, or not found again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The table is not there and could not be made.
    #[error(
        "cannot create the table that keeps the revisions of modules: {error}; have somebody who may create it \
         execute:\n{statement}"
    )]
    Create {
        /// What makes it.
        statement: String,
        /// Why not.
        error: ServerError,
    },
    /// ClickHouse cannot be asked or told.
    #[error("cannot {doing} {ARCHIVE_TABLE}: {error}")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        error: ServerError,
    },
    /// A row that is not what its revision stands for.
    #[error(
        "{ARCHIVE_TABLE} has a row of {stage} module `{name}` whose bytes and settings are not those of its \
         revision; remove it with DELETE FROM {table} WHERE revision = '{revision}' (batches that are pending \
         under it are then not formed again: what the table lacks of them is dead-lettered)"
    )]
    Damaged {
        /// Table, quoted.
        table: String,
        /// Stage.
        stage: &'static str,
        /// Name.
        name: String,
        /// Revision in hex.
        revision: String,
    },
}

impl ArchiveError {
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
    revision: &'a str,
    stage: &'a str,
    name: &'a str,
    bytes: &'a Bytes,
    settings: &'a str,
}

#[derive(Row, Deserialize)]
struct KnownRow {
    revision: String,
    stage: String,
    name: String,
}

#[derive(Row, Deserialize)]
struct ModuleRow {
    name: String,
    bytes: Bytes,
    settings: String,
}

#[derive(Row, Deserialize)]
struct RevisionRow {
    revision: String,
}

/// The archive of modules. Clones share connections.
#[derive(Clone, Debug)]
pub struct RevisionArchive {
    table: OwnTable,
}

impl RevisionArchive {
    /// Connects when it is first used.
    pub fn new(settings: &ClickHouseSettings) -> Self {
        Self { table: OwnTable::new(settings, ARCHIVE_TABLE) }
    }

    /// Makes the table where it is not there.
    ///
    /// # Errors
    /// With the statement to execute, where this user may not.
    pub async fn ensure(&self) -> Result<(), ArchiveError> {
        if self.table.exists().await.map_err(|error| server("look for", error))? {
            return Ok(());
        }
        let statement = self.statement();
        let created = self.table.create(&statement).await;
        created.map_err(|error| ArchiveError::Create { statement, error: error.into() })
    }

    /// Whoever looks into the table without our tools finds what it is.
    fn statement(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {}\n(\n    \
             revision String COMMENT 'SHA-256 in hex over the length of bytes (8 bytes, little endian), bytes, \
             settings; dead letters and logs show its first 12 digits',\n    \
             stage LowCardinality(String) COMMENT 'validate or map; chain for what _revision of a row stands for',\n    \
             name String COMMENT 'File name without .wasm; of a chain the pipeline',\n    \
             bytes String COMMENT 'The .wasm file as it was read' CODEC(ZSTD(3)),\n    \
             settings String COMMENT 'Settings as JSON, keys in order, as init got them; of a chain its modules',\n    \
             first_seen DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When a host first ran it'\n)\n\
             ENGINE = ReplacingMergeTree\nORDER BY (revision, stage, name)\n\
             COMMENT 'Every module that judged records, by content: recovery runs them again'",
            self.table.name
        )
    }

    /// Keeps modules that are not there yet. Their bytes are sent only then, one at a time.
    ///
    /// # Errors
    /// When ClickHouse does not confirm all of them; those before may be there, and doing it again is fine.
    pub async fn store(&self, modules: &[ArchivedModule]) -> Result<(), ArchiveError> {
        let revisions: Vec<String> = modules.iter().map(|module| hex::encode(module.revision.0)).collect();
        let mut known = self.known(&revisions).await?;
        for (module, revision) in modules.iter().zip(revisions) {
            let key = (revision, module.stage.as_str().to_owned(), module.name.clone());
            if known.contains(&key) {
                continue;
            }
            let ArchivedModule { stage, name, bytes, settings, .. } = module;
            self.send(NewRow { revision: &key.0, stage: stage.as_str(), name, bytes, settings }).await?;
            tracing::info!(module = module.name, revision = %module.revision, "module archived");
            known.push(key);
        }
        Ok(())
    }

    /// Keeps which modules a chain is made of, so that the `_revision` of a row leads to them. `name`
    /// is the pipeline's.
    ///
    /// # Errors
    /// When ClickHouse does not confirm it.
    pub async fn store_chain(
        &self,
        name: &str,
        revision: Revision,
        modules: &[ModuleIdentity],
    ) -> Result<(), ArchiveError> {
        let revision = hex::encode(revision.0);
        if !self.known(std::slice::from_ref(&revision)).await?.is_empty() {
            return Ok(());
        }
        let module = |module: &ModuleIdentity| {
            serde_json::json!({
                "stage": module.stage.as_str(),
                "name": &*module.name,
                "revision": hex::encode(module.revision.0),
            })
        };
        let settings = serde_json::Value::Array(modules.iter().map(module).collect()).to_string();
        self.send(NewRow {
            revision: &revision,
            stage: CHAIN,
            name,
            bytes: &Bytes::new(),
            settings: &settings,
        })
        .await
    }

    /// Which of `revisions` are kept, with stage and name.
    async fn known(&self, revisions: &[String]) -> Result<Vec<(String, String, String)>, ArchiveError> {
        if revisions.is_empty() {
            return Ok(Vec::new());
        }
        // Not the bytes: a column that is not named is not read.
        let sql = format!(
            "SELECT DISTINCT revision, toString(stage) AS stage, name FROM {} WHERE revision IN ?",
            self.table.name
        );
        let known = self.table.client.query(&sql).bind(revisions).fetch_all::<KnownRow>().await;
        let known = known.map_err(|error| server("read", error))?.into_iter();
        Ok(known.map(|KnownRow { revision, stage, name }| (revision, stage, name)).collect())
    }

    async fn send(&self, row: NewRow<'_>) -> Result<(), ArchiveError> {
        self.table.insert::<NewRow<'_>>(&row).await.map_err(|error| server("write to", error))
    }

    /// The modules of a chain by their revisions, validators in order and then the mapper; `None` for
    /// what is not kept. Where a module is kept under several names, it is the one first seen last.
    ///
    /// # Errors
    /// When ClickHouse cannot be asked, or what it has is not what it is kept as.
    pub async fn fetch(&self, chain: &[Revision]) -> Result<Vec<Option<ArchivedModule>>, ArchiveError> {
        let mut modules = Vec::with_capacity(chain.len());
        // One a query, so that the server holds no more than one module for us.
        for (index, revision) in chain.iter().enumerate() {
            let stage = if index + 1 == chain.len() { Stage::Map } else { Stage::Validate };
            modules.push(self.fetch_one(*revision, stage).await?);
        }
        Ok(modules)
    }

    /// One module by its revision; `None` if it is not kept. Where it is kept under several names, it is
    /// the one first seen last.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn fetch_one(
        &self,
        revision: Revision,
        stage: Stage,
    ) -> Result<Option<ArchivedModule>, ArchiveError> {
        let hex = hex::encode(revision.0);
        let sql = format!(
            "SELECT name, bytes, settings FROM {} WHERE revision = ? AND stage = ? \
             ORDER BY first_seen DESC, name LIMIT 1",
            self.table.name
        );
        let query = self.table.client.query(&sql).bind(&hex).bind(stage.as_str());
        let row = query.fetch_optional::<ModuleRow>().await.map_err(|error| server("read", error))?;
        let Some(ModuleRow { name, bytes, settings }) = row else { return Ok(None) };
        let module = ArchivedModule { revision, stage, name, bytes, settings };
        if !module.is_intact() {
            let (table, stage) = (self.table.name.to_string(), stage.as_str());
            return Err(ArchiveError::Damaged { table, stage, name: module.name, revision: hex });
        }
        Ok(Some(module))
    }

    /// Revisions of a module whose hex begins with `prefix`, in either case: the one first seen last
    /// comes first. That is how an operator who types a few digits finds the revision meant.
    ///
    /// # Errors
    /// When ClickHouse cannot be asked.
    pub async fn find(&self, name: &str, stage: Stage, prefix: &str) -> Result<Vec<Revision>, ArchiveError> {
        let sql = format!(
            "SELECT revision FROM {} WHERE name = ? AND stage = ? AND startsWith(revision, ?) \
             GROUP BY revision ORDER BY max(first_seen) DESC, revision",
            self.table.name
        );
        let query = self.table.client.query(&sql).bind(name).bind(stage.as_str());
        let found = query.bind(prefix.to_ascii_lowercase()).fetch_all::<RevisionRow>().await;
        let found = found.map_err(|error| server("read", error))?;
        // A row that anybody made by hand, with no revision, is not one that could be meant.
        Ok(found.iter().filter_map(|row| Revision::from_hex(&row.revision)).collect())
    }
}

fn server(doing: &'static str, error: clickhouse::error::Error) -> ArchiveError {
    ArchiveError::Server { doing, error: error.into() }
}
