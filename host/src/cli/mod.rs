//! Commands: one file each. This one only parses the command line and dispatches.

mod audit;
mod check;
mod clickhouse;
mod compile_module;
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
    #[command(hide = true)]
    CompileModule(compile_module::Arguments),
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
        Command::CompileModule(arguments) => compile_module::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, each once: many errors say their cause themselves, where it reads better.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_says_of_its_cause_is_not_said_again() {
        let refused = || std::io::Error::other("address in use");
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 9464));
        let error = crate::admin::AdminError::Bind { listen, source: refused() };
        let text = told(&anyhow::Error::new(error).context("cannot start"));
        assert!(text.starts_with("cannot start: cannot listen at 127.0.0.1:9464"), "{text}");
        assert_eq!(text.matches("address in use").count(), 1, "{text}");
        // What only the cause knows stays.
        assert_eq!(
            told(&anyhow::Error::new(refused()).context("cannot start")),
            "cannot start: address in use"
        );
    }
}
