//! A lane: a batch in the air, order per key, retry with backoff.
//!
//! A lane gathers what came while it was busy, delivers it, and goes by the verdicts, each as it
//! comes: confirmed rows give their tickets back, the others go again in their order. A batch that
//! stays in the air for long (a destination that takes nothing) gets others beside it: of each
//! order domain only one has rows, so nothing overtakes. It knows no position and no broker type. Nothing here waits for the relay: both its queues can hold whatever the ledger
//! holds. The one thing outside that it asks before each delivery is the fence: a relay that may
//! not hold its source any more delivers nothing.

mod flight;
mod gate;
mod halt;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::failure::{Failure, FailureKind};
use crate::fence::Fence;
use crate::identity::RowIdentity;
use crate::ledger::Ticket;
use crate::message::Message;
use crate::sink::{Limits, Ordering, Sink, Told, Verdict};

use flight::{Flight, Flights, Landing};
pub(crate) use gate::Gate;
pub(crate) use halt::Halt;
pub(crate) use queue::Domain;
use queue::{BatchBounds, Queue};

/// A message on its way through a lane, with the right to settle its row.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) ticket: Ticket,
    pub(crate) domain: Domain,
    pub(crate) message: Message,
}

/// What a lane tells the relay.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The broker confirmed these rows.
    Settled(Vec<Ticket>),
    /// The broker will never take this message. The lane has ended; the ticket is gone with it, so
    /// the position stays before the row.
    Rejected { identity: RowIdentity, reason: String },
    /// The sink cannot ever work as it is. The lane has ended.
    Failed(Failure),
}

/// Something did not arrive and is retried.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The sink as a whole.
    Sink { kind: FailureKind, reason: String },
    /// Some rows, while others may go on.
    Rows { reason: String },
}

/// How a lane works; equal for all lanes of a relay.
#[derive(Debug, Clone)]
pub(crate) struct LaneRules {
    pub(crate) limits: Limits,
    /// Several rows of a key in one batch although the broker does not keep their order.
    pub(crate) pipeline_keys: bool,
    pub(crate) topic_wait: Duration,
    pub(crate) backoff: Backoff,
}

/// Waiting times between attempts: doubled from `first` to `max`, less a random part of up to a
/// half, so that lanes and relays that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Longest wait before the second attempt.
    pub first: Duration,
    /// Longest wait of all.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `attempts` failed ones, counted from 1.
    pub fn after(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(20);
        let longest = self.first.saturating_mul(1 << doublings).min(self.max);
        longest.mul_f64(1.0 - fastrand::f64() / 2.0)
    }
}

/// What waits in the queue.
struct Waiting {
    ticket: Ticket,
    message: Message,
    /// Since when its destination is known to be missing.
    absent_since: Option<Instant>,
}

/// One lane; see the module.
pub(crate) struct Lane {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) rules: LaneRules,
    pub(crate) inbox: mpsc::Receiver<Vec<Envelope>>,
    /// Has room for one message a ticket and one a lane, so that no lane ever waits for the relay.
    pub(crate) outcomes: mpsc::Sender<Outcome>,
    pub(crate) troubles: mpsc::Sender<Trouble>,
    /// Called when the relay stops for an error: nothing more is sent.
    pub(crate) halt: Halt,
    /// While it is down nothing is delivered.
    pub(crate) fence: Fence,
    /// While it is closed one lane tries for all.
    pub(crate) gate: Gate,
}

/// When rows that failed go again.
#[derive(Default)]
struct Retry {
    attempts: u32,
    at: Option<Instant>,
}

impl Retry {
    fn observe(&mut self, failed: bool, has_held: bool, backoff: Backoff) {
        if failed {
            self.attempts = self.attempts.saturating_add(1);
            self.at.get_or_insert_with(|| Instant::now() + backoff.after(self.attempts));
        } else if !has_held {
            self.attempts = 0;
        }
    }
}

/// What becomes of a row.
enum Judged {
    Settled,
    /// Retried; with the time since when its destination is known to be missing.
    Again(Option<Instant>),
    /// Never to be taken.
    Refused(String),
}

/// What keeps rows that are ready from being sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Nothing,
    /// So many are in the air as may be.
    Full,
    Fence,
    /// The sink fails as a whole; it may be tried again then.
    Gate(Instant),
}

