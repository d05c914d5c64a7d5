//! A transaction that MySQL compressed (`binlog_transaction_compression`): one event that holds
//! all the others.
//!
//! Owns its layout and the stream that comes out of it. What is inflated is handed out in pieces
//! of whole events, so that a transaction of any size costs one piece and zstd's window; nothing
//! is given before its length was bounded, and nothing is left out in silence.
//!
//! ```text
//! TRANSACTION_PAYLOAD_EVENT: ( field: packed | length: packed | value )… | 0 | payload
//!   1 payload's length: packed | 2 compression: packed (0 zstd, 255 none) | 3 inflated length
//! inflated: event | event | …     each with a header, none with a checksum
//! ```
//!
//! Layout: class `Transaction_payload_event` in MySQL's
//! `libs/mysql/binlog/event/control_events.h`, `codecs/binary.cpp`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::{fmt, mem};

use bytes::Bytes;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::cursor::{Cursor, MalformedError};
use super::event::{EventError, HEADER_LENGTH, Header};
use super::skim::{HEAD_BYTES, LARGE_BYTES};
use crate::budget::Budget;

const WHAT: &str = "TRANSACTION_PAYLOAD_EVENT";
/// What is inflated at a time, an event that is longer apart.
const PIECE_LENGTH: usize = 64 * 1024;
/// zstd's window is at most 2^27 bytes = 128 MiB, what its own limit is and its highest level
/// uses; MySQL's default level needs 2 MiB.
const WINDOW_LOG_MAX: u32 = 27;

/// Reads one payload after the other with the same window.
pub(crate) struct PayloadReader {
    bounds: PayloadBounds,
    /// Made with the first compressed payload: most servers send none.
    zstd: Option<Decoder<'static>>,
    open: Option<Payload>,
}

/// What a payload may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PayloadBounds {
    /// Of the compressed event, which is read whole.
    pub(crate) payload_bytes_max: usize,
    /// Of one event inside.
    pub(crate) event_bytes_max: usize,
}

/// A payload that is being inflated.
struct Payload {
    body: Bytes,
    /// How much of it was read.
    consumed: usize,
    is_compressed: bool,
    /// What comes out at the end.
    stated: u64,
    /// What came out so far.
    inflated: u64,
    is_at_end: bool,
    /// The beginning of an event whose end comes with the next piece.
    carried: Vec<u8>,
    /// The large event that comes next is to be read whole.
    is_kept: bool,
    /// An event that is passed over: its beginning, and how many bytes of it are to come.
    skim: Option<(Bytes, u64)>,
}

/// What comes out.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Whole events; none while a large one is passed over.
    Events(Bytes),
    /// A large event begins so: [`PayloadReader::judged`] says what becomes of it.
    Large(Bytes),
    /// One that was passed over began so.
    Skimmed(Bytes),
}

impl fmt::Debug for PayloadReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("PayloadReader");
        debug.field("bounds", &self.bounds).field("is_open", &self.is_open());
        debug.finish_non_exhaustive()
    }
}

impl PayloadReader {
    pub(crate) fn new(bounds: PayloadBounds) -> Self {
        Self { bounds, zstd: None, open: None }
    }

    /// Whether a payload has more to give.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets what was open.
    pub(crate) fn reset(&mut self) {
        self.open = None;
    }

    /// Begins with the body of a TRANSACTION_PAYLOAD_EVENT.
    pub(crate) fn begin(&mut self, body: &Bytes) -> Result<(), EventError> {
        let length_max = self.bounds.payload_bytes_max;
        if body.len() > length_max {
            let length = body.len() as u64;
            return Err(EventError::TooLarge { what: WHAT, length, length_max });
        }
        let payload = Payload::parse(body)?;
        if payload.is_compressed {
            prepare(&mut self.zstd).map_err(|_| payload.broken())?;
        }
        self.open = Some(payload);
        Ok(())
    }

