//! Orders: what operators ask about modules, and tell.

use crate::clickhouse::deployments::DeploymentsError;
use crate::domain::deployment::{EventKind, NewEvent};
use crate::domain::retry::Retryability;
use crate::domain::verdict::{Revision, Stage};
use crate::pipeline::modules::{ModuleAction, ModuleEvent, ModuleOrder, ModuleRequest, OrderError};

use super::entry::Entry;
use super::gate::{self, DueCases, Trial};
use super::scan::CasesFile;
use super::{Key, Reloader};

/// What is decided: the event, the revision that it holds or releases, and the revision of the file that it stands in for.
type Decision = (EventKind, Option<Revision>, Option<Revision>);

impl Reloader {
    /// Carries out an order and answers it; what nobody waits for any more is not begun, so that whoever
    /// was told that it takes too long does not find it done much later.
    pub(super) async fn obey(&mut self, order: ModuleOrder) {
        if order.request.is_given_up() {
            return;
        }
        let name = order.module;
        match order.request {
            ModuleRequest::Act { action, by, reason, answer } => {
                let (word, who) = (action.as_str(), by.clone());
                let done = self.act(&name, action, by, reason).await;
                let (pipeline, module) = (&self.pipeline.name, &name);
                match &done {
                    Ok(outcome) => {
                        tracing::info!(pipeline, module, order = word, by = who, outcome, "order carried out")
                    }
                    Err(error) => {
                        tracing::warn!(pipeline, module, order = word, by = who, %error, "order not carried out")
                    }
                }
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

    /// Of two modules of one name, which is refused, the one that is live is meant.
    pub(super) fn key_of(&self, name: &str) -> Result<Key, OrderError> {
        let named = self.entries.iter().filter(|(key, _)| key.1 == name && !key.2);
        let known = named.max_by_key(|(_, entry)| entry.live.is_some()).map(|(key, _)| key.clone());
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
            .map_err(|error| refused(&error, error.to_string()))
    }

    async fn act(
        &mut self,
        name: &str,
        action: ModuleAction,
        by: String,
        reason: String,
    ) -> Result<String, OrderError> {
        let key = self.key_of(name)?;
        // Others may have decided something since.
        self.standings = self
            .with
            .deployments
            .standing(&self.pipeline.name)
            .await
            .map_err(|error| refused(&error, format!("nothing was changed: {error}")))?;
        let event = match action {
            ModuleAction::Release => self.release(&key)?,
            ModuleAction::Pin { to } => self.pin(&key, to).await?,
            ModuleAction::Rollback { to } => self.rollback(&key, to).await?,
        };
        let due = event.1.filter(|_| event.0 != EventKind::Released);
        if let Some(due) = due {
            self.rehearse(&key, due).await?;
        }
        self.decide_for_all(&key, event, by, reason).await?;
        self.follow().await;
        let entry = self.entries.get(&key);
        let live = entry.and_then(Entry::live_revision);
        let refusal = entry.and_then(|entry| entry.refusal.as_ref()).map(|refusal| refusal.reason.as_str());
        match (due, live) {
            (Some(due), live) if live != Some(due) => Err(OrderError::Unavailable(format!(
                "it is kept, and followed as soon as it can be; so far module {name} {}",
                refusal.unwrap_or("waits for ClickHouse")
            ))),
            (None, Some(live)) if refusal.is_some() => Ok(format!(
                "module {name} is released, and goes on with revision {live}, for its file {}",
                refusal.unwrap_or_default()
            )),
            (_, Some(live)) => Ok(format!("module {name} runs revision {live}")),
            (_, None) => Ok(format!("module {name} is released; there is no file of it that could run")),
        }
    }

    /// What is held now in place of the file, if anything is.
    fn in_force(&self, key: &Key) -> bool {
        let standing = self.standings.get(&(key.0, key.1.clone()));
        standing.is_some_and(|standing| standing.hold_against(self.found(key)).is_some())
    }

    fn found(&self, key: &Key) -> Option<Revision> {
        self.entries.get(key).and_then(|entry| entry.found.as_ref()).map(|(revision, ..)| *revision)
    }

    fn release(&self, key: &Key) -> Result<Decision, OrderError> {
        // What does not count at the moment would again, were the file to hold what it held then.
        let standing = self.standings.get(&(key.0, key.1.clone()));
        let held = standing.and_then(|standing| Some((standing, standing.hold.as_ref()?)));
        let Some((standing, hold)) = held else {
            return Err(OrderError::Refused(format!("module {} is neither rolled back nor pinned", key.1)));
        };
        // Under a pin, the file may hold what was rolled back before: whoever lets it run wants it.
        let is_doubted = |found: &Revision| standing.doubts.contains_key(found);
        let released = hold.instead_of.or_else(|| self.found(key).filter(is_doubted));
        Ok((EventKind::Released, released, None))
    }

    async fn pin(&self, key: &Key, to: Option<String>) -> Result<Decision, OrderError> {
        self.has_file(key)?;
        let to = match to {
            Some(digits) => self.revision_of(key, &digits).await?,
            None => self.entries.get(key).and_then(Entry::live_revision).ok_or_else(|| {
                OrderError::Refused(format!("no revision of module {} is live; name one", key.1))
            })?,
        };
        Ok((EventKind::Pinned, Some(to), None))
    }

    async fn rollback(&self, key: &Key, to: Option<String>) -> Result<Decision, OrderError> {
        self.has_file(key)?;
        let (name, found) = (&key.1, self.found(key));
        let to = match to {
            Some(digits) => self.revision_of(key, &digits).await?,
            None if self.in_force(key) => {
                return Err(OrderError::Refused(format!(
                    "module {name} is rolled back or pinned already; name a revision of its history, or release it"
                )));
            }
            None => {
                let standing = self.standings.get(&(key.0, key.1.clone()));
                let cure = match key.0 {
                    Stage::Map => "copy a mended file",
                    _ => "copy a mended file, or remove the file, which ends the rule",
                };
                standing.and_then(|standing| standing.previous).ok_or_else(|| {
                    OrderError::Refused(format!(
                        "module {name} has no earlier revision to go back to; {cure}"
                    ))
                })?
            }
        };
        if found == Some(to) {
            let entry = self.entries.get(key);
            let refusal = entry.and_then(|entry| entry.refusal.as_ref());
            let cure = match refusal {
                _ if self.in_force(key) => "release it, since another is held in its place".to_owned(),
                Some(refusal) => format!(
                    "it is not taken, for it {}; copy a file that passes, or name another revision of its history",
                    refusal.reason
                ),
                None => "it runs, and nothing has to be done".to_owned(),
            };
            return Err(OrderError::Refused(format!(
                "revision {to} is what the file of module {name} holds; {cure}"
            )));
        }
        Ok((EventKind::RolledBack, Some(to), found))
    }

    /// Nothing runs in place of a file that is not there: a rule without a file is no rule.
    fn has_file(&self, key: &Key) -> Result<(), OrderError> {
        match self.entries.get(key) {
            Some(entry) if !entry.is_missing => Ok(()),
            _ => Err(OrderError::Refused(format!(
                "the file of module {} is gone, so no revision can run in its place; copy the file again first",
                key.1
            ))),
        }
    }

    /// Whether a revision runs at all: a decision that no host could follow is not kept.
    async fn rehearse(&self, key: &Key, revision: Revision) -> Result<(), OrderError> {
        let Some(entry) = self.entries.get(key) else { return Ok(()) };
        if entry.live_revision() == Some(revision) {
            return Ok(());
        }
        let cases = DueCases { file: CasesFile::none(), is_binding: false };
        let trial = Trial::Archived(revision, key.0);
        let tried = gate::try_out(&self.with, &self.settings, (&key.1, trial), cases).await;
        tried.map(drop).map_err(|(refusal, _)| {
            let text =
                format!("nothing was changed: revision {revision} of module {} {}", key.1, refusal.reason);
            if refusal.is_transient { OrderError::Unavailable(text) } else { OrderError::Refused(text) }
        })
    }

    /// Keeps a decision for all hosts; this one is yet to follow it.
    pub(super) async fn decide_for_all(
        &self,
        key: &Key,
        (event, revision, instead_of): Decision,
        by: String,
        reason: String,
    ) -> Result<(), OrderError> {
        let event = NewEvent { event, revision, instead_of, by, reason };
        let (stage, name): (Stage, &str) = (key.0, &key.1);
        let kept = self.with.deployments.record(&self.pipeline.name, name, stage, &event).await;
        kept.map_err(|error| {
            refused(&error, format!("whether it was kept is not known, its history will say: {error}"))
        })
    }

    /// Follows what was decided.
    pub(super) async fn follow(&mut self) {
        self.refresh().await;
        self.pass().await;
    }

    /// The kept revision of a module that begins with `digits`.
    async fn revision_of(&self, key: &Key, digits: &str) -> Result<Revision, OrderError> {
        let name = &key.1;
        let found = self.with.revisions.find(name, key.0, &digits.to_lowercase()).await;
        let found = found.map_err(|error| OrderError::Unavailable(error.to_string()))?;
        match found.as_slice() {
            [revision] => Ok(*revision),
            [] => Err(OrderError::NotFound(format!(
                "no revision of module {name} begins with {digits}; its history lists them"
            ))),
            several => Err(OrderError::Refused(format!(
                "{} revisions of module {name} begin with {digits}; write more digits",
                several.len()
            ))),
        }
    }
}

/// Whether to try again follows from the error; `text` tells it.
fn refused(error: &DeploymentsError, text: String) -> OrderError {
    match error.retryability() {
        Retryability::Retry => OrderError::Unavailable(text),
        Retryability::Permanent => OrderError::Refused(text),
    }
}
