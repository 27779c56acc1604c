//! ClickHouse: tables of rows that say which record they are of, with a window of deduplication tokens.
//!
//! A row is the payload, a byte that the chain added, and the provenance columns, in RowBinary. What the
//! tables hold is counted at the records themselves ([`crate::kafka::Ended`]).

use std::collections::VecDeque;

use sluice::domain::retry::Retryability;
use sluice::pipeline::ports::{InsertError, InsertRequest};

use crate::kafka::OUTPUTS;
use crate::plan::Plan;
use crate::planted::Planted;
use crate::rules;
use crate::world::World;

/// See the module documentation.
pub(crate) struct ClickHouse {
    /// Tokens that each table remembers, the oldest first.
    tokens: [VecDeque<String>; OUTPUTS],
    window: usize,
    /// Until when it takes nothing.
    pub(crate) away_until: u64,
}

impl ClickHouse {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self { tokens: Default::default(), window: plan.window, away_until: 0 }
    }
}

/// A row of the wire.
struct Row {
    kind: u8,
    partition: usize,
    offset: i64,
}

/// Which output a table belongs to.
pub(crate) fn output_of(table: &str) -> usize {
    usize::from(table == "table1")
}

/// An INSERT arrives. It is done wholly or not at all.
pub(crate) fn insert(world: &mut World, request: &InsertRequest) -> Result<(), InsertError> {
    let refused = |retryability, code, message: &str| {
        Err(InsertError { retryability, code: Some(code), message: message.to_owned() })
    };
    let output = output_of(&request.table);
    let rows = rows(&request.body);
    assert_eq!(rows.len(), request.rows, "the request counts its rows");
    let about = || {
        let places: Vec<_> = rows.iter().map(|row| format!("{}@{}", row.partition, row.offset)).collect();
        let token = request.token.split(':').nth(2).unwrap_or_default();
        let (id, piece) = (rules::short(token), token.get(32..).unwrap_or_default());
        format!("clickhouse: {} {id}{piece} rows [{}]", request.table, places.join(" "))
    };
    if world.clickhouse.away_until > world.now() || world.fault(world.plan.insert_refusals) {
        world.note(|| format!("{}: not now", about()));
        return refused(Retryability::Retry, 210, "not now");
    }
    if output == 0 && rows.iter().any(|row| row.kind == b'q') {
        world.note(|| format!("{}: refused for good", about()));
        return refused(Retryability::Permanent, 27, "cannot parse `q`");
    }
    let deduplicates = world.plan.planted != Some(Planted::NoToken) && !request.token.is_empty();
    let window = world.clickhouse.window;
    let tokens = &mut world.clickhouse.tokens[output];
    if deduplicates && tokens.contains(&request.token) {
        world.note(|| format!("{}: has that token", about()));
        return Ok(());
    }
    tokens.push_back(request.token.clone());
    if tokens.len() > window {
        tokens.pop_front();
    }
    // Three times in a row is not in here: then the records are dead letters.
    if request.token.matches('~').count() < 2 && world.fault(world.plan.lost_rows) {
        world.note(|| format!("{}: has the token and none of the rows", about()));
        return Err(InsertError { retryability: Retryability::Retry, code: None, message: "killed".into() });
    }
    world.note(|| format!("{}: inserted", about()));
    rules::intended(world, &request.token);
    for row in rows {
        rules::row_inserted(world, row.partition, row.offset, output);
    }
    Ok(())
}

/// Offsets in `start..end` that a table has a row of.
pub(crate) fn held(world: &World, output: usize, partition: usize, start: i64, end: i64) -> Vec<i64> {
    let log = &world.kafka.logs[partition];
    let has = |record: &&crate::kafka::Record| record.ended.rows[output] > 0;
    log.records[log.range(start, end)].iter().filter(has).map(|record| record.offset).collect()
}

fn rows(mut body: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    fn take<'a>(body: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = body.split_at(count);
        *body = rest;
        taken
    }
    while !body.is_empty() {
        let kind = take(&mut body, 2)[0];
        let topic = usize::from(take(&mut body, 1)[0]);
        take(&mut body, topic);
        let partition = i32::from_le_bytes(take(&mut body, 4).try_into().expect("four bytes"));
        let offset = i64::from_le_bytes(take(&mut body, 8).try_into().expect("eight bytes"));
        let revision = usize::from(take(&mut body, 1)[0]);
        take(&mut body, revision);
        rows.push(Row { kind, partition: partition as usize, offset });
    }
    rows
}
