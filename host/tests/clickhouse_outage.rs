//! Outages of ClickHouse with the real program, Apache Kafka and the real engine: what the server
//! itself answers when its disk is full, its parts are too many, the table is read-only or gone, and
//! no answer at all. Rows wait within the byte budget, nothing is dead-lettered for it, nothing comes
//! twice, the process stays, and it catches up.

mod support;

use support::clickhouse_server::ClickHouse;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, Sluice};
use support::verdicts::{Repeats, Traffic};

const LIMIT: u64 = 16 << 20;
/// What may come on top: one read of the intake, and the rows of the chunks that are with the workers
/// (`pipeline/budget.rs`).
const OVERSHOOT: u64 = 4 << 20;

/// The state of the only pipeline. At any time it keeps within its budget.
fn status(sluice: &Sluice) -> serde_json::Value {
    let pipeline = sluice.status()["pipelines"][0].clone();
    let (held, limit) = (&pipeline["in_flight_bytes"], &pipeline["in_flight_limit_bytes"]);
    assert_eq!(*limit, LIMIT);
    assert!(held.as_u64().expect("a number") <= LIMIT + OVERSHOOT, "{held} bytes are in flight");
    pipeline
}

fn is_waiting_for(sluice: &Sluice, reason: &str) -> bool {
    status(sluice);
    let (code, body) = sluice.get("/ready");
    code == 503 && body.contains("insert into purchases") && body.contains(reason)
}

/// Statement that takes the table out of service, what the server then answers, statement that mends it.
const FAULTS: [(&str, &str, &str); 4] = [
    (
        "ALTER TABLE purchases MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000",
        "NOT_ENOUGH_SPACE",
        "ALTER TABLE purchases RESET SETTING min_free_disk_bytes_to_perform_insert",
    ),
    (
        "ALTER TABLE purchases MODIFY SETTING parts_to_throw_insert = 1",
        "TOO_MANY_PARTS",
        "ALTER TABLE purchases RESET SETTING parts_to_throw_insert",
    ),
    (
        "ALTER TABLE purchases MODIFY SETTING table_readonly = 1",
        "TABLE_IS_PERMANENTLY_READ_ONLY",
        "ALTER TABLE purchases RESET SETTING table_readonly",
    ),
    ("RENAME TABLE purchases TO elsewhere", "UNKNOWN_TABLE", "RENAME TABLE elsewhere TO purchases"),
];

#[test]
fn whatever_keeps_clickhouse_from_taking_rows_is_waited_out_at_least_once() {
    is_waited_out("at-least-once");
}

#[test]
fn whatever_keeps_clickhouse_from_taking_rows_is_waited_out_exactly_once() {
    is_waited_out("exactly-once");
}

fn is_waited_out(delivery: &str) {
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", 4);
    kafka.create_topic("purchases.dead-letters", 1);
    let mut clickhouse = ClickHouse::start();
    let configuration = Configuration::new(kafka.bootstrap(), &clickhouse.url())
        .set("PIPELINES__PURCHASES__DELIVERY", delivery)
        .set("RESOURCES__IN_FLIGHT_BYTES", &LIMIT.to_string())
        .set("PIPELINES__PURCHASES__BATCH__BYTES", "1MiB")
        .set("PIPELINES__PURCHASES__BATCH__ROWS", "500")
        .set("PIPELINES__PURCHASES__BATCH__LINGER", "100ms");
    let sluice = Sluice::start(&configuration);
    let process = sluice.pid();
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);

    // Far more than the budget holds waits in the topic during the first fault, and comes during the rest.
    let mut first = Traffic::generate_small(37, 101_000, 0.01);
    let mut flood = first.split_off(1_000);
    let trickle = flood.split_off(60_000);
    // One part would do for `TOO_MANY_PARTS`, and none can be merged away.
    clickhouse.execute("SYSTEM STOP MERGES purchases");
    first.send(kafka.bootstrap(), "purchases");
    let mut due = 1_000;
    sluice.wait_until("the first records are settled", |sluice| sluice.settled() == due);

    let enough = std::sync::atomic::AtomicBool::new(false);
    let trickle = std::thread::scope(|scope| {
        let (brokers, enough) = (kafka.bootstrap(), &enough);
        let mut sending = None;
        let mut trickle = Some(trickle);
        for (break_it, answer, mend_it) in FAULTS {
            clickhouse.execute(break_it);
            if sending.is_none() {
                flood.send(brokers, "purchases");
                due += 60_000;
                sluice.wait_until("the budget is spent", |sluice| {
                    is_waiting_for(sluice, answer) && sluice.consumed() < due && held(sluice) > LIMIT / 2
                });
                let trickle = trickle.take().expect("once");
                sending = Some(scope.spawn(move || trickle.send_until(brokers, "purchases", 100.0, enough)));
            }
            sluice.wait_until(answer, |sluice| is_waiting_for(sluice, answer));
            let settled = sluice.settled();
            clickhouse.execute(mend_it);
            sluice.wait_until("it goes on", |sluice| sluice.settled() > settled + 500);
        }
        let settled = sluice.settled();
        clickhouse.kill();
        sluice.wait_until("nobody answers", |sluice| is_waiting_for(sluice, "cannot reach ClickHouse"));
        clickhouse.restart();
        sluice.wait_until("it goes on", |sluice| sluice.settled() > settled + 500);
        enough.store(true, std::sync::atomic::Ordering::Relaxed);
        sending.expect("it was started").join().expect("the records are sent")
    });
    let sent = trickle.len() as u64;
    sluice.wait_until("it has caught up", |sluice| sluice.settled() == due + sent);
    sluice.wait_until("it is ready again", |sluice| sluice.get("/ready").0 == 200);
    assert_eq!((sluice.pid(), status(&sluice)["in_flight_bytes"].clone()), (process, 0.into()));
    assert_eq!(sluice.stop(), Some(0));

    let all = first.and(flood).and(trickle);
    let repeats = all.check(kafka.bootstrap(), "purchases", "purchases.dead-letters", &clickhouse);
    assert_eq!(repeats, Repeats::default());
}

fn held(sluice: &Sluice) -> u64 {
    status(sluice)["in_flight_bytes"].as_u64().expect("a number")
}
