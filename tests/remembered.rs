//! What was confirmed is remembered beside the slot: a slot that was made again or moved by others,
//! and a database that was restored, stop the relay before it passes a row in silence.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::support::postgres::{Client, Postgres, Version, literal};
use crate::support::process::{eventually, scratch};
use crate::support::proxy::{Event, Protocol, Proxy};
use crate::support::relay::{Relay, program};
use crate::support::slot::{
    create_slot, drop_slot, end_of_log, format_lsn, parse_lsn, slot_state, wait_drained,
};
use crate::support::stage::{PATIENCE, empty_outbox, quick_relay};

const SINK: &str = "null://";

fn shared_18() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(|| Postgres::start(Version::V18))
}

/// The table that `init` makes.
fn remember(client: &Client) {
    let sql = include_str!("../sql/postgres/memory.sql");
    client.run(&sql.replace(":\"schema\"", "public").replace(":\"memory\"", "walpost_memory"));
}

/// A row of `walpost_memory`.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    confirmed: u64,
    is_clean: bool,
    writes: i64,
}

/// An outbox with a memory.
struct Case<'a> {
    server: &'a Postgres,
    name: String,
    client: Client,
}

impl<'a> Case<'a> {
    fn set(server: &'a Postgres) -> Self {
        let name = empty_outbox(server, "remembered");
        let case = Self::again(server, &name);
        remember(&case.client);
        case
    }

    /// One that was set before.
    fn again(server: &'a Postgres, name: &str) -> Self {
        Self { server, name: name.to_owned(), client: server.client_for(name) }
    }

    fn relay(&self) -> Relay {
        quick_relay(&self.server.url_for(&self.name), SINK, &self.name)
    }

    fn insert(&self) {
        insert(&self.client, 1, 10);
    }

    fn drains(&self, relay: &Relay) {
        let end = end_of_log(&self.client);
        assert!(wait_drained(&self.client, &self.name, end, PATIENCE), "{}", relay.log());
    }

    fn row(&self) -> Option<Row> {
        row(&self.client, &self.name)
    }

    fn slot_at(&self) -> u64 {
        slot_state(&self.client, &self.name).expect("the slot is there").confirmed_flush_lsn
    }

    /// A relay that has published a row and stopped cleanly.
    fn stopped(&self, mut relay: Relay) {
        relay.start();
        self.insert();
        self.drains(&relay);
        assert!(relay.terminate().success(), "{}", relay.log());
        let row = self.row().expect("it was written");
        assert!(row.is_clean && row.confirmed == self.slot_at(), "{row:?}\n{}", relay.log());
    }

    /// As [`Case::stopped`], then another one that was killed.
    fn killed(&self, start: impl Fn() -> Relay) {
        self.stopped(start());
        let mut relay = start().started();
        self.insert();
        self.drains(&relay);
        relay.kill();
        assert!(!self.row().unwrap().is_clean);
    }

    /// Another slot of the same name, and a row that no slot has.
    fn make_slot_again(&self) {
        drop_slot(&self.client, &self.name);
        self.insert();
        create_slot(&self.client, &self.name, "pgoutput");
    }

    /// Stops at once, names both ends of the range and the command, and moves nothing.
    fn refuses(&self, mut relay: Relay, from: u64) -> String {
        let before = (self.slot_at(), self.row());
        relay.start();
        let status = relay.wait_exit();
        let log = relay.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let position = format_lsn(before.0);
        for part in [
            format!("between {} and {position}", format_lsn(from)),
            format!("walpost run --accept-gap {position}"),
        ] {
            assert!(log.contains(&part), "{part}\n{log}");
        }
        assert_eq!((self.slot_at(), self.row()), before);
        position
    }

    /// Relays a row and stops.
    fn goes_on(&self, mut relay: Relay) -> String {
        relay.start();
        self.insert();
        self.drains(&relay);
        assert!(relay.terminate().success(), "{}", relay.log());
        relay.log()
    }
}

fn row(client: &Client, slot: &str) -> Option<Row> {
    let sql = format!(
        "SELECT confirmed, is_clean, writes FROM walpost_memory WHERE slot = {}",
        literal(slot)
    );
    let values: Vec<String> = client.rows(&sql).into_iter().next()?.into_iter().flatten().collect();
    Some(Row {
        confirmed: parse_lsn(&values[0]),
        is_clean: values[1] == "t",
        writes: values[2].parse().unwrap(),
    })
}

