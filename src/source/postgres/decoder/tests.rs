use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use bytes::{BufMut, BytesMut};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::outbox::OutOfRange;
use crate::source::postgres::frame::Frame;

/// Every capture of `scripts/capture-pgoutput`.
const CAPTURES: [(u32, &str); 11] = [
    (13, "text"),
    (14, "text"),
    (14, "binary"),
    (15, "text"),
    (15, "binary"),
    (16, "text"),
    (16, "binary"),
    (17, "text"),
    (17, "binary"),
    (18, "text"),
    (18, "binary"),
];
const EXTRAS: [&str; 18] = [
    "c_varchar",
    "c_bpchar",
    "c_name",
    "c_citext",
    "c_nested",
    "c_mood_domain",
    "c_int2",
    "c_int4",
    "c_int8",
    "c_oid",
    "c_bytea",
    "c_timestamptz",
    "c_timestamp",
    "c_date",
    "c_bool",
    "c_numeric",
    "c_float4",
    "c_float8",
];
const LOG: LogId = LogId(7);

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pgoutput");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("fixture {name}: {error}"))
}

/// The frames of a capture.
fn frames(major: u32, mode: &str) -> Vec<Bytes> {
    let mut rest = Bytes::from(fixture(&format!("pg{major}-{mode}.frames")));
    let mut frames = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest.split_to(4)[..].try_into().unwrap());
        frames.push(rest.split_to(length as usize));
    }
    frames
}

/// The pgoutput messages inside the frames of a capture.
fn messages(major: u32, mode: &str) -> Vec<Bytes> {
    let mut messages = Vec::new();
    for frame in frames(major, mode) {
        if let Frame::XLogData(data) = Frame::parse(&frame).unwrap() {
            messages.push(data.data);
        }
    }
    messages
}

fn decoder(table: &str) -> Decoder {
    let mut columns = Columns::debezium();
    if table == "outbox" {
        for extra in EXTRAS {
            columns.extra(extra);
        }
    }
    Decoder::new("app".into(), table.into(), columns, LOG)
}

/// What the catalog of that server said, for the oids that were asked.
fn types(major: u32, oids: &[u32]) -> TypeKinds {
    let mut kinds = TypeKinds::default();
    let file = String::from_utf8(fixture(&format!("pg{major}.types"))).unwrap();
    for oid in oids {
        let line = file.lines().find(|line| line.starts_with(&format!("{oid}|")));
        let fields: Vec<&str> = line.expect("every type was captured").split('|').collect();
        kinds.insert(*oid, fields[1], fields[2].parse().unwrap(), fields[3] == "t");
    }
    kinds
}

/// Decodes as a source does: looks types up when asked, and decodes the message again.
fn decode_all(decoder: &mut Decoder, major: u32, messages: &[Bytes]) -> Vec<Change<Lsn>> {
    let mut changes = Vec::new();
    for message in messages {
        decode_one(decoder, major, message, &mut changes);
    }
    changes
}

fn decode_one(decoder: &mut Decoder, major: u32, message: &Bytes, changes: &mut Vec<Change<Lsn>>) {
    match decoder.decode(message, changes) {
        Ok(()) => {}
        Err(DecodeError::Relation(RelationError::UnknownTypes { oids, .. })) => {
            decoder.add_types(types(major, &oids));
            decoder.decode(message, changes).unwrap();
        }
        // One row of each capture, by which a relay ends; here the rest is looked at too.
        Err(DecodeError::Relation(RelationError::Renamed { now, .. })) => {
            assert_eq!(now, "app.was_outbox");
        }
        Err(error) => panic!("{major}: {error}"),
    }
}

fn as_json(table: &str, row: &OutboxRow) -> Map<String, Value> {
    let text = |value: &Option<Bytes>| -> Value {
        value.as_ref().map(|bytes| std::str::from_utf8(bytes).unwrap()).into()
    };
    let hex = |value: &Option<Bytes>| -> Value {
        let digits = |bytes: &Bytes| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        value.as_ref().map(digits).into()
    };
    let mut object = Map::new();
    object.insert("table".into(), table.into());
    object.insert("ordinal".into(), row.identity.ordinal.into());
    object.insert("id".into(), text(&row.id));
    object.insert("aggregatetype".into(), text(&row.aggregate_type));
    object.insert("aggregateid".into(), text(&row.aggregate_id));
    object.insert("type".into(), text(&row.event_type));
    object.insert("payload".into(), hex(&row.payload));
    object.insert("headers".into(), text(&row.headers));
    object.insert("created_at_micros".into(), row.created_at_micros.into());
    for (name, value) in EXTRAS.iter().zip(&row.extra) {
        let value = if *name == "c_bytea" { hex(value) } else { text(value) };
        object.insert((*name).into(), value);
    }
    object
}

