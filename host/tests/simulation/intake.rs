//! Intake: what `kafka/intake.rs` and `kafka/group.rs` do, against the world: membership, assignment
//! with what the metadata lists, chunks to workers that end in any order, the hand-over on revocation.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until};

use sluice::domain::chunk::{Chunk, ChunkBuilder};
use sluice::domain::intent::PendingBatches;
use sluice::domain::ledger::Epoch;
use sluice::domain::reading::{Arrival, ReadChunk, Reading};
use sluice::pipeline::binding::ChainSlot;
use sluice::pipeline::budget::Budget;
use sluice::pipeline::event::{Assignment, Event, Judged, Taken};

use crate::group::{Heartbeat, Joined, heartbeat, join, leave};
use crate::kafka::partition_id;
use crate::planted::Planted;
use crate::planting;
use crate::ports::pause;
use crate::process::Process;
use crate::rules;
use crate::world::{Server, World};

struct Slot {
    partition: usize,
    reading: Reading,
}

/// What came of a fetch.
struct Arrived {
    /// Offsets that were passed over, or began the partition anew.
    again: Vec<i64>,
    restarted: Option<Assignment>,
    chunk: Option<ReadChunk>,
}

impl Slot {
    /// Takes in what was fetched of a log that goes to `end`. Where there is a `restart`, the newest epoch,
    /// the partition begins anew at a record that comes again.
    fn arrive(&mut self, fetched: &Chunk, end: i64, mut restart: Option<&mut Epoch>) -> Arrived {
        let mut arrived = Arrived { again: Vec::new(), restarted: None, chunk: None };
        for index in 0..fetched.len() {
            let offset = fetched.offset(index);
            match self.reading.arrival(offset, || Some(end)) {
                Arrival::New => {}
                Arrival::Again => {
                    arrived.again.push(offset);
                    let Some(newest) = restart.as_deref_mut() else { continue };
                    *newest += 1;
                    let (partition, epoch) = (self.reading.partition().clone(), *newest);
                    self.reading = Reading::new(partition.clone(), epoch, offset);
                    let pending = PendingBatches::default();
                    let position = Some(offset);
                    arrived.restarted = Some(Assignment { partition, epoch, position, pending });
                }
                Arrival::OtherLog => unreachable!("logs only grow"),
            }
            let payload = fetched.record(index).payload;
            let push = |builder: &mut ChunkBuilder| builder.push(offset, 0, None, payload, []);
            let full = self.reading.take(offset, 1, push);
            assert!(full.is_none(), "a fetch is smaller than a chunk");
        }
        arrived.chunk = self.reading.finish();
        arrived
    }
}

/// See the module documentation.
pub(crate) struct Intake {
    pub(crate) process: Arc<Process>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) chain: ChainSlot,
    pub(crate) budget: Budget,
    slots: Vec<Slot>,
    epochs: Epoch,
    joining: Option<oneshot::Receiver<Joined>>,
    /// As which member to join again.
    member: Option<u64>,
}

impl Intake {
    pub(crate) fn new(
        process: Arc<Process>,
        events: mpsc::Sender<Event>,
        chain: ChainSlot,
        budget: Budget,
    ) -> Self {
        Self { process, events, chain, budget, slots: Vec::new(), epochs: 0, joining: None, member: None }
    }

    /// Reads until the flow has ended, then leaves the group.
    pub(crate) async fn run(mut self) {
        let mut stopped = false;
        let mut next_read = Instant::now();
        self.process.change(|standing| standing.rejoin = true);
        loop {
            let standing = self.process.standing();
            if standing.flow_ended {
                break;
            }
            if standing.stopping && !stopped {
                stopped = true;
                self.process.note(|| "stops reading".into());
                self.send(Event::IntakeStopped).await;
            }
            if standing.lost {
                (self.joining, self.member) = (None, None);
                self.revoke(|_| true, true).await;
                self.process.change(|standing| (standing.lost, standing.rejoin) = (false, true));
                continue;
            }
            if standing.rejoin && self.joining.is_none() {
                let cooperative = self.process.world.plan().cooperative;
                if !cooperative && !self.slots.is_empty() {
                    self.revoke(|_| true, false).await;
                    continue;
                }
                self.join();
            }
            let process = self.process.clone();
            tokio::select! {
                biased;
                joined = answer(&mut self.joining) => self.joined(joined).await,
                () = process.moved.notified() => {}
                () = sleep_until(next_read) => {
                    let wait = if stopped { 50 } else { self.read().await };
                    next_read = Instant::now() + Duration::from_millis(wait);
                }
            }
        }
        self.process.note(|| "leaves the group".into());
        if let Some(membership) = self.process.standing().membership {
            let left = move |world: &mut World| leave(world, membership.member);
            drop(self.process.world.ask(self.process.host, Server::Kafka, left));
        }
    }

