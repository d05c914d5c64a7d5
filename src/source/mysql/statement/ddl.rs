//! What a DDL statement does to tables by name: it renames them, brings rows, makes them.
//!
//! Owns the few forms in which a table changes its name or gets rows that no row event tells of,
//! and nothing else of DDL. Both servers log such a statement as the client wrote it, in row
//! format too, with the schema that unqualified names belong to.
//!
//! ```text
//! RENAME {TABLE | TABLES} [IF EXISTS] name [WAIT n | NOWAIT] TO name, …
//! ALTER [ONLINE] [OFFLINE] [IGNORE] TABLE [IF EXISTS] name [WAIT n | NOWAIT] …,
//!   RENAME [TO | AS | =] name | EXCHANGE PARTITION p WITH TABLE name
//!   | CONVERT TABLE name TO PARTITION … | IMPORT TABLESPACE | ADD SYSTEM VERSIONING, …
//! CREATE [OR REPLACE] TABLE [IF NOT EXISTS] name … [WITH SYSTEM VERSIONING] [SELECT …]
//! DROP {TABLE | TABLES} [IF EXISTS] name, …
//! ```
//!
//! Temporary tables are never logged as rows: what makes one is nothing to us.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use super::words::{Word, Words};
use super::{Table, contains};

/// A table's name in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    schema: Vec<u8>,
    table: Vec<u8>,
}

/// What happens to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Renamed {
        from: Name,
        to: Name,
    },
    /// It gets rows of which no row event tells.
    Filled(Name),
    Created(Name),
    Dropped(Name),
    /// Its definition changed.
    Altered(Name),
}

/// Why a statement says nothing for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unclear;

impl Name {
    /// `[schema .] table`
    pub(super) fn read(words: &mut Words<'_>, schema: &[u8]) -> Option<Self> {
        let first = words.identifier()?;
        if !words.symbol(b'.') {
            return Some(Self { schema: schema.to_vec(), table: first.into_owned() });
        }
        let table = words.identifier()?.into_owned();
        Some(Self { schema: first.into_owned(), table })
    }

    pub(super) fn is_ascii(&self) -> bool {
        self.schema.is_ascii() && self.table.is_ascii()
    }

    /// Without regard to case: whether a server regards it is a setting of its own.
    pub(crate) fn is(&self, table: Table<'_>) -> bool {
        self.schema.eq_ignore_ascii_case(table.schema)
            && self.table.eq_ignore_ascii_case(table.table)
    }

    /// Schema and table; `None` where the bytes are not UTF-8, in which row events tell them.
    pub(crate) fn texts(&self) -> Option<(&str, &str)> {
        Some((str::from_utf8(&self.schema).ok()?, str::from_utf8(&self.table).ok()?))
    }
}

/// What `text` does to tables, in the order in which it does so. Nothing for what is not one of
/// the statements above.
///
/// # Errors
/// It is one of them and cannot be read further, and `table` may be in it.
pub(crate) fn changes(
    text: &[u8],
    schema: &[u8],
    table: Table<'_>,
) -> Result<Vec<Change>, Unclear> {
    let mut words = Words::new(text);
    let mut changes = Vec::new();
    let read = statement(&mut words, schema, &mut changes);
    let is_text = table.is_ascii() || str::from_utf8(text).is_ok();
    let is_clear = read.is_some() && !words.is_conditional() && is_text;
    // Dumps are full of comments that are code; what they make is read as well as it can be.
    if !is_clear && contains(text, b"RENAME") && contains(text, table.table) {
        return Err(Unclear);
    }
    Ok(changes)
}

fn statement(words: &mut Words<'_>, schema: &[u8], changes: &mut Vec<Change>) -> Option<()> {
    if words.keyword("SET") {
        return match words.keyword("STATEMENT").then(|| super::set_statement(words)).flatten() {
            Some(_) => statement(words, schema, changes),
            None => Some(()),
        };
    }
    if words.keyword("RENAME") {
        if !words.keyword("TABLE") && !words.keyword("TABLES") {
            return Some(());
        }
        return renames(words, schema, changes);
    }
    if words.keyword("ALTER") {
        while ["ONLINE", "OFFLINE", "IGNORE"].into_iter().any(|word| words.keyword(word)) {}
        return match words.keyword("TABLE") {
            true => alters(words, schema, changes),
            false => Some(()),
        };
    }
    if words.keyword("CREATE") {
        if let Some(name) = created(words, schema) {
            changes.push(Change::Created(name?));
        }
        return Some(());
    }
    if words.keyword("DROP") && (words.keyword("TABLE") || words.keyword("TABLES")) {
        if_exists(words);
        loop {
            changes.push(Change::Dropped(Name::read(words, schema)?));
            if !words.symbol(b',') {
                break;
            }
        }
    }
    Some(())
}