#[test]
fn every_server_and_mode_gives_the_rows_that_the_server_printed() {
    let expected = String::from_utf8(fixture("rows.jsonl")).unwrap();
    for ((major, mode), table) in CAPTURES.iter().flat_map(|c| [(c, "outbox"), (c, "parted")]) {
        // given
        let messages = messages(*major, mode);
        let mut decoder = decoder(table);
        // when
        let changes = decode_all(&mut decoder, *major, &messages);
        // then every row is as printed, and those of one step share one transaction
        let mut steps = BTreeMap::new();
        let mut expected = expected.lines();
        let mut commits = Vec::new();
        for change in &changes {
            match change {
                Change::Row(row) => {
                    let mut line = loop {
                        let line: Map<String, Value> =
                            serde_json::from_str(expected.next().expect("a row too many")).unwrap();
                        if line["table"] == table {
                            break line;
                        }
                    };
                    let step = line.remove("step").unwrap().as_u64().unwrap();
                    assert_eq!(as_json(table, row), line, "{major} {mode}");
                    assert_eq!(row.identity.log, LOG);
                    let transaction = steps.entry(step).or_insert(row.identity.transaction);
                    assert_eq!(*transaction, row.identity.transaction, "{major} {mode}");
                    assert!(row.committed_at_micros > 1_700_000_000_000_000);
                }
                Change::Commit(end) => {
                    let last = steps.values().last().copied().unwrap_or_default();
                    assert!(end.0 > last, "a commit ends after its record begins");
                    commits.push(*end);
                }
                Change::Idle(_) => panic!("the decoder knows no keepalives"),
            }
        }
        let missing = expected.find(|line| line.contains(&format!(r#""table":"{table}""#)));
        assert_eq!(missing, None, "{major} {mode}");
        assert!(commits.is_sorted(), "{major} {mode}");
        let transactions: HashSet<u64> = steps.values().copied().collect();
        assert_eq!(transactions.len(), steps.len(), "{major} {mode}");
        assert!(!decoder.in_transaction());
    }
}

#[test]
fn what_is_ignored_is_counted() {
    for (major, mode) in CAPTURES {
        let mut decoder = decoder("outbox");
        decode_all(&mut decoder, major, &messages(major, mode));
        let expected = IgnoredCounts {
            updates: 5,
            deletes: 2,
            truncates: 1,
            // app.parted 5, app.other: 3 inserts, 1 update, 1 delete, 1 truncate
            foreign: 11,
            messages: if major < 14 { 0 } else { 2 },
            stream_aborts: 0,
        };
        assert_eq!(decoder.ignored(), expected, "{major} {mode}");
    }
}

#[test]
fn transactions_without_a_row_are_commits_too() {
    // 14 and 13 send Begin and Commit around nothing.
    for (major, mode) in CAPTURES {
        let messages = messages(major, mode);
        let sent = messages.iter().filter(|message| message[0] == b'C').count();
        let changes = decode_all(&mut decoder("outbox"), major, &messages);
        let commits = changes.iter().filter(|change| matches!(change, Change::Commit(_))).count();
        assert_eq!(commits, sent, "{major} {mode}");
    }
}

#[test]
fn every_prefix_of_every_message_fails_cleanly_and_changes_nothing() {
    for (major, mode) in CAPTURES {
        let mut decoder = decoder("outbox");
        let mut changes = Vec::new();
        for message in messages(major, mode) {
            let step = if message.len() > 4096 { 997 } else { 1 };
            let mut tried = decoder.clone();
            for length in (0..message.len()).step_by(step) {
                let count = changes.len();
                // A Stream Abort apart, which may end early, no message is a prefix of another.
                let result = tried.decode(&message.slice(..length), &mut changes);
                assert!(result.is_err(), "{major} {mode} {:?} {length}", char::from(message[0]));
                assert_eq!(changes.len(), count);
            }
            // The decoder that met all these errors goes on as if none had been.
            decoder = tried;
            decode_one(&mut decoder, major, &message, &mut changes);
        }
    }
}

#[test]
fn every_prefix_of_every_frame_is_an_error_or_a_shorter_piece() {
    for frame in frames(18, "binary") {
        let header = if frame[0] == b'w' { 25 } else { frame.len() };
        for length in 0..header {
            assert!(Frame::parse(&frame.slice(..length)).is_err());
        }
    }
}

#[test]
fn a_capture_ends_with_a_keepalive_that_reaches_past_the_last_commit() {
    for (major, mode) in CAPTURES {
        let changes = decode_all(&mut decoder("outbox"), major, &messages(major, mode));
        let Some(Change::Commit(last)) = changes.last() else { panic!("no commit at the end") };
        let last_frame = frames(major, mode).pop().unwrap();
        let Frame::Keepalive(keepalive) = Frame::parse(&last_frame).unwrap() else {
            panic!("{major} {mode}: no keepalive at the end")
        };
        assert!(keepalive.wal_end >= *last);
        assert!(keepalive.clock_micros > 1_700_000_000_000_000);
    }
}

#[test]
fn updates_of_a_large_row_leave_the_payload_out() {
    // Keeps the captures honest: they hold an unchanged TOAST value.
    for (major, mode) in CAPTURES {
        let updates: Vec<Bytes> =
            messages(major, mode).into_iter().filter(|message| message[0] == b'U').collect();
        assert_eq!(updates.len(), 6, "{major} {mode}");
        assert!(updates.iter().all(|update| update.len() < 10_000), "{major} {mode}");
    }
}

#[test]
fn payloads_are_slices_of_their_message() {
    let mut decoder = decoder("outbox");
    let mut large = 0;
    for message in messages(15, "binary") {
        let mut changes = Vec::new();
        decode_one(&mut decoder, 15, &message, &mut changes);
        let Some(Change::Row(OutboxRow { payload: Some(payload), .. })) = changes.pop() else {
            continue;
        };
        assert!(message.as_ptr_range().contains(&payload.as_ptr()));
        large = large.max(payload.len());
    }
    assert_eq!(large, 100_002);
}

/// A stream made by hand, for what no server sends.
struct Wire(BytesMut);

impl Wire {
    fn new(tag: u8) -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_u8(tag);
        Wire(bytes)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.put_slice(bytes);
        self
    }

    fn u8(mut self, number: u8) -> Self {
        self.0.put_u8(number);
        self
    }
    fn u16(mut self, number: u16) -> Self {
        self.0.put_u16(number);
        self
    }
    fn u32(mut self, number: u32) -> Self {
        self.0.put_u32(number);
        self
    }
    fn u64(mut self, number: u64) -> Self {
        self.0.put_u64(number);
        self
    }
    fn string(mut self, text: &str) -> Self {
        self.0.put_slice(text.as_bytes());
        self.u8(0)
    }
    fn value(mut self, tag: u8, bytes: &[u8]) -> Self {
        self.0.put_u8(tag);
        self.0.put_u32(bytes.len() as u32);
        self.0.put_slice(bytes);
        self
    }
    fn done(self) -> Bytes {
        self.0.freeze()
    }
}

fn begin(final_lsn: u64) -> Bytes {
    Wire::new(b'B').u64(final_lsn).u64(0).u32(1).done()
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Bytes {
    Wire::new(b'C').u8(0).u64(commit_lsn).u64(end_lsn).u64(0).done()
}

fn relation(id: u32, table: &str, columns: &[(&str, u32)]) -> Bytes {
    let mut wire = Wire::new(b'R').u32(id).string("public").string(table).u8(b'd');
    wire = wire.u16(columns.len() as u16);
    for (name, type_oid) in columns {
        wire = wire.u8(0).string(name).u32(*type_oid).u32(u32::MAX);
    }
    wire.done()
}

const COLUMNS: [(&str, u32); 5] =
    [("id", 2950), ("aggregatetype", 25), ("aggregateid", 25), ("type", 25), ("payload", 3802)];

fn insert(id: u32) -> Bytes {
    let wire = Wire::new(b'I').u32(id).u8(b'N').u16(5).value(b'b', &[0; 16]);
    wire.value(b'b', b"a").value(b't', b"k").u8(b'n').value(b'b', b"\x01{}").done()
}

/// A decoder inside transaction 0/64 whose outbox is relation 1.
fn opened() -> Decoder {
    let mut decoder = Decoder::new("public".into(), "outbox".into(), Columns::debezium(), LOG);
    decoder.decode(&begin(100), &mut Vec::new()).unwrap();
    decoder.decode(&relation(1, "outbox", &COLUMNS), &mut Vec::new()).unwrap();
    decoder
}

fn error(decoder: &mut Decoder, message: &Bytes) -> String {
    let mut changes = Vec::new();
    let error = decoder.decode(message, &mut changes).unwrap_err();
    assert!(changes.is_empty());
    error.to_string()
}

#[test]
fn rows_count_from_zero_in_each_transaction() {
    let mut decoder = opened();
    let mut changes = Vec::new();
    for message in [insert(1), insert(1), commit(100, 108), begin(200), insert(1), commit(200, 208)]
    {
        decoder.decode(&message, &mut changes).unwrap();
    }
    let seen: Vec<(u64, u32)> = changes
        .iter()
        .map(|change| match change {
            Change::Row(row) => (row.identity.transaction, row.identity.ordinal),
            Change::Commit(end) => (end.0, u32::MAX),
            Change::Idle(_) => panic!("no idle"),
        })
        .collect();
    assert_eq!(seen, [(100, 0), (100, 1), (108, u32::MAX), (200, 0), (208, u32::MAX)]);
}

#[test]
fn messages_out_of_order_are_refused() {
    let mut outside = Decoder::new("public".into(), "outbox".into(), Columns::debezium(), LOG);
    assert_eq!(error(&mut outside, &insert(1)), "Insert message outside of a transaction");
    assert_eq!(error(&mut outside, &commit(1, 2)), "Commit message outside of a transaction");
    let mut inside = opened();
    assert_eq!(error(&mut inside, &begin(1)), "Begin message inside a transaction");
    assert_eq!(
        error(&mut inside, &commit(99, 108)),
        "Commit message of transaction 0/63 inside transaction 0/64"
    );
    assert_eq!(
        error(&mut inside, &insert(2)),
        "change of relation 2, which was not announced on this connection"
    );
    assert_eq!(
        error(&mut inside, &Wire::new(b'S').u32(1).u8(1).done()),
        "unknown tag 'S' (0x53) in pgoutput message"
    );
}

#[test]
fn messages_that_no_capture_has_are_checked_too() {
    // An Origin, and the Stream Aborts of versions 2 and 4, of which one begins with the other.
    let origin = Wire::new(b'O').u64(1).string("elsewhere").done();
    let abort = Wire::new(b'A').u32(1).u32(2).done();
    let long_abort = Wire::new(b'A').u32(1).u32(2).u64(3).u64(4).done();
    for message in [&origin, &abort, &long_abort] {
        let mut decoder = opened();
        for length in (0..message.len()).filter(|length| *length != abort.len()) {
            let result = decoder.decode(&message.slice(..length), &mut Vec::new());
            assert!(result.is_err(), "{length}");
        }
        decoder.decode(message, &mut Vec::new()).unwrap();
        let longer = Bytes::from([message, &b"x"[..]].concat());
        assert!(decoder.decode(&longer, &mut Vec::new()).is_err());
    }
}

#[test]
fn a_restart_forgets_the_connection_but_not_the_counts() {
    let mut decoder = opened();
    decoder.decode(&Wire::new(b'A').u32(1).u32(2).done(), &mut Vec::new()).unwrap();
    decoder.restart(LogId(8));
    assert!(!decoder.in_transaction());
    assert_eq!(decoder.ignored().stream_aborts, 1);
    let mut changes = Vec::new();
    decoder.decode(&begin(300), &mut changes).unwrap();
    assert!(error(&mut decoder, &insert(1)).contains("not announced"));
    decoder.decode(&relation(1, "outbox", &COLUMNS), &mut changes).unwrap();
    decoder.decode(&insert(1), &mut changes).unwrap();
    let [Change::Row(row)] = &changes[..] else { panic!("one row") };
    assert_eq!(
        row.identity,
        RowIdentity {
            log: LogId(8),
            transaction: 300,
            ordinal: 0,
            fingerprint: row.identity.fingerprint,
        }
    );
}

#[test]
fn a_missing_column_is_named_with_those_that_exist() {
    let mut decoder = opened();
    let message = error(&mut decoder, &relation(2, "outbox", &[("id", 2950), ("body", 3802)]));
    assert!(message.contains("table public.outbox has no column \"aggregatetype\""), "{message}");
    assert!(message.contains("it has id, body"), "{message}");
}

#[test]
fn a_mapped_column_of_an_array_is_refused_and_an_unmapped_one_is_not() {
    let mut columns = COLUMNS.to_vec();
    columns.push(("tags", 1009));
    let mut decoder = opened();
    decoder.decode(&relation(2, "outbox", &columns), &mut Vec::new()).unwrap();
    columns[4].1 = 1009;
    let announced = relation(3, "outbox", &columns);
    let asked = decoder.decode(&announced, &mut Vec::new());
    assert!(
        matches!(asked, Err(DecodeError::Relation(RelationError::UnknownTypes { .. }))),
        "{asked:?}"
    );
    let mut kinds = TypeKinds::default();
    kinds.insert(1009, "text[]", 1009, false);
    decoder.add_types(kinds);
    let message = error(&mut decoder, &announced);
    assert!(message.contains("column \"payload\""), "{message}");
    assert!(message.contains("is of type text[], which outbox.columns.payload"), "{message}");
    assert!(message.contains("source.format = \"text\""), "{message}");
    columns[4].1 = 3802;
    columns.push(("created_at", 20));
    let message = error(&mut decoder, &relation(3, "outbox", &columns));
    assert!(message.contains("type bigint, which outbox.columns.created_at"), "{message}");
    assert!(!message.contains("source.format"), "{message}");
}

#[test]
fn a_type_of_unknown_kind_is_asked_for_and_never_guessed() {
    let mut columns = COLUMNS;
    (columns[0].1, columns[3].1, columns[2].1) = (20_000, 20_001, 20_000);
    let announced = relation(2, "outbox", &columns);
    let mut decoder = opened();
    let asked = decoder.decode(&announced, &mut Vec::new());
    let Err(DecodeError::Relation(RelationError::UnknownTypes { oids, .. })) = asked else {
        panic!("{asked:?}")
    };
    assert_eq!(oids, [20_000, 20_001]);
    let mut kinds = TypeKinds::default();
    kinds.insert(20_000, "app.id", 2950, false);
    kinds.insert(20_001, "app.pair", 20_001, false);
    decoder.add_types(kinds);
    let message = error(&mut decoder, &announced);
    assert!(message.contains("column \"type\" of table public.outbox is of type app.pair,"));
    let mut kinds = TypeKinds::default();
    kinds.insert_missing(20_001);
    decoder.add_types(kinds);
    assert!(error(&mut decoder, &announced).contains("has been dropped since"));
    let mut kinds = TypeKinds::default();
    kinds.insert(20_001, "app.mood", 20_001, true);
    decoder.add_types(kinds);
    decoder.decode(&announced, &mut Vec::new()).unwrap();
}

#[test]
fn in_text_form_a_type_that_nobody_knows_is_what_the_server_prints() {
    // given columns of a dropped enum, of a composite, and of a dropped domain over bytea
    let mut columns = COLUMNS;
    (columns[1].1, columns[3].1, columns[4].1) = (20_000, 20_001, 20_002);
    let mut decoder = opened();
    decoder.expect_text();
    let domain = Wire::new(b'Y').u32(20_002).string("").string("bytea").done();
    let dropped = Wire::new(b'Y').u32(20_000).string("public").string("mood").done();
    let mut changes = Vec::new();
    decoder.decode(&domain, &mut changes).unwrap();
    decoder.decode(&dropped, &mut changes).unwrap();
    let announced = relation(2, "outbox", &columns);
    let asked = decoder.decode(&announced, &mut changes);
    let Err(DecodeError::Relation(RelationError::UnknownTypes { oids, .. })) = asked else {
        panic!("{asked:?}")
    };
    // then of the domain all is known, and the others are read as they are printed
    assert_eq!(oids, [20_000, 20_001]);
    let mut kinds = TypeKinds::default();
    kinds.insert_missing(20_000);
    kinds.insert(20_001, "app.pair", 20_001, false);
    decoder.add_types(kinds);
    decoder.decode(&announced, &mut changes).unwrap();
    let mut wire = Wire::new(b'I').u32(2).u8(b'N').u16(5);
    for text in ["8a1c", "happy", "7", "(1,2)", "\\x00ff"] {
        wire = wire.u8(b't').u32(text.len() as u32).bytes(text.as_bytes());
    }
    decoder.decode(&wire.done(), &mut changes).unwrap();
    let [Change::Row(row)] = &changes[..] else { panic!("one row") };
    assert_eq!(row.aggregate_type.as_deref(), Some(&b"happy"[..]));
    assert_eq!(row.event_type.as_deref(), Some(&b"(1,2)"[..]));
    assert_eq!(row.payload.as_deref(), Some(&[0, 255][..]));
}

#[test]
fn a_large_change_of_another_table_is_left_out_by_its_beginning() {
    // given an outbox and another table
    let mut decoder = opened();
    let mut changes = Vec::new();
    decoder.decode(&relation(1, "outbox", &COLUMNS), &mut changes).unwrap();
    decoder.decode(&relation(2, "other", &COLUMNS), &mut changes).unwrap();
    let head = |tag: u8, id: u32| [&b"w"[..], &[0; 24], &[tag], &id.to_be_bytes()].concat();
    // then only what can become a row is read
    assert!(decoder.leaves_out(&head(b'I', 2)));
    assert!(!decoder.leaves_out(&head(b'I', 1)));
    assert!(decoder.leaves_out(&head(b'U', 1)) && decoder.leaves_out(&head(b'D', 1)));
    // and what is not known, or no change, is read too
    assert!(!decoder.leaves_out(&head(b'I', 3)));
    assert!(!decoder.leaves_out(&head(b'R', 2)));
    assert!(!decoder.leaves_out(b"k"));
    let ignored = decoder.ignored();
    assert_eq!((ignored.foreign, ignored.updates, ignored.deletes), (1, 1, 1));
}

#[test]
fn a_created_at_that_is_no_moment_stops_or_gives_way_to_the_commit_time() {
    let columns = [&COLUMNS[..], &[("created_at", 1184)]].concat();
    let row = |decoder: &mut Decoder| {
        decoder.decode(&begin(100), &mut Vec::new()).unwrap();
        decoder.decode(&relation(1, "outbox", &columns), &mut Vec::new()).unwrap();
        let mut wire = Wire::new(b'I').u32(1).u8(b'N').u16(6);
        for _ in 0..5 {
            wire = wire.u8(b'n');
        }
        let mut changes = Vec::new();
        let infinity = wire.u8(b'b').u32(8).bytes(&i64::MAX.to_be_bytes()).done();
        decoder.decode(&infinity, &mut changes).map(|()| changes)
    };
    let made = |columns| Decoder::new("public".into(), "outbox".into(), columns, LogId(7));
    // by default the message names the column and the way out
    let stopped = row(&mut made(Columns::debezium())).unwrap_err();
    let DecodeError::Value { column, source, .. } = stopped else { panic!("{stopped}") };
    assert_eq!(column, "created_at");
    assert!(source.to_string().contains("outbox.created_at_out_of_range"), "{source}");
    // as configured the row passes
    let mut columns = Columns::debezium();
    columns.set_created_at_out_of_range(OutOfRange::CommitTime);
    let changes = row(&mut made(columns)).unwrap();
    let [Change::Row(row)] = &changes[..] else { panic!("one row") };
    assert_eq!(row.created_at_micros, None);
}

#[test]
fn a_later_announcement_replaces_the_first() {
    let mut decoder = opened();
    let mut changes = Vec::new();
    decoder
        .decode(&relation(1, "outbox", &[&COLUMNS[..], &[("x", 600)]].concat()), &mut changes)
        .unwrap();
    assert!(error(&mut decoder, &insert(1)).contains("has 5 columns where 6 were announced"));
    decoder.decode(&relation(1, "outbox", &COLUMNS), &mut changes).unwrap();
    decoder.decode(&insert(1), &mut changes).unwrap();
    assert_eq!(changes.len(), 1);
}

#[test]
fn a_value_that_cannot_be_told_names_its_column() {
    let mut decoder = opened();
    let wire = Wire::new(b'I').u32(1).u8(b'N').u16(5).value(b'b', &[0; 16]);
    let wire = wire.value(b'b', b"a").value(b'b', b"k").u8(b'n').u8(b'u').done();
    let failed = decoder.decode(&wire, &mut Vec::new()).unwrap_err();
    assert_eq!(
        failed.to_string(),
        "could not read column \"payload\" of a row of table public.outbox"
    );
    let source = std::error::Error::source(&failed).unwrap().to_string();
    assert_eq!(source, "value was left out as unchanged");
}

#[test]
fn the_check_at_start_is_the_check_of_the_stream() {
    let decoder = opened();
    assert_eq!(decoder.check(&COLUMNS), Ok(()));
    assert!(matches!(decoder.check(&COLUMNS[1..]), Err(RelationError::MissingColumn { .. })));
}

#[test]
fn an_extra_column_may_have_a_role_too() {
    let mut columns = Columns::debezium();
    assert_eq!(columns.extra("aggregateid"), 0);
    let mut decoder = Decoder::new("public".into(), "outbox".into(), columns, LOG);
    let mut changes = Vec::new();
    for message in [begin(1), relation(1, "outbox", &COLUMNS), insert(1)] {
        decoder.decode(&message, &mut changes).unwrap();
    }
    let [Change::Row(row)] = &changes[..] else { panic!("one row") };
    assert_eq!(row.aggregate_id.as_deref(), Some(&b"k"[..]));
    assert_eq!(row.extra, [Some(Bytes::from_static(b"k"))]);
    assert_eq!(json!(row.id.as_ref().unwrap().len()), 36);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_bytes_never_panic(
        tag in prop::sample::select(b"BCORYIUDTMAS".to_vec()),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut message = vec![tag];
        message.extend(bytes);
        let message = Bytes::from(message);
        drop(Frame::parse(&message));
        drop(opened().decode(&message, &mut Vec::new()));
    }

    #[test]
    fn flipped_bytes_of_a_real_row_never_panic(
        flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4),
    ) {
        // The first transaction has a value of every type.
        let messages = first_transaction();
        let mut decoder = decoder("outbox");
        let mut changes = Vec::new();
        for message in messages {
            let mut broken = message.to_vec();
            for (at, flip) in &flips {
                let at = usize::from(*at) % broken.len();
                broken[at] ^= flip;
            }
            drop(decoder.clone().decode(&Bytes::from(broken), &mut changes));
            decode_one(&mut decoder, 18, message, &mut changes);
        }
    }
}

fn first_transaction() -> &'static [Bytes] {
    static MESSAGES: std::sync::OnceLock<Vec<Bytes>> = std::sync::OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = messages(18, "binary");
        let end = messages.iter().position(|message| message[0] == b'C').unwrap();
        messages.truncate(end + 1);
        messages
    })
}

