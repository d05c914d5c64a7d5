//! MySQL and MariaDB: positions are numbers of GTIDs, and a row of `walpost_position` holds a
//! relay's.
//!
//! Only the server itself commits here, untagged and in one domain, so that its transactions are
//! numbered in the order of its binlog without a hole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Broken, Committed, NewRow, Server, Session, bulk_number};
use crate::support::ledger::{Ledger, Outcome, WrittenRow, hash};
use crate::support::mysql::{Client, MySql, Version, literal};
use crate::support::process::{Process, scratch};
use crate::support::proxy::Protocol;
use crate::support::relay::{Relay, program};
use crate::support::stage::AGGREGATE_TYPE;

/// How long a lease lasts in these tests: a killed relay's successor waits for its end.
pub const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

impl Server for MySql {
    type Client = Client;

    fn title(&self) -> &'static str {
        match self.version() {
            Version::MySql97 => "MySQL 9.7",
            Version::MySql80 => "MySQL 8.0.31",
            Version::MySql8015 => "MySQL 8.0.15",
            Version::MariaDb114 => "MariaDB 11.4",
            Version::MariaDb1011 => "MariaDB 10.11",
            Version::MariaDb118 => "MariaDB 11.8",
        }
    }

    fn protocol(&self, database: &str) -> Protocol {
        // As long as the test binary; a name is a few bytes.
        Protocol::MySql { database: database.to_owned().leak() }
    }

    fn address(&self) -> SocketAddr {
        MySql::address(self)
    }

    fn url_at(&self, address: SocketAddr, database: &str) -> String {
        MySql::url_at(self, address, database)
    }

    fn client_for(&self, database: &str) -> Client {
        MySql::client_for(self, database)
    }

    fn empty_outbox(&self, prefix: &str) -> String {
        let name = self.fresh_database(prefix);
        let client = self.client_for(&name);
        create_outbox(&client);
        init(&self.url_for(&name), &name);
        assert!(is_stored(&client, &name), "an empty outbox begins where it is made");
        name
    }

    fn relay(source: &str, sink: &str, name: &str) -> Relay {
        relay_first(source, sink, name, Initial::Skip)
    }

    fn confirmed(client: &Client, name: &str) -> u64 {
        // Before the rows of a first start are confirmed, nothing is.
        let stored = format!(
            "SELECT gtid_set FROM walpost_position WHERE name = '{name}' AND NOT initial_pending"
        );
        let Some(set) = client.value(&stored) else { return 0 };
        let intervals = server_uuid(client).map_or_else(
            || domain_zero(&set).map(|last| (1, last)).into_iter().collect(),
            |uuid| intervals(&set, &uuid),
        );
        // Up to the first hole.
        intervals.first().filter(|(first, _)| *first == 1).map_or(0, |(_, last)| last + 1)
    }

    /// A relay's own writes to its position are no progress, so whatever it wrote last it would
    /// never get past: another transaction goes behind it.
    fn end_of_log(client: &Client) -> u64 {
        let end = log_end(client).expect("the server answers");
        client.run("CREATE TABLE IF NOT EXISTS marks (mark int AUTO_INCREMENT PRIMARY KEY)");
        client.run("INSERT INTO marks VALUES ()");
        end
    }

    /// Its lease runs.
    fn holder(client: &Client, name: &str) -> Option<String> {
        let held = format!(
            "SELECT CONCAT(epoch, ' ', holder) FROM walpost_position \
             WHERE name = '{name}' AND lease_until > UTC_TIMESTAMP(6)"
        );
        client.try_rows(&held).ok()?.into_iter().next()?.into_iter().next()?
    }

    /// Nothing holds a binlog back.
    fn forget(_client: &Client, _name: &str) {}

    fn bulk(client: &Client, ledger: &Ledger, rows: u64) {
        client.run("START TRANSACTION");
        let (inserted, first) = bulk_rows(client, rows);
        let entered = inserted.into_iter().zip(0..).map(|((key, payload), index)| WrittenRow {
            row: first + index,
            transaction: 0,
            key,
            seq: index / 50 + 1,
            id: uuid::Uuid::from_u128(u128::from(first + index)).to_string(),
            event_type: "OrderCreated".to_owned(),
            payload_hash: hash(payload.as_bytes()),
            undone: false,
        });
        let transaction = ledger.enter(entered.collect());
        let Committed::Yes(Some(position_max)) = Session::commit(client) else {
            panic!("the server commits")
        };
        ledger.outcome(transaction, Outcome::Committed { position_max });
    }

    fn crash(&mut self) {
        self.kill();
    }

    fn recover(&mut self) {
        self.restart();
    }
}

