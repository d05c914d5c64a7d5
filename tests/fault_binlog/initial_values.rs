//! A row is the same message by a first start, which reads the table, as by the stream, which reads
//! the binlog: every type, whatever the server's defaults are.

use std::collections::HashMap;

use crate::support::database::{Initial, init, relay_first};
use crate::support::mysql::{Client, MySql, Version};
use crate::support::process::eventually;
use crate::support::stage::{PATIENCE, quick};

use super::VERSIONS;

/// Rows of each type's table, beside those of nothing but NULL and of each type's borders.
const ROWS: u64 = 40;

/// What a server may have otherwise than a relay expects.
const DEFAULTS: &[&str] = &[
    "--default-time-zone=+09:00",
    "--sql-mode=PAD_CHAR_TO_FULL_LENGTH,ANSI_QUOTES,NO_BACKSLASH_ESCAPES",
    "--character-set-server=latin1",
    "--autocommit=OFF",
    "--lc-time-names=de_DE",
];

/// Name and type of a column, values at its borders, and an expression of a random one.
type Case = (&'static str, &'static str, &'static [&'static str], &'static str);

const CASES: &[Case] = &[
    ("i8", "tinyint", &["-128", "127"], "FLOOR(RAND() * 256) - 128"),
    ("u8", "tinyint unsigned", &["0", "255"], "FLOOR(RAND() * 256)"),
    ("i24", "mediumint", &["-8388608", "8388607"], "FLOOR(RAND() * 16777216) - 8388608"),
    ("i64", "bigint", &["-9223372036854775808", "9223372036854775807"], "FLOOR(RAND() * 1e15)"),
    ("u64", "bigint unsigned", &["0", "18446744073709551615"], "FLOOR(RAND() * 1e15)"),
    ("bool", "boolean", &["0", "1"], "FLOOR(RAND() * 2)"),
    ("year", "year", &["1901", "2155"], "1901 + FLOOR(RAND() * 254)"),
    ("bits", "bit(64)", &["b'0'", "18446744073709551615"], "FLOOR(RAND() * 1e15)"),
    (
        "dec",
        "decimal(30,10)",
        &["-0.0000000001", "99999999999999999999.9999999999"],
        "RAND() * 1e12 - 5e11",
    ),
    ("int_dec", "decimal(5)", &["-99999", "0"], "FLOOR(RAND() * 99999)"),
    (
        "dbl",
        "double",
        &["-1.7976931348623157e308", "0.1"],
        "(RAND() - 0.5) * POW(10, FLOOR(RAND() * 40) - 20)",
    ),
    (
        "flt",
        "float",
        &["0.1", "-3.4028235e38"],
        "(RAND() - 0.5) * POW(10, FLOOR(RAND() * 40) - 20)",
    ),
    (
        "chr",
        "char(12) CHARACTER SET utf8mb4",
        &["''", "'żółw 🐢'"],
        "LEFT(SHA2(RAND(), 256), FLOOR(RAND() * 12))",
    ),
    (
        "latin",
        "varchar(20) CHARACTER SET latin1",
        &["'é ß'", "' a '"],
        "LEFT(SHA2(RAND(), 256), FLOOR(RAND() * 20))",
    ),
    (
        "txt",
        "text CHARACTER SET utf8mb4",
        &["'x\ty\\\\z'", "'\"'"],
        "REPEAT(SHA2(RAND(), 256), FLOOR(RAND() * 9))",
    ),
    (
        "bin",
        "binary(9)",
        &["X'00'", "X'ff00ff000000000000'"],
        "UNHEX(LEFT(SHA2(RAND(), 256), 2 * FLOOR(RAND() * 9)))",
    ),
    (
        "vbin",
        "varbinary(20)",
        &["X''", "X'00ff00'"],
        "UNHEX(LEFT(SHA2(RAND(), 256), 2 * FLOOR(RAND() * 9)))",
    ),
    ("blb", "blob", &["X'00'", "X'ff'"], "UNHEX(SHA2(RAND(), 256))"),
    (
        "dat",
        "date",
        &["'1000-01-01'", "'9999-12-31'"],
        "'2020-01-01' + INTERVAL FLOOR(RAND() * 9999) DAY",
    ),
    (
        "tim",
        "time(3)",
        &["'-838:59:59.000'", "'00:00:00.001'"],
        "SEC_TO_TIME(FLOOR(RAND() * 99999))",
    ),
    (
        "dt",
        "datetime",
        &["'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'"],
        "'2020-01-01' + INTERVAL FLOOR(RAND() * 1e8) SECOND",
    ),
    (
        "dt6",
        "datetime(6)",
        &["'2024-02-29 10:34:56.789012'", "'1970-01-01 00:00:00.000001'"],
        "'2020-01-01' + INTERVAL FLOOR(RAND() * 1e15) MICROSECOND",
    ),
    (
        "ts",
        "timestamp NULL",
        &["'1970-01-02 00:00:01'", "'2038-01-18 03:14:07'"],
        "'2020-01-01' + INTERVAL FLOOR(RAND() * 1e8) SECOND",
    ),
    (
        "ts3",
        "timestamp(3) NULL",
        &["'1970-01-02 00:00:01.001'", "'2038-01-18 03:14:07.999'"],
        "'2020-01-01' + INTERVAL FLOOR(RAND() * 1e8) SECOND",
    ),
    ("enm", "enum('a','B c','') CHARACTER SET utf8mb4", &["'B c'", "''"], "1 + FLOOR(RAND() * 3)"),
    ("st", "set('x','y','z')", &["''", "'x,z'"], "FLOOR(RAND() * 8)"),
    (
        "jsn",
        "json",
        &["'{\"b\": [1, 2.5, \"é\"], \"a\": null}'", "'true'"],
        "CONCAT('{\"n\": ', FLOOR(RAND() * 1e9), '}')",
    ),
];

