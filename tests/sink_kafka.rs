//! The sink contract against a real Apache Kafka, and against librdkafka's own mock cluster for
//! what no real broker does on demand.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use walpost::sink::kafka::KafkaSink;
use walpost::sink::{Sink, SinkConfig, Verdict};
use walpost::{FailureKind, Header, Message};

use crate::support::kafka::{Kafka, Record};
use crate::support::sample::message;

/// The broker of all tests that do not kill one.
fn shared() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn sink(url: &str) -> KafkaSink {
    sink_with(url, "")
}

fn sink_with(url: &str, options: &str) -> KafkaSink {
    let options = options.parse().expect("the test's table is TOML");
    let config = SinkConfig { url: url.into(), options, client_name: "walpost-test".into() };
    KafkaSink::open(&config).expect("the configuration is right")
}

fn confirmed(count: usize) -> Vec<Verdict> {
    vec![Verdict::Confirmed; count]
}

fn values(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| record.value.clone().map(String::from_utf8);
    records.iter().map(|record| text(record).unwrap().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_can_be_read_back_byte_for_byte() {
    // given
    let kafka = shared();
    kafka.create_topic("fidelity", 1, &[]);
    let mut sent: Vec<Message> = vec![
        message("fidelity", "key", "value", 1),
        message("fidelity", "\u{fffd}\0key", vec![0, 159, 255, 0], 2),
        message("fidelity", "", "", 3),
        message("fidelity", "tombstone", "", 4),
        message("fidelity", "none", "no key", 5),
    ];
    sent[1]
        .headers
        .push(Header { name: "traceparent".into(), value: Bytes::from_static(b"\0\xff") });
    sent[1].headers.push(Header { name: "empty".into(), value: Bytes::new() });
    sent[3].value = None;
    sent[4].key = None;
    // when
    let sink = sink(&kafka.url());
    let verdicts = sink.deliver_all(&sent).await.unwrap();
    sink.close().await.unwrap();
    // then
    assert_eq!(verdicts, confirmed(sent.len()));
    let records = kafka.read_back("fidelity");
    assert_eq!(records.len(), sent.len());
    for (message, record) in sent.iter().zip(&records) {
        assert_eq!(record.key.as_deref(), message.key.as_deref());
        assert_eq!(record.value.as_deref(), message.value.as_deref());
        assert_eq!(record.timestamp, Some(message.timestamp_micros / 1000));
        let mut headers: Vec<(String, Vec<u8>)> =
            message.headers().map(|(name, value)| (name.into(), value.to_vec())).collect();
        let identity = message.identity.to_string().into_bytes();
        headers.push(("walpost-identity".into(), identity));
        assert_eq!(record.headers, headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_to_the_partitions_that_java_would_choose() {
    // given: toPositive(murmur2(key)) % 100, from Kafka's own UtilsTest.testMurmur2 hashes
    let known = [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    let kafka = shared();
    kafka.create_topic("placement", 100, &[]);
    let mut sent: Vec<Message> =
        known.iter().map(|(key, _)| message("placement", key, "value", 1)).collect();
    sent.push(Message { partition: Some(42), ..message("placement", "explicit", "value", 2) });
    // when
    let verdicts = sink(&kafka.url()).deliver_all(&sent).await.unwrap();
    // then
    assert_eq!(verdicts, confirmed(sent.len()));
    let records = kafka.read_back("placement");
    let partition = |key: &str| {
        let found = records.iter().find(|record| record.key.as_deref() == Some(key.as_bytes()));
        found.expect("each key was sent").partition
    };
    for (key, hash) in known {
        assert_eq!(partition(key), (hash & 0x7fff_ffff) % 100, "{key}");
    }
    assert_eq!(partition("explicit"), 42);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_message_is_rejected_and_its_neighbours_are_confirmed() {
    // given
    let kafka = shared();
    kafka.create_topic("small", 1, &[("max.message.bytes", "10000")]);
    let mut sent: Vec<Message> =
        (0..50).map(|n| message("small", &format!("key-{n}"), vec![b'x'; 9000], n)).collect();
    sent[7].value = Some(vec![b'x'; 10_000].into());
    // Later in the batch, and of the same key: it must not overtake.
    sent[9].key = sent[7].key.clone();
    // when
    let verdicts = sink(&kafka.url()).deliver_all(&sent).await.unwrap();
    // then
    for (number, verdict) in verdicts.iter().enumerate() {
        match number {
            7 => assert!(
                matches!(verdict, Verdict::Rejected(text)
                    if text.contains("max.message.bytes") && text.contains("10000")),
                "{verdict:?}"
            ),
            9 => assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}"),
            _ => assert_eq!(verdict, &Verdict::Confirmed, "message {number}"),
        }
    }
    assert_eq!(kafka.read_back("small").len(), 48);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_just_below_the_limit_is_taken() {
    // given
    let kafka = shared();
    kafka.create_topic("brim", 1, &[("max.message.bytes", "10000")]);
    let mut largest = message("brim", "key", "", 1);
    let sink = sink(&kafka.url());
    // when: grown until it is rejected, the last one before it
    let mut length = 9_700;
    loop {
        largest.value = Some(vec![b'x'; length].into());
        match &sink.deliver_all(std::slice::from_ref(&largest)).await.unwrap()[0] {
            Verdict::Confirmed => length += 10,
            // then: by our own reckoning, which names the remedy, and never by the broker's
            Verdict::Rejected(text) if text.contains("raise max.message.bytes") => break,
            other => panic!("{length} bytes: {other:?}"),
        }
    }
    assert!(length > 9_750, "rejected at {length} bytes already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_lowered_at_run_time_rejects_the_guilty_one_and_no_other() {
    // given: a sink that knows the old limit
    let kafka = shared();
    kafka.create_topic("lowered", 1, &[]);
    let sink = sink(&kafka.url());
    let first = [message("lowered", "before", "small", 0)];
    assert_eq!(sink.deliver_all(&first).await.unwrap(), confirmed(1));
    let lower = ["--alter", "--topic", "lowered", "--add-config", "max.message.bytes=2000"];
    kafka.tool("kafka.admin.ConfigCommand", &lower);
    let large = [message("lowered", "key-3", vec![b'x'; 3000], 3)];
    // The change takes a moment to arrive; a sink that asks anew sees when it has.
    let mut told = Verdict::Confirmed;
    while told == Verdict::Confirmed {
        told = self::sink(&kafka.url()).deliver_all(&large).await.unwrap().remove(0);
    }
    let before = kafka.read_back("lowered").len();
    // when: whatever is unknown goes again, as a lane would send it
    let mut waiting: Vec<Message> =
        (1..6).map(|n| message("lowered", &format!("key-{n}"), "small", n)).collect();
    waiting[2] = large[0].clone();
    let (mut rejected, mut rounds) = (Vec::new(), 0);
    while !waiting.is_empty() {
        let verdicts = sink.deliver_all(&waiting).await.unwrap();
        let mut judged = verdicts.into_iter();
        waiting.retain(|message| match judged.next().unwrap() {
            Verdict::Confirmed => false,
            Verdict::Unknown(_) => true,
            Verdict::Rejected(_) => {
                rejected.push(message.key.clone().unwrap());
                false
            }
            Verdict::Absent(text) => panic!("{text}"),
        });
        rounds += 1;
        assert!(rounds < 10, "it never ends");
    }
    // then
    assert_eq!(rejected, [Bytes::from_static(b"key-3")]);
    assert_eq!(kafka.read_back("lowered").len(), before + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_absent_until_it_is_made_and_again_when_it_is_deleted() {
    // given
    let kafka = shared();
    kafka.create_topic("present", 1, &[]);
    let sink = sink(&kafka.url());
    let batch = [message("late", "a", "one", 1), message("present", "b", "two", 2)];
    let absent = |verdict: &Verdict| {
        assert!(matches!(verdict, Verdict::Absent(text) if text.contains("late")), "{verdict:?}");
    };
    // when
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    // then
    absent(&verdicts[0]);
    assert_eq!(verdicts[1], Verdict::Confirmed);
    // when
    kafka.create_topic("late", 1, &[]);
    // then
    assert_eq!(sink.deliver_all(&batch[..1]).await.unwrap(), confirmed(1));
    // when
    kafka.delete_topic("late");
    // then: librdkafka may need to ask for metadata first; until then it waits
    absent(&sink.deliver_all(&batch[..1]).await.unwrap()[0]);
    // when
    kafka.create_topic("late", 1, &[]);
    // then
    assert_eq!(sink.deliver_all(&batch[..1]).await.unwrap(), confirmed(1));
    assert_eq!(values(&kafka.read_back("late")), ["one"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_costs_neither_rows_nor_order() {
    // given: four lanes, each with keys of its own, sending batch after batch
    let mut kafka = Kafka::start();
    kafka.create_topic("orders", 4, &[]);
    let sink = sink(&kafka.url());
    static STOP: AtomicBool = AtomicBool::new(false);
    let lane = async |lane: u64| {
        let mut next = 0_u64;
        while !STOP.load(Ordering::Relaxed) {
            let mut waiting: Vec<Message> = (next..next + 20)
                .map(|n| message("orders", &format!("{lane}-{}", n % 3), n.to_string(), n))
                .collect();
            next += 20;
            // What is not confirmed goes again, in order.
            while !waiting.is_empty() {
                match sink.deliver_all(&waiting).await {
                    Ok(verdicts) => {
                        let mut verdicts = verdicts.iter();
                        waiting.retain(|_| verdicts.next() != Some(&Verdict::Confirmed));
                    }
                    Err(failure) => assert_eq!(failure.kind(), FailureKind::Transient),
                }
            }
        }
        next
    };
    // when
    let trouble = tokio::task::spawn_blocking(move || {
        // Long enough for batches to be in the air, whatever the machine does.
        std::thread::sleep(Duration::from_millis(500));
        kafka.kill();
        kafka.restart();
        std::thread::sleep(Duration::from_millis(200));
        STOP.store(true, Ordering::Relaxed);
        kafka
    });
    let (a, b, c, d, kafka) = tokio::join!(lane(0), lane(1), lane(2), lane(3), trouble);
    // then: of each key, all values are there, first seen in order
    let mut kafka = kafka.unwrap();
    let records = kafka.read_back("orders");
    let mut seen: HashMap<Vec<u8>, Vec<u64>> = HashMap::new();
    for (record, value) in records.iter().zip(values(&records)) {
        let number = value.parse().unwrap();
        let seen = seen.entry(record.key.clone().unwrap()).or_default();
        if !seen.contains(&number) {
            seen.push(number);
        }
    }
    for (lane, count) in [a, b, c, d].into_iter().enumerate() {
        assert!(count > 0);
        for class in 0..3 {
            let expected: Vec<u64> = (0..count).filter(|n| n % 3 == class).collect();
            assert_eq!(seen[format!("{lane}-{class}").as_bytes()], expected);
        }
    }
    // given: a broker that is gone, and a batch that waits for it
    kafka.stop();
    let stuck = [message("orders", "key", "value", 1)];
    // when
    let start = Instant::now();
    let (delivered, closed) = tokio::join!(sink.deliver_all(&stuck), sink.close());
    // then: closing does not wait for ever, and calls nothing confirmed
    assert!(matches!(delivered.unwrap()[0], Verdict::Unknown(_)));
    assert!(closed.is_err());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_client_queue_is_waited_for_and_keeps_the_order() {
    // given
    let kafka = shared();
    kafka.create_topic("narrow", 1, &[]);
    let sink = sink_with(&kafka.url(), "properties.'queue.buffering.max.messages' = 7");
    let sent: Vec<Message> = (0..200).map(|n| message("narrow", "key", n.to_string(), n)).collect();
    // when
    let verdicts = sink.deliver_all(&sent).await.unwrap();
    // then
    assert_eq!(verdicts, confirmed(200));
    let expected: Vec<String> = (0..200).map(|n: u64| n.to_string()).collect();
    assert_eq!(values(&kafka.read_back("narrow")), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_broker_fails_the_probe_within_seconds() {
    // given: a port that nobody listens on
    let sink = sink(&format!("kafka://127.0.0.1:{}", crate::support::process::free_port()));
    let start = Instant::now();
    // when
    let failure = sink.probe().await.unwrap_err();
    // then
    assert_eq!(failure.kind(), FailureKind::Transient);
    assert!(failure.to_string().contains("could not reach the Kafka cluster"), "{failure}");
    assert!(failure.to_string().contains("refused"), "{failure}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_denied_and_stays_secret() {
    // given
    let kafka = shared();
    let sink = sink(&kafka.sasl_url("relay", "hunter2"));
    // when
    let probed = sink.probe().await.unwrap_err();
    let delivered = sink.deliver_all(&[message("any", "key", "value", 1)]).await.unwrap_err();
    // then
    for failure in [probed, delivered] {
        assert_eq!(failure.kind(), FailureKind::Denied, "{failure}");
        assert!(!failure.to_string().contains("hunter2"), "{failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_we_may_not_see_is_rejected() {
    // given: `relay` was granted nothing
    let kafka = shared();
    kafka.create_topic("hidden", 1, &[]);
    let sink = sink(&kafka.sasl_url("relay", "secret"));
    // when
    let verdicts = sink.deliver_all(&[message("hidden", "key", "value", 1)]).await.unwrap();
    // then
    let named = matches!(&verdicts[0], Verdict::Rejected(text) if text.contains("hidden"));
    assert!(named, "{verdicts:?}");
    // and the warning about the password in clear text
    let warnings = sink.probe().await.unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("clear text")), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_error_makes_the_flight_unknown_and_the_next_one_works() {
    // given
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("fatal", 1, 1).unwrap();
    let sink = sink(&format!("kafka://{}", cluster.bootstrap_servers()));
    let batch = [message("fatal", "key", "one", 1), message("fatal", "key", "two", 2)];
    assert_eq!(sink.deliver_all(&batch[..1]).await.unwrap(), confirmed(1));
    for error in [
        // Fatal by itself: the broker's and the client's count of messages differ.
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        // Fatal through the gapless guarantee, and said of a whole batch.
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
    ] {
        // when
        cluster.request_errors(RDKafkaApiKey::Produce, &[error; 5]);
        let verdicts = sink.deliver_all(&batch).await.unwrap();
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        // then
        let unknown = verdicts.iter().all(|verdict| matches!(verdict, Verdict::Unknown(_)));
        assert!(unknown, "{error:?}: {verdicts:?}");
        assert_eq!(sink.deliver_all(&batch).await.unwrap(), confirmed(2), "after {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_we_may_see_but_not_write_to_is_rejected() {
    // given
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("seen", 1, 1).unwrap();
    let sink = sink(&format!("kafka://{}", cluster.bootstrap_servers()));
    let batch = [message("seen", "key", "one", 1)];
    // when
    let error = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::Produce, &[error]);
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    // then
    let named = matches!(&verdicts[0], Verdict::Rejected(text) if text.contains("seen"));
    assert!(named, "{verdicts:?}");
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), confirmed(1));
}

/// Sends as a lane would until nothing is unknown any more; the keys of what was rejected, and why.
async fn judged(sink: &KafkaSink, batch: Vec<Message>) -> Vec<(Option<Bytes>, String)> {
    let (mut waiting, mut rejected) = (batch, Vec::new());
    for _ in 0..10 {
        let mut verdicts = sink.deliver_all(&waiting).await.unwrap().into_iter();
        waiting.retain(|message| match verdicts.next().unwrap() {
            Verdict::Confirmed => false,
            Verdict::Unknown(_) => true,
            Verdict::Rejected(text) => {
                rejected.push((message.key.clone(), text));
                false
            }
            Verdict::Absent(text) => panic!("{text}"),
        });
        if waiting.is_empty() {
            return rejected;
        }
    }
    panic!("it never ends: {waiting:?}");
}

/// So that no compression makes it smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..bytes).map(|_| random.u8(..)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_read_a_topics_settings_has_the_broker_judge_sizes() {
    // given a topic that takes 3 MB, and a user who may write to it and nothing else
    let kafka = shared();
    kafka.create_topic("undescribed", 1, &[("max.message.bytes", "3000000")]);
    kafka.grant_write("relay", "undescribed");
    let sink = sink(&kafka.sasl_url("relay", "secret"));
    let probe = [message("undescribed", "probe", "value", 0)];
    for attempt in 0.. {
        assert!(attempt < 1000, "the right does not arrive");
        if sink.deliver_all(&probe).await.unwrap() == confirmed(1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // then a row of 2 MB is taken, and one of 4 MB is refused by the broker, alone
    let batch = vec![
        message("undescribed", "a", noise(2_000_000), 1),
        message("undescribed", "b", noise(4_000_000), 2),
        message("undescribed", "c", "small", 3),
    ];
    let rejected = judged(&sink, batch).await;
    let [(key, text)] = &rejected[..] else { panic!("{rejected:?}") };
    assert_eq!(key.as_deref(), Some(&b"b"[..]));
    assert!(text.contains("undescribed") && text.contains("max.message.bytes"), "{text}");
    assert_eq!(kafka.read_back("undescribed").len(), 3);
    // and `check` names the right that is missing
    let warnings = sink.examine("undescribed").await.unwrap();
    assert!(warnings.iter().any(|one| one.contains("DescribeConfigs")), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compressed_is_judged_by_the_broker() {
    let kafka = shared();
    kafka.create_topic("squeezed", 1, &[]);
    let sink = sink_with(&kafka.url(), "compression = 'zstd'");
    let batch = vec![
        message("squeezed", "large", vec![b'x'; 3_000_000], 1),
        message("squeezed", "noisy", noise(3_000_000), 2),
        message("squeezed", "small", "small", 3),
    ];
    let rejected = judged(&sink, batch).await;
    let keys: Vec<_> = rejected.iter().map(|(key, _)| key.as_deref().unwrap()).collect();
    assert_eq!(keys, [b"noisy"]);
    assert_eq!(kafka.read_back("squeezed").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_from_the_future_is_refused_alone_and_its_message_names_the_way_out() {
    // given rows of now, and one of in three hours
    let kafka = shared();
    kafka.create_topic("future", 1, &[("message.timestamp.after.max.ms", "3600000")]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_micros()).unwrap();
    let mut batch: Vec<Message> =
        (0..4).map(|n| message("future", &format!("key-{n}"), "value", n)).collect();
    batch.iter_mut().for_each(|message| message.timestamp_micros = now);
    batch[2].timestamp_micros = now + 3 * 3_600_000_000;
    // when
    let rejected = judged(&sink(&kafka.url()), batch.clone()).await;
    // then
    let [(key, text)] = &rejected[..] else { panic!("{rejected:?}") };
    assert_eq!(key.as_deref(), Some(&b"key-2"[..]));
    for word in ["created_at", "message.timestamp.after.max.ms", "sink.timestamp = \"now\""] {
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(kafka.read_back("future").len(), 3);
    // when the way out is taken
    let sink = sink_with(&kafka.url(), "timestamp = 'now'");
    assert!(judged(&sink, batch.split_off(2)).await.is_empty());
    let records = kafka.read_back("future");
    assert!(records.iter().all(|record| record.timestamp.unwrap() < now / 1000 + 3_000_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_a_key_is_refused_by_a_compacted_topic_alone_and_by_name() {
    let kafka = shared();
    kafka.create_topic("compacted", 1, &[("cleanup.policy", "compact")]);
    let mut batch: Vec<Message> =
        (0..5).map(|n| message("compacted", &format!("key-{n}"), "value", n)).collect();
    batch[3].key = None;
    let rejected = judged(&sink(&kafka.url()), batch).await;
    let [(key, text)] = &rejected[..] else { panic!("{rejected:?}") };
    assert_eq!(*key, None);
    assert!(text.contains("compacted topic takes none without a key"), "{text}");
    assert_eq!(kafka.read_back("compacted").len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_illegal_topic_name_is_rejected_with_the_ways_out() {
    let sink = sink(&shared().url());
    let verdicts = sink.deliver_all(&[message("Order Created", "key", "value", 1)]).await.unwrap();
    let Verdict::Rejected(text) = &verdicts[0] else { panic!("{verdicts:?}") };
    assert!(text.contains("Order Created") && text.contains("outbox.topic"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unwise_about_our_topics_is_found_before_the_first_row() {
    let kafka = shared();
    let configs = [("retention.ms", "60000"), ("cleanup.policy", "compact,delete")];
    kafka.create_topic("examined.one", 1, &configs);
    kafka.create_topic("examined.two", 1, &[("min.insync.replicas", "2")]);
    let warnings = sink(&kafka.url()).examine("examined.").await.unwrap();
    for words in [
        ["examined.one", "compacted"],
        ["examined.one", "keeps a record for 1 min"],
        ["examined.two", "confirms nothing"],
        ["examined.two", "replication factor 1"],
    ] {
        let named = warnings.iter().any(|one| words.iter().all(|word| one.contains(word)));
        assert!(named, "{words:?}: {warnings:#?}");
    }
    assert!(sink(&kafka.url()).examine("nothing.like.it").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_file_is_read_at_the_next_login() {
    // given a file with what is not the password
    let kafka = shared();
    kafka.create_topic("rotated", 1, &[]);
    let path = crate::support::process::scratch("kafka-password").join("password");
    std::fs::write(&path, "outdated\n").unwrap();
    let url = kafka.sasl_url("relay", "").replace(":@", "@");
    let sink = sink_with(&url, &format!("password_file = '{}'", path.display()));
    let batch = [message("rotated", "key", "value", 1)];
    let denied = sink.deliver_all(&batch).await.unwrap_err();
    assert_eq!(denied.kind(), FailureKind::Denied);
    // when it is there
    std::fs::write(&path, "secret\n").unwrap();
    // then it logs in, and only the right to this topic is missing
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert!(matches!(&verdicts[0], Verdict::Rejected(text) if text.contains("rotated")));
}

/// Figures, not a test: `cargo test --test walpost measure_kafka -- --ignored --nocapture`.
#[ignore = "prints figures for a person to read"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure_kafka() {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    let kafka = shared();
    kafka.create_topic("warm", 1, &[]);
    kafka.create_topic("speed", 4, &[]);
    sink(&kafka.url()).deliver_all(&[message("warm", "key", "value", 0)]).await.unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        let bare: BaseProducer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", kafka.bootstrap())
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create()
            .unwrap();
        bare.send(BaseRecord::<str, str>::to("warm").key("key").payload("value")).unwrap();
        while bare.in_flight_count() > 0 {
            bare.poll(Duration::from_millis(1));
        }
        let bare = start.elapsed();
        let start = Instant::now();
        let fresh = sink(&kafka.url());
        fresh.deliver_all(&[message("warm", "key", "value", 0)]).await.unwrap();
        println!("first confirm: bare {bare:?}, sink {:?}", start.elapsed());
    }
    let sink = sink(&kafka.url());
    let mut lone: Vec<Duration> = Vec::new();
    for number in 0..300 {
        let start = Instant::now();
        sink.deliver_all(&[message("warm", "key", "value", number)]).await.unwrap();
        lone.push(start.elapsed());
    }
    lone.sort();
    println!("lone message: p50 {:?}, p99 {:?}", lone[150], lone[297]);
    let seconds = |text: String| -> f64 {
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    };
    let used = || seconds(std::fs::read_to_string("/proc/self/stat").unwrap());
    for (callers, size) in [(1, 1000), (8, 250), (32, 100), (32, 250), (32, 1000)] {
        let batch: Vec<Message> =
            (0..size).map(|n| message("speed", &format!("key-{n}"), vec![b'x'; 200], n)).collect();
        let rounds = 160_000 / callers / size;
        let (start, before) = (Instant::now(), used());
        let lane = async || {
            for _ in 0..rounds {
                assert_eq!(sink.deliver_all(&batch).await.unwrap(), confirmed(batch.len()));
            }
        };
        futures_util::future::join_all((0..callers).map(|_| lane())).await;
        let count = (rounds * callers * size) as f64;
        println!(
            "{callers} callers of {size}: {:.0} messages/s, {:.2} us CPU each",
            count / start.elapsed().as_secs_f64(),
            (used() - before) * 1e6 / count
        );
    }
}
