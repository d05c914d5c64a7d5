//! Documents that the server made are compared in `layout/tests.rs`; here are those that it
//! would not make.

use super::*;

fn printed(document: &[u8]) -> Result<String, JsonbError> {
    let mut out = BytesMut::new();
    print(document, &mut out)?;
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

/// `{"a": 1, "b": [1, 2], "c": "x"}`, as MySQL stores it.
const DOCUMENT: &[u8] = b"\x00\x03\x00\x29\x00\x19\x00\x01\x00\x1A\x00\x01\x00\x1B\x00\x01\x00\
    \x05\x01\x00\x02\x1C\x00\x0C\x27\x00abc\
    \x02\x00\x0A\x00\x05\x01\x00\x05\x02\x00\x00\x01x";

#[test]
fn a_document_prints_as_select_prints_it() {
    assert_eq!(printed(DOCUMENT).unwrap(), r#"{"a": 1, "b": [1, 2], "c": "x"}"#);
    assert_eq!(printed(b"").unwrap(), "null", "a NOT NULL column without a value");
}

#[test]
fn every_prefix_fails_cleanly() {
    for end in 1..DOCUMENT.len() {
        assert!(printed(&DOCUMENT[..end]).is_err(), "{end}");
    }
}

#[test]
fn strings_are_escaped_as_the_server_escapes_them() {
    let text = b"\x00\x08\x09\x0A\x0B\x0C\x0D\x1F \"/\\\x7F\xC3\xBC";
    let mut document = vec![STRING, u8::try_from(text.len()).unwrap()];
    document.extend(text);
    assert_eq!(
        printed(&document).unwrap(),
        "\"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f \\\"/\\\\\u{7F}ü\""
    );
}

#[test]
fn a_special_character_is_found_wherever_it_stands() {
    for special in [0, 0x1F, b'"', b'\\'] {
        for length in 1..40 {
            for place in 0..length {
                for filler in [b' ', b'!', b'#', b'[', b']', 0x7F, 0x80, 0xFF] {
                    let mut text = vec![filler; length];
                    text[place] = special;
                    assert_eq!(plain_length(&text), place);
                    text[place] = filler;
                    assert_eq!(plain_length(&text), length);
                }
            }
        }
    }
}

#[test]
fn values_that_share_bytes_are_refused_before_they_multiply() {
    // Each array holds the next one twice: 2^50 values of 500 bytes.
    let mut document = vec![LITERAL, 0];
    for _ in 0..50 {
        let size = u16::try_from(10 + document.len() - 1).unwrap();
        let mut outer = vec![SMALL_ARRAY, 2, 0];
        outer.extend(size.to_le_bytes());
        for _ in 0..2 {
            outer.push(if document[0] == LITERAL { SMALL_ARRAY } else { document[0] });
            outer.extend(10_u16.to_le_bytes());
        }
        outer.extend(if document[0] == LITERAL { &b"\0\0\x04\0"[..] } else { &document[1..] });
        let size = u16::try_from(outer.len() - 1).unwrap().to_le_bytes();
        outer[3..5].copy_from_slice(&size);
        document = outer;
    }
    assert_eq!(printed(&document), Err(JsonbError::Overlap));
}

/// Arrays in each other, `depth` of them.
fn nested(depth: usize) -> Vec<u8> {
    let mut document = b"\x02\x00\x00\x04\x00".to_vec();
    for _ in 1..depth {
        let mut outer = vec![SMALL_ARRAY, 1, 0, 0, 0, SMALL_ARRAY, 7, 0];
        outer.extend(&document[1..]);
        let size = u16::try_from(outer.len() - 1).unwrap().to_le_bytes();
        outer[3..5].copy_from_slice(&size);
        document = outer;
    }
    document
}

#[test]
fn depth_is_bounded_where_the_server_bounds_it() {
    let text = printed(&nested(DEPTH_MAX)).unwrap();
    assert_eq!(text, "[".repeat(DEPTH_MAX) + &"]".repeat(DEPTH_MAX));
    assert_eq!(printed(&nested(DEPTH_MAX + 1)), Err(JsonbError::TooDeep));
}

#[test]
fn a_container_that_points_to_itself_is_refused() {
    for offset in 0..4 {
        let document = [SMALL_ARRAY, 1, 0, 7, 0, SMALL_ARRAY, offset, 0];
        assert!(printed(&document).is_err(), "{offset}");
    }
    // Into its own entries, which then are a header.
    for offset in 4..8 {
        let document = [SMALL_ARRAY, 1, 0, 7, 0, SMALL_ARRAY, offset, 0];
        assert!(printed(&document).is_err(), "{offset}");
    }
}

#[test]
fn what_points_outside_or_is_unknown_is_refused() {
    for document in [
        &[0x0D, 0][..],                                 // a tag that does not exist
        &[LITERAL, 3],                                  // a literal that does not exist
        &[LITERAL],                                     // nothing behind
        &[INT64, 0, 0, 0, 0],                           // cut short
        &[STRING, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F],        // 4 GiB
        &[STRING, 0x80, 0x80, 0x80, 0x80, 0x80, 0],     // a length of six bytes
        &[SMALL_OBJECT, 1, 0, 255, 0],                  // longer than there is
        &[SMALL_OBJECT, 255, 255, 4, 0],                // more members than bytes
        &[LARGE_ARRAY, 255, 255, 255, 255, 8, 0, 0, 0], // 2^32 members
        &[OPAQUE, 246, 1, 0],                           // a decimal without its scale
        &[OPAQUE, 246, 3, 70, 0, 0x80],                 // more digits than there can be
        &[OPAQUE, 10, 2, 0, 0],                         // a date of two bytes
        &[OPAQUE],
    ] {
        assert!(printed(document).is_err(), "{document:?}");
    }
    let mut infinite = vec![DOUBLE];
    infinite.extend(f64::INFINITY.to_le_bytes());
    assert_eq!(printed(&infinite), Err(JsonbError::Float(FloatError)));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_print_much_more_than_there_is(
        document in proptest::collection::vec(0_u8..16, 0..200),
    ) {
        let mut out = BytesMut::new();
        let printed = print(&document, &mut out);
        assert!(printed.is_err() || !out.is_empty());
        // An opaque decimal of 3 bytes prints most: up to 65 digits it has no bytes for, never.
        assert!(out.len() <= 16 * document.len() + 16, "{}", out.len());
    }

    #[test]
    fn changed_bytes_of_a_document_never_panic(place in 0_usize..42, byte: u8) {
        let mut document = DOCUMENT.to_vec();
        if let Some(there) = document.get_mut(place) {
            *there = byte;
        }
        let mut out = BytesMut::new();
        assert!(print(&document, &mut out).is_err() || !out.is_empty());
    }
}
