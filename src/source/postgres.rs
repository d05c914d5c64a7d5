//! PostgreSQL logical replication (`pgoutput`, protocol version 1) as a source.
//!
//! | file | noun |
//! |---|---|
//! | `conninfo`, `connect`, `tls`, `auth`, `scram`, `wire`, `replication`, `sql` | a connection that is logged in |
//! | `inspect`, `precondition` | what the catalog says, and whether that will do |
//! | `memory` | what was confirmed, remembered beside the slot |
//! | `session`, `standby` | from "connect" to a stream that may be read |
//! | `watch`, `catalog` | the catalog while connected: what changed, and whether a row was missed |
//! | `reader`, `streaming`, `feedback`, `intake` | the thread that reads it, and how |
//! | `frame`, `pgoutput`, `relation`, `value`, `commit_time`, `decoder` | bytes to rows: pure |
//! | `resume` | what a new connection repeats: pure |

mod auth;
mod catalog;
mod commit_time;
mod connect;
mod conninfo;
pub(crate) mod decoder;
mod error;
mod feedback;
pub(crate) mod frame;
pub mod inspect;
mod intake;
pub(crate) mod lsn;
pub mod memory;
pub(crate) mod moment;
pub(crate) mod number;
pub(crate) mod pgoutput;
pub mod precondition;
mod reader;
pub(crate) mod relation;
mod replication;
pub(crate) mod resume;
mod scram;
mod session;
mod sql;
mod standby;
mod streaming;
mod tls;
pub(crate) mod value;
mod watch;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use super::tls::CertificateFileError;
pub use auth::AuthError;
pub use connect::{ConnectError, PgStream, Purpose, connect};
pub use conninfo::{ConnInfo, ConnInfoError};
pub use decoder::DecodeError;
pub use error::PostgresError;
pub use lsn::Lsn;
pub use memory::GapError;
pub use replication::probe_replication;
pub use scram::ScramError;
pub use sql::{SqlClient, connect_sql};
pub use wire::{Connection, FrameError, Row, ServerError, WireError};

use super::handle::{ReaderEnds, ReaderHandle};
use super::{Change, Source, handle};
use crate::budget::Budget;
use crate::config::{OutboxSettings, PostgresSettings};
use crate::failure::Failure;
use crate::identity::LogId;
use decoder::Decoder;
use memory::Memory;
use reader::{Reader, Shared, Watching};
use resume::Resume;

/// A replication slot, read as outbox rows.
///
/// Begins to connect when it is made; the thread that reads ends when this is closed or dropped.
pub struct PostgresSource {
    shared: Arc<Shared>,
    reader: ReaderHandle<Lsn, PostgresError>,
    resume: Resume,
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
        let info = ConnInfo::of(&settings.url)?;
        let shared = Arc::new(Shared::default());
        let (handle, ReaderEnds { commands, batches }) =
            ReaderHandle::new(|| PostgresError::ReaderGone);
        let decoder = Decoder::new(
            settings.table.schema.clone(),
            settings.table.name.clone(),
            outbox.columns.clone(),
            LogId(0),
        );
        let reader = Reader {
            info,
            format: settings.format,
            settings,
            outbox,
            budget,
            shared: Arc::clone(&shared),
            commands,
            batches,
            decoder,
            system: None,
            received: Lsn(0),
            watching: Watching::default(),
            gave_away: false,
            gave_up: 0,
            refused: None,
            untaken: 0,
            memory: Memory::default(),
        };
        handle::spawn(move || reader.run())?;
        Ok(Self { shared, reader: handle, resume: Resume::default() })
    }
}

impl Source for PostgresSource {
    type Position = Lsn;

    async fn next(&mut self, changes: &mut Vec<Change<Lsn>>) -> Result<(), Failure> {
        let mut batch = self.reader.next().await?;
        // Here and not in the reader: only what is handed over now counts as yielded.
        batch.retain(|change| self.resume.is_new(change));
        self.shared.yielded.store(self.resume.last_commit().0, Ordering::Relaxed);
        changes.append(&mut batch);
        Ok(())
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
        self.reader.close("the database did not take the last acknowledgement in time").await
    }
}
