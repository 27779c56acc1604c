//! Composition root: the only file that names concrete adapters.
//!
//! [`App::start`] goes from the cheap and local to the far: metrics, the admin port, module files,
//! ClickHouse (waited for, migrated), topics, the first chain of each pipeline with its tables (what
//! exactly-once asks of them depends on the topics' partitions), then the pipelines. What cannot work is
//! refused here, before any record is read; what may come back by itself is waited for, with the
//! reason at `/ready`. [`App::wait`] ends when everything has drained.

mod archive;
mod pipeline;
pub mod preconditions;
mod reload;
mod tables;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle as ThreadHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, AdminSources};
use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::deployments::Deployments;
use crate::clickhouse::migrations::{Migrations, Migrator};
use crate::clickhouse::settings::ClickHouseSettings;
use crate::clickhouse::sink::{ClickHouseMetrics, ClickHouseSink};
use crate::config::{Config, Delivery, PipelineConfig};
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::domain::row::Output;
use crate::kafka::metadata::{self, MetadataError, TopicNeed};
use crate::pipeline::binding::ChainSlot;
use crate::pipeline::budget::Budget;
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::modules::{ModuleOrder, ModuleReport};
use crate::pipeline::orders::{ModuleControl, ORDER_PATIENCE, OrderMetrics, PipelineModules, WAITING_ORDERS};
use crate::pipeline::status::PipelineStatus;
use crate::pipeline::workers::Workers;
use crate::shutdown::Shutdown;
use crate::telemetry;
use crate::wasm::{
    ChainSettings, CodeCache, Compiler, LoadError, ModuleLimits, ModuleRegistry, WasmEngine, WasmMetrics,
};

use pipeline::{Parts, start_pipeline, transaction_settings};
use reload::{FirstFault, Preconditions, ReloadMetrics, Reloader};

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
        let (modules_told, modules_shown): (Vec<_>, Vec<_>) =
            config.pipelines.iter().map(module_channels).unzip();
        let names: Vec<_> = config.pipelines.iter().map(|pipeline| pipeline.name.clone()).collect();
        let order_metrics = OrderMetrics::register(&registry, &names)?;
        let sources = AdminSources {
            pipelines: statuses.clone(),
            not_ready,
            registry: registry.clone(),
            modules: ModuleControl::new(modules_shown, order_metrics, ORDER_PATIENCE),
            token: config.admin.token.clone(),
        };
        let admin = Admin::bind(config.admin.listen, sources).await?;
        let admin_address = admin.local_address();
        tracing::info!(address = %admin_address, "admin http");
        let servers = CancellationToken::new();
        let servers_task = tokio::spawn(admin.run(servers.clone()));

        let engine = caching_engine(&config)?;
        let modules =
            Arc::new(ModuleRegistry::new(engine, wasm_metrics).with_shadow_share(config.shadow_share));
        let settings = clickhouse_settings(&config);
        let revisions = RevisionArchive::new(&settings);
        let deployments = Deployments::new(&settings);
        let sink = Arc::new(ClickHouseSink::new(&settings, sink_metrics));
        let reload_metrics = ReloadMetrics::register(&registry)?;
        let (reports, orders): (Vec<_>, Vec<_>) = modules_told.into_iter().unzip();
        let reloader = |(pipeline, reports): (&PipelineConfig, _)| {
            let with = reload::Collaborators {
                registry: modules.clone(),
                sink: sink.clone(),
                revisions: revisions.clone(),
                deployments: deployments.clone(),
                metrics: reload_metrics.clone(),
                reports,
                host: config.kafka.instance(),
                poll: config.module_poll,
            };
            Reloader::new(pipeline.clone(), chain_settings(&config, pipeline), with)
        };
        let mut reloaders: Vec<_> = config.pipelines.iter().zip(reports).map(reloader).collect();
        let bound = async {
            for reloader in &mut reloaders {
                preload(reloader, &readiness).await?;
            }
            if config.clickhouse.migrate_at_start {
                migrate(&config, &settings, &readiness).await?;
            }
            let partitions = check_topics(&config, &readiness).await?;
            check_transactions(&config, &readiness).await?;
            let filled: Vec<Vec<Output>> = reloaders.iter().map(Reloader::preloaded_outputs).collect();
            let filled: Vec<_> = config.pipelines.iter().zip(filled.iter().map(Vec::as_slice)).collect();
            let mut chains = Vec::new();
            for (index, reloader) in reloaders.iter_mut().enumerate() {
                let mut others = filled.clone();
                others.remove(index);
                reloader.require(Preconditions::new(&others, partitions.clone()));
                chains.push(first_chain(reloader, &readiness).await?);
            }
            Ok::<_, anyhow::Error>(chains)
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
        for ((((pipeline, chain), status), reloader), orders) in
            config.pipelines.iter().zip(bound).zip(status_senders).zip(reloaders).zip(orders)
        {
            tokio::spawn(reloader.run(orders, shutdown.token()));
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
        // A panic in it has been said already.
        let _ = self.servers_task.await;
        if failures.is_empty() { Ok(()) } else { bail!(failures.join("\n")) }
    }
}

