//! Fault 1: the relay is killed at any moment, again and again, while rows pass.
//!
//! A kill counts only with rows in flight: rows that the broker holds and that lie above the
//! relay's confirmed position, so that only a replay can make them whole. Where in a transaction
//! it struck is told by what the broker held: some of its rows, and not all.
//!
//! `WALPOST_KILLS` sets how many kills count, `WALPOST_SEED` repeats a run's choices (not the
//! machine's timing), `WALPOST_SOAK_REPORT` appends a line of figures to a file. `scripts/soak`
//! uses all three.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::support::broker::{Broker, Kind};
use crate::support::checker::{self, Judge, Mark, Published, Report, mark};
use crate::support::database::Server;
use crate::support::ledger::{Ledger, Outcome};
use crate::support::mysql::{self, MySql};
use crate::support::postgres::{self, Postgres};
use crate::support::process::eventually;
use crate::support::stage::drains;
use crate::support::writer::Workload;

/// Kills that count, a pair, in an ordinary run of the tests.
const KILLS: usize = 30;
/// After so many a round ends: a new outbox, topic and judge keep the reading back short.
const KILLS_A_ROUND: usize = 100;
/// Rows of a transaction that a kill is aimed at; Kafka takes a thousand of them at once.
const LARGE_ROWS: usize = 600;
const LARGE_ROWS_KAFKA: usize = 2500;
/// A relay that confirms nothing for so long after its start does not work.
const FIRST_CONFIRM_MAX: Duration = Duration::from_secs(30);

/// What was found at one kill.
struct Kill {
    /// The relay's position, read before the broker.
    confirmed: u64,
    /// What the broker held after that.
    held: Mark,
    /// Rows that the broker held above the position.
    in_flight: usize,
}

/// Figures of a pair over all rounds.
#[derive(Default)]
struct Figures {
    kills: usize,
    /// Kills with nothing in flight.
    idle: usize,
    inside: usize,
    rows: usize,
    in_flight_max: usize,
    duplicates: usize,
    duplicates_max: usize,
    violations: String,
}

/// `server` is the test's own: PostgreSQL's long transactions hold up the creation of slots.
fn survives_kills<S: Server>(server: &S, kind: Kind) {
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect(name));
    let kills = setting("WALPOST_KILLS").map_or(KILLS, |kills: u64| kills as usize);
    let seed = setting("WALPOST_SEED").unwrap_or_else(|| Rng::new().u64(..1 << 32));
    let pair = format!("{} – {kind:?}", server.title());
    println!("{pair}: WALPOST_SEED={seed}");
    let start = Instant::now();
    let mut broker = Broker::start(kind);
    let mut figures = Figures::default();
    let mut round = 0;
    while figures.kills < kills && figures.violations.is_empty() {
        let wanted = KILLS_A_ROUND.min(kills - figures.kills);
        run_round(server, &mut broker, seed + round, wanted, &mut figures);
        round += 1;
        println!("{pair}: {} of {kills} kills after {:?}", figures.kills, start.elapsed());
    }
    figures.save(&pair, seed, round, start.elapsed());
    assert!(figures.violations.is_empty(), "seed {seed}\n{}", figures.violations);
    assert!(figures.inside * 10 >= figures.kills, "only {} in transactions", figures.inside);
}

