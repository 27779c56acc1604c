//! What the whole program costs, from Apache Kafka through the shipped modules into ClickHouse, at the
//! shipped batch sizes, and what exactly-once costs more than at-least-once.
//!
//! `cargo bench -p sluice --bench end_to_end` prints a table; with `-- --json` one line of JSON, which
//! `make bench` collects. Words after `--` are the loads to run (for a profiler), all without any:
//!
//! - `full`: the topic is filled, then a host reads it all, in a group of its own each round. Both kinds
//!   of delivery take turns on the same records. CPU and memory are those of the host's process alone,
//!   from /proc; the best round counts. On two shared cores the broker, ClickHouse and the host take
//!   turns, so records a second say little about the host; CPU a record says more.
//! - `light`: a host is sent a few records a second, less than fill a batch, so that `batch.linger` seals
//!   every one of them. Tells INSERTs a second, and how long a record takes from Kafka's log into the table.
//! - `swaps`: the same with a short linger, first with modules that stay, then with a rule that is
//!   replaced as soon as its last revision is live. Tells what that costs the records, and how long after
//!   its copy a revision is live.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::clickhouse_server::ClickHouse;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, Sluice};
use support::verdicts::{Traffic, read};

/// Records of one filling; the generator is slow, so the topic is filled with the same several times.
const RECORDS: u64 = 50_000;
const FILLINGS: u64 = 20;
const PARTITIONS: i32 = 12;
const FAULT_SHARE: f64 = 0.01;
const ROUNDS: usize = 5;

/// Records of a light load, and how many of them a second.
const LIGHT_RECORDS: u64 = 20_000;
const LIGHT_RATE: f64 = 2_000.0;
/// Of three lanes.
const MANY_PARTITIONS: i32 = 192;
/// From the first record of a light load until its INSERTs are counted.
const SETTLING_IN: Duration = Duration::from_secs(2);

/// Short, so that waiting for it does not hide what a swap costs.
const SWAPS_LINGER: &str = "100ms";
/// A stall of the machine of a tenth of a second is a hundredth of a load: the best of some rounds counts.
const SWAPS_ROUNDS: usize = 3;

const DELIVERIES: [&str; 2] = ["at-least-once", "exactly-once"];

/// Value, name, and how many decimals of it mean something.
type Figure = (String, f64, usize);

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return; // `cargo test --benches` only asks whether it runs.
    }
    let (options, loads): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let runs = |load: &str| loads.is_empty() || loads.iter().any(|wanted| wanted == load);
    let servers = Servers::start();
    let mut figures = Vec::new();
    if runs("full") {
        figures.extend(full(&servers));
    }
    if runs("light") {
        for delivery in DELIVERIES {
            figures.extend(light(&servers, delivery, PARTITIONS));
        }
        figures.extend(light(&servers, "exactly-once", MANY_PARTITIONS));
    }
    if runs("swaps") {
        figures.extend(swaps(&servers));
    }
    if options.iter().any(|option| option == "--json") {
        let rounded = |value: f64, decimals: usize| {
            let scale = 10f64.powi(decimals as i32);
            (value * scale).round() / scale
        };
        let object: serde_json::Map<_, _> = figures
            .into_iter()
            .map(|(name, value, decimals)| (name, rounded(value, decimals).into()))
            .collect();
        println!("{}", serde_json::json!({ "bench": "end_to_end", "figures": object }));
        return;
    }
    for (name, value, decimals) in figures {
        println!("{value:>10.decimals$}  {name}");
    }
}

struct Servers {
    kafka: ApacheKafka,
    clickhouse: ClickHouse,
}

impl Servers {
    fn start() -> Self {
        let kafka = ApacheKafka::start();
        kafka.create_topic("purchases.dead-letters", 3);
        let clickhouse = ClickHouse::start();
        let migrations = Configuration::new(kafka.bootstrap(), &clickhouse.url());
        let (migrated, _, error) = migrations.command(&["migrate"]);
        assert!(migrated, "{error}");
        // When a row came in, finer than the shipped column has it.
        clickhouse.execute("ALTER TABLE purchases ADD COLUMN inserted_at DateTime64(3) DEFAULT now64(3)");
        Self { kafka, clickhouse }
    }

