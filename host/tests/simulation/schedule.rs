//! Schedule: one run of the world from its seed to the end: hosts come and go while there are faults, then
//! all is calm, everything must end, and every record must have ended as it must.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::host::Host;
use crate::plan::Plan;
use crate::ports::pause;
use crate::process::Process;
use crate::rules;
use crate::world::Shared;

/// Milliseconds of calm after which records that have not ended never will.
const PATIENCE: u64 = 20_000;

/// The blow that takes records away.
const RETENTION: usize = 6;

/// How a schedule ended.
pub(crate) struct Outcome {
    /// The rule that was broken, if one was.
    pub(crate) violation: Option<String>,
    /// What happened, where it was asked for.
    pub(crate) trace: Vec<String>,
}

/// The hosts of a schedule.
#[derive(Clone)]
struct Hosts {
    world: Shared,
    running: Arc<Mutex<BTreeMap<usize, Host>>>,
    /// Processes that were replaced and are not dead yet.
    zombies: Arc<Mutex<Vec<Arc<Process>>>>,
}

/// Runs a schedule.
pub(crate) fn run(plan: Plan, trace: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = Shared::new(plan, trace);
        let plan = world.plan();
        world.note(|| format!("{plan:?}"));
        tokio::spawn(world.clone().deliver());
        let hosts = Hosts { world: world.clone(), running: Arc::default(), zombies: Arc::default() };
        for host in 0..plan.hosts {
            tokio::spawn(hosts.clone().keep_running(host));
        }
        hosts.strike().await;
        hosts.heal();
        hosts.wait_for_the_end().await;
        let mut world = world.lock();
        Outcome { violation: world.violation.take(), trace: std::mem::take(&mut world.trace.lines) }
    })
}

impl Hosts {
    /// Starts a process of a host whenever it has none.
    async fn keep_running(self, host: usize) {
        for run in 0.. {
            let (wait, chain) = {
                let world = &mut *self.world.lock();
                let wait = if world.calm { 1 } else { world.random.below(40) };
                let chain = world.random.pick(&world.chains).clone();
                (wait, chain.bound())
            };
            pause(wait).await;
            while self.world.lock().outage {
                pause(10).await;
            }
            let started = Host::start(&self.world, host, run, chain);
            let process = started.process.clone();
            self.running.lock().expect("never poisoned").insert(host, started);
            process.gone.notified().await;
            self.running.lock().expect("never poisoned").remove(&host);
        }
    }

    /// One blow after the other until the time is up.
    async fn strike(&self) {
        let plan = self.world.plan();
        loop {
            let wait = self.world.lock().random.between(1, plan.chaos.interval);
            pause(wait).await;
            if self.world.lock().is_over() {
                return;
            }
            match self.draw_blow(&plan) {
                Some(RETENTION) => self.outage().await,
                Some(blow) => self.blow(&plan, blow),
                None => {}
            }
        }
    }

    /// Everything stops for so long that retention takes records that nobody has settled. Sooner than that
    /// it takes none: what is under way, or frozen, for as long as Kafka keeps records is out of reach.
    async fn outage(&self) {
        self.world.lock().outage = true;
        for host in self.running.lock().expect("never poisoned").values() {
            host.process.kill();
        }
        for zombie in self.zombies.lock().expect("never poisoned").drain(..) {
            zombie.kill();
        }
        while self.world.lock().inserts_under_way > 0 {
            pause(10).await;
        }
        let world = &mut *self.world.lock();
        for _ in 0..world.random.between(1, 3) {
            let (partition, start) = world.kafka.retain(&mut world.random);
            world.note(|| format!("kafka: partition {partition} starts at {start}"));
        }
        world.outage = false;
    }

    fn draw_blow(&self, plan: &Plan) -> Option<usize> {
        let chaos = &plan.chaos;
        let blows = [
            chaos.crash,
            chaos.freeze,
            chaos.replace,
            chaos.stop,
            chaos.cut,
            chaos.clickhouse_away,
            chaos.retention,
            chaos.publish,
            chaos.produce,
        ];
        let mut roll = self.world.lock().random.below(blows.iter().sum());
        blows.iter().position(|weight| {
            let hit = roll < *weight;
            roll = roll.wrapping_sub(*weight);
            hit
        })
    }

