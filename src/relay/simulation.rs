//! Relay and lanes on random schedules: a database that repeats whole transactions after each
//! reconnect, a broker that stores, refuses, stalls and loses its confirms, stops and crashes.
//!
//! The clock is paused and each seed is one schedule, so a failure comes again by its number.
//!
//! ```text
//!  Server: log, slot ──▶ SimSource (with the real Resume) ──▶ relay ──▶ SimSink ──▶ Broker: stored
//!     ▲                      │ acknowledge: everything before it must be in the broker
//!     └──────────────────────┘
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use bytes::Bytes;

use super::*;
use crate::config::OutboxSettings;
use crate::identity::{Fingerprint, LogId};
use crate::outbox::{Columns, OutboxRow};
use crate::sink::{Ordering, Verdict, Verdicts};
use crate::source::postgres::Lsn;
use crate::source::postgres::resume::Resume;

const SEEDS: u64 = 400;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", ""];
const TOPICS: [&str; 2] = ["Order", "Invoice"];
/// A commit's end lies so far behind its start.
const COMMIT_BYTES: u64 = 8;

/// Commit and ordinal.
type Place = (u64, u32);

struct Transaction {
    commit: u64,
    /// Key and topic of each row.
    rows: Vec<(&'static str, &'static str)>,
}

/// Database and broker, and what must hold between them.
struct World {
    random: fastrand::Rng,
    log: Vec<Transaction>,
    /// What the slot knows; a crash of the relay resumes there.
    slot: Lsn,
    acknowledged: Lsn,
    /// In the order in which the broker stored them, repeats included.
    stored: Vec<(&'static str, Place)>,
    has: HashSet<Place>,
    /// Of this run: deliveries of a row that nobody asked for by an earlier `Unknown`.
    wanted: HashMap<Place, i32>,
    /// Rows that must not come again: a run before has stopped cleanly behind them.
    over: HashSet<Place>,
    /// Rows in the air by key: of each key they are of one batch.
    in_the_air: HashMap<Bytes, HashSet<Place>>,
    ordering: Ordering,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let transactions = random.u64(1..40);
        let mut log = Vec::new();
        for number in 1..=transactions {
            let rows = if random.u8(..10) == 0 { random.usize(..40) } else { random.usize(..5) };
            let mut row =
                || (KEYS[random.usize(..KEYS.len())], TOPICS[random.usize(..TOPICS.len())]);
            let rows = (0..rows).map(|_| row()).collect();
            log.push(Transaction { commit: number * 100, rows });
        }
        Self {
            ordering: if random.bool() { Ordering::KeyAndTopic } else { Ordering::Nothing },
            random,
            log,
            slot: Lsn(0),
            acknowledged: Lsn(0),
            stored: Vec::new(),
            has: HashSet::new(),
            wanted: HashMap::new(),
            over: HashSet::new(),
            in_the_air: HashMap::new(),
        }
    }

    /// Whole transactions that end behind `from`, and keepalives between some of them.
    fn stream(&mut self, from: Lsn) -> Vec<Change<Lsn>> {
        let mut changes = Vec::new();
        for Transaction { commit, rows } in &self.log {
            let end = Lsn(commit + COMMIT_BYTES);
            if end <= from {
                continue;
            }
            for ((key, topic), ordinal) in rows.iter().zip(0..) {
                let identity = RowIdentity {
                    log: LogId(1),
                    transaction: *commit,
                    ordinal,
                    fingerprint: Fingerprint(0),
                };
                let mut row = OutboxRow::new(identity, 0);
                row.aggregate_type = Some(Bytes::from_static(topic.as_bytes()));
                row.aggregate_id = (!key.is_empty()).then(|| Bytes::from_static(key.as_bytes()));
                changes.push(Change::Row(row));
            }
            changes.push(Change::Commit(end));
            if self.random.bool() {
                changes.push(Change::Idle(Lsn(commit + 50)));
            }
        }
        changes
    }

