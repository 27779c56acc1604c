//! Rows: the columns that a mapper fills, and the check that bytes are a row of them.
//!
//! Rows are RowBinary (<https://clickhouse.com/docs/interfaces/formats/RowBinary>): values one after
//! the other, with nothing between them. ClickHouse reads them without doubting: a length that is off
//! by one shifts everything after it into other columns, and a number that is no value of its `Enum`
//! is stored and breaks every later `SELECT`. So every row is *walked* here before it joins a batch.
//!
//! Invariants: a walk reads only the bytes that it is given, takes time in proportion to them,
//! allocates nothing unless it fails, and its stack is bounded by the nesting of types.

mod expected;
mod json;
mod plan;

use std::ops::Deref;

pub use super::column_type::{ColumnType, Incompatible, UnknownColumnType};
pub use expected::Difference;
use plan::RowPlan;

/// Why bytes are not a row of the declared columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}`, byte {position} of the row: {problem}")]
pub struct RowFault {
    /// Name of the column at fault.
    pub column: String,
    /// Where in the bytes given, from the start of the row.
    pub position: usize,
    /// What is wrong.
    pub problem: String,
}

/// One declared column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Name in the table.
    pub name: String,
    /// Type.
    pub column_type: ColumnType,
}

/// Columns in the order of the rows' bytes, ready to walk rows. Reads like a slice; made from a
/// `Vec` by `into()` or from an iterator by `collect()`. Immutable, for the plan belongs to it.
#[derive(Clone, Debug)]
pub struct Columns {
    definitions: Vec<ColumnDefinition>,
    plan: RowPlan,
}

impl From<Vec<ColumnDefinition>> for Columns {
    fn from(definitions: Vec<ColumnDefinition>) -> Self {
        let plan = RowPlan::new(&definitions);
        Self { definitions, plan }
    }
}

impl FromIterator<ColumnDefinition> for Columns {
    fn from_iter<I: IntoIterator<Item = ColumnDefinition>>(definitions: I) -> Self {
        definitions.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Columns {
    type Target = [ColumnDefinition];

    fn deref(&self) -> &[ColumnDefinition] {
        &self.definitions
    }
}

impl<'a> IntoIterator for &'a Columns {
    type Item = &'a ColumnDefinition;
    type IntoIter = std::slice::Iter<'a, ColumnDefinition>;

    fn into_iter(self) -> Self::IntoIter {
        self.definitions.iter()
    }
}

impl PartialEq for Columns {
    fn eq(&self, other: &Self) -> bool {
        self.definitions == other.definitions
    }
}

impl Eq for Columns {}

/// A named set of columns that a mapper fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Name, bound to a table by the pipeline.
    pub name: String,
    /// Columns in the order of the rows' bytes.
    pub columns: Columns,
}

impl Output {
    /// Walks one row at the start of `bytes` and answers how many bytes it takes. More may follow;
    /// whoever knows where the row must end compares.
    ///
    /// # Errors
    /// When `bytes` end within the row, or hold a value that its column cannot have.
    pub fn walk_row(&self, bytes: &[u8]) -> Result<usize, RowFault> {
        self.columns.plan.walk(bytes).map_err(|fault| RowFault {
            column: self.columns.get(fault.column).map_or_else(String::new, |column| column.name.clone()),
            position: fault.position,
            problem: fault.problem.to_string(),
        })
    }
}

/// Appends a length or count as RowBinary has it: LEB128, seven bits a byte, lowest first.
pub fn encode_length(buffer: &mut Vec<u8>, mut length: u64) {
    while length >= 0x80 {
        buffer.push(length as u8 | 0x80);
        length >>= 7;
    }
    buffer.push(length as u8);
}

/// Appends a `String`.
pub fn encode_string(buffer: &mut Vec<u8>, value: &[u8]) {
    encode_length(buffer, value.len() as u64);
    buffer.extend_from_slice(value);
}

/// Appends a `UInt32`.
pub fn encode_u32(buffer: &mut Vec<u8>, value: u32) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

/// Appends a `UInt64`.
pub fn encode_u64(buffer: &mut Vec<u8>, value: u64) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

/// Appends an `Int32`.
pub fn encode_i32(buffer: &mut Vec<u8>, value: i32) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

/// Appends an `Int64`.
pub fn encode_i64(buffer: &mut Vec<u8>, value: i64) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests;
