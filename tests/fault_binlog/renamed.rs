//! The outbox's name goes from table to table, and its definition changes under the reader: what
//! can be followed is followed, and what cannot is named before the first row that would be missed.

use super::refusal::AtWork;
use super::{VERSIONS, ends_with, on_each, refuses, row, run_all, to_nobody};
use crate::support::mysql::{MySql, Version};
use crate::support::process::eventually;
use crate::support::relay::Relay;
use crate::support::stage::PATIENCE;

/// What the last line says to put into `source.skip_transactions`.
pub(super) fn way_past(log: &str) -> String {
    let (_, rest) = log.rsplit_once("source.skip_transactions = \"").expect("a way past");
    rest.split('"').next().expect("a name").to_owned()
}

/// As `row`, into another table.
fn into(table: &str, number: u64) -> String {
    row(number).replacen("outbox", table, 1)
}

#[test]
fn a_row_of_a_renamed_outbox_is_named_before_it_is_missed() {
    on_each(|server| {
        // given a relay at work
        let mut at_work = AtWork::on(server, "renamed");
        let confirmed = at_work.confirmed();
        // when the outbox goes away, gets a row, and comes back
        run_all(
            &at_work.client,
            &[
                "/* away */ ALTER TABLE `outbox` ADD COLUMN extra int, RENAME TO `o``ld`"
                    .to_owned(),
                into("`o``ld`", 2),
                "RENAME TABLE `o``ld` TO outbox".to_owned(),
                row(3),
            ],
        );
        // then the relay stops before that row, at every start
        let words = ["o`ld", "renamed to", "source.skip_transactions"];
        ends_with(&mut at_work.relay, 0, &words);
        refuses(&mut at_work.relay, &words);
        assert!(at_work.confirmed() <= confirmed + 1, "the position is behind the rename");
        // and goes on where the row was published by hand
        let past = format!("source.skip_transactions={}", way_past(&at_work.relay.log()));
        let mut relay = to_nobody(server, &at_work.name).args(&["--set", &past]).started();
        at_work.drains();
        assert!(relay.terminate().success(), "{}", relay.log());
        assert!(relay.log().contains("stopped confirmed=1 "), "{}", relay.log());
    });
}

#[test]
fn an_outbox_that_is_swapped_replaced_or_brought_back_is_followed() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "swapped");
        let steps: [&[&str]; 5] = [
            // as tools do that change a schema online
            &["CREATE TABLE fresh LIKE outbox", "RENAME TABLE outbox TO old, fresh TO outbox"],
            &["DROP TABLE outbox", "CREATE TABLE outbox LIKE old"],
            &["RENAME TABLE outbox TO away", "RENAME TABLE away TO outbox"],
            &["ALTER TABLE outbox RENAME archive", "CREATE TABLE outbox LIKE old"],
            &["RENAME TABLE outbox TO a, old TO b", "RENAME TABLE b TO old, a TO outbox"],
        ];
        for (number, step) in (2..).zip(steps) {
            run_all(&at_work.client, step);
            at_work.client.run(&row(number));
            at_work.drains();
        }
        // what is written under a name that was the outbox's is nobody's message
        at_work.client.run(&into("archive", 9));
        at_work.client.run(&row(10));
        at_work.drains();
        at_work.stop();
        let log = at_work.relay.log();
        assert!(log.contains("stopped confirmed=7 "), "{log}");
        assert!(log.contains("took a place in it"), "{log}");
    });
}

#[test]
fn an_outbox_that_moves_for_good_is_followed_under_its_new_name() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "moves");
        run_all(&at_work.client, &["RENAME TABLE outbox TO events".to_owned(), into("events", 2)]);
        ends_with(&mut at_work.relay, 0, &["source.table", "events"]);
        // when it is told the new name
        let source = format!("{}?ssl-mode=DISABLED", server.url_for(&at_work.name));
        let name = format!("relay.name={}", at_work.name);
        let relay = Relay::new(&source, "null://").table(&format!("{}.events", at_work.name));
        let mut relay = relay.args(&["--set", &name, "--set", "source.lease=2s"]).started();
        at_work.client.run(&into("events", 3));
        at_work.drains();
        assert!(relay.terminate().success(), "{}", relay.log());
        // then nothing was missed
        assert!(relay.log().contains("stopped confirmed=2 "), "{}", relay.log());
    });
}

