//! A whole pipeline to strike at: an outbox, a relay, and between it and both its ends a proxy.
//!
//! Counts what the proxies saw, since a test must know that its fault met rows in flight, and that
//! nothing was sent twice: NATS drops repeats by their id, so the stream alone would not show them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::broker::{Broker, Kind};
use super::checker::Judge;
use super::ledger::{Ledger, Outcome, WrittenRow, hash};
use super::postgres::{Client, Postgres, literal};
use super::process::eventually;
use super::proxy::{Direction, Event, Protocol, Proxy};
use super::relay::Relay;
use super::slot::{
    create_outbox, create_publication_and_slot, end_of_log, parse_lsn, slot_state, wait_drained,
};
use super::writer::Workload;

/// For whatever must happen, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Of every row that a stage's writers write.
pub const AGGREGATE_TYPE: &str = "Order";

/// See the module.
pub struct Stage {
    /// Of database, publication and slot.
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
    /// Makes outbox, publication and slot in a database of their own, and starts a broker.
    pub fn set(server: &Postgres, kind: Kind, prefix: &str) -> Stage {
        let name = empty_outbox(server, prefix);
        let broker = Broker::start(kind);
        broker.prepare(AGGREGATE_TYPE);
        let url = broker.url();
        let (_, address) = url.rsplit_once("127.0.0.1:").expect("a broker is on this machine");
        let port: String = address.chars().take_while(char::is_ascii_digit).collect();
        let direct = SocketAddr::from(([127, 0, 0, 1], port.parse().expect("a port")));
        let to_broker = Proxy::start_with(direct, kind.protocol());
        let sink = match kind {
            Kind::Kafka => url,
            Kind::RabbitMq | Kind::Nats => {
                url.replace(&direct.to_string(), &to_broker.addr().to_string())
            }
        };
        let to_database = Proxy::start_with(server.address(), Protocol::Postgres);
        Stage { name, broker, kind, to_database, to_broker, sink }
    }

    /// A relay with quick retries, by way of both proxies; not started.
    pub fn relay(&self, server: &Postgres) -> Relay {
        self.relay_from(&server.url_at(self.to_database.addr(), &self.name))
    }

    /// As [`Stage::relay`], with another source URL.
    pub fn relay_from(&self, source: &str) -> Relay {
        quick_relay(source, &self.sink, &self.name)
    }

    /// A client that goes past the proxies.
    pub fn client(&self, server: &Postgres) -> Client {
        server.client_for(&self.name)
    }

    /// The usual mix at 1,000 rows/s over 100 keys, past the proxies, until stopped.
    pub fn workload(&self, server: &Postgres) -> Workload {
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

    /// Lets everything arrive, stops the relay, and judges: no loss, order, and no row sent
    /// twice. Says how many rows the database had sent more than once.
    pub fn finish(mut self, server: &Postgres, mut relay: Relay, ledger: &Ledger) -> u64 {
        let client = self.client(server);
        let drained = wait_drained(&client, &self.name, end_of_log(&client), PATIENCE);
        assert!(drained, "{:?}\n{}", slot_state(&client, &self.name), relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        let published = self.broker.published(AGGREGATE_TYPE);
        Judge::new(ledger, published).duplicates_max(0).judge().assert_clean();
        let committed = ledger.committed() as u64;
        if self.kind == Kind::Nats {
            let publishes = self.to_broker.seen(Event::Publish);
            assert_eq!(publishes, committed, "rows were sent to NATS twice\n{}", relay.log());
        }
        self.rows_sent() - committed
    }
}

/// A database with outbox, publication and slot, all of one name.
pub fn empty_outbox(server: &Postgres, prefix: &str) -> String {
    let name = server.fresh_database(prefix);
    let client = server.client_for(&name);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", &name, &name);
    name
}

/// A relay whose retries a test need not wait for; not started.
pub fn quick_relay(source: &str, sink: &str, name: &str) -> Relay {
    Relay::new(source, sink).slot(name).publication(name).table("public.outbox").args(&[
        "--set",
        "relay.retry_first=10ms",
        "--set",
        "relay.retry_max=100ms",
    ])
}

/// Commits one transaction of many rows over fifty keys of its own.
pub fn bulk(client: &Client, ledger: &Ledger, rows: u64) {
    // Rows and keys of two bulks, or of a writer, never look alike.
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let first = 900_000_000_000_000 + number * 1_000_000_000;
    client.run("BEGIN");
    let inserted = client.rows(&format!(
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) \
         SELECT gen_random_uuid(), {}, 'bulk-{number}-' || (i % 50), 'OrderCreated', \
         jsonb_build_object('key', 'bulk-{number}-' || (i % 50), 'seq', i / 50 + 1, \
         'row', {first} + i, 'pad', repeat('x', 100)) \
         FROM generate_series(0, {rows} - 1) AS i RETURNING id, aggregateid, payload::text",
        literal(AGGREGATE_TYPE)
    ));
    let entered = inserted.iter().zip(0..).map(|(values, index)| {
        let value = |at: usize| values[at].clone().expect("no value is NULL");
        WrittenRow {
            row: first + index,
            transaction: 0,
            key: value(1),
            seq: index / 50 + 1,
            id: value(0),
            event_type: "OrderCreated".to_owned(),
            payload_hash: hash(value(2).as_bytes()),
            undone: false,
        }
    });
    let transaction = ledger.enter(entered.collect());
    client.run("COMMIT");
    let end = client.value("SELECT pg_current_wal_insert_lsn()").expect("an LSN");
    ledger.outcome(transaction, Outcome::Committed { lsn_max: parse_lsn(&end) });
}
