//! When a transaction was committed, as far as that can be believed. Pure.
//!
//! A session that replays changes under a replication origin may set its commit time, or leave it:
//! after `pg_replication_origin_session_setup` alone all its transactions commit at the time of its
//! first one (seen on 15 and 19), and one call of `pg_replication_origin_xact_setup` stands for all
//! after it, whatever it says: 2000-01-01 is 0 in the protocol.
//! Such a time would be the timestamp of a message, and brokers delete by timestamps. So the time
//! of receipt takes its place: in the message alone, never in the identity of a row.

use super::lsn::Lsn;
use super::pgoutput::Begin;

/// 2010-01-01. No server that decodes its log logically is as old.
const EARLIEST_MICROS: i64 = 1_262_304_000_000_000;

/// Further ahead of our own clock than any two clocks should be: one day.
const AHEAD_MICROS_MAX: i64 = 86_400_000_000;

/// The time of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CommitTime {
    /// Microseconds since 1970, UTC.
    pub(crate) unix_micros: i64,
    /// Whether it is the time of receipt.
    pub(crate) is_replaced: bool,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommitTimes {
    /// The time of receipt, where there is a clock at all.
    now: Option<i64>,
    /// The last transaction of an origin.
    last_of_origin: Option<(Lsn, i64)>,
    /// Rows whose time was replaced.
    pub(crate) replaced: u64,
}

impl CommitTimes {
    pub(crate) fn set_clock(&mut self, unix_micros: i64) {
        self.now = Some(unix_micros);
    }

    /// Of a transaction that began.
    pub(crate) fn of(&self, begin: &Begin) -> CommitTime {
        let sent = begin.committed_at_micros;
        match self.now {
            Some(now) if sent < EARLIEST_MICROS || sent > now.saturating_add(AHEAD_MICROS_MAX) => {
                CommitTime { unix_micros: now, is_replaced: true }
            }
            Some(_) | None => CommitTime { unix_micros: sent, is_replaced: false },
        }
    }

    /// Of one whose origin was announced: a time that stands still is none of its own.
    pub(crate) fn of_origin(&mut self, begin: &Begin) -> CommitTime {
        let sent = begin.committed_at_micros;
        let last = self.last_of_origin.replace((begin.final_lsn, sent));
        let stands = last.is_some_and(|(lsn, time)| lsn != begin.final_lsn && time == sent);
        match self.now.filter(|_| stands) {
            Some(now) => CommitTime { unix_micros: now, is_replaced: true },
            None => self.of(begin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;

    fn begin(lsn: u64, micros: i64) -> Begin {
        Begin { final_lsn: Lsn(lsn), committed_at_micros: micros }
    }

    #[test]
    fn a_time_that_cannot_be_gives_way_to_the_time_of_receipt() {
        let mut times = CommitTimes::default();
        let epoch = 946_684_800_000_000;
        // without a clock nothing can be judged
        assert!(!times.of(&begin(1, epoch)).is_replaced);
        times.set_clock(NOW);
        for micros in [epoch, 0, i64::MIN, NOW + 2 * AHEAD_MICROS_MAX, i64::MAX] {
            let expected = CommitTime { unix_micros: NOW, is_replaced: true };
            assert_eq!(times.of(&begin(1, micros)), expected, "{micros}");
        }
        for micros in [NOW, NOW - 30 * AHEAD_MICROS_MAX, NOW + AHEAD_MICROS_MAX / 2] {
            let expected = CommitTime { unix_micros: micros, is_replaced: false };
            assert_eq!(times.of(&begin(1, micros)), expected, "{micros}");
        }
    }

    #[test]
    fn the_time_of_an_origin_that_stands_still_is_replaced_from_its_second_transaction_on() {
        let mut times = CommitTimes::default();
        times.set_clock(NOW);
        let told = NOW - 1_000_000;
        assert!(!times.of_origin(&begin(1, told)).is_replaced);
        assert!(times.of_origin(&begin(2, told)).is_replaced);
        // the same transaction again, after a reconnect, or a time that moves
        assert!(times.of_origin(&begin(2, told)).unix_micros == told);
        assert!(!times.of_origin(&begin(3, told + 1)).is_replaced);
    }
}
