//! The wait for the turn on a slot that another connection holds.
//!
//! The slot is asked for by SQL, which leaves no line in the server's log; `START_REPLICATION` on
//! a slot that is in use would write an error there each time, for as long as a hot standby waits.

use std::time::Duration;

use tokio::time::Instant;

use super::error::PostgresError;
use super::session::within;
use super::sql::SqlClient;

/// Wait between two looks at the slot. After a `kill -9` the server releases it within
/// milliseconds; a hot standby may wait for months, and takes over within a second.
const WAIT_FIRST: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_millis(500);
const SAID_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Turn<'a> {
    slot: &'a str,
    wait: Duration,
    said_at: Option<Instant>,
    has_waited: bool,
    has_waited_since_check: bool,
}

impl<'a> Turn<'a> {
    pub(super) fn new(slot: &'a str) -> Self {
        let (has_waited, has_waited_since_check) = (false, false);
        Self { slot, wait: WAIT_FIRST, said_at: None, has_waited, has_waited_since_check }
    }

    /// Whether another connection was seen with the slot.
    pub(super) fn has_waited(&self) -> bool {
        self.has_waited
    }

    /// The same since the last [`wait`](Self::wait) that found it free at once.
    pub(super) fn has_waited_since_check(&self) -> bool {
        self.has_waited_since_check
    }

    /// Waits until nobody holds the slot, for ever; a slot that is gone is held by nobody.
    pub(super) async fn wait(&mut self, sql: &SqlClient) -> Result<(), PostgresError> {
        self.has_waited_since_check = false;
        while let Some(holder) = within("the slot", self.holder(sql)).await? {
            (self.has_waited, self.has_waited_since_check) = (true, true);
            self.say(holder);
            self.pause().await;
        }
        Ok(())
    }

    /// It was free a moment ago, and is not now.
    pub(super) fn was_lost(&mut self) {
        self.has_waited = true;
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(WAIT_MAX);
    }

    async fn holder(&self, sql: &SqlClient) -> Result<Option<i32>, PostgresError> {
        let question =
            "SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        let row = sql.query_opt(question, &[&self.slot]).await?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// A holder that was killed is gone before this is worth a line.
    fn say(&mut self, holder: i32) {
        let quiet = self.said_at.is_some_and(|at| at.elapsed() < SAID_EVERY);
        if self.wait >= WAIT_MAX && !quiet {
            self.said_at = Some(Instant::now());
            let slot = self.slot;
            tracing::info!(
                slot,
                holder,
                "standing by until the slot is free: another connection holds it"
            );
        }
    }
}
