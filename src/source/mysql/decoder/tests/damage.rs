//! What no server sends: cut and changed events.

use super::*;

/// The events of a capture that an event needs before it: the description of its file, and its
/// transaction from the beginning.
fn before(events: &[Bytes], index: usize) -> Vec<Bytes> {
    let begins = |event: &Bytes| [33, 34, 42, 162].contains(&event[4]);
    let description = events[..index].iter().rposition(|event| event[4] == 15);
    let Some(description) = description else { return Vec::new() };
    let begin = events[..index].iter().rposition(begins).unwrap_or(index).max(description);
    let mut needed = vec![events[description].clone()];
    needed.extend(events[begin..index].iter().filter(|event| event[4] != 15).cloned());
    needed
}

/// A decoder that has read these; `None` where they end in what is refused.
fn prepared(capture: &str, needed: &[Bytes]) -> Option<Decoder> {
    let mut decoder = decoder(flavor(capture));
    decoder.reset("binlog.000001", 4);
    let result = decode(&mut decoder, needed);
    assert!(result.is_ok() || REFUSED.contains(&capture), "{capture}: {result:?}");
    result.is_ok().then_some(decoder)
}

fn all() -> impl Iterator<Item = &'static str> {
    CAPTURES.into_iter().chain(REFUSED)
}

#[test]
fn every_prefix_of_every_event_fails_and_changes_nothing() {
    for capture in CAPTURES {
        let mut decoder = decoder(flavor(capture));
        let mut out = Vec::new();
        for event in events(capture) {
            let step = if event.len() > 1024 { 97 } else { 1 };
            for length in (0..event.len()).step_by(step) {
                let count = out.len();
                let error = decoder.event(&event.slice(..length), &mut out).unwrap_err();
                assert!(matches!(error, DecodeError::Event(_)), "{capture} {length}: {error}");
                assert_eq!(out.len(), count);
            }
            // The decoder that met all these errors goes on as if none had been.
            feed(&mut decoder, &event, &mut out).unwrap();
        }
        assert_eq!(payloads(&out), lines(&format!("{capture}.rows")), "{capture}");
    }
}

#[test]
fn every_prefix_that_is_sealed_as_if_it_were_whole_is_read_without_a_panic() {
    for capture in all() {
        let events = events(capture);
        let mut tried = std::collections::HashMap::new();
        for (index, event) in events.iter().enumerate() {
            // Three of each type are enough to have met all their fields.
            let count = tried.entry(event[4]).or_insert(0);
            *count += 1;
            if *count > 3 {
                continue;
            }
            let needed = before(&events, index);
            let Some(Decoder { checksum, .. }) = prepared(capture, &needed) else { continue };
            let end = event.len() - if checksum == Checksum::Crc32 { 4 } else { 0 };
            let step = if event.len() > 1024 { 97 } else { 1 };
            for length in (HEADER_LENGTH..end).step_by(step) {
                let mut decoder = prepared(capture, &needed).unwrap();
                let mut out = Vec::new();
                let result = feed(&mut decoder, &sealed(&event[..length], checksum), &mut out);
                // Where rows may end, there may be fewer of them; a row is never cut.
                if result.is_ok() {
                    let rows = rows(&out);
                    assert!(rows.iter().all(|row| row.id.is_some()), "{capture} {index} {length}");
                }
            }
        }
    }
}

#[test]
fn changed_events_never_panic_or_hang_and_give_no_more_than_they_hold() {
    let mut random = fastrand::Rng::with_seed(11);
    for capture in all() {
        let events = events(capture);
        for _ in 0..3000 {
            let index = random.usize(..events.len());
            let needed = before(&events, index);
            let Some(mut decoder) = prepared(capture, &needed) else { continue };
            let checksum = decoder.checksum;
            let event = &events[index];
            let end = event.len() - if checksum == Checksum::Crc32 { 4 } else { 0 };
            let mut changed = event[..end].to_vec();
            for _ in 0..random.usize(1..5) {
                // More often in the first bytes, where lengths and counts are.
                let range = if random.bool() { end.min(HEADER_LENGTH + 40) } else { end };
                let at = random.usize(..range);
                changed[at] = if random.bool() { random.u8(..) } else { changed[at] ^ 0x80 };
            }
            let mut out = Vec::new();
            let mut result = feed(&mut decoder, &sealed(&changed, checksum), &mut out);
            for event in events.iter().skip(index + 1).take(8) {
                if result.is_err() {
                    break;
                }
                result = feed(&mut decoder, event, &mut out);
            }
            assert!(out.len() < 10_000, "{capture} {index}");
            let held = decoder.settings.budget.held_bytes();
            assert!(held < 8 << 20, "{capture} {index}: {held}");
        }
    }
}

#[test]
fn an_event_that_was_damaged_on_the_way_says_so_and_nothing_of_it_is_used() {
    for capture in ["mysql97", "mariadb1011"] {
        let events = events(capture);
        let index = events.iter().position(|event| [23, 30].contains(&event[4])).unwrap();
        let mut decoder = prepared(capture, &before(&events, index)).unwrap();
        let mut damaged = events[index].to_vec();
        damaged[40] ^= 1;
        let mut out = Vec::new();
        let error = decoder.event(&damaged.into(), &mut out).unwrap_err();
        assert!(error.is_damage(), "{error}");
        assert!(out.is_empty());
    }
}
