//! TABLE_MAP: what a table looked like when the rows that follow were logged.
//!
//! Owns the event's layout and the types of its columns; knows no outbox. Layout: class
//! `Table_map_event` in MySQL's `libs/mysql/binlog/event/rows_event.h`; MariaDB's is the same up
//! to which columns its optional metadata counts.
//!
//! ```text
//! table id: u48 | flags: u16
//! schema: u8 length, text, 0 | table: u8 length, text, 0
//! columns: packed count | a type byte each
//! metadata: packed length | 0 to 2 bytes a column, by its type
//! nullable: a bit each, lowest first
//! optional: ( kind: u8 | packed length | value )…
//! ```
//!
//! Optional metadata is complete only with `binlog_row_metadata=FULL`. A kind that is not known
//! here is skipped by its length.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use super::cursor::Cursor;
pub(crate) use super::cursor::MalformedError;
use super::decimal::Shape;
use super::gtid::Flavor;
use super::temporal::Temporal;

const WHAT: &str = "TABLE_MAP event";

/// A table's number and names, borrowed from the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableName<'a> {
    pub(crate) id: u64,
    pub(crate) schema: &'a str,
    pub(crate) table: &'a str,
}

/// The whole event, owned: one is kept for as long as its table number is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableMap {
    pub(crate) id: u64,
    pub(crate) schema: Box<str>,
    pub(crate) table: Box<str>,
    /// In the order of the row.
    pub(crate) columns: Vec<ColumnType>,
    optional: Optional,
}

/// A column with what optional metadata says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description<'a> {
    pub(crate) column_type: ColumnType,
    /// `None` without FULL metadata.
    pub(crate) name: Option<&'a str>,
    /// Of a numeric column; `None` for others.
    pub(crate) unsigned: Option<bool>,
    /// Number of the collation of a text, ENUM or SET column; `None` for others.
    pub(crate) collation: Option<u32>,
    /// Of an ENUM or SET, in the column's own character set.
    pub(crate) labels: &'a [Box<[u8]>],
}

/// How a column's values lie in a row, with what its metadata says. Lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnType {
    TinyInt,
    SmallInt,
    MediumInt,
    Int,
    BigInt,
    Float,
    Double,
    /// NEWDECIMAL.
    Decimal {
        shape: Shape,
    },
    Temporal(Temporal),
    Bit {
        bits: u16,
    },
    Enum {
        bytes: u8,
    },
    Set {
        bytes: u8,
    },
    /// CHAR and BINARY; in MariaDB also UUID, INET4 and INET6.
    Char {
        length: u16,
    },
    /// VARCHAR and VARBINARY; in MariaDB also VECTOR.
    Varchar {
        length: u16,
    },
    /// TEXT and BLOB of all sizes.
    Blob {
        length_bytes: u8,
    },
    /// MySQL's binary JSON.
    Json {
        length_bytes: u8,
    },
    Geometry {
        length_bytes: u8,
    },
    /// MySQL's.
    Vector {
        length_bytes: u8,
    },
    /// MariaDB's column compression.
    CompressedVarchar {
        length: u16,
    },
    CompressedBlob {
        length_bytes: u8,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Optional {
    /// A bit for each numeric column, highest first.
    signedness: Option<Box<[u8]>>,
    /// Of text columns.
    text_collations: Option<Collations>,
    /// Of ENUM and SET columns.
    label_collations: Option<Collations>,
    names: Option<Vec<Box<str>>>,
    /// Of each SET column.
    set_labels: Vec<Vec<Box<[u8]>>>,
    /// Of each ENUM column.
    enum_labels: Vec<Vec<Box<[u8]>>>,
}

/// Collations of those columns that have one, counted among themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Collations {
    Default { default: u32, others: Vec<(usize, u32)> },
    Each(Vec<u32>),
}

impl Collations {
    fn of(&self, index: usize) -> Option<u32> {
        match self {
            Collations::Default { default, others } => {
                let other = others.iter().find(|(other, _)| *other == index);
                Some(other.map_or(*default, |(_, collation)| *collation))
            }
            Collations::Each(each) => each.get(index).copied(),
        }
    }
}

