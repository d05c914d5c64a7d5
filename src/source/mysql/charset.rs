//! Character sets of text columns, by the collation numbers that TABLE_MAP carries.
//!
//! Owns which of them are UTF-8 already and how latin1 becomes it; others are in `legacy`. What is
//! left is named, so that an error can say what a column holds, and never converted by guess.
//!
//! Numbers as `information_schema.collations` of MySQL 9.7, MariaDB 10.11 and 11.8 tells them.
//! MariaDB's collations without padding are those of the same set with 1,024 added.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod legacy;

use bytes::{BufMut, BytesMut};

pub(crate) use legacy::Legacy;

/// How the bytes of a text column are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charset {
    /// No text: BINARY, VARBINARY, BLOB.
    Binary,
    /// utf8mb4, utf8mb3 or ascii: bytes as they are.
    Utf8,
    /// Windows-1252, whatever its name says.
    Latin1,
    /// One that is converted as the server does.
    Legacy(Legacy),
    /// One that is not converted; its name where it is known.
    Other(&'static str),
}

impl Charset {
    /// The character set of a collation.
    pub(crate) fn of(collation: u32) -> Self {
        let padded = match collation {
            1024..2048 => collation - 1024,
            _ => collation,
        };
        match padded {
            63 => Charset::Binary,
            45 | 46 | 224..=247 | 255..=323 | 608..640 | 2304..2560 => Charset::Utf8,
            33 | 76 | 83 | 192..=223 | 576..608 | 2048..2304 => Charset::Utf8,
            11 | 65 => Charset::Utf8,
            5 | 8 | 15 | 31 | 47 | 48 | 49 | 94 => Charset::Latin1,
            _ => {
                let name = name(padded);
                Legacy::of(name).map_or(Charset::Other(name), Charset::Legacy)
            }
        }
    }

    /// Whether columns of this set are read, by its name in the catalog.
    pub(crate) fn is_read(name: &str) -> bool {
        let known = ["binary", "utf8mb4", "utf8mb3", "utf8", "ascii", "latin1"];
        known.contains(&name) || Legacy::of(name).is_some()
    }
}

fn name(collation: u32) -> &'static str {
    match collation {
        1 | 84 => "big5",
        2 | 9 | 21 | 27 | 77 => "latin2",
        3 | 69 => "dec8",
        4 | 80 => "cp850",
        6 | 72 => "hp8",
        7 | 74 => "koi8r",
        10 | 82 => "swe7",
        12 | 91 => "ujis",
        13 | 88 => "sjis",
        14 | 23 | 50 | 51 | 52 => "cp1251",
        16 | 71 => "hebrew",
        18 | 89 => "tis620",
        19 | 85 => "euckr",
        20 | 41 | 42 | 79 => "latin7",
        22 | 75 => "koi8u",
        24 | 86 => "gb2312",
        25 | 70 => "greek",
        26 | 34 | 44 | 66 | 99 => "cp1250",
        28 | 87 => "gbk",
        29 | 58 | 59 => "cp1257",
        30 | 78 => "latin5",
        32 | 64 => "armscii8",
        35 | 90 | 128..160 | 640..672 | 2560..2816 => "ucs2",
        36 | 68 => "cp866",
        37 | 73 => "keybcs2",
        38 | 43 => "macce",
        39 | 53 => "macroman",
        40 | 81 => "cp852",
        54 | 55 | 101..=124 | 672..704 | 2816..3072 => "utf16",
        56 | 62 => "utf16le",
        57 | 67 => "cp1256",
        60 | 61 | 160..192 | 736..768 | 3072..3328 => "utf32",
        92 | 93 => "geostd8",
        95 | 96 => "cp932",
        97 | 98 => "eucjpms",
        248..=250 => "gb18030",
        _ => "unknown",
    }
}

/// 0x80 to 0x9F: the five that Windows-1252 leaves open are control characters of the same
/// number to the server (`cs_to_uni` in `strings/ctype-latin1.cc`). All others stand at their
/// own number.
const LATIN1_HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
];

/// Writes latin1 text as UTF-8.
pub(crate) fn print_latin1(text: &[u8], out: &mut BytesMut) {
    // Most characters stay one byte.
    out.reserve(text.len());
    for byte in text {
        let high = byte.checked_sub(0x80).and_then(|high| LATIN1_HIGH.get(usize::from(high)));
        let character = high.copied().unwrap_or(char::from(*byte));
        out.put_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collations_of_all_three_servers_are_known_by_their_set() {
        for collation in [45, 46, 224, 255, 323, 608, 1069, 1070, 1248, 1270, 2304, 2503] {
            assert_eq!(Charset::of(collation), Charset::Utf8, "{collation} is utf8mb4");
        }
        for collation in [33, 83, 192, 223, 576, 1057, 1107, 1216, 2048, 2247, 11, 65, 1035, 1089] {
            assert_eq!(Charset::of(collation), Charset::Utf8, "{collation} is utf8mb3 or ascii");
        }
        for collation in [5, 8, 15, 31, 47, 48, 49, 94, 1032, 1071] {
            assert_eq!(Charset::of(collation), Charset::Latin1, "{collation}");
        }
        assert_eq!(Charset::of(63), Charset::Binary);
        assert_eq!(Charset::of(1025), Charset::Other("big5"));
        assert_eq!(Charset::of(2816), Charset::Legacy(Legacy::of("utf16").unwrap()));
        assert_eq!(Charset::of(28), Charset::Legacy(Legacy::of("gbk").unwrap()));
        assert!(Charset::is_read("cp1251") && Charset::is_read("utf8mb3"));
        assert!(!Charset::is_read("big5") && !Charset::is_read("gb18030"));
        assert_eq!(Charset::of(9999), Charset::Other("unknown"));
    }

    #[test]
    fn latin1_is_windows_1252_with_its_gaps_filled() {
        let mut out = BytesMut::new();
        print_latin1(b"gr\xFC\xDFe \x80\x81\x9F\xFF", &mut out);
        assert_eq!(out, "grüße €\u{81}Ÿÿ".as_bytes());
    }
}
