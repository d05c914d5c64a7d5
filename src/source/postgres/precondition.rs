//! What must hold before a slot can be streamed, and the exact remedy where it does not.
//!
//! Pure: judges the answers of `inspect.rs` and asks nothing itself. `check` prints the findings;
//! the source refuses to start on the first failed one.

use super::inspect::{ColumnState, PublicationState, ServerState, SlotState, TableState};
use crate::config::{
    OutboxSettings, PostgresSettings, plain_identifier, quote_identifier, quote_literal,
};
use crate::outbox::Role;
use crate::source::finding::{Finding, Standing, column_key, size};

/// A table that joins a publication is in it from that moment of the log on: what an open
/// transaction wrote to it before is left out.
const WHILE_QUIET: &str = "while nobody writes to the table: earlier rows of transactions that \
                           are open then are not published";

const IDLE_TIMEOUT: &str = "idle_replication_slot_timeout";

/// Findings that are worth a line at each start, where they are no more than warnings.
pub(crate) const SAID_AT_START: [&str; 4] =
    ["synchronous_standby_names", IDLE_TIMEOUT, "publication", "row_movement"];

/// Judges the server and our role on it.
pub fn judge_server(server: &ServerState) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(if server.version < 130_000 {
        Finding::fail(
            "server",
            format!("PostgreSQL {} is too old", server.version_text),
            "use PostgreSQL 13 or later",
        )
    } else {
        Finding::ok("server", format!("PostgreSQL {}", server.version_text))
    });
    if server.in_recovery {
        let (detail, fix) = ("it is a standby", "set source.url to its primary");
        // From 16 on a standby can decode; its slot is lost with it, not with the primary.
        findings.push(match server.version {
            ..160_000 => Finding::fail("server", detail, fix),
            160_000.. => Finding::warn("server", detail, fix),
        });
    }
    findings.push(judge_wal_level(server));
    findings.push(if server.may_replicate {
        Finding::ok("role", format!("{} may replicate", plain_identifier(&server.role)))
    } else {
        Finding::fail(
            "role",
            format!("{} may not replicate", plain_identifier(&server.role)),
            format!("ALTER ROLE {} REPLICATION;", plain_identifier(&server.role)),
        )
    });
    findings.extend(judge_synchronous(server));
    findings.extend(judge_idle_timeout(server));
    findings
}

/// A synchronous standby that publishes is one for which every COMMIT waits: also while the broker
/// is away.
fn judge_synchronous(server: &ServerState) -> Option<Finding> {
    let names = &server.synchronous_standby_names;
    let ours = &server.application_name;
    // "FIRST 2 (a, b)", "ANY 1 (*)", "a, b": what is no name never equals ours in practice.
    let mut parts = names.split(|part: char| " ,()\"".contains(part));
    if !parts.any(|part| part == "*" || (!part.is_empty() && part.eq_ignore_ascii_case(ours))) {
        return None;
    }
    let detail = format!(
        "synchronous_standby_names = '{names}' takes this relay (application_name {ours}) for a \
         synchronous standby: with the broker away, every COMMIT waits for it"
    );
    let fix = "list the standbys by their names there, or set another application_name in \
               source.url";
    Some(Finding::warn("synchronous_standby_names", detail, fix))
}

/// The server gives up a slot that nobody uses for so long (18+).
fn judge_idle_timeout(server: &ServerState) -> Option<Finding> {
    let seconds = server.idle_slot_seconds_max;
    if seconds <= 0 {
        return None;
    }
    let detail = format!(
        "it is {seconds} s: the slot is lost when this relay is stopped, or cannot reach the \
         server, for longer. An outage of the broker does not count: the connection is kept"
    );
    let fix = "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();";
    Some(Finding::warn(IDLE_TIMEOUT, detail, fix))
}

