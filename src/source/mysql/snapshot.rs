//! The outbox and the binlog at one moment: for each row it is certain whether it is read from the
//! table or comes from the binlog, never both and never neither.
//!
//! ```text
//!  MariaDB                                     MySQL
//!  reader  START TRANSACTION WITH              locker  LOCK TABLES outbox READ   ┐ writers of the
//!          CONSISTENT SNAPSHOT                 reader  START TRANSACTION …       │ outbox wait
//!          (it has the binlog's end in it)     locker  SHOW BINARY LOG STATUS    │
//!                                              locker  UNLOCK TABLES             ┘
//! ```
//!
//! MariaDB takes its snapshot and the end of the binlog in one step, without any lock; only what is
//! prepared by XA at that moment must have ended. MySQL knows no such step: a transaction may be in
//! the binlog and not yet be seen. (Tried without a lock beside four writers, each of eight
//! snapshots left rows in neither.) So the outbox alone is locked for that moment; the lock waits
//! until each transaction that wrote to it has ended wholly, for `lock_wait` at most, and writers
//! wait behind it meanwhile.
//!
//! Source: MariaDB documentation, "START TRANSACTION", "Enhancements for START TRANSACTION WITH
//! CONSISTENT SNAPSHOT"; MySQL 8.4 reference manual, 15.3.6 "LOCK TABLES".

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, Row};

use super::gtid::Flavor;
use super::inspect::{ServerState, number, text};
use super::sql::plain;
use crate::config::QualifiedName;
use crate::failure::{Failure, FailureKind};

/// Code of a lock that was not had in time.
const LOCK_WAIT_TIMEOUT: u16 = 1205;

/// The end of the binlog at some moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinlogPoint {
    /// Binlog file.
    pub file: String,
    /// Offset in it, at the end of a transaction.
    pub position: u64,
    /// Text of a GTID set; empty where there are no GTIDs.
    pub gtid_set: String,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Somebody wrote to the table all the time.
    #[error(
        "could not lock {table} for a moment (try {tries}): a transaction that writes to it was \
         open for longer than {waited:?}{}. End that transaction (SHOW PROCESSLIST; XA RECOVER), \
         or wait for its end", next_try(.pause)
    )]
    Busy {
        /// For people.
        table: String,
        /// How long.
        waited: Duration,
        /// How often it was tried.
        tries: u32,
        /// How long it is not tried now; zero where it is not tried again.
        pause: Duration,
    },
    /// MariaDB has transactions that were prepared before, whose rows are neither in the table yet
    /// nor in what comes in its binlog.
    #[error(
        "{count} XA transactions are prepared and neither committed nor rolled back: if one of them \
         wrote to {table}, its rows would be missed; end them (XA RECOVER), or wait for their end"
    )]
    Prepared {
        /// For people.
        table: String,
        /// How many.
        count: usize,
    },
    /// The server does not say where its binlog ends.
    #[error("the server has no binlog: start it with --log-bin")]
    NoBinlog,
    /// The end of the binlog has no GTID, though the server has them.
    #[error("the server does not know the GTIDs at {file}:{position}")]
    NoGtids {
        /// Binlog file.
        file: String,
        /// Offset in it.
        position: u64,
    },
    /// Any other answer, or a broken connection.
    #[error("could not read the outbox and the end of the binlog at one moment: {}", plain(.0))]
    Server(Error),
}

impl From<Error> for SnapshotError {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

fn next_try(pause: &Duration) -> String {
    match pause.is_zero() {
        true => String::new(),
        false => format!(
            "; the next try is in {:.1} s, so that other writers are not held up",
            pause.as_secs_f64()
        ),
    }
}

impl SnapshotError {
    /// What it asks for.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Busy { .. } | Self::Prepared { .. } | Self::NoGtids { .. } => {
                FailureKind::Transient
            }
            Self::NoBinlog => FailureKind::Definite,
            Self::Server(Error::Server(error)) => match error.code {
                // ER_DBACCESS_DENIED, ER_TABLEACCESS_DENIED, ER_SPECIFIC_ACCESS_DENIED
                1044 | 1142 | 1227 => FailureKind::Denied,
                // ER_NO_SUCH_TABLE
                1146 => FailureKind::Definite,
                _ => FailureKind::Transient,
            },
            Self::Server(_) => FailureKind::Transient,
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        Failure::new(error.kind(), error)
    }
}

