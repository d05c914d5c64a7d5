//! The tables of a stream: which relation id is the outbox, and what its columns become.
//!
//! Owns the plan that is made once a Relation message: for each column on the wire the roles
//! that it fills and how its type is converted. Knows no values and no transactions.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::collections::{HashMap, HashSet};

use super::pgoutput::{Relation, RelationColumn, TypeName};
use super::value::ValueType;
use crate::config::QualifiedName;
use crate::outbox::{Columns, OutOfRange, Role};
use crate::source::finding::column_key;

/// What to ask the catalog for types that the stream names only by oid: one parameter, an
/// `oid[]`; columns `oid`, `name text`, `base oid` and `is_text bool`, the arguments of
/// [`TypeKinds::insert`]. A type that was dropped since gives no row:
/// [`TypeKinds::insert_missing`].
///
/// A domain is followed to its base. A type counts as text when its binary form is one of the
/// server's own text forms, told by the C function behind its send function: that holds for
/// enums and for citext, and for no composite or array.
pub const TYPE_KINDS_QUERY: &str = "\
    WITH RECURSIVE chain AS ( \
      SELECT t.oid AS asked, t.oid, t.typtype, t.typbasetype, t.typsend \
        FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1) \
      UNION ALL \
      SELECT c.asked, t.oid, t.typtype, t.typbasetype, t.typsend \
        FROM chain c JOIN pg_catalog.pg_type t ON t.oid = c.typbasetype WHERE c.typtype = 'd') \
    SELECT c.asked AS oid, pg_catalog.format_type(c.asked, NULL) AS name, c.oid AS base, \
           coalesce(p.prolang = 12 AND p.prosrc IN \
             ('textsend', 'varcharsend', 'bpcharsend', 'namesend', 'enum_send'), false) AS is_text \
      FROM chain c LEFT JOIN pg_catalog.pg_proc p ON p.oid = c.typsend \
     WHERE c.typtype <> 'd' ORDER BY c.asked";

/// Kinds of the types that are not built in, as the catalog tells them.
#[derive(Debug, Clone, Default)]
pub struct TypeKinds {
    kinds: HashMap<u32, TypeKind>,
}

#[derive(Debug, Clone)]
enum TypeKind {
    Known(ValueType),
    Unsupported(String),
    /// The catalog has it no longer: what its values look like can only be told from their text.
    Missing,
}

impl TypeKinds {
    /// Adds one row of [`TYPE_KINDS_QUERY`].
    pub fn insert(&mut self, oid: u32, name: &str, base: u32, is_text: bool) {
        let known = ValueType::of(base).or_else(|| is_text.then_some(ValueType::Text));
        let kind = known.map_or_else(|| TypeKind::Unsupported(name.into()), TypeKind::Known);
        self.kinds.insert(oid, kind);
    }

    /// Adds a type that the catalog no longer has: nothing can be said of its binary values.
    pub fn insert_missing(&mut self, oid: u32) {
        self.kinds.insert(oid, TypeKind::Missing);
    }

    fn extend(&mut self, other: TypeKinds) {
        self.kinds.extend(other.kinds);
    }
}

