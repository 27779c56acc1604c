//! The embedded ClickHouse as seen from its parent: a child process that serves HTTP on loopback.
//!
//! State: the child, its address, its data folder. Invariants: the child lives no longer than its
//! parent, however that ends: its standard input is a pipe from here, and it stops when that closes;
//! dropping [`EmbeddedClickHouse`] kills it and waits; starting again keeps address and data; Ctrl-C in
//! a terminal reaches the parent alone, which may need ClickHouse while it drains.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a child may take to open its data folder and answer.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a child may take to stop; above the child's own patience with running requests.
const STOP_PATIENCE: Duration = Duration::from_secs(25);
/// How long a restart waits for its port.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a drop waits for the end of a child that it killed; that takes milliseconds.
const DROP_PATIENCE: Duration = Duration::from_secs(5);
/// What the child prints before its address.
const READY_PREFIX: &str = "listening on ";
/// Where the child's standard error goes, in its data folder.
const LOG_FILE: &str = "sluice-clickhouse.log";

/// How the child is started. `EmbeddedOptions::default()` is what `demo` wants: this program, a
/// data folder that vanishes with it, any free port.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The `sluice` program; this very program where there is none. Tests name it:
    /// `env!("CARGO_BIN_EXE_sluice")`.
    pub program: Option<PathBuf>,
    /// Data folder, kept; a temporary one, removed in the end, where there is none.
    pub data: Option<PathBuf>,
    /// Address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `libchdb.so`, where it is not in its usual places.
    pub library: Option<PathBuf>,
    /// User and password that requests must carry.
    pub credentials: Option<super::Credentials>,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            program: None,
            data: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            library: None,
            credentials: None,
        }
    }
}

