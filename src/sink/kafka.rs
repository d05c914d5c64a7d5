//! Kafka: an idempotent, gapless producer, and a verdict a message.
//!
//! Owns how the broker's answers become verdicts. Knows nothing of rows, lanes and retries.
//!
//! ```text
//! deliver ─▶ plan: topic known? size? ─▶ enqueue, in order ─▶ librdkafka ─▶ reports ─▶ verdicts
//!              │ look-up, once a topic      │ flight             │ fatal or failed
//!              └ Absent, Rejected           └ one channel        └ purge, drop, then Unknown
//! ```
//!
//! Within a batch, once a message of a key has failed, no later one of that key and topic is
//! stored: before the queue by not enqueuing it, after it by the broker's sequence check. A flight
//! that takes long gives the verdicts that it has, and says what it waits for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use rdkafka::error::KafkaError;
use tokio::sync::Semaphore;

use self::enqueue::send;
use self::options::{Settings, Timestamp};
use self::producer::{Batching, Producers};
use self::topics::{Known, Rules, Topic, Topics, wire_bytes};
use self::verdict::{Judged, absent, judge, refused, too_large};
use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdict, Verdicts};
use crate::failure::{Failure, FailureKind};
use crate::message::Message;

mod enqueue;
mod examine;
mod flights;
mod landing;
mod look_up;
mod options;
mod producer;
mod settings;
mod stuck;
mod topics;
mod verdict;

/// After so long a batch no longer keeps its lane; see [`Limits::stuck_after`].
const STUCK_AFTER: Duration = Duration::from_millis(200);

/// Sink for Kafka.
pub struct KafkaSink {
    producers: Arc<Producers>,
    topics: Topics,
    timestamp: Timestamp,
    warnings: Vec<String>,
    /// Of many flights that wait one asks for the reason.
    asking: Arc<Semaphore>,
}

/// What becomes of a batch before anything is sent.
#[derive(Default)]
struct Plan {
    verdicts: Vec<(usize, Verdict)>,
    /// For each producer the numbers of its messages, ascending.
    groups: HashMap<Batching, Vec<usize>>,
}

