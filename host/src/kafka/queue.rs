//! Queue: one librdkafka queue to which the queues of all assigned partitions are forwarded.
//!
//! Reading many messages a call from such a queue costs less than half of what `poll` costs a
//! message (docs/ARCHITECTURE.md), and not reading from it holds records back without pausing
//! partitions, which would throw prefetched records away. `rdkafka` does not wrap these calls, so
//! this file is where they are made safe.
//!
//! Invariant: the queue is destroyed before the client that it belongs to ([`MessageQueue::close`]).

#![expect(unsafe_code, reason = "librdkafka's batch interface is not wrapped by the rdkafka crate")]

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::Timestamp;
use rdkafka_sys as sys;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct MessageQueue(Mutex<Option<Pointers>>);

#[derive(Debug)]
struct Pointers {
    client: *mut sys::rd_kafka_t,
    queue: *mut sys::rd_kafka_queue_t,
}

// SAFETY: librdkafka's handles may be used from any thread; the mutex keeps `close` apart from use.
unsafe impl Send for Pointers {}

/// A message that librdkafka still owns.
pub(super) struct Message<'a> {
    raw: &'a sys::rd_kafka_message_t,
    client: *mut sys::rd_kafka_t,
}

impl MessageQueue {
    /// A queue without a client yet.
    pub(super) fn detached() -> Self {
        Self(Mutex::new(None))
    }

    /// Makes the queue on a client.
    ///
    /// # Safety
    /// `client` must stay valid until [`Self::close`] was called.
    pub(super) unsafe fn attach(&self, client: *mut sys::rd_kafka_t) {
        // SAFETY: the client is valid, by this function's contract.
        let queue = unsafe { sys::rd_kafka_queue_new(client) };
        *self.pointers() = Some(Pointers { client, queue });
    }

    /// Destroys the queue; messages in it are dropped. Later calls on it do nothing.
    pub(super) fn close(&self) {
        if let Some(pointers) = self.pointers().take() {
            // SAFETY: made by `attach` and destroyed only here; the client is still valid.
            unsafe { sys::rd_kafka_queue_destroy(pointers.queue) };
        }
    }

    /// Lets the messages of a partition come here rather than to the consumer's own queue. To be
    /// called before the partition is assigned.
    pub(super) fn forward(&self, topic: &str, partition: i32) {
        let guard = self.pointers();
        let (Some(pointers), Ok(topic)) = (&*guard, CString::new(topic)) else { return };
        // SAFETY: client and queue are valid; the handle on the partition's queue is ours to destroy.
        unsafe {
            let source = sys::rd_kafka_queue_get_partition(pointers.client, topic.as_ptr(), partition);
            if !source.is_null() {
                sys::rd_kafka_queue_forward(source, pointers.queue);
                sys::rd_kafka_queue_destroy(source);
            }
        }
    }

