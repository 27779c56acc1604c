//! What the demo shows at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::app;
use crate::config::Config;
use crate::kafka::reader::OwnedRecord;

use super::change::{Change, RuleRevision};

/// Rows shown from the table.
const ROWS_SHOWN: usize = 3;
/// Dead letters shown with their headers.
const LETTERS_SHOWN: usize = 2;
/// Longest payload shown, in characters.
const PAYLOAD_SHOWN: usize = 110;

/// Counted from the source topic, the table, and the dead-letter topic.
pub(super) struct Counts {
    pub(super) produced: u64,
    pub(super) inserted: u64,
    pub(super) filtered: u64,
    pub(super) dead_letters: Vec<OwnedRecord>,
}

impl Counts {
    fn dead_lettered(&self) -> u64 {
        self.dead_letters.len() as u64
    }

    /// Whether every record ended exactly one way.
    pub(super) fn add_up(&self) -> bool {
        self.produced == self.inserted + self.filtered + self.dead_lettered()
    }

    /// The demo's last line. `in_flight` is what the other counts leave; negative would mean twice.
    pub(super) fn line(&self) -> String {
        let ended = self.inserted + self.filtered + self.dead_lettered();
        format!(
            "demo: produced={} inserted={} filtered={} dead_lettered={} in_flight={}",
            self.produced,
            self.inserted,
            self.filtered,
            self.dead_lettered(),
            self.produced as i64 - ended as i64
        )
    }
}

/// Tables that the first pipeline fills, as its configuration names them.
pub(super) fn tables(config: &Config) -> Vec<String> {
    config.pipelines[0].tables.values().cloned().collect()
}

/// Prints everything but the last line.
pub(super) async fn print(
    config: &Config,
    counts: &Counts,
    change: &Change,
    elapsed: Duration,
) -> Result<()> {
    let clickhouse = app::clickhouse_settings(config).client();
    let mut by_code: BTreeMap<(&str, &str), (u64, &OwnedRecord)> = BTreeMap::new();
    for letter in &counts.dead_letters {
        let code = (letter.header("sluice.kind").unwrap_or(""), letter.header("sluice.code").unwrap_or(""));
        by_code.entry(code).or_insert((0, letter)).0 += 1;
    }
    println!("\nDead letters by kind and code, with an example each");
    for ((kind, code), (count, letter)) in &by_code {
        let reason = letter.header("sluice.reason").unwrap_or("");
        println!("  {count:>6}  {kind:<10} {code:<24} {reason}");
    }
    print_revisions(config, counts, change).await?;
    for table in tables(config) {
        println!("\nSELECT * FROM {table} LIMIT {ROWS_SHOWN}");
        let query = format!("SELECT * FROM {table} ORDER BY _partition, _offset LIMIT {ROWS_SHOWN}");
        let mut text = clickhouse.query(&query).fetch_bytes("Vertical")?;
        println!("{}", indent(&String::from_utf8_lossy(&text.collect().await?)));
    }
    println!("\nDead letters as they are in topic {}", config.pipelines[0].dead_letter_topic);
    for (_, letter) in by_code.values().take(LETTERS_SHOWN) {
        for (name, value) in &letter.headers {
            let value = value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            println!("  {name:<18} {value}");
        }
        let payload = letter.payload.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        println!("  {:<18} {}\n", "(payload)", payload.chars().take(PAYLOAD_SHOWN).collect::<String>());
    }
    println!(
        "{} records in {:.2} s: {:.0} records a second from the first record produced to the last one \
         settled, batch linger of {:?} included\n",
        counts.produced,
        elapsed.as_secs_f64(),
        counts.produced as f64 / elapsed.as_secs_f64(),
        config.pipelines[0].batch.linger,
    );
    Ok(())
}

/// What each revision of the rule let through and what it did not, and the rule that was refused.
async fn print_revisions(config: &Config, counts: &Counts, change: &Change) -> Result<()> {
    let clickhouse = app::clickhouse_settings(config).client();
    println!("\nWhat each revision of {} let through", change.rule);
    println!("  {:<14} {:>8} {:>9}  codes that the other one lacks", "revision", "rows", "rejected");
    let codes = |revision: &RuleRevision| {
        let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
        let by = |letter: &&OwnedRecord| {
            letter.header("sluice.revision").is_some_and(|by| by.starts_with(&revision.rule))
        };
        for letter in counts.dead_letters.iter().filter(by) {
            *codes.entry(letter.header("sluice.code").unwrap_or("")).or_default() += 1;
        }
        codes
    };
    for (revision, other) in [(&change.before, &change.after), (&change.after, &change.before)] {
        let mut rows = 0;
        for table in tables(config) {
            let query = format!("SELECT count() FROM {table} WHERE _revision = ?");
            rows += clickhouse.query(&query).bind(&revision.chain).fetch_one::<u64>().await?;
        }
        let (codes, others) = (codes(revision), codes(other));
        let rejected: u64 = codes.values().sum();
        let own: Vec<_> = codes
            .iter()
            .filter(|(code, _)| !others.contains_key(*code))
            .map(|(code, count)| format!("{code} {count}"))
            .collect();
        println!("  {:<14} {rows:>8} {rejected:>9}  {}", revision.rule, own.join(", "));
    }
    let (file, text) = &change.refused;
    println!("\nA rule whose copy was cut short changed nothing; {file} lies beside it\n{}", indent(text));
    Ok(())
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}
