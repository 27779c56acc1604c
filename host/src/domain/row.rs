//! Rows: ClickHouse column types, and RowBinary: encode, walk and check.

/// Placeholder until the column types land.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType(String);

/// Why bytes are not a row of the declared columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RowFault(String);

/// One declared column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Name in the table.
    pub name: String,
    /// Type.
    pub column_type: ColumnType,
}

/// A named set of columns that a mapper fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name, bound to a table by the pipeline.
    pub name: String,
    /// Columns in the order of the rows' bytes.
    pub columns: Vec<ColumnDefinition>,
}
