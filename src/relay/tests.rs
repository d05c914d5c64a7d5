//! The relay's loop, schedule by schedule, against a scripted sink and source and a paused clock.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::config::OutboxSettings;
use crate::identity::{Fingerprint, LogId};
use crate::outbox::{Columns, OutboxRow};
use crate::sink::Verdict;
use crate::sink::scripted::ScriptedSink;

const SECOND: Duration = Duration::from_secs(1);

std::thread_local! {
    /// Whether the next source never closes.
    static HANGS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

type Step = Result<Vec<Change<u64>>, Failure>;

/// Yields its steps, then waits for ever.
struct ScriptedSource {
    steps: VecDeque<Step>,
    acknowledged: Arc<Mutex<Vec<u64>>>,
    /// How many steps were read.
    reads: Arc<Mutex<usize>>,
    /// How many acknowledgements it had when it was closed.
    closed: Arc<Mutex<Option<usize>>>,
    fence: Fence,
    /// Whether a close never ends.
    hangs: bool,
}

impl Source for ScriptedSource {
    type Position = u64;

    async fn next(&mut self, changes: &mut Vec<Change<u64>>) -> Result<(), Failure> {
        match self.steps.pop_front() {
            Some(step) => {
                *self.reads.lock().unwrap() += 1;
                changes.extend(step?);
                Ok(())
            }
            None => std::future::pending().await,
        }
    }

    fn acknowledge(&mut self, position: u64) {
        self.acknowledged.lock().unwrap().push(position);
    }

    fn behind_bytes(&self) -> Option<u64> {
        None
    }

    fn fence(&self) -> Fence {
        self.fence.clone()
    }

    async fn close(self) -> Result<(), Failure> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        *self.closed.lock().unwrap() = Some(self.acknowledged.lock().unwrap().len());
        Ok(())
    }
}

fn row(key: &str, number: u64) -> Change<u64> {
    let identity =
        RowIdentity { log: LogId(1), transaction: number, ordinal: 0, fingerprint: Fingerprint(0) };
    let mut row = OutboxRow::new(identity, 0);
    row.aggregate_type = Some(Bytes::from_static(b"Order"));
    row.aggregate_id = Some(Bytes::copy_from_slice(key.as_bytes()));
    Change::Row(row)
}

/// Transactions of one row each, the position of each being its row's number.
fn transactions(keys: &[&str], first: u64) -> Vec<Change<u64>> {
    let pairs = keys.iter().zip(first..);
    pairs.flat_map(|(key, number)| [row(key, number), Change::Commit(number)]).collect()
}

struct Running {
    sink: Arc<ScriptedSink>,
    acknowledged: Arc<Mutex<Vec<u64>>>,
    reads: Arc<Mutex<usize>>,
    closed: Arc<Mutex<Option<usize>>>,
    stop: watch::Sender<bool>,
    relay: tokio::task::JoinHandle<Result<Summary, RelayError>>,
}

impl Running {
    fn start(sink: ScriptedSink, steps: impl IntoIterator<Item = Step>) -> Self {
        Self::with_options(sink, steps, |_| {})
    }

    fn with_options(
        sink: ScriptedSink,
        steps: impl IntoIterator<Item = Step>,
        change: impl FnOnce(&mut RelayOptions),
    ) -> Self {
        Self::with_budget(sink, steps, Budget::new(1 << 20), change)
    }

    fn with_budget(
        sink: ScriptedSink,
        steps: impl IntoIterator<Item = Step>,
        budget: Budget,
        change: impl FnOnce(&mut RelayOptions),
    ) -> Self {
        Self::with_fence(sink, steps, budget, Fence::open(), change)
    }

