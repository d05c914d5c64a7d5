//! The reader: one thread that owns the socket, from its connect to its close.
//!
//! A thread and a runtime of its own, since a walsender wakes its reader for nearly every message,
//! and on a shared multi-threaded runtime each of these wakes costs a trip through its scheduler.
//! It decodes what it reads and hands it over in batches; when nobody takes them it stops reading,
//! and goes on telling the server that it lives.
//!
//! ```text
//!  socket ─▶ Intake ─▶ Decoder ─▶ batches ─▶ PostgresSource::next ─▶ Resume drops repeats
//!    ▲
//!    └─ status update ◀─ every ack_interval if something new was acknowledged,
//!                        when asked, and well within wal_sender_timeout
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::conninfo::ConnInfo;
use super::decoder::{DecodeError, Decoder};
use super::error::PostgresError;
use super::frame::Frame;
use super::intake::Intake;
use super::lsn::Lsn;
use super::pgoutput;
use super::relation::RelationError;
use super::session::{Session, Start, System, type_kinds};
use super::sql::connect_sql;
use super::streaming::Streaming;
use super::wire::{self, ServerError, StandbyStatus, WireError};
use crate::budget::Budget;
use crate::config::{OutboxSettings, PostgresSettings};
use crate::source::{Change, handle};

mod server_says;
mod watching;

pub(crate) use watching::Watching;

/// Longest time for one try to see the last acknowledgement arrive.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TRIES: u32 = 3;

/// Bytes of a frame around a row's own: two headers and a relation id, generously.
const FRAME_OVERHEAD_BYTES: usize = 1 << 10;

/// What source and reader share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Everything up to here is durable downstream; written by the source.
    pub(crate) acknowledged: AtomicU64,
    /// Commit of the last row that the source yielded; written by the source.
    pub(crate) yielded: AtomicU64,
    /// The end of log that the server last told of; written by the reader.
    pub(crate) log_end: AtomicU64,
}

type Command = handle::Command<PostgresError>;
type Batch = handle::Batch<Lsn, PostgresError>;

pub(crate) struct Reader {
    pub(crate) info: ConnInfo,
    pub(crate) settings: PostgresSettings,
    pub(crate) outbox: OutboxSettings,
    pub(crate) budget: Budget,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) decoder: Decoder,
    /// Whose log this source reads, since its first session.
    pub(crate) system: Option<System>,
    /// Everything below was received, by this session or one before: nothing above it may be
    /// acknowledged, and a server whose log ends before it has lost data.
    pub(crate) received: Lsn,
    pub(crate) watching: Watching,
}

/// Why a session is over.
enum End {
    Failed(PostgresError),
    Close(oneshot::Sender<Result<(), PostgresError>>),
    /// The source was dropped.
    Abandoned,
}

impl From<PostgresError> for End {
    fn from(error: PostgresError) -> Self {
        End::Failed(error)
    }
}

/// What no stream ever returns.
type Never = std::convert::Infallible;

