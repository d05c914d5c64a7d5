//! The row of `walpost_memory`: how it is read and written. Judges nothing.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::super::connect::ConnectError;
use super::super::conninfo::ConnInfo;
use super::super::lsn::Lsn;
use super::super::sql::{SqlClient, connect_sql};
use crate::config::QualifiedName;

/// Longest time for a connect and a write together.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Session limits of the writer. `local` is durable on this server, whatever the role's own
/// setting, and waits for no standby.
const SESSION: &str = "SET statement_timeout = '5s'; SET lock_timeout = '3s'; \
                       SET synchronous_commit = local; SET default_transaction_read_only = off";

/// What the server can say of whether a slot is still the one that was remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotProof {
    /// It is.
    Same,
    /// It was made again since: its counter of decoded transactions began again.
    Another,
    /// Its counter was lost with a crash of the server, or it is too young.
    None,
}

/// A row, and how the slot stands to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Of the cluster that it was written in.
    pub system_identifier: String,
    /// Likewise.
    pub timeline: u32,
    /// All before it was confirmed by the broker.
    pub confirmed: Lsn,
    /// Nothing beyond it was acknowledged before the row was written again.
    pub bound: Lsn,
    /// Whether it is the exact end of a relay that stopped by itself.
    pub is_clean: bool,
    /// How often the row was written.
    pub writes: i64,
    /// Which process wrote it.
    pub holder: String,
    /// When, for people.
    pub updated_at: String,
    /// What the slot's own figures say.
    pub proof: SlotProof,
}

/// The memory in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryState {
    /// There is no table: it is off.
    Missing,
    /// It cannot be read and written, and so says nothing that could be relied on. In words.
    Unusable(String),
    /// Nothing was ever written for this slot.
    Empty,
    /// What was written last.
    Row(Remembered),
}

impl MemoryState {
    /// The row, where there is one.
    pub fn row(&self) -> Option<&Remembered> {
        match self {
            Self::Row(row) => Some(row),
            Self::Missing | Self::Unusable(_) | Self::Empty => None,
        }
    }
}

/// Reads the row of a slot.
///
/// # Errors
/// The connection is gone.
pub async fn load(
    client: &Client,
    version: u32,
    table: &QualifiedName,
    slot: &str,
) -> Result<MemoryState, Error> {
    let rights = client
        .query_opt(
            "SELECT has_schema_privilege(n.oid, 'USAGE') \
               AND has_table_privilege(c.oid, 'SELECT') \
               AND has_table_privilege(c.oid, 'INSERT') \
               AND has_table_privilege(c.oid, 'UPDATE'), pg_is_in_recovery() \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
            &[&table.schema, &table.name],
        )
        .await?;
    match rights.map(|row| (row.get::<_, bool>(0), row.get::<_, bool>(1))) {
        None => return Ok(MemoryState::Missing),
        Some((true, false)) => {}
        Some((_, true)) => {
            return Ok(MemoryState::Unusable("the server is a standby and takes no writes".into()));
        }
        Some((false, false)) => {
            return Ok(MemoryState::Unusable("the relay's role may not read and write it".into()));
        }
    }
    // 13 does not count what a slot decodes, and 14 tells of it half a second late.
    let counters = match version {
        150_000.. => "LEFT JOIN pg_stat_replication_slots t ON t.slot_name = m.slot",
        ..150_000 => {
            "CROSS JOIN (SELECT NULL::int8 AS total_txns, NULL::timestamptz AS stats_reset) t"
        }
    };
    // A slot that was made again keeps no log from before its making, and has decoded nothing. A
    // crash takes all counters, which the archiver's shows too.
    let query = format!(
        "SELECT m.system_identifier, m.timeline, m.confirmed::text, m.bound::text, m.is_clean, \
           m.writes, m.holder, to_char(m.updated_at, 'YYYY-MM-DD HH24:MI:SS TZ'), \
           coalesce(t.total_txns < m.decoded, false) \
             AND coalesce(greatest(t.stats_reset, a.stats_reset) <= m.updated_at, true), \
           coalesce(t.total_txns >= m.decoded AND m.decoded > 0, false) \
             OR coalesce(r.restart_lsn <= m.confirmed, false) \
         FROM {} m LEFT JOIN pg_replication_slots r ON r.slot_name = m.slot {counters} \
           LEFT JOIN pg_stat_archiver a ON true \
         WHERE m.slot = $1",
        table.quoted()
    );
    let row = match client.query_opt(&query, &[&slot]).await {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(MemoryState::Empty),
        Err(error) if is_other_table(&error) => {
            return Ok(MemoryState::Unusable("it is not the table that init makes".into()));
        }
        Err(error) => return Err(error),
    };
    let (confirmed, bound): (String, String) = (row.try_get(2)?, row.try_get(3)?);
    let (Ok(confirmed), Ok(bound)) = (confirmed.parse(), bound.parse()) else {
        return Ok(MemoryState::Unusable("it holds what is not a position".into()));
    };
    let (is_another, is_same): (bool, bool) = (row.try_get(8)?, row.try_get(9)?);
    Ok(MemoryState::Row(Remembered {
        system_identifier: row.try_get(0)?,
        timeline: u32::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0),
        confirmed,
        bound,
        is_clean: row.try_get(4)?,
        writes: row.try_get(5)?,
        holder: row.try_get(6)?,
        updated_at: row.try_get(7)?,
        proof: match (is_another, is_same) {
            (true, _) => SlotProof::Another,
            (false, true) => SlotProof::Same,
            (false, false) => SlotProof::None,
        },
    }))
}

