//! `sluice produce`: feeds a topic (or a file) from a file of lines or from a generator.
//!
//! Every option may come from the environment (`SLUICE_PRODUCE_*`), so that a container needs no
//! command line. The last line on standard output is the summary; progress goes to standard error.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::builder::FalseyValueParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use crate::produce::{
    self, BaseTime, Compression, Description, ExpectedVerdict, FieldPath, Generated, Generator,
    GeneratorOptions, LineOptions, Lines, Message, ProduceError, ProducerOptions, Progress, Summary,
};

/// Produce test traffic: a file of JSON lines, or generated records with a share of faults.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["file", "generate"])))]
pub(super) struct Arguments {
    /// Kafka brokers, host:port, separated by commas
    #[arg(long, env = "SLUICE_PRODUCE_BROKERS", required_unless_present = "out")]
    brokers: Option<String>,
    /// Topic to produce to
    #[arg(long, env = "SLUICE_PRODUCE_TOPIC", required_unless_present = "out")]
    topic: Option<String>,
    /// Send the lines of this file, one message a line
    #[arg(long, env = "SLUICE_PRODUCE_FILE", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Generate records from this description (docs/GENERATOR.md)
    #[arg(long, env = "SLUICE_PRODUCE_GENERATE", value_name = "DESCRIPTION")]
    generate: Option<PathBuf>,
    /// Seed of the generator: the same seed gives the same records
    #[arg(long, env = "SLUICE_PRODUCE_SEED", default_value_t = 1)]
    seed: u64,
    /// Share of the generated records that get a fault, from 0 to 1
    #[arg(long, env = "SLUICE_PRODUCE_FAULT_SHARE", default_value_t = 0.0, value_parser = share)]
    fault_share: f64,
    /// Base time of generated timestamps, instead of the description's: `now` or RFC 3339
    #[arg(long, env = "SLUICE_PRODUCE_BASE_TIME", value_name = "TIME")]
    base_time: Option<BaseTime>,
    /// Stop after that many messages
    #[arg(long, env = "SLUICE_PRODUCE_COUNT")]
    count: Option<u64>,
    /// Messages a second, such as 500 or 500/s; as fast as possible without it
    #[arg(long, env = "SLUICE_PRODUCE_RATE", value_parser = rate)]
    rate: Option<f64>,
    /// Start over at the end of the file, or generate without end, until Ctrl-C or --count
    #[arg(long = "loop", env = "SLUICE_PRODUCE_LOOP", value_parser = FalseyValueParser::new())]
    repeat: bool,
    /// Field that becomes the key, such as purchase_id, or `none`; a generator's description has its own
    #[arg(long, env = "SLUICE_PRODUCE_KEY_FIELD", value_name = "FIELD")]
    key_field: Option<String>,
    /// Codec of the batches sent
    #[arg(long, env = "SLUICE_PRODUCE_COMPRESSION", value_enum, default_value_t)]
    compression: Compression,
    /// Send lines as they are, also those that are not JSON
    #[arg(long, env = "SLUICE_PRODUCE_RAW", value_parser = FalseyValueParser::new())]
    raw: bool,
    /// A librdkafka property; may be given more than once, or separated by semicolons
    #[arg(long = "property", env = "SLUICE_PRODUCE_PROPERTIES", value_name = "NAME=VALUE",
          value_parser = property, value_delimiter = ';')]
    properties: Vec<(String, String)>,
    /// Make the topic with that many partitions if it is missing
    #[arg(long, env = "SLUICE_PRODUCE_CREATE_TOPIC", value_name = "PARTITIONS",
          value_parser = clap::value_parser!(u32).range(1..))]
    create_topic: Option<u32>,
    /// Send one record of each kind of fault, instead of a random mix
    #[arg(long, env = "SLUICE_PRODUCE_EACH_FAULT", value_parser = FalseyValueParser::new(), requires = "generate")]
    each_fault: bool,
    /// How long to wait for a broker at the start, and for each delivery
    #[arg(long, env = "SLUICE_PRODUCE_TIMEOUT", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Write the verdict that is expected of each generated record here, as JSON lines
    #[arg(long, env = "SLUICE_PRODUCE_EXPECTED", value_name = "FILE", requires = "generate")]
    expected: Option<PathBuf>,
    /// Write the payloads to this file, one a line, instead of producing
    #[arg(long, env = "SLUICE_PRODUCE_OUT", value_name = "FILE")]
    out: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "write a share from 0 to 1, such as 0.02".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    text.strip_suffix("/s")
        .unwrap_or(text)
        .parse::<f64>()
        .ok()
        .filter(|rate| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "write messages a second, such as 500 or 500/s".to_owned())
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write name=value, such as batch.size=100000".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// Whatever kept a message from being delivered, or a line from being written.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let summary = match (&arguments.file, &arguments.generate) {
        (Some(file), _) => produce_file(arguments, file, stop),
        (None, Some(description)) => produce_generated(arguments, description, stop),
        (None, None) => bail!("nothing to produce; give --file or --generate"),
    };
    if let Err(error) = &summary
        && let Some(ProduceError::NotDelivered { summary, .. }) = error.downcast_ref()
    {
        println!("{summary}");
    }
    println!("{}", summary?);
    Ok(())
}

