//! Admin HTTP: health, metrics, status, modules.
//!
//! State: receivers of what the pipelines publish, and the metrics registry; nothing of its own, so
//! an answer is never older than what the pipelines last said. What changes something is handed on to
//! the pipeline that it is about, and only for who has the token. The port is bound after the configuration
//! is valid and before a pipeline starts, and it goes on answering while the pipelines drain.

mod answers;
mod endpoints;
mod html;
mod modules;
mod modules_page;
pub mod paths;
mod readiness;
mod server;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::secret::Secret;
use crate::pipeline::orders::ModuleControl;
use crate::pipeline::status::PipelineStatus;

pub use server::ConnectionLimits;

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
    /// The modules of every pipeline.
    pub modules: ModuleControl,
    /// What orders have to come with; empty where none are taken.
    pub token: Secret,
}

/// What handlers are given.
type Sources = State<Arc<AdminSources>>;

/// The server, bound but not yet answering.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    sources: AdminSources,
    limits: ConnectionLimits,
}

impl Admin {
    /// Binds the port. From here on connections wait; [`Admin::run`] answers them.
    pub async fn bind(listen: SocketAddr, sources: AdminSources) -> Result<Self, AdminError> {
        let refused = |source| AdminError::Bind { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address, sources, limits: ConnectionLimits::default() })
    }

    /// Where it listens; with the real port, if 0 was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// With other limits of its clients.
    pub fn with_limits(self, limits: ConnectionLimits) -> Self {
        Self { limits, ..self }
    }

    /// Answers until `shutdown` is cancelled: after the drain, not at its beginning, so that
    /// `/ready` says that Sluice is draining. Requests under way get a second more.
    pub async fn run(self, shutdown: CancellationToken) {
        let router = endpoints::router(Arc::new(self.sources));
        server::serve(self.listener, router, self.limits, shutdown, GRACE).await;
    }
}
