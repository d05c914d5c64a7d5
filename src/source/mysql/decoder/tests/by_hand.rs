//! Streams made by hand, for what servers send seldom or never.

use super::*;

/// Events of a captured transaction with one row of the outbox, and those that come before it on
/// a connection.
pub(super) struct Pieces {
    pub(super) description: Bytes,
    pub(super) gtid: Bytes,
    pub(super) table_map: Bytes,
    /// Of the outbox, with one row; ends its statement.
    pub(super) write: Bytes,
    /// The same of another table.
    pub(super) foreign_map: Bytes,
    pub(super) foreign_write: Bytes,
    pub(super) commit: Bytes,
}

impl Pieces {
    pub(super) fn of(flavor: Flavor) -> Self {
        let events = events(if flavor == Flavor::MySql { "mysql97" } else { "mariadb1011" });
        let find = |kinds: &[u8], part: &str| {
            let found = events.iter().find(|event| {
                let text = String::from_utf8_lossy(event);
                kinds.contains(&event[4]) && text.contains(part)
            });
            found.unwrap().clone()
        };
        let write = find(&[23, 30], "single");
        let at = events.iter().position(|event| *event == write).unwrap();
        let gtid = events[..at].iter().rposition(|event| [33, 162].contains(&event[4])).unwrap();
        Self {
            description: find(&[15], ""),
            gtid: events[gtid].clone(),
            table_map: find(&[19], "outbox"),
            write,
            foreign_map: find(&[19], "orders"),
            foreign_write: find(&[23, 30], "a note"),
            commit: find(&[16], ""),
        }
    }

    /// What begins a transaction of several statements.
    pub(super) fn begin(&self) -> Vec<Bytes> {
        let mut begin = vec![self.gtid.clone()];
        if self.gtid[4] == kind::GTID_LOG_EVENT {
            begin.push(query("BEGIN"));
        }
        begin
    }

    pub(super) fn row(&self) -> [Bytes; 2] {
        [self.table_map.clone(), self.write.clone()]
    }

    pub(super) fn foreign_row(&self) -> [Bytes; 2] {
        [self.foreign_map.clone(), self.foreign_write.clone()]
    }

    pub(super) fn decoder(&self) -> Decoder {
        let is_mysql = self.gtid[4] == kind::GTID_LOG_EVENT;
        let flavor = if is_mysql { Flavor::MySql } else { Flavor::MariaDb };
        let mut decoder = decoder(flavor);
        decoder.reset("binlog.000001", 4);
        decode(&mut decoder, std::slice::from_ref(&self.description)).unwrap();
        decoder
    }
}

pub(super) const FLAVORS: [Flavor; 2] = [Flavor::MySql, Flavor::MariaDb];

pub(super) fn event(kind: u8, flags: u16, body: &[u8]) -> Bytes {
    let mut bytes = vec![0, 0, 0, 0x60, kind, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend(flags.to_le_bytes());
    bytes.extend(body);
    sealed(&bytes, Checksum::Crc32)
}

pub(super) fn query(text: &str) -> Bytes {
    let body = [&[0; 8], &[3, 0, 0, 0, 0][..], b"app\0", text.as_bytes()].concat();
    event(kind::QUERY_EVENT, 0, &body)
}

#[test]
fn a_small_transaction_comes_out_at_its_end_and_a_large_one_streams() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        let mut decoder = pieces.decoder();
        let mut out = Vec::new();
        for event in pieces.begin() {
            feed(&mut decoder, &event, &mut out).unwrap();
        }
        for count in 1..=2500 {
            for event in pieces.row() {
                feed(&mut decoder, &event, &mut out).unwrap();
            }
            // then at most 1000 rows wait
            assert_eq!(out.len(), count / 1001 * 1001, "{count}");
        }
        assert!(decoder.held_bytes() > 0);
        feed(&mut decoder, &pieces.commit, &mut out).unwrap();
        assert_eq!(decoder.held_bytes(), 0);
        assert_eq!(ends(&out)[0].rows, 2500);
        let ordinals: Vec<u32> = rows(&out).iter().map(|row| row.identity.ordinal).collect();
        assert_eq!(ordinals, (0..2500).collect::<Vec<u32>>());
    }
}

