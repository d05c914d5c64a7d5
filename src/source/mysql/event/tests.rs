use super::body::{FormatDescription, Query, Rotate, RowsHead, RowsVersion, XaPrepare, incident};
use super::compressed::inflate;
use super::gtid::{Begin, Form, Moment};
use super::*;
use crate::source::mysql::gtid::Gtid;

/// An event with a header, and a checksum behind it.
fn event(kind: u8, flags: u16, body: &[u8]) -> Bytes {
    let mut bytes = vec![0x10, 0, 0, 0, kind, 11, 0, 0, 0];
    bytes.extend(u32::try_from(HEADER_LENGTH + body.len() + 4).unwrap().to_le_bytes());
    bytes.extend([0, 1, 0, 0]);
    bytes.extend(flags.to_le_bytes());
    bytes.extend(body);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.into()
}

fn description(algorithm: u8) -> Vec<u8> {
    let mut body = vec![4, 0];
    body.extend([b'9'; 50]);
    body.extend([0, 0, 0, 0, 19]);
    body.extend([0; 42]);
    for (kind, length) in [(2, 13), (4, 8), (18, 26), (19, 8), (23, 8), (24, 8), (25, 8)] {
        body[56 + kind] = length;
    }
    for kind in [30, 31, 32] {
        body[56 + kind] = 10;
    }
    body.push(algorithm);
    body
}

fn changed(bytes: &Bytes, at: usize) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes.into()
}

/// Of the transaction below.
const ID: &[u8] = b"X'6162',X'63',1";

#[test]
fn a_changed_byte_anywhere_is_seen_before_anything_is_believed() {
    let whole = event(kind::XID_EVENT, 0, &[7; 8]);
    let opened = Event::open(&whole, Checksum::Crc32).unwrap();
    assert_eq!(opened.body, [7; 8][..]);
    assert_eq!((opened.header.server, opened.header.next_position), (11, 256));
    for at in 0..whole.len() {
        let error = Event::open(&changed(&whole, at), Checksum::Crc32).unwrap_err();
        let expected = if (9..13).contains(&at) {
            matches!(error, EventError::Length { .. })
        } else {
            matches!(error, EventError::Checksum { .. })
        };
        assert!(expected, "{at}: {error}");
    }
    for length in 0..whole.len() {
        assert!(Event::open(&whole.slice(..length), Checksum::Crc32).is_err());
    }
}

#[test]
fn without_checksums_all_is_body() {
    let whole = event(kind::XID_EVENT, 0, &[7; 8]);
    assert_eq!(Event::open(&whole, Checksum::Off).unwrap().body.len(), 12);
    assert_eq!(Event::inner(&whole).unwrap().body.len(), 12);
}

#[test]
fn the_four_bytes_behind_the_first_file_name_are_cut() {
    let mut body = vec![4, 0, 0, 0, 0, 0, 0, 0];
    body.extend(b"binlog.000001");
    let first = event(kind::ROTATE_EVENT, LOG_EVENT_ARTIFICIAL_F, &body);
    for checksum in [Checksum::Unknown, Checksum::Off, Checksum::Crc32] {
        let opened = Event::open(&first, checksum).unwrap();
        let rotate = Rotate::parse(&opened.body).unwrap();
        assert_eq!((rotate.file, rotate.position), ("binlog.000001", 4));
    }
    // a server without checksums sends none: what looks like one is the name
    let mut bare = first.slice(..first.len() - 4).to_vec();
    bare[9] -= 4;
    let bare = Bytes::from(bare);
    let opened = Event::open(&bare, Checksum::Unknown).unwrap();
    assert_eq!(Rotate::parse(&opened.body).unwrap().file, "binlog.000001");
    assert!(Event::open(&bare, Checksum::Crc32).is_err());
    assert!(Rotate::parse(&body[..8]).is_err());
    assert!(Rotate::parse(b"\x04\0\0\0\0\0\0\0\xFF").is_err());
}

#[test]
fn a_description_tells_whether_it_is_covered_itself() {
    let covered = event(kind::FORMAT_DESCRIPTION_EVENT, 0, &description(1));
    let opened = Event::open(&covered, Checksum::Unknown).unwrap();
    assert_eq!(FormatDescription::parse(&opened.body).unwrap().checksum, Checksum::Crc32);
    assert!(matches!(
        Event::open(&changed(&covered, 30), Checksum::Unknown),
        Err(EventError::Checksum { .. })
    ));
    // the flag of a file in use came after its checksum
    let mut in_use = covered.to_vec();
    in_use[FLAGS_OFFSET] |= 1;
    assert!(Event::open(&in_use.into(), Checksum::Unknown).is_ok());
    // one that says that no event has a checksum may have an old one
    let bare = event(kind::FORMAT_DESCRIPTION_EVENT, 0, &description(0));
    let opened = Event::open(&changed(&bare, 30), Checksum::Crc32).unwrap();
    assert_eq!(FormatDescription::parse(&opened.body).unwrap().checksum, Checksum::Off);
    for length in 0..covered.len() {
        assert!(Event::open(&covered.slice(..length), Checksum::Unknown).is_err());
    }
}

