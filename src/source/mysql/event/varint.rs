//! Integers of `mysql::serialization`, in which MySQL writes tagged GTIDs
//! (`libs/mysql/serialization/variable_length_integers.h`).
//!
//! ```text
//! first byte: as many trailing ones as bytes follow, a zero, then the lowest bits of the value
//! 0xFF: eight bytes follow, which are the value
//! ```

use crate::source::mysql::cursor::{Cursor, MalformedError};

/// An unsigned integer.
pub(super) fn varint(cursor: &mut Cursor<'_>) -> Result<u64, MalformedError> {
    let first = cursor.u8()?;
    let follow = first.trailing_ones() as usize;
    let high = uint(cursor, follow)?;
    // Of the first byte, `follow` ones and a zero are no part of the value.
    match 7_usize.checked_sub(follow) {
        Some(bits) => Ok((high << bits) | (u64::from(first) >> (follow + 1))),
        None => Ok(high),
    }
}

/// A signed integer that is not negative: twice the value.
pub(super) fn positive(cursor: &mut Cursor<'_>) -> Result<u64, MalformedError> {
    let doubled = varint(cursor)?;
    if doubled & 1 == 0 { Ok(doubled >> 1) } else { Err(cursor.malformed()) }
}

/// A fixed integer of `count` bytes, at most eight, lowest first.
pub(super) fn uint(cursor: &mut Cursor<'_>, count: usize) -> Result<u64, MalformedError> {
    let bytes = cursor.take(count)?;
    let mut wide = [0; 8];
    let Some(narrow) = wide.get_mut(..count) else { return Err(cursor.malformed()) };
    narrow.copy_from_slice(bytes);
    Ok(u64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_all_widths_are_read() {
        let cases: [(&[u8], u64); 7] = [
            (&[0], 0),
            (&[127 << 1], 127),
            (&[0b01, 0b10], 128),
            (&[0b1111_1101, 0xFF], 16_383),
            (&[0b0111_1111, 1, 0, 0, 0, 0, 0, 0x80], (0x80 << 48) | 1),
            (&[0xFF, 0, 0, 0, 0, 0, 0, 0, 0x80], 1 << 63),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], u64::MAX),
        ];
        for (bytes, value) in cases {
            let mut cursor = Cursor::new(bytes, "integer");
            assert_eq!(varint(&mut cursor), Ok(value), "{bytes:?}");
            assert!(cursor.is_empty());
            for end in 0..bytes.len() {
                assert!(varint(&mut Cursor::new(&bytes[..end], "integer")).is_err());
            }
        }
        assert_eq!(positive(&mut Cursor::new(&[4 << 1], "integer")), Ok(2));
        assert!(positive(&mut Cursor::new(&[5 << 1], "integer")).is_err());
        assert_eq!(uint(&mut Cursor::new(&[1, 2, 3], "integer"), 2), Ok(0x0201));
        assert!(uint(&mut Cursor::new(&[0; 9], "integer"), 9).is_err());
    }
}
