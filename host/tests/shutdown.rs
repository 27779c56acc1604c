//! Signals, as a supervisor sends them: to a process of its own, which this test starts from itself.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set in the process that is signalled.
const CHILD: &str = "SLUICE_TEST_SHUTDOWN_CHILD";

/// Not a test of its own: what the signalled process does. It drains for `CHILD` milliseconds.
#[test]
fn child() {
    let Ok(milliseconds) = std::env::var(CHILD) else { return };
    let drain = Duration::from_millis(milliseconds.parse().expect("milliseconds"));
    let shutdown = sluice::shutdown::Shutdown::install(Duration::from_millis(200)).expect("install");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        println!("ready");
        shutdown.token().cancelled().await;
        println!("draining");
        let late = tokio::select! {
            () = tokio::time::sleep(drain) => false,
            () = shutdown.deadline() => true,
        };
        println!("{}", if late { "late" } else { "drained" });
        if late {
            // Stuck for good: only a second signal helps.
            std::thread::sleep(Duration::from_secs(60));
        }
    });
}

struct Signalled {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Signalled {
    fn start(drain_milliseconds: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, drain_milliseconds.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut signalled = Self { child, lines };
        signalled.wait_for("ready");
        signalled
    }

    fn wait_for(&mut self, word: &str) {
        let found = self.lines.by_ref().map_while(Result::ok).any(|line| line.ends_with(word));
        assert!(found, "the process never said `{word}`");
    }

    fn send(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().expect("wait").code()
    }
}

impl Drop for Signalled {
    fn drop(&mut self) {
        // Gone already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_drains() {
    let mut signalled = Signalled::start(20);
    signalled.send("-TERM");
    signalled.wait_for("draining");
    signalled.wait_for("drained");
    assert_eq!(signalled.exit_code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once_even_when_all_is_stuck() {
    for (second, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut signalled = Signalled::start(60_000);
        signalled.send("-TERM");
        signalled.wait_for("late");
        signalled.send(second);
        assert_eq!(signalled.exit_code(), Some(code));
    }
}
