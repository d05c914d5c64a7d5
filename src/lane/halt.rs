//! The halt: tells all lanes at once that nothing more may be sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Called once, when a relay stops for an error; what is in the air may still arrive.
#[derive(Debug, Clone, Default)]
pub(crate) struct Halt(Arc<State>);

#[derive(Debug, Default)]
struct State {
    called: AtomicBool,
    changed: Notify,
}

impl Halt {
    pub(crate) fn call(&self) {
        self.0.called.store(true, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn is_called(&self) -> bool {
        self.0.called.load(Ordering::Acquire)
    }

    /// Waits for the call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn called(&self) {
        let mut changed = std::pin::pin!(self.0.changed.notified());
        // Before the look: a call between the two would else be missed.
        changed.as_mut().enable();
        if !self.is_called() {
            changed.await;
        }
    }
}
