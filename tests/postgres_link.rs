//! The connection to PostgreSQL: no wait without a limit, and errors that mean what they say.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::broker::Kind;
use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::eventually;
use crate::support::proxy::{Action, Direction, Point, Proxy};
use crate::support::relay::{Relay, program};
use crate::support::slot::{end_of_log, slot_state, wait_drained};
use crate::support::stage::{PATIENCE, Stage, empty_outbox, quick_relay};

/// Longer than any stop of a relay that has nothing to drain.
const STOP_MAX: Duration = Duration::from_secs(20);

fn insert(client: &Client) {
    client.run("INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', 'Created', '{}')");
}

fn await_log(relay: &Relay, words: &str) {
    assert!(eventually(PATIENCE, || relay.log().contains(words)), "{words:?}\n{}", relay.log());
}

fn await_drained(client: &Client, slot: &str, relay: &Relay) {
    let drained = wait_drained(client, slot, end_of_log(client), PATIENCE);
    assert!(drained, "{}", relay.log());
}

#[test]
fn a_server_that_falls_silent_is_given_up_for_a_new_connection() {
    // given a relay that streams, from a server that drops silent clients soon
    let server = Postgres::shared();
    let name = empty_outbox(server, "silent");
    let client = server.client_for(&name);
    let proxy = Proxy::start(server.address());
    let url = server.url_at(proxy.addr(), &name);
    let source = format!("{url}?options=-c%20wal_sender_timeout%3D3000");
    let relay = quick_relay(&source, "null://", &name).started();
    insert(&client);
    await_drained(&client, &name, &relay);
    // when its connection transports nothing more, and nobody closes it
    proxy.freeze_open();
    insert(&client);
    // then it is asked, given up with a reason, and a new one goes on
    await_log(&relay, "nothing was heard from the server for");
    await_drained(&client, &name, &relay);
}

#[test]
fn a_stream_that_fell_silent_holds_up_no_stop() {
    // given a relay whose connection transports nothing more
    let server = Postgres::shared();
    let name = empty_outbox(server, "silent_stop");
    let client = server.client_for(&name);
    let proxy = Proxy::start(server.address());
    let url = server.url_at(proxy.addr(), &name);
    let mut relay = quick_relay(&url, "null://", &name).started();
    insert(&client);
    await_drained(&client, &name, &relay);
    proxy.freeze_open();
    // when it is stopped
    let begun = Instant::now();
    assert!(relay.terminate().success(), "{}", relay.log());
    // then it stops
    assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_never_answers_is_an_outage_and_holds_up_no_stop() {
    // given an address that takes connections and says nothing
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let source = format!("postgres://u@{address}/db?connect_timeout=1&sslmode=disable");
    let mut relay = quick_relay(&source, "null://", "walpost").started();
    // then the relay says so
    await_log(&relay, "did not log us in within 1s");
    // and a stop waits for nobody
    let begun = Instant::now();
    assert!(relay.terminate().success(), "{}", relay.log());
    assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
}

#[test]
fn a_server_that_falls_silent_after_the_login_holds_up_no_stop() {
    // given a server whose answers end with the first login
    let server = Postgres::shared();
    let name = empty_outbox(server, "silent_login");
    let proxy = Arc::new(Proxy::start(server.address()));
    let ready = |bytes: &[u8]| bytes.ends_with(b"Z\0\0\0\x05I");
    let black = Action::Blackhole(Direction::ToClient);
    let struck = proxy.when_bytes(Direction::ToClient, ready, Point::After, black);
    let source = server.url_at(proxy.addr(), &name);
    let mut relay = quick_relay(&source, "null://", &name).started();
    assert!(struck.wait(PATIENCE), "{}", relay.log());
    // when it is stopped
    let begun = Instant::now();
    assert!(relay.terminate().success(), "{}", relay.log());
    // then it stops
    assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
}

#[test]
fn two_servers_behind_one_address_are_not_taken_for_one() {
    // given an address whose first connection leads to one server, and every later one to another
    let server = Postgres::shared();
    let name = empty_outbox(server, "two_servers");
    let client = server.client_for(&name);
    let other = Postgres::start(Version::V15);
    other.create_database(&name);
    let proxy = Arc::new(Proxy::start(other.address()));
    let (moved, target) = (Arc::downgrade(&proxy), server.address());
    let fail_over = Action::Run(Box::new(move || {
        if let Some(proxy) = moved.upgrade() {
            proxy.set_target(target);
        }
    }));
    proxy.when_bytes(Direction::ToServer, |_| true, Point::Before, fail_over);
    // when a relay starts there
    insert(&client);
    let relay = quick_relay(&server.url_at(proxy.addr(), &name), "null://", &name).started();
    // then it notices, and goes on once both lead to one
    await_log(&relay, "reached two servers");
    await_drained(&client, &name, &relay);
}

#[test]
fn a_standby_writes_no_errors_into_the_log_of_the_server() {
    // given two relays on one slot
    let server = Postgres::start(Version::V15);
    let name = empty_outbox(&server, "quiet");
    let client = server.client_for(&name);
    let url = server.url_for(&name);
    let mut first = quick_relay(&url, "null://", &name).started();
    let held = || slot_state(&client, &name).unwrap().active_pid.is_some();
    assert!(eventually(PATIENCE, held), "{}", first.log());
    let second = quick_relay(&url, "null://", &name).started();
    // when the second one has waited for a while
    await_log(&second, "standing by");
    // then the server has not said a word about it
    let errors = |log: &str| log.matches("ERROR:").count();
    assert_eq!(errors(&server.log()), 0, "{}", server.log());
    // and it takes over when its turn comes
    assert!(first.terminate().success(), "{}", first.log());
    insert(&client);
    await_drained(&client, &name, &second);
    assert_eq!(errors(&server.log()), 0, "{}", server.log());
}

#[test]
fn a_relay_whose_slot_was_taken_while_it_had_released_it_is_a_standby() {
    // given a relay whose broker confirms nothing, so that it releases the slot
    let server = Postgres::start(Version::V15);
    let stage = Stage::set(&server, Kind::Nats, "taken");
    let client = stage.client(&server);
    let mut first = stage
        .relay(&server)
        .args(&["--set", "source.let_go_after=1s", "--set", "sink.ack_timeout=60s"])
        .started();
    insert(&client);
    await_drained(&client, &stage.name, &first);
    stage.to_broker.blackhole(Direction::ToClient);
    insert(&client);
    // when another one with a way to the broker takes it, publishes, and is stopped
    let (_way, sink) = stage.another_way();
    let mut second = stage.relay_into(&server, &sink).started();
    await_drained(&client, &stage.name, &second);
    insert(&client);
    await_drained(&client, &stage.name, &second);
    assert!(second.terminate().success(), "{}", second.log());
    // then the first one takes over again instead of ending
    stage.to_broker.resume();
    insert(&client);
    await_drained(&client, &stage.name, &first);
    assert!(first.is_running(), "{}", first.log());
    assert!(first.log().contains("another relay had the slot"), "{}", first.log());
    assert!(first.terminate().success(), "{}", first.log());
}

/// What a pooler in front of a server makes of a startup message.
#[derive(Clone, Copy, PartialEq)]
enum Pooler {
    /// PgBouncer before 1.23, or without `ignore_startup_parameters`.
    RefusesReplication,
    /// PgBouncer while the server behind it is away.
    RefusesAll,
}

/// Answers as PgBouncer does, whose errors all have the SQLSTATE 08P01, and leads other connections
/// to the server. Its threads end with the test binary.
fn pooler(server: SocketAddr, kind: Pooler) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || drop(serve(client, server, kind)));
        }
    });
    address
}

