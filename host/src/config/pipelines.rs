//! Pipelines: the keys below `pipelines.<name>`, and what has to hold between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use config::{Value, ValueKind};

use super::environment::{is_variable, only_variable};
use super::reader::Section;
use super::sections::{bytes_within, limits, positive, within};
use super::values::{Leaf, Names, Refusal, Scalar, Share, show_bytes, word};
use super::{BatchConfig, Delivery, Limits, ModuleFiles, PipelineConfig, ResourcesConfig, StartOffset};
use crate::domain::breaker::{BreakerMode, BreakerSettings};
use crate::domain::spelling::one_of;

/// ClickHouse cuts an INSERT into blocks of this many rows (`max_insert_block_size`); a batch is one block.
const MOST_ROWS: u64 = 1_048_449;
/// And of this many bytes (`min_insert_block_size_bytes`).
const MOST_BYTES: u64 = 256 << 20;

/// Reads every pipeline.
pub(super) fn read(
    root: &mut Section<'_>,
    base: &Path,
    files: ModuleFiles,
    resources: &ResourcesConfig,
    defaults: &Limits,
) -> Vec<PipelineConfig> {
    let entries = root.named("pipelines", "map of pipelines by name");
    let is_in_file = |value: &Value| only_variable(value).is_none();
    let in_file: Vec<String> =
        entries.iter().filter(|(_, value)| is_in_file(value)).map(|(name, _)| name.clone()).collect();
    // Pipelines share the budget evenly.
    let share = resources.in_flight_bytes / in_file.len().max(1) as u64;
    let mut pipelines: Vec<PipelineConfig> = Vec::new();
    for (name, value) in entries {
        let path = format!("pipelines.{name}");
        if let Some(origin) = only_variable(&value) {
            root.refuse_entry(
                &path,
                Some(origin),
                "the file has no pipeline of this name, and a variable does not make one".to_owned(),
                one_of(&name, in_file.iter().map(String::as_str)),
            );
            continue;
        }
        if !is_name(&name, 64, "_-") {
            root.refuse_entry(
                &path,
                None,
                "not a name for a pipeline".to_owned(),
                "use up to 64 letters, digits, - and _".to_owned(),
            );
        }
        let section = root.below(&["pipelines", &name], value);
        let pipeline = pipeline(name, section, base, files, share, defaults, &pipelines);
        pipelines.push(pipeline);
    }
    if in_file.is_empty() {
        root.refuse(
            "pipelines",
            "there is no pipeline".to_owned(),
            "add one, as in the shipped config/sluice.yaml".to_owned(),
        );
    }
    pipelines
}

fn is_name(text: &str, most: usize, others: &str) -> bool {
    (1..=most).contains(&text.len())
        && text.chars().all(|character| character.is_ascii_alphanumeric() || others.contains(character))
}

fn pipeline(
    name: String,
    mut section: Section<'_>,
    base: &Path,
    files: ModuleFiles,
    in_flight_share: u64,
    defaults: &Limits,
    earlier: &[PipelineConfig],
) -> PipelineConfig {
    let topics = topics(&mut section, &name);
    let group: String = section.read("group", &format!("sluice-{name}"));
    if let Some(other) = earlier.iter().find(|other| other.group == group) {
        section.refuse(
            "group",
            format!("pipeline `{}` uses the consumer group `{group}` as well", other.name),
            "give each pipeline its own group: members of a group share its topics".to_owned(),
        );
    }
    let delivery = section.read("delivery", "exactly-once");
    let allow_replay = section.read("allow_replay", "false");
    let dead_letter_topic: String = section.read("dead_letter_topic", &format!("{name}.dead-letters"));
    check_topic(&section, "dead_letter_topic", &dead_letter_topic);
    if topics.contains(&dead_letter_topic) {
        section.refuse(
            "dead_letter_topic",
            format!("the pipeline reads `{dead_letter_topic}` itself, so a rejected record would never end"),
            "name another topic".to_owned(),
        );
    }
    let start = section.read("start", "earliest");
    let validators = section.optional::<String>("validators").map(|path| base.join(path));
    let mapper = section.required::<String>("mapper", "modules/rows.wasm").map(|path| base.join(path));
    if files == ModuleFiles::Required {
        check_modules(&section, validators.as_deref(), mapper.as_deref());
    }
    let settings = settings(&mut section);
    let limits = module_limits(&mut section, defaults);
    let tables = tables(&mut section);
    let batch = batch(section.section("batch"), in_flight_share);
    let breaker = breaker(section.section("breaker"));
    section.finish();
    PipelineConfig {
        name,
        topics,
        group,
        delivery,
        allow_replay,
        dead_letter_topic,
        start,
        validators,
        mapper: mapper.unwrap_or_default(),
        settings,
        limits,
        tables,
        batch,
        breaker,
    }
}

fn topics(section: &mut Section<'_>, name: &str) -> Vec<String> {
    let topics = section.required("topics", name).map_or_else(Vec::new, |Names(topics)| topics);
    let mut seen = BTreeSet::new();
    for topic in &topics {
        check_topic(section, "topics", topic);
        if !seen.insert(topic) {
            section.refuse("topics", format!("`{topic}` is listed twice"), "keep one".to_owned());
        }
    }
    topics
}

fn check_topic(section: &Section<'_>, key: &'static str, topic: &str) {
    if topic.starts_with('^') {
        section.refuse(
            key,
            format!("`{topic}` is a pattern, and patterns are not supported"),
            "list the topics by name".to_owned(),
        );
    } else if !is_name(topic, 249, "._-") || matches!(topic, "." | "..") {
        section.refuse(
            key,
            format!("`{topic}` is not a name that Kafka gives to a topic"),
            "use up to 249 letters, digits, ., _ and -".to_owned(),
        );
    }
}