    /// The promise: nothing before an acknowledged position is missing in the broker.
    fn acknowledge(&mut self, position: Lsn) {
        assert!(position > self.acknowledged, "{position} after {}", self.acknowledged);
        for Transaction { commit, rows } in &self.log {
            for (ordinal, _) in
                (0u32..).zip(rows).filter(|_| Lsn(commit + COMMIT_BYTES) <= position)
            {
                let place = (*commit, ordinal);
                assert!(
                    self.has.contains(&place),
                    "{place:?} is not stored, yet {position} is told"
                );
            }
        }
        self.acknowledged = position;
        if self.random.bool() {
            self.slot = position;
        }
    }

    fn store(&mut self, message: &Message) {
        let place = place(message);
        let key = message.key.as_deref().unwrap_or_default();
        let key = KEYS.into_iter().find(|known| known.as_bytes() == key).expect("a known key");
        self.has.insert(place);
        self.stored.push((key, place));
    }

    fn landed<'a>(&mut self, messages: impl Iterator<Item = &'a Message>) {
        for message in messages {
            if let Some(rows) = message.key.as_ref().and_then(|key| self.in_the_air.get_mut(key)) {
                rows.remove(&place(message));
            }
        }
    }

    fn end(&self) -> Lsn {
        Lsn(self.log.last().map_or(0, |last| last.commit + COMMIT_BYTES))
    }

    /// Every row is there, and of each key the first publications are in commit order.
    fn judge(&self) {
        let mut expected: HashMap<&str, Vec<Place>> = HashMap::new();
        for Transaction { commit, rows } in &self.log {
            for ((key, _), ordinal) in rows.iter().zip(0..) {
                expected.entry(key).or_default().push((*commit, ordinal));
            }
        }
        let mut seen = HashSet::new();
        let mut first: HashMap<&str, Vec<Place>> = HashMap::new();
        for (key, place) in &self.stored {
            if seen.insert(place) {
                first.entry(key).or_default().push(*place);
            }
        }
        // Rows without a key promise no order.
        if let Some(places) = first.get_mut("") {
            places.sort_unstable();
        }
        assert_eq!(first, expected);
    }
}

fn place(message: &Message) -> Place {
    (message.identity.transaction, message.identity.ordinal)
}

type Shared = Arc<Mutex<World>>;

/// Reads the log, loses its connection now and then, and repeats what was not acknowledged.
struct SimSource {
    world: Shared,
    acknowledged: Lsn,
    resume: Resume,
    /// What this connection has not yielded yet.
    coming: std::vec::IntoIter<Change<Lsn>>,
    ready_at: Instant,
}

impl SimSource {
    fn new(world: &Shared) -> Self {
        let mut state = world.lock().unwrap();
        state.acknowledged = state.slot;
        state.wanted.clear();
        state.in_the_air.clear();
        let slot = state.slot;
        let coming = state.stream(slot).into_iter();
        drop(state);
        let world = Arc::clone(world);
        Self {
            world,
            acknowledged: slot,
            resume: Resume::default(),
            coming,
            ready_at: Instant::now(),
        }
    }
}

impl Source for SimSource {
    type Position = Lsn;

    async fn next(&mut self, changes: &mut Vec<Change<Lsn>>) -> Result<(), Failure> {
        tokio::time::sleep_until(self.ready_at).await;
        let mut world = self.world.lock().unwrap();
        self.ready_at = Instant::now() + Duration::from_millis(world.random.u64(..20));
        if world.random.u8(..12) == 0 {
            // It resumes where we say, or where a server that crashed had last written it down.
            let from = if world.random.bool() { self.acknowledged } else { world.slot };
            self.coming = world.stream(from).into_iter();
            return Err(Failure::transient("connection reset"));
        }
        let read = world.random.usize(1..12);
        drop(world);
        for change in self.coming.by_ref().take(read) {
            if self.resume.is_new(&change) {
                changes.push(change);
            }
        }
        if changes.is_empty() && self.coming.len() == 0 {
            self.ready_at = Instant::now() + Duration::from_secs(5);
        }
        Ok(())
    }

    fn acknowledge(&mut self, position: Lsn) {
        self.world.lock().unwrap().acknowledge(position);
        self.acknowledged = position;
    }

    fn behind_bytes(&self) -> Option<u64> {
        None
    }

    async fn close(self) -> Result<(), Failure> {
        let mut world = self.world.lock().unwrap();
        world.slot = world.acknowledged;
        Ok(())
    }
}

