//! From socket reads to buffers of whole frames, without copying what is large. Knows no socket.
//!
//! ```text
//!   read ▶ [frame][frame][fra            hand out [frame][frame], keep "fra"
//!   read ▶ "fra" + "me][frame]"          …
//! ```
//!
//! A read that filled much of its buffer gives the buffer away and copies only the broken frame's
//! beginning; a small one is copied into a buffer of its own size, so that a few rows never pin
//! the room for many.

use bytes::Bytes;

use super::wire::{FrameError, header};
use crate::budget::Budget;

/// Bytes that a read asks for.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// See the module.
pub(crate) struct Intake {
    buffer: Vec<u8>,
    budget: Budget,
    frame_bytes_max: usize,
}

/// A frame that is larger than a row may be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a frame of {bytes} bytes")]
    TooLarge { bytes: usize },
}

impl Intake {
    /// Starts with what was read before the stream began.
    pub(crate) fn new(begun: &[u8], budget: Budget, frame_bytes_max: usize) -> Self {
        let mut buffer = Vec::with_capacity(READ_BYTES.max(begun.len()));
        buffer.extend_from_slice(begun);
        Self { buffer, budget, frame_bytes_max }
    }

    /// The buffer to append the next read to; it has room. A frame that is larger than the buffer
    /// gets its room as it comes, at most doubled each time: its length is not trusted with memory
    /// before its bytes are there.
    pub(crate) fn space(&mut self) -> &mut Vec<u8> {
        if self.buffer.len() == self.buffer.capacity() {
            self.buffer.reserve(READ_BYTES.max(self.buffer.len()));
        }
        &mut self.buffer
    }

    /// All whole frames that are there, as one buffer.
    ///
    /// # Errors
    /// A length that is no length, or one above the bound: definite.
    pub(crate) fn take(&mut self) -> Result<Option<Bytes>, IntakeError> {
        let mut end = 0;
        while let Some((_, bytes)) = header(self.buffer.get(end..).unwrap_or_default())? {
            if bytes > self.frame_bytes_max {
                return Err(IntakeError::TooLarge { bytes });
            }
            if end + bytes > self.buffer.len() {
                break;
            }
            end += bytes;
        }
        if end == 0 {
            return Ok(None);
        }
        let frames = if end >= self.buffer.capacity() / 2 {
            let mut next = Vec::with_capacity(READ_BYTES);
            next.extend_from_slice(self.buffer.get(end..).unwrap_or_default());
            let mut frames = std::mem::replace(&mut self.buffer, next);
            frames.truncate(end);
            frames
        } else {
            let frames = self.buffer.get(..end).unwrap_or_default().to_vec();
            self.buffer.drain(..end);
            frames
        };
        Ok(Some(self.budget.hold(frames)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(length: usize, fill: u8) -> Vec<u8> {
        let mut frame = vec![b'd'];
        frame.extend_from_slice(&u32::try_from(length + 4).unwrap().to_be_bytes());
        frame.resize(frame.len() + length, fill);
        frame
    }

    proptest! {
        #[test]
        fn whatever_the_reads_the_same_frames_come_out(
            lengths in prop::collection::vec(prop_oneof![0usize..300, 60_000usize..200_000], 1..12),
            reads in prop::collection::vec(1usize..70_000, 1..200),
        ) {
            let whole: Vec<u8> = lengths.iter().zip(0u8..).flat_map(|(l, f)| frame(*l, f)).collect();
            let mut intake = Intake::new(&[], Budget::new(1), 1 << 20);
            let (mut rest, mut out) = (&whole[..], Vec::new());
            for read in reads.iter().cycle() {
                let (now, later) = rest.split_at((*read).min(rest.len()));
                rest = later;
                intake.space().extend_from_slice(now);
                if let Some(frames) = intake.take().unwrap() {
                    // Whole frames only.
                    let mut at = 0;
                    while at < frames.len() {
                        at += header(&frames[at..]).unwrap().unwrap().1;
                    }
                    prop_assert_eq!(at, frames.len());
                    out.extend_from_slice(&frames);
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(out, whole);
        }
    }

    #[test]
    fn a_small_read_pins_no_more_than_itself() {
        let budget = Budget::new(1);
        let mut intake = Intake::new(&[], budget.clone(), 1 << 20);
        intake.space().extend_from_slice(&frame(300, 1));
        let frames = intake.take().unwrap().unwrap();
        assert_eq!(budget.held_bytes(), 305);
        drop(frames);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn a_frame_above_the_bound_is_refused_by_its_header() {
        let mut intake = Intake::new(&frame(1000, 1)[..8], Budget::new(1), 500);
        assert!(matches!(intake.take(), Err(IntakeError::TooLarge { bytes: 1005 })));
    }
}
