//! What a database says about itself: server, table, publication, slot.
//!
//! Owns the catalog queries and plain structs of their answers; judges nothing (that is
//! `precondition.rs`) and changes nothing. All queries need no more than a login.

use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use super::conninfo::ConnInfo;
use super::sql::{SqlClient, connect_sql};
use crate::config::{QualifiedName, Secret};
use crate::failure::Failure;

/// A person waits for the answer.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Opens an ordinary SQL connection; it ends when the client is dropped.
///
/// # Errors
/// As the source's own connect: transient, denied, or definite. Never names the password.
pub async fn sql_client(url: &Secret) -> Result<SqlClient, Failure> {
    let mut info = ConnInfo::of(url)?;
    info.connect_timeout = info.connect_timeout.min(CONNECT_TIMEOUT_MAX);
    connect_sql(&info).await.map_err(|error| Failure::new(error.kind(), error))
}

/// The server and the role that we are on it.
#[derive(Debug, Clone)]
pub struct ServerState {
    /// `server_version_num`: 150018 is 15.18.
    pub version: u32,
    /// `server_version`, for people.
    pub version_text: String,
    /// `replica`, `logical` or `minimal`.
    pub wal_level: String,
    /// `effective_wal_level`, from PostgreSQL 19 on: the first logical slot raises it.
    pub effective_wal_level: Option<String>,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// `application_name` of this connection, by which the server chooses synchronous standbys.
    pub application_name: String,
    /// `idle_replication_slot_timeout` (18+) in seconds; 0 is none.
    pub idle_slot_seconds_max: i64,
    /// `max_slot_wal_keep_size` in megabytes; -1 is no limit.
    pub slot_wal_keep_megabytes_max: i64,
    /// `max_replication_slots`.
    pub slots_max: i64,
    /// How many slots there are.
    pub slots: i64,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Database of this connection.
    pub database: String,
    /// Role of this connection.
    pub role: String,
    /// Whether the role may replicate: by its attribute, as superuser, or on Amazon RDS by
    /// membership of `rds_replication`.
    pub may_replicate: bool,
}

/// Reads the server's settings and our role.
///
/// # Errors
/// The connection is gone.
pub async fn server(client: &Client) -> Result<ServerState, Error> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int4, \
             current_setting('server_version'), current_setting('wal_level'), \
             (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
             current_setting('max_replication_slots')::int8, \
             (SELECT count(*) FROM pg_replication_slots), \
             pg_is_in_recovery(), current_database()::text, current_user::text, \
             (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) \
             OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' \
                        AND pg_has_role(current_user, oid, 'member')), \
             current_setting('effective_wal_level', true), \
             current_setting('synchronous_standby_names'), \
             current_setting('application_name'), \
             extract(epoch FROM \
                 current_setting('idle_replication_slot_timeout', true)::interval)::int8",
            &[],
        )
        .await?;
    Ok(ServerState {
        version: u32::try_from(row.get::<_, i32>(0)).unwrap_or(0),
        version_text: row.get(1),
        wal_level: row.get(2),
        // PostgreSQL 12 does not have it.
        slot_wal_keep_megabytes_max: row.get::<_, Option<i64>>(3).unwrap_or(-1),
        slots_max: row.get(4),
        slots: row.get(5),
        in_recovery: row.get(6),
        database: row.get(7),
        role: row.get(8),
        may_replicate: row.get(9),
        effective_wal_level: row.get(10),
        synchronous_standby_names: row.get(11),
        application_name: row.get(12),
        idle_slot_seconds_max: row.get::<_, Option<i64>>(13).unwrap_or(0),
    })
}

/// A column as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnState {
    /// Its name.
    pub name: String,
    /// `pg_type.oid` of its type.
    pub type_oid: u32,
    /// `pg_type.typtype`: `b`ase, `e`num, `d`omain, `c`omposite, `r`ange, `m`ultirange.
    pub type_kind: char,
    /// For people: `character varying(255)`.
    pub type_name: String,
    /// Of a domain the type that it ends in, else the type itself.
    pub base_type_name: String,
    /// `pg_attribute.attgenerated`: `s`tored, `v`irtual, or a space.
    pub generated: char,
}

