//! What has been yielded, what has been acknowledged, and what a new connection repeats of it.
//! Pure.
//!
//! A server resumes at a position and sends every transaction after it anew, whole. What of that
//! has been yielded already is in the ledger, or settled, and must not be sent twice.
//!
//! ```text
//!   acknowledged                 yielded              a new connection starts at `acknowledged`
//!        ▼                          ▼
//!  ──────┤ T1 ┃ T2 ┃ T3 r0 r1 r2    ┊ r3 ┃ T4 …       and repeats T1, T2 and r0..r2 of T3,
//!        └──────── dropped ─────────┘└─ yielded ─▶    which are dropped here
//! ```
//!
//! A change counts as yielded when it is handed to the caller of `next`, never before: what a
//! session had decoded when it broke has gone with it, and must come again.
//!
//! Positions are compared only within one log: `session` refuses another system or timeline.

use super::lsn::Lsn;
use crate::source::Change;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Resume {
    /// The last row yielded: its transaction's commit, and its ordinal.
    row: Option<(u64, u32)>,
    /// The last boundary yielded.
    boundary: Lsn,
}

impl Resume {
    /// Whether a change is new; remembers it if so.
    ///
    /// Rows come in the order of their commits and ordinals, so "new" is "greater": within one
    /// log, replayed transactions have the same commit LSN, and their rows the same ordinals.
    pub(crate) fn is_new(&mut self, change: &Change<Lsn>) -> bool {
        match change {
            Change::Row(row) => {
                let place = (row.identity.transaction, row.identity.ordinal);
                let is_new = self.row.is_none_or(|last| place > last);
                if is_new {
                    self.row = Some(place);
                }
                is_new
            }
            Change::Commit(position) | Change::Idle(position) => {
                let is_new = *position > self.boundary;
                if is_new {
                    self.boundary = *position;
                }
                is_new
            }
        }
    }

    /// Commit of the last row yielded; 0/0 before the first.
    pub(crate) fn last_commit(&self) -> Lsn {
        self.row.map_or(Lsn(0), |(commit, _)| Lsn(commit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{Fingerprint, LogId, RowIdentity};
    use crate::outbox::OutboxRow;

    fn row(commit: u64, ordinal: u32) -> Change<Lsn> {
        let identity = RowIdentity {
            log: LogId(1),
            transaction: commit,
            ordinal,
            fingerprint: Fingerprint(0),
        };
        Change::Row(OutboxRow::new(identity, 0))
    }

    /// A log of transactions: (commit LSN, rows); the end of each is 8 bytes later.
    fn stream(log: &[(u64, u32)], from: Lsn) -> Vec<Change<Lsn>> {
        let mut changes = Vec::new();
        for (commit, rows) in log {
            if Lsn(commit + 8) > from {
                changes.extend((0..*rows).map(|ordinal| row(*commit, ordinal)));
                changes.push(Change::Commit(Lsn(commit + 8)));
                changes.push(Change::Idle(Lsn(commit + 9)));
            }
        }
        changes
    }

    fn name(change: &Change<Lsn>) -> (u64, Option<u32>) {
        match change {
            Change::Row(row) => (row.identity.transaction, Some(row.identity.ordinal)),
            Change::Commit(position) | Change::Idle(position) => (position.0, None),
        }
    }

    proptest! {
        /// Whatever the cuts and the acknowledgements between them: every row is yielded once,
        /// in order, and boundaries only ever rise.
        #[test]
        fn nothing_is_yielded_twice_and_nothing_is_left_out(
            rows in prop::collection::vec(0u32..5, 1..20),
            cuts in prop::collection::vec((0usize..60, 0usize..20), 0..10),
        ) {
            let log: Vec<(u64, u32)> =
                rows.iter().zip(1u64..).map(|(rows, number)| (number * 100, *rows)).collect();
            let whole = stream(&log, Lsn(0));
            let mut resume = Resume::default();
            let mut yielded: Vec<(u64, Option<u32>)> = Vec::new();
            let mut acknowledged = Lsn(0);
            for (length, ack) in cuts {
                for change in stream(&log, acknowledged).into_iter().take(length) {
                    if resume.is_new(&change) {
                        yielded.push(name(&change));
                    }
                }
                // Only a commit that was yielded can be acknowledged.
                let commits: Vec<u64> =
                    yielded.iter().filter(|change| change.1.is_none()).map(|c| c.0).collect();
                if let Some(position) = commits.get(ack) {
                    acknowledged = acknowledged.max(Lsn(*position));
                }
            }
            for change in stream(&log, acknowledged) {
                if resume.is_new(&change) {
                    yielded.push(name(&change));
                }
            }
            // An idle position may be left out: one that is acknowledged stands for all before it.
            let told = |change: &(u64, Option<u32>)| change.1.is_some() || change.0 % 100 == 8;
            let expected: Vec<_> = whole.iter().map(name).filter(told).collect();
            let boundaries = yielded.iter().filter(|change| change.1.is_none());
            prop_assert!(boundaries.map(|change| change.0).is_sorted());
            yielded.retain(told);
            prop_assert_eq!(yielded, expected);
        }
    }

    #[test]
    fn a_connection_lost_between_the_last_row_and_its_commit_repeats_only_the_commit() {
        let mut resume = Resume::default();
        assert!(resume.is_new(&row(100, 0)));
        let again = [row(100, 0), Change::Commit(Lsn(108))];
        let new: Vec<bool> = again.iter().map(|change| resume.is_new(change)).collect();
        assert_eq!(new, [false, true]);
        assert_eq!(resume.last_commit(), Lsn(100));
    }
}
