//! From "connect" to a stream that may be read: every precondition, and where it begins.
//!
//! Owns the order of the start.
//!
//! ```text
//!  connect (binlog) ──┐ to whichever host will do; all else leads to that one
//!  connect (SQL) ▶ server, log, table ▶ position: kept, or made at a first start
//!                     │                   │ still there? this server's?
//!                     └▶ register ────────┴▶ dump from there on
//! ```

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use mysql_async::prelude::Queryable;

use super::cluster;
use super::connect::connect;
use super::connection::{Connection, WireError};
use super::conninfo::ConnInfo;
use super::decoder::{DecodeError, Decoded, Decoder, DecoderSettings, Undecodable};
use super::dump::{BinlogStream, StreamLimits, StreamSettings, WRITE_TIMEOUT};
use super::error::MySqlError;
use super::gtid::{Flavor, GtidSet};
use super::here::Here;
use super::initial::{Doubt, Initial, Order, Reading};
use super::inspect::{self, LogState, PlaceState, ServerState, TableState};
use super::intake::Taken;
use super::precondition::{
    judge_grants, judge_log, judge_place, judge_read_only, judge_server, judge_table,
};
use super::resume::Place;
use super::skim::{Fate, Skimmed};
use super::snapshot;
use super::sql::sql_connect;
use super::store::StoredPosition;
use super::watch::{Watch, catalog_types};
use super::wire::OK;
use crate::budget::Budget;
use crate::config::{self, MySqlSettings, OutboxSettings};
use crate::source::finding::{Finding, Standing};

/// How long the outbox is waited for at a first start on MySQL, which locks it for a moment: the
/// least that the server knows, since whoever writes to the outbox waits behind it.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long a server that takes connections may be silent about what it is asked.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Names a server, so that two connections can be compared: a name may have several addresses, and
/// a failover may come between the two. MySQL alone reads the comment.
const NAMED: &str = "SELECT CONCAT_WS(' ', @@server_id, @@hostname, @@port \
                     /*!80000 , @@server_uuid */)";

/// Heartbeats that may stay away before a connection counts as dead.
pub(crate) const HEARTBEATS_MISSED_MAX: u32 = 4;

/// Bytes of an event around a row's own: header, table id, bitmaps, checksum.
const EVENT_OVERHEAD_BYTES: usize = 1 << 12;

/// What a session starts from.
pub(crate) struct Start<'a> {
    pub(crate) info: &'a ConnInfo,
    pub(crate) settings: &'a MySqlSettings,
    pub(crate) outbox: &'a OutboxSettings,
    pub(crate) budget: &'a Budget,
    pub(crate) here: &'a Here,
}

/// Where it begins.
pub(crate) enum Begin {
    /// Where this life of the source is, and the server that it was read from.
    At(Place, String),
    /// Where an earlier one was, or a first start of this one that did not come to its end.
    Stored(StoredPosition),
    /// Nothing was ever read.
    First(config::Initial),
}

/// A server on which all that must hold does, and a connection to it.
pub(crate) struct Checked {
    sql: mysql_async::Conn,
    /// Leads to it and to no other.
    info: ConnInfo,
    /// What it calls itself.
    named: String,
    server: ServerState,
    log: Option<LogState>,
    table: TableState,
}

/// A stream that may be read.
pub(crate) struct Session {
    pub(crate) stream: BinlogStream,
    pub(crate) decoder: Decoder,
    /// Everything before it is behind us; with `initial`, behind those rows.
    pub(crate) place: Place,
    pub(crate) server_uuid: String,
    /// Rows from before a first start, to be handed over first.
    pub(crate) initial: Option<Initial>,
    /// Whether the position is kept by GTIDs; else by file and position.
    by_gtids: bool,
    pub(super) watch: Watch,
    name: String,
    server_id: u32,
    received_bytes: usize,
    /// Whether the warning of [`Session::warn`] was given.
    warned: bool,
}

