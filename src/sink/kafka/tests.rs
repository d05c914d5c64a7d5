//! What must hold of verdicts whatever the broker answers: none is reached here, but for
//! librdkafka's own mock cluster.

use rdkafka::mocking::MockCluster;
use rdkafka::types::RDKafkaErrorCode;

use super::enqueue::Flight;
use super::flights::Outcome;
use super::*;
use crate::sink::scripted::message;
use crate::sink::verdicts::in_order;
use crate::sink::{News, Told};

const BATCHING: Batching = Batching::Bytes(1 << 20);

fn sink() -> KafkaSink {
    // Nothing listens on the port of TCP's own multiplexer.
    sink_at("kafka://127.0.0.1:1", "")
}

fn sink_at(url: &str, options: &str) -> KafkaSink {
    let options = options.parse().expect("the test's table is TOML");
    let config = SinkConfig { url: url.into(), options, client_name: "walpost-test".into() };
    KafkaSink::open(&config).unwrap()
}

async fn flight(sink: &KafkaSink, batch: &[Message], enqueued: bool) -> Flight {
    let generation = sink.producers.current(BATCHING).unwrap();
    let numbers: Vec<usize> = (0..batch.len()).collect();
    if enqueued {
        return send(generation, BATCHING, numbers, batch, Timestamp::Row).await;
    }
    let (id, landing) = generation.flights.register(batch.len());
    Flight { generation, batching: BATCHING, id, numbers, landing }
}

/// Lands a flight of two messages whose producer is ended, after they were given to it or not.
async fn landed(sink: &KafkaSink, enqueued: bool) -> Vec<Verdict> {
    let batch = [message("a", 1), message("b", 2)];
    let flight = flight(sink, &batch, enqueued).await;
    let generation = Arc::clone(&flight.generation);
    let news = News::default();
    let verdicts = news.verdicts();
    let ending = async { drop(generation.end().await) };
    let (_, landed) = tokio::join!(ending, sink.land(flight, &batch, &verdicts));
    landed.unwrap();
    in_order(&news, 2)
}

fn are_unknown(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(|verdict| matches!(verdict, Verdict::Unknown(_)))
}

#[tokio::test]
async fn what_a_producer_took_along_to_its_end_is_unknown() {
    let verdicts = landed(&sink(), true).await;
    assert!(are_unknown(&verdicts), "{verdicts:?}");
}

#[tokio::test]
async fn a_message_without_any_report_is_unknown() {
    let verdicts = landed(&sink(), false).await;
    assert!(are_unknown(&verdicts), "{verdicts:?}");
}

#[tokio::test]
async fn a_failed_message_is_unknown_only_after_its_producer_is_gone() {
    // given a flight that landed with a failure before anybody looked
    let sink = sink();
    let batch = [message("a", 1)];
    let flight = flight(&sink, &batch, false).await;
    let generation = Arc::clone(&flight.generation);
    let failed = Outcome::Failed(RDKafkaErrorCode::BrokerTransportFailure);
    generation.flights.report(flights::Flights::opaque(flight.id.slot, 0), failed);
    // when its verdict is there
    let news = News::default();
    let verdicts = news.verdicts();
    sink.land(flight, &batch, &verdicts).await.unwrap();
    // then nothing is left that could still send it
    let verdicts = in_order(&news, 1);
    assert!(are_unknown(&verdicts), "{verdicts:?}");
    assert!(generation.live().is_none());
}

#[tokio::test]
async fn a_panic_on_the_clients_thread_ends_the_delivery_for_good() {
    // given a flight, and a callback that panics meanwhile
    let sink = sink();
    let batch = [message("a", 1)];
    let flight = flight(&sink, &batch, false).await;
    flight.generation.flights.give_up(flights::Breach::Panicked);
    // then nobody waits for a report that never comes
    let news = News::default();
    let failure = sink.land(flight, &batch, &news.verdicts()).await.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Definite);
    assert!(news.take().is_none());
}

#[tokio::test]
async fn messages_that_are_still_with_the_client_at_its_end_are_dropped_at_once() {
    // given a message that nobody will ever take
    let sink = sink();
    let batch = [message("a", 1)];
    drop(flight(&sink, &batch, true).await);
    // when
    let started = std::time::Instant::now();
    let closed = sink.close().await.unwrap_err();
    // then it is not flushed to whoever listens by then
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(closed.to_string().contains("1 rows"), "{closed}");
}

