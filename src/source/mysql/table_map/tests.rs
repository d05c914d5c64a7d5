use super::super::layout::tests::{CAPTURES, events, tables};
use super::*;

#[test]
fn a_table_is_described_as_it_was_made() {
    for (name, flavor) in CAPTURES {
        let tables = tables(name);
        let typed = &tables["typed"];
        assert_eq!((&*typed.schema, typed.is_full()), ("v", true));
        let columns = typed.describe(flavor).unwrap();
        let column =
            |wanted: &str| columns.iter().find(|column| column.name == Some(wanted)).unwrap();
        for number in ["tinyint", "smallint", "mediumint", "int", "bigint"] {
            assert_eq!(column(&format!("i_{number}")).unsigned, Some(false), "{name}");
            assert_eq!(column(&format!("u_{number}")).unsigned, Some(true), "{name}");
        }
        assert_eq!(column("u_after_year").unsigned, Some(true), "a YEAR counts as a number");
        assert_eq!(column("c_last").unsigned, Some(false));
        assert_eq!(column("c_char_latin").collation, Some(8));
        assert_eq!(column("c_varchar_latin").collation, Some(47), "behind a GEOMETRY");
        assert_eq!(column("b_longblob").collation, Some(63));
        assert_eq!(column("c_char_long").column_type, ColumnType::Char { length: 1020 });
        assert_eq!(column("c_bit12").column_type, ColumnType::Bit { bits: 12 });
        assert_eq!(column("c_enum").collation, Some(8));
        assert_eq!(&*column("c_enum").labels[1], b"gr\xFC\xDFe", "{name}: in its own charset");
        assert_eq!(column("c_set").labels.len(), 3);
        assert_eq!(column("c_enum_large").labels.len(), 300);
        assert_eq!(column("c_set_large").labels.len(), 64);
        assert_eq!(column("c_date").collation, None);
        assert_eq!(tables["wide"].columns.len(), 261);
    }
}

#[test]
fn names_are_read_without_the_rest() {
    for (name, _) in CAPTURES {
        for (kind, body) in events(name) {
            if kind == 19 {
                let table = TableMap::parse(&body).unwrap();
                let peeked = TableMap::peek(&body).unwrap();
                assert_eq!((peeked.id, peeked.schema), (table.id, "v"));
                assert_eq!(peeked.table, &*table.table);
            }
        }
    }
}

#[test]
fn every_prefix_fails_cleanly_or_lacks_whole_fields() {
    for (name, flavor) in CAPTURES {
        let (_, body) = events(name).into_iter().find(|(kind, _)| *kind == 19).unwrap();
        let whole = TableMap::parse(&body).unwrap();
        let mut parsed = 0;
        for end in 0..body.len() {
            if let Ok(table) = TableMap::parse(&body[..end]) {
                // It ends between two fields of optional metadata.
                parsed += 1;
                assert_eq!(table.columns, whole.columns);
                assert!(table.describe(flavor).map_or(0, |all| all.len()) <= whole.columns.len());
            }
        }
        assert!(parsed < 16, "{name}: {parsed}");
    }
}

#[test]
fn lists_that_are_too_short_are_refused_when_they_are_used() {
    // Nine INTs, but signs for eight of them only.
    let mut body = b"\x01\0\0\0\0\0\x01\0\x01s\0\x01t\0\x09".to_vec();
    body.extend([3; 9]);
    body.extend(b"\0\0\0\x01\x01\0");
    let table = TableMap::parse(&body).unwrap();
    assert!(table.describe(Flavor::MySql).is_err());
    // Two columns and one name.
    let table = TableMap::parse(b"\x01\0\0\0\0\0\x01\0\x01s\0\x01t\0\x02\x03\x03\0\0\x04\x02\x01a");
    assert!(table.unwrap().describe(Flavor::MySql).is_err());
}

#[test]
fn counts_that_the_bytes_cannot_hold_reserve_nothing() {
    // 2^40 columns; 2^40 labels.
    let columns = b"\x01\0\0\0\0\0\x01\0\x01s\0\x01t\0\xFE\0\0\0\0\0\x01\0\0";
    assert!(TableMap::parse(columns).is_err());
    let labels = b"\x01\0\0\0\0\0\x01\0\x01s\0\x01t\0\x01\x03\0\0\x05\x09\xFE\0\0\0\0\0\x01\0\0";
    assert!(TableMap::parse(labels).is_err());
    // A name that is not UTF-8, and one without its zero.
    assert!(TableMap::peek(b"\x01\0\0\0\0\0\x01\0\x01\xFF\0\x01t\0").is_err());
    assert!(TableMap::peek(b"\x01\0\0\0\0\0\x01\0\x01s!\x01t\0").is_err());
}

proptest::proptest! {
    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((0_usize..8192, 0_u8..), 1..6),
    ) {
        for (name, flavor) in CAPTURES {
            for (_, body) in events(name).into_iter().filter(|(kind, _)| *kind == 19) {
                let mut bytes = body.to_vec();
                for (place, byte) in &changes {
                    let place = place % bytes.len();
                    bytes[place] = *byte;
                }
                if let Ok(table) = TableMap::parse(&bytes) {
                    let described = table.describe(flavor).map_or(0, |all| all.len());
                    assert!(described <= table.columns.len());
                }
            }
        }
    }
}