/// A table below the outbox: a partition with rows of its own, or a child by inheritance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafState {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema and name, quoted.
    pub name: String,
    /// `pg_class.relkind`: `r`elation or `f`oreign.
    pub kind: char,
    /// `pg_class.relpersistence`.
    pub persistence: char,
}

/// The outbox table.
#[derive(Debug, Clone)]
pub struct TableState {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `pg_class.relkind`: `r`elation or `p`artitioned; anything else cannot be published.
    pub kind: char,
    /// `pg_class.relpersistence`: only `p`ermanent tables are written to the log.
    pub persistence: char,
    /// The columns, in their order.
    pub columns: Vec<ColumnState>,
    /// The tables below it that hold rows.
    pub leaves: Vec<LeafState>,
}

/// Reads the table and its columns; `None` where there is no such table.
///
/// # Errors
/// The connection is gone.
pub async fn table(client: &Client, name: &QualifiedName) -> Result<Option<TableState>, Error> {
    let found = client
        .query_opt(
            "SELECT c.oid, c.relkind::text, c.relpersistence::text \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            &[&name.schema, &name.name],
        )
        .await?;
    let Some(found) = found else { return Ok(None) };
    let oid: u32 = found.get(0);
    // A domain over a domain ends in its base type after as many steps as it has.
    let rows = client
        .query(
            "SELECT a.attname::text, t.oid, t.typtype::text, format_type(t.oid, a.atttypmod), \
             (WITH RECURSIVE base(oid, next) AS ( \
                SELECT t.oid, t.typbasetype \
                UNION ALL SELECT b.oid, b.typbasetype FROM base JOIN pg_type b ON b.oid = next) \
              SELECT format_type(oid, NULL) FROM base WHERE next = 0), \
             a.attgenerated::text \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            &[&oid],
        )
        .await?;
    let columns = rows
        .iter()
        .map(|row| ColumnState {
            name: row.get(0),
            type_oid: row.get(1),
            type_kind: character(row, 2),
            type_name: row.get(3),
            base_type_name: row.get(4),
            generated: character(row, 5),
        })
        .collect();
    let (kind, persistence) = (character(&found, 1), character(&found, 2));
    let leaves = leaves(client, oid).await?;
    Ok(Some(TableState { oid, kind, persistence, columns, leaves }))
}

/// The tables below another that hold rows; not the temporary ones of other sessions.
async fn leaves(client: &Client, oid: u32) -> Result<Vec<LeafState>, Error> {
    let rows = client
        .query(
            "WITH RECURSIVE below AS ( \
               SELECT inhrelid AS oid FROM pg_inherits WHERE inhparent = $1 \
               UNION SELECT i.inhrelid FROM below JOIN pg_inherits i ON i.inhparent = below.oid) \
             SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind::text, \
               c.relpersistence::text \
             FROM below JOIN pg_class c ON c.oid = below.oid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind <> 'p' AND c.relpersistence <> 't' ORDER BY c.oid",
            &[&oid],
        )
        .await?;
    let leaf = |row: &Row| LeafState {
        oid: row.get(0),
        name: row.get(1),
        kind: character(row, 2),
        persistence: character(row, 3),
    };
    Ok(rows.iter().map(leaf).collect())
}

/// How many rows the table has, counted up to `most`.
///
/// # Errors
/// No right to read the table, or the connection is gone.
pub async fn row_count(client: &Client, name: &QualifiedName, most: i64) -> Result<i64, Error> {
    let query = format!("SELECT count(*) FROM (SELECT FROM {} LIMIT {most}) rows", name.quoted());
    Ok(client.query_one(&query, &[]).await?.get(0))
}

/// A publication, seen from one table.
#[derive(Debug, Clone)]
pub struct PublicationState {
    /// Whether it publishes INSERT.
    pub inserts: bool,
    /// Whether it publishes UPDATE.
    pub updates: bool,
    /// Whether it publishes DELETE.
    pub deletes: bool,
    /// Whether it publishes TRUNCATE.
    pub truncates: bool,
    /// `publish_via_partition_root`.
    pub via_partition_root: bool,
    /// Whether the table is in it: by itself, its schema, `FOR ALL TABLES`, or as a partition.
    pub covers_table: bool,
    /// Whether it is `FOR ALL TABLES EXCEPT` this one (19+).
    pub excepts_table: bool,
    /// The table above it, quoted, in whose name its rows are published.
    pub published_as: Option<String>,
    /// `publish_generated_columns = stored` (18+).
    pub generated_columns: bool,
    /// Further tables that were added by name, quoted, at most eight.
    pub others: Vec<String>,
    /// Columns that it is limited to (15+).
    pub columns: Option<Vec<String>>,
    /// Row filter (15+).
    pub row_filter: Option<String>,
}

