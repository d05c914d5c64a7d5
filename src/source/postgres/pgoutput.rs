//! The messages of `pgoutput`, protocol version 1: bytes to borrowed structures.
//!
//! Owns the layouts; knows no table, no column's meaning and no state between messages. All
//! numbers are big-endian; a `string` ends with a zero byte. Layouts: PostgreSQL manual, section
//! "Logical Replication Message Formats" (protocol-logicalrep-message-formats); server side:
//! `src/backend/replication/logical/proto.c`.
//!
//! ```text
//! transaction:  B  (O)  ( (Y…) R )?  ( I | U | D | T | M )…  C
//! outside:      M with flags 0
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use super::lsn::Lsn;

/// Microseconds from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
pub(crate) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A clock reading of the server as microseconds since 1970. No real clock is near the ends of
/// the range, so there it saturates instead of failing.
pub(crate) fn unix_micros(postgres: i64) -> i64 {
    postgres.saturating_add(EPOCH_MICROS)
}

/// Bytes that are not what the protocol says. None of these heals: the same bytes come again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedError {
    /// The message ends inside a field.
    #[error("{what} message is cut short")]
    Short {
        /// Name of the message.
        what: &'static str,
    },
    /// The message goes on after its last field.
    #[error("{what} message has {count} bytes too many")]
    Trailing {
        /// Name of the message.
        what: &'static str,
        /// How many are left.
        count: usize,
    },
    /// A name is not UTF-8: the connection's `client_encoding` is not what we asked for.
    #[error("{what} message holds a name that is not UTF-8; is client_encoding UTF8?")]
    Name {
        /// Name of the message.
        what: &'static str,
    },
    /// A tag that protocol version 1 does not have.
    #[error("unknown tag {:?} (0x{tag:02X}) in {what}", char::from(*.tag))]
    UnknownTag {
        /// What was read.
        what: &'static str,
        /// The byte.
        tag: u8,
    },
}

/// One message. Names and values borrow from the bytes that were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    Origin,
    Relation(Relation<'a>),
    Type(TypeName<'a>),
    Insert(Insert<'a>),
    Update { relation: u32 },
    Delete { relation: u32 },
    Truncate { relations: RelationIds<'a> },
    Logical(Logical<'a>),
    StreamAbort,
}

/// Begin, first of every transaction:
///
/// ```text
/// 'B' | final_lsn: u64 | commit time: i64 | xid: u32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Begin {
    /// LSN of the commit record: half of every row's identity.
    pub(crate) final_lsn: Lsn,
    /// Microseconds since 1970, UTC.
    pub(crate) committed_at_micros: i64,
}

/// Commit, last of every transaction:
///
/// ```text
/// 'C' | flags: u8 (0) | commit_lsn: u64 | end_lsn: u64 | commit time: i64
/// ```
///
/// PostgreSQL 14 and older send Begin and Commit for transactions without published changes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The same as Begin's `final_lsn`. To acknowledge it would redeliver the transaction.
    pub(crate) commit_lsn: Lsn,
    /// End of the commit record: what is acknowledged.
    pub(crate) end_lsn: Lsn,
}

/// Relation, before a table's first change on a connection and after its definition changed:
///
/// ```text
/// 'R' | id: u32 | namespace: string | name: string | replica identity: u8 | columns: u16
///     then for each column: flags: u8 | name: string | type: u32 | type modifier: i32
/// ```
///
/// The namespace of `pg_catalog` is sent as an empty string. A column's type is the oid in the
/// catalog: for a domain the domain's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    pub(crate) id: u32,
    pub(crate) schema: &'a str,
    pub(crate) name: &'a str,
    pub(crate) columns: Vec<RelationColumn<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelationColumn<'a> {
    pub(crate) name: &'a str,
    pub(crate) type_oid: u32,
}

/// Type, before a Relation that has a column of a type that is not built in:
///
/// ```text
/// 'Y' | oid: u32 | namespace: string | name: string
/// ```
///
/// For a domain, oid is the domain's and the name is its base type's. Of any other type the name
/// tells nothing of its kind, so that is asked from the catalog: see `relation::TypeKinds`. The
/// namespace of `pg_catalog` is sent as an empty string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeName<'a> {
    pub(crate) oid: u32,
    pub(crate) schema: &'a str,
    pub(crate) name: &'a str,
}

/// Insert:
///
/// ```text
/// 'I' | relation: u32 | 'N' | tuple
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insert<'a> {
    pub(crate) relation: u32,
    /// Not yet walked through: its errors show in [`Datums`].
    pub(crate) new: Tuple<'a>,
}

/// TupleData:
///
/// ```text
/// columns: u16, then for each column one of
///   'n'                        NULL
///   'u'                        TOAST value that did not change; not sent
///   't' | length: u32 | text   in the server's output format
///   'b' | length: u32 | bytes  in the type's send format (14+, option binary)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tuple<'a> {
    pub(crate) columns: u16,
    data: &'a [u8],
}

