//! Timestamps and dates: wire forms to microseconds since 1970, and those to RFC 3339.
//!
//! RFC 3339 has the years 1 to 9999. What lies outside, and infinity, is no moment for a message's
//! timestamp; as text it is what PostgreSQL prints, whichever wire form it came in.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

use super::pgoutput::EPOCH_MICROS;
use crate::source::calendar::{civil_from_days, days_from_civil};

const DAY_MICROS: i64 = 86_400_000_000;
/// 0001-01-01 and 10000-01-01.
const FIRST_MICROS: i64 = -62_135_596_800_000_000;
const END_MICROS: i64 = 253_402_300_800_000_000;

/// A moment that has no place on our scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MomentError {
    /// `infinity` or `-infinity`.
    #[error(
        "infinity is not a moment in time: set outbox.created_at_out_of_range = \"commit-time\" to \
         publish such rows with their commit time, or map another column to created_at"
    )]
    Infinite,
    /// Before the year 1 or after 9999.
    #[error(
        "the date is not in the years 1 to 9999: set outbox.created_at_out_of_range = \
         \"commit-time\" to publish such rows with their commit time, or map another column to \
         created_at"
    )]
    OutOfRange,
    /// Text in another style than ISO.
    #[error("malformed date or timestamp; is the connection's DateStyle ISO?")]
    Malformed,
}

impl MomentError {
    /// Whether it is a value of its type, only none that RFC 3339 has.
    pub(crate) fn is_a_moment(self) -> bool {
        match self {
            Self::Infinite | Self::OutOfRange => true,
            Self::Malformed => false,
        }
    }
}

/// From a binary timestamp: microseconds since 2000, the ends of the range being infinity
/// (`src/include/datatype/timestamp.h`).
pub(crate) fn from_timestamp(postgres: i64) -> Result<i64, MomentError> {
    if postgres == i64::MAX || postgres == i64::MIN {
        return Err(MomentError::Infinite);
    }
    in_range(postgres.checked_add(EPOCH_MICROS))
}

/// From a binary date: days since 2000, the ends of the range being infinity
/// (`src/include/utils/date.h`).
pub(crate) fn from_date(postgres: i32) -> Result<i64, MomentError> {
    if postgres == i32::MAX || postgres == i32::MIN {
        return Err(MomentError::Infinite);
    }
    let micros = i64::from(postgres).checked_mul(DAY_MICROS);
    in_range(micros.and_then(|micros| micros.checked_add(EPOCH_MICROS)))
}

fn in_range(micros: Option<i64>) -> Result<i64, MomentError> {
    micros
        .filter(|micros| (FIRST_MICROS..END_MICROS).contains(micros))
        .ok_or(MomentError::OutOfRange)
}

/// From text in style ISO: `2024-02-29`, `2024-02-29 12:34:56.789`, the latter also with an
/// offset, `+02`, `-03:30` or `+00:19:32`. Without one it is taken as UTC.
pub(crate) fn parse(text: &[u8]) -> Result<i64, MomentError> {
    if matches!(text, b"infinity" | b"-infinity") {
        return Err(MomentError::Infinite);
    }
    // Years of five and more digits, and "0044-03-15 BC".
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits > 4 || text.ends_with(b" BC") {
        return Err(MomentError::OutOfRange);
    }
    in_range(Some(parse_iso(text).ok_or(MomentError::Malformed)?))
}

fn parse_iso(text: &[u8]) -> Option<i64> {
    let mut text = Digits { rest: text };
    let year = text.number(4)?;
    text.literal(b'-')?;
    let month = text.number(2).filter(|month| (1..=12).contains(month))?;
    text.literal(b'-')?;
    let day = text.number(2).filter(|day| (1..=31).contains(day))?;
    let midnight = days_from_civil(year, month, day) * DAY_MICROS;
    if text.rest.is_empty() {
        return Some(midnight);
    }
    text.literal(b' ')?;
    let seconds = text.clock()?;
    let mut micros = 0;
    if text.literal(b'.').is_some() {
        let mut unit = 1_000_000;
        while let Some(digit) = text.number(1) {
            unit /= 10;
            if unit == 0 {
                return None;
            }
            micros += digit * unit;
        }
    }
    let offset = text.offset()?;
    Some(midnight + (seconds - offset) * 1_000_000 + micros)
}

