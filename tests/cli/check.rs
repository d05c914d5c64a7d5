//! `walpost check`: every precondition that can fail, each by breaking it.

use std::process::Command;
use std::time::Duration;

use super::{BIN, Server, walpost};
use crate::support::postgres::Version;
use crate::support::process::{Process, eventually, free_port, scratch};

#[test]
fn check_names_each_failure_of_table_and_columns() {
    let case = Server::shared().database().ready();
    case.check(&["--table", "nowhere"])
        .exits(1)
        .says("FAIL  table")
        .says("no table public.nowhere");
    case.sql("ALTER TABLE outbox DROP COLUMN aggregateid");
    case.check(&[])
        .exits(1)
        .says("FAIL  columns        public.outbox has no column aggregateid")
        .says("fix: set outbox.columns.aggregate_id to one of its columns: id, aggregatetype");
    case.sql(
        "ALTER TABLE outbox ADD COLUMN aggregateid bigint, ALTER COLUMN payload TYPE int[] \
         USING NULL, ALTER COLUMN created_at DROP DEFAULT, ALTER COLUMN created_at TYPE date",
    );
    case.check(&[])
        .exits(1)
        .says(
            "payload is integer[], and must be one of jsonb, json, text, character varying, bytea",
        )
        .says("created_at is date, and must be one of timestamp with time zone")
        .says("fix: set outbox.columns.created_at to another column\n");
    case.sql(
        "CREATE DOMAIN body AS jsonb; CREATE DOMAIN inner_body AS body; \
              ALTER TABLE outbox ALTER COLUMN payload TYPE inner_body USING NULL, \
              DROP COLUMN created_at",
    );
    case.check(&[]).exits(0).says("payload inner_body");
    case.sql("ALTER TABLE outbox RENAME TO kept; CREATE VIEW outbox AS SELECT * FROM kept");
    case.check(&[]).exits(1).says("public.outbox is a view or foreign table");
    case.sql("DROP VIEW outbox; CREATE UNLOGGED TABLE outbox (LIKE kept)");
    case.check(&[])
        .exits(1)
        .says("public.outbox is unlogged or temporary")
        .says("fix: ALTER TABLE public.outbox SET LOGGED;");
}

#[test]
fn check_names_each_failure_of_the_slot() {
    let server = Server::shared();
    let case = server.database().ready();
    let (other, name) = (server.database(), &case.name);
    case.check(&["--slot", "nowhere"]).exits(1).says("there is no slot nowhere");

    other.sql(&format!("SELECT pg_create_physical_replication_slot('{name}_physical')"));
    case.check(&["--slot", &format!("{name}_physical")])
        .exits(1)
        .says("has the plugin none (it is physical), and must have pgoutput");

    other.sql(&format!("SELECT pg_create_logical_replication_slot('{name}_other', 'pgoutput')"));
    case.check(&["--slot", &format!("{name}_other")])
        .exits(1)
        .says(&format!("is a slot of database {}, not {name}", other.name));

    let mut reader = Command::new(format!("{BIN}/pg_recvlogical"));
    reader.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &server.port.to_string()]);
    reader.args(["-d", name, "--slot", name, "--start", "-f", "/dev/null"]);
    reader.args(["-o", "proto_version=1", "-o", "publication_names=walpost"]);
    let log = scratch("cli-reader").join("log");
    let reader = Process::spawn(reader, None, &log);
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{name}'");
    assert!(eventually(Duration::from_secs(10), || case.sql(&active) == "t"));
    case.check(&[]).exits(0).says("warn  slot_holder").says("is held by the backend with pid");
    drop(reader);
}

#[test]
fn a_lost_slot_is_found_and_its_room_is_watched() {
    let server = Server::start(&["wal_level=logical", "max_slot_wal_keep_size=32MB"]);
    let case = server.database().ready();
    case.check(&[])
        .exits(0)
        .says("ok    slot_room")
        .says("of log until the slot is lost, of 32.0 MiB");

    let lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = current_database()";
    case.sql("CREATE TABLE filler (n int)");
    for _ in 0..6 {
        case.sql("INSERT INTO filler VALUES (1); SELECT pg_switch_wal(); CHECKPOINT");
    }
    assert!(eventually(Duration::from_secs(10), || case.sql(lost) == "lost"));

    case.check(&[])
        .exits(1)
        .says("is lost: the server removed log that it had not read yet")
        .says("pg_drop_replication_slot");
    case.walpost(&["init"]).exits(1).says("is lost");
}

#[test]
fn check_speaks_json_and_warns_of_a_sink_that_keeps_nothing() {
    let case = Server::shared().database().ready();

    let run = case.check(&["--json"]).exits(0);

    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["ok"], true);
    let standing = |name: &str| {
        let findings = report["findings"].as_array().unwrap();
        let of_name: Vec<&str> = findings
            .iter()
            .filter(|finding| finding["name"] == name)
            .map(|finding| finding["standing"].as_str().unwrap())
            .collect();
        of_name.join(",")
    };
    for name in ["configuration", "server", "wal_level", "role", "table", "columns", "slot"] {
        assert_eq!(standing(name), "ok", "{name}");
    }
    assert_eq!(standing("sink"), "ok,warn");
    assert_eq!(standing("slot_room"), "warn", "max_slot_wal_keep_size is unlimited");
}

