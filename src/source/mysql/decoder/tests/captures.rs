//! What real servers sent, decoded whole and compared with what they said themselves.

use super::*;

#[test]
fn every_capture_gives_the_rows_that_were_committed_and_no_other() {
    for capture in CAPTURES {
        let decoded = decode(&mut decoder(flavor(capture)), &events(capture)).unwrap();
        assert_eq!(payloads(&decoded), lines(&format!("{capture}.rows")), "{capture}");
        for row in rows(&decoded) {
            assert_eq!(row.aggregate_type.as_deref(), Some(&b"order"[..]));
            assert_eq!(row.id.as_ref().unwrap().len(), 36);
            assert!(row.committed_at_micros > 1_700_000_000_000_000, "{capture}");
        }
    }
}

#[test]
fn every_transaction_ends_once_and_together_they_are_what_the_server_committed() {
    for capture in CAPTURES {
        let events = events(capture);
        let begins = events.iter().filter(|event| [33, 34, 42, 162].contains(&event[4])).count();
        let mut decoder = decoder(flavor(capture));
        let decoded = decode(&mut decoder, &events).unwrap();
        let ends = ends(&decoded);
        assert_eq!(ends.len(), begins, "{capture}");
        assert!(!decoder.in_transaction());
        assert_eq!(decoder.held_bytes(), 0);
        let told = lines(&format!("{capture}.gtids")).join("");
        let told = GtidSet::parse(flavor(capture), &told).unwrap();
        let mut seen = GtidSet::empty(flavor(capture));
        for gtid in ends.iter().filter_map(|end| end.gtid.as_ref()) {
            seen.add(gtid);
        }
        if capture.ends_with("-compressed") {
            assert!(seen.is_subset_of(&told) && !seen.is_empty(), "{capture}");
        } else {
            assert_eq!(seen, told, "{capture}");
        }
    }
}

#[test]
fn sets_are_encoded_as_the_server_wrote_them_between_its_files() {
    // given every PREVIOUS_GTIDS_LOG_EVENT, of files without and with tags
    let mut decoder = decoder(Flavor::MySql);
    let (mut seen, mut compared) = (GtidSet::empty(Flavor::MySql), Vec::new());
    for event in events("mysql97") {
        if event[4] == kind::PREVIOUS_GTIDS_LOG_EVENT {
            let body = Event::open(&event, decoder.checksum).unwrap().body;
            // then it is what came before
            assert_eq!(seen.encode_for_dump(), body, "{seen}");
            compared.push(body[7]);
        }
        let mut out = Vec::new();
        feed(&mut decoder, &event, &mut out).unwrap();
        for gtid in ends(&out).iter().filter_map(|end| end.gtid.as_ref()) {
            assert!(!seen.contains(gtid));
            seen.add(gtid);
        }
    }
    assert_eq!(compared, [0, 0, 0, 0, 1]);
}

#[test]
fn rows_are_named_by_their_transaction_and_counted_in_it() {
    for capture in CAPTURES {
        let decoded = decode(&mut decoder(flavor(capture)), &events(capture)).unwrap();
        let mut names = std::collections::HashSet::new();
        let mut open: Vec<&OutboxRow> = Vec::new();
        for decoded in &decoded {
            match decoded {
                Decoded::Row(row) => open.push(row),
                Decoded::End(end) => {
                    assert_eq!(end.rows as usize, open.len());
                    assert!(!end.own || open.is_empty());
                    for (ordinal, row) in open.drain(..).enumerate() {
                        assert_eq!(row.identity.ordinal as usize, ordinal, "{capture}");
                        assert!(names.insert(row.identity), "{capture}: {}", row.identity);
                        let (log, number) = match end.gtid.as_ref() {
                            Some(Gtid::MySql { source, tag, number }) => {
                                (LogId::mysql(*source, tag.as_deref()), *number)
                            }
                            Some(Gtid::MariaDb { domain, server, number }) => {
                                (LogId::mariadb(SERVER_UUID, *domain, *server), *number)
                            }
                            None => (LogId::mysql(SERVER_UUID, None), row.identity.transaction),
                        };
                        assert_eq!((row.identity.log, row.identity.transaction), (log, number));
                    }
                }
            }
        }
        assert!(open.is_empty());
    }
}

#[test]
fn a_position_is_where_the_next_transaction_begins_and_names_it_without_gtid() {
    for capture in CAPTURES {
        let events = events(capture);
        let mut decoder = decoder(flavor(capture));
        let mut at: Option<(Arc<str>, u64)> = None;
        for event in &events {
            let header = Header::parse(event).unwrap();
            if let (Some((file, position)), 33 | 34 | 42 | 162) = (&at, header.kind) {
                let begin = u64::from(header.next_position - header.length);
                // MariaDB puts checkpoints and the list of GTIDs between.
                assert!(*file != *decoder.file() || *position <= begin, "{capture}");
                assert_eq!(decoder.position(), begin, "{capture}");
            }
            let mut out = Vec::new();
            feed(&mut decoder, event, &mut out).unwrap();
            for decoded in out {
                match decoded {
                    Decoded::Row(row) if capture == "mysql97-nogtid" => {
                        let file = row.identity.transaction >> 32;
                        assert!(decoder.file().ends_with(&format!(".{file:06}")));
                        assert!(row.identity.transaction & 0xFFFF_FFFF < decoder.position());
                    }
                    Decoded::Row(_) => {}
                    Decoded::End(end) => {
                        assert_eq!(end.position, u64::from(header.next_position));
                        assert_eq!(end.file, *decoder.file());
                        at = Some((end.file, end.position));
                    }
                }
            }
        }
    }
}

