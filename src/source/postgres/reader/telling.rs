//! What the server hears from us while a stream is on, and what its silence leads to.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::{End, Reader, commanded};
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::relation::TypeKinds;
use crate::source::postgres::session::{type_kinds, within};
use crate::source::postgres::sql::connect_sql;
use crate::source::postgres::streaming::Streaming;
use crate::source::postgres::wire::{self, StandbyStatus};

impl Reader {
    /// At each tick of the clock: tells the server what is due, or gives the connection up.
    pub(super) async fn tick(&mut self, streaming: &mut Streaming) -> Result<(), PostgresError> {
        let acknowledged = self.acknowledged();
        let now = Instant::now();
        self.watching.verdict()?;
        if let Some(after) = streaming.feedback.silent(now) {
            self.gave_up += 1;
            return Err(PostgresError::Silent { after });
        }
        // A commit's end lies behind its LSN: a row waits until that is acknowledged.
        let waits = Lsn(self.shared.yielded.load(Ordering::Relaxed)) >= acknowledged;
        if acknowledged > streaming.progress || !waits {
            streaming.progress = acknowledged;
            streaming.progress_at = now;
        } else if now - streaming.progress_at >= self.settings.let_go_after
            && self.watching.idle_slot_max().is_none()
        {
            // Said here too: with a full ledger nobody takes the error until the broker confirms.
            tracing::warn!("no confirm while rows wait: releasing the connection to the database");
            return Err(PostgresError::LetGo { after: self.settings.let_go_after });
        } else if streaming.feedback.is_waited_for() {
            return Err(PostgresError::ShuttingDown);
        }
        let yielded = Lsn(self.shared.yielded.load(Ordering::Relaxed));
        self.memory.tick(acknowledged, yielded);
        self.tell_if_due(streaming).await
    }

    /// What the server may be told of what was acknowledged.
    fn tellable(&self) -> Lsn {
        self.acknowledged().min(self.memory.allowed())
    }

    pub(super) async fn tell_if_due(
        &mut self,
        streaming: &mut Streaming,
    ) -> Result<(), PostgresError> {
        match streaming.feedback.is_due(self.tellable(), Instant::now()) {
            true => self.tell(streaming).await,
            false => Ok(()),
        }
    }

    /// Sends a status update.
    pub(super) async fn tell(&mut self, streaming: &mut Streaming) -> Result<(), PostgresError> {
        let acknowledged = self.tellable();
        // PostgreSQL accepts a position beyond its own log, and loses everything up to it.
        assert!(
            acknowledged <= self.received,
            "acknowledged {acknowledged} above {}, which is all that was received",
            self.received
        );
        let reply_requested = streaming.feedback.wants_question(Instant::now());
        self.memory.note(acknowledged);
        let mut message = BytesMut::new();
        wire::put_status_update(
            &StandbyStatus {
                written: self.received.0,
                flushed: acknowledged.0,
                applied: acknowledged.0,
                clock_micros: clock_micros(),
                reply_requested,
            },
            &mut message,
        );
        streaming.send(&message).await?;
        streaming.feedback.sent(acknowledged, reply_requested, Instant::now());
        Ok(())
    }

    /// Looks types up in the catalog of the stream's own server. The stream waits, and neither the
    /// server nor a close does.
    pub(super) async fn look_up(
        &mut self,
        oids: Vec<u32>,
        streaming: &mut Streaming,
    ) -> Result<TypeKinds, End> {
        let info = streaming.info.clone();
        let asking = async move {
            let sql = connect_sql(&info).await?;
            Ok(type_kinds(&sql, &oids).await?)
        };
        let mut asking = std::pin::pin!(within("its types", asking));
        loop {
            // A close first, then the clock, as in `read`.
            tokio::select! {
                biased;
                end = commanded(&mut self.commands, &mut self.untaken) => return Err(end),
                _ = streaming.clock.tick() => {
                    streaming.feedback.listens(Instant::now());
                    self.tick(streaming).await?;
                }
                kinds = &mut asking => {
                    streaming.feedback.listens(Instant::now());
                    return Ok(kinds?);
                }
            }
        }
    }
}

/// Microseconds since 2000-01-01, as the protocol counts them.
pub(super) fn clock_micros() -> i64 {
    const EPOCH: Duration = Duration::from_secs(946_684_800);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(EPOCH);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
