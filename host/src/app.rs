//! Composition root: the only file that names concrete adapters.
//!
//! [`App::start`] goes from the cheap and local to the far: metrics, the admin port, modules,
//! ClickHouse (waited for, migrated), topics, tables (bound; what exactly-once asks of them depends on
//! the topics' partitions), then the pipelines. What cannot work is
//! refused here, before any record is read; what may come back by itself is waited for, with the
//! reason at `/ready`. [`App::wait`] ends when everything has drained.

mod archive;
mod pipeline;
pub mod preconditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle as ThreadHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminSources};
use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::migrations::{Migrations, Migrator};
use crate::clickhouse::schema::SchemaError;
use crate::clickhouse::settings::ClickHouseSettings;
use crate::clickhouse::sink::{ClickHouseMetrics, ClickHouseSink};
use crate::config::{Config, Delivery, PipelineConfig};
use crate::domain::module::ArchivedModule;
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::kafka::metadata::{self, MetadataError, TopicNeed};
use crate::pipeline::binding::BoundChain;
use crate::pipeline::budget::Budget;
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::ports::Chain;
use crate::pipeline::status::PipelineStatus;
use crate::pipeline::workers::Workers;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::wasm::{ChainSettings, ModuleRegistry, WasmChain, WasmEngine, WasmMetrics};

use pipeline::{Parts, start_pipeline, transaction_settings};

/// Longest wait for Kafka's answer about topics.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// What a drain may take beyond its deadline, for the pipelines to say themselves what is unfinished.
const GRACE: Duration = Duration::from_secs(3);
/// A running Sluice.
pub struct App {
    shutdown: Shutdown,
    admin: std::net::SocketAddr,
    statuses: Vec<watch::Receiver<PipelineStatus>>,
    registry: Registry,
    pipelines: JoinSet<Result<()>>,
    threads: Vec<ThreadHandle<()>>,
    servers: CancellationToken,
    servers_task: tokio::task::JoinHandle<()>,
}

/// Sends the reasons that no pipeline has for not being ready.
type Readiness = watch::Sender<Vec<String>>;

impl App {
    /// Starts everything.
    ///
    /// # Errors
    /// What cannot work: each message names the key, the file or the table, and the cure. Also
    /// when `shutdown` begins while something is waited for.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Self> {
        let registry = telemetry::registry();
        let metrics = PipelineMetrics::register(&registry)?;
        let sink_metrics = ClickHouseMetrics::register(&registry)?;
        let wasm_metrics = WasmMetrics::register(&registry)?;

        let (status_senders, statuses): (Vec<_>, Vec<_>) = config
            .pipelines
            .iter()
            .map(|pipeline| {
                watch::channel(PipelineStatus {
                    name: pipeline.name.clone(),
                    delivery: pipeline.delivery.as_str(),
                    ..PipelineStatus::default()
                })
            })
            .unzip();
        let (readiness, not_ready) = watch::channel(vec!["starting".to_owned()]);
        let sources = AdminSources { pipelines: statuses.clone(), not_ready, registry: registry.clone() };
        let admin = Admin::bind(config.admin.listen, sources).await?;
        let admin_address = admin.local_address();
        tracing::info!(address = %admin_address, "admin http");
        let servers = CancellationToken::new();
        let servers_task = tokio::spawn({
            let (servers, shutdown) = (servers.clone(), shutdown.clone());
            async move {
                if let Err(error) = admin.run(servers).await {
                    tracing::error!(%error, "draining");
                    shutdown.begin();
                }
            }
        });

        let engine = WasmEngine::new(config.resources.worker_threads())?;
        let modules = Arc::new(ModuleRegistry::new(engine, wasm_metrics));
        let chains = load_chains(&config, &modules).await?;
        let settings = clickhouse_settings(&config);
        let revisions = RevisionArchive::new(&settings);
        let sink = Arc::new(ClickHouseSink::new(&settings, sink_metrics));
        let bound = async {
            if config.clickhouse.migrate_at_start {
                migrate(&config, &settings, &readiness).await?;
            }
            let partitions = check_topics(&config, &readiness).await?;
            check_transactions(&config, &readiness).await?;
            let chained: Vec<_> =
                config.pipelines.iter().zip(chains.iter().map(|(chain, _)| chain)).collect();
            let mut bound = Vec::new();
            for ((pipeline, chain), (_, files)) in chained.iter().zip(&chains) {
                if pipeline.delivery == Delivery::ExactlyOnce {
                    archive(&revisions, (pipeline, chain), files, &readiness).await?;
                }
                let pending = |table: &str| preconditions::pending_inserts(table, &chained, &partitions);
                bound.push(bind(pipeline, chain, &sink, pending, &readiness).await?);
            }
            Ok::<_, anyhow::Error>(bound)
        };
        // Nothing has been read yet, so a start that is given up leaves nothing behind.
        let bound = tokio::select! {
            bound = bound => bound?,
            () = cancelled(shutdown.token()) => bail!("stopped before the start was complete"),
        };

