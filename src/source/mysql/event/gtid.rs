//! The events that begin a transaction and name it.
//!
//! Owns the three layouts in which MySQL writes a GTID, and MariaDB's.

use std::sync::Arc;

use super::varint::{positive, uint, varint};
use super::{Header, kind};
use crate::source::mysql::cursor::{Cursor, MalformedError};
use crate::source::mysql::gtid::{Gtid, tag};

/// What begins a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begin {
    /// `None` where the server writes none (`gtid_mode=OFF`).
    pub(crate) gtid: Option<Gtid>,
    /// Microseconds since 1970, UTC: when it was first committed. MariaDB tells whole seconds,
    /// and those of its first statement.
    pub(crate) committed_at_micros: i64,
    /// The part of that which every server of a failover has: the microsecond of the first commit,
    /// else the second.
    pub(crate) moment: Moment,
    pub(crate) form: Form,
}

/// When a transaction was first committed, as far as every server that has it says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Microseconds since 1970.
    Exact(i64),
    /// The same, of a whole second: many transactions may share it.
    Second(i64),
}

/// What kind of transaction follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// MySQL does not tell here: a QUERY_EVENT with BEGIN or XA START follows, or a single one
    /// that is the whole transaction, or a compressed one.
    Announced,
    /// MariaDB: events follow up to a COMMIT, as if after BEGIN.
    Group,
    /// MariaDB: a group that ends in XA PREPARE.
    PreparedXa,
    /// MariaDB: a single statement follows.
    Standalone,
}

/// No source of a GTID and no clock is beyond this: `GNO_END` − 1.
const NUMBER_MAX: u64 = i64::MAX as u64 - 1;

impl Begin {
    pub(crate) fn parse(header: &Header, body: &[u8]) -> Result<Self, MalformedError> {
        let seconds = i64::from(header.timestamp) * 1_000_000;
        match header.kind {
            kind::GTID_EVENT => mariadb(header, body, seconds),
            kind::GTID_TAGGED_LOG_EVENT => tagged(body, seconds),
            kind::ANONYMOUS_GTID_LOG_EVENT => {
                let begin = untagged(body, seconds, false)?;
                Ok(Self { gtid: None, ..begin })
            }
            _ => untagged(body, seconds, true),
        }
    }
}

/// GTID_LOG_EVENT and ANONYMOUS_GTID_LOG_EVENT:
///
/// ```text
/// flags: u8 | uuid: 16 | number: u64
/// 2: u8 | last committed: u64 | sequence: u64                        (5.7+)
/// committed here: u55, bit 55: first committed follows | u56?        (8.0+, microseconds)
/// length, versions: not read
/// ```
fn untagged(body: &[u8], seconds: i64, named: bool) -> Result<Begin, MalformedError> {
    const LOGICAL_TIMESTAMP_TYPECODE: u8 = 2;
    const ORIGINAL_FOLLOWS: u64 = 1 << 55;
    let mut cursor = Cursor::new(body, "GTID_LOG_EVENT");
    cursor.u8()?;
    let source = uuid(&mut cursor)?;
    let number = uint(&mut cursor, 8)?;
    if named && !(1..=NUMBER_MAX).contains(&number) {
        return Err(cursor.malformed());
    }
    let (mut committed_at_micros, mut moment) = (seconds, Moment::Second(seconds));
    if !cursor.is_empty() && cursor.u8()? == LOGICAL_TIMESTAMP_TYPECODE {
        cursor.take(16)?;
        if !cursor.is_empty() {
            let here = uint(&mut cursor, 7)?;
            let first = if here & ORIGINAL_FOLLOWS == 0 { here } else { uint(&mut cursor, 7)? };
            committed_at_micros = micros(first, here & !ORIGINAL_FOLLOWS, seconds);
            moment = exact(first, seconds);
        }
    }
    let gtid = Some(Gtid::MySql { source, tag: None, number });
    Ok(Begin { gtid, committed_at_micros, moment, form: Form::Announced })
}

