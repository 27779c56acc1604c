//! Everything that runs, and what is done to it: a broker, ClickHouse, hosts, a proxy between each host
//! and each server.
//!
//! State: the parts, and the faults under way with the time at which each ends. One thread does all of
//! it; only restarts of the servers, which take seconds, have threads of their own. Whatever runs ends
//! with the handle.

mod inject;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::folder::Folder;
use super::group::opened_early;
use super::host::Host;
use super::revisions::Revisions;
use super::schedule::{Fault, Peer};
use super::{DEAD_LETTER_TOPIC, Delivery, GROUP, PARTITIONS, TOPIC};
use crate::support::clickhouse_server::ClickHouse;
use crate::support::kafka::ApacheKafka;
use crate::support::proxy::{Answers, Proxy};
use crate::support::sluice::Configuration;

/// Hosts that there can be, of which [`AT_FIRST`] are there at first.
pub(super) const SLOTS: usize = 4;
const AT_FIRST: usize = 3;
/// Produce, OffsetCommit, InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, EndTxn, TxnOffsetCommit.
const COMMITS: Answers = Answers::Kafka(&[0, 8, 22, 24, 25, 26, 28]);
/// Time that a host has to drain.
const DRAIN: &str = "10s";
/// When a host that was told to drain hangs; it bounds its own drain at [`DRAIN`].
const HUNG: Duration = Duration::from_secs(60);
/// So many ends of its own in a row, and never ready in between: it keeps dying.
const KEEPS_DYING: usize = 5;
/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// A host that may be there.
struct Slot {
    kafka: Proxy,
    clickhouse: Proxy,
    /// It is to be there.
    wanted: bool,
    host: Option<Host>,
    revision: usize,
    /// Processes it has had.
    starts: usize,
    frozen: bool,
    /// It was told to drain then.
    draining: Option<Instant>,
    /// Ends of its own since it was last ready.
    deaths: usize,
}

/// How a fault ends.
#[derive(Clone, Copy, Debug)]
enum End {
    StartHost(usize),
    Continue(usize),
    Heal(usize, Peer),
    StartClickHouse,
    StartBroker,
    ContinueBroker,
}

/// See the module documentation.
pub(super) struct Cluster {
    slots: Vec<Slot>,
    broker: Arc<Mutex<ApacheKafka>>,
    clickhouse: Arc<Mutex<ClickHouse>>,
    brokers: String,
    clickhouse_url: String,
    delivery: Delivery,
    revisions: Revisions,
    ends: Vec<(Instant, End)>,
    restarts: Vec<(&'static str, JoinHandle<()>)>,
    /// How often each fault happened.
    pub(super) faults: BTreeMap<Fault, u64>,
    /// SIGKILLs.
    pub(super) kills: u64,
    /// Ends of hosts that nobody asked for.
    pub(super) exits: u64,
    /// Drains that ended with something unfinished.
    pub(super) unfinished: u64,
    /// Places where a transaction hung that the broker's operator ended.
    pub(super) ended: u64,
    /// Restarts of the broker as its operator would, since the group did not go on.
    pub(super) restarted: u64,
    /// A host gave up, since the broker does not say how far the group is.
    offsets_unknown: bool,
    /// Why this run has failed, whatever the records say.
    pub(super) trouble: Vec<String>,
    pub(super) folder: Folder,
}

impl Cluster {
    /// Starts everything but the hosts.
    pub(super) fn start(folder: Folder, delivery: Delivery) -> Self {
        let revisions = Revisions::build();
        let proxies: Vec<_> =
            (0..SLOTS).map(|_| (Proxy::start(COMMITS), Proxy::start(Answers::All))).collect();
        let names: Vec<String> = (0..SLOTS).map(|slot| format!("HOST{slot}")).collect();
        let listeners: Vec<(&str, u16)> = names
            .iter()
            .zip(&proxies)
            .map(|(name, (kafka, _))| (name.as_str(), kafka.address().port()))
            .collect();
        let (broker, addresses) = ApacheKafka::start_behind(&[], &listeners);
        broker.create_topic(TOPIC, PARTITIONS);
        broker.create_topic_with(DEAD_LETTER_TOPIC, 3, &[("max.message.bytes", "4194304")]);
        let clickhouse = ClickHouse::start();
        let clickhouse_url = clickhouse.url();
        let clickhouse_address: SocketAddr =
            clickhouse_url.trim_start_matches("http://").parse().expect("an address");
        for ((kafka, clickhouse), address) in proxies.iter().zip(addresses) {
            kafka.forward_to(address);
            clickhouse.forward_to(clickhouse_address);
        }
        let slots = proxies.into_iter().enumerate().map(|(slot, (kafka, clickhouse))| Slot {
            kafka,
            clickhouse,
            wanted: slot < AT_FIRST,
            host: None,
            revision: 0,
            starts: 0,
            frozen: false,
            draining: None,
            deaths: 0,
        });
        Self {
            slots: slots.collect(),
            brokers: broker.bootstrap().to_owned(),
            broker: Arc::new(Mutex::new(broker)),
            clickhouse: Arc::new(Mutex::new(clickhouse)),
            clickhouse_url,
            delivery,
            revisions,
            ends: Vec::new(),
            restarts: Vec::new(),
            faults: BTreeMap::new(),
            kills: 0,
            exits: 0,
            unfinished: 0,
            ended: 0,
            restarted: 0,
            offsets_unknown: false,
            trouble: Vec::new(),
            folder,
        }
    }

