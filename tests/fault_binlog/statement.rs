//! Statements that are logged as text, and transactions of two phases: only what puts rows into the
//! outbox stops a relay, and it says how to pass.

use super::refusal::AtWork;
use super::renamed::way_past;
use super::{ends_with, on_each, refuses, row, run_all, to_nobody};
use crate::support::mysql::MySql;

/// What is logged as text then.
const AS_TEXT: &str = "SET SESSION binlog_format = STATEMENT";

#[test]
fn statements_that_only_read_the_outbox_pass() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "reads");
        at_work.client.run("CREATE TABLE checksums (id varbinary(40), n bigint)");
        let client = server.client_for(&at_work.name);
        run_all(
            &client,
            &[
                AS_TEXT,
                "REPLACE INTO checksums SELECT id, COUNT(*) FROM outbox GROUP BY id",
                "INSERT INTO checksums SELECT 'outbox', COUNT(*) FROM outbox",
                "CREATE TABLE copied AS SELECT * FROM outbox",
                "UPDATE outbox SET type = 'changed'",
                "DELETE FROM outbox",
            ],
        );
        at_work.client.run(&row(2));
        at_work.drains();
        at_work.stop();
        let log = at_work.relay.log();
        assert!(log.contains("stopped confirmed=2 "), "{log}");
    });
}

/// Statements that put rows into the outbox, with what is around them in the log.
fn hidden(server: &MySql) -> Vec<String> {
    let insert = |number| row(number);
    let mut statements = vec![
        format!("{AS_TEXT}; {}", insert(2)),
        format!("{AS_TEXT}; REPLACE {}", insert(3).trim_start_matches("INSERT ")),
    ];
    if server.version().is_mariadb() {
        statements
            .push(format!("{AS_TEXT}; SET STATEMENT max_statement_time = 9 FOR {}", insert(4)));
        statements.push(format!("{AS_TEXT}; ANALYZE FORMAT=JSON {}", insert(5)));
    }
    statements
}

#[test]
fn statements_that_put_rows_into_the_outbox_stop_the_relay_and_can_be_passed() {
    on_each(|server| {
        for statements in hidden(server) {
            let mut at_work = AtWork::on(server, "hidden");
            let client = server.client_for(&at_work.name);
            for statement in statements.split("; ") {
                client.run(statement);
            }
            let words = ["binlog_format", "source.skip_transactions"];
            ends_with(&mut at_work.relay, 0, &words);
            let past = format!("source.skip_transactions={}", way_past(&at_work.relay.log()));
            let mut relay = to_nobody(server, &at_work.name).args(&["--set", &past]).started();
            at_work.client.run(&row(9));
            at_work.drains();
            assert!(relay.terminate().success(), "{}", relay.log());
            assert!(relay.log().contains("stopped confirmed=1 "), "{}", relay.log());
        }
    });
}

fn two_phases(number: u64, end: &str) -> Vec<String> {
    vec![
        "XA START 'two'".to_owned(),
        row(number),
        "XA END 'two'".to_owned(),
        "XA PREPARE 'two'".to_owned(),
        format!("XA {end} 'two'"),
    ]
}

#[test]
fn what_an_xa_rollback_took_back_stops_nothing() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "xa_rollback");
        let client = server.client_for(&at_work.name);
        let [start @ .., end] = &two_phases(2, "ROLLBACK")[..] else { unreachable!() };
        run_all(&client, start);
        // a row that is committed while the other one is prepared
        at_work.client.run(&row(3));
        client.run(end);
        at_work.client.run(&row(4));
        at_work.drains();
        at_work.stop();
        let log = at_work.relay.log();
        assert!(log.contains("stopped confirmed=3 "), "{log}");
    });
}

#[test]
fn an_xa_commit_of_two_phases_stops_the_relay_and_can_be_passed() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "xa_commit");
        let client = server.client_for(&at_work.name);
        run_all(&client, &two_phases(2, "COMMIT"));
        let words = ["XA", "outbox", "source.skip_transactions"];
        ends_with(&mut at_work.relay, 0, &words);
        refuses(&mut at_work.relay, &words);
        let past = format!("source.skip_transactions={}", way_past(&at_work.relay.log()));
        let mut relay = to_nobody(server, &at_work.name).args(&["--set", &past]).started();
        at_work.client.run(&row(3));
        at_work.drains();
        assert!(relay.terminate().success(), "{}", relay.log());
        assert!(relay.log().contains("stopped confirmed=1 "), "{}", relay.log());
    });
}

/// A transaction with a savepoint and 12 MiB of outbox rows behind it.
fn with_savepoint(first: u64) -> Vec<String> {
    let mut statements = vec!["BEGIN".to_owned(), row(first), "SAVEPOINT nested".to_owned()];
    for number in first + 1..first + 13 {
        let filling = "REPEAT('x', 1048576)";
        let payload = format!("CONCAT('\"', {filling}, '\"')");
        let (head, _) =
            row(number).rsplit_once(", '{").map(|(head, _)| (head.to_owned(), ())).unwrap();
        statements.push(format!("{head}, {payload})"));
    }
    statements.push("COMMIT".to_owned());
    statements
}

#[test]
fn many_rows_behind_a_savepoint_pass_and_their_bound_is_named() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "savepoint");
        run_all(&at_work.client, &with_savepoint(100));
        at_work.drains();
        at_work.stop();
        assert!(at_work.relay.log().contains("stopped confirmed=14 "), "{}", at_work.relay.log());
        // when the bound is lower
        let lower = ["--set", "source.held_bytes_max=4MiB"];
        let mut relay = to_nobody(server, &at_work.name).args(&lower);
        run_all(&at_work.client, &with_savepoint(200));
        refuses(&mut relay, &["source.held_bytes_max", "SAVEPOINT"]);
    });
}
