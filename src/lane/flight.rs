//! Batches in the air: their deliveries, and which of their rows have no verdict yet.
//!
//! ```text
//!   messages   m0 m1 m2 m3 m4      rows of one domain stand together: a group
//!   groups     ╰─k7─╯ ╰k3╯ ╰k9     back in the queue with the last verdict of its rows
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use slab::Slab;
use tokio::time::Instant;

use super::queue::{Domain, Queue};
use super::{Ticket, Waiting};
use crate::failure::Failure;
use crate::message::Message;
use crate::sink::{News, Sink, Told};

/// Each batch beside others waits for its turn by one more `stuck_after`, up to so many: a broker
/// that is away gets few batches, and its slow destinations cost the others little.
const PAUSES_MAX: u32 = 5;

/// One batch.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) messages: Vec<Message>,
    rows: Vec<Row>,
    groups: Vec<Group>,
    bytes: usize,
}

struct Row {
    /// Gone with the row's confirm.
    ticket: Option<Ticket>,
    /// Since when its destination is known to be missing.
    absent_since: Option<Instant>,
    group: u32,
    is_judged: bool,
}

struct Group {
    domain: Domain,
    first: u32,
    rows: u32,
    /// Of them, without a verdict.
    pending: u32,
}

impl Flight {
    /// Takes a row along. Rows of one domain come one after the other.
    pub(super) fn push(&mut self, domain: Domain, waiting: Waiting) {
        let Waiting { ticket, message, absent_since } = waiting;
        if self.groups.last().is_none_or(|group| group.domain != domain) {
            let first = count(self.rows.len());
            self.groups.push(Group { domain, first, rows: 0, pending: 0 });
        }
        let group = count(self.groups.len() - 1);
        let last = self.groups.last_mut().expect("pushed");
        (last.rows, last.pending) = (last.rows + 1, last.pending + 1);
        self.bytes += message.size_bytes();
        self.rows.push(Row { ticket: Some(ticket), absent_since, group, is_judged: false });
        self.messages.push(message);
    }
}

/// The limits of a batch are far below it.
fn count(rows: usize) -> u32 {
    u32::try_from(rows).expect("a batch has fewer than 2^32 rows")
}

/// A flight whose delivery is under way.
pub(super) struct Airborne {
    messages: Arc<Vec<Message>>,
    rows: Vec<Row>,
    groups: Vec<Group>,
    bytes: usize,
    /// Rows without a verdict.
    pending: usize,
    pub(super) launched: Instant,
}

impl Airborne {
    pub(super) fn message(&self, row: u32) -> &Message {
        &self.messages[row as usize]
    }

    pub(super) fn absent_since(&self, row: u32) -> Option<Instant> {
        self.rows[row as usize].absent_since
    }

    /// Rows that have no verdict yet.
    pub(super) fn unjudged(&self) -> Vec<u32> {
        let rows = (0..count(self.rows.len())).zip(&self.rows);
        rows.filter(|(_, row)| !row.is_judged).map(|(number, _)| number).collect()
    }

    /// The row is confirmed; the ticket to settle. Its group may be complete with it.
    pub(super) fn confirm(&mut self, row: u32) -> Ticket {
        let ticket = self.rows[row as usize].ticket.take();
        self.judged(row);
        ticket.expect("a sink gives one verdict a message")
    }

    /// The row goes again with its group.
    pub(super) fn keep(&mut self, row: u32, absent_since: Option<Instant>) {
        self.rows[row as usize].absent_since = absent_since;
        self.judged(row);
    }

    fn judged(&mut self, number: u32) {
        let row = &mut self.rows[number as usize];
        assert!(!std::mem::replace(&mut row.is_judged, true), "a sink gives one verdict a message");
        self.groups[row.group as usize].pending -= 1;
        self.pending -= 1;
    }

