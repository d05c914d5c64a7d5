//! Durations as people write them in a configuration: `"200ms"`, `"5s"`, `"1m"`.
//!
//! Owns that spelling only; `#[serde(with = "crate::duration")]` reads it.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// Reads a whole number and its unit: `ms`, `s`, `m` or `h`.
///
/// # Errors
/// Says which spelling was expected.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let problem =
        || format!("\"{text}\" is no duration; write \"200ms\", \"5s\", \"1m\" or \"1h\"");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| problem())?;
    let milliseconds_each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(problem()),
    };
    number.checked_mul(milliseconds_each).map(Duration::from_millis).ok_or_else(problem)
}

/// For `#[serde(with = "crate::duration")]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(from)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_its_unit_is_a_duration() {
        assert_eq!(parse("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in ["", "5", "s", "-1s", "1.5s", "5 s", "5S", "18446744073709551615h"] {
            assert!(parse(text).unwrap_err().contains("\"5s\""), "{text}");
        }
    }
}
