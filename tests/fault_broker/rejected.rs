//! Faults 38, 53, 56 and 58: what the broker does not take, and what an operator does then; and
//! credentials that it does not take at all.

use std::collections::HashSet;

use async_nats::jetstream::stream;

use super::*;
use crate::support::broker::topic;
use crate::support::checker::{Judge, mark, row_of};
use crate::support::nats::Nats;
use crate::support::rabbitmq::MESSAGE_BYTES_MAX;
use crate::support::writer::Shape;

/// One row a transaction, so many of them.
fn rows(outbox: &Outbox, aggregate_type: &str, rows: u64) -> Workload {
    let mut workload = outbox.workload(aggregate_type);
    workload.connections = 1;
    workload.rows_per_second = None;
    workload.rows_per_connection = Some(rows);
    workload.mix = vec![(Shape::OneRow, 1)];
    workload
}

/// The relay stopped for good: exit code 1, and the one line that tells why.
fn assert_rejected(relay: &mut Relay, object: &str) {
    let status = relay.wait_exit();
    let log = relay.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("cannot be published: ")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let (_, row) = lines[0].split_once("walpost: row ").unwrap();
    assert_eq!(row.splitn(4, ':').count(), 4, "it names the row: {row}");
    assert!(lines[0].contains(object), "it names {object}: {row}");
}

fn too_large(kind: Kind) {
    // given rows of which one is larger than its topic, stream or broker takes
    let outbox = Outbox::fresh("too_large");
    let name = &outbox.name;
    let small = |bytes: i32| stream::Config {
        name: name.clone(),
        subjects: vec![topic(name)],
        max_message_size: bytes,
        ..Default::default()
    };
    let broker = shared(kind);
    let (bytes, object) = match kind {
        Kind::Kafka => {
            broker.kafka().create_topic(&topic(name), 4, &[("max.message.bytes", "20000")]);
            (100_000, topic(name))
        }
        Kind::Nats => {
            broker.block_on(broker.nats().create_stream_with(small(20_000)));
            (100_000, name.clone())
        }
        Kind::RabbitMq => {
            broker.prepare(name);
            (MESSAGE_BYTES_MAX + 1000, topic(name))
        }
    };
    let url = broker.url();
    drop(broker);
    let mut workload = rows(&outbox, name, 120);
    (workload.big_every, workload.big_bytes) = (100, bytes);
    let ledger = workload.start().finish();
    // when the relay meets it
    let mut relay = outbox.relay(&url).started();
    assert_rejected(&mut relay, &object);
    // then rows of other keys are there, and the position is before the row. RabbitMQ closes the
    // channel on it: what else was on its way in it may have come twice.
    let confirmed = outbox.confirmed();
    let mut broker = shared(kind);
    let held = broker.read_on(name).to_vec();
    let there = held.iter().filter_map(row_of).collect::<HashSet<u64>>().len();
    assert!((1..120).contains(&there), "{there} of 120 rows are there");
    assert!(confirmed < end_of_log(&outbox.client));
    // when the operator raises the limit
    match kind {
        Kind::Kafka => broker.kafka().tool(
            "kafka.admin.ConfigCommand",
            &[
                "--alter",
                "--entity-type",
                "topics",
                "--entity-name",
                &topic(name),
                "--add-config",
                "max.message.bytes=200000",
            ],
        ),
        Kind::Nats => broker.block_on(broker.nats().update_stream(small(200_000))),
        Kind::RabbitMq => {
            set_message_bytes_max(&broker, 2 * MESSAGE_BYTES_MAX);
        }
    }
    drop(broker);
    // then the next start publishes it, and nothing is missing or out of order
    relay.start();
    outbox.finish(&mut relay);
    let mut broker = shared(kind);
    if kind == Kind::RabbitMq {
        set_message_bytes_max(&broker, MESSAGE_BYTES_MAX);
    }
    let judge = Judge::new(&ledger, broker.read_on(name).to_vec());
    judge.confirmed_at(confirmed, mark(&held)).judge().assert_clean();
}

/// For channels that are opened after it.
fn set_message_bytes_max(broker: &Broker, bytes: usize) {
    let set = format!("application:set_env(rabbit, max_message_size, {bytes}).");
    broker.rabbitmq().control(&["eval", &set]);
}

#[test]
fn a_row_too_large_for_kafka_stops_the_relay_until_the_limit_is_raised() {
    too_large(Kind::Kafka);
}

#[test]
fn a_row_too_large_for_rabbitmq_stops_the_relay_until_the_limit_is_raised() {
    too_large(Kind::RabbitMq);
}

