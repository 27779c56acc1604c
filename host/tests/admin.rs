//! The admin server over real HTTP, as probes, Prometheus and people use it.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use sluice::admin::{Admin, AdminSources, ConnectionLimits};
use sluice::domain::secret::Secret;
use sluice::domain::verdict::Stage;
use sluice::pipeline::modules::{
    CasesReport, Gate, ModuleAction, ModuleEvent, ModuleOrder, ModuleReport, ModuleRequest, ModuleState,
    OrderError, Problem, RevisionSince, ShadowReport, ShadowSample,
};
use sluice::pipeline::orders::{ModuleControl, OrderMetrics, PipelineModules};
use sluice::pipeline::status::{ModuleStatus, PartitionStatus, PipelineStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

struct Server {
    address: SocketAddr,
    pipeline: watch::Sender<PipelineStatus>,
    not_ready: watch::Sender<Vec<String>>,
    modules: watch::Sender<Vec<ModuleReport>>,
    orders: Option<mpsc::Receiver<ModuleOrder>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

const TOKEN: &str = "0123456789abcdef";

fn purchases() -> PipelineStatus {
    PipelineStatus {
        name: "purchases".into(),
        delivery: "at-least-once",
        not_ready: Vec::new(),
        chain: "0123456789ab".into(),
        modules: vec![ModuleStatus {
            name: "purchase-rules".into(),
            stage: "validate",
            revision: "ba9876543210".into(),
        }],
        partitions: vec![PartitionStatus {
            topic: "purchases".into(),
            partition: 3,
            committed_offset: Some(40),
            next_offset: Some(50),
            lag: Some(7),
            consumed: 50,
            inserted: 38,
            filtered: 1,
            dead_lettered: 1,
            in_flight: 10,
        }],
        in_flight_bytes: 2_700,
        in_flight_limit_bytes: 256 << 20,
    }
}

fn revision(revision: &str) -> Option<RevisionSince> {
    Some(RevisionSince { revision: revision.into(), since: "2026-11-29T19:50:39.123Z".into() })
}

fn rules() -> ModuleReport {
    ModuleReport {
        pipeline: "purchases".into(),
        name: "purchase-rules".into(),
        stage: Stage::Validate,
        file: "rules/purchase-rules.wasm".into(),
        is_shadow: false,
        state: ModuleState::Refused,
        live: revision("ba9876543210"),
        found: revision("0123456789ab"),
        cases: Some(CasesReport { passed: 11, failed: vec!["line 3: expected <EUR>".into()], failures: 1 }),
        problem: Some(Problem {
            gate: Some(Gate::Cases),
            reason: "fails 1 of its 12 golden cases & more".into(),
        }),
    }
}

fn shadow() -> ModuleReport {
    ModuleReport {
        is_shadow: true,
        state: ModuleState::Shadow,
        live: None,
        found: revision("aaaaaaaaaaaa"),
        cases: None,
        problem: None,
        file: "rules/purchase-rules.shadow.wasm".into(),
        ..rules()
    }
}

async fn start() -> Server {
    start_with(Secret::new(TOKEN), Duration::from_secs(60), ConnectionLimits::default()).await
}

/// A server whose orders wait in [`Server::orders`] until somebody answers them.
async fn start_with(token: Secret, patience: Duration, limits: ConnectionLimits) -> Server {
    let (pipeline, pipelines) = watch::channel(purchases());
    let (not_ready, reasons) = watch::channel(Vec::new());
    let registry = Registry::new();
    let counter = IntCounter::new("sluice_records_total", "Records.").expect("a name");
    counter.inc_by(17);
    registry.register(Box::new(counter)).expect("registered");
    let (modules, reports) = watch::channel(vec![rules()]);
    let (sender, orders) = mpsc::channel(16);
    let known = PipelineModules { pipeline: "purchases".into(), reports, orders: sender };
    let metrics = OrderMetrics::register(&Registry::new(), &["purchases".into()]).expect("registered");
    let sources = AdminSources {
        pipelines: vec![pipelines],
        not_ready: reasons,
        registry,
        modules: ModuleControl::new(vec![known], metrics, patience),
        token,
    };
    let admin = Admin::bind(([127, 0, 0, 1], 0).into(), sources).await.expect("bound").with_limits(limits);
    let address = admin.local_address();
    let stop = CancellationToken::new();
    let task = tokio::spawn(admin.run(stop.clone()));
    Server { address, pipeline, not_ready, modules, orders: Some(orders), stop, task }
}

impl Server {
    /// Status, head (in lower case) and body of one request.
    async fn ask(&self, method: &str, path: &str, accept: &str) -> (u16, String, String) {
        self.send(method, path, &format!("accept: {accept}"), "").await
    }

    /// An order with a token.
    async fn order(&self, path: &str, token: &str, body: &str) -> (u16, String, String) {
        self.send("POST", path, &format!("authorization: Bearer {token}"), body).await
    }

    async fn send(&self, method: &str, path: &str, header: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.to_owned())
    }

    /// A page, without its style: how it looks is for eyes.
    async fn page(&self, path: &str) -> (u16, String, String) {
        let (status, head, body) = self.ask("GET", path, "text/html,application/xhtml+xml").await;
        let (before, style) = body.split_once("<style>").expect("a page");
        let (_, after) = style.split_once("</style>").expect("an end");
        (status, head, format!("{before}{after}"))
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        self.ask("GET", path, "*/*").await
    }
}

#[tokio::test]
async fn probes_get_a_status_and_people_get_the_reasons() {
    let server = start().await;
    assert_eq!(server.get("/live").await.0, 200);
    let (status, _, body) = server.get("/ready").await;
    assert_eq!((status, body.as_str()), (200, "{\n  \"ready\": true,\n  \"reasons\": []\n}\n"));

    server.pipeline.send_modify(|status| status.not_ready.push("ClickHouse does not answer".into()));
    server.not_ready.send_replace(vec!["draining".into()]);
    let (status, head, body) = server.get("/ready").await;
    assert_eq!(status, 503);
    assert!(head.contains("content-type: application/json"), "{head}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["reasons"], serde_json::json!(["draining", "purchases: ClickHouse does not answer"]));
    assert_eq!(server.get("/live").await.0, 200, "waiting is not a reason to be restarted");
}

#[tokio::test]
async fn a_pipeline_that_is_gone_is_not_ready() {
    let mut server = start().await;
    let (other, _) = watch::channel(PipelineStatus::default());
    drop(std::mem::replace(&mut server.pipeline, other));
    let (status, _, body) = server.get("/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("purchases: the pipeline has stopped"), "{body}");
}

#[tokio::test]
async fn the_metrics_are_in_prometheus_text_format() {
    let server = start().await;
    let (status, head, body) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert_eq!(
        body,
        "# HELP sluice_records_total Records.\n# TYPE sluice_records_total counter\nsluice_records_total 17\n"
    );
}

#[tokio::test]
async fn the_status_is_json_for_scripts() {
    let server = start().await;
    let (status, _, body) = server.get("/status").await;
    assert_eq!(status, 200);
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["ready"], true);
    assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
    let pipeline = &body["pipelines"][0];
    assert_eq!(
        (&pipeline["name"], &pipeline["modules"][0]["revision"]),
        (&"purchases".into(), &"ba9876543210".into())
    );
    assert_eq!(
        (&pipeline["partitions"][0]["committed_offset"], &pipeline["partitions"][0]["lag"]),
        (&40.into(), &7.into())
    );
}

#[tokio::test]
async fn the_first_page_lists_the_endpoints_for_curl_and_for_a_browser() {
    let server = start().await;
    let (status, head, body) = server.get("/").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain"), "{head}");
    insta::assert_snapshot!(body);
    let (_, head, body) = server.page("/").await;
    assert!(head.contains("content-type: text/html"), "{head}");
    insta::assert_snapshot!(body);
}

#[tokio::test]
async fn an_unknown_path_lists_what_there_is_and_reaches_no_browser_as_markup() {
    let server = start().await;
    let (status, _, body) = server.get("/metric").await;
    assert_eq!(status, 404);
    assert!(body.starts_with("There is nothing at /metric\n") && body.contains("/metrics"), "{body}");
    server.not_ready.send_replace(vec!["ClickHouse said <script>".into()]);
    let (_, _, body) = server.ask("GET", "/metric&c", "text/html").await;
    assert!(body.contains("said &lt;script&gt;") && !body.contains("<script>"), "{body}");
    assert!(body.contains("/metric&amp;c") && !body.contains("/metric&c"), "{body}");
    let (status, head, body) = server.ask("POST", "/ready", "*/*").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: get, head") && body.contains("use GET"), "{head}\n{body}");
}

#[tokio::test]
async fn it_stops_when_told_even_with_a_silent_client() {
    let server = start().await;
    let _silent = TcpStream::connect(server.address).await.expect("connected");
    let mut half = TcpStream::connect(server.address).await.expect("connected");
    half.write_all(b"GET /live HTTP/1.1\r\nhost").await.expect("sent");
    assert_eq!(server.get("/live").await.0, 200);
    server.stop.cancel();
    let stopped = tokio::time::timeout(Duration::from_secs(5), server.task).await;
    stopped.expect("in time").expect("no panic");
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn a_taken_port_is_refused_with_the_key_to_change() {
    let server = start().await;
    let (_pipeline, _) = watch::channel(PipelineStatus::default());
    let (_not_ready, not_ready) = watch::channel(Vec::new());
    let registry = Registry::new();
    let metrics = OrderMetrics::register(&registry, &[]).expect("registered");
    let modules = ModuleControl::new(Vec::new(), metrics, Duration::from_secs(1));
    let sources =
        AdminSources { pipelines: Vec::new(), not_ready, registry, modules, token: Secret::default() };
    let refused = Admin::bind(server.address, sources).await.expect_err("taken").to_string();
    assert!(refused.contains("admin.listen") && refused.contains(&server.address.to_string()), "{refused}");
}

#[tokio::test]
async fn modules_are_json_for_scripts_and_a_page_for_people() {
    let mut server = start().await;
    let (status, head, body) = server.get("/modules").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    insta::assert_snapshot!(body);
    assert_eq!(server.get("/modules/purchase-rules?pipeline=purchases").await.2, body);

    server.modules.send_replace(vec![rules(), shadow()]);
    let mut orders = server.orders.take().expect("the orders");
    let answering = tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            let ModuleRequest::Shadow { answer } = order.request else { panic!("{order:?}") };
            let report = ShadowReport { records: 20, same: 17, newly_rejected: 3, ..ShadowReport::default() };
            answer.send(Ok(report)).expect("somebody waits");
        }
    });
    let (status, head, body) = server.page("/modules").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    insta::assert_snapshot!(body);
    answering.abort();
}

