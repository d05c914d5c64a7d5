//! The relay is asked to stop under load, also in the middle of a transaction.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version};
use crate::support::postgres::Postgres;
use crate::support::proxy::{Action, Direction, Event, Point};
use crate::support::stage::{PATIENCE, Stage};

const STOPS: u64 = 20;
const BULK_ROWS: u64 = 3_000;

fn stops<S: Server>(server: &S)
where
    S::Client: Send + 'static,
{
    // given a relay under load, to a broker that takes its time
    let stage = Stage::set(server, Kind::Nats, "stop");
    stage.to_broker.delay(Direction::ToClient, Duration::from_millis(5));
    let mut relay = stage.relay(server);
    let mut workload = stage.workload(server);
    workload.rows_per_second = Some(600);
    let writing = workload.start();
    let ledger = writing.ledger();
    let client = stage.client(server);
    let mut unconfirmed = 0;
    for stop in 0..STOPS {
        relay.start();
        stage.await_rows(30, &relay);
        // when it is stopped between the rows of a large transaction, or wherever it is
        let pid = Pid::from_raw(i32::try_from(relay.id()).unwrap());
        if stop % 2 == 0 {
            let terminate = Action::Run(Box::new(move || kill(pid, Signal::SIGTERM).unwrap()));
            let writer = (stage.client(server), Arc::clone(&ledger));
            let bulk = std::thread::spawn(move || S::bulk(&writer.0, &writer.1, BULK_ROWS));
            // Other transactions stand before it, yet few: most counts lie inside of it.
            let count = 100 + stop * 130;
            let struck = stage.to_database.when(Event::Insert, count, Point::After, terminate);
            assert!(struck.wait(PATIENCE), "{}", relay.log());
            bulk.join().unwrap();
        } else {
            kill(pid, Signal::SIGTERM).unwrap();
        }
        let confirmed = S::confirmed(&client, &stage.name);
        unconfirmed += u64::from(ledger.committed_above(confirmed) > 0);
        // then it ends cleanly
        assert!(relay.wait_exit().success(), "{}", relay.log());
    }
    // and all of its lives together have sent each row once
    assert!(unconfirmed >= STOPS / 2, "only {unconfirmed} stops met rows on their way");
    relay.start();
    let ledger = writing.stop();
    let confirmed_by_stops = relay.log().matches("stopped confirmed").count();
    assert!(confirmed_by_stops as u64 >= STOPS, "{}", relay.log());
    stage.finish(server, relay, &ledger);
}

#[test]
fn clean_stops_under_load_repeat_no_row() {
    stops(Postgres::shared());
}

#[test]
fn clean_stops_under_load_repeat_no_row_of_mysql() {
    if !Version::MySql97.is_left_out() {
        stops(MySql::shared(Version::MySql97));
    }
}

#[test]
fn clean_stops_under_load_repeat_no_row_of_mariadb() {
    if !Version::MariaDb1011.is_left_out() {
        stops(MySql::shared(Version::MariaDb1011));
    }
}
