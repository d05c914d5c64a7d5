//! The position type of PostgreSQL's log.
//!
//! Owns its arithmetic and text form; knows nothing of slots or of who acknowledges what.

use std::fmt;
use std::str::FromStr;

/// Log sequence number: a byte position in the write-ahead log.
///
/// Its text is two hexadecimal halves, `16/B374D848`, as `pg_lsn` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`: no position. `START_REPLICATION` takes it as "where the slot stands".
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of log from `earlier` to here; 0 where `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The position `bytes` further on, at most the last one there is.
    pub fn saturating_add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & u64::from(u32::MAX))
    }
}

/// Text that is no LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no LSN: expected two hexadecimal numbers as in 0/16B3748")]
pub struct ParseLsnError {
    text: String,
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        let Some((high, low)) = parsed else {
            return Err(ParseLsnError { text: text.into() });
        };
        Ok(Lsn((u64::from(high) << 32) | u64::from(low)))
    }
}

/// As `pg_lsn` reads it: one to eight hexadecimal digits, no sign.
fn half(digits: &str) -> Option<u32> {
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u32::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_back_as_the_same_position() {
        for lsn in [Lsn::ZERO, Lsn(0x16B_3748), Lsn(0x16_B374_D848), Lsn(u64::MAX)] {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        assert_eq!(Lsn(0x16B_3748).to_string(), "0/16B3748");
        assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_B374_D848)));
    }

    #[test]
    fn what_pg_lsn_refuses_is_refused() {
        for text in
            ["", "/", "0", "0/", "/0", "+1/0", "0/-1", "0/0/0", "123456789/0", "G/0", "0/ 1"]
        {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn order_is_position_in_the_log() {
        assert!(Lsn(0xFFFF_FFFF) < Lsn(0x1_0000_0000));
        assert_eq!(Lsn(10).bytes_since(Lsn(4)), 6);
        assert_eq!(Lsn(4).bytes_since(Lsn(10)), 0);
        assert_eq!(Lsn(u64::MAX).saturating_add(1), Lsn(u64::MAX));
    }
}
