//! Texts in every character set and MariaDB's types that are binary to the log: published as the
//! server's own SELECT prints them, or refused before the first row.

use std::process::Output;

use super::{on_each, refuses, to_nobody};
use crate::support::broker::Kind;
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version};
use crate::support::relay::program;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage, drains, quick};

/// Character sets that are converted, with what their texts are made of.
const SETS: [(&str, Texts); 21] = [
    ("latin1", Texts::Bytes),
    ("koi8r", Texts::Bytes),
    ("koi8u", Texts::Bytes),
    ("latin2", Texts::Bytes),
    ("latin5", Texts::Bytes),
    ("latin7", Texts::Bytes),
    ("greek", Texts::Bytes),
    ("hebrew", Texts::Bytes),
    ("cp866", Texts::Bytes),
    ("cp1250", Texts::Bytes),
    ("cp1251", Texts::Bytes),
    ("cp1256", Texts::Bytes),
    ("cp1257", Texts::Bytes),
    ("macroman", Texts::Bytes),
    ("tis620", Texts::Bytes),
    ("gbk", Texts::Pairs(0x81..=0xFE, 0x40..=0xFE)),
    ("gb2312", Texts::Pairs(0xA1..=0xF7, 0xA1..=0xFE)),
    ("euckr", Texts::Pairs(0x81..=0xFE, 0x81..=0xFE)),
    ("sjis", Texts::Pairs(0x81..=0x9F, 0x40..=0xFC)),
    ("cp932", Texts::Pairs(0xE0..=0xFC, 0x40..=0xFC)),
    ("ucs2", Texts::Plane),
];

#[derive(Clone)]
enum Texts {
    /// Every byte.
    Bytes,
    /// Every pair of such bytes.
    Pairs(std::ops::RangeInclusive<u8>, std::ops::RangeInclusive<u8>),
    /// Every character of the first plane.
    Plane,
}

