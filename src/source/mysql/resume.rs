//! What has been handed over, what has been acknowledged, and what a new connection repeats of it.
//! Pure.
//!
//! ```text
//!   acknowledged: a GTID set       handed over, not acknowledged        a new connection is asked
//!   (and file, position)           ▼                                    for what is not in the set
//!  ──────┤ T1 ┃ T2 ┃ idle T3..T9 ┃ T10 r0 r1 ┊ r2 ┃ T11 …
//!        └── a queue of ends ─────┘└── open ──┘    and repeats T1, T2 and r0, r1 of T10,
//!                                                  which are dropped here
//! ```
//!
//! A change counts as handed over when it is put into the channel to the relay: the reader connects
//! again only after the relay has taken the error behind it, and with that all before it.
//!
//! Two transactions of different servers may change places in another server's log, so nothing
//! here goes by order: a transaction is recognised by its name and the time of its commit. Only
//! where a server gives no names it is recognised by its place, and then it is always the same
//! server. Ends without rows are not recognised at all: they wait once more, behind what was there,
//! and take nothing back when they are acknowledged.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::decoder::{Decoded, TransactionEnd};
use super::gtid::{Flavor, Gtid, GtidSet};
use super::store::Steps;
use crate::identity::LogId;
use crate::outbox::OutboxRow;
use crate::source::Change;

/// A transaction's end that was handed over. Later ones are greater.
#[derive(Debug, Clone)]
pub struct MySqlPosition {
    pub(crate) sequence: u64,
    file: Arc<str>,
    position: u64,
}

impl fmt::Display for MySqlPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.position)
    }
}

/// A place in the log: everything before it is behind us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// All transactions that are behind us; empty where the server gives none a name.
    pub(crate) gtids: GtidSet,
    /// Where the last of them ended; empty before the first.
    pub(crate) file: Arc<str>,
    /// In that file.
    pub(crate) position: u64,
}

impl Place {
    /// Whether that place of the same server is behind this one in its log. A number that became
    /// longer is a greater one.
    fn is_before(&self, file: &str, position: u64) -> bool {
        (self.file.len(), &*self.file, self.position) < (file.len(), file, position)
    }
}

/// A row's transaction, as rows carry it, and when it was committed: a server that lost its last
/// transactions with its machine gives their numbers to others, whose rows are no repeats.
type Name = (LogId, u64, i64);

fn name(row: &OutboxRow) -> Name {
    (row.identity.log, row.identity.transaction, row.committed_at_micros)
}

/// The transactions of an end.
#[derive(Debug)]
enum Gtids {
    None,
    One(Gtid),
    /// Of several without rows.
    Many(GtidSet),
}

/// An end that waits for its acknowledgement; of many without rows all but the first stand
/// together.
#[derive(Debug)]
struct Waiting {
    sequence: u64,
    gtids: Gtids,
    file: Arc<str>,
    position: u64,
    /// Whose rows it ends; `None` where there were none.
    rows_of: Option<Name>,
    /// Whether it is worth a write: something in it is not our own.
    foreign: bool,
    /// Bytes of log that had been received when it was handed over.
    received_bytes: u64,
}

/// What the present connection repeats.
#[derive(Debug, Default)]
struct Repeated {
    /// Transactions that were handed over whole.
    whole: HashSet<Name>,
    /// The one of which so many rows were.
    open: Option<(Name, u32)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Resume {
    acknowledged: Place,
    waiting: VecDeque<Waiting>,
    sequence: u64,
    /// Of the transaction whose end was not handed over: how many rows were.
    open: Option<(Name, u32)>,
    /// The transaction of the last row that arrived, handed over or not, until its end.
    arriving: Option<Name>,
    repeated: Repeated,
    /// How many ends were acknowledged, and how many of them are worth a write.
    steps: Steps,
    received_bytes: u64,
    acknowledged_bytes: u64,
}

impl Resume {
    /// Everything before `place` was acknowledged in an earlier life.
    pub(crate) fn new(place: Place) -> Self {
        Self {
            acknowledged: place,
            waiting: VecDeque::new(),
            sequence: 0,
            open: None,
            arriving: None,
            repeated: Repeated::default(),
            steps: Steps::default(),
            received_bytes: 0,
            acknowledged_bytes: 0,
        }
    }

