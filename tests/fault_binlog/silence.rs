//! A server whose connections fall silent while new ones pass, as behind a firewall that forgot
//! them: each has a limit, and a stop does not wait for any of them.

use std::time::{Duration, Instant};

use super::{on_each, row};
use crate::support::database::{LEASE, Server};
use crate::support::mysql::MySql;
use crate::support::process::eventually;
use crate::support::proxy::Proxy;
use crate::support::stage::{PATIENCE, drains, quick};

#[test]
fn a_relay_whose_connections_fell_silent_makes_new_ones() {
    on_each(|server| {
        // given a relay at work
        let name = server.empty_outbox("silent");
        let client = server.client_for(&name);
        let proxy = Proxy::start(server.address());
        let source = server.url_at(proxy.addr(), &name);
        let relay = MySql::relay(&source, "null://", &name);
        let mut relay = quick(relay.args(&["--set", "source.heartbeat=200ms"])).started();
        assert!(drains::<MySql>(&client, &name, PATIENCE), "{}", relay.log());
        // when all that it has is frozen
        proxy.freeze_open();
        client.run(&row(1));
        // then it goes on by new connections: the stream's and the position's
        assert!(drains::<MySql>(&client, &name, PATIENCE), "{}", relay.log());
        assert!(relay.is_running(), "{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        assert_eq!(MySql::holder(&client, &name), None);
    });
}

#[test]
fn a_stop_does_not_wait_for_a_connection_that_fell_silent() {
    on_each(|server| {
        let name = server.empty_outbox("stopped");
        let client = server.client_for(&name);
        let proxy = Proxy::start(server.address());
        let source = server.url_at(proxy.addr(), &name);
        let mut relay = quick(MySql::relay(&source, "null://", &name)).started();
        assert!(drains::<MySql>(&client, &name, PATIENCE), "{}", relay.log());
        // when it is told to stop while its connections hang, and new ones pass
        proxy.freeze_open();
        let told = Instant::now();
        assert!(relay.terminate().success(), "{}", relay.log());
        // then it ends after the limit of one statement, with its lease given back
        assert!(told.elapsed() < Duration::from_secs(12), "{:?}", told.elapsed());
        assert!(eventually(LEASE, || MySql::holder(&client, &name).is_none()), "{}", relay.log());
    });
}
