//! Migrations: numbered files of SQL, applied once, in order, by whichever host comes first.
//!
//! `NNNN_name.sql` files are numbered from 0001 without gaps. What was applied is recorded in
//! `sluice_migrations`, in the database of the connection, with the SHA-256 of the file. Invariants: a
//! file that was applied never changes again; a file is recorded only after its last statement; at most
//! one host applies at a time (`lock.rs`).
//!
//! ClickHouse has no transactions around DDL: where a file fails in the middle, the statements before
//! stay, and the next attempt runs the whole file again. So statements say `IF NOT EXISTS` and
//! `IF EXISTS`, or a file holds only one.

mod lock;
mod statements;

use std::io;
use std::path::{Path, PathBuf};

use clickhouse::{Client, Row};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::exception::{ErrorKind, ServerError};
use super::settings::ClickHouseSettings;
use super::table_name::Quoted;
use crate::domain::retry::Retryability;
use lock::Lock;
pub use statements::Statement;

/// Name of the table that says what was applied. Where it has to be replicated, make it by hand
/// before the first migration; `CREATE TABLE IF NOT EXISTS` then leaves it alone.
const RECORDS: &str = "sluice_migrations";

/// Why migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The directory or a file in it cannot be read.
    #[error("cannot read migrations at {}: {error}; check clickhouse.migrations", path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A `.sql` file of another name.
    #[error("migration file `{file}` is not named NNNN_name.sql, such as 0002_add_price.sql")]
    Name {
        /// File.
        file: String,
    },
    /// Two files of one number.
    #[error(
        "migrations `{first}` and `{second}` have the same number; renumber the one that is not applied yet"
    )]
    Duplicate {
        /// File.
        first: String,
        /// File.
        second: String,
    },
    /// A number is missing.
    #[error("migration {missing:04} is missing before `{file}`; numbers go up from 0001 without gaps")]
    Gap {
        /// Number.
        missing: u32,
        /// File after it.
        file: String,
    },
    /// A file without a statement.
    #[error("migration `{file}` has no statement; write one or remove the file")]
    Empty {
        /// File.
        file: String,
    },
    /// A text or comment that goes on to the end of the file.
    #[error("migration `{file}`, line {line}: the {what} that begins here is never closed")]
    Unclosed {
        /// File.
        file: String,
        /// Line.
        line: usize,
        /// What.
        what: &'static str,
    },
    /// A file differs from what was applied under its number.
    #[error(
        "migration `{file}` was changed after it was applied (as `{applied}`, at {applied_at}, checksum \
         {recorded:.12}, now {found:.12}): restore the file, and put the change into a new migration"
    )]
    Edited {
        /// File.
        file: String,
        /// Its name when it was applied.
        applied: String,
        /// When, by the server's clock.
        applied_at: String,
        /// SHA-256 then.
        recorded: String,
        /// SHA-256 now.
        found: String,
    },
    /// A statement failed.
    #[error(
        "migration `{file}`, line {line}: {error}; mend the file (statements before this one were \
         executed and will be again) and run `sluice migrate`"
    )]
    Statement {
        /// File.
        file: String,
        /// Line.
        line: usize,
        /// Why.
        error: ServerError,
    },
    /// ClickHouse cannot be asked or told.
    #[error("cannot {doing}: {error}")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        error: ServerError,
    },
    /// This host did nothing for so long that another took over.
    #[error("another host took the migration lock over, because this one had not renewed it; run it again")]
    LockLost,
}

