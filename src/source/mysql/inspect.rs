//! What a server says about itself: its variables, the outbox, the position, our rights.
//!
//! Owns the queries and plain structs of their answers; judges nothing (that is
//! `precondition.rs`) and changes nothing. Here the server and the outbox; the position is in
//! `place`. What a query needs a right for is an `Option`, and
//! `None` without it: `check` then says which right is missing.

mod place;

use std::collections::HashMap;
use std::time::Duration;

use mysql_async::prelude::{FromValue, Queryable};
use mysql_async::{Conn, Error, Row};

use super::conninfo::ConnInfo;
use super::gtid::Flavor;
use super::sql::sql_connect;
use crate::config::{QualifiedName, Secret, quote_mysql_identifier};
use crate::failure::Failure;

pub use place::{
    GtidState, Holder, PlaceState, PositionState, PositionTable, gtids, may_write, position,
};

/// Codes of "access denied" to a table or its columns, a database, and for want of a right.
const DENIED: [u16; 4] = [1044, 1142, 1143, 1227];

/// Code of a statement that the server does not understand.
const PARSE_ERROR: u16 = 1064;

/// A person waits for the answer.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Opens an ordinary SQL connection; it ends when it is dropped.
///
/// # Errors
/// As the source's own connect: transient, denied, or definite. Never names the password.
pub async fn sql_client(url: &Secret) -> Result<Conn, Failure> {
    let mut info = ConnInfo::of(url)?;
    info.connect_timeout = info.connect_timeout.min(CONNECT_TIMEOUT_MAX);
    sql_connect(&info).await.map_err(|error| Failure::new(error.kind(), error))
}

/// The server and the account that we are on it.
#[derive(Debug, Clone)]
pub struct ServerState {
    /// Which of the two it is.
    pub flavor: Flavor,
    /// `(9, 7)` of 9.7.4.
    pub version: (u32, u32),
    /// For people: `9.7.4-2`, `10.11.19-MariaDB`.
    pub version_text: String,
    /// `server_id`: its number among its replicas.
    pub server_id: u32,
    /// `server_uuid`; MariaDB has none.
    pub server_uuid: Option<String>,
    /// `log_bin`.
    pub logs: bool,
    /// `binlog_format`: `ROW`, `MIXED` or `STATEMENT`.
    pub format: String,
    /// `binlog_row_image`.
    pub row_image: String,
    /// `binlog_row_metadata`; `None` on servers that are too old for it.
    pub row_metadata: Option<String>,
    /// `binlog_checksum`.
    pub checksum: String,
    /// MySQL: `gtid_mode`. MariaDB: none, it always has GTIDs.
    pub gtid_mode: Option<String>,
    /// MariaDB: `gtid_strict_mode`.
    pub gtid_strict: Option<bool>,
    /// `sync_binlog`: after how many transactions the binlog is flushed to disk; 0 is never.
    pub sync_binlog: u64,
    /// After how many seconds a binlog file is removed; 0 is never.
    pub expire_seconds: u64,
    /// `read_only` or `super_read_only`, whichever is on.
    pub read_only: Option<&'static str>,
    /// Whether what it replicates from another server goes into its own binlog.
    pub logs_replicated: bool,
    /// A node of a Galera cluster (`wsrep_on`).
    pub galera: Option<Galera>,
    /// `max_allowed_packet`, in bytes.
    pub packet_bytes_max: u64,
    /// Account of this connection: `walpost@%`.
    pub account: String,
}

/// What a node of a Galera cluster says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Galera {
    /// `wsrep_gtid_mode`, which MariaDB has: whether all nodes name a transaction alike.
    pub gtid_mode: Option<bool>,
}

impl ServerState {
    /// Whether every transaction has a GTID, so that a position can be named by them.
    pub fn has_gtids(&self) -> bool {
        match self.flavor {
            Flavor::MariaDb => true,
            // In between, some transactions have none.
            Flavor::MySql => {
                self.gtid_mode.as_deref().is_some_and(|mode| mode.eq_ignore_ascii_case("ON"))
            }
        }
    }

    /// Asks for the end of the binlog: MySQL 8.2 renamed it, and 8.4 took the old words away.
    pub(super) fn log_status_query(&self) -> &'static str {
        match self.flavor {
            Flavor::MySql if self.version >= (8, 2) => "SHOW BINARY LOG STATUS",
            Flavor::MySql | Flavor::MariaDb => "SHOW MASTER STATUS",
        }
    }
}

