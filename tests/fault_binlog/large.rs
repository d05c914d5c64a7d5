//! One row, and one transaction, larger than what a relay may hold.

use std::time::Duration;

use super::{on_each, to_nobody};
use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{Client, MySql, Version};
use crate::support::stage::{Stage, drains};
use crate::support::writer::Shape;

const ROWS: u64 = 1_000_000;
const PEAK_RSS_BYTES_MAX: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(180);

fn huge_rows(server: &MySql) {
    // given rows of 20 MB among small ones, more than a packet of the protocol and the ledger hold
    let stage = Stage::set(server, Kind::RabbitMq, "huge");
    let set = format!("application:set_env(rabbit, max_message_size, {}).", 64 << 20);
    stage.broker.rabbitmq().control(&["eval", &set]);
    let relay = stage.relay(server).started();
    let mut workload = stage.workload(server);
    workload.connections = 1;
    workload.rows_per_connection = Some(40);
    workload.mix = vec![(Shape::OneRow, 1)];
    workload.big_every = 20;
    workload.big_bytes = 20 << 20;
    // when they are written
    let ledger = workload.start().finish();
    // then they arrive, byte for byte and in their order
    assert_eq!(stage.finish(server, relay, &ledger), 0, "rows were sent again");
}

#[test]
fn rows_of_twenty_megabytes_arrive_whole() {
    on_each(huge_rows);
}

/// Commits a million rows at once; they compress to a fifth.
fn insert_million(client: &Client, limit: &str) {
    client.run(&format!("SET SESSION {limit} = {}", ROWS + 1));
    client.run(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) \
         SELECT UNHEX('00000000000040008000000000000000'), 'Order', CONCAT('k', i % 1000), \
         'OrderCreated', JSON_OBJECT('n', i, 'digest', LEFT(SHA2(i, 256), 32), 'pad', REPEAT('x', 150)) FROM n"
    ));
}

/// `limit` bounds a recursion; the statement switches compression on for new sessions.
fn millions(version: Version, limit: &str, compress: &str) {
    if version.is_left_out() {
        return;
    }
    // given a transaction of a million rows that the relay finds waiting
    let server = MySql::start(version);
    let name = server.empty_outbox("million");
    server.client_for(&name).run("ALTER TABLE outbox DROP PRIMARY KEY");
    for (kind, switch) in [("plain", "DO 1"), ("compressed", compress)] {
        server.client().run(switch);
        insert_million(&server.client_for(&name), limit);
        // when it is relayed
        let mut relay = to_nobody(&server, &name).started();
        let drained = drains::<MySql>(&server.client_for(&name), &name, PATIENCE);
        // then all of it passes, at once and in little memory
        assert!(drained, "{kind}\n{}", relay.log());
        let peak = relay.peak_rss_bytes();
        assert!(relay.terminate().success(), "{kind}\n{}", relay.log());
        let log = relay.log();
        println!("{version:?} {kind}: peak memory {peak} bytes");
        assert!(log.contains(&format!("stopped confirmed={ROWS} unsettled=0")), "{kind}\n{log}");
        assert!(!log.contains("retrying"), "{kind}\n{log}");
        assert!(peak <= PEAK_RSS_BYTES_MAX, "{kind}: peak memory {peak} bytes\n{log}");
        server.client_for(&name).run("TRUNCATE TABLE outbox");
    }
}

#[test]
fn a_million_rows_in_one_transaction_of_mysql_pass_in_little_memory() {
    let compress = "SET GLOBAL binlog_transaction_compression = ON";
    millions(Version::MySql97, "cte_max_recursion_depth", compress);
}

#[test]
fn a_million_rows_in_one_transaction_of_mariadb_pass_in_little_memory() {
    let compress = "SET GLOBAL log_bin_compress = ON";
    millions(Version::MariaDb1011, "max_recursive_iterations", compress);
}
