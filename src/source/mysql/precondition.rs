//! What must hold before a binlog can be read, and the exact remedy where it does not.
//!
//! Pure: judges the answers of `inspect.rs` and asks nothing itself. `check` prints the findings;
//! the source refuses to start on the first failed one. Here the server, its binlog and our
//! rights; in `table` the outbox, in `position` the place where we are and who holds it.

mod position;
mod table;

pub(crate) use position::judge_place;
pub use position::{PositionFacts, judge_position};
pub(crate) use table::judge_kind;
pub use table::judge_table;

use super::gtid::Flavor;
use super::inspect::{Grants, LogState, ServerState};
use crate::config::{MySqlSettings, PositionPlace, plain_mysql_identifier, quote_mysql_literal};
use crate::source::finding::{Finding, size};

/// Oldest versions that can send column names (`binlog_row_metadata`).
const MYSQL_MIN: (u32, u32) = (8, 0);
const MARIADB_MIN: (u32, u32) = (10, 6);

/// A relay may be down over a weekend.
const EXPIRE_SECONDS_MIN: u64 = 3 * 86_400;

/// What follows where a setting is already right for new sessions only.
const RECONNECT: &str = "then let the application connect anew, since its sessions keep what they \
                         had";

/// Judges the server and what it writes into its binlog.
pub fn judge_server(server: &ServerState) -> Vec<Finding> {
    let mut findings = vec![judge_version(server)];
    if !server.logs {
        let fix = "start the server with --log-bin (log_bin in [mysqld] of its configuration)";
        findings.push(Finding::fail("log_bin", "it is OFF: there is no binlog to read", fix));
        return findings;
    }
    findings.push(Finding::ok("log_bin", "ON"));
    findings.push(judge_format(server));
    findings.push(judge_row_image(server));
    findings.push(judge_metadata(server));
    findings.push(judge_checksum(server));
    findings.push(judge_gtid(server));
    findings.extend(judge_galera(server));
    findings.push(judge_sync(server));
    findings.push(judge_retention(server));
    findings.push(judge_packet(server));
    findings
}

fn judge_version(server: &ServerState) -> Finding {
    let (name, least, fix) = match server.flavor {
        Flavor::MySql => ("MySQL", MYSQL_MIN, "use MySQL 8.0 or later"),
        Flavor::MariaDb => ("MariaDB", MARIADB_MIN, "use MariaDB 10.6 or later"),
    };
    let version = &server.version_text;
    if server.version < least {
        return Finding::fail("server", format!("{name} {version} is too old"), fix);
    }
    Finding::ok("server", format!("{name} {version}"))
}

/// The statement that sets a global variable for good, or says what else that takes.
fn set_global(server: &ServerState, name: &str, value: &str) -> String {
    match server.flavor {
        Flavor::MySql => format!("SET PERSIST {name} = {value};"),
        Flavor::MariaDb => format!(
            "SET GLOBAL {name} = {value}; and {name} = {value} in [mysqld] of its configuration, \
             for the next start"
        ),
    }
}

/// Statements in place of rows hold nothing that could be published.
fn judge_format(server: &ServerState) -> Finding {
    const NAME: &str = "binlog_format";
    if server.format.eq_ignore_ascii_case("ROW") {
        return Finding::ok(NAME, "ROW");
    }
    let detail = format!(
        "it is {}, and must be ROW: inserts are logged as statements, without their rows",
        server.format
    );
    Finding::fail(NAME, detail, format!("{}; {RECONNECT}", set_global(server, NAME, "ROW")))
}

/// Anything but a full image leaves out columns that an insert did not name, defaults too.
fn judge_row_image(server: &ServerState) -> Finding {
    const NAME: &str = "binlog_row_image";
    if ["FULL", "FULL_NODUP"].iter().any(|full| server.row_image.eq_ignore_ascii_case(full)) {
        return Finding::ok(NAME, server.row_image.clone());
    }
    let detail = format!(
        "it is {}, and must be FULL: columns that an insert does not name are not logged",
        server.row_image
    );
    Finding::fail(NAME, detail, format!("{}; {RECONNECT}", set_global(server, NAME, "FULL")))
}

/// The names of columns as they were when a row was written stand in the binlog only with FULL;
/// the catalog has those of today.
fn judge_metadata(server: &ServerState) -> Finding {
    const NAME: &str = "binlog_row_metadata";
    match server.row_metadata.as_deref() {
        Some(value) if value.eq_ignore_ascii_case("FULL") => Finding::ok(NAME, "FULL"),
        Some(value) => Finding::fail(
            NAME,
            format!("it is {value}, and must be FULL: the binlog has no names of columns"),
            set_global(server, NAME, "FULL"),
        ),
        None => Finding::fail(
            NAME,
            "the server does not have it: its binlog has no names of columns",
            "use MySQL 8.0 or later, or MariaDB 10.6 or later",
        ),
    }
}

