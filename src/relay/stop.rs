//! The end of a relay: what is still read, what is waited for, and in which order things close.

use std::error::Error;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::{Relay, RelayError, Source, Summary};
use crate::failure::Failure;

/// For both edges to close once the time to drain is over. A stop takes at most
/// `drain_seconds_max` and this.
const CLOSE_MAX: Duration = Duration::from_secs(5);
/// Of it, for a sink that still holds rows: the source is released after it.
const DROP_MAX: Duration = Duration::from_secs(3);

/// Where a relay stands between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// Reads on to the end of the open transaction, so that none of its rows is sent twice.
    Stopping {
        /// When even that is given up.
        until: Instant,
    },
}

impl Phase {
    pub(super) fn stopping(drain_max: Duration) -> Self {
        Phase::Stopping { until: Instant::now() + drain_max }
    }

    /// Whether a stop has nothing left to read.
    pub(super) fn has_read_enough(self, open_transaction: bool) -> bool {
        match self {
            Phase::Running => false,
            Phase::Stopping { until } => !open_transaction || Instant::now() >= until,
        }
    }

    fn deadline(self, drain_max: Duration) -> Instant {
        match self {
            Phase::Running => Instant::now() + drain_max,
            Phase::Stopping { until } => until,
        }
    }
}

/// How the draining ended.
struct Drained {
    /// Whether all lanes came to their end before the deadline.
    in_time: bool,
    /// The first thing that went wrong; later ones are its echoes.
    error: Option<RelayError>,
}

impl<S: Source> Relay<S> {
    /// Drains the lanes, acknowledges for the last time, sees it arrive, closes both edges.
    ///
    /// What was read is still delivered after a stop, and after an error that lies behind it in the
    /// log: the source's, or a row's that cannot become a message. After an error of the delivery
    /// only what is in the air is waited for: rows that overtake a rejected one would be sent again
    /// by each start. What goes wrong while draining is the result, as it would have been before.
    pub(super) async fn finish(
        mut self,
        result: Result<(), RelayError>,
    ) -> Result<Summary, RelayError> {
        match &result {
            Ok(()) | Err(RelayError::Source(_) | RelayError::Encode(_)) => {}
            Err(RelayError::Sink(_) | RelayError::Rejected { .. } | RelayError::Panic(_)) => {
                self.halt_lanes();
            }
        }
        let deadline = self.phase.deadline(self.options.drain_max);
        let Drained { in_time, error } = self.drain_lanes(deadline).await;
        let error = error.or(self.end_lanes().await.err()).or(self.collect().err());
        let result = joined(result, error);
        let unsettled = self.ledger.unsettled();
        if result.is_ok() && unsettled > 0 {
            self.report_unsettled(unsettled, in_time);
        }
        self.report.last(unsettled);
        let summary = Summary { confirmed: self.report.confirmed_rows(), unsettled };
        let is_sources = matches!(result, Err(RelayError::Source(_)));
        self.close(deadline + CLOSE_MAX, is_sources, unsettled > 0).await;
        result.map(|()| summary)
    }

    fn report_unsettled(&self, unsettled: usize, in_time: bool) {
        if self.fence.is_lowered() {
            tracing::warn!(
                unsettled,
                "the source was lost to another relay while draining, which sends these rows"
            );
        } else if in_time {
            tracing::warn!(unsettled, "rows that no broker confirmed come again");
        } else {
            tracing::warn!(
                unsettled,
                "the time to drain (relay.drain_seconds_max) is over; rows that no broker \
                 confirmed come again"
            );
        }
    }

    /// Both edges side by side: neither waits for what the other has to say. But what is still with
    /// the broker's client would be sent beside whoever takes the source over: it is dropped first.
    async fn close(self, deadline: Instant, source_failed: bool, holds_rows: bool) {
        let (source, sink) = (self.source.close(), self.sink.close());
        let (source, sink) = if holds_rows {
            let sink = timeout_at(deadline.min(Instant::now() + DROP_MAX), sink).await;
            (timeout_at(deadline, source).await, sink)
        } else {
            tokio::join!(timeout_at(deadline, source), timeout_at(deadline, sink))
        };
        match source {
            // A source that failed has often the same to say again, and it is told once.
            Ok(Err(failure)) if source_failed => {
                tracing::debug!("could not close the source cleanly: {failure}");
            }
            source => report_closed("source", source),
        }
        report_closed("sink", sink);
    }

    /// Ends lanes that still work.
    ///
    /// # Errors
    /// One of them had ended with a panic.
    async fn end_lanes(&mut self) -> Result<(), RelayError> {
        self.tasks.abort_all();
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(ended) = ended
                && ended.is_panic()
            {
                result = Err(Self::lane_ended(Err(ended)));
            }
        }
        result
    }

    async fn drain_lanes(&mut self, deadline: Instant) -> Drained {
        // Closed inboxes are what tells the lanes that nothing more comes.
        self.lanes.clear();
        let mut outcomes = Vec::new();
        let mut error = None;
        let fence = self.fence.clone();
        let mut halted = false;
        loop {
            // Confirms first, as in the main loop; the deadline last, since a confirm that is here
            // counts. A fence that is lowered never comes up: whoever holds the source now sends
            // what waits here.
            let failed = tokio::select! {
                biased;
                count = self.outcomes.recv_many(&mut outcomes, 256) => {
                    if count == 0 {
                        return Drained { in_time: true, error };
                    }
                    self.settle(&mut outcomes)
                }
                Some(Err(ended)) = self.tasks.join_next() => Err(Self::lane_ended(Err(ended))),
                Some(trouble) = self.troubles.recv() => self.sink_troubled(trouble),
                () = fence.lowered(), if !halted => {
                    self.halt_lanes();
                    halted = true;
                    Ok(())
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Drained { in_time: false, error };
                }
            };
            if let Err(failed) = failed {
                self.halt_lanes();
                error.get_or_insert(failed);
            }
        }
    }
}

fn report_closed(edge: &str, closed: Result<Result<(), Failure>, Elapsed>) {
    match closed {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::warn!("could not close the {edge} cleanly: {failure}"),
        Err(_) => tracing::warn!("the {edge} did not close in time, and is left as it is"),
    }
}

/// What ended the relay, and what went wrong while it drained: the first of both is the result.
fn joined(result: Result<(), RelayError>, error: Option<RelayError>) -> Result<(), RelayError> {
    match (result, error) {
        (Ok(()), Some(error)) => Err(error),
        (result, None) => result,
        (Err(first), Some(later)) => {
            let cause = later.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("while stopping for another error: {later}{cause}");
            Err(first)
        }
    }
}
