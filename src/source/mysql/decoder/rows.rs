//! Row events: which change, of which table, and what becomes of it.

use bytes::Bytes;

use super::tables::Known;
use super::transaction::Phase;
use super::{DecodeError, Decoded, Decoder};
use crate::identity::RowIdentity;
use crate::outbox::OutboxRow;
use crate::source::mysql::cursor::Cursor;
use crate::source::mysql::event::body::{RowsHead, RowsVersion};
use crate::source::mysql::event::compressed::inflate;
use crate::source::mysql::event::{Event, EventError, kind};

/// What happened to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Write,
    Update,
    Delete,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RowsKind {
    pub(super) change: Change,
    pub(super) version: RowsVersion,
    is_compressed: bool,
}

impl RowsKind {
    pub(super) fn of(event: u8) -> Self {
        use RowsVersion::{One, Two};
        let (change, version, is_compressed) = match event {
            kind::WRITE_ROWS_EVENT_V1 => (Change::Write, One, false),
            kind::UPDATE_ROWS_EVENT_V1 => (Change::Update, One, false),
            kind::DELETE_ROWS_EVENT_V1 => (Change::Delete, One, false),
            kind::WRITE_ROWS_EVENT => (Change::Write, Two, false),
            kind::DELETE_ROWS_EVENT => (Change::Delete, Two, false),
            kind::WRITE_ROWS_COMPRESSED_EVENT_V1 => (Change::Write, One, true),
            kind::UPDATE_ROWS_COMPRESSED_EVENT_V1 => (Change::Update, One, true),
            kind::DELETE_ROWS_COMPRESSED_EVENT_V1 => (Change::Delete, One, true),
            kind::WRITE_ROWS_COMPRESSED_EVENT => (Change::Write, Two, true),
            kind::UPDATE_ROWS_COMPRESSED_EVENT => (Change::Update, Two, true),
            kind::DELETE_ROWS_COMPRESSED_EVENT => (Change::Delete, Two, true),
            // UPDATE_ROWS_EVENT and PARTIAL_UPDATE_ROWS_EVENT.
            _ => (Change::Update, Two, false),
        };
        Self { change, version, is_compressed }
    }
}

impl Decoder {
    pub(super) fn rows(
        &mut self,
        event: &Event,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        let RowsKind { change, version, is_compressed } = RowsKind::of(event.header.kind);
        let head = RowsHead::parse(version, &event.body)?;
        self.inside(event.header.kind, Phase::Open)?;
        if let Some(table) = head.table {
            let known = self.tables.find(table)?.clone();
            self.mark(&known);
            let is_skipped = self.open.as_ref().is_some_and(|open| open.is_skipped);
            match (known, change) {
                (Known::Outbox(_) | Known::Renamed, Change::Write) if is_skipped => {
                    self.ignored.skipped += 1;
                }
                (Known::Renamed, Change::Write) => return Err(self.renamed_rows()),
                (Known::Renamed, Change::Update | Change::Delete) => self.ignored.foreign += 1,
                (Known::Position, _) => {}
                (Known::Foreign, _) => self.ignored.foreign += 1,
                (Known::Outbox(_), Change::Update) => {
                    self.ignored.updates += 1;
                    self.tables.changed();
                }
                (Known::Outbox(_), Change::Delete) => {
                    self.ignored.deletes += 1;
                    self.tables.changed();
                }
                (Known::Outbox(map), Change::Write) => {
                    let body = event.body.slice(head.length..);
                    let body = if is_compressed { self.inflated(&body)? } else { body };
                    self.insert(&map, &body, event.header.length, out)?;
                }
            }
        }
        if head.ends_statement {
            self.tables.clear();
        }
        Ok(())
    }

    /// Notes whose rows the transaction changed.
    fn mark(&mut self, known: &Known) {
        if let Some(open) = &mut self.open {
            match known {
                Known::Position => open.changed_own = true,
                Known::Foreign | Known::Renamed | Known::Outbox(_) => open.changed_others = true,
            }
        }
    }

    /// The body of a compressed row event as it was before; count and bitmap of the columns are
    /// not compressed.
    fn inflated(&self, body: &Bytes) -> Result<Bytes, DecodeError> {
        const WHAT: &str = "compressed row event";
        let mut cursor = Cursor::new(body, WHAT);
        let columns = cursor.packed().map_err(EventError::from)?;
        cursor.take(columns.div_ceil(8)).map_err(EventError::from)?;
        let head = body.len() - cursor.remaining();
        let (head, compressed) = body.split_at_checked(head).unwrap_or_default();
        let mut whole = head.to_vec();
        let bytes_max = self.settings.event_bytes_max;
        inflate(compressed, &mut whole, bytes_max, WHAT).or_else(|error| match error {
            EventError::TooLarge { length, .. } => self.check_length(length, bytes_max),
            error => Err(error.into()),
        })?;
        Ok(self.settings.budget.hold(whole))
    }

    fn insert(
        &mut self,
        map: &Bytes,
        body: &Bytes,
        event_bytes: u32,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        let Some(open) = &self.open else { return Ok(()) };
        self.check_length(event_bytes.into(), self.settings.event_bytes_max)?;
        let (log, transaction) = (open.log, open.number);
        let (fingerprint, adds_rows) = (open.fingerprint, open.adds_rows);
        let committed_at_micros = open.committed_at_micros;
        let has_changed = self.tables.has_changed();
        let layout = self.tables.layout(map, &self.settings)?;
        if has_changed && layout.keeps_history() {
            return Err(self.versioned());
        }
        let mut ordinal = self.held.count();
        let mut next = || {
            let identity = RowIdentity { log, transaction, ordinal, fingerprint };
            // At the last number `added` stops the transaction.
            ordinal = ordinal.saturating_add(1);
            OutboxRow::new(identity, committed_at_micros)
        };
        let held = &mut self.held;
        let mut give = |mut row: OutboxRow, logged: &[u8]| {
            if adds_rows {
                row.identity.fingerprint = fingerprint.with_row(logged);
            }
            held.push(row);
        };
        layout.read_rows(body, &mut next, &mut give)?;
        let event_bytes = usize::try_from(event_bytes).unwrap_or(usize::MAX).max(body.len());
        self.held.added(event_bytes, out)
    }
}
