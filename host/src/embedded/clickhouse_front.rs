//! The embedded ClickHouse's HTTP server: the engine of libchdb behind ClickHouse's HTTP interface,
//! as far as the `clickhouse` crate and curl need it.
//!
//! State: the engine, and how many requests run. Invariants: a body is read whole, within a limit,
//! before the engine hears of it, so a request that breaks off inserts nothing; an answer is complete
//! before its first byte is sent, so its status is the truth; a request leaves nothing behind but
//! what its statement did; at most [`FrontOptions::concurrency`] requests hold a body or a thread.
//!
//! What it cannot be: replication, users and roles, sessions, external tables, compressed answers
//! (each is refused, not ignored), `system.query_log`. `GET` is read-only, as in ClickHouse.

mod compression;
mod execute;
mod request;
mod statement;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::execute::{Executed, Limits};
use self::request::Call;
use super::libchdb::{Engine, Exception, LibchdbError};

/// A client that sends nothing of its body for this long is given up.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Requests that may wait for their turn.
const WAITING_REQUESTS: usize = 1_000;
/// How long requests may go on after the order to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How the server runs.
#[derive(Clone, Debug)]
pub struct FrontOptions {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// `libchdb.so`.
    pub library: PathBuf,
    /// Data folder; made if missing, and kept.
    pub data: PathBuf,
    /// User and password that requests must carry; anybody may ask where there is none.
    pub credentials: Option<Credentials>,
    /// Largest body in bytes, compressed and unpacked.
    pub max_body_bytes: usize,
    /// Largest answer in bytes, as ClickHouse counts `max_result_bytes`.
    pub max_result_bytes: u64,
    /// Requests that run at the same time; others wait.
    pub concurrency: usize,
}

