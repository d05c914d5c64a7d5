//! Why the MySQL source cannot go on, and what helps: the one place that judges.

use std::time::Duration;

use super::connect::ConnectError;
use super::connection::WireError;
use super::conninfo::ConnInfoError;
use super::decoder::Undecodable;
use super::dump::DumpError;
use super::snapshot::SnapshotError;
use super::sql::plain;
use super::store::StoreError;
use super::wire::PacketError;
use crate::failure::{Failure, FailureKind};
use crate::source::finding::Finding;

/// ER_MASTER_FATAL_ERROR_READING_BINLOG: purged, beyond the end, a clash of server ids, and more.
const FATAL_READING: u16 = 1236;
/// ER_SLAVE_SAME_ID of MariaDB, which has a number of its own for what MySQL says by 1236.
const SAME_ID: u16 = 4052;

/// See the module. The text names the object, and for a definite error the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MySqlError {
    /// The URL cannot be read.
    #[error(transparent)]
    Url(#[from] ConnInfoError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or the server ended it.
    #[error("the binlog connection ended")]
    Wire(#[source] WireError),
    /// The binlog cannot be asked for.
    #[error(transparent)]
    Dump(DumpError),
    /// A question to the server failed.
    #[error("could not ask the server about itself: {}", plain(.0))]
    Catalog(mysql_async::Error),
    /// A precondition does not hold.
    #[error("{}: {}; {}", .0.name, .0.detail, .0.fix.as_deref().unwrap_or("no remedy known"))]
    Precondition(Finding),
    /// We may not do what we must, or the server takes no writes.
    #[error("{}: {}; {}", .0.name, .0.detail, .0.fix.as_deref().unwrap_or("no remedy known"))]
    Refused(Finding),
    /// The position cannot be read, kept or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Rows from before the first start cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A row from before the first start cannot be understood.
    #[error("could not read the rows that {table} has from before the first start: {problem}")]
    InitialRow {
        /// The outbox.
        table: String,
        /// Names the column.
        problem: String,
    },
    /// What was kept is no position.
    #[error(
        "the position of relay \"{name}\" cannot be understood: {problem}; put back the one that \
         was there, or remove it and run walpost init --skip-existing"
    )]
    Position {
        /// Key of the position.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server has removed, or never had, what comes after our position.
    #[error(
        "the server cannot send the binlog from {place} on: {message}. Rows are missing between \
         there and what it still has: publish them by hand, then remove the position of relay \
         \"{name}\" and run walpost init --skip-existing; or set source.url to the server that has \
         them"
    )]
    Unreadable {
        /// Where we are.
        place: String,
        /// Key of the position.
        name: String,
        /// The server's own words.
        message: String,
    },
    /// Somebody else registered with our number.
    #[error(
        "another replica has server_id {server_id}, and the server keeps only one of them: give \
         this relay or that replica another number (source.server_id)"
    )]
    ServerIdClash {
        /// Ours.
        server_id: u32,
    },
    /// GTIDs were switched off under way.
    #[error(
        "the transaction that ends at {place} has no GTID, and the position of relay \"{name}\" is \
         kept by GTIDs: set gtid_mode = ON again; rows from that transaction on are to be \
         published by hand"
    )]
    GtidsGone {
        /// Where the first of them ends.
        place: String,
        /// Key of the position.
        name: String,
    },
    /// An event that cannot be understood.
    #[error("could not read the binlog at {place}")]
    Decode {
        /// Where we are.
        place: String,
        /// What is wrong with it.
        source: Box<Undecodable>,
    },
    /// A packet above the bound.
    #[error(
        "an event of {bytes} bytes or more is above what source.row_bytes_max and \
         source.payload_bytes_max allow ({bytes_max}): raise row_bytes_max for a large row, \
         payload_bytes_max for a compressed transaction, and restart walpost"
    )]
    TooLarge {
        /// Of the event, as far as it was seen.
        bytes: usize,
        /// The larger of the two settings.
        bytes_max: usize,
    },
    /// Neither an event nor a heartbeat for several times as long as was agreed.
    #[error("the server was silent for {after:?}, though it should send heartbeats")]
    Silent {
        /// How long.
        after: Duration,
    },
    /// The same, of the table's rows at a first start.
    #[error(
        "the server sent nothing for {after:?} of the rows that the outbox has from before the \
         first start"
    )]
    TableSilent {
        /// How long.
        after: Duration,
    },
    /// Two connections of one session led to two servers.
    #[error(
        "two connections to the source led to different servers, as in a failover; both are closed"
    )]
    OtherServer,
    /// A server that took a connection and then did not answer.
    #[error("the server did not answer within {after:?} what a stream begins with")]
    Unanswered {
        /// How long.
        after: Duration,
    },
    /// The lease is not ours any more, which was told before.
    #[error("this relay does not hold its position any more")]
    NotHeld,
    /// The reader ended without a word: a bug.
    #[error("the thread that reads the binlog ended")]
    ReaderGone,
}