/// A table that does not fit the mapping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelationError {
    /// A required column does not come with the stream.
    #[error(
        "table {table} has no column {column:?} in this publication; it has {}. Add the column \
         (or to the publication's column list), or map another one",
        .present.join(", ")
    )]
    MissingColumn {
        /// Schema and name.
        table: String,
        /// The mapped name.
        column: String,
        /// The columns that exist.
        present: Vec<String>,
    },
    /// A mapped column's type is nothing that its role can be read from.
    #[error(
        "column {column:?} of table {table} is of type {type_name}, which {} cannot be read from; \
         map another column there{}",
        column_key(*.role),
        if *.role == Role::CreatedAt { "" } else {
            ", or set source.format = \"text\", which takes a value of any type as the server \
             prints it"
        }
    )]
    UnsupportedType {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// What it is mapped to.
        role: Role,
        /// The type's name.
        type_name: String,
    },
    /// A type that was dropped since: only the text form of its values can be read.
    #[error(
        "column {column:?} of table {table} was of a type that has been dropped since (oid \
         {type_oid}); its values can only be read in their text form"
    )]
    DroppedType {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// The type's oid.
        type_oid: u32,
    },
    /// Rows of the outbox under another name: whether they are events nobody can say.
    #[error(
        "rows come from table {now}, which is {table} (oid {oid}) under another name: it was \
         renamed, or moved to another schema, while they were written. To publish them as well, \
         set source.former_name = '{now}' (and source.table to the name that it has now); to leave \
         them out, advance the slot beyond them with pg_replication_slot_advance"
    )]
    Renamed {
        /// Schema and name of the outbox.
        table: String,
        /// Schema and name in the stream.
        now: String,
        /// `pg_class.oid` of both.
        oid: u32,
    },
    /// Types whose kind the stream does not tell. **Not a failure:** look them up with
    /// [`TYPE_KINDS_QUERY`], add them, and decode the same message again.
    #[error("types {oids:?} of table {table} must be looked up in pg_type")]
    UnknownTypes {
        /// Schema and name.
        table: String,
        /// Their oids, each once.
        oids: Vec<u32>,
    },
}

/// What becomes of the columns of one outbox relation.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// In the order of the wire.
    pub(crate) columns: Vec<PlannedColumn>,
    /// Length of `OutboxRow::extra`.
    pub(crate) extra_count: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct PlannedColumn {
    pub(crate) name: String,
    /// Meaningless where no role is filled.
    pub(crate) value_type: ValueType,
    /// Empty for an unmapped column: skipped.
    pub(crate) roles: Vec<Role>,
    /// Whether a moment that a message cannot carry counts as NULL.
    pub(crate) may_lack_moment: bool,
}

/// Another relation than the outbox.
#[derive(Debug, Clone)]
struct Other {
    name: String,
    /// The outbox's oid under a name that it should not have.
    is_renamed: bool,
    /// Whether a row of it came already.
    is_seen: bool,
}

/// Tables whose rows are left out, named in the log; more than so many would fill it.
const LEFT_OUT_NAMED_MAX: usize = 8;

/// A relation that was announced.
#[derive(Debug)]
pub(crate) enum Known<'a> {
    Outbox(&'a Plan),
    Other,
}

/// All relations that were announced on this connection.
#[derive(Debug, Clone)]
pub(crate) struct Relations {
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) columns: Columns,
    types: TypeKinds,
    /// What the stream itself said of types, which it says by the catalog of the rows' own time.
    announced: HashMap<u32, ValueType>,
    /// Whether all values come as text.
    expects_text: bool,
    /// Nearly always one; a table that was dropped and made again has a second id. A search of
    /// one entry is cheaper for each row than a hash.
    outboxes: Vec<(u32, Plan)>,
    /// Partitions of the outbox that come in their own names: where
    /// `publish_via_partition_root` was off while their rows were written.
    parts: HashMap<u32, Plan>,
    others: HashMap<u32, Other>,
    /// The name that the table had while rows that are still to come were written.
    former_name: Option<QualifiedName>,
    /// Every oid that the outbox was seen to have.
    oids: Vec<u32>,
    /// The partitions that the catalog tells.
    leaves: HashSet<u32>,
    /// Whether something came about which the catalog should be asked.
    has_news: bool,
    /// Tables whose first row was left out since this was last asked.
    left_out: Vec<String>,
    left_out_count: usize,
}

impl Relations {
    pub(crate) fn new(schema: String, table: String, columns: Columns) -> Self {
        Self {
            schema,
            table,
            columns,
            types: TypeKinds::default(),
            announced: HashMap::new(),
            expects_text: false,
            outboxes: Vec::new(),
            parts: HashMap::new(),
            others: HashMap::new(),
            former_name: None,
            oids: Vec::new(),
            leaves: HashSet::new(),
            has_news: false,
            left_out: Vec::new(),
            left_out_count: 0,
        }
    }

