//! What is looked at again while a stream is read: the log tells that something may have changed,
//! and the catalog what.
//!
//! Owns when a look is needed and what it judges. A statement that was logged as text may have
//! been a session's own wish, or the whole server writes no rows any more; the outbox may have
//! been altered to something that cannot be followed.

use std::time::{Duration, Instant};

use super::decoder::Notice;
use super::error::MySqlError;
use super::inspect::{self, TableState};
use super::precondition::{judge_kind, judge_server};
use super::session::{Session, Start, must_hold};
use super::sql::sql_connect;
use super::value::CatalogType;

/// How long an answer is good where text comes for text: a tool that writes thousands of them must
/// not cost thousands of connections.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What a session has looked at.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// Statements as text that were seen.
    statements: u64,
    /// When it was looked last; never, where nobody is to be asked.
    looked_at: Option<Instant>,
    is_off: bool,
}

impl Watch {
    /// Never looks: for a stream without a server.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self { is_off: true, ..Self::default() }
    }

    /// Whether a look is needed before anything more is handed over.
    fn is_concerned(&mut self, statements: u64, has_changed: bool) -> bool {
        let is_new = statements > self.statements;
        self.statements = statements;
        let is_known = self.looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL);
        if self.is_off || !has_changed && (!is_new || is_known) {
            return false;
        }
        self.looked_at = Some(Instant::now());
        true
    }
}

impl Session {
    /// Says what the log told, and whether the catalog must be asked before reading on.
    pub(crate) fn is_concerned(&mut self) -> bool {
        let notices = self.decoder.take_notices();
        let at = self.at();
        for notice in &notices {
            match notice {
                Notice::RenamedAway { to } => tracing::warn!(
                    at,
                    renamed_to = to,
                    "the outbox was renamed, and no table has its name: the position stays here \
                     until one has"
                ),
                Notice::Back => tracing::info!(at, "a table has the outbox's name again"),
                Notice::Filled => tracing::warn!(
                    at,
                    "rows came into the outbox with a table or a partition that took a place in \
                     it: such rows are not published, only those that are inserted"
                ),
                Notice::Prepared => tracing::warn!(
                    at,
                    "an XA transaction with rows of the outbox is prepared: walpost publishes \
                     nothing more until it ends"
                ),
                Notice::Skipped { transaction } => tracing::warn!(
                    at,
                    transaction,
                    "no row of this transaction is published: source.skip_transactions names it"
                ),
                Notice::Changed => {}
            }
        }
        let statements = self.decoder.ignored().statements;
        self.watch.is_concerned(statements, notices.contains(&Notice::Changed))
    }

    /// What the catalog says now.
    pub(crate) fn looked(&mut self, table: Option<&TableState>) {
        if let Some(table) = table {
            self.decoder.set_types(catalog_types(table));
        }
    }
}

/// The columns of which the log does not say what they are.
pub(crate) fn catalog_types(table: &TableState) -> Vec<(String, CatalogType)> {
    let columns = table.columns.iter();
    let types = columns.filter_map(|column| {
        let known = match column.data_type.as_str() {
            "uuid" => CatalogType::Uuid,
            "inet4" => CatalogType::Inet4,
            "inet6" => CatalogType::Inet6,
            _ => return None,
        };
        Some((column.name.clone(), known))
    });
    types.collect()
}

impl Start<'_> {
    /// Asks again for what may have changed. A table that is gone is no error: it may come again
    /// by the next statement, and until then nobody inserts into it.
    ///
    /// # Errors
    /// What does not hold any more: definite. Or no answer.
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept.
    pub(crate) async fn look(&self) -> Result<Option<TableState>, MySqlError> {
        let mut sql = sql_connect(self.info).await?;
        must_hold(judge_server(&inspect::server(&mut sql).await?))?;
        let table = inspect::table(&mut sql, &self.settings.table).await?;
        if let Some(table) = &table {
            must_hold(judge_kind(self.settings, table))?;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_needed_for_each_change_and_now_and_then_for_text() {
        let mut watch = Watch::default();
        assert!(!watch.is_concerned(0, false));
        assert!(watch.is_concerned(1, false));
        assert!(!watch.is_concerned(1, false), "nothing new");
        assert!(!watch.is_concerned(2, false), "it was just looked at");
        assert!(watch.is_concerned(2, true));
        watch.looked_at = Instant::now().checked_sub(LOOK_INTERVAL);
        assert!(!watch.is_concerned(2, false), "nothing new");
        assert!(watch.is_concerned(3, false));
    }
}