/// Why the embedded ClickHouse is not there.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The program could not be run.
    #[error("cannot run {}: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder or file for it could not be made.
    #[error("cannot prepare {}: {source}", path.display())]
    Prepare {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended, or said something else, before it was ready.
    #[error("the embedded ClickHouse did not start: {reason}")]
    Start {
        /// What it said last.
        reason: String,
    },
    /// It did not get ready.
    #[error("the embedded ClickHouse was not ready within {} s; its last words: {log}", START_PATIENCE.as_secs())]
    Timeout {
        /// The end of its log.
        log: String,
    },
    /// Waiting for its end failed.
    #[error("cannot wait for the embedded ClickHouse: {0}")]
    Wait(#[source] std::io::Error),
}

/// A running `sluice clickhouse`, or one that was killed and may be started again.
#[derive(Debug)]
pub struct EmbeddedClickHouse {
    child: Option<Running>,
    program: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    library: Option<PathBuf>,
    credentials: Option<super::Credentials>,
    _temporary: Option<TempDir>,
}

#[derive(Debug)]
struct Running {
    process: Child,
    pid: u32,
    /// Held open: its end tells the child to stop.
    stdin: Option<ChildStdin>,
}

impl EmbeddedClickHouse {
    /// Starts the child and waits until it answers.
    pub async fn start(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let program = match options.program {
            Some(program) => program,
            None => std::env::current_exe()
                .map_err(|source| EmbeddedError::Spawn { program: PathBuf::from("sluice"), source })?,
        };
        let (data, temporary) = match options.data {
            Some(data) => (data, None),
            None => {
                let folder = tempfile::Builder::new().prefix("sluice-clickhouse-").tempdir();
                let folder =
                    folder.map_err(|source| EmbeddedError::Prepare { path: std::env::temp_dir(), source })?;
                (folder.path().to_path_buf(), Some(folder))
            }
        };
        let mut started = Self {
            child: None,
            program,
            data,
            address: options.listen,
            library: options.library,
            credentials: options.credentials,
            _temporary: temporary,
        };
        started.spawn().await?;
        Ok(started)
    }

    /// `http://127.0.0.1:PORT`, the same after a restart.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The child's process, where it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(|running| running.pid)
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Kills the child at once (SIGKILL) and waits until it is gone. Does nothing where none runs.
    pub async fn kill(&mut self) -> Result<(), EmbeddedError> {
        match self.child.take() {
            Some(mut running) => running.process.kill().await.map_err(EmbeddedError::Wait),
            None => Ok(()),
        }
    }

    /// Starts the child again, on the same data and the same address, after [`Self::kill`] or
    /// [`Self::halt`]; one that still runs is halted first.
    pub async fn restart(&mut self) -> Result<(), EmbeddedError> {
        self.halt().await?;
        let patience = Instant::now() + PORT_PATIENCE;
        loop {
            match self.spawn().await {
                // Meanwhile somebody's outgoing connection may have been given the port.
                Err(EmbeddedError::Start { reason })
                    if reason.contains("cannot listen on") && Instant::now() < patience =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                settled => return settled,
            }
        }
    }

    /// Stops the child the gentle way, and keeps what is needed to start it again.
    pub async fn halt(&mut self) -> Result<(), EmbeddedError> {
        let Some(mut running) = self.child.take() else { return Ok(()) };
        drop(running.stdin.take());
        match tokio::time::timeout(STOP_PATIENCE, running.process.wait()).await {
            Ok(ended) => ended.map(drop).map_err(EmbeddedError::Wait),
            Err(_) => running.process.kill().await.map_err(EmbeddedError::Wait),
        }
    }

    /// Stops the child the gentle way; a temporary data folder goes.
    pub async fn stop(mut self) -> Result<(), EmbeddedError> {
        self.halt().await
    }

    async fn spawn(&mut self) -> Result<(), EmbeddedError> {
        let log_path = self.data.join(LOG_FILE);
        let prepare = |source| EmbeddedError::Prepare { path: log_path.clone(), source };
        std::fs::create_dir_all(&self.data).map_err(prepare)?;
        let log = std::fs::File::create(&log_path).map_err(prepare)?;
        let mut command = Command::new(&self.program);
        command.arg("clickhouse").arg("--exit-with-parent");
        command.arg("--path").arg(&self.data).arg("--listen").arg(self.address.to_string());
        if let Some(library) = &self.library {
            command.arg("--library").arg(library);
        }
        if let Some(credentials) = &self.credentials {
            command.env("SLUICE_CLICKHOUSE_USER", &credentials.user);
            // Not an argument: those can be read by everybody.
            command.env("SLUICE_CLICKHOUSE_PASSWORD", &credentials.password);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .process_group(0)
            .spawn()
            .map_err(|source| EmbeddedError::Spawn { program: self.program.clone(), source })?;
        let stdin = process.stdin.take();
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe was asked for")).lines();
        let first = match tokio::time::timeout(START_PATIENCE, lines.next_line()).await {
            Ok(first) => first.map_err(EmbeddedError::Wait)?,
            Err(_) => return Err(EmbeddedError::Timeout { log: last_words(&log_path) }),
        };
        let address = first.as_deref().and_then(|line| line.split_once(READY_PREFIX));
        let address = address.and_then(|(_, rest)| rest.trim().strip_prefix("http://")?.parse().ok());
        match (address, process.id()) {
            (Some(address), Some(pid)) => {
                self.address = address;
                self.child = Some(Running { process, pid, stdin });
                Ok(())
            }
            _ => {
                // It says why on standard error; its end makes sure that all of that is written.
                let _ = tokio::time::timeout(Duration::from_secs(5), process.wait()).await;
                let log = last_words(&log_path);
                Err(EmbeddedError::Start {
                    reason: if log.is_empty() { first.unwrap_or_default() } else { log },
                })
            }
        }
    }
}

impl Drop for EmbeddedClickHouse {
    /// Waits, so that the data folder is free for the next process, or can be removed.
    fn drop(&mut self) {
        let Some(running) = &mut self.child else { return };
        let _ = running.process.start_kill();
        let patience = Instant::now() + DROP_PATIENCE;
        while matches!(running.process.try_wait(), Ok(None)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The end of a log, on one line.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(10)..].join(" | ")
}
