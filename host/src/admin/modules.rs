//! Modules over HTTP: how they stand, what happened to them, and orders.
//!
//! Reading is open to whoever reaches the port, as `/status` is, but for what records hold: samples of a
//! shadow's differences are shown to those who have the token. Every route that changes something is in
//! [`orders`], behind the token.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::answers::{self, json, wants_html};
use super::modules_page;
use super::token::{self, Standing};
use super::{AdminSources, Sources};
use crate::pipeline::modules::{ModuleAction, ModuleEvent, ModuleReport, OrderError, ShadowReport};
use crate::pipeline::orders::ModuleAddress;

/// Most bytes of an order.
const BODY_BYTES: usize = 16 << 10;
/// Events of a history, where nothing is said, and at most.
const EVENTS: usize = 50;
const MOST_EVENTS: usize = 1_000;
/// Characters of who orders, and of why.
const BY: usize = 100;
const REASON: usize = 1_000;

/// Everything below `/modules`.
pub(super) fn router(sources: &Arc<AdminSources>) -> Router<Arc<AdminSources>> {
    Router::new()
        .route("/modules", get(list))
        .route("/modules/{name}", get(one))
        .route("/modules/{name}/history", get(history))
        .route("/modules/{name}/shadow", get(shadow))
        .merge(orders(sources))
}

/// What changes something: nobody comes here without the token.
fn orders(sources: &Arc<AdminSources>) -> Router<Arc<AdminSources>> {
    Router::new()
        .route("/modules/{name}/rollback", post(rollback))
        .route("/modules/{name}/pin", post(pin))
        .route("/modules/{name}/release", post(release))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .route_layer(from_fn_with_state(sources.clone(), with_token))
}

/// Whether a path takes orders, which are sent by POST.
pub(super) fn takes_orders(path: &str) -> bool {
    let action = path.strip_prefix("/modules/").and_then(|rest| rest.split_once('/'));
    action.is_some_and(|(_, action)| ["rollback", "pin", "release"].contains(&action))
}

async fn with_token(State(sources): Sources, request: Request, next: Next) -> Response {
    match token::refusal(&sources.token, request.headers()) {
        Some(refusal) => {
            tracing::warn!(
                path = request.uri().path(),
                status = refusal.status().as_u16(),
                "an order without its token"
            );
            refusal
        }
        None => next.run(request).await,
    }
}

/// What may stand behind the `?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pipeline: Option<String>,
    limit: Option<usize>,
}

type Parameters = Result<Query<Asked>, QueryRejection>;

/// Why a request has no better answer.
pub(super) struct Refused(StatusCode, String);

