//! A whole pipeline to strike at: an outbox, a relay, and between it and both its ends a proxy.
//!
//! Counts what the proxies saw, since a test must know that its fault met rows in flight, and that
//! nothing was sent twice: NATS drops repeats by their id, so the stream alone would not show them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::broker::{Broker, Kind};
use super::checker::Judge;
use super::database::Server;
use super::ledger::Ledger;
use super::postgres::{Client, Postgres};
use super::process::eventually;
use super::proxy::{Direction, Event, Proxy};
use super::relay::Relay;
use super::writer::Workload;

/// For whatever must happen, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Of every row that a stage's writers write.
pub const AGGREGATE_TYPE: &str = "Order";

/// See the module.
pub struct Stage {
    /// Of the database, and of the relay's position in its log.
    pub name: String,
    pub broker: Broker,
    pub kind: Kind,
    /// In front of the database; counts the rows that it sends.
    pub to_database: Proxy,
    /// In front of NATS and RabbitMQ; counts publishes. Kafka's clients go past it.
    pub to_broker: Proxy,
    sink: String,
}

impl Stage {
    /// Makes an outbox in a database of its own, and starts a broker.
    pub fn set(server: &impl Server, kind: Kind, prefix: &str) -> Stage {
        let name = server.empty_outbox(prefix);
        let broker = Broker::start(kind);
        broker.prepare(AGGREGATE_TYPE);
        let url = broker.url();
        let direct = address_of(&url);
        let to_broker = Proxy::start_with(direct, kind.protocol());
        let sink = match kind {
            Kind::Kafka => url,
            Kind::RabbitMq | Kind::Nats => {
                url.replace(&direct.to_string(), &to_broker.addr().to_string())
            }
        };
        let to_database = Proxy::start_with(server.address(), server.protocol(&name));
        Stage { name, broker, kind, to_database, to_broker, sink }
    }

    /// A relay with quick retries, by way of both proxies; not started.
    pub fn relay<S: Server>(&self, server: &S) -> Relay {
        self.relay_into(server, &self.sink)
    }

    /// As [`Stage::relay`], with a source URL without a password for this user.
    pub fn relay_as<S: Server>(&self, server: &S, user: &str) -> Relay {
        let url = server.url_at(self.to_database.addr(), &self.name);
        let (scheme, rest) = url.split_once("://").expect("a URL");
        let (_, host) = rest.split_once('@').expect("a user");
        quick(S::relay(&format!("{scheme}://{user}@{host}"), &self.sink, &self.name))
    }

    /// As [`Stage::relay`], with its source URL in the file that a variable names.
    pub fn relay_by_environment(&self, variable: &str, path: &Path) -> Relay {
        let relay = Relay::without_source(&self.sink).slot(&self.name).publication(&self.name);
        quick(relay.env(variable, &path.display().to_string()))
    }

    /// As [`Stage::relay`], with another way to the broker.
    pub fn relay_into<S: Server>(&self, server: &S, sink: &str) -> Relay {
        let source = server.url_at(self.to_database.addr(), &self.name);
        quick(S::relay(&source, sink, &self.name))
    }

    /// As [`Stage::relay`], with another source URL of PostgreSQL.
    pub fn relay_from(&self, source: &str) -> Relay {
        quick_relay(source, &self.sink, &self.name)
    }

    /// One more proxy in front of NATS or RabbitMQ, with the sink's URL by way of it.
    pub fn another_way(&self) -> (Proxy, String) {
        assert!(self.kind != Kind::Kafka, "its clients go past a proxy");
        let url = self.broker.url();
        let direct = address_of(&url);
        let proxy = Proxy::start_with(direct, self.kind.protocol());
        let sink = url.replace(&direct.to_string(), &proxy.addr().to_string());
        (proxy, sink)
    }

    /// A client that goes past the proxies.
    pub fn client<S: Server>(&self, server: &S) -> S::Client {
        server.client_for(&self.name)
    }

