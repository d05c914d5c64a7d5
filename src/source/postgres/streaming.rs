//! A running replication stream: how it is read, written and ended. Knows no message inside it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::connect::PgStream;
use super::conninfo::ConnInfo;
use super::error::PostgresError;
use super::feedback::Feedback;
use super::intake::{Intake, Relevance};
use super::lsn::Lsn;
use super::wire::{self, WireError};
use crate::source::paced::PacedSocket;

/// Longest time for a status update to leave, before the connection counts as dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Streaming {
    stream: PacedSocket,
    pub(super) intake: Intake,
    /// The server of this stream alone, for questions by SQL.
    pub(super) info: ConnInfo,
    pub(super) feedback: Feedback,
    /// Ticks often enough for `feedback`.
    pub(super) clock: Interval,
    /// What was acknowledged when something last was, or when nothing waited; and when that was.
    pub(super) progress: Lsn,
    pub(super) progress_at: Instant,
}

impl Streaming {
    pub(super) fn new(
        stream: PgStream,
        intake: Intake,
        info: ConnInfo,
        feedback: Feedback,
        acknowledged: Lsn,
    ) -> Self {
        let mut clock = tokio::time::interval(feedback.period());
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            stream: PacedSocket::new(stream),
            intake,
            info,
            feedback,
            clock,
            progress: acknowledged,
            progress_at: Instant::now(),
        }
    }

    /// A tick of the clock (`None`), or one read into the intake; 0 is the end of the stream. The
    /// clock first: under load the socket is always ready.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is in the intake.
    pub(super) async fn tick_or_read(&mut self) -> Option<io::Result<usize>> {
        tokio::select! {
            biased;
            _ = self.clock.tick() => None,
            read = self.stream.read(self.intake.space()) => Some(read),
        }
    }

    /// Writes whole messages, in bounded time.
    pub(super) async fn send(&mut self, messages: &[u8]) -> Result<(), PostgresError> {
        let write = async {
            let stream = self.stream.socket();
            stream.write_all(messages).await?;
            stream.flush().await
        };
        let written = match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written,
            Err(elapsed) => Err(elapsed.into()),
        };
        written.map_err(|error| PostgresError::Wire(error.into()))
    }

    /// Ends the copy, reads the stream to its end, and says goodbye: with nothing unread the
    /// close is no reset, which could overtake what was sent last.
    pub(super) async fn finish(&mut self) -> Result<(), PostgresError> {
        let mut message = BytesMut::new();
        wire::put_copy_done(&mut message);
        self.send(&message).await?;
        let wire_error = |error: io::Error| PostgresError::Wire(error.into());
        self.stream.socket().set_receive_low_water(1).map_err(wire_error)?;
        loop {
            // Nobody wants what comes now, however large.
            let taken = self.intake.take(|_| Relevance::Foreign);
            let frames = taken.map_err(|_| PostgresError::Wire(WireError::Closed))?;
            let mut rest = frames.as_deref().unwrap_or_default();
            while let Some((tag, length)) =
                wire::frame(rest).map_err(|error| PostgresError::Wire(error.into()))?
            {
                rest = rest.get(length..).unwrap_or_default();
                if tag == wire::READY_FOR_QUERY {
                    message.clear();
                    wire::put_terminate(&mut message);
                    self.send(&message).await?;
                    return self.stream.socket().shutdown().await.map_err(wire_error);
                }
            }
            let read = self.stream.socket().read_buf(self.intake.space()).await;
            if read.map_err(wire_error)? == 0 {
                return Err(PostgresError::Wire(WireError::Closed));
            }
        }
    }
}
