//! Apache Kafka itself, one broker a test, or a cluster of some: the script of `deploy/kafka` under a Rust handle.
//!
//! State: a temporary directory (settings, data, log, pid file) and the port. Invariants: the broker
//! listens on loopback only; it is gone when the handle is dropped, or soon after the test process
//! died without dropping it (`--owner`); a restarted broker keeps its directory and its port.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaResult;
use tempfile::TempDir;

type Admin = AdminClient<DefaultClientContext>;

/// A running broker. Methods panic with the script's words when something fails: this is for tests.
pub struct ApacheKafka {
    directory: TempDir,
    bootstrap: String,
    /// Of the topics that it is told to make.
    replicas: i32,
}

impl ApacheKafka {
    /// Starts a broker on a free port of loopback and waits until it answers (about two seconds).
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with broker properties (`server.properties`) beside the usual ones.
    pub fn start_with(properties: &[(&str, &str)]) -> Self {
        Self::start_behind(properties, &[]).0
    }

    /// As [`start_with`](Self::start_with), with further listeners, each for clients that come through a
    /// proxy: name and the proxy's port of loopback. Returns also where each of them listens, in order.
    pub fn start_behind(properties: &[(&str, &str)], listeners: &[(&str, u16)]) -> (Self, Vec<SocketAddr>) {
        Self::start_somehow(&[], properties, listeners)
    }

    /// Some brokers that have every topic between them; the first one is the controller.
    pub fn start_cluster(brokers: i32) -> Vec<Self> {
        let replicas = brokers.to_string();
        let properties = [
            ("offsets.topic.replication.factor", &*replicas),
            ("transaction.state.log.replication.factor", &*replicas),
        ];
        let mut cluster = vec![Self::start_with(&properties)];
        for node in 2..=brokers {
            let first = cluster[0].directory().to_str().expect("text").to_owned();
            let joining = ["--join", &first, "--node", &node.to_string()];
            cluster.push(Self::start_somehow(&joining, &properties, &[]).0);
        }
        for broker in &mut cluster {
            broker.replicas = brokers;
        }
        cluster
    }

    fn start_somehow(
        options: &[&str],
        properties: &[(&str, &str)],
        listeners: &[(&str, u16)],
    ) -> (Self, Vec<SocketAddr>) {
        let directory = tempfile::Builder::new()
            .prefix("sluice-kafka-")
            .tempdir()
            .expect("a temporary directory can be made");
        let mut kafka = Self { directory, bootstrap: String::new(), replicas: 1 };
        let properties: Vec<String> =
            properties.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut arguments = [&["--port", "0"], options].concat();
        for property in &properties {
            arguments.extend(["--property", property]);
        }
        let named: Vec<String> = listeners.iter().map(|(name, port)| format!("{name}:{port}")).collect();
        for listener in &named {
            arguments.extend(["--listener", listener]);
        }
        let printed = kafka.launch(&arguments);
        let addresses = listeners.iter().map(|(name, _)| {
            let prefix = format!("{name} listens on ");
            let address = printed.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok());
            address.unwrap_or_else(|| panic!("kafka.sh did not say where {name} listens: {printed}"))
        });
        let addresses = addresses.collect();
        (kafka, addresses)
    }

    /// `host:port`, for `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// The broker's directory: `kafka.log` in it tells what the broker thought.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Creates a topic and waits until the broker says that it exists.
    pub fn create_topic(&self, name: &str, partitions: i32) {
        self.create_topic_with(name, partitions, &[]);
    }

    /// As [`create_topic`](Self::create_topic), with topic properties such as `max.message.bytes`.
    pub fn create_topic_with(&self, name: &str, partitions: i32, properties: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(self.replicas));
        for (key, value) in properties {
            topic = topic.set(key, value);
        }
        self.administer(async |admin, options| admin.create_topics([&topic], options).await);
    }

    /// Deletes a topic; creating it anew may be refused for a moment.
    pub fn delete_topic(&self, name: &str) {
        self.administer(async |admin, options| admin.delete_topics(&[name], options).await);
    }

    fn administer(
        &self,
        operation: impl AsyncFnOnce(&Admin, &AdminOptions) -> KafkaResult<Vec<TopicResult>> + Send,
    ) {
        let admin: Admin = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .expect("an admin client can be made");
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        // A thread of its own, since the calling test may itself run on a runtime.
        let results = std::thread::scope(|scope| {
            let administering = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok::<_, std::io::Error>(runtime.block_on(operation(&admin, &options)))
            });
            administering.join().expect("the thread ends")
        });
        let results = results.expect("a runtime can be made").expect("the broker answers the request");
        for result in results {
            result.unwrap_or_else(|(topic, code)| panic!("topic {topic}: {code}"));
        }
    }

    /// What `kafka-transactions.sh` prints.
    pub fn transactions(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--"];
        all.extend(arguments);
        self.script("transactions", &all)
    }

    /// Ends the broker as a crash would (SIGKILL). The directory stays.
    pub fn kill(&self) {
        self.script("kill", &[]);
    }

    /// Freezes the broker for a while: longer than its session, and it is fenced for a moment after that.
    pub fn freeze(&self, time: Duration) {
        self.signal("-STOP");
        std::thread::sleep(time);
        self.signal("-CONT");
    }

    /// Sends the broker a signal.
    pub fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.directory.path().join("kafka.pid")).expect("a broker");
        let sent = Command::new("kill").args([name, pid.trim()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Stops the broker in order. The directory stays.
    pub fn stop(&self) {
        self.script("stop", &[]);
    }

    /// Starts the broker again on the same directory and port. After a [`kill`](Self::kill) this takes
    /// some three seconds more: the controller waits for the lost broker's session to end.
    pub fn restart(&mut self) {
        self.stop();
        self.launch(&[]);
    }

    /// Whether the broker's process is there.
    pub fn is_running(&self) -> bool {
        self.command("status", &[]).output().expect("bash runs").status.success()
    }

    fn launch(&mut self, arguments: &[&str]) -> String {
        let owner = std::process::id().to_string();
        let mut all = vec!["--owner", &owner];
        all.extend(arguments);
        let printed = self.script("start", &all);
        self.bootstrap = printed
            .lines()
            .find_map(|line| line.strip_prefix("listening on "))
            .unwrap_or_else(|| panic!("kafka.sh did not say where it listens: {printed}"))
            .to_owned();
        printed
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kafka/kafka.sh");
        let mut command = Command::new("bash");
        command.arg(script).arg(verb).arg("--directory").arg(self.directory.path()).args(arguments);
        // Whoever runs the tests may have a broker of their own in mind.
        command.env_remove("KAFKA_PORT").env_remove("KAFKA_DIRECTORY");
        command
    }

    fn script(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.command(verb, arguments).output().expect("bash runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let mut report = format!("kafka.sh {verb} failed ({})\n{printed}", output.status);
            let _ = write!(report, "{}", String::from_utf8_lossy(&output.stderr));
            let log: PathBuf = self.directory.path().join("kafka.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            for line in tail.iter().rev() {
                let _ = write!(report, "\n{line}");
            }
            panic!("{report}");
        }
        printed
    }
}

impl Drop for ApacheKafka {
    fn drop(&mut self) {
        // Killing is enough, and quick: the directory goes with the handle. A panic here would hide
        // the one that may be unwinding.
        let _ = self.command("kill", &[]).output();
    }
}
