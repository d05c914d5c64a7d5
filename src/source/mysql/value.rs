//! One column's value: from its bytes in a row to the canonical text of an `OutboxRow`.
//!
//! Owns how each type is read, decided once a table, and the buffer that printed text goes to.
//! Knows no rows. What is text already is sliced, not copied.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{BufMut, Bytes, BytesMut};

use super::charset::{self, Charset, Legacy};
use super::decimal::{DecimalError, Shape};
use super::float::{self, FloatError};
use super::jsonb::{self, JsonbError};
use super::table_map::{ColumnType, Description};
use super::temporal::{Temporal, TemporalError};
use crate::outbox::Role;

/// How the values of a mapped column are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reading {
    /// As they are: text in UTF-8, and the bytes of VARBINARY and BLOB.
    Plain,
    Latin1,
    /// Of another character set.
    Legacy(Legacy),
    /// BINARY(n), of which the log leaves the zeros at the end out.
    Padded {
        length: usize,
    },
    /// BINARY(16) as an id, and MariaDB's UUID, which the log does not tell from it.
    Uuid,
    /// MariaDB's INET4, of which the zeros at the end are left out too.
    Inet4,
    Inet6,
    /// Little-endian two's complement of 1, 2, 3, 4 or 8 bytes.
    Signed,
    Unsigned,
    Float,
    Double,
    Decimal(Shape),
    Temporal(Temporal),
    /// Big-endian.
    Bit,
    /// Label of each number from 1; 0 is the empty text of a value that was none.
    Enum(Vec<Bytes>),
    /// Label of each bit.
    Set(Vec<Bytes>),
    /// MySQL's binary JSON.
    Json,
}

/// What the catalog says of a column that is BINARY to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogType {
    /// MariaDB's UUID: sixteen bytes in the order of its text.
    Uuid,
    /// MariaDB's INET4: four bytes.
    Inet4,
    /// MariaDB's INET6: sixteen bytes.
    Inet6,
}

