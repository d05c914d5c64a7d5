//! The reader: one thread that owns the connection and the position, from its start to its close.
//!
//! A thread and a runtime of its own, as the PostgreSQL reader has: it decodes what it reads and
//! hands it over in batches; when nobody takes them it stops reading. The lease on the position is
//! kept by a task of the same runtime, which a reader that waits never holds up.
//!
//! ```text
//!  socket ─▶ Intake ─▶ Decoder ─▶ Resume drops repeats ─▶ batches ─▶ MySqlSource::next
//!                                    │ acknowledged
//!                                    └─▶ Keeper ─▶ walpost_position, fence
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::conninfo::ConnInfo;
use super::decoder::Decoded;
use super::dump::Sent;
use super::error::MySqlError;
use super::here::Here;
use super::initial::{Initial, Step};
use super::intake::Taken;
use super::resume::{MySqlPosition, Place, Resume};
use super::session::{Begin, HEARTBEATS_MISSED_MAX, Session, Start};
use super::snapshot::SnapshotError;
use super::store::{Keeper, Keeping, Progress, Steps, Store, StoredPosition};
use crate::budget::Budget;
use crate::config::{MySqlSettings, OutboxSettings};
use crate::fence::Fence;
use crate::lane::Backoff;
use crate::source::handle;

/// Rows and ends that go over at once. More gather only inside of a compressed transaction or a
/// large event: elsewhere a batch is what a few reads brought.
const BATCH_MAX: usize = 2_048;

/// Longest wait for all that a session begins with: several connections, to several hosts, and what
/// is asked on them. Only for a server that takes connections and then says nothing more.
const OPEN_MAX: Duration = Duration::from_secs(300);

/// How long a relay whose number another replica has waits before it tries again: the server kills
/// the elder of the two each time.
const CLASH_WAIT: Duration = Duration::from_secs(60);

/// How long a first start waits before it tries again to lock the outbox: twice as long each time.
/// Writers wait behind each try, so the tries must be few.
const LOCK_PAUSE: Backoff = Backoff { first: Duration::from_secs(2), max: Duration::from_secs(60) };

/// What source and reader share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` before the first position is known.
    resume: Option<Resume>,
    /// Whether the position may be written as one that is whole: not before the rows of a first
    /// start are confirmed.
    is_known: bool,
    server_uuid: String,
    /// Ends among the rows of a first start that were handed over and are not acknowledged, and
    /// what is kept when they are.
    marks: VecDeque<(u64, Mark)>,
    /// Behind which of those rows all were handed over.
    sent_after: Option<String>,
    /// Behind which of them all are acknowledged.
    initial_after: Option<String>,
}

/// What an end among the rows of a first start means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    /// The rows up to this one are before it.
    After(String),
    /// All of them are.
    Last,
}

impl State {
    /// Where a new connection begins, and the server of that place.
    fn reconnect(&mut self) -> Option<(Place, String)> {
        let place = self.resume.as_mut()?.reconnect();
        Some((place, self.server_uuid.clone()))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to `position` is durable downstream.
    pub(crate) fn acknowledge(&self, position: &MySqlPosition) {
        let mut state = self.lock();
        if let Some(resume) = &mut state.resume {
            resume.acknowledge(position);
        }
        while state.marks.front().is_some_and(|(end, _)| *end <= position.sequence) {
            match state.marks.pop_front() {
                Some((_, Mark::After(after))) => state.initial_after = Some(after),
                Some((_, Mark::Last)) => state.is_known = true,
                None => return,
            }
        }
    }

    pub(crate) fn behind_bytes(&self) -> Option<u64> {
        self.lock().resume.as_ref().map(Resume::behind_bytes)
    }
}

/// The keeper's view.
pub(crate) struct Acknowledged(Arc<Shared>);

impl Progress for Acknowledged {
    fn steps(&self) -> Steps {
        self.0.lock().resume.as_ref().map(Resume::steps).unwrap_or_default()
    }