#[test]
fn the_outbox_under_another_name_is_an_error_at_its_first_row() {
    let mut decoder = opened();
    decoder.set_catalog(9, &[]);
    let mut changes = Vec::new();
    // given an announcement of the outbox's oid under another name, which alone harms nothing
    decoder.decode(&relation(9, "kept", &COLUMNS), &mut changes).unwrap();
    assert!(decoder.take_news(), "the catalog is asked");
    // then its row is an error that names both, and where to tell that it is meant
    let error = error(&mut decoder, &insert(9));
    for part in ["table public.kept", "public.outbox (oid 9)", "source.former_name"] {
        assert!(error.contains(part), "{error}");
    }
    // and with the name it is a row like any other
    decoder.set_former_name(Some(QualifiedName { schema: "public".into(), name: "kept".into() }));
    decoder.decode(&relation(9, "kept", &COLUMNS), &mut changes).unwrap();
    decoder.decode(&insert(9), &mut changes).unwrap();
    assert!(matches!(changes[..], [Change::Row(_)]), "{changes:?}");
}

#[test]
fn an_oid_that_once_was_the_outbox_is_remembered_over_connections() {
    let mut decoder = opened();
    decoder.decode(&relation(9, "outbox", &COLUMNS), &mut Vec::new()).unwrap();
    decoder.restart(LOG);
    decoder.decode(&begin(2), &mut Vec::new()).unwrap();
    decoder.decode(&relation(9, "kept", &COLUMNS), &mut Vec::new()).unwrap();
    assert!(error(&mut decoder, &insert(9)).contains("public.kept"));
}

