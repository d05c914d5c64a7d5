//! Two relays of one name: a lease keeps them apart, and the second waits for it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{ends_with, on_each};
use crate::support::broker::Kind;
use crate::support::checker::Judge;
use crate::support::database::{LEASE, Server};
use crate::support::ledger::Ledger;
use crate::support::mysql::MySql;
use crate::support::process::eventually;
use crate::support::proxy::{Direction, Event, Proxy};
use crate::support::relay::Relay;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage, quick};

/// Until a standby has noticed, and what a busy machine adds.
const NOTICE: Duration = Duration::from_secs(3);

/// A relay at work and a second one, each with a way of its own to the broker; the second goes
/// past the proxy to the database.
struct Two {
    stage: Stage,
    first: Relay,
    second: Relay,
    from_first: Proxy,
    from_second: Proxy,
}

impl Two {
    fn on(server: &MySql) -> Two {
        let stage = Stage::set(server, Kind::Nats, "standby");
        let (from_first, sink) = stage.another_way();
        let first = stage.relay_into(server, &sink).started();
        let client = stage.client(server);
        let held = || MySql::holder(&client, &stage.name).is_some();
        assert!(eventually(PATIENCE, held), "{}", first.log());
        let (from_second, sink) = stage.another_way();
        let source = server.url_for(&stage.name);
        let second = quick(MySql::relay(&source, &sink, &stage.name)).started();
        let waits = || second.log().contains("standing by");
        assert!(eventually(PATIENCE, waits), "{}", second.log());
        Two { stage, first, second, from_first, from_second }
    }

    fn holder(&self, server: &MySql) -> Option<String> {
        MySql::holder(&self.stage.client(server), &self.stage.name)
    }

    /// Waits until rows pass the first relay.
    fn await_rows(&self) {
        let seen = self.from_first.seen(Event::Confirm);
        let passes = || self.from_first.seen(Event::Confirm) > seen + 50;
        assert!(eventually(PATIENCE, passes), "{}", self.first.log());
    }

    /// Waits until the second relay publishes.
    fn await_second(&self) {
        let passes = || self.from_second.seen(Event::Confirm) > 50;
        assert!(eventually(PATIENCE, passes), "{}", self.second.log());
    }

    /// Lets everything arrive by the second relay, and judges loss and order.
    fn finish(mut self, server: &MySql, ledger: &Ledger) {
        assert!(self.stage.drains(server), "{}", self.second.log());
        assert!(self.second.terminate().success(), "{}", self.second.log());
        let published = self.stage.broker.published(AGGREGATE_TYPE);
        Judge::new(ledger, published).judge().assert_clean();
    }
}

fn takes_over(server: &MySql, end: Signal) {
    // given a relay at work, and a second one that waits and does not disturb
    let mut two = Two::on(server);
    let writing = two.stage.workload(server).start();
    two.await_rows();
    let held = two.holder(server);
    std::thread::sleep(LEASE + LEASE / 2);
    assert_eq!(two.second.log().matches("standing by").count(), 1, "{}", two.second.log());
    assert!(held.is_some() && two.holder(server) == held, "{}", two.second.log());
    // when the first one ends
    let wait_max = if end == Signal::SIGKILL {
        two.first.kill();
        LEASE + NOTICE
    } else {
        assert!(two.first.terminate().success(), "{}", two.first.log());
        NOTICE
    };
    // then the second one takes over
    let ended = Instant::now();
    let other = || two.holder(server).is_some_and(|now| Some(now) != held);
    assert!(eventually(PATIENCE, other), "{}", two.second.log());
    assert!(ended.elapsed() <= wait_max, "{:?}\n{}", ended.elapsed(), two.second.log());
    two.await_second();
    // and nothing is lost or out of order, and a clean hand-over repeats nothing
    let ledger = writing.stop();
    if end == Signal::SIGTERM {
        assert!(two.stage.drains(server), "{}", two.second.log());
        let publishes = two.from_first.seen(Event::Publish) + two.from_second.seen(Event::Publish);
        assert_eq!(publishes, ledger.committed() as u64, "rows were sent twice");
    }
    two.finish(server, &ledger);
}

#[test]
fn a_second_relay_takes_over_within_its_lease_from_one_that_was_killed() {
    on_each(|server| takes_over(server, Signal::SIGKILL));
}

#[test]
fn a_second_relay_takes_over_at_once_from_one_that_stopped() {
    on_each(|server| takes_over(server, Signal::SIGTERM));
}

/// The first relay stands still or is cut off, in `stop`; comes back, in `go_on`. So many rows
/// may leave it then as had passed the fence before.
fn is_relieved(server: &MySql, stop: impl Fn(&Two), go_on: impl Fn(&Two), past_the_fence_max: u64) {
    // given a relay at work with rows that wait for their confirm, and a second one
    let mut two = Two::on(server);
    let writing = two.stage.workload(server).start();
    two.await_rows();
    two.from_first.delay(Direction::ToClient, Duration::from_millis(50));
    two.await_rows();
    // when it is gone for longer than its lease, and the second one has taken over
    stop(&two);
    two.await_second();
    let sent = two.from_first.seen(Event::Publish);
    two.from_first.resume();
    let begin = two.first.log().len();
    go_on(&two);
    // then it delivers nothing more, and says why it ends
    ends_with(&mut two.first, begin, &["lease"]);
    let more = two.from_first.seen(Event::Publish) - sent;
    assert!(more <= past_the_fence_max, "{more} rows more\n{}", two.first.log());
    // and nothing is lost or out of order
    let ledger = writing.stop();
    two.finish(server, &ledger);
}

#[test]
fn a_relay_that_stood_still_beyond_its_lease_delivers_nothing_more() {
    on_each(|server| {
        is_relieved(
            server,
            |two| two.first.signal(Signal::SIGSTOP),
            |two| two.first.signal(Signal::SIGCONT),
            // It may stand still between the look at the fence and the write to the socket, where
            // nothing but the broker could keep it from going on: at most what its 32 lanes have
            // just handed to the client, of which the connection's own thread wrote nothing yet.
            // Thousands wait behind those.
            32,
        );
    });
}

#[test]
fn a_relay_that_lost_its_database_beyond_its_lease_delivers_nothing_more() {
    on_each(|server| {
        is_relieved(
            server,
            |two| {
                two.stage.to_database.blackhole(Direction::ToServer);
                two.stage.to_database.blackhole(Direction::ToClient);
            },
            |two| two.stage.to_database.resume(),
            0,
        );
    });
}
