//! Copy: the way of a message into the columns of a chunk, the same whenever it is read.

use std::borrow::Cow;

use crate::domain::chunk::{ChunkBuilder, content_bytes};

use super::queue::Message;

/// A message that is about to be copied.
pub(super) struct Copy<'m> {
    offset: i64,
    timestamp: i64,
    key: Option<&'m [u8]>,
    payload: Option<&'m [u8]>,
    headers: Vec<(Cow<'m, str>, Option<&'m [u8]>)>,
    bytes: usize,
}

impl<'m> Copy<'m> {
    pub(super) fn of(message: &Message<'m>) -> Self {
        let (key, payload, headers) = (message.key(), message.payload(), message.headers());
        let bytes = content_bytes(key, payload, headers.iter().map(|(name, value)| (&**name, *value)));
        Self { offset: message.offset(), timestamp: message.timestamp(), key, payload, headers, bytes }
    }

    /// Bytes of its content.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it must go into the next chunk.
    pub(super) fn is_refused_by(&self, builder: &ChunkBuilder) -> bool {
        builder.refuses(self.offset, self.bytes)
    }

    /// Copies it.
    pub(super) fn push_to(&self, builder: &mut ChunkBuilder) {
        let headers = self.headers.iter().map(|(name, value)| (&**name, *value));
        builder.push(self.offset, self.timestamp, self.key, self.payload, headers);
    }
}
