//! Whether slot, memory and file agree. Pure: the same judgement at start and in `check`.
//!
//! ```text
//!  clean stop:    ───────────┤ remembered             the slot is here, or before it
//!  any other end: ───────────┤ remembered ──── bound ┤ the slot is before the bound
//!  with the file: ────────────────┤ file              the slot is here, or before it
//! ```
//!
//! A slot before what is remembered is the slot after a crash of the server, which saves positions
//! seldom. One behind it was moved or made again by somebody else.

use super::super::lsn::Lsn;
use super::table::{Remembered, SlotProof};
use crate::source::finding::size;
use crate::source::memory_file::Record;

/// What is known at a start.
pub(super) struct Facts<'a> {
    pub(super) slot: &'a str,
    /// Where the slot stands.
    pub(super) slot_at: Lsn,
    pub(super) system_identifier: u64,
    pub(super) timeline: u32,
    /// Where the server's log ends.
    pub(super) log_end: Lsn,
    pub(super) row: Option<&'a Remembered>,
    pub(super) file: Option<&'a Record>,
    /// The boot in which this process runs.
    pub(super) boot: &'a str,
}

/// Rows are at risk, and a person has to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GapError {
    /// The slot is further than this relay can have moved it.
    #[error(
        "slot \"{slot}\" is at {slot_at}, and {why}: it was advanced or made again by somebody \
         else, or by a walpost that could not write its memory. Rows committed between {from} and \
         {slot_at} ({} of log) may not have been published: compare the outbox with the broker, \
         publish what is missing by hand, then go on with: walpost run --accept-gap {slot_at}",
        size(i64::try_from(slot_at.bytes_since(*from)).unwrap_or(i64::MAX))
    )]
    SlotAhead {
        /// Name of the slot.
        slot: String,
        /// Where it is.
        slot_at: Lsn,
        /// What is known to be published.
        from: Lsn,
        /// What is remembered, and how well.
        why: String,
    },
    /// The database is older than what is remembered.
    #[error(
        "the database was restored from a backup or snapshot, or failed over to a server that \
         lacks its last transactions: {why}. Rows published from {slot_at} up to {to} are not in \
         it, and new rows take their places in the log, so that consumers and brokers may drop \
         them as repeats. Compare the outbox with the broker, then go on with: walpost run \
         --accept-gap {slot_at}"
    )]
    Restored {
        /// Where the slot is.
        slot_at: Lsn,
        /// What was acknowledged before.
        to: Lsn,
        /// What shows it.
        why: String,
    },
    /// The file is of another cluster.
    #[error(
        "the server is another one than the one that source.memory_file knows: system identifier \
         {found}, was {expected}. Rows that the other one committed after {from} may not have been \
         published; if this one is the right one now, go on with: walpost run --accept-gap \
         {slot_at}"
    )]
    OtherServer {
        /// In the file.
        expected: String,
        /// Of this server.
        found: u64,
        /// What was acknowledged there.
        from: Lsn,
        /// Where the slot is here.
        slot_at: Lsn,
    },
    /// The file is of another relay.
    #[error(
        "source.memory_file is the one of slot \"{expected}\", and this relay reads slot \
         \"{found}\": give each relay a file of its own"
    )]
    OtherSlot {
        /// In the file.
        expected: String,
        /// In the settings.
        found: String,
    },
    /// There is nothing to start from.
    #[error(
        "there is no slot \"{slot}\", and this relay published rows up to {from}: it was dropped. \
         Rows committed from there until a new slot is made may not be published (the log ends at \
         {log_end} now): compare the outbox with the broker, publish what is missing by hand, run \
         walpost init --skip-existing, then walpost check, which prints the command to go on"
    )]
    SlotGone {
        /// Name of the slot.
        slot: String,
        /// What is known to be published.
        from: Lsn,
        /// Where the server's log ends.
        log_end: Lsn,
    },
}

impl GapError {
    /// The position by which a person accepts it, where that is enough.
    pub(super) fn accepted_by(&self) -> Option<Lsn> {
        match self {
            Self::SlotAhead { slot_at, .. }
            | Self::Restored { slot_at, .. }
            | Self::OtherServer { slot_at, .. } => Some(*slot_at),
            Self::OtherSlot { .. } | Self::SlotGone { .. } => None,
        }
    }
}

/// How slot, memory and file stand to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Agreement {
    /// Nothing is missing.
    Whole,
    /// The slot is between what is remembered and its bound, after an end that was not clean.
    Unsure { from: Lsn, is_same_slot: bool },
    /// The memory is of another cluster and says nothing here.
    Foreign { system_identifier: String },
}

