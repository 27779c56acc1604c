//! Settings: how to reach ClickHouse.

use std::collections::BTreeMap;
use std::time::Duration;

use clickhouse::{Client, Compression};

use crate::domain::secret::Secret;

/// Compression of what is sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransferCompression {
    /// None: for a server on the same machine.
    None,
    /// LZ4 blocks.
    #[default]
    Lz4,
}

/// Where ClickHouse is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouseSettings {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// Database of tables that are named without one.
    pub database: String,
    /// User.
    pub user: String,
    /// Password; empty for none.
    pub password: Secret,
    /// Longest wait while sending a part of a request, and then for its answer.
    pub request_timeout: Duration,
    /// Compression of inserts and answers.
    pub compression: TransferCompression,
    /// Further ClickHouse settings, sent with every statement (`insert_quorum` and the like).
    pub server_settings: BTreeMap<String, String>,
}

impl Default for ClickHouseSettings {
    fn default() -> Self {
        Self {
            url: "http://localhost:8123".into(),
            database: "default".into(),
            user: "default".into(),
            password: Secret::default(),
            request_timeout: Duration::from_secs(30),
            compression: TransferCompression::default(),
            server_settings: BTreeMap::new(),
        }
    }
}

impl ClickHouseSettings {
    /// A client with its own pool of connections; clones share the pool.
    pub fn client(&self) -> Client {
        let mut client = Client::default()
            .with_url(&self.url)
            .with_database(&self.database)
            .with_compression(match self.compression {
                TransferCompression::None => Compression::None,
                TransferCompression::Lz4 => Compression::Lz4,
            })
            .with_product_info("sluice", env!("CARGO_PKG_VERSION"));
        // Some proxies refuse empty credentials, and ClickHouse takes none as `default` without a password.
        if !self.user.is_empty() {
            client = client.with_user(&self.user);
        }
        if !self.password.is_empty() {
            client = client.with_password(self.password.reveal());
        }
        self.server_settings.iter().fold(client, |client, (name, value)| client.with_setting(name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        let settings = ClickHouseSettings { password: Secret::new("hunter2"), ..Default::default() };
        let shown = format!("{settings:?} {:?}", settings.client());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
