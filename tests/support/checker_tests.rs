//! Every kind of violation, planted in synthetic data: the judge must find it, and only it.

use super::checker::{Judge, Kind, Published, Report, mark};
use super::ledger::{Ledger, Outcome, WrittenRow, hash};

fn payload(key: &str, seq: u64, row: u64) -> Vec<u8> {
    format!(r#"{{"key": "{key}", "row": {row}, "seq": {seq}}}"#).into_bytes()
}

fn written(key: &str, seq: u64, row: u64) -> WrittenRow {
    WrittenRow {
        row,
        transaction: 0,
        key: key.to_owned(),
        seq,
        id: format!("id-{row}"),
        event_type: "OrderPaid".to_owned(),
        payload_hash: hash(&payload(key, seq, row)),
        undone: false,
    }
}

fn published(key: &str, seq: u64, row: u64, position: u64) -> Published {
    Published {
        stream: "orders-0".to_owned(),
        position,
        key: Some(key.as_bytes().to_vec()),
        value: Some(payload(key, seq, row)),
        headers: vec![
            ("id".to_owned(), format!("id-{row}").into_bytes()),
            ("type".to_owned(), b"OrderPaid".to_vec()),
        ],
    }
}

/// Rows 1 to 3 of key `a` committed, row 4 rolled back, row 5 undone by a savepoint.
fn ledger() -> Ledger {
    let ledger = Ledger::new();
    for row in 1..=3 {
        let transaction = ledger.enter(vec![written("a", row, row)]);
        ledger.outcome(transaction, Outcome::Committed { position_max: row * 100 });
    }
    let rolled_back = ledger.enter(vec![written("a", 4, 4)]);
    ledger.outcome(rolled_back, Outcome::RolledBack);
    let undone = WrittenRow { undone: true, ..written("a", 5, 5) };
    let committed = ledger.enter(vec![undone]);
    ledger.outcome(committed, Outcome::Committed { position_max: 500 });
    ledger
}

fn all() -> Vec<Published> {
    (1..=3).map(|row| published("a", row, row, row - 1)).collect()
}

/// The report has violations of one kind only, so many.
fn assert_only(report: &Report, kind: Kind, count: usize) {
    assert_eq!(report.count(kind), count, "{report}");
    let kinds = [
        Kind::Loss,
        Kind::Phantom,
        Kind::Order,
        Kind::ConfirmedUnpublished,
        Kind::Duplicates,
        Kind::Memory,
        Kind::Fidelity,
    ];
    let total: usize = kinds.iter().map(|&kind| report.count(kind)).sum();
    assert_eq!(total, count, "{report}");
    assert!(report.to_string().contains(&format!("{kind:?}: {count}")), "{report}");
}

#[test]
fn what_was_published_once_and_in_order_is_clean() {
    let ledger = ledger();
    let report = Judge::new(&ledger, all()).duplicates_max(0).confirmed(350, &all()).judge();
    report.assert_clean();
    assert_eq!((report.committed, report.rolled_back, report.sampled_rows), (3, 2, 3));
}

#[test]
fn a_missing_row_is_a_loss() {
    let mut messages = all();
    messages.remove(1);
    assert_only(&Judge::new(&ledger(), messages).judge(), Kind::Loss, 1);
}

#[test]
#[should_panic(expected = "Loss: 1")]
fn a_violation_fails_the_test() {
    let mut messages = all();
    messages.remove(0);
    Judge::new(&ledger(), messages).judge().assert_clean();
}

#[test]
#[should_panic(expected = "nothing was judged")]
fn an_empty_ledger_fails_the_test() {
    Judge::new(&Ledger::new(), Vec::new()).judge().assert_clean();
}

#[test]
fn rolled_back_undone_unwritten_and_foreign_messages_are_phantoms() {
    let mut messages = all();
    messages.push(published("a", 4, 4, 3));
    messages.push(published("a", 5, 5, 4));
    messages.push(published("a", 6, 6, 5));
    messages.push(Published { value: Some(b"garbage".to_vec()), ..published("a", 7, 7, 6) });
    messages.push(Published { value: None, ..published("a", 8, 8, 7) });
    assert_only(&Judge::new(&ledger(), messages).judge(), Kind::Phantom, 5);
}

#[test]
fn swapped_rows_of_a_key_are_out_of_order() {
    let messages = vec![published("a", 1, 1, 0), published("a", 3, 3, 1), published("a", 2, 2, 2)];
    assert_only(&Judge::new(&ledger(), messages).judge(), Kind::Order, 1);
}

#[test]
fn positions_count_and_not_the_order_of_reading() {
    let mut messages = all();
    messages.reverse();
    Judge::new(&ledger(), messages).judge().assert_clean();
}

#[test]
fn a_replay_from_an_earlier_row_is_in_order() {
    let mut messages = all();
    messages.push(published("a", 1, 1, 3));
    messages.push(published("a", 2, 2, 4));
    let report = Judge::new(&ledger(), messages).judge();
    report.assert_clean();
    assert_eq!(report.duplicates, 2);
}

#[test]
fn a_key_in_two_streams_is_out_of_order() {
    let mut messages = all();
    messages[2].stream = "orders-1".to_owned();
    assert_only(&Judge::new(&ledger(), messages).judge(), Kind::Order, 1);
}

#[test]
fn a_confirmed_position_past_an_unpublished_row_is_found() {
    // given: the sample saw row 1 only, while the slot had passed row 2 but not row 3
    let report = Judge::new(&ledger(), all()).confirmed(200, &all()[..1]).judge();
    // then: row 2 stands against it, although it was published later
    assert_only(&report, Kind::ConfirmedUnpublished, 1);
    assert_eq!(report.sampled_rows, 2);
}

#[test]
fn duplicates_beyond_the_bound_are_found_per_restart_and_in_all() {
    // given: one duplicate before the restart, two after it
    let mut messages = all();
    messages.push(published("a", 3, 3, 3));
    let restart = mark(&messages);
    messages.push(published("a", 2, 2, 4));
    messages.push(published("a", 3, 3, 5));
    let ledger = ledger();
    let judge = || Judge::new(&ledger, messages.clone()).restart(restart.clone());
    // then
    let report = judge().duplicates_max(3).duplicates_per_restart_max(2).judge();
    report.assert_clean();
    assert_eq!((report.duplicates, report.duplicates_after_restart.as_slice()), (3, &[2][..]));
    assert_only(&judge().duplicates_max(2).judge(), Kind::Duplicates, 1);
    assert_only(&judge().duplicates_per_restart_max(1).judge(), Kind::Duplicates, 1);
}

#[test]
fn too_much_memory_is_found() {
    Judge::new(&ledger(), all()).peak_rss(100, 100).judge().assert_clean();
    assert_only(&Judge::new(&ledger(), all()).peak_rss(101, 100).judge(), Kind::Memory, 1);
}

#[test]
fn a_changed_payload_key_or_header_is_found() {
    let spoiled = |spoil: &dyn Fn(&mut Published)| {
        let mut messages = all();
        spoil(&mut messages[1]);
        Judge::new(&ledger(), messages).judge()
    };
    let blank = |message: &mut Published| message.value.as_mut().unwrap().push(b' ');
    assert_only(&spoiled(&blank), Kind::Fidelity, 1);
    assert_only(&spoiled(&|message| message.key = None), Kind::Fidelity, 1);
    assert_only(&spoiled(&|message| message.key = Some(b"b".to_vec())), Kind::Fidelity, 1);
    assert_only(&spoiled(&|message| message.headers[0].1.push(b'0')), Kind::Fidelity, 1);
    assert_only(&spoiled(&|message| message.headers.truncate(1)), Kind::Fidelity, 1);
}

#[test]
fn rows_of_unknown_outcome_may_be_there_or_not_but_want_settling() {
    for messages in [all(), all()[..2].to_vec()] {
        let ledger = ledger();
        ledger.outcome(2, Outcome::Unknown { number: 9, marker: 9 });
        let report = Judge::new(&ledger, messages).judge();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.unknown, 1);
        assert!(std::panic::catch_unwind(|| report.assert_clean()).is_err());
    }
}
