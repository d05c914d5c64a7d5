//! The first start finds a table with rows and writers at work: each row goes exactly one way.

use std::sync::Arc;
use std::time::Duration;

use super::{numbers, on_each, row, run_all};
use crate::support::broker::{Broker, Kind};
use crate::support::checker::{Judge, row_of};
use crate::support::database::{Initial, create_outbox, init, is_stored, relay_first};
use crate::support::ledger::Ledger;
use crate::support::mysql::{MySql, Version};
use crate::support::process::eventually;
use crate::support::proxy::{Direction, Ending, Event, Proxy};
use crate::support::relay::{Relay, program};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, drains, quick};
use crate::support::writer::{Shape, Workload};

/// Rows that are there before the relay.
const BEFORE: u64 = 2_000;

/// Nothing deletes: a row that is gone before the first start was never to be published.
const KEPT: &[(Shape, u32)] = &[
    (Shape::OneRow, 60),
    (Shape::ManyRows, 12),
    (Shape::SavepointRolledBack, 14),
    (Shape::RolledBack, 14),
];

/// An outbox with rows that no relay has seen.
struct New {
    name: String,
    broker: Broker,
    to_broker: Proxy,
    to_server: Proxy,
    relay: Relay,
    /// Those rows.
    before: Arc<Ledger>,
}

impl New {
    fn outbox(server: &MySql, initial: Initial) -> New {
        let name = server.fresh_database("first");
        let client = server.client_for(&name);
        create_outbox(&client);
        let mut before = workload(server, &name);
        before.rows_per_second = None;
        before.rows_per_connection = Some(BEFORE / 2);
        let before = before.start().finish();
        init(&server.url_for(&name), &name);
        assert!(!is_stored(&client, &name), "this is no first start");
        let (broker, to_broker, sink) = Broker::start_behind_proxy(Kind::Nats);
        broker.prepare(AGGREGATE_TYPE);
        let to_server = Proxy::start(server.address());
        let source = server.url_at(to_server.addr(), &name);
        // Few rows at once: most of the table has still to be read when a first start ends early.
        let relay = relay_first(&source, &sink, &name, initial);
        let relay = quick(relay.args(&["--set", "relay.rows_max=256"]));
        New { name, broker, to_broker, to_server, relay, before }
    }

    fn drains(&self, server: &MySql) -> bool {
        drains::<MySql>(&server.client_for(&self.name), &self.name, PATIENCE)
    }
}

/// Ids rise, so that rows of a key stand in the table in the order in which they were written.
fn workload(server: &MySql, database: &str) -> Workload {
    Workload {
        aggregate_type: AGGREGATE_TYPE.to_owned(),
        mix: KEPT.to_vec(),
        rising_ids: true,
        ..Workload::new(&server.url_for(database), "outbox")
    }
}

fn publishes(server: &MySql) {
    // given rows, and writers at work
    let mut new = New::outbox(server, Initial::Publish);
    let mut workload = workload(server, &new.name);
    workload.ledger = Arc::clone(&new.before);
    workload.rows_per_second = Some(1_000);
    let writing = workload.start();
    let ledger = writing.ledger();
    let rows = ledger.committed();
    assert!(eventually(PATIENCE, || ledger.committed() > rows + 300));
    // when a relay starts for the first time
    new.relay.start();
    assert!(new.drains(server), "{}", new.relay.log());
    let rows = ledger.committed();
    assert!(eventually(PATIENCE, || ledger.committed() > rows + 300));
    // then each row is published once, by whichever way
    let ledger = writing.stop();
    assert!(new.drains(server), "{}", new.relay.log());
    assert!(new.relay.terminate().success(), "{}", new.relay.log());
    let published = new.broker.published(AGGREGATE_TYPE);
    Judge::new(&ledger, published).duplicates_max(0).judge().assert_clean();
    assert_eq!(new.to_broker.seen(Event::Publish), ledger.committed() as u64, "sent twice");
}

#[test]
fn a_first_start_publishes_each_row_once_while_writers_are_at_work() {
    on_each(publishes);
}

fn is_killed(server: &MySql) {
    // given rows, and a broker that takes its time
    let mut new = New::outbox(server, Initial::Publish);
    let ledger = Arc::clone(&new.before);
    new.to_broker.delay(Direction::ToClient, Duration::from_millis(20));
    // when the relay is killed in the midst of its first start, twice
    for wanted in [200, 700] {
        new.relay.start();
        let seen = new.to_broker.seen(Event::Publish);
        let some = || new.to_broker.seen(Event::Publish) >= seen + wanted;
        assert!(eventually(PATIENCE, some), "{}", new.relay.log());
        new.relay.kill();
        assert!(new.broker.published(AGGREGATE_TYPE).len() < ledger.committed(), "too late");
    }
    // then the next one brings all of it
    new.to_broker.resume();
    new.relay.start();
    assert!(new.drains(server), "{}", new.relay.log());
    assert!(new.relay.terminate().success(), "{}", new.relay.log());
    Judge::new(&ledger, new.broker.published(AGGREGATE_TYPE)).judge().assert_clean();
}