impl Start<'_> {
    /// Opens a session.
    ///
    /// # Errors
    /// See [`MySqlError::kind`].
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept: a dropped call closes its connections.
    pub(crate) async fn open(&self, begin: Begin) -> Result<Session, MySqlError> {
        let connection = connect(self.info).await?;
        let info = connection.server().clone();
        self.here.set(&info);
        let Checked { mut sql, info, named, server, log, table } =
            within(ANSWER_MAX, self.check_at(info)).await?;
        let connection = within(ANSWER_MAX, same_server(connection, &named)).await?;
        let at = At { info: &info, named: &named, server: &server, table: &table };
        let kept = match &begin {
            Begin::First(_) => "",
            Begin::Stored(stored) => &stored.server_uuid,
            Begin::At(_, read_from) => read_from,
        };
        let server_uuid = cluster::uuid(&mut sql, self.settings, &server, kept).await?;
        let uuid = uuid::Uuid::parse_str(&server_uuid).map_or(0, |uuid| uuid.as_u128());
        let (place, initial) = match begin {
            Begin::First(initial) => {
                within(ANSWER_MAX, self.begin_first(initial, sql, at, uuid)).await?
            }
            Begin::Stored(stored) => {
                let place = self.stored_place(&stored, &server)?;
                self.check_place(&mut sql, &place, &stored.server_uuid, &server, log).await?;
                let initial = match (stored.initial_pending, self.settings.initial) {
                    (true, config::Initial::Publish) => {
                        let after = stored.initial_after;
                        let beginning = self.begin_again(at, uuid, &place, after);
                        Some(within(ANSWER_MAX, beginning).await?)
                    }
                    (true, config::Initial::Skip) | (false, _) => None,
                };
                (place, initial)
            }
            Begin::At(place, read_from) => {
                self.check_place(&mut sql, &place, &read_from, &server, log).await?;
                (place, None)
            }
        };
        let stream = within(ANSWER_MAX, self.dump(connection, &server, &place)).await?;
        let mut decoder = Decoder::new(self.decoder_settings(&server, &table, uuid));
        match by_gtids(&place, server.has_gtids()) {
            // The server says where that is.
            true => decoder.reset("", 0),
            false => decoder.reset(&place.file, place.position),
        }
        Ok(Session {
            stream,
            decoder,
            by_gtids: by_gtids(&place, server.has_gtids()),
            place,
            server_uuid,
            initial,
            watch: Watch::default(),
            name: self.settings.name.clone(),
            server_id: self.settings.server_id(),
            received_bytes: 0,
            warned: false,
        })
    }

    /// Asks for everything that must hold before a position matters.
    ///
    /// # Errors
    /// The first precondition that does not hold: definite. Or no answer.
    ///
    /// # Cancel safety
    /// Cancel safe in that nothing is kept.
    pub(crate) async fn check(&self) -> Result<(), MySqlError> {
        let connection = connect(self.info).await?;
        let info = connection.server().clone();
        self.here.set(&info);
        drop(connection);
        within(ANSWER_MAX, self.check_at(info)).await.map(drop)
    }

    async fn check_at(&self, info: ConnInfo) -> Result<Checked, MySqlError> {
        let mut sql = sql_connect(&info).await?;
        let named = named(&mut sql).await?;
        let server = inspect::server(&mut sql).await?;
        must_hold(judge_server(&server))?;
        must_be_allowed(judge_read_only(self.settings, &server))?;
        let grants = inspect::grants(&mut sql, &self.settings.table.schema).await?;
        must_be_allowed(judge_grants(self.settings, &server, grants, false))?;
        let log = inspect::log(&mut sql, &server).await?;
        must_hold(judge_log(self.settings, log.as_ref()))?;
        let table = inspect::table(&mut sql, &self.settings.table).await?;
        must_hold(judge_table(self.settings, self.outbox, &server, table.as_ref(), None))?;
        match table {
            Some(table) => Ok(Checked { sql, info, named, server, log, table }),
            None => Err(MySqlError::ReaderGone),
        }
    }

    /// The present end of the binlog, with the rows that the table has at that very moment where
    /// they are to be published.
    async fn begin_first(
        &self,
        initial: config::Initial,
        mut locker: mysql_async::Conn,
        at: At<'_>,
        uuid: u128,
    ) -> Result<(Place, Option<Initial>), MySqlError> {
        let At { server, table, .. } = at;
        let mut reader = at.connect().await?;
        let point =
            snapshot::open(server, &table.name, LOCK_WAIT, &mut reader, &mut locker).await?;
        let place = Place {
            gtids: self.parse(server.flavor, &point.gtid_set)?,
            file: point.file.into(),
            position: point.position,
        };
        match initial {
            config::Initial::Skip => Ok((place, None)),
            config::Initial::Publish => {
                let rows = self.initial(reader, table, uuid, place.clone(), None)?;
                Ok((place, Some(rows)))
            }
        }
    }

    /// The rows that the table has now, of a first start at `place` that did not come to its end;
    /// those behind `after`, where it came so far. Those that were written since come from the
    /// binlog too, and so do those that are gone again: some come twice, none is left out. What was
    /// committed before `place` is seen by now, so nothing is locked.
    async fn begin_again(
        &self,
        at: At<'_>,
        uuid: u128,
        place: &Place,
        after: Option<String>,
    ) -> Result<Initial, MySqlError> {
        let mut reader = at.connect().await?;
        snapshot::open_again(&mut reader).await?;
        self.initial(reader, at.table, uuid, place.clone(), after)
    }

    fn initial(
        &self,
        reader: mysql_async::Conn,
        table: &TableState,
        server_uuid: u128,
        place: Place,
        after: Option<String>,
    ) -> Result<Initial, MySqlError> {
        let named = self.settings.initial_order.as_deref();
        let order = Order::of(table, self.outbox, named).map_err(|problem| {
            MySqlError::InitialRow { table: table.name.plain_mysql(), problem }
        })?;
        warn_of_order(table, &order);
        let silence_max = self.settings.heartbeat * HEARTBEATS_MISSED_MAX;
        let (outbox, budget) = (self.outbox, self.budget.clone());
        let reading =
            Reading { table, outbox, order, after, server_uuid, place, silence_max, budget };
        Initial::start(reader, reading)
    }

    fn stored_place(
        &self,
        stored: &StoredPosition,
        server: &ServerState,
    ) -> Result<Place, MySqlError> {
        Ok(Place {
            // Of the other kind it would not parse; that is told by the judgement below.
            gtids: match stored.flavor == server.flavor {
                true => self.parse(stored.flavor, &stored.gtids)?,
                false => GtidSet::empty(stored.flavor),
            },
            file: stored.file.as_str().into(),
            position: stored.position,
        })
    }

    fn parse(&self, flavor: Flavor, text: &str) -> Result<GtidSet, MySqlError> {
        GtidSet::parse(flavor, text).map_err(|error| MySqlError::Position {
            name: self.settings.name.clone(),
            problem: error.to_string(),
        })
    }

    /// Whether the server still has what follows `place`, and ever had what is before it. GTIDs are
    /// good on any server that has them; offsets on none but `written_by`.
    async fn check_place(
        &self,
        sql: &mut mysql_async::Conn,
        place: &Place,
        written_by: &str,
        server: &ServerState,
        log: Option<LogState>,
    ) -> Result<(), MySqlError> {
        let state = PlaceState {
            initial_pending: false,
            flavor: flavor_word(place.gtids.flavor()).to_owned(),
            server_uuid: written_by.to_owned(),
            gtid_set: place.gtids.to_string(),
            file: place.file.to_string(),
            position: place.position,
        };
        let gtids =
            inspect::gtids(sql, server, log.as_ref(), &state.flavor, &state.gtid_set).await?;
        must_hold(judge_place(self.settings, server, log.as_ref(), gtids.as_ref(), &state))
    }

    /// Asks for the binlog from `place` on.
    async fn dump(
        &self,
        mut connection: Connection,
        server: &ServerState,
        place: &Place,
    ) -> Result<BinlogStream, MySqlError> {
        let settings =
            StreamSettings { heartbeat: self.settings.heartbeat, write_timeout: WRITE_TIMEOUT };
        let wire = MySqlError::Wire;
        connection.prepare_stream(settings).await.map_err(wire)?;
        let server_id = self.settings.server_id();
        connection.register_replica(server_id, &self.settings.name).await.map_err(wire)?;
        let limits =
            StreamLimits { packet_bytes_max: self.packet_bytes_max(), budget: self.budget.clone() };
        let stream = match (server.flavor, by_gtids(place, server.has_gtids())) {
            (Flavor::MySql, true) => {
                connection.dump_gtid(server_id, &place.gtids.encode_for_dump(), limits).await
            }
            (Flavor::MariaDb, true) => {
                connection.dump_mariadb(server_id, &place.gtids.to_string(), limits).await
            }
            (Flavor::MySql | Flavor::MariaDb, false) => {
                connection.dump_file(server_id, &place.file, place.position, limits).await
            }
        };
        stream.map_err(MySqlError::Dump)
    }

    fn packet_bytes_max(&self) -> usize {
        let largest = self.settings.row_bytes_max.max(self.settings.payload_bytes_max);
        largest.saturating_add(EVENT_OVERHEAD_BYTES)
    }

    fn decoder_settings(
        &self,
        server: &ServerState,
        table: &TableState,
        server_uuid: u128,
    ) -> DecoderSettings {
        DecoderSettings {
            flavor: server.flavor,
            schema: table.name.schema.clone(),
            table: table.name.name.clone(),
            columns: self.outbox.columns.clone(),
            server_uuid,
            event_bytes_max: self.settings.row_bytes_max.saturating_add(EVENT_OVERHEAD_BYTES),
            payload_bytes_max: self.settings.payload_bytes_max,
            held_bytes_max: self.settings.held_bytes_max,
            skipped: self.settings.skip_transactions.clone(),
            types: catalog_types(table),
            budget: self.budget.clone(),
        }
    }
}

