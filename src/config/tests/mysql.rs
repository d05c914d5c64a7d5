//! `[source]` of a MySQL or MariaDB database.

use std::path::PathBuf;

use super::*;

const MYSQL: [(&str, &str); 2] =
    [("WALPOST_SOURCE", "mysql://u@h/shop"), ("WALPOST_SINK", "stdout://")];

fn loaded(more: &[(&str, &str)]) -> Result<Values, ConfigError> {
    Values::load(None, variables(&[MYSQL.as_slice(), more].concat()), &[])
}

fn mysql(more: &[(&str, &str)]) -> Result<MySqlSettings, ConfigError> {
    match loaded(more)?.settings()?.source {
        SourceSettings::MySql(source) => Ok(source),
        SourceSettings::Postgres(_) => panic!("it is a MySQL source"),
    }
}

fn problem(name: &str, value: &str) -> String {
    mysql(&[(name, value)]).unwrap_err().to_string()
}

fn table(schema: &str, name: &str) -> QualifiedName {
    QualifiedName { schema: schema.into(), name: name.into() }
}

#[test]
fn two_urls_are_enough_for_mysql_and_mariadb() {
    let source = mysql(&[]).unwrap();

    assert_eq!(source.url.read().unwrap().expose(), "mysql://u@h/shop");
    assert_eq!(source.name, "walpost");
    assert_eq!(source.server_id, None);
    assert_eq!(source.table, table("shop", "outbox"));
    let place = PositionPlace::Source { table: table("shop", "walpost_position") };
    assert_eq!(source.position, place);
    assert_eq!(source.initial, Initial::Publish, "nothing is lost by default");
    assert_eq!(source.lease, Duration::from_secs(10));
    assert_eq!(source.ack_interval, Duration::from_millis(100));
    assert_eq!(source.heartbeat, Duration::from_secs(5));
    assert_eq!(source.row_bytes_max, 64 << 20);
    assert_eq!(source.payload_bytes_max, 256 << 20);
    let mariadb = [("WALPOST_SOURCE", "mariadb://u@h/shop"), ("WALPOST_SINK", "stdout://")];
    let settings = Values::load(None, variables(&mariadb), &[]).unwrap().settings().unwrap();
    assert!(matches!(settings.source, SourceSettings::MySql(_)));
    assert_eq!(settings.relay.name, "walpost");
}

#[test]
fn a_key_of_the_other_kind_of_database_is_refused_with_its_place() {
    // Given keys of PostgreSQL beside the URL of a MySQL, as somebody leaves them who moves
    assert_eq!(
        problem("WALPOST_SOURCE_SLOT", "orders"),
        "source.slot (WALPOST_SOURCE_SLOT): belongs to a PostgreSQL source, and this one is MySQL \
         or MariaDB; leave it out"
    );
    assert!(problem("WALPOST_SOURCE_LET_GO_AFTER", "5s").contains("belongs to a PostgreSQL"));

    // Then the same holds the other way round, also for a secret that came from a file
    assert_eq!(
        problem_with("WALPOST_SOURCE_INITIAL", "skip"),
        "source.initial (WALPOST_SOURCE_INITIAL): belongs to a MySQL or MariaDB source, and this \
         one is PostgreSQL; leave it out"
    );
    let place = File::new("misplaced", "file:/position");
    let problem = problem_with("WALPOST_SOURCE_POSITION_FILE", place.0.to_str().unwrap());
    assert!(problem.contains("belongs to a MySQL or MariaDB source"), "{problem}");
}

#[test]
fn the_effective_settings_are_those_of_the_right_database() {
    let shown = loaded(&[]).unwrap().effective();
    for line in ["table = \"outbox\"", "initial = \"publish\"", "lease = \"10s\""] {
        assert!(shown.contains(line), "{line}:\n{shown}");
    }
    for line in ["slot", "publication", "public.outbox", "let_go_after"] {
        assert!(!shown.contains(line), "{line}:\n{shown}");
    }

    let shown = Values::load(None, variables(&URLS), &[]).unwrap().effective();
    for line in ["position", "initial", "lease", "payload_bytes_max", "table = \"outbox\""] {
        assert!(!shown.contains(line), "{line}:\n{shown}");
    }
}

