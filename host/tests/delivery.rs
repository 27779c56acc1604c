//! Delivery on the real parts: Apache Kafka, the ClickHouse engine, the sluice program, killed.

mod support;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::clickhouse_server::ClickHouse;
use support::kafka::ApacheKafka;
use support::proxy::{Answers, Proxy};
use support::sluice::{Configuration, Sluice};
use support::verdicts::{Repeats, Traffic};

const RECORDS: u64 = 50_000;

/// The shipped configuration, with batches small enough that a kill finds several under way, and a
/// session short enough that a killed member is soon missed.
fn configuration(kafka: &ApacheKafka, clickhouse: &ClickHouse) -> Configuration {
    Configuration::new(kafka.bootstrap(), &clickhouse.url())
        .set("PIPELINES__PURCHASES__DELIVERY", "exactly-once")
        .set("PIPELINES__PURCHASES__BATCH__ROWS", "2000")
        .set("PIPELINES__PURCHASES__BATCH__LINGER", "200ms")
        .set("KAFKA__PROPERTIES__SESSION_TIMEOUT_MS", "6000")
        .set("KAFKA__PROPERTIES__HEARTBEAT_INTERVAL_MS", "500")
}

/// A proxy before ClickHouse.
fn before(clickhouse: &ClickHouse) -> Proxy {
    let proxy = Proxy::start(Answers::All);
    proxy.forward_to(clickhouse.url().trim_start_matches("http://").parse().expect("an address"));
    proxy
}

/// The same, by way of the proxy.
fn through(proxy: &Proxy, configuration: &Configuration) -> Configuration {
    configuration.clone().set("CLICKHOUSE__URL", &format!("http://{}", proxy.address()))
}

fn rows(clickhouse: &ClickHouse) -> u64 {
    clickhouse.rows("SELECT count() FROM purchases")[0]
}

/// Everything consumed is settled, and everything in the topic is consumed.
fn is_done(sluice: &Sluice, partitions: usize) -> bool {
    let status = sluice.status();
    let all = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
    all.len() == partitions
        && all.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
}

#[test]
fn nothing_is_lost_when_the_host_is_killed_and_every_verdict_is_met() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 12);
    let larger = [("max.message.bytes", "4194304")];
    kafka.create_topic_with("purchases.dead-letters", 3, &larger);
    let clickhouse = ClickHouse::start();
    let proxy = before(&clickhouse);
    let mut traffic = Traffic::generate(7, RECORDS, 0.02);
    assert!(traffic.faults() > 500, "{} faults", traffic.faults());
    let mut second = traffic.split_off(15_000);
    let third = second.split_off(20_000);
    traffic.send(kafka.bootstrap(), "purchases");

    let configuration = configuration(&kafka, &clickhouse);
    let behind = through(&proxy, &configuration);
    let mut kills = 0;
    for (settled, next) in [(3_000, &second), (8_000, &third)] {
        let sluice = Sluice::start(&behind);
        sluice
            .wait_until("all so far is settled", |sluice| sluice.settled() >= settled && is_done(sluice, 12));
        let known = rows(&clickhouse);
        proxy.swallow(u64::MAX);
        next.send(kafka.bootstrap(), "purchases");
        sluice.wait_until("there are rows that it does not know of", |sluice| {
            rows(&clickhouse) > known && !is_done(sluice, 12)
        });
        assert!(!is_done(&sluice, 12), "the kill came too late to prove anything");
        sluice.kill();
        proxy.heal();
        kills += 1;
    }
    let traffic = traffic.and(second.and(third));
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 12));
    let (code, metrics) = sluice.get("/metrics");
    assert_eq!(code, 200);
    assert!(metrics.contains("sluice_records_consumed_total"), "{metrics}");
    assert_eq!(sluice.stop(), Some(0));

    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default(), "after {kills} kills");

    // A foreign client sees the same dead letters.
    let output = Command::new("kcat")
        .args(["-b", kafka.bootstrap(), "-C", "-t", "purchases.dead-letters", "-o", "beginning", "-e", "-q"])
        .args(["-f", "%h\\n"])
        .output()
        .expect("kcat is installed: run `make setup`");
    assert!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let envelopes = text.lines().filter(|line| line.contains("sluice.pipeline=purchases")).count();
    assert_eq!(envelopes, traffic.faults());
}

