//! `walpost check`: every precondition that can fail, each by breaking it and by what it says.

use super::{Case, finding, fix, versions};
use crate::cli::walpost;
use crate::support::mysql::{GTIDS_OFF, MySql, Version};
use crate::support::process::free_port;

#[test]
fn each_variable_is_named_with_the_statement_that_mends_it() {
    for version in versions() {
        // given a server of its own, since the variables are the whole server's
        let server = MySql::start(version);
        let case = Case::new(&server).ready();
        case.check(&[]).exits(0);
        let metadata = if version.is_mariadb() { "NO_LOG" } else { "MINIMAL" };
        let mut broken = vec![
            ("binlog_format", "MIXED", 1),
            ("binlog_row_image", "MINIMAL", 1),
            ("binlog_row_metadata", metadata, 1),
            ("binlog_checksum", "NONE", 0),
            ("sync_binlog", "0", 0),
            ("binlog_expire_logs_seconds", "3600", 0),
        ];
        if version.is_mariadb() {
            broken.push(("gtid_strict_mode", "OFF", 0));
        }
        for (name, value, code) in broken {
            let value =
                if value.parse::<u64>().is_ok() { value.into() } else { format!("'{value}'") };
            // when
            case.client.run(&format!("SET GLOBAL {name} = {value}"));
            let run = case.check(&[]).exits(code);
            // then
            let standing = if code == 1 { "FAIL" } else { "warn" };
            assert_ne!(finding(&run, standing, name), "", "{name}:\n{}", run.stdout);
            let statement = fix(&run, &format!(" {name} = ")).split(';').next().unwrap();
            case.client.run(statement);
            let mended = case.check(&[]).exits(0);
            let is_ok = finding(&mended, "ok", name);
            assert_ne!(is_ok, "", "{statement} did not mend it:\n{}", mended.stdout);
        }
    }
}

#[test]
fn a_server_without_gtids_is_warned_of_with_the_steps_that_switch_them_on() {
    if Version::MySql97.is_left_out() {
        return;
    }
    // given
    let server = MySql::start_with(Version::MySql97, GTIDS_OFF);
    let case = Case::new(&server).ready();
    assert_eq!(case.position()[0][1].as_deref(), Some(""), "no GTIDs: a file and an offset");
    // when
    let run = case.check(&[]).exits(0).says("warn  gtid_mode");
    // then
    for step in fix(&run, "gtid_mode").split(';') {
        case.client.run(step);
    }
    assert_eq!(finding(&case.check(&[]).exits(0), "ok", "gtid_mode"), "ON");
    // and the position that was made without them still holds
    case.check(&[]).says("ok    position");
}

#[test]
fn check_names_each_failure_of_table_and_columns() {
    for version in versions() {
        let case = Case::shared(version).ready();
        let database = &case.database;
        let missing = case.check(&["--table", "nowhere"]).exits(1);
        let detail = finding(&missing, "FAIL", "table");
        assert!(detail.starts_with(&format!("there is no table {database}.nowhere")), "{detail}");
        let spelt = case.check(&["--table", "OUTBOX"]).exits(1);
        assert!(spelt.stdout.contains("FAIL  table"), "{}", spelt.stdout);
        // when a column is broken, then the key that maps another one is named: the column is not
        // walpost's to alter
        for (broken, key, right) in [
            ("created_at date", "created_at", "created_at timestamp(6)"),
            ("headers blob", "headers", "headers json"),
            ("payload int", "payload", "payload json"),
            ("type varchar(255) CHARACTER SET big5", "type", "type varchar(255)"),
        ] {
            case.client.run(&format!("ALTER TABLE outbox MODIFY {broken}"));
            let run = case.check(&[]).exits(1).says("FAIL  columns");
            let run = run.says(&format!("fix: set outbox.columns.{key} to "));
            assert!(!run.stdout.contains("ALTER TABLE"), "{}", run.stdout);
            case.client.run(&format!("ALTER TABLE outbox MODIFY {right}"));
            case.check(&[]).exits(0).says("ok    columns");
        }
        case.client.run("ALTER TABLE outbox CHANGE aggregateid aggregate_id varchar(255)");
        case.check(&[])
            .exits(1)
            .says("outbox has no column aggregateid")
            .says("fix: set outbox.columns.aggregate_id to one of its columns: id, aggregatetype");
        let mapped = ["--set", "outbox.columns.aggregate_id=aggregate_id"];
        case.check(&mapped).exits(0);
        case.client.run("ALTER TABLE outbox ENGINE = MyISAM");
        let run = case.check(&mapped).exits(1).says("is kept by MyISAM");
        case.client.run(fix(&run, "ENGINE = InnoDB"));
        case.check(&mapped).exits(0);
        case.client.run("RENAME TABLE outbox TO kept; CREATE VIEW outbox AS SELECT * FROM kept");
        case.check(&mapped).exits(1).says("is a view, which has no binlog");
    }
}

