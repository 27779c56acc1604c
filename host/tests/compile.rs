//! Compiling in a process of its own: what a file may do to it, and that nothing of it reaches the host.
//!
//! The compiler is the program itself, as in production. Files are bombs: some take too long or too much
//! memory to compile, some crash the compiler. Each limit is tested obeyed and violated.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use sluice::domain::secret::Secret;
use sluice::domain::verdict::RejectionKind;
use sluice::pipeline::ports::Chain;
use sluice::wasm::{CodeCache, Compiler, Limits};
use support::clickhouse_server::ClickHouse;
use support::guests::{
    ModuleFolder, bomb, chunk, engine, hostile_mapper, hostile_validator, overflowing_validator, tight,
};
use support::sluice::{Configuration, PATIENCE, Sluice};

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_sluice").into()
}

/// Modules that are compiled by `compiler`.
fn compiled_by(compiler: Compiler, limits: Limits) -> ModuleFolder {
    ModuleFolder::on(engine().with_compiler(compiler), limits)
}

fn in_child(limits: Limits) -> ModuleFolder {
    compiled_by(Compiler::child_of(program()), limits)
}

/// Limits that compiling alone can violate.
fn roomy(compile_timeout: Duration, compile_memory_bytes: usize) -> Limits {
    Limits { compile_timeout, compile_memory_bytes, file_bytes: 64 << 20, ..tight() }
}

/// What is said of a bomb that does compile.
const COMPILED: &str = "is no Sluice module: it exports nothing and ";

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(600);

/// A bomb that takes many seconds.
fn long_bomb() -> Vec<u8> {
    bomb(20_000, 200)
}

/// What loading says of a single validator of these bytes.
fn refused(modules: &ModuleFolder, bytes: &[u8]) -> String {
    modules.write("validators/rule.wasm", bytes);
    let error = modules.load_error();
    error.strip_prefix("module validators/rule.wasm ").unwrap_or_else(|| panic!("{error}")).to_owned()
}

/// Compilers with this memory limit, by which a test knows its own; they are processes of this machine.
fn compilers(memory_bytes: usize) -> Vec<u32> {
    let argument = format!("--memory-bytes={memory_bytes}");
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // That of a process that has ended and was not waited for is empty.
        arguments.split(|byte| *byte == 0).any(|part| part == argument.as_bytes())
    })
    .collect()
}

/// Waits until there are so many.
fn wait_for_compilers(memory_bytes: usize, count: usize) -> Vec<u32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = compilers(memory_bytes);
        if found.len() == count {
            return found;
        }
        assert!(Instant::now() < deadline, "{count} compilers are due, {found:?} are there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32, signal: i32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal");
    rustix::process::kill_process(pid, signal).expect("it is there");
}

#[test]
fn a_child_makes_what_this_process_makes() {
    let verdicts = [in_child(tight()), ModuleFolder::new(tight())].map(|modules| {
        modules.write("validators/rule.wasm", &hostile_validator(|text| text));
        let chain = modules.load().unwrap_or_else(|error| panic!("{error}"));
        chain.runner().run(&chunk(["a", "r", "T", "E", "M", "2", "f", "Z", "L"]))
    });
    let [child, here] = verdicts;
    assert!(child.rejections.iter().any(|(_, rejection)| rejection.kind == RejectionKind::Timeout));
    assert_eq!(child.rejections, here.rejections);
    assert_eq!(child.outputs, here.outputs);
}

#[test]
fn a_child_refuses_with_the_same_words() {
    let (child, here) = (in_child(tight()), ModuleFolder::new(tight()));
    let whole = hostile_validator(|text| text);
    let wasi = hostile_validator(|text| {
        let import =
            r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#;
        text.replacen("(module", &format!("(module {import}"), 1)
    });
    let mut words = BTreeSet::new();
    for bytes in [
        whole[..whole.len() / 2].to_vec(),
        wat::parse_str("(module)").expect("wat"),
        wat::parse_str("(component)").expect("wat"),
        b"text".to_vec(),
        hostile_mapper(|text| text),
        wasi,
    ] {
        let said = refused(&child, &bytes);
        assert_eq!(said, refused(&here, &bytes));
        words.insert(said);
    }
    assert_eq!(words.len(), 6, "{words:?}");
}

