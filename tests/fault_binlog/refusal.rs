//! What no retry heals once a relay is at work: it says so, exits with 1, and the position stays
//! before every row that it could not publish.

use std::time::Duration;

use super::{ends_with, on_each, on_own, refuses, row, run_all, to_nobody};
use crate::support::database::{Server, create_outbox};
use crate::support::mysql::{Client, MySql, Version, literal};
use crate::support::process::eventually;
use crate::support::proxy::{Ending, Proxy};
use crate::support::relay::Relay;
use crate::support::stage::{PATIENCE, drains, quick};

/// A relay that has published a row, and still runs.
pub(super) struct AtWork {
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) relay: Relay,
}

impl AtWork {
    pub(super) fn on(server: &MySql, prefix: &str) -> AtWork {
        let name = server.empty_outbox(prefix);
        let relay = to_nobody(server, &name);
        AtWork::with(server, name, relay)
    }

    pub(super) fn with(server: &MySql, name: String, relay: Relay) -> AtWork {
        let client = server.client_for(&name);
        let relay = relay.started();
        client.run(&row(1));
        assert!(drains::<MySql>(&client, &name, Duration::from_secs(30)), "{}", relay.log());
        AtWork { name, client, relay }
    }

    /// Waits until all that was committed is confirmed.
    pub(super) fn drains(&self) {
        let drained = drains::<MySql>(&self.client, &self.name, PATIENCE);
        assert!(drained, "{}", self.relay.log());
    }

    pub(super) fn stop(&mut self) {
        assert!(self.relay.terminate().success(), "{}", self.relay.log());
    }

    pub(super) fn confirmed(&self) -> u64 {
        MySql::confirmed(&self.client, &self.name)
    }
}

#[test]
fn a_mapped_column_that_goes_while_streaming_is_named() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "lost_column");
        at_work.client.run("ALTER TABLE outbox DROP COLUMN type");
        at_work.client.run(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, payload) \
             VALUES (UNHEX(LPAD('2', 32, '0')), 'Order', 'k', '{}')",
        );
        ends_with(&mut at_work.relay, 0, &["no column \"type\""]);
        refuses(&mut at_work.relay, &["type"]);
    });
}

#[test]
fn a_row_above_the_bound_is_named_with_its_size() {
    on_each(|server| {
        let name = server.empty_outbox("large_row");
        let relay = to_nobody(server, &name).args(&["--set", "source.row_bytes_max=1KiB"]);
        let mut at_work = AtWork::with(server, name, relay);
        at_work.client.run(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
             VALUES (UNHEX(LPAD('2', 32, '0')), 'Order', 'k', 't', {})",
            literal(&format!("\"{}\"", "x".repeat(9_000)))
        ));
        ends_with(&mut at_work.relay, 0, &["row_bytes_max", "outbox"]);
        let confirmed = at_work.confirmed();
        refuses(&mut at_work.relay, &["row_bytes_max"]);
        assert_eq!(at_work.confirmed(), confirmed);
    });
}

#[test]
fn a_compressed_transaction_above_the_bound_is_named() {
    let version = Version::MySql97;
    if version.is_left_out() {
        return;
    }
    let server = MySql::start_with(version, &["--binlog-transaction-compression=ON"]);
    let name = server.empty_outbox("large_payload");
    let relay = to_nobody(&server, &name).args(&["--set", "source.payload_bytes_max=64KiB"]);
    let mut at_work = AtWork::with(&server, name, relay);
    at_work.client.run("CREATE TABLE many (digest varchar(64))");
    at_work.client.run("SET SESSION cte_max_recursion_depth = 10000");
    // Of whatever table: it cannot be told before it is opened.
    at_work.client.run(
        "INSERT INTO many WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         WHERE i < 9000) SELECT SHA2(i, 256) FROM n",
    );
    ends_with(&mut at_work.relay, 0, &["payload_bytes_max"]);
}

