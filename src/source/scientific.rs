//! A float in Rust's scientific form, `-1.25e-7`, and its digits without an exponent.
//!
//! Rust prints as few digits as read back; where a server would have others, and when it writes an
//! exponent, is told beside each source. Pure.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::fmt::Write;

use bytes::{BufMut, BytesMut};

/// On the stack: 17 digits, sign, point, and an exponent of up to five characters; more for the
/// decimals of a search that goes past them.
#[derive(Clone, Copy)]
pub(super) struct Scientific {
    bytes: [u8; 48],
    length: usize,
}

impl Scientific {
    /// What `{float:e}` prints of a finite float, or `{float:.5e}`.
    pub(super) fn of(float: std::fmt::Arguments<'_>) -> Self {
        let mut text = Self { bytes: [0; 48], length: 0 };
        text.write_fmt(float).expect("the buffer holds the longest float");
        text
    }

    pub(super) fn as_str(&self) -> &str {
        let written = self.bytes.get(..self.length).and_then(|text| str::from_utf8(text).ok());
        written.expect("only whole strings were written")
    }

    /// Sign, mantissa and decimal exponent.
    pub(super) fn parts(&self) -> (bool, &str, i32) {
        let text = self.as_str();
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once('e').expect("{:e} prints an exponent");
        (negative, mantissa, exponent.parse().expect("an exponent is a small integer"))
    }

    /// The digits of the mantissa before its point and behind it.
    pub(super) fn digits(mantissa: &str) -> (&str, &str) {
        mantissa.split_once('.').unwrap_or((mantissa, ""))
    }

    /// Makes the last digit of the mantissa one less; it must not be 0.
    #[cfg(feature = "mysql")]
    pub(super) fn lower_last_digit(&mut self) {
        let (negative, mantissa, _) = self.parts();
        let last = mantissa.len() - 1 + usize::from(negative);
        if let Some(byte) = self.bytes.get_mut(last) {
            *byte -= 1;
        }
    }

    /// Prints it without an exponent, all digits, however many zeros that takes.
    pub(super) fn print_fixed(&self, out: &mut BytesMut) {
        let (negative, mantissa, exponent) = self.parts();
        let (first, decimals) = Self::digits(mantissa);
        if negative {
            out.put_u8(b'-');
        }
        if let Ok(shift) = usize::try_from(exponent) {
            out.put_slice(first.as_bytes());
            let (whole, fraction) = decimals.split_at_checked(shift).unwrap_or((decimals, ""));
            out.put_slice(whole.as_bytes());
            out.put_bytes(b'0', shift - whole.len());
            if !fraction.is_empty() {
                out.put_u8(b'.');
                out.put_slice(fraction.as_bytes());
            }
        } else {
            out.put_slice(b"0.");
            out.put_bytes(b'0', (exponent.unsigned_abs() as usize).saturating_sub(1));
            out.put_slice(first.as_bytes());
            out.put_slice(decimals.as_bytes());
        }
    }
}

impl Write for Scientific {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.length + text.len();
        let Some(room) = self.bytes.get_mut(self.length..end) else { return Err(std::fmt::Error) };
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_around_the_point_where_the_exponent_says() {
        for (float, text) in [
            (0.0, "0"),
            (-1.25, "-1.25"),
            (120.0, "120"),
            (1.25e3, "1250"),
            (-1.25e-3, "-0.00125"),
            (1e20, "100000000000000000000"),
        ] {
            let mut out = BytesMut::new();
            Scientific::of(format_args!("{float:e}")).print_fixed(&mut out);
            assert_eq!(out, text.as_bytes());
        }
    }
}
