//! `sluice module diff`: what two revisions of a module say of the same records.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::app;
use crate::clickhouse::archive::RevisionArchive;
use crate::domain::chunk::{Chunk, ChunkBuilder, content_bytes};
use crate::domain::verdict::{Revision, Stage};
use crate::kafka::inspection::{Inspector, PartitionPosition};
use crate::kafka::reader::OwnedRecord;
use crate::pipeline::modules::ShadowReport;
use crate::wasm::{Comparison, SingleModule};

use super::Ending;
use super::lines::{Lines, TOPIC};
use super::source::{Loaded, SourceArguments, Workshop};

/// Fewest digits by which a revision is asked for.
const FEWEST_DIGITS: usize = 4;

/// Compare what two modules say of the same records: verdicts, codes and rows.
///
/// A and B are .wasm files, or first digits of revisions that the archive in ClickHouse keeps. Each judges
/// every record on its own, also those that another module of the pipeline would have rejected before.
/// Exits with 0 when they say the same and with 1 when they differ.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("records").required(true).args(["input", "topic"])))]
pub(super) struct DiffArguments {
    /// What runs now: a .wasm file, or digits of a revision.
    a: String,
    /// What might run: a .wasm file, or digits of a revision.
    b: String,
    /// Payloads, one a line.
    #[arg(long)]
    input: Option<PathBuf>,
    /// The newest records of the pipeline's topics, read outside its consumer group.
    #[arg(long)]
    topic: bool,
    /// How many records of the topics, shared evenly by their partitions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    last: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Longest wait for one answer or record of Kafka.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    source: SourceArguments,
}

/// Runs the command.
pub(super) fn run(arguments: &DiffArguments) -> Result<Ending> {
    let workshop = Workshop::open(&arguments.source)?;
    let [a, b] = [&arguments.a, &arguments.b].map(|text| load(&workshop, arguments, text));
    let (a, b) = (a?, b?);
    if a.file.stage != b.file.stage {
        let kind = |loaded: &Loaded| if loaded.file.stage == Stage::Map { "mapper" } else { "validator" };
        bail!("{} is a {} and {} a {}; compare two of a kind", arguments.a, kind(&a), arguments.b, kind(&b));
    }
    let mut both = Both {
        comparison: Comparison::new(&a.module, &b.module),
        live: workshop.single(&a),
        other: workshop.single(&b),
    };
    if let Some(path) = &arguments.input {
        for chunk in Lines::open(path)? {
            both.judge(&chunk?);
        }
    } else {
        newest(&workshop, arguments, &mut both)?;
    }
    let report = both.comparison.report();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report, arguments, &mut out)?;
        if a.module.settings() != b.module.settings() {
            print_settings([&a, &b], &mut out)?;
        }
        print_samples(&report, &mut out)?;
    }
    Ok(if report.same == report.records { Ending::Well } else { Ending::Found })
}

/// Both modules, and what was found so far.
struct Both {
    comparison: Comparison,
    live: SingleModule,
    other: SingleModule,
}

impl Both {
    fn judge(&mut self, chunk: &Chunk) {
        let all: Vec<u32> = (0..chunk.len() as u32).collect();
        let (live, other) = (self.live.run(chunk, &all), self.other.run(chunk, &all));
        self.comparison.add_chunk(chunk, &all, &live, &other);
    }
}

