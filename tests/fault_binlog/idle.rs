//! The outbox is quiet and the rest of the server is not, and then all of it is quiet.

use std::time::Duration;

use super::{VERSIONS, to_nobody};
use crate::support::database::{LEASE, Server, log_end};
use crate::support::mysql::MySql;
use crate::support::process::eventually;
use crate::support::stage::{PATIENCE, drains};

/// Transactions of the neighbour.
const BUSY: usize = 300;

#[test]
fn positions_of_idle_outboxes_follow_a_busy_neighbour_and_then_rest() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        // given two relays with nothing to do, whose positions are in databases of their own
        let server = MySql::start(version);
        let names = ["idle", "quiet"].map(|prefix| server.empty_outbox(prefix));
        let mut relays = names.each_ref().map(|name| to_nobody(&server, name).started());
        for (name, relay) in names.iter().zip(&relays) {
            let held = || MySql::holder(&server.client_for(name), name).is_some();
            assert!(eventually(PATIENCE, held), "{version:?}\n{}", relay.log());
        }
        // when a neighbour writes 30 MB of log
        let busy = server.client_for(&server.fresh_database("busy"));
        busy.run("CREATE TABLE neighbour (id int, filling text)");
        for round in 0..BUSY {
            busy.run(&format!("INSERT INTO neighbour VALUES ({round}, REPEAT('x', 60000))"));
            busy.run("UPDATE neighbour SET id = id + 1 LIMIT 1");
        }
        // then within seconds both positions are at the end of the log
        for (name, relay) in names.iter().zip(&relays) {
            let near = drains::<MySql>(&server.client_for(name), name, Duration::from_secs(15));
            assert!(near, "{version:?}\n{}", relay.log());
        }
        // and writing a position is no progress that must be written: neither a relay's own nor
        // the other one's. What is left is the lease, renewed a few times in its length.
        std::thread::sleep(Duration::from_secs(1));
        let begin = log_end(&busy).unwrap();
        std::thread::sleep(3 * LEASE);
        let written = log_end(&busy).unwrap() - begin;
        assert!(written <= 3 * 2 * 5, "{version:?}: {written} transactions in three leases");
        for relay in &mut relays {
            assert!(relay.terminate().success(), "{}", relay.log());
        }
    }
}