fn produce_file(arguments: &Arguments, file: &Path, stop: &AtomicBool) -> anyhow::Result<Summary> {
    let options = LineOptions {
        key: arguments.key_field.as_deref().filter(|field| *field != "none").map(FieldPath::from),
        raw: arguments.raw,
        repeat: arguments.repeat,
    };
    let limit = arguments.count.unwrap_or(u64::MAX);
    // A pipe can be read only once: then a bad line is found when it is reached.
    let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
    let checked = if regular { Some(Lines::check(file, &options, arguments.count)?) } else { None };
    let total = if arguments.repeat { arguments.count } else { checked };
    let mut lines = Lines::open(file, options)?;
    let messages = lines.by_ref().take(usize::try_from(limit).unwrap_or(usize::MAX));
    let summary = deliver(arguments, messages, total, stop);
    match lines.error() {
        Some(error) => Err(anyhow!("{error}")),
        None => summary,
    }
}

fn produce_generated(arguments: &Arguments, path: &Path, stop: &AtomicBool) -> anyhow::Result<Summary> {
    if arguments.count.is_none() && !arguments.repeat && !arguments.each_fault {
        bail!("a generator has no end; say how many with --count N, or --loop to go on until Ctrl-C");
    }
    let mut description = Description::read(path)?;
    match arguments.key_field.as_deref() {
        Some("none") => description.key = None,
        Some(field) => description.key = Some(field.into()),
        None => {}
    }
    description.base_time = arguments.base_time.unwrap_or(description.base_time);
    let options = GeneratorOptions {
        seed: arguments.seed,
        fault_share: arguments.fault_share,
        lines_only: arguments.out.is_some(),
    };
    let generator = Generator::new(description, options)
        .with_context(|| format!("cannot generate from {}", path.display()))?;
    let mut expected = arguments.expected.as_deref().map(create).transpose()?;
    let failure = RefCell::new(None);
    let limit = arguments.count.unwrap_or(u64::MAX);
    let generated: Box<dyn Iterator<Item = Generated<'_>>> = if arguments.each_fault {
        Box::new(generator.each_fault(0, Timestamp::now()).take(usize::try_from(limit).unwrap_or(usize::MAX)))
    } else {
        Box::new((0..limit).map(|index| generator.generate(index, Timestamp::now())))
    };
    let messages = generated.map_while(|generated| {
        if let Some(file) = &mut expected
            && let Err(error) = write_expected(file, &generated)
        {
            *failure.borrow_mut() = Some(error);
            return None;
        }
        Some(generated.message)
    });
    let total = if arguments.each_fault { None } else { arguments.count };
    let summary = deliver(arguments, messages, total, stop)?;
    if let (Some(file), Some(path)) = (&mut expected, &arguments.expected) {
        let written = failure.into_inner().map_or_else(|| file.flush(), Err);
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(summary)
}