/// One value of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datum<'a> {
    Null,
    Unchanged,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// Relation ids of a Truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RelationIds<'a>(&'a [u8]);

/// Message, written by `pg_logical_emit_message` (14+, option messages):
///
/// ```text
/// 'M' | flags: u8 (1 = transactional) | lsn: u64 | prefix: string | length: u32 | content
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Logical<'a> {
    pub(crate) transactional: bool,
    pub(crate) lsn: Lsn,
    pub(crate) prefix: &'a str,
    pub(crate) content: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads one message. An Insert's tuple is left to be walked through by its [`Datums`].
    pub(crate) fn parse(message: &'a [u8]) -> Result<Message<'a>, MalformedError> {
        let mut reader = Reader::new(message, "pgoutput message");
        // The most frequent ones first.
        match reader.u8()? {
            b'I' => insert(&mut reader).map(Message::Insert),
            b'B' => begin(&mut reader).map(Message::Begin),
            b'C' => commit(&mut reader).map(Message::Commit),
            b'R' => relation(&mut reader).map(Message::Relation),
            b'Y' => type_name(&mut reader).map(Message::Type),
            b'O' => origin(&mut reader),
            b'U' => update(&mut reader),
            b'D' => delete(&mut reader),
            b'T' => truncate(&mut reader),
            b'M' => logical(&mut reader).map(Message::Logical),
            b'A' => stream_abort(&mut reader),
            tag => Err(MalformedError::UnknownTag { what: "pgoutput message", tag }),
        }
    }
}

fn begin(reader: &mut Reader<'_>) -> Result<Begin, MalformedError> {
    reader.name("Begin");
    let final_lsn = Lsn(reader.u64()?);
    let committed_at_micros = unix_micros(reader.i64()?);
    let _xid = reader.u32()?;
    reader.finish()?;
    Ok(Begin { final_lsn, committed_at_micros })
}

fn commit(reader: &mut Reader<'_>) -> Result<Commit, MalformedError> {
    reader.name("Commit");
    let _flags = reader.u8()?;
    let commit_lsn = Lsn(reader.u64()?);
    let end_lsn = Lsn(reader.u64()?);
    let _committed_at = reader.i64()?;
    reader.finish()?;
    Ok(Commit { commit_lsn, end_lsn })
}

/// Origin, after the Begin of a transaction that was itself replicated from elsewhere:
///
/// ```text
/// 'O' | commit LSN on the origin: u64 | name: string
/// ```
fn origin<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, MalformedError> {
    reader.name("Origin");
    let _commit_lsn = reader.u64()?;
    let _name = reader.string()?;
    reader.finish()?;
    Ok(Message::Origin)
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<Relation<'a>, MalformedError> {
    reader.name("Relation");
    let id = reader.u32()?;
    let schema = match reader.string()? {
        "" => "pg_catalog",
        schema => schema,
    };
    let name = reader.string()?;
    let _replica_identity = reader.u8()?;
    // No capacity from a number that the wire claims; a relation is rare.
    let mut columns = Vec::new();
    for _ in 0..reader.u16()? {
        let _flags = reader.u8()?;
        let name = reader.string()?;
        let type_oid = reader.u32()?;
        let _type_modifier = reader.u32()?;
        columns.push(RelationColumn { name, type_oid });
    }
    reader.finish()?;
    Ok(Relation { id, schema, name, columns })
}

fn type_name<'a>(reader: &mut Reader<'a>) -> Result<TypeName<'a>, MalformedError> {
    reader.name("Type");
    let (oid, schema, name) = (reader.u32()?, reader.string()?, reader.string()?);
    reader.finish()?;
    Ok(TypeName { oid, schema, name })
}

fn insert<'a>(reader: &mut Reader<'a>) -> Result<Insert<'a>, MalformedError> {
    reader.name("Insert");
    let relation = reader.u32()?;
    match reader.u8()? {
        b'N' => {}
        tag => return Err(MalformedError::UnknownTag { what: "Insert", tag }),
    }
    Ok(Insert { relation, new: Tuple { columns: reader.u16()?, data: reader.rest() } })
}

/// Update, which an outbox ignores:
///
/// ```text
/// 'U' | relation: u32 | ( 'K' or 'O' | old tuple )? | 'N' | new tuple
/// ```
fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, MalformedError> {
    reader.name("Update");
    let relation = reader.u32()?;
    let mut part = reader.u8()?;
    if matches!(part, b'K' | b'O') {
        skip_tuple(reader)?;
        part = reader.u8()?;
    }
    if part != b'N' {
        return Err(MalformedError::UnknownTag { what: "Update", tag: part });
    }
    skip_tuple(reader)?;
    reader.finish()?;
    Ok(Message::Update { relation })
}

/// Delete, which an outbox ignores:
///
/// ```text
/// 'D' | relation: u32 | 'K' or 'O' | old tuple
/// ```
fn delete<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, MalformedError> {
    reader.name("Delete");
    let relation = reader.u32()?;
    match reader.u8()? {
        b'K' | b'O' => {}
        tag => return Err(MalformedError::UnknownTag { what: "Delete", tag }),
    }
    skip_tuple(reader)?;
    reader.finish()?;
    Ok(Message::Delete { relation })
}

