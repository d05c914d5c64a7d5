//! The judgements, by answers as the servers give them.

use std::time::Duration;

use super::*;
use crate::config::{Initial, OutboxSettings, POSITION_TABLE, QualifiedName, Secret};
use crate::outbox::Columns;
use crate::source::Standing;
use crate::source::mysql::inspect::{
    ColumnState, Galera, GtidState, Holder, PlaceState, PositionState, PositionTable, TableState,
};

fn server(flavor: Flavor) -> ServerState {
    let (version, version_text) = match flavor {
        Flavor::MySql => ((9, 7), "9.7.4-2"),
        Flavor::MariaDb => ((10, 11), "10.11.19-MariaDB"),
    };
    ServerState {
        flavor,
        version,
        version_text: version_text.into(),
        server_id: 1,
        server_uuid: (flavor == Flavor::MySql).then(|| "uuid-1".into()),
        logs: true,
        format: "ROW".into(),
        row_image: "FULL".into(),
        row_metadata: Some("FULL".into()),
        checksum: "CRC32".into(),
        gtid_mode: (flavor == Flavor::MySql).then(|| "ON".into()),
        gtid_strict: (flavor == Flavor::MariaDb).then_some(true),
        sync_binlog: 1,
        expire_seconds: 0,
        read_only: None,
        logs_replicated: true,
        galera: None,
        packet_bytes_max: 64 << 20,
        account: "walpost@%".into(),
    }
}

fn name(table: &str) -> QualifiedName {
    QualifiedName { schema: "shop".into(), name: table.into() }
}

fn settings() -> MySqlSettings {
    MySqlSettings {
        url: Secret::new("mysql://walpost@h/shop"),
        name: "walpost".into(),
        server_id: None,
        table: name("outbox"),
        position: PositionPlace::Source { table: name(POSITION_TABLE) },
        initial: Initial::Publish,
        initial_order: None,
        lease: Duration::from_secs(10),
        ack_interval: Duration::from_millis(100),
        heartbeat: Duration::from_secs(5),
        row_bytes_max: 64 << 20,
        payload_bytes_max: 256 << 20,
        held_bytes_max: 1 << 20,
        skip_transactions: Vec::new(),
    }
}

fn outbox() -> OutboxSettings {
    OutboxSettings {
        columns: Columns::debezium(),
        topic: "t".into(),
        extra_headers: Vec::new(),
        partition: None,
    }
}

fn column(name: &str, type_text: &str, charset: Option<&str>) -> ColumnState {
    ColumnState {
        name: name.into(),
        data_type: type_text.split(['(', ' ']).next().unwrap().into(),
        type_text: type_text.into(),
        charset: charset.map(str::to_owned),
    }
}

fn table() -> TableState {
    let text = Some("utf8mb4");
    TableState {
        name: name("outbox"),
        kind: "BASE TABLE".into(),
        engine: Some("InnoDB".into()),
        columns: vec![
            column("id", "char(36)", Some("ascii")),
            column("aggregatetype", "varchar(255)", text),
            column("aggregateid", "varchar(255)", text),
            column("type", "varchar(255)", text),
            column("payload", "json", None),
        ],
        key: vec!["id".into()],
        counter: None,
    }
}

/// The one finding that does not hold, or the first.
#[track_caller]
fn wrong(findings: &[Finding], standing: Standing) -> (&str, &str) {
    let finding = findings.iter().find(|finding| finding.standing == standing);
    let finding = finding.unwrap_or_else(|| panic!("none stands as {standing:?}: {findings:?}"));
    (&finding.detail, finding.fix.as_deref().unwrap())
}

fn all_ok(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.standing == Standing::Ok)
}

#[test]
fn servers_as_they_should_be_hold_in_every_point() {
    for flavor in [Flavor::MySql, Flavor::MariaDb] {
        let findings = judge_server(&server(flavor));
        assert!(all_ok(&findings), "{findings:?}");
        assert!(findings.len() >= 9, "each variable is told of");
    }
}

