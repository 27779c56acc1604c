//! What the whole program costs: records a second, CPU a record, and memory, from Apache Kafka
//! through the shipped modules into ClickHouse, at the shipped batch sizes.
//!
//! `cargo bench -p sluice --bench end_to_end` prints a table; with `-- --json` one line of JSON,
//! which `make bench` collects. The topic is filled before the host starts. CPU and memory are those
//! of the host's process alone, from /proc; the time is until the last offset is committed. On two
//! shared cores the broker, ClickHouse and the host take turns, so records a second say little about
//! the host; CPU a record says more.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::time::Instant;

use support::clickhouse_server::ClickHouse;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, Sluice};
use support::verdicts::Traffic;

/// Records of one filling; the generator is slow, so the topic is filled with the same several times.
const RECORDS: u64 = 50_000;
const FILLINGS: u64 = 10;
const PARTITIONS: i32 = 12;
const FAULT_SHARE: f64 = 0.01;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only asks whether it runs.
    }
    let json = std::env::args().any(|argument| argument == "--json");
    let kafka = ApacheKafka::start();
    kafka.create_topic("purchases", PARTITIONS);
    kafka.create_topic("purchases.dead-letters", 3);
    let clickhouse = ClickHouse::start();
    let traffic = Traffic::generate_small(17, RECORDS, FAULT_SHARE);
    for _ in 0..FILLINGS {
        traffic.send(kafka.bootstrap(), "purchases");
    }
    let total = RECORDS * FILLINGS;

    let configuration = Configuration::new(kafka.bootstrap(), &clickhouse.url());
    let sluice = Sluice::start(&configuration);
    let before = cpu_seconds(sluice.pid());
    sluice.wait_until("the first record is consumed", |sluice| sluice.consumed() > 0);
    let started = Instant::now();
    sluice.wait_until("every record is settled", |sluice| sluice.settled() >= total);
    let seconds = started.elapsed().as_secs_f64();
    let cpu = cpu_seconds(sluice.pid()) - before;
    let memory = peak_memory_bytes(sluice.pid());
    assert_eq!(sluice.stop(), Some(0));
    let rows: Vec<u64> = clickhouse.rows("SELECT count() FROM purchases");
    assert_eq!(rows[0], total - traffic.faults() as u64 * FILLINGS, "rows in the table");

    let figures = [
        ("records", total as f64),
        ("records_per_second", total as f64 / seconds),
        ("cpu_ns_per_record", cpu * 1e9 / total as f64),
        ("peak_memory_mebibytes", memory as f64 / f64::from(1 << 20)),
    ];
    if json {
        let object: serde_json::Map<_, _> =
            figures.iter().map(|(name, value)| ((*name).to_owned(), value.round().into())).collect();
        println!("{}", serde_json::json!({ "bench": "end_to_end", "figures": object }));
        return;
    }
    for (name, value) in figures {
        println!("{value:>10.0}  {name}");
    }
}

/// User and system time of a process so far (proc(5), fields 14 and 15 of stat, in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name in brackets") + 2..].split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<f64>().expect("a number");
    (ticks(14) + ticks(15)) / 100.0
}

/// VmHWM of a process (proc(5)).
fn peak_memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("kB");
    kibibytes << 10
}
