//! Preconditions: what exactly-once delivery asks of a chain and of its tables, beyond what every
//! pipeline needs. Checked at the start, and by `sluice check`, before any record is read.

use std::collections::BTreeMap;

use crate::config::PipelineConfig;
use crate::domain::intent::bounds;
use crate::domain::row::Output;

/// A pipeline with what its mapper fills.
pub type Filled<'a> = (&'a PipelineConfig, &'a [Output]);

/// Most INSERTs into a table whose outcome may be unknown at once: those it must remember by their
/// tokens, or one that is repeated adds its rows again.
///
/// A lane has at most [`bounds::PENDING_BATCHES`] pending batches, each of which is one INSERT for each
/// output, and at worst every partition is a lane of its own (a host for each). All outputs of all
/// pipelines that go into the table count, whatever their delivery: they take places in its memory
/// too. `partitions` says how many a topic has; one that is not known counts as none.
///
/// The INSERTs that others add between a crash and the recovery are not bounded by anything;
/// [`TableSchema::require_deduplication`](crate::clickhouse::schema::TableSchema::require_deduplication)
/// has a floor for them.
pub fn pending_inserts(table: &str, pipelines: &[Filled<'_>], partitions: &BTreeMap<String, usize>) -> u64 {
    let of_pipeline = |(pipeline, outputs): &Filled<'_>| {
        let outputs = outputs.iter().filter(|output| pipeline.table(&output.name) == table).count();
        let partitions: usize = pipeline.topics.iter().filter_map(|topic| partitions.get(topic)).sum();
        outputs * partitions
    };
    (pipelines.iter().map(of_pipeline).sum::<usize>() * bounds::PENDING_BATCHES) as u64
}

/// What keeps a chain from exactly-once delivery, with the cure: its revisions have to fit into an
/// intent.
pub fn chain_fault(pipeline: &PipelineConfig, validators: usize) -> Option<String> {
    (validators > bounds::VALIDATORS).then(|| {
        let (name, most) = (&pipeline.name, bounds::VALIDATORS);
        format!(
            "pipelines.{name}: {validators} validators, and exactly-once delivery knows at most {most} (their \
             revisions go into Kafka's commit metadata): put rules together into fewer modules, or set \
             pipelines.{name}.delivery to at-least-once"
        )
    })
}