fn serve(mut client: TcpStream, server: SocketAddr, kind: Pooler) -> std::io::Result<()> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    client.read_exact(&mut rest)?;
    let wants_replication = rest.windows(12).any(|bytes| bytes == b"replication\0");
    if kind == Pooler::RefusesAll || wants_replication {
        let fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: bytea_output\0\0";
        let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
        return client.write_all(&[&b"E"[..], &length, fields].concat());
    }
    let mut server = TcpStream::connect(server)?;
    server.write_all(&[&length[..], &rest].concat())?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
    std::io::copy(&mut server, &mut client).map(drop)
}

#[test]
fn a_pooler_that_refuses_replication_is_named_by_run_and_check() {
    // given a pooler that lets only ordinary connections pass
    let server = Postgres::shared();
    let name = empty_outbox(server, "pooler");
    let address = pooler(server.address(), Pooler::RefusesReplication);
    let source = format!("{}?sslmode=disable", server.url_at(address, &name));
    // then `run` ends with the remedy
    let mut relay = quick_relay(&source, "null://", &name).started();
    assert_eq!(relay.wait_exit().code(), Some(1), "{}", relay.log());
    assert!(relay.log().contains("PgBouncer"), "{}", relay.log());
    assert!(relay.log().contains("ignore_startup_parameters"), "{}", relay.log());
    // and so does `check`
    let mut check = program();
    check.args(["check", "--source", &source, "--sink", "null://"]);
    check.args(["--slot", &name, "--publication", &name]);
    let output = check.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("FAIL  replication") && printed.contains("PgBouncer"), "{printed}");
}

#[test]
fn a_pooler_without_a_server_is_an_outage() {
    let server = Postgres::shared();
    let address = pooler(server.address(), Pooler::RefusesAll);
    let source = format!("postgres://u@{address}/db?sslmode=disable");
    let mut relay = quick_relay(&source, "null://", "walpost").started();
    await_log(&relay, "retrying");
    assert!(relay.is_running(), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
}
