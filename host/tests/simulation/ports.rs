//! Ports: ClickHouse, the dead-letter topic and the archive as a process reaches them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::time::{Duration, sleep};

use sluice::domain::chunk::Chunk;
use sluice::domain::intent::IntentSlice;
use sluice::domain::retry::Retryability;
use sluice::domain::verdict::{ChunkVerdicts, DeadLetter, Revision};
use sluice::pipeline::binding::{BoundChain, TableBinding};
use sluice::pipeline::ports::{
    Archive, DeadLetterSink, Forced, InsertError, InsertRequest, KafkaError, Reread, Sink, Unpublished,
};

use crate::clickhouse;
use crate::planted::Planted;
use crate::process::Process;
use crate::rules;
use crate::world::{Server, World};

/// See the module documentation.
pub(crate) struct Ports {
    process: Arc<Process>,
    /// Tokens that a planted bug put in the place of others.
    tokens: Mutex<BTreeMap<String, String>>,
}

impl Ports {
    pub(crate) fn new(process: Arc<Process>) -> Self {
        Self { process, tokens: Mutex::default() }
    }

    async fn ask<R: Send + 'static>(
        &self,
        server: Server,
        effect: impl FnOnce(&mut World) -> R + Send + 'static,
    ) -> Option<R> {
        let ask = async { self.process.world.ask(self.process.host, server, effect).await.ok() };
        self.process.run(ask).await
    }

    fn spoil(&self, request: &mut InsertRequest) {
        let world = &mut *self.process.world.lock();
        match world.plan.planted {
            Some(Planted::RandomPieces) if request.token.contains('.') => {
                let tokens = &mut *self.tokens.lock().expect("never poisoned");
                let fresh = || format!("{}-{}", request.token, world.random.bits());
                request.token = tokens.entry(request.token.clone()).or_insert_with(fresh).clone();
            }
            Some(Planted::InsertAfterRevocation) if self.process.standing().membership.is_none() => {
                request.token.clear();
            }
            _ => {}
        }
    }
}

fn no_answer() -> InsertError {
    InsertError { retryability: Retryability::Retry, code: None, message: "no answer".into() }
}

impl Sink for Ports {
    async fn insert(&self, mut request: InsertRequest) -> Result<(), InsertError> {
        let begin = async { self.spoil(&mut request) };
        self.process.run(begin).await;
        let answer = self.ask(Server::ClickHouse, move |world| clickhouse::insert(world, &request));
        if self.process.world.plan().planted == Some(Planted::CommitBeforeInsert) {
            // The request is on its way, and nobody waits for what becomes of it.
            drop(futures::FutureExt::now_or_never(answer));
            return Ok(());
        }
        answer.await.unwrap_or_else(|| Err(no_answer()))
    }

    async fn held(&self, table: &TableBinding, slice: &IntentSlice) -> Result<Vec<i64>, InsertError> {
        let output = clickhouse::output_of(&table.table);
        let (partition, start, end) = (slice.partition.partition as usize, slice.start, slice.end);
        let look = move |world: &mut World| {
            let away = world.clickhouse.away_until > world.now() || world.fault(world.plan.insert_refusals);
            if world.plan.planted == Some(Planted::BelievedTokens) {
                return Some((start..end).collect());
            }
            (!away).then(|| clickhouse::held(world, output, partition, start, end))
        };
        self.ask(Server::ClickHouse, look).await.flatten().ok_or_else(no_answer)
    }
}

impl DeadLetterSink for Ports {
    async fn publish(&self, letters: &[DeadLetter]) -> Result<(), Unpublished> {
        let places: Vec<(usize, i64)> = letters
            .iter()
            .map(|letter| (letter.chunk.partition as usize, letter.chunk.offset(letter.index as usize)))
            .collect();
        let publish = move |world: &mut World| {
            world.note(|| format!("kafka: dead letters {places:?}"));
            for (partition, offset) in places {
                rules::letter_shown(world, partition, offset);
            }
        };
        self.ask(Server::Kafka, publish).await.ok_or_else(|| Unpublished {
            places: (0..letters.len()).collect(),
            error: KafkaError { retryability: Retryability::Retry, message: "no answer".into() },
        })
    }
}

impl Archive for Ports {
    async fn records(&self, slices: &[IntentSlice]) -> Result<Reread, KafkaError> {
        let slices = slices.to_vec();
        let read = move |world: &mut World| reread(world, &slices);
        self.ask(Server::Kafka, read)
            .await
            .ok_or(KafkaError { retryability: Retryability::Retry, message: "no answer".into() })
    }

    async fn chain(&self, revisions: &[Revision]) -> Result<Option<Arc<BoundChain>>, String> {
        let revisions = revisions.to_vec();
        let find = move |world: &mut World| {
            let gap = world.plan.archive_gap;
            let mut kept = world.chains.iter().enumerate().filter(|(number, _)| !gap || *number != 1);
            kept.find(|(_, chain)| chain.revisions() == revisions).map(|(_, chain)| chain.bound())
        };
        self.ask(Server::ClickHouse, find).await.ok_or_else(|| "no answer".to_owned())
    }

    async fn judge(
        &self,
        chain: &Arc<BoundChain>,
        chunk: Arc<Chunk>,
        forced: Vec<Forced>,
    ) -> Result<ChunkVerdicts, String> {
        let wait = {
            let world = &mut *self.process.world.lock();
            world.random.below(world.plan.judging + 1)
        };
        let judge = async {
            pause(wait).await;
            chain.chain.runner().run_again(&chunk, &forced)
        };
        Ok(self.process.run(judge).await)
    }
}

fn reread(world: &mut World, slices: &[IntentSlice]) -> Reread {
    let mut reread = Reread::default();
    for slice in slices {
        let partition = slice.partition.partition as usize;
        let most = world.random.between(1, 2 * world.plan.chunk) as usize;
        let log = &world.kafka.logs[partition];
        if log.start > slice.start {
            reread.lost.push(IntentSlice { end: slice.end.min(log.start), ..slice.clone() });
        }
        let mut next = slice.start;
        while let Some(chunk) = log.chunk(partition, next, slice.end, most) {
            next = chunk.end_offset();
            reread.chunks.push(chunk);
        }
    }
    reread
}

/// Waits so many milliseconds.
pub(crate) async fn pause(milliseconds: u64) {
    sleep(Duration::from_millis(milliseconds)).await;
}
