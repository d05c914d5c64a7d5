//! The transaction that is open: what statements and its last event do to it.

use std::sync::Arc;

use super::waiting::{Notice, Prepared};
use super::{DecodeError, Decoded, Decoder, TransactionEnd};
use crate::identity::{Fingerprint, LogId};
use crate::source::mysql::event::body::Query;
use crate::source::mysql::event::compressed::{inflate, inflate_head};
use crate::source::mysql::event::{EventError, Header};
use crate::source::mysql::gtid::Gtid;
use crate::source::mysql::skim::HEAD_BYTES;
use crate::source::mysql::statement::{Statement, Table, ddl, passes};

/// A transaction whose end did not come yet.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) gtid: Option<Gtid>,
    /// The parts of an identity that all its rows share.
    pub(super) log: LogId,
    pub(super) number: u64,
    pub(super) fingerprint: Fingerprint,
    /// Other transactions may have the same fingerprint: each row adds itself.
    pub(super) adds_rows: bool,
    pub(super) committed_at_micros: i64,
    pub(super) phase: Phase,
    pub(super) xa: Xa,
    /// It has row events of walpost's position table.
    pub(super) changed_own: bool,
    /// It has row events of another table, or of the outbox.
    pub(super) changed_others: bool,
    /// Where it begins in its file.
    pub(super) begin: u64,
    /// The settings leave it out.
    pub(super) is_skipped: bool,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// MySQL: BEGIN, or a statement that is alone, or a compressed transaction.
    Announced,
    /// MariaDB: a statement that is alone.
    Standalone,
    /// Rows, up to an event that ends it.
    Open,
}

/// Whether it belongs to an XA transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Xa {
    No,
    /// MySQL: the last event will tell how it ended, in one phase or in two.
    Started,
    /// MariaDB: it ends in XA PREPARE.
    WillPrepare,
}

impl Decoder {
    pub(super) fn query(
        &mut self,
        header: &Header,
        query: Query<'_>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        let (schema, table) = (self.settings.schema.as_bytes(), self.settings.table.as_bytes());
        let statement = Statement::parse(query.text, query.schema, Table { schema, table });
        let event = header.kind;
        let Some(open) = &mut self.open else {
            return Err(DecodeError::Order { event, place: "outside of a transaction" });
        };
        if let Statement::Dml { writes } = statement {
            match (writes, open.is_skipped) {
                (true, true) => self.ignored.skipped += 1,
                (true, false) => return Err(self.logged_as_text()),
                (false, _) => self.ignored.statements += 1,
            }
        }
        match open.phase {
            Phase::Announced => match statement {
                Statement::Begin => {
                    open.phase = Phase::Open;
                    Ok(())
                }
                Statement::XaStart => {
                    open.phase = Phase::Open;
                    open.xa = Xa::Started;
                    self.held.hold();
                    Ok(())
                }
                statement => self.alone(&statement, query, out),
            },
            Phase::Standalone => match statement {
                Statement::Empty => Ok(()),
                Statement::Begin | Statement::XaStart => {
                    Err(DecodeError::Order { event, place: "after a GTID of a single statement" })
                }
                statement => self.alone(&statement, query, out),
            },
            Phase::Open => self.within(event, &statement, out),
        }
    }