/// As many kills as are wanted to count, then a clean stop and the judgement.
fn run_round<S: Server>(
    server: &S,
    broker: &mut Broker,
    seed: u64,
    wanted: usize,
    figures: &mut Figures,
) {
    let large = match broker.kind() {
        Kind::Kafka => LARGE_ROWS_KAFKA,
        Kind::RabbitMq | Kind::Nats => LARGE_ROWS,
    };
    // given a fresh outbox, position and topic, and writers at work
    let mut rng = Rng::with_seed(seed);
    let database = server.empty_outbox("kill");
    let (name, url) = (database.as_str(), server.url_for(&database));
    let client = server.client_for(name);
    broker.prepare(name);
    let mut relay =
        S::relay(&url, &broker.url(), name).args(&["--set", "source.ack_interval=100ms"]);
    let mut workload = Workload::new(&url, "outbox");
    workload.seed = seed;
    workload.aggregate_type = name.into();
    // RabbitMQ and NATS take one row a key at a time: with few keys most of the time would go into
    // waiting for a large transaction.
    workload.keys = 40;
    workload.long_transactions = Some(Duration::from_millis(700));
    let writing = workload.start();
    let mut hand = writing.hand();
    // when the relay is killed again and again
    let mut kills: Vec<Kill> = Vec::new();
    let mut counted = 0;
    let mut confirmed = S::confirmed(&client, name);
    while counted < wanted {
        assert!(kills.len() < 2 * wanted + 10, "nothing is in flight at most kills");
        relay.start();
        if !hand.is_open() {
            hand.insert(large);
        }
        let confirms = eventually(FIRST_CONFIRM_MAX, || S::confirmed(&client, name) > confirmed);
        assert!(confirms, "nothing was confirmed\n{}", relay.log());
        if rng.bool() {
            hand.commit();
            std::thread::sleep(Duration::from_micros(rng.u64(..40_000)));
        } else {
            std::thread::sleep(Duration::from_millis(rng.u64(..400)));
        }
        relay.kill();
        let kill = look::<S>(&client, broker, name, kills.last());
        confirmed = kill.confirmed;
        counted += usize::from(kill.in_flight > 0);
        kills.push(kill);
    }
    // then a last run brings what is missing, and nothing was lost, invented or passed over
    if hand.is_open() {
        hand.commit();
    }
    let ledger = writing.stop();
    relay.start();
    let drained = drains::<S>(&client, name, Duration::from_secs(60));
    assert!(drained, "the last run did not get to the end\n{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    let published = broker.read_on(name);
    figures.add(&ledger, published, &kills);
    // Else a slot would hold the log of all rounds to come.
    S::forget(&client, name);
}

/// The position first, then the broker: whatever it had passed must be there.
fn look<S: Server>(
    client: &S::Client,
    broker: &mut Broker,
    name: &str,
    before: Option<&Kill>,
) -> Kill {
    let confirmed = S::confirmed(client, name);
    let published = broker.read_on(name);
    let is_new = |message: &&Published| {
        let next = before.and_then(|kill| kill.held.get(&message.stream));
        message.position >= next.copied().unwrap_or(0)
    };
    let new = published.iter().filter(is_new);
    let in_flight = new.filter(|message| commit_of(message) >= confirmed).count();
    Kill { confirmed, held: mark(published), in_flight }
}

/// Where a message's transaction stands in the log, from its identity header.
fn commit_of(message: &Published) -> u64 {
    let header = message.headers.iter().find(|(name, _)| name == "walpost-identity");
    let text = std::str::from_utf8(&header.expect("every message has one").1).expect("ASCII");
    let part = text.split(':').nth(2).expect("version, log, transaction, ordinal, fingerprint");
    u64::from_str_radix(part, 16).expect("hexadecimal")
}

impl Figures {
    fn add(&mut self, ledger: &Ledger, published: &[Published], kills: &[Kill]) {
        let mut judge = Judge::new(ledger, published.to_vec());
        for kill in kills {
            judge =
                judge.confirmed_at(kill.confirmed, kill.held.clone()).restart(kill.held.clone());
        }
        let report = judge.judge();
        let counts: Vec<bool> = kills.iter().map(|kill| kill.in_flight > 0).collect();
        let inside = inside(ledger, published, kills);
        self.kills += counts.iter().filter(|counts| **counts).count();
        self.idle += counts.iter().filter(|counts| !**counts).count();
        self.inside +=
            inside.iter().zip(&counts).filter(|(inside, counts)| **inside && **counts).count();
        self.rows += report.committed;
        self.duplicates += report.duplicates;
        let most = |counts: &mut dyn Iterator<Item = usize>| counts.max().unwrap_or(0);
        self.in_flight_max =
            self.in_flight_max.max(most(&mut kills.iter().map(|kill| kill.in_flight)));
        let after = report.duplicates_after_restart.iter().copied();
        self.duplicates_max = self.duplicates_max.max(most(&mut { after }));
        self.note_violations(&report, published, kills);
    }

    fn note_violations(&mut self, report: &Report, published: &[Published], kills: &[Kill]) {
        if !report.is_clean() || report.unknown > 0 || report.committed == 0 {
            write!(self.violations, "{report}").expect("a string grows");
        }
        assert!(report.sampled_rows > 0, "no sample bounded any row\n{report}");
        // I6, exactly: what the position had passed at a kill does not come again after it.
        for message in published {
            let after = |kill: &&Kill| {
                message.position >= kill.held.get(&message.stream).copied().unwrap_or(0)
            };
            let Some(kill) = kills.iter().rev().find(after) else { continue };
            if commit_of(message) < kill.confirmed {
                let (stream, position) = (&message.stream, message.position);
                writeln!(self.violations, "{stream}/{position} came again after its confirm")
                    .expect("a string grows");
            }
        }
    }

    /// One line of `target/soak.md`; see `scripts/soak`.
    fn save(&self, pair: &str, seed: u64, rounds: u64, duration: Duration) {
        let violations = self.violations.lines().count();
        let line = format!(
            "| {pair} | {seed}..{} | {} | {} | {violations} | {} | {} | {} | {} | {:.0} s |\n",
            seed + rounds - 1,
            self.kills,
            self.inside,
            self.rows,
            self.duplicates,
            self.duplicates_max,
            self.in_flight_max,
            duration.as_secs_f64(),
        );
        print!("{line}");
        println!("{pair}: {} kills more found nothing in flight", self.idle);
        if let Some(path) = std::env::var_os("WALPOST_SOAK_REPORT") {
            let file = std::fs::File::options().append(true).create(true).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).expect("a line is written");
        }
    }
}

