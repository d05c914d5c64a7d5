//! The end of a source: what was acknowledged last is seen in the slot.

use std::time::Duration;

use tokio::sync::oneshot;

use super::Reader;
use crate::source::postgres::conninfo::ConnInfo;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::inspect;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::session::Start;
use crate::source::postgres::sql::connect_sql;
use crate::source::postgres::streaming::Streaming;
use crate::source::postgres::wire::WireError;

/// Longest time for one try to see the last acknowledgement arrive.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TRIES: u32 = 3;

impl Reader {
    /// The last acknowledgement: sent, seen in the slot, and only then closed.
    ///
    /// A status update before a close with unread data is sometimes lost (the reset that the
    /// unread data causes overtakes it), so the stream is ended properly and read to its end, and
    /// the slot is asked. What did not arrive is told again by a new connection.
    pub(super) async fn close(
        &mut self,
        mut streaming: Option<Streaming>,
        reply: oneshot::Sender<Result<(), PostgresError>>,
    ) {
        let mut result = Ok(());
        self.memory.make_room(self.acknowledged()).await;
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
        self.memory.finish(self.acknowledged()).await;
        // A source that no longer waits has nothing to do with the answer.
        drop(reply.send(result));
    }

    async fn try_close(&mut self, streaming: Option<Streaming>) -> Result<(), PostgresError> {
        let acknowledged = self.acknowledged();
        let mut info = self.info.clone();
        if let Some(streaming) = streaming {
            info = self.finish(streaming).await?;
        }
        if self.system.is_none() || self.slot_is_at(acknowledged, &info).await? {
            return Ok(());
        }
        let mut decoder = self.decoder.clone();
        let session = self.start(acknowledged).open(&mut decoder).await?;
        let streaming = self.begin(session);
        let info = self.finish(streaming).await?;
        match self.slot_is_at(acknowledged, &info).await? {
            true => Ok(()),
            false => Err(PostgresError::Wire(WireError::Closed)),
        }
    }

    /// Tells the last position and ends the stream; says which server that was.
    async fn finish(&mut self, mut streaming: Streaming) -> Result<ConnInfo, PostgresError> {
        self.tell(&mut streaming).await?;
        streaming.finish().await?;
        Ok(streaming.info)
    }

    fn start(&self, acknowledged: Lsn) -> Start<'_> {
        Start {
            info: &self.info,
            settings: &self.settings,
            outbox: &self.outbox,
            system: self.system,
            acknowledged,
            received: self.received,
            format: self.format,
            gave_away: self.gave_away,
            previous: self.watching.known(),
        }
    }

    async fn slot_is_at(&self, acknowledged: Lsn, info: &ConnInfo) -> Result<bool, PostgresError> {
        let sql = connect_sql(info).await?;
        let slot = inspect::slot(&sql, &self.settings.slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed?.parse().ok());
        Ok(confirmed.is_some_and(|confirmed: Lsn| confirmed >= acknowledged))
    }
}
