//! Holdings: which records tables hold rows of, asked by the provenance columns.

use std::fmt::Write;
use std::sync::Arc;

use clickhouse::{Client, Row};
use serde::Deserialize;

use super::exception::ServerError;
use super::table_name::TableName;
use crate::domain::intent::IntentSlice;
use crate::domain::ledger::PartitionId;
use crate::pipeline::ports::RowsAhead;

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

#[derive(Row, Deserialize)]
struct Ahead {
    topic: String,
    partition: i32,
    rows: u64,
    first: i64,
    last: i64,
}

/// Where `table`, which must have `_topic`, `_partition` and `_offset`, holds rows of records at the offset
/// of a partition or after it.
///
/// # Errors
/// When ClickHouse cannot be asked, or the name names no table.
pub async fn rows_ahead(
    client: &Client,
    table: &Arc<str>,
    starts: &[(PartitionId, i64)],
) -> Result<Vec<RowsAhead>, ServerError> {
    if starts.is_empty() {
        return Ok(Vec::new());
    }
    let name: TableName = table.parse()?;
    let each = vec!["(_topic = ? AND _partition = ? AND _offset >= ?)"; starts.len()].join(" OR ");
    let statement = format!(
        "SELECT toString(_topic) AS topic, toInt32(_partition) AS partition, count() AS rows, \
         toInt64(min(_offset)) AS first, toInt64(max(_offset)) AS last FROM {name} WHERE {each} \
         GROUP BY topic, partition"
    );
    let mut query = client.query(&statement);
    for (PartitionId { topic, partition }, start) in starts {
        query = query.bind(&**topic).bind(partition).bind(start);
    }
    let ahead: Vec<Ahead> = query.fetch_all().await.map_err(ServerError::from)?;
    let found = ahead.into_iter().filter_map(|Ahead { topic, partition, rows, first, last }| {
        let (id, start) = starts.iter().find(|(id, _)| *id.topic == *topic && id.partition == partition)?;
        Some(RowsAhead { partition: id.clone(), start: *start, table: table.clone(), rows, first, last })
    });
    Ok(found.collect())
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
