use std::path::PathBuf;

use super::*;
use crate::source::mysql::event::HEADER_LENGTH;
use crate::source::mysql::gtid::GtidSet;
use crate::source::mysql::layout::LayoutError;

mod by_hand;
mod captures;
mod damage;
mod outcome;

/// What `scripts/capture-binlog-events` captured and walpost decodes whole.
const CAPTURES: [&str; 7] = [
    "mysql97",
    "mysql97-compressed",
    "mysql97-nogtid",
    "mariadb1011",
    "mariadb1011-compressed",
    "mariadb118",
    "mariadb118-compressed",
];
/// What it captured and walpost refuses at the end.
const REFUSED: [&str; 9] = [
    "mysql97-xa",
    "mysql97-statement",
    "mysql97-metadata",
    "mariadb1011-xa",
    "mariadb1011-statement",
    "mariadb1011-metadata",
    "mariadb118-xa",
    "mariadb118-statement",
    "mariadb118-metadata",
];
const SERVER_UUID: u128 = 0x77;

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/binlog/events");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("fixture {name}: {error}"))
}

fn lines(name: &str) -> Vec<String> {
    String::from_utf8(fixture(name)).unwrap().lines().map(str::to_owned).collect()
}

/// The events of a capture.
fn events(capture: &str) -> Vec<Bytes> {
    let mut rest = Bytes::from(fixture(&format!("{capture}.events")));
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest.split_to(4)[..].try_into().unwrap());
        events.push(rest.split_to(length as usize));
    }
    events
}

fn flavor(capture: &str) -> Flavor {
    if capture.starts_with("mysql") { Flavor::MySql } else { Flavor::MariaDb }
}

fn settings(flavor: Flavor) -> DecoderSettings {
    DecoderSettings {
        flavor,
        schema: "app".into(),
        table: "outbox".into(),
        columns: Columns::debezium(),
        server_uuid: SERVER_UUID,
        event_bytes_max: 1 << 20,
        payload_bytes_max: 1 << 20,
        held_bytes_max: 1 << 20,
        skipped: Vec::new(),
        types: Vec::new(),
        budget: Budget::new(usize::MAX),
    }
}

fn decoder(flavor: Flavor) -> Decoder {
    let mut decoder = Decoder::new(settings(flavor));
    decoder.reset("", 4);
    decoder
}

/// Decodes one event whole, as a reader does.
fn feed(decoder: &mut Decoder, event: &Bytes, out: &mut Vec<Decoded>) -> Result<(), DecodeError> {
    decoder.event(event, out)?;
    while decoder.has_more() {
        decoder.step(out)?;
    }
    Ok(())
}

fn decode(decoder: &mut Decoder, events: &[Bytes]) -> Result<Vec<Decoded>, DecodeError> {
    let mut out = Vec::new();
    for event in events {
        feed(decoder, event, &mut out)?;
    }
    Ok(out)
}

fn rows(decoded: &[Decoded]) -> Vec<&OutboxRow> {
    let mut rows = Vec::new();
    for decoded in decoded {
        if let Decoded::Row(row) = decoded {
            rows.push(row);
        }
    }
    rows
}

fn ends(decoded: &[Decoded]) -> Vec<&TransactionEnd> {
    let mut ends = Vec::new();
    for decoded in decoded {
        if let Decoded::End(end) = decoded {
            ends.push(end);
        }
    }
    ends
}

fn payloads(decoded: &[Decoded]) -> Vec<String> {
    let text = |row: &&OutboxRow| String::from_utf8(row.payload.clone().unwrap().into()).unwrap();
    rows(decoded).iter().map(text).collect()
}

/// Writes length and checksum anew, as if the server had sent it so.
fn sealed(event: &[u8], checksum: Checksum) -> Bytes {
    let mut bytes = event.to_vec();
    let length = bytes.len() + if checksum == Checksum::Crc32 { 4 } else { 0 };
    bytes[9..13].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
    if checksum == Checksum::Crc32 {
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    }
    bytes.into()
}