/// What binlog files there are.
fn files(client: &Client) -> Vec<String> {
    let rows = client.rows("SHOW BINARY LOGS").into_iter();
    rows.map(|mut row| row.remove(0).unwrap()).collect()
}

fn purge(client: &Client) {
    client.run("FLUSH BINARY LOGS");
    let newest = files(client).pop().unwrap();
    client.run(&format!("PURGE BINARY LOGS TO {}", literal(&newest)));
}

#[test]
fn a_purged_binlog_is_named_and_the_position_stays() {
    on_own(|server| {
        // given a relay that is down, and rows that it has not seen
        let mut at_work = AtWork::on(&server, "purged");
        at_work.stop();
        at_work.client.run(&row(2));
        at_work.client.run("FLUSH BINARY LOGS");
        at_work.client.run(&row(3));
        // when the server throws them away
        purge(&at_work.client);
        let confirmed = at_work.confirmed();
        // then that is said, however often it is started, and nothing is skipped
        for _ in 0..2 {
            refuses(&mut at_work.relay, &["purged"]);
            assert_eq!(at_work.confirmed(), confirmed);
        }
    });
}

#[test]
fn files_that_were_purged_behind_the_position_are_not_missed() {
    on_own(|server| {
        // given a relay that has read on beyond a file, which also holds what it wrote itself
        let mut at_work = AtWork::on(&server, "behind");
        at_work.client.run("FLUSH BINARY LOGS");
        at_work.client.run(&row(2));
        let drained = |at_work: &AtWork| drains::<MySql>(&at_work.client, &at_work.name, PATIENCE);
        assert!(drained(&at_work), "{}", at_work.relay.log());
        let newest = files(&at_work.client).pop().unwrap();
        at_work.stop();
        // when the files before are thrown away
        at_work.client.run(&format!("PURGE BINARY LOGS TO {}", literal(&newest)));
        at_work.client.run(&row(3));
        // then it goes on
        at_work.relay.start();
        assert!(drained(&at_work), "{}", at_work.relay.log());
        at_work.stop();
        let log = at_work.relay.log();
        assert_eq!(log.matches("stopped confirmed=2 ").count(), 1, "{log}");
        assert_eq!(log.matches("stopped confirmed=1 ").count(), 1, "{log}");
    });
}

/// Copies the position of a name into another server, as a restored dump does.
fn copy_position(from: &Client, to: &Client) {
    let table = from.rows("SHOW CREATE TABLE walpost_position").remove(0).remove(1).unwrap();
    to.run(&table);
    for row in from.rows("SELECT * FROM walpost_position") {
        let values = row
            .iter()
            .map(|value| value.as_ref().map_or_else(|| "NULL".to_owned(), |value| literal(value)));
        let values: Vec<String> = values.collect();
        to.run(&format!("INSERT INTO walpost_position VALUES ({})", values.join(", ")));
    }
}

#[test]
fn a_position_that_was_written_for_another_server_is_named() {
    on_each(|server| {
        // given a server with the outbox, the position and rows of another one
        let mut at_work = AtWork::on(server, "foreign");
        at_work.stop();
        let other = MySql::start(server.version());
        other.create_database(&at_work.name);
        let client = other.client_for(&at_work.name);
        create_outbox(&client);
        copy_position(&at_work.client, &client);
        client.run(&row(2));
        let there = MySql::confirmed(&client, &at_work.name);
        // when a relay of that position starts
        let mut relay = to_nobody(&other, &at_work.name);
        refuses(&mut relay, &["another server"]);
        // then the position is as it was
        assert_eq!(MySql::confirmed(&client, &at_work.name), there);
    });
}

