//! Configuration: raw file and environment -> validated [`Config`], all errors at once.
//!
//! The file is YAML; `SLUICE__SECTION__KEY` variables override it (`environment`). Reading goes on
//! after a fault (`reader`), so that one run names everything: unknown keys, wrong types, bad
//! values, missing files, each with its key, where the value came from, and the cure.
//! `docs/CONFIGURATION.md` lists every key; a test compares it with what is read here.
//!
//! Architecture invariant: a `Config` that exists is valid. Nothing below `app` sees one; the parts
//! get their own settings.

mod environment;
mod error;
mod pipelines;
mod reader;
mod sections;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{ConfigErrors, ConfigFault};

pub use crate::clickhouse::settings::{ClickHouseSettings, TransferCompression};
pub use crate::domain::breaker::BreakerSettings;
pub use crate::domain::ledger::Delivery;
pub use crate::domain::secret::Secret;
pub use crate::kafka::client::KafkaSettings;
pub use crate::wasm::Limits;

/// Everything that Sluice can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How to reach the brokers.
    pub kafka: KafkaSettings,
    /// How to reach ClickHouse.
    pub clickhouse: ClickHouseConfig,
    /// Health, metrics and status over HTTP.
    pub admin: AdminConfig,
    /// What is logged, and how it looks.
    pub logging: LoggingConfig,
    /// What the whole process may use.
    pub resources: ResourcesConfig,
    /// What each module may take.
    pub modules: Limits,
    /// Longest time until a change of a module that came without an event is seen.
    pub module_poll: Duration,
    /// Where compiled modules are kept; `None` for nowhere.
    pub module_cache: Option<ModuleCacheConfig>,
    /// Part of one core that all shadows together may take.
    pub shadow_share: f64,
    /// By name; at least one.
    pub pipelines: Vec<PipelineConfig>,
}

/// How to reach ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouseConfig {
    /// `http://host:port` or `https://host:port`, without a path.
    pub url: String,
    /// Database of tables that are named without one.
    pub database: String,
    /// User.
    pub user: String,
    /// Password; empty for none.
    pub password: Secret,
    /// Longest wait for an answer.
    pub request_timeout: Duration,
    /// Compression of inserts and answers.
    pub compression: TransferCompression,
    /// ClickHouse settings that go with every statement.
    pub settings: BTreeMap<String, String>,
    /// Directory of the migrations.
    pub migrations: PathBuf,
    /// Whether `sluice run` applies them before it starts.
    pub migrate_at_start: bool,
}

impl From<&ClickHouseConfig> for ClickHouseSettings {
    fn from(config: &ClickHouseConfig) -> Self {
        Self {
            url: config.url.clone(),
            database: config.database.clone(),
            user: config.user.clone(),
            password: config.password.clone(),
            request_timeout: config.request_timeout,
            compression: config.compression,
            server_settings: config.settings.clone(),
        }
    }
}

/// Health, metrics, status and modules over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Address to listen at; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What orders have to come with; empty where none are taken.
    pub token: Secret,
}

/// What is logged, and how it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingConfig {
    /// A level, or directives such as `info,sluice::wasm=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person on a terminal, JSON otherwise.
    Auto,
    /// For a person.
    Human,
    /// One JSON object a line.
    Json,
}

/// Where compiled modules are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleCacheConfig {
    /// Folder; it is made if it is not there.
    pub folder: PathBuf,
    /// Most bytes of it.
    pub bytes: u64,
    /// Key of the seals; `None` for one that is made and kept in the folder.
    pub key: Option<Secret>,
}

/// What the whole process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcesConfig {
    /// Threads that run modules; 0 for one a core ([`ResourcesConfig::worker_threads`]).
    pub workers: usize,
    /// Most bytes held between intake and settlement.
    pub in_flight_bytes: u64,
    /// Longest time that a shutdown may take to finish what is in flight.
    pub drain_timeout: Duration,
}

impl ResourcesConfig {
    /// `workers`, or the number of cores that this process may use.
    pub fn worker_threads(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            workers => workers,
        }
    }
}