/// What a first start does with the rows that it finds.
#[derive(Debug, Clone, Copy)]
pub enum Initial {
    Publish,
    Skip,
}

/// A relay of an outbox that has no position yet; not started.
pub fn relay_first(source: &str, sink: &str, name: &str, initial: Initial) -> Relay {
    let initial = match initial {
        Initial::Publish => "source.initial=publish",
        Initial::Skip => "source.initial=skip",
    };
    let lease = format!("source.lease={}ms", LEASE.as_millis());
    let name = format!("relay.name={name}");
    let settings = [initial, &name, &lease].map(|setting| ["--set", setting]);
    Relay::new(&in_the_clear(source), sink).table("outbox").args(&settings.concat())
}

/// Inserts rows over fifty keys; answers key and payload of each and the number of the first.
fn bulk_rows(client: &Client, rows: u64) -> (Vec<(String, String)>, u64) {
    let (number, first) = bulk_number();
    // Both servers stop a recursion after a thousand rounds unless they are told.
    let limit = match server_uuid(client) {
        Some(_) => "cte_max_recursion_depth",
        None => "max_recursive_iterations",
    };
    client.run(&format!("SET SESSION {limit} = {}", rows + 1));
    client.run(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {rows}) \
         SELECT UNHEX(LPAD(HEX({first} + i), 32, '0')), {}, \
         CONCAT('bulk-{number}-', i % 50), 'OrderCreated', \
         JSON_OBJECT('key', CONCAT('bulk-{number}-', i % 50), 'seq', i DIV 50 + 1, \
         'row', {first} + i, 'pad', REPEAT('x', 100)) FROM n",
        literal(AGGREGATE_TYPE)
    ));
    let stored = client.rows(&format!(
        "SELECT aggregateid, payload FROM outbox \
         WHERE aggregateid LIKE 'bulk-{number}-%' ORDER BY id"
    ));
    let pair = |mut row: Vec<Option<String>>| {
        let payload = row.remove(1).expect("no payload is NULL");
        (row.remove(0).expect("no key is NULL"), payload)
    };
    (stored.into_iter().map(pair).collect(), first)
}

/// Makes Debezium's default outbox table, with the id in sixteen bytes.
pub fn create_outbox(client: &Client) {
    client.run(
        "CREATE TABLE outbox (id binary(16) PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload json) \
         CHARACTER SET utf8mb4",
    );
}

/// What `walpost init` makes beside an outbox: the table of positions, and in it that of a relay,
/// unless the outbox has rows for its first start.
pub fn init(source: &str, name: &str) {
    let log = scratch("init").join("init.log");
    let mut command = program();
    command.args(["init", "--source", &in_the_clear(source), "--table", "outbox"]);
    command.args(["--set", &format!("relay.name={name}")]);
    let mut process = Process::spawn(command, None, &log);
    if !process.wait(PATIENCE).is_some_and(|status| status.success()) {
        process.give_up("walpost init failed");
    }
}

/// So that a proxy can follow it.
fn in_the_clear(source: &str) -> String {
    format!("{source}?ssl-mode=DISABLED&get-server-public-key=true")
}

/// Whether a relay of this name has stored a position.
pub fn is_stored(client: &Client, name: &str) -> bool {
    let place = "gtid_set IS NOT NULL";
    let stored = format!("SELECT 1 FROM walpost_position WHERE name = '{name}' AND {place}");
    client.try_rows(&stored).is_ok_and(|rows| !rows.is_empty())
}

pub(super) fn connect(url: &str) -> Option<Box<dyn Session>> {
    Some(Box::new(Client::connect(url).ok()?))
}

impl Session for Client {
    /// Answers nothing of use: the marker's lock tells whether the transaction is open.
    fn begin(&self, markers: &str, marker: u64) -> Result<u64, Broken> {
        Session::run(self, "START TRANSACTION")?;
        Session::run(self, &format!("INSERT INTO {markers} VALUES ({marker})"))?;
        Ok(0)
    }

    fn insert(&self, table: &str, rows: &[NewRow]) -> Result<Vec<String>, Broken> {
        let values = rows.iter().map(|row| {
            let values = [&row.aggregate_type, &row.key, &row.event_type, &row.payload];
            format!("({}, {})", binary(&row.id), values.map(|value| literal(value)).join(", "))
        });
        let values: Vec<_> = values.collect();
        let columns = "id, aggregatetype, aggregateid, type, payload";
        let sql = format!("INSERT INTO {table} ({columns}) VALUES {}", values.join(", "));
        Session::run(self, &sql)?;
        // MySQL has no RETURNING.
        let ids: Vec<String> = rows.iter().map(|row| binary(&row.id)).collect();
        let sql = format!("SELECT HEX(id), payload FROM {table} WHERE id IN ({})", ids.join(", "));
        let stored = self.try_rows(&sql).map_err(|_| Broken)?;
        let pairs = stored.into_iter().map(|mut row| {
            let payload = row.remove(1).expect("a payload");
            (row.remove(0).expect("an id"), payload)
        });
        let mut stored: HashMap<String, String> = pairs.collect();
        let payload = |row: &NewRow| {
            let id = row.id.replace('-', "").to_uppercase();
            stored.remove(&id).expect("what was inserted is there")
        };
        Ok(rows.iter().map(payload).collect())
    }