impl Session {
    /// What has come; to be asked until there is nothing. Large events that are not the outbox's
    /// are passed over.
    ///
    /// # Errors
    /// A packet or a row above its bound, or a connection that is of no more use.
    pub(crate) fn take(&mut self) -> Result<Option<Taken>, MySqlError> {
        let (decoder, mut refused) = (&self.decoder, None);
        let taken = self.stream.take_judged(&mut |payload| {
            let Some((&OK, head)) = payload.split_first() else { return Fate::Keep };
            match decoder.skims(head) {
                Ok(true) => Fate::Skim,
                Ok(false) => Fate::Keep,
                Err(error) => {
                    refused = Some(error);
                    Fate::Keep
                }
            }
        });
        match refused {
            Some(error) => Err(self.undecodable(error)),
            None => taken.map_err(|error| self.ended(error)),
        }
    }

    /// An event that was passed over.
    ///
    /// # Errors
    /// Its bytes are damaged.
    pub(crate) fn pass_over(
        &mut self,
        skimmed: &Skimmed,
        decoded: &mut Vec<Decoded>,
    ) -> Result<(), MySqlError> {
        self.received_bytes += usize::try_from(skimmed.length).unwrap_or(usize::MAX);
        let result = self.decoder.pass_over(skimmed, decoded);
        result.map_err(|source| self.undecodable(source))
    }