#[test]
fn each_variable_that_hides_rows_fails_with_the_statement_that_mends_it() {
    type Break = fn(&mut ServerState);
    let cases: [(Break, &str, &str); 6] = [
        (
            |server| server.format = "MIXED".into(),
            "it is MIXED",
            "SET PERSIST binlog_format = ROW;",
        ),
        (
            |server| server.row_image = "NOBLOB".into(),
            "it is NOBLOB",
            "SET PERSIST binlog_row_image = FULL;",
        ),
        (
            |server| server.row_metadata = Some("MINIMAL".into()),
            "it is MINIMAL",
            "SET PERSIST binlog_row_metadata = FULL;",
        ),
        (|server| server.row_metadata = None, "does not have it", "use MySQL 8.0 or later"),
        (|server| server.logs = false, "there is no binlog", "--log-bin"),
        (|server| server.version = (5, 7), "is too old", "use MySQL 8.0 or later"),
    ];
    for (break_it, detail, fix) in cases {
        let mut broken = server(Flavor::MySql);
        break_it(&mut broken);
        let findings = judge_server(&broken);
        let (found, remedy) = wrong(&findings, Standing::Fail);
        assert!(found.contains(detail) && remedy.contains(fix), "{found}; {remedy}");
    }
    let mut broken = server(Flavor::MariaDb);
    broken.row_metadata = Some("NO_LOG".into());
    let findings = judge_server(&broken);
    let (_, remedy) = wrong(&findings, Standing::Fail);
    assert!(
        remedy.starts_with("SET GLOBAL binlog_row_metadata = FULL;") && remedy.contains("[mysqld]"),
        "MariaDB has no SET PERSIST: {remedy}"
    );
}

#[test]
fn what_works_and_could_be_better_is_a_warning() {
    type Break = fn(&mut ServerState);
    let cases: [(Flavor, Break, &str); 6] = [
        (Flavor::MySql, |server| server.checksum = "NONE".into(), "damaged event"),
        (Flavor::MySql, |server| server.gtid_mode = Some("OFF".into()), "a file and an offset"),
        (Flavor::MySql, |server| server.gtid_mode = None, "a file and an offset"),
        (Flavor::MariaDb, |server| server.gtid_strict = Some(false), "out of order"),
        (Flavor::MariaDb, |server| server.sync_binlog = 0, "when the machine fails"),
        (Flavor::MySql, |server| server.expire_seconds = 3600, "for 60 minutes"),
    ];
    for (flavor, break_it, detail) in cases {
        let mut broken = server(flavor);
        break_it(&mut broken);
        let findings = judge_server(&broken);
        let (found, _) = wrong(&findings, Standing::Warn);
        assert!(found.contains(detail), "{found}");
    }
}

#[test]
fn a_read_only_source_says_where_the_position_can_go() {
    let mut replica = server(Flavor::MySql);
    replica.read_only = Some("super_read_only");
    let findings = judge_read_only(&settings(), &replica);
    let (detail, fix) = wrong(&findings, Standing::Fail);
    assert!(detail.starts_with("super_read_only is ON"), "{detail}");
    assert!(fix.contains("mysql://USER@HOST/DATABASE") && fix.contains("file:/"), "{fix}");

    // Given a position elsewhere, then only the binlog of what it replicates matters
    let mut elsewhere = settings();
    elsewhere.position = PositionPlace::File("/at".into());
    assert!(all_ok(&judge_read_only(&elsewhere, &replica)));
    replica.logs_replicated = false;
    let findings = judge_read_only(&elsewhere, &replica);
    assert!(wrong(&findings, Standing::Fail).0.contains("log_slave_updates is OFF"));
}

#[test]
fn each_right_that_is_missing_has_its_grant() {
    let judge = |flavor, grants, first| judge_grants(&settings(), &server(flavor), grants, first);
    let all = Grants { replicates: true, asks: true, locks: true };
    assert!(all_ok(&judge(Flavor::MySql, all, true)));

    let findings = judge(Flavor::MySql, Grants { replicates: false, ..all }, false);
    let (_, fix) = wrong(&findings, Standing::Fail);
    assert_eq!(fix, "GRANT REPLICATION SLAVE ON *.* TO 'walpost'@'%';");
    let findings = judge(Flavor::MySql, Grants { asks: false, ..all }, true);
    assert!(wrong(&findings, Standing::Fail).1.contains("GRANT REPLICATION CLIENT"));
    let findings = judge(Flavor::MySql, Grants { asks: false, ..all }, false);
    assert!(wrong(&findings, Standing::Warn).1.contains("GRANT REPLICATION CLIENT"));

    // Locks are for a first start on MySQL only
    let without = Grants { locks: false, ..all };
    let findings = judge(Flavor::MySql, without, true);
    let (_, fix) = wrong(&findings, Standing::Fail);
    assert_eq!(fix, "GRANT LOCK TABLES ON shop.* TO 'walpost'@'%';");
    assert!(all_ok(&judge(Flavor::MySql, without, false)));
    assert!(all_ok(&judge(Flavor::MariaDb, without, true)));
}

