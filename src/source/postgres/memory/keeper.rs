//! The memory of a relay at work: what the reader asks before it acknowledges.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::conninfo::ConnInfo;
use super::super::lsn::Lsn;
use super::super::session::System;
use super::Recalled;
use super::schedule::Schedule;
use super::table::{MemoryState, Write, WriteError, Writer};
use crate::config::PostgresSettings;
use crate::source::memory_file::{MemoryFile, Record, boot};

/// The writer's connection is closed after so long without a write.
const KEEP_CONNECTION: Duration = Duration::from_secs(30);
/// Longest wait for the writes at the end, and for the disk.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(4);
/// Between two warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

type WriteResult = Result<Option<i64>, WriteError>;

/// See the module. One for each source; empty until its first session.
#[derive(Default)]
pub(in super::super) struct Memory {
    row: Option<RowKeeper>,
    file: Option<FileKeeper>,
}

impl Memory {
    /// Begins to remember, from `confirmed` on.
    pub(in super::super) fn begin(
        info: &ConnInfo,
        settings: &PostgresSettings,
        recalled: Recalled,
        system: System,
        confirmed: Lsn,
    ) -> Self {
        let Recalled { state, version, file, replaces } = recalled;
        // Only has to differ from that of every other process.
        let holder = format!("{:016x}", std::hash::RandomState::new().build_hasher().finish());
        let known = state.row();
        let file = file.map(|file| FileKeeper {
            file,
            record: Record {
                log: system.identifier.to_string(),
                timeline: system.timeline,
                name: settings.slot.clone(),
                position: confirmed.to_string(),
                writes: known.map_or(0, |row| row.writes),
                holder: known.map_or_else(String::new, |row| row.holder.clone()),
                is_clean: false,
                boot: boot(),
            },
            noted: Lsn::ZERO,
        });
        let row = match state {
            MemoryState::Missing | MemoryState::Unusable(_) => None,
            MemoryState::Empty | MemoryState::Row(_) => {
                let writer = Writer {
                    info: info.clone(),
                    version,
                    table: settings.memory_table(),
                    slot: settings.slot.clone(),
                    system_identifier: system.identifier,
                    timeline: system.timeline,
                    holder,
                    client: None,
                };
                Some(RowKeeper::start(writer, Schedule::new(confirmed, replaces)))
            }
        };
        Self { row, file }
    }

    /// How far may be acknowledged now.
    pub(in super::super) fn allowed(&self) -> Lsn {
        self.row.as_ref().map_or(Lsn(u64::MAX), |row| row.schedule.allowed())
    }

    /// Takes what was written, and asks for what is due. Never waits.
    pub(in super::super) fn tick(&mut self, acknowledged: Lsn, yielded: Lsn) {
        let Some(row) = &mut self.row else { return };
        while let Ok(result) = row.results.try_recv() {
            row.take(result, &mut self.file);
        }
        if let Some(write) = row.schedule.due(acknowledged, yielded, Instant::now()) {
            row.ask(write);
        }
    }

    /// Notes what is about to be acknowledged.
    pub(in super::super) fn note(&mut self, position: Lsn) {
        if let Some(file) = self.file.take_if(|file| !file.note(position)) {
            file.file.discard();
        }
    }

    /// Makes room for a last acknowledgement that is beyond the bound.
    pub(in super::super) async fn make_room(&mut self, acknowledged: Lsn) {
        let until = Instant::now() + LAST_WRITE_TIMEOUT;
        let Some(row) = &mut self.row else { return };
        row.await_pending(until, &mut self.file).await;
        if row.schedule.allowed() < acknowledged {
            let write = row.schedule.extend(acknowledged, Instant::now());
            row.ask(write);
            row.await_pending(until, &mut self.file).await;
        }
    }

    /// Writes the end of a relay that stops by itself: exact, and marked as that.
    pub(in super::super) async fn finish(&mut self, acknowledged: Lsn) {
        let until = Instant::now() + LAST_WRITE_TIMEOUT;
        if let Some(row) = &mut self.row {
            row.await_pending(until, &mut self.file).await;
            let write = row.schedule.last(acknowledged, Instant::now());
            row.ask(write);
            row.await_pending(until, &mut self.file).await;
        }
        if let Some(file) = &mut self.file {
            file.finish(acknowledged, until).await;
        }
    }
}

