//! What no retry heals: the relay says once what is wrong and what to do, exits with 1, and the
//! position stays before every row that it could not publish.

use std::sync::OnceLock;
use std::time::Duration;

use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::eventually;
use crate::support::proxy::{Ending, Protocol, Proxy};
use crate::support::relay::Relay;
use crate::support::slot::{
    create_outbox, create_publication_and_slot, create_slot, end_of_log, slot_state, wait_inactive,
};
use crate::support::stage::{PATIENCE, empty_outbox, quick_relay};

const SINK: &str = "null://";

/// It exits with 1; its last line is the only one on the matter, and has each of the words once.
fn refuses(relay: &mut Relay, words: &[&str]) {
    let status = relay.wait_exit();
    let log = relay.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let last: Vec<&str> = log.lines().filter(|line| line.starts_with("walpost: ")).collect();
    assert_eq!(last.len(), 1, "{log}");
    for word in words {
        assert_eq!(last[0].matches(word).count(), 1, "not once {word:?} in\n{log}");
    }
}

fn insert(client: &Client, payload_bytes: usize) {
    client.run(&format!(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', 'OrderCreated', \
         to_jsonb(repeat('x', {payload_bytes})))"
    ));
}

fn confirmed(client: &Client, slot: &str) -> u64 {
    slot_state(client, slot).expect("the slot is there").confirmed_flush_lsn
}

fn is_streaming(client: &Client, slot: &str) -> bool {
    eventually(PATIENCE, || slot_state(client, slot).unwrap().active_pid.is_some())
}

/// A relay that streams through a proxy and then loses its connection; rows wait.
struct Broken {
    name: String,
    client: Client,
    proxy: Proxy,
    relay: Relay,
    /// Where the first row stands that nobody published.
    row: u64,
}

fn broken(server: &Postgres, prefix: &str) -> Broken {
    let name = empty_outbox(server, prefix);
    let client = server.client_for(&name);
    let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
    let url = server.url_at(proxy.addr(), &name);
    let relay = quick_relay(&url, SINK, &name).started();
    // The server streams a moment before the relay knows whose log it reads.
    let knows = || relay.log().contains("streaming server=");
    assert!(eventually(PATIENCE, knows), "{}", relay.log());
    proxy.refuse();
    proxy.cut_all(Ending::Reset);
    assert!(wait_inactive(&client, &name, PATIENCE));
    let row = end_of_log(&client);
    insert(&client, 10);
    Broken { name, client, proxy, relay, row }
}

#[test]
fn a_slot_that_is_missing_is_named() {
    let server = Postgres::shared();
    let name = server.fresh_database("no_slot");
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    client.run(&format!("CREATE PUBLICATION {name} FOR TABLE outbox WITH (publish = 'insert')"));

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    refuses(&mut relay, &[&format!("there is no slot {name}"), "walpost init creates it"]);
    assert_eq!(slot_state(&client, &name), None, "nobody makes a slot by the way");
}

#[test]
fn a_publication_that_is_missing_is_named() {
    let server = Postgres::shared();
    let name = server.fresh_database("no_publication");
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    create_slot(&client, &name, "pgoutput");
    let row = end_of_log(&client);
    insert(&client, 10);

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    refuses(&mut relay, &[&format!("there is no publication {name}"), "walpost init creates it"]);
    assert!(confirmed(&client, &name) <= row);
}

/// The catalog is read as it was when the row was written: 15 fails, and 18 skips the row.
fn younger_publication(server: &Postgres) {
    let name = server.fresh_database("late_publication");
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    create_slot(&client, &name, "pgoutput");
    let row = end_of_log(&client);
    insert(&client, 10);
    client.run(&format!("CREATE PUBLICATION {name} FOR TABLE outbox WITH (publish = 'insert')"));
    insert(&client, 10);

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    let named = format!("publication \"{name}\" is missing where slot \"{name}\" reads");
    refuses(&mut relay, &[&named, "then drop the slot and make a new one"]);
    assert!(confirmed(&client, &name) <= row, "{}", relay.log());
}

#[test]
fn a_publication_that_is_younger_than_a_row_is_named_on_15() {
    younger_publication(Postgres::shared());
}

