//! The identity of a row is never that of another one, and the same at each sending: whatever
//! shares its log, its numbers or its past. NATS drops what it has seen before, so a stream that
//! holds each row once is the proof of the first half, and one that drops repeats of the second.

use crate::support::broker::{Broker, Kind};
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version as BinlogVersion};
use crate::support::postgres::{Postgres, Version};
use crate::support::process::eventually;
use crate::support::relay::Relay;
use crate::support::slot::{create_outbox, create_publication_and_slot, create_slot};
use crate::support::stage::{PATIENCE, quick};

const STREAM: &str = "Order";

/// A stream that all relays of a test publish into.
struct Stream {
    broker: Broker,
}

impl Stream {
    fn start() -> Stream {
        let broker = Broker::start(Kind::Nats);
        broker.prepare(STREAM);
        Stream { broker }
    }

    fn url(&self) -> String {
        self.broker.url()
    }

    /// Payloads that are stored.
    fn stored(&mut self) -> Vec<String> {
        let published = self.broker.published(STREAM);
        let text = |value: Vec<u8>| String::from_utf8(value).unwrap();
        published.into_iter().map(|message| text(message.value.unwrap_or_default())).collect()
    }

    /// Waits until so many messages are stored, and looks that it stays so.
    fn must_hold(&mut self, count: usize, log: impl Fn() -> String) {
        let arrived = eventually(PATIENCE, || self.stored().len() >= count);
        let stored = self.stored();
        assert!(
            arrived && stored.len() == count,
            "{} of {count}: {stored:?}\n{}",
            stored.len(),
            log()
        );
    }
}

/// Inserts a row with nothing but its number in it.
fn insert(table: &str, number: u32) -> String {
    row(table, number, &format!("'00000000-0000-4000-8000-{number:012}'"))
}

fn row(table: &str, number: u32, id: &str) -> String {
    format!(
        "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload) VALUES \
         ({id}, '{STREAM}', 'k{number}', 'Placed', '{number}')"
    )
}

