//! The dependency arrow, enforced: who may import whom in `host/src`, what the pure core may not
//! know, and that every file says what it is for.
//!
//! It reads the sources as text: comments and literals are blanked, then every path `a::b::{c, d}`
//! is expanded and judged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What each top-level module of the host may import, besides itself.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("domain", &[]),
    ("pipeline", &["domain"]),
    ("kafka", &["domain", "pipeline"]),
    ("clickhouse", &["domain", "pipeline"]),
    ("wasm", &["domain", "pipeline"]),
    ("admin", &["domain", "pipeline"]),
    ("embedded", &["domain", "pipeline"]),
    // The generator of `sluice produce`; it knows the words of the domain, and no part of the flow.
    ("produce", &["domain"]),
    // Reads the adapters' settings types, and nothing else of them.
    ("config", &["domain", "kafka", "clickhouse", "wasm"]),
    ("telemetry", &["config"]),
    ("shutdown", &[]),
    (
        "app",
        &[
            "domain",
            "pipeline",
            "kafka",
            "clickhouse",
            "wasm",
            "admin",
            "embedded",
            "config",
            "telemetry",
            "shutdown",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "domain",
            "pipeline",
            "kafka",
            "clickhouse",
            "wasm",
            "admin",
            "embedded",
            "produce",
            "config",
            "telemetry",
            "shutdown",
        ],
    ),
    ("main", &["cli"]),
];

/// All that the configuration may know of the adapters.
const SETTINGS: [&str; 3] = ["crate::kafka::client", "crate::clickhouse::settings", "crate::wasm::Limits"];

/// The arrow, as a failure explains it.
const ARROW: &str = "the dependency arrow is \
    domain <- pipeline <- {kafka, clickhouse, wasm, admin, embedded} <- app <- cli <- main; adapters never \
    import each other. Let a domain type or a trait in pipeline/ports.rs carry what is needed, and wire it \
    together in app.rs";

/// What the pure core may not know, as starts of paths.
const IMPURE: [&str; 22] = [
    "tokio",
    "tokio_util",
    "rdkafka",
    "rdkafka_sys",
    "wasmtime",
    "axum",
    "hyper",
    "clickhouse",
    "notify",
    "rand",
    "tracing",
    "prometheus",
    "config",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::io::stdin",
    "std::os",
];

/// Blanks comments, strings and character literals, keeping every line where it is.
fn blank(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let at = |index: usize| bytes.get(index).copied().unwrap_or('\0');
    let keep_lines =
        |text: &[char]| text.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }).collect::<String>();
    let mut index = 0;
    while index < bytes.len() {
        let end = match (at(index), at(index + 1)) {
            ('/', '/') => (index..bytes.len()).find(|end| bytes[*end] == '\n').unwrap_or(bytes.len()),
            ('/', '*') => {
                let mut depth = 1;
                let mut end = index + 2;
                while depth > 0 && end < bytes.len() {
                    match (at(end), at(end + 1)) {
                        ('/', '*') => (depth, end) = (depth + 1, end + 2),
                        ('*', '/') => (depth, end) = (depth - 1, end + 2),
                        _ => end += 1,
                    }
                }
                end
            }
            ('r', '"' | '#') if index == 0 || !is_word(at(index - 1)) || at(index - 1) == 'b' => {
                let hashes = (index + 1..).take_while(|at_hash| at(*at_hash) == '#').count();
                if at(index + 1 + hashes) == '"' {
                    let closing: Vec<char> =
                        std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    (index + 2 + hashes..bytes.len())
                        .find(|end| bytes[*end..].starts_with(&closing))
                        .map_or(bytes.len(), |end| end + closing.len())
                } else {
                    index
                }
            }
            ('"', _) => {
                let mut end = index + 1;
                while end < bytes.len() && at(end) != '"' {
                    end += if at(end) == '\\' { 2 } else { 1 };
                }
                end + 1
            }
            // A character, not a lifetime: 'x' or '\n'.
            ('\'', '\\') => {
                (index + 3..bytes.len()).find(|end| bytes[*end] == '\'').map_or(bytes.len(), |end| end + 1)
            }
            ('\'', _) if at(index + 2) == '\'' => index + 3,
            _ => index,
        };
        let end = end.min(bytes.len());
        if end == index {
            out.push(bytes[index]);
            index += 1;
        } else {
            out.push_str(&keep_lines(&bytes[index..end]));
            index = end;
        }
    }
    out
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Every path in blanked source that has a `::`, groups expanded, with its line.
fn paths(blanked: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    for (line, text) in blanked.lines().enumerate() {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = if is_word(first) {
                rest.find(|character| !is_word(character)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                tokens.push((line + 1, rest[..length].to_owned()));
            }
            rest = &rest[length..];
        }
    }
    let mut found = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let starts_path = tokens[index].1.chars().all(is_word)
            && (index == 0
                || tokens[index - 1].1 != "::"
                || index == 1
                || !tokens[index - 2].1.chars().all(is_word));
        index = if starts_path { path(&tokens, index, "", &mut found) } else { index + 1 };
    }
    found
}

/// Reads one path from `index`, prefixed; returns where it ends.
fn path(
    tokens: &[(usize, String)],
    mut index: usize,
    prefix: &str,
    found: &mut Vec<(usize, String)>,
) -> usize {
    let line = tokens[index].0;
    let token = |index: usize| tokens.get(index).map_or("", |(_, token)| token.as_str());
    let mut whole = format!("{prefix}{}", token(index));
    index += 1;
    while token(index) == "::" {
        if token(index + 1) == "{" {
            index += 2;
            while !matches!(token(index), "}" | "") {
                if token(index).chars().all(is_word) {
                    index = path(tokens, index, &format!("{whole}::"), found);
                } else {
                    index += 1;
                }
            }
            return index + 1;
        }
        if !token(index + 1).chars().all(is_word) || token(index + 1).is_empty() {
            break;
        }
        whole = format!("{whole}::{}", token(index + 1));
        index += 2;
    }
    if whole.contains("::") {
        found.push((line, whole));
    }
    index
}

