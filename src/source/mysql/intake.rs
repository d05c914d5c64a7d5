//! From socket reads to whole packets, without copying what is large. Knows no socket.
//!
//! ```text
//!   read ▶ [packet][packet][pac              hand out [packet][packet], keep "pac"
//!   read ▶ "pac" + "ket][packet]"            …
//!   read ▶ [chunk of 16 MiB][chunk][chu      wait; then join the chunks in place
//! ```
//!
//! A read that filled much of its buffer gives the buffer away and copies only the broken
//! packet's beginning; a small one is copied into a buffer of its own size, so that a few rows
//! never pin the room for many.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{Buf, Bytes};

use super::skim::{Fate, HEAD_BYTES, LARGE_BYTES, Skim, Skimmed};
use super::wire::{Framed, HEADER_BYTES, PacketError, join, packet};
use crate::budget::Budget;

/// Bytes that a read asks for.
const READ_BYTES: usize = 64 << 10;

/// See the module.
pub(crate) struct Intake {
    buffer: Vec<u8>,
    /// Bytes of the packet that the buffer begins with, as far as its headers are there.
    wanted_bytes: usize,
    budget: Budget,
    /// Of the next packet.
    sequence: u8,
    payload_bytes_max: usize,
    /// The large packet that the buffer begins with is to be kept.
    is_kept: bool,
    /// A packet that is being passed over.
    skim: Option<Skim>,
}

/// What was read.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Packets that are whole.
    Packets(Packets),
    /// A large one that was passed over.
    Skimmed(Skimmed),
}

impl Intake {
    /// Starts with what was read before the stream began; the first packet has sequence 1, as the
    /// first answer to any command.
    pub(crate) fn new(begun: Vec<u8>, budget: Budget, payload_bytes_max: usize) -> Self {
        Self {
            buffer: begun,
            wanted_bytes: 0,
            budget,
            sequence: 1,
            payload_bytes_max,
            is_kept: false,
            skim: None,
        }
    }

    /// The buffer to append the next read to; it has room. A packet that is larger than the buffer
    /// gets its room as it comes, at most doubled each time: its length is not trusted with memory
    /// before its bytes are there. Nor does it get more than it needs, since it keeps that.
    pub(crate) fn space(&mut self) -> &mut Vec<u8> {
        let length = self.buffer.len();
        if length == self.buffer.capacity() {
            let missing = self.wanted_bytes.saturating_sub(length) + READ_BYTES;
            self.buffer.reserve_exact(missing.min(READ_BYTES.max(length)));
        }
        &mut self.buffer
    }

    /// Whole packets that are there, in one buffer. To be asked until there are none: a packet of
    /// several chunks comes alone. `judge` decides by the first bytes of a large packet's payload
    /// what becomes of it; all packets before it were handed out by then.
    ///
    /// # Errors
    /// A packet above the bound, or out of order; all whole ones before it were handed out.
    pub(crate) fn take(
        &mut self,
        judge: &mut dyn FnMut(&[u8]) -> Fate,
    ) -> Result<Option<Taken>, PacketError> {
        if self.skim.is_none() && !self.is_kept && self.begins_large() {
            let head = self.buffer.get(HEADER_BYTES..HEADER_BYTES + 1 + HEAD_BYTES);
            let Some(head) = head else {
                self.wanted_bytes = HEADER_BYTES + 1 + HEAD_BYTES;
                return Ok(None);
            };
            match judge(head) {
                Fate::Keep => self.is_kept = true,
                Fate::Skim => self.skim = Some(Skim::new(self.sequence)),
            }
        }
        if self.skim.is_some() {
            return Ok(self.skimmed()?.map(Taken::Skimmed));
        }
        let packets = self.whole()?;
        self.is_kept &= packets.is_none();
        Ok(packets.map(Taken::Packets))
    }

    fn begins_large(&self) -> bool {
        let Some(&[a, b, c, sequence]) = self.buffer.first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        sequence == self.sequence && u32::from_le_bytes([a, b, c, 0]) as usize >= LARGE_BYTES
    }

    /// Passes over what has come; the packet, where that was its end.
    fn skimmed(&mut self) -> Result<Option<Skimmed>, PacketError> {
        let Some(skim) = &mut self.skim else { return Ok(None) };
        let (taken, is_whole) = skim.take(&self.buffer)?;
        self.buffer.drain(..taken);
        self.wanted_bytes = 0;
        if !is_whole {
            return Ok(None);
        }
        self.sequence = skim.next_sequence();
        Ok(self.skim.take().map(Skim::finish))
    }

