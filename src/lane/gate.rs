//! The gate before the sink: closed while the sink as a whole fails.
//!
//! All lanes of a relay share one. What failed for one lane would fail for each of them, and for
//! each row of a new key: a closed gate lets one delivery through, after a pause that grows, and
//! opens for all with the first answer of the broker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Backoff;

/// Shared by the lanes of a relay.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backoff: Backoff,
    /// As in the state; asked for each delivery.
    is_closed: AtomicBool,
    state: Mutex<State>,
    opened: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Failed attempts in a row.
    attempts: u32,
    /// When one delivery may pass; `None` while the gate is open.
    next_at: Option<Instant>,
    /// When the last failure was seen.
    failed_at: Option<Instant>,
}

impl Gate {
    pub(crate) fn new(backoff: Backoff) -> Self {
        let is_closed = AtomicBool::new(false);
        let (state, opened) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { backoff, is_closed, state, opened }))
    }

    /// Whether a delivery may go now; else when to ask again. Whoever passes a closed gate is alone
    /// for one more pause: an attempt that never ends holds up the next one no longer than that.
    pub(super) fn enter(&self) -> Result<(), Instant> {
        if !self.0.is_closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.lock();
        let Some(next_at) = state.next_at else { return Ok(()) };
        let now = Instant::now();
        if now < next_at {
            return Err(next_at);
        }
        state.next_at = Some(now + self.0.backoff.after(state.attempts));
        Ok(())
    }

    /// A delivery that was launched then has failed as a whole. Those that were in the air
    /// together fail together, and count as one attempt.
    pub(super) fn failed(&self, launched: Instant) {
        let mut state = self.lock();
        if state.failed_at.is_some_and(|at| launched < at) {
            return;
        }
        let now = Instant::now();
        state.attempts = state.attempts.saturating_add(1);
        state.next_at = Some(now + self.0.backoff.after(state.attempts));
        state.failed_at = Some(now);
        self.0.is_closed.store(true, Ordering::Release);
    }

    /// The broker answered.
    pub(super) fn works(&self) {
        if !self.0.is_closed.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        *state = State::default();
        self.0.is_closed.store(false, Ordering::Release);
        drop(state);
        self.0.opened.notify_waiters();
    }

    /// Waits until the gate opens.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn opened(&self) {
        let mut opened = std::pin::pin!(self.0.opened.notified());
        // Before the look: an opening between the two would else be missed.
        opened.as_mut().enable();
        if self.0.is_closed.load(Ordering::Acquire) {
            opened.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete in itself, so a panicked holder left no half.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