/// GTID_TAGGED_LOG_EVENT (8.3+), in the format of `mysql::serialization`
/// (`libs/mysql/serialization/readme.md`): every integer is a varint.
///
/// ```text
/// version (1) | size of all this | last field that may not be left out
/// then fields, ascending, each behind its number:
///   0 flags | 1 uuid: 16 varints | 2 number | 3 tag: length, bytes | 4 last committed
///   5 sequence | 6 committed here | 7 first committed, where it differs | 8… not read
/// ```
fn tagged(body: &[u8], seconds: i64) -> Result<Begin, MalformedError> {
    let mut cursor = Cursor::new(body, "GTID_TAGGED_LOG_EVENT");
    if varint(&mut cursor)? != 1 {
        return Err(cursor.malformed());
    }
    if usize::try_from(varint(&mut cursor)?) != Ok(body.len()) {
        return Err(cursor.malformed());
    }
    varint(&mut cursor)?;
    let (mut source, mut number, mut name) = (None, None, None);
    let (mut here, mut first) = (0, None);
    while !cursor.is_empty() {
        match varint(&mut cursor)? {
            0 => drop(varint(&mut cursor)?),
            1 => source = Some(serialized_uuid(&mut cursor)?),
            2 => number = Some(positive(&mut cursor)?),
            3 => name = tag_field(&mut cursor)?,
            4 | 5 => drop(positive(&mut cursor)?),
            6 => here = varint(&mut cursor)?,
            7 => first = Some(varint(&mut cursor)?),
            // Fields ascend, and nothing that is needed comes later.
            _ => break,
        }
    }
    let number = number.filter(|number| (1..=NUMBER_MAX).contains(number));
    let (Some(source), Some(number)) = (source, number) else {
        return Err(cursor.malformed());
    };
    let first = first.unwrap_or(here);
    let committed_at_micros = micros(first, here, seconds);
    let moment = exact(first, seconds);
    let gtid = Some(Gtid::MySql { source, tag: name, number });
    Ok(Begin { gtid, committed_at_micros, moment, form: Form::Announced })
}

fn uuid(cursor: &mut Cursor<'_>) -> Result<u128, MalformedError> {
    let bytes = cursor.take(16)?;
    Ok(bytes.iter().fold(0, |uuid, byte| (uuid << 8) | u128::from(*byte)))
}

fn serialized_uuid(cursor: &mut Cursor<'_>) -> Result<u128, MalformedError> {
    let mut uuid = 0;
    for _ in 0..16 {
        let byte = u8::try_from(varint(cursor)?).map_err(|_| cursor.malformed())?;
        uuid = (uuid << 8) | u128::from(byte);
    }
    Ok(uuid)
}

/// The empty tag is none.
fn tag_field(cursor: &mut Cursor<'_>) -> Result<Option<Arc<str>>, MalformedError> {
    let length = usize::try_from(varint(cursor)?).map_err(|_| cursor.malformed())?;
    let bytes = cursor.take(length)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(bytes).ok().and_then(tag);
    text.map(Some).ok_or(cursor.malformed())
}

/// The first commit's time; the one on this server where the first is unknown; the header's
/// where neither is known or possible.
fn micros(first: u64, here: u64, seconds: i64) -> i64 {
    let known = if first == 0 { here } else { first };
    i64::try_from(known).ok().filter(|micros| *micros > 0).unwrap_or(seconds)
}

/// The time on this server is no part of it: a replica has another one.
fn exact(first: u64, seconds: i64) -> Moment {
    match i64::try_from(first) {
        Ok(micros) if micros > 0 => Moment::Exact(micros),
        Ok(_) | Err(_) => Moment::Second(seconds),
    }
}

/// GTID_EVENT of MariaDB:
///
/// ```text
/// number: u64 | domain: u32 | flags: u8 | commit id, XID, more flags: not read
/// ```
fn mariadb(header: &Header, body: &[u8], seconds: i64) -> Result<Begin, MalformedError> {
    const FL_STANDALONE: u8 = 0x01;
    const FL_PREPARED_XA: u8 = 0x40;
    let mut cursor = Cursor::new(body, "GTID_EVENT");
    let number = uint(&mut cursor, 8)?;
    let domain = cursor.u32()?;
    let flags = cursor.u8()?;
    // Older servers pad up to GTID_HEADER_LEN; newer ones write further fields instead.
    if cursor.is_empty() {
        return Err(cursor.malformed());
    }
    let form = match flags {
        flags if flags & FL_STANDALONE != 0 => Form::Standalone,
        flags if flags & FL_PREPARED_XA != 0 => Form::PreparedXa,
        _ => Form::Group,
    };
    let gtid = Some(Gtid::MariaDb { domain, server: header.server, number });
    Ok(Begin { gtid, committed_at_micros: seconds, moment: Moment::Second(seconds), form })
}
