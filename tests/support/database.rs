//! What tests need of a database, whichever it is: a server that a stage can stand on, and a
//! session that writes its outbox.
//!
//! Positions are `u64`, comparable within one server's log, and ends: what was committed below a
//! position is before it. PostgreSQL: an LSN. MySQL and MariaDB: a transaction's number in its
//! GTID, plus one.

mod binlog;
mod postgres;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

#[allow(unused_imports, reason = "a benchmark needs few of them")]
pub use binlog::{Initial, LEASE, create_outbox, init, is_stored, log_end, relay_first};

use super::ledger::{Ledger, Outcome};
use super::proxy::Protocol;
use super::relay::Relay;

/// A server with outboxes.
pub trait Server {
    /// What runs SQL of this database's kind.
    type Client;

    /// With its version, for reports.
    fn title(&self) -> &'static str;

    /// What a proxy in front of it follows: the rows of one database's outbox.
    fn protocol(&self, database: &str) -> Protocol;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// URL of a database by way of a proxy at `address`.
    fn url_at(&self, address: SocketAddr, database: &str) -> String;

    /// URL of a database.
    fn url_for(&self, database: &str) -> String {
        self.url_at(self.address(), database)
    }

    /// A connection to a database.
    fn client_for(&self, database: &str) -> Self::Client;

    /// Makes a database with an empty outbox and a position in the log from which a relay of the
    /// database's name reads it: rows that are written from now on are relayed.
    fn empty_outbox(&self, prefix: &str) -> String;

    /// A relay with that position; not started.
    fn relay(source: &str, sink: &str, name: &str) -> Relay;

    /// Up to where the server was told that all is published; 0 when it was told nothing.
    fn confirmed(client: &Self::Client, name: &str) -> u64;

    /// An upper bound of every commit that was answered before the call, which a relay of an
    /// outbox gets to without another row.
    fn end_of_log(client: &Self::Client) -> u64;

    /// Which relay has the position of this name, where one is at work; in words of the
    /// database's own.
    fn holder(client: &Self::Client, name: &str) -> Option<String>;

    /// Lets the server forget a relay that has ended: its position holds no log back any more.
    fn forget(client: &Self::Client, name: &str);

    /// Commits one transaction of many rows over fifty keys of its own.
    fn bulk(client: &Self::Client, ledger: &Ledger, rows: u64);

    /// Ends it without a farewell.
    fn crash(&mut self);

    /// Starts it again on the same data and address.
    fn recover(&mut self);
}

/// The connection broke or a statement failed; the open transaction is gone.
#[derive(Debug)]
pub struct Broken;

/// How a COMMIT ended.
pub enum Committed {
    /// It was answered; the commit lies below this position, where it could be asked.
    Yes(Option<u64>),
    /// The server refused it.
    No,
    /// It was not answered.
    Unknown,
}

/// A row that a writer inserts.
pub struct NewRow {
    /// A UUID as text.
    pub id: String,
    pub aggregate_type: String,
    pub key: String,
    pub event_type: String,
    /// JSON.
    pub payload: String,
}

/// A writer's connection.
pub trait Session: Send {
    /// Begins a transaction and leaves a marker. The answer is a number of the transaction's or
    /// the session's own, for [`Session::settled`].
    ///
    /// # Errors
    /// The connection broke or the server refused.
    fn begin(&self, markers: &str, marker: u64) -> Result<u64, Broken>;

    /// Inserts rows with one statement. The answer is each one's payload as the server prints it.
    ///
    /// # Errors
    /// The connection broke or the server refused.
    fn insert(&self, table: &str, rows: &[NewRow]) -> Result<Vec<String>, Broken>;

    /// Deletes rows by their ids.
    ///
    /// # Errors
    /// The connection broke or the server refused.
    fn delete(&self, table: &str, ids: &[&str]) -> Result<(), Broken>;

    /// Any statement that both kinds of database know.
    ///
    /// # Errors
    /// The connection broke or the server refused.
    fn run(&self, sql: &str) -> Result<(), Broken>;

    /// Asks for the commit.
    fn commit(&self) -> Committed;

    /// What became of a transaction whose COMMIT was not answered, asked by another session than
    /// its own; `None` while it is still in progress (its backend may outlive the connection) or
    /// the server does not answer.
    fn settled(&self, markers: &str, number: u64, marker: u64) -> Option<Outcome>;
}

/// Connects; `None` when the server does not let us in now.
pub fn connect(url: &str) -> Option<Box<dyn Session>> {
    if url.starts_with("postgres") { postgres::connect(url) } else { binlog::connect(url) }
}

/// Number of a bulk and that of its first row: those of two bulks, or of a writer, never look
/// alike.
fn bulk_number() -> (u64, u64) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    (number, 900_000_000_000_000 + number * 1_000_000_000)
}
