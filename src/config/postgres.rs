//! `[source]` of a PostgreSQL database.

use std::path::PathBuf;
use std::time::Duration;

use super::{ConfigError, GIB, QualifiedName, Secret, Values};

/// Name of the table that remembers what was confirmed.
pub const MEMORY_TABLE: &str = "walpost_memory";

/// A PostgreSQL database and what is read of it.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// `postgres://…` with the password in it, where one was given.
    pub url: Secret,
    /// Replication slot: the lock of this source and the memory of its position.
    pub slot: String,
    /// Publication that holds the table.
    pub publication: String,
    /// The outbox table.
    pub table: QualifiedName,
    /// Local file that remembers what was acknowledged, too.
    pub memory_file: Option<PathBuf>,
    /// The position by which a person accepts that rows are at risk, once: no key of the
    /// configuration, where it would stay.
    pub accept_gap: Option<String>,
    /// How soon the database hears of what was confirmed.
    pub ack_interval: Duration,
    /// Largest row in bytes; a larger one is a definite error.
    pub row_bytes_max: usize,
    /// How long a connection is kept without any confirm while rows wait: the server cannot shut
    /// down while it waits for one.
    pub let_go_after: Duration,
    /// Another name that the table had while rows that are still to be read were written: those
    /// count as the outbox's too.
    pub former_name: Option<QualifiedName>,
    /// How the server sends values.
    pub format: ValueFormat,
}

/// How PostgreSQL sends the values of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ValueFormat {
    /// In the types' binary form: the quicker one. The source turns to text by itself where it
    /// must: for PostgreSQL 13, for a type without a binary form, for a type that was dropped.
    #[default]
    Binary,
    /// As the server prints them, which it can for any type.
    Text,
}

impl PostgresSettings {
    /// The table that remembers what was confirmed, beside the outbox.
    pub fn memory_table(&self) -> QualifiedName {
        QualifiedName { schema: self.table.schema.clone(), name: MEMORY_TABLE.to_owned() }
    }
}

impl Values {
    /// All but the URL.
    pub(super) fn postgres(&self) -> Result<PostgresSettings, ConfigError> {
        let table = self.required_text("source.table", "")?;
        Ok(PostgresSettings {
            url: Secret::new(""),
            slot: self.slot()?,
            publication: self.publication()?,
            table: QualifiedName::parse(&table)
                .map_err(|problem| self.refuse("source.table", problem))?,
            memory_file: self.memory_file()?,
            accept_gap: None,
            ack_interval: self.duration("source.ack_interval", Duration::from_millis(1))?,
            // PostgreSQL's own largest field is 1 GB.
            row_bytes_max: self.size("source.row_bytes_max", 1024..=GIB)?,
            let_go_after: self.duration("source.let_go_after", Duration::from_secs(1))?,
            former_name: self
                .text("source.former_name")?
                .map(|name| QualifiedName::parse(&name))
                .transpose()
                .map_err(|problem| self.refuse("source.former_name", problem))?,
            format: match self.required_text("source.format", "")?.as_str() {
                "binary" => ValueFormat::Binary,
                "text" => ValueFormat::Text,
                _ => return Err(self.refuse("source.format", "must be binary or text")),
            },
        })
    }

    fn slot(&self) -> Result<String, ConfigError> {
        let slot = self.required_text("source.slot", "")?;
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let rule = "a slot's name is 1 to 63 of the characters a-z, 0-9 and _";
        match slot.chars().find(|character| !u8::try_from(*character).is_ok_and(allowed)) {
            Some(wrong) => {
                Err(self.refuse("source.slot", format!("{rule}; \"{slot}\" has '{wrong}'")))
            }
            None if slot.len() > 63 => {
                Err(self.refuse("source.slot", format!("{rule}; this one has {}", slot.len())))
            }
            None => Ok(slot),
        }
    }

    fn publication(&self) -> Result<String, ConfigError> {
        let publication = self.required_text("source.publication", "")?;
        if publication.len() > 63 {
            let problem = "a publication's name is at most 63 bytes";
            return Err(self.refuse("source.publication", problem));
        }
        Ok(publication)
    }
}
