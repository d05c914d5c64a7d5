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
//! stored: before the queue by not enqueuing it, after it by the broker's sequence check.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;

use self::enqueue::{Flight, send};
use self::flights::Outcome;
use self::options::Settings;
use self::producer::{Batching, Producers};
use self::topics::{Topic, Topics, wire_bytes};
use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdict, Verdicts};
use crate::failure::Failure;
use crate::message::Message;

mod enqueue;
mod flights;
mod options;
mod producer;
mod topics;

/// Longest wait for a broker's first answer in [`Sink::probe`].
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for outstanding reports in [`Sink::close`].
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Sink for Kafka.
pub struct KafkaSink {
    producers: Arc<Producers>,
    topics: Topics,
    warnings: Vec<String>,
}

/// What becomes of a batch before anything is sent.
struct Plan {
    verdicts: Vec<Option<Verdict>>,
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
        Ok(Self {
            producers: Arc::new(Producers::new(settings.client)),
            topics: Topics::new(settings.message_bytes_max),
            warnings: settings.warnings,
        })
    }

    async fn publish(&self, batch: &[Message]) -> Result<Vec<Verdict>, Failure> {
        let mut plan = self.plan(batch).await?;
        let mut flights = Vec::with_capacity(plan.groups.len());
        for (batching, numbers) in std::mem::take(&mut plan.groups) {
            let generation =
                self.producers.current(batching).map_err(|error| self.failure("make", error))?;
            flights.push(send(generation, batching, numbers, batch).await);
        }
        let mut denied = None;
        for flight in flights {
            denied = denied.or(self.land(flight, batch, &mut plan.verdicts).await);
        }
        match denied {
            Some(text) => Err(Failure::denied(text)),
            None => {
                let verdicts = plan.verdicts.into_iter();
                Ok(verdicts.map(|verdict| verdict.expect("each message was judged")).collect())
            }
        }
    }

    /// Judges what can be judged before sending, and sorts the rest by producer.
    async fn plan(&self, batch: &[Message]) -> Result<Plan, Failure> {
        let topics = self.topics_of(batch).await?;
        let mut plan = Plan { verdicts: vec![None; batch.len()], groups: HashMap::new() };
        let mut failed: HashSet<(&str, &Bytes)> = HashSet::new();
        let mut last: Option<(&Arc<str>, Topic)> = None;
        for (number, message) in batch.iter().enumerate() {
            let topic = match last {
                Some((name, topic)) if *name == message.topic => topic,
                Some(_) | None => topics[&message.topic],
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
                (Topic::Known { limit_bytes, batching }, _) => {
                    let bytes = wire_bytes(message, message.identity.text().as_str().len());
                    if bytes <= limit_bytes {
                        plan.groups.entry(batching).or_default().push(number);
                        continue;
                    }
                    too_large(&message.topic, bytes, limit_bytes)
                }
            };
            if let Some(key) = &message.key {
                failed.insert((&*message.topic, key));
            }
            plan.verdicts[number] = Some(verdict);
        }
        Ok(plan)
    }

    /// All topics of the batch; from the cache but for new ones.
    async fn topics_of(&self, batch: &[Message]) -> Result<HashMap<Arc<str>, Topic>, Failure> {
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
        if !missing.is_empty() {
            let found = self.topics.look_up(&self.producers, &missing).await;
            topics.extend(found.map_err(|error| self.failure("look up topics in", error))?);
            self.producers.health.answered();
        }
        Ok(topics)
    }

    /// Waits for a flight's reports and writes its verdicts. `Some` where the cluster refused
    /// our credentials meanwhile: librdkafka would try them again for ever, unseen.
    async fn land(
        &self,
        mut flight: Flight,
        batch: &[Message],
        verdicts: &mut [Option<Verdict>],
    ) -> Option<String> {
        let mut denied = None;
        let landing = tokio::select! {
            // A landing that is there counts, whatever else was said. No timeout: librdkafka
            // retries in order until the broker is back.
            biased;
            landing = &mut flight.landing => landing,
            () = flight.generation.flights.broken() => {
                denied = flight.generation.end().await;
                flight.landing.await
            }
            text = self.producers.health.denial() => {
                denied = Some(text);
                drop(flight.generation.end().await);
                flight.landing.await
            }
        };
        let outcomes = landing.expect("a flight lands before its producer is forgotten");
        let whole = outcomes.iter().all(|outcome| *outcome == Outcome::Stored);
        if !whole {
            denied = denied.or(flight.generation.end().await);
        }
        let mut stored_singly: HashSet<&str> = HashSet::new();
        for (number, outcome) in flight.numbers.into_iter().zip(outcomes) {
            let topic = &batch[number].topic;
            let verdict = match outcome {
                Outcome::Stored => Verdict::Confirmed,
                Outcome::Unreported => Verdict::Unknown("the Kafka producer was ended".into()),
                Outcome::Failed(code) => self.judge(topic, code, flight.batching),
            };
            if whole && flight.batching == Batching::Single && stored_singly.insert(topic) {
                self.topics.forget(topic);
            }
            verdicts[number] = Some(verdict);
        }
        denied
    }

    /// The verdict for a failed message. Its producer is gone by now.
    fn judge(&self, topic: &str, code: RDKafkaErrorCode, batching: Batching) -> Verdict {
        match code {
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition => {
                self.topics.forget(topic);
                Verdict::Absent(format!(
                    "topic \"{topic}\", or the partition that a row asks for, does not exist; make it"
                ))
            }
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic => {
                self.topics.forget(topic);
                refused(topic, code)
            }
            // Said of a whole batch of messages, not only ours: on its own the guilty one shows.
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::PolicyViolation => match batching {
                Batching::Single => {
                    self.topics.forget(topic);
                    refused(topic, code)
                }
                Batching::Bytes(_) => {
                    self.topics.single_out(topic);
                    Verdict::Unknown(format!("the broker refused its batch: {code}").into())
                }
            },
            // Purged, fenced, fatal, out of sequence: it goes again through the next producer.
            code => Verdict::Unknown(format!("the Kafka producer stopped: {code}").into()),
        }
    }

    /// An error of the client, told with what it last said about the cluster.
    fn failure(&self, action: &str, error: KafkaError) -> Failure {
        let cause = match self.producers.health.complaint() {
            Some(complaint) if complaint.denied => return Failure::denied(complaint.text),
            // It says more than the code, and its own count of repetitions helps nobody.
            Some(complaint) => complaint.text.split(" (after ").next().unwrap_or("").to_owned(),
            None => format!("no answer: {error}"),
        };
        Failure::transient(format!("could not {action} the Kafka cluster: {cause}"))
    }

    async fn examine(&self) -> Result<Vec<String>, Failure> {
        let batching = Batching::Bytes(1_000_000);
        let generation =
            self.producers.current(batching).map_err(|error| self.failure("make", error))?;
        let asking = tokio::task::spawn_blocking(move || {
            let Some(producer) = generation.live() else { return Err(KafkaError::Canceled) };
            producer.client().fetch_metadata(None, PROBE_MAX)
        });
        let answer = asking.await.expect("asking for metadata does not panic");
        let metadata = answer.map_err(|error| self.failure("reach", error))?;
        self.producers.health.answered();
        let mut warnings = self.warnings.clone();
        if metadata.brokers().len() == 1 {
            warnings.push(
                "the Kafka cluster has one broker: nothing is replicated, and a confirmed row is \
                 lost with its disk"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }
}

fn absent(topic: &str) -> Verdict {
    Verdict::Absent(format!(
        "topic \"{topic}\" does not exist; make it, for example `kafka-topics.sh --create --topic \
         {topic}`"
    ))
}

fn refused(topic: &str, code: RDKafkaErrorCode) -> Verdict {
    let remedy = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => "grant Write and Describe on it",
        RDKafkaErrorCode::InvalidTopic => "correct its name",
        RDKafkaErrorCode::InvalidTimestamp => {
            "see message.timestamp.before.max.ms and after.max.ms"
        }
        _ => "see the broker's log for the record's fault",
    };
    Verdict::Rejected(format!("topic \"{topic}\" refused it ({code}); {remedy}"))
}

fn too_large(topic: &str, bytes: usize, limit_bytes: usize) -> Verdict {
    Verdict::Rejected(format!(
        "{bytes} bytes with key, headers and framing, but topic \"{topic}\" takes {limit_bytes}; \
         raise max.message.bytes of the topic (and message_max_bytes, where that is set)"
    ))
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
            stuck_after: None,
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(self.examine())
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let known = self.publish(batch).await?;
            verdicts.give_each(known.into_iter().enumerate());
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async {
            let finished = self.producers.finish(CLOSE_MAX).await;
            finished.map_err(|error| self.failure("flush to", error))
        })
    }
}

#[cfg(test)]
mod tests;