/// Judges `wal_level` alone: `init` needs no more of a server.
pub fn judge_wal_level(server: &ServerState) -> Finding {
    if server.wal_level == "logical" {
        return Finding::ok("wal_level", "logical");
    }
    // From 19 on the first logical slot raises it without a restart.
    if server.wal_level == "replica"
        && let Some(effective) = &server.effective_wal_level
    {
        let detail = match effective.as_str() {
            "logical" => "replica, which a logical slot has raised to logical".to_owned(),
            effective => format!("{effective}, which the first logical slot raises to logical"),
        };
        return Finding::ok("wal_level", detail);
    }
    Finding::fail(
        "wal_level",
        format!("it is {}, and must be logical", server.wal_level),
        "ALTER SYSTEM SET wal_level = logical; then restart the server",
    )
}

/// Judges the table and its mapped columns.
pub fn judge_table(
    settings: &PostgresSettings,
    outbox: &OutboxSettings,
    table: Option<&TableState>,
) -> Vec<Finding> {
    let name = &settings.table;
    let Some(table) = table else {
        let detail = format!("there is no table {name} in this database");
        let fix = "walpost init creates it; or set source.table to the one that you have";
        return vec![Finding::fail("table", detail, fix)];
    };
    if !matches!(table.kind, 'r' | 'p') {
        let detail = format!("{name} is a view or foreign table, which has no log");
        return vec![Finding::fail("table", detail, "set source.table to the table behind it")];
    }
    if table.persistence != 'p' {
        let detail = format!("{name} is unlogged or temporary: its rows never reach the log");
        return vec![Finding::fail("table", detail, format!("ALTER TABLE {name} SET LOGGED;"))];
    }
    let mut findings = judge_leaves(settings, table);
    if findings.iter().all(|finding| finding.standing != Standing::Fail) {
        findings.insert(0, Finding::ok("table", name.to_string()));
    }
    let mut good = Vec::new();
    let mut columns_hold = true;
    for mapped in outbox.columns.iter() {
        let found = table.columns.iter().find(|column| column.name == mapped.name);
        let Some(column) = found else {
            if mapped.required {
                let key = column_key(mapped.role);
                let detail = format!("{name} has no column {}", plain_identifier(&mapped.name));
                let fix = format!("set {key} to one of its columns: {}", names(&table.columns));
                findings.push(Finding::fail("columns", detail, fix));
                columns_hold = false;
            }
            continue;
        };
        match wanted_types(mapped.role, outbox.partition) {
            Some(wanted) if !wanted.contains(&column.base_type_name.as_str()) => {
                let detail = format!(
                    "{} is {}, and must be one of {}",
                    plain_identifier(&column.name),
                    column.type_name,
                    wanted.join(", ")
                );
                let fix = format!("set {} to another column", column_key(mapped.role));
                findings.push(Finding::fail("columns", detail, fix));
                columns_hold = false;
            }
            Some(_) | None => {
                good.push(format!("{} {}", plain_identifier(&column.name), column.type_name));
            }
        }
    }
    if columns_hold {
        findings.push(Finding::ok("columns", good.join(", ")));
    }
    findings
}

/// Judges the tables below the outbox: an insert into the outbox ends in one of them.
fn judge_leaves(settings: &PostgresSettings, table: &TableState) -> Vec<Finding> {
    let name = &settings.table;
    let fail = |detail: String, fix: String| Finding::fail("table", detail, fix);
    let mut findings = Vec::new();
    if table.kind == 'r' {
        if let Some(child) = table.leaves.first() {
            let child = &child.name;
            let detail = format!(
                "{name} has children by inheritance ({child}), whose rows are published in their \
                 own names, and so not relayed"
            );
            let fix = format!(
                "ALTER TABLE {child} NO INHERIT {name}; or use declarative partitioning, whose \
                 rows are published as those of {name}"
            );
            findings.push(fail(detail, fix));
        }
        return findings;
    }
    for leaf in &table.leaves {
        let part = &leaf.name;
        if leaf.kind == 'f' {
            let detail = format!(
                "partition {part} of {name} is a foreign table: its rows never reach this \
                 server's log"
            );
            let fix = format!("ALTER TABLE {name} DETACH PARTITION {part};");
            findings.push(fail(detail, fix));
        } else if leaf.persistence != 'p' {
            let detail =
                format!("partition {part} of {name} is unlogged: its rows never reach the log");
            findings.push(fail(detail, format!("ALTER TABLE {part} SET LOGGED;")));
        }
    }
    let detail = format!(
        "{name} is partitioned: an UPDATE that moves a row to another partition inserts it there, \
         and it is published again, with another identity"
    );
    let fix = "do not update the columns that the partitions are made by";
    findings.push(Finding::warn("row_movement", detail, fix));
    findings
}

