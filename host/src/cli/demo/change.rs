//! The demo's second act: half-way, a changed rule is copied into the folder that the pipeline watches,
//! and one whose copy was cut short.
//!
//! The folder is a copy of the configured one, so that the demo changes nothing of its user's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::app::App;
use crate::config::PipelineConfig;
use crate::pipeline::status::PipelineStatus;

/// Name of the rule that is cut short.
const CUT_SHORT: &str = "half-copied";
/// Longest wait for the pipeline to look at a file.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);

/// Copies of a pipeline's modules, and what is to be copied over one of them.
pub(super) struct Rules {
    folder: TempDir,
    mapper: PathBuf,
    /// File name of the rule that changes, and what it becomes.
    name: String,
    changed: Vec<u8>,
}

/// A revision of the rule, and the chain that it was a part of.
pub(super) struct RuleRevision {
    pub(super) chain: String,
    pub(super) rule: String,
}

/// What came of the copies.
pub(super) struct Change {
    /// Name of the rule that changed.
    pub(super) rule: String,
    pub(super) before: RuleRevision,
    pub(super) after: RuleRevision,
    /// From the copy until the status file said that it is live.
    pub(super) took: Duration,
    /// File name and text of the refused rule's status file.
    pub(super) refused: (String, String),
}

impl Rules {
    /// Copies the modules of `pipeline`; `changed` is a file named like the validator that it replaces.
    pub(super) fn copy(pipeline: &PipelineConfig, changed: &Path) -> Result<Self> {
        let validators = pipeline
            .validators
            .as_ref()
            .context("the demo changes a validator, and this pipeline has none")?;
        let name = changed.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let changed = std::fs::read(changed)
            .with_context(|| format!("cannot read {}; run make modules", changed.display()))?;
        if !validators.join(&name).exists() {
            bail!("the changed rule is {name}, but {} has no such file", validators.display());
        }
        let folder = tempfile::Builder::new().prefix("sluice-demo-").tempdir()?;
        let mapper = pipeline.mapper.file_name().context("the mapper's path has no file name")?;
        let mapper = folder.path().join(mapper);
        let this = Self { mapper, name, changed, folder };
        std::fs::create_dir(this.validators())?;
        std::fs::copy(&pipeline.mapper, &this.mapper)
            .with_context(|| format!("cannot copy {}; run make modules", pipeline.mapper.display()))?;
        for entry in std::fs::read_dir(validators)? {
            let path = entry?.path();
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                std::fs::copy(&path, this.validators().join(name))?;
            }
        }
        Ok(this)
    }

    fn validators(&self) -> PathBuf {
        self.folder.path().join("validators")
    }

    /// Keys that lead the pipeline of this name to the copies.
    pub(super) fn variables(&self, pipeline: &str) -> [(String, String); 2] {
        let pipeline = pipeline.to_uppercase();
        [
            (format!("SLUICE__PIPELINES__{pipeline}__VALIDATORS"), self.validators().display().to_string()),
            (format!("SLUICE__PIPELINES__{pipeline}__MAPPER"), self.mapper.display().to_string()),
        ]
    }

    /// Where the changed rule goes.
    pub(super) fn path(&self) -> PathBuf {
        self.validators().join(&self.name)
    }

    /// Copies both, as `cp` does, and waits until the pipeline has said what it makes of them.
    pub(super) async fn change(&self, app: &App) -> Result<Change> {
        let rule = self.name.trim_end_matches(".wasm").to_owned();
        let before = revision(&app.statuses()[0].borrow(), &rule)?;
        let started = Instant::now();
        std::fs::write(self.path(), &self.changed)?;
        let is_changed =
            |status: &Value| status["state"] == "live" && status["live"]["revision"] != before.rule.as_str();
        self.wait(&rule, is_changed).await?;
        let took = started.elapsed();
        let mut status = app.statuses()[0].clone();
        let published = status.wait_for(|status| status.chain != before.chain);
        let published = tokio::time::timeout(PATIENCE, published).await??;
        let after = revision(&published, &rule)?;
        drop(published);

        let half = &self.changed[..self.changed.len() / 2];
        std::fs::write(self.validators().join(format!("{CUT_SHORT}.wasm")), half)?;
        let text = self.wait(CUT_SHORT, |status| status["state"] == "refused").await?;
        Ok(Change { rule, before, after, took, refused: (format!("{CUT_SHORT}.status.json"), text) })
    }

    /// Waits until a module's status file says so; returns its text.
    async fn wait(&self, module: &str, condition: impl Fn(&Value) -> bool) -> Result<String> {
        let path = self.validators().join(format!("{module}.status.json"));
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&path)
                && serde_json::from_str(&text).is_ok_and(|status| condition(&status))
            {
                return Ok(text);
            }
            if started.elapsed() > PATIENCE {
                bail!("{} does not say what became of the copy; see the log of --log info", path.display());
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

fn revision(status: &PipelineStatus, rule: &str) -> Result<RuleRevision> {
    let module = status.modules.iter().find(|module| module.name == rule);
    let module = module.with_context(|| format!("the chain has no module {rule}"))?;
    Ok(RuleRevision { chain: status.chain.clone(), rule: module.revision.clone() })
}
