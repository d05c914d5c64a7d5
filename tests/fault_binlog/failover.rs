//! A primary dies and its replica takes its place: GTIDs say where the relay goes on, and its
//! position came along.

use std::sync::Arc;

use super::{VERSIONS, run_all};
use crate::support::broker::Kind;
use crate::support::database::{Initial, Server, init, relay_first};
use crate::support::ledger::Ledger;
use crate::support::mysql::{MySql, Version, literal};
use crate::support::process::eventually;
use crate::support::proxy::{Direction, Ending, Event};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage, drains, quick};

/// A replica that writes what it replicates into its own binlog, and nothing else.
fn replica_of(primary: &MySql) -> MySql {
    let port = primary.port();
    if primary.version().is_mariadb() {
        let replica = MySql::start_with(primary.version(), &["--log-slave-updates"]);
        let change = format!(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, \
             MASTER_USER = 'root', MASTER_USE_GTID = slave_pos"
        );
        run_all(&replica.client(), &["SET GLOBAL read_only = ON", &change, "START SLAVE"]);
        return replica;
    }
    let replica = MySql::start(primary.version());
    let change = format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
         SOURCE_USER = 'root', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1"
    );
    run_all(&replica.client(), &["SET GLOBAL super_read_only = ON", &change, "START REPLICA"]);
    replica
}

/// Waits until the replica has all that the primary has.
fn await_replica(primary: &MySql, replica: &MySql) {
    let (all, wait) = match primary.version().is_mariadb() {
        true => ("@@GLOBAL.gtid_binlog_pos", "MASTER_GTID_WAIT"),
        false => ("@@GLOBAL.gtid_executed", "WAIT_FOR_EXECUTED_GTID_SET"),
    };
    let all = primary.client().value(&format!("SELECT {all}")).expect("a GTID set");
    let wait = format!("SELECT {wait}({}, {})", literal(&all), PATIENCE.as_secs());
    assert_eq!(replica.client().value(&wait).as_deref(), Some("0"), "{}", replica.log());
}

/// As whoever looks after the servers would.
fn promote(replica: &MySql) {
    let statements = match replica.version().is_mariadb() {
        true => ["STOP SLAVE", "RESET SLAVE ALL", "SET GLOBAL read_only = OFF"],
        false => ["STOP REPLICA", "RESET REPLICA ALL", "SET GLOBAL read_only = OFF"],
    };
    run_all(&replica.client(), &statements);
}

fn goes_on(version: Version) {
    // given a relay with rows in flight, and a replica that has them all
    let mut primary = MySql::start(version);
    let replica = replica_of(&primary);
    let stage = Stage::set(&primary, Kind::Nats, "failover");
    let mut relay = stage.relay(&primary).started();
    let writing = stage.workload(&primary).start();
    stage.await_rows(200, &relay);
    stage.hold_back(300, &relay);
    let ledger = writing.stop();
    for direction in [Direction::ToServer, Direction::ToClient] {
        stage.to_database.blackhole(direction);
    }
    await_replica(&primary, &replica);
    // when the primary dies and the address leads to the replica, which takes no writes yet
    primary.kill();
    stage.to_database.set_target(replica.address());
    stage.to_database.cut_all(Ending::Reset);
    stage.to_database.resume();
    let refused = || relay.log().contains("read_only");
    assert!(eventually(PATIENCE, refused), "{}", relay.log());
    assert!(relay.is_running(), "{}", relay.log());
    promote(&replica);
    // then it goes on there: what was in flight is confirmed and not sent again
    stage.release();
    let mut workload = stage.workload(&replica);
    workload.ledger = Arc::clone(&ledger);
    let writing = workload.start();
    stage.await_rows(300, &relay);
    let ledger = writing.stop();
    stage.finish(&replica, relay, &ledger);
}

#[test]
fn a_relay_goes_on_at_the_replica_that_takes_the_place_of_its_primary() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        eprintln!("on {version:?}");
        goes_on(version);
    }
}

/// What one relay has sent from the primary, another one sends from the replica.
fn keeps_identities(version: Version) {
    const ROWS: u64 = 50;
    // given rows that one relay has sent from the primary, and a replica that has them
    let primary = MySql::start(version);
    let replica = replica_of(&primary);
    let stage = Stage::set(&primary, Kind::Nats, "identities");
    init(&primary.url_for(&stage.name), "other");
    let ledger = Ledger::default();
    let client = stage.client(&primary);
    MySql::bulk(&client, &ledger, ROWS);
    // and of a transaction that takes longer than a second, the unit of MariaDB's clock
    let insert = |id: u32| {
        format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES \
             (UNHEX('{id:032}'), '{AGGREGATE_TYPE}', 'k', 'T', '{{}}')"
        )
    };
    let (first, second) = (insert(1), insert(2));
    run_all(&client, &["START TRANSACTION", &first, "DO SLEEP(1.1)", &second, "COMMIT"]);
    let mut relay = stage.relay(&primary).started();
    assert!(stage.drains(&primary), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    await_replica(&primary, &replica);
    promote(&replica);
    // when the other relay, whose position came along, sends them from there
    let (proxy, sink) = stage.another_way();
    let url = replica.url_for(&stage.name);
    let mut other = quick(relay_first(&url, &sink, "other", Initial::Skip)).started();
    assert!(drains::<MySql>(&stage.client(&replica), "other", PATIENCE), "{}", other.log());
    assert!(other.terminate().success(), "{}", other.log());
    // then the broker knows each of them
    assert_eq!(proxy.seen(Event::Publish), ROWS + 2, "{}", other.log());
    let stream = stage.broker.block_on(stage.broker.nats().read_back(AGGREGATE_TYPE));
    assert_eq!(stream.len() as u64, ROWS + 2, "{}", other.log());
}

#[test]
fn a_row_has_the_same_identity_on_a_promoted_replica() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        eprintln!("on {version:?}");
        keeps_identities(version);
    }
}
