//! Sections: every key outside `pipelines`, its default and its limits.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::time::Duration;

use config::ValueKind;

use super::reader::{Section, read_secret};
use super::values::{ByteSize, Leaf, Refusal, Scalar, Share, show_bytes, word};
use super::{
    AdminConfig, ClickHouseConfig, Config, Limits, LogFormat, LoggingConfig, ModuleCacheConfig, ModuleFiles,
    ResourcesConfig, TransferCompression, pipelines,
};
use crate::kafka::client::{KafkaSettings, Properties, check_property, is_instance, is_secret, owner};

/// Reads everything.
pub(super) fn read(mut root: Section<'_>, base: &Path, files: ModuleFiles) -> Config {
    let kafka = kafka(root.section("kafka"), base);
    let clickhouse = clickhouse(root.section("clickhouse"), base);
    let admin = admin(root.section("admin"), base);
    let logging = logging(root.section("logging"));
    let resources = resources(root.section("resources"));
    let (modules, module_poll, shadow_share, module_cache) = modules(root.section("modules"), base);
    let pipelines = pipelines::read(&mut root, base, files, &resources, &modules);
    root.finish();
    Config {
        kafka,
        clickhouse,
        admin,
        logging,
        resources,
        modules,
        module_poll,
        module_cache,
        shadow_share,
        pipelines,
    }
}

fn kafka(mut section: Section<'_>, base: &Path) -> KafkaSettings {
    let brokers: String = section.read("brokers", "localhost:9092");
    let instance = section.optional::<String>("instance");
    if let Some(name) = instance.as_deref().filter(|name| !is_instance(name)) {
        section.refuse(
            "instance",
            format!("`{name}` is not a name for an instance"),
            "use up to 200 letters, digits, ., _ and -".to_owned(),
        );
    }
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
            (kind, None) if !is_secret(&name) && scalar_text(kind).is_some() => {
                scalar_text(kind).unwrap_or_default()
            }
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
    KafkaSettings { brokers, instance, properties: Properties(properties) }
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
        compression: section.read("compression", "lz4"),
        settings: server_settings(&mut section),
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

impl Leaf for TransferCompression {
    const KIND: &'static str = "lz4 or none";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        word(scalar, &[("lz4", Self::Lz4), ("none", Self::None)])
    }
}

/// Settings that Sluice sends itself, and why.
const OWN_SETTINGS: [(&str, &str); 12] = [
    ("database", "use clickhouse.database"),
    ("user", "use clickhouse.user"),
    ("password", "use clickhouse.password"),
    ("async_insert", "an answer has to mean that the rows are stored"),
    ("wait_for_async_insert", "an answer has to mean that the rows are stored"),
    ("insert_deduplicate", "an INSERT that is sent again may add nothing"),
    ("insert_deduplication_token", "an INSERT that is sent again may add nothing"),
    ("deduplicate_blocks_in_dependent_materialized_views", "an INSERT that is sent again may add nothing"),
    ("max_insert_block_size", "a batch is one block"),
    ("min_insert_block_size_rows", "a batch is one block"),
    ("min_insert_block_size_bytes", "a batch is one block"),
    ("default_format", "Sluice chooses the formats that it reads"),
];

fn server_settings(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (name, value) in section.named("settings", "map of ClickHouse settings") {
        let refuse = |problem: String, cure: &str| {
            section.refuse_entry(&format!("settings.{name}"), value.origin(), problem, cure.to_owned());
        };
        if let Some((_, reason)) = OWN_SETTINGS.iter().find(|(own, _)| *own == name) {
            refuse(format!("Sluice sends this setting itself: {reason}"), "remove it");
            continue;
        }
        match scalar_text(&value.kind) {
            Some(text) => drop(settings.insert(name, text)),
            None if matches!(value.kind, ValueKind::Nil) => {}
            None => refuse("not a single value".to_owned(), "write a text, a number, true or false"),
        }
    }
    settings
}

/// A single value as the text that Kafka and ClickHouse take their settings in.
fn scalar_text(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::I64(number) => Some(number.to_string()),
        ValueKind::Float(number) => Some(number.to_string()),
        ValueKind::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
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

/// Fewer bytes can be guessed.
const TOKEN_BYTES: usize = 16;

fn admin(mut section: Section<'_>, base: &Path) -> AdminConfig {
    let listen = section.read("listen", "127.0.0.1:9464");
    let token = section.secret("token", "token_file", base);
    let text = token.reveal();
    let problem = if text.is_empty() {
        None
    } else if text.len() < TOKEN_BYTES {
        Some(format!("shorter than {TOKEN_BYTES} bytes, so it can be guessed"))
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Some("has a character that a header cannot carry".to_owned())
    } else {
        None
    };
    if let Some(problem) = problem {
        section.refuse("token", problem, "write what `openssl rand -hex 32` says".to_owned());
    }
    section.finish();
    AdminConfig { listen, token }
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
        drain_timeout: drain_timeout(&mut section),
    };
    section.finish();
    config
}

fn modules(mut section: Section<'_>, base: &Path) -> (Limits, Duration, f64, Option<ModuleCacheConfig>) {
    let limits = limits(&mut section, &Limits::default());
    let poll = duration_up_to(&mut section, "poll", "5s", Duration::from_secs(3600), "1h");
    let Share(shadow_share) = ranged(
        &mut section,
        "shadow_share",
        "10%",
        Share(0.001)..=Share(1.0),
        |Share(share)| format!("{}%", share * 100.0),
        "write a percentage from 0.1% to 100%".to_owned(),
    );
    let cache = cache(&mut section, base);
    section.finish();
    (limits, poll, shadow_share, cache)
}