/// Reads fixed-width fields off the front of a text.
struct Digits<'a> {
    rest: &'a [u8],
}

impl Digits<'_> {
    fn literal(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        if *first != byte {
            return None;
        }
        self.rest = rest;
        Some(())
    }

    fn number(&mut self, width: usize) -> Option<i64> {
        let (digits, rest) = self.rest.split_at_checked(width)?;
        let mut number = 0;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            number = number * 10 + i64::from(digit - b'0');
        }
        self.rest = rest;
        Some(number)
    }

    /// `12:34:56` in seconds.
    fn clock(&mut self) -> Option<i64> {
        let hours = self.number(2).filter(|hours| *hours < 24)?;
        self.literal(b':')?;
        let minutes = self.number(2).filter(|minutes| *minutes < 60)?;
        self.literal(b':')?;
        let seconds = self.number(2).filter(|seconds| *seconds < 60)?;
        Some((hours * 60 + minutes) * 60 + seconds)
    }

    /// Nothing, or an offset up to the end, in seconds.
    fn offset(&mut self) -> Option<i64> {
        let sign = match self.rest.split_first() {
            None => return Some(0),
            Some((b'+', rest)) => (1, rest),
            Some((b'-', rest)) => (-1, rest),
            Some(_) => return None,
        };
        self.rest = sign.1;
        let mut seconds = self.number(2)? * 3600;
        let mut unit = 60;
        while !self.rest.is_empty() && unit > 0 {
            self.literal(b':')?;
            seconds += self.number(2)? * unit;
            unit /= 60;
        }
        if self.rest.is_empty() { Some(sign.0 * seconds) } else { None }
    }
}

/// Prints `2024-02-29T10:34:56.789Z`, the fraction as short as it can be.
pub(crate) fn print(micros: i64, out: &mut BytesMut) -> Result<(), MomentError> {
    print_date(micros, out)?;
    let of_day = micros.rem_euclid(DAY_MICROS);
    out.put_u8(b'T');
    put_clock(of_day, out);
    out.put_u8(b'Z');
    Ok(())
}

/// Prints a binary timestamp that RFC 3339 has not, as PostgreSQL does in style ISO and UTC:
/// `infinity`, `0044-03-15 10:34:56.789+00 BC`.
pub(crate) fn print_timestamp_of_postgres(postgres: i64, zone: &str, out: &mut BytesMut) {
    if put_infinity(postgres == i64::MAX, postgres == i64::MIN, out) {
        return;
    }
    // Wide enough for both epochs apart.
    let micros = i128::from(postgres) + i128::from(EPOCH_MICROS);
    let day = i128::from(DAY_MICROS);
    let days = i64::try_from(micros.div_euclid(day)).unwrap_or_default();
    let of_day = i64::try_from(micros.rem_euclid(day)).unwrap_or_default();
    let is_before_christ = put_date(days, out);
    out.put_u8(b' ');
    put_clock(of_day, out);
    out.put_slice(zone.as_bytes());
    if is_before_christ {
        out.put_slice(b" BC");
    }
}

/// The same for a date: `10000-01-01`.
pub(crate) fn print_date_of_postgres(postgres: i32, out: &mut BytesMut) {
    if !put_infinity(postgres == i32::MAX, postgres == i32::MIN, out)
        && put_date(i64::from(postgres) + EPOCH_MICROS / DAY_MICROS, out)
    {
        out.put_slice(b" BC");
    }
}

fn put_infinity(is_positive: bool, is_negative: bool, out: &mut BytesMut) -> bool {
    if is_negative {
        out.put_u8(b'-');
    }
    if is_positive || is_negative {
        out.put_slice(b"infinity");
    }
    is_positive || is_negative
}

