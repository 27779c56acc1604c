//! The result of an audit: a table for people, or one JSON object for scripts.

use std::io::Write;

use serde_json::{Value, json};

use crate::domain::audit::{Offsets, PartitionAudit};
use crate::domain::ledger::PartitionId;

/// A partition that was looked at.
#[derive(Clone, Debug)]
pub(super) struct AuditedPartition {
    pub(super) id: PartitionId,
    /// Offset from which on it was looked at.
    pub(super) start: i64,
    /// Offset up to which; `None` where the group has committed nothing.
    pub(super) committed: Option<i64>,
    /// Batches that are listed as pending there.
    pub(super) pending_batches: usize,
    /// Offsets of this partition in them.
    pub(super) pending_records: u64,
    pub(super) audit: PartitionAudit,
}

/// A pipeline that was looked at.
#[derive(Clone, Debug)]
pub(super) struct AuditedPipeline {
    pub(super) name: String,
    pub(super) group: String,
    pub(super) tables: Vec<String>,
    pub(super) dead_letter_topic: String,
    pub(super) partitions: Vec<AuditedPartition>,
}

impl AuditedPipeline {
    /// Whether every record is where it has to be, once.
    pub(super) fn is_clean(&self) -> bool {
        self.partitions.iter().all(|partition| partition.audit.is_clean())
    }

    fn sum(&self, of: impl Fn(&AuditedPartition) -> u64) -> u64 {
        self.partitions.iter().map(of).sum()
    }
}

/// What can be wrong with records: key in JSON, words for people, and the offsets.
fn findings(audit: &PartitionAudit) -> [(&'static str, &'static str, &Offsets); 4] {
    [
        ("missing", "in no table and not in the dead-letter topic", &audit.missing),
        ("repeated_rows", "in a table more often than the modules make them", &audit.repeated_rows),
        ("repeated_dead_letters", "in the dead-letter topic more than once", &audit.repeated_letters),
        ("inserted_and_dead_lettered", "in a table and in the dead-letter topic", &audit.both),
    ]
}

/// Prints the result.
pub(super) fn print(pipelines: &[AuditedPipeline], json: bool, out: &mut impl Write) -> std::io::Result<()> {
    if json {
        let clean = pipelines.iter().all(AuditedPipeline::is_clean);
        let pipelines: Vec<Value> = pipelines.iter().map(as_json).collect();
        serde_json::to_writer_pretty(&mut *out, &json!({ "ok": clean, "pipelines": pipelines }))?;
        return writeln!(out);
    }
    for pipeline in pipelines {
        for_people(pipeline, out)?;
    }
    out.flush()
}

fn for_people(pipeline: &AuditedPipeline, out: &mut impl Write) -> std::io::Result<()> {
    let AuditedPipeline { name, group, tables, dead_letter_topic, partitions } = pipeline;
    let tables = tables.join(", ");
    writeln!(out, "pipeline {name}: group {group}, table {tables}, dead letters {dead_letter_topic}")?;
    let title =
        ["from", "committed", "consumed", "inserted", "filtered", "dead-lettered", "missing", "in flight"];
    let width = partitions.iter().map(|partition| partition.id.topic.len() + 5).max().unwrap_or(0).max(9);
    write!(out, "{:<width$}", "partition")?;
    title.iter().try_for_each(|title| write!(out, " {title:>13}"))?;
    writeln!(out)?;
    for partition in partitions {
        let AuditedPartition { id, start, committed, pending_records, audit, .. } = partition;
        write!(out, "{:<width$}", format!("{}/{}", id.topic, id.partition))?;
        write!(out, " {start:>13}")?;
        match committed {
            Some(committed) => write!(out, " {committed:>13}")?,
            None => write!(out, " {:>13}", "nothing")?,
        }
        let counts =
            [audit.consumed(), audit.inserted, audit.filtered, audit.dead_lettered, audit.missing.count];
        counts.iter().try_for_each(|count| write!(out, " {count:>13}"))?;
        writeln!(out, " {pending_records:>13}")?;
    }
    for partition in partitions {
        for (_, words, offsets) in findings(&partition.audit) {
            if offsets.count > 0 {
                let (topic, number) = (&partition.id.topic, partition.id.partition);
                let records = if offsets.count == 1 { "record" } else { "records" };
                let (count, listed) = (offsets.count, listed(offsets));
                writeln!(out, "{topic}/{number}: {count} {records} {words}: {listed}")?;
            }
        }
    }
    if pipeline.sum(|partition| partition.audit.filtered + partition.audit.missing.count) > 0 {
        writeln!(
            out,
            "filtered and missing are told apart by the modules as they are now; a rule that has changed since \
             can mislead"
        )?;
    }
    let counts = totals(pipeline).map(|(key, count)| format!("{key}={count}"));
    writeln!(out, "audit: {}", counts.join(" "))
}

