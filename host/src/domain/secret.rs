//! Secret: text that no log, status page or error message may show.

use std::fmt;

use serde::{Serialize, Serializer};

/// What stands in place of a secret wherever one would be printed.
pub const REDACTED: &str = "[redacted]";

/// A password, token or key. `Debug`, `Display` and `Serialize` show [`REDACTED`]; only
/// [`Secret::reveal`] gives the text, so a search for that word finds every place that uses one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is no text at all. That much may be known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "[empty]" } else { REDACTED })
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_secret() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
        assert_eq!(serde_json::to_string(&secret).expect("serializes"), "\"[redacted]\"");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(format!("{:?}", Secret::default()), "[empty]");
    }
}
