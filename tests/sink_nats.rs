//! NATS sink against a real server: confirmed means readable back, and nothing lands late.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use bytes::Bytes;
use walpost::sink::{Sink, SinkConfig, Verdict, open};
use walpost::{FailureKind, Header, Message};

use crate::support::log::captured;
use crate::support::nats::{Nats, Record};
use crate::support::process::free_port;
use crate::support::proxy::Proxy;
use crate::support::sample;

/// The server that tests share which do not break it.
fn shared() -> &'static Nats {
    static SERVER: OnceLock<Nats> = OnceLock::new();
    SERVER.get_or_init(Nats::start)
}

fn sink(url: &str, options: &str) -> Arc<dyn Sink> {
    let options = options.parse().unwrap();
    open(&SinkConfig { url: url.into(), options, client_name: "walpost".into() }).unwrap()
}

/// A message whose number, and so whose identity, no other test uses.
fn message(subject: &str, value: impl Into<Bytes>) -> Message {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    sample::message(subject, &format!("key-{number}"), value, number)
}

fn messages(subject: &str, count: usize) -> Vec<Message> {
    (0..count).map(|number| message(subject, format!("{{\"number\":{number}}}"))).collect()
}

fn header<'a>(record: &'a Record, name: &str) -> &'a str {
    record.headers.get(name).map_or("", |value| value.as_str())
}

fn identities(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| header(record, "walpost-identity").to_owned()).collect()
}

fn reason(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Confirmed => "confirmed",
        Verdict::Unknown(reason) => reason,
        Verdict::Absent(reason) | Verdict::Rejected(reason) => reason,
    }
}

#[tokio::test]
async fn what_nats_confirmed_is_read_back_with_its_headers() {
    let nats = shared();
    nats.create_stream("READBACK", &["readback.>"]).await;
    let sink = sink(&nats.url(), "");
    let mut batch = messages("readback.orders", 50);
    batch[0].value = Some(Bytes::from((0..=255).collect::<Vec<u8>>()));
    batch[1].value = None;
    batch[2].headers = vec![
        Header { name: "trace".into(), value: Bytes::from_static(b"00-ab: cd") },
        Header { name: "trace".into(), value: Bytes::from_static("größe".as_bytes()) },
    ];

    let verdicts = sink.deliver_all(&batch).await.unwrap();

    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Confirmed), "{verdicts:?}");
    let records = nats.read_back("READBACK").await;
    assert_eq!(records.len(), batch.len());
    assert!(records.is_sorted_by_key(|record| (record.sequence, record.time_micros)));
    for (record, message) in records.iter().zip(&batch) {
        assert_eq!(record.subject, "readback.orders");
        assert_eq!(record.payload, message.value.clone().unwrap_or_default());
        assert_eq!(header(record, "walpost-key").as_bytes(), message.key.as_deref().unwrap());
        assert_eq!(header(record, "Nats-Msg-Id"), message.identity.to_string());
        assert_eq!(header(record, "walpost-identity"), message.identity.to_string());
        for (name, value) in message.headers() {
            let mut stored = record.headers.get_all(name);
            assert!(stored.any(|stored| stored.as_str().as_bytes() == *value), "{name}");
        }
    }
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_lanes_side_by_side_store_everything_once() {
    let nats = shared();
    nats.create_stream("LANES", &["lanes"]).await;
    let sink = sink(&nats.url(), "");
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let sink = Arc::clone(&sink);
        lanes.spawn(async move {
            for _ in 0..5 {
                let verdicts = sink.deliver_all(&messages("lanes", 40)).await.unwrap();
                assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Confirmed));
            }
        });
    }
    lanes.join_all().await;

    let stored = identities(&nats.read_back("LANES").await);
    assert_eq!(stored.len(), 32 * 5 * 40);
    assert_eq!(stored.iter().collect::<HashSet<_>>().len(), stored.len());
}

#[tokio::test]
async fn the_same_identities_again_are_confirmed_and_stored_once() {
    let nats = shared();
    nats.create_stream("TWICE", &["twice"]).await;
    let sink = sink(&nats.url(), "");
    let batch = messages("twice", 20);
    for _ in 0..2 {
        let verdicts = sink.deliver_all(&batch).await.unwrap();
        assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Confirmed), "{verdicts:?}");
    }
    assert_eq!(nats.read_back("TWICE").await.len(), 20);
}

#[tokio::test]
async fn a_missing_stream_is_absent_until_it_is_made() {
    let nats = shared();
    let sink = sink(&nats.url(), "");
    let batch = messages("later.made", 3);

    let verdicts = sink.deliver_all(&batch).await.unwrap();
    for verdict in &verdicts {
        assert!(matches!(verdict, Verdict::Absent(_)), "{verdict:?}");
        assert!(reason(verdict).contains("later.made"));
    }

    nats.create_stream("LATER", &["later.>"]).await;
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), vec![Verdict::Confirmed; 3]);
}

