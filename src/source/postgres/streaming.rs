//! A running replication stream: how it is read, written and ended. Knows no message inside it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::connect::PgStream;
use super::error::PostgresError;
use super::intake::Intake;
use super::lsn::Lsn;
use super::wire::{self, WireError};
use crate::source::paced::PacedSocket;

/// Longest silence of ours towards a server that sets no limit.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Longest time for a status update to leave, before the connection counts as dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Streaming {
    stream: PacedSocket,
    pub(super) intake: Intake,
    /// Whether the server asked for an answer.
    pub(super) asked: bool,
    /// What the server was last told, and when.
    pub(super) told: Lsn,
    pub(super) told_at: Instant,
    /// Longest silence of ours: also while reading waits, when a server's question is not seen.
    pub(super) silence_max: Duration,
    /// What was acknowledged when something last was, or when nothing waited; and when that was.
    pub(super) progress: Lsn,
    pub(super) progress_at: Instant,
}

impl Streaming {
    pub(super) fn new(
        stream: PgStream,
        intake: Intake,
        sender_timeout: Option<Duration>,
        acknowledged: Lsn,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream: PacedSocket::new(stream),
            intake,
            asked: false,
            told: Lsn(0),
            told_at: now,
            silence_max: sender_timeout
                .map_or(SILENCE_MAX, |timeout| (timeout / 3).min(SILENCE_MAX)),
            progress: acknowledged,
            progress_at: now,
        }
    }

    /// One read into the intake; 0 is the end of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is in the intake.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        self.stream.read(self.intake.space()).await
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
            let frames = self.intake.take().map_err(|error| PostgresError::intake(error, 0))?;
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
