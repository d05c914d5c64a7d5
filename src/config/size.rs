//! Sizes as people write them in configuration: `64KiB`, `16 MiB`, `1GB`, or bytes.

/// Reads one whole number with an optional unit; `kB`, `MB` and `GB` are powers of ten.
///
/// # Errors
/// A sentence on what a size looks like.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let refused = || format!("\"{text}\" is no size; write it as 65536, 64KiB, 16MiB or 1GB");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let unit = match unit.trim_start() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(refused()),
    };
    number.checked_mul(unit).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_is_read() {
        for (text, bytes) in [("7", 7), ("7B", 7), ("2kB", 2_000), ("16MiB", 16 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("1 GiB"), Ok(1 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MiB", "1.5MiB", "16 mib", "-1", "99999999999GiB"] {
            let problem = parse_size(text).unwrap_err();
            assert!(problem.ends_with("write it as 65536, 64KiB, 16MiB or 1GB"), "{problem}");
        }
    }
}