    /// The same at `place`, whose rows are read from the table once more. What was handed over
    /// before may still be acknowledged, and stands for nothing here.
    pub(crate) fn restarted(&self, place: Place) -> Self {
        Self { sequence: self.sequence, steps: self.steps, ..Self::new(place) }
    }

    /// Number of the last end that was handed over.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Everything up to here is durable downstream.
    pub(crate) fn acknowledged(&self) -> &Place {
        &self.acknowledged
    }

    /// Where a new connection has to begin; what it repeats is dropped from now on.
    pub(crate) fn reconnect(&mut self) -> Place {
        self.repeated.whole = self.waiting.iter().filter_map(|end| end.rows_of).collect();
        // What was to be dropped of a transaction that has not come again is still to be dropped.
        self.repeated.open = self.open.take().or(self.repeated.open);
        self.arriving = None;
        self.acknowledged.clone()
    }

    /// Notes so many bytes of log as received.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.received_bytes += bytes as u64;
    }

    /// Bytes of log that were received and not acknowledged.
    pub(crate) fn behind_bytes(&self) -> u64 {
        self.received_bytes - self.acknowledged_bytes
    }

    /// Turns what was decoded into what is handed over, and counts it as that. Of several ends in
    /// a row without rows only the last becomes a change.
    pub(crate) fn hand_over(
        &mut self,
        decoded: impl IntoIterator<Item = Decoded>,
        changes: &mut Vec<Change<MySqlPosition>>,
    ) {
        for one in decoded {
            match one {
                Decoded::Row(row) => changes.extend(self.row(row).map(Change::Row)),
                Decoded::End(end) => {
                    let has_rows = end.rows > 0;
                    let Some(position) = self.end(end) else { continue };
                    match changes.last_mut() {
                        _ if has_rows => changes.push(Change::Commit(position)),
                        Some(Change::Idle(last)) => *last = position,
                        Some(Change::Row(_) | Change::Commit(_)) | None => {
                            changes.push(Change::Idle(position));
                        }
                    }
                }
            }
        }
    }

    fn row(&mut self, row: OutboxRow) -> Option<OutboxRow> {
        let (name, ordinal) = (name(&row), row.identity.ordinal);
        self.arriving = Some(name);
        if self.repeated.whole.contains(&name) {
            return None;
        }
        if self.repeated.open.is_some_and(|(open, rows)| open == name && ordinal < rows) {
            return None;
        }
        self.open = Some((name, ordinal.saturating_add(1)));
        Some(row)
    }

    fn end(&mut self, end: TransactionEnd) -> Option<MySqlPosition> {
        let rows_of = self.arriving.take();
        if let Some(name) = rows_of {
            if self.repeated.whole.remove(&name) {
                return None;
            }
            self.repeated.open.take_if(|(open, _)| *open == name);
            self.open.take_if(|(open, _)| *open == name);
        }
        self.sequence += 1;
        let position = MySqlPosition {
            sequence: self.sequence,
            file: Arc::clone(&end.file),
            position: end.position,
        };
        // Into the last of two only: one that grew for ever would never be acknowledged, since what
        // is, is always a little behind.
        let without_rows = self.waiting.iter().rev().take(2).filter(|end| end.rows_of.is_none());
        let has_two = without_rows.count() == 2;
        match self.waiting.back_mut() {
            Some(last) if rows_of.is_none() && has_two => {
                last.sequence = self.sequence;
                last.file = end.file;
                last.position = end.position;
                last.foreign |= !end.own;
                last.received_bytes = self.received_bytes;
                if let Some(gtid) = end.gtid {
                    last.gtids.add(gtid, self.acknowledged.gtids.flavor());
                }
            }
            Some(_) | None => self.waiting.push_back(Waiting {
                sequence: self.sequence,
                gtids: end.gtid.map_or(Gtids::None, Gtids::One),
                file: end.file,
                position: end.position,
                rows_of,
                foreign: !end.own,
                received_bytes: self.received_bytes,
            }),
        }
        Some(position)
    }

