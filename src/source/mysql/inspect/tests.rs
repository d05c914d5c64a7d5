use super::*;

fn variables(pairs: &[(&str, &str)]) -> ServerState {
    let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    server_state(pairs.collect(), "walpost@%".into())
}

/// As MySQL 9.7.4 answers.
const MYSQL: [(&str, &str); 14] = [
    ("binlog_checksum", "CRC32"),
    ("binlog_expire_logs_seconds", "2592000"),
    ("binlog_format", "ROW"),
    ("binlog_row_image", "FULL"),
    ("binlog_row_metadata", "MINIMAL"),
    ("gtid_mode", "ON"),
    ("log_bin", "ON"),
    ("log_replica_updates", "ON"),
    ("max_allowed_packet", "67108864"),
    ("read_only", "ON"),
    ("server_id", "1"),
    ("server_uuid", "f155b67c-eb38-11f1-9e2a-02fc00000001"),
    ("super_read_only", "OFF"),
    ("version", "9.7.4-2"),
];

/// As MariaDB 10.11.19 answers.
const MARIADB: [(&str, &str); 11] = [
    ("binlog_expire_logs_seconds", "0"),
    ("binlog_format", "MIXED"),
    ("binlog_row_metadata", "NO_LOG"),
    ("expire_logs_days", "10.000000"),
    ("gtid_strict_mode", "ON"),
    ("log_bin", "ON"),
    ("log_slave_updates", "OFF"),
    ("read_only", "OFF"),
    ("server_id", "11"),
    ("sync_binlog", "0"),
    ("version", "10.11.19-MariaDB-0+deb12u1-log"),
];

#[test]
fn the_variables_of_mysql_are_read() {
    let server = variables(&MYSQL);
    assert_eq!((server.flavor, server.version), (Flavor::MySql, (9, 7)));
    assert!(server.logs && server.logs_replicated);
    assert_eq!(server.row_metadata.as_deref(), Some("MINIMAL"));
    assert_eq!(server.gtid_mode.as_deref(), Some("ON"));
    assert_eq!(server.expire_seconds, 2_592_000);
    assert_eq!(server.read_only, Some("read_only"));
    assert_eq!((server.server_id, server.packet_bytes_max), (1, 64 << 20));
}

#[test]
fn the_variables_of_mariadb_are_read() {
    let server = variables(&MARIADB);
    assert_eq!((server.flavor, server.version), (Flavor::MariaDb, (10, 11)));
    assert!(!server.logs_replicated);
    assert_eq!((server.gtid_mode, server.gtid_strict), (None, Some(true)));
    assert_eq!(server.expire_seconds, 864_000, "days have decimals");
    assert_eq!(server.read_only, None);
    // MariaDB 12.1 and later name the kinds of accounts that are stopped.
    let newer = [("version", "12.1.2-MariaDB"), ("read_only", "NO_LOCK_NO_ADMIN")];
    assert_eq!(variables(&newer).read_only, Some("read_only"));
}

#[test]
fn a_version_is_read_from_whatever_stands_around_it() {
    for (text, expected) in [
        ("8.0.36-28.1", (8, 0)),
        ("5.5.5-10.6.16-MariaDB-log", (10, 6)),
        ("8.4.0", (8, 4)),
        ("x", (0, 0)),
        ("", (0, 0)),
    ] {
        assert_eq!(version(text), expected, "{text}");
    }
}

#[test]
fn rights_are_read_from_the_words_of_both_servers() {
    let read = |lines: &[&str]| {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        read_grants(&lines, "my_shop")
    };
    let all = Grants { replicates: true, asks: true, locks: true };
    assert_eq!(
        read(&[
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO `walpost`@`%`",
            "GRANT LOCK TABLES ON `my\\_shop`.* TO `walpost`@`%`",
        ]),
        all
    );
    assert_eq!(
        read(&[
            "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `w`@`%` IDENTIFIED BY PASSWORD \
             '*B69027D44F6E5EDC07F1AEAD1477967B16F28227'",
            "GRANT SELECT, LOCK TABLES ON `my_shop`.* TO `w`@`%`",
        ]),
        all
    );
    assert_eq!(read(&["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"]), all);
    assert_eq!(
        read(&[
            "GRANT USAGE ON *.* TO `w`@`%`",
            "GRANT ALL PRIVILEGES ON `other`.* TO `w`@`%`",
            "GRANT `reader`@`%` TO `w`@`%`",
        ]),
        Grants::default()
    );
    assert!(read(&["GRANT ALL PRIVILEGES ON `my%`.* TO `w`@`%`"]).locks, "a pattern may match");
    assert!(!read(&["GRANT ALL PRIVILEGES ON `my_shop`.* TO `w`@`%`"]).replicates);
}
