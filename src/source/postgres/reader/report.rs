//! Between two sessions: an error is handed over, and a new connection is wanted.

use std::time::Duration;

use tokio::time::Instant;

use super::{Command, End, Reader};
use crate::failure::FailureKind;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::lsn::Lsn;

/// Longest wait for somebody to take an error, where the slot must stay in use.
const ALONE_AFTER_MAX: Duration = Duration::from_secs(30);

/// How often the acknowledged position is looked at while there is no connection.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Reader {
    /// Hands an error over and waits until a new connection is wanted.
    ///
    /// A relay whose broker is away takes no error, for hours. Where the server gives up a slot
    /// that nobody uses for so long, the reader does not wait for it.
    pub(super) async fn report(&mut self, error: PostgresError) -> Result<(), End> {
        let let_go = matches!(error, PostgresError::LetGo { .. });
        self.gave_away |= let_go || matches!(error, PostgresError::ShuttingDown);
        let since = self.acknowledged();
        let idle_max = self.watching.idle_slot_max();
        let heals = error.kind() == FailureKind::Transient;
        let alone_after = idle_max.filter(|_| heals).map(|max| (max / 4).min(ALONE_AFTER_MAX));
        let alone = async {
            match alone_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(alone);
        // One that waits to be taken already stands for this one too.
        let mut error = Some(error).filter(|_| self.untaken == 0 || !heals);
        loop {
            // A close first: nobody may take the error for hours.
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Close(reply)) => return Err(End::Close(reply)),
                    Some(Command::Connect) => {
                        self.untaken = self.untaken.saturating_sub(1);
                        break;
                    }
                    None => return Err(End::Abandoned),
                },
                permit = self.batches.reserve(), if error.is_some() => match (permit, error.take()) {
                    (Ok(permit), Some(error)) => {
                        permit.send(Err(error));
                        self.untaken += 1;
                    }
                    _ => return Err(End::Abandoned),
                },
                () = &mut alone => {
                    tracing::debug!("connecting again, so that the slot stays in use");
                    break;
                }
            }
        }
        if let_go {
            self.await_progress(since).await;
        }
        Ok(())
    }

    /// After the connection was released there is nothing to connect for until something is
    /// confirmed; yet a look now and then shows whether the server is still the same.
    async fn await_progress(&mut self, since: Lsn) {
        let until = Instant::now() + self.settings.let_go_after;
        while self.acknowledged() == since
            && Instant::now() < until
            && self.commands.is_empty()
            && !self.batches.is_closed()
        {
            tokio::time::sleep(self.settings.ack_interval.min(LOOK_EVERY)).await;
        }
    }
}
