//! What is published: pure data between `encode` and a sink.
//!
//! Knows neither how it came out of a log nor which broker takes it.

use std::sync::Arc;

use bytes::Bytes;

use crate::identity::RowIdentity;

/// Name of the header that carries the row's id column.
pub const HEADER_ID: &str = "id";
/// Name of the header that carries the row's type column.
pub const HEADER_TYPE: &str = "type";
/// Name of the header that carries the row's identity in the log, see [`RowIdentity`].
pub const HEADER_IDENTITY: &str = "walpost-identity";

/// One event on its way to a broker.
///
/// All `Bytes` are slices of what was read from the database; a clone copies no payload, but
/// keeps the whole buffer alive that it was read into.
#[derive(Debug, Clone)]
pub struct Message {
    /// Kafka topic, AMQP exchange, NATS subject.
    pub topic: Arc<str>,
    /// Order domain of the row; `None` promises no order.
    pub key: Option<Bytes>,
    /// Payload, untouched. `None` is a tombstone where the sink knows one, else empty.
    pub value: Option<Bytes>,
    /// The row's id column as text; header [`HEADER_ID`].
    pub id: Option<Bytes>,
    /// The row's type column; header [`HEADER_TYPE`].
    pub event_type: Option<Bytes>,
    /// The row's own headers, in their order, after `id` and `type`.
    pub headers: Vec<Header>,
    /// `created_at` where the table has one, else commit time: microseconds since 1970, UTC.
    pub timestamp_micros: i64,
    /// Explicit partition, for brokers that have partitions.
    pub partition: Option<i32>,
    /// Where the row stands in the log; what brokers deduplicate by.
    pub identity: RowIdentity,
}

/// A header that the row brought along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// UTF-8, as the row spelt it.
    pub name: Box<str>,
    /// The value's bytes; text of the row's JSON string, or the JSON text of another value.
    pub value: Bytes,
}

impl Message {
    /// `id`, `type` and the row's own headers, in that order. The identity is not among them:
    /// a sink writes [`HEADER_IDENTITY`] from [`RowIdentity::text`], without allocating here.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        let id = self.id.iter().map(|id| (HEADER_ID, id));
        let event_type = self.event_type.iter().map(|event_type| (HEADER_TYPE, event_type));
        let own = self.headers.iter().map(|header| (&*header.name, &header.value));
        id.chain(event_type).chain(own)
    }

    /// Bytes of key, value, headers and topic: what counts against a batch's and a broker's
    /// limits, without the framing that each broker adds.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self.headers().map(|(name, value)| name.len() + value.len()).sum();
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        self.topic.len() + length(&self.key) + length(&self.value) + headers
    }
}