    /// After a verdict on this row: brings its domain back if that was the last of its group.
    /// Whether rows of it go again.
    pub(super) fn finish(&mut self, row: u32, queue: &mut Queue<Waiting>, held: bool) -> bool {
        let group = &self.groups[self.rows[row as usize].group as usize];
        if group.pending > 0 {
            return false;
        }
        let (first, last) = (group.first as usize, (group.first + group.rows) as usize);
        let mut again = Vec::new();
        for (row, message) in self.rows[first..last].iter_mut().zip(&self.messages[first..last]) {
            if let Some(ticket) = row.ticket.take() {
                let absent_since = row.absent_since;
                again.push(Waiting { ticket, message: message.clone(), absent_since });
            }
        }
        let goes_again = !again.is_empty();
        queue.finish(group.domain, again.into_iter(), held);
        goes_again
    }
}

/// What a delivery brought.
pub(super) struct Landing {
    pub(super) flight: usize,
    pub(super) told: Told,
    /// How the delivery ended, if it has.
    pub(super) end: Option<Result<(), Failure>>,
}

/// All flights of a lane.
#[derive(Default)]
pub(super) struct Flights {
    airborne: Slab<Airborne>,
    deliveries: FuturesUnordered<Delivery>,
    youngest: Option<Instant>,
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.airborne.is_empty()
    }

    /// Rows and bytes in the air that have no verdict yet; bytes of a batch count to its end.
    pub(super) fn load(&self) -> (usize, usize) {
        let flights = self.airborne.iter().map(|(_, flight)| (flight.pending, flight.bytes));
        flights.fold((0, 0), |(rows, bytes), (more, size)| (rows + more, bytes + size))
    }

    /// When the next batch may go beside those in the air; `None`: not before one of them ends.
    pub(super) fn room_at(&self, now: Instant, stuck_after: Option<Duration>) -> Option<Instant> {
        let Some(youngest) = self.youngest else { return Some(now) };
        let pauses = u32::try_from(self.airborne.len()).unwrap_or(PAUSES_MAX).min(PAUSES_MAX);
        Some(youngest + stuck_after? * pauses)
    }

    /// Sends a batch.
    pub(super) fn launch(&mut self, sink: &Arc<dyn Sink>, flight: Flight) {
        let Flight { messages, rows, groups, bytes } = flight;
        let messages = Arc::new(messages);
        let launched = Instant::now();
        let pending = rows.len();
        let number = self.airborne.insert(Airborne {
            messages: Arc::clone(&messages),
            rows,
            groups,
            bytes,
            pending,
            launched,
        });
        self.youngest = Some(launched);
        let news = News::default();
        let (sink, verdicts) = (Arc::clone(sink), news.verdicts());
        let future = Box::pin(async move { sink.deliver(&messages, &verdicts).await });
        self.deliveries.push(Delivery { flight: number, news, future: Some(future) });
    }

    /// The next verdicts or the next end of a delivery; `None` while nothing is in the air.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Landing> {
        let (landing, delivery) = self.deliveries.next().await?;
        self.deliveries.extend(delivery);
        Some(landing)
    }

    pub(super) fn get(&mut self, flight: usize) -> &mut Airborne {
        &mut self.airborne[flight]
    }

    /// Forgets a flight whose delivery has ended and whose rows all have their verdicts.
    pub(super) fn remove(&mut self, flight: usize) {
        let ended = self.airborne.remove(flight);
        assert_eq!(ended.pending, 0, "a sink gives one verdict a message");
        self.youngest = self.airborne.iter().map(|(_, flight)| flight.launched).max();
    }
}

/// A call of `deliver`; done with each news of it, and then to be waited for again.
struct Delivery {
    flight: usize,
    news: News,
    future: Option<BoxFuture<'static, Result<(), Failure>>>,
}

impl Future for Delivery {
    type Output = (Landing, Option<Delivery>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.future.as_mut().expect("a delivery is not polled after its news");
        let end = match future.as_mut().poll(context) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        };
        let told = self.news.take();
        if end.is_none() && told.is_none() {
            return Poll::Pending;
        }
        let flight = self.flight;
        let rest = match end {
            Some(_) => None,
            None => {
                let (news, future) = (self.news.clone(), self.future.take());
                Some(Delivery { flight, news, future })
            }
        };
        Poll::Ready((Landing { flight, told: told.unwrap_or_default(), end }, rest))
    }
}
