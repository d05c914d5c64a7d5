//! The outbox's columns in a rows event: which one has which role, and how it is read.
//!
//! Owns the layout that is made once a table number, and the walk over rows by it. Knows no
//! transactions. Rows of WRITE_ROWS, versions 1 and 2 (`Rows_event` in MySQL's
//! `libs/mysql/binlog/event/rows_event.h`):
//!
//! ```text
//! columns: packed count | a bit each: is in the image, lowest first
//! row:     a bit for each column in the image: is NULL, lowest first | values…
//! row: …
//! ```
//!
//! A column that is not mapped is stepped over by its length.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod error;

use bytes::Bytes;

pub use error::{LayoutError, RowError};

use super::cursor::{Cursor, MalformedError};
use super::gtid::Flavor;
use super::table_map::{ColumnType, Description, TableMap, lowest_first};
use super::temporal::{Temporal, TemporalError};
use super::value::{CatalogType, Reading, ReadingError, Scratch, ValueError};
use crate::outbox::{Columns, OutOfRange, OutboxRow, Role};

/// What becomes of the columns of one outbox table.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Schema and name, for errors.
    table: Box<str>,
    /// All columns, in the order of the row.
    fields: Vec<Field>,
    /// Length of `OutboxRow::extra`.
    extra_count: usize,
    /// Whether the server keeps old rows in it (`WITH SYSTEM VERSIONING`), as far as its names
    /// say: columns of other names stand in the catalog.
    keeps_history: bool,
    /// Whether some values must be printed that are about as long as they were.
    prints_documents: bool,
}

#[derive(Debug, Clone)]
struct Field {
    name: Box<str>,
    length: Length,
    /// `None`: stepped over.
    mapped: Option<Mapped>,
}

#[derive(Debug, Clone)]
struct Mapped {
    reading: Reading,
    /// Whether a date that is none stands for the commit time.
    may_lack_moment: bool,
    /// At least one.
    roles: Vec<Role>,
}

/// How many bytes of a row a value takes.
#[derive(Debug, Clone, Copy)]
enum Length {
    Fixed(usize),
    /// Told in as many bytes in front of it.
    Told1,
    Told2,
    Told3,
    Told4,
}

impl Layout {
    /// As [`with_types`](Self::with_types), where the log says all.
    #[cfg(test)]
    pub(crate) fn new(
        table: &TableMap,
        columns: &Columns,
        flavor: Flavor,
    ) -> Result<Self, LayoutError> {
        Self::with_types(table, columns, flavor, &[])
    }

