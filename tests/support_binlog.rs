//! The test support's own tests, as far as it speaks to MySQL and MariaDB.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use mysql_async::{BinlogStreamRequest, Conn, Opts, OptsBuilder};

use crate::fault_binlog::alter::CHANGES;
use crate::support::blocking;
use crate::support::database::{self, Server};
use crate::support::frames::{Direction, Event};
use crate::support::ledger::{Ledger, Outcome};
use crate::support::mysql::{self, MySql};
use crate::support::process::eventually;
use crate::support::proxy::{Action, Ending, Point, Proxy};
use crate::support::writer::{Shape, Workload};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Ids of the rows that the table holds.
fn stored(client: &mysql::Client) -> BTreeSet<String> {
    let rows = client.rows("SELECT LOWER(HEX(id)) FROM outbox");
    rows.into_iter().map(|mut row| row.remove(0).unwrap()).collect()
}

/// Ids of the rows that are committed, by the ledger.
fn committed(ledger: &Ledger) -> BTreeSet<String> {
    let rows = ledger.rows().into_iter();
    let rows = rows.filter(|(_, outcome)| matches!(outcome, Outcome::Committed { .. }));
    rows.map(|(row, _)| row.id.replace('-', "")).collect()
}

/// Nothing deletes: what was committed is in the table.
const KEPT: &[(Shape, u32)] = &[
    (Shape::OneRow, 60),
    (Shape::ManyRows, 12),
    (Shape::SavepointRolledBack, 14),
    (Shape::RolledBack, 14),
];

#[test]
fn writers_of_mysql_and_mariadb_know_their_outcomes_through_crashes() {
    for version in mysql::Version::present() {
        // given
        let mut server = MySql::start(version);
        let name = server.fresh_database("crashes");
        database::create_outbox(&server.client_for(&name));
        let workload = Workload {
            connections: 4,
            rows_per_second: None,
            mix: KEPT.to_vec(),
            ..Workload::new(&server.url_for(&name), "outbox")
        };
        let writing = workload.start();
        // when: the server dies in the middle of work, again and again
        for _ in 0..3 {
            let before = writing.ledger().committed();
            assert!(eventually(TIMEOUT, || writing.ledger().committed() > before + 50));
            server.kill();
            server.restart();
        }
        let ledger = writing.stop();
        // then: the table holds what the ledger says, and no bound lies beyond the log's end
        let client = server.client_for(&name);
        assert_eq!(stored(&client), committed(&ledger), "{version:?}");
        assert!(ledger.committed() > 150);
        let end = <MySql as Server>::end_of_log(&client);
        let beyond = ledger.rows().into_iter().filter(|(_, outcome)| {
            // One that could not be asked for, since the server died, is no bound.
            matches!(outcome, Outcome::Committed { position_max }
                if *position_max > end && *position_max < u64::MAX)
        });
        assert_eq!(beyond.count(), 0, "{version:?}");
    }
}

#[test]
fn an_unanswered_commit_is_settled_by_mysql_and_mariadb() {
    for version in mysql::Version::present() {
        // given: the answer to COMMIT never arrives
        let server = MySql::shared(version);
        let name = server.fresh_database("unknown");
        let client = server.client_for(&name);
        database::create_outbox(&client);
        let proxy = Proxy::start_with(server.address(), server.protocol(&name));
        let asked = proxy.when_bytes(
            Direction::ToServer,
            |bytes| bytes.ends_with(b"COMMIT"),
            Point::After,
            Action::Blackhole(Direction::ToClient),
        );
        let url = server.url_at(proxy.addr(), &name);
        let workload = Workload {
            connections: 1,
            rows_per_second: None,
            rows_per_connection: Some(20),
            mix: vec![(Shape::OneRow, 1)],
            ..Workload::new(&url, "outbox")
        };
        // when
        let writing = workload.start();
        assert!(asked.wait(TIMEOUT));
        proxy.cut_all(Ending::Reset);
        proxy.resume();
        let ledger = writing.finish();
        // then: the row counts as committed, with a bound, or as rolled back, and so it is
        assert!(ledger.rows().iter().all(|(_, outcome)| {
            !matches!(outcome, Outcome::Committed { position_max: u64::MAX })
        }));
        assert_eq!(stored(&client), committed(&ledger), "{version:?}");
    }
}