    /// What becomes of the large event that came last.
    pub(crate) fn judged(&mut self, is_skimmed: bool) {
        let Some(payload) = &mut self.open else { return };
        payload.is_kept = !is_skimmed;
        if is_skimmed && let Ok(header) = Header::parse(&payload.carried) {
            let carried = std::mem::take(&mut payload.carried);
            let rest = u64::from(header.length).saturating_sub(carried.len() as u64);
            let head = carried.get(..HEAD_BYTES.min(carried.len())).unwrap_or_default();
            payload.skim = Some((Bytes::copy_from_slice(head), rest));
        }
    }

    /// The next piece. `None`: that was all, and it was complete.
    pub(crate) fn next(&mut self, budget: &Budget) -> Result<Option<Piece>, EventError> {
        let Some(payload) = &mut self.open else { return Ok(None) };
        if payload.skim.is_some() {
            return payload.pass_over(&mut self.zstd).map(Some);
        }
        let length_max = self.bounds.event_bytes_max;
        let mut piece = mem::take(&mut payload.carried);
        let mut target = piece.len().saturating_add(PIECE_LENGTH);
        loop {
            payload.fill(&mut self.zstd, &mut piece, target)?;
            let (whole, wanted) = whole_events(&piece)?;
            if whole > 0 {
                payload.is_kept = false;
                payload.carried = piece.get(whole..).unwrap_or_default().to_vec();
                piece.truncate(whole);
                return Ok(Some(Piece::Events(budget.hold(piece))));
            }
            if payload.is_at_end {
                let is_complete = piece.is_empty() && payload.inflated == payload.stated;
                let broken = payload.broken();
                self.open = None;
                return if is_complete { Ok(None) } else { Err(broken) };
            }
            // An event that is longer than a piece: is it needed?
            if wanted > LARGE_BYTES.min(length_max) && !payload.is_kept {
                let head = piece.get(..HEAD_BYTES.min(piece.len())).unwrap_or_default();
                let head = Bytes::copy_from_slice(head);
                payload.carried = piece;
                return Ok(Some(Piece::Large(head)));
            }
            if wanted > length_max {
                let what = "event inside TRANSACTION_PAYLOAD_EVENT";
                return Err(EventError::TooLarge { what, length: wanted as u64, length_max });
            }
            target = wanted;
        }
    }
}

/// A decoder at the beginning of a frame.
fn prepare(zstd: &mut Option<Decoder<'static>>) -> std::io::Result<()> {
    match zstd {
        Some(decoder) => decoder.reinit(),
        None => {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            *zstd = Some(decoder);
            Ok(())
        }
    }
}

/// How many bytes at the beginning are whole events, and up to where the first one reaches that
/// is not.
fn whole_events(bytes: &[u8]) -> Result<(usize, usize), EventError> {
    let mut whole: usize = 0;
    while let Some(rest) = bytes.get(whole..).filter(|rest| rest.len() >= HEADER_LENGTH) {
        let header = Header::parse(rest)?;
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length < HEADER_LENGTH {
            return Err(MalformedError { what: WHAT, at: whole }.into());
        }
        if length > rest.len() {
            return Ok((whole, whole.saturating_add(length)));
        }
        whole += length;
    }
    Ok((whole, whole + HEADER_LENGTH))
}

impl Payload {
    fn parse(body: &Bytes) -> Result<Self, EventError> {
        const OTW_PAYLOAD_HEADER_END_MARK: usize = 0;
        const OTW_PAYLOAD_SIZE_FIELD: usize = 1;
        const OTW_PAYLOAD_COMPRESSION_TYPE_FIELD: usize = 2;
        const OTW_PAYLOAD_UNCOMPRESSED_SIZE_FIELD: usize = 3;
        const ZSTD: usize = 0;
        const NONE: usize = 255;
        let mut cursor = Cursor::new(body, WHAT);
        let (mut length, mut compression, mut stated) = (None, None, None);
        loop {
            let field = cursor.packed()?;
            if field == OTW_PAYLOAD_HEADER_END_MARK {
                break;
            }
            let mut value = Cursor::new(cursor.packed_bytes()?, WHAT);
            match field {
                OTW_PAYLOAD_SIZE_FIELD => length = Some(value.packed()?),
                OTW_PAYLOAD_COMPRESSION_TYPE_FIELD => compression = Some(value.packed()?),
                OTW_PAYLOAD_UNCOMPRESSED_SIZE_FIELD => stated = Some(value.packed()?),
                // Whoever does not know a field may leave it out.
                _ => continue,
            }
            if !value.is_empty() {
                return Err(value.malformed().into());
            }
        }
        let is_compressed = match compression {
            Some(ZSTD) => true,
            Some(NONE) => false,
            Some(_) | None => return Err(cursor.malformed().into()),
        };
        let consumed = body.len() - cursor.remaining();
        if length != Some(cursor.remaining()) {
            return Err(cursor.malformed().into());
        }
        // The server leaves it out where nothing is compressed.
        let stated = if is_compressed { stated } else { stated.or(length) };
        let stated = stated.ok_or(cursor.malformed())? as u64;
        Ok(Self {
            body: body.clone(),
            consumed,
            is_compressed,
            stated,
            inflated: 0,
            is_at_end: false,
            carried: Vec::new(),
            is_kept: false,
            skim: None,
        })
    }