#[test]
fn rows_that_are_held_do_not_keep_the_large_rows_of_another_table() {
    for savepoint in [false, true] {
        let pieces = Pieces::of(Flavor::MySql);
        let budget = Budget::new(1 << 30);
        let settings = DecoderSettings { budget: budget.clone(), ..settings(Flavor::MySql) };
        let mut decoder = Decoder::new(settings);
        decoder.reset("binlog.000001", 4);
        let mut out = Vec::new();
        // given a transaction with small rows of the outbox, each of them read with much else
        feed(&mut decoder, &pieces.description, &mut out).unwrap();
        decode(&mut decoder, &pieces.begin()).unwrap();
        if savepoint {
            feed(&mut decoder, &query("SAVEPOINT a"), &mut out).unwrap();
        }
        let large = event(kind::ROWS_QUERY_LOG_EVENT, 0, &[0; 1 << 20]);
        let mut most = 0;
        for _ in 0..100 {
            for event in pieces.row() {
                let read = budget.hold([&event[..], &[0; 1 << 20]].concat());
                feed(&mut decoder, &read.slice(..event.len()), &mut out).unwrap();
            }
            feed(&mut decoder, &large, &mut out).unwrap();
            most = most.max(budget.held_bytes());
        }
        // then that is not kept with them
        assert!(most < 16 << 20, "{most}");
        feed(&mut decoder, &pieces.commit, &mut out).unwrap();
        assert_eq!(rows(&out).len(), 100);
        let mut alone = pieces.begin();
        alone.extend(pieces.row());
        alone.push(pieces.commit.clone());
        let alone = payloads(&decode(&mut pieces.decoder(), &alone).unwrap());
        assert!(payloads(&out).iter().all(|payload| *payload == alone[0]));
    }
}

#[test]
fn a_transaction_that_is_rolled_back_in_the_log_leaves_only_its_end() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        let mut decoder = pieces.decoder();
        let mut events = pieces.begin();
        events.extend(pieces.row());
        events.extend(pieces.foreign_row());
        events.extend(pieces.row());
        events.push(query("ROLLBACK"));
        let decoded = decode(&mut decoder, &events).unwrap();
        assert!(rows(&decoded).is_empty());
        assert_eq!((ends(&decoded).len(), ends(&decoded)[0].rows), (1, 0));
        assert_eq!(decoder.ignored().rolled_back, 2);
        // and the next one begins anew
        let mut events = pieces.begin();
        events.extend(pieces.row());
        events.push(pieces.commit.clone());
        let decoded = decode(&mut decoder, &events).unwrap();
        assert_eq!(rows(&decoded)[0].identity.ordinal, 0);
    }
}

#[test]
fn a_rollback_of_rows_that_were_handed_over_is_an_error() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &pieces.begin()).unwrap();
    for _ in 0..1100 {
        decode(&mut decoder, &pieces.row()).unwrap();
    }
    let error = decode(&mut decoder, &[query("ROLLBACK")]).unwrap_err();
    assert_eq!(error, DecodeError::RolledBack { rows: 1001 });
}

/// Letters are rows of one letter's statement each; anything else is a statement.
fn savepoints(statements: &[&str]) -> Result<(u32, u64), DecodeError> {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let mut events = pieces.begin();
    for statement in statements {
        match *statement {
            "row" => events.extend(pieces.row()),
            text => events.push(query(text)),
        }
    }
    events.push(pieces.commit.clone());
    let decoded = decode(&mut decoder, &events)?;
    let ordinals: Vec<u32> = rows(&decoded).iter().map(|row| row.identity.ordinal).collect();
    let end = ends(&decoded)[0].rows;
    assert_eq!(ordinals, (0..end).collect::<Vec<u32>>());
    Ok((end, decoder.ignored().rolled_back))
}

