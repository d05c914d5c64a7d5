//! Two relays on one slot: the slot is the lock, and the second waits for it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::broker::Kind;
use crate::support::checker::Judge;
use crate::support::postgres::Postgres;
use crate::support::process::eventually;
use crate::support::slot::{end_of_log, slot_state, wait_drained};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage};

/// Half a second between two tries, and what a busy machine adds.
const TAKEOVER_MAX: Duration = Duration::from_secs(3);

fn takes_over(end: Signal) {
    // given a relay at work, and a second one
    let server = Postgres::shared();
    let mut stage = Stage::set(server, Kind::Nats, "standby");
    let (client, name) = (stage.client(server), stage.name.clone());
    let holder = || slot_state(&client, &name).unwrap().active_pid;
    let mut first = stage.relay(server).started();
    assert!(eventually(PATIENCE, || holder().is_some()), "{}", first.log());
    let writing = stage.workload(server).start();
    let mut second = stage.relay(server).started();
    // then the second says once that it waits, and does not disturb
    let waits = || second.log().contains("standing by");
    assert!(eventually(PATIENCE, waits), "{}", second.log());
    let held = holder();
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(second.log().matches("standing by").count(), 1, "{}", second.log());
    assert!(held.is_some() && holder() == held, "{}", second.log());
    // when the first one ends
    if end == Signal::SIGKILL {
        first.kill();
    } else {
        assert!(first.terminate().success(), "{}", first.log());
    }
    // then the second one takes over
    let ended = Instant::now();
    let other = || holder().is_some_and(|pid| Some(pid) != held);
    assert!(eventually(PATIENCE, other), "{}", second.log());
    assert!(ended.elapsed() <= TAKEOVER_MAX, "{:?}", ended.elapsed());
    // and nothing is lost or out of order, and a clean hand-over repeats nothing
    let ledger = writing.stop();
    if end == Signal::SIGTERM {
        stage.finish(server, second, &ledger);
        return;
    }
    assert!(wait_drained(&client, &name, end_of_log(&client), PATIENCE), "{}", second.log());
    assert!(second.terminate().success(), "{}", second.log());
    let published = stage.broker.published(AGGREGATE_TYPE);
    Judge::new(&ledger, published).judge().assert_clean();
}

#[test]
fn a_second_relay_takes_over_from_one_that_was_killed() {
    takes_over(Signal::SIGKILL);
}

#[test]
fn a_second_relay_takes_over_from_one_that_stopped() {
    takes_over(Signal::SIGTERM);
}