    fn whole(&mut self) -> Result<Option<Packets>, PacketError> {
        let (mut end, mut sequence, mut joined) = (0, self.sequence, false);
        while !joined {
            let rest = self.buffer.get(end..).unwrap_or_default();
            let found = match packet(rest, sequence, self.payload_bytes_max) {
                Ok(Framed::Whole(found)) => found,
                Ok(Framed::Part { wire_bytes }) => {
                    self.wanted_bytes = wire_bytes;
                    break;
                }
                Err(_) if end > 0 => break,
                Err(error) => return Err(error),
            };
            if !found.is_one_chunk() {
                if end > 0 {
                    break;
                }
                joined = true;
            }
            end += found.wire_bytes;
            sequence = found.next_sequence;
        }
        if end == 0 {
            return Ok(None);
        }
        self.sequence = sequence;
        let mut packets = self.cut(end);
        if joined {
            join(&mut packets);
        }
        Ok(Some(Packets { bytes: self.budget.hold(packets), joined }))
    }

    /// The first `end` bytes, out of the buffer.
    fn cut(&mut self, end: usize) -> Vec<u8> {
        if end >= self.buffer.capacity() / 2 {
            let mut next = Vec::with_capacity(READ_BYTES);
            next.extend_from_slice(self.buffer.get(end..).unwrap_or_default());
            let mut packets = std::mem::replace(&mut self.buffer, next);
            packets.truncate(end);
            packets
        } else {
            let packets = self.buffer.get(..end).unwrap_or_default().to_vec();
            self.buffer.drain(..end);
            packets
        }
    }
}

/// Payloads of whole packets: slices of one buffer.
#[derive(Debug)]
pub struct Packets {
    bytes: Bytes,
    /// Whether it is one payload without a header.
    joined: bool,
}

