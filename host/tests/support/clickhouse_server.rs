//! The embedded ClickHouse under a blocking handle, one a test.

use clickhouse::{Client, RowOwned, RowRead};
use sluice::embedded::{EmbeddedClickHouse, EmbeddedOptions};
use tokio::runtime::Runtime;

/// A running ClickHouse with a folder of its own. Methods panic with its words when it refuses.
pub struct ClickHouse {
    runtime: Runtime,
    server: Option<EmbeddedClickHouse>,
}

impl ClickHouse {
    /// Starts it on a free port of loopback.
    pub fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime starts");
        let options = EmbeddedOptions {
            program: Some(env!("CARGO_BIN_EXE_sluice").into()),
            ..EmbeddedOptions::default()
        };
        let server = runtime
            .block_on(EmbeddedClickHouse::start(options))
            .unwrap_or_else(|error| panic!("{error}; run `make libchdb`"));
        Self { runtime, server: Some(server) }
    }

    /// `http://127.0.0.1:port`; stays the same over [`Self::kill`] and [`Self::restart`].
    pub fn url(&self) -> String {
        self.server().url()
    }

    /// Runs a statement.
    pub fn execute(&self, statement: &str) {
        let client = Client::default().with_url(self.url());
        self.runtime.block_on(client.query(statement).execute()).expect("the statement runs");
    }

    /// Rows of a query.
    pub fn rows<T: RowOwned + RowRead>(&self, query: &str) -> Vec<T> {
        let client = Client::default().with_url(self.url());
        self.runtime.block_on(client.query(query).fetch_all()).expect("the query runs")
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let server = self.server.as_mut().expect("it runs");
        self.runtime.block_on(server.kill()).expect("it can be killed");
    }

    /// Starts it again, on the same folder and port.
    pub fn restart(&mut self) {
        let server = self.server.as_mut().expect("it runs");
        self.runtime.block_on(server.restart()).expect("it starts again");
    }

    fn server(&self) -> &EmbeddedClickHouse {
        self.server.as_ref().expect("it runs")
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            // A failed stop leaves the child to its own watch on its parent.
            let _ = self.runtime.block_on(server.stop());
        }
    }
}
