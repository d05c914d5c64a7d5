//! Why an event could not become part of a transaction.

use std::sync::Arc;

use crate::source::mysql::cursor::MalformedError;
use crate::source::mysql::event::EventError;
use crate::source::mysql::layout::{LayoutError, RowError};

/// Why the binlog cannot be read further. All are definite, since the same bytes would come
/// again, except where [`is_damage`](Self::is_damage).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// An event cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The outbox does not fit the mapping.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A row cannot be read.
    #[error(transparent)]
    Row(#[from] RowError),
    /// An event that may change rows in a way that is not known here.
    #[error(
        "event of unknown type {kind} before {file}:{position}: a server newer than this walpost, \
         or of another kind than the URL says"
    )]
    UnknownEvent {
        /// Its type.
        kind: u8,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// An event at a place where the binlog does not have it.
    #[error("event of type {event} {place}; was the position inside a transaction?")]
    Order {
        /// Its type.
        event: u8,
        /// Where it came.
        place: &'static str,
    },
    /// A compressed transaction without an end.
    #[error("compressed transaction before {file}:{position} has no end")]
    Unended {
        /// The file.
        file: Arc<str>,
        /// End of its event.
        position: u64,
    },
    /// Rows of a table that was not announced.
    #[error("row event of table id {table}, which was not announced")]
    UnknownTable {
        /// The id.
        table: u64,
    },
    /// Rows that were not logged as rows.
    #[error(
        "a statement on table {table} was logged as text before {file}:{position}, so its rows \
         cannot be published; set binlog_format=ROW for every session that writes (globally, and \
         not only for new connections), publish these rows another way, and move the position"
    )]
    StatementFormat {
        /// Schema and name.
        table: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// Rows that an XA ROLLBACK may still take back.
    #[error(
        "rows of table {table} in a two-phase XA transaction before {file}:{position}: whether \
         they were committed stands elsewhere in the log, which walpost does not follow; write to \
         the outbox in ordinary transactions"
    )]
    Xa {
        /// Schema and name.
        table: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// A rollback of what may have been published.
    #[error(
        "a transaction was rolled back in the log after {rows} of its rows were handed over; \
         write to the outbox in transactions that change no MyISAM or other non-transactional table"
    )]
    RolledBack {
        /// Rows.
        rows: u32,
    },
    /// A rollback to a savepoint that cannot be told from others.
    #[error("ROLLBACK TO savepoint {name:?}, which was not set or is spelt like another one")]
    Savepoint {
        /// Its name.
        name: String,
    },
    /// Too much to hold back.
    #[error(
        "a transaction with a SAVEPOINT, or an XA one, has more than {bytes_max} bytes of outbox \
         rows, which must be held until its end: raise relay.bytes_max, of which this is the half, \
         and restart walpost; or write fewer rows after a SAVEPOINT"
    )]
    HeldTooMuch {
        /// The bound.
        bytes_max: usize,
    },
    /// More than 2^32 outbox rows in one transaction.
    #[error("a transaction has more outbox rows than an identity can count")]
    TooManyRows,
    /// A statement of too many tables.
    #[error("a statement announces more tables than walpost keeps")]
    TooManyTables,
    /// The server says that the log is not complete.
    #[error(
        "the server logged an incident before {file}:{position} ({message}): changes may be \
         missing in the log; compare the outbox with what was published, then move the position"
    )]
    Incident {
        /// What the server says.
        message: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// A transaction without GTID in a file without number, or beyond 4 GiB.
    #[error("no identity can be made of {file}:{position}; set gtid_mode=ON")]
    Unnameable {
        /// The file.
        file: Arc<str>,
        /// Where the transaction begins.
        position: u64,
    },
}

impl DecodeError {
    /// Whether bytes were damaged: on the way, where another attempt helps, or on the server's
    /// disk, where none does.
    pub fn is_damage(&self) -> bool {
        matches!(self, DecodeError::Event(EventError::Checksum { .. }))
    }
}

impl From<MalformedError> for DecodeError {
    fn from(error: MalformedError) -> Self {
        DecodeError::Event(error.into())
    }
}
