//! Host: a process with its parts put together: the real flow, over the ports of the world.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use sluice::domain::batch::BatchLimits;
use sluice::domain::ledger::Delivery;
use sluice::domain::retry::RetryPolicy;
use sluice::pipeline::binding::{BoundChain, ChainSlot};
use sluice::pipeline::budget::Budget;
use sluice::pipeline::flow::{Collaborators, Flow, FlowError, FlowSettings};
use sluice::pipeline::metrics::PipelineMetrics;
use sluice::pipeline::status::PipelineStatus;
use sluice::pipeline::trouble::Trouble;

use crate::intake::{Intake, heartbeats};
use crate::plan::{Plan, Random};
use crate::ports::Ports;
use crate::process::Process;
use crate::store::Store;
use crate::world::Shared;

/// A process and what can be seen of it from outside.
pub(crate) struct Host {
    pub(crate) process: Arc<Process>,
    pub(crate) chain: ChainSlot,
    pub(crate) status: watch::Receiver<PipelineStatus>,
}

/// Metrics of all flows of this thread: nothing depends on them, and making them takes long.
fn metrics() -> PipelineMetrics {
    thread_local! {
        static METRICS: PipelineMetrics =
            PipelineMetrics::register(&prometheus::Registry::new()).expect("metrics");
    }
    METRICS.with(PipelineMetrics::clone)
}

fn settings(plan: &Plan) -> FlowSettings {
    FlowSettings {
        pipeline: "simulation".into(),
        delivery: plan.delivery,
        batch: BatchLimits {
            rows: plan.batch_rows,
            bytes: 1 << 20,
            linger: Duration::from_millis(plan.linger),
        },
        concurrent_inserts: plan.concurrent_inserts,
        drain_timeout: Duration::from_millis(plan.drain_timeout),
        retry: RetryPolicy { initial: Duration::from_millis(4), maximum: Duration::from_millis(40) },
    }
}

impl Host {
    /// Starts a process of a host.
    pub(crate) fn start(world: &Shared, host: usize, number: u64, chain: Arc<BoundChain>) -> Self {
        let process = Process::new(world.clone(), host, number);
        process.note(|| format!("starts with {chain:?}"));
        let plan = world.plan();
        let chain = ChainSlot::new(chain);
        let budget = Budget::new(plan.budget);
        let (status_sender, status) = watch::channel(PipelineStatus::default());
        let (events, receiver) = mpsc::channel(*world.lock().random.pick(&[4, 64]));
        let entropy = Mutex::new(Random::new(world.lock().random.bits()));
        let ports = Arc::new(Ports::new(process.clone()));
        let store = Arc::new(Store::new(process.clone()));
        let flow = Flow::new(
            settings(&plan),
            Collaborators {
                sink: ports.clone(),
                dead_letters: ports.clone(),
                offsets: store.clone(),
                archive: ports,
                chain: chain.clone(),
                budget: budget.clone(),
                trouble: Trouble::default(),
                metrics: metrics(),
                entropy: Arc::new(move || {
                    let random = &mut *entropy.lock().expect("never poisoned");
                    u128::from(random.bits()) << 64 | u128::from(random.bits())
                }),
                status: status_sender,
            },
        );
        let intake = Intake::new(process.clone(), events, chain.clone(), budget);
        process.spawn({
            let process = process.clone();
            async move {
                if plan.delivery == Delivery::ExactlyOnce {
                    // Whatever the process before had open is concluded first.
                    store.begin_producer().await;
                }
                process.spawn(heartbeats(process.clone()));
                process.spawn(end_of_flow(process.clone(), flow.run(receiver)));
                intake.run().await;
                process.kill();
            }
        });
        Self { process, chain, status }
    }
}

/// Tells the intake each time that the flow did something, and when it has ended.
async fn end_of_flow(process: Arc<Process>, flow: impl Future<Output = Result<(), FlowError>>) {
    let mut flow = std::pin::pin!(flow);
    let result = std::future::poll_fn(|context| {
        let polled = flow.as_mut().poll(context);
        process.flow_polled.notify_one();
        polled
    })
    .await;
    match result {
        Ok(()) => process.note(|| "its flow has ended".into()),
        Err(FlowError::Unfinished { records, .. }) => {
            process.note(|| format!("its flow has ended, {records} records unfinished"));
        }
        Err(error @ FlowError::Broken { .. }) => {
            process.world.lock().violate(|| format!("a flow broke: {error}"));
        }
    }
    process.change(|standing| standing.flow_ended = true);
    process.flow_polled.notify_one();
}