/// What a pipeline tells of its modules, and what it hears about them: its own ends and those of others.
type ModuleChannels = ((watch::Sender<Vec<ModuleReport>>, mpsc::Receiver<ModuleOrder>), PipelineModules);

fn module_channels(pipeline: &PipelineConfig) -> ModuleChannels {
    let (told, reports) = watch::channel(Vec::new());
    let (orders, heard) = mpsc::channel(WAITING_ORDERS);
    ((told, heard), PipelineModules { pipeline: pipeline.name.clone(), reports, orders })
}

async fn cancelled(token: CancellationToken) {
    token.cancelled().await;
}

/// Settings of the ClickHouse adapter.
pub fn clickhouse_settings(config: &Config) -> ClickHouseSettings {
    ClickHouseSettings::from(&config.clickhouse)
}

/// An engine for `workers` worker threads that compiles in a process of its own: this program must be `sluice`.
/// It has no cache, which is for the host alone: another user's files in it would be in its way.
///
/// # Errors
/// When this machine lacks something.
pub fn wasm_engine(workers: usize) -> Result<WasmEngine> {
    Ok(WasmEngine::new(workers)?.with_compiler(Compiler::child()))
}

/// The same with the cache that is configured.
fn caching_engine(config: &Config) -> Result<WasmEngine> {
    let engine = wasm_engine(config.resources.worker_threads())?;
    let Some(cache) = &config.module_cache else { return Ok(engine) };
    match CodeCache::open(&cache.folder, cache.key.as_ref(), cache.bytes) {
        Ok(cache) => Ok(engine.with_compiler(Compiler::child().with_cache(cache))),
        Err(error) => {
            // It only saves time, and a volume that is full or missing is no reason to stand still.
            tracing::warn!(%error, "modules.cache is not used; modules are compiled at every start");
            Ok(engine)
        }
    }
}

/// What the modules of a pipeline may take.
pub fn module_limits(config: &Config, pipeline: &PipelineConfig) -> ModuleLimits {
    ModuleLimits { default: config.modules.clone(), by_module: pipeline.limits.clone() }
}

/// Settings of a pipeline's chain.
pub fn chain_settings(config: &Config, pipeline: &PipelineConfig) -> ChainSettings {
    ChainSettings {
        pipeline: pipeline.name.clone(),
        validators: pipeline.validators.clone(),
        mapper: pipeline.mapper.clone(),
        settings: pipeline.settings.clone(),
        limits: module_limits(config, pipeline),
    }
}

/// Looks at the files of a pipeline. Those that do not pass are no obstacle where the pipeline has run before:
/// the revisions that were live stand in. Where it has not, or nobody knows of it, they are, unless it is this
/// machine that did not let them be tried: then it goes on trying.
async fn preload(reloader: &mut Reloader, readiness: &Readiness) -> Result<()> {
    let Err(mut problems) = reloader.preload().await else { return Ok(()) };
    tracing::error!(
        problems = problems.to_string(),
        "modules that do not pass; looking for earlier revisions"
    );
    if can_stand_in(reloader, &problems, readiness).await? {
        return Ok(());
    }
    let mut is_first = true;
    retry("modules", readiness, async || {
        if !std::mem::take(&mut is_first) {
            match reloader.preload().await {
                Ok(()) => return Ok(()),
                // What passed the last time was alive until here, so it was not compiled again.
                Err(others) => problems = others,
            }
        }
        match problems.retryability() {
            Retryability::Retry => Err(Again(problems.to_string())),
            Retryability::Permanent => Err(Never(anyhow!("{problems}"))),
        }
    })
    .await
}

/// Whether earlier revisions can stand in for files that do not pass.
async fn can_stand_in(reloader: &Reloader, problems: &LoadError, readiness: &Readiness) -> Result<bool> {
    let has_run = retry("modules", readiness, async || match reloader.has_run().await {
        Ok(has_run) => Ok(has_run),
        Err(FirstFault::Again(reason)) => Err(Again(format!(
            "{problems}\nwhether an earlier revision can stand in is not known before ClickHouse answers: {reason}"
        ))),
        Err(FirstFault::Never(_)) => Ok(false),
    });
    has_run.await
}

async fn first_chain(reloader: &mut Reloader, readiness: &Readiness) -> Result<ChainSlot> {
    retry("modules", readiness, async || {
        reloader.first().await.map_err(|fault| match fault {
            FirstFault::Again(reason) => Again(reason),
            FirstFault::Never(error) => Never(error),
        })
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