fn renames(words: &mut Words<'_>, schema: &[u8], changes: &mut Vec<Change>) -> Option<()> {
    loop {
        if_exists(words);
        let from = Name::read(words, schema)?;
        wait(words);
        if !words.keyword("TO") {
            return None;
        }
        let to = Name::read(words, schema)?;
        changes.push(Change::Renamed { from, to });
        if !words.symbol(b',') {
            return words.end(&[]).then_some(());
        }
    }
}

/// The name is read; then every word of the rest that is not within parentheses.
fn alters(words: &mut Words<'_>, schema: &[u8], changes: &mut Vec<Change>) -> Option<()> {
    if_exists(words);
    let name = Name::read(words, schema)?;
    wait(words);
    changes.push(Change::Altered(name.clone()));
    let mut renamed = None;
    let mut depth = 0_u32;
    while let Some(word) = words.next() {
        match word {
            Word::Symbol(b'(') => depth += 1,
            Word::Symbol(b')') => depth = depth.saturating_sub(1),
            Word::Bare(word) if depth == 0 => {
                let is = |keyword: &str| word.eq_ignore_ascii_case(keyword.as_bytes());
                if is("RENAME") {
                    if ["COLUMN", "INDEX", "KEY"].into_iter().any(|word| words.keyword(word)) {
                        continue;
                    }
                    if !words.keyword("TO") && !words.keyword("AS") {
                        words.symbol(b'=');
                    }
                    renamed = Some(Name::read(words, schema)?);
                } else if is("EXCHANGE") && words.keyword("PARTITION") {
                    words.identifier()?;
                    if words.keyword("WITH") && words.keyword("TABLE") {
                        changes.push(Change::Filled(name.clone()));
                        changes.push(Change::Filled(Name::read(words, schema)?));
                    }
                } else if is("CONVERT") && words.keyword("TABLE") || is("IMPORT") {
                    changes.push(Change::Filled(name.clone()));
                }
            }
            _ => {}
        }
    }
    if let Some(to) = renamed {
        changes.push(Change::Renamed { from: name, to });
    }
    Some(())
}

/// The table that `CREATE …` makes: `None` where it makes something else, or a temporary one;
/// `Some(None)` where its name cannot be read.
fn created(words: &mut Words<'_>, schema: &[u8]) -> Option<Option<Name>> {
    if words.keyword("OR") {
        words.keyword("REPLACE");
    }
    if !words.keyword("TABLE") {
        return None;
    }
    if words.keyword("IF") {
        words.keyword("NOT");
        words.keyword("EXISTS");
    }
    Some(Name::read(words, schema))
}

