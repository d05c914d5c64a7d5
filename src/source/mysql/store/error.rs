//! Why a position cannot be read or written, and what helps: the one place that judges.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::failure::{Failure, FailureKind};
use crate::source::mysql::sql::plain;

/// See the module. The text names the table or the file, and for a definite error the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No connection to the server that has the table.
    #[error("could not connect to the server that keeps the position")]
    Connect(#[source] Failure),
    /// The lease is another relay's now.
    #[error(
        "the position \"{name}\" in {place} belongs to {taker} now (epoch {found}, ours was \
         {epoch}): this relay was silent for longer than its lease, and another one took over. \
         Nothing was written; a restart stands by until the other one ends"
    )]
    Lost {
        /// Name of the relay, which both have.
        name: String,
        /// The table or the lock.
        place: String,
        /// As the new holder calls itself.
        taker: String,
        /// Under which we held it.
        epoch: u64,
        /// What stands there now.
        found: u64,
    },
    /// The row that was ours is gone, or the lock's file.
    #[error(
        "the position \"{name}\" in {place} is gone: somebody removed it while this relay held \
         it. Nothing was written; put it back if that was a mistake. A restart without it begins \
         as source.initial says"
    )]
    Gone {
        /// Name of the relay.
        name: String,
        /// The table or the lock.
        place: String,
    },
    /// A write without the lease: it was given back.
    #[error("the position \"{name}\" in {place} is not held by this relay any more")]
    NotHeld {
        /// Name of the relay.
        name: String,
        /// The table or the file.
        place: String,
    },
    /// Somebody else has the lock that says who is alive.
    #[error(
        "another relay is about to take over the position \"{name}\" in {place}: this relay's \
         connection was away, and it delivers nothing until that is settled"
    )]
    Contended {
        /// Name of the relay.
        name: String,
        /// The table.
        place: String,
    },
    /// No such table.
    #[error("table {table}, which keeps the position, is missing: make it with `walpost init`")]
    TableMissing {
        /// Quoted, with its database.
        table: String,
    },
    /// The server takes no writes.
    #[error(
        "the server takes no writes, so the position cannot be kept in {table}: {message}. For a \
         source that stays read-only put it elsewhere: source.position = \
         \"mysql://USER@HOST/DATABASE\" names a server that takes writes, \"file:/PATH\" a local \
         file for a single relay"
    )]
    ReadOnly {
        /// Quoted, with its database.
        table: String,
        /// The server's own words.
        message: String,
    },
    /// A privilege is missing, or the account is refused.
    #[error(
        "the account may not use {table}, which keeps the position: {message}. GRANT SELECT, \
         INSERT, UPDATE ON {table} TO that account; `walpost init` does so, and makes the table \
         where it is missing"
    )]
    Denied {
        /// Quoted, with its database.
        table: String,
        /// The server's own words.
        message: String,
    },
    /// A table of the right name and another shape, or a row that no relay wrote.
    #[error(
        "table {table} is not as walpost made it: {problem}. Compare it with `walpost init \
         --print`; an older or foreign table is to be renamed, and init makes a new one"
    )]
    Layout {
        /// Quoted, with its database.
        table: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Any other answer of the server, or a broken connection.
    #[error("could not use {table}, which keeps the position: {}", plain(.cause))]
    Server {
        /// Quoted, with its database.
        table: String,
        /// What the driver says.
        cause: mysql_async::Error,
    },
    /// The server did not answer.
    #[error("no answer within {after:?} about {table}, which keeps the position")]
    Silent {
        /// Quoted, with its database.
        table: String,
        /// How long was waited.
        after: Duration,
    },
    /// The file cannot be used.
    #[error("could not {verb} {}, where the position is kept", .path.display())]
    File {
        /// What was tried: a verb.
        verb: &'static str,
        /// The file or its folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is torn, or something else wrote it.
    #[error(
        "{} is not a position as walpost writes it: {problem}. Restore it from a copy; if it is \
         lost, remove it, and walpost begins as source.initial says", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A sound file of another relay.
    #[error(
        "{} holds the position of relay \"{found}\", and this one is \"{name}\": give each relay a \
         file of its own in source.position", .path.display()
    )]
    OtherRelay {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Ours.
        name: String,
    },
    /// What was refused and might have healed did not.
    #[error("refused for {after:?}")]
    Persists {
        /// How long.
        after: Duration,
        /// The last refusal.
        source: Box<StoreError>,
    },
    /// The place did not take the last write.
    #[error(
        "the last position could not be written within {after:?}: rows since the one before come \
         again, and the next relay waits until the lease runs out"
    )]
    CloseTimeout {
        /// How long was tried.
        after: Duration,
    },
    /// A bug.
    #[error("the task that keeps the position ended with a panic")]
    KeeperGone,
}

