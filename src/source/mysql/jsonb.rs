//! MySQL's binary JSON to the text that SELECT prints.
//!
//! Owns the binary form (`sql-common/json_binary.h`) and the printed one (`wrapper_to_string` in
//! `sql-common/json_dom.cc`, as of 8.0.14, which first printed a double of 1 as `1.0`).
//!
//! ```text
//! document:  tag u8 | value
//! object:    count | size | (key offset | key length u16)… | (tag u8 | offset or value)…
//!            | keys | values
//! array:     count | size | (tag u8 | offset or value)… | values
//! string:    length, 7 bits a byte | UTF-8
//! opaque:    column type u8 | length, 7 bits a byte | bytes
//! ```
//!
//! Counts, sizes and offsets have two bytes in a small container and four in a large one, and
//! count from the container's own beginning. A value that fits where its offset would stand is
//! kept there. A document that was changed in place has gaps, and values in another order than
//! their entries, but no two values share bytes: so the work is bounded by the bytes there are,
//! and a hostile document, whose entries all point to one value, is refused.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, BytesMut};

use super::decimal::{DecimalError, Shape};
use super::float::{self, FloatError};
use super::temporal::{self, TemporalError};

/// The server nests no deeper, in reading and in printing (`JSON_DOCUMENT_MAX_DEPTH`).
const DEPTH_MAX: usize = 100;

const SMALL_OBJECT: u8 = 0x00;
const LARGE_OBJECT: u8 = 0x01;
const SMALL_ARRAY: u8 = 0x02;
const LARGE_ARRAY: u8 = 0x03;
const LITERAL: u8 = 0x04;
const INT16: u8 = 0x05;
const UINT16: u8 = 0x06;
const INT32: u8 = 0x07;
const UINT32: u8 = 0x08;
const INT64: u8 = 0x09;
const UINT64: u8 = 0x0A;
const DOUBLE: u8 = 0x0B;
const STRING: u8 = 0x0C;
const OPAQUE: u8 = 0x0F;

// Column types of opaque values that have a printed form (`Json_wrapper::type`).
const TYPE_TIMESTAMP: u8 = 7;
const TYPE_DATE: u8 = 10;
const TYPE_TIME: u8 = 11;
const TYPE_DATETIME: u8 = 12;
const TYPE_NEWDECIMAL: u8 = 246;

/// A document that cannot be printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonbError {
    /// Something points outside of what it is in, or is of a kind that does not exist.
    #[error("malformed binary JSON: {what}")]
    Malformed {
        /// What made no sense.
        what: &'static str,
    },
    /// Values that share bytes.
    #[error("malformed binary JSON: values overlap")]
    Overlap,
    /// Deeper than the server nests.
    #[error("binary JSON is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A decimal within.
    #[error(transparent)]
    Decimal(#[from] DecimalError),
    /// A double within.
    #[error(transparent)]
    Float(#[from] FloatError),
    /// A date or time within.
    #[error(transparent)]
    Temporal(#[from] TemporalError),
}

const fn malformed(what: &'static str) -> JsonbError {
    JsonbError::Malformed { what }
}

/// Appends a document's text. After an error `out` holds some of it.
pub(crate) fn print(document: &[u8], out: &mut BytesMut) -> Result<(), JsonbError> {
    let Some((tag, value)) = document.split_first() else {
        // What IGNORE leaves in a NOT NULL column without a value (`json_binary::parse_binary`).
        out.put_slice(b"null");
        return Ok(());
    };
    Printer { out, budget: document.len() }.value(*tag, value, 0)
}

struct Printer<'o> {
    out: &'o mut BytesMut,
    /// Bytes of the document that were not yet printed.
    budget: usize,
}

/// Small or large container: width of its counts, sizes and offsets.
#[derive(Clone, Copy)]
enum Size {
    Small,
    Large,
}

impl Size {
    const fn width(self) -> usize {
        match self {
            Size::Small => 2,
            Size::Large => 4,
        }
    }

    /// A count, size or offset off the front of `bytes`.
    #[inline]
    fn read(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Size::Small => bytes.first_chunk().map(|two| usize::from(u16::from_le_bytes(*two))),
            Size::Large => {
                bytes.first_chunk().and_then(|four| u32::from_le_bytes(*four).try_into().ok())
            }
        }
    }

    /// Whether values of `tag` stand in their entry.
    const fn inlines(self, tag: u8) -> bool {
        match tag {
            LITERAL | INT16 | UINT16 => true,
            INT32 | UINT32 => matches!(self, Size::Large),
            _ => false,
        }
    }
}

