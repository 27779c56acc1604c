//! A thousand swaps between two revisions whose output differs, bad files in between, under load on real
//! parts: nothing is lost, nothing is there twice, every row and every dead letter is of the revision that
//! it names, and the host is as large afterwards as before.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use support::clickhouse_server::ClickHouse;
use support::deployment::live;
use support::guests::hostile_mapper;
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, PATIENCE, Sluice};
use support::verdicts::read;

const SWAPS: usize = 1_000;
/// By then everything that is made once is there.
const SETTLED: usize = 200;
/// What the host may have more of at the end: records in flight are a part of its memory, and there are
/// always some.
const MEMORY_SLACK: u64 = 48 << 20;
const DESCRIPTORS_SLACK: usize = 16;
const PARTITIONS: i32 = 4;
/// Between two records.
const PACE: Duration = Duration::from_millis(2);

/// A revision of the mapper: what it makes of `a`, and the code with which it rejects `r`.
struct Revision {
    bytes: Vec<u8>,
    text: &'static str,
    code: &'static str,
}

fn revisions() -> [Revision; 2] {
    let capitals = |text: String| {
        let small = "(call $byte (local.get $letter))";
        assert_eq!(text.matches(small).count(), 1, "the mapper writes its letter in one place");
        text.replace(small, "(call $byte (i32.xor (local.get $letter) (i32.const 32)))")
            .replace("no_thanks", "not_today")
    };
    [
        Revision { bytes: hostile_mapper(|text| text), text: "a", code: "no_thanks" },
        Revision { bytes: hostile_mapper(capitals), text: "A", code: "not_today" },
    ]
}

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new(first: &[u8]) -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a folder") };
        std::fs::write(this.mapper(), first).expect("written");
        let configuration = "\
            clickhouse: { migrate_at_start: false }\n\
            modules: { poll: 2s }\n\
            pipelines:\n  letters:\n    topics: [letters]\n    group: letters\n    \
            dead_letter_topic: letters.dead\n    mapper: mapper.wasm\n    batch: { linger: 100ms }\n";
        std::fs::write(this.path("sluice.yaml"), configuration).expect("written");
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mapper(&self) -> PathBuf {
        self.path("mapper.wasm")
    }

    fn status(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.path("mapper.status.json")).ok()?;
        Some(serde_json::from_str(&text).expect("a status file is whole whenever it is read"))
    }

    fn wait_for(&self, sluice: &Sluice, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if let Some(status) = status.as_ref().filter(|status| condition(status)) {
                return status.clone();
            }
            assert!(
                Instant::now() < deadline,
                "waited in vain until the mapper is {what}: {status:?}\n{}",
                sluice.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Resident memory in bytes, and open files.
fn size(sluice: &Sluice) -> (u64, usize) {
    let process = Path::new("/proc").join(sluice.pid().to_string());
    let status = std::fs::read_to_string(process.join("status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a resident size");
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("kB");
    (kibibytes << 10, std::fs::read_dir(process.join("fd")).expect("its files").count())
}

/// Sends letters until `enough`; every hundredth is one that both revisions reject. Returns how many.
fn send(brokers: &str, enough: &AtomicBool) -> u64 {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a producer can be made");
    let mut sent = 0;
    while !enough.load(Ordering::Relaxed) {
        let letter = if sent % 100 == 99 { "r" } else { "a" };
        let partition = (sent % PARTITIONS as u64) as i32;
        let record = BaseRecord::<(), str>::to("letters").partition(partition).payload(letter);
        producer.send(record).map_err(|(error, _)| error).expect("room");
        producer.poll(Duration::ZERO);
        sent += 1;
        std::thread::sleep(PACE);
    }
    producer.flush(PATIENCE).expect("acknowledged");
    sent
}

#[test]
fn a_thousand_swaps_lose_nothing_and_leave_nothing_behind() {
    let (kafka, clickhouse) = (ApacheKafka::start(), ClickHouse::start());
    kafka.create_topic("letters", PARTITIONS);
    kafka.create_topic("letters.dead", 1);
    clickhouse.execute(
        "CREATE TABLE texts (text String, _topic LowCardinality(String), _partition Int32, _offset Int64, \
         _revision LowCardinality(String)) ENGINE = MergeTree ORDER BY (_partition, _offset) \
         SETTINGS non_replicated_deduplication_window = 10000",
    );
    let revisions = revisions();
    let folder = Folder::new(&revisions[0].bytes);
    let configuration =
        Configuration::new(kafka.bootstrap(), &clickhouse.url()).with_file(folder.path("sluice.yaml"));
    let sluice = Sluice::start(&configuration);
    let first = live(&folder.wait_for(&sluice, "live", |status| status["state"] == "live"));
    sluice.wait_until("it is ready", |sluice| sluice.get("/ready").0 == 200);

    let enough = AtomicBool::new(false);
    let mut names = vec![first];
    let mut settled = None;
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(kafka.bootstrap(), &enough));
        sluice.wait_until("records flow", |sluice| sluice.settled() > 0);
        for swap in 1..=SWAPS {
            if swap % 50 == 0 {
                // As a copy that was cut short, and as another file by mistake.
                let bad = if swap % 100 == 0 { &b"not a module"[..] } else { &revisions[0].bytes[..500] };
                let before = live(&folder.status().expect("a status"));
                std::fs::write(folder.mapper(), bad).expect("written");
                let refused = folder.wait_for(&sluice, "refused", |status| status["state"] == "refused");
                assert_eq!(live(&refused), before, "the revision before goes on: {refused}");
            }
            let bytes = &revisions[swap % 2].bytes;
            if swap % 4 < 2 {
                std::fs::write(folder.mapper(), bytes).expect("written");
            } else {
                std::fs::write(folder.path(".hidden"), bytes).expect("written");
                std::fs::rename(folder.path(".hidden"), folder.mapper()).expect("renamed");
            }
            let known = names.get(swap % 2).cloned();
            let before = names[(swap + 1) % 2].clone();
            let now = live(&folder.wait_for(&sluice, "the other revision", |status| {
                status["state"] == "live" && live(status) != before
            }));
            match known {
                Some(known) => assert_eq!(now, known, "the same file is the same revision"),
                None => names.push(now),
            }
            if swap == SETTLED {
                settled = Some(size(&sluice));
            }
        }
        let ((memory, files), (before, files_before)) = (size(&sluice), settled.expect("it was measured"));
        assert!(memory < before + MEMORY_SLACK, "{before} bytes became {memory}");
        assert!(files < files_before + DESCRIPTORS_SLACK, "{files_before} open files became {files}");
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("sent")
    });
    sluice.wait_until("everything is settled", |sluice| sluice.settled() == sent);
    assert_eq!(sluice.stop(), Some(0));
    check(&kafka, &clickhouse, &revisions, &names, sent);
}

