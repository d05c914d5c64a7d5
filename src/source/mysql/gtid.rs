//! Transactions by name, and sets of them. Pure.
//!
//! Owns their text in the server's form, their arithmetic, and the binary form in which MySQL is
//! asked for everything that is not in a set. Knows no connection and no event.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

mod intervals;

use intervals::Intervals;

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

impl Gtid {
    /// Which kind of server names its transactions so.
    pub fn flavor(&self) -> Flavor {
        match self {
            Gtid::MySql { .. } => Flavor::MySql,
            Gtid::MariaDb { .. } => Flavor::MariaDb,
        }
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gtid::MySql { source, tag, number } => {
                write!(formatter, "{}:", uuid::Uuid::from_u128(*source))?;
                if let Some(tag) = tag {
                    write!(formatter, "{tag}:")?;
                }
                write!(formatter, "{number}")
            }
            Gtid::MariaDb { domain, server, number } => {
                write!(formatter, "{domain}-{server}-{number}")
            }
        }
    }
}

/// Greatest number that MySQL gives to a transaction: `GNO_END` − 1.
const MYSQL_NUMBER_MAX: u64 = i64::MAX as u64 - 1;
/// Longest tag, and the reason why a tag's length takes one byte in [`GtidSet::encode_for_dump`].
const TAG_LENGTH_MAX: usize = 32;
/// How much of a text that is no GTID set an error repeats.
const ERROR_TEXT_LENGTH_MAX: usize = 100;

/// A source and its tag. `None` sorts first, as the server sorts the empty tag.
type Source = (u128, Option<Arc<str>>);

/// Transactions that are behind us. MySQL: intervals of numbers for each source and tag. MariaDB:
/// the last in binlog order of each domain, which is not always the greatest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidSet {
    transactions: Transactions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Transactions {
    /// No entry is empty.
    MySql(BTreeMap<Source, Intervals>),
    /// By domain.
    MariaDb(BTreeMap<u32, Last>),
}

/// Last transaction of a MariaDB domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    server: u32,
    number: u64,
}

/// A text that is no GTID or no set of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no GTID set")]
pub struct ParseGtidError {
    /// As it was given, or its beginning.
    pub text: String,
}

impl ParseGtidError {
    fn new(text: &str) -> Self {
        Self { text: text.chars().take(ERROR_TEXT_LENGTH_MAX).collect() }
    }
}

impl GtidSet {
    /// No transaction at all.
    pub fn empty(flavor: Flavor) -> Self {
        let transactions = match flavor {
            Flavor::MySql => Transactions::MySql(BTreeMap::new()),
            Flavor::MariaDb => Transactions::MariaDb(BTreeMap::new()),
        };
        Self { transactions }
    }

