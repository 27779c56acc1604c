//! `sluice compile-module`: what the host starts to compile a module apart from itself; not for people.

use clap::Args;

use crate::wasm::CompilerProcess;

/// Compile the module on standard input, for the `sluice` that started this.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Process that started this one, and without which it ends.
    #[arg(long)]
    parent: u32,
    /// Memory that compiling may take.
    #[arg(long)]
    memory_bytes: u64,
    /// Processor time that compiling may take.
    #[arg(long)]
    processor_time: humantime::Duration,
}

/// Runs the command.
///
/// # Errors
/// When it cannot be held to its limits, or there is nobody who asks or listens.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { parent, memory_bytes, processor_time } = *arguments;
    CompilerProcess { parent, memory_bytes, processor_time: processor_time.into() }.run()?;
    Ok(())
}
