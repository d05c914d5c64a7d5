//! The judge: joins what was written with what the broker holds.
//!
//! Owns the invariants I1 (loss), I2 (phantoms), I3 (order), I5 (confirmed position), I6
//! (duplicates), I7 (memory) and I11 (fidelity). Knows no broker: each one's `read_back` is
//! turned into [`Published`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Deserialize;

use super::ledger::{Ledger, Outcome, WrittenRow, hash};

/// Violations of one kind that a report prints.
const SHOWN_MAX: usize = 5;

/// A message as the broker holds it.
#[derive(Debug, Clone)]
pub struct Published {
    /// Partition, queue or stream: positions are comparable within one.
    pub stream: String,
    pub position: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What the broker held at a moment: messages per stream, as the next position of each.
pub type Mark = BTreeMap<String, u64>;

/// The mark of all that was read back: a restart's place among the messages.
pub fn mark(published: &[Published]) -> Mark {
    let mut mark = Mark::new();
    for message in published {
        let next = mark.entry(message.stream.clone()).or_default();
        *next = (*next).max(message.position + 1);
    }
    mark
}

/// What the broker held when a position was sampled.
enum Sample {
    Rows(HashSet<u64>),
    Until(Mark),
}

/// Members of the payload that tell rows apart.
#[derive(Deserialize)]
struct Payload {
    key: String,
    seq: u64,
    row: u64,
}

fn payload(message: &Published) -> Option<Payload> {
    serde_json::from_slice(message.value.as_deref()?).ok()
}

/// The number of a message's row, where a writer wrote it.
pub fn row_of(message: &Published) -> Option<u64> {
    payload(message).map(|payload| payload.row)
}

/// Which invariant does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// I1: a committed row is not published.
    Loss,
    /// I2: a rolled-back row, or one that nobody wrote, is published.
    Phantom,
    /// I3: first publications of a key are not in commit order, or in several streams.
    Order,
    /// I5: a row was confirmed to the database that the broker did not hold.
    ConfirmedUnpublished,
    /// I6: more duplicates than allowed.
    Duplicates,
    /// I7: more memory than allowed.
    Memory,
    /// I11: payload, key or header differs from what was written.
    Fidelity,
}

/// Evidence for the judge, and what it shall tolerate. By default any number of duplicates.
pub struct Judge<'a> {
    ledger: &'a Ledger,
    published: Vec<Published>,
    samples: Vec<(u64, Sample)>,
    restarts: Vec<Mark>,
    duplicates_max: Option<usize>,
    duplicates_per_restart_max: Option<usize>,
    memory: Option<(u64, u64)>,
    headers: bool,
}

impl<'a> Judge<'a> {
    /// `published` is everything that the broker holds after all is quiet, in any order.
    pub fn new(ledger: &'a Ledger, published: Vec<Published>) -> Judge<'a> {
        Judge {
            ledger,
            published,
            samples: Vec::new(),
            restarts: Vec::new(),
            duplicates_max: None,
            duplicates_per_restart_max: None,
            memory: None,
            headers: true,
        }
    }

    /// A sample for I5: the relay's confirmed position, read BEFORE the broker was read to its
    /// end (any later read may hold rows that were confirmed after the sample).
    pub fn confirmed(mut self, position: u64, published: &[Published]) -> Judge<'a> {
        let held = published.iter().filter_map(payload).map(|payload| payload.row).collect();
        self.samples.push((position, Sample::Rows(held)));
        self
    }

