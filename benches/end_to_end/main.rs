//! walpost as its users run it, measured end to end: the release build against private databases
//! and real brokers, next to what the database's own client and a bare broker client need in the
//! same run. `scripts/bench` builds it all; `--help` lists the flags.

#![allow(unreachable_pub, missing_docs, reason = "a program exports nothing")]
#![allow(clippy::unwrap_used, reason = "it shares the tests' servers, which should panic")]

mod backlog;
mod binlog;
mod latency;
mod memory;
mod produce;
mod start_up;
mod table;
mod target;
#[path = "../../tests"]
mod tests_folder {
    pub mod support;
}

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};

use backlog::{Backlog, Drain, Drainer};
use support::mysql::Version;
use table::{Report, Spread};
use target::Target;
use tests_folder::support;

/// Measures walpost end to end and writes target/bench.md.
#[derive(Parser)]
pub struct Flags {
    /// What to measure.
    #[arg(long, value_delimiter = ',', default_values_t = Section::value_variants().to_vec())]
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Programs to measure side by side, each with arguments for `run` behind it, as in
    /// "target/release/walpost --set relay.lanes=8" [default: target/release/walpost]
    #[arg(long = "program", value_name = "COMMAND")]
    programs: Vec<Program>,
    /// Rows of the backlog with 100 rows a transaction.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// Rows of the backlog with 1 row a transaction.
    #[arg(long, default_value_t = 300_000)]
    rows_single: u64,
    /// Rows of the backlog for NATS and RabbitMQ.
    #[arg(long, default_value_t = 200_000)]
    rows_slow: u64,
    /// Pairs of runs into the null sink.
    #[arg(long, default_value_t = 5)]
    pairs_null: usize,
    /// Pairs of runs into a broker.
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Starts whose time is taken.
    #[arg(long, default_value_t = 10)]
    starts: usize,
    /// Seconds of writing whose latencies are taken.
    #[arg(long, default_value_t = 20)]
    latency_seconds: u64,
    /// Seconds without a broker.
    #[arg(long, default_value_t = 60)]
    outage_seconds: u64,
    /// Cargo's own.
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the client that the start-up is compared with, of this broker.
    #[arg(long, hide = true)]
    client: Option<String>,
    #[arg(long, hide = true, action = clap::ArgAction::Set, default_value_t = true)]
    idempotence: bool,
    /// Be the producer that a drain into this broker is compared with, of so many `--rows`.
    #[arg(long, hide = true)]
    produce: Option<String>,
}

/// A walpost, and what its `run` is started with.
#[derive(Clone)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
}

impl std::str::FromStr for Program {
    type Err = std::io::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_whitespace();
        let path = std::path::absolute(words.next().unwrap_or_default())?;
        Ok(Program { path, arguments: words.map(str::to_owned).collect() })
    }
}

