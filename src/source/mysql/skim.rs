//! A large packet that nobody needs: read to its end, checked, and not kept.
//!
//! Owns the walk over its chunks and its checksum. Whether a packet is needed is decided by its
//! first bytes, elsewhere: those of an event say of which table it is, and no setting bounds what
//! other tables may hold.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::Bytes;

use super::wire::{CHUNK_BYTES_MAX, HEADER_BYTES, PacketError};

/// A smaller packet is read as it is.
pub(crate) const LARGE_BYTES: usize = 1 << 20;
/// As much of an event as is needed to decide, and is kept: its header, the head of its rows, and
/// the beginning of a statement.
pub(crate) const HEAD_BYTES: usize = 1 << 12;
const CHECKSUM_BYTES: usize = 4;

/// What becomes of a large packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is read whole.
    Keep,
    /// It is passed over.
    Skim,
}

/// An event that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skimmed {
    /// Its first bytes, from its header on.
    pub(crate) head: Bytes,
    pub(crate) length: u64,
    /// Its last four bytes, and the checksum of those before them.
    pub(crate) stated: u32,
    pub(crate) computed: u32,
}

/// A packet that is being passed over.
#[derive(Debug, Default)]
pub(crate) struct Skim {
    head: Vec<u8>,
    length: u64,
    hasher: crc32fast::Hasher,
    /// The last bytes, which are not in the hash: they may be the checksum.
    tail: Vec<u8>,
    /// Bytes of the current chunk that are still to come.
    rest: usize,
    /// The current chunk is the last one.
    is_last: bool,
    /// The byte before the event was seen.
    is_begun: bool,
    sequence: u8,
}

impl Skim {
    /// Begins at a packet's first header, which has this sequence.
    pub(crate) fn new(sequence: u8) -> Self {
        Self { sequence, ..Self::default() }
    }

    /// Takes what belongs to the packet from the beginning of `bytes`: how many these are, and
    /// whether that was all of it.
    ///
    /// # Errors
    /// A chunk that is not the next one.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), PacketError> {
        let mut left = bytes;
        loop {
            if self.rest == 0 {
                if self.is_last {
                    return Ok((bytes.len() - left.len(), true));
                }
                let Some((&[a, b, c, found], after)) = left.split_first_chunk::<HEADER_BYTES>()
                else {
                    return Ok((bytes.len() - left.len(), false));
                };
                if found != self.sequence {
                    return Err(PacketError::OutOfOrder { expected: self.sequence, found });
                }
                self.sequence = found.wrapping_add(1);
                self.rest = u32::from_le_bytes([a, b, c, 0]) as usize;
                self.is_last = self.rest < CHUNK_BYTES_MAX;
                left = after;
                continue;
            }
            let (now, after) = left.split_at(self.rest.min(left.len()));
            if now.is_empty() {
                return Ok((bytes.len() - left.len(), false));
            }
            self.rest -= now.len();
            self.feed(now);
            left = after;
        }
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        if !self.is_begun {
            self.is_begun = true;
            bytes = bytes.get(1..).unwrap_or_default();
        }
        self.length += bytes.len() as u64;
        let room = HEAD_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(bytes.get(..room).unwrap_or_default());
        let hashed = (self.tail.len() + bytes.len()).saturating_sub(CHECKSUM_BYTES);
        let (of_tail, of_bytes) = match hashed.checked_sub(self.tail.len()) {
            Some(of_bytes) => (self.tail.len(), of_bytes),
            None => (hashed, 0),
        };
        self.hasher.update(self.tail.get(..of_tail).unwrap_or_default());
        self.hasher.update(bytes.get(..of_bytes).unwrap_or_default());
        self.tail.drain(..of_tail);
        self.tail.extend_from_slice(bytes.get(of_bytes..).unwrap_or_default());
    }

    /// Sequence that the next packet has.
    pub(crate) fn next_sequence(&self) -> u8 {
        self.sequence
    }

    pub(crate) fn finish(self) -> Skimmed {
        let tail = self.tail.first_chunk().copied().unwrap_or_default();
        Skimmed {
            head: self.head.into(),
            length: self.length,
            stated: u32::from_le_bytes(tail),
            computed: self.hasher.finalize(),
        }
    }
}
