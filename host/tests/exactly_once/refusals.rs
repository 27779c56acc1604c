//! What exactly-once needs and does not find: the program says so, with the cure, and consumes nothing.

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluice::domain::intent::{Intent, IntentSlice, PendingBatches, VerdictDigest};
use sluice::domain::ledger::{BatchId, PartitionId};
use sluice::domain::verdict::Revision;

use crate::stage::Stage;

#[test]
fn a_table_that_remembers_no_inserts_is_refused_with_the_statement_that_mends_it() {
    let stage = Stage::with_table("forgetful", 1, "", "");
    stage.send(&[(0, "ax")]);
    let (code, said) = stage.host("only").run_to_the_end();
    assert_eq!(code, Some(1), "{said}");
    let statement = said
        .split_once("ALTER TABLE ")
        .and_then(|(_, rest)| rest.split_once("non_replicated_deduplication_window = "))
        .map(|(table, rest)| {
            let window: String = rest.chars().take_while(char::is_ascii_digit).collect();
            format!("ALTER TABLE {table}non_replicated_deduplication_window = {window}")
        })
        .unwrap_or_else(|| panic!("no statement in {said}"));
    assert_eq!((stage.committed(0), stage.rows(), stage.letters()), (None, 0, 0));
    // The message names the table as the configuration does.
    stage.execute(&statement.replacen("ALTER TABLE ", "ALTER TABLE forgetful.", 1));
    let host = stage.start(&stage.host("only"));
    stage.finish(host);
    let endings = stage.endings();
    assert!(endings[&(0, 0)].is_row("a"));
    assert_eq!(endings[&(0, 1)].letter(), ("rejected", "no_thanks", Some("x")));
}

/// Commits an offset with metadata, as another program would.
pub(crate) fn commit(stage: &Stage, offset: i64, metadata: &str) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", stage.servers.kafka.bootstrap())
        .set("group.id", stage.name())
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer can be made");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(stage.name(), 0, Offset::Offset(offset)).expect("an offset");
    list.find_partition(stage.name(), 0).expect("added").set_metadata(metadata);
    consumer.commit(&list, CommitMode::Sync).expect("committed");
    assert_eq!(stage.committed(0), Some((offset, metadata.to_owned())));
}

#[test]
fn metadata_that_cannot_be_read_stops_it_and_stays() {
    let stage = Stage::new("unreadable", 1, "");
    stage.send(&[(0, "aaaaa")]);
    let slice =
        IntentSlice { partition: PartitionId { topic: stage.name().into(), partition: 0 }, start: 2, end: 4 };
    let intent =
        Intent::new(BatchId(7), vec![slice], [Revision([7; 32])].into(), Vec::new(), VerdictDigest(1));
    let text = PendingBatches::new(vec![intent.expect("a sound intent")]).encode();
    let damaged = format!("{}AAAA", &text[..text.len() - 4]);
    let newer = text.replacen("sluice1:", "sluice2:", 1);
    let faults = [
        (&damaged, "cut short or changed", "restore the committed metadata"),
        (&newer, "of format 2, and this sluice reads format 1", "start that version"),
    ];
    for (metadata, what, cure) in faults {
        commit(&stage, 2, metadata);
        let (code, said) = stage.host("only").run_to_the_end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("topic unreadable, partition 0"), "{said}");
        assert!(said.contains(what) && said.contains(cure), "{said}");
        assert_eq!(stage.committed(0), Some((2, metadata.clone())));
        assert_eq!((stage.rows(), stage.letters()), (0, 0));
    }
}

#[test]
fn metadata_of_another_program_is_warned_about_and_replaced() {
    let stage = Stage::new("foreign", 1, "");
    stage.send(&[(0, "bbaa")]);
    commit(&stage, 2, "written by others");
    let host = stage.start(&stage.host("only"));
    host.wait_until("everything is settled", |_| stage.is_settled());
    let log = host.log();
    assert!(log.contains("WARN") && log.contains("written by others"), "{log}");
    assert_eq!(host.stop(), Some(0));
    assert_eq!(stage.rows(), 2);
}

/// The mock cluster announces the requests that it knows, as any broker does, and can be told not to
/// know, or not to allow, those that transactions begin with.
#[test]
fn brokers_without_transactions_are_refused() {
    let stage = Stage::new("plain", 1, "");
    let begin = RDKafkaApiKey::InitProducerId;
    let denied = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED; 10];
    for (known, cure) in
        [(false, "delivery to at-least-once"), (true, "kafka-acls.sh --add --operation Write")]
    {
        let brokers: MockCluster<'_, DefaultProducerContext> = MockCluster::new(1).expect("it starts");
        for topic in ["plain", "plain.letters"] {
            brokers.create_topic(topic, 1, 1).expect("created");
        }
        if known {
            brokers.request_errors(begin, &denied);
        } else {
            brokers.apiversion(begin, None, None).expect("withdrawn");
        }
        let configuration = stage.host("only").set("KAFKA__BROKERS", &brokers.bootstrap_servers());
        let (code, said) = configuration.run_to_the_end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(cure), "{said}");
    }
    assert_eq!(stage.rows(), 0);
}