#[test]
fn rows_of_a_partition_in_its_own_name_are_rows_of_the_outbox() {
    let mut decoder = opened();
    decoder.set_catalog(9, &[10]);
    assert!(decoder.take_news(), "its own announcement is one");
    let mut changes = Vec::new();
    decoder.decode(&relation(10, "outbox_1", &COLUMNS), &mut changes).unwrap();
    decoder.decode(&insert(10), &mut changes).unwrap();
    assert!(matches!(changes[..], [Change::Row(_)]), "{changes:?}");
    // while one that the catalog did not tell of is left out, and is a question
    decoder.decode(&relation(11, "outbox_2", &COLUMNS), &mut changes).unwrap();
    assert!(!decoder.take_news());
    decoder.decode(&insert(11), &mut changes).unwrap();
    assert!(decoder.take_news());
    assert_eq!(decoder.take_left_out(), ["public.outbox_2"]);
    assert_eq!((changes.len(), decoder.ignored().foreign), (1, 1));
}

#[test]
fn a_commit_time_that_cannot_be_is_replaced_and_counted_by_row() {
    // `begin` has the time 0 of the protocol: 2000-01-01
    let mut decoder = Decoder::new("public".into(), "outbox".into(), Columns::debezium(), LOG);
    decoder.set_clock(1_800_000_000_000_000);
    let mut changes = Vec::new();
    for message in [begin(1), relation(9, "outbox", &COLUMNS), insert(9), insert(9)] {
        decoder.decode(&message, &mut changes).unwrap();
    }
    for change in &changes {
        let Change::Row(row) = change else { panic!("{change:?}") };
        assert_eq!(row.committed_at_micros, 1_800_000_000_000_000);
    }
    assert_eq!(decoder.replaced_times(), 2);
}