impl StoreError {
    /// What it asks for. What is unproven is transient; what a switch of roles or a new password
    /// brings with it is definite only at start, or when it stays.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Connect(failure) => failure.kind(),
            Self::ReadOnly { .. } | Self::Denied { .. } => FailureKind::Denied,
            Self::Server { .. }
            | Self::Silent { .. }
            | Self::Contended { .. }
            | Self::CloseTimeout { .. } => FailureKind::Transient,
            Self::File { source, .. } => file_kind(source),
            Self::Lost { .. }
            | Self::Gone { .. }
            | Self::NotHeld { .. }
            | Self::TableMissing { .. }
            | Self::Layout { .. }
            | Self::Corrupt { .. }
            | Self::OtherRelay { .. }
            | Self::Persists { .. }
            | Self::KeeperGone => FailureKind::Definite,
        }
    }

    /// Sorts an error of a statement about `table`.
    pub(super) fn statement(table: &str, error: mysql_async::Error) -> Self {
        let table = table.to_owned();
        let mysql_async::Error::Server(server) = &error else {
            return Self::Server { table, cause: error };
        };
        let message = server.message.clone();
        match server.code {
            // ER_NO_SUCH_TABLE, ER_BAD_DB_ERROR
            1146 | 1049 => Self::TableMissing { table },
            // ER_OPTION_PREVENTS_STATEMENT has other reasons too.
            1290 if message.contains("read-only") || message.contains("read_only") => {
                Self::ReadOnly { table, message }
            }
            // ER_READ_ONLY_MODE, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
            1836 | 1792 => Self::ReadOnly { table, message },
            // ER_DBACCESS_DENIED, ER_ACCESS_DENIED, ER_TABLEACCESS_DENIED, ER_COLUMNACCESS_DENIED,
            // ER_SPECIFIC_ACCESS_DENIED, ER_MUST_CHANGE_PASSWORD
            1044 | 1045 | 1142 | 1143 | 1227 | 1820 => Self::Denied { table, message },
            // ER_BAD_FIELD, ER_NO_DEFAULT_FOR_FIELD, ER_TRUNCATED_WRONG_VALUE_FOR_FIELD,
            // ER_DATA_TOO_LONG, WARN_DATA_TRUNCATED, ER_WARN_DATA_OUT_OF_RANGE, ER_BAD_NULL
            1054 | 1364 | 1366 | 1406 | 1265 | 1264 | 1048 => {
                Self::Layout { table, problem: message }
            }
            _ => Self::Server { table, cause: error },
        }
    }
}

/// A full disk may be emptied; a folder that is missing or closed was so from the start, or
/// somebody changed it.
fn file_kind(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::Unsupported => FailureKind::Denied,
        _ => FailureKind::Transient,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, message: &str) -> StoreError {
        let error = mysql_async::ServerError {
            code,
            message: message.to_owned(),
            state: "HY000".to_owned(),
        };
        StoreError::statement("`shop`.`walpost_position`", mysql_async::Error::Server(error))
    }

    /// The texts are those of MySQL 9.7.4 and MariaDB 10.11.19.
    #[test]
    fn a_server_that_takes_no_writes_is_told_from_other_options_that_prevent_a_statement() {
        let read_only = "The MySQL server is running with the --super-read-only option so it \
                         cannot execute this statement";
        let error = server(1290, read_only);
        assert_eq!(error.kind(), FailureKind::Denied);
        let text = error.to_string();
        assert!(text.contains("mysql://") && text.contains("file:/"), "{text}");
        let other = "The MySQL server is running with the --secure-file-priv option so it cannot \
                     execute this statement";
        assert_eq!(server(1290, other).kind(), FailureKind::Transient);
    }

    #[test]
    fn what_a_person_must_do_is_in_the_text() {
        let missing = server(1146, "Table 'shop.walpost_position' doesn't exist");
        assert_eq!(missing.kind(), FailureKind::Definite);
        assert!(missing.to_string().contains("walpost init"));
        let denied = server(1142, "UPDATE command denied to user 'relay'@'localhost'");
        assert_eq!(denied.kind(), FailureKind::Denied);
        let text = denied.to_string();
        let grant = "GRANT SELECT, INSERT, UPDATE ON `shop`.`walpost_position`";
        assert!(text.contains(grant) && text.contains("'relay'@'localhost'"), "{text}");
    }

    #[test]
    fn what_heals_by_itself_is_transient() {
        for code in [1205, 1213, 1053, 1317, 1040, 3024] {
            assert_eq!(server(code, "").kind(), FailureKind::Transient, "{code}");
        }
    }
}