/// Truncate, which an outbox ignores:
///
/// ```text
/// 'T' | relations: u32 | options: u8 (1 = cascade, 2 = restart identity) | relation: u32 …
/// ```
fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, MalformedError> {
    reader.name("Truncate");
    let count = reader.u32()?;
    let _options = reader.u8()?;
    let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(4));
    let relations = RelationIds(reader.take(length.unwrap_or(usize::MAX))?);
    reader.finish()?;
    Ok(Message::Truncate { relations })
}

fn logical<'a>(reader: &mut Reader<'a>) -> Result<Logical<'a>, MalformedError> {
    reader.name("Message");
    let transactional = reader.u8()? & 1 == 1;
    let lsn = Lsn(reader.u64()?);
    let prefix = reader.string()?;
    let length = reader.u32()?;
    let content = reader.sized(length)?;
    reader.finish()?;
    Ok(Logical { transactional, lsn, prefix, content })
}

/// Stream Abort, which belongs to protocol version 2 and later but was seen unasked in version 1
/// from PostgreSQL 18; its transaction was never sent, so there is nothing to undo:
///
/// ```text
/// 'A' | xid: u32 | subtransaction's xid: u32 | ( abort LSN: u64 | abort time: i64 )?  version 4
/// ```
fn stream_abort<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, MalformedError> {
    reader.name("Stream Abort");
    let _xid = reader.u32()?;
    let _subtransaction_xid = reader.u32()?;
    if !reader.rest().is_empty() {
        let _abort_lsn = reader.u64()?;
        let _aborted_at = reader.i64()?;
    }
    reader.finish()?;
    Ok(Message::StreamAbort)
}

fn skip_tuple(reader: &mut Reader<'_>) -> Result<(), MalformedError> {
    for _ in 0..reader.u16()? {
        datum(reader)?;
    }
    Ok(())
}

fn datum<'a>(reader: &mut Reader<'a>) -> Result<Datum<'a>, MalformedError> {
    match reader.u8()? {
        b'b' => {
            let length = reader.u32()?;
            reader.sized(length).map(Datum::Binary)
        }
        b't' => {
            let length = reader.u32()?;
            reader.sized(length).map(Datum::Text)
        }
        b'n' => Ok(Datum::Null),
        b'u' => Ok(Datum::Unchanged),
        tag => Err(MalformedError::UnknownTag { what: "TupleData", tag }),
    }
}

impl<'a> Tuple<'a> {
    /// The values as they were sent.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.data
    }

    /// Walks through the values, once.
    pub(crate) fn datums(&self) -> Datums<'a> {
        let mut reader = Reader::new(self.data, "Insert");
        reader.name("Insert");
        Datums { reader, left: self.columns }
    }

    /// Checks the values of a tuple that nobody wants.
    pub(crate) fn check(&self) -> Result<(), MalformedError> {
        let mut datums = self.datums();
        for _ in 0..self.columns {
            datums.next()?;
        }
        datums.finish()
    }
}

/// The values of a tuple, in order. No iterator, since `finish` must follow the last one.
pub(crate) struct Datums<'a> {
    reader: Reader<'a>,
    left: u16,
}

impl<'a> Datums<'a> {
    /// The next value; an error after the last one.
    pub(crate) fn next(&mut self) -> Result<Datum<'a>, MalformedError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(MalformedError::Short { what: "Insert" });
        };
        self.left = left;
        datum(&mut self.reader)
    }

    /// Checks that the message ends with the last value.
    pub(crate) fn finish(self) -> Result<(), MalformedError> {
        self.reader.finish()
    }
}

impl RelationIds<'_> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes))
    }
}

/// Reads fields off the front of a message; every read is checked against what is left.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8], what: &'static str) -> Self {
        Self { rest: message, what }
    }

    /// Names what is read, for errors, once its tag is known.
    pub(crate) fn name(&mut self, what: &'static str) {
        self.what = what;
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], MalformedError> {
        let short = MalformedError::Short { what: self.what };
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MalformedError> {
        let short = MalformedError::Short { what: self.what };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// As many bytes as a length field said.
    fn sized(&mut self, length: u32) -> Result<&'a [u8], MalformedError> {
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, MalformedError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, MalformedError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, MalformedError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MalformedError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn i64(&mut self) -> Result<i64, MalformedError> {
        self.array().map(i64::from_be_bytes)
    }

    fn string(&mut self) -> Result<&'a str, MalformedError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let Some(end) = end else { return Err(MalformedError::Short { what: self.what }) };
        let text = self.take(end)?;
        self.u8()?;
        std::str::from_utf8(text).map_err(|_| MalformedError::Name { what: self.what })
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(&self) -> Result<(), MalformedError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(MalformedError::Trailing { what: self.what, count }),
        }
    }
}
