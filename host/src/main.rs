//! The `sluice` program: arguments to a command, and its exit code; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    sluice::cli::main()
}
