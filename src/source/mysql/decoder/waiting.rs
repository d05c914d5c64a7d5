//! What waits for its outcome, which comes later in the log: an outbox that was renamed away, and
//! XA transactions that are prepared with rows of the outbox.
//!
//! Owns what is decoded meanwhile. None of it is handed over, so that the position stays before
//! what waits: a relay that is started again reads it again, and knows again that it waits.
//!
//! ```text
//! RENAME outbox TO x ──▶ away ─┬─ another table gets the name, or it comes back: all goes on
//!                              └─ a row is inserted into x: an error, before that row
//! XA PREPARE, with rows ─▶ prepared ─┬─ XA ROLLBACK: nothing happened, all goes on
//!                                    └─ XA COMMIT: an error; the position is before the rows
//! ```

use std::sync::Arc;

use bytes::Bytes;

use super::{DecodeError, Decoded};
use crate::source::mysql::statement::Table;
use crate::source::mysql::statement::ddl::{Change, Name};

/// Transactions and rows that may wait: seconds of a busy server.
const WAITING_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct Waiting {
    renamed: Option<Renamed>,
    prepared: Vec<Prepared>,
    decoded: Vec<Decoded>,
    bytes: usize,
    bytes_max: usize,
}

/// An outbox whose name no table has.
#[derive(Debug)]
struct Renamed {
    schema: String,
    table: String,
    file: Arc<str>,
    position: u64,
}

/// An XA transaction with rows of the outbox.
#[derive(Debug)]
pub(super) struct Prepared {
    /// As the server writes it behind XA COMMIT, without blanks.
    pub(super) id: Vec<u8>,
    /// What names the transaction in which its rows are logged.
    pub(super) transaction: String,
    pub(super) rows: u32,
    pub(super) file: Arc<str>,
    pub(super) position: u64,
}

/// What a person should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The outbox was renamed, and no table has its name.
    RenamedAway {
        /// Schema and name that it has now.
        to: String,
    },
    /// It has its name again, or another table has.
    Back,
    /// A table took the outbox's name, or a partition its place; rows that it brought are not
    /// published.
    Filled,
    /// The definition of the outbox changed: whether it can still be followed stands in the
    /// catalog.
    Changed,
    /// An XA transaction with rows of the outbox is prepared.
    Prepared,
    /// A transaction was left out, as the settings say.
    Skipped {
        /// What names it.
        transaction: String,
    },
}

impl Waiting {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { renamed: None, prepared: Vec::new(), decoded: Vec::new(), bytes: 0, bytes_max }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Where the outbox is while no table has its name.
    pub(super) fn renamed_to(&self) -> Option<(&str, &str)> {
        self.renamed.as_ref().map(|renamed| (&*renamed.schema, &*renamed.table))
    }

    fn is_open(&self) -> bool {
        self.renamed.is_some() || !self.prepared.is_empty()
    }

    /// Follows the names of tables through a statement.
    pub(super) fn follow(
        &mut self,
        changes: &[Change],
        outbox: Table<'_>,
        at: (&Arc<str>, u64),
        notices: &mut Vec<Notice>,
    ) -> Result<(), Name> {
        for change in changes {
            match change {
                Change::Renamed { from, to } => self.rename(from, to, outbox, at, notices)?,
                Change::Created(name) if name.is(outbox) => {
                    self.back(notices);
                    notices.push(Notice::Changed);
                }
                Change::Dropped(name) if self.is_renamed_to(name) => self.back(notices),
                Change::Filled(name) if name.is(outbox) => notices.push(Notice::Filled),
                Change::Altered(name) if name.is(outbox) => notices.push(Notice::Changed),
                Change::Created(_)
                | Change::Dropped(_)
                | Change::Filled(_)
                | Change::Altered(_) => {}
            }
        }
        Ok(())
    }

    /// # Errors
    /// The new name cannot be recognised in row events.
    fn rename(
        &mut self,
        from: &Name,
        to: &Name,
        outbox: Table<'_>,
        (file, position): (&Arc<str>, u64),
        notices: &mut Vec<Notice>,
    ) -> Result<(), Name> {
        let is_ours = match self.renamed {
            Some(_) => self.is_renamed_to(from),
            None => from.is(outbox),
        };
        if to.is(outbox) {
            if !is_ours {
                notices.push(Notice::Filled);
            }
            notices.push(Notice::Changed);
            self.back(notices);
        } else if is_ours {
            let (schema, table) = to.texts().ok_or_else(|| to.clone())?;
            notices.push(Notice::RenamedAway { to: format!("{schema}.{table}") });
            let (schema, table) = (schema.to_owned(), table.to_owned());
            self.renamed = Some(Renamed { schema, table, file: Arc::clone(file), position });
        }
        Ok(())
    }

    fn is_renamed_to(&self, name: &Name) -> bool {
        self.renamed_to().is_some_and(|(schema, table)| {
            name.is(Table { schema: schema.as_bytes(), table: table.as_bytes() })
        })
    }

