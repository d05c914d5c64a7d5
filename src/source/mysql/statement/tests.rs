use proptest::prelude::*;

use super::*;

const TABLE: Table<'static> = Table { schema: b"app", table: b"outbox" };

fn parse<'a>(text: &'a str, schema: &str) -> Statement<'a> {
    Statement::parse(text.as_bytes(), schema.as_bytes(), TABLE)
}

fn name(text: &str) -> Cow<'_, [u8]> {
    Cow::Borrowed(text.as_bytes())
}

#[test]
fn the_frame_of_a_transaction_is_told_apart() {
    for (text, statement) in [
        ("BEGIN", Statement::Begin),
        ("begin work;", Statement::Begin),
        ("START TRANSACTION WITH CONSISTENT SNAPSHOT", Statement::Begin),
        ("COMMIT", Statement::Commit),
        ("/* a */ Commit -- b", Statement::Commit),
        ("ROLLBACK", Statement::Rollback),
        ("rollback work", Statement::Rollback),
        ("SAVEPOINT `a``b`", Statement::Savepoint(Cow::Owned(b"a`b".to_vec()))),
        ("SAVEPOINT s1;", Statement::Savepoint(name("s1"))),
        ("ROLLBACK TO `first one`", Statement::RollbackTo(name("first one"))),
        ("ROLLBACK WORK TO SAVEPOINT s", Statement::RollbackTo(name("s"))),
        ("ROLLBACK TO savepoint", Statement::RollbackTo(name("savepoint"))),
        ("RELEASE SAVEPOINT `s`", Statement::Release(name("s"))),
        ("XA START X'61',X'',1", Statement::XaStart),
        ("xa begin 'a'", Statement::XaStart),
        ("XA END X'61',X'',1", Statement::XaEnd),
        ("XA PREPARE X'61',X'',1", Statement::XaPrepare),
        ("XA COMMIT X'61',X'',1", Statement::XaCommit(b" X'61',X'',1")),
        ("XA COMMIT X'61',X'',1 ONE PHASE", Statement::XaCommit(b" X'61',X'',1 ONE PHASE")),
        ("XA ROLLBACK X'61',X'',1", Statement::XaRollback(b" X'61',X'',1")),
        ("", Statement::Empty),
        ("# Dummy event replacing event type 160", Statement::Empty),
        ("/* nothing */ -- at all", Statement::Empty),
    ] {
        assert_eq!(parse(text, "app"), statement, "{text}");
    }
}

#[test]
fn what_only_begins_like_a_frame_is_none() {
    for text in [
        "BEGIN NOT ATOMIC SELECT 1; END",
        "COMMIT ALTER 5 ALTER TABLE outbox",
        "COMMIT AND CHAIN",
        "ROLLBACK ALTER 5",
        "COMMITTED",
        "SAVEPOINT",
        "SAVEPOINT a b",
        "XA",
        "XA RECOVER",
        "START REPLICA",
        "RELEASE LOCK",
        "CREATE TABLE outbox (id INT) START TRANSACTION",
        "ALTER TABLE app.outbox ADD COLUMN c INT",
        "TRUNCATE app.outbox",
        "SET @a = 1",
        "`COMMIT`",
        "(VALUES ROW(1))",
        "CREATE PROCEDURE p() INSERT INTO outbox VALUES (1)",
        "CREATE TABLE orders AS SELECT * FROM outbox",
        "CREATE TABLE outbox (id INT, CHECK (id > 0)) PARTITION BY HASH (id)",
        "CREATE TABLE outbox (id INT) PARTITION BY RANGE (id) (PARTITION p VALUES LESS THAN (1))",
        "ANALYZE TABLE outbox",
        "SET STATEMENT a = 1 FOR ANALYZE LOCAL TABLE outbox",
    ] {
        assert_eq!(parse(text, "app"), Statement::Other, "{text}");
    }
}

#[test]
fn a_text_that_changes_the_table_names_it() {
    for (text, schema) in [
        ("INSERT INTO outbox VALUES (1)", "app"),
        ("insert into OutBox(id)values(1)", "APP"),
        ("INSERT INTO `outbox` VALUES (1)", "app"),
        ("INSERT INTO \"outbox\" VALUES (1)", "app"),
        ("REPLACE app.outbox SET id = 1", "other"),
        ("INSERT INTO `app`.`outbox` VALUES (1)", ""),
        ("INSERT INTO app . outbox VALUES (1)", "other"),
        ("INSERT INTO app/* c */.outbox VALUES (1)", "other"),
        ("/*!50001 INSERT INTO outbox VALUES (1) */", "app"),
        ("/*M!100100 INSERT*/ INTO outbox VALUES (1)", "app"),
        ("INSERT /*! IGNORE */ INTO outbox VALUES ('it''s')", "app"),
        // MariaDB logs these with what is around the statement
        ("SET STATEMENT max_statement_time = 5, a = (1) FOR INSERT INTO outbox VALUES (1)", "app"),
        ("ANALYZE INSERT INTO outbox VALUES (1)", "app"),
        ("ANALYZE FORMAT=JSON REPLACE outbox VALUES (1)", "app"),
        ("INSERT LOW_PRIORITY IGNORE INTO outbox SET id = 1", "app"),
        ("CREATE TABLE outbox AS SELECT * FROM orders", "app"),
        ("CREATE OR REPLACE TABLE IF NOT EXISTS app.outbox (id INT) SELECT 1 AS id", "other"),
        ("CREATE TABLE outbox VALUES ROW(1)", "app"),
        ("SELECT `app`.`f`(id) FROM outbox", "app"),
        ("CALL p('a'); INSERT INTO outbox VALUES (1)", "app"),
        // by a word that is not known here
        ("UPSERT INTO outbox VALUES (1)", "app"),
        ("BEGIN NOT ATOMIC INSERT INTO outbox VALUES (1); END", "app"),
        ("(VALUES ROW(1)) INTO outbox", "app"),
        // code to some versions only
        ("INSERT INTO /*!99999 orders SELECT 1 FROM */ outbox VALUES (1)", "app"),
        ("LOAD DATA INFILE 'f' INTO TABLE `outbox` FIELDS TERMINATED BY ','", "app"),
        ("WITH o AS (SELECT 1) INSERT INTO outbox SELECT * FROM o", "app"),
        ("(SELECT f(id) FROM outbox)", "app"),
        ("-- a\n# b\n  INSERT INTO--c\noutbox VALUES (1)", "app"),
        ("INSERT INTO--c\noutbox VALUES (1)", "app"),
        // A backslash makes it doubtful where the string ends.
        ("LOAD DATA INFILE 'a\\' INTO TABLE x' INTO TABLE orders -- outbox", "app"),
    ] {
        assert_eq!(parse(text, schema), Statement::Dml { writes: true }, "{text}");
    }
}