/// What is wrong with one file, given its path below `src` and its text.
fn complaints(file: &Path, source: &str) -> Vec<String> {
    let shown = file.display();
    let mut complaints = Vec::new();
    // Tests of one file, in a file of their own, are about what their parent is about.
    if !source.starts_with("//! ") && !file.ends_with("tests.rs") {
        complaints.push(format!(
            "src/{shown}:1: open the file with `//! `: its one purpose, its state, its invariants"
        ));
    }
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    let module = parts[0].as_str();
    if module == "lib" {
        return complaints;
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else {
        complaints.push(format!(
            "src/{shown}: `{module}` is new: give it a place in the arrow, in tests/layering.rs"
        ));
        return complaints;
    };
    for (line, path) in paths(&blank(source)) {
        let segments: Vec<&str> = path.split("::").collect();
        let supers = segments.iter().take_while(|segment| **segment == "super").count();
        let imported = match segments[0] {
            "crate" => Some(segments[1]),
            "sluice" if module == "main" => Some(segments[1]),
            // One more than the file's depth is fine in an inline module; beyond that it is the crate.
            "super" if supers > parts.len() => segments.get(supers).copied(),
            _ => None,
        };
        if let Some(imported) = imported
            && imported != module
            && !allowed.contains(&imported)
        {
            complaints.push(format!("src/{shown}:{line}: `{module}` may not import `{path}`: {ARROW}"));
        }
        if module == "config"
            && ["kafka", "clickhouse", "wasm", "admin", "embedded"].contains(&imported.unwrap_or_default())
            && !SETTINGS.iter().any(|settings| path.starts_with(settings))
        {
            complaints.push(format!(
                "src/{shown}:{line}: the configuration may know the settings of an adapter ({}), not `{path}`",
                SETTINGS.join(", ")
            ));
        }
        if module == "domain"
            && let Some(impure) =
                IMPURE.iter().find(|impure| path == **impure || path.starts_with(&format!("{impure}::")))
        {
            complaints.push(format!(
                "src/{shown}:{line}: the domain may not know `{impure}`: it has no clock, randomness or I/O, so \
                 that every decision is tested without waiting. Take the value as an argument"
            ));
        }
    }
    complaints
}

fn sources(directory: &Path, found: &mut BTreeMap<PathBuf, String>, root: &Path) {
    for entry in std::fs::read_dir(directory).expect("src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found, root);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let below = path.strip_prefix(root).expect("below src").to_owned();
            found.insert(below, std::fs::read_to_string(&path).expect("UTF-8"));
        }
    }
}

#[test]
fn the_dependency_arrow_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    sources(&root, &mut found, &root);
    assert!(found.len() > 20, "the sources moved");
    let all: Vec<String> = found.iter().flat_map(|(file, source)| complaints(file, source)).collect();
    assert!(all.is_empty(), "{} breaches:\n{}", all.len(), all.join("\n"));
}

#[test]
fn a_breach_is_found_wherever_it_hides() {
    let breaches =
        |file: &str, body: &str| complaints(Path::new(file), &format!("//! Purpose.\n{body}")).len();
    assert_eq!(breaches("kafka/intake.rs", "use crate::clickhouse::sink;"), 1);
    assert_eq!(breaches("kafka/mod.rs", "use crate::{domain::chunk, clickhouse::{sink, schema}};"), 2);
    assert_eq!(breaches("kafka/intake.rs", "fn f() { let x = crate::wasm::engine(); }"), 1);
    assert_eq!(breaches("kafka/intake.rs", "use super::super::super::wasm::engine;"), 1);
    assert_eq!(breaches("pipeline/flow.rs", "use crate\n    ::kafka::client;"), 1);
    assert_eq!(breaches("domain/ledger.rs", "use std::{time::{Duration, Instant}, fs};"), 2);
    assert_eq!(
        breaches("domain/ledger.rs", "fn f() { std::time::SystemTime::now(); ::tokio::spawn(g()); }"),
        2
    );
    assert_eq!(breaches("admin/mod.rs", "use crate::app::App;"), 1);
    assert_eq!(breaches("config.rs", "use crate::wasm::{Limits, ModuleRegistry};"), 1);
    assert_eq!(breaches("main.rs", "fn main() { sluice::app::run() }"), 1);
    assert_eq!(breaches("helpers.rs", ""), 1);
    assert_eq!(complaints(Path::new("kafka/mod.rs"), "use x;").len(), 1, "no header");
}

#[test]
fn what_only_looks_like_one_is_none() {
    let breaches = |file: &str, body: &str| complaints(Path::new(file), &format!("//! Purpose.\n{body}"));
    let innocent = r##"
        // use crate::wasm::engine;
        /* crate::wasm /* nested */ crate::wasm::x */
        const A: &str = "crate::wasm::engine \" crate::wasm";
        const B: &str = r#"crate::wasm "crate::wasm""#;
        const C: (char, char, char) = ('"', '\'', '\\');
        fn f<'a>(x: &'a str) -> &'a str { x }
        use crate::{domain::chunk::{Chunk, ChunkBuilder}, pipeline};
        use super::client;
        use std::time::Duration;
    "##;
    assert_eq!(breaches("kafka/intake.rs", innocent), Vec::<String>::new());
    assert_eq!(
        breaches("domain/retry.rs", "use std::time::Duration; use super::super::domain::x;"),
        Vec::<String>::new()
    );
}
