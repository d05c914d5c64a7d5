//! What is known of the streams that have taken rows, and a look at them now and then.
//!
//! A stream's consumers come and go while the relay runs: one with retention by interest keeps
//! nothing from the moment on when its last consumer is gone, and goes on confirming.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::{Api, Silence, StreamInfo};
use super::probe;

/// How often a stream that takes rows is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Streams that are remembered.
const STREAMS_MAX: usize = 1_000;
/// NATS's own default, for a stream that may not be looked at.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Streams {
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    /// When the next look is due; `None` where this user may not look.
    due: Option<Instant>,
    duplicate_window: Duration,
    transformed: bool,
}

impl Streams {
    /// How long the stream remembers message ids, and whether it holds other subjects than it
    /// takes; as far as is known.
    pub(super) fn traits(&self, stream: &str) -> (Duration, bool) {
        let known = self.known();
        let traits = known.get(stream).map(|known| (known.duplicate_window, known.transformed));
        traits.unwrap_or((DUPLICATE_WINDOW, false))
    }

    /// Looks at a stream that has taken rows, where that is due, and warns when it keeps none.
    pub(super) async fn look(&self, api: &Api<'_>, stream: &str, now: Instant) {
        if !self.claim(stream, now) {
            return;
        }
        match api.stream(stream).await {
            Ok(Some(info)) => {
                if let Some(problem) = probe::keeps_nothing(&info) {
                    tracing::warn!(stream, "stream \"{stream}\" {problem}");
                }
                self.note(stream, &info);
            }
            Err(Silence::Denied) => {
                if let Some(known) = self.known().get_mut(stream) {
                    known.due = None;
                }
            }
            // Deleted, or nobody answers: the next publish says more.
            Ok(None) | Err(Silence::Away(_) | Silence::Error { .. }) => {}
        }
    }

    /// Whether a look is due; it is then this caller's.
    fn claim(&self, stream: &str, now: Instant) -> bool {
        let mut known = self.known();
        if !known.contains_key(stream) {
            if known.len() >= STREAMS_MAX {
                known.clear();
            }
            let fresh =
                Known { due: Some(now), duplicate_window: DUPLICATE_WINDOW, transformed: false };
            known.insert(stream.to_owned(), fresh);
        }
        match known.get_mut(stream).and_then(|known| known.due.as_mut()) {
            Some(due) if *due <= now => {
                *due = now + LOOK_EVERY;
                true
            }
            Some(_) | None => false,
        }
    }

    fn note(&self, stream: &str, info: &StreamInfo) {
        if let Some(known) = self.known().get_mut(stream) {
            known.duplicate_window = info.config.duplicate_window();
            known.transformed = info.config.subject_transform.is_some();
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_looked_at_at_once_and_then_now_and_then() {
        let streams = Streams::default();
        let now = Instant::now();
        assert!(streams.claim("A", now));
        assert!(!streams.claim("A", now));
        assert!(streams.claim("B", now));
        assert!(streams.claim("A", now + LOOK_EVERY));
        assert_eq!(streams.traits("C"), (DUPLICATE_WINDOW, false));
    }
}