impl Printer<'_> {
    /// Counts `length` bytes of the document as printed.
    #[inline]
    fn spend(&mut self, length: usize) -> Result<(), JsonbError> {
        self.budget = self.budget.checked_sub(length).ok_or(JsonbError::Overlap)?;
        Ok(())
    }

    /// Prints the value that `bytes` begins with.
    fn value(&mut self, tag: u8, bytes: &[u8], depth: usize) -> Result<(), JsonbError> {
        match tag {
            SMALL_OBJECT => self.object(Size::Small, bytes, depth),
            LARGE_OBJECT => self.object(Size::Large, bytes, depth),
            SMALL_ARRAY => self.array(Size::Small, bytes, depth),
            LARGE_ARRAY => self.array(Size::Large, bytes, depth),
            LITERAL => {
                self.spend(1)?;
                self.inlined(tag, bytes)
            }
            INT16 | UINT16 => {
                self.spend(2)?;
                self.inlined(tag, bytes)
            }
            INT32 | UINT32 => {
                self.spend(4)?;
                self.inlined(tag, bytes)
            }
            INT64 => {
                let number = i64::from_le_bytes(self.number(bytes)?);
                self.integer(number);
                Ok(())
            }
            UINT64 => {
                let number = u64::from_le_bytes(self.number(bytes)?);
                self.integer(number);
                Ok(())
            }
            DOUBLE => {
                let number = f64::from_le_bytes(self.number(bytes)?);
                Ok(float::print_json_double(number, self.out)?)
            }
            STRING => {
                let text = self.sized(bytes)?;
                self.string(text);
                Ok(())
            }
            OPAQUE => self.opaque(bytes),
            _ => Err(malformed("unknown kind of value")),
        }
    }

    /// Prints a value that may stand in its container's entry.
    fn inlined(&mut self, tag: u8, bytes: &[u8]) -> Result<(), JsonbError> {
        const SHORT: JsonbError = malformed("a number is cut short");
        match tag {
            LITERAL => match bytes.first() {
                Some(0) => self.out.put_slice(b"null"),
                Some(1) => self.out.put_slice(b"true"),
                Some(2) => self.out.put_slice(b"false"),
                _ => return Err(malformed("unknown literal")),
            },
            INT16 => self.integer(i16::from_le_bytes(*bytes.first_chunk().ok_or(SHORT)?)),
            UINT16 => self.integer(u16::from_le_bytes(*bytes.first_chunk().ok_or(SHORT)?)),
            INT32 => self.integer(i32::from_le_bytes(*bytes.first_chunk().ok_or(SHORT)?)),
            UINT32 => self.integer(u32::from_le_bytes(*bytes.first_chunk().ok_or(SHORT)?)),
            _ => return Err(malformed("unknown kind of value")),
        }
        Ok(())
    }

    fn number(&mut self, bytes: &[u8]) -> Result<[u8; 8], JsonbError> {
        self.spend(8)?;
        bytes.first_chunk().copied().ok_or(malformed("a number is cut short"))
    }

    #[inline]
    fn integer(&mut self, number: impl itoa::Integer) {
        self.out.put_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    fn object(&mut self, size: Size, bytes: &[u8], depth: usize) -> Result<(), JsonbError> {
        let (count, container) = self.header(size, bytes, depth)?;
        let key_width = size.width() + 2;
        let (keys, values) = self.entries(size, container, count, key_width)?;
        self.out.put_u8(b'{');
        for (index, (key, entry)) in keys.zip(values).enumerate() {
            if index > 0 {
                self.out.put_slice(b", ");
            }
            self.key(size, key, container)?;
            self.out.put_slice(b": ");
            self.entry(size, entry, container, depth)?;
        }
        self.out.put_u8(b'}');
        Ok(())
    }

    fn array(&mut self, size: Size, bytes: &[u8], depth: usize) -> Result<(), JsonbError> {
        let (count, container) = self.header(size, bytes, depth)?;
        let (_, values) = self.entries(size, container, count, 0)?;
        self.out.put_u8(b'[');
        for (index, entry) in values.enumerate() {
            if index > 0 {
                self.out.put_slice(b", ");
            }
            self.entry(size, entry, container, depth)?;
        }
        self.out.put_u8(b']');
        Ok(())
    }

    /// Count of members, and the container cut to its own size.
    fn header<'d>(
        &mut self,
        size: Size,
        bytes: &'d [u8],
        depth: usize,
    ) -> Result<(usize, &'d [u8]), JsonbError> {
        if depth >= DEPTH_MAX {
            return Err(JsonbError::TooDeep);
        }
        self.spend(2 * size.width())?;
        let count = size.read(bytes);
        let length = bytes.get(size.width()..).and_then(|rest| size.read(rest));
        let container = length.and_then(|length| bytes.get(..length));
        count.zip(container).ok_or(malformed("a container is longer than what it is in"))
    }

    /// The entries of keys and those of values; no keys where `key_width` is 0.
    fn entries<'d>(
        &mut self,
        size: Size,
        container: &'d [u8],
        count: usize,
        key_width: usize,
    ) -> Result<(std::slice::ChunksExact<'d, u8>, std::slice::ChunksExact<'d, u8>), JsonbError>
    {
        const SHORT: JsonbError = malformed("a container is too short for its members");
        let value_width = size.width() + 1;
        let length = count.checked_mul(key_width + value_width).ok_or(SHORT)?;
        let start = 2 * size.width();
        let entries = container.get(start..).and_then(|rest| rest.get(..length)).ok_or(SHORT)?;
        self.spend(length)?;
        let (keys, values) = entries.split_at_checked(count * key_width).ok_or(SHORT)?;
        Ok((keys.chunks_exact(key_width.max(1)), values.chunks_exact(value_width)))
    }

    #[inline]
    fn key(&mut self, size: Size, entry: &[u8], container: &[u8]) -> Result<(), JsonbError> {
        let offset = size.read(entry);
        let length = entry.get(size.width()..).and_then(|rest| Size::Small.read(rest));
        let key = offset.zip(length).and_then(|(offset, length)| {
            container.get(offset..).and_then(|rest| rest.get(..length))
        });
        let key = key.ok_or(malformed("a key is outside of its object"))?;
        self.spend(key.len())?;
        self.string(key);
        Ok(())
    }

    #[inline]
    fn entry(
        &mut self,
        size: Size,
        entry: &[u8],
        container: &[u8],
        depth: usize,
    ) -> Result<(), JsonbError> {
        const OUTSIDE: JsonbError = malformed("a value is outside of its container");
        let (tag, place) = entry.split_first().ok_or(OUTSIDE)?;
        if size.inlines(*tag) {
            return self.inlined(*tag, place);
        }
        let offset = size.read(place).ok_or(OUTSIDE)?;
        // A value never is where its container's header is: so nesting comes to an end.
        if offset < 2 * size.width() {
            return Err(OUTSIDE);
        }
        let value = container.get(offset..).ok_or(OUTSIDE)?;
        self.value(*tag, value, depth + 1)
    }

    /// Bytes behind their length of 7 bits a byte, the lowest first, at most 32 in all.
    fn sized<'d>(&mut self, bytes: &'d [u8]) -> Result<&'d [u8], JsonbError> {
        const SHORT: JsonbError = malformed("a string is cut short");
        let mut length = 0_u64;
        for (index, byte) in bytes.iter().take(5).enumerate() {
            length |= u64::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                let length = u32::try_from(length).ok().and_then(|length| length.try_into().ok());
                let length: usize = length.ok_or(SHORT)?;
                let (_, rest) = bytes.split_at_checked(index + 1).ok_or(SHORT)?;
                let text = rest.get(..length).ok_or(SHORT)?;
                self.spend(index + 1 + length)?;
                return Ok(text);
            }
        }
        Err(SHORT)
    }

    /// Prints a string in quotes. Only control characters, quotes and backslashes are escaped
    /// (`double_quote`), so nearly all of it is copied in runs.
    fn string(&mut self, text: &[u8]) {
        self.out.reserve(text.len() + 2);
        self.out.put_u8(b'"');
        let mut rest = text;
        loop {
            let (plain, special) = rest.split_at_checked(plain_length(rest)).unwrap_or((rest, &[]));
            self.out.put_slice(plain);
            let Some((byte, behind)) = special.split_first() else { break };
            self.escape(*byte);
            rest = behind;
        }
        self.out.put_u8(b'"');
    }

    fn escape(&mut self, byte: u8) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let short = match byte {
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0C => b'f',
            b'\r' => b'r',
            b'"' | b'\\' => byte,
            _ => {
                let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
                let (high, low) = (digit(byte >> 4), digit(byte & 15));
                self.out.put_slice(&[b'\\', b'u', b'0', b'0', high, low]);
                return;
            }
        };
        self.out.put_slice(&[b'\\', short]);
    }

    fn opaque(&mut self, bytes: &[u8]) -> Result<(), JsonbError> {
        let (column_type, rest) =
            bytes.split_first().ok_or(malformed("an opaque value is cut short"))?;
        self.spend(1)?;
        let value = self.sized(rest)?;
        match *column_type {
            TYPE_NEWDECIMAL => {
                let [precision, scale, digits @ ..] = value else {
                    return Err(malformed("a decimal is cut short"));
                };
                return Ok(Shape::new(*precision, *scale)?.print(digits, self.out)?);
            }
            TYPE_DATE => self.quoted(|out| temporal::print_json_date(value, out))?,
            TYPE_TIME => self.quoted(|out| temporal::print_json_time(value, out))?,
            TYPE_DATETIME | TYPE_TIMESTAMP => {
                self.quoted(|out| temporal::print_json_datetime(value, out))?;
            }
            other => {
                self.out.put_slice(b"\"base64:type");
                self.integer(other);
                self.out.put_u8(b':');
                self.base64(value);
                self.out.put_u8(b'"');
            }
        }
        Ok(())
    }

    fn quoted(
        &mut self,
        print: impl FnOnce(&mut BytesMut) -> Result<(), TemporalError>,
    ) -> Result<(), JsonbError> {
        self.out.put_u8(b'"');
        print(self.out)?;
        self.out.put_u8(b'"');
        Ok(())
    }

    /// Base64 in lines of 76 characters, the line ends escaped (`base64_encode` in
    /// `mysys/base64.cc`, then `double_quote`).
    fn base64(&mut self, bytes: &[u8]) {
        const LINE_GROUPS: usize = 76 / 4;
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for (index, group) in bytes.chunks(3).enumerate() {
            if index > 0 && index % LINE_GROUPS == 0 {
                self.out.put_slice(b"\\n");
            }
            let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for place in 0..4 {
                let digit = ALPHABET.get((bits >> (18 - 6 * place) & 63) as usize);
                let is_padding = place as usize > group.len();
                self.out.put_u8(if is_padding { b'=' } else { *digit.unwrap_or(&b'=') });
            }
        }
    }
}