    fn position(&self) -> Option<StoredPosition> {
        let state = self.0.lock();
        let place = state.resume.as_ref()?.acknowledged().stored(state.server_uuid.clone());
        if state.is_known {
            return Some(place);
        }
        let initial_after = Some(state.initial_after.clone()?);
        Some(StoredPosition { initial_pending: true, initial_after, ..place })
    }
}

type Command = handle::Command<MySqlError>;
type Batch = handle::Batch<MySqlPosition, MySqlError>;

pub(crate) struct Reader {
    pub(crate) info: ConnInfo,
    pub(crate) settings: MySqlSettings,
    pub(crate) outbox: OutboxSettings,
    pub(crate) budget: Budget,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) batches: mpsc::Sender<Batch>,
    pub(crate) fence: Fence,
    /// To be waited before the next session.
    pub(crate) wait: Option<Duration>,
    /// Where an earlier life was, or the first start of this one.
    pub(crate) stored: Option<StoredPosition>,
    /// The server that all connections lead to.
    pub(crate) here: Here,
    /// How often the outbox could not be locked for a first start.
    pub(crate) locks_refused: u32,
    /// Whether rows from before a first start have still to go over.
    pub(crate) initial_open: bool,
    pub(crate) holding: Holding,
}

/// How the position is held.
pub(crate) enum Holding {
    /// Not yet: the keeper has still to take it. Boxed, since it goes on to a task.
    NotYet(Box<Keeper<Store>>),
    /// It is ours, and was never written.
    Taken(Box<Keeper<Store>>),
    /// A task keeps it.
    Kept(Keeping),
    /// It was lost, or given back.
    Over,
}

/// Why a session is over.
enum End {
    Failed(MySqlError),
    Close(oneshot::Sender<Result<(), MySqlError>>),
    /// The source was dropped.
    Abandoned,
}

impl<E: Into<MySqlError>> From<E> for End {
    fn from(error: E) -> Self {
        End::Failed(error.into())
    }
}

/// What no stream ever returns.
type Never = std::convert::Infallible;

