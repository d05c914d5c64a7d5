//! What a PostgreSQL database needs.
//!
//! Order: table, memory, publication, role, slot. The publication goes before the slot, which cannot see
//! one that was made after it; the slot goes last, since it has to wait for open transactions.

use anyhow::{Context, bail};
use tokio_postgres::error::SqlState;
use walpost::config::{OutboxSettings, PostgresSettings, plain_identifier};
use walpost::source::Standing;
use walpost::source::postgres::SqlClient;
use walpost::source::postgres::inspect::{self, ServerState, SlotState};
use walpost::source::postgres::precondition;

use super::{InitFlags, ROWS_COUNTED_MAX, count, print, refuse, refuse_mapped_table, say};

mod script;

use script::Script;

/// Prints the SQL and connects nowhere.
pub(super) fn print_script(
    settings: &PostgresSettings,
    outbox: &OutboxSettings,
    flags: &InitFlags,
    password: Option<&str>,
) -> anyhow::Result<()> {
    print(&Script::new(settings, outbox, flags, password)?.whole())
}

/// Creates what the database needs.
pub(super) async fn create(
    settings: PostgresSettings,
    outbox: OutboxSettings,
    flags: &InitFlags,
    password: Option<&str>,
) -> anyhow::Result<()> {
    let script = Script::new(&settings, &outbox, flags, password)?;
    let client = inspect::sql_client(&settings.url).await?;
    Init { client, settings, outbox, script, flags }.create().await
}

struct Init<'a> {
    client: SqlClient,
    settings: PostgresSettings,
    outbox: OutboxSettings,
    script: Script,
    flags: &'a InitFlags,
}

