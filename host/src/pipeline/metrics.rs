//! Metrics of the flow. Label values are bounded: pipelines, topics and partitions of this host,
//! module names, and closed sets of words.

use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, exponential_buckets,
};

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct PipelineMetrics {
    /// Records taken in, by partition.
    pub consumed: IntCounterVec,
    /// Records with a row in ClickHouse, by partition.
    pub inserted: IntCounterVec,
    /// Records that gave no row, by partition.
    pub filtered: IntCounterVec,
    /// Records in the dead-letter topic, by partition.
    pub dead_lettered: IntCounterVec,
    /// Records on their way when their partition went; whoever has it next reads them again.
    pub abandoned: IntCounterVec,
    /// Records on their way, by partition.
    pub in_flight: IntGaugeVec,
    /// Records between the committed offset and the end, by partition.
    pub lag: IntGaugeVec,
    /// Dead letters by kind and module.
    pub dead_letters: IntCounterVec,
    /// Bytes of the in-flight budget that are taken.
    pub in_flight_bytes: IntGaugeVec,
    /// Batches inserted.
    pub batches: IntCounterVec,
    /// Seconds that inserting a batch takes.
    pub batch_seconds: HistogramVec,
    /// Batches cut in two because ClickHouse refused them.
    pub recuts: IntCounterVec,
    /// Pending batches formed again, by whether they came out the same.
    pub recoveries: IntCounterVec,
    /// Repeated attempts, by operation.
    pub retries: IntCounterVec,
    /// Rebalances, by what happened.
    pub rebalances: IntCounterVec,
    /// Partitions that are assigned, and held for rows that the tables have already.
    pub held: IntGaugeVec,
    /// 1 for each module of the chain.
    pub revisions: IntGaugeVec,
    /// 1 when records can go through.
    pub ready: IntGaugeVec,
}

const PARTITION: [&str; 3] = ["pipeline", "topic", "partition"];

impl PipelineMetrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When one of the names is taken.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let seconds = HistogramOpts::new(
            "sluice_batch_seconds",
            "Time from sending a batch to ClickHouse's last answer, retries included",
        )
        .buckets(exponential_buckets(0.005, 2.5, 12)?);
        Ok(Self {
            consumed: counter("sluice_records_consumed_total", "Records taken in from Kafka", &PARTITION)?,
            inserted: counter(
                "sluice_records_inserted_total",
                "Records with a row in ClickHouse",
                &PARTITION,
            )?,
            filtered: counter(
                "sluice_records_filtered_total",
                "Records that the mapper gave no row, on purpose",
                &PARTITION,
            )?,
            dead_lettered: counter(
                "sluice_records_dead_lettered_total",
                "Records published to the dead-letter topic",
                &PARTITION,
            )?,
            abandoned: counter(
                "sluice_records_abandoned_total",
                "Records on their way when their partition went; its next owner reads them again",
                &PARTITION,
            )?,
            in_flight: gauge("sluice_records_in_flight", "Records consumed and not settled yet", &PARTITION)?,
            lag: gauge(
                "sluice_lag_records",
                "Records between the committed offset and the end of the partition",
                &PARTITION,
            )?,
            dead_letters: counter(
                "sluice_dead_letters_total",
                "Dead letters by kind and by the module (or table) that refused the record",
                &["pipeline", "kind", "module"],
            )?,
            in_flight_bytes: gauge(
                "sluice_in_flight_bytes",
                "Bytes held between intake and settlement",
                &["pipeline"],
            )?,
            batches: counter("sluice_batches_total", "Batches inserted", &["pipeline"])?,
            batch_seconds: register(registry, HistogramVec::new(seconds, &["pipeline"])?)?,
            recuts: counter(
                "sluice_recuts_total",
                "Batches cut in two because ClickHouse refused their rows",
                &["pipeline"],
            )?,
            recoveries: counter(
                "sluice_recoveries_total",
                "Batches left pending by an earlier owner that were formed again: the same, or different",
                &["pipeline", "result"],
            )?,
            retries: counter(
                "sluice_retries_total",
                "Repeated attempts: insert, ask, dead_letter, recover or commit",
                &["pipeline", "operation"],
            )?,
            rebalances: counter(
                "sluice_rebalances_total",
                "Partitions assigned, revoked or lost",
                &["pipeline", "event"],
            )?,
            held: gauge(
                "sluice_partitions_held",
                "Partitions that are not read, since the tables have rows of records that Kafka calls unread",
                &["pipeline"],
            )?,
            revisions: gauge(
                "sluice_revision_info",
                "1 for every module of the running chain",
                &["pipeline", "module", "stage", "revision"],
            )?,
            ready: gauge("sluice_ready", "1 when records can go through", &["pipeline"])?,
        })
    }

    /// Makes the series of a pipeline that have no other labels than fixed words, so that a rate
    /// begins at zero and not at the first event.
    pub fn begin(&self, pipeline: &str) {
        self.batches.with_label_values(&[pipeline]);
        self.recuts.with_label_values(&[pipeline]);
        self.held.with_label_values(&[pipeline]);
        for operation in ["insert", "reinsert", "ask", "dead_letter", "recover", "commit"] {
            self.retries.with_label_values(&[pipeline, operation]);
        }
        for result in ["same", "different"] {
            self.recoveries.with_label_values(&[pipeline, result]);
        }
        for event in ["assigned", "revoked", "lost"] {
            self.rebalances.with_label_values(&[pipeline, event]);
        }
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
