//! Seeded writers of outbox rows, who remember what they wrote.
//!
//! Each connection owns its keys, so a key never has rows in two open transactions and its
//! commit order is the order of its sequence numbers. What a connection writes follows from the
//! seed; how connections interleave does not. Knows nothing of relays and brokers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::database::{self, Broken, Committed, NewRow, Session};
use super::ledger::{Ledger, Outcome, WrittenRow, hash};
use super::process::eventually;

/// A kind of transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    OneRow,
    /// 2 to 50 rows, a few keys.
    ManyRows,
    /// Rows, more rows in a savepoint that is rolled back, rows.
    SavepointRolledBack,
    RolledBack,
    /// Inserts and deletes the same rows: the table stays empty, the log does not.
    InsertDelete,
}

/// The usual mix: mostly single rows, and enough of everything else.
pub const MIX: &[(Shape, u32)] = &[
    (Shape::OneRow, 60),
    (Shape::ManyRows, 12),
    (Shape::SavepointRolledBack, 9),
    (Shape::RolledBack, 9),
    (Shape::InsertDelete, 10),
];

/// What to write, and how fast. Start with [`Workload::new`] and change fields.
#[derive(Clone)]
pub struct Workload {
    pub url: String,
    pub table: String,
    pub seed: u64,
    pub connections: usize,
    /// Keys that each connection owns.
    pub keys: usize,
    /// Rows per second over all connections; `None` is as fast as they can.
    pub rows_per_second: Option<u32>,
    /// Inserted rows, rolled-back ones too, after which a connection ends; `None` is until
    /// stopped. The last transaction may exceed it.
    pub rows_per_connection: Option<u64>,
    /// Filling of an ordinary payload: up to so many characters.
    pub payload_bytes: usize,
    /// One row in so many is big; 0 is none.
    pub big_every: u64,
    pub big_bytes: usize,
    /// Kinds of transactions with their weights.
    pub mix: Vec<(Shape, u32)>,
    /// One more connection holds transactions open for so long, a row now and then, among the
    /// short ones of the others.
    pub long_transactions: Option<Duration>,
    pub aggregate_type: String,
    /// Ids rise with each row of a connection, as a UUID of version 7 does.
    pub rising_ids: bool,
    pub ledger: Arc<Ledger>,
}

impl Workload {
    /// Two connections of ten keys each, the usual mix, 500 rows/s, until stopped.
    pub fn new(url: &str, table: &str) -> Workload {
        Workload {
            url: url.to_owned(),
            table: table.to_owned(),
            seed: 1,
            connections: 2,
            keys: 10,
            rows_per_second: Some(500),
            rows_per_connection: None,
            payload_bytes: 200,
            big_every: 0,
            big_bytes: 1 << 20,
            mix: MIX.to_vec(),
            long_transactions: None,
            aggregate_type: "order".to_owned(),
            rising_ids: false,
            ledger: Arc::new(Ledger::new()),
        }
    }

    /// Starts the writers. They keep a table of their own beside the outbox: a row a
    /// transaction, which tells the outcome of those whose COMMIT was not answered.
    pub fn start(self) -> Writing {
        let session = database::connect(&self.url).expect("the server accepts connections");
        let markers = self.markers();
        let create = format!("CREATE TABLE IF NOT EXISTS {markers} (marker bigint PRIMARY KEY)");
        session.run(&create).expect("a table can be made");
        // Rows and keys of two workloads in one test binary never look alike.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let run = COUNT.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let long = usize::from(self.long_transactions.is_some());
        let mut threads = Vec::new();
        for index in 0..self.connections + long {
            let mut writer = Writer::new(&self, run, index, &stop);
            let long = index >= self.connections;
            threads.push(std::thread::spawn(move || {
                if long {
                    writer.run_long();
                } else {
                    writer.run_short();
                }
            }));
        }
        Writing { workload: self, run, stop, threads }
    }

    fn markers(&self) -> String {
        format!("{}_writers", self.table)
    }
}

