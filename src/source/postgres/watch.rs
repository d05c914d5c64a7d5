//! The catalog, watched while a stream is read: a task with an SQL connection of its own.
//!
//! Owns when it is looked at, and the limits of that. What a look says is in `catalog`; what the
//! stream does about it in `reader`.
//!
//! ```text
//!              every 5 s, at each announcement of the outbox,
//!              and before an idle position is acknowledged
//!  reader ── Ask(number, position) ──▶ task ──▶ one query ──▶ as before?  ── no ─▶ judged in full
//!     ▲                                            │ yes, or followed          │ does not hold,
//!     └────────── Seen(number, position) ◀─────────┘                           │ or may have hidden
//!     └────────── failure: the session ends ◀──────────────────────────────────┘ rows
//! ```
//!
//! A position counts as seen when a look that began after it was received found nothing wrong.
//! The SQL connection may fail while the stream lives: then positions of idle time wait, and it is
//! made again. It is also renewed now and then, since a smart shutdown waits for it, and only a
//! new connection is told of one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Statement;

use super::catalog::{Catalog, Subject, name_of};
use super::conninfo::ConnInfo;
use super::error::PostgresError;
use super::lsn::Lsn;
use super::session;
use super::sql::{SqlClient, connect_sql};
use crate::source::Finding;

/// Time between two looks that nobody asked for.
const EVERY: Duration = Duration::from_secs(5);

/// Longest time for a connect and a look, judgement included.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);

/// Pause after a look that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How long one SQL connection is used.
const RENEW: Duration = Duration::from_secs(60);

/// Between two lines about looks that fail.
const SAID: Duration = Duration::from_secs(60);

/// Looks for idle positions that may come at once; one more comes with each [`EVERY`].
const TOKENS_MAX: u32 = 8;

#[derive(Debug, Clone, Copy)]
struct Ask {
    /// A look that begins now answers it.
    number: u64,
    /// What was received before it.
    position: Lsn,
}

#[derive(Debug, Clone)]
struct Seen {
    number: u64,
    position: Lsn,
    catalog: Arc<Catalog>,
}

/// See the module. Ends when dropped.
pub(crate) struct Watch {
    asks: watch::Sender<Ask>,
    seen: watch::Receiver<Seen>,
    failure: Arc<Mutex<Option<PostgresError>>>,
    tokens: u32,
    refilled_at: Instant,
    /// One task; dropping the set ends it.
    _task: JoinSet<()>,
}

impl Watch {
    /// Starts from a catalog that holds, at a position that was received before.
    pub(crate) fn start(
        subject: Subject,
        info: ConnInfo,
        server_start: String,
        sql: (SqlClient, Statement),
        catalog: Catalog,
        position: Lsn,
    ) -> Self {
        let (asks, asked) = watch::channel(Ask { number: 0, position });
        let first = Seen { number: 0, position, catalog: Arc::new(catalog) };
        let (sender, seen) = watch::channel(first);
        let failure = Arc::new(Mutex::new(None));
        let now = Instant::now();
        let watcher = Watcher {
            subject,
            info,
            server_start,
            sql: Some(sql),
            opened_at: now,
            asked,
            seen: sender,
            has_failed: false,
            said_at: None,
        };
        let mut task = JoinSet::new();
        task.spawn(watcher.run(Arc::clone(&failure)));
        Self { asks, seen, failure, tokens: TOKENS_MAX, refilled_at: now, _task: task }
    }

    /// What the last look saw.
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.seen.borrow().catalog)
    }

    /// Everything up to here was received before a look that found nothing wrong.
    pub(crate) fn position(&self) -> Lsn {
        self.seen.borrow().position
    }

    /// Asks for a look after `position`; the number of the ask.
    pub(crate) fn ask(&mut self, position: Lsn) -> u64 {
        let mut number = 0;
        self.asks.send_modify(|ask| {
            ask.number += 1;
            ask.position = ask.position.max(position);
            number = ask.number;
        });
        number
    }

    /// As [`Watch::ask`], where a look in a few seconds would do too: not more often than the
    /// watch may cost.
    pub(crate) fn offer(&mut self, position: Lsn) {
        if position <= self.asks.borrow().position {
            return;
        }
        let periods = self.refilled_at.elapsed().as_secs() / EVERY.as_secs();
        if periods > 0 {
            let periods = u32::try_from(periods).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(periods).min(TOKENS_MAX);
            self.refilled_at = Instant::now();
        }
        if self.tokens > 0 {
            self.tokens -= 1;
            self.ask(position);
        } else {
            self.asks.send_modify(|ask| ask.position = position);
        }
    }

    /// Why the session must end, once.
    pub(crate) fn failure(&self) -> Option<PostgresError> {
        // A poisoned lock is a panic of this very thread.
        self.failure.lock().ok()?.take()
    }

    /// Waits until a look has answered an ask, or the watch has failed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn answered(&mut self, number: u64) {
        // An error is the end of the task: the failure is there.
        drop(self.seen.wait_for(|seen| seen.number >= number).await);
    }

    /// Waits for the next look.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.seen.changed().await.is_err() && self.failure.lock().is_ok_and(|it| it.is_none()) {
            // The failure was taken already.
            std::future::pending::<()>().await;
        }
    }
}