    /// Everything up to `position` is durable downstream: its transactions are folded into the set.
    pub(crate) fn acknowledge(&mut self, position: &MySqlPosition) {
        while self.waiting.front().is_some_and(|end| end.sequence <= position.sequence) {
            let Some(end) = self.waiting.pop_front() else { return };
            // What has no rows may be here for the second time, behind what came after it.
            let is_new = match end.gtids {
                Gtids::None => self.acknowledged.is_before(&end.file, end.position),
                Gtids::One(gtid) if end.rows_of.is_some() => {
                    self.acknowledged.gtids.add(&gtid);
                    true
                }
                Gtids::One(gtid) => {
                    self.acknowledged.gtids.raise(&gtid);
                    true
                }
                Gtids::Many(gtids) => {
                    self.acknowledged.gtids.union_with(&gtids);
                    true
                }
            };
            if is_new {
                self.acknowledged.file = end.file;
                self.acknowledged.position = end.position;
            }
            self.acknowledged_bytes = end.received_bytes;
            self.steps.all += 1;
            self.steps.foreign += u64::from(end.foreign);
            self.steps.rows += u64::from(end.rows_of.is_some());
        }
    }

    /// How far the acknowledgements came; 0 before the first of this life.
    pub(crate) fn steps(&self) -> Steps {
        self.steps
    }
}

