//! `sluice module list`, `status`, `history` and `shadow`: what a running Sluice says of its modules.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Ending;
use super::remote::{Remote, RemoteArguments, Reply};
use crate::admin::paths;

/// List the modules of a running Sluice: which revision of each judges records, and what became of its file.
///
/// Exits with 0; with 1 when there is no such pipeline; with 2 when it could not ask.
#[derive(clap::Args, Debug)]
pub(super) struct ListArguments {
    #[command(flatten)]
    remote: RemoteArguments,
}

/// How the modules of a running Sluice stand, with what is wrong with each and what to do about it.
///
/// Exits with 0 when what the files hold is what judges records and all golden cases pass; with 1 when a file
/// was refused, waits, is held back or is missing, or there is no such module; with 2 when it could not ask.
#[derive(clap::Args, Debug)]
pub(super) struct StatusArguments {
    /// Module, as its file is named without .wasm; all of them without it.
    name: Option<String>,
    /// Exit with 1 unless the revision with these first digits judges records (`sluice module inspect FILE` says
    /// which a file is): right after a copy, Sluice may not have seen it yet.
    #[arg(long, value_name = "REVISION", requires = "name", value_parser = digits)]
    expect: Option<String>,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// What happened to a module, newest first: which revision went live when, and who decided what.
///
/// Exits with 0; with 1 when there is no such module; with 2 when it could not ask.
#[derive(clap::Args, Debug)]
pub(super) struct HistoryArguments {
    /// Module, as its file is named without .wasm.
    name: String,
    /// Most events, up to 1000.
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// How the shadow of a module compares to the live module beside it. Samples need the token.
///
/// Exits with 0; with 1 when there is no shadow; with 2 when it could not ask.
#[derive(clap::Args, Debug)]
pub(super) struct ShadowArguments {
    /// Module, as its file is named without .shadow.wasm.
    name: String,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Modules, as the server tells of them. What it tells beyond is left to `--json`.
#[derive(Debug, Deserialize)]
struct Modules {
    modules: Vec<Module>,
}

#[derive(Debug, Deserialize)]
struct Module {
    pipeline: String,
    name: String,
    stage: String,
    file: String,
    #[serde(default)]
    is_shadow: bool,
    state: String,
    live: Option<Since>,
    found: Option<Since>,
    cases: Option<Cases>,
    problem: Option<Problem>,
}

impl Module {
    fn title(&self) -> String {
        let shadow = if self.is_shadow { " (shadow)" } else { "" };
        format!("{}{shadow}", self.name)
    }
}

#[derive(Debug, Deserialize)]
struct Since {
    revision: String,
    since: String,
}

#[derive(Debug, Deserialize)]
struct Cases {
    passed: usize,
    failures: usize,
    failed: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    gate: Option<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct History {
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    at: String,
    event: String,
    revision: Option<String>,
    instead_of: Option<String>,
    by: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Shadow {
    live: String,
    shadow: String,
    records: u64,
    same: u64,
    newly_rejected: u64,
    newly_accepted: u64,
    other_code: u64,
    other_rows: u64,
    faults: u64,
    skipped: u64,
    samples: Vec<Sample>,
    samples_hidden: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Sample {
    topic: String,
    partition: i32,
    offset: i64,
    difference: String,
    live: String,
    shadow: String,
}

pub(super) fn list(arguments: &ListArguments) -> Result<Ending> {
    let path = paths::modules(arguments.remote.pipeline.as_deref());
    show(&arguments.remote, &path, |Modules { modules }, out| {
        table(&modules, out)?;
        Ok(Ending::Well)
    })
}

pub(super) fn status(arguments: &StatusArguments) -> Result<Ending> {
    let pipeline = arguments.remote.pipeline.as_deref();
    let path = match &arguments.name {
        Some(name) => paths::module(name, None, pipeline),
        None => paths::modules(pipeline),
    };
    show(&arguments.remote, &path, |Modules { modules }, out| {
        for module in &modules {
            write_module(module, out)?;
        }
        let expected = arguments.expect.as_deref();
        let is_expected = modules.iter().all(|module| is_expected(module, expected));
        if !is_expected {
            writeln!(out, "revision {} does not judge records", expected.unwrap_or_default())?;
        }
        let is_well = is_expected && modules.iter().all(|module| module.problem.is_none());
        Ok(if is_well { Ending::Well } else { Ending::Found })
    })
}

pub(super) fn history(arguments: &HistoryArguments) -> Result<Ending> {
    let pipeline = arguments.remote.pipeline.as_deref();
    let path = paths::module(&arguments.name, Some("history"), pipeline);
    let mark = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{mark}limit={}", arguments.limit);
    show(&arguments.remote, &path, |History { events }, out| {
        write_events(&events, out)?;
        Ok(Ending::Well)
    })
}

pub(super) fn shadow(arguments: &ShadowArguments) -> Result<Ending> {
    let path = paths::module(&arguments.name, Some("shadow"), arguments.remote.pipeline.as_deref());
    show(&arguments.remote, &path, |shadow: Shadow, out| {
        write_shadow(&shadow, out)?;
        Ok(Ending::Well)
    })
}

/// Asks, and prints the answer for people or as it is; what it comes to is the same.
fn show<T: DeserializeOwned>(
    arguments: &RemoteArguments,
    path: &str,
    write: impl FnOnce(T, &mut dyn Write) -> io::Result<Ending>,
) -> Result<Ending> {
    match Remote::new(arguments)?.get(path)? {
        Reply::Refused(why) => {
            eprintln!("{why}");
            Ok(Ending::Found)
        }
        Reply::Fine(value) => {
            if arguments.json {
                print(&value)?;
            }
            let told: T = serde_json::from_value(value)
                .context("the answer is not one of this version of Sluice; --json prints it as it is")?;
            let mut out: Box<dyn Write> =
                if arguments.json { Box::new(io::sink()) } else { Box::new(io::stdout().lock()) };
            Ok(write(told, &mut *out)?)
        }
    }
}

/// The server's JSON, as it is.
pub(super) fn print(value: &Value) -> Result<()> {
    writeln!(io::stdout(), "{value:#}")?;
    Ok(())
}

/// First digits of a revision.
fn digits(text: &str) -> Result<String, String> {
    if (4..=64).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("write the first 4 to 64 hex digits of a revision".to_owned())
}

/// Whether what judges records is what somebody expects there. A shadow judges none.
fn is_expected(module: &Module, digits: Option<&str>) -> bool {
    let Some(digits) = digits.filter(|_| !module.is_shadow) else { return true };
    // The server tells fewer digits than there are.
    let is_live = |live: &Since| live.revision.starts_with(digits) || digits.starts_with(&live.revision);
    module.live.as_ref().is_some_and(is_live)
}

fn revision(since: Option<&Since>) -> &str {
    since.map_or("-", |since| since.revision.as_str())
}

fn table(modules: &[Module], out: &mut dyn Write) -> io::Result<()> {
    let head = ["PIPELINE", "MODULE", "STAGE", "STATE", "LIVE", "FILE", "SINCE"].map(str::to_owned);
    let rows = modules.iter().map(|module| {
        [
            module.pipeline.clone(),
            module.name.clone(),
            if module.is_shadow { "shadow".to_owned() } else { module.stage.clone() },
            module.state.clone(),
            revision(module.live.as_ref()).to_owned(),
            revision(module.found.as_ref()).to_owned(),
            module.live.as_ref().map_or_else(|| "-".to_owned(), |live| live.since.clone()),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 7] = std::array::from_fn(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    let troubled: Vec<String> =
        modules.iter().filter(|module| module.problem.is_some()).map(Module::title).collect();
    if !troubled.is_empty() {
        writeln!(out, "\nsluice module status says what is wrong with {}", troubled.join(", "))?;
    }
    Ok(())
}

fn write_module(module: &Module, out: &mut dyn Write) -> io::Result<()> {
    let Module { pipeline, stage, state, file, .. } = module;
    writeln!(out, "{pipeline}/{}  {stage}  {state}", module.title())?;
    let mut row = |term: &str, text: &str| writeln!(out, "  {term:<14} {text}");
    let since = |since: &Since| format!("{} since {}", since.revision, since.since);
    // A shadow judges nothing: what its file holds is what is tried.
    if !module.is_shadow {
        row("judges records", &module.live.as_ref().map_or_else(|| "no revision".to_owned(), since))?;
    }
    if let Some(found) = &module.found
        && module.live.as_ref().is_none_or(|live| live.revision != found.revision)
    {
        row("file holds", &since(found))?;
    }
    row("file", file)?;
    if let Some(cases) = &module.cases {
        row("golden cases", &format!("{} passed, {} failed", cases.passed, cases.failures))?;
        for failed in &cases.failed {
            row("", failed)?;
        }
    }
    if let Some(problem) = &module.problem {
        let gate = problem.gate.as_ref().map(|gate| format!(" ({gate})")).unwrap_or_default();
        row("why", &format!("{}{gate}", problem.reason))?;
    }
    Ok(())
}

fn write_events(events: &[Event], out: &mut dyn Write) -> io::Result<()> {
    let short = |digits: &Option<String>| {
        digits.as_deref().map_or("-", |digits| digits.get(..12).unwrap_or(digits)).to_owned()
    };
    for event in events {
        let of = match (&event.revision, &event.instead_of) {
            // A new rule has nothing before it.
            (None, Some(_)) => "no rule".to_owned(),
            (revision, _) => short(revision),
        };
        let instead = event.instead_of.as_ref().map(|_| format!(" in place of {}", short(&event.instead_of)));
        let why = if event.reason.is_empty() { String::new() } else { format!(": {}", event.reason) };
        let instead = instead.unwrap_or_default();
        writeln!(out, "{}  {:<11}  {of}{instead}  by {}{why}", event.at, event.event, event.by)?;
    }
    Ok(())
}

fn write_shadow(shadow: &Shadow, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "revision {} beside {}", shadow.shadow, shadow.live)?;
    for (count, what) in [
        (shadow.records, "records"),
        (shadow.same, "the same"),
        (shadow.newly_rejected, "newly rejected"),
        (shadow.newly_accepted, "newly accepted"),
        (shadow.other_code, "rejected with another code"),
        (shadow.other_rows, "with other rows"),
        (shadow.faults, "that the shadow failed on"),
        (shadow.skipped, "more that it was not shown"),
    ] {
        writeln!(out, "  {count:>10} {what}")?;
    }
    for sample in &shadow.samples {
        let Sample { topic, partition, offset, difference, live, shadow } = sample;
        let difference = difference.replace('_', " ");
        writeln!(out, "\n{topic}[{partition}]@{offset}: {difference}\n  live    {live}\n  shadow  {shadow}")?;
    }
    if let Some(why) = &shadow.samples_hidden {
        writeln!(out, "{why} (SLUICE_ADMIN_TOKEN)")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: DeserializeOwned>(
        json: Value,
        write: impl FnOnce(T, &mut dyn Write) -> io::Result<()>,
    ) -> String {
        let mut out = Vec::new();
        write(serde_json::from_value(json).expect("an answer"), &mut out).expect("written");
        String::from_utf8(out).expect("text")
    }

    fn modules() -> Value {
        serde_json::json!({"modules": [
            {"pipeline": "purchases", "name": "purchase-rules", "stage": "validate", "file": "rules/a.wasm",
             "is_shadow": false, "state": "refused",
             "live": {"revision": "ba9876543210", "since": "2026-11-29T19:50:39.123Z"},
             "found": {"revision": "0123456789ab", "since": "2026-11-29T19:52:39.123Z"},
             "cases": {"passed": 11, "failures": 1, "failed": ["line 3: expected EUR"]},
             "problem": {"gate": "cases", "reason": "fails 1 of its 12 golden cases"}, "newer": true},
            {"pipeline": "purchases", "name": "purchase-rules", "stage": "validate", "file": "rules/a.shadow.wasm",
             "is_shadow": true, "state": "shadow", "live": null,
             "found": {"revision": "0123456789ab", "since": "2026-11-29T19:52:39.123Z"},
             "cases": null, "problem": {"gate": null, "reason": "has no live module of its name beside it"}},
            {"pipeline": "purchases", "name": "rows", "stage": "map", "file": "rows.wasm", "is_shadow": false,
             "state": "live", "live": null, "found": null, "cases": null, "problem": null},
        ]})
    }

    #[test]
    fn a_list_is_a_table_and_a_status_says_what_is_wrong() {
        insta::assert_snapshot!(text(modules(), |Modules { modules }, out| table(&modules, out)));
        insta::assert_snapshot!(text(modules(), |Modules { modules }, out| {
            modules.iter().try_for_each(|module| write_module(module, out))
        }));
    }

    #[test]
    fn what_is_expected_is_what_judges_records() {
        let Modules { modules } = serde_json::from_value(modules()).expect("an answer");
        let [refused, shadow, without_revision] = modules.as_slice() else { panic!("three") };
        let whole = digits(&format!("BA9876543210{}", "0".repeat(52))).expect("digits");
        for (module, expected, is_so) in [
            (refused, None, true),
            (refused, Some("ba98"), true),
            (refused, Some(whole.as_str()), true),
            // What the file holds is not what runs.
            (refused, Some("0123456789ab"), false),
            (shadow, Some("ba98"), true),
            (without_revision, Some("ba98"), false),
        ] {
            assert_eq!(is_expected(module, expected), is_so, "{} {expected:?}", module.title());
        }
        for text in ["", "abc", "wxyz", &"0".repeat(65)] {
            assert!(digits(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_history_has_a_line_an_event() {
        let events = serde_json::json!({"pipeline": "p", "name": "n", "events": [
            {"at": "2026-11-29T19:52:39.123Z", "event": "rolled-back", "revision": "ab".repeat(32),
             "instead_of": "cd".repeat(32), "by": "eve@desk", "reason": "rejects all"},
            {"at": "2026-11-29T19:51:39.123Z", "event": "tripped", "revision": null,
             "instead_of": "cd".repeat(32), "by": "host-1", "reason": "the breaker saw it"},
            {"at": "2026-11-29T19:50:39.123Z", "event": "removed", "revision": null, "instead_of": null,
             "by": "host-1", "reason": ""},
        ]});
        insta::assert_snapshot!(text(events, |History { events }, out| write_events(&events, out)));
    }

    #[test]
    fn a_shadow_is_told_in_figures_and_samples() {
        let mut shadow = serde_json::json!({
            "pipeline": "p", "name": "n", "live": "ba9876543210", "shadow": "0123456789ab", "records": 20, "same": 17,
            "newly_rejected": 3, "newly_accepted": 0, "other_code": 0, "other_rows": 0, "faults": 0, "skipped": 100,
            "samples": [{"topic": "purchases", "partition": 3, "offset": 7, "difference": "newly_rejected",
                         "live": "accepted", "shadow": "rejected: currency"}],
        });
        insta::assert_snapshot!(text(shadow.clone(), |shadow: Shadow, out| write_shadow(&shadow, out)));
        shadow["samples"] = serde_json::json!([]);
        shadow["samples_hidden"] = "send the token".into();
        let told = text(shadow, |shadow: Shadow, out| write_shadow(&shadow, out));
        assert!(told.ends_with("send the token (SLUICE_ADMIN_TOKEN)\n"), "{told}");
    }
}
