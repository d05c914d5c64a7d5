//! The table contract: which column is what.
//!
//! Owns column names, their roles and the row that a source makes of them. Knows no transport
//! and no position. The default is the table that Debezium's outbox event router reads.

use bytes::Bytes;

use crate::identity::RowIdentity;

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Header `id` of the message.
    Id,
    /// `{aggregatetype}` of the topic template.
    AggregateType,
    /// Key of the message, and with it the order domain.
    AggregateId,
    /// Header `type` of the message.
    EventType,
    /// Value of the message; NULL is a tombstone.
    Payload,
    /// JSON object whose members become headers.
    Headers,
    /// Topic of this row, above the template.
    Topic,
    /// Timestamp of the message.
    CreatedAt,
    /// A further column that a template, a header or the partition names: index into
    /// [`Columns::extra`] and [`OutboxRow::extra`].
    Extra(usize),
}

/// A mapped column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// What the column is for.
    pub role: Role,
    /// Its name in the table, case as in the catalog.
    pub name: String,
    /// Whether a table without it is an error (`true`) or simply lacks that feature.
    pub required: bool,
}

/// What becomes of a row whose [`Role::CreatedAt`] is no moment that a message can carry:
/// `infinity`, a year before 1 or after 9999, a zero date.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// A definite error.
    #[default]
    Stop,
    /// The message carries the commit time, as if the column were NULL.
    CommitTime,
}

/// All mapped columns of an outbox table. Unmapped columns may be of any type and cost nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    columns: Vec<Column>,
    created_at_out_of_range: OutOfRange,
}

impl Columns {
    /// Debezium's default layout: `id`, `aggregatetype`, `aggregateid`, `type`, `payload`, and
    /// ours where the table has them: `headers`, `topic`, `created_at`.
    pub fn debezium() -> Self {
        let column = |role, name: &str, required| Column { role, name: name.into(), required };
        Self {
            columns: vec![
                column(Role::Id, "id", true),
                column(Role::AggregateType, "aggregatetype", true),
                column(Role::AggregateId, "aggregateid", true),
                column(Role::EventType, "type", true),
                column(Role::Payload, "payload", true),
                column(Role::Headers, "headers", false),
                column(Role::Topic, "topic", false),
                column(Role::CreatedAt, "created_at", false),
            ],
            created_at_out_of_range: OutOfRange::Stop,
        }
    }

    /// Sets what becomes of a row whose creation time is no moment.
    pub fn set_created_at_out_of_range(&mut self, rule: OutOfRange) {
        self.created_at_out_of_range = rule;
    }

    /// What becomes of a row whose creation time is no moment.
    pub fn created_at_out_of_range(&self) -> OutOfRange {
        self.created_at_out_of_range
    }

    /// Gives `role` another column; a name that a person wrote is a required one.
    pub fn map(&mut self, role: Role, name: &str) {
        self.unmap(role);
        self.columns.push(Column { role, name: name.into(), required: true });
    }

    /// Leaves `role` without a column.
    pub fn unmap(&mut self, role: Role) {
        self.columns.retain(|column| column.role != role);
    }

    /// Index of a further column by its name, mapped on first use. A column may have a role and
    /// be an extra too.
    pub fn extra(&mut self, name: &str) -> usize {
        let mut next = 0;
        for column in &self.columns {
            if let Role::Extra(index) = column.role {
                if column.name == name {
                    return index;
                }
                next = next.max(index + 1);
            }
        }
        self.map(Role::Extra(next), name);
        next
    }

    /// How many further columns are mapped: the length of [`OutboxRow::extra`].
    pub fn extra_count(&self) -> usize {
        self.columns.iter().filter(|column| matches!(column.role, Role::Extra(_))).count()
    }

    /// All mapped columns.
    pub fn iter(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter()
    }
}

/// One committed outbox row, as a source read it.
///
/// Values are canonical text whatever the wire sent (uuid as 36 characters, integers as decimal,
/// booleans as `true` and `false`, timestamps as RFC 3339 in UTC), JSON text as the server prints
/// it, and `bytea` as its bytes. Slices of what was read, where the wire form is already that.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Where the row stands in the log.
    pub identity: RowIdentity,
    /// Commit time: microseconds since 1970, UTC.
    pub committed_at_micros: i64,
    /// [`Role::Id`].
    pub id: Option<Bytes>,
    /// [`Role::AggregateType`].
    pub aggregate_type: Option<Bytes>,
    /// [`Role::AggregateId`].
    pub aggregate_id: Option<Bytes>,
    /// [`Role::EventType`].
    pub event_type: Option<Bytes>,
    /// [`Role::Payload`].
    pub payload: Option<Bytes>,
    /// [`Role::Headers`]: JSON text.
    pub headers: Option<Bytes>,
    /// [`Role::Topic`].
    pub topic: Option<Bytes>,
    /// [`Role::CreatedAt`]: microseconds since 1970, UTC.
    pub created_at_micros: Option<i64>,
    /// [`Role::Extra`], by its index; empty where none is mapped.
    pub extra: Vec<Option<Bytes>>,
}

impl OutboxRow {
    /// A row of NULLs, for a decoder to fill.
    pub fn new(identity: RowIdentity, committed_at_micros: i64) -> Self {
        Self {
            identity,
            committed_at_micros,
            id: None,
            aggregate_type: None,
            aggregate_id: None,
            event_type: None,
            payload: None,
            headers: None,
            topic: None,
            created_at_micros: None,
            extra: Vec::new(),
        }
    }

    /// Copies all values into one buffer of their own, which `hold` makes shareable: a row that
    /// waits must not keep alive all that it was read with.
    #[cfg(feature = "mysql")]
    pub(crate) fn copy_out(&mut self, hold: impl FnOnce(Vec<u8>) -> Bytes) {
        let fields = [
            &mut self.id,
            &mut self.aggregate_type,
            &mut self.aggregate_id,
            &mut self.event_type,
            &mut self.payload,
            &mut self.headers,
            &mut self.topic,
        ];
        let values = fields.into_iter().chain(&mut self.extra).flatten();
        let mut values: Vec<&mut Bytes> = values.collect();
        let mut buffer = Vec::with_capacity(values.iter().map(|value| value.len()).sum());
        for value in &values {
            buffer.extend_from_slice(value);
        }
        let mut copy = hold(buffer);
        for value in &mut values {
            **value = copy.split_to(value.len());
        }
    }

    /// Puts a value where its role belongs; that of [`Role::CreatedAt`] is no text, and an extra
    /// that there is no room for is left out.
    #[cfg(feature = "mysql")]
    pub(crate) fn set(&mut self, role: Role, value: Option<Bytes>) {
        match role {
            Role::Id => self.id = value,
            Role::AggregateType => self.aggregate_type = value,
            Role::AggregateId => self.aggregate_id = value,
            Role::EventType => self.event_type = value,
            Role::Payload => self.payload = value,
            Role::Headers => self.headers = value,
            Role::Topic => self.topic = value,
            Role::CreatedAt => {}
            Role::Extra(index) => {
                if let Some(extra) = self.extra.get_mut(index) {
                    *extra = value;
                }
            }
        }
    }
}
