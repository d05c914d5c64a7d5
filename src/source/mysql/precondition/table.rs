//! Judges the outbox table: whether its rows reach the binlog, and can be read there.

use super::account;
use crate::config::{MySqlSettings, OutboxSettings, plain_mysql_identifier};
use crate::outbox::Role;
use crate::source::finding::{Finding, Standing, column_key};
use crate::source::mysql::charset::Charset;
use crate::source::mysql::inspect::{ColumnState, ServerState, TableState};

const TEXTS: [&str; 6] = ["char", "varchar", "tinytext", "text", "mediumtext", "longtext"];

/// Judges the table, our right to read it, and its mapped columns.
pub fn judge_table(
    settings: &MySqlSettings,
    outbox: &OutboxSettings,
    server: &ServerState,
    table: Option<&TableState>,
    may_read: Option<bool>,
) -> Vec<Finding> {
    let name = settings.table.plain_mysql();
    let fail = |detail: String, fix: String| vec![Finding::fail("table", detail, fix)];
    let Some(table) = table else {
        let account = account(&server.account);
        return fail(
            format!("there is no table {name} that {} may see", server.account),
            format!(
                "walpost init creates it; or set source.table to the one that you have; or GRANT \
                 SELECT ON {name} TO {account};"
            ),
        );
    };
    if table.name != settings.table {
        let found = table.name.plain_mysql();
        let detail = format!("{name} is spelt {found} in the catalog, and so in the binlog");
        return fail(detail, format!("set source.table to {found}"));
    }
    if let Some(finding) = judge_kind(settings, table) {
        return vec![finding];
    }
    let mut findings = vec![Finding::ok("table", name.clone())];
    if may_read == Some(false) {
        findings.push(Finding::fail(
            "table",
            format!("{} may not read {name}", server.account),
            format!("GRANT SELECT ON {name} TO {};", account(&server.account)),
        ));
    }
    findings.extend(judge_columns(settings, outbox, table));
    findings
}

/// Judges what kind of table it is: whether each of its rows comes once, and when it is committed.
pub(crate) fn judge_kind(settings: &MySqlSettings, table: &TableState) -> Option<Finding> {
    let name = settings.table.plain_mysql();
    if table.kind == "VIEW" {
        let detail = format!("{name} is a view, which has no binlog");
        return Some(Finding::fail("table", detail, "set source.table to the table behind it"));
    }
    if table.kind == "SYSTEM VERSIONED" {
        let detail = format!(
            "{name} is WITH SYSTEM VERSIONING: an UPDATE or DELETE inserts the old row once more, \
             and it would be published again"
        );
        let fix = format!(
            "ALTER TABLE {name} DROP SYSTEM VERSIONING; or set source.table to one without it"
        );
        return Some(Finding::fail("table", detail, fix));
    }
    let engine = table.engine.as_deref().unwrap_or("no engine");
    if !engine.eq_ignore_ascii_case("InnoDB") {
        let detail = format!("{name} is kept by {engine}: a rollback does not take its rows back");
        return Some(Finding::fail(
            "table",
            detail,
            format!("ALTER TABLE {name} ENGINE = InnoDB;"),
        ));
    }
    None
}

fn judge_columns(
    settings: &MySqlSettings,
    outbox: &OutboxSettings,
    table: &TableState,
) -> Vec<Finding> {
    const NAME: &str = "columns";
    let name = settings.table.plain_mysql();
    let mut findings = Vec::new();
    let mut good = Vec::new();
    for mapped in outbox.columns.iter() {
        let key = column_key(mapped.role);
        let plain = plain_mysql_identifier(&mapped.name);
        let Some(column) = table.columns.iter().find(|column| column.name == mapped.name) else {
            let same = |column: &&ColumnState| column.name.eq_ignore_ascii_case(&mapped.name);
            let spelt = table.columns.iter().find(same);
            if let Some(spelt) = spelt {
                // The server would take either; a column that is optional must not vanish so.
                let detail = format!("{name} spells column {plain} as {}", spelt.name);
                findings.push(Finding::fail(NAME, detail, format!("set {key} to {}", spelt.name)));
            } else if mapped.required {
                let detail = format!("{name} has no column {plain}");
                let fix = format!("set {key} to one of its columns: {}", names(&table.columns));
                findings.push(Finding::fail(NAME, detail, fix));
            }
            continue;
        };
        match judge_type(mapped.role, outbox.partition, column) {
            Some((wanted, type_text)) => {
                let detail = format!("{plain} is {}, and must be {wanted}", column.type_text);
                let fix = format!("set {key} to another column, such as one of type {type_text}");
                findings.push(Finding::fail(NAME, detail, fix));
            }
            None => {
                findings.extend(judge_charset(key, column));
                good.push(format!("{plain} {}", column.type_text));
            }
        }
    }
    if findings.iter().all(|finding| finding.standing != Standing::Fail) {
        findings.insert(0, Finding::ok(NAME, good.join(", ")));
    }
    findings
}

/// What a column must be, and a type that is that; `None` where it will do.
fn judge_type(
    role: Role,
    partition: Option<usize>,
    column: &ColumnState,
) -> Option<(&'static str, &'static str)> {
    let found = column.data_type.as_str();
    let is_text = TEXTS.contains(&found) || found == "json";
    let is_bytes = found.ends_with("blob") || found.ends_with("binary");
    if column.type_text.to_ascii_uppercase().contains("COMPRESSED") {
        return Some(("a column that is not COMPRESSED", "json"));
    }
    match role {
        Role::CreatedAt => (!matches!(found, "timestamp" | "datetime"))
            .then_some(("timestamp or datetime", "timestamp(6)")),
        Role::Headers => (!is_text).then_some(("json, or a text type", "json")),
        Role::Payload => (!is_text && !is_bytes)
            .then_some(("json, a text type, or a binary or blob type", "json")),
        Role::Extra(index) if Some(index) == partition => {
            (!matches!(found, "tinyint" | "smallint" | "mediumint" | "int" | "bigint"))
                .then_some(("an integer type", "int"))
        }
        // The binlog has these in the form in which the server keeps them, which is not what a
        // query shows.
        Role::Id
        | Role::AggregateType
        | Role::AggregateId
        | Role::EventType
        | Role::Topic
        | Role::Extra(_) => matches!(
            found,
            "vector"
                | "xmltype"
                | "geometry"
                | "point"
                | "linestring"
                | "polygon"
                | "multipoint"
                | "multilinestring"
                | "multipolygon"
                | "geometrycollection"
                | "geomcollection"
        )
        .then_some(("a number, a time, or a text or binary type", "varchar(255)")),
    }
}

/// The binlog has texts in the bytes of their column, and messages are UTF-8.
fn judge_charset(key: &str, column: &ColumnState) -> Option<Finding> {
    let charset = column.charset.as_deref()?.to_ascii_lowercase();
    if Charset::is_read(&charset) {
        return None;
    }
    let plain = plain_mysql_identifier(&column.name);
    let detail = format!("{plain} is kept in {charset}, which walpost does not convert to UTF-8");
    let fix = format!(
        "set {key} to a column in utf8mb4 or another character set that is converted, or let the \
         owner of the table change this one to utf8mb4"
    );
    Some(Finding::fail("columns", detail, fix))
}

fn names(columns: &[ColumnState]) -> String {
    columns.iter().map(|column| plain_mysql_identifier(&column.name)).collect::<Vec<_>>().join(", ")
}
