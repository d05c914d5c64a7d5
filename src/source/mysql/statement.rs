//! What the text of a query in the binlog is, told without a parser of SQL.
//!
//! Owns the rules below; knows no transaction. In row format a text is only the frame of a
//! transaction or a DDL statement. Anything else was logged as a statement, and its rows will
//! not come.
//!
//! 1. Blanks and comments (`/* */`, `-- `, `#`) separate words and are nothing else, except that
//!    the inside of `/*! */` and `/*M! */` is code.
//! 2. Keywords are compared without regard to case, by whole words from the beginning.
//!    `COMMIT`, `ROLLBACK` and `BEGIN` must be all of the text, but for `WORK` and `;`.
//! 3. A text that begins with INSERT, REPLACE, UPDATE, DELETE, LOAD, WITH, SELECT, DO or CALL
//!    changes rows. Everything else (DDL, SET, FLUSH, GRANT, …) does not.
//! 4. It names a table where the table's name is an identifier in it, bare, in backticks or in
//!    double quotes (which are strings unless ANSI_QUOTES is set), in any case, that belongs to
//!    the table's schema: by the name before its dot, else by the schema of the event. Whether it
//!    writes to it or only reads is not told apart.
//! 5. Where strings cannot be told from code for certain (a backslash before a quote, which
//!    NO_BACKSLASH_ESCAPES gives another meaning; a name that is not ASCII, whose bytes depend on
//!    the session) it names the table where the name's bytes are anywhere in it.
//!
//! So the rules err on the side of naming: that stops the relay, the other loses rows. What they
//! cannot see is a trigger, a view or a function that writes to the table.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod words;

use std::borrow::Cow;

use words::{Word, Words};

/// What a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement<'a> {
    /// Only comments. MariaDB puts `# Dummy event …` in place of what a reader cannot take.
    Empty,
    Begin,
    Commit,
    Rollback,
    Savepoint(Cow<'a, [u8]>),
    RollbackTo(Cow<'a, [u8]>),
    Release(Cow<'a, [u8]>),
    XaStart,
    XaEnd,
    XaPrepare,
    XaCommit,
    XaRollback,
    /// Rows were changed and logged as this text.
    Dml {
        /// Whether the text names the table that was asked about.
        names_table: bool,
    },
    /// DDL and all that changes no rows of a table.
    Other,
}

/// The table that is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table<'a> {
    pub(crate) schema: &'a [u8],
    pub(crate) table: &'a [u8],
}

impl<'a> Statement<'a> {
    /// Tells what `text` is; `schema` is that of the event, for names without one.
    pub(crate) fn parse(text: &'a [u8], schema: &[u8], table: Table<'_>) -> Self {
        // Every transaction of MySQL begins with it.
        if text == b"BEGIN" {
            return Statement::Begin;
        }
        let mut words = Words::new(text);
        let Some(first) = words.next() else { return Statement::Empty };
        let Word::Bare(keyword) = first else { return Self::parenthesised(words, schema, table) };
        let is = |name: &str| keyword.eq_ignore_ascii_case(name.as_bytes());
        if ["INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "WITH", "SELECT", "DO", "CALL"]
            .into_iter()
            .any(is)
        {
            return Statement::Dml { names_table: names(text, schema, table) };
        }
        let frame = if is("BEGIN") {
            words.end(&["WORK"]).then_some(Statement::Begin)
        } else if is("START") {
            words.keyword("TRANSACTION").then_some(Statement::Begin)
        } else if is("COMMIT") {
            words.end(&["WORK"]).then_some(Statement::Commit)
        } else if is("ROLLBACK") {
            rollback(words)
        } else if is("SAVEPOINT") {
            words.name().map(Statement::Savepoint)
        } else if is("RELEASE") && words.keyword("SAVEPOINT") {
            words.name().map(Statement::Release)
        } else if is("XA") {
            xa(words)
        } else {
            None
        };
        frame.unwrap_or(Statement::Other)
    }

    /// `(SELECT …)` and the like.
    fn parenthesised(mut words: Words<'a>, schema: &[u8], table: Table<'_>) -> Self {
        let text = words.text();
        let inner = words.find(|word| !matches!(word, Word::Symbol(b'(')));
        match inner {
            Some(Word::Bare(keyword)) if keyword.eq_ignore_ascii_case(b"SELECT") => {
                Statement::Dml { names_table: names(text, schema, table) }
            }
            _ => Statement::Other,
        }
    }
}

/// `ROLLBACK [WORK] [TO [SAVEPOINT] name]`
fn rollback(mut words: Words<'_>) -> Option<Statement<'_>> {
    let whole = words.clone();
    words.keyword("WORK");
    if words.keyword("TO") {
        // SAVEPOINT may be the name itself.
        let plain = words.clone();
        if words.keyword("SAVEPOINT")
            && let Some(name) = words.name()
        {
            return Some(Statement::RollbackTo(name));
        }
        words = plain;
        return words.name().map(Statement::RollbackTo);
    }
    let mut whole = whole;
    whole.end(&["WORK"]).then_some(Statement::Rollback)
}

fn xa(mut words: Words<'_>) -> Option<Statement<'_>> {
    let Some(Word::Bare(verb)) = words.next() else { return None };
    let is = |name: &str| verb.eq_ignore_ascii_case(name.as_bytes());
    match () {
        () if is("START") || is("BEGIN") => Some(Statement::XaStart),
        () if is("END") => Some(Statement::XaEnd),
        () if is("PREPARE") => Some(Statement::XaPrepare),
        () if is("COMMIT") => Some(Statement::XaCommit),
        () if is("ROLLBACK") => Some(Statement::XaRollback),
        () => None,
    }
}

/// Rules 4 and 5.
fn names(text: &[u8], schema: &[u8], table: Table<'_>) -> bool {
    let mut words = Words::new(text);
    // The two words before: a name, and the dot behind it.
    let mut before: [Option<Word<'_>>; 2] = [None, None];
    while let Some(word) = words.next() {
        if word.is_name(table.table) && !words.clone().symbol(b'.') {
            let is_ours = match &before {
                [Some(owner), Some(Word::Symbol(b'.'))] => owner.is_name(table.schema),
                _ => schema.eq_ignore_ascii_case(table.schema),
            };
            if is_ours {
                return true;
            }
        }
        let [_, last] = before;
        before = [last, Some(word)];
    }
    let doubtful = words.is_doubtful() || !table.table.is_ascii() || !table.schema.is_ascii();
    doubtful && contains(text, table.table)
}

fn contains(text: &[u8], name: &[u8]) -> bool {
    // In another character set a name that is not ASCII has other bytes.
    if !name.is_ascii() && !text.is_ascii() {
        return true;
    }
    text.windows(name.len().max(1)).any(|window| window.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests;
