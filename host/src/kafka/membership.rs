//! Membership: the consumer's place in its group, as a transaction carries it to the group coordinator.
//!
//! The coordinator refuses offsets of a member or generation that it no longer knows, but takes those
//! of generation -1 without a member: a host that has lost its membership would not be fenced at all.
//! `rdkafka` hides both values, so this file is where librdkafka's calls are made safe.
//!
//! Invariant: a [`Membership`] names a member and a generation.

#![expect(unsafe_code, reason = "the rdkafka crate does not show the generation and the member id")]

use std::ffi::CStr;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::Consumer;
use rdkafka::error::{RDKafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka_sys as sys;

use super::intake::GroupConsumer;

/// See the module documentation.
pub(super) struct Membership(*mut sys::rd_kafka_consumer_group_metadata_t);

/// Why a step of a transaction failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code:?})")]
pub(super) struct TransactionFault {
    pub(super) code: RDKafkaErrorCode,
    pub(super) message: String,
    /// The same call is to be made again.
    pub(super) retriable: bool,
}

// SAFETY: librdkafka's group metadata is a value that nothing changes once it is made, and belongs to no thread.
unsafe impl Send for Membership {}
// SAFETY: as above.
unsafe impl Sync for Membership {}

impl From<RDKafkaError> for TransactionFault {
    fn from(error: RDKafkaError) -> Self {
        Self { code: error.code(), message: error.string(), retriable: error.is_retriable() }
    }
}

impl Membership {
    /// The membership at this moment; `None` where the consumer has none. No request is made.
    pub(super) fn of(consumer: &GroupConsumer) -> Option<Self> {
        // SAFETY: the client is alive, and what it answers is ours to destroy.
        let raw = unsafe { sys::rd_kafka_consumer_group_metadata(consumer.client().native_ptr()) };
        if raw.is_null() {
            return None;
        }
        let membership = Self(raw);
        // SAFETY: the pointer is valid until it is dropped; the member id is a C string in it, or null.
        let (generation, member) = unsafe {
            (
                sys::rd_kafka_consumer_group_metadata_generation_id(raw),
                sys::rd_kafka_consumer_group_metadata_member_id(raw),
            )
        };
        // SAFETY: as above.
        let named = !member.is_null() && unsafe { !CStr::from_ptr(member).is_empty() };
        (generation >= 0 && named).then_some(membership)
    }

    /// Adds offsets to the transaction that `producer` has begun. Blocking, about `timeout`; or for ever, where
    /// librdkafka forgets about it.
    pub(super) fn send_offsets<C: ClientContext>(
        &self,
        producer: &Client<C>,
        offsets: &TopicPartitionList,
        timeout: Duration,
    ) -> Result<(), TransactionFault> {
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: producer, list and membership are alive; librdkafka copies what it keeps.
        let error = unsafe {
            sys::rd_kafka_send_offsets_to_transaction(producer.native_ptr(), offsets.ptr(), self.0, timeout)
        };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the error is valid until it is destroyed, here; its text is a C string in it.
        unsafe {
            let fault = TransactionFault {
                code: sys::rd_kafka_error_code(error).into(),
                message: CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy().into_owned(),
                retriable: sys::rd_kafka_error_is_retriable(error) != 0,
            };
            sys::rd_kafka_error_destroy(error);
            Err(fault)
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // SAFETY: made by `of` and destroyed only here.
        unsafe { sys::rd_kafka_consumer_group_metadata_destroy(self.0) };
    }
}
