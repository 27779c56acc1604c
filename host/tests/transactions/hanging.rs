//! Transactions that the coordinator takes for ended and that hang all the same: nothing is committed beside them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use sluice::pipeline::ports::{CommitError, OffsetStore};

use crate::support::kafka::ApacheKafka;
use crate::support::member::{PATIENCE, commit, committed, letter, point};
use crate::{create_letters, join, kafka, payloads};

/// Speaks to the broker as a client that forgets to tell the transaction coordinator which offsets it commits: those of a
/// producer that the coordinator believes to have no transaction. Kafka makes such ones by itself where a broker crashes at
/// the wrong moment. Formats: KIP-98, `InitProducerId` 1 and `TxnOffsetCommit` 2.
fn leave_hanging(kafka: &ApacheKafka, id: &str, group: &str, (topic, partition, offset): (&str, i32, i64)) {
    let text = |text: &str| [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat();
    let mut stream = TcpStream::connect(kafka.bootstrap()).expect("the broker listens");
    let mut ask = |api: i16, version: i16, body: &[u8]| {
        let head =
            [&api.to_be_bytes()[..], &version.to_be_bytes(), &7i32.to_be_bytes(), &text("test")].concat();
        let size = ((head.len() + body.len()) as i32).to_be_bytes();
        stream.write_all(&[&size[..], &head, body].concat()).expect("sent");
        let mut size = [0; 4];
        stream.read_exact(&mut size).expect("an answer");
        let mut answer = vec![0; i32::from_be_bytes(size) as usize];
        stream.read_exact(&mut answer).expect("all of it");
        // Correlation and throttling come first.
        answer.split_off(8)
    };
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        let answer = ask(22, 1, &[&text(id)[..], &10_000i32.to_be_bytes()].concat());
        match i16::from_be_bytes([answer[0], answer[1]]) {
            0 => break answer,
            // Its last transaction is being concluded.
            51 if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            error => panic!("no producer id is given: error {error}"),
        }
    };
    let producer = &answer[2..12];
    let (one, no_epoch) = (1i32.to_be_bytes(), (-1i32).to_be_bytes());
    let point = [&partition.to_be_bytes()[..], &offset.to_be_bytes(), &no_epoch, &text("")].concat();
    let body = [&text(id)[..], &text(group), producer, &one, &text(topic), &one, &point].concat();
    let answer = ask(28, 2, &body);
    assert_eq!(answer[answer.len() - 2..], [0, 0], "the offset is taken");
}

/// The next transaction of that producer would commit what hangs.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_while_a_transaction_of_before_hangs() {
    let kafka = ApacheKafka::start_with(&[
        ("transaction.partition.verification.enable", "false"),
        ("offsets.topic.num.partitions", "1"),
    ]);
    kafka.create_topic("hanging", 2);
    create_letters(&kafka, "hanging.letters");
    let mut member = join(&kafka, "hanging", "hanging");
    member.assigned(2).await;
    let at = |partition| committed(kafka.bootstrap(), "hanging", "hanging", partition);
    let mut first = commit("hanging", 0, 1, "", Vec::new());
    first.points.push(point("hanging", 1, 2, "some metadata"));
    member.offsets("one", "hanging.letters").commit(first).await.expect("committed");
    leave_hanging(&kafka, "hanging-one", "hanging", ("hanging", 1, 9));

    let offsets = member.offsets("one", "hanging.letters");
    let next = || commit("hanging", 0, 5, "", vec![letter("hanging", 4, b"first")]);
    let error = offsets.commit(next()).await.expect_err("it would commit what hangs");
    let CommitError::Refused(reason) = error else { panic!("{error}") };
    let held = "a transaction of before still holds the offsets of group hanging in hanging 1;";
    assert!(reason.contains(held) && reason.contains("find-hanging"), "{reason}");
    assert_eq!(at(0), Some((1, String::new())));

    let place = ["--topic", "__consumer_offsets", "--partition", "0"];
    let producers = kafka.transactions(&[&["describe-producers"][..], &place].concat());
    let start = producers.lines().find_map(|line| line.split_whitespace().nth(5)?.parse::<u64>().ok());
    let start = start.unwrap_or_else(|| panic!("nothing hangs: {producers}")).to_string();
    kafka.transactions(&[&["abort"][..], &place, &["--start-offset", &start]].concat());
    offsets.commit(next()).await.expect("nothing hangs any more");
    assert_eq!((at(0), at(1)), (Some((5, String::new())), Some((2, "some metadata".into()))));
    assert_eq!(payloads(&kafka, "hanging.letters"), ["first"]);
    member.leave().await;
}

/// So would it commit dead letters that hang, of which this one stands for all.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_committed_before_all_dead_letters_that_are_there_are_decided() {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let kafka = kafka();
    kafka.create_topic("undecided", 1);
    create_letters(&kafka, "undecided.letters");
    let mut member = join(&kafka, "undecided", "undecided");
    member.assigned(1).await;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", kafka.bootstrap()).set("transactional.id", "undecided-stranger");
    let stranger: BaseProducer = client.create().expect("a producer");
    stranger.init_transactions(PATIENCE).expect("initialised");
    stranger.begin_transaction().expect("begun");
    stranger.send(BaseRecord::<(), str>::to("undecided.letters").payload("undecided")).expect("room");
    stranger.flush(PATIENCE).expect("acknowledged");

    let offsets = member.offsets("one", "undecided.letters");
    let next = || commit("undecided", 0, 5, "", vec![letter("undecided", 4, b"first")]);
    let error = offsets.commit(next()).await.expect_err("a transaction is open");
    let CommitError::Refused(reason) = error else { panic!("{error}") };
    assert!(reason.contains("still holds records of topic undecided.letters in partition 0"), "{reason}");
    stranger.abort_transaction(PATIENCE).expect("aborted");
    offsets.commit(next()).await.expect("all is decided");
    assert_eq!(payloads(&kafka, "undecided.letters"), ["first"]);
    member.leave().await;
}
