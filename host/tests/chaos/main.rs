//! Chaos: a group of hosts under load, with everything killed, frozen and cut under it, and then the
//! count of where every record ended. Real processes: Apache Kafka, the ClickHouse engine, sluice.
//!
//! It is a program of its own, so that its last line is the last one:
//! `chaos: kills=N rebalances=N records=N lost=0 duplicated=0 dead_letters_lost=0 dead_letters_duplicated=0`.
//! `make chaos` runs it; `KILLS` is the number of SIGKILLs to reach, `CHAOS_SEED` repeats the events of a
//! run, `CHAOS_DELIVERY` is what the hosts promise. A run that fails leaves `target/chaos/SEED`; with
//! `CHAOS_KEEP=1` one that hangs leaves everything running, until it is told to end.

#[path = "../support/mod.rs"]
mod support;

mod check;
mod cluster;
mod folder;
mod group;
mod host;
mod proof;
mod revisions;
mod schedule;
mod traffic;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use check::{Findings, Observed, Places};
use cluster::{Cluster, SLOTS};
use folder::Folder;
use group::Group;
use schedule::Schedule;
use traffic::{Producer, Traffic};

const TOPIC: &str = "purchases";
const DEAD_LETTER_TOPIC: &str = "purchases.dead-letters";
const TABLE: &str = "purchases";
const GROUP: &str = "sluice-purchases";
const PARTITIONS: i32 = 12;
/// Records a second.
const RATE: f64 = 400.0;
/// SIGKILLs of a run in CI.
const KILLS: u64 = 15;
/// Records that the group must get past after each burst of faults.
const PROGRESS: i64 = 200;
/// Longest wait for that, and for the group to get past the last record: longer than a group waits for a
/// member that does not answer.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the hosts promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    /// Nothing is lost; what was in flight may be there again.
    AtLeastOnce,
    /// Everything is there once.
    ExactlyOnce,
}

/// What a run is to be.
struct Settings {
    seed: u64,
    kills: u64,
    delivery: Delivery,
    /// Keep everything running where it hangs.
    keep: bool,
}

impl Settings {
    fn read() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let number = |name: &str, default: u64| match variable(name) {
            Some(text) => text.parse().map_err(|_| format!("{name} is {text:?}; write a number")),
            None => Ok(default),
        };
        let delivery = match variable("CHAOS_DELIVERY").as_deref() {
            Some("at-least-once") => Delivery::AtLeastOnce,
            None | Some("exactly-once") => Delivery::ExactlyOnce,
            Some(other) => {
                return Err(format!("CHAOS_DELIVERY is {other:?}; write at-least-once or exactly-once"));
            }
        };
        Ok(Self {
            seed: number("CHAOS_SEED", rand::random::<u32>().into())?,
            kills: number("KILLS", KILLS)?,
            delivery,
            keep: variable("CHAOS_KEEP").is_some_and(|text| text != "0"),
        })
    }
}

fn main() -> ExitCode {
    // `cargo test NAME` and `cargo test -- --list` reach programs like this one too.
    let mut arguments = std::env::args().skip(1);
    if arguments
        .any(|argument| argument == "--list" || !(argument.starts_with('-') || "chaos".contains(&*argument)))
    {
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    if !settings.keep {
        watchdog(Duration::from_secs(900 + 60 * settings.kills));
    }
    run(&settings)
}

/// Ends this process, and with it everything that it started, should something hang that has no bound.
fn watchdog(limit: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        eprintln!("chaos: hung: not done after {} s", limit.as_secs());
        std::process::exit(3);
    });
}

