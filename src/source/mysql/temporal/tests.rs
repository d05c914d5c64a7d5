use super::*;

fn printed(temporal: Temporal, bytes: &[u8]) -> Result<String, TemporalError> {
    let mut out = BytesMut::new();
    temporal.print(bytes, &mut out)?;
    Ok(String::from_utf8(out.to_vec()).unwrap())
}

/// The stored DATETIME2 of a moment, as the server packs it.
fn stored_datetime(year: i64, month: i64, day: i64, clock: [i64; 3], fraction: &[u8]) -> Vec<u8> {
    let date = (year * 13 + month) << 5 | day;
    let [hour, minute, second] = clock;
    let packed = date << 17 | hour << 12 | minute << 6 | second;
    let mut bytes = (packed + (1 << 39)).to_be_bytes()[3..].to_vec();
    bytes.extend(fraction);
    bytes
}

#[test]
fn a_datetime_prints_as_rfc_3339_with_as_few_decimals_as_it_needs() {
    let bytes = stored_datetime(2024, 2, 29, [10, 34, 56], &[0x0C, 0x0A, 0x08]);
    let temporal = Temporal::Datetime { scale: 6 };
    assert_eq!(printed(temporal, &bytes).unwrap(), "2024-02-29T10:34:56.789Z");
    assert_eq!(temporal.micros(&bytes), Ok(1_709_202_896_789_000));

    let bytes = stored_datetime(9999, 12, 31, [23, 59, 59], &[]);
    let temporal = Temporal::Datetime { scale: 0 };
    assert_eq!(printed(temporal, &bytes).unwrap(), "9999-12-31T23:59:59Z");
    assert_eq!(temporal.micros(&bytes), Ok(253_402_300_799_000_000));
}

#[test]
fn a_timestamp_is_seconds_since_1970_and_its_fraction() {
    let temporal = Temporal::Timestamp { scale: 3 };
    let bytes = [0x65, 0xE0, 0x5D, 0xD0, 0x1E, 0xD2];
    assert_eq!(printed(temporal, &bytes).unwrap(), "2024-02-29T10:34:56.789Z");
    assert_eq!(temporal.micros(&bytes), Ok(1_709_202_896_789_000));
    let last = [0xFF; 4];
    assert_eq!(
        printed(Temporal::Timestamp { scale: 0 }, &last).unwrap(),
        "2106-02-07T06:28:15Z",
        "MariaDB 11.5 and later go on after 2038"
    );
    assert_eq!(
        printed(Temporal::OldTimestamp, &[0xD0, 0x5D, 0xE0, 0x65]).unwrap(),
        "2024-02-29T10:34:56Z"
    );
}

#[test]
fn what_is_no_date_is_printed_as_stored_and_is_no_moment() {
    let zero = Temporal::Timestamp { scale: 2 };
    assert_eq!(printed(zero, &[0; 5]).unwrap(), "0000-00-00 00:00:00.00");
    assert_eq!(zero.micros(&[0; 5]), Err(TemporalError::NoDate));

    let datetime = Temporal::Datetime { scale: 0 };
    let cases = [(0, 0, 0, "0000-00-00"), (2024, 0, 0, "2024-00-00"), (2023, 2, 29, "2023-02-29")];
    for (year, month, day, text) in cases {
        let bytes = stored_datetime(year, month, day, [1, 2, 3], &[]);
        assert_eq!(printed(datetime, &bytes).unwrap(), format!("{text} 01:02:03"));
        assert_eq!(datetime.micros(&bytes), Err(TemporalError::NoDate));
    }
    assert_eq!(printed(Temporal::Date, &[0, 0, 0]).unwrap(), "0000-00-00");
    assert_eq!(Temporal::Date.micros(&[0, 0, 0]), Err(TemporalError::NoDate));
}

#[test]
fn a_negative_time_counts_its_fraction_towards_zero() {
    // From MariaDB: TIME(2) of -10:11:12.34, which mysql_common 0.37 reads as 614:52:51.
    let whole = 0x80_0000_i64 - ((10 << 12) | (11 << 6) | 12) - 1;
    let mut bytes = whole.to_be_bytes()[5..].to_vec();
    bytes.push(u8::try_from(256 - 34).unwrap());
    assert_eq!(printed(Temporal::Time { scale: 2 }, &bytes).unwrap(), "-10:11:12.34");

    let whole = 0x80_0000_i64 + ((838 << 12) | (59 << 6) | 59);
    let bytes = &whole.to_be_bytes()[5..];
    assert_eq!(printed(Temporal::Time { scale: 0 }, bytes).unwrap(), "838:59:59");
    assert_eq!(printed(Temporal::OldTime, &[0x08, 0x75, 0xFE]).unwrap(), "-10:11:12");
}

#[test]
fn years_and_dates_print_as_select_prints_them() {
    assert_eq!(printed(Temporal::Year, &[0]).unwrap(), "0000");
    assert_eq!(printed(Temporal::Year, &[255]).unwrap(), "2155");
    let date = (2024_u32 << 9 | 2 << 5 | 29).to_le_bytes();
    assert_eq!(printed(Temporal::Date, &date[..3]).unwrap(), "2024-02-29");
    assert_eq!(Temporal::Date.micros(&date[..3]), Ok(1_709_164_800_000_000));
    assert_eq!(
        printed(Temporal::OldDatetime, &20_240_229_103_456_u64.to_le_bytes()).unwrap(),
        "2024-02-29T10:34:56Z"
    );
}

#[test]
fn what_no_server_writes_is_refused() {
    let malformed = Err(TemporalError::Malformed);
    let datetime = Temporal::Datetime { scale: 0 };
    assert_eq!(printed(datetime, &[0; 5]), malformed, "a negative datetime");
    assert_eq!(printed(datetime, &[0xFF; 5]), malformed, "month 13 and more");
    assert_eq!(printed(Temporal::OldDatetime, &[0xFF; 8]), malformed);
    assert_eq!(printed(Temporal::Timestamp { scale: 6 }, &[0xFF; 7]), malformed);
    assert_eq!(Temporal::with_scale(7, |scale| Temporal::Time { scale }), None);
    assert_eq!(Temporal::Year.micros(&[1]), Err(TemporalError::Malformed));
    for temporal in [Temporal::Year, Temporal::Date, datetime, Temporal::OldTimestamp] {
        for length in 0..12 {
            if length != temporal.bytes() {
                assert_eq!(printed(temporal, &vec![0x80; length]), malformed);
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(0_u8.., 0..10),
        scale in 0_u8..=6,
    ) {
        let mut out = BytesMut::new();
        for temporal in [
            Temporal::Year,
            Temporal::Date,
            Temporal::Time { scale },
            Temporal::Datetime { scale },
            Temporal::Timestamp { scale },
            Temporal::OldTime,
            Temporal::OldDatetime,
            Temporal::OldTimestamp,
        ] {
            let printed = temporal.print(&bytes, &mut out);
            assert_eq!(printed.is_ok(), temporal.micros(&bytes) != Err(TemporalError::Malformed)
                || !temporal.is_moment() && printed.is_ok());
        }
        out.clear();
        for print in [print_json_date, print_json_datetime, print_json_time] {
            assert!(print(&bytes, &mut out).is_err() || !out.is_empty());
        }
    }
}
