//! The state between events: from the binlog's events to transactions, in commit order.
//!
//! Owns the order of the events, where a transaction ends, a row's identity and the counts of
//! what is left out. Pure and sync: knows no socket, and not where a position is kept.
//!
//! ```text
//!             GTID_…                        XID, COMMIT, one-phase XA: rows, then End
//!  outside ───────────▶ announced ─ BEGIN ─▶ open ─────────────────────────────────▶ outside
//!                           │                  │ ROLLBACK, XA PREPARE: no row, but an End
//!                           │                  ├ WRITE_ROWS of the outbox: held, see `held`
//!                           │                  ├ SAVEPOINT, ROLLBACK TO: marks in what is held
//!                           │                  └ DDL, other tables: counted
//!                           └ any other statement, alone: End
//! ```
//!
//! MariaDB's GTID_EVENT tells whether a group or a single statement follows, and stands for BEGIN.
//! A file that ends inside a transaction ends it without a trace: the server crashed, and did not
//! commit it either.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod error;
mod held;
mod rows;
mod skim;
mod tables;
mod transaction;
mod waiting;

use std::sync::Arc;

use bytes::Bytes;

pub use error::{DecodeError, Undecodable};
pub(crate) use waiting::Notice;

use super::event::body::{FormatDescription, Query, Rotate, XaPrepare, incident};
use super::event::gtid::{Begin, Form, Moment};
use super::event::{Checksum, Event, EventError, HEADER_LENGTH, Header, kind};
use super::gtid::{Flavor, Gtid};
use super::payload::{PayloadBounds, PayloadReader, Piece};
use super::value::CatalogType;
use crate::budget::Budget;
use crate::identity::{Fingerprint, LogId, OutboxId};
use crate::outbox::{Columns, OutboxRow};
use held::Held;
use tables::Tables;
use transaction::{Phase, Transaction, Xa};
use waiting::Waiting;

/// What comes out.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "rows are the rule; a box is an allocation a row")]
pub enum Decoded {
    /// An outbox row of the transaction that ends with the next [`End`](Decoded::End).
    Row(OutboxRow),
    /// Every row since the last one belongs to it.
    End(TransactionEnd),
}

/// The end of a transaction, of whatever tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionEnd {
    /// `None` where the server writes none.
    pub gtid: Option<Gtid>,
    /// The file it is in.
    pub file: Arc<str>,
    /// Where it ends there, and the next transaction begins, or events that belong to none.
    pub position: u64,
    /// Outbox rows that came out.
    pub rows: u32,
    /// It changed rows of walpost's own position table and of no other.
    pub own: bool,
}

/// What a decoder must know beforehand.
#[derive(Debug, Clone)]
pub struct DecoderSettings {
    /// Kind of server.
    pub flavor: Flavor,
    /// Schema of the outbox, as the server stores the name.
    pub schema: String,
    /// Table of the outbox, as the server stores the name.
    pub table: String,
    /// The mapping.
    pub columns: Columns,
    /// MySQL: the server's, which names the log where there are no GTIDs. MariaDB has none: the
    /// one that walpost made for this set of servers, see [`LogId::mariadb`].
    pub server_uuid: u128,
    /// Bound on one event that is inflated: a row can be no longer.
    pub event_bytes_max: usize,
    /// Bound on a transaction as MySQL compressed it, which comes as a single event.
    pub payload_bytes_max: usize,
    /// Bound on what is held back after a SAVEPOINT, in an XA transaction or behind one, in bytes
    /// of values.
    pub held_bytes_max: usize,
    /// Transactions of which nothing is read: a GTID, or a file and where it begins there.
    pub skipped: Vec<String>,
    /// Columns of which the log does not say what they are, by their names.
    pub types: Vec<(String, CatalogType)>,
    /// Counts the buffers that inflating makes.
    pub budget: Budget,
}

