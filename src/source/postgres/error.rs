//! Why the PostgreSQL source cannot go on, and what helps: the one place that judges.

use std::time::Duration;

use super::connect::ConnectError;
use super::decoder::DecodeError;
use super::intake::IntakeError;
use super::lsn::Lsn;
use super::memory::GapError;
use super::wire::{ServerError, WireError};
use crate::config::PostgresSettings;
use crate::failure::{Failure, FailureKind};
use crate::source::{Finding, MemoryFileError};

/// See the module. The text names the object, and for a definite error the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or the server ended it.
    #[error("the replication connection ended")]
    Wire(#[source] WireError),
    /// A catalog query failed.
    #[error("could not read the catalog")]
    Catalog(#[from] tokio_postgres::Error),
    /// The server is there and says nothing.
    #[error(
        "the server did not answer within {after:?} when it was asked for {question}; a new \
         connection is tried"
    )]
    Unanswered {
        /// What it was asked for.
        question: &'static str,
        /// The limit.
        after: Duration,
    },
    /// No sign of life on the stream, although one was asked for.
    #[error(
        "nothing was heard from the server for {after:?}, although it was asked for an answer: the \
         connection is given up, and a new one is tried"
    )]
    Silent {
        /// How long.
        after: Duration,
    },
    /// Two connections to one address.
    #[error(
        "two connections to {address} reached two servers, as in a failover or behind a load \
         balancer; both are tried again. If it stays so, name one server in source.url"
    )]
    TwoServers {
        /// `host:port/dbname`.
        address: String,
    },
    /// A precondition does not hold.
    #[error("{}: {}; {}", .0.name, .0.detail, .0.fix.as_deref().unwrap_or("no remedy known"))]
    Precondition(Finding),
    /// The stream itself says that the publication is not there.
    #[error(
        "publication \"{publication}\" is missing where slot \"{slot}\" reads: {message}. A \
         publication must be older than the slot that uses it, and making it again does not help \
         this slot: make the publication, then drop the slot and make a new one (rows since \
         {acknowledged} are then published by hand or by `replay`)"
    )]
    Publication {
        /// Name of the publication.
        publication: String,
        /// Name of the slot.
        slot: String,
        /// The server's own words.
        message: String,
        /// What is safe.
        acknowledged: Lsn,
    },
    /// The catalog changed between two looks so that rows may not have been published meanwhile.
    #[error(
        "{what} since the last look at the catalog (log position {since}): rows that were written \
         to {table} in between may not be in what slot \"{slot}\" reads, and no retry brings them. \
         Compare the table with what arrived and publish what is missing by hand; then restart \
         walpost, which goes on. Make such a change in one transaction, or while nobody writes"
    )]
    Gap {
        /// What happened, to which object.
        what: String,
        /// The outbox.
        table: String,
        /// Name of the slot.
        slot: String,
        /// Up to here nothing was missed.
        since: Lsn,
    },
    /// Rows wait for a look at the catalog.
    #[error("no answer about the catalog within {after:?}, which rows of the outbox wait for")]
    CatalogSilent {
        /// The limit.
        after: Duration,
    },
    /// A stream that is open would keep it from doing so.
    #[error("the server is shutting down, so the connection to it was closed")]
    ShuttingDown,
    /// Another cluster answers under the same address.
    #[error(
        "the server is another one than before: system identifier {found}, was {expected}. \
         Nothing was acknowledged to it; if it is the right one now, restart walpost"
    )]
    OtherSystem {
        /// Before the reconnect.
        expected: u64,
        /// Now.
        found: u64,
    },
    /// A standby was promoted, or a backup restored.
    #[error(
        "the server is on timeline {found}, was on {expected}: it was promoted or restored, and \
         may lack rows that were published. Nothing was acknowledged to it; check that slot \
         \"{slot}\" came along, then restart walpost"
    )]
    OtherTimeline {
        /// Before the reconnect.
        expected: u32,
        /// Now.
        found: u32,
        /// Name of the slot.
        slot: String,
    },
    /// The server came back with less than it had acknowledged.
    #[error(
        "the server's log ends at {end}, before {received}, up to which it was read already: it \
         lost data or was restored from a backup. Restart walpost to go on from the slot"
    )]
    WentBack {
        /// Where its log ends.
        end: Lsn,
        /// What we have received of it.
        received: Lsn,
    },
    /// Somebody else used the slot while we were away.
    #[error(
        "slot \"{slot}\" is at {confirmed}, ahead of {acknowledged}, which is all that this relay \
         acknowledged: another relay used it, or it was advanced or made anew. Restart walpost to \
         go on from the slot"
    )]
    SlotMoved {
        /// Name of the slot.
        slot: String,
        /// Where the slot is.
        confirmed: Lsn,
        /// Where we left it.
        acknowledged: Lsn,
    },
    /// Rows are at risk: the slot, or the database, is not where this relay left it.
    #[error(transparent)]
    Memory(#[from] GapError),
    /// `source.memory_file` cannot be used.
    #[error(transparent)]
    MemoryFile(#[from] MemoryFileError),
    /// A message that cannot be understood.
    #[error("could not read the stream of slot \"{slot}\"")]
    Decode {
        /// Name of the slot.
        slot: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The server cannot send what comes next, and said so twice.
    #[error(
        "the server cannot send the next row of slot \"{slot}\"{place}, and reported the same twice: \
         {error}{remedy}"
    )]
    Unsendable {
        /// Name of the slot.
        slot: String,
        /// Table and position, as far as they are known; begins with a blank, or empty.
        place: String,
        /// The server's words; part of our own text, since the remedy comes after them.
        error: Box<ServerError>,
        /// Begins with `; `.
        remedy: String,
    },
    /// A row above the bound.
    #[error(
        "a row of table {table} has {bytes} bytes, which is above source.row_bytes_max = \
         {bytes_max}: raise it to at least {bytes} and restart walpost"
    )]
    RowTooLarge {
        /// The outbox.
        table: String,
        /// Of the row's message.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Given up by us, so that the server may shut down or fail over while no broker confirms.
    #[error(
        "the broker confirmed nothing for {after:?} while rows wait: the connection to the database \
         was released, so that the server is free to shut down; it is made again with the next \
         confirm"
    )]
    LetGo {
        /// `let_go_after`.
        after: Duration,
    },
    /// A bug.
    #[error("the reader thread ended with a panic")]
    ReaderGone,
}

