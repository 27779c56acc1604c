//! Offsets: commits of the consumer group, fenced by its membership.

use std::sync::Arc;

use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::domain::retry::Retryability;
use crate::pipeline::ports::{CommitPoint, KafkaError, OffsetStore};

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
    async fn commit(&self, points: Vec<CommitPoint>) -> Result<(), KafkaError> {
        let consumer = self.consumer.clone();
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
            Ok(answer) => answer.map_err(|error| refused(&error)),
            Err(error) => Err(KafkaError {
                retryability: Retryability::Retry,
                message: format!("the commit did not run: {error}"),
            }),
        }
    }
}

/// A member that the group no longer knows can commit nothing: its partitions are someone else's.
fn refused(error: &ClientError) -> KafkaError {
    let fenced = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::FencedInstanceId
        )
    );
    KafkaError {
        retryability: if fenced { Retryability::Permanent } else { Retryability::Retry },
        message: format!("kafka refuses the offsets: {error}"),
    }
}
