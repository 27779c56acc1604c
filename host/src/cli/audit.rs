//! `sluice audit`: where every record ended that the group of a pipeline has passed, counted from the
//! tables, the dead-letter topic and, for what is in neither, the source topic.
//!
//! It changes nothing, and may run beside the hosts: committed offsets are read first, and what stands
//! before them is settled. What it holds is bounded by [`WINDOW`], and by 8 bytes a dead letter.

mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clickhouse::Client;
use jiff::Timestamp;

use crate::app;
use crate::clickhouse::holdings::holdings;
use crate::clickhouse::schema::TableSchema;
use crate::config::{Config, PipelineConfig};
use crate::domain::audit::{Again, PartitionAudit, Window};
use crate::domain::chunk::{Chunk, ChunkBuilder, content_bytes};
use crate::domain::intent::{IntentSlice, PendingBatches};
use crate::domain::ledger::PartitionId;
use crate::kafka::client::client_config;
use crate::kafka::inspection::{Inspector, PartitionPosition};
use crate::kafka::reader::{OwnedRecord, read_all};
use crate::pipeline::ports::{Chain, ChainRunner};
use crate::telemetry;
use crate::wasm::{ModuleRegistry, WasmChain, WasmMetrics};

use report::{AuditedPartition, AuditedPipeline};

/// Offsets that are looked at together.
const WINDOW: i64 = 1 << 20;
/// What was found, and what kept it from being looked for.
const FOUND: u8 = 1;
const FAILED: u8 = 2;

/// Count where every record ended: consumed = inserted + filtered + dead-lettered, by partition.
///
/// Looks at the records from the start of each partition (or `--from`) to the committed offset. Exits with
/// 0 when each is in its table or in the dead-letter topic once, or filtered; with 1 when some are missing
/// or there twice; with 2 when it could not look. Changes nothing, and can run beside the hosts.
///
/// What is in neither place is run through the modules of today: filtered there, it counts as filtered,
/// and as missing otherwise. A rule that has changed since can mislead.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Configuration file; environment variables SLUICE__SECTION__KEY override it.
    #[arg(long, short, env = "SLUICE_CONFIG", default_value = "config/sluice.yaml")]
    config: PathBuf,
    /// Pipeline; all of them without it.
    #[arg(long, short)]
    pipeline: Option<String>,
    /// Where to begin: an offset, of every partition, or an RFC 3339 time; the first record without it.
    /// Needed for a group that started at the end of its topics, and for a table that forgets (TTL).
    #[arg(long, value_parser = Start::from_str)]
    from: Option<Start>,
    /// Most ranges of offsets that are listed of one partition and finding; all are counted.
    #[arg(long, default_value_t = 20)]
    list: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Longest wait for one answer or record of Kafka.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Where an audit begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Offset(i64),
    Time(Timestamp),
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.parse::<i64>() {
            Ok(offset) if offset >= 0 => Ok(Self::Offset(offset)),
            Ok(_) => Err("an offset is 0 at least".to_owned()),
            Err(_) => text.parse().map(Self::Time).map_err(|_| {
                "neither an offset nor an RFC 3339 time; write 42000 or 2026-01-31T20:00:00Z".to_owned()
            }),
        }
    }
}

/// Runs the command; it has an exit code of its own for an error, since 1 says that something was found.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let audited = audit(arguments).and_then(|pipelines| {
        report::print(&pipelines, arguments.json, &mut std::io::stdout().lock())?;
        Ok(pipelines)
    });
    match audited {
        Ok(pipelines) if pipelines.iter().all(AuditedPipeline::is_clean) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(FOUND),
        Err(error) => {
            eprintln!("error: {}", super::told(&error));
            ExitCode::from(FAILED)
        }
    }
}

