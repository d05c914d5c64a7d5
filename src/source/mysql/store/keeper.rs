//! The keeper: when the position is written and the lease renewed, and the fence that follows.
//!
//! It writes soon after rows were acknowledged, in one statement with the lease's renewal, and
//! renews at a third of the lease when there is nothing to write. Where only the rest of the log
//! went by, it writes once a second: that only keeps the place near the log's end. What it writes is
//! a transaction of the source's own log, which comes back as an acknowledged one: that alone is
//! taken along once a minute, or an idle relay would write for ever.
//!
//! ```text
//!  sent ─────── renewal due ──────────── fence falls ────── lease ends by the server's clock
//!   0              1/3                       3/4                  1 (from the arrival there)
//!                   └── tries, until one is answered ──▶ fence up to 3/4 from when that was sent
//! ```
//!
//! The last quarter is for a delivery that began while the fence was up and has yet to land.
//! Knows no SQL and no binlog; generic over where it writes, so that schedules can be tested.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Attempt, Backend, Busy, StoreError, StoredPosition};
use crate::failure::FailureKind;
use crate::fence::Fence;
use crate::lane::Backoff;

/// How soon the position follows a log in which nothing of ours is.
const FOREIGN_INTERVAL: Duration = Duration::from_secs(1);

/// How soon it is moved over its own writes: files of the binlog that hold nothing else may be
/// removed.
const OWN_INTERVAL: Duration = Duration::from_secs(60);

/// How often a standby looks whether the lease is free.
const STANDBY_LOOK: Duration = Duration::from_millis(500);
const STANDBY_SAID: Duration = Duration::from_secs(60);

/// How long a refused write is tried again while a relay runs: passwords rotate, and a server is
/// read-only for a moment when roles are switched. As `auth_wait` of the relay.
const DENIED_MAX: Duration = Duration::from_secs(300);

/// Between tries. Short: the fence falls meanwhile.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(1) };

/// How often a trouble that lasts is said again.
const TROUBLE_SAID: Duration = Duration::from_secs(30);

/// Longest time for the last write and the release together.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(15);
const CLOSE_TRIES: u32 = 3;

/// What the source has acknowledged, as the keeper asks for it.
pub(crate) trait Progress: Send + Sync + 'static {
    /// How far it came. Asked often, so it must cost little.
    fn steps(&self) -> Steps;

    /// Everything acknowledged, at least as far as the last answer of [`steps`](Progress::steps).
    /// `None` before a first position is known. Asked only when it is written, since the text of
    /// a GTID set may be long.
    fn position(&self) -> Option<StoredPosition>;
}

/// Counts of acknowledged transactions; they only rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    pub(crate) all: u64,
    /// All but those that only wrote positions, ours or another relay's.
    pub(crate) foreign: u64,
    /// Those with rows of the outbox.
    pub(crate) rows: u64,
}

/// See the module.
pub(crate) struct Keeper<B> {
    backend: B,
    /// As others are told who holds the lease.
    holder: String,
    lease: Duration,
    ack_interval: Duration,
    fence: Fence,
    /// When the last extension of the lease that succeeded was sent.
    extended_at: Instant,
    /// What the last save covered, and when it was.
    saved: Steps,
    saved_at: Instant,
    trouble: Option<Trouble>,
    /// Whether the lease may be ours without our knowing it: an attempt was not answered.
    is_unsure: bool,
}

/// Since when writes fail.
struct Trouble {
    since: Instant,
    attempts: u32,
    /// Since when they are refused, which does not always heal.
    denied_since: Option<Instant>,
    said_at: Option<Instant>,
    /// Whether the fence fell meanwhile.
    fenced: bool,
}

impl<B: Backend> Keeper<B> {
    /// Connects to nothing yet. The fence comes up with the lease.
    pub(crate) fn new(
        backend: B,
        holder: String,
        lease: Duration,
        ack_interval: Duration,
        fence: Fence,
    ) -> Self {
        let now = Instant::now();
        Self {
            backend,
            holder,
            lease,
            ack_interval,
            fence,
            extended_at: now,
            saved: Steps::default(),
            saved_at: now,
            trouble: None,
            is_unsure: false,
        }
    }