/// Opens a snapshot on `reader`: until that connection ends its transaction it sees the table as
/// it was at the point that is returned. `locker` is another connection to the same server; only
/// MySQL needs it, and it holds no lock afterwards.
///
/// # Errors
/// See [`SnapshotError`]. A connection is not to be used on after one.
///
/// # Cancel safety
/// A dropped call leaves both connections in an unknown state: drop them too, which frees the
/// lock.
pub async fn open(
    server: &ServerState,
    table: &QualifiedName,
    lock_wait: Duration,
    reader: &mut Conn,
    locker: &mut Conn,
) -> Result<BinlogPoint, SnapshotError> {
    reader.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    match server.flavor {
        Flavor::MariaDb => {
            // Their rows are in the binlog where they were prepared. Asked on both sides, since one
            // may be prepared or end in between.
            none_prepared(table, reader).await?;
            let point = without_lock(reader).await?;
            none_prepared(table, reader).await?;
            Ok(point)
        }
        Flavor::MySql => locked(server, table, lock_wait, reader, locker).await,
    }
}

/// Opens a snapshot on `reader` that sees at least what an earlier one saw.
///
/// # Errors
/// See [`SnapshotError`].
pub(crate) async fn open_again(reader: &mut Conn) -> Result<(), SnapshotError> {
    reader.query_drop("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    reader.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    Ok(())
}

async fn none_prepared(table: &QualifiedName, reader: &mut Conn) -> Result<(), SnapshotError> {
    let prepared: Vec<Row> = reader.query("XA RECOVER").await?;
    match prepared.len() {
        0 => Ok(()),
        count => Err(SnapshotError::Prepared { table: table.plain_mysql(), count }),
    }
}

async fn without_lock(reader: &mut Conn) -> Result<BinlogPoint, SnapshotError> {
    reader.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    let rows: Vec<(String, String)> =
        reader.query("SHOW SESSION STATUS LIKE 'binlog\\_snapshot\\_%'").await?;
    let value = |name: &str| {
        rows.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    let file = value("binlog_snapshot_file").unwrap_or_default().to_owned();
    let position = value("binlog_snapshot_position").and_then(|text| text.parse().ok());
    let (false, Some(position)) = (file.is_empty(), position) else {
        return Err(SnapshotError::NoBinlog);
    };
    let gtids: Option<Row> =
        reader.exec_first("SELECT BINLOG_GTID_POS(?, ?)", (&file, position)).await?;
    match gtids.as_ref().and_then(|row| text(row, 0)) {
        Some(gtid_set) => Ok(BinlogPoint { file, position, gtid_set }),
        None => Err(SnapshotError::NoGtids { file, position }),
    }
}

async fn locked(
    server: &ServerState,
    table: &QualifiedName,
    lock_wait: Duration,
    reader: &mut Conn,
    locker: &mut Conn,
) -> Result<BinlogPoint, SnapshotError> {
    let seconds = lock_wait.as_secs().max(1);
    locker.query_drop(format!("SET SESSION lock_wait_timeout = {seconds}")).await?;
    let lock = format!("LOCK TABLES {} READ", table.quoted_mysql());
    locker.query_drop(lock).await.map_err(|error| match error {
        Error::Server(error) if error.code == LOCK_WAIT_TIMEOUT => {
            let table = table.plain_mysql();
            SnapshotError::Busy { table, waited: lock_wait, tries: 1, pause: Duration::ZERO }
        }
        error => error.into(),
    })?;
    reader.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    let status = server.log_status_query();
    let row: Option<Row> = locker.query_first(status).await?;
    locker.query_drop("UNLOCK TABLES").await?;
    let row = row.ok_or(SnapshotError::NoBinlog)?;
    Ok(BinlogPoint {
        file: text(&row, 0).ok_or(SnapshotError::NoBinlog)?,
        position: number(&row, 1).ok_or(SnapshotError::NoBinlog)?,
        // A server without GTIDs may still have some from before. It breaks long sets into lines.
        gtid_set: match server.has_gtids() {
            true => text(&row, 4).unwrap_or_default().replace('\n', ""),
            false => String::new(),
        },
    })
}