#[test]
fn compile_time_obeyed_and_violated() {
    let message = refused(&in_child(roomy(Duration::from_secs(1), 16 << 30)), &long_bomb());
    assert!(message.starts_with("takes more than 1s of processor time to compile; "), "{message}");
    assert!(message.ends_with("or raise compile_timeout"), "{message}");
    let message = refused(&in_child(roomy(LONG, 16 << 30)), &bomb(4000, 100));
    assert!(message.starts_with(COMPILED), "{message}");
}

#[test]
fn compile_memory_obeyed_and_violated() {
    // One function: all that the compiler knows of it, it knows at once.
    let bomb = bomb(1, 60_000);
    let message = refused(&in_child(roomy(LONG, 64 << 20)), &bomb);
    assert!(message.starts_with("takes more than 67108864 bytes of memory to compile; "), "{message}");
    assert!(message.ends_with("or raise compile_memory"), "{message}");
    let message = refused(&in_child(roomy(LONG, 4 << 30)), &bomb);
    assert!(message.starts_with(COMPILED), "{message}");
}

#[test]
fn a_file_that_overflows_the_stack_of_a_parser_costs_its_compiler_alone() {
    let modules = in_child(tight());
    let message = refused(&modules, &overflowing_validator());
    assert!(message.starts_with("makes the compiler crash (its stack overflows); "), "{message}");
    modules.write("validators/rule.wasm", &hostile_validator(|text| text));
    modules.load().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn something_that_ends_the_compiler_is_not_the_modules_fault() {
    const MEMORY: usize = (5 << 30) + 1;
    let modules = in_child(roomy(LONG, MEMORY));
    modules.write("validators/rule.wasm", &long_bomb());
    let message = std::thread::scope(|scope| {
        let said = scope.spawn(|| modules.load_error());
        let found = wait_for_compilers(MEMORY, 1);
        kill(found[0], 9);
        said.join().expect("it is refused")
    });
    assert_eq!(
        message,
        "module validators/rule.wasm could not be compiled, which is this machine's doing: something ended the \
         compiler (signal: 9 (SIGKILL)); where that was for want of memory, give the machine more, or lower \
         compile_memory"
    );
    assert_eq!(compilers(MEMORY), Vec::<u32>::new());
}

#[test]
fn a_compiler_that_is_none_is_not_the_modules_fault() {
    let good = hostile_validator(|text| text);
    for (program, reason) in [
        ("/nowhere/sluice", "cannot start /nowhere/sluice: No such file or directory"),
        ("/bin/false", "the compiler ended with code Some(1)"),
        ("/bin/true", "the compiler ended with code Some(0)"),
    ] {
        let modules = compiled_by(Compiler::child_of(program.into()), tight());
        let message = refused(&modules, &good);
        let start = format!("could not be compiled, which is this machine's doing: {reason}");
        assert!(message.starts_with(&start), "{message}");
    }
}

/// A folder with a configuration whose mapper takes long to compile, within `memory` bytes.
fn configuration(folder: &Path, memory: usize) -> Configuration {
    std::fs::write(folder.join("mapper.wasm"), long_bomb()).expect("written");
    let file = folder.join("sluice.yaml");
    let yaml = format!(
        "modules: {{compile_timeout: 600s, file_bytes: 64MiB, compile_memory: {memory}}}\n\
         clickhouse: {{migrate_at_start: false}}\n\
         pipelines: {{purchases: {{topics: purchases, mapper: mapper.wasm}}}}"
    );
    std::fs::write(&file, yaml).expect("written");
    Configuration::new("127.0.0.1:1", "http://127.0.0.1:1").with_file(file)
}

#[test]
fn a_host_that_ends_takes_its_compiler_along_however_it_ends() {
    for (signal, memory) in [(15, (5 << 30) + 2), (9, (5 << 30) + 3)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut host = configuration(folder.path(), memory)
            .prepare(&["run"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        wait_for_compilers(memory, 1);
        kill(host.id(), signal);
        host.wait().expect("it ends");
        wait_for_compilers(memory, 0);
    }
}

/// Its first start: no revision of an earlier one can stand in.
#[test]
fn a_start_tries_again_what_the_machine_did_not_let_be_compiled() {
    const MEMORY: usize = (5 << 30) + 4;
    let clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let configuration = configuration(folder.path(), MEMORY).set("CLICKHOUSE__URL", &clickhouse.url());
    let replace = |bytes: &[u8]| {
        std::fs::write(folder.path().join("new"), bytes).expect("written");
        std::fs::rename(folder.path().join("new"), folder.path().join("mapper.wasm")).expect("renamed");
    };

    let host = Sluice::start(&configuration);
    kill(wait_for_compilers(MEMORY, 1)[0], 9);
    host.wait_until("it says so", |host| {
        let (code, reasons) = host.get("/ready");
        code == 503 && reasons.contains("modules: ") && reasons.contains("something ended the compiler")
    });
    let again = wait_for_compilers(MEMORY, 1);
    replace(&hostile_mapper(|text| text));
    kill(again[0], 9);
    host.wait_until("it goes on, to the brokers", |host| host.get("/ready").1.contains("kafka: "));
    host.kill();

    // What the machine did not do ends it as ever.
    replace(&long_bomb());
    let (code, said) = std::thread::scope(|scope| {
        let run = scope.spawn(|| configuration.run_to_the_end());
        let compiler = wait_for_compilers(MEMORY, 1);
        replace(b"text");
        kill(compiler[0], 9);
        run.join().expect("it ends")
    });
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    let places = ["something ended the compiler", "is not WebAssembly"].map(|reason| said.find(reason));
    assert!(places[0].is_some() && places[0] < places[1], "{said}");
}

#[test]
fn a_host_keeps_what_it_compiles_where_it_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("mapper.wasm"), hostile_mapper(|text| text)).expect("written");
    let file = folder.path().join("sluice.yaml");
    let yaml = "modules: {cache: compiled}\nclickhouse: {migrate_at_start: false}\n\
                pipelines: {purchases: {topics: purchases, mapper: mapper.wasm}}";
    std::fs::write(&file, yaml).expect("written");
    let mut host = Configuration::new("127.0.0.1:1", "http://127.0.0.1:1")
        .with_file(file)
        .prepare(&["run"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let deadline = Instant::now() + PATIENCE;
    let is_kept = || {
        let files = std::fs::read_dir(folder.path().join("compiled")).into_iter().flatten().flatten();
        files.filter(|file| file.file_name().to_string_lossy().ends_with(".code")).count() == 1
    };
    while !is_kept() {
        assert!(Instant::now() < deadline, "nothing is kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(host.id(), 9);
    host.wait().expect("it ends");
}

/// A folder of modules whose compiled code is kept in a cache.
struct Cached {
    modules: ModuleFolder,
    cache: tempfile::TempDir,
}

impl Cached {
    fn new() -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        Self { modules: Self::modules(&cache, Compiler::child_of(program())), cache }
    }

    fn modules(cache: &tempfile::TempDir, compiler: Compiler) -> ModuleFolder {
        let cache = CodeCache::open(&cache.path().join("compiled"), None, 1 << 30).expect("a cache");
        compiled_by(compiler.with_cache(cache), tight())
    }

    /// Loads in another host, which has a compiler or not.
    fn load_elsewhere(&self, compiler: Compiler) -> Result<(), String> {
        let modules = Self::modules(&self.cache, compiler);
        let chain = modules.load().map_err(|error| error.to_string())?;
        let verdicts = chain.runner().run(&chunk(["a", "r"]));
        assert_eq!(verdicts.rejections.len(), 1);
        Ok(())
    }

    fn entry(&self) -> PathBuf {
        let files = std::fs::read_dir(self.cache.path().join("compiled")).expect("a folder").flatten();
        let entries: Vec<_> = files
            .map(|file| file.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "code"))
            .collect();
        let [entry] = &entries[..] else { panic!("{entries:?}") };
        entry.clone()
    }
}

fn no_compiler() -> Compiler {
    Compiler::child_of("/nowhere/sluice".into())
}

#[test]
fn what_is_in_the_cache_needs_no_compiler() {
    let cached = Cached::new();
    cached.load_elsewhere(no_compiler()).expect_err("nothing is there yet");
    cached.modules.load().unwrap_or_else(|error| panic!("{error}"));
    cached.load_elsewhere(no_compiler()).expect("found");
}

/// How many modules were compiled, by where their code came from, and how long all of them took.
fn compiled(modules: &ModuleFolder) -> (BTreeMap<String, u64>, f64) {
    let families = modules.metrics.gather();
    let family = families.iter().find(|family| family.name() == "sluice_module_compile_seconds");
    let series = family.expect("it is registered").get_metric();
    let counts = series
        .iter()
        .map(|series| (series.get_label()[0].value().to_owned(), series.get_histogram().get_sample_count()));
    (counts.collect(), series.iter().map(|series| series.get_histogram().get_sample_sum()).sum())
}

#[test]
fn metrics_tell_where_code_came_from_and_how_long_that_took() {
    let counts = |cache, child, in_process| {
        let counts = [("cache", cache), ("child", child), ("in_process", in_process)];
        counts.map(|(source, count)| (source.to_owned(), count)).into()
    };
    let cached = Cached::new();
    assert_eq!(compiled(&cached.modules), (counts(0, 0, 0), 0.0));
    refused(&cached.modules, b"\0asm\x01\0\0\0");
    let (found, seconds) = compiled(&cached.modules);
    assert_eq!(found, counts(0, 1, 0), "the mapper; what is refused is not counted");
    assert!(seconds > 0.0);

    let elsewhere = Cached::modules(&cached.cache, no_compiler());
    elsewhere.load().unwrap_or_else(|error| panic!("{error}"));
    let (found, seconds) = compiled(&elsewhere);
    assert_eq!(found, counts(1, 0, 0));
    assert!(seconds > 0.0);

    let here = ModuleFolder::new(tight());
    here.load().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(compiled(&here).0, counts(0, 0, 1));
}

#[test]
fn what_is_wrong_in_the_cache_is_compiled_again() {
    let cached = Cached::new();
    cached.modules.load().unwrap_or_else(|error| panic!("{error}"));
    let entry = cached.entry();
    let whole = std::fs::read(&entry).expect("an entry");
    let key = std::fs::read(entry.with_file_name("key")).expect("a key");
    let name = entry.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
    // Code of another wasmtime is rightly sealed, under a name that says that it is of this one.
    let sealed = |code: &[u8]| {
        let mut seal = Hmac::<sha2::Sha256>::new_from_slice(&key).expect("a key");
        seal.update(name.as_bytes());
        seal.update(code);
        [b"sluice compiled 1\n", &seal.finalize().into_bytes()[..], code].concat()
    };
    const HEAD: usize = 18 + 32;
    assert_eq!(sealed(&whole[HEAD..]), whole, "the test seals as the cache does");
    let mut tampered = whole.clone();
    tampered[whole.len() / 2] ^= 1;
    let mut other_version = whole[HEAD..].to_vec();
    // How wasmtime's account of its engine begins: a version of its own, then its own as text.
    let version = other_version.windows(4).position(|part| part == b"\0\x0248").expect("wasmtime's version");
    other_version[version + 2] = b'3';
    for (what, bytes) in [
        ("tampered with", tampered),
        ("cut short", whole[..whole.len() - 1].to_vec()),
        ("empty", Vec::new()),
        ("no code", sealed(b"no code")),
        ("of another wasmtime", sealed(&other_version)),
    ] {
        std::fs::write(&entry, &bytes).expect("written");
        cached.load_elsewhere(no_compiler()).expect_err(what);
        assert!(!entry.exists(), "{what}");
        std::fs::write(&entry, &bytes).expect("written");
        cached.load_elsewhere(Compiler::child_of(program())).expect(what);
        assert!(std::fs::read(&entry).expect("an entry") != bytes, "{what}: replaced");
        cached.load_elsewhere(no_compiler()).expect("whole again");
    }
}

#[test]
fn a_cache_with_another_key_is_of_no_use() {
    let cached = Cached::new();
    cached.modules.load().unwrap_or_else(|error| panic!("{error}"));
    let folder = cached.cache.path().join("compiled");
    let key = Secret::new("a key that is kept elsewhere");
    let entry = cached.entry();
    let cache = CodeCache::open(&folder, Some(&key), 1 << 30).expect("a cache");
    let modules = compiled_by(no_compiler().with_cache(cache), tight());
    assert!(modules.load_error().contains("cannot start /nowhere/sluice"));
    assert!(!entry.exists());
}
