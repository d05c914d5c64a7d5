//! The walsender is ended by an administrator, again and again, with rows on their way: its FATAL
//! comes right behind rows, often in the same read.

use std::time::Duration;

use crate::support::broker::{Broker, Kind};
use crate::support::checker::Judge;
use crate::support::postgres::Postgres;
use crate::support::process::eventually;
use crate::support::relay::Relay;
use crate::support::slot::{
    create_outbox, create_publication_and_slot, end_of_log, slot_state, wait_drained,
};
use crate::support::writer::Workload;

const TERMINATIONS: usize = 25;
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_terminated_walsender_costs_neither_a_row_nor_a_repeat() {
    // given a relay under as much load as two writers make
    let server = Postgres::shared();
    let database = server.fresh_database("terminate");
    let (client, name) = (server.client_for(&database), &database);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", name, name);
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare("Order");
    let url = server.url_for(&database);
    let mut relay = Relay::new(&url, &broker.url())
        .slot(name)
        .publication(name)
        .table("public.outbox")
        .args(&["--set", "relay.retry_first=10ms", "--set", "relay.retry_max=50ms"])
        .started();
    let mut workload = Workload::new(&url, "outbox");
    workload.aggregate_type = "Order".into();
    workload.rows_per_second = None;
    let writing = workload.start();
    // when its walsender is terminated as soon as the slot has moved again
    let mut in_flight = 0;
    for _ in 0..TERMINATIONS {
        let before = slot_state(&client, name).unwrap().confirmed_flush_lsn;
        let moved = eventually(PATIENCE, || {
            let state = slot_state(&client, name).unwrap();
            state.active_pid.is_some() && state.confirmed_flush_lsn > before
        });
        assert!(moved, "{}", relay.log());
        let confirmed = slot_state(&client, name).unwrap().confirmed_flush_lsn;
        in_flight += usize::from(end_of_log(&client) > confirmed);
        client.run(&format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{name}'"
        ));
    }
    let ledger = writing.stop();
    // then every row arrives, once, in order
    let drained = wait_drained(&client, name, end_of_log(&client), PATIENCE);
    assert!(drained, "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    assert!(in_flight >= TERMINATIONS / 2, "only {in_flight} hit rows in flight");
    Judge::new(&ledger, broker.published("Order")).duplicates_max(0).judge().assert_clean();
}