impl From<OrderError> for Refused {
    fn from(error: OrderError) -> Self {
        let status = match error {
            OrderError::NotFound(_) => StatusCode::NOT_FOUND,
            OrderError::Refused(_) => StatusCode::CONFLICT,
            OrderError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        let why = rejection.body_text();
        Self(StatusCode::BAD_REQUEST, format!("{why}; use ?pipeline=NAME, and for a history ?limit=50"))
    }
}

impl Refused {
    /// As a page for a browser, as JSON for everybody else.
    fn answer(self, headers: &HeaderMap) -> Response {
        let Self(status, text) = self;
        if wants_html(headers) {
            answers::page(status, modules_page::refusal(&text))
        } else {
            answers::error(status, &text)
        }
    }
}

fn address(name: String, asked: &Asked) -> ModuleAddress {
    ModuleAddress { pipeline: asked.pipeline.clone(), name }
}

/// What `/modules` and `/modules/{name}` answer.
#[derive(Serialize)]
struct Modules {
    modules: Vec<ModuleReport>,
}

async fn list(State(sources): Sources, asked: Parameters, headers: HeaderMap) -> Response {
    let reports = || -> Result<_, Refused> {
        let Query(asked) = asked?;
        Ok(sources.modules.reports(asked.pipeline.as_deref())?)
    };
    reports_answer(&sources, reports(), &headers).await
}

async fn one(
    State(sources): Sources,
    Path(name): Path<String>,
    asked: Parameters,
    headers: HeaderMap,
) -> Response {
    let reports = || -> Result<_, Refused> {
        let Query(asked) = asked?;
        Ok(sources.modules.reports_of(&address(name, &asked))?)
    };
    reports_answer(&sources, reports(), &headers).await
}

async fn reports_answer(
    sources: &AdminSources,
    reports: Result<Vec<ModuleReport>, Refused>,
    headers: &HeaderMap,
) -> Response {
    match reports {
        Err(refused) => refused.answer(headers),
        Ok(modules) if wants_html(headers) => {
            let shadows = modules_page::shadows(&sources.modules, &modules).await;
            answers::page(StatusCode::OK, modules_page::modules(&modules, &shadows))
        }
        Ok(modules) => json(StatusCode::OK, &Modules { modules }),
    }
}

/// What `/modules/{name}/history` answers.
#[derive(Serialize)]
struct History {
    pipeline: String,
    name: String,
    events: Vec<ModuleEvent>,
}

async fn history(
    State(sources): Sources,
    Path(name): Path<String>,
    asked: Parameters,
    headers: HeaderMap,
) -> Response {
    let told = async {
        let Query(asked) = asked?;
        let limit = asked.limit.unwrap_or(EVENTS);
        if !(1..=MOST_EVENTS).contains(&limit) {
            let text = format!("limit={limit} is out of range; use 1 to {MOST_EVENTS}");
            return Err(Refused(StatusCode::BAD_REQUEST, text));
        }
        let (pipeline, events) = sources.modules.history(&address(name.clone(), &asked), limit).await?;
        Ok(History { pipeline, name, events })
    };
    match told.await {
        Err(refused) => refused.answer(&headers),
        Ok(History { pipeline, name, events }) if wants_html(&headers) => {
            answers::page(StatusCode::OK, modules_page::history(&pipeline, &name, &events))
        }
        Ok(history) => json(StatusCode::OK, &history),
    }
}

/// What `/modules/{name}/shadow` answers.
#[derive(Serialize)]
struct Shadow {
    pipeline: String,
    name: String,
    #[serde(flatten)]
    report: ShadowReport,
    /// Why there are no samples, where the token is what lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    samples_hidden: Option<&'static str>,
}

async fn shadow(
    State(sources): Sources,
    Path(name): Path<String>,
    asked: Parameters,
    headers: HeaderMap,
) -> Response {
    let standing = token::standing(&sources.token, &headers);
    if standing == Standing::Wrong
        && let Some(refusal) = token::refusal(&sources.token, &headers)
    {
        return refusal;
    }
    let told = async {
        let Query(asked) = asked?;
        let (pipeline, mut report) = sources.modules.shadow(&address(name.clone(), &asked)).await?;
        let mut samples_hidden = None;
        if standing != Standing::Trusted {
            // They say what records hold.
            report.samples.clear();
            samples_hidden =
                Some("samples show what records hold: send admin.token as Authorization: Bearer TOKEN");
        }
        Ok::<_, Refused>(Shadow { pipeline, name, report, samples_hidden })
    };
    match told.await {
        Err(refused) => refused.answer(&headers),
        Ok(told) if wants_html(&headers) => {
            let page = modules_page::shadow(&told.pipeline, &told.name, &told.report);
            answers::page(StatusCode::OK, page)
        }
        Ok(told) => json(StatusCode::OK, &told),
    }
}

/// The body of an order.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// First digits of a revision.
    to: Option<String>,
    by: String,
    #[serde(default)]
    reason: String,
}

/// What an order answers.
#[derive(Serialize)]
struct Done {
    done: String,
}

type Body = Result<Bytes, BytesRejection>;

async fn rollback(
    State(sources): Sources,
    Path(name): Path<String>,
    asked: Parameters,
    body: Body,
) -> Response {
    carry_out(&sources, name, asked, body, |to| Ok(ModuleAction::Rollback { to })).await
}

async fn pin(State(sources): Sources, Path(name): Path<String>, asked: Parameters, body: Body) -> Response {
    carry_out(&sources, name, asked, body, |to| Ok(ModuleAction::Pin { to })).await
}

