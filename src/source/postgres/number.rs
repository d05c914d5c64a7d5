//! numeric and floats in binary form to the text that the server prints.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

use super::pgoutput::Reader;
use crate::source::scientific::Scientific;

/// Bytes that are no numeric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed numeric value")]
pub struct NumericError;

/// Prints a numeric (`numeric_send` in `src/backend/utils/adt/numeric.c`), exactly:
///
/// ```text
/// digits: u16 | weight: i16 | sign: u16 | scale: u16 | digit: u16, in base 10,000 …
/// ```
///
/// The value is the sum of `digit[i] * 10000^(weight - i)`; the scale is the number of decimals
/// to print. At most 131,072 digits before the point and 16,383 after it.
pub(crate) fn print_numeric(bytes: &[u8], out: &mut BytesMut) -> Result<(), NumericError> {
    const SCALE_MAX: u16 = 0x3FFF;
    let mut reader = Reader::new(bytes, "numeric");
    let mut field = || reader.u16().map_err(|_| NumericError);
    let (count, weight, sign, scale) = (field()?, field()?, field()?, field()?);
    let weight = i32::from(weight.cast_signed());
    let (digits, []) = reader.rest().as_chunks::<2>() else { return Err(NumericError) };
    if digits.len() != usize::from(count) || scale > SCALE_MAX {
        return Err(NumericError);
    }
    match sign {
        0x0000 => {}
        0x4000 => out.put_u8(b'-'),
        0xC000 => return special(digits, b"NaN", out),
        0xD000 => return special(digits, b"Infinity", out),
        0xF000 => return special(digits, b"-Infinity", out),
        _ => return Err(NumericError),
    }
    // A position outside of the digits that were sent holds a zero.
    let digit = |position: i32| -> Result<u16, NumericError> {
        let index = usize::try_from(weight - position).ok();
        let digit = index.and_then(|index| digits.get(index)).map(|pair| u16::from_be_bytes(*pair));
        digit.map_or(Ok(0), |digit| if digit < 10_000 { Ok(digit) } else { Err(NumericError) })
    };
    if weight < 0 {
        out.put_u8(b'0');
    }
    for position in (0..=weight).rev() {
        let digit = digit(position)?;
        if position == weight { plain(digit, out) } else { padded(digit, out) }
    }
    if scale > 0 {
        out.put_u8(b'.');
        let end = out.len() + usize::from(scale);
        let mut position = -1;
        while out.len() < end {
            padded(digit(position)?, out);
            position -= 1;
        }
        out.truncate(end);
    }
    Ok(())
}

fn special(digits: &[[u8; 2]], name: &[u8], out: &mut BytesMut) -> Result<(), NumericError> {
    if !digits.is_empty() {
        return Err(NumericError);
    }
    out.put_slice(name);
    Ok(())
}

fn plain(digit: u16, out: &mut BytesMut) {
    out.put_slice(itoa::Buffer::new().format(digit).as_bytes());
}

fn padded(digit: u16, out: &mut BytesMut) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(digit).as_bytes();
    out.put_bytes(b'0', 4_usize.saturating_sub(text.len()));
    out.put_slice(text);
}

/// Prints a real as the server does: as few digits as read back, scientific from 10^6 on.
pub(crate) fn print_float4(float: f32, out: &mut BytesMut) {
    if special_float(f64::from(float), out) {
        return;
    }
    let mut text = Scientific::of(format_args!("{float:e}"));
    let mut decimals = 0;
    while is_midpoint(&text, f32::MANTISSA_DIGITS) || text.as_str().parse() != Ok(float) {
        text = Scientific::of(format_args!("{float:.decimals$e}"));
        decimals += 1;
    }
    print_shortest(&text, 6, out);
}

/// Prints a double as the server does: as few digits as read back, scientific from 10^15 on.
///
/// The server takes no text that lies exactly between two floats (`acceptBounds` in `d2s.c`),
/// though it would read back: 1e23 is printed as 9.999999999999999e+22. Rust takes it, so such
/// a text gives way to the next longer one. 17 digits always read back and are no midpoint's.
pub(crate) fn print_float8(float: f64, out: &mut BytesMut) {
    if special_float(float, out) {
        return;
    }
    let mut text = Scientific::of(format_args!("{float:e}"));
    let mut decimals = 0;
    while is_midpoint(&text, f64::MANTISSA_DIGITS) || text.as_str().parse() != Ok(float) {
        text = Scientific::of(format_args!("{float:.decimals$e}"));
        decimals += 1;
    }
    print_shortest(&text, 15, out);
}

fn special_float(float: f64, out: &mut BytesMut) -> bool {
    if float.is_nan() {
        out.put_slice(b"NaN");
    } else if float.is_infinite() {
        out.put_slice(if float > 0.0 { b"Infinity" } else { b"-Infinity" });
    } else {
        return false;
    }
    true
}

