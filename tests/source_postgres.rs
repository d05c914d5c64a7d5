//! The PostgreSQL source by itself, on real servers: what it refuses after a reconnect, where it
//! resumes, and what the slot knows once it is closed.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::Runtime;
use walpost::config::{OutboxSettings, PostgresSettings, QualifiedName, Secret, ValueFormat};
use walpost::source::postgres::{Lsn, PostgresSource};
use walpost::source::{Change, Source};
use walpost::{Budget, Columns, Failure, FailureKind};

use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::eventually;
use crate::support::proxy::{Ending, Proxy};
use crate::support::slot::{
    create_outbox, create_publication_and_slot, end_of_log, slot_state, wait_inactive,
};

const WAIT: Duration = Duration::from_secs(20);

/// Says in its log which replication command it got.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start_with(Version::V15, &["log_replication_commands = on"]))
}

/// A source behind a proxy, with an outbox of its own.
struct Bench {
    runtime: Runtime,
    source: PostgresSource,
    proxy: Proxy,
    client: Client,
    name: String,
}

fn bench(prefix: &str) -> Bench {
    let server = server();
    let name = server.fresh_database(prefix);
    let client = outbox(server, &name);
    let proxy = Proxy::start(server.address());
    let settings = PostgresSettings {
        url: Secret::new(server.url_at(proxy.addr(), &name)),
        slot: name.clone(),
        publication: name.clone(),
        table: QualifiedName { schema: "public".into(), name: "outbox".into() },
        memory_file: None,
        accept_gap: None,
        // What is acknowledged is told by the close alone.
        ack_interval: Duration::from_secs(3600),
        row_bytes_max: 1 << 20,
        let_go_after: Duration::from_secs(3600),
        former_name: None,
        format: ValueFormat::Binary,
    };
    let outbox = OutboxSettings {
        columns: Columns::debezium(),
        topic: "{aggregatetype}".into(),
        extra_headers: Vec::new(),
        partition: None,
    };
    let source = PostgresSource::start(settings, outbox, Budget::new(64 << 20)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Bench { runtime, source, proxy, client, name }
}

fn outbox(server: &Postgres, name: &str) -> Client {
    let client = server.client_for(name);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", name, name);
    client
}

/// One transaction of so many rows.
fn insert(client: &Client, rows: u32) {
    client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), 'Order', n, 'created', \
         to_jsonb(repeat('x', 500)) FROM generate_series(1, {rows}) n"
    ));
}

impl Bench {
    fn next(&mut self) -> Result<Vec<Change<Lsn>>, Failure> {
        let mut changes = Vec::new();
        let reading = async { tokio::time::timeout(WAIT, self.source.next(&mut changes)).await };
        self.runtime.block_on(reading).expect("the source answers")?;
        Ok(changes)
    }

    /// Reads until the end of so many transactions with rows; the rows, and the last end.
    fn read(&mut self, transactions: usize) -> (usize, Lsn) {
        let (mut rows, mut seen, mut open) = (0, 0, false);
        loop {
            for change in self.next().unwrap() {
                match change {
                    Change::Row(_) => (rows, open) = (rows + 1, true),
                    Change::Commit(end) if open => {
                        (seen, open) = (seen + 1, false);
                        if seen == transactions {
                            return (rows, end);
                        }
                    }
                    Change::Commit(_) | Change::Idle(_) => {}
                }
            }
        }
    }

    /// Cuts the connection and takes the error; nobody gets in until the proxy is resumed.
    fn lose_connection(&mut self) {
        self.proxy.refuse();
        self.proxy.cut_all(Ending::Reset);
        let error = loop {
            match self.next() {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), FailureKind::Transient, "{error}");
        assert!(wait_inactive(&self.client, &self.name, WAIT));
    }

    /// The error of the next connection.
    fn refusal(&mut self) -> Failure {
        loop {
            match self.next() {
                Ok(changes) => assert!(changes.is_empty(), "it went on: {changes:?}"),
                Err(error) => return error,
            }
        }
    }
}

#[test]
fn a_slot_that_somebody_moved_is_refused() {
    // given a row that was read and not acknowledged
    let mut bench = bench("slot_moved");
    insert(&bench.client, 1);
    bench.read(1);
    // when the connection is lost, and somebody advances the slot meanwhile
    bench.lose_connection();
    insert(&bench.client, 1);
    let advance = "SELECT pg_replication_slot_advance";
    bench.client.run(&format!("{advance}('{}', pg_current_wal_lsn())", bench.name));
    bench.proxy.resume();
    // then the source does not go on behind what it never read
    let error = bench.refusal();
    assert_eq!(error.kind(), FailureKind::Definite, "{error}");
    assert!(error.to_string().contains("ahead of"), "{error}");
}

#[test]
fn another_server_at_the_same_address_is_refused() {
    // given a source that has read from one server
    let mut bench = bench("other_server");
    insert(&bench.client, 1);
    bench.read(1);
    let other = Postgres::start(Version::V15);
    other.create_database(&bench.name);
    let client = outbox(&other, &bench.name);
    // when the address leads to another one, with the same names and a log that is longer
    bench.lose_connection();
    while end_of_log(&client) < end_of_log(&bench.client) {
        client.run("SELECT pg_switch_wal()");
        client.run("CHECKPOINT");
    }
    bench.proxy.set_target(other.address());
    bench.proxy.resume();
    // then it is told apart: positions of one log mean nothing in another
    let error = bench.refusal();
    assert_eq!(error.kind(), FailureKind::Definite, "{error}");
    assert!(error.to_string().contains("system"), "{error}");
}

#[test]
fn a_new_connection_resumes_at_our_own_position_and_repeats_nothing() {
    // given two transactions, of which one is acknowledged, which the server has not heard
    let mut bench = bench("resume");
    insert(&bench.client, 3);
    let (rows, first) = bench.read(1);
    assert_eq!(rows, 3);
    insert(&bench.client, 2);
    bench.read(1);
    bench.source.acknowledge(first);
    // when the connection is lost and a third is committed
    bench.lose_connection();
    insert(&bench.client, 4);
    bench.proxy.resume();
    // then only that is yielded, and the server was asked for what follows the first
    assert_eq!(bench.read(1).0, 4);
    let asked = format!("START_REPLICATION SLOT \"{}\" LOGICAL {first} ", bench.name);
    let logged = eventually(WAIT, || server().log().contains(&asked));
    assert!(logged, "no {asked:?} in the server's log");
}

#[test]
fn after_a_close_the_last_acknowledgement_is_in_the_slot() {
    // given much more than is ever read
    let mut bench = bench("close");
    insert(&bench.client, 1);
    let (_, first) = bench.read(1);
    insert(&bench.client, 20_000);
    bench.next().unwrap();
    bench.source.acknowledge(first);
    // when it is closed with all that unread
    let Bench { runtime, source, client, name, proxy } = bench;
    runtime.block_on(source.close()).unwrap();
    drop(proxy);
    // then the slot knows
    let confirmed = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
    assert!(confirmed >= first.0, "{} is before {first}", Lsn(confirmed));
}
