//! A first start: in which order the rows come that are there, how it waits for the lock that it
//! takes on MySQL, and where it goes on after an interruption.

use std::time::{Duration, Instant};

use super::{numbers, on_each, on_own, row, run_all};
use crate::support::broker::{Broker, Kind};
use crate::support::database::{Initial, Server, create_outbox, init, is_stored, relay_first};
use crate::support::mysql::{Client, MySql, Version, literal};
use crate::support::process::eventually;
use crate::support::proxy::{Direction, Ending, Event, Proxy};
use crate::support::relay::Relay;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, drains, quick};

/// An outbox whose key does not rise, and whose moments are seconds.
fn create(client: &Client, further: &str) {
    client.run(&format!(
        "CREATE TABLE outbox (id binary(16) PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload json, \
         created_at datetime NOT NULL DEFAULT CURRENT_TIMESTAMP {further}) \
         CHARACTER SET utf8mb4"
    ));
}

/// Nine rows of one key in one statement, whose ids fall as their numbers rise.
fn nine(client: &Client) {
    let values: Vec<String> = (1..10)
        .map(|number| {
            format!(
                "(UNHEX(LPAD(HEX({}), 32, '0')), {}, 'k', 'T', '{{\"n\": {number}}}')",
                100 - number,
                literal(AGGREGATE_TYPE)
            )
        })
        .collect();
    client.run(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES {}",
        values.join(", ")
    ));
}