fn totals(pipeline: &AuditedPipeline) -> [(&'static str, u64); 9] {
    let of = |of: fn(&PartitionAudit) -> u64| pipeline.sum(|partition| of(&partition.audit));
    [
        ("consumed", of(PartitionAudit::consumed)),
        ("inserted", of(|audit| audit.inserted)),
        ("filtered", of(|audit| audit.filtered)),
        ("dead_lettered", of(|audit| audit.dead_lettered)),
        ("missing", of(|audit| audit.missing.count)),
        ("repeated_rows", of(|audit| audit.repeated_rows.count)),
        ("repeated_dead_letters", of(|audit| audit.repeated_letters.count)),
        ("inserted_and_dead_lettered", of(|audit| audit.both.count)),
        ("in_flight", pipeline.sum(|partition| partition.pending_records)),
    ]
}

/// `3, 7-9 and more`: both ends are records.
fn listed(offsets: &Offsets) -> String {
    let ranges = offsets.ranges.iter().map(|(start, end)| match end - start {
        1 => start.to_string(),
        _ => format!("{start}-{}", end - 1),
    });
    let more = if offsets.more { " and more" } else { "" };
    ranges.collect::<Vec<_>>().join(", ") + more
}

fn as_json(pipeline: &AuditedPipeline) -> Value {
    let partitions = pipeline.partitions.iter().map(|partition| {
        let AuditedPartition { id, start, committed, pending_batches, pending_records, audit } = partition;
        let mut value = json!({
            "topic": &*id.topic,
            "partition": id.partition,
            "from": start,
            "committed": committed,
            "consumed": audit.consumed(),
            "inserted": audit.inserted,
            "filtered": audit.filtered,
            "dead_lettered": audit.dead_lettered,
            "in_flight": { "batches": pending_batches, "records": pending_records },
        });
        for (key, _, offsets) in findings(audit) {
            let ranges: Vec<Value> = offsets
                .ranges
                .iter()
                .map(|(start, end)| json!({ "first": start, "last": end - 1 }))
                .collect();
            value[key] = json!({ "count": offsets.count, "ranges": ranges, "more": offsets.more });
        }
        value
    });
    let partitions: Vec<Value> = partitions.collect();
    let totals: serde_json::Map<String, Value> =
        totals(pipeline).into_iter().map(|(key, count)| (key.to_owned(), count.into())).collect();
    json!({
        "pipeline": pipeline.name,
        "group": pipeline.group,
        "tables": pipeline.tables,
        "dead_letter_topic": pipeline.dead_letter_topic,
        "ok": pipeline.is_clean(),
        "totals": totals,
        "partitions": partitions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> AuditedPipeline {
        let partition = |number, committed, audit| AuditedPartition {
            id: PartitionId { topic: "purchases".into(), partition: number },
            start: 0,
            committed,
            pending_batches: usize::from(number == 0),
            pending_records: if number == 0 { 200 } else { 0 },
            audit,
        };
        let mut wrong = PartitionAudit::new(2);
        (wrong.inserted, wrong.filtered, wrong.dead_lettered) = (4_000, 7, 90);
        wrong.missing = Offsets { count: 9, ranges: vec![(17, 18), (20, 25)], more: true };
        wrong.repeated_rows = Offsets { count: 1, ranges: vec![(30, 31)], more: false };
        AuditedPipeline {
            name: "purchases".into(),
            group: "sluice-purchases".into(),
            tables: vec!["purchases".into()],
            dead_letter_topic: "purchases.dead-letters".into(),
            partitions: vec![partition(0, Some(4_106), wrong), partition(1, None, PartitionAudit::new(2))],
        }
    }

    fn printed(json: bool) -> String {
        let mut out = Vec::new();
        print(&[pipeline()], json, &mut out).expect("printed");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_table_for_people() {
        insta::assert_snapshot!(printed(false));
    }

    #[test]
    fn one_object_for_scripts() {
        insta::assert_snapshot!(printed(true));
    }
}