/// Reads the server's variables and our account.
///
/// # Errors
/// The connection is gone.
pub async fn server(conn: &mut Conn) -> Result<ServerState, Error> {
    let rows: Vec<(String, String)> = conn
        .query(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'server_id', 'server_uuid', \
             'log_bin', 'binlog_format', 'binlog_row_image', 'binlog_row_metadata', \
             'binlog_checksum', 'gtid_mode', 'gtid_strict_mode', 'sync_binlog', \
             'binlog_expire_logs_seconds', 'expire_logs_days', 'read_only', 'super_read_only', \
             'log_slave_updates', 'log_replica_updates', 'max_allowed_packet', 'wsrep_on', \
             'wsrep_gtid_mode')",
        )
        .await?;
    let account: Option<String> = conn.query_first("SELECT CURRENT_USER()").await?;
    Ok(server_state(rows, account.unwrap_or_default()))
}

fn server_state(rows: Vec<(String, String)>, account: String) -> ServerState {
    let variables: HashMap<String, String> =
        rows.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let text = |name: &str| variables.get(name).cloned();
    // The days have decimals in MariaDB: 0.000000.
    let number = |name: &str| {
        let whole = text(name)?.split('.').next().map(str::to_owned)?;
        whole.parse::<u64>().ok()
    };
    // MariaDB: READ_ONLY is 0, 1, and from 12.1 on ON or what kind of accounts it stops.
    let switch = |name: &str| {
        text(name).map(|value| !matches!(value.to_ascii_uppercase().as_str(), "OFF" | "0" | ""))
    };
    let version_text = text("version").unwrap_or_default();
    let flavor = match version_text.to_ascii_lowercase().contains("mariadb") {
        true => Flavor::MariaDb,
        false => Flavor::MySql,
    };
    let days = number("expire_logs_days").unwrap_or(0);
    let seconds = number("binlog_expire_logs_seconds").unwrap_or(0);
    ServerState {
        flavor,
        version: version(&version_text),
        version_text,
        server_id: number("server_id").and_then(|id| u32::try_from(id).ok()).unwrap_or(0),
        server_uuid: text("server_uuid"),
        logs: switch("log_bin").unwrap_or(false),
        // A server without the variable has no other format left.
        format: text("binlog_format").unwrap_or_else(|| "ROW".into()),
        row_image: text("binlog_row_image").unwrap_or_else(|| "FULL".into()),
        row_metadata: text("binlog_row_metadata"),
        checksum: text("binlog_checksum").unwrap_or_default(),
        gtid_mode: text("gtid_mode"),
        gtid_strict: switch("gtid_strict_mode"),
        sync_binlog: number("sync_binlog").unwrap_or(0),
        expire_seconds: if seconds > 0 { seconds } else { days.saturating_mul(86_400) },
        read_only: ["super_read_only", "read_only"]
            .into_iter()
            .find(|name| switch(name) == Some(true)),
        logs_replicated: switch("log_replica_updates")
            .or_else(|| switch("log_slave_updates"))
            .unwrap_or(true),
        galera: (switch("wsrep_on") == Some(true))
            .then(|| Galera { gtid_mode: switch("wsrep_gtid_mode") }),
        packet_bytes_max: number("max_allowed_packet").unwrap_or(0),
        account,
    }
}

/// `(9, 7)` of `9.7.4-2`; zeros for what is none.
fn version(text: &str) -> (u32, u32) {
    // Old clients were kept from MariaDB 10 by this; some proxies still say it.
    let text = text.strip_prefix("5.5.5-").unwrap_or(text);
    let mut numbers = text.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What our account may do, beyond single tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// REPLICATION SLAVE: reading the binlog.
    pub replicates: bool,
    /// REPLICATION CLIENT, which MariaDB calls BINLOG MONITOR: asking where the binlog is.
    pub asks: bool,
    /// LOCK TABLES in the database of the outbox.
    pub locks: bool,
}

/// Reads our own rights, with those of our active roles.
///
/// # Errors
/// The connection is gone.
pub async fn grants(conn: &mut Conn, database: &str) -> Result<Grants, Error> {
    let lines: Vec<String> = conn.query("SHOW GRANTS").await?;
    Ok(read_grants(&lines, database))
}