fn judge_checksum(server: &ServerState) -> Finding {
    const NAME: &str = "binlog_checksum";
    if server.checksum.eq_ignore_ascii_case("CRC32") {
        return Finding::ok(NAME, "CRC32");
    }
    let detail = format!("it is {}: a damaged event is not noticed", server.checksum);
    Finding::warn(NAME, detail, set_global(server, NAME, "CRC32"))
}

fn judge_gtid(server: &ServerState) -> Finding {
    match server.flavor {
        Flavor::MySql => {
            const NAME: &str = "gtid_mode";
            if server.has_gtids() {
                return Finding::ok(NAME, "ON");
            }
            let mode = server.gtid_mode.as_deref().unwrap_or("OFF");
            let detail = format!(
                "it is {mode}: the position is a file and an offset, which mean nothing on another \
                 server, after a failover"
            );
            // Each step alone, as the server demands, and no step waits for a restart.
            let fix = "SET PERSIST enforce_gtid_consistency = ON; SET PERSIST gtid_mode = \
                       OFF_PERMISSIVE; SET PERSIST gtid_mode = ON_PERMISSIVE; SET PERSIST \
                       gtid_mode = ON; (leave out the steps that are already done)";
            Finding::warn(NAME, detail, fix)
        }
        Flavor::MariaDb => {
            const NAME: &str = "gtid_strict_mode";
            if server.gtid_strict == Some(true) {
                return Finding::ok(NAME, "ON");
            }
            let detail = "it is OFF: numbers within a domain may come out of order, and a replica \
                          may differ from its primary unnoticed";
            Finding::warn(NAME, detail, set_global(server, NAME, "ON"))
        }
    }
}

/// On a cluster of Galera each node writes a binlog of its own, and the relay may go on at any of
/// them.
fn judge_galera(server: &ServerState) -> Option<Finding> {
    const NAME: &str = "wsrep_gtid_mode";
    let galera = server.galera?;
    if !server.logs_replicated {
        let detail = "the server is a node of a Galera cluster, and what is written on other nodes \
                      is not in its binlog: log_slave_updates is OFF";
        let fix = "log_slave_updates = ON in [mysqld] of the configuration of every node, and a \
                   restart of each";
        return Some(Finding::fail("log_slave_updates", detail, fix));
    }
    match galera.gtid_mode {
        // Galera for MySQL names transactions alike on all nodes.
        None => None,
        Some(true) => Some(Finding::ok(NAME, "ON")),
        Some(false) => {
            let detail = "it is OFF on a node of a Galera cluster: each node counts transactions \
                          for itself, so that a relay that goes on at another node leaves rows out \
                          in silence";
            let fix = "wsrep_gtid_mode = ON and one and the same wsrep_gtid_domain_id in [mysqld] \
                       of the configuration of every node, with a gtid_domain_id of its own for \
                       each, and a restart of all of them";
            Some(Finding::fail(NAME, detail, fix))
        }
    }
}

/// What the binlog loses when the machine fails was perhaps published already.
fn judge_sync(server: &ServerState) -> Finding {
    const NAME: &str = "sync_binlog";
    if server.sync_binlog == 1 {
        return Finding::ok(NAME, "1");
    }
    let detail = format!(
        "it is {}, not 1: when the machine fails, transactions that were already published can be \
         gone from the binlog, and the relay then stops, since it is ahead of the server",
        server.sync_binlog
    );
    Finding::warn(NAME, detail, set_global(server, NAME, "1"))
}

fn judge_retention(server: &ServerState) -> Finding {
    const NAME: &str = "binlog_expire_logs_seconds";
    if server.expire_seconds == 0 {
        return Finding::ok(NAME, "0: binlog files stay until somebody removes them");
    }
    let seconds = server.expire_seconds;
    let kept = format!("{seconds}: binlog files stay for {}", span(seconds));
    if server.expire_seconds < EXPIRE_SECONDS_MIN {
        let detail = format!("{kept}: a relay that is down for longer loses rows");
        return Finding::warn(NAME, detail, set_global(server, NAME, "604800"));
    }
    Finding::ok(NAME, kept)
}

fn judge_packet(server: &ServerState) -> Finding {
    let bytes = i64::try_from(server.packet_bytes_max).unwrap_or(i64::MAX);
    let detail = format!("{}: no row is larger than one packet", size(bytes));
    Finding::ok("max_allowed_packet", detail)
}

