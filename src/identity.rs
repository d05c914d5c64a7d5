//! Where a row stands in the log: the only thing that tells two rows apart.
//!
//! Owns the identity and its text form. A column never takes part in it: applications repeat
//! ids, and a broker that deduplicates by a repeated id would swallow a row.

use std::fmt;

/// The log that a row was read from: two rows of different logs are never the same row.
///
/// PostgreSQL: system identifier and timeline. MySQL: the UUID of the server that committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u128);

impl LogId {
    /// The log of one PostgreSQL cluster on one timeline, as `IDENTIFY_SYSTEM` names them.
    pub fn postgres(system_identifier: u64, timeline: u32) -> Self {
        Self((u128::from(system_identifier) << 32) | u128::from(timeline))
    }

    /// The transactions that one MySQL server committed, of one tag or of none. Also those of a
    /// server without GTIDs, whose transactions are numbered by file and position.
    pub fn mysql(server_uuid: u128, tag: Option<&str>) -> Self {
        // FNV-1a, spelt out since the value ends up in messages and must never change.
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
        let bytes = tag.unwrap_or_default().bytes();
        Self(bytes.fold(server_uuid, |log, byte| (log ^ u128::from(byte)).wrapping_mul(PRIME)))
    }

    /// The transactions that one MariaDB server committed in one replication domain.
    pub fn mariadb(domain: u32, server: u32) -> Self {
        Self((u128::from(domain) << 32) | u128::from(server))
    }
}

/// Position of the transaction's commit, and ordinal in the transaction.
///
/// Stable across redelivery, restarts and reconnects, and known before the commit record itself
/// has arrived (PostgreSQL's Begin carries `final_lsn`). Within one log the order of identities
/// is the order of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowIdentity {
    /// The log; see [`LogId`].
    pub log: LogId,
    /// PostgreSQL: LSN of the commit record. MySQL and MariaDB: the number in the GTID; without
    /// GTIDs the binlog file's number and the position in it where the transaction begins.
    pub transaction: u64,
    /// Counts the outbox rows of the transaction from 0.
    pub ordinal: u32,
}

impl RowIdentity {
    /// Writes the text form into a buffer on the stack: no allocation a row.
    pub fn text(&self) -> IdentityText {
        use std::io::Write;
        let mut text = IdentityText { bytes: [0; IdentityText::LENGTH_MAX], length: 0 };
        let mut rest = &mut text.bytes[..];
        let before = rest.len();
        // 32 + 1 + 16 + 1 + 10 characters are the longest that the three fields can make.
        write!(rest, "{:x}:{:X}:{}", self.log.0, self.transaction, self.ordinal)
            .expect("LENGTH_MAX holds the widest fields");
        let left = rest.len();
        text.length = before - left;
        text
    }
}

impl fmt::Display for RowIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text().as_str())
    }
}

/// An identity as text, `<log>:<transaction>:<ordinal>`: hexadecimal, hexadecimal, decimal.
///
/// It is what brokers deduplicate by and what the header `walpost-identity` carries.
pub struct IdentityText {
    bytes: [u8; Self::LENGTH_MAX],
    length: usize,
}

impl IdentityText {
    const LENGTH_MAX: usize = 60;

    /// The text; ASCII without blanks.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("only ASCII was written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_identity_fits_its_buffer() {
        let widest =
            RowIdentity { log: LogId(u128::MAX), transaction: u64::MAX, ordinal: u32::MAX };
        assert_eq!(widest.text().as_str().len(), IdentityText::LENGTH_MAX);
    }

    #[test]
    fn order_within_a_log_is_commit_order() {
        let log = LogId::postgres(7, 1);
        let first = RowIdentity { log, transaction: 0x10, ordinal: 9 };
        let second = RowIdentity { log, transaction: 0x11, ordinal: 0 };
        assert!(first < second);
        assert_eq!(first.to_string(), "700000001:10:9");
    }
}