    /// As [`Judge::confirmed`], where what the broker held is all below a [`mark`] of what it
    /// holds now.
    pub fn confirmed_at(mut self, position: u64, mark: Mark) -> Judge<'a> {
        self.samples.push((position, Sample::Until(mark)));
        self
    }

    /// A restart of the relay, at what the broker held between the old run's end and the new
    /// one's start; in the order of time.
    pub fn restart(mut self, mark: Mark) -> Judge<'a> {
        self.restarts.push(mark);
        self
    }

    /// Bounds the duplicates of the whole test: 0 after clean stops only.
    pub fn duplicates_max(mut self, count: usize) -> Judge<'a> {
        self.duplicates_max = Some(count);
        self
    }

    /// Bounds the duplicates between one restart and the next.
    pub fn duplicates_per_restart_max(mut self, count: usize) -> Judge<'a> {
        self.duplicates_per_restart_max = Some(count);
        self
    }

    /// Bounds the peak resident memory, such as `Relay::peak_rss_bytes`.
    pub fn peak_rss(mut self, bytes: u64, bytes_max: u64) -> Judge<'a> {
        self.memory = Some((bytes, bytes_max));
        self
    }

    /// Leaves the headers `id` and `type` out of I11, for a broker that keeps none.
    pub fn without_headers(mut self) -> Judge<'a> {
        self.headers = false;
        self
    }

    /// Weighs everything.
    pub fn judge(mut self) -> Report {
        let mut report = Report::default();
        let rows = self.ledger.rows();
        let truth: HashMap<u64, (&WrittenRow, Outcome)> =
            rows.iter().map(|(row, outcome)| (row.row, (row, *outcome))).collect();
        self.published.sort_by(|one, other| {
            (&one.stream, one.position).cmp(&(&other.stream, other.position))
        });
        report.published = self.published.len();
        for (_, outcome) in &rows {
            match outcome {
                Outcome::Committed { .. } => report.committed += 1,
                Outcome::RolledBack => report.rolled_back += 1,
                Outcome::Open | Outcome::Unknown { .. } => report.unknown += 1,
            }
        }
        let firsts = self.weigh_messages(&truth, &mut report);
        self.weigh_order(&firsts, &mut report);
        let held: HashSet<u64> = firsts.iter().map(|first| first.row).collect();
        for (row, outcome) in &rows {
            if matches!(outcome, Outcome::Committed { .. }) && !held.contains(&row.row) {
                report.add(Kind::Loss, format!("{} {outcome:?}", describe(row)));
            }
        }
        self.weigh_samples(&rows, &firsts, &mut report);
        self.weigh_bounds(&mut report);
        report
    }

    /// I2 and I11 of every message; counts duplicates. The answer is the first publications.
    fn weigh_messages(
        &self,
        truth: &HashMap<u64, (&WrittenRow, Outcome)>,
        report: &mut Report,
    ) -> Vec<First> {
        let mut seen = HashSet::new();
        let mut firsts: Vec<First> = Vec::new();
        report.duplicates_after_restart = vec![0; self.restarts.len()];
        for message in &self.published {
            let Some(payload) = payload(message) else {
                report.add(Kind::Phantom, format!("not a writer's payload: {}", show(message)));
                continue;
            };
            let Some(&(row, outcome)) = truth.get(&payload.row) else {
                report.add(Kind::Phantom, format!("nobody wrote it: {}", show(message)));
                continue;
            };
            if outcome == Outcome::RolledBack {
                let detail = format!("rolled back: {} as {}", describe(row), show(message));
                report.add(Kind::Phantom, detail);
            }
            for difference in self.differences(row, message) {
                let detail = format!("{difference}: {} as {}", describe(row), show(message));
                report.add(Kind::Fidelity, detail);
            }
            if seen.insert(payload.row) {
                firsts.push(First {
                    row: payload.row,
                    // The writer's word, not the message's: a wrong key is I11.
                    key: row.key.clone(),
                    seq: row.seq,
                    stream: message.stream.clone(),
                    position: message.position,
                });
                continue;
            }
            report.duplicates += 1;
            let after =
                |mark: &Mark| message.position >= mark.get(&message.stream).copied().unwrap_or(0);
            if let Some(restart) = self.restarts.iter().rposition(after) {
                report.duplicates_after_restart[restart] += 1;
            }
        }
        firsts
    }

    fn differences(&self, row: &WrittenRow, message: &Published) -> Vec<&'static str> {
        let mut found = Vec::new();
        let payload = payload(message).expect("the caller parsed it");
        if hash(message.value.as_deref().unwrap_or_default()) != row.payload_hash {
            found.push("payload differs");
        }
        if payload.key != row.key || payload.seq != row.seq {
            found.push("payload is another row's");
        }
        if message.key.as_deref() != Some(row.key.as_bytes()) {
            found.push("key differs");
        }
        if self.headers && header(message, "id") != Some(row.id.as_bytes()) {
            found.push("header id differs");
        }
        if self.headers && header(message, "type") != Some(row.event_type.as_bytes()) {
            found.push("header type differs");
        }
        found
    }

    /// I3. `firsts` come in the order of their streams, and of positions within one.
    fn weigh_order(&self, firsts: &[First], report: &mut Report) {
        let mut last: HashMap<&str, &First> = HashMap::new();
        for first in firsts {
            let Some(before) = last.insert(&first.key, first) else { continue };
            let place =
                |first: &First| format!("seq {} at {}/{}", first.seq, first.stream, first.position);
            let detail = format!("key {}: {} then {}", first.key, place(before), place(first));
            if before.stream != first.stream {
                report.add(Kind::Order, format!("several streams hold {detail}"));
            } else if before.seq >= first.seq {
                report.add(Kind::Order, detail);
            }
        }
    }

    /// I5.
    fn weigh_samples(&self, rows: &[(WrittenRow, Outcome)], firsts: &[First], report: &mut Report) {
        report.samples = self.samples.len();
        let firsts: HashMap<u64, &First> = firsts.iter().map(|first| (first.row, first)).collect();
        let below = |mark: &Mark, row: &WrittenRow| {
            firsts.get(&row.row).is_some_and(|first| {
                mark.get(&first.stream).is_some_and(|next| first.position < *next)
            })
        };
        for (index, (confirmed, held)) in self.samples.iter().enumerate() {
            for (row, outcome) in rows {
                let Outcome::Committed { position_max } = *outcome else { continue };
                if position_max > *confirmed {
                    continue;
                }
                report.sampled_rows += 1;
                let is_held = match held {
                    Sample::Rows(held) => held.contains(&row.row),
                    Sample::Until(mark) => below(mark, row),
                };
                if !is_held {
                    let detail = format!(
                        "sample {index}: confirmed to {confirmed:#X}, {} committed by {position_max:#X}",
                        describe(row),
                    );
                    report.add(Kind::ConfirmedUnpublished, detail);
                }
            }
        }
    }

    /// I6 and I7.
    fn weigh_bounds(&self, report: &mut Report) {
        if let Some(max) = self.duplicates_max.filter(|&max| report.duplicates > max) {
            let detail = format!("{} in all, allowed {max}", report.duplicates);
            report.add(Kind::Duplicates, detail);
        }
        let per_restart = report.duplicates_after_restart.clone();
        for (restart, &count) in per_restart.iter().enumerate() {
            let max = self.duplicates_per_restart_max;
            if let Some(max) = max.filter(|&max| count > max) {
                let detail = format!("{count} after restart {restart}, allowed {max}");
                report.add(Kind::Duplicates, detail);
            }
        }
        if let Some((bytes, max)) = self.memory.filter(|(bytes, max)| bytes > max) {
            report.add(Kind::Memory, format!("peak {bytes} bytes, allowed {max}"));
        }
    }
}

