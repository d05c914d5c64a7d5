//! Character sets that are not Unicode's, and Unicode's in two or four bytes: to UTF-8, as the
//! server's own CONVERT does.
//!
//! Owns which sets are converted, and where the servers differ from the Encoding Standard, whose
//! tables `encoding_rs` has. Measured over every text of one and of two bytes with MySQL 9.7,
//! MariaDB 10.11 and 11.8, which agree (`tests/fault_binlog/charset.rs` measures it again). A
//! character that the server cannot convert is a question mark there, and so here.
//!
//! Not converted, since the two differ in hundreds of characters or the Standard does not have
//! them: big5, ujis, eucjpms, gb18030, dec8, cp850, cp852, hp8, swe7, keybcs2, macce, armscii8,
//! geostd8.

use bytes::{BufMut, BytesMut};
use encoding_rs::Encoding;

/// A set that is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Legacy {
    /// As the server calls it.
    name: &'static str,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Single {
        encoding: &'static Encoding,
        /// 0x80 to 0x9F are control characters of the same number.
        has_controls: bool,
        differs: &'static [(u8, char)],
    },
    Double {
        encoding: &'static Encoding,
        pairs: Pairs,
        differs: &'static [(u16, char)],
        /// First and last character of what the server does not know.
        unknown: &'static [(u16, u16)],
        /// It does not know those in private use either.
        knows_private: bool,
    },
    /// Two bytes a character, the high one first.
    Ucs2,
    Utf16,
    /// The low byte first.
    Utf16Le,
    Utf32,
}

/// Which bytes belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    Japanese,
    Korean,
    Chinese,
    /// GB 2312 alone.
    Chinese1980,
}

const UNKNOWN: char = '?';

const fn single(
    name: &'static str,
    encoding: &'static Encoding,
    differs: &'static [(u8, char)],
) -> Legacy {
    Legacy { name, form: Form::Single { encoding, has_controls: false, differs } }
}

const fn with_controls(
    name: &'static str,
    encoding: &'static Encoding,
    differs: &'static [(u8, char)],
) -> Legacy {
    Legacy { name, form: Form::Single { encoding, has_controls: true, differs } }
}

const fn wide(name: &'static str, form: Form) -> Legacy {
    Legacy { name, form }
}