#[tokio::test]
async fn too_large_is_rejected_with_size_limit_and_remedy_and_its_neighbours_go() {
    let nats = shared();
    nats.create_stream_with(stream::Config {
        name: "LARGE".into(),
        subjects: vec!["large".into()],
        max_message_size: 10_000,
        ..Default::default()
    })
    .await;
    let sink = sink(&nats.url(), "");
    let mut batch = messages("large", 4);
    batch[1].value = Some(Bytes::from(vec![b'x'; 20_000]));
    batch[2].value = Some(Bytes::from(vec![b'x'; 1 << 20]));

    let verdicts = sink.deliver_all(&batch).await.unwrap();

    assert_eq!((&verdicts[0], &verdicts[3]), (&Verdict::Confirmed, &Verdict::Confirmed));
    for (index, parts) in [
        (1, ["large", "max_msg_size is 10000", "stream \"LARGE\""]),
        (2, ["large", "max_payload is 1048576", "1048"]),
    ] {
        assert!(matches!(verdicts[index], Verdict::Rejected(_)), "{:?}", verdicts[index]);
        for part in parts {
            assert!(reason(&verdicts[index]).contains(part), "{part}: {:?}", verdicts[index]);
        }
    }
}

#[tokio::test]
async fn what_nats_cannot_carry_is_rejected_and_its_neighbours_go() {
    let nats = shared();
    nats.create_stream("CARRY", &["carry.>"]).await;
    let sink = sink(&nats.url(), "");
    let mut batch = messages("carry.x", 5);
    batch[0].topic = "carry.*".into();
    batch[1].topic = "carry. x".into();
    batch[2].headers =
        vec![Header { name: "trace".into(), value: Bytes::from_static(b"a\r\nNats-Rollup: all") }];
    batch[3].key = Some(Bytes::from_static(b"\xff"));

    let verdicts = sink.deliver_all(&batch).await.unwrap();

    for (verdict, part) in verdicts.iter().zip(["carry.*", "carry. x", "trace", "key"]) {
        assert!(matches!(verdict, Verdict::Rejected(_)), "{verdict:?}");
        assert!(reason(verdict).contains(part), "{verdict:?}");
    }
    assert_eq!(verdicts[4], Verdict::Confirmed);
    assert_eq!(nats.read_back("CARRY").await.len(), 1);
}

#[tokio::test]
async fn a_full_stream_is_unknown_until_it_has_room() {
    let nats = shared();
    nats.create_stream_with(stream::Config {
        name: "FULL".into(),
        subjects: vec!["full".into()],
        max_messages: 2,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    })
    .await;
    let sink = sink(&nats.url(), "");
    let batch = messages("full", 4);

    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert_eq!(verdicts[..2], [Verdict::Confirmed, Verdict::Confirmed]);
    for verdict in &verdicts[2..] {
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        assert!(reason(verdict).contains("maximum messages exceeded"), "{verdict:?}");
    }

    let context = nats.jetstream().await;
    context.get_stream("FULL").await.unwrap().purge().await.unwrap();
    assert_eq!(sink.deliver_all(&batch[2..]).await.unwrap(), vec![Verdict::Confirmed; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_in_the_middle_loses_nothing_confirmed_and_nothing_lands_late() {
    let mut nats = Nats::start();
    nats.create_stream("KILLED", &["killed"]).await;
    let sink = sink(&nats.url(), "ack_timeout = '3s'");
    let confirmed_count = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    // Eight lanes; each goes on with new messages as long as all is well, and at the first
    // trouble keeps what was unknown.
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (sink, count, stop) =
            (Arc::clone(&sink), Arc::clone(&confirmed_count), Arc::clone(&stop));
        lanes.spawn(async move {
            let (mut confirmed, mut unknown) = (Vec::new(), Vec::new());
            while unknown.is_empty() && !stop.load(Ordering::Relaxed) {
                let batch = messages("killed", 50);
                match sink.deliver_all(&batch).await {
                    Ok(verdicts) => {
                        for (message, verdict) in batch.into_iter().zip(verdicts) {
                            match verdict {
                                Verdict::Confirmed => confirmed.push(message),
                                Verdict::Unknown(_) => unknown.push(message),
                                Verdict::Absent(_) | Verdict::Rejected(_) => panic!("{verdict:?}"),
                            }
                        }
                    }
                    Err(failure) => {
                        assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
                        unknown.extend(batch);
                    }
                }
                count.store(confirmed.len() as u64, Ordering::Relaxed);
            }
            (confirmed, unknown)
        });
    }
    while confirmed_count.load(Ordering::Relaxed) < 500 {
        tokio::task::yield_now().await;
    }
    nats.kill();
    let outcomes = lanes.join_all().await;
    let confirmed: Vec<_> = outcomes.iter().flat_map(|(confirmed, _)| confirmed).collect();
    let unknown: Vec<_> = outcomes.iter().flat_map(|(_, unknown)| unknown).cloned().collect();
    assert!(!unknown.is_empty());

    nats.restart();
    let before = identities(&nats.read_back("KILLED").await);
    let fence = messages("killed", 1);
    assert_eq!(sink.deliver_all(&fence).await.unwrap(), [Verdict::Confirmed], "it works again");
    for chunk in unknown.chunks(50) {
        let again = sink.deliver_all(chunk).await.unwrap();
        assert!(again.iter().all(|verdict| *verdict == Verdict::Confirmed), "{again:?}");
    }

    // Everything confirmed is there; and between the server's return and the fence there is
    // nothing: no unknown message was flushed into the new connection.
    let after = identities(&nats.read_back("KILLED").await);
    let stored: HashSet<_> = after.iter().collect();
    assert_eq!(stored.len(), after.len(), "nothing is stored twice");
    for message in confirmed.into_iter().chain(&unknown) {
        assert!(stored.contains(&message.identity.to_string()), "lost {}", message.identity);
    }
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after[before.len()], fence[0].identity.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_while_the_connection_stood_still_never_lands() {
    let nats = Nats::start();
    nats.create_stream("STILL", &["still"]).await;
    let forwarder = Forwarder::start(nats.port());
    let sink = sink(&forwarder.url(), "ack_timeout = '1s'");
    assert_eq!(sink.deliver_all(&messages("still", 1)).await.unwrap(), [Verdict::Confirmed]);

    // More than all buffers of the way hold, while nothing is read at its end.
    forwarder.hold_requests.store(true, Ordering::Relaxed);
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let sink = Arc::clone(&sink);
        lanes.spawn(async move {
            let mut batch = messages("still", 4);
            for message in &mut batch {
                message.value = Some(Bytes::from(vec![b'x'; 500_000]));
            }
            let verdicts = sink.deliver_all(&batch).await.unwrap();
            assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Unknown(_))));
        });
    }
    lanes.join_all().await;
    assert_eq!(forwarder.open_clients(), 0, "the old socket is closed before Unknown is said");
    forwarder.hold_requests.store(false, Ordering::Relaxed);

    let fence = messages("still", 1);
    assert_eq!(sink.deliver_all(&fence).await.unwrap(), [Verdict::Confirmed]);
    let records = identities(&nats.read_back("STILL").await);
    assert_eq!(records.len(), 2, "nothing of the old connection landed");
    assert_eq!(records[1], fence[0].identity.to_string());
}

