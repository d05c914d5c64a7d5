//! Judges the place where the relay is: whether the binlog still goes on from there, whether it is
//! this server's, and who holds it.

use super::{account, span};
use crate::config::{Initial, MySqlSettings, PositionPlace, QualifiedName, quote_mysql_literal};
use crate::source::finding::{Finding, size};
use crate::source::mysql::gtid::Flavor;
use crate::source::mysql::inspect::{
    GtidState, LogState, PlaceState, PositionState, PositionTable, ServerState,
};

const NAME: &str = "position";

/// What was asked about the position.
#[derive(Debug)]
pub struct PositionFacts<'a> {
    /// The source.
    pub server: &'a ServerState,
    /// Its binlog, where we may know of it.
    pub log: Option<&'a LogState>,
    /// The table of positions and our row in it.
    pub table: &'a PositionTable,
    /// Whether we may write to that table, where that was asked.
    pub may_write: Option<bool>,
    /// How the source stands to the GTIDs of our row, where it has any.
    pub gtids: Option<&'a GtidState>,
    /// The server that keeps the position, which may be another one.
    pub keeper: &'a ServerState,
}

/// Judges the position that `settings` names; one in a file is judged by its own store.
pub fn judge_position(settings: &MySqlSettings, facts: &PositionFacts<'_>) -> Vec<Finding> {
    let (PositionPlace::Source { table } | PositionPlace::Server { table, .. }) =
        &settings.position
    else {
        let detail = "it is kept in a local file, which is right for a single relay only";
        return vec![Finding::ok(NAME, detail)];
    };
    let name = table.plain_mysql();
    let mut findings = Vec::new();
    let denied = |what: &str| {
        Finding::fail(
            NAME,
            format!("{} may not {what} {name}", facts.keeper.account),
            format!(
                "GRANT SELECT, INSERT, UPDATE ON {name} TO {};",
                account(&facts.keeper.account)
            ),
        )
    };
    match facts.table {
        PositionTable::Missing => {
            let detail = format!("there is no table {name}, which keeps the position");
            return vec![Finding::fail(NAME, detail, "walpost init creates it")];
        }
        PositionTable::Denied => return vec![denied("read")],
        PositionTable::Empty => findings.push(judge_first_start(settings, table)),
        PositionTable::Row(row) => findings.extend(judge_row(settings, facts, table, row)),
    }
    let is_elsewhere = matches!(settings.position, PositionPlace::Server { .. });
    if let Some(variable) = facts.keeper.read_only.filter(|_| is_elsewhere) {
        let detail = format!("{variable} is ON in the server that keeps {name}");
        let fix = "set source.position to a server that takes writes, such as its primary";
        findings.push(Finding::fail(NAME, detail, fix));
    }
    if facts.may_write == Some(false) {
        findings.push(denied("write to"));
    }
    findings
}

fn judge_first_start(settings: &MySqlSettings, table: &QualifiedName) -> Finding {
    let outbox = settings.table.plain_mysql();
    let detail = format!("{} has no position of \"{}\" yet", table.plain_mysql(), settings.name);
    match settings.initial {
        Initial::Publish => Finding::warn(
            NAME,
            format!("{detail}: the first run publishes what {outbox} has then, and goes on there"),
            "walpost run; or walpost init --skip-existing, which leaves out what it has now",
        ),
        Initial::Skip => Finding::warn(
            NAME,
            format!("{detail}: the first run leaves out what {outbox} has then (source.initial)"),
            "walpost init, which makes the position now",
        ),
    }
}

fn judge_row(
    settings: &MySqlSettings,
    facts: &PositionFacts<'_>,
    table: &QualifiedName,
    row: &PositionState,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &row.place {
        None => findings.push(judge_first_start(settings, table)),
        Some(place) => match judge_place(settings, facts.server, facts.log, facts.gtids, place) {
            Some(failed) => findings.push(failed),
            None => {
                let mut detail = format!("{}{}", told(place), behind(facts.log, place));
                if place.initial_pending {
                    let outbox = settings.table.plain_mysql();
                    detail +=
                        &format!("; the rows that {outbox} had before it are still going over");
                }
                findings.extend([Finding::ok(NAME, detail), judge_age(facts.server, row)]);
            }
        },
    }
    if let Some(holder) = &row.holder {
        let detail = format!(
            "\"{}\" is held by {} for another {:.1} s, if that does not renew it",
            settings.name,
            holder.name,
            holder.left.as_secs_f64()
        );
        let fix = "a relay is running; a second one waits until it lets go";
        findings.push(Finding::warn("position_holder", detail, fix));
    }
    findings
}