#[test]
fn a_rollback_to_a_savepoint_takes_back_what_came_after_it() {
    for (statements, kept, dropped) in [
        (&["row", "SAVEPOINT `a`", "row", "ROLLBACK TO `a`", "row"][..], 2, 1),
        (&["SAVEPOINT a", "row", "ROLLBACK TO A", "row", "row", "ROLLBACK TO SAVEPOINT a"], 0, 3),
        (&["SAVEPOINT a", "row", "SAVEPOINT b", "row", "ROLLBACK TO b", "ROLLBACK TO a"], 0, 2),
        (&["SAVEPOINT a", "row", "SAVEPOINT b", "row", "ROLLBACK TO b"], 1, 1),
        // a second savepoint of a name takes the place of the first
        (&["SAVEPOINT a", "row", "SAVEPOINT a", "row", "ROLLBACK TO a"], 1, 1),
        (
            &["SAVEPOINT a", "row", "SAVEPOINT b", "row", "RELEASE SAVEPOINT b", "ROLLBACK TO a"],
            0,
            2,
        ),
        (&["row", "SAVEPOINT `å`", "row", "ROLLBACK TO `å`"], 1, 1),
        // nothing is taken back, whichever is meant
        (&["ROLLBACK TO x", "row"], 1, 0),
        (&["SAVEPOINT å", "SAVEPOINT a", "ROLLBACK TO a", "row"], 1, 0),
        (&["SAVEPOINT a", "row"], 1, 0),
    ] {
        assert_eq!(savepoints(statements), Ok((kept, dropped)), "{statements:?}");
    }
}

#[test]
fn a_rollback_that_might_mean_another_savepoint_is_an_error() {
    for statements in [
        // never set; released
        &["row", "ROLLBACK TO a"][..],
        &["row", "SAVEPOINT a", "RELEASE SAVEPOINT a", "ROLLBACK TO a"],
        &[
            "SAVEPOINT a",
            "row",
            "SAVEPOINT b",
            "ROLLBACK TO a",
            "ROLLBACK TO b",
            "row",
            "ROLLBACK TO b",
        ],
        // the server's collation takes both for the same
        &["SAVEPOINT e", "row", "SAVEPOINT `é`", "row", "ROLLBACK TO e"],
        &["SAVEPOINT `a `", "row", "SAVEPOINT a", "row", "ROLLBACK TO a"],
    ] {
        let error = savepoints(statements).unwrap_err();
        assert!(matches!(error, DecodeError::Savepoint { .. }), "{statements:?}: {error}");
    }
}

#[test]
fn after_a_savepoint_rows_are_held_up_to_the_bound() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let mut out = Vec::new();
    for event in pieces.begin().iter().chain([&query("SAVEPOINT a")]) {
        feed(&mut decoder, event, &mut out).unwrap();
    }
    let bound = decoder.settings.held_bytes_max;
    let enough = 2 * bound / pieces.write.len();
    let failed = (0..enough).find_map(|count| {
        let result = pieces.row().iter().try_for_each(|event| feed(&mut decoder, event, &mut out));
        result.err().map(|error| (count, error))
    });
    let (count, error) = failed.unwrap();
    assert_eq!(error, DecodeError::HeldTooMuch { bytes_max: bound });
    assert_eq!(count, bound / pieces.write.len());
    assert!(out.is_empty());
}