impl PublicationState {
    /// Whether inserts are sent with this column.
    pub(crate) fn sends(&self, column: &ColumnState) -> bool {
        match (&self.columns, column.generated) {
            (_, 'v') => false,
            (Some(list), _) => list.contains(&column.name),
            (None, 's') => self.generated_columns,
            (None, _) => true,
        }
    }
}

/// Reads the publication; `None` where there is no such one.
///
/// # Errors
/// The connection is gone.
pub async fn publication(
    client: &Client,
    version: u32,
    name: &str,
    table_oid: u32,
) -> Result<Option<PublicationState>, Error> {
    let Some(row) = client.query_opt(&publication_query(version), &[&name, &table_oid]).await?
    else {
        return Ok(None);
    };
    let mut state = PublicationState {
        inserts: row.get(0),
        updates: row.get(1),
        deletes: row.get(2),
        truncates: row.get(3),
        via_partition_root: row.get(4),
        generated_columns: row.get(5),
        covers_table: row.get(6),
        excepts_table: row.get(7),
        published_as: row.get(8),
        others: row.get(9),
        columns: None,
        row_filter: None,
    };
    // PostgreSQL 15 brought column lists and row filters.
    if version >= 150_000 {
        let row = client
            .query_one(
                "SELECT (SELECT pg_get_expr(prqual, prrelid) FROM pg_publication_rel r \
                   WHERE r.prpubid = p.oid AND r.prrelid = $2), \
                 (SELECT array_agg(a.attname::text) FROM pg_publication_rel r \
                   JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs) \
                   WHERE r.prpubid = p.oid AND r.prrelid = $2) \
                 FROM pg_publication p WHERE pubname = $1",
                &[&name, &table_oid],
            )
            .await?;
        state.row_filter = row.get(0);
        state.columns = row.get(1);
    }
    Ok(Some(state))
}

/// Of a publication (`$1`) seen from a table (`$2`) and the tables that this is a partition of.
///
/// Not from `pg_publication_tables`: that opens every table that is published, and so waits for
/// any `ALTER TABLE` in the database. Columns that came with later versions are read by way of
/// JSON, so that one text serves all.
fn publication_query(version: u32) -> String {
    let by_schema = match version {
        150_000.. => {
            "OR EXISTS (SELECT FROM pg_publication_namespace s \
             WHERE s.pnpubid = p.oid AND s.pnnspid = up.relnamespace)"
        }
        _ => "",
    };
    format!(
        "WITH RECURSIVE up AS ( \
           SELECT oid, relnamespace, relname, relispartition, 0 AS distance \
             FROM pg_class WHERE oid = $2 \
           UNION ALL \
           SELECT c.oid, c.relnamespace, c.relname, c.relispartition, distance + 1 \
             FROM up JOIN pg_inherits i ON i.inhrelid = up.oid AND up.relispartition \
             JOIN pg_class c ON c.oid = i.inhparent), \
         p AS (SELECT *, oid AS id FROM pg_publication WHERE pubname = $1), \
         rel AS (SELECT r.*, coalesce((to_jsonb(r)->>'prexcept')::boolean, false) AS excepted \
                   FROM pg_publication_rel r JOIN p ON r.prpubid = p.id), \
         excepted AS (SELECT FROM rel JOIN up ON rel.prrelid = up.oid WHERE rel.excepted), \
         member AS (SELECT up.* FROM p, up \
                     WHERE EXISTS (SELECT FROM rel WHERE prrelid = up.oid AND NOT excepted) \
                        OR p.puballtables AND NOT EXISTS (SELECT FROM excepted) {by_schema}) \
         SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, \
           coalesce(to_jsonb(p)->>'pubgencols' = 's', false), \
           EXISTS (SELECT FROM member), EXISTS (SELECT FROM excepted), \
           (SELECT format('%I.%I', n.nspname, m.relname) \
              FROM member m JOIN pg_namespace n ON n.oid = m.relnamespace \
             WHERE m.distance > 0 AND p.pubviaroot ORDER BY m.distance DESC LIMIT 1), \
           ARRAY(SELECT format('%I.%I', n.nspname, c.relname) \
                   FROM rel JOIN pg_class c ON c.oid = rel.prrelid \
                   JOIN pg_namespace n ON n.oid = c.relnamespace \
                  WHERE NOT excepted AND c.oid <> $2 ORDER BY 1 LIMIT 8) \
         FROM p"
    )
}