/// Judges the number that the relay has among the server's replicas.
pub fn judge_server_id(
    settings: &MySqlSettings,
    server: &ServerState,
    replicas: Option<&[u32]>,
    is_held: bool,
) -> Finding {
    const NAME: &str = "server_id";
    let ours = settings.server_id();
    if server.server_id == 0 {
        let detail = "the server's own is 0: it then sends its binlog to nobody";
        return Finding::fail(NAME, detail, set_global(server, NAME, "1"));
    }
    if ours == server.server_id {
        let detail = format!("{ours} is the server's own");
        return Finding::fail(NAME, detail, "leave source.server_id out, or set it to another one");
    }
    // The relay that holds the position has the same number, and ought to.
    if !is_held && replicas.is_some_and(|ids| ids.contains(&ours)) {
        let detail = format!(
            "{ours} is in use by another replica or relay; the server ends the connection of one \
             of the two, again and again"
        );
        let fix = "set source.server_id to a number that no other replica of this server has";
        return Finding::warn(NAME, detail, fix);
    }
    Finding::ok(NAME, ours.to_string())
}

/// Judges what our account may do beyond single tables. `first_start` is whether the relay has no
/// position yet.
pub fn judge_grants(
    settings: &MySqlSettings,
    server: &ServerState,
    grants: Grants,
    first_start: bool,
) -> Vec<Finding> {
    const NAME: &str = "grants";
    let account = account(&server.account);
    let mut findings = Vec::new();
    if !grants.replicates {
        findings.push(Finding::fail(
            NAME,
            format!("{} may not read the binlog", server.account),
            format!("GRANT REPLICATION SLAVE ON *.* TO {account};"),
        ));
    }
    if !grants.asks {
        let detail = format!("{} may not ask where the binlog is", server.account);
        let fix = format!("GRANT REPLICATION CLIENT ON *.* TO {account};");
        // The binlog itself says it to a relay that has a position.
        findings.push(match first_start {
            true => Finding::fail(NAME, detail, fix),
            false => Finding::warn(NAME, detail, fix),
        });
    }
    if first_start && server.flavor == Flavor::MySql && !grants.locks {
        let database = plain_mysql_identifier(&settings.table.schema);
        findings.push(Finding::fail(
            NAME,
            format!(
                "{} may not lock tables in {database}, as a first start on MySQL does for a moment",
                server.account
            ),
            format!("GRANT LOCK TABLES ON {database}.* TO {account};"),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(NAME, format!("{} may read the binlog", server.account)));
    }
    findings
}

/// Judges whether the rows of the outbox get into this binlog at all.
pub fn judge_log(settings: &MySqlSettings, log: Option<&LogState>) -> Option<Finding> {
    const NAME: &str = "binlog_filter";
    let log = log?;
    let database = &settings.table.schema;
    let is = |name: &String| name == database;
    if log.ignored.iter().any(is) {
        let detail = format!("the server logs nothing of database {database}: binlog_ignore_db");
        let fix = format!("take {database} out of binlog_ignore_db and restart the server");
        return Some(Finding::fail(NAME, detail, fix));
    }
    if !log.only.is_empty() && !log.only.iter().any(is) {
        let detail = format!(
            "the server logs only the databases {}, not {database}: binlog_do_db",
            log.only.join(", ")
        );
        let fix = format!("add {database} to binlog_do_db and restart the server");
        return Some(Finding::fail(NAME, detail, fix));
    }
    None
}

/// Judges a server that takes no writes: what is replicated must be in its binlog, and the
/// position somewhere else.
pub fn judge_read_only(settings: &MySqlSettings, server: &ServerState) -> Vec<Finding> {
    const NAME: &str = "read_only";
    let mut findings = Vec::new();
    let Some(variable) = server.read_only else { return findings };
    if !server.logs_replicated {
        let detail = "the server takes no writes, and what it replicates is not in its own binlog: \
                      log_slave_updates is OFF";
        let fix = "log_slave_updates = ON in [mysqld] of its configuration and a restart; or set \
                   source.url to its primary";
        findings.push(Finding::fail(NAME, detail, fix));
    }
    match &settings.position {
        PositionPlace::Source { .. } => findings.push(Finding::fail(
            NAME,
            format!("{variable} is ON: the position cannot be kept in this server"),
            "set source.url to its primary; or source.position to mysql://USER@HOST/DATABASE of a \
             server that takes writes, or, for a single relay, to file:/var/lib/walpost/position",
        )),
        PositionPlace::Server { .. } | PositionPlace::File(_) => {
            let detail = format!("{variable} is ON; the position is kept elsewhere");
            findings.push(Finding::ok(NAME, detail));
        }
    }
    findings
}

/// `'walpost'@'%'` of `walpost@%`, for SQL.
fn account(text: &str) -> String {
    let (user, host) = text.rsplit_once('@').unwrap_or((text, "%"));
    format!("{}@{}", quote_mysql_literal(user), quote_mysql_literal(host))
}

/// A length of time, for people.
fn span(seconds: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("days", 86_400), ("hours", 3_600), ("minutes", 60)];
    for (unit, length) in UNITS {
        if seconds >= 2 * length {
            return format!("{} {unit}", seconds / length);
        }
    }
    format!("{seconds} seconds")
}

#[cfg(test)]
mod tests;
