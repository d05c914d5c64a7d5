#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

#[test]
fn every_prefix_of_a_frame_is_incomplete() {
    // given a status update
    let mut bytes = BytesMut::new();
    let status = StandbyStatus {
        written: 3,
        flushed: 2,
        applied: 1,
        clock_micros: -1,
        reply_requested: true,
    };
    put_status_update(&status, &mut bytes);
    // when it is cut anywhere, then it is incomplete; whole, it is one frame
    for length in 0..bytes.len() {
        assert_eq!(frame(&bytes[..length]), Ok(None), "prefix of {length} bytes");
    }
    assert_eq!(frame(&bytes), Ok(Some((b'd', 39))));
    bytes.put_u8(b'X');
    assert_eq!(frame(&bytes), Ok(Some((b'd', 39))), "bytes after it do not matter");
}

#[test]
fn a_status_update_is_laid_out_as_documented() {
    let mut bytes = BytesMut::new();
    let status = StandbyStatus {
        written: 0x0102,
        flushed: 0x0304,
        applied: 0x0506,
        clock_micros: 0x0708,
        reply_requested: false,
    };
    put_status_update(&status, &mut bytes);
    let expected = [
        &b"d\0\0\0\x26r"[..],
        &[0, 0, 0, 0, 0, 0, 1, 2],
        &[0, 0, 0, 0, 0, 0, 3, 4],
        &[0, 0, 0, 0, 0, 0, 5, 6],
        &[0, 0, 0, 0, 0, 0, 7, 8],
        &[0],
    ];
    assert_eq!(bytes, expected.concat());
}

#[test]
fn copy_done_and_terminate_are_bare_headers() {
    let mut bytes = BytesMut::new();
    put_copy_done(&mut bytes);
    put_terminate(&mut bytes);
    assert_eq!(&bytes[..], b"c\0\0\0\x04X\0\0\0\x04");
}

#[test]
fn impossible_lengths_are_refused() {
    for length in 0..4 {
        assert_eq!(
            frame(&[b'd', 0, 0, 0, length]),
            Err(FrameError::TooShort { tag: b'd', length: length.into() })
        );
    }
    assert!(matches!(frame(&[b'd', 0x7f, 0, 0, 0]), Err(FrameError::TooLong { .. })));
    assert!(matches!(frame(&[0xff; 5]), Err(FrameError::TooLong { .. })));
    assert_eq!(frame(&[b'd', 0x3f, 0xff, 0xff, 0xff]), Ok(None));
}

#[test]
fn an_error_response_keeps_its_fields() {
    let body = b"SFEHLER\0VERROR\0C42704\0Mslot missing\0Ddetail\0Hhint\0P17\0Wwhere\0Rfn\0zx\0\0";
    let error = ServerError::parse(body);
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("ERROR", "42704"));
    assert_eq!((error.hint.as_deref(), error.position), (Some("hint"), Some(17)));
    assert_eq!((error.context.as_deref(), error.routine.as_deref()), (Some("where"), Some("fn")));
    assert!(!error.is_fatal());
    let shown = error.to_string();
    assert_eq!(shown, "ERROR: slot missing (SQLSTATE 42704); hint: hint");
    for length in 0..body.len() {
        ServerError::parse(&body[..length]);
    }
}

#[test]
fn every_prefix_of_a_row_is_malformed() {
    let body = Bytes::from_static(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0");
    let row = parse_row(body.clone());
    assert_eq!(row, Some(vec![Some("ab".into()), None, Some(String::new())]));
    for length in 0..body.len() {
        assert_eq!(parse_row(body.slice(..length)), None, "prefix of {length} bytes");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(Some((_, total))) = frame(&bytes) {
            prop_assert!(total <= bytes.len());
        }
        ServerError::parse(&bytes);
        parse_row(Bytes::from(bytes));
    }
}
