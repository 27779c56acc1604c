//! Tell: how the modules stand, in reports, status files, metrics and the log.

use crate::pipeline::modules::ModuleReport;
use crate::wasm::StatusFiles;

use super::Reloader;

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
            let live = report.live.as_ref().map(|live| live.revision.as_str());
            let found = report.found.as_ref().map(|found| found.revision.as_str());
            self.with.metrics.reloaded(&name, &key.1, report.state);
            let (state, module, file) = (report.state.as_str(), &key.1, &report.file);
            match reason {
                None => tracing::info!(pipeline = name, module, state, live, found, file, "module"),
                Some(reason) => {
                    tracing::warn!(pipeline = name, module, state, live, found, file, reason, "module");
                }
            }
            self.shown.insert(key.clone(), news);
        }
        self.shown.retain(|key, _| self.entries.contains_key(key));
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
