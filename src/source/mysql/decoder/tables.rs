//! Which table a row event is of: what the table maps of the current statement said.
//!
//! Owns table ids, which mean something only until their statement ends, and the outbox's layout,
//! which is made once for each form that the table has and kept over statements.

use bytes::Bytes;

use super::{DecodeError, DecoderSettings};
use crate::config::POSITION_TABLE;
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
    /// Whether the statement changed rows of the outbox before.
    has_changed: bool,
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
    /// The outbox under the name that it was given.
    Renamed,
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
            has_changed: false,
            layout: None,
        }
    }

    /// The statement has ended.
    pub(super) fn clear(&mut self) {
        self.announced.clear();
        self.has_changed = false;
    }

    /// The statement updated or deleted rows of the outbox.
    pub(super) fn changed(&mut self) {
        self.has_changed = true;
    }

    pub(super) fn has_changed(&self) -> bool {
        self.has_changed
    }

    /// Reads a table map: no more than its names, until a row of it is needed. Whether it is the
    /// outbox's. `renamed` is where that is while no table has its name.
    pub(super) fn learn(
        &mut self,
        body: &Bytes,
        renamed: Option<(&str, &str)>,
    ) -> Result<bool, DecodeError> {
        let TableName { id, schema, table } = TableMap::peek(body)?;
        let known = if self.outbox.0 == schema && self.outbox.1 == table {
            Known::Outbox(body.clone())
        } else if table == POSITION_TABLE {
            Known::Position
        } else if renamed.is_some_and(|(other_schema, other)| {
            other_schema.eq_ignore_ascii_case(schema) && other.eq_ignore_ascii_case(table)
        }) {
            Known::Renamed
        } else {
            Known::Foreign
        };
        let is_outbox = matches!(known, Known::Outbox(_));
        self.announced.retain(|(other, _)| *other != id);
        if self.announced.len() >= TABLES_MAX {
            return Err(DecodeError::TooManyTables);
        }
        self.announced.push((id, known));
        Ok(is_outbox)
    }

    pub(super) fn find(&self, id: u64) -> Result<&Known, DecodeError> {
        let found = self.announced.iter().rev().find(|(other, _)| *other == id);
        found.map(|(_, known)| known).ok_or(DecodeError::UnknownTable { table: id })
    }

    /// Its columns are to be judged again.
    pub(super) fn forget_layout(&mut self) {
        self.layout = None;
    }

    /// How the rows behind this table map of the outbox are read.
    pub(super) fn layout(
        &mut self,
        map: &Bytes,
        settings: &DecoderSettings,
    ) -> Result<&Layout, DecodeError> {
        let DecoderSettings { columns, flavor, types, .. } = settings;
        let form = map.get(TABLE_ID_LENGTH..).unwrap_or_default();
        let known = self.layout.take().filter(|known| known.map == form);
        let known = match known {
            Some(known) => known,
            None => {
                let layout = Layout::with_types(&TableMap::parse(map)?, columns, *flavor, types)?;
                KnownLayout { map: form.to_vec(), layout }
            }
        };
        Ok(&self.layout.insert(known).layout)
    }
}
