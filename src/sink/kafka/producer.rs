//! Producers of librdkafka and their end.
//!
//! Owns which producer serves which topics, and the promise that a message is called unknown
//! only after its producer is gone. Knows no verdict.
//!
//! Any failed report ends its producer: under the gapless guarantee most of them are fatal to it
//! anyway, and one rule is easier to check than a list. Its queue is purged, its connections are
//! closed, and only then do its flights land. The next batch makes a new one, with a producer id
//! of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use super::flights::{Flights, Outcome};

/// librdkafka's own default of `batch.size`; more gains nothing measurable.
const BATCH_BYTES_DEFAULT: usize = 1_000_000;
/// Framing of a batch that `batch.size` may or may not count.
const BATCH_OVERHEAD_BYTES: usize = 100;

/// How a producer cuts its batches: `batch.size` is a producer's property, the broker's limit a
/// topic's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Batching {
    /// Batches of at most so many bytes; a larger message goes alone.
    Bytes(usize),
    /// One message a batch: what the broker then refuses is refused for its own sake.
    Single,
}

impl Batching {
    /// For a topic with this `max.message.bytes`. Powers of two below the default, so that a
    /// cluster with many odd limits still needs few producers.
    pub(super) fn within(limit_bytes: usize) -> Self {
        let room = limit_bytes.saturating_sub(BATCH_OVERHEAD_BYTES);
        if room >= BATCH_BYTES_DEFAULT {
            return Self::Bytes(BATCH_BYTES_DEFAULT);
        }
        match room.checked_ilog2() {
            Some(power) => Self::Bytes(1 << power),
            None => Self::Bytes(1),
        }
    }
}

/// What librdkafka last said about the cluster, to explain a timeout.
#[derive(Default)]
pub(super) struct Health {
    complaint: Mutex<Option<Complaint>>,
    denied: Notify,
}

/// An error event of librdkafka, in its own words: addresses and causes, no credentials.
#[derive(Debug, Clone)]
pub(super) struct Complaint {
    /// Whether a credential was refused.
    pub(super) denied: bool,
    /// Text of the event.
    pub(super) text: String,
}

impl Health {
    /// The last complaint since the cluster last answered.
    pub(super) fn complaint(&self) -> Option<Complaint> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cluster answered: older complaints explain nothing any more.
    pub(super) fn answered(&self) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until the cluster refuses our credentials, from now on; says how.
    pub(super) async fn denial(&self) -> String {
        self.denied.notified().await;
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.as_ref().map_or_else(|| "credentials refused".into(), |known| known.text.clone())
    }

    /// Notes an error event. A refused credential outranks the connection errors around it.
    fn note(&self, error: &KafkaError, text: &str) {
        let code = error.rdkafka_error_code();
        let denied = matches!(
            code,
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed)
        );
        // It only repeats that each of the others failed.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        if denied || !complaint.as_ref().is_some_and(|complaint| complaint.denied) {
            *complaint = Some(Complaint { denied, text: text.to_owned() });
        }
        drop(complaint);
        if denied {
            self.denied.notify_waiters();
        }
    }
}

/// Callbacks of one client; they run on its polling thread.
pub(super) struct Context {
    pub(super) flights: Arc<Flights>,
    pub(super) health: Arc<Health>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            // A lost connection is told once, by the delivery or the probe that it fails; a producer
            // id that is not there yet is asked for again; and the properties that librdkafka warns
            // of are walpost's own choice.
            _ if matches!(facility, "FAIL" | "GETPID" | "CONFWARN") => {
                tracing::debug!(facility, "kafka client: {text}");
            }
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            // Connections heal; a person need not act on each of them.
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka client: {text}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(facility, "kafka client: {text}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(facility, "kafka client: {text}"),
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        // Its log line already said the same to the operator.
        tracing::debug!(%error, "kafka client: {reason}");
        if code(&error) == RDKafkaErrorCode::Fatal {
            self.flights.give_up();
        }
        self.health.note(&error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let outcome = match result {
            Ok(_) => Outcome::Stored,
            Err((error, _)) => Outcome::Failed(code(error)),
        };
        self.flights.report(opaque, outcome);
    }
}

/// librdkafka's code, which every error of producing has.
pub(super) fn code(error: &KafkaError) -> RDKafkaErrorCode {
    error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)
}

/// One producer from its making to its end.
pub(super) struct Generation {
    producer: RwLock<Option<ThreadedProducer<Context>>>,
    ended: AtomicBool,
    pub(super) flights: Arc<Flights>,
}

/// Read access to a live producer; not to be held across an await.
pub(super) struct Live<'a>(RwLockReadGuard<'a, Option<ThreadedProducer<Context>>>);