impl Reader {
    /// Sessions, one after the other, until the source closes or is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let end = match self.session().await {
                Ok(never) => match never {},
                // The connection is gone before anybody hears of it.
                Err(end) => end,
            };
            let end = match end {
                End::Failed(error) => match self.report(error).await {
                    Ok(()) => continue,
                    Err(end) => end,
                },
                End::Close(_) | End::Abandoned => end,
            };
            match end {
                End::Close(reply) => return self.close(reply).await,
                End::Failed(_) | End::Abandoned => return,
            }
        }
    }

    /// Takes the position where it is not ours yet, connects, and reads.
    async fn session(&mut self) -> Result<Never, End> {
        if let Some(wait) = self.wait.take() {
            let wait = tokio::time::sleep(wait);
            Self::unless_over(&mut self.commands, &mut self.holding, wait).await?;
        }
        self.take().await?;
        let opened = self.open().await;
        if let Err(End::Failed(MySqlError::Snapshot(SnapshotError::Busy {
            table, waited, ..
        }))) = opened
        {
            return Err(self.lock_later(table, waited).into());
        }
        let session = opened?;
        let ended = self.read(session).await;
        if let Err(End::Failed(MySqlError::ServerIdClash { .. })) = &ended {
            self.wait = Some(CLASH_WAIT);
        }
        ended
    }

    /// Lets the writers of the outbox work for a while, longer each time.
    fn lock_later(&mut self, table: String, waited: Duration) -> MySqlError {
        self.locks_refused = self.locks_refused.saturating_add(1);
        let pause = LOCK_PAUSE.after(self.locks_refused);
        self.wait = Some(pause);
        SnapshotError::Busy { table, waited, tries: self.locks_refused, pause }.into()
    }

    /// Waits for `work`, unless a close or the loss of the position comes first: neither must wait
    /// for a server that does not answer.
    async fn unless_over<T>(
        commands: &mut mpsc::Receiver<Command>,
        holding: &mut Holding,
        work: impl Future<Output = T>,
    ) -> Result<T, End> {
        tokio::select! {
            biased;
            command = commands.recv() => Err(commanded(command)),
            error = holding.lost() => Err(error.into()),
            done = work => Ok(done),
        }
    }

    /// Takes the lease and reads the position.
    async fn take(&mut self) -> Result<(), End> {
        match &mut self.holding {
            Holding::NotYet(keeper) => {
                let start = Start {
                    info: &self.info,
                    settings: &self.settings,
                    outbox: &self.outbox,
                    budget: &self.budget,
                    here: &self.here,
                };
                let taking = async {
                    // What can never work is said before anything is written or waited for.
                    let checked = tokio::time::timeout(OPEN_MAX, start.check()).await;
                    checked.map_err(|_| MySqlError::Unanswered { after: OPEN_MAX })??;
                    keeper.take().await.map_err(MySqlError::from)
                };
                // A close first.
                let stored = tokio::select! {
                    biased;
                    command = self.commands.recv() => return Err(commanded(command)),
                    taken = taking => taken?,
                };
                let Holding::NotYet(keeper) = std::mem::replace(&mut self.holding, Holding::Over)
                else {
                    unreachable!("it was just matched");
                };
                self.holding = match stored {
                    Some(stored) => {
                        self.stored = Some(stored);
                        self.start_keeping(*keeper)
                    }
                    None => Holding::Taken(keeper),
                };
                Ok(())
            }
            Holding::Taken(_) | Holding::Kept(_) => Ok(()),
            Holding::Over => Err(MySqlError::NotHeld.into()),
        }
    }

    fn start_keeping(&self, keeper: Keeper<Store>) -> Holding {
        Holding::Kept(Keeping::start(keeper, Acknowledged(Arc::clone(&self.shared))))
    }

    /// Opens a session; at the first one the position is made, where there is none yet.
    async fn open(&mut self) -> Result<Session, End> {
        let start = Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            budget: &self.budget,
            here: &self.here,
        };
        let before = match self.initial_open {
            true => None,
            false => self.shared.lock().reconnect(),
        };
        let begin = match (before, &self.stored) {
            (Some((place, read_from)), _) => Begin::At(place, read_from),
            (None, Some(stored)) => Begin::Stored(self.where_it_came_to(stored)),
            (None, None) => Begin::First(self.settings.initial),
        };
        let opening = tokio::time::timeout(OPEN_MAX, start.open(begin));
        let opened = Self::unless_over(&mut self.commands, &mut self.holding, opening).await?;
        let session = opened.map_err(|_| MySqlError::Unanswered { after: OPEN_MAX })??;
        self.keep(&session).await?;
        let place = &session.place;
        tracing::info!(
            server = %self.info,
            relay = self.settings.name,
            position = %place,
            initial_rows = session.initial.is_some(),
            "streaming"
        );
        Ok(session)
    }

    /// A first start that this life of the source began itself goes on behind what it handed over.
    fn where_it_came_to(&self, stored: &StoredPosition) -> StoredPosition {
        let mut stored = stored.clone();
        if let Some(after) = self.shared.lock().sent_after.clone() {
            stored.initial_after = Some(after);
        }
        stored
    }

    /// From the first session on the position is known. One that was never written is written
    /// before anything is handed over: what follows it must not be left out by another first start,
    /// whether the rows from before it have all been confirmed by then or not.
    async fn keep(&mut self, session: &Session) -> Result<(), MySqlError> {
        let uuid = session.server_uuid.clone();
        self.initial_open = session.initial.is_some();
        {
            let mut state = self.shared.lock();
            state.server_uuid = uuid.clone();
            // A first start whose rows did not all go over reads on in the table, and the binlog
            // from the same place on.
            if state.resume.is_none() || self.initial_open {
                let place = session.place.clone();
                state.resume = Some(match &state.resume {
                    None => Resume::new(place),
                    Some(resume) => resume.restarted(place),
                });
                state.is_known = !self.initial_open;
            }
        }
        let Holding::Taken(keeper) = &mut self.holding else { return Ok(()) };
        let initial_pending = self.initial_open;
        let stored = StoredPosition { initial_pending, ..session.place.stored(uuid) };
        keeper.save(&stored).await?;
        self.stored = Some(stored);
        let Holding::Taken(keeper) = std::mem::replace(&mut self.holding, Holding::Over) else {
            unreachable!("it was just matched");
        };
        self.holding = self.start_keeping(*keeper);
        Ok(())
    }

    /// Hands an error over and waits until a new connection is wanted.
    async fn report(&mut self, error: MySqlError) -> Result<(), End> {
        let mut error = Some(error);
        loop {
            let is_taken = matches!(self.holding, Holding::Taken(_));
            // A close first: nobody may take the error for hours.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Err(End::Close(reply)),
                    Some(Command::Connect) => return Ok(()),
                    None => return Err(End::Abandoned),
                },
                lost = self.holding.lost(), if is_taken => error = Some(lost),
                permit = self.batches.reserve(), if error.is_some() => match (permit, error.take()) {
                    (Ok(permit), Some(error)) => permit.send(Err(error)),
                    _ => return Err(End::Abandoned),
                }
            }
        }
    }

    /// Reads until the session is over.
    async fn read(&mut self, mut session: Session) -> Result<Never, End> {
        let mut decoded = Vec::new();
        if let Some(initial) = session.initial.take() {
            self.read_initial(initial, &mut decoded).await?;
        }
        let silence_max = self.settings.heartbeat * HEARTBEATS_MISSED_MAX;
        loop {
            let arrived = self.decode(&mut session, &mut decoded).await;
            // What is before an error is as good as ever, and whoever goes on by hand behind it
            // must be able to rely on all before it.
            let goes_over = match &arrived {
                Ok(()) => true,
                // Nobody delivers it any more.
                Err(End::Failed(MySqlError::Store(_)) | End::Close(_) | End::Abandoned) => false,
                Err(End::Failed(_)) => true,
            };
            if goes_over && !decoded.is_empty() {
                self.hand_over(&mut session, &mut decoded).await?;
            }
            arrived?;
            let reading = tokio::time::timeout(silence_max, session.stream.read());
            let read = Self::unless_over(&mut self.commands, &mut self.holding, reading).await?;
            match read {
                Err(_) => return Err(MySqlError::Silent { after: silence_max }.into()),
                Ok(Err(error)) => return Err(session.ended(error.into()).into()),
                Ok(Ok(0)) => return Err(session.closed().into()),
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Decodes what has come; hands over what is much, and leaves the rest in `decoded`.
    async fn decode(
        &mut self,
        session: &mut Session,
        decoded: &mut Vec<Decoded>,
    ) -> Result<(), End> {
        while let Some(taken) = session.take()? {
            let packets = match taken {
                Taken::Packets(packets) => packets,
                Taken::Skimmed(skimmed) => {
                    session.pass_over(&skimmed, decoded)?;
                    continue;
                }
            };
            for payload in packets {
                let event = match Sent::of(payload).map_err(|error| session.ended(error))? {
                    Sent::Event(event) => event,
                    Sent::End => return Err(session.closed().into()),
                };
                session.event(event, decoded)?;
                if session.is_concerned() {
                    self.look(session).await?;
                }
                while session.decoder.has_more() {
                    if decoded.len() >= BATCH_MAX {
                        self.hand_over(session, decoded).await?;
                    }
                    session.step(decoded)?;
                    // It may be gigabytes, and whoever keeps the lease shares this thread.
                    tokio::task::yield_now().await;
                }
                if decoded.len() >= BATCH_MAX {
                    self.hand_over(session, decoded).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks the catalog for what the log cannot tell, before anything more goes over.
    async fn look(&mut self, session: &mut Session) -> Result<(), End> {
        let start = Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            budget: &self.budget,
            here: &self.here,
        };
        let looking = tokio::time::timeout(OPEN_MAX, start.look());
        let found = Self::unless_over(&mut self.commands, &mut self.holding, looking).await?;
        let found = found.map_err(|_| MySqlError::Unanswered { after: OPEN_MAX })?;
        session.looked(found?.as_ref());
        Ok(())
    }

    /// The rows that the table had at the first start, as transactions that end where the binlog
    /// goes on.
    async fn read_initial(
        &mut self,
        mut initial: Initial,
        decoded: &mut Vec<Decoded>,
    ) -> Result<(), End> {
        loop {
            let reading = initial.read(BATCH_MAX, decoded);
            let step = Self::unless_over(&mut self.commands, &mut self.holding, reading).await??;
            let (mark, is_last) = match step {
                Step::More { after } => (after.map(Mark::After), false),
                Step::Done => (Some(Mark::Last), true),
            };
            self.send(decoded, 0, mark).await?;
            if is_last {
                self.initial_open = false;
                return Ok(());
            }
        }
    }

    async fn hand_over(
        &mut self,
        session: &mut Session,
        decoded: &mut Vec<Decoded>,
    ) -> Result<(), End> {
        session.warn();
        let named = session.must_have_gtids(decoded);
        self.send(decoded, session.take_received_bytes(), None).await?;
        Ok(named?)
    }

    /// Sends what was decoded, less what was sent before; it counts as handed over from here on.
    /// `mark` is what its last end means.
    async fn send(
        &mut self,
        decoded: &mut Vec<Decoded>,
        received_bytes: usize,
        mark: Option<Mark>,
    ) -> Result<(), End> {
        let reserving = self.batches.reserve();
        let permit = Self::unless_over(&mut self.commands, &mut self.holding, reserving).await?;
        let Ok(permit) = permit else { return Err(End::Abandoned) };
        let mut changes = Vec::with_capacity(decoded.len());
        {
            let mut state = self.shared.lock();
            let sequence = state.resume.as_mut().map(|resume| {
                resume.received(received_bytes);
                resume.hand_over(decoded.drain(..), &mut changes);
                resume.sequence()
            });
            if let Some((sequence, mark)) = sequence.zip(mark) {
                if let Mark::After(after) = &mark {
                    state.sent_after = Some(after.clone());
                }
                state.marks.push_back((sequence, mark));
            }
        }
        if !changes.is_empty() {
            permit.send(Ok(changes));
        }
        Ok(())
    }

    /// The last position, and the lease back.
    async fn close(&mut self, reply: oneshot::Sender<Result<(), MySqlError>>) {
        let result = match std::mem::replace(&mut self.holding, Holding::Over) {
            Holding::Kept(keeping) => keeping.close().await.map_err(MySqlError::from),
            // Nothing was read, so there is nothing to write.
            Holding::Taken(keeper) => keeper.give_back().await.map_err(MySqlError::from),
            // A lease may have been taken, and the answer not be there yet.
            Holding::NotYet(keeper) => keeper.give_back_if_taken().await.map_err(MySqlError::from),
            Holding::Over => Ok(()),
        };
        self.fence.lower();
        // A source that no longer waits has nothing to do with the answer.
        drop(reply.send(result));
    }
}

impl Holding {
    /// Waits until the position is lost; for ever while nobody has it. One that is ours and was
    /// never written is renewed meanwhile: a first start may have to wait for a long time.
    async fn lost(&mut self) -> MySqlError {
        let error = match self {
            Self::Kept(keeping) => keeping.failed().await,
            Self::Taken(keeper) => keeper.stay().await,
            Self::NotYet(_) | Self::Over => std::future::pending().await,
        };
        *self = Self::Over;
        error.into()
    }
}

fn commanded(command: Option<Command>) -> End {
    match command {
        Some(Command::Close(reply)) => End::Close(reply),
        Some(Command::Connect) | None => End::Abandoned,
    }
}

#[cfg(test)]
mod tests;
