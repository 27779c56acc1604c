//! The stage of a test: a topic, a table and dead letters of its own, on servers that all tests share.
//!
//! Records are letters. The mapper makes a row of each, and the validator rejects those that its
//! settings name (`testdata/guests/choosy.wat`). State: how many records each partition has. Invariant:
//! the topic is written here alone and without transactions, so offsets are dense.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluice::domain::intent::PendingBatches;
use sluice::domain::ledger::PartitionId;
use sluice::kafka::reader::OwnedRecord;

use crate::support::clickhouse_server::ClickHouse;
use crate::support::guests::{choosy_validator, hostile_mapper};
use crate::support::kafka::ApacheKafka;
use crate::support::member::committed;
use crate::support::proxy::{Answers, Proxy};
use crate::support::sluice::{Configuration, PATIENCE, Sluice};
use crate::support::verdicts::read;

/// What all tests that run at the moment share.
pub(crate) struct Servers {
    pub(crate) kafka: ApacheKafka,
    pub(crate) clickhouse: ClickHouse,
}

fn servers() -> Arc<Servers> {
    static SHARED: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let properties = [
            ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "500"),
            // A killed member of the newer protocol is missed as soon as one of the older ones.
            ("group.consumer.min.session.timeout.ms", "6000"),
            ("group.consumer.session.timeout.ms", "6000"),
            ("group.consumer.min.heartbeat.interval.ms", "500"),
            ("group.consumer.heartbeat.interval.ms", "500"),
        ];
        let servers = Arc::new(Servers {
            kafka: ApacheKafka::start_with(&properties),
            clickhouse: ClickHouse::start(),
        });
        *shared = Arc::downgrade(&servers);
        servers
    })
}

/// How a record ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a row.
    Row { text: String, revision: String },
    /// With a dead letter.
    Letter { kind: String, code: String, payload: Option<String> },
}

/// What became of the INSERT of a batch whose host was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insert {
    /// It never reached ClickHouse.
    Unsent,
    /// Its rows are there, and nobody was told.
    Unanswered,
}

/// See the module documentation.
pub(crate) struct Stage {
    pub(crate) servers: Arc<Servers>,
    name: String,
    folder: tempfile::TempDir,
    producer: BaseProducer,
    sent: Mutex<BTreeMap<i32, i64>>,
}

impl Stage {
    /// A topic `name`, a topic `name.letters`, and a database `name` with a table `texts`, which has
    /// `clauses` after its columns.
    pub(crate) fn new(name: &str, partitions: i32, clauses: &str) -> Self {
        let window = "SETTINGS non_replicated_deduplication_window = 10000";
        Self::with_table(name, partitions, clauses, window)
    }

    /// As [`Self::new`], with other settings of the table.
    pub(crate) fn with_table(name: &str, partitions: i32, clauses: &str, settings: &str) -> Self {
        let servers = servers();
        servers.kafka.create_topic(name, partitions);
        servers.kafka.create_topic(&format!("{name}.letters"), 1);
        servers.clickhouse.execute(&format!("CREATE DATABASE {name}"));
        servers.clickhouse.execute(&format!(
            "CREATE TABLE {name}.texts (text String, _topic LowCardinality(String), _partition Int32, \
             _offset Int64, _revision LowCardinality(String) {clauses}) \
             ENGINE = MergeTree ORDER BY (_partition, _offset) {settings}"
        ));
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes);
        std::fs::create_dir(folder.path().join("validators")).expect("a folder");
        write("validators/choosy.wasm", &choosy_validator()).expect("written");
        write("mapper.wasm", &hostile_mapper(|text| text)).expect("written");
        let pipeline = format!(
            "clickhouse: {{ database: {name}, migrate_at_start: false }}\n\
             resources: {{ workers: 1 }}\n\
             pipelines:\n  {name}:\n    topics: [{name}]\n    group: {name}\n    \
             dead_letter_topic: {name}.letters\n    delivery: exactly-once\n    validators: validators\n    \
             mapper: mapper.wasm\n    settings: {{ choosy: {{ reject: x }} }}\n    batch: {{ linger: 500ms }}\n"
        );
        write("sluice.yaml", pipeline.as_bytes()).expect("written");
        let producer = ClientConfig::new()
            .set("bootstrap.servers", servers.kafka.bootstrap())
            .create()
            .expect("a producer can be made");
        let sent = (0..partitions).map(|partition| (partition, 0)).collect();
        Self { servers, name: name.to_owned(), folder, producer, sent: Mutex::new(sent) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Configuration of a host of this name. It rejects `x`.
    pub(crate) fn host(&self, instance: &str) -> Configuration {
        self.member(instance)
            .set("KAFKA__PROPERTIES__SESSION_TIMEOUT_MS", "6000")
            .set("KAFKA__PROPERTIES__HEARTBEAT_INTERVAL_MS", "500")
    }

    /// As [`Self::host`], with the session that the brokers' group protocol gives it.
    pub(crate) fn member(&self, instance: &str) -> Configuration {
        Configuration::new(self.servers.kafka.bootstrap(), &self.servers.clickhouse.url())
            .with_file(self.folder.path().join("sluice.yaml"))
            .set("KAFKA__INSTANCE", instance)
    }

    /// Key of the pipeline in the environment.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("PIPELINES__{}__{key}", self.name.to_uppercase())
    }