#[tokio::test]
async fn a_module_or_pipeline_that_is_not_there_names_those_that_are() {
    let server = start().await;
    let (status, _, body) = server.get("/modules/purchase-rule").await;
    assert_eq!(status, 404);
    assert!(body.contains("there is purchase-rules"), "{body}");
    let (status, _, body) = server.get("/modules?pipeline=purchase").await;
    assert_eq!(status, 404);
    assert!(body.contains("there is purchases"), "{body}");
    let (status, _, body) = server.get("/modules?pipe=purchases").await;
    assert_eq!(status, 400);
    assert!(body.contains("pipeline=NAME"), "{body}");
    let (status, head, body) = server.ask("GET", "/modules/%3Cscript%3E", "text/html").await;
    assert_eq!(status, 404);
    assert!(
        head.contains("text/html") && body.contains("&lt;script&gt;") && !body.contains("<script>"),
        "{body}"
    );
    for limit in ["0", "1001", "x"] {
        assert_eq!(server.get(&format!("/modules/purchase-rules/history?limit={limit}")).await.0, 400);
    }
}

#[tokio::test]
async fn a_history_is_read_by_programs_and_people() {
    let mut server = start().await;
    let mut orders = server.orders.take().expect("the orders");
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            let ModuleRequest::History { limit, answer } = order.request else { panic!("{order:?}") };
            let event = ModuleEvent {
                at: "2026-11-29T19:50:39.123Z".into(),
                event: "rolled-back".into(),
                revision: Some("ab".repeat(32)),
                instead_of: Some("cd".repeat(32)),
                by: "eve@desk".into(),
                reason: "rejects <all>".into(),
            };
            // A new rule that was rolled back: nothing was before it.
            let to_no_rule = ModuleEvent { revision: None, by: "the breaker".into(), ..event.clone() };
            let removed = ModuleEvent {
                event: "removed".into(),
                instead_of: None,
                reason: String::new(),
                ..to_no_rule.clone()
            };
            let events = [event, to_no_rule, removed].into_iter().take(limit).collect();
            answer.send(Ok(events)).expect("somebody waits");
        }
    });
    let (status, _, body) = server.get("/modules/purchase-rules/history?limit=1").await;
    assert_eq!(status, 200);
    insta::assert_snapshot!(body);
    let (status, _, body) = server.ask("GET", "/modules/purchase-rules/history", "text/html").await;
    assert_eq!(status, 200);
    let instead_of = format!("in place of <code title=\"{}\">cdcdcdcdcdcd</code>", "cd".repeat(32));
    assert!(body.contains(&format!(">abababababab</code> {instead_of}")), "{body}");
    assert!(body.contains(&format!("<td data-label=\"revision\">no rule {instead_of}</td>")), "{body}");
    assert!(body.contains("<td data-label=\"revision\"></td>"), "{body}");
    assert!(body.contains("rejects &lt;all&gt;") && body.contains("eve@desk"), "{body}");
}

