//! The rows of a binlog's backlog as messages, and a bare client of Kafka that sends them: what
//! any relay's sink could reach at most on this machine.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;
use walpost::{Fingerprint, LogId, RowIdentity};

use crate::support::broker::topic;

pub const AGGREGATE_TYPE: &str = "Order";
pub const EVENT_TYPE: &str = "OrderPlaced";

const KEYS: u64 = 1000;
const PAYLOAD_BYTES: usize = 200;
const FLUSH_MAX: Duration = Duration::from_secs(120);

/// A row.
pub struct Message {
    /// Ascends with the number, as an application's would that knows its index.
    pub id: Uuid,
    pub key: String,
    pub payload: String,
}

/// The row of a number, which JSON columns of both servers print as it is here.
pub fn message(number: u64) -> Message {
    let high = 0x0190_0000_0000_7000 | number << 16;
    let low = 0x8000_0000_0000_0000 | number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2;
    let frame = r#"{"row": "0000000000", "text": ""}"#.len();
    let text = "x".repeat(PAYLOAD_BYTES - frame);
    Message {
        id: Uuid::from_u64_pair(high, low),
        key: format!("order-{}", number % KEYS),
        payload: format!(r#"{{"row": "{number:010}", "text": "{text}"}}"#),
    }
}

/// Counts confirms.
#[derive(Default)]
struct Confirms(AtomicU64);

impl ClientContext for Confirms {}

impl ProducerContext for Confirms {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        result.as_ref().map(drop).map_err(|(error, _)| error).expect("the broker confirms");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The bare client: all messages, and their confirms. The properties are those of walpost's sink.
pub fn produce(bootstrap: &str, rows: u64) {
    let mut config = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", bootstrap),
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("enable.gapless.guarantee", "true"),
        ("max.in.flight.requests.per.connection", "5"),
        ("message.timeout.ms", "0"),
        ("linger.ms", "0"),
        ("message.max.bytes", "1000000000"),
        ("batch.size", "1000000"),
        ("queue.buffering.max.messages", "200000"),
        ("socket.nagle.disable", "true"),
        ("partitioner", "murmur2_random"),
    ] {
        config.set(name, value);
    }
    let producer: ThreadedProducer<Confirms> =
        ThreadedProducer::from_config_and_context(&config, Confirms::default())
            .expect("the configuration is right");
    let topic = topic(AGGREGATE_TYPE);
    let log = LogId::mysql(Uuid::from_u64_pair(1 << 60, 1).as_u128(), None);
    // An old one would be deleted by the broker's retention, soon.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now_millis = now.as_millis() as i64;
    for number in 0..rows {
        let message = message(number);
        let id = message.id.hyphenated().to_string();
        let (transaction, ordinal) = (number / 100, (number % 100) as u32);
        let identity = RowIdentity { log, transaction, ordinal, fingerprint: Fingerprint(number) };
        let identity = identity.text();
        let headers = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: walpost::HEADER_ID, value: Some(&id) })
            .insert(Header { key: walpost::HEADER_TYPE, value: Some(EVENT_TYPE) })
            .insert(Header { key: walpost::HEADER_IDENTITY, value: Some(identity.as_str()) });
        let mut record = BaseRecord::to(&topic)
            .key(&message.key)
            .payload(&message.payload)
            .timestamp(now_millis)
            .headers(headers);
        while let Err((error, refused)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full, "only a full queue makes it wait");
            std::thread::sleep(Duration::from_millis(1));
            record = refused;
        }
    }
    producer.flush(FLUSH_MAX).expect("the broker confirms");
    let confirms = producer.context().0.load(Ordering::Relaxed);
    assert_eq!(confirms, rows, "every message is confirmed");
}
