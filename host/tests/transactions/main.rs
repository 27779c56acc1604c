//! Commits by transactions on Apache Kafka: dead letters and offsets together or not at all, whatever
//! happens to the member, to a twin of its name, to the process or to the broker.

mod hanging;

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use sluice::domain::intent::{Intent, IntentSlice, PendingBatches, VerdictDigest};
use sluice::domain::ledger::{BatchId, Delivery, PartitionId};
use sluice::domain::verdict::Revision;
use sluice::kafka::reader::{OwnedRecord, read_all};
use sluice::kafka::transactions::TransactionalOffsets;
use sluice::pipeline::event::Event;
use sluice::pipeline::ports::{CommitError, OffsetStore};
use support::kafka::ApacheKafka;
use support::member::{Member, PATIENCE, commit, committed, letter, point};

/// The broker of all tests that run at the moment. It looks often for transactions that are too old.
fn kafka() -> Arc<ApacheKafka> {
    static SHARED: Mutex<Weak<ApacheKafka>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let kafka = Arc::new(start());
        *shared = Arc::downgrade(&kafka);
        kafka
    })
}

fn start() -> ApacheKafka {
    ApacheKafka::start_with(&[("transaction.abort.timed.out.transaction.cleanup.interval.ms", "500")])
}

/// A topic for dead letters, which are as old as their records: retention would take them.
fn create_letters(kafka: &ApacheKafka, topic: &str) {
    kafka.create_topic_with(topic, 1, &[("retention.ms", "-1"), ("max.message.bytes", "100000")]);
}

fn join(kafka: &ApacheKafka, group: &str, topic: &str) -> Member {
    Member::join(kafka.bootstrap(), group, topic, Delivery::ExactlyOnce, &[])
}

fn records(kafka: &ApacheKafka, topic: &str, isolation: &str) -> Vec<OwnedRecord> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", kafka.bootstrap()).set("isolation.level", isolation);
    let mut records = Vec::new();
    read_all(&client, topic, PATIENCE, |record| records.push(record)).expect("the topic is read");
    records
}

/// Payloads of the dead letters that are there for good.
fn payloads(kafka: &ApacheKafka, topic: &str) -> Vec<String> {
    let text = |record: OwnedRecord| String::from_utf8(record.payload.unwrap_or_default()).expect("text");
    records(kafka, topic, "read_committed").into_iter().map(text).collect()
}

fn produce(kafka: &ApacheKafka, topic: &str, count: usize) {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a producer");
    for number in 0..count {
        let payload = number.to_string();
        producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(&payload)).expect("room");
    }
    producer.flush(PATIENCE).expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_and_offsets_are_there_together_or_not_at_all() {
    let kafka = kafka();
    kafka.create_topic("together", 2);
    create_letters(&kafka, "together.letters");
    let mut member = join(&kafka, "together", "together");
    member.assigned(2).await;
    let offsets = member.offsets("one", "together.letters");
    let at = |partition| committed(kafka.bootstrap(), "together", "together", partition);

    let mut both = commit("together", 0, 7, "some metadata", vec![letter("together", 3, b"first")]);
    both.points.push(point("together", 1, 9, ""));
    offsets.commit(both).await.expect("committed");
    assert_eq!((at(0), at(1)), (Some((7, "some metadata".into())), Some((9, String::new()))));

    // The group coordinator refuses one of two partitions.
    let mut refused = commit("together", 0, 8, &"x".repeat(5000), vec![letter("together", 7, b"second")]);
    refused.points.push(point("together", 1, 10, ""));
    let error = offsets.commit(refused).await.expect_err("too much metadata");
    assert!(
        matches!(&error, CommitError::Refused(reason) if reason.contains("OffsetMetadataTooLarge")),
        "{error}"
    );
    assert_eq!((at(0), at(1)), (Some((7, "some metadata".into())), Some((9, String::new()))));

    // The dead-letter topic refuses one of two letters.
    let mut random = 1u32;
    let mut byte = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    };
    let incompressible: Vec<u8> = (0..200_000).map(|_| byte()).collect();
    let large = vec![letter("together", 7, b"third"), letter("together", 8, &incompressible)];
    let error = offsets.commit(commit("together", 0, 9, "", large)).await.expect_err("too large");
    let CommitError::Refused(reason) = error else { panic!("{error}") };
    assert!(reason.contains("together.letters") && reason.contains("max.message.bytes"), "{reason}");
    assert_eq!(at(0), Some((7, "some metadata".into())));

    offsets
        .commit(commit("together", 0, 9, "", vec![letter("together", 8, b"fourth")]))
        .await
        .expect("committed");
    assert_eq!(at(0), Some((9, String::new())));
    assert_eq!(payloads(&kafka, "together.letters"), ["first", "fourth"]);
    let letters = records(&kafka, "together.letters", "read_committed");
    let first = &letters[0];
    assert_eq!((first.key.as_deref(), first.timestamp), (Some(&b"key"[..]), 1_700_000_000_000));
    assert_eq!((first.header("origin"), first.header("sluice.offset")), (Some("test"), Some("3")));

    // Whether a letter of an aborted commit was written before is a race; read it never is.
    for _ in 0..5 {
        let letters = vec![letter("together", 9, b"fifth"), letter("together", 10, &incompressible)];
        offsets.commit(commit("together", 0, 10, "", letters)).await.expect_err("too large");
    }
    assert_eq!(payloads(&kafka, "together.letters"), ["first", "fourth"]);
    member.leave().await;
}

