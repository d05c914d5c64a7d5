//! What cannot be told when it comes: a table that is renamed, a transaction that is prepared, and
//! what is passed over.

use super::by_hand::{FLAVORS, Pieces, event, query};
use super::*;
use crate::source::mysql::skim::{HEAD_BYTES, Skimmed};

/// A transaction that is one statement.
fn alone(pieces: &Pieces, text: &str) -> Vec<Bytes> {
    let mut gtid = pieces.gtid.clone();
    if gtid[4] == kind::GTID_EVENT {
        // FL_STANDALONE
        let mut bytes = gtid[..gtid.len() - 4].to_vec();
        bytes[19 + 12] |= 1;
        gtid = sealed(&bytes, Checksum::Crc32);
    }
    vec![gtid, query(text)]
}

fn transaction(pieces: &Pieces, row: [Bytes; 2]) -> Vec<Bytes> {
    [pieces.begin(), row.to_vec(), vec![pieces.commit.clone()]].concat()
}

/// The same table map under another name of the same length.
fn renamed_map(map: &Bytes) -> Bytes {
    let mut bytes = map[..map.len() - 4].to_vec();
    let at = bytes.windows(6).position(|window| window == b"outbox").unwrap();
    bytes[at..at + 6].copy_from_slice(b"oldbox");
    sealed(&bytes, Checksum::Crc32)
}

#[test]
fn a_row_of_the_outbox_under_another_name_is_an_error_and_the_position_is_before_the_rename() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        let mut decoder = pieces.decoder();
        // given an outbox that was renamed
        let rename = alone(&pieces, "RENAME TABLE outbox TO oldbox");
        let decoded = decode(&mut decoder, &rename).unwrap();
        assert!(decoded.is_empty(), "the position is not behind it");
        assert!(
            matches!(&decoder.take_notices()[..], [Notice::RenamedAway { to }] if to == "app.oldbox")
        );
        // and other tables that are at work
        let foreign = transaction(&pieces, pieces.foreign_row());
        assert!(decode(&mut decoder, &foreign).unwrap().is_empty());
        // when a row is inserted under the new name
        let [map, write] = pieces.row();
        let row = transaction(&pieces, [renamed_map(&map), write]);
        let error = decode(&mut decoder, &row).unwrap_err();
        // then that is an error
        assert!(
            matches!(&error, DecodeError::RenamedRows { table, to, .. }
                if table == "app.outbox" && to == "app.oldbox"),
            "{error}"
        );
        let name = decoder.transaction().unwrap();
        let text = Undecodable::new(error, Some(name.clone())).to_string();
        assert!(text.contains(&format!("source.skip_transactions = \"{name}\"")), "{text}");
    }
}

#[test]
fn an_outbox_that_comes_back_or_is_replaced_goes_on_and_nothing_is_left_out() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        for (statements, waits) in [
            (&["RENAME TABLE outbox TO oldbox", "RENAME TABLE oldbox TO outbox"][..], 1),
            (&["RENAME TABLE outbox TO oldbox", "CREATE TABLE outbox LIKE oldbox"], 1),
            (&["RENAME TABLE outbox TO oldbox, fresh TO outbox"], 0),
            (&["RENAME TABLE outbox TO oldbox"], 1),
        ] {
            let mut decoder = pieces.decoder();
            let mut out = Vec::new();
            for statement in statements {
                out.extend(decode(&mut decoder, &alone(&pieces, statement)).unwrap());
                let foreign = transaction(&pieces, pieces.foreign_row());
                out.extend(decode(&mut decoder, &foreign).unwrap());
            }
            let settled = 2 * (statements.len() - waits);
            assert!(ends(&out).len() >= settled, "{statements:?}");
            // A row of the right name says that the table is there, whatever was read before.
            out.extend(decode(&mut decoder, &transaction(&pieces, pieces.row())).unwrap());
            assert_eq!(ends(&out).len(), 2 * statements.len() + 1, "{statements:?}");
            assert_eq!(rows(&out).len(), 1);
            assert!(matches!(out.last(), Some(Decoded::End(end)) if end.rows == 1));
        }
    }
}

#[test]
fn an_outbox_whose_name_stays_away_is_an_error_in_the_end() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &alone(&pieces, "ALTER TABLE outbox RENAME oldbox")).unwrap();
    let foreign = transaction(&pieces, pieces.foreign_row());
    let error = (0..30_000).find_map(|_| decode(&mut decoder, &foreign).err()).unwrap();
    assert!(matches!(&error, DecodeError::Renamed { to, .. } if to == "app.oldbox"), "{error}");
}

