//! Table name: `name` or `database.name`, quoted wherever it goes into SQL.

use std::fmt;
use std::str::FromStr;

/// A table, in a database of its own or in that of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Database; `None` for that of the connection.
    pub database: Option<String>,
    /// Table.
    pub table: String,
}

/// A text that names no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no table; write `table` or `database.table`")]
pub struct NoTableName(pub String);

impl FromStr for TableName {
    type Err = NoTableName;

    /// Splits at the first dot: a table's name may hold further ones, a database's may not.
    fn from_str(text: &str) -> Result<Self, NoTableName> {
        let (database, table) = match text.split_once('.') {
            Some((database, table)) => (Some(database), table),
            None => (None, text),
        };
        if table.is_empty() || database.is_some_and(str::is_empty) {
            return Err(NoTableName(text.to_owned()));
        }
        Ok(Self { database: database.map(str::to_owned), table: table.to_owned() })
    }
}

/// As SQL has it, in backquotes.
impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(database) = &self.database {
            write!(formatter, "{}.", Quoted(database))?;
        }
        write!(formatter, "{}", Quoted(&self.table))
    }
}

/// An identifier in backquotes, so that no name can be anything but a name.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        formatter.write_char('`')?;
        for character in self.0.chars() {
            if matches!(character, '`' | '\\') {
                formatter.write_char('\\')?;
            }
            formatter.write_char(character)?;
        }
        formatter.write_char('`')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_once_and_quoted() {
        let quoted = |text: &str| text.parse::<TableName>().map(|name| name.to_string());
        assert_eq!(quoted("purchases"), Ok("`purchases`".into()));
        assert_eq!(quoted("shop.purchases"), Ok("`shop`.`purchases`".into()));
        assert_eq!(quoted("shop.a.b"), Ok("`shop`.`a.b`".into()));
        assert_eq!(quoted("a`; DROP TABLE b\\"), Ok("`a\\`; DROP TABLE b\\\\`".into()));
        for text in ["", ".", "shop.", ".purchases"] {
            assert!(quoted(text).unwrap_err().to_string().contains("write `table` or `database.table`"));
        }
    }
}
