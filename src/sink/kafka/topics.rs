//! What is known of a topic before the first message goes to it.
//!
//! Owns the look-up, its cache and the size that a message has on Kafka's wire. A look-up costs
//! two round trips, once a topic; a topic that is missing or forbidden is asked for each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::Producer as _;
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use tokio::sync::{Semaphore, oneshot};

use super::producer::{Batching, Generation, Producers};
use crate::message::Message;

/// Apache Kafka's default of `max.message.bytes` and `message.max.bytes`.
const LIMIT_BYTES_DEFAULT: usize = 1_048_588;
/// Longest wait for the cluster's answer about a topic.
const LOOK_UP_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a topic's limit: without it the default is assumed, and a broker that then
/// refuses a batch is coped with.
const DESCRIBE_MAX: Duration = Duration::from_secs(2);

/// What a message for this topic meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// It exists.
    Known {
        /// Largest batch, and so largest message, that it takes.
        limit_bytes: usize,
        /// Producer that serves it.
        batching: Batching,
    },
    /// It does not exist (yet).
    Absent,
    /// We may not see it, or its name is not one.
    Forbidden(RDKafkaErrorCode),
}

/// The cache, and the gate before the look-up.
pub(super) struct Topics {
    limit_bytes: Option<usize>,
    known: Mutex<HashMap<Arc<str>, Topic>>,
    gate: Semaphore,
}

impl Topics {
    /// `limit_bytes` is the operator's own limit: below the topics', or in place of theirs where
    /// the cluster does not tell.
    pub(super) fn new(limit_bytes: Option<usize>) -> Self {
        Self { limit_bytes, known: Mutex::default(), gate: Semaphore::new(1) }
    }

    /// The cached topic.
    pub(super) fn known(&self, name: &str) -> Option<Topic> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    /// Drops what is known, so that the next message asks again.
    pub(super) fn forget(&self, name: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Sends the topic's messages one by one until [`Topics::forget`]: the broker refused a batch
    /// without saying because of which message.
    pub(super) fn single_out(&self, name: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Topic::Known { batching, .. }) = known.get_mut(name) {
            *batching = Batching::Single;
        }
    }

    /// Looks up those of `names` that are not cached. Only one look-up is under way at a time:
    /// whoever waited for another finds its topics known.
    ///
    /// # Errors
    /// The cluster did not answer.
    pub(super) async fn look_up(
        &self,
        producers: &Producers,
        names: &[Arc<str>],
    ) -> KafkaResult<HashMap<Arc<str>, Topic>> {
        let _turn = self.gate.acquire().await.expect("the gate is never closed");
        let mut topics = HashMap::new();
        let mut missing = Vec::new();
        for name in names {
            match self.known(name) {
                Some(topic) => drop(topics.insert(Arc::clone(name), topic)),
                None => missing.push(Arc::clone(name)),
            }
        }
        if missing.is_empty() {
            return Ok(topics);
        }
        // The one that serves most topics, so that it has their metadata when they are sent to.
        let generation = producers.current(Batching::within(LIMIT_BYTES_DEFAULT))?;
        for (name, answer) in ask(generation, producers, missing).await? {
            let topic = self.judge(&name, answer);
            if let Topic::Known { .. } = topic {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(Arc::clone(&name), topic);
            }
            topics.insert(name, topic);
        }
        Ok(topics)
    }

    fn judge(&self, name: &str, answer: Answer) -> Topic {
        match answer {
            Answer::Exists { replicas_min, limit_bytes } => {
                if replicas_min == 1 {
                    tracing::warn!(
                        topic = name,
                        "topic has replication factor 1: a broker's disk lost is its rows lost"
                    );
                }
                let limit_bytes = match (limit_bytes, self.limit_bytes) {
                    (Some(told), Some(own)) => told.min(own),
                    (Some(limit), None) | (None, Some(limit)) => limit,
                    (None, None) => LIMIT_BYTES_DEFAULT,
                };
                Topic::Known { limit_bytes, batching: Batching::within(limit_bytes) }
            }
            Answer::Missing => Topic::Absent,
            Answer::Refused(code) => Topic::Forbidden(code),
        }
    }
}

/// The cluster's answer about one topic.
enum Answer {
    Exists { replicas_min: usize, limit_bytes: Option<usize> },
    Missing,
    Refused(RDKafkaErrorCode),
}

