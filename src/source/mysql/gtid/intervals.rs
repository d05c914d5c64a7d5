//! The numbers of one source in a GTID set: sorted half-open intervals that do not touch.
//!
//! Owns how they merge. Numbers come in order, nearly always, so the last interval grows and
//! nothing moves.

use std::fmt;

/// Numbers as `start..end`, ascending, with a gap between any two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Intervals {
    intervals: Vec<(u64, u64)>,
}

impl Intervals {
    /// How many intervals.
    pub(super) fn count(&self) -> usize {
        self.intervals.len()
    }

    /// Each as `(start, end)`, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.intervals.iter().copied()
    }

    /// Adds the numbers from `start` up to, and without, `end`.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        if let Some(last) = self.intervals.last_mut()
            && last.1 == start
        {
            last.1 = end;
            return;
        }
        // What overlaps or touches lies between these two: it becomes one with the new one.
        let from = self.intervals.partition_point(|interval| interval.1 < start);
        let to = self.intervals.partition_point(|interval| interval.0 <= end);
        let mut merged = (start, end);
        if let Some(first) = self.intervals.get(from).filter(|_| from < to) {
            merged.0 = merged.0.min(first.0);
        }
        if let Some(last) = to.checked_sub(1).filter(|last| *last >= from) {
            merged.1 = self.intervals.get(last).map_or(end, |last| last.1.max(end));
        }
        self.intervals.splice(from..to, [merged]);
    }

    /// Whether `number` is among them.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.covers(number, number.saturating_add(1))
    }

    /// Whether all of them are in `other`.
    pub(super) fn is_subset_of(&self, other: &Intervals) -> bool {
        self.intervals.iter().all(|(start, end)| other.covers(*start, *end))
    }

    /// Since intervals never touch, a covered one lies within a single one.
    fn covers(&self, start: u64, end: u64) -> bool {
        let index = self.intervals.partition_point(|interval| interval.1 <= start);
        self.intervals.get(index).is_some_and(|interval| interval.0 <= start && end <= interval.1)
    }
}

/// `:1-3:7`
impl fmt::Display for Intervals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (start, end) in &self.intervals {
            if start + 1 == *end {
                write!(formatter, ":{start}")?;
            } else {
                write!(formatter, ":{start}-{}", end - 1)?;
            }
        }
        Ok(())
    }
}