impl Lane {
    /// Works until the inbox is closed and everything in it is confirmed, until `halt`, or until
    /// a message or the sink is beyond help. What is in the air then is waited for.
    pub(crate) async fn run(mut self) {
        let mut queue = Queue::new();
        let mut flights = Flights::default();
        let mut retry = Retry::default();
        let mut open = true;
        let mut over = false;
        let mut hot = HotKey::default();
        loop {
            over |= self.halt.is_called();
            if flights.is_empty() && (over || !open && queue.is_idle()) {
                return;
            }
            let now = Instant::now();
            let room_at = flights.room_at(now, self.rules.limits.stuck_after);
            // What comes while a batch is young stays in the inbox: to look costs a wake each.
            let has_room = !over && room_at.is_some_and(|at| at <= now);
            while has_room && let Ok(envelopes) = self.inbox.try_recv() {
                fill(&mut queue, envelopes);
            }
            if retry.at.is_some_and(|at| at <= now) {
                retry.at = None;
                queue.release();
            }
            let is_ready = has_room && queue.has_ready();
            let hold = if is_ready { self.hold(&flights) } else { Hold::Nothing };
            if is_ready && hold == Hold::Nothing {
                let flight = self.take(&mut queue, &flights);
                hot.observe(&self.rules, flight.messages.len(), queue.len());
                flights.launch(&self.sink, flight);
                continue;
            }
            let pass_at = if let Hold::Gate(at) = hold { Some(at) } else { None };
            let room_at = room_at.filter(|_| !has_room);
            let wake_at = [retry.at, room_at, pass_at].into_iter().flatten().min();
            // A halt first: nothing else matters after it. Then verdicts, which make room. Then new
            // rows: they may be of other keys than those that are held. The rest can wait for a
            // moment in which nothing of that is ready.
            tokio::select! {
                biased;
                () = self.halt.called(), if !over => {}
                Some(landing) = flights.next() => {
                    let failed = self.settle(&mut queue, &mut flights, landing, &mut over);
                    retry.observe(failed, queue.has_held(), self.rules.backoff);
                }
                envelopes = self.inbox.recv(), if open && has_room => match envelopes {
                    Some(envelopes) => fill(&mut queue, envelopes),
                    None => open = false,
                },
                () = self.gate.opened(), if pass_at.is_some() => {}
                () = sleep_until(wake_at), if wake_at.is_some() && !over => {}
                () = self.fence.raised(), if hold == Hold::Fence => {}
            }
        }
    }

    /// Looked at once a batch that is ready. The gate last: who passes it is expected to go.
    fn hold(&self, flights: &Flights) -> Hold {
        let (rows, bytes) = flights.load();
        let limits = &self.rules.limits;
        if rows >= limits.batch_messages_max || bytes >= limits.batch_bytes_max {
            return Hold::Full;
        }
        if !self.fence.is_up() {
            return Hold::Fence;
        }
        self.gate.enter().map_or_else(Hold::Gate, |()| Hold::Nothing)
    }

    fn take(&self, queue: &mut Queue<Waiting>, flights: &Flights) -> Flight {
        let limits = self.rules.limits;
        let (rows, bytes) = flights.load();
        let bounds = BatchBounds {
            items_max: limits.batch_messages_max - rows,
            bytes_max: limits.batch_bytes_max - bytes,
        };
        let mut flight = Flight::default();
        queue.take(
            bounds,
            |waiting| waiting.message.size_bytes(),
            |earlier, later| {
                self.rules.pipeline_keys || self.sink.keeps_order(&earlier.message, &later.message)
            },
            |domain, waiting| flight.push(domain, waiting),
        );
        flight
    }