#[test]
fn reading_on_from_any_end_gives_the_rest() {
    for capture in CAPTURES {
        let events = events(capture);
        let whole = decode(&mut decoder(flavor(capture)), &events).unwrap();
        let description = &events[..2];
        let mut before = 0;
        let mut first = decoder(flavor(capture));
        let mut checksum = Checksum::Unknown;
        for (index, event) in events.iter().enumerate() {
            let mut out = Vec::new();
            feed(&mut first, event, &mut out).unwrap();
            before += out.len();
            // Only within the first file, whose description stands for that of the resumed one.
            if index > 1 && first.checksum != checksum {
                break;
            }
            checksum = first.checksum;
            let Some(Decoded::End(end)) = out.last() else { continue };
            let mut second = decoder(flavor(capture));
            second.reset(&end.file, end.position);
            // a server sends the description again, and says that it has no place there
            let mut again = description[1].slice(..description[1].len() - 4).to_vec();
            again[13..17].copy_from_slice(&[0; 4]);
            let again = sealed(&again, Checksum::Crc32);
            decode(&mut second, &[again]).unwrap();
            let rest = decode(&mut second, &events[index + 1..]).unwrap();
            assert_eq!(format!("{rest:?}"), format!("{:?}", &whole[before..]), "{capture} {index}");
        }
    }
}

#[test]
fn what_is_left_out_is_counted() {
    for capture in CAPTURES {
        let mut decoder = decoder(flavor(capture));
        let decoded = decode(&mut decoder, &events(capture)).unwrap();
        let ignored = decoder.ignored();
        let own = ends(&decoded).iter().filter(|end| end.own).count();
        let expected = match capture {
            "mysql97" => (1, 2, 3, 0, 2),
            "mysql97-nogtid" => (1, 2, 3, 0, 2),
            "mariadb1011" | "mariadb118" => (1, 2, 3, 2, 2),
            "mysql97-compressed" => (0, 0, 0, 0, 0),
            _ => (1, 1, 1, 0, 0),
        };
        let IgnoredCounts { updates, deletes, statements, rolled_back, foreign, .. } = ignored;
        let unfinished = ignored.unfinished;
        assert_eq!((updates, deletes, statements, rolled_back, own), expected, "{capture}");
        assert!(foreign > 0, "{capture}");
        assert_eq!(unfinished, 0);
    }
}

#[test]
fn what_cannot_be_told_is_refused_by_name_and_what_was_before_it_came_out() {
    for capture in REFUSED {
        let mut decoder = decoder(flavor(capture));
        let mut out = Vec::new();
        let mut failure = None;
        for event in events(capture) {
            if let Err(error) = feed(&mut decoder, &event, &mut out) {
                failure = Some(error);
                break;
            }
        }
        if capture.ends_with("-xa") {
            // Prepared, and the end is not in the capture: it waits.
            assert_eq!(failure, None, "{capture}");
            assert_eq!(payloads(&out), lines(&format!("{capture}.rows")), "{capture}");
            assert!(decoder.take_notices().contains(&Notice::Prepared), "{capture}");
            assert!(matches!(out.last(), Some(Decoded::End(end)) if end.rows == 1), "{capture}");
            continue;
        }
        let error = failure.unwrap_or_else(|| panic!("{capture} was not refused"));
        assert_eq!(payloads(&out), lines(&format!("{capture}.rows")), "{capture}");
        let expected = match capture.rsplit_once('-').unwrap().1 {
            "statement" => {
                matches!(&error, DecodeError::StatementFormat { table, .. } if table == "app.outbox")
            }
            _ => matches!(&error, DecodeError::Layout(LayoutError::NoNames { .. })),
        };
        assert!(expected, "{capture}: {error}");
        assert!(!error.is_damage());
    }
}

#[test]
fn a_column_that_is_gone_is_refused_only_when_a_row_is_inserted() {
    let mut settings = settings(Flavor::MySql);
    settings.columns.map(crate::outbox::Role::EventType, "kind");
    let mut decoder = Decoder::new(settings);
    decoder.reset("", 4);
    let mut out = Vec::new();
    let failed = events("mysql97")
        .iter()
        .find_map(|event| feed(&mut decoder, event, &mut out).err().map(|error| (event[4], error)));
    let (kind, error) = failed.unwrap();
    assert_eq!(kind, kind::WRITE_ROWS_EVENT);
    assert!(matches!(error, DecodeError::Layout(LayoutError::MissingColumn { .. })), "{error}");
}

#[test]
fn rows_are_slices_of_what_was_read_and_inflated_buffers_are_counted() {
    for capture in CAPTURES {
        let settings = settings(flavor(capture));
        let budget = settings.budget.clone();
        let mut decoder = Decoder::new(settings);
        decoder.reset("", 4);
        let events = events(capture);
        let decoded = decode(&mut decoder, &events).unwrap();
        let is_slice = |row: &&OutboxRow| {
            let at = row.payload.as_ref().unwrap().as_ptr();
            events.iter().any(|event| event.as_ptr_range().contains(&at))
        };
        let slices = rows(&decoded).into_iter().filter(is_slice).count();
        let inflated = rows(&decoded).len() - slices;
        let length: usize = payloads(&decoded).iter().map(String::len).sum();
        if capture.ends_with("-compressed") {
            // the one behind the compressed ones
            assert_eq!(slices, 1, "{capture}");
            let held = budget.held_bytes();
            assert!((length..length * 2).contains(&held), "{capture}: {held} for {length}");
        } else {
            assert_eq!((inflated, budget.held_bytes()), (0, 0), "{capture}");
        }
        drop(decoded);
        assert_eq!(budget.held_bytes(), 0, "{capture}");
    }
}
