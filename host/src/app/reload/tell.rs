//! Tell: how the modules stand, in reports, status files, metrics and the log.

use crate::pipeline::modules::{Gate, ModuleReport, ModuleState};
use crate::wasm::StatusFiles;

use super::{Key, Reloader};

impl Reloader {
    /// Says how everything stands: reports, status files, metrics, log.
    pub(super) async fn tell(&mut self) {
        let name = self.pipeline.name.clone();
        let reports: Vec<ModuleReport> = self.entries.values().map(|entry| entry.report(&name)).collect();
        for ((key, entry), report) in self.entries.iter().zip(&reports) {
            let reason = report.problem.as_ref().map(|problem| problem.reason.clone());
            let news = (report.state, entry.live_revision(), reason.clone());
            if self.shown.get(key) == Some(&news) {
                continue;
            }
            self.with.metrics.reloaded(&name, &key.1, report.state);
            log(report, reason.as_deref());
            self.shown.insert(key.clone(), news);
        }
        let is_there = |key: &Key| self.entries.contains_key(key) || self.removed.contains(key);
        for (key, (_, live, _)) in self.shown.extract_if(.., |key, _| !is_there(key)) {
            let (stage, module, _) = &key;
            let live = live.map(|live| live.to_string());
            let what = if key.2 { "shadow removed" } else { "module removed" };
            tracing::info!(pipeline = name, module, stage = stage.as_str(), live, "{what}");
        }
        let states: Vec<_> = reports.iter().map(|report| (report.name.clone(), report.state)).collect();
        self.with.metrics.show(&name, &self.states, &states);
        self.states = states;
        let mut status_files = std::mem::replace(&mut self.status_files, StatusFiles::new(String::new()));
        self.with.reports.send_replace(reports.clone());
        let written = tokio::task::spawn_blocking(move || {
            status_files.write(&reports);
            status_files
        });
        self.status_files = written.await.unwrap_or_else(|_| StatusFiles::new(self.with.host.clone()));
    }
}

/// One line for what became of one module.
fn log(report: &ModuleReport, reason: Option<&str>) {
    let ModuleReport { pipeline, name: module, file, .. } = report;
    let (state, stage) = (report.state.as_str(), report.stage.as_str());
    let live = report.live.as_ref().map(|live| live.revision.as_str());
    let found = report.found.as_ref().map(|found| found.revision.as_str());
    let gate = report.problem.as_ref().and_then(|problem| problem.gate).map(Gate::as_str);
    let what = headline(report.state, reason.is_some());
    match reason {
        None => tracing::info!(pipeline, module, stage, state, live, found, file, "{what}"),
        Some(reason) => {
            tracing::warn!(pipeline, module, stage, state, gate, live, found, file, reason, "{what}");
        }
    }
}

/// What happened, in words.
fn headline(state: ModuleState, has_problem: bool) -> &'static str {
    match (state, has_problem) {
        (ModuleState::Live, false) => "module is live",
        (ModuleState::Live, true) => "module is live, and something is wrong with it",
        (ModuleState::Refused, _) => "module refused",
        (ModuleState::Waiting, _) => "module waits",
        (ModuleState::RolledBack, _) => "module is rolled back",
        (ModuleState::Pinned, _) => "module is pinned",
        (ModuleState::Missing, _) => "module file is gone, its last revision goes on",
        (ModuleState::Shadow, false) => "shadow runs",
        (ModuleState::Shadow, true) => "shadow does not run, or something is wrong with it",
    }
}
