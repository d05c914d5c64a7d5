//! From socket reads to buffers of whole frames, without copying what is large. Knows no socket.
//!
//! ```text
//!   read ▶ [frame][frame][fra            hand out [frame][frame], keep "fra"
//!   read ▶ "fra" + "me][frame]"          …
//! ```
//!
//! A read that filled much of its buffer gives the buffer away and copies only the broken frame's
//! beginning; a small one is copied into a buffer of its own size, so that a few rows never pin
//! the room for many. A large frame that nobody wants is dropped as it comes.

use bytes::Bytes;

use super::frame::CHANGE_HEAD_BYTES;
use super::wire::{FrameError, HEADER_BYTES, header};
use crate::budget::Budget;

/// Bytes that a read asks for.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// A frame that is larger and not yet complete is looked at before more of it is kept.
const LARGE_BYTES: usize = 256 << 10;

/// See the module.
pub(crate) struct Intake {
    buffer: Vec<u8>,
    budget: Budget,
    frame_bytes_max: usize,
    /// Bytes at the front of the stream that belong to a frame that nobody wants.
    skip: usize,
}

/// Whether a large frame is worth its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relevance {
    /// It is read whole, up to the bound.
    Wanted,
    /// It is read through and dropped, whatever its size.
    Foreign,
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
        Self { buffer, budget, frame_bytes_max, skip: 0 }
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

    /// All whole frames that are there, as one buffer. Of a large frame that is still arriving
    /// `judge` sees the beginning of its body, once everything before it was taken.
    ///
    /// # Errors
    /// A length that is no length, or one above the bound in a frame that is wanted: definite.
    pub(crate) fn take(
        &mut self,
        mut judge: impl FnMut(&[u8]) -> Relevance,
    ) -> Result<Option<Bytes>, IntakeError> {
        self.drop_unwanted();
        let mut end = 0;
        loop {
            let rest = self.buffer.get(end..).unwrap_or_default();
            let Some((_, bytes)) = header(rest)? else { break };
            if bytes <= self.frame_bytes_max && bytes <= rest.len() {
                end += bytes;
                continue;
            }
            let is_large = bytes > LARGE_BYTES.min(self.frame_bytes_max);
            let Some(head) = rest.get(HEADER_BYTES..HEADER_BYTES + CHANGE_HEAD_BYTES) else {
                break;
            };
            // What stands before it may be what says whose it is.
            if !is_large || end > 0 {
                break;
            }
            match judge(head) {
                Relevance::Foreign => {
                    self.skip = bytes;
                    self.drop_unwanted();
                }
                Relevance::Wanted if bytes > self.frame_bytes_max => {
                    return Err(IntakeError::TooLarge { bytes });
                }
                Relevance::Wanted => break,
            }
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

    fn drop_unwanted(&mut self) {
        let here = self.skip.min(self.buffer.len());
        self.buffer.drain(..here);
        self.skip -= here;
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
                if let Some(frames) = intake.take(|_| Relevance::Wanted).unwrap() {
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
        let frames = intake.take(|_| Relevance::Wanted).unwrap().unwrap();
        assert_eq!(budget.held_bytes(), 305);
        drop(frames);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn a_frame_above_the_bound_is_refused_by_its_beginning() {
        let mut intake = Intake::new(&frame(1000, 1)[..60], Budget::new(1), 500);
        let taken = intake.take(|_| Relevance::Wanted);
        assert!(matches!(taken, Err(IntakeError::TooLarge { bytes: 1005 })));
    }

    #[test]
    fn a_frame_that_nobody_wants_is_dropped_as_it_comes() {
        // given a frame far above the bound between two small ones
        let large = frame(80 << 20, 2);
        let whole = [frame(300, 1), large, frame(300, 3)].concat();
        let mut intake = Intake::new(&[], Budget::new(1), 1 << 20);
        let (mut out, mut judged) = (Vec::new(), 0);
        for read in whole.chunks(READ_BYTES) {
            intake.space().extend_from_slice(read);
            let taken = intake.take(|head| {
                judged += 1;
                // what is before it was taken already
                assert_eq!(out, frame(300, 1));
                assert!(head.iter().all(|byte| *byte == 2), "{head:?}");
                Relevance::Foreign
            });
            let taken = taken.unwrap();
            // then its bytes are never held
            assert!(intake.buffer.capacity() <= 4 * READ_BYTES);
            out.extend_from_slice(taken.as_deref().unwrap_or_default());
        }
        out.extend_from_slice(&intake.take(|_| Relevance::Wanted).unwrap().unwrap_or_default());
        // and both small ones arrive
        assert_eq!(judged, 1);
        assert_eq!(out, [frame(300, 1), frame(300, 3)].concat());
    }
}
