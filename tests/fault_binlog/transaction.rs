//! What stands in a transaction besides its rows: savepoints, statements, other tables, the marks
//! of a distributed commit, and compression around all of it.

use std::time::Duration;

use super::{numbers, on_each, refuses, row, run_all, to_nobody};
use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version};
use crate::support::proxy::{Ending, Event};
use crate::support::stage::{AGGREGATE_TYPE, Stage, drains};

/// Transactions whose rows 1, 4, 6, 7, 9, 10, 12 and 13 are committed.
fn transactions() -> Vec<String> {
    let statement = |text: &str| text.to_owned();
    vec![
        statement("CREATE TABLE other (n int PRIMARY KEY AUTO_INCREMENT, t text)"),
        statement("BEGIN"),
        row(1),
        statement("SAVEPOINT a"),
        row(2),
        statement("INSERT INTO other (t) VALUES ('x')"),
        statement("SAVEPOINT b"),
        row(3),
        statement("ROLLBACK TO a"),
        row(4),
        statement("COMMIT"),
        statement("BEGIN"),
        row(5),
        statement("ROLLBACK"),
        // A savepoint replaces another one of its name.
        statement("BEGIN"),
        row(6),
        statement("SAVEPOINT a"),
        row(7),
        statement("SAVEPOINT a"),
        row(8),
        statement("ROLLBACK TO a"),
        row(9),
        statement("COMMIT"),
        statement("BEGIN"),
        row(10),
        statement("CREATE TEMPORARY TABLE temporary (n int)"),
        statement("SAVEPOINT a"),
        row(11),
        statement("ROLLBACK TO a"),
        statement("DROP TEMPORARY TABLE temporary"),
        statement("COMMIT"),
        // The outbox's rows may be changed and deleted, and that is nobody's message.
        statement("UPDATE outbox SET aggregateid = 'changed'"),
        statement("DELETE FROM outbox WHERE id > UNHEX(LPAD('6', 32, '0'))"),
        statement("TRUNCATE TABLE outbox"),
        // A distributed transaction of one phase is like any other; one of two phases is nothing
        // to us while it has no row of ours.
        statement("XA START 'one'"),
        row(12),
        statement("XA END 'one'"),
        statement("XA COMMIT 'one' ONE PHASE"),
        statement("XA START 'two'"),
        statement("INSERT INTO other (t) VALUES ('two')"),
        statement("XA END 'two'"),
        statement("XA PREPARE 'two'"),
        statement("XA COMMIT 'two'"),
        statement("XA START 'three'"),
        statement("INSERT INTO other (t) VALUES ('three')"),
        statement("XA END 'three'"),
        statement("XA PREPARE 'three'"),
        statement("XA ROLLBACK 'three'"),
        // Statements that commit by themselves.
        statement("CREATE TABLE copied AS SELECT t FROM other"),
        statement("ANALYZE TABLE copied"),
        statement("CREATE VIEW seen AS SELECT t FROM copied"),
        statement("DROP VIEW seen"),
        row(13),
    ]
}

/// Tables without transactions leave savepoints and rollbacks in the binlog itself. MySQL refuses
/// this mix as long as it has GTIDs.
fn mixed_transactions() -> Vec<String> {
    let statement = |text: &str| text.to_owned();
    vec![
        statement("CREATE TABLE plain (n int) ENGINE = MyISAM"),
        statement("BEGIN"),
        row(21),
        statement("SAVEPOINT a"),
        row(22),
        statement("INSERT INTO plain VALUES (1)"),
        statement("ROLLBACK TO a"),
        row(23),
        statement("COMMIT"),
        statement("BEGIN"),
        row(24),
        statement("INSERT INTO plain VALUES (2)"),
        statement("ROLLBACK"),
        row(25),
    ]
}