    /// Decodes one event.
    ///
    /// # Errors
    /// It cannot be understood: definite.
    pub(crate) fn event(
        &mut self,
        event: Bytes,
        decoded: &mut Vec<Decoded>,
    ) -> Result<(), MySqlError> {
        self.received_bytes += event.len();
        let result = self.decoder.event(&event, decoded);
        result.map_err(|source| self.undecodable(source))
    }

    /// The next part of a compressed transaction.
    ///
    /// # Errors
    /// It cannot be understood: definite.
    pub(crate) fn step(&mut self, decoded: &mut Vec<Decoded>) -> Result<(), MySqlError> {
        let result = self.decoder.step(decoded);
        result.map_err(|source| self.undecodable(source))
    }

    fn undecodable(&self, error: DecodeError) -> MySqlError {
        let source = Box::new(Undecodable::new(error, self.decoder.transaction()));
        MySqlError::Decode { place: self.at(), source }
    }

    pub(super) fn at(&self) -> String {
        format!("{}:{}", self.decoder.file(), self.decoder.position())
    }

    /// Says once that the log holds what nobody can read as rows.
    pub(crate) fn warn(&mut self) {
        if !self.warned && self.decoder.ignored().statements > 0 {
            self.warned = true;
            tracing::warn!(
                at = self.at(),
                "a statement is in the binlog as text, by a session that set binlog_format: if a \
                 trigger of it wrote to the outbox, walpost cannot see that row"
            );
        }
    }