#[test]
fn partitions_that_go_and_come_are_no_messages() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "partitions");
        let parted = "ALTER TABLE outbox PARTITION BY KEY (id) PARTITIONS 4";
        run_all(&at_work.client, &[parted.to_owned(), row(2)]);
        at_work.client.run("CREATE TABLE plain LIKE outbox");
        run_all(
            &at_work.client,
            &[
                "ALTER TABLE plain REMOVE PARTITIONING",
                "ALTER TABLE outbox EXCHANGE PARTITION p0 WITH TABLE plain",
                "ALTER TABLE outbox TRUNCATE PARTITION p1",
                "ALTER TABLE outbox COALESCE PARTITION 1",
                "TRUNCATE TABLE outbox",
            ],
        );
        at_work.client.run(&row(3));
        at_work.drains();
        at_work.stop();
        let log = at_work.relay.log();
        assert!(log.contains("stopped confirmed=3 "), "{log}");
        assert!(log.contains("took a place in it"), "{log}");
    });
}

#[test]
fn a_versioned_outbox_is_refused_at_the_start_and_while_it_is_read() {
    for version in [Version::MariaDb1011, Version::MariaDb118] {
        if version.is_left_out() {
            continue;
        }
        let server = MySql::shared(version);
        let mut at_work = AtWork::on(server, "versioned");
        // when it becomes versioned under a running relay
        at_work.client.run("ALTER TABLE outbox ADD SYSTEM VERSIONING");
        let words = ["SYSTEM VERSIONING", "DROP SYSTEM VERSIONING"];
        ends_with(&mut at_work.relay, 0, &words);
        refuses(&mut at_work.relay, &words);
        let mut check = crate::support::relay::program();
        check.args(["check", "--source", &server.url_for(&at_work.name), "--table", "outbox"]);
        check.args(["--sink", "null://", "--set", &format!("relay.name={}", at_work.name)]);
        let output = check.output().unwrap();
        assert!(!output.status.success());
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("WITH SYSTEM VERSIONING"), "{told}");
        // then a row that it kept meanwhile is no event either
        run_all(
            &at_work.client,
            &[
                "UPDATE outbox SET type = 'changed'".to_owned(),
                "ALTER TABLE outbox DROP SYSTEM VERSIONING".to_owned(),
                row(2),
            ],
        );
        refuses(&mut at_work.relay, &["SYSTEM VERSIONING", "skip_transactions"]);
        let past = format!("source.skip_transactions={}", way_past(&at_work.relay.log()));
        let mut relay = to_nobody(server, &at_work.name).args(&["--set", &past]).started();
        at_work.drains();
        assert!(relay.terminate().success(), "{}", relay.log());
        assert!(relay.log().contains("stopped confirmed=1 "), "{}", relay.log());
    }
}

#[test]
fn a_server_that_stops_logging_rows_is_noticed_before_one_is_missed() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        // given a trigger that fills the outbox, which no text in the log tells of
        let server = MySql::start(version);
        let mut at_work = AtWork::on(&server, "format");
        at_work.client.run("CREATE TABLE orders (id int PRIMARY KEY)");
        at_work
            .client
            .run(&format!("CREATE TRIGGER filled AFTER INSERT ON orders FOR EACH ROW {}", row(2)));
        at_work.drains();
        let confirmed = at_work.confirmed();
        // when rows are no longer logged as rows
        server.client().run("SET GLOBAL binlog_format = 'STATEMENT'");
        let client = server.client_for(&at_work.name);
        client.run("INSERT INTO orders VALUES (1)");
        // then the relay stops before that
        ends_with(&mut at_work.relay, 0, &["binlog_format", "ROW"]);
        assert_eq!(at_work.confirmed(), confirmed, "{version:?}");
        let told = || at_work.relay.log().contains("binlog_format");
        assert!(eventually(PATIENCE, told));
    }
}
