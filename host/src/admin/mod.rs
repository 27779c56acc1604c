//! Admin HTTP: health, metrics, status.
//!
//! State: receivers of what the pipelines publish, and the metrics registry; nothing of its own, so
//! an answer is never older than what the pipelines last said. Read only: nothing here changes
//! what Sluice does. The port is bound after the configuration is valid and before a pipeline
//! starts, and it goes on answering while the pipelines drain.

mod endpoints;
mod readiness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pipeline::status::PipelineStatus;

/// Longest wait for requests under way once the server is told to stop.
const GRACE: Duration = Duration::from_secs(1);

/// Why there is no admin server.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The port cannot be bound.
    #[error(
        "cannot listen at {listen} for admin HTTP: {source}; set admin.listen (SLUICE__ADMIN__LISTEN) to a free address"
    )]
    Bind {
        /// Address.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The server stopped by itself.
    #[error("the admin server stopped: {0}; restart Sluice")]
    Serve(#[source] std::io::Error),
}

/// What the server tells of.
#[derive(Clone, Debug)]
pub struct AdminSources {
    /// What each pipeline says of itself.
    pub pipelines: Vec<watch::Receiver<PipelineStatus>>,
    /// Reasons not to be ready that no pipeline has: starting, draining.
    pub not_ready: watch::Receiver<Vec<String>>,
    /// Every metric.
    pub registry: Registry,
}

/// The server, bound but not yet answering.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    sources: AdminSources,
}

impl Admin {
    /// Binds the port. From here on connections wait; [`Admin::run`] answers them.
    pub async fn bind(listen: SocketAddr, sources: AdminSources) -> Result<Self, AdminError> {
        let refused = |source| AdminError::Bind { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address, sources })
    }

    /// Where it listens; with the real port, if 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is cancelled: after the drain, not at its beginning, so that
    /// `/ready` says that Sluice is draining. Requests under way get a second more.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AdminError> {
        let router = endpoints::router(Arc::new(self.sources));
        let server =
            axum::serve(self.listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let grace = async {
            shutdown.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        // Neither branch is resumed after the other has won, so cancel safety does not matter.
        tokio::select! {
            served = async { server.await } => served.map_err(AdminError::Serve),
            () = grace => Ok(()),
        }
    }
}