#[test]
fn a_text_about_other_tables_does_not_name_it() {
    for (text, schema) in [
        ("INSERT INTO orders VALUES ('outbox')", "app"),
        ("REPLACE INTO checksums SELECT 'app', 'outbox', COUNT(*) FROM `app`.`outbox`", "app"),
        ("INSERT INTO orders SELECT * FROM outbox", "app"),
        ("INSERT INTO orders VALUES ('\\', 'outbox')", "app"),
        ("INSERT INTO orders VALUES ('\\''); -- outbox", "app"),
        ("UPDATE orders, outbox SET a = 1", "app"),
        ("DELETE outbox.* FROM outbox", "app"),
        ("SET STATEMENT a = 1 FOR UPDATE outbox SET id = 2", "app"),
        ("INSERT INTO orders VALUES ('it''s outbox')", "app"),
        ("INSERT INTO orders VALUES ('a\\\\', 'outbox')", "app"),
        ("INSERT INTO orders VALUES (1) /* outbox */ -- outbox", "app"),
        ("INSERT INTO orders VALUES (1) # outbox", "app"),
        ("INSERT INTO outbox VALUES (1)", "other"),
        ("INSERT INTO other.outbox VALUES (1)", "app"),
        ("INSERT INTO `other`.`outbox` VALUES (1)", "app"),
        ("INSERT INTO outbox_archive SELECT * FROM my_outbox", "app"),
        ("INSERT INTO outbox.orders VALUES (1)", "app"),
        ("INSERT INTO `out``box` VALUES (1)", "app"),
        ("UPDATE app.orders SET a = 1 - -outboxes", "app"),
        ("DO SLEEP(1)", "app"),
    ] {
        assert_eq!(parse(text, schema), Statement::Dml { writes: false }, "{text}");
    }
}

#[test]
fn a_statement_passes_by_its_beginning_only_where_that_says_all() {
    let passes = |head: &str| passes(head.as_bytes(), b"app", TABLE);
    for head in [
        "INSERT INTO blobs VALUES ('",
        "REPLACE app.blobs SELECT ",
        "UPDATE outbox SET a = '",
        "DELETE FROM outbox WHERE a IN ('",
        "INSERT INTO other.outbox VALUES ('",
    ] {
        assert!(passes(head), "{head}");
    }
    for head in [
        "INSERT INTO outbox VALUES ('",
        "INSERT INTO outb",
        "INSERT /*! IGNORE */ INTO blobs VALUES ('",
        "WITH a AS (SELECT 1) INSERT",
        "LOAD DATA INFILE 'f' INTO TABLE blobs ",
        "INSERT INTO bl\u{f6}bs VALUES ('",
    ] {
        assert!(!passes(head), "{head}");
    }
}

#[test]
fn a_name_that_is_not_ascii_is_named_where_it_might_be() {
    let table = Table { schema: b"app", table: "größe".as_bytes() };
    let parse = |text: &'static [u8]| Statement::parse(text, b"app", table);
    // the same name in latin1
    assert_eq!(parse(b"INSERT INTO gr\xF6\xDFe SELECT 1"), Statement::Dml { writes: true });
    assert_eq!(parse(b"INSERT INTO orders SELECT 1"), Statement::Dml { writes: false });
}

/// What opens, closes and separates.
const PIECES: &[&[u8]] = &[
    b"INSERT ",
    b"outbox",
    b"'",
    b"`",
    b"\"",
    b"\\",
    b"/*",
    b"/*!",
    b"*/",
    b"--",
    b"#",
    b"\n",
    b".",
    b"ROLLBACK TO ",
    b"SAVEPOINT ",
    b"XA ",
    b"\xFF",
    b" ",
];

proptest! {
    #[test]
    fn any_text_is_told_without_a_panic(text in proptest::collection::vec(
        proptest::sample::select(PIECES), 0..20))
    {
        let text = text.concat();
        let statement = Statement::parse(&text, b"app", TABLE);
        // A text that is code from its beginning is DML whatever follows.
        if text.starts_with(b"INSERT ") {
            let is_dml = matches!(statement, Statement::Dml { .. });
            prop_assert!(is_dml);
        }
    }
}