fn run(settings: &Settings) -> ExitCode {
    let Settings { seed, kills, delivery, keep } = *settings;
    println!("chaos: seed={seed} kills={kills} delivery={delivery:?} (CHAOS_SEED={seed} repeats the events)");
    let began = Instant::now();
    let mut cluster = Cluster::start(Folder::new(seed), delivery);
    let producer = Producer::start(seed, cluster.brokers(), TOPIC, RATE);
    cluster.start_hosts();
    let group = Group::new(cluster.brokers(), GROUP, TOPIC, PARTITIONS);
    make_progress(&mut cluster, &group);

    let mut schedule = Schedule::new(seed);
    while cluster.kills < kills && cluster.trouble.is_empty() {
        for event in schedule.burst(SLOTS) {
            cluster.pass(event.after);
            cluster.inject(&event);
            if producer.ended() {
                cluster.trouble.push("the producer ended".to_owned());
            }
        }
        make_progress(&mut cluster, &group);
        let (seconds, sent) = (began.elapsed().as_secs(), producer.delivered());
        println!("chaos: {seconds} s, {} kills, {sent} records sent", cluster.kills);
    }
    let produced = producer.stop();
    cluster.heal();
    wait_for_the_end(&mut cluster, &group);
    if keep && !cluster.trouble.is_empty() {
        keep_running(&mut cluster);
    }
    let last = report_of_the_group(&group);
    cluster.stop_hosts();

    let log = cluster.broker_log();
    let (rebalances, early) = (group::generations(&log, GROUP), group::opened_early(&log, GROUP));
    let (brokers, clickhouse) = (cluster.brokers().to_owned(), cluster.clickhouse_url().to_owned());
    let places = Places {
        brokers: &brokers,
        clickhouse: &clickhouse,
        topic: TOPIC,
        dead_letter_topic: DEAD_LETTER_TOPIC,
        table: TABLE,
    };
    let traffic = Traffic::new(seed);
    let (mut findings, mut chains) = (Findings::default(), 0);
    match Observed::read(&places) {
        Ok(observed) => {
            findings = observed.compare(&traffic);
            chains = observed.revisions();
            match produced {
                Ok(produced) if produced > findings.records => cluster.trouble.push(format!(
                    "{produced} records were acknowledged, and {} are in the topic",
                    findings.records
                )),
                Ok(_) => {}
                Err(error) => cluster.trouble.push(error),
            }
            if is_good(&findings, delivery) && cluster.trouble.is_empty() {
                let proven = proof::the_check_finds_what_is_wrong(&cluster, &places, &traffic, observed);
                cluster.trouble.extend(proven.err());
            }
        }
        Err(error) => cluster.trouble.push(format!("the outcome cannot be read: {error}")),
    }

    let good = is_good(&findings, delivery) && cluster.trouble.is_empty();
    if good {
        cluster.folder.keep_events_only();
    } else {
        leave_evidence(&cluster, &findings, &last, rebalances);
    }
    println!("chaos: faults:{}", faults(&cluster));
    println!(
        "chaos: {} answers swallowed, {} hosts ended by themselves, {} drains unfinished, {chains} chains, {} dead letters due",
        cluster.swallowed(),
        cluster.exits,
        cluster.unfinished,
        findings.dead_letters
    );
    println!(
        "chaos: Apache Kafka opened the group's coordinator too early {early} times; where the group did not go on \
         its operator restarted it {} times, and ended transactions that hung in {} places",
        cluster.restarted, cluster.ended
    );
    for trouble in &cluster.trouble {
        println!("chaos: FAILED: {trouble}");
    }
    if !good {
        println!("chaos: what is needed to understand it is in {}", cluster.folder.path().display());
    }
    let Findings { records, lost, duplicated, dead_letters_lost, dead_letters_duplicated, .. } = findings;
    let kills = cluster.kills;
    drop(cluster);
    println!(
        "chaos: kills={kills} rebalances={rebalances} records={records} lost={lost} duplicated={duplicated} \
         dead_letters_lost={dead_letters_lost} dead_letters_duplicated={dead_letters_duplicated}"
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// At-least-once may repeat what was in flight, and must lose nothing.
fn is_good(findings: &Findings, delivery: Delivery) -> bool {
    let lost = findings.lost + findings.dead_letters_lost;
    let repeated = findings.duplicated + findings.dead_letters_duplicated;
    findings.records > 0 && lost == 0 && (repeated == 0 || delivery == Delivery::AtLeastOnce)
}

/// Waits until the group has got further than it is. Faults under way go on, and end meanwhile.
fn make_progress(cluster: &mut Cluster, group: &Group) {
    let mut until = Instant::now() + PATIENCE;
    let mut from = None;
    while cluster.trouble.is_empty() {
        cluster.pass(Duration::from_millis(200));
        if cluster.has_broker()
            && let Ok(passed) = group.passed()
            && passed >= *from.get_or_insert(passed) + PROGRESS
        {
            cluster.folder.event(format_args!("the group is at {passed}"));
            return;
        }
        if Instant::now() > until && cluster.cure() {
            until = Instant::now() + PATIENCE;
        } else if Instant::now() > until {
            let words = cluster.last_words();
            cluster.trouble.push(format!("the group made no progress within {PATIENCE:?}\n{words}"));
        }
    }
}

/// Waits until the group is past the last record, nothing is pending and nothing in flight.
fn wait_for_the_end(cluster: &mut Cluster, group: &Group) {
    let mut until = Instant::now() + PATIENCE;
    while cluster.trouble.is_empty() {
        cluster.pass(Duration::from_millis(200));
        let settled =
            |partition: &group::Committed| partition.offset == partition.end && partition.metadata.is_empty();
        if group.committed().is_ok_and(|partitions| partitions.iter().all(settled)) && cluster.is_drained() {
            cluster.folder.event("everything is settled");
            return;
        }
        if Instant::now() > until && cluster.cure() {
            until = Instant::now() + PATIENCE;
        } else if Instant::now() > until {
            let words = cluster.last_words();
            cluster.trouble.push(format!("the topic was not drained within {PATIENCE:?}\n{words}"));
        }
    }
}

/// Holds a run that hangs, so that somebody can look at it.
fn keep_running(cluster: &mut Cluster) {
    let end = cluster.folder.file("end");
    println!("chaos: FAILED: {}", cluster.trouble.join("\n"));
    println!(
        "chaos: kept: broker {} in {}, ClickHouse {}; touch {} to end the run",
        cluster.brokers(),
        cluster.broker_directory().display(),
        cluster.clickhouse_url(),
        end.display()
    );
    while !end.exists() {
        cluster.pass(Duration::from_secs(1));
    }
}

/// Committed offsets and metadata, a line a partition.
fn report_of_the_group(group: &Group) -> String {
    match group.committed() {
        Ok(partitions) => partitions.iter().fold(String::new(), |mut text, partition| {
            let group::Committed { partition, offset, end, metadata } = partition;
            let _ = writeln!(text, "{partition}: offset {offset} of {end}, metadata {metadata:?}");
            text
        }),
        Err(error) => format!("the group cannot be asked: {error}\n"),
    }
}

fn faults(cluster: &Cluster) -> String {
    cluster.faults.iter().fold(String::new(), |mut text, (fault, count)| {
        let _ = write!(text, " {fault:?}={count}");
        text
    })
}

/// Beside the logs of the hosts, which are there already.
fn leave_evidence(cluster: &Cluster, findings: &Findings, group: &str, rebalances: u64) {
    let folder = &cluster.folder;
    folder.write("broker.log", &cluster.broker_log());
    folder.write("group.txt", &format!("{rebalances} generations\n{group}"));
    folder.write("offending.txt", &(findings.offending.join("\n") + "\n"));
    folder.write("trouble.txt", &(cluster.trouble.join("\n") + "\n"));
}
