//! What a relay says in its log while it works. At most one line a second about each edge, however
//! many lanes fail at once; never a payload or a key.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::RelayOptions;
use crate::encode::LeftOut;
use crate::failure::Failure;

/// Time between two lines about the same trouble.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Report {
    confirmed: u64,
    confirmed_before: u64,
    summary_at: Instant,
    stall_warned_at: Option<Instant>,
    sink_said_at: Option<Instant>,
    rows_said_at: Option<Instant>,
    /// When the source's trouble was last told, and which.
    source_said: Option<(Instant, String)>,
    /// Ages: (rows entered until then, when), oldest first. One entry a tick, so the oldest
    /// unsettled row's age is known to a second without a clock call a row.
    entered: VecDeque<(u64, Instant)>,
    entered_now: u64,
    /// Headers of rows that were left out, of all names.
    headers_left_out: u64,
    /// Their names that were told already.
    left_out_said: usize,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            confirmed: 0,
            confirmed_before: 0,
            summary_at: Instant::now(),
            stall_warned_at: None,
            sink_said_at: None,
            rows_said_at: None,
            source_said: None,
            entered: VecDeque::new(),
            entered_now: 0,
            headers_left_out: 0,
            left_out_said: 0,
        }
    }

    pub(super) fn entered(&mut self, rows: u64) {
        self.entered_now = rows;
    }

    /// One line for each name, when it is met first; then they are counted.
    pub(super) fn left_out(&mut self, left_out: &[LeftOut]) {
        self.headers_left_out = left_out.iter().map(|of| of.count).sum();
        for of in left_out.iter().skip(self.left_out_said) {
            tracing::warn!(
                header = &*of.name,
                "rows bring a header of a name that walpost writes itself: theirs is left out and \
                 counted (headers_left_out in the summary); {}",
                of.remedy()
            );
        }
        self.left_out_said = left_out.len();
    }

    pub(super) fn confirmed(&mut self, rows: usize) {
        self.confirmed += rows as u64;
    }

    pub(super) fn confirmed_rows(&self) -> u64 {
        self.confirmed
    }

    pub(super) fn recovered(&mut self, edge: &str, since: Instant) {
        tracing::info!(after_seconds = since.elapsed().as_secs(), "{edge} works again");
        self.sink_said_at = None;
        self.source_said = None;
    }

    /// As [`Report::sink_retry`], and each new reason at once.
    pub(super) fn source_retry(&mut self, failure: &Failure, attempts: u32) {
        let reason = failure.to_string();
        let said = self.source_said.as_ref();
        if said.is_some_and(|(at, said)| *said == reason && at.elapsed() < QUIET) {
            return;
        }
        tracing::warn!(attempts, "reading from the source is interrupted, retrying: {reason}");
        self.source_said = Some((Instant::now(), reason));
    }

    /// The first line at once, then one every [`QUIET`].
    pub(super) fn sink_retry(&mut self, reason: &str) {
        if self.sink_said_at.is_some_and(|at| at.elapsed() < QUIET) {
            return;
        }
        self.sink_said_at = Some(Instant::now());
        tracing::warn!("the sink does not confirm, retrying: {reason}");
    }

    /// Some rows wait, and others may go on: one line every [`QUIET`].
    pub(super) fn rows_retry(&mut self, reason: &str) {
        if self.rows_said_at.is_some_and(|at| at.elapsed() < QUIET) {
            return;
        }
        self.rows_said_at = Some(Instant::now());
        tracing::warn!("the sink does not confirm some rows, retrying: {reason}");
    }

    /// Once a second: the stall warning and the summary.
    pub(super) fn tick(
        &mut self,
        options: &RelayOptions,
        settled_prefix: u64,
        unsettled: usize,
        held_bytes: usize,
        behind_bytes: Option<u64>,
    ) {
        let now = Instant::now();
        while self.entered.front().is_some_and(|(rows, _)| *rows <= settled_prefix) {
            self.entered.pop_front();
        }
        if self.entered.back().map_or(settled_prefix, |(rows, _)| *rows) < self.entered_now {
            self.entered.push_back((self.entered_now, now));
        }
        let oldest = self.entered.front().map_or(Duration::ZERO, |(_, at)| now - *at);
        let warned = self.stall_warned_at.is_some_and(|at| now - at < options.stall_warning);
        if oldest >= options.stall_warning && !warned {
            self.stall_warned_at = Some(now);
            tracing::warn!(
                oldest_unsettled_seconds = oldest.as_secs(),
                unsettled,
                "rows wait without a confirm; the position waits with the oldest of them"
            );
        }
        if now - self.summary_at >= options.summary_interval {
            tracing::info!(
                confirmed = self.confirmed,
                confirmed_since_last = self.confirmed - self.confirmed_before,
                in_flight = unsettled,
                oldest_unsettled_seconds = oldest.as_secs(),
                held_bytes,
                behind_bytes,
                headers_left_out = (self.headers_left_out > 0).then_some(self.headers_left_out),
                "summary"
            );
            self.confirmed_before = self.confirmed;
            self.summary_at = now;
        }
    }

    pub(super) fn last(&self, unsettled: usize) {
        let headers_left_out = (self.headers_left_out > 0).then_some(self.headers_left_out);
        tracing::info!(confirmed = self.confirmed, unsettled, headers_left_out, "stopped");
    }
}