#[test]
fn an_unreachable_database_is_one_clear_line_at_once() {
    let url = format!("postgres://u:hunter2@127.0.0.1:{}/db", free_port());
    let variables = [("WALPOST_SOURCE", url.as_str())];

    let run = walpost(&["check", "--sink", "null://"], &variables).exits(1);

    assert!(!run.stdout.contains("hunter2"), "{}", run.stdout);
    let shown = url.replace("hunter2", "***");
    run.says(&format!("FAIL  source         {shown}: ")).says("refused").says("ok    sink");
    walpost(&["init"], &variables).exits(1).says("walpost: could not connect").says("refused");
}

#[test]
fn a_database_that_accepts_and_says_nothing_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u@{}/db", silent.local_addr().unwrap());

    walpost(&["check", "--sink", "null://"], &[("WALPOST_SOURCE", &url)])
        .exits(1)
        .says("did not log us in within 5s");
}

#[test]
fn a_slot_with_two_phase_is_refused() {
    let case = Server::shared().database().ready();
    case.sql(
        "SELECT pg_drop_replication_slot(current_database()); SELECT \
         pg_create_logical_replication_slot(current_database(), 'pgoutput', twophase => true)",
    );
    case.check(&[])
        .exits(1)
        .says("has two_phase, which sends transactions before their commit")
        .says("set source.slot to another name, then walpost init");
}

#[test]
fn a_generated_column_that_is_not_sent_is_refused() {
    let case = Server::shared().database().ready();
    case.sql(
        "ALTER TABLE outbox DROP COLUMN topic, \
         ADD COLUMN topic text GENERATED ALWAYS AS ('t.' || aggregatetype) STORED",
    );
    case.check(&[])
        .exits(1)
        .says("topic is a generated column, which walpost does not send")
        .says("set outbox.columns.topic to another column")
        .says("SET (publish_generated_columns = stored)");
}

#[test]
fn tables_below_the_outbox_that_hide_rows_are_refused() {
    let case = Server::shared().database();
    case.sql(
        "CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, \
         payload jsonb, part int) PARTITION BY LIST (part); \
         CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0) PARTITION BY LIST (part); \
         CREATE UNLOGGED TABLE outbox_00 PARTITION OF outbox_0 FOR VALUES IN (0)",
    );
    case.walpost(&["init"])
        .exits(1)
        .says("partition public.outbox_00 of public.outbox is unlogged");
    case.sql("ALTER TABLE outbox_00 SET LOGGED");
    case.walpost(&["init"]).exits(0);
    case.check(&[]).exits(0).says("warn  row_movement").says("published again");
    case.check(&["--table", "outbox_00"])
        .exits(1)
        .says("public.outbox_00 is a partition, and walpost publishes its rows as public.outbox's");
    case.sql(
        "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; \
         CREATE FOREIGN TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1) SERVER nowhere",
    );
    case.check(&[]).exits(1).says("partition public.outbox_1 of public.outbox is a foreign table");

    let case = Server::shared().database().ready();
    case.sql("CREATE TABLE outbox_old () INHERITS (outbox)");
    case.check(&[])
        .exits(1)
        .says("public.outbox has children by inheritance (public.outbox_old)")
        .says("ALTER TABLE public.outbox_old NO INHERIT public.outbox");
}

#[test]
fn settings_that_make_a_relay_harmful_are_warned_of() {
    let settings = ["wal_level=logical", "synchronous_standby_names=*", "synchronous_commit=local"];
    let server = Server::start(&settings);
    let case = server.database().ready();
    case.check(&[])
        .exits(0)
        .says("warn  synchronous_standby_names")
        .says("with the broker away, every COMMIT waits for it");
}

#[test]
fn version_19_may_leave_tables_out_and_raises_wal_level_by_itself() {
    if Version::V19.is_left_out() {
        return;
    }
    let server = Server::of(&Version::V19.programs(), &["wal_level=replica"]);
    let case = server.database();
    case.check(&[]).says("ok    wal_level      replica, which the first logical slot raises");
    case.walpost(&["init"]).exits(0);
    case.check(&[]).exits(0).says("ok    wal_level      replica, which a logical slot has raised");
    case.sql(
        "DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR ALL TABLES \
         EXCEPT (TABLE outbox) WITH (publish = 'insert')",
    );
    case.check(&[])
        .exits(1)
        .says("walpost is for all tables except public.outbox")
        .says("ALTER PUBLICATION walpost SET ALL TABLES");
    case.sql("ALTER PUBLICATION walpost SET ALL TABLES");
    case.check(&[]).exits(0).says("ok    publication");
}