    /// Finds the mapped columns in a table, by their names without regard to case, as the
    /// servers themselves compare them. `types` is what the catalog says of some columns, by name.
    pub(crate) fn with_types(
        table: &TableMap,
        columns: &Columns,
        flavor: Flavor,
        types: &[(String, CatalogType)],
    ) -> Result<Self, LayoutError> {
        let name = format!("{}.{}", table.schema, table.table);
        if !table.is_full() {
            return Err(LayoutError::NoNames { table: name });
        }
        let describe = table.describe(flavor);
        let descriptions =
            describe.map_err(|source| LayoutError::Malformed { table: name.clone(), source })?;
        let is_named = |description: &Description<'_>, wanted: &str| {
            description.name.is_some_and(|name| name.eq_ignore_ascii_case(wanted))
        };
        for column in columns.iter().filter(|column| column.required) {
            if !descriptions.iter().any(|description| is_named(description, &column.name)) {
                let present = descriptions.iter().filter_map(|present| present.name);
                return Err(LayoutError::MissingColumn {
                    table: name,
                    column: column.name.clone(),
                    present: present.map(str::to_owned).collect(),
                });
            }
        }
        let may_lack_moment = columns.created_at_out_of_range() == OutOfRange::CommitTime;
        let mut fields = Vec::with_capacity(descriptions.len());
        for description in &descriptions {
            let mapped = columns.iter().filter(|column| is_named(description, &column.name));
            let roles: Vec<Role> = mapped.map(|column| column.role).collect();
            let known = types.iter().find(|(name, _)| is_named(description, name));
            let known = known.map(|(_, known)| *known);
            let mut field = Field::new(&name, description, known, roles, flavor)?;
            if let Some(mapped) = &mut field.mapped {
                mapped.may_lack_moment = may_lack_moment;
            }
            fields.push(field);
        }
        let prints_documents = fields.iter().any(|field| {
            field.mapped.as_ref().is_some_and(|mapped| mapped.reading.prints_documents())
        });
        let extra_count = extra_length(columns);
        let keeps_history = ["row_start", "row_end"]
            .into_iter()
            .all(|period| descriptions.iter().any(|description| is_named(description, period)));
        let table = name.into();
        Ok(Self { table, fields, extra_count, keeps_history, prints_documents })
    }

    /// See the field.
    pub(crate) fn keeps_history(&self) -> bool {
        self.keeps_history
    }

    /// Reads the rows of one WRITE_ROWS event, inflated if it was compressed. `body` begins with
    /// the count of columns: behind table id, flags and the extra data of version 2.
    ///
    /// `next` gives each row its identity and commit time, `give` takes it, with its bytes in the
    /// log. What is text already
    /// is a slice of `body`; what must be printed shares one buffer for the whole event.
    ///
    /// # Errors
    ///
    /// On the first row that cannot be told; those before it were given.
    pub(crate) fn read_rows(
        &self,
        body: &Bytes,
        next: &mut dyn FnMut() -> OutboxRow,
        give: &mut dyn FnMut(OutboxRow, &[u8]),
    ) -> Result<(), RowError> {
        let mut cursor = Cursor::new(body, "rows event");
        let found = cursor.packed().map_err(|source| self.malformed(source))?;
        if found != self.fields.len() {
            let (table, expected) = (self.table.to_string(), self.fields.len());
            return Err(RowError::ColumnCount { table, expected, found });
        }
        let image = cursor.take(found.div_ceil(8)).map_err(|source| self.malformed(source))?;
        let in_image = self.check_image(image)?;
        if in_image == 0 && !cursor.is_empty() {
            // Rows of nothing would never come to an end.
            return Err(self.malformed(cursor.malformed()));
        }
        let is_partial = in_image < found;
        let image = is_partial.then_some(image);
        let mut scratch = Scratch::new(self.scratch_bytes(body.len()));
        while !cursor.is_empty() {
            let mut row = next();
            let before = cursor;
            let nulls = cursor.take(in_image.div_ceil(8));
            let nulls = nulls.map_err(|source| self.malformed(source))?;
            self.read_row(&mut cursor, image, nulls, body, &mut scratch, &mut row)?;
            give(row, before.until(&cursor));
        }
        Ok(())
    }

    fn read_row(
        &self,
        cursor: &mut Cursor<'_>,
        image: Option<&[u8]>,
        nulls: &[u8],
        body: &Bytes,
        scratch: &mut Scratch,
        row: &mut OutboxRow,
    ) -> Result<(), RowError> {
        if self.extra_count > 0 {
            row.extra = vec![None; self.extra_count];
        }
        let mut place = 0;
        for (index, field) in self.fields.iter().enumerate() {
            if image.is_some_and(|image| !lowest_first(image, index)) {
                continue;
            }
            let is_null = lowest_first(nulls, place);
            place += 1;
            if is_null {
                continue;
            }
            let bytes = field.length.take(cursor).map_err(|source| self.malformed(source))?;
            if let Some(mapped) = &field.mapped {
                mapped.fill(bytes, body, scratch, row).map_err(|source| RowError::Value {
                    table: self.table.to_string(),
                    column: field.name.to_string(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// How many columns are in the image, which must hold all mapped ones: what was left out has
    /// the column's default value, which the log does not tell.
    fn check_image(&self, image: &[u8]) -> Result<usize, RowError> {
        let mut count = 0;
        for (index, field) in self.fields.iter().enumerate() {
            if lowest_first(image, index) {
                count += 1;
            } else if field.mapped.is_some() {
                let (table, column) = (self.table.to_string(), field.name.to_string());
                return Err(RowError::NotInImage { table, column });
            }
        }
        Ok(count)
    }

    /// Room for what an event's rows will print, so that it is rarely moved: JSON is about as
    /// long as text, the rest (numbers, identifiers, moments) small.
    fn scratch_bytes(&self, event_bytes: usize) -> usize {
        if self.prints_documents { event_bytes + event_bytes / 4 } else { event_bytes / 4 }
    }

    fn malformed(&self, source: MalformedError) -> RowError {
        RowError::Malformed { table: self.table.to_string(), source }
    }
}

impl Field {
    fn new(
        table: &str,
        description: &Description<'_>,
        known: Option<CatalogType>,
        roles: Vec<Role>,
        flavor: Flavor,
    ) -> Result<Self, LayoutError> {
        let name = description.name.unwrap_or_default();
        let type_name = description.column_type.name();
        let length = Length::of(description.column_type, flavor);
        let length = length.ok_or_else(|| LayoutError::OldTemporal {
            table: table.into(),
            column: name.into(),
            type_name,
        })?;
        if roles.is_empty() {
            return Ok(Self { name: name.into(), length, mapped: None });
        }
        let unsupported = |role| LayoutError::UnsupportedType {
            table: table.into(),
            column: name.into(),
            role,
            type_name,
        };
        let is_id = roles.contains(&Role::Id);
        let reading = Reading::of(description, is_id, known).map_err(|error| match error {
            ReadingError::Unsupported => {
                unsupported(roles.first().copied().unwrap_or(Role::Payload))
            }
            ReadingError::Untold(what) => {
                LayoutError::Untold { table: table.into(), column: name.into(), what }
            }
            ReadingError::Charset { charset, collation } => LayoutError::Charset {
                table: table.into(),
                column: name.into(),
                charset,
                collation,
            },
        })?;
        for role in &roles {
            if !reading.can_be(*role) {
                return Err(unsupported(*role));
            }
        }
        Ok(Self {
            name: name.into(),
            length,
            mapped: Some(Mapped { reading, may_lack_moment: false, roles }),
        })
    }
}

impl Length {
    /// `None` where the log does not tell: MariaDB's old types keep fractional seconds in more
    /// bytes, and neither type nor metadata says so (measured with 10.11 and 11.8).
    fn of(column_type: ColumnType, flavor: Flavor) -> Option<Self> {
        Some(match column_type {
            ColumnType::TinyInt => Length::Fixed(1),
            ColumnType::SmallInt => Length::Fixed(2),
            ColumnType::MediumInt => Length::Fixed(3),
            ColumnType::Int | ColumnType::Float => Length::Fixed(4),
            ColumnType::BigInt | ColumnType::Double => Length::Fixed(8),
            ColumnType::Decimal { shape } => Length::Fixed(shape.bytes()),
            ColumnType::Temporal(
                Temporal::OldTime | Temporal::OldDatetime | Temporal::OldTimestamp,
            ) if flavor == Flavor::MariaDb => return None,
            ColumnType::Temporal(temporal) => Length::Fixed(temporal.bytes()),
            ColumnType::Bit { bits } => Length::Fixed(usize::from(bits.div_ceil(8))),
            ColumnType::Enum { bytes } | ColumnType::Set { bytes } => {
                Length::Fixed(usize::from(bytes))
            }
            ColumnType::Char { length }
            | ColumnType::Varchar { length }
            | ColumnType::CompressedVarchar { length } => {
                if length > 255 {
                    Length::Told2
                } else {
                    Length::Told1
                }
            }
            ColumnType::Blob { length_bytes }
            | ColumnType::Json { length_bytes }
            | ColumnType::Geometry { length_bytes }
            | ColumnType::Vector { length_bytes }
            | ColumnType::CompressedBlob { length_bytes } => match length_bytes {
                1 => Length::Told1,
                2 => Length::Told2,
                3 => Length::Told3,
                _ => Length::Told4,
            },
        })
    }

    #[inline]
    fn take<'a>(self, cursor: &mut Cursor<'a>) -> Result<&'a [u8], MalformedError> {
        let length = match self {
            Length::Fixed(length) => length,
            Length::Told1 => usize::from(cursor.u8()?),
            Length::Told2 => usize::from(cursor.u16()?),
            Length::Told3 => wide(cursor.u24()?),
            Length::Told4 => wide(cursor.u32()?),
        };
        cursor.take(length)
    }
}

/// A length that a small machine's `usize` could not hold is longer than any event there.
fn wide(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

impl Mapped {
    /// Reads a value that is not NULL into all roles of its column.
    fn fill(
        &self,
        bytes: &[u8],
        body: &Bytes,
        scratch: &mut Scratch,
        row: &mut OutboxRow,
    ) -> Result<(), ValueError> {
        let mut text: Option<Bytes> = None;
        for role in &self.roles {
            if *role == Role::CreatedAt {
                row.created_at_micros = match self.reading.micros(bytes) {
                    Err(ValueError::Temporal(TemporalError::NoDate)) if self.may_lack_moment => {
                        None
                    }
                    micros => Some(micros?),
                };
                continue;
            }
            let value = match &text {
                Some(text) => text.clone(),
                None => self.reading.canonical(bytes, body, scratch)?,
            };
            if self.roles.len() > 1 {
                text = Some(value.clone());
            }
            let value = Some(value);
            match role {
                Role::Id => row.id = value,
                Role::AggregateType => row.aggregate_type = value,
                Role::AggregateId => row.aggregate_id = value,
                Role::EventType => row.event_type = value,
                Role::Payload => row.payload = value,
                Role::Headers => row.headers = value,
                Role::Topic => row.topic = value,
                Role::CreatedAt => {}
                Role::Extra(index) => {
                    if let Some(extra) = row.extra.get_mut(*index) {
                        *extra = value;
                    }
                }
            }
        }
        Ok(())
    }
}

/// One more than the largest index: a role that was mapped away may leave a gap.
fn extra_length(columns: &Columns) -> usize {
    let mut length = 0;
    for column in columns.iter() {
        if let Role::Extra(index) = column.role {
            length = length.max(index + 1);
        }
    }
    length
}

#[cfg(test)]
pub(super) mod tests;
