//! Outbox tables, publications and slots: what stands between a writer and a relay.
//!
//! LSNs are `u64` here, as the wire has them.

use std::time::Duration;

use super::postgres::{Client, literal};
use super::process::eventually;

/// What `pg_replication_slots` says about a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub confirmed_flush_lsn: u64,
    pub restart_lsn: u64,
    /// The walsender that uses it.
    pub active_pid: Option<u32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
}

/// State of a slot; `None` when there is no such slot. LSNs that are NULL read as 0.
pub fn slot_state(client: &Client, slot: &str) -> Option<SlotState> {
    let sql = format!(
        "SELECT confirmed_flush_lsn, restart_lsn, active_pid, wal_status \
         FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    let row = client.rows(&sql).into_iter().next()?;
    let lsn = |index: usize| row[index].as_deref().map_or(0, parse_lsn);
    Some(SlotState {
        confirmed_flush_lsn: lsn(0),
        restart_lsn: lsn(1),
        active_pid: row[2].as_deref().map(|pid| pid.parse().expect("a process id")),
        wal_status: row[3].clone(),
    })
}

/// `16/B374D848` as a number.
pub fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN has a slash");
    let part = |digits| u64::from_str_radix(digits, 16).expect("an LSN is hexadecimal");
    (part(high) << 32) | part(low)
}

/// A number as PostgreSQL prints it.
pub fn format_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xffff_ffff)
}

/// The end of the log as written so far, unflushed records included: an upper bound of every
/// commit that was answered before the call.
pub fn end_of_log(client: &Client) -> u64 {
    parse_lsn(&client.value("SELECT pg_current_wal_insert_lsn()").expect("an LSN"))
}

/// Makes Debezium's default outbox table.
pub fn create_outbox(client: &Client, table: &str) {
    client.run(&format!(
        "CREATE TABLE {table} (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)"
    ));
}

/// Makes an insert-only publication of a table, then a `pgoutput` slot (in this order: the slot
/// reads the catalog of its own past).
pub fn create_publication_and_slot(client: &Client, table: &str, publication: &str, slot: &str) {
    client.run(&format!(
        "CREATE PUBLICATION {publication} FOR TABLE {table} WITH (publish = 'insert')"
    ));
    create_slot(client, slot, "pgoutput");
}

/// Makes a slot with a given output plugin.
pub fn create_slot(client: &Client, slot: &str, plugin: &str) {
    client.run(&format!(
        "SELECT pg_create_logical_replication_slot({}, {})",
        literal(slot),
        literal(plugin)
    ));
}

/// Waits until the slot has confirmed everything up to `until` (take [`end_of_log`]); says
/// whether it did within `timeout`. The server's log moves on by itself, so a relay that
/// acknowledges idle traffic always gets there.
pub fn wait_drained(client: &Client, slot: &str, until: u64, timeout: Duration) -> bool {
    eventually(timeout, || {
        slot_state(client, slot).is_some_and(|state| state.confirmed_flush_lsn >= until)
    })
}

/// Waits until nobody uses the slot: after a crash of its client the walsender takes a moment
/// to notice.
pub fn wait_inactive(client: &Client, slot: &str, timeout: Duration) -> bool {
    eventually(timeout, || slot_state(client, slot).is_some_and(|state| state.active_pid.is_none()))
}

/// Drops a slot as soon as nobody uses it any more.
pub fn drop_slot(client: &Client, slot: &str) {
    assert!(wait_inactive(client, slot, Duration::from_secs(30)), "the slot stayed in use");
    client.run(&format!("SELECT pg_drop_replication_slot({})", literal(slot)));
}
