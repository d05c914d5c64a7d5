use super::*;

const BOUNDS: PayloadBounds =
    PayloadBounds { payload_bytes_max: 10_000_000, event_bytes_max: 1_000_000 };

/// Events of these lengths, with bytes in which zstd finds something.
fn events(lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, length) in lengths.iter().enumerate() {
        let start = bytes.len();
        bytes.extend([0; 9]);
        bytes.extend(u32::try_from(*length).unwrap().to_le_bytes());
        while bytes.len() < start + length {
            bytes.push(u8::try_from((bytes.len() / 3 + index) % 251).unwrap());
        }
    }
    bytes
}

fn body(compression: u8, stated: Option<usize>, payload: &[u8]) -> Bytes {
    let packed = |length: usize| {
        let [a, b, c, ..] = length.to_le_bytes();
        [0xFD, a, b, c]
    };
    let mut body = vec![2, if compression < 251 { 1 } else { 3 }];
    body.extend(if compression < 251 { vec![compression] } else { vec![0xFC, compression, 0] });
    if let Some(stated) = stated {
        body.extend([3, 4]);
        body.extend(packed(stated));
    }
    // a field that came later
    body.extend([77, 2, 9, 9]);
    body.extend([1, 4]);
    body.extend(packed(payload.len()));
    body.push(0);
    body.extend(payload);
    body.into()
}

fn zstd_body(inflated: &[u8]) -> Bytes {
    body(0, Some(inflated.len()), &zstd::encode_all(inflated, 3).unwrap())
}

/// All pieces, or the first error.
fn read(reader: &mut PayloadReader, body: &Bytes) -> Result<Vec<Bytes>, EventError> {
    let budget = Budget::new(usize::MAX);
    reader.begin(body)?;
    let mut pieces = Vec::new();
    while let Some(piece) = reader.next(&budget)? {
        let Piece::Events(piece) = piece else {
            reader.judged(false);
            continue;
        };
        assert!(!piece.is_empty(), "a piece is at least one event");
        assert!(reader.is_open());
        pieces.push(piece);
    }
    assert!(!reader.is_open());
    Ok(pieces)
}

#[test]
fn pieces_are_whole_events_and_together_all_of_them() {
    let mut reader = PayloadReader::new(BOUNDS);
    for lengths in [
        &[19][..],
        &[19, 30, 500],
        &[100; 5000],
        &[65_536, 19, 65_535, 65_537],
        &[19, 1_000_000, 19, 300_000],
    ] {
        let inflated = events(lengths);
        for body in [zstd_body(&inflated), body(255, None, &inflated)] {
            let pieces = read(&mut reader, &body).unwrap();
            assert_eq!(pieces.concat(), inflated);
            for piece in &pieces {
                assert_eq!(whole_events(piece).unwrap().0, piece.len());
                assert!(piece.len() <= PIECE_LENGTH * 2 || piece.len() <= 1_000_000 + PIECE_LENGTH);
            }
        }
    }
}

#[test]
fn a_small_payload_pins_no_large_buffer_and_memory_is_that_of_a_piece() {
    let mut reader = PayloadReader::new(BOUNDS);
    let budget = Budget::new(usize::MAX);
    reader.begin(&zstd_body(&events(&[100, 200]))).unwrap();
    let piece = reader.next(&budget).unwrap().unwrap();
    assert!(budget.held_bytes() <= 301, "{}", budget.held_bytes());
    drop(piece);
    assert_eq!(budget.held_bytes(), 0);
    reader.begin(&zstd_body(&events(&[100; 50_000]))).unwrap();
    while reader.next(&budget).unwrap().is_some() {
        assert_eq!(budget.held_bytes(), 0, "a piece that was dropped is not held");
    }
}

#[test]
fn several_frames_are_one_stream() {
    let inflated = events(&[100, 70_000, 19]);
    let (first, second) = inflated.split_at(50_000);
    let frames = [zstd::encode_all(first, 1).unwrap(), zstd::encode_all(second, 1).unwrap()];
    let body = body(0, Some(inflated.len()), &frames.concat());
    assert_eq!(read(&mut PayloadReader::new(BOUNDS), &body).unwrap().concat(), inflated);
}

