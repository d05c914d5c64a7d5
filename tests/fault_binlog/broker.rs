//! Fault 48: the broker is not there at the start, then it is killed under load, twice. Each pair
//! of database and broker that `fault_kill` does not try in an ordinary run; `make soak` tries them all.

use std::time::Duration;

use crate::support::broker::Kind;
use crate::support::checker::Judge;
use crate::support::mysql::{MySql, Version};
use crate::support::process::eventually;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage};

/// What the log says at the first failed delivery.
const RETRY_LINE: &str = "the sink does not confirm";

fn recovers(version: Version, kind: Kind) {
    if version.is_left_out() {
        return;
    }
    // given a broker that is down (cleanly: see `fault_broker`), and rows
    let server = MySql::shared(version);
    let mut stage = Stage::set(server, kind, "broker");
    stage.broker.stop();
    let mut relay = stage.relay(server).started();
    let writing = stage.workload(server).start();
    let ledger = writing.ledger();
    // then the relay says so and goes on trying
    let said = || relay.log().contains(RETRY_LINE);
    assert!(eventually(PATIENCE, said), "{}", relay.log());
    // The position moves up to the first row, which nobody confirms.
    stage.await_rows(100, &relay);
    std::thread::sleep(Duration::from_secs(1));
    assert!(eventually(PATIENCE, || ledger.committed() > 200));
    assert_eq!(ledger.committed_below(stage.confirmed(server)), 0, "confirmed without a broker");
    assert!(relay.is_running(), "{}", relay.log());
    stage.broker.restart();
    for _ in 0..2 {
        // when it works and is killed with rows on their way
        let before = stage.confirmed(server);
        let moves = || stage.confirmed(server) > before;
        assert!(eventually(PATIENCE, moves), "{}", relay.log());
        stage.await_rows(100, &relay);
        stage.broker.kill();
        let rows = ledger.committed();
        let on_their_way = || ledger.committed() > rows + 100;
        assert!(eventually(PATIENCE, on_their_way), "the writers are at work");
        let confirmed = stage.confirmed(server);
        assert!(ledger.committed_above(confirmed) > 100, "confirmed without a broker");
        stage.broker.restart();
        // then the relay finds it again by itself, and nothing that it holds was lost
        assert!(stage.drains(server), "{}", relay.log());
    }
    let ledger = writing.stop();
    assert!(stage.drains(server), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    assert_eq!(relay.starts(), 1);
    // What it had stored and not confirmed may come again.
    Judge::new(&ledger, stage.broker.published(AGGREGATE_TYPE)).judge().assert_clean();
}

#[test]
fn a_killed_rabbitmq_loses_nothing_of_mysql() {
    recovers(Version::MySql97, Kind::RabbitMq);
}

#[test]
fn a_killed_kafka_loses_nothing_of_mariadb() {
    recovers(Version::MariaDb1011, Kind::Kafka);
}

#[test]
fn a_killed_nats_loses_nothing_of_mariadb() {
    recovers(Version::MariaDb1011, Kind::Nats);
}

mod soak {
    use super::{Kind, Version, recovers};

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn a_killed_kafka_loses_nothing_of_mysql() {
        recovers(Version::MySql97, Kind::Kafka);
    }

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn a_killed_nats_loses_nothing_of_mysql() {
        recovers(Version::MySql97, Kind::Nats);
    }

    #[test]
    #[ignore = "one of the pairs that only `make soak` runs"]
    fn a_killed_rabbitmq_loses_nothing_of_mariadb() {
        recovers(Version::MariaDb1011, Kind::RabbitMq);
    }
}
