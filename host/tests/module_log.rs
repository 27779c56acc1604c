//! The one import: what modules log, and that it can be neither abused nor relied upon.

mod support;

use std::cell::RefCell;
use std::io::Write;
use std::sync::Once;

use serde_json::Value;
use sluice::domain::chunk::Chunk;
use sluice::domain::verdict::{ChunkVerdicts, Rejection, RejectionKind};
use sluice::pipeline::ports::Chain;
use sluice::wasm::WasmChain;
use support::guests::{ModuleFolder, chunk, hostile_validator, talking_validator, tight};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::DynFilterFn;
use tracing_subscriber::layer::SubscriberExt;

thread_local! {
    /// What is to be heard on this thread, and what was, as JSON.
    static HEARD: RefCell<(LevelFilter, Vec<u8>)> = const { RefCell::new((LevelFilter::OFF, Vec::new())) };
}

/// Where lines of all threads come in.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        HEARD.with_borrow_mut(|(_, log)| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Listens on every thread. One subscriber for the process, from the first on: a line that is met where
/// nobody listens may be taken for one that nobody wants, for all threads.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = DynFilterFn::new(|line, _| HEARD.with_borrow(|(level, _)| line.level() <= level));
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(|| Log);
        let subscriber = tracing_subscriber::registry().with(filter).with(json);
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
    });
}

/// Runs `body` and answers what was logged on this thread.
fn logged<T>(level: LevelFilter, body: impl FnOnce() -> T) -> (T, Vec<Value>) {
    listen();
    HEARD.set((level, Vec::new()));
    let result = body();
    let (_, bytes) = HEARD.replace((LevelFilter::OFF, Vec::new()));
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (result, lines.map(|line| serde_json::from_slice(line).expect("a line is JSON")).collect())
}

fn talker() -> ModuleFolder {
    listen();
    let folder = ModuleFolder::new(tight());
    folder.write("validators/talker.wasm", &talking_validator(str::to_owned));
    folder
}

fn run(chain: &WasmChain, chunk: &Chunk) -> (ChunkVerdicts, Vec<Value>) {
    logged(LevelFilter::INFO, || chain.runner().run(chunk))
}

/// What the talker refuses; the mapper behind it does its own things to some letters.
fn refused(verdicts: &ChunkVerdicts) -> Vec<(u32, Rejection)> {
    let all = verdicts.rejections.iter();
    all.filter(|(_, rejection)| &*rejection.module == "talker").cloned().collect()
}

fn messages(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["message"].as_str().expect("a message")).collect()
}

fn dropped(folder: &ModuleFolder) -> u64 {
    let families = folder.metrics.gather();
    let family = families.iter().find(|family| family.name() == "sluice_module_log_lines_dropped_total");
    let series = family.expect("the metric is there").get_metric();
    let of_talker = |metric: &&prometheus::proto::Metric| {
        metric.get_label().iter().any(|label| label.value() == "talker")
    };
    series.iter().find(of_talker).expect("the module is there").get_counter().get_value() as u64
}

