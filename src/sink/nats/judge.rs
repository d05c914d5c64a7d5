//! Whose duplicate it is, when a stream says that it has a row already.
//!
//! A stream drops a publish whose `Nats-Msg-Id` it remembers and acknowledges it all the same,
//! with `duplicate: true`. For a repeat that is what the id is for. For another row that has come
//! to the same identity (a copied or restored database, equal server ids) it is a loss. The ack
//! names the message that the stream holds, so the two are compared:
//!
//! ```text
//! duplicate of 17 ─ read 17 ─ the same row ───────────────────────────▶ confirmed
//!                     │  └─── another row ─────────────────────────────▶ foreign
//!                     └ gone, or may not be read ─ may be a repeat ────▶ confirmed
//!                                                └ cannot be one ──────▶ foreign
//! ```
//!
//! A repeat is possible for a row whose earlier attempt here is unknown, and for any row within
//! the stream's `duplicate_window` after the first delivery of this process: before it, another
//! process may have sent it, and later the stream has forgotten what that one sent.
//!
//! Pure, but for the log line.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::identity::RowIdentity;

/// Rows whose fate is unknown that are remembered; more than a ledger holds.
const UNKNOWN_MAX: usize = 100_000;
/// At most so often a line tells of foreign duplicates.
const LINES_EVERY: Duration = Duration::from_secs(10);

/// What this process remembers of its own attempts.
#[derive(Debug, Default)]
pub(super) struct Judge {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    first_delivery: Option<Instant>,
    unknown: HashSet<RowIdentity>,
    /// Foreign duplicates, and those of them that a line has told of.
    foreign: u64,
    told: u64,
    told_at: Option<Instant>,
    /// Of the last foreign one.
    stream: String,
}

impl Judge {
    /// Notes that rows are about to be sent.
    pub(super) fn begins(&self, now: Instant) {
        self.memory().first_delivery.get_or_insert(now);
    }

    /// Notes rows that may have been stored without an ack.
    pub(super) fn unknown(&self, rows: impl Iterator<Item = RowIdentity>) {
        let mut memory = self.memory();
        if memory.unknown.len() >= UNKNOWN_MAX {
            memory.unknown.clear();
        }
        memory.unknown.extend(rows);
    }

    /// Notes rows that are confirmed, and so never come again.
    pub(super) fn confirmed(&self, rows: impl Iterator<Item = RowIdentity>) {
        let mut memory = self.memory();
        if !memory.unknown.is_empty() {
            for row in rows {
                memory.unknown.remove(&row);
            }
        }
    }

    /// Whether an earlier attempt at this row may have been stored.
    pub(super) fn may_repeat(&self, row: RowIdentity, window: Duration, now: Instant) -> bool {
        let memory = self.memory();
        let first = memory.first_delivery.unwrap_or(now);
        memory.unknown.contains(&row) || now.saturating_duration_since(first) <= window
    }

    /// Notes a row that the stream took for another's repeat, and says so now and then.
    pub(super) fn foreign(&self, stream: &str, now: Instant) {
        let mut memory = self.memory();
        memory.foreign += 1;
        stream.clone_into(&mut memory.stream);
        let quiet =
            memory.told_at.is_none_or(|at| now.saturating_duration_since(at) >= LINES_EVERY);
        if quiet {
            memory.told_at = Some(now);
            tell(&mut memory);
        }
    }

