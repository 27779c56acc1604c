//! Workers: the threads that run guests. Runtime threads never do.
//!
//! Every thread keeps one runner for each chain that it met lately; a runner owns wasm instances
//! and is never shared. The job queue is short: what waits in it is covered by the byte budget.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::mpsc;

use super::binding::BoundChain;
use super::event::{DeathNotice, Event, Judged, Taken};
use super::ports::ChainRunner;

/// Chains that a worker keeps runners for: the running one and its predecessor.
const RUNNERS_KEPT: usize = 2;

/// A chunk to judge, and where to send the verdicts.
pub struct Job {
    /// The chunk.
    pub taken: Taken,
    /// Its pipeline.
    pub events: mpsc::Sender<Event>,
}

/// Handle on the worker threads; they end when every handle and clone of the queue is gone.
#[derive(Clone, Debug)]
pub struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    /// Starts `count` threads. Join them after the last handle is dropped.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(count: usize) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (jobs, queue) = bounded(count * 2);
        let threads = (0..count)
            .map(|index| {
                let queue = queue.clone();
                std::thread::Builder::new().name(format!("wasm-{index}")).spawn(move || run(&queue))
            })
            .collect::<Result<_, _>>()?;
        Ok((Self { jobs }, threads))
    }

    /// Offers a chunk to the next free worker, without waiting.
    ///
    /// # Errors
    /// When all are busy and the queue is full, or when they are gone.
    pub fn offer(&self, job: Job) -> Result<(), Refused> {
        self.jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(job) => Refused::Full(Box::new(job)),
            TrySendError::Disconnected(_) => Refused::Gone,
        })
    }
}

/// Why a chunk was not taken.
pub enum Refused {
    /// No room: offer it again.
    Full(Box<Job>),
    /// No worker.
    Gone,
}

fn run(queue: &Receiver<Job>) {
    let mut runners: Vec<(Arc<BoundChain>, Box<dyn ChainRunner>)> = Vec::new();
    for Job { mut taken, events } in queue {
        let notice = DeathNotice::new(&events, "a wasm worker thread");
        let position = match runners.iter().position(|(chain, _)| Arc::ptr_eq(chain, &taken.chain)) {
            Some(position) => position,
            None => {
                if runners.len() == RUNNERS_KEPT {
                    runners.remove(0);
                }
                runners.push((taken.chain.clone(), taken.chain.chain.runner()));
                runners.len() - 1
            }
        };
        let verdicts = Arc::new(runners[position].1.run(&taken.chunk));
        taken.hold.grow(verdicts.footprint());
        // An error means that the pipeline has ended: the records are read again after a restart.
        let _ = events.blocking_send(Event::Judged(Judged { taken, verdicts }));
        drop(notice);
    }
}
