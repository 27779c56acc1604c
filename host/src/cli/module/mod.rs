//! `sluice module`: look at modules and try them before they are deployed; see what a running Sluice says of its
//! modules, and order. One file a command or several of a kind; this one only says how each ends.
//!
//! Exit codes of all of them: 0 when all is well, 1 when something was found (a refusal, a case that fails,
//! a difference), 2 when the command could not do its work.

mod diff;
mod inspect;
mod lines;
mod new;
mod order;
mod remote;
mod show;
mod source;
mod test;

use std::process::ExitCode;

use clap::Subcommand;

/// Something was found, and what kept it from being looked for.
const FOUND: u8 = 1;
const FAILED: u8 = 2;

/// Look at a module, try it, compare it, begin a new one; see and decide which revisions a running Sluice has.
///
/// inspect, test, diff and new need no running Sluice; the others ask one. All exit with 0 when all is well, with 1
/// when something was found (a refusal, a case that fails, a difference) and with 2 when they could not do their work.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: ModuleCommand,
}

#[derive(Subcommand, Debug)]
enum ModuleCommand {
    Inspect(inspect::InspectArguments),
    Test(test::TestArguments),
    Diff(diff::DiffArguments),
    New(new::NewArguments),
    List(show::ListArguments),
    Status(show::StatusArguments),
    History(show::HistoryArguments),
    Shadow(show::ShadowArguments),
    Rollback(order::RollbackArguments),
    Pin(order::PinArguments),
    Release(order::ReleaseArguments),
}

/// How a command ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Well,
    Found,
}

/// Runs the command.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let ending = match arguments.command {
        ModuleCommand::Inspect(arguments) => inspect::run(&arguments),
        ModuleCommand::Test(arguments) => test::run(&arguments),
        ModuleCommand::Diff(arguments) => diff::run(&arguments),
        ModuleCommand::New(arguments) => new::run(&arguments),
        ModuleCommand::List(arguments) => show::list(&arguments),
        ModuleCommand::Status(arguments) => show::status(&arguments),
        ModuleCommand::History(arguments) => show::history(&arguments),
        ModuleCommand::Shadow(arguments) => show::shadow(&arguments),
        ModuleCommand::Rollback(arguments) => order::rollback(&arguments),
        ModuleCommand::Pin(arguments) => order::pin(&arguments),
        ModuleCommand::Release(arguments) => order::release(&arguments),
    };
    match ending {
        Ok(Ending::Well) => ExitCode::SUCCESS,
        Ok(Ending::Found) => ExitCode::from(FOUND),
        Err(error) => {
            eprintln!("error: {}", crate::cli::told(&error));
            ExitCode::from(FAILED)
        }
    }
}