    /// Bytes of log since the last call.
    pub(crate) fn take_received_bytes(&mut self) -> usize {
        std::mem::take(&mut self.received_bytes)
    }

    /// A position is kept in one way: a name that lacks is an error, one too many is left out. With
    /// an error, what is before the transaction that lacks one is left in `decoded`.
    ///
    /// # Errors
    /// GTIDs were switched off: definite.
    pub(crate) fn must_have_gtids(&self, decoded: &mut Vec<Decoded>) -> Result<(), MySqlError> {
        let mut behind_named = 0;
        for (index, one) in decoded.iter_mut().enumerate() {
            let Decoded::End(end) = one else { continue };
            if !self.by_gtids {
                end.gtid = None;
            } else if end.gtid.is_some() {
                behind_named = index + 1;
            } else {
                let place = format!("{}:{}", end.file, end.position);
                decoded.truncate(behind_named);
                return Err(MySqlError::GtidsGone { place, name: self.name.clone() });
            }
        }
        Ok(())
    }

    /// What ended the stream.
    pub(crate) fn ended(&self, error: WireError) -> MySqlError {
        MySqlError::of_stream(error, self.at(), &self.name, self.server_id)
    }

    pub(crate) fn closed(&self) -> MySqlError {
        MySqlError::Wire(WireError::Closed)
    }
}

#[cfg(test)]
impl Session {
    /// On a stream that a test writes.
    pub(crate) fn scripted(stream: BinlogStream, decoder: Decoder, place: Place) -> Self {
        Self {
            stream,
            decoder,
            place,
            server_uuid: String::new(),
            initial: None,
            by_gtids: true,
            watch: Watch::off(),
            name: "walpost".into(),
            server_id: 1,
            received_bytes: 0,
            warned: false,
        }
    }
}

/// A server that was checked.
#[derive(Clone, Copy)]
struct At<'a> {
    info: &'a ConnInfo,
    named: &'a str,
    server: &'a ServerState,
    table: &'a TableState,
}

impl At<'_> {
    /// Another connection to it.
    async fn connect(self) -> Result<mysql_async::Conn, MySqlError> {
        let mut sql = sql_connect(self.info).await?;
        let found = named(&mut sql).await?;
        if found == self.named { Ok(sql) } else { Err(MySqlError::OtherServer) }
    }
}

async fn named(sql: &mut mysql_async::Conn) -> Result<String, MySqlError> {
    let named: Option<String> = sql.query_first(NAMED).await?;
    Ok(named.unwrap_or_default())
}

/// The stream's connection, if it leads to the server of this name.
async fn same_server(mut connection: Connection, named: &str) -> Result<Connection, MySqlError> {
    let rows = connection.query(NAMED).await.map_err(MySqlError::Wire)?;
    let found = rows.into_iter().flatten().flatten().next();
    if found.as_deref() == Some(named) { Ok(connection) } else { Err(MySqlError::OtherServer) }
}

async fn within<T>(
    after: Duration,
    work: impl Future<Output = Result<T, MySqlError>>,
) -> Result<T, MySqlError> {
    let outcome = tokio::time::timeout(after, work).await;
    outcome.unwrap_or(Err(MySqlError::Unanswered { after }))
}