    fn delete(&self, table: &str, ids: &[&str]) -> Result<(), Broken> {
        let ids: Vec<String> = ids.iter().map(|id| binary(id)).collect();
        Session::run(self, &format!("DELETE FROM {table} WHERE id IN ({})", ids.join(", ")))
    }

    fn run(&self, sql: &str) -> Result<(), Broken> {
        self.try_rows(sql).map(drop).map_err(|_| Broken)
    }

    /// An error is no answer: a server that is shut down while it commits sends one.
    fn commit(&self) -> Committed {
        match self.try_rows("COMMIT") {
            Ok(_) => Committed::Yes(log_end(self)),
            Err(_) => Committed::Unknown,
        }
    }

    /// While the transaction is open it has its marker locked, and the server refuses to wait.
    fn settled(&self, markers: &str, _number: u64, marker: u64) -> Option<Outcome> {
        let sql = format!("SELECT marker FROM {markers} WHERE marker = {marker} FOR UPDATE NOWAIT");
        if self.try_rows(&sql).ok()?.is_empty() {
            return Some(Outcome::RolledBack);
        }
        Some(Outcome::Committed { position_max: log_end(self)? })
    }
}

/// A UUID as sixteen bytes.
fn binary(id: &str) -> String {
    format!("X'{}'", id.replace('-', ""))
}

/// Behind the last transaction that the server committed.
pub fn log_end(client: &Client) -> Option<u64> {
    let value = |sql: &str| client.try_rows(sql).ok()?.into_iter().next()?.into_iter().next()?;
    let last = match value("SELECT VERSION()")?.contains("MariaDB") {
        true => domain_zero(&value("SELECT @@global.gtid_binlog_pos")?),
        false => {
            let uuid = value("SELECT @@server_uuid")?;
            let executed = value("SELECT @@global.gtid_executed")?;
            intervals(&executed, &uuid).last().map(|(_, last)| *last)
        }
    };
    Some(last.unwrap_or(0) + 1)
}

/// MySQL's, which MariaDB has not.
fn server_uuid(client: &Client) -> Option<String> {
    let rows = client.try_rows("SELECT @@server_uuid").ok()?;
    rows.into_iter().next()?.into_iter().next()?
}

/// First and last numbers of one server's untagged transactions in `uuid:1-5:7:tag:1-3,uuid:…`.
fn intervals(set: &str, server_uuid: &str) -> Vec<(u64, u64)> {
    let number = |text: &str| text.parse::<u64>().expect("a set of GTIDs holds numbers");
    let mut found = Vec::new();
    for part in set.split(',') {
        let mut words = part.trim().split(':').map(str::trim);
        if !words.next().is_some_and(|uuid| uuid.eq_ignore_ascii_case(server_uuid)) {
            continue;
        }
        let untagged =
            words.take_while(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        for interval in untagged {
            let (first, last) = interval.split_once('-').unwrap_or((interval, interval));
            found.push((number(first), number(last)));
        }
    }
    found
}

/// The number of domain 0 in `0-1-17,3-1-5`.
fn domain_zero(set: &str) -> Option<u64> {
    let gtid = set.split(',').map(str::trim).find(|gtid| gtid.starts_with("0-"))?;
    gtid.rsplit('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[allow(unused_imports, reason = "a benchmark runs no tests of its own")]
    use super::*;

    #[test]
    fn intervals_are_those_of_one_server_without_a_tag() {
        let uuid = "3E11FA47-71CA-11E1-9E33-C80AA9429562";
        let other = "00000000-0000-0000-0000-000000000001";
        let set = format!("{other}:1-99,\n{}:1-5:7:tag:1-3", uuid.to_lowercase());
        assert_eq!(intervals(&set, uuid), [(1, 5), (7, 7)]);
        assert_eq!(intervals(&format!("{uuid}:tag:1-3"), uuid), []);
        assert_eq!(intervals("", uuid), []);
    }

    #[test]
    fn the_number_of_domain_zero_is_found_among_others() {
        assert_eq!(domain_zero("10-1-4,0-7-17,3-1-5"), Some(17));
        assert_eq!(domain_zero(""), None);
    }
}