/// A broker in one of two kinds: gapless for each key of a topic, or each message for itself.
/// Each topic is stored when it pleases.
struct SimSink {
    world: Shared,
    limits: Limits,
}

impl SimSink {
    fn new(world: &Shared) -> Self {
        let mut state = world.lock().unwrap();
        let limits = Limits {
            batch_messages_max: state.random.usize(1..10),
            batch_bytes_max: 1 << 20,
            lanes_max: 8,
            ordering: state.ordering,
            stuck_after: state.random.bool().then(|| Duration::from_millis(20)),
        };
        drop(state);
        Self { world: Arc::clone(world), limits }
    }

    /// Stores what the broker takes, of `refused` in 12 not; says which.
    fn store(&self, world: &mut World, batch: &[Message], refused: u8) -> Vec<bool> {
        let mut stored = vec![false; batch.len()];
        let mut failed = HashSet::new();
        let mut topics = TOPICS;
        world.random.shuffle(&mut topics);
        for topic in topics {
            for (number, message) in batch.iter().enumerate().filter(|(_, m)| *m.topic == *topic) {
                let place = (message.key.clone(), topic);
                let stops = world.ordering == Ordering::KeyAndTopic && message.key.is_some();
                let fails = stops && failed.contains(&place) || world.random.u8(..12) < refused;
                if fails {
                    failed.insert(place);
                } else {
                    world.store(message);
                    stored[number] = true;
                }
            }
        }
        stored
    }

    /// What the broker does with a batch, and what the sink hears of it: some verdicts, and the
    /// failure that all others get.
    fn take(&self, batch: &[Message]) -> (Vec<(usize, Verdict)>, Option<Failure>) {
        let world = &mut *self.world.lock().unwrap();
        let unknown = || Verdict::Unknown("no answer".into());
        let absent = || Verdict::Absent("topic".into());
        let (mut verdicts, failure): (Vec<_>, _) = match world.random.u8(..10) {
            // The connection goes before or after the broker has stored it.
            0 => {
                let refused = if world.random.bool() { 2 } else { 12 };
                let stored = self.store(world, batch, refused);
                let heard = stored.iter().map(|stored| *stored && world.random.u8(..3) == 0);
                let heard = heard.enumerate().filter(|(_, heard)| *heard);
                let confirmed = heard.map(|(number, _)| (number, Verdict::Confirmed)).collect();
                (confirmed, Some(Failure::transient("connection lost")))
            }
            1 => ((0..batch.len()).map(|number| (number, absent())).collect(), None),
            2..=4 => {
                let stored = self.store(world, batch, 3).into_iter().map(|stored| {
                    let heard = stored && world.random.u8(..6) > 0;
                    if heard { Verdict::Confirmed } else { unknown() }
                });
                (stored.enumerate().collect(), None)
            }
            _ => {
                self.store(world, batch, 0);
                ((0..batch.len()).map(|number| (number, Verdict::Confirmed)).collect(), None)
            }
        };
        world.random.shuffle(&mut verdicts);
        let mut wants: HashMap<Place, i32> =
            batch.iter().map(|message| (place(message), 0)).collect();
        for (number, verdict) in &verdicts {
            wants.insert(place(&batch[*number]), i32::from(*verdict == Verdict::Confirmed));
        }
        for (place, confirmed) in wants {
            *world.wanted.entry(place).or_insert(1) -= confirmed;
        }
        (verdicts, failure)
    }

    /// What must be true of each batch.
    fn inspect(&self, batch: &[Message]) {
        let mut world = self.world.lock().unwrap();
        let mut topics = HashMap::new();
        for message in batch {
            let place = place(message);
            // A row is sent until it is confirmed, and never after.
            assert!(world.wanted.get(&place).is_none_or(|left| *left == 1), "{place:?} again");
            assert!(!world.over.contains(&place), "{place:?} again after a clean stop");
            let Some(key) = message.key.clone() else { continue };
            match topics.insert(key.clone(), Arc::clone(&message.topic)) {
                None => {
                    let before = world.in_the_air.insert(key, HashSet::from([place]));
                    assert!(before.is_none_or(|rows| rows.is_empty()), "two batches of a key");
                }
                Some(topic) => {
                    let ordered = world.ordering == Ordering::KeyAndTopic && topic == message.topic;
                    assert!(ordered, "two rows of a key in a batch, and no order between them");
                    world.in_the_air.entry(key).or_default().insert(place);
                }
            }
        }
    }

