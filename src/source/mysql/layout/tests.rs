//! Rows that real servers logged, against what their SELECT prints (`scripts/capture-binlog`).

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::*;
use crate::identity::{Fingerprint, LogId, RowIdentity};

/// Captured files, with the server's flavor.
pub(in super::super) const CAPTURES: [(&str, Flavor); 3] =
    [("mysql97", Flavor::MySql), ("mariadb1011", Flavor::MariaDb), ("mariadb118", Flavor::MariaDb)];

const TABLE_MAP: u8 = 19;
const WRITE_ROWS_V1: u8 = 23;
const WRITE_ROWS_V2: u8 = 30;

/// Type and body of all events of a captured file. Header: timestamp u32, type u8, server u32,
/// size u32, end u32, flags u16; CRC32 behind.
pub(in super::super) fn events(name: &str) -> Vec<(u8, Bytes)> {
    let file = std::fs::read(fixture(name, "binlog")).unwrap();
    let mut rest = Bytes::from(file).slice(4..);
    let mut events = Vec::new();
    while !rest.is_empty() {
        let size = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
        let event = rest.split_to(size);
        events.push((event[4], event.slice(19..size - 4)));
    }
    events
}

fn fixture(name: &str, extension: &str) -> String {
    format!("{}/tests/fixtures/binlog/values/{name}.{extension}", env!("CARGO_MANIFEST_DIR"))
}

/// All tables of a capture, by their names.
pub(in super::super) fn tables(name: &str) -> HashMap<String, TableMap> {
    let mut tables = HashMap::new();
    for (kind, body) in events(name) {
        if kind == TABLE_MAP {
            let table = TableMap::parse(&body).unwrap();
            tables.insert(table.table.to_string(), table);
        }
    }
    tables
}

/// Table number and rows, from the count of columns on.
fn rows_event(kind: u8, body: &Bytes) -> Option<(u64, Bytes)> {
    let mut cursor = Cursor::new(body, "test");
    let id = cursor.u48().unwrap();
    cursor.u16().unwrap();
    match kind {
        WRITE_ROWS_V1 => Some((id, body.slice(8..))),
        WRITE_ROWS_V2 => {
            let extra = usize::from(cursor.u16().unwrap());
            Some((id, body.slice(8 + extra..)))
        }
        _ => None,
    }
}

fn blank() -> OutboxRow {
    let fingerprint = Fingerprint(0);
    OutboxRow::new(RowIdentity { log: LogId(0), transaction: 1, ordinal: 0, fingerprint }, 0)
}

/// A mapping of `names` as further columns, and of nothing else.
fn extras<'a>(names: impl Iterator<Item = &'a str>) -> Columns {
    let mut columns = Columns::debezium();
    let roles: Vec<Role> = columns.iter().map(|column| column.role).collect();
    for role in roles {
        columns.unmap(role);
    }
    for name in names {
        columns.extra(name);
    }
    columns
}

