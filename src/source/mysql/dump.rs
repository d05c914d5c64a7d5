//! The commands that turn a connection into a stream of the binlog, and the stream itself.
//!
//! Owns the session's settings for replication. It does not know what an event carries, nor where
//! a relay should begin.
//!
//! Source: MySQL internals documentation, "Replication Protocol"; MariaDB's "Replication
//! Protocol". The same for MySQL 5.7 to 9.7 and MariaDB 10.6 to 11.8, but for the GTIDs.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::connection::{Connection, WireError, unexpected};
use super::gtid::Flavor;
use super::intake::{Intake, Packets, Taken};
use super::skim::Fate;
use super::wire::{EOF, ERR, OK, ServerError};
use crate::budget::Budget;
use crate::failure::FailureKind;
use crate::source::paced::PacedSocket;

const COM_BINLOG_DUMP: u8 = 0x12;
const COM_REGISTER_SLAVE: u8 = 0x15;
const COM_BINLOG_DUMP_GTID: u8 = 0x1e;

/// How long the server waits for us to read: a broker may be down for so long without costing the
/// connection. A longer wait costs a reconnect and nothing else.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Behind the four bytes that every binlog file begins with.
const FIRST_POSITION: u32 = 4;
/// The oldest servers' bound on a replica's own name for itself.
const REPORT_HOST_BYTES_MAX: usize = 60;
/// `MARIA_SLAVE_CAPABILITY_GTID`: all events come as they are in the log.
const MARIADB_CAPABILITY: u8 = 4;

/// Why no stream came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The command has room for 32 bits, and would start elsewhere without a word.
    #[error(
        "binlog position {file}:{position} is beyond 4 GiB, where only GTIDs can start: switch \
         gtid_mode on, or keep max_binlog_size at its default of 1 GiB or below"
    )]
    PositionTooFar {
        /// The file.
        file: String,
        /// As it was asked for.
        position: u64,
    },
    /// Not three numbers each.
    #[error("\"{0}\" is no GTID position of MariaDB")]
    GtidPosition(String),
    /// The connection failed, or the server refused.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl DumpError {
    /// Whether it heals.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::PositionTooFar { .. } | Self::GtidPosition(_) => FailureKind::Definite,
            Self::Wire(error) => error.kind(),
        }
    }
}

/// How the server should behave towards this session.
#[derive(Debug, Clone, Copy)]
pub struct StreamSettings {
    /// Longest silence of the server's.
    pub heartbeat: Duration,
    /// How long the server waits for us to read before it hangs up: as long as a broker may be
    /// down without a reconnect.
    pub write_timeout: Duration,
}

/// What the stream holds and is held by.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    /// Of one event with all its rows; a larger one is refused by its header.
    pub packet_bytes_max: usize,
    /// Counts the buffers that events are slices of.
    pub budget: Budget,
}