/// What was read and left out, since the decoder was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IgnoredCounts {
    /// Events with UPDATEs of outbox rows.
    pub updates: u64,
    /// Events with DELETEs of outbox rows.
    pub deletes: u64,
    /// Row events of other tables.
    pub foreign: u64,
    /// Statements that changed rows, logged as text, that do not name the outbox. A trigger or a
    /// function of such a statement may still have written to it.
    pub statements: u64,
    /// Outbox rows that a ROLLBACK in the log took back.
    pub rolled_back: u64,
    /// Transactions at whose middle a file ended.
    pub unfinished: u64,
    /// Row events and statements of the outbox in transactions that the settings leave out.
    pub skipped: u64,
}

/// Turns the events of one binlog stream into transactions.
#[derive(Debug)]
pub struct Decoder {
    settings: DecoderSettings,
    outbox: OutboxId,
    checksum: Checksum,
    file: Arc<str>,
    /// Where the event after the last one begins.
    position: u64,
    tables: Tables,
    open: Option<Transaction>,
    held: Held,
    waiting: Waiting,
    notices: Vec<Notice>,
    payload: PayloadReader,
    ignored: IgnoredCounts,
}

impl Decoder {
    /// A decoder that waits for [`reset`](Self::reset).
    pub fn new(settings: DecoderSettings) -> Self {
        let DecoderSettings { payload_bytes_max, event_bytes_max, held_bytes_max, .. } = settings;
        Self {
            tables: Tables::new(&settings),
            outbox: OutboxId::new(&settings.schema, &settings.table),
            held: Held::new(held_bytes_max),
            waiting: Waiting::new(held_bytes_max),
            notices: Vec::new(),
            payload: PayloadReader::new(PayloadBounds { payload_bytes_max, event_bytes_max }),
            settings,
            checksum: Checksum::Unknown,
            file: "".into(),
            position: 0,
            open: None,
            ignored: IgnoredCounts::default(),
        }
    }

    /// Begins a new connection that was asked for the log from there on; by GTID, file and
    /// position are what the first event tells, and "" and 4 before. What is kept: settings and
    /// counts.
    pub fn reset(&mut self, file: &str, position: u64) {
        self.checksum = Checksum::Unknown;
        self.file = file.into();
        self.position = position;
        self.tables.clear();
        self.open = None;
        self.held.clear();
        self.waiting.clear();
        self.notices.clear();
        self.payload.reset();
    }

    /// Whether a transaction began whose end did not come.
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a compressed transaction has more to give: [`step`](Self::step) comes before the
    /// next event.
    pub fn has_more(&self) -> bool {
        self.payload.is_open()
    }

    /// The file that is being read.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Where the next event begins in it. Nothing resumes inside a transaction.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What names the open transaction: its GTID, else its file and where it begins there.
    pub fn transaction(&self) -> Option<String> {
        self.open.as_ref().map(|open| self.name_of(open.gtid.as_ref(), open.begin))
    }

    /// What the catalog says of columns now.
    pub(crate) fn set_types(&mut self, types: Vec<(String, CatalogType)>) {
        if self.settings.types != types {
            self.settings.types = types;
            self.tables.forget_layout();
        }
    }

    /// What a person should hear of, since the last call.
    pub(crate) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What was left out.
    pub fn ignored(&self) -> IgnoredCounts {
        self.ignored
    }

    /// Bytes of the events whose rows are held back until their transaction ends.
    pub fn held_bytes(&self) -> usize {
        self.held.bytes()
    }