    fn with_fence(
        sink: ScriptedSink,
        steps: impl IntoIterator<Item = Step>,
        budget: Budget,
        fence: Fence,
        change: impl FnOnce(&mut RelayOptions),
    ) -> Self {
        let sink = Arc::new(sink);
        let acknowledged = Arc::new(Mutex::default());
        let (reads, closed) = (Arc::<Mutex<usize>>::default(), Arc::default());
        let source = ScriptedSource {
            steps: steps.into_iter().collect(),
            acknowledged: Arc::clone(&acknowledged),
            reads: Arc::clone(&reads),
            closed: Arc::clone(&closed),
            fence,
            hangs: HANGS.get(),
        };
        let mut options = RelayOptions::default();
        change(&mut options);
        let outbox = OutboxSettings {
            columns: Columns::debezium(),
            topic: "{aggregatetype}".into(),
            extra_headers: Vec::new(),
            partition: None,
        };
        let (stop, stopped) = watch::channel(false);
        let relay = run(
            source,
            Arc::clone(&sink) as Arc<dyn Sink>,
            Encoder::new(&outbox).unwrap(),
            budget,
            options,
            stopped,
        );
        Self { sink, acknowledged, reads, closed, stop, relay: tokio::spawn(relay) }
    }

    /// The last position acknowledged.
    fn position(&self) -> Option<u64> {
        self.acknowledged.lock().unwrap().last().copied()
    }

    /// Lets everything run that can: with the clock paused, time moves only when nothing can.
    async fn settle(&self) {
        tokio::time::sleep(SECOND / 100).await;
    }

    async fn stop(self) -> Result<Summary, RelayError> {
        self.stop.send(true).unwrap();
        self.ended().await
    }

