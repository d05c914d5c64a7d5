//! A lane: one batch in the air, order per key, retry with backoff.
//!
//! A lane gathers what came while it was busy, delivers it, and goes by the verdicts: confirmed
//! rows give their tickets back, the others go again in their order. It knows no position and no
//! broker type. Nothing here waits for the relay: both its queues can hold whatever the ledger
//! holds. The one thing outside that it asks before each delivery is the fence: a relay that may
//! not hold its source any more delivers nothing.

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
use crate::sink::{Limits, Sink, Verdict};

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
pub(crate) struct Trouble {
    pub(crate) kind: FailureKind,
    pub(crate) reason: String,
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
}

/// A batch in the air: `domains[i]` and `rows[i]` belong to `messages[i]`.
#[derive(Default)]
struct Flight {
    messages: Vec<Message>,
    rows: Vec<(Domain, Ticket, Option<Instant>)>,
}

impl Lane {
    /// Works until the inbox is closed and everything in it is confirmed, until `halt`, or until
    /// a message or the sink is beyond help.
    pub(crate) async fn run(mut self) {
        let mut queue = Queue::new();
        let mut attempts = 0;
        let mut retry_at = None;
        let mut open = true;
        let mut hot = HotKey::default();
        loop {
            while let Ok(envelopes) = self.inbox.try_recv() {
                fill(&mut queue, envelopes);
            }
            if self.halt.is_called() {
                return;
            }
            if retry_at.is_some_and(|at| at <= Instant::now()) {
                retry_at = None;
                queue.release();
            }
            let fenced = queue.has_ready() && !self.fence.is_up();
            if queue.has_ready() && !fenced {
                let flight = self.take(&mut queue);
                hot.observe(&self.rules, flight.messages.len(), queue.len());
                let results = self.sink.deliver(&flight.messages).await;
                let Some(failed) = self.settle(&mut queue, flight, results) else { return };
                if failed {
                    attempts += 1;
                    retry_at
                        .get_or_insert_with(|| Instant::now() + self.rules.backoff.after(attempts));
                } else if !queue.has_held() {
                    attempts = 0;
                }
                continue;
            }
            if !open && queue.is_idle() {
                return;
            }
            // A halt first: nothing else matters after it. Then new rows: they may be of other keys
            // than those that are held.
            tokio::select! {
                biased;
                () = self.halt.called() => return,
                envelopes = self.inbox.recv(), if open => match envelopes {
                    Some(envelopes) => fill(&mut queue, envelopes),
                    None => open = false,
                },
                () = sleep_until(retry_at), if retry_at.is_some() => {}
                () = self.fence.raised(), if fenced => {}
            }
        }
    }

    fn take(&self, queue: &mut Queue<Waiting>) -> Flight {
        let limits = self.rules.limits;
        let bounds = BatchBounds {
            items_max: limits.batch_messages_max,
            bytes_max: limits.batch_bytes_max,
            chains: limits.keeps_key_order || self.rules.pipeline_keys,
        };
        let mut flight = Flight::default();
        queue.take(
            bounds,
            |waiting| waiting.message.size_bytes(),
            |domain, waiting| {
                flight.messages.push(waiting.message);
                flight.rows.push((domain, waiting.ticket, waiting.absent_since));
            },
        );
        flight
    }

    /// Goes by the verdicts. `Some(true)` when something goes again, `None` when the lane is over.
    fn settle(
        &self,
        queue: &mut Queue<Waiting>,
        flight: Flight,
        results: Result<Vec<Verdict>, Failure>,
    ) -> Option<bool> {
        let verdicts = match results {
            Ok(verdicts) => verdicts,
            Err(failure) if failure.kind() == FailureKind::Definite => {
                self.tell(Outcome::Failed(failure));
                return None;
            }
            Err(failure) => {
                self.trouble(failure.kind(), failure.to_string());
                vec![Verdict::Unknown("".into()); flight.messages.len()]
            }
        };
        assert_eq!(verdicts.len(), flight.messages.len(), "a sink gives one verdict a message");
        let now = Instant::now();
        let mut settled = Vec::with_capacity(flight.rows.len());
        let mut again: Vec<Waiting> = Vec::new();
        let mut failed = false;
        let mut over = None;
        let mut rows = flight.rows.into_iter().zip(flight.messages).zip(verdicts).peekable();
        while let Some((((domain, ticket, absent), message), verdict)) = rows.next() {
            match verdict {
                Verdict::Confirmed => settled.push(ticket),
                Verdict::Unknown(reason) => {
                    self.trouble(FailureKind::Transient, reason.into_owned());
                    again.push(Waiting { ticket, message, absent_since: None });
                }
                Verdict::Absent(reason) => {
                    let since = absent.unwrap_or(now);
                    if now - since >= self.rules.topic_wait {
                        over.get_or_insert((message.identity, reason));
                    } else {
                        self.trouble(FailureKind::Transient, reason);
                        again.push(Waiting { ticket, message, absent_since: Some(since) });
                    }
                }
                Verdict::Rejected(reason) => {
                    over.get_or_insert((message.identity, reason));
                }
            }
            // Rows of one domain stand together: the domain is back with its last row.
            if rows.peek().is_none_or(|(((next, ..), _), _)| *next != domain) {
                failed |= !again.is_empty();
                queue.finish(domain, again.drain(..));
            }
        }
        if !settled.is_empty() {
            self.tell(Outcome::Settled(settled));
        }
        if let Some((identity, reason)) = over {
            self.tell(Outcome::Rejected { identity, reason });
            return None;
        }
        Some(failed)
    }

    /// For the log; of many at once the first ones say it all, and the rest is dropped. The reason
    /// is empty where the whole batch had one, which was told already.
    fn trouble(&self, kind: FailureKind, reason: String) {
        if !reason.is_empty() {
            drop(self.troubles.try_send(Trouble { kind, reason }));
        }
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
        if rules.limits.keeps_key_order || rules.pipeline_keys || batch > 1 || waiting < 100 {
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