/// Where a row was published first.
struct First {
    row: u64,
    key: String,
    seq: u64,
    stream: String,
    position: u64,
}

fn header<'a>(message: &'a Published, name: &str) -> Option<&'a [u8]> {
    let found = message.headers.iter().find(|(header, _)| header == name);
    found.map(|(_, value)| value.as_slice())
}

fn describe(row: &WrittenRow) -> String {
    let WrittenRow { row: number, transaction, key, seq, id, .. } = row;
    format!("row {number} (tx {transaction}, key {key}, seq {seq}, id {id})")
}

fn show(message: &Published) -> String {
    let text = |bytes: &Option<Vec<u8>>| {
        let text = String::from_utf8_lossy(bytes.as_deref().unwrap_or(b"NULL")).into_owned();
        text.chars().take(120).collect::<String>()
    };
    let Published { stream, position, key, value, headers } = message;
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    format!("{stream}/{position} key {} headers {names:?} value {}", text(key), text(value))
}

/// The verdict. Printed it shows all counts and the first violations of each kind.
#[derive(Debug, Default)]
pub struct Report {
    pub committed: usize,
    pub rolled_back: usize,
    /// Rows whose outcome nobody settled: they may be published or not.
    pub unknown: usize,
    pub published: usize,
    /// Messages beyond the first of their row.
    pub duplicates: usize,
    /// Those after each restart and before the next.
    pub duplicates_after_restart: Vec<usize>,
    pub samples: usize,
    /// Rows that the samples bound: 0 means that I5 was not really tried.
    pub sampled_rows: usize,
    violations: BTreeMap<Kind, Vec<String>>,
}

impl Report {
    fn add(&mut self, kind: Kind, detail: String) {
        self.violations.entry(kind).or_default().push(detail);
    }

    /// How often an invariant is violated.
    pub fn count(&self, kind: Kind) -> usize {
        self.violations.get(&kind).map_or(0, Vec::len)
    }

    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Panics with the report when an invariant is violated, when no committed row was there to
    /// be lost, or when outcomes were left unknown.
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
        assert!(self.committed > 0, "nothing was committed, so nothing was judged\n{self}");
        assert!(self.unknown == 0, "settle the unknown outcomes first\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "rows: {} committed, {} rolled back, {} unknown; messages: {}, duplicates {}",
            self.committed, self.rolled_back, self.unknown, self.published, self.duplicates
        )?;
        writeln!(
            formatter,
            "duplicates after each restart: {:?}; samples: {} over {} rows",
            self.duplicates_after_restart, self.samples, self.sampled_rows
        )?;
        for (kind, details) in &self.violations {
            writeln!(formatter, "{kind:?}: {}", details.len())?;
            for detail in details.iter().take(SHOWN_MAX) {
                writeln!(formatter, "  {detail}")?;
            }
        }
        Ok(())
    }
}
