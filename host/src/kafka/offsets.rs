//! Offsets: commits of the consumer group, fenced by its membership.

use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::pipeline::ports::{Commit, CommitError, CommitPoint, OffsetStore};

use super::identity::TopicIdentities;
use super::intake::GroupConsumer;

/// See the module documentation.
#[derive(Clone)]
pub struct GroupOffsets {
    consumer: Arc<GroupConsumer>,
    identities: Arc<TopicIdentities>,
}

impl GroupOffsets {
    pub(super) fn new(consumer: Arc<GroupConsumer>, identities: Arc<TopicIdentities>) -> Self {
        Self { consumer, identities }
    }
}

impl OffsetStore for GroupOffsets {
    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let Self { consumer, identities } = self.clone();
        let commit = move || {
            identities.confirm(consumer.client(), topics(&commit.points))?;
            let committed = list(&commit.points).and_then(|list| consumer.commit(&list, CommitMode::Sync));
            committed.map_err(|error| CommitError::Refused(format!("kafka refuses the offsets: {error}")))
        };
        let done = tokio::task::spawn_blocking(commit).await;
        done.unwrap_or_else(|error| Err(CommitError::Refused(format!("the commit did not run: {error}"))))
    }
}

/// The topics of points.
pub(super) fn topics(points: &[CommitPoint]) -> impl Iterator<Item = &str> {
    points.iter().map(|point| &*point.topic)
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