    fn join(&mut self) {
        let (sender, receiver) = oneshot::channel();
        let (member, owned) = (self.member, self.slots.iter().map(|slot| slot.partition).collect());
        let request = move |world: &mut World| join(world, member, owned, sender);
        drop(self.process.world.ask(self.process.host, Server::Kafka, request));
        self.process.change(|standing| (standing.joining, standing.rejoin) = (true, false));
        self.joining = Some(receiver);
    }

    async fn joined(&mut self, joined: Option<Joined>) {
        self.joining = None;
        self.process.change(|standing| standing.joining = false);
        let (membership, partitions) = match joined {
            // The request was lost.
            None => {
                pause(10).await;
                return self.process.change(|standing| standing.rejoin = true);
            }
            Some(Joined::Unknown) => {
                return self.process.change(|standing| (standing.membership, standing.lost) = (None, true));
            }
            Some(Joined::Assigned { membership, partitions }) => (membership, partitions),
        };
        self.member = Some(membership.member);
        self.process.note(|| format!("is {membership:?} with {partitions:?}"));
        self.process.change(|standing| standing.membership = Some(membership));
        if self.slots.iter().any(|slot| !partitions.contains(&slot.partition)) {
            self.revoke(|partition| !partitions.contains(&partition), false).await;
            self.process.change(|standing| standing.rejoin = true);
        }
        let new: Vec<usize> = partitions
            .into_iter()
            .filter(|new| self.slots.iter().all(|slot| slot.partition != *new))
            .collect();
        if !new.is_empty() {
            self.assign(new).await;
        }
    }

    async fn assign(&mut self, partitions: Vec<usize>) {
        let committed = loop {
            let wanted = partitions.clone();
            let look = move |world: &mut World| {
                let read = |partition: &usize| {
                    let committed = world.kafka.offsets.stable(*partition)?;
                    let pending = committed.pending.clone();
                    Some((committed.offset, planting::into_pending(world, *partition, pending)))
                };
                wanted.iter().map(read).collect::<Option<Vec<_>>>()
            };
            match self.process.world.ask(self.process.host, Server::Kafka, look).await {
                Ok(Some(committed)) => break committed,
                _ => pause(3).await,
            }
        };
        let mut assigned = Vec::new();
        for (partition, (offset, pending)) in partitions.into_iter().zip(committed) {
            self.epochs += 1;
            let (id, epoch) = (partition_id(partition), self.epochs);
            let ends = pending.intents().iter().filter_map(|intent| intent.slice(&id)).map(|slice| slice.end);
            let next_offset = ends.fold(offset, i64::max);
            self.process.note(|| {
                let listed = rules::listed(&pending);
                format!("partition {partition} from {offset}, read on at {next_offset}, pending [{listed}]")
            });
            self.slots.push(Slot { partition, reading: Reading::new(id.clone(), epoch, next_offset) });
            assigned.push(Assignment { partition: id, epoch, position: Some(offset), pending });
        }
        self.send(Event::Assigned(assigned)).await;
    }

    /// Gives partitions up, and waits for as long as the flow takes to let them go.
    async fn revoke(&mut self, which: impl Fn(usize) -> bool, lost: bool) {
        let (gone, kept): (Vec<Slot>, Vec<Slot>) =
            std::mem::take(&mut self.slots).into_iter().partition(|slot| which(slot.partition));
        self.slots = kept;
        if gone.is_empty() {
            return;
        }
        let partitions: Vec<_> =
            gone.iter().map(|slot| (slot.reading.partition().clone(), slot.reading.epoch())).collect();
        let numbers: Vec<_> = partitions.iter().map(|(id, _)| id.partition).collect();
        self.process.note(|| format!("gives up {numbers:?}{}", if lost { ", lost" } else { "" }));
        let (release, released) = sync_channel(1);
        self.send(Event::Revoked { partitions, lost, release }).await;
        while released.try_recv() == Err(TryRecvError::Empty) {
            self.process.flow_polled.notified().await;
        }
        self.process.note(|| format!("released {numbers:?}"));
    }

