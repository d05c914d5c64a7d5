//! A reader on a stream that a test writes.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::config::{self, PositionPlace, QualifiedName, Secret};
use crate::failure::FailureKind;
use crate::outbox::Columns;
use crate::source::Change;
use crate::source::mysql::connection::Connection;
use crate::source::mysql::decoder::{Decoder, DecoderSettings};
use crate::source::mysql::dump::StreamLimits;
use crate::source::mysql::gtid::{Flavor, GtidSet};
use crate::source::mysql::store::{FileStore, StoreError};
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
        initial: config::Initial::Skip,
        initial_order: None,
        lease: Duration::from_secs(10),
        ack_interval: Duration::from_millis(100),
        heartbeat: Duration::from_secs(5),
        row_bytes_max: 1 << 20,
        payload_bytes_max: 1 << 20,
        held_bytes_max: 1 << 20,
        skip_transactions: Vec::new(),
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
            skipped: Vec::new(),
            types: Vec::new(),
            budget: budget.clone(),
        });
        decoder.reset("", 4);
        let place = Place { gtids: GtidSet::empty(flavor), file: "".into(), position: 4 };
        let (commands, command_receiver) = mpsc::channel(4);
        let (batch_sender, batches) = mpsc::channel(2);
        let shared = Shared::default();
        shared.lock().resume = Some(Resume::new(place.clone()));
        let reader = Reader {
            info: ConnInfo::of(&settings.url).unwrap(),
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
            stored: None,
            here: Here::default(),
            locks_refused: 0,
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

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("walpost-reader-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// What the position's file says, once it is there.
    fn position(&self) -> Option<String> {
        std::fs::read_to_string(self.0.join("position")).ok()
    }

    fn waits_for_initial_rows(&self) -> bool {
        self.position().is_some_and(|text| text.contains("\"initial_pending\":true"))
    }

    /// Holds the position that there is not yet.
    async fn keeper(&self, lease: Duration, fence: Fence) -> Box<Keeper<Store>> {
        let store = Store::File(FileStore::new(&self.0.join("position"), "walpost"));
        let interval = Duration::from_millis(20);
        let mut keeper = Keeper::new(store, "here".into(), lease, interval, fence);
        assert_eq!(keeper.take().await.unwrap(), None);
        Box::new(keeper)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

const LEASE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_first_position_is_written_before_anything_is_read() {
    let folder = Folder::new("first");
    let mut reading = Reading::begin(Flavor::MySql).await;
    reading.reader.shared.lock().resume = None;
    let fence = reading.reader.fence.clone();
    reading.reader.holding = Holding::Taken(folder.keeper(LEASE, fence).await);
    reading.reader.keep(&reading.session).await.unwrap();
    assert!(folder.position().is_some() && !folder.waits_for_initial_rows());
}

#[tokio::test]
async fn a_first_position_waits_for_the_rows_from_before_it() {
    // given a first start on a table with rows
    let folder = Folder::new("rows");
    let mut reading = Reading::begin(Flavor::MySql).await;
    let Reading { reader, session, batches, .. } = &mut reading;
    reader.shared.lock().resume = None;
    reader.holding = Holding::Taken(folder.keeper(LEASE, reader.fence.clone()).await);
    session.initial = Some(Initial::scripted(vec![b"1".into(), b"2".into()], Budget::new(1)));
    reader.keep(session).await.unwrap();
    // then another one would go on from the same place, and read the rows again
    assert!(reader.initial_open && folder.waits_for_initial_rows());
    // when they went over
    let mut decoded = Vec::new();
    let initial = session.initial.take().unwrap();
    assert!(reader.read_initial(initial, &mut decoded).await.is_ok());
    let changes = batches.recv().await.unwrap().unwrap();
    let [Change::Row(_), Change::Row(_), Change::Commit(position)] = &changes[..] else {
        panic!("{changes:?}")
    };
    // then that stays so until they are confirmed, and ends soon after
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(folder.waits_for_initial_rows());
    reader.shared.acknowledge(position);
    let written = async {
        while folder.waits_for_initial_rows() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LEASE, written).await.unwrap();
}

#[tokio::test]
async fn a_position_that_is_lost_is_told_although_nobody_takes_what_was_read() {
    // given a relay that is full, and a reader that waits for it
    let folder = Folder::new("lost");
    let mut reading = Reading::begin(Flavor::MySql).await;
    let fence = reading.reader.fence.clone();
    let keeper = folder.keeper(Duration::from_millis(100), fence.clone()).await;
    reading.reader.holding = reading.reader.start_keeping(*keeper);
    for _ in 0..2 {
        reading.reader.batches.try_send(Ok(Vec::new())).unwrap();
    }
    reading.server.write_all(&packets(&events("mysql97"))).await.unwrap();
    // when the lock is lost
    std::fs::remove_file(folder.0.join("position.lock")).unwrap();
    let (changes, error) = tokio::time::timeout(LEASE, reading.ended()).await.unwrap();
    // then it says so, and the lanes hear of it
    assert!(matches!(error, MySqlError::Store(StoreError::Gone { .. })), "{error}");
    assert!(changes.is_empty() && fence.is_lowered());
}

#[tokio::test]
async fn a_transaction_without_a_gtid_ends_a_position_that_is_kept_by_them() {
    let before = events("mysql97");
    let mut named = Reading::begin(Flavor::MySql).await;
    named.server.write_all(&packets(&before)).await.unwrap();
    drop(named.server.shutdown().await);
    let (expected, _) = named.ended().await;
    // when GTIDs are switched off
    let mut reading = Reading::begin(Flavor::MySql).await;
    let all = [before, events("mysql97-nogtid")].concat();
    reading.server.write_all(&packets(&all)).await.unwrap();
    let (changes, error) = reading.ended().await;
    // then what has one goes over, and nothing behind it
    assert!(matches!(error, MySqlError::GtidsGone { .. }), "{error}");
    assert_eq!(changes.len(), expected.len());
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

/// An event as the server would send it, with its checksum.
fn event(kind: u8, body: &[u8], has_checksum: bool) -> Vec<u8> {
    let length = 19 + body.len() + if has_checksum { 4 } else { 0 };
    let mut event = vec![0; 19];
    event[4] = kind;
    event[9..13].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    event.extend_from_slice(body);
    if has_checksum {
        event.extend(crc32fast::hash(&event).to_le_bytes());
    }
    event
}

#[tokio::test]
async fn a_large_compressed_transaction_leaves_time_to_keep_the_lease() {
    const PAYLOAD: u8 = 40;
    const PIECES: usize = 500;
    // given a transaction that is large only when it is inflated
    let mut all = events("mysql97-compressed");
    let first = all.iter().position(|event| event[4] == PAYLOAD).unwrap();
    all.truncate(first);
    let begin = [&[0; 13][..], &[0], b"BEGIN"].concat();
    let mut inflated = event(2, &begin, false);
    for _ in 0..PIECES {
        // A comment, which is left out.
        inflated.extend(event(29, &[0; 64 << 10], false));
    }
    inflated.extend(event(16, &[0; 8], false));
    let compressed = zstd::encode_all(&inflated[..], 3).unwrap();
    let packed = |number: usize| [&[0xfe][..], &number.to_le_bytes()].concat();
    let mut body = Vec::new();
    for (field, value) in [(1, packed(compressed.len())), (2, vec![0]), (3, packed(inflated.len()))]
    {
        body.push(field);
        body.push(u8::try_from(value.len()).unwrap());
        body.extend(value);
    }
    body.push(0);
    body.extend(compressed);
    all.push(event(PAYLOAD, &body, true).into());
    // when it is read
    let mut reading = Reading::begin(Flavor::MySql).await;
    reading.server.write_all(&packets(&all)).await.unwrap();
    drop(reading.server.shutdown().await);
    let turns = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let other = tokio::spawn(async move {
        loop {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let (_, error) = reading.ended().await;
    other.abort();
    // then another task of the thread had its turns meanwhile
    assert_eq!(error.kind(), FailureKind::Transient, "{error}");
    let turns = turns.load(std::sync::atomic::Ordering::Relaxed);
    assert!(turns > PIECES / 2, "{turns}");
}
