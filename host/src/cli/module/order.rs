//! `sluice module rollback`, `pin` and `release`: decide which revision of a module judges records.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;

use super::Ending;
use super::remote::{Remote, RemoteArguments, Reply};
use super::show::print;
use crate::admin::paths;

/// Run an earlier revision of a module until its file changes, on all hosts of its pipeline.
///
/// Exits with 0 when it runs; with 1 when that was refused, with the reason; with 2 when it could not be ordered
/// or it is not known what became of it.
#[derive(clap::Args, Debug)]
pub(super) struct RollbackArguments {
    #[command(flatten)]
    order: OrderArguments,
    #[command(flatten)]
    to: ToArguments,
}

/// Run a revision of a module whatever its file holds, on all hosts of its pipeline, until it is released.
///
/// Exits with 0 when it runs; with 1 when that was refused, with the reason; with 2 when it could not be ordered
/// or it is not known what became of it.
#[derive(clap::Args, Debug)]
pub(super) struct PinArguments {
    #[command(flatten)]
    order: OrderArguments,
    #[command(flatten)]
    to: ToArguments,
}

/// End a rollback or a pin: what the module's file holds counts again.
///
/// Exits with 0 when that is so; with 1 when it was refused, with the reason; with 2 when it could not be ordered
/// or it is not known what became of it.
#[derive(clap::Args, Debug)]
pub(super) struct ReleaseArguments {
    #[command(flatten)]
    order: OrderArguments,
}

/// What is ordered, by whom and why.
#[derive(clap::Args, Debug)]
#[group(id = "module_order")]
struct OrderArguments {
    /// Module, as its file is named without .wasm.
    name: String,
    /// Why, for those who read the history.
    #[arg(long, default_value = "")]
    reason: String,
    /// Who orders this, for the history; without it the user and the machine.
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    remote: RemoteArguments,
}

/// Which revision is meant.
#[derive(clap::Args, Debug)]
#[group(id = "module_revision")]
struct ToArguments {
    /// First digits of the revision, 4 at least (`sluice module history` lists them). Without it: for a rollback
    /// the one before the live one, for a pin the live one.
    #[arg(long, value_name = "REVISION")]
    to: Option<String>,
}

pub(super) fn rollback(arguments: &RollbackArguments) -> Result<Ending> {
    order(&arguments.order, "rollback", arguments.to.to.as_deref())
}

pub(super) fn pin(arguments: &PinArguments) -> Result<Ending> {
    order(&arguments.order, "pin", arguments.to.to.as_deref())
}

pub(super) fn release(arguments: &ReleaseArguments) -> Result<Ending> {
    order(&arguments.order, "release", None)
}

fn order(arguments: &OrderArguments, action: &str, to: Option<&str>) -> Result<Ending> {
    let path = paths::module(&arguments.name, Some(action), arguments.remote.pipeline.as_deref());
    let mut body = json!({ "by": arguments.by.clone().unwrap_or_else(whoever), "reason": arguments.reason });
    if let Some(to) = to {
        body["to"] = to.into();
    }
    match Remote::new(&arguments.remote)?.order(&path, &body)? {
        Reply::Refused(why) => {
            eprintln!("refused: {why}");
            Ok(Ending::Found)
        }
        Reply::Fine(done) => {
            if arguments.remote.json {
                print(&done)?;
            } else {
                writeln!(
                    io::stdout(),
                    "{}",
                    done["done"].as_str().map_or_else(|| done.to_string(), str::to_owned)
                )?;
            }
            Ok(Ending::Well)
        }
    }
}

/// The user and the machine, as far as they are known.
fn whoever() -> String {
    let user =
        std::env::var("USER").ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "somebody".to_owned());
    format!("{user}@{}", gethostname::gethostname().to_string_lossy())
}
