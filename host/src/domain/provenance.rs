//! Provenance: the columns that say which record a row came from, and which rule passed it.
//!
//! The host appends them to every row of a mapper where the table has them. A table with all four
//! can be asked which offsets it holds; one without cannot.

use super::row::{
    ColumnDefinition, ColumnType, encode_i32, encode_i64, encode_string, encode_u32, encode_u64,
};

/// One provenance column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProvenanceColumn {
    /// `_topic`: Kafka topic of the record.
    Topic,
    /// `_partition`: partition of that topic.
    Partition,
    /// `_offset`: offset in that partition.
    Offset,
    /// `_revision`: revision of the chain that mapped it.
    Revision,
}

impl ProvenanceColumn {
    /// All of them, in the order in which they are appended.
    pub const ALL: [Self; 4] = [Self::Topic, Self::Partition, Self::Offset, Self::Revision];

    /// Name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topic => "_topic",
            Self::Partition => "_partition",
            Self::Offset => "_offset",
            Self::Revision => "_revision",
        }
    }

    /// The column of that name, if it is one of provenance.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.name() == name)
    }

    /// Types that the column may have in a table, the best first.
    pub fn types(self) -> &'static [&'static str] {
        match self {
            Self::Topic | Self::Revision => &["LowCardinality(String)", "String"],
            Self::Partition => &["Int32", "UInt32"],
            Self::Offset => &["Int64", "UInt64"],
        }
    }
}

/// How a provenance column is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Topic,
    PartitionSigned,
    PartitionUnsigned,
    OffsetSigned,
    OffsetUnsigned,
    Revision,
}

/// Why a table's column of a provenance name cannot be filled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("provenance column `{}` is {found}, but must be {}", column.name(), column.types().join(" or "))]
pub struct ProvenanceFault {
    /// Which column.
    pub column: ProvenanceColumn,
    /// Its type in the table.
    pub found: String,
}

/// The provenance columns that a table has, and how each is written; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    fields: Vec<(ColumnDefinition, Field)>,
}

impl Provenance {
    /// Picks the provenance columns out of a table's columns, in whatever order they are.
    ///
    /// # Errors
    /// When a column of such a name has a type that does not hold what belongs there.
    pub fn of<'a>(
        table_columns: impl IntoIterator<Item = &'a ColumnDefinition>,
    ) -> Result<Self, ProvenanceFault> {
        let mut found = table_columns
            .into_iter()
            .filter_map(|definition| Some((ProvenanceColumn::named(&definition.name)?, definition)))
            .collect::<Vec<_>>();
        found.sort_by_key(|(column, _)| *column);
        let fields = found.into_iter().map(|(column, definition)| {
            let fault = || ProvenanceFault { column, found: definition.column_type.to_string() };
            let field = match (column, definition.column_type.stored()) {
                (ProvenanceColumn::Topic, ColumnType::String) => Field::Topic,
                (ProvenanceColumn::Revision, ColumnType::String) => Field::Revision,
                (ProvenanceColumn::Partition, ColumnType::Plain(plain)) => match plain.name() {
                    "Int32" => Field::PartitionSigned,
                    "UInt32" => Field::PartitionUnsigned,
                    _ => return Err(fault()),
                },
                (ProvenanceColumn::Offset, ColumnType::Plain(plain)) => match plain.name() {
                    "Int64" => Field::OffsetSigned,
                    "UInt64" => Field::OffsetUnsigned,
                    _ => return Err(fault()),
                },
                _ => return Err(fault()),
            };
            Ok((definition.clone(), field))
        });
        Ok(Self { fields: fields.collect::<Result<_, _>>()? })
    }

    /// Its columns, with the table's types, in the order in which [`Self::append`] writes them.
    pub fn columns(&self) -> impl Iterator<Item = &ColumnDefinition> {
        self.fields.iter().map(|(definition, _)| definition)
    }

    /// Whether the table can be asked which offsets it holds: topic, partition and offset are there.
    pub fn identifies_records(&self) -> bool {
        use ProvenanceColumn::{Offset, Partition, Topic};
        [Topic, Partition, Offset].iter().all(|wanted| self.columns().any(|has| has.name == wanted.name()))
    }

    /// Appends the columns of one row, in RowBinary. Partition and offset are never negative.
    pub fn append(&self, buffer: &mut Vec<u8>, topic: &str, partition: i32, offset: i64, revision: &str) {
        for (_, field) in &self.fields {
            match field {
                Field::Topic => encode_string(buffer, topic.as_bytes()),
                Field::PartitionSigned => encode_i32(buffer, partition),
                Field::PartitionUnsigned => encode_u32(buffer, partition as u32),
                Field::OffsetSigned => encode_i64(buffer, offset),
                Field::OffsetUnsigned => encode_u64(buffer, offset as u64),
                Field::Revision => encode_string(buffer, revision.as_bytes()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::row::Output;

    fn definitions(columns: &[(&str, &str)]) -> Vec<ColumnDefinition> {
        let definition = |(name, type_name): &(&str, &str)| ColumnDefinition {
            name: (*name).into(),
            column_type: ColumnType::parse(type_name).unwrap(),
        };
        columns.iter().map(definition).collect()
    }

    #[test]
    fn what_is_appended_is_a_row_of_the_columns_it_names() {
        let table = definitions(&[
            ("_revision", "String"),
            ("price", "UInt32"),
            ("_offset", "Int64"),
            ("_topic", "LowCardinality(String)"),
            ("_partition", "UInt32"),
        ]);
        let provenance = Provenance::of(&table).unwrap();
        let names: Vec<&str> = provenance.columns().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["_topic", "_partition", "_offset", "_revision"]);
        assert!(provenance.identifies_records());

        let mut row = Vec::new();
        provenance.append(&mut row, "purchases", 7, 1 << 40, "abababababab");
        assert_eq!(row, b"\x09purchases\x07\0\0\0\0\0\0\0\0\x01\0\0\x0cabababababab");
        let output = Output { name: "o".into(), columns: provenance.columns().cloned().collect() };
        assert_eq!(output.walk_row(&row), Ok(row.len()));
    }

    #[test]
    fn a_table_may_have_some_or_none_of_them() {
        let none = Provenance::of(&definitions(&[("price", "UInt32")])).unwrap();
        assert_eq!(none, Provenance::default());
        let mut row = Vec::new();
        none.append(&mut row, "purchases", 7, 1, "r");
        assert!(row.is_empty() && !none.identifies_records());

        let some = Provenance::of(&definitions(&[("_offset", "UInt64")])).unwrap();
        some.append(&mut row, "purchases", 7, 258, "r");
        assert_eq!(row, [2, 1, 0, 0, 0, 0, 0, 0]);
        assert!(!some.identifies_records());
    }

    #[test]
    fn a_column_that_cannot_hold_it_is_told() {
        for (name, type_name, cure) in [
            ("_offset", "UInt32", "must be Int64 or UInt64"),
            ("_partition", "Int64", "must be Int32 or UInt32"),
            ("_topic", "Nullable(String)", "must be LowCardinality(String) or String"),
            ("_revision", "UInt64", "must be LowCardinality(String) or String"),
        ] {
            let message = Provenance::of(&definitions(&[(name, type_name)])).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(type_name) && message.contains(cure));
        }
    }
}
