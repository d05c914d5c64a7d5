//! The wait for a flight's reports.
//!
//! ```text
//!  0          50 ms                5 s              every 8 s
//!  ├──────────┼────────────────────┼────────────────┼───▶
//!   reports   │ what is stored is   │ why the rest waits
//!   gather    │ told as it comes    │
//! ```
//!
//! An ordinary flight has landed before the first mark, and costs one wake.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::enqueue::Flight;
use super::flights::{Landing, Outcome};
use super::producer::Batching;
use super::stuck::{self, Waiting};
use super::{Judged, KafkaSink, judge};
use crate::failure::Failure;
use crate::message::Message;
use crate::sink::{Verdict, Verdicts};

/// After so long what is stored of a flight is told before the rest.
const SLOW_AFTER: Duration = Duration::from_millis(50);
/// Time between two looks at what was stored since: a busy broker would else wake us a row.
const SLOW_PAUSE: Duration = Duration::from_millis(20);
/// After so long the reason is looked for.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// Time between two looks; the log takes one line every ten seconds.
const ASK_AGAIN: Duration = Duration::from_secs(8);

/// What a slow flight waits with.
#[derive(Default)]
struct Slow {
    changed: Option<Arc<Notify>>,
    /// When to look again at the earliest.
    look_at: Option<Instant>,
    asking: Option<BoxFuture<'static, (String, OwnedSemaphorePermit)>>,
}

impl KafkaSink {
    /// Waits for a flight's reports and gives its verdicts.
    ///
    /// # Errors
    /// Denied where the cluster refused our credentials meanwhile: librdkafka would try them again
    /// for ever, unseen. Definite where librdkafka's thread panicked.
    pub(super) async fn land(
        &self,
        mut flight: Flight,
        batch: &[Message],
        verdicts: &Verdicts,
    ) -> Result<(), Failure> {
        let since = Instant::now();
        let mut denied = None;
        let mut slow = Slow::default();
        let mut next_at = since + SLOW_AFTER;
        let landing = loop {
            tokio::select! {
                // A landing that is there counts, whatever else was said. No timeout: librdkafka
                // retries in order until the broker is back.
                biased;
                landing = &mut flight.landing => break landing,
                () = flight.generation.flights.broken() => {
                    denied = flight.generation.end().await;
                    break (&mut flight.landing).await;
                }
                text = self.producers.health.denial() => {
                    denied = Some(text);
                    drop(flight.generation.end().await);
                    break (&mut flight.landing).await;
                }
                () = notified(slow.changed.as_deref(), slow.look_at), if slow.changed.is_some() => {
                    slow.look_at = Some(Instant::now() + SLOW_PAUSE);
                    let stored = flight.generation.flights.news(flight.id);
                    verdicts.confirm(stored.into_iter().map(|place| flight.numbers[place]));
                }
                (reason, _permit) = answered(&mut slow.asking), if slow.asking.is_some() => {
                    slow.asking = None;
                    verdicts.waiting(reason);
                }
                () = tokio::time::sleep_until(next_at) => {
                    next_at = self.look_into(&flight, batch, since, &mut slow, verdicts);
                }
            }
        };
        let outcomes = landing.expect("a flight lands before its producer is forgotten");
        self.conclude(flight, outcomes, batch, verdicts, denied).await
    }

    /// A mark of the drawing is reached; when the next one is.
    fn look_into(
        &self,
        flight: &Flight,
        batch: &[Message],
        since: Instant,
        slow: &mut Slow,
        verdicts: &Verdicts,
    ) -> Instant {
        if slow.changed.is_none() {
            if let Some((stored, changed)) = flight.generation.flights.watch(flight.id) {
                verdicts.confirm(stored.into_iter().map(|place| flight.numbers[place]));
                slow.changed = Some(changed);
            }
            return since + ASK_AFTER;
        }
        let permit = Arc::clone(&self.asking).try_acquire_owned().ok();
        if let (None, Some(permit)) = (&slow.asking, permit) {
            let mut topics: HashMap<Arc<str>, usize> = HashMap::new();
            for place in flight.generation.flights.unreported(flight.id) {
                let topic = &batch[flight.numbers[place]].topic;
                *topics.entry(Arc::clone(topic)).or_default() += 1;
            }
            if !topics.is_empty() {
                let waiting = Waiting { topics, since: since.into_std() };
                let (generation, producers) =
                    (Arc::clone(&flight.generation), Arc::clone(&self.producers));
                let asking = tokio::task::spawn_blocking(move || {
                    stuck::cause(&generation, &producers.health, &waiting)
                });
                slow.asking = Some(Box::pin(async move {
                    let reason =
                        asking.await.unwrap_or_else(|_| "its leader does not answer".into());
                    (reason, permit)
                }));
            }
        }
        Instant::now() + ASK_AGAIN
    }

    /// The verdicts of a landing, but for those that were told before.
    async fn conclude(
        &self,
        flight: Flight,
        outcomes: Landing,
        batch: &[Message],
        verdicts: &Verdicts,
        mut denied: Option<String>,
    ) -> Result<(), Failure> {
        let is_stored = |outcome: &Outcome| matches!(outcome, Outcome::Stored | Outcome::Told);
        let whole = outcomes.iter().all(is_stored);
        if whole {
            self.producers.health.answered();
            denied = None;
        } else {
            denied = denied.or(flight.generation.end().await);
        }
        let mut others = Vec::new();
        let mut stored_singly: HashSet<&str> = HashSet::new();
        let Flight { generation, batching, numbers, .. } = flight;
        let stored = numbers.iter().zip(&outcomes).filter(|(_, one)| **one == Outcome::Stored);
        verdicts.confirm(stored.map(|(number, _)| *number));
        for (number, outcome) in numbers.into_iter().zip(outcomes) {
            let topic = &*batch[number].topic;
            match outcome {
                Outcome::Stored | Outcome::Told => {
                    if whole && batching == Batching::Single && stored_singly.insert(topic) {
                        self.topics.forget(topic);
                    }
                }
                Outcome::Unreported => {
                    let reason = "the Kafka producer was ended".into();
                    others.push((number, Verdict::Unknown(reason)));
                }
                Outcome::Failed(code) => {
                    let verdict = match judge(topic, code, batching) {
                        Judged::Forget(verdict) => {
                            self.topics.forget(topic);
                            verdict
                        }
                        Judged::SingleOut(verdict) => {
                            self.topics.single_out(topic);
                            verdict
                        }
                        Judged::Retry(verdict) => verdict,
                    };
                    others.push((number, verdict));
                }
            }
        }
        if generation.flights.has_panicked() {
            let text = "a bug: the thread of the Kafka client panicked, see above";
            return Err(Failure::definite(text));
        }
        // Each message without a verdict is unknown then.
        if let Some(text) = denied {
            return Err(Failure::denied(text));
        }
        verdicts.give_each(others);
        Ok(())
    }
}

async fn notified(changed: Option<&Notify>, look_at: Option<Instant>) {
    let Some(changed) = changed else { return std::future::pending().await };
    if let Some(look_at) = look_at {
        tokio::time::sleep_until(look_at).await;
    }
    changed.notified().await;
}

async fn answered<T>(asking: &mut Option<BoxFuture<'static, T>>) -> T {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