/// Where the stream may begin although the slot is before it: the row lies in the database whose
/// log it speaks of, so it goes back with it. Whatever a crash or a restore took, the row's own
/// commit is behind its position in the log that is left.
pub(super) fn start_at(
    row: Option<&Remembered>,
    system_identifier: u64,
    log_end: Lsn,
) -> Option<Lsn> {
    let row = row.filter(|row| row.system_identifier == system_identifier.to_string())?;
    (row.confirmed <= log_end).then_some(row.confirmed)
}

/// See the module.
///
/// # Errors
/// Rows are at risk.
pub(super) fn judge(facts: &Facts<'_>) -> Result<Agreement, GapError> {
    if let Some(file) = facts.file {
        judge_file(facts, file)?;
    }
    let Some(row) = facts.row else { return Ok(Agreement::Whole) };
    if row.system_identifier != facts.system_identifier.to_string() {
        let system_identifier = row.system_identifier.clone();
        return Ok(Agreement::Foreign { system_identifier });
    }
    if row.confirmed > facts.log_end {
        let why =
            format!("its log ends at {}, before {}", facts.log_end, remembered(row.confirmed));
        return Err(facts.restored(row.confirmed, why));
    }
    if facts.slot_at <= row.confirmed {
        return Ok(Agreement::Whole);
    }
    // A standby that was promoted has counters of its own.
    if row.proof == SlotProof::Another && row.timeline == facts.timeline {
        let why = format!(
            "{} when its memory was written; the slot has decoded fewer transactions than then",
            remembered(row.confirmed)
        );
        return Err(facts.ahead(row.confirmed, why));
    }
    if row.is_clean {
        let why = format!("{}, where it stopped", remembered(row.confirmed));
        return Err(facts.ahead(row.confirmed, why));
    }
    if let Some(file) = facts.file
        && is_exact(facts, file)
    {
        // And the slot is not beyond it.
        return Ok(Agreement::Whole);
    }
    if facts.slot_at > row.bound {
        let why = format!(
            "{}, and would have acknowledged nothing beyond {} before the next",
            remembered(row.confirmed),
            row.bound
        );
        return Err(facts.ahead(row.confirmed, why));
    }
    let is_same_slot = row.proof == SlotProof::Same;
    Ok(Agreement::Unsure { from: row.confirmed, is_same_slot })
}

fn remembered(position: Lsn) -> String {
    format!("this relay remembers {position} as acknowledged")
}

/// Whether the file holds the very last acknowledgement: neither did the machine lose what it had
/// not synced, nor did a relay elsewhere work since.
fn is_exact(facts: &Facts<'_>, file: &Record) -> bool {
    let is_kept = file.is_clean || (file.boot == facts.boot && !facts.boot.is_empty());
    is_kept && facts.row.is_none_or(|row| row.holder == file.holder)
}

fn judge_file(facts: &Facts<'_>, file: &Record) -> Result<(), GapError> {
    if file.name != facts.slot {
        let (expected, found) = (file.name.clone(), facts.slot.to_owned());
        return Err(GapError::OtherSlot { expected, found });
    }
    let from = file.position.parse().unwrap_or(Lsn::ZERO);
    if file.log != facts.system_identifier.to_string() {
        let (expected, found) = (file.log.clone(), facts.system_identifier);
        return Err(GapError::OtherServer { expected, found, from, slot_at: facts.slot_at });
    }
    if from > facts.log_end {
        let why = format!(
            "its log ends at {}, before {from}, up to which this relay has \
                           acknowledged it",
            facts.log_end
        );
        return Err(facts.restored(from, why));
    }
    if file.timeline > facts.timeline {
        let why = format!("it is on timeline {}, and was on {}", facts.timeline, file.timeline);
        return Err(facts.restored(from, why));
    }
    if let Some(row) = facts.row
        && row.system_identifier == file.log
        && row.writes < file.writes
    {
        let why = format!(
            "its memory was written {} times, and source.memory_file knows of {}",
            row.writes, file.writes
        );
        return Err(facts.restored(from, why));
    }
    if is_exact(facts, file) && facts.slot_at > from {
        let why = format!("source.memory_file has {from} as the last that this relay acknowledged");
        return Err(facts.ahead(from, why));
    }
    Ok(())
}

impl Facts<'_> {
    fn ahead(&self, from: Lsn, why: String) -> GapError {
        GapError::SlotAhead { slot: self.slot.to_owned(), slot_at: self.slot_at, from, why }
    }

    fn restored(&self, to: Lsn, why: String) -> GapError {
        GapError::Restored { slot_at: self.slot_at, to, why }
    }
}

#[cfg(test)]
mod tests;
