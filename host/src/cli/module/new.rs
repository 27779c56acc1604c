//! `sluice module new`: a crate that builds, tests and deploys with plain cargo.
//!
//! The SDK is not on a registry, so the crate names it by its path. A crate inside of the same checkout gets
//! a relative path, so that both move together; one outside gets an absolute path.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::Ending;

const CARGO: &str = include_str!("new/Cargo.toml.txt");
const README: &str = include_str!("new/README.md.txt");
const VALIDATOR: &str = include_str!("new/validator.rs.txt");
const VALIDATOR_CASES: &str = include_str!("new/validator.cases.jsonl.txt");
const MAPPER: &str = include_str!("new/mapper.rs.txt");
const MAPPER_CASES: &str = include_str!("new/mapper.cases.jsonl.txt");

/// Folder of the SDK in a checkout of Sluice.
const SDK: &str = "guest-sdk";
/// Longest name of a crate.
const NAME_BYTES: usize = 64;
/// Names that a crate cannot have, or whose crate could not be told from what it uses.
const TAKEN: [&str; 9] =
    ["alloc", "core", "proc-macro", "serde", "sluice", "sluice-sdk", "std", "test", "wit-bindgen"];

/// Begin a module: a crate with a rule, a native test and golden cases, which builds with plain cargo.
#[derive(clap::Args, Debug)]
pub(super) struct NewArguments {
    /// Name of the module and of its crate: lower-case letters, digits, - and _.
    name: String,
    /// What it is.
    #[arg(long)]
    kind: Kind,
    /// Folder of the crate, which must not be there yet; ./NAME without it.
    #[arg(long)]
    path: Option<PathBuf>,
    /// Folder of the SDK: guest-sdk in a checkout of Sluice. Without it, it is looked for around the new
    /// folder, the working directory and this program.
    #[arg(long)]
    sdk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Accepts a record, or refuses it.
    Validator,
    /// Makes rows of a record.
    Mapper,
}

/// Runs the command.
pub(super) fn run(arguments: &NewArguments) -> Result<Ending> {
    let name = &arguments.name;
    check_name(name)?;
    let path = arguments.path.clone().unwrap_or_else(|| PathBuf::from(name));
    if path.exists() {
        bail!("{} is there already; name another folder with --path", path.display());
    }
    let sdk = sdk(arguments.sdk.as_deref(), &path)?;
    std::fs::create_dir_all(path.join("src")).with_context(|| format!("cannot make {}", path.display()))?;
    let sdk = path_from(&path.canonicalize()?, &sdk);
    let (source, cases) = match arguments.kind {
        Kind::Validator => (VALIDATOR, VALIDATOR_CASES),
        Kind::Mapper => (MAPPER, MAPPER_CASES),
    };
    let filled = |template: &str| fill(template, name, arguments.kind, &sdk);
    for (file, content) in [
        ("Cargo.toml", filled(CARGO)),
        ("src/lib.rs", filled(source)),
        (&format!("{name}.cases.jsonl"), filled(cases)),
        ("README.md", filled(README)),
        (".gitignore", "/target\n*.wasm\n".to_owned()),
    ] {
        let file = path.join(file);
        std::fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is a {} now; its README.md says how to go on:", path.display(), word(arguments.kind))?;
    writeln!(out, "  cd {} && cargo test", path.display())?;
    Ok(Ending::Well)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Validator => "validator",
        Kind::Mapper => "mapper",
    }
}

fn check_name(name: &str) -> Result<()> {
    let is_name = name.len() <= NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .chars()
            .all(|other| other.is_ascii_lowercase() || other.is_ascii_digit() || "-_".contains(other));
    if !is_name {
        bail!(
            "`{name}` cannot name a crate; use up to {NAME_BYTES} lower-case letters, digits, - and _, a letter first"
        );
    }
    if TAKEN.contains(&name.replace('_', "-").as_str()) {
        bail!("`{name}` is the name of a crate that modules use; take another");
    }
    Ok(())
}

/// Where the SDK is, absolute.
fn sdk(named: Option<&Path>, path: &Path) -> Result<PathBuf> {
    let is_sdk = |folder: &Path| {
        std::fs::read_to_string(folder.join("Cargo.toml"))
            .is_ok_and(|text| text.contains("name = \"sluice-sdk\""))
    };
    if let Some(named) = named {
        if !is_sdk(named) {
            bail!("{} is not the SDK; it is the folder {SDK} in a checkout of Sluice", named.display());
        }
        return named.canonicalize().with_context(|| format!("cannot find {}", named.display()));
    }
    let here = std::env::current_dir().context("cannot find the working directory")?;
    let program = std::env::current_exe().ok();
    let around = [Some(here.join(path)), Some(here), program];
    let found = around.iter().flatten().flat_map(|start| start.ancestors()).map(|folder| folder.join(SDK));
    found.into_iter().find(|folder| is_sdk(folder)).map(|folder| folder.canonicalize()).transpose()?.with_context(
        || format!("the SDK is not on a registry, and there is none around here; name it with --sdk PATH/OF/SLUICE/{SDK}"),
    )
}

/// `sdk` as the crate in `from` names it; both are absolute.
fn path_from(from: &Path, sdk: &Path) -> String {
    let checkout = sdk.parent().unwrap_or(sdk);
    match from.strip_prefix(checkout) {
        Ok(below) => {
            let depth = below.components().filter(|part| matches!(part, Component::Normal(_))).count();
            format!("{}{SDK}", "../".repeat(depth))
        }
        Err(_) => sdk.display().to_string(),
    }
}

fn fill(template: &str, name: &str, kind: Kind, sdk: &str) -> String {
    let crate_name = name.replace('-', "_");
    let (place, folder) = match kind {
        Kind::Validator => ("into the pipeline's folder of validators", "path/of/validators/"),
        Kind::Mapper => ("to where the pipeline's `mapper` is", "path/of/modules/"),
    };
    template
        .replace("@NAME@", name)
        .replace("@CRATE@", &crate_name)
        .replace("@OUTPUT@", &crate_name)
        .replace("@KIND@", word(kind))
        .replace("@PLACE@", place)
        .replace("@FOLDER@", folder)
        // In a TOML string.
        .replace("@SDK@", &sdk.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for name in ["my-rule", "a", "rule_2"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "2rules", "-a", "My", "a b", "a.b", "std", "sluice_sdk", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_crate_of_the_same_checkout_moves_with_it() {
        let path = |from: &str| path_from(Path::new(from), Path::new("/src/sluice/guest-sdk"));
        assert_eq!(path("/src/sluice/modules/mine"), "../../guest-sdk");
        assert_eq!(path("/src/mine"), "/src/sluice/guest-sdk");
    }

    #[test]
    fn every_place_in_the_templates_is_filled() {
        for template in [CARGO, README, VALIDATOR, VALIDATOR_CASES, MAPPER, MAPPER_CASES] {
            for kind in [Kind::Validator, Kind::Mapper] {
                let filled = fill(template, "my-rule", kind, "/sdk");
                assert!(!filled.contains('@'), "{filled}");
            }
        }
    }

    #[test]
    fn the_cases_of_the_templates_can_be_read() {
        for cases in [VALIDATOR_CASES, MAPPER_CASES] {
            assert_eq!(crate::wasm::GoldenCases::parse(cases.as_bytes()).expect("cases").len(), 4);
        }
    }
}
