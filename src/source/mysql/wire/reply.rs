//! What a server answers to a command: OK, an end, or a row of the text protocol.

use bytes::Bytes;

/// First byte of an OK packet, and of a binlog event's.
pub(crate) const OK: u8 = 0x00;
/// First byte of the end of rows or of a binlog; also of a row whose first value is huge.
pub(crate) const EOF: u8 = 0xfe;
/// First byte of an error.
pub(crate) const ERR: u8 = 0xff;

/// A length in a row that stands for null.
const NULL: u8 = 0xfb;
/// An end of rows is shorter than this; a row that begins with the same byte is longer.
const EOF_BYTES_MAX: usize = 9;

/// A row of a query: every value as text, `None` for null.
pub type Row = Vec<Option<String>>;

/// Whether a payload is the end of rows or of a stream.
pub(crate) fn is_eof(payload: &[u8]) -> bool {
    payload.first() == Some(&EOF) && payload.len() < EOF_BYTES_MAX
}

/// An OK packet.
///
/// ```text
/// 0x00 │ rows lenenc │ last insert id lenenc │ status u16 │ warnings u16 │ …
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OkPacket {
    /// Rows that a statement found, also where it changed nothing in them: we ask for
    /// `CLIENT_FOUND_ROWS`.
    pub(crate) rows: u64,
}

impl OkPacket {
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader(payload.strip_prefix(&[OK])?);
        Some(Self { rows: reader.lenenc()? })
    }
}

/// ```text
/// { 0xfb for null │ or: length lenenc, bytes }*
/// ```
///
/// `None` where a length or the encoding is wrong, or the number of values is not `columns`.
pub(crate) fn parse_row(payload: &Bytes, columns: usize) -> Option<Row> {
    let mut reader = Reader(payload);
    // Each value takes a byte at least, so the count is no larger than what is there.
    let mut row = Vec::with_capacity(columns.min(payload.len()));
    while !reader.0.is_empty() {
        if reader.0.first() == Some(&NULL) {
            reader.u8()?;
            row.push(None);
            continue;
        }
        let length = usize::try_from(reader.lenenc()?).ok()?;
        let value = std::str::from_utf8(reader.bytes(length)?).ok()?;
        row.push(Some(value.to_owned()));
    }
    (row.len() == columns).then_some(row)
}

/// Reads from the front; `None` where too little is left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Up to a zero byte, which is skipped; or to the end.
    pub(crate) fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0);
        let (text, rest) = self.0.split_at_checked(end.unwrap_or(self.0.len())).unwrap_or_default();
        self.0 = rest.get(1..).unwrap_or_default();
        text
    }

    /// A number in one to nine bytes.
    pub(crate) fn lenenc(&mut self) -> Option<u64> {
        match self.u8()? {
            0xfc => self.u16().map(u64::from),
            0xfd => self.array::<3>().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]).into()),
            0xfe => self.array().map(u64::from_le_bytes),
            // 0xfb is null and 0xff an error: no numbers.
            0xfb | 0xff => None,
            small => Some(small.into()),
        }
    }
}