/// Asks for metadata through the producer and for the limits through a client of its own, both
/// at once. The latter is made for each look-up: nobody would read its log between them.
async fn ask(
    generation: Arc<Generation>,
    producers: &Producers,
    names: Vec<Arc<str>>,
) -> KafkaResult<Vec<(Arc<str>, Answer)>> {
    let config = producers.config().clone();
    let runtime = tokio::runtime::Handle::current();
    let (reply, answers) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let admin: KafkaResult<AdminClient<_>> = AdminClient::from_config(&config);
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE_MAX));
        // Sent here; awaited below, after the metadata.
        let limits = admin.as_ref().ok().map(|admin| admin.describe_configs(&resources, &options));
        let mut found = metadata(&generation, &names);
        if let (Ok(answers), Some(limits)) = (&mut found, limits) {
            fill_limits(answers, runtime.block_on(limits));
        }
        // Nobody may be waiting any more; the cluster was asked in vain then.
        drop(reply.send(found));
        // Its thread takes up to 100 ms to end, and nobody needs to wait for that.
        drop(admin);
    });
    answers.await.unwrap_or(Err(KafkaError::Canceled))
}

fn metadata(generation: &Generation, names: &[Arc<str>]) -> KafkaResult<Vec<(Arc<str>, Answer)>> {
    let deadline = Instant::now() + LOOK_UP_MAX;
    let Some(producer) = generation.live() else { return Err(KafkaError::Canceled) };
    let mut answers = Vec::with_capacity(names.len());
    for name in names {
        answers.push((Arc::clone(name), topic_metadata(&producer, name, deadline)?));
    }
    Ok(answers)
}

fn topic_metadata(
    producer: &rdkafka::producer::ThreadedProducer<super::producer::Context>,
    name: &str,
    deadline: Instant,
) -> KafkaResult<Answer> {
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        let metadata = match producer.client().fetch_metadata(Some(name), wait) {
            Err(KafkaError::Nul(_)) => return Ok(Answer::Refused(RDKafkaErrorCode::InvalidTopic)),
            metadata => metadata?,
        };
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        let error = topic
            .map_or(Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART), |topic| {
                topic.error()
            });
        match error.map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Ok(Answer::Missing);
            }
            Some(
                code
                @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic),
            ) => return Ok(Answer::Refused(code)),
            // Just being made: its leader is not chosen yet.
            Some(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Some(code) => return Err(KafkaError::MetadataFetch(code)),
        }
        let partitions = topic.map_or(&[][..], |topic| topic.partitions());
        let replicas = partitions.iter().map(|partition| partition.replicas().len());
        return Ok(Answer::Exists { replicas_min: replicas.min().unwrap_or(0), limit_bytes: None });
    }
}

/// Where describing is not permitted or not supported, the limits stay unknown.
fn fill_limits(
    answers: &mut [(Arc<str>, Answer)],
    described: KafkaResult<Vec<rdkafka::admin::ConfigResourceResult>>,
) {
    let described = match described {
        Ok(described) => described,
        Err(error) => {
            tracing::debug!(%error, "the cluster did not tell its topics' limits");
            return;
        }
    };
    for resource in described.into_iter().flatten() {
        let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
            continue;
        };
        let limit = resource.get("max.message.bytes").and_then(|entry| entry.value.as_ref());
        let limit = limit.and_then(|value| value.parse().ok());
        for (known, answer) in answers.iter_mut() {
            if let Answer::Exists { limit_bytes, .. } = answer
                && **known == **name
            {
                *limit_bytes = limit;
            }
        }
    }
}

/// Most bytes that a message takes in a record batch of its own, uncompressed: what the broker
/// holds against `max.message.bytes`. Variable-length integers count with their longest form.
///
/// Protocol: record batch v2, <https://kafka.apache.org/documentation/#recordbatch>.
pub(super) fn wire_bytes(message: &Message, identity_bytes: usize) -> usize {
    const BATCH_HEADER: usize = 61;
    // Length, attributes, timestamp delta, offset delta, key length, value length, header count.
    const RECORD: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
    const HEADER: usize = 5 + 5;
    let headers = message.headers().count() + 1;
    BATCH_HEADER + RECORD + HEADER * headers + identity_bytes + message.size_bytes()
        - message.topic.len()
}