fn read_grants(lines: &[String], database: &str) -> Grants {
    let mut grants = Grants::default();
    for line in lines {
        let Some((rights, rest)) =
            line.strip_prefix("GRANT ").and_then(|rest| rest.split_once(" ON "))
        else {
            continue;
        };
        let Some((object, _)) = rest.split_once(" TO ") else { continue };
        let has = |right: &str| {
            rights.split(',').map(str::trim).any(|one| one == right || one == "ALL PRIVILEGES")
        };
        let everywhere = object == "*.*";
        grants.replicates |= everywhere && has("REPLICATION SLAVE");
        grants.asks |= everywhere && (has("REPLICATION CLIENT") || has("BINLOG MONITOR"));
        grants.locks |= (everywhere || is_of_database(object, database)) && has("LOCK TABLES");
    }
    grants
}

/// Whether `` `shop`.* `` is about this database. One with a wildcard may be.
fn is_of_database(object: &str, database: &str) -> bool {
    let Some(pattern) = object.strip_suffix(".*") else { return false };
    let pattern = pattern.trim_matches('`').replace("``", "`");
    let plain = pattern.replace("\\_", "_").replace("\\%", "%");
    plain == database || pattern.replace("\\%", "").contains('%')
}

/// A column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnState {
    /// Its name.
    pub name: String,
    /// `data_type`: `varchar`.
    pub data_type: String,
    /// For people: `varchar(255)`.
    pub type_text: String,
    /// Character set of a text.
    pub charset: Option<String>,
}

/// The outbox table.
#[derive(Debug, Clone)]
pub struct TableState {
    /// Its name as the catalog spells it: other letters are another table to the binlog.
    pub name: QualifiedName,
    /// `BASE TABLE`, `VIEW`, `SYSTEM VERSIONED`.
    pub kind: String,
    /// Storage engine; a view has none.
    pub engine: Option<String>,
    /// The columns, in their order.
    pub columns: Vec<ColumnState>,
    /// The columns of the primary key, in its order; empty where there is none, or one of only the
    /// beginnings of columns, which does not tell rows apart by their values.
    pub key: Vec<String>,
    /// The column that the server counts up by itself.
    pub counter: Option<String>,
}

/// Reads the table and its columns; `None` where there is none that we may see.
///
/// # Errors
/// The connection is gone.
pub async fn table(conn: &mut Conn, name: &QualifiedName) -> Result<Option<TableState>, Error> {
    // Some servers compare these names without regard to case: the exact one comes first.
    let found: Option<(String, String, String, Option<String>)> = conn
        .exec_first(
            "SELECT table_schema, table_name, table_type, engine FROM information_schema.tables \
             WHERE table_schema = ? AND table_name = ? \
             ORDER BY BINARY table_schema = ? AND BINARY table_name = ? DESC LIMIT 1",
            (&name.schema, &name.name, &name.schema, &name.name),
        )
        .await?;
    let Some((schema, table, kind, engine)) = found else { return Ok(None) };
    let columns: Vec<(String, String, String, Option<String>)> = conn
        .exec(
            "SELECT column_name, data_type, column_type, character_set_name \
             FROM information_schema.columns WHERE table_schema = ? AND table_name = ? \
             ORDER BY ordinal_position",
            (&schema, &table),
        )
        .await?;
    let (key, counter) = row_names(conn, &schema, &table).await?;
    let columns = columns
        .into_iter()
        .map(|(name, data_type, type_text, charset)| ColumnState {
            name,
            data_type: data_type.to_ascii_lowercase(),
            type_text,
            charset,
        })
        .collect();
    let name = QualifiedName { schema, name: table };
    Ok(Some(TableState { name, kind, engine, columns, key, counter }))
}

/// What tells the table's rows apart, and what counts them.
async fn row_names(
    conn: &mut Conn,
    schema: &str,
    table: &str,
) -> Result<(Vec<String>, Option<String>), Error> {
    let parts: Vec<(String, Option<u64>)> = conn
        .exec(
            "SELECT column_name, sub_part FROM information_schema.statistics \
             WHERE table_schema = ? AND table_name = ? AND index_name = 'PRIMARY' \
             ORDER BY seq_in_index",
            (schema, table),
        )
        .await?;
    let is_whole = parts.iter().all(|(_, length)| length.is_none());
    let key = parts.into_iter().map(|(name, _)| name).filter(|_| is_whole).collect();
    let counter = conn
        .exec_first(
            "SELECT column_name FROM information_schema.columns \
             WHERE table_schema = ? AND table_name = ? AND extra LIKE '%auto_increment%'",
            (schema, table),
        )
        .await?;
    Ok((key, counter))
}