/// A user and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why the server did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] LibchdbError),
    /// The first statement failed.
    #[error("ClickHouse started but does not answer: {0}")]
    Probe(#[from] Exception),
    /// The data folder.
    #[error("cannot make the data folder {}: {source}", path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Open to the network without a password.
    #[error("{0} can be reached from other machines; listen on 127.0.0.1, or set --user and --password")]
    Unprotected(SocketAddr),
    /// The server ended by itself.
    #[error("the HTTP server failed: {0}")]
    Serve(#[source] std::io::Error),
}

/// A server that has its engine and its address, and does not serve yet.
pub struct ClickHouseFront {
    listener: TcpListener,
    address: SocketAddr,
    server: Arc<Server>,
}

struct Server {
    engine: Engine,
    version: String,
    timezone: HeaderValue,
    credentials: Option<Credentials>,
    limits: Limits,
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl ClickHouseFront {
    /// Opens the data folder and the address.
    pub async fn bind(options: FrontOptions) -> Result<Self, FrontError> {
        if !options.listen.ip().is_loopback() && options.credentials.is_none() {
            return Err(FrontError::Unprotected(options.listen));
        }
        let listen_error = |source| FrontError::Listen { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let (library, data) = (options.library, options.data);
        let started = tokio::task::spawn_blocking(move || start_engine(&library, &data)).await;
        let (engine, version, timezone) = started.expect("starting the engine does not panic")?;
        let server = Server {
            engine,
            version,
            timezone: HeaderValue::try_from(timezone).unwrap_or(HeaderValue::from_static("UTC")),
            credentials: options.credentials,
            limits: Limits { body_bytes: options.max_body_bytes, result_bytes: options.max_result_bytes },
            running: Arc::new(Semaphore::new(options.concurrency.max(1))),
            admitted: Arc::new(Semaphore::new(options.concurrency.max(1) + WAITING_REQUESTS)),
        };
        Ok(Self { listener, address, server: Arc::new(server) })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// ClickHouse's version.
    pub fn version(&self) -> &str {
        &self.server.version
    }

    /// Serves until `stop`, then lets running requests end, for ten seconds at most, and closes the
    /// engine.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), FrontError> {
        let router = Router::new()
            .route("/ping", get(|| async { "Ok.\n" }))
            .route("/replicas_status", get(|| async { "Ok.\n" }))
            .route("/", get(answer).post(answer))
            .with_state(Arc::clone(&self.server));
        let serving =
            axum::serve(self.listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            served = serving => served.map_err(FrontError::Serve)?,
            () = overdue => tracing::warn!("requests were still running after {GRACE:?}; they are cut off"),
        }
        // Closing the engine blocks; it happens here if no request holds it any more.
        let server = self.server;
        let closing = tokio::task::spawn_blocking(move || drop(server));
        if tokio::time::timeout(GRACE, closing).await.is_err() {
            tracing::warn!("ClickHouse did not close within {GRACE:?}; what it acknowledged is on disk");
        }
        Ok(())
    }
}

fn start_engine(
    library: &std::path::Path,
    data: &std::path::Path,
) -> Result<(Engine, String, String), FrontError> {
    std::fs::create_dir_all(data).map_err(|source| FrontError::Data { path: data.to_path_buf(), source })?;
    let engine = Engine::start(library, data)?;
    let answer = engine.connect()?.query(b"SELECT version(), timezone()", "TabSeparated", &[])?;
    let answer = String::from_utf8_lossy(answer.as_ref()).into_owned();
    let (version, timezone) = answer.trim_end().split_once('\t').unwrap_or_default();
    Ok((engine, version.to_owned(), timezone.to_owned()))
}

/// Answers `/`.
async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let started = Instant::now();
    let query_id =
        |call: Option<&Call>| call.and_then(|call| call.query_id.clone()).unwrap_or_else(random_query_id);
    let (parts, body) = request.into_parts();
    let mut call = match Call::read(&parts.method, parts.uri.query().unwrap_or_default(), &parts.headers) {
        Ok(call) => call,
        Err(exception) => return server.refusal(&exception, &query_id(None)),
    };
    let done = Arc::clone(&server).run(&mut call, &parts.method, &parts.headers, body).await;
    match done {
        Ok(executed) => server.success(executed, &query_id(Some(&call)), started.elapsed()),
        Err(exception) => server.refusal(&exception, &query_id(Some(&call))),
    }
}

fn random_query_id() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// The answer to a body above the limit.
fn body_too_large() -> Exception {
    Exception::new(
        229,
        "QUERY_IS_TOO_LARGE",
        "The body is larger than the embedded ClickHouse takes (--max-body-bytes); send less at a time",
    )
}

impl Server {
    async fn run(
        self: Arc<Self>,
        call: &mut Call,
        method: &Method,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Executed, Exception> {
        self.authenticate(call)?;
        let _admitted = Arc::clone(&self.admitted).try_acquire_owned().map_err(|_| {
            Exception::new(202, "TOO_MANY_SIMULTANEOUS_QUERIES", "Too many requests are waiting; try again")
        })?;
        let running: OwnedSemaphorePermit =
            Arc::clone(&self.running).acquire_owned().await.expect("the semaphore is never closed");
        let mut body = match method {
            &Method::GET => Bytes::new(),
            _ => self.read_body(body).await?,
        };
        if let Some(encoding) = headers.get(CONTENT_ENCODING) {
            body = decode(encoding, body, self.limits.body_bytes).await?;
        }
        if request::is_form(headers) {
            call.read_form(headers, std::mem::take(&mut body)).await?;
        }
        // The caller still needs the id for the answer.
        let query_id = call.query_id.clone();
        let call = std::mem::replace(call, Call { query_id, ..Call::default() });
        // The permit goes along: a client that leaves does not end the statement, as in ClickHouse.
        let task = tokio::task::spawn_blocking(move || {
            let executed = execute::execute(&self.engine, &call, &body, self.limits);
            drop(running);
            executed
        });
        task.await.unwrap_or_else(|error| {
            Err(Exception::new(1002, "UNKNOWN_EXCEPTION", format!("The request's thread failed: {error}")))
        })
    }

    fn authenticate(&self, call: &Call) -> Result<(), Exception> {
        match &self.credentials {
            Some(credentials) if credentials.user != call.user || credentials.password != call.password => {
                Err(Exception::new(
                    516,
                    "AUTHENTICATION_FAILED",
                    format!(
                        "{}: Authentication failed: password is incorrect, or there is no user with such name",
                        call.user
                    ),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Reads the whole body; a body that breaks off is an error.
    async fn read_body(&self, body: Body) -> Result<Bytes, Exception> {
        let mut frames = body.into_data_stream();
        let mut first = None;
        let mut whole = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(BODY_PATIENCE, frames.next()).await.map_err(|_| {
                Exception::new(
                    209,
                    "SOCKET_TIMEOUT",
                    format!("Nothing of the body came for {BODY_PATIENCE:?}; nothing was done"),
                )
            })?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| {
                Exception::new(
                    210,
                    "NETWORK_ERROR",
                    format!("The body broke off ({error}); nothing was done"),
                )
            })?;
            let length = first.as_ref().map_or(whole.len(), Bytes::len) + frame.len();
            if length > self.limits.body_bytes {
                return Err(body_too_large());
            }
            match first.take() {
                // One frame, the usual statement, is not copied.
                None if whole.is_empty() => first = Some(frame),
                None => whole.extend_from_slice(&frame),
                Some(first) => {
                    whole.extend_from_slice(&first);
                    whole.extend_from_slice(&frame);
                }
            }
        }
        Ok(first.unwrap_or_else(|| whole.freeze()))
    }

    fn success(&self, executed: Executed, query_id: &str, elapsed: Duration) -> Response {
        let Some(answer) = executed.answer else { return "Ok.\n".into_response() };
        let summary = format!(
            "{{\"read_rows\":\"{}\",\"read_bytes\":\"{}\",\"written_rows\":\"{}\",\"written_bytes\":\"{}\",\
             \"result_rows\":\"{}\",\"result_bytes\":\"{}\",\"elapsed_ns\":\"{}\"}}",
            answer.read_rows(),
            answer.read_bytes(),
            answer.written_rows(),
            answer.written_bytes(),
            answer.result_rows(),
            answer.as_ref().len(),
            elapsed.as_nanos()
        );
        let mut response = Response::new(Body::from(Bytes::from_owner(answer)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(&executed.format)));
        insert_header(headers, "x-clickhouse-summary", &summary);
        insert_header(headers, "x-clickhouse-format", &executed.format);
        self.name_itself(headers, query_id);
        response
    }

    fn refusal(&self, exception: &Exception, query_id: &str) -> Response {
        let mut text = exception.message.trim_end().to_owned();
        if !text.contains("(version ") {
            text.push_str(&format!(" (version {} (embedded))", self.version));
        }
        text.push('\n');
        let mut response = (status::of_exception(exception.code), text).into_response();
        let headers = response.headers_mut();
        headers.insert("x-clickhouse-exception-code", HeaderValue::from(exception.code));
        self.name_itself(headers, query_id);
        response
    }

    fn name_itself(&self, headers: &mut HeaderMap, query_id: &str) {
        headers.insert("x-clickhouse-server-display-name", HeaderValue::from_static("sluice-embedded"));
        headers.insert("x-clickhouse-timezone", self.timezone.clone());
        insert_header(headers, "x-clickhouse-query-id", query_id);
    }
}

/// Sets a header, unless its value cannot be one.
fn insert_header(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// Undoes a `Content-Encoding`.
async fn decode(encoding: &HeaderValue, body: Bytes, limit: usize) -> Result<Bytes, Exception> {
    match encoding.as_bytes() {
        b"" | b"identity" => Ok(body),
        b"zstd" => {
            tokio::task::spawn_blocking(move || decode_zstd(&body, limit)).await.unwrap_or_else(|error| {
                Err(Exception::new(
                    1002,
                    "UNKNOWN_EXCEPTION",
                    format!("The request's thread failed: {error}"),
                ))
            })
        }
        other => Err(Exception::new(
            48,
            "NOT_IMPLEMENTED",
            format!(
                "Content-Encoding '{}' is unknown here; use zstd, or decompress=1 with ClickHouse's own blocks",
                String::from_utf8_lossy(other)
            ),
        )),
    }
}

fn decode_zstd(body: &[u8], limit: usize) -> Result<Bytes, Exception> {
    use std::io::Read;

    let failed = |error: std::io::Error| {
        Exception::new(561, "ZSTD_DECODER_FAILED", format!("Cannot decode the zstd body: {error}"))
    };
    let mut decoded = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(body).map_err(failed)?;
    // One byte more than allowed tells a body at the limit from one above it.
    decoder.take(limit as u64 + 1).read_to_end(&mut decoded).map_err(failed)?;
    if decoded.len() > limit {
        return Err(body_too_large());
    }
    Ok(Bytes::from(decoded))
}

/// The media type of a format.
fn content_type(format: &str) -> &'static str {
    match format {
        "JSONEachRow" | "JSONLines" | "NDJSON" => "application/x-ndjson; charset=UTF-8",
        _ if format.starts_with("JSON") => "application/json; charset=UTF-8",
        _ if format.starts_with("CSV") => "text/csv; charset=UTF-8",
        _ if format.starts_with("TabSeparated") || format.starts_with("TSV") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        _ if format.starts_with("Pretty") || format == "Vertical" || format == "Values" => {
            "text/plain; charset=UTF-8"
        }
        _ => "application/octet-stream",
    }
}
