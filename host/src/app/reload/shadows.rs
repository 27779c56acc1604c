//! Shadows: puts every `name.shadow.wasm` that passed its gate beside the live module of its name.
//!
//! A shadow passes the same gate as a file that is to go live, but for the tables: a mapper's shadow may
//! fill other columns than the table has, since its rows go nowhere; it is then that one looks at them
//! first. It is not archived, since no row comes of it.

use std::sync::Arc;

use crate::domain::verdict::Stage;
use crate::pipeline::modules::{OrderError, ShadowReport};
use crate::wasm::Module;

use super::Reloader;

/// Modules that are shadowed, by stage and name.
pub(super) type Shadowed = (Stage, Arc<str>);

impl Reloader {
    /// Starts, keeps and ends shadows as files and live revisions are now.
    pub(super) fn pair_shadows(&mut self) {
        let mut paired: Vec<Shadowed> = Vec::new();
        let keys: Vec<_> = self.entries.keys().filter(|key| key.2).cloned().collect();
        for key in keys {
            let live = self.live_module(&(key.0, key.1.clone(), false));
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.is_orphan = live.is_none();
            let (Some(live), Some(shadow)) = (live, entry.live.as_ref()) else { continue };
            match self.with.registry.shadow(&self.pipeline.name, &live, shadow.module.clone()) {
                Ok(()) => paired.push((key.0, live.identity().name.clone())),
                Err(error) => tracing::error!(
                    pipeline = self.pipeline.name, module = key.1, %error,
                    "a shadow cannot be run: the thread for it does not start; raise the limit of threads"
                ),
            }
        }
        for (stage, name) in self.shadowed.iter().filter(|known| !paired.contains(known)) {
            self.with.registry.end_shadow(&self.pipeline.name, *stage, name);
        }
        self.shadowed = paired;
    }

    fn live_module(&self, key: &super::Key) -> Option<Arc<Module>> {
        self.entries.get(key)?.live.as_ref().map(|live| live.module.clone())
    }

    /// How the shadow of a module compares.
    pub(super) fn shadow(&self, name: &str) -> Result<ShadowReport, OrderError> {
        let entry = self.entries.iter().find(|(key, _)| key.1 == name && key.2);
        let Some((key, entry)) = entry else {
            self.key_of(name)?;
            return Err(OrderError::NotFound(format!(
                "module {name} has no shadow: copy one beside it as {name}.shadow.wasm"
            )));
        };
        if let Some(refusal) = &entry.refusal {
            return Err(OrderError::Refused(format!("the shadow of module {name} {}", refusal.reason)));
        }
        let found = self.with.registry.shadow_report(&self.pipeline.name, key.0, &name.into());
        found.ok_or_else(|| {
            let reason = if entry.is_orphan { super::entry::ORPHAN } else { "is about to run; ask again" };
            OrderError::Refused(format!("the shadow of module {name} {reason}"))
        })
    }
}
