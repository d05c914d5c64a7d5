//! Dates and times: stored forms to text, and to microseconds since 1970.
//!
//! Owns the stored forms of both servers (`my_datetime_packed_from_binary` and its siblings in
//! MySQL's `mysys/my_time.cc`). A moment is printed as RFC 3339 in UTC: TIMESTAMP is UTC in the
//! log, whatever zone a session used, and DATETIME, which has no zone, is taken as UTC.
//!
//! The servers also store what is no date: `0000-00-00`, `2024-00-00`, with ALLOW_INVALID_DATES
//! `2024-02-31`. Such a value is printed as SELECT prints it, and is no moment.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

use crate::source::calendar::{civil_from_days, days_from_civil};

const DAY_SECONDS: i64 = 86_400;
/// Digits after a second's point, at most.
const SCALE_MAX: u8 = 6;

/// A value that is no date, time or moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TemporalError {
    /// Bytes that no server writes.
    #[error("malformed date or time")]
    Malformed,
    /// A zero date, or one that the calendar does not have.
    #[error(
        "the value is not a date of the calendar (a zero date?), so it cannot be the timestamp of a \
         message: set outbox.created_at_out_of_range = \"commit-time\" to use the commit time"
    )]
    NoDate,
}

/// A type of date or time, with its stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temporal {
    /// One byte: years since 1900, zero being the year 0000.
    Year,
    /// 3 bytes, little-endian: day in 5 bits, month in 4, year in 15.
    Date,
    /// TIME2: 3 bytes, big-endian, and the fraction.
    Time { scale: u8 },
    /// DATETIME2: 5 bytes, big-endian, and the fraction.
    Datetime { scale: u8 },
    /// TIMESTAMP2: 4 bytes, big-endian seconds since 1970, and the fraction.
    Timestamp { scale: u8 },
    /// TIME before MySQL 5.6: 3 bytes, decimal HHMMSS.
    OldTime,
    /// DATETIME before MySQL 5.6: 8 bytes, decimal YYYYMMDDHHMMSS.
    OldDatetime,
    /// TIMESTAMP before MySQL 5.6: 4 bytes, seconds.
    OldTimestamp,
}

/// What the stored form says, whether or not the calendar has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parts {
    negative: bool,
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    micros: i64,
}

impl Temporal {
    /// A type with fractional seconds; `None` for more digits than there can be.
    pub(crate) fn with_scale(scale: u8, make: fn(u8) -> Self) -> Option<Self> {
        (scale <= SCALE_MAX).then(|| make(scale))
    }

    /// Length of the stored form.
    pub(crate) fn bytes(self) -> usize {
        let fraction = |scale: u8| usize::from(scale.div_ceil(2));
        match self {
            Temporal::Year => 1,
            Temporal::Date | Temporal::OldTime => 3,
            Temporal::Time { scale } => 3 + fraction(scale),
            Temporal::Datetime { scale } => 5 + fraction(scale),
            Temporal::Timestamp { scale } => 4 + fraction(scale),
            Temporal::OldDatetime => 8,
            Temporal::OldTimestamp => 4,
        }
    }

    /// Whether a value of it can be a moment.
    pub(crate) fn is_moment(self) -> bool {
        match self {
            Temporal::Date
            | Temporal::Datetime { .. }
            | Temporal::Timestamp { .. }
            | Temporal::OldDatetime
            | Temporal::OldTimestamp => true,
            Temporal::Year | Temporal::Time { .. } | Temporal::OldTime => false,
        }
    }

    /// Prints `2024-02-29T10:34:56.789Z`, `2024-02-29`, `-10:34:56.7890`, `2024`.
    pub(crate) fn print(self, bytes: &[u8], out: &mut BytesMut) -> Result<(), TemporalError> {
        let parts = self.parts(bytes)?;
        match self {
            Temporal::Year => padded(parts.year, 4, out),
            Temporal::Date => parts.print_date(out),
            Temporal::Time { scale } => parts.print_time(scale, out),
            Temporal::OldTime => parts.print_time(0, out),
            Temporal::Datetime { scale } | Temporal::Timestamp { scale } => {
                parts.print_moment(scale, out);
            }
            Temporal::OldDatetime | Temporal::OldTimestamp => parts.print_moment(0, out),
        }
        Ok(())
    }

    /// Microseconds since 1970 of a value that [can be a moment](Self::is_moment).
    pub(crate) fn micros(self, bytes: &[u8]) -> Result<i64, TemporalError> {
        if !self.is_moment() {
            return Err(TemporalError::Malformed);
        }
        self.parts(bytes)?.micros()
    }

