//! From "connect" to a stream that may be read: every precondition, and whose log it is.
//!
//! Owns the order of the start. Each session of a source must be of the same system and timeline:
//! LSNs of another log mean nothing here.
//!
//! ```text
//!  connect (replication) ┐
//!  connect (SQL) ────────┴▶ IDENTIFY_SYSTEM ▶ catalog: table, publication, slot ▶ START_REPLICATION
//!                                                                                   ▲      │ 55006
//!                                                                                   └ wait ┘
//! ```

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;

use super::catalog::{Catalog, Subject};
use super::connect::{PgStream, Purpose, connect};
use super::conninfo::ConnInfo;
use super::decoder::{DecodeError, Decoder};
use super::error::{PostgresError, is_slot_in_use};
use super::inspect;
use super::lsn::Lsn;
use super::relation::{RelationError, TYPE_KINDS_QUERY, TypeKinds};
use super::sql::{SqlClient, connect_sql};
use super::watch::Watch;
use super::wire::{Connection, Row, WireError};
use crate::config::{OutboxSettings, PostgresSettings, quote_identifier};
use crate::identity::LogId;

/// Wait between two tries for a slot that another connection holds. After a `kill -9` the server
/// lets go within milliseconds; a hot standby may wait for months, and asks less often.
const SLOT_WAIT_FIRST: Duration = Duration::from_millis(20);
const SLOT_WAIT_MAX: Duration = Duration::from_millis(500);
const SLOT_WAIT_SAID: Duration = Duration::from_secs(60);

/// Whose log is read: remembered from the first session on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct System {
    pub(crate) identifier: u64,
    pub(crate) timeline: u32,
}

impl System {
    pub(crate) fn log(self) -> LogId {
        LogId::postgres(self.identifier)
    }
}

/// What a session starts from.
pub(crate) struct Start<'a> {
    pub(crate) info: &'a ConnInfo,
    pub(crate) settings: &'a PostgresSettings,
    pub(crate) outbox: &'a OutboxSettings,
    /// The log of the sessions before, if there were any.
    pub(crate) system: Option<System>,
    /// What this source has acknowledged; 0/0 before the first session.
    pub(crate) acknowledged: Lsn,
    /// The last position that a session before has received.
    pub(crate) received: Lsn,
    /// What the last look of a session before saw of the catalog.
    pub(crate) previous: Option<&'a Catalog>,
}

/// A stream that may be read.
pub(crate) struct Session {
    pub(crate) stream: PgStream,
    /// What was read beyond the last answer: the stream's first bytes.
    pub(crate) begun: BytesMut,
    pub(crate) system: System,
    /// Where the slot stands: nothing before it will come.
    pub(crate) confirmed: Lsn,
    /// Where the server's log ended at the start.
    pub(crate) log_end: Lsn,
    /// After so much silence of ours the server drops the connection; `None` is never.
    pub(crate) sender_timeout: Option<Duration>,
    /// Looks at the catalog from here on.
    pub(crate) watch: Option<Watch>,
}

