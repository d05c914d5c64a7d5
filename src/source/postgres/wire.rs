//! One connection after its socket is open: frames, the login's answers, simple queries, and the
//! switch to copy-both.
//!
//! Owns the framing. It does not know hosts, TLS, passwords or
//! what a replication stream carries.
//!
//! ```text
//! frame:   tag u8 │ length u32, counts itself and the body │ body
//! ```
//!
//! Source: PostgreSQL documentation, 55.7 "Message Formats", 55.4 "Streaming Replication
//! Protocol". The same for all of PostgreSQL 10 to 18.
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod server_error;
mod standby;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub use server_error::ServerError;
pub(crate) use standby::put_terminate;
pub(crate) use standby::{StandbyStatus, put_copy_done, put_status_update};

use super::connect::PgStream;
use super::conninfo::Host;
use crate::failure::FailureKind;

/// Tag and length.
pub(crate) const HEADER_BYTES: usize = 5;
/// `MaxAllocSize` of the server: it cannot build a longer message.
const LENGTH_MAX: u32 = 0x3fff_ffff;
/// Until the login is done the other side may be anybody, so it may not make us buffer much.
/// libpq allows 30,000.
const FRAME_BEFORE_LOGIN_BYTES_MAX: usize = 64 * 1024;
/// Answers to simple queries are settings and catalogue rows.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rows of one simple query; a check reads tens.
const ROWS_MAX: usize = 100_000;

pub(crate) const AUTHENTICATION: u8 = b'R';
const BACKEND_KEY_DATA: u8 = b'K';
pub(crate) const COMMAND_COMPLETE: u8 = b'C';
pub(crate) const COPY_DATA: u8 = b'd';
pub(crate) const COPY_DONE: u8 = b'c';
const COPY_BOTH_RESPONSE: u8 = b'W';
const DATA_ROW: u8 = b'D';
const EMPTY_QUERY_RESPONSE: u8 = b'I';
pub(crate) const ERROR_RESPONSE: u8 = b'E';
const NEGOTIATE_PROTOCOL_VERSION: u8 = b'v';
pub(crate) const NOTICE_RESPONSE: u8 = b'N';
const NOTIFICATION_RESPONSE: u8 = b'A';
pub(crate) const PARAMETER_STATUS: u8 = b'S';
pub(crate) const READY_FOR_QUERY: u8 = b'Z';
const ROW_DESCRIPTION: u8 = b'T';

/// A header that no server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length does not even count itself.
    #[error("frame {tag:#04x} has length {length}, which is less than its own 4 bytes")]
    TooShort {
        /// First byte of the frame.
        tag: u8,
        /// As received.
        length: u32,
    },
    /// Longer than the server can build, or than is allowed at this point.
    #[error("frame {tag:#04x} has length {length}, more than the {length_max} bytes allowed here")]
    TooLong {
        /// First byte of the frame.
        tag: u8,
        /// As received.
        length: u32,
        /// The bound.
        length_max: usize,
    },
}

/// Tag and total length (with the header) of the frame that `bytes` begin with.
///
/// `None` while the header or the body is incomplete.
///
/// # Errors
/// The length is impossible; the connection is of no more use.
pub(crate) fn frame(bytes: &[u8]) -> Result<Option<(u8, usize)>, FrameError> {
    let Some((tag, total)) = header(bytes)? else { return Ok(None) };
    Ok((bytes.len() >= total).then_some((tag, total)))
}

/// As [`frame`], with the length known as soon as the header is complete, so that a reader can
/// refuse or reserve before the body arrives.
pub(crate) fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, FrameError> {
    let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    if length < 4 {
        return Err(FrameError::TooShort { tag, length });
    }
    if length > LENGTH_MAX {
        return Err(FrameError::TooLong { tag, length, length_max: LENGTH_MAX as usize });
    }
    Ok(Some((tag, length as usize + 1)))
}

/// Whether what the server says at a login goes to the log: that of one login in an hour, since
/// the watch of the catalog logs in each minute.
fn is_worth_a_line() -> bool {
    static SAID_AT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let since = now.saturating_sub(SAID_AT.load(Ordering::Relaxed));
    let is_worth = since <= 1 || since >= 3600;
    if since >= 3600 {
        SAID_AT.store(now, Ordering::Relaxed);
    }
    is_worth
}

