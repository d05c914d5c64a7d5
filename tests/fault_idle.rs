//! The outbox is quiet and the rest of the database is not.

use std::time::Duration;

use crate::support::postgres::{Postgres, Version};
use crate::support::process::eventually;
use crate::support::slot::{end_of_log, slot_state};
use crate::support::stage::{empty_outbox, quick_relay};

const BUSY_BYTES: u64 = 200 << 20;
const BEHIND_BYTES_MAX: u64 = 300 << 10;

#[test]
fn the_slot_of_an_idle_outbox_follows_a_busy_neighbour() {
    // given a relay with nothing to do
    let server = Postgres::start(Version::V15);
    let name = empty_outbox(&server, "idle");
    let client = server.client_for(&name);
    let mut relay = quick_relay(&server.url_for(&name), "null://", &name).started();
    let active = || slot_state(&client, &name).unwrap().active_pid.is_some();
    assert!(eventually(Duration::from_secs(20), active), "{}", relay.log());
    let begin = end_of_log(&client);
    // when 200 MB of log are written beside its table
    client.run("CREATE TABLE neighbour (id int, filling text)");
    let mut round = 0;
    while end_of_log(&client) < begin + BUSY_BYTES {
        round += 1;
        client.run(&format!(
            "INSERT INTO neighbour SELECT i, repeat('{round:03}', 300) \
             FROM generate_series(1, 5000) AS i"
        ));
    }
    // then within seconds the slot is near the end of the log
    let end = end_of_log(&client);
    let near = || {
        let confirmed = slot_state(&client, &name).unwrap().confirmed_flush_lsn;
        confirmed + BEHIND_BYTES_MAX >= end
    };
    assert!(eventually(Duration::from_secs(15), near), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
}
