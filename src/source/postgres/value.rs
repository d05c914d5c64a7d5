//! One column's value: from the wire, text or binary, to the canonical text of an `OutboxRow`.
//!
//! Owns the built-in types that can be mapped and their two wire forms. Knows no columns and no
//! roles beyond which type can fill one. Binary forms are those of the server's send functions
//! (`src/backend/utils/adt/*.c`); text forms those of its output functions under
//! [`SESSION_PARAMETERS`].
//!
//! What already is canonical on the wire is sliced, not copied. What must be printed goes into
//! a scratch block that many rows share.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::moment::{self, MomentError};
use super::number::{self, NumericError};
use super::pgoutput::Datum;
use crate::outbox::Role;

/// What the replication connection must set at its start (startup parameter `options`), so that
/// values in text format read as this file expects: names and values.
pub const SESSION_PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];

/// A type that a mapped column may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    /// text, varchar, char(n), name, json, citext, enums: text and binary form are the same.
    Text,
    /// Binary: version byte 1, then the text.
    Jsonb,
    /// Binary: 16 bytes.
    Uuid,
    /// Text: `\x` and hexadecimal digits.
    Bytea,
    Int2,
    Int4,
    Int8,
    Oid,
    Bool,
    /// Binary: microseconds since 2000, i64.
    Timestamptz,
    /// The same without a zone; taken as UTC.
    Timestamp,
    /// Binary: days since 2000, i32.
    Date,
    Numeric,
    Float4,
    Float8,
}