    /// A table has the outbox's name.
    pub(super) fn back(&mut self, notices: &mut Vec<Notice>) {
        if self.renamed.take().is_some() {
            notices.push(Notice::Back);
        }
    }

    /// An XA transaction was prepared, and its rows are in the log.
    pub(super) fn prepare(&mut self, prepared: Prepared) {
        self.prepared.push(prepared);
    }

    /// An XA transaction ended that may have been prepared here.
    pub(super) fn ended(&mut self, id: &[u8]) -> Option<Prepared> {
        let id = without_blanks(id);
        let index = self.prepared.iter().position(|prepared| prepared.id == id)?;
        Some(self.prepared.remove(index))
    }

    /// Hands over what was decoded, unless it has to wait.
    pub(super) fn pass(&mut self, out: &mut Vec<Decoded>, from: usize) -> Result<(), DecodeError> {
        if !self.is_open() {
            if !self.decoded.is_empty() {
                out.splice(from..from, self.decoded.drain(..));
                self.bytes = 0;
            }
            return Ok(());
        }
        for mut decoded in out.drain(from..) {
            if let Decoded::Row(row) = &mut decoded {
                // Counted here; and what it was read with is let go of.
                row.copy_out(|values| {
                    self.bytes = self.bytes.saturating_add(values.len());
                    Bytes::from(values)
                });
            }
            self.decoded.push(decoded);
        }
        if self.decoded.len() <= WAITING_MAX && self.bytes <= self.bytes_max {
            return Ok(());
        }
        match (&self.renamed, self.prepared.first()) {
            (_, Some(prepared)) => Err(DecodeError::XaOpen {
                transaction: prepared.transaction.clone(),
                file: Arc::clone(&prepared.file),
                position: prepared.position,
            }),
            (Some(renamed), None) => Err(DecodeError::Renamed {
                to: format!("{}.{}", renamed.schema, renamed.table),
                file: Arc::clone(&renamed.file),
                position: renamed.position,
            }),
            (None, None) => Ok(()),
        }
    }
}

/// What names an XA transaction: `X'6f6e65',X'',1`, of which servers write some with blanks, and
/// MariaDB some with the word behind it that says in how many phases it was committed.
pub(super) fn without_blanks(id: &[u8]) -> Vec<u8> {
    let mut id: Vec<u8> = id.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    id.make_ascii_uppercase();
    let trimmed = id.strip_suffix(b"ONEPHASE").map(<[u8]>::len);
    id.truncate(trimmed.unwrap_or(id.len()));
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::mysql::statement::ddl::changes;

    const OUTBOX: Table<'static> = Table { schema: b"app", table: b"outbox" };

    /// Where the outbox is after these statements, and what was to be told.
    fn after(statements: &[&str]) -> (Option<String>, Vec<Notice>) {
        let mut waiting = Waiting::new(1 << 20);
        let mut notices = Vec::new();
        for statement in statements {
            let changes = changes(statement.as_bytes(), b"app", OUTBOX).unwrap();
            waiting.follow(&changes, OUTBOX, (&"binlog.1".into(), 4), &mut notices).unwrap();
        }
        let renamed = waiting.renamed_to().map(|(schema, table)| format!("{schema}.{table}"));
        (renamed, notices)
    }

    #[test]
    fn an_outbox_is_away_until_a_table_has_its_name() {
        for (statements, renamed) in [
            (&["RENAME TABLE outbox TO old"][..], Some("app.old")),
            (&["ALTER TABLE outbox RENAME other.x", "RENAME TABLE other.x TO y"], Some("app.y")),
            (&["RENAME TABLE outbox TO old", "RENAME TABLE old TO outbox"], None),
            (&["RENAME TABLE outbox TO old, fresh TO outbox"], None),
            (&["RENAME TABLE outbox TO t, fresh TO outbox, t TO fresh"], None),
            (&["RENAME TABLE outbox TO old", "CREATE TABLE outbox LIKE old"], None),
            (&["RENAME TABLE outbox TO old", "DROP TABLE old"], None),
            (&["RENAME TABLE orders TO old"], None),
            (&["RENAME TABLE other.outbox TO old"], None),
        ] {
            assert_eq!(after(statements).0.as_deref(), renamed, "{statements:?}");
        }
    }

    #[test]
    fn a_table_that_takes_the_name_is_told_of_with_its_rows() {
        let (_, notices) = after(&["RENAME TABLE outbox TO old, fresh TO outbox"]);
        assert!(notices.contains(&Notice::Filled), "{notices:?}");
        let (_, notices) = after(&["RENAME TABLE outbox TO old", "RENAME TABLE old TO outbox"]);
        assert!(!notices.contains(&Notice::Filled), "{notices:?}");
    }

    #[test]
    fn one_xa_transaction_has_one_name_however_it_is_written() {
        let names = ["X'6f6e65',X'',1", " X'6F6E65', X'', 1 ", "X'6F6E65',X'',1 ONE PHASE"];
        for name in names {
            assert_eq!(without_blanks(name.as_bytes()), b"X'6F6E65',X'',1", "{name}");
        }
    }
}
