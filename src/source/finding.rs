//! What was found of one precondition, and what a person does about it: the words that both
//! databases and `check` share. Asks and judges nothing itself.

use serde::Serialize;

use crate::outbox::Role;

/// How a precondition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It holds.
    Ok,
    /// It holds, but someone should look.
    Warn,
    /// It does not hold; walpost cannot work.
    Fail,
}

/// One precondition and how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which precondition: `wal_level`, `table`.
    pub name: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, one sentence.
    pub detail: String,
    /// What to do about it, SQL where SQL does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    /// A precondition that holds.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, standing: Standing::Ok, detail: detail.into(), fix: None }
    }

    /// A precondition that holds for now.
    pub fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let fix = Some(fix.into()).filter(|fix| !fix.is_empty());
        Self { name, standing: Standing::Warn, detail: detail.into(), fix }
    }

    /// A precondition that does not hold.
    pub fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, standing: Standing::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Where a person changes the mapping of a role.
pub(crate) fn column_key(role: Role) -> &'static str {
    match role {
        Role::Id => "outbox.columns.id",
        Role::AggregateType => "outbox.columns.aggregate_type",
        Role::AggregateId => "outbox.columns.aggregate_id",
        Role::EventType => "outbox.columns.type",
        Role::Payload => "outbox.columns.payload",
        Role::Headers => "outbox.columns.headers",
        Role::Topic => "outbox.columns.topic",
        Role::CreatedAt => "outbox.columns.created_at",
        Role::Extra(_) => "the topic template, outbox.extra_headers or outbox.partition",
    }
}

/// A number of bytes, for people.
pub(crate) fn size(count: i64) -> String {
    const UNITS: [(&str, i64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let tenths = count / (size / 10).max(1);
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count} bytes")
}
