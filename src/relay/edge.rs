//! How one edge of the relay, source or sink, is doing, and what an error there leads to: the one
//! place that decides between another attempt and the end.

use std::time::Duration;

use tokio::time::Instant;

use super::RelayOptions;
use crate::failure::FailureKind;

/// What an error leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    RetryAfter(Duration),
    Stop,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Edge {
    /// Whether it has ever worked, or was away: a refusal that is the very first answer is a
    /// credential that was never right. After anything else it may be one that rotates, or a
    /// server that comes back from an outage with its rules not loaded yet.
    has_begun: bool,
    attempts: u32,
    failing_since: Option<Instant>,
    /// Since when every failure was a refusal.
    denied_since: Option<Instant>,
    /// Since when it works, after a failure.
    works_since: Option<Instant>,
    /// Rows that had passed at the last failure.
    passed: u64,
}

impl Edge {
    /// Notes a failure, with the number of rows that have passed until now, and decides.
    pub(super) fn failed(
        &mut self,
        kind: FailureKind,
        passed: u64,
        options: &RelayOptions,
    ) -> Action {
        let now = Instant::now();
        // A connection that breaks as soon as it stands has not worked: pauses go on growing.
        let lasted = self.works_since.take().is_some_and(|at| now - at >= options.backoff.max);
        if lasted || passed > self.passed {
            self.attempts = 0;
        }
        self.passed = passed;
        self.attempts = self.attempts.saturating_add(1);
        self.failing_since.get_or_insert(now);
        let is_patient = match kind {
            FailureKind::Transient => {
                self.has_begun = true;
                self.denied_since = None;
                true
            }
            FailureKind::Denied => {
                let since = *self.denied_since.get_or_insert(now);
                self.has_begun && now - since < options.auth_wait
            }
            FailureKind::Definite => false,
        };
        if is_patient {
            Action::RetryAfter(options.backoff.after(self.attempts))
        } else {
            Action::Stop
        }
    }

    /// Returns since when it had not worked, if it had not.
    pub(super) fn works(&mut self) -> Option<Instant> {
        self.has_begun = true;
        self.denied_since = None;
        self.works_since.get_or_insert_with(Instant::now);
        self.failing_since.take()
    }

    /// Failed attempts in a row.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn denied(edge: &mut Edge) -> bool {
        edge.failed(FailureKind::Denied, 0, &RelayOptions::default()) != Action::Stop
    }

    fn away(edge: &mut Edge) -> bool {
        edge.failed(FailureKind::Transient, 0, &RelayOptions::default()) != Action::Stop
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_as_the_first_answer_ends_it() {
        assert!(!denied(&mut Edge::default()));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_with_a_refusal_counts_from_the_first_one_and_not_from_the_outage_before() {
        for began in [Edge::works as fn(&mut Edge) -> _, |_| None] {
            let mut edge = Edge::default();
            began(&mut edge);
            // given an outage that is longer than auth_wait
            for _ in 0..60 {
                assert!(away(&mut edge));
                tokio::time::sleep(10 * SECOND).await;
            }
            // when the login is refused then
            for _ in 0..30 {
                assert!(denied(&mut edge));
                tokio::time::sleep(10 * SECOND).await;
            }
            // then it ends auth_wait after the first refusal
            assert!(!denied(&mut edge));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn anything_that_is_no_refusal_begins_the_patience_again() {
        let mut edge = Edge::default();
        edge.works();
        for step in 0..100 {
            assert!(denied(&mut edge), "{step}");
            tokio::time::sleep(200 * SECOND).await;
            if step % 2 == 0 {
                assert!(away(&mut edge));
            } else {
                edge.works();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_a_connection_breaks_as_soon_as_it_stands() {
        let options = RelayOptions::default();
        let mut edge = Edge::default();
        let pause = |edge: &mut Edge, passed| {
            edge.works();
            match edge.failed(FailureKind::Transient, passed, &options) {
                Action::RetryAfter(pause) => pause,
                Action::Stop => panic!("it is transient"),
            }
        };
        for _ in 0..20 {
            pause(&mut edge, 0);
        }
        assert!(pause(&mut edge, 0) >= options.backoff.max / 2);
        assert!(pause(&mut edge, 1) <= options.backoff.first, "a row came through");
    }
}