#[test]
fn an_xa_transaction_of_two_phases_without_rows_of_the_outbox_is_none_of_ours() {
    let pieces = Pieces::of(Flavor::MySql);
    let prepare = |one_phase: u8| {
        event(kind::XA_PREPARE_LOG_EVENT, 0, &[one_phase, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x'])
    };
    let xa = |row: [Bytes; 2], one_phase: u8| {
        let [map, write] = row;
        let last = prepare(one_phase);
        [
            pieces.gtid.clone(),
            query("XA START X'78',X'',1"),
            map,
            write,
            query("XA END X'78'"),
            last,
        ]
    };
    let decoded = decode(&mut pieces.decoder(), &xa(pieces.row(), 1)).unwrap();
    assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (1, 1));
    let decoded = decode(&mut pieces.decoder(), &xa(pieces.foreign_row(), 0)).unwrap();
    assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (0, 1));
    // what ends it later is a transaction of its own
    for verb in ["COMMIT", "ROLLBACK"] {
        let events = [pieces.gtid.clone(), query(&format!("XA {verb} X'78',X'',1"))];
        let decoded = decode(&mut pieces.decoder(), &events).unwrap();
        assert_eq!(ends(&decoded).len(), 1);
    }
}

#[test]
fn a_file_that_ends_inside_a_transaction_leaves_nothing_of_it() {
    let mut next = vec![4, 0, 0, 0, 0, 0, 0, 0];
    next.extend(b"binlog.000002");
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        for last in [
            event(kind::ROTATE_EVENT, 0x20, &next),
            event(kind::STOP_EVENT, 0, &[]),
            pieces.description.clone(),
        ] {
            let mut decoder = pieces.decoder();
            let mut events = pieces.begin();
            events.extend(pieces.row());
            events.push(last);
            // and is followed by the next one
            events.extend(pieces.begin());
            events.extend(pieces.row());
            events.push(pieces.commit.clone());
            let decoded = decode(&mut decoder, &events).unwrap();
            assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (1, 1));
            let ignored = decoder.ignored();
            assert_eq!((ignored.unfinished, ignored.rolled_back), (1, 1));
        }
    }
}

#[test]
fn a_new_connection_forgets_what_was_open() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let mut events = pieces.begin();
    events.extend(pieces.row());
    decode(&mut decoder, &events).unwrap();
    assert!(decoder.in_transaction() && decoder.held_bytes() > 0);
    decoder.reset("binlog.000007", 1234);
    assert!(!decoder.in_transaction() && decoder.held_bytes() == 0);
    assert_eq!((&**decoder.file(), decoder.position()), ("binlog.000007", 1234));
    // a table map of the old connection says nothing on the new one
    let mut events = vec![pieces.description.clone()];
    events.extend(pieces.begin());
    events.push(pieces.write.clone());
    let error = decode(&mut decoder, &events).unwrap_err();
    assert!(matches!(error, DecodeError::UnknownTable { .. }), "{error}");
}

#[test]
fn events_out_of_their_place_are_errors() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        let prepare = event(kind::XA_PREPARE_LOG_EVENT, 0, &[0; 13]);
        for outside in
            [&pieces.table_map, &pieces.write, &pieces.commit, &query("COMMIT"), &prepare]
        {
            let error = pieces.decoder().event(outside, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, DecodeError::Order { .. }), "{flavor:?}: {error}");
        }
        for within in
            [&pieces.gtid, &query("BEGIN"), &query("XA START 'a'"), &query("XA COMMIT 'a'")]
        {
            let mut decoder = pieces.decoder();
            decode(&mut decoder, &pieces.begin()).unwrap();
            let error = decoder.event(within, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, DecodeError::Order { .. }), "{flavor:?}: {error}");
        }
    }
    // MySQL: after its GTID a transaction is not yet open
    let pieces = Pieces::of(Flavor::MySql);
    for early in [&pieces.table_map, &pieces.write, &pieces.commit] {
        let error =
            decode(&mut pieces.decoder(), &[pieces.gtid.clone(), early.clone()]).unwrap_err();
        assert!(matches!(error, DecodeError::Order { .. }), "{error}");
    }
}

