//! Growing pauses for what the broker refuses (`basic.nack`). Pure: the clock is passed in.
//!
//! A queue that is full refuses what it has no room for (`x-overflow = reject-publish`), and
//! RabbitMQ then nacks the publish, although other queues of the exchange have taken it: each
//! further attempt stores it there once more. So a route that was refused waits, longer each
//! time, and then a single message goes ahead of the others:
//!
//! ```text
//! nack ─ 1 s ─ one message: nack ─ 2 s ─ … ─ 30 s ─ one message: ack ─ all
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

/// Routes that are remembered; more than a ledger holds rows in flight to at once.
const ROUTES_MAX: usize = 20_000;
const PAUSE_FIRST: Duration = Duration::from_secs(1);

/// Exchange and routing key, as a number: two that share one only wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Route(u64);

impl Route {
    pub(super) fn new(exchange: &str, routing_key: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        (exchange, routing_key).hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What a message of a route may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    Go,
    /// Not sent: the route's pause lasts so much longer.
    Wait(Duration),
    /// Refused for as long as the operator allows, so it is given up.
    Over(Duration),
}

#[derive(Debug)]
struct Refused {
    since: Instant,
    times: u32,
    pause: Duration,
    until: Instant,
    /// Whether a message has gone ahead and is not judged yet.
    ahead: bool,
}

/// The routes that were refused and have not been accepted since.
#[derive(Debug)]
pub(super) struct Pauses {
    routes: HashMap<Route, Refused>,
    pause_max: Duration,
    /// For the single message to be judged; then another may try.
    judged_within: Duration,
    refused_max: Option<Duration>,
}

impl Pauses {
    pub(super) fn new(
        pause_max: Duration,
        judged_within: Duration,
        refused_max: Option<Duration>,
    ) -> Self {
        Self { routes: HashMap::new(), pause_max, judged_within, refused_max }
    }

    /// Whether a message of the route may be sent; the first one that may counts as sent.
    pub(super) fn leave(&mut self, route: Route, now: Instant) -> Leave {
        let Some(refused) = self.routes.get_mut(&route) else { return Leave::Go };
        let lasted = now.saturating_duration_since(refused.since);
        if self.refused_max.is_some_and(|max| lasted >= max) {
            return Leave::Over(lasted);
        }
        let left = refused.until.saturating_duration_since(now);
        if !left.is_zero() {
            return Leave::Wait(left);
        }
        refused.until = now + self.judged_within;
        refused.ahead = true;
        Leave::Go
    }

    /// The broker refused a message of the route. Gives how often, for how long, and the pause.
    pub(super) fn refused(&mut self, route: Route, now: Instant) -> (u32, Duration, Duration) {
        let full = self.routes.len() >= ROUTES_MAX;
        let refused = match self.routes.entry(route) {
            Entry::Occupied(entry) => {
                let refused = entry.into_mut();
                // Those that were in flight beside the first one say nothing new.
                if std::mem::take(&mut refused.ahead) {
                    refused.times += 1;
                    refused.pause = (refused.pause * 2).min(self.pause_max);
                    refused.until = now + refused.pause;
                }
                refused
            }
            Entry::Vacant(_) if full => {
                // Without a memory each attempt follows the lane's own backoff.
                self.routes.clear();
                return (1, Duration::ZERO, Duration::ZERO);
            }
            Entry::Vacant(entry) => {
                let pause = PAUSE_FIRST.min(self.pause_max);
                entry.insert(Refused {
                    since: now,
                    times: 1,
                    pause,
                    until: now + pause,
                    ahead: false,
                })
            }
        };
        let lasted = now.saturating_duration_since(refused.since);
        (refused.times, lasted, refused.until.saturating_duration_since(now))
    }

    /// The broker took a message of the route.
    pub(super) fn accepted(&mut self, route: Route) {
        if !self.routes.is_empty() {
            self.routes.remove(&route);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pauses(refused_max: Option<Duration>) -> Pauses {
        Pauses::new(30 * SECOND, 10 * SECOND, refused_max)
    }

    #[test]
    fn a_minute_of_refusals_costs_six_attempts_and_an_acceptance_ends_them() {
        let mut pauses = pauses(None);
        let (start, route) = (Instant::now(), Route::new("orders", "k"));
        let mut attempts = 0;
        for tenth in 0..600 {
            let now = start + tenth * SECOND / 10;
            if pauses.leave(route, now) == Leave::Go {
                attempts += 1;
                pauses.refused(route, now);
            }
        }
        assert_eq!(attempts, 6, "at 0, 1, 3, 7, 15 and 31 s");
        assert_eq!(pauses.leave(Route::new("orders", "other"), start), Leave::Go);
        pauses.accepted(route);
        assert_eq!(pauses.leave(route, start + 60 * SECOND), Leave::Go);
        assert_eq!(pauses.leave(route, start + 60 * SECOND), Leave::Go);
    }

    #[test]
    fn one_message_goes_ahead_of_the_others_after_a_pause() {
        let mut pauses = pauses(None);
        let (start, route) = (Instant::now(), Route::new("orders", "k"));
        // Three were in flight.
        for _ in 0..3 {
            assert_eq!(pauses.refused(route, start), (1, Duration::ZERO, SECOND));
        }
        assert_eq!(pauses.leave(route, start), Leave::Wait(SECOND));
        let later = start + SECOND;
        assert_eq!(pauses.leave(route, later), Leave::Go);
        assert_eq!(pauses.leave(route, later), Leave::Wait(10 * SECOND));
        assert_eq!(pauses.refused(route, later), (2, SECOND, 2 * SECOND));
        // One that is lost without an answer holds the others no longer than that.
        assert_eq!(pauses.leave(route, later + 2 * SECOND), Leave::Go);
        assert_eq!(pauses.leave(route, later + 12 * SECOND), Leave::Go);
    }

    #[test]
    fn the_end_that_was_chosen_comes() {
        let mut pauses = pauses(Some(60 * SECOND));
        let (start, route) = (Instant::now(), Route::new("orders", "k"));
        pauses.refused(route, start);
        assert_eq!(pauses.leave(route, start + 59 * SECOND), Leave::Go);
        assert_eq!(pauses.leave(route, start + 60 * SECOND), Leave::Over(60 * SECOND));
    }

    #[test]
    fn memory_is_bounded() {
        let mut pauses = pauses(None);
        let now = Instant::now();
        for number in 0..ROUTES_MAX * 2 {
            pauses.refused(Route::new("orders", &number.to_string()), now);
        }
        assert!(pauses.routes.len() <= ROUTES_MAX);
    }
}