    /// Decodes one event: header, body and checksum, as the server sent it. Values of rows are
    /// slices of it where they can be. Of a compressed transaction only a part is decoded: see
    /// [`has_more`](Self::has_more).
    ///
    /// # Errors
    /// Nothing was appended, and the decoder needs a [`reset`](Self::reset). All are definite but
    /// for a wrong checksum, which may come from the way: see [`DecodeError::is_damage`].
    ///
    /// # Panics
    /// While [`has_more`](Self::has_more).
    pub fn event(&mut self, event: &Bytes, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        assert!(!self.has_more(), "a compressed transaction is decoded whole before what follows");
        let before = out.len();
        let result = Event::open(event, self.checksum)
            .map_err(DecodeError::from)
            .and_then(|event| self.outer(&event, out))
            .and_then(|()| self.waiting.pass(out, before));
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    /// Decodes a further part of a compressed transaction, at most one event or some 64 KiB.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn step(&mut self, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        let before = out.len();
        let result = self.piece(out).and_then(|()| self.waiting.pass(out, before));
        if result.is_err() {
            out.truncate(before);
        }
        result
    }

    /// An event of the file itself.
    fn outer(&mut self, event: &Event, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        let Event { header, body } = event;
        if !self.is_known(header) {
            return self.unknown(header);
        }
        match header.kind {
            // These two tell where the reader is instead of being there.
            kind::HEARTBEAT_LOG_EVENT | kind::HEARTBEAT_LOG_EVENT_V2 => Ok(()),
            kind::ROTATE_EVENT => self.rotate(body),
            kind::FORMAT_DESCRIPTION_EVENT => {
                self.checksum = FormatDescription::parse(body)?.checksum;
                // Sent again from its file's beginning, wherever the reader begins.
                self.position = self.position.max(header.next_position.into());
                self.abandon()
            }
            kind::STOP_EVENT => {
                self.advance(header);
                self.abandon()
            }
            kind::GTID_LOG_EVENT
            | kind::ANONYMOUS_GTID_LOG_EVENT
            | kind::GTID_TAGGED_LOG_EVENT
            | kind::GTID_EVENT => {
                self.advance(header);
                self.begin(header, body)
            }
            kind::TRANSACTION_PAYLOAD_EVENT => {
                self.advance(header);
                self.inside(header.kind, Phase::Announced)?;
                self.payload.begin(body)?;
                self.piece(out)
            }
            _ => {
                self.advance(header);
                self.inner(event, out)
            }
        }
    }

    /// An event that may stand inside a compressed transaction too.
    fn inner(&mut self, event: &Event, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        let Event { header, body } = event;
        self.held.pass(body.len(), &self.settings.budget);
        match header.kind {
            kind::TABLE_MAP_EVENT => {
                self.inside(header.kind, Phase::Open)?;
                if self.tables.learn(body, self.waiting.renamed_to())? {
                    self.waiting.back(&mut self.notices);
                }
                Ok(())
            }
            kind::WRITE_ROWS_EVENT_V1..=kind::DELETE_ROWS_EVENT_V1
            | kind::WRITE_ROWS_EVENT..=kind::DELETE_ROWS_EVENT
            | kind::PARTIAL_UPDATE_ROWS_EVENT
            | kind::WRITE_ROWS_COMPRESSED_EVENT_V1..=kind::DELETE_ROWS_COMPRESSED_EVENT => {
                self.rows(event, out)
            }
            kind::QUERY_EVENT | kind::EXECUTE_LOAD_QUERY_EVENT => {
                self.query(header, Query::parse(header.kind, body)?, out)
            }
            kind::QUERY_COMPRESSED_EVENT => {
                self.compressed_query(header, Query::parse(header.kind, body)?, out)
            }
            kind::XID_EVENT => {
                self.inside(header.kind, Phase::Open)?;
                self.commit(out)
            }
            kind::XA_PREPARE_LOG_EVENT => {
                self.inside(header.kind, Phase::Open)?;
                let XaPrepare { one_phase, id } = XaPrepare::parse(body)?;
                if one_phase { self.commit(out) } else { self.prepared(id, out) }
            }
            kind::INCIDENT_EVENT => {
                let (file, position) = (Arc::clone(&self.file), self.position);
                Err(DecodeError::Incident { message: incident(body)?, file, position })
            }
            _ => self.other(header),
        }
    }