/// An outbox with a column of each type, and rows of it.
fn fill(client: &Client) {
    let columns: Vec<String> =
        CASES.iter().map(|(name, data_type, ..)| format!("c_{name} {data_type} NULL")).collect();
    client.run(&format!(
        "CREATE TABLE outbox (id binary(16) PRIMARY KEY, aggregatetype varchar(255) NOT NULL, \
         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload json, \
         created_at timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), {})",
        columns.join(", ")
    ));
    let names: Vec<String> = CASES.iter().map(|(name, ..)| format!("c_{name}")).collect();
    let mut rows: Vec<Vec<&str>> = vec![vec!["NULL"; CASES.len()]];
    for border in 0..2 {
        rows.push(CASES.iter().map(|(_, _, borders, _)| borders[border]).collect());
    }
    rows.extend((0..ROWS).map(|_| CASES.iter().map(|(.., random)| *random).collect()));
    // Whatever the session's defaults are, these mean what they say.
    client.run("SET SESSION sql_mode = '', autocommit = 1, time_zone = '+00:00'");
    // What is stored, and is no day of the calendar.
    let zero = |data_type: &str| match data_type {
        "date" => "'0000-00-00'",
        "datetime" | "datetime(6)" => "'0000-00-00 00:00:00'",
        _ => "NULL",
    };
    rows.push(CASES.iter().map(|(_, data_type, ..)| zero(data_type)).collect());
    for (number, values) in rows.iter().enumerate() {
        client.run(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, {}) VALUES \
             (UNHEX(LPAD(HEX({number}), 32, 'ab')), 'Values', 'k{number}', 'T', '{{\"n\": {number}}}', {})",
            names.join(", "),
            values.join(", ")
        ));
    }
}

/// What the stdout sink wrote of each row, by key; all of it but the identity, which names the way.
fn written(log: &str) -> HashMap<String, serde_json::Value> {
    let lines = log.lines().filter(|line| line.starts_with("{\"topic\""));
    let message = |line: &str| {
        let mut message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        message.as_object_mut().expect("an object").remove("identity");
        (message["key"].as_str().expect("a key").to_owned(), message)
    };
    lines.map(message).collect()
}

fn is_the_same_by_both_ways(version: Version) {
    // given a server with defaults of its own, and a position before any row
    let server = MySql::start_with(version, DEFAULTS);
    let name = server.fresh_database("values");
    let client = server.client_for(&name);
    client.run(
        "CREATE TABLE outbox (id binary(16) PRIMARY KEY, aggregatetype varchar(255), \
         aggregateid varchar(255), type varchar(255), payload json)",
    );
    init(&server.url_for(&name), "stream");
    client.run("DROP TABLE outbox");
    fill(&client);
    // when one relay reads the rows from the binlog and another one from the table
    let sets: Vec<String> = CASES
        .iter()
        .map(|(name, ..)| format!("outbox.extra_headers.c-{}=c_{name}", name.replace('_', "-")))
        .collect();
    let published = ["stream", "first"].map(|relay_name| {
        let source = server.url_for(&name);
        let mut relay = relay_first(&source, "stdout://", relay_name, Initial::Publish);
        for set in &sets {
            relay = relay.args(&["--set", set]);
        }
        let mut relay = quick(relay).started();
        let all = || written(&relay.log()).len() == ROWS as usize + 4;
        assert!(eventually(PATIENCE, all), "{version:?} {relay_name}\n{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        written(&relay.log())
    });
    // then both have published the same
    let [stream, first] = published;
    assert_eq!(stream.len(), first.len());
    let mut differences = Vec::new();
    for (key, by_stream) in &stream {
        let by_table =
            first.get(key).unwrap_or_else(|| panic!("{version:?}: row {key} is missing"));
        for (name, value) in by_stream.as_object().expect("an object") {
            let other = &by_table[name];
            match (value.as_array(), other.as_array()) {
                (Some(values), Some(others)) if values.len() == others.len() => {
                    let pairs = values.iter().zip(others).filter(|(value, other)| value != other);
                    differences.extend(pairs.map(|pair| format!("{key}: {pair:?}")));
                }
                _ if value == other => {}
                _ => differences.push(format!("{key}: {name} {value} {other}")),
            }
        }
    }
    assert!(differences.is_empty(), "{version:?}\n{}", differences.join("\n"));
}

#[test]
fn a_row_of_any_type_is_the_same_message_by_a_first_start_and_by_the_stream() {
    for version in VERSIONS.into_iter().filter(|version| !version.is_left_out()) {
        is_the_same_by_both_ways(version);
    }
}