#[test]
fn each_right_that_is_missing_is_named_with_the_grant_that_gives_it() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        let user = format!("poor_{}", case.database);
        let account = format!("'{user}'@'%'");
        let url = case.server.url_for(&case.database);
        let variables = [("WALPOST_SOURCE", url.as_str()), ("WALPOST_ROLE_PASSWORD", "hunter2")];
        walpost(&["init", "--role", &user], &variables).exits(0);
        case.client.run("DELETE FROM walpost_position");
        let check = || case.walpost_as(&user, &["check", "--sink", "null://"]);
        check().exits(0);
        let mut rights = vec![
            ("REPLICATION SLAVE ON *.*", "may not read the binlog"),
            ("REPLICATION CLIENT ON *.*", "may not ask where the binlog is"),
            ("INSERT, UPDATE ON walpost_position", "may not write to"),
        ];
        if !version.is_mariadb() {
            rights.push(("LOCK TABLES ON *", "may not lock tables"));
        }
        for (right, detail) in rights {
            // when
            case.client.run(&format!("REVOKE {right} FROM {account}"));
            let run = check().exits(1).says(detail);
            // then
            case.client.run(fix(&run, "GRANT "));
            check().exits(0);
        }
        case.client.run(&format!("REVOKE SELECT ON outbox FROM {account}"));
        let run = check().exits(1).says("there is no table");
        case.client.run(fix(&run, "GRANT SELECT"));
        check().exits(0);
        case.client.run(&format!("DROP USER {account}"));
    }
}

#[test]
fn a_position_whose_binlog_is_gone_says_what_is_missing() {
    for version in versions() {
        for options in [&[][..], GTIDS_OFF] {
            if version.is_mariadb() && !options.is_empty() {
                continue;
            }
            // given
            let server = MySql::start_with(version, options);
            let case = Case::new(&server).ready();
            case.insert("1");
            case.client.run("FLUSH BINARY LOGS");
            case.insert("2");
            case.check(&[]).exits(0).says("ok    position").says(" behind");
            // when
            let last = case.client.rows("SHOW BINARY LOGS").last().unwrap()[0].clone().unwrap();
            case.client.run(&format!("PURGE BINARY LOGS TO '{last}'"));
            // then
            let run = case.check(&[]).exits(1);
            let detail = finding(&run, "FAIL", "position");
            assert!(detail.starts_with("the server has removed "), "{detail}");
            run.says("fix: publish by hand what is missing; then DELETE FROM ");
            case.walpost(&["init"]).exits(0).says("exists   position");
            case.client.run("DELETE FROM walpost_position WHERE name = 'walpost'");
            case.walpost(&["init", "--skip-existing"]).exits(0).says("skipped  2 rows");
            case.check(&[]).exits(0).says("ok    position");
        }
    }
}