/// A file, or what the archive has under these digits.
fn load(workshop: &Workshop, arguments: &DiffArguments, text: &str) -> Result<Loaded> {
    let path = Path::new(text);
    let is_digits = text.len() >= FEWEST_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if path.exists() || !is_digits {
        return workshop
            .load_file(path)?
            .map_err(anyhow::Error::new)
            .with_context(|| format!("module {text}"));
    }
    let beside = [&arguments.a, &arguments.b].into_iter().map(Path::new).find(|path| path.exists());
    let name = match (workshop.given_name(), beside) {
        (Some(name), _) => name.to_owned(),
        (None, Some(path)) => workshop.name(path).with_context(|| format!("module {}", path.display()))?,
        (None, None) => bail!("name the module with --name: revisions are kept by the name of their module"),
    };
    let archive = RevisionArchive::new(&app::clickhouse_settings(workshop.config()?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let file = runtime.block_on(async {
        let mut found: Vec<(Revision, Stage)> = Vec::new();
        for stage in [Stage::Validate, Stage::Map] {
            let revisions = archive.find(&name, stage, text).await?;
            found.extend(revisions.into_iter().map(|revision| (revision, stage)));
        }
        match found.as_slice() {
            [(revision, stage)] => Ok(archive.fetch_one(*revision, *stage).await?),
            [] => bail!(
                "no revision of module {name} begins with {text}; sluice module history {name} lists them, and \
                 --name says which module it is of, where the file is called otherwise"
            ),
            several => {
                bail!("{} revisions of module {name} begin with {text}; write more digits", several.len())
            }
        }
    })?;
    let file = file.with_context(|| format!("revision {text} of module {name} is gone from the archive"))?;
    workshop
        .load_kept(file)?
        .map_err(anyhow::Error::new)
        .with_context(|| format!("revision {text} of module {name}"))
}

/// Judges the newest records of the pipeline's topics.
fn newest(workshop: &Workshop, arguments: &DiffArguments, both: &mut Both) -> Result<()> {
    let (config, pipeline) = (workshop.config()?, workshop.pipeline()?);
    let inspector = Inspector::new(&config.kafka, &pipeline.group, arguments.timeout)
        .context("librdkafka refuses the settings; mend kafka.properties")?;
    let mut partitions = Vec::new();
    for topic in &pipeline.topics {
        partitions.extend(inspector.positions(topic)?.into_iter().map(|position| (topic, position)));
    }
    let counts: Vec<u64> = partitions.iter().map(|(_, position)| available(position)).collect();
    for ((topic, position), count) in partitions.iter().zip(shares(&counts, arguments.last)) {
        let ranges = [(position.end - count as i64, position.end)];
        let mut builder: Option<ChunkBuilder> = None;
        inspector.records(topic, position.partition, &ranges, |record| {
            let full = builder.take_if(|builder| builder.refuses(record.offset, content(&record)));
            if let Some(full) = full {
                both.judge(&full.build());
            }
            let new = || ChunkBuilder::new(topic.as_str().into(), position.partition, record.offset);
            push(builder.get_or_insert_with(new), &record);
        })?;
        if let Some(last) = builder {
            both.judge(&last.build());
        }
    }
    Ok(())
}

fn available(position: &PartitionPosition) -> u64 {
    u64::try_from(position.end - position.low).unwrap_or(0)
}

/// Of so many records in each partition, how many to take so that they are `total` together, as evenly as
/// there are.
fn shares(available: &[u64], total: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..available.len()).collect();
    order.sort_by_key(|index| available[*index]);
    let mut shares = vec![0; available.len()];
    let mut left = total;
    for (done, index) in order.iter().enumerate() {
        let partitions = (available.len() - done) as u64;
        shares[*index] = available[*index].min(left.div_ceil(partitions));
        left -= shares[*index];
    }
    shares
}

fn headers(record: &OwnedRecord) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
    record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
}

fn content(record: &OwnedRecord) -> usize {
    content_bytes(record.key.as_deref(), record.payload.as_deref(), headers(record))
}

fn push(builder: &mut ChunkBuilder, record: &OwnedRecord) {
    let (key, payload) = (record.key.as_deref(), record.payload.as_deref());
    builder.push(record.offset, record.timestamp, key, payload, headers(record));
}

fn print(report: &ShadowReport, arguments: &DiffArguments, out: &mut impl Write) -> Result<()> {
    writeln!(out, "a  {}, revision {}", arguments.a, report.live)?;
    writeln!(out, "b  {}, revision {}", arguments.b, report.shadow)?;
    writeln!(out, "\n{:>8}  records", report.records)?;
    for (count, text) in [
        (report.same, "same"),
        (report.newly_rejected, "rejected by b, accepted by a"),
        (report.newly_accepted, "accepted by b, rejected by a"),
        (report.other_code, "rejected by both, with another code"),
        (report.other_rows, "accepted by both, with other rows"),
        (report.faults, "b broke on (trap, timeout, memory, bad answer)"),
    ] {
        if count > 0 {
            writeln!(out, "{count:>8}  {text}")?;
        }
    }
    Ok(())
}

/// What differs may be the settings' doing alone.
fn print_settings(both: [&Loaded; 2], out: &mut impl Write) -> Result<()> {
    writeln!(out, "\nTheir settings differ, and each revision is with its own:")?;
    for (side, loaded) in ["a", "b"].into_iter().zip(both) {
        writeln!(out, "  {side}  {}: {}", loaded.file.name, loaded.module.settings())?;
    }
    if both[0].file.name != both[1].file.name {
        writeln!(out, "Settings go by the name of a file; --name NAME takes both files for module NAME.")?;
    }
    Ok(())
}

fn print_samples(report: &ShadowReport, out: &mut impl Write) -> Result<()> {
    for sample in &report.samples {
        let place = match sample.topic.as_str() {
            TOPIC => format!("line {}", sample.offset + 1),
            topic => format!("{topic}[{}]@{}", sample.partition, sample.offset),
        };
        writeln!(out, "\n{place}: {}", sample.difference.replace('_', " "))?;
        writeln!(out, "  a  {}\n  b  {}", sample.live, sample.shadow)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_evenly_and_no_more_than_there_are() {
        assert_eq!(shares(&[100, 100, 100], 30), [10, 10, 10]);
        assert_eq!(shares(&[2, 100, 100], 30), [2, 14, 14]);
        assert_eq!(shares(&[100, 0, 5], 30), [25, 0, 5]);
        assert_eq!(shares(&[1, 2], 30), [1, 2]);
        assert_eq!(shares(&[100, 100, 100], 1).iter().sum::<u64>(), 1);
        assert_eq!(shares(&[], 30), [0; 0]);
    }
}
