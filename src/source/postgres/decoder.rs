//! The state between messages: from `pgoutput` messages to changes, in commit order.
//!
//! Owns the order of the protocol, a row's identity and the counts of what is ignored. Pure and
//! sync: knows no socket, no slot, and not how types are looked up.
//!
//! ```text
//!            Begin                              Commit
//! outside ──────────▶ transaction(final_lsn) ──────────▶ outside   Change::Commit(end_lsn)
//!                       │ Insert into the outbox: Change::Row(log, final_lsn, ordinal)
//!                       └ anything else: counted
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use bytes::Bytes;

use super::commit_time::{CommitTime, CommitTimes};
use super::frame::change_of;
use super::lsn::Lsn;
use super::pgoutput::{Begin, Commit, Datum, Insert, MalformedError, Message, RelationColumn};
use super::relation::{Known, Plan, PlannedColumn, RelationError, Relations, TypeKinds};
use super::value::{Scratch, ValueError};
use crate::config::QualifiedName;
use crate::identity::{Fingerprint, LogId, OutboxId, RowIdentity};
use crate::outbox::{Columns, OutboxRow, Role};
use crate::source::Change;

/// Why a message could not become changes.
///
/// All are definite (the same bytes would come again), except [`UnknownTypes`] inside
/// `Relation`, which is a question and no failure.
///
/// [`UnknownTypes`]: RelationError::UnknownTypes
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not the protocol's layout.
    #[error(transparent)]
    Malformed(#[from] MalformedError),
    /// The table does not fit the mapping, or types must be looked up.
    #[error(transparent)]
    Relation(#[from] RelationError),
    /// A message at a place where the protocol does not have it.
    #[error("{message} message {place}")]
    Order {
        /// Name of the message.
        message: &'static str,
        /// Where it came.
        place: &'static str,
    },
    /// A Commit that ends another transaction than the one that was begun.
    #[error("Commit message of transaction {commit} inside transaction {begin}")]
    CommitMismatch {
        /// What Begin said.
        begin: Lsn,
        /// What Commit said.
        commit: Lsn,
    },
    /// A change of a relation that was never announced.
    #[error("change of relation {relation}, which was not announced on this connection")]
    UnknownRelation {
        /// Its id.
        relation: u32,
    },
    /// A row with another number of columns than its announcement.
    #[error("row of table {table} has {found} columns where {expected} were announced")]
    ColumnCount {
        /// Schema and name.
        table: String,
        /// In the row.
        found: u16,
        /// In the announcement.
        expected: usize,
    },
    /// A value that cannot be told in canonical form.
    #[error("could not read column {column:?} of a row of table {table}")]
    Value {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// What is wrong with it.
        source: ValueError,
    },
    /// More than 2^32 outbox rows in one transaction.
    #[error("transaction {transaction} has more outbox rows than an identity can count")]
    TooManyRows {
        /// Its `final_lsn`.
        transaction: Lsn,
    },
}

/// What was read and left out, since the decoder was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IgnoredCounts {
    /// UPDATEs of outbox rows.
    pub updates: u64,
    /// DELETEs of outbox rows.
    pub deletes: u64,
    /// TRUNCATEs of the outbox.
    pub truncates: u64,
    /// Changes of other tables in the publication.
    pub foreign: u64,
    /// Messages of `pg_logical_emit_message`, of any prefix.
    pub messages: u64,
    /// Stream Aborts, which protocol version 1 should not have.
    pub stream_aborts: u64,
}

/// Turns the messages of one replication stream into changes.
#[derive(Debug, Clone)]
pub struct Decoder {
    log: LogId,
    outbox: OutboxId,
    relations: Relations,
    open: Option<Transaction>,
    ignored: IgnoredCounts,
    times: CommitTimes,
    scratch: Scratch,
}

#[derive(Debug, Clone, Copy)]
struct Transaction {
    begin: Begin,
    /// When it was committed, as far as that can be believed.
    time: CommitTime,
    /// Ordinal of its next outbox row.
    ordinal: u32,
    fingerprint: Fingerprint,
    /// It was replicated from elsewhere: its commit time is what the session says it is, and may
    /// be the same for many.
    has_origin: bool,
}

