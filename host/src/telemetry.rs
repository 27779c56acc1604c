//! Telemetry: where the log goes, and the registry that every part puts its metrics into.
//!
//! The log goes to standard error: for a person on a terminal, as one JSON object a line otherwise.
//! librdkafka and other libraries log through the `log` crate, which is bridged into the same log.
//! Metrics of Sluice are `sluice_*`, in base units; those about the process are `process_*`, by the
//! names that Prometheus fixes (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

mod process;

use std::io::IsTerminal;

use prometheus::{IntGaugeVec, Opts, Registry};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::LogFormat;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `RUST_LOG` cannot be read.
    #[error(
        "RUST_LOG is not a list of directives: {0}; write a level, or directives such as info,sluice::wasm=debug"
    )]
    Directives(#[from] ParseError),
    /// Something else logs already.
    #[error("the log was started twice: {0}")]
    Started(#[from] TryInitError),
}

/// Starts the log, once a process. `RUST_LOG` comes before `level`.
pub fn start_log(level: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::builder().parse(directives)?,
        _ => EnvFilter::builder().parse(directives(level))?,
    };
    let terminal = std::io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    // https://no-color.org
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Ok(subscriber(filter, json, colour, std::io::stderr).try_init()?)
}

/// A bare level that is talkative is about Sluice: what its libraries say below `info` drowns it.
fn directives(level: &str) -> String {
    match level {
        "debug" | "trace" => format!("info,sluice={level}"),
        _ => level.to_owned(),
    }
}

fn subscriber<W>(filter: EnvFilter, json: bool, colour: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colour);
    if json {
        Box::new(builder.json().flatten_event(true).with_span_list(false).finish())
    } else {
        Box::new(builder.compact().finish())
    }
}

/// A registry that has the metrics of the process and the build; the parts add theirs.
pub fn registry() -> Registry {
    let registry = Registry::new();
    let build =
        IntGaugeVec::new(Opts::new("sluice_build_info", "Version that runs; always 1."), &["version"])
            .expect("the name is valid");
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build)).expect("the registry is new");
    registry.register(Box::new(process::ProcessMetrics::new())).expect("the registry is new");
    registry
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, json: bool, speak: impl FnOnce()) -> String {
        let log = Log::default();
        let writer = log.clone();
        let filter = EnvFilter::builder().parse(directives(level)).expect("directives");
        tracing::subscriber::with_default(subscriber(filter, json, false, move || writer.clone()), speak);
        let bytes = log.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_line_is_one_json_object_with_its_fields() {
        let line = logged("info", true, || tracing::warn!(partition = 4, "waiting"));
        assert_eq!(line.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"waiting".into()));
        assert_eq!(line["partition"], 4);
    }

    #[test]
    fn a_line_for_a_person_is_plain() {
        let line = logged("info", false, || tracing::warn!(partition = 4, "waiting"));
        assert!(line.contains("WARN") && line.contains("waiting partition=4"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn debug_is_about_sluice() {
        let speak = || {
            tracing::debug!(target: "sluice::kafka", "ours");
            tracing::debug!(target: "hyper", "theirs");
            tracing::info!(target: "librdkafka", "news");
        };
        let lines = logged("debug", false, speak);
        assert!(lines.contains("ours") && lines.contains("news") && !lines.contains("theirs"), "{lines}");
        assert_eq!(logged("off", false, speak), "");
    }

    #[test]
    fn the_registry_knows_the_build_and_the_process() {
        let families = registry().gather();
        let names: Vec<_> = families.iter().map(prometheus::proto::MetricFamily::name).collect();
        assert_eq!(
            names,
            [
                "process_cpu_seconds_total",
                "process_max_fds",
                "process_open_fds",
                "process_resident_memory_bytes",
                "process_start_time_seconds",
                "process_threads",
                "sluice_build_info",
            ]
        );
    }
}
