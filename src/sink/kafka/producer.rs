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
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

use super::flights::{Breach, Flights, Outcome};
use super::options::Settings;
use crate::sink::SinkConfig;

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

/// So long a complaint explains what happens now: librdkafka repeats an equal one every 30 s.
const COMPLAINT_MAX: Duration = Duration::from_secs(60);

/// What librdkafka last said about the cluster, to explain a timeout.
#[derive(Default)]
pub(super) struct Health {
    said: Mutex<Said>,
    denied: Notify,
}

/// Error events of librdkafka, in its own words: addresses and causes, no credentials.
#[derive(Default)]
struct Said {
    /// A credential was refused, and nothing was answered since.
    denial: Option<String>,
    /// Stays when another broker answers: what waits for one may hear from the others.
    complaint: Option<(Instant, String)>,
}

impl Health {
    /// The last refusal of a credential since the cluster last answered.
    pub(super) fn refusal(&self) -> Option<String> {
        self.lock().denial.clone()
    }

    /// The last complaint, unless it is an old one.
    pub(super) fn complaint(&self) -> Option<String> {
        let said = self.lock();
        let (_, text) = said.complaint.as_ref().filter(|(at, _)| at.elapsed() < COMPLAINT_MAX)?;
        // Its own count of repetitions helps nobody.
        Some(text.split(" (after ").next().unwrap_or(text).to_owned())
    }

    /// The cluster answered us: an older refusal explains nothing any more.
    pub(super) fn answered(&self) {
        self.lock().denial = None;
    }

    /// Waits until the cluster refuses our credentials, from now on; says how.
    pub(super) async fn denial(&self) -> String {
        self.denied.notified().await;
        self.refusal().unwrap_or_else(|| "credentials refused".into())
    }

    #[cfg(test)]
    pub(super) fn refuse(&self, text: &str) {
        self.lock().denial = Some(text.to_owned());
    }

    /// Notes an error event.
    fn note(&self, error: &KafkaError, text: &str) {
        let code = error.rdkafka_error_code();
        // It only repeats that each of the others failed.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) {
            return;
        }
        let denied = matches!(
            code,
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed)
        );
        let mut said = self.lock();
        said.complaint = Some((Instant::now(), text.to_owned()));
        if denied {
            said.denial = Some(text.to_owned());
            drop(said);
            self.denied.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Callbacks of one client; they run on its polling thread.
pub(super) struct Context {
    pub(super) flights: Arc<Flights>,
    pub(super) health: Arc<Health>,
}

impl Context {
    /// A panic here would end librdkafka's polling thread, and with it every report: all that waits
    /// for one would wait for ever. It ends the producer instead, and then the relay.
    fn guarded(&self, callback: impl FnOnce()) {
        if std::panic::catch_unwind(AssertUnwindSafe(callback)).is_err() {
            self.flights.give_up(Breach::Panicked);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.guarded(|| match level {
            // A lost connection is named by the delivery or the probe that waits for it; a producer
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
        });
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.guarded(|| {
            // What waits for it names it to the operator, see `stuck.rs`.
            tracing::debug!(%error, "kafka client: {reason}");
            if code(&error) == RDKafkaErrorCode::Fatal {
                self.flights.give_up(Breach::Failed);
            }
            self.health.note(&error, reason);
        });
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let outcome = match result {
            Ok(_) => Outcome::Stored,
            Err((error, _)) => Outcome::Failed(code(error)),
        };
        self.guarded(|| self.flights.report(opaque, outcome));
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
}

/// The producers in use, one for each way of cutting batches.
pub(super) struct Producers {
    config: ClientConfig,
    /// As it was given: a secret in a file is read again for each client that is made.
    sink: SinkConfig,
    pub(super) health: Arc<Health>,
    generations: Mutex<HashMap<Batching, Arc<Generation>>>,
}

impl Producers {
    pub(super) fn new(config: ClientConfig, sink: SinkConfig) -> Self {
        Self { config, sink, health: Arc::default(), generations: Mutex::default() }
    }

    /// The configuration of all of them, for further clients of the same cluster: with user and
    /// password as their files hold them now.
    pub(super) fn config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        let in_a_file =
            self.sink.url.path().is_some() || self.sink.options.contains_key("password_file");
        if !in_a_file {
            return config;
        }
        match Settings::read(&self.sink) {
            Ok(now) => {
                for key in ["sasl.username", "sasl.password"] {
                    if let Some(value) = now.client.get(key) {
                        config.set(key, value);
                    }
                }
            }
            // Somebody is just writing it; the older one may do for once more.
            Err(error) => tracing::warn!("could not read the Kafka credentials again: {error}"),
        }
        config
    }

    /// Ends all of them, so that the next ones log in with the credentials of then.
    pub(super) async fn renew(&self) {
        // What was with them is unknown now, and whoever waits for it hears so.
        self.end().await;
        self.health.answered();
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
        let mut config = self.config();
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

    /// Ends all of them at once. What is still with them is purged, not flushed: nobody waits for
    /// it any more, and whoever reads the outbox next sends it.
    /// Returns how many messages were with them; those are unknown.
    pub(super) async fn end(&self) -> usize {
        let generations: Vec<_> = {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            generations.drain().map(|(_, generation)| generation).collect()
        };
        let waiting: usize =
            generations.iter().map(|generation| generation.flights.waiting()).sum();
        let ends = generations.iter().map(Generation::end);
        // What is wrong with the cluster no longer matters here.
        drop(futures_util::future::join_all(ends).await);
        waiting
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

    fn context() -> Context {
        Context { flights: Arc::default(), health: Arc::default() }
    }

    #[tokio::test]
    async fn a_callback_that_panics_ends_its_producer_and_not_its_thread() {
        // given a report that makes no sense: a message that the flight does not have
        let context = context();
        let (id, _landing) = context.flights.register(1);
        let opaque = Flights::opaque(id.slot, 7);
        // when it comes on librdkafka's thread
        context.guarded(|| context.flights.report(opaque, Outcome::Stored));
        // then whoever waits for the flight hears of it
        context.flights.broken().await;
        assert!(context.flights.has_panicked());
    }

    #[test]
    fn a_refused_credential_is_forgotten_once_the_cluster_answers_and_a_lost_broker_is_not() {
        let health = Health::default();
        let error = |code| KafkaError::Global(code);
        health.note(&error(RDKafkaErrorCode::Authentication), "two: refused");
        health.note(&error(RDKafkaErrorCode::BrokerTransportFailure), "one: gone (after 3ms)");
        assert_eq!(health.refusal().as_deref(), Some("two: refused"));
        health.answered();
        assert_eq!(health.refusal(), None);
        assert_eq!(health.complaint().as_deref(), Some("one: gone"));
    }
}
