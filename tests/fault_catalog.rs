//! The catalog changes under a running relay: what can be followed exactly is followed, and
//! anything else is a definite error, with the position before every row that was not published.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::support::broker::Kind;
use crate::support::ledger::Ledger;
use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::eventually;
use crate::support::proxy::{Direction, Ending};
use crate::support::relay::Relay;
use crate::support::slot::{
    create_outbox, create_publication_and_slot, create_slot, end_of_log, slot_state, wait_drained,
};
use crate::support::stage::{PATIENCE, Stage, bulk, empty_outbox, quick_relay};

const SINK: &str = "null://";

fn insert_into(client: &Client, table: &str) {
    client.run(&format!(
        "INSERT INTO {table} VALUES (gen_random_uuid(), 'Order', 'k', 'OrderCreated', '1')"
    ));
}

/// Has every definition of the outbox, and a relay that has published one row of it.
struct Bench {
    name: String,
    client: Client,
    relay: Relay,
}

fn started(server: &Postgres, name: String) -> Bench {
    let client = server.client_for(&name);
    let relay = quick_relay(&server.url_for(&name), SINK, &name).started();
    insert_into(&client, "outbox");
    assert!(wait_drained(&client, &name, end_of_log(&client), PATIENCE), "{}", relay.log());
    Bench { name, client, relay }
}

fn bench(prefix: &str) -> Bench {
    let server = Postgres::shared();
    let name = empty_outbox(server, prefix);
    started(server, name)
}