#[test]
fn a_relay_killed_in_its_first_start_begins_it_again() {
    on_each(is_killed);
}

/// A first start ends in its midst, and meanwhile a row came and went that the table never shows
/// again.
fn goes_on(server: &MySql, interrupt: impl Fn(&mut New)) {
    // given a first start in its midst: the broker takes its time
    let mut new = New::outbox(server, Initial::Publish);
    let ledger = Arc::clone(&new.before);
    new.to_broker.delay(Direction::ToClient, Duration::from_millis(20));
    new.relay.start();
    let some = || new.to_broker.seen(Event::Publish) >= 200;
    assert!(eventually(PATIENCE, some), "{}", new.relay.log());
    let mut check = program();
    check.args(["check", "--source", &server.url_for(&new.name), "--table", "outbox"]);
    check.args(["--sink", "null://", "--set", &format!("relay.name={}", new.name)]);
    let told = String::from_utf8(check.output().unwrap().stdout).unwrap();
    assert!(told.contains("still going over"), "{told}");
    // when that row comes and goes, and the relay has to begin again
    let client = server.client_for(&new.name);
    run_all(&client, &[&row(1), "DELETE FROM outbox WHERE aggregateid = 'k'"]);
    interrupt(&mut new);
    assert!(new.broker.published(AGGREGATE_TYPE).len() < ledger.committed(), "too late");
    new.to_broker.resume();
    // then it is published beside the rows that are there
    assert!(new.drains(server), "{}", new.relay.log());
    assert!(new.relay.terminate().success(), "{}", new.relay.log());
    let published = new.broker.published(AGGREGATE_TYPE);
    let (rows, other): (Vec<_>, Vec<_>) =
        published.into_iter().partition(|message| row_of(message).is_some());
    assert_eq!(numbers(&other), [1], "{}", new.relay.log());
    Judge::new(&ledger, rows).judge().assert_clean();
}

#[test]
fn a_row_that_comes_and_goes_in_a_first_start_is_published_although_the_relay_is_killed() {
    on_each(|server| {
        goes_on(server, |new| {
            new.relay.kill();
            new.relay.start();
        });
    });
}

#[test]
fn a_row_that_comes_and_goes_in_a_first_start_is_published_although_the_connection_breaks() {
    on_each(|server| goes_on(server, |new| new.to_server.cut_all(Ending::Reset)));
}

fn skips(server: &MySql) {
    // given rows that nobody wants
    let mut new = New::outbox(server, Initial::Skip);
    // when a relay starts, and then rows are written
    new.relay.start();
    let client = server.client_for(&new.name);
    let stored = || is_stored(&client, &new.name);
    assert!(eventually(PATIENCE, stored), "{}", new.relay.log());
    let mut workload = workload(server, &new.name);
    workload.rows_per_connection = Some(200);
    let ledger = workload.start().finish();
    // then those are published and no others
    assert!(new.drains(server), "{}", new.relay.log());
    assert!(new.relay.terminate().success(), "{}", new.relay.log());
    let published = new.broker.published(AGGREGATE_TYPE);
    Judge::new(&ledger, published).duplicates_max(0).judge().assert_clean();
}

#[test]
fn a_first_start_that_skips_publishes_what_is_written_from_then_on() {
    on_each(skips);
}

#[test]
fn a_first_start_on_mariadb_waits_for_the_end_of_what_is_prepared() {
    if Version::MariaDb1011.is_left_out() {
        return;
    }
    // given a row whose event is in the binlog already, and which is in the table only later
    let server = MySql::start(Version::MariaDb1011);
    let mut new = New::outbox(&server, Initial::Skip);
    let client = server.client_for(&new.name);
    run_all(&client, &["XA START 'one'", &row(1), "XA END 'one'", "XA PREPARE 'one'"]);
    // when a relay starts for the first time
    new.relay.start();
    let waits = || new.relay.log().contains("XA RECOVER");
    assert!(eventually(PATIENCE, waits), "{}", new.relay.log());
    // then it begins only when that has ended
    assert!(!is_stored(&client, &new.name));
    client.run("XA COMMIT 'one'");
    let stored = || is_stored(&client, &new.name);
    assert!(eventually(PATIENCE, stored), "{}", new.relay.log());
    client.run(&row(2));
    assert!(new.drains(&server), "{}", new.relay.log());
    assert!(new.relay.terminate().success(), "{}", new.relay.log());
    assert_eq!(numbers(&new.broker.published(AGGREGATE_TYPE)), [2]);
}
