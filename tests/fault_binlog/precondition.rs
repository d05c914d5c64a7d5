//! What a relay finds at its start and cannot work with: it says so and what to do, and exits.

use super::{on_each, on_own, refuses, row, to_nobody};
use crate::support::database::Server;
use crate::support::mysql::MySql;
use crate::support::stage::quick;

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
        let drained = crate::support::stage::drains::<MySql>(
            &client,
            &name,
            std::time::Duration::from_secs(30),
        );
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
