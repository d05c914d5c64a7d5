//! What tells a row from every other one: where it stands in whose log, of which outbox, and when
//! it was committed there.
//!
//! Owns the identity, its fingerprint and its text form, which is a contract with consumers:
//! `docs/src/identity.md` says what it promises and why it holds. A column never takes the place
//! of a part of it: applications repeat ids, and a broker that deduplicates by a repeated id would
//! swallow a row.
//!
//! ```text
//!   position of the commit, ordinal     the same at each sending of a row
//! + outbox                              two tables in one transaction
//! + moment of the commit                a copy of the data folder, a restored snapshot, a binlog
//!                                       that was reset: the position comes again, the moment does
//!                                       not
//! + the row itself                      where the log has no exact moment
//! ```

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The log that a row was read from: two rows of different logs are never the same row.
///
/// PostgreSQL: the cluster. MySQL: the server that committed. MariaDB: the cluster, the
/// replication domain, and the server that committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u128);

impl LogId {
    /// The log of one PostgreSQL cluster, by the system identifier that `IDENTIFY_SYSTEM` names.
    ///
    /// Its timeline is no part of it: a row that is sent again after a failover is the same row.
    pub fn postgres(system_identifier: u64) -> Self {
        Self(u128::from(system_identifier))
    }

    /// The transactions that one MySQL server committed, of one tag or of none. Also those of a
    /// server without GTIDs, whose transactions are numbered by file and position.
    pub fn mysql(server_uuid: u128, tag: Option<&str>) -> Self {
        // FNV-1a, spelt out since the value ends up in messages and must never change.
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
        let bytes = tag.unwrap_or_default().bytes();
        Self(bytes.fold(server_uuid, |log, byte| (log ^ u128::from(byte)).wrapping_mul(PRIME)))
    }

    /// The transactions that one MariaDB server committed in one replication domain. Server ids
    /// are equal by habit, so a UUID of walpost's own tells one set of servers from another.
    pub fn mariadb(cluster_uuid: u128, domain: u32, server: u32) -> Self {
        let cluster = cluster_uuid ^ (cluster_uuid << 64);
        let place = (u128::from(domain) << 32) | u128::from(server);
        Self((cluster >> 64 << 64) | place)
    }
}

/// Which outbox of a log: made of its schema's and its table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxId(u64);

impl OutboxId {
    /// Names as in the catalogue.
    pub fn new(schema: &str, table: &str) -> Self {
        // No name holds a NUL, so no two pairs are the same text.
        Self(xxh3_64_with_seed(format!("{schema}\0{table}").as_bytes(), 0))
    }
}

/// The moment of a commit in an outbox's log, as 64 bits; see the module for what it is for.
///
/// XXH3 with a seed, of values in little-endian order. It ends up in messages: changing any of it
/// needs a new [`RowIdentity::VERSION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of a transaction whose commit the log places at this microsecond since 1970.
    pub fn new(outbox: OutboxId, committed_at_micros: i64) -> Self {
        Self(xxh3_64_with_seed(&committed_at_micros.to_le_bytes(), outbox.0))
    }

    /// Adds a row, as the log has it: for transactions whose moment is not exact.
    #[must_use]
    pub fn with_row(self, row: &[u8]) -> Self {
        Self(xxh3_64_with_seed(row, self.0))
    }
}

/// Position of the transaction's commit, ordinal in the transaction, and fingerprint.
///
/// Stable across redelivery, restarts, reconnects and failovers, and known before the commit
/// record itself has arrived (PostgreSQL's Begin carries `final_lsn`). Within one log the order
/// of identities is the order of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowIdentity {
    /// The log; see [`LogId`].
    pub log: LogId,
    /// PostgreSQL: LSN of the commit record. MySQL and MariaDB: the number in the GTID; without
    /// GTIDs the binlog file's number and the position in it where the transaction begins.
    pub transaction: u64,
    /// Counts the rows of one outbox in the transaction from 0.
    pub ordinal: u32,
    /// Of the outbox and of the commit's moment.
    pub fingerprint: Fingerprint,
}

impl RowIdentity {
    /// First field of the text form. Texts of different versions are never equal.
    pub const VERSION: u8 = 2;

