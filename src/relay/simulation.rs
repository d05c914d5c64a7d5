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
use crate::identity::LogId;
use crate::outbox::{Columns, OutboxRow};
use crate::sink::Verdict;
use crate::source::postgres::Lsn;
use crate::source::postgres::resume::Resume;

const SEEDS: u64 = 400;
const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", ""];
/// A commit's end lies so far behind its start.
const COMMIT_BYTES: u64 = 8;

/// Commit and ordinal.
type Place = (u64, u32);

struct Transaction {
    commit: u64,
    keys: Vec<&'static str>,
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
    keeps_key_order: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let transactions = random.u64(1..40);
        let mut log = Vec::new();
        for number in 1..=transactions {
            let rows = if random.u8(..10) == 0 { random.usize(..40) } else { random.usize(..5) };
            let keys = (0..rows).map(|_| KEYS[random.usize(..KEYS.len())]).collect();
            log.push(Transaction { commit: number * 100, keys });
        }
        Self {
            keeps_key_order: random.bool(),
            random,
            log,
            slot: Lsn(0),
            acknowledged: Lsn(0),
            stored: Vec::new(),
            has: HashSet::new(),
            wanted: HashMap::new(),
            over: HashSet::new(),
        }
    }

    /// Whole transactions that end behind `from`, and keepalives between some of them.
    fn stream(&mut self, from: Lsn) -> Vec<Change<Lsn>> {
        let mut changes = Vec::new();
        for Transaction { commit, keys } in &self.log {
            let end = Lsn(commit + COMMIT_BYTES);
            if end <= from {
                continue;
            }
            for (key, ordinal) in keys.iter().zip(0..) {
                let identity = RowIdentity { log: LogId(1), transaction: *commit, ordinal };
                let mut row = OutboxRow::new(identity, 0);
                row.aggregate_type = Some(Bytes::from_static(b"Order"));
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
        for Transaction { commit, keys } in &self.log {
            for (ordinal, _) in
                (0u32..).zip(keys).filter(|_| Lsn(commit + COMMIT_BYTES) <= position)
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

    fn end(&self) -> Lsn {
        Lsn(self.log.last().map_or(0, |last| last.commit + COMMIT_BYTES))
    }

    /// Every row is there, and of each key the first publications are in commit order.
    fn judge(&self) {
        let mut expected: HashMap<&str, Vec<Place>> = HashMap::new();
        for Transaction { commit, keys } in &self.log {
            for (key, ordinal) in keys.iter().zip(0..) {
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

/// A broker in one of two kinds: gapless for each key, or each message for itself.
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
            keeps_key_order: state.keeps_key_order,
        };
        drop(state);
        Self { world: Arc::clone(world), limits }
    }

    /// What the broker does with a batch, and what the sink hears of it.
    fn take(&self, batch: &[Message]) -> Result<Vec<Verdict>, Failure> {
        let mut world = self.world.lock().unwrap();
        let unknown = || Verdict::Unknown("no answer".into());
        let result = match world.random.u8(..10) {
            // The connection goes before or after the broker has stored it.
            0 => {
                if world.random.bool() {
                    batch.iter().for_each(|message| world.store(message));
                }
                Err(Failure::transient("connection lost"))
            }
            1 => Ok(batch.iter().map(|_| Verdict::Absent("topic".into())).collect()),
            2..=4 => {
                let mut verdicts = Vec::with_capacity(batch.len());
                let mut failed = false;
                for message in batch {
                    failed = (failed && self.limits.keeps_key_order) || world.random.u8(..4) == 0;
                    if !failed {
                        world.store(message);
                    }
                    let lost = failed || world.random.u8(..6) == 0;
                    verdicts.push(if lost { unknown() } else { Verdict::Confirmed });
                }
                Ok(verdicts)
            }
            _ => {
                batch.iter().for_each(|message| world.store(message));
                Ok(vec![Verdict::Confirmed; batch.len()])
            }
        };
        for (number, message) in batch.iter().enumerate() {
            let confirmed =
                result.as_ref().is_ok_and(|verdicts| verdicts[number] == Verdict::Confirmed);
            *world.wanted.entry(place(message)).or_insert(1) -= i32::from(confirmed);
        }
        result
    }
}

impl Sink for SimSink {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn deliver<'a>(&'a self, batch: &'a [Message]) -> BoxFuture<'a, Result<Vec<Verdict>, Failure>> {
        Box::pin(async move {
            let (before, after) = {
                let mut world = self.world.lock().unwrap();
                let mut keys = HashSet::new();
                for message in batch {
                    let place = place(message);
                    // A row is sent until it is confirmed, and never after.
                    assert!(
                        world.wanted.get(&place).is_none_or(|left| *left == 1),
                        "{place:?} again"
                    );
                    assert!(!world.over.contains(&place), "{place:?} again after a clean stop");
                    let fresh = message.key.is_none() || keys.insert(message.key.clone());
                    assert!(fresh || self.limits.keeps_key_order, "two rows of a key in a batch");
                }
                let stalls = world.random.u8(..60) == 0;
                let wait = if stalls { 40_000 } else { world.random.u64(..30) };
                (Duration::from_millis(wait), Duration::from_millis(world.random.u64(..10)))
            };
            tokio::time::sleep(before).await;
            let result = self.take(batch);
            // Whoever is dropped here has its rows stored and unconfirmed.
            tokio::time::sleep(after).await;
            result
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
    let (wait, crashes) = if last { (Duration::from_secs(600), false) } else { (after, crashes) };
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
    if asked.elapsed() < Duration::from_secs(30) {
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