#[test]
fn a_publication_that_is_younger_than_a_row_is_named_on_18() {
    younger_publication(&Postgres::start(Version::V18));
}

#[test]
fn a_mapped_column_that_is_missing_is_named() {
    let server = Postgres::shared();
    let name = empty_outbox(server, "no_column");
    let client = server.client_for(&name);
    let row = end_of_log(&client);
    insert(&client, 10);
    client.run("ALTER TABLE outbox RENAME COLUMN payload TO body");

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    refuses(&mut relay, &["public.outbox has no column payload", "set outbox.columns.payload"]);
    assert!(confirmed(&client, &name) <= row);
}

#[test]
fn a_mapped_column_that_goes_while_streaming_is_named() {
    let server = Postgres::shared();
    let name = empty_outbox(server, "lost_column");
    let client = server.client_for(&name);
    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();
    assert!(is_streaming(&client, &name), "{}", relay.log());

    client.run("ALTER TABLE outbox RENAME COLUMN payload TO body");
    let row = end_of_log(&client);
    insert(&client, 10);

    // Said by the stream or by the watch of the catalog, whichever comes first.
    refuses(&mut relay, &["public.outbox has no column"]);
    assert!(confirmed(&client, &name) <= row, "{}", relay.log());
}

#[test]
fn a_row_above_the_bound_is_named_with_its_size() {
    let server = Postgres::shared();
    let name = empty_outbox(server, "large_row");
    let client = server.client_for(&name);
    insert(&client, 10);
    let row = end_of_log(&client);
    insert(&client, 5_000);
    insert(&client, 10);

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name)
        .args(&["--set", "source.row_bytes_max=1KiB"])
        .started();

    refuses(&mut relay, &["row_bytes_max = 1024", "raise it to at least 5"]);
    assert!(confirmed(&client, &name) <= row, "{}", relay.log());
}

#[test]
fn a_table_that_left_its_publication_is_named_at_the_next_connect() {
    let mut broken = broken(Postgres::shared(), "left");
    let Broken { name, client, .. } = &broken;
    client.run(&format!("ALTER PUBLICATION {name} DROP TABLE outbox"));

    broken.proxy.resume();

    let words = ["does not publish public.outbox", "ADD TABLE public.outbox"];
    refuses(&mut broken.relay, &words);
    assert!(confirmed(&broken.client, &broken.name) <= broken.row);
}

#[test]
fn a_slot_that_somebody_else_advanced_is_named() {
    let mut broken = broken(Postgres::shared(), "advanced");
    let Broken { name, client, .. } = &broken;
    client.run(&format!("SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())"));
    let advanced = confirmed(client, name);
    assert!(advanced > broken.row);

    broken.proxy.resume();

    let named = format!("slot \"{}\" is at ", broken.name);
    refuses(&mut broken.relay, &[&named, "ahead of", "Restart walpost"]);
    assert_eq!(confirmed(&broken.client, &broken.name), advanced);
}

#[test]
fn a_slot_that_was_dropped_while_away_is_named() {
    let mut broken = broken(Postgres::shared(), "dropped");
    broken.client.run(&format!("SELECT pg_drop_replication_slot('{}')", broken.name));

    broken.proxy.resume();

    refuses(&mut broken.relay, &[&format!("there is no slot {}", broken.name), "walpost init"]);
    assert_eq!(slot_state(&broken.client, &broken.name), None);
}

#[test]
fn another_server_under_the_same_address_is_named() {
    // given a second server on which everything has the same names
    let other = Postgres::start(Version::V15);
    let mut broken = broken(Postgres::shared(), "other_system");
    other.create_database(&broken.name);
    let client = other.client_for(&broken.name);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", &broken.name, &broken.name);
    let there = confirmed(&client, &broken.name);
    insert(&client, 10);
    // when the address leads to it
    broken.proxy.set_target(other.address());
    broken.proxy.resume();
    // then neither of the two slots is touched
    let words = ["the server is another one than before: system identifier", "restart walpost"];
    refuses(&mut broken.relay, &words);
    assert_eq!(confirmed(&client, &broken.name), there);
    assert!(confirmed(&broken.client, &broken.name) <= broken.row);
}