    pub(crate) fn expect_text(&mut self) {
        self.expects_text = true;
    }

    /// Whether the outbox is the only table that was announced.
    pub(crate) fn is_alone(&self) -> bool {
        self.others.is_empty() && !self.outboxes.is_empty()
    }

    pub(crate) fn set_former_name(&mut self, name: Option<QualifiedName>) {
        self.former_name = name;
    }

    /// What the catalog says now: the outbox's oid, and those of its partitions.
    pub(crate) fn set_catalog(&mut self, oid: u32, leaves: &[u32]) {
        if !self.oids.contains(&oid) {
            self.oids.push(oid);
        }
        self.leaves = leaves.iter().copied().collect();
    }

    /// Whether the catalog should be asked before rows that came are handed on.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Names of tables whose first row was left out since the last call.
    pub(crate) fn take_left_out(&mut self) -> Vec<String> {
        std::mem::take(&mut self.left_out)
    }

    /// Forgets what belongs to a connection: announcements, and kinds, since another server may
    /// give another meaning to an oid.
    pub(crate) fn clear(&mut self) {
        self.types = TypeKinds::default();
        self.announced.clear();
        self.expects_text = false;
        self.outboxes.clear();
        self.parts.clear();
        self.others.clear();
        self.has_news = false;
    }

    pub(crate) fn add_types(&mut self, types: TypeKinds) {
        self.types.extend(types);
    }

    /// Takes in what a type is: of a domain over a built-in type that is all there is to know.
    pub(crate) fn learn_type(&mut self, announced: TypeName<'_>) {
        if announced.schema.is_empty()
            && let Some(known) = ValueType::named(announced.name)
        {
            self.announced.insert(announced.oid, known);
        }
    }

    /// Takes in an announcement; a later one of the same id replaces it. On an error nothing
    /// has changed.
    pub(crate) fn learn(&mut self, relation: &Relation<'_>) -> Result<(), RelationError> {
        let id = relation.id;
        let is = |schema: &str, table: &str| relation.schema == schema && relation.name == table;
        let was_outbox = self.oids.contains(&id);
        let has_former_name =
            self.former_name.as_ref().is_some_and(|former| is(&former.schema, &former.name));
        if is(&self.schema, &self.table) || (was_outbox && has_former_name) {
            let plan = self.plan(&relation.columns)?;
            if !was_outbox {
                self.oids.push(id);
            }
            self.others.remove(&id);
            self.outboxes.retain(|(outbox, _)| *outbox != id);
            self.outboxes.push((id, plan));
            self.has_news = true;
            return Ok(());
        }
        // With `publish_via_partition_root` it is announced, and no row comes in its name.
        let part = match self.leaves.contains(&id) {
            true => Some(self.plan(&relation.columns)?),
            false => None,
        };
        // Also what was the outbox until it was renamed.
        self.outboxes.retain(|(outbox, _)| *outbox != id);
        match part {
            Some(plan) => {
                self.others.remove(&id);
                self.parts.insert(id, plan);
            }
            None => {
                self.parts.remove(&id);
                let name = QualifiedName {
                    schema: relation.schema.to_owned(),
                    name: relation.name.to_owned(),
                }
                .to_string();
                let is_seen = self.others.get(&id).is_some_and(|other| other.name == name);
                self.others.insert(id, Other { name, is_renamed: was_outbox, is_seen });
            }
        }
        self.has_news |= was_outbox;
        Ok(())
    }

