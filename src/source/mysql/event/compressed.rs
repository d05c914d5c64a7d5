//! What MariaDB compresses (`log_bin_compress`): the text of a query, the rows of a row event.
//!
//! ```text
//! 0x80 | algorithm << 4 (0 = zlib) | width (1 to 4) : u8 | inflated length: width, big-endian
//! zlib stream to the end
//! ```
//!
//! Server side: `binlog_buf_compress` in `sql/log_event.cc`. One event is inflated at a time, up
//! to the length that it states, which is bounded before anything is allocated.

use flate2::{Decompress, FlushDecompress, Status};

use super::EventError;
use crate::source::mysql::cursor::Cursor;

/// The first bytes of what `compressed` inflates to, at most so many: what is too large to be
/// held whole can still be looked at.
pub(crate) fn inflate_head(
    compressed: &[u8],
    bytes: usize,
    what: &'static str,
) -> Result<Vec<u8>, EventError> {
    let mut cursor = Cursor::new(compressed, what);
    let width = usize::from(cursor.u8()? & 0x07);
    cursor.take(width)?;
    let mut head = Vec::with_capacity(bytes);
    let stream = cursor.take(cursor.remaining())?;
    // Up to the capacity.
    let status = Decompress::new(true).decompress_vec(stream, &mut head, FlushDecompress::None);
    match status {
        Ok(_) => Ok(head),
        Err(_) => Err(EventError::Inflate { what, length: 0 }),
    }
}

/// Inflates `compressed` behind what is in `out`.
pub(crate) fn inflate(
    compressed: &[u8],
    out: &mut Vec<u8>,
    length_max: usize,
    what: &'static str,
) -> Result<(), EventError> {
    let mut cursor = Cursor::new(compressed, what);
    let first = cursor.u8()?;
    let width = usize::from(first & 0x07);
    if first & 0xF0 != 0x80 || first & 0x08 != 0 || !(1..=4).contains(&width) {
        return Err(cursor.malformed().into());
    }
    let mut length: u64 = 0;
    for byte in cursor.take(width)? {
        length = (length << 8) | u64::from(*byte);
    }
    let bounded = usize::try_from(length).ok().filter(|length| *length <= length_max);
    let Some(wanted) = bounded else {
        return Err(EventError::TooLarge { what, length, length_max });
    };
    // Zlib may not believe that it is done before it could write one byte more.
    out.reserve_exact(wanted + 1);
    let mut zlib = Decompress::new(true);
    let stream = cursor.take(cursor.remaining())?;
    let status = zlib.decompress_vec(stream, out, FlushDecompress::Finish);
    // All of the stream was read, and what it gave is as long as was stated.
    let lengths = (zlib.total_in(), zlib.total_out()) == (stream.len() as u64, length);
    if lengths && matches!(status, Ok(Status::StreamEnd)) {
        Ok(())
    } else {
        Err(EventError::Inflate { what, length })
    }
}