#[test]
fn a_server_id_that_clashes_is_told_before_the_server_ends_connections() {
    let ours = settings().server_id();
    let judge = |server: &ServerState, replicas: &[u32], held| {
        judge_server_id(&settings(), server, Some(replicas), held)
    };
    let mut source = server(Flavor::MySql);
    assert_eq!(judge(&source, &[7], false).standing, Standing::Ok);
    assert_eq!(judge(&source, &[7, ours], false).standing, Standing::Warn);
    assert_eq!(judge(&source, &[ours], true).standing, Standing::Ok, "the relay that we relieve");
    source.server_id = 0;
    assert_eq!(judge(&source, &[], false).standing, Standing::Fail);
    source.server_id = ours;
    assert_eq!(judge(&source, &[], false).standing, Standing::Fail);
}

#[test]
fn a_database_that_is_filtered_out_of_the_binlog_fails() {
    let log = |only: &[&str], ignored: &[&str]| LogState {
        file: "binlog.000002".into(),
        position: 4,
        only: only.iter().map(|name| (*name).to_owned()).collect(),
        ignored: ignored.iter().map(|name| (*name).to_owned()).collect(),
        files: Vec::new(),
    };
    let judge = |log: LogState| judge_log(&settings(), Some(&log));
    assert_eq!(judge(log(&[], &["test"])), None);
    assert_eq!(judge(log(&["shop", "crm"], &[])), None);
    assert!(judge(log(&["crm"], &[])).unwrap().detail.contains("binlog_do_db"));
    assert!(judge(log(&[], &["shop"])).unwrap().detail.contains("binlog_ignore_db"));
}

#[test]
fn a_node_of_galera_names_its_transactions_as_the_others_do() {
    let node = |gtid_mode, logs_replicated| {
        let galera = Some(Galera { gtid_mode });
        judge_server(&ServerState { galera, logs_replicated, ..server(Flavor::MariaDb) })
    };
    let findings = node(Some(false), true);
    let (detail, fix) = wrong(&findings, Standing::Fail);
    assert!(detail.contains("leaves rows out"), "{detail}");
    assert!(fix.contains("wsrep_gtid_mode = ON") && fix.contains("wsrep_gtid_domain_id"), "{fix}");
    assert!(all_ok(&node(Some(true), true)));
    // Galera for MySQL has no such mode
    assert!(all_ok(&node(None, true)));
    // what other nodes write is not in a binlog that holds only its own
    let findings = node(Some(true), false);
    assert!(wrong(&findings, Standing::Fail).1.contains("log_slave_updates = ON"));
}

#[test]
fn a_table_that_cannot_be_read_from_the_binlog_fails() {
    let source = server(Flavor::MySql);
    let judge = |table: Option<&TableState>| {
        judge_table(&settings(), &outbox(), &source, table, Some(true))
    };
    assert!(all_ok(&judge(Some(&table()))));
    assert!(wrong(&judge(None), Standing::Fail).0.contains("there is no table shop.outbox"));

    let view = TableState { kind: "VIEW".into(), engine: None, ..table() };
    assert!(wrong(&judge(Some(&view)), Standing::Fail).0.contains("is a view"));
    let other = TableState { engine: Some("MyISAM".into()), ..table() };
    let findings = judge(Some(&other));
    assert_eq!(wrong(&findings, Standing::Fail).1, "ALTER TABLE shop.outbox ENGINE = InnoDB;");
    let versioned = TableState { kind: "SYSTEM VERSIONED".into(), ..table() };
    let findings = judge(Some(&versioned));
    let (detail, fix) = wrong(&findings, Standing::Fail);
    assert!(detail.contains("WITH SYSTEM VERSIONING"), "{detail}");
    assert!(fix.contains("DROP SYSTEM VERSIONING"), "{fix}");
    let spelt = TableState { name: name("Outbox"), ..table() };
    assert!(wrong(&judge(Some(&spelt)), Standing::Fail).1.contains("shop.Outbox"));
    let findings = judge_table(&settings(), &outbox(), &source, Some(&table()), Some(false));
    let (_, fix) = wrong(&findings, Standing::Fail);
    assert_eq!(fix, "GRANT SELECT ON shop.outbox TO 'walpost'@'%';");
}