/// Three brokers that are stopped in order and started again, one after the other, under load: whoever coordinates the
/// group or the transactions is among them.
#[test]
fn brokers_that_are_restarted_one_after_the_other_hold_up_nothing() {
    let mut cluster = ApacheKafka::start_cluster(3);
    cluster[0].create_topic("purchases", 12);
    cluster[0].create_topic_with("purchases.dead-letters", 3, &[("max.message.bytes", "4194304")]);
    let brokers = cluster.iter().map(ApacheKafka::bootstrap).collect::<Vec<_>>().join(",");
    let clickhouse = ClickHouse::start();
    let sluice = Sluice::start(&configuration(&cluster[0], &clickhouse).set("KAFKA__BROKERS", &brokers));
    let enough = AtomicBool::new(false);
    let traffic = std::thread::scope(|scope| {
        let sending = scope
            .spawn(|| Traffic::generate(23, 100_000, 0.02).send_until(&brokers, "purchases", 500.0, &enough));
        let more = || {
            let settled = sluice.settled();
            sluice.wait_until("more is settled", |sluice| sluice.settled() > settled + 1_000);
        };
        // Not the first one, which is the controller too, and the only one.
        for broker in &mut cluster[1..] {
            more();
            broker.stop();
            more();
            broker.restart();
        }
        more();
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("everything is sent")
    });
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 12));
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(&brokers, "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

/// At-least-once, records since the last commit are read again: none is lost, some may be there twice. Here some
/// are, since ClickHouse has rows that the killed host was never told of.
#[test]
fn at_least_once_nothing_is_lost_when_the_host_is_killed() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 12);
    kafka.create_topic_with("purchases.dead-letters", 3, &[("max.message.bytes", "4194304")]);
    let clickhouse = ClickHouse::start();
    let proxy = before(&clickhouse);
    let configuration =
        configuration(&kafka, &clickhouse).set("PIPELINES__PURCHASES__DELIVERY", "at-least-once");
    let sluice = Sluice::start(&through(&proxy, &configuration));
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);
    proxy.swallow(u64::MAX);
    let traffic = Traffic::generate(17, 20_000, 0.02);
    traffic.send(kafka.bootstrap(), "purchases");
    sluice.wait_until("there are rows that it does not know of", |_| rows(&clickhouse) > 0);
    sluice.kill();
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 12));
    assert_eq!(sluice.status()["pipelines"][0]["delivery"], "at-least-once");
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert!(repeats.rows > 0, "{repeats:?}");
}

#[test]
fn every_kind_of_bad_input_ends_where_it_should_and_its_neighbours_go_through() {
    let kafka = ApacheKafka::start();
    let larger = [("max.message.bytes", "4194304")];
    kafka.create_topic_with("purchases", 3, &larger);
    kafka.create_topic_with("purchases.dead-letters", 1, &larger);
    let clickhouse = ClickHouse::start();
    let traffic = Traffic::every_fault();
    assert!(traffic.faults() > 30, "{} faults", traffic.faults());
    assert!(traffic.largest() >= 1 << 20, "{} bytes", traffic.largest());
    traffic.send(kafka.bootstrap(), "purchases");
    let sluice = Sluice::start(&configuration(&kafka, &clickhouse));
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 3));
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