    fn parts(self, bytes: &[u8]) -> Result<Parts, TemporalError> {
        if bytes.len() != self.bytes() {
            return Err(TemporalError::Malformed);
        }
        match self {
            Temporal::Year => {
                let year = little_endian(bytes);
                Ok(Parts { year: if year == 0 { 0 } else { 1900 + year }, ..Parts::default() })
            }
            Temporal::Date => {
                let date = little_endian(bytes);
                let (year, month, day) = (date >> 9, date >> 5 & 15, date & 31);
                Ok(Parts { year, month, day, ..Parts::default() })
            }
            Temporal::Time { scale } => Parts::of_packed_time(packed(bytes, 3, scale)?),
            Temporal::Datetime { scale } => Parts::of_packed(packed(bytes, 5, scale)?),
            Temporal::Timestamp { scale } => {
                let (seconds, fraction) = bytes.split_at_checked(4).unwrap_or((bytes, &[]));
                let micros = big_endian(fraction) * fraction_micros(scale);
                Parts::of_moment(big_endian(seconds), micros)
            }
            Temporal::OldTime => {
                // 24 bits, signed.
                let time = little_endian(bytes) << 40 >> 40;
                let (negative, time) = (time < 0, time.abs());
                let (hour, minute, second) = (time / 10_000, time / 100 % 100, time % 100);
                Parts { negative, hour, minute, second, ..Parts::default() }.checked_clock()
            }
            Temporal::OldDatetime => {
                let both = little_endian(bytes);
                let (date, time) = (both / 1_000_000, both % 1_000_000);
                let (year, month, day) = (date / 10_000, date / 100 % 100, date % 100);
                let (hour, minute, second) = (time / 10_000, time / 100 % 100, time % 100);
                Parts { year, month, day, hour, minute, second, ..Parts::default() }.checked()
            }
            Temporal::OldTimestamp => Parts::of_moment(little_endian(bytes), 0),
        }
    }
}

impl Parts {
    fn of_moment(seconds: i64, micros: i64) -> Result<Self, TemporalError> {
        if seconds == 0 && micros == 0 {
            return Ok(Self::default());
        }
        let (year, month, day) = civil_from_days(seconds / DAY_SECONDS);
        let of_day = seconds % DAY_SECONDS;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        Self { negative: false, year, month, day, hour, minute, second, micros }.checked()
    }

    /// From the servers' packed datetime: micros in 24 bits, then second and minute in 6 each,
    /// hour and day in 5 each, and `year * 13 + month`.
    fn of_packed(packed: i64) -> Result<Self, TemporalError> {
        let (micros, rest) = (packed & 0xFF_FFFF, packed >> 24);
        let (second, minute, hour) = (rest & 63, rest >> 6 & 63, rest >> 12 & 31);
        let (day, months) = (rest >> 17 & 31, rest >> 22);
        let (year, month) = (months / 13, months % 13);
        Self { negative: packed < 0, year, month, day, hour, minute, second, micros }.checked()
    }

    /// From the servers' packed time: micros in 24 bits, second and minute in 6 each, and hour
    /// in 10; a negative time is the negative number.
    fn of_packed_time(packed: i64) -> Result<Self, TemporalError> {
        let (negative, packed) = (packed < 0, packed.unsigned_abs().cast_signed());
        let (micros, rest) = (packed & 0xFF_FFFF, packed >> 24);
        let (second, minute, hour) = (rest & 63, rest >> 6 & 63, rest >> 12 & 1023);
        Self { negative, hour, minute, second, micros, ..Self::default() }.checked_clock()
    }

    /// Refuses a date that has no place in the printed form.
    fn checked(self) -> Result<Self, TemporalError> {
        let fits = !self.negative
            && (0..=9999).contains(&self.year)
            && (0..=12).contains(&self.month)
            && (0..=31).contains(&self.day)
            && self.hour < 24;
        if fits { self.checked_clock() } else { Err(TemporalError::Malformed) }
    }

    fn checked_clock(self) -> Result<Self, TemporalError> {
        let fits = self.hour >= 0
            && (0..60).contains(&self.minute)
            && (0..60).contains(&self.second)
            && (0..1_000_000).contains(&self.micros);
        if fits { Ok(self) } else { Err(TemporalError::Malformed) }
    }

