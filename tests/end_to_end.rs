//! The plain way of a row, through real servers, with the judge at its end.

use std::time::Duration;

use crate::support::broker::{Broker, Kind};
use crate::support::checker::Judge;
use crate::support::postgres::Postgres;
use crate::support::relay::Relay;
use crate::support::slot::{create_outbox, create_publication_and_slot, end_of_log, wait_drained};
use crate::support::writer::Workload;

fn arrives(kind: Kind) {
    // given an outbox, a broker and a relay between them
    let server = Postgres::shared();
    let database = server.fresh_database("end_to_end");
    let client = server.client_for(&database);
    let name = &database;
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", name, name);
    let mut broker = Broker::start(kind);
    broker.prepare("Order");
    let url = server.url_for(&database);
    let mut relay = Relay::new(&url, &broker.url())
        .slot(name)
        .publication(name)
        .table("public.outbox")
        .started();
    // when writers commit and roll back
    let mut workload = Workload::new(&url, "outbox");
    workload.rows_per_connection = Some(500);
    workload.aggregate_type = "Order".into();
    let ledger = workload.start().finish();
    // then everything that was committed is there, once, in order, byte for byte
    let drained = wait_drained(&client, name, end_of_log(&client), Duration::from_secs(30));
    assert!(drained, "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    let judge = Judge::new(&ledger, broker.published("Order")).duplicates_max(0);
    judge.judge().assert_clean();
}

#[test]
fn committed_rows_arrive_in_kafka() {
    arrives(Kind::Kafka);
}

#[test]
fn committed_rows_arrive_in_rabbitmq() {
    arrives(Kind::RabbitMq);
}

#[test]
fn committed_rows_arrive_in_nats() {
    arrives(Kind::Nats);
}
