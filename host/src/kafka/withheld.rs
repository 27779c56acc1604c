//! Withheld: partitions that are assigned, but not read yet, since the tables are asked first.
//!
//! What Kafka says was consumed is what exactly-once stands on. Brokers can lose that: offsets expire while a
//! group is away, and a coordinator that reads its log in part answers with offsets of hours ago. A table
//! with provenance columns knows better: every row of a record that the group has yet to read was either
//! inserted under a commit that is gone, or the offsets were moved back on purpose. Neither is for this
//! process to decide, so such a partition is not read, and nothing that is pending there is settled,
//! until the offsets are mended or the pipeline allows it.
//!
//! State: the partitions, and the answers that are waited for. A partition in here is paused, has no slot, and
//! is not known to the flow.

use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use crate::domain::ledger::PartitionId;
use crate::pipeline::ports::{RowsAhead, Tables};

use super::position::Position;

/// Wait before the offsets, or the tables, are asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for librdkafka to move a partition that it does not read.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

type Answer = Receiver<Result<Vec<RowsAhead>, String>>;

/// Partitions of one assignment.
#[derive(Debug)]
struct Asking {
    positions: Vec<Position>,
    answer: Option<Answer>,
    /// When to ask again.
    not_before: Option<Instant>,
    /// The tables said that they have rows of all of these.
    is_held: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    asking: Vec<Asking>,
}

/// What came of a look at the withheld partitions.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// May be read.
    pub(super) free: Vec<Position>,
    /// Must not, and why.
    pub(super) held: Vec<(PartitionId, String)>,
    /// Whether the tables could be asked, or why not; none where no answer was due.
    pub(super) tables: Option<Result<(), String>>,
}

impl Withheld {
    pub(super) fn is_empty(&self) -> bool {
        self.asking.is_empty()
    }

    pub(super) fn add(&mut self, positions: Vec<Position>) {
        if !positions.is_empty() {
            self.asking.push(Asking { positions, answer: None, not_before: None, is_held: false });
        }
    }

    /// How many partitions the tables have rows of; the others were not answered for yet.
    pub(super) fn held(&self) -> usize {
        self.asking.iter().filter(|asking| asking.is_held).map(|asking| asking.positions.len()).sum()
    }

    /// Forgets a partition that went; whether it was here.
    pub(super) fn remove(&mut self, partition: &PartitionId) -> bool {
        let is_it = |position: &Position| position.partition == *partition;
        let found = self.asking.iter().any(|asking| asking.positions.iter().any(is_it));
        for asking in &mut self.asking {
            asking.positions.retain(|position| !is_it(position));
        }
        self.asking.retain(|asking| !asking.positions.is_empty());
        found
    }

    /// Asks what is due to be asked and hears what was answered. `look_up` finds out again where partitions
    /// are to be read from.
    pub(super) fn look(
        &mut self,
        tables: &dyn Tables,
        look_up: impl Fn(&TopicPartitionList) -> Result<Vec<Position>, String>,
    ) -> Looked {
        let mut looked = Looked::default();
        for asking in &mut self.asking {
            let Some(answer) = &mut asking.answer else {
                asking.ask(tables, &look_up, &mut looked);
                continue;
            };
            let answer = match answer.try_recv() {
                Err(TryRecvError::Empty) => continue,
                Err(TryRecvError::Closed) => Err("the question was not answered".to_owned()),
                Ok(answer) => answer,
            };
            asking.answer = None;
            asking.not_before = Some(Instant::now() + PAUSE);
            match answer {
                Err(reason) => looked.tables = Some(Err(reason)),
                Ok(ahead) => {
                    looked.tables = Some(Ok(()));
                    let is_ahead =
                        |position: &Position| ahead.iter().any(|rows| rows.partition == position.partition);
                    let (held, free) = std::mem::take(&mut asking.positions).into_iter().partition(is_ahead);
                    asking.positions = held;
                    asking.is_held = true;
                    looked.free.extend(free);
                    // Some may have gone since it was asked.
                    let is_here = |rows: &&RowsAhead| {
                        asking.positions.iter().any(|position| position.partition == rows.partition)
                    };
                    let held = ahead.iter().filter(is_here);
                    looked.held.extend(held.map(|rows| (rows.partition.clone(), text(rows))));
                }
            }
        }
        self.asking.retain(|asking| !asking.positions.is_empty());
        looked
    }
}

impl Asking {
    fn ask(
        &mut self,
        tables: &dyn Tables,
        look_up: impl Fn(&TopicPartitionList) -> Result<Vec<Position>, String>,
        looked: &mut Looked,
    ) {
        if let Some(not_before) = self.not_before {
            if Instant::now() < not_before {
                return;
            }
            // The offsets may have been mended meanwhile.
            let mut partitions = TopicPartitionList::new();
            for Position { partition, .. } in &self.positions {
                partitions.add_partition(&partition.topic, partition.partition);
            }
            match look_up(&partitions) {
                Ok(positions) => self.positions = positions,
                Err(reason) => {
                    looked.tables = Some(Err(reason));
                    self.not_before = Some(Instant::now() + PAUSE);
                    return;
                }
            }
        }
        let start = |position: &Position| (position.partition.clone(), position.read_from.unwrap_or(0));
        self.answer = Some(tables.rows_ahead(self.positions.iter().map(start).collect()));
    }
}

fn text(RowsAhead { partition, start, table, rows, first, last }: &RowsAhead) -> String {
    format!(
        "kafka: topic {}, partition {} is not read: the group's offset is {start}, but table {table} has {rows} \
         rows of offsets {first} to {last} already, which would be there twice. If the brokers lost commits, \
         restart the broker that coordinates the group, which then reads them anew, or set the group's offset \
         to {}; if the offset was moved on purpose or the topic was made anew, delete these rows, or set \
         allow_replay: true for the pipeline",
        partition.topic,
        partition.partition,
        last + 1
    )
}

/// Moves partitions that are paused to where they are to be read from, and reads on.
pub(super) fn read_on<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    positions: &[Position],
) -> Result<(), KafkaError> {
    let mut partitions = TopicPartitionList::with_capacity(positions.len());
    for Position { partition, read_from, .. } in positions {
        let offset = read_from.map_or(Offset::Stored, Offset::Offset);
        partitions.add_partition_offset(&partition.topic, partition.partition, offset)?;
    }
    let moved = consumer.seek_partitions(partitions.clone(), SEEK_TIMEOUT)?;
    for element in moved.elements() {
        element.error()?;
    }
    consumer.resume(&partitions)
}
