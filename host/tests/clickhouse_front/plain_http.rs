//! HTTP over a bare socket: what no client library would send, and answers as they come.

use sluice::embedded::EmbeddedClickHouse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The exception's code, which must stand in the header and at the start of the text.
    pub(crate) fn exception(&self) -> i32 {
        let code = self.header("X-ClickHouse-Exception-Code").unwrap_or_else(|| panic!("{}", self.text()));
        assert!(self.text().starts_with(&format!("Code: {code}. DB::Exception: ")), "{}", self.text());
        assert!(self.text().contains("(version "), "{}", self.text());
        code.parse().unwrap()
    }
}

/// Sends a request and reads the answer.
pub(crate) async fn send(
    clickhouse: &EmbeddedClickHouse,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut socket = connect(clickhouse).await;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    socket.write_all(head.as_bytes()).await.unwrap();
    // A body that is refused may not be read to its end.
    let _ = socket.write_all(body).await;
    read_answer(socket).await
}

pub(crate) async fn get(clickhouse: &EmbeddedClickHouse, target: &str) -> Answer {
    send(clickhouse, "GET", target, &[], b"").await
}

pub(crate) async fn post(clickhouse: &EmbeddedClickHouse, target: &str, body: impl AsRef<[u8]>) -> Answer {
    send(clickhouse, "POST", target, &[], body.as_ref()).await
}

pub(crate) async fn connect(clickhouse: &EmbeddedClickHouse) -> TcpStream {
    let url = clickhouse.url();
    TcpStream::connect(url.strip_prefix("http://").unwrap()).await.expect("ClickHouse listens")
}

pub(crate) async fn read_answer(mut socket: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).await.expect("an answer");
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    Answer { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() }
}

/// Any bytes as they may stand in a URL.
pub(crate) fn url_encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("%{byte:02x}")).collect()
}
