//! The admin server over real HTTP, as probes, Prometheus and people use it.

use std::net::SocketAddr;
use std::time::Duration;

use prometheus::{IntCounter, Registry};
use sluice::admin::{Admin, AdminError, AdminSources};
use sluice::pipeline::status::{ModuleStatus, PartitionStatus, PipelineStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Server {
    address: SocketAddr,
    pipeline: watch::Sender<PipelineStatus>,
    not_ready: watch::Sender<Vec<String>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), AdminError>>,
}

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

async fn start() -> Server {
    let (pipeline, pipelines) = watch::channel(purchases());
    let (not_ready, reasons) = watch::channel(Vec::new());
    let registry = Registry::new();
    let counter = IntCounter::new("sluice_records_total", "Records.").expect("a name");
    counter.inc_by(17);
    registry.register(Box::new(counter)).expect("registered");
    let sources = AdminSources { pipelines: vec![pipelines], not_ready: reasons, registry };
    let admin = Admin::bind(([127, 0, 0, 1], 0).into(), sources).await.expect("bound");
    let address = admin.local_address();
    let stop = CancellationToken::new();
    let task = tokio::spawn(admin.run(stop.clone()));
    Server { address, pipeline, not_ready, stop, task }
}

impl Server {
    /// Status, head (in lower case) and body of one request.
    async fn ask(&self, method: &str, path: &str, accept: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, head.to_lowercase(), body.to_owned())
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
    let (_, head, body) = server.ask("GET", "/", "text/html,application/xhtml+xml").await;
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
    stopped.expect("in time").expect("no panic").expect("no error");
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn a_taken_port_is_refused_with_the_key_to_change() {
    let server = start().await;
    let (_pipeline, _) = watch::channel(PipelineStatus::default());
    let (_not_ready, not_ready) = watch::channel(Vec::new());
    let sources = AdminSources { pipelines: Vec::new(), not_ready, registry: Registry::new() };
    let refused = Admin::bind(server.address, sources).await.expect_err("taken").to_string();
    assert!(refused.contains("admin.listen") && refused.contains(&server.address.to_string()), "{refused}");
}