#[test]
fn a_line_says_who_wrote_it_and_how_much_it_matters() {
    let folder = talker();
    // `init` is heard when the file is tried, by whom it may concern.
    let (chain, lines) =
        logged(LevelFilter::INFO, || folder.load().unwrap_or_else(|error| panic!("{error}")));
    let heard: Vec<_> = lines.iter().filter(|line| line["target"] == "sluice::module").collect();
    assert_eq!(heard.len(), 1, "{lines:?}");
    assert_eq!(
        (heard[0]["message"].as_str(), heard[0]["module"].as_str()),
        (Some("starting"), Some("talker"))
    );
    assert_eq!(heard[0].get("pipeline"), None);

    let (verdicts, lines) = run(&chain, &chunk(["d", "i", "w", "e"]));
    assert_eq!(refused(&verdicts), []);
    assert_eq!(messages(&lines), ["one line"; 3], "debug is off, and `init` is not heard for each instance");
    let levels: Vec<_> = lines.iter().map(|line| line["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["INFO", "WARN", "ERROR"]);
    let revision = chain.modules()[0].revision.to_string();
    for line in &lines {
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            ["target", "pipeline", "module", "revision"].map(field),
            ["sluice::module", "tests", "talker", &revision]
        );
    }
    let (_, lines) = logged(LevelFilter::DEBUG, || chain.runner().run(&chunk(["d"])));
    let lines: Vec<_> = lines.into_iter().filter(|line| line["target"] == "sluice::module").collect();
    assert_eq!((messages(&lines), lines[0]["level"].as_str()), (vec!["one line"], Some("DEBUG")));
}

#[test]
fn lines_are_cleaned_and_cut() {
    let chain = talker().load().unwrap_or_else(|error| panic!("{error}"));
    let (verdicts, lines) = run(&chain, &chunk(["n", "N", "G"]));
    assert_eq!(refused(&verdicts), []);
    let messages = messages(&lines);
    assert_eq!(messages[..2], [r#"two lines  [31m{"level":1}"#, "(a line that is not UTF-8)"]);
    assert_eq!(messages[2].len(), 1024);
    assert!(messages[2].ends_with("xx…"));
}

#[test]
fn a_line_that_is_none_costs_its_record() {
    let chain = talker().load().unwrap_or_else(|error| panic!("{error}"));
    for letter in ["P", "l"] {
        let (verdicts, lines) = run(&chain, &chunk(["a", letter, "i"]));
        let [(1, rejection)] = &verdicts.rejections[..] else { panic!("{:?}", verdicts.rejections) };
        assert_eq!(
            (rejection.kind, rejection.code.as_str()),
            (RejectionKind::BadRow, "bad_answer"),
            "{rejection:?}"
        );
        assert_eq!(messages(&lines), ["one line"], "the neighbour's");
    }
}

#[test]
fn a_flood_is_held_back_and_counted() {
    let folder = talker();
    let chain = folder.load().unwrap_or_else(|error| panic!("{error}"));
    // It floods until its time is up, which is what it is refused for; nobody else is.
    let (verdicts, lines) = run(&chain, &chunk(["a", "F", "b"]));
    let [(1, rejection)] = &verdicts.rejections[..] else { panic!("{:?}", verdicts.rejections) };
    assert_eq!(
        (rejection.kind, rejection.reason.as_str()),
        (RejectionKind::Timeout, "no answer within 250 ms")
    );
    let (own, hosts): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line["message"] == "one line");
    assert!(own.len() >= 50, "{} lines", own.len());
    let dropped = dropped(&folder);
    assert!(dropped > 10 * own.len() as u64, "{dropped} dropped, {} shown", own.len());
    let said = "a module logs more than 10 lines a second; the rest is dropped";
    assert_eq!(
        hosts.first().map(|line| (line["message"].as_str(), line["dropped"].as_u64())),
        Some((Some(said), Some(1)))
    );

    // Another module's lines are its own.
    folder.write("validators/other.wasm", &talking_validator(str::to_owned));
    let chain = folder.load().unwrap_or_else(|error| panic!("{error}"));
    let (_, lines) = run(&chain, &chunk(["i"]));
    assert!(lines.iter().any(|line| line["module"] == "other" && line["message"] == "one line"), "{lines:?}");
}

#[test]
fn a_second_run_is_silent() {
    let folder = talker();
    let (chain, archived) = folder.load_and_archive();
    let (_, lines) = run(&chain, &chunk(["i", "T", "w"]));
    assert!(lines.len() > 2, "records that are run again are logged again: {lines:?}");
    let again = folder.load_archived(archived).unwrap_or_else(|error| panic!("{error}"));
    let (verdicts, lines) =
        logged(LevelFilter::INFO, || again.runner().run_again(&chunk(["i", "T", "w"]), &[]));
    assert_eq!(lines, Vec::<Value>::new());
    assert_eq!(refused(&verdicts).len(), 1);
}

/// A module that was built before there was a log, whose contract does not name it.
#[test]
fn a_module_that_does_not_ask_gets_nothing() {
    let older = support::guests::CONTRACT.replace("    import log;\n", "");
    assert_ne!(older, support::guests::CONTRACT);
    let text = support::guests::with_prelude(include_str!("../../testdata/guests/validator.wat"));
    let folder = ModuleFolder::new(tight());
    folder.write("validators/older.wasm", &support::guests::typed(&text, &older, "validator"));
    let chain = folder.load().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(chain.runner().run(&chunk(["a", "r"])).rejections.len(), 1);
    // One of today's that does not log is the same component.
    let component = |core: &[u8]| {
        let encoder = wit_component::ComponentEncoder::default().module(core).expect("a module");
        { encoder }.encode().expect("encodes")
    };
    let decoded = wit_component::decode(&component(&hostile_validator(|text| text))).expect("a component");
    let wit_component::DecodedWasm::Component(resolve, world) = decoded else { panic!("a component") };
    let imports = resolve.worlds[world].imports.keys().map(|key| resolve.name_world_key(key));
    assert_eq!(imports.collect::<Vec<_>>(), ["sluice:module/types@0.1.0"]);
}

#[test]
fn another_version_of_the_log_is_an_import_like_any_other() {
    let contract = support::guests::CONTRACT.replace("0.1.0", "0.2.0");
    let import = r#"(module (import "sluice:module/log@0.2.0" "log" (func $log (param i32 i32 i32)))"#;
    let text = support::guests::with_prelude(include_str!("../../testdata/guests/talker.wat"));
    let text = text.replacen("(module", import, 1).replace("@0.1.0", "@0.2.0");
    let folder = ModuleFolder::new(tight());
    folder.write("validators/rule.wasm", &support::guests::typed(&text, &contract, "validator"));
    let message = folder.load_error();
    assert!(
        message.contains("imports `sluice:module/log@0.2.0`, but a module may import nothing but"),
        "{message}"
    );
}
