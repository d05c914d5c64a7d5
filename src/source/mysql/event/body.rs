//! The bodies of those events that are read, apart from GTIDs, table maps and rows' values.
//!
//! Owns their layouts; knows nothing of what they mean for a transaction.

use std::str;

use super::{Checksum, EventError, HEADER_LENGTH, kind};
use crate::source::mysql::cursor::{Cursor, MalformedError};

/// FORMAT_DESCRIPTION_EVENT, first of every file, and first of a connection:
///
/// ```text
/// version: u16 (4) | server version: 50, zero padded | created: u32 | header length: u8 (19)
/// post-header length of each type from 1 on: u8… | checksum algorithm: u8
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormatDescription {
    /// Of the events behind it.
    pub(crate) checksum: Checksum,
}

/// Post-header lengths that this decoder reads by. A server that states another one writes
/// events that would be misread.
const POST_HEADER_LENGTHS: [(u8, u8); 11] = [
    (kind::QUERY_EVENT, 13),
    (kind::ROTATE_EVENT, 8),
    (kind::EXECUTE_LOAD_QUERY_EVENT, 26),
    (kind::TABLE_MAP_EVENT, 8),
    (kind::WRITE_ROWS_EVENT_V1, 8),
    (kind::UPDATE_ROWS_EVENT_V1, 8),
    (kind::DELETE_ROWS_EVENT_V1, 8),
    (kind::WRITE_ROWS_EVENT, 10),
    (kind::UPDATE_ROWS_EVENT, 10),
    (kind::DELETE_ROWS_EVENT, 10),
    (kind::WRITE_ROWS_COMPRESSED_EVENT_V1, 8),
];

impl FormatDescription {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, EventError> {
        let unsupported = |what, value| Err(EventError::Unsupported { what, value });
        let mut cursor = Cursor::new(body, "FORMAT_DESCRIPTION_EVENT");
        let version = cursor.u16()?;
        if version != 4 {
            return unsupported("binlog version", version.into());
        }
        cursor.take(50)?;
        cursor.u32()?;
        let header_length = cursor.u8()?;
        if usize::from(header_length) != HEADER_LENGTH {
            return unsupported("header length", header_length.into());
        }
        let rest = cursor.take(cursor.remaining())?;
        let (algorithm, lengths) = rest.split_last().ok_or(cursor.malformed())?;
        for (kind, expected) in POST_HEADER_LENGTHS {
            // A type that the server does not write is not listed, or stands there with 0.
            let stated = lengths.get(usize::from(kind) - 1).copied().unwrap_or_default();
            if stated != expected && stated != 0 {
                return unsupported("post-header length", stated.into());
            }
        }
        let checksum = match algorithm {
            0 => Checksum::Off,
            1 => Checksum::Crc32,
            other => return unsupported("checksum algorithm", (*other).into()),
        };
        Ok(Self { checksum })
    }
}

/// ROTATE_EVENT, last of a file, and artificial before the first event of every file:
///
/// ```text
/// position in the next file: u64 | its name
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rotate<'a> {
    pub(crate) position: u64,
    pub(crate) file: &'a str,
}

impl<'a> Rotate<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, MalformedError> {
        let mut cursor = Cursor::new(body, "ROTATE_EVENT");
        let position = super::varint::uint(&mut cursor, 8)?;
        let error = cursor.malformed();
        let file = str::from_utf8(cursor.take(cursor.remaining())?).ok();
        Ok(Self { position, file: file.filter(|file| !file.is_empty()).ok_or(error)? })
    }
}

/// QUERY_EVENT:
///
/// ```text
/// thread: u32 | seconds: u32 | schema's length: u8 | error: u16 | variables' length: u16
/// variables | schema | 0 | text
/// ```
///
/// QUERY_COMPRESSED_EVENT (MariaDB) is the same with a compressed text. EXECUTE_LOAD_QUERY_EVENT
/// has 13 bytes more before the variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query<'a> {
    /// Where unqualified names belong.
    pub(crate) schema: &'a [u8],
    pub(crate) text: &'a [u8],
}