#[test]
fn what_may_rename_the_outbox_and_cannot_be_read_is_an_error() {
    let pieces = Pieces::of(Flavor::MySql);
    for text in ["RENAME TABLE outbox INTO x", "RENAME TABLE outbox TO /*!99999 a */ b"] {
        let error = decode(&mut pieces.decoder(), &alone(&pieces, text)).unwrap_err();
        assert!(matches!(error, DecodeError::UnclearRename { .. }), "{text}: {error}");
    }
    decode(&mut pieces.decoder(), &alone(&pieces, "RENAME TABLE orders INTO x")).unwrap();
}

/// An XA transaction up to its first phase.
fn prepared(pieces: &Pieces, id: &str) -> Vec<Bytes> {
    let [map, write] = pieces.row();
    let mut body = vec![0, 1, 0, 0, 0];
    body.extend(u32::try_from(id.len()).unwrap().to_le_bytes());
    body.extend([0; 4]);
    body.extend(id.as_bytes());
    let prepare = event(kind::XA_PREPARE_LOG_EVENT, 0, &body);
    vec![pieces.gtid.clone(), query("XA START 'x'"), map, write, query("XA END 'x'"), prepare]
}

#[test]
fn what_an_xa_rollback_takes_back_is_nothing_and_what_came_meanwhile_goes_on() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    // given two prepared transactions with rows of the outbox
    for id in ["x", "yz"] {
        assert!(decode(&mut decoder, &prepared(&pieces, id)).unwrap().is_empty());
    }
    assert_eq!(decoder.take_notices(), [Notice::Prepared, Notice::Prepared]);
    // when others follow
    assert!(decode(&mut decoder, &transaction(&pieces, pieces.row())).unwrap().is_empty());
    // then all goes on when both are rolled back
    let rollback = alone(&pieces, "XA ROLLBACK X'78',X'',1");
    assert!(decode(&mut decoder, &rollback).unwrap().is_empty());
    let decoded = decode(&mut decoder, &alone(&pieces, "XA ROLLBACK X'797a',X'',1")).unwrap();
    assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (1, 5));
    assert_eq!(decoder.ignored().rolled_back, 2);
    let decoded = decode(&mut decoder, &transaction(&pieces, pieces.row())).unwrap();
    assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (1, 1));
}

#[test]
fn a_large_xa_transaction_gives_no_row_before_its_end_is_known() {
    for capture in ["mysql97-xa", "mariadb1011-xa", "mariadb118-xa"] {
        let events = events(capture);
        let at = events.iter().rposition(|event| event[4] == kind::TABLE_MAP_EVENT).unwrap();
        let mut decoder = decoder(flavor(capture));
        let mut out = decode(&mut decoder, &events[..at]).unwrap();
        for _ in 0..1100 {
            out.extend(decode(&mut decoder, &events[at..=at + 1]).unwrap());
        }
        out.extend(decode(&mut decoder, &events[at + 2..]).unwrap());
        let expected = lines(&format!("{capture}.rows"));
        assert_eq!(payloads(&out), expected, "{capture}");
    }
}

#[test]
fn an_xa_commit_of_outbox_rows_is_an_error_that_names_the_transaction_that_holds_them() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &prepared(&pieces, "x")).unwrap();
    let error = decode(&mut decoder, &alone(&pieces, "XA COMMIT X'78',X'',1")).unwrap_err();
    assert!(matches!(&error, DecodeError::Xa { rows: 1, .. }), "{error}");
    let name = match &error {
        DecodeError::Xa { transaction, .. } => transaction.clone(),
        error => panic!("{error}"),
    };
    // when the settings leave it out
    let settings = DecoderSettings { skipped: vec![name], ..settings(Flavor::MySql) };
    let mut decoder = Decoder::new(settings);
    decoder.reset("binlog.000001", 4);
    decode(&mut decoder, std::slice::from_ref(&pieces.description)).unwrap();
    let decoded = decode(&mut decoder, &prepared(&pieces, "x")).unwrap();
    // then it is passed, and counted
    assert_eq!((rows(&decoded).len(), ends(&decoded).len()), (0, 1));
    assert_eq!(decoder.ignored().skipped, 1);
    assert!(matches!(&decoder.take_notices()[..], [Notice::Skipped { .. }]));
}

