//! Process: one run of a host, which may freeze at any moment, and go on, and die at every await.
//!
//! Everything that a process does is polled through [`Process::run`]: its flow, its intake, its
//! calls through the ports. Not polled, it stands still; what it has sent is on its way regardless.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::world::Shared;

/// A place in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) member: u64,
    pub(crate) generation: i32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    Frozen,
    Dead,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// Polls until it dies.
    polls_left: Option<u64>,
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

/// What the intake of a process knows of its group.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    /// As which member commits are fenced; none after the membership was lost.
    pub(crate) membership: Option<Membership>,
    /// The membership was lost; the partitions are still to be given up.
    pub(crate) lost: bool,
    /// The group wants to be joined again.
    pub(crate) rejoin: bool,
    /// A join is under way.
    pub(crate) joining: bool,
    /// It is to stop in order.
    pub(crate) stopping: bool,
    /// Its flow has ended.
    pub(crate) flow_ended: bool,
}

/// See the module documentation.
pub(crate) struct Process {
    /// Number of the run, over all hosts.
    pub(crate) number: u64,
    pub(crate) host: usize,
    pub(crate) world: Shared,
    inner: Mutex<Inner>,
    standing: Mutex<Standing>,
    /// The standing changed.
    pub(crate) moved: Notify,
    /// The flow did something.
    pub(crate) flow_polled: Notify,
    /// It is dead, or has ended, or was replaced.
    pub(crate) gone: Notify,
}

impl Process {
    pub(crate) fn new(world: Shared, host: usize, number: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            host,
            world,
            inner: Mutex::default(),
            standing: Mutex::default(),
            moved: Notify::new(),
            flow_polled: Notify::new(),
            gone: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("never poisoned")
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.standing.lock().expect("never poisoned")
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.standing.lock().expect("never poisoned"));
        self.moved.notify_one();
    }

    /// Writes a line of the trace about this process.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        self.world.note(|| format!("host {} run {}: {}", self.host, self.number, line()));
    }

    /// Starts a task that dies with the process.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let process = self.clone();
        let handle = tokio::spawn(async move {
            if AssertUnwindSafe(process.run(task)).catch_unwind().await.is_err() {
                process.world.lock().violate(|| "a task panicked".into());
            }
        });
        let mut inner = self.inner();
        match inner.state {
            State::Dead => handle.abort(),
            _ => inner.tasks.push(handle.abort_handle()),
        }
    }

    /// Polls `part` for as long as the process lives, and only while it is not frozen.
    pub(crate) async fn run<F: Future>(&self, part: F) -> F::Output {
        let mut part = pin!(part);
        std::future::poll_fn(|context| match self.admit(context) {
            true => part.as_mut().poll(context),
            false => Poll::Pending,
        })
        .await
    }

    fn admit(&self, context: &Context<'_>) -> bool {
        let mut inner = self.inner();
        match inner.state {
            State::Dead => return false,
            State::Frozen => {
                inner.waiting.push(context.waker().clone());
                return false;
            }
            State::Running => {}
        }
        match &mut inner.polls_left {
            Some(0) => {
                drop(inner);
                self.kill();
                false
            }
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    /// Lets it die after so many polls more.
    pub(crate) fn kill_after(&self, polls: u64) {
        self.inner().polls_left.get_or_insert(polls);
    }

    /// Takes [`Self::kill_after`] back.
    pub(crate) fn spare(&self) {
        self.inner().polls_left = None;
    }

    /// Ends it at once. Its memory is gone; what it has sent is not.
    pub(crate) fn kill(&self) {
        let mut inner = self.inner();
        if inner.state == State::Dead {
            return;
        }
        inner.state = State::Dead;
        inner.waiting.clear();
        for task in inner.tasks.drain(..) {
            task.abort();
        }
        drop(inner);
        self.note(|| "is dead".into());
        self.gone.notify_one();
    }

    /// Stops it in its tracks.
    pub(crate) fn freeze(&self) {
        let mut inner = self.inner();
        if inner.state == State::Running {
            inner.state = State::Frozen;
        }
    }

    /// Lets a frozen one go on as if nothing had happened.
    pub(crate) fn thaw(&self) {
        let mut inner = self.inner();
        if inner.state == State::Frozen {
            inner.state = State::Running;
        }
        for waker in inner.waiting.drain(..) {
            waker.wake();
        }
    }
}