#[test]
fn columns_are_judged_by_name_type_and_character_set() {
    let source = server(Flavor::MariaDb);
    let with = |changed: ColumnState| {
        let mut table = table();
        table.columns.retain(|column| !column.name.eq_ignore_ascii_case(&changed.name));
        table.columns.push(changed);
        judge_table(&settings(), &outbox(), &source, Some(&table), None)
    };
    for (changed, detail, fix) in [
        (column("payload", "point", None), "payload is point", "one of type json"),
        (column("headers", "blob", None), "headers is blob", "one of type json"),
        (column("created_at", "date", None), "created_at is date", "one of type timestamp(6)"),
        (column("id", "point", None), "id is point", "one of type varchar(255)"),
        (column("ID", "char(36)", None), "spells column id as ID", "set outbox.columns.id to ID"),
        (
            column("payload", "longtext /*M!100301 COMPRESSED*/", Some("utf8mb4")),
            "must be a column that is not COMPRESSED",
            "set outbox.columns.payload",
        ),
        (column("type", "varchar(9)", Some("big5")), "kept in big5", "set outbox.columns.type"),
    ] {
        let findings = with(changed);
        let (found, remedy) = wrong(&findings, Standing::Fail);
        assert!(found.contains(detail) && remedy.contains(fix), "{found}; {remedy}");
    }
    for good in ["latin1", "cp1251", "gbk", "ucs2", "koi8r", "sjis", "utf16"] {
        assert!(all_ok(&with(column("type", "varchar(9)", Some(good)))), "{good}");
    }
    for good in ["binary(16)", "char(36)", "bigint unsigned", "uuid", "inet6", "inet4"] {
        assert!(all_ok(&with(column("id", good, None))), "{good}");
    }
    let mut lacking = table();
    lacking.columns.remove(2);
    let findings = judge_table(&settings(), &outbox(), &source, Some(&lacking), None);
    let (found, fix) = wrong(&findings, Standing::Fail);
    assert_eq!(found, "shop.outbox has no column aggregateid");
    assert!(fix.ends_with("one of its columns: id, aggregatetype, type, payload"), "{fix}");
}

fn place(flavor: &str, gtid_set: &str) -> PositionTable {
    let place = PlaceState {
        initial_pending: false,
        flavor: flavor.into(),
        server_uuid: if flavor == "mysql" { "uuid-1".into() } else { String::new() },
        gtid_set: gtid_set.into(),
        file: "binlog.000002".into(),
        position: 100,
    };
    PositionTable::Row(PositionState { place: Some(place), holder: None, age_seconds: 60 })
}

fn log() -> LogState {
    LogState {
        file: "binlog.000003".into(),
        position: 1000,
        only: Vec::new(),
        ignored: Vec::new(),
        files: vec![
            ("binlog.000001".into(), 5000),
            ("binlog.000002".into(), 4196),
            ("binlog.000003".into(), 1000),
        ],
    }
}

/// The findings about a position on a server whose binlog is `log`.
fn judged(source: &ServerState, table: &PositionTable, gtids: Option<&GtidState>) -> Vec<Finding> {
    let log = log();
    let (log, may_write) = (Some(&log), Some(true));
    let facts = PositionFacts { server: source, log, table, may_write, gtids, keeper: source };
    judge_position(&settings(), &facts)
}

#[test]
fn a_position_that_the_binlog_goes_on_from_holds_and_tells_how_far_it_is_behind() {
    let none = GtidState::default();
    for (flavor, word, set) in [
        (Flavor::MySql, "mysql", "uuid-1:1-9"),
        (Flavor::MySql, "mysql", ""),
        (Flavor::MariaDb, "mariadb", "0-1-9"),
    ] {
        let findings = judged(&server(flavor), &place(word, set), Some(&none));
        assert!(all_ok(&findings), "{findings:?}");
        let detail = &findings[0].detail;
        assert!(detail.contains("binlog.000002:100"), "{detail}");
        assert!(detail.ends_with(", 4.9 KiB behind"), "{detail}");
    }
}

#[test]
fn a_first_start_that_is_not_over_is_told() {
    let mut table = place("mysql", "uuid-1:1-9");
    if let PositionTable::Row(PositionState { place: Some(place), .. }) = &mut table {
        place.initial_pending = true;
    }
    let findings = judged(&server(Flavor::MySql), &table, Some(&GtidState::default()));
    assert!(all_ok(&findings), "{findings:?}");
    let detail = &findings[0].detail;
    assert!(detail.ends_with("that shop.outbox had before it are still going over"), "{detail}");
}