impl Decoder {
    /// A decoder for the table `schema`.`table`, names as in the catalog. For a partitioned
    /// table the publication must have `publish_via_partition_root`.
    pub fn new(schema: String, table: String, columns: Columns, log: LogId) -> Self {
        Self {
            log,
            outbox: OutboxId::new(&schema, &table),
            relations: Relations::new(schema, table, columns),
            open: None,
            ignored: IgnoredCounts::default(),
            times: CommitTimes::default(),
            scratch: Scratch::default(),
        }
    }

    /// Begins a new connection, on which the server announces everything anew. What is kept:
    /// table, mapping and counts.
    pub fn restart(&mut self, log: LogId) {
        self.log = log;
        self.open = None;
        self.relations.clear();
    }

    /// Takes rows of the same table under this name for rows of the outbox too.
    pub(crate) fn set_former_name(&mut self, name: Option<QualifiedName>) {
        self.relations.set_former_name(name);
    }

    /// What the catalog says now: the outbox's oid, and those of its partitions. A row of that
    /// oid under another name is an error from here on, and one of a partition is the outbox's.
    pub(crate) fn set_catalog(&mut self, oid: u32, leaves: &[u32]) {
        self.relations.set_catalog(oid, leaves);
    }

    /// Whether something came about which the catalog should be asked before the rows that were
    /// decoded are handed on: an announcement of the outbox, or a table that may be a part of it.
    pub(crate) fn take_news(&mut self) -> bool {
        self.relations.take_news()
    }

    /// Names of tables whose first row was left out since the last call: a few, not all.
    pub(crate) fn take_left_out(&mut self) -> Vec<String> {
        self.relations.take_left_out()
    }

    /// Takes the time of receipt, which stands for a commit time that cannot be true.
    pub(crate) fn set_clock(&mut self, unix_micros: i64) {
        self.times.set_clock(unix_micros);
    }

    /// How many rows got the time of receipt for their commit time.
    pub(crate) fn replaced_times(&self) -> u64 {
        self.times.replaced
    }

    /// Adds kinds of types that [`RelationError::UnknownTypes`] asked for; kept until
    /// [`restart`](Self::restart).
    pub fn add_types(&mut self, types: TypeKinds) {
        self.relations.add_types(types);
    }

    /// Checks a table, as the catalog tells it, against the mapping: names and type oids of the
    /// columns that the publication sends. The same check that its Relation will go through.
    ///
    /// # Errors
    /// [`RelationError`]; after `UnknownTypes` look them up and check again.
    pub fn check(&self, present: &[(&str, u32)]) -> Result<(), RelationError> {
        let mut columns = Vec::with_capacity(present.len());
        for (name, type_oid) in present {
            columns.push(RelationColumn { name, type_oid: *type_oid });
        }
        self.relations.plan(&columns).map(drop)
    }

    /// The mapping, for what must be checked at start.
    pub fn columns(&self) -> &Columns {
        &self.relations.columns
    }

    /// Whether a Begin came whose Commit did not: no place for [`Change::Idle`].
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// From here on values come in their text form: of a type that is known to nobody it is what
    /// the server prints.
    pub(crate) fn expect_text(&mut self) {
        self.relations.expect_text();
    }

    /// Whether a large change, by the beginning of its frame, is nothing that this decoder makes
    /// a row of. Then it is counted, and need not be read.
    pub(crate) fn leaves_out(&mut self, head: &[u8]) -> bool {
        let Some((tag, relation)) = change_of(head) else { return false };
        // The outbox under another name is no other table: its row is an error that says so.
        let is_other = matches!(self.relations.find(relation), Some(Known::Other))
            && (tag != b'I' || self.relations.leave_out(relation).is_ok());
        let ignored = &mut self.ignored;
        let count = match (self.relations.find(relation), tag) {
            (Some(Known::Other), _) if is_other => &mut ignored.foreign,
            (Some(Known::Outbox(_)), b'U') => &mut ignored.updates,
            (Some(Known::Outbox(_)), b'D') => &mut ignored.deletes,
            (Some(Known::Outbox(_) | Known::Other) | None, _) => return false,
        };
        *count += 1;
        true
    }

