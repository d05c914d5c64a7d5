//! The ground truth of a fault test: which rows were written, and what became of them.
//!
//! Writers enter a transaction's rows before they ask for its commit, and its outcome after.
//! Knows nothing of brokers.

use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::database::Session;

/// What a transaction became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its rows were entered; COMMIT or ROLLBACK has not been answered yet.
    Open,
    /// Committed, below this position of the database's log.
    Committed {
        position_max: u64,
    },
    RolledBack,
    /// The connection broke between COMMIT and its answer; see [`Ledger::settle`].
    Unknown {
        number: u64,
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
    /// SHA-256 of the payload as the server prints it.
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
    pub fn settle(&self, session: &dyn Session, markers: &str) -> bool {
        let outcomes = self.lock().outcomes.clone();
        let mut all = true;
        for (transaction, outcome) in outcomes.into_iter().enumerate() {
            let Outcome::Unknown { number, marker } = outcome else { continue };
            match session.settled(markers, number, marker) {
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

    /// How many committed rows may lie at or above a position: they are not confirmed there.
    pub fn committed_above(&self, position: u64) -> usize {
        let above = |outcome: &Outcome| matches!(outcome, Outcome::Committed { position_max } if *position_max > position);
        self.rows().iter().filter(|(_, outcome)| above(outcome)).count()
    }

    /// How many committed rows lie below a position for certain: they are confirmed there.
    pub fn committed_below(&self, position: u64) -> usize {
        let below = |outcome: &Outcome| matches!(outcome, Outcome::Committed { position_max } if *position_max <= position);
        self.rows().iter().filter(|(_, outcome)| below(outcome)).count()
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

/// SHA-256, as [`WrittenRow::payload_hash`] holds it.
pub fn hash(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
}