#[tokio::test]
async fn what_a_frozen_server_finds_on_its_old_socket_is_stored_once_and_in_order() {
    let nats = Nats::start();
    nats.create_stream("FROZEN", &["frozen"]).await;
    let sink = sink(&nats.url(), "ack_timeout = '300ms'\nconnect_timeout = '10s'");
    assert_eq!(sink.deliver_all(&messages("frozen", 1)).await.unwrap(), [Verdict::Confirmed]);
    let batch = messages("frozen", 100);
    let successors = messages("frozen", 100);

    nats.freeze();
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Unknown(_))), "{verdicts:?}");
    nats.thaw();
    for part in [&batch, &successors] {
        let mut verdicts = sink.deliver_all(part).await.unwrap();
        while verdicts.iter().any(|verdict| matches!(verdict, Verdict::Unknown(_))) {
            verdicts = sink.deliver_all(part).await.unwrap();
        }
        assert_eq!(verdicts, vec![Verdict::Confirmed; 100]);
    }

    let stored = identities(&nats.read_back("FROZEN").await);
    let expected = batch.iter().chain(&successors).map(|message| message.identity.to_string());
    assert_eq!(stored[1..], expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn swallowed_acks_are_unknown_after_the_timeout_and_the_retry_stores_nothing_twice() {
    let nats = Nats::start();
    nats.create_stream("SWALLOW", &["swallow"]).await;
    let forwarder = Forwarder::start(nats.port());
    let sink = sink(&forwarder.url(), "ack_timeout = '500ms'");
    assert_eq!(sink.deliver_all(&messages("swallow", 1)).await.unwrap(), [Verdict::Confirmed]);

    forwarder.swallow_replies.store(true, Ordering::Relaxed);
    let batch = messages("swallow", 20);
    let started = Instant::now();
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(500));
    // One timeout for all, not one each.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for verdict in &verdicts {
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        assert!(reason(verdict).contains("500ms"), "{verdict:?}");
    }

    forwarder.swallow_replies.store(false, Ordering::Relaxed);
    let again = sink.deliver_all(&batch).await.unwrap();
    assert_eq!(again, vec![Verdict::Confirmed; 20]);
    assert_eq!(nats.read_back("SWALLOW").await.len(), 21);
}

