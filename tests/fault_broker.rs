//! Faults of the broker, of the way to it, and of what it takes. In each of them rows are on
//! their way when it strikes, and the test says how it knows.

mod killed;
mod lost;
mod only_kafka;
mod outage;
mod rejected;
mod stuck;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::support::broker::{Broker, Kind};
use crate::support::ledger::Ledger;
use crate::support::postgres::{Client, Postgres};
use crate::support::process::eventually;
use crate::support::relay::Relay;
use crate::support::slot::{
    create_outbox, create_publication_and_slot, end_of_log, slot_state, wait_drained,
};
use crate::support::writer::Workload;

/// Nothing that heals takes longer, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a relay may use with everything else behind it.
const RSS_BYTES_MAX: u64 = 64 << 20;
/// What the log says at the first failed delivery, and at most every ten seconds.
const RETRY_LINE: &str = "the sink does not confirm";

/// A database with an outbox, and publication and slot of its name.
struct Outbox {
    name: String,
    url: String,
    client: Client,
}

impl Outbox {
    fn fresh(prefix: &str) -> Outbox {
        let server = Postgres::shared();
        let name = server.fresh_database(prefix);
        let (url, client) = (server.url_for(&name), server.client_for(&name));
        create_outbox(&client, "outbox");
        create_publication_and_slot(&client, "outbox", &name, &name);
        Outbox { name, url, client }
    }

    fn relay(&self, sink: &str) -> Relay {
        self.relay_from(&self.url, sink)
    }

    /// By way of a proxy.
    fn relay_from(&self, url: &str, sink: &str) -> Relay {
        Relay::new(url, sink).slot(&self.name).publication(&self.name).table("public.outbox")
    }

    fn workload(&self, aggregate_type: &str) -> Workload {
        let mut workload = Workload::new(&self.url, "outbox");
        workload.aggregate_type = aggregate_type.into();
        workload
    }

    fn confirmed(&self) -> u64 {
        slot_state(&self.client, &self.name).expect("the slot stays").confirmed_flush_lsn
    }

    /// Whether the slot gets to what is the end of the log now.
    fn drains(&self, timeout: Duration) -> bool {
        wait_drained(&self.client, &self.name, end_of_log(&self.client), timeout)
    }

    /// Whether the slot moves on from where it is.
    fn moves(&self, timeout: Duration) -> bool {
        let before = self.confirmed();
        eventually(timeout, || self.confirmed() > before)
    }

    fn finish(&self, relay: &mut Relay) {
        assert!(self.drains(PATIENCE), "{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
    }
}

/// A broker for tests that neither stop it nor change what concerns others: each uses aggregate
/// types of its own.
fn shared(kind: Kind) -> MutexGuard<'static, Broker> {
    static BROKERS: [OnceLock<Mutex<Broker>>; 3] =
        [OnceLock::new(), OnceLock::new(), OnceLock::new()];
    let broker = BROKERS[kind as usize].get_or_init(|| Mutex::new(Broker::start(kind)));
    // A test that failed with it did it no harm.
    broker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until so many rows more were committed than there are now.
fn await_rows(ledger: &Arc<Ledger>, rows: usize) {
    let wanted = ledger.committed() + rows;
    let written = eventually(PATIENCE, || ledger.committed() >= wanted);
    assert!(written, "the writers are at work");
}

fn count(log: &str, line: &str) -> usize {
    log.matches(line).count()
}
