//! One cheap look at all that decides whether an insert into the outbox reaches us, and what two
//! looks say about the time between them.
//!
//! Owns that query and the comparison; whether a state will do is judged by `precondition`. Knows
//! no task and no stream.
//!
//! A change between two looks is followed where it cannot have hidden a row: a state that was
//! kept all along, or one that was made in the very transaction that made the table. What may
//! have come and gone between them is a [`Gap`].

use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use super::error::PostgresError;
use super::inspect::{self, ServerState};
use super::precondition::{
    SAID_AT_START, judge_publication, judge_server, judge_slot, judge_table,
};
use crate::config::{OutboxSettings, PostgresSettings, plain_identifier};
use crate::source::{Finding, Standing};

/// What one look saw. Equal looks need no judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) table: Option<TableLook>,
    publication: Option<PublicationLook>,
    /// Why the table is in the publication: by itself or a table above it, or by a schema.
    members: Vec<MemberLook>,
    /// Plugin, flags and the reason why it was given up.
    slot: Option<String>,
    /// `idle_replication_slot_timeout` in seconds, which is off at 0.
    idle_slot_seconds: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableLook {
    pub(crate) oid: u32,
    /// Of the version of its row: the transaction that made it, or altered it last.
    version: String,
    /// Kind, persistence, whether it is a partition, and the columns.
    shape: String,
    /// The tables below it that hold rows.
    pub(crate) leaves: Vec<u32>,
    /// Their kinds and persistence.
    leaf_kinds: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct PublicationLook {
    oid: u32,
    version: String,
    for_all_tables: bool,
    /// The whole row, as JSON.
    content: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct MemberLook {
    version: String,
    /// The whole row, as JSON; its oid is in it.
    content: String,
}

/// Rows may have been written between two looks that were not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    /// What happened, to which object.
    pub(crate) what: String,
}

/// The names of what is looked at.
pub(crate) struct Subject {
    pub(crate) settings: PostgresSettings,
    pub(crate) outbox: OutboxSettings,
}

/// What holds of a server whose preconditions hold.
pub(crate) struct Checked {
    pub(crate) server: ServerState,
    /// Names and type oids of the columns that are sent.
    pub(crate) sent: Vec<(String, u32)>,
    findings: Vec<Finding>,
}

impl Checked {
    /// Says what is worth a line at each start.
    pub(crate) fn say_warnings(&self) {
        for finding in &self.findings {
            if finding.standing == Standing::Warn && SAID_AT_START.contains(&finding.name) {
                let fix = finding.fix.as_deref().unwrap_or_default();
                tracing::warn!("{}: {}; {fix}", finding.name, finding.detail);
            }
        }
    }
}

impl Subject {
    /// The one query. Its parameters: schema, table, publication, slot.
    ///
    /// Columns that came with later versions are read by way of JSON, so that one text serves
    /// all; but not the catalog of schemas in publications, which came with 15.
    fn query(version: u32) -> String {
        let by_schema = match version {
            150_000.. => {
                "UNION ALL SELECT s.xmin::text, to_jsonb(s)::text FROM published p \
                 JOIN pg_publication_namespace s ON s.pnpubid = p.oid \
                 JOIN up ON s.pnnspid = up.relnamespace"
            }
            _ => "",
        };
        format!(
            "WITH RECURSIVE named AS ( \
               SELECT c.oid, c.xmin, c.relnamespace, \
                 concat(c.relkind, c.relpersistence, c.relispartition) AS shape, c.relispartition \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname = $2), \
             up AS ( \
               SELECT oid, relnamespace, relispartition FROM named \
               UNION SELECT c.oid, c.relnamespace, c.relispartition \
                 FROM up JOIN pg_inherits i ON i.inhrelid = up.oid AND up.relispartition \
                 JOIN pg_class c ON c.oid = i.inhparent), \
             below AS ( \
               SELECT i.inhrelid AS oid FROM named JOIN pg_inherits i ON i.inhparent = named.oid \
               UNION SELECT i.inhrelid FROM below JOIN pg_inherits i ON i.inhparent = below.oid), \
             leaf AS ( \
               SELECT c.oid, concat(c.relkind, c.relpersistence) AS kind \
               FROM below JOIN pg_class c ON c.oid = below.oid \
               WHERE c.relkind <> 'p' AND c.relpersistence <> 't'), \
             published AS ( \
               SELECT p.oid, p.xmin, p.puballtables, to_jsonb(p)::text AS content \
               FROM pg_publication p WHERE p.pubname = $3), \
             member AS ( \
               SELECT r.xmin::text AS version, to_jsonb(r)::text AS content FROM published p \
               JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN up ON r.prrelid = up.oid \
               {by_schema}) \
             SELECT (SELECT oid FROM named), (SELECT xmin::text FROM named), \
               (SELECT shape FROM named) || (SELECT string_agg( \
                   concat(' ', a.attname, ':', a.atttypid, a.attgenerated), '' ORDER BY a.attnum) \
                 FROM named JOIN pg_attribute a ON a.attrelid = named.oid \
                 WHERE a.attnum > 0 AND NOT a.attisdropped), \
               ARRAY(SELECT oid FROM leaf ORDER BY oid), \
               (SELECT string_agg(kind, ' ' ORDER BY oid) FROM leaf), \
               (SELECT oid FROM published), (SELECT xmin::text FROM published), \
               (SELECT puballtables FROM published), (SELECT content FROM published), \
               ARRAY(SELECT version FROM member ORDER BY content), \
               ARRAY(SELECT content FROM member ORDER BY content), \
               (SELECT concat(s.plugin, ' ', s.database, ' ', to_jsonb(s)->'two_phase', ' ', \
                   to_jsonb(s)->'invalidation_reason') \
                 FROM pg_replication_slots s WHERE s.slot_name = $4), \
               extract(epoch FROM \
                 current_setting('idle_replication_slot_timeout', true)::interval)::int8"
        )
    }

    /// Prepares the look for a connection.
    pub(crate) async fn prepare(
        &self,
        client: &Client,
    ) -> Result<tokio_postgres::Statement, Error> {
        let row = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await;
        let version = u32::try_from(row?.get::<_, i32>(0)).unwrap_or(0);
        client.prepare(&Self::query(version)).await
    }

    /// Looks once.
    pub(crate) async fn look(
        &self,
        client: &Client,
        statement: &tokio_postgres::Statement,
    ) -> Result<Catalog, Error> {
        let PostgresSettings { table, publication, slot, .. } = &self.settings;
        let row =
            client.query_one(statement, &[&table.schema, &table.name, publication, slot]).await?;
        Ok(Catalog::of(&row))
    }

    /// Everything that must hold, asked in full and judged.
    ///
    /// # Errors
    /// [`PostgresError::Precondition`] names the first that does not hold.
    pub(crate) async fn check(&self, client: &Client) -> Result<Checked, PostgresError> {
        let Self { settings, outbox } = self;
        let mut findings = Vec::new();
        let server = inspect::server(client).await?;
        findings.extend(judge_server(&server));
        if server.version >= 130_000 {
            let table = inspect::table(client, &settings.table).await?;
            findings.extend(judge_table(settings, outbox, table.as_ref()));
            let slot = inspect::slot(client, &settings.slot).await?;
            findings.extend(judge_slot(settings, &server, slot.as_ref()));
            if let Some(table) = table {
                let publication =
                    inspect::publication(client, server.version, &settings.publication, table.oid)
                        .await?;
                let publication = publication.as_ref();
                findings.extend(judge_publication(settings, outbox, &table, publication));
                must_hold(&findings)?;
                let is_sent = |column: &&inspect::ColumnState| {
                    publication.is_none_or(|publication| publication.sends(column))
                };
                let sent = table.columns.iter().filter(is_sent);
                let sent = sent.map(|column| (column.name.clone(), column.type_oid)).collect();
                return Ok(Checked { server, sent, findings });
            }
        }
        must_hold(&findings)?;
        // Only a table that is missing leads here, and that was a finding.
        Err(PostgresError::Precondition(Finding::fail("table", "it is missing", "walpost init")))
    }

    /// Whether rows may have been written between two looks that were not published; `now` is a
    /// state whose preconditions hold.
    pub(crate) fn gap(&self, before: &Catalog, now: &Catalog) -> Option<Gap> {
        let (table, publication) = (&self.settings.table, &self.settings.publication);
        let publication = plain_identifier(publication);
        let gap = |what: String| Some(Gap { what });
        let (Some(was), Some(is)) = (&before.publication, &now.publication) else { return None };
        if was.oid != is.oid {
            return gap(format!("publication {publication} was dropped and made again"));
        }
        if was.version != is.version && was.content == is.content {
            return gap(format!("publication {publication} was changed and changed back"));
        }
        let (Some(old), Some(new)) = (&before.table, &now.table) else { return None };
        if was.for_all_tables && is.for_all_tables {
            return None;
        }
        let kept = now.members.iter().any(|member| before.members.contains(member));
        if kept || (was.for_all_tables && now.members.is_empty()) {
            return None;
        }
        if old.oid == new.oid {
            return gap(format!(
                "table {table} left publication {publication} and joined it again, or the \
                 columns or rows that it publishes were changed"
            ));
        }
        // Made and added by one transaction, so no row was written to it before.
        if now.members.iter().any(|member| member.version == new.version) {
            return None;
        }
        gap(format!(
            "table {table} was made again, and joined publication {publication} in a later \
             transaction"
        ))
    }
}

impl Catalog {
    fn of(row: &Row) -> Self {
        let table = row.get::<_, Option<u32>>(0).map(|oid| TableLook {
            oid,
            version: row.get::<_, Option<String>>(1).unwrap_or_default(),
            shape: row.get::<_, Option<String>>(2).unwrap_or_default(),
            leaves: row.get(3),
            leaf_kinds: row.get::<_, Option<String>>(4).unwrap_or_default(),
        });
        let publication = row.get::<_, Option<u32>>(5).map(|oid| PublicationLook {
            oid,
            version: row.get::<_, Option<String>>(6).unwrap_or_default(),
            for_all_tables: row.get::<_, Option<bool>>(7).unwrap_or(false),
            content: row.get::<_, Option<String>>(8).unwrap_or_default(),
        });
        let (versions, contents): (Vec<String>, Vec<String>) = (row.get(9), row.get(10));
        let members = versions.into_iter().zip(contents);
        let members = members.map(|(version, content)| MemberLook { version, content }).collect();
        Self { table, publication, members, slot: row.get(11), idle_slot_seconds: row.get(12) }
    }

    /// How long nobody may use the slot before the server gives it up.
    pub(crate) fn idle_slot_max(&self) -> Option<Duration> {
        let seconds = self.idle_slot_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }
}

/// The present name of a table, quoted; `None` where it was dropped.
///
/// # Errors
/// The connection is gone.
pub(crate) async fn name_of(client: &Client, oid: u32) -> Result<Option<String>, Error> {
    let query = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    Ok(client.query_opt(query, &[&oid]).await?.map(|row| row.get(0)))
}

fn must_hold(findings: &[Finding]) -> Result<(), PostgresError> {
    for finding in findings {
        match finding.standing {
            Standing::Fail => return Err(PostgresError::Precondition(finding.clone())),
            Standing::Ok | Standing::Warn => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
