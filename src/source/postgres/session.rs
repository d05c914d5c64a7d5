//! From "connect" to a stream that may be read: every precondition, and whose log it is.
//!
//! Owns the order of the start. Each session of a source must be of the same system and timeline:
//! LSNs of another log mean nothing here.
//!
//! ```text
//!  connect (replication) ▶ connect (SQL, to that same server) ▶ IDENTIFY_SYSTEM
//!    ▶ catalog: table, publication, slot ▶ wait until the slot is free ▶ START_REPLICATION
//! ```
//!
//! Every answer has a time limit; only the wait for a slot that another relay holds has none.

use std::time::Duration;

use bytes::BytesMut;
use tokio_postgres::Statement;

use super::catalog::{Catalog, Subject};
use super::connect::PgStream;
use super::conninfo::ConnInfo;
use super::decoder::{DecodeError, Decoder};
use super::error::{PostgresError, is_slot_in_use};
use super::inspect;
use super::lsn::Lsn;
use super::memory::{self, Recalled};
use super::relation::{RelationError, TYPE_KINDS_QUERY, TypeKinds};
use super::replication::connect_replication;
use super::sql::{SqlClient, connect_sql};
use super::standby::Turn;
use super::watch::Watch;
use super::wire::{Connection, Row, WireError};
use crate::config::{OutboxSettings, PostgresSettings, ValueFormat, quote_identifier};
use crate::identity::LogId;

/// Longest wait for the answer to one question. Each of them is a look at a catalog or at memory;
/// a server under load answers within seconds.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Tells two servers apart that one address leads to: a primary and its standby have the same
/// system identifier, and never started in the same microsecond.
const SERVER_START_QUERY: &str =
    "SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text";

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
    /// How the server is to send values.
    pub(crate) format: ValueFormat,
    /// Whether this source gave the slot away, for another relay to take.
    pub(crate) gave_away: bool,
}

/// A stream that may be read.
pub(crate) struct Session {
    pub(crate) stream: PgStream,
    /// The server that it is of, and no other.
    pub(crate) info: ConnInfo,
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
    /// What was remembered, of a first session.
    pub(super) recalled: Option<Recalled>,
}