fn read(layout: &Layout, body: &Bytes) -> Result<Vec<OutboxRow>, RowError> {
    let mut rows = Vec::new();
    layout.read_rows(body, &mut blank, &mut |row, _| rows.push(row))?;
    Ok(rows)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn assert_value(column: &str, found: Option<&Bytes>, expected: &Value) {
    let Value::String(expected) = expected else {
        assert_eq!(found, None, "{column}");
        return;
    };
    let found = found.unwrap_or_else(|| panic!("{column} is NULL, not {expected}"));
    if column.starts_with("b_") {
        assert_eq!(&hex(found), expected, "{column}");
        return;
    }
    let found = str::from_utf8(found).unwrap();
    if column.starts_with("f_") {
        // The server prints the double that the float is.
        let float: f32 = found.parse().unwrap();
        assert_eq!(f64::from(float), expected.parse::<f64>().unwrap(), "{column}");
    } else {
        assert_eq!(found, expected, "{column}");
    }
}

#[test]
fn every_type_reads_as_the_servers_print_it() {
    for (name, flavor) in CAPTURES {
        // Given what SELECT prints, in the order of the log.
        let lines = std::fs::read_to_string(fixture(name, "jsonl")).unwrap();
        let mut expected = lines.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut layouts: HashMap<u64, (String, Vec<String>, TableMap)> = HashMap::new();
        let mut count = 0;
        for (kind, body) in events(name) {
            if kind == TABLE_MAP {
                let table = TableMap::parse(&body).unwrap();
                let descriptions = table.describe(flavor).unwrap();
                let columns = descriptions.iter().map(|column| column.name.unwrap().to_owned());
                let told = columns.filter(|column| !column.starts_with("skip_")).collect();
                layouts.insert(table.id, (table.table.to_string(), told, table));
                continue;
            }
            let Some((id, body)) = rows_event(kind, &body) else { continue };
            let (table_name, told, table) = &layouts[&id];
            let columns = extras(told.iter().map(String::as_str));
            let layout = Layout::new(table, &columns, flavor).unwrap();
            // When the event is read
            let rows = match read(&layout, &body) {
                Err(RowError::NotInImage { .. }) => continue,
                rows => rows.unwrap(),
            };
            // Then each value is what was printed.
            for row in rows {
                count += 1;
                let line: Map<String, Value> = expected.next().unwrap();
                assert_eq!(line["table"], **table_name, "{name}, row {count}");
                for (column, value) in row.extra.iter().zip(told).map(|(value, name)| (name, value))
                {
                    if column != "seq" {
                        assert_value(column, value.as_ref(), &line[column]);
                    }
                }
                assert_eq!(row.extra.len(), told.len());
            }
        }
        assert!(count >= 20, "{name}: {count} rows");
        assert!(expected.next().is_none(), "{name}: rows are missing");
    }
}

#[test]
fn every_prefix_of_an_event_fails_cleanly_or_ends_between_rows() {
    for (name, flavor) in CAPTURES {
        let tables = tables(name);
        for (kind, body) in events(name) {
            let Some((id, body)) = rows_event(kind, &body) else { continue };
            let Some(table) = tables.values().find(|table| table.id == id) else { continue };
            let layout = Layout::new(table, &extras(["c_last"].into_iter()), flavor);
            let Ok(layout) = layout else { continue };
            let all = read(&layout, &body).unwrap().len();
            for end in 0..body.len() {
                match read(&layout, &body.slice(..end)) {
                    Ok(rows) => assert!(rows.len() < all),
                    Err(error) => assert!(matches!(error, RowError::Malformed { .. })),
                }
            }
        }
    }
}

/// Layout and rows of the table `typed` with these columns.
fn typed(name: &str, flavor: Flavor, columns: &Columns) -> (Layout, Vec<Bytes>) {
    let table = &tables(name)["typed"];
    let layout = Layout::new(table, columns, flavor).unwrap();
    let bodies = events(name).into_iter().filter_map(|(kind, body)| rows_event(kind, &body));
    let bodies = bodies.filter(|(id, _)| *id == table.id).map(|(_, body)| body);
    (layout, bodies.collect())
}

#[test]
fn a_binary_of_16_is_a_uuid_as_an_id_and_bytes_elsewhere() {
    let mut columns = extras(std::iter::empty());
    columns.map(Role::Id, "B_Binary16");
    columns.map(Role::AggregateId, "b_varbinary");
    columns.map(Role::CreatedAt, "c_datetime");
    let (layout, bodies) = typed("mysql97", Flavor::MySql, &columns);
    let row = read(&layout, &bodies[2]).unwrap().pop().unwrap();
    assert_eq!(row.id.unwrap(), "00112233-4455-6677-8899-aabbccdd0000");
    assert_eq!(row.aggregate_id.unwrap(), b"\x00\xFF\x00\x00"[..]);
    assert_eq!(row.created_at_micros, Some(1_709_202_896_000_000));
    let empty = read(&layout, &bodies[0]).unwrap().pop().unwrap();
    assert_eq!((empty.id, empty.created_at_micros), (None, None));

    let mut columns = extras(std::iter::empty());
    columns.map(Role::Id, "b_uuid");
    let (layout, bodies) = typed("mariadb118", Flavor::MariaDb, &columns);
    let row = read(&layout, &bodies[2]).unwrap().pop().unwrap();
    assert_eq!(row.id.unwrap(), "00112233-4455-1677-8899-aabbccdd0000", "MariaDB's UUID");
}

#[test]
fn a_zero_date_is_no_timestamp_of_a_message() {
    let mut columns = extras(std::iter::empty());
    columns.map(Role::CreatedAt, "c_timestamp2");
    for (name, flavor) in CAPTURES {
        let (layout, bodies) = typed(name, flavor, &columns);
        let error = read(&layout, &bodies[3]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("column \"c_timestamp2\" of table v.typed: "), "{text}");
        assert!(text.contains("zero date"), "{text}");
        assert!(text.contains("outbox.created_at_out_of_range = \"commit-time\""), "{text}");
        // unless the commit time may stand in its place
        let mut columns = columns.clone();
        columns.set_created_at_out_of_range(crate::outbox::OutOfRange::CommitTime);
        let (layout, bodies) = typed(name, flavor, &columns);
        let row = read(&layout, &bodies[3]).unwrap().pop().unwrap();
        assert_eq!(row.created_at_micros, None, "{name}");
    }
}

#[test]
fn text_is_a_slice_of_the_event_and_printed_values_share_one_buffer() {
    let columns = extras(["c_text", "i_int", "c_json"].into_iter());
    let (layout, bodies) = typed("mysql97", Flavor::MySql, &columns);
    let row = read(&layout, &bodies[2]).unwrap().pop().unwrap();
    let [text, number, json] = [0, 1, 2].map(|index| row.extra[index].clone().unwrap());
    let body = &bodies[2];
    let inside = body.as_ptr_range();
    assert!(inside.contains(&text.as_ptr()), "not copied");
    assert!(!inside.contains(&json.as_ptr()));
    assert_eq!(number.as_ptr_range().end, json.as_ptr(), "one behind the other");
}

#[test]
fn a_column_may_fill_several_roles() {
    let mut columns = extras(["b_binary16"].into_iter());
    columns.map(Role::Id, "b_binary16");
    columns.map(Role::CreatedAt, "c_date");
    columns.extra("c_date");
    let (layout, bodies) = typed("mariadb1011", Flavor::MariaDb, &columns);
    let row = read(&layout, &bodies[2]).unwrap().pop().unwrap();
    assert_eq!(row.id, row.extra[0]);
    assert_eq!(row.extra[1].clone().unwrap(), "2024-02-29");
    assert_eq!(row.created_at_micros, Some(1_709_164_800_000_000));
}

#[test]
fn a_column_that_was_left_out_of_the_image_is_a_definite_error() {
    for (name, flavor) in CAPTURES {
        let table = &tables(name)["latin"];
        let layout = Layout::new(table, &extras(["c_text"].into_iter()), flavor).unwrap();
        let missing = Layout::new(table, &extras(["c_other"].into_iter()), flavor).unwrap();
        let bodies = events(name).into_iter().filter_map(|(kind, body)| rows_event(kind, &body));
        let (_, partial) = bodies.filter(|(id, _)| *id == table.id).last().unwrap();
        let row = read(&layout, &partial).unwrap().pop().unwrap();
        assert_eq!(row.extra, [Some(Bytes::from_static(b"partial"))], "{name}");
        let error = read(&missing, &partial).unwrap_err();
        assert_eq!(
            error,
            RowError::NotInImage { table: "v.latin".into(), column: "c_other".into() }
        );
        assert!(error.to_string().contains("binlog_row_image = FULL"));
    }
}

#[test]
fn a_table_that_does_not_fit_says_what_to_do() {
    let tables = tables("mysql97");
    let layout = |columns: &Columns| Layout::new(&tables["typed"], columns, Flavor::MySql);
    let error = layout(&Columns::debezium()).unwrap_err();
    assert!(matches!(&error, LayoutError::MissingColumn { column, .. } if column == "id"));

    for (role, column, type_name) in [
        (Role::Payload, "skip_point", "GEOMETRY"),
        (Role::Payload, "skip_vector", "VECTOR"),
        (Role::CreatedAt, "c_time", "TIME"),
        (Role::CreatedAt, "c_varchar", "VARCHAR or VARBINARY"),
        (Role::Headers, "i_int", "INT"),
    ] {
        let mut columns = extras(std::iter::empty());
        columns.map(role, column);
        let error = layout(&columns).unwrap_err();
        let LayoutError::UnsupportedType { type_name: found, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(found, type_name);
    }
}

/// TABLE_MAP of `s.t` with one column.
fn one_column(type_byte: u8, metadata: &[u8], optional: &[u8]) -> TableMap {
    let mut body = b"\x01\0\0\0\0\0\x01\0\x01s\0\x01t\0\x01".to_vec();
    body.push(type_byte);
    body.push(u8::try_from(metadata.len()).unwrap());
    body.extend(metadata);
    body.push(0);
    body.extend(optional);
    TableMap::parse(&body).unwrap()
}

const NAMED_A: &[u8] = b"\x04\x02\x01a";

#[test]
fn what_the_log_does_not_tell_is_no_guess() {
    let columns = extras(["a"].into_iter());
    let layout = |table: &TableMap, flavor| Layout::new(table, &columns, flavor).unwrap_err();
    // No names: metadata is not FULL.
    let error = layout(&one_column(3, b"", b""), Flavor::MariaDb);
    assert_eq!(error, LayoutError::NoNames { table: "s.t".into() });
    assert!(error.to_string().contains("binlog_row_metadata = FULL"));
    // Neither sign nor character set nor labels.
    for (table, what) in [
        (one_column(3, b"", NAMED_A), "the sign"),
        (one_column(15, b"\x0A\0", NAMED_A), "the character set"),
        (one_column(254, b"\xF7\x01", NAMED_A), "the labels"),
    ] {
        let (table_name, column) = ("s.t".into(), "a".into());
        assert_eq!(
            layout(&table, Flavor::MySql),
            LayoutError::Untold { table: table_name, column, what }
        );
    }
    // A character set that is not converted.
    let big5 = [NAMED_A, b"\x02\x01\x01"].concat();
    let error = layout(&one_column(15, b"\x0A\0", &big5), Flavor::MySql);
    assert!(error.to_string().contains("character set big5 (collation number 1)"), "{error}");
}

#[test]
fn an_old_temporal_type_of_mariadb_stops_even_where_it_is_not_mapped() {
    // Its length depends on fractional seconds, of which the log says nothing.
    let table = one_column(12, b"", NAMED_A);
    let none = extras(std::iter::empty());
    let error = Layout::new(&table, &none, Flavor::MariaDb).unwrap_err();
    assert!(error.to_string().contains("ALTER TABLE s.t FORCE"), "{error}");
    // MySQL's had no fraction.
    let layout = Layout::new(&table, &extras(["a"].into_iter()), Flavor::MySql).unwrap();
    let body = [&b"\x01\x01\x00"[..], &20_240_229_103_456_u64.to_le_bytes()].concat();
    let row = read(&layout, &body.into()).unwrap().pop().unwrap();
    assert_eq!(row.extra[0].clone().unwrap(), "2024-02-29T10:34:56Z");
}

#[test]
fn rows_that_never_end_and_rows_of_another_table_are_refused() {
    let layout = Layout::new(
        &one_column(3, b"", &[NAMED_A, b"\x01\x01\0"].concat()),
        &extras(std::iter::empty()),
        Flavor::MySql,
    );
    let layout = layout.unwrap();
    let nothing_in_image = Bytes::from_static(b"\x01\x00\x00\x00");
    assert!(matches!(read(&layout, &nothing_in_image), Err(RowError::Malformed { .. })));
    let two_columns = Bytes::from_static(b"\x02\x03\x00");
    let error = read(&layout, &two_columns).unwrap_err();
    assert_eq!(error, RowError::ColumnCount { table: "s.t".into(), expected: 1, found: 2 });
    assert!(read(&layout, &Bytes::from_static(b"\x01\x01")).unwrap().is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((0_usize..4096, 0_u8..), 1..6),
    ) {
        for (name, flavor) in CAPTURES {
            let columns = tables(name)["typed"].describe(flavor).unwrap().iter()
                .filter_map(|column| column.name).filter(|name| !name.starts_with("skip_"))
                .map(str::to_owned).collect::<Vec<_>>();
            let (layout, bodies) = typed(name, flavor, &extras(columns.iter().map(String::as_str)));
            for body in bodies {
                let mut bytes = body.to_vec();
                for (place, byte) in &changes {
                    let place = place % bytes.len();
                    bytes[place] = *byte;
                }
                let length = bytes.len();
                assert!(read(&layout, &bytes.into()).map_or(0, |rows| rows.len()) < length);
            }
        }
    }
}