/// Every record ended once, in the way of the revision that its row or dead letter names.
fn check(kafka: &ApacheKafka, clickhouse: &ClickHouse, revisions: &[Revision], names: &[String], sent: u64) {
    // Of a chain is archived of which modules it is made.
    let chains: BTreeMap<String, String> = clickhouse
        .rows::<(String, String)>("SELECT revision, settings FROM sluice_revisions WHERE stage = 'chain'")
        .into_iter()
        .map(|(chain, modules)| (chain[..12].to_owned(), modules))
        .collect();
    let mut places = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (partition, offset, text, chain) in clickhouse
        .rows::<(i32, i64, String, String)>("SELECT _partition, _offset, text, _revision FROM texts")
    {
        assert!(places.insert((partition, offset)), "{partition} {offset} has two rows");
        let modules = chains.get(&chain).unwrap_or_else(|| panic!("no chain {chain} is archived"));
        let index = names.iter().position(|name| modules.contains(name)).expect("a chain of ours");
        assert_eq!(text, revisions[index].text, "{partition} {offset} was mapped by another revision");
        used.insert(index);
    }
    let rows = places.len();
    for letter in read(kafka.bootstrap(), "letters.dead") {
        let number =
            |name| letter.header(name).and_then(|value| value.parse::<i64>().ok()).expect("a number");
        let place = (number("sluice.partition") as i32, number("sluice.offset"));
        assert!(places.insert(place), "{place:?} ended twice");
        let revision = letter.header("sluice.revision").expect("a revision");
        let index = names.iter().position(|name| revision.starts_with(name.as_str())).expect("one of ours");
        assert_eq!(letter.header("sluice.code"), Some(revisions[index].code), "{place:?}");
    }
    assert_eq!(used.len(), 2, "records met one revision only");
    assert_eq!((places.len() as u64, (places.len() - rows) as u64), (sent, sent / 100));
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, offset) in places {
        let end = ends.entry(partition).or_default();
        assert_eq!(offset, *end, "record {end} of partition {partition} is lost");
        *end += 1;
    }
}
