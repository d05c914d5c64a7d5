//! DECIMAL in its stored form to the text that the server prints, exactly.
//!
//! ```text
//! whole digits: groups of 9 in 4 bytes, big-endian, a shorter group first
//! decimals:     groups of 9 in 4 bytes, big-endian, a shorter group last
//! ```
//!
//! The first bit is inverted, and all others too for a negative number, so that the bytes sort
//! as the numbers do (`decimal2bin` in `strings/decimal.cc`). Also what JSON keeps a decimal in.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

const GROUP_DIGITS: u8 = 9;
/// A column has at most 65 digits, but a decimal in JSON keeps those that its computation had,
/// in whole groups: as many as the servers' `decimal_t` holds (`DECIMAL_BUFF_LENGTH`).
const DIGITS_MAX: u8 = 9 * GROUP_DIGITS;

/// Bytes, or a precision and scale, that are no decimal's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed decimal value")]
pub struct DecimalError;

/// How many digits a column has, and where its point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    whole_digits: u8,
    scale: u8,
}

impl Shape {
    pub(crate) fn new(precision: u8, scale: u8) -> Result<Self, DecimalError> {
        if precision > DIGITS_MAX {
            return Err(DecimalError);
        }
        let whole_digits = precision.checked_sub(scale).ok_or(DecimalError)?;
        Ok(Self { whole_digits, scale })
    }

    /// Length of the stored form.
    pub(crate) fn bytes(self) -> usize {
        let part = |digits: u8| {
            usize::from(digits / GROUP_DIGITS) * 4 + group_bytes(digits % GROUP_DIGITS)
        };
        part(self.whole_digits) + part(self.scale)
    }

    /// Prints `-12345.6700`.
    pub(crate) fn print(self, bytes: &[u8], out: &mut BytesMut) -> Result<(), DecimalError> {
        let first = bytes.first().ok_or(DecimalError)?;
        if bytes.len() != self.bytes() {
            return Err(DecimalError);
        }
        let negative = first & 0x80 == 0;
        let mut groups = Groups { rest: bytes, is_first: true, negative };
        if negative {
            out.put_u8(b'-');
        }
        let before = out.len();
        let mut digits = self.whole_digits % GROUP_DIGITS;
        let mut left = self.whole_digits;
        while left > 0 {
            if digits > 0 {
                let group = groups.next(digits)?;
                if out.len() > before {
                    padded(group, digits, out);
                } else if group > 0 {
                    out.put_slice(itoa::Buffer::new().format(group).as_bytes());
                }
            }
            left -= digits;
            digits = GROUP_DIGITS;
        }
        if out.len() == before {
            out.put_u8(b'0');
        }
        if self.scale > 0 {
            out.put_u8(b'.');
        }
        let mut left = self.scale;
        while left > 0 {
            let digits = left.min(GROUP_DIGITS);
            padded(groups.next(digits)?, digits, out);
            left -= digits;
        }
        Ok(())
    }
}

fn group_bytes(digits: u8) -> usize {
    usize::from(digits.div_ceil(2)).min(4)
}

struct Groups<'a> {
    rest: &'a [u8],
    is_first: bool,
    negative: bool,
}

impl Groups<'_> {
    fn next(&mut self, digits: u8) -> Result<u32, DecimalError> {
        let (bytes, rest) = self.rest.split_at_checked(group_bytes(digits)).ok_or(DecimalError)?;
        let mut group = 0_u32;
        for byte in bytes {
            let mut byte = if self.negative { !byte } else { *byte };
            if self.is_first {
                byte ^= 0x80;
                self.is_first = false;
            }
            group = group << 8 | u32::from(byte);
        }
        self.rest = rest;
        if group < 10_u32.pow(u32::from(digits)) { Ok(group) } else { Err(DecimalError) }
    }
}

fn padded(group: u32, digits: u8, out: &mut BytesMut) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(group).as_bytes();
    out.put_bytes(b'0', usize::from(digits).saturating_sub(text.len()));
    out.put_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(precision: u8, scale: u8, bytes: &[u8]) -> Result<String, DecimalError> {
        let mut out = BytesMut::new();
        Shape::new(precision, scale)?.print(bytes, &mut out)?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    /// The server's own example (`decimal2bin`): 1234567890.1234 as DECIMAL(14, 4).
    const EXAMPLE: [u8; 7] = [0x81, 0x0D, 0xFB, 0x38, 0xD2, 0x04, 0xD2];

    #[test]
    fn decimals_print_all_their_digits() {
        assert_eq!(printed(14, 4, &EXAMPLE).unwrap(), "1234567890.1234");
        let negative: Vec<u8> = EXAMPLE.iter().map(|byte| !byte).collect();
        assert_eq!(printed(14, 4, &negative).unwrap(), "-1234567890.1234");
        assert_eq!(printed(5, 2, &[0x80, 0, 5]).unwrap(), "0.05");
        assert_eq!(printed(2, 2, &[0x80 | 7]).unwrap(), "0.07");
        assert_eq!(printed(1, 0, &[0x80]).unwrap(), "0");
        assert_eq!(printed(10, 0, &[0x80, 0, 0, 0, 42]).unwrap(), "42");
        assert_eq!(printed(18, 0, &[0x80, 0, 0, 1, 0, 0, 0, 2]).unwrap(), "1000000002");
        assert_eq!(printed(72, 0, &[&[0x80][..], &[0; 31]].concat()).unwrap(), "0");
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        for end in 0..EXAMPLE.len() {
            assert_eq!(printed(14, 4, &EXAMPLE[..end]), Err(DecimalError));
        }
        assert_eq!(printed(1, 0, &[0x80 | 10]), Err(DecimalError), "one digit is at most 9");
        assert_eq!(printed(9, 0, &[0xFF; 4]), Err(DecimalError));
        assert_eq!(printed(0, 0, &[]), Err(DecimalError));
        assert_eq!(Shape::new(82, 0), Err(DecimalError));
        assert_eq!(Shape::new(2, 3), Err(DecimalError));
    }
}