/// Types that a role can be read from; `None` is any.
fn wanted_types(role: Role, partition: Option<usize>) -> Option<&'static [&'static str]> {
    match role {
        Role::CreatedAt => Some(&["timestamp with time zone", "timestamp without time zone"]),
        Role::Headers => Some(&["jsonb", "json", "text", "character varying"]),
        Role::Payload => Some(&["jsonb", "json", "text", "character varying", "bytea"]),
        Role::Extra(index) if Some(index) == partition => Some(&["integer", "smallint", "bigint"]),
        Role::Id
        | Role::AggregateType
        | Role::AggregateId
        | Role::EventType
        | Role::Topic
        | Role::Extra(_) => None,
    }
}

fn names(columns: &[ColumnState]) -> String {
    columns.iter().map(|column| plain_identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

/// Judges the publication: one failed finding for each thing that would hide rows or columns.
///
/// A missing publication is worse than a missing slot: PostgreSQL reads the catalog as it was
/// when a row was written, so one created later does not help that slot (15: error 42704 for
/// ever; 18: the rows are skipped silently).
pub fn judge_publication(
    settings: &PostgresSettings,
    outbox: &OutboxSettings,
    table: &TableState,
    publication: Option<&PublicationState>,
) -> Vec<Finding> {
    let plain = plain_identifier(&settings.publication);
    let name = &settings.table;
    let fail = |detail: String, fix: String| Finding::fail("publication", detail, fix);
    let Some(publication) = publication else {
        let fix = format!(
            "walpost init creates it; a slot cannot see a publication that is younger than itself, \
             so where slot {slot} exists in this very database, make another one under another \
             name (source.slot) after the publication, while writers are quiet",
            slot = settings.slot
        );
        return vec![fail(format!("there is no publication {plain}"), fix)];
    };
    let mut findings = Vec::new();
    let published = published(publication);
    let fix = format!("ALTER PUBLICATION {plain} SET (publish = 'insert');");
    if !publication.inserts {
        findings.push(fail(format!("{plain} publishes {published}, but no inserts"), fix));
    } else if published != "insert" {
        let detail = format!("{plain} publishes {published}: all but insert is sent for nothing");
        findings.push(Finding::warn("publication", detail, fix));
    }
    if publication.excepts_table {
        let detail = format!("{plain} is for all tables except {name}");
        let fix = format!("ALTER PUBLICATION {plain} SET ALL TABLES; {WHILE_QUIET}");
        findings.push(fail(detail, fix));
    } else if !publication.covers_table {
        let fix = format!("ALTER PUBLICATION {plain} ADD TABLE {name}; {WHILE_QUIET}");
        findings.push(fail(format!("{plain} does not publish {name}"), fix));
    }
    if table.kind == 'p' && !publication.via_partition_root {
        let detail = format!("{name} is partitioned, and {plain} publishes it as its partitions");
        let fix = format!("ALTER PUBLICATION {plain} SET (publish_via_partition_root = true);");
        findings.push(fail(detail, fix));
    }
    if let Some(root) = &publication.published_as {
        let detail = format!("{name} is a partition, and {plain} publishes its rows as {root}'s");
        findings.push(fail(detail, format!("set source.table to {root}")));
    }
    findings.extend(judge_generated(outbox, table, publication, &plain));
    if let Some(columns) = &publication.columns {
        let present = |name: &str| table.columns.iter().any(|column| column.name == name);
        let hidden: Vec<String> = outbox
            .columns
            .iter()
            .filter(|mapped| present(&mapped.name) && !columns.contains(&mapped.name))
            .map(|mapped| plain_identifier(&mapped.name))
            .collect();
        if !hidden.is_empty() {
            let detail = format!("the column list of {plain} hides {}", hidden.join(", "));
            let fix = format!("ALTER PUBLICATION {plain} SET TABLE {name}; {WHILE_QUIET}");
            findings.push(fail(detail, fix));
        }
    }
    if let Some(filter) = &publication.row_filter {
        let detail = format!("{plain} publishes only rows WHERE {filter}");
        let fix = format!(
            "ALTER PUBLICATION {plain} SET TABLE {name}; {WHILE_QUIET}; unless another relay \
             publishes the rest"
        );
        findings.push(Finding::warn("publication", detail, fix));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("publication", format!("{plain} publishes inserts of {name}")));
    }
    findings
}

/// A generated column is not in the log: without a word a row would come without its value.
fn judge_generated(
    outbox: &OutboxSettings,
    table: &TableState,
    publication: &PublicationState,
    plain: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mapped in outbox.columns.iter() {
        let found = table.columns.iter().find(|column| column.name == mapped.name);
        let Some(column) = found.filter(|column| column.generated != ' ') else { continue };
        if publication.sends(column) {
            continue;
        }
        let column_name = plain_identifier(&column.name);
        let detail = format!("{column_name} is a generated column, which {plain} does not send");
        let fix = format!(
            "set {} to another column; or, for a STORED one on PostgreSQL 18 and later, ALTER \
             PUBLICATION {plain} SET (publish_generated_columns = stored);",
            column_key(mapped.role)
        );
        findings.push(Finding::fail("columns", detail, fix));
    }
    findings
}

fn published(publication: &PublicationState) -> String {
    let kinds = [
        (publication.inserts, "insert"),
        (publication.updates, "update"),
        (publication.deletes, "delete"),
        (publication.truncates, "truncate"),
    ];
    let kinds: Vec<&str> = kinds.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind).collect();
    if kinds.is_empty() { "nothing".into() } else { kinds.join(", ") }
}

