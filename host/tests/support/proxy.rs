//! A TCP proxy between a host and a server, for the faults that networks have.
//!
//! State: a runtime of its own with two tasks a connection, and what is wrong with the network now.
//! Invariants: bytes that are forwarded are forwarded unchanged and in order; a connection is cut whole,
//! both ways; an answer is swallowed only after the server gave it, so that what was asked for has
//! happened and nobody heard of it; everything ends with the handle.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Which answers can be swallowed.
#[derive(Clone, Copy, Debug)]
pub enum Answers {
    /// Any: of a server that is only asked for things that matter.
    All,
    /// Those to Kafka requests with one of these API keys.
    /// <https://kafka.apache.org/protocol#protocol_api_keys>
    Kafka(&'static [i16]),
}

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    /// Every piece of data waits this long.
    delay: Duration,
    /// Data waits until this ends; connections stay open.
    stalled: bool,
    /// New connections are closed at once.
    refusing: bool,
    /// Connections made under a smaller number are cut.
    generation: u64,
}

struct Shared {
    weather: watch::Sender<Weather>,
    upstream: Mutex<Option<SocketAddr>>,
    answers: Answers,
    to_swallow: AtomicU64,
    swallowed: AtomicU64,
}

/// See the module documentation.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Listens on a free port of loopback. Until [`Self::forward_to`] it refuses.
    pub fn start(answers: Answers) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            weather: watch::Sender::new(Weather::default()),
            upstream: Mutex::default(),
            answers,
            to_swallow: AtomicU64::new(0),
            swallowed: AtomicU64::new(0),
        });
        runtime.spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(connection(client, shared.clone()));
                }
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where connections lead from now on.
    pub fn forward_to(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap_or_else(PoisonError::into_inner) = Some(upstream);
    }

    /// Cuts every connection; new ones can be made.
    pub fn cut(&self) {
        self.change(|weather| weather.generation += 1);
    }

    /// Refuses new connections, and cuts those that are there when it begins.
    pub fn refuse(&self, refusing: bool) {
        self.change(|weather| {
            weather.refusing = refusing;
            weather.generation += u64::from(refusing);
        });
    }

    /// Lets every piece of data wait this long, either way.
    pub fn delay(&self, delay: Duration) {
        self.change(|weather| weather.delay = delay);
    }

    /// Lets data wait, connections open, until it is called with false.
    pub fn stall(&self, stalled: bool) {
        self.change(|weather| weather.stalled = stalled);
    }

    /// Swallows the answers to the next `count` requests that count, and cuts their connections.
    pub fn swallow(&self, count: u64) {
        self.shared.to_swallow.store(count, Ordering::SeqCst);
    }

    /// Ends every fault; connections that are there stay.
    pub fn heal(&self) {
        self.swallow(0);
        self.change(|weather| *weather = Weather { generation: weather.generation, ..Weather::default() });
    }

    /// Answers swallowed so far.
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::SeqCst)
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.shared.weather.send_modify(change);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the two directions of a connection tell each other.
struct Pair {
    shared: Arc<Shared>,
    /// Correlation ids of Kafka requests whose answers are to be swallowed.
    marked: Mutex<BTreeSet<[u8; 4]>>,
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let mut weather = shared.weather.subscribe();
    let now = *weather.borrow_and_update();
    let upstream = *shared.upstream.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(upstream) = upstream.filter(|_| !now.refusing) else { return };
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    // Best effort: without it, small pieces are only slower.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let pair = Pair { shared: shared.clone(), marked: Mutex::default() };
    // Whichever ends first drops all four halves, and so closes both connections.
    let _ = tokio::select! {
        ended = pair.requests(from_client, to_server) => ended,
        ended = pair.answers(from_server, to_client) => ended,
        _ = weather.wait_for(|weather| weather.generation > now.generation) => Ok(()),
    };
}

impl Pair {
    async fn requests(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let Answers::Kafka(keys) = self.shared.answers else {
            return self.copy(from, to).await;
        };
        loop {
            let frame = frame(&mut from).await?;
            // API key, API version, correlation id.
            if let Some((key, id)) = frame.get(4..6).zip(frame.get(8..12))
                && keys.iter().any(|wanted| wanted.to_be_bytes() == key)
                && self.take()
            {
                self.marked().insert(id.try_into().expect("four bytes"));
            }
            self.pass(&frame, &mut to).await?;
        }
    }

    async fn answers(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        match self.shared.answers {
            Answers::All => {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let length = from.read(&mut buffer).await?;
                    if length == 0 {
                        return Ok(());
                    }
                    if self.take() {
                        return self.swallow();
                    }
                    self.pass(&buffer[..length], &mut to).await?;
                }
            }
            Answers::Kafka(_) => loop {
                let frame = frame(&mut from).await?;
                let marked = frame.get(4..8).is_some_and(|id| self.marked().contains(id));
                if marked {
                    return self.swallow();
                }
                self.pass(&frame, &mut to).await?;
            },
        }
    }

    async fn copy(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            self.pass(&buffer[..length], &mut to).await?;
        }
    }

    /// Forwards as the weather lets it.
    async fn pass(&self, data: &[u8], to: &mut OwnedWriteHalf) -> io::Result<()> {
        let mut weather = self.shared.weather.subscribe();
        let delay = weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // An error means that the proxy is gone, and its tasks with it.
        let _ = weather.wait_for(|weather| !weather.stalled).await;
        to.write_all(data).await
    }

    /// Whether an answer is to be swallowed; counts it.
    fn take(&self) -> bool {
        let left = &self.shared.to_swallow;
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn swallow(&self) -> io::Result<()> {
        self.shared.swallowed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn marked(&self) -> std::sync::MutexGuard<'_, BTreeSet<[u8; 4]>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One length-prefixed request or answer of Kafka's protocol, its length included.
async fn frame(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let mut frame = length.to_be_bytes().to_vec();
    let whole = u64::from(length);
    if from.take(whole).read_to_end(&mut frame).await? as u64 != whole {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(frame)
}