impl KafkaSink {
    /// Makes the sink from its `[sink]` table, without connecting.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        let settings = Settings::read(config)?;
        let Settings { client, message_bytes_max, timestamp, compresses, warnings } = settings;
        let rules = Rules { limit_bytes: message_bytes_max, compresses, timestamp };
        Ok(Self {
            producers: Arc::new(Producers::new(client, config.clone())),
            topics: Topics::new(rules),
            timestamp,
            warnings,
            asking: Arc::new(Semaphore::new(1)),
        })
    }

    async fn publish(&self, batch: &[Message], verdicts: &Verdicts) -> Result<(), Failure> {
        let mut plan = self.plan(batch).await?;
        let groups = std::mem::take(&mut plan.groups);
        let mut flights = Vec::with_capacity(groups.len());
        for (batching, numbers) in groups {
            let generation =
                self.producers.current(batching).map_err(|error| self.failure("make", error))?;
            flights.push(send(generation, batching, numbers, batch, self.timestamp).await);
        }
        verdicts.give_each(plan.verdicts);
        let landings = flights.into_iter().map(|flight| self.land(flight, batch, verdicts));
        join_all(landings).await.into_iter().collect()
    }

    /// Judges what can be judged before sending, and sorts the rest by producer.
    async fn plan(&self, batch: &[Message]) -> Result<Plan, Failure> {
        let (topics, unanswered) = self.topics_of(batch).await?;
        self.topics.observe_ages(batch, &topics);
        let mut plan = Plan::default();
        let mut failed: HashSet<(&str, &Bytes)> = HashSet::new();
        let mut last: Option<(&Arc<str>, Topic)> = None;
        for (number, message) in batch.iter().enumerate() {
            let topic = match last {
                Some((name, topic)) if *name == message.topic => topic,
                Some(_) | None => topics.get(&message.topic).copied().unwrap_or(Topic::Unanswered),
            };
            last = Some((&message.topic, topic));
            let verdict = match (topic, &message.key) {
                (_, Some(key))
                    if !failed.is_empty() && failed.contains(&(&*message.topic, key)) =>
                {
                    Verdict::Unknown("an earlier message of its key was not stored".into())
                }
                (Topic::Absent, _) => absent(&message.topic),
                (Topic::Forbidden(code), _) => refused(&message.topic, code),
                (Topic::Unanswered, _) => {
                    let reason = unanswered.as_deref().unwrap_or("it is just being made");
                    let text = format!("topic \"{}\" was not looked up: {reason}", message.topic);
                    Verdict::Unknown(text.into())
                }
                (Topic::Known(known), _) => match self.oversize(message, &known) {
                    None => {
                        plan.groups.entry(known.batching).or_default().push(number);
                        continue;
                    }
                    Some(verdict) => verdict,
                },
            };
            if let Some(key) = &message.key {
                failed.insert((&*message.topic, key));
            }
            plan.verdicts.push((number, verdict));
        }
        match unanswered {
            // Nothing is known of any of them: it is the cluster, not a topic.
            Some(reason) if topics.values().all(|topic| *topic == Topic::Unanswered) => {
                Err(Failure::transient(reason))
            }
            Some(_) | None => Ok(plan),
        }
    }

    /// The verdict on a message that is larger than its topic takes.
    fn oversize(&self, message: &Message, known: &Known) -> Option<Verdict> {
        let limit_bytes = known.limit_bytes?;
        let bytes = wire_bytes(message, message.identity.text().as_str().len());
        if bytes <= limit_bytes {
            return None;
        }
        if known.is_old() {
            self.topics.forget(&message.topic);
            let text =
                format!("topic \"{}\" took {limit_bytes} bytes; asking again", message.topic);
            return Some(Verdict::Unknown(text.into()));
        }
        Some(too_large(&message.topic, bytes, limit_bytes))
    }

    /// All topics of the batch; from the cache but for new ones. And why some of them, if so, were
    /// not answered.
    async fn topics_of(
        &self,
        batch: &[Message],
    ) -> Result<(HashMap<Arc<str>, Topic>, Option<String>), Failure> {
        let mut topics = HashMap::new();
        let mut missing = Vec::new();
        let mut last = None;
        for message in batch {
            let name = &message.topic;
            if last == Some(name) || topics.contains_key(name) || missing.contains(name) {
                continue;
            }
            last = Some(name);
            match self.topics.known(name) {
                Some(topic) => drop(topics.insert(Arc::clone(name), topic)),
                None => missing.push(Arc::clone(name)),
            }
        }
        if missing.is_empty() {
            return Ok((topics, None));
        }
        let asked = self.topics.look_up(&self.producers, &missing).await;
        let (found, error) = asked.map_err(|error| self.failure("look up topics in", error))?;
        topics.extend(found);
        let Some(error) = error else {
            self.producers.health.answered();
            return Ok((topics, None));
        };
        let failure = self.renewed("look up topics in", error).await;
        match failure.kind() {
            FailureKind::Transient => Ok((topics, Some(failure.to_string()))),
            FailureKind::Denied | FailureKind::Definite => Err(failure),
        }
    }

    /// As [`KafkaSink::failure`]. Where the cluster refused our credentials the producers go: the
    /// next ones log in with those of then.
    async fn renewed(&self, action: &str, error: KafkaError) -> Failure {
        let failure = self.failure(action, error);
        if failure.kind() == FailureKind::Denied {
            self.producers.renew().await;
        }
        failure
    }

    /// An error of the client, told with what it last said about the cluster.
    fn failure(&self, action: &str, error: KafkaError) -> Failure {
        let health = &self.producers.health;
        if let Some(refusal) = health.refusal() {
            return Failure::denied(refusal);
        }
        // It says more than the code.
        let cause = health.complaint().unwrap_or_else(|| format!("no answer: {error}"));
        Failure::transient(format!("could not {action} the Kafka cluster: {cause}"))
    }
}

impl Sink for KafkaSink {
    fn limits(&self) -> Limits {
        Limits {
            // One lane, and whatever gathered meanwhile as its batch. An idempotent producer has
            // one request a partition in the air anyhow (librdkafka counts five *messages*, not
            // requests), and messages that wait behind it inside the client make its thread spin
            // for the whole round trip: with 16 lanes it cost 1.4 times the processor time.
            batch_messages_max: 10_000,
            batch_bytes_max: 4_000_000,
            lanes_max: 1,
            ordering: Ordering::KeyAndTopic,
            stuck_after: Some(STUCK_AFTER),
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(self.look())
    }

    fn examine<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(self.topics_like(prefix))
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.publish(batch, verdicts))
    }

    /// Two rows of a topic with one partition are in one sequence, whatever their keys. Not behind
    /// one that this sink rejects itself, before the partition sees it.
    fn keeps_order(&self, earlier: &Message, later: &Message) -> bool {
        if Ordering::KeyAndTopic.includes(earlier, later) {
            return true;
        }
        let one_partition =
            |known: &Known| known.has_one_partition && self.oversize(earlier, known).is_none();
        earlier.topic == later.topic
            && matches!(self.topics.known(&later.topic), Some(Topic::Known(known)) if one_partition(&known))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            match self.producers.end().await {
                0 => Ok(()),
                rows => {
                    let text = "rows were still on their way to Kafka and were dropped";
                    Err(Failure::transient(format!("{rows} {text}: they come again")))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