fn mock(
    topics: &[&str],
) -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, String) {
    let cluster = MockCluster::new(2).unwrap();
    for topic in topics {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let url = format!("kafka://{}", cluster.bootstrap_servers());
    (cluster, url)
}

fn of_topic(topic: &str, key: &str, row: u64) -> Message {
    Message { topic: topic.into(), ..message(key, row) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_oversize_message_nothing_of_its_key_is_sent() {
    // given
    let (_cluster, url) = mock(&["orders"]);
    let sink = sink_at(&url, "message_max_bytes = 1000");
    let mut batch = ["a", "b", "a"].map(|key| message(key, 1));
    batch[0].value = Some(vec![b'x'; 2000].into());
    // when
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    // then the later one of its key waits for what becomes of it, and nobody else does
    let [Verdict::Rejected(_), Verdict::Confirmed, Verdict::Unknown(_)] = &verdicts[..] else {
        panic!("{verdicts:?}")
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_whose_broker_is_gone_holds_up_no_other_and_is_named() {
    // given two topics that are known, each with a broker of its own, and one of the two gone
    let (cluster, url) = mock(&["up", "down"]);
    cluster.partition_leader("up", 0, Some(1)).unwrap();
    cluster.partition_leader("down", 0, Some(2)).unwrap();
    let sink = Arc::new(sink_at(&url, ""));
    let batch = [of_topic("up", "a", 1), of_topic("down", "b", 2)];
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), [Verdict::Confirmed, Verdict::Confirmed]);
    cluster.broker_down(2).unwrap();
    // when rows go to both
    let news = News::default();
    let delivery = {
        let (sink, verdicts) = (Arc::clone(&sink), news.verdicts());
        let batch = [of_topic("up", "a", 3), of_topic("down", "b", 4), of_topic("up", "c", 5)];
        tokio::spawn(async move { sink.deliver(&batch, &verdicts).await })
    };
    let mut told = Told::default();
    let mut read = async |is_enough: &dyn Fn(&Told) -> bool| {
        let patience = tokio::time::Instant::now() + Duration::from_secs(30);
        while !is_enough(&told) {
            assert!(tokio::time::Instant::now() < patience, "{told:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            let Some(more) = news.take() else { continue };
            told.confirmed.extend(more.confirmed);
            told.others.extend(more.others);
            told.waiting = more.waiting.or(told.waiting.take());
        }
        told.clone()
    };
    // then the healthy one's are confirmed while the other waits, and the reason is given
    let early = read(&|told| told.confirmed.len() == 2).await;
    assert!(early.confirmed.contains(&0) && early.confirmed.contains(&2), "{early:?}");
    let others = [of_topic("up", "b", 6)];
    assert_eq!(sink.deliver_all(&others).await.unwrap(), [Verdict::Confirmed]);
    let named = read(&|told| told.waiting.is_some()).await.waiting.unwrap();
    assert!(named.contains("1 rows for topic \"down\""), "{named}");
    // when its broker is back, then so is the verdict
    cluster.broker_up(2).unwrap();
    let all = read(&|told| told.confirmed.len() == 3).await;
    assert!(all.others.is_empty(), "{all:?}");
    delivery.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_new_topics_are_looked_up_together() {
    // given more topics than round trips fit into the time of a look-up
    let names: Vec<String> = (0..200).map(|number| format!("tenant-{number}")).collect();
    let (cluster, url) = mock(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for broker in [1, 2] {
        cluster.broker_round_trip_time(broker, Duration::from_millis(100)).unwrap();
    }
    let sink = sink_at(&url, "");
    // when
    let batch: Vec<Message> = names.iter().map(|name| of_topic(name, "key", 1)).collect();
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    // then
    assert_eq!(verdicts, vec![Verdict::Confirmed; 200]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_credential_is_forgotten_once_rows_are_stored() {
    let (_cluster, url) = mock(&["orders"]);
    let sink = sink_at(&url, "");
    let batch = [message("a", 1)];
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), [Verdict::Confirmed]);
    sink.producers.health.refuse("an older one");
    // when rows of a known topic are stored: nothing is looked up for them
    assert_eq!(sink.deliver_all(&batch).await.unwrap(), [Verdict::Confirmed]);
    // then a later failure is not taken for it
    let failure = sink.failure("reach", KafkaError::Canceled);
    assert_eq!(failure.kind(), FailureKind::Transient);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_topic_with_one_partition_are_one_sequence_but_for_what_is_rejected_here() {
    let (cluster, url) = mock(&["one"]);
    cluster.create_topic("two", 2, 1).unwrap();
    let sink = sink_at(&url, "message_max_bytes = 1000");
    sink.deliver_all(&[of_topic("one", "a", 1), of_topic("two", "a", 1)]).await.unwrap();
    let keeps = |topic, key| sink.keeps_order(&of_topic(topic, "a", 1), &of_topic(topic, key, 2));
    assert!(keeps("one", "a") && keeps("one", "b") && keeps("two", "a"));
    assert!(!keeps("two", "b"));
    let mut large = of_topic("one", "a", 1);
    large.value = Some(vec![b'x'; 2000].into());
    assert!(!sink.keeps_order(&large, &of_topic("one", "b", 2)));
    let other = of_topic("one", "a", 1);
    assert!(!sink.keeps_order(&other, &of_topic("two", "a", 2)));
}