    /// What is left out, or unknown.
    fn other(&self, header: &Header) -> Result<(), DecodeError> {
        match header.kind {
            // Variables of a statement that follows as text.
            kind::INTVAR_EVENT
            | kind::RAND_EVENT
            | kind::USER_VAR_EVENT
            // A file of LOAD DATA, whose text follows in EXECUTE_LOAD_QUERY_EVENT.
            | kind::BEGIN_LOAD_QUERY_EVENT
            | kind::APPEND_BLOCK_EVENT
            | kind::DELETE_FILE_EVENT
            // The text from which rows came.
            | kind::ROWS_QUERY_LOG_EVENT
            | kind::ANNOTATE_ROWS_EVENT
            // What went before, in other files.
            | kind::PREVIOUS_GTIDS_LOG_EVENT
            | kind::GTID_LIST_EVENT
            | kind::BINLOG_CHECKPOINT_EVENT
            // How the file is encrypted; what is sent is not.
            | kind::START_ENCRYPTION_EVENT
            // Of group replication.
            | kind::TRANSACTION_CONTEXT_EVENT
            | kind::VIEW_CHANGE_EVENT
            | kind::IGNORABLE_LOG_EVENT => Ok(()),
            _ => self.unknown(header),
        }
    }

    fn unknown(&self, header: &Header) -> Result<(), DecodeError> {
        if header.is_ignorable() {
            return Ok(());
        }
        let (file, position) = (Arc::clone(&self.file), self.position);
        Err(DecodeError::UnknownEvent { kind: header.kind, file, position })
    }

    /// The two kinds of server use numbers of their own, which the other does not have.
    fn is_known(&self, header: &Header) -> bool {
        match header.kind {
            kind::XA_PREPARE_LOG_EVENT => true,
            kind::GTID_LOG_EVENT..=kind::GTID_TAGGED_LOG_EVENT => {
                self.settings.flavor == Flavor::MySql
            }
            kind::ANNOTATE_ROWS_EVENT..=kind::DELETE_ROWS_COMPRESSED_EVENT => {
                self.settings.flavor == Flavor::MariaDb
            }
            _ => true,
        }
    }

    /// The next piece of a compressed transaction.
    fn piece(&mut self, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        let mut events = match self.payload.next(&self.settings.budget)? {
            Some(Piece::Events(events)) => events,
            Some(Piece::Large(head)) => {
                let is_skimmed = self.skims(&head)?;
                self.payload.judged(is_skimmed);
                return Ok(());
            }
            Some(Piece::Skimmed(head)) => {
                let header = Header::parse(&head)?;
                let body = head.slice(HEADER_LENGTH.min(head.len())..);
                return self.skimmed(&Event { header, body }, out);
            }
            None => return self.payload_ended(),
        };
        while !events.is_empty() {
            let length = usize::try_from(Header::parse(&events).map_err(EventError::from)?.length);
            let length = length.unwrap_or(usize::MAX).min(events.len());
            self.inner(&Event::inner(&events.split_to(length))?, out)?;
        }
        Ok(())
    }

    fn payload_ended(&self) -> Result<(), DecodeError> {
        // All of a transaction is in its payload, so this was its end, too.
        match self.open {
            Some(_) => {
                let (file, position) = (Arc::clone(&self.file), self.position);
                Err(DecodeError::Unended { file, position })
            }
            None => Ok(()),
        }
    }

    fn rotate(&mut self, body: &Bytes) -> Result<(), DecodeError> {
        let Rotate { position, file } = Rotate::parse(body)?;
        // Both the last event of a file and the artificial one before the next name it.
        if *self.file != *file {
            self.file = file.into();
        }
        self.position = position;
        self.abandon()
    }

    /// Where the event ends. The header tells it modulo 2^32, and tells 0 where it is not in the
    /// file.
    fn advance(&mut self, header: &Header) {
        const WRAP: u64 = 1 << 32;
        if header.next_position == 0 || header.is_artificial() {
            return;
        }
        let round = self.position - self.position % WRAP;
        let next = round + u64::from(header.next_position);
        self.position = if next < self.position { next.saturating_add(WRAP) } else { next };
    }