impl MigrationError {
    /// Whether waiting may help: only where ClickHouse could not be reached or had trouble of its own.
    pub fn retryability(&self) -> Retryability {
        match self {
            Self::Server { error, .. } => error.kind.retryability(),
            // A mistake in a file stays one; only a server that went away meanwhile comes back.
            Self::Statement { error, .. } if error.kind == ErrorKind::Server => Retryability::Retry,
            Self::LockLost => Retryability::Retry,
            _ => Retryability::Permanent,
        }
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// From 1.
    pub number: u32,
    /// File name.
    pub file: String,
    /// SHA-256 of its content, in hex. Line ends of Windows count as `\n`, for git changes them.
    pub checksum: String,
    /// What it does.
    pub statements: Vec<Statement>,
}

/// All files, by number, without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrations(Vec<Migration>);

impl Migrations {
    /// Reads every `.sql` file of a directory.
    ///
    /// # Errors
    /// When the directory cannot be read or its files are not migrations.
    pub fn load(directory: &Path) -> Result<Self, MigrationError> {
        let unreadable = |path: &Path, error| MigrationError::Unreadable { path: path.to_owned(), error };
        let entries = std::fs::read_dir(directory).map_err(|error| unreadable(directory, error))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(directory, error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if name.ends_with(".sql") {
                let content = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
                files.push((name.to_owned(), content));
            }
        }
        Self::from_files(files)
    }

    /// Reads files given as name and content.
    ///
    /// # Errors
    /// When names, numbers or contents are not those of migrations.
    pub fn from_files(files: impl IntoIterator<Item = (String, String)>) -> Result<Self, MigrationError> {
        let mut migrations = Vec::new();
        for (file, content) in files {
            let Some(number) = number_of(&file) else { return Err(MigrationError::Name { file }) };
            let content = content.replace("\r\n", "\n");
            let checksum = hex::encode(Sha256::digest(&content));
            let statements = statements::split(&content).map_err(|statements::Unclosed { what, line }| {
                MigrationError::Unclosed { file: file.clone(), line, what }
            })?;
            if statements.is_empty() {
                return Err(MigrationError::Empty { file });
            }
            migrations.push(Migration { number, file, checksum, statements });
        }
        migrations.sort_by(|a, b| (a.number, &a.file).cmp(&(b.number, &b.file)));
        for (index, migration) in migrations.iter().enumerate() {
            let expected = index as u32 + 1;
            if migration.number < expected {
                return Err(MigrationError::Duplicate {
                    first: migrations[index - 1].file.clone(),
                    second: migration.file.clone(),
                });
            }
            if migration.number > expected {
                return Err(MigrationError::Gap { missing: expected, file: migration.file.clone() });
            }
        }
        Ok(Self(migrations))
    }

    /// The files in order.
    pub fn all(&self) -> &[Migration] {
        &self.0
    }

    /// Those that are not recorded yet.
    fn pending(&self, records: &[RecordRow]) -> Result<Vec<&Migration>, MigrationError> {
        for record in records {
            let Some(migration) = self.0.iter().find(|migration| migration.number == record.number) else {
                tracing::warn!(
                    migration = record.name,
                    "the database has a migration that this host does not know; a newer host applied it"
                );
                continue;
            };
            if migration.checksum != record.checksum {
                return Err(MigrationError::Edited {
                    file: migration.file.clone(),
                    applied: record.name.clone(),
                    applied_at: record.applied.clone(),
                    recorded: record.checksum.clone(),
                    found: migration.checksum.clone(),
                });
            }
        }
        let recorded =
            |migration: &&Migration| records.iter().all(|record| record.number != migration.number);
        Ok(self.0.iter().filter(recorded).collect())
    }
}

/// The number in `NNNN_name.sql`.
fn number_of(file: &str) -> Option<u32> {
    let (number, name) = file.strip_suffix(".sql")?.split_once('_')?;
    let digits = number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !name.is_empty()).then(|| number.parse().ok())?.filter(|number| *number > 0)
}

#[derive(Clone, Debug, Row, Deserialize)]
struct RecordRow {
    number: u32,
    name: String,
    checksum: String,
    applied: String,
}

#[derive(Row, Deserialize)]
struct CountRow {
    count: u64,
}

/// Applies migrations to the database of a connection.
#[derive(Clone, Debug)]
pub struct Migrator {
    client: Client,
    database: String,
}

impl Migrator {
    /// Connects when it is first used.
    pub fn new(settings: &ClickHouseSettings) -> Self {
        // An INSERT within a migration must be done when it is answered.
        let client = settings.client().with_setting("async_insert", "0");
        Self { client, database: settings.database.clone() }
    }