/// Relative to the configuration file, as a message about a path says.
const RELATIVE: &str = "paths are relative to the configuration file";

fn check_modules(section: &Section<'_>, validators: Option<&Path>, mapper: Option<&Path>) {
    if let Some(directory) = validators
        && !directory.is_dir()
    {
        section.refuse(
            "validators",
            format!("there is no directory {}", directory.display()),
            format!("build the modules, or name the directory of the validators ({RELATIVE})"),
        );
    }
    if let Some(mapper) = mapper
        && !mapper.is_file()
    {
        section.refuse(
            "mapper",
            format!("there is no file {}", mapper.display()),
            format!("build the modules, or name the mapper's .wasm ({RELATIVE})"),
        );
    }
}

impl Leaf for Delivery {
    const KIND: &'static str = "exactly-once or at-least-once";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        word(scalar, &[("exactly-once", Self::ExactlyOnce), ("at-least-once", Self::AtLeastOnce)])
    }
}

impl Leaf for StartOffset {
    const KIND: &'static str = "earliest or latest";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        word(scalar, &[("earliest", Self::Earliest), ("latest", Self::Latest)])
    }
}

fn settings(section: &mut Section<'_>) -> BTreeMap<String, serde_json::Value> {
    let mut settings = BTreeMap::new();
    for (module, value) in section.named("settings", "map of settings by module name") {
        match &value.kind {
            ValueKind::Nil => {}
            ValueKind::Table(_) => {
                settings.insert(module, to_json(&value));
            }
            _ => section.refuse_entry(
                &format!("settings.{module}"),
                value.origin(),
                "a section with the module's settings is expected here".to_owned(),
                "write its keys below it, indented".to_owned(),
            ),
        }
    }
    settings
}

/// What is not said of a module is as `modules` says for all.
fn module_limits(section: &mut Section<'_>, defaults: &Limits) -> BTreeMap<String, Limits> {
    let entries = section.named("limits", "map of limits by module name");
    let read = |(module, value): (String, Value)| {
        let mut section = section.below(&["limits", &module], value);
        let limits = limits(&mut section, defaults);
        section.finish();
        (module, limits)
    };
    entries.into_iter().map(read).collect()
}

/// Settings have no types that Sluice knows: a variable's text is JSON if it reads as JSON, and
/// text otherwise.
fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        ValueKind::String(text) if value.origin().is_some_and(is_variable) => {
            serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into())
        }
        ValueKind::String(text) => text.as_str().into(),
        ValueKind::Nil => serde_json::Value::Null,
        ValueKind::Boolean(value) => (*value).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::U64(number) => (*number).into(),
        ValueKind::I128(number) => number.to_string().into(),
        ValueKind::U128(number) => number.to_string().into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::Array(values) => values.iter().map(to_json).collect(),
        ValueKind::Table(table) => {
            let sorted: BTreeMap<_, _> = table.iter().collect();
            sorted.into_iter().map(|(key, value)| (key.clone(), to_json(value))).collect()
        }
    }
}

fn tables(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let mut tables = BTreeMap::new();
    for (output, value) in section.named("tables", "map of tables by output") {
        let refuse = |problem: String, cure: String| {
            section.refuse_entry(&format!("tables.{output}"), value.origin(), problem, cure);
        };
        match String::read(&Scalar::of(&value.kind)) {
            Ok(table)
                if table.split('.').count() <= 2 && table.split('.').all(|part| is_name(part, 200, "_")) =>
            {
                tables.insert(output, table);
            }
            Ok(table) => refuse(
                format!("`{table}` is not the name of a table"),
                "write table or database.table, of letters, digits and _".to_owned(),
            ),
            Err(refusal) => refuse(refusal.problem, refusal.cure),
        }
    }
    tables
}

fn batch(mut section: Section<'_>, in_flight_share: u64) -> BatchConfig {
    let config = BatchConfig {
        rows: within(&mut section, "rows", "100000", 1, MOST_ROWS) as usize,
        bytes: bytes_within(&mut section, "bytes", "32MiB", 1 << 10, MOST_BYTES),
        linger: positive(&mut section, "linger", "1s"),
        concurrent_inserts: within(&mut section, "concurrent_inserts", "2", 1, 64) as usize,
    };
    if config.bytes > in_flight_share {
        section.refuse(
            "bytes",
            format!(
                "{} is more than the {} that this pipeline may have in flight, so a batch would never fill",
                show_bytes(config.bytes),
                show_bytes(in_flight_share)
            ),
            "lower it, or raise resources.in_flight_bytes".to_owned(),
        );
    }
    section.finish();
    config
}

impl Leaf for BreakerMode {
    const KIND: &'static str = "off, warn or roll-back";

    fn read(scalar: &Scalar<'_>) -> Result<Self, Refusal> {
        word(scalar, &[Self::Off, Self::Warn, Self::RollBack].map(|mode| (mode.as_str(), mode)))
    }
}

fn breaker(mut section: Section<'_>) -> BreakerSettings {
    let mode = section.read("mode", "roll-back");
    let window = positive(&mut section, "window", "1m");
    let probation = positive(&mut section, "probation", "10m");
    let records = within(&mut section, "records", "200", 50, 100_000);
    let Share(rejections) = section.read("rejections", "20%");
    let Share(faults) = section.read("faults", "2%");
    let Share(new_rule_rejections) = section.read("new_rule_rejections", "90%");
    section.finish();
    BreakerSettings { mode, window, probation, records, rejections, faults, new_rule_rejections }
}