#[test]
fn a_table_map_counts_only_until_its_statement_ends() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut events = pieces.begin();
    events.extend(pieces.row());
    events.push(pieces.write.clone());
    let error = decode(&mut pieces.decoder(), &events).unwrap_err();
    assert!(matches!(error, DecodeError::UnknownTable { .. }), "{error}");
    // an event without a table ends a statement, too
    let mut events = pieces.begin();
    events.push(pieces.table_map.clone());
    let none = [&[0xFF; 6][..], &[1, 0, 2, 0, 0, 0]].concat();
    events.push(event(kind::WRITE_ROWS_EVENT, 0, &none));
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &events).unwrap();
    let error = decode(&mut decoder, std::slice::from_ref(&pieces.write)).unwrap_err();
    assert!(matches!(error, DecodeError::UnknownTable { .. }), "{error}");
}

#[test]
fn what_is_not_known_is_an_error_unless_it_may_be_left_out() {
    for (flavor, kinds) in [
        (Flavor::MySql, [0, 1, 6, 12, 20, 43, 99, 160, 162, 163, 166, 172, 255]),
        (Flavor::MariaDb, [0, 1, 6, 12, 20, 33, 34, 35, 39, 40, 41, 42, 172]),
    ] {
        let pieces = Pieces::of(flavor);
        for kind in kinds {
            let unknown = event(kind, 0, &[0; 40]);
            let error = pieces.decoder().event(&unknown, &mut Vec::new()).unwrap_err();
            assert!(
                matches!(error, DecodeError::UnknownEvent { .. }),
                "{flavor:?} {kind}: {error}"
            );
            let ignorable = event(kind, 0x80, &[0; 40]);
            assert_eq!(pieces.decoder().event(&ignorable, &mut Vec::new()), Ok(()), "{kind}");
        }
        let mut known = vec![5, 9, 11, 13, 14, 17, 27, 28, 29];
        known.extend(if flavor == Flavor::MySql { [35, 36, 37, 41] } else { [160, 161, 163, 164] });
        for kind in known {
            let ignored = event(kind, 0, &[0; 40]);
            assert_eq!(pieces.decoder().event(&ignored, &mut Vec::new()), Ok(()), "{kind}");
        }
    }
}

#[test]
fn an_incident_stops_with_what_the_server_says() {
    let pieces = Pieces::of(Flavor::MySql);
    let incident = event(kind::INCIDENT_EVENT, 0, b"\x01\0\x04lost");
    let error = pieces.decoder().event(&incident, &mut Vec::new()).unwrap_err();
    assert!(matches!(&error, DecodeError::Incident { message, .. } if message == "lost"));
}

#[test]
fn a_heartbeat_moves_nothing() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &pieces.begin()).unwrap();
    let before = decoder.position();
    let mut heartbeat = event(kind::HEARTBEAT_LOG_EVENT, 0, b"binlog.000009").to_vec();
    heartbeat[13..17].copy_from_slice(&7_000_000_u32.to_le_bytes());
    let end = heartbeat.len() - 4;
    let heartbeat = sealed(&heartbeat[..end], Checksum::Crc32);
    decode(&mut decoder, &[heartbeat]).unwrap();
    assert_eq!((decoder.position(), decoder.in_transaction()), (before, true));
}

#[test]
fn positions_go_on_beyond_four_gibibytes() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let at = |position: u32| {
        let mut stop = event(kind::STOP_EVENT, 0, &[]).to_vec();
        stop[13..17].copy_from_slice(&position.to_le_bytes());
        let end = stop.len() - 4;
        sealed(&stop[..end], Checksum::Crc32)
    };
    for (told, meant) in [
        (0xFFFF_FF00, 0xFFFF_FF00),
        (100, 0x1_0000_0064),
        (0xFFFF_FFFF, 0x1_FFFF_FFFF),
        (50, 0x2_0000_0032),
    ] {
        decode(&mut decoder, &[at(told)]).unwrap();
        assert_eq!(decoder.position(), meant);
    }
}

