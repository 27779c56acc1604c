//! Orders: what operators ask about modules, and tell.

use crate::clickhouse::deployments::DeploymentsError;
use crate::domain::deployment::{EventKind, NewEvent};
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::modules::{
    ModuleAction, ModuleEvent, ModuleOrder, ModuleRequest, OrderError, ShadowReport,
};

use super::entry::Entry;
use super::{Key, Reloader};

impl Reloader {
    /// Carries out an order and answers it. Nobody may wait for the answer any more.
    pub(super) async fn obey(&mut self, order: ModuleOrder) {
        let name = order.module.name;
        match order.request {
            ModuleRequest::Act { action, by, answer } => {
                let done = self.act(&name, action, by).await;
                let _ = answer.send(done);
            }
            ModuleRequest::History { limit, answer } => {
                let _ = answer.send(self.history(&name, limit).await);
            }
            ModuleRequest::Shadow { answer } => {
                let _ = answer.send(self.shadow(&name));
            }
        }
    }

    fn key_of(&self, name: &str) -> Result<Key, OrderError> {
        let known = self.entries.keys().find(|key| key.1 == name && !key.2).cloned();
        // A rule whose file is gone has a history all the same.
        let kept = self.standings.keys().find(|(_, other)| other == name);
        known.or(kept.map(|(stage, name)| (*stage, name.clone(), false))).ok_or_else(|| {
            OrderError::NotFound(format!("pipeline {} has no module `{name}`", self.pipeline.name))
        })
    }

    async fn history(&self, name: &str, limit: usize) -> Result<Vec<ModuleEvent>, OrderError> {
        let (stage, name, _) = self.key_of(name)?;
        self.with
            .deployments
            .history(&self.pipeline.name, &name, stage, limit)
            .await
            .map_err(|error| unavailable(&error))
    }

    fn shadow(&self, name: &str) -> Result<ShadowReport, OrderError> {
        self.key_of(name)?;
        Err(OrderError::NotFound(format!(
            "module {name} has no shadow: copy one beside it as {name}.shadow.wasm"
        )))
    }

    async fn act(&mut self, name: &str, action: ModuleAction, by: String) -> Result<String, OrderError> {
        let key = self.key_of(name)?;
        // Others may have decided something since.
        self.standings =
            self.with.deployments.standing(&self.pipeline.name).await.map_err(|error| unavailable(&error))?;
        let standing = self.standings.get(&(key.0, key.1.clone())).cloned().unwrap_or_default();
        let entry = self.entries.get(&key);
        let live = entry.and_then(Entry::live_revision);
        let found = entry.and_then(|entry| entry.found.as_ref()).map(|(revision, ..)| *revision);
        let event = match action {
            ModuleAction::Release if standing.hold.is_none() => {
                return Err(OrderError::Refused(format!("module {name} is neither rolled back nor pinned")));
            }
            ModuleAction::Release => (EventKind::Released, None, None),
            ModuleAction::Pin { to } => {
                let to = match to {
                    Some(digits) => self.revision_of(&key, &digits).await?,
                    None => live.ok_or_else(|| {
                        OrderError::Refused(format!(
                            "no revision of module {name} is live; name one with --to"
                        ))
                    })?,
                };
                (EventKind::Pinned, Some(to), None)
            }
            ModuleAction::Rollback { to } => {
                let to = match to {
                    Some(digits) => self.revision_of(&key, &digits).await?,
                    None if standing.hold.is_some() => {
                        return Err(OrderError::Refused(format!(
                            "module {name} is rolled back or pinned already; name a revision with --to (sluice \
                             module history {name} lists them), or release it"
                        )));
                    }
                    None => standing.previous.ok_or_else(|| {
                        OrderError::Refused(format!("no other revision of module {name} was ever live"))
                    })?,
                };
                if found == Some(to) {
                    return Err(OrderError::Refused(format!(
                        "revision {to} is what the file holds; release the module if something is held in its place"
                    )));
                }
                (EventKind::RolledBack, Some(to), found)
            }
        };
        self.hold(&key, event, by, String::new()).await?;
        let now = self.entries.get(&key);
        if let Some(refusal) = now.and_then(|entry| entry.refusal.as_ref()) {
            return Err(OrderError::Unavailable(format!("it is kept, but module {name} {}", refusal.reason)));
        }
        let live = now.and_then(Entry::live_revision);
        Ok(match live {
            Some(live) => format!("module {name} runs revision {live}"),
            None => format!("module {name} does not run: there is no file of it"),
        })
    }

    /// Keeps a decision for all hosts, and follows it.
    pub(super) async fn hold(
        &mut self,
        key: &Key,
        (event, revision, instead_of): (EventKind, Option<Revision>, Option<Revision>),
        by: String,
        reason: String,
    ) -> Result<(), OrderError> {
        let event = NewEvent { event, revision, instead_of, by, reason };
        let (stage, name): (Stage, &str) = (key.0, &key.1);
        let kept = self.with.deployments.record(&self.pipeline.name, name, stage, &event).await;
        kept.map_err(|error| unavailable(&error))?;
        self.refresh().await;
        self.pass().await;
        Ok(())
    }

    /// The kept revision of a module that begins with `digits`.
    async fn revision_of(&self, key: &Key, digits: &str) -> Result<Revision, OrderError> {
        let name = &key.1;
        let found = self.with.revisions.find(name, key.0, &digits.to_lowercase()).await;
        let found = found.map_err(|error| OrderError::Unavailable(error.to_string()))?;
        match found.as_slice() {
            [revision] => Ok(*revision),
            [] => Err(OrderError::NotFound(format!(
                "no revision of module {name} begins with {digits}; sluice module history {name} lists them"
            ))),
            several => Err(OrderError::Refused(format!(
                "{} revisions of module {name} begin with {digits}; write more digits",
                several.len()
            ))),
        }
    }
}

fn unavailable(error: &DeploymentsError) -> OrderError {
    match error.retryability() {
        Retryability::Retry => OrderError::Unavailable(error.to_string()),
        Retryability::Permanent => OrderError::Refused(error.to_string()),
    }
}
