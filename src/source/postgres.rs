//! PostgreSQL logical replication (`pgoutput`, protocol version 1) as a source.
//!
//! | file | noun |
//! |---|---|
//! | `conninfo`, `connect`, `tls`, `auth`, `wire`, `sql` | a connection that is logged in |
//! | `inspect`, `precondition` | what the catalog says, and whether that will do |
//! | `session` | from "connect" to a stream that may be read |
//! | `reader`, `streaming`, `intake` | the thread that reads it, and how |
//! | `frame`, `pgoutput`, `relation`, `value`, `decoder` | bytes to rows: pure |
//! | `resume` | what a new connection repeats: pure |

mod auth;
mod connect;
mod conninfo;
pub(crate) mod decoder;
mod error;
pub(crate) mod frame;
pub mod inspect;
mod intake;
pub(crate) mod lsn;
pub(crate) mod moment;
pub(crate) mod number;
pub(crate) mod pgoutput;
pub mod precondition;
mod reader;
pub(crate) mod relation;
pub(crate) mod resume;
mod session;
mod sql;
mod streaming;
mod tls;
pub(crate) mod value;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use super::tls::CertificateFileError;
pub use auth::AuthError;
pub use connect::{ConnectError, PgStream, Purpose, connect};
pub use conninfo::{ConnInfo, ConnInfoError, PasswordError};
pub use decoder::DecodeError;
pub use error::PostgresError;
pub use lsn::Lsn;
pub use sql::{SqlClient, connect_sql};
pub use wire::{Connection, FrameError, Row, ServerError, WireError};

use super::{Change, Source};
use crate::budget::Budget;
use crate::config::{OutboxSettings, PostgresSettings};
use crate::failure::Failure;
use crate::identity::LogId;
use decoder::Decoder;
use reader::{Batch, Command, Reader, Shared};
use resume::Resume;

/// Batches between reader and relay. Few: each may be as large as a read, or as a row.
const BATCHES_MAX: usize = 2;

/// Longest wait for the reader to see the last acknowledgement arrive: its own tries and a little.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A replication slot, read as outbox rows.
///
/// Begins to connect when it is made; the thread that reads ends when this is closed or dropped.
pub struct PostgresSource {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    batches: mpsc::Receiver<Batch>,
    resume: Resume,
    /// Whether the last batch was an error, after which the reader waits to be told.
    failed: bool,
}

impl PostgresSource {
    /// Starts to read. What is read counts against `budget` until its last slice is dropped.
    ///
    /// # Errors
    /// The URL cannot be read, or no thread can be started.
    pub fn start(
        settings: PostgresSettings,
        outbox: OutboxSettings,
        budget: Budget,
    ) -> Result<Self, Failure> {
        let info = ConnInfo::parse(settings.url.expose()).map_err(Failure::definite)?;
        let shared = Arc::new(Shared::default());
        let (commands, command_receiver) = mpsc::channel(4);
        let (batch_sender, batches) = mpsc::channel(BATCHES_MAX);
        let decoder = Decoder::new(
            settings.table.schema.clone(),
            settings.table.name.clone(),
            outbox.columns.clone(),
            LogId(0),
        );
        let reader = Reader {
            info,
            settings,
            outbox,
            budget,
            shared: Arc::clone(&shared),
            commands: command_receiver,
            batches: batch_sender,
            decoder,
            system: None,
            received: Lsn(0),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::definite)?;
        std::thread::Builder::new()
            .name("walpost-reader".into())
            .spawn(move || runtime.block_on(reader.run()))
            .map_err(Failure::definite)?;
        Ok(Self { shared, commands, batches, resume: Resume::default(), failed: false })
    }
}

impl Source for PostgresSource {
    type Position = Lsn;

    async fn next(&mut self, changes: &mut Vec<Change<Lsn>>) -> Result<(), Failure> {
        if self.failed {
            // Never full: an error is answered by one command, and taken before the next.
            drop(self.commands.try_send(Command::Connect));
            self.failed = false;
        }
        match self.batches.recv().await {
            Some(Ok(mut batch)) => {
                // Here and not in the reader: only what is handed over now counts as yielded.
                batch.retain(|change| self.resume.is_new(change));
                self.shared.yielded.store(self.resume.last_commit().0, Ordering::Relaxed);
                changes.append(&mut batch);
                Ok(())
            }
            Some(Err(error)) => {
                self.failed = true;
                Err(error.into())
            }
            None => Err(PostgresError::ReaderGone.into()),
        }
    }

    fn acknowledge(&mut self, position: Lsn) {
        self.shared.acknowledged.fetch_max(position.0, Ordering::Relaxed);
    }

    fn behind_bytes(&self) -> Option<u64> {
        let log_end = Lsn(self.shared.log_end.load(Ordering::Relaxed));
        let acknowledged = Lsn(self.shared.acknowledged.load(Ordering::Relaxed));
        Some(log_end.bytes_since(acknowledged))
    }

    async fn close(self) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_err() {
            return Err(PostgresError::ReaderGone.into());
        }
        match tokio::time::timeout(CLOSE_TIMEOUT, answer).await {
            Ok(Ok(result)) => result.map_err(Failure::from),
            Ok(Err(_)) => Err(PostgresError::ReaderGone.into()),
            Err(_) => Err(Failure::transient(
                "the database did not take the last acknowledgement in time",
            )),
        }
    }
}