/// Why the binlog cannot be read on from `place`, wherever that is kept; `None` where it can.
pub(crate) fn judge_place(
    settings: &MySqlSettings,
    server: &ServerState,
    log: Option<&LogState>,
    gtids: Option<&GtidState>,
    place: &PlaceState,
) -> Option<Finding> {
    let remove = match &settings.position {
        PositionPlace::Source { table } | PositionPlace::Server { table, .. } => format!(
            "DELETE FROM {} WHERE name = {};",
            table.plain_mysql(),
            quote_mysql_literal(&settings.name)
        ),
        PositionPlace::File(path) => format!("remove {}", path.display()),
    };
    let begin_anew =
        format!("publish by hand what is missing; then {remove} and walpost init --skip-existing");
    let other = format!("set source.url to the right server; or {begin_anew}");
    let (ours, word) = match server.flavor {
        Flavor::MySql => ("mysql", "MySQL"),
        Flavor::MariaDb => ("mariadb", "MariaDB"),
    };
    if place.flavor != ours {
        let detail = format!("it was written for {}, and this is {word}", place.flavor);
        return Some(Finding::fail(NAME, detail, other));
    }
    if !place.gtid_set.is_empty() && !server.has_gtids() {
        let mode = server.gtid_mode.as_deref().unwrap_or("OFF");
        let detail = format!(
            "it is kept by GTIDs, and gtid_mode is {mode}: what the server logs so may have none"
        );
        let fix = format!("SET PERSIST gtid_mode = ON; or {begin_anew}");
        return Some(Finding::fail(NAME, detail, fix));
    }
    if let Some(gtids) = gtids.filter(|_| !place.gtid_set.is_empty()) {
        if !gtids.unknown.is_empty() {
            let detail = format!(
                "the server does not have {}, which the relay has read: it is another server, or \
                 it lost transactions",
                gtids.unknown
            );
            return Some(Finding::fail(NAME, detail, other));
        }
        let detail = format!(
            "the server has removed {} from its binlog, which the relay has not read",
            gtids.purged
        );
        return (!gtids.purged.is_empty()).then(|| Finding::fail(NAME, detail, begin_anew));
    }
    let uuid = server.server_uuid.as_deref().unwrap_or_default();
    if !place.server_uuid.is_empty() && !uuid.is_empty() && place.server_uuid != uuid {
        let detail = format!(
            "it is an offset in a file of server {}, and this is server {uuid}",
            place.server_uuid
        );
        return Some(Finding::fail(NAME, detail, other));
    }
    let is_gone = |log: &LogState| !log.files.iter().any(|(file, _)| *file == place.file);
    let detail = format!("the server has removed {}, which the relay has not read", place.file);
    log.is_some_and(is_gone).then(|| Finding::fail(NAME, detail, begin_anew))
}

/// A binlog that is removed by age is lost to a relay that stands still for as long.
fn judge_age(server: &ServerState, row: &PositionState) -> Finding {
    const NAME: &str = "position_age";
    let age = u64::try_from(row.age_seconds).unwrap_or(0);
    let detail = format!("written {} ago", span(age));
    if server.expire_seconds > 0 && age > server.expire_seconds / 2 {
        let detail = format!(
            "{detail}; binlog files are removed after {}, and rows with them",
            span(server.expire_seconds)
        );
        return Finding::warn(NAME, detail, "start the relay, or let the server keep its files");
    }
    Finding::ok(NAME, detail)
}

fn told(place: &PlaceState) -> String {
    let offset = format!("{}:{}", place.file, place.position);
    match (place.gtid_set.is_empty(), place.file.is_empty()) {
        (true, _) => offset,
        (false, true) => place.gtid_set.clone(),
        (false, false) => format!("{} ({offset})", place.gtid_set),
    }
}

/// Bytes of binlog after the place, where the files are this server's.
fn behind(log: Option<&LogState>, place: &PlaceState) -> String {
    let Some(log) = log else { return String::new() };
    let from_ours = log.files.iter().skip_while(|(file, _)| *file != place.file);
    let bytes = from_ours.fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
    if bytes == 0 {
        return String::new();
    }
    let left = i64::try_from(bytes.saturating_sub(place.position)).unwrap_or(i64::MAX);
    format!(", {} behind", size(left))
}