/// The limits of `section`, whose defaults are `defaults`.
pub(super) fn limits(section: &mut Section<'_>, defaults: &Limits) -> Limits {
    let bytes = |section: &mut Section<'_>, key, default: usize, least, most| {
        bytes_within(section, key, &show_bytes(default as u64), least, most) as usize
    };
    let number = |section: &mut Section<'_>, key, default: u64, most| {
        within(section, key, &default.to_string(), 1, most)
    };
    let output = defaults.output_bytes_per_record;
    let limits = Limits {
        // A wasm page is the least that a memory can grow by; wasm32 ends at 4 GiB.
        memory_bytes: bytes(section, "memory", defaults.memory_bytes, 64 << 10, 4 << 30),
        call_timeout: call_timeout(section, defaults.call_timeout),
        file_bytes: bytes(section, "file_bytes", defaults.file_bytes, 1, 1 << 30),
        output_bytes_per_record: bytes(section, "output_bytes_per_record", output, 1, (4 << 20) - 1),
        rows_per_record: number(section, "rows_per_record", defaults.rows_per_record.into(), 1_000_000)
            as u32,
        table_elements: number(section, "table_elements", defaults.table_elements as u64, 65_536) as usize,
        instances: number(section, "instances", defaults.instances as u64, 1_000) as usize,
        compile_timeout: compile_timeout(section, defaults.compile_timeout),
        compile_memory_bytes: bytes(
            section,
            "compile_memory",
            defaults.compile_memory_bytes,
            64 << 20,
            64 << 30,
        ),
    };
    // The bounds above are the engine's; should it have others, it says so itself.
    for problem in limits.problems() {
        section.refuse("memory", problem, "see docs/CONFIGURATION.md".to_owned());
    }
    limits
}

fn call_timeout(section: &mut Section<'_>, default: Duration) -> Duration {
    let allowed = Duration::from_millis(10)..=Duration::from_secs(600);
    let cure = "write a duration from 10ms to 10m".to_owned();
    ranged(section, "call_timeout", &show_duration(&default), allowed, show_duration, cure)
}

fn compile_timeout(section: &mut Section<'_>, default: Duration) -> Duration {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
    let cure = "write a duration from 1s to 10m".to_owned();
    ranged(section, "compile_timeout", &show_duration(&default), allowed, show_duration, cure)
}

fn cache(section: &mut Section<'_>, base: &Path) -> Option<ModuleCacheConfig> {
    let folder = section.optional::<String>("cache");
    let bytes = bytes_within(section, "cache_bytes", "1GiB", 1 << 20, 1 << 40);
    let key = section.optional::<String>("cache_key_file").and_then(|file| {
        read_secret(&base.join(file))
            .map_err(|problem| {
                let cure = "name a file that holds the key and that Sluice may read".to_owned();
                section.refuse("cache_key_file", problem, cure);
            })
            .ok()
    });
    folder.map(|folder| ModuleCacheConfig { folder: base.join(folder), bytes, key })
}

/// A whole number between two bounds, both allowed.
pub(super) fn within(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    least: u64,
    most: u64,
) -> u64 {
    let cure = format!("write a number from {least} to {most}");
    ranged(section, key, default, least..=most, u64::to_string, cure)
}

/// A byte size between two bounds, both allowed.
pub(super) fn bytes_within(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    least: u64,
    most: u64,
) -> u64 {
    let cure = format!("write a size from {} to {}", show_bytes(least), show_bytes(most));
    let allowed = ByteSize(least)..=ByteSize(most);
    ranged(section, key, default, allowed, |ByteSize(bytes)| show_bytes(*bytes), cure).0
}

/// A rebalance waits for the drain too, and holds up the whole group meanwhile: `max.poll.interval.ms` is a
/// minute longer.
fn drain_timeout(section: &mut Section<'_>) -> Duration {
    duration_up_to(section, "drain_timeout", "30s", Duration::from_secs(240), "4m")
}

/// A duration that is not zero and not beyond a day, which no wait in here is meant to be.
pub(super) fn positive(section: &mut Section<'_>, key: &'static str, default: &str) -> Duration {
    duration_up_to(section, key, default, Duration::from_secs(86_400), "24h")
}

fn duration_up_to(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    limit: Duration,
    limit_text: &str,
) -> Duration {
    let allowed = (Bound::Excluded(Duration::ZERO), Bound::Included(limit));
    let cure = format!("write a duration above 0s, up to {limit_text}");
    ranged(section, key, default, allowed, show_duration, cure)
}

fn show_duration(duration: &Duration) -> String {
    humantime::format_duration(*duration).to_string()
}

/// A value within bounds; what is not is refused, and the default stands in for it.
fn ranged<T: Leaf + PartialOrd>(
    section: &mut Section<'_>,
    key: &'static str,
    default: &str,
    allowed: impl RangeBounds<T>,
    show: impl FnOnce(&T) -> String,
    cure: String,
) -> T {
    let value: T = section.read(key, default);
    if allowed.contains(&value) {
        return value;
    }
    section.refuse(key, format!("{} is out of range", show(&value)), cure);
    Section::stand_in(default)
}