    /// Takes the lease, standing by as long as another relay has it, and reads the position.
    ///
    /// # Errors
    /// Any error of the backend, at once: at a start the relay decides what is tried again.
    ///
    /// # Cancel safety
    /// Cancel safe. A lease that was taken and not told of is found by the next call, or runs out.
    pub(crate) async fn take(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        let mut said_at: Option<Instant> = None;
        loop {
            let sent = Instant::now();
            self.is_unsure = true;
            match self.backend.acquire(&self.holder, self.lease).await? {
                Attempt::Held { epoch } => {
                    self.extended(sent);
                    if said_at.is_some() {
                        tracing::info!(epoch, "took over the position");
                    }
                    return self.backend.load().await;
                }
                Attempt::Busy(Busy { holder, left }) => {
                    self.is_unsure = false;
                    if said_at.is_none_or(|at| at.elapsed() >= STANDBY_SAID) {
                        said_at = Some(Instant::now());
                        let left = left.unwrap_or_default();
                        tracing::info!(holder, ?left, "standing by until the position is free");
                    }
                    let look = left.map_or(STANDBY_LOOK, |left| left.min(STANDBY_LOOK));
                    // By the server's clock it is over a moment after `left`, not at it.
                    tokio::time::sleep(look + Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// Writes a position now: the first one, before anything is read from there on.
    ///
    /// # Errors
    /// Any error of the backend.
    pub(crate) async fn save(&mut self, position: &StoredPosition) -> Result<(), StoreError> {
        let sent = Instant::now();
        self.backend.save(position).await?;
        self.extended(sent);
        Ok(())
    }

    /// Gives the lease back that was taken and not used.
    ///
    /// # Errors
    /// Any error of the backend; the lease runs out then.
    pub(crate) async fn give_back(mut self) -> Result<(), StoreError> {
        self.fence.lower();
        self.backend.release().await
    }

    /// As [`give_back`](Self::give_back), of a lease whose taking was cut short: what was sent may
    /// have arrived.
    ///
    /// # Errors
    /// Any error of the backend; the lease runs out then.
    pub(crate) async fn give_back_if_taken(mut self) -> Result<(), StoreError> {
        self.fence.lower();
        if !self.is_unsure {
            return Ok(());
        }
        let giving = async {
            // Only this tells whether it is ours. Where it is nobody's, it is for a moment.
            match self.backend.acquire(&self.holder, self.lease).await? {
                Attempt::Held { .. } => self.backend.release().await,
                Attempt::Busy(_) => Ok(()),
            }
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, giving).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::CloseTimeout { after: CLOSE_TIMEOUT }),
        }
    }

    /// Renews the lease that was taken and is not used yet, until it is lost.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn stay(&mut self) -> StoreError {
        let mut attempts = 0;
        loop {
            let due = match attempts {
                0 => self.renewal_due(),
                attempts => Instant::now() + BACKOFF.after(attempts),
            };
            tokio::time::sleep_until(due).await;
            let sent = Instant::now();
            match self.backend.renew().await {
                Ok(()) => {
                    attempts = 0;
                    self.extended(sent);
                }
                Err(error) if error.kind() == FailureKind::Definite => return error,
                Err(error) => {
                    attempts = attempts.saturating_add(1);
                    tracing::debug!("could not renew the lease: {error}");
                }
            }
        }
    }

    /// Writes and renews, until `close` is told or dropped; then writes for the last time and
    /// gives the lease back. The fence is lowered for good before this returns.
    ///
    /// # Errors
    /// The lease is lost, or no write will succeed any more. What heals is tried for ever. After a
    /// close: the last write or the release did not succeed.
    pub(crate) async fn keep(
        mut self,
        progress: &impl Progress,
        mut close: oneshot::Receiver<()>,
    ) -> Result<(), StoreError> {
        loop {
            let wake = self.wake();
            // A close first: what is due then is done by it.
            tokio::select! {
                biased;
                _ = &mut close => return self.close(progress).await,
                () = tokio::time::sleep_until(wake) => {}
            }
            match self.work(progress).await {
                Ok(()) => self.recovered(),
                Err(error) => self.troubled(error)?,
            }
        }
    }

    /// When to look again.
    fn wake(&self) -> Instant {
        match &self.trouble {
            Some(trouble) => Instant::now() + BACKOFF.after(trouble.attempts),
            None => (Instant::now() + self.ack_interval).min(self.renewal_due()),
        }
    }

    fn renewal_due(&self) -> Instant {
        self.extended_at + self.lease / 3
    }

    /// Does what is due.
    async fn work(&mut self, progress: &impl Progress) -> Result<(), StoreError> {
        let now = Instant::now();
        let steps = progress.steps();
        let renewal = now >= self.renewal_due();
        let interval = match steps {
            Steps { rows, .. } if rows != self.saved.rows => Some(self.ack_interval),
            Steps { foreign, .. } if foreign != self.saved.foreign => {
                Some(FOREIGN_INTERVAL.max(self.ack_interval))
            }
            Steps { all, .. } if all != self.saved.all => Some(OWN_INTERVAL),
            Steps { .. } => None,
        };
        let acknowledged = interval.is_some_and(|interval| now >= self.saved_at + interval);
        if !renewal && !acknowledged {
            return Ok(());
        }
        let position = if acknowledged { progress.position() } else { None };
        let sent = Instant::now();
        match position {
            Some(position) => {
                self.backend.save(&position).await?;
                self.saved = steps;
                self.saved_at = Instant::now();
            }
            None if renewal => self.backend.renew().await?,
            None => return Ok(()),
        }
        self.extended(sent);
        Ok(())
    }

    /// The lease lasts from when its extension was sent; the server counts from later.
    fn extended(&mut self, sent: Instant) {
        self.extended_at = sent;
        self.fence.extend_until(sent + self.lease * 3 / 4);
    }

    fn troubled(&mut self, error: StoreError) -> Result<(), StoreError> {
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert(Trouble {
            since: now,
            attempts: 0,
            denied_since: None,
            said_at: None,
            fenced: false,
        });
        trouble.attempts = trouble.attempts.saturating_add(1);
        match error.kind() {
            FailureKind::Definite => return Err(error),
            FailureKind::Denied => {
                let after = now - *trouble.denied_since.get_or_insert(now);
                if after >= DENIED_MAX {
                    return Err(StoreError::Persists { after, source: Box::new(error) });
                }
            }
            FailureKind::Transient => trouble.denied_since = None,
        }
        let falls = !trouble.fenced && !self.fence.is_up();
        trouble.fenced |= falls;
        if falls || trouble.said_at.is_none_or(|at| at.elapsed() >= TROUBLE_SAID) {
            trouble.said_at = Some(now);
            let delivering = !trouble.fenced;
            let error = crate::failure::Failure::from(error);
            tracing::warn!(
                delivering,
                attempts = trouble.attempts,
                "could not write the position or renew its lease: {error}; trying again"
            );
        }
        Ok(())
    }

    fn recovered(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            let after = trouble.since.elapsed();
            tracing::info!(?after, "the position is written again");
        }
    }

    /// The last write, the fence, and the release, in this order: who takes over must not meet us.
    async fn close(mut self, progress: &impl Progress) -> Result<(), StoreError> {
        let closing = async {
            let mut tries = 1;
            loop {
                match self.try_close(progress).await {
                    Err(error) if error.kind() != FailureKind::Definite && tries < CLOSE_TRIES => {
                        tracing::debug!("while closing: {error}");
                    }
                    outcome => return outcome,
                }
                tokio::time::sleep(BACKOFF.after(tries)).await;
                tries += 1;
            }
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::CloseTimeout { after: CLOSE_TIMEOUT }),
        }
    }

