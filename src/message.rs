//! What is published: pure data between `encode` and a sink.
//!
//! Knows neither how it came out of a log nor which broker takes it.

use std::borrow::Cow;
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

    /// The topic as a log line or an error may name it: without the row's key, where a template
    /// has put it there.
    pub(crate) fn topic_shown(&self) -> Cow<'_, str> {
        match self.key.as_deref().map(std::str::from_utf8) {
            Some(Ok(key)) => without_key(&self.topic, key),
            Some(Err(_)) | None => Cow::Borrowed(&self.topic),
        }
    }

    /// Bytes of key, value, headers and topic: what counts against a batch's and a broker's
    /// limits, without the framing that each broker adds.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self.headers().map(|(name, value)| name.len() + value.len()).sum();
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        self.topic.len() + length(&self.key) + length(&self.value) + headers
    }
}

/// A name with each of its parts that is the key replaced by `{key}`: keys may be personal, and
/// have no place in a log.
pub(crate) fn without_key<'a>(name: &'a str, key: &str) -> Cow<'a, str> {
    if key.is_empty() || !name.contains(key) {
        return Cow::Borrowed(name);
    }
    // A key with dots of its own stands in no single part.
    if key.contains('.') {
        return Cow::Owned(name.replace(key, "{key}"));
    }
    let parts: Vec<&str> =
        name.split('.').map(|part| if part == key { "{key}" } else { part }).collect();
    Cow::Owned(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_without_the_key_and_else_as_it_is() {
        for (name, key, shown) in [
            ("orders.7", "7", "orders.{key}"),
            ("7.orders.7", "7", "{key}.orders.{key}"),
            ("orders7.77", "7", "orders7.77"),
            ("orders.ann@example.com", "ann@example.com", "orders.{key}"),
            ("orders", "", "orders"),
        ] {
            assert_eq!(without_key(name, key), shown);
        }
    }
}