#[test]
fn what_does_not_come_out_as_stated_is_an_error() {
    let inflated = events(&[100, 200]);
    let compressed = zstd::encode_all(&inflated[..], 3).unwrap();
    let mut reader = PayloadReader::new(BOUNDS);
    for body in [
        body(0, Some(299), &compressed),
        body(0, Some(301), &compressed),
        body(0, Some(0), &compressed),
        body(0, None, &compressed),
        body(1, Some(300), &compressed),
        body(0, Some(300), &compressed[..compressed.len() - 1]),
        body(0, Some(300), &[&compressed[..], b"x"].concat()),
        body(0, Some(300), &inflated),
        body(0, Some(300), b""),
        body(255, Some(299), &inflated),
        zstd_body(&inflated[..299]),
        zstd_body(&inflated[..110]),
        zstd_body(&events(&[18, 200])),
        zstd_body(&events(&[0, 200])),
    ] {
        assert!(read(&mut reader, &body).is_err());
        reader.reset();
    }
    // and the reader can be used again
    assert_eq!(read(&mut reader, &zstd_body(&inflated)).unwrap().concat(), inflated);
}

#[test]
fn bounds_are_kept_before_anything_is_allocated() {
    let mut reader = PayloadReader::new(PayloadBounds { payload_bytes_max: 100, ..BOUNDS });
    let error = reader.begin(&zstd_body(&events(&[5000; 50]))).unwrap_err();
    assert!(matches!(error, EventError::TooLarge { length_max: 100, .. }));
    let mut reader = PayloadReader::new(PayloadBounds { event_bytes_max: 199, ..BOUNDS });
    let mut bomb = events(&[100, 200_000]);
    bomb[100 + 9..100 + 13].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = read(&mut reader, &zstd_body(&bomb)).unwrap_err();
    assert!(matches!(error, EventError::TooLarge { length_max: 199, .. }), "{error}");
}

#[test]
fn a_large_event_that_nobody_needs_is_inflated_and_not_held() {
    let lengths = [19, 3 << 20, 40, 2 << 20];
    let inflated = events(&lengths);
    for body in [zstd_body(&inflated), body(255, None, &inflated)] {
        // given a bound far below those events
        let mut reader = PayloadReader::new(PayloadBounds { event_bytes_max: 1 << 16, ..BOUNDS });
        let budget = Budget::new(usize::MAX);
        reader.begin(&body).unwrap();
        let (mut small, mut seen) = (Vec::new(), Vec::new());
        // when both are passed over
        while let Some(piece) = reader.next(&budget).unwrap() {
            match piece {
                Piece::Events(events) => small.extend_from_slice(&events),
                Piece::Large(_) => reader.judged(true),
                Piece::Skimmed(head) => seen.push(head),
            }
            assert!(budget.held_bytes() <= 2 * PIECE_LENGTH);
            let open = reader.open.as_ref().unwrap();
            assert!(open.carried.capacity() <= 4 * PIECE_LENGTH, "{}", open.carried.capacity());
        }
        // then the others come out, and the beginnings of those two
        assert_eq!(small, [&inflated[..19], &inflated[19 + (3 << 20)..][..40]].concat());
        let begin = [19, 19 + (3 << 20) + 40].map(|at| &inflated[at..at + HEAD_BYTES]);
        assert_eq!(seen, begin);
    }
}

#[test]
fn every_prefix_fails_cleanly() {
    let whole = zstd_body(&events(&[100, 3000, 19]));
    let mut reader = PayloadReader::new(BOUNDS);
    for length in 0..whole.len() {
        assert!(read(&mut reader, &whole.slice(..length)).is_err(), "{length}");
        reader.reset();
    }
}

#[test]
fn changed_bytes_never_panic_or_hang() {
    let whole = zstd_body(&events(&[100, 3000, 70_000, 19]));
    let mut reader = PayloadReader::new(BOUNDS);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..3000 {
        let mut bytes = whole.to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        if let Ok(pieces) = read(&mut reader, &bytes.into()) {
            assert_eq!(pieces.concat().len(), 73_119);
        }
        reader.reset();
    }
}