    async fn try_close(&mut self, progress: &impl Progress) -> Result<(), StoreError> {
        let steps = progress.steps();
        if steps.foreign != self.saved.foreign
            && let Some(position) = progress.position()
        {
            self.backend.save(&position).await?;
            self.saved = steps;
        }
        self.fence.lower();
        self.backend.release().await
    }
}

impl<B> Drop for Keeper<B> {
    /// However it ends, nobody renews any more.
    fn drop(&mut self) {
        self.fence.lower();
    }
}

/// A keeper at work, in a task of its own: neither waits for the other's server.
pub(crate) struct Keeping {
    /// One task, which ends with this.
    task: JoinSet<Result<(), StoreError>>,
    close: Option<oneshot::Sender<()>>,
}

impl Keeping {
    /// Must be called inside of a runtime, after [`Keeper::take`].
    pub(crate) fn start<B: Backend>(keeper: Keeper<B>, progress: impl Progress) -> Self {
        let (close, closed) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(async move { keeper.keep(&progress, closed).await });
        Self { task, close: Some(close) }
    }

    /// Waits for the end that nobody asked for: a definite error.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn failed(&mut self) -> StoreError {
        match self.task.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(())) | Err(_)) | None => StoreError::KeeperGone,
        }
    }

    /// Writes the last position and gives the lease back.
    ///
    /// # Errors
    /// As [`Keeper::keep`]: what was not written comes again, and a lease that was not given back
    /// runs out.
    pub(crate) async fn close(mut self) -> Result<(), StoreError> {
        drop(self.close.take());
        match self.task.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) | None => Err(StoreError::KeeperGone),
        }
    }
}

#[cfg(test)]
mod tests;
