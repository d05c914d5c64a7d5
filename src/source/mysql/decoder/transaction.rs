//! The transaction that is open: what statements and its last event do to it.

use std::sync::Arc;

use super::{DecodeError, Decoded, Decoder, TransactionEnd};
use crate::identity::{Fingerprint, LogId};
use crate::source::mysql::event::Header;
use crate::source::mysql::event::body::Query;
use crate::source::mysql::gtid::Gtid;
use crate::source::mysql::statement::{Statement, Table};

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
        if let Statement::Dml { names_table } = statement {
            if names_table {
                return Err(self.logged_as_text());
            }
            self.ignored.statements += 1;
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
                _ => self.commit(out),
            },
            Phase::Standalone => match statement {
                Statement::Empty => Ok(()),
                Statement::Begin | Statement::XaStart => {
                    Err(DecodeError::Order { event, place: "after a GTID of a single statement" })
                }
                _ => self.commit(out),
            },
            Phase::Open => self.within(event, &statement, out),
        }
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
            Statement::Begin | Statement::XaStart | Statement::XaCommit | Statement::XaRollback => {
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
    pub(super) fn prepared(&mut self, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
        if self.held.count() > 0 {
            return Err(self.refused_xa());
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

    pub(super) fn refused_xa(&self) -> DecodeError {
        DecodeError::Xa {
            table: self.table_name(),
            file: self.file.clone(),
            position: self.position,
        }
    }

    fn logged_as_text(&self) -> DecodeError {
        let (table, file, position) = (self.table_name(), self.file.clone(), self.position);
        DecodeError::StatementFormat { table, file, position }
    }

    pub(super) fn table_name(&self) -> String {
        format!("{}.{}", self.settings.schema, self.settings.table)
    }
}
