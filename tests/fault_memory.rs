//! One transaction larger than any memory, and longer than any patience.

use std::time::Duration;

use crate::support::broker::Kind;
use crate::support::ledger::Ledger;
use crate::support::postgres::{Postgres, Version};
use crate::support::process::eventually;
use crate::support::proxy::Direction;
use crate::support::relay::Relay;
use crate::support::slot::{end_of_log, wait_drained};
use crate::support::stage::{Stage, bulk, empty_outbox, quick_relay};

const PEAK_RSS_BYTES_MAX: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(180);

fn assert_small(relay: &mut Relay) {
    let peak = relay.peak_rss_bytes();
    assert!(peak <= PEAK_RSS_BYTES_MAX, "peak memory {peak} bytes\n{}", relay.log());
}

#[test]
fn a_million_rows_in_one_transaction_pass_in_little_memory() {
    // given a transaction of a million rows that the relay finds waiting
    const ROWS: u64 = 1_000_000;
    let server = Postgres::start(Version::V15);
    let name = empty_outbox(&server, "million");
    let client = server.client_for(&name);
    client.run("ALTER TABLE outbox DROP CONSTRAINT outbox_pkey");
    client.run(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
         SELECT '00000000-0000-4000-8000-000000000000', 'Order', 'k' || (i % 1000), \
         'OrderCreated', to_jsonb(repeat('x', 198)) FROM generate_series(1, {ROWS}) AS i"
    ));
    // when it is relayed
    let mut relay = quick_relay(&server.url_for(&name), "null://", &name).started();
    let drained = wait_drained(&client, &name, end_of_log(&client), PATIENCE);
    // then all of it passes, in one connection
    assert!(drained, "{}", relay.log());
    assert_small(&mut relay);
    assert!(relay.terminate().success());
    let log = relay.log();
    assert!(log.contains(&format!("stopped confirmed={ROWS} unsettled=0")), "{log}");
    assert_eq!(log.matches(" streaming ").count(), 1, "{log}");
}

#[test]
fn a_transaction_that_takes_longer_than_let_go_after_passes_once() {
    // given a broker that is slow, so that a transaction takes several times `let_go_after`
    const ROWS: u64 = 40_000;
    let server = Postgres::shared();
    let stage = Stage::set(server, Kind::Nats, "patience");
    let settings = ["source.let_go_after=1s", "relay.lanes=4", "relay.rows_max=500"];
    let settings = settings.map(|setting| ["--set", setting]).concat();
    let mut relay = stage.relay(server).args(&settings).started();
    let pause = Duration::from_millis(40);
    stage.to_broker.delay(Direction::ToClient, pause);
    let ledger = Ledger::new();
    // when it is committed
    bulk(&stage.client(server), &ledger, ROWS);
    // then its rows pass, and the connection is not let go in their midst
    assert!(eventually(PATIENCE, || stage.rows_sent() >= ROWS), "{}", relay.log());
    assert!(!relay.log().contains("releasing the connection"), "{}", relay.log());
    assert_small(&mut relay);
    assert_eq!(stage.finish(server, relay, &ledger), 0, "rows were sent again");
}
