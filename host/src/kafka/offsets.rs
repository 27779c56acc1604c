//! Offsets: commits of the consumer group, fenced by its membership.

use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::pipeline::ports::{Commit, CommitError, OffsetStore};

use super::intake::GroupConsumer;

/// See the module documentation.
#[derive(Clone)]
pub struct GroupOffsets {
    consumer: Arc<GroupConsumer>,
}

impl GroupOffsets {
    pub(super) fn new(consumer: Arc<GroupConsumer>) -> Self {
        Self { consumer }
    }
}

impl OffsetStore for GroupOffsets {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let consumer = self.consumer.clone();
        let points = commit.points;
        let commit = move || {
            let mut list = TopicPartitionList::with_capacity(points.len());
            for point in &points {
                list.add_partition_offset(&point.topic, point.partition, Offset::Offset(point.offset))?;
                if let Some(mut element) = list.find_partition(&point.topic, point.partition) {
                    element.set_metadata(&point.metadata);
                }
            }
            consumer.commit(&list, CommitMode::Sync)
        };
        match tokio::task::spawn_blocking(commit).await {
            Ok(answer) => {
                answer.map_err(|error| CommitError::Refused(format!("kafka refuses the offsets: {error}")))
            }
            Err(error) => Err(CommitError::Refused(format!("the commit did not run: {error}"))),
        }
    }
}
