//! Report: the verdict of every check, a line each as it comes, or one JSON object in the end.

use std::io::Write;

use serde::Serialize;

/// What became of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it has to be.
    Ok,
    /// It works, and somebody should look at it.
    Warning,
    /// It does not work.
    Failed,
    /// Not looked at, since something before it failed.
    Skipped,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What kind of thing: `topic`, `table`, ...
    check: &'static str,
    /// Which one.
    subject: String,
    verdict: Verdict,
    /// What was found; for a failure also what to do.
    detail: String,
}

/// All checks so far.
#[derive(Debug)]
pub(super) struct Report<W> {
    checks: Vec<Check>,
    json: bool,
    out: W,
}

impl<W: Write> Report<W> {
    pub(super) fn new(json: bool, out: W) -> Self {
        Self { checks: Vec::new(), json, out }
    }

    /// Adds a check, and prints it unless everything is printed in the end.
    pub(super) fn add(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        verdict: Verdict,
        detail: impl Into<String>,
    ) -> std::io::Result<()> {
        let check = Check { check, subject: subject.into(), verdict, detail: detail.into() };
        if !self.json {
            // Further lines of a detail stand below its first, so that every line begins with a
            // kind or with a space.
            let detail = check.detail.replace('\n', "\n                ");
            let colon = if detail.is_empty() { "" } else { ": " };
            let verdict = check.verdict.as_str();
            writeln!(self.out, "{:<14} {} {verdict}{colon}{detail}", check.check, check.subject)?;
            self.out.flush()?;
        }
        self.checks.push(check);
        Ok(())
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    /// Prints what is left to print.
    ///
    /// Returns how many checks failed.
    pub(super) fn finish(mut self) -> std::io::Result<usize> {
        let failed = self.count(Verdict::Failed);
        if self.json {
            let report = serde_json::json!({ "ok": failed == 0, "checks": self.checks });
            serde_json::to_writer_pretty(&mut self.out, &report)?;
            writeln!(self.out)?;
        } else {
            let counts: Vec<String> = [Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::Skipped]
                .into_iter()
                .map(|verdict| (self.count(verdict), verdict.as_str()))
                .filter(|(count, _)| *count > 0)
                .map(|(count, verdict)| format!("{count} {verdict}"))
                .collect();
            writeln!(self.out, "check: {}", counts.join(", "))?;
        }
        self.out.flush()?;
        Ok(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(json: bool) -> (usize, String) {
        let mut out = Vec::new();
        let mut report = Report::new(json, &mut out);
        let mut add =
            |check, subject, verdict, detail| report.add(check, subject, verdict, detail).expect("added");
        add("configuration", "sluice.yaml", Verdict::Ok, "1 pipeline");
        add("broker", "localhost:9092", Verdict::Failed, "nobody there;\ncall somebody");
        add("topic", "purchases", Verdict::Skipped, "");
        let failed = report.finish().expect("printed");
        (failed, String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn a_line_a_check_for_people() {
        let (failed, text) = printed(false);
        assert_eq!(failed, 1);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn one_object_for_scripts() {
        let (failed, text) = printed(true);
        assert_eq!(failed, 1);
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["ok"], false);
        assert_eq!(
            report["checks"][1],
            serde_json::json!({"check": "broker", "subject": "localhost:9092", "verdict": "failed",
                               "detail": "nobody there;\ncall somebody"})
        );
    }
}
