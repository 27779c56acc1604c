//! `sluice check`: configuration, brokers, topics, modules, ClickHouse, migrations and tables, each with its
//! verdict.
//!
//! It changes nothing, and goes on after a failure with whatever can still be looked at.

mod cases;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;

use crate::app::{self, preconditions};
use crate::clickhouse::exception::ServerError;
use crate::clickhouse::migrations::{MigrationError, Migrations, Migrator};
use crate::clickhouse::schema::{BoundTable, SchemaError, TableSchema};
use crate::clickhouse::settings::ClickHouseSettings;
use crate::config::{Config, Delivery, PipelineConfig};
use crate::kafka::metadata;
use crate::pipeline::ports::Chain;
use crate::telemetry;
use crate::wasm::{CodeCache, LoadError, ModuleRegistry, WasmChain, WasmMetrics};

use report::{Report, Verdict};

/// Look at everything that `sluice run` needs, and say what is wrong with it and what to do.
///
/// Exits with 0 when nothing failed, with 1 otherwise. Changes nothing.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Configuration file; environment variables SLUICE__SECTION__KEY override it.
    #[arg(long, short, env = "SLUICE_CONFIG", default_value = "config/sluice.yaml")]
    config: PathBuf,
    /// Print one JSON object instead of a line a check.
    #[arg(long)]
    json: bool,
    /// Longest wait for Kafka, and for each answer of ClickHouse.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Runs the command.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = Report::new(arguments.json, std::io::stdout());
    runtime.block_on(check(arguments, &mut report))?;
    let failed = report.finish()?;
    // A blocking call that outlived its timeout does not keep the program.
    runtime.shutdown_background();
    if failed > 0 {
        bail!("{failed} {}", if failed == 1 { "check failed" } else { "checks failed" });
    }
    Ok(())
}

type Out = Report<std::io::Stdout>;

async fn check(arguments: &Arguments, report: &mut Out) -> anyhow::Result<()> {
    let Some((config, modules_are_there)) = configuration(arguments, report)? else { return Ok(()) };
    if let Some(cache) = &config.module_cache {
        let (verdict, detail) = match CodeCache::problem(&cache.folder) {
            Some(problem) => (Verdict::Warning, format!("(modules.cache) {problem}")),
            None => (Verdict::Ok, "compiled modules are kept here".to_owned()),
        };
        report.add("cache", cache.folder.display().to_string(), verdict, detail)?;
    }
    let partitions = kafka(&config, arguments.timeout, report).await?;
    let mut chains = Vec::new();
    for pipeline in &config.pipelines {
        if modules_are_there {
            if let Some(chain) = modules(&config, pipeline, report).await? {
                chains.push((pipeline, chain));
            }
        } else {
            let because = "the configuration names modules that are not there";
            report.add("modules", &pipeline.name, Verdict::Skipped, because)?;
        }
    }
    clickhouse(&config, arguments.timeout, &chains, &partitions, report).await
}

/// `None` where there is nothing to go on with.
fn configuration(arguments: &Arguments, report: &mut Out) -> anyhow::Result<Option<(Config, bool)>> {
    let file = arguments.config.display().to_string();
    let errors = match Config::load(&arguments.config) {
        Ok(config) => {
            let names: Vec<_> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
            report.add("configuration", file, Verdict::Ok, format!("pipelines: {}", names.join(", ")))?;
            return Ok(Some((config, true)));
        }
        Err(errors) => errors,
    };
    for fault in &errors.faults {
        let subject = if fault.key.is_empty() { &file } else { &fault.key };
        let detail = format!("({}) {}; {}", fault.origin, fault.problem, fault.cure);
        report.add("configuration", subject, Verdict::Failed, detail)?;
    }
    match Config::load_without_modules(&arguments.config) {
        Ok(config) => Ok(Some((config, false))),
        Err(_) => {
            let because = "the configuration has to be mended first";
            report.add("everything", "else", Verdict::Skipped, because)?;
            Ok(None)
        }
    }
}

/// How many partitions each topic has that could be asked for.
async fn kafka(
    config: &Config,
    timeout: Duration,
    report: &mut Out,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let mut partitions = BTreeMap::new();
    let needs: Vec<_> = config.pipelines.iter().flat_map(app::topic_needs).collect();
    let (settings, asked) = (config.kafka.clone(), needs.clone());
    let survey = tokio::task::spawn_blocking(move || metadata::survey(&settings, &asked, timeout)).await?;
    let survey = match survey {
        Ok(survey) => survey,
        Err(error) => {
            report.add("broker", &config.kafka.brokers, Verdict::Failed, error.to_string())?;
            for need in needs {
                report.add("topic", need.topic, Verdict::Skipped, "no broker could be asked")?;
            }
            return Ok(partitions);
        }
    };
    report.add("broker", &config.kafka.brokers, Verdict::Ok, survey.brokers.join(", "))?;
    for (need, topic) in needs.into_iter().zip(survey.topics) {
        if let Ok(count) = &topic {
            partitions.insert(need.topic.clone(), *count);
        }
        match topic {
            Ok(1) => report.add("topic", need.topic, Verdict::Ok, "1 partition")?,
            Ok(count) => report.add("topic", need.topic, Verdict::Ok, format!("{count} partitions"))?,
            Err(fault) => {
                let detail = format!("({}) {}", need.key, fault.problem);
                report.add("topic", need.topic, Verdict::Failed, detail)?;
            }
        }
    }
    Ok(partitions)
}