impl Connection {
    /// Sets the session up for a stream: checksums as they are in the log, heartbeats, patience.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn prepare_stream(&mut self, settings: StreamSettings) -> Result<(), WireError> {
        let period = settings.heartbeat.as_nanos();
        let patience = settings.write_timeout.as_secs().clamp(1, 31_536_000);
        // Each server knows one of two words and takes the other for a variable of ours.
        let mut statement = format!(
            "SET @master_binlog_checksum = @@GLOBAL.binlog_checksum, \
             @source_binlog_checksum = @@GLOBAL.binlog_checksum, \
             @master_heartbeat_period = {period}, @source_heartbeat_period = {period}, \
             SESSION net_write_timeout = {patience}"
        );
        match self.greeting.flavor() {
            Flavor::MariaDb => statement.push_str(&format!(
                ", SESSION max_statement_time = 0, \
                 @mariadb_slave_capability = {MARIADB_CAPABILITY}"
            )),
            Flavor::MySql => {}
        }
        self.execute(&statement).await?;
        Ok(())
    }

    /// Shows up in `SHOW REPLICAS` as `name`.
    ///
    /// # Errors
    /// As [`query`](Self::query); the account may lack REPLICATION SLAVE.
    ///
    /// # Cancel safety
    /// Not cancel safe: drop the connection after a cancelled call.
    pub async fn register_replica(&mut self, server_id: u32, name: &str) -> Result<(), WireError> {
        self.command(COM_REGISTER_SLAVE, &registration(server_id, name)).await?;
        self.expect_ok("the registration of a replica").await?;
        Ok(())
    }

    /// MySQL: streams every transaction that is not in a set, as the protocol encodes it. An error
    /// of the server's comes as the stream's first packet.
    ///
    /// # Errors
    /// The connection broke.
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept: a dropped call closes its socket.
    pub async fn dump_gtid(
        mut self,
        server_id: u32,
        excluded: &[u8],
        limits: StreamLimits,
    ) -> Result<BinlogStream, DumpError> {
        self.command(COM_BINLOG_DUMP_GTID, &gtid_request(server_id, excluded)).await?;
        Ok(BinlogStream::new(self, limits))
    }

    /// MariaDB: streams what is after a position, such as `0-1-100,7-2-5`; empty is the beginning
    /// of the oldest file that is left.
    ///
    /// # Errors
    /// The position is none, or the connection broke.
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept: a dropped call closes its socket.
    pub async fn dump_mariadb(
        mut self,
        server_id: u32,
        position: &str,
        limits: StreamLimits,
    ) -> Result<BinlogStream, DumpError> {
        // It becomes part of a statement.
        if position.chars().any(|part| !part.is_ascii_digit() && part != '-' && part != ',') {
            return Err(DumpError::GtidPosition(position.to_owned()));
        }
        let statement = format!(
            "SET @slave_connect_state = '{position}', @slave_gtid_strict_mode = 1, \
             @slave_gtid_ignore_duplicates = 0"
        );
        self.execute(&statement).await?;
        self.command(COM_BINLOG_DUMP, &file_request(server_id, "", FIRST_POSITION)).await?;
        Ok(BinlogStream::new(self, limits))
    }

    /// Both: streams a file from a position on, and the files after it.
    ///
    /// # Errors
    /// The position cannot be asked for, or the connection broke.
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept: a dropped call closes its socket.
    pub async fn dump_file(
        mut self,
        server_id: u32,
        file: &str,
        position: u64,
        limits: StreamLimits,
    ) -> Result<BinlogStream, DumpError> {
        let Ok(start) = u32::try_from(position) else {
            return Err(DumpError::PositionTooFar { file: file.to_owned(), position });
        };
        self.command(COM_BINLOG_DUMP, &file_request(server_id, file, start)).await?;
        Ok(BinlogStream::new(self, limits))
    }
}