impl Start<'_> {
    /// Opens a session; waits as long as another connection holds the slot.
    ///
    /// # Errors
    /// See [`PostgresError::kind`].
    pub(crate) async fn open(&self, decoder: &mut Decoder) -> Result<Session, PostgresError> {
        let (connection, sql) =
            tokio::join!(connect(self.info, Purpose::Replication), connect_sql(self.info));
        let (mut connection, sql) = (connection?, sql?);
        let (system, log_end) = self.identify(&mut connection).await?;
        decoder.restart(system.log());
        decoder.set_former_name(self.settings.former_name.clone());
        let subject = Subject { settings: self.settings.clone(), outbox: self.outbox.clone() };
        let version = self.check(&subject, &sql, decoder, self.system.is_none()).await?;
        // A warning is all that tells of a publication that PostgreSQL 18 leaves out; the role or
        // the database may have turned warnings off.
        query(&mut connection, "SET client_min_messages = warning").await?;
        let sender_timeout = sender_timeout(&mut connection).await?;
        self.start_replication(&mut connection, version).await?;
        // After the start nobody else can move the slot.
        let confirmed = self.confirmed(&sql).await?;
        if self.acknowledged != Lsn(0) && confirmed > self.acknowledged {
            return Err(PostgresError::SlotMoved {
                slot: self.settings.slot.clone(),
                confirmed,
                acknowledged: self.acknowledged,
            });
        }
        // Again, since the slot may have been waited for; and after the first look of the watch,
        // so that nothing changes between the two.
        let statement = subject.prepare(&sql).await?;
        let catalog = subject.look(&sql, &statement).await?;
        self.check(&subject, &sql, decoder, false).await?;
        if let Some(previous) = self.previous.filter(|previous| **previous != catalog)
            && confirmed == self.acknowledged
        {
            subject.must_follow(previous, &catalog, self.received)?;
        }
        if let Some(table) = &catalog.table {
            decoder.set_catalog(table.oid, &table.leaves);
        }
        let watch = Watch::start(subject, self.info.clone(), (sql, statement), catalog, log_end);
        let (stream, begun) = connection.into_parts();
        let watch = Some(watch);
        Ok(Session { stream, begun, system, confirmed, log_end, sender_timeout, watch })
    }

    /// `IDENTIFY_SYSTEM`: system identifier, timeline, end of the log, database
    /// (protocol-replication).
    async fn identify(&self, connection: &mut Connection) -> Result<(System, Lsn), PostgresError> {
        let rows = query(connection, "IDENTIFY_SYSTEM").await?;
        let malformed = || PostgresError::Wire(WireError::Malformed("answer to IDENTIFY_SYSTEM"));
        let row = rows.first().ok_or_else(malformed)?;
        let field = |index: usize| row.get(index)?.as_deref();
        let identifier = field(0).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let timeline = field(1).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let log_end: Lsn = field(2).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
        let system = System { identifier, timeline };
        if let Some(before) = self.system {
            if before.identifier != identifier {
                let (expected, found) = (before.identifier, identifier);
                return Err(PostgresError::OtherSystem { expected, found });
            }
            if before.timeline != timeline {
                let (expected, found) = (before.timeline, timeline);
                let slot = self.settings.slot.clone();
                return Err(PostgresError::OtherTimeline { expected, found, slot });
            }
        }
        // A walsender sends only what is on disk, so what was received cannot be gone.
        if log_end < self.received {
            return Err(PostgresError::WentBack { end: log_end, received: self.received });
        }
        Ok((system, log_end))
    }

    /// Every precondition that the catalog can tell; the server's version.
    async fn check(
        &self,
        subject: &Subject,
        sql: &SqlClient,
        decoder: &mut Decoder,
        says_warnings: bool,
    ) -> Result<u32, PostgresError> {
        let checked = subject.check(sql).await?;
        if says_warnings {
            checked.say_warnings();
        }
        let columns: Vec<(&str, u32)> =
            checked.sent.iter().map(|(name, oid)| (name.as_str(), *oid)).collect();
        loop {
            match decoder.check(&columns) {
                Ok(()) => return Ok(checked.server.version),
                Err(RelationError::UnknownTypes { oids, .. }) => {
                    decoder.add_types(type_kinds(sql, &oids).await?);
                }
                Err(error) => return Err(self.undecodable(error.into())),
            }
        }
    }

    pub(crate) fn undecodable(&self, source: DecodeError) -> PostgresError {
        PostgresError::Decode { slot: self.settings.slot.clone(), source }
    }

    /// Starts the stream at our own position: after a crash the server's may lie behind it. A
    /// server holds on to its own where that is later.
    async fn start_replication(
        &self,
        connection: &mut Connection,
        version: u32,
    ) -> Result<(), PostgresError> {
        let slot = &self.settings.slot;
        // One list of identifiers inside of one literal: quotes of both kinds are doubled.
        let publication = quote_identifier(&self.settings.publication).replace('\'', "''");
        // PostgreSQL 13 has no binary mode.
        let binary = if version >= 140_000 { ", binary 'true'" } else { "" };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} \
             (proto_version '1', publication_names '{publication}'{binary})",
            quote_identifier(slot),
            self.acknowledged
        );
        let mut wait = SLOT_WAIT_FIRST;
        let mut said_at: Option<Instant> = None;
        loop {
            let error = match connection.start_copy_both(&command).await {
                Ok(()) => break,
                Err(error) => error,
            };
            match error.server() {
                Some(server) if is_slot_in_use(server) => {
                    // A holder that was killed is gone before this is worth a line.
                    let quiet = said_at.is_some_and(|at| at.elapsed() < SLOT_WAIT_SAID);
                    if wait >= SLOT_WAIT_MAX && !quiet {
                        said_at = Some(Instant::now());
                        let holder = &server.message;
                        tracing::info!(slot, "standing by until the slot is free: {holder}");
                    }
                }
                _ => return Err(PostgresError::Wire(error)),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SLOT_WAIT_MAX);
        }
        Ok(())
    }

    async fn confirmed(&self, sql: &SqlClient) -> Result<Lsn, PostgresError> {
        let slot = inspect::slot(sql, &self.settings.slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed?.parse().ok());
        Ok(confirmed.unwrap_or(Lsn(0)))
    }
}

/// What is known about types that are not built in.
pub(crate) async fn type_kinds(
    sql: &SqlClient,
    oids: &[u32],
) -> Result<TypeKinds, tokio_postgres::Error> {
    let mut kinds = TypeKinds::default();
    for oid in oids {
        kinds.insert_missing(*oid);
    }
    for row in sql.query(TYPE_KINDS_QUERY, &[&oids]).await? {
        kinds.insert(row.get("oid"), row.get("name"), row.get("base"), row.get("is_text"));
    }
    Ok(kinds)
}

async fn query(connection: &mut Connection, text: &str) -> Result<Vec<Row>, PostgresError> {
    connection.simple_query(text).await.map_err(PostgresError::Wire)
}

/// `wal_sender_timeout` of this very session: it can be set by role, database and `options`.
async fn sender_timeout(connection: &mut Connection) -> Result<Option<Duration>, PostgresError> {
    let command = "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'";
    let rows = query(connection, command).await?;
    let setting = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
    Ok(setting.filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis))
}
