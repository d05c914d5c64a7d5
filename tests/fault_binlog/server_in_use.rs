//! All connections of a relay lead to one server, also while a failover goes on.

use std::sync::Arc;

use super::{VERSIONS, row};
use crate::support::broker::{Broker, Kind};
use crate::support::database::{Initial, create_outbox, init, relay_first};
use crate::support::mysql::MySql;
use crate::support::process::eventually;
use crate::support::proxy::{Action, Direction, Point, Proxy};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, quick};

#[test]
fn a_name_that_leads_to_another_server_in_between_is_noticed() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        // given two servers with an outbox each, behind one address
        let [before, after] = [(); 2].map(|()| MySql::start(version));
        let name = before.fresh_database("moved");
        after.create_database(&name);
        for server in [&before, &after] {
            create_outbox(&server.client_for(&name));
            init(&server.url_for(&name), "elsewhere");
        }
        after.client_for(&name).run(&row(1));
        let proxy = Arc::new(Proxy::start(before.address()));
        // when the address moves behind the first login of a relay
        let (moving, target) = (Arc::clone(&proxy), after.address());
        let moved = proxy.when_bytes(
            Direction::ToServer,
            |bytes| bytes.windows(7).any(|part| part == b"walpost"),
            Point::After,
            Action::Run(Box::new(move || moving.set_target(target))),
        );
        let mut broker = Broker::start(Kind::Nats);
        broker.prepare(AGGREGATE_TYPE);
        let source = before.url_at(proxy.addr(), &name);
        let relay = relay_first(&source, &broker.url(), &name, Initial::Publish);
        let mut relay = quick(relay).started();
        assert!(moved.wait(PATIENCE), "{version:?}\n{}", relay.log());
        // then the two are not mixed, and the new one is read
        let mut published = || broker.published(AGGREGATE_TYPE).len() == 1;
        assert!(eventually(PATIENCE, &mut published), "{version:?}\n{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        let stored = "SELECT COUNT(*) FROM walpost_position WHERE flavor IS NOT NULL";
        let of_this = format!("{stored} AND name = '{name}'");
        assert_eq!(before.client_for(&name).number(&of_this), 0, "{}", relay.log());
        assert_eq!(after.client_for(&name).number(&of_this), 1, "{}", relay.log());
    }
}
