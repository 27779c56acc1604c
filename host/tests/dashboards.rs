//! The dashboard and the alerts ask for metrics that exist: every `sluice_*` name in
//! `config/prometheus` and `config/grafana` is a name that the host registers. `docs/METRICS.md` has every
//! metric that there is, with its labels.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What Prometheus makes of a histogram.
const HISTOGRAM_SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// The words of `text` that start like one of our metrics.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("sluice_"))
}

/// Strings in the sources that start like one of our metrics: they are all there, tables and the like among them.
fn registered() -> BTreeSet<String> {
    let mut sources = Vec::new();
    files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    let literals = |path: &PathBuf| {
        let source = std::fs::read_to_string(path).expect("text");
        let literals = source.split('"').skip(1).step_by(2).filter(|literal| literal.starts_with("sluice_"));
        literals.map(str::to_owned).collect::<Vec<_>>()
    };
    sources.iter().flat_map(literals).collect()
}

#[test]
fn every_metric_is_on_its_page_with_its_labels() {
    /// Strings that start like a metric and are none.
    const OTHERS: [&str; 5] = [
        "sluice_deployments",
        "sluice_migrations",
        "sluice_migrations_lock",
        "sluice_revisions",
        "sluice_sdk",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("../docs/METRICS.md")).expect("text");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `sluice_")?.split(" | ");
        let name = format!("sluice_{}", cells.next()?.trim_end_matches('`'));
        Some((name, cells.next()?.split(", ").collect::<BTreeSet<_>>()))
    });
    let rows: BTreeMap<String, BTreeSet<&str>> = rows.collect();
    let mut named: BTreeSet<String> = rows.keys().cloned().collect();
    named.insert("sluice_build_info".to_owned());
    let mut metrics = registered();
    metrics.retain(|name| !OTHERS.contains(&name.as_str()));
    assert_eq!(named, metrics);

    // What a host answered, with labels.
    let answered = std::fs::read_to_string(root.join("tests/snapshots/end_to_end__metrics.snap"));
    let answered = answered.expect("text");
    let answered = answered.lines().filter(|line| line.starts_with("sluice_"));
    let mut compared = 0;
    for line in answered {
        let mut words = line.split(' ');
        let name = words.next().expect("a name");
        let labels: BTreeSet<&str> = words.skip(1).collect();
        if let Some(told) = rows.get(name) {
            compared += 1;
            assert_eq!(*told, labels, "{name}");
        }
    }
    assert!(compared > 25, "the answer was read: {compared} metrics");
}

#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let registered = registered();
    let mut configuration = Vec::new();
    files_below(&root.join("../config/prometheus"), &mut configuration);
    files_below(&root.join("../config/grafana"), &mut configuration);
    let mut asked = 0;
    for path in configuration {
        let text = std::fs::read_to_string(&path).expect("text");
        for name in names(&text) {
            asked += 1;
            let histogram = HISTOGRAM_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = registered.contains(name) || histogram.is_some_and(|name| registered.contains(name));
            assert!(known, "{} asks for {name}, which nobody registers", path.display());
        }
    }
    assert!(asked > 20, "the files were read: {asked} names");
}

/// `increase()` needs two samples of a series. That of a counter whose labels are known only once something
/// happened begins with that event, and without more an alert would miss it: the only one, mostly.
#[test]
fn an_alert_on_a_counter_that_begins_with_its_first_event_sees_that_event() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/prometheus/alerts.yml");
    let text = std::fs::read_to_string(path).expect("text");
    let mut looked_at = 0;
    for alert in text.split("- alert: ").skip(1) {
        for counter in ["sluice_breaker_trips_total", "sluice_module_reloads_total"] {
            if alert.contains(&format!("increase({counter}")) {
                looked_at += 1;
                let first = format!("{counter} unless {counter} offset");
                assert!(alert.contains(&first), "the first event would be missed: {alert}");
            }
        }
    }
    assert!(looked_at > 0, "there is no such alert any more: remove this test");
}

#[test]
fn whoever_is_woken_by_an_alert_finds_what_to_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("text");
    let (alerts, page) = (read("config/prometheus/alerts.yml"), read("docs/ADMIN.md"));
    let named: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(named.len() > 5, "{named:?}");
    for alert in named {
        assert!(page.contains(&format!("`{alert}`")), "docs/ADMIN.md does not say what to do about {alert}");
    }
}
