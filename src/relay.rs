//! The one loop: source ▶ ledger ▶ route and encode ▶ lanes ▶ ledger ▶ acknowledge.
//!
//! Owns the wiring, the order of start and stop, and what an error leads to. It is the only caller
//! of [`Source::acknowledge`]. Knows no wire format and no broker type.
//!
//! ```text
//!  source.next ──▶ enter ──▶ encode ──▶ lane[hash(domain)] ──▶ sink.deliver
//!       ▲            │ ledger: the only bound                        │
//!  acknowledge ◀── advance ◀── settle ◀── Outcome::Settled ◀─────────┘
//! ```
//!
//! The ledger bounds the rows that are anywhere behind it, so each queue between relay and lanes
//! has room for all of them, and neither ever waits for the other.

mod edge;
mod report;
mod stop;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::encode::{EncodeError, Encoder};
use crate::failure::Failure;
use crate::fence::Fence;
use crate::identity::RowIdentity;
use crate::lane::{Backoff, Domain, Envelope, Gate, Halt, Lane, LaneRules, Outcome, Trouble};
use crate::ledger::Ledger;
use crate::message::Message;
use crate::sink::{Limits, Sink};
use crate::source::{Change, Source};

use edge::{Action, Edge};
use report::Report;
use stop::Phase;

/// Which rows keep their order among themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Rows of one key; rows without a key promise no order. The default.
    Key,
    /// Rows of one topic.
    Destination,
    /// All rows: one lane.
    All,
}

/// How a relay works.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Lanes that deliver side by side; the sink may allow fewer.
    pub lanes: usize,
    /// Most rows between the oldest unsettled one and the newest.
    pub rows_max: usize,
    /// Which rows keep their order among themselves.
    pub order: Order,
    /// Several rows of a key in flight although the broker does not keep their order.
    pub pipeline_keys: bool,
    /// How long a missing topic, exchange or stream is waited for.
    pub topic_wait: Duration,
    /// How long refused credentials are retried while running.
    pub auth_wait: Duration,
    /// How long a stop waits for the open transaction and for confirms; closing both edges may
    /// take five seconds more.
    pub drain_max: Duration,
    /// Waits between attempts, of the lanes and of the connection to the source.
    pub backoff: Backoff,
    /// How long rows may wait without any confirm before a warning.
    pub stall_warning: Duration,
    /// Time between two summary lines.
    pub summary_interval: Duration,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            lanes: 32,
            rows_max: 16_384,
            order: Order::Key,
            pipeline_keys: false,
            topic_wait: Duration::from_secs(60),
            auth_wait: Duration::from_secs(300),
            drain_max: Duration::from_secs(20),
            backoff: Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) },
            stall_warning: Duration::from_secs(30),
            summary_interval: Duration::from_secs(60),
        }
    }
}

/// What a relay did, once it has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Rows that the broker confirmed.
    pub confirmed: u64,
    /// Rows that were read and not confirmed before the stop's time was over: they come again.
    pub unsettled: usize,
}

