//! The client/server protocol's bytes: packets, and what is in the few that we read. Pure.
//!
//! Owns the framing. It does not know sockets, passwords or what a binlog event carries.
//!
//! ```text
//! packet:  { length u24 │ sequence u8 │ payload }*     all numbers little-endian
//! ```
//!
//! A payload of 16 MiB - 1 or more is cut into chunks of that size and a last one that is
//! shorter, perhaps empty. The sequence rises by one a chunk, and wraps.
//!
//! Source: MySQL internals documentation, "Protocol Basics", "Text Protocol"; MariaDB's
//! "Client/Server Protocol". The same for MySQL 5.7 to 9.7 and MariaDB 10.6 to 11.8.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod reply;
mod server_error;

pub use reply::Row;
pub(crate) use reply::{EOF, ERR, OK, OkPacket, Reader, is_eof, parse_row};
pub use server_error::ServerError;

/// Length and sequence.
pub(crate) const HEADER_BYTES: usize = 4;

/// The largest chunk; one of this size is followed by another.
pub(crate) const CHUNK_BYTES_MAX: usize = 0xff_ffff;

/// A packet that no server sends, or one above a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Bytes are missing, or are not from this protocol.
    #[error("packet number {found} came where number {expected} belongs")]
    OutOfOrder {
        /// The sequence that it should have.
        expected: u8,
        /// As received.
        found: u8,
    },
    /// Larger than is allowed at this point.
    #[error("a packet of {bytes} bytes or more, above the {bytes_max} that are allowed here")]
    TooLarge {
        /// As far as its headers were seen.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

/// Where a whole packet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// All chunks with their headers.
    pub(crate) wire_bytes: usize,
    pub(crate) payload_bytes: usize,
    /// Sequence that the next packet has.
    pub(crate) next_sequence: u8,
}

impl Packet {
    pub(crate) fn is_one_chunk(self) -> bool {
        self.wire_bytes == self.payload_bytes + HEADER_BYTES
    }
}

/// How far the packet has come that some bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framed {
    Whole(Packet),
    /// So many bytes it has at least, as far as its headers are there.
    Part {
        wire_bytes: usize,
    },
}

/// The packet that `bytes` begin with.
///
/// A header is judged as soon as it is there, so nothing is reserved for a body that is refused.
///
/// # Errors
/// The connection is of no more use.
pub(crate) fn packet(
    bytes: &[u8],
    first_sequence: u8,
    payload_bytes_max: usize,
) -> Result<Framed, PacketError> {
    let (mut rest, mut expected) = (bytes, first_sequence);
    let (mut wire_bytes, mut payload_bytes) = (0, 0);
    loop {
        let Some((&[a, b, c, found], body)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(Framed::Part { wire_bytes: wire_bytes + HEADER_BYTES });
        };
        let chunk_bytes = u32::from_le_bytes([a, b, c, 0]) as usize;
        // A server that gives up on a session says so out of turn.
        if found != expected && (wire_bytes > 0 || body.first() != Some(&ERR)) {
            if wire_bytes == 0 && body.is_empty() && chunk_bytes > 0 {
                return Ok(Framed::Part { wire_bytes: HEADER_BYTES + chunk_bytes });
            }
            return Err(PacketError::OutOfOrder { expected, found });
        }
        payload_bytes += chunk_bytes;
        if payload_bytes > payload_bytes_max {
            let (bytes, bytes_max) = (payload_bytes, payload_bytes_max);
            return Err(PacketError::TooLarge { bytes, bytes_max });
        }
        wire_bytes += HEADER_BYTES + chunk_bytes;
        expected = found.wrapping_add(1);
        let Some((_, after)) = body.split_at_checked(chunk_bytes) else {
            return Ok(Framed::Part { wire_bytes });
        };
        if chunk_bytes < CHUNK_BYTES_MAX {
            let next_sequence = expected;
            return Ok(Framed::Whole(Packet { wire_bytes, payload_bytes, next_sequence }));
        }
        rest = after;
    }
}

/// Moves the chunks of the packet that `buffer` holds together over their headers, so that the
/// payload is one piece: one copy, in place.
pub(crate) fn join(buffer: &mut Vec<u8>) {
    let (mut from, mut to) = (0, 0);
    while let Some((&[a, b, c, _], _)) =
        buffer.get(from..).and_then(|rest| rest.split_first_chunk::<HEADER_BYTES>())
    {
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        let start = from + HEADER_BYTES;
        let end = (start + length).min(buffer.len());
        buffer.copy_within(start..end, to);
        to += end - start;
        from = end;
    }
    buffer.truncate(to);
}

/// Appends one packet. What we send fits one chunk: statements and answers of the login.
///
/// # Panics
/// For a payload above that, which is a bug of ours.
pub(crate) fn put_packet(sequence: u8, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() < CHUNK_BYTES_MAX, "we send no packet of 16 MiB");
    let [a, b, c, _] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&[a, b, c, sequence]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests;
