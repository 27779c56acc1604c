//! The proof that the check can fail: after a good run, a row is deleted, another is inserted twice, a
//! dead letter is produced twice and one is taken away, and each must be found.

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluice::kafka::reader::OwnedRecord;

use super::check::{Observed, Place, Places, Row};
use super::cluster::Cluster;
use super::traffic::Traffic;
use super::{DEAD_LETTER_TOPIC, TABLE};

/// See the module documentation.
pub(super) fn the_check_finds_what_is_wrong(
    cluster: &Cluster,
    places: &Places<'_>,
    traffic: &Traffic,
    observed: Observed,
) -> Result<(), String> {
    let before = observed.compare(traffic).counts();
    let mut single = observed.rows.iter().filter(|(_, rows)| rows.len() == 1);
    let mut place = || -> Result<&Place, String> {
        let (place, _): (_, &Vec<Row>) =
            single.next().ok_or("the table has too few rows to prove the check")?;
        Ok(place)
    };
    let here = |(partition, offset): &Place| format!("_partition = {partition} AND _offset = {offset}");
    let (deleted, doubled) = (place()?, place()?);
    cluster
        .execute(&format!("ALTER TABLE {TABLE} DELETE WHERE {} SETTINGS mutations_sync = 1", here(deleted)));
    cluster.execute(&format!(
        "INSERT INTO {TABLE} SELECT * FROM {TABLE} WHERE {} SETTINGS insert_deduplicate = 0",
        here(doubled)
    ));
    let mut letters = observed.letters.iter().filter(|(_, letters)| letters.len() == 1);
    let few = "there are too few dead letters to prove the check";
    let (_, repeated) = letters.next().ok_or(few)?;
    let (removed, _) = letters.next().ok_or(few)?;
    produce_again(places.brokers, &repeated[0])?;

    let mut after = Observed::read(places)?;
    after.letters.remove(removed);
    let (after, wanted) = (after.compare(traffic), before.map(|count| count + 1));
    if after.counts() != wanted {
        let found = after.counts();
        return Err(format!("the check is wrong: it found {found:?} after what makes it {wanted:?}"));
    }
    let names = |(partition, offset): &Place| {
        after.offending.iter().any(|line| line.starts_with(&format!("{partition}/{offset}: ")))
    };
    if [deleted, doubled, removed].into_iter().all(names) {
        Ok(())
    } else {
        Err("the check counts what is wrong and does not name it".to_owned())
    }
}

fn produce_again(brokers: &str, letter: &OwnedRecord) -> Result<(), String> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.max.bytes", "4194304")
        .create()
        .map_err(|error| error.to_string())?;
    let headers = letter.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    });
    let mut record =
        BaseRecord::<[u8], [u8]>::to(DEAD_LETTER_TOPIC).timestamp(letter.timestamp).headers(headers);
    record.key = letter.key.as_deref();
    record.payload = letter.payload.as_deref();
    producer.send(record).map_err(|(error, _)| error.to_string())?;
    producer.flush(std::time::Duration::from_secs(30)).map_err(|error| error.to_string())
}
