use super::*;

fn canonical(value_type: ValueType, datum: Datum<'_>) -> Result<Option<Bytes>, ValueError> {
    // Values borrow from the message, so the datum is moved into one.
    let (Datum::Text(bytes) | Datum::Binary(bytes)) = datum else {
        return value_type.canonical(datum, &Bytes::new(), &mut Scratch::default());
    };
    let message = Bytes::copy_from_slice(bytes);
    let datum = match datum {
        Datum::Text(_) => Datum::Text(&message),
        _ => Datum::Binary(&message),
    };
    value_type.canonical(datum, &message, &mut Scratch::default())
}

fn text(value_type: ValueType, bytes: &[u8]) -> Bytes {
    canonical(value_type, Datum::Text(bytes)).unwrap().unwrap()
}

fn binary(value_type: ValueType, bytes: &[u8]) -> Bytes {
    canonical(value_type, Datum::Binary(bytes)).unwrap().unwrap()
}

#[test]
fn a_payload_is_a_slice_of_the_message() {
    let message = Bytes::from_static(b"\x01{\"a\": 1}");
    let datum = Datum::Binary(&message);
    let scratch = &mut Scratch::default();
    let payload = ValueType::Jsonb.canonical(datum, &message, scratch).unwrap().unwrap();
    assert_eq!(payload, "{\"a\": 1}");
    assert_eq!(payload.as_ptr(), message[1..].as_ptr(), "not copied");
    assert_eq!(scratch.block.capacity(), 0, "no scratch used");
}

#[test]
fn both_wire_forms_give_the_same_text() {
    let uuid = *b"\xa0\xee\xbc\x99\x9c\x0b\x4e\xf8\xbb\x6d\x6b\xb9\xbd\x38\x0a\x11";
    let cases: [(ValueType, &[u8], &[u8]); 8] = [
        (ValueType::Uuid, b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", &uuid),
        (ValueType::Int2, b"-32768", &i16::MIN.to_be_bytes()),
        (ValueType::Int4, b"-2147483648", &i32::MIN.to_be_bytes()),
        (ValueType::Int8, b"9223372036854775807", &i64::MAX.to_be_bytes()),
        (ValueType::Oid, b"4294967295", &u32::MAX.to_be_bytes()),
        (ValueType::Bool, b"t", &[1]),
        (ValueType::Bytea, br"\x00fF5c", b"\x00\xff\x5c"),
        (ValueType::Date, b"2000-02-29", &59_i32.to_be_bytes()),
    ];
    for (value_type, as_text, as_binary) in cases {
        assert_eq!(text(value_type, as_text), binary(value_type, as_binary), "{value_type:?}");
    }
    let micros = ValueType::Timestamptz.micros(Datum::Binary(&1_500_000_i64.to_be_bytes()));
    assert_eq!(micros, ValueType::Timestamptz.micros(Datum::Text(b"2000-01-01 00:00:01.5+00")));
    let printed = text(ValueType::Timestamptz, b"2000-01-01 00:00:01.5+00");
    assert_eq!(printed, "2000-01-01T00:00:01.5Z");
}

#[test]
fn null_is_no_value_and_an_unchanged_one_is_an_error() {
    assert_eq!(canonical(ValueType::Jsonb, Datum::Null), Ok(None));
    assert_eq!(canonical(ValueType::Jsonb, Datum::Unchanged), Err(ValueError::Unchanged));
    assert_eq!(ValueType::Date.micros(Datum::Null), Ok(None));
    assert_eq!(ValueType::Date.micros(Datum::Unchanged), Err(ValueError::Unchanged));
}

#[test]
fn bytes_of_the_wrong_shape_are_refused() {
    for value_type in [
        ValueType::Uuid,
        ValueType::Int2,
        ValueType::Int4,
        ValueType::Int8,
        ValueType::Oid,
        ValueType::Bool,
        ValueType::Date,
        ValueType::Timestamp,
        ValueType::Float4,
        ValueType::Float8,
        ValueType::Numeric,
        ValueType::Jsonb,
    ] {
        assert!(canonical(value_type, Datum::Binary(b"")).is_err(), "{value_type:?}");
        assert!(canonical(value_type, Datum::Binary(&[7; 17])).is_err(), "{value_type:?}");
    }
    let escaped = canonical(ValueType::Bytea, Datum::Text(br"\000"));
    assert_eq!(escaped, Err(ValueError::Malformed { type_name: "bytea" }));
    assert!(canonical(ValueType::Bytea, Datum::Text(br"\x0")).is_err());
    assert!(canonical(ValueType::Bytea, Datum::Text(br"\x0g")).is_err());
    assert!(canonical(ValueType::Bool, Datum::Text(b"true")).is_err());
    let version_two = canonical(ValueType::Jsonb, Datum::Binary(b"\x02{}"));
    assert_eq!(version_two, Err(ValueError::JsonbVersion { version: 2 }));
}

#[test]
fn infinity_is_an_error_that_names_the_way_out() {
    let error = ValueType::Timestamptz.micros(Datum::Binary(&i64::MAX.to_be_bytes())).unwrap_err();
    assert!(error.to_string().contains("commit-time"), "{error}");
}

/// Texts are what PostgreSQL 15 printed (DateStyle ISO, TimeZone UTC), bytes what it sent.
#[test]
fn a_moment_that_rfc_3339_has_not_is_what_the_server_prints_in_both_forms() {
    let timestamps: [(i64, &str); 5] = [
        (i64::MAX, "infinity"),
        (i64::MIN, "-infinity"),
        // year -43 is 44 BC
        (-64_459_238_400_000_000, "0044-05-15 00:00:00+00 BC"),
        (252_455_616_000_000_000, "10000-01-01 00:00:00+00"),
        (9_223_371_331_199_999_999, "294276-12-31 23:59:59.999999+00"),
    ];
    for (micros, printed) in timestamps {
        assert_eq!(binary(ValueType::Timestamptz, &micros.to_be_bytes()), printed);
        assert_eq!(text(ValueType::Timestamptz, printed.as_bytes()), printed);
        let printed = printed.replace("+00", "");
        assert_eq!(binary(ValueType::Timestamp, &micros.to_be_bytes()), printed);
        assert_eq!(text(ValueType::Timestamp, printed.as_bytes()), printed);
    }
    let dates: [(i32, &str); 3] =
        [(i32::MIN, "-infinity"), (-746_056, "0044-05-15 BC"), (2_921_940, "10000-01-01")];
    for (days, printed) in dates {
        assert_eq!(binary(ValueType::Date, &days.to_be_bytes()), printed);
        assert_eq!(text(ValueType::Date, printed.as_bytes()), printed);
    }
}

#[test]
fn a_failed_value_leaves_nothing_behind_in_the_scratch() {
    let mut scratch = Scratch::default();
    assert_eq!(scratch.unhex(br"\x41zz"), None);
    let failed = scratch.print(|out| {
        out.put_slice(b"half");
        Err(ValueError::Unchanged)
    });
    assert!(failed.is_err());
    assert_eq!(scratch.copy(b"whole"), "whole");
}

#[test]
fn many_rows_share_one_block() {
    let mut scratch = Scratch::default();
    let first = scratch.copy(&[b'a'; 36]);
    let second = scratch.copy(&[b'b'; 36]);
    assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, 36);
    let large = scratch.unhex(&[br"\x".as_slice(), &[b'0'; 200_000]].concat()).unwrap();
    assert_eq!(large.len(), 100_000);
}
