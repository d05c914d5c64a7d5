//! What `walpost init` creates, what it leaves alone, and that no row falls between.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{Case, insert, versions};
use crate::cli::{walpost, walpost_in};
use crate::support::mysql::{GTIDS_OFF, MySql, Version};
use crate::support::process::{eventually, scratch};

#[test]
fn init_creates_everything_and_a_second_run_says_what_exists() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        let database = &case.database;
        // when
        let first = case.walpost(&["init"]).exits(0);
        // then
        let position = first.stdout.lines().last().unwrap().to_owned();
        assert!(position.starts_with("created  position walpost at binlog."), "{}", first.stdout);
        assert_eq!(
            first.stdout,
            format!(
                "created  table {database}.outbox\ncreated  table {database}.walpost_position\n\
                 {position}\n"
            )
        );
        let stored = case.position();
        let flavor = if version.is_mariadb() { "mariadb" } else { "mysql" };
        assert_eq!(stored[0][0].as_deref(), Some(flavor));
        assert!(stored[0][1].as_ref().is_some_and(|gtids| !gtids.is_empty()), "{stored:?}");
        assert_eq!(stored[0][4..], [Some("0".into()), Some(String::new())], "nobody holds it");
        // when
        case.insert("1");
        let second = case.walpost(&["init"]).exits(0);
        // then
        assert_eq!(second.stdout, first.stdout.replace("created  ", "exists   "));
        assert_eq!(case.position(), stored, "the position stays before the row");
        case.check(&[]).exits(0).says("ok    position").says("ok    grants");
    }
}

#[test]
fn printed_sql_can_be_run_twice_whatever_the_names_are() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        let role = format!("it's_{}", case.database);
        let folder = scratch("cli-mysql-print");
        std::fs::write(
            folder.join("walpost.toml"),
            "[source]\ntable = '`Out``b:ox`'\n\
             [outbox]\npartition = \"shard\"\n[outbox.columns]\nid = \"event id\"\n\
             topic = \"\"\ncreated_at = \"\"\n\
             [outbox.extra_headers]\ntenant = \"tenant; --\"\n",
        )
        .unwrap();
        let url = case.server.url_for(&case.database);
        let variables = [("WALPOST_SOURCE", url.as_str()), ("WALPOST_ROLE_PASSWORD", "hunter2")];
        // when
        let printed =
            walpost_in(&folder, &["init", "--print", "--role", &role], &variables).exits(0);
        for _ in 0..2 {
            case.client.run(&printed.stdout);
        }
        // then
        let columns = case.client.value(&format!(
            "SELECT GROUP_CONCAT(column_name ORDER BY ordinal_position) \
             FROM information_schema.columns \
             WHERE table_schema = '{}' AND table_name = 'Out`b:ox'",
            case.database
        ));
        let expected = "event id,aggregatetype,aggregateid,type,payload,headers,tenant; --,shard";
        assert_eq!(columns.as_deref(), Some(expected));
        walpost_in(&folder, &["init"], &variables[..1]).exits(0).says("created  position");
        walpost_in(&folder, &["check", "--sink", "null://"], &variables[..1]).exits(0);
        let role = role.replace('\'', "''");
        case.client.run(&format!("DROP USER '{role}'@'%'"));
    }
}