/// An outbox of two partitions, published as its root.
fn partitioned(server: &Postgres, prefix: &str) -> Bench {
    let name = server.fresh_database(prefix);
    let client = server.client_for(&name);
    client.run(
        "CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, \
         payload jsonb, part int NOT NULL DEFAULT 0) PARTITION BY LIST (part); \
         CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0)",
    );
    create_publication_and_slot(&client, "outbox", &name, &name);
    client.run(&format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"));
    started(server, name)
}

impl Bench {
    fn confirmed(&self) -> u64 {
        slot_state(&self.client, &self.name).expect("the slot is there").confirmed_flush_lsn
    }

    /// It exits with 1, says each of the words, and its slot is not past `row`.
    fn refuses(mut self, row: u64, words: &[&str]) {
        let status = self.relay.wait_exit();
        let log = self.relay.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let last = log.lines().find(|line| line.starts_with("walpost: "));
        let last = last.unwrap_or_else(|| panic!("no last line in\n{log}"));
        for word in words {
            assert!(last.contains(word), "{word:?} is not in\n{log}");
        }
        assert!(self.confirmed() <= row, "it went past the row\n{log}");
    }

    /// It stops with so many rows published.
    fn has_published(mut self, rows: u64) {
        let drained = wait_drained(&self.client, &self.name, end_of_log(&self.client), PATIENCE);
        assert!(drained, "{}", self.relay.log());
        assert!(self.relay.terminate().success(), "{}", self.relay.log());
        let log = self.relay.log();
        assert!(log.contains(&format!("stopped confirmed={rows} ")), "{log}");
    }
}

#[test]
fn a_row_under_another_name_is_refused_and_a_setting_lets_it_pass() {
    // given a table that is renamed, written to and renamed back before anybody looks
    let mut bench = bench("renamed");
    let row = end_of_log(&bench.client);
    bench.client.run("ALTER TABLE outbox RENAME TO kept");
    insert_into(&bench.client, "kept");
    bench.client.run("ALTER TABLE kept RENAME TO outbox");
    insert_into(&bench.client, "outbox");
    let refused = bench.relay.wait_exit();
    let log = bench.relay.log();
    assert_eq!(refused.code(), Some(1), "{log}");
    assert!(log.contains("rows come from table public.kept, which is public.outbox"), "{log}");
    assert!(bench.confirmed() <= row, "{log}");
    // when it starts again, then it is refused again: by the oid that the catalog tells
    bench.relay.start();
    assert_eq!(bench.relay.wait_exit().code(), Some(1), "{}", bench.relay.log());
    assert!(bench.confirmed() <= row, "{}", bench.relay.log());
    // when the name is told, then both rows pass
    bench.relay = bench.relay.args(&["--set", "source.former_name=public.kept"]).started();
    bench.has_published(2);
}

#[test]
fn a_table_that_moves_to_another_schema_is_refused() {
    let bench = bench("moved");
    let row = end_of_log(&bench.client);
    bench.client.run("CREATE SCHEMA other; ALTER TABLE outbox SET SCHEMA other");
    insert_into(&bench.client, "other.outbox");
    bench.refuses(row, &["other.outbox", "source.former_name"]);
}

#[test]
fn a_table_that_is_renamed_and_left_alone_is_refused_too() {
    let bench = bench("quiet");
    let row = end_of_log(&bench.client);
    bench.client.run("ALTER TABLE outbox RENAME TO kept");
    bench.refuses(row, &["public.outbox was renamed to public.kept", "rename it back"]);
}

#[test]
fn a_table_that_was_made_again_outside_of_the_publication_is_refused() {
    let bench = bench("made_again");
    let row = end_of_log(&bench.client);
    // At once, or a look between the two would find no table at all.
    bench.client.run("BEGIN; DROP TABLE outbox");
    create_outbox(&bench.client, "outbox");
    bench.client.run("COMMIT");
    insert_into(&bench.client, "outbox");
    bench.refuses(row, &["does not publish public.outbox", "while nobody writes"]);
}

#[test]
fn a_table_that_was_made_again_in_one_transaction_with_its_publication_is_followed() {
    // given
    let bench = bench("swapped");
    let Bench { client, name, .. } = &bench;
    // when the table is replaced by a partitioned one, of which it becomes a part
    client.run(&format!(
        "BEGIN; ALTER TABLE outbox RENAME TO outbox_0; \
         CREATE TABLE outbox (LIKE outbox_0) PARTITION BY LIST (aggregatetype); \
         ALTER TABLE outbox ATTACH PARTITION outbox_0 FOR VALUES IN ('Order'); \
         ALTER PUBLICATION {name} SET (publish_via_partition_root = true); \
         ALTER PUBLICATION {name} ADD TABLE outbox; COMMIT"
    ));
    insert_into(client, "outbox");
    insert_into(client, "outbox_0");
    // then rows that are written to either come
    bench.has_published(3);
}

#[test]
fn a_table_that_left_the_publication_for_a_row_is_refused_before_the_next_one() {
    let bench = bench("left");
    let Bench { client, name, .. } = &bench;
    let row = end_of_log(client);
    client.run(&format!("ALTER PUBLICATION {name} DROP TABLE outbox"));
    insert_into(client, "outbox");
    client.run(&format!("ALTER PUBLICATION {name} ADD TABLE outbox"));
    insert_into(client, "outbox");
    bench.refuses(row, &["left publication", "publish what is missing by hand"]);
}

#[test]
fn a_table_that_is_out_of_the_publication_is_refused_without_moving_past_its_rows() {
    let bench = bench("out");
    let Bench { client, name, .. } = &bench;
    let row = end_of_log(client);
    client.run(&format!("ALTER PUBLICATION {name} DROP TABLE outbox"));
    insert_into(client, "outbox");
    bench.refuses(row, &["does not publish public.outbox"]);
}

#[test]
fn a_publication_that_stops_publishing_inserts_is_refused() {
    let bench = bench("inserts");
    let Bench { client, name, .. } = &bench;
    let row = end_of_log(client);
    client.run(&format!("ALTER PUBLICATION {name} SET (publish = 'update')"));
    insert_into(client, "outbox");
    bench.refuses(row, &["but no inserts"]);
}

#[test]
fn a_publication_that_publishes_more_is_followed() {
    let bench = bench("more");
    let Bench { client, name, .. } = &bench;
    client.run(&format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete')"));
    insert_into(client, "outbox");
    client.run("UPDATE outbox SET type = 'x'");
    bench.has_published(2);
}

#[test]
fn an_unlogged_partition_is_refused_while_connected_and_by_check() {
    let bench = partitioned(Postgres::shared(), "unlogged");
    let Bench { client, .. } = &bench;
    let row = end_of_log(client);
    client.run("CREATE UNLOGGED TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1)");
    client.run("INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', 't', '1', 1)");
    bench.refuses(row, &["partition public.outbox_1 of public.outbox is unlogged", "SET LOGGED"]);
}

#[test]
fn a_partition_in_its_own_name_is_refused() {
    let bench = partitioned(Postgres::shared(), "by_part");
    let Bench { client, name, .. } = &bench;
    client.run(&format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = false)"));
    client.run("CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1)");
    let row = end_of_log(client);
    client.run("INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'k', 't', '1', 1)");
    bench.refuses(row, &["public.outbox is partitioned", "publish_via_partition_root = true"]);
}

/// One of version 18 that gives up slots quickly.
fn v18() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER
        .get_or_init(|| Postgres::start_with(Version::V18, &["idle_replication_slot_timeout = 4s"]))
}

#[test]
fn a_warning_of_18_arrives_where_the_role_has_turned_warnings_off() {
    // given a publication that is younger than rows, and a role that hears no warnings
    let server = v18();
    let name = server.fresh_database("deaf");
    let client = server.client_for(&name);
    client.run(&format!("ALTER DATABASE {name} SET client_min_messages = error"));
    create_outbox(&client, "outbox");
    create_slot(&client, &name, "pgoutput");
    let row = end_of_log(&client);
    insert_into(&client, "outbox");
    client.run(&format!("CREATE PUBLICATION {name} FOR TABLE outbox WITH (publish = 'insert')"));
    // when a relay starts
    let relay = quick_relay(&server.url_for(&name), SINK, &name).started();
    // then it is refused
    let bench = Bench { name, client, relay };
    bench.refuses(row, &["is missing where slot"]);
}

#[test]
fn an_outage_of_the_broker_does_not_cost_a_slot_that_must_stay_in_use() {
    // given rows that wait for a broker, for longer than a slot may be idle
    let server = v18();
    let stage = Stage::set(server, Kind::Nats, "idle_slot");
    let relay = stage
        .relay(server)
        .args(&["--set", "source.let_go_after=1s", "--set", "sink.ack_timeout=60s"])
        .args(&["--set", "relay.rows_max=100"])
        .started();
    let client = stage.client(server);
    let ledger = Ledger::new();
    bulk(&client, &ledger, 100);
    assert!(stage.drains(server), "{}", relay.log());
    stage.to_broker.blackhole(Direction::ToClient);
    bulk(&client, &ledger, 500);
    // when the server looks for slots to give up, again and again
    let is_kept = |seconds: u64| {
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            client.run("CHECKPOINT");
            let slot = slot_state(&client, &stage.name).unwrap();
            assert_ne!(slot.wal_status.as_deref(), Some("lost"), "{}", relay.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        slot_state(&client, &stage.name).unwrap().active_pid
    };
    let holder = is_kept(7);
    assert!(holder.is_some(), "nobody has the slot\n{}", relay.log());
    // also where the connection is lost meanwhile, which nobody can be told
    stage.to_database.cut_all(Ending::Reset);
    let next = is_kept(7);
    assert!(next.is_some() && next != holder, "nobody took the slot again\n{}", relay.log());
    // then it is there when the broker is back, and all arrives
    stage.release();
    stage.finish(server, relay, &ledger);
}

#[test]
fn a_slot_that_was_given_up_says_why() {
    let server = v18();
    let name = empty_outbox(server, "given_up");
    let client = server.client_for(&name);
    let lost = eventually(PATIENCE, || {
        client.run("CHECKPOINT");
        slot_state(&client, &name).unwrap().wal_status.as_deref() == Some("lost")
    });
    assert!(lost);
    let relay = quick_relay(&server.url_for(&name), SINK, &name).started();
    let row = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
    let bench = Bench { name, client, relay };
    bench.refuses(row, &["is lost", "longer than idle_replication_slot_timeout (now 4 s)"]);
}

#[test]
fn the_commit_time_of_an_origin_that_stands_still_is_replaced() {
    // given a session that replays something under an origin
    let bench = bench("origin");
    let Bench { client, name, .. } = &bench;
    client.run(&format!("SELECT pg_replication_origin_create('{name}')"));
    client.run(&format!("SELECT pg_replication_origin_session_setup('{name}')"));
    // when it commits twice, both times at the time of the first
    insert_into(client, "outbox");
    insert_into(client, "outbox");
    client.run("SELECT pg_replication_origin_session_reset()");
    // then the server's time is not the second message's, and that is said
    let said = || bench.relay.log().contains("the server sent commit times that cannot be");
    assert!(eventually(PATIENCE, said), "{}", bench.relay.log());
    client.run(&format!("SELECT pg_replication_origin_drop('{name}')"));
    bench.has_published(3);
}