const SETS: [Legacy; 23] = [
    single("koi8r", encoding_rs::KOI8_R, &[]),
    single("latin2", encoding_rs::ISO_8859_2, &[]),
    single("latin7", encoding_rs::ISO_8859_13, &[]),
    single("macroman", encoding_rs::MACINTOSH, &[]),
    single("hebrew", encoding_rs::ISO_8859_8, &[(0xAF, '\u{203E}')]),
    single(
        "koi8u",
        encoding_rs::KOI8_U,
        &[(0x95, '\u{2022}'), (0xAE, '\u{255D}'), (0xBE, '\u{256C}')],
    ),
    single(
        "greek",
        encoding_rs::ISO_8859_7,
        &[(0xA1, '\u{2BD}'), (0xA2, '\u{2BC}'), (0xA4, UNKNOWN), (0xA5, UNKNOWN), (0xAA, UNKNOWN)],
    ),
    single("cp866", encoding_rs::IBM866, &[(0xFC, '\u{207F}'), (0xFD, '\u{B2}')]),
    single(
        "cp1250",
        encoding_rs::WINDOWS_1250,
        &[(0x81, '?'), (0x83, '?'), (0x88, '?'), (0x90, '?'), (0x98, '?')],
    ),
    single("cp1251", encoding_rs::WINDOWS_1251, &[(0x98, '?')]),
    single(
        "cp1256",
        encoding_rs::WINDOWS_1256,
        &[
            (0x8A, '?'),
            (0x8F, '?'),
            (0x98, '?'),
            (0x9A, '?'),
            (0x9F, '?'),
            (0xAA, '?'),
            (0xC0, '?'),
            (0xFF, '?'),
        ],
    ),
    single(
        "cp1257",
        encoding_rs::WINDOWS_1257,
        &[
            (0x81, '?'),
            (0x83, '?'),
            (0x88, '?'),
            (0x8A, '?'),
            (0x8C, '?'),
            (0x90, '?'),
            (0x98, '?'),
            (0x9A, '?'),
            (0x9C, '?'),
            (0x9F, '?'),
        ],
    ),
    with_controls("latin5", encoding_rs::WINDOWS_1254, &[]),
    with_controls(
        "tis620",
        encoding_rs::WINDOWS_874,
        &[
            (0xA0, '\u{FFFD}'),
            (0xDB, '\u{FFFD}'),
            (0xDC, '\u{FFFD}'),
            (0xDD, '\u{FFFD}'),
            (0xDE, '\u{FFFD}'),
            (0xFC, '\u{FFFD}'),
            (0xFD, '\u{FFFD}'),
            (0xFE, '\u{FFFD}'),
            (0xFF, '\u{FFFD}'),
        ],
    ),
    Legacy {
        name: "cp932",
        form: Form::Double {
            encoding: encoding_rs::SHIFT_JIS,
            pairs: Pairs::Japanese,
            differs: &[],
            unknown: &[],
            knows_private: true,
        },
    },
    Legacy {
        name: "sjis",
        form: Form::Double {
            encoding: encoding_rs::SHIFT_JIS,
            pairs: Pairs::Japanese,
            differs: &[
                (0x815F, '\\'),
                (0x8160, '\u{301C}'),
                (0x8161, '\u{2016}'),
                (0x817C, '\u{2212}'),
                (0x8191, '\u{A2}'),
                (0x8192, '\u{A3}'),
                (0x81CA, '\u{AC}'),
            ],
            // Rows of NEC and IBM.
            unknown: &[(0x8740, 0x879C), (0xED40, 0xEEFC), (0xFA40, 0xFC4B)],
            knows_private: false,
        },
    },
    Legacy {
        name: "euckr",
        form: Form::Double {
            encoding: encoding_rs::EUC_KR,
            pairs: Pairs::Korean,
            differs: &[],
            unknown: &[],
            knows_private: true,
        },
    },
    Legacy {
        name: "gbk",
        form: Form::Double {
            encoding: encoding_rs::GBK,
            pairs: Pairs::Chinese,
            differs: &[],
            unknown: &[
                (0xA2E3, 0xA2E3),
                (0xA3A0, 0xA3A0),
                (0xA6D9, 0xA6DF),
                (0xA6EC, 0xA6ED),
                (0xA6F3, 0xA6F3),
                (0xA8BC, 0xA8BC),
                (0xA8BF, 0xA8BF),
                (0xA989, 0xA995),
                (0xFE50, 0xFEA0),
            ],
            knows_private: false,
        },
    },
    Legacy {
        name: "gb2312",
        form: Form::Double {
            encoding: encoding_rs::GBK,
            pairs: Pairs::Chinese1980,
            differs: &[(0xA1A4, '\u{30FB}'), (0xA1AA, '\u{2015}')],
            unknown: &[(0xA2A1, 0xA2AA), (0xA2E3, 0xA2E3), (0xA6D9, 0xA6F5), (0xA8BB, 0xA8C0)],
            knows_private: false,
        },
    },
    wide("ucs2", Form::Ucs2),
    wide("utf16", Form::Utf16),
    wide("utf16le", Form::Utf16Le),
    wide("utf32", Form::Utf32),
];

impl Legacy {
    /// The set of this name, where it is converted.
    pub(super) fn of(name: &str) -> Option<Self> {
        SETS.into_iter().find(|set| set.name == name)
    }

    /// Whether bytes below 0x80 are ASCII wherever they stand alone.
    pub(crate) fn has_ascii(self) -> bool {
        matches!(self.form, Form::Single { .. } | Form::Double { .. })
    }

    /// Writes a text as UTF-8.
    pub(crate) fn print(self, text: &[u8], out: &mut BytesMut) {
        out.reserve(text.len() + text.len() / 2);
        match self.form {
            Form::Single { encoding, has_controls, differs } => {
                for byte in text {
                    put(single_byte(*byte, encoding, has_controls, differs), out);
                }
            }
            Form::Double { .. } => self.print_double(text, out),
            Form::Ucs2 => {
                for unit in units(text, u16::from_be_bytes) {
                    put(char::from_u32(unit.into()).unwrap_or(UNKNOWN), out);
                }
            }
            Form::Utf16 => print_utf16(units(text, u16::from_be_bytes), out),
            Form::Utf16Le => print_utf16(units(text, u16::from_le_bytes), out),
            Form::Utf32 => {
                for number in text.chunks(4) {
                    let number = number.first_chunk().copied().map(u32::from_be_bytes);
                    put(number.and_then(char::from_u32).unwrap_or(UNKNOWN), out);
                }
            }
        }
    }

    fn print_double(self, mut text: &[u8], out: &mut BytesMut) {
        let Form::Double { encoding, pairs, .. } = self.form else { return };
        while let Some((first, rest)) = text.split_first() {
            if first.is_ascii() {
                out.put_u8(*first);
                text = rest;
                continue;
            }
            match rest.split_first() {
                Some((second, after)) if pairs.are(*first, *second) => {
                    put(self.pair([*first, *second]), out);
                    text = after;
                }
                _ => {
                    put(decode(encoding, &[*first]), out);
                    text = rest;
                }
            }
        }
    }