#[test]
fn a_position_of_another_server_is_refused() {
    for version in versions() {
        // given a position that is ahead of a server, as after a failover that lost rows
        let case = Case::shared(version).ready();
        let ahead = if version.is_mariadb() {
            "0-1-999999999"
        } else {
            "00000000-0000-0000-0000-000000000001:1-5"
        };
        case.client.run(&format!("UPDATE walpost_position SET gtid_set = '{ahead}'"));
        let run = case.check(&[]).exits(1);
        run.says(&format!("does not have {ahead}, which the relay has read"));
        // and one of the other kind of server
        let (other, word) = match version.is_mariadb() {
            true => ("mysql", "MariaDB"),
            false => ("mariadb", "MySQL"),
        };
        case.client.run(&format!("UPDATE walpost_position SET flavor = '{other}'"));
        let sentence = format!("it was written for {other}, and this is {word}");
        case.check(&[]).exits(1).says(&sentence);
        case.client.run("DROP TABLE walpost_position");
        let run = case.check(&[]).exits(1).says("which keeps the position");
        run.says("fix: walpost init creates it");
    }
}

#[test]
fn a_relay_that_holds_the_position_is_told_of() {
    for version in versions() {
        let case = Case::shared(version).ready();
        case.client.run(
            "UPDATE walpost_position SET holder = 'host-1 (4711)', epoch = 1, \
             lease_until = UTC_TIMESTAMP(6) + INTERVAL 60 SECOND",
        );
        let run = case.check(&[]).exits(0);
        let detail = finding(&run, "warn", "position_holder");
        assert!(
            detail.starts_with("\"walpost\" is held by host-1 (4711) for another "),
            "{detail}"
        );
        case.client.run("UPDATE walpost_position SET lease_until = UTC_TIMESTAMP(6)");
        assert!(!case.check(&[]).exits(0).stdout.contains("position_holder"), "it has ended");
    }
}

#[test]
fn a_read_only_server_says_where_the_position_can_go() {
    for version in versions() {
        // given
        let server = MySql::start(version);
        let case = Case::new(&server).ready();
        case.client.run("SET GLOBAL read_only = ON");
        // when, then
        case.check(&[])
            .exits(1)
            .says("read_only is ON: the position cannot be kept")
            .says("source.position to mysql://USER@HOST/DATABASE")
            .says("file:/var/lib/walpost/position");
        case.walpost(&["init"]).exits(1).says("read_only is ON");
        let elsewhere = ["--set", "source.position=file:/tmp/walpost-position"];
        let run = case.check(&elsewhere);
        if version.is_mariadb() {
            // MariaDB does not log what it replicates by default.
            run.exits(1).says("log_slave_updates is OFF");
        } else {
            run.exits(0).says("ok    read_only");
        }
    }
}

#[test]
fn a_database_that_the_binlog_leaves_out_is_named() {
    for version in versions() {
        let server = MySql::start_with(version, &["--binlog-ignore-db=cli_hidden"]);
        server.client().run("CREATE DATABASE cli_hidden");
        let url = server.url_for("cli_hidden");
        let variables = [("WALPOST_SOURCE", url.as_str())];
        walpost(&["check", "--sink", "null://"], &variables)
            .exits(1)
            .says("FAIL  binlog_filter")
            .says("the server logs nothing of database cli_hidden");
    }
}

#[test]
fn a_server_id_that_is_the_servers_own_is_refused() {
    for version in versions() {
        let case = Case::shared(version).ready();
        let ours = format!("source.server_id={}", case.server.server_id());
        case.check(&["--set", &ours]).exits(1).says("is the server's own");
    }
}

#[test]
fn a_password_that_is_wrong_and_a_server_that_is_away_are_one_clear_line() {
    let Some(version) = versions().next() else { return };
    let case = Case::shared(version);
    let user = format!("other_{}", case.database);
    case.client.run(&format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'another'"));
    case.walpost_as(&user, &["check", "--sink", "null://"])
        .exits(1)
        .says("FAIL  source ")
        .says("fix: correct user and password in source.url");
    case.client.run(&format!("DROP USER '{user}'@'%'"));
    let url = format!("mysql://u:hunter2@127.0.0.1:{}/db", free_port());
    let run = walpost(&["check", "--sink", "null://"], &[("WALPOST_SOURCE", &url)]).exits(1);
    assert!(!run.stdout.contains("hunter2"), "{}", run.stdout);
    run.says("fix: start it, or correct host and port in source.url");
}