/// A connection that failed after it was open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The socket failed.
    #[error("connection to the server broke")]
    Io(#[from] io::Error),
    /// The server closed it without a reason.
    #[error("the server closed the connection")]
    Closed,
    /// The server said no.
    #[error(transparent)]
    Server(Box<ServerError>),
    /// Not PostgreSQL's framing.
    #[error("the server sent an impossible frame")]
    Frame(#[from] FrameError),
    /// A frame that does not belong here.
    #[error("the server sent {}, which does not belong after {after}", describe(*.tag))]
    Unexpected {
        /// Its tag.
        tag: u8,
        /// What had been asked.
        after: &'static str,
    },
    /// A frame whose body does not fit its tag.
    #[error("the server sent a malformed {0}")]
    Malformed(&'static str),
    /// More rows than a simple query may have.
    #[error("the answer has more than {ROWS_MAX} rows")]
    TooManyRows,
}

impl WireError {
    /// The server's own error, where it is one.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Io(_)
            | Self::Closed
            | Self::Frame(_)
            | Self::Unexpected { .. }
            | Self::Malformed(_)
            | Self::TooManyRows => None,
        }
    }

    /// A broken connection heals; of the server's errors only permission is judged here, since
    /// what a code means depends on what was asked.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Server(error) => match error.code.as_str() {
                "42501" | "28000" | "28P01" => FailureKind::Denied,
                _ => FailureKind::Transient,
            },
            Self::Io(_)
            | Self::Closed
            | Self::Frame(_)
            | Self::Unexpected { .. }
            | Self::Malformed(_)
            | Self::TooManyRows => FailureKind::Transient,
        }
    }
}

fn describe(tag: u8) -> String {
    format!("frame \"{}\"", tag.escape_ascii())
}

/// A row of a simple query: every value as text, `None` for null.
pub type Row = Vec<Option<String>>;