#[tokio::test]
async fn another_row_of_the_same_identity_is_stored_and_named_and_a_repeat_is_neither() {
    let nats = shared();
    nats.create_stream("FOREIGN", &["foreign"]).await;
    let (_guard, log) = captured();
    let mine = messages("foreign", 20);
    // given rows of another database that has the same identities, such as a copy of this one
    let mut theirs = mine.clone();
    for message in &mut theirs[..15] {
        message.id = Some(Bytes::from("another"));
    }
    for message in &mut theirs[15..] {
        message.value = Some(Bytes::from("{}"));
    }
    // when both publish, and each again as after a crash
    let confirmed = vec![Verdict::Confirmed; 20];
    for _ in 0..2 {
        assert_eq!(sink(&nats.url(), "").deliver_all(&mine).await.unwrap(), confirmed);
    }
    assert!(log().is_empty(), "{}", log());
    for _ in 0..2 {
        let sink = sink(&nats.url(), "");
        assert_eq!(sink.deliver_all(&theirs).await.unwrap(), confirmed);
        sink.close().await.unwrap();
    }
    // then the stream holds every row once, and the log says of which stream and how many
    let records = nats.read_back("FOREIGN").await;
    assert_eq!(records.len(), 40);
    let payloads = |records: &[Record]| records.iter().map(|one| one.payload.clone()).collect();
    let (first, second): (Vec<Bytes>, Vec<Bytes>) =
        (payloads(&records[..20]), payloads(&records[20..]));
    assert_eq!(first, mine.iter().map(|one| one.value.clone().unwrap()).collect::<Vec<_>>());
    assert_eq!(second, theirs.iter().map(|one| one.value.clone().unwrap()).collect::<Vec<_>>());
    assert!(log().contains("stream=\"FOREIGN\" duplicates=20"), "{}", log());
    // and it can be an end instead
    let stop = sink(&nats.url(), "on_foreign_duplicate = 'stop'");
    let mut other = mine[..1].to_vec();
    other[0].value = Some(Bytes::from("third"));
    let verdicts = stop.deliver_all(&other).await.unwrap();
    assert!(
        matches!(&verdicts[0], Verdict::Rejected(r) if r.contains("\"FOREIGN\"")),
        "{verdicts:?}"
    );
    assert_eq!(nats.read_back("FOREIGN").await.len(), 40);
}

#[tokio::test]
async fn a_duplicate_of_a_consumed_row_is_a_repeat_only_while_it_can_be_one() {
    let nats = shared();
    nats.create_stream_with(stream::Config {
        name: "CONSUMED".into(),
        subjects: vec!["consumed".into()],
        duplicate_window: Duration::from_secs(2),
        ..Default::default()
    })
    .await;
    let (_guard, log) = captured();
    let (first, second) = (messages("consumed", 5), messages("consumed", 5));
    let confirmed = vec![Verdict::Confirmed; 5];
    let context = nats.jetstream().await;
    let mut stream = context.get_stream("CONSUMED").await.unwrap();
    let old = sink(&nats.url(), "");
    assert_eq!(old.deliver_all(&first).await.unwrap(), confirmed);
    for record in nats.read_back("CONSUMED").await {
        stream.delete_message(record.sequence).await.unwrap();
    }
    // A new process may repeat what an older one sent.
    let (new, started) = (sink(&nats.url(), ""), Instant::now());
    assert_eq!(new.deliver_all(&first).await.unwrap(), confirmed);
    assert_eq!(stream.info().await.unwrap().state.messages, 0);
    // Later than the stream remembers it cannot, so these are another's.
    while started.elapsed() < Duration::from_millis(2_100) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(log().is_empty(), "{}", log());
    assert_eq!(old.deliver_all(&second).await.unwrap(), confirmed);
    for record in nats.read_back("CONSUMED").await {
        stream.delete_message(record.sequence).await.unwrap();
    }
    assert_eq!(new.deliver_all(&second).await.unwrap(), confirmed);
    assert_eq!(stream.info().await.unwrap().state.messages, 5);
    assert!(log().contains("stream=\"CONSUMED\" duplicates=1"), "{}", log());
}