/// What records hold is for those who have the token; how many differ is not.
#[tokio::test]
async fn samples_of_a_shadow_need_the_token() {
    let mut server = start().await;
    let mut orders = server.orders.take().expect("the orders");
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            let ModuleRequest::Shadow { answer } = order.request else { panic!("{order:?}") };
            let sample = ShadowSample {
                topic: "purchases".into(),
                partition: 3,
                offset: 7,
                difference: "newly_rejected",
                live: "accepted".into(),
                shadow: "of somebody's purchase".into(),
            };
            let report =
                ShadowReport { records: 20, newly_rejected: 3, samples: vec![sample], ..Default::default() };
            answer.send(Ok(report)).expect("somebody waits");
        }
    });
    const PATH: &str = "/modules/purchase-rules/shadow";
    let (status, _, body) = server.get(PATH).await;
    assert_eq!(status, 200);
    assert!(body.contains("\"newly_rejected\": 3") && !body.contains("somebody's"), "{body}");
    assert!(body.contains("send admin.token"), "{body}");
    let (_, _, page) = server.ask("GET", PATH, "text/html").await;
    assert!(page.contains("3 newly rejected") && !page.contains("somebody's"), "{page}");
    let (status, _, body) = server.send("GET", PATH, &format!("authorization: Bearer {TOKEN}"), "").await;
    assert_eq!(status, 200);
    assert!(body.contains("somebody's purchase") && !body.contains("samples_hidden"), "{body}");
    let (status, _, body) = server.send("GET", PATH, "authorization: Bearer wrong", "").await;
    assert_eq!(status, 401);
    assert!(!body.contains("somebody's"), "{body}");
}

