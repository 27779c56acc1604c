//! Remote: the admin server of a running Sluice, as the commands that need one speak to it.
//!
//! HTTPS goes through the system's OpenSSL, as to ClickHouse: Sluice itself serves plain HTTP, and a proxy in
//! front of it may not. The token of the configuration goes to the address of the configuration and to no
//! other; whoever names an address names its token.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::builder::{StringValueParser, TypedValueParser};
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_tls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::config::Config;
use crate::domain::secret::Secret;

/// Longest wait for an answer: longer than the server waits for its pipelines.
const PATIENCE: Duration = Duration::from_secs(40);
/// Most bytes of an answer.
const ANSWER_BYTES: usize = 64 << 20;

/// Which Sluice, and which pipeline of it.
#[derive(clap::Args, Debug)]
#[group(id = "module_remote")]
pub(super) struct RemoteArguments {
    /// Admin server of a running Sluice, such as http://sluice:9464; https:// where a proxy serves it. Without it:
    /// admin.listen of the configuration, on this machine.
    #[arg(long, env = "SLUICE_ADMIN_URL", value_name = "URL")]
    admin: Option<String>,
    /// Token of that server (its admin.token); without both: the configuration's. Others on this machine can
    /// see arguments, so the variable is the better place.
    #[arg(long, env = "SLUICE_ADMIN_TOKEN", hide_env_values = true, value_parser = secret())]
    token: Option<Secret>,
    /// Configuration file; environment variables SLUICE__SECTION__KEY override it. Not read with --admin.
    #[arg(long, short, env = "SLUICE_CONFIG", default_value = "config/sluice.yaml")]
    config: PathBuf,
    /// Pipeline; needed where several have a module of the name.
    #[arg(long, short)]
    pub(super) pipeline: Option<String>,
    /// Print the server's JSON.
    #[arg(long)]
    pub(super) json: bool,
}

fn secret() -> impl TypedValueParser<Value = Secret> {
    StringValueParser::new().map(|text: String| Secret::new(text))
}

/// What the server said.
pub(super) enum Reply {
    /// It is so, or was done.
    Fine(Value),
    /// There is no such thing, or it makes no sense as things are; in its words.
    Refused(String),
}

/// See the module documentation.
pub(super) struct Remote {
    base: String,
    token: Secret,
    runtime: Runtime,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Remote {
    /// Finds out where to ask.
    pub(super) fn new(arguments: &RemoteArguments) -> Result<Self> {
        let (base, configured) = match arguments.admin.as_ref().filter(|url| !url.is_empty()) {
            Some(url) => (url.trim_end_matches('/').to_owned(), Secret::default()),
            None => {
                let config = Config::load_without_modules(&arguments.config).context(
                    "the configuration says where the admin server is; or name it with --admin (SLUICE_ADMIN_URL)",
                )?;
                let mut listen = config.admin.listen;
                if listen.port() == 0 {
                    bail!(
                        "admin.listen has port 0, which is another one at each start; use --admin (SLUICE_ADMIN_URL)"
                    );
                }
                if listen.ip().is_unspecified() {
                    let loopback: std::net::IpAddr = match listen.ip() {
                        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                    };
                    listen.set_ip(loopback);
                }
                (format!("http://{listen}"), config.admin.token)
            }
        };
        let uri: Uri =
            base.parse().map_err(|error| anyhow!("{base} is no URL: {error}; write http://host:9464"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.query().is_some() {
            bail!("{base} is not the URL of an admin server; write http://host:9464");
        }
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        let client =
            Client::builder(TokioExecutor::new()).build(HttpsConnector::new_with_connector(connector));
        // Empty variables are what `${NAME:-}` in a compose file gives: not set.
        let token = arguments.token.clone().filter(|token| !token.is_empty()).unwrap_or(configured);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { base, token, runtime, client })
    }

    /// Asks for what is at a path.
    ///
    /// # Errors
    /// When it cannot be asked, or cannot say.
    pub(super) fn get(&self, path: &str) -> Result<Reply> {
        self.ask(Method::GET, path, None)
    }

    /// Orders something.
    ///
    /// # Errors
    /// When it cannot be told, may not be, or cannot say what became of it.
    pub(super) fn order(&self, path: &str, body: &Value) -> Result<Reply> {
        self.ask(Method::POST, path, Some(body))
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Reply> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(ACCEPT, "application/json");
        if !self.token.is_empty() {
            request = request.header(AUTHORIZATION, format!("Bearer {}", self.token.reveal()));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(body)))
            .context("the token has a character that a header cannot carry")?;
        let answered = async {
            let response = self.client.request(request).await.map_err(|error| {
                anyhow!(error).context(format!(
                    "cannot reach the admin server at {}; start Sluice, or name another address with --admin \
                     (SLUICE_ADMIN_URL)",
                    self.base
                ))
            })?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow!("the answer of {} broke off: {error}", self.base))?;
            Ok::<_, anyhow::Error>((status, body.to_bytes()))
        };
        let answered = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answered).await });
        let patience = humantime::format_duration(PATIENCE);
        let (status, body) =
            answered.map_err(|_| anyhow!("{} did not answer within {patience}; try again", self.base))??;
        let foreign = || anyhow!("{} answers {status}, and not as Sluice does: is --admin right?", self.base);
        let value: Value = serde_json::from_slice(&body).map_err(|_| foreign())?;
        let error = value["error"].as_str();
        match (status, error) {
            (StatusCode::OK, None) => Ok(Reply::Fine(value)),
            (StatusCode::NOT_FOUND | StatusCode::CONFLICT, Some(error)) => {
                Ok(Reply::Refused(error.to_owned()))
            }
            (StatusCode::UNAUTHORIZED, Some(error)) => {
                bail!(
                    "{error}; this command takes it from SLUICE_ADMIN_TOKEN, --token or, without --admin, the configuration"
                )
            }
            (_, Some(error)) => bail!("{error}"),
            (_, None) => Err(foreign()),
        }
    }
}
