//! The ledger against a model that recounts everything from the start, on random schedules.

use proptest::prelude::*;

use super::*;

#[test]
fn the_latest_confirm_alone_moves_nothing() {
    // given two transactions of one row each
    let mut ledger = Ledger::new(10);
    let first = ledger.enter();
    ledger.boundary(1);
    let second = ledger.enter();
    ledger.boundary(2);
    // when the later one is confirmed first
    ledger.settle(second);
    // then the position waits for the older
    assert_eq!(ledger.advance(), None);
    ledger.settle(first);
    assert_eq!(ledger.advance(), Some(2));
    assert_eq!(ledger.advance(), None);
}

#[test]
fn an_idle_position_waits_for_the_rows_before_it() {
    let mut ledger = Ledger::new(10);
    let row = ledger.enter();
    ledger.boundary("idle");
    assert_eq!(ledger.advance(), None);
    ledger.settle(row);
    assert_eq!(ledger.advance(), Some("idle"));
}

#[test]
fn an_idle_position_in_an_empty_ledger_is_reached_at_once() {
    let mut ledger = Ledger::new(10);
    ledger.boundary(7);
    ledger.boundary(9);
    assert_eq!(ledger.advance(), Some(9));
}

#[test]
fn rows_of_an_open_transaction_do_not_reach_its_end() {
    let mut ledger = Ledger::new(10);
    let row = ledger.enter();
    ledger.settle(row);
    assert_eq!(ledger.advance(), None);
    let row = ledger.enter();
    ledger.boundary(1);
    assert_eq!(ledger.advance(), None);
    ledger.settle(row);
    assert_eq!(ledger.advance(), Some(1));
}

#[test]
fn a_dropped_ticket_stalls_and_never_loses() {
    let mut ledger = Ledger::new(3);
    drop(ledger.enter());
    ledger.boundary(1);
    for position in 2..4 {
        let row = ledger.enter();
        ledger.settle(row);
        ledger.boundary(position);
    }
    assert_eq!(ledger.advance(), None);
    assert!(ledger.is_full(), "settled rows behind a stuck one count");
    assert_eq!(ledger.unsettled(), 1);
}

#[test]
fn boundaries_without_rows_between_them_take_no_room() {
    let mut ledger = Ledger::new(3);
    let row = ledger.enter();
    for position in 0..1_000_000 {
        ledger.boundary(position);
    }
    assert_eq!(ledger.boundaries.len(), 1);
    ledger.settle(row);
    assert_eq!(ledger.advance(), Some(999_999));
}

#[test]
#[should_panic(expected = "a ticket is settled once")]
fn a_ticket_that_is_settled_twice_is_a_bug_that_stops() {
    // given a row that is settled behind one that is not
    let mut ledger = Ledger::<u64>::new(3);
    let oldest = ledger.enter();
    let number = ledger.enter().0;
    ledger.settle(Ticket(number));
    // when its ticket comes again, which only a copy could
    ledger.settle(Ticket(number));
    drop(oldest);
}

#[derive(Debug, Clone)]
enum Step {
    Enter,
    Boundary,
    /// Settles one of the unsettled rows: the index is taken modulo their number.
    Settle(usize),
    Advance,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Enter),
        2 => Just(Step::Boundary),
        4 => any::<usize>().prop_map(Step::Settle),
        2 => Just(Step::Advance),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// The promise itself, on random schedules: a position is handed out if and only if every row
    /// entered before it is settled, and positions never go back.
    #[test]
    fn a_position_is_reached_exactly_when_all_before_it_is_settled(steps in steps()) {
        let mut ledger = Ledger::new(50);
        // The model: every row ever, settled or not, and every boundary with its row count.
        let mut rows: Vec<bool> = Vec::new();
        let mut boundaries: Vec<usize> = Vec::new();
        let mut tickets: Vec<(usize, Ticket)> = Vec::new();
        let mut acknowledged = 0;
        for step in steps {
            match step {
                Step::Enter if ledger.is_full() => {}
                Step::Enter => {
                    tickets.push((rows.len(), ledger.enter()));
                    rows.push(false);
                }
                Step::Boundary => {
                    boundaries.push(rows.len());
                    ledger.boundary(boundaries.len());
                }
                Step::Settle(_) if tickets.is_empty() => {}
                Step::Settle(choice) => {
                    let (row, ticket) = tickets.swap_remove(choice % tickets.len());
                    rows[row] = true;
                    ledger.settle(ticket);
                }
                Step::Advance => {
                    let prefix = rows.iter().take_while(|settled| **settled).count();
                    let reachable = boundaries.iter().take_while(|upto| **upto <= prefix).count();
                    let expected = (reachable > acknowledged).then_some(reachable);
                    prop_assert_eq!(ledger.advance(), expected);
                    acknowledged = acknowledged.max(reachable);
                    prop_assert!(ledger.boundaries.len() <= ledger.settled.len());
                }
            }
            let unsettled = rows.iter().filter(|settled| !**settled).count();
            prop_assert_eq!(ledger.unsettled(), unsettled);
            prop_assert_eq!(ledger.is_empty(), unsettled == 0);
            prop_assert!(ledger.settled.len() <= 50);
        }
    }
}