    fn begin(&mut self, header: &Header, body: &Bytes) -> Result<(), DecodeError> {
        if self.open.is_some() {
            return Err(DecodeError::Order { event: header.kind, place: "inside a transaction" });
        }
        let Begin { gtid, committed_at_micros, moment, form } = Begin::parse(header, body)?;
        let (log, number) = self.identity(gtid.as_ref(), header)?;
        let begin = self.position.saturating_sub(header.length.into());
        let is_skipped = self.skips(gtid.as_ref(), begin);
        let (micros, adds_rows) = match moment {
            Moment::Exact(micros) => (micros, false),
            Moment::Second(micros) => (micros, true),
        };
        let (phase, xa) = match form {
            Form::Announced => (Phase::Announced, Xa::No),
            Form::Standalone => (Phase::Standalone, Xa::No),
            Form::Group => (Phase::Open, Xa::No),
            Form::PreparedXa => (Phase::Open, Xa::WillPrepare),
        };
        self.held.begin();
        if xa == Xa::WillPrepare {
            self.held.hold();
        }
        self.open = Some(Transaction {
            gtid,
            log,
            number,
            fingerprint: Fingerprint::new(self.outbox, micros),
            adds_rows,
            committed_at_micros,
            phase,
            xa,
            changed_own: false,
            changed_others: false,
            begin,
            is_skipped,
        });
        Ok(())
    }

    /// Whether the settings leave this transaction out.
    fn skips(&mut self, gtid: Option<&Gtid>, begin: u64) -> bool {
        if self.settings.skipped.is_empty() {
            return false;
        }
        let transaction = self.name_of(gtid, begin);
        let is_named = |name: &String| name.eq_ignore_ascii_case(&transaction);
        let skips = self.settings.skipped.iter().any(is_named);
        if skips {
            self.notices.push(Notice::Skipped { transaction });
        }
        skips
    }

    /// What names a transaction to people.
    fn name_of(&self, gtid: Option<&Gtid>, begin: u64) -> String {
        match gtid {
            Some(gtid) => gtid.to_string(),
            None => format!("{}:{begin}", self.file),
        }
    }

    /// What names the rows of a transaction: its GTID, else where it begins.
    fn identity(&self, gtid: Option<&Gtid>, header: &Header) -> Result<(LogId, u64), DecodeError> {
        match gtid {
            Some(Gtid::MySql { source, tag, number }) => {
                Ok((LogId::mysql(*source, tag.as_deref()), *number))
            }
            Some(Gtid::MariaDb { domain, server, number }) => {
                Ok((LogId::mariadb(self.settings.server_uuid, *domain, *server), *number))
            }
            None => {
                let begin = self.position.saturating_sub(header.length.into());
                let number = file_number(&self.file).zip(u32::try_from(begin).ok());
                let Some((file, begin)) = number else {
                    let file = Arc::clone(&self.file);
                    return Err(DecodeError::Unnameable { file, position: begin });
                };
                let number = (u64::from(file) << 32) | u64::from(begin);
                Ok((LogId::mysql(self.settings.server_uuid, None), number))
            }
        }
    }

    /// The open transaction, for an event that has its place only in this phase of it.
    fn inside(&mut self, event: u8, phase: Phase) -> Result<&mut Transaction, DecodeError> {
        match &mut self.open {
            Some(open) if open.phase == phase => Ok(open),
            Some(_) => Err(DecodeError::Order { event, place: "at the beginning or end of one" }),
            None => Err(DecodeError::Order { event, place: "outside of a transaction" }),
        }
    }
}

/// The number that a file's name ends in.
fn file_number(file: &str) -> Option<u32> {
    let (_, number) = file.rsplit_once('.')?;
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests;
