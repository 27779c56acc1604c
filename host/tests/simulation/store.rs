//! Store: the group's offsets as a process commits them: in transactions exactly-once, plainly at-least-once.
//!
//! A transaction is driven as a real client drives it: what is not answered is asked again, what cannot
//! be known any more is concluded by a producer that begins anew, and then looked up.

use std::sync::{Arc, Mutex};

use tokio::time::{Duration, sleep};

use sluice::domain::ledger::Delivery;
use sluice::pipeline::ports::{Commit, CommitError, OffsetStore};

use crate::offsets::{Letter, Point, Refusal, add_letters, add_offsets, begin_producer, commit_plainly, end};
use crate::planted::Planted;
use crate::planting;
use crate::process::{Membership, Process};
use crate::world::{Server, World};

/// The producer of a process: its epoch, once it has one, and how many transactions it began.
#[derive(Clone, Copy, Default)]
struct Producer {
    epoch: Option<i64>,
    begun: u64,
}

/// See the module documentation.
pub(crate) struct Store {
    process: Arc<Process>,
    producer: Mutex<Producer>,
}

/// What became of a transaction.
enum Attempt {
    Committed,
    /// It was aborted.
    Refused(String),
    /// The producer is fenced; the transaction may have been committed before.
    Fenced,
}

impl Store {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        Self { process, producer: Mutex::default() }
    }

    /// Asks Kafka until it answers.
    async fn ask<R: Send + 'static>(
        &self,
        effect: impl Fn(&mut World) -> Result<R, Refusal> + Clone + Send + 'static,
    ) -> Result<R, Refusal> {
        loop {
            let answer = self.process.world.ask(self.process.host, Server::Kafka, effect.clone()).await;
            match answer {
                Ok(Err(Refusal::Concurrent)) | Err(_) => sleep(Duration::from_millis(3)).await,
                Ok(answer) => return answer,
            }
        }
    }

    /// Begins the producer anew: whatever it had open has been concluded when this returns.
    pub(crate) async fn begin_producer(&self) {
        let host = self.process.host;
        let epoch = self.ask(move |world| begin_producer(world, host)).await;
        self.process.note(|| format!("its producer has epoch {epoch:?}"));
        *self.producer.lock().expect("never poisoned") = Producer { epoch: epoch.ok(), begun: 0 };
    }

    async fn attempt(
        &self,
        epoch: i64,
        membership: Membership,
        points: &[Point],
        letters: &[Letter],
    ) -> Attempt {
        let host = self.process.host;
        let number = {
            let mut producer = self.producer.lock().expect("never poisoned");
            producer.begun += 1;
            ((epoch as u64) << 32) + producer.begun
        };
        let (points, letters) = (points.to_vec(), letters.to_vec());
        let mut done = Ok(());
        if !letters.is_empty() {
            done = self.ask(move |world| add_letters(world, host, epoch, number, letters.clone())).await;
        }
        if done.is_ok() {
            let offsets =
                move |world: &mut World| add_offsets(world, host, epoch, number, membership, &points);
            done = self.ask(offsets).await;
        }
        let commit = done.is_ok();
        if matches!(done, Err(Refusal::Fenced | Refusal::State)) {
            return Attempt::Fenced;
        }
        match self.ask(move |world| end(world, host, epoch, number, commit)).await {
            Ok(()) if commit => Attempt::Committed,
            Ok(()) => Attempt::Refused("the group has another generation".into()),
            Err(_) => Attempt::Fenced,
        }
    }

    /// Whether what is committed is exactly this.
    async fn is_committed(&self, points: &[Point]) -> bool {
        let points = points.to_vec();
        let look = move |world: &mut World| {
            let mut equal = true;
            for (partition, offset, metadata) in &points {
                let Some(committed) = world.kafka.offsets.stable(*partition) else {
                    return Err(Refusal::Concurrent);
                };
                equal &= committed.offset == *offset && committed.metadata == *metadata;
            }
            Ok(equal)
        };
        self.ask(look).await == Ok(true)
    }

    async fn commit_in_transaction(
        &self,
        membership: Membership,
        points: &[Point],
        letters: &[Letter],
    ) -> Result<(), CommitError> {
        let producer = *self.producer.lock().expect("never poisoned");
        let Some(epoch) = producer.epoch else {
            return Err(CommitError::Refused("no producer".into()));
        };
        match self.attempt(epoch, membership, points, letters).await {
            Attempt::Committed => return Ok(()),
            Attempt::Refused(reason) => return Err(CommitError::Refused(reason)),
            Attempt::Fenced => {}
        }
        self.begin_producer().await;
        if self.is_committed(points).await {
            return Ok(());
        }
        Err(CommitError::Refused("the transaction was aborted".into()))
    }

    async fn commit_plainly(&self, membership: Membership, points: Vec<Point>) -> Result<(), CommitError> {
        let commit = move |world: &mut World| commit_plainly(world, membership, &points);
        match self.process.world.ask(self.process.host, Server::Kafka, commit).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refusal)) => Err(CommitError::Refused(format!("{refusal:?}"))),
            Err(_) => Err(CommitError::Refused("no answer".into())),
        }
    }
}

impl OffsetStore for Store {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let commit = async {
            let Some(membership) = self.process.standing().membership else {
                self.process.note(|| "commit: not a member of the group".into());
                return Err(CommitError::Refused("not a member of the group".into()));
            };
            let plan = self.process.world.plan();
            let mut points: Vec<Point> = commit
                .points
                .into_iter()
                .map(|point| (point.partition as usize, point.offset, point.metadata))
                .collect();
            let mut letters: Vec<Letter> = commit
                .letters
                .iter()
                .map(|letter| (letter.chunk.partition as usize, letter.chunk.offset(letter.index as usize)))
                .collect();
            planting::into_commit(&self.process.world, &mut points, &mut letters);
            let overlaps = plan.planted == Some(Planted::Overlapping) && letters.is_empty();
            let answer = if plan.delivery == Delivery::AtLeastOnce || overlaps {
                self.commit_plainly(membership, points).await
            } else {
                self.commit_in_transaction(membership, &points, &letters).await
            };
            self.process.note(|| format!("commit: {answer:?}"));
            answer
        };
        self.process.run(commit).await
    }
}