/// One topic (or several) -> chain -> tables.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineConfig {
    /// Name, as in metrics and headers.
    pub name: String,
    /// Topics to read; at least one.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group: String,
    /// What a crash may repeat.
    pub delivery: Delivery,
    /// Exactly-once, whether records are read of which the tables hold rows already.
    pub allow_replay: bool,
    /// Topic of the rejected records.
    pub dead_letter_topic: String,
    /// Where a group without committed offsets starts.
    pub start: StartOffset,
    /// Directory whose `*.wasm` are the validators, in name order; `None` for no validators.
    pub validators: Option<PathBuf>,
    /// File of the mapper.
    pub mapper: PathBuf,
    /// Settings by module name (its file name without `.wasm`). Keys are in alphabetical order, so
    /// equal settings have equal text.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// What modules may take that have limits of their own, by module name.
    pub limits: BTreeMap<String, Limits>,
    /// Table by output; an output that is missing here goes to the table of its own name.
    pub tables: BTreeMap<String, String>,
    /// When a batch is full.
    pub batch: BatchConfig,
    /// When a fresh revision of a module has to go.
    pub breaker: BreakerSettings,
}

impl PipelineConfig {
    /// Table that an output goes to.
    pub fn table<'n>(&'n self, output: &'n str) -> &'n str {
        self.tables.get(output).map_or(output, String::as_str)
    }
}

/// Where a group without committed offsets starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartOffset {
    /// With the oldest record that the topic has.
    Earliest,
    /// With the next record that is produced.
    Latest,
}

impl StartOffset {
    /// Kafka's word for it (`auto.offset.reset`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        }
    }
}

/// When a batch is full, and how many travel at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// Most rows.
    pub rows: usize,
    /// Most bytes of rows.
    pub bytes: u64,
    /// Longest time that a row waits for others.
    pub linger: Duration,
    /// Most INSERTs under way at once.
    pub concurrent_inserts: usize,
}

/// Whether the modules' files have to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModuleFiles {
    Required,
    NotNeeded,
}

impl Config {
    /// Reads the file at `path`, lays the process's environment over it, and validates both.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::load_file(path, ModuleFiles::Required)
    }

    /// [`Config::load`] for commands that run no module (`migrate`, `dlq`): every key is validated,
    /// but the modules may not be built yet.
    pub fn load_without_modules(path: &Path) -> Result<Self, ConfigErrors> {
        Self::load_file(path, ModuleFiles::NotNeeded)
    }

    /// A configuration from text. Relative paths start at `base`; `environment` is any number of
    /// variables, of which those that do not start with `SLUICE__` are ignored.
    pub fn from_parts(
        yaml: &str,
        base: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        Self::parse(yaml, "configuration", base, environment, ModuleFiles::Required).map(|(config, _)| config)
    }

    fn load_file(path: &Path, files: ModuleFiles) -> Result<Self, ConfigErrors> {
        let label = path.display().to_string();
        let yaml = std::fs::read_to_string(path).map_err(|error| {
            let problem = format!("cannot read the file: {error}");
            let cure = "name a configuration file with --config; config/sluice.yaml is the shipped one";
            ConfigErrors { faults: vec![fault("", &label, problem, cure)] }
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let (variables, mut faults) = process_environment();
        match Self::parse(&yaml, &label, base, variables, files) {
            Ok((config, _)) if faults.is_empty() => Ok(config),
            Ok(_) => Err(ConfigErrors { faults }),
            Err(errors) => {
                faults.extend(errors.faults);
                Err(ConfigErrors { faults })
            }
        }
    }

    fn parse(
        yaml: &str,
        label: &str,
        base: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
        files: ModuleFiles,
    ) -> Result<(Self, Vec<reader::KeyDescription>), ConfigErrors> {
        let merged = config::Config::builder()
            .add_source(config::File::from_str(yaml, config::FileFormat::Yaml))
            .add_source(environment::Environment::new(variables))
            .build()
            .map_err(|error| {
                let cure = "mend the YAML; config/sluice.yaml shows the shape";
                ConfigErrors { faults: vec![fault("", label, format!("not readable: {error}"), cure)] }
            })?;
        let reader = reader::Reader::new(label);
        let config = sections::read(reader.root(merged.cache), base, files);
        let (faults, keys) = reader.finish();
        if faults.is_empty() { Ok((config, keys)) } else { Err(ConfigErrors { faults }) }
    }
}

fn fault(key: &str, origin: &str, problem: String, cure: &str) -> ConfigFault {
    ConfigFault { key: key.to_owned(), origin: origin.to_owned(), problem, cure: cure.to_owned() }
}

/// The variables that are text, and a fault for each of ours that is not.
fn process_environment() -> (Vec<(String, String)>, Vec<ConfigFault>) {
    let mut variables = Vec::new();
    let mut faults = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if name.starts_with(environment::PREFIX) => {
                let origin = format!("environment variable {name}");
                faults.push(fault("", &origin, "not UTF-8".to_owned(), "write it in UTF-8"));
            }
            Err(_) => {}
        }
    }
    (variables, faults)
}
