//! Fault 52: one queue is full and refuses, others go on, and the database's connection flaps;
//! and a destination that answers nothing at all.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use super::*;
use crate::support::broker::topic;
use crate::support::proxy::{Ending, Proxy};

/// Rows that pass while the connection flaps: the ledger has room for them.
const FLAPPING: usize = 3000;
const FLAPS: usize = 5;
/// All rows of the other queue: many times what the ledger holds.
const FLOWING: usize = 100_000;
const STUCK: usize = 10;
const STUCK_MAX: usize = 5;

fn insert(client: &Client, aggregate_type: &str, numbers: RangeInclusive<usize>, keys: usize) {
    let (first, last) = numbers.into_inner();
    client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), '{aggregate_type}', '{aggregate_type}-' || n % {keys}, \
         'Made', jsonb_build_object('n', n, 'pad', repeat('x', 200)) \
         FROM generate_series({first}, {last}) AS n"
    ));
}

#[test]
fn a_full_queue_holds_up_its_own_rows_and_no_others() {
    // given a queue that refuses what exceeds five messages, and one without a limit
    let outbox = Outbox::fresh("stuck");
    let flowing = format!("{}_flowing", outbox.name);
    let stuck = format!("{}_stuck", outbox.name);
    let url = {
        let broker = shared(Kind::RabbitMq);
        broker.prepare(&flowing);
        let limits = [
            ("x-max-length", AMQPValue::LongLongInt(STUCK_MAX as i64)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        broker.block_on(async {
            let rabbitmq = broker.rabbitmq();
            rabbitmq.declare_exchange(&topic(&stuck), ExchangeKind::Topic).await;
            rabbitmq.declare_classic_queue(&stuck, &limits).await;
            rabbitmq.bind(&stuck, &topic(&stuck), "#").await;
        });
        broker.url()
    };
    let waiting = |queue: &str| {
        let broker = shared(Kind::RabbitMq);
        broker.block_on(broker.rabbitmq().waiting(queue))
    };
    insert(&outbox.client, &stuck, 1..=STUCK, 1);
    let proxy = Proxy::start(Postgres::shared().address());
    let source = Postgres::shared().url_at(proxy.addr(), &outbox.name);
    let mut relay = outbox.relay_from(&source, &url).started();
    let full = eventually(PATIENCE, || waiting(&stuck) == STUCK_MAX);
    assert!(full, "{}", relay.log());
    // when the database's connection comes and goes while rows of the other queue pass
    let step = FLAPPING / FLAPS;
    for flap in 0..FLAPS {
        insert(&outbox.client, &flowing, flap * step + 1..=(flap + 1) * step, 1000);
        let passed = eventually(PATIENCE, || waiting(&flowing) >= (flap + 1) * step);
        assert!(passed, "{}", relay.log());
        let before = proxy.accepted();
        assert!(proxy.open() > 0, "{}", relay.log());
        proxy.cut_all(Ending::Reset);
        let again = eventually(PATIENCE, || proxy.accepted() > before);
        assert!(again, "{}", relay.log());
    }
    assert_eq!(waiting(&flowing), FLAPPING, "published again");
    // when much more comes
    insert(&outbox.client, &flowing, FLAPPING + 1..=FLOWING, 1000);
    // then the others go on, as far as the ledger reaches
    let others = eventually(PATIENCE, || waiting(&flowing) > 16_000);
    assert!(others, "{} went on\n{}", waiting(&flowing), relay.log());
    assert_eq!(waiting(&stuck), STUCK_MAX);
    assert!(relay.is_running(), "{}", relay.log());
    // when the full queue is emptied, as often as it takes
    let taken = eventually(PATIENCE, || shared(Kind::RabbitMq).read_on(&stuck).len() >= STUCK);
    assert!(taken, "{}", relay.log());
    outbox.finish(&mut relay);
    // then nothing was published twice, nothing is missing, and memory stayed small
    let mut broker = shared(Kind::RabbitMq);
    assert_eq!(broker.read_on(&stuck).len(), STUCK);
    let published = broker.read_on(&flowing);
    assert_eq!(published.len(), FLOWING);
    let mut identities = HashSet::new();
    let mut last: HashMap<&[u8], i64> = HashMap::new();
    for message in published {
        let header = |name| message.headers.iter().find(|(header, _)| header == name).unwrap();
        assert!(identities.insert(header("walpost-identity").1.as_slice()), "published twice");
        let value: serde_json::Value =
            serde_json::from_slice(message.value.as_deref().unwrap()).unwrap();
        let number = value["n"].as_i64().unwrap();
        let before = last.insert(message.key.as_deref().unwrap(), number);
        assert!(before < Some(number), "{before:?} then {number}");
    }
    let peak = relay.peak_rss_bytes();
    println!("peak {peak} bytes with {FLOWING} rows behind a full queue");
    assert!(peak <= RSS_BYTES_MAX, "{peak}");
}

/// Rows of another destination go on beside one that never answers, though one lane has both and
/// nobody gives that one up.
fn silent_destination(broker: &mut Broker, outbox: &Outbox, silent: &str, patience: &str) {
    let flowing = format!("{}_flowing", outbox.name);
    broker.prepare(&flowing);
    insert(&outbox.client, silent, 1..=3, 3);
    let mut relay = outbox
        .relay(&broker.url())
        .args(&["--set", "relay.lanes=1", "--set", &format!("{patience}=10m")])
        .started();
    for hundred in 0..3 {
        insert(&outbox.client, &flowing, hundred * 100 + 1..=(hundred + 1) * 100, 50);
        let all = || broker.read_on(&flowing).len() >= (hundred + 1) * 100;
        assert!(eventually(PATIENCE, all), "{}", relay.log());
    }
    assert!(relay.is_running(), "{}", relay.log());
    relay.kill();
}

#[test]
fn a_stream_that_never_answers_holds_up_its_own_rows_and_no_others() {
    let outbox = Outbox::fresh("silent_stream");
    let silent = format!("{}_silent", outbox.name);
    let mut broker = Broker::start(Kind::Nats);
    let mute = async_nats::jetstream::stream::Config {
        name: silent.clone(),
        subjects: vec![topic(&silent)],
        no_ack: true,
        ..Default::default()
    };
    broker.block_on(broker.nats().create_stream_with(mute));
    silent_destination(&mut broker, &outbox, &silent, "sink.ack_timeout");
}

#[test]
fn a_queue_that_never_answers_holds_up_its_own_rows_and_no_others() {
    let outbox = Outbox::fresh("silent_queue");
    let silent = format!("{}_silent", outbox.name);
    let mut broker = Broker::start(Kind::RabbitMq);
    broker.block_on(async {
        let rabbitmq = broker.rabbitmq();
        rabbitmq.declare_exchange(&topic(&silent), ExchangeKind::Topic).await;
        rabbitmq.declare_classic_queue(&silent, &[]).await;
        rabbitmq.bind(&silent, &topic(&silent), "#").await;
    });
    // Its process stands still, as one does that waits for a disk.
    let suspend = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{silent}\">>)), \
         sys:suspend(amqqueue:get_pid(Q))."
    );
    broker.rabbitmq().control(&["eval", &suspend]);
    silent_destination(&mut broker, &outbox, &silent, "sink.confirm_timeout");
}