    /// The broker, for clients that meet no faults of the network.
    pub(super) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Where the broker has its settings, data and log.
    pub(super) fn broker_directory(&self) -> PathBuf {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).directory().to_owned()
    }

    /// ClickHouse, for clients that meet no faults of the network.
    pub(super) fn clickhouse_url(&self) -> &str {
        &self.clickhouse_url
    }

    /// Runs a statement on ClickHouse.
    pub(super) fn execute(&self, statement: &str) {
        self.clickhouse.lock().unwrap_or_else(PoisonError::into_inner).execute(statement);
    }

    /// Starts the hosts that are to be there.
    pub(super) fn start_hosts(&mut self) {
        for slot in 0..SLOTS {
            self.start_host(slot);
        }
    }

    /// Answers that the proxies have swallowed.
    pub(super) fn swallowed(&self) -> u64 {
        self.slots.iter().map(|slot| slot.kafka.swallowed() + slot.clickhouse.swallowed()).sum()
    }

    /// Whether a broker is there to be asked.
    pub(super) fn has_broker(&self) -> bool {
        let away = |end: &End| matches!(end, End::StartBroker | End::ContinueBroker);
        !self.ends.iter().any(|(_, end)| away(end))
            && !self.restarts.iter().any(|(what, _)| *what == "the broker")
    }

    /// Whether no fault is under way and every host that is to be there is.
    pub(super) fn is_whole(&self) -> bool {
        self.ends.is_empty()
            && self.restarts.is_empty()
            && self.slots.iter().all(|slot| slot.draining.is_none() && slot.wanted == slot.host.is_some())
    }

    /// Everything that the group's coordinator has logged.
    pub(super) fn broker_log(&self) -> String {
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::fs::read(self.folder.broker_log()).unwrap_or_default();
        let now = std::fs::read(broker.directory().join("kafka.log")).unwrap_or_default();
        String::from_utf8_lossy(&[before, now].concat()).into_owned()
    }