/// Found by the fuzzer.
#[test]
fn a_rotation_to_a_place_that_no_file_has_moves_no_further() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let rotate = event(kind::ROTATE_EVENT, 0, &[&[0xFF; 8], &b"binlog.000002"[..]].concat());
    let mut stop = event(kind::STOP_EVENT, 0, &[]).to_vec();
    stop[13..17].copy_from_slice(&100_u32.to_le_bytes());
    let end = stop.len() - 4;
    decode(&mut decoder, &[rotate, sealed(&stop[..end], Checksum::Crc32)]).unwrap();
    assert_eq!(decoder.position(), u64::MAX);
}

#[test]
fn without_gtids_a_file_without_a_number_is_refused() {
    let events = events("mysql97-nogtid");
    let anonymous = events.iter().find(|event| event[4] == 34).unwrap();
    for file in ["", "binlog", "binlog.", "binlog.x1", "binlog.99999999999"] {
        let mut decoder = decoder(Flavor::MySql);
        decoder.reset(file, 4);
        let error = decoder.event(anonymous, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, DecodeError::Unnameable { .. }), "{file}: {error}");
    }
    let mut decoder = decoder(Flavor::MySql);
    decoder.reset("binlog.000001", 1 << 32);
    let error = decoder.event(anonymous, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, DecodeError::Unnameable { .. }), "{error}");
}

#[test]
fn statements_of_a_transaction_are_counted_and_those_on_the_outbox_refused() {
    let pieces = Pieces::of(Flavor::MariaDb);
    let mut decoder = pieces.decoder();
    let mut events = pieces.begin();
    events.push(query("INSERT INTO orders VALUES (1)"));
    events.push(query("# Dummy event replacing event type 160"));
    events.push(query("CREATE TEMPORARY TABLE outbox_copy (id INT)"));
    decode(&mut decoder, &events).unwrap();
    assert_eq!(decoder.ignored().statements, 1);
    decode(&mut decoder, &[query("DELETE FROM outbox")]).unwrap();
    assert_eq!(decoder.ignored().statements, 2);
    let error = decode(&mut decoder, &[query("REPLACE INTO outbox SELECT 1")]).unwrap_err();
    assert!(matches!(error, DecodeError::StatementFormat { .. }), "{error}");
    // LOAD DATA has an event of its own
    let mut body = vec![0; 8];
    body.extend([3, 0, 0, 0, 0]);
    body.extend([0; 13]);
    body.extend(b"app\0LOAD DATA INFILE 'f' INTO TABLE `outbox`");
    let load = event(kind::EXECUTE_LOAD_QUERY_EVENT, 0, &body);
    let error = decode(&mut decoder, &[load]).unwrap_err();
    assert!(matches!(error, DecodeError::StatementFormat { .. }), "{error}");
}

#[test]
fn a_dummy_in_place_of_another_event_does_not_end_a_single_statement() {
    let captured = events("mariadb1011");
    let standalone = captured.iter().find(|event| event[4] == 162).unwrap();
    let pieces = Pieces::of(Flavor::MariaDb);
    let mut decoder = pieces.decoder();
    let dummy = query("# Dummy event replacing event type 160");
    let decoded = decode(&mut decoder, &[standalone.clone(), dummy]).unwrap();
    assert!(decoded.is_empty() && decoder.in_transaction());
    let decoded = decode(&mut decoder, &[query("CREATE DATABASE app")]).unwrap();
    assert_eq!(ends(&decoded).len(), 1);
}

