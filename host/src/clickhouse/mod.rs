//! ClickHouse over HTTP: inserts, table schema, migrations.
