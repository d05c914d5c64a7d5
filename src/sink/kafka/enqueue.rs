//! From messages to librdkafka's queue, in order.
//!
//! Owns the form of a record on Kafka. Knows no verdict and no topic's limits.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::flights::{FlightId, Flights, Landing, Outcome};
use super::options::Timestamp;
use super::producer::{Batching, Generation, code};
use crate::message::{HEADER_IDENTITY, Message};

/// A full queue makes room with a report; should that slip by unseen, this is soon enough.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(20);

/// Messages of one batch on their way through one producer.
pub(super) struct Flight {
    pub(super) generation: Arc<Generation>,
    pub(super) batching: Batching,
    pub(super) id: FlightId,
    pub(super) numbers: Vec<usize>,
    pub(super) landing: oneshot::Receiver<Landing>,
}

/// Enqueues the messages in order. A full queue makes it wait, and go on where it stopped.
pub(super) async fn send(
    generation: Arc<Generation>,
    batching: Batching,
    numbers: Vec<usize>,
    batch: &[Message],
    timestamp: Timestamp,
) -> Flight {
    let (id, landing) = generation.flights.register(numbers.len());
    let mut next = 0;
    loop {
        next = enqueue(&generation, id.slot, &numbers, batch, next, timestamp);
        if next == numbers.len() {
            break;
        }
        // Either way it is time to try again.
        drop(tokio::time::timeout(ROOM_WAIT_MAX, generation.flights.room()).await);
    }
    Flight { generation, batching, id, numbers, landing }
}

/// Enqueues from `first` on; returns how far it came before the queue was full. Once a message
/// is refused for another reason, it and all behind it are reported as failed.
fn enqueue(
    generation: &Generation,
    slot: usize,
    numbers: &[usize],
    batch: &[Message],
    first: usize,
    timestamp: Timestamp,
) -> usize {
    let producer = generation.live();
    let mut refusal = match producer {
        Some(_) => None,
        None => Some(RDKafkaErrorCode::DestroyBroker),
    };
    for (place, number) in numbers.iter().enumerate().skip(first) {
        let opaque = Flights::opaque(slot, place);
        if let (Some(producer), None) = (&producer, refusal) {
            match producer.send(record(&batch[*number], opaque, timestamp)) {
                Ok(()) => continue,
                Err((error, _)) if code(&error) == RDKafkaErrorCode::QueueFull => return place,
                Err((error, _)) => refusal = Some(code(&error)),
            }
        }
        let code = refusal.expect("nothing is skipped without a reason");
        generation.flights.report(opaque, Outcome::Failed(code));
    }
    numbers.len()
}

fn record(
    message: &Message,
    opaque: usize,
    timestamp: Timestamp,
) -> BaseRecord<'_, [u8], [u8], usize> {
    let identity = message.identity.text();
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len() + 3);
    for (key, value) in message.headers() {
        headers = headers.insert(Header { key, value: Some(&value[..]) });
    }
    headers = headers.insert(Header { key: HEADER_IDENTITY, value: Some(identity.as_str()) });
    let mut record = BaseRecord::with_opaque_to(&message.topic, opaque).headers(headers);
    record.key = message.key.as_deref();
    record.payload = message.value.as_deref();
    record.partition = message.partition;
    match timestamp {
        // To librdkafka 0 means now, and to the broker a negative one is an error.
        Timestamp::Row => record.timestamp(message.timestamp_micros.div_euclid(1000).max(1)),
        Timestamp::Now => record,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::scripted::message;

    #[test]
    fn a_null_payload_is_a_tombstone_and_an_empty_one_is_not() {
        let mut message = message("a", 1);
        for value in [None, Some(&b""[..]), Some(b"{}")] {
            message.value = value.map(Into::into);
            let record = record(&message, 0, Timestamp::Row);
            assert_eq!(record.payload, value);
            assert_eq!(record.key, Some(&b"a"[..]));
        }
    }

    #[test]
    fn a_record_carries_the_rows_time_or_none_of_its_own() {
        let mut message = message("a", 1);
        message.timestamp_micros = 1_700_000_000_123_456;
        let of_row = record(&message, 0, Timestamp::Row).timestamp;
        assert_eq!(of_row, Some(1_700_000_000_123));
        assert_eq!(record(&message, 0, Timestamp::Now).timestamp, None);
    }
}