/// What a first start publishes of the nine rows, and what it logs.
fn published(server: &MySql, further: &str, settings: &[&str]) -> (Vec<u64>, String) {
    let name = server.fresh_database("order");
    let client = server.client_for(&name);
    create(&client, further);
    nine(&client);
    init(&server.url_for(&name), &name);
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare(AGGREGATE_TYPE);
    let relay = relay_first(&server.url_for(&name), &broker.url(), &name, Initial::Publish);
    let mut relay = quick(relay.args(settings)).started();
    assert!(drains::<MySql>(&client, &name, PATIENCE), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    (numbers(&broker.published(AGGREGATE_TYPE)), relay.log())
}

#[test]
fn rows_of_a_first_start_come_as_they_were_written_where_a_column_says_how() {
    const WARNING: &str = "source.initial_order names a column";
    on_each(|server| {
        let counter = ", seq bigint AUTO_INCREMENT UNIQUE";
        let plain = ", seq bigint DEFAULT NULL";
        // given a counter of the server's
        let (numbers, log) = published(server, counter, &[]);
        assert_eq!(numbers, (1..10).collect::<Vec<_>>());
        assert!(!log.contains(WARNING), "{log}");
        // or a column that the settings name, here one that falls
        let named = ["--set", "source.initial_order=id"];
        let (numbers, log) = published(server, plain, &named);
        assert_eq!(numbers, (1..10).rev().collect::<Vec<_>>());
        assert!(!log.contains(WARNING), "{log}");
        // and where nothing tells the rows of one second apart, that is said
        let (numbers, log) = published(server, plain, &[]);
        assert_eq!(numbers.len(), 9);
        assert!(log.contains(WARNING) && log.contains("same created_at"), "{log}");
    });
}

/// A first start of many rows into a broker that takes its time.
struct Slow {
    name: String,
    broker: Broker,
    to_broker: Proxy,
    to_server: Proxy,
    relay: Relay,
    client: Client,
}

const ROWS: u64 = 2_000;
const ROWS_MAX: u64 = 128;

impl Slow {
    fn start(server: &MySql) -> Slow {
        let name = server.fresh_database("resume");
        let client = server.client_for(&name);
        create_outbox(&client);
        for first in (0..ROWS).step_by(500) {
            let values: Vec<String> = (first..first + 500)
                .map(|number| {
                    let id = uuid::Uuid::from_u128(fastrand::u128(..)).simple().to_string();
                    format!(
                        "(X'{id}', {}, 'k{}', 'T', '{{\"n\": {number}}}')",
                        literal(AGGREGATE_TYPE),
                        number % 50
                    )
                })
                .collect();
            client.run(&format!(
                "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES {}",
                values.join(", ")
            ));
        }
        init(&server.url_for(&name), &name);
        let (broker, to_broker, sink) = Broker::start_behind_proxy(Kind::Nats);
        broker.prepare(AGGREGATE_TYPE);
        let to_server = Proxy::start(server.address());
        let source = server.url_at(to_server.addr(), &name);
        let relay = relay_first(&source, &sink, &name, Initial::Publish);
        let rows_max = format!("relay.rows_max={ROWS_MAX}");
        let relay = quick(relay.args(&["--set", &rows_max, "--set", "source.heartbeat=1s"]));
        to_broker.delay(Direction::ToClient, Duration::from_millis(20));
        Slow { name, broker, to_broker, to_server, relay, client }
    }

    /// Waits until so many more rows were sent.
    fn await_sent(&self, wanted: u64) {
        let seen = self.to_broker.seen(Event::Publish);
        let some = || self.to_broker.seen(Event::Publish) >= seen + wanted;
        assert!(eventually(PATIENCE, some), "{}", self.relay.log());
    }

    /// Lets all of it arrive; says how many rows were sent more often than once.
    fn finish(mut self) -> u64 {
        self.to_broker.resume();
        assert!(drains::<MySql>(&self.client, &self.name, PATIENCE), "{}", self.relay.log());
        assert!(self.relay.terminate().success(), "{}", self.relay.log());
        let mut all = numbers(&self.broker.published(AGGREGATE_TYPE));
        // A row that was sent again had the same identity, so the stream has it once.
        all.sort_unstable();
        assert_eq!(all, (0..ROWS).collect::<Vec<_>>(), "{}", self.relay.log());
        self.to_broker.seen(Event::Publish) - ROWS
    }
}

#[test]
fn a_relay_killed_in_its_first_start_goes_on_behind_what_was_confirmed() {
    on_each(|server| {
        let mut slow = Slow::start(server);
        for _ in 0..3 {
            slow.relay.start();
            slow.await_sent(400);
            slow.relay.kill();
        }
        slow.relay.start();
        let repeated = slow.finish();
        // What was in flight at each kill, and what was confirmed since the last write.
        assert!(repeated <= 3 * 3 * ROWS_MAX, "{repeated}");
    });
}

#[test]
fn a_connection_lost_in_a_first_start_repeats_nothing() {
    on_each(|server| {
        let mut slow = Slow::start(server);
        slow.relay.start();
        for _ in 0..3 {
            slow.await_sent(300);
            slow.to_server.cut_all(Ending::Reset);
        }
        assert_eq!(slow.finish(), 0);
    });
}

#[test]
fn a_server_that_falls_silent_in_a_first_start_is_left_and_nothing_is_repeated() {
    on_each(|server| {
        let mut slow = Slow::start(server);
        slow.relay.start();
        slow.await_sent(300);
        // Only what is open: a new connection passes.
        slow.to_server.freeze_open();
        slow.await_sent(ROWS - 900);
        assert_eq!(slow.finish(), 0);
    });
}

#[test]
fn limits_of_the_server_for_statements_do_not_end_a_first_start() {
    on_own(|server| {
        // given limits that are shorter than the first start takes
        let client = server.client();
        client.run(match server.version().is_mariadb() {
            true => "SET GLOBAL max_statement_time = 0.5",
            false => "SET GLOBAL max_execution_time = 500",
        });
        client.run("SET GLOBAL net_write_timeout = 1, GLOBAL wait_timeout = 1");
        client.run("SET GLOBAL lock_wait_timeout = 1");
        let mut slow = Slow::start(&server);
        slow.relay.start();
        slow.await_sent(400);
        assert_eq!(slow.finish(), 0);
    });
}

#[test]
fn a_first_start_on_mysql_waits_for_its_lock_with_growing_pauses_and_holds_writers_up_for_short() {
    if Version::MySql97.is_left_out() {
        return;
    }
    // given a transaction that wrote to the outbox and stays open
    let server = MySql::start(Version::MySql97);
    let name = server.fresh_database("lock");
    let client = server.client_for(&name);
    create_outbox(&client);
    client.run(&row(1));
    init(&server.url_for(&name), &name);
    let open = server.client_for(&name);
    run_all(&open, &["START TRANSACTION", &row(2)]);
    // when a relay starts for the first time
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare(AGGREGATE_TYPE);
    let source = server.url_for(&name);
    let mut relay = quick(relay_first(&source, &broker.url(), &name, Initial::Publish)).started();
    let held = || MySql::holder(&client, &name);
    assert!(eventually(PATIENCE, || held().is_some()), "{}", relay.log());
    let holder = held();
    // then other writers of the outbox wait now and then, and not for long
    let (mut longest, begun, mut number) = (Duration::ZERO, Instant::now(), 10);
    while !relay.log().contains("(try 3)") {
        assert!(begun.elapsed() < PATIENCE, "{}", relay.log());
        let asked = Instant::now();
        client.run(&row(number));
        longest = longest.max(asked.elapsed());
        number += 1;
        std::thread::sleep(Duration::from_millis(20));
        // and the lease does not run out, though nothing is read yet
        assert_eq!(held(), holder, "{}", relay.log());
    }
    assert!(longest < Duration::from_millis(2_500), "{longest:?}");
    assert!(!is_stored(&client, &name));
    // and it begins when that transaction is over
    open.run("COMMIT");
    assert!(eventually(PATIENCE, || is_stored(&client, &name)), "{}", relay.log());
    assert!(drains::<MySql>(&client, &name, PATIENCE), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    let mut published = numbers(&broker.published(AGGREGATE_TYPE));
    published.sort_unstable();
    assert_eq!(published, [1, 2].into_iter().chain(10..number).collect::<Vec<_>>());
}

#[test]
fn a_relay_told_to_stop_before_it_has_read_its_position_gives_the_lease_back() {
    on_each(|server| {
        // given a relay whose lease was taken, and whose next question is not answered
        let name = server.empty_outbox("given");
        let client = server.client_for(&name);
        let proxy = Proxy::start(server.address());
        let asked = proxy.when_bytes(
            Direction::ToServer,
            |bytes| bytes.windows(16).any(|part| part == b"initial_pending,"),
            crate::support::proxy::Point::Before,
            crate::support::proxy::Action::Blackhole(Direction::ToServer),
        );
        let source = server.url_at(proxy.addr(), &name);
        let mut relay = quick(MySql::relay(&source, "null://", &name)).started();
        assert!(asked.wait(PATIENCE), "{}", relay.log());
        assert!(MySql::holder(&client, &name).is_some(), "{}", relay.log());
        // when it is told to stop
        relay.signal(nix::sys::signal::Signal::SIGTERM);
        proxy.resume();
        relay.wait_exit();
        // then nobody has to wait for the end of its lease
        assert_eq!(MySql::holder(&client, &name), None, "{}", relay.log());
    });
}
