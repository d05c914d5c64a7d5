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
//!    └─ status update ◀─ see `feedback`: what is new, answers, and signs of life both ways
//! ```

mod closing;
mod refusal;
mod report;
mod telling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::conninfo::ConnInfo;
use super::decoder::{DecodeError, Decoder};
use super::error::PostgresError;
use super::feedback::Feedback;
use super::frame::Frame;
use super::intake::{Intake, Relevance};
use super::lsn::Lsn;
use super::memory::Memory;
use super::pgoutput;
use super::relation::RelationError;
use super::session::{Session, Start, System};
use super::streaming::Streaming;
use super::wire::{self, ServerError, WireError};
use crate::budget::Budget;
use crate::config::{OutboxSettings, PostgresSettings, ValueFormat};
use crate::source::{Change, handle};

mod server_says;
mod watching;

pub(crate) use refusal::Refusal;
pub(crate) use watching::Watching;

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
    pub(super) memory: Memory,
    /// How the server is to send values: as configured, until it must be text.
    pub(crate) format: ValueFormat,
    /// Whether this source released the slot for another relay to take.
    pub(crate) gave_away: bool,
    /// How often in a row the server was given up for its silence.
    pub(crate) gave_up: u32,
    /// What the server last refused to send.
    pub(crate) refused: Option<Refusal>,
    /// Errors that were handed over and not answered by a command to connect.
    pub(crate) untaken: u32,
}

