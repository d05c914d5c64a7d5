//! Each rule of a lane, against a scripted sink and a paused clock: no test sleeps.

use super::*;
use crate::ledger::Ledger;
use crate::sink::scripted::{ScriptedSink, message};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    sink: Arc<ScriptedSink>,
    inbox: Option<mpsc::Sender<Vec<Envelope>>>,
    outcomes: mpsc::Receiver<Outcome>,
    ledger: Ledger<u64>,
    lane: tokio::task::JoinHandle<()>,
    halt: Halt,
}

impl Bench {
    fn new(sink: ScriptedSink) -> Self {
        Self::with_rules(sink, |_| {})
    }

    fn with_rules(sink: ScriptedSink, change: impl FnOnce(&mut LaneRules)) -> Self {
        Self::with_fence(sink, Fence::open(), change)
    }

    fn with_fence(sink: ScriptedSink, fence: Fence, change: impl FnOnce(&mut LaneRules)) -> Self {
        let sink = Arc::new(sink);
        let (inbox_sender, inbox) = mpsc::channel(1000);
        let (outcome_sender, outcomes) = mpsc::channel(1000);
        let (troubles, _) = mpsc::channel(1);
        let halt = Halt::default();
        let mut rules = LaneRules {
            limits: sink.limits(),
            pipeline_keys: false,
            topic_wait: 60 * SECOND,
            backoff: Backoff { first: SECOND / 10, max: SECOND },
        };
        change(&mut rules);
        let backoff = rules.backoff;
        let lane = Lane {
            sink: Arc::clone(&sink) as Arc<dyn Sink>,
            rules,
            inbox,
            outcomes: outcome_sender,
            troubles,
            halt: halt.clone(),
            fence,
            gate: Gate::new(backoff),
        };
        Self {
            sink,
            inbox: Some(inbox_sender),
            outcomes,
            ledger: Ledger::new(1000),
            lane: tokio::spawn(lane.run()),
            halt,
        }
    }

    /// Sends rows, numbered from `first`, as one batch.
    fn send(&mut self, first: u64, keys: &[&str]) {
        self.send_messages(first, keys.iter().map(|key| message(key, 0)).collect());
    }

    /// Sends messages as rows numbered from `first`, as one batch.
    fn send_messages(&mut self, first: u64, messages: Vec<Message>) {
        let envelopes = messages.into_iter().zip(first..).map(|(mut message, row)| {
            let ticket = self.ledger.enter();
            self.ledger.boundary(row);
            message.identity.transaction = row;
            let domain = Domain(u64::from(message.key.as_deref().unwrap_or_default()[0]));
            Envelope { ticket, domain, message }
        });
        self.inbox.as_ref().unwrap().try_send(envelopes.collect()).unwrap();
    }

    /// Waits for the next rows to settle; how many.
    async fn settled(&mut self) -> usize {
        let Some(Outcome::Settled(tickets)) = self.outcomes.recv().await else { panic!("failed") };
        let count = tickets.len();
        tickets.into_iter().for_each(|ticket| self.ledger.settle(ticket));
        count
    }

    /// Lets the lane end, and returns how far the position came and what else was said.
    async fn finish(mut self) -> (Option<u64>, Vec<Outcome>, Arc<ScriptedSink>) {
        self.inbox.take();
        self.lane.await.unwrap();
        let mut others = Vec::new();
        while let Some(outcome) = self.outcomes.recv().await {
            match outcome {
                Outcome::Settled(tickets) => {
                    tickets.into_iter().for_each(|ticket| self.ledger.settle(ticket));
                }
                other => others.push(other),
            }
        }
        (self.ledger.advance(), others, self.sink)
    }
}

fn unknown() -> Verdict {
    Verdict::Unknown("no answer".into())
}

