//! One connection after its socket is open: packets to and fro, and statements.
//!
//! Owns the socket and the sequence of packets. It does not know hosts, TLS or passwords, nor
//! what a binlog event carries.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::fmt;
use std::io;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::conninfo::ConnInfo;
use super::gtid::Flavor;
use super::wire::{
    self, EOF, ERR, Framed, OK, OkPacket, PacketError, Row, ServerError, is_eof, packet, parse_row,
    put_packet,
};
use crate::failure::FailureKind;
use crate::source::socket::Socket;

/// Until the login is done the other side may be anybody, so it may not make us buffer much.
const PACKET_BEFORE_LOGIN_BYTES_MAX: usize = 64 << 10;
/// Rows are settings, and what checks ask.
const PACKET_BYTES_MAX: usize = 16 << 20;
/// Rows of one statement; a check reads tens.
const ROWS_MAX: usize = 100_000;
/// Columns of one statement; the server's own bound on a table.
const COLUMNS_MAX: u64 = 4096;
/// A read asks for this much.
const READ_BYTES: usize = 16 << 10;

const COM_QUIT: u8 = 0x01;
const COM_QUERY: u8 = 0x03;
const COM_PING: u8 = 0x0e;

/// A connection that failed after it was open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The socket failed.
    #[error("connection to the server broke")]
    Io(#[source] io::Error),
    /// The server closed it without a reason.
    #[error("the server closed the connection")]
    Closed,
    /// The server said no.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// Not MySQL's framing.
    #[error("the server sent an impossible packet")]
    Packet(#[from] PacketError),
    /// A packet that does not belong here.
    #[error("the server sent a packet {first:#04x}, which does not belong after {after}")]
    Unexpected {
        /// Its first byte.
        first: u8,
        /// What had been asked.
        after: &'static str,
    },
    /// A packet whose body does not fit.
    #[error("the server sent a malformed {0}")]
    Malformed(&'static str),
    /// More rows than a statement may have.
    #[error("the answer has more than {ROWS_MAX} rows")]
    TooManyRows,
}

impl From<io::Error> for WireError {
    /// A connection with TLS that ends without a farewell is a server that is gone, which the TLS
    /// library would explain at length.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl WireError {
    /// The server's own error, where it is one.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Server(error) => Some(error),
            Self::Io(_)
            | Self::Closed
            | Self::Packet(_)
            | Self::Unexpected { .. }
            | Self::Malformed(_)
            | Self::TooManyRows => None,
        }
    }

    /// A broken connection heals; what the server says is judged by its code.
    pub fn kind(&self) -> FailureKind {
        self.server().map_or(FailureKind::Transient, ServerError::kind)
    }
}

/// What the server said of itself before the login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// As it came, such as `9.7.4` or `5.5.5-10.11.19-MariaDB`.
    pub version: String,
    /// Id of the session, as in `SHOW PROCESSLIST`.
    pub session: u32,
}

impl Greeting {
    /// MariaDB says its name; all else is MySQL or behaves like it.
    pub fn flavor(&self) -> Flavor {
        if self.version.contains("MariaDB") { Flavor::MariaDb } else { Flavor::MySql }
    }
}