/// A connection that is logged in, outside of any copy.
pub struct Connection {
    stream: PgStream,
    buffer: BytesMut,
    /// ParameterStatus and BackendKeyData frames of the login, as received.
    greeting: BytesMut,
    frame_bytes_max: usize,
    /// Which of the servers that were tried it is, since the login.
    host: Option<Host>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Connection {
    /// Sends the startup message; the login follows.
    pub(crate) async fn start(
        mut stream: PgStream,
        parameters: &[(&str, &str)],
    ) -> Result<Self, WireError> {
        let mut message = BytesMut::new();
        frontend::startup_message(parameters.iter().copied(), &mut message)?;
        stream.write_all(&message).await?;
        stream.flush().await?;
        Ok(Self {
            stream,
            buffer: BytesMut::new(),
            greeting: BytesMut::new(),
            frame_bytes_max: FRAME_BEFORE_LOGIN_BYTES_MAX,
            host: None,
        })
    }

    pub(crate) fn led_to(mut self, host: Host) -> Self {
        self.host = Some(host);
        self
    }

    /// The server that this is connected to, for a second connection to it and to no other.
    pub(crate) fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The socket below, for its options.
    pub fn stream(&self) -> &PgStream {
        &self.stream
    }

    /// Writes whole messages.
    pub(crate) async fn send(&mut self, messages: &[u8]) -> Result<(), WireError> {
        self.stream.write_all(messages).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next frame's tag and body. Notices, settings that changed and notifications are not
    /// shown: they can come at any time.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(crate) async fn receive(&mut self) -> Result<(u8, Bytes), WireError> {
        loop {
            let (tag, mut body) = self.receive_any().await?;
            match tag {
                NOTICE_RESPONSE => {
                    let notice = ServerError::parse(&body);
                    let (code, text) = (&notice.code, &notice.message);
                    tracing::debug!(%code, %text, "server notice");
                }
                PARAMETER_STATUS | NOTIFICATION_RESPONSE | NEGOTIATE_PROTOCOL_VERSION => {}
                ERROR_RESPONSE => {
                    let error = ServerError::parse(&body.split_to(body.len()));
                    return Err(WireError::Server(Box::new(error)));
                }
                tag => return Ok((tag, body)),
            }
        }
    }

    async fn receive_any(&mut self) -> Result<(u8, Bytes), WireError> {
        loop {
            if let Some((tag, total)) = header(&self.buffer)? {
                if total > self.frame_bytes_max {
                    let length = u32::try_from(total - 1).unwrap_or(u32::MAX);
                    let length_max = self.frame_bytes_max;
                    return Err(FrameError::TooLong { tag, length, length_max }.into());
                }
                if self.buffer.len() >= total {
                    let mut frame = self.buffer.split_to(total).freeze();
                    frame.advance(HEADER_BYTES);
                    return Ok((tag, frame));
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// Reads on from AuthenticationOk to the first ReadyForQuery. What the server warns of at a
    /// login, such as a password that expires soon (PostgreSQL 19), is logged where it is asked for.
    ///
    /// # Cancel safety
    /// Not cancel safe; drop the connection.
    pub(crate) async fn become_ready(&mut self, says_warnings: bool) -> Result<(), WireError> {
        self.frame_bytes_max = FRAME_BYTES_MAX;
        loop {
            let (tag, body) = self.receive_any().await?;
            match tag {
                PARAMETER_STATUS | BACKEND_KEY_DATA => put_frame(tag, &body, &mut self.greeting),
                NOTICE_RESPONSE if says_warnings => {
                    let notice = ServerError::parse(&body);
                    let (code, text) = (&notice.code, &notice.message);
                    if is_worth_a_line() {
                        tracing::warn!(%code, "PostgreSQL says at login: {text}");
                    }
                }
                NOTICE_RESPONSE => {}
                NEGOTIATE_PROTOCOL_VERSION => {}
                ERROR_RESPONSE => return Err(server_error(&body)),
                READY_FOR_QUERY => return Ok(()),
                tag => return Err(WireError::Unexpected { tag, after: "the login" }),
            }
        }
    }

    /// A setting that the server reported at login, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut rest: &[u8] = &self.greeting;
        while let Ok(Some((tag, total))) = frame(rest) {
            let (whole, after) = rest.split_at_checked(total)?;
            rest = after;
            if tag != PARAMETER_STATUS {
                continue;
            }
            let mut fields = whole.get(HEADER_BYTES..)?.split(|byte| *byte == 0);
            if fields.next() == Some(name.as_bytes()) {
                return std::str::from_utf8(fields.next()?).ok();
            }
        }
        None
    }

    /// Runs one or several statements by the simple protocol, which is all that a replication
    /// connection knows, and returns the rows of all of them.
    ///
    /// Waits as long as the server works: the caller sets the time limit.
    ///
    /// # Errors
    /// [`WireError::Server`] leaves the connection usable unless it [is
    /// fatal](ServerError::is_fatal); any other ends it.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn simple_query(&mut self, query: &str) -> Result<Vec<Row>, WireError> {
        self.send_query(query).await?;
        let mut rows = Vec::new();
        loop {
            let (tag, body) = match self.receive().await {
                Ok(frame) => frame,
                Err(error) => return Err(self.until_ready(error).await),
            };
            match tag {
                DATA_ROW if rows.len() == ROWS_MAX => return Err(WireError::TooManyRows),
                DATA_ROW => rows.push(parse_row(body).ok_or(WireError::Malformed("DataRow"))?),
                ROW_DESCRIPTION | COMMAND_COMPLETE | EMPTY_QUERY_RESPONSE => {}
                READY_FOR_QUERY => return Ok(rows),
                tag => return Err(WireError::Unexpected { tag, after: "a simple query" }),
            }
        }
    }

    /// Sends `START_REPLICATION …` and waits for CopyBothResponse; the stream of CopyData frames
    /// begins with the next byte, see [`into_parts`](Self::into_parts).
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query).
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn start_copy_both(&mut self, command: &str) -> Result<(), WireError> {
        self.send_query(command).await?;
        match self.receive().await {
            Ok((COPY_BOTH_RESPONSE, _)) => Ok(()),
            Ok((tag, _)) => Err(WireError::Unexpected { tag, after: "START_REPLICATION" }),
            Err(error) => Err(self.until_ready(error).await),
        }
    }

    async fn send_query(&mut self, query: &str) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        frontend::query(query, &mut message)?;
        self.send(&message).await
    }

    /// After an error of the server, reads on to ReadyForQuery, so that the next query starts
    /// clean; gives back the error.
    async fn until_ready(&mut self, error: WireError) -> WireError {
        if error.server().is_none_or(ServerError::is_fatal) {
            return error;
        }
        loop {
            match self.receive_any().await {
                Ok((READY_FOR_QUERY, _)) => return error,
                Ok(_) => {}
                // The next query will meet it again; the server's reason says more.
                Err(_) => return error,
            }
        }
    }

    /// The stream, and what was read from it but not used: the first bytes of what follows.
    pub fn into_parts(self) -> (PgStream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// The stream and the frames that the server sent between AuthenticationOk and
    /// ReadyForQuery, for a client library that wants to see its own login.
    pub(crate) fn into_greeting(self) -> (PgStream, BytesMut) {
        let mut replay = BytesMut::new();
        put_frame(AUTHENTICATION, &0_u32.to_be_bytes(), &mut replay);
        replay.extend_from_slice(&self.greeting);
        put_frame(READY_FOR_QUERY, b"I", &mut replay);
        replay.extend_from_slice(&self.buffer);
        (self.stream, replay)
    }

    /// Says goodbye and closes; the caller sets the time limit.
    ///
    /// # Errors
    /// The socket failed first; the connection is gone either way.
    pub async fn close(mut self) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        put_terminate(&mut message);
        self.send(&message).await?;
        self.stream.shutdown().await?;
        Ok(())
    }
}

fn server_error(body: &[u8]) -> WireError {
    WireError::Server(Box::new(ServerError::parse(body)))
}

/// ```text
/// columns u16 │ { length i32, -1 for null │ text }*
/// ```
fn parse_row(mut body: Bytes) -> Option<Row> {
    let columns = body.try_get_u16().ok()?;
    let mut row = Row::with_capacity(columns.into());
    for _ in 0..columns {
        let length = body.try_get_i32().ok()?;
        if length == -1 {
            row.push(None);
            continue;
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= body.len())?;
        let text = body.split_to(length);
        row.push(Some(std::str::from_utf8(&text).ok()?.to_owned()));
    }
    body.is_empty().then_some(row)
}

fn put_frame(tag: u8, body: &[u8], buffer: &mut BytesMut) {
    let length = u32::try_from(body.len() + 4).expect("a body that was received fits its length");
    buffer.put_u8(tag);
    buffer.put_u32(length);
    buffer.put_slice(body);
}

#[cfg(test)]
mod tests;