/// KIP-848: the coordinator knows a member by its epoch, and assigns by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_newer_group_protocol_commits_as_well() {
    let kafka = kafka();
    kafka.create_topic("newer", 2);
    create_letters(&kafka, "newer.letters");
    let properties = [("group.protocol", "consumer")];
    let join = || Member::join(kafka.bootstrap(), "newer", "newer", Delivery::ExactlyOnce, &properties);
    let mut member = join();
    member.assigned(2).await;
    let offsets = member.offsets("one", "newer.letters");
    let first = commit("newer", 1, 4, "some metadata", vec![letter("newer", 3, b"first")]);
    offsets.commit(first).await.expect("committed");
    assert_eq!(committed(kafka.bootstrap(), "newer", "newer", 1), Some((4, "some metadata".into())));
    member.leave().await;
    let letters = vec![letter("newer", 4, b"second")];
    let error = offsets.commit(commit("newer", 1, 5, "", letters)).await.expect_err("no member");
    assert!(matches!(error, CommitError::Refused(_)), "{error}");
    let mut member = join();
    assert_eq!(member.assigned(2).await[1].position, Some(4));
    assert_eq!(payloads(&kafka, "newer.letters"), ["first"]);
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_is_missing_is_named_and_nothing_is_committed() {
    let kafka = kafka();
    kafka.create_topic("nowhere", 1);
    let mut member = join(&kafka, "nowhere", "nowhere");
    member.assigned(1).await;
    // Brokers make topics that are asked for, unless their names cannot be.
    let offsets = member.offsets("one", "no such topic");
    let letters = vec![letter("nowhere", 1, b"first")];
    let error = offsets.commit(commit("nowhere", 0, 2, "", letters)).await.expect_err("no topic");
    assert!(matches!(&error, CommitError::Refused(reason) if reason.contains("no such topic")), "{error}");
    assert_eq!(committed(kafka.bootstrap(), "nowhere", "nowhere", 0), None);
    offsets.commit(commit("nowhere", 0, 2, "", Vec::new())).await.expect("the next one does not need it");
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_batches_come_back_and_are_not_read_as_new() {
    let kafka = kafka();
    kafka.create_topic("pending", 1);
    create_letters(&kafka, "pending.letters");
    produce(&kafka, "pending", 100);
    let partition = PartitionId { topic: "pending".into(), partition: 0 };
    let slice = IntentSlice { partition, start: 10, end: 40 };
    let digest = VerdictDigest(5);
    let intent = Intent::new(BatchId(1), vec![slice], [Revision([7; 32])].into(), Vec::new(), digest);
    let pending = PendingBatches::new(vec![intent.expect("sound")]);

    let base = |event| match event {
        Event::Judged(judged) => Some(judged.taken.chunk.base_offset),
        Event::Broken(reason) => panic!("{reason}"),
        _ => None,
    };
    let mut first = join(&kafka, "pending", "pending");
    let assigned = first.assigned(1).await;
    assert_eq!((assigned[0].position, &assigned[0].pending), (Some(0), &PendingBatches::default()));
    assert_eq!(first.next("records", base).await, 0);
    let offsets = first.offsets("one", "pending.letters");
    offsets.commit(commit("pending", 0, 10, &pending.encode(), Vec::new())).await.expect("committed");
    drop(offsets);
    first.leave().await;

    let mut second = join(&kafka, "pending", "pending");
    let assigned = second.assigned(1).await;
    assert_eq!((assigned[0].position, &assigned[0].pending), (Some(10), &pending));
    assert_eq!(second.next("records", base).await, 40);
    let offsets = second.offsets("one", "pending.letters");

    // At-least-once nothing is recovered, so everything is read again.
    second.leave().await;
    let mut third = Member::join(kafka.bootstrap(), "pending", "pending", Delivery::AtLeastOnce, &[]);
    let assigned = third.assigned(1).await;
    assert_eq!((assigned[0].position, &assigned[0].pending), (Some(10), &PendingBatches::default()));
    assert_eq!(third.next("records", base).await, 10);
    third.leave().await;

    // Whose consumer is gone commits nothing.
    let error = offsets.commit(commit("pending", 0, 41, "", Vec::new())).await.expect_err("no member");
    assert!(matches!(error, CommitError::Refused(_)), "{error}");
    assert_eq!(committed(kafka.bootstrap(), "pending", "pending", 0), Some((10, pending.encode())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_as_pending_stops_and_what_others_wrote_does_not() {
    let kafka = kafka();
    kafka.create_topic("metadata", 1);
    create_letters(&kafka, "metadata.letters");
    produce(&kafka, "metadata", 10);
    for (metadata, wanted) in [("written by others", None), ("sluice1:AAAAAAAA", Some("cut short"))] {
        let mut member = join(&kafka, "metadata", "metadata");
        member.assigned(1).await;
        let offsets = member.offsets("one", "metadata.letters");
        offsets.commit(commit("metadata", 0, 3, metadata, Vec::new())).await.expect("committed");
        member.leave().await;

        let mut member = join(&kafka, "metadata", "metadata");
        let heard = member.next("what becomes of it", |event| match event {
            Event::Broken(reason) => Some(Err(reason)),
            Event::Judged(judged) => Some(Ok(judged.taken.chunk.base_offset)),
            _ => None,
        });
        match (heard.await, wanted) {
            (Ok(base), None) => assert_eq!(base, 3),
            (Err(reason), Some(wanted)) => {
                assert!(reason.contains(wanted) && reason.contains("partition 0"), "{reason}");
            }
            (heard, wanted) => panic!("{heard:?} where {wanted:?} was to be"),
        }
        member.leave().await;
    }
}

/// A member that does not give its partitions back in time is put out of its group, and does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_the_group_no_longer_knows_is_refused() {
    let kafka = kafka();
    for strategy in ["cooperative-sticky", "range"] {
        let topic = format!("zombie.{strategy}");
        kafka.create_topic(&topic, 2);
        create_letters(&kafka, &format!("{topic}.letters"));
        let properties = [
            ("max.poll.interval.ms", "6000"),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "500"),
            ("partition.assignment.strategy", strategy),
        ];
        let join = || Member::join(kafka.bootstrap(), &topic, &topic, Delivery::ExactlyOnce, &properties);
        let mut zombie = join();
        zombie.assigned(2).await;
        let offsets = zombie.offsets("zombie", &format!("{topic}.letters"));
        offsets.commit(commit(&topic, 0, 5, "", Vec::new())).await.expect("a member still");

        let mut heir = join();
        let held = zombie.next("its partitions being taken", |event| match event {
            Event::Revoked { release, .. } => Some(release),
            _ => None,
        });
        let held = held.await;
        heir.assigned(2).await;
        let letters = vec![letter(&topic, 5, b"of a zombie")];
        let error = offsets.commit(commit(&topic, 0, 6, "", letters)).await.expect_err("no member any more");
        assert!(matches!(error, CommitError::Refused(_)), "{error}");
        println!("{strategy}: {error}");
        let heirs = heir.offsets("heir", &format!("{topic}.letters"));
        heirs.commit(commit(&topic, 0, 8, "", Vec::new())).await.expect("a member");
        assert_eq!(committed(kafka.bootstrap(), &topic, &topic, 0), Some((8, String::new())));
        assert_eq!(payloads(&kafka, &format!("{topic}.letters")), Vec::<String>::new());
        drop(held);
        // It joins again and may commit what is its then.
        zombie
            .next("partitions anew", |event| {
                matches!(event, Event::Assigned(new) if !new.is_empty()).then_some(())
            })
            .await;
        drop(heir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_name_fence_each_other_until_they_are_told() {
    let kafka = kafka();
    kafka.create_topic("twins", 2);
    create_letters(&kafka, "twins.letters");
    let mut member = join(&kafka, "twins", "twins");
    member.assigned(2).await;
    // Both of one member, so that nothing but the name is between them.
    let older = member.offsets("same", "twins.letters");
    older.commit(commit("twins", 0, 1, "", vec![letter("twins", 0, b"1")])).await.expect("alone");
    let younger = member.offsets("same", "twins.letters");
    younger.commit(commit("twins", 1, 1, "", vec![letter("twins", 0, b"2")])).await.expect("the younger");

    let error = older.commit(commit("twins", 0, 2, "", vec![letter("twins", 1, b"3")])).await;
    assert!(matches!(error, Err(CommitError::Refused(_))), "the older is fenced: {error:?}");
    older.commit(commit("twins", 0, 2, "", vec![letter("twins", 1, b"4")])).await.expect("it recovers");

    let mut settled = 4;
    let broken = loop {
        let (twin, partition) = if settled % 2 == 0 { (&younger, 1) } else { (&older, 0) };
        settled += 1;
        match twin.commit(commit("twins", partition, settled, "", Vec::new())).await {
            Err(CommitError::Broken(reason)) => break reason,
            outcome => println!("{outcome:?}"),
        }
        assert!(settled < 40, "nobody is told");
    };
    assert!(broken.contains("kafka.instance") && broken.contains("twins-same"), "{broken}");
    assert_eq!(payloads(&kafka, "twins.letters"), ["1", "2", "4"]);
    member.leave().await;
}

/// Commits offset after offset, each with a letter that says it, prints what is answered, and returns
/// what was committed. `goes_on` is told how much that is.
async fn commit_on(
    offsets: &TransactionalOffsets,
    topic: &str,
    from: i64,
    mut goes_on: impl FnMut(usize) -> bool,
) -> BTreeSet<i64> {
    let mut committed = BTreeSet::new();
    let mut offset = from;
    while goes_on(committed.len()) {
        offset += 1;
        let letters = vec![letter(topic, offset - 1, offset.to_string().as_bytes())];
        match offsets.commit(commit(topic, 0, offset, "", letters)).await {
            Ok(()) => {
                committed.insert(offset);
                println!("committed {offset}");
            }
            Err(error) => {
                println!("refused {offset}: {error}");
                assert!(matches!(error, CommitError::Refused(_)), "{error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    committed
}

/// Not a test by itself: what the tests below run as a process of its own, to freeze it and to kill it.
#[tokio::test(flavor = "multi_thread")]
async fn child_that_commits() {
    let Ok(bootstrap) = std::env::var("SLUICE_TEST_BOOTSTRAP") else { return };
    let topic = std::env::var("SLUICE_TEST_TOPIC").expect("set as well");
    let session = std::env::var("SLUICE_TEST_SESSION").expect("set as well");
    let properties = [("session.timeout.ms", session.as_str()), ("heartbeat.interval.ms", "500")];
    let mut member = Member::join(&bootstrap, &topic, &topic, Delivery::ExactlyOnce, &properties);
    let position = member.assigned(1).await[0].position.expect("known");
    let offsets = member.offsets("child", &format!("{topic}.letters"));
    commit_on(&offsets, &topic, position, |_| true).await;
}

struct Committing {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Committing {
    /// `session` is how many milliseconds the group waits for a member that says nothing.
    fn start(kafka: &ApacheKafka, topic: &str, session: u32) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["child_that_commits", "--exact", "--nocapture"])
            .env("SLUICE_TEST_BOOTSTRAP", kafka.bootstrap())
            .env("SLUICE_TEST_TOPIC", topic)
            .env("SLUICE_TEST_SESSION", session.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs once more");
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        std::thread::spawn({
            let said = said.clone();
            move || lines.map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line))
        });
        Self { child, said }
    }

    /// Offsets that were answered with `word` so far.
    fn answered(&self, word: &str) -> BTreeSet<i64> {
        let said = self.said.lock().unwrap();
        let offset = |line: &String| {
            let rest = line.strip_prefix(word)?.trim_start();
            rest.split(':').next()?.parse().ok()
        };
        said.iter().filter_map(offset).collect()
    }

    async fn wait_for(&self, word: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.answered(word).len() < count {
            assert!(Instant::now() < deadline, "{word}: {:?}", self.said.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: libc::c_int) {
        #[expect(unsafe_code, reason = "signals have no other interface")]
        // SAFETY: the process is our child, and not waited for yet.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "the child is there");
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn letters_of(kafka: &ApacheKafka, topic: &str) -> BTreeSet<i64> {
    let payloads = payloads(kafka, &format!("{topic}.letters"));
    let letters: BTreeSet<i64> = payloads.iter().map(|payload| payload.parse().expect("a number")).collect();
    assert_eq!(letters.len(), payloads.len(), "a letter is there twice");
    letters
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_frozen_beyond_the_transaction_learns_what_became_of_it() {
    let kafka = kafka();
    kafka.create_topic("frozen", 1);
    create_letters(&kafka, "frozen.letters");
    let child = Committing::start(&kafka, "frozen", 45_000);
    for freezes in 1..=2 {
        child.wait_for("committed", 30 * freezes).await;
        child.signal(libc::SIGSTOP);
        // The transaction that it is in, if it is in one, is given up by the broker after ten seconds.
        tokio::time::sleep(Duration::from_secs(13)).await;
        let before = child.answered("committed").len();
        child.signal(libc::SIGCONT);
        child.wait_for("committed", before + 20).await;
    }
    child.signal(libc::SIGSTOP);
    println!("refused {:?}", child.answered("refused"));
    // What it was at when it stopped is known to the broker alone.
    let (last, _) = committed(kafka.bootstrap(), "frozen", "frozen", 0).expect("an offset");
    let mut letters = letters_of(&kafka, "frozen");
    assert_eq!(letters.last(), Some(&last), "offset and letter of the last commit");
    let answered = child.answered("committed");
    letters.retain(|letter| answered.last().is_some_and(|last| letter <= last));
    assert_eq!(letters, answered, "every letter of a commit, and none of a refused one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_open_is_concluded_or_waited_for() {
    let kafka = kafka();
    kafka.create_topic("killed", 1);
    create_letters(&kafka, "killed.letters");
    // Its own name concludes it at once; under another one the brokers have to.
    for instance in ["child", "another"] {
        let child = Committing::start(&kafka, "killed", 6_000);
        child.wait_for("committed", 20).await;
        child.signal(libc::SIGKILL);
        let answered = child.answered("committed");
        drop(child);
        let mut member = join(&kafka, "killed", "killed");
        let offsets = member.offsets(instance, "killed.letters");
        let position = member.assigned(1).await[0].position.expect("known");
        let letters = letters_of(&kafka, "killed");
        assert_eq!(letters.last(), Some(&position), "offset and letter of the last commit");
        assert!(answered.is_subset(&letters), "{answered:?} {letters:?}");
        offsets
            .commit(commit("killed", 0, position, "", Vec::new()))
            .await
            .expect("nothing of the dead is in the way");
        member.leave().await;
    }
}

/// Commits one after the other, and does something to the broker in between.
async fn answers_are_true_while(topic: &str, blows: usize, blow: impl Fn(&mut ApacheKafka)) {
    let mut kafka = start();
    kafka.create_topic(topic, 1);
    let letters = format!("{topic}.letters");
    create_letters(&kafka, &letters);
    let mut member = join(&kafka, topic, topic);
    member.assigned(1).await;
    let offsets = member.offsets("one", &letters);
    let (enough, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let committing = tokio::spawn({
        let (enough, done, topic) = (enough.clone(), done.clone(), topic.to_owned());
        async move {
            let goes_on = |answered: usize| {
                done.store(answered, Ordering::Relaxed);
                !enough.load(Ordering::Relaxed)
            };
            commit_on(&offsets, &topic, 0, goes_on).await
        }
    });
    let more = async |count: usize| {
        let wanted = done.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + PATIENCE;
        while done.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "no more commits");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for _ in 0..blows {
        more(30).await;
        blow(&mut kafka);
    }
    more(30).await;
    enough.store(true, Ordering::Relaxed);
    let answered = committing.await.expect("it ends");
    assert_eq!(letters_of(&kafka, topic), answered);
    let last = *answered.last().expect("some");
    assert_eq!(committed(kafka.bootstrap(), topic, topic, 0), Some((last, String::new())));
    member.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_true_while_the_broker_crashes() {
    answers_are_true_while("crash", 2, |kafka| {
        kafka.kill();
        kafka.restart();
    })
    .await;
}

/// It is off the list of brokers for a moment when it goes on: librdkafka gives up its thread for that broker, and
/// may never come back from sending offsets there.
#[tokio::test(flavor = "multi_thread")]
async fn answers_are_true_while_the_broker_freezes() {
    answers_are_true_while("freeze", 2, |kafka| kafka.freeze(Duration::from_secs(5))).await;
}

/// librdkafka's issue 5511: where the group's coordinator goes off the list of brokers, and no broker's connection changes after
/// that, sending offsets never comes back. Its mock cluster can do that on command.
#[tokio::test(flavor = "multi_thread")]
#[expect(unsafe_code, reason = "the rdkafka crate does not take mock brokers off the list")]
async fn a_commit_that_librdkafka_forgets_is_made_with_another_producer() {
    use rdkafka::mocking::MockCoordinator;
    use rdkafka::producer::{BaseProducer, Producer as _};
    let mut client = ClientConfig::new();
    client.set("test.mock.num.brokers", "2");
    let owner: BaseProducer = client.create().expect("a mock cluster");
    let cluster = owner.client().mock_cluster().expect("it is there");
    for topic in ["forgotten", "forgotten.letters"] {
        cluster.create_topic(topic, 1, 1).expect("made");
        cluster.partition_leader(topic, 0, Some(1)).expect("led");
    }
    let group = |broker| {
        cluster.coordinator(MockCoordinator::Group("forgotten".into()), broker).expect("coordinated");
    };
    group(2);
    cluster.coordinator(MockCoordinator::Transaction("forgotten-one".into()), 1).expect("coordinated");
    let brokers = cluster.bootstrap_servers();
    let mut member = Member::join(&brokers, "forgotten", "forgotten", Delivery::ExactlyOnce, &[]);
    member.assigned(1).await;
    let offsets = member.offsets("one", "forgotten.letters");
    offsets.commit(commit("forgotten", 0, 1, "", Vec::new())).await.expect("committed");

    group(1);
    // SAFETY: the client has a mock cluster, and both are there.
    let gone = unsafe {
        let cluster = rdkafka_sys::rd_kafka_handle_mock_cluster(owner.client().native_ptr());
        rdkafka_sys::rd_kafka_mock_broker_decommission(cluster, 2)
    };
    assert_eq!(gone, rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    let began = Instant::now();
    loop {
        let next = offsets.commit(commit("forgotten", 0, 2, "", Vec::new()));
        match tokio::time::timeout(PATIENCE, next).await.expect("an answer comes") {
            Ok(()) => break,
            Err(error) => assert!(began.elapsed() < PATIENCE, "nothing is committed any more: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    member.leave().await;
}