#[test]
fn a_statement_that_the_settings_leave_out_passes() {
    let pieces = Pieces::of(Flavor::MySql);
    let text = [pieces.begin(), vec![query("INSERT INTO outbox VALUES (1)"), query("COMMIT")]];
    let mut decoder = pieces.decoder();
    let error = decode(&mut decoder, &text.concat()).unwrap_err();
    assert!(matches!(error, DecodeError::StatementFormat { .. }), "{error}");
    let skipped = vec![decoder.transaction().unwrap().to_uppercase()];
    let mut decoder = Decoder::new(DecoderSettings { skipped, ..settings(Flavor::MySql) });
    decoder.reset("binlog.000001", 4);
    decode(&mut decoder, std::slice::from_ref(&pieces.description)).unwrap();
    assert_eq!(ends(&decode(&mut decoder, &text.concat()).unwrap()).len(), 1);
    assert_eq!(decoder.ignored().skipped, 1);
}

/// As a stream passes it over.
fn skimmed(event: &Bytes) -> Skimmed {
    let (covered, stated) = event.split_at(event.len() - 4);
    Skimmed {
        head: event.slice(..HEAD_BYTES.min(event.len())),
        length: event.len() as u64,
        stated: u32::from_le_bytes(stated.try_into().unwrap()),
        computed: crc32fast::hash(covered),
    }
}

#[test]
fn only_the_outbox_is_bounded_and_what_is_passed_over_counts_as_if_it_was_read() {
    for flavor in FLAVORS {
        let pieces = Pieces::of(flavor);
        let mut decoder = pieces.decoder();
        let mut out = decode(&mut decoder, &pieces.begin()).unwrap();
        let [map, write] = pieces.foreign_row();
        feed(&mut decoder, &map, &mut out).unwrap();
        // given a row of another table, when it is passed over
        assert!(decoder.skims(&write).unwrap());
        decoder.pass_over(&skimmed(&write), &mut out).unwrap();
        assert_eq!(decoder.ignored().foreign, 1);
        assert!(decoder.skims(&query("INSERT INTO blobs VALUES ('").slice(..)).unwrap());
        assert!(!decoder.skims(&query("INSERT INTO outbox VALUES ('").slice(..)).unwrap());
        assert!(!decoder.skims(&pieces.commit).unwrap());
        // then its statement is over, and the next one is read
        let [map, write] = pieces.row();
        feed(&mut decoder, &map, &mut out).unwrap();
        assert!(!decoder.skims(&write).unwrap(), "a row of the outbox is read");
        // but for one above the bound
        let mut large = write[..HEAD_BYTES.min(write.len())].to_vec();
        large[9..13].copy_from_slice(&(2_u32 << 20).to_le_bytes());
        let error = decoder.skims(&large).unwrap_err();
        assert!(
            matches!(&error, DecodeError::RowTooLarge { table, bytes: 0x20_0000, .. }
                if table == "app.outbox"),
            "{error}"
        );
        feed(&mut decoder, &write, &mut out).unwrap();
        feed(&mut decoder, &pieces.commit, &mut out).unwrap();
        assert_eq!((rows(&out).len(), ends(&out).len()), (1, 1));
    }
}

#[test]
fn damage_in_an_event_that_is_passed_over_is_noticed() {
    let pieces = Pieces::of(Flavor::MySql);
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &pieces.begin()).unwrap();
    let [map, write] = pieces.foreign_row();
    decode(&mut decoder, &[map]).unwrap();
    let damaged = Skimmed { computed: 0, ..skimmed(&write) };
    let error = decoder.pass_over(&damaged, &mut Vec::new()).unwrap_err();
    assert!(error.is_damage(), "{error}");
}

#[test]
fn a_row_that_a_versioned_table_keeps_is_an_error_and_no_event() {
    // given an update of the outbox, and in the same statement an insert
    let pieces = Pieces::of(Flavor::MariaDb);
    let [map, write] = pieces.row();
    let mut not_last = write[..write.len() - 4].to_vec();
    not_last[4] = kind::UPDATE_ROWS_EVENT_V1;
    not_last[19 + 6] &= !1;
    let update = sealed(&not_last, Checksum::Crc32);
    let events = [pieces.begin(), vec![map, update, write]].concat();
    // then in a table without periods it is one that INSERT … ON DUPLICATE KEY made
    let mut decoder = pieces.decoder();
    decode(&mut decoder, &events).unwrap();
    assert!(decoder.held_bytes() > 0);
}
