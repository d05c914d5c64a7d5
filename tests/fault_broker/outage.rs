//! Fault 48 for long, and 51: a broker that is away, or alarmed, while rows go on being written.

use super::*;
use crate::support::checker::Judge;

/// Seconds of the outage: 20, or `WALPOST_OUTAGE_SECONDS`.
fn outage() -> Duration {
    let seconds = std::env::var("WALPOST_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(20, |seconds| seconds.parse().expect("seconds")))
}

fn bridges_an_outage(kind: Kind) -> (Outbox, Broker) {
    // given a relay with a thousand rows a second before it
    let outbox = Outbox::fresh("outage");
    let mut broker = Broker::start(kind);
    broker.prepare("Order");
    // See `killed` for why.
    broker.stop();
    broker.restart();
    let mut workload = outbox.workload("Order");
    (workload.connections, workload.rows_per_second) = (4, Some(1500));
    let writing = workload.start();
    let ledger = writing.ledger();
    let mut relay = outbox.relay(&broker.url()).started();
    assert!(outbox.moves(PATIENCE), "{}", relay.log());
    await_rows(&ledger, 1000);
    // when the broker is away for long
    broker.kill();
    let (confirmed, rows) = (outbox.confirmed(), ledger.committed());
    assert!(end_of_log(&outbox.client) > confirmed, "nothing was in flight");
    let said = count(&relay.log(), RETRY_LINE);
    std::thread::sleep(outage());
    let behind = ledger.committed() - rows;
    assert!(behind as u64 >= 1000 * outage().as_secs() / 2, "only {behind} rows behind it");
    assert!(relay.is_running(), "{}", relay.log());
    // then it says so about every ten seconds, and no more
    let said = count(&relay.log(), RETRY_LINE) - said;
    let most = outage().as_secs() as usize / 10 + 2;
    let least = match kind {
        // Its library tries again by itself; the relay warns when rows wait for half a minute.
        Kind::Kafka => 0,
        Kind::RabbitMq | Kind::Nats => outage().as_secs() as usize / 20,
    };
    assert!((least..=most).contains(&said), "{said} lines\n{}", relay.log());
    // then everything arrives after it, out of a memory that stayed small
    broker.restart();
    let ledger = writing.stop();
    outbox.finish(&mut relay);
    let judge = Judge::new(&ledger, broker.read_on("Order").to_vec());
    judge.peak_rss(relay.peak_rss_bytes(), RSS_BYTES_MAX).judge().assert_clean();
    println!("{kind:?}: {behind} rows behind it, peak {} bytes", relay.peak_rss_bytes());
    (outbox, broker)
}

#[test]
fn a_long_outage_of_kafka_costs_time_and_nothing_else() {
    bridges_an_outage(Kind::Kafka);
}

#[test]
fn a_long_outage_of_nats_costs_time_and_nothing_else() {
    bridges_an_outage(Kind::Nats);
}

#[test]
fn a_long_outage_of_rabbitmq_and_then_its_memory_alarm_cost_time_and_nothing_else() {
    let (outbox, mut broker) = bridges_an_outage(Kind::RabbitMq);
    // given a relay at work
    broker.prepare("Alarm");
    let writing = outbox.workload("Alarm").start();
    let ledger = writing.ledger();
    let mut relay = outbox.relay(&broker.url()).started();
    assert!(outbox.moves(PATIENCE), "{}", relay.log());
    // when the broker blocks its publishers
    broker.rabbitmq().control(&["set_vm_memory_high_watermark", "0.0000001"]);
    await_rows(&ledger, 100);
    // then nothing is confirmed, and nothing given up
    assert!(!outbox.drains(Duration::from_secs(3)), "it goes on all the same");
    assert!(relay.is_running(), "{}", relay.log());
    // when it takes messages again
    broker.rabbitmq().control(&["set_vm_memory_high_watermark", "0.4"]);
    // then everything arrives
    let ledger = writing.stop();
    outbox.finish(&mut relay);
    Judge::new(&ledger, broker.published("Alarm")).duplicates_max(0).judge().assert_clean();
}
