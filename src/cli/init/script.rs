//! The SQL of `init`, from the files in `sql/postgres/` with names put in.
//!
//! Placeholders are psql's: `:"name"` becomes an identifier, `:'name'` a literal, each quoted
//! here. A line with a placeholder that has no value is left out: a column that is not mapped, a
//! role without a password.

use std::collections::HashMap;

use anyhow::bail;
use walpost::Role;
use walpost::config::{OutboxSettings, PostgresSettings, quote_identifier, quote_literal};

use super::InitFlags;

const SCHEMA: &str = include_str!("../../../sql/postgres/schema.sql");
const TABLE: &str = include_str!("../../../sql/postgres/table.sql");
const COLUMN: &str = include_str!("../../../sql/postgres/column.sql");
const PUBLICATION: &str = include_str!("../../../sql/postgres/publication.sql");
const ROLE: &str = include_str!("../../../sql/postgres/role.sql");
const SLOT: &str = include_str!("../../../sql/postgres/slot.sql");

/// Statements that create what is missing; each may run again.
pub(super) struct Script {
    table: String,
    publication: String,
    role: Option<String>,
    slot: String,
}

impl Script {
    pub(super) fn new(
        settings: &PostgresSettings,
        outbox: &OutboxSettings,
        flags: &InitFlags,
        password: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut names = HashMap::from([
            ("schema", settings.table.schema.clone()),
            ("table", settings.table.name.clone()),
            ("publication", settings.publication.clone()),
            ("slot", settings.slot.clone()),
            ("skip_existing", flags.skip_existing.to_string()),
        ]);
        let mut extras = Vec::new();
        for column in outbox.columns.iter() {
            let placeholder = match column.role {
                Role::Id => "id",
                Role::AggregateType => "aggregate_type",
                Role::AggregateId => "aggregate_id",
                Role::EventType => "type",
                Role::Payload => "payload",
                Role::Headers => "headers",
                Role::Topic => "topic",
                Role::CreatedAt => "created_at",
                Role::Extra(index) => {
                    extras.push((column.name.clone(), Some(index) == outbox.partition));
                    continue;
                }
            };
            names.insert(placeholder, column.name.clone());
        }
        let taken: Vec<String> = outbox
            .columns
            .iter()
            .filter(|column| !matches!(column.role, Role::Extra(_)))
            .map(|column| column.name.clone())
            .collect();
        names.extend(flags.role.clone().map(|role| ("role", role)));
        names.extend(password.map(|password| {
            ("verifier", postgres_protocol::password::scram_sha_256(password.as_bytes()))
        }));
        // All of them stand inside `DO $walpost$` somewhere.
        let all = names.values().chain(extras.iter().map(|(name, _)| name));
        if let Some(name) = all.into_iter().find(|name| name.contains("$walpost$")) {
            bail!("the name {name:?} cannot be used: it would end walpost's own quotes");
        }

        let mut table = String::new();
        if settings.table.schema != "public" {
            table.push_str(&fill(SCHEMA, &names));
        }
        table.push_str(&fill(TABLE, &names));
        for (name, is_partition) in extras {
            if taken.contains(&name) {
                continue;
            }
            names.insert("column", name);
            let sql = fill(COLUMN, &names);
            table.push_str(&if is_partition { sql.replace(" text;", " integer;") } else { sql });
        }
        let failover = if flags.failover { ", failover => true" } else { "" };
        let slot = SLOT.replace("'pgoutput')", &format!("'pgoutput'{failover})"));
        Ok(Self {
            table,
            publication: fill(PUBLICATION, &names),
            role: flags.role.is_some().then(|| fill(ROLE, &names)),
            slot: fill(&slot, &names),
        })
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn publication(&self) -> &str {
        &self.publication
    }

    pub(super) fn role(&self) -> Option<&str> {
        self.role.as_deref()
    }

    pub(super) fn slot(&self) -> &str {
        &self.slot
    }

    /// Everything, in its order, for `psql`.
    pub(super) fn whole(&self) -> String {
        let head = "-- What walpost needs in PostgreSQL; the server needs wal_level = logical.\n\
                    -- Can run again: what is there stays as it is.\n";
        let parts = [head, &self.table, &self.publication, self.role.as_deref().unwrap_or("")];
        let parts = parts.into_iter().chain([self.slot.as_str()]);
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// Puts names into placeholders, in one pass: what was put in is not looked at again.
fn fill(template: &str, names: &HashMap<&str, String>) -> String {
    let mut text = String::with_capacity(template.len() * 2);
    for line in template.lines() {
        if let Some(line) = fill_line(line, names) {
            if line.starts_with(')') && text.ends_with(",\n") {
                // The list's last line was left out.
                text.truncate(text.len() - 2);
                text.push('\n');
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn fill_line(line: &str, names: &HashMap<&str, String>) -> Option<String> {
    let mut filled = String::new();
    let mut rest = line;
    while let Some(start) = rest.find([':']) {
        let (before, after) = rest.split_at(start);
        filled.push_str(before);
        let quote = after.chars().nth(1).filter(|quote| matches!(quote, '"' | '\''));
        let placeholder = quote.and_then(|quote| after.get(2..)?.split_once(quote));
        let Some((name, left)) = placeholder else {
            // A cast, or a colon in a comment.
            filled.push(':');
            rest = after.get(1..).unwrap_or_default();
            continue;
        };
        let value = names.get(name)?;
        filled.push_str(&match quote {
            Some('"') => quote_identifier(value),
            _ => quote_literal(value),
        });
        rest = left;
    }
    filled.push_str(rest);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(line: &str) -> Option<String> {
        let names = HashMap::from([("a", "it's :\"a\"".to_owned())]);
        fill_line(line, &names)
    }

    #[test]
    fn a_name_is_quoted_and_not_looked_at_again() {
        assert_eq!(filled(":\"a\" x").unwrap(), "\"it's :\"\"a\"\"\" x");
        assert_eq!(filled("f(:'a'::text)").unwrap(), "f('it''s :\"a\"'::text)");
        assert_eq!(filled("-- so: this").unwrap(), "-- so: this");
    }

    #[test]
    fn a_line_whose_name_is_missing_is_left_out() {
        assert_eq!(filled("    :\"b\" text,"), None);
        let names = HashMap::from([("a", "a".to_owned())]);
        assert_eq!(fill("(\n:\"a\" int,\n:\"b\" text\n);", &names), "(\n\"a\" int\n);\n");
    }
}
