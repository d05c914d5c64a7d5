//! Verdicts where no broker answers: none is reached here.

use super::*;
use crate::sink::scripted::message;

const BATCHING: Batching = Batching::Bytes(1 << 20);

fn sink() -> KafkaSink {
    // Nothing listens on the port of TCP's own multiplexer.
    let url = "kafka://127.0.0.1:1".to_owned();
    let client_name = "walpost-test".to_owned();
    KafkaSink::open(&SinkConfig { url: url.into(), options: toml::Table::new(), client_name })
        .unwrap()
}

/// Lands a flight of two messages whose producer is ended, after they were given to it or not.
async fn landed(sink: &KafkaSink, enqueued: bool) -> Vec<Option<Verdict>> {
    let batch = [message("a", 1), message("b", 2)];
    let generation = sink.producers.current(BATCHING).unwrap();
    let flight = if enqueued {
        send(Arc::clone(&generation), BATCHING, vec![0, 1], &batch).await
    } else {
        let (_, landing) = generation.flights.register(2);
        Flight {
            generation: Arc::clone(&generation),
            batching: BATCHING,
            numbers: vec![0, 1],
            landing,
        }
    };
    let mut verdicts = vec![None; 2];
    let ending = async { drop(generation.end().await) };
    tokio::join!(ending, sink.land(flight, &batch, &mut verdicts));
    verdicts
}

fn are_unknown(verdicts: &[Option<Verdict>]) -> bool {
    verdicts.iter().all(|verdict| matches!(verdict, Some(Verdict::Unknown(_))))
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
    let generation = sink.producers.current(BATCHING).unwrap();
    let (slot, landing) = generation.flights.register(1);
    let failed = Outcome::Failed(RDKafkaErrorCode::BrokerTransportFailure);
    generation.flights.report(flights::Flights::opaque(slot, 0), failed);
    let numbers = vec![0];
    let flight =
        Flight { generation: Arc::clone(&generation), batching: BATCHING, numbers, landing };
    // when its verdict is there
    let mut verdicts = vec![None];
    sink.land(flight, &[message("a", 1)], &mut verdicts).await;
    // then nothing is left that could still send it
    assert!(are_unknown(&verdicts), "{verdicts:?}");
    assert!(generation.live().is_none());
}

#[test]
fn every_failed_report_is_something_else_than_confirmed() {
    let sink = sink();
    for code in [
        RDKafkaErrorCode::PurgeQueue,
        RDKafkaErrorCode::PurgeInflight,
        RDKafkaErrorCode::Fatal,
        RDKafkaErrorCode::BrokerTransportFailure,
        RDKafkaErrorCode::MessageTimedOut,
        RDKafkaErrorCode::NotEnoughReplicas,
        RDKafkaErrorCode::NotEnoughReplicasAfterAppend,
        RDKafkaErrorCode::OutOfOrderSequenceNumber,
        RDKafkaErrorCode::UnknownTopicOrPartition,
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::MessageSizeTooLarge,
    ] {
        for batching in [BATCHING, Batching::Single] {
            assert_ne!(sink.judge("orders", code, batching), Verdict::Confirmed, "{code}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_oversize_message_nothing_of_its_key_is_sent() {
    // given
    let cluster = rdkafka::mocking::MockCluster::new(1).unwrap();
    cluster.create_topic("orders", 1, 1).unwrap();
    let url = format!("kafka://{}", cluster.bootstrap_servers());
    let options = "message_max_bytes = 1000".parse().unwrap();
    let config = SinkConfig { url: url.into(), options, client_name: "walpost-test".into() };
    let sink = KafkaSink::open(&config).unwrap();
    let mut batch = ["a", "b", "a"].map(|key| message(key, 1));
    batch[0].value = Some(vec![b'x'; 2000].into());
    // when
    let verdicts = sink.deliver_all(&batch).await.unwrap();
    // then the later one of its key waits for what becomes of it, and nobody else does
    let [Verdict::Rejected(_), Verdict::Confirmed, Verdict::Unknown(_)] = &verdicts[..] else {
        panic!("{verdicts:?}")
    };
}