#[tokio::test]
async fn an_order_needs_the_token_and_says_who_gives_it() {
    let mut server = start().await;
    const PATH: &str = "/modules/purchase-rules/pin";
    let body = r#"{"by": "eve@desk", "reason": "holidays"}"#;
    let (status, head, said) = server.send("POST", PATH, "accept: */*", body).await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer") && said.contains("admin.token"), "{head}\n{said}");
    let (status, head, said) = server.order(PATH, "0123456789abcdee", body).await;
    assert_eq!(status, 401);
    assert!(head.contains("www-authenticate: bearer") && !said.contains(TOKEN), "{head}\n{said}");
    // Whoever has no token does not learn which modules there are, nor has a body read.
    assert_eq!(server.order("/modules/nothing/pin", "wrong", body).await.0, 401);
    assert_eq!(server.order(PATH, TOKEN, "{}").await.0, 400);
    assert_eq!(server.order(PATH, TOKEN, r#"{"by": "eve", "to": "not hex"}"#).await.0, 400);
    let (status, _, said) =
        server.order("/modules/purchase-rules/release", TOKEN, r#"{"by": "eve", "to": "0123"}"#).await;
    assert_eq!(status, 400);
    assert!(said.contains("pin a revision"), "{said}");
    assert_eq!(server.order(PATH, TOKEN, &format!("{{\"by\": \"{}\"}}", "x".repeat(20_000))).await.0, 413);
    let (status, head, said) = server.get(PATH).await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: post") && said.contains("use POST"), "{head}\n{said}");
    let mut orders = server.orders.take().expect("the orders");
    assert!(orders.try_recv().is_err(), "none of these was an order");

    let (answer, ()) = tokio::join!(server.order(PATH, TOKEN, body), async {
        let order = orders.recv().await.expect("an order");
        let ModuleRequest::Act { action, by, reason, answer } = order.request else { panic!("an action") };
        assert_eq!((action, order.module.as_str()), (ModuleAction::Pin { to: None }, "purchase-rules"));
        assert_eq!((by.as_str(), reason.as_str()), ("eve@desk", "holidays"));
        answer.send(Ok("module purchase-rules runs revision 0123456789ab".into())).expect("somebody waits");
    });
    assert_eq!(answer.0, 200);
    assert!(answer.2.contains("runs revision 0123456789ab"), "{}", answer.2);

    for (error, expected) in [
        (OrderError::NotFound("no".into()), 404),
        (OrderError::Refused("no".into()), 409),
        (OrderError::Unavailable("no".into()), 503),
    ] {
        let (answer, ()) = tokio::join!(server.order(PATH, TOKEN, body), async {
            let order = orders.recv().await.expect("an order");
            let ModuleRequest::Act { answer, .. } = order.request else { panic!("an action") };
            answer.send(Err(error)).expect("somebody waits");
        });
        assert_eq!((answer.0, answer.2.as_str()), (expected, "{\n  \"error\": \"no\"\n}\n"));
    }
}

#[tokio::test]
async fn without_a_token_in_the_configuration_no_order_is_taken() {
    let mut server =
        start_with(Secret::default(), Duration::from_secs(60), ConnectionLimits::default()).await;
    for token in ["", TOKEN] {
        let (status, _, said) =
            server.order("/modules/purchase-rules/release", token, r#"{"by": "eve"}"#).await;
        assert_eq!(status, 403);
        assert!(said.contains("set admin.token"), "{said}");
    }
    assert!(server.orders.take().expect("the orders").try_recv().is_err());
    assert_eq!(server.get("/modules").await.0, 200);
}

#[tokio::test]
async fn an_order_that_nobody_answers_ends_with_what_is_known_of_it() {
    let mut server =
        start_with(Secret::new(TOKEN), Duration::from_millis(50), ConnectionLimits::default()).await;
    let body = r#"{"by": "eve"}"#;
    let (status, _, said) = server.order("/modules/purchase-rules/rollback", TOKEN, body).await;
    assert_eq!(status, 503);
    assert!(said.contains("did not answer within 50ms") && said.contains("before you order again"), "{said}");
    let order = server.orders.as_mut().expect("the orders").try_recv().expect("it waits");
    assert!(order.request.is_given_up(), "so it is not begun");
    server.orders = None;
    let (status, _, said) = server.order("/modules/purchase-rules/rollback", TOKEN, body).await;
    assert_eq!(status, 503);
    assert!(said.contains("shutting down"), "{said}");
}

/// Limits of clients, violated: none of them stays, and others are answered.
#[tokio::test]
async fn a_client_that_sends_slowly_or_not_at_all_is_let_go() {
    let limits = ConnectionLimits {
        connections: 3,
        head: Duration::from_millis(100),
        request: Duration::from_millis(100),
        age: Duration::from_secs(60),
    };
    let server = start_with(Secret::new(TOKEN), Duration::from_secs(60), limits).await;
    let connect = async |text: &str| {
        let mut stream = TcpStream::connect(server.address).await.expect("connected");
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream
    };
    let silent = connect("").await;
    let half = connect("GET /live HTTP/1.1\r\nhost").await;
    let order = format!(
        "POST /modules/purchase-rules/pin HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\
         content-length: 50\r\n\r\n{{"
    );
    let slow = connect(&order).await;
    // All connections are taken, so this is answered once one of them is let go.
    assert_eq!(server.get("/live").await.0, 200);
    let rest = async |mut stream: TcpStream| {
        let mut text = String::new();
        // A reset is an end, too.
        let _ = stream.read_to_string(&mut text).await;
        text
    };
    assert_eq!(rest(silent).await, "");
    assert_eq!(rest(half).await, "");
    let said = rest(slow).await;
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("send its body at once"), "{said}");
}

/// The same limits, obeyed: a connection that is kept answers again and again, until it is old.
#[tokio::test]
async fn a_connection_is_kept_until_it_is_old() {
    let limits = ConnectionLimits { age: Duration::from_millis(200), ..ConnectionLimits::default() };
    let server = start_with(Secret::new(TOKEN), Duration::from_secs(60), limits).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connected");
    let mut answers = 0;
    loop {
        let sent = stream.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 && sent.is_ok() => {
                assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
                answers += 1;
            }
            _ => break,
        }
    }
    assert!(answers > 1, "{answers}");
    assert_eq!(server.get("/live").await.0, 200);
}