fn audit(arguments: &Arguments) -> Result<Vec<AuditedPipeline>> {
    let config = Config::load(&arguments.config)?;
    let chosen: Vec<&PipelineConfig> = config
        .pipelines
        .iter()
        .filter(|pipeline| arguments.pipeline.as_ref().is_none_or(|name| *name == pipeline.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
        bail!(
            "there is no pipeline `{}`; there is {}",
            arguments.pipeline.as_deref().unwrap_or_default(),
            names.join(", ")
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    chosen
        .into_iter()
        .map(|pipeline| {
            let auditor = runtime.block_on(Auditor::new(&config, pipeline, arguments));
            auditor
                .and_then(|mut auditor| auditor.run(&runtime))
                .with_context(|| format!("pipelines.{}", pipeline.name))
        })
        .collect()
}

/// What a pipeline is audited with.
struct Auditor<'a> {
    config: &'a Config,
    pipeline: &'a PipelineConfig,
    arguments: &'a Arguments,
    client: Client,
    inspector: Inspector,
    tables: Vec<String>,
    second_run: SecondRun,
}

impl<'a> Auditor<'a> {
    async fn new(config: &'a Config, pipeline: &'a PipelineConfig, arguments: &'a Arguments) -> Result<Self> {
        let settings = app::chain_settings(config, pipeline);
        let registry =
            ModuleRegistry::new(app::wasm_engine(1)?, WasmMetrics::register(&telemetry::registry())?);
        let chain = registry.load_chain(&settings)?;
        let client = app::clickhouse_settings(config).client();
        let mut tables: Vec<String> = Vec::new();
        let mut places = Vec::new();
        for output in chain.outputs() {
            let table = pipeline.table(&output.name);
            let bound = TableSchema::read(&client, table).await?.bind(output)?;
            if !bound.provenance.identifies_records() {
                bail!(
                    "table {table} cannot be asked which records it holds; give it the columns \
                     `_topic LowCardinality(String), _partition Int32, _offset Int64`, which are filled from the \
                     next start on"
                );
            }
            let place = tables.iter().position(|known| known == table).unwrap_or_else(|| {
                tables.push(table.to_owned());
                tables.len() - 1
            });
            places.push(place);
        }
        let second_run = SecondRun::new(&chain, places, tables.len());
        let inspector = Inspector::new(&config.kafka, &pipeline.group, arguments.timeout)
            .context("librdkafka refuses the settings; mend kafka.properties")?;
        Ok(Self { config, pipeline, arguments, client, inspector, tables, second_run })
    }

    fn run(&mut self, runtime: &tokio::runtime::Runtime) -> Result<AuditedPipeline> {
        // Before the rest, so that what stands before these offsets is in its place by now.
        let mut positions = Vec::new();
        for topic in &self.pipeline.topics {
            for position in self.inspector.positions(topic)? {
                positions.push((
                    PartitionId { topic: topic.as_str().into(), partition: position.partition },
                    position,
                ));
            }
        }
        let letters = self.letters()?;
        let mut partitions = Vec::new();
        for (id, position) in positions {
            let start = self.start(&id, &position)?;
            let end = position.committed.unwrap_or(start).max(start);
            let letters = letters.get(&id).map_or(&[][..], Vec::as_slice);
            let audit = self.partition(runtime, &id, (start, end), letters)?;
            let (pending_batches, pending_records) = pending(&id, &position.metadata)?;
            partitions.push(AuditedPartition {
                id,
                start,
                committed: position.committed,
                pending_batches,
                pending_records,
                audit,
            });
        }
        Ok(AuditedPipeline {
            name: self.pipeline.name.clone(),
            group: self.pipeline.group.clone(),
            tables: self.tables.clone(),
            dead_letter_topic: self.pipeline.dead_letter_topic.clone(),
            partitions,
        })
    }

    fn start(&self, id: &PartitionId, position: &PartitionPosition) -> Result<i64> {
        Ok(match self.arguments.from {
            None => position.low,
            Some(Start::Offset(offset)) => offset.max(position.low),
            Some(Start::Time(time)) => {
                let found = self.inspector.offset_at(&id.topic, id.partition, time.as_millisecond())?;
                found.unwrap_or(position.end).max(position.low)
            }
        })
    }

    /// Offsets of this pipeline's dead letters, by the partition that their records stand in.
    fn letters(&self) -> Result<BTreeMap<PartitionId, Vec<i64>>> {
        let mut client = client_config(&self.config.kafka);
        client.set("isolation.level", "read_committed");
        let mut letters: BTreeMap<PartitionId, Vec<i64>> = BTreeMap::new();
        read_all(&client, &self.pipeline.dead_letter_topic, self.arguments.timeout, |letter| {
            if letter.header("sluice.pipeline") != Some(&self.pipeline.name) {
                return;
            }
            let header = |name| letter.header(name);
            let origin = header("sluice.topic")
                .zip(header("sluice.partition").and_then(|text| text.parse().ok()))
                .zip(header("sluice.offset").and_then(|text| text.parse().ok()));
            if let Some(((topic, partition), offset)) = origin {
                letters.entry(PartitionId { topic: topic.into(), partition }).or_default().push(offset);
            }
        })?;
        letters.values_mut().for_each(|offsets| offsets.sort_unstable());
        Ok(letters)
    }

    fn partition(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        id: &PartitionId,
        (start, end): (i64, i64),
        letters: &[i64],
    ) -> Result<PartitionAudit> {
        let mut audit = PartitionAudit::new(self.arguments.list);
        let tables: Vec<&str> = self.tables.iter().map(String::as_str).collect();
        let mut from = start;
        while from < end {
            let to = end.min(from + WINDOW);
            let slice = IntentSlice { partition: id.clone(), start: from, end: to };
            let mut window = Window::new(&mut audit, letters, from, to);
            let counted = holdings(&self.client, &tables, &slice, |offset, rows| window.row(offset, rows));
            runtime.block_on(counted)?;
            let doubtful = window.doubtful();
            let second_run = &mut self.second_run;
            self.inspector.records(&id.topic, id.partition, &doubtful, |record| {
                second_run.take(id, &record, &mut window);
            })?;
            second_run.finish(&mut window);
            window.finish();
            from = to;
        }
        Ok(audit)
    }
}

/// Batches that the metadata of a partition lists, and offsets of it in them.
fn pending(id: &PartitionId, metadata: &str) -> Result<(usize, u64)> {
    let pending = PendingBatches::decode(metadata)
        .with_context(|| format!("topic {}, partition {}", id.topic, id.partition))?;
    let Some(pending) = pending else { return Ok((0, 0)) };
    let slices = pending.intents().iter().filter_map(|intent| intent.slice(id));
    let records = slices.map(|slice| slice.end.abs_diff(slice.start)).sum();
    Ok((pending.intents().len(), records))
}

/// Runs records through the chain of today, a chunk at a time.
struct SecondRun {
    runner: Box<dyn ChainRunner>,
    /// For each output of the chain, the index of its table.
    places: Vec<usize>,
    tables: usize,
    chunk: Option<ChunkBuilder>,
}

impl SecondRun {
    fn new(chain: &WasmChain, places: Vec<usize>, tables: usize) -> Self {
        Self { runner: chain.runner(), places, tables, chunk: None }
    }

    /// Takes a record, by increasing offset; verdicts come now or later.
    fn take(&mut self, id: &PartitionId, record: &OwnedRecord, window: &mut Window<'_>) {
        let headers = || record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let (key, payload) = (record.key.as_deref(), record.payload.as_deref());
        let bytes = content_bytes(key, payload, headers());
        if self.chunk.as_ref().is_some_and(|chunk| chunk.refuses(record.offset, bytes)) {
            self.finish(window);
        }
        let new = || ChunkBuilder::new(id.topic.clone(), id.partition, record.offset);
        self.chunk.get_or_insert_with(new).push(record.offset, record.timestamp, key, payload, headers());
    }

    /// Gives the verdicts that are due.
    fn finish(&mut self, window: &mut Window<'_>) {
        let Some(chunk) = self.chunk.take().map(ChunkBuilder::build) else { return };
        for (index, again) in self.verdicts(&chunk).into_iter().enumerate() {
            window.again(chunk.offset(index), again);
        }
    }

    fn verdicts(&mut self, chunk: &Chunk) -> Vec<Again> {
        let verdicts = self.runner.run(chunk);
        let mut rows = vec![vec![0; self.tables]; chunk.len()];
        for (output, place) in verdicts.outputs.iter().zip(&self.places) {
            for (record, count) in rows.iter_mut().zip(&output.rows_per_record) {
                record[*place] += u64::from(*count);
            }
        }
        let mut again: Vec<Again> = rows.into_iter().map(Again::Rows).collect();
        for (index, _) in verdicts.rejections {
            again[index as usize] = Again::Rejected;
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_begins_at_an_offset_or_a_time() {
        assert_eq!("42".parse(), Ok(Start::Offset(42)));
        let time = "2026-01-31T20:00:00Z";
        assert_eq!(time.parse(), Ok(Start::Time(time.parse().expect("a time"))));
        assert!("-1".parse::<Start>().is_err());
        assert!("yesterday".parse::<Start>().is_err_and(|error| error.contains("2026-")));
    }
}