/// Judges the slot.
pub fn judge_slot(
    settings: &PostgresSettings,
    server: &ServerState,
    slot: Option<&SlotState>,
) -> Vec<Finding> {
    let name = &settings.slot;
    let fail = |detail: String, fix: String| Finding::fail("slot", detail, fix);
    let Some(slot) = slot else {
        let detail = format!("there is no slot {name}");
        let fix = if server.slots < server.slots_max {
            "walpost init creates it".to_owned()
        } else {
            // A full server refuses to make one, so creating it is not enough.
            format!(
                "drop an unused slot or ALTER SYSTEM SET max_replication_slots to more than {} \
                 and restart the server; then walpost init creates it",
                server.slots_max
            )
        };
        return vec![fail(detail, fix)];
    };
    if slot.plugin.as_deref() != Some("pgoutput") {
        let plugin = slot.plugin.as_deref().unwrap_or("none (it is physical)");
        let detail = format!("{name} has the plugin {plugin}, and must have pgoutput");
        return vec![fail(detail, "set source.slot to another name, then walpost init".into())];
    }
    if slot.database.as_deref() != Some(&server.database) {
        let database = slot.database.as_deref().unwrap_or_default();
        let detail = format!("{name} is a slot of database {database}, not {}", server.database);
        let fix = format!(
            "a slot's name is one for all databases of a server: set source.slot to another name \
             (walpost init --slot NAME); or source.url to database {database}, if that is meant"
        );
        return vec![fail(detail, fix)];
    }
    if slot.wal_status.as_deref() == Some("lost") || slot.invalidation_reason.is_some() {
        let detail = lost(server, slot, name);
        let fix = format!(
            "rows since {} can no longer be read from the log; SELECT \
             pg_drop_replication_slot({}); then walpost init",
            slot.confirmed.as_deref().unwrap_or("its last position"),
            quote_literal(name)
        );
        return vec![fail(detail, fix)];
    }
    if slot.two_phase {
        let detail = format!("{name} has two_phase, which sends transactions before their commit");
        let alter = match server.version {
            ..180_000 => String::new(),
            180_000.. => format!(
                "on a replication connection (psql \"dbname={} replication=database\"): \
                 ALTER_REPLICATION_SLOT {} (TWO_PHASE false); or ",
                server.database,
                quote_identifier(name)
            ),
        };
        let fix = format!(
            "{alter}make a slot without it, while nobody writes: set source.slot to another name, \
             then walpost init"
        );
        return vec![fail(detail, fix)];
    }
    let mut findings = Vec::new();
    let lag = slot.lag_bytes.unwrap_or(0);
    findings.push(Finding::ok("slot", format!("{name} is {} behind", size(lag))));
    if slot.temporary {
        let detail = format!("{name} is temporary: it ends with the connection that made it");
        findings.push(fail(detail, "set source.slot to another name, then walpost init".into()));
    }
    if let Some(pid) = slot.active_pid {
        let detail = format!("{name} is held by the backend with pid {pid}");
        let fix = "a relay is running; a second one waits until it lets go";
        findings.push(Finding::warn("slot_holder", detail, fix));
    }
    findings.push(judge_room(server, slot));
    findings
}

