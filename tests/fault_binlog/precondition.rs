//! What a relay finds at its start and cannot work with: it says so and what to do, and exits.

use std::path::Path;
use std::time::Duration;

use super::{VERSIONS, numbers, on_each, on_own, refuses, row, to_nobody};
use crate::support::broker::{Broker, Kind};
use crate::support::database::{Server, create_outbox};
use crate::support::mysql::MySql;
use crate::support::process::{eventually, scratch};
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, drains, quick};

#[test]
fn a_table_that_is_missing_is_named() {
    on_each(|server| {
        let name = server.empty_outbox("no_table");
        server.client_for(&name).run("DROP TABLE outbox");
        refuses(&mut to_nobody(server, &name), &["outbox"]);
    });
}

#[test]
fn a_mapped_column_that_is_missing_is_named() {
    on_each(|server| {
        let name = server.empty_outbox("no_column");
        let client = server.client_for(&name);
        client.run(&row(1));
        client.run("ALTER TABLE outbox RENAME COLUMN payload TO body");
        refuses(&mut to_nobody(server, &name), &["payload"]);
    });
}

#[test]
fn a_wrong_password_is_named_without_the_password() {
    on_each(|server| {
        let name = server.empty_outbox("password");
        let client = server.client();
        client.run(&format!("CREATE USER {name}@'%' IDENTIFIED BY 'right'"));
        client.run(&format!("GRANT ALL ON *.* TO {name}@'%'"));
        let url = server.url_for(&name).replace("root@", &format!("{name}:incorrect@"));
        let mut relay = quick(MySql::relay(&url, "null://", &name));
        refuses(&mut relay, &["password"]);
        assert!(!relay.log().contains("incorrect"), "{}", relay.log());
    });
}

#[test]
fn a_user_that_may_not_replicate_is_named() {
    on_each(|server| {
        let name = server.empty_outbox("grants");
        let client = server.client();
        client.run(&format!("CREATE USER {name}@'%' IDENTIFIED BY ''"));
        client.run(&format!("GRANT ALL ON {name}.* TO {name}@'%'"));
        let url = server.url_for(&name).replace("root@", &format!("{name}@"));
        refuses(&mut quick(MySql::relay(&url, "null://", &name)), &["REPLICATION SLAVE"]);
    });
}

#[test]
fn a_server_that_logs_too_little_is_told_which_variable_and_what_to_set() {
    on_own(|server| {
        let name = server.empty_outbox("variables");
        let metadata = match server.version().is_mariadb() {
            true => "NO_LOG",
            false => "MINIMAL",
        };
        for (variable, wrong, right) in [
            ("binlog_row_metadata", metadata, "FULL"),
            ("binlog_format", "STATEMENT", "ROW"),
            ("binlog_format", "MIXED", "ROW"),
        ] {
            server.client().run(&format!("SET GLOBAL {variable} = '{wrong}'"));
            refuses(&mut to_nobody(&server, &name), &[variable, right]);
            server.client().run(&format!("SET GLOBAL {variable} = '{right}'"));
        }
        // and all of it was only that
        let mut relay = to_nobody(&server, &name).started();
        let client = server.client_for(&name);
        client.run(&row(1));
        let drained = drains::<MySql>(&client, &name, Duration::from_secs(30));
        assert!(drained && relay.terminate().success(), "{}", relay.log());
    });
}

#[test]
fn a_server_without_a_binlog_is_told_how_to_get_one() {
    on_own(|mut server| {
        let name = server.empty_outbox("no_binlog");
        server.restart_with(&["--skip-log-bin"]);
        refuses(&mut to_nobody(&server, &name), &["log_bin"]);
    });
}

/// A user that `read_only` binds, unlike root.
fn bound_user(server: &MySql, name: &str) -> String {
    let client = server.client();
    client.run(&format!("CREATE USER {name}@'%' IDENTIFIED BY ''"));
    client.run(&format!("GRANT ALL ON {name}.* TO {name}@'%'"));
    client.run(&format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {name}@'%'"));
    server.url_for(name).replace("root@", &format!("{name}@"))
}

#[test]
fn a_read_only_server_is_told_where_the_position_can_be_kept_instead() {
    on_own(|server| {
        let name = server.empty_outbox("read_only");
        let url = bound_user(&server, &name);
        server.client().run("SET GLOBAL read_only = ON");
        let mut relay = quick(MySql::relay(&url, "null://", &name));
        // MariaDB does not log what it replicates, which then comes first.
        let remedy = if server.version().is_mariadb() { "source.url" } else { "source.position" };
        refuses(&mut relay, &["read_only", remedy]);
    });
}

/// Where a relay of a source that takes no writes can keep its position.
fn reads_on(server: &MySql, broker: &mut Broker, place: &str) {
    // given a read-only source, whose rows come from somewhere else: root is above it
    let name = server.fresh_database("elsewhere");
    let client = server.client_for(&name);
    create_outbox(&client);
    let url = bound_user(server, &name);
    let place = format!("source.position={place}");
    let mut relay = quick(MySql::relay(&url, &broker.url(), &name)).args(&["--set", &place]);
    let before = broker.published(AGGREGATE_TYPE).len();
    let arrives = |broker: &mut Broker, count: usize| {
        eventually(PATIENCE, || broker.published(AGGREGATE_TYPE).len() >= before + count)
    };
    server.client().run("SET GLOBAL read_only = ON");
    // when a relay reads it, stops, is started again, is killed and is started again
    for life in 1..=3_u64 {
        let streams = relay.log().matches("streaming server").count();
        relay.start();
        let reads = || relay.log().matches("streaming server").count() > streams;
        assert!(eventually(PATIENCE, reads), "{}", relay.log());
        client.run(&row(2 * life));
        assert!(arrives(broker, 2 * life as usize - 1), "{}", relay.log());
        if life == 2 {
            relay.kill();
        } else {
            assert!(relay.terminate().success(), "{}", relay.log());
        }
        client.run(&row(2 * life + 1));
    }
    relay.start();
    assert!(arrives(broker, 6), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    server.client().run("SET GLOBAL read_only = OFF");
    // then each row was published, and none again that was confirmed at a clean stop
    let mut found = numbers(&broker.published(AGGREGATE_TYPE)[before..]);
    found.dedup();
    assert_eq!(found, [2, 3, 4, 5, 6, 7], "{}", relay.log());
}

#[test]
fn a_read_only_server_is_read_with_its_position_in_a_file_or_on_another_server() {
    let mut broker = Broker::start(Kind::Nats);
    broker.prepare(AGGREGATE_TYPE);
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        eprintln!("on {version:?}");
        let server = MySql::start_with(version, &["--log-slave-updates=ON"]);
        let folder: &Path = &scratch("position");
        reads_on(&server, &mut broker, &format!("file:{}/place", folder.display()));
        let other = MySql::shared(version);
        let name = other.empty_outbox("place");
        let place = format!("{}?ssl-mode=DISABLED", other.url_for(&name));
        reads_on(&server, &mut broker, &place);
    }
}