/// A compressed transaction with these events inside, which lose their checksums.
fn payload(events: &[Bytes], stated: Option<usize>) -> Bytes {
    let mut inflated = Vec::new();
    for event in events {
        let mut bare = sealed(&event[..event.len() - 4], Checksum::Off).to_vec();
        bare[13..17].copy_from_slice(&[0; 4]);
        inflated.extend(bare);
    }
    let compressed = zstd::encode_all(&inflated[..], 3).unwrap();
    let mut body = vec![2, 1, 0, 3, 5, 0xFD];
    body.extend(&stated.unwrap_or(inflated.len()).to_le_bytes()[..4]);
    body[4] = 4;
    body.truncate(9);
    body.extend([1, 4, 0xFD]);
    body.extend(&compressed.len().to_le_bytes()[..3]);
    body.push(0);
    body.extend(compressed);
    event(kind::TRANSACTION_PAYLOAD_EVENT, 0, &body)
}

#[test]
fn a_compressed_transaction_is_decoded_in_bounded_steps() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let mut events = vec![query("BEGIN")];
    for _ in 0..10_000 {
        events.extend(pieces.row());
    }
    events.push(pieces.commit.clone());
    decode(&mut decoder, std::slice::from_ref(&pieces.gtid)).unwrap();
    let mut out = Vec::new();
    decoder.event(&payload(&events, None), &mut out).unwrap();
    let (mut steps, mut most, mut count) = (0, 0, 0);
    let budget = decoder.settings.budget.clone();
    while decoder.has_more() {
        count += rows(&out).len();
        out.clear();
        decoder.step(&mut out).unwrap();
        most = most.max(out.len());
        steps += 1;
        // what was handed over and dropped is not held
        assert!(budget.held_bytes() < 1 << 20);
    }
    count += rows(&out).len();
    assert_eq!(count, 10_000);
    assert!(steps > 10 && most < 2000, "{steps} steps, {most} at once");
    assert!(!decoder.in_transaction());
}

#[test]
fn a_compressed_transaction_that_is_not_whole_is_an_error() {
    let pieces = Pieces::of(Flavor::MySql);
    let [map, write] = pieces.row();
    let whole = [query("BEGIN"), map.clone(), write.clone(), pieces.commit.clone()];
    let after_gtid = |payload: Bytes| {
        let mut decoder = pieces.decoder();
        let result = decode(&mut decoder, &[pieces.gtid.clone(), payload]);
        (result, decoder.has_more())
    };
    let (result, has_more) = after_gtid(payload(&whole, None));
    assert_eq!(rows(&result.unwrap()).len(), 1);
    assert!(!has_more);
    // without its end
    let (result, _) = after_gtid(payload(&whole[..3], None));
    assert!(matches!(result, Err(DecodeError::Unended { .. })));
    let (result, _) = after_gtid(payload(&[], None));
    assert!(matches!(result, Err(DecodeError::Unended { .. })));
    // with something behind it
    let behind = [&whole[..], std::slice::from_ref(&write)].concat();
    assert!(matches!(after_gtid(payload(&behind, None)).0, Err(DecodeError::Order { .. })));
    // with what has no place in one
    for kind in [4, 15, 33, 40] {
        let inside = [&whole[..3], &[event(kind, 0, &[0; 60])], &whole[3..]].concat();
        let result = after_gtid(payload(&inside, None)).0;
        assert!(matches!(result, Err(DecodeError::UnknownEvent { .. })), "{kind}: {result:?}");
    }
    // with another length than it states
    assert!(matches!(after_gtid(payload(&whole, Some(5))).0, Err(DecodeError::Event(_))));
    // and alone, without its GTID
    let result = decode(&mut pieces.decoder(), &[payload(&whole, None)]);
    assert!(matches!(result, Err(DecodeError::Order { .. })));
}

#[test]
#[should_panic(expected = "decoded whole")]
fn the_next_event_does_not_come_before_a_compressed_transaction_is_read() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    let [map, write] = pieces.row();
    let events = payload(&[query("BEGIN"), map, write, pieces.commit.clone()], None);
    decoder.event(&pieces.gtid, &mut Vec::new()).unwrap();
    decoder.event(&events, &mut Vec::new()).unwrap();
    assert!(decoder.has_more());
    decoder.event(&pieces.commit, &mut Vec::new()).unwrap();
}
