//! Hostile modules in a running program, on the real parts: records keep flowing, each ends once, and
//! the process comes back to what it was.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::clickhouse_server::ClickHouse;
use support::guests::{
    CONTRACT, bomb, hostile_mapper, hostile_to_purchases, hostile_validator, overflowing_validator,
    purchase_modules, talking_validator, typed, validator_with_init, with_prelude,
};
use support::kafka::ApacheKafka;
use support::sluice::{Configuration, PATIENCE, Sluice};
use support::verdicts::{Repeats, Traffic, read};

/// Memory that the process may keep beyond what it had: allocators hold on to some, and instance slots
/// that were used stay mapped.
const MEMORY_MARGIN: u64 = 192 << 20;

struct Stage {
    kafka: ApacheKafka,
    clickhouse: ClickHouse,
    folder: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let kafka = ApacheKafka::start();
        kafka.create_topic("purchases", 4);
        kafka.create_topic_with("purchases.dead-letters", 1, &[("max.message.bytes", "4194304")]);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("validators")).expect("a folder");
        for name in ["validators/purchase-rules.wasm", "purchase-rows.wasm"] {
            std::fs::copy(purchase_modules().join(name), folder.path().join(name)).expect("copied");
        }
        Self { kafka, clickhouse: ClickHouse::start(), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configuration(&self) -> Configuration {
        let path = |name: &str| self.path(name).display().to_string();
        Configuration::new(self.kafka.bootstrap(), &self.clickhouse.url())
            .set("PIPELINES__PURCHASES__VALIDATORS", &path("validators"))
            .set("PIPELINES__PURCHASES__MAPPER", &path("purchase-rows.wasm"))
            .set("PIPELINES__PURCHASES__BATCH__ROWS", "2000")
            .set("PIPELINES__PURCHASES__BATCH__LINGER", "200ms")
            .set("MODULES__POLL", "1s")
            .set("MODULES__CALL_TIMEOUT", "100ms")
    }

    /// Puts a validator ahead of the shipped one, in one step.
    fn drop_in(&self, bytes: &[u8]) {
        std::fs::write(self.path("new"), bytes).expect("written");
        std::fs::rename(self.path("new"), self.path("validators/hostile.wasm")).expect("renamed");
    }

    /// Takes it away, and waits until nothing is said of it any more.
    fn take_away(&self, sluice: &Sluice) {
        std::fs::remove_file(self.path("validators/hostile.wasm")).expect("removed");
        sluice.wait_until("the hostile module is gone", |_| self.status().is_none());
    }

    fn status(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.path("validators/hostile.status.json")).ok()?;
        Some(serde_json::from_str(&text).expect("a status file is whole whenever it is read"))
    }

    #[track_caller]
    fn wait_for_refusal(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            let reason = status.as_ref().and_then(|status| status["problem"]["reason"].as_str());
            if reason.is_some_and(|reason| reason.contains(words)) {
                return assert_eq!(status.unwrap()["live"], Value::Null);
            }
            assert!(Instant::now() < deadline, "waited in vain for {words:?}: {status:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What a process holds, by `/proc` (proc_pid_status(5)).
#[derive(Clone, Copy, Debug)]
struct Held {
    memory: u64,
    threads: usize,
    files: usize,
    children: usize,
}

impl Held {
    fn of(sluice: &Sluice) -> Self {
        let process = PathBuf::from(format!("/proc/{}", sluice.pid()));
        let status = std::fs::read_to_string(process.join("status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        let threads: Vec<_> = std::fs::read_dir(process.join("task")).expect("it runs").flatten().collect();
        let children = threads.iter().map(|thread| {
            let listed = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            listed.split_whitespace().count()
        });
        let files = std::fs::read_dir(process.join("fd")).expect("it runs").count();
        Self { memory: kibibytes << 10, threads: threads.len(), files, children: children.sum() }
    }

    /// Threads that wait for more blocking work, and connections, end after a while.
    fn is_back_at(&self, before: &Self) -> bool {
        self.memory <= before.memory + MEMORY_MARGIN
            && self.threads <= before.threads + 4
            && self.files <= before.files + 8
            && self.children <= before.children
    }
}

fn is_done(sluice: &Sluice) -> bool {
    let status = sluice.status();
    let all = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
    all.len() == 4 && all.iter().all(|partition| partition["lag"] == 0 && partition["in_flight"] == 0)
}

/// Another thousand records come through.
fn wait_for_flow(sluice: &Sluice) {
    let before = sluice.settled();
    sluice.wait_until("records flow", |sluice| sluice.settled() >= before + 1_000);
}

#[test]
fn files_that_no_gate_lets_in_change_nothing() {
    let stage = Stage::new();
    let sluice = Sluice::start(&stage.configuration().set("MODULES__COMPILE_TIMEOUT", "1s"));
    let late = CONTRACT.replace("@0.1.0", "@0.2.0");
    let text = with_prelude(include_str!("../../testdata/guests/validator.wat"));
    let of_a_clock = text.replacen("(module", r#"(module (import "env" "now" (func $now (result i64)))"#, 1);
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("it looks like text", b"#!/bin/sh\nrm -rf /\n".to_vec()),
        ("copy it again", hostile_validator(|text| text)[..1000].to_vec()),
        ("speaks version 0.2.0", typed(&text.replace("@0.1.0", "@0.2.0"), &late, "validator")),
        ("a module may import nothing but sluice:module/log", typed(&of_a_clock, CONTRACT, "validator")),
        ("is a mapper, but a validator is due here", hostile_mapper(|text| text)),
        ("fails in init: wasm trap", validator_with_init("(unreachable)")),
        ("for init, which is half of its call_timeout", validator_with_init("(call $endless) (unreachable)")),
        ("fails in init: asked for", validator_with_init("(call $hoard) (unreachable)")),
        ("makes the compiler crash (its stack overflows)", overflowing_validator()),
        ("takes more than 1s of processor time to compile", bomb(20_000, 200)),
    ];
    let traffic = Traffic::generate(51, 100_000, 0.02);
    let enough = AtomicBool::new(false);
    let traffic = std::thread::scope(|scope| {
        let sending =
            scope.spawn(|| traffic.send_until(stage.kafka.bootstrap(), "purchases", 1_000.0, &enough));
        wait_for_flow(&sluice);
        let before = Held::of(&sluice);
        for (words, bytes) in &files {
            stage.drop_in(bytes);
            stage.wait_for_refusal(words);
            stage.take_away(&sluice);
        }
        let sparse = std::fs::File::create(stage.path("validators/hostile.wasm")).expect("a file");
        sparse.set_len(200 << 20).expect("a hole");
        drop(sparse);
        stage.wait_for_refusal("is larger than 67108864 bytes");
        stage.take_away(&sluice);
        wait_for_flow(&sluice);
        sluice.wait_until("it holds what it held", |sluice| Held::of(sluice).is_back_at(&before));
        enough.store(true, Ordering::Relaxed);
        sending.join().expect("sent")
    });
    sluice.wait_until("the topic is drained", is_done);
    assert_eq!(
        sluice.metric(
            r#"sluice_module_faults_total{kind="trap",module="purchase-rules",pipeline="purchases"}"#
        ),
        0.0
    );
    assert_eq!(sluice.stop(), Some(0));
    let repeats =
        traffic.check(stage.kafka.bootstrap(), "purchases", "purchases.dead-letters", &stage.clickhouse);
    assert_eq!(repeats, Repeats::default());
}

/// Each record is in the table or a dead letter, and once. Answers the dead letters by module and kind.
fn ends(stage: &Stage, count: usize) -> BTreeMap<(String, String), usize> {
    let source = read(stage.kafka.bootstrap(), "purchases");
    assert_eq!(source.len(), count);
    let mut ends: BTreeMap<(i32, i64), u32> =
        source.iter().map(|record| ((record.partition, record.offset), 0)).collect();
    let mut end = |origin: (i32, i64)| {
        *ends.get_mut(&origin).unwrap_or_else(|| panic!("no record is at {origin:?}")) += 1;
    };
    for (partition, offset) in
        stage.clickhouse.rows::<(i32, i64)>("SELECT _partition, _offset FROM purchases")
    {
        end((partition, offset));
    }
    let mut letters = BTreeMap::new();
    for letter in read(stage.kafka.bootstrap(), "purchases.dead-letters") {
        let header = |name| letter.header(name).expect("a dead letter says where it is from").to_owned();
        let number = |name| header(name).parse::<i64>().expect("a number");
        end((number("sluice.partition") as i32, number("sluice.offset")));
        *letters.entry((header("sluice.module"), header("sluice.kind"))).or_default() += 1;
    }
    let wrong: Vec<_> = ends.iter().filter(|(_, times)| **times != 1).take(10).collect();
    assert!(wrong.is_empty(), "records that ended not once: {wrong:?}");
    letters
}

#[test]
fn modules_that_fail_on_everything_cost_what_they_judge_and_no_more() {
    let stage = Stage::new();
    let configuration = stage.configuration();
    let sluice = Sluice::start(&configuration);
    let traffic = Traffic::generate(52, 200_000, 0.0);
    let enough = AtomicBool::new(false);
    let refused_as = |kind: &'static str| {
        move |sluice: &Sluice| {
            let series = format!(
                r#"sluice_dead_letters_total{{kind="{kind}",module="hostile",pipeline="purchases"}}"#
            );
            sluice.metric(&series) > 0.0
        }
    };
    let (sluice, sent) = std::thread::scope(|scope| {
        let sending =
            scope.spawn(|| traffic.send_until(stage.kafka.bootstrap(), "purchases", 1_000.0, &enough));
        wait_for_flow(&sluice);
        let before = Held::of(&sluice);
        for (letter, kind) in
            [('T', "trap"), ('Z', "trap"), ('H', "memory"), ('L', "timeout"), ('X', "bad-row")]
        {
            let known = sluice.settled();
            stage.drop_in(&hostile_to_purchases(letter));
            sluice.wait_until("it fails", |sluice| sluice.settled() > known && refused_as(kind)(sluice));
            stage.take_away(&sluice);
            wait_for_flow(&sluice);
        }
        // One that only talks: it is heard a little, and every record goes through.
        let talker = |text: &str| text.replace("(i32.const 105)) ;; i", "(i32.const 123)) ;; i");
        assert_ne!(
            talker(include_str!("../../testdata/guests/talker.wat")),
            include_str!("../../testdata/guests/talker.wat")
        );
        stage.drop_in(&talking_validator(talker));
        let dropped = r#"sluice_module_log_lines_dropped_total{module="hostile",pipeline="purchases"}"#;
        sluice.wait_until("lines are dropped", |sluice| sluice.metric(dropped) > 0.0);
        stage.take_away(&sluice);
        wait_for_flow(&sluice);
        sluice.wait_until("it holds what it held", |sluice| Held::of(sluice).is_back_at(&before));

        // Killed while one hangs on everything: what was refused unrun is refused again by the next.
        stage.drop_in(&hostile_to_purchases('L'));
        let unjudged = r#"sluice_module_unjudged_total{module="hostile",pipeline="purchases"}"#;
        sluice.wait_until("records are refused unrun", |sluice| sluice.metric(unjudged) > 0.0);
        sluice.kill();
        let sluice = Sluice::start(&configuration);
        sluice.wait_until("it judges again", |sluice| sluice.settled() > 0);
        stage.take_away(&sluice);
        wait_for_flow(&sluice);
        enough.store(true, Ordering::Relaxed);
        (sluice, sending.join().expect("sent").len())
    });
    sluice.wait_until("the topic is drained", is_done);
    assert_eq!(sluice.stop(), Some(0));
    let letters = ends(&stage, sent);
    assert!(letters.keys().all(|(module, _)| module == "hostile"), "{letters:?}");
    let kinds: Vec<_> = letters.keys().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds, ["bad-row", "memory", "timeout", "trap"]);
}