/// Brings Rust's form, `-1.25e-7`, into the server's (`to_chars` in `src/common/d2s.c`): fixed
/// from 10^-4 up to `fixed_end`, else `-1.25e-07`.
fn print_shortest(text: &Scientific, fixed_end: i32, out: &mut BytesMut) {
    let (negative, mantissa, exponent) = text.parts();
    if (-4..fixed_end).contains(&exponent) {
        return text.print_fixed(out);
    }
    if negative {
        out.put_u8(b'-');
    }
    out.put_slice(mantissa.as_bytes());
    out.put_u8(b'e');
    out.put_u8(if exponent < 0 { b'-' } else { b'+' });
    if exponent.unsigned_abs() < 10 {
        out.put_u8(b'0');
    }
    out.put_slice(itoa::Buffer::new().format(exponent.unsigned_abs()).as_bytes());
}

/// Whether this text, which reads back as a float of `bits` bits, lies exactly between it
/// and a neighbour: its binary form is finite and one bit longer.
fn is_midpoint(text: &Scientific, bits: u32) -> bool {
    let (_, mantissa, exponent) = text.parts();
    let (mut digits, mut power) = (0_u128, exponent);
    let (first, decimals) = Scientific::digits(mantissa);
    for digit in first.bytes().chain(decimals.bytes()) {
        digits = digits * 10 + u128::from(digit.saturating_sub(b'0'));
    }
    power -= i32::try_from(decimals.len()).expect("a mantissa is short");
    // digits * 10^power is odd * 2^n; 5^25 has more bits than a midpoint or 17 digits have.
    let fives = 5_u128.pow(power.unsigned_abs().min(25));
    let product = if power >= 0 {
        digits.saturating_mul(fives)
    } else if digits % fives == 0 {
        digits / fives
    } else {
        return false;
    };
    let odd = product.checked_shr(product.trailing_zeros()).unwrap_or(0);
    u128::BITS - odd.leading_zeros() == bits + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Result<String, NumericError> {
        let mut bytes = Vec::new();
        let head = [digits.len() as u16, weight.cast_unsigned(), sign, scale];
        for field in head.iter().chain(digits) {
            bytes.extend(field.to_be_bytes());
        }
        let mut out = BytesMut::new();
        print_numeric(&bytes, &mut out)?;
        Ok(String::from_utf8(out.to_vec()).unwrap())
    }

    #[test]
    fn numerics_print_all_their_digits() {
        assert_eq!(numeric(1, 0x4000, 4, &[1, 2345, 6700]).unwrap(), "-12345.6700");
        assert_eq!(numeric(0, 0, 0, &[]).unwrap(), "0");
        assert_eq!(numeric(0, 0, 2, &[]).unwrap(), "0.00");
        assert_eq!(numeric(-2, 0, 7, &[10]).unwrap(), "0.0000001");
        assert_eq!(numeric(2, 0, 0, &[1]).unwrap(), "100000000");
        assert_eq!(numeric(0, 0xF000, 0, &[]).unwrap(), "-Infinity");
    }

    #[test]
    fn what_is_no_numeric_is_refused() {
        assert_eq!(numeric(0, 0, 0, &[10_000]), Err(NumericError));
        assert_eq!(numeric(0, 1, 0, &[1]), Err(NumericError));
        assert_eq!(numeric(0, 0, 0x4000, &[1]), Err(NumericError));
        assert_eq!(numeric(0, 0xC000, 0, &[1]), Err(NumericError));
        assert_eq!(
            print_numeric(&[0, 1, 0, 0, 0, 0, 0, 0], &mut BytesMut::new()),
            Err(NumericError)
        );
    }

    #[test]
    fn floats_print_as_the_server_prints_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.5, "1.5"),
            (100.0, "100"),
            (123.25, "123.25"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (1e23, "9.999999999999999e+22"),
            (-1e23, "-9.999999999999999e+22"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.2345e-7, "1.2345e-07"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (float, text) in cases {
            let mut out = BytesMut::new();
            print_float8(float, &mut out);
            assert_eq!(out, text.as_bytes());
        }
        let mut out = BytesMut::new();
        print_float4(1_000_000.0, &mut out);
        assert_eq!(&out[..], b"1e+06");
    }

    proptest::proptest! {
        #[test]
        fn every_float_reads_back(bits: u64, small: u32, integer: i64) {
            for float in [f64::from_bits(bits), integer as f64] {
                let mut out = BytesMut::new();
                print_float8(float, &mut out);
                let text = std::str::from_utf8(&out).unwrap();
                assert!(float.is_nan() || text.parse() == Ok(float), "{text}");
            }
            let float = f32::from_bits(small);
            let mut out = BytesMut::new();
            print_float4(float, &mut out);
            let text = std::str::from_utf8(&out).unwrap();
            assert!(float.is_nan() || text.parse() == Ok(float), "{text}");
        }
    }
}
