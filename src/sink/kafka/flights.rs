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

use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// Reported as failed; nothing was stored under this attempt as far as the client knows.
    Failed(RDKafkaErrorCode),
}

/// Outcomes of one batch, by the message's number in it.
pub(super) type Landing = Vec<Outcome>;

struct Flight {
    outcomes: Landing,
    pending: usize,
    done: Option<oneshot::Sender<Landing>>,
}

/// All flights of one producer.
#[derive(Default)]
pub(super) struct Flights {
    slab: Mutex<Slab<Flight>>,
    room: Notify,
    broken: watch::Sender<bool>,
}

impl Flights {
    /// Registers a batch whose messages are all about to be enqueued; its landing arrives once
    /// each of them was reported on, or by [`Flights::abandon`].
    pub(super) fn register(&self, messages: usize) -> (usize, oneshot::Receiver<Landing>) {
        assert!(messages > 0 && messages <= u32::MAX as usize, "a flight of {messages} messages");
        let (done, landing) = oneshot::channel();
        let outcomes = vec![Outcome::Unreported; messages];
        let slot = self.lock().insert(Flight { outcomes, pending: messages, done: Some(done) });
        (slot, landing)
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
            }
        }
        drop(slab);
        self.room.notify_waiters();
        if let Outcome::Failed(_) = outcome {
            self.give_up();
        }
    }

    /// Marks the producer as one that must be ended. After a fatal error librdkafka keeps some
    /// messages without ever reporting on them, so nobody may wait for its reports any more.
    pub(super) fn give_up(&self) {
        self.broken.send_replace(true);
    }

    /// Waits for [`Flights::give_up`]; at once if that was before.
    pub(super) async fn broken(&self) {
        let waited = self.broken.subscribe().wait_for(|broken| *broken).await.map(drop);
        waited.expect("its sender is borrowed here");
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
        flights.report(Flights::opaque(slot, 1), Outcome::Stored);
        flights.report(Flights::opaque(other, 0), Outcome::Stored);
        // then
        assert!(landing.try_recv().is_err());
        // when
        let failed = Outcome::Failed(RDKafkaErrorCode::PurgeQueue);
        flights.report(Flights::opaque(slot, 0), failed);
        // then
        assert_eq!(landing.try_recv(), Ok(vec![failed, Outcome::Stored]));
    }

    #[test]
    fn an_abandoned_flight_never_calls_an_unreported_message_stored() {
        // given
        let flights = Flights::default();
        let (slot, mut landing) = flights.register(2);
        flights.report(Flights::opaque(slot, 0), Outcome::Stored);
        // when
        flights.abandon();
        // then
        assert_eq!(landing.try_recv(), Ok(vec![Outcome::Stored, Outcome::Unreported]));
    }
}
