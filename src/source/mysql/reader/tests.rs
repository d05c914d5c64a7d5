//! A reader on a stream that a test writes.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::config::{Initial, PositionPlace, QualifiedName, Secret};
use crate::failure::FailureKind;
use crate::outbox::Columns;
use crate::source::mysql::connection::Connection;
use crate::source::mysql::decoder::{Decoder, DecoderSettings};
use crate::source::mysql::dump::StreamLimits;
use crate::source::mysql::gtid::{Flavor, GtidSet};
use crate::source::mysql::wire::put_packet;
use crate::source::socket::Socket;

/// The events of a capture; see `decoder/tests.rs`.
fn events(capture: &str) -> Vec<Bytes> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/binlog/events");
    let mut rest = Bytes::from(std::fs::read(format!("{folder}/{capture}.events")).unwrap());
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest.split_to(4)[..].try_into().unwrap());
        events.push(rest.split_to(length as usize));
    }
    events
}

fn packets(events: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for (sequence, event) in (1_u8..=255).chain(0..=255).cycle().zip(events) {
        put_packet(sequence, &[&[0], &event[..]].concat(), &mut out);
    }
    out
}

fn settings() -> MySqlSettings {
    let name = |name: &str| QualifiedName { schema: "app".into(), name: name.into() };
    MySqlSettings {
        url: Secret::new("mysql://walpost@h/app"),
        name: "walpost".into(),
        server_id: None,
        table: name("outbox"),
        position: PositionPlace::Source { table: name("walpost_position") },
        initial: Initial::Skip,
        lease: Duration::from_secs(10),
        ack_interval: Duration::from_millis(100),
        heartbeat: Duration::from_secs(5),
        row_bytes_max: 1 << 20,
        payload_bytes_max: 1 << 20,
    }
}

struct Reading {
    reader: Reader,
    session: Session,
    server: UnixStream,
    batches: mpsc::Receiver<Batch>,
    _commands: mpsc::Sender<Command>,
}

impl Reading {
    /// From the beginning of a capture.
    async fn begin(flavor: Flavor) -> Self {
        let settings = settings();
        let budget = Budget::new(1 << 20);
        let (ours, server) = UnixStream::pair().unwrap();
        let limits = StreamLimits { packet_bytes_max: 1 << 20, budget: budget.clone() };
        let connection = Connection::new(Socket::Unix(ours));
        let stream = connection.dump_file(1, "", 4, limits).await.unwrap();
        let columns = Columns::debezium();
        let mut decoder = Decoder::new(DecoderSettings {
            flavor,
            schema: "app".into(),
            table: "outbox".into(),
            columns: columns.clone(),
            server_uuid: 7,
            event_bytes_max: 1 << 20,
            payload_bytes_max: 1 << 20,
            held_bytes_max: 1 << 20,
            budget: budget.clone(),
        });
        decoder.reset("", 4);
        let place = Place { gtids: GtidSet::empty(flavor), file: "".into(), position: 4 };
        let (commands, command_receiver) = mpsc::channel(4);
        let (batch_sender, batches) = mpsc::channel(2);
        let shared = Shared::default();
        shared.lock().resume = Some(Resume::new(place.clone()));
        let reader = Reader {
            info: ConnInfo::parse(settings.url.expose()).unwrap(),
            settings,
            outbox: OutboxSettings {
                columns,
                topic: "t".into(),
                extra_headers: Vec::new(),
                partition: None,
            },
            budget,
            shared: Arc::new(shared),
            commands: command_receiver,
            batches: batch_sender,
            fence: Fence::down(),
            wait: None,
            short_sessions: 0,
            stored: None,
            initial_open: false,
            holding: Holding::Over,
        };
        let session = Session::scripted(stream, decoder, place);
        Self { reader, session, server, batches, _commands: commands }
    }

    /// What went over before the error that ended the session, and that error.
    async fn ended(mut self) -> (Vec<Change<MySqlPosition>>, MySqlError) {
        let end = self.reader.read(self.session).await.unwrap_err();
        let End::Failed(error) = end else { panic!("it was told to end") };
        let mut changes = Vec::new();
        while let Ok(batch) = self.batches.try_recv() {
            changes.extend(batch.unwrap());
        }
        (changes, error)
    }
}

/// As long as a read brings all of it, as it does from this kind of socket.
#[tokio::test]
async fn what_stands_before_an_event_that_cannot_be_read_goes_over_first() {
    // given a capture, and behind it what no reader of this flavor knows
    let mut all = events("mysql97");
    let mut whole = Reading::begin(Flavor::MySql).await;
    whole.server.write_all(&packets(&all)).await.unwrap();
    drop(whole.server.shutdown().await);
    let (expected, error) = whole.ended().await;
    assert_eq!(error.kind(), FailureKind::Transient, "{error}");
    assert!(expected.iter().any(|change| matches!(change, Change::Row(_))));
    let mut unknown = all.last().unwrap().to_vec();
    unknown[4] = 99;
    let checksum = crc32fast::hash(&unknown[..unknown.len() - 4]).to_le_bytes();
    let end = unknown.len() - 4;
    unknown[end..].copy_from_slice(&checksum);
    all.push(unknown.into());
    // when it is read
    let mut reading = Reading::begin(Flavor::MySql).await;
    reading.server.write_all(&packets(&all)).await.unwrap();
    let (changes, error) = reading.ended().await;
    // then the relay stops behind the last transaction before it
    assert_eq!(error.kind(), FailureKind::Definite, "{error}");
    assert_eq!(changes.len(), expected.len());
}