/// Why a slot is lost, in words.
fn lost(server: &ServerState, slot: &SlotState, name: &str) -> String {
    let seconds = server.idle_slot_seconds_max;
    let cause = match slot.invalidation_reason.as_deref() {
        Some("wal_removed") => "the server removed log that it had not read yet".to_owned(),
        Some("idle_timeout") => format!(
            "nobody used it for longer than {IDLE_TIMEOUT} (now {seconds} s), so the server gave \
             it up (idle_timeout)"
        ),
        Some("rows_removed") => "rows of the catalog that it needs were removed".to_owned(),
        Some("wal_level_insufficient") => "wal_level was not logical for a while".to_owned(),
        Some(reason) => format!("the server gave it up ({reason})"),
        None => "the server removed log that it had not read yet".to_owned(),
    };
    format!("{name} is lost: {cause}")
}

/// How far the slot may fall behind: a full disk, or a lost slot, is where a stuck relay ends.
fn judge_room(server: &ServerState, slot: &SlotState) -> Finding {
    const NAME: &str = "slot_room";
    if server.slot_wal_keep_megabytes_max < 0 {
        let detail = "max_slot_wal_keep_size is unlimited: a stuck relay can fill the disk";
        let fix = "watch the lag; or ALTER SYSTEM SET max_slot_wal_keep_size = '…GB', where a \
                   slot that falls behind further is lost";
        return Finding::warn(NAME, detail, fix);
    }
    let limit = server.slot_wal_keep_megabytes_max.saturating_mul(1 << 20);
    let safe = slot.safe_wal_bytes.unwrap_or(limit);
    let detail = format!("{} of log until the slot is lost, of {}", size(safe.max(0)), size(limit));
    if slot.wal_status.as_deref() == Some("unreserved") || safe < limit / 4 {
        let fix = "let the relay catch up, or ALTER SYSTEM SET max_slot_wal_keep_size to more and \
                   SELECT pg_reload_conf();";
        return Finding::warn(NAME, detail, fix);
    }
    Finding::ok(NAME, detail)
}

/// `ALTER ROLE` for a role that lacks what a relay needs.
pub fn role_fix(role: &str) -> String {
    format!("ALTER ROLE {} LOGIN REPLICATION;", quote_identifier(role))
}