impl Start<'_> {
    /// Opens a session; waits as long as another connection holds the slot.
    ///
    /// # Errors
    /// See [`PostgresError::kind`].
    pub(crate) async fn open(&self, decoder: &mut Decoder) -> Result<Session, PostgresError> {
        // The stream decides which server it is; everything else is asked there.
        let mut connection = connect_replication(self.info).await?;
        let info = match connection.host() {
            Some(host) => self.info.only_at(host.clone()),
            None => self.info.clone(),
        };
        let sql = connect_sql(&info).await?;
        let server = self.must_be_one_server(&mut connection, &sql, &info).await?;
        let (system, log_end) = within("its system", self.identify(&mut connection)).await?;
        decoder.restart(system.log());
        decoder.set_former_name(self.settings.former_name.clone());
        // A warning is all that tells of a publication that PostgreSQL 18 leaves out; the role or
        // the database may have turned warnings off.
        let warn = query(&mut connection, "SET client_min_messages = warning");
        within("a setting", warn).await?;
        let sender_timeout = within("a setting", sender_timeout(&mut connection)).await?;
        let subject = Subject { settings: self.settings.clone(), outbox: self.outbox.clone() };
        let mut says_warnings = self.system.is_none();
        let mut turn = Turn::new(&self.settings.slot);
        let mut start = self.acknowledged;
        let version = loop {
            if let Some(remembered) = self.remembered(&sql, system, log_end).await? {
                start = start.max(remembered);
            }
            let checking = self.check(&subject, &sql, decoder, says_warnings);
            let version = within("its catalog", checking).await?;
            says_warnings = false;
            turn.wait(&sql).await?;
            // What was checked before a wait of weeks is checked again.
            if turn.has_waited_since_check() {
                continue;
            }
            let starting = self.start_replication(&mut connection, version, start);
            if within("the stream", starting).await? {
                break version;
            }
            turn.was_lost();
        };
        // After the start nobody else can move the slot.
        let confirmed = within("the slot", self.confirmed(&sql)).await?;
        self.must_be_ours(confirmed, turn.has_waited())?;
        let recalled = self.recall(&sql, version, system, confirmed).await?;
        let looking = self.look(&subject, &sql, decoder, confirmed);
        let (statement, catalog) = within("its catalog", looking).await?;
        let watched = (sql, statement);
        let watch = Watch::start(subject, info.clone(), server, watched, catalog, log_end);
        let (stream, begun) = connection.into_parts();
        Ok(Session {
            stream,
            info,
            begun,
            system,
            confirmed: confirmed.max(start),
            log_end,
            sender_timeout,
            watch: Some(watch),
            recalled,
        })
    }

    /// Where memory allows a first session to start.
    async fn remembered(
        &self,
        sql: &SqlClient,
        system: System,
        log_end: Lsn,
    ) -> Result<Option<Lsn>, PostgresError> {
        if self.system.is_some() {
            return Ok(None);
        }
        within("its memory", memory::before_start(self.settings, sql, system, log_end)).await
    }

    /// What a first session remembers, once the slot is its own.
    async fn recall(
        &self,
        sql: &SqlClient,
        version: u32,
        system: System,
        confirmed: Lsn,
    ) -> Result<Option<Recalled>, PostgresError> {
        if self.system.is_some() {
            return Ok(None);
        }
        let recalling = memory::recall(self.settings, sql, version, system, confirmed);
        within("its memory", recalling).await.map(Some)
    }

    /// The first look of the watch; then the catalog is checked again, so that nothing changes
    /// between the two.
    async fn look(
        &self,
        subject: &Subject,
        sql: &SqlClient,
        decoder: &mut Decoder,
        confirmed: Lsn,
    ) -> Result<(Statement, Catalog), PostgresError> {
        let statement = subject.prepare(sql).await?;
        let catalog = subject.look(sql, &statement).await?;
        self.check(subject, sql, decoder, false).await?;
        if let Some(previous) = self.previous.filter(|previous| **previous != catalog)
            && confirmed == self.acknowledged
        {
            subject.must_follow(previous, &catalog, self.received)?;
        }
        if let Some(table) = &catalog.table {
            decoder.set_catalog(table.oid, &table.leaves);
        }
        Ok((statement, catalog))
    }

    /// Behind one address may be several servers; the start of the one that it is.
    async fn must_be_one_server(
        &self,
        connection: &mut Connection,
        sql: &SqlClient,
        info: &ConnInfo,
    ) -> Result<String, PostgresError> {
        let ours = within("its start", query(connection, SERVER_START_QUERY)).await?;
        let ours = ours.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        let theirs = within("its start", server_start(sql)).await?;
        if ours.as_ref() == Some(&theirs) {
            return Ok(theirs);
        }
        Err(PostgresError::TwoServers { address: info.to_string() })
    }

    /// That the slot moved without us is explained only by another relay.
    fn must_be_ours(&self, confirmed: Lsn, has_waited: bool) -> Result<(), PostgresError> {
        let (slot, acknowledged) = (&self.settings.slot, self.acknowledged);
        if acknowledged == Lsn(0) || confirmed <= acknowledged {
            return Ok(());
        }
        if !has_waited && !self.gave_away {
            return Err(PostgresError::SlotMoved { slot: slot.clone(), confirmed, acknowledged });
        }
        tracing::warn!(
            slot,
            "another relay had the slot meanwhile and moved it from {acknowledged} to {confirmed}: \
             going on from there; what waited here for its confirm may arrive twice"
        );
        Ok(())
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
        if !is_binary(self.format, checked.server.version) {
            decoder.expect_text();
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
    /// server holds on to its own where that is later. Says whether the slot was free.
    async fn start_replication(
        &self,
        connection: &mut Connection,
        version: u32,
        start: Lsn,
    ) -> Result<bool, PostgresError> {
        let slot = &self.settings.slot;
        // One list of identifiers inside of one literal: quotes of both kinds are doubled.
        let publication = quote_identifier(&self.settings.publication).replace('\'', "''");
        let binary = if is_binary(self.format, version) { ", binary 'true'" } else { "" };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} \
             (proto_version '1', publication_names '{publication}'{binary})",
            quote_identifier(slot),
            start
        );
        match connection.start_copy_both(&command).await {
            Ok(()) => Ok(true),
            Err(error) if error.server().is_some_and(is_slot_in_use) => Ok(false),
            Err(error) => Err(PostgresError::Wire(error)),
        }
    }

    async fn confirmed(&self, sql: &SqlClient) -> Result<Lsn, PostgresError> {
        let slot = inspect::slot(sql, &self.settings.slot).await?;
        let confirmed = slot.and_then(|slot| slot.confirmed?.parse().ok());
        Ok(confirmed.unwrap_or(Lsn(0)))
    }
}

/// When the server of a connection was started: which server it is.
pub(crate) async fn server_start(sql: &SqlClient) -> Result<String, PostgresError> {
    Ok(sql.query_one(SERVER_START_QUERY, &[]).await?.try_get(0)?)
}

/// Waits for an answer, as long as one may take.
///
/// # Errors
/// That of the answer, or there was none in time: transient.
pub(crate) async fn within<T>(
    question: &'static str,
    answer: impl Future<Output = Result<T, PostgresError>>,
) -> Result<T, PostgresError> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(PostgresError::Unanswered { question, after: ANSWER_MAX }),
    }
}

/// PostgreSQL 13 has no binary mode.
fn is_binary(format: ValueFormat, version: u32) -> bool {
    format == ValueFormat::Binary && version >= 140_000
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