/// How many rows the table has, counted up to `most`.
///
/// # Errors
/// No right to read the table, or the connection is gone.
pub async fn row_count(conn: &mut Conn, name: &QualifiedName, most: u64) -> Result<u64, Error> {
    let table = name.quoted_mysql();
    let query = format!("SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT {most}) AS counted");
    Ok(conn.query_first(query).await?.unwrap_or(0))
}

/// Whether our account may read these columns of a table. Asked by EXPLAIN, which needs the rights
/// of the statement and does not run it.
///
/// # Errors
/// Table or column are not there, or the connection is gone.
pub async fn may_read(
    conn: &mut Conn,
    name: &QualifiedName,
    columns: &[&str],
) -> Result<bool, Error> {
    let columns: Vec<String> =
        columns.iter().map(|column| quote_mysql_identifier(column)).collect();
    let table = name.quoted_mysql();
    is_allowed(conn, format!("EXPLAIN SELECT {} FROM {table}", columns.join(", "))).await
}

async fn is_allowed(conn: &mut Conn, explain: String) -> Result<bool, Error> {
    match conn.query_drop(explain).await {
        Ok(()) => Ok(true),
        Err(Error::Server(error)) if DENIED.contains(&error.code) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where the binlog ends, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogState {
    /// The file that is written to.
    pub file: String,
    /// Where it ends.
    pub position: u64,
    /// Databases that alone are logged (`binlog_do_db`), where that is set.
    pub only: Vec<String>,
    /// Databases that are not logged (`binlog_ignore_db`).
    pub ignored: Vec<String>,
    /// All files that are left, with their bytes, oldest first.
    pub files: Vec<(String, u64)>,
}

/// Reads the binlog's state; `None` without the right to, or where there is no binlog.
///
/// # Errors
/// The connection is gone.
pub async fn log(conn: &mut Conn, server: &ServerState) -> Result<Option<LogState>, Error> {
    let row: Option<Row> = match conn.query_first(server.log_status_query()).await {
        Ok(row) => row,
        Err(Error::Server(error)) if DENIED.contains(&error.code) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(row) = row else { return Ok(None) };
    let names = |index: usize| {
        let list = text(&row, index).unwrap_or_default();
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let files: Vec<Row> = conn.query("SHOW BINARY LOGS").await?;
    let files = files.iter().filter_map(|row| Some((text(row, 0)?, number(row, 1).unwrap_or(0))));
    Ok(Some(LogState {
        file: text(&row, 0).unwrap_or_default(),
        position: number(&row, 1).unwrap_or(0),
        only: names(2),
        ignored: names(3),
        files: files.collect(),
    }))
}

/// Server ids of those who registered as replicas; `None` without the right to ask.
///
/// # Errors
/// The connection is gone.
pub async fn replicas(conn: &mut Conn, server: &ServerState) -> Result<Option<Vec<u32>>, Error> {
    const OLDER: &str = "SHOW SLAVE HOSTS";
    let asked: Result<Vec<Row>, Error> = match server.flavor {
        Flavor::MySql => match conn.query("SHOW REPLICAS").await {
            // MySQL before 8.0.22 knows only the older words.
            Err(Error::Server(error)) if error.code == PARSE_ERROR => conn.query(OLDER).await,
            asked => asked,
        },
        Flavor::MariaDb => conn.query(OLDER).await,
    };
    let rows = match asked {
        Ok(rows) => rows,
        Err(Error::Server(error)) if DENIED.contains(&error.code) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(rows.iter().filter_map(|row| number(row, 0)).collect()))
}

/// A column of an answer; `None` for NULL, for a column that is not there, and for what is no text.
pub(super) fn text(row: &Row, index: usize) -> Option<String> {
    row.get_opt::<Option<String>, _>(index)?.ok()?
}

/// As [`text`], for a number.
pub(super) fn number<T: FromValue>(row: &Row, index: usize) -> Option<T> {
    row.get_opt::<Option<T>, _>(index)?.ok()?
}

#[cfg(test)]
mod tests;
