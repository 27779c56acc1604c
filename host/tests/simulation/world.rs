//! World: everything that survives the hosts, and the post between them.
//!
//! State: Kafka, ClickHouse, the randomness of the schedule, the trace, and the messages under way.
//! A message is an action that happens to the world at its time, whether its sender lives or not.
//! Nothing here knows threads or real time: the clock is tokio's, paused, and moves on by itself
//! when every task waits.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

use crate::chain::FakeChain;
use crate::clickhouse::ClickHouse;
use crate::kafka::Kafka;
use crate::plan::{Network, Plan, Random};

type Action = Box<dyn FnOnce(&mut World) + Send>;

/// A message under way; the earliest is the greatest. Those of one moment come in random order.
struct Due {
    at: u64,
    order: u64,
    action: Action,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What a schedule writes down, when it is asked to.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) wanted: bool,
    pub(crate) lines: Vec<String>,
}

/// See the module documentation.
pub(crate) struct World {
    pub(crate) plan: Arc<Plan>,
    pub(crate) random: Random,
    pub(crate) kafka: Kafka,
    pub(crate) clickhouse: ClickHouse,
    /// Every chain that there is.
    pub(crate) chains: Vec<Arc<FakeChain>>,
    /// No more faults.
    pub(crate) calm: bool,
    /// No host may start.
    pub(crate) outage: bool,
    /// Until when a host cannot reach Kafka.
    pub(crate) cut_until: Vec<u64>,
    /// Requests to ClickHouse that have not arrived, but will.
    pub(crate) inserts_under_way: usize,
    /// The first rule that was broken.
    pub(crate) violation: Option<String>,
    pub(crate) trace: Trace,
    started: Instant,
    post: BinaryHeap<Due>,
    posted: Arc<Notify>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Kafka,
    ClickHouse,
}

/// No answer came in time: the request may have arrived, or may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoAnswer;

impl World {
    /// Milliseconds since the schedule began.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Whether it is time for calm, or a rule was broken.
    pub(crate) fn is_over(&self) -> bool {
        self.now() >= self.plan.duration || self.violation.is_some()
    }

    /// Writes a line of the trace, if one is wanted.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.wanted {
            let line = format!("{:>6} {}", self.now(), line());
            self.trace.lines.push(line);
        }
    }

    /// Records that a rule was broken.
    pub(crate) fn violate(&mut self, rule: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let rule = rule();
            self.note(|| format!("VIOLATION: {rule}"));
            self.violation = Some(rule);
        }
    }

    /// Lets `action` happen `delay` milliseconds from now.
    pub(crate) fn after(&mut self, delay: u64, action: impl FnOnce(&mut Self) + Send + 'static) {
        let due = Due { at: self.now() + delay, order: self.random.bits(), action: Box::new(action) };
        self.post.push(due);
        self.posted.notify_one();
    }

    /// Whether `chance` comes true; never when it is calm.
    pub(crate) fn fault(&mut self, chance: f64) -> bool {
        !self.calm && self.random.chance(chance)
    }

    fn network(&self, server: Server) -> &Network {
        match server {
            Server::Kafka => &self.plan.kafka,
            Server::ClickHouse => &self.plan.clickhouse,
        }
    }

    /// Time of one way; `None` for a message that gets lost.
    fn way(&mut self, server: Server) -> Option<u64> {
        let plan = self.plan.clone();
        let network = match server {
            Server::Kafka => &plan.kafka,
            Server::ClickHouse => &plan.clickhouse,
        };
        if self.calm {
            return Some(self.random.below(2));
        }
        if self.random.chance(network.loss) {
            return None;
        }
        let most = if self.random.chance(network.slow_chance) { network.slow } else { network.latency };
        Some(self.random.below(most + 1))
    }
}

/// The world, as everybody holds it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    /// A world of its plan. Within a runtime whose clock is paused.
    pub(crate) fn new(plan: Plan, trace: bool) -> Self {
        let mut random = Random::new(plan.seed);
        let plan = Arc::new(plan);
        Self(Arc::new(Mutex::new(World {
            kafka: Kafka::new(&plan, &mut random),
            clickhouse: ClickHouse::new(&plan),
            chains: (0..3).map(|number| Arc::new(FakeChain::new(number, &plan))).collect(),
            calm: false,
            outage: false,
            cut_until: vec![0; plan.hosts],
            inserts_under_way: 0,
            violation: None,
            trace: Trace { wanted: trace, lines: Vec::new() },
            started: Instant::now(),
            post: BinaryHeap::new(),
            posted: Arc::default(),
            plan,
            random,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn plan(&self) -> Arc<Plan> {
        self.lock().plan.clone()
    }

    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        self.lock().note(line);
    }

    /// Sends a request of `host`: `effect` happens to the world when it arrives, if it does.
    pub(crate) fn ask<R: Send + 'static>(
        &self,
        host: usize,
        server: Server,
        effect: impl FnOnce(&mut World) -> R + Send + 'static,
    ) -> impl Future<Output = Result<R, NoAnswer>> + Send + 'static {
        let world = &mut *self.lock();
        let cut = server == Server::Kafka && world.cut_until[host] > world.now();
        let (there, back) = (world.way(server).filter(|_| !cut), world.way(server));
        let timeout = world.network(server).timeout;
        let (sender, receiver) = oneshot::channel::<R>();
        let mut sender = Some(sender);
        let in_time = there.zip(back).map(|(there, back)| there + back).filter(|time| *time < timeout);
        if in_time.is_none() {
            let sender = sender.take();
            world.after(timeout, move |_| drop(sender));
        }
        if let Some(there) = there {
            world.inserts_under_way += usize::from(server == Server::ClickHouse);
            world.after(there, move |world| {
                world.inserts_under_way -= usize::from(server == Server::ClickHouse);
                let answer = effect(world);
                if let Some(sender) = sender {
                    // A sender that no longer waits is no failure.
                    world.after(back.unwrap_or(0), move |_| drop(sender.send(answer)));
                }
            });
        }
        async move { receiver.await.map_err(|_| NoAnswer) }
    }

    /// Lets everything happen that is due; returns when the next is.
    fn deliver_due(&self) -> Option<Instant> {
        loop {
            let world = &mut *self.lock();
            let next = world.post.peek()?.at;
            if next > world.now() {
                return Some(world.started + Duration::from_millis(next));
            }
            let due = world.post.pop()?;
            (due.action)(world);
        }
    }

    /// Delivers what is under way, for ever.
    pub(crate) async fn deliver(self) {
        let posted = self.lock().posted.clone();
        loop {
            match self.deliver_due() {
                None => posted.notified().await,
                Some(next) => tokio::select! {
                    biased;
                    () = posted.notified() => {}
                    () = sleep_until(next) => {}
                },
            }
        }
    }
}