/// Says where rows of one key may come in another order than they were written in.
fn warn_of_order(table: &TableState, order: &Order) {
    let remedy = "source.initial_order names a column that rises with each insert";
    let table = table.name.plain_mysql();
    match order.doubt() {
        None => {}
        Some(Doubt::SameMoment) => tracing::warn!(
            table,
            order = order.plain(),
            "rows from before the first start that have the same created_at come in the order of \
             the primary key, which need not be the order in which they were written; {remedy}"
        ),
        Some(Doubt::KeyOnly) => tracing::warn!(
            table,
            order = order.plain(),
            "rows from before the first start come in the order of the primary key, which need \
             not be the order in which they were written; {remedy}"
        ),
        Some(Doubt::Nothing) => tracing::warn!(
            table,
            "rows from before the first start come in no order, since the table has neither a \
             primary key nor created_at; {remedy}"
        ),
    }
}

impl Place {
    /// As it is kept.
    pub(crate) fn stored(&self, server_uuid: String) -> StoredPosition {
        StoredPosition {
            initial_pending: false,
            initial_after: None,
            flavor: self.gtids.flavor(),
            server_uuid,
            gtids: self.gtids.to_string(),
            file: self.file.to_string(),
            position: self.position,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gtids.is_empty() {
            true => write!(formatter, "{}:{}", self.file, self.position),
            false => write!(formatter, "{}", self.gtids),
        }
    }
}

/// Whether `place` is named by GTIDs: one that was begun without them goes on without them, since
/// nobody knows those of what is before it. MariaDB always has them: there nothing is before it.
fn by_gtids(place: &Place, has_gtids: bool) -> bool {
    let is_mariadb = place.gtids.flavor() == Flavor::MariaDb;
    has_gtids && (is_mariadb || !place.gtids.is_empty() || place.file.is_empty())
}

fn flavor_word(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::MySql => "mysql",
        Flavor::MariaDb => "mariadb",
    }
}

/// As [`must_hold`], of what may be otherwise for a moment.
fn must_be_allowed(findings: impl IntoIterator<Item = Finding>) -> Result<(), MySqlError> {
    must_hold(findings).map_err(|error| match error {
        MySqlError::Precondition(finding) => MySqlError::Refused(finding),
        error => error,
    })
}

/// The first failed finding is an error.
pub(super) fn must_hold(findings: impl IntoIterator<Item = Finding>) -> Result<(), MySqlError> {
    for finding in findings {
        match finding.standing {
            Standing::Fail => return Err(MySqlError::Precondition(finding)),
            Standing::Ok | Standing::Warn => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_takes_no_writes_while_roles_are_switched_is_tried_again() {
        use crate::failure::FailureKind;
        let fails = || Some(Finding::fail("read_only", "read_only is ON", "wait"));
        let kind = |result: Result<(), MySqlError>| result.unwrap_err().kind();
        assert_eq!(kind(must_be_allowed(fails())), FailureKind::Denied);
        assert_eq!(kind(must_hold(fails())), FailureKind::Definite);
    }

    #[test]
    fn only_a_place_of_mysql_from_before_its_gtids_is_a_file_and_an_offset() {
        let place = |flavor, gtids, file: &str| Place {
            gtids: GtidSet::parse(flavor, gtids).unwrap(),
            file: file.into(),
            position: 4,
        };
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5";
        let named = [
            place(Flavor::MySql, uuid, "binlog.000001"),
            place(Flavor::MySql, "", ""),
            place(Flavor::MariaDb, "0-1-7", "binlog.000001"),
            // Of a server that had logged nothing: its offsets would mean nothing on another one,
            // and no UUID would tell the two apart.
            place(Flavor::MariaDb, "", "binlog.000001"),
        ];
        for place in named {
            assert!(by_gtids(&place, true), "{place:?}");
        }
        assert!(!by_gtids(&place(Flavor::MySql, "", "binlog.000001"), true));
        assert!(!by_gtids(&place(Flavor::MySql, "", ""), false));
    }
}
