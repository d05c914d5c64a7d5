//! When the memory in the database is written, and how far may be acknowledged before. Pure.
//!
//! It is written soon after rows were confirmed, and then seldom. What moves the slot through an
//! idle outbox is not written: the write would be log to be acknowledged itself, for ever. Only
//! when that brings the slot near the bound a new bound is needed, which is rare.

use std::time::Duration;

use tokio::time::Instant;

use super::super::lsn::Lsn;
use super::table::Write;

/// Between two writes while rows are confirmed.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while so much is confirmed that a crash of the server would repeat many rows.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
const BUSY_BYTES: u64 = 4 << 20;
/// The same while no row is confirmed.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of log that may be acknowledged before the next write, at least.
const BOUND_BYTES_MIN: u64 = 1 << 30;

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    /// What was written last; at first, where the slot stood.
    written: Lsn,
    /// Nothing beyond it may be acknowledged.
    bound: Lsn,
    /// Whether a row of this process is there, so that others stay away from it.
    is_claimed: bool,
    /// Whether the first write replaces whatever is there.
    replaces: bool,
    /// Whether the last write failed: the relay goes on without.
    has_failed: bool,
    /// What is being written.
    pending: Option<Write>,
    asked_at: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(slot_at: Lsn, replaces: bool) -> Self {
        Self {
            written: slot_at,
            bound: slot_at,
            is_claimed: false,
            replaces,
            has_failed: false,
            pending: None,
            asked_at: None,
        }
    }

    /// How far may be acknowledged.
    pub(super) fn allowed(&self) -> Lsn {
        // A memory that cannot be written stops nothing.
        if self.has_failed { Lsn(u64::MAX) } else { self.bound }
    }

    /// What to write now, if anything. `yielded` is the commit of the last row that was read.
    pub(super) fn due(&mut self, acknowledged: Lsn, yielded: Lsn, now: Instant) -> Option<Write> {
        if self.pending.is_some() {
            return None;
        }
        let waited = self.asked_at.map(|at| now - at);
        let is_over = |interval| waited.is_none_or(|waited| waited >= interval);
        let behind = acknowledged.bytes_since(self.written);
        // A commit's end, which is acknowledged, is behind its LSN.
        let has_rows = behind > 0 && yielded >= self.written;
        let nears_bound = behind >= BOUND_BYTES_MIN / 2;
        let is_due = match (self.is_claimed && !self.has_failed, has_rows) {
            (false, _) => is_over(INTERVAL),
            (true, true) if behind >= BUSY_BYTES => is_over(BUSY_INTERVAL),
            (true, true) => is_over(INTERVAL),
            (true, false) => nears_bound && is_over(IDLE_INTERVAL),
        };
        is_due.then(|| self.ask(acknowledged, false, now))
    }

    /// What to write so that so much may be acknowledged, at once.
    pub(super) fn extend(&mut self, acknowledged: Lsn, now: Instant) -> Write {
        self.ask(acknowledged, false, now)
    }

    /// What to write at the end.
    pub(super) fn last(&mut self, acknowledged: Lsn, now: Instant) -> Write {
        self.ask(acknowledged, true, now)
    }

    fn ask(&mut self, acknowledged: Lsn, is_clean: bool, now: Instant) -> Write {
        let confirmed = acknowledged.max(self.written);
        // Far enough that a database with much other traffic seldom meets it.
        let growth = confirmed.bytes_since(self.written).saturating_mul(4);
        let bound = match is_clean {
            true => confirmed,
            false => confirmed.saturating_add(BOUND_BYTES_MIN.saturating_add(growth)),
        };
        let (claims, replaces) = (!self.is_claimed, self.replaces);
        let write = Write { confirmed, bound, is_clean, claims, replaces };
        self.pending = Some(write.clone());
        self.asked_at = Some(now);
        write
    }

    /// The pending write is in the database.
    pub(super) fn written(&mut self) {
        let Some(write) = self.pending.take() else { return };
        self.written = write.confirmed;
        self.bound = write.bound;
        self.is_claimed = true;
        self.replaces = false;
        self.has_failed = false;
    }

    /// It is not, or another process wrote its own.
    pub(super) fn failed(&mut self) {
        self.pending = None;
        self.is_claimed = false;
        self.has_failed = true;
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(at: u64, now: Instant) -> Schedule {
        let mut schedule = Schedule::new(Lsn(at), false);
        let first = schedule.due(Lsn(at), Lsn(0), now).expect("the first write is due at once");
        assert!(first.claims && !first.is_clean);
        schedule.written();
        schedule
    }

    #[test]
    fn nothing_is_acknowledged_before_the_first_write_and_nothing_beyond_the_bound() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Lsn(100), false);
        assert_eq!(schedule.allowed(), Lsn(100));
        schedule.due(Lsn(100), Lsn(0), now).unwrap();
        assert_eq!(schedule.allowed(), Lsn(100));
        schedule.written();
        assert_eq!(schedule.allowed(), Lsn(100 + BOUND_BYTES_MIN));
    }

    #[test]
    fn a_memory_that_cannot_be_written_holds_nothing_back_and_is_tried_again() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Lsn(100), true);
        schedule.due(Lsn(100), Lsn(0), now).unwrap();
        schedule.failed();
        assert_eq!(schedule.allowed(), Lsn(u64::MAX));
        assert_eq!(schedule.due(Lsn(300), Lsn(200), now + BUSY_INTERVAL), None);
        let again = schedule.due(Lsn(300), Lsn(200), now + INTERVAL).unwrap();
        assert!(again.claims && again.replaces);
        schedule.written();
        assert_eq!(schedule.allowed(), Lsn(300 + BOUND_BYTES_MIN + 4 * 200));
    }

    #[test]
    fn rows_are_written_soon_and_then_seldom() {
        let start = Instant::now();
        let mut schedule = claimed(100, start);
        let now = start + INTERVAL;
        assert_eq!(schedule.due(Lsn(150), Lsn(99), now), None, "of before");
        // 120 is the commit of a row, 130 its end.
        assert_eq!(schedule.due(Lsn(130), Lsn(120), now).unwrap().confirmed, Lsn(130));
        assert_eq!(schedule.due(Lsn(140), Lsn(135), now + INTERVAL), None, "one at a time");
        schedule.written();
        assert_eq!(schedule.due(Lsn(140), Lsn(135), now + INTERVAL / 2), None);
        schedule.due(Lsn(140), Lsn(135), now + INTERVAL).unwrap();
        schedule.written();
        let much = Lsn(140 + BUSY_BYTES);
        assert_eq!(schedule.due(much, much, now + INTERVAL), None);
        schedule.due(much, much, now + INTERVAL + BUSY_INTERVAL).unwrap();
    }

    #[test]
    fn an_idle_outbox_writes_only_for_a_new_bound_and_never_more_than_once_a_minute() {
        let start = Instant::now();
        let mut schedule = claimed(100, start);
        let mut writes = 0;
        // Much other log: 100 MB a second, for an hour; then none, for another.
        for second in 1..=3600 {
            let at = Lsn(100 + second * 100_000_000).min(schedule.allowed());
            if schedule.due(at, Lsn(50), start + Duration::from_secs(second)).is_some() {
                schedule.written();
                writes += 1;
            }
        }
        assert!((50..=60).contains(&writes), "{writes}");
        let end = Lsn(100 + 3600 * 100_000_000);
        let mut idle = claimed(end.0, start);
        for second in 1..=3600 {
            // Its own progress, a few hundred bytes each time.
            let at = end.saturating_add(second * 200);
            assert_eq!(idle.due(at, Lsn(50), start + Duration::from_secs(second)), None);
        }
    }

    #[test]
    fn the_last_write_is_exact() {
        let start = Instant::now();
        let mut schedule = claimed(100, start);
        let last = schedule.last(Lsn(170), start);
        assert_eq!((last.confirmed, last.bound, last.is_clean), (Lsn(170), Lsn(170), true));
    }
}