impl TableMap {
    /// Reads the event's body: what is behind the common header, without the checksum.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, MalformedError> {
        let mut cursor = Cursor::new(body, WHAT);
        let TableName { id, schema, table } = names(&mut cursor)?;
        let count = cursor.packed()?;
        let types = cursor.take(count)?;
        let mut metadata = Cursor::new(cursor.packed_bytes()?, "metadata of a TABLE_MAP event");
        // Which columns may be NULL: each row tells it of its own values.
        cursor.take(count.div_ceil(8))?;
        let mut columns = Vec::with_capacity(count);
        for type_byte in types {
            columns.push(ColumnType::read(*type_byte, &mut metadata)?);
        }
        if !metadata.is_empty() {
            return Err(metadata.malformed());
        }
        let optional = Optional::read(&mut cursor)?;
        Ok(Self { id, schema: schema.into(), table: table.into(), columns, optional })
    }

    /// Reads number and names only: cheap, for tables that are not ours.
    pub(crate) fn peek(body: &[u8]) -> Result<TableName<'_>, MalformedError> {
        names(&mut Cursor::new(body, WHAT))
    }

    /// Whether the columns have their names: with `binlog_row_metadata=FULL`.
    pub(crate) fn is_full(&self) -> bool {
        self.optional.names.is_some()
    }

    /// Brings each column together with its optional metadata.
    ///
    /// The lists of the event count only the columns that they concern, and the servers differ in
    /// which these are: a GEOMETRY has a collation in MariaDB and none in MySQL (measured with
    /// MySQL 9.7, MariaDB 10.11 and 11.8).
    pub(crate) fn describe(&self, flavor: Flavor) -> Result<Vec<Description<'_>>, MalformedError> {
        let absent = MalformedError { what: "optional metadata of a TABLE_MAP event", at: 0 };
        let optional = &self.optional;
        let (mut numbers, mut texts, mut labelled, mut enums, mut sets) = (0, 0, 0, 0, 0);
        let mut descriptions = Vec::with_capacity(self.columns.len());
        for (index, column_type) in self.columns.iter().enumerate() {
            let name = match &optional.names {
                Some(names) => Some(&**names.get(index).ok_or(absent)?),
                None => None,
            };
            let mut description = Description {
                column_type: *column_type,
                name,
                unsigned: None,
                collation: None,
                labels: &[],
            };
            match column_type.counted(flavor) {
                Counted::Nowhere => {}
                Counted::Number => {
                    if let Some(bits) = &optional.signedness {
                        description.unsigned = Some(highest_first(bits, numbers).ok_or(absent)?);
                    }
                    numbers += 1;
                }
                Counted::Text => {
                    if let Some(collations) = &optional.text_collations {
                        description.collation = Some(collations.of(texts).ok_or(absent)?);
                    }
                    texts += 1;
                }
                counted @ (Counted::Enum | Counted::Set) => {
                    if let Some(collations) = &optional.label_collations {
                        description.collation = Some(collations.of(labelled).ok_or(absent)?);
                    }
                    labelled += 1;
                    let (all, next) = match counted {
                        Counted::Enum => (&optional.enum_labels, &mut enums),
                        _ => (&optional.set_labels, &mut sets),
                    };
                    if !all.is_empty() {
                        description.labels = all.get(*next).ok_or(absent)?;
                    }
                    *next += 1;
                }
            }
            descriptions.push(description);
        }
        Ok(descriptions)
    }
}

/// In which list of optional metadata a column has an entry.
enum Counted {
    Nowhere,
    Number,
    Text,
    Enum,
    Set,
}

