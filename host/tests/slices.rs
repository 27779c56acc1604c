//! Slices read again on Apache Kafka: everything that a batch had is there, byte by byte, or told to be lost.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sluice::domain::intent::IntentSlice;
use sluice::domain::ledger::PartitionId;
use sluice::domain::retry::Retryability;
use sluice::kafka::slices::SliceReader;
use sluice::pipeline::ports::Reread;
use support::kafka::ApacheKafka;
use support::member::PATIENCE;

/// The records of these tests are old.
const KEEP: [(&str, &str); 1] = [("retention.ms", "-1")];

fn client(bootstrap: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap);
    client
}

fn producer(kafka: &ApacheKafka, properties: &[(&str, &str)]) -> BaseProducer {
    let mut client = client(kafka.bootstrap());
    for (name, value) in properties {
        client.set(*name, *value);
    }
    client.create().expect("a producer can be made")
}

/// Sends records with these numbers as payloads, one batch of the log each.
fn send(
    producer: &BaseProducer,
    topic: &str,
    partition: i32,
    key: Option<&str>,
    numbers: std::ops::Range<i64>,
) {
    for number in numbers {
        let payload = number.to_string();
        let headers = OwnedHeaders::new()
            .insert(Header { key: "number", value: Some(&payload) })
            .insert(Header::<&str> { key: "empty", value: None });
        let mut record =
            BaseRecord::<str, str>::to(topic).partition(partition).payload(&payload).headers(headers);
        record.key = key;
        producer
            .send(record.timestamp(1_700_000_000_000 + 1_000 * number))
            .map_err(|(error, _)| error)
            .expect("room");
        producer.flush(PATIENCE).expect("acknowledged");
    }
}

fn slice(topic: &str, partition: i32, start: i64, end: i64) -> IntentSlice {
    IntentSlice { partition: PartitionId { topic: topic.into(), partition }, start, end }
}

async fn read(kafka: &ApacheKafka, slices: &[IntentSlice]) -> Reread {
    let reader = SliceReader::new(client(kafka.bootstrap()), PATIENCE);
    reader.read(slices).await.expect("the slices are read")
}

/// Topic, partition, offset and payload of every record, in the order in which they came.
fn contents(reread: &Reread) -> Vec<(String, i32, i64, String)> {
    let records = reread.chunks.iter().flat_map(|chunk| {
        (0..chunk.len()).map(|index| {
            let record = chunk.record(index);
            let payload = String::from_utf8(record.payload.expect("not null").to_vec()).expect("text");
            (chunk.topic.to_string(), chunk.partition, record.offset, payload)
        })
    });
    records.collect()
}

fn offsets(reread: &Reread) -> Vec<i64> {
    contents(reread).into_iter().map(|(_, _, offset, _)| offset).collect()
}