#[test]
fn a_row_too_large_for_nats_stops_the_relay_until_the_limit_is_raised() {
    too_large(Kind::Nats);
}

fn missing(kind: Kind) {
    // given rows of one type whose topic is there and of one whose is not
    let outbox = Outbox::fresh("missing");
    let there = format!("{}_there", outbox.name);
    let absent = format!("{}_absent", outbox.name);
    shared(kind).prepare(&there);
    let first = rows(&outbox, &absent, 20).start().finish();
    let other = rows(&outbox, &there, 200).start().finish();
    let url = shared(kind).url();
    // when it stays away
    let mut relay = outbox.relay(&url).args(&["--set", "relay.topic_wait=2s"]).started();
    assert_rejected(&mut relay, &topic(&absent));
    // then the others were published all the same, and the position is before all of them
    let confirmed = outbox.confirmed();
    let held = {
        let mut broker = shared(kind);
        let held = broker.read_on(&there).to_vec();
        Judge::new(&other, held.clone()).judge().assert_clean();
        held
    };
    let before = Judge::new(&first, Vec::new()).confirmed(confirmed, &held).judge();
    assert_eq!(before.sampled_rows, 0, "the position has passed an unpublished row\n{before}");
    // when the operator makes it
    shared(kind).prepare(&absent);
    relay.start();
    outbox.finish(&mut relay);
    // then nothing was lost
    let mut broker = shared(kind);
    Judge::new(&first, broker.published(&absent)).duplicates_max(0).judge().assert_clean();
    Judge::new(&other, broker.published(&there)).judge().assert_clean();
}

#[test]
fn a_missing_kafka_topic_stops_the_relay_and_nothing_is_lost() {
    missing(Kind::Kafka);
}

#[test]
fn a_missing_exchange_stops_the_relay_and_nothing_is_lost() {
    missing(Kind::RabbitMq);
}

#[test]
fn a_missing_stream_stops_the_relay_and_nothing_is_lost() {
    missing(Kind::Nats);
}

fn made_in_time(kind: Kind) {
    // given rows whose topic is not there
    let outbox = Outbox::fresh("made_in_time");
    let name = &outbox.name;
    let ledger = rows(&outbox, name, 100).start().finish();
    let url = shared(kind).url();
    // Longer than other tests may hold the shared broker.
    let patient = ["--set", "relay.topic_wait=10m"];
    let mut relay = outbox.relay(&url).args(&patient).started();
    // On a busy machine the first line may tell of a broker that was slow to answer.
    let said = eventually(PATIENCE, || {
        let log = relay.log();
        log.contains(RETRY_LINE) && log.contains(&topic(name))
    });
    assert!(said, "{}", relay.log());
    // when it is made while the relay waits for it
    shared(kind).prepare(name);
    // then every row arrives
    outbox.finish(&mut relay);
    assert_eq!(relay.starts(), 1);
    let published = shared(kind).published(name);
    Judge::new(&ledger, published).duplicates_max(0).judge().assert_clean();
}

#[test]
fn a_kafka_topic_that_is_made_in_time_costs_nothing() {
    made_in_time(Kind::Kafka);
}

#[test]
fn an_exchange_that_is_made_in_time_costs_nothing() {
    made_in_time(Kind::RabbitMq);
}

#[test]
fn a_stream_that_is_made_in_time_costs_nothing() {
    made_in_time(Kind::Nats);
}

fn assert_refuses_password(url: &str) {
    let outbox = Outbox::fresh("wrong_password");
    let start = outbox.confirmed();
    rows(&outbox, "Order", 10).start().finish();
    let mut relay = outbox.relay(url).started();
    let (status, log) = (relay.wait_exit(), relay.log());
    assert_eq!(status.code(), Some(1), "{log}");
    let errors = log.lines().filter(|line| line.starts_with("walpost: "));
    assert_eq!(errors.count(), 1, "{log}");
    assert_eq!(count(&log, "the sink stopped"), 1, "{log}");
    assert!(!log.contains("incorrect"), "a password in the log\n{log}");
    assert_eq!(outbox.confirmed(), start);
}

#[test]
fn a_wrong_password_for_rabbitmq_stops_the_relay_at_its_start() {
    let url = shared(Kind::RabbitMq).url().replace("guest:guest", "guest:incorrect");
    assert_refuses_password(&url);
}

#[test]
fn a_wrong_password_for_nats_stops_the_relay_at_its_start() {
    let configuration = "authorization { user: relay, password: right }\n";
    let nats = Nats::start_with(configuration, "relay:right@");
    assert_refuses_password(&nats.url().replace("right", "incorrect"));
}
