//! What the reader makes of frames and what it tells, over a socket pair instead of a server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::config::{QualifiedName, Secret};
use crate::identity::LogId;
use crate::outbox::Columns;
use crate::source::postgres::PgStream;

struct Bench {
    reader: Reader,
    streaming: Streaming,
    server: UnixStream,
    commands: mpsc::Sender<Command>,
    batches: mpsc::Receiver<Batch>,
}

fn bench() -> Bench {
    let (commands, command_receiver) = mpsc::channel(1);
    let (batch_sender, batches) = mpsc::channel(1);
    let table = QualifiedName { schema: "public".into(), name: "outbox".into() };
    let columns = Columns::debezium();
    let reader = Reader {
        info: ConnInfo::parse("postgres://walpost@localhost/app").unwrap(),
        decoder: Decoder::new(table.schema.clone(), table.name.clone(), columns.clone(), LogId(1)),
        settings: PostgresSettings {
            url: Secret::new("postgres://walpost@localhost/app"),
            slot: "walpost".into(),
            publication: "walpost".into(),
            table,
            ack_interval: Duration::from_secs(3600),
            row_bytes_max: 1 << 20,
            let_go_after: Duration::from_secs(3600),
            former_name: None,
        },
        outbox: OutboxSettings {
            columns,
            topic: "{aggregatetype}".into(),
            extra_headers: Vec::new(),
            partition: None,
        },
        budget: Budget::new(1 << 20),
        shared: Arc::default(),
        commands: command_receiver,
        batches: batch_sender,
        system: None,
        received: Lsn(0),
        watching: Watching::default(),
    };
    let (client, server) = UnixStream::pair().unwrap();
    let intake = Intake::new(&[], reader.budget.clone(), 1 << 20);
    let streaming = Streaming::new(PgStream::Unix(client), intake, None, Lsn(0));
    Bench { reader, streaming, server, commands, batches }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// XLogData at a position, with one pgoutput message.
fn data(position: u64, content: &[u8]) -> Vec<u8> {
    message(b'd', &[b"w", &numbers(&[position, position, 0])[..], content].concat())
}

fn keepalive(position: u64, asks: bool) -> Vec<u8> {
    message(b'd', &[b"k", &numbers(&[position, 0])[..], &[u8::from(asks)]].concat())
}

fn begin(final_lsn: u64) -> Vec<u8> {
    data(final_lsn, &[b"B", &numbers(&[final_lsn, 0])[..], &7u32.to_be_bytes()].concat())
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    data(end_lsn, &[b"C\0", &numbers(&[commit_lsn, end_lsn, 0])[..]].concat())
}

impl Bench {
    async fn decode(&mut self, frames: Vec<u8>) -> Result<Vec<Change<Lsn>>, PostgresError> {
        let mut changes = Vec::new();
        self.reader.decode(frames.into(), &mut self.streaming, &mut changes).await?;
        Ok(changes)
    }

    /// The next status update: written, flushed, applied.
    async fn told(&mut self) -> [u64; 3] {
        let mut update = [0; 39];
        let reading = self.server.read_exact(&mut update);
        let read = tokio::time::timeout(Duration::from_secs(5), reading).await;
        read.expect("a status update comes").unwrap();
        assert_eq!((update[0], update[5]), (b'd', b'r'));
        [6, 14, 22].map(|at| u64::from_be_bytes(update[at..at + 8].try_into().unwrap()))
    }
}

#[tokio::test]
async fn a_keepalive_inside_a_transaction_is_no_boundary() {
    let mut bench = bench();
    // given a keepalive from far ahead, between a transaction's first row and its last
    let inside = [begin(100), keepalive(500, false)].concat();
    assert!(bench.decode(inside).await.unwrap().is_empty());
    assert_eq!(bench.reader.received, Lsn(0));
    // then only one behind the commit counts
    let behind = [commit(100, 108), keepalive(600, false)].concat();
    let changes = bench.decode(behind).await.unwrap();
    let [Change::Commit(Lsn(108)), Change::Idle(Lsn(600))] = changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(bench.reader.received, Lsn(600));
}

#[tokio::test]
async fn a_status_update_tells_as_flushed_only_what_was_acknowledged() {
    let mut bench = bench();
    bench.decode([begin(100), commit(100, 108), keepalive(600, false)].concat()).await.unwrap();
    bench.reader.shared.acknowledged.store(108, Ordering::Relaxed);
    bench.reader.tell(&mut bench.streaming).await.unwrap();
    assert_eq!(bench.told().await, [600, 108, 108]);
}

#[tokio::test]
#[should_panic(expected = "which is all that was received")]
async fn a_position_above_what_was_received_is_never_told() {
    let mut bench = bench();
    bench.decode([begin(100), commit(100, 108)].concat()).await.unwrap();
    bench.reader.shared.acknowledged.store(109, Ordering::Relaxed);
    drop(bench.reader.tell(&mut bench.streaming).await);
}

#[tokio::test]
async fn a_keepalive_that_asks_is_answered() {
    let mut bench = bench();
    let asking = keepalive(600, true);
    bench.server.write_all(&asking).await.unwrap();
    let Bench { mut reader, mut streaming, server, commands, batches } = bench;
    let reading = tokio::spawn(async move { reader.read(&mut streaming).await.is_err() });
    let mut rest = self::bench();
    rest.server = server;
    assert_eq!(rest.told().await, [600, 0, 0]);
    drop(rest.server);
    assert!(reading.await.unwrap());
    drop((commands, batches));
}

#[tokio::test]
async fn a_warning_about_a_missing_publication_ends_the_session() {
    let mut bench = bench();
    // The text is translated, and says nothing.
    let fields = "SWARNUNG\0VWARNING\0C55000\0MPublikation »walpost« wird übersprungen\0\
                  RLoadPublications\0\0";
    let error = bench.decode(message(b'N', fields.as_bytes())).await.unwrap_err();
    assert!(matches!(error, PostgresError::Publication { .. }), "{error}");
    let fields = "SFEHLER\0VERROR\0C42704\0MPublikation »walpost« existiert nicht\0\
                  Rget_publication_oid\0\0";
    let error = bench.decode(message(b'E', fields.as_bytes())).await.unwrap_err();
    assert!(matches!(error, PostgresError::Publication { .. }), "{error}");
}
