//! What is known of a topic before the first message goes to it.
//!
//! Owns the cache of look-ups, what they mean for a message, and the size that a message has on Kafka's wire. A look-up costs
//! two round trips, once a topic; a topic that is missing or forbidden is asked for each time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Semaphore;

use super::look_up::{Answer, Untold, ask};
use super::options::Timestamp;
use super::producer::{Batching, Producers};
use super::settings::{TopicSettings, span};
use crate::message::Message;

/// Apache Kafka's default of `max.message.bytes` and `message.max.bytes`.
const LIMIT_BYTES_DEFAULT: usize = 1_048_588;
/// A limit that was looked up before is looked up again before it rejects a row.
const LIMIT_AGE_MAX: Duration = Duration::from_secs(5);
/// Time between two warnings about the age of a topic's rows.
const AGED_QUIET: Duration = Duration::from_secs(60);

/// What a message for this topic meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// It exists.
    Known(Known),
    /// It does not exist (yet).
    Absent,
    /// We may not see it, or its name is not one.
    Forbidden(RDKafkaErrorCode),
    /// Nothing answered for it in time.
    Unanswered,
}

/// What is known of a topic that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Largest message that is sent there; `None` where the broker judges, since it does not tell
    /// its limit, or holds it against what is compressed.
    pub(super) limit_bytes: Option<usize>,
    /// Producer that serves it.
    pub(super) batching: Batching,
    /// Its messages are one sequence.
    pub(super) has_one_partition: bool,
    /// A record older than this is deleted.
    age_max_millis: Option<i64>,
    looked_up: Instant,
}

impl Known {
    /// Whether its limit may have been raised since.
    pub(super) fn is_old(&self) -> bool {
        self.looked_up.elapsed() >= LIMIT_AGE_MAX
    }
}

/// What of the options decides about a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The operator's own limit: below the topics', or in place of theirs where the cluster does
    /// not tell.
    pub(super) limit_bytes: Option<usize>,
    pub(super) compresses: bool,
    pub(super) timestamp: Timestamp,
}

/// The cache, and the gate before the look-up.
pub(super) struct Topics {
    rules: Rules,
    known: Mutex<HashMap<Arc<str>, Topic>>,
    gate: Semaphore,
    settings_denied: AtomicBool,
    aged: Mutex<HashMap<Arc<str>, Aged>>,
}

/// Rows of a topic that it deletes for their age.
#[derive(Debug, Default)]
struct Aged {
    warned_at: Option<Instant>,
    /// Since then.
    rows: u64,
}

impl Topics {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            known: Mutex::default(),
            gate: Semaphore::new(1),
            settings_denied: AtomicBool::new(false),
            aged: Mutex::default(),
        }
    }

    /// The cached topic.
    pub(super) fn known(&self, name: &str) -> Option<Topic> {
        self.lock().get(name).copied()
    }

    /// Drops what is known, so that the next message asks again.
    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Sends the topic's messages one by one until [`Topics::forget`]: the broker refused a batch
    /// without saying because of which message.
    pub(super) fn single_out(&self, name: &str) {
        if let Some(Topic::Known(known)) = self.lock().get_mut(name) {
            known.batching = Batching::Single;
        }
    }

    /// Looks up those of `names` that are not cached. Only one look-up is under way at a time:
    /// whoever waited for another finds its topics known. Topics that nothing answered for are
    /// [`Topic::Unanswered`], and the error says why.
    ///
    /// # Errors
    /// No producer could be made.
    pub(super) async fn look_up(
        &self,
        producers: &Producers,
        names: &[Arc<str>],
    ) -> KafkaResult<(HashMap<Arc<str>, Topic>, Option<KafkaError>)> {
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
            return Ok((topics, None));
        }
        // The one that serves most topics, so that it has their metadata when they are sent to.
        let generation = producers.current(Batching::within(LIMIT_BYTES_DEFAULT))?;
        let (answers, error) = ask(generation, producers, missing).await;
        for (name, answer) in answers {
            let topic = self.judge(&name, answer);
            if let Topic::Known(_) = topic {
                self.lock().insert(Arc::clone(&name), topic);
            }
            topics.insert(name, topic);
        }
        Ok((topics, error))
    }

    fn judge(&self, name: &str, answer: Answer) -> Topic {
        let (partitions, replicas_min, settings) = match answer {
            Answer::Exists { partitions, replicas_min, settings } => {
                (partitions, replicas_min, settings)
            }
            Answer::Missing => return Topic::Absent,
            Answer::Refused(code) => return Topic::Forbidden(code),
            Answer::None => return Topic::Unanswered,
        };
        let settings = match settings {
            Ok(settings) => settings,
            Err(reason) => {
                self.without_settings(name, reason);
                TopicSettings::default()
            }
        };
        for warning in settings.warnings(name, replicas_min) {
            tracing::warn!("{warning}");
        }
        let Rules { limit_bytes: own, compresses, timestamp } = self.rules;
        let limits = [settings.limit_bytes, own].into_iter().flatten().min();
        Topic::Known(Known {
            limit_bytes: if compresses { own } else { limits },
            batching: Batching::within(limits.unwrap_or(LIMIT_BYTES_DEFAULT)),
            has_one_partition: partitions == 1,
            age_max_millis: settings.age_max_millis().filter(|_| timestamp == Timestamp::Row),
            looked_up: Instant::now(),
        })
    }

    /// A right that is missing is named once, and not once a topic.
    fn without_settings(&self, name: &str, reason: Untold) {
        let denied = reason == Untold::Denied;
        if denied && !self.settings_denied.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                topic = name,
                "the settings of topics cannot be read: the broker alone judges a row's size, and \
                 nothing warns of a short retention; grant DescribeConfigs on them"
            );
        } else {
            tracing::debug!(topic = name, ?reason, "the cluster did not tell the topic's settings");
        }
    }

    /// Warns where a topic deletes rows as soon as it has them, for their age.
    pub(super) fn observe_ages(&self, batch: &[Message], topics: &HashMap<Arc<str>, Topic>) {
        let ages = topics.iter().filter_map(|(name, topic)| match topic {
            Topic::Known(known) => Some((name, known.age_max_millis?)),
            Topic::Absent | Topic::Forbidden(_) | Topic::Unanswered => None,
        });
        for (name, age_max) in ages {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
            let oldest_kept = now.saturating_sub(age_max).saturating_mul(1000);
            let is_aged = |message: &&Message| {
                message.timestamp_micros < oldest_kept && message.topic == *name
            };
            let aged = batch.iter().filter(is_aged).count();
            if aged > 0 {
                self.warn_of_age(name, aged as u64, age_max);
            }
        }
    }

    fn warn_of_age(&self, name: &Arc<str>, aged: u64, age_max: i64) {
        let mut known = self.aged.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = known.entry(Arc::clone(name)).or_default();
        topic.rows += aged;
        if topic.warned_at.is_some_and(|at| at.elapsed() < AGED_QUIET) {
            return;
        }
        topic.warned_at = Some(Instant::now());
        let rows = std::mem::take(&mut topic.rows);
        tracing::warn!(
            topic = &**name,
            rows,
            "rows are older than the {} that their topic keeps a record (retention.ms counts from the \
             row's own time): Kafka deletes them at its next check; raise retention.ms, or set \
             sink.timestamp = \"now\"",
            span(age_max)
        );
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Topic>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