    /// Its end, which comes within the hour (of the paused clock).
    async fn ended(self) -> Result<Summary, RelayError> {
        let ended = tokio::time::timeout(3600 * SECOND, self.relay).await;
        ended.expect("the relay ends by itself").unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn rows_go_through_and_the_position_follows() {
    let running = Running::start(
        ScriptedSink::new(false),
        [Ok(transactions(&["a", "b"], 1)), Ok(transactions(&["a"], 3))],
    );
    running.settle().await;
    assert_eq!(running.position(), Some(3));
    assert_eq!(running.sink.rows_of("a"), [1, 3]);
    assert_eq!(running.stop().await.unwrap(), Summary { confirmed: 3, unsettled: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_stuck_lane_holds_the_position_and_not_the_others() {
    // given one key whose broker does not answer, and a ledger with room for ten rows
    let sink = ScriptedSink::new(false);
    sink.shut("stuck");
    let others = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
    let steps = [Ok(transactions(&["a", "stuck"], 1)), Ok(transactions(&others, 3))];
    let running = Running::with_options(sink, steps, |options| options.rows_max = 10);
    running.settle().await;
    // then the others run on as far as the ledger reaches, and no further
    let delivered: usize = running.sink.batches().iter().map(Vec::len).sum();
    assert!((1..10).contains(&delivered), "{delivered}");
    assert_eq!(running.position(), Some(1));
    // and when it answers, everything arrives once
    running.sink.open();
    running.settle().await;
    assert_eq!(running.position(), Some(14));
    let delivered: usize = running.sink.batches().iter().map(Vec::len).sum();
    assert_eq!(delivered, 14);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn full_queues_both_ways_do_not_deadlock() {
    // given reads much larger than the ledger
    let keys: Vec<String> = (0..1000).map(|number| format!("k{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let steps = (0..10).map(|step| Ok(transactions(&keys, step * 1000 + 1)));
    let running = Running::with_options(ScriptedSink::new(false), steps.collect::<Vec<_>>(), |o| {
        o.rows_max = 3;
    });
    running.settle().await;
    assert_eq!(running.position(), Some(10_000));
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_position_is_not_acknowledged_while_a_row_waits() {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let running = Running::start(sink, [Ok(transactions(&["a"], 1)), Ok(vec![Change::Idle(100)])]);
    running.settle().await;
    assert_eq!(running.position(), None);
    running.sink.open();
    running.settle().await;
    assert_eq!(running.position(), Some(100));
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_inside_a_transaction_reads_on_to_its_end_and_no_further() {
    // given a transaction of which half has arrived
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let rest = [vec![row("c", 1), Change::Commit(1)], transactions(&["d"], 2)].concat_changes();
    let steps = [Ok(vec![row("a", 1), row("b", 1)]), Ok(rest)];
    let running = Running::with_options(sink, steps, |options| options.rows_max = 2);
    running.settle().await;
    // when the relay is stopped while its ledger is full, and the broker answers later
    running.stop.send(true).unwrap();
    running.settle().await;
    running.sink.open();
    running.settle().await;
    // then the whole transaction is confirmed and acknowledged, and nothing of the next was sent
    assert_eq!(running.position(), Some(1));
    assert!(running.sink.rows_of("d").is_empty());
    let summary = running.ended().await.unwrap();
    assert_eq!(summary, Summary { confirmed: 3, unsettled: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_dead_broker_longer_than_it_may() {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let running = Running::start(sink, [Ok(transactions(&["a", "b"], 1))]);
    running.settle().await;
    let started = Instant::now();
    let position = Arc::clone(&running.acknowledged);
    let summary = running.stop().await.unwrap();
    assert!(started.elapsed() >= 20 * SECOND && started.elapsed() < 22 * SECOND);
    assert_eq!(summary, Summary { confirmed: 1, unsettled: 1 });
    assert!(position.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn rows_that_were_not_confirmed_are_dropped_before_the_source_is_released() {
    for (is_shut, source_closed_before) in [(true, false), (false, true)] {
        // given a row that is confirmed, or not
        let sink = ScriptedSink::new(false);
        if is_shut {
            sink.shut("a");
        }
        let running = Running::start(sink, [Ok(transactions(&["a"], 1))]);
        running.settle().await;
        let (closed, seen) = (Arc::clone(&running.closed), Arc::<Mutex<Option<bool>>>::default());
        let sees = Arc::clone(&seen);
        running.sink.on_close(move || {
            *sees.lock().unwrap() = Some(closed.lock().unwrap().is_some());
        });
        // when it stops
        running.stop().await.unwrap();
        // then nothing is sent beside whoever holds the source next
        assert_eq!(*seen.lock().unwrap(), Some(source_closed_before));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_row_stops_the_relay_before_its_position() {
    let sink = ScriptedSink::new(false);
    sink.answer(|_| Ok(vec![Verdict::Rejected("message of 2 MB, limit 1 MB".into())]));
    let running = Running::start(sink, [Ok(transactions(&["a"], 1)), Ok(transactions(&["b"], 2))]);
    let acknowledged = Arc::clone(&running.acknowledged);
    let error = running.ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Rejected { .. }), "{error}");
    assert!(acknowledged.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_row_that_cannot_become_a_message_stops_the_relay_before_its_position() {
    let identity =
        RowIdentity { log: LogId(1), transaction: 2, ordinal: 0, fingerprint: Fingerprint(0) };
    let without_type = Change::Row(OutboxRow::new(identity, 0));
    let steps = [Ok(transactions(&["a"], 1)), Ok(vec![without_type, Change::Commit(2)])];
    let running = Running::start(ScriptedSink::new(false), steps);
    let acknowledged = Arc::clone(&running.acknowledged);
    let error = running.ended().await.unwrap_err();
    assert!(error.to_string().contains("aggregatetype"), "{error}");
    assert_eq!(acknowledged.lock().unwrap().last(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_lane_ends_the_relay() {
    let sink = ScriptedSink::new(false);
    sink.answer(|_| panic!("planted"));
    let running = Running::start(sink, [Ok(transactions(&["a"], 1))]);
    let acknowledged = Arc::clone(&running.acknowledged);
    let error = running.ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Panic(_)), "{error}");
    assert!(acknowledged.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_to_the_source_is_retried_with_rows_in_flight() {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let lost = || Err(Failure::transient("connection reset"));
    let steps = [Ok(transactions(&["a"], 1)), lost(), lost(), Ok(transactions(&["b"], 2))];
    let running = Running::start(sink, steps);
    tokio::time::sleep(SECOND).await;
    assert_eq!(running.sink.rows_of("b"), [2]);
    running.sink.open();
    running.settle().await;
    assert_eq!(running.position(), Some(2));
    assert_eq!(running.sink.rows_of("a"), [1]);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refused_credentials_are_definite_at_start_and_transient_later() {
    let denied = || Failure::denied("password authentication failed");
    // given a password that is wrong from the start
    let running = Running::start(ScriptedSink::new(false), [Err(denied())]);
    let error = running.ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Source(_)), "{error}");
    // given one that is wrong for a while, later
    let steps = [Ok(transactions(&["a"], 1)), Err(denied()), Ok(transactions(&["a"], 2))];
    let running = Running::start(ScriptedSink::new(false), steps);
    tokio::time::sleep(SECOND).await;
    assert_eq!(running.position(), Some(2));
    running.stop().await.unwrap();
    // given one that stays wrong
    let steps = std::iter::once(Ok(transactions(&["a"], 1)));
    let steps = steps.chain((0..1000).map(|_| Err(denied())));
    let running = Running::start(ScriptedSink::new(false), steps);
    let started = Instant::now();
    let error = running.ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Source(_)), "{error}");
    assert!(started.elapsed() >= 300 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_refuses_the_password_at_start_stops_the_relay() {
    let sink = ScriptedSink::new(false);
    sink.answer_probe(Failure::denied("access refused for user"));
    let started = Instant::now();
    let error = Running::start(sink, []).ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Sink(_)), "{error}");
    assert!(started.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_an_outage_has_all_of_its_patience_at_both_edges() {
    // given a broker that is away for longer than auth_wait, and lets nobody in for a while then
    let sink = ScriptedSink::new(false);
    for _ in 0..60 {
        sink.answer_probe(Failure::transient("connection refused"));
    }
    for _ in 0..20 {
        sink.answer_probe(Failure::denied("access refused for user"));
    }
    // and a database that does the same
    let away = (0..60).map(|_| Err(Failure::transient("connection refused")));
    let denied = (0..20).map(|_| Err(Failure::denied("no pg_hba.conf entry")));
    let rows = std::iter::once(Ok(transactions(&["a"], 1)));
    let running = Running::start(sink, away.chain(denied).chain(rows));
    // when both have recovered
    tokio::time::sleep(1800 * SECOND).await;
    // then rows go through
    assert_eq!(running.position(), Some(1));
    running.stop().await.unwrap();
}

/// A row waits in the air when the stop comes; then `answer` is what the sink says of it.
async fn ends_while_draining(
    answer: impl FnMut(&[Message]) -> Result<Vec<Verdict>, Failure> + Send + 'static,
) -> RelayError {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    sink.answer(answer);
    let running = Running::start(sink, [Ok(transactions(&["a"], 1))]);
    running.settle().await;
    running.stop.send(true).unwrap();
    running.settle().await;
    running.sink.open();
    let acknowledged = Arc::clone(&running.acknowledged);
    let error = running.ended().await.unwrap_err();
    assert!(acknowledged.lock().unwrap().is_empty());
    error
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_while_draining_is_the_result() {
    let error = ends_while_draining(|_| Ok(vec![Verdict::Rejected("too large".into())])).await;
    assert!(matches!(error, RelayError::Rejected { .. }), "{error}");
    let error = ends_while_draining(|_| Err(Failure::definite("wrong cluster"))).await;
    assert!(matches!(error, RelayError::Sink(_)), "{error}");
    let error = ends_while_draining(|_| panic!("a bug")).await;
    assert!(matches!(error, RelayError::Panic(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_an_edge_that_never_closes() {
    HANGS.set(true);
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let running = Running::start(sink, [Ok(transactions(&["a"], 1))]);
    HANGS.set(false);
    running.settle().await;
    let started = Instant::now();
    // given a broker that does not confirm either: both share one deadline
    let summary = running.stop().await.unwrap();
    assert_eq!(summary.unsettled, 1);
    assert!(started.elapsed() >= 20 * SECOND && started.elapsed() < 26 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_is_acknowledged_only_with_its_last_row() {
    let sink = ScriptedSink::new(false);
    sink.shut("b");
    let running = Running::start(sink, [Ok(vec![row("a", 1), row("b", 1), Change::Commit(1)])]);
    running.settle().await;
    assert_eq!(running.position(), None);
    running.sink.open();
    running.settle().await;
    assert_eq!(running.position(), Some(1));
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rows_of_a_key_share_a_lane() {
    // given a row that fails at first, and a later one of its key that comes meanwhile
    let sink = ScriptedSink::new(false);
    sink.answer(|_| Err(Failure::transient("connection lost")));
    let steps = (1..=4).map(|number| Ok(transactions(&["a"], number)));
    let running = Running::start(sink, steps);
    tokio::time::sleep(SECOND).await;
    assert_eq!(running.sink.rows_of("a"), [1, 1, 2, 3, 4]);
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_definite_error_of_the_source_stops_the_relay() {
    let steps = [
        Ok(transactions(&["a"], 1)),
        Err(Failure::definite("slot \"walpost\" was dropped")),
        Ok(transactions(&["b"], 2)),
    ];
    let running = Running::start(ScriptedSink::new(false), steps);
    let (sink, acknowledged) = (Arc::clone(&running.sink), Arc::clone(&running.acknowledged));
    let error = running.ended().await.unwrap_err();
    assert!(matches!(error, RelayError::Source(_)), "{error}");
    // then what lies before it is delivered and acknowledged, and nothing behind it was read
    assert_eq!(acknowledged.lock().unwrap().last(), Some(&1));
    assert!(sink.rows_of("b").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_budget_stops_reading_until_bytes_are_given_back() {
    // given a row that waits, and more bytes held than the budget has
    let budget = Budget::new(100);
    let held = budget.hold(vec![0; 200]);
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let steps = [Ok(transactions(&["a"], 1)), Ok(transactions(&["b"], 2))];
    let running = Running::with_budget(sink, steps, budget, |_| {});
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(*running.reads.lock().unwrap(), 1);
    // when they are given back
    drop(held);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(*running.reads.lock().unwrap(), 2);
    running.sink.open();
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_ledger_stops_reading() {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let steps = (1..=10).map(|number| Ok(transactions(&["a"], number)));
    let running = Running::with_options(sink, steps, |options| options.rows_max = 2);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(*running.reads.lock().unwrap(), 2);
    running.sink.open();
    running.settle().await;
    assert_eq!(running.position(), Some(10));
    running.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_the_end_of_a_transaction_longer_than_it_may() {
    // given a transaction whose end never comes
    let running = Running::start(ScriptedSink::new(false), [Ok(vec![row("a", 1)])]);
    running.settle().await;
    let started = Instant::now();
    let acknowledged = Arc::clone(&running.acknowledged);
    let summary = running.stop().await.unwrap();
    assert!(started.elapsed() >= 20 * SECOND && started.elapsed() < 22 * SECOND);
    assert_eq!(summary, Summary { confirmed: 1, unsettled: 0 });
    assert!(acknowledged.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_confirms_that_are_under_way() {
    let sink = ScriptedSink::new(false);
    sink.shut("a");
    let running = Running::start(sink, [Ok(transactions(&["a"], 1))]);
    running.settle().await;
    running.stop.send(true).unwrap();
    tokio::time::sleep(SECOND).await;
    running.sink.open();
    let acknowledged = Arc::clone(&running.acknowledged);
    assert_eq!(running.ended().await.unwrap(), Summary { confirmed: 1, unsettled: 0 });
    assert_eq!(acknowledged.lock().unwrap().last(), Some(&1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_closes_the_source_after_the_last_acknowledgement() {
    let sink = ScriptedSink::new(false);
    sink.shut("b");
    let running = Running::start(sink, [Ok(transactions(&["a", "b"], 1))]);
    running.settle().await;
    running.stop.send(true).unwrap();
    running.settle().await;
    assert_eq!(*running.closed.lock().unwrap(), None);
    running.sink.open();
    let closed = Arc::clone(&running.closed);
    running.ended().await.unwrap();
    assert_eq!(*closed.lock().unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn after_a_rejected_row_nothing_more_is_sent() {
    // given a batch in the air with more of its key behind it, and a row that is rejected
    let sink = ScriptedSink::new(false);
    sink.shut("b");
    sink.answer(|_| Ok(vec![Verdict::Rejected("too large".into())]));
    let running = Running::start(sink, [Ok(transactions(&["b", "b", "a"], 1))]);
    running.settle().await;
    running.sink.open();
    // when the batch is confirmed
    let sink = Arc::clone(&running.sink);
    let error = running.ended().await.unwrap_err();
    // then it was the last
    assert!(matches!(error, RelayError::Rejected { .. }), "{error}");
    assert_eq!(sink.rows_of("a"), [3]);
    assert_eq!(sink.rows_of("b"), [1]);
}

/// Joins lists of changes, which are not `Clone`.
trait ConcatChanges {
    fn concat_changes(self) -> Vec<Change<u64>>;
}

impl<const N: usize> ConcatChanges for [Vec<Change<u64>>; N] {
    fn concat_changes(self) -> Vec<Change<u64>> {
        self.into_iter().flatten().collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_lease_is_lost_has_nothing_more_delivered_and_no_long_end() {
    // given rows that wait while the fence is down
    let fence = Fence::down();
    let lost = Failure::definite("the position belongs to another relay now");
    let steps = [Ok(transactions(&["a", "b"], 1)), Err(lost)];
    let budget = Budget::new(1 << 20);
    // when the lease is lost
    fence.lower();
    let started = Instant::now();
    let running = Running::with_fence(ScriptedSink::new(false), steps, budget, fence, |_| {});
    let sink = Arc::clone(&running.sink);
    let error = running.ended().await.unwrap_err();
    // then the relay says so at once, and none of the rows was sent
    assert!(matches!(error, RelayError::Source(_)), "{error}");
    assert!(started.elapsed() < SECOND && sink.batches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_while_the_ledger_is_full_ends_the_relay() {
    // given a ledger that is full of rows that wait for the fence, and more behind it
    let fence = Fence::down();
    let lost = Failure::definite("the position belongs to another relay now");
    let full = Ok(transactions(&["a", "a", "a"], 1));
    let steps = [full, Ok(transactions(&["a"], 4)), Err(lost)];
    let budget = Budget::new(1 << 20);
    let running =
        Running::with_fence(ScriptedSink::new(false), steps, budget, fence.clone(), |options| {
            options.rows_max = 2;
        });
    running.settle().await;
    assert_eq!(*running.reads.lock().unwrap(), 1);
    // when the lease is lost
    fence.lower();
    let (sink, started) = (Arc::clone(&running.sink), Instant::now());
    let error = running.ended().await.unwrap_err();
    // then the relay says so at once, and does not wait for room that never comes
    assert!(matches!(error, RelayError::Source(_)), "{error}");
    assert!(started.elapsed() < SECOND && sink.batches().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_stop_drains_once_the_fence_is_up_again() {
    let fence = Fence::down();
    let steps = [Ok(transactions(&["a", "b"], 1))];
    let budget = Budget::new(1 << 20);
    let running =
        Running::with_fence(ScriptedSink::new(false), steps, budget, fence.clone(), |_| {});
    running.settle().await;
    let raise = tokio::spawn(async move {
        tokio::time::sleep(5 * SECOND).await;
        fence.extend_until(Instant::now() + SECOND);
    });
    let summary = running.stop().await.unwrap();
    raise.await.unwrap();
    assert_eq!(summary, Summary { confirmed: 2, unsettled: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_lost_during_a_stop_ends_it() {
    let fence = Fence::down();
    let steps = [Ok(transactions(&["a", "b"], 1))];
    let budget = Budget::new(1 << 20);
    let running =
        Running::with_fence(ScriptedSink::new(false), steps, budget, fence.clone(), |_| {});
    running.settle().await;
    let lose = tokio::spawn(async move {
        tokio::time::sleep(5 * SECOND).await;
        fence.lower();
    });
    let (sink, started) = (Arc::clone(&running.sink), Instant::now());
    let summary = running.stop().await.unwrap();
    lose.await.unwrap();
    assert_eq!(summary, Summary { confirmed: 0, unsettled: 2 });
    assert!(started.elapsed() < 6 * SECOND && sink.batches().is_empty());
}
