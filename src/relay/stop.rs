//! The end of a relay: what is still read, what is waited for, and in which order things close.

use std::time::Duration;

use tokio::time::Instant;

use super::{Relay, RelayError, Source, Summary};

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

impl<S: Source> Relay<S> {
    /// Drains the lanes, acknowledges for the last time, sees it arrive, closes both edges.
    ///
    /// What was read is still delivered after a stop, and after an error that lies behind it in the
    /// log: the source's, or a row's that cannot become a message. After an error of the delivery
    /// only what is in the air is waited for: rows that overtake a rejected one would be sent again
    /// by each start.
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
        let lanes_empty = self.drain_lanes(deadline).await;
        self.tasks.shutdown().await;
        if let Err(error) = self.collect() {
            tracing::debug!("while stopping: {error}");
        }
        let unsettled = self.ledger.unsettled();
        if result.is_ok() && !lanes_empty {
            tracing::warn!(
                unsettled,
                "the time to drain is over; rows that no broker confirmed come again"
            );
        } else if result.is_ok() && unsettled > 0 {
            tracing::warn!(
                unsettled,
                "the source was lost to another relay while draining, which sends these rows"
            );
        }
        self.report.last(unsettled);
        let summary = Summary { confirmed: self.report.confirmed_rows(), unsettled };
        if let Err(failure) = self.source.close().await {
            // A source that failed has often the same to say again, and it is told once.
            if matches!(result, Err(RelayError::Source(_))) {
                tracing::debug!("could not close the source cleanly: {failure}");
            } else {
                tracing::warn!("could not close the source cleanly: {failure}");
            }
        }
        if let Err(failure) = self.sink.close().await {
            tracing::warn!("could not close the sink cleanly: {failure}");
        }
        result.map(|()| summary)
    }

    /// Whether all lanes came to their end before `deadline`.
    async fn drain_lanes(&mut self, deadline: Instant) -> bool {
        // Closed inboxes are what tells the lanes that nothing more comes.
        self.lanes.clear();
        let mut outcomes = Vec::new();
        let fence = self.fence.clone();
        let mut halted = false;
        loop {
            // Confirms first, as in the main loop; the deadline last, since a confirm that is here
            // counts. A fence that is lowered never comes up: whoever holds the source now sends
            // what waits here.
            tokio::select! {
                biased;
                count = self.outcomes.recv_many(&mut outcomes, 256) => {
                    if count == 0 {
                        return true;
                    }
                    // The first error is the one that is told; later ones are its echoes.
                    if let Err(error) = self.settle(&mut outcomes) {
                        tracing::debug!("while draining: {error}");
                        self.halt_lanes();
                    }
                }
                Some(_) = self.troubles.recv() => {}
                () = fence.lowered(), if !halted => {
                    self.halt_lanes();
                    halted = true;
                }
                () = tokio::time::sleep_until(deadline) => return false,
            }
        }
    }
}
