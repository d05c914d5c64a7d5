//! The connection to the database breaks in the middle of anything, or nearly does.

use std::time::Duration;

use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version};
use crate::support::postgres::Postgres;
use crate::support::process::eventually;
use crate::support::proxy::{Action, Direction, Ending, Event, Point};
use crate::support::slot::{end_of_log, slot_state};
use crate::support::stage::{PATIENCE, Stage};

/// `rare` messages are waited for only once or twice.
fn cut_at_messages<S: Server>(server: &S, rare: Event) {
    // given a relay under load, to a broker that takes its time
    let stage = Stage::set(server, Kind::Nats, "cut");
    let relay = stage.relay(server).started();
    let writing = stage.workload(server).start();
    stage.await_rows(1, &relay);
    stage.to_broker.delay(Direction::ToClient, Duration::from_millis(30));
    // when its connection is cut before, inside and after messages of every kind
    let (mut cuts, mut certain) = (0, 0);
    for event in [Event::Insert, Event::Commit, Event::XLogData, rare] {
        for point in [Point::Before, Point::Inside, Point::After] {
            for (count, ending) in [(1, Ending::Reset), (3, Ending::Fin), (29, Ending::Fin)] {
                if event == rare && count > 3 {
                    continue;
                }
                let trigger = stage.to_database.when(event, count, point, Action::Cut(ending));
                assert!(trigger.wait(PATIENCE), "{event:?} {count}\n{}", relay.log());
                // A row is not safe before its commit has come.
                certain += u64::from(event == Event::Insert && point == Point::After);
                cuts += 1;
                let streams = stage.to_database.seen(Event::Commit) + 2;
                let again = || stage.to_database.seen(Event::Commit) >= streams;
                assert!(eventually(PATIENCE, again), "{}", relay.log());
            }
        }
    }
    // then every row arrives once, in order, although the database sent some again
    let ledger = writing.stop();
    let again = stage.finish(server, relay, &ledger);
    assert!(cuts >= 30 && again >= certain, "{cuts} cuts, {again} rows again, {certain} expected");
}

#[test]
fn a_connection_cut_at_a_message_costs_neither_a_row_nor_a_repeat() {
    cut_at_messages(Postgres::shared(), Event::Keepalive);
}

#[test]
fn a_connection_to_mysql_cut_at_a_message_costs_neither_a_row_nor_a_repeat() {
    // The statement that writes the position, or the answer to it, is lost too.
    if !Version::MySql97.is_left_out() {
        cut_at_messages(MySql::shared(Version::MySql97), Event::Feedback);
    }
}

#[test]
fn a_connection_to_mariadb_cut_at_a_message_costs_neither_a_row_nor_a_repeat() {
    if !Version::MariaDb1011.is_left_out() {
        cut_at_messages(MySql::shared(Version::MariaDb1011), Event::Feedback);
    }
}

fn cut_at_bytes<S: Server>(server: &S) {
    // given a relay under load, to a broker that takes its time
    let stage = Stage::set(server, Kind::Nats, "cut_bytes");
    let relay = stage.relay(server).started();
    let writing = stage.workload(server).start();
    stage.await_rows(1, &relay);
    stage.to_broker.delay(Direction::ToClient, Duration::from_millis(30));
    // when it is cut after this and that many bytes; early ones hit the login of a reconnect
    for cut in 0..60_u64 {
        let ending = if cut % 3 == 0 { Ending::Reset } else { Ending::Fin };
        let accepted = stage.to_database.accepted();
        let reconnects = || stage.to_database.accepted() > accepted;
        // One that strikes where the relay asked its last question is not missed: another one.
        let struck = (0..12).any(|_| {
            stage.to_database.cut_after_bytes(Direction::ToClient, cut * cut * 7 + cut, ending);
            eventually(PATIENCE / 12, reconnects)
        });
        assert!(struck, "cut {cut}, {} rows\n{}", stage.rows_sent(), relay.log());
        if cut % 2 == 0 {
            stage.await_rows(5, &relay);
        }
    }
    // then every row arrives once, in order, although the database sent some again
    let ledger = writing.stop();
    let again = stage.finish(server, relay, &ledger);
    assert!(again >= 30, "the database sent only {again} rows again");
}

#[test]
fn a_connection_cut_at_any_byte_costs_neither_a_row_nor_a_repeat() {
    cut_at_bytes(Postgres::shared());
}

#[test]
fn a_connection_to_mysql_cut_at_any_byte_costs_neither_a_row_nor_a_repeat() {
    if !Version::MySql97.is_left_out() {
        cut_at_bytes(MySql::shared(Version::MySql97));
    }
}

#[test]
fn a_connection_to_mariadb_cut_at_any_byte_costs_neither_a_row_nor_a_repeat() {
    if !Version::MariaDb1011.is_left_out() {
        cut_at_bytes(MySql::shared(Version::MariaDb1011));
    }
}

#[test]
fn a_stopped_broker_and_a_full_ledger_do_not_cost_the_connection() {
    // given a server that drops clients after a second of silence, and a broker that stands still
    let server = Postgres::shared();
    let stage = Stage::set(server, Kind::Nats, "silence");
    let url = server.url_at(stage.to_database.addr(), &stage.name);
    let relay = stage
        .relay_from(&format!("{url}?options=-c%20wal_sender_timeout%3D1000"))
        .args(&["--set", "relay.rows_max=100", "--set", "sink.ack_timeout=60s"])
        .started();
    let mut workload = stage.workload(server);
    workload.rows_per_second = None;
    workload.payload_bytes = 20_000;
    let writing = workload.start();
    stage.await_rows(50, &relay);
    stage.to_broker.blackhole(Direction::ToClient);
    // when so much is written that the relay must stop to read
    let sent = || stage.to_database.forwarded(Direction::ToClient);
    let mut before = sent();
    let stands = eventually(PATIENCE, || {
        std::thread::sleep(Duration::from_millis(500));
        std::mem::replace(&mut before, sent()) == sent()
    });
    assert!(stands, "the relay reads on and on");
    let ledger = writing.stop();
    let (accepted, told) = (stage.to_database.accepted(), stage.to_database.seen(Event::Feedback));
    let pid = slot_state(&stage.client(server), &stage.name).unwrap().active_pid;
    assert!(pid.is_some(), "{}", relay.log());
    std::thread::sleep(Duration::from_secs(5));
    // then it has told the server that it lives, and the connection is still the same
    let (rows, committed) = (stage.rows_sent(), ledger.committed() as u64);
    assert!(rows + 50 < committed, "it has read {rows} of {committed} rows: nothing held it up");
    assert!(stage.to_database.seen(Event::Feedback) >= told + 10);
    let client = stage.client(server);
    let slot = slot_state(&client, &stage.name).unwrap();
    assert!(slot.confirmed_flush_lsn < end_of_log(&client));
    assert_eq!((slot.active_pid, stage.to_database.accepted()), (pid, accepted), "{}", relay.log());
    // and everything arrives once
    stage.release();
    assert_eq!(stage.finish(server, relay, &ledger), 0, "rows were sent again");
}
