//! PostgreSQL: positions are LSNs, and a slot holds a relay's.

use std::net::SocketAddr;

use super::{Broken, Committed, NewRow, Server, Session, bulk_number};
use crate::support::ledger::{Ledger, Outcome, WrittenRow, hash};
use crate::support::postgres::{Client, Postgres, literal};
use crate::support::proxy::Protocol;
use crate::support::relay::Relay;
use crate::support::slot::{
    create_outbox, create_publication_and_slot, drop_slot, end_of_log, parse_lsn, slot_state,
};
use crate::support::stage::AGGREGATE_TYPE;

impl Server for Postgres {
    type Client = Client;

    fn title(&self) -> &'static str {
        "PostgreSQL 15"
    }

    fn protocol(&self, _database: &str) -> Protocol {
        Protocol::Postgres
    }

    fn address(&self) -> SocketAddr {
        Postgres::address(self)
    }

    fn url_at(&self, address: SocketAddr, database: &str) -> String {
        Postgres::url_at(self, address, database)
    }

    fn client_for(&self, database: &str) -> Client {
        Postgres::client_for(self, database)
    }

    /// With publication and slot, all of one name.
    fn empty_outbox(&self, prefix: &str) -> String {
        let name = self.fresh_database(prefix);
        let client = self.client_for(&name);
        create_outbox(&client, "outbox");
        create_publication_and_slot(&client, "outbox", &name, &name);
        name
    }

    fn relay(source: &str, sink: &str, name: &str) -> Relay {
        Relay::new(source, sink).slot(name).publication(name).table("public.outbox")
    }

    fn confirmed(client: &Client, name: &str) -> u64 {
        slot_state(client, name).expect("the slot stays").confirmed_flush_lsn
    }

    fn end_of_log(client: &Client) -> u64 {
        end_of_log(client)
    }

    fn holder(client: &Client, name: &str) -> Option<String> {
        slot_state(client, name)?.active_pid.map(|pid| pid.to_string())
    }

    fn forget(client: &Client, name: &str) {
        drop_slot(client, name);
    }

    fn bulk(client: &Client, ledger: &Ledger, rows: u64) {
        let (number, first) = bulk_number();
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
        ledger.outcome(transaction, Outcome::Committed { position_max: end_of_log(client) });
    }

    fn crash(&mut self) {
        self.stop_immediate();
    }

    fn recover(&mut self) {
        self.restart();
    }
}

pub(super) fn connect(url: &str) -> Option<Box<dyn Session>> {
    Some(Box::new(Client::connect(url).ok()?))
}

impl Session for Client {
    /// Answers the transaction's id.
    fn begin(&self, markers: &str, marker: u64) -> Result<u64, Broken> {
        let insert = format!("INSERT INTO {markers} VALUES ({marker})");
        let rows = self.try_rows(&format!("BEGIN; {insert}; SELECT pg_current_xact_id()"));
        let rows = rows.map_err(|_| Broken)?;
        Ok(rows[0][0].as_deref().expect("an id").parse().expect("a number"))
    }

    fn insert(&self, table: &str, rows: &[NewRow]) -> Result<Vec<String>, Broken> {
        let values = rows.iter().map(|row| {
            let values = [&row.id, &row.aggregate_type, &row.key, &row.event_type, &row.payload];
            format!("({})", values.map(|value| literal(value)).join(", "))
        });
        let sql = format!(
            "INSERT INTO {table} (id, aggregatetype, aggregateid, type, payload) VALUES {} \
             RETURNING payload::text",
            values.collect::<Vec<_>>().join(", ")
        );
        let stored = self.try_rows(&sql).map_err(|_| Broken)?;
        Ok(stored.into_iter().map(|mut row| row.remove(0).expect("a payload")).collect())
    }

    fn delete(&self, table: &str, ids: &[&str]) -> Result<(), Broken> {
        let ids: Vec<String> = ids.iter().map(|id| literal(id)).collect();
        Session::run(self, &format!("DELETE FROM {table} WHERE id IN ({})", ids.join(", ")))
    }

    fn run(&self, sql: &str) -> Result<(), Broken> {
        self.try_rows(sql).map(drop).map_err(|_| Broken)
    }

    fn commit(&self) -> Committed {
        let Err(error) = self.try_rows("COMMIT") else {
            // The end of the log bounds the commit's LSN from above.
            return Committed::Yes(log_end(self));
        };
        match error.as_db_error().is_some_and(|error| error.severity() == "ERROR") {
            true => Committed::No,
            false => Committed::Unknown,
        }
    }

    /// `pg_xact_status` alone would lie: after a crash the server gives out again the ids of
    /// transactions whose log never reached the disk, and speaks of the new owner. So it only
    /// says that nothing is in progress any more, and the marker tells the outcome.
    fn settled(&self, markers: &str, number: u64, marker: u64) -> Option<Outcome> {
        match self.try_rows(&format!("SELECT pg_xact_status('{number}'::xid8)")) {
            Ok(rows) if rows[0][0].as_deref() == Some("in progress") => return None,
            Ok(_) => {}
            // An id that the crash took back is in the future: an error of the server's, not ours.
            Err(error) if error.as_db_error().is_some() => {}
            Err(_) => return None,
        }
        let sql = format!("SELECT FROM {markers} WHERE marker = {marker}");
        if self.try_rows(&sql).ok()?.is_empty() {
            return Some(Outcome::RolledBack);
        }
        Some(Outcome::Committed { position_max: log_end(self)? })
    }
}

fn log_end(client: &Client) -> Option<u64> {
    let rows = client.try_rows("SELECT pg_current_wal_insert_lsn()").ok()?;
    rows[0][0].as_deref().map(parse_lsn)
}