impl ColumnType {
    /// Reads the metadata of a type (`enum_field_types`; `read_field_metadata` on the server).
    fn read(type_byte: u8, metadata: &mut Cursor<'_>) -> Result<Self, MalformedError> {
        let unknown = metadata.malformed();
        let mut temporal = |make: fn(u8) -> Temporal| {
            let scale = metadata.u8()?;
            Ok(Self::Temporal(Temporal::with_scale(scale, make).ok_or(unknown)?))
        };
        Ok(match type_byte {
            1 => Self::TinyInt,
            2 => Self::SmallInt,
            3 => Self::Int,
            7 => Self::Temporal(Temporal::OldTimestamp),
            8 => Self::BigInt,
            9 => Self::MediumInt,
            10 | 14 => Self::Temporal(Temporal::Date),
            11 => Self::Temporal(Temporal::OldTime),
            12 => Self::Temporal(Temporal::OldDatetime),
            13 => Self::Temporal(Temporal::Year),
            17 => return temporal(|scale| Temporal::Timestamp { scale }),
            18 => return temporal(|scale| Temporal::Datetime { scale }),
            19 => return temporal(|scale| Temporal::Time { scale }),
            4 => match metadata.u8()? {
                4 => Self::Float,
                _ => return Err(unknown),
            },
            5 => match metadata.u8()? {
                8 => Self::Double,
                _ => return Err(unknown),
            },
            15 => Self::Varchar { length: metadata.u16()? },
            16 => {
                let (odd_bits, bytes) = (metadata.u8()?, metadata.u8()?);
                let bits = u16::from(bytes) * 8 + u16::from(odd_bits);
                if odd_bits < 8 && bits <= 64 { Self::Bit { bits } } else { return Err(unknown) }
            }
            140 => Self::CompressedBlob { length_bytes: length_bytes(metadata)? },
            141 => Self::CompressedVarchar { length: metadata.u16()? },
            242 => Self::Vector { length_bytes: length_bytes(metadata)? },
            245 => Self::Json { length_bytes: length_bytes(metadata)? },
            246 => {
                let shape = Shape::new(metadata.u8()?, metadata.u8()?).map_err(|_| unknown)?;
                Self::Decimal { shape }
            }
            252 => Self::Blob { length_bytes: length_bytes(metadata)? },
            254 => return Self::read_string(metadata),
            255 => Self::Geometry { length_bytes: length_bytes(metadata)? },
            _ => return Err(unknown),
        })
    }

    /// STRING stands for CHAR, ENUM and SET. Its first byte is the real type, of which two bits
    /// hold the high bits of a length above 255, inverted.
    fn read_string(metadata: &mut Cursor<'_>) -> Result<Self, MalformedError> {
        let unknown = metadata.malformed();
        let (real_type, low) = (metadata.u8()?, metadata.u8()?);
        Ok(match (real_type, low) {
            (247, 1..=2) => Self::Enum { bytes: low },
            (248, 1..=8) => Self::Set { bytes: low },
            (247 | 248, _) => return Err(unknown),
            _ if real_type | 0x30 == 254 => {
                let high = u16::from((real_type & 0x30) ^ 0x30) << 4;
                Self::Char { length: high | u16::from(low) }
            }
            _ => return Err(unknown),
        })
    }

    fn counted(self, flavor: Flavor) -> Counted {
        match self {
            Self::TinyInt
            | Self::SmallInt
            | Self::MediumInt
            | Self::Int
            | Self::BigInt
            | Self::Float
            | Self::Double
            | Self::Decimal { .. }
            | Self::Temporal(Temporal::Year) => Counted::Number,
            Self::Char { .. }
            | Self::Varchar { .. }
            | Self::Blob { .. }
            | Self::Vector { .. }
            | Self::CompressedVarchar { .. }
            | Self::CompressedBlob { .. } => Counted::Text,
            Self::Geometry { .. } => match flavor {
                Flavor::MySql => Counted::Nowhere,
                Flavor::MariaDb => Counted::Text,
            },
            Self::Enum { .. } => Counted::Enum,
            Self::Set { .. } => Counted::Set,
            Self::Temporal(_) | Self::Bit { .. } | Self::Json { .. } => Counted::Nowhere,
        }
    }

    /// The name in SQL, for errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TinyInt => "TINYINT",
            Self::SmallInt => "SMALLINT",
            Self::MediumInt => "MEDIUMINT",
            Self::Int => "INT",
            Self::BigInt => "BIGINT",
            Self::Float => "FLOAT",
            Self::Double => "DOUBLE",
            Self::Decimal { .. } => "DECIMAL",
            Self::Temporal(Temporal::Year) => "YEAR",
            Self::Temporal(Temporal::Date) => "DATE",
            Self::Temporal(Temporal::Time { .. } | Temporal::OldTime) => "TIME",
            Self::Temporal(Temporal::Datetime { .. } | Temporal::OldDatetime) => "DATETIME",
            Self::Temporal(Temporal::Timestamp { .. } | Temporal::OldTimestamp) => "TIMESTAMP",
            Self::Bit { .. } => "BIT",
            Self::Enum { .. } => "ENUM",
            Self::Set { .. } => "SET",
            Self::Char { .. } => "CHAR or BINARY",
            Self::Varchar { .. } => "VARCHAR or VARBINARY",
            Self::Blob { .. } => "TEXT or BLOB",
            Self::Json { .. } => "JSON",
            Self::Geometry { .. } => "GEOMETRY",
            Self::Vector { .. } => "VECTOR",
            Self::CompressedVarchar { .. } => "VARCHAR COMPRESSED",
            Self::CompressedBlob { .. } => "BLOB COMPRESSED",
        }
    }
}