    fn pair(self, pair: [u8; 2]) -> char {
        let Form::Double { encoding, differs, unknown, knows_private, .. } = self.form else {
            return UNKNOWN;
        };
        let number = u16::from_be_bytes(pair);
        if let Some((_, other)) = differs.iter().find(|(differing, _)| *differing == number) {
            return *other;
        }
        if unknown.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
            return UNKNOWN;
        }
        match decode(encoding, &pair) {
            '\u{E000}'..='\u{F8FF}' if !knows_private => UNKNOWN,
            character => character,
        }
    }
}

impl Pairs {
    fn are(self, first: u8, second: u8) -> bool {
        match self {
            Self::Japanese => {
                matches!(first, 0x81..=0x9F | 0xE0..=0xFC)
                    && matches!(second, 0x40..=0x7E | 0x80..=0xFC)
            }
            Self::Korean => {
                matches!(first, 0x81..=0xFE)
                    && matches!(second, 0x41..=0x5A | 0x61..=0x7A | 0x81..=0xFE)
            }
            Self::Chinese => {
                matches!(first, 0x81..=0xFE) && matches!(second, 0x40..=0x7E | 0x80..=0xFE)
            }
            Self::Chinese1980 => matches!(first, 0xA1..=0xF7) && matches!(second, 0xA1..=0xFE),
        }
    }
}

fn single_byte(
    byte: u8,
    encoding: &'static Encoding,
    has_controls: bool,
    differs: &[(u8, char)],
) -> char {
    if byte.is_ascii() || has_controls && byte < 0xA0 {
        return char::from(byte);
    }
    match differs.iter().find(|(differing, _)| *differing == byte) {
        Some((_, other)) => *other,
        None => decode(encoding, &[byte]),
    }
}

/// The character that these bytes are.
fn decode(encoding: &'static Encoding, bytes: &[u8]) -> char {
    let (text, is_broken) = encoding.decode_without_bom_handling(bytes);
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(character), None) if !is_broken => character,
        _ => UNKNOWN,
    }
}

fn units(text: &[u8], number: fn([u8; 2]) -> u16) -> impl Iterator<Item = u16> {
    text.chunks(2)
        .map(move |unit| unit.first_chunk().copied().map_or(u16::from_be_bytes([0, b'?']), number))
}

fn print_utf16(units: impl Iterator<Item = u16>, out: &mut BytesMut) {
    for character in char::decode_utf16(units) {
        put(character.unwrap_or(UNKNOWN), out);
    }
}

fn put(character: char, out: &mut BytesMut) {
    out.put_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf8(set: &str, text: &[u8]) -> String {
        let mut out = BytesMut::new();
        Legacy::of(set).unwrap().print(text, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn texts_of_many_sets_become_utf8() {
        for (set, text, expected) in [
            ("cp1251", &b"\xCF\xF0\xE8\xE2\xE5\xF2, 1\x98"[..], "Привет, 1?"),
            ("koi8r", b"\xF0\xD2\xC9\xD7\xC5\xD4", "Привет"),
            ("latin2", b"\xA3\xF3d\xBC", "Łódź"),
            ("greek", b"\xC1\xE8\xDE\xED\xE1\xA4", "Αθήνα?"),
            ("latin5", b"\xDDstanbul\x80", "İstanbul\u{80}"),
            ("tis620", b"\xA1\xDB", "ก\u{FFFD}"),
            ("gbk", b"a\xD6\xD0\xCE\xC4\xA1\x40", "a中文?"),
            ("gb2312", b"\xD6\xD0\xA1\xA4", "中・"),
            ("sjis", b"\x83\x5C\xB1\x81\x60", "ソｱ〜"),
            ("cp932", b"\x83\x5C\x87\x40", "ソ①"),
            ("euckr", b"\xC7\xD1", "한"),
            ("ucs2", b"\x04\x1F\xD8\x00", "П?"),
            ("utf16", b"\xD8\x3D\xDE\x00\x00a", "😀a"),
            ("utf16le", b"\x3D\xD8\x00\xDEa\x00", "😀a"),
            ("utf32", b"\0\x01\xF6\0\0\0\0a", "😀a"),
        ] {
            assert_eq!(utf8(set, text), expected, "{set}");
        }
        for refused in ["big5", "ujis", "gb18030", "cp850", "swe7"] {
            assert_eq!(Legacy::of(refused), None, "{refused}");
        }
    }

    #[test]
    fn a_text_that_ends_inside_a_character_is_converted_up_to_there() {
        for set in SETS {
            for text in [&b"\xD6"[..], b"a\x81", b"\0\0\0", b"\xFF\xFF\xFF\xFF\xFF"] {
                let mut out = BytesMut::new();
                set.print(text, &mut out);
                assert!(str::from_utf8(&out).is_ok(), "{}", set.name);
            }
        }
    }
}
