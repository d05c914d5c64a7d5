//! One event of the binlog: its header, its checksum, and what is between.
//!
//! Owns the layout that all events share, the names of their types, and the rule that nothing of
//! an event is believed before its checksum was compared. Knows no transaction and no state but
//! the checksum algorithm, which the caller keeps. All numbers are little-endian.
//!
//! ```text
//! timestamp: u32 | type: u8 | server: u32 | length: u32 | next position: u32 | flags: u16
//! body: length − 19 − (0 or 4)
//! CRC32 of all before it: u32, where the file has checksums
//! ```
//!
//! Layouts: MySQL's `libs/mysql/binlog/event/`, MariaDB's `sql/log_event.h`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub(crate) mod body;
pub(crate) mod compressed;
pub(crate) mod gtid;
mod varint;

use bytes::Bytes;

use super::cursor::{Cursor, MalformedError};

/// Event types, with the names that both servers give them.
pub(crate) mod kind {
    pub(crate) const QUERY_EVENT: u8 = 2;
    pub(crate) const STOP_EVENT: u8 = 3;
    pub(crate) const ROTATE_EVENT: u8 = 4;
    pub(crate) const INTVAR_EVENT: u8 = 5;
    pub(crate) const APPEND_BLOCK_EVENT: u8 = 9;
    pub(crate) const DELETE_FILE_EVENT: u8 = 11;
    pub(crate) const RAND_EVENT: u8 = 13;
    pub(crate) const USER_VAR_EVENT: u8 = 14;
    pub(crate) const FORMAT_DESCRIPTION_EVENT: u8 = 15;
    pub(crate) const XID_EVENT: u8 = 16;
    pub(crate) const BEGIN_LOAD_QUERY_EVENT: u8 = 17;
    pub(crate) const EXECUTE_LOAD_QUERY_EVENT: u8 = 18;
    pub(crate) const TABLE_MAP_EVENT: u8 = 19;
    pub(crate) const WRITE_ROWS_EVENT_V1: u8 = 23;
    pub(crate) const UPDATE_ROWS_EVENT_V1: u8 = 24;
    pub(crate) const DELETE_ROWS_EVENT_V1: u8 = 25;
    pub(crate) const INCIDENT_EVENT: u8 = 26;
    pub(crate) const HEARTBEAT_LOG_EVENT: u8 = 27;
    pub(crate) const IGNORABLE_LOG_EVENT: u8 = 28;
    pub(crate) const ROWS_QUERY_LOG_EVENT: u8 = 29;
    pub(crate) const WRITE_ROWS_EVENT: u8 = 30;
    pub(crate) const UPDATE_ROWS_EVENT: u8 = 31;
    pub(crate) const DELETE_ROWS_EVENT: u8 = 32;
    pub(crate) const XA_PREPARE_LOG_EVENT: u8 = 38;
    // MySQL's own.
    pub(crate) const GTID_LOG_EVENT: u8 = 33;
    pub(crate) const ANONYMOUS_GTID_LOG_EVENT: u8 = 34;
    pub(crate) const PREVIOUS_GTIDS_LOG_EVENT: u8 = 35;
    pub(crate) const TRANSACTION_CONTEXT_EVENT: u8 = 36;
    pub(crate) const VIEW_CHANGE_EVENT: u8 = 37;
    pub(crate) const PARTIAL_UPDATE_ROWS_EVENT: u8 = 39;
    pub(crate) const TRANSACTION_PAYLOAD_EVENT: u8 = 40;
    pub(crate) const HEARTBEAT_LOG_EVENT_V2: u8 = 41;
    pub(crate) const GTID_TAGGED_LOG_EVENT: u8 = 42;
    // MariaDB's own.
    pub(crate) const ANNOTATE_ROWS_EVENT: u8 = 160;
    pub(crate) const BINLOG_CHECKPOINT_EVENT: u8 = 161;
    pub(crate) const GTID_EVENT: u8 = 162;
    pub(crate) const GTID_LIST_EVENT: u8 = 163;
    pub(crate) const START_ENCRYPTION_EVENT: u8 = 164;
    pub(crate) const QUERY_COMPRESSED_EVENT: u8 = 165;
    pub(crate) const WRITE_ROWS_COMPRESSED_EVENT_V1: u8 = 166;
    pub(crate) const UPDATE_ROWS_COMPRESSED_EVENT_V1: u8 = 167;
    pub(crate) const DELETE_ROWS_COMPRESSED_EVENT_V1: u8 = 168;
    pub(crate) const WRITE_ROWS_COMPRESSED_EVENT: u8 = 169;
    pub(crate) const UPDATE_ROWS_COMPRESSED_EVENT: u8 = 170;
    pub(crate) const DELETE_ROWS_COMPRESSED_EVENT: u8 = 171;
}