async fn modules(
    config: &Config,
    pipeline: &PipelineConfig,
    report: &mut Out,
) -> anyhow::Result<Option<WasmChain>> {
    let settings = app::chain_settings(config, pipeline);
    let engine = app::wasm_engine(1)?;
    let loaded = tokio::task::spawn_blocking(move || -> anyhow::Result<Result<_, LoadError>> {
        let metrics = WasmMetrics::register(&telemetry::registry())?;
        let registry = ModuleRegistry::new(engine, metrics);
        Ok(registry.load_chain(&settings).map(|chain| {
            let outcomes = cases::run(&registry, &settings, &chain);
            (chain, outcomes)
        }))
    });
    let (chain, outcomes) = match loaded.await?? {
        Ok(loaded) => loaded,
        Err(error) => {
            for problem in error.problems {
                let detail = format!("(pipelines.{}) {}", pipeline.name, problem.fault);
                report.add("module", problem.path.display().to_string(), Verdict::Failed, detail)?;
            }
            return Ok(None);
        }
    };
    for module in chain.modules() {
        let detail = format!("{}, revision {}", module.stage.as_str(), module.revision);
        report.add("module", &*module.name, Verdict::Ok, detail)?;
    }
    for (name, outcome) in outcomes {
        let (verdict, detail) = match outcome.map(|outcome| (outcome.problem(), outcome.passed)) {
            Ok((None, passed)) => (Verdict::Ok, format!("{passed} golden cases pass")),
            Ok((Some(problem), _)) => (Verdict::Failed, format!("(pipelines.{}) {problem}", pipeline.name)),
            Err(fault) => (Verdict::Failed, format!("(pipelines.{}) {fault}", pipeline.name)),
        };
        report.add("cases", name, verdict, detail)?;
    }
    if let Some(fault) = preconditions::chain_fault(pipeline, chain.modules().len() - 1)
        && pipeline.delivery == Delivery::ExactlyOnce
    {
        report.add("chain", &pipeline.name, Verdict::Failed, fault)?;
    }
    let named = pipeline.settings.keys().map(|name| ("settings", name));
    for (key, name) in named.chain(pipeline.limits.keys().map(|name| ("limits", name))) {
        if !chain.modules().iter().any(|module| *module.name == **name) {
            let detail = format!("{key} of a module that is not there; remove them, or mend the name");
            let key = format!("pipelines.{}.{key}.{name}", pipeline.name);
            report.add("module", key, Verdict::Warning, detail)?;
        }
    }
    Ok(Some(chain))
}

async fn clickhouse(
    config: &Config,
    timeout: Duration,
    chains: &[(&PipelineConfig, WasmChain)],
    partitions: &BTreeMap<String, usize>,
    report: &mut Out,
) -> anyhow::Result<()> {
    let chained: Vec<_> = chains.iter().map(|(pipeline, chain)| (*pipeline, chain.outputs())).collect();
    let settings = ClickHouseSettings::from(&config.clickhouse);
    let tables = chains.iter().flat_map(|(pipeline, chain)| {
        chain.outputs().iter().map(|output| (*pipeline, output, pipeline.table(&output.name)))
    });
    // The database may be yet to be made.
    let client = settings.client().with_database("system");
    let version = within(timeout, client.query("SELECT version()").fetch_one::<String>()).await;
    let version = version.map(|answer| answer.map_err(|error| ServerError::from(error).message));
    let problem = match version {
        Ok(Ok(version)) => {
            report.add("clickhouse", &settings.url, Verdict::Ok, format!("version {version}"))?;
            None
        }
        Ok(Err(problem)) | Err(problem) => Some(problem),
    };
    if let Some(problem) = problem {
        let cure =
            "check clickhouse.url (SLUICE__CLICKHOUSE__URL), clickhouse.user, its password, and the network";
        report.add("clickhouse", &settings.url, Verdict::Failed, format!("{problem}; {cure}"))?;
        for (_, _, table) in tables {
            report.add("table", table, Verdict::Skipped, "ClickHouse could not be asked")?;
        }
        return Ok(());
    }
    let due = migrations(config, &settings, timeout, report).await?;
    let client = settings.client();
    for (pipeline, output, table) in tables {
        let bound = within(timeout, async {
            let schema = TableSchema::read(&client, table).await?;
            if pipeline.delivery == Delivery::ExactlyOnce {
                schema.require_deduplication(preconditions::pending_inserts(table, &chained, partitions))?;
            }
            Ok((schema.bind(output)?, schema))
        })
        .await;
        let owner = format!("(pipelines.{}, output {})", pipeline.name, output.name);
        match bound {
            Ok(Ok((bound, schema))) => {
                fits(&bound, report)?;
                if pipeline.delivery == Delivery::ExactlyOnce {
                    outlives_kills(&bound, &schema, report)?;
                }
            }
            Ok(Err(SchemaError::NoTable { .. })) if due && config.clickhouse.migrate_at_start => {
                let detail = format!("{owner} not there yet; `sluice run` applies the migrations first");
                report.add("table", table, Verdict::Skipped, detail)?;
            }
            Ok(Err(error)) => report.add("table", table, Verdict::Failed, format!("{owner} {error}"))?,
            Err(problem) => report.add("table", table, Verdict::Failed, format!("{owner} {problem}"))?,
        }
    }
    Ok(())
}

