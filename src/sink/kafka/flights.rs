//! Batches in the air: which of a producer's messages have been reported on, and how.
//!
//! Owns the packing of a message's place into librdkafka's opaque pointer, so that a message
//! costs no allocation of ours and a batch costs one channel. Knows no topic and no verdict.
//!
//! ```text
//! usize   31 bits      32 bits
//!        ┌──────────┬────────────┐
//!        │ slot     │ message    │   slot: of the flight in the slab; freed with its last report
//!        └──────────┴────────────┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::types::RDKafkaErrorCode;
use slab::Slab;
use tokio::sync::{Notify, oneshot, watch};

const MESSAGE_BITS: u32 = 32;
const _: () = assert!(usize::BITS == 64, "slot and message share one pointer");

/// What is known of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No report, and none will come: the producer is gone.
    Unreported,
    /// Acknowledged by all in-sync replicas.
    Stored,
    /// As stored, and [`Flights::watch`] or [`Flights::news`] has said so before.
    Told,
    /// Reported as failed; nothing was stored under this attempt as far as the client knows.
    Failed(RDKafkaErrorCode),
}

/// Outcomes of one batch, by the message's number in it.
pub(super) type Landing = Vec<Outcome>;

struct Flight {
    /// Of all flights of a producer; a slot is used again.
    number: u64,
    outcomes: Landing,
    pending: usize,
    done: Option<oneshot::Sender<Landing>>,
    watch: Option<Watch>,
}

/// What a slow flight brings before its landing.
struct Watch {
    stored: Vec<usize>,
    changed: Arc<Notify>,
}

/// Names a flight of a producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlightId {
    pub(super) slot: usize,
    number: u64,
}

/// Why a producer must be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breach {
    /// A message failed, or the client as a whole.
    Failed,
    /// A bug: a callback panicked, and what it had to report is lost.
    Panicked,
}

/// All flights of one producer.
#[derive(Default)]
pub(super) struct Flights {
    slab: Mutex<Slab<Flight>>,
    launched: AtomicU64,
    room: Notify,
    broken: watch::Sender<Option<Breach>>,
}

impl Flights {
    /// Registers a batch whose messages are all about to be enqueued; its landing arrives once
    /// each of them was reported on, or by [`Flights::abandon`].
    pub(super) fn register(&self, messages: usize) -> (FlightId, oneshot::Receiver<Landing>) {
        assert!(messages > 0 && messages <= u32::MAX as usize, "a flight of {messages} messages");
        let (done, landing) = oneshot::channel();
        let outcomes = vec![Outcome::Unreported; messages];
        let number = self.launched.fetch_add(1, Ordering::Relaxed);
        let (pending, done) = (messages, Some(done));
        let flight = Flight { number, outcomes, pending, done, watch: None };
        (FlightId { slot: self.lock().insert(flight), number }, landing)
    }

    /// From now on the flight's messages are told as they are stored: those that are stored by
    /// now, and what says that there is more. An ordinary flight has landed long before, and none
    /// of its reports costs a wake. `None` once it has landed.
    pub(super) fn watch(&self, id: FlightId) -> Option<(Vec<usize>, Arc<Notify>)> {
        let mut slab = self.lock();
        let flight = slab.get_mut(id.slot).filter(|flight| flight.number == id.number)?;
        let changed: Arc<Notify> = Arc::default();
        flight.watch = Some(Watch { stored: Vec::new(), changed: Arc::clone(&changed) });
        let mut stored = Vec::new();
        for (message, outcome) in flight.outcomes.iter_mut().enumerate() {
            if *outcome == Outcome::Stored {
                *outcome = Outcome::Told;
                stored.push(message);
            }
        }
        Some((stored, changed))
    }

    /// What was stored of a watched flight since the last such call; nothing once it has landed.
    pub(super) fn news(&self, id: FlightId) -> Vec<usize> {
        let mut slab = self.lock();
        let flight = slab.get_mut(id.slot).filter(|flight| flight.number == id.number);
        let Some(Flight { watch: Some(watch), outcomes, .. }) = flight else { return Vec::new() };
        let stored = std::mem::take(&mut watch.stored);
        for message in &stored {
            outcomes[*message] = Outcome::Told;
        }
        stored
    }

    /// Numbers of the flight's messages that were not reported on yet; none once it has landed.
    pub(super) fn unreported(&self, id: FlightId) -> Vec<usize> {
        let slab = self.lock();
        let flight = slab.get(id.slot).filter(|flight| flight.number == id.number);
        let outcomes = flight.map_or(&[][..], |flight| &flight.outcomes);
        let messages = outcomes.iter().enumerate();
        let unreported = messages.filter(|(_, outcome)| **outcome == Outcome::Unreported);
        unreported.map(|(message, _)| message).collect()
    }

    /// Messages that were not reported on yet.
    pub(super) fn waiting(&self) -> usize {
        self.lock().iter().map(|(_, flight)| flight.pending).sum()
    }