#[test]
fn init_makes_a_user_that_can_do_no_more_than_it_needs() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        let (user, database) = (format!("relay_{}", case.database), case.database.clone());
        let url = case.server.url_for(&database);
        let init = |password: &[(&str, &str)]| {
            let variables = [&[("WALPOST_SOURCE", url.as_str())], password].concat();
            walpost(&["init", "--role", &user], &variables)
        };
        init(&[]).exits(1).says("give a password in WALPOST_ROLE_PASSWORD");
        // when
        let password = [("WALPOST_ROLE_PASSWORD", "hunter2")];
        init(&password).exits(0).says(&format!("created  user {user}@%"));
        init(&password).exits(0).says(&format!("exists   user {user}@%"));
        init(&[]).exits(0).says(&format!("exists   user {user}@%"));
        // then
        let grants = case.client.rows(&format!("SHOW GRANTS FOR '{user}'@'%'"));
        let grants: Vec<&str> = grants.iter().filter_map(|row| row[0].as_deref()).collect();
        let object = |grant: &&str| grant.split(" TO ").next().unwrap().to_owned();
        let mut granted: Vec<String> = grants.iter().map(object).collect();
        granted.sort();
        let client = if version.is_mariadb() { "BINLOG MONITOR" } else { "REPLICATION CLIENT" };
        let mut expected = vec![
            format!("GRANT REPLICATION SLAVE, {client} ON *.*"),
            format!("GRANT SELECT ON `{database}`.`outbox`"),
            format!("GRANT SELECT, INSERT, UPDATE ON `{database}`.`walpost_position`"),
        ];
        if !version.is_mariadb() {
            expected.insert(0, format!("GRANT LOCK TABLES ON `{database}`.*"));
        }
        assert_eq!(granted, expected);
        case.walpost_as(&user, &["check", "--sink", "null://"]).exits(0);
        case.client.run(&format!("DROP USER '{user}'@'%'"));
    }
}

#[test]
fn rows_that_are_there_already_are_left_to_the_first_run_or_skipped_as_somebody_says() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        case.client.run(
            "CREATE TABLE outbox (id VARCHAR(36), aggregatetype VARCHAR(9), aggregateid INT, \
             type VARCHAR(9), payload LONGTEXT) CHARACTER SET utf8mb4",
        );
        case.client.run(&["1", "2", "3"].map(insert).join(";"));
        // when, then
        let pending = "pending  position walpost: ";
        let run = case.walpost(&["init"]).exits(0).says(pending);
        run.says("outbox has 3 rows, which the first run publishes").says("--skip-existing");
        assert!(case.position().is_empty(), "the first run decides");
        let check = case.check(&[]).exits(0);
        check.says("warn  position").says("the first run publishes what");
        case.walpost(&["init", "--print", "--skip-existing"]).exits(1).says("needs the server");
        // when, then
        let run = case.walpost(&["init", "--skip-existing"]).exits(0);
        run.says("created  position walpost at ").says("skipped  3 rows");
        let stored = case.position();
        assert_eq!(stored.len(), 1);
        case.walpost(&["init", "--skip-existing"]).exits(0).says("exists   position walpost");
        assert_eq!(case.position(), stored);
        // and the same by the configuration
        case.client.run("DELETE FROM walpost_position");
        let skip = ["init", "--set", "source.initial=skip"];
        case.walpost(&skip).exits(0).says("skipped  3 rows");
    }
}

/// The promise of a first start: a row is in the table at the position, or after it in the binlog.
#[test]
fn no_row_falls_between_the_table_and_the_position_while_many_write() {
    for version in versions() {
        for options in [&[][..], GTIDS_OFF] {
            if version.is_mariadb() && !options.is_empty() {
                continue;
            }
            // given four writers that never rest
            let server = MySql::start_with(version, options);
            let case = Case::new(&server).ready();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let client = server.client_for(&case.database);
                        while !stop.load(Ordering::Relaxed) {
                            client.run(&insert("1"));
                        }
                    });
                }
                let count = || case.client.number("SELECT COUNT(*) FROM outbox");
                let is_busy =
                    |least| eventually(std::time::Duration::from_secs(30), || count() >= least);
                assert!(is_busy(200));
                // when the position is made, several times
                let mut positions = Vec::new();
                for round in 1..=8 {
                    case.client.run("DELETE FROM walpost_position");
                    let run = case.walpost(&["init", "--skip-existing"]).exits(0);
                    let skipped: i64 = number_after(&run.stdout, "skipped  ");
                    let stored = case.position();
                    let (file, at) = (stored[0][2].clone(), stored[0][3].clone());
                    positions.push((file.unwrap(), at.unwrap(), skipped));
                    assert!(is_busy(200 + 100 * round));
                }
                stop.store(true, Ordering::Relaxed);
                positions
            })
            .into_iter()
            .for_each(|(file, at, skipped)| {
                // then what is after it in the binlog is exactly what was not skipped
                let all = case.client.number("SELECT COUNT(*) FROM outbox");
                let events = case.client.rows(&format!("SHOW BINLOG EVENTS IN '{file}' FROM {at}"));
                let name = format!("({}.outbox)", case.database);
                let of_outbox = |row: &&Vec<Option<String>>| {
                    row[2].as_deref() == Some("Table_map")
                        && row[5].as_ref().is_some_and(|info| info.contains(&name))
                };
                let after = events.iter().filter(of_outbox).count();
                assert_eq!(i64::try_from(after).unwrap(), all - skipped, "{version:?} {file}:{at}");
            });
        }
    }
}

