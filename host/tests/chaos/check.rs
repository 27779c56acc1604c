//! Where every record of the source topic ended: read back from the table and the dead-letter topic, and
//! compared with what was to be expected.
//!
//! Everything that is wrong ends in one of four counts. A record that is in the wrong place, or is there
//! with something else than it had, is lost, and what is there instead is there once too often.

use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::Client;
use rdkafka::ClientConfig;
use sluice::kafka::reader::{OwnedRecord, read_all};
use sluice::produce::Expectation;

use super::traffic::{Traffic, number};

/// Longest wait for a record or an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Partition and offset.
pub(super) type Place = (i32, i64);

/// A record of the source topic.
#[derive(Clone, Debug)]
struct Source {
    number: u64,
    timestamp: i64,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) purchase: String,
    pub(super) revision: String,
}

/// Everything that is there.
#[derive(Clone, Default)]
pub(super) struct Observed {
    source: BTreeMap<Place, Source>,
    pub(super) rows: BTreeMap<Place, Vec<Row>>,
    pub(super) letters: BTreeMap<Place, Vec<OwnedRecord>>,
}

/// Where to look.
pub(super) struct Places<'a> {
    pub(super) brokers: &'a str,
    pub(super) clickhouse: &'a str,
    pub(super) topic: &'a str,
    pub(super) dead_letter_topic: &'a str,
    pub(super) table: &'a str,
}

impl Observed {
    /// Reads the table and both topics whole; of transactions only what was committed.
    pub(super) fn read(places: &Places<'_>) -> Result<Self, String> {
        let mut observed = Self::default();
        let mut unknown = 0;
        read(places.brokers, places.topic, |record| match number(&record) {
            Some(number) => {
                let source = Source { number, timestamp: record.timestamp };
                observed.source.insert((record.partition, record.offset), source);
            }
            None => unknown += 1,
        })?;
        if unknown > 0 {
            return Err(format!("{unknown} records of {} are not from this run", places.topic));
        }
        read(places.brokers, places.dead_letter_topic, |letter| {
            let origin = |name| letter.header(name).and_then(|value| value.parse::<i64>().ok());
            let place = (origin("sluice.partition").unwrap_or(-1), origin("sluice.offset").unwrap_or(-1));
            let ours = letter.header("sluice.topic") == Some(places.topic);
            // One that does not say where it is from is of a record that does not exist.
            let place = if ours { (i32::try_from(place.0).unwrap_or(-1), place.1) } else { (-1, -1) };
            observed.letters.entry(place).or_default().push(letter);
        })?;
        for (partition, offset, purchase, revision) in rows(places)? {
            observed.rows.entry((partition, offset)).or_default().push(Row { purchase, revision });
        }
        Ok(observed)
    }

    /// Compares it with what was to be expected.
    pub(super) fn compare(&self, traffic: &Traffic) -> Findings {
        let mut findings = Findings { records: self.source.len() as u64, ..Findings::default() };
        // By purchase: how many rows there are to be, less those that there are.
        let mut purchases: BTreeMap<String, i64> = BTreeMap::new();
        for (place, source) in &self.source {
            let generated = traffic.record(source.number);
            let rows = self.rows.get(place).map_or(&[][..], Vec::as_slice);
            let letters = self.letters.get(place).map_or(&[][..], Vec::as_slice);
            let (mut good_rows, mut good_letters) = (0, 0);
            let expected = match generated.expectation {
                Expectation::Mapped => {
                    let purchase = Traffic::purchase(&generated.message).unwrap_or_default();
                    good_rows = rows.iter().filter(|row| row.purchase == purchase).count();
                    findings.lost += u64::from(good_rows == 0);
                    *purchases.entry(purchase).or_default() += 1;
                    "one row".to_owned()
                }
                Expectation::Rejected(expected) => {
                    let good = |letter: &&OwnedRecord| {
                        letter.header("sluice.kind") == Some(expected.kind.as_str())
                            && letter.header("sluice.code") == Some(expected.code.as_str())
                            && letter.header("sluice.field") == expected.field.as_deref()
                            && letter.payload == generated.message.payload
                            && letter.key == generated.message.key
                            && letter.timestamp == source.timestamp
                            && letter.headers.starts_with(&generated.message.headers)
                    };
                    good_letters = letters.iter().filter(good).count();
                    findings.dead_letters += 1;
                    findings.dead_letters_lost += u64::from(good_letters == 0);
                    format!("one dead letter, {} {}", expected.kind, expected.code)
                }
                Expectation::Filtered => "nothing".to_owned(),
            };
            findings.duplicated += (rows.len() - good_rows.min(1)) as u64;
            findings.dead_letters_duplicated += (letters.len() - good_letters.min(1)) as u64;
            let due = usize::from(*generated.expectation != Expectation::Filtered);
            if (rows.len() + letters.len(), good_rows + good_letters) != (due, due) {
                findings.offend(
                    *place,
                    &format!("record {}: expected {expected}", source.number),
                    rows,
                    letters,
                );
            }
        }
        for (place, rows) in self.rows.iter().filter(|(place, _)| !self.source.contains_key(place)) {
            findings.duplicated += rows.len() as u64;
            findings.offend(*place, "there is no such record", rows, &[]);
        }
        for (place, letters) in self.letters.iter().filter(|(place, _)| !self.source.contains_key(place)) {
            findings.dead_letters_duplicated += letters.len() as u64;
            findings.offend(*place, "there is no such record", &[], letters);
        }
        findings.compare_purchases(purchases, self.rows.values().flatten());
        findings
    }

