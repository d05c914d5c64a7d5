//! The SQL of `init`, from the files in `sql/postgres/` with names put in.

use anyhow::bail;
use walpost::Role;
use walpost::config::{MEMORY_TABLE, OutboxSettings, PostgresSettings};

use crate::cli::init::InitFlags;
use crate::cli::init::template::{Dialect, Names};

const SCHEMA: &str = include_str!("../../../../sql/postgres/schema.sql");
const TABLE: &str = include_str!("../../../../sql/postgres/table.sql");
const COLUMN: &str = include_str!("../../../../sql/postgres/column.sql");
const MEMORY: &str = include_str!("../../../../sql/postgres/memory.sql");
const PUBLICATION: &str = include_str!("../../../../sql/postgres/publication.sql");
const ROLE: &str = include_str!("../../../../sql/postgres/role.sql");
const SLOT: &str = include_str!("../../../../sql/postgres/slot.sql");

/// Statements that create what is missing; each may run again.
pub(super) struct Script {
    table: String,
    memory: Option<String>,
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
        let mut names = Names::from([
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
        if !flags.no_memory {
            // Without a name the role's rights on it are left out too.
            names.insert("memory", MEMORY_TABLE.to_owned());
        }
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
            table.push_str(&Dialect::Postgres.fill(SCHEMA, &names));
        }
        // Inside of CREATE TABLE, so that a table that is there is never altered.
        let mut lines = Vec::new();
        for (name, is_partition) in extras {
            if !taken.contains(&name) {
                names.insert("column", name);
                let line = Dialect::Postgres.fill(COLUMN, &names);
                let line = if is_partition { line.replace(" text", " integer") } else { line };
                lines.push(line.trim_end().to_owned());
            }
        }
        let sql = Dialect::Postgres.fill(TABLE, &names);
        match sql.strip_suffix("\n);\n").filter(|_| !lines.is_empty()) {
            Some(head) => table.push_str(&format!("{head},\n{}\n);\n", lines.join(",\n"))),
            None => table.push_str(&sql),
        }
        let failover = if flags.failover { ", failover => true" } else { "" };
        let slot = SLOT.replace("'pgoutput')", &format!("'pgoutput'{failover})"));
        Ok(Self {
            table,
            memory: (!flags.no_memory).then(|| Dialect::Postgres.fill(MEMORY, &names)),
            publication: Dialect::Postgres.fill(PUBLICATION, &names),
            role: flags.role.is_some().then(|| Dialect::Postgres.fill(ROLE, &names)),
            slot: Dialect::Postgres.fill(&slot, &names),
        })
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn memory(&self) -> Option<&str> {
        self.memory.as_deref()
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
        let memory = self.memory.as_deref().unwrap_or_default();
        let role = self.role.as_deref().unwrap_or_default();
        let parts = [head, &self.table, memory, &self.publication, role, &self.slot];
        let parts = parts.into_iter();
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }
}