/// Columns or types that are not ours.
fn is_other_table(error: &Error) -> bool {
    let codes = [
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::DATATYPE_MISMATCH,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    error.code().is_some_and(|code| codes.contains(code))
}

/// What is to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) confirmed: Lsn,
    pub(super) bound: Lsn,
    pub(super) is_clean: bool,
    /// Whether it replaces what another process wrote: the first write of one that got the slot.
    pub(super) claims: bool,
    /// Whether it replaces what says otherwise: that was accepted, or is of another cluster.
    pub(super) replaces: bool,
}

/// Why a row was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    #[error("the server did not take it within {WRITE_TIMEOUT:?}")]
    TimedOut,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.as_db_error().map_or_else(|| .0.to_string(), |error| error.message().into()))]
    Refused(#[from] Error),
}

/// Writes the row of one slot, by a connection of its own that is kept while it is used.
pub(super) struct Writer {
    pub(super) info: ConnInfo,
    pub(super) version: u32,
    pub(super) table: QualifiedName,
    pub(super) slot: String,
    pub(super) system_identifier: u64,
    pub(super) timeline: u32,
    pub(super) holder: String,
    pub(super) client: Option<SqlClient>,
}

impl Writer {
    /// Writes; says how often the row was written by now, or `None` where another process has it.
    pub(super) async fn write(&mut self, write: &Write) -> Result<Option<i64>, WriteError> {
        let was_kept = self.client.is_some();
        let writing = async {
            match self.try_write(write).await {
                // A connection that was kept may have been cut meanwhile.
                Err(WriteError::Refused(error)) if was_kept && error.code().is_none() => {
                    self.client = None;
                    self.try_write(write).await
                }
                result => result,
            }
        };
        let result = tokio::time::timeout(WRITE_TIMEOUT, writing).await;
        let result = result.unwrap_or(Err(WriteError::TimedOut));
        if result.is_err() {
            self.client = None;
        }
        result
    }

    async fn try_write(&mut self, write: &Write) -> Result<Option<i64>, WriteError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => {
                let client = connect_sql(&self.info).await?;
                client.batch_execute(SESSION).await?;
                client
            }
        };
        let decoded = match self.version {
            150_000.. => "(SELECT total_txns FROM pg_stat_replication_slots WHERE slot_name = $1)",
            ..150_000 => "NULL::int8",
        };
        let statement = format!(
            "INSERT INTO {} AS m (slot, system_identifier, timeline, confirmed, bound, is_clean, \
               decoded, writes, holder, updated_at) \
             VALUES ($1, $2, $3, $4::text::pg_lsn, $5::text::pg_lsn, $6, {decoded}, 1, $7, \
               clock_timestamp()) \
             ON CONFLICT (slot) DO UPDATE SET system_identifier = excluded.system_identifier, \
               timeline = excluded.timeline, confirmed = excluded.confirmed, \
               bound = excluded.bound, is_clean = excluded.is_clean, \
               decoded = excluded.decoded, writes = m.writes + 1, \
               holder = excluded.holder, updated_at = excluded.updated_at \
             WHERE $8 OR m.holder = $7 OR ($9 AND m.confirmed <= excluded.confirmed) \
             RETURNING writes",
            self.table.quoted()
        );
        let row = client
            .query_opt(
                &statement,
                &[
                    &self.slot,
                    &self.system_identifier.to_string(),
                    &i64::from(self.timeline),
                    &write.confirmed.to_string(),
                    &write.bound.to_string(),
                    &write.is_clean,
                    &self.holder,
                    &write.replaces,
                    &write.claims,
                ],
            )
            .await?;
        self.client = Some(client);
        Ok(row.map(|row| row.get(0)))
    }
}
