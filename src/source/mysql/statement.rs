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
//! 3. INSERT and REPLACE write to the table that follows them, UPDATE and DELETE put no row into
//!    any. CREATE TABLE … SELECT writes to the table that it makes. `SET STATEMENT … FOR` and
//!    ANALYZE (MariaDB) are what follows them.
//! 4. DDL, SET, FLUSH, GRANT and their like change no rows. Of everything else (LOAD, WITH,
//!    SELECT, DO, CALL, what is not known here) a text that names the table may write to it.
//! 5. It names a table where the table's name is an identifier in it, bare, in backticks or in
//!    double quotes (which are strings unless ANSI_QUOTES is set), in any case, that belongs to
//!    the table's schema: by the name before its dot, else by the schema of the event.
//! 6. Where strings cannot be told from code for certain (a backslash before a quote, which
//!    NO_BACKSLASH_ESCAPES gives another meaning; a name that is not ASCII, whose bytes depend on
//!    the session) it names the table where the name's bytes are anywhere in it. Where a comment
//!    may be code or not, by the server's version, rule 3 gives way to rule 5.
//!
//! So the rules err on the side of writing: that stops the relay, the other loses rows. What they
//! cannot see is a trigger, a view or a function that writes to the table.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

pub(crate) mod ddl;
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
    /// With what names the transaction, as the server writes it.
    XaCommit(&'a [u8]),
    XaRollback(&'a [u8]),
    /// Rows were changed and logged as this text.
    Dml {
        /// Whether it may have put rows into the table that was asked about.
        writes: bool,
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

impl Table<'_> {
    fn is_ascii(self) -> bool {
        self.schema.is_ascii() && self.table.is_ascii()
    }
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
        let inner = if is("SET") && words.keyword("STATEMENT") {
            set_statement(&mut words)
        } else if is("ANALYZE") {
            analyzed(&mut words)
        } else {
            None
        };
        if let Some(inner) = inner {
            return Self::parse(inner, schema, table);
        }
        if is("INSERT") || is("REPLACE") {
            return Statement::Dml { writes: inserts(words, schema, table) };
        }
        if is("UPDATE") || is("DELETE") {
            return Statement::Dml { writes: false };
        }
        if ["LOAD", "WITH", "SELECT", "DO", "CALL"].into_iter().any(is) {
            return Statement::Dml { writes: names(text, schema, table) };
        }
        if is("CREATE") && ddl::fills(text, schema, table) {
            return Statement::Dml { writes: true };
        }
        let frame = if is("BEGIN") {
            words.clone().end(&["WORK"]).then_some(Statement::Begin)
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
        frame.unwrap_or_else(|| match HARMLESS.into_iter().any(is) {
            true => Statement::Other,
            false => Self::unknown(text, schema, table),
        })
    }

    /// A kind of statement that is not known here.
    fn unknown(text: &[u8], schema: &[u8], table: Table<'_>) -> Self {
        match names(text, schema, table) {
            true => Statement::Dml { writes: true },
            false => Statement::Other,
        }
    }

    /// `(SELECT …)` and the like.
    fn parenthesised(mut words: Words<'a>, schema: &[u8], table: Table<'_>) -> Self {
        let text = words.text();
        let inner = words.find(|word| !matches!(word, Word::Symbol(b'(')));
        match inner {
            Some(Word::Bare(keyword)) if keyword.eq_ignore_ascii_case(b"SELECT") => {
                Statement::Dml { writes: names(text, schema, table) }
            }
            _ => Self::unknown(text, schema, table),
        }
    }
}

/// Beginnings of statements that change no rows, whatever they name. Routines, triggers and events
/// are made with text of other statements in them.
const HARMLESS: [&str; 33] = [
    "ALTER",
    "CREATE",
    "DROP",
    "RENAME",
    "TRUNCATE",
    "SET",
    "FLUSH",
    "GRANT",
    "REVOKE",
    "ANALYZE",
    "OPTIMIZE",
    "REPAIR",
    "CHECK",
    "CHECKSUM",
    "CACHE",
    "INSTALL",
    "UNINSTALL",
    "RESET",
    "PURGE",
    "CHANGE",
    "START",
    "STOP",
    "LOCK",
    "UNLOCK",
    "USE",
    "KILL",
    "RELEASE",
    "SAVEPOINT",
    "COMMIT",
    "ROLLBACK",
    "XA",
    "SHUTDOWN",
    "SIGNAL",
];

/// What follows `SET STATEMENT name = value, … FOR`.
fn set_statement<'a>(words: &mut Words<'a>) -> Option<&'a [u8]> {
    let mut depth = 0_u32;
    while let Some(word) = words.next() {
        match word {
            Word::Symbol(b'(') => depth += 1,
            Word::Symbol(b')') => depth = depth.saturating_sub(1),
            Word::Bare(word) if depth == 0 && word.eq_ignore_ascii_case(b"FOR") => {
                return Some(words.rest());
            }
            _ => {}
        }
    }
    None
}

/// What follows `ANALYZE [FORMAT = JSON]`, unless that is the statistics of a table.
fn analyzed<'a>(words: &mut Words<'a>) -> Option<&'a [u8]> {
    if words.keyword("FORMAT") {
        words.symbol(b'=');
        words.next();
    }
    let rest = words.rest();
    ["TABLE", "TABLES", "LOCAL", "NO_WRITE_TO_BINLOG"]
        .into_iter()
        .all(|other| !words.keyword(other))
        .then_some(rest)
}

/// Whether a statement that begins so puts no row into the table, whatever comes behind: UPDATE and
/// DELETE, INSERT and REPLACE into another one.
pub(crate) fn passes(head: &[u8], schema: &[u8], table: Table<'_>) -> bool {
    let mut words = Words::new(head);
    if words.keyword("UPDATE") || words.keyword("DELETE") {
        return true;
    }
    if !words.keyword("INSERT") && !words.keyword("REPLACE") {
        return false;
    }
    // A name that is not all there would be taken for another one; what is behind it is not.
    target(&mut words, schema, table).is_some_and(|name| !name.is(table)) && words.next().is_some()
}

/// The table behind `INSERT … [INTO]`, where it can be told for certain.
fn target(words: &mut Words<'_>, schema: &[u8], table: Table<'_>) -> Option<ddl::Name> {
    let modifiers = ["LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "IGNORE"];
    while modifiers.into_iter().any(|modifier| words.keyword(modifier)) {}
    words.keyword("INTO");
    let target = ddl::Name::read(words, schema)?;
    let is_clear = !words.is_doubtful() && !words.is_conditional();
    (is_clear && target.is_ascii() && table.is_ascii()).then_some(target)
}

/// Whether `INSERT … [INTO] table` or REPLACE is about this table.
fn inserts(mut words: Words<'_>, schema: &[u8], table: Table<'_>) -> bool {
    let text = words.text();
    match target(&mut words, schema, table) {
        Some(target) => target.is(table),
        None => names(text, schema, table),
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
        () if is("COMMIT") => Some(Statement::XaCommit(words.rest())),
        () if is("ROLLBACK") => Some(Statement::XaRollback(words.rest())),
        () => None,
    }
}

/// Rules 5 and 6.
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