#[test]
fn an_open_transaction_of_mysql_and_mariadb_stays_unknown() {
    for version in mysql::Version::present() {
        let server = MySql::shared(version);
        let name = server.fresh_database("open");
        let connect = || database::connect(&server.url_for(&name)).unwrap();
        let (open, other) = (connect(), connect());
        open.run("CREATE TABLE markers (marker bigint PRIMARY KEY)").unwrap();
        let number = open.begin("markers", 7).unwrap();
        assert_eq!(other.settled("markers", number, 7), None, "{version:?}");
        assert_eq!(other.settled("markers", number, 8), Some(Outcome::RolledBack));
        open.run("ROLLBACK").unwrap();
        assert_eq!(other.settled("markers", number, 7), Some(Outcome::RolledBack));
    }
}

/// Reads the whole binlog once by way of a proxy.
fn dump(proxy: &Proxy) -> usize {
    let url = format!("mysql://root@{}/", proxy.addr());
    blocking::wait_for(async move {
        let options = OptsBuilder::from_opts(Opts::from_url(&url).unwrap()).prefer_socket(false);
        let conn = Conn::new(options).await.unwrap();
        let request = BinlogStreamRequest::new(4_000_000_001).with_pos(4).with_non_blocking();
        let mut stream = conn.get_binlog_stream(request).await.unwrap();
        let mut events = 0;
        while let Some(event) = stream.next().await {
            event.unwrap();
            events += 1;
        }
        events
    })
}

#[test]
fn rows_of_one_outbox_are_counted_on_their_way_from_mysql_and_mariadb() {
    for version in mysql::Version::present() {
        // given: rows of two outboxes, of which one counts; rolled-back ones never pass
        let server = MySql::start(version);
        let names = ["counted", "other"].map(|prefix| server.fresh_database(prefix));
        let ledgers = names.each_ref().map(|name| {
            database::create_outbox(&server.client_for(name));
            let workload = Workload {
                rows_per_second: None,
                rows_per_connection: Some(200),
                payload_bytes: 2_000,
                big_every: 150,
                big_bytes: 17 << 20,
                ..Workload::new(&server.url_for(name), "outbox")
            };
            workload.start().finish()
        });
        let proxy = Proxy::start_with(server.address(), server.protocol(&names[0]));
        // when
        let events = dump(&proxy);
        // then
        let ledger = &ledgers[0];
        let rows = ledger.rows();
        let transactions = rows.iter().filter_map(|(row, outcome)| {
            matches!(outcome, Outcome::Committed { .. }).then_some(row.transaction)
        });
        let transactions: BTreeSet<usize> = transactions.collect();
        assert!(events > 1_000, "{events}");
        assert_eq!(proxy.seen(Event::Insert), ledger.committed() as u64, "{version:?}");
        assert_eq!(proxy.seen(Event::Commit), transactions.len() as u64, "{version:?}");
    }
}

#[test]
fn rows_are_counted_whatever_columns_the_outbox_has() {
    for version in mysql::Version::present() {
        // given: rows between changes of the table, and rows that are written at once
        let server = MySql::start(version);
        let name = server.fresh_database("columns");
        let client = server.client_for(&name);
        database::create_outbox(&client);
        let mut workload = Workload::new(&server.url_for(&name), "outbox");
        workload.rows_per_second = None;
        workload.rows_per_connection = Some(20);
        for change in CHANGES {
            // Ids follow from it.
            workload.seed += 1;
            workload.clone().start().finish();
            client.run(&format!("ALTER TABLE outbox {change}"));
        }
        MySql::bulk(&client, &workload.ledger, 5_000);
        let proxy = Proxy::start_with(server.address(), server.protocol(&name));
        // when
        dump(&proxy);
        // then
        let committed = workload.ledger.committed() as u64;
        assert_eq!(proxy.seen(Event::Insert), committed, "{version:?}");
        assert!(committed > 5_200, "{committed}");
    }
}
