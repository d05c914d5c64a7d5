//! What the reader makes of frames and what it tells, over a socket pair instead of a server.

use std::time::Duration;

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
            memory_file: None,
            accept_gap: None,
            ack_interval: Duration::from_secs(3600),
            row_bytes_max: 1 << 20,
            let_go_after: Duration::from_secs(3600),
            former_name: None,
            format: ValueFormat::Binary,
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
        format: ValueFormat::Binary,
        gave_away: false,
        gave_up: 0,
        refused: None,
        untaken: 0,
        memory: Memory::default(),
    };
    let (client, server) = UnixStream::pair().unwrap();
    let intake = Intake::new(&[], reader.budget.clone(), 1 << 20);
    let feedback = Feedback::new(reader.settings.ack_interval, None, 0, Instant::now());
    let info = reader.info.clone();
    let streaming = Streaming::new(PgStream::Unix(client), intake, info, feedback, Lsn(0));
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
        match self.reader.decode(frames.into(), &mut self.streaming, &mut changes).await {
            Ok(()) => Ok(changes),
            Err(End::Failed(error)) => Err(error),
            Err(end) => panic!("{end:?}"),
        }
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

/// The outbox, with a type that nobody has looked up.
fn relation_of_an_unknown_type() -> Vec<u8> {
    let mut content = [&b"R"[..], &7u32.to_be_bytes(), b"public\0outbox\0d"].concat();
    content.extend_from_slice(&5u16.to_be_bytes());
    for (name, oid) in [("id", 25u32), ("aggregatetype", 25), ("aggregateid", 25), ("type", 99_999)]
        .into_iter()
        .chain([("payload", 25)])
    {
        content.push(0);
        content.extend_from_slice(name.as_bytes());
        content.push(0);
        content.extend_from_slice(&oid.to_be_bytes());
        content.extend_from_slice(&u32::MAX.to_be_bytes());
    }
    data(100, &content)
}

#[tokio::test]
async fn while_types_are_looked_up_the_server_hears_from_us_and_a_close_waits_for_nobody() {
    // given a server whose SQL side takes connections and never answers
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bench = bench();
    let url = format!("postgres://u@{}/app?sslmode=disable", deaf.local_addr().unwrap());
    bench.streaming.info = ConnInfo::parse(&url).unwrap();
    let timeout = Some(Duration::from_millis(300));
    bench.streaming.feedback =
        Feedback::new(bench.reader.settings.ack_interval, timeout, 0, Instant::now());
    bench.streaming.clock = tokio::time::interval(Duration::from_millis(100));
    bench.reader.decoder.restart(LogId(1));
    // when the stream names a type that must be looked up
    let frames = [begin(100), relation_of_an_unknown_type()].concat();
    bench.server.write_all(&frames).await.unwrap();
    let Bench { mut reader, mut streaming, server, commands, batches } = bench;
    let reading = tokio::spawn(async move { reader.read(&mut streaming).await.err() });
    let mut rest = self::bench();
    rest.server = server;
    let (_asked, _) = deaf.accept().await.unwrap();
    // then it goes on hearing from us
    for _ in 0..3 {
        assert_eq!(rest.told().await, [0, 0, 0]);
    }
    // and a close is heard at once
    let (reply, _answer) = oneshot::channel();
    commands.send(handle::Command::Close(reply)).await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), reading).await;
    assert!(matches!(end.unwrap().unwrap(), Some(End::Close(_))));
    drop(batches);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let mut bench = bench();
    // given a server that was last heard long ago
    let long_ago = Instant::now() - Duration::from_secs(31);
    bench.streaming.feedback = Feedback::new(bench.reader.settings.ack_interval, None, 0, long_ago);
    // then the connection is given up, and the next one gets more time
    let error = bench.reader.tick(&mut bench.streaming).await.unwrap_err();
    assert!(matches!(error, PostgresError::Silent { .. }), "{error}");
    assert_eq!(error.kind(), crate::failure::FailureKind::Transient);
    assert_eq!(bench.reader.gave_up, 1);
    // and less again as soon as something comes
    bench.decode(begin(100)).await.unwrap();
    assert_eq!(bench.reader.gave_up, 0);
}

#[tokio::test]
async fn the_same_error_about_data_at_the_same_place_twice_is_definite() {
    let mut bench = bench();
    let error = |code: &str| {
        let fields = format!("SERROR\0VERROR\0C{code}\0Mno\0\0");
        PostgresError::Wire(WireError::Server(Box::new(ServerError::parse(fields.as_bytes()))))
    };
    let kind = |error: PostgresError| error.kind();
    use crate::failure::FailureKind::{Definite, Transient};
    // given an error inside of a transaction
    bench.decode([begin(100)].concat()).await.unwrap();
    assert_eq!(kind(bench.reader.judge_refusal(error("22021"))), Transient);
    // then another one, or one elsewhere, is not the same
    assert_eq!(kind(bench.reader.judge_refusal(error("22023"))), Definite);
    assert_eq!(kind(bench.reader.judge_refusal(error("22021"))), Transient);
    bench.decode([commit(100, 108), begin(200)].concat()).await.unwrap();
    assert_eq!(kind(bench.reader.judge_refusal(error("22021"))), Transient);
    let again = bench.reader.judge_refusal(error("22021"));
    assert!(again.to_string().contains("client_encoding=SQL_ASCII"), "{again}");
    assert_eq!(kind(again), Definite);
    // and errors about the server's state are an outage each time
    for _ in 0..3 {
        assert_eq!(kind(bench.reader.judge_refusal(error("57P01"))), Transient);
    }
}

#[tokio::test]
async fn a_type_without_a_binary_form_is_read_as_text_from_then_on() {
    let mut bench = bench();
    let fields = b"SERROR\0VERROR\0C42883\0Mno binary output function\0\0";
    let error = PostgresError::Wire(WireError::Server(Box::new(ServerError::parse(fields))));
    assert!(bench.reader.turns_to_text(&error));
    assert_eq!(bench.reader.format, ValueFormat::Text);
    // once: in text form the same error is a refusal
    assert!(!bench.reader.turns_to_text(&error));
}
