//! Floats to text in the server's form: as few digits as read back, and `1e300` without a sign
//! in front of the exponent (`my_gcvt` in `strings/dtoa.cc`).
//!
//! A DOUBLE is printed as the server prints it. A FLOAT is printed with all the digits that it
//! needs: the server rounds it to six when it prints, and so loses some.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

use crate::source::scientific::Scientific;

/// Infinity, or no number: neither server stores one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value is infinite or no number")]
pub struct FloatError;

/// Digits before the point up to which no exponent is used, as many zeros after it
/// (`MAX_DECPT_FOR_F_FORMAT`).
const FIXED_DIGITS: i32 = 15;

/// Prints a DOUBLE: `1.5`, `100`, `1e300`.
pub(crate) fn print_double(float: f64, out: &mut BytesMut) -> Result<(), FloatError> {
    if !float.is_finite() {
        return Err(FloatError);
    }
    let mut text = Scientific::of(format_args!("{float:e}"));
    break_tie(&mut text, float);
    print_shortest(&text, out);
    Ok(())
}

/// Prints a FLOAT.
pub(crate) fn print_single(float: f32, out: &mut BytesMut) -> Result<(), FloatError> {
    if !float.is_finite() {
        return Err(FloatError);
    }
    print_shortest(&Scientific::of(format_args!("{float:e}")), out);
    Ok(())
}

/// Prints a DOUBLE within JSON: `1.0`, so that it stays one (`wrapper_to_string` in
/// `sql-common/json_dom.cc`, MySQL 8.0.14 and later).
pub(crate) fn print_json_double(float: f64, out: &mut BytesMut) -> Result<(), FloatError> {
    let start = out.len();
    print_double(float, out)?;
    let printed = out.get(start..).unwrap_or_default();
    if !printed.iter().any(|byte| matches!(byte, b'.' | b'e')) {
        out.put_slice(b".0");
    }
    Ok(())
}

fn print_shortest(text: &Scientific, out: &mut BytesMut) {
    let (negative, mantissa, exponent) = text.parts();
    let (_, decimals) = Scientific::digits(mantissa);
    // Where the point stands in the digits, and how many of them there are.
    let point = exponent + 1;
    let digits = i32::try_from(decimals.len()).unwrap_or(i32::MAX).saturating_add(1);
    if point > -FIXED_DIGITS && (point <= FIXED_DIGITS || digits > point) {
        return text.print_fixed(out);
    }
    if negative {
        out.put_u8(b'-');
    }
    out.put_slice(mantissa.as_bytes());
    out.put_u8(b'e');
    out.put_slice(itoa::Buffer::new().format(exponent).as_bytes());
}

/// Where two texts of the least length are equally near, Rust takes the upper one, and the server
/// the one whose last digit is even (`ROUND_EVEN` in `dtoa`): 920186241855357.25 is printed as
/// 920186241855357.2.
fn break_tie(text: &mut Scientific, float: f64) {
    let (_, mantissa, exponent) = text.parts();
    let mut digits = 0_u64;
    let mut decimals = -1;
    for byte in mantissa.bytes().filter(u8::is_ascii_digit) {
        digits = digits * 10 + u64::from(byte - b'0');
        decimals += 1;
    }
    // The lower one would be shorter than the least length if it ended in 0.
    if digits.is_multiple_of(2) || digits % 10 == 1 {
        return;
    }
    if is_exactly(float, digits * 10 - 5, exponent - decimals - 1) {
        let mut lower = *text;
        lower.lower_last_digit();
        if lower.as_str().parse() == Ok(float) {
            *text = lower;
        }
    }
}

/// Whether the magnitude of a finite float is `digits * 10^power`, to the last bit. `digits` has
/// at most 18 digits.
fn is_exactly(float: f64, digits: u64, power: i32) -> bool {
    const MANTISSA_BITS: u32 = f64::MANTISSA_DIGITS - 1;
    let bits = float.to_bits();
    let fraction = bits & ((1 << MANTISSA_BITS) - 1);
    let biased = i32::try_from(bits >> MANTISSA_BITS & 0x7FF).unwrap_or(0);
    // A subnormal number has no hidden bit, and the exponent of the smallest normal one.
    let mantissa = if biased > 0 { fraction | 1 << MANTISSA_BITS } else { fraction };
    let exponent = biased.max(1) - 1075;
    // 5^25 has more bits than a mantissa, and than the digits.
    if power.unsigned_abs() > 25 {
        return false;
    }
    let fives = 5_u128.pow(power.unsigned_abs());
    let product = if power >= 0 {
        u128::from(digits) * fives
    } else if u128::from(digits) % fives == 0 {
        u128::from(digits) / fives
    } else {
        return false;
    };
    // Both are an odd number and a power of two.
    let (twos, zeros) = (product.trailing_zeros(), mantissa.trailing_zeros());
    let same_odd = product.checked_shr(twos) == mantissa.checked_shr(zeros).map(u128::from);
    same_odd && power + twos.cast_signed() == exponent + zeros.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_print_as_the_server_prints_them() {
        // All of them as MySQL 9.7 and MariaDB 10.11 print them.
        let cases = [
            (0.0, "0"),
            (1.5, "1.5"),
            (-100.0, "-100"),
            (1e14, "100000000000000"),
            (1e15, "1e15"),
            (123_456_789_012_345.0, "123456789012345"),
            (1_234_567_890_123_456.0, "1.234567890123456e15"),
            (1_234_567_890_123_456.8, "1234567890123456.8"),
            (1e23, "1e23"),
            (1e300, "1e300"),
            (0.0001, "0.0001"),
            (1.5e-14, "0.000000000000015"),
            (1.5e-15, "0.0000000000000015"),
            (1e-16, "1e-16"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e308"),
            // Exactly between two texts of 16 digits.
            (920_186_241_855_357.0 + 0.25, "920186241855357.2"),
            (-1_159_577_467_325_043.0 - 0.25, "-1159577467325043.2"),
            (103_090_042_887_923.0 + 0.125, "103090042887923.12"),
            (103_090_042_887_923.0 + 0.375, "103090042887923.38"),
            (2.0_f64.powi(-25), "0.000000029802322387695312"),
            (2.0_f64.powi(-44), "0.00000000000005684341886080802"),
        ];
        for (float, text) in cases {
            let mut out = BytesMut::new();
            print_double(float, &mut out).unwrap();
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn a_double_in_json_does_not_look_like_an_integer() {
        for (float, text) in [(1.0, "1.0"), (-0.5, "-0.5"), (1e300, "1e300")] {
            let mut out = BytesMut::from("7");
            print_json_double(float, &mut out).unwrap();
            assert_eq!(&out[1..], text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(print_double(float, &mut BytesMut::new()), Err(FloatError));
        }
        assert_eq!(print_single(f32::NAN, &mut BytesMut::new()), Err(FloatError));
    }

    proptest::proptest! {
        #[test]
        fn every_float_reads_back(bits: u64, small: u32) {
            let mut out = BytesMut::new();
            let float = f64::from_bits(bits);
            if print_double(float, &mut out).is_ok() {
                assert_eq!(std::str::from_utf8(&out).unwrap().parse(), Ok(float));
            }
            let mut out = BytesMut::new();
            let float = f32::from_bits(small);
            if print_single(float, &mut out).is_ok() {
                assert_eq!(std::str::from_utf8(&out).unwrap().parse(), Ok(float));
            }
        }
    }
}