    /// A metric of the pipeline, with further labels.
    pub(crate) fn metric(&self, host: &Sluice, name: &str, labels: &str) -> f64 {
        host.metric(&format!("{name}{{pipeline=\"{}\"{labels}}}", self.name))
    }

    /// A proxy before ClickHouse.
    pub(crate) fn proxy(&self) -> Proxy {
        let proxy = Proxy::start(Answers::All);
        proxy.forward_to(self.clickhouse_address());
        proxy
    }

    fn clickhouse_address(&self) -> SocketAddr {
        let url = self.servers.clickhouse.url();
        url.strip_prefix("http://").and_then(|address| address.parse().ok()).expect("http://address:port")
    }

    /// Starts a host and waits until it takes records of every partition.
    pub(crate) fn start(&self, configuration: &Configuration) -> Sluice {
        let host = Sluice::start(configuration);
        let all = self.sent().len();
        host.wait_until("it has every partition", |host| {
            host.get("/ready").0 == 200 && partitions(host) == all
        });
        host
    }

    /// Sends records, each a letter, to partitions, and waits for the acknowledgements.
    pub(crate) fn send(&self, records: &[(i32, &str)]) {
        for (partition, letters) in records {
            for letter in letters.chars().map(String::from) {
                let record = BaseRecord::<(), str>::to(&self.name).partition(*partition).payload(&letter);
                self.producer.send(record).map_err(|(error, _)| error).expect("room");
                self.producer.poll(Duration::ZERO);
                let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                *sent.get_mut(partition).expect("the topic has it") += 1;
            }
        }
        self.producer.flush(PATIENCE).expect("acknowledged");
    }

