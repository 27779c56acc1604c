//! One pipeline: its adapters, put together with its flow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use crate::clickhouse::archive::RevisionArchive;
use crate::clickhouse::sink::ClickHouseSink;
use crate::config::{Config, Delivery, PipelineConfig};
use crate::domain::batch::BatchLimits;
use crate::domain::retry::{RetryPolicy, Retryability};
use crate::domain::verdict::DeadLetter;
use crate::kafka::client::client_config;
use crate::kafka::dead_letters::DeadLetterProducer;
use crate::kafka::intake::{Intake, IntakeCollaborators, IntakeSettings};
use crate::kafka::offsets::GroupOffsets;
use crate::kafka::slices::SliceReader;
use crate::kafka::transactions::{TransactionSettings, TransactionalOffsets};
use crate::pipeline::binding::ChainSlot;
use crate::pipeline::budget::Budget;
use crate::pipeline::flow::{Collaborators, Flow, FlowSettings};
use crate::pipeline::metrics::PipelineMetrics;
use crate::pipeline::ports::{
    Commit, CommitError, DeadLetterSink, KafkaError, OffsetStore, Tables, Unpublished,
};
use crate::pipeline::status::PipelineStatus;
use crate::pipeline::trouble::Trouble;
use crate::pipeline::workers::Workers;
use crate::shutdown::Shutdown;
use crate::wasm::ModuleRegistry;

use super::archive::PipelineArchive;
use super::tables::PipelineTables;

/// Events under way between the threads of a pipeline and its flow.
const EVENTS: usize = 1024;
/// Longest wait for dead letters that nobody waits for any more, when a pipeline closes.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for a record that is read again.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Where offsets and dead letters go, by what the pipeline promises.
enum Settlement {
    AtLeastOnce { offsets: GroupOffsets, dead_letters: Arc<DeadLetterProducer> },
    ExactlyOnce(TransactionalOffsets),
}

impl OffsetStore for Settlement {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        match self {
            Self::AtLeastOnce { offsets, .. } => offsets.commit(commit).await,
            Self::ExactlyOnce(offsets) => offsets.commit(commit).await,
        }
    }
}

impl DeadLetterSink for Settlement {
    async fn publish(&self, letters: &[DeadLetter]) -> Result<(), Unpublished> {
        match self {
            Self::AtLeastOnce { dead_letters, .. } => dead_letters.publish(letters).await,
            Self::ExactlyOnce(_) => {
                let message =
                    "exactly-once they go into the commits; this is a defect of sluice, please report it";
                let error = KafkaError { retryability: Retryability::Permanent, message: message.to_owned() };
                Err(Unpublished { places: (0..letters.len()).collect(), error })
            }
        }
    }
}

/// What the start has made ready for a pipeline.
pub(super) struct Parts {
    pub(super) chain: ChainSlot,
    pub(super) sink: Arc<ClickHouseSink>,
    pub(super) revisions: RevisionArchive,
    pub(super) modules: Arc<ModuleRegistry>,
    pub(super) workers: Workers,
    pub(super) metrics: PipelineMetrics,
    pub(super) budget: Budget,
    pub(super) status: watch::Sender<PipelineStatus>,
}

/// What the transactions of a pipeline are made with.
pub(super) fn transaction_settings(config: &Config, pipeline: &PipelineConfig) -> TransactionSettings {
    TransactionSettings {
        topics: pipeline.topics.clone(),
        group: pipeline.group.clone(),
        instance: config.kafka.instance(),
        dead_letter_topic: pipeline.dead_letter_topic.clone(),
        pipeline: pipeline.name.clone(),
    }
}

/// Starts a pipeline; the future ends when it has drained.
pub(super) fn start_pipeline(
    config: &Config,
    pipeline: &PipelineConfig,
    parts: Parts,
    shutdown: Shutdown,
) -> Result<impl Future<Output = Result<()>> + Send + 'static> {
    let client = client_config(&config.kafka);
    let chain = parts.chain;
    let tables =
        PipelineTables { chain: chain.clone(), sink: parts.sink.clone(), runtime: Handle::current() };
    let must_ask = pipeline.delivery == Delivery::ExactlyOnce && !pipeline.allow_replay;
    let (events, heard) = mpsc::channel(EVENTS);
    let intake = Intake::start(
        client.clone(),
        IntakeSettings {
            topics: pipeline.topics.clone(),
            group: pipeline.group.clone(),
            start: pipeline.start.as_str(),
            delivery: pipeline.delivery,
            drain_timeout: config.resources.drain_timeout,
        },
        IntakeCollaborators {
            events,
            workers: parts.workers,
            chain: chain.clone(),
            budget: parts.budget.clone(),
            tables: must_ask.then(|| Arc::new(tables) as Arc<dyn Tables>),
        },
    )
    .with_context(|| format!("pipelines.{}: the kafka consumer does not start", pipeline.name))?;
    // Outlives the flow, to be flushed.
    let mut producer = None;
    let settlement = match pipeline.delivery {
        Delivery::AtLeastOnce => {
            let dead_letters =
                DeadLetterProducer::new(client.clone(), &pipeline.dead_letter_topic, &pipeline.name)
                    .with_context(|| {
                        format!("pipelines.{}: the dead-letter producer does not start", pipeline.name)
                    })?;
            let dead_letters = producer.insert(Arc::new(dead_letters)).clone();
            Settlement::AtLeastOnce { offsets: intake.offset_store(), dead_letters }
        }
        Delivery::ExactlyOnce => {
            let settings = transaction_settings(config, pipeline);
            let offsets = intake.transactional_offsets(client.clone(), settings).with_context(|| {
                format!("pipelines.{}: the transactional producer does not start", pipeline.name)
            })?;
            Settlement::ExactlyOnce(offsets)
        }
    };
    let settlement = Arc::new(settlement);
    let archive = PipelineArchive {
        pipeline: pipeline.clone(),
        limits: super::module_limits(config, pipeline),
        records: SliceReader::new(client, READ_PATIENCE),
        revisions: parts.revisions,
        registry: parts.modules,
        sink: parts.sink.clone(),
        last: Default::default(),
    };
    let flow = Flow::new(
        FlowSettings {
            pipeline: pipeline.name.as_str().into(),
            delivery: pipeline.delivery,
            batch: BatchLimits {
                rows: pipeline.batch.rows,
                bytes: pipeline.batch.bytes as usize,
                linger: pipeline.batch.linger,
            },
            concurrent_inserts: pipeline.batch.concurrent_inserts,
            drain_timeout: config.resources.drain_timeout,
            retry: RetryPolicy::default(),
        },
        Collaborators {
            sink: parts.sink,
            dead_letters: settlement.clone(),
            offsets: settlement,
            archive: Arc::new(archive),
            chain,
            budget: parts.budget,
            trouble: Trouble::default(),
            metrics: parts.metrics,
            entropy: Arc::new(rand::random::<u128>),
            status: parts.status,
        },
    );
    let stopper = intake.stopper();
    Ok(async move {
        let token = shutdown.token();
        let stop = tokio::spawn(async move {
            token.cancelled().await;
            stopper.stop();
        });
        let ended = flow.run(heard).await;
        stop.abort();
        // Leaving the group and flushing block, and need what the flow held to be gone, as it is.
        let closed = tokio::task::spawn_blocking(move || {
            intake.close();
            if let Some(producer) = producer {
                producer.flush(FLUSH_TIMEOUT);
            }
        });
        closed.await?;
        Ok(ended?)
    })
}
