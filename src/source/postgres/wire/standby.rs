//! What a client writes while a stream is on: status updates and the end.
//!
//! Source: PostgreSQL documentation, 55.4 "Streaming Replication Protocol".

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;

/// What a standby tells the server about its progress. Positions are LSNs of the byte after the
/// last one that is written, flushed or applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StandbyStatus {
    pub(crate) written: u64,
    /// What the slot's `confirmed_flush_lsn` becomes.
    pub(crate) flushed: u64,
    pub(crate) applied: u64,
    /// The client's clock, in microseconds since 2000-01-01 00:00 UTC.
    pub(crate) clock_micros: i64,
    /// Asks for a keepalive at once.
    pub(crate) reply_requested: bool,
}

/// Appends a CopyData frame with a standby status update.
///
/// ```text
/// 'd' │ 38 u32 │ 'r' │ written u64 │ flushed u64 │ applied u64 │ clock i64 │ reply u8
/// ```
pub(crate) fn put_status_update(status: &StandbyStatus, buffer: &mut BytesMut) {
    buffer.reserve(39);
    buffer.put_u8(b'd');
    buffer.put_u32(38);
    buffer.put_u8(b'r');
    buffer.put_u64(status.written);
    buffer.put_u64(status.flushed);
    buffer.put_u64(status.applied);
    buffer.put_i64(status.clock_micros);
    buffer.put_u8(status.reply_requested.into());
}

/// Appends CopyDone: the client will send no more CopyData.
pub(crate) fn put_copy_done(buffer: &mut BytesMut) {
    frontend::copy_done(buffer);
}

/// Appends Terminate.
pub(crate) fn put_terminate(buffer: &mut BytesMut) {
    frontend::terminate(buffer);
}
