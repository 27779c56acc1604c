//! Due: what revision of each module is due, and its trial where that is not live.

use std::collections::BTreeMap;

use crate::domain::deployment::{Hold, HoldKind, Standing};
use crate::domain::verdict::Stage;
use crate::wasm::{ModuleFault, cases_path};

use super::entry::{self, Entry, Refusal};
use super::gate::{self, Candidate, DueCases, Trial};
use super::scan::{CasesFile, Found, Scan};
use super::{AGAIN, Key, Reloader, SOON};

impl Reloader {
    /// Brings the entries up to what files there are.
    pub(super) fn take_note(&mut self, scan: &Scan) {
        self.folder_trouble = scan
            .missing
            .as_ref()
            .map(|(folder, error)| format!("module {} cannot be read: {error}", folder.display()));
        let there: BTreeMap<Key, &Found> = scan
            .found
            .iter()
            .map(|found| ((found.file.stage, found.file.name.clone(), found.file.is_shadow), found))
            .collect();
        for (key, found) in &there {
            let (stage, name, is_shadow) = key.clone();
            let path = found.file.path.clone();
            self.entries.entry(key.clone()).or_insert_with(|| Entry::new(name, stage, path, is_shadow));
        }
        let is_known = scan.missing.is_none();
        let gone: Vec<Key> = self.entries.keys().filter(|key| !there.contains_key(*key)).cloned().collect();
        self.removed.retain(|key| !there.contains_key(key));
        for key in gone {
            if key.0 == Stage::Validate && !is_known && !key.2 {
                // The folder is gone, not the rule.
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.is_missing = true;
                }
            } else if let Some(entry) = self.entries.remove(&key)
                && entry.live.is_some()
                && !key.2
            {
                self.depart(&key, entry);
                self.removed.insert(key);
            }
        }
    }

    /// Takes through its trial what is due and not live.
    pub(super) async fn try_out(&mut self, found: Vec<Found>) -> BTreeMap<Key, Candidate> {
        let mut candidates = BTreeMap::new();
        for Found { file, content, cases, stamp } in found {
            let Some(content) = content else { continue };
            let key = (file.stage, file.name.clone(), file.is_shadow);
            let is_written_to =
                self.watcher.is_written_to(&file.path) || self.watcher.is_written_to(&cases_path(&file.path));
            let standing = self.standings.get(&(file.stage, file.name.clone())).cloned();
            let standing = if file.is_shadow { Standing::default() } else { standing.unwrap_or_default() };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.seen = None;
            let content = match content {
                Ok(_) if is_written_to => {
                    self.lacks = Some(SOON);
                    continue;
                }
                Err(ModuleFault::Growing) => {
                    self.lacks = Some(SOON);
                    continue;
                }
                Err(ModuleFault::Read(error))
                    if error.kind() == std::io::ErrorKind::NotFound && entry.live.is_some() =>
                {
                    entry.is_missing = true;
                    entry.refusal = None;
                    continue;
                }
                Err(fault) => {
                    entry.is_missing = false;
                    entry.found = None;
                    entry.refusal = Some(Refusal::of(&fault));
                    None
                }
                Ok(content) => {
                    entry.is_missing = false;
                    if entry.found.as_ref().is_none_or(|(known, ..)| *known != content.revision) {
                        entry.found = Some((content.revision, entry::now(), cases.content()));
                    }
                    Some(content)
                }
            };
            let found = content.as_ref().map(|content| content.revision);
            let hold = standing.hold_against(found).cloned();
            let trial = match (&hold, content) {
                (Some(hold), _) if hold.run.is_none() => Trial::Nothing,
                (Some(hold), content) => match (hold.run, content) {
                    (Some(run), Some(content)) if content.revision == run => Trial::File(content),
                    (Some(run), _) => Trial::Archived(run, key.0),
                    (None, _) => Trial::Nothing,
                },
                (None, Some(content)) => Trial::File(content),
                (None, None) => Trial::Refused,
            };
            entry.held = hold.as_ref().map(|hold| (hold.kind, reason_of(hold)));
            self.decide(key.clone(), trial, cases, &standing, &mut candidates).await;
            if let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.is_settled()) {
                entry.seen = stamp;
            }
        }
        candidates
    }

    /// Tries what is due for one module, unless that is live already or was refused before.
    async fn decide(
        &mut self,
        key: Key,
        trial: Trial,
        cases: CasesFile,
        standing: &Standing,
        candidates: &mut BTreeMap<Key, Candidate>,
    ) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let due = match &trial {
            Trial::File(file) => Some(file.revision),
            Trial::Archived(revision, _) => Some(*revision),
            Trial::Nothing => {
                entry.refusal = None;
                if entry.live.is_some() {
                    candidates.insert(key, Candidate::Nothing);
                }
                return;
            }
            Trial::Refused => None,
        };
        let content = cases.content();
        if let Some(due) = due {
            let is_same = entry.found.as_ref().is_some_and(|(_, _, known)| *known == content);
            if entry.live_revision() == Some(due) {
                entry.refusal = None;
                let is_told = entry.cases.as_ref().is_some_and(|(of, by, _)| (*of, *by) == (content, due));
                let is_file = matches!(trial, Trial::File(_));
                if let Some(live) = entry.live.clone()
                    && is_file
                    && !is_told
                {
                    match gate::run_cases(&self.with.registry, &live.module, cases).await {
                        Ok(outcome) => entry.cases = outcome.map(|outcome| (content, due, outcome)),
                        Err(_) => {
                            // What is known of other cases, or of another revision, says nothing of these.
                            entry.cases = None;
                            self.lacks = Some(AGAIN);
                        }
                    }
                }
                if let Some((_, _, known)) = &mut entry.found {
                    *known = content;
                }
                return;
            }
            let was_refused = entry.refusal.as_ref().is_some_and(|refusal| !refusal.is_transient);
            let is_known = was_refused && is_same && entry.tried == Some(due);
            if let Some((_, _, known)) = &mut entry.found {
                *known = content;
            }
            if !is_known {
                entry.tried = Some(due);
                // What was live on some host is so after a restart, too.
                let cases = DueCases { file: cases, is_binding: standing.live != Some(due) };
                match gate::try_out(&self.with, &self.settings, (&key.1, trial), cases).await {
                    Ok((candidate, outcome)) => {
                        entry.refusal = None;
                        entry.cases = outcome.map(|outcome| (content, due, outcome));
                        candidates.insert(key, candidate);
                        return;
                    }
                    Err((refusal, outcome)) => {
                        if refusal.is_transient {
                            self.lacks = Some(AGAIN);
                        }
                        entry.cases = outcome.map(|outcome| (content, due, outcome));
                        entry.refusal = Some(refusal);
                    }
                }
            }
        }
        // At a start nothing is live yet: what was live before stands in for what does not pass.
        if entry.live.is_none()
            && !entry.is_shadow
            && let Some(before) = standing.live
            && Some(before) != due
        {
            let trial = Trial::Archived(before, key.0);
            let cases = DueCases { file: CasesFile::none(), is_binding: false };
            match gate::try_out(&self.with, &self.settings, (&key.1, trial), cases).await {
                Ok((candidate, _)) => drop(candidates.insert(key, candidate)),
                Err((refusal, _)) if refusal.is_transient => self.lacks = Some(AGAIN),
                Err((refusal, _)) => tracing::error!(
                    module = key.1, revision = %before, reason = refusal.reason,
                    "the revision that was live before does not run either"
                ),
            }
        }
    }
}

fn reason_of(hold: &Hold) -> String {
    let what = match (hold.kind, hold.run) {
        (HoldKind::RolledBack, Some(run)) => format!("rolled back to {run}"),
        (HoldKind::RolledBack, None) => "rolled back to no rule at all".to_owned(),
        (HoldKind::Pinned, Some(run)) => format!("pinned to {run}"),
        (HoldKind::Pinned, None) => "pinned to no rule at all".to_owned(),
    };
    let end = match hold.kind {
        HoldKind::RolledBack => "copy a mended file, or release it",
        HoldKind::Pinned => "the file counts again once it is released",
    };
    let why = if hold.reason.is_empty() { String::new() } else { format!(": {}", hold.reason) };
    format!("{what} by {} at {}{why}; {end} (sluice module release)", hold.by, hold.since)
}
