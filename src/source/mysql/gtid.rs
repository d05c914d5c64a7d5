//! Transactions by name, and sets of them. Pure.

use std::fmt;
use std::sync::Arc;

/// Which of the two writes the binlog: their events, GTIDs and commands differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavor {
    /// Oracle's MySQL and what descends from it (Percona).
    MySql,
    /// MariaDB.
    MariaDb,
}

/// The name of one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gtid {
    /// `uuid:number`, or `uuid:tag:number` (MySQL 8.3 and later).
    MySql {
        /// UUID of the server that committed first.
        source: u128,
        /// Lower case; `None` for the ordinary ones.
        tag: Option<Arc<str>>,
        /// From 1.
        number: u64,
    },
    /// `domain-server-number`.
    MariaDb {
        /// Replication domain.
        domain: u32,
        /// Server that committed first.
        server: u32,
        /// Rises within a domain.
        number: u64,
    },
}

/// Transactions that are behind us. MySQL: intervals of numbers for each source and tag. MariaDB:
/// the last in binlog order of each domain, which is not always the greatest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidSet {
    flavor: Flavor,
}

/// A text that is no GTID or no set of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no GTID set")]
pub struct ParseGtidError {
    /// As it was given, or its beginning.
    pub text: String,
}

impl fmt::Display for GtidSet {
    fn fmt(&self, _formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!("{:?}", self.flavor)
    }
}
