//! The outbox changes its columns, and the binlog its files, while rows pass.

use super::on_each;
use crate::support::broker::Kind;
use crate::support::mysql::MySql;
use crate::support::stage::Stage;

/// Columns before and between the mapped ones, of types that are wide, narrow and odd; a mapped
/// one that appears; mapped ones that change type and place.
pub const CHANGES: [&str; 12] = [
    "ADD COLUMN first_of_all int DEFAULT 7 FIRST",
    "ADD COLUMN made datetime(6) DEFAULT CURRENT_TIMESTAMP(6) AFTER id",
    "ADD COLUMN sort enum('a','b') DEFAULT 'b', ADD COLUMN sorts set('a','b') DEFAULT 'a,b'",
    "ADD COLUMN amount decimal(20,3) DEFAULT -1.5 FIRST, ADD COLUMN bits bit(9) DEFAULT 5 FIRST",
    "ADD COLUMN place point NULL, ADD COLUMN ratio double DEFAULT 0.1 FIRST",
    "ADD COLUMN created_at timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
    "RENAME COLUMN made TO written",
    "MODIFY COLUMN written varchar(300) DEFAULT 'x'",
    "MODIFY COLUMN aggregateid varchar(1000) NOT NULL",
    "MODIFY COLUMN type text NOT NULL",
    "MODIFY COLUMN payload json FIRST",
    "DROP COLUMN first_of_all, DROP COLUMN bits",
];

fn changes(server: &MySql) {
    // given a relay under load
    let stage = Stage::set(server, Kind::Nats, "alter");
    let relay = stage.relay(server).started();
    let writing = stage.workload(server).start();
    let client = stage.client(server);
    // when columns come, go, move and change
    for change in CHANGES {
        stage.await_rows(30, &relay);
        client.run(&format!("ALTER TABLE outbox {change}"));
    }
    stage.await_rows(30, &relay);
    // then every row arrives once, as it was written
    let ledger = writing.stop();
    assert_eq!(stage.finish(server, relay, &ledger), 0, "rows were sent again");
}

#[test]
fn an_outbox_that_changes_its_columns_under_load_costs_neither_a_row_nor_a_repeat() {
    on_each(changes);
}

fn rotates(server: &MySql) {
    // given a relay under load
    let stage = Stage::set(server, Kind::Nats, "rotate");
    let mut relay = stage.relay(server).started();
    let writing = stage.workload(server).start();
    let client = stage.client(server);
    // when the server begins new files
    for round in 0..12 {
        stage.await_rows(40, &relay);
        client.run("FLUSH BINARY LOGS");
        // Now and then while nobody reads.
        if round % 4 == 3 {
            assert!(relay.terminate().success(), "{}", relay.log());
            client.run("FLUSH BINARY LOGS");
            relay.start();
        }
    }
    stage.await_rows(40, &relay);
    // then every row arrives once
    let ledger = writing.stop();
    stage.finish(server, relay, &ledger);
}

#[test]
fn binlogs_that_are_rotated_under_load_cost_neither_a_row_nor_a_repeat() {
    on_each(rotates);
}
