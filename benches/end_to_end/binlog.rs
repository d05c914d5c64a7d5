//! The same of a binlog: a backlog in MySQL or MariaDB that was written before anything is timed,
//! drained by walpost next to the server's own reader, and into Kafka next to a bare producer of
//! the same messages.
//!
//! Each run has a position of its own in front of all the rows, a copy of the one that
//! `walpost init` made. What walpost writes to its positions goes to files behind the backlog's,
//! which the server's reader is not asked for.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::Program;
use crate::backlog::bare;
use crate::produce::{self, Message};
use crate::support::database::{Server, create_outbox, log_end};
use crate::support::mysql::{Client, MySql, Version, literal};
use crate::support::process::{Process, scratch};
use crate::support::relay::{cpu_seconds, peak_rss_bytes};
use crate::table::{Report, Spread};
use crate::target::Target;

const ROWS_PER_TRANSACTION: u64 = 100;
/// Connections that write.
const WRITERS: u64 = 4;
const DRAIN_MAX: Duration = Duration::from_secs(300);
/// Time between two looks at a position; each is two small queries.
const LOOK: Duration = Duration::from_millis(20);
/// Time between two looks at a process that ends by itself.
const LOOK_AT_PROCESS: Duration = Duration::from_millis(2);
/// How soon walpost stores its position: what is drained in a second is timed no coarser.
const ACK_INTERVAL: &str = "source.ack_interval=20ms";
/// The position that all others are copies of.
const ORIGIN: &str = "origin";

/// A server with rows in its binlog.
struct Backlog {
    server: MySql,
    client: Client,
    database: String,
    rows: u64,
    /// Behind the last row's transaction.
    end: u64,
    /// The files that hold the rows, and how long they are together.
    files: Vec<String>,
    bytes: u64,
    copies: Cell<u32>,
}

/// Who drains.
enum Drainer<'a> {
    /// The server's own reader, into memory.
    Reader,
    /// A bare producer of the same messages, which reads no log.
    Producer {
        target: &'a Target,
    },
    Relay {
        program: &'a Program,
        target: &'a Target,
    },
}

/// What one run took; CPU in seconds a million rows.
#[derive(Debug, Clone, Copy)]
struct Drain {
    /// Rows a second, from the start of the program to the last one's confirm, as stored.
    rate: f64,
    cpu: f64,
    server_cpu: f64,
    broker_cpu: Option<f64>,
    peak_rss_bytes: u64,
}

/// A target that is made when its turn comes, and how many rounds it is given.
pub type Wanted = (fn() -> Target, usize);

/// Measures one server with each of the targets.
pub fn measure(
    version: Version,
    targets: &[Wanted],
    rows: u64,
    programs: &[Program],
    report: &mut Report,
) {
    if targets.is_empty() {
        return;
    }
    if version.is_left_out() {
        report.line(&format!("\nLEFT OUT by WALPOST_TEST_WITHOUT: {version:?}"));
        return;
    }
    let backlog = Backlog::write(version, rows, &programs[0]);
    for (target, rounds) in targets {
        compare(&backlog, &target(), *rounds, programs, report);
    }
}

/// Rounds of each yardstick and each program, one after the other.
fn compare(
    backlog: &Backlog,
    target: &Target,
    rounds: usize,
    programs: &[Program],
    report: &mut Report,
) {
    let mut drainers = vec![Drainer::Reader];
    if target.as_kafka().is_some() {
        drainers.push(Drainer::Producer { target });
    }
    let yardsticks = drainers.len();
    drainers.extend(programs.iter().map(|program| Drainer::Relay { program, target }));
    let mut runs: Vec<Vec<Drain>> = vec![Vec::new(); drainers.len()];
    // The first round warms caches and the broker, and is not counted.
    for round in 0..=rounds {
        for (drainer, runs) in drainers.iter().zip(&mut runs) {
            let run = backlog.drain(drainer);
            if round > 0 {
                runs.push(run);
            }
        }
    }
    let reader = backlog.server.binlog_reader_name();
    let title = format!(
        "Backlog of {} into {}: {ROWS_PER_TRANSACTION} rows a transaction",
        backlog.server.title(),
        target.name()
    );
    let note = format!(
        "{} rows of 200 B JSON, {:.0} MB of binlog, over TCP without TLS, --set {ACK_INTERVAL}. \
         The yardstick is {reader} --read-from-remote-server --raw into memory. CPU in seconds a \
         million rows. Median of {rounds} alternating rounds (min–max); ratios are those of each \
         round.",
        backlog.rows,
        backlog.bytes as f64 / 1e6
    );
    let of_reader = format!("of {reader}");
    let columns = [
        "",
        "rows/s",
        &of_reader,
        "of the bare producer",
        "its CPU",
        "server CPU",
        "broker CPU",
        "peak RSS MB",
    ];
    report.table(&title, &note, &columns);
    let names = ["bare rdkafka producer, the same messages"].map(str::to_owned);
    let names = [reader.to_owned()].into_iter().chain(names).take(yardsticks);
    for (name, run) in names.chain(programs.iter().map(Program::name)).zip(&runs) {
        let producer = (yardsticks > 1).then(|| &runs[1]);
        report.row(&cells(name, run, &runs[0], producer));
    }
}