/// Says whether " BC" belongs behind it: there is no year 0, and the one before 1 is 1 BC.
fn put_date(days: i64, out: &mut BytesMut) -> bool {
    let (year, month, day) = civil_from_days(days);
    padded(if year > 0 { year } else { 1 - year }, 4, out);
    out.put_u8(b'-');
    padded(month, 2, out);
    out.put_u8(b'-');
    padded(day, 2, out);
    year <= 0
}

/// `10:34:56.789`, the fraction as short as it can be.
fn put_clock(of_day: i64, out: &mut BytesMut) {
    let (seconds, mut fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    padded(seconds / 3600, 2, out);
    out.put_u8(b':');
    padded(seconds / 60 % 60, 2, out);
    out.put_u8(b':');
    padded(seconds % 60, 2, out);
    if fraction > 0 {
        let mut width = 6;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        out.put_u8(b'.');
        padded(fraction, width, out);
    }
}

/// Prints `2024-02-29`.
pub(crate) fn print_date(micros: i64, out: &mut BytesMut) -> Result<(), MomentError> {
    put_date(in_range(Some(micros))?.div_euclid(DAY_MICROS), out);
    Ok(())
}

fn padded(number: i64, width: usize, out: &mut BytesMut) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.put_bytes(b'0', width.saturating_sub(digits.len()));
    out.put_slice(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(micros: i64) -> String {
        let mut out = BytesMut::new();
        print(micros, &mut out).unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn the_range_begins_with_the_year_1_and_ends_with_9999() {
        assert_eq!(civil_from_days(FIRST_MICROS / DAY_MICROS), (1, 1, 1));
        assert_eq!(civil_from_days(END_MICROS / DAY_MICROS - 1), (9999, 12, 31));
    }

    #[test]
    fn offsets_are_taken_off() {
        let utc = parse(b"2024-02-29 10:34:56.789+00").unwrap();
        assert_eq!(printed(utc), "2024-02-29T10:34:56.789Z");
        assert_eq!(parse(b"2024-02-29 12:34:56.789+02"), Ok(utc));
        assert_eq!(parse(b"2024-02-29 07:04:56.789-03:30"), Ok(utc));
        assert_eq!(parse(b"2024-02-29 10:54:28.789+00:19:32"), Ok(utc));
        assert_eq!(parse(b"2024-02-29 10:34:56.789"), Ok(utc));
        assert_eq!(printed(parse(b"1969-12-31 23:59:59.000001").unwrap()).len(), 27);
        assert_eq!(printed(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(printed(0), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_rfc_3339_cannot_tell_is_refused_in_both_forms() {
        for text in ["infinity", "-infinity"] {
            assert_eq!(parse(text.as_bytes()), Err(MomentError::Infinite));
        }
        for text in ["0044-03-15 BC", "10000-01-01", "294276-12-31 23:59:59.999999+00"] {
            assert_eq!(parse(text.as_bytes()), Err(MomentError::OutOfRange), "{text}");
        }
        assert_eq!(from_timestamp(i64::MAX), Err(MomentError::Infinite));
        assert_eq!(from_timestamp(i64::MIN), Err(MomentError::Infinite));
        assert_eq!(from_timestamp(i64::MAX - 1), Err(MomentError::OutOfRange));
        assert_eq!(from_timestamp(END_MICROS - EPOCH_MICROS), Err(MomentError::OutOfRange));
        assert_eq!(from_timestamp(END_MICROS - EPOCH_MICROS - 1), Ok(END_MICROS - 1));
        assert_eq!(from_date(i32::MIN), Err(MomentError::Infinite));
        assert_eq!(from_date(i32::MAX - 1), Err(MomentError::OutOfRange));
    }

    #[test]
    fn other_date_styles_are_refused_and_never_guessed() {
        for text in [
            "",
            "2024",
            "02/29/2024",
            "29.02.2024 10:34:56",
            "2024-02-29T10:34:56Z",
            "2024-13-01",
            "2024-02-29 24:00:00",
            "2024-02-29 10:34:56+",
            "2024-02-29 10:34:56+00:00:00:00",
            "2024-02-29 10:34:56.1234567",
            "2024-02-29 ",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(MomentError::Malformed), "{text}");
        }
    }
}
