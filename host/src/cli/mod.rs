//! Commands: one file each. This one only parses the command line and dispatches.

mod audit;
mod check;
mod clickhouse;
mod demo;
mod migrate;
mod module;
mod produce;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kafka records through sandboxed wasm modules into ClickHouse.
#[derive(Parser, Debug)]
#[command(name = "sluice", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::Arguments),
    Check(check::Arguments),
    Audit(audit::Arguments),
    Migrate(migrate::Arguments),
    Module(module::Arguments),
    Produce(produce::Arguments),
    Demo(demo::Arguments),
    Clickhouse(clickhouse::Arguments),
}

/// Parses the command line, runs the command and reports its error on standard error.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        // Its exit code says more than that something went wrong.
        Command::Audit(arguments) => return audit::run(&arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Module(arguments) => return module::run(arguments),
        Command::Produce(arguments) => produce::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Clickhouse(arguments) => clickhouse::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