    /// How many chains the rows went through.
    pub(super) fn revisions(&self) -> usize {
        let revisions = self.rows.values().flatten().map(|row| row.revision.as_str());
        revisions.collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// What is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Records in the source topic.
    pub(super) records: u64,
    /// Of these, to be dead-lettered.
    pub(super) dead_letters: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) dead_letters_lost: u64,
    pub(super) dead_letters_duplicated: u64,
    /// A line for each place where something is wrong.
    pub(super) offending: Vec<String>,
}

impl Findings {
    /// The counts: lost, duplicated, and the same of dead letters.
    pub(super) fn counts(&self) -> [u64; 4] {
        [self.lost, self.duplicated, self.dead_letters_lost, self.dead_letters_duplicated]
    }

    /// The same by purchase instead of by provenance: rows are to be there by what they say, too.
    fn compare_purchases<'a>(
        &mut self,
        mut purchases: BTreeMap<String, i64>,
        rows: impl Iterator<Item = &'a Row>,
    ) {
        for row in rows {
            *purchases.entry(row.purchase.clone()).or_default() -= 1;
        }
        let (mut lost, mut duplicated) = (0, 0);
        for (purchase, missing) in purchases.into_iter().filter(|(_, missing)| *missing != 0) {
            self.offending.push(format!("purchase {purchase:?}: {missing:+} rows are missing"));
            if missing > 0 {
                lost += missing.unsigned_abs();
            } else {
                duplicated += missing.unsigned_abs();
            }
        }
        self.lost = self.lost.max(lost);
        self.duplicated = self.duplicated.max(duplicated);
    }

    fn offend(&mut self, place: Place, expected: &str, rows: &[Row], letters: &[OwnedRecord]) {
        let rows: Vec<String> =
            rows.iter().map(|row| format!("{} revision {}", row.purchase, row.revision)).collect();
        let letters: Vec<String> = letters
            .iter()
            .map(|letter| {
                let header = |name| letter.header(name).unwrap_or("-");
                let (kind, code) = (header("sluice.kind"), header("sluice.code"));
                let revision = header("sluice.revision");
                format!("{}/{} {kind} {code} revision {revision}", letter.partition, letter.offset)
            })
            .collect();
        let (partition, offset) = place;
        self.offending
            .push(format!("{partition}/{offset}: {expected}; rows {rows:?}; dead letters {letters:?}"));
    }
}

fn read(brokers: &str, topic: &str, consume: impl FnMut(OwnedRecord)) -> Result<(), String> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers).set("isolation.level", "read_committed");
    read_all(&client, topic, PATIENCE, consume).map_err(|error| error.to_string())
}

fn rows(places: &Places<'_>) -> Result<Vec<(i32, i64, String, String)>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let query = format!(
        "SELECT if(_topic = '{}', _partition, toInt32(-1)), _offset, purchase_id, CAST(_revision AS String) FROM {}",
        places.topic, places.table
    );
    runtime.expect("a runtime starts").block_on(async {
        let client = Client::default().with_url(places.clickhouse);
        let answer = tokio::time::timeout(PATIENCE, client.query(&query).fetch_all()).await;
        answer.map_err(|_| "ClickHouse does not answer".to_owned())?.map_err(|error| error.to_string())
    })
}