fn insert(client: &Client, rows: u32, payload_bytes: u32) {
    client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), 'Order', 'k', 'OrderCreated', \
         to_jsonb(repeat('x', {payload_bytes})) FROM generate_series(1, {rows})"
    ));
}

fn says(relay: &Relay, part: &str) {
    assert!(eventually(PATIENCE, || relay.log().contains(part)), "{part}\n{}", relay.log());
}

fn made_again(server: &Postgres) {
    // given a relay that stopped cleanly, and a slot that was made again since
    let case = Case::set(server);
    case.stopped(case.relay());
    let from = case.slot_at();
    case.make_slot_again();
    // then it stops, until that is accepted by the position
    let position = case.refuses(case.relay(), from);
    case.refuses(case.relay().args(&["--accept-gap", "0/1"]), from);
    let accepting = || case.relay().args(&["--accept-gap", &position]);
    let log = case.goes_on(accepting());
    assert!(log.contains("accepted by --accept-gap"), "{log}");
    // and it is accepted once: what comes later is another gap
    let log = case.goes_on(accepting());
    assert!(log.contains("--accept-gap has nothing to accept"), "{log}");
    let from = case.slot_at();
    case.make_slot_again();
    case.refuses(accepting(), from);
}

#[test]
fn a_slot_that_was_made_again_is_noticed_and_accepted_once() {
    made_again(Postgres::shared());
}

#[test]
fn a_slot_that_was_made_again_is_noticed_and_accepted_once_by_postgresql_18() {
    made_again(shared_18());
}

fn advance(case: &Case<'_>) {
    case.client.run("SELECT pg_logical_emit_message(true, 'x', 'x')");
    case.client.run(&format!(
        "SELECT pg_replication_slot_advance({}, pg_current_wal_lsn())",
        literal(&case.name)
    ));
}

#[test]
fn a_slot_that_somebody_else_advanced_is_noticed() {
    let case = Case::set(Postgres::shared());
    case.stopped(case.relay());
    let from = case.slot_at();
    case.insert();
    advance(&case);
    case.refuses(case.relay(), from);
}

#[test]
fn a_slot_that_is_gone_is_named_with_what_was_published() {
    let case = Case::set(Postgres::shared());
    case.stopped(case.relay());
    let from = format_lsn(case.slot_at());
    drop_slot(&case.client, &case.name);
    let mut relay = case.relay().started();
    assert_eq!(relay.wait_exit().code(), Some(1), "{}", relay.log());
    says(&relay, &format!("this relay published rows up to {from}"));
    says(&relay, "walpost init --skip-existing");
}

fn killed_and_made_again(server: &Postgres) {
    killed_and_made_again_in(&Case::set(server));
}

fn killed_and_made_again_in(case: &Case<'_>) {
    case.killed(|| case.relay());
    let from = case.row().unwrap().confirmed;
    case.make_slot_again();
    case.refuses(case.relay(), from);
}

#[test]
fn a_slot_that_was_made_again_after_a_kill_is_noticed_by_what_it_has_decoded() {
    killed_and_made_again(Postgres::shared());
}

#[test]
fn a_slot_that_was_made_again_after_a_kill_is_noticed_by_what_it_has_decoded_by_postgresql_18() {
    killed_and_made_again(shared_18());
}

#[test]
fn a_kill_alone_stops_nothing_and_is_said() {
    for server in [Postgres::shared(), shared_18()] {
        let case = Case::set(server);
        case.killed(|| case.relay());
        assert!(case.slot_at() > case.row().unwrap().confirmed);
        let log = case.goes_on(case.relay());
        assert_eq!(log.matches("was not stopped cleanly").count(), 1, "{log}");
        // The counter has shown that it is the same slot.
        assert!(!log.contains("which cannot be told"), "{log}");
    }
}

#[test]
fn with_a_file_a_slot_that_was_advanced_after_a_kill_is_noticed_to_the_byte() {
    let case = Case::set(Postgres::shared());
    let path = scratch("memory").join("relay.memory");
    let setting = format!("source.memory_file={}", path.display());
    let relay = || case.relay().args(&["--set", &setting]);
    case.killed(relay);
    let from = case.slot_at();
    let log = case.goes_on(relay());
    assert!(!log.contains("was not stopped cleanly"), "{log}");
    assert!(case.slot_at() > from);

    case.killed(relay);
    let from = case.slot_at();
    case.insert();
    advance(&case);
    let position = case.refuses(relay(), from);
    case.goes_on(relay().args(&["--accept-gap", &position]));
    case.goes_on(relay());
}