impl Program {
    /// What it is called in a table.
    pub fn name(&self) -> String {
        let file = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        [vec![file], self.arguments.clone()].concat().join(" ")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Null,
    NullSingle,
    Kafka,
    KafkaSingle,
    Nats,
    Rabbitmq,
    Mysql,
    MysqlKafka,
    Mariadb,
    MariadbKafka,
    StartUp,
    Latency,
    Memory,
}

fn main() {
    let mut flags = Flags::parse();
    if let Some(bootstrap) = &flags.client {
        return start_up::client(bootstrap, flags.idempotence);
    }
    if let Some(bootstrap) = &flags.produce {
        return produce::produce(bootstrap, flags.rows);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if flags.programs.is_empty() {
        let path = root.join("target/release/walpost");
        flags.programs.push(Program { path, arguments: Vec::new() });
    }
    for program in &flags.programs {
        assert!(program.path.exists(), "{} is missing; run scripts/bench", program.path.display());
    }
    let mut report = Report::default();
    report.line("# walpost, measured end to end");
    drains(&flags, &mut report);
    binlog_drains(&flags, &mut report);
    if flags.sections.contains(&Section::StartUp) {
        start_up::measure(&flags.programs, flags.starts, &mut report);
    }
    if flags.sections.contains(&Section::Latency) {
        latency::measure(&flags.programs, flags.latency_seconds, &mut report);
    }
    if flags.sections.contains(&Section::Memory) {
        memory::measure(&flags.programs, flags.rows, flags.outage_seconds, &mut report);
    }
    report.save(&root.join("target/bench.md"));
}

/// Every backlog, each into the sinks that were asked for.
fn drains(flags: &Flags, report: &mut Report) {
    type Cell = (Section, fn() -> Target, usize);
    let null = |section| -> Cell { (section, Target::null, flags.pairs_null) };
    let kafka = |section| -> Cell { (section, Target::kafka, flags.pairs) };
    let slow: [Cell; 2] = [
        (Section::Nats, Target::nats, flags.pairs),
        (Section::Rabbitmq, Target::rabbitmq, flags.pairs),
    ];
    let backlogs: [(u64, u64, Vec<Cell>); 3] = [
        (flags.rows, 100, vec![null(Section::Null), kafka(Section::Kafka)]),
        (flags.rows_single, 1, vec![null(Section::NullSingle), kafka(Section::KafkaSingle)]),
        (flags.rows_slow, 100, slow.into()),
    ];
    for (rows, rows_per_transaction, cells) in backlogs {
        let wanted = |cell: &&Cell| flags.sections.contains(&cell.0);
        if cells.iter().filter(wanted).count() == 0 {
            continue;
        }
        let backlog = Backlog::write(rows, rows_per_transaction);
        for (_, target, pairs) in cells.iter().filter(wanted) {
            drain(&backlog, &target(), *pairs, &flags.programs, report);
        }
    }
}

/// The backlog of each server with a binlog, into the sinks that were asked for.
fn binlog_drains(flags: &Flags, report: &mut Report) {
    for (version, null, kafka) in [
        (Version::MySql97, Section::Mysql, Section::MysqlKafka),
        (Version::MariaDb1011, Section::Mariadb, Section::MariadbKafka),
    ] {
        let cells: [(Section, binlog::Wanted); 2] =
            [(null, (Target::null, flags.pairs_null)), (kafka, (Target::kafka, flags.pairs))];
        let wanted = cells.into_iter().filter(|(section, _)| flags.sections.contains(section));
        let targets: Vec<binlog::Wanted> = wanted.map(|(_, cell)| cell).collect();
        binlog::measure(version, &targets, flags.rows, &flags.programs, report);
    }
}

/// One cell: rounds of the yardstick and each program, one after the other.
fn drain(
    backlog: &Backlog,
    target: &Target,
    rounds: usize,
    programs: &[Program],
    report: &mut Report,
) {
    let title = format!("Backlog into {}: {}", target.name(), backlog.shape());
    let note = format!(
        "{} rows of 200 B jsonb, PostgreSQL 15. CPU in seconds a million rows. Median of {rounds} \
         alternating rounds (min–max); the ratio is that of each round.",
        backlog.rows
    );
    let columns = [
        "",
        "rows/s",
        "steady rows/s",
        "of pg_recvlogical",
        "its CPU",
        "walsender CPU",
        "broker CPU",
        "peak RSS MB",
    ];
    report.table(&title, &note, &columns);
    let url = target.url();
    let mut yardstick = Vec::new();
    let mut runs: Vec<Vec<Drain>> = vec![Vec::new(); programs.len()];
    // The first round warms caches and the broker, and is not counted.
    for round in 0..=rounds {
        let received = backlog.drain(&Drainer::Receive);
        if round > 0 {
            yardstick.push(received);
        }
        for (program, runs) in programs.iter().zip(&mut runs) {
            let drainer = Drainer::Relay { program, sink: &url, broker: target.id() };
            let run = backlog.drain(&drainer);
            if let Some(count) = target.count() {
                assert_eq!(count, backlog.rows, "a run that loses or repeats is no result");
            }
            target.empty();
            if round > 0 {
                runs.push(run);
            }
        }
    }
    report.row(&cells("pg_recvlogical", &yardstick, &yardstick));
    for (program, runs) in programs.iter().zip(&runs) {
        report.row(&cells(&program.name(), runs, &yardstick));
    }
}

fn cells(name: &str, runs: &[Drain], yardstick: &[Drain]) -> Vec<String> {
    let spread = |value: &dyn Fn(&Drain) -> f64| Spread::of(runs.iter().map(value));
    let ratios = runs.iter().zip(yardstick).map(|(run, yardstick)| run.rate / yardstick.rate);
    let broker: Option<Vec<f64>> = runs.iter().map(|run| run.broker_cpu).collect();
    vec![
        name.to_owned(),
        spread(&|run| run.rate).show(1e3, 0) + " k",
        spread(&|run| run.steady_rate).show(1e3, 0) + " k",
        Spread::of(ratios).show(1.0, 2),
        spread(&|run| run.client_cpu).show(1.0, 2),
        spread(&|run| run.walsender_cpu).show(1.0, 2),
        broker.map_or("–".to_owned(), |cpu| Spread::of(cpu.into_iter()).show(1.0, 2)),
        spread(&|run| run.peak_rss_bytes as f64).show(1e6, 0),
    ]
}