fn cells(
    name: String,
    runs: &[Drain],
    reader: &[Drain],
    producer: Option<&Vec<Drain>>,
) -> Vec<String> {
    let spread = |value: &dyn Fn(&Drain) -> f64| Spread::of(runs.iter().map(value));
    let ratio = |others: &[Drain]| {
        Spread::of(runs.iter().zip(others).map(|(run, other)| run.rate / other.rate)).show(1.0, 2)
    };
    let broker: Option<Vec<f64>> = runs.iter().map(|run| run.broker_cpu).collect();
    vec![
        name,
        spread(&|run| run.rate).show(1e3, 0) + " k",
        ratio(reader),
        producer.map_or("–".to_owned(), |producer| ratio(producer)),
        spread(&|run| run.cpu).show(1.0, 2),
        spread(&|run| run.server_cpu).show(1.0, 2),
        broker.map_or("–".to_owned(), |cpu| Spread::of(cpu.into_iter()).show(1.0, 2)),
        spread(&|run| run.peak_rss_bytes as f64).show(1e6, 0),
    ]
}

impl Backlog {
    /// Writes the rows behind a position that `walpost init` makes.
    fn write(version: Version, rows: u64, program: &Program) -> Backlog {
        let options = [
            "--innodb-buffer-pool-size=512M",
            "--innodb-doublewrite=OFF",
            // Each has one of the two.
            "--loose-innodb-redo-log-capacity=512M",
            "--loose-innodb-log-file-size=512M",
        ];
        let server = MySql::start_with(version, &options);
        let database = server.fresh_database("bench");
        let client = server.client_for(&database);
        create_outbox(&client);
        init(program, &server.url_for(&database));
        client.run("FLUSH BINARY LOGS");
        let before = files(&client).len() - 1;
        // A flush for each commit would make it take minutes. It says nothing about how it is read.
        let durable = |value: u8| {
            client.run(&format!("SET GLOBAL sync_binlog = {value}"));
            client.run(&format!("SET GLOBAL innodb_flush_log_at_trx_commit = {value}"));
        };
        durable(0);
        load(&server, &database, rows);
        durable(1);
        let end = log_end(&client).expect("the server answers");
        client.run("FLUSH BINARY LOGS");
        let mut files = files(&client).split_off(before);
        files.pop();
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        let files = files.into_iter().map(|(name, _)| name).collect();
        Backlog { server, client, database, rows, end, files, bytes, copies: Cell::new(0) }
    }

    /// A position in front of all the rows, of a name of its own.
    fn copy_position(&self) -> String {
        self.copies.set(self.copies.get() + 1);
        let name = format!("run-{}", self.copies.get());
        let rest = "flavor, server_uuid, gtid_set, file, position, epoch, holder, lease_until, \
                    updated_at";
        self.client.run(&format!(
            "INSERT INTO walpost_position (name, {rest}) \
             SELECT {}, {rest} FROM walpost_position WHERE name = {}",
            literal(&name),
            literal(ORIGIN)
        ));
        assert!(MySql::confirmed(&self.client, &name) < self.end, "a run begins before the rows");
        name
    }

    fn drain(&self, drainer: &Drainer<'_>) -> Drain {
        let target = match drainer {
            Drainer::Reader => None,
            Drainer::Producer { target } | Drainer::Relay { target, .. } => Some(*target),
        };
        let broker = target.and_then(Target::id);
        let folder = memory_folder();
        let position = match drainer {
            Drainer::Reader | Drainer::Producer { .. } => None,
            Drainer::Relay { .. } => Some(self.copy_position()),
        };
        let command = self.command(drainer, position.as_deref(), &folder);
        let log = scratch("run").join("log");
        let cpu_before = (cpu_seconds(self.server.id()), broker.and_then(cpu_seconds));
        let start = Instant::now();
        let mut process = Process::spawn(command, None, &log);
        let (cpu, peak_rss_bytes) = match &position {
            Some(name) => self.follow(&mut process, name, start),
            None => follow_to_end(&mut process, start),
        };
        let seconds = start.elapsed().as_secs_f64();
        let cpu_after = (cpu_seconds(self.server.id()), broker.and_then(cpu_seconds));
        process.signal(Signal::SIGTERM);
        assert!(process.wait(Duration::from_secs(60)).is_some(), "it does not stop");
        match (drainer, target) {
            (Drainer::Reader, _) => {
                assert_eq!(bytes_in(&folder), self.bytes, "it reads the whole backlog");
            }
            (_, Some(target)) => {
                if let Some(count) = target.count() {
                    assert_eq!(count, self.rows, "a run that loses or repeats is no result");
                }
                target.empty();
            }
            (_, None) => {}
        }
        std::fs::remove_dir_all(&folder).expect("it is our own");
        let millions = self.rows as f64 / 1e6;
        let spent = |before: Option<f64>, after: Option<f64>| {
            before.zip(after).map(|(before, after)| (after - before) / millions)
        };
        Drain {
            rate: self.rows as f64 / seconds,
            cpu: cpu / millions,
            server_cpu: spent(cpu_before.0, cpu_after.0).expect("the server runs"),
            broker_cpu: spent(cpu_before.1, cpu_after.1),
            peak_rss_bytes,
        }
    }

