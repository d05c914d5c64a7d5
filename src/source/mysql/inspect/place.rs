//! What is known of the place where a relay is: its row, who holds it, and whether the server still
//! has what comes after it.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, Row};

use super::{DENIED, LogState, ServerState, is_allowed, number, text};
use crate::config::QualifiedName;
use crate::source::mysql::gtid::Flavor;

/// Code of "no such table", and of "no such database".
const MISSING: [u16; 2] = [1146, 1049];

/// The row of a relay in the table of positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionState {
    /// The place; `None` until a first one is known.
    pub place: Option<PlaceState>,
    /// Who holds the lease.
    pub holder: Option<Holder>,
    /// Seconds since the place was written last.
    pub age_seconds: i64,
}

/// A place in the binlog, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceState {
    /// `mysql` or `mariadb`.
    pub flavor: String,
    /// `server_uuid` of the server that it was read from; empty on MariaDB.
    pub server_uuid: String,
    /// GTID set that is behind us; empty where there are no GTIDs.
    pub gtid_set: String,
    /// Binlog file.
    pub file: String,
    /// Position in it.
    pub position: u64,
    /// Whether rows of the first start are still to be confirmed.
    pub initial_pending: bool,
}

/// Who holds a lease that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// As that relay calls itself.
    pub name: String,
    /// How long the lease still lasts if it is not renewed.
    pub left: Duration,
}

/// The table of positions, seen by one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PositionTable {
    /// There is none.
    Missing,
    /// We may not read it, or not know of it.
    Denied,
    /// It is there, without a row of this relay.
    Empty,
    /// It has a row of this relay.
    Row(PositionState),
}

/// Reads the row of the relay `name`.
///
/// # Errors
/// The table lacks a column, or the connection is gone.
pub async fn position(
    conn: &mut Conn,
    table: &QualifiedName,
    name: &str,
) -> Result<PositionTable, Error> {
    let query = format!(
        "SELECT flavor, server_uuid, gtid_set, file, position, holder, \
         TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), lease_until), \
         TIMESTAMPDIFF(SECOND, updated_at, UTC_TIMESTAMP(6)), initial_pending FROM {} WHERE name = ?",
        table.quoted_mysql()
    );
    let row: Option<Row> = match conn.exec_first(query, (name,)).await {
        Ok(row) => row,
        Err(Error::Server(error)) if MISSING.contains(&error.code) => {
            return Ok(PositionTable::Missing);
        }
        Err(Error::Server(error)) if DENIED.contains(&error.code) => {
            return Ok(PositionTable::Denied);
        }
        Err(error) => return Err(error),
    };
    let Some(row) = row else { return Ok(PositionTable::Empty) };
    let place = text(&row, 0).map(|flavor| PlaceState {
        flavor,
        server_uuid: text(&row, 1).unwrap_or_default(),
        gtid_set: text(&row, 2).unwrap_or_default(),
        file: text(&row, 3).unwrap_or_default(),
        position: number(&row, 4).unwrap_or(0),
        initial_pending: number(&row, 8).unwrap_or(0) != 0,
    });
    let left = number::<i64>(&row, 6).and_then(|micros| u64::try_from(micros).ok());
    let name = text(&row, 5).filter(|name| !name.is_empty());
    let holder = name.zip(left.filter(|micros| *micros > 0));
    Ok(PositionTable::Row(PositionState {
        place,
        holder: holder.map(|(name, micros)| Holder { name, left: Duration::from_micros(micros) }),
        age_seconds: number(&row, 7).unwrap_or(0),
    }))
}

/// Whether our account may insert into a table of positions and update it.
///
/// # Errors
/// As [`super::may_read`].
pub async fn may_write(conn: &mut Conn, name: &QualifiedName) -> Result<bool, Error> {
    let table = name.quoted_mysql();
    let update = format!("EXPLAIN UPDATE {table} SET epoch = epoch WHERE 1 = 0");
    let insert = format!("EXPLAIN INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0");
    Ok(is_allowed(conn, update).await? && is_allowed(conn, insert).await?)
}

/// How a server stands to a GTID set that we hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GtidState {
    /// What it has removed from its binlog, and we have not read: not empty where rows are gone.
    pub purged: String,
    /// What we have read of it, and it does not have: not empty on another server, or after a
    /// loss.
    pub unknown: String,
}

/// Asks how the server stands to `gtid_set` of `flavor`; `None` where that is not its own.
///
/// # Errors
/// The set is none, or the connection is gone.
pub async fn gtids(
    conn: &mut Conn,
    server: &ServerState,
    log: Option<&LogState>,
    flavor: &str,
    gtid_set: &str,
) -> Result<Option<GtidState>, Error> {
    let state = match server.flavor {
        // The sets of the other kind are a syntax error here.
        Flavor::MySql if flavor != "mysql" => return Ok(None),
        Flavor::MariaDb if flavor != "mariadb" => return Ok(None),
        Flavor::MySql => {
            let query = "SELECT GTID_SUBTRACT(@@GLOBAL.gtid_purged, ?), \
                         GTID_SUBTRACT(?, @@GLOBAL.gtid_executed)";
            let row: Option<Row> = conn.exec_first(query, (gtid_set, gtid_set)).await?;
            // The server breaks long sets into lines.
            let set = |index| row.as_ref().and_then(|row| text(row, index)).unwrap_or_default();
            GtidState { purged: set(0).replace('\n', ""), unknown: set(1).replace('\n', "") }
        }
        Flavor::MariaDb => {
            // What the oldest file begins after is all that was removed. NULL without that right.
            let oldest = log.and_then(|log| log.files.first()).map(|(file, _)| file.as_str());
            let query = "SELECT BINLOG_GTID_POS(?, 4), @@GLOBAL.gtid_binlog_pos";
            let row: Option<Row> = conn.exec_first(query, (oldest,)).await?;
            let set = |index| row.as_ref().and_then(|row| text(row, index)).unwrap_or_default();
            GtidState { purged: beyond(&set(0), gtid_set), unknown: beyond(gtid_set, &set(1)) }
        }
    };
    Ok(Some(state))
}

/// Those GTIDs of MariaDB in `set` that `other` does not reach, by the numbers of each domain.
fn beyond(set: &str, other: &str) -> String {
    let parse = |gtid: &str| -> Option<(u32, u64)> {
        let mut parts = gtid.trim().split('-');
        let domain = parts.next()?.parse().ok()?;
        let number = parts.nth(1)?.parse().ok()?;
        Some((domain, number))
    };
    let reached: Vec<(u32, u64)> = other.split(',').filter_map(parse).collect();
    let is_beyond = |gtid: &&str| {
        parse(gtid).is_some_and(|(domain, number)| {
            !reached.iter().any(|(of, last)| *of == domain && *last >= number)
        })
    };
    set.split(',').map(str::trim).filter(is_beyond).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gtids_of_mariadb_are_compared_domain_by_domain() {
        assert_eq!(beyond("0-1-10,1-2-5", "0-1-10,1-3-7"), "");
        assert_eq!(beyond("0-1-11,1-2-5", "0-9-10, 1-3-7"), "0-1-11");
        assert_eq!(beyond("2-1-1", "0-1-10"), "2-1-1", "a domain that the other does not have");
        assert_eq!(beyond("", "0-1-10"), "");
        assert_eq!(beyond("0-1-10", ""), "0-1-10");
    }
}