    /// Tells of those that no line has told of yet.
    pub(super) fn close(&self) {
        let mut memory = self.memory();
        if memory.foreign > memory.told {
            tell(&mut memory);
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(memory: &mut Memory) {
    memory.told = memory.foreign;
    tracing::warn!(
        stream = memory.stream,
        duplicates = memory.foreign,
        "the stream dropped rows as duplicates of other rows with the same identity: it would have \
         lost them. Two sources publish with equal identities: a copied or restored database, or \
         MariaDB servers of one server_id. walpost stores these rows under a message id of their \
         own (or stops, with on_foreign_duplicate = \"stop\"); consumers that drop repeats by \
         walpost-identity lose them still"
    );
}

/// What is compared of two messages.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) subject: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) payload: &'a Bytes,
}

impl Content<'_> {
    /// Whether both are the same row: subject, payload, and all headers but those that steer the
    /// server. A stream that transforms subjects holds another subject.
    pub(super) fn is_same(&self, stored: &Content<'_>, transformed: bool) -> bool {
        (transformed || self.subject == stored.subject)
            && self.payload == stored.payload
            && lines(self.headers) == lines(stored.headers)
    }

    /// A message id that only the same content comes to, for a row whose identity is taken.
    pub(super) fn id(&self, identity: &str) -> String {
        // FNV-1a, spelt out since repeats must come to the same id in every version.
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
        let mut hash = BASIS;
        let mut add = |bytes: &[u8]| {
            let length = (bytes.len() as u64).to_be_bytes();
            for byte in length.iter().chain(bytes) {
                hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
            }
        };
        add(self.subject.as_bytes());
        for (name, value) in lines(self.headers) {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        add(self.payload);
        format!("{identity}.{hash:032x}")
    }
}

/// Headers of the row itself, in an order of their own.
fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for (name, values) in headers.iter() {
        let name = name.to_string();
        if !name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")) {
            let own = values.iter().map(|value| (name.clone(), value.as_str().to_owned()));
            lines.extend(own);
        }
    }
    lines.sort();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Fingerprint, LogId};

    const WINDOW: Duration = Duration::from_secs(120);

    fn row(number: u64) -> RowIdentity {
        RowIdentity { log: LogId(1), transaction: number, ordinal: 0, fingerprint: Fingerprint(0) }
    }

    #[test]
    fn a_repeat_is_possible_after_a_start_and_after_an_unknown_attempt_and_never_else() {
        let judge = Judge::default();
        let start = Instant::now();
        judge.begins(start);
        judge.begins(start + WINDOW);
        assert!(judge.may_repeat(row(1), WINDOW, start + WINDOW));
        let later = start + WINDOW + Duration::from_secs(1);
        assert!(!judge.may_repeat(row(1), WINDOW, later));
        judge.unknown([row(1), row(2)].into_iter());
        assert!(judge.may_repeat(row(1), WINDOW, later));
        judge.confirmed([row(1)].into_iter());
        assert!(!judge.may_repeat(row(1), WINDOW, later));
        assert!(judge.may_repeat(row(2), WINDOW, later));
    }

    #[test]
    fn the_same_row_is_told_from_another_by_any_part_of_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("Nats-Msg-Id", "1:2:3"), ("id", "7"), ("trace", "a"), ("trace", "b")]
        {
            headers.append(name, value);
        }
        let (payload, other) = (Bytes::from_static(b"{}"), Bytes::from_static(b"{ }"));
        let row = Content { subject: "orders", headers: &headers, payload: &payload };
        let changed = |name: &str, value: &str| {
            let mut headers = headers.clone();
            headers.insert(name, value);
            headers
        };
        assert!(row.is_same(&row, false));
        let stored = changed("Nats-Msg-Id", "other");
        assert!(row.is_same(&Content { headers: &stored, ..row }, false));
        for stored in [changed("id", "8"), changed("trace", "a"), changed("more", "a")] {
            assert!(!row.is_same(&Content { headers: &stored, ..row }, false));
        }
        assert!(!row.is_same(&Content { payload: &other, ..row }, false));
        let moved = Content { subject: "shop.orders", ..row };
        assert!(!row.is_same(&moved, false));
        assert!(row.is_same(&moved, true));
    }

    #[test]
    fn the_id_of_a_content_is_that_of_the_same_content_only() {
        let mut headers = HeaderMap::new();
        headers.append("id", "7");
        let (payload, other) = (Bytes::from_static(b"{}"), Bytes::from_static(b"{ }"));
        let row = Content { subject: "orders", headers: &headers, payload: &payload };
        let id = row.id("1:2:3");
        assert!(id.starts_with("1:2:3."), "{id}");
        assert_ne!(id, Content { subject: "orders.b", ..row }.id("1:2:3"));
        assert_ne!(id, Content { payload: &other, ..row }.id("1:2:3"));
        headers.append("Nats-Msg-Id", "1:2:3");
        assert_eq!(
            id,
            Content { subject: "orders", headers: &headers, payload: &payload }.id("1:2:3")
        );
    }
}