impl Init<'_> {
    async fn create(&self) -> anyhow::Result<()> {
        let server = inspect::server(&self.client).await?;
        self.refuse_server(&server)?;
        let slot = inspect::slot(&self.client, &self.settings.slot).await?;
        // Before anything is made: a slot's name is one for all databases of a server, and that of
        // another database is not ours to speak of.
        let is_other = |slot: &SlotState| slot.database.as_deref() != Some(&server.database);
        if slot.as_ref().is_some_and(is_other) {
            let findings = precondition::judge_slot(&self.settings, &server, slot.as_ref());
            return refuse(findings, Standing::Fail);
        }
        self.table().await?;
        self.memory().await?;
        self.publication(&server, slot.is_some()).await?;
        self.role().await?;
        match slot {
            Some(slot) => {
                refuse(
                    precondition::judge_slot(&self.settings, &server, Some(&slot)),
                    Standing::Fail,
                )?;
                say(&format!("exists   slot {}", self.settings.slot))?;
            }
            None => self.create_slot().await?,
        }
        Ok(())
    }

    fn refuse_server(&self, server: &ServerState) -> anyhow::Result<()> {
        if server.version < 130_000 {
            bail!("PostgreSQL {} is too old; use 13 or later", server.version_text);
        }
        if server.in_recovery {
            bail!("this server is a standby; run init on its primary");
        }
        if self.flags.failover && server.version < 170_000 {
            bail!("--failover needs PostgreSQL 17 or later; this is {}", server.version_text);
        }
        refuse(vec![precondition::judge_wal_level(server)], Standing::Fail)
    }

    async fn table(&self) -> anyhow::Result<()> {
        let name = &self.settings.table;
        let found = inspect::table(&self.client, name).await?;
        if found.is_none() {
            refuse_mapped_table(&self.outbox, &name.to_string())?;
            let what = format!("could not create table {name}");
            self.client.batch_execute(self.script.table()).await.context(what)?;
            say(&format!("created  table {name}"))?;
            return Ok(());
        }
        let findings = precondition::judge_table(&self.settings, &self.outbox, found.as_ref());
        refuse(findings, Standing::Fail)?;
        say(&format!("exists   table {name}"))?;
        Ok(())
    }

    async fn memory(&self) -> anyhow::Result<()> {
        let Some(sql) = self.script.memory() else { return Ok(()) };
        let name = self.settings.memory_table();
        if inspect::table(&self.client, &name).await?.is_some() {
            return say(&format!("exists   table {name}"));
        }
        let what = format!("could not create table {name}; --no-memory leaves it out");
        self.client.batch_execute(sql).await.context(what)?;
        say(&format!("created  table {name}"))
    }

    async fn publication(&self, server: &ServerState, has_slot: bool) -> anyhow::Result<()> {
        let plain = plain_identifier(&self.settings.publication);
        let table = inspect::table(&self.client, &self.settings.table).await?;
        let table = table.context("the table went away meanwhile; run init again")?;
        let publication = inspect::publication(
            &self.client,
            server.version,
            &self.settings.publication,
            table.oid,
        )
        .await?;
        if publication.is_none() {
            if has_slot {
                let slot = &self.settings.slot;
                bail!(
                    "slot {slot} of database {database} is there, but publication {plain} is not, \
                     and a slot cannot see a publication that is made after it\n  fix: run init \
                     with another --slot; or, if nobody reads this one in database {database}: \
                     SELECT pg_drop_replication_slot('{slot}'); then run init again. Rows that were \
                     written since the slot was made will not be published.",
                    database = server.database,
                );
            }
            let what = format!("could not create publication {plain}");
            self.client.batch_execute(self.script.publication()).await.context(what)?;
            say(&format!("created  publication {plain}"))?;
            return Ok(());
        }
        // `check` only warns of a publication that sends too much or filters rows; who runs init
        // wants the one that init would make.
        let findings = precondition::judge_publication(
            &self.settings,
            &self.outbox,
            &table,
            publication.as_ref(),
        );
        refuse(findings, Standing::Warn)?;
        say(&format!("exists   publication {plain}"))?;
        Ok(())
    }

    async fn role(&self) -> anyhow::Result<()> {
        let (Some(name), Some(sql)) = (&self.flags.role, self.script.role()) else {
            return Ok(());
        };
        let plain = plain_identifier(name);
        let before = inspect::role(&self.client, name).await?;
        if before.is_some_and(|role| !role.may_login || !role.may_replicate) {
            bail!(
                "role {plain} exists, but may not log in and replicate\n  fix: {}",
                precondition::role_fix(name)
            );
        }
        let what = format!("could not create role {plain}");
        self.client.batch_execute(sql).await.context(what)?;
        match before {
            None => say(&format!("created  role {plain}"))?,
            Some(_) => say(&format!("exists   role {plain}, which may now read the table"))?,
        }
        Ok(())
    }

    async fn create_slot(&self) -> anyhow::Result<()> {
        let (slot, table) = (&self.settings.slot, &self.settings.table);
        let rows = inspect::row_count(&self.client, table, ROWS_COUNTED_MAX).await?;
        if rows > 0 && !self.flags.skip_existing {
            bail!(
                "{table} has {} that slot {slot} could never read, since they are older than it: \
                 they would not be published\n  fix: publish or delete them first, or run init \
                 with --skip-existing to leave them out",
                count(rows)
            );
        }
        let mut created = self.client.batch_execute(self.script.slot()).await;
        // PostgreSQL 15 sometimes fails beside other slots that are being made ("snapshot reference
        // is not owned by resource owner", XX000), and has made nothing then.
        for _ in 0..3 {
            match &created {
                Err(error) if error.code() == Some(&SqlState::INTERNAL_ERROR) => {
                    created = self.client.batch_execute(self.script.slot()).await;
                }
                Ok(()) | Err(_) => break,
            }
        }
        match created {
            Ok(()) => {}
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return Err(anyhow::anyhow!(self.blocked().await?));
            }
            Err(error) => {
                return Err(error).context(format!("could not create slot {slot}"));
            }
        }
        say(&format!("created  slot {slot}"))?;
        if rows > 0 {
            say(&format!("skipped  {} that the table had before the slot", count(rows)))?;
        } else if inspect::row_count(&self.client, table, 1).await? > 0 {
            // They came between the count and the slot, or after the slot: nobody can tell.
            say(
                "warning  rows were written while the slot was made; those that committed before \
                 it are not published. Compare them with what arrives.",
            )?;
        }
        Ok(())
    }

    /// What to say when the slot waited in vain for transactions that are older than it.
    async fn blocked(&self) -> anyhow::Result<String> {
        let slot = &self.settings.slot;
        let mut text = format!(
            "slot {slot} was not created: it must wait until every older transaction has ended, \
             and these did not within 5 seconds:"
        );
        for open in inspect::open_transactions(&self.client).await? {
            let who = match open.pid {
                Some(pid) => format!("pid {pid} (\"{}\")", open.name),
                None => format!("prepared transaction \"{}\"", open.name),
            };
            text.push_str(&format!("\n  {who}: {}, open for {} s", open.state, open.seconds));
        }
        text.push_str("\n  fix: end them (SELECT pg_terminate_backend(PID);), then run init again");
        Ok(text)
    }
}