#[tokio::test]
async fn a_stream_without_a_quorum_is_an_outage_and_only_jetstream_proves_one_missing() {
    let [mut one, mut two, mut three] = Nats::start_cluster();
    let config = stream::Config {
        name: "QUORUM".into(),
        subjects: vec!["quorum".into()],
        num_replicas: 3,
        ..Default::default()
    };
    let context = one.jetstream().await;
    let made = async {
        while context.create_stream(config.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), made).await.expect("the cluster has a leader");
    let sink = sink(&one.url(), "ack_timeout = '1s'");
    assert_eq!(
        sink.deliver_all(&messages("quorum", 3)).await.unwrap(),
        vec![Verdict::Confirmed; 3]
    );
    let mut mixed = messages("quorum", 2);
    mixed[1].topic = "nowhere".into();
    let verdicts = sink.deliver_all(&mixed).await.unwrap();
    assert!(matches!(verdicts[1], Verdict::Absent(_)), "{verdicts:?}");

    // when two of three are gone, until the last one has noticed that it leads nothing
    two.kill();
    three.kill();
    let mut mixed = messages("quorum", 2);
    mixed[1].topic = "nowhere".into();
    let batch = messages("quorum", 2);
    let (mut attempts, started) = (0, Instant::now());
    loop {
        let verdicts = match sink.deliver_all(&mixed).await {
            Ok(mut verdicts) => {
                verdicts.extend(sink.deliver_all(&batch).await.unwrap_or_default());
                verdicts
            }
            Err(failure) => {
                assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
                continue;
            }
        };
        attempts += 1;
        for verdict in &verdicts {
            // "nowhere" may still be called missing by one that thinks that it leads.
            let told = matches!(verdict, Verdict::Absent(why) if why.contains("nowhere"));
            assert!(told || matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        }
        let led = verdicts.iter().any(|one| reason(one).contains("nobody takes subject"));
        if led && attempts >= 3 {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{verdicts:?}");
    }
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert!(verdicts.iter().all(|one| matches!(one, Verdict::Unknown(_))), "{verdicts:?}");
    let start = sink.probe().await;
    // Some servers say so, some say nothing; neither is an end.
    match &start {
        Ok(warnings) => assert!(warnings[0].contains("no server of the cluster leads it now")),
        Err(failure) => assert_eq!(failure.kind(), FailureKind::Transient, "{failure}"),
    }

    // then its return heals it
    two.restart();
    let healed = async {
        loop {
            match sink.deliver_all(&batch).await {
                Ok(verdicts) if verdicts == vec![Verdict::Confirmed; 2] => return,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), healed).await.expect("the quorum is back");
    one.kill();
}

#[tokio::test]
async fn a_stream_that_takes_no_rows_is_absent_by_its_name() {
    let nats = Nats::start();
    nats.create_stream("SEALED", &["sealed"]).await;
    let sealed = stream::Config {
        name: "SEALED".into(),
        subjects: vec!["sealed".into()],
        sealed: true,
        ..Default::default()
    };
    nats.update_stream(sealed).await;
    let counter = serde_json::json!({
        "name": "COUNTER", "subjects": ["counter"], "retention": "limits", "storage": "file",
        "discard": "old", "num_replicas": 1, "allow_msg_counter": true, "allow_direct": true,
    });
    let context = nats.jetstream().await;
    let made: serde_json::Value = context.request("STREAM.CREATE.COUNTER", &counter).await.unwrap();
    assert!(made.get("error").is_none(), "{made}");
    let sink = sink(&nats.url(), "");
    let batch = [message("sealed", "x"), message("counter", "x")];
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    for (verdict, name) in verdicts.iter().zip(["\"SEALED\"", "\"COUNTER\""]) {
        assert!(matches!(verdict, Verdict::Absent(r) if r.contains(name)), "{verdict:?}");
    }
    let warnings = sink.probe().await.unwrap().join("\n");
    for name in ["\"SEALED\" is sealed", "\"COUNTER\" holds counters"] {
        assert!(warnings.contains(name), "{warnings}");
    }
}

#[tokio::test]
async fn a_stream_that_keeps_nothing_is_warned_of_at_the_start_and_while_it_takes_rows() {
    let nats = Nats::start();
    nats.create_stream_with(stream::Config {
        name: "INTEREST".into(),
        subjects: vec!["interest".into()],
        retention: stream::RetentionPolicy::Interest,
        ..Default::default()
    })
    .await;
    nats.create_stream_with(stream::Config {
        name: "SMALL".into(),
        subjects: vec!["small".into()],
        max_messages: 10,
        max_age: Duration::from_secs(60),
        duplicate_window: Duration::from_secs(60),
        ..Default::default()
    })
    .await;
    let sink = sink(&nats.url(), "");
    let (_guard, log) = captured();

    let warnings = sink.probe().await.unwrap();
    assert!(
        warnings[0].contains("\"INTEREST\"") && warnings[0].contains("no consumer"),
        "the worst comes first: {warnings:?}"
    );
    for words in ["max_msgs 10", "60s (max_age)"] {
        assert!(warnings[1].contains("\"SMALL\"") && warnings[1].contains(words), "{warnings:?}");
    }
    // Its consumers may go while rows come.
    let verdicts = sink.deliver_all(&messages("interest", 2)).await.unwrap();
    assert_eq!(verdicts, vec![Verdict::Confirmed; 2], "NATS says so");
    assert_eq!(nats.read_back("INTEREST").await.len(), 0);
    assert!(log().contains("\"INTEREST\"") && log().contains("stores nothing"), "{}", log());
}

#[tokio::test]
async fn a_stream_that_does_not_answer_holds_its_own_rows_and_keeps_the_connection() {
    let nats = Nats::start();
    nats.create_stream("ANSWERS", &["answers"]).await;
    nats.create_stream_with(stream::Config {
        name: "MUTE".into(),
        subjects: vec!["mute".into()],
        no_ack: true,
        ..Default::default()
    })
    .await;
    let proxy = Proxy::start(([127, 0, 0, 1], nats.port()).into());
    let sink = sink(&format!("nats://{}", proxy.addr()), "ack_timeout = '300ms'");
    for _ in 0..3 {
        let batch = [message("mute", "x"), message("answers", "x")];
        let verdicts = sink.deliver_all(&batch).await.unwrap();
        assert!(
            matches!(&verdicts[0], Verdict::Unknown(r) if r.contains("quorum")),
            "{verdicts:?}"
        );
        assert_eq!(verdicts[1], Verdict::Confirmed);
    }
    assert_eq!(proxy.accepted(), 1, "one connection all the while");
}

#[tokio::test]
async fn a_silent_connection_is_given_up_for_a_new_one_and_a_stop_does_not_wait_for_it() {
    let nats = Nats::start();
    nats.create_stream("SILENT", &["silent"]).await;
    let proxy = Proxy::start(([127, 0, 0, 1], nats.port()).into());
    let sink = sink(&format!("nats://{}", proxy.addr()), "ack_timeout = '500ms'");
    assert_eq!(sink.deliver_all(&messages("silent", 1)).await.unwrap(), [Verdict::Confirmed]);
    // when the connection that is there falls silent, and new ones pass
    proxy.freeze_open();
    let batch = messages("silent", 5);
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    assert!(verdicts.iter().all(|one| matches!(one, Verdict::Unknown(_))), "{verdicts:?}");
    // then the retry goes over another one
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), vec![Verdict::Confirmed; 5]);
    assert_eq!(proxy.accepted(), 2);
    // and a stop with rows on their way ends at once
    proxy.freeze_open();
    let lane = tokio::spawn({
        let sink = Arc::clone(&sink);
        async move { sink.deliver_all(&messages("silent", 5)).await }
    });
    tokio::task::yield_now().await;
    lane.abort();
    let closed = tokio::time::timeout(Duration::from_secs(10), sink.close()).await;
    closed.expect("a close is bounded").unwrap();
}

#[tokio::test]
async fn the_servers_limits_are_those_of_the_connection_of_now() {
    let mut nats = Nats::start();
    nats.create_stream("LIMITS", &["limits"]).await;
    let sink = sink(&nats.url(), "ack_timeout = '1s'");
    let large = || message("limits", vec![b'x'; 200_000]);
    assert_eq!(sink.deliver_all(&[large()]).await.unwrap(), [Verdict::Confirmed]);
    let restart = |nats: &mut Nats, configuration: &str| {
        nats.stop();
        nats.configure(configuration);
        nats.restart();
    };
    let settled = |batch: Vec<Message>| {
        let sink = Arc::clone(&sink);
        async move {
            loop {
                match sink.deliver_all(&batch).await {
                    Ok(verdicts) if !matches!(verdicts[0], Verdict::Unknown(_)) => return verdicts,
                    Ok(_) => {}
                    Err(failure) => {
                        assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
                    }
                }
            }
        }
    };
    restart(&mut nats, "max_payload: 65536\n");
    let verdicts = settled(vec![large(), message("limits", "x")]).await;
    assert!(matches!(&verdicts[0], Verdict::Rejected(r) if r.contains("65536")), "{verdicts:?}");
    assert_eq!(verdicts[1], Verdict::Confirmed);
    restart(&mut nats, "");
    assert_eq!(settled(vec![large()]).await, [Verdict::Confirmed]);
}

#[tokio::test]
async fn no_reason_names_the_rows_key() {
    let users = "authorization { users: [
        { user: admin, password: a }
        { user: relay, password: r,
          permissions: { publish: [\"open.>\", \"$JS.API.>\"], subscribe: [\"_INBOX.>\"] } } ] }";
    let nats = Nats::start_with(users, "admin:a@");
    nats.create_stream("OPEN", &["open.a.>"]).await;
    let sink = sink(&format!("nats://relay:r@127.0.0.1:{}", nats.port()), "ack_timeout = '1s'");
    let key = "ann@example.com";
    let mut batch: Vec<Message> = ["open.missing.", "shut.", "open.a. ", "open.a."]
        .iter()
        .map(|start| message(&format!("{start}{key}"), "x"))
        .collect();
    batch[3].value = Some(Bytes::from(vec![b'x'; 2 << 20]));
    for message in &mut batch {
        message.key = Some(Bytes::from(key));
    }
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    for verdict in &verdicts {
        assert!(!matches!(verdict, Verdict::Confirmed), "{verdicts:?}");
        assert!(!reason(verdict).contains(key), "{verdict:?}");
        assert!(reason(verdict).contains("{key}"), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_wrong_password_or_token_is_denied() {
    let users = "authorization { user: relay, password: right }";
    let nats = Nats::start_with(users, "relay:right@");
    nats.create_stream("DENIED", &["denied"]).await;
    let url = format!("nats://relay:wrong@127.0.0.1:{}", nats.port());
    let denied = sink(&url, "").deliver_all(&messages("denied", 1)).await.unwrap_err();
    assert_eq!(denied.kind(), FailureKind::Denied, "{denied}");
    assert!(!denied.to_string().contains("wrong"), "{denied}");

    let file = crate::support::process::scratch("nats-secret").join("password");
    std::fs::write(&file, "right\n").unwrap();
    let url = format!("nats://127.0.0.1:{}", nats.port());
    let options = format!("user = 'relay'\npassword_file = '{}'", file.display());
    let verdicts = sink(&url, &options).deliver_all(&messages("denied", 1)).await.unwrap();
    assert_eq!(verdicts, [Verdict::Confirmed]);

    let nats = Nats::start_with("authorization { token: right }", "right@");
    let url = format!("nats://wrong@127.0.0.1:{}", nats.port());
    let denied = sink(&url, "").probe().await.unwrap_err();
    assert_eq!(denied.kind(), FailureKind::Denied, "{denied}");
    sink(&nats.url(), "").probe().await.unwrap();
}

#[tokio::test]
async fn a_subject_without_permission_is_rejected_and_its_neighbours_go() {
    let users = "authorization { users: [
        { user: admin, password: a }
        { user: relay, password: r,
          permissions: { publish: [\"allowed\"], subscribe: [\"_INBOX.>\"] } } ] }";
    let nats = Nats::start_with(users, "admin:a@");
    nats.create_stream("PERMITTED", &["allowed", "forbidden"]).await;
    let url = format!("nats://relay:r@127.0.0.1:{}", nats.port());
    let sink = sink(&url, "ack_timeout = '1s'");
    let mut batch = messages("allowed", 3);
    batch[1].topic = "forbidden".into();

    let verdicts = sink.deliver_all(&batch).await.unwrap();

    assert_eq!((&verdicts[0], &verdicts[2]), (&Verdict::Confirmed, &Verdict::Confirmed));
    assert!(matches!(verdicts[1], Verdict::Rejected(_)), "{:?}", verdicts[1]);
    assert!(reason(&verdicts[1]).contains("\"forbidden\""), "{:?}", verdicts[1]);
    let warnings = sink.probe().await.unwrap();
    assert!(warnings[0].contains("may not ask"), "{warnings:?}");
}

#[tokio::test]
async fn a_user_that_may_not_hear_acks_is_denied() {
    let users = "authorization { users: [
        { user: admin, password: a }
        { user: deaf, password: d, permissions: { subscribe: [\"other\"] } } ] }";
    let nats = Nats::start_with(users, "admin:a@");
    nats.create_stream("DEAF", &["deaf"]).await;
    let sink = sink(&format!("nats://deaf:d@127.0.0.1:{}", nats.port()), "");
    let denied = sink.deliver_all(&messages("deaf", 1)).await.unwrap_err();
    assert_eq!(denied.kind(), FailureKind::Denied, "{denied}");
    assert!(denied.to_string().contains("_INBOX"), "{denied}");
}

#[tokio::test]
async fn a_server_that_stops_and_returns_is_found_again() {
    let mut nats = Nats::start();
    nats.create_stream("STOPPED", &["stopped"]).await;
    let sink = sink(&nats.url(), "ack_timeout = '1s'");
    assert_eq!(sink.deliver_all(&messages("stopped", 1)).await.unwrap(), [Verdict::Confirmed]);

    nats.stop();
    let batch = messages("stopped", 1);
    for _ in 0..2 {
        match sink.deliver_all(&batch).await {
            Ok(verdicts) => assert!(matches!(verdicts[0], Verdict::Unknown(_)), "{verdicts:?}"),
            Err(failure) => assert_eq!(failure.kind(), FailureKind::Transient, "{failure}"),
        }
    }

    nats.restart();
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), [Verdict::Confirmed]);
    assert_eq!(nats.read_back("STOPPED").await.len(), 2);
}

#[tokio::test]
async fn tls_trusts_only_the_given_authority() {
    let folder = crate::support::process::scratch("nats-tls");
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=walpost test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (certificate, key) = (certificate.display(), key.display());
    let tls = format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}");
    let nats = Nats::start_with(&tls, "");
    let url = format!("tls://127.0.0.1:{}", nats.port());

    let trusted = sink(&url, &format!("tls_ca_file = '{certificate}'"));
    let verdicts = trusted.deliver_all(&messages("no.stream.yet", 1)).await.unwrap();
    assert!(matches!(verdicts[0], Verdict::Absent(_)), "{verdicts:?}");

    let failure = sink(&url, "").deliver_all(&messages("tls", 1)).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
}

#[tokio::test]
async fn an_unreachable_server_is_transient_within_seconds_and_the_next_call_tries_again() {
    let port = free_port();
    let sink = sink(&format!("nats://127.0.0.1:{port}"), "connect_timeout = '1s'");
    for _ in 0..2 {
        let started = Instant::now();
        let failure = sink.deliver_all(&messages("nowhere", 1)).await.unwrap_err();
        assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
        assert!(failure.to_string().contains(&port.to_string()), "{failure}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    // Somebody who accepts and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let failure = sink.probe().await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Transient, "{failure}");
    drop(silent);
}

#[tokio::test]
async fn the_probe_names_streams_that_can_lose_what_they_confirmed() {
    let nats = Nats::start();
    for (name, storage) in
        [("MEMORY", stream::StorageType::Memory), ("FILE", stream::StorageType::File)]
    {
        nats.create_stream_with(stream::Config {
            name: name.into(),
            subjects: vec![name.to_lowercase()],
            storage,
            duplicate_window: Duration::from_secs(1),
            ..Default::default()
        })
        .await;
    }
    let warnings = sink(&nats.url(), "").probe().await.unwrap();
    let warning = |part: &str| {
        let found = warnings.iter().find(|warning| warning.contains(part));
        found.unwrap_or_else(|| panic!("no \"{part}\" in {warnings:?}")).clone()
    };
    assert!(warning("\"MEMORY\"").contains("in memory"));
    assert!(warning("\"FILE\"").contains("one replica"));
    assert!(warning("\"FILE\"").contains("duplicate_window"));
    assert!(warning("sync_interval").contains("disk"));
}

/// Passes bytes on between one client port and the server, and can stop either direction.
struct Forwarder {
    port: u16,
    swallow_replies: Arc<AtomicBool>,
    hold_requests: Arc<AtomicBool>,
    open: Arc<AtomicU64>,
}

impl Forwarder {
    fn start(upstream: u16) -> Forwarder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let forwarder = Forwarder {
            port: listener.local_addr().unwrap().port(),
            swallow_replies: Arc::default(),
            hold_requests: Arc::default(),
            open: Arc::default(),
        };
        let (swallow, hold) =
            (Arc::clone(&forwarder.swallow_replies), Arc::clone(&forwarder.hold_requests));
        let open = Arc::clone(&forwarder.open);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) =
                    (client.unwrap(), TcpStream::connect(("127.0.0.1", upstream)).unwrap());
                let (hold, swallow, open) =
                    (Arc::clone(&hold), Arc::clone(&swallow), Arc::clone(&open));
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                open.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || requests(client, server, &hold, &open));
                std::thread::spawn(move || replies(back.0, back.1, &swallow));
            }
        });
        forwarder
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How many clients have not closed their socket.
    fn open_clients(&self) -> u64 {
        // The kernel says so a moment after the close.
        crate::support::process::eventually(Duration::from_secs(2), || {
            self.open.load(Ordering::SeqCst) == 0
        });
        self.open.load(Ordering::SeqCst)
    }
}

/// Client to server. While it holds, it reads nothing, and only looks whether the client closed;
/// what a held client leaves behind is thrown away.
fn requests(mut client: TcpStream, mut server: TcpStream, hold: &AtomicBool, open: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if hold.load(Ordering::Relaxed) {
            // A close cannot be read behind bytes that are not read. A closed socket answers
            // bytes with a reset; to an open client this says nothing.
            if client.write_all(b"+OK\r\n").is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        match client.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) if server.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => break,
        }
    }
    open.fetch_sub(1, Ordering::SeqCst);
    drop(server.shutdown(Shutdown::Both));
}

/// Server to client; what is swallowed is gone.
fn replies(mut server: TcpStream, mut client: TcpStream, swallow: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        if !swallow.load(Ordering::Relaxed) && client.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    drop(client.shutdown(Shutdown::Both));
}

/// Run with `--ignored --nocapture`: what it prints is a measurement, not a verdict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_throughput_and_lone_latency() {
    let nats = Nats::start();
    nats.create_stream("MEASURE", &["measure"]).await;
    let sink = sink(&nats.url(), "");
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        10_000 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
    };
    for size in [1, 16, 64, 256] {
        let prepared: Vec<Vec<Vec<Message>>> = (0..32)
            .map(|_| {
                let count = (3000 / size).clamp(10, 500);
                let batch = || (0..size).map(|_| message("measure", vec![b'x'; 200])).collect();
                (0..count).map(|_| batch()).collect()
            })
            .collect();
        let total: usize = prepared.iter().flatten().map(Vec::len).sum();
        let (started, cpu_before) = (Instant::now(), cpu());
        let mut lanes = tokio::task::JoinSet::new();
        for batches in prepared {
            let sink = Arc::clone(&sink);
            lanes.spawn(async move {
                for batch in batches {
                    let verdicts = sink.deliver_all(&batch).await.unwrap();
                    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Confirmed));
                }
            });
        }
        lanes.join_all().await;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "batch {size}: {:.0} messages/s, {:.1} client CPU µs/message",
            total as f64 / seconds,
            (cpu() - cpu_before) as f64 / total as f64,
        );
    }
    let mut latencies = Vec::new();
    for _ in 0..500 {
        let batch = [message("measure", vec![b'x'; 200])];
        let started = Instant::now();
        sink.deliver_all(&batch).await.unwrap();
        latencies.push(started.elapsed());
    }
    latencies.sort();
    println!("lone message: p50 {:?}, p99 {:?}", latencies[250], latencies[495]);
}