#[test]
fn another_server_under_the_same_address_is_named() {
    on_each(|server| {
        // given a relay that lost its connection, and a second server with everything of the same
        // names
        let name = server.empty_outbox("other");
        let proxy = Proxy::start(server.address());
        let url = server.url_at(proxy.addr(), &name);
        let relay = quick(MySql::relay(&url, "null://", &name));
        let mut at_work = AtWork::with(server, name, relay);
        let other = MySql::start(server.version());
        other.create_database(&at_work.name);
        let client = other.client_for(&at_work.name);
        create_outbox(&client);
        copy_position(&at_work.client, &client);
        client.run(&row(2));
        // when the address leads to it
        proxy.set_target(other.address());
        proxy.cut_all(Ending::Reset);
        // then neither position moves, once what was sent before has been executed
        std::thread::sleep(Duration::from_secs(1));
        let (here, there) = (at_work.confirmed(), MySql::confirmed(&client, &at_work.name));
        ends_with(&mut at_work.relay, 0, &["another"]);
        assert_eq!(at_work.confirmed(), here);
        assert_eq!(MySql::confirmed(&client, &at_work.name), there);
    });
}

#[test]
fn another_server_under_the_same_address_is_named_where_no_gtid_tells_it() {
    if Version::MySql97.is_left_out() {
        return;
    }
    // given a relay that lost its connection, and a second server whose files have the same names
    // and are longer
    let options = ["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];
    let [server, other] = [(); 2].map(|()| MySql::start_with(Version::MySql97, &options));
    let name = server.empty_outbox("nameless");
    let proxy = Proxy::start(server.address());
    let url = server.url_at(proxy.addr(), &name);
    let client = server.client_for(&name);
    let position = |client: &Client| client.value("SELECT position FROM walpost_position");
    let before = position(&client);
    let relay = quick(MySql::relay(&url, "null://", &name)).started();
    client.run(&row(1));
    assert!(eventually(PATIENCE, || position(&client) != before), "{}", relay.log());
    let mut at_work = AtWork { name, client, relay };
    other.create_database(&at_work.name);
    let client = other.client_for(&at_work.name);
    create_outbox(&client);
    copy_position(&at_work.client, &client);
    (2..200).for_each(|number| client.run(&row(number)));
    let of = |client: &Client| client.value("SELECT server_uuid FROM walpost_position");
    let there = of(&client);
    // when the address leads to it
    proxy.set_target(other.address());
    proxy.cut_all(Ending::Reset);
    // then nothing of it is read, and what is written there is still the place on the first
    ends_with(&mut at_work.relay, 0, &["this is server"]);
    assert_eq!(of(&client), there);
}

#[test]
fn a_position_that_somebody_deleted_is_named() {
    on_each(|server| {
        let mut at_work = AtWork::on(server, "deleted");
        at_work.client.run("DELETE FROM walpost_position");
        run_all(&at_work.client, &[row(2)]);
        ends_with(&mut at_work.relay, 0, &["walpost_position"]);
    });
}

#[test]
fn two_relays_with_one_server_id_do_not_end_each_other_for_ever() {
    on_each(|server| {
        // given two relays of different names that were given one number
        let names = ["clash", "clashes"].map(|prefix| server.empty_outbox(prefix));
        let proxies = names.each_ref().map(|_| Proxy::start(server.address()));
        let mut relays: Vec<Relay> = names
            .iter()
            .zip(&proxies)
            .map(|(name, proxy)| {
                let url = server.url_at(proxy.addr(), name);
                let relay = quick(MySql::relay(&url, "null://", name));
                relay.args(&["--set", "source.server_id=77"]).started()
            })
            .collect();
        // when they have fought for a while
        let begun = std::time::Instant::now();
        let clash = "another replica has server_id 77";
        let told = || relays.iter().any(|relay| relay.log().contains(clash));
        assert!(eventually(PATIENCE, told), "{}{}", relays[0].log(), relays[1].log());
        std::thread::sleep(Duration::from_secs(6));
        // then the connections that they made are few, and what is wrong was said
        let made: u64 = proxies.iter().map(Proxy::accepted).sum();
        let seconds = begun.elapsed().as_secs();
        assert!(made <= 8 + 4 * seconds, "{made} connections in {seconds} s");
        for relay in &mut relays {
            if relay.is_running() {
                relay.terminate();
            }
        }
    });
}
