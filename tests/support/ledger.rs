//! The ground truth of a fault test: which rows were written, and what became of them.
//!
//! Writers enter a transaction's rows before they ask for its commit, and its outcome after.
//! Knows nothing of brokers.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::postgres::Client;
use super::slot::parse_lsn;

/// What a transaction became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its rows were entered; COMMIT or ROLLBACK has not been answered yet.
    Open,
    /// Committed; its commit record ends at or before this LSN.
    Committed {
        lsn_max: u64,
    },
    RolledBack,
    /// The connection broke between COMMIT and its answer; see [`Ledger::settle`].
    Unknown {
        xid: u64,
        marker: u64,
    },
}

/// A row that was inserted.
#[derive(Debug, Clone)]
pub struct WrittenRow {
    /// Unique in the run of the test binary.
    pub row: u64,
    /// Index into the ledger's transactions.
    pub transaction: usize,
    pub key: String,
    /// Counts the inserts of this key from 1; rolled-back ones leave gaps.
    pub seq: u64,
    pub id: String,
    pub event_type: String,
    /// SHA-256 of `payload::text`.
    pub payload_hash: Vec<u8>,
    /// Its savepoint was rolled back, whatever the transaction became.
    pub undone: bool,
}

#[derive(Debug, Clone, Default)]
struct Entries {
    rows: Vec<WrittenRow>,
    outcomes: Vec<Outcome>,
}

/// Rows and outcomes of all writers of a test; shared between them.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

impl Ledger {
    pub fn new() -> Ledger {
        Ledger::default()
    }

    /// Enters a transaction with its rows, before COMMIT is sent. The rows' `transaction` is set
    /// here; the answer names it to [`Ledger::outcome`].
    pub fn enter(&self, rows: Vec<WrittenRow>) -> usize {
        let mut entries = self.lock();
        let transaction = entries.outcomes.len();
        entries.outcomes.push(Outcome::Open);
        entries.rows.extend(rows.into_iter().map(|row| WrittenRow { transaction, ..row }));
        transaction
    }

    /// Notes what became of a transaction.
    pub fn outcome(&self, transaction: usize, outcome: Outcome) {
        self.lock().outcomes[transaction] = outcome;
    }

    /// Asks the server what became of the transactions with unknown outcome, by the writers'
    /// table of `markers`; true when none is left. Errors of the connection leave them unknown.
    pub fn settle(&self, client: &Client, markers: &str) -> bool {
        let outcomes = self.lock().outcomes.clone();
        let mut all = true;
        for (transaction, outcome) in outcomes.into_iter().enumerate() {
            let Outcome::Unknown { xid, marker } = outcome else { continue };
            match settled(client, markers, xid, marker) {
                Some(outcome) => self.outcome(transaction, outcome),
                None => all = false,
            }
        }
        all
    }

    /// Every row with what became of it: rolled back to a savepoint is rolled back.
    pub fn rows(&self) -> Vec<(WrittenRow, Outcome)> {
        let entries = self.lock();
        let rows = entries.rows.iter().map(|row| {
            let whole = entries.outcomes[row.transaction];
            (row.clone(), if row.undone { Outcome::RolledBack } else { whole })
        });
        rows.collect()
    }

    /// How many rows are known to be committed.
    pub fn committed(&self) -> usize {
        let rows = self.rows();
        rows.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Committed { .. })).count()
    }

    /// Writes one line a row, to read after a failure.
    pub fn save(&self, path: &Path) {
        let mut file = std::fs::File::create(path).expect("the ledger's file can be made");
        for (row, outcome) in self.rows() {
            writeln!(file, "{outcome:?} {row:?}").expect("the ledger's file can be written");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("no writer panics while it holds the ledger")
    }
}

/// What became of a transaction whose COMMIT was not answered; `None` while it is still in
/// progress (its backend may outlive the connection) or the server does not answer.
///
/// `pg_xact_status` alone would lie: after a crash the server gives out again the ids of
/// transactions whose log never reached the disk, and speaks of the new owner. So it only says
/// that nothing is in progress any more, and a row that the transaction left in `markers` tells
/// the outcome.
pub fn settled(client: &Client, markers: &str, xid: u64, marker: u64) -> Option<Outcome> {
    let status = client.try_rows(&format!("SELECT pg_xact_status('{xid}'::xid8)"));
    // An id that the crash took back is in the future: an error of the server's, not ours.
    match status {
        Ok(rows) if rows[0][0].as_deref() == Some("in progress") => return None,
        Ok(_) => {}
        Err(error) if error.as_db_error().is_some() => {}
        Err(_) => return None,
    }
    let sql = format!("SELECT FROM {markers} WHERE marker = {marker}");
    if client.try_rows(&sql).ok()?.is_empty() {
        return Some(Outcome::RolledBack);
    }
    let bound = client.try_rows("SELECT pg_current_wal_insert_lsn()").ok()?;
    Some(Outcome::Committed { lsn_max: parse_lsn(bound[0][0].as_deref()?) })
}

/// SHA-256, as [`WrittenRow::payload_hash`] holds it.
pub fn hash(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}
