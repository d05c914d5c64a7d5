use std::hint::black_box;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::failure::FailureKind;

fn wire(payload: &[u8], mut sequence: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let mut chunks = payload.chunks_exact(CHUNK_BYTES_MAX);
    for chunk in &mut chunks {
        out.extend_from_slice(&[0xff, 0xff, 0xff, sequence]);
        out.extend_from_slice(chunk);
        sequence = sequence.wrapping_add(1);
    }
    put_packet(sequence, chunks.remainder(), &mut out);
    out
}

fn whole(framed: Result<Framed, PacketError>) -> Packet {
    let Ok(Framed::Whole(packet)) = framed else { panic!("{framed:?}") };
    packet
}

#[test]
fn packets_of_every_size_come_out_as_they_went_in() {
    for bytes in [0, 1, CHUNK_BYTES_MAX - 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1, 40 << 20] {
        let payload: Vec<u8> = (0..bytes).map(|index| index.to_le_bytes()[0] & 0x7f).collect();
        let mut whole = wire(&payload, 254);
        let found = self::whole(packet(&whole, 254, 64 << 20));
        assert_eq!((found.wire_bytes, found.payload_bytes), (whole.len(), bytes));
        assert_eq!(found.is_one_chunk(), bytes < CHUNK_BYTES_MAX);
        let chunks = u8::try_from(bytes / CHUNK_BYTES_MAX + 1).unwrap();
        assert_eq!(found.next_sequence, 254u8.wrapping_add(chunks));
        join(&mut whole);
        assert!(whole == payload, "{bytes} bytes");
    }
}

#[test]
fn a_packet_that_is_cut_anywhere_is_incomplete_and_no_error() {
    let whole = wire(b"some payload", 7);
    for end in 0..whole.len() {
        let wire_bytes = if end < HEADER_BYTES { HEADER_BYTES } else { whole.len() };
        assert_eq!(packet(&whole[..end], 7, 100), Ok(Framed::Part { wire_bytes }), "{end} bytes");
    }
    let large = wire(&vec![1; CHUNK_BYTES_MAX + 5], 0);
    for end in [5, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 4, CHUNK_BYTES_MAX + 7, large.len() - 1] {
        let wire_bytes = match end {
            0..=CHUNK_BYTES_MAX => CHUNK_BYTES_MAX + HEADER_BYTES,
            _ if end < CHUNK_BYTES_MAX + 2 * HEADER_BYTES => CHUNK_BYTES_MAX + 2 * HEADER_BYTES,
            _ => large.len(),
        };
        let part = Ok(Framed::Part { wire_bytes });
        assert_eq!(packet(&large[..end], 0, usize::MAX), part, "{end} bytes");
    }
}

#[test]
fn a_packet_above_the_bound_is_refused_by_its_header() {
    let header = wire(&[1; 101], 0);
    let error = packet(&header[..4], 0, 100).unwrap_err();
    assert_eq!(error, PacketError::TooLarge { bytes: 101, bytes_max: 100 });
    // The sum of the chunks counts, as soon as the header that passes the bound is there.
    let large = wire(&vec![1; CHUNK_BYTES_MAX + 100], 0);
    let seen = &large[..CHUNK_BYTES_MAX + 8];
    assert!(packet(seen, 0, CHUNK_BYTES_MAX + 100).is_ok());
    assert!(packet(seen, 0, CHUNK_BYTES_MAX + 99).is_err());
}

#[test]
fn a_packet_out_of_order_is_refused_unless_it_is_an_error() {
    let error = packet(&wire(b"\0x", 3), 2, 100).unwrap_err();
    assert_eq!(error, PacketError::OutOfOrder { expected: 2, found: 3 });
    assert!(packet(&wire(b"", 3), 2, 100).is_err());
    let farewell = whole(packet(&wire(b"\xff\x1d\x04#08S01bye", 0), 2, 100));
    assert_eq!(farewell.next_sequence, 1);
}

#[test]
fn an_error_is_read_with_and_without_its_state_and_cut_anywhere() {
    let whole = b"\xff\x15\x04#28000Access denied";
    let error = ServerError::parse(whole);
    assert_eq!((error.code, error.state.as_str()), (1045, "28000"));
    assert_eq!(error.to_string(), "Access denied (error 1045, SQLSTATE 28000)");
    let early = ServerError::parse(b"\xff\x10\x04Too many connections");
    assert_eq!(early.to_string(), "Too many connections (error 1040)");
    for end in 0..whole.len() {
        let error = ServerError::parse(&whole[..end]);
        assert!(error.code == 1045 || end < 3, "{error:?}");
    }
    for (code, kind) in [
        (1045, FailureKind::Denied),
        (1698, FailureKind::Denied),
        (1227, FailureKind::Denied),
        (1049, FailureKind::Definite),
        (1236, FailureKind::Definite),
        (1040, FailureKind::Transient),
        (1053, FailureKind::Transient),
        (9999, FailureKind::Transient),
    ] {
        assert_eq!(ServerError { code, ..ServerError::default() }.kind(), kind, "{code}");
    }
}

#[test]
fn rows_hold_nulls_empty_and_long_values_and_nothing_else() {
    let long = "x".repeat(70_000);
    let mut payload = b"\x01a\xfb\x00\xfc\x03\x00def\xfd".to_vec();
    payload.extend_from_slice(&70_000u32.to_le_bytes()[..3]);
    payload.extend_from_slice(long.as_bytes());
    let payload = Bytes::from(payload);
    let row = parse_row(&payload, 5).unwrap();
    let expected = [Some("a"), None, Some(""), Some("def"), Some(long.as_str())];
    assert_eq!(row.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    for columns in [4, 6, usize::MAX] {
        assert_eq!(parse_row(&payload, columns), None);
    }
    for end in 0..payload.len() {
        assert_eq!(parse_row(&payload.slice(..end), 5), None);
    }
    assert_eq!(parse_row(&Bytes::from_static(b"\x01\xc3"), 1), None);
    assert_eq!(parse_row(&Bytes::from_static(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xffx"), 1), None);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        sequence: u8,
        columns in 0usize..10,
    ) {
        black_box(packet(&bytes, sequence, 1000)).ok();
        let mut buffer = bytes.clone();
        join(&mut buffer);
        prop_assert!(buffer.len() <= bytes.len());
        black_box((ServerError::parse(&bytes), OkPacket::parse(&bytes)));
        black_box(parse_row(&Bytes::from(bytes.clone()), columns));
        let mut reader = Reader(&bytes);
        while !reader.text().is_empty() {}
    }
}
