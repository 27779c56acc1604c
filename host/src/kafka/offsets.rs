//! Offsets: commits of the consumer group, fenced by its membership.

use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::pipeline::ports::{Commit, CommitError, CommitPoint, OffsetStore};

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
            let list = list(&points)?;
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

/// Points as librdkafka takes them.
pub(super) fn list(points: &[CommitPoint]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(points.len());
    for point in points {
        let mut element = list.add_partition(&point.topic, point.partition);
        element.set_offset(Offset::Offset(point.offset))?;
        element.set_metadata(&point.metadata);
    }
    Ok(list)
}