#[test]
fn another_timeline_is_named() {
    // given a relay that waits for its server
    let mut server = Postgres::start(Version::V15);
    let mut broken = broken(&server, "timeline");
    let (name, row) = (broken.name.clone(), broken.row);
    // when that comes back from a recovery that ended with a promotion
    server.stop_fast();
    server.configure(&["restore_command = 'false'"]);
    std::fs::write(server.data().join("recovery.signal"), "").unwrap();
    server.restart();
    let client = server.client_for(&name);
    let promoted = || client.value("SELECT pg_is_in_recovery()").as_deref() == Some("f");
    assert!(eventually(PATIENCE, promoted), "{}", server.log());
    broken.proxy.resume();
    // then nothing is acknowledged to it
    let words = ["the server is on timeline 2, was on 1", "then restart walpost"];
    refuses(&mut broken.relay, &words);
    assert!(confirmed(&client, &name) <= row);
}

#[test]
fn a_server_without_logical_decoding_is_told_how_to_get_it() {
    let server = Postgres::start_with(Version::V15, &["wal_level = replica"]);
    let name = server.fresh_database("wal_level");
    create_outbox(&server.client_for(&name), "outbox");

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    refuses(&mut relay, &["it is replica, and must be logical", "ALTER SYSTEM SET wal_level"]);
}

#[test]
fn a_role_that_may_not_replicate_is_named() {
    let server = Postgres::shared();
    let name = empty_outbox(server, "role");
    server.client().run(&format!("CREATE ROLE {name} LOGIN"));
    let url = server.url_for(&name).replace("postgres@", &format!("{name}@"));

    let mut relay = quick_relay(&url, SINK, &name).started();

    refuses(&mut relay, &[&format!("ALTER ROLE \"{name}\" REPLICATION")]);
}

/// A server that keeps little log for a slot, and asks one role for its password.
fn strict() -> &'static Postgres {
    static STRICT: OnceLock<Postgres> = OnceLock::new();
    STRICT.get_or_init(|| {
        let settings = ["max_slot_wal_keep_size = 1MB", "min_wal_size = 32MB"];
        let server = Postgres::start_with(Version::V15, &settings);
        let access = server.data().join("pg_hba.conf");
        let rest = std::fs::read_to_string(&access).unwrap();
        let first = "host all asked 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(&access, format!("{first}{rest}")).unwrap();
        server.client().run("CREATE ROLE asked LOGIN REPLICATION PASSWORD 'right'");
        server.reload();
        server
    })
}

#[test]
fn a_lost_slot_is_named() {
    let server = strict();
    let name = empty_outbox(server, "lost");
    let client = server.client_for(&name);
    let row = end_of_log(&client);
    insert(&client, 10);
    let lost = eventually(PATIENCE, || {
        client.run("CREATE TABLE IF NOT EXISTS filling (text text)");
        client.run("INSERT INTO filling SELECT repeat('x', 1000) FROM generate_series(1, 10000)");
        client.run("SELECT pg_switch_wal()");
        client.run("CHECKPOINT");
        slot_state(&client, &name).unwrap().wal_status.as_deref() == Some("lost")
    });
    assert!(lost);

    let mut relay = quick_relay(&server.url_for(&name), SINK, &name).started();

    refuses(&mut relay, &[&format!("{name} is lost"), "pg_drop_replication_slot", "walpost init"]);
    assert!(confirmed(&client, &name) <= row);
}

#[test]
fn a_wrong_password_is_named_without_the_password() {
    let server = strict();
    let name = empty_outbox(server, "password");
    let wait = || {
        let url = server.url_for(&name).replace("postgres@", "asked:wrong@");
        Client::connect(&url).is_err()
    };
    assert!(eventually(Duration::from_secs(20), wait), "pg_hba.conf was not read again");
    let url = server.url_for(&name).replace("postgres@", "asked:wrong@");

    let mut relay = quick_relay(&url, SINK, &name).started();

    refuses(&mut relay, &["check the password of role \"asked\""]);
    assert!(!relay.log().contains("wrong"), "{}", relay.log());
}
