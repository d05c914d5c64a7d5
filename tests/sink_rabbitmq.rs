//! The RabbitMQ sink against a real broker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use walpost::sink::{self, Sink, SinkConfig, Verdict};
use walpost::{FailureKind, Header, Message};

use crate::support::log::captured;
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::{MESSAGE_BYTES_MAX, RabbitMq};
use crate::support::sample::message;

const LANES: usize = 32;
/// Far above what anything here needs: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One broker for the tests that neither stop it nor set off its alarms.
fn broker() -> &'static RabbitMq {
    static BROKER: OnceLock<RabbitMq> = OnceLock::new();
    BROKER.get_or_init(RabbitMq::start)
}

fn open(url: &str, options: &str) -> Arc<dyn Sink> {
    let options = toml::from_str(options).unwrap();
    let config = SinkConfig { url: url.into(), options, client_name: "walpost-test".into() };
    sink::open(&config).unwrap()
}

/// To the default exchange, whose routing key is a queue's name.
const TO_QUEUE: &str = "exchange = ''\nrouting_key = '{topic}'";

async fn deliver(sink: &Arc<dyn Sink>, batch: &[Message]) -> Vec<Verdict> {
    let verdicts =
        timeout(PATIENCE, sink.deliver_all(batch)).await.expect("deliver ends by itself");
    let verdicts = verdicts.unwrap();
    assert_eq!(verdicts.len(), batch.len());
    verdicts
}

