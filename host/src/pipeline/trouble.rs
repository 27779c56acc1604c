//! Trouble: why a pipeline cannot take records through right now, for `/ready` and the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Reasons by what they are about. Shared by everything that waits for something outside.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<BTreeMap<String, String>>>);

/// Trouble of one undertaking; cleared when this is dropped.
#[derive(Debug)]
pub struct TroubleScope {
    trouble: Trouble,
    about: String,
}

impl TroubleScope {
    /// Reports that the undertaking is in trouble.
    pub fn report(&self, reason: &str) {
        self.trouble.report(&self.about, reason);
    }
}

impl Drop for TroubleScope {
    fn drop(&mut self) {
        self.trouble.clear(&self.about);
    }
}

impl Trouble {
    /// For the trouble that an undertaking may have until it is over or given up.
    pub fn scope(&self, about: impl Into<String>) -> TroubleScope {
        TroubleScope { trouble: self.clone(), about: about.into() }
    }

    /// Reports that `about` is in trouble. Logs when the reason is new.
    pub fn report(&self, about: &str, reason: &str) {
        let before = self.reasons().insert(about.to_owned(), reason.to_owned());
        if before.as_deref() != Some(reason) {
            tracing::warn!(about, reason, "waiting; nothing is lost meanwhile");
        }
    }

    /// Reports that `about` is well again. Logs when it was not.
    pub fn clear(&self, about: &str) {
        if self.reasons().remove(about).is_some() {
            tracing::info!(about, "going on");
        }
    }

    /// Every reason, `about: reason`.
    pub fn list(&self) -> Vec<String> {
        self.reasons().iter().map(|(about, reason)| format!("{about}: {reason}")).collect()
    }

    fn reasons(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