/// For each kill, whether some transaction had been published in part.
fn inside(ledger: &Ledger, published: &[Published], kills: &[Kill]) -> Vec<bool> {
    // For each row the first kill that found it published; as many as there are: none did.
    let mut found: HashMap<u64, usize> = HashMap::new();
    for message in published {
        let Some(row) = checker::row_of(message) else { continue };
        let kill = kills.partition_point(|kill| {
            kill.held.get(&message.stream).is_none_or(|next| *next <= message.position)
        });
        found.entry(row).and_modify(|first| *first = kill.min(*first)).or_insert(kill);
    }
    let mut spans: HashMap<usize, (usize, usize)> = HashMap::new();
    for (row, outcome) in ledger.rows() {
        if !matches!(outcome, Outcome::Committed { .. }) {
            continue;
        }
        let kill = found.get(&row.row).copied().unwrap_or(kills.len());
        let (first, last) = spans.entry(row.transaction).or_insert((kill, kill));
        (*first, *last) = (kill.min(*first), kill.max(*last));
    }
    let mut inside = vec![false; kills.len()];
    for (first, last) in spans.into_values() {
        inside[first..last].fill(true);
    }
    inside
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_into_kafka() {
    survives_kills(&Postgres::start(postgres::Version::V15), Kind::Kafka);
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_into_rabbitmq() {
    survives_kills(&Postgres::start(postgres::Version::V15), Kind::RabbitMq);
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_into_nats() {
    survives_kills(&Postgres::start(postgres::Version::V15), Kind::Nats);
}

/// From MySQL or MariaDB, where this run does not do without it.
fn survives_kills_from(version: mysql::Version, kind: Kind) {
    if !version.is_left_out() {
        survives_kills(&MySql::start(version), kind);
    }
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_from_mysql_into_kafka() {
    survives_kills_from(mysql::Version::MySql97, Kind::Kafka);
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_from_mysql_into_nats() {
    survives_kills_from(mysql::Version::MySql97, Kind::Nats);
}

#[test]
fn a_relay_killed_at_any_moment_loses_nothing_from_mariadb_into_rabbitmq() {
    survives_kills_from(mysql::Version::MariaDb1011, Kind::RabbitMq);
}

#[test]
#[ignore = "one of the pairs that only `make soak` runs"]
fn a_relay_killed_at_any_moment_loses_nothing_from_mysql_into_rabbitmq() {
    survives_kills_from(mysql::Version::MySql97, Kind::RabbitMq);
}

#[test]
#[ignore = "one of the pairs that only `make soak` runs"]
fn a_relay_killed_at_any_moment_loses_nothing_from_mariadb_into_kafka() {
    survives_kills_from(mysql::Version::MariaDb1011, Kind::Kafka);
}

#[test]
#[ignore = "one of the pairs that only `make soak` runs"]
fn a_relay_killed_at_any_moment_loses_nothing_from_mariadb_into_nats() {
    survives_kills_from(mysql::Version::MariaDb1011, Kind::Nats);
}