    /// The usual mix at 1,000 rows/s over 100 keys, past the proxies, until stopped.
    pub fn workload(&self, server: &impl Server) -> Workload {
        let mut workload = Workload::new(&server.url_for(&self.name), "outbox");
        workload.aggregate_type = AGGREGATE_TYPE.to_owned();
        workload.keys = 50;
        workload.rows_per_second = Some(1_000);
        workload
    }

    /// Holds the broker's confirms back until the database has sent so many more rows, none of
    /// which can be confirmed now. The writers must be at work.
    pub fn hold_back(&self, rows: u64, relay: &Relay) {
        match self.kind {
            Kind::Kafka => self.broker.freeze(),
            Kind::RabbitMq | Kind::Nats => self.to_broker.blackhole(Direction::ToClient),
        }
        self.await_rows(rows, relay);
    }

    /// Lets held confirms go.
    pub fn release(&self) {
        match self.kind {
            Kind::Kafka => self.broker.thaw(),
            Kind::RabbitMq | Kind::Nats => self.to_broker.resume(),
        }
    }

    /// Waits until the database has sent so many more rows.
    pub fn await_rows(&self, rows: u64, relay: &Relay) {
        let goal = self.rows_sent() + rows;
        assert!(eventually(PATIENCE, || self.rows_sent() >= goal), "{}", relay.log());
    }

    /// Rows that the database sent so far, repeats included.
    pub fn rows_sent(&self) -> u64 {
        self.to_database.seen(Event::Insert)
    }

    /// Up to where the database was told that all is published.
    pub fn confirmed<S: Server>(&self, server: &S) -> u64 {
        S::confirmed(&self.client(server), &self.name)
    }

    /// Waits until the database was told that all of it is published; says whether it was.
    pub fn drains<S: Server>(&self, server: &S) -> bool {
        drains::<S>(&self.client(server), &self.name, PATIENCE)
    }

    /// Lets everything arrive, stops the relay, and judges: no loss, order, and no row sent
    /// twice. Says how many rows the database had sent more than once, where it sends them in the
    /// clear.
    pub fn finish<S: Server>(mut self, server: &S, mut relay: Relay, ledger: &Ledger) -> u64 {
        assert!(self.drains(server), "{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        let published = self.broker.published(AGGREGATE_TYPE);
        Judge::new(ledger, published).duplicates_max(0).judge().assert_clean();
        let committed = ledger.committed() as u64;
        if self.kind == Kind::Nats {
            let publishes = self.to_broker.seen(Event::Publish);
            assert_eq!(publishes, committed, "rows were sent to NATS twice\n{}", relay.log());
        }
        self.rows_sent().saturating_sub(committed)
    }
}

/// Where a broker of this URL listens.
fn address_of(url: &str) -> SocketAddr {
    let (_, address) = url.rsplit_once("127.0.0.1:").expect("a broker is on this machine");
    let port: String = address.chars().take_while(char::is_ascii_digit).collect();
    SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")))
}

/// Waits until the database was told that everything up to now is published; says whether it was
/// in time.
pub fn drains<S: Server>(client: &S::Client, name: &str, timeout: Duration) -> bool {
    let end = S::end_of_log(client);
    eventually(timeout, || S::confirmed(client, name) >= end)
}

/// A database of PostgreSQL's with outbox, publication and slot, all of one name.
pub fn empty_outbox(server: &Postgres, prefix: &str) -> String {
    server.empty_outbox(prefix)
}

/// A relay of PostgreSQL's whose retries a test need not wait for; not started.
pub fn quick_relay(source: &str, sink: &str, name: &str) -> Relay {
    quick(Postgres::relay(source, sink, name))
}

/// A relay whose retries a test need not wait for; not started.
pub fn quick(relay: Relay) -> Relay {
    relay.args(&["--set", "relay.retry_first=10ms", "--set", "relay.retry_max=100ms"])
}

/// Commits one transaction of many rows over fifty keys of its own to PostgreSQL.
pub fn bulk(client: &Client, ledger: &Ledger, rows: u64) {
    Postgres::bulk(client, ledger, rows);
}
