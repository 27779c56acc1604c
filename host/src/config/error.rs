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