struct RowKeeper {
    schedule: Schedule,
    writes: mpsc::Sender<Write>,
    results: mpsc::Receiver<WriteResult>,
    table: String,
    holder: String,
    warned_at: Option<Instant>,
    /// One task; dropping the set ends it.
    _task: JoinSet<()>,
}

impl RowKeeper {
    fn start(writer: Writer, schedule: Schedule) -> Self {
        let (writes, requests) = mpsc::channel(1);
        let (answers, results) = mpsc::channel(1);
        let (table, holder) = (writer.table.to_string(), writer.holder.clone());
        let mut task = JoinSet::new();
        task.spawn(write_rows(writer, requests, answers));
        Self { schedule, writes, results, table, holder, warned_at: None, _task: task }
    }

    fn ask(&mut self, write: Write) {
        // One at a time, so there is room, unless the task is gone.
        if self.writes.try_send(write).is_err() {
            self.schedule.failed();
        }
    }

    fn take(&mut self, result: WriteResult, file: &mut Option<FileKeeper>) {
        let why = match result {
            Ok(Some(writes)) => {
                self.schedule.written();
                if let Some(file) = file {
                    file.record.writes = writes;
                    file.record.holder = self.holder.clone();
                    file.noted = Lsn::ZERO;
                }
                return;
            }
            Ok(None) => "another relay has written it".to_owned(),
            Err(error) => error.to_string(),
        };
        self.schedule.failed();
        if self.warned_at.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            self.warned_at = Some(Instant::now());
            tracing::warn!(
                table = self.table,
                "what is confirmed could not be remembered: {why}; going on, and trying again"
            );
        }
    }

    async fn await_pending(&mut self, until: Instant, file: &mut Option<FileKeeper>) {
        if !self.schedule.is_pending() {
            return;
        }
        match tokio::time::timeout_at(until, self.results.recv()).await {
            Ok(Some(result)) => self.take(result, file),
            Ok(None) => self.schedule.failed(),
            Err(_) => self.take(Err(WriteError::TimedOut), file),
        }
    }
}

/// The writer's task: one write after the other, until nobody asks any more.
async fn write_rows(
    mut writer: Writer,
    mut requests: mpsc::Receiver<Write>,
    answers: mpsc::Sender<WriteResult>,
) {
    loop {
        let write = match tokio::time::timeout(KEEP_CONNECTION, requests.recv()).await {
            Ok(Some(write)) => write,
            Ok(None) => return,
            Err(_) => {
                writer.client = None;
                match requests.recv().await {
                    Some(write) => write,
                    None => return,
                }
            }
        };
        let result = writer.write(&write).await;
        if answers.send(result).await.is_err() {
            return;
        }
    }
}

struct FileKeeper {
    file: MemoryFile,
    record: Record,
    /// The last position written, or 0/0 where the record has something else that is new.
    noted: Lsn,
}

impl FileKeeper {
    /// Says whether the file is still of use.
    #[must_use]
    fn note(&mut self, position: Lsn) -> bool {
        if position <= self.noted {
            return true;
        }
        self.record.position = position.to_string();
        match self.file.write(&self.record) {
            Ok(()) => self.noted = position,
            Err(error) => {
                tracing::warn!(
                    path = %self.file.path().display(),
                    "the memory file could not be written and is removed: {error}; going on \
                     without it until the next start"
                );
                return false;
            }
        }
        true
    }

    async fn finish(&mut self, position: Lsn, until: Instant) {
        // Exact also after another boot, once it is durable.
        self.record.is_clean = true;
        self.noted = Lsn::ZERO;
        if !self.note(position) {
            return;
        }
        let Ok(handle) = self.file.handle() else { return };
        let syncing = tokio::task::spawn_blocking(move || handle.sync_data());
        match tokio::time::timeout_at(until, syncing).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!("the memory file could not be synced: {error}"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the memory file was not synced in time"),
        }
    }
}