    fn command(&self, drainer: &Drainer<'_>, position: Option<&str>, folder: &Path) -> Command {
        match drainer {
            Drainer::Reader => {
                self.server.binlog_reader(&self.files, &format!("{}/", folder.display()))
            }
            Drainer::Producer { target } => {
                let kafka = target.as_kafka().expect("only Kafka has a bare producer");
                let mut command = Command::new(std::env::current_exe().expect("it has a file"));
                command.args(["--produce", &kafka.bootstrap(), "--rows", &self.rows.to_string()]);
                command
            }
            Drainer::Relay { program, target } => {
                let mut command = bare(program);
                let source = format!("{}?ssl-mode=DISABLED", self.server.url_for(&self.database));
                command.args(["run", "--source", &source, "--sink", &target.url()]);
                let name = format!("relay.name={}", position.expect("a relay has one"));
                command.args(["--set", &name, "--set", ACK_INTERVAL]).args(&program.arguments);
                command
            }
        }
    }

    /// Until the stored position is behind the last row; CPU seconds and peak memory by then.
    fn follow(&self, process: &mut Process, name: &str, start: Instant) -> (f64, u64) {
        loop {
            let end = MySql::confirmed(&self.client, name);
            if end >= self.end {
                let id = process.id();
                return cpu_seconds(id).zip(peak_rss_bytes(id)).expect("it runs on");
            }
            assert!(process.is_running(), "it left early: {}", process.log());
            assert!(start.elapsed() < DRAIN_MAX, "it takes too long: {}", process.log());
            std::thread::sleep(LOOK);
        }
    }
}

/// Makes the table of positions, and in it that of [`ORIGIN`] at the present end of the log.
fn init(program: &Program, source: &str) {
    let mut command = bare(program);
    let name = format!("relay.name={ORIGIN}");
    command.args(["init", "--source", source, "--table", "outbox", "--set", &name]);
    let mut process = Process::spawn(command, None, &scratch("init").join("log"));
    if !process.wait(DRAIN_MAX).is_some_and(|status| status.success()) {
        process.give_up("walpost init failed");
    }
}

/// Until a process ends; CPU seconds and peak memory as they were last seen.
fn follow_to_end(process: &mut Process, start: Instant) -> (f64, u64) {
    let mut seen = (0.0, 0);
    while process.is_running() {
        seen = cpu_seconds(process.id()).zip(peak_rss_bytes(process.id())).unwrap_or(seen);
        assert!(start.elapsed() < DRAIN_MAX, "it takes too long: {}", process.log());
        std::thread::sleep(LOOK_AT_PROCESS);
    }
    let status = process.wait(Duration::ZERO).expect("it has ended");
    assert!(status.success(), "it failed: {}", process.log());
    seen
}

/// Names and sizes of the server's binlog files.
fn files(client: &Client) -> Vec<(String, u64)> {
    let text = |cell: Option<String>| cell.expect("no cell is NULL");
    let file = |row: Vec<Option<String>>| {
        let mut cells = row.into_iter().map(text);
        let (name, bytes) = cells.next().zip(cells.next()).expect("two columns");
        (name, bytes.parse().expect("a size"))
    };
    client.rows("SHOW BINARY LOGS").into_iter().map(file).collect()
}

/// Writes rows `0..rows`, from a few connections at once, each its own part.
fn load(server: &MySql, database: &str, rows: u64) {
    let transactions = rows.div_ceil(ROWS_PER_TRANSACTION);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let client = server.client_for(database);
            scope.spawn(move || {
                let part = transactions * writer / WRITERS..transactions * (writer + 1) / WRITERS;
                for transaction in part {
                    let first = transaction * ROWS_PER_TRANSACTION;
                    let numbers = first..rows.min(first + ROWS_PER_TRANSACTION);
                    let values: Vec<String> = numbers.map(values).collect();
                    client.run(&format!("INSERT INTO outbox VALUES {}", values.join(", ")));
                }
            });
        }
    });
}

/// A row in the order of the table's columns.
fn values(number: u64) -> String {
    let Message { id, key, payload } = produce::message(number);
    let (id, event_type) = (id.simple(), produce::EVENT_TYPE);
    format!("(X'{id}', '{}', '{key}', '{event_type}', '{payload}')", produce::AGGREGATE_TYPE)
}

/// A folder of memory, where the machine has such.
fn memory_folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return scratch("reader");
    }
    let folder = memory.join(format!("walpost-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("memory takes a folder");
    folder
}

fn bytes_in(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).expect("it is there");
    files.map(|file| file.and_then(|file| file.metadata()).expect("it is there").len()).sum()
}