    /// A host that begins at the start of `topic`, in the group of this name.
    fn host(&self, delivery: &str, topic: &str, group: &str) -> Sluice {
        Sluice::start(&self.configuration(delivery, topic, group))
    }

    fn configuration(&self, delivery: &str, topic: &str, group: &str) -> Configuration {
        Configuration::new(self.kafka.bootstrap(), &self.clickhouse.url())
            .set("PIPELINES__PURCHASES__DELIVERY", delivery)
            .set("PIPELINES__PURCHASES__TOPICS", topic)
            .set("PIPELINES__PURCHASES__GROUP", group)
    }

    fn rows(&self) -> u64 {
        self.clickhouse.rows::<u64>("SELECT count() FROM purchases")[0]
    }
}

/// What a host spent on the full load.
#[derive(Clone, Copy)]
struct Spent {
    seconds: f64,
    cpu_seconds: f64,
    peak_memory_bytes: u64,
}

fn full(servers: &Servers) -> Vec<Figure> {
    let topic = "purchases.full";
    servers.kafka.create_topic(topic, PARTITIONS);
    let traffic = Traffic::generate_small(17, RECORDS, FAULT_SHARE);
    for _ in 0..FILLINGS {
        traffic.send(servers.kafka.bootstrap(), topic);
    }
    let total = RECORDS * FILLINGS;
    let mut spent: [Vec<Spent>; 2] = Default::default();
    for round in 0..ROUNDS {
        // Whoever comes second finds warmer caches, so that is not always the same.
        for turn in 0..DELIVERIES.len() {
            let index = (round + turn) % DELIVERIES.len();
            let delivery = DELIVERIES[index];
            servers.clickhouse.execute("TRUNCATE TABLE purchases");
            let sluice = servers.host(delivery, topic, &format!("full.{delivery}.{round}"));
            let cost = read_all(sluice, total);
            eprintln!("round {round}, {delivery}: {:.0} ns a record", cost.cpu_seconds * 1e9 / total as f64);
            spent[index].push(cost);
            let mapped = total - traffic.faults() as u64 * FILLINGS;
            assert_eq!(servers.rows(), mapped, "rows in the table, {delivery}");
        }
    }
    let best = |spent: &[Spent], what: fn(&Spent) -> f64| {
        spent.iter().map(what).min_by(f64::total_cmp).expect("there are rounds")
    };
    let cpu = |spent: &[Spent]| best(spent, |spent| spent.cpu_seconds);
    let mut figures = vec![
        ("records".to_owned(), total as f64, 0),
        ("exactly_once_cpu_ratio".to_owned(), cpu(&spent[1]) / cpu(&spent[0]), 3),
    ];
    for (delivery, spent) in DELIVERIES.iter().zip(&spent) {
        let name = |what: &str| format!("{}_{what}", delivery.replace('-', "_"));
        let peak = spent.iter().map(|spent| spent.peak_memory_bytes).max().unwrap_or(0);
        figures.extend([
            (name("cpu_ns_per_record"), cpu(spent) * 1e9 / total as f64, 0),
            (name("records_per_second"), total as f64 / best(spent, |spent| spent.seconds), 0),
            (name("peak_memory_mebibytes"), peak as f64 / f64::from(1 << 20), 0),
        ]);
    }
    figures
}

/// Lets a host that has just started read `total` records, and ends it.
fn read_all(sluice: Sluice, total: u64) -> Spent {
    // Compiling the modules is no record's cost.
    let mut before = 0.0;
    sluice.wait_until("the first record is consumed", |sluice| {
        let so_far = cpu_seconds(sluice.pid());
        let begun = sluice.consumed() > 0;
        if !begun {
            before = so_far;
        }
        begun
    });
    let started = Instant::now();
    sluice.wait_until("every record is settled", |sluice| sluice.settled() >= total);
    let spent = Spent {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: cpu_seconds(sluice.pid()) - before,
        peak_memory_bytes: peak_memory_bytes(sluice.pid()),
    };
    assert_eq!(sluice.stop(), Some(0));
    spent
}