/// Bytes of the header that all events of binlog version 4 have.
pub(crate) const HEADER_LENGTH: usize = 19;
const CHECKSUM_LENGTH: usize = 4;
const FLAGS_OFFSET: usize = 17;
const TOO_SHORT: MalformedError = MalformedError { what: "event", at: 0 };

/// Set in the file that is being written; not part of the checksum.
const LOG_EVENT_BINLOG_IN_USE_F: u16 = 0x0001;
/// Made for this connection: not in the file.
const LOG_EVENT_ARTIFICIAL_F: u16 = 0x0020;
/// Whoever does not know the type may leave it out.
const LOG_EVENT_IGNORABLE_F: u16 = 0x0080;

/// An event that cannot be read. The same bytes come again, except after
/// [`Checksum`](EventError::Checksum) where they were damaged on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not the binlog's layout.
    #[error(transparent)]
    Malformed(#[from] MalformedError),
    /// An event is not as long as its header says.
    #[error("event of type {kind} has {found} bytes where its header says {stated}")]
    Length {
        /// Its type.
        kind: u8,
        /// In the header.
        stated: u32,
        /// What came.
        found: usize,
    },
    /// The event was damaged, on disk or on the way.
    #[error(
        "event of type {kind} has checksum {stated:#010X}, but its bytes make {computed:#010X}"
    )]
    Checksum {
        /// Its type.
        kind: u8,
        /// At its end.
        stated: u32,
        /// Of its bytes.
        computed: u32,
    },
    /// A checksum, version or layout that came after what is known here.
    #[error("FORMAT_DESCRIPTION_EVENT states {what} {value}, which is not supported")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// What it says.
        value: u32,
    },
    /// What was compressed does not come out, or not at the length that was stated.
    #[error("{what} could not be inflated to the {length} bytes that it states")]
    Inflate {
        /// What was read.
        what: &'static str,
        /// Stated length.
        length: u64,
    },
    /// Above a bound of ours; see the text for the setting.
    #[error(
        "{what} of {length} bytes is above the bound of {length_max}: raise \
         source.payload_bytes_max for a compressed transaction, source.row_bytes_max for a row, \
         and restart walpost"
    )]
    TooLarge {
        /// What was read.
        what: &'static str,
        /// Stated length.
        length: u64,
        /// Our bound.
        length_max: usize,
    },
}

/// Whether the events of the file that is being sent end with a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// No FORMAT_DESCRIPTION_EVENT came yet on this connection.
    Unknown,
    Off,
    Crc32,
}

/// The fields that all events begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Seconds since 1970, UTC, when the statement began.
    pub(crate) timestamp: u32,
    pub(crate) kind: u8,
    /// Server that wrote it first; half of a MariaDB GTID.
    pub(crate) server: u32,
    pub(crate) length: u32,
    /// Where the next event begins in the file, modulo 2^32; 0 inside a compressed transaction
    /// and in artificial events.
    pub(crate) next_position: u32,
    flags: u16,
}

impl Header {
    pub(crate) fn parse(event: &[u8]) -> Result<Self, MalformedError> {
        let mut cursor = Cursor::new(event, "event header");
        Ok(Self {
            timestamp: cursor.u32()?,
            kind: cursor.u8()?,
            server: cursor.u32()?,
            length: cursor.u32()?,
            next_position: cursor.u32()?,
            flags: cursor.u16()?,
        })
    }