    /// Deletes the topic and makes it again, empty.
    pub(crate) fn make_again(&self) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        self.servers.kafka.delete_topic(&self.name);
        self.servers.kafka.create_topic(&self.name, sent.len() as i32);
        sent.values_mut().for_each(|sent| *sent = 0);
    }

    /// Records sent to each partition.
    pub(crate) fn sent(&self) -> BTreeMap<i32, i64> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Committed offset and metadata.
    pub(crate) fn committed(&self, partition: i32) -> Option<(i64, String)> {
        committed(self.servers.kafka.bootstrap(), &self.name, &self.name, partition)
    }

    /// Whether every record sent is in a batch that the group's metadata lists.
    pub(crate) fn all_is_pending(&self) -> bool {
        self.sent().into_iter().all(|(partition, sent)| {
            let id = PartitionId { topic: self.name.as_str().into(), partition };
            let pending = self.committed(partition).and_then(|(_, metadata)| {
                let pending = PendingBatches::decode(&metadata).expect("the metadata is of sluice")?;
                pending.intents().iter().filter_map(|intent| intent.slice(&id)).map(|slice| slice.end).max()
            });
            pending == Some(sent)
        })
    }

    /// Whether everything sent is settled, and nothing pending.
    pub(crate) fn is_settled(&self) -> bool {
        let settled = |sent| Some((sent, String::new()));
        self.sent().into_iter().all(|(partition, sent)| self.committed(partition) == settled(sent))
    }

    /// Waits until everything sent is settled, and stops the host.
    pub(crate) fn finish(&self, host: Sluice) {
        host.wait_until("everything is settled", |_| self.is_settled());
        assert_eq!(host.stop(), Some(0));
    }

    /// Starts a host, has it fed, and kills it when all it was fed is pending. With
    /// [`Insert::Unanswered`] its `rows` are in the table by then.
    pub(crate) fn leave_pending(
        &self,
        configuration: Configuration,
        insert: Insert,
        rows: u64,
        feed: impl FnOnce(&Sluice),
    ) {
        let proxy = self.proxy();
        let behind = configuration.set("CLICKHOUSE__URL", &format!("http://{}", proxy.address()));
        let host = self.start(&behind);
        match insert {
            Insert::Unsent => proxy.refuse(true),
            Insert::Unanswered => proxy.swallow(u64::MAX),
        }
        feed(&host);
        host.wait_until("all is pending", |_| self.all_is_pending());
        let rows = if insert == Insert::Unanswered { rows } else { 0 };
        host.wait_until("the rows are there", |_| self.rows() == rows);
        host.kill();
        assert!(self.all_is_pending(), "the kill came too late to prove anything");
        assert_eq!((self.rows(), self.letters()), (rows, 0));
    }

    /// Sends records so that each is a chunk of its own.
    pub(crate) fn send_singly(&self, host: &Sluice, partition: i32, letters: &str) {
        for letter in letters.chars() {
            let before = host.consumed();
            self.send(&[(partition, &letter.to_string())]);
            host.wait_until("the record is consumed", |host| host.consumed() > before);
        }
    }

    pub(crate) fn execute(&self, statement: &str) {
        self.servers.clickhouse.execute(statement);
    }

    /// Has the table lose rows and remember their token: as it is when ClickHouse is killed after it noted a
    /// token, and before it had the rows. They are said to be of no topic, since a part that becomes empty goes,
    /// and its token with it.
    pub(crate) fn lose_rows(&self, condition: &str) {
        let table = format!("{}.texts", self.name);
        self.execute(&format!(
            "ALTER TABLE {table} UPDATE _topic = '' WHERE {condition} SETTINGS mutations_sync = 2"
        ));
    }

    /// Removes what [`Self::lose_rows`] left.
    pub(crate) fn remove_lost_rows(&self) {
        let table = format!("{}.texts", self.name);
        self.execute(&format!("ALTER TABLE {table} DELETE WHERE _topic = '' SETTINGS mutations_sync = 2"));
    }

    /// Number of rows in the table.
    pub(crate) fn rows(&self) -> u64 {
        self.servers.clickhouse.rows(&format!("SELECT count() FROM {}.texts", self.name))[0]
    }

    /// Number of dead letters.
    pub(crate) fn letters(&self) -> usize {
        self.dead_letters().len()
    }

    /// The dead letters, once no open transaction hides any: that of a killed host stays open until the
    /// brokers give it up.
    fn dead_letters(&self) -> Vec<OwnedRecord> {
        let (brokers, topic) = (self.servers.kafka.bootstrap(), format!("{}.letters", self.name));
        let end = |isolation: &str| {
            let mut client = ClientConfig::new();
            client.set("bootstrap.servers", brokers).set("isolation.level", isolation);
            let consumer: BaseConsumer = client.create().expect("a consumer can be made");
            consumer.fetch_watermarks(&topic, 0, PATIENCE).expect("the end is known").1
        };
        let deadline = Instant::now() + PATIENCE;
        while end("read_committed") < end("read_uncommitted") {
            assert!(Instant::now() < deadline, "a transaction stays open");
            std::thread::sleep(Duration::from_millis(100));
        }
        read(brokers, &topic)
    }

    /// How each record ended, by partition and offset: once each, and nothing else is anywhere.
    pub(crate) fn endings(&self) -> BTreeMap<(i32, i64), Ending> {
        let query = format!("SELECT _topic, _partition, _offset, text, _revision FROM {}.texts", self.name);
        let rows: Vec<(String, i32, i64, String, String)> = self.servers.clickhouse.rows(&query);
        let rows = rows.into_iter().map(|(topic, partition, offset, text, revision)| {
            assert_eq!(topic, self.name);
            ((partition, offset), Ending::Row { text, revision })
        });
        let letters = self.dead_letters().into_iter().map(|letter| {
            let header = |name: &str| letter.header(name).unwrap_or_else(|| panic!("{name}")).to_owned();
            let number = |name: &str| header(name).parse::<i64>().expect("a number");
            let place = (number("sluice.partition") as i32, number("sluice.offset"));
            let (kind, code) = (header("sluice.kind"), header("sluice.code"));
            let payload = letter.payload.clone().map(|bytes| String::from_utf8(bytes).expect("a letter"));
            (place, Ending::Letter { kind, code, payload })
        });
        let mut endings = BTreeMap::new();
        for (place, ending) in rows.chain(letters) {
            if let Some(other) = endings.insert(place, ending.clone()) {
                panic!("{place:?} ended twice: {other:?} and {ending:?}");
            }
        }
        let sent = self.sent().into_iter();
        let places: Vec<_> =
            sent.flat_map(|(partition, sent)| (0..sent).map(move |offset| (partition, offset))).collect();
        let lost: Vec<_> = places.iter().filter(|place| !endings.contains_key(place)).collect();
        assert!(lost.is_empty(), "ended nowhere: {lost:?}");
        assert_eq!(endings.len(), places.len(), "what ended was sent");
        endings
    }
}

impl Ending {
    /// A row with this text, of whichever revision.
    pub(crate) fn is_row(&self, wanted: &str) -> bool {
        matches!(self, Self::Row { text, .. } if text == wanted)
    }

    /// What a dead letter says; panics for a row.
    pub(crate) fn letter(&self) -> (&str, &str, Option<&str>) {
        match self {
            Self::Letter { kind, code, payload } => (kind, code, payload.as_deref()),
            Self::Row { .. } => panic!("{self:?} is no dead letter"),
        }
    }

    /// The revision of a row; panics for a dead letter.
    pub(crate) fn revision(&self) -> &str {
        match self {
            Self::Row { revision, .. } => revision,
            Self::Letter { .. } => panic!("{self:?} is no row"),
        }
    }
}

/// Number of partitions that a host has.
pub(crate) fn partitions(host: &Sluice) -> usize {
    host.status()["pipelines"][0]["partitions"].as_array().map_or(0, Vec::len)
}
