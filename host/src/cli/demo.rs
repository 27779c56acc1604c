//! `sluice demo`: the main job on embedded parts, to its end, with a result one can see.
//!
//! Everything but the broker and ClickHouse is what `sluice run` runs: the shipped configuration
//! with other addresses, the shipped modules, the shipped data. The last line is counted from the
//! table and the topics; only `filtered`, which leaves no trace outside, is the pipeline's own count.

mod change;
mod suggestions;
mod summary;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::app::{self, App};
use crate::config::{Config, LogFormat};
use crate::embedded::broker::EmbeddedBroker;
use crate::embedded::{EmbeddedClickHouse, EmbeddedOptions};
use crate::kafka::client::client_config;
use crate::produce::{self, LineOptions, Lines, ProducerOptions};
use crate::shutdown::Shutdown;
use crate::telemetry;

use change::Rules;
use suggestions::Places;
use summary::Counts;

const PARTITIONS: i32 = 6;
const DEAD_LETTER_PARTITIONS: i32 = 3;
/// For orders to the demo's modules: known to everybody, as is the demo, which ends with its process.
const TOKEN: &str = "only-for-this-demo";
/// How often the progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Longest time without any progress before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Run the main job on embedded parts: a broker, ClickHouse, the shipped modules and data.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Configuration whose pipeline runs; addresses are replaced by those of the embedded parts.
    #[arg(long, default_value = "config/sluice.yaml")]
    config: PathBuf,
    /// Records to feed, one a line.
    #[arg(long, default_value = "testdata/purchases.txt")]
    file: PathBuf,
    /// Rule that is copied over the one of its name half-way, as an analyst would.
    #[arg(long, default_value = "target/modules/demo/purchase-rules.wasm")]
    changed_rule: PathBuf,
    /// Keep everything running afterwards, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// `libchdb.so`, where it is not in its usual place.
    #[arg(long, env = "SLUICE_LIBCHDB")]
    library: Option<PathBuf>,
    /// Log level on standard error.
    #[arg(long, default_value = "warn")]
    log: String,
}

/// Runs the command.
///
/// # Errors
/// When a part does not start, or the counts do not add up.
pub(super) fn run(arguments: &Arguments) -> Result<()> {
    telemetry::start_log(&arguments.log, LogFormat::Auto)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(demo(arguments));
    // On the way out of an error a blocking task may still wait for Kafka.
    runtime.shutdown_background();
    ended
}