/// Waits until the database was told of everything, and stops the relay.
fn finish<S: Server>(relay: &mut Relay, client: &S::Client, name: &str) {
    let end = S::end_of_log(client);
    let drained = eventually(PATIENCE, || S::confirmed(client, name) >= end);
    assert!(drained, "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
}

#[test]
fn two_outboxes_of_one_transaction_are_two_rows() {
    // given two outboxes of one database, each with a relay into one stream
    let mut stream = Stream::start();
    let server = Postgres::shared();
    let name = server.fresh_database("two_outboxes");
    let client = server.client_for(&name);
    let mut relays = Vec::new();
    for table in ["outbox_a", "outbox_b"] {
        create_outbox(&client, table);
        let slot = format!("{name}_{table}");
        create_publication_and_slot(&client, table, &slot, &slot);
        let relay = Relay::new(&server.url_for(&name), &stream.url());
        let relay = relay.slot(&slot).publication(&slot).table(&format!("public.{table}"));
        relays.push(relay.started());
    }
    // when a transaction writes into both
    client.run(&format!("BEGIN; {}; {}; COMMIT", insert("outbox_a", 1), insert("outbox_b", 2)));
    // then the stream has both rows
    stream.must_hold(2, || format!("{}{}", relays[0].log(), relays[1].log()));
}

#[test]
fn two_relays_on_one_outbox_send_the_same_identity() {
    let mut stream = Stream::start();
    let server = Postgres::shared();
    let name = server.empty_outbox("two_relays");
    let client = server.client_for(&name);
    let other = format!("{name}_other");
    create_slot(&client, &other, "pgoutput");
    for number in 0..5 {
        client.run(&insert("outbox", number));
    }
    let url = server.url_for(&name);
    for slot in [&name, &other] {
        let relay = Relay::new(&url, &stream.url()).slot(slot).publication(&name);
        let mut relay = quick(relay).started();
        finish::<Postgres>(&mut relay, &client, slot);
    }
    stream.must_hold(5, String::new);
}

/// A failover: the promoted server writes a timeline of its own, and has the rows of the old one.
#[test]
fn a_row_has_the_same_identity_on_a_later_timeline() {
    // given rows that a relay has sent
    let mut stream = Stream::start();
    let mut server = Postgres::start(Version::V15);
    let name = server.empty_outbox("timelines");
    let other = format!("{name}_other");
    let client = server.client_for(&name);
    create_slot(&client, &other, "pgoutput");
    for number in 0..5 {
        client.run(&insert("outbox", number));
    }
    let send = |slot: &str, server: &Postgres, sink: &str| {
        let relay = Relay::new(&server.url_for(&name), sink).slot(slot).publication(&name);
        let mut relay = quick(relay).started();
        finish::<Postgres>(&mut relay, &server.client_for(&name), slot);
        relay.log()
    };
    send(&name, &server, &stream.url());
    // when the server is promoted, and another relay reads them from there
    server.stop_fast();
    server.configure(&["restore_command = 'false'"]);
    std::fs::write(server.data().join("recovery.signal"), "").unwrap();
    server.restart();
    let client = server.client_for(&name);
    let promoted = || client.value("SELECT pg_is_in_recovery()").as_deref() == Some("f");
    assert!(eventually(PATIENCE, promoted), "{}", server.log());
    client.run(&insert("outbox", 5));
    let log = send(&other, &server, &stream.url());
    // then the broker knows the old ones
    stream.must_hold(6, || log.clone());
}

/// A server whose data folder can be copied while it is stopped.
trait Copied: Server + Sized {
    fn halt(&mut self);
    fn go_on(&mut self);
    /// A server of its own, at another address, on a copy of this halted one's data folder.
    fn copy(&self) -> Self;
    fn insert(client: &Self::Client, number: u32);
}

impl Copied for Postgres {
    fn halt(&mut self) {
        self.stop_fast();
    }
    fn go_on(&mut self) {
        self.restart();
    }
    fn copy(&self) -> Self {
        self.copy_of_stopped()
    }
    fn insert(client: &Self::Client, number: u32) {
        client.run(&insert("outbox", number));
    }
}

impl Copied for MySql {
    fn halt(&mut self) {
        self.stop();
    }
    fn go_on(&mut self) {
        self.start_again();
        self.await_ready();
    }
    fn copy(&self) -> Self {
        self.copy_of_stopped()
    }
    fn insert(client: &Self::Client, number: u32) {
        client.run(&row("outbox", number, &format!("UNHEX('{number:032}')")));
    }
}

/// Also what a restored snapshot is: one copy goes on where the other one had been before.
fn copies_go_on_by_themselves<S: Copied>(mut server: S) {
    // given an outbox, and a copy of its server's data folder
    let mut stream = Stream::start();
    let name = server.empty_outbox("copies");
    server.halt();
    let copy = server.copy();
    server.go_on();
    // when each server gets rows of its own, at the same places in the log
    let servers = [server, copy];
    for number in 0..20 {
        for (index, server) in servers.iter().enumerate() {
            let number = number + 100 * index as u32;
            S::insert(&server.client_for(&name), number);
        }
    }
    let mut log = String::new();
    for server in &servers {
        let mut relay = quick(S::relay(&server.url_for(&name), &stream.url(), &name)).started();
        finish::<S>(&mut relay, &server.client_for(&name), &name);
        log.push_str(&relay.log());
    }
    // then none of them is taken for another one's
    stream.must_hold(40, || log.clone());
}

#[test]
fn rows_of_a_postgres_and_of_its_copy_are_different_ones() {
    copies_go_on_by_themselves(Postgres::start(Version::V15));
}

#[test]
fn rows_of_a_mariadb_and_of_its_copy_are_different_ones() {
    if BinlogVersion::MariaDb1011.is_left_out() {
        return;
    }
    copies_go_on_by_themselves(MySql::start(BinlogVersion::MariaDb1011));
}

#[test]
fn rows_of_a_mysql_and_of_its_copy_are_different_ones() {
    if BinlogVersion::MySql97.is_left_out() {
        return;
    }
    copies_go_on_by_themselves(MySql::start(BinlogVersion::MySql97));
}

/// Server ids are equal by habit: the same rows, at the same numbers, within the same second.
#[test]
fn equal_rows_of_two_mariadb_servers_with_one_id_are_different_ones() {
    if BinlogVersion::MariaDb1011.is_left_out() {
        return;
    }
    let mut stream = Stream::start();
    let servers =
        [(); 2].map(|()| MySql::start_with(BinlogVersion::MariaDb1011, &["--server-id=1"]));
    let names: Vec<String> = servers.iter().map(|server| server.empty_outbox("one_id")).collect();
    let clients = [0, 1].map(|index: usize| servers[index].client_for(&names[index]));
    for number in 0..20 {
        for client in &clients {
            <MySql as Copied>::insert(client, number);
        }
    }
    let mut log = String::new();
    for ((server, name), client) in servers.iter().zip(&names).zip(&clients) {
        let relay = <MySql as Server>::relay(&server.url_for(name), &stream.url(), name);
        let mut relay = quick(relay).started();
        finish::<MySql>(&mut relay, client, name);
        log.push_str(&relay.log());
    }
    stream.must_hold(40, || log.clone());
}