/// Why a session is over.
#[derive(Debug)]
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
                        Err(End::Failed(error)) if self.turns_to_text(&error) => {
                            self.watching.end();
                            continue;
                        }
                        Err(End::Failed(error)) => End::Failed(self.judge_refusal(error)),
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

    fn acknowledged(&self) -> Lsn {
        Lsn(self.shared.acknowledged.load(Ordering::Relaxed))
    }

    /// Opens a session; a close meanwhile ends it.
    async fn connect(&mut self) -> Result<Session, End> {
        let mut decoder = self.decoder.clone();
        // Not `self.start(…)`: the commands are waited for meanwhile.
        let start = Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            system: self.system,
            acknowledged: self.acknowledged(),
            received: self.received,
            previous: self.watching.known(),
            format: self.format,
            gave_away: self.gave_away,
        };
        // A close first: it must not wait for a server that does not answer.
        let session = tokio::select! {
            biased;
            end = commanded(&mut self.commands, &mut self.untaken) => return Err(end),
            session = start.open(&mut decoder) => session?,
        };
        let mut session = session;
        self.watching.begin(session.watch.take());
        if let Some(recalled) = session.recalled.take() {
            let (info, system) = (&session.info, session.system);
            self.memory = Memory::begin(info, &self.settings, recalled, system, session.confirmed);
        }
        self.decoder = decoder;
        self.gave_away = false;
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
        // While reading waits, only a write shows that the connection is gone: soon enough, where
        // the server gives up a slot that nobody uses.
        let timeouts = [session.sender_timeout, self.watching.idle_slot_max()];
        let (interval, timeout) =
            (self.settings.ack_interval, timeouts.into_iter().flatten().min());
        let feedback = Feedback::new(interval, timeout, self.gave_up, Instant::now());
        Streaming::new(session.stream, intake, session.info, feedback, self.acknowledged())
    }

    /// Reads until the session is over.
    async fn read(&mut self, streaming: &mut Streaming) -> Result<Never, End> {
        let mut changes = Vec::new();
        loop {
            let taken = streaming.intake.take(|head| match self.decoder.leaves_out(head) {
                true => Relevance::Foreign,
                false => Relevance::Wanted,
            });
            let arrived = taken.map_err(|error| PostgresError::intake(error, &self.settings))?;
            let has_arrived = arrived.is_some();
            if let Some(frames) = arrived {
                self.decode(frames, streaming, &mut changes).await?;
            }
            self.tell_if_due(streaming).await?;
            self.consult(streaming, &mut changes).await?;
            let waits_for_room = !changes.is_empty();
            while !changes.is_empty() {
                // A close first. Then the clock: nobody may take the batch for hours, and the
                // server must hear from us all the same. Reading waits: that is the pressure.
                let ticked = tokio::select! {
                    biased;
                    end = commanded(&mut self.commands, &mut self.untaken) => return Err(end),
                    _ = streaming.clock.tick() => true,
                    permit = self.batches.reserve() => match permit {
                        Ok(permit) => {
                            permit.send(Ok(std::mem::take(&mut changes)));
                            false
                        }
                        Err(_) => return Err(End::Abandoned),
                    }
                };
                if ticked {
                    // What the server says meanwhile is not heard.
                    streaming.feedback.listens(Instant::now());
                    self.tick(streaming).await?;
                }
            }
            if waits_for_room {
                streaming.feedback.listens(Instant::now());
            }
            if has_arrived && self.decoder.in_transaction() {
                // Handed over, so there was room. Within a transaction nothing can be
                // acknowledged, and one may pass for longer than any patience with a broker: let
                // go in its midst, it would begin anew each time.
                streaming.progress_at = Instant::now();
            }
            // A close first, as above.
            let ready = tokio::select! {
                biased;
                end = commanded(&mut self.commands, &mut self.untaken) => return Err(end),
                () = self.watching.changed() => continue,
                ready = streaming.tick_or_read() => ready,
            };
            match ready {
                None => self.tick(streaming).await?,
                Some(read) => {
                    if read.map_err(wire_error)? == 0 {
                        return Err(PostgresError::Wire(WireError::Closed).into());
                    }
                    if streaming.feedback.heard(Instant::now()) {
                        self.gave_up = 0;
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
    ) -> Result<(), End> {
        self.decoder.set_clock(pgoutput::unix_micros(telling::clock_micros()));
        while let Some((tag, length)) = wire::frame(&frames).map_err(wire_error)? {
            let mut body = frames.split_to(length);
            body.advance(wire::HEADER_BYTES);
            match tag {
                wire::COPY_DATA => self.decode_frame(&body, streaming, changes).await?,
                wire::ERROR_RESPONSE => {
                    return Err(self.server_error(ServerError::parse(&body)).into());
                }
                wire::NOTICE_RESPONSE => self.notice(&ServerError::parse(&body))?,
                wire::PARAMETER_STATUS => {}
                // A fast shutdown that waited for our last acknowledgement ends the copy.
                wire::COPY_DONE | wire::COMMAND_COMPLETE => {
                    return Err(PostgresError::Wire(WireError::Closed).into());
                }
                tag => {
                    let after = "START_REPLICATION";
                    return Err(PostgresError::Wire(WireError::Unexpected { tag, after }).into());
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
    ) -> Result<(), End> {
        let slot = self.settings.slot.clone();
        let undecodable = |source| PostgresError::Decode { slot: slot.clone(), source };
        match Frame::parse(body).map_err(|error| undecodable(error.into()))? {
            Frame::XLogData(data) => {
                let before = changes.len();
                loop {
                    match self.decoder.decode(&data.data, changes) {
                        Ok(()) => break,
                        Err(DecodeError::Relation(RelationError::UnknownTypes {
                            oids, ..
                        })) => {
                            let kinds = self.look_up(oids, streaming).await?;
                            self.decoder.add_types(kinds);
                        }
                        Err(error) => return Err(undecodable(error).into()),
                    }
                }
                self.gave_up = 0;
                if let Some(Change::Commit(position)) = changes.get(before) {
                    self.received = self.received.max(*position);
                }
                // With logical decoding this is the position of the message itself, and the
                // server's log reaches at least that far.
                self.shared.log_end.fetch_max(data.wal_end.0, Ordering::Relaxed);
            }
            Frame::Keepalive(keepalive) => {
                if keepalive.reply_requested {
                    streaming.feedback.asked(Instant::now());
                }
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
}

/// Waits for a command that ends a session. One to connect answers an error of before, after
/// which the reader has connected by itself.
///
/// # Cancel safety
/// Cancel safe.
async fn commanded(commands: &mut mpsc::Receiver<Command>, untaken: &mut u32) -> End {
    loop {
        match commands.recv().await {
            Some(Command::Close(reply)) => return End::Close(reply),
            Some(Command::Connect) if *untaken > 0 => *untaken -= 1,
            Some(Command::Connect) | None => return End::Abandoned,
        }
    }
}

fn wire_error(error: impl Into<WireError>) -> PostgresError {
    PostgresError::Wire(error.into())
}

#[cfg(test)]
mod tests;
