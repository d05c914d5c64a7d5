//! A backlog that was written before anything is timed, and how long somebody takes to drain it.
//!
//! Each backlog has a server of its own, with nothing behind its last row, and each run a copy of
//! its slot: so all runs read the same bytes of log and end at the same position.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Program;
use crate::support::postgres::{Client, Postgres, Version, literal};
use crate::support::process::{Process, scratch};
use crate::support::relay::{cpu_seconds, peak_rss_bytes};
use crate::support::slot::{
    create_outbox, create_publication_and_slot, drop_slot, end_of_log, format_lsn, parse_lsn,
};

/// Nobody needs longer for a backlog of a million rows.
const DRAIN_MAX: Duration = Duration::from_secs(300);
/// Time between two looks at a slot; each costs the server some 0.2 ms.
const LOOK: Duration = Duration::from_millis(10);
/// Payload of a row, and how many keys there are.
const PAYLOAD_BYTES: usize = 200;
const KEYS: usize = 1000;

/// A server with rows in its log.
pub struct Backlog {
    pub server: Postgres,
    pub client: Client,
    pub rows: u64,
    pub rows_per_transaction: u64,
    begin: u64,
    end: u64,
    copies: Cell<u32>,
}

/// Who drains.
pub enum Drainer<'a> {
    /// The yardstick: PostgreSQL's own client, into /dev/null.
    Receive,
    /// A walpost, into a broker.
    Relay { program: &'a Program, sink: &'a str, broker: Option<u32> },
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// Rows a second, from the start of the program to the slot's last position.
    pub rate: f64,
    /// The same without start-up and first tenth.
    pub steady_rate: f64,
    /// CPU seconds a million rows.
    pub client_cpu: f64,
    pub walsender_cpu: f64,
    pub broker_cpu: Option<f64>,
    pub peak_rss_bytes: u64,
}

/// A look at a run.
#[derive(Default, Clone, Copy)]
struct Sample {
    position: u64,
    client_cpu: f64,
    walsender_cpu: f64,
    peak_rss_bytes: u64,
}

/// A server as it is set up for measuring: durable, and quiet behind the rows.
pub fn server() -> Postgres {
    let settings = [
        "autovacuum = off",
        "checkpoint_timeout = 1h",
        "max_wal_size = 16GB",
        "wal_sender_timeout = 60s",
    ];
    Postgres::start_with(Version::V15, &settings)
}

impl Backlog {
    /// Writes the rows behind a new slot.
    pub fn write(rows: u64, rows_per_transaction: u64) -> Backlog {
        let server = server();
        let client = server.client();
        create_outbox(&client, "outbox");
        create_publication_and_slot(&client, "outbox", "p", "origin");
        client.run(&format!(
            "CREATE PROCEDURE load(total bigint, size bigint) LANGUAGE plpgsql AS $$ \
             BEGIN FOR n IN 0 .. total / size - 1 LOOP \
             INSERT INTO outbox SELECT gen_random_uuid(), 'Order', 'order-' || \
             ((n * size + i) % {KEYS}), 'OrderPlaced', {payload} \
             FROM generate_series(1, size) AS i; COMMIT; END LOOP; END $$",
            payload = payload("n * size + i"),
        ));
        client.run("CHECKPOINT");
        // One flush a commit would make a backlog of single rows take minutes; the server's own
        // flushes follow within milliseconds. It says nothing about how it is read.
        client.run("SET synchronous_commit = off");
        let begin = end_of_log(&client);
        client.run(&format!("CALL load({rows}, {rows_per_transaction})"));
        let end = end_of_log(&client);
        let copies = Cell::new(0);
        Backlog { server, client, rows, rows_per_transaction, begin, end, copies }
    }

    /// `100 rows a transaction`.
    pub fn shape(&self) -> String {
        match self.rows_per_transaction {
            1 => "1 row a transaction".to_owned(),
            rows => format!("{rows} rows a transaction"),
        }
    }

    /// Where the last row's commit ends.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// A new slot in front of all the rows.
    pub fn copy_slot(&self) -> String {
        self.copies.set(self.copies.get() + 1);
        let slot = format!("run_{}", self.copies.get());
        self.client
            .run(&format!("SELECT pg_copy_logical_replication_slot('origin', {})", literal(&slot)));
        slot
    }

