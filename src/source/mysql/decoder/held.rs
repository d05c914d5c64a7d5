//! Outbox rows of the open transaction that are not yet handed over.
//!
//! Owns how long they wait. A small transaction is held until its end, so that one which is
//! rolled back in the log leaves nothing behind; a large one streams, since that happens only
//! where tables of two kinds of engine were changed in one transaction. After a SAVEPOINT, and in
//! an XA transaction, more may come that takes rows back: then all is held, up to a bound of its
//! own, and what is much of it in memory of its own.
//!
//! ```text
//! ordinals:  0 … handed over … | … held …
//!                                 ▲ savepoint: how many rows were before it
//! ```

use bytes::Bytes;

use super::{DecodeError, Decoded};
use crate::budget::Budget;
use crate::outbox::OutboxRow;

/// A transaction with more rows streams.
const ROWS_HELD_MAX: usize = 1000;
/// A transaction with more bytes streams.
const BYTES_HELD_MAX: usize = 1024 * 1024;
/// After so many bytes of log, rows that are still held are copied out of what they were read with:
/// small ones between the large rows of another table would pin all of those.
const PINNED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A transaction has hardly more than a few; each row of a loop may have its own.
const SAVEPOINTS_MAX: usize = 10_000;

#[derive(Debug)]
pub(super) struct Held {
    rows: Vec<OutboxRow>,
    /// How many of these were copied out.
    copied: usize,
    /// Bytes of events since the first row that was not.
    passed: usize,
    /// Of the events from which the rows came: what they pin.
    bytes: usize,
    bytes_max: usize,
    handed_over: u32,
    /// Everything stays until the end.
    is_holding: bool,
    savepoints: Vec<Savepoint>,
}

#[derive(Debug)]
struct Savepoint {
    name: Vec<u8>,
    /// Outbox rows before it, handed over or held.
    count: u32,
    /// Held bytes before it.
    bytes: usize,
}

impl Held {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            rows: Vec::new(),
            copied: 0,
            passed: 0,
            bytes: 0,
            bytes_max,
            handed_over: 0,
            is_holding: false,
            savepoints: Vec::new(),
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// A new transaction; what the last one allocated is used again, within the usual bounds.
    pub(super) fn begin(&mut self) {
        self.rows.clear();
        self.rows.shrink_to(ROWS_HELD_MAX);
        self.copied = 0;
        self.passed = 0;
        self.bytes = 0;
        self.handed_over = 0;
        self.is_holding = false;
        self.savepoints.clear();
        self.savepoints.shrink_to(1);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Outbox rows of the transaction so far: the ordinal of the next one.
    pub(super) fn count(&self) -> u32 {
        // `push` and `added` keep it within bounds.
        let held = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        self.handed_over.saturating_add(held)
    }

    /// From here on everything stays.
    pub(super) fn hold(&mut self) {
        self.is_holding = true;
    }

    pub(super) fn push(&mut self, row: OutboxRow) {
        self.rows.push(row);
    }

    /// An event comes after what is held.
    pub(super) fn pass(&mut self, event_bytes: usize, budget: &Budget) {
        if self.copied == self.rows.len() {
            return;
        }
        self.passed = self.passed.saturating_add(event_bytes);
        if self.passed > PINNED_BYTES_MAX {
            for row in self.rows.iter_mut().skip(self.copied) {
                row.copy_out(|buffer| budget.hold(buffer));
            }
            self.copied = self.rows.len();
            self.passed = 0;
        }
    }

    /// An event's rows were pushed: hands over, where the transaction is large.
    pub(super) fn added(
        &mut self,
        event_bytes: usize,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        self.bytes = self.bytes.saturating_add(event_bytes);
        if self.count() == u32::MAX {
            return Err(DecodeError::TooManyRows);
        }
        if self.is_holding {
            if self.bytes > self.bytes_max {
                return Err(DecodeError::HeldTooMuch { bytes_max: self.bytes_max });
            }
            if self.bytes > BYTES_HELD_MAX {
                // Out of the buffers that the relay's bound counts: it would read no further, and
                // the end of this transaction would never come.
                for row in self.rows.iter_mut().skip(self.copied) {
                    row.copy_out(Bytes::from);
                }
                self.copied = self.rows.len();
                self.passed = 0;
            }
        } else if self.rows.len() > ROWS_HELD_MAX || self.bytes > BYTES_HELD_MAX {
            self.hand_over_all(out);
        }
        Ok(())
    }

    /// Hands over what is held; how many rows the transaction has given by now.
    pub(super) fn hand_over_all(&mut self, out: &mut Vec<Decoded>) -> u32 {
        self.handed_over = self.count();
        out.extend(self.rows.drain(..).map(Decoded::Row));
        self.copied = 0;
        self.passed = 0;
        self.bytes = 0;
        self.handed_over
    }

    /// Takes all rows of the transaction back; how many they were.
    pub(super) fn drop_all(&mut self) -> Result<u64, DecodeError> {
        if self.handed_over > 0 {
            return Err(DecodeError::RolledBack { rows: self.handed_over });
        }
        let dropped = self.rows.len() as u64;
        self.begin();
        Ok(dropped)
    }

    /// A savepoint of the same name goes.
    pub(super) fn set_savepoint(&mut self, name: &[u8]) {
        self.hold();
        self.savepoints.retain(|savepoint| !savepoint.is_named(name));
        // Beyond the bound the oldest goes: a rollback to it is then an error, and no guess.
        if self.savepoints.len() >= SAVEPOINTS_MAX {
            self.savepoints.remove(0);
        }
        let (count, bytes) = (self.count(), self.bytes);
        self.savepoints.push(Savepoint { name: name.to_vec(), count, bytes });
    }

    /// It goes, with those after it; what was held since stays held.
    pub(super) fn release(&mut self, name: &[u8]) {
        if let Some(index) = self.find(name) {
            self.savepoints.truncate(index);
        }
    }

    /// Takes back the rows since the savepoint, which stays; how many they were.
    pub(super) fn roll_back_to(&mut self, name: &[u8]) -> Result<u64, DecodeError> {
        // Servers compare names by a collation, in which letters with and without accent are the
        // same, and blanks at the end nothing: where two names might be one to it, a guess could
        // take back too many rows.
        let oldest = self.savepoints.first().map_or(0, |savepoint| savepoint.count);
        let is_plain = |name: &[u8]| name.is_ascii() && !name.ends_with(b" ");
        let all_plain = is_plain(name) && self.savepoints.iter().all(|s| is_plain(&s.name));
        let is_certain = all_plain || self.savepoints.len() == 1 || self.count() == oldest;
        let Some(index) = self.find(name).filter(|_| is_certain) else {
            // With no row at all, nothing can be taken back wrongly.
            if self.count() == 0 {
                return Ok(0);
            }
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(DecodeError::Savepoint { name });
        };
        self.savepoints.truncate(index + 1);
        let Some(savepoint) = self.savepoints.last() else { return Ok(0) };
        // Rows were handed over only before the first savepoint.
        let kept = savepoint.count.saturating_sub(self.handed_over);
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        let dropped = self.rows.len().saturating_sub(kept);
        self.rows.truncate(kept);
        self.copied = self.copied.min(kept);
        self.bytes = savepoint.bytes;
        Ok(dropped as u64)
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.savepoints.iter().rposition(|savepoint| savepoint.is_named(name))
    }
}

impl Savepoint {
    fn is_named(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}