    /// MariaDB compressed its text.
    pub(super) fn compressed_query(
        &mut self,
        header: &Header,
        query: Query<'_>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        const WHAT: &str = "QUERY_COMPRESSED_EVENT";
        let Query { schema, text: compressed } = query;
        let mut text = Vec::new();
        let bytes_max = self.settings.event_bytes_max;
        match inflate(compressed, &mut text, bytes_max, WHAT) {
            Ok(()) => self.query(header, Query { schema, text: &text }, out),
            Err(error @ EventError::TooLarge { .. }) => {
                // A statement on another table may be as large as it likes.
                let text = inflate_head(compressed, HEAD_BYTES, WHAT)?;
                let (ours, table) =
                    (self.settings.schema.as_bytes(), self.settings.table.as_bytes());
                if !passes(&text, schema, Table { schema: ours, table }) {
                    return Err(error.into());
                }
                self.inside(header.kind, Phase::Open)?;
                self.ignored.statements += 1;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A statement that is a whole transaction.
    fn alone(
        &mut self,
        statement: &Statement<'_>,
        query: Query<'_>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        match statement {
            Statement::XaRollback(id) => {
                if let Some(prepared) = self.waiting.ended(id) {
                    self.ignored.rolled_back += u64::from(prepared.rows);
                }
            }
            Statement::XaCommit(id) => {
                if let Some(prepared) = self.waiting.ended(id) {
                    return Err(self.refused_xa(prepared));
                }
            }
            _ => self.follow(query)?,
        }
        self.commit(out)
    }

    /// What a statement does to the outbox's name and definition.
    fn follow(&mut self, query: Query<'_>) -> Result<(), DecodeError> {
        let (schema, table) = (self.settings.schema.as_bytes(), self.settings.table.as_bytes());
        let outbox = Table { schema, table };
        let at = (&self.file, self.position);
        let is_skipped = self.open.as_ref().is_some_and(|open| open.is_skipped);
        let changes = match ddl::changes(query.text, query.schema, outbox) {
            Ok(changes) => changes,
            Err(ddl::Unclear) if is_skipped => return Ok(()),
            Err(ddl::Unclear) => return Err(self.unclear_rename()),
        };
        let followed = self.waiting.follow(&changes, outbox, at, &mut self.notices);
        followed.or_else(|_| if is_skipped { Ok(()) } else { Err(self.unclear_rename()) })
    }

    /// A statement between the first and the last event of a transaction.
    fn within(
        &mut self,
        event: u8,
        statement: &Statement<'_>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        match statement {
            Statement::Commit => self.commit(out),
            Statement::Rollback => self.roll_back(out),
            Statement::Savepoint(name) => {
                self.held.set_savepoint(name);
                Ok(())
            }
            Statement::RollbackTo(name) => {
                self.ignored.rolled_back += self.held.roll_back_to(name)?;
                Ok(())
            }
            Statement::Release(name) => {
                self.held.release(name);
                Ok(())
            }
            Statement::Begin
            | Statement::XaStart
            | Statement::XaCommit(_)
            | Statement::XaRollback(_) => {
                Err(DecodeError::Order { event, place: "inside a transaction" })
            }
            // DDL has its place here too: CREATE TABLE … SELECT, temporary tables.
            Statement::XaEnd
            | Statement::XaPrepare
            | Statement::Empty
            | Statement::Dml { .. }
            | Statement::Other => Ok(()),
        }
    }

    /// The transaction happened: its rows come out, and its end.
    pub(super) fn commit(&mut self, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        let rows = self.held.hand_over_all(out);
        self.end(rows, out);
        Ok(())
    }

    /// It did not happen, but it has a GTID and a place in the log all the same.
    fn roll_back(&mut self, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        self.ignored.rolled_back += self.held.drop_all()?;
        self.end(0, out);
        Ok(())
    }

    /// It may still happen, or not: what comes later is only XA COMMIT or XA ROLLBACK.
    pub(super) fn prepared(
        &mut self,
        id: Vec<u8>,
        out: &mut Vec<Decoded>,
    ) -> Result<(), DecodeError> {
        let rows = self.held.count();
        if rows > 0 {
            let transaction = self.transaction().unwrap_or_default();
            let (file, position) = (Arc::clone(&self.file), self.position);
            self.waiting.prepare(Prepared { id, transaction, rows, file, position });
            self.notices.push(Notice::Prepared);
            // None of them is published: they are rolled back, or walpost stops.
            self.held.begin();
        }
        self.end(0, out);
        Ok(())
    }

    fn end(&mut self, rows: u32, out: &mut Vec<Decoded>) {
        self.tables.clear();
        if let Some(open) = self.open.take() {
            out.push(Decoded::End(TransactionEnd {
                gtid: open.gtid,
                file: Arc::clone(&self.file),
                position: self.position,
                rows,
                own: open.changed_own && !open.changed_others,
            }));
        }
    }

    /// The file ends inside a transaction: the server went down before it was committed.
    pub(super) fn abandon(&mut self) -> Result<(), DecodeError> {
        self.tables.clear();
        if self.open.take().is_some() {
            self.ignored.unfinished += 1;
            self.ignored.rolled_back += self.held.drop_all()?;
        }
        Ok(())
    }

    fn refused_xa(&self, prepared: Prepared) -> DecodeError {
        let Prepared { transaction, rows, file, position, .. } = prepared;
        DecodeError::Xa { table: self.table_name(), transaction, rows, file, position }
    }

    pub(super) fn renamed_rows(&self) -> DecodeError {
        let (schema, table) = self.waiting.renamed_to().unwrap_or_default();
        let to = format!("{schema}.{table}");
        let (file, position) = (Arc::clone(&self.file), self.position);
        DecodeError::RenamedRows { table: self.table_name(), to, file, position }
    }

    pub(super) fn versioned(&self) -> DecodeError {
        let (file, position) = (Arc::clone(&self.file), self.position);
        DecodeError::Versioned { table: self.table_name(), file, position }
    }

    fn unclear_rename(&self) -> DecodeError {
        let (file, position) = (Arc::clone(&self.file), self.position);
        DecodeError::UnclearRename { table: self.table_name(), file, position }
    }

    fn logged_as_text(&self) -> DecodeError {
        let (table, file, position) = (self.table_name(), self.file.clone(), self.position);
        DecodeError::StatementFormat { table, file, position }
    }

    pub(super) fn table_name(&self) -> String {
        format!("{}.{}", self.settings.schema, self.settings.table)
    }
}