fn number_after(text: &str, word: &str) -> i64 {
    let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("no {word:?} in {text}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_writer_that_does_not_end_holds_up_mysql_for_a_moment_only_and_mariadb_not_at_all() {
    for version in versions() {
        // given
        let case = Case::shared(version).ready();
        case.client.run("DELETE FROM walpost_position");
        let writer = case.server.client_for(&case.database);
        writer.run(&format!("START TRANSACTION; {}", insert("1")));
        // when
        let run = case.walpost(&["init"]);
        // then
        if version.is_mariadb() {
            run.exits(0).says("created  position");
        } else {
            run.exits(1).says("could not lock").says("was open for longer than 1s");
            assert!(case.position().is_empty());
        }
        writer.run("COMMIT");
        case.walpost(&["init"]).exits(0).says("position walpost");
    }
}

#[test]
fn a_position_elsewhere_leaves_the_source_as_it_is() {
    for version in versions() {
        // given
        let case = Case::shared(version);
        let other = case.server.fresh_database("relays");
        let place = format!("source.position={}", case.server.url_for(&other));
        let elsewhere = ["--set", &place];
        // when
        let run = case.walpost(&[&["init"][..], &elsewhere].concat()).exits(0);
        // then
        run.says(&format!("created  table {other}.walpost_position"));
        let count = format!(
            "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{}'",
            case.database
        );
        assert_eq!(case.client.number(&count), 1, "the outbox alone");
        case.check(&elsewhere).exits(0);
        // and a file needs no table at all
        let folder = scratch("cli-mysql-file");
        let file = format!("source.position=file:{}/position", folder.display());
        case.walpost(&["init", "--set", &file]).exits(0).says("pending  position walpost");
        case.check(&["--set", &file]).exits(0).says("right for a single relay only");
        let nowhere = "source.position=file:/nowhere/at/all/position";
        case.check(&["--set", nowhere]).exits(1).says("fix: make it").says("/nowhere/at/all");
    }
}

#[test]
fn what_only_one_database_knows_is_refused_at_the_other() {
    let Some(version) = versions().next() else { return };
    let case = Case::shared(version);
    case.walpost(&["init", "--failover"]).exits(1).says("--failover is about a slot");
    case.walpost(&["init", "--slot", "orders"])
        .exits(2)
        .says("source.slot (--slot): belongs to a PostgreSQL source");
    let url = format!("mysql://root@{}/nowhere_at_all", case.server.address());
    walpost(&["init"], &[("WALPOST_SOURCE", &url)]).exits(1).says("nowhere_at_all");
}

#[test]
fn a_server_without_what_the_binlog_needs_is_refused_before_anything_is_made() {
    for version in versions() {
        let none = if version == Version::MySql97 { "--disable-log-bin" } else { "--skip-log-bin" };
        let options = match version.is_mariadb() {
            // Its support starts every server with a binlog, and the last option wins.
            true => [none, "--binlog-row-metadata=NO_LOG"],
            false => ["--binlog-row-metadata=MINIMAL", "--binlog-format=MIXED"],
        };
        let server = MySql::start_with(version, &options);
        let case = Case::new(&server);
        let run = case.walpost(&["init"]).exits(1);
        if version.is_mariadb() {
            run.says("log_bin: it is OFF").says("fix: start the server with --log-bin");
        } else {
            run.says("binlog_format: it is MIXED").says("binlog_row_metadata: it is MINIMAL");
        }
        assert_eq!(case.client.rows("SHOW TABLES").len(), 0);
    }
}
