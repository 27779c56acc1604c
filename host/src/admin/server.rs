//! Server: connections of admin HTTP, each bounded in time, all of them in number.
//!
//! State: the connections that are open. Invariants: a client that sends or reads slowly, or not at all,
//! holds its connection for [`ConnectionLimits::age`] and a request's time at most, and never a pipeline.

use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answers;

/// What clients of the admin server may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections; one more waits until another ends.
    pub connections: usize,
    /// Longest time until a request's head has come, also of the next one on a connection that is kept.
    pub head: Duration,
    /// Longest time from a request's head to its answer. Longer than the patience for an order.
    pub request: Duration,
    /// Age at which a connection ends, once the request under way on it is answered.
    pub age: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: Duration::from_secs(20),
            request: Duration::from_secs(30),
            age: Duration::from_secs(600),
        }
    }
}

/// Bytes of a request's head, and of one connection's buffer.
const HEAD_BYTES: usize = 64 << 10;

/// Answers until `shutdown`, then lets requests under way end for `grace`.
pub(super) async fn serve(
    mut listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let request = limits.request;
    let router = router.layer(from_fn(move |call: Request, next: Next| bounded(call, next, request)));
    let mut open = JoinSet::new();
    loop {
        // All of them are cancel-safe: a connection that is not taken in one round is in the next.
        tokio::select! {
            () = shutdown.cancelled() => break,
            (stream, _) = Listener::accept(&mut listener), if open.len() < limits.connections => {
                open.spawn(connection(stream, router.clone(), limits.clone(), shutdown.clone()));
            }
            Some(_) = open.join_next() => {}
        }
    }
    drop(listener);
    // What is left then ends with the set.
    let _ = timeout(grace, async { while open.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) {
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // Why a client went away is nobody's concern.
        _ = &mut connection => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(limits.age) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(limits.head + limits.request, connection).await;
}

/// A body that does not come, or an answer that does not, ends here.
async fn bounded(call: Request, next: Next, limit: Duration) -> Response {
    match timeout(limit, next.run(call)).await {
        Ok(answer) => answer,
        Err(_) => {
            let limit = humantime::format_duration(limit);
            answers::error(
                StatusCode::REQUEST_TIMEOUT,
                &format!(
                    "the request was not answered within {limit}: send its body at once, or try again later"
                ),
            )
        }
    }
}
