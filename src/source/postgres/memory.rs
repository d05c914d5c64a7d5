//! What this relay has confirmed, remembered beside the slot.
//!
//! A slot alone cannot say that it was made again, or moved by somebody else; and a server that
//! crashes may take it back. So the position is also kept in a row of `walpost_memory`, beside the
//! outbox, and where `source.memory_file` says so in a local file too.
//!
//! | file | noun |
//! |---|---|
//! | `table` | the row: how it is read and written |
//! | `schedule` | when it is written, and how far may be acknowledged before: pure |
//! | `judge` | whether slot, row and file agree: pure |
//! | `keeper` | the memory of a relay at work |
//!
//! The reader owns a `Memory`, asks it before each acknowledgement, and is never held up by it:
//! rows are written by a task with a connection of its own, and a write that fails is a warning.

mod judge;
mod keeper;
mod schedule;
mod table;

use self::judge::{Agreement, Facts, judge};
use super::error::PostgresError;
use super::lsn::Lsn;
use super::session::System;
use super::sql::SqlClient;
use crate::config::PostgresSettings;
use crate::source::Finding;
use crate::source::memory_file::{MemoryFile, boot};

pub use self::judge::GapError;
pub(super) use self::keeper::Memory;
pub use self::table::{MemoryState, Remembered, SlotProof, load};

/// What a first session found, once the slot is its own.
#[derive(Debug)]
pub(super) struct Recalled {
    state: MemoryState,
    version: u32,
    file: Option<MemoryFile>,
    /// Whether what is there is to be replaced, whatever it says.
    replaces: bool,
}

/// Reads memory and file, and compares them with the slot. The slot must be ours already: a
/// standby may wait for months, and what it read before says nothing.
///
/// # Errors
/// Rows are at risk and nobody has accepted that; or the file cannot be used.
pub(super) async fn recall(
    settings: &PostgresSettings,
    sql: &SqlClient,
    version: u32,
    system: System,
    slot_at: Lsn,
) -> Result<Recalled, PostgresError> {
    let state = load(sql, version, &settings.memory_table(), &settings.slot).await?;
    let (file, record) = match &settings.memory_file {
        Some(path) => {
            let (file, record) = MemoryFile::open(path)?;
            (Some(file), record)
        }
        None => (None, None),
    };
    // Last: what is remembered may be of this very moment.
    let log_end = log_end(sql).await?;
    let facts = Facts {
        slot: &settings.slot,
        slot_at,
        system_identifier: system.identifier,
        timeline: system.timeline,
        log_end,
        row: state.row(),
        file: record.as_ref(),
        boot: &boot(),
    };
    let accepted = settings.accept_gap.as_ref().and_then(|text| text.parse::<Lsn>().ok());
    let replaces = match judge(&facts) {
        Ok(agreement) => {
            say(settings, &state, &facts, &agreement);
            if let Some(accepted) = accepted {
                tracing::info!(%accepted, "--accept-gap has nothing to accept: leave it out");
            }
            matches!(agreement, Agreement::Foreign { .. })
        }
        Err(gap) if accepted.is_some() && gap.accepted_by() == accepted => {
            tracing::warn!("accepted by --accept-gap: {gap}");
            true
        }
        Err(gap) => return Err(gap.into()),
    };
    Ok(Recalled { state, version, file, replaces })
}

/// One line at start for what is worth one.
fn say(settings: &PostgresSettings, state: &MemoryState, facts: &Facts<'_>, agreement: &Agreement) {
    let table = settings.memory_table();
    match state {
        MemoryState::Missing => tracing::info!(
            "what is confirmed is remembered by the slot alone: there is no table {table}, which \
             walpost init makes"
        ),
        MemoryState::Unusable(why) => tracing::warn!(
            "what is confirmed is remembered by the slot alone: table {table} is of no use: {why}; \
             walpost check prints the statement that helps"
        ),
        MemoryState::Empty => {}
        MemoryState::Row(row) if row.confirmed > facts.slot_at => tracing::info!(
            slot = %facts.slot_at,
            remembered = %row.confirmed,
            "the slot went back, as a crash of the server makes it; going on from what is \
             remembered"
        ),
        MemoryState::Row(_) => {}
    }
    let slot_at = facts.slot_at;
    match agreement {
        Agreement::Whole => {}
        Agreement::Unsure { from, is_same_slot: true } => tracing::info!(
            "walpost was not stopped cleanly: slot \"{}\" is at {slot_at}, {from} is remembered; \
             what lies between was acknowledged since, unless somebody else advanced the slot",
            settings.slot
        ),
        Agreement::Unsure { from, is_same_slot: false } => tracing::warn!(
            "walpost was not stopped cleanly: slot \"{}\" is at {slot_at}, {from} is remembered; \
             what lies between was acknowledged since, unless somebody else advanced the slot or \
             made it again meanwhile, which cannot be told; source.memory_file would tell",
            settings.slot
        ),
        Agreement::Foreign { system_identifier } => tracing::warn!(
            "table {table} came from another cluster ({system_identifier}) and says nothing here; \
             it is written again"
        ),
    }
}