async fn release(
    State(sources): Sources,
    Path(name): Path<String>,
    asked: Parameters,
    body: Body,
) -> Response {
    let action = |to: Option<String>| match to {
        None => Ok(ModuleAction::Release),
        Some(_) => {
            Err("a release leads to what the file holds: leave `to` out, or pin a revision".to_owned())
        }
    };
    carry_out(&sources, name, asked, body, action).await
}

async fn carry_out(
    sources: &AdminSources,
    name: String,
    asked: Parameters,
    body: Body,
    action: impl FnOnce(Option<String>) -> Result<ModuleAction, String>,
) -> Response {
    let done = async {
        let Query(asked) = asked?;
        let body = body.map_err(|rejection| Refused(rejection.status(), rejection.body_text()))?;
        let bad = |text: String| Refused(StatusCode::BAD_REQUEST, text);
        let Order { to, by, reason } = read(&body).map_err(bad)?;
        let action = action(to).map_err(bad)?;
        Ok::<_, Refused>(sources.modules.act(&address(name, &asked), action, by, reason).await?)
    };
    match done.await {
        Ok(done) => json(StatusCode::OK, &Done { done }),
        Err(Refused(status, text)) => answers::error(status, &text),
    }
}

/// An order, with nothing in it that a history or a query should not hold.
fn read(body: &[u8]) -> Result<Order, String> {
    let order: Order = serde_json::from_slice(body).map_err(|error| {
        format!("the body is not an order: {error}; send JSON such as {{\"by\": \"you@host\", \"reason\": \"...\"}}")
    })?;
    let order = Order { by: order.by.trim().to_owned(), reason: order.reason.trim().to_owned(), ..order };
    if order.by.is_empty() || order.by.chars().count() > BY || order.by.contains(char::is_control) {
        return Err(format!("`by` says who orders this: write 1 to {BY} characters on one line"));
    }
    if order.reason.chars().count() > REASON || order.reason.contains(char::is_control) {
        return Err(format!(
            "`reason` is too long or has line ends: write up to {REASON} characters on one line"
        ));
    }
    if let Some(to) = &order.to
        && !((4..=64).contains(&to.len()) && to.bytes().all(|digit| digit.is_ascii_hexdigit()))
    {
        return Err(
            "`to` is not a revision: write its first 4 to 64 hex digits, as in the history".to_owned()
        );
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_somebody_and_a_revision_has_hex_digits() {
        let order =
            read(br#"{"by": " eve@desk ", "to": "0123ABCD", "reason": "it is wrong"}"#).expect("an order");
        assert_eq!((order.by.as_str(), order.to.as_deref()), ("eve@desk", Some("0123ABCD")));
        let refused = |body: &str| read(body.as_bytes()).expect_err("no order");
        assert!(refused("").contains("send JSON"));
        assert!(refused("{}").contains("missing field `by`"));
        assert!(refused(r#"{"by": "eve", "too": "0123"}"#).contains("unknown field `too`"));
        assert!(refused(r#"{"by": "  "}"#).contains("who orders"));
        assert!(refused(r#"{"by": "a\nb"}"#).contains("one line"));
        assert!(refused(&format!(r#"{{"by": "{}"}}"#, "x".repeat(BY + 1))).contains("who orders"));
        assert!(
            refused(&format!(r#"{{"by": "e", "reason": "{}"}}"#, "x".repeat(REASON + 1)))
                .contains("too long")
        );
        for to in ["", "012", "%", "xyzw", &"0".repeat(65)] {
            assert!(refused(&format!(r#"{{"by": "eve", "to": "{to}"}}"#)).contains("hex digits"), "{to}");
        }
    }

    #[test]
    fn orders_are_told_from_questions_by_their_path() {
        assert!(takes_orders("/modules/rules/pin") && takes_orders("/modules/a.b/rollback"));
        assert!(!takes_orders("/modules/pin") && !takes_orders("/modules/pin/history"));
        assert!(!takes_orders("/status"));
    }
}