    /// Takes records in, where there are any; returns the time until the next.
    async fn read(&mut self) -> u64 {
        let (wait, judging, arrived) = {
            let world = &mut *self.process.world.lock();
            if self.slots.is_empty() || self.budget.available() == 0 {
                return world.random.between(5, 20);
            }
            let index = world.random.below(self.slots.len() as u64) as usize;
            let most = world.random.between(1, world.plan.chunk) as usize;
            let (wait, judging) = (world.random.below(5), world.random.below(world.plan.judging + 1));
            let back = if world.random.chance(world.plan.again) { world.random.between(1, 6) } else { 0 };
            let slot = &mut self.slots[index];
            let log = &world.kafka.logs[slot.partition];
            let from = slot.reading.next_offset() - back as i64;
            let Some(fetched) = log.chunk(slot.partition, from, log.end, most) else { return 2 * wait + 1 };
            let restart = (world.plan.planted == Some(Planted::TakenForOtherLog)).then_some(&mut self.epochs);
            (wait, judging, slot.arrive(&fetched, log.end, restart))
        };
        let Arrived { again, restarted, chunk } = arrived;
        if !again.is_empty() {
            self.process.note(|| format!("is handed out {again:?} again"));
        }
        if let Some(assignment) = restarted {
            self.send(Event::Assigned(vec![assignment])).await;
        }
        if let Some(chunk) = chunk {
            self.dispatch(chunk, judging).await;
        }
        wait
    }

    async fn dispatch(&self, read: ReadChunk, judging: u64) {
        let ReadChunk { partition, epoch, sequence, chunk } = read;
        let hold = self.budget.take(chunk.footprint());
        let (records, end) = (chunk.len() as u64, chunk.end_offset());
        self.send(Event::Consumed { partition, epoch, records, end }).await;
        let mut taken = Taken { epoch, sequence, chunk, chain: self.chain.current(), hold };
        let events = self.events.clone();
        self.process.spawn(async move {
            pause(judging).await;
            let verdicts = Arc::new(taken.chain.chain.runner().run(&taken.chunk));
            taken.hold.grow(verdicts.footprint());
            // The flow may have ended.
            drop(events.send(Event::Judged(Judged { taken, verdicts })).await);
        });
    }

    async fn send(&self, event: Event) {
        // The flow may have ended.
        drop(self.events.send(event).await);
    }
}

/// What a join is answered, for ever nothing where none is under way.
async fn answer(joining: &mut Option<oneshot::Receiver<Joined>>) -> Option<Joined> {
    match joining {
        Some(receiver) => receiver.await.ok(),
        None => std::future::pending().await,
    }
}

/// Keeps the membership alive, and notices when it was lost.
pub(crate) async fn heartbeats(process: Arc<Process>) {
    let session = process.world.plan().session_timeout;
    let mut alive = Instant::now();
    loop {
        pause(session / 4).await;
        let standing = process.standing();
        let Some(membership) = standing.membership.filter(|_| !standing.joining && !standing.lost) else {
            alive = Instant::now();
            continue;
        };
        let beat = move |world: &mut World| heartbeat(world, membership);
        let answer = process.world.ask(process.host, Server::Kafka, beat).await;
        let standing = process.standing();
        if standing.membership != Some(membership) || standing.joining {
            continue;
        }
        match answer {
            Ok(Heartbeat::Alive) => alive = Instant::now(),
            Ok(Heartbeat::Rejoin) => {
                alive = Instant::now();
                process.change(|standing| standing.rejoin = true);
            }
            Err(_) if alive.elapsed() < Duration::from_millis(session) => {}
            Ok(Heartbeat::Unknown) | Err(_) => {
                process.note(|| "lost its membership".into());
                process.change(|standing| (standing.membership, standing.lost) = (None, true));
            }
        }
    }
}
