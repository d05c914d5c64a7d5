//! Fault 48: the broker is not there at the start, then it is killed under load, twice.

use super::*;
use crate::support::checker::Judge;

fn recovers(kind: Kind) {
    // given a broker that is down, and rows. The clean stop is for RabbitMQ's quorum queue too:
    // its directory of queues is saved a while after a declaration, and one that is killed before
    // that comes back without the queue.
    let outbox = Outbox::fresh("broker_killed");
    let mut broker = Broker::start(kind);
    broker.prepare("Order");
    broker.stop();
    let mut workload = outbox.workload("Order");
    workload.rows_per_second = Some(800);
    let writing = workload.start();
    let ledger = writing.ledger();
    let mut relay = outbox.relay(&broker.url()).started();
    // then the relay says so in one line, and goes on trying
    let said = eventually(PATIENCE, || relay.log().contains(RETRY_LINE));
    assert!(said, "{}", relay.log());
    await_rows(&ledger, 200);
    assert!(relay.is_running(), "{}", relay.log());
    assert_eq!(count(&relay.log(), RETRY_LINE), 1, "{}", relay.log());
    broker.restart();
    for _ in 0..2 {
        // when it works and is killed with rows on their way
        assert!(outbox.moves(PATIENCE), "{}", relay.log());
        await_rows(&ledger, 100);
        broker.kill();
        let (confirmed, end) = (outbox.confirmed(), end_of_log(&outbox.client));
        assert!(end > confirmed, "nothing was in flight");
        await_rows(&ledger, 100);
        assert!(outbox.confirmed() < end_of_log(&outbox.client), "confirmed without a broker");
        broker.restart();
        // then the relay finds it again by itself, and nothing that it holds was lost
        let all = wait_drained(&outbox.client, &outbox.name, end, PATIENCE);
        assert!(all, "{}", relay.log());
    }
    let ledger = writing.stop();
    outbox.finish(&mut relay);
    assert_eq!(relay.starts(), 1);
    Judge::new(&ledger, broker.published("Order")).judge().assert_clean();
}

#[test]
fn a_killed_kafka_loses_nothing_and_is_found_again() {
    recovers(Kind::Kafka);
}

#[test]
fn a_killed_rabbitmq_loses_nothing_and_is_found_again() {
    recovers(Kind::RabbitMq);
}

#[test]
fn a_killed_nats_loses_nothing_and_is_found_again() {
    recovers(Kind::Nats);
}
