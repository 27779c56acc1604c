//! `sluice module new` for real: the crate that it makes is tested, built and run, with plain cargo and
//! nothing but what this workspace has already (its lock file, and the registry's cache).

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::sluice::root;

/// Crates made here share what they compile, from run to run too.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("module-new")
}

/// Runs a command to its end, which must be a good one.
fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{said}{errors}");
    said
}

fn sluice(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.current_dir(folder).arg("module").args(arguments).env_remove("SLUICE_CONFIG");
    command
}

/// Cargo as its user calls it, kept from asking the registry.
fn cargo(folder: &Path, arguments: &[&str]) -> Command {
    // Where rustup could not install the target, this is the cargo that has it.
    let mut command = Command::new(root().join("deploy/modules.sh"));
    command.arg("cargo").args(arguments).arg("--offline").current_dir(folder);
    command.env("CARGO_TARGET_DIR", target()).env_remove("RUSTFLAGS");
    command
}

fn a_new_module_works(name: &str, kind: &str, tests: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let sdk = root().join("guest-sdk").display().to_string();
    run(&mut sluice(folder.path(), &["new", name, "--kind", kind, "--sdk", &sdk]));
    let made = folder.path().join(name);
    std::fs::copy(root().join("Cargo.lock"), made.join("Cargo.lock")).expect("copied");

    let said = run(Command::new(env!("CARGO"))
        .args(["test", "--offline"])
        .current_dir(&made)
        .env("CARGO_TARGET_DIR", target()));
    assert!(said.contains(&format!("running {tests} test")), "{said}");
    run(&mut cargo(&made, &["build", "--target", "wasm32-unknown-unknown", "--release"]));
    let built =
        target().join("wasm32-unknown-unknown/release").join(format!("{}.wasm", name.replace('-', "_")));
    std::fs::copy(built, made.join(format!("{name}.wasm"))).expect("built");

    let file = format!("{name}.wasm");
    let said = run(&mut sluice(&made, &["inspect", &file]));
    assert!(said.contains(&format!("kind      {kind}, a core module")), "{said}");
    let said = run(&mut sluice(&made, &["test", &file]));
    assert_eq!(said, format!("{name}.cases.jsonl: 4 passed, 0 failed\n"));
}

/// One after the other: they would wait for each other's lock on the folder anyway.
#[test]
fn new_modules_build_test_and_pass_their_cases() {
    a_new_module_works("my-rule", "validator", 2);
    a_new_module_works("my-rows", "mapper", 1);
}

#[test]
fn what_cannot_be_made_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("there")).expect("made");
    for (arguments, expected) in [
        (vec!["new", "There", "--kind", "mapper"], "cannot name a crate"),
        (vec!["new", "serde", "--kind", "mapper"], "take another"),
        (vec!["new", "there", "--kind", "mapper"], "is there already"),
        (vec!["new", "mine", "--kind", "mapper", "--sdk", "there"], "there is not the SDK"),
    ] {
        let output = sluice(folder.path(), &arguments).output().expect("sluice runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(expected), "{errors}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left behind");
}
