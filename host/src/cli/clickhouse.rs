//! `sluice clickhouse`: the embedded ClickHouse as a program of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::embedded::{ClickHouseFront, Credentials, FrontOptions, find_library};

/// Run ClickHouse inside this program, behind its HTTP interface.
///
/// Prints `listening on http://ADDRESS` once it answers, and stops on SIGTERM or SIGINT. For
/// development and tests: no replication, no users but one, no sessions.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Data folder; it is made if missing, and kept. Without it the data vanishes at the end.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// libchdb.so; by default the one that `make libchdb` fetched into .cache.
    #[arg(long, value_name = "FILE", env = "SLUICE_LIBCHDB")]
    library: Option<PathBuf>,
    /// User that requests must name.
    #[arg(long, value_name = "NAME", env = "SLUICE_CLICKHOUSE_USER", requires = "password")]
    user: Option<String>,
    /// Password of that user (`default` where none is named).
    #[arg(long, env = "SLUICE_CLICKHOUSE_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Stop when standard input ends, which it does when the parent process ends, however it ends.
    #[arg(long)]
    exit_with_parent: bool,
    /// Largest request body, also when unpacked.
    #[arg(long, value_name = "BYTES", default_value_t = 512 << 20)]
    max_body_bytes: usize,
    /// Largest answer; a request may set max_result_bytes itself.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    max_result_bytes: u64,
    /// Requests that run at the same time; others wait.
    #[arg(long, value_name = "N", default_value_t = 8)]
    concurrency: usize,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let library = find_library(arguments.library.as_deref())?;
    let temporary = match arguments.path {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("sluice-clickhouse-").tempdir()?),
    };
    let data = arguments.path.unwrap_or_else(|| {
        temporary.as_ref().map(|folder| folder.path().to_path_buf()).expect("made where no folder was named")
    });
    let options = FrontOptions {
        listen: arguments.listen,
        library,
        data,
        credentials: arguments.password.map(|password| Credentials {
            user: arguments.user.unwrap_or_else(|| "default".into()),
            password,
        }),
        max_body_bytes: arguments.max_body_bytes,
        max_result_bytes: arguments.max_result_bytes,
        concurrency: arguments.concurrency,
    };
    let stop = CancellationToken::new();
    if arguments.exit_with_parent {
        stop_at_end_of_input(stop.clone())?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(options, stop));
    // A statement that is still running does not hold the process up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(options: FrontOptions, stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let front = tokio::select! {
        front = ClickHouseFront::bind(options) => front?,
        () = stop.cancelled() => return Ok(()),
    };
    let ready = format!("listening on http://{}\n", front.address());
    // A parent that does not read on is no reason to fail.
    let _ = std::io::stdout().write_all(ready.as_bytes()).and_then(|()| std::io::stdout().flush());
    let order = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        order.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // A second signal: at once. What was acknowledged is on disk.
        std::process::exit(130);
    });
    front.serve(stop).await?;
    Ok(())
}

/// Orders the stop when standard input ends.
fn stop_at_end_of_input(stop: CancellationToken) -> std::io::Result<()> {
    let watch = move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        stop.cancel();
        // The parent is gone: should the orderly stop hang, nobody would notice.
        std::thread::sleep(Duration::from_secs(22));
        std::process::exit(1);
    };
    std::thread::Builder::new().name("parent-watch".into()).spawn(watch).map(drop)
}