fn id(message: &Message) -> String {
    message.identity.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_is_read_back_byte_for_byte_with_headers_and_properties() {
    // given
    let broker = broker();
    broker.declare_exchange("fidelity", ExchangeKind::Topic).await;
    broker.declare_quorum_queue("fidelity", &[]).await;
    broker.bind("fidelity", "fidelity", "#").await;
    let sink = open(&broker.url(), "content_type = 'application/x-test'");
    let mut first = message("fidelity", "key.1", vec![0_u8, 0xFF, b'\n', 0x7F], 1);
    first.headers =
        vec![Header { name: "traceparent".into(), value: bytes::Bytes::from_static(b"00-ab") }];
    let mut empty = message("fidelity", "key.2", "", 2);
    empty.value = None;
    let large = message("fidelity", "key.3", vec![b'x'; 300_000], 3);
    let batch = [first, empty, large];
    // when
    let verdicts = deliver(&sink, &batch).await;
    // then
    assert_eq!(verdicts, vec![Verdict::Confirmed; 3]);
    let records = broker.read_back("fidelity").await;
    assert_eq!(records.len(), 3);
    for (record, message) in records.iter().zip(&batch) {
        assert_eq!(record.body, message.value.clone().unwrap_or_default());
        assert_eq!(record.message_id, id(message));
        assert_eq!(record.exchange, "fidelity");
        assert_eq!(record.routing_key.as_bytes(), message.key.as_deref().unwrap());
        let mut headers: Vec<(String, Vec<u8>)> =
            message.headers().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        headers.push(("walpost-identity".into(), id(message).into_bytes()));
        headers.sort();
        assert_eq!(record.headers, headers);
        let text = |text: &Option<lapin::types::ShortString>| text.clone().unwrap().to_string();
        assert_eq!(record.properties.delivery_mode(), &Some(2));
        assert_eq!(text(record.properties.content_type()), "application/x-test");
        assert_eq!(text(record.properties.kind()), "OrderCreated");
        assert_eq!(text(record.properties.app_id()), "walpost-test");
        assert_eq!(record.properties.timestamp(), &Some(1_790_000_000));
    }
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_callers_lose_nothing_and_keep_the_order_of_their_keys() {
    // given
    let broker = broker();
    broker.declare_quorum_queue("order", &[]).await;
    let sink = open(&broker.url(), TO_QUEUE);
    // when: each lane sends its ten keys batch by batch
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES as u64 {
        let sink = sink.clone();
        lanes.spawn(async move {
            for round in 0..15 {
                let batch: Vec<Message> = (0..10)
                    .map(|key| {
                        let number = (round * 10 + key) * LANES as u64 + lane;
                        message("order", &format!("{lane}.{key}"), round.to_string(), number)
                    })
                    .collect();
                assert_eq!(deliver(&sink, &batch).await, vec![Verdict::Confirmed; 10]);
            }
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane.unwrap();
    }
    // then
    let records = broker.read_back("order").await;
    assert_eq!(records.len(), LANES * 150);
    let ids: HashSet<&str> = records.iter().map(|record| &*record.message_id).collect();
    assert_eq!(ids.len(), records.len(), "none twice");
    let mut next: HashMap<(u64, u64), u64> = HashMap::new();
    for record in &records {
        // The identity carries the number, and with it lane, key and round.
        let transaction = record.message_id.split(':').nth(2).unwrap();
        let number = u64::from_str_radix(transaction, 16).unwrap() - 0x1000;
        let (lane, step) = (number % LANES as u64, number / LANES as u64);
        let next = next.entry((lane, step % 10)).or_default();
        assert_eq!(step / 10, *next, "key {}.{} out of order", lane, step % 10);
        *next += 1;
    }
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_the_unroutable_messages_are_absent_among_thousands_in_flight() {
    // given
    let broker = broker();
    broker.declare_exchange("partly", ExchangeKind::Direct).await;
    broker.declare_quorum_queue("partly-a", &[]).await;
    broker.declare_classic_queue("partly-b", &[]).await;
    broker.bind("partly-a", "partly", "a").await;
    broker.bind("partly-b", "partly", "b").await;
    let sink = open(&broker.url(), "");
    let total = 20_000_u64;
    let next = Arc::new(AtomicU64::new(0));
    // when
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..LANES {
        let (sink, next) = (sink.clone(), next.clone());
        lanes.spawn(async move {
            let mut confirmed = Vec::new();
            let mut random = fastrand::Rng::new();
            loop {
                let start = next.fetch_add(50, Ordering::Relaxed);
                if start >= total {
                    return confirmed;
                }
                let batch: Vec<Message> = (start..start + 50)
                    .map(|number| {
                        let key = ["a", "b", "nowhere", "a"][random.usize(..4)];
                        message("partly", key, "x", number)
                    })
                    .collect();
                let verdicts = deliver(&sink, &batch).await;
                for (message, verdict) in batch.iter().zip(verdicts) {
                    let key = message.key.as_deref().unwrap();
                    match verdict {
                        Verdict::Confirmed => {
                            assert_ne!(key, b"nowhere", "{} was returned", id(message));
                            confirmed.push(id(message));
                        }
                        Verdict::Absent(reason) => {
                            assert_eq!(key, b"nowhere", "{}: {reason}", id(message));
                            // The routing key is the row's key, and has no place in a log.
                            assert!(reason.contains("\"partly\"") && reason.contains(&id(message)));
                            assert!(!reason.contains("nowhere"), "{reason}");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        });
    }
    let mut confirmed = HashSet::new();
    while let Some(lane) = lanes.join_next().await {
        confirmed.extend(lane.unwrap());
    }
    // then
    let mut stored = HashSet::new();
    for queue in ["partly-a", "partly-b"] {
        stored.extend(broker.read_back(queue).await.into_iter().map(|record| record.message_id));
    }
    assert_eq!(confirmed, stored);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_exchange_is_absent_for_its_messages_only_until_it_is_declared() {
    // given
    let broker = broker();
    broker.declare_exchange("there", ExchangeKind::Fanout).await;
    broker.declare_classic_queue("there", &[]).await;
    broker.bind("there", "there", "").await;
    let sink = open(&broker.url(), "");
    let batch = [message("there", "k", "1", 1), message("not-there", "k", "2", 2)];
    // when
    let before = deliver(&sink, &batch).await;
    broker.declare_exchange("not-there", ExchangeKind::Fanout).await;
    broker.bind("there", "not-there", "").await;
    let after = deliver(&sink, &batch[1..]).await;
    // then
    assert_eq!(before[0], Verdict::Confirmed);
    assert!(matches!(&before[1], Verdict::Absent(reason) if reason.contains("\"not-there\"")));
    assert_eq!(after, [Verdict::Confirmed]);
    // and when: it is deleted behind the sink's back, which closes the channel
    broker.delete_exchange("not-there").await;
    let unknown = deliver(&sink, &batch[1..]).await;
    let absent = deliver(&sink, &batch).await;
    // then
    assert!(matches!(&unknown[0], Verdict::Unknown(reason) if reason.contains("not-there")));
    assert_eq!(absent[0], Verdict::Confirmed);
    assert!(matches!(&absent[1], Verdict::Absent(_)), "{absent:?}");
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_is_never_reported_as_confirmed() {
    // given: a queue that takes a few and refuses the rest, while it is being emptied
    let broker = broker();
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(50)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    broker.declare_classic_queue("full", &arguments).await;
    let sink = open(&broker.url(), TO_QUEUE);
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let done = done.clone();
        async move {
            let mut stored = Vec::new();
            loop {
                let last = done.load(Ordering::Acquire);
                stored.extend(broker.read_back("full").await.into_iter().map(|r| r.message_id));
                if last {
                    return stored;
                }
            }
        }
    });
    // when
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES as u64 {
        let sink = sink.clone();
        lanes.spawn(async move {
            let mut confirmed = Vec::new();
            for round in 0..25 {
                let batch: Vec<Message> = (0..25)
                    .map(|i| message("full", "k", "x", (lane * 25 + round) * 25 + i))
                    .collect();
                for (message, verdict) in batch.iter().zip(deliver(&sink, &batch).await) {
                    match verdict {
                        Verdict::Confirmed => confirmed.push(id(message)),
                        Verdict::Unknown(reason) => assert!(reason.contains("nack"), "{reason}"),
                        other => panic!("{other:?}"),
                    }
                }
            }
            confirmed
        });
    }
    let mut confirmed = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        confirmed.extend(lane.unwrap());
    }
    done.store(true, Ordering::Release);
    let mut stored = reader.await.unwrap();
    // then
    stored.sort();
    confirmed.sort();
    assert_eq!(confirmed, stored);
    assert!(stored.len() < LANES * 625, "some were refused");
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_closes_the_channel_is_rejected_alone() {
    // given
    let broker = broker();
    broker.declare_classic_queue("size", &[]).await;
    let sink = open(&broker.url(), TO_QUEUE);
    let batch = [
        message("size", "a", "small", 1),
        message("size", "b", vec![b'x'; MESSAGE_BYTES_MAX + 1], 2),
        message("size", "c", "small", 3),
    ];
    // when
    let mut open: Vec<&Message> = batch.iter().collect();
    let mut rejected = Vec::new();
    for _ in 0..3 {
        let attempt: Vec<Message> = open.iter().map(|message| (*message).clone()).collect();
        let verdicts = deliver(&sink, &attempt).await;
        let mut still = Vec::new();
        for (message, verdict) in open.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Confirmed => {}
                Verdict::Unknown(_) => still.push(message),
                Verdict::Rejected(reason) => rejected.push((id(message), reason)),
                Verdict::Absent(reason) => panic!("{reason}"),
            }
        }
        open = still;
    }
    // then
    assert!(open.is_empty());
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0].0, id(&batch[1]));
    assert!(rejected[0].1.contains("message size"), "{rejected:?}");
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_may_not_be_written_rejects_its_own_messages_only() {
    // given
    let broker = broker();
    broker.declare_exchange("allowed", ExchangeKind::Fanout).await;
    broker.declare_exchange("forbidden", ExchangeKind::Fanout).await;
    broker.declare_classic_queue("allowed", &[]).await;
    broker.bind("allowed", "allowed", "").await;
    broker.bind("allowed", "forbidden", "").await;
    broker.control(&["add_user", "narrow", "secret"]);
    broker.control(&["set_permissions", "narrow", "", "^allowed$", ""]);
    let sink = open(&format!("amqp://narrow:secret@127.0.0.1:{}", broker.port()), "");
    let allowed = [message("allowed", "k", "1", 1)];
    let forbidden = [message("forbidden", "k", "2", 2)];
    let next = [message("allowed", "k", "3", 3), message("forbidden", "k", "4", 4)];
    // when
    let first = deliver(&sink, &forbidden).await;
    let again = deliver(&sink, &forbidden).await;
    // then
    assert!(matches!(&first[0], Verdict::Unknown(_)), "{first:?}");
    assert!(
        matches!(&again[0], Verdict::Rejected(reason) if reason.contains("\"forbidden\"")),
        "{again:?}"
    );
    assert_eq!(deliver(&sink, &allowed).await, [Verdict::Confirmed]);
    // and the next one to it troubles nobody else
    let next = deliver(&sink, &next).await;
    assert_eq!(next[0], Verdict::Confirmed);
    assert!(matches!(&next[1], Verdict::Rejected(_)), "{next:?}");
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_routing_key_is_not_repeated() {
    // given a user who may write to an exchange, and there to some routing keys only
    let broker = broker();
    broker.declare_exchange("partial", ExchangeKind::Topic).await;
    broker.declare_classic_queue("partial", &[]).await;
    broker.bind("partial", "partial", "#").await;
    broker.control(&["add_user", "partial", "secret"]);
    broker.control(&["set_permissions", "partial", "", ".*", ".*"]);
    broker.control(&["set_topic_permissions", "partial", "partial", "^open", ".*"]);
    let sink = open(&format!("amqp://partial:secret@127.0.0.1:{}", broker.port()), "");
    assert_eq!(deliver(&sink, &[message("partial", "open", "1", 1)]).await, [Verdict::Confirmed]);
    let key = "ann@example.com";
    // when
    let mut reasons = Vec::new();
    for _ in 0..2 {
        match deliver(&sink, &[message("partial", key, "2", 2)]).await.remove(0) {
            Verdict::Unknown(reason) => reasons.push(reason.into_owned()),
            Verdict::Rejected(reason) => reasons.push(reason),
            other => panic!("{other:?}"),
        }
    }
    // then
    assert!(reasons.iter().all(|reason| !reason.contains("ann@")), "{reasons:?}");
    assert!(reasons[1].contains("\"partial\"") && reasons[1].contains("403"), "{reasons:?}");
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_rabbitmq_routes_by_is_rejected_or_sent_as_it_wants_it() {
    // given
    let broker = broker();
    broker.declare_exchange("copies", ExchangeKind::Direct).await;
    for queue in ["copies-a", "copies-b"] {
        broker.declare_classic_queue(queue, &[]).await;
        broker.bind(queue, "copies", queue).await;
    }
    let copied = |header: &str, value: &'static str, number| {
        let mut message = message("copies", "copies-a", "x", number);
        message.headers = vec![Header { name: header.into(), value: value.into() }];
        message
    };
    let batch = [copied("CC", "copies-b", 1), message("copies", "copies-a", "x", 2)];
    // when it is not asked for
    let sink = open(&broker.url(), "");
    let verdicts = deliver(&sink, &batch).await;
    // then its row alone is refused, by the header's name and with what to do
    assert!(
        matches!(&verdicts[0], Verdict::Rejected(r) if r.contains("\"CC\"") && r.contains("copy_headers")),
        "{verdicts:?}"
    );
    assert_eq!(verdicts[1], Verdict::Confirmed);
    // and when it is
    let sink = open(&broker.url(), "copy_headers = 'array'");
    let batch = [copied("CC", "copies-b", 3), copied("BCC", "[\"copies-b\"]", 4)];
    assert_eq!(deliver(&sink, &batch).await, vec![Verdict::Confirmed; 2]);
    assert_eq!(broker.read_back("copies-a").await.len(), 3);
    assert_eq!(broker.read_back("copies-b").await.len(), 2);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_beside_another_costs_that_one_few_copies_and_ends_when_it_is_told_to() {
    // given a fanout into a queue with room and into one that is full
    let broker = broker();
    broker.declare_exchange("beside", ExchangeKind::Fanout).await;
    broker.declare_classic_queue("beside-good", &[]).await;
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    broker.declare_classic_queue("beside-full", &arguments).await;
    for queue in ["beside-good", "beside-full"] {
        broker.bind(queue, "beside", "").await;
    }
    let sink = open(&broker.url(), "nack_wait = '6s'");
    assert_eq!(deliver(&sink, &[message("beside", "k", "x", 1)]).await, [Verdict::Confirmed]);
    // when a row of it is tried again and again, as a lane does it
    let row = [message("beside", "k", "x", 2)];
    let (started, mut attempts) = (Instant::now(), 0);
    let reason = loop {
        match deliver(&sink, &row).await.remove(0) {
            Verdict::Unknown(reason) => {
                assert!(reason.contains("\"beside\"") && reason.contains("nack"), "{reason}");
            }
            Verdict::Rejected(reason) => break reason,
            other => panic!("{other:?}"),
        }
        attempts += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // then the pauses grow (0, 1 and 3 s), and the end is the one that was chosen
    assert!(started.elapsed() >= Duration::from_secs(6));
    assert!(reason.contains("nack_wait") && reason.contains("\"beside\""), "{reason}");
    let copies = broker.read_back("beside-good").await.len() - 1;
    assert!(copies <= 3 && attempts > copies, "{copies} copies by {attempts} attempts");
    // and other keys go on
    broker.read_back("beside-full").await;
    assert_eq!(deliver(&sink, &[message("beside", "j", "x", 3)]).await, [Verdict::Confirmed]);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_given_up_for_a_new_one_and_a_stop_does_not_wait_for_it() {
    // given
    let broker = broker();
    broker.declare_classic_queue("mute", &[]).await;
    let proxy = Proxy::start(([127, 0, 0, 1], broker.port()).into());
    let sink = open(
        &format!("amqp://guest:guest@{}", proxy.addr()),
        &format!("{TO_QUEUE}\nconfirm_timeout = '1s'"),
    );
    assert_eq!(deliver(&sink, &[message("mute", "k", "1", 1)]).await, [Verdict::Confirmed]);
    // when the connection that is there falls silent, and new ones pass
    proxy.freeze_open();
    let row = [message("mute", "k", "2", 2)];
    let verdicts = deliver(&sink, &row).await;
    // then the retry goes over another one
    assert!(matches!(&verdicts[0], Verdict::Unknown(_)), "{verdicts:?}");
    assert_eq!(deliver(&sink, &row).await, [Verdict::Confirmed]);
    assert_eq!(proxy.accepted(), 2);
    sink.close().await.unwrap();
    // and a stop with rows on their way ends long before a confirm would be overdue
    let sink = open(&format!("amqp://guest:guest@{}", proxy.addr()), TO_QUEUE);
    assert_eq!(deliver(&sink, &[message("mute", "k", "3", 3)]).await, [Verdict::Confirmed]);
    proxy.freeze_open();
    let lane = tokio::spawn({
        let sink = sink.clone();
        async move { sink.deliver_all(&[message("mute", "k", "4", 4)]).await }
    });
    assert!(
        timeout(Duration::from_millis(200), async {
            while !lane.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await
        .is_err()
    );
    lane.abort();
    timeout(Duration::from_secs(9), sink.close()).await.expect("a close is bounded").unwrap();
}

#[tokio::test]
async fn an_idle_connection_that_falls_silent_is_noticed_by_its_heartbeat() {
    // given
    let (_guard, log) = captured();
    let broker = broker();
    broker.declare_classic_queue("idle", &[]).await;
    let proxy = Proxy::start(([127, 0, 0, 1], broker.port()).into());
    let url = format!("amqp://guest:guest@{}", proxy.addr());
    let sink = open(&url, &format!("{TO_QUEUE}\nheartbeat = '1s'"));
    assert_eq!(deliver(&sink, &[message("idle", "k", "1", 1)]).await, [Verdict::Confirmed]);
    // when
    proxy.freeze_open();
    let noticed = async {
        while !log().contains("lost RabbitMQ") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    // then: after two heartbeats, and seven seconds for a link to end at worst
    timeout(PATIENCE, noticed).await.expect("it was given up");
    assert_eq!(deliver(&sink, &[message("idle", "k", "2", 2)]).await, [Verdict::Confirmed]);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_management_api_tells_of_queues_that_drop_what_they_confirmed() {
    // given a quorum queue that refuses by its argument and drops by a policy, and a sound one
    let (broker, port) = RabbitMq::start_with_management();
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(2)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    broker.declare_exchange("checked", ExchangeKind::Fanout).await;
    for queue in ["checked-drops", "checked-refuses"] {
        broker.declare_quorum_queue(queue, &arguments).await;
        broker.bind(queue, "checked", "").await;
    }
    broker.declare_classic_queue("elsewhere", &[("x-max-length", AMQPValue::LongInt(2))]).await;
    let policy = r#"{"overflow":"drop-head"}"#;
    broker.control(&["set_policy", "drops", "^checked-drops$", policy, "--apply-to", "queues"]);
    let options = format!("management_url = 'http://127.0.0.1:{port}'");
    // when
    let of_exchange = open(&broker.url(), &format!("exchange = 'checked'\n{options}"));
    let told = async {
        loop {
            let warnings = of_exchange.probe().await.unwrap();
            // A policy, and the members of a queue, are there a moment later.
            if warnings.iter().any(|one| one.contains("by policy")) {
                return warnings;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let warnings = timeout(PATIENCE, told).await.expect("the policy is seen");
    // then
    let of = |name: &str| warnings.iter().find(|one| one.contains(name)).cloned();
    assert!(of("\"checked-drops\"").unwrap().contains("max-length 2"), "{warnings:?}");
    let sound = of("\"checked-refuses\"").unwrap_or_default();
    assert!(!sound.contains("max-length"), "{warnings:?}");
    assert!(of("elsewhere").is_none(), "{warnings:?}");
    let of_all = open(&broker.url(), &options).probe().await.unwrap();
    assert!(of_all.iter().any(|one| one.contains("\"elsewhere\"")), "{of_all:?}");
    // and what cannot be asked is said
    let refused = open(&broker.url(), "management_url = 'http://127.0.0.1:1'");
    let warnings = refused.probe().await.unwrap();
    assert!(warnings[0].contains("says nothing about queues"), "{warnings:?}");
}

/// The property of the client library that `confirms.rs` rests on, and why its version is pinned:
/// each return comes along with a confirm, and with the one of its own message at the latest, as
/// long as confirms that were resolved together are looked at together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lapin_resolves_confirms_and_returns_as_confirms_rs_relies_on() {
    use futures_util::StreamExt;
    use futures_util::future::BoxFuture;
    use futures_util::stream::FuturesUnordered;
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};

    let manifest = include_str!("../Cargo.toml");
    assert!(manifest.contains("lapin = { version = \"=4.12.3\""), "checked with this one only");
    let broker = broker();
    broker.declare_exchange("relied", ExchangeKind::Direct).await;
    broker.declare_classic_queue("relied", &[]).await;
    broker.bind("relied", "relied", "a").await;
    let connection = broker.connect().await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    // `None` is the marker.
    type Seen = Option<(u64, Option<u64>)>;
    let mut events: FuturesUnordered<BoxFuture<'static, Seen>> = FuturesUnordered::new();
    let unroutable = |number: u64| number.is_multiple_of(3);
    let (total, mut next) = (6_000_u64, 0);
    let (mut returned, mut waiting) = (HashSet::new(), Vec::new());
    let (mut ripe, mut marked, mut confirmed) = (Vec::new(), false, 0);
    while confirmed < total || marked {
        while next < total && next < confirmed + 1_000 {
            let (channel, number) = (channel.clone(), next);
            events.push(Box::pin(async move {
                let key = if unroutable(number) { "nowhere" } else { "a" };
                let options = BasicPublishOptions { mandatory: true, immediate: false };
                let properties =
                    lapin::BasicProperties::default().with_message_id(number.to_string().into());
                let confirm = channel
                    .basic_publish("relied".into(), key.into(), options, b"x", properties)
                    .await
                    .unwrap();
                let confirmation = confirm.await.unwrap();
                assert!(confirmation.is_ack());
                let returned = confirmation.take_message().map(|message| {
                    let id = message.delivery.properties.message_id().clone().unwrap();
                    id.as_str().parse().unwrap()
                });
                Some((number, returned))
            }));
            next += 1;
        }
        match timeout(PATIENCE, events.next()).await.unwrap() {
            Some(Some((number, other))) => {
                confirmed += 1;
                if let Some(other) = other {
                    assert!(returned.insert(other), "returned twice");
                } else if unroutable(number) {
                    waiting.push(number);
                }
            }
            Some(None) => {
                marked = false;
                for number in ripe.drain(..) {
                    assert!(returned.contains(&number), "{number} passed for delivered");
                }
            }
            None => panic!("events are left"),
        }
        if !marked && !waiting.is_empty() {
            ripe = std::mem::take(&mut waiting);
            marked = true;
            events.push(Box::pin(std::future::ready(None)));
        }
    }
    assert_eq!(returned.len() as u64, total.div_ceil(3), "no return is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_amqp_cannot_carry_is_rejected_without_a_connection_lost() {
    // given
    let broker = broker();
    broker.declare_classic_queue("limits", &[]).await;
    let sink = open(&broker.url(), "exchange = 'amq.fanout'");
    broker.bind("limits", "amq.fanout", "").await;
    let long_key = message("t", &"k".repeat(256), "x", 1);
    let mut long_name = message("t", "k", "x", 2);
    let value = bytes::Bytes::from_static(b"v");
    long_name.headers = vec![Header { name: "n".repeat(256).into(), value }];
    let mut headers = message("t", "k", "x", 3);
    headers.headers = vec![Header { name: "n".into(), value: vec![b'v'; 140_000].into() }];
    let batch = [long_key, long_name, headers, message("t", "k", "x", 4)];
    // when
    let verdicts = deliver(&sink, &batch).await;
    // then
    let says = |index: usize, text: &str| {
        let verdict: &Verdict = &verdicts[index];
        assert!(matches!(verdict, Verdict::Rejected(r) if r.contains(text)), "{verdict:?}");
    };
    says(0, "routing_key of 256 bytes");
    says(1, "name of 256 bytes");
    says(2, "frame");
    assert_eq!(verdicts[3], Verdict::Confirmed);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_tells_a_wrong_password_an_unreachable_broker_and_a_missing_exchange_apart() {
    let broker = broker();
    let wrong = open(&format!("amqp://guest:wrong@127.0.0.1:{}", broker.port()), "");
    let failure = wrong.probe().await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Denied, "{failure}");
    assert!(!failure.to_string().contains("wrong"), "{failure}");
    let vhost = open(&format!("amqp://127.0.0.1:{}/nowhere", broker.port()), "");
    let failure = vhost.probe().await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Denied, "{failure}");
    let unreachable = open("amqp://127.0.0.1:1", "");
    assert_eq!(unreachable.probe().await.unwrap_err().kind(), FailureKind::Transient);
    let batch = [message("t", "k", "x", 1)];
    assert_eq!(unreachable.deliver_all(&batch).await.unwrap_err().kind(), FailureKind::Transient);
    assert_eq!(open(&broker.url(), "").probe().await.unwrap(), Vec::<String>::new());
    let missing = open(&broker.url(), "exchange = 'no-such'").probe().await.unwrap();
    assert!(missing.len() == 1 && missing[0].contains("\"no-such\""), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swallowed_confirms_are_unknown_after_the_timeout_and_the_connection_is_gone_by_then() {
    // given: a forwarder that stops passing on what the broker says
    let broker = broker();
    broker.declare_classic_queue("silent", &[]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let deaf = Arc::new(AtomicBool::new(false));
    let client_gone = Arc::new(AtomicBool::new(false));
    let forwarder = tokio::spawn({
        let (deaf, client_gone) = (deaf.clone(), client_gone.clone());
        async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = ("127.0.0.1", broker.port());
                let server = tokio::net::TcpStream::connect(server).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let client_gone = client_gone.clone();
                tokio::spawn(async move {
                    drop(tokio::io::copy(&mut from_client, &mut to_server).await);
                    client_gone.store(true, Ordering::Release);
                });
                let deaf = deaf.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                        if !deaf.load(Ordering::Acquire)
                            && to_client.write_all(&buffer[..length]).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
        }
    });
    let options = format!("{TO_QUEUE}\nconfirm_timeout = '500ms'");
    let sink = open(&format!("amqp://127.0.0.1:{port}"), &options);
    assert_eq!(deliver(&sink, &[message("silent", "k", "1", 1)]).await, [Verdict::Confirmed]);
    // when
    deaf.store(true, Ordering::Release);
    let started = Instant::now();
    let verdicts = deliver(&sink, &[message("silent", "k", "2", 2)]).await;
    // then
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert!(
        matches!(&verdicts[0], Verdict::Unknown(r) if r.contains("no confirm")),
        "{verdicts:?}"
    );
    let gone = async {
        while !client_gone.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(1), gone).await.expect("the connection went before the verdict");
    // and it works again
    deaf.store(false, Ordering::Release);
    assert_eq!(deliver(&sink, &[message("silent", "k", "3", 3)]).await, [Verdict::Confirmed]);
    sink.close().await.unwrap();
    forwarder.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_alarm_makes_deliver_wait_and_nothing_is_lost_or_sent_twice() {
    // given: an alarm that lasts several confirm timeouts
    let broker = RabbitMq::start();
    broker.declare_quorum_queue("alarm", &[]).await;
    let sink = open(&broker.url(), &format!("{TO_QUEUE}\nconfirm_timeout = '1s'"));
    assert_eq!(deliver(&sink, &[message("alarm", "k", "1", 1)]).await, [Verdict::Confirmed]);
    broker.control(&["set_vm_memory_high_watermark", "0.0000001"]);
    // when
    let batch: Vec<Message> = (2..300).map(|n| message("alarm", "k", "x", n)).collect();
    let mut waiting = tokio::spawn({
        let sink = sink.clone();
        async move { deliver(&sink, &batch).await }
    });
    let early = timeout(Duration::from_secs(3), &mut waiting).await;
    broker.control(&["set_vm_memory_high_watermark", "0.4"]);
    // then
    assert!(early.is_err(), "{early:?}");
    let verdicts = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(verdicts, vec![Verdict::Confirmed; 298]);
    assert_eq!(broker.read_back("alarm").await.len(), 299);
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing_that_was_confirmed_and_is_used_again_after_its_restart() {
    // given
    let mut broker = RabbitMq::start();
    broker.declare_quorum_queue("kill", &[]).await;
    // So that the queue itself is durable; see `restart`.
    broker.stop();
    broker.restart();
    let sink = open(&broker.url(), TO_QUEUE);
    let confirmed_count = Arc::new(AtomicU64::new(0));
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES as u64 {
        let (sink, confirmed_count) = (sink.clone(), confirmed_count.clone());
        lanes.spawn(async move {
            let mut confirmed = Vec::new();
            for round in 0.. {
                let batch: Vec<Message> = (0..20)
                    .map(|i| message("kill", "k", "x", (round * LANES as u64 + lane) * 20 + i))
                    .collect();
                let verdicts = match timeout(PATIENCE, sink.deliver_all(&batch)).await.unwrap() {
                    Ok(verdicts) => verdicts,
                    Err(failure) => {
                        assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
                        break;
                    }
                };
                let mut all = true;
                for (message, verdict) in batch.iter().zip(verdicts) {
                    match verdict {
                        Verdict::Confirmed => confirmed.push(id(message)),
                        Verdict::Unknown(_) => all = false,
                        other => panic!("{other:?}"),
                    }
                }
                confirmed_count.store(confirmed.len() as u64, Ordering::Release);
                if !all {
                    break;
                }
            }
            confirmed
        });
    }
    // when
    let started = async {
        while confirmed_count.load(Ordering::Acquire) < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, started).await.unwrap();
    broker.kill();
    let mut confirmed = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        confirmed.extend(lane.unwrap());
    }
    broker.restart();
    // then
    let last = message("kill", "k", "again", u64::MAX >> 20);
    let again = async {
        loop {
            match sink.deliver_all(std::slice::from_ref(&last)).await {
                Ok(verdicts) if verdicts == [Verdict::Confirmed] => return,
                other => println!("not yet: {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the sink finds the broker again");
    let records = broker.read_back("kill").await;
    let stored: HashSet<String> = records.into_iter().map(|record| record.message_id).collect();
    let lost = confirmed.iter().filter(|id| !stored.contains(*id)).count();
    assert_eq!(lost, 0, "of {} confirmed", confirmed.len());
    sink.close().await.unwrap();
}

/// `cargo test --test walpost measure_rabbitmq -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn measure_rabbitmq_rate_and_processor_time() {
    let broker = broker();
    for batch_size in [10, 32, 64, 256] {
        let name = format!("rate-{batch_size}");
        broker.declare_quorum_queue(&name, &[]).await;
        let sink = open(&broker.url(), TO_QUEUE);
        let total = 100_000_u64;
        let next = Arc::new(AtomicU64::new(0));
        let (cpu, started) = (cpu_micros(), Instant::now());
        let mut lanes = tokio::task::JoinSet::new();
        for _ in 0..LANES {
            let (sink, next, name) = (sink.clone(), next.clone(), name.clone());
            lanes.spawn(async move {
                loop {
                    let start = next.fetch_add(batch_size, Ordering::Relaxed);
                    if start >= total {
                        return;
                    }
                    let batch: Vec<Message> = (start..start + batch_size)
                        .map(|n| message(&name, "k", vec![b'x'; 200], n))
                        .collect();
                    for verdict in deliver(&sink, &batch).await {
                        assert_eq!(verdict, Verdict::Confirmed);
                    }
                }
            });
        }
        while let Some(lane) = lanes.join_next().await {
            lane.unwrap();
        }
        let seconds = started.elapsed().as_secs_f64();
        let micros = (cpu_micros() - cpu) as f64 / total as f64;
        println!("batch {batch_size}: {:.0} messages/s, {micros:.1} µs", total as f64 / seconds);
        sink.close().await.unwrap();
        broker.delete_queue(&name).await;
    }
}

/// Processor time of this process so far, from /proc: user and system, in microseconds.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10_000
}