    fn is_date(&self) -> bool {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let days = match self.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => 0,
        };
        self.year > 0 && (1..=days).contains(&self.day)
    }

    fn micros(&self) -> Result<i64, TemporalError> {
        if !self.is_date() {
            return Err(TemporalError::NoDate);
        }
        let days = days_from_civil(self.year, self.month, self.day);
        let of_day = (self.hour * 60 + self.minute) * 60 + self.second;
        Ok((days * DAY_SECONDS + of_day) * 1_000_000 + self.micros)
    }

    fn print_date(&self, out: &mut BytesMut) {
        padded(self.year, 4, out);
        out.put_u8(b'-');
        padded(self.month, 2, out);
        out.put_u8(b'-');
        padded(self.day, 2, out);
    }

    fn print_clock(&self, out: &mut BytesMut) {
        padded(self.hour, 2, out);
        out.put_u8(b':');
        padded(self.minute, 2, out);
        out.put_u8(b':');
        padded(self.second, 2, out);
    }

    fn print_fraction(&self, scale: u8, out: &mut BytesMut) {
        if scale > 0 {
            out.put_u8(b'.');
            let dropped = 10_i64.pow(u32::from(SCALE_MAX.saturating_sub(scale)));
            padded(self.micros / dropped, scale, out);
        }
    }

    fn print_time(&self, scale: u8, out: &mut BytesMut) {
        if self.negative {
            out.put_u8(b'-');
        }
        self.print_clock(out);
        self.print_fraction(scale, out);
    }

    fn print_moment(&self, scale: u8, out: &mut BytesMut) {
        self.print_date(out);
        let is_date = self.is_date();
        out.put_u8(if is_date { b'T' } else { b' ' });
        self.print_clock(out);
        if !is_date {
            self.print_fraction(scale, out);
            return;
        }
        let (mut shortest, mut rest) = (SCALE_MAX, self.micros);
        while shortest > 0 && rest % 10 == 0 {
            rest /= 10;
            shortest -= 1;
        }
        self.print_fraction(shortest, out);
        out.put_u8(b'Z');
    }
}

/// Prints an opaque DATE of JSON: the packed datetime in 8 bytes, as SELECT prints it.
pub(crate) fn print_json_date(bytes: &[u8], out: &mut BytesMut) -> Result<(), TemporalError> {
    Parts::of_packed(json_packed(bytes)?)?.print_date(out);
    Ok(())
}

/// Prints an opaque DATETIME or TIMESTAMP of JSON, always with six decimals.
pub(crate) fn print_json_datetime(bytes: &[u8], out: &mut BytesMut) -> Result<(), TemporalError> {
    let parts = Parts::of_packed(json_packed(bytes)?)?;
    parts.print_date(out);
    out.put_u8(b' ');
    parts.print_time(SCALE_MAX, out);
    Ok(())
}

/// Prints an opaque TIME of JSON, always with six decimals.
pub(crate) fn print_json_time(bytes: &[u8], out: &mut BytesMut) -> Result<(), TemporalError> {
    Parts::of_packed_time(json_packed(bytes)?)?.print_time(SCALE_MAX, out);
    Ok(())
}

fn json_packed(bytes: &[u8]) -> Result<i64, TemporalError> {
    let bytes = bytes.try_into().map_err(|_| TemporalError::Malformed)?;
    Ok(i64::from_le_bytes(bytes))
}

/// The packed form of a stored TIME or DATETIME. Both are offset so that they sort as bytes;
/// the fraction of a negative time counts towards zero.
fn packed(bytes: &[u8], whole_bytes: usize, scale: u8) -> Result<i64, TemporalError> {
    let (whole, fraction) = bytes.split_at_checked(whole_bytes).ok_or(TemporalError::Malformed)?;
    let mut seconds = big_endian(whole) - (1 << (8 * whole_bytes - 1));
    let mut units = big_endian(fraction);
    if seconds < 0 && units > 0 {
        seconds += 1;
        units -= 1 << (8 * fraction.len());
    }
    Ok((seconds << 24) + units * fraction_micros(scale))
}

/// Microseconds of one unit of the stored fraction: 1 byte holds hundredths, 2 bytes hold
/// ten-thousandths, 3 bytes hold microseconds.
fn fraction_micros(scale: u8) -> i64 {
    match scale {
        0..=2 => 10_000,
        3 | 4 => 100,
        _ => 1,
    }
}

fn big_endian(bytes: &[u8]) -> i64 {
    bytes.iter().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn little_endian(bytes: &[u8]) -> i64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn padded(number: i64, width: u8, out: &mut BytesMut) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.put_bytes(b'0', usize::from(width).saturating_sub(digits.len()));
    out.put_slice(digits);
}

#[cfg(test)]
mod tests;
