//! `sluice run`: the pipelines of a configuration file, until a signal.

use std::path::PathBuf;

use clap::Args;

use crate::app::App;
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::telemetry;

/// Run the pipelines of a configuration file until SIGTERM or SIGINT.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Configuration file; environment variables SLUICE__SECTION__KEY override it.
    #[arg(long, short, env = "SLUICE_CONFIG", default_value = "config/sluice.yaml")]
    config: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When something is refused at the start, or records are unfinished at the drain deadline.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    telemetry::start_log(&config.logging.level, config.logging.format)?;
    let shutdown = Shutdown::install(config.resources.drain_timeout)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let app = App::start(config, shutdown).await?;
        app.wait().await
    });
    // A blocking task may hang on a broker that is away; the process ends all the same.
    runtime.shutdown_background();
    ended
}