        let (workers, threads) = Workers::start(config.resources.worker_threads())
            .context("cannot start the wasm worker threads; lower resources.workers")?;
        let mut pipelines = JoinSet::new();
        let share = config.resources.in_flight_bytes as usize / config.pipelines.len();
        for ((pipeline, chain), status) in config.pipelines.iter().zip(bound).zip(status_senders) {
            let running = start_pipeline(
                &config,
                pipeline,
                Parts {
                    chain,
                    sink: sink.clone(),
                    revisions: revisions.clone(),
                    modules: modules.clone(),
                    workers: workers.clone(),
                    metrics: metrics.clone(),
                    budget: Budget::new(share),
                    status,
                },
                shutdown.clone(),
            )?;
            pipelines.spawn(running);
        }
        readiness.send_replace(Vec::new());
        Ok(Self {
            shutdown,
            admin: admin_address,
            statuses,
            registry,
            pipelines,
            threads,
            servers,
            servers_task,
        })
    }

    /// Where the admin server listens.
    pub fn admin_address(&self) -> std::net::SocketAddr {
        self.admin
    }

    /// What each pipeline says of itself, in the order of the configuration.
    pub fn statuses(&self) -> &[watch::Receiver<PipelineStatus>] {
        &self.statuses
    }

    /// Every metric.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Waits until every pipeline has drained after [`Shutdown::begin`], or one cannot go on.
    ///
    /// # Errors
    /// When a pipeline ended with records unfinished; they are read again at the next start.
    pub async fn wait(mut self) -> Result<()> {
        let mut failures = Vec::new();
        let deadline = async {
            self.shutdown.deadline().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::pin!(deadline);
        loop {
            // Both are cancel-safe: a pipeline that is not joined in one round is in the next.
            let ended = tokio::select! {
                ended = self.pipelines.join_next() => ended,
                () = &mut deadline => bail!(
                    "the drain took longer than resources.drain_timeout; what is not committed is read again \
                     at the next start"
                ),
            };
            let Some(ended) = ended else { break };
            let ended = ended.unwrap_or_else(|error| Err(anyhow!("a pipeline task failed: {error}")));
            if let Err(error) = ended {
                tracing::error!(error = format!("{error:#}"), "pipeline ended");
                failures.push(format!("{error:#}"));
            }
            // One that ended by itself takes the others along: half a process would look healthy.
            self.shutdown.begin();
        }
        // The workers' queue closed with the last pipeline.
        for thread in self.threads {
            if thread.join().is_err() {
                failures.push("a wasm worker thread panicked".into());
            }
        }
        self.servers.cancel();
        // It logs its own failure.
        let _ = self.servers_task.await;
        if failures.is_empty() { Ok(()) } else { bail!(failures.join("\n")) }
    }
}

async fn cancelled(token: CancellationToken) {
    token.cancelled().await;
}

/// Settings of the ClickHouse adapter.
pub fn clickhouse_settings(config: &Config) -> ClickHouseSettings {
    ClickHouseSettings::from(&config.clickhouse)
}

/// Settings of a pipeline's chain.
pub fn chain_settings(config: &Config, pipeline: &PipelineConfig) -> ChainSettings {
    ChainSettings {
        pipeline: pipeline.name.clone(),
        validators: pipeline.validators.clone(),
        mapper: pipeline.mapper.clone(),
        settings: pipeline.settings.clone(),
        limits: config.modules.clone(),
    }
}

/// The chain of each pipeline, with what the archive keeps of its modules.
async fn load_chains(
    config: &Config,
    registry: &Arc<ModuleRegistry>,
) -> Result<Vec<(WasmChain, Vec<ArchivedModule>)>> {
    let settings: Vec<_> = config.pipelines.iter().map(|pipeline| chain_settings(config, pipeline)).collect();
    let registry = registry.clone();
    // Compiling takes a tenth of a second a module.
    tokio::task::spawn_blocking(move || {
        settings.iter().map(|settings| Ok(registry.load_chain_and_files(settings)?)).collect()
    })
    .await?
}

/// Keeps modules for recovery before the first record meets them.
async fn archive(
    archive: &RevisionArchive,
    (pipeline, chain): preconditions::Chained<'_>,
    modules: &[ArchivedModule],
    readiness: &Readiness,
) -> Result<()> {
    retry("clickhouse", readiness, async || {
        let stored = async {
            archive.ensure().await?;
            archive.store(modules).await?;
            archive.store_chain(&pipeline.name, chain.revision(), chain.modules()).await
        };
        match stored.await {
            Err(error) if error.retryability() == Retryability::Retry => Err(Again(error.to_string())),
            stored => stored.map_err(|error| Never(error.into())),
        }
    })
    .await
}

async fn migrate(config: &Config, settings: &ClickHouseSettings, readiness: &Readiness) -> Result<()> {
    let migrations = Migrations::load(&config.clickhouse.migrations)?;
    let migrator = Migrator::new(settings);
    retry("clickhouse", readiness, async || match migrator.apply(&migrations).await {
        Ok(applied) => Ok(applied.len()),
        Err(error) if error.retryability() == Retryability::Retry => Err(Again(error.to_string())),
        Err(error) => Err(Never(error.into())),
    })
    .await?;
    Ok(())
}

