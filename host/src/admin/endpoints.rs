//! Endpoints: what each path answers, as a probe, Prometheus, or a person with curl or a browser
//! reads it.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::ALLOW;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::Response;
use axum::routing::get;
use prometheus::TextEncoder;
use serde::Serialize;

use super::answers::{self, TEXT, answer, json, wants_html};
use super::html::{document, escape};
use super::readiness::Readiness;
use super::{AdminSources, Sources, modules};
use crate::pipeline::status::PipelineStatus;

/// <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every path but `/`, and what it is for.
const ENDPOINTS: [(&str, &str); 5] = [
    ("/live", "200 while the process answers"),
    ("/ready", "200 when every pipeline takes records through, 503 with the reasons otherwise (JSON)"),
    ("/metrics", "metrics, in Prometheus' text format"),
    ("/status", "pipelines, partitions, offsets, lag, bytes in flight, modules and their revisions (JSON)"),
    (
        "/modules",
        "which revision of each module judges records, and what became of its file (a page, or JSON)",
    ),
];

pub(super) fn router(sources: Arc<AdminSources>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .merge(modules::router(&sources))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(sources)
}

async fn live() -> Response {
    answer(StatusCode::OK, TEXT, "live\n".to_owned())
}

async fn ready(State(sources): Sources) -> Response {
    let readiness = Readiness::of(&sources);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &readiness)
}

async fn metrics(State(sources): Sources) -> Response {
    match TextEncoder::new().encode_to_string(&sources.registry.gather()) {
        Ok(text) => answer(StatusCode::OK, METRICS, text),
        Err(error) => {
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("cannot write the metrics: {error}\n"))
        }
    }
}

/// What `/status` answers.
#[derive(Serialize)]
struct Status {
    version: &'static str,
    #[serde(flatten)]
    readiness: Readiness,
    pipelines: Vec<PipelineStatus>,
}

async fn status(State(sources): Sources) -> Response {
    let pipelines = sources.pipelines.iter().map(|pipeline| pipeline.borrow().clone()).collect();
    let status = Status { version: env!("CARGO_PKG_VERSION"), readiness: Readiness::of(&sources), pipelines };
    json(StatusCode::OK, &status)
}

async fn index(State(sources): Sources, headers: HeaderMap) -> Response {
    page(StatusCode::OK, "Sluice", &headers, &sources)
}

async fn not_found(State(sources): Sources, uri: Uri, headers: HeaderMap) -> Response {
    page(StatusCode::NOT_FOUND, &format!("There is nothing at {}", uri.path()), &headers, &sources)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let (allowed, body) = if modules::takes_orders(path) {
        ("POST", format!("{path} takes orders: use POST, not {method}\n"))
    } else {
        ("GET, HEAD", format!("{path} can only be read: use GET, not {method}\n"))
    };
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, body);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// The list of endpoints and how the pipelines are: HTML for a browser, text for everybody else.
fn page(status: StatusCode, title: &str, headers: &HeaderMap, sources: &AdminSources) -> Response {
    let readiness = Readiness::of(sources);
    let pipelines: Vec<_> = sources.pipelines.iter().map(|pipeline| summary(&pipeline.borrow())).collect();
    if wants_html(headers) {
        answers::page(status, page_html(title, &readiness, &pipelines))
    } else {
        answer(status, TEXT, page_text(title, &readiness, &pipelines))
    }
}

/// One pipeline in one line: its name, and how far it is.
fn summary(status: &PipelineStatus) -> (String, String) {
    let lag: i64 = status.partitions.iter().filter_map(|partition| partition.lag).sum();
    let sum = |count: fn(&crate::pipeline::status::PartitionStatus) -> u64| -> u64 {
        status.partitions.iter().map(count).sum()
    };
    let text = format!(
        "partitions {}, lag {lag}, inserted {}, filtered {}, dead-lettered {}, in flight {}",
        status.partitions.len(),
        sum(|partition| partition.inserted),
        sum(|partition| partition.filtered),
        sum(|partition| partition.dead_lettered),
        sum(|partition| partition.in_flight),
    );
    (status.name.clone(), text)
}

const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

fn page_text(title: &str, readiness: &Readiness, pipelines: &[(String, String)]) -> String {
    let mut text = format!("{title}\n\n");
    for (path, meaning) in ENDPOINTS {
        let _ = writeln!(text, "  {path:<10}{meaning}");
    }
    let _ = writeln!(text, "\n{} ({VERSION})", if readiness.ready { "ready" } else { "not ready" });
    for reason in &readiness.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    if !pipelines.is_empty() {
        text.push_str("\npipelines\n");
    }
    for (name, summary) in pipelines {
        let _ = writeln!(text, "  {name}: {summary}");
    }
    text
}

fn page_html(title: &str, readiness: &Readiness, pipelines: &[(String, String)]) -> String {
    let mut html = format!(
        "<h1>{title}</h1>\n<p><strong>{}</strong> ({VERSION})</p>\n",
        if readiness.ready { "Ready" } else { "Not ready" },
        title = escape(title),
    );
    if !readiness.ready {
        let reasons: String =
            readiness.reasons.iter().map(|reason| format!("<li>{}</li>\n", escape(reason))).collect();
        let _ = writeln!(html, "<ul>\n{reasons}</ul>");
    }
    html.push_str("<dl>\n");
    for (path, meaning) in ENDPOINTS {
        let _ = writeln!(html, "<dt><a href=\"{path}\">{path}</a></dt><dd>{}</dd>", escape(meaning));
    }
    html.push_str("</dl>\n");
    if !pipelines.is_empty() {
        html.push_str("<h2>Pipelines</h2>\n<dl>\n");
        for (name, summary) in pipelines {
            let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(summary));
        }
        html.push_str("</dl>\n");
    }
    document(title, None, &html)
}
