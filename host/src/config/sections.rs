//! Sections: every key outside `pipelines`, its default and its limits.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use config::ValueKind;

use super::reader::{Section, read_secret};
use super::values::{ByteSize, Leaf, Refusal, Scalar, show_bytes, word};
use super::{
    AdminConfig, ClickHouseConfig, Config, LogFormat, LoggingConfig, ModuleFiles, ModulesConfig,
    ResourcesConfig, pipelines,
};
use crate::kafka::client::{KafkaSettings, Properties, check_property, is_secret, owner};

/// Reads everything.
pub(super) fn read(mut root: Section<'_>, base: &Path, files: ModuleFiles) -> Config {
    let kafka = kafka(root.section("kafka"), base);
    let clickhouse = clickhouse(root.section("clickhouse"), base);
    let admin = admin(root.section("admin"));
    let logging = logging(root.section("logging"));
    let resources = resources(root.section("resources"));
    let modules = modules(root.section("modules"));
    let pipelines = pipelines::read(&mut root, base, files, &resources);
    root.finish();
    Config { kafka, clickhouse, admin, logging, resources, modules, pipelines }
}

fn kafka(mut section: Section<'_>, base: &Path) -> KafkaSettings {
    let brokers: String = section.read("brokers", "localhost:9092");
    let mut properties = BTreeMap::new();
    for (name, value) in section.named("properties", "map of librdkafka properties") {
        let path = format!("properties.{name}");
        let origin = value.origin();
        let refuse = |problem: String, cure: &str| {
            section.refuse_entry(&path, origin, problem, cure.to_owned());
        };
        let stem = name.strip_suffix("_file").filter(|stem| is_secret(stem));
        let text = match (&value.kind, stem) {
            (ValueKind::Nil, _) => continue,
            (ValueKind::String(file), Some(_)) => match read_secret(&base.join(file)) {
                Ok(secret) => secret.reveal().to_owned(),
                Err(problem) => {
                    refuse(problem, "name a file that holds the secret and that Sluice may read");
                    continue;
                }
            },
            (ValueKind::String(text), None) => text.clone(),
            // 00123 arrives as 123: a number is no secret that could be trusted.
            (ValueKind::I64(number), None) if !is_secret(&name) => number.to_string(),
            (ValueKind::Float(number), None) if !is_secret(&name) => number.to_string(),
            (ValueKind::Boolean(value), None) if !is_secret(&name) => value.to_string(),
            (ValueKind::Table(_), _) => {
                refuse(
                    "a property is expected here".to_owned(),
                    "write its whole name as one key, dots included",
                );
                continue;
            }
            _ => {
                refuse("not text".to_owned(), "write it in quotes");
                continue;
            }
        };
        let name = stem.unwrap_or(&name).to_owned();
        if let Some((reason, cure)) = owner(&name) {
            refuse(format!("Sluice sets this property itself: {reason}"), cure);
        } else if let Err(problem) = check_property(&name, &text) {
            refuse(
                problem,
                "look it up at https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md",
            );
        } else if properties.insert(name.clone(), text).is_some() {
            refuse(format!("`{name}` is set as well"), "keep one of the two");
        }
    }
    section.finish();
    KafkaSettings { brokers, properties: Properties(properties) }
}

fn clickhouse(mut section: Section<'_>, base: &Path) -> ClickHouseConfig {
    let url: String = section.read("url", "http://localhost:8123");
    if let Err((problem, cure)) = check_url(&url) {
        section.refuse("url", problem.to_owned(), cure.to_owned());
    }
    let config = ClickHouseConfig {
        url: url.trim_end_matches('/').to_owned(),
        database: section.read("database", "default"),
        user: section.read("user", "default"),
        password: section.secret("password", "password_file", base),
        request_timeout: positive(&mut section, "request_timeout", "30s"),
        migrations: base.join(section.read::<String>("migrations", "migrations")),
        migrate_at_start: section.read("migrate_at_start", "true"),
    };
    if config.migrate_at_start && !config.migrations.is_dir() {
        section.refuse(
            "migrations",
            format!("there is no directory {}", config.migrations.display()),
            "name the directory of the migrations (relative to the configuration file), \
             or set clickhouse.migrate_at_start to false"
                .to_owned(),
        );
    }
    section.finish();
    config
}

