//! Which table a row event is of: what the table maps of the current statement said.
//!
//! Owns table ids, which mean something only until their statement ends, and the outbox's layout,
//! which is made once for each form that the table has and kept over statements.

use bytes::Bytes;

use super::{DecodeError, DecoderSettings};
use crate::config::POSITION_TABLE;
use crate::outbox::Columns;
use crate::source::mysql::gtid::Flavor;
use crate::source::mysql::layout::Layout;
use crate::source::mysql::table_map::{TableMap, TableName};

/// Tables of one statement. Under LOCK TABLES all locked ones are announced.
const TABLES_MAX: usize = 100_000;
/// Table id at the beginning of a table map: all else says what the table looks like.
const TABLE_ID_LENGTH: usize = 6;

#[derive(Debug)]
pub(super) struct Tables {
    outbox: (String, String),
    /// By table id; few, so that a search from the end is fastest.
    announced: Vec<(u64, Known)>,
    layout: Option<KnownLayout>,
}

/// What a table is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// With the body of its table map.
    Outbox(Bytes),
    /// Where positions are kept, in whichever database: what another relay writes there is no more
    /// a reason to write than what we write ourselves, or the two would never rest.
    Position,
    Foreign,
}

/// A layout, and the table map without its id from which it was made.
#[derive(Debug)]
struct KnownLayout {
    map: Vec<u8>,
    layout: Layout,
}

impl Tables {
    pub(super) fn new(settings: &DecoderSettings) -> Self {
        Self {
            outbox: (settings.schema.clone(), settings.table.clone()),
            announced: Vec::new(),
            layout: None,
        }
    }

    /// The statement has ended.
    pub(super) fn clear(&mut self) {
        self.announced.clear();
    }

    /// Reads a table map: no more than its names, until a row of it is needed.
    pub(super) fn learn(&mut self, body: &Bytes) -> Result<(), DecodeError> {
        let TableName { id, schema, table } = TableMap::peek(body)?;
        let known = if self.outbox.0 == schema && self.outbox.1 == table {
            Known::Outbox(body.clone())
        } else if table == POSITION_TABLE {
            Known::Position
        } else {
            Known::Foreign
        };
        self.announced.retain(|(other, _)| *other != id);
        if self.announced.len() >= TABLES_MAX {
            return Err(DecodeError::TooManyTables);
        }
        self.announced.push((id, known));
        Ok(())
    }

    pub(super) fn find(&self, id: u64) -> Result<&Known, DecodeError> {
        let found = self.announced.iter().rev().find(|(other, _)| *other == id);
        found.map(|(_, known)| known).ok_or(DecodeError::UnknownTable { table: id })
    }

    /// How the rows behind this table map of the outbox are read.
    pub(super) fn layout(
        &mut self,
        map: &Bytes,
        columns: &Columns,
        flavor: Flavor,
    ) -> Result<&Layout, DecodeError> {
        let form = map.get(TABLE_ID_LENGTH..).unwrap_or_default();
        let known = self.layout.take().filter(|known| known.map == form);
        let known = match known {
            Some(known) => known,
            None => {
                let layout = Layout::new(&TableMap::parse(map)?, columns, flavor)?;
                KnownLayout { map: form.to_vec(), layout }
            }
        };
        Ok(&self.layout.insert(known).layout)
    }
}