    /// What [`Self::apply`] would apply now. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub async fn pending<'m>(
        &self,
        migrations: &'m Migrations,
    ) -> Result<Vec<&'m Migration>, MigrationError> {
        let records = if self.has_database().await? { self.records().await? } else { Vec::new() };
        migrations.pending(&records)
    }

    /// Applies what is not applied yet, making the database if it is not there, and returns it. Waits
    /// where another host is at it.
    ///
    /// # Errors
    /// When a file was changed after it was applied, a statement fails, or ClickHouse is away.
    pub async fn apply<'m>(&self, migrations: &'m Migrations) -> Result<Vec<&'m Migration>, MigrationError> {
        // Most starts find nothing to do, and need neither the lock nor the right to create tables.
        if self.pending(migrations).await?.is_empty() {
            return Ok(Vec::new());
        }
        if !self.has_database().await? {
            let sql = format!("CREATE DATABASE IF NOT EXISTS {}", Quoted(&self.database));
            let created = self.anywhere().query_raw(&sql).execute().await;
            created.map_err(|error| server("create the database", error))?;
        }
        let lock = Lock::acquire(&self.client).await?;
        let outcome = self.apply_locked(migrations, &lock).await;
        lock.release().await;
        outcome
    }

    async fn apply_locked<'m>(
        &self,
        migrations: &'m Migrations,
        lock: &Lock,
    ) -> Result<Vec<&'m Migration>, MigrationError> {
        let sql = format!(
            "CREATE TABLE IF NOT EXISTS {RECORDS} (number UInt32, name String, checksum String, \
             applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) ENGINE = MergeTree ORDER BY number \
             COMMENT 'Migrations that were applied, by number'"
        );
        let created = self.client.query_raw(&sql).execute().await;
        created.map_err(|error| server("create the table of migrations", error))?;
        // Only now is it known what others did.
        let pending = migrations.pending(&self.records().await?)?;
        for migration in &pending {
            for statement in &migration.statements {
                lock.hold(async {
                    let executed = self.client.query_raw(&statement.sql).execute().await;
                    executed.map_err(|error| MigrationError::Statement {
                        file: migration.file.clone(),
                        line: statement.line,
                        error: error.into(),
                    })
                })
                .await?;
            }
            let recorded = self
                .client
                .query(&format!("INSERT INTO {RECORDS} (number, name, checksum) SELECT ?, ?, ?"))
                .bind(migration.number)
                .bind(&migration.file)
                .bind(&migration.checksum)
                .execute()
                .await;
            recorded.map_err(|error| server("record a migration", error))?;
            tracing::info!(migration = migration.file, "migration applied");
        }
        Ok(pending)
    }

    /// A client that names no database that might not be there yet.
    fn anywhere(&self) -> Client {
        self.client.clone().with_database("system")
    }

    async fn has_database(&self) -> Result<bool, MigrationError> {
        let query = self.anywhere().query("SELECT count() AS count FROM system.databases WHERE name = ?");
        let count = query.bind(&self.database).fetch_one::<CountRow>().await;
        Ok(count.map_err(|error| server("look for the database", error))?.count > 0)
    }

    async fn records(&self) -> Result<Vec<RecordRow>, MigrationError> {
        let failed = |error| server("read which migrations were applied", error);
        let sql = "SELECT count() AS count FROM system.tables WHERE database = ? AND name = ?";
        let query = self.client.query(sql).bind(&self.database).bind(RECORDS);
        if query.fetch_one::<CountRow>().await.map_err(failed)?.count == 0 {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT number, name, checksum, toString(min(applied_at)) AS applied FROM {RECORDS} \
             GROUP BY number, name, checksum ORDER BY number"
        );
        self.client.query(&sql).fetch_all::<RecordRow>().await.map_err(failed)
    }
}