#[test]
fn a_standby_that_takes_over_trusts_what_is_remembered_then() {
    let case = Case::set(Postgres::shared());
    case.stopped(case.relay());
    let mut first = case.relay().started();
    case.insert();
    case.drains(&first);
    let mut second = case.relay().started();
    says(&second, "standing by");
    case.insert();
    case.drains(&first);
    assert!(first.terminate().success(), "{}", first.log());
    case.insert();
    case.drains(&second);
    assert!(second.terminate().success(), "{}", second.log());
    assert!(case.row().unwrap().is_clean);
}

#[test]
fn a_restart_or_crash_of_the_server_alone_is_no_gap() {
    for version in [Version::V15, Version::V18] {
        let mut server = Postgres::start(version);
        let name = Case::set(&server).name;
        for crash in [false, true] {
            let before = Case::again(&server, &name);
            before.killed(|| before.relay());
            drop(before);
            match crash {
                false => server.stop_fast(),
                true => server.stop_immediate(),
            }
            server.restart();
            let after = Case::again(&server, &name);
            after.goes_on(after.relay());
        }
        // and a slot that is made again then is still told from the one before
        let case = Case::again(&server, &name);
        killed_and_made_again_in(&case);
    }
}

#[test]
fn postgresql_13_counts_nothing_and_has_a_memory_all_the_same() {
    let server = Postgres::start(Version::V13);
    let case = Case::set(&server);
    case.killed(|| case.relay());
    case.make_slot_again();
    let log = case.goes_on(case.relay());
    assert!(log.contains("which cannot be told"), "{log}");
    let from = case.slot_at();
    case.make_slot_again();
    case.refuses(case.relay(), from);
}

/// Rows that a crash of relay and server together repeats although they were confirmed.
#[test]
fn a_crash_of_relay_and_server_repeats_what_was_not_remembered_and_no_more() {
    // given a server that saves no position of the slot, since a transaction is open
    let mut server = Postgres::start(Version::V15);
    let name = empty_outbox(&server, "together");
    let client = server.client_for(&name);
    remember(&client);
    client.run("CREATE TABLE other (id int)");
    let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
    let mut relay = quick_relay(&server.url_at(proxy.addr(), &name), SINK, &name).started();
    let holds = || slot_state(&client, &name).unwrap().active_pid.is_some();
    assert!(eventually(PATIENCE, holds), "{}", relay.log());
    let open = server.client_for(&name);
    open.run("BEGIN; INSERT INTO other VALUES (1)");
    let saved = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
    // and rows that were confirmed and remembered: enough of them are written down at once
    for _ in 0..10 {
        insert(&client, 100, 6_000);
    }
    let end = end_of_log(&client);
    assert!(wait_drained(&client, &name, end, PATIENCE), "{}", relay.log());
    let remembered = || row(&client, &name).is_some_and(|row| row.confirmed >= end);
    assert!(eventually(PATIENCE, remembered), "{:?}\n{}", row(&client, &name), relay.log());
    let sent = proxy.seen(Event::Insert);
    // when both crash, and more rows come
    relay.kill();
    drop((client, open));
    server.kill();
    server.restart();
    let client = server.client_for(&name);
    assert!(slot_state(&client, &name).unwrap().confirmed_flush_lsn <= saved);
    insert(&client, 3, 10);
    relay.start();
    // then only those are sent
    assert!(wait_drained(&client, &name, end_of_log(&client), PATIENCE), "{}", relay.log());
    assert_eq!(proxy.seen(Event::Insert) - sent, 3, "{}", relay.log());
    says(&relay, "the slot went back");
    assert!(relay.terminate().success(), "{}", relay.log());
}

