//! Compatible: whether the bytes of one type mean the same in a table column of another.

use super::ColumnType;

/// Why bytes of the declared type must not be inserted into the table's column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{declared} is declared where the table has {table}: {reason}")]
pub struct Incompatible {
    /// Type that the module declares, whole.
    pub declared: String,
    /// Type of the table's column, whole.
    pub table: String,
    /// What differs, where in a nested type.
    pub reason: String,
}

impl ColumnType {
    /// Whether RowBinary of this type may be inserted into a table column of type `table` with
    /// identical meaning.
    ///
    /// `LowCardinality(T)` and `SimpleAggregateFunction(f, T)` are as `T`. A time zone only says how
    /// a time is shown, so it may differ. A `Decimal` may have fewer digits than the table's at the
    /// same scale and width. An `Enum` may lack values that the table has (a table grows first), but
    /// each that it has must be the table's. Names of tuple elements count where both sides have them.
    ///
    /// # Errors
    /// Says what differs.
    pub fn compatible_with(&self, table: &Self) -> Result<(), Incompatible> {
        difference(self, table).map_or(Ok(()), |reason| {
            Err(Incompatible { declared: self.to_string(), table: table.to_string(), reason })
        })
    }
}

/// What differs, or `None`. Recursion is bounded by the nesting of types.
fn difference(declared: &ColumnType, table: &ColumnType) -> Option<String> {
    use ColumnType::*;
    match (declared.stored(), table.stored()) {
        (DateTime(_), DateTime(_)) => None,
        (DateTime64(declared, _), DateTime64(table, _)) => {
            (declared != table).then(|| format!("a tick of 10^-{declared} s is not a tick of 10^-{table} s"))
        }
        (Decimal { precision, scale }, Decimal { precision: wide, scale: table_scale }) => {
            if scale != table_scale {
                Some(format!("scale {scale} is not scale {table_scale}"))
            } else if super::decimal_width(*precision) != super::decimal_width(*wide) {
                Some(format!("{precision} and {wide} digits are stored in different widths"))
            } else {
                (precision > wide).then(|| format!("{precision} digits do not fit into {wide}"))
            }
        }
        (Enum { width, values }, Enum { width: table_width, values: table_values }) => {
            if width != table_width {
                return Some("Enum8 is not Enum16".into());
            }
            values.iter().find(|value| table_values.binary_search(value).is_err()).map(|(number, name)| {
                format!("the table's Enum has no value '{}' = {number}", name.escape_default())
            })
        }
        (Nullable(declared), Nullable(table)) | (Array(declared), Array(table)) => {
            difference(declared, table)
        }
        (Map(key, value), Map(table_key, table_value)) => {
            difference(key, table_key).or_else(|| difference(value, table_value))
        }
        (Tuple(elements), Tuple(table_elements)) => {
            if elements.len() != table_elements.len() {
                return Some(format!("{} elements are not {}", elements.len(), table_elements.len()));
            }
            elements.iter().zip(table_elements).find_map(|((name, element), (table_name, table_element))| {
                match (name, table_name) {
                    (Some(name), Some(table_name)) if name != table_name => {
                        Some(format!("element `{name}` stands where the table has `{table_name}`"))
                    }
                    _ => difference(element, table_element),
                }
            })
        }
        (Nullable(_), other) => Some(format!("a null does not fit into {other}")),
        (declared, Nullable(inner)) if difference(declared, inner).is_none() => {
            Some(format!("declare Nullable({declared})"))
        }
        (declared, table) => (declared != table).then(|| format!("{declared} is not {table}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(declared: &str, table: &str) -> Result<(), Incompatible> {
        ColumnType::parse(declared).unwrap().compatible_with(&ColumnType::parse(table).unwrap())
    }

    #[test]
    fn the_same_bytes_with_the_same_meaning_are_compatible() {
        for (declared, table) in [
            ("UInt8", "UInt8"),
            ("String", "LowCardinality(String)"),
            ("LowCardinality(String)", "String"),
            ("Nullable(String)", "LowCardinality(Nullable(String))"),
            ("UInt64", "SimpleAggregateFunction(sum, UInt64)"),
            ("DateTime", "DateTime('Asia/Tokyo')"),
            ("DateTime64(3, 'UTC')", "DateTime64(3)"),
            ("Decimal(10, 2)", "Decimal(18, 2)"),
            ("Enum8('a' = 1)", "Enum8('a' = 1, 'b' = 2)"),
            ("Array(Map(String, UInt8))", "Array(Map(LowCardinality(String), UInt8))"),
            ("Tuple(UInt8, String)", "Tuple(a UInt8, b LowCardinality(String))"),
            ("Tuple(a UInt8)", "Tuple(a UInt8)"),
        ] {
            assert_eq!(check(declared, table), Ok(()), "{declared} {table}");
        }
    }

    #[test]
    fn any_difference_in_bytes_or_meaning_is_told() {
        for (declared, table, reason) in [
            ("UInt8", "Int8", "UInt8 is not Int8"),
            ("UInt16", "Date", "UInt16 is not Date"),
            ("UInt32", "IPv4", "UInt32 is not IPv4"),
            ("UInt8", "Bool", "UInt8 is not Bool"),
            ("String", "FixedString(3)", "String is not FixedString(3)"),
            ("FixedString(2)", "FixedString(3)", "FixedString(2) is not FixedString(3)"),
            ("String", "Nullable(String)", "declare Nullable(String)"),
            ("Nullable(String)", "String", "a null does not fit into String"),
            ("UInt8", "LowCardinality(Nullable(String))", "UInt8 is not Nullable(String)"),
            ("DateTime64(3)", "DateTime64(6)", "a tick of 10^-3 s is not a tick of 10^-6 s"),
            ("DateTime", "DateTime64(0)", "DateTime is not DateTime64(0)"),
            ("Decimal(10, 2)", "Decimal(10, 3)", "scale 2 is not scale 3"),
            ("Decimal(9, 2)", "Decimal(10, 2)", "stored in different widths"),
            ("Decimal(12, 2)", "Decimal(10, 2)", "12 digits do not fit into 10"),
            ("Enum8('a' = 1)", "Enum16('a' = 1)", "Enum8 is not Enum16"),
            ("Enum8('a' = 2)", "Enum8('a' = 1)", "no value 'a' = 2"),
            ("Enum8('b' = 1)", "Enum8('a' = 1)", "no value 'b' = 1"),
            ("Array(UInt8)", "Array(UInt16)", "UInt8 is not UInt16"),
            ("Map(String, UInt8)", "Map(String, UInt16)", "UInt8 is not UInt16"),
            ("Map(UInt8, UInt8)", "Map(String, UInt8)", "UInt8 is not String"),
            ("Tuple(UInt8)", "Tuple(UInt8, UInt8)", "1 elements are not 2"),
            ("Tuple(a UInt8, b UInt8)", "Tuple(b UInt8, a UInt8)", "`a` stands where the table has `b`"),
        ] {
            let error = check(declared, table).unwrap_err();
            assert!(error.reason.contains(reason), "{declared} {table}: {}", error.reason);
            assert!(error.to_string().contains(declared) && error.to_string().contains(table));
        }
    }
}