/// A value that cannot be told in canonical form. The same value comes again: does not heal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Its bytes are not those of its type.
    #[error("malformed {type_name} value")]
    Malformed {
        /// Name of the type.
        type_name: &'static str,
    },
    /// A jsonb version that did not exist when this was written.
    #[error("unknown jsonb version {version}")]
    JsonbVersion {
        /// The version byte.
        version: u8,
    },
    /// A moment that RFC 3339 cannot tell.
    #[error(transparent)]
    Moment(#[from] MomentError),
    /// A numeric that is not one.
    #[error(transparent)]
    Numeric(#[from] NumericError),
    /// A changed row left out a value that did not change; an Insert never does.
    #[error("value was left out as unchanged")]
    Unchanged,
}

impl ValueType {
    /// The type of a built-in oid (`src/include/catalog/pg_type.dat`), where it is supported.
    pub(crate) fn of(oid: u32) -> Option<ValueType> {
        Some(match oid {
            16 => ValueType::Bool,
            17 => ValueType::Bytea,
            20 => ValueType::Int8,
            21 => ValueType::Int2,
            23 => ValueType::Int4,
            26 => ValueType::Oid,
            700 => ValueType::Float4,
            701 => ValueType::Float8,
            1082 => ValueType::Date,
            1114 => ValueType::Timestamp,
            1184 => ValueType::Timestamptz,
            1700 => ValueType::Numeric,
            2950 => ValueType::Uuid,
            3802 => ValueType::Jsonb,
            // name, text, json, char(n), varchar
            19 | 25 | 114 | 1042 | 1043 => ValueType::Text,
            _ => return None,
        })
    }

    /// The same by the type's name in `pg_catalog`.
    pub(crate) fn named(name: &str) -> Option<ValueType> {
        Some(match name {
            "bool" => ValueType::Bool,
            "bytea" => ValueType::Bytea,
            "int8" => ValueType::Int8,
            "int2" => ValueType::Int2,
            "int4" => ValueType::Int4,
            "oid" => ValueType::Oid,
            "float4" => ValueType::Float4,
            "float8" => ValueType::Float8,
            "date" => ValueType::Date,
            "timestamp" => ValueType::Timestamp,
            "timestamptz" => ValueType::Timestamptz,
            "numeric" => ValueType::Numeric,
            "uuid" => ValueType::Uuid,
            "jsonb" => ValueType::Jsonb,
            "name" | "text" | "json" | "bpchar" | "varchar" => ValueType::Text,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            ValueType::Text => "text",
            ValueType::Jsonb => "jsonb",
            ValueType::Uuid => "uuid",
            ValueType::Bytea => "bytea",
            ValueType::Int2 => "smallint",
            ValueType::Int4 => "integer",
            ValueType::Int8 => "bigint",
            ValueType::Oid => "oid",
            ValueType::Bool => "boolean",
            ValueType::Timestamptz => "timestamp with time zone",
            ValueType::Timestamp => "timestamp",
            ValueType::Date => "date",
            ValueType::Numeric => "numeric",
            ValueType::Float4 => "real",
            ValueType::Float8 => "double precision",
        }
    }

    /// Whether a column of this type can fill `role`.
    pub(crate) fn can_be(self, role: Role) -> bool {
        match role {
            Role::CreatedAt => {
                matches!(self, ValueType::Timestamptz | ValueType::Timestamp | ValueType::Date)
            }
            Role::Headers => matches!(self, ValueType::Text | ValueType::Jsonb),
            Role::Id
            | Role::AggregateType
            | Role::AggregateId
            | Role::EventType
            | Role::Payload
            | Role::Topic
            | Role::Extra(_) => true,
        }
    }

    fn malformed(self) -> ValueError {
        ValueError::Malformed { type_name: self.name() }
    }

    /// Canonical text (of bytea its bytes); `None` for NULL. `message` is what `datum` borrows
    /// from: the result may be a slice of it.
    pub(crate) fn canonical(
        self,
        datum: Datum<'_>,
        message: &Bytes,
        scratch: &mut Scratch,
    ) -> Result<Option<Bytes>, ValueError> {
        match datum {
            Datum::Null => Ok(None),
            Datum::Unchanged => Err(ValueError::Unchanged),
            Datum::Text(text) => self.canonical_text(text, message, scratch).map(Some),
            Datum::Binary(bytes) => self.canonical_binary(bytes, message, scratch).map(Some),
        }
    }

    fn canonical_text(
        self,
        text: &[u8],
        message: &Bytes,
        scratch: &mut Scratch,
    ) -> Result<Bytes, ValueError> {
        match self {
            ValueType::Text
            | ValueType::Jsonb
            | ValueType::Uuid
            | ValueType::Int2
            | ValueType::Int4
            | ValueType::Int8
            | ValueType::Oid
            | ValueType::Numeric
            | ValueType::Float4
            | ValueType::Float8 => Ok(message.slice_ref(text)),
            ValueType::Bool => match text {
                b"t" => Ok(Bytes::from_static(b"true")),
                b"f" => Ok(Bytes::from_static(b"false")),
                _ => Err(self.malformed()),
            },
            ValueType::Bytea => scratch.unhex(text).ok_or_else(|| self.malformed()),
            ValueType::Date => match moment::parse(text) {
                // Read only to refuse another style than ISO.
                Err(error) if !error.is_a_moment() => Err(error.into()),
                Ok(_) | Err(_) => Ok(message.slice_ref(text)),
            },
            ValueType::Timestamptz | ValueType::Timestamp => match moment::parse(text) {
                Ok(micros) => scratch.print(|out| Ok(moment::print(micros, out)?)),
                Err(error) if error.is_a_moment() => Ok(message.slice_ref(text)),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn canonical_binary(
        self,
        bytes: &[u8],
        message: &Bytes,
        scratch: &mut Scratch,
    ) -> Result<Bytes, ValueError> {
        match self {
            ValueType::Text | ValueType::Bytea => Ok(message.slice_ref(bytes)),
            ValueType::Jsonb => match bytes.split_first() {
                Some((1, text)) => Ok(message.slice_ref(text)),
                Some((version, _)) => Err(ValueError::JsonbVersion { version: *version }),
                None => Err(self.malformed()),
            },
            ValueType::Uuid => {
                let uuid = uuid::Uuid::from_bytes(self.array(bytes)?);
                let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
                let text = uuid.hyphenated().encode_lower(&mut text).as_bytes();
                Ok(scratch.copy(text))
            }
            ValueType::Int2 => Ok(scratch.integer(i16::from_be_bytes(self.array(bytes)?))),
            ValueType::Int4 => Ok(scratch.integer(i32::from_be_bytes(self.array(bytes)?))),
            ValueType::Int8 => Ok(scratch.integer(i64::from_be_bytes(self.array(bytes)?))),
            ValueType::Oid => Ok(scratch.integer(u32::from_be_bytes(self.array(bytes)?))),
            ValueType::Bool => match bytes {
                [0] => Ok(Bytes::from_static(b"false")),
                [1] => Ok(Bytes::from_static(b"true")),
                _ => Err(self.malformed()),
            },
            ValueType::Timestamptz | ValueType::Timestamp => {
                let postgres = i64::from_be_bytes(self.array(bytes)?);
                let zone = if self == ValueType::Timestamptz { "+00" } else { "" };
                scratch.print(|out| {
                    match moment::from_timestamp(postgres) {
                        Ok(micros) => moment::print(micros, out)?,
                        Err(_) => moment::print_timestamp_of_postgres(postgres, zone, out),
                    }
                    Ok(())
                })
            }
            ValueType::Date => {
                let postgres = i32::from_be_bytes(self.array(bytes)?);
                scratch.print(|out| {
                    match moment::from_date(postgres) {
                        Ok(micros) => moment::print_date(micros, out)?,
                        Err(_) => moment::print_date_of_postgres(postgres, out),
                    }
                    Ok(())
                })
            }
            ValueType::Numeric => scratch.print(|out| Ok(number::print_numeric(bytes, out)?)),
            ValueType::Float4 => {
                let float = f32::from_be_bytes(self.array(bytes)?);
                scratch.print(|out| {
                    number::print_float4(float, out);
                    Ok(())
                })
            }
            ValueType::Float8 => {
                let float = f64::from_be_bytes(self.array(bytes)?);
                scratch.print(|out| {
                    number::print_float8(float, out);
                    Ok(())
                })
            }
        }
    }

    /// Microseconds since 1970 of a type that [can be](Self::can_be) `CreatedAt`; `None` for
    /// NULL.
    pub(crate) fn micros(self, datum: Datum<'_>) -> Result<Option<i64>, ValueError> {
        match datum {
            Datum::Null => Ok(None),
            Datum::Unchanged => Err(ValueError::Unchanged),
            Datum::Text(text) => Ok(Some(moment::parse(text)?)),
            Datum::Binary(bytes) => self.binary_micros(bytes).map(Some),
        }
    }

    fn binary_micros(self, bytes: &[u8]) -> Result<i64, ValueError> {
        match self {
            ValueType::Timestamptz | ValueType::Timestamp => {
                Ok(moment::from_timestamp(i64::from_be_bytes(self.array(bytes)?))?)
            }
            ValueType::Date => Ok(moment::from_date(i32::from_be_bytes(self.array(bytes)?))?),
            ValueType::Text
            | ValueType::Jsonb
            | ValueType::Uuid
            | ValueType::Bytea
            | ValueType::Int2
            | ValueType::Int4
            | ValueType::Int8
            | ValueType::Oid
            | ValueType::Bool
            | ValueType::Numeric
            | ValueType::Float4
            | ValueType::Float8 => Err(self.malformed()),
        }
    }

    fn array<const N: usize>(self, bytes: &[u8]) -> Result<[u8; N], ValueError> {
        bytes.try_into().map_err(|_| self.malformed())
    }
}

/// A block of memory that printed values are cut from: one allocation for some hundred rows.
///
/// A row keeps the whole block alive, as it does the buffer that it was read into.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    block: BytesMut,
}

/// Two clones share no block, so a clone starts without one.
impl Clone for Scratch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Scratch {
    const BLOCK_BYTES: usize = 16 * 1024;

    /// Makes room for `length` bytes, so that the block is not grown while it is printed to.
    fn reserve(&mut self, length: usize) {
        if self.block.capacity() - self.block.len() < length {
            self.block.reserve(length.max(Self::BLOCK_BYTES));
        }
    }

    fn cut(&mut self) -> Bytes {
        self.block.split().freeze()
    }

    fn copy(&mut self, text: &[u8]) -> Bytes {
        self.reserve(text.len());
        self.block.put_slice(text);
        self.cut()
    }

    fn integer(&mut self, integer: impl itoa::Integer) -> Bytes {
        self.copy(itoa::Buffer::new().format(integer).as_bytes())
    }

    /// Hands over the empty block. What was printed before an error is thrown away.
    fn print(
        &mut self,
        print: impl FnOnce(&mut BytesMut) -> Result<(), ValueError>,
    ) -> Result<Bytes, ValueError> {
        // Longer than every moment and float; a longer numeric grows the block.
        self.reserve(64);
        if let Err(error) = print(&mut self.block) {
            self.block.clear();
            return Err(error);
        }
        Ok(self.cut())
    }

    fn unhex(&mut self, text: &[u8]) -> Option<Bytes> {
        let (pairs, []) = text.strip_prefix(br"\x")?.as_chunks::<2>() else { return None };
        self.reserve(pairs.len());
        for [high, low] in pairs {
            let (Some(high), Some(low)) = (nibble(*high), nibble(*low)) else {
                self.block.clear();
                return None;
            };
            self.block.put_u8(high << 4 | low);
        }
        debug_assert_eq!(self.block.remaining(), pairs.len());
        Some(self.cut())
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