fn copy(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A backup is taken, rows are published, and the backup comes back.
fn restored(log_bytes: u32, shown_by: &str) {
    let mut server = Postgres::start(Version::V18);
    let name = empty_outbox(&server, "restored");
    let folder = scratch("memory");
    let setting = format!("source.memory_file={}", folder.join("relay.memory").display());
    let url = server.url_for(&name);
    let relay = || quick_relay(&url, SINK, &name).args(&["--set", &setting]);
    let drains = |server: &Postgres, relay: &Relay| {
        let client = server.client_for(&name);
        let end = end_of_log(&client);
        assert!(wait_drained(&client, &name, end, PATIENCE), "{}", relay.log());
    };
    let run = |server: &Postgres, mut relay: Relay| {
        relay.start();
        insert(&server.client_for(&name), 3, 10);
        drains(server, &relay);
        assert!(relay.terminate().success(), "{}", relay.log());
    };
    remember(&server.client_for(&name));
    run(&server, relay());
    server.stop_fast();
    copy(server.data(), &folder.join("backup"));
    server.restart();
    run(&server, relay());
    // when the backup comes back and the application goes on
    server.stop_fast();
    copy(&folder.join("backup"), server.data());
    server.restart();
    let client = server.client_for(&name);
    insert(&client, 3, 10);
    let filler = "SELECT pg_logical_emit_message(false, 'x', repeat('x', ";
    client.run(&format!("{filler}{log_bytes}))"));
    // then the relay publishes none of it before that is accepted
    let slot_at = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
    let mut refused = relay().started();
    assert_eq!(refused.wait_exit().code(), Some(1), "{}", refused.log());
    says(&refused, "the database was restored");
    says(&refused, shown_by);
    let accept = format!("--accept-gap {}", format_lsn(slot_at));
    says(&refused, &accept);
    assert_eq!(slot_state(&client, &name).unwrap().confirmed_flush_lsn, slot_at);
    let mut check = program();
    check.args(["check", "--source", &url, "--sink", SINK, "--slot", &name]);
    let check = check.args(["--publication", &name, "--set", &setting]).output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains("FAIL  gap") && text.contains(&accept), "{text}");
    let (_, position) = accept.split_once(' ').unwrap();
    run(&server, relay().args(&["--accept-gap", position]));
    run(&server, relay());
}

#[test]
fn a_database_that_was_restored_is_noticed_by_the_end_of_its_log() {
    restored(1, "its log ends at");
}

#[test]
fn a_database_that_was_restored_and_has_grown_since_is_noticed_by_its_memory() {
    restored(1 << 20, "its memory was written");
}

#[test]
fn an_idle_relay_writes_nothing_however_busy_its_neighbours_are() {
    let case = Case::set(Postgres::shared());
    let mut relay = case.relay().started();
    let written = || case.row().is_some();
    assert!(eventually(PATIENCE, written), "{}", relay.log());
    case.client.run("CREATE TABLE neighbour (filling text)");
    for _ in 0..20 {
        case.client
            .run("INSERT INTO neighbour SELECT repeat('x', 1000) FROM generate_series(1, 500)");
        std::thread::sleep(Duration::from_millis(100));
    }
    case.drains(&relay);
    assert_eq!(case.row().unwrap().writes, 1);
    assert!(relay.terminate().success(), "{}", relay.log());
    assert_eq!(case.row().unwrap().writes, 2, "the end is written");
}

#[test]
fn a_memory_that_goes_away_is_a_warning() {
    let case = Case::set(Postgres::shared());
    let mut relay = case.relay().started();
    case.insert();
    case.drains(&relay);
    case.client.run("DROP TABLE walpost_memory");
    case.insert();
    says(&relay, "what is confirmed could not be remembered");
    case.insert();
    case.drains(&relay);
    assert!(relay.terminate().success(), "{}", relay.log());
    // and without a table the slot is all there is
    let mut relay = case.relay().started();
    says(&relay, "what is confirmed is remembered by the slot alone");
    case.insert();
    case.drains(&relay);
    assert!(relay.terminate().success(), "{}", relay.log());
}

#[test]
fn a_role_without_rights_relays_without_a_memory_and_check_says_so() {
    let case = Case::set(Postgres::shared());
    let (name, role) = (&case.name, format!("role_{}", case.name));
    case.client
        .run(&format!("CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON outbox TO {role}"));
    let url = case.server.url_for(name).replace("postgres@", &format!("{role}@"));
    let mut relay = quick_relay(&url, SINK, name).started();
    says(&relay, "the relay's role may not read and write it");
    case.insert();
    case.drains(&relay);
    assert!(relay.terminate().success(), "{}", relay.log());
    let check = |expected: &str| {
        let mut check = program();
        check.args(["check", "--source", &url, "--sink", SINK, "--slot", name]);
        let output = check.args(["--publication", name]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(expected), "{text}");
    };
    check("fix: GRANT SELECT, INSERT, UPDATE ON public.walpost_memory");
    case.client.run(&format!("GRANT SELECT, INSERT, UPDATE ON walpost_memory TO {role}"));
    case.stopped(quick_relay(&url, SINK, name));
    check("ok    memory");
    case.client.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
