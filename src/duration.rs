//! Durations as people write them in configuration: `200ms`, `5s`, `1m`, `2h`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads one whole number with its unit `ms`, `s`, `m` or `h`; `0` needs none.
///
/// # Errors
/// A sentence on what a duration looks like.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let refused = || format!("\"{text}\" is no duration; write it as 200ms, 5s, 1m or 2h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let milliseconds = match unit.trim_start() {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "" if number == 0 => Some(0),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(refused)
}

/// For `#[serde(with = "crate::duration")]`.
#[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only that sink reads durations so"))]
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(from)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        for (text, milliseconds) in
            [("0", 0), ("200ms", 200), ("5s", 5_000), ("1 m", 60_000), ("2h", 7_200_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        for text in ["", "5", "5 sec", "-1s", "1.5s", "s", "99999999999999999999s"] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains("write it as 200ms, 5s, 1m or 2h"), "{problem}");
        }
        assert!(parse("18446744073709551615h").is_err(), "no overflow");
    }
}