fn fits(bound: &BoundTable, report: &mut Out) -> std::io::Result<()> {
    let provenance: BTreeSet<_> = bound.provenance.columns().map(|column| column.name.as_str()).collect();
    let filled = bound.columns.len() - provenance.len();
    let provenance = if provenance.is_empty() {
        "no provenance".to_owned()
    } else {
        format!("provenance {}", provenance.into_iter().collect::<Vec<_>>().join(" "))
    };
    report.add("table", &*bound.table, Verdict::Ok, format!("{filled} columns fit, {provenance}"))?;
    if !bound.unfilled.is_empty() {
        let detail = format!(
            "nobody fills {}, so every row has 0, '' or NULL there; give the column a DEFAULT, or have the \
             mapper fill it",
            bound.unfilled.join(", ")
        );
        report.add("table", &*bound.table, Verdict::Warning, detail)?;
    }
    Ok(())
}

/// Warns of a table that cannot be asked for what a killed server has lost (docs/DELIVERY.md, a token without rows).
fn outlives_kills(bound: &BoundTable, schema: &TableSchema, report: &mut Out) -> std::io::Result<()> {
    if schema.is_replicated() || bound.binding().can_be_doubted() {
        return Ok(());
    }
    let cure = if bound.shows_every_row {
        "add the columns _topic, _partition and _offset, by which sluice finds out and sends it again"
            .to_owned()
    } else {
        let engine = &schema.engine;
        format!("only of a plain MergeTree, and not of a {engine}, can sluice find out and send it again")
    };
    let detail = format!("a server that is killed in the middle of an INSERT may lose a batch: {cure}");
    report.add("table", &*bound.table, Verdict::Warning, detail)
}

/// Whether migrations are due.
async fn migrations(
    config: &Config,
    settings: &ClickHouseSettings,
    timeout: Duration,
    report: &mut Out,
) -> anyhow::Result<bool> {
    let directory = &config.clickhouse.migrations;
    if !config.clickhouse.migrate_at_start && !directory.is_dir() {
        return Ok(false);
    }
    let subject = directory.display().to_string();
    let found = async {
        let migrations = Migrations::load(directory)?;
        let due = Migrator::new(settings).pending(&migrations).await?;
        let due: Vec<String> = due.iter().map(|migration| migration.file.clone()).collect();
        Ok::<_, MigrationError>((migrations.all().len(), due))
    };
    match within(timeout, found).await {
        Ok(Ok((all, due))) if due.is_empty() => {
            report.add("migrations", subject, Verdict::Ok, format!("all {all} applied"))?;
            Ok(false)
        }
        Ok(Ok((all, due))) => {
            let (verdict, cure) = if config.clickhouse.migrate_at_start {
                (Verdict::Ok, "`sluice run` applies them first")
            } else {
                (Verdict::Warning, "apply them with `sluice migrate`")
            };
            let detail = format!("{} of {all} due ({}); {cure}", due.len(), due.join(", "));
            report.add("migrations", subject, verdict, detail)?;
            Ok(true)
        }
        Ok(Err(error)) => {
            report.add("migrations", subject, Verdict::Failed, error.to_string())?;
            Ok(false)
        }
        Err(problem) => {
            report.add("migrations", subject, Verdict::Failed, problem)?;
            Ok(false)
        }
    }
}

/// Waits for an answer of ClickHouse.
async fn within<T>(timeout: Duration, answer: impl Future<Output = T>) -> Result<T, String> {
    let timed_out = |_| format!("no answer within {}", humantime::format_duration(timeout));
    tokio::time::timeout(timeout, answer).await.map_err(timed_out)
}