impl std::ops::Deref for Live<'_> {
    type Target = ThreadedProducer<Context>;

    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("live() looked")
    }
}

impl Generation {
    /// The producer, unless it is gone or going. Never waits.
    pub(super) fn live(&self) -> Option<Live<'_>> {
        // Only the end of a producer writes.
        let guard = self.producer.try_read().ok()?;
        guard.is_some().then_some(Live(guard))
    }

    /// Ends the producer: purges its queue, closes its connections, then lands its flights. Takes
    /// up to about a second on a thread of its own.
    ///
    /// Those who come later wait for the first, since it holds the lock until all is done. Says
    /// so where the cluster lets this user have no producer at all (no `IdempotentWrite`).
    ///
    /// # Cancel safety
    /// A dropped call goes on.
    pub(super) async fn end(self: &Arc<Self>) -> Option<String> {
        self.ended.store(true, Ordering::Release);
        let generation = Arc::clone(self);
        let ending = tokio::task::spawn_blocking(move || {
            let mut producer = generation.producer.write().unwrap_or_else(PoisonError::into_inner);
            let ended = producer.take()?;
            let fatal = ended.client().fatal_error();
            if let Some((code, text)) = &fatal {
                tracing::warn!(%code, "a kafka producer failed, a new one takes over: {text}");
            }
            // Its drop purges, waits for the reports and destroys the client.
            drop(ended);
            generation.flights.abandon();
            let (_, text) =
                fatal.filter(|(code, _)| *code == RDKafkaErrorCode::ClusterAuthorizationFailed)?;
            Some(format!("{text}; grant IdempotentWrite on the cluster or Write on a topic"))
        });
        ending.await.expect("ending a producer does not panic")
    }

    /// Waits until all that was enqueued is reported, then ends the producer.
    async fn finish(self: &Arc<Self>, wait: Duration) -> KafkaResult<()> {
        let generation = Arc::clone(self);
        let flushing = tokio::task::spawn_blocking(move || match generation.live() {
            Some(producer) if producer.in_flight_count() > 0 => producer.flush(wait),
            Some(_) | None => Ok(()),
        });
        let flushed = flushing.await.expect("flushing does not panic");
        // What is wrong with the cluster no longer matters here.
        drop(self.end().await);
        flushed
    }
}

/// The producers in use, one for each way of cutting batches.
pub(super) struct Producers {
    config: ClientConfig,
    pub(super) health: Arc<Health>,
    generations: Mutex<HashMap<Batching, Arc<Generation>>>,
}

impl Producers {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self { config, health: Arc::default(), generations: Mutex::default() }
    }

    /// The configuration of all of them, for further clients of the same cluster.
    pub(super) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The present producer of this kind, made anew where the last one has ended. It connects in
    /// the background, so this does not wait for the broker.
    ///
    /// # Errors
    /// librdkafka refuses its configuration, or has no threads or files left.
    pub(super) fn current(&self, batching: Batching) -> KafkaResult<Arc<Generation>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(generation) = generations.get(&batching)
            && !generation.ended.load(Ordering::Acquire)
        {
            return Ok(Arc::clone(generation));
        }
        let mut config = self.config.clone();
        match batching {
            Batching::Bytes(bytes) => config.set("batch.size", bytes.to_string()),
            Batching::Single => config.set("batch.num.messages", "1"),
        };
        let flights: Arc<Flights> = Arc::default();
        let context = Context { flights: Arc::clone(&flights), health: Arc::clone(&self.health) };
        let producer = ThreadedProducer::from_config_and_context(&config, context)?;
        let producer = RwLock::new(Some(producer));
        let generation = Arc::new(Generation { producer, ended: AtomicBool::new(false), flights });
        generations.insert(batching, Arc::clone(&generation));
        Ok(generation)
    }

    /// Ends all of them, each after at most `wait` for its outstanding reports.
    ///
    /// # Errors
    /// Messages were still unreported; they are unknown.
    pub(super) async fn finish(&self, wait: Duration) -> KafkaResult<()> {
        let generations: Vec<_> = {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            generations.drain().map(|(_, generation)| generation).collect()
        };
        let mut finished = Ok(());
        for generation in generations {
            finished = finished.and(generation.finish(wait).await);
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_stay_below_the_topics_limit() {
        assert_eq!(Batching::within(1_048_588), Batching::Bytes(1_000_000));
        assert_eq!(Batching::within(50_000_000), Batching::Bytes(1_000_000));
        assert_eq!(Batching::within(10_000), Batching::Bytes(8192));
        assert_eq!(Batching::within(8192), Batching::Bytes(4096));
        assert_eq!(Batching::within(0), Batching::Bytes(1));
    }
}
