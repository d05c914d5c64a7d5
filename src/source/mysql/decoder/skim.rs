//! What becomes of a large event before all of it is there, by its first bytes.
//!
//! Owns the rule that only the outbox is bounded: rows of other tables, and what is left out
//! anyway, pass by without being held in memory, however large they are.

use super::rows::{Change, RowsKind};
use super::tables::Known;
use super::transaction::Phase;
use super::{DecodeError, Decoded, Decoder};
use crate::source::mysql::event::body::{Query, RowsHead};
use crate::source::mysql::event::{Checksum, Event, EventError, HEADER_LENGTH, Header, kind};
use crate::source::mysql::skim::Skimmed;
use crate::source::mysql::statement::{Table, passes};

impl Decoder {
    /// Whether an event that begins so can be passed over: [`pass_over`](Self::pass_over) comes
    /// in place of [`event`](Self::event) then.
    ///
    /// # Errors
    /// A row of the outbox above the bound.
    pub(crate) fn skims(&self, head: &[u8]) -> Result<bool, DecodeError> {
        let header = Header::parse(head)?;
        let body = head.get(HEADER_LENGTH..).unwrap_or_default();
        let is_open = self.open.as_ref().is_some_and(|open| open.phase == Phase::Open);
        if !self.is_known(&header) {
            return Ok(false);
        }
        Ok(match header.kind {
            kind::WRITE_ROWS_EVENT_V1..=kind::DELETE_ROWS_EVENT_V1
            | kind::WRITE_ROWS_EVENT..=kind::DELETE_ROWS_EVENT
            | kind::PARTIAL_UPDATE_ROWS_EVENT
            | kind::WRITE_ROWS_COMPRESSED_EVENT_V1..=kind::DELETE_ROWS_COMPRESSED_EVENT => {
                is_open && self.skims_rows(&header, body)?
            }
            kind::QUERY_EVENT => is_open && self.skims_query(&header, body),
            kind::QUERY_COMPRESSED_EVENT
            | kind::EXECUTE_LOAD_QUERY_EVENT
            | kind::TABLE_MAP_EVENT
            | kind::XID_EVENT
            | kind::XA_PREPARE_LOG_EVENT
            | kind::INCIDENT_EVENT
            | kind::TRANSACTION_PAYLOAD_EVENT
            | kind::FORMAT_DESCRIPTION_EVENT
            | kind::ROTATE_EVENT => false,
            _ => self.other(&header).is_ok(),
        })
    }

    fn skims_rows(&self, header: &Header, body: &[u8]) -> Result<bool, DecodeError> {
        let RowsKind { change, version, .. } = RowsKind::of(header.kind);
        let Some(table) = RowsHead::parse(version, body)?.table else { return Ok(false) };
        let is_skipped = self.open.as_ref().is_some_and(|open| open.is_skipped);
        match (self.tables.find(table)?, change) {
            (Known::Outbox(_) | Known::Renamed, Change::Write) if is_skipped => Ok(true),
            (Known::Outbox(_), Change::Write) => {
                self.check_length(header.length.into(), self.settings.event_bytes_max)?;
                Ok(false)
            }
            (Known::Renamed, Change::Write) => Ok(false),
            (Known::Foreign | Known::Position | Known::Outbox(_) | Known::Renamed, _) => Ok(true),
        }
    }

    /// Whether it is a statement on another table. Nothing is known of what is behind its
    /// beginning.
    fn skims_query(&self, header: &Header, body: &[u8]) -> bool {
        let (schema, table) = (self.settings.schema.as_bytes(), self.settings.table.as_bytes());
        Query::parse(header.kind, body)
            .is_ok_and(|query| passes(query.text, query.schema, Table { schema, table }))
    }

    /// An event that was passed over: what it means for the position and the counts.
    ///
    /// # Errors
    /// Its checksum does not fit: what was believed of it may be wrong.
    pub(crate) fn pass_over(
        &mut self,
        skimmed: &Skimmed,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        let Skimmed { head, length, stated, computed } = skimmed;
        let header = Header::parse(head)?;
        if u64::from(header.length) != *length {
            let found = usize::try_from(*length).unwrap_or(usize::MAX);
            let (kind, stated) = (header.kind, header.length);
            return Err(EventError::Length { kind, stated, found }.into());
        }
        if self.checksum == Checksum::Crc32 && stated != computed {
            let (kind, stated, computed) = (header.kind, *stated, *computed);
            return Err(EventError::Checksum { kind, stated, computed }.into());
        }
        self.advance(&header);
        let body = head.slice(HEADER_LENGTH.min(head.len())..);
        self.skimmed(&Event { header, body }, out)
    }

    /// The same of an event inside a compressed transaction. Of its body only the beginning is
    /// there.
    pub(super) fn skimmed(
        &mut self,
        event: &Event,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        match event.header.kind {
            kind::QUERY_EVENT => {
                self.ignored.statements += 1;
                Ok(())
            }
            kind::WRITE_ROWS_EVENT_V1..=kind::DELETE_ROWS_EVENT_V1
            | kind::WRITE_ROWS_EVENT..=kind::DELETE_ROWS_EVENT
            | kind::PARTIAL_UPDATE_ROWS_EVENT
            | kind::WRITE_ROWS_COMPRESSED_EVENT_V1..=kind::DELETE_ROWS_COMPRESSED_EVENT => {
                self.rows(event, out)
            }
            _ => Ok(()),
        }
    }

    /// An event of the outbox with so many bytes.
    pub(super) fn check_length(&self, bytes: u64, bytes_max: usize) -> Result<(), DecodeError> {
        match usize::try_from(bytes).is_ok_and(|bytes| bytes <= bytes_max) {
            true => Ok(()),
            false => Err(DecodeError::RowTooLarge { table: self.table_name(), bytes, bytes_max }),
        }
    }
}