/// Whether the text is CREATE TABLE of this table with rows in it, which in row format comes as
/// rows instead.
pub(super) fn fills(text: &[u8], schema: &[u8], table: Table<'_>) -> bool {
    let mut words = Words::new(text);
    if !words.keyword("CREATE") {
        return false;
    }
    let Some(name) = created(&mut words, schema) else { return false };
    let is_clear = name.as_ref().is_some_and(Name::is_ascii) && table.is_ascii();
    let is_ours = match name {
        Some(name) if is_clear => name.is(table),
        _ => contains(text, table.table),
    };
    let mut depth = 0_u32;
    is_ours
        && words.any(|word| {
            match word {
                Word::Symbol(b'(') => depth += 1,
                Word::Symbol(b')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            let Word::Bare(word) = word else { return false };
            let is = |keyword: &str| word.eq_ignore_ascii_case(keyword.as_bytes());
            is("SELECT") || depth == 0 && (is("VALUES") || is("TABLE"))
        })
}

fn if_exists(words: &mut Words<'_>) {
    let mut ahead = words.clone();
    if ahead.keyword("IF") && ahead.keyword("EXISTS") {
        *words = ahead;
    }
}

/// `WAIT n` or `NOWAIT`, which MariaDB allows behind a name.
fn wait(words: &mut Words<'_>) {
    if !words.keyword("NOWAIT") && words.keyword("WAIT") {
        words.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table<'static> = Table { schema: b"app", table: b"outbox" };

    fn name(schema: &str, table: &str) -> Name {
        Name { schema: schema.into(), table: table.into() }
    }

    /// Renames as `schema.table>schema.table`.
    fn renamed(text: &str) -> Vec<String> {
        let show = |name: &Name| {
            let (schema, table) = name.texts().unwrap();
            format!("{schema}.{table}")
        };
        let changes = changes(text.as_bytes(), b"app", TABLE).unwrap();
        let renames = changes.iter().filter_map(|change| match change {
            Change::Renamed { from, to } => Some(format!("{}>{}", show(from), show(to))),
            _ => None,
        });
        renames.collect()
    }

    #[test]
    fn a_rename_is_read_in_every_form_that_servers_log() {
        for (text, expected) in [
            ("RENAME TABLE outbox TO old", &["app.outbox>app.old"][..]),
            ("/* hi */ rename table outbox /* c */ to `arc`.`o``x`", &["app.outbox>arc.o`x"]),
            (
                "RENAME TABLES outbox TO old, app . fresh TO outbox;",
                &["app.outbox>app.old", "app.fresh>app.outbox"],
            ),
            ("-- c\n RENAME TABLE IF EXISTS outbox WAIT 5 TO x", &["app.outbox>app.x"]),
            ("RENAME TABLE \"outbox\" NOWAIT TO \"x\"", &["app.outbox>app.x"]),
            ("ALTER TABLE outbox RENAME x", &["app.outbox>app.x"]),
            ("ALTER TABLE outbox RENAME TO b.x", &["app.outbox>b.x"]),
            ("ALTER TABLE outbox RENAME = x", &["app.outbox>app.x"]),
            ("ALTER IGNORE TABLE IF EXISTS other.outbox RENAME AS x", &["other.outbox>app.x"]),
            (
                "ALTER TABLE outbox ADD COLUMN c INT DEFAULT (1) COMMENT 'RENAME TO y', RENAME x, \
                 ALGORITHM = INPLACE",
                &["app.outbox>app.x"],
            ),
            (
                "SET STATEMENT lock_wait_timeout = 5 FOR ALTER TABLE outbox RENAME x",
                &["app.outbox>app.x"],
            ),
            (
                "ALTER TABLE outbox RENAME COLUMN a TO b, RENAME INDEX c TO d, RENAME KEY e TO f",
                &[],
            ),
            ("ALTER TABLE outbox ADD COLUMN `rename` INT", &[]),
            ("ALTER DATABASE app CHARACTER SET utf8mb4", &[]),
            ("RENAME USER outbox TO x", &[]),
            ("CREATE TABLE outbox (id INT)", &[]),
            ("INSERT INTO outbox VALUES ('RENAME TABLE outbox TO x')", &[]),
        ] {
            assert_eq!(renamed(text), expected, "{text}");
        }
    }

    #[test]
    fn a_rename_that_cannot_be_read_is_unclear_only_where_the_table_may_be_in_it() {
        for text in ["RENAME TABLE outbox INTO x", "RENAME TABLE a.b.outbox TO x"] {
            assert_eq!(changes(text.as_bytes(), b"app", TABLE), Err(Unclear), "{text}");
        }
        let text = b"/*!99999 RENAME TABLE x TO */ /*! RENAME TABLE outbox TO y */";
        assert_eq!(changes(text, b"app", TABLE), Err(Unclear));
        assert_eq!(changes(b"RENAME TABLE orders INTO x", b"app", TABLE), Ok(vec![]));
    }

    #[test]
    fn rows_that_no_row_event_tells_of_are_seen() {
        let filled = |text: &str| {
            let changes = changes(text.as_bytes(), b"app", TABLE).unwrap();
            changes.contains(&Change::Filled(name("app", "outbox")))
        };
        assert!(filled("ALTER TABLE outbox EXCHANGE PARTITION p0 WITH TABLE other"));
        assert!(filled("ALTER TABLE other EXCHANGE PARTITION p0 WITH TABLE app.outbox"));
        assert!(filled(
            "ALTER TABLE outbox CONVERT TABLE other TO PARTITION p VALUES LESS THAN (1)"
        ));
        assert!(filled("ALTER TABLE outbox IMPORT TABLESPACE"));
        assert!(!filled("ALTER TABLE outbox DROP PARTITION p0"));
        assert!(!filled("ALTER TABLE outbox CONVERT TO CHARACTER SET utf8mb4"));
    }

    #[test]
    fn tables_that_are_made_and_dropped_are_named() {
        let read = |text: &str| changes(text.as_bytes(), b"app", TABLE).unwrap();
        let outbox = name("app", "outbox");
        for text in
            ["CREATE TABLE outbox (id INT)", "create or replace table if not exists outbox LIKE x"]
        {
            assert_eq!(read(text), [Change::Created(outbox.clone())], "{text}");
        }
        assert_eq!(read("CREATE TEMPORARY TABLE outbox (id INT)"), []);
        assert_eq!(read("CREATE VIEW outbox AS SELECT 1"), []);
        let dropped = [Change::Dropped(name("app", "a")), Change::Dropped(outbox)];
        assert_eq!(read("DROP TABLE IF EXISTS `a`,`outbox` /* generated by server */"), dropped);
    }
}
