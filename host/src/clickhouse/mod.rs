//! ClickHouse over HTTP: inserts, table schema, migrations.
//!
//! Entry points: [`sink::ClickHouseSink`] sends batches, [`schema::TableSchema`] says whether a
//! mapper's output fits its table, [`migrations::Migrator`] brings the tables about,
//! [`archive::RevisionArchive`] keeps the modules that judged records, and
//! [`deployments::Deployments`] what was decided about them. All of them reach the server by [`settings::ClickHouseSettings`] and judge its answers by [`exception`].

pub mod archive;
pub mod deployments;
pub mod exception;
mod header;
pub mod holdings;
pub mod migrations;
mod own_table;
pub mod schema;
pub mod settings;
pub mod sink;
pub mod table_name;
