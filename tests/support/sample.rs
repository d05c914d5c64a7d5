//! Messages for tests that need some and do not care which.

use bytes::Bytes;
use walpost::{Fingerprint, LogId, Message, RowIdentity};

/// The `number`-th message of a run: key and value as given, identity and id from the number.
pub fn message(topic: &str, key: &str, value: impl Into<Bytes>, number: u64) -> Message {
    Message {
        topic: topic.into(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(value.into()),
        id: Some(Bytes::from(format!("00000000-0000-4000-8000-{number:012}"))),
        event_type: Some(Bytes::from_static(b"OrderCreated")),
        headers: Vec::new(),
        timestamp_micros: 1_790_000_000_000_000 + number as i64,
        partition: None,
        identity: RowIdentity {
            log: LogId::postgres(7_300_000_000_000_000_001),
            transaction: 0x1000 + number,
            ordinal: 0,
            fingerprint: Fingerprint(number),
        },
    }
}