impl PostgresError {
    /// What it asks for. What is unproven is transient.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Connect(error) => error.kind(),
            Self::Wire(error) => wire_kind(error),
            // A relay that gives the slot up goes on to hold its file for a while.
            Self::Catalog(_)
            | Self::CatalogSilent { .. }
            | Self::Unanswered { .. }
            | Self::Silent { .. }
            | Self::ShuttingDown
            | Self::TwoServers { .. }
            | Self::LetGo { .. }
            | Self::MemoryFile(MemoryFileError::InUse { .. }) => FailureKind::Transient,
            Self::Precondition(_)
            | Self::Gap { .. }
            | Self::Publication { .. }
            | Self::OtherSystem { .. }
            | Self::OtherTimeline { .. }
            | Self::WentBack { .. }
            | Self::SlotMoved { .. }
            | Self::Memory(_)
            | Self::MemoryFile(_)
            | Self::Decode { .. }
            | Self::Unsendable { .. }
            | Self::RowTooLarge { .. }
            | Self::ReaderGone => FailureKind::Definite,
        }
    }

    pub(crate) fn intake(error: IntakeError, settings: &PostgresSettings) -> Self {
        match error {
            IntakeError::Frame(error) => Self::Wire(error.into()),
            IntakeError::TooLarge { bytes } => {
                let (table, bytes_max) = (settings.table.to_string(), settings.row_bytes_max);
                Self::RowTooLarge { table, bytes, bytes_max }
            }
        }
    }
}

impl From<PostgresError> for Failure {
    fn from(error: PostgresError) -> Self {
        Failure::new(error.kind(), error)
    }
}

/// Codes that mean the same whenever they come on a replication connection.
///
/// 55000 is how a lost slot shows (14 to 18 word it differently); it is transient here because the
/// next connect looks the slot up and says `lost` by name. 42704 is a publication that is missing
/// in the past; `reader` has named it before this is asked.
fn wire_kind(error: &WireError) -> FailureKind {
    match error.server().map(|error| error.code.as_str()) {
        // undefined_object, syntax_error, feature_not_supported, invalid_parameter_value
        Some("42704" | "42601" | "0A000" | "22023") => FailureKind::Definite,
        _ => error.kind(),
    }
}

/// Whether the slot is in use by another connection, which is no error but a turn to wait for.
pub(crate) fn is_slot_in_use(error: &ServerError) -> bool {
    error.code == "55006"
}