#[test]
fn a_server_that_writes_other_layouts_is_refused() {
    for (at, value) in [(0, 3), (56, 20), (56 + 19, 6), (56 + 30, 8), (56 + 43, 2)] {
        let mut body = description(1);
        body[at] = value;
        let error = FormatDescription::parse(&body).unwrap_err();
        assert!(matches!(error, EventError::Unsupported { .. }), "{at}: {error}");
    }
}

fn begin(kind: u8, body: &[u8]) -> Result<Begin, MalformedError> {
    let whole = event(kind, 0, body);
    Begin::parse(&Header::parse(&whole).unwrap(), body)
}

#[test]
fn gtids_of_all_layouts_are_read_and_no_prefix_of_them() {
    const GTID: &[u8] =
        b"\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0A\x0B\x0C\x0D\x0E\x0F\x05\0\0\0\0\0\0\0";
    const SOURCE: u128 = 0x0001_0203_0405_0607_0809_0A0B_0C0D_0E0F;
    let gtid = Some(Gtid::MySql { source: SOURCE, tag: None, number: 5 });
    // 5.6: nothing behind it, so the header's clock
    let old = begin(kind::GTID_LOG_EVENT, GTID).unwrap();
    assert_eq!(
        old,
        Begin {
            gtid: gtid.clone(),
            committed_at_micros: 16_000_000,
            moment: Moment::Second(16_000_000),
            form: Form::Announced,
        }
    );
    // 8.0: committed here, and first elsewhere
    let clock =
        [GTID, &[2], &[0; 16], &[0, 0, 0, 0, 0, 0x10, 0x80], &[7, 0, 0, 0, 0, 0, 0]].concat();
    let both = begin(kind::GTID_LOG_EVENT, &clock).unwrap();
    assert_eq!((both.committed_at_micros, both.moment), (7, Moment::Exact(7)));
    // first where no clock was written down: that of here is another one on each server
    let unknown =
        [GTID, &[2], &[0; 16], &[9, 0, 0, 0, 0, 0, 0x80], &[0, 0, 0, 0, 0, 0, 0]].concat();
    let unknown = begin(kind::GTID_LOG_EVENT, &unknown).unwrap();
    assert_eq!((unknown.committed_at_micros, unknown.moment), (9, Moment::Second(16_000_000)));
    let clock = [GTID, &[2], &[0; 16], &[9, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(begin(kind::GTID_LOG_EVENT, &clock).unwrap().committed_at_micros, 9);
    assert_eq!(begin(kind::ANONYMOUS_GTID_LOG_EVENT, &clock).unwrap().gtid, None);
    for length in 0..clock.len() {
        // up to the GTID itself, and up to the clock, it is what an older server writes
        let result = begin(kind::GTID_LOG_EVENT, &clock[..length]);
        assert_eq!(result.is_ok(), [25, 42].contains(&length), "{length}");
    }
    for number in [0, i64::MAX as u64, u64::MAX] {
        let mut body = GTID.to_vec();
        body[17..].copy_from_slice(&number.to_le_bytes());
        assert!(begin(kind::GTID_LOG_EVENT, &body).is_err());
        assert!(begin(kind::ANONYMOUS_GTID_LOG_EVENT, &body).is_ok());
    }
}

#[test]
fn mariadb_tells_what_follows_its_gtid() {
    let gtid = Some(Gtid::MariaDb { domain: 3, server: 11, number: 5 });
    for (flags, form) in [
        (0x0C, Form::Group),
        (0x29, Form::Standalone),
        (0x4C, Form::PreparedXa),
        (0x8D, Form::Standalone),
    ] {
        let body = [5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, flags, 0, 0, 0, 0, 0, 0];
        let moment = Moment::Second(16_000_000);
        let expected = Begin { gtid: gtid.clone(), committed_at_micros: 16_000_000, moment, form };
        assert_eq!(begin(kind::GTID_EVENT, &body), Ok(expected));
        for length in 0..14 {
            assert!(begin(kind::GTID_EVENT, &body[..length]).is_err());
        }
    }
}

#[test]
fn a_query_is_its_schema_and_its_text() {
    let body = [&[0; 8], &[3, 0, 0, 2, 0][..], &[9, 9], b"app\0", b"COMMIT"].concat();
    let query = Query::parse(kind::QUERY_EVENT, &body).unwrap();
    assert_eq!(query, Query { schema: b"app", text: b"COMMIT" });
    for length in 0..19 {
        assert!(Query::parse(kind::QUERY_EVENT, &body[..length]).is_err());
    }
    let load = [&body[..13], &[0; 13], &body[13..]].concat();
    assert_eq!(Query::parse(kind::EXECUTE_LOAD_QUERY_EVENT, &load).unwrap(), query);
    let mut unended = body.clone();
    unended[18] = b'x';
    assert!(Query::parse(kind::QUERY_EVENT, &unended).is_err());
}

#[test]
fn heads_of_row_events_are_read_in_both_versions() {
    let body = [1, 2, 0, 0, 0, 3, 1, 0, 4, 0, 8, 8, 5];
    let head = RowsHead::parse(RowsVersion::Two, &body).unwrap();
    assert_eq!(head, RowsHead { table: Some(0x0300_0000_0201), ends_statement: true, length: 12 });
    assert_eq!(RowsHead::parse(RowsVersion::One, &body).unwrap().length, 8);
    for length in 0..12 {
        assert!(RowsHead::parse(RowsVersion::Two, &body[..length]).is_err());
    }
    let mut short = body;
    short[8] = 1;
    assert!(RowsHead::parse(RowsVersion::Two, &short).is_err());
}

#[test]
fn an_xa_prepare_says_whether_it_was_the_end() {
    let mut body = vec![1, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, b'a', b'b', b'c'];
    assert_eq!(XaPrepare::parse(&body), Ok(XaPrepare { one_phase: true, id: ID.to_vec() }));
    for length in 0..body.len() {
        assert!(XaPrepare::parse(&body[..length]).is_err());
    }
    body[0] = 0;
    assert_eq!(XaPrepare::parse(&body), Ok(XaPrepare { one_phase: false, id: ID.to_vec() }));
    body.push(0);
    assert!(XaPrepare::parse(&body).is_err());
}

#[test]
fn an_incident_tells_its_message() {
    assert_eq!(incident(b"\x01\0\x04lost").unwrap(), "lost");
    assert_eq!(incident(b"\x01\0\0").unwrap(), "incident 1");
    assert!(incident(b"\x01\0\x05lost").is_err());
}

fn deflated(text: &[u8]) -> Vec<u8> {
    let mut zlib = flate2::Compress::new(flate2::Compression::fast(), true);
    let mut out = vec![0x82];
    out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
    out.reserve(text.len() + 100);
    zlib.compress_vec(text, &mut out, flate2::FlushCompress::Finish).unwrap();
    out
}

#[test]
fn what_is_inflated_is_as_long_as_it_was_said_to_be() {
    let text: Vec<u8> = (0..5000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
    let whole = deflated(&text);
    let mut out = b"head".to_vec();
    inflate(&whole, &mut out, text.len(), "text").unwrap();
    assert_eq!(out, [b"head", &text[..]].concat());
    // bounded before anything is allocated
    let error = inflate(&whole, &mut Vec::new(), text.len() - 1, "text").unwrap_err();
    assert!(matches!(error, EventError::TooLarge { length: 20_000, length_max: 19_999, .. }));
    // too short, too long, cut, and with something behind
    for length in [0, 1, 19_999, 20_001, 65_535_u16] {
        let mut lying = whole.clone();
        lying[1..3].copy_from_slice(&length.to_be_bytes());
        assert!(inflate(&lying, &mut Vec::new(), 70_000, "text").is_err(), "{length}");
    }
    for length in 0..whole.len() {
        assert!(inflate(&whole[..length], &mut Vec::new(), 70_000, "text").is_err());
    }
    assert!(inflate(&[&whole[..], &[0]].concat(), &mut Vec::new(), 70_000, "text").is_err());
    // other algorithms and impossible widths
    for first in [0x00, 0x80, 0x85, 0x8A, 0x92, 0xC2, 0xE2] {
        let mut other = whole.clone();
        other[0] = first;
        assert!(inflate(&other, &mut Vec::new(), 70_000, "text").is_err(), "{first:#X}");
    }
    // nothing is something, too
    inflate(&deflated(b""), &mut Vec::new(), 0, "text").unwrap();
}