    /// Waits up to `timeout` for messages and hands at most `maximum` to `consume`. Returns how
    /// many there were. Messages of partitions that were unassigned meanwhile do not appear.
    pub(super) fn read(
        &self,
        timeout: Duration,
        maximum: usize,
        mut consume: impl FnMut(Message<'_>),
    ) -> usize {
        let guard = self.pointers();
        let Some(pointers) = &*guard else { return 0 };
        let mut buffer: Vec<*mut sys::rd_kafka_message_t> = vec![ptr::null_mut(); maximum];
        // SAFETY: the queue is valid, and the buffer has room for `maximum` pointers.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(
                pointers.queue,
                timeout.as_millis() as i32,
                buffer.as_mut_ptr(),
                maximum,
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        for message in &buffer[..count] {
            // SAFETY: librdkafka filled the first `count` pointers with messages that are ours to
            // destroy; `Message` cannot outlive the call.
            unsafe {
                consume(Message { raw: &**message, client: pointers.client });
                sys::rd_kafka_message_destroy(*message);
            }
        }
        count
    }

    /// End of a partition, as far as the client has heard of it; no request is made.
    pub(super) fn end_offset(&self, topic: &str, partition: i32) -> Option<i64> {
        let guard = self.pointers();
        let pointers = guard.as_ref()?;
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client is valid while the pointers are there.
        unsafe { end_offset(pointers.client, &topic, partition) }
    }

    fn pointers(&self) -> MutexGuard<'_, Option<Pointers>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Message<'a> {
    /// Error that librdkafka reports in place of a message.
    pub(super) fn error(&self) -> Option<String> {
        if self.raw.err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: the message is valid; librdkafka answers with a C string that lives as long.
        let text = unsafe { CStr::from_ptr(sys::rd_kafka_message_errstr(self.raw)) };
        Some(text.to_string_lossy().into_owned())
    }

    /// Whether it stands for the end of a partition.
    pub(super) fn is_partition_end(&self) -> bool {
        self.raw.err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF
    }

    /// Whether the error stands for records that cannot be read, behind which librdkafka goes on.
    pub(super) fn is_unreadable(&self) -> bool {
        use sys::rd_kafka_resp_err_t as Code;
        matches!(
            self.raw.err,
            Code::RD_KAFKA_RESP_ERR__BAD_MSG
                | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
                | Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED
        )
    }

    /// Identity of the topic, for comparison among the messages of one read.
    pub(super) fn topic_identity(&self) -> *const c_void {
        self.raw.rkt.cast_const().cast()
    }

    /// Name of the topic.
    pub(super) fn topic(&self) -> &'a str {
        if self.raw.rkt.is_null() {
            return "";
        }
        // SAFETY: a message holds its topic, whose name is a C string that lives as long.
        unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.raw.rkt)) }.to_str().unwrap_or_default()
    }

    /// Partition.
    pub(super) fn partition(&self) -> i32 {
        self.raw.partition
    }

    /// Offset.
    pub(super) fn offset(&self) -> i64 {
        self.raw.offset
    }

    /// End of its partition, as far as the client has heard of it; no request is made.
    pub(super) fn partition_end(&self) -> Option<i64> {
        let topic = CString::new(self.topic()).ok()?;
        // SAFETY: the queue is not closed while one of its messages is looked at, so the client is valid.
        unsafe { end_offset(self.client, &topic, self.raw.partition) }
    }

    /// Payload.
    pub(super) fn payload(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka's pointer and length describe one buffer that lives as the message.
        unsafe { bytes(self.raw.payload, self.raw.len) }
    }

    /// Key.
    pub(super) fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: as above.
        unsafe { bytes(self.raw.key, self.raw.key_len) }
    }

    /// Milliseconds since 1970-01-01 UTC, -1 where the message has none.
    pub(super) fn timestamp(&self) -> i64 {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid and `kind` is ours.
        let timestamp = unsafe { sys::rd_kafka_message_timestamp(self.raw, &raw mut kind) };
        match kind {
            sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => {
                Timestamp::NotAvailable.to_millis().unwrap_or(-1)
            }
            _ => timestamp,
        }
    }

    /// Headers in order. Names are UTF-8 by Kafka's protocol; one that is not is shown lossily.
    pub(super) fn headers(&self) -> Vec<(std::borrow::Cow<'a, str>, Option<&'a [u8]>)> {
        let mut found = Vec::new();
        let mut headers = ptr::null_mut();
        let none = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        // SAFETY: the message is valid; it owns its headers, and names and values live as long.
        unsafe {
            if sys::rd_kafka_message_headers(self.raw, &raw mut headers) != none {
                return found;
            }
            let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
            while sys::rd_kafka_header_get_all(
                headers,
                found.len(),
                &raw mut name,
                &raw mut value,
                &raw mut length,
            ) == none
            {
                found.push((CStr::from_ptr(name).to_string_lossy(), bytes(value.cast_mut(), length)));
            }
        }
        found
    }
}

/// # Safety
/// `client` is valid.
unsafe fn end_offset(client: *mut sys::rd_kafka_t, topic: &CStr, partition: i32) -> Option<i64> {
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is valid by this function's contract, and the two integers are ours.
    let error = unsafe {
        sys::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &raw mut low, &raw mut high)
    };
    (error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}

/// # Safety
/// `pointer` is null, or `length` bytes are readable there for `'a`.
unsafe fn bytes<'a>(pointer: *mut c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: by this function's contract.
    (!pointer.is_null()).then(|| unsafe { std::slice::from_raw_parts(pointer.cast(), length) })
}
