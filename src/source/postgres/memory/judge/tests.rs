//! Cases by name; positions are small numbers.

use super::*;

const SYSTEM: u64 = 7;

fn row(confirmed: u64, bound: u64, is_clean: bool) -> Remembered {
    Remembered {
        system_identifier: SYSTEM.to_string(),
        timeline: 1,
        confirmed: Lsn(confirmed),
        bound: Lsn(bound),
        is_clean,
        writes: 5,
        holder: "me".into(),
        updated_at: String::new(),
        proof: SlotProof::None,
    }
}

fn file(position: u64) -> Record {
    Record {
        log: SYSTEM.to_string(),
        timeline: 1,
        name: "walpost".into(),
        position: Lsn(position).to_string(),
        writes: 5,
        holder: "me".into(),
        is_clean: false,
        boot: "now".into(),
    }
}

fn of(
    slot_at: u64,
    row: Option<&Remembered>,
    file: Option<&Record>,
) -> Result<Agreement, GapError> {
    let facts = Facts {
        slot: "walpost",
        slot_at: Lsn(slot_at),
        system_identifier: SYSTEM,
        timeline: 1,
        log_end: Lsn(1000),
        row,
        file,
        boot: "now",
    };
    judge(&facts)
}

fn is_ahead(result: Result<Agreement, GapError>) -> bool {
    matches!(result, Err(GapError::SlotAhead { .. }))
}

fn is_restored(result: Result<Agreement, GapError>) -> bool {
    matches!(result, Err(GapError::Restored { .. }))
}

#[test]
fn after_a_clean_stop_the_slot_is_where_it_was_or_before() {
    let clean = row(100, 500, true);
    for slot_at in [50, 99, 100] {
        assert_eq!(of(slot_at, Some(&clean), None), Ok(Agreement::Whole));
    }
    assert!(is_ahead(of(101, Some(&clean), None)));
}

#[test]
fn after_another_end_the_bound_decides_and_between_is_unsure() {
    let unclean = row(100, 500, false);
    let unsure = |is_same_slot| Ok(Agreement::Unsure { from: Lsn(100), is_same_slot });
    assert_eq!(of(100, Some(&unclean), None), Ok(Agreement::Whole));
    assert_eq!(of(500, Some(&unclean), None), unsure(false));
    assert!(is_ahead(of(501, Some(&unclean), None)));
    let same = Remembered { proof: SlotProof::Same, ..unclean };
    assert_eq!(of(200, Some(&same), None), unsure(true));
}

#[test]
fn a_counter_that_began_again_shows_another_slot_but_not_on_another_timeline() {
    let another = Remembered { proof: SlotProof::Another, ..row(100, 500, false) };
    assert!(is_ahead(of(200, Some(&another), None)));
    let promoted = Remembered { timeline: 0, ..another };
    assert!(matches!(of(200, Some(&promoted), None), Ok(Agreement::Unsure { .. })));
}

#[test]
fn the_file_is_exact_after_a_kill_and_less_so_after_another_boot_or_another_relay() {
    let unclean = row(100, 500, false);
    assert_eq!(of(200, Some(&unclean), Some(&file(200))), Ok(Agreement::Whole));
    assert!(is_ahead(of(201, Some(&unclean), Some(&file(200)))));
    assert!(is_ahead(of(201, None, Some(&file(200)))));
    let before = Record { boot: "before".into(), ..file(200) };
    assert!(matches!(of(300, Some(&unclean), Some(&before)), Ok(Agreement::Unsure { .. })));
    let stopped = Record { is_clean: true, ..before };
    assert!(is_ahead(of(300, Some(&unclean), Some(&stopped))));
    let taken_over = Remembered { holder: "other".into(), ..unclean };
    assert!(matches!(of(300, Some(&taken_over), Some(&file(200))), Ok(Agreement::Unsure { .. })));
}

#[test]
fn a_restored_database_shows_by_its_log_its_timeline_or_its_counter() {
    let clean = row(100, 500, true);
    assert!(is_restored(of(100, Some(&clean), Some(&file(1001)))));
    assert!(is_restored(of(100, None, Some(&file(1001)))));
    assert!(is_restored(of(100, Some(&clean), Some(&Record { timeline: 2, ..file(100) }))));
    assert!(is_restored(of(100, Some(&clean), Some(&Record { writes: 6, ..file(900) }))));
    assert!(is_restored(of(100, Some(&row(1001, 1500, true)), None)));
    assert_eq!(
        of(100, Some(&clean), Some(&Record { writes: 4, ..file(100) })),
        Ok(Agreement::Whole)
    );
}

#[test]
fn a_row_of_another_cluster_says_nothing_and_a_file_of_one_stops() {
    let other = Remembered { system_identifier: "8".into(), ..row(100, 500, true) };
    let foreign = Agreement::Foreign { system_identifier: "8".into() };
    assert_eq!(of(200, Some(&other), None), Ok(foreign));
    assert_eq!(start_at(Some(&other), SYSTEM, Lsn(1000)), None);
    let other = Record { log: "8".into(), ..file(100) };
    assert!(matches!(of(100, None, Some(&other)), Err(GapError::OtherServer { .. })));
    let other = Record { name: "b".into(), ..file(100) };
    let result = of(100, None, Some(&other)).unwrap_err();
    assert!(matches!(result, GapError::OtherSlot { .. }) && result.accepted_by().is_none());
}

#[test]
fn the_stream_begins_at_what_is_remembered_if_the_log_has_it() {
    assert_eq!(start_at(Some(&row(100, 500, false)), SYSTEM, Lsn(1000)), Some(Lsn(100)));
    assert_eq!(start_at(Some(&row(1001, 1500, false)), SYSTEM, Lsn(1000)), None);
    assert_eq!(start_at(None, SYSTEM, Lsn(1000)), None);
}

#[test]
fn what_a_person_reads_names_positions_range_and_command() {
    let text = of(0x4000, Some(&row(0x100, 0x500, true)), None).unwrap_err().to_string();
    for part in [
        "\"walpost\" is at 0/4000",
        "remembers 0/100",
        "between 0/100 and 0/4000",
        "15.8 KiB of log",
        "walpost run --accept-gap 0/4000",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