    pub(crate) fn find(&self, id: u32) -> Option<Known<'_>> {
        for (outbox, plan) in &self.outboxes {
            if *outbox == id {
                return Some(Known::Outbox(plan));
            }
        }
        if let Some(plan) = self.parts.get(&id) {
            return Some(Known::Outbox(plan));
        }
        self.others.contains_key(&id).then_some(Known::Other)
    }

    /// Takes note of a row of another table, which is left out.
    ///
    /// # Errors
    /// It is the outbox under another name.
    pub(crate) fn leave_out(&mut self, id: u32) -> Result<(), RelationError> {
        let Some(other) = self.others.get_mut(&id).filter(|other| !other.is_seen) else {
            return Ok(());
        };
        if other.is_renamed {
            let now = other.name.clone();
            return Err(RelationError::Renamed { table: self.name(), now, oid: id });
        }
        other.is_seen = true;
        self.left_out_count += 1;
        if self.left_out_count <= LEFT_OUT_NAMED_MAX {
            self.left_out.push(other.name.clone());
        }
        // It may be a partition that is younger than the last look at the catalog.
        self.has_news |= !self.leaves.is_empty();
        Ok(())
    }

    /// Plans a table of these columns: also the check at start, with columns from the catalog.
    pub(crate) fn plan(&self, wire: &[RelationColumn<'_>]) -> Result<Plan, RelationError> {
        for column in self.columns.iter().filter(|column| column.required) {
            if !wire.iter().any(|present| present.name == column.name) {
                return Err(RelationError::MissingColumn {
                    table: self.name(),
                    column: column.name.clone(),
                    present: wire.iter().map(|column| column.name.to_owned()).collect(),
                });
            }
        }
        let may_lack_moment = self.columns.created_at_out_of_range() == OutOfRange::CommitTime;
        let mut unknown = Vec::new();
        let mut columns = Vec::with_capacity(wire.len());
        for column in wire {
            let mapped = self.columns.iter().filter(|mapped| mapped.name == column.name);
            let roles: Vec<Role> = mapped.map(|mapped| mapped.role).collect();
            let name = column.name.to_owned();
            let mut value_type = ValueType::Text;
            if !roles.is_empty() {
                match self.value_type(column, &roles)? {
                    Some(known) => value_type = known,
                    None if unknown.contains(&column.type_oid) => {}
                    None => unknown.push(column.type_oid),
                }
            }
            columns.push(PlannedColumn { name, value_type, roles, may_lack_moment });
        }
        if !unknown.is_empty() {
            return Err(RelationError::UnknownTypes { table: self.name(), oids: unknown });
        }
        Ok(Plan { columns, extra_count: self.extra_length() })
    }

    /// `None` for a type that must be looked up.
    fn value_type(
        &self,
        column: &RelationColumn<'_>,
        roles: &[Role],
    ) -> Result<Option<ValueType>, RelationError> {
        let oid = column.type_oid;
        let kind = self.types.kinds.get(&oid);
        let known = match (self.announced.get(&oid).copied().or(ValueType::of(oid)), kind) {
            (Some(known), _) => Ok(known),
            (None, Some(TypeKind::Known(known))) => Ok(*known),
            (None, Some(TypeKind::Unsupported(_) | TypeKind::Missing)) if self.expects_text => {
                Ok(ValueType::Text)
            }
            (None, Some(TypeKind::Unsupported(name))) => Err(name.clone()),
            (None, Some(TypeKind::Missing)) => {
                let (table, column) = (self.name(), column.name.to_owned());
                return Err(RelationError::DroppedType { table, column, type_oid: oid });
            }
            (None, None) => return Ok(None),
        };
        for role in roles {
            let type_name = match &known {
                Ok(known) if known.can_be(*role) => continue,
                Ok(known) => known.name().to_owned(),
                Err(name) => name.clone(),
            };
            let (table, column) = (self.name(), column.name.to_owned());
            return Err(RelationError::UnsupportedType { table, column, role: *role, type_name });
        }
        Ok(known.ok())
    }

    /// One more than the largest index: a role that was mapped away may leave a gap.
    fn extra_length(&self) -> usize {
        let mut length = 0;
        for column in self.columns.iter() {
            if let Role::Extra(index) = column.role {
                length = length.max(index + 1);
            }
        }
        length
    }

    fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }
}