impl<'a> Query<'a> {
    pub(crate) fn parse(event: u8, body: &'a [u8]) -> Result<Self, MalformedError> {
        let load = event == kind::EXECUTE_LOAD_QUERY_EVENT;
        let what = if load { "EXECUTE_LOAD_QUERY_EVENT" } else { "QUERY_EVENT" };
        let mut cursor = Cursor::new(body, what);
        cursor.take(8)?;
        let schema_length = cursor.u8()?;
        cursor.u16()?;
        let variables_length = cursor.u16()?;
        if load {
            cursor.take(13)?;
        }
        cursor.take(variables_length.into())?;
        let schema = cursor.take(schema_length.into())?;
        if cursor.u8()? != 0 {
            return Err(cursor.malformed());
        }
        Ok(Self { schema, text: cursor.take(cursor.remaining())? })
    }
}

/// XA_PREPARE_LOG_EVENT, last of a transaction between XA START and XA PREPARE (0), and on MySQL
/// also of one that ended in `XA COMMIT … ONE PHASE` (1):
///
/// ```text
/// one phase: u8 | format: u32 | gtrid's length: u32 | bqual's length: u32 | gtrid | bqual
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct XaPrepare {
    pub(crate) one_phase: bool,
    /// What names it, as XA COMMIT is logged with it: `X'6F6E65',X'',1`.
    pub(crate) id: Vec<u8>,
}

impl XaPrepare {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedError> {
        let mut cursor = Cursor::new(body, "XA_PREPARE_LOG_EVENT");
        let one_phase = cursor.u8()? != 0;
        let format = cursor.u32()?;
        let lengths = (cursor.u32()?, cursor.u32()?);
        let mut id = String::new();
        for length in [lengths.0, lengths.1] {
            // MAXGTRIDSIZE and MAXBQUALSIZE.
            let length = usize::try_from(length).ok().filter(|length| *length <= 64);
            let part = cursor.take(length.ok_or(cursor.malformed())?)?;
            id.push_str("X'");
            id.extend(part.iter().map(|byte| format!("{byte:02X}")));
            id.push_str("',");
        }
        id.push_str(&format.to_string());
        match cursor.is_empty() {
            true => Ok(Self { one_phase, id: id.into_bytes() }),
            false => Err(cursor.malformed()),
        }
    }
}

/// The head of all row events; the count of columns follows:
///
/// ```text
/// table: u48 | flags: u16 (1 = last of its statement) | version 2: extra length + 2: u16 | extra
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsHead {
    /// `None`: no table and no rows, an event that only ends its statement.
    pub(crate) table: Option<u64>,
    /// Table maps that came before are not used again.
    pub(crate) ends_statement: bool,
    /// Where the count of columns begins in the body.
    pub(crate) length: usize,
}

impl RowsHead {
    const TABLE_ID_NONE: u64 = 0xFFFF_FFFF_FFFF;
    const STMT_END_F: u16 = 0x0001;

    pub(crate) fn parse(version: RowsVersion, body: &[u8]) -> Result<Self, MalformedError> {
        let mut cursor = Cursor::new(body, "row event");
        let table = Some(cursor.u48()?).filter(|table| *table != Self::TABLE_ID_NONE);
        let flags = cursor.u16()?;
        if version == RowsVersion::Two {
            let extra = usize::from(cursor.u16()?);
            cursor.take(extra.checked_sub(2).ok_or(cursor.malformed())?)?;
        }
        let length = body.len() - cursor.remaining();
        Ok(Self { table, ends_statement: flags & Self::STMT_END_F != 0, length })
    }
}

/// Version of a row event: MariaDB writes the first, MySQL the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowsVersion {
    One,
    Two,
}

/// INCIDENT_EVENT: something happened that the binlog does not tell.
///
/// ```text
/// incident: u16 | message's length: u8 | message
/// ```
pub(crate) fn incident(body: &[u8]) -> Result<String, MalformedError> {
    let mut cursor = Cursor::new(body, "INCIDENT_EVENT");
    let number = cursor.u16()?;
    let length = cursor.u8()?;
    let message = String::from_utf8_lossy(cursor.take(length.into())?).into_owned();
    Ok(if message.is_empty() { format!("incident {number}") } else { message })
}