/// The start that memory allows, and the error for a slot that is gone; `None` without memory.
pub(super) async fn before_start(
    settings: &PostgresSettings,
    sql: &SqlClient,
    system: System,
    log_end: Lsn,
) -> Result<Option<Lsn>, PostgresError> {
    // No more than that, since the server may be older than the catalog that is asked for later.
    let query = "SELECT current_setting('server_version_num')::int4, \
                 EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
    let row = sql.query_one(query, &[&settings.slot]).await?;
    let (version, has_slot): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
    let version = u32::try_from(version).unwrap_or(0);
    let state = load(sql, version, &settings.memory_table(), &settings.slot).await?;
    let start = judge::start_at(state.row(), system.identifier, log_end);
    match start {
        Some(from) if !has_slot => {
            let slot = settings.slot.clone();
            Err(GapError::SlotGone { slot, from, log_end }.into())
        }
        start => Ok(start),
    }
}

/// How memory and file stand, for `check`. `system` is `None` where the server does not say.
///
/// # Errors
/// The connection is gone.
pub async fn look(
    settings: &PostgresSettings,
    sql: &SqlClient,
    version: u32,
    slot_at: Option<Lsn>,
) -> Result<Vec<Finding>, tokio_postgres::Error> {
    const NAME: &str = "memory";
    let table = settings.memory_table();
    let state = load(sql, version, &table, &settings.slot).await?;
    let mut findings = vec![match &state {
        MemoryState::Missing => Finding::warn(
            NAME,
            format!(
                "off: there is no table {table}, so a slot that was made again or moved is not \
                     noticed"
            ),
            "walpost init creates it",
        ),
        MemoryState::Unusable(why) => Finding::warn(
            NAME,
            format!("off: {table}: {why}"),
            format!(
                "GRANT SELECT, INSERT, UPDATE ON {table} TO the relay's role; or, where it is \
                     not walpost's, rename it and run walpost init"
            ),
        ),
        MemoryState::Empty => Finding::ok(NAME, format!("on; nothing is in {table} yet")),
        MemoryState::Row(row) => Finding::ok(
            NAME,
            format!(
                "on; {} at {}, {}",
                row.confirmed,
                row.updated_at,
                match row.is_clean {
                    true => "a clean stop",
                    false => "a relay is at work, or did not stop cleanly",
                }
            ),
        ),
    }];
    let record = match &settings.memory_file {
        None => None,
        Some(path) => match MemoryFile::peek(path) {
            Ok(record) => {
                let detail = match &record {
                    Some(record) => format!("{} in {}", record.position, path.display()),
                    None => format!("nothing is in {} yet", path.display()),
                };
                findings.push(Finding::ok("memory_file", detail));
                record
            }
            Err(error) => {
                let fix = "make its folder for the user that runs walpost, or name another file";
                findings.push(Finding::fail("memory_file", error.to_string(), fix));
                None
            }
        },
    };
    let Some(slot_at) = slot_at else { return Ok(findings) };
    let Some(system) = system(sql).await else { return Ok(findings) };
    let log_end = log_end(sql).await?;
    let facts = Facts {
        slot: &settings.slot,
        slot_at,
        system_identifier: system.identifier,
        timeline: system.timeline,
        log_end,
        row: state.row(),
        file: record.as_ref(),
        boot: &boot(),
    };
    if let Err(gap) = judge(&facts) {
        let fix = match gap.accepted_by() {
            Some(position) => format!("then: walpost run --accept-gap {position}"),
            None => "set source.memory_file to a file of its own".to_owned(),
        };
        findings.push(Finding::fail("gap", gap.to_string(), fix));
    }
    Ok(findings)
}

/// What `IDENTIFY_SYSTEM` says, on an ordinary connection; some services keep it to themselves.
async fn system(sql: &SqlClient) -> Option<System> {
    let query = "SELECT (SELECT system_identifier::text FROM pg_control_system()), \
                 (SELECT timeline_id FROM pg_control_checkpoint())";
    let row = sql.query_one(query, &[]).await.ok()?;
    // It is 64 bits without a sign, which PostgreSQL's own type is not.
    let identifier: String = row.try_get(0).ok()?;
    let timeline: i32 = row.try_get(1).ok()?;
    let identifier = identifier
        .parse()
        .ok()
        .or_else(|| identifier.parse::<i64>().ok().map(i64::cast_unsigned))?;
    Some(System { identifier, timeline: timeline.cast_unsigned() })
}

/// Where the server's log ends on its disk: nothing beyond it was ever sent.
async fn log_end(sql: &SqlClient) -> Result<Lsn, tokio_postgres::Error> {
    let query = "SELECT (CASE WHEN pg_is_in_recovery() \
                   THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                   ELSE pg_current_wal_flush_lsn() END)::text";
    let text: Option<String> = sql.query_one(query, &[]).await?.try_get(0)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(Lsn(u64::MAX)))
}