    /// Inflates more of an event that is passed over.
    fn pass_over(&mut self, zstd: &mut Option<Decoder<'static>>) -> Result<Piece, EventError> {
        let Some((head, rest)) = self.skim.take() else { return Ok(Piece::Events(Bytes::new())) };
        let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(PIECE_LENGTH);
        let mut piece = Vec::new();
        self.fill(zstd, &mut piece, wanted)?;
        // Room may be more than was asked for.
        let taken = usize::try_from(rest).unwrap_or(usize::MAX).min(piece.len());
        self.carried = piece.split_off(taken);
        let rest = rest - taken as u64;
        if rest == 0 {
            return Ok(Piece::Skimmed(head));
        }
        if taken == 0 {
            return Err(self.broken());
        }
        self.skim = Some((head, rest));
        Ok(Piece::Events(Bytes::new()))
    }

    fn broken(&self) -> EventError {
        EventError::Inflate { what: WHAT, length: self.stated }
    }

    /// Inflates until `out` is `target` bytes long or the payload is at its end.
    fn fill(
        &mut self,
        zstd: &mut Option<Decoder<'static>>,
        out: &mut Vec<u8>,
        target: usize,
    ) -> Result<(), EventError> {
        // One byte more than should come: else an end that came too late would not be seen. And
        // a small transaction does not pin a large buffer.
        let left = usize::try_from(self.stated - self.inflated).unwrap_or(usize::MAX);
        let target = target.min(out.len().saturating_add(left).saturating_add(1));
        out.reserve_exact(target.saturating_sub(out.len()));
        while out.len() < target && !self.is_at_end {
            let before = out.len();
            let input = self.body.get(self.consumed..).unwrap_or_default();
            if self.is_compressed {
                let decoder = zstd.as_mut().ok_or(self.broken())?;
                let (consumed, is_frame_end) =
                    inflate(decoder, input, out).map_err(|_| self.broken())?;
                self.consumed += consumed;
                self.is_at_end = is_frame_end && consumed == input.len();
                if is_frame_end && !self.is_at_end {
                    decoder.reinit().map_err(|_| self.broken())?;
                } else if consumed == 0 && out.len() == before && !self.is_at_end {
                    // The stream ends inside a frame.
                    return Err(self.broken());
                }
            } else {
                let taken = input.len().min(target - before);
                out.extend_from_slice(input.get(..taken).unwrap_or_default());
                self.consumed += taken;
                self.is_at_end = taken == input.len();
            }
            self.inflated += (out.len() - before) as u64;
            if self.inflated > self.stated {
                return Err(self.broken());
            }
        }
        Ok(())
    }
}

/// One step of zstd, behind what is in `out` and up to its capacity: how much was read, and
/// whether a frame ended.
fn inflate(
    decoder: &mut Decoder<'static>,
    input: &[u8],
    out: &mut Vec<u8>,
) -> std::io::Result<(usize, bool)> {
    let mut input = InBuffer::around(input);
    let before = out.len();
    let mut output = OutBuffer::around_pos(out, before);
    let hint = decoder.run(&mut input, &mut output)?;
    Ok((input.pos(), hint == 0))
}

#[cfg(test)]
mod tests;