impl From<mysql_async::Error> for MySqlError {
    fn from(error: mysql_async::Error) -> Self {
        Self::Catalog(error)
    }
}

impl MySqlError {
    /// What it asks for.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Connect(error) => error.kind(),
            Self::Wire(error) => error.kind(),
            Self::Dump(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Catalog(error) => catalog_kind(error),
            // For a moment, when roles are switched or passwords rotate.
            Self::Refused(_) => FailureKind::Denied,
            // Bytes may be damaged on their way.
            Self::Decode { source, .. } if source.error.is_damage() => FailureKind::Transient,
            Self::Silent { .. }
            | Self::TableSilent { .. }
            | Self::Unanswered { .. }
            | Self::OtherServer
            | Self::ServerIdClash { .. } => FailureKind::Transient,
            Self::Url(_)
            | Self::Precondition(_)
            | Self::InitialRow { .. }
            | Self::Position { .. }
            | Self::Unreadable { .. }
            | Self::GtidsGone { .. }
            | Self::Decode { .. }
            | Self::TooLarge { .. }
            | Self::NotHeld
            | Self::ReaderGone => FailureKind::Definite,
        }
    }

    /// Sorts what ended a stream that began at `place`.
    pub(super) fn of_stream(error: WireError, place: String, name: &str, server_id: u32) -> Self {
        if let WireError::Packet(PacketError::TooLarge { bytes, bytes_max }) = error {
            return Self::TooLarge { bytes, bytes_max };
        }
        let is_named = |code| code == FATAL_READING || code == SAME_ID;
        let Some(server) = error.server().filter(|server| is_named(server.code)) else {
            return Self::Wire(error);
        };
        // "A replica with the same server_uuid/server_id as this replica has connected to the
        // source"; older servers say slave.
        if server.code == SAME_ID || server.message.contains("same server_uuid/server_id") {
            return Self::ServerIdClash { server_id };
        }
        // MySQL kills a dump thread in the midst of a shutdown or of KILL with this code too.
        if server.message.contains("shutdown") {
            return Self::Wire(error);
        }
        Self::Unreadable { place, name: name.to_owned(), message: server.message.clone() }
    }
}

/// A right that is missing does not come by itself; a connection that broke does.
fn catalog_kind(error: &mysql_async::Error) -> FailureKind {
    match error {
        // ER_DBACCESS_DENIED, ER_ACCESS_DENIED, ER_TABLEACCESS_DENIED, ER_SPECIFIC_ACCESS_DENIED
        mysql_async::Error::Server(error) if matches!(error.code, 1044 | 1045 | 1142 | 1227) => {
            FailureKind::Denied
        }
        _ => FailureKind::Transient,
    }
}

impl From<MySqlError> for Failure {
    fn from(error: MySqlError) -> Self {
        Failure::new(error.kind(), error)
    }
}
