//! `sluice module`: what a running Sluice says of its modules, and orders about them. One file for several commands
//! of a kind; this one only says how each ends.
//!
//! Exit codes of all of them: 0 when all is well, 1 when something was found (a refusal), 2 when the command could
//! not do its work.

mod order;
mod remote;
mod show;

use std::process::ExitCode;

use clap::Subcommand;

/// Something was found, and what kept it from being looked for.
const FOUND: u8 = 1;
const FAILED: u8 = 2;

/// Look at the modules of a running Sluice, and decide which revision of each judges records.
///
/// These commands exit with 0 when all is well, with 1 when something was found (a refusal) and with 2 when they
/// could not do their work.
#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: ModuleCommand,
}

#[derive(Subcommand, Debug)]
enum ModuleCommand {
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
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
