//! The frames of the streaming replication protocol: what stands inside a CopyData message.
//!
//! Owns the two frames that a walsender sends. Knows neither the socket nor what XLogData
//! carries; that is `pgoutput`'s.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::Bytes;

use super::lsn::Lsn;
use super::pgoutput::{MalformedError, Reader, unix_micros};

/// One frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A piece of the stream: with pgoutput one whole message.
    XLogData(XLogData),
    /// A sign of life; asks for a status update where `reply_requested`.
    Keepalive(Keepalive),
}

/// XLogData (protocol-replication, "XLogData (B)"):
///
/// ```text
/// 'w' | start: u64 | end of WAL on the server: u64 | clock: i64 | data …
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XLogData {
    /// Start of this piece: for a row its own WAL record, for a Commit the transaction's
    /// `end_lsn`, 0/0 for messages that stand for no record (Relation, Type).
    pub start: Lsn,
    /// End of WAL on the server. With logical decoding it equals `start`.
    pub wal_end: Lsn,
    /// The server's clock: microseconds since 1970, UTC.
    pub clock_micros: i64,
    /// The message itself, a slice of the frame.
    pub data: Bytes,
}

/// Bytes of a frame with a change, up to the id of its relation.
pub(crate) const CHANGE_HEAD_BYTES: usize = 30;

/// A change by the beginning of its frame: the tag of its message (`I`, `U` or `D`), and the id of
/// its relation. `None` for anything else.
///
/// ```text
/// 'w' | start: u64 | end of WAL: u64 | clock: i64 | tag: u8 | relation: u32 | …
/// ```
pub(crate) fn change_of(head: &[u8]) -> Option<(u8, u32)> {
    let mut reader = Reader::new(head, "replication frame");
    if reader.u8().ok()? != b'w' {
        return None;
    }
    reader.take(24).ok()?;
    let tag = reader.u8().ok()?;
    let relation = reader.u32().ok()?;
    matches!(tag, b'I' | b'U' | b'D').then_some((tag, relation))
}

/// Primary keepalive (protocol-replication, "Primary keepalive message (B)"):
///
/// ```text
/// 'k' | end of WAL: u64 | clock: i64 | reply requested: u8
/// ```
///
/// Sent at each catch-up and, with `reply_requested`, after half of `wal_sender_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Everything up to here has been decoded and sent.
    pub wal_end: Lsn,
    /// The server's clock: microseconds since 1970, UTC.
    pub clock_micros: i64,
    /// The server drops the connection unless a status update follows soon.
    pub reply_requested: bool,
}

impl Frame {
    /// Reads the content of one CopyData message.
    ///
    /// # Errors
    /// Not a frame of the protocol; does not heal.
    pub fn parse(frame: &Bytes) -> Result<Frame, MalformedError> {
        let mut reader = Reader::new(frame, "replication frame");
        match reader.u8()? {
            b'w' => {
                reader.name("XLogData");
                Ok(Frame::XLogData(XLogData {
                    start: Lsn(reader.u64()?),
                    wal_end: Lsn(reader.u64()?),
                    clock_micros: unix_micros(reader.i64()?),
                    data: frame.slice_ref(reader.rest()),
                }))
            }
            b'k' => {
                reader.name("Keepalive");
                let keepalive = Keepalive {
                    wal_end: Lsn(reader.u64()?),
                    clock_micros: unix_micros(reader.i64()?),
                    reply_requested: reader.u8()? != 0,
                };
                reader.finish()?;
                Ok(Frame::Keepalive(keepalive))
            }
            tag => Err(MalformedError::UnknownTag { what: "replication frame", tag }),
        }
    }
}
