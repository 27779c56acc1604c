//! The examples, built for wasm with nothing but cargo: what comes out is a module by the contract.
//!
//! `deploy/modules.sh` finds the compiler that has the target: rustup's, or Debian's where rustup cannot download.

use std::path::{Path, PathBuf};
use std::process::Command;

use wit_component::{ComponentEncoder, DecodedWasm};

const TARGET: &str = "wasm32-unknown-unknown";

/// The folder of the built examples.
fn built() -> PathBuf {
    // The workspace's own folder, so that a module build before or after this one is not repeated.
    let target_directory = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").to_owned();
    let status = Command::new("bash")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/modules.sh"), "cargo"])
        .args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "--examples"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .arg("--target-dir")
        .arg(&target_directory)
        .status()
        .expect("bash runs");
    assert!(status.success(), "run `make setup` if the target {TARGET} is what is missing");
    target_directory.join(TARGET).join("guest/examples")
}

/// The names of the imports of a core module.
fn core_imports(module: &[u8]) -> Vec<String> {
    wasmparser::Parser::new(0)
        .parse_all(module)
        .filter_map(|payload| match payload.expect("a wasm module") {
            wasmparser::Payload::ImportSection(imports) => Some(imports),
            _ => None,
        })
        .flat_map(|imports| imports.into_imports())
        .map(|import| format!("{:?}", import.expect("an import")))
        .collect()
}

/// What a component that is made of a module, as the host makes it, imports and exports, by name.
fn component_world(module: &[u8]) -> (Vec<String>, Vec<String>) {
    let component = ComponentEncoder::default()
        .module(module)
        .expect("the module carries its component type")
        .validate(true)
        .encode()
        .expect("the module keeps to its component type");
    let DecodedWasm::Component(resolve, world) = wit_component::decode(&component).expect("a component")
    else {
        panic!("a component");
    };
    let world = &resolve.worlds[world];
    let names = |items: Vec<_>| {
        let mut names: Vec<_> = items.iter().map(|key| resolve.name_world_key(key)).collect();
        names.sort();
        names
    };
    (names(world.imports.keys().cloned().collect()), names(world.exports.keys().cloned().collect()))
}

#[test]
fn examples_are_modules_by_the_contract_and_import_at_most_the_log() {
    let folder = built();
    for (name, interface) in [
        ("minimum_total", "sluice:module/validate@0.1.0"),
        ("allowed_countries", "sluice:module/validate@0.1.0"),
        ("order_rows", "sluice:module/map@0.1.0"),
    ] {
        let module = std::fs::read(folder.join(name).with_extension("wasm")).expect(name);
        assert_eq!(core_imports(&module), [""; 0], "{name}");
        let (imports, exports) = component_world(&module);
        // Types only: nothing that a host would have to provide.
        assert_eq!(imports, ["sluice:module/types@0.1.0"], "{name}");
        assert_eq!(exports, [interface], "{name}");
    }
    // Imported where it is called, and only there.
    let module = std::fs::read(folder.join("known_currencies.wasm")).expect("it is built");
    assert_eq!(core_imports(&module).len(), 1, "{:?}", core_imports(&module));
    let (imports, exports) = component_world(&module);
    assert_eq!(imports, ["sluice:module/log@0.1.0", "sluice:module/types@0.1.0"]);
    assert_eq!(exports, ["sluice:module/validate@0.1.0"]);
}