impl Optional {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, MalformedError> {
        let mut optional = Self::default();
        while !cursor.is_empty() {
            let kind = cursor.u8()?;
            let bytes = cursor.packed_bytes()?;
            let mut value = Cursor::new(bytes, "optional metadata of a TABLE_MAP event");
            // `enum_optional_metadata_type`. Geometry types, primary keys, visibility and
            // dimensions of vectors say nothing about how a value is read.
            match kind {
                1 => optional.signedness = Some(bytes.into()),
                2 => optional.text_collations = Some(default_collations(&mut value)?),
                3 => optional.text_collations = Some(each_collation(&mut value)?),
                4 => {
                    let mut names = Vec::new();
                    while !value.is_empty() {
                        names.push(text(value.packed_bytes()?, &value)?.into());
                    }
                    optional.names = Some(names);
                }
                5 => optional.set_labels = labels(&mut value)?,
                6 => optional.enum_labels = labels(&mut value)?,
                10 => optional.label_collations = Some(default_collations(&mut value)?),
                11 => optional.label_collations = Some(each_collation(&mut value)?),
                _ => {}
            }
        }
        Ok(optional)
    }
}

fn names<'a>(cursor: &mut Cursor<'a>) -> Result<TableName<'a>, MalformedError> {
    let id = cursor.u48()?;
    cursor.u16()?;
    let schema = name(cursor)?;
    let table = name(cursor)?;
    Ok(TableName { id, schema, table })
}

/// A name of u8 length, with a zero behind it.
fn name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, MalformedError> {
    let length = usize::from(cursor.u8()?);
    let name = text(cursor.take(length)?, cursor)?;
    match cursor.u8()? {
        0 => Ok(name),
        _ => Err(cursor.malformed()),
    }
}

fn text<'a>(bytes: &'a [u8], cursor: &Cursor<'_>) -> Result<&'a str, MalformedError> {
    str::from_utf8(bytes).map_err(|_| cursor.malformed())
}

fn length_bytes(metadata: &mut Cursor<'_>) -> Result<u8, MalformedError> {
    match metadata.u8()? {
        length @ 1..=4 => Ok(length),
        _ => Err(metadata.malformed()),
    }
}

fn collation(cursor: &mut Cursor<'_>) -> Result<u32, MalformedError> {
    let number = cursor.packed()?;
    u32::try_from(number).map_err(|_| cursor.malformed())
}

fn default_collations(cursor: &mut Cursor<'_>) -> Result<Collations, MalformedError> {
    let default = collation(cursor)?;
    let mut others = Vec::new();
    while !cursor.is_empty() {
        others.push((cursor.packed()?, collation(cursor)?));
    }
    Ok(Collations::Default { default, others })
}

fn each_collation(cursor: &mut Cursor<'_>) -> Result<Collations, MalformedError> {
    let mut each = Vec::new();
    while !cursor.is_empty() {
        each.push(collation(cursor)?);
    }
    Ok(Collations::Each(each))
}

/// For each column: packed count of labels, and the labels. The count reserves nothing.
fn labels(cursor: &mut Cursor<'_>) -> Result<Vec<Vec<Box<[u8]>>>, MalformedError> {
    let mut columns = Vec::new();
    while !cursor.is_empty() {
        let mut labels = Vec::new();
        for _ in 0..cursor.packed()? {
            labels.push(cursor.packed_bytes()?.into());
        }
        columns.push(labels);
    }
    Ok(columns)
}

/// A bit of a bitmap whose length was checked.
pub(crate) fn lowest_first(bits: &[u8], index: usize) -> bool {
    bits.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

fn highest_first(bits: &[u8], index: usize) -> Option<bool> {
    bits.get(index / 8).map(|byte| byte << (index % 8) & 0x80 != 0)
}

#[cfg(test)]
mod tests;