impl Texts {
    /// One text with all of it.
    fn all(self) -> Vec<u8> {
        match self {
            Texts::Bytes => (1..=255).collect(),
            Texts::Pairs(first, second) => {
                let mut text = Vec::new();
                for first in first {
                    let seconds = second.clone().filter(|byte| *byte != 0x7F);
                    text.extend(seconds.flat_map(|second| [first, second]));
                }
                text
            }
            Texts::Plane => {
                let all = (1..=0xFFFF_u16).filter(|unit| !(0xD800..0xE000).contains(unit));
                all.flat_map(u16::to_be_bytes).collect()
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn converts(server: &MySql) {
    // given a relay, and an outbox whose payload goes from set to set
    let mut stage = Stage::set(server, Kind::Nats, "charsets");
    let mut relay = stage.relay(server).started();
    let client = stage.client(server);
    client.run("SET NAMES utf8mb4");
    let mut expected = Vec::new();
    for (number, (set, texts)) in (1..).zip(SETS) {
        client.run("DELETE FROM outbox");
        client.run(&format!("ALTER TABLE outbox MODIFY payload longtext CHARACTER SET {set}"));
        // when a text with every character of it is inserted
        client.run(&format!(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES \
             (UNHEX(LPAD(HEX({number}), 32, '0')), '{AGGREGATE_TYPE}', 'k', '{set}', \
             CONVERT(X'{}' USING {set}))",
            hex(&texts.all())
        ));
        let printed = "SELECT HEX(CONVERT(payload USING utf8mb4)) FROM outbox";
        expected.push((set, client.value(printed).expect("a payload")));
    }
    assert!(stage.drains(server), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    // then it is published as the server prints it
    let published = stage.broker.published(AGGREGATE_TYPE);
    assert_eq!(published.len(), expected.len(), "{}", relay.log());
    for (message, (set, printed)) in published.iter().zip(expected) {
        let value = hex(message.value.as_deref().expect("a payload"));
        let first = value.bytes().zip(printed.bytes()).position(|(ours, theirs)| ours != theirs);
        let context = first.map(|at| {
            let from = at.saturating_sub(12);
            (
                value.get(from..at + 12).map(str::to_owned),
                printed.get(from..at + 12).map(str::to_owned),
            )
        });
        assert!(value == printed, "{set} on {:?}: {context:?}", server.version());
    }
}

#[test]
fn texts_of_every_character_set_are_published_as_the_server_prints_them() {
    on_each(converts);
}

fn walpost(verb: &str, server: &MySql, name: &str) -> Output {
    let mut command = program();
    command.args([verb, "--source", &server.url_for(name), "--table", "outbox"]);
    command.args(["--set", &format!("relay.name={name}")]);
    if verb == "check" {
        command.args(["--sink", "null://"]);
    }
    command.output().expect("it runs")
}

#[test]
fn a_character_set_that_is_not_converted_is_refused_by_every_verb() {
    on_each(|server| {
        let name = server.empty_outbox("big5");
        let client = server.client_for(&name);
        client.run("ALTER TABLE outbox MODIFY type varchar(255) CHARACTER SET big5 NOT NULL");
        refuses(&mut to_nobody(server, &name), &["type", "big5", "outbox.columns.type"]);
        for verb in ["check", "init"] {
            let output = walpost(verb, server, &name);
            assert!(!output.status.success(), "{verb}");
            let told = [output.stdout, output.stderr].concat();
            let told = String::from_utf8(told).unwrap();
            assert!(told.contains("big5"), "{verb}: {told}");
        }
    });
}

/// What the lines of a relay to stdout say of the four columns.
fn columns(log: &str) -> Vec<String> {
    let messages = log.lines().filter(|line| line.starts_with('{'));
    let columns = messages.map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        let topic = text(&message["topic"]);
        let address = topic.strip_prefix("outbox.event.").expect("the default topic").to_owned();
        [text(&message["id"]), address, text(&message["key"]), text(&message["type"])].join(" ")
    });
    columns.collect()
}

#[test]
fn uuids_and_addresses_of_mariadb_are_published_as_select_prints_them() {
    for version in [Version::MariaDb1011, Version::MariaDb118] {
        if version.is_left_out() {
            continue;
        }
        // given an outbox with such columns, and values with zeros at every place
        let server = MySql::shared(version);
        let name = server.empty_outbox("types");
        let client = server.client_for(&name);
        client.run("DROP TABLE outbox");
        client.run(
            "CREATE TABLE outbox (n int PRIMARY KEY, id uuid NOT NULL, aggregatetype inet4, \
             aggregateid inet6, type uuid, payload longtext)",
        );
        let mut relay = quick(MySql::relay(&server.url_for(&name), "stdout:", &name));
        for number in 0..200_u32 {
            let md5 = |salt: &str| format!("MD5('{salt}{number}')");
            let zeros = 2 * (number % 16);
            let place = 2 * (number / 7 % 16);
            // Some words of the address are zeros: at the beginning, the end, and between.
            let address = format!(
                "INSERT({}, {}, {}, REPEAT('0', {}))",
                md5("6"),
                place + 1,
                zeros,
                zeros.min(32 - place)
            );
            client.run(&format!(
                "INSERT INTO outbox VALUES ({number}, \
                 CAST(CONCAT(LEFT({}, 12), '4', MID({}, 14, 3), '8', RIGHT({}, 15)) AS uuid), \
                 CAST(UNHEX(RPAD(LEFT({}, {}), 8, '0')) AS inet4), \
                 CAST(UNHEX({address}) AS inet6), \
                 CAST(CONCAT(LEFT({}, 12), '1', MID({}, 14, 3), 'a', RPAD(LEFT({}, 5), 15, '0')) \
                 AS uuid), '{{\"n\": {number}}}')",
                md5("a"),
                md5("b"),
                md5("c"),
                md5("4"),
                2 * (number % 5),
                md5("d"),
                md5("e"),
                md5("f"),
            ));
        }
        // when they are relayed
        relay.start();
        let drained = drains::<MySql>(&client, &name, PATIENCE);
        assert!(drained, "{}", relay.log());
        assert!(relay.terminate().success(), "{}", relay.log());
        // then each is what SELECT prints
        let printed = client.rows(
            "SELECT CONCAT_WS(' ', id, aggregatetype, aggregateid, type) FROM outbox ORDER BY n",
        );
        let expected: Vec<String> =
            printed.into_iter().map(|mut row| row.remove(0).unwrap()).collect();
        let found = columns(&relay.log());
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected);
        }
    }
}