    /// The opaque of a message.
    pub(super) fn opaque(slot: usize, message: usize) -> usize {
        (slot << MESSAGE_BITS) | message
    }

    /// Takes the report on one message; also for one that could not be enqueued.
    pub(super) fn report(&self, opaque: usize, outcome: Outcome) {
        let (slot, message) = (opaque >> MESSAGE_BITS, opaque & u32::MAX as usize);
        let mut slab = self.lock();
        // Abandoned flights are gone; a report that comes after that changes nothing.
        if let Some(flight) = slab.get_mut(slot) {
            let before = std::mem::replace(&mut flight.outcomes[message], outcome);
            assert!(before == Outcome::Unreported, "a second report on one message");
            flight.pending -= 1;
            if flight.pending == 0 {
                slab.remove(slot).land();
            } else if let (Some(watch), Outcome::Stored) = (&mut flight.watch, outcome) {
                watch.stored.push(message);
                watch.changed.notify_one();
            }
        }
        drop(slab);
        self.room.notify_waiters();
        if let Outcome::Failed(_) = outcome {
            self.give_up(Breach::Failed);
        }
    }

    /// Marks the producer as one that must be ended. After a fatal error librdkafka keeps some
    /// messages without ever reporting on them, so nobody may wait for its reports any more.
    pub(super) fn give_up(&self, breach: Breach) {
        self.broken.send_modify(|known| {
            if *known != Some(Breach::Panicked) {
                *known = Some(breach);
            }
        });
    }

    /// Waits for [`Flights::give_up`]; at once if that was before.
    pub(super) async fn broken(&self) {
        let waited = self.broken.subscribe().wait_for(Option::is_some).await.map(drop);
        waited.expect("its sender is borrowed here");
    }

    /// Whether a callback has panicked.
    pub(super) fn has_panicked(&self) -> bool {
        *self.broken.borrow() == Some(Breach::Panicked)
    }

    /// Ends every flight with what is known by now. Only after the producer is gone.
    pub(super) fn abandon(&self) {
        for flight in self.lock().drain() {
            flight.land();
        }
        self.room.notify_waiters();
    }

    /// Waits for a report that comes after this call: there may be room in the queue again.
    pub(super) async fn room(&self) {
        self.room.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Flight>> {
        // Each change under the lock is complete in itself, so a panicked holder left no half.
        self.slab.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn land(mut self) {
        let done = self.done.take().expect("a flight lands once");
        // The caller may have been dropped; then nobody wants to know.
        drop(done.send(self.outcomes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_lands_with_its_last_report_and_not_before() {
        // given
        let flights = Flights::default();
        let (other, _other_landing) = flights.register(1);
        let (slot, mut landing) = flights.register(2);
        // when
        flights.report(Flights::opaque(slot.slot, 1), Outcome::Stored);
        flights.report(Flights::opaque(other.slot, 0), Outcome::Stored);
        // then
        assert!(landing.try_recv().is_err());
        // when
        let failed = Outcome::Failed(RDKafkaErrorCode::PurgeQueue);
        flights.report(Flights::opaque(slot.slot, 0), failed);
        // then
        assert_eq!(landing.try_recv(), Ok(vec![failed, Outcome::Stored]));
    }

    #[test]
    fn a_watched_flight_tells_each_stored_message_once_and_no_failed_one() {
        // given a flight of which one message is stored before anybody watches
        let flights = Flights::default();
        let (id, mut landing) = flights.register(4);
        let report = |message, outcome| flights.report(Flights::opaque(id.slot, message), outcome);
        report(2, Outcome::Stored);
        // when it is watched
        let (stored, _) = flights.watch(id).unwrap();
        assert_eq!(stored, [2]);
        assert_eq!(flights.unreported(id), [0, 1, 3]);
        // then each comes once
        report(0, Outcome::Stored);
        assert_eq!(flights.news(id), [0]);
        let failed = Outcome::Failed(RDKafkaErrorCode::PurgeQueue);
        report(1, failed);
        assert!(flights.news(id).is_empty());
        report(3, Outcome::Stored);
        let told = Outcome::Told;
        assert_eq!(landing.try_recv(), Ok(vec![told, failed, told, Outcome::Stored]));
        // and another flight in its slot is none of its business
        let (other, _landing) = flights.register(2);
        assert_eq!(other.slot, id.slot);
        flights.watch(other);
        flights.report(Flights::opaque(other.slot, 0), Outcome::Stored);
        assert!(flights.news(id).is_empty());
        assert_eq!(flights.news(other), [0]);
    }

    #[test]
    fn an_abandoned_flight_never_calls_an_unreported_message_stored() {
        // given
        let flights = Flights::default();
        let (slot, mut landing) = flights.register(2);
        flights.report(Flights::opaque(slot.slot, 0), Outcome::Stored);
        // when
        flights.abandon();
        // then
        assert_eq!(landing.try_recv(), Ok(vec![Outcome::Stored, Outcome::Unreported]));
    }
}
