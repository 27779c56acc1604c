//! Holdings: how many rows of each record tables hold, asked by the provenance columns.

use std::fmt::Write;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::exception::ServerError;
use super::table_name::TableName;
use crate::domain::intent::IntentSlice;
use crate::domain::ledger::PartitionId;

#[derive(Row, Deserialize)]
struct Holding {
    record: i64,
    held: Vec<u64>,
}

/// Hands each offset in `slice` of which a table holds a row to `consume`, increasing, with the number
/// of rows in each of `tables`, which all must have `_topic`, `_partition` and `_offset`. Counting and
/// sorting are the server's work; the answer is never held whole.
///
/// # Errors
/// When ClickHouse cannot be asked, or a name names no table.
pub async fn holdings(
    client: &Client,
    tables: &[&str],
    slice: &IntentSlice,
    mut consume: impl FnMut(i64, &[u64]),
) -> Result<(), ServerError> {
    let statement = statement(tables)?;
    let PartitionId { topic, partition } = &slice.partition;
    let mut query = client.query(&statement);
    for _ in tables {
        query = query.bind(&**topic).bind(partition).bind(slice.start).bind(slice.end);
    }
    let mut rows = query.fetch::<Holding>().map_err(ServerError::from)?;
    while let Some(Holding { record, held }) = rows.next().await.map_err(ServerError::from)? {
        consume(record, &held);
    }
    Ok(())
}

fn statement(tables: &[&str]) -> Result<String, ServerError> {
    let mut each = String::new();
    for (index, table) in tables.iter().enumerate() {
        let name: TableName = table.parse()?;
        let rows: Vec<&str> =
            (0..tables.len()).map(|other| if other == index { "count()" } else { "toUInt64(0)" }).collect();
        let union = if index > 0 { " UNION ALL " } else { "" };
        let rows = rows.join(", ");
        let _ = write!(
            each,
            "{union}SELECT toInt64(_offset) AS record, [{rows}] AS counts FROM {name} \
             WHERE _topic = ? AND _partition = ? AND _offset >= ? AND _offset < ? GROUP BY record"
        );
    }
    Ok(format!("SELECT record, sumForEach(counts) AS held FROM ({each}) GROUP BY record ORDER BY record"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_counts_in_its_place() {
        let statement = statement(&["a", "b.c"]).unwrap();
        assert!(statement.contains("[count(), toUInt64(0)] AS counts FROM `a` "), "{statement}");
        assert!(statement.contains("UNION ALL SELECT"), "{statement}");
        assert!(statement.contains("[toUInt64(0), count()] AS counts FROM `b`.`c` "), "{statement}");
        assert!(super::statement(&[""]).is_err());
    }
}