impl Gtids {
    fn add(&mut self, gtid: Gtid, flavor: Flavor) {
        match self {
            Self::None => *self = Self::One(gtid),
            Self::One(first) => {
                let mut gtids = GtidSet::empty(flavor);
                gtids.add(first);
                gtids.raise(&gtid);
                *self = Self::Many(gtids);
            }
            Self::Many(gtids) => gtids.raise(&gtid),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{Fingerprint, RowIdentity};

    const SOURCE: u128 = 7;

    fn gtid(number: u64) -> Gtid {
        Gtid::MySql { source: SOURCE, tag: None, number }
    }

    fn empty() -> Place {
        Place { gtids: GtidSet::empty(Flavor::MySql), file: "".into(), position: 0 }
    }

    fn transaction(number: u64, rows: u32) -> Vec<Decoded> {
        let log = LogId::mysql(SOURCE, None);
        let row = |ordinal| {
            let fingerprint = Fingerprint(0);
            let identity = RowIdentity { log, transaction: number, ordinal, fingerprint };
            Decoded::Row(OutboxRow::new(identity, 0))
        };
        let end = TransactionEnd {
            gtid: Some(gtid(number)),
            file: "binlog.000001".into(),
            position: number * 100,
            rows,
            own: false,
        };
        (0..rows).map(row).chain([Decoded::End(end)]).collect()
    }

    /// What a server sends that is asked for what is not in `place`.
    fn stream(log: &[(u64, u32)], place: &Place) -> Vec<Decoded> {
        let new = log.iter().filter(|(number, _)| !place.gtids.contains(&gtid(*number)));
        new.flat_map(|(number, rows)| transaction(*number, *rows)).collect()
    }

    proptest! {
        /// Whatever the cuts and the acknowledgements between them: every row is handed over once
        /// and in order, and what was acknowledged stands exactly for the transactions before it.
        #[test]
        fn nothing_is_handed_over_twice_and_nothing_is_left_out(
            rows in prop::collection::vec(0u32..5, 1..20),
            cuts in prop::collection::vec((0usize..60, 0usize..20), 0..10),
        ) {
            let log: Vec<(u64, u32)> = (1u64..).zip(rows.iter().copied()).collect();
            let mut resume = Resume::new(empty());
            let mut changes = Vec::new();
            let mut told = 0;
            for (length, acknowledge) in cuts.into_iter().chain([(usize::MAX, usize::MAX)]) {
                let place = resume.reconnect();
                let coming = stream(&log, &place).into_iter().take(length);
                resume.hand_over(coming, &mut changes);
                let positions: Vec<(usize, MySqlPosition)> = changes
                    .iter()
                    .enumerate()
                    .filter_map(|(at, change)| match change {
                        Change::Commit(position) | Change::Idle(position) => Some((at, position.clone())),
                        Change::Row(_) => None,
                    })
                    .collect();
                let last = positions.len().saturating_sub(1);
                let Some((at, position)) = positions.get(acknowledge.min(last)) else { continue };
                if *at >= told {
                    resume.acknowledge(position);
                    told = *at;
                }
                // Every transaction in the set has all of its rows among what was handed over
                // before the position.
                for (number, rows) in &log {
                    if resume.acknowledged().gtids.contains(&gtid(*number)) {
                        let before = changes.iter().take(told).filter(|change| matches!(
                            change, Change::Row(row) if row.identity.transaction == *number
                        ));
                        prop_assert_eq!(before.count(), *rows as usize);
                    }
                }
            }
            let names: Vec<(u64, u32)> = changes
                .iter()
                .filter_map(|change| match change {
                    Change::Row(row) => Some((row.identity.transaction, row.identity.ordinal)),
                    Change::Commit(_) | Change::Idle(_) => None,
                })
                .collect();
            let all = log.iter().flat_map(|(n, rows)| (0..*rows).map(|ordinal| (*n, ordinal)));
            prop_assert_eq!(names, all.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_connection_lost_between_the_last_row_and_the_end_repeats_only_the_end() {
        let mut resume = Resume::new(empty());
        let mut changes = Vec::new();
        resume.hand_over(transaction(1, 2).into_iter().take(2), &mut changes);
        assert_eq!(changes.len(), 2);
        let _ = resume.reconnect();
        resume.hand_over(transaction(1, 2), &mut changes);
        assert!(matches!(&changes[..], [_, _, Change::Commit(_)]));
    }

    #[test]
    fn a_transaction_that_another_server_brings_later_is_still_cut_where_it_was() {
        // given one row of two of transaction 1
        let mut resume = Resume::new(empty());
        let mut changes = Vec::new();
        resume.hand_over(transaction(1, 2).into_iter().take(1), &mut changes);
        // when the next server brings transaction 2 first, and breaks, and brings 1 then
        let _ = resume.reconnect();
        resume.hand_over(transaction(2, 1), &mut changes);
        let _ = resume.reconnect();
        resume.hand_over(transaction(2, 1), &mut changes);
        resume.hand_over(transaction(1, 2), &mut changes);
        // then its first row does not come again
        let rows = changes.iter().filter(|change| matches!(change, Change::Row(_)));
        assert_eq!(rows.count(), 3);
    }

    /// A transaction as a server of this kind names it: `gtid` of MariaDB, or by its place alone.
    fn of_other_kinds(number: u64, rows: u32, gtid: Option<Gtid>) -> Vec<Decoded> {
        let mut decoded = transaction(number, rows);
        if let Some(Decoded::End(end)) = decoded.last_mut() {
            end.gtid = gtid;
        }
        decoded
    }

    #[test]
    fn an_end_without_rows_that_comes_again_takes_nothing_back() {
        for flavor in [Flavor::MariaDb, Flavor::MySql] {
            let gtid = |number| match flavor {
                Flavor::MariaDb => Some(Gtid::MariaDb { domain: 0, server: 1, number }),
                Flavor::MySql => None,
            };
            // given rows of transactions 1 and 3 that wait for a broker, and 2 without rows
            let mut resume = Resume::new(Place { gtids: GtidSet::empty(flavor), ..empty() });
            let log = || (1..=3).flat_map(|n| of_other_kinds(n, u32::from(n != 2), gtid(n)));
            let mut changes = Vec::new();
            resume.hand_over(log(), &mut changes);
            // when all comes again and is acknowledged
            let _ = resume.reconnect();
            resume.hand_over(log(), &mut changes);
            let rows = changes.iter().filter(|change| matches!(change, Change::Row(_)));
            assert_eq!(rows.count(), 2);
            let Some(Change::Commit(position) | Change::Idle(position)) = changes.pop() else {
                panic!("a position")
            };
            resume.acknowledge(&position);
            // then nothing of it comes for a third time
            let mut expected = GtidSet::empty(flavor);
            gtid(3).iter().for_each(|gtid| expected.add(gtid));
            assert_eq!(resume.acknowledged().gtids, expected);
            if flavor == Flavor::MySql {
                assert_eq!(resume.acknowledged().position, 300);
            }
        }
    }

    #[test]
    fn places_without_names_go_forward_over_the_files() {
        let mut resume = Resume::new(Place { file: "binlog.000009".into(), ..empty() });
        let files = ["binlog.999999", "binlog.1000000", "binlog.000010"];
        let mut changes = Vec::new();
        for (file, expected) in files.into_iter().zip([files[0], files[1], files[1]]) {
            let mut decoded = of_other_kinds(1, 0, None);
            if let Some(Decoded::End(end)) = decoded.last_mut() {
                end.file = file.into();
            }
            resume.hand_over(decoded, &mut changes);
            let Some(Change::Idle(position)) = changes.pop() else { panic!("a position") };
            resume.acknowledge(&position);
            assert_eq!(*resume.acknowledged().file, *expected);
        }
    }

    #[test]
    fn an_acknowledgement_counts_although_more_ends_came_meanwhile() {
        // given a busy neighbour, whose ends go over faster than they are acknowledged
        let mut resume = Resume::new(empty());
        let mut before: Option<MySqlPosition> = None;
        for number in 1..=100 {
            let mut changes = Vec::new();
            resume.hand_over(transaction(number, 0), &mut changes);
            let Some(Change::Idle(position)) = changes.pop() else { panic!("a position") };
            if let Some(before) = before.replace(position) {
                resume.acknowledge(&before);
            }
        }
        // then the position follows all the same, and what waits is little
        assert!(resume.acknowledged().gtids.contains(&gtid(90)));
        assert!(resume.waiting.len() <= 2);
    }

    #[test]
    fn another_transaction_under_a_name_that_was_handed_over_is_none_of_its_repeats() {
        let at = |committed_at_micros, number, rows| {
            let mut decoded = transaction(number, rows);
            for one in &mut decoded {
                if let Decoded::Row(row) = one {
                    row.committed_at_micros = committed_at_micros;
                }
            }
            decoded
        };
        // given transaction 1, and a row of 2, which the server lost when its machine failed
        let mut resume = Resume::new(empty());
        let mut changes = Vec::new();
        resume.hand_over(at(5, 1, 1), &mut changes);
        resume.hand_over(at(6, 2, 2).into_iter().take(1), &mut changes);
        // when it gives their numbers to others
        let _ = resume.reconnect();
        changes.clear();
        resume.hand_over(at(7, 1, 1), &mut changes);
        resume.hand_over(at(8, 2, 2), &mut changes);
        // then their rows go over
        let rows = changes.iter().filter(|change| matches!(change, Change::Row(_)));
        assert_eq!(rows.count(), 3);
    }

    #[test]
    fn our_own_writes_alone_are_not_worth_a_write() {
        let mut resume = Resume::new(empty());
        let mut end = |number, own| {
            let end = TransactionEnd {
                gtid: Some(gtid(number)),
                file: "binlog.000001".into(),
                position: number * 100,
                rows: 0,
                own,
            };
            let mut changes = Vec::new();
            resume.hand_over([Decoded::End(end)], &mut changes);
            let Some(Change::Idle(position)) = changes.pop() else { panic!("an idle position") };
            resume.acknowledge(&position);
            resume.steps()
        };
        let steps = |all, foreign| Steps { all, foreign, rows: 0 };
        assert_eq!(end(1, true), steps(1, 0));
        assert_eq!(end(2, false), steps(2, 1));
        assert_eq!(end(3, true), steps(3, 1));
    }
}
