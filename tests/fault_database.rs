//! The database goes away under load: it crashes, or it is shut down while no broker confirms.

use std::time::{Duration, Instant};

use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{self, MySql};
use crate::support::postgres::{Postgres, Version};
use crate::support::process::eventually;
use crate::support::slot::{end_of_log, slot_state};
use crate::support::stage::{PATIENCE, Stage};

const CRASHES: u64 = 4;

/// Rows that each fault meets on their way, at least.
const IN_FLIGHT: u64 = 40;

/// After a crash PostgreSQL's slot may have gone back; a relay that outlives it knows where it was.
fn crashes<S: Server>(mut server: S, kind: Kind) {
    // given a relay under load
    let stage = Stage::set(&server, kind, "crash");
    let mut relay = stage.relay(&server);
    if kind == Kind::Nats {
        // A server may take longer to recover than a confirm may take, and what waits for its
        // confirm must not be sent again meanwhile.
        relay = relay.args(&["--set", "sink.ack_timeout=60s"]);
    }
    relay.start();
    let writing = stage.workload(&server).start();
    stage.await_rows(IN_FLIGHT, &relay);
    // when the database crashes, again and again, with rows on their way to the broker
    for crash in 0..CRASHES {
        stage.hold_back(IN_FLIGHT, &relay);
        server.crash();
        // Every other time the confirms come while there is no database to tell.
        if crash % 2 == 0 {
            stage.release();
        }
        server.recover();
        if crash % 2 == 1 {
            stage.await_rows(1, &relay);
            stage.release();
        }
        stage.await_rows(IN_FLIGHT, &relay);
    }
    // then all is there once, in order, although the database had to send rows again
    let ledger = writing.stop();
    let again = stage.finish(&server, relay, &ledger);
    assert!(again >= CRASHES / 2 * IN_FLIGHT, "the database sent only {again} rows again");
}

#[test]
fn crashes_of_the_database_cost_neither_a_row_nor_a_repeat_in_kafka() {
    crashes(Postgres::start(Version::V15), Kind::Kafka);
}

#[test]
fn crashes_of_the_database_cost_neither_a_row_nor_a_repeat_in_rabbitmq() {
    crashes(Postgres::start(Version::V15), Kind::RabbitMq);
}

#[test]
fn crashes_of_the_database_cost_neither_a_row_nor_a_repeat_in_nats() {
    crashes(Postgres::start(Version::V15), Kind::Nats);
}

/// Of MySQL or MariaDB, where this run does not do without it.
fn crashes_of(version: mysql::Version, kind: Kind) {
    if !version.is_left_out() {
        crashes(MySql::start(version), kind);
    }
}

#[test]
fn crashes_of_mysql_cost_neither_a_row_nor_a_repeat() {
    crashes_of(mysql::Version::MySql97, Kind::Nats);
}

#[test]
fn crashes_of_mariadb_cost_neither_a_row_nor_a_repeat() {
    crashes_of(mysql::Version::MariaDb1011, Kind::Kafka);
}

mod soak {
    use super::mysql::Version;
    use super::{Kind, crashes_of};

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn crashes_of_mysql_cost_neither_a_row_nor_a_repeat_in_kafka() {
        crashes_of(Version::MySql97, Kind::Kafka);
    }

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn crashes_of_mysql_cost_neither_a_row_nor_a_repeat_in_rabbitmq() {
        crashes_of(Version::MySql97, Kind::RabbitMq);
    }

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn crashes_of_mariadb_cost_neither_a_row_nor_a_repeat_in_rabbitmq() {
        crashes_of(Version::MariaDb1011, Kind::RabbitMq);
    }

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn crashes_of_mariadb_cost_neither_a_row_nor_a_repeat_in_nats() {
        crashes_of(Version::MariaDb1011, Kind::Nats);
    }
}

/// A server that shuts down waits for its walsenders' clients to acknowledge everything.
fn shuts_down(rows_max: &str, let_go_after: &str, words: &str) {
    // given a broker that confirms nothing, and rows that wait for it
    let mut server = Postgres::start(Version::V15);
    let stage = Stage::set(&server, Kind::Nats, "shutdown");
    let rows_max = format!("relay.rows_max={rows_max}");
    let let_go_after = format!("source.let_go_after={let_go_after}");
    let relay = stage
        .relay(&server)
        .args(&["--set", &let_go_after, "--set", "sink.ack_timeout=60s"])
        .args(&["--set", &rows_max])
        .started();
    let writing = stage.workload(&server).start();
    stage.await_rows(IN_FLIGHT, &relay);
    stage.hold_back(10 * IN_FLIGHT, &relay);
    let client = stage.client(&server);
    let slot = slot_state(&client, &stage.name).unwrap();
    assert!(slot.active_pid.is_some() && slot.confirmed_flush_lsn < end_of_log(&client));
    drop(client);
    // when the server is shut down
    let begun = Instant::now();
    server.stop_fast();
    // then it is let go: it would wait for ever otherwise, and `stop_fast` for a minute
    let waited = begun.elapsed();
    assert!(waited < Duration::from_secs(20), "{waited:?}\n{}", relay.log());
    assert!(eventually(PATIENCE, || relay.log().contains(words)), "{}", relay.log());
    // and the relay goes on by itself when both are back
    server.restart();
    stage.release();
    stage.await_rows(IN_FLIGHT, &relay);
    let ledger = writing.stop();
    stage.finish(&server, relay, &ledger);
}

#[test]
fn a_shutdown_is_not_held_up_by_a_broker_that_confirms_nothing() {
    // Noticed by the questions that a server asks which only waits for us.
    shuts_down("16384", "60s", "the server is shutting down");
}

#[test]
fn a_shutdown_is_not_held_up_by_a_full_ledger() {
    shuts_down("100", "2s", "releasing the connection to the database");
}
