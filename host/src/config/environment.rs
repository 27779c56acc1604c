//! Environment: `SLUICE__SECTION__KEY` variables laid over the file.
//!
//! A variable's name is the key's path in capitals, with `__` between the parts and `_` for
//! whatever a variable name cannot hold (`-` and `.`). Parts are matched against the keys that the
//! file has, so `SLUICE__PIPELINES__CARD_PAYMENTS__GROUP` finds the pipeline `card-payments`. Values
//! stay text: a password `00123` is not a number. An empty variable counts as not set, which is
//! what `${NAME:-}` in a compose file gives.

use config::{ConfigError, Map, Source, Value, ValueKind};

/// What every variable's name starts with.
pub(super) const PREFIX: &str = "SLUICE__";

/// How an origin that is a variable reads; what comes after it is the variable's name.
const ORIGIN: &str = "environment variable ";

/// Variables to lay over what the file says.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    /// Names with [`PREFIX`], and values; in name order.
    variables: Vec<(String, String)>,
}

impl Environment {
    /// Picks out the variables that are meant for Sluice.
    pub(super) fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut variables: Vec<_> = variables
            .into_iter()
            .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
            .collect();
        variables.sort();
        Self { variables }
    }
}

impl Source for Environment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let mut root = Value::new(None, Map::<String, Value>::new());
        self.collect_to(&mut root)?;
        root.into_table()
    }

    fn collect_to(&self, root: &mut Value) -> Result<(), ConfigError> {
        for (name, text) in &self.variables {
            let parts: Vec<_> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
            let value = Value::new(Some(&format!("{ORIGIN}{name}")), text.clone());
            lay(root, &parts, "", value);
        }
        Ok(())
    }
}

/// Puts `value` at the path `parts` below `node`, whose own path is `path`. A scalar in the way
/// stays, and is reported when it is read.
fn lay(node: &mut Value, parts: &[String], path: &str, value: Value) {
    let Some((part, rest)) = parts.split_first() else {
        *node = value;
        return;
    };
    if matches!(node.kind, ValueKind::Nil) {
        node.kind = ValueKind::Table(Map::new());
    }
    let ValueKind::Table(table) = &mut node.kind else { return };
    let (key, rest) = if path == "kafka.properties" {
        (property_key(table, &parts.join("_")), &[][..])
    } else {
        (existing_key(table, part).unwrap_or_else(|| part.clone()), rest)
    };
    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
    let origin = value.origin().map(str::to_owned);
    let child = table.entry(key).or_insert_with(|| Value::new(origin.as_ref(), ValueKind::Nil));
    lay(child, rest, &path, value);
}

/// The key of `table` that a variable can only spell as `part`.
fn existing_key(table: &Map<String, Value>, part: &str) -> Option<String> {
    let spelt = |key: &str| key.to_lowercase().replace(['-', '.'], "_");
    table.keys().filter(|key| key.as_str() == part || spelt(key) == part).min().cloned()
}

/// librdkafka's properties have dots, where a variable has underscores.
fn property_key(table: &Map<String, Value>, part: &str) -> String {
    if let Some(existing) = existing_key(table, part) {
        return existing;
    }
    match part {
        // The few that have an underscore of their own.
        "log_level" | "enabled_events" => part.to_owned(),
        _ => match part.strip_suffix("_file") {
            Some(stem) => format!("{}_file", stem.replace('_', ".")),
            None => part.replace('_', "."),
        },
    }
}

/// Whether a value with this origin came from a variable.
pub(super) fn is_variable(origin: &str) -> bool {
    origin.starts_with(ORIGIN)
}

/// Origin of a value of which the file has nothing; a section is that if all its values are.
pub(super) fn only_variable(value: &Value) -> Option<&str> {
    match &value.kind {
        ValueKind::Table(table) => {
            let mut origins: Vec<_> = table.values().map(only_variable).collect::<Option<_>>()?;
            origins.sort_unstable();
            origins.first().copied()
        }
        _ => value.origin().filter(|origin| is_variable(origin)),
    }
}

/// Name of the variable that overrides the key at `path`.
pub(super) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").replace('-', "_").to_uppercase())
}
