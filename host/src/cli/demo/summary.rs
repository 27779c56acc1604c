//! What the demo shows at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::app;
use crate::config::Config;
use crate::kafka::reader::OwnedRecord;

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
pub(super) async fn print(config: &Config, counts: &Counts, elapsed: Duration) -> Result<()> {
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

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}