/// The identity of the first row of a transaction that was committed at `micros`.
fn first_identity(table: &str, micros: u64, origin: bool, payload: &[u8]) -> RowIdentity {
    let mut decoder = decoder(table);
    decoder.restart(LOG);
    let mut changes = Vec::new();
    let begin = Wire::new(b'B').u64(300).u64(micros).u32(7).done();
    decoder.decode(&begin, &mut changes).unwrap();
    if origin {
        let origin = Wire::new(b'O').u64(1).string("elsewhere").done();
        decoder.decode(&origin, &mut changes).unwrap();
    }
    let columns = ["id", "aggregatetype", "aggregateid", "type", "payload"];
    let mut relation = Wire::new(b'R').u32(1).string("app").string(table).u8(b'd').u16(5);
    for column in columns {
        relation = relation.u8(0).string(column).u32(25).u32(u32::MAX);
    }
    decoder.decode(&relation.done(), &mut changes).unwrap();
    let mut insert = Wire::new(b'I').u32(1).u8(b'N').u16(5);
    for value in [b"1", b"t", b"k", b"e", payload] {
        insert = insert.value(b't', value);
    }
    decoder.decode(&insert.done(), &mut changes).unwrap();
    let Some(Change::Row(row)) = changes.pop() else { panic!("a row") };
    row.identity
}

#[test]
fn an_identity_is_that_of_an_outbox_and_of_a_moment() {
    let first = first_identity("outbox_a", 5, false, b"1");
    assert_eq!(first, first_identity("outbox_a", 5, false, b"2"), "no column is part of it");
    assert_ne!(first, first_identity("outbox_b", 5, false, b"1"));
    assert_ne!(first, first_identity("outbox_a", 6, false, b"1"));
}

#[test]
fn where_a_session_says_when_it_commits_the_row_is_part_of_its_identity() {
    let first = first_identity("outbox_a", 5, true, b"1");
    assert_eq!(first, first_identity("outbox_a", 5, true, b"1"));
    assert_ne!(first, first_identity("outbox_a", 5, true, b"2"));
}
