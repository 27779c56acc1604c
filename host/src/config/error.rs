//! What is wrong with a configuration: every fault at once, each with its key, where the value
//! came from, and the cure.

use std::fmt;

use serde::Serialize;

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFault {
    /// Path of the key, such as `clickhouse.url`; empty where the whole file is at fault.
    pub key: String,
    /// File or environment variable that the value came from (or, for a missing one, should be in).
    pub origin: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub cure: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(formatter, "{} ", self.key)?;
        }
        write!(formatter, "({}): {}; {}", self.origin, self.problem, self.cure)
    }
}

/// Everything wrong with the configuration, in the order of the documentation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigErrors {
    /// At least one.
    pub faults: Vec<ConfigFault>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() {
            1 => write!(formatter, "the configuration has a fault:")?,
            count => write!(formatter, "the configuration has {count} faults:")?,
        }
        for fault in &self.faults {
            write!(formatter, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The word of `known` that `word` was probably meant to be.
pub(super) fn closest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let score = |candidate: &str| strsim::jaro_winkler(word, candidate);
    known
        .into_iter()
        .filter(|candidate| score(candidate) > 0.8)
        .max_by(|left, right| score(left).total_cmp(&score(right)))
}

/// Cure for a word that is not among `known`.
pub(super) fn one_of<'k>(word: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    match closest(word, known.clone()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => {
            let mut known: Vec<_> = known.into_iter().map(|known| format!("`{known}`")).collect();
            known.sort();
            match known.as_slice() {
                [] => "remove it".to_owned(),
                [only] => format!("it can be {only}"),
                [others @ .., last] => format!("it can be {} or {last}", others.join(", ")),
            }
        }
    }
}