    /// Made by the server for this connection, as the ROTATE_EVENT that comes first.
    pub(crate) fn is_artificial(&self) -> bool {
        self.flags & LOG_EVENT_ARTIFICIAL_F != 0
    }

    /// Whoever does not know this type may leave it out.
    pub(crate) fn is_ignorable(&self) -> bool {
        self.flags & LOG_EVENT_IGNORABLE_F != 0
    }
}

/// An event whose checksum was right, or that has none.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) header: Header,
    /// Between header and checksum.
    pub(crate) body: Bytes,
}

impl Event {
    /// Compares length and checksum before anything else.
    pub(crate) fn open(event: &Bytes, checksum: Checksum) -> Result<Self, EventError> {
        let header = Self::check_length(event)?;
        let checked = match (header.kind, checksum) {
            // Tells itself whether it has one.
            (kind::FORMAT_DESCRIPTION_EVENT, _) => check_description(event)?,
            // Sent before the description of its file. MariaDB puts a checksum even to the first
            // one of a connection, when a reader cannot know yet; MySQL follows the file before.
            // Four bytes that are the checksum by chance do not happen in a name.
            (kind::ROTATE_EVENT, Checksum::Unknown | Checksum::Off) if header.is_artificial() => {
                checksum_of(event).filter(|sum| sum.stated == sum.computed).is_some()
            }
            (_, Checksum::Unknown | Checksum::Off) => false,
            (kind, Checksum::Crc32) => {
                let sum = checksum_of(event).ok_or(TOO_SHORT)?;
                sum.compare(kind)?;
                true
            }
        };
        let end = event.len() - if checked { CHECKSUM_LENGTH } else { 0 };
        Self::cut(header, event, end)
    }

    /// An event inside a compressed transaction, where none has a checksum.
    pub(crate) fn inner(event: &Bytes) -> Result<Self, EventError> {
        Self::cut(Self::check_length(event)?, event, event.len())
    }

    fn check_length(event: &Bytes) -> Result<Header, EventError> {
        let header = Header::parse(event)?;
        if u32::try_from(event.len()) != Ok(header.length) {
            let Header { kind, length: stated, .. } = header;
            return Err(EventError::Length { kind, stated, found: event.len() });
        }
        Ok(header)
    }

    fn cut(header: Header, event: &Bytes, end: usize) -> Result<Self, EventError> {
        if end < HEADER_LENGTH {
            return Err(TOO_SHORT.into());
        }
        Ok(Self { header, body: event.slice(HEADER_LENGTH..end) })
    }
}

struct Sum {
    stated: u32,
    computed: u32,
}

impl Sum {
    fn compare(&self, kind: u8) -> Result<(), EventError> {
        let Self { stated, computed } = *self;
        if stated == computed {
            Ok(())
        } else {
            Err(EventError::Checksum { kind, stated, computed })
        }
    }
}

/// The last four bytes, and the checksum of what is before them.
fn checksum_of(event: &[u8]) -> Option<Sum> {
    let (covered, stated) = event.split_last_chunk::<CHECKSUM_LENGTH>()?;
    Some(Sum { stated: u32::from_le_bytes(*stated), computed: crc32fast::hash(covered) })
}

/// A FORMAT_DESCRIPTION_EVENT always has room for a checksum; the byte before tells whether the
/// events behind it have one. Where they have none the server may not have renewed it.
fn check_description(event: &[u8]) -> Result<bool, EventError> {
    let (covered, stated) = event.split_last_chunk::<CHECKSUM_LENGTH>().ok_or(TOO_SHORT)?;
    let (before, flags) = covered.split_at_checked(FLAGS_OFFSET).ok_or(TOO_SHORT)?;
    let (flags, after) = flags.split_first_chunk::<2>().ok_or(TOO_SHORT)?;
    if body::FormatDescription::parse(after)?.checksum == Checksum::Crc32 {
        let flags = u16::from_le_bytes(*flags) & !LOG_EVENT_BINLOG_IN_USE_F;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(before);
        hasher.update(&flags.to_le_bytes());
        hasher.update(after);
        let sum = Sum { stated: u32::from_le_bytes(*stated), computed: hasher.finalize() };
        sum.compare(kind::FORMAT_DESCRIPTION_EVENT)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