struct Watcher {
    subject: Subject,
    info: ConnInfo,
    /// Of the server that the stream comes from.
    server_start: String,
    sql: Option<(SqlClient, Statement)>,
    opened_at: Instant,
    asked: watch::Receiver<Ask>,
    seen: watch::Sender<Seen>,
    has_failed: bool,
    said_at: Option<Instant>,
}

impl Watcher {
    async fn run(mut self, failure: Arc<Mutex<Option<PostgresError>>>) {
        let mut next = Instant::now() + EVERY;
        loop {
            let done = self.seen.borrow().number;
            tokio::select! {
                biased;
                asked = self.asked.wait_for(|ask| ask.number > done) => if asked.is_err() { return },
                () = sleep_until(next) => {}
            }
            let ask = *self.asked.borrow_and_update();
            next = Instant::now() + if self.has_failed { RETRY } else { EVERY };
            match timeout(LOOK_TIMEOUT, Box::pin(self.look())).await {
                Ok(Ok(catalog)) => {
                    self.has_failed = false;
                    let Ask { number, position } = ask;
                    self.seen.send_replace(Seen { number, position, catalog });
                }
                Ok(Err(error)) if is_the_end(&error) => {
                    if let Ok(mut failure) = failure.lock() {
                        *failure = Some(error);
                    }
                    return;
                }
                Ok(Err(error)) => self.trouble(&error).await,
                Err(_) => self.trouble(&PostgresError::CatalogSilent { after: LOOK_TIMEOUT }).await,
            }
        }
    }

    /// A look that failed says nothing about the catalog: another one, by another connection. At
    /// once where it was an old connection, which a server ends that is shutting down.
    async fn trouble(&mut self, error: &PostgresError) {
        self.sql = None;
        if !std::mem::replace(&mut self.has_failed, true) {
            return;
        }
        if self.said_at.is_none_or(|at| at.elapsed() >= SAID) {
            self.said_at = Some(Instant::now());
            let error = chain(error);
            tracing::warn!("could not look at the catalog, trying again: {error}");
        }
        sleep(RETRY).await;
    }

    async fn look(&mut self) -> Result<Arc<Catalog>, PostgresError> {
        if self.opened_at.elapsed() >= RENEW {
            self.sql = None;
        }
        let subject = &self.subject;
        let (client, statement) = match self.sql.take() {
            Some(sql) => self.sql.insert(sql),
            None => {
                let client = connect_sql(&self.info).await.map_err(of_connect)?;
                if session::server_start(&client).await? != self.server_start {
                    return Err(PostgresError::TwoServers { address: self.info.to_string() });
                }
                let statement = subject.prepare(&client).await?;
                self.opened_at = Instant::now();
                self.sql.insert((client, statement))
            }
        };
        let before = Arc::clone(&self.seen.borrow().catalog);
        let now = subject.look(client, statement).await?;
        if *before == now {
            return Ok(before);
        }
        subject.must_not_be_renamed(client, &before, &now).await?;
        subject.check(client).await?;
        subject.must_follow(&before, &now, self.seen.borrow().position)?;
        Ok(Arc::new(now))
    }
}

impl Subject {
    /// Names the new name of a table that has no other table in its place.
    async fn must_not_be_renamed(
        &self,
        client: &SqlClient,
        before: &Catalog,
        now: &Catalog,
    ) -> Result<(), PostgresError> {
        let (Some(was), None) = (&before.table, &now.table) else { return Ok(()) };
        let table = &self.settings.table;
        let Some(name) = name_of(client, was.oid).await? else { return Ok(()) };
        let detail = format!("{table} was renamed to {name}");
        let fix = format!(
            "rename it back, or set source.table = '{name}' and source.former_name = '{table}'"
        );
        Err(PostgresError::Precondition(Finding::fail("table", detail, fix)))
    }

    /// Follows a change that cannot have hidden a row, and says so.
    pub(crate) fn must_follow(
        &self,
        before: &Catalog,
        now: &Catalog,
        since: Lsn,
    ) -> Result<(), PostgresError> {
        let (table, slot) = (&self.settings.table, &self.settings.slot);
        if let Some(gap) = self.gap(before, now) {
            return Err(PostgresError::Gap {
                what: gap.what,
                table: table.to_string(),
                slot: slot.clone(),
                since,
            });
        }
        tracing::info!(%table, slot, "the catalog changed; every row of the outbox still comes");
        Ok(())
    }
}

/// Whether an error ends the session: what was seen, and what heals only without us.
fn is_the_end(error: &PostgresError) -> bool {
    !matches!(
        error,
        PostgresError::Catalog(_) | PostgresError::Connect(_) | PostgresError::CatalogSilent { .. }
    )
}

/// A server that shuts down refuses new connections, and waits for ours (57P03,
/// `cannot_connect_now`).
fn of_connect(error: super::ConnectError) -> PostgresError {
    match error.server_error() {
        Some(server) if server.code == "57P03" => PostgresError::ShuttingDown,
        _ => PostgresError::Connect(error),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