/// A column that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadingError {
    /// Its type has no text form here.
    Unsupported,
    /// The event leaves out what must be known of it.
    Untold(&'static str),
    /// Its character set is not converted.
    Charset { charset: &'static str, collation: u32 },
}

/// A value that cannot be told in canonical form. The same value comes again: does not heal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Its bytes are not those of its type.
    #[error("malformed {type_name} value")]
    Malformed {
        /// Name of the type.
        type_name: &'static str,
    },
    /// A number that has no label.
    #[error("{type_name} value {number} has no label in the log")]
    Label {
        /// ENUM or SET.
        type_name: &'static str,
        /// Of the label.
        number: u64,
    },
    /// JSON that cannot be printed.
    #[error(transparent)]
    Json(#[from] JsonbError),
    /// A decimal that is none.
    #[error(transparent)]
    Decimal(#[from] DecimalError),
    /// A float that is no number.
    #[error(transparent)]
    Float(#[from] FloatError),
    /// A date or time that is none.
    #[error(transparent)]
    Temporal(#[from] TemporalError),
}

const fn malformed(type_name: &'static str) -> ValueError {
    ValueError::Malformed { type_name }
}

impl Reading {
    /// Decides how a column is read; `is_id` prints BINARY(16) as a UUID, `known` is what the
    /// catalog says of it.
    pub(crate) fn of(
        column: &Description<'_>,
        is_id: bool,
        known: Option<CatalogType>,
    ) -> Result<Self, ReadingError> {
        Ok(match column.column_type {
            ColumnType::TinyInt
            | ColumnType::SmallInt
            | ColumnType::MediumInt
            | ColumnType::Int
            | ColumnType::BigInt => match column.unsigned {
                Some(true) => Reading::Unsigned,
                Some(false) => Reading::Signed,
                None => return Err(ReadingError::Untold("the sign")),
            },
            ColumnType::Float => Reading::Float,
            ColumnType::Double => Reading::Double,
            ColumnType::Decimal { shape } => Reading::Decimal(shape),
            ColumnType::Temporal(temporal) => Reading::Temporal(temporal),
            ColumnType::Bit { .. } => Reading::Bit,
            ColumnType::Enum { .. } => Reading::Enum(labels(column)?),
            ColumnType::Set { .. } => Reading::Set(labels(column)?),
            ColumnType::Char { length } => match charset(column)? {
                Charset::Binary => Reading::of_binary(length, is_id, known),
                other => Reading::of_text(other),
            },
            ColumnType::Varchar { .. } | ColumnType::Blob { .. } => {
                Reading::of_text(charset(column)?)
            }
            ColumnType::Json { .. } => Reading::Json,
            ColumnType::Geometry { .. }
            | ColumnType::Vector { .. }
            | ColumnType::CompressedVarchar { .. }
            | ColumnType::CompressedBlob { .. } => return Err(ReadingError::Unsupported),
        })
    }

    /// The catalog is of today: where the length is another one, the column was another one too.
    fn of_binary(length: u16, is_id: bool, known: Option<CatalogType>) -> Self {
        match (known, length) {
            (Some(CatalogType::Inet6), 16) => Reading::Inet6,
            (Some(CatalogType::Inet4), 4) => Reading::Inet4,
            (Some(CatalogType::Uuid), 16) => Reading::Uuid,
            (_, 16) if is_id => Reading::Uuid,
            _ => Reading::Padded { length: usize::from(length) },
        }
    }

    fn of_text(charset: Charset) -> Self {
        match charset {
            Charset::Latin1 => Reading::Latin1,
            Charset::Legacy(set) => Reading::Legacy(set),
            Charset::Binary | Charset::Utf8 | Charset::Other(_) => Reading::Plain,
        }
    }

    /// Whether a column that is read so can fill `role`.
    pub(crate) fn can_be(&self, role: Role) -> bool {
        match role {
            Role::CreatedAt => {
                matches!(self, Reading::Temporal(temporal) if temporal.is_moment())
            }
            Role::Headers => matches!(
                self,
                Reading::Plain | Reading::Latin1 | Reading::Legacy(_) | Reading::Json
            ),
            Role::Id
            | Role::AggregateType
            | Role::AggregateId
            | Role::EventType
            | Role::Payload
            | Role::Topic
            | Role::Extra(_) => true,
        }
    }

    /// Whether printed values are about as long as they were, instead of short.
    pub(crate) fn prints_documents(&self) -> bool {
        matches!(self, Reading::Json | Reading::Latin1 | Reading::Legacy(_))
    }

    /// Canonical text (of binary types their bytes). `event` is what `bytes` borrows from: the
    /// result may be a slice of it.
    pub(crate) fn canonical(
        &self,
        bytes: &[u8],
        event: &Bytes,
        scratch: &mut Scratch,
    ) -> Result<Bytes, ValueError> {
        match self {
            Reading::Plain => Ok(event.slice_ref(bytes)),
            Reading::Enum(labels) => enum_label(bytes, labels),
            Reading::Latin1 if bytes.is_ascii() => Ok(event.slice_ref(bytes)),
            Reading::Legacy(set) if set.has_ascii() && bytes.is_ascii() => {
                Ok(event.slice_ref(bytes))
            }
            Reading::Padded { length } if bytes.len() == *length => Ok(event.slice_ref(bytes)),
            _ => scratch.print(|out| self.print(bytes, out)),
        }
    }

    fn print(&self, bytes: &[u8], out: &mut BytesMut) -> Result<(), ValueError> {
        match self {
            Reading::Plain => out.put_slice(bytes),
            Reading::Latin1 => charset::print_latin1(bytes, out),
            Reading::Legacy(set) => set.print(bytes, out),
            Reading::Padded { length } => {
                let missing = length.checked_sub(bytes.len()).ok_or(malformed("BINARY"))?;
                out.put_slice(bytes);
                out.put_bytes(0, missing);
            }
            Reading::Uuid => print_uuid(bytes, out)?,
            Reading::Inet4 => {
                let address: [u8; 4] = padded(bytes, "INET4")?;
                out.put_slice(std::net::Ipv4Addr::from(address).to_string().as_bytes());
            }
            Reading::Inet6 => print_inet6(padded(bytes, "INET6")?, out),
            Reading::Signed => print_signed(bytes, out)?,
            Reading::Unsigned => print_unsigned(bytes, out)?,
            Reading::Float => {
                let bytes = bytes.try_into().map_err(|_| malformed("FLOAT"))?;
                float::print_single(f32::from_le_bytes(bytes), out)?;
            }
            Reading::Double => {
                let bytes = bytes.try_into().map_err(|_| malformed("DOUBLE"))?;
                float::print_double(f64::from_le_bytes(bytes), out)?;
            }
            Reading::Decimal(shape) => shape.print(bytes, out)?,
            Reading::Temporal(temporal) => temporal.print(bytes, out)?,
            Reading::Bit => {
                let bits = wide(bytes.iter(), "BIT")?;
                out.put_slice(itoa::Buffer::new().format(bits).as_bytes());
            }
            Reading::Enum(labels) => out.put_slice(&enum_label(bytes, labels)?),
            Reading::Set(labels) => print_set(bytes, labels, out)?,
            Reading::Json => jsonb::print(bytes, out)?,
        }
        Ok(())
    }

    /// Microseconds since 1970 of a column that [can be](Self::can_be) `CreatedAt`.
    pub(crate) fn micros(&self, bytes: &[u8]) -> Result<i64, ValueError> {
        match self {
            Reading::Temporal(temporal) => Ok(temporal.micros(bytes)?),
            _ => Err(malformed("timestamp")),
        }
    }
}

fn charset(column: &Description<'_>) -> Result<Charset, ReadingError> {
    let collation = column.collation.ok_or(ReadingError::Untold("the character set"))?;
    match Charset::of(collation) {
        Charset::Other(charset) => Err(ReadingError::Charset { charset, collation }),
        known => Ok(known),
    }
}

/// The labels of an ENUM or SET, in UTF-8.
fn labels(column: &Description<'_>) -> Result<Vec<Bytes>, ReadingError> {
    if column.labels.is_empty() {
        return Err(ReadingError::Untold("the labels"));
    }
    let charset = charset(column)?;
    let mut labels = Vec::with_capacity(column.labels.len());
    for label in column.labels {
        let mut text = BytesMut::new();
        match charset {
            Charset::Latin1 => charset::print_latin1(label, &mut text),
            Charset::Legacy(set) => set.print(label, &mut text),
            Charset::Binary | Charset::Utf8 | Charset::Other(_) => text.put_slice(label),
        }
        labels.push(text.freeze());
    }
    Ok(labels)
}

fn enum_label(bytes: &[u8], labels: &[Bytes]) -> Result<Bytes, ValueError> {
    let number = wide(bytes.iter().rev(), "ENUM")?;
    if number == 0 {
        return Ok(Bytes::new());
    }
    let index = usize::try_from(number - 1).ok();
    let label = index.and_then(|index| labels.get(index));
    label.cloned().ok_or(ValueError::Label { type_name: "ENUM", number })
}

fn print_set(bytes: &[u8], labels: &[Bytes], out: &mut BytesMut) -> Result<(), ValueError> {
    let mut bits = wide(bytes.iter().rev(), "SET")?;
    let mut separator: &[u8] = b"";
    for label in labels {
        if bits & 1 == 1 {
            out.put_slice(separator);
            out.put_slice(label);
            separator = b",";
        }
        bits >>= 1;
    }
    let beyond = u64::try_from(labels.len()).unwrap_or(u64::MAX);
    if bits == 0 { Ok(()) } else { Err(ValueError::Label { type_name: "SET", number: beyond }) }
}

/// 32 digits and four hyphens; zeros at the end were left out.
fn print_uuid(bytes: &[u8], out: &mut BytesMut) -> Result<(), ValueError> {
    let mut buffer = uuid::Uuid::encode_buffer();
    let text =
        uuid::Uuid::from_bytes(padded(bytes, "UUID")?).hyphenated().encode_lower(&mut buffer);
    out.put_slice(text.as_bytes());
    Ok(())
}

/// With the zeros that were left out at its end.
fn padded<const LENGTH: usize>(
    bytes: &[u8],
    type_name: &'static str,
) -> Result<[u8; LENGTH], ValueError> {
    let mut padded = [0; LENGTH];
    padded.get_mut(..bytes.len()).ok_or(malformed(type_name))?.copy_from_slice(bytes);
    Ok(padded)
}

/// As MariaDB writes it (`Inet6::to_string` in `plugin/type_inet/sql_type_inet.cc`): a single word
/// of zeros is left out too, and an IPv4 address inside is written as one.
fn print_inet6(address: [u8; 16], out: &mut BytesMut) {
    let words = std::net::Ipv6Addr::from(address).segments();
    let (mut gap, mut run) = ((0, 0), 0);
    for (index, word) in words.iter().enumerate() {
        run = if *word == 0 { run + 1 } else { 0 };
        if run > gap.1 {
            gap = (index + 1 - run, run);
        }
    }
    let (first, length) = gap;
    let is_gap = |index: usize| length > 0 && (first..first + length).contains(&index);
    let [.., sixth, _, _] = words;
    let has_ipv4 = first == 0 && (length == 6 || length == 5 && sixth == 0xFFFF);
    for (index, word) in words.iter().enumerate() {
        if is_gap(index) {
            if index == first {
                out.put_slice(if index == 0 { b"::" } else { b":" });
            }
        } else if index == 6 && has_ipv4 {
            let [.., a, b, c, d] = address;
            let address = std::net::Ipv4Addr::from([a, b, c, d]);
            return out.put_slice(address.to_string().as_bytes());
        } else {
            out.put_slice(format!("{word:x}").as_bytes());
            if index < 7 {
                out.put_u8(b':');
            }
        }
    }
}

fn print_signed(bytes: &[u8], out: &mut BytesMut) -> Result<(), ValueError> {
    // A MEDIUMINT has three bytes: the sign is moved to the top, and back again.
    let unused = 64_u32.saturating_sub(8 * u32::try_from(bytes.len()).unwrap_or(8));
    let number = wide(bytes.iter().rev(), "integer")?.cast_signed();
    let number = number.checked_shl(unused).and_then(|number| number.checked_shr(unused));
    let number = number.ok_or(malformed("integer"))?;
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
    Ok(())
}

fn print_unsigned(bytes: &[u8], out: &mut BytesMut) -> Result<(), ValueError> {
    let number = wide(bytes.iter().rev(), "integer")?;
    out.put_slice(itoa::Buffer::new().format(number).as_bytes());
    Ok(())
}

/// A number of one to eight bytes, the highest first.
fn wide<'a>(
    bytes: impl ExactSizeIterator<Item = &'a u8>,
    type_name: &'static str,
) -> Result<u64, ValueError> {
    if bytes.len() == 0 || bytes.len() > 8 {
        return Err(malformed(type_name));
    }
    Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The buffer that the values of one event are printed to and cut from.
///
/// A row keeps the whole buffer alive, as it does the event that it was read from.
#[derive(Debug)]
pub(crate) struct Scratch {
    block: BytesMut,
    /// How large to make it when the first value is printed.
    room: usize,
}

impl Scratch {
    /// Longer than every number, identifier and moment.
    const VALUE_BYTES: usize = 96;
    const NEXT_BYTES: usize = 4096;

    /// Reserves nothing before something is printed.
    pub(crate) fn new(room: usize) -> Self {
        Self { block: BytesMut::new(), room }
    }

    /// Hands over the empty block. What was printed before an error is thrown away.
    fn print(
        &mut self,
        print: impl FnOnce(&mut BytesMut) -> Result<(), ValueError>,
    ) -> Result<Bytes, ValueError> {
        if self.block.capacity() < Self::VALUE_BYTES {
            self.block.reserve(self.room.max(Self::VALUE_BYTES));
            // Only the last values are left when the first guess was too low.
            self.room = self.room.min(Self::NEXT_BYTES);
        }
        if let Err(error) = print(&mut self.block) {
            self.block.clear();
            return Err(error);
        }
        Ok(self.block.split().freeze())
    }
}

#[cfg(test)]
mod tests;