async fn demo(arguments: &Arguments) -> Result<()> {
    let yaml = std::fs::read_to_string(&arguments.config).with_context(|| {
        format!("cannot read {}; run the demo from the project's folder", arguments.config.display())
    })?;
    say("starting an embedded Kafka broker and an embedded ClickHouse");
    let base = arguments.config.parent().unwrap_or(Path::new("."));
    // Once without the parts, to learn which topics the pipeline needs.
    let draft = Config::from_parts(&yaml, base, [])?;
    let pipeline = draft.pipelines.first().context("the configuration has no pipeline")?;
    let mut topics: Vec<_> = pipeline.topics.iter().map(|topic| (topic.as_str(), PARTITIONS)).collect();
    topics.push((&pipeline.dead_letter_topic, DEAD_LETTER_PARTITIONS));
    let rules = Rules::copy(pipeline, &arguments.changed_rule)?;
    let broker = EmbeddedBroker::start(&topics)?;
    let clickhouse = EmbeddedClickHouse::start(EmbeddedOptions {
        library: arguments.library.clone(),
        ..EmbeddedOptions::default()
    })
    .await?;
    let mut variables: Vec<(String, String)> = [
        ("SLUICE__KAFKA__BROKERS", broker.bootstrap()),
        ("SLUICE__CLICKHOUSE__URL", clickhouse.url()),
        ("SLUICE__ADMIN__LISTEN", "127.0.0.1:0".into()),
        ("SLUICE__ADMIN__TOKEN", TOKEN.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    variables.extend(rules.variables(&pipeline.name));
    // The embedded broker takes part in transactions, but does not know what they are for.
    variables.extend(draft.pipelines.iter().map(|pipeline| {
        let name = pipeline.name.to_uppercase();
        (format!("SLUICE__PIPELINES__{name}__DELIVERY"), "at-least-once".to_owned())
    }));
    say(
        "delivery: at-least-once, since the embedded broker has no real transactions; against Apache Kafka it is \
         what the configuration says, by default exactly-once",
    );
    let config = Config::from_parts(&yaml, base, variables)?;
    let shutdown = Shutdown::install(config.resources.drain_timeout)?;

    say("migrating ClickHouse, loading modules, joining the consumer group");
    let app = App::start(config.clone(), shutdown.clone()).await?;
    join(&app, PARTITIONS as usize).await?;

    let topic = config.pipelines[0].topics[0].clone();
    let mut feed = Feed::open(&arguments.file, broker.bootstrap(), topic)?;
    say(&format!("feeding the first half of {}", arguments.file.display()));
    let mut elapsed = feed.first_half(&app, &shutdown).await?;
    say(&format!(
        "copying a changed rule to {}, and one that is cut short beside it",
        rules.path().display()
    ));
    let change = rules.change(&app).await?;
    say(&format!(
        "the changed rule was live {} ms after the copy; the other one was refused. Feeding the second half",
        change.took.as_millis()
    ));
    elapsed += feed.second_half(&app, &shutdown).await?;

    let filtered = filtered(&app);
    let counts = count(&config, filtered).await?;
    summary::print(&config, &counts, &change, elapsed).await?;
    if arguments.stay {
        let (clickhouse, broker) = (clickhouse.url(), broker.bootstrap());
        let places = Places {
            admin: app.admin_address(),
            broker: &broker,
            clickhouse: &clickhouse,
            rule: &rules.path(),
        };
        println!("\n{}", places.suggestions(&config));
        shutdown.token().cancelled().await;
    }
    shutdown.begin();
    app.wait().await?;
    clickhouse.stop().await?;
    println!("{}", counts.line());
    if !counts.add_up() {
        bail!(
            "the counts do not add up: a record is lost or there twice; please report it with the log of --log info"
        );
    }
    Ok(())
}

fn say(text: &str) {
    println!("demo: {text}");
}

/// Waits until every partition is assigned, so that the throughput is not that of the group's first
/// rebalance, which takes three seconds by itself.
async fn join(app: &App, partitions: usize) -> Result<()> {
    let assigned = async {
        let mut status = app.statuses()[0].clone();
        status.wait_for(|status| status.partitions.len() == partitions).await.map(drop)
    };
    tokio::time::timeout(PATIENCE, assigned)
        .await
        .context("the consumer group was not joined in time; see the log of --log info")?
        .context("the pipeline ended; see the log of --log info")
}

/// A file of lines on its way to the topic, in halves.
struct Feed {
    lines: Lines,
    brokers: String,
    topic: String,
    half: u64,
    produced: u64,
}

impl Feed {
    fn open(file: &Path, brokers: String, topic: String) -> Result<Self> {
        let options = LineOptions { key: Some("purchase_id".into()), raw: true, repeat: false };
        let half = Lines::check(file, &options, None)? / 2;
        Ok(Self { lines: Lines::open(file, options)?, brokers, topic, half, produced: 0 })
    }

    async fn first_half(&mut self, app: &App, shutdown: &Shutdown) -> Result<Duration> {
        self.send(Some(self.half), app, shutdown).await
    }

    async fn second_half(&mut self, app: &App, shutdown: &Shutdown) -> Result<Duration> {
        self.send(None, app, shutdown).await
    }

    /// Sends at most `most` lines and waits until they are settled; returns how long that took.
    async fn send(&mut self, most: Option<u64>, app: &App, shutdown: &Shutdown) -> Result<Duration> {
        let options = ProducerOptions::new(&self.brokers, &self.topic);
        let most = most.map_or(usize::MAX, |most| most as usize);
        let started = Instant::now();
        let sent = tokio::task::block_in_place(|| {
            let lines = self.lines.by_ref().take(most);
            let summary = produce::send(lines, &options, |_| ControlFlow::Continue(()))?;
            match self.lines.error() {
                Some(error) => Err(anyhow::anyhow!("{error}")),
                None => Ok(summary),
            }
        });
        self.produced += sent?.produced;
        watch(app, shutdown, self.produced).await?;
        Ok(started.elapsed())
    }
}

/// Waits until every produced record is settled; shows how far it is.
async fn watch(app: &App, shutdown: &Shutdown, produced: u64) -> Result<()> {
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(produced).with_style(
            ProgressStyle::with_template("demo: {bar:40} {pos}/{len} records settled, {msg}")
                .context("the template of the progress bar is wrong")?,
        )
    } else {
        ProgressBar::hidden()
    };
    let mut progress = (0, Instant::now());
    loop {
        let (mut settled, mut in_flight, mut reasons) = (0, 0, Vec::new());
        for status in app.statuses() {
            let status = status.borrow();
            for partition in &status.partitions {
                settled += partition.inserted + partition.filtered + partition.dead_lettered;
                in_flight += partition.in_flight;
            }
            reasons.extend(status.not_ready.iter().cloned());
        }
        bar.set_position(settled);
        bar.set_message(format!("{in_flight} in flight"));
        if settled >= produced && in_flight == 0 {
            bar.finish_and_clear();
            return Ok(());
        }
        if settled != progress.0 {
            progress = (settled, Instant::now());
        }
        if progress.1.elapsed() > PATIENCE {
            bail!("no progress for {PATIENCE:?} at {settled} of {produced} records: {}", reasons.join("; "));
        }
        if shutdown.has_begun() {
            bail!("stopped at {settled} of {produced} records");
        }
        tokio::time::sleep(TICK).await;
    }
}

fn filtered(app: &App) -> u64 {
    app.statuses()
        .iter()
        .flat_map(|status| {
            status.borrow().partitions.iter().map(|partition| partition.filtered).collect::<Vec<_>>()
        })
        .sum()
}

/// Counts the source topic, the table and the dead-letter topic.
async fn count(config: &Config, filtered: u64) -> Result<Counts> {
    let client = client_config(&config.kafka);
    let pipeline = config.pipelines[0].clone();
    let (produced, dead_letters) = tokio::task::spawn_blocking(move || {
        let mut produced = 0;
        for topic in &pipeline.topics {
            produced += crate::kafka::reader::record_counts(&client, topic)?.iter().sum::<i64>() as u64;
        }
        let mut dead_letters = Vec::new();
        crate::kafka::reader::read_all(&client, &pipeline.dead_letter_topic, PATIENCE, |record| {
            dead_letters.push(record);
        })?;
        Ok::<_, anyhow::Error>((produced, dead_letters))
    })
    .await??;
    let clickhouse = app::clickhouse_settings(config).client();
    let mut inserted = 0;
    for table in summary::tables(config) {
        // Rows are counted, not distinct records: a record that is there twice must show.
        let query = format!("SELECT count() FROM {table}");
        inserted += clickhouse.query(&query).fetch_one::<u64>().await?;
    }
    Ok(Counts { produced, inserted, filtered, dead_letters })
}
