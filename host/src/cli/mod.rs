//! Commands: one file each. This one only parses the command line and dispatches.

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
enum Command {}

/// Parses the command line, runs the command and reports its error on standard error.
pub fn main() -> ExitCode {
    match Arguments::parse().command {}
}
