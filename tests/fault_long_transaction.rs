//! Long transactions among short ones, while the relay is killed: a row's own place in the log says
//! nothing about its commit's.

use std::time::Duration;

use crate::support::broker::{Broker, Kind};
use crate::support::checker::Judge;
use crate::support::postgres::{Postgres, Version};
use crate::support::process::eventually;
use crate::support::slot::{end_of_log, slot_state, wait_drained};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, empty_outbox, quick_relay};
use crate::support::writer::Workload;

const KILLS: u64 = 8;

#[test]
fn rows_of_long_transactions_outlive_kills_of_the_relay() {
    // given writers of short transactions, savepoints and rollbacks, and one of long ones (which
    // would delay the slots of other tests)
    let server = Postgres::start(Version::V15);
    let name = empty_outbox(&server, "long");
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare(AGGREGATE_TYPE);
    let mut relay = quick_relay(&server.url_for(&name), &broker.url(), &name).started();
    let mut workload = Workload::new(&server.url_for(&name), "outbox");
    workload.aggregate_type = AGGREGATE_TYPE.to_owned();
    workload.rows_per_second = Some(1_500);
    workload.long_transactions = Some(Duration::from_millis(900));
    let writing = workload.start();
    let client = server.client_for(&name);
    let mut samples = Vec::new();
    let mut inside = 0;
    for _ in 0..KILLS {
        // when the relay is killed while a transaction is open that is older than what the slot
        // has confirmed
        let before = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' \
                    AND backend_xid IS NOT NULL AND xact_start < now() - interval '200 ms'";
        let moved = eventually(PATIENCE, || {
            let slot = slot_state(&client, &name).unwrap();
            slot.confirmed_flush_lsn > before + 20_000 && client.number(open) > 0
        });
        assert!(moved, "{}", relay.log());
        relay.kill();
        inside += client.number(open);
        samples.push((
            slot_state(&client, &name).unwrap().confirmed_flush_lsn,
            broker.published(AGGREGATE_TYPE),
        ));
        relay.start();
    }
    // then nothing is lost, out of order or from a rolled-back transaction
    let ledger = writing.stop();
    let drained = wait_drained(&client, &name, end_of_log(&client), PATIENCE);
    assert!(drained, "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    assert!(inside as u64 >= KILLS / 2, "only {inside} kills met a long transaction");
    let published = broker.published(AGGREGATE_TYPE);
    let mut judge = Judge::new(&ledger, published);
    for (confirmed, held) in &samples {
        judge = judge.confirmed(*confirmed, held);
    }
    let report = judge.judge();
    report.assert_clean();
    assert!(report.sampled_rows > 0 && report.rolled_back > 0, "{report}");
}