    /// Writes the text form into a buffer on the stack: no allocation a row, and no formatter.
    pub fn text(&self) -> IdentityText {
        let mut text = IdentityText { bytes: [0; IdentityText::LENGTH_MAX], length: 0 };
        text.push(b'0' + Self::VERSION);
        text.push(b':');
        text.hexadecimal(self.log.0, 1);
        text.push(b':');
        text.hexadecimal(self.transaction.into(), 1);
        text.push(b':');
        for digit in itoa::Buffer::new().format(self.ordinal).bytes() {
            text.push(digit);
        }
        text.push(b':');
        text.hexadecimal(self.fingerprint.0.into(), 16);
        text
    }
}

impl fmt::Display for RowIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text().as_str())
    }
}

/// An identity as text, `2:<log>:<transaction>:<ordinal>:<fingerprint>`: all lower-case
/// hexadecimal but for the ordinal, which is decimal; the fingerprint has 16 digits.
///
/// It is what brokers deduplicate by and what the header `walpost-identity` carries. Consumers
/// compare it as a whole.
pub struct IdentityText {
    bytes: [u8; Self::LENGTH_MAX],
    length: usize,
}

impl IdentityText {
    /// 1 + 32 + 16 + 10 + 16 characters and four colons.
    const LENGTH_MAX: usize = 79;

    /// The text; ASCII without blanks.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("only ASCII was written")
    }

    fn push(&mut self, character: u8) {
        self.bytes[self.length] = character;
        self.length += 1;
    }

    /// At least `digits_min` digits.
    fn hexadecimal(&mut self, number: u128, digits_min: u32) {
        let digits = (128 - number.leading_zeros()).div_ceil(4).max(digits_min);
        for place in (0..digits).rev() {
            let digit = (number >> (4 * place)) as usize & 0xF;
            self.push(b"0123456789abcdef"[digit]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(log: LogId, transaction: u64, ordinal: u32) -> RowIdentity {
        RowIdentity { log, transaction, ordinal, fingerprint: Fingerprint(0xF00) }
    }

    #[test]
    fn the_widest_identity_fits_its_buffer() {
        let widest = RowIdentity {
            fingerprint: Fingerprint(u64::MAX),
            ..identity(LogId(u128::MAX), u64::MAX, u32::MAX)
        };
        assert_eq!(widest.text().as_str().len(), IdentityText::LENGTH_MAX);
    }

    #[test]
    fn order_within_a_log_is_commit_order() {
        let log = LogId::postgres(7);
        let first = identity(log, 0x10, 9);
        let second = identity(log, 0x11, 0);
        assert!(first < second);
        assert_eq!(first.to_string(), "2:7:10:9:0000000000000f00");
    }

    #[test]
    fn the_text_is_the_one_that_consumers_have_stored() {
        // given the values of a row that was published once
        let outbox = OutboxId::new("public", "outbox");
        let fingerprint = Fingerprint::new(outbox, 1_796_000_000_123_456);
        let identity = RowIdentity {
            fingerprint,
            ..identity(LogId::postgres(7_300_000_000_000_000_001), 0x1B7_3458, 0)
        };
        // then no later build may give it another text
        assert_eq!(identity.to_string(), "2:654ecf52ac5a0001:1b73458:0:3873fb288b44d8fe");
        let exact = fingerprint.with_row(b"row").0;
        assert_eq!(format!("{exact:016x}"), "508147765e076a22");
    }

    #[test]
    fn each_part_alone_tells_two_rows_apart() {
        let outbox = OutboxId::new("app", "outbox");
        let base = Fingerprint::new(outbox, 1_000_000);
        // another outbox in the same transaction, also one whose names run together alike
        assert_ne!(base, Fingerprint::new(OutboxId::new("app", "outbox_b"), 1_000_000));
        assert_ne!(OutboxId::new("a", "b.c"), OutboxId::new("a.b", "c"));
        // a copy of the server that went on by itself
        assert_ne!(base, Fingerprint::new(outbox, 1_000_001));
        assert_ne!(base.with_row(b"1"), base.with_row(b"2"));
        // two servers that were given the same id
        assert_ne!(LogId::mariadb(1, 0, 1), LogId::mariadb(2, 0, 1));
        assert_ne!(LogId::mariadb(1, 0, 1), LogId::mariadb(1, 1, 0));
    }
}