fn check_url(url: &str) -> Result<(), (&'static str, &'static str)> {
    const SHAPE: &str = "write http://host:port or https://host:port";
    let uri: axum::http::Uri = url.parse().map_err(|_| ("not a URL", SHAPE))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(("not a URL that starts with http:// or https://", SHAPE));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err((
            "the URL holds credentials, which would show up in logs",
            "use clickhouse.user and clickhouse.password or clickhouse.password_file",
        ));
    }
    if !matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/")) {
        return Err(("the URL has a path or parameters", SHAPE));
    }
    Ok(())
}

fn admin(mut section: Section<'_>) -> AdminConfig {
    let listen = section.read("listen", "127.0.0.1:9464");
    section.finish();
    AdminConfig { listen }
}

impl Leaf for LogFormat {
    const KIND: &'static str = "auto, human or json";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        word(scalar, &[("auto", Self::Auto), ("human", Self::Human), ("json", Self::Json)])
    }
}

/// A level or directives, checked.
struct Level(String);

impl Leaf for Level {
    const KIND: &'static str = "log level";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        if let Scalar::Text(text) = scalar
            && text.contains([',', '='])
        {
            let parsed = tracing_subscriber::EnvFilter::builder().parse(text);
            return parsed.map(|_| Self((*text).to_owned())).map_err(|error| Refusal {
                problem: format!("`{text}` is not a list of directives: {error}"),
                cure: "write a level, or directives such as `info,sluice::wasm=debug`".to_owned(),
            });
        }
        word(scalar, &LEVELS.map(|level| (level, level))).map(|level| Self(level.to_owned()))
    }
}

fn logging(mut section: Section<'_>) -> LoggingConfig {
    let Level(level) = section.read("level", "info");
    let format = section.read("format", "auto");
    section.finish();
    LoggingConfig { level, format }
}

fn resources(mut section: Section<'_>) -> ResourcesConfig {
    let config = ResourcesConfig {
        workers: within(&mut section, "workers", "0", 0, 1_024) as usize,
        in_flight_bytes: bytes_within(&mut section, "in_flight_bytes", "256MiB", 1 << 20, 1 << 40),
        drain_timeout: positive(&mut section, "drain_timeout", "30s"),
    };
    section.finish();
    config
}

fn modules(mut section: Section<'_>) -> ModulesConfig {
    let config = ModulesConfig {
        // Two wasm pages are the least that a module of any language starts with; wasm32 ends at 4 GiB.
        memory: bytes_within(&mut section, "memory", "64MiB", 128 << 10, 4 << 30),
        call_timeout: positive(&mut section, "call_timeout", "1s"),
    };
    section.finish();
    config
}

/// A whole number between two bounds, both allowed.
pub(super) fn within(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    least: u64,
    most: u64,
) -> u64 {
    let number: u64 = section.read(key, default);
    if (least..=most).contains(&number) {
        return number;
    }
    let cure = format!("write a number from {least} to {most}");
    section.refuse(key, format!("{number} is out of range"), cure);
    Section::stand_in(default)
}

/// A byte size between two bounds, both allowed.
pub(super) fn bytes_within(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    least: u64,
    most: u64,
) -> u64 {
    let ByteSize(bytes) = section.read(key, default);
    if (least..=most).contains(&bytes) {
        return bytes;
    }
    let cure = format!("write a size from {} to {}", show_bytes(least), show_bytes(most));
    section.refuse(key, format!("{} is out of range", show_bytes(bytes)), cure);
    Section::stand_in::<ByteSize>(default).0
}

/// A duration that is not zero and not beyond a day, which no wait in here is meant to be.
pub(super) fn positive(section: &mut Section<'_>, key: &'static str, default: &str) -> Duration {
    let duration: Duration = section.read(key, default);
    if !duration.is_zero() && duration <= Duration::from_secs(86_400) {
        return duration;
    }
    let problem = format!("{} is out of range", humantime::format_duration(duration));
    section.refuse(key, problem, "write a duration above 0s, up to 24h".to_owned());
    Section::stand_in(default)
}
