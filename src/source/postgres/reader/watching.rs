//! What the reader does with the catalog's watch: rows are handed on when a look after their
//! table's announcement found nothing wrong, and idle positions when one after them did.
//!
//! An idle position is acknowledged without any row: while the outbox is out of its publication,
//! that is all that comes, and it would move the slot past the rows that are missing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Reader, Streaming, commanded};
use crate::source::Change;
use crate::source::postgres::catalog::Catalog;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::watch::Watch;

/// Longest time for an answer that rows wait for.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Between two lines about commit times.
const TIMES_SAID: Duration = Duration::from_secs(600);

/// The watch of a session, and what waits for it.
#[derive(Default)]
pub(crate) struct Watching {
    /// None between sessions.
    watch: Option<Watch>,
    /// What the decoder knows; kept between sessions.
    known: Option<Arc<Catalog>>,
    /// The last idle position that was received and not handed on.
    held: Option<Lsn>,
    times_replaced: u64,
    times_said_at: Option<Instant>,
}

impl Watching {
    /// What the last look of the session before saw.
    pub(crate) fn known(&self) -> Option<&Catalog> {
        self.known.as_deref()
    }

    pub(super) fn begin(&mut self, watch: Option<Watch>) {
        self.known = watch.as_ref().map(Watch::catalog);
        (self.watch, self.held) = (watch, None);
    }

    pub(super) fn end(&mut self) {
        (self.watch, self.held) = (None, None);
    }

    /// How long nobody may use the slot before the server gives it up.
    pub(super) fn idle_slot_max(&self) -> Option<Duration> {
        self.known().and_then(Catalog::idle_slot_max)
    }

    /// Waits for the next look.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn changed(&mut self) {
        match &mut self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    async fn answered(&mut self, number: u64) {
        if let Some(watch) = &mut self.watch {
            watch.answered(number).await;
        }
    }

    pub(super) fn verdict(&self) -> Result<(), PostgresError> {
        self.watch.as_ref().and_then(Watch::failure).map_or(Ok(()), Err)
    }

    /// Takes idle positions out, and gives back what a look has seen.
    fn hold(&mut self, changes: &mut Vec<Change<Lsn>>, in_transaction: bool) {
        let Some(watch) = &mut self.watch else { return };
        match changes.last() {
            Some(Change::Idle(position)) => self.held = Some(*position),
            // What follows it has a boundary of its own.
            Some(Change::Row(_) | Change::Commit(_)) => self.held = None,
            None => {}
        }
        changes.retain(|change| !matches!(change, Change::Idle(_)));
        let Some(held) = self.held else { return };
        watch.offer(held);
        let seen = watch.position();
        if !in_transaction && held <= seen {
            changes.push(Change::Idle(held));
            self.held = None;
        }
    }
}

impl Reader {
    /// What the catalog says about what was decoded, before that is handed on.
    pub(super) async fn consult(
        &mut self,
        streaming: &mut Streaming,
        changes: &mut Vec<Change<Lsn>>,
    ) -> Result<(), super::End> {
        if self.decoder.take_news()
            && let Some(number) = self.watching.watch.as_mut().map(|it| it.ask(self.received))
        {
            let until = Instant::now() + ANSWER_WAIT;
            loop {
                // A close first; then the clock, since the server must hear from us meanwhile.
                tokio::select! {
                    biased;
                    end = commanded(&mut self.commands, &mut self.untaken) => return Err(end),
                    _ = streaming.clock.tick() => {
                        // What it says meanwhile on the stream is not heard.
                        streaming.feedback.listens(Instant::now());
                        self.tick(streaming).await?;
                    }
                    answer = timeout_at(until, self.watching.answered(number)) => match answer {
                        Ok(()) => break,
                        Err(_) => {
                            return Err(PostgresError::CatalogSilent { after: ANSWER_WAIT }.into());
                        }
                    }
                }
            }
        }
        self.watching.verdict()?;
        self.learn_catalog();
        self.say_news();
        self.watching.hold(changes, self.decoder.in_transaction());
        Ok(())
    }

    fn learn_catalog(&mut self) {
        let Some(catalog) = self.watching.watch.as_ref().map(Watch::catalog) else { return };
        if self.watching.known.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &catalog)) {
            if let Some(table) = &catalog.table {
                self.decoder.set_catalog(table.oid, &table.leaves);
            }
            self.watching.known = Some(catalog);
        }
    }

    fn say_news(&mut self) {
        let publication = &self.settings.publication;
        for table in self.decoder.take_left_out() {
            tracing::warn!(
                %table,
                publication,
                "rows of another table come with the publication and are left out; take the table \
                 out of it, if they are not meant for somebody else"
            );
        }
        let replaced = self.decoder.replaced_times();
        let watching = &mut self.watching;
        if replaced > watching.times_replaced
            && watching.times_said_at.is_none_or(|at| at.elapsed() >= TIMES_SAID)
        {
            watching.times_replaced = replaced;
            watching.times_said_at = Some(Instant::now());
            tracing::warn!(
                rows = replaced,
                "the server sent commit times that cannot be (a session that sets a replication \
                 origin and no time of its own?): the time of receipt takes their place"
            );
        }
    }
}