    fn give(&self, batch: &[Message], verdicts: &Verdicts, given: Vec<(usize, Verdict)>) {
        self.world.lock().unwrap().landed(given.iter().map(|(number, _)| &batch[*number]));
        verdicts.give_each(given);
    }
}

impl Sink for SimSink {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.inspect(batch);
            let (before, between, after) = {
                let random = &mut self.world.lock().unwrap().random;
                let mut wait = |stalls_one_in, usual| {
                    let stalls = random.u8(..stalls_one_in) == 0;
                    Duration::from_millis(if stalls { 40_000 } else { random.u64(..usual) })
                };
                (wait(60, 30), wait(100, 10), wait(200, 10))
            };
            tokio::time::sleep(before).await;
            let (mut early, failure) = self.take(batch);
            let split = self.world.lock().unwrap().random.usize(..=early.len());
            let late = early.split_off(split);
            // Whoever is dropped here has its rows stored and unconfirmed.
            tokio::time::sleep(between).await;
            self.give(batch, verdicts, early);
            tokio::time::sleep(after).await;
            self.give(batch, verdicts, late);
            if failure.is_some() {
                self.world.lock().unwrap().landed(batch.iter());
            }
            failure.map_or(Ok(()), Err)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
}

/// One run of a relay, to its crash, its stop or the end of the log.
async fn run_once(world: &Shared, last: bool) {
    let mut options = RelayOptions {
        topic_wait: Duration::from_secs(1 << 30),
        backoff: Backoff { first: Duration::from_millis(20), max: Duration::from_millis(500) },
        ..RelayOptions::default()
    };
    let (crashes, after) = {
        let random = &mut world.lock().unwrap().random;
        options.rows_max = random.usize(1..30);
        options.lanes = random.usize(1..8);
        (random.bool(), Duration::from_millis(random.u64(..3000)))
    };
    let drain_max = options.drain_max;
    let outbox = OutboxSettings {
        columns: Columns::debezium(),
        topic: "{aggregatetype}".into(),
        extra_headers: Vec::new(),
        partition: None,
    };
    let (stop, stopped) = watch::channel(false);
    let encoder = Encoder::new(&outbox).unwrap();
    let sink: Arc<dyn Sink> = Arc::new(SimSink::new(world));
    let source = SimSource::new(world);
    let relay = run(source, sink, encoder, Budget::new(1 << 20), options, stopped);
    let mut relay = std::pin::pin!(relay);
    let (wait, crashes) = if last { (Duration::from_secs(6000), false) } else { (after, crashes) };
    let done = async {
        let until = Instant::now() + wait;
        let is_done = || {
            let world = world.lock().unwrap();
            last && world.acknowledged >= world.end()
        };
        while Instant::now() < until && !is_done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        biased;
        result = &mut relay => panic!("the relay ended by itself: {result:?}"),
        () = done => {}
    }
    if crashes {
        return;
    }
    stop.send_replace(true);
    let asked = Instant::now();
    let summary = relay.await.expect("a stop is no error");
    if asked.elapsed() < drain_max {
        assert_eq!(summary.unsettled, 0);
        let mut world = world.lock().unwrap();
        let sent: Vec<Place> = world.wanted.keys().copied().collect();
        world.over.extend(sent);
    }
}

#[test]
fn whatever_fails_and_reconnects_every_row_arrives_in_order_and_no_position_is_ahead() {
    for seed in 0..SEEDS {
        let hook = Seed(seed);
        fastrand::seed(seed);
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = Arc::new(Mutex::new(World::new(seed)));
            let runs = world.lock().unwrap().random.u8(..4);
            for _ in 0..runs {
                run_once(&world, false).await;
            }
            run_once(&world, true).await;
            world.lock().unwrap().judge();
        });
        drop(runtime);
        std::mem::forget(hook);
    }
}

/// Names the schedule when a panic passes.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        eprintln!("seed {}", self.0);
    }
}