/// How many bytes come before the first that must be escaped.
#[inline]
fn plain_length(text: &[u8]) -> usize {
    let (words, _) = text.as_chunks::<8>();
    let mut length = 0;
    for word in words {
        if has_special(u64::from_le_bytes(*word)) {
            break;
        }
        length += 8;
    }
    // The end by a last word that overlaps the one before.
    if text.len() - length < 8 && text.last_chunk().is_some_and(is_plain) {
        return text.len();
    }
    let tail = text.get(length..).unwrap_or_default();
    length + tail.iter().take_while(|byte| !matches!(byte, 0..=0x1F | b'"' | b'\\')).count()
}

fn is_plain(word: &[u8; 8]) -> bool {
    !has_special(u64::from_le_bytes(*word))
}

/// Whether one of eight bytes is a control character, a quote or a backslash. Bit tricks after
/// Sean Eron Anderson: `(x - n) & ~x & 0x80` is set where a byte is less than n (up to 128).
#[inline]
const fn has_special(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const fn below(word: u64, limit: u64) -> u64 {
        word.wrapping_sub(ONES * limit) & !word
    }
    let quote = below(word ^ (ONES * b'"' as u64), 1);
    let backslash = below(word ^ (ONES * b'\\' as u64), 1);
    (below(word, 0x20) | quote | backslash) & (ONES << 7) != 0
}

#[cfg(test)]
mod tests;
