//! The plain way of a row from the versions of MySQL and MariaDB that no other test runs on: what
//! `init` makes, what `check` says, a first start, the stream, a killed relay and the next one.

use std::sync::Arc;

use crate::cli::walpost;
use crate::support::broker::{Broker, Kind};
use crate::support::checker::Judge;
use crate::support::database::{Initial, create_outbox, init, is_stored, relay_first};
use crate::support::mysql::{MySql, Version};
use crate::support::process::eventually;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, drains, quick};
use crate::support::writer::{Shape, Workload};

/// Rows that are there before the relay.
const BEFORE: u64 = 400;

/// Nothing deletes: a row that is gone before the first start was never to be published.
const KEPT: &[(Shape, u32)] = &[
    (Shape::OneRow, 60),
    (Shape::ManyRows, 12),
    (Shape::SavepointRolledBack, 14),
    (Shape::RolledBack, 14),
];

fn relays(version: Version) {
    if version.is_left_out() {
        return;
    }
    // given a server of this version, rows in its outbox, and what `init` makes
    let server = MySql::start(version);
    let name = server.fresh_database("version");
    let client = server.client_for(&name);
    create_outbox(&client);
    let workload = Workload {
        aggregate_type: AGGREGATE_TYPE.to_owned(),
        mix: KEPT.to_vec(),
        rising_ids: true,
        rows_per_second: None,
        rows_per_connection: Some(BEFORE / 4),
        ..Workload::new(&server.url_for(&name), "outbox")
    };
    let before = workload.start().finish();
    init(&server.url_for(&name), &name);
    assert!(!is_stored(&client, &name), "this is no first start");
    // then `check` finds nothing that is missing
    let relay_name = format!("relay.name={name}");
    let url = match version {
        // No cipher of its TLS is left in today's libraries; see `mysql_connect`.
        Version::MySql8015 => format!("{}?ssl-mode=DISABLED", server.url_for(&name)),
        _ => server.url_for(&name),
    };
    let arguments = ["check", "--source", &url, "--sink", "null://", "--set", &relay_name];
    walpost(&arguments, &[]).exits(0);
    // when a relay starts for the first time beside writers, and is killed, and the next one goes on
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare(AGGREGATE_TYPE);
    let mut relay =
        quick(relay_first(&server.url_for(&name), &broker.url(), &name, Initial::Publish))
            .started();
    let workload = Workload {
        aggregate_type: AGGREGATE_TYPE.to_owned(),
        mix: KEPT.to_vec(),
        rising_ids: true,
        rows_per_second: Some(500),
        ledger: Arc::clone(&before),
        ..Workload::new(&server.url_for(&name), "outbox")
    };
    let writing = workload.start();
    let ledger = writing.ledger();
    for _ in 0..2 {
        let confirmed = || drains::<MySql>(&client, &name, PATIENCE);
        assert!(confirmed(), "{version:?}\n{}", relay.log());
        let rows = ledger.committed();
        assert!(eventually(PATIENCE, || ledger.committed() > rows + 200));
        relay.kill();
        relay.start();
    }
    let ledger = writing.stop();
    // then all that was committed is there, in order, byte for byte
    assert!(drains::<MySql>(&client, &name, PATIENCE), "{version:?}\n{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    Judge::new(&ledger, broker.published(AGGREGATE_TYPE)).judge().assert_clean();
}

#[test]
fn committed_rows_of_mysql_8_0_arrive() {
    relays(Version::MySql80);
}

#[test]
fn committed_rows_of_mysql_8_0_15_arrive() {
    relays(Version::MySql8015);
}

#[test]
fn committed_rows_of_mariadb_11_4_arrive() {
    relays(Version::MariaDb114);
}

#[test]
fn committed_rows_of_mariadb_11_8_arrive() {
    relays(Version::MariaDb118);
}
