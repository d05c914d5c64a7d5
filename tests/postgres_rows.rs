//! Rows of PostgreSQL that not every reader can take: without a binary form, of types that are
//! gone, in other encodings, too large, or of other tables.

use crate::support::postgres::{Client, Postgres};
use crate::support::process::eventually;
use crate::support::relay::Relay;
use crate::support::slot::{create_outbox, create_publication_and_slot, end_of_log, wait_drained};
use crate::support::stage::{PATIENCE, quick_relay};

/// A database with an outbox, a publication and a slot, all of one name.
struct Source {
    name: String,
    client: Client,
    url: String,
}

fn source(prefix: &str, table: &str) -> Source {
    let server = Postgres::shared();
    let name = server.fresh_database(prefix);
    let client = server.client_for(&name);
    client.run(table);
    create_publication_and_slot(&client, "outbox", &name, &name);
    let url = server.url_for(&name);
    Source { name, client, url }
}

const COLUMNS: &str = "id uuid PRIMARY KEY, aggregatetype text NOT NULL, \
                       aggregateid text NOT NULL, payload jsonb";

impl Source {
    /// Prints what it publishes; not started.
    fn relay(&self) -> Relay {
        quick_relay(&self.url, "stdout://", &self.name)
    }

    fn await_drained(&self, relay: &Relay) {
        let drained = wait_drained(&self.client, &self.name, end_of_log(&self.client), PATIENCE);
        assert!(drained, "{}", relay.log());
    }
}

/// It ends with 1, and its last line has each of the words.
fn refuses(relay: &mut Relay, words: &[&str]) {
    assert_eq!(relay.wait_exit().code(), Some(1), "{}", relay.log());
    for word in words {
        let log = relay.log();
        let last = log.lines().rfind(|line| line.starts_with("walpost: "));
        assert!(last.is_some_and(|last| last.contains(word)), "{word:?}\n{log}");
    }
}

#[test]
fn a_backlog_with_a_type_that_was_dropped_since_is_published() {
    // given rows of an enum, a composite, an array and a domain, and nobody who reads them
    let types = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text); \
                 CREATE DOMAIN flag AS boolean";
    let table = format!(
        "{types}; CREATE TABLE outbox ({COLUMNS}, type mood, pair pair, moods mood[], flag flag)"
    );
    let source = source("dropped_type", &table);
    source.client.run(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', '{}', 'glad', \
         '(1,two)', '{glad,sad}', true)",
    );
    // when the types are gone
    source.client.run(
        "ALTER TABLE outbox ALTER type TYPE text, ALTER pair TYPE text USING pair::text, \
         ALTER moods TYPE text USING moods::text, ALTER flag TYPE text USING flag::text; \
         DROP TYPE mood, pair; DROP DOMAIN flag",
    );
    let extra = |name: &str| format!("outbox.extra_headers.{name}={name}");
    let relay = source
        .relay()
        .args(&["--set", &extra("pair"), "--set", &extra("moods"), "--set", &extra("flag")])
        .started();
    // then the rows are published with the layout of their own time
    source.await_drained(&relay);
    for value in ["glad", "(1,two)", "{glad,sad}", "true"] {
        assert!(relay.log().contains(value), "{value}\n{}", relay.log());
    }
    assert!(relay.log().contains("text form"), "{}", relay.log());
}

#[test]
fn a_column_without_a_binary_form_is_no_obstacle() {
    // given a table with a column that PostgreSQL cannot send in binary form: of a type without
    // one it sends the text by itself, of an array of such a type it does not
    let table = format!("CREATE TABLE outbox ({COLUMNS}, type text, rights aclitem[])");
    let source = source("no_binary", &table);
    let relay = source.relay().started();
    // when a row has a value there
    source.client.run(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', '{}', 'made', \
         '{postgres=r/postgres}')",
    );
    // then it is read as text
    source.await_drained(&relay);
    assert!(relay.log().contains("text form"), "{}", relay.log());
}