#[tokio::test(start_paused = true)]
async fn what_came_while_the_lane_was_busy_is_one_batch() {
    let mut bench = Bench::new(ScriptedSink::new(true));
    bench.send(1, &["a"]);
    bench.send(2, &["b", "a"]);
    bench.send(4, &["c"]);
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(4));
    assert_eq!(sink.batches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_has_one_row_in_the_air_where_the_broker_keeps_no_order() {
    let mut bench = Bench::new(ScriptedSink::new(false));
    bench.send(1, &["hot", "hot", "hot", "b", "c"]);
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(5));
    for batch in sink.batches() {
        assert!(batch.iter().filter(|(key, _)| key == "hot").count() <= 1, "{batch:?}");
    }
    // The hot key did not hold the others up: all three keys went in the first batch.
    assert_eq!(sink.batches()[0].len(), 3);
    assert_eq!(sink.rows_of("hot"), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn pipeline_keys_sends_several_rows_of_a_key_at_once() {
    let sink = ScriptedSink::new(false);
    let mut bench = Bench::with_rules(sink, |rules| rules.pipeline_keys = true);
    bench.send(1, &["hot", "hot", "hot"]);
    let (_, _, sink) = bench.finish().await;
    assert_eq!(sink.batches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_unknown_in_the_middle_goes_again_before_later_rows_of_its_key() {
    // given a batch of three keys of which the middle one fails, twice
    let bench_sink = ScriptedSink::new(false);
    for _ in 0..2 {
        bench_sink.answer(|batch| {
            let verdict = |message: &Message| match message.key.as_deref() {
                Some(b"b") => unknown(),
                _ => Verdict::Confirmed,
            };
            Ok(batch.iter().map(verdict).collect())
        });
    }
    let mut bench = Bench::new(bench_sink);
    bench.send(1, &["a", "b", "c", "b", "a"]);
    // when all is done
    let (position, others, sink) = bench.finish().await;
    // then the other keys went on meanwhile, and b's second row waited for its first
    assert_eq!(position, Some(5));
    assert!(others.is_empty());
    assert_eq!(sink.rows_of("a"), [1, 5]);
    let of_b = sink.rows_of("b");
    assert_eq!(of_b.last(), Some(&4));
    assert!(of_b[..of_b.len() - 1].iter().all(|row| *row == 2) && of_b.len() >= 3, "{of_b:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_batch_everything_goes_again_in_order() {
    let sink = ScriptedSink::new(true);
    for _ in 0..5 {
        sink.answer(|_| Err(Failure::transient("connection lost")));
    }
    let mut bench = Bench::new(sink);
    bench.send(1, &["a", "a", "b", "a"]);
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(4));
    assert_eq!(sink.batches().len(), 6);
    assert!(sink.rows_of("a").chunks(3).all(|rows| rows == [1, 2, 4]));
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_row_behind_an_unknown_one_of_its_key_is_not_sent_again() {
    // given a broker that promises to keep a key's order, and did not
    let sink = ScriptedSink::new(true);
    sink.answer(|_| Ok(vec![Verdict::Confirmed, unknown(), Verdict::Confirmed, unknown()]));
    let mut bench = Bench::new(sink);
    bench.send(1, &["a", "a", "a", "a"]);
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(4));
    assert_eq!(sink.rows_of("a"), [1, 2, 3, 4, 2, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_row_ends_the_lane_and_is_never_settled() {
    let sink = ScriptedSink::new(false);
    sink.answer(|_| {
        Ok(vec![Verdict::Confirmed, Verdict::Rejected("too large".into()), Verdict::Confirmed])
    });
    let mut bench = Bench::new(sink);
    bench.send(1, &["a", "b", "c", "b", "c"]);
    let (position, others, sink) = bench.finish().await;
    // then the position stays before row 2, and no later row of its key was sent
    assert_eq!(position, Some(1));
    assert_eq!(sink.rows_of("b"), [2]);
    let [Outcome::Rejected { identity, reason }] = &others[..] else { panic!("{others:?}") };
    assert_eq!((identity.transaction, reason.as_str()), (2, "too large"));
}

#[tokio::test(start_paused = true)]
async fn a_missing_destination_is_waited_for_and_then_rejected() {
    // given a topic that never comes
    let sink = ScriptedSink::new(true);
    for _ in 0..10_000 {
        sink.answer(|batch| {
            let absent = || Verdict::Absent("topic \"orders\" does not exist".into());
            Ok(batch.iter().map(|_| absent()).collect())
        });
    }
    let mut bench = Bench::new(sink);
    let started = Instant::now();
    bench.send(1, &["a"]);
    let (position, others, _) = bench.finish().await;
    assert!(started.elapsed() >= 60 * SECOND && started.elapsed() < 63 * SECOND);
    assert_eq!(position, None);
    assert!(matches!(&others[..], [Outcome::Rejected { .. }]), "{others:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_destination_that_comes_in_time_loses_nothing() {
    let sink = ScriptedSink::new(true);
    for _ in 0..5 {
        sink.answer(|batch| Ok(vec![Verdict::Absent("not yet".into()); batch.len()]));
    }
    let mut bench = Bench::new(sink);
    bench.send(1, &["a", "a"]);
    let (position, others, sink) = bench.finish().await;
    assert_eq!(position, Some(2));
    assert!(others.is_empty());
    assert_eq!(sink.batches().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_row_whose_broker_does_not_answer_is_not_settled() {
    let mut bench = Bench::new(ScriptedSink::new(false));
    bench.sink.shut("a");
    bench.send(1, &["a"]);
    tokio::time::sleep(3600 * SECOND).await;
    assert!(bench.outcomes.try_recv().is_err());
    bench.sink.open();
    let (position, ..) = bench.finish().await;
    assert_eq!(position, Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_failed_goes_again_after_a_wait_and_not_at_once() {
    // given three attempts that fail, with waits of at least 50, 100 and 200 milliseconds
    let sink = ScriptedSink::new(true);
    for _ in 0..3 {
        sink.answer(|_| Err(Failure::transient("connection lost")));
    }
    let mut bench = Bench::new(sink);
    let started = Instant::now();
    bench.send(1, &["a"]);
    let (position, ..) = bench.finish().await;
    assert_eq!(position, Some(1));
    assert!(started.elapsed() >= 35 * SECOND / 100, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_halted_lane_sends_nothing_more() {
    let mut bench = Bench::new(ScriptedSink::new(false));
    bench.sink.shut("a");
    bench.send(1, &["a", "a"]);
    tokio::task::yield_now().await;
    bench.halt.call();
    bench.sink.open();
    let (position, _, sink) = bench.finish().await;
    // then what was in the air has settled, and the row behind it was not sent
    assert_eq!(position, Some(1));
    assert_eq!(sink.rows_of("a"), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_fence_is_down_delivers_nothing_and_then_all_in_order() {
    // given rows that came while the fence was down, and some time
    let fence = Fence::down();
    let mut bench = Bench::with_fence(ScriptedSink::new(false), fence.clone(), |_| {});
    bench.send(1, &["a", "b", "a"]);
    tokio::time::sleep(60 * SECOND).await;
    bench.send(4, &["b", "a"]);
    tokio::time::sleep(60 * SECOND).await;
    assert!(bench.sink.batches().is_empty());
    // when it comes up
    fence.extend_until(Instant::now() + SECOND);
    // then everything goes, in the order of its key
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(5));
    assert_eq!((sink.rows_of("a"), sink.rows_of("b")), (vec![1, 3, 5], vec![2, 4]));
}

#[tokio::test(start_paused = true)]
async fn a_fence_whose_time_passed_holds_back_even_what_failed_before() {
    // given a batch that fails, and a fence that goes down before the next attempt
    let sink = ScriptedSink::new(true);
    sink.answer(|_| Err(Failure::transient("connection lost")));
    let fence = Fence::down();
    fence.extend_until(Instant::now() + SECOND / 100);
    let mut bench = Bench::with_fence(sink, fence.clone(), |_| {});
    bench.send(1, &["a", "a"]);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(bench.sink.batches().len(), 1);
    // when it comes up again
    fence.extend_until(Instant::now() + SECOND);
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(2));
    assert_eq!(sink.rows_of("a"), [1, 2, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_halt_ends_a_lane_that_waits_for_its_fence() {
    let mut bench = Bench::with_fence(ScriptedSink::new(false), Fence::down(), |_| {});
    bench.send(1, &["a", "b"]);
    tokio::time::sleep(SECOND).await;
    let halt = bench.halt.clone();
    let ended = tokio::spawn(bench.finish());
    tokio::time::sleep(SECOND).await;
    assert!(!ended.is_finished());
    halt.call();
    let (position, _, sink) = tokio::time::timeout(SECOND, ended).await.unwrap().unwrap();
    assert_eq!(position, None);
    assert!(sink.batches().is_empty());
}

#[test]
fn waits_grow_to_their_bound_and_differ() {
    let backoff = Backoff { first: SECOND / 10, max: 10 * SECOND };
    for attempts in 1..100 {
        let wait = backoff.after(attempts);
        assert!(wait >= SECOND / 20 && wait <= 10 * SECOND, "{attempts}: {wait:?}");
    }
    assert!(backoff.after(30) >= 5 * SECOND);
    assert_ne!(backoff.after(30), backoff.after(30));
}

fn of_topic(topic: &str, key: &str, row: u64) -> Message {
    Message { topic: topic.into(), ..message(key, row) }
}

#[tokio::test(start_paused = true)]
async fn a_row_waits_for_the_one_of_its_key_in_another_topic() {
    // given rows of one key in two topics, of which the first one does not exist yet
    let sink = ScriptedSink::new(true);
    for _ in 0..3 {
        sink.answer(|batch| {
            let verdict = |message: &Message| match &*message.topic {
                "missing" => Verdict::Absent("topic \"missing\"".into()),
                _ => Verdict::Confirmed,
            };
            Ok(batch.iter().map(verdict).collect())
        });
    }
    let mut bench = Bench::new(sink);
    let topics = ["missing", "missing", "there", "there", "missing"];
    bench.send_messages(1, topics.map(|topic| of_topic(topic, "a", 0)).into());
    // then those in the other topic go after it, and as many at once as the broker orders
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(5));
    let batches: Vec<Vec<u64>> = sink
        .batches()
        .into_iter()
        .map(|batch| batch.into_iter().map(|(_, row)| row).collect())
        .collect();
    assert_eq!(batches, [&[1, 2][..], &[1, 2], &[1, 2], &[1, 2], &[3, 4], &[5]]);
}

#[tokio::test(start_paused = true)]
async fn a_row_without_a_verdict_holds_its_own_key_and_nobody_else() {
    // given a batch in which one key gets no verdict
    let mut bench = Bench::new(ScriptedSink::new(true));
    bench.sink.stall("a");
    bench.send(1, &["b", "a", "c"]);
    // then the others of the batch settle, and further ones go beside it
    assert_eq!(bench.settled().await, 2);
    bench.send(4, &["b", "a", "c"]);
    assert_eq!(bench.settled().await, 2);
    assert_eq!(bench.sink.rows_of("a"), [2]);
    // when it is there
    bench.sink.open();
    let (position, _, sink) = bench.finish().await;
    // then the one behind it follows
    assert_eq!(position, Some(6));
    assert_eq!(sink.rows_of("a"), [2, 5]);
}

#[tokio::test(start_paused = true)]
async fn all_that_is_in_the_air_stays_within_the_bounds_of_one_batch() {
    // given a broker that gives no verdict at all
    let mut sink = ScriptedSink::new(true);
    sink.limits.batch_messages_max = 5;
    let mut bench = Bench::new(sink);
    bench.sink.shut("a");
    for first in 0..10 {
        bench.send(10 * first + 1, &["a", "b", "c"]);
        tokio::time::sleep(10 * SECOND).await;
    }
    bench.sink.open();
    let (position, _, sink) = bench.finish().await;
    assert_eq!(position, Some(93));
    assert!(sink.batches().iter().all(|batch| batch.len() <= 5));
}

#[tokio::test(start_paused = true)]
async fn while_the_sink_fails_rows_of_new_keys_make_no_attempts_of_their_own() {
    // given a sink that fails as a whole, and a row of a new key every hundredth of a second
    let sink = ScriptedSink::new(true);
    for _ in 0..1000 {
        sink.answer(|_| Err(Failure::transient("connection refused")));
    }
    let mut bench = Bench::new(sink);
    let keys: Vec<String> = (33..126_u8).map(|byte| char::from(byte).to_string()).collect();
    for (row, key) in (1..).zip(keys.iter().cycle().take(900)) {
        bench.send(row, &[key]);
        tokio::time::sleep(SECOND / 100).await;
    }
    // then its attempts are those of one retry: about one a second
    let attempts = bench.sink.batches().len();
    assert!((5..=25).contains(&attempts), "{attempts}");
    // and it goes on trying with all of them
    assert!(bench.sink.batches().last().unwrap().len() > 50);
    bench.halt.call();
    bench.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_fails_alone_makes_no_other_wait() {
    // given a broker that never takes one key, for longer than the longest pause
    let sink = ScriptedSink::new(true);
    for _ in 0..1000 {
        sink.answer(|batch| {
            let verdict = |message: &Message| match message.key.as_deref() {
                Some(b"a") => unknown(),
                _ => Verdict::Confirmed,
            };
            Ok(batch.iter().map(verdict).collect())
        });
    }
    let mut bench = Bench::new(sink);
    bench.send(1, &["a"]);
    tokio::time::sleep(10 * SECOND).await;
    // then a row of another key is settled at once
    let sent = Instant::now();
    bench.send(2, &["b"]);
    assert_eq!(bench.settled().await, 1);
    assert!(sent.elapsed() < SECOND / 100);
    bench.halt.call();
    bench.finish().await;
}

#[tokio::test]
async fn a_lane_delivers_by_a_clock_that_goes_on_too() {
    let mut bench = Bench::new(ScriptedSink::new(true));
    bench.send(1, &["a", "b"]);
    let (position, ..) = tokio::time::timeout(10 * SECOND, bench.finish()).await.unwrap();
    assert_eq!(position, Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_lane_of_a_sink_without_a_time_for_it_has_one_batch_in_the_air() {
    // given a batch that stays there
    let mut sink = ScriptedSink::new(true);
    sink.limits.stuck_after = None;
    let mut bench = Bench::new(sink);
    bench.sink.stall("a");
    bench.send(1, &["a"]);
    tokio::time::sleep(60 * SECOND).await;
    // then nothing goes beside it
    bench.send(2, &["b"]);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(bench.sink.batches().len(), 1);
    bench.sink.open();
    let (position, ..) = bench.finish().await;
    assert_eq!(position, Some(2));
}