/// Why a relay stopped by itself. No position has passed an unconfirmed row.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The source cannot go on.
    #[error("the source stopped")]
    Source(#[source] Failure),
    /// The sink cannot go on.
    #[error("the sink stopped")]
    Sink(#[source] Failure),
    /// The broker will never take a message, and `on_reject` is `"stop"`.
    #[error("row {identity} cannot be published: {reason}")]
    Rejected {
        /// Where the row stands in the log.
        identity: RowIdentity,
        /// Names the object, the limit and the remedy.
        reason: String,
    },
    /// A row that cannot become a message.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A bug: a task ended that should not. Nothing was acknowledged by it.
    #[error("a lane task ended with a panic: {0}")]
    Panic(String),
}

/// Relays from `source` to `sink` until `stop` becomes true or something is beyond help.
///
/// Reads and encodes on the caller's task; lanes are tasks of the same runtime.
///
/// # Errors
/// See [`RelayError`]; none of them heals by itself.
///
/// # Cancel safety
/// Not cancel safe, yet nothing is lost: whatever was not acknowledged comes again.
pub async fn run<S: Source>(
    source: S,
    sink: Arc<dyn Sink>,
    encoder: Encoder,
    budget: Budget,
    options: RelayOptions,
    stop: watch::Receiver<bool>,
) -> Result<Summary, RelayError> {
    Relay::new(source, sink, encoder, budget, options).run(stop).await
}

type Probe = BoxFuture<'static, Result<Vec<String>, Failure>>;

struct Relay<S: Source> {
    source: S,
    sink: Arc<dyn Sink>,
    encoder: Encoder,
    budget: Budget,
    options: RelayOptions,
    limits: Limits,
    ledger: Ledger<S::Position>,
    /// What was read and not yet entered, since the ledger was full.
    arrived: std::vec::IntoIter<Change<S::Position>>,
    /// Whether the last row entered belongs to a transaction whose end has not arrived.
    open_transaction: bool,
    lanes: Vec<mpsc::Sender<Vec<Envelope>>>,
    /// For each lane, what this round brought for it.
    outgoing: Vec<Vec<Envelope>>,
    tasks: JoinSet<()>,
    outcomes: mpsc::Receiver<Outcome>,
    troubles: mpsc::Receiver<Trouble>,
    halt: Halt,
    /// The source's; lanes look at it before each delivery.
    fence: Fence,
    /// Whether the fence is known to be lowered.
    is_lost: bool,
    phase: Phase,
    source_edge: Edge,
    sink_edge: Edge,
    /// When to try the source again.
    retry_at: Option<Instant>,
    report: Report,
}

impl<S: Source> Relay<S> {
    fn new(
        source: S,
        sink: Arc<dyn Sink>,
        encoder: Encoder,
        budget: Budget,
        options: RelayOptions,
    ) -> Self {
        let limits = sink.limits();
        let count = match options.order {
            Order::All => 1,
            Order::Key | Order::Destination => options.lanes.clamp(1, limits.lanes_max),
        };
        let (outcome_sender, outcomes) = mpsc::channel(options.rows_max + count);
        let (trouble_sender, troubles) = mpsc::channel(64);
        let halt = Halt::default();
        let gate = Gate::new(options.backoff);
        let fence = source.fence();
        let rules = LaneRules {
            limits,
            pipeline_keys: options.pipeline_keys,
            topic_wait: options.topic_wait,
            backoff: options.backoff,
        };
        let mut tasks = JoinSet::new();
        let mut lanes = Vec::with_capacity(count);
        for _ in 0..count {
            let (sender, inbox) = mpsc::channel(options.rows_max);
            let lane = Lane {
                sink: Arc::clone(&sink),
                rules: rules.clone(),
                inbox,
                outcomes: outcome_sender.clone(),
                troubles: trouble_sender.clone(),
                halt: halt.clone(),
                fence: fence.clone(),
                gate: gate.clone(),
            };
            tasks.spawn(lane.run());
            lanes.push(sender);
        }
        Self {
            source,
            sink,
            encoder,
            budget,
            limits,
            ledger: Ledger::new(options.rows_max),
            arrived: Vec::new().into_iter(),
            open_transaction: false,
            outgoing: (0..count).map(|_| Vec::new()).collect(),
            lanes,
            tasks,
            outcomes,
            troubles,
            halt,
            fence,
            is_lost: false,
            phase: Phase::Running,
            source_edge: Edge::default(),
            sink_edge: Edge::default(),
            retry_at: None,
            report: Report::new(),
            options,
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<Summary, RelayError> {
        let result = self.relay(&mut stop).await;
        self.finish(result).await
    }

    /// Until a stop has read what it must, or an error ends it.
    async fn relay(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), RelayError> {
        let mut probe: Option<Probe> = Some(probe(Arc::clone(&self.sink), Duration::ZERO));
        let mut housekeeping = tokio::time::interval(Duration::from_secs(1));
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut changes = Vec::new();
        let mut outcomes = Vec::new();
        loop {
            self.enter_arrived()?;
            if self.phase.has_read_enough(self.open_transaction) {
                return Ok(());
            }
            let reads = self.has_room() && self.retry_at.is_none();
            // A lane's end first: it is rare, and everything else would go on half-alive without
            // it. Then confirms: they make room, and they are what moves the position. Then the
            // stop, before more is read. The clocks can wait for a moment in which neither a
            // confirm nor a read is ready.
            tokio::select! {
                biased;
                Some(result) = self.tasks.join_next() => {
                    self.collect()?;
                    return Err(Self::lane_ended(result));
                }
                count = self.outcomes.recv_many(&mut outcomes, 256) => {
                    assert!(count > 0, "lanes end before their channel does");
                    self.settle(&mut outcomes)?;
                }
                // Only the source can say why, and there may be no room that it is read for.
                () = self.fence.lowered(), if !self.is_lost => self.is_lost = true,
                () = stopped(stop), if self.phase == Phase::Running => {
                    tracing::info!(
                        open_transaction = self.open_transaction,
                        unsettled = self.ledger.unsettled(),
                        "stopping: draining what was read"
                    );
                    self.phase = Phase::stopping(self.options.drain_max);
                }
                result = self.source.next(&mut changes), if reads => match result {
                    Ok(()) => {
                        if let Some(since) = self.source_edge.works() {
                            self.report.recovered("the source", since);
                        }
                        self.arrived = std::mem::take(&mut changes).into_iter();
                    }
                    Err(failure) => self.source_failed(failure)?,
                },
                () = sleep_until(self.retry_at), if self.retry_at.is_some() => {
                    self.retry_at = None;
                }
                Some(trouble) = self.troubles.recv() => self.sink_troubled(trouble)?,
                result = async { probe.as_mut().expect("guarded").await }, if probe.is_some() => {
                    probe = self.probed(result)?;
                }
                _ = housekeeping.tick() => self.housekeep(),
            }
        }
    }

    /// Room for more rows. An empty ledger always has some: a row larger than the whole budget
    /// would otherwise wait for ever. So has a relay that lost its source: it enters nothing more.
    fn has_room(&self) -> bool {
        let is_full = self.ledger.is_full() || self.budget.is_full();
        self.arrived.len() == 0 && (self.is_lost || self.ledger.is_empty() || !is_full)
    }

    /// Enters what arrived, as far as the ledger has room, and hands it to the lanes.
    fn enter_arrived(&mut self) -> Result<(), RelayError> {
        if self.is_lost {
            // Whoever holds the source now sends it.
            self.arrived = Vec::new().into_iter();
        }
        if self.arrived.len() == 0 || self.ledger.is_full() {
            return Ok(());
        }
        let result = self.enter_rows();
        for (lane, envelopes) in self.outgoing.iter_mut().enumerate() {
            if envelopes.is_empty() {
                continue;
            }
            // A closed inbox is a lane that ended for an error, which is on its way to us; the
            // tickets go with the rows, and the position stays before them.
            match self.lanes[lane].try_send(std::mem::take(envelopes)) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    panic!("a lane's inbox holds whatever the ledger holds")
                }
            }
        }
        result?;
        self.acknowledge();
        Ok(())
    }

    fn enter_rows(&mut self) -> Result<(), RelayError> {
        while !self.ledger.is_full() && !self.phase.has_read_enough(self.open_transaction) {
            let Some(change) = self.arrived.next() else { break };
            match change {
                Change::Row(row) => {
                    self.open_transaction = true;
                    let ticket = self.ledger.enter();
                    let message = self.encoder.message(row)?;
                    let domain = self.domain(&message);
                    // The number of lanes is small: the hash's high bits choose among them.
                    let lane = (domain.0 >> 32) as usize % self.lanes.len();
                    self.outgoing[lane].push(Envelope { ticket, domain, message });
                }
                Change::Commit(position) => {
                    self.open_transaction = false;
                    self.ledger.boundary(position);
                }
                Change::Idle(position) => self.ledger.boundary(position),
            }
        }
        if self.phase.has_read_enough(self.open_transaction) {
            // Not entered, so not acknowledged: it comes again.
            self.arrived = Vec::new().into_iter();
        }
        self.report.entered(self.ledger.entered());
        self.report.left_out(self.encoder.left_out());
        Ok(())
    }

    /// The rows that keep their order with this one: those of the same domain.
    fn domain(&self, message: &Message) -> Domain {
        let mut hasher = DefaultHasher::new();
        match (self.options.order, &message.key) {
            (Order::Key, Some(key)) => key.hash(&mut hasher),
            // Without a key any lane will do.
            (Order::Key, None) => self.ledger.entered().hash(&mut hasher),
            (Order::Destination, _) => message.topic.hash(&mut hasher),
            (Order::All, _) => {}
        }
        Domain(hasher.finish())
    }

    fn settle(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), RelayError> {
        let mut result = Ok(());
        for outcome in outcomes.drain(..) {
            match outcome {
                Outcome::Settled(tickets) => {
                    self.report.confirmed(tickets.len());
                    for ticket in tickets {
                        self.ledger.settle(ticket);
                    }
                    if let Some(since) = self.sink_edge.works() {
                        self.report.recovered("the sink", since);
                    }
                }
                Outcome::Rejected { identity, reason } => {
                    result = result.and(Err(RelayError::Rejected { identity, reason }));
                }
                Outcome::Failed(failure) => result = result.and(Err(RelayError::Sink(failure))),
            }
        }
        self.acknowledge();
        result
    }

    fn acknowledge(&mut self) {
        if let Some(position) = self.ledger.advance() {
            self.source.acknowledge(position);
        }
    }

    fn source_failed(&mut self, failure: Failure) -> Result<(), RelayError> {
        let passed = self.ledger.entered();
        match self.source_edge.failed(failure.kind(), passed, &self.options) {
            Action::Stop => Err(RelayError::Source(failure)),
            Action::RetryAfter(wait) => {
                self.report.source_retry(&failure, self.source_edge.attempts());
                self.retry_at = Some(Instant::now() + wait);
                Ok(())
            }
        }
    }

    fn sink_troubled(&mut self, trouble: Trouble) -> Result<(), RelayError> {
        let (kind, reason) = match trouble {
            Trouble::Sink { kind, reason } => (kind, reason),
            Trouble::Rows { reason } => {
                self.report.rows_retry(&reason);
                return Ok(());
            }
        };
        let passed = self.report.confirmed_rows();
        match self.sink_edge.failed(kind, passed, &self.options) {
            Action::Stop => Err(RelayError::Sink(Failure::new(kind, reason))),
            // The lanes have their own clock; this one line says that they wait.
            Action::RetryAfter(_) => {
                self.report.sink_retry(&reason);
                Ok(())
            }
        }
    }

    /// Says the sink's warnings, or asks again later.
    fn probed(
        &mut self,
        result: Result<Vec<String>, Failure>,
    ) -> Result<Option<Probe>, RelayError> {
        match result {
            Ok(warnings) => {
                self.sink_edge.works();
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(lanes = self.lanes.len(), "the sink answers");
                tracing::debug!(limits = ?self.limits);
                Ok(None)
            }
            Err(failure) => {
                let passed = self.report.confirmed_rows();
                match self.sink_edge.failed(failure.kind(), passed, &self.options) {
                    Action::Stop => Err(RelayError::Sink(failure)),
                    Action::RetryAfter(wait) => {
                        self.report.sink_retry(&failure.to_string());
                        Ok(Some(probe(Arc::clone(&self.sink), wait)))
                    }
                }
            }
        }
    }

    fn housekeep(&mut self) {
        self.report.tick(
            &self.options,
            self.ledger.settled_prefix(),
            self.ledger.unsettled(),
            self.budget.held_bytes(),
            self.source.behind_bytes(),
        );
    }

    /// Settles what is on its way to us, without waiting.
    fn collect(&mut self) -> Result<(), RelayError> {
        let mut outcomes = Vec::new();
        while let Ok(outcome) = self.outcomes.try_recv() {
            outcomes.push(outcome);
        }
        self.settle(&mut outcomes)
    }

    /// While the relay runs a lane ends only after it has said why (see [`Relay::collect`]), or by
    /// a panic.
    fn lane_ended(result: Result<(), tokio::task::JoinError>) -> RelayError {
        RelayError::Panic(match result {
            Ok(()) => "it ended without a reason".to_owned(),
            Err(error) => error.to_string(),
        })
    }

    /// Nothing more is sent once this is said; what is in the air may still arrive.
    fn halt_lanes(&mut self) {
        self.halt.call();
    }
}

fn probe(sink: Arc<dyn Sink>, wait: Duration) -> Probe {
    Box::pin(async move {
        tokio::time::sleep(wait).await;
        sink.probe().await
    })
}

/// Cancel safe. A sender that is gone asks for a stop too: nobody else could.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[cfg(feature = "postgres")]
mod simulation;
#[cfg(test)]
mod tests;