    /// Where the next change stands: the transaction that is open, and the rows of it so far.
    pub(crate) fn place(&self) -> Option<(Lsn, u32)> {
        self.open.map(|open| (open.begin.final_lsn, open.ordinal))
    }

    /// The table whose row comes next, as far as the announcements tell.
    pub(crate) fn only_table(&self) -> Option<String> {
        self.relations.is_alone().then(|| self.table_name())
    }

    /// What was left out.
    pub fn ignored(&self) -> IgnoredCounts {
        self.ignored
    }

    /// Decodes one message, the data of one XLogData, and appends what it means. Values of rows
    /// are slices of `message` where they can be.
    ///
    /// # Errors
    /// Nothing was appended, and the state is as before: after `UnknownTypes` the same message
    /// can be decoded again. Every other error is definite.
    pub fn decode(
        &mut self,
        message: &Bytes,
        changes: &mut Vec<Change<Lsn>>,
    ) -> Result<(), DecodeError> {
        match Message::parse(message)? {
            Message::Insert(insert) => {
                if let Some(row) = self.insert(message, &insert)? {
                    changes.push(Change::Row(row));
                }
            }
            Message::Begin(begin) => self.begin(begin)?,
            Message::Commit(commit) => changes.push(Change::Commit(self.commit(commit)?)),
            Message::Relation(relation) => {
                self.inside("Relation")?;
                self.relations.learn(&relation)?;
            }
            Message::Update { relation } => {
                let outbox = self.is_outbox("Update", relation)?;
                *(if outbox { &mut self.ignored.updates } else { &mut self.ignored.foreign }) += 1;
            }
            Message::Delete { relation } => {
                let outbox = self.is_outbox("Delete", relation)?;
                *(if outbox { &mut self.ignored.deletes } else { &mut self.ignored.foreign }) += 1;
            }
            Message::Truncate { relations } => {
                let mut ignored = self.ignored;
                for relation in relations.iter() {
                    let outbox = self.is_outbox("Truncate", relation)?;
                    *(if outbox { &mut ignored.truncates } else { &mut ignored.foreign }) += 1;
                }
                self.ignored = ignored;
            }
            Message::Logical(logical) => {
                // One that is not transactional comes at once, between transactions.
                if logical.transactional {
                    self.inside("Message")?;
                }
                self.ignored.messages += 1;
            }
            Message::Origin => self.origin()?,
            Message::Type(announced) => {
                self.inside("Type")?;
                self.relations.learn_type(announced);
            }
            Message::StreamAbort => self.ignored.stream_aborts += 1,
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin) -> Result<(), DecodeError> {
        if self.open.is_some() {
            return Err(DecodeError::Order { message: "Begin", place: "inside a transaction" });
        }
        let time = self.times.of(&begin);
        let fingerprint = Fingerprint::new(self.outbox, begin.committed_at_micros);
        self.open = Some(Transaction { begin, time, ordinal: 0, fingerprint, has_origin: false });
        Ok(())
    }

    /// Comes before any row, where the transaction itself was replicated from elsewhere.
    fn origin(&mut self) -> Result<(), DecodeError> {
        let mut open = self.inside("Origin")?;
        open.time = self.times.of_origin(&open.begin);
        open.has_origin = true;
        self.open = Some(open);
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<Lsn, DecodeError> {
        let begin = self.inside("Commit")?.begin.final_lsn;
        if begin != commit.commit_lsn {
            return Err(DecodeError::CommitMismatch { begin, commit: commit.commit_lsn });
        }
        self.open = None;
        Ok(commit.end_lsn)
    }

    fn inside(&self, message: &'static str) -> Result<Transaction, DecodeError> {
        self.open.ok_or(DecodeError::Order { message, place: "outside of a transaction" })
    }

    fn is_outbox(&self, message: &'static str, relation: u32) -> Result<bool, DecodeError> {
        self.inside(message)?;
        match self.relations.find(relation) {
            Some(Known::Outbox(_)) => Ok(true),
            Some(Known::Other) => Ok(false),
            None => Err(DecodeError::UnknownRelation { relation }),
        }
    }

    fn insert(
        &mut self,
        message: &Bytes,
        insert: &Insert<'_>,
    ) -> Result<Option<OutboxRow>, DecodeError> {
        let open = self.inside("Insert")?;
        let Transaction { begin, time, ordinal, mut fingerprint, has_origin } = open;
        let plan = match self.relations.find(insert.relation) {
            Some(Known::Outbox(plan)) => plan,
            Some(Known::Other) => {
                insert.new.check()?;
                self.relations.leave_out(insert.relation)?;
                self.ignored.foreign += 1;
                return Ok(None);
            }
            None => return Err(DecodeError::UnknownRelation { relation: insert.relation }),
        };
        let transaction = begin.final_lsn;
        let Some(next) = ordinal.checked_add(1) else {
            return Err(DecodeError::TooManyRows { transaction });
        };
        if has_origin {
            fingerprint = fingerprint.with_row(insert.new.bytes());
        }
        let log = self.log;
        let identity = RowIdentity { log, transaction: transaction.0, ordinal, fingerprint };
        let mut row = OutboxRow::new(identity, time.unix_micros);
        fill(&mut row, plan, insert, message, &mut self.scratch).map_err(|error| match error {
            FillError::Malformed(error) => error.into(),
            FillError::ColumnCount => DecodeError::ColumnCount {
                table: self.table_name(),
                found: insert.new.columns,
                expected: plan.columns.len(),
            },
            FillError::Value { column, source } => {
                DecodeError::Value { table: self.table_name(), column, source }
            }
        })?;
        self.open = Some(Transaction { ordinal: next, ..open });
        self.times.replaced += u64::from(time.is_replaced);
        Ok(Some(row))
    }

    fn table_name(&self) -> String {
        format!("{}.{}", self.relations.schema, self.relations.table)
    }
}

/// What can be wrong with a row, before the table's name is put to it.
enum FillError {
    Malformed(MalformedError),
    ColumnCount,
    Value { column: String, source: ValueError },
}

impl From<MalformedError> for FillError {
    fn from(error: MalformedError) -> Self {
        FillError::Malformed(error)
    }
}

/// Walks once through the columns and fills the row. Allocates only for extra columns.
fn fill(
    row: &mut OutboxRow,
    plan: &Plan,
    insert: &Insert<'_>,
    message: &Bytes,
    scratch: &mut Scratch,
) -> Result<(), FillError> {
    if usize::from(insert.new.columns) != plan.columns.len() {
        return Err(FillError::ColumnCount);
    }
    if plan.extra_count > 0 {
        row.extra = vec![None; plan.extra_count];
    }
    let mut datums = insert.new.datums();
    for column in &plan.columns {
        let datum = datums.next()?;
        for role in &column.roles {
            if let Err(source) = place(row, *role, column, datum, message, scratch) {
                return Err(FillError::Value { column: column.name.clone(), source });
            }
        }
    }
    datums.finish()?;
    Ok(())
}

fn place(
    row: &mut OutboxRow,
    role: Role,
    column: &PlannedColumn,
    datum: Datum<'_>,
    message: &Bytes,
    scratch: &mut Scratch,
) -> Result<(), ValueError> {
    let field = match role {
        Role::CreatedAt => {
            row.created_at_micros = match column.value_type.micros(datum) {
                Err(ValueError::Moment(error)) if column.may_lack_moment && error.is_a_moment() => {
                    None
                }
                micros => micros?,
            };
            return Ok(());
        }
        Role::Id => &mut row.id,
        Role::AggregateType => &mut row.aggregate_type,
        Role::AggregateId => &mut row.aggregate_id,
        Role::EventType => &mut row.event_type,
        Role::Payload => &mut row.payload,
        Role::Headers => &mut row.headers,
        Role::Topic => &mut row.topic,
        Role::Extra(index) => {
            row.extra.get_mut(index).expect("a plan counts the extras of its own columns")
        }
    };
    *field = column.value_type.canonical(datum, message, scratch)?;
    Ok(())
}

#[cfg(test)]
mod tests;