fn exactly_the_committed(server: &MySql) {
    // given a relay
    let mut stage = Stage::set(server, Kind::Nats, "exactly");
    let mut relay = stage.relay(server).started();
    let client = stage.client(server);
    // when transactions of many kinds pass
    run_all(&client, &transactions());
    let mut expected = vec![1, 4, 6, 7, 9, 10, 12, 13];
    if server.version().is_mariadb() {
        run_all(&client, &mixed_transactions());
        expected.extend([21, 23, 25]);
    }
    // then their committed rows are published, in order, and no others
    assert!(stage.drains(server), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    assert_eq!(numbers(&stage.broker.published(AGGREGATE_TYPE)), expected, "{}", relay.log());
    assert_eq!(stage.to_broker.seen(Event::Publish), expected.len() as u64);
}

#[test]
fn savepoints_rollbacks_and_other_statements_leave_exactly_the_committed_rows() {
    on_each(exactly_the_committed);
}

/// Finds a transaction that it must not pass, says so, and so does the next start.
fn stands_before(server: &MySql, statements: &[String], words: &[&str]) {
    // given a relay that has published a row
    let name = server.empty_outbox("stands");
    let client = server.client_for(&name);
    let mut relay = to_nobody(server, &name).started();
    client.run(&row(1));
    let passed = drains::<MySql>(&client, &name, Duration::from_secs(30));
    assert!(passed && relay.terminate().success(), "{}", relay.log());
    // when such a transaction is committed and others follow
    run_all(&client, statements);
    client.run(&row(99));
    // then it is named, and its position stays before it
    for _ in 0..2 {
        refuses(&mut relay, words);
    }
    let confirmed = "stopped confirmed=1 ";
    assert_eq!(relay.log().matches(confirmed).count(), 1, "{}", relay.log());
}

#[test]
fn a_prepared_transaction_with_outbox_rows_is_refused_by_name() {
    on_each(|server| {
        let statements = [
            "XA START 'walpost'".to_owned(),
            row(2),
            "XA END 'walpost'".to_owned(),
            "XA PREPARE 'walpost'".to_owned(),
            "XA COMMIT 'walpost'".to_owned(),
        ];
        stands_before(server, &statements, &["XA", "outbox"]);
    });
}

#[test]
fn a_statement_that_inserts_into_the_outbox_as_text_is_refused_by_name() {
    on_each(|server| {
        let statements = ["SET SESSION binlog_format = STATEMENT".to_owned(), row(2)];
        stands_before(server, &statements, &["outbox", "binlog_format"]);
    });
}

fn compressed(version: Version, options: &[&str], in_binlog: &str) {
    if version.is_left_out() {
        return;
    }
    // given a server that compresses, and a relay under load
    let server = MySql::start_with(version, options);
    let stage = Stage::set(&server, Kind::Nats, "compressed");
    let relay = stage.relay(&server).started();
    let mut workload = stage.workload(&server);
    workload.rows_per_second = Some(2_000);
    workload.payload_bytes = 1_000;
    workload.big_every = 200;
    workload.big_bytes = 300_000;
    let writing = workload.start();
    let ledger = writing.ledger();
    // when its connection breaks now and then
    for round in 1..=8 {
        let goal = round * 250;
        assert!(crate::support::process::eventually(Duration::from_secs(60), || {
            ledger.committed() > goal
        }));
        stage.to_database.cut_all(Ending::Reset);
    }
    let ledger = writing.stop();
    // then every row arrives once, in order
    let client = stage.client(&server);
    let events = client.rows("SHOW BINLOG EVENTS IN 'binlog.000001' LIMIT 4000");
    let events = events.iter().flatten().flatten();
    assert!(events.filter(|text| text.contains(in_binlog)).count() > 100, "nothing is compressed");
    stage.finish(&server, relay, &ledger);
}

#[test]
fn compressed_transactions_of_mysql_arrive_once_through_breaks() {
    let options = ["--binlog-transaction-compression=ON"];
    compressed(Version::MySql97, &options, "ransaction_payload");
}

#[test]
fn compressed_rows_of_mariadb_arrive_once_through_breaks() {
    let options = ["--log-bin-compress=ON", "--log-bin-compress-min-len=10"];
    compressed(Version::MariaDb1011, &options, "compressed");
}
