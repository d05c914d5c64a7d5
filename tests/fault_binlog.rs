//! What only a binlog does to a relay: it is rotated, purged and compressed, its tables change
//! under the reader, its transactions hold text and savepoints, and nothing but a lease keeps two
//! relays apart. On MySQL 9.7 and on MariaDB 10.11.
//!
//! Faults that PostgreSQL has too are beside PostgreSQL's: `fault_kill`, `fault_database`,
//! `fault_connection`, `fault_stop`.

pub mod alter;
mod broker;
mod charset;
mod failover;
mod first_start;
mod foreign;
mod idle;
mod initial_order;
mod initial_values;
mod large;
mod precondition;
mod refusal;
mod renamed;
mod server_in_use;
mod silence;
mod standby;
mod statement;
mod transaction;

use crate::support::checker::Published;
use crate::support::database::Server;
use crate::support::mysql::{Client, MySql, Version, literal};
use crate::support::relay::Relay;
use crate::support::stage::{AGGREGATE_TYPE, quick};

const VERSIONS: [Version; 2] = [Version::MySql97, Version::MariaDb1011];

/// Runs a test on the shared server of each version that this run has.
fn on_each(test: impl Fn(&'static MySql)) {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        eprintln!("on {version:?}");
        test(MySql::shared(version));
    }
}

/// As [`on_each`], on servers of the test's own, which it may stop and reconfigure.
fn on_own(test: impl Fn(MySql)) {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        eprintln!("on {version:?}");
        test(MySql::start(version));
    }
}

/// A relay of this position that publishes to nobody; not started.
fn to_nobody(server: &MySql, name: &str) -> Relay {
    quick(MySql::relay(&server.url_for(name), "null://", name))
}

/// One row of the key `k`, with a number in its payload; a statement.
fn row(number: u64) -> String {
    format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES \
         (UNHEX(LPAD(HEX({number}), 32, '0')), {}, 'k', 'OrderCreated', '{{\"n\": {number}}}')",
        literal(AGGREGATE_TYPE)
    )
}

/// Numbers of such rows, in the broker's order.
fn numbers(published: &[Published]) -> Vec<u64> {
    let number = |message: &Published| {
        let payload = message.value.as_deref().expect("a payload");
        let payload: serde_json::Value = serde_json::from_slice(payload).expect("JSON");
        payload["n"].as_u64().expect("a number")
    };
    published.iter().map(number).collect()
}

/// It exits with 1; its last line is the only one on the matter, and has each of the words.
fn refuses(relay: &mut Relay, words: &[&str]) {
    let begin = relay.log().len();
    relay.start();
    ends_with(relay, begin, words);
}

/// As [`refuses`], of a relay that runs; its log from `begin` on counts.
fn ends_with(relay: &mut Relay, begin: usize, words: &[&str]) {
    let status = relay.wait_exit();
    let log = relay.log().split_off(begin);
    assert_eq!(status.code(), Some(1), "{log}");
    let last: Vec<&str> = log.lines().filter(|line| line.starts_with("walpost: ")).collect();
    assert_eq!(last.len(), 1, "{log}");
    for word in words {
        assert!(last[0].contains(word), "no {word:?} in\n{log}");
    }
}

/// Runs statements in one session.
fn run_all<T: AsRef<str>>(client: &Client, statements: &[T]) {
    for statement in statements {
        client.run(statement.as_ref());
    }
}