/// Writers at work. They outlive crashes of the server: they reconnect and go on.
pub struct Writing {
    workload: Workload,
    run: u64,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Writing {
    /// What was written so far.
    pub fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.workload.ledger)
    }

    /// One more connection with keys of its own, in the hands of the test. At most one.
    pub fn hand(&self) -> Hand {
        const INDEX: usize = 900;
        Hand { writer: Writer::new(&self.workload, self.run, INDEX, &self.stop), open: None }
    }

    /// Lets every writer end its transaction, and settles unknown outcomes; the server must run.
    pub fn stop(self) -> Arc<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until every writer has written its `rows_per_connection`; then as
    /// [`Writing::stop`].
    pub fn finish(mut self) -> Arc<Ledger> {
        for thread in self.threads.drain(..) {
            thread.join().expect("a writer panicked");
        }
        let ledger = Arc::clone(&self.workload.ledger);
        let (url, markers) = (self.workload.url.clone(), self.workload.markers());
        let all = eventually(Duration::from_secs(60), || {
            database::connect(&url).is_some_and(|session| ledger.settle(&*session, &markers))
        });
        assert!(all, "a transaction's outcome stayed unknown");
        ledger
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A connection whose transactions the test opens and commits, so that it knows when one passes.
pub struct Hand {
    writer: Writer,
    open: Option<(Begun, Vec<WrittenRow>)>,
}

impl Hand {
    /// Inserts rows with one statement, in the open transaction or a new one.
    pub fn insert(&mut self, rows: usize) {
        let mut inserted = || -> Result<(), Broken> {
            let begun = match &self.open {
                Some((begun, _)) => *begun,
                None => self.writer.begin()?,
            };
            let (_, all) = self.open.get_or_insert_with(|| (begun, Vec::new()));
            all.extend(self.writer.insert(begun, rows)?);
            Ok(())
        };
        assert!(inserted().is_ok(), "the server takes the rows");
    }

    /// Whether rows wait for [`Hand::commit`].
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Commits the open transaction.
    pub fn commit(&mut self) {
        let (begun, rows) = self.open.take().expect("rows were inserted");
        assert!(self.writer.end(begun, rows, true).is_ok(), "the server commits");
    }
}

/// One connection.
struct Writer {
    workload: Workload,
    rng: Rng,
    session: Option<Box<dyn Session>>,
    stop: Arc<AtomicBool>,
    /// Keys with their last sequence number.
    keys: Vec<(String, u64)>,
    first_row: u64,
    next_row: u64,
    started: Instant,
    name: String,
}

/// An open transaction: its number, and the row that it alone left among the markers.
#[derive(Clone, Copy)]
struct Begun {
    number: u64,
    marker: u64,
}

impl Writer {
    fn new(workload: &Workload, run: u64, index: usize, stop: &Arc<AtomicBool>) -> Writer {
        let name = format!("r{run}-w{index}");
        let first_row = run * 1_000_000_000_000 + index as u64 * 1_000_000_000;
        Writer {
            rng: Rng::with_seed(workload.seed.wrapping_mul(1_000).wrapping_add(index as u64)),
            workload: workload.clone(),
            session: None,
            stop: Arc::clone(stop),
            keys: (0..workload.keys).map(|key| (format!("{name}-k{key}"), 0)).collect(),
            next_row: first_row + 1,
            first_row,
            started: Instant::now(),
            name,
        }
    }

    fn run_short(&mut self) {
        while !self.ended() {
            self.pace();
            let shape = self.shape();
            if self.transaction(shape).is_err() {
                self.session = None;
            }
        }
    }

    fn run_long(&mut self) {
        let duration = self.workload.long_transactions.expect("else there is no such thread");
        while !self.ended() {
            if self.long_transaction(duration).is_err() {
                self.session = None;
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn ended(&self) -> bool {
        let written = self.next_row - 1 - self.first_row;
        self.stopped() || self.workload.rows_per_connection.is_some_and(|rows| written >= rows)
    }

    /// Waits until the rows written so far are due.
    fn pace(&self) {
        let Some(rate) = self.workload.rows_per_second else { return };
        let written = (self.next_row - 1 - self.first_row) as f64;
        let due = written * self.workload.connections as f64 / f64::from(rate);
        let early = Duration::from_secs_f64(due).saturating_sub(self.started.elapsed());
        // In short steps, so that a stop is heard.
        let end = Instant::now() + early;
        while !self.stopped() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20).min(end - Instant::now()));
        }
    }

    fn shape(&mut self) -> Shape {
        let total: u32 = self.workload.mix.iter().map(|(_, weight)| weight).sum();
        let mut left = self.rng.u32(..total);
        for &(shape, weight) in &self.workload.mix {
            if left < weight {
                return shape;
            }
            left -= weight;
        }
        unreachable!("the weights sum to the total")
    }

    fn transaction(&mut self, shape: Shape) -> Result<(), Broken> {
        let begun = self.begin()?;
        let mut rows = Vec::new();
        let mut commit = true;
        match shape {
            Shape::OneRow => rows.extend(self.insert(begun, 1)?),
            Shape::ManyRows => {
                let count = self.rng.usize(2..=50);
                rows.extend(self.insert(begun, count)?);
            }
            Shape::SavepointRolledBack => {
                let counts: [usize; 3] = std::array::from_fn(|_| self.rng.usize(1..=3));
                rows.extend(self.insert(begun, counts[0])?);
                self.session()?.run("SAVEPOINT inside")?;
                let undone = self.insert(begun, counts[1])?;
                rows.extend(undone.into_iter().map(|row| WrittenRow { undone: true, ..row }));
                self.session()?.run("ROLLBACK TO SAVEPOINT inside")?;
                rows.extend(self.insert(begun, counts[2])?);
            }
            Shape::RolledBack => {
                let count = self.rng.usize(1..=10);
                rows.extend(self.insert(begun, count)?);
                commit = false;
            }
            Shape::InsertDelete => {
                let count = self.rng.usize(1..=3);
                let inserted = self.insert(begun, count)?;
                let ids: Vec<&str> = inserted.iter().map(|row| row.id.as_str()).collect();
                self.session()?.delete(&self.workload.table, &ids)?;
                rows.extend(inserted);
            }
        }
        self.end(begun, rows, commit)
    }

    fn long_transaction(&mut self, duration: Duration) -> Result<(), Broken> {
        let begun = self.begin()?;
        let (start, mut rows) = (Instant::now(), Vec::new());
        while rows.is_empty() || (start.elapsed() < duration && !self.stopped()) {
            rows.extend(self.insert(begun, 1)?);
            std::thread::sleep(duration / 20);
        }
        let commit = self.rng.u32(..5) > 0;
        self.end(begun, rows, commit)
    }

    /// Connects where needed and begins.
    fn begin(&mut self) -> Result<Begun, Broken> {
        if self.session.is_none() {
            self.session = database::connect(&self.workload.url);
        }
        if self.session.is_none() {
            std::thread::sleep(Duration::from_millis(20));
            return Err(Broken);
        }
        let marker = self.next_row;
        let number = self.session()?.begin(&self.workload.markers(), marker)?;
        Ok(Begun { number, marker })
    }

    /// Inserts rows with one statement; payload hashes are of what the server stored.
    fn insert(&mut self, begun: Begun, count: usize) -> Result<Vec<WrittenRow>, Broken> {
        let mut rows = Vec::with_capacity(count);
        let mut inserts = Vec::with_capacity(count);
        for _ in 0..count {
            let key = self.rng.usize(..self.keys.len());
            let row = self.next_row;
            self.next_row += 1;
            let (key, seq) = &mut self.keys[key];
            *seq += 1;
            let (key, seq) = (key.clone(), *seq);
            let mut id = self.rng.u128(..);
            if self.workload.rising_ids {
                id = u128::from(row) << 64 | id >> 64;
            }
            let id = uuid::Uuid::from_u128(id).to_string();
            let event_type = ["OrderCreated", "OrderPaid", "OrderShipped"][self.rng.usize(..3)];
            let payload = serde_json::json!({
                "key": key, "seq": seq, "tx": format!("{}-{}", self.name, begun.marker), "row": row,
                "price": 1.5, "pad": self.padding(row),
            });
            inserts.push(NewRow {
                id: id.clone(),
                aggregate_type: self.workload.aggregate_type.clone(),
                key: key.clone(),
                event_type: event_type.to_owned(),
                payload: payload.to_string(),
            });
            rows.push(WrittenRow {
                row,
                transaction: 0,
                key,
                seq,
                id,
                event_type: event_type.to_owned(),
                payload_hash: Vec::new(),
                undone: false,
            });
        }
        let stored = self.session()?.insert(&self.workload.table, &inserts)?;
        for (row, stored) in rows.iter_mut().zip(&stored) {
            row.payload_hash = hash(stored.as_bytes());
        }
        Ok(rows)
    }

    /// Text that a careless escape would damage, of random length.
    fn padding(&mut self, row: u64) -> String {
        let big = self.workload.big_every > 0 && row.is_multiple_of(self.workload.big_every);
        let length = if big {
            self.workload.big_bytes
        } else {
            self.rng.usize(..=self.workload.payload_bytes)
        };
        let mut text = String::with_capacity(length + 20);
        if self.rng.u32(..8) == 0 {
            text.push_str("ü € 😀 \\ \" ' \n\t");
        }
        while text.len() < length {
            text.push(self.rng.alphanumeric());
        }
        text
    }

    /// Enters the rows, asks for the end and notes the outcome. An unknown one is settled before
    /// anything else is written: the keys of the transaction are not free until then.
    fn end(&mut self, begun: Begun, rows: Vec<WrittenRow>, commit: bool) -> Result<(), Broken> {
        let ledger = Arc::clone(&self.workload.ledger);
        let transaction = ledger.enter(rows);
        if !commit {
            // Whether the server hears it or loses the connection, nothing is committed.
            ledger.outcome(transaction, Outcome::RolledBack);
            return self.session()?.run("ROLLBACK");
        }
        match self.session()?.commit() {
            Committed::Yes(bound) => {
                // Where it is not known, the row takes no part in the check of confirmed
                // positions.
                let position_max = bound.unwrap_or(u64::MAX);
                ledger.outcome(transaction, Outcome::Committed { position_max });
                return bound.map(drop).ok_or(Broken);
            }
            Committed::No => {
                ledger.outcome(transaction, Outcome::RolledBack);
                return Err(Broken);
            }
            Committed::Unknown => {}
        }
        let Begun { number, marker } = begun;
        ledger.outcome(transaction, Outcome::Unknown { number, marker });
        self.session = None;
        let markers = self.workload.markers();
        while !self.stopped() {
            let outcome = database::connect(&self.workload.url)
                .and_then(|session| session.settled(&markers, number, marker));
            if let Some(outcome) = outcome {
                ledger.outcome(transaction, outcome);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Broken)
    }

    fn session(&self) -> Result<&dyn Session, Broken> {
        self.session.as_deref().ok_or(Broken)
    }
}