    fn blow(&self, plan: &Plan, blow: usize) {
        let running = self.running.lock().expect("never poisoned");
        let host = self.world.lock().random.below(plan.hosts as u64) as usize;
        match (blow, running.get(&host)) {
            (0, Some(host)) => {
                let polls = self.world.lock().random.below(80);
                host.process.note(|| format!("will die in {polls} polls"));
                host.process.kill_after(polls);
            }
            (1, Some(host)) => self.freeze(host, false),
            (2, Some(host)) => self.freeze(host, true),
            (3, Some(host)) => host.process.change(|standing| standing.stopping = true),
            (7, Some(host)) => {
                let chain = {
                    let world = &mut *self.world.lock();
                    world.random.pick(&world.chains).clone()
                };
                host.process.note(|| "gets another chain".into());
                host.chain.publish(chain.bound());
            }
            _ => self.blow_at_servers(plan, blow, host),
        }
    }

    fn blow_at_servers(&self, plan: &Plan, blow: usize, host: usize) {
        let world = &mut *self.world.lock();
        let until = world.now() + world.random.between(10, 2 * plan.session_timeout);
        match blow {
            4 => {
                world.note(|| format!("host {host} is cut off from kafka until {until}"));
                world.cut_until[host] = until;
            }
            5 => {
                world.note(|| format!("clickhouse is away until {until}"));
                world.clickhouse.away_until = until;
            }
            8 => world.kafka.produce(plan, &mut world.random),
            _ => {}
        }
    }

    /// Freezes a process for a while; where it is replaced, it goes on as a zombie and dies later.
    fn freeze(&self, host: &Host, replaced: bool) {
        let process = host.process.clone();
        let (frozen, left) = {
            let world = &mut *self.world.lock();
            let most = 3 * world.plan.session_timeout;
            (world.random.between(5, most), world.random.between(5, most))
        };
        process.note(|| format!("is frozen for {frozen} ms{}", if replaced { " and replaced" } else { "" }));
        process.freeze();
        if replaced {
            self.zombies.lock().expect("never poisoned").push(process.clone());
            process.gone.notify_one();
        }
        tokio::spawn(async move {
            pause(frozen).await;
            process.note(|| "goes on".into());
            process.thaw();
            if replaced {
                pause(left).await;
                process.kill();
            }
        });
    }

    /// From now on nothing goes wrong.
    fn heal(&self) {
        {
            let world = &mut *self.world.lock();
            world.calm = true;
            world.note(|| "all is calm".into());
            world.cut_until.fill(0);
            world.clickhouse.away_until = 0;
        }
        for zombie in self.zombies.lock().expect("never poisoned").drain(..) {
            zombie.kill();
        }
        for host in self.running.lock().expect("never poisoned").values() {
            host.process.spare();
            host.process.thaw();
        }
    }

    async fn wait_for_the_end(&self) {
        let healed = self.world.lock().now();
        loop {
            {
                let world = &mut *self.world.lock();
                if world.violation.is_some() {
                    return;
                }
                if rules::is_through(world) {
                    break;
                }
                if world.now() > healed + PATIENCE {
                    world.violate(|| "stuck: records that never end".into());
                    return;
                }
            }
            pause(5).await;
        }
        rules::all_ended(&mut self.world.lock());
        // Whoever was thrown out has yet to notice, and every status to be published anew.
        let ended = self.world.lock().now();
        loop {
            pause(250).await;
            let world = &mut *self.world.lock();
            let running = self.running.lock().expect("never poisoned");
            let status =
                |host: &Host| rules::unaccounted(world.plan.delivery, &host.status.borrow()).cloned();
            let Some(partition) = running.values().find_map(status) else { return };
            if world.now() > ended + PATIENCE {
                return world.violate(|| format!("accounts that do not add up: {partition:?}"));
            }
        }
    }
}