fn server(doing: &'static str, error: clickhouse::error::Error) -> MigrationError {
    MigrationError::Server { doing, error: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Result<Migrations, MigrationError> {
        Migrations::from_files(files.iter().map(|(name, content)| ((*name).into(), (*content).into())))
    }

    fn record(migration: &Migration) -> RecordRow {
        RecordRow {
            number: migration.number,
            name: migration.file.clone(),
            checksum: migration.checksum.clone(),
            applied: "2026-01-02 03:04:05.678".into(),
        }
    }

    #[test]
    fn files_are_ordered_by_number() {
        let migrations = files(&[("0002_b.sql", "SELECT 2; SELECT 3"), ("0001_a.sql", "SELECT 1;")]).unwrap();
        let names: Vec<_> = migrations.all().iter().map(|migration| migration.file.as_str()).collect();
        assert_eq!(names, ["0001_a.sql", "0002_b.sql"]);
        assert_eq!(migrations.all()[1].statements.len(), 2);
    }

    #[test]
    fn what_are_not_migrations_is_told() {
        for (given, expected) in [
            (&[("1_a.sql", "SELECT 1")][..], "`1_a.sql` is not named NNNN_name.sql"),
            (&[("0001_.sql", "SELECT 1")], "is not named NNNN_name.sql"),
            (&[("+001_a.sql", "SELECT 1")], "is not named NNNN_name.sql"),
            (&[("0001_a.sql", "-- nothing")], "`0001_a.sql` has no statement"),
            (&[("0001_a.sql", "SELECT\n'a")], "line 2: the text in ' that begins here is never closed"),
            (&[("0002_a.sql", "SELECT 1")], "migration 0001 is missing before `0002_a.sql`"),
            (&[("0000_a.sql", "SELECT 1")], "is not named NNNN_name.sql"),
            (&[("0001_a.sql", "SELECT 1"), ("0003_c.sql", "SELECT 1")], "migration 0002 is missing"),
            (
                &[("0001_b.sql", "SELECT 1"), ("0001_a.sql", "SELECT 1")],
                "`0001_a.sql` and `0001_b.sql` have the same number",
            ),
        ] {
            let message = files(given).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn an_edited_file_is_refused_and_line_ends_are_no_edit() {
        let then = files(&[("0001_a.sql", "SELECT\n1"), ("0002_b.sql", "SELECT 2")]).unwrap();
        let records: Vec<_> = then.all().iter().take(1).map(record).collect();
        assert_eq!(then.pending(&[]).unwrap().len(), 2);
        assert_eq!(then.pending(&records).unwrap(), [&then.all()[1]]);
        let windows = files(&[("0001_a.sql", "SELECT\r\n1")]).unwrap();
        assert_eq!(windows.pending(&records).unwrap().len(), 0);
        let edited = files(&[("0001_a.sql", "SELECT\n2")]).unwrap();
        let error = edited.pending(&records).unwrap_err();
        assert_eq!(error.retryability(), Retryability::Permanent);
        let message = error.to_string();
        assert!(message.contains("`0001_a.sql` was changed after it was applied"), "{message}");
        assert!(message.contains("2026-01-02") && message.contains(&then.all()[0].checksum[..12]));
        assert!(message.contains("put the change into a new migration"));
    }

    #[test]
    fn only_the_servers_trouble_is_waited_out() {
        let failed = |kind| {
            let error = ServerError { kind, code: None, message: "no".into() };
            MigrationError::Statement { file: "0001_a.sql".into(), line: 1, error }.retryability()
        };
        assert_eq!(failed(ErrorKind::Server), Retryability::Retry);
        for kind in [ErrorKind::Schema, ErrorKind::Data, ErrorKind::Unknown, ErrorKind::Access] {
            assert_eq!(failed(kind), Retryability::Permanent, "{kind:?}");
        }
        assert_eq!(MigrationError::LockLost.retryability(), Retryability::Retry);
    }

    #[test]
    fn an_older_host_lives_with_a_newer_database() {
        let newer = files(&[("0001_a.sql", "SELECT 1"), ("0002_b.sql", "SELECT 2")]).unwrap();
        let records: Vec<_> = newer.all().iter().map(record).collect();
        let older = files(&[("0001_a.sql", "SELECT 1")]).unwrap();
        assert_eq!(older.pending(&records).unwrap().len(), 0);
    }
}