#[test]
fn the_outbox_is_in_the_database_of_the_url_or_in_its_own() {
    let of = |written| mysql(&[("WALPOST_SOURCE_TABLE", written)]).unwrap();
    assert_eq!(of("events").table, table("shop", "events"));
    let other = of("billing.events");
    assert_eq!(other.table, table("billing", "events"));
    let beside = PositionPlace::Source { table: table("billing", "walpost_position") };
    assert_eq!(other.position, beside, "the position is beside the outbox");

    for (url, database) in [
        ("mysql://u:p@h:3306/shop?ssl-ca=/etc/a@b/ca.pem", Some("shop")),
        ("mysql://u:p%2Fw@[::1]:3306/my%20shop", Some("my shop")),
        ("mysql://h/shop", Some("shop")),
        ("mysql://u@h", None),
        ("mysql://u@h/", None),
        ("mysql://u@h/?socket=/run/mysqld.sock", None),
    ] {
        let given = [("WALPOST_SOURCE", url), ("WALPOST_SINK", "stdout://")];
        let settings = Values::load(None, variables(&given), &[]).unwrap().settings();
        match (settings, database) {
            (Ok(settings), Some(database)) => match settings.source {
                SourceSettings::MySql(source) => assert_eq!(source.table.schema, database),
                SourceSettings::Postgres(_) => panic!("{url}"),
            },
            (Err(error), None) => assert_eq!(
                error.to_string(),
                "source.url (WALPOST_SOURCE): needs the database that holds the outbox: \
                 mysql://USER@HOST/DATABASE"
            ),
            (Ok(_), None) | (Err(_), Some(_)) => panic!("{url}"),
        }
    }
}

#[test]
fn a_position_can_be_kept_in_another_server_or_in_a_file() {
    let of = |written| mysql(&[("WALPOST_SOURCE_POSITION", written)]).unwrap().position;
    assert_eq!(of("file:/var/lib/walpost/at"), PositionPlace::File("/var/lib/walpost/at".into()));
    assert_eq!(of("file:///at"), PositionPlace::File(PathBuf::from("/at")));
    let url = "mariadb://u:hunter2@other/relays";
    let place =
        PositionPlace::Server { url: Secret::new(url), table: table("relays", "walpost_position") };
    assert_eq!(of(url), place);

    // And the password in it shows nowhere
    let shown = loaded(&[("WALPOST_SOURCE_POSITION", url)]).unwrap().effective();
    assert!(shown.contains("position = \"mariadb://u:***@other/relays\""), "{shown}");
    assert!(!format!("{place:?}").contains("hunter2"));
}

#[test]
fn each_value_that_a_mysql_source_cannot_take_is_explained() {
    for (name, value, expected) in [
        ("SOURCE_INITIAL", "all", "must be publish or skip"),
        ("SOURCE_SERVER_ID", "0", "must be a whole number from 1 to 4294967295"),
        ("SOURCE_SERVER_ID", "x", "must be a whole number from 1 to 4294967295"),
        ("SOURCE_LEASE", "1s", "must be at least 2s"),
        ("SOURCE_HEARTBEAT", "50ms", "must be at least 100ms"),
        ("SOURCE_PAYLOAD_BYTES_MAX", "2GiB", "must be from 1024 to 1073741824 bytes"),
        (
            "SOURCE_TABLE",
            "a.b.c",
            "\"a.b.c\" is no table; write it as outbox, shop.outbox or `my.shop`.outbox",
        ),
        (
            "SOURCE_POSITION",
            "/var/at",
            "must be source, mysql://USER@HOST/DATABASE of a server that takes writes, or \
             file:/PATH",
        ),
        ("SOURCE_POSITION", "file:at", "must be file: and the whole path of a file, from / on"),
        (
            "SOURCE_POSITION",
            "mysql://u@h",
            "needs a database for the table of positions: mysql://USER@HOST/DATABASE",
        ),
        (
            "RELAY_NAME",
            "two words",
            "names the position of a MySQL source: 1 to 64 visible ASCII characters",
        ),
    ] {
        let variable = format!("WALPOST_{name}");
        assert_eq!(
            problem(&variable, value).split_once(&format!(" ({variable}): ")).unwrap().1,
            expected
        );
    }
}

#[test]
fn relays_that_may_work_at_once_have_different_server_ids() {
    let id = |more: &[(&str, &str)]| mysql(more).unwrap().server_id();

    // Given two tables, or two names: two relays; and each keeps its id over a restart
    let first = id(&[]);
    assert_eq!(first, id(&[]));
    assert!(first >= 1 << 31, "people number from 1");
    assert_ne!(first, id(&[("WALPOST_SOURCE_TABLE", "billing.outbox")]));
    assert_ne!(first, id(&[("WALPOST_RELAY_NAME", "orders")]));
    assert_eq!(first, 2_657_435_316, "the same in every version of walpost");

    // And what somebody wrote is taken as it is, from the environment or a file
    assert_eq!(id(&[("WALPOST_SOURCE_SERVER_ID", "4711")]), 4711);
    let file = File::new("server-id", "[source]\nserver_id = 4711\n");
    let settings = Values::load(Some(&file.0), variables(&MYSQL), &[]).unwrap().settings().unwrap();
    assert!(matches!(settings.source, SourceSettings::MySql(source) if source.server_id() == 4711));
}

#[test]
fn a_password_goes_into_a_url_of_mysql_too() {
    let source = mysql(&[("WALPOST_SOURCE_PASSWORD", "hunt@r/2")]).unwrap();
    assert_eq!(source.url.read().unwrap().expose(), "mysql://u:hunt%40r%2F2@h/shop");
}
