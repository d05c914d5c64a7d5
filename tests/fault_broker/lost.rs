//! Faults 40, 42 and 43: a confirm or a publish is lost between relay and broker.

use super::*;
use crate::support::checker::Judge;
use crate::support::process::scratch;
use crate::support::proxy::{Action, Direction, Ending, Event, Point, Proxy};

/// Options that make the relay notice silence within seconds.
fn impatient(relay: Relay, kind: Kind) -> Relay {
    match kind {
        Kind::Kafka => {
            let file = scratch("config").join("walpost.toml");
            std::fs::write(&file, "[sink]\nproperties = { \"socket.timeout.ms\" = 3000 }\n")
                .unwrap();
            relay.args(&["--config", file.to_str().unwrap()])
        }
        Kind::RabbitMq => relay.args(&["--set", "sink.confirm_timeout=3s"]),
        Kind::Nats => relay.args(&["--set", "sink.ack_timeout=2s"]),
    }
}

fn delivers_in_order(kind: Kind) {
    // given rows that pass through a proxy
    let outbox = Outbox::fresh("broker_lost");
    let (mut broker, proxy, url) = Broker::start_behind_proxy(kind);
    broker.prepare("Order");
    let mut relay = impatient(outbox.relay(&url), kind).started();
    let mut workload = outbox.workload("Order");
    // RabbitMQ takes one row a key at a time, and a busy machine is slow at that.
    workload.rows_per_second = Some(150);
    let writing = workload.start();
    assert!(outbox.moves(PATIENCE), "{}", relay.log());
    // when confirms are cut off that the broker had sent: what they confirm is stored
    for count in [5, 11] {
        let cut = proxy.when(Event::Confirm, count, Point::Before, Action::Cut(Ending::Reset));
        assert!(cut.wait(PATIENCE), "no confirm came\n{}", relay.log());
        assert!(outbox.drains(PATIENCE), "{}", relay.log());
    }
    // when the way back falls silent before a confirm
    let silence = Action::Blackhole(Direction::ToClient);
    let silent = proxy.when(Event::Confirm, 7, Point::Before, silence);
    assert!(silent.wait(PATIENCE), "no confirm came\n{}", relay.log());
    await_new_connection(&proxy, &relay);
    proxy.resume();
    assert!(outbox.drains(PATIENCE), "{}", relay.log());
    // when publishes leave the relay and never arrive
    let swallow = Action::Swallow(Direction::ToServer);
    let swallowing = proxy.when(Event::Publish, 9, Point::Before, swallow);
    assert!(swallowing.wait(PATIENCE), "nothing was published\n{}", relay.log());
    let some = eventually(PATIENCE, || proxy.swallowed(Direction::ToServer) > 0);
    assert!(some, "nothing was swallowed\n{}", relay.log());
    proxy.refuse();
    proxy.cut_all(Ending::Reset);
    proxy.resume();
    assert!(outbox.drains(PATIENCE), "{}", relay.log());
    // then everything is there, and each key's first publications are in order
    let ledger = writing.stop();
    outbox.finish(&mut relay);
    let report = Judge::new(&ledger, broker.published("Order")).judge();
    report.assert_clean();
    match kind {
        // Its producer's session outlives a connection, and its broker knows the repeats; a
        // stream knows them by their ids.
        Kind::Kafka | Kind::Nats => assert_eq!(report.duplicates, 0, "{report}"),
        Kind::RabbitMq => assert!(report.duplicates > 0, "no lost confirm was of a stored row"),
    }
}

/// Waits until the relay has given its silent connection up.
fn await_new_connection(proxy: &Proxy, relay: &Relay) {
    let before = proxy.accepted();
    assert!(eventually(PATIENCE, || proxy.accepted() > before), "{}", relay.log());
}

#[test]
fn lost_confirms_and_publishes_lose_nothing_and_no_order_in_kafka() {
    delivers_in_order(Kind::Kafka);
}

#[test]
fn lost_confirms_and_publishes_lose_nothing_and_no_order_in_rabbitmq() {
    delivers_in_order(Kind::RabbitMq);
}

#[test]
fn lost_confirms_and_publishes_lose_nothing_and_no_order_in_nats() {
    delivers_in_order(Kind::Nats);
}
