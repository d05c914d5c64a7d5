//! How eagerly the socket is read: at once while little comes, in large pieces while much does.
//! Pure.
//!
//! A database's sender makes one `send` call a message, and each wakes a reader that waits. At high rates
//! that is most of a reader's work, so the kernel is asked to wake it only when there are some ten
//! kilobytes (`SO_RCVLOWAT`). The rate decides, and a short silence ends it: at low rates nothing
//! waits, at high ones a row waits for its neighbours at most [`PATIENCE`].

use std::time::{Duration, Instant};

/// How long a large read is waited for before the reader turns eager again. At the rate at which
/// large reads begin, they fill in this time.
pub(crate) const PATIENCE: Duration = Duration::from_millis(2);

/// Size of a large read in bytes.
pub(crate) const LARGE_READ_BYTES: usize = 32 << 10;

/// Bytes within [`PATIENCE`] at which large reads begin: 12 MB/s.
const BUSY_BYTES: usize = 24 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pace {
    large: bool,
    since: Instant,
    bytes: usize,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self { large: false, since: now, bytes: 0 }
    }

    /// Whether large reads are waited for.
    pub(crate) fn is_large(&self) -> bool {
        self.large
    }

    /// Counts a read; says whether large reads begin with it.
    pub(crate) fn count(&mut self, bytes: usize, now: Instant) -> bool {
        self.bytes += bytes;
        let busy = self.bytes >= BUSY_BYTES;
        if busy || now - self.since > PATIENCE {
            (self.since, self.bytes) = (now, 0);
        }
        let begins = busy && !self.large;
        self.large |= busy;
        begins
    }

    /// No large read came within [`PATIENCE`].
    pub(crate) fn waited(&mut self, now: Instant) {
        (self.large, self.since, self.bytes) = (false, now, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_rows_a_second_are_read_one_by_one() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for row in 0..10_000u32 {
            assert!(!pace.count(500, start + row * Duration::from_millis(1)));
        }
        assert!(!pace.is_large());
    }

    #[test]
    fn a_backlog_is_read_in_large_pieces_until_it_pauses() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let began =
            (0..1000u32).filter(|row| pace.count(500, start + *row * Duration::from_micros(10)));
        assert_eq!(began.count(), 1);
        assert!(pace.is_large());
        pace.waited(start);
        assert!(!pace.is_large());
    }
}