    /// Does what the broker's operator would where the group does not go on and the cause is the broker's: ends
    /// transactions that hang, as `/ready` says, or restarts it ([`opened_early`](super::group::opened_early), or
    /// offsets of the group of which hosts say that they are not known). Returns whether it did.
    pub(super) fn cure(&mut self) -> bool {
        if !self.has_broker() {
            return false;
        }
        let broker = self.broker.lock().unwrap_or_else(PoisonError::into_inner);
        let hanging =
            broker.transactions(&["find-hanging", "--broker-id", "1", "--max-transaction-timeout", "1"]);
        let mut ended = 0;
        for line in hanging.lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [topic, partition, _, _, _, start, ..] = columns[..] else { continue };
            if start.parse::<u64>().is_err() {
                continue; // The head of the table.
            }
            self.folder.event(format_args!(
                "a transaction hangs in {topic} {partition} from {start} on; its operator ends it"
            ));
            let place = ["--topic", topic, "--partition", partition, "--start-offset", start];
            broker.transactions(&[&["abort"][..], &place].concat());
            ended += 1;
        }
        if ended > 0 {
            self.ended += ended;
            self.offsets_unknown = false;
            return true;
        }
        let log = std::fs::read(broker.directory().join("kafka.log")).unwrap_or_default();
        let is_early = opened_early(&String::from_utf8_lossy(&log), GROUP) > 0;
        if !is_early && !self.offsets_unknown {
            return false;
        }
        broker.stop();
        drop(broker);
        self.restarted += 1;
        let state = if is_early {
            "opened the group's coordinator too early"
        } else {
            "kept the offsets of the group unknown"
        };
        self.folder.event(format_args!("the broker had {state}; its operator restarts it"));
        self.offsets_unknown = false;
        self.later(Duration::ZERO, End::StartBroker);
        true
    }

    /// Lets time pass, and ends what is due.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.tick();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    /// Ends every fault now, and waits until everybody is there again.
    pub(super) fn heal(&mut self) {
        self.folder.event("everything heals");
        for (due, _) in &mut self.ends {
            *due = Instant::now();
        }
        for slot in &self.slots {
            slot.kafka.heal();
            slot.clickhouse.heal();
        }
        let until = Instant::now() + 2 * HUNG;
        while !self.is_whole() && self.trouble.is_empty() {
            if Instant::now() > until {
                self.trouble.push("not everybody is there again after everything has healed".to_owned());
            }
            self.pass(TICK);
        }
    }

    /// Whether the hosts that are there have nothing in flight.
    pub(super) fn is_drained(&mut self) -> bool {
        let mut hosts = self.slots.iter_mut().filter_map(|slot| slot.host.as_mut());
        hosts.all(|host| host.in_flight() == Some(0))
    }

    /// Lets every host drain, which each must now do without anything unfinished.
    pub(super) fn stop_hosts(&mut self) {
        let unfinished = self.unfinished;
        for slot in 0..SLOTS {
            self.slots[slot].wanted = false;
            if self.slots[slot].host.is_some() {
                self.drain_host(slot, "stops");
            }
        }
        while self.slots.iter().any(|slot| slot.host.is_some()) && self.trouble.is_empty() {
            self.pass(TICK);
        }
        if self.unfinished > unfinished {
            self.trouble.push("a host with nothing left to do did not exit with 0".to_owned());
        }
    }

    /// The end of every host's log.
    pub(super) fn last_words(&self) -> String {
        let words = self.slots.iter().enumerate().map(|(number, slot)| match &slot.host {
            Some(host) => format!("host {number}: {}\n", host.last_words()),
            None => format!("host {number} is not there\n"),
        });
        words.collect()
    }

    fn later(&mut self, wait: Duration, end: End) {
        self.ends.push((Instant::now() + wait, end));
    }

    fn start_host(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        if !slot.wanted || slot.host.is_some() {
            return;
        }
        let configuration = Configuration::new(
            &slot.kafka.address().to_string(),
            &format!("http://{}", slot.clickhouse.address()),
        )
        .set("PIPELINES__PURCHASES__BATCH__ROWS", "500")
        .set("PIPELINES__PURCHASES__BATCH__BYTES", "8MiB")
        .set("PIPELINES__PURCHASES__BATCH__LINGER", "200ms")
        .set("CLICKHOUSE__REQUEST_TIMEOUT", "5s")
        .set("RESOURCES__WORKERS", "1")
        .set("RESOURCES__IN_FLIGHT_BYTES", "64MiB")
        .set("RESOURCES__DRAIN_TIMEOUT", DRAIN)
        .set("KAFKA__PROPERTIES__SESSION_TIMEOUT_MS", "6000")
        .set("KAFKA__PROPERTIES__HEARTBEAT_INTERVAL_MS", "500")
        .set("KAFKA__PROPERTIES__SOCKET_TIMEOUT_MS", "10000");
        let configuration = match self.delivery {
            Delivery::AtLeastOnce => configuration.set("PIPELINES__PURCHASES__DELIVERY", "at-least-once"),
            Delivery::ExactlyOnce => configuration
                .set("PIPELINES__PURCHASES__DELIVERY", "exactly-once")
                .set("KAFKA__INSTANCE", &format!("chaos-{number}")),
        };
        let configuration = self.revisions.configure(configuration, slot.revision);
        slot.starts += 1;
        let log = self.folder.file(&format!("host-{number}.{:03}.log", slot.starts));
        slot.host = Some(Host::start(&configuration, log));
        slot.frozen = false;
        slot.draining = None;
        let (revision, starts) = (slot.revision, slot.starts);
        self.folder.event(format_args!("host {number} started, process {starts}, modules {revision}"));
    }

    fn drain_host(&mut self, number: usize, why: &str) {
        let slot = &mut self.slots[number];
        slot.draining = Some(Instant::now());
        slot.host.as_ref().expect("it is there").signal("-TERM");
        self.folder.event(format_args!("host {number} {why}"));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let (due, ends) = std::mem::take(&mut self.ends).into_iter().partition(|(at, _)| *at <= now);
        self.ends = ends;
        let due: Vec<(Instant, End)> = due;
        for (_, end) in due {
            self.end(end);
        }
        let (ended, restarts): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.restarts).into_iter().partition(|(_, thread)| thread.is_finished());
        self.restarts = restarts;
        for (what, thread) in ended {
            self.folder.event(format_args!("{what} is there again"));
            if thread.join().is_err() {
                self.trouble.push(format!("{what} could not be started again"));
            }
        }
        for slot in 0..SLOTS {
            self.watch(slot);
        }
    }

    fn end(&mut self, end: End) {
        match end {
            End::StartHost(slot) => self.start_host(slot),
            End::Continue(number) => {
                let slot = &mut self.slots[number];
                if let Some(host) = slot.host.as_ref().filter(|_| slot.frozen) {
                    host.signal("-CONT");
                    slot.frozen = false;
                    self.folder.event(format_args!("host {number} goes on"));
                }
            }
            End::Heal(number, peer) => {
                match peer {
                    Peer::Kafka => self.slots[number].kafka.heal(),
                    Peer::ClickHouse => self.slots[number].clickhouse.heal(),
                }
                self.folder.event(format_args!("host {number} and {peer:?}: healed"));
            }
            End::StartClickHouse => {
                let clickhouse = self.clickhouse.clone();
                let restart = move || clickhouse.lock().unwrap_or_else(PoisonError::into_inner).restart();
                self.restarts.push(("ClickHouse", std::thread::spawn(restart)));
            }
            End::ContinueBroker => {
                self.broker.lock().unwrap_or_else(PoisonError::into_inner).signal("-CONT");
                self.folder.event("the broker goes on");
            }
            End::StartBroker => {
                let (broker, kept) = (self.broker.clone(), self.folder.broker_log());
                let restart = move || {
                    let mut broker = broker.lock().unwrap_or_else(PoisonError::into_inner);
                    Folder::append_broker_log(&kept, &broker.directory().join("kafka.log"));
                    broker.restart();
                };
                self.restarts.push(("the broker", std::thread::spawn(restart)));
            }
        }
    }

    /// Looks whether a host has ended, or hangs.
    fn watch(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        let Some(host) = &mut slot.host else { return };
        let Some(status) = host.ended() else {
            if slot.deaths > 0 && !slot.frozen && host.is_ready() {
                slot.deaths = 0;
            }
            if slot.draining.is_some_and(|since| since.elapsed() > HUNG) {
                self.trouble
                    .push(format!("host {number} was told to drain and hangs: {}", host.last_words()));
            }
            return;
        };
        let words = host.last_words();
        slot.host = None;
        let asked = slot.draining.take().is_some();
        if asked {
            self.folder.event(format_args!("host {number} has drained: {status}"));
            // One that was told to stop before it had begun has left nothing either.
            if !status.success() && !words.contains("stopped before the start was complete") {
                self.unfinished += 1;
                self.folder.event(format_args!("host {number} had something unfinished: {words}"));
            }
        } else {
            self.exits += 1;
            slot.deaths += 1;
            let deaths = slot.deaths;
            self.folder.event(format_args!("host {number} ended by itself: {status}: {words}"));
            self.offsets_unknown |= words.contains("the committed offsets are not known after");
            if deaths >= KEEPS_DYING {
                self.trouble.push(format!("host {number} keeps dying: {words}"));
            }
        }
        if self.slots[number].wanted {
            self.later(Duration::from_millis(if asked { 0 } else { 500 }), End::StartHost(number));
        }
    }
}

impl Slot {
    /// Whether its host runs and was told nothing else.
    fn is_well(&self) -> bool {
        self.host.is_some() && !self.frozen && self.draining.is_none()
    }
}