/// A group that starts at the end keeps its place from the moment it has one.
#[test]
fn a_start_at_the_end_is_kept_over_a_kill() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 3);
    kafka.create_topic_with("purchases.dead-letters", 1, &[("max.message.bytes", "4194304")]);
    let clickhouse = ClickHouse::start();
    let before = Traffic::generate(19, 500, 0.0);
    before.send(kafka.bootstrap(), "purchases");
    let configuration = configuration(&kafka, &clickhouse).set("PIPELINES__PURCHASES__START", "latest");
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("it has its place", |sluice| is_done(sluice, 3));
    sluice.kill();
    let after = Traffic::generate(23, 700, 0.0);
    after.send(kafka.bootstrap(), "purchases");
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 3) && sluice.settled() > 0);
    assert_eq!(sluice.stop(), Some(0));
    let rows: Vec<u64> = clickhouse.rows("SELECT count() FROM purchases");
    assert_eq!(rows, [700]);
}

/// Hosts that come and go in order repeat nothing, even at-least-once: what is in flight of a
/// partition is settled and committed before it is given up.
#[test]
fn hosts_that_join_and_leave_in_order_repeat_nothing() {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 12);
    kafka.create_topic_with("purchases.dead-letters", 3, &[("max.message.bytes", "4194304")]);
    let clickhouse = ClickHouse::start();
    let traffic = Traffic::generate(11, 90_000, 0.02);
    // Two hosts of one machine.
    let host = |name: &str| configuration(&kafka, &clickhouse).set("KAFKA__INSTANCE", name);

    let first = Sluice::start(&host("first"));
    first.wait_until("the first host has every partition", |sluice| is_done(sluice, 12));
    let enough = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        // Records keep coming until both changes are over, so that each meets some in flight.
        let sending = scope.spawn(|| traffic.send_until(kafka.bootstrap(), "purchases", 1_000.0, &enough));
        first.wait_until("some records are settled", |sluice| sluice.settled() >= 1_000);
        let second = Sluice::start(&host("second"));
        second.wait_until("the second host has partitions", |sluice| partitions(sluice) > 0);
        first.wait_until("the first host gave some up", |sluice| partitions(sluice) < 12);
        assert_eq!(first.stop(), Some(0));
        second.wait_until("the second host has every partition", |sluice| partitions(sluice) == 12);
        enough.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("records are sent");
        second.wait_until("the topic is drained", |sluice| is_done(sluice, 12));
        assert_eq!(second.stop(), Some(0));
        sent
    });
    let repeats = sent.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

#[test]
fn a_broker_that_crashes_under_load_is_waited_for_and_nothing_is_lost() {
    let mut kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 12);
    kafka.create_topic_with("purchases.dead-letters", 3, &[("max.message.bytes", "4194304")]);
    let clickhouse = ClickHouse::start();
    let proxy = before(&clickhouse);
    let mut traffic = Traffic::generate(13, 30_000, 0.02);
    let second = traffic.split_off(15_000);
    traffic.send(kafka.bootstrap(), "purchases");
    let sluice = Sluice::start(&through(&proxy, &configuration(&kafka, &clickhouse)));
    sluice.wait_until("some records are settled", |sluice| sluice.settled() >= 2_000);
    proxy.swallow(u64::MAX);
    second.send(kafka.bootstrap(), "purchases");
    sluice.wait_until("more are under way", |sluice| !is_done(sluice, 12));
    assert!(!is_done(&sluice, 12), "the crash came too late to prove anything");
    kafka.kill();
    proxy.heal();
    let traffic = traffic.and(second);
    sluice.wait_until("it says that no broker is there", |sluice| {
        let (code, body) = sluice.get("/ready");
        code == 503 && body.contains("kafka")
    });
    kafka.restart();
    sluice.wait_until("the topic is drained", |sluice| is_done(sluice, 12));
    sluice.wait_until("it is ready again", |sluice| sluice.get("/ready").0 == 200);
    assert_eq!(sluice.stop(), Some(0));
    let repeats = traffic.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

fn partitions(sluice: &Sluice) -> usize {
    sluice.status()["pipelines"][0]["partitions"].as_array().map_or(0, Vec::len)
}
