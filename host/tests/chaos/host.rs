//! One sluice host: its process, its log in a file, and what it says of itself.
//!
//! Invariants: the process ends with this handle, or with the thread that started it (`setpriv`), be it
//! stopped or not; whatever is asked of it is answered within a second or not at all.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::support::sluice::Configuration;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(1);

/// A started process.
pub(super) struct Host {
    child: Child,
    log: PathBuf,
    admin: Option<SocketAddr>,
}

impl Host {
    /// Starts it; its log goes to `log`.
    pub(super) fn start(configuration: &Configuration, log: PathBuf) -> Self {
        let run = configuration.prepare(&["run"]);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(run.get_program()).args(run.get_args());
        for (name, value) in run.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let file = File::create(&log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("setpriv, of util-linux, runs");
        Self { child, log, admin: None }
    }

    /// Sends it a signal, such as `-STOP`.
    pub(super) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {signal} fails");
    }

    /// Its status, once it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// SIGKILL.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// `/status`, where it answers.
    pub(super) fn status(&mut self) -> Option<serde_json::Value> {
        let (_, body) = self.get("/status")?;
        serde_json::from_str(&body).ok()
    }

    /// Whether records go through.
    pub(super) fn is_ready(&mut self) -> bool {
        self.get("/ready").is_some_and(|(code, _)| code == 200)
    }

    /// Records consumed and not settled.
    pub(super) fn in_flight(&mut self) -> Option<u64> {
        let status = self.status()?;
        let partitions = status["pipelines"][0]["partitions"].as_array()?;
        partitions.iter().map(|partition| partition["in_flight"].as_u64()).sum()
    }

    /// The last lines of its log.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    fn get(&mut self, path: &str) -> Option<(u16, String)> {
        let address = self.admin()?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn admin(&mut self) -> Option<SocketAddr> {
        if self.admin.is_none() {
            let log = std::fs::read_to_string(&self.log).ok()?;
            self.admin = log.lines().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                if line["message"] != "admin http" {
                    return None;
                }
                line["address"].as_str()?.parse().ok()
            });
        }
        self.admin
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}