/// ```text
/// server id u32 │ 3 × (length u8, text): host, user, password │ port u16 │ rank u32 │ source u32
/// ```
fn registration(server_id: u32, name: &str) -> Vec<u8> {
    let mut end = name.len().min(REPORT_HOST_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let name = name.get(..end).unwrap_or_default();
    let mut body = server_id.to_le_bytes().to_vec();
    body.push(u8::try_from(name.len()).unwrap_or_default());
    body.extend_from_slice(name.as_bytes());
    // No user, password, port, rank or source: they are only shown.
    body.resize(body.len() + 2 + 2 + 4 + 4, 0);
    body
}

/// ```text
/// position u32 │ flags u16 │ server id u32 │ file
/// ```
fn file_request(server_id: u32, file: &str, position: u32) -> Vec<u8> {
    let mut body = position.to_le_bytes().to_vec();
    body.extend_from_slice(&0_u16.to_le_bytes());
    body.extend_from_slice(&server_id.to_le_bytes());
    body.extend_from_slice(file.as_bytes());
    body
}

/// ```text
/// flags u16 │ server id u32 │ length u32, file │ position u64 │ length u32, set
/// ```
fn gtid_request(server_id: u32, excluded: &[u8]) -> Vec<u8> {
    let mut body = 0_u16.to_le_bytes().to_vec();
    body.extend_from_slice(&server_id.to_le_bytes());
    body.extend_from_slice(&0_u32.to_le_bytes());
    body.extend_from_slice(&u64::from(FIRST_POSITION).to_le_bytes());
    body.extend_from_slice(&u32::try_from(excluded.len()).unwrap_or(u32::MAX).to_le_bytes());
    body.extend_from_slice(excluded);
    body
}

/// A connection that streams the binlog. Nothing is written to it any more; dropping it ends the
/// stream.
pub struct BinlogStream {
    socket: PacedSocket,
    intake: Intake,
}

impl BinlogStream {
    fn new(connection: Connection, limits: StreamLimits) -> Self {
        let (socket, begun) = connection.into_parts();
        Self {
            socket: PacedSocket::new(socket),
            intake: Intake::new(begun, limits.budget, limits.packet_bytes_max),
        }
    }

    /// One read of the socket; 0 is its end. [`take`](Self::take) gives what has come.
    ///
    /// # Errors
    /// The socket failed.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is kept.
    pub async fn read(&mut self) -> io::Result<usize> {
        self.socket.read(self.intake.space()).await
    }

    /// Whole packets that have come; to be asked until there are none. What each is says
    /// [`Sent::of`].
    ///
    /// # Errors
    /// A packet above the bound, or out of order: the stream is of no more use.
    pub fn take(&mut self) -> Result<Option<Packets>, WireError> {
        match self.take_judged(&mut |_| Fate::Keep)? {
            Some(Taken::Packets(packets)) => Ok(Some(packets)),
            // Nobody asked for that.
            Some(Taken::Skimmed(_)) | None => Ok(None),
        }
    }

    /// As [`take`](Self::take); what becomes of a large packet `judge` decides by its first bytes.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_judged(
        &mut self,
        judge: &mut dyn FnMut(&[u8]) -> Fate,
    ) -> Result<Option<Taken>, WireError> {
        Ok(self.intake.take(judge)?)
    }
}

/// What a packet of the stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// An event, from its header on.
    Event(Bytes),
    /// The server has no more to send and closes: it shuts down, or ends a stream that was asked
    /// not to wait.
    End,
}

impl Sent {
    /// Reads the first byte of a payload.
    ///
    /// # Errors
    /// The server's own, or a packet that does not belong in a stream.
    pub fn of(payload: Bytes) -> Result<Self, WireError> {
        match payload.first() {
            Some(&OK) => Ok(Self::Event(payload.slice(1..))),
            Some(&EOF) => Ok(Self::End),
            Some(&ERR) => Err(Box::new(ServerError::parse(&payload)).into()),
            Some(_) | None => Err(unexpected(&payload, "an event of the binlog")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_layout_of_the_protocol() {
        let body = registration(0x0102_0304, "walpost");
        assert_eq!(body, b"\x04\x03\x02\x01\x07walpost\0\0\0\0\0\0\0\0\0\0\0\0");
        let long = registration(1, &"é".repeat(100));
        assert_eq!((long[4], long.len()), (60, 4 + 1 + 60 + 12));
        assert_eq!(file_request(7, "b.1", 4), b"\x04\0\0\0\0\0\x07\0\0\0b.1");
        let body = gtid_request(7, b"set");
        assert_eq!(body, b"\0\0\x07\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x03\0\0\0set");
    }

    #[test]
    fn a_packet_of_the_stream_is_an_event_an_end_or_an_error() {
        let event = Sent::of(Bytes::from_static(b"\0event")).unwrap();
        assert_eq!(event, Sent::Event(Bytes::from_static(b"event")));
        assert_eq!(Sent::of(Bytes::from_static(b"\xfe\0\0\0\0")).unwrap(), Sent::End);
        let error = Sent::of(Bytes::from_static(b"\xff\xd4\x04#HY000purged")).unwrap_err();
        assert_eq!(error.server().unwrap().code, 1236);
        assert_eq!(error.kind(), FailureKind::Definite);
        for strange in [&b""[..], b"\x01"] {
            let error = Sent::of(Bytes::from_static(strange)).unwrap_err();
            assert!(matches!(error, WireError::Unexpected { .. }), "{error:?}");
        }
    }
}