/// A replication slot.
#[derive(Debug, Clone)]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Its database; `None` for a physical slot.
    pub database: Option<String>,
    /// Backend that holds it.
    pub active_pid: Option<i32>,
    /// Whether it ends with its connection.
    pub temporary: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes of log that may still be written before the slot is lost; `None` is no limit.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of log between the confirmed position and the end.
    pub lag_bytes: Option<i64>,
    /// `confirmed_flush_lsn`, for people.
    pub confirmed: Option<String>,
    /// Whether it sends transactions at their PREPARE (14+).
    pub two_phase: bool,
    /// Why the server gave it up (17+): `wal_removed`, `idle_timeout`, ….
    pub invalidation_reason: Option<String>,
}

/// Reads the slot; `None` where there is no such one.
///
/// # Errors
/// The connection is gone.
pub async fn slot(client: &Client, name: &str) -> Result<Option<SlotState>, Error> {
    let row = client
        .query_opt(
            "SELECT plugin::text, database::text, active_pid, temporary, wal_status, \
             safe_wal_size, confirmed_flush_lsn::text, \
             (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() \
                   ELSE pg_current_wal_lsn() END - confirmed_flush_lsn)::int8, \
             coalesce((to_jsonb(s)->>'two_phase')::boolean, false), \
             to_jsonb(s)->>'invalidation_reason' \
             FROM pg_replication_slots s WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| SlotState {
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        temporary: row.get(3),
        wal_status: row.get(4),
        safe_wal_bytes: row.get(5),
        confirmed: row.get(6),
        lag_bytes: row.get(7),
        two_phase: row.get(8),
        invalidation_reason: row.get(9),
    }))
}

/// A transaction that a new slot has to wait for.
#[derive(Debug, Clone)]
pub struct OpenTransaction {
    /// Backend, or `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Application's name, or the prepared transaction's id.
    pub name: String,
    /// State as `pg_stat_activity` has it. The query is left out: it may hold row contents.
    pub state: String,
    /// Seconds since it began.
    pub seconds: i64,
}

/// The oldest transactions with a transaction id of their own, prepared ones too, at most five.
///
/// # Errors
/// The connection is gone.
pub async fn open_transactions(client: &Client) -> Result<Vec<OpenTransaction>, Error> {
    let rows = client
        .query(
            "SELECT pid, application_name, coalesce(state, 'unknown'), \
               extract(epoch FROM clock_timestamp() - xact_start)::int8 AS seconds \
             FROM pg_stat_activity \
             WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
             UNION ALL \
             SELECT NULL, gid, 'prepared', \
               extract(epoch FROM clock_timestamp() - prepared)::int8 FROM pg_prepared_xacts \
             ORDER BY seconds DESC LIMIT 5",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| OpenTransaction {
            pid: row.get(0),
            name: row.get(1),
            state: row.get(2),
            seconds: row.get::<_, Option<i64>>(3).unwrap_or(0),
        })
        .collect())
}

/// The attributes of a role that a relay needs.
#[derive(Debug, Clone, Copy)]
pub struct RoleState {
    /// Whether it may log in.
    pub may_login: bool,
    /// Whether it may replicate.
    pub may_replicate: bool,
}

/// Reads a role; `None` where there is no such one.
///
/// # Errors
/// The connection is gone.
pub async fn role(client: &Client, name: &str) -> Result<Option<RoleState>, Error> {
    let row = client
        .query_opt(
            "SELECT rolcanlogin, rolreplication OR rolsuper FROM pg_roles WHERE rolname = $1",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| RoleState { may_login: row.get(0), may_replicate: row.get(1) }))
}

/// A catalog column of type `"char"`, read as text.
fn character(row: &Row, index: usize) -> char {
    row.get::<_, String>(index).chars().next().unwrap_or(' ')
}