    /// Reads what the server prints: MySQL's `gtid_executed` (`uuid:1-3:7:tag:1-5,` and a line
    /// break), MariaDB's `gtid_binlog_pos` (`0-1-100,1-2-5`). Blanks around the parts, empty
    /// parts, upper case, repeated sources and intervals in any order are allowed, as in MySQL.
    ///
    /// # Errors
    /// The text is something else; on MariaDB also when it names a domain twice.
    pub fn parse(flavor: Flavor, text: &str) -> Result<Self, ParseGtidError> {
        let mut set = Self::empty(flavor);
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let parsed = match &mut set.transactions {
                Transactions::MySql(sources) => parse_mysql(sources, part),
                Transactions::MariaDb(domains) => parse_mariadb(domains, part),
            };
            parsed.ok_or_else(|| ParseGtidError::new(text))?;
        }
        Ok(set)
    }

    /// Which kind of server these transactions are of.
    pub fn flavor(&self) -> Flavor {
        match self.transactions {
            Transactions::MySql(_) => Flavor::MySql,
            Transactions::MariaDb(_) => Flavor::MariaDb,
        }
    }

    /// Whether no transaction is in it.
    pub fn is_empty(&self) -> bool {
        self.interval_count() == 0
    }

    /// How many intervals of numbers it is made of; on MariaDB, how many domains. What a set
    /// costs in memory and on the wire.
    pub fn interval_count(&self) -> usize {
        match &self.transactions {
            Transactions::MySql(sources) => sources.values().map(Intervals::count).sum(),
            Transactions::MariaDb(domains) => domains.len(),
        }
    }

    /// Adds a transaction. On MariaDB it becomes the last of its domain, whatever was last
    /// before: call it in binlog order.
    ///
    /// # Panics
    /// With a transaction of the other flavor, which the decoder never makes.
    pub fn add(&mut self, gtid: &Gtid) {
        match (&mut self.transactions, gtid) {
            (Transactions::MySql(sources), Gtid::MySql { source, tag, number }) => {
                sources
                    .entry((*source, tag.clone()))
                    .or_default()
                    .add(*number, number.saturating_add(1));
            }
            (Transactions::MariaDb(domains), Gtid::MariaDb { domain, server, number }) => {
                domains.insert(*domain, Last { server: *server, number: *number });
            }
            (Transactions::MySql(_), Gtid::MariaDb { .. })
            | (Transactions::MariaDb(_), Gtid::MySql { .. }) => {
                panic!("transaction {gtid} added to a set of another flavor")
            }
        }
    }

    /// Adds a transaction that may have been added before. On MariaDB the last of its domain stays
    /// where that has a number that is not less.
    ///
    /// # Panics
    /// As [`add`](Self::add).
    pub fn raise(&mut self, gtid: &Gtid) {
        if !self.contains(gtid) {
            self.add(gtid);
        }
    }

    /// Whether a transaction is in it.
    ///
    /// MySQL: exact. MariaDB: whether its domain is present with a last number that is not less.
    /// That is exact where numbers rise in binlog order, which `gtid_strict_mode=ON` enforces;
    /// without it a server may have written a lower number after a higher one, and a transaction
    /// that lies between them in number, but behind both in the binlog, is called contained.
    pub fn contains(&self, gtid: &Gtid) -> bool {
        match (&self.transactions, gtid) {
            (Transactions::MySql(sources), Gtid::MySql { source, tag, number }) => sources
                .get(&(*source, tag.clone()))
                .is_some_and(|intervals| intervals.contains(*number)),
            (Transactions::MariaDb(domains), Gtid::MariaDb { domain, number, .. }) => {
                domains.get(domain).is_some_and(|last| *number <= last.number)
            }
            (Transactions::MySql(_), Gtid::MariaDb { .. })
            | (Transactions::MariaDb(_), Gtid::MySql { .. }) => false,
        }
    }

    /// Whether every transaction of it is in `other` too: `GTID_SUBSET(self, other)`. MariaDB:
    /// whether `other` contains the last of each domain, with the limits of
    /// [`contains`](Self::contains). Of two flavors only the empty set is a subset.
    pub fn is_subset_of(&self, other: &GtidSet) -> bool {
        match (&self.transactions, &other.transactions) {
            (Transactions::MySql(these), Transactions::MySql(those)) => {
                these.iter().all(|(source, intervals)| {
                    those.get(source).is_some_and(|others| intervals.is_subset_of(others))
                })
            }
            (Transactions::MariaDb(these), Transactions::MariaDb(those)) => {
                these.iter().all(|(domain, last)| {
                    those.get(domain).is_some_and(|other| last.number <= other.number)
                })
            }
            (Transactions::MySql(_), Transactions::MariaDb(_))
            | (Transactions::MariaDb(_), Transactions::MySql(_)) => self.is_empty(),
        }
    }

    /// Adds every transaction of `other`. MariaDB: of each domain the one with the greater
    /// number stays, since a set does not tell which came later; where the numbers are equal,
    /// its own.
    ///
    /// # Panics
    /// With a set of the other flavor.
    pub fn union_with(&mut self, other: &GtidSet) {
        match (&mut self.transactions, &other.transactions) {
            (Transactions::MySql(these), Transactions::MySql(those)) => {
                for (source, others) in those {
                    let intervals = these.entry(source.clone()).or_default();
                    for (start, end) in others.iter() {
                        intervals.add(start, end);
                    }
                }
            }
            (Transactions::MariaDb(these), Transactions::MariaDb(those)) => {
                for (domain, other) in those {
                    let last = these.entry(*domain).or_insert(*other);
                    if other.number > last.number {
                        *last = *other;
                    }
                }
            }
            (Transactions::MySql(_), Transactions::MariaDb(_))
            | (Transactions::MariaDb(_), Transactions::MySql(_)) => {
                panic!("union of sets of two flavors")
            }
        }
    }

    /// What COM_BINLOG_DUMP_GTID carries, and the body of PREVIOUS_GTIDS_LOG_EVENT: MySQL's
    /// `Gtid_set::encode` (`sql/rpl_gtid_set.cc`), all numbers little-endian.
    ///
    /// ```text
    /// without tags:      count of sources: u64
    /// with any (8.3+):   1: u8 | count of sources and tags: u48 | 1: u8
    /// then for each:     uuid: 16 | (tag's length × 2: u8 | tag)? | count: u64
    ///                    then for each interval: first: u64 | last + 1: u64
    /// ```
    ///
    /// Servers older than 8.3 know the first form only, and no set that has a tag.
    ///
    /// # Panics
    /// On a set of MariaDB, which is asked by text: `SET @slave_connect_state`.
    pub fn encode_for_dump(&self) -> Vec<u8> {
        let Transactions::MySql(sources) = &self.transactions else {
            panic!("MariaDB takes its GTID set as text")
        };
        let tagged = sources.keys().any(|(_, tag)| tag.is_some());
        let count = sources.len() as u64;
        let mut bytes = Vec::with_capacity(8 + sources.len() * 40 + self.interval_count() * 16);
        let head = if tagged { (1 << 56) | (count << 8) | 1 } else { count };
        bytes.extend_from_slice(&head.to_le_bytes());
        for ((source, tag), intervals) in sources {
            bytes.extend_from_slice(&source.to_be_bytes());
            if tagged {
                let tag = tag.as_deref().unwrap_or_default();
                let length = u8::try_from(tag.len()).expect("a tag has at most TAG_LENGTH_MAX");
                // An integer of mysql::serialization: below 128 it is shifted by one bit.
                bytes.push(length << 1);
                bytes.extend_from_slice(tag.as_bytes());
            }
            bytes.extend_from_slice(&(intervals.count() as u64).to_le_bytes());
            for (start, end) in intervals.iter() {
                bytes.extend_from_slice(&start.to_le_bytes());
                bytes.extend_from_slice(&end.to_le_bytes());
            }
        }
        bytes
    }
}