async fn delete_before(kafka: &ApacheKafka, topic: &str, offset: i64) {
    let admin: AdminClient<DefaultClientContext> =
        client(kafka.bootstrap()).create().expect("an admin client can be made");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("an offset");
    admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_as_they_were_by_partition_and_offset() {
    let kafka = ApacheKafka::start();
    kafka.create_topic_with("plain", 3, &KEEP);
    kafka.create_topic_with("other", 1, &KEEP);
    let plain = producer(&kafka, &[]);
    send(&plain, "plain", 0, Some("key"), 0..30);
    send(&plain, "plain", 2, None, 0..10);
    send(&plain, "other", 0, None, 0..5);
    let slices = [
        slice("plain", 2, 3, 10),
        slice("other", 0, 0, 2),
        slice("plain", 0, 5, 8),
        slice("plain", 0, 20, 21),
    ];
    let reread = read(&kafka, &slices).await;
    assert_eq!(reread.lost, []);
    let expected = [("other", 0, 0..2), ("plain", 0, 5..8), ("plain", 0, 20..21), ("plain", 2, 3..10)];
    let expected: Vec<_> = expected
        .into_iter()
        .flat_map(|(topic, partition, offsets)| {
            offsets.map(move |offset| (topic.to_owned(), partition, offset, offset.to_string()))
        })
        .collect();
    assert_eq!(contents(&reread), expected);
    let chunk = &reread.chunks[1];
    let record = chunk.record(0);
    assert_eq!((record.key, record.timestamp), (Some(&b"key"[..]), 1_700_000_005_000));
    let headers: Vec<_> = chunk.headers(0).collect();
    assert_eq!(headers, [("number", Some(&b"5"[..])), ("empty", None)]);

    // What is not there is lost: by retention, with its partition, with its topic, with the end of its log.
    delete_before(&kafka, "plain", 7).await;
    let gone = [
        slice("plain", 0, 5, 9),
        slice("plain", 0, 25, 40),
        slice("plain", 1, 0, 1),
        slice("plain", 9, 0, 1),
        slice("never-made", 0, 2, 4),
    ];
    let reread = read(&kafka, &gone).await;
    assert_eq!(offsets(&reread), [7, 8, 25, 26, 27, 28, 29]);
    let lost = [
        slice("never-made", 0, 2, 4),
        slice("plain", 0, 5, 7),
        slice("plain", 0, 30, 40),
        slice("plain", 1, 0, 1),
        slice("plain", 9, 0, 1),
    ];
    assert_eq!(reread.lost, lost);
    delete_before(&kafka, "plain", 30).await;
    let reread = read(&kafka, &[slice("plain", 0, 25, 30)]).await;
    assert_eq!((offsets(&reread), reread.lost), (vec![], vec![slice("plain", 0, 25, 30)]));

    // Nobody there: to be tried again.
    kafka.kill();
    let reader = SliceReader::new(client(kafka.bootstrap()), Duration::from_secs(1));
    let error = reader.read(&[slice("plain", 2, 0, 1)]).await.expect_err("no broker");
    assert_eq!(error.retryability, Retryability::Retry, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_ends_where_records_are_hidden_or_gone() {
    let kafka =
        ApacheKafka::start_with(&[("log.cleaner.backoff.ms", "200"), ("log.initial.task.delay.ms", "200")]);
    kafka.create_topic_with("transactions", 1, &KEEP);
    let writer = producer(&kafka, &[("transactional.id", "writer")]);
    writer.init_transactions(PATIENCE).expect("initialised");
    let transaction = |numbers: std::ops::Range<i64>, commit: bool| {
        writer.begin_transaction().expect("begun");
        send(&writer, "transactions", 0, None, numbers);
        let ended =
            if commit { writer.commit_transaction(PATIENCE) } else { writer.abort_transaction(PATIENCE) };
        ended.expect("ended");
    };
    // Records 0-2, their marker at 3, aborted ones 4-5, the marker 6, records 7-8, the marker 9.
    transaction(0..3, true);
    let reread = read(&kafka, &[slice("transactions", 0, 0, 3)]).await;
    assert_eq!((offsets(&reread), &reread.lost[..]), (vec![0, 1, 2], &[][..]));
    // Its end is the end of the log, where a marker stands.
    let reread = read(&kafka, &[slice("transactions", 0, 1, 4)]).await;
    assert_eq!((offsets(&reread), &reread.lost[..]), (vec![1, 2], &[][..]));
    transaction(3..5, false);
    let reread = read(&kafka, &[slice("transactions", 0, 2, 7)]).await;
    assert_eq!((offsets(&reread), &reread.lost[..]), (vec![2], &[][..]));
    transaction(5..7, true);
    for (start, end, expected) in
        [(2, 8, vec![2, 7]), (3, 7, vec![]), (4, 6, vec![]), (0, 10, vec![0, 1, 2, 7, 8])]
    {
        let reread = read(&kafka, &[slice("transactions", 0, start, end)]).await;
        assert_eq!((offsets(&reread), &reread.lost[..]), (expected, &[][..]), "{start}..{end}");
    }
    // What an open transaction holds back does not matter to what was read before.
    writer.begin_transaction().expect("begun");
    send(&writer, "transactions", 0, None, 7..9);
    let reread = read(&kafka, &[slice("transactions", 0, 8, 10)]).await;
    assert_eq!((offsets(&reread), &reread.lost[..]), (vec![8], &[][..]));

    let compact = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.0"),
        ("min.compaction.lag.ms", "0"),
        ("max.compaction.lag.ms", "200"),
    ];
    kafka.create_topic_with("compacted", 1, &compact);
    let plain = producer(&kafka, &[]);
    send(&plain, "compacted", 0, Some("kept"), 0..1);
    send(&plain, "compacted", 0, Some("replaced"), 1..6);
    send(&plain, "compacted", 0, Some("kept too"), 6..7);
    // Until the cleaner has been there, which needs a closed segment, all are read.
    let deadline = Instant::now() + PATIENCE;
    let mut seen = BTreeSet::new();
    for number in 7.. {
        send(&plain, "compacted", 0, Some("replaced"), number..number + 1);
        let reread = read(&kafka, &[slice("compacted", 0, 0, 6)]).await;
        assert_eq!(reread.lost, []);
        let offsets = offsets(&reread);
        seen.insert(offsets.clone());
        if offsets == [0] {
            break;
        }
        assert!(Instant::now() < deadline, "never compacted: {seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