fn light(servers: &Servers, delivery: &str, partitions: i32) -> Vec<Figure> {
    let topic = format!("purchases.light.{delivery}.{partitions}");
    servers.kafka.create_topic_with(&topic, partitions, &[("message.timestamp.type", "LogAppendTime")]);
    servers.clickhouse.execute("TRUNCATE TABLE purchases");
    let traffic = Traffic::generate_small(19, LIGHT_RECORDS, FAULT_SHARE);
    let sluice = servers.host(delivery, &topic, &topic);
    sluice.wait_until("it has its partitions", |sluice| {
        sluice.status()["pipelines"][0]["partitions"]
            .as_array()
            .is_some_and(|assigned| assigned.len() == partitions as usize)
    });
    let batches_per_second = std::thread::scope(|scope| {
        let sender = scope.spawn(|| traffic.send_paced(servers.kafka.bootstrap(), &topic, LIGHT_RATE));
        sluice.wait_until("the first record is consumed", |sluice| sluice.consumed() > 0);
        std::thread::sleep(SETTLING_IN);
        let (before, started) = (batches(&sluice), Instant::now());
        sender.join().expect("every record is sent");
        (batches(&sluice) - before) / started.elapsed().as_secs_f64()
    });
    sluice.wait_until("every record is settled", |sluice| sluice.settled() >= LIGHT_RECORDS);
    assert_eq!(sluice.stop(), Some(0));
    assert_eq!(servers.rows(), LIGHT_RECORDS - traffic.faults() as u64, "rows in the table, {topic}");
    let latencies = latencies(servers, &topic);
    let name = |what: &str| format!("{}_light_{partitions}_{what}", delivery.replace('-', "_"));
    vec![
        (name("inserts_per_second"), batches_per_second, 2),
        (name("latency_p50_ms"), quantile(&latencies, 0.5), 0),
        (name("latency_p99_ms"), quantile(&latencies, 0.99), 0),
    ]
}

fn swaps(servers: &Servers) -> Vec<Figure> {
    let mut p99 = [f64::INFINITY; 2];
    let mut live = Vec::new();
    for round in 0..SWAPS_ROUNDS {
        for (is_swapped, best) in [false, true].into_iter().zip(&mut p99) {
            let load = swapping(servers, is_swapped, round);
            *best = best.min(quantile(&load.latencies, 0.99));
            live.extend(load.live);
        }
    }
    live.sort_unstable();
    vec![
        ("swaps".to_owned(), live.len() as f64, 0),
        ("swaps_copy_to_live_p50_ms".to_owned(), quantile(&live, 0.5), 0),
        ("swaps_copy_to_live_p99_ms".to_owned(), quantile(&live, 0.99), 0),
        ("swaps_none_latency_p99_ms".to_owned(), p99[0], 0),
        ("swaps_latency_p99_ms".to_owned(), p99[1], 0),
        ("swaps_delay_p99_ms".to_owned(), p99[1] - p99[0], 0),
    ]
}

/// Milliseconds.
struct Swapping {
    /// From Kafka's log into the table, of every record; ascending.
    latencies: Vec<i64>,
    /// From the copy of a file until it was live, of every swap.
    live: Vec<i64>,
}