/// A connection that is logged in, or about to.
pub struct Connection {
    socket: Socket,
    /// What was read and not used.
    buffer: Vec<u8>,
    /// Of the next packet, ours or theirs.
    sequence: u8,
    packet_bytes_max: usize,
    pub(super) greeting: Greeting,
    /// The one host that it is connected to.
    server: Option<Box<ConnInfo>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("socket", &self.socket)
            .field("greeting", &self.greeting)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Takes an open socket on which nothing was said yet.
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
            sequence: 0,
            packet_bytes_max: PACKET_BEFORE_LOGIN_BYTES_MAX,
            greeting: Greeting { version: String::new(), session: 0 },
            server: None,
        }
    }

    /// What the server said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The socket below, for its options.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Gives the socket to whoever makes TLS of it. `None` when more was read than was asked for:
    /// what a stranger put after the greeting must not be taken for what came encrypted
    /// (CVE-2021-23222 is PostgreSQL's of this kind).
    pub(super) fn into_bare_socket(self) -> Option<(Socket, u8)> {
        self.buffer.is_empty().then_some((self.socket, self.sequence))
    }

    /// Goes on after TLS was made.
    pub(super) fn resume(socket: Socket, sequence: u8, greeting: Greeting) -> Self {
        Self { sequence, greeting, ..Self::new(socket) }
    }

    /// The login is done: answers may be large.
    pub(super) fn become_ready(&mut self) {
        self.packet_bytes_max = PACKET_BYTES_MAX;
    }

    pub(super) fn set_server(&mut self, server: ConnInfo) {
        self.server = Some(Box::new(server));
    }

    /// Leads to the server that this is connected to, and to no other: for a second connection.
    pub fn server(&self) -> &ConnInfo {
        self.server.as_ref().expect("connections are given out with their server")
    }

    /// Writes one packet with the next sequence.
    pub(super) async fn send(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let mut out = Vec::with_capacity(wire::HEADER_BYTES + payload.len());
        put_packet(self.sequence, payload, &mut out);
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.write_all(&out).await?;
        self.socket.flush().await?;
        Ok(())
    }

    /// Begins a command: sequences start anew.
    pub(super) async fn command(&mut self, command: u8, body: &[u8]) -> Result<(), WireError> {
        self.sequence = 0;
        let mut payload = Vec::with_capacity(1 + body.len());
        payload.push(command);
        payload.extend_from_slice(body);
        self.send(&payload).await
    }

    /// The next packet's payload, which is not empty; an error of the server's is our error.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read stays in the buffer.
    pub(super) async fn receive(&mut self) -> Result<Bytes, WireError> {
        loop {
            let framed = packet(&self.buffer, self.sequence, self.packet_bytes_max)?;
            if let Framed::Whole(found) = framed {
                let rest = self.buffer.split_off(found.wire_bytes);
                let mut payload = std::mem::replace(&mut self.buffer, rest);
                self.sequence = found.next_sequence;
                wire::join(&mut payload);
                return match payload.first() {
                    Some(&ERR) => Err(Box::new(ServerError::parse(&payload)).into()),
                    Some(_) => Ok(payload.into()),
                    None => Err(WireError::Malformed("packet without a first byte")),
                };
            }
            self.buffer.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// Runs one statement by the text protocol and returns its rows, if it has any.
    ///
    /// Waits as long as the server works: the caller sets the time limit.
    ///
    /// # Errors
    /// [`WireError::Server`] leaves the connection usable; any other ends it.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn query(&mut self, statement: &str) -> Result<Vec<Row>, WireError> {
        self.command(COM_QUERY, statement.as_bytes()).await?;
        let head = self.receive().await?;
        if head.first() == Some(&OK) {
            return Ok(Vec::new());
        }
        // 0xfb would ask for one of our files: it is no number, so it is refused here.
        let mut reader = wire::Reader(&head);
        let columns = reader.lenenc().filter(|columns| (1..=COLUMNS_MAX).contains(columns));
        let Some(columns) = columns.and_then(|columns| usize::try_from(columns).ok()) else {
            return Err(unexpected(&head, "a statement"));
        };
        for _ in 0..columns {
            // Names and types: all values come as text.
            self.receive().await?;
        }
        let end = self.receive().await?;
        if !is_eof(&end) {
            return Err(unexpected(&end, "the columns of a statement"));
        }
        let mut rows = Vec::new();
        loop {
            let payload = self.receive().await?;
            if is_eof(&payload) {
                return Ok(rows);
            }
            if rows.len() == ROWS_MAX {
                return Err(WireError::TooManyRows);
            }
            rows.push(parse_row(&payload, columns).ok_or(WireError::Malformed("row"))?);
        }
    }

    /// Runs one statement without rows; says how many rows it found to change, whether or not it
    /// changed anything in them.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn execute(&mut self, statement: &str) -> Result<u64, WireError> {
        self.command(COM_QUERY, statement.as_bytes()).await?;
        self.expect_ok("a statement").await
    }

    /// Asks for an answer.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn ping(&mut self) -> Result<(), WireError> {
        self.command(COM_PING, &[]).await?;
        self.expect_ok("a ping").await.map(|_| ())
    }

    pub(super) async fn expect_ok(&mut self, after: &'static str) -> Result<u64, WireError> {
        let payload = self.receive().await?;
        match OkPacket::parse(&payload) {
            Some(ok) => Ok(ok.rows),
            None if payload.first() == Some(&OK) => Err(WireError::Malformed("OK packet")),
            None => Err(unexpected(&payload, after)),
        }
    }

    /// The socket, and what was read from it but not used: the first bytes of what follows.
    pub(super) fn into_parts(self) -> (Socket, Vec<u8>) {
        (self.socket, self.buffer)
    }

    /// Says goodbye and closes; the caller sets the time limit.
    ///
    /// # Errors
    /// The socket failed first; the connection is gone either way.
    pub async fn close(mut self) -> Result<(), WireError> {
        self.command(COM_QUIT, &[]).await?;
        self.socket.shutdown().await?;
        Ok(())
    }
}

pub(super) fn unexpected(payload: &[u8], after: &'static str) -> WireError {
    WireError::Unexpected { first: payload.first().copied().unwrap_or(EOF), after }
}