#[test]
fn text_as_configured_takes_any_type() {
    let table = format!("CREATE TABLE outbox ({COLUMNS}, type text, span interval)");
    let source = source("any_type", &table);
    let header = ["--set", "outbox.extra_headers.span=span"];
    // by default the type is named, and the way out
    let mut binary = source.relay().args(&header).started();
    refuses(&mut binary, &["is of type interval", "source.format = \"text\""]);
    // as text it passes
    let text = source.relay().args(&header).args(&["--set", "source.format=text"]).started();
    source
        .client
        .run("INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', '{}', 'made', '3 days')");
    source.await_drained(&text);
    assert!(text.log().contains("3 days"), "{}", text.log());
}

#[test]
fn bytes_that_are_not_utf_8_are_named_and_pass_as_they_are_where_that_is_asked_for() {
    // given a database that takes any bytes, and a row that has some
    let server = Postgres::shared();
    let name = format!("{}_ascii", server.fresh_database("bytes"));
    server
        .client()
        .run(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"));
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", &name, &name);
    client.run(
        r"INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', E'caf\351', 'Created', '{}')",
    );
    let url = server.url_for(&name);
    // then the relay tries twice, and ends with the table and the way out
    let mut relay = quick_relay(&url, "null://", &name).started();
    refuses(&mut relay, &["22021", "of table public.outbox", "client_encoding=SQL_ASCII"]);
    // and that way the row passes
    let relay =
        quick_relay(&format!("{url}?client_encoding=SQL_ASCII"), "null://", &name).started();
    assert!(wait_drained(&client, &name, end_of_log(&client), PATIENCE), "{}", relay.log());
}

#[test]
fn only_rows_of_the_outbox_have_a_limit() {
    // given a publication of all tables, and a relay that takes small rows only
    let server = Postgres::shared();
    let name = server.fresh_database("large");
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    client.run("CREATE TABLE other (content text)");
    client.run("ALTER TABLE other ALTER content SET STORAGE EXTERNAL, REPLICA IDENTITY FULL");
    client.run(&format!("CREATE PUBLICATION {name} FOR ALL TABLES"));
    client.run(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"));
    let mut relay = quick_relay(&server.url_for(&name), "stdout://", &name)
        .args(&["--set", "source.row_bytes_max=100kB"])
        .started();
    let row = |kind: &str, bytes: u32| {
        format!(
            "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', '{kind}', \
             to_jsonb(repeat('x', {bytes})))"
        )
    };
    // when one transaction has a giant row of another table between two of the outbox
    client.run(&format!(
        "BEGIN; {}; INSERT INTO other SELECT repeat('y', 20 << 20); UPDATE other SET content = \
         repeat('z', 1 << 20); {}; COMMIT",
        row("before", 10),
        row("behind", 10)
    ));
    // then both pass
    assert!(wait_drained(&client, &name, end_of_log(&client), PATIENCE), "{}", relay.log());
    assert!(eventually(PATIENCE, || relay.log().contains("behind")), "{}", relay.log());
    assert!(relay.log().contains("before"), "{}", relay.log());
    assert!(relay.is_running() && relay.peak_rss_bytes() < 200 << 20);
    // and one of the outbox is refused by its name
    client.run(&row("giant", 200_000));
    refuses(&mut relay, &["a row of table public.outbox has", "source.row_bytes_max"]);
}

#[test]
fn a_moment_that_no_timestamp_can_be_is_a_text_or_stops_or_gives_way() {
    // given a creation time and a further date that no message's timestamp can be
    let table =
        format!("CREATE TABLE outbox ({COLUMNS}, type text, created_at timestamptz, due date)");
    let source = source("infinity", &table);
    source.client.run(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', '{}', 'made', 'infinity', \
         '0044-03-15 BC')",
    );
    let header = ["--set", "outbox.extra_headers.due=due"];
    // then by default the message names column, value and option
    let mut relay = source.relay().args(&header).started();
    refuses(&mut relay, &["\"created_at\"", "infinity", "outbox.created_at_out_of_range"]);
    // and as configured it passes, the further date as the server prints it
    let commit_time = ["--set", "outbox.created_at_out_of_range=commit-time"];
    let relay = source.relay().args(&header).args(&commit_time).started();
    source.await_drained(&relay);
    assert!(relay.log().contains("0044-03-15 BC"), "{}", relay.log());
}
