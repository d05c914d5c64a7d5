use super::*;

fn canonical(reading: &Reading, bytes: &[u8]) -> Result<String, ValueError> {
    let event = Bytes::copy_from_slice(bytes);
    let text = reading.canonical(&event, &event, &mut Scratch::new(0))?;
    Ok(String::from_utf8(text.to_vec()).unwrap())
}

#[test]
fn integers_of_all_widths_keep_their_sign() {
    let cases: [(&[u8], &str, &str); 6] = [
        (&[0xFB], "-5", "251"),
        (&[0xFB, 0xFF], "-5", "65531"),
        (&[0xFB, 0xFF, 0xFF], "-5", "16777211"),
        (&[0xFF, 0xFF, 0x7F], "8388607", "8388607"),
        (&[0, 0, 0, 0x80], "-2147483648", "2147483648"),
        (&[0xFF; 8], "-1", "18446744073709551615"),
    ];
    for (bytes, signed, unsigned) in cases {
        assert_eq!(canonical(&Reading::Signed, bytes).unwrap(), signed);
        assert_eq!(canonical(&Reading::Unsigned, bytes).unwrap(), unsigned);
    }
    for bytes in [&[][..], &[0; 9]] {
        assert_eq!(canonical(&Reading::Signed, bytes), Err(malformed("integer")));
        assert_eq!(canonical(&Reading::Unsigned, bytes), Err(malformed("integer")));
    }
}

#[test]
fn zeros_that_the_log_leaves_out_come_back() {
    assert_eq!(canonical(&Reading::Padded { length: 4 }, b"ab").unwrap(), "ab\0\0");
    assert_eq!(canonical(&Reading::Padded { length: 2 }, b"ab").unwrap(), "ab");
    assert_eq!(canonical(&Reading::Padded { length: 1 }, b"ab"), Err(malformed("BINARY")));
    let zero = "00000000-0000-0000-0000-000000000000";
    assert_eq!(canonical(&Reading::Uuid, b"").unwrap(), zero);
    let short = canonical(&Reading::Uuid, b"\xA0\xEE\xBC\x99").unwrap();
    assert_eq!(short, "a0eebc99-0000-0000-0000-000000000000");
    assert_eq!(canonical(&Reading::Uuid, &[1; 17]), Err(malformed("UUID")));
}

#[test]
fn labels_are_found_by_number_and_by_bit() {
    let labels = ["a", "b", "c"].map(Bytes::from_static_text).to_vec();
    let choice = Reading::Enum(labels.clone());
    assert_eq!(canonical(&choice, &[0]).unwrap(), "", "what the server made of a wrong value");
    assert_eq!(canonical(&choice, &[3]).unwrap(), "c");
    assert_eq!(canonical(&choice, &[3, 0]).unwrap(), "c");
    let error = canonical(&choice, &[4]);
    assert_eq!(error, Err(ValueError::Label { type_name: "ENUM", number: 4 }));
    let set = Reading::Set(labels);
    assert_eq!(canonical(&set, &[0]).unwrap(), "");
    assert_eq!(canonical(&set, &[0b101]).unwrap(), "a,c");
    let error = canonical(&set, &[0b1000]);
    assert_eq!(error, Err(ValueError::Label { type_name: "SET", number: 3 }));
}

trait StaticText {
    fn from_static_text(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

impl StaticText for Bytes {}

#[test]
fn latin1_is_sliced_where_it_is_ascii_and_converted_where_not() {
    let event = Bytes::from_static(b"order");
    let scratch = &mut Scratch::new(0);
    let text = Reading::Latin1.canonical(&event, &event, scratch).unwrap();
    assert_eq!(text.as_ptr(), event.as_ptr(), "not copied");
    assert_eq!(canonical(&Reading::Latin1, b"gr\xFC\xDFe").unwrap(), "grüße");
}

#[test]
fn bits_are_a_number() {
    assert_eq!(canonical(&Reading::Bit, &[0x0A, 0xAA]).unwrap(), "2730");
    assert_eq!(canonical(&Reading::Bit, &[0xFF; 8]).unwrap(), "18446744073709551615");
    assert_eq!(canonical(&Reading::Bit, &[]), Err(malformed("BIT")));
}

#[test]
fn floats_of_the_wrong_length_are_refused() {
    assert_eq!(canonical(&Reading::Float, &[0; 3]), Err(malformed("FLOAT")));
    assert_eq!(canonical(&Reading::Double, &[0; 4]), Err(malformed("DOUBLE")));
    assert_eq!(canonical(&Reading::Float, &0.1_f32.to_le_bytes()).unwrap(), "0.1");
}

#[test]
fn an_error_leaves_nothing_in_the_buffer() {
    let scratch = &mut Scratch::new(256);
    let event = Bytes::from_static(&[0x0C, 5, b'a']);
    assert!(Reading::Json.canonical(&event, &event, scratch).is_err());
    let event = Bytes::from_static(&[7]);
    assert_eq!(Reading::Signed.canonical(&event, &event, scratch).unwrap(), "7");
}

#[test]
fn what_a_column_can_be_follows_from_how_it_is_read() {
    let moment = Reading::Temporal(Temporal::Datetime { scale: 6 });
    assert!(moment.can_be(Role::CreatedAt) && moment.can_be(Role::Extra(0)));
    assert!(!moment.can_be(Role::Headers));
    assert!(!Reading::Temporal(Temporal::Time { scale: 0 }).can_be(Role::CreatedAt));
    assert!(!Reading::Signed.can_be(Role::Headers));
    assert!(Reading::Json.can_be(Role::Headers) && Reading::Latin1.can_be(Role::Headers));
    assert_eq!(Reading::Json.micros(b""), Err(malformed("timestamp")));
}

#[test]
fn addresses_are_written_as_mariadb_writes_them() {
    let event = Bytes::new();
    let mut scratch = Scratch::new(0);
    let mut print = |address: &[u8]| {
        let text = Reading::Inet6.canonical(address, &event, &mut scratch).unwrap();
        String::from_utf8(text.to_vec()).unwrap()
    };
    for (address, expected) in [
        (&[][..], "::"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], "::1"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 113, 224, 253, 119], "::ffff:113.224.253.119"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 250, 15, 240, 22], "::250.15.240.22"),
        (
            &[
                0x28, 0x25, 0, 0, 0xDD, 0x0B, 0xBC, 0xF9, 0x91, 0x70, 0x66, 0xFC, 0x78, 0xD9, 0xE7,
                0xBB,
            ],
            "2825::dd0b:bcf9:9170:66fc:78d9:e7bb",
        ),
        (&[0xFE, 0x80, 0, 0, 0, 0, 0, 0, 1], "fe80::100:0:0:0"),
        (&[0xFE, 0x80], "fe80::"),
    ] {
        assert_eq!(print(address), expected);
    }
    let mut scratch = Scratch::new(0);
    let text = Reading::Inet4.canonical(&[10, 1], &event, &mut scratch).unwrap();
    assert_eq!(text, "10.1.0.0");
    assert!(Reading::Inet4.canonical(&[1, 2, 3, 4, 5], &event, &mut scratch).is_err());
}