/// Binds the outputs of a chain to their tables; `pending` says how many INSERTs into a table may be
/// unsettled at once, which exactly-once needs it to remember.
async fn bind(
    pipeline: &PipelineConfig,
    chain: &WasmChain,
    sink: &ClickHouseSink,
    pending: impl Fn(&str) -> u64,
    readiness: &Readiness,
) -> Result<Arc<BoundChain>> {
    let exactly_once = pipeline.delivery == Delivery::ExactlyOnce;
    if let Some(fault) = preconditions::chain_fault(pipeline, chain.modules().len() - 1)
        && exactly_once
    {
        bail!(fault);
    }
    let mut tables = Vec::new();
    for output in chain.outputs() {
        let table = pipeline.table(&output.name);
        let bound = retry("clickhouse", readiness, async || {
            let bound = if exactly_once {
                sink.bind_deduplicating(table, output, pending(table)).await
            } else {
                sink.bind(table, output).await
            };
            bound.map_err(|error| match error {
                SchemaError::Server { error, .. } if error.kind.retryability() == Retryability::Retry => {
                    Again(error.to_string())
                }
                error => Never(anyhow::Error::new(error).context(format!(
                    "pipelines.{}: output {} of module {} does not fit table {table}",
                    pipeline.name,
                    output.name,
                    pipeline.mapper.display()
                ))),
            })
        })
        .await?;
        tables.push(bound.binding());
    }
    Ok(Arc::new(BoundChain { chain: Arc::new(chain.clone()), tables }))
}

/// How many partitions each topic has.
async fn check_topics(config: &Config, readiness: &Readiness) -> Result<BTreeMap<String, usize>> {
    let needs: Vec<TopicNeed> = config.pipelines.iter().flat_map(topic_needs).collect();
    let kafka = config.kafka.clone();
    ask_kafka(readiness, move || metadata::check(&kafka, &needs, METADATA_TIMEOUT)).await
}

/// Whether the brokers do the transactions that exactly-once needs. This also ends what a process of
/// the same name, this one's predecessor, has left open.
async fn check_transactions(config: &Config, readiness: &Readiness) -> Result<()> {
    let exactly_once = config.pipelines.iter().filter(|pipeline| pipeline.delivery == Delivery::ExactlyOnce);
    for pipeline in exactly_once {
        let (kafka, settings) = (config.kafka.clone(), transaction_settings(config, pipeline));
        ask_kafka(readiness, move || metadata::check_transactions(&kafka, &settings, METADATA_TIMEOUT))
            .await?;
    }
    Ok(())
}

/// Asks the brokers, blocking, until they answer; what waiting does not mend is an error.
async fn ask_kafka<T: Send + 'static>(
    readiness: &Readiness,
    ask: impl Fn() -> std::result::Result<T, MetadataError> + Send + Sync + 'static,
) -> Result<T> {
    let ask = Arc::new(ask);
    retry("kafka", readiness, async || {
        let ask = ask.clone();
        match tokio::task::spawn_blocking(move || ask()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.retryability() == Retryability::Retry => Err(Again(error.to_string())),
            Ok(Err(error)) => Err(Never(error.into())),
            Err(error) => Err(Never(error.into())),
        }
    })
    .await
}

use Attempt::{Again, Never};

/// Why an attempt failed, and whether the next may succeed.
enum Attempt {
    Again(String),
    Never(anyhow::Error),
}

/// Repeats `attempt` until it succeeds or never can; says at `/ready` what is waited for.
async fn retry<T>(
    about: &str,
    readiness: &Readiness,
    mut attempt: impl AsyncFnMut() -> std::result::Result<T, Attempt>,
) -> Result<T> {
    let policy = RetryPolicy::default();
    for number in 0.. {
        match attempt().await {
            Ok(value) => {
                readiness.send_replace(vec!["starting".to_owned()]);
                return Ok(value);
            }
            Err(Never(error)) => return Err(error),
            Err(Again(reason)) => {
                tracing::warn!(about, reason, "not there yet, waiting");
                readiness.send_replace(vec![format!("{about}: {reason}")]);
                tokio::time::sleep(policy.wait(number, rand::random())).await;
            }
        }
    }
    unreachable!("the attempts have no end")
}

/// Topics that a pipeline needs.
pub fn topic_needs(pipeline: &PipelineConfig) -> Vec<TopicNeed> {
    let key = |key: &str| format!("pipelines.{}.{key}", pipeline.name);
    let mut needs: Vec<_> =
        pipeline.topics.iter().map(|topic| TopicNeed { topic: topic.clone(), key: key("topics") }).collect();
    needs.push(TopicNeed { topic: pipeline.dead_letter_topic.clone(), key: key("dead_letter_topic") });
    needs
}