/// In the server's normal form: lower case, sorted, merged; on one line, while MySQL itself
/// breaks the line after each comma.
impl fmt::Display for GtidSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transactions {
            Transactions::MySql(sources) => {
                let mut before = None;
                for ((source, tag), intervals) in sources {
                    if before != Some(*source) {
                        let comma = if before.is_some() { "," } else { "" };
                        write!(formatter, "{comma}{}", uuid::Uuid::from_u128(*source))?;
                        before = Some(*source);
                    }
                    if let Some(tag) = tag {
                        write!(formatter, ":{tag}")?;
                    }
                    write!(formatter, "{intervals}")?;
                }
            }
            Transactions::MariaDb(domains) => {
                let mut comma = "";
                for (domain, Last { server, number }) in domains {
                    write!(formatter, "{comma}{domain}-{server}-{number}")?;
                    comma = ",";
                }
            }
        }
        Ok(())
    }
}

/// A tag as the server checks it: a letter or underscore, then digits too, at most 32 characters.
/// Lower case comes back.
pub(crate) fn tag(text: &str) -> Option<Arc<str>> {
    let lower = text.to_ascii_lowercase();
    let first = lower.bytes().next()?;
    let plain = lower.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let fits = lower.len() <= TAG_LENGTH_MAX && plain && !first.is_ascii_digit();
    fits.then(|| lower.into())
}

/// `uuid:1-3:5:tag:1-2:other:7`
fn parse_mysql(sources: &mut BTreeMap<Source, Intervals>, part: &str) -> Option<()> {
    let mut pieces = part.split(':').map(str::trim);
    let source = uuid::Uuid::try_parse(pieces.next()?).ok()?.as_u128();
    let mut current: Option<Arc<str>> = None;
    // A source or tag with nothing behind it is a mistake, not an empty set.
    let mut complete = false;
    for piece in pieces {
        if !piece.starts_with(|c: char| c.is_ascii_digit()) {
            if current.is_some() && !complete {
                return None;
            }
            current = Some(tag(piece)?);
            complete = false;
            continue;
        }
        let (first, last) = match piece.split_once('-') {
            Some((first, last)) => (mysql_number(first.trim())?, mysql_number(last.trim())?),
            None => (mysql_number(piece)?, mysql_number(piece)?),
        };
        if first > last {
            return None;
        }
        sources.entry((source, current.clone())).or_default().add(first, last + 1);
        complete = true;
    }
    complete.then_some(())
}

fn mysql_number(text: &str) -> Option<u64> {
    digits::<u64>(text).filter(|number| (1..=MYSQL_NUMBER_MAX).contains(number))
}

/// `domain-server-number`
fn parse_mariadb(domains: &mut BTreeMap<u32, Last>, part: &str) -> Option<()> {
    let mut pieces = part.split('-');
    let domain = digits(pieces.next()?)?;
    let last = Last { server: digits(pieces.next()?)?, number: digits(pieces.next()?)? };
    let fresh = domains.insert(domain, last).is_none();
    (fresh && pieces.next().is_none()).then_some(())
}

/// Digits only: no sign, no blank.
fn digits<T: FromStr>(text: &str) -> Option<T> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
