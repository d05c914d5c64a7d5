//! Why an event could not become part of a transaction.

use std::fmt;
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
         not only for new connections)"
    )]
    StatementFormat {
        /// Schema and name.
        table: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// Rows of an XA transaction that was committed in two phases.
    #[error(
        "{rows} rows of table {table} were prepared in a two-phase XA transaction before \
         {file}:{position}, and XA COMMIT committed them later in the log: walpost publishes no \
         such rows, since others were committed in between; write to the outbox in ordinary \
         transactions"
    )]
    Xa {
        /// Schema and name.
        table: String,
        /// What names the transaction that holds the rows.
        transaction: String,
        /// How many there are.
        rows: u32,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// An XA transaction that stays prepared.
    #[error(
        "an XA transaction with rows of the outbox was prepared before {file}:{position}, and so \
         much followed in the log that walpost waits no longer for its end: end it (XA RECOVER, \
         then XA ROLLBACK), and restart walpost"
    )]
    XaOpen {
        /// What names the transaction that holds the rows.
        transaction: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// A table without its name for too long.
    #[error(
        "the outbox was renamed to {to} before {file}:{position}, and so much followed in the log \
         that walpost waits no longer for a table of its old name: rename it back; or set \
         source.table to {to}, and restart walpost"
    )]
    Renamed {
        /// Schema and name that it has now.
        to: String,
        /// The file.
        file: Arc<str>,
        /// End of the statement.
        position: u64,
    },
    /// Rows of the outbox under the name that it was given.
    #[error(
        "rows were inserted before {file}:{position} into {to}, which table {table} had been \
         renamed to: they are not rows of {table}, and were not published. If the new name is to \
         stay, set source.table to {to} and restart walpost, which then publishes them"
    )]
    RenamedRows {
        /// Schema and name of the outbox.
        table: String,
        /// What it was renamed to.
        to: String,
        /// The file.
        file: Arc<str>,
        /// Their end.
        position: u64,
    },
    /// A statement that may rename the outbox.
    #[error(
        "a statement before {file}:{position} may rename table {table}, and cannot be read for \
         certain: compare it with SHOW BINLOG EVENTS"
    )]
    UnclearRename {
        /// Schema and name.
        table: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// Rows that a versioned table keeps of those that were changed.
    #[error(
        "table {table} was WITH SYSTEM VERSIONING before {file}:{position}: an UPDATE or DELETE \
         leaves the old row behind as one more insert, which is no event; ALTER TABLE {table} DROP \
         SYSTEM VERSIONING"
    )]
    Versioned {
        /// Schema and name.
        table: String,
        /// The file.
        file: Arc<str>,
        /// Its end.
        position: u64,
    },
    /// A row of the outbox above the bound.
    #[error(
        "a row of {bytes} bytes in table {table} is above source.row_bytes_max ({bytes_max} with \
         what is around a row): raise it to at least {bytes} and restart walpost"
    )]
    RowTooLarge {
        /// Schema and name.
        table: String,
        /// Of the event that holds it.
        bytes: u64,
        /// The bound.
        bytes_max: usize,
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
         rows, which must be held in memory until its end: raise source.held_bytes_max, which is \
         {bytes_max}, and restart walpost; or write fewer rows after a SAVEPOINT"
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
    /// Whether it is about rows of the outbox in one transaction, so that the others can be read
    /// without it.
    fn is_of_transaction(&self) -> bool {
        match self {
            Self::Layout(_)
            | Self::Row(_)
            | Self::StatementFormat { .. }
            | Self::Xa { .. }
            | Self::XaOpen { .. }
            | Self::RenamedRows { .. }
            | Self::UnclearRename { .. }
            | Self::Versioned { .. }
            | Self::Savepoint { .. }
            | Self::RowTooLarge { .. }
            | Self::HeldTooMuch { .. } => true,
            Self::Event(_)
            | Self::UnknownEvent { .. }
            | Self::Order { .. }
            | Self::Unended { .. }
            | Self::UnknownTable { .. }
            | Self::Renamed { .. }
            | Self::RolledBack { .. }
            | Self::TooManyRows
            | Self::TooManyTables
            | Self::Incident { .. }
            | Self::Unnameable { .. } => false,
        }
    }

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

/// An error with the way past it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// What is wrong.
    pub error: DecodeError,
    /// What names the transaction that it is about, where the others can be read without it.
    pub transaction: Option<String>,
}

impl Undecodable {
    /// `open` names the transaction that was open.
    pub(crate) fn new(error: DecodeError, open: Option<String>) -> Self {
        let transaction = match &error {
            DecodeError::Xa { transaction, .. } | DecodeError::XaOpen { transaction, .. } => {
                Some(transaction.clone())
            }
            error if error.is_of_transaction() => open,
            _ => None,
        };
        Self { error, transaction }
    }
}

impl fmt::Display for Undecodable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.error)?;
        match &self.transaction {
            Some(transaction) => write!(
                formatter,
                ". To go on without the rows of this transaction, publish them by hand, set \
                 source.skip_transactions = \"{transaction}\", and restart walpost"
            ),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Undecodable {}