#[test]
fn a_position_that_cannot_be_read_on_from_says_what_is_missing() {
    let mysql = server(Flavor::MySql);
    let judge = |table: &PositionTable, gtids: &GtidState| judged(&mysql, table, Some(gtids));
    let none = GtidState::default();
    let gone = GtidState { purged: "uuid-1:5-7".into(), ..none.clone() };
    let findings = judge(&place("mysql", "uuid-1:1-4"), &gone);
    let (detail, fix) = wrong(&findings, Standing::Fail);
    assert!(detail.contains("has removed uuid-1:5-7"), "{detail}");
    assert!(fix.contains("DELETE FROM shop.walpost_position WHERE name = 'walpost';"), "{fix}");

    let unknown = GtidState { unknown: "uuid-2:1-4".into(), ..none.clone() };
    let findings = judge(&place("mysql", "uuid-2:1-4"), &unknown);
    assert!(wrong(&findings, Standing::Fail).0.contains("does not have uuid-2:1-4"));

    let findings = judge(&place("mariadb", "0-1-4"), &none);
    assert!(wrong(&findings, Standing::Fail).0.contains("written for mariadb, and this is MySQL"));

    // A file and an offset mean something on one server only, and as long as the file is there
    let mut other = mysql.clone();
    other.server_uuid = Some("uuid-2".into());
    let findings = judged(&other, &place("mysql", ""), None);
    assert!(wrong(&findings, Standing::Fail).0.contains("this is server uuid-2"));
    let mut removed = place("mysql", "");
    if let PositionTable::Row(PositionState { place: Some(place), .. }) = &mut removed {
        place.file = "binlog.000000".into();
    }
    let findings = judged(&mysql, &removed, None);
    assert!(wrong(&findings, Standing::Fail).0.contains("has removed binlog.000000"));
}

#[test]
fn a_position_of_gtids_is_not_read_on_by_its_offset_while_the_server_has_them_switched_off() {
    // The offset may be of the server before, and what is read by it has no name.
    let none = GtidState::default();
    for mode in ["ON_PERMISSIVE", "OFF"] {
        let mut source = server(Flavor::MySql);
        source.gtid_mode = Some(mode.into());
        let findings = judged(&source, &place("mysql", "uuid-1:1-9"), Some(&none));
        let (detail, fix) = wrong(&findings, Standing::Fail);
        assert!(detail.contains(mode), "{detail}");
        assert!(fix.contains("gtid_mode = ON"), "{fix}");
        assert!(all_ok(&judged(&source, &place("mysql", ""), Some(&none))));
    }
}

#[test]
fn a_relay_that_stands_still_is_warned_of_before_its_binlog_is_removed() {
    let mut source = server(Flavor::MySql);
    source.expire_seconds = 100;
    let findings = judged(&source, &place("mysql", ""), None);
    assert!(wrong(&findings, Standing::Warn).0.contains("removed after 100 seconds"));
}

#[test]
fn a_position_that_is_not_there_yet_or_held_says_what_happens_next() {
    let source = server(Flavor::MySql);
    let findings = judged(&source, &PositionTable::Missing, None);
    assert_eq!(wrong(&findings, Standing::Fail).1, "walpost init creates it");
    let findings = judged(&source, &PositionTable::Denied, None);
    let (_, fix) = wrong(&findings, Standing::Fail);
    let grant = "GRANT SELECT, INSERT, UPDATE ON shop.walpost_position TO 'walpost'@'%';";
    assert_eq!(fix, grant);
    let findings = judged(&source, &PositionTable::Empty, None);
    assert!(wrong(&findings, Standing::Warn).0.contains("the first run publishes"));

    let holder = Holder { name: "host-1".into(), left: Duration::from_millis(7_400) };
    let row = PositionState { place: None, holder: Some(holder), age_seconds: 0 };
    let findings = judged(&source, &PositionTable::Row(row), None);
    let held = findings.iter().find(|finding| finding.name == "position_holder").unwrap();
    assert!(held.detail.contains("held by host-1 for another 7.4 s"), "{}", held.detail);
}

#[test]
fn a_keeper_of_the_position_that_takes_no_writes_fails() {
    let mut elsewhere = settings();
    let url = Secret::new("mysql://u@other/relays");
    elsewhere.position = PositionPlace::Server { url, table: name(POSITION_TABLE) };
    let mut keeper = server(Flavor::MariaDb);
    let judge = |keeper: &ServerState| {
        let (source, table) = (server(Flavor::MySql), PositionTable::Empty);
        let (log, may_write, gtids) = (None, Some(false), None);
        let facts = PositionFacts { server: &source, log, table: &table, may_write, gtids, keeper };
        judge_position(&elsewhere, &facts)
    };
    let findings = judge(&keeper);
    assert!(wrong(&findings, Standing::Fail).0.contains("walpost@% may not write to"));
    keeper.read_only = Some("read_only");
    let findings = judge(&keeper);
    assert!(wrong(&findings, Standing::Fail).0.contains("read_only is ON in the server that"));
}
