//! The sluice program as a child process: started, watched through its admin server, killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest wait for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A configuration in a folder of its own: the shipped one with the test's addresses.
#[derive(Clone)]
pub struct Configuration {
    file: PathBuf,
    environment: Vec<(String, String)>,
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ has a parent").to_owned()
}

impl Configuration {
    /// `config/sluice.yaml` against these servers.
    pub fn new(brokers: &str, clickhouse: &str) -> Self {
        let environment = [
            ("SLUICE__KAFKA__BROKERS", brokers),
            ("SLUICE__CLICKHOUSE__URL", clickhouse),
            ("SLUICE__ADMIN__LISTEN", "127.0.0.1:0"),
            ("SLUICE__LOGGING__FORMAT", "json"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { file: root().join("config/sluice.yaml"), environment: environment.to_vec() }
    }

    /// Another file in place of the shipped one.
    pub fn with_file(self, file: PathBuf) -> Self {
        Self { file, ..self }
    }

    /// Overrides a key, such as `PIPELINES__PURCHASES__BATCH__ROWS`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.environment.push((format!("SLUICE__{key}"), value.to_owned()));
        self
    }

    /// Runs `sluice ARGUMENTS --config ...` to its end; returns success, standard output and error.
    pub fn command(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.prepare(arguments).output().expect("the sluice program runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    /// Runs `sluice run`, which must end by itself; returns the exit code and everything it said.
    pub fn run_to_the_end(&self) -> (Option<i32>, String) {
        let mut child = self
            .prepare(&["run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the sluice program runs");
        let mut stderr = child.stderr.take().expect("standard error is piped");
        let reading = std::thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).map(|_| said)
        });
        let ended = wait(&mut child);
        let said = reading.join().expect("the reader ends").expect("it says text");
        (ended.unwrap_or_else(|| panic!("sluice goes on: {said}")).code(), said)
    }

    /// `sluice ARGUMENTS --config ...`, ready to run.
    pub fn prepare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.file)
            .envs(self.environment.iter().cloned())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }
}

/// A running `sluice run`. It is killed when dropped.
pub struct Sluice {
    child: Child,
    admin: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    reading: Option<JoinHandle<()>>,
}

impl Sluice {
    /// Starts it and waits until its admin server listens.
    pub fn start(configuration: &Configuration) -> Self {
        let mut child = configuration
            .prepare(&["run"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the sluice program runs");
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let stderr = BufReader::new(child.stderr.take().expect("standard error is piped"));
        let reading = std::thread::spawn({
            let log = log.clone();
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let admin = loop {
            let found = log.lock().unwrap().iter().find_map(|line| admin_address(line));
            if let Some(admin) = found {
                break admin;
            }
            let ended = child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "sluice ended at once: {:?}", log.lock().unwrap());
            assert!(Instant::now() < deadline, "no admin address: {:?}", log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        };
        Self { child, admin, log, reading: Some(reading) }
    }

    /// Answer of the admin server: status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path)
    }

    /// An order to the admin server, with its token: status code and body.
    pub fn post(&self, path: &str, token: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n",
            body.len()
        );
        let (code, said) = ask(self.admin, &head, &body);
        (code, serde_json::from_str(&said).unwrap_or(serde_json::Value::String(said)))
    }

    /// Where its admin server is.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// `/status`.
    pub fn status(&self) -> serde_json::Value {
        let (code, body) = self.get("/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("the status is JSON")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Records settled since their partitions were assigned, over all of them.
    pub fn settled(&self) -> u64 {
        ["inserted", "filtered", "dead_lettered"].iter().map(|key| self.count(key)).sum()
    }

    /// Records consumed since their partitions were assigned, over all of them.
    pub fn consumed(&self) -> u64 {
        self.count("consumed")
    }

    fn count(&self, key: &str) -> u64 {
        let status = self.status();
        let partitions = status["pipelines"][0]["partitions"].as_array().cloned().unwrap_or_default();
        partitions.iter().map(|partition| partition[key].as_u64().unwrap_or(0)).sum()
    }

    /// A series of `/metrics`, such as `sluice_recuts_total{pipeline="a"}`; 0 where there is none.
    pub fn metric(&self, series: &str) -> f64 {
        let (code, text) = self.get("/metrics");
        assert_eq!(code, 200);
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until `condition` holds.
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "waited in vain until {what}\nstatus: {}\nlog: {}",
                self.status(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// SIGKILL: as a crash.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be waited for");
    }

    /// Waits until it ends by itself; the exit code and everything logged.
    pub fn wait_for_end(mut self) -> (Option<i32>, String) {
        let ended = wait(&mut self.child);
        self.reading.take().map(JoinHandle::join).transpose().expect("the reader ends");
        (ended.unwrap_or_else(|| panic!("sluice goes on: {}", self.log())).code(), self.log())
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("the child can be waited for").code()
    }
}

impl Drop for Sluice {
    fn drop(&mut self) {
        // Both fail only where the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a child ends by itself; one that goes on is killed.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(ended) = child.try_wait().expect("the child can be asked") {
            return Some(ended);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    child.kill().and_then(|()| child.wait()).expect("the child can be killed");
    None
}

fn admin_address(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "admin http").then(|| line["address"].as_str()?.parse().ok()).flatten()
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\n"), "")
}

fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the admin server accepts");
    write!(stream, "{head}Host: {address}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (code, body.to_owned())
}
