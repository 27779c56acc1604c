//! Header: what precedes the rows of an INSERT, their columns with the types that the *table* has.
//!
//! Bytes do not say what they are: a column that became `Int32` where it was `UInt32` would take them, and
//! every value above two billion would be another. ClickHouse compares the types of a header with those
//! that the table has at that moment, within the INSERT itself, and refuses all of it where they differ.
//!
//! State: the header of each list of columns that is inserted into a table. Invariant: it is of types that
//! were found to take these bytes with the same meaning.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::schema::{SchemaError, TableSchema};
use crate::domain::row::{ColumnDefinition, encode_length, encode_string};

/// Lists of columns that are remembered of a table: modules come and go, and few are inserted at once.
/// A header that is not remembered is made again of the table.
const REMEMBERED: usize = 8;

/// Columns of an INSERT with their header.
type Known = (Arc<[ColumnDefinition]>, Bytes);

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Headers(Mutex<HashMap<Arc<str>, Vec<Known>>>);

impl Headers {
    /// The header of an INSERT, if it is remembered.
    pub(super) fn get(&self, table: &str, columns: &[ColumnDefinition]) -> Option<Bytes> {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tables.get(table)?.iter().find(|(known, _)| **known == *columns).map(|(_, header)| header.clone())
    }

    /// Remembers it, in place of what was known of these columns before.
    pub(super) fn put(&self, table: &Arc<str>, columns: &Arc<[ColumnDefinition]>, header: Bytes) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = tables.entry(table.clone()).or_default();
        known.retain(|(known, _)| known != columns);
        known.insert(0, (columns.clone(), header));
        known.truncate(REMEMBERED);
    }
}

/// The header of rows with these columns for a table that takes them, as `RowBinaryWithNamesAndTypes` has
/// it (<https://clickhouse.com/docs/interfaces/formats/RowBinaryWithNamesAndTypes>): their number, all
/// names, and all types.
///
/// # Errors
/// When the table does not take them, with every fault.
pub(super) fn header(schema: &TableSchema, columns: &[ColumnDefinition]) -> Result<Bytes, SchemaError> {
    schema.check(columns)?;
    let mut header = Vec::new();
    encode_length(&mut header, columns.len() as u64);
    for column in columns {
        encode_string(&mut header, column.name.as_bytes());
    }
    for column in columns {
        let found = schema.columns.iter().find(|found| found.name == column.name);
        encode_string(&mut header, found.map_or("", |found| &found.type_name).as_bytes());
    }
    Ok(header.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::schema::{DefaultKind, TableColumn};
    use crate::domain::row::ColumnType;

    fn columns(types: &[(&str, &str)]) -> Arc<[ColumnDefinition]> {
        let column = |(name, of): &(&str, &str)| ColumnDefinition {
            name: (*name).to_owned(),
            column_type: ColumnType::parse(of).unwrap(),
        };
        types.iter().map(column).collect()
    }

    #[test]
    fn a_header_has_the_types_of_the_table_in_the_order_of_the_rows() {
        let column = |name: &str, of: &str| TableColumn {
            name: name.into(),
            type_name: of.into(),
            default: DefaultKind::None,
        };
        let schema = TableSchema {
            table: "t".into(),
            engine: "MergeTree".into(),
            deduplication_window: None,
            deduplication_seconds: None,
            partitioned: false,
            columns: vec![
                column("x", "Date"),
                column("b", "LowCardinality(String)"),
                column("a", "DateTime('UTC')"),
            ],
        };
        let fits = columns(&[("a", "DateTime"), ("b", "String")]);
        let expected = b"\x02\x01a\x01b\x0fDateTime('UTC')\x16LowCardinality(String)";
        assert_eq!(header(&schema, &fits).as_deref(), Ok(&expected[..]));
        let unfit = header(&schema, &columns(&[("a", "UInt32")])).unwrap_err().to_string();
        assert!(unfit.contains("column `a` is DateTime('UTC') in the table"), "{unfit}");
    }

    #[test]
    fn the_newest_headers_of_a_table_are_remembered() {
        let headers = Headers::default();
        let table: Arc<str> = "t".into();
        let of = |number: usize| columns(&[(&format!("c{number}"), "UInt8")]);
        for number in 0..REMEMBERED {
            headers.put(&table, &of(number), vec![number as u8].into());
        }
        headers.put(&table, &of(0), vec![100].into());
        headers.put(&table, &of(200), vec![200].into());
        let seen = |number| headers.get("t", &of(number)).map(|header| header[0]);
        assert_eq!((seen(0), seen(1), seen(2), seen(200)), (Some(100), None, Some(2), Some(200)));
        assert_eq!(headers.get("other", &of(0)), None);
    }
}
