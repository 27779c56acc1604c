//! Shutdown: the drain token and its deadline.
//!
//! The first SIGTERM or SIGINT cancels the token: intake stops, what is in flight is finished, and
//! [`Shutdown::deadline`] says when that took too long. The second one ends the process at once,
//! with the exit code that shells give to the signal. Signals have a thread and a runtime of their
//! own, so that a second one is heard even when everything else is stuck.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Exit code after a second SIGINT: 128 and the signal's number.
const INTERRUPTED: i32 = 130;
/// Exit code after a second SIGTERM.
const TERMINATED: i32 = 143;

/// Why signals cannot be listened to.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for SIGTERM and SIGINT: {0}; check the limits on threads and open files")]
pub struct ShutdownError(#[from] std::io::Error);

/// The drain: when it began, and how long it may take. Clones are of one and the same drain.
#[derive(Clone, Debug)]
pub struct Shutdown {
    token: CancellationToken,
    began: Arc<OnceLock<Instant>>,
    drain_timeout: Duration,
}

impl Shutdown {
    /// A drain that only [`Shutdown::begin`] starts; for the demo and for tests.
    pub fn new(drain_timeout: Duration) -> Self {
        Self { token: CancellationToken::new(), began: Arc::default(), drain_timeout }
    }

    /// A drain that SIGTERM and SIGINT start as well. Once a process.
    pub fn install(drain_timeout: Duration) -> Result<Self, ShutdownError> {
        let shutdown = Self::new(drain_timeout);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        // Registered here, so that no signal after this call meets the default action.
        let (terminate, interrupt) = {
            let _entered = runtime.enter();
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        let drain = shutdown.clone();
        let listen = move || runtime.block_on(listen(drain, terminate, interrupt));
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(shutdown)
    }

    /// Cancelled when the drain begins.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Longest time that the drain may take.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// Begins the drain, once.
    pub fn begin(&self) {
        self.began.get_or_init(Instant::now);
        self.token.cancel();
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Completes when a drain has taken longer than it may; never, if none begins. Cancel-safe.
    pub async fn deadline(&self) {
        self.token.cancelled().await;
        let began = *self.began.get_or_init(Instant::now);
        tokio::time::sleep_until(began + self.drain_timeout).await;
    }
}

async fn listen(drain: Shutdown, mut terminate: Signal, mut interrupt: Signal) {
    loop {
        // Cancel-safe: a signal that is not received in one round is received in the next.
        let (name, code) = tokio::select! {
            _ = terminate.recv() => ("SIGTERM", TERMINATED),
            _ = interrupt.recv() => ("SIGINT", INTERRUPTED),
        };
        if drain.has_begun() {
            tracing::warn!(
                signal = name,
                "second signal: exiting at once, what is in flight will be read again"
            );
            std::process::exit(code);
        }
        tracing::info!(
            signal = name,
            drain_timeout = %humantime::format_duration(drain.drain_timeout),
            "draining: intake stops, what is in flight is finished; a second signal exits at once"
        );
        drain.begin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_beginning_of_the_drain() {
        let shutdown = Shutdown::new(Duration::from_secs(30));
        let waited = tokio::time::timeout(Duration::from_secs(3_600), shutdown.deadline()).await;
        assert!(waited.is_err(), "no drain, no deadline");
        let began = Instant::now();
        shutdown.begin();
        tokio::time::sleep(Duration::from_secs(10)).await;
        shutdown.begin();
        shutdown.deadline().await;
        assert_eq!(began.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn tokens_are_of_one_drain() {
        let shutdown = Shutdown::new(Duration::from_secs(1));
        let token = shutdown.token();
        assert!(!token.is_cancelled() && !shutdown.has_begun());
        shutdown.clone().begin();
        assert!(token.is_cancelled() && shutdown.has_begun());
    }
}
