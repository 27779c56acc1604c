//! Pages about modules, for people: the same as the JSON, to be looked at.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use futures::future::join_all;

use super::html::{document, escape};
use super::paths;
use crate::pipeline::modules::{ModuleEvent, ModuleReport, ModuleState, RevisionSince, ShadowReport};
use crate::pipeline::orders::{ModuleAddress, ModuleControl};

/// Seconds after which the list is loaded again.
const REFRESH: u8 = 10;
/// Longest wait for the figures of shadows: the page is worth more than they are.
const SHADOW_PATIENCE: Duration = Duration::from_secs(2);

/// Figures by pipeline and module.
pub(super) type Shadows = BTreeMap<(String, String), ShadowReport>;

/// How the shadows among these modules compare, where that is answered in time.
pub(super) async fn shadows(control: &ModuleControl, modules: &[ModuleReport]) -> Shadows {
    let asked = modules.iter().filter(|report| report.is_shadow).map(async |report| {
        let module = ModuleAddress { pipeline: Some(report.pipeline.clone()), name: report.name.clone() };
        let told = tokio::time::timeout(SHADOW_PATIENCE, control.shadow(&module)).await;
        let (pipeline, told) = told.ok()?.ok()?;
        Some(((pipeline, module.name), told))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// All modules, by pipeline, in the order in which records meet them.
pub(super) fn modules(modules: &[ModuleReport], shadows: &Shadows) -> String {
    let mut html = "<h1>Modules</h1>\n<nav><a href=\"/\">Sluice</a> <a href=\"/modules\">all modules</a></nav>\n\
                    <p class=\"quiet\">Which revision of each module judges records, and what became of its file. \
                    This page follows by itself.</p>\n"
        .to_owned();
    if modules.is_empty() {
        html.push_str("<p>No pipeline has looked at its modules yet: <a href=\"/ready\">/ready</a> says what it waits for.</p>\n");
    }
    let mut pipeline = "";
    for report in modules {
        if report.pipeline != pipeline {
            pipeline = &report.pipeline;
            let _ = writeln!(html, "<h2>Pipeline {}</h2>", escape(pipeline));
        }
        module(&mut html, report, shadows.get(&(report.pipeline.clone(), report.name.clone())));
    }
    document("Modules", Some(REFRESH), &html)
}

/// The word for a state, and how much it should be looked at.
fn colour(report: &ModuleReport) -> &'static str {
    match (report.state, &report.problem) {
        (ModuleState::Refused, _) => "bad",
        (ModuleState::Live | ModuleState::Shadow, None) => "good",
        _ => "odd",
    }
}

fn module(html: &mut String, report: &ModuleReport, shadow: Option<&ShadowReport>) {
    let colour = colour(report);
    let stage = if report.is_shadow { "shadow" } else { report.stage.as_str() };
    let _ = writeln!(
        html,
        "<article class=\"{colour}\">\n<header><h3>{} <span class=\"quiet\">{stage}</span></h3> \
         <strong class=\"{colour}\">{}</strong></header>\n<dl>",
        escape(&report.name),
        report.state.as_str(),
    );
    let mut row = |term: &str, html_of: &str| {
        let _ = writeln!(html, "<dt>{term}</dt><dd>{html_of}</dd>");
    };
    if let Some(problem) = &report.problem {
        let gate = problem.gate.map(|gate| format!(" <span class=\"quiet\">({})</span>", gate.as_str()));
        row("why", &format!("{}{}", escape(&problem.reason), gate.unwrap_or_default()));
    }
    // A shadow judges nothing: what its file holds is what is tried.
    if !report.is_shadow {
        row("judges records", &report.live.as_ref().map_or_else(|| "no revision".to_owned(), revision));
    }
    let is_same =
        |found: &&RevisionSince| report.live.as_ref().is_none_or(|live| live.revision != found.revision);
    if let Some(found) = report.found.as_ref().filter(is_same) {
        row("file holds", &revision(found));
    }
    if let Some(cases) = &report.cases {
        let mut text = format!("{} passed", cases.passed);
        if cases.failures > 0 {
            let failed: String =
                cases.failed.iter().map(|failed| format!("<li>{}</li>", escape(failed))).collect();
            let _ = write!(text, ", {} failed<ul>{failed}</ul>", cases.failures);
        }
        row("golden cases", &text);
    }
    if let Some(shadow) = shadow.filter(|_| report.is_shadow) {
        row("compared", &figures(shadow));
    }
    row("file", &format!("<code>{}</code>", escape(&report.file)));
    html.push_str("</dl>\n<nav>");
    let what = if report.is_shadow { "shadow" } else { "history" };
    let path = paths::module(&report.name, Some(what), Some(&report.pipeline));
    let _ = write!(html, "<a href=\"{}\">{what}</a>", escape(&path));
    html.push_str("</nav>\n</article>\n");
}

fn revision(revision: &RevisionSince) -> String {
    format!("<code>{}</code> since {}", escape(&revision.revision), time(&revision.since))
}

/// A time for people: to the second, with the zone.
fn time(timestamp: &str) -> String {
    let shown = timestamp.replacen('T', " ", 1);
    let shown = shown.split('.').next().unwrap_or_default().trim_end_matches('Z');
    format!("<time datetime=\"{}\">{} UTC</time>", escape(timestamp), escape(shown))
}

/// In words, only what there is to say.
fn figures(report: &ShadowReport) -> String {
    let differences = [
        (report.newly_rejected, "newly rejected"),
        (report.newly_accepted, "newly accepted"),
        (report.other_code, "rejected with another code"),
        (report.other_rows, "with other rows"),
        (report.faults, "that the shadow failed on"),
    ];
    let mut text = match report.records {
        0 => "no records yet".to_owned(),
        records => format!("{} of {records} records the same", report.same),
    };
    for (count, what) in differences.iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, ", <strong>{count} {what}</strong>");
    }
    if report.skipped > 0 {
        let more = if report.records > 0 { " more" } else { "" };
        let _ = write!(text, "; {}{more} were not shown to it", report.skipped);
    }
    text
}