impl Reader {
    /// Sessions, one after the other, until the source closes or is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let mut streaming = None;
            let end = match self.connect().await {
                Ok(session) => {
                    let streaming = streaming.insert(self.begin(session));
                    match self.read(streaming).await {
                        Ok(never) => match never {},
                        Err(end) => end,
                    }
                }
                Err(end) => end,
            };
            let end = match end {
                End::Failed(error) => {
                    // The connections go before anybody hears of it.
                    drop(streaming.take());
                    self.watching.end();
                    match self.report(error).await {
                        Ok(()) => continue,
                        Err(end) => end,
                    }
                }
                End::Close(_) | End::Abandoned => end,
            };
            match end {
                End::Close(reply) => return self.close(streaming, reply).await,
                End::Failed(_) | End::Abandoned => return,
            }
        }
    }

    /// Hands an error over and waits until a new connection is wanted.
    async fn report(&mut self, error: PostgresError) -> Result<(), End> {
        let let_go = matches!(error, PostgresError::LetGo { .. });
        let since = self.acknowledged();
        let mut error = Some(error);
        loop {
            // A close first: nobody may take the error for hours.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Err(End::Close(reply)),
                    Some(Command::Connect) => break,
                    None => return Err(End::Abandoned),
                },
                permit = self.batches.reserve(), if error.is_some() => match (permit, error.take()) {
                    (Ok(permit), Some(error)) => permit.send(Err(error)),
                    _ => return Err(End::Abandoned),
                }
            }
        }
        if let_go {
            self.await_progress(since).await;
        }
        Ok(())
    }

    /// After the connection was let go there is nothing to connect for until something is
    /// confirmed; yet a look now and then shows whether the server is still the same.
    async fn await_progress(&mut self, since: Lsn) {
        let until = Instant::now() + self.settings.let_go_after;
        while self.acknowledged() == since
            && Instant::now() < until
            && self.commands.is_empty()
            && !self.batches.is_closed()
        {
            tokio::time::sleep(self.settings.ack_interval).await;
        }
    }

    fn acknowledged(&self) -> Lsn {
        Lsn(self.shared.acknowledged.load(Ordering::Relaxed))
    }

    fn start(&self) -> Start<'_> {
        Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            system: self.system,
            acknowledged: self.acknowledged(),
            received: self.received,
            previous: self.watching.known(),
        }
    }

    /// Opens a session; a close meanwhile ends it.
    async fn connect(&mut self) -> Result<Session, End> {
        let mut decoder = self.decoder.clone();
        // Not `self.start()`: the commands are waited for meanwhile.
        let start = Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            system: self.system,
            acknowledged: self.acknowledged(),
            received: self.received,
            previous: self.watching.known(),
        };
        // A close first: it must not wait for a server that does not answer.
        let session = tokio::select! {
            biased;
            command = self.commands.recv() => return Err(commanded(command)),
            session = start.open(&mut decoder) => session?,
        };
        let mut session = session;
        self.watching.begin(session.watch.take());
        self.decoder = decoder;
        self.system = Some(session.system);
        self.shared.log_end.fetch_max(session.log_end.0, Ordering::Relaxed);
        // From here on "acknowledged" is never 0/0: the slot has a position, and it is ours.
        self.shared.acknowledged.fetch_max(session.confirmed.0, Ordering::Relaxed);
        self.received = self.received.max(session.confirmed);
        tracing::info!(
            server = %self.info,
            slot = self.settings.slot,
            confirmed = %session.confirmed,
            log_end = %session.log_end,
            "streaming"
        );
        Ok(session)
    }

    fn begin(&mut self, session: Session) -> Streaming {
        let frame_bytes_max = self.settings.row_bytes_max.saturating_add(FRAME_OVERHEAD_BYTES);
        let intake = Intake::new(&session.begun, self.budget.clone(), frame_bytes_max);
        Streaming::new(session.stream, intake, session.sender_timeout, self.acknowledged())
    }

    /// Reads until the session is over.
    async fn read(&mut self, streaming: &mut Streaming) -> Result<Never, End> {
        let mut clock = tokio::time::interval(self.settings.ack_interval);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut changes = Vec::new();
        loop {
            let taken = streaming.intake.take();
            let arrived =
                taken.map_err(|error| PostgresError::intake(error, self.settings.row_bytes_max))?;
            let has_arrived = arrived.is_some();
            if let Some(frames) = arrived {
                self.decode(frames, streaming, &mut changes).await?;
            }
            if streaming.asked {
                self.tell(streaming).await?;
            }
            self.consult(streaming, &mut clock, &mut changes).await?;
            while !changes.is_empty() {
                // A close first. Then the clock: nobody may take the batch for hours, and the
                // server must hear from us all the same. Reading waits: that is the pressure.
                let ticked = tokio::select! {
                    biased;
                    command = self.commands.recv() => return Err(commanded(command)),
                    _ = clock.tick() => true,
                    permit = self.batches.reserve() => match permit {
                        Ok(permit) => {
                            permit.send(Ok(std::mem::take(&mut changes)));
                            false
                        }
                        Err(_) => return Err(End::Abandoned),
                    }
                };
                if ticked {
                    self.tick(streaming).await?;
                }
            }
            if has_arrived && self.decoder.in_transaction() {
                // Handed over, so there was room. Within a transaction nothing can be
                // acknowledged, and one may pass for longer than any patience with a broker: let
                // go in its midst, it would begin anew each time.
                streaming.progress_at = Instant::now();
            }
            // As above; the socket last, since under load it is always ready.
            tokio::select! {
                biased;
                command = self.commands.recv() => return Err(commanded(command)),
                _ = clock.tick() => self.tick(streaming).await?,
                () = self.watching.changed() => {}
                result = streaming.read() => {
                    if result.map_err(wire_error)? == 0 {
                        return Err(PostgresError::Wire(WireError::Closed).into());
                    }
                }
            }
        }
    }

    /// Decodes whole frames; appends what is new.
    async fn decode(
        &mut self,
        mut frames: Bytes,
        streaming: &mut Streaming,
        changes: &mut Vec<Change<Lsn>>,
    ) -> Result<(), PostgresError> {
        self.decoder.set_clock(pgoutput::unix_micros(clock_micros()));
        while let Some((tag, length)) = wire::frame(&frames).map_err(wire_error)? {
            let mut body = frames.split_to(length);
            body.advance(wire::HEADER_BYTES);
            match tag {
                wire::COPY_DATA => self.decode_frame(&body, streaming, changes).await?,
                wire::ERROR_RESPONSE => return Err(self.server_error(ServerError::parse(&body))),
                wire::NOTICE_RESPONSE => self.notice(&ServerError::parse(&body))?,
                wire::PARAMETER_STATUS => {}
                // A fast shutdown that waited for our last acknowledgement ends the copy.
                wire::COPY_DONE | wire::COMMAND_COMPLETE => {
                    return Err(PostgresError::Wire(WireError::Closed));
                }
                tag => {
                    let after = "START_REPLICATION";
                    return Err(PostgresError::Wire(WireError::Unexpected { tag, after }));
                }
            }
        }
        Ok(())
    }

    async fn decode_frame(
        &mut self,
        body: &Bytes,
        streaming: &mut Streaming,
        changes: &mut Vec<Change<Lsn>>,
    ) -> Result<(), PostgresError> {
        let undecodable =
            |source| PostgresError::Decode { slot: self.settings.slot.clone(), source };
        match Frame::parse(body).map_err(|error| undecodable(error.into()))? {
            Frame::XLogData(data) => {
                let before = changes.len();
                loop {
                    match self.decoder.decode(&data.data, changes) {
                        Ok(()) => break,
                        Err(DecodeError::Relation(RelationError::UnknownTypes {
                            oids, ..
                        })) => {
                            let sql = connect_sql(&self.info).await?;
                            self.decoder.add_types(type_kinds(&sql, &oids).await?);
                        }
                        Err(error) => return Err(undecodable(error)),
                    }
                }
                if let Some(Change::Commit(position)) = changes.get(before) {
                    self.received = self.received.max(*position);
                }
                // With logical decoding this is the position of the message itself, and the
                // server's log reaches at least that far.
                self.shared.log_end.fetch_max(data.wal_end.0, Ordering::Relaxed);
            }
            Frame::Keepalive(keepalive) => {
                streaming.asked |= keepalive.reply_requested;
                self.shared.log_end.fetch_max(keepalive.wal_end.0, Ordering::Relaxed);
                // Inside of an open transaction it says nothing: part of it is still to come.
                if !self.decoder.in_transaction() {
                    self.received = self.received.max(keepalive.wal_end);
                    // Of several idle positions in a row only the last says anything.
                    if let Some(Change::Idle(last)) = changes.last_mut() {
                        *last = keepalive.wal_end.max(*last);
                    } else {
                        changes.push(Change::Idle(keepalive.wal_end));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every `ack_interval`: tells the server what is new, or that we live, or lets it go.
    async fn tick(&mut self, streaming: &mut Streaming) -> Result<(), PostgresError> {
        let acknowledged = self.acknowledged();
        let now = Instant::now();
        self.watching.verdict()?;
        // A commit's end lies behind its LSN: a row waits until that is acknowledged.
        let waits = Lsn(self.shared.yielded.load(Ordering::Relaxed)) >= acknowledged;
        if acknowledged > streaming.progress || !waits {
            streaming.progress = acknowledged;
            streaming.progress_at = now;
        } else if now - streaming.progress_at >= self.settings.let_go_after
            && !self.watching.slot_must_stay_in_use()
        {
            // Said here too: with a full ledger nobody takes the error until the broker confirms.
            tracing::warn!("no confirm while rows wait: letting the database connection go");
            return Err(PostgresError::LetGo { after: self.settings.let_go_after });
        }
        if acknowledged > streaming.told || now - streaming.told_at >= streaming.silence_max {
            self.tell(streaming).await?;
        }
        Ok(())
    }

    /// Sends a status update.
    async fn tell(&mut self, streaming: &mut Streaming) -> Result<(), PostgresError> {
        let acknowledged = self.acknowledged();
        // PostgreSQL accepts a position beyond its own log, and loses everything up to it.
        assert!(
            acknowledged <= self.received,
            "acknowledged {acknowledged} above {}, which is all that was received",
            self.received
        );
        let mut message = BytesMut::new();
        wire::put_status_update(
            &StandbyStatus {
                written: self.received.0,
                flushed: acknowledged.0,
                applied: acknowledged.0,
                clock_micros: clock_micros(),
                reply_requested: false,
            },
            &mut message,
        );
        streaming.send(&message).await?;
        streaming.told = acknowledged;
        streaming.told_at = Instant::now();
        streaming.asked = false;
        Ok(())
    }

    /// The last acknowledgement: sent, seen in the slot, and only then closed.
    ///
    /// A status update before a close with unread data is sometimes lost (the reset that the
    /// unread data causes overtakes it), so the stream is ended properly and read to its end, and
    /// the slot is asked. What did not arrive is told again by a new connection.
    async fn close(
        &mut self,
        mut streaming: Option<Streaming>,
        reply: oneshot::Sender<Result<(), PostgresError>>,
    ) {
        let mut result = Ok(());
        for _ in 0..CLOSE_TRIES {
            result =
                match tokio::time::timeout(CLOSE_TIMEOUT, self.try_close(streaming.take())).await {
                    Ok(result) => result,
                    Err(_) => Err(PostgresError::Wire(WireError::Closed)),
                };
            match &result {
                Ok(()) => break,
                Err(error) => tracing::debug!("the last acknowledgement has to go again: {error}"),
            }
        }
        // A source that no longer waits has nothing to do with the answer.
        drop(reply.send(result));
    }

    async fn try_close(&mut self, streaming: Option<Streaming>) -> Result<(), PostgresError> {
        let acknowledged = self.acknowledged();
        if let Some(mut streaming) = streaming {
            self.tell(&mut streaming).await?;
            streaming.finish().await?;
        }
        if self.system.is_none() || self.slot_is_at(acknowledged).await? {
            return Ok(());
        }
        let session = self.start().open(&mut self.decoder.clone()).await?;
        let mut streaming = self.begin(session);
        self.tell(&mut streaming).await?;
        streaming.finish().await?;
        match self.slot_is_at(acknowledged).await? {
            true => Ok(()),
            false => Err(PostgresError::Wire(WireError::Closed)),
        }
    }

    async fn slot_is_at(&self, acknowledged: Lsn) -> Result<bool, PostgresError> {
        let sql = connect_sql(&self.info).await?;
        let slot = super::inspect::slot(&sql, &self.settings.slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed?.parse().ok());
        Ok(confirmed.is_some_and(|confirmed: Lsn| confirmed >= acknowledged))
    }
}

fn commanded(command: Option<Command>) -> End {
    match command {
        Some(Command::Close(reply)) => End::Close(reply),
        Some(Command::Connect) | None => End::Abandoned,
    }
}

fn wire_error(error: impl Into<WireError>) -> PostgresError {
    PostgresError::Wire(error.into())
}

/// Microseconds since 2000-01-01, as the protocol counts them.
fn clock_micros() -> i64 {
    const EPOCH: Duration = Duration::from_secs(946_684_800);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(EPOCH);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
