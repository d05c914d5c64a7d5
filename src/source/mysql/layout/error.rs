//! What can be wrong with a table or with its rows, and what a person should do about it.

use crate::outbox::Role;
use crate::source::finding::column_key;
use crate::source::mysql::cursor::MalformedError;
use crate::source::mysql::value::ValueError;

/// A table that does not fit the mapping. Does not heal: the same table comes again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The server logs too little about its tables.
    #[error(
        "rows of table {table} were logged without column names; SET GLOBAL \
         binlog_row_metadata = FULL (and in the server's configuration file), then begin after \
         the rows that were logged before"
    )]
    NoNames {
        /// Schema and name.
        table: String,
    },
    /// A required column is not there.
    #[error(
        "table {table} has no column {column:?}; it has {}. Add the column, or map another one",
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
    /// A mapped column's type has no text form that we know, or none for its role.
    #[error(
        "column {column:?} of table {table} is of type {type_name}, which cannot be used as {}; map \
         another column",
        column_key(*.role)
    )]
    UnsupportedType {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// What it is mapped to.
        role: Role,
        /// The type in SQL.
        type_name: &'static str,
    },
    /// A mapped text column is in a character set that is not converted.
    #[error(
        "column {column:?} of table {table} has the character set {charset} (collation number \
         {collation}), which is not converted to UTF-8; map another column, or let the owner of \
         the table change this one to utf8mb4"
    )]
    Charset {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// Its name, or "unknown".
        charset: &'static str,
        /// The collation's number on the server.
        collation: u32,
    },
    /// The event does not say what is needed to read a mapped column.
    #[error(
        "the log does not say {what} of column {column:?} of table {table}; is \
         binlog_row_metadata FULL?"
    )]
    Untold {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// What is missing.
        what: &'static str,
    },
    /// MariaDB's types before 5.6: the log does not tell how long their values are.
    #[error(
        "column {column:?} of table {table} is a {type_name} of the old format, whose length the \
         log does not tell; ALTER TABLE {table} FORCE converts it (with mysql56_temporal_format=ON)"
    )]
    OldTemporal {
        /// Schema and name.
        table: String,
        /// The column, mapped or not.
        column: String,
        /// The type in SQL.
        type_name: &'static str,
    },
    /// The lists of the event do not fit together.
    #[error("table {table}: {source}")]
    Malformed {
        /// Schema and name.
        table: String,
        /// What made no sense.
        source: MalformedError,
    },
}

/// A row that cannot be told. Does not heal: the same row comes again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The event's bytes are not rows of the table.
    #[error("rows of table {table}: {source}")]
    Malformed {
        /// Schema and name.
        table: String,
        /// What made no sense.
        source: MalformedError,
    },
    /// The event has another number of columns than the table had.
    #[error("rows of table {table} have {found} columns, but the table was logged with {expected}")]
    ColumnCount {
        /// Schema and name.
        table: String,
        /// Of TABLE_MAP.
        expected: usize,
        /// Of the rows event.
        found: usize,
    },
    /// A mapped column was not logged.
    #[error(
        "rows of table {table} were logged without column {column:?}; SET GLOBAL \
         binlog_row_image = FULL (and in the server's configuration file), and let no session \
         set another; then begin after these rows"
    )]
    NotInImage {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
    },
    /// A value that has no exact text.
    #[error("column {column:?} of table {table}: {source}")]
    Value {
        /// Schema and name.
        table: String,
        /// The column.
        column: String,
        /// Why.
        source: ValueError,
    },
}