impl Iterator for Packets {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.joined {
            self.joined = false;
            return Some(std::mem::take(&mut self.bytes));
        }
        let (&[a, b, c, _], body) = self.bytes.split_first_chunk::<HEADER_BYTES>()?;
        // Whole by the making of it.
        let length = (u32::from_le_bytes([a, b, c, 0]) as usize).min(body.len());
        self.bytes.advance(HEADER_BYTES);
        Some(self.bytes.split_to(length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::mysql::wire::{CHUNK_BYTES_MAX, put_packet};

    fn put(payload: &[u8], sequence: &mut u8, out: &mut Vec<u8>) {
        let mut chunks = payload.chunks_exact(CHUNK_BYTES_MAX);
        for chunk in &mut chunks {
            out.extend_from_slice(&[0xff, 0xff, 0xff, *sequence]);
            out.extend_from_slice(chunk);
            *sequence = sequence.wrapping_add(1);
        }
        put_packet(*sequence, chunks.remainder(), out);
        *sequence = sequence.wrapping_add(1);
    }

    /// What has come, with nothing passed over.
    fn kept(intake: &mut Intake) -> Result<Option<Packets>, PacketError> {
        Ok(intake.take(&mut |_| Fate::Keep)?.map(|taken| match taken {
            Taken::Packets(packets) => packets,
            Taken::Skimmed(_) => panic!("nobody asked for that"),
        }))
    }

    fn drain(intake: &mut Intake, out: &mut Vec<Bytes>) -> Result<(), PacketError> {
        while let Some(packets) = kept(intake)? {
            out.extend(packets);
        }
        Ok(())
    }

    #[test]
    fn a_large_packet_that_nobody_needs_is_passed_over_and_never_held() {
        for length in [LARGE_BYTES, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, 40 << 20] {
            // given a large event with its checksum, between two small packets
            let mut event: Vec<u8> = (0..length - 5).map(|at| at.to_le_bytes()[1]).collect();
            let computed = crc32fast::hash(&event);
            event.extend(computed.to_le_bytes());
            let payload = [&[0][..], &event].concat();
            let (mut sequence, mut whole) = (1, Vec::new());
            for payload in [&b"before"[..], &payload, b"after"] {
                put(payload, &mut sequence, &mut whole);
            }
            let budget = Budget::new(1);
            // whose bound is far below it
            let mut intake = Intake::new(Vec::new(), budget.clone(), 1 << 10);
            let (mut seen, mut small, mut room) = (Vec::new(), Vec::new(), 0);
            let mut rest = &whole[..];
            while !rest.is_empty() {
                let space = intake.space();
                let (now, later) = rest.split_at((space.capacity() - space.len()).min(rest.len()));
                space.extend_from_slice(now);
                room = room.max(space.capacity());
                rest = later;
                let mut judge = |head: &[u8]| {
                    assert_eq!(head, &payload[..=HEAD_BYTES]);
                    Fate::Skim
                };
                while let Some(taken) = intake.take(&mut judge).unwrap() {
                    match taken {
                        Taken::Packets(packets) => small.extend(packets),
                        Taken::Skimmed(skimmed) => seen.push(skimmed),
                    }
                }
            }
            // then the small ones came out, and of the large one its head and its checksum
            assert_eq!(small, [&b"before"[..], b"after"]);
            let head = Bytes::copy_from_slice(&event[..HEAD_BYTES]);
            let length = event.len() as u64;
            assert_eq!(seen, [Skimmed { head, length, stated: computed, computed }]);
            assert!(room <= 2 * READ_BYTES && budget.held_bytes() < READ_BYTES, "{room}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_reads_the_same_packets_come_out(
            lengths in prop::collection::vec(prop_oneof![0usize..300, 60_000usize..200_000], 1..300),
            reads in prop::collection::vec(1usize..70_000, 1..200),
        ) {
            let payloads: Vec<Vec<u8>> =
                lengths.iter().zip((0u8..=250).cycle()).map(|(l, f)| vec![f; *l]).collect();
            let (mut sequence, mut whole) = (1, Vec::new());
            for payload in &payloads {
                put(payload, &mut sequence, &mut whole);
            }
            let mut intake = Intake::new(Vec::new(), Budget::new(1), 1 << 20);
            let (mut rest, mut out) = (&whole[..], Vec::new());
            for read in reads.iter().cycle() {
                let (now, later) = rest.split_at((*read).min(rest.len()));
                rest = later;
                intake.space().extend_from_slice(now);
                drain(&mut intake, &mut out).unwrap();
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(out == payloads);
        }
    }

    #[test]
    fn a_packet_of_several_chunks_comes_joined_between_its_neighbours() {
        let budget = Budget::new(1);
        let large: Vec<u8> =
            (0..20 << 20).map(|index: u32| index.to_le_bytes()[1] & 0x7f).collect();
        let (mut sequence, mut whole) = (1, Vec::new());
        for payload in [&b"before"[..], &large, b"after", &[1; CHUNK_BYTES_MAX], b""] {
            put(payload, &mut sequence, &mut whole);
        }
        let mut intake = Intake::new(Vec::new(), budget.clone(), 64 << 20);
        let mut out = Vec::new();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            // As a socket's read: at most what there is room for.
            let space = intake.space();
            let (now, later) = rest.split_at((space.capacity() - space.len()).min(rest.len()));
            space.extend_from_slice(now);
            rest = later;
            drain(&mut intake, &mut out).unwrap();
        }
        let lengths: Vec<usize> = out.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [6, large.len(), 5, CHUNK_BYTES_MAX, 0]);
        assert!(out[1] == large);
        // What is held is hardly more than what is there.
        let room = budget.held_bytes() - lengths.iter().sum::<usize>();
        assert!(room < 1 << 20, "{room}");
        drop(out);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn a_small_read_pins_no_more_than_itself() {
        let budget = Budget::new(1);
        let mut intake = Intake::new(Vec::new(), budget.clone(), 1 << 20);
        put(&[1; 300], &mut 1, intake.space());
        intake.space().reserve(READ_BYTES);
        let packets = kept(&mut intake).unwrap().unwrap();
        assert_eq!(budget.held_bytes(), 304);
        drop(packets);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn what_is_whole_comes_out_before_the_error_behind_it() {
        let mut intake = Intake::new(Vec::new(), Budget::new(1), 500);
        put(&[1; 500], &mut 1, intake.space());
        intake.space().extend_from_slice(&[0xf5, 1, 0, 2]);
        assert_eq!(kept(&mut intake).unwrap().unwrap().count(), 1);
        let error = kept(&mut intake).unwrap_err();
        assert_eq!(error, PacketError::TooLarge { bytes: 501, bytes_max: 500 });
    }
}
