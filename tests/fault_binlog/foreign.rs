//! Rows of other tables, as large as a server takes them: they neither stop a relay nor fill it.

use super::refusal::AtWork;
use super::{on_each, row, to_nobody};
use crate::support::database::Server;
use crate::support::mysql::MySql;

const LARGE_BYTES: u64 = 40 << 20;
const PEAK_RSS_BYTES_MAX: u64 = 40 << 20;

fn large_rows_of_others(server: &MySql) {
    // given a relay whose bounds are far below those rows
    let name = server.empty_outbox("foreign");
    let bounds = ["--set", "source.row_bytes_max=64KiB", "--set", "source.payload_bytes_max=1MiB"];
    let relay = to_nobody(server, &name).args(&bounds);
    let mut at_work = AtWork::with(server, name, relay);
    at_work.client.run("CREATE TABLE blobs (id int PRIMARY KEY, b longblob)");
    let large = format!("REPEAT('x', {LARGE_BYTES})");
    let mut sessions = vec![vec!["DO 1".to_owned()]];
    if server.version().is_mariadb() {
        let text = "x".repeat(8 << 20);
        sessions.push(vec![
            "SET SESSION binlog_format = STATEMENT".to_owned(),
            format!("INSERT INTO blobs VALUES (100, '{text}')"),
            "SET SESSION binlog_format = ROW".to_owned(),
        ]);
    } else {
        sessions.push(vec!["SET SESSION binlog_transaction_compression = ON".to_owned()]);
    }
    // when they are inserted, updated and deleted, beside rows of the outbox
    for (number, session) in (2..).zip(&sessions) {
        let client = server.client_for(&at_work.name);
        super::run_all(&client, session);
        client.run("BEGIN");
        client.run(&row(number));
        client.run(&format!("INSERT INTO blobs VALUES ({number}, {large})"));
        client.run(&row(number + 50));
        client.run("COMMIT");
        client.run(&format!("UPDATE blobs SET b = CONCAT(b, 'y') WHERE id = {number}"));
        client.run(&format!("DELETE FROM blobs WHERE id = {number}"));
        at_work.drains();
    }
    // then the outbox's came, and the others were not held
    let peak = at_work.relay.peak_rss_bytes();
    at_work.stop();
    let log = at_work.relay.log();
    assert!(log.contains("stopped confirmed=5 "), "{log}");
    assert!(!log.contains("retrying"), "{log}");
    println!("{:?}: peak memory {peak} bytes", server.version());
    assert!(peak <= PEAK_RSS_BYTES_MAX, "peak memory {peak} bytes\n{log}");
}

#[test]
fn large_rows_of_other_tables_neither_stop_a_relay_nor_fill_it() {
    on_each(large_rows_of_others);
}