fn write_expected(file: &mut impl std::io::Write, generated: &Generated<'_>) -> std::io::Result<()> {
    writeln!(file, "{}", ExpectedVerdict::from(generated).to_line())
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(BufWriter::new(file))
}

/// Sends the messages, or writes them to `--out`.
fn deliver(
    arguments: &Arguments,
    messages: impl Iterator<Item = Message>,
    total: Option<u64>,
    stop: &AtomicBool,
) -> anyhow::Result<Summary> {
    if let Some(out) = &arguments.out {
        return write_lines(out, messages, stop);
    }
    let (Some(brokers), Some(topic)) = (&arguments.brokers, &arguments.topic) else {
        bail!("where to? give --brokers and --topic, or --out FILE");
    };
    let options = ProducerOptions {
        compression: arguments.compression,
        properties: arguments.properties.clone(),
        rate: arguments.rate,
        timeout: arguments.timeout,
        create_topic: arguments.create_topic,
        ..ProducerOptions::new(brokers, topic)
    };
    let mut display = ProgressDisplay::new(total);
    let summary = produce::send(messages, &options, |progress| {
        display.show(progress);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    display.clear();
    Ok(summary?)
}

fn write_lines(
    path: &Path,
    messages: impl Iterator<Item = Message>,
    stop: &AtomicBool,
) -> anyhow::Result<Summary> {
    let started = Instant::now();
    let mut file = create(path)?;
    let mut summary = Summary { produced: 0, bytes: 0, failed: 0, elapsed: Duration::ZERO, stopped: false };
    for message in messages {
        if stop.load(Ordering::Relaxed) {
            summary.stopped = true;
            break;
        }
        let payload = message.payload.unwrap_or_default();
        file.write_all(&payload)
            .and_then(|()| file.write_all(b"\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
        summary.produced += 1;
        summary.bytes += payload.len() as u64;
    }
    file.flush().with_context(|| format!("cannot write {}", path.display()))?;
    summary.elapsed = started.elapsed();
    Ok(summary)
}

/// Set by the first SIGINT or SIGTERM; the second one ends the process at once.
fn stop_on_signal() -> anyhow::Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen for signals")?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(watch_signals(&STOP)))
        .context("cannot listen for signals")?;
    Ok(&STOP)
}

async fn watch_signals(stop: &AtomicBool) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping: waiting for what is under way; once more to stop at once");
    }
}

/// A bar on a terminal, a plain line every few seconds otherwise.
struct ProgressDisplay {
    bar: ProgressBar,
    total: Option<u64>,
    next_line: Option<Duration>,
}

const LINE_EVERY: Duration = Duration::from_secs(5);

impl ProgressDisplay {
    fn new(total: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target);
        let template = if total.is_some() {
            "producing {wide_bar} {human_pos}/{human_len} {per_sec} {eta}"
        } else {
            "producing {spinner} {human_pos} {per_sec} {elapsed}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, total, next_line: (!terminal).then_some(LINE_EVERY) }
    }

    fn show(&mut self, progress: &Progress) {
        self.bar.set_position(progress.delivered);
        if self.next_line.is_some_and(|due| progress.elapsed >= due) {
            self.next_line = Some(progress.elapsed + LINE_EVERY);
            let of = self.total.map(|total| format!(" of {total}")).unwrap_or_default();
            eprintln!("produced {}{of} after {} s", progress.delivered, progress.elapsed.as_secs());
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_people_write_them() {
        assert_eq!((rate("500"), rate("2.5/s")), (Ok(500.0), Ok(2.5)));
        assert!(rate("0").is_err() && rate("fast").is_err() && rate("inf").is_err());
        assert_eq!(share("0.02"), Ok(0.02));
        assert!(share("2").is_err() && share("NaN").is_err());
        assert_eq!(property("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(property("a.b").is_err() && property("=c").is_err());
    }
}