fn swapping(servers: &Servers, is_swapped: bool, round: usize) -> Swapping {
    let topic = format!("purchases.{}.{round}", if is_swapped { "swaps" } else { "still" });
    let topic = topic.as_str();
    servers.kafka.create_topic_with(topic, PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
    servers.clickhouse.execute("TRUNCATE TABLE purchases");
    let traffic = Traffic::generate_small(23, LIGHT_RECORDS, FAULT_SHARE);
    let rules = Rules::new();
    let configuration = rules
        .configure(servers.configuration("exactly-once", topic, topic))
        .set("PIPELINES__PURCHASES__BATCH__LINGER", SWAPS_LINGER);
    let sluice = Sluice::start(&configuration);
    sluice.wait_until("it has its partitions", |sluice| {
        sluice.status()["pipelines"][0]["partitions"]
            .as_array()
            .is_some_and(|assigned| assigned.len() == PARTITIONS as usize)
    });
    let live = std::thread::scope(|scope| {
        let sender = scope.spawn(|| traffic.send_paced(servers.kafka.bootstrap(), topic, LIGHT_RATE));
        sluice.wait_until("the first record is consumed", |sluice| sluice.consumed() > 0);
        let mut live = Vec::new();
        while is_swapped && !sender.is_finished() {
            live.push(rules.swap(live.len() as u32));
        }
        sender.join().expect("every record is sent");
        live
    });
    sluice.wait_until("every record is settled", |sluice| sluice.settled() >= LIGHT_RECORDS);
    assert_eq!(sluice.stop(), Some(0));
    assert_eq!(servers.rows(), LIGHT_RECORDS - traffic.faults() as u64, "rows in the table, {topic}");
    Swapping { latencies: latencies(servers, topic), live }
}

/// A copy of the shipped modules, whose rule is swapped.
struct Rules {
    folder: tempfile::TempDir,
    rule: Vec<u8>,
}

impl Rules {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let shipped = support::guests::purchase_modules();
        let rule = fs::read(shipped.join("validators/purchase-rules.wasm")).expect("the rule is built");
        let this = Self { folder, rule };
        fs::create_dir(this.validators()).expect("a folder");
        fs::write(this.validators().join("purchase-rules.wasm"), &this.rule).expect("written");
        fs::copy(shipped.join("purchase-rows.wasm"), this.mapper()).expect("copied");
        this
    }

    fn validators(&self) -> PathBuf {
        self.folder.path().join("validators")
    }

    fn mapper(&self) -> PathBuf {
        self.folder.path().join("purchase-rows.wasm")
    }

    fn configure(&self, configuration: Configuration) -> Configuration {
        configuration
            .set("PIPELINES__PURCHASES__VALIDATORS", &self.validators().display().to_string())
            .set("PIPELINES__PURCHASES__MAPPER", &self.mapper().display().to_string())
    }

    fn live(&self) -> Option<String> {
        let status = fs::read(self.validators().join("purchase-rules.status.json")).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
        status["live"]["revision"].as_str().map(str::to_owned)
    }

    /// Puts another revision into place, which says the same (a custom section makes the difference),
    /// and waits until it is live; returns how many milliseconds that took.
    fn swap(&self, number: u32) -> i64 {
        let before = self.live();
        let mut bytes = self.rule.clone();
        bytes.extend([0, 6, 1, b'r']);
        bytes.extend(number.to_le_bytes());
        let hidden = self.validators().join(".next");
        fs::write(&hidden, bytes).expect("written");
        let copied = Instant::now();
        fs::rename(hidden, self.validators().join("purchase-rules.wasm")).expect("renamed");
        while self.live() == before {
            assert!(copied.elapsed() < Duration::from_secs(60), "the revision does not go live");
            std::thread::sleep(Duration::from_millis(2));
        }
        copied.elapsed().as_millis() as i64
    }
}

fn quantile(ascending: &[i64], share: f64) -> f64 {
    ascending[(share * (ascending.len() - 1) as f64) as usize] as f64
}

/// Milliseconds from Kafka's log to ClickHouse, of every record with a row; ascending.
fn latencies(servers: &Servers, topic: &str) -> Vec<i64> {
    let appended: HashMap<(i32, i64), i64> = read(servers.kafka.bootstrap(), topic)
        .into_iter()
        .map(|record| ((record.partition, record.offset), record.timestamp))
        .collect();
    let rows: Vec<(i32, i64, i64)> = servers
        .clickhouse
        .rows("SELECT _partition, _offset, toUnixTimestamp64Milli(inserted_at) AS inserted FROM purchases");
    let since = |(partition, offset, inserted): &(i32, i64, i64)| inserted - appended[&(*partition, *offset)];
    let mut latencies: Vec<i64> = rows.iter().map(since).collect();
    latencies.sort_unstable();
    latencies
}

/// INSERTs so far: the mapper has one output.
fn batches(sluice: &Sluice) -> f64 {
    let (_, metrics) = sluice.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with("sluice_batches_total{"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("batches are counted")
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