/// What happened to a module, newest first.
pub(super) fn history(pipeline: &str, name: &str, events: &[ModuleEvent]) -> String {
    let mut html = heading("History", pipeline, name);
    if events.is_empty() {
        html.push_str("<p>Nothing happened to it yet.</p>\n");
        return document(&format!("History of {name}"), None, &html);
    }
    html.push_str(
        "<div class=\"scroll\"><table>\n<thead><tr><th>when</th><th>what</th><th>revision</th><th>by</th>\
         <th>why</th></tr></thead>\n<tbody>\n",
    );
    for event in events {
        let code = |digits: &String| {
            let short = escape(digits.get(..12).unwrap_or(digits));
            format!("<code title=\"{}\">{short}</code>", escape(digits))
        };
        // Nothing at all where there is nothing to say: an empty cell is left out on a narrow page.
        let mut of = event.revision.as_ref().map(code).unwrap_or_default();
        if let Some(instead_of) = &event.instead_of {
            // A new rule has nothing before it.
            let of_what = if event.revision.is_none() { "no rule" } else { "" };
            let _ = write!(of, "{of_what} in place of {}", code(instead_of));
        }
        let _ = writeln!(
            html,
            "<tr><td data-label=\"when\">{}</td><td data-label=\"what\">{}</td><td data-label=\"revision\">{of}</td>\
             <td data-label=\"by\">{}</td><td data-label=\"why\">{}</td></tr>",
            time(&event.at),
            escape(&event.event),
            escape(&event.by),
            escape(&event.reason),
        );
    }
    html.push_str("</tbody></table></div>\n");
    document(&format!("History of {name}"), None, &html)
}

/// How a shadow compares. What records hold is not for everybody who sees the page.
pub(super) fn shadow(pipeline: &str, name: &str, report: &ShadowReport) -> String {
    let mut html = heading("Shadow", pipeline, name);
    let _ = writeln!(
        html,
        "<p>Revision <code>{}</code> runs beside <code>{}</code>, without effect.</p>\n<p>{}</p>\n\
         <p class=\"quiet\"><code>sluice module shadow {}</code> shows samples to those who have the token.</p>",
        escape(&report.shadow),
        escape(&report.live),
        figures(report),
        escape(name),
    );
    document(&format!("Shadow of {name}"), Some(REFRESH), &html)
}

/// Why there is nothing better to see.
pub(super) fn refusal(why: &str) -> String {
    let html = format!(
        "<h1>Modules</h1>\n<nav><a href=\"/modules\">all modules</a></nav>\n<p>{}</p>\n",
        escape(why)
    );
    document("Modules", None, &html)
}

fn heading(what: &str, pipeline: &str, name: &str) -> String {
    format!(
        "<h1>{what} of {}</h1>\n<nav><a href=\"/\">Sluice</a> <a href=\"/modules\">all modules</a></nav>\n\
         <p class=\"quiet\">Pipeline {}</p>\n",
        escape(name),
        escape(pipeline),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_shadow_say_only_what_there_is_to_say() {
        let mut report = ShadowReport {
            live: "0123456789ab".into(),
            shadow: "ba9876543210".into(),
            records: 0,
            same: 0,
            newly_rejected: 0,
            newly_accepted: 0,
            other_code: 0,
            other_rows: 0,
            faults: 0,
            skipped: 0,
            samples: Vec::new(),
        };
        assert_eq!(figures(&report), "no records yet");
        report.skipped = 7;
        assert_eq!(figures(&report), "no records yet; 7 were not shown to it");
        (report.records, report.same, report.faults) = (20, 18, 2);
        let expected = "18 of 20 records the same, <strong>2 that the shadow failed on</strong>; 7 more were not shown to it";
        assert_eq!(figures(&report), expected);
    }
}
