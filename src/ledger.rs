//! Which rows are unsettled, and how far we may acknowledge. Pure: knows neither time nor tokio,
//! nor what a position means.
//!
//! ```text
//!            first                                        next
//!              ▼                                           ▼
//!   rows   … ──┤ ✗  ✓  ✓ ┃ ✗  ✓ ┃ ✓  ✓  ✓ ┃ ✗ ├── enter ▶
//!              └─ oldest  ┃      ┃         ┃
//!                unsettled P1     P2        P3   boundaries: "all before me settled: P"
//! ```
//!
//! A boundary is reached when every row entered before it is settled: the latest confirm decides
//! nothing, the oldest missing one everything.

use std::collections::VecDeque;

/// The right to settle one row, once. Dropping it settles nothing: the row stays unsettled and the
/// position stays before it, so a lost ticket stalls and never loses.
#[must_use = "a ticket that is dropped stalls the position for good"]
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Rows in the order in which they were entered, and the positions between them.
#[derive(Debug)]
pub struct Ledger<P> {
    rows_max: usize,
    /// Sequence number of the oldest row in `settled`; all before it are settled.
    first: u64,
    /// From `first` on: whether the row is settled. The front, if any, is not.
    settled: VecDeque<bool>,
    /// Positions, each with the sequence number that the first row after it has or will have.
    /// Ascending, and no two with the same number: of two boundaries without a row between them
    /// only the later one says anything.
    boundaries: VecDeque<(u64, P)>,
    unsettled: usize,
}

impl<P> Ledger<P> {
    /// A ledger that is full at `rows_max` rows, counted from the oldest unsettled one on.
    pub fn new(rows_max: usize) -> Self {
        assert!(rows_max > 0, "a ledger without room would wait for ever");
        Self {
            rows_max,
            first: 0,
            settled: VecDeque::new(),
            boundaries: VecDeque::new(),
            unsettled: 0,
        }
    }

    /// Whether no row should be entered now. Counts from the oldest unsettled row on, settled ones
    /// behind it included: a stuck row bounds how far the others may run ahead.
    pub fn is_full(&self) -> bool {
        self.settled.len() >= self.rows_max
    }

    /// Whether every row is settled.
    pub fn is_empty(&self) -> bool {
        self.settled.is_empty()
    }

    /// Rows that were entered and are not settled.
    pub fn unsettled(&self) -> usize {
        self.unsettled
    }

    /// How many rows were ever entered.
    pub fn entered(&self) -> u64 {
        self.first + self.settled.len() as u64
    }

    /// How many of the rows entered first are all settled: the oldest unsettled row's number.
    pub fn settled_prefix(&self) -> u64 {
        self.first
    }

    /// Enters a row; the caller has asked [`Ledger::is_full`].
    pub fn enter(&mut self) -> Ticket {
        assert!(!self.is_full(), "every queue behind the ledger relies on its bound");
        let ticket = Ticket(self.entered());
        self.settled.push_back(false);
        self.unsettled += 1;
        ticket
    }

    /// Says that `position` may be acknowledged once every row entered so far is settled.
    pub fn boundary(&mut self, position: P) {
        let number = self.entered();
        match self.boundaries.back_mut() {
            Some((last, replaced)) if *last == number => *replaced = position,
            _ => self.boundaries.push_back((number, position)),
        }
    }

    /// Settles a row: its delivery was confirmed.
    pub fn settle(&mut self, ticket: Ticket) {
        let row = ticket
            .0
            .checked_sub(self.first)
            .and_then(|index| self.settled.get_mut(usize::try_from(index).ok()?))
            .expect("a ticket is settled once, in the ledger that gave it");
        assert!(!*row, "a ticket is settled once");
        *row = true;
        self.unsettled -= 1;
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.first += 1;
        }
    }

    /// The furthest position that was reached since the last call, if any was.
    pub fn advance(&mut self) -> Option<P> {
        let mut reached = None;
        while self.boundaries.front().is_some_and(|(number, _)| *number <= self.first) {
            reached = self.boundaries.pop_front().map(|(_, position)| position);
        }
        reached
    }
}

#[cfg(test)]
mod tests;