    /// Drains a copy of the slot.
    pub fn drain(&self, drainer: &Drainer<'_>) -> Drain {
        let slot = self.copy_slot();
        let broker = match drainer {
            Drainer::Receive => None,
            Drainer::Relay { broker, .. } => *broker,
        };
        let broker_before = broker.and_then(cpu_seconds);
        let start = Instant::now();
        let mut process = self.start(drainer, &slot);
        let (mut last, mut steady_since) = (Sample::default(), None);
        loop {
            let received = matches!(drainer, Drainer::Receive);
            let ended = !process.is_running();
            self.look(&slot, received, process.id(), &mut last);
            let part = last.position.saturating_sub(self.begin) as f64;
            if part >= 0.1 * (self.end - self.begin) as f64 {
                steady_since.get_or_insert((start.elapsed(), part));
            }
            if ended || last.position >= self.end && !received {
                assert!(received || !ended, "it left early: {}", process.log());
                break;
            }
            assert!(start.elapsed() < DRAIN_MAX, "it takes too long: {}", process.log());
            std::thread::sleep(LOOK);
        }
        let seconds = start.elapsed().as_secs_f64();
        let broker_after = broker.and_then(cpu_seconds);
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(process.wait(Duration::from_secs(60)).is_some(), "it does not stop");
        drop_slot(&self.client, &slot);
        let millions = self.rows as f64 / 1e6;
        let (steady_from, part) = steady_since.unwrap_or((Duration::ZERO, 0.0));
        let rest = 1.0 - part / (self.end - self.begin) as f64;
        Drain {
            rate: self.rows as f64 / seconds,
            steady_rate: self.rows as f64 * rest / (seconds - steady_from.as_secs_f64()),
            client_cpu: last.client_cpu / millions,
            walsender_cpu: last.walsender_cpu / millions,
            broker_cpu: broker_before.zip(broker_after).map(|(a, b)| (b - a) / millions),
            peak_rss_bytes: last.peak_rss_bytes,
        }
    }

    fn start(&self, drainer: &Drainer<'_>, slot: &str) -> Process {
        let log = scratch("run").join("log");
        let command = match drainer {
            Drainer::Receive => self.receive(slot),
            Drainer::Relay { program, sink, .. } => relay(program, &self.server.url(), sink, slot),
        };
        Process::spawn(command, None, &log)
    }

    fn receive(&self, slot: &str) -> Command {
        let mut command = Command::new(self.server.programs().join("pg_recvlogical"));
        command.args(["-h", "127.0.0.1", "-p", &self.server.port().to_string()]);
        command.args(["-U", "postgres", "-d", "postgres", "-S", slot, "--start"]);
        command.args(["-f", "/dev/null", "--no-loop", "-E", &format_lsn(self.end - 1)]);
        command.args(["-o", "proto_version=1", "-o", "publication_names=p", "-o", "binary=true"]);
        command
    }

    /// Notes what is to be seen now; what is gone keeps its last value.
    fn look(&self, slot: &str, received: bool, client: u32, sample: &mut Sample) {
        let sql = format!(
            "SELECT s.active_pid, s.confirmed_flush_lsn, r.sent_lsn FROM pg_replication_slots s \
             LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE slot_name = {}",
            literal(slot)
        );
        let row = self.client.rows(&sql).into_iter().next().expect("the slot is there");
        // PostgreSQL's client tells of its position every ten seconds only.
        let position = if received { &row[2] } else { &row[1] };
        if let Some(position) = position {
            sample.position = sample.position.max(parse_lsn(position));
        }
        if let Some(cpu) = row[0].as_ref().and_then(|id| cpu_seconds(id.parse().ok()?)) {
            sample.walsender_cpu = sample.walsender_cpu.max(cpu);
        }
        if let Some(cpu) = cpu_seconds(client) {
            sample.client_cpu = sample.client_cpu.max(cpu);
        }
        let peak = peak_rss_bytes(client).unwrap_or(0);
        sample.peak_rss_bytes = sample.peak_rss_bytes.max(peak);
    }
}

/// SQL for a jsonb payload of [`PAYLOAD_BYTES`], with a number in it.
pub fn payload(number: &str) -> String {
    let frame = r#"{"row": "0000000000", "text": ""}"#.len();
    format!(
        r#"('{{"row": "' || lpad(({number})::text, 10, '0') || '", "text": "{}"}}')::jsonb"#,
        "x".repeat(PAYLOAD_BYTES - frame)
    )
}

/// A walpost without arguments, and without settings from anywhere else.
pub fn bare(program: &Program) -> Command {
    let mut command = Command::new(&program.path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WALPOST_") {
            command.env_remove(name);
        }
    }
    // Nobody else's configuration file.
    command.current_dir(scratch("relay"));
    command
}

/// `walpost run` as its users start it, on publication `p`.
pub fn relay(program: &Program, source: &str, sink: &str, slot: &str) -> Command {
    let mut command = bare(program);
    command.args(["run", "--source", source, "--sink", sink, "--slot", slot]);
    command.args(["--publication", "p"]).args(&program.arguments);
    command
}

/// A relay that was started to go on by itself.
pub fn start_relay(program: &Program, source: &str, sink: &str, slot: &str) -> Process {
    let log = scratch("run").join("log");
    Process::spawn(relay(program, source, sink, slot), None, &log)
}