    /// Goes by the verdicts and the end of a delivery. Whether rows go again after a pause.
    fn settle(
        &self,
        queue: &mut Queue<Waiting>,
        flights: &mut Flights,
        landing: Landing,
        over: &mut bool,
    ) -> bool {
        let flight = flights.get(landing.flight);
        let Told { confirmed, others, waiting } = landing.told;
        let mut answered = !confirmed.is_empty();
        let mut failed = false;
        let mut settled = Vec::with_capacity(confirmed.len());
        for row in confirmed {
            settled.push(flight.confirm(row));
            failed |= flight.finish(row, queue, true);
        }
        let mut refused = None;
        for (row, verdict) in others {
            answered |= !matches!(verdict, Verdict::Unknown(_));
            match self.judge(verdict, flight.absent_since(row)) {
                Judged::Settled => settled.push(flight.confirm(row)),
                Judged::Again(absent_since) => flight.keep(row, absent_since),
                Judged::Refused(reason) => {
                    refused.get_or_insert((flight.message(row).identity, reason));
                    flight.keep(row, None);
                }
            }
            failed |= flight.finish(row, queue, true);
        }
        if let Some(reason) = waiting {
            self.report(Trouble::Rows { reason });
        }
        if answered {
            self.gate.works();
        }
        if !settled.is_empty() {
            self.tell(Outcome::Settled(settled));
        }
        if let Some((identity, reason)) = refused {
            self.tell(Outcome::Rejected { identity, reason });
            *over = true;
        }
        match landing.end {
            None => return failed,
            Some(Ok(())) => {}
            Some(Err(failure)) => self.failed(queue, flight, failure, over),
        }
        flights.remove(landing.flight);
        failed
    }

    /// What a verdict that is no plain confirm leads to.
    fn judge(&self, verdict: Verdict, absent_since: Option<Instant>) -> Judged {
        match verdict {
            Verdict::Confirmed => Judged::Settled,
            Verdict::Unknown(reason) => {
                self.report(Trouble::Rows { reason: reason.into_owned() });
                Judged::Again(None)
            }
            Verdict::Absent(reason) => {
                let since = absent_since.unwrap_or_else(Instant::now);
                if since.elapsed() >= self.rules.topic_wait {
                    return Judged::Refused(reason);
                }
                self.report(Trouble::Rows { reason });
                Judged::Again(Some(since))
            }
            Verdict::Rejected(reason) => Judged::Refused(reason),
        }
    }

    /// The sink as a whole failed: rows without a verdict are ready again, and the gate holds them.
    fn failed(
        &self,
        queue: &mut Queue<Waiting>,
        flight: &mut flight::Airborne,
        failure: Failure,
        over: &mut bool,
    ) {
        self.gate.failed(flight.launched);
        for row in flight.unjudged() {
            flight.keep(row, None);
            flight.finish(row, queue, false);
        }
        if failure.kind() == FailureKind::Definite {
            self.tell(Outcome::Failed(failure));
            *over = true;
        } else {
            let (kind, reason) = (failure.kind(), failure.to_string());
            self.report(Trouble::Sink { kind, reason });
        }
    }

    /// For the log; of many at once the first ones say it all, and the rest is dropped.
    fn report(&self, trouble: Trouble) {
        drop(self.troubles.try_send(trouble));
    }

    /// Never waits: the channel has room for every ticket of the ledger and every lane's end. Fails
    /// only when the relay has gone, and then nobody waits for it.
    fn tell(&self, outcome: Outcome) {
        match self.outcomes.try_send(outcome) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                panic!("the outcome channel holds one message a ticket and is never full")
            }
        }
    }
}

fn fill(queue: &mut Queue<Waiting>, envelopes: Vec<Envelope>) {
    for Envelope { ticket, domain, message } in envelopes {
        queue.push(domain, Waiting { ticket, message, absent_since: None });
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Notices when one key is what holds a lane back, and says what to do about it.
#[derive(Default)]
struct HotKey {
    lonely_batches: u32,
    said_at: Option<Instant>,
}

impl HotKey {
    /// Batches of one message in a row, with a queue behind them, that are worth a line.
    const LONELY_BATCHES: u32 = 100;
    const QUIET: Duration = Duration::from_secs(60);

    fn observe(&mut self, rules: &LaneRules, batch: usize, waiting: usize) {
        let is_ordered = rules.limits.ordering != Ordering::Nothing || rules.pipeline_keys;
        if is_ordered || batch > 1 || waiting < 100 {
            self.lonely_batches = 0;
            return;
        }
        self.lonely_batches += 1;
        let quiet = self.said_at.is_none_or(|at| at.elapsed() >= Self::QUIET);
        if self.lonely_batches >= Self::LONELY_BATCHES && quiet {
            self.said_at = Some(Instant::now());
            tracing::info!(
                waiting,
                "one hot key holds a lane back: this broker keeps a key's order only with one \
                 message of it in flight; pipeline_keys = true trades that order for speed"
            );
        }
    }
}

#[cfg(test)]
mod tests;
