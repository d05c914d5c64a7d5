//! One link, and all that is published over it until it is lost.
//!
//! Only one task may publish on a channel: lapin gives a publish its number and its place in the
//! stream in two steps, so with two tasks a nack can reach the wrong message. All publishes of a
//! session are futures polled in one.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Event};
use slab::Slab;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::confirms::{Confirms, Place, Returned, Sequence};
use super::envelope::Envelope;
use super::exchanges::{self, Looked, NOT_FOUND, reply_code};
use super::link::Link;
use super::naming::Naming;
use super::pauses::{Pauses, Route};
use super::publisher::{Job, Reply, Suspects};
use crate::identity::RowIdentity;
use crate::sink::Verdict;

/// No further batch is taken while so many are in flight. lapin walks through all of them for
/// each cumulative ack: 500 are too few for the broker, 20,000 cost twice the processor time.
pub(super) const WINDOW_MESSAGES: usize = 2_000;
/// Exchanges remembered to exist.
const EXCHANGES_MAX: usize = 10_000;
/// For the futures of an ended link, which the client library fails at once.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Events handled in a row before the other branches are looked at.
const EVENTS_MAX: usize = 256;

/// A batch that waits longer tells the verdicts that it has; its lane may send another one beside.
pub(super) const STUCK_AFTER: Duration = Duration::from_millis(500);
/// How often a connection that the broker blocks is named.
const BLOCKED_LINES: Duration = Duration::from_secs(60);

/// What is the same for each session of a sink.
pub(super) struct Rules {
    pub(super) confirm_timeout: Duration,
    pub(super) naming: Naming,
    /// Also asked by the sink, before it hands a message over.
    pub(super) pauses: Mutex<Pauses>,
}

impl Rules {
    pub(super) fn pauses(&self) -> std::sync::MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the futures of a session bring.
enum Progress {
    /// Whether it is an ack, and the return that came along, of whichever message.
    Confirm(Sequence, Result<(bool, Option<Returned>), lapin::Error>),
    Marker,
}

struct Batch {
    verdicts: Vec<Option<Verdict>>,
    /// Exchange and routing key of each message.
    addresses: Vec<(ShortString, ShortString)>,
    unsettled: usize,
    /// Which verdicts were told early; empty until the batch is stuck.
    told: Vec<bool>,
    reply: Reply,
    taken_at: Instant,
}

impl Batch {
    /// Tells what is known of a batch of which one row keeps the others waiting.
    fn tell_early(&mut self) {
        if self.taken_at.elapsed() < STUCK_AFTER {
            return;
        }
        self.told.resize(self.verdicts.len(), false);
        let known = self.verdicts.iter().enumerate().zip(&self.told);
        let fresh: Vec<(usize, Verdict)> = known
            .filter(|(_, told)| !**told)
            .filter_map(|((index, verdict), _)| Some((index, verdict.clone()?)))
            .collect();
        let indices: Vec<usize> = fresh.iter().map(|(index, _)| *index).collect();
        // Where there is no room, they come with the next ones.
        if !fresh.is_empty() && self.reply.early.try_send(fresh).is_ok() {
            for index in indices {
                self.told[index] = true;
            }
        }
    }
}

/// Why a link is given up.
enum Loss {
    /// Nobody sends any more, and all is settled.
    Done,
    Broken(String),
    /// The broker closed the channel over one of the messages.
    Refused {
        code: u16,
        reason: String,
    },
}

type Looking = BoxFuture<'static, (Vec<Envelope>, usize, Result<Looked, lapin::Error>)>;

/// One link and everything that is on its way over it.
pub(super) struct Session<'a> {
    channel: Channel,
    frame_bytes_max: usize,
    asking: Option<Channel>,
    rules: Arc<Rules>,
    suspects: &'a mut Suspects,
    batches: Slab<Batch>,
    confirms: Confirms,
    progress: FuturesUnordered<BoxFuture<'static, Progress>>,
    /// Exchanges seen to exist on this link.
    exchanges: HashSet<String>,
    looking: Option<Looking>,
    /// Suspects that wait until nothing else is in flight.
    alone: VecDeque<(Place, Envelope)>,
    /// The suspect that is in flight.
    suspect: Option<(Place, RowIdentity, String)>,
    /// Why the broker has blocked the connection, and when that was said last. No confirm is due
    /// meanwhile; that the broker still lives is what the heartbeat looks after.
    blocked: Option<(String, Instant)>,
    /// Timeouts count from here at the earliest.
    flowing_since: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(link: &Link, rules: Arc<Rules>, suspects: &'a mut Suspects) -> Self {
        Self {
            channel: link.channel(),
            frame_bytes_max: link.frame_bytes_max(),
            asking: None,
            rules,
            suspects,
            batches: Slab::new(),
            confirms: Confirms::default(),
            progress: FuturesUnordered::new(),
            exchanges: HashSet::from([String::new()]),
            looking: None,
            alone: VecDeque::new(),
            suspect: None,
            blocked: None,
            flowing_since: Instant::now(),
        }
    }

    /// From the first batch to the end of the link.
    pub(super) async fn run(mut self, link: Link, first: Job, jobs: &mut mpsc::Receiver<Job>) {
        self.take(&link, first);
        let loss = self.drive(&link, jobs).await;
        self.finish(link, loss).await;
    }

    /// Publishes and settles until the link is lost or the senders are gone.
    async fn drive(&mut self, link: &Link, jobs: &mut mpsc::Receiver<Job>) -> Loss {
        let mut events: BoxStream<'static, Event> = link.connection().events_listener().boxed();
        let tick = (self.rules.confirm_timeout / 20)
            .clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut clock = interval(tick);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut closing = false;
        loop {
            self.publish_alone();
            self.push_marker();
            if closing && self.batches.is_empty() {
                return Loss::Done;
            }
            let room = !closing
                && self.looking.is_none()
                && self.alone.is_empty()
                && self.confirms.unseen() < WINDOW_MESSAGES;
            let looking = async {
                match &mut self.looking {
                    Some(looking) => looking.await,
                    None => std::future::pending().await,
                }
            };
            // Events first, since they explain what follows; then what settles messages, so that
            // the window is free; the clock before new work, so that it cannot be starved. All
            // are cancel safe: streams, a receiver, and a future that is kept.
            tokio::select! { biased;
                event = events.next() => {
                    let Some(event) = event else {
                        return Loss::Broken("the RabbitMQ client has stopped".to_owned());
                    };
                    if let Some(loss) = self.note(event) { return loss }
                }
                Some(progress) = self.progress.next(), if !self.progress.is_empty() => {
                    if let Some(loss) = self.advance(progress) { return loss }
                }
                (envelopes, job, looked) = looking => {
                    self.looking = None;
                    match looked {
                        Ok(looked) => self.publish(job, envelopes, looked),
                        Err(error) => return Loss::Broken(error.to_string()),
                    }
                }
                _ = clock.tick() => {
                    self.batches.iter_mut().for_each(|(_, batch)| batch.tell_early());
                    if let Some(loss) = self.overdue(link, closing) { return loss }
                }
                job = jobs.recv(), if room => match job {
                    Some(job) => self.take(link, job),
                    None => closing = true,
                },
            }
        }
    }

    /// Handles what has come in, as far as it is there already.
    fn advance(&mut self, first: Progress) -> Option<Loss> {
        let mut progress = first;
        let mut left = EVENTS_MAX;
        loop {
            match progress {
                Progress::Marker => self.settle_marked(),
                Progress::Confirm(sequence, Ok((acked, returned))) => {
                    self.confirms.see(sequence, acked, returned);
                }
                Progress::Confirm(_, Err(error)) => return Some(self.loss(&error)),
            }
            self.push_marker();
            left -= 1;
            // Nothing is taken out that is not handled: put back, it would break the order that
            // the marker stands for.
            if left == 0 {
                return None;
            }
            progress = self.progress.next().now_or_never().flatten()?;
        }
    }

    fn note(&mut self, event: Event) -> Option<Loss> {
        match event {
            Event::ConnectionBlocked(reason) => {
                let said_at = Instant::now();
                self.blocked = Some((reason.to_string(), said_at));
                self.say_blocked();
            }
            Event::ConnectionUnblocked => {
                tracing::info!("RabbitMQ takes messages again");
                self.blocked = None;
                self.flowing_since = Instant::now();
            }
            // A channel's error comes with the confirms too, or belongs to the asking channel.
            Event::Error(error) if error.is_amqp_soft_error() => {}
            Event::Error(error) => return Some(self.loss(&error)),
            // Recovery is off; and RabbitMQ sends no channel.flow.
            _ => {}
        }
        None
    }

    /// Takes a batch: at once, or after its unknown exchanges have been looked up.
    fn take(&mut self, link: &Link, job: Job) {
        let Job { envelopes, reply } = job;
        let mut names: Vec<String> = Vec::new();
        for envelope in &envelopes {
            let name = envelope.exchange.as_str();
            if !self.exchanges.contains(name) && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let count = envelopes.len();
        let taken_at = Instant::now();
        let verdicts = vec![None; count];
        let address =
            |envelope: &Envelope| (envelope.exchange.clone(), envelope.routing_key.clone());
        let addresses = envelopes.iter().map(address).collect();
        let batch =
            Batch { verdicts, addresses, unsettled: count, told: Vec::new(), reply, taken_at };
        let job = self.batches.insert(batch);
        if names.is_empty() {
            let known = Looked { channel: None, present: Vec::new(), missing: HashSet::new() };
            return self.publish(job, envelopes, known);
        }
        let looking = exchanges::look(link.connection(), self.asking.take(), names);
        self.looking = Some(Box::pin(async move { (envelopes, job, looking.await) }));
    }

    fn publish(&mut self, job: usize, envelopes: Vec<Envelope>, looked: Looked) {
        if looked.channel.is_some() {
            self.asking = looked.channel;
        }
        if self.exchanges.len() + looked.present.len() > EXCHANGES_MAX {
            self.exchanges = HashSet::from([String::new()]);
        }
        self.exchanges.extend(looked.present);
        let frame_bytes_max = self.frame_bytes_max;
        for (index, envelope) in envelopes.into_iter().enumerate() {
            let place = Place { job, index };
            if looked.missing.contains(envelope.exchange.as_str()) {
                let exchange = self.exchange(place);
                self.settle(
                    place,
                    Verdict::Absent(format!("{exchange} does not exist; declare it")),
                );
            } else if envelope.header_frame_bytes > frame_bytes_max {
                let bytes = envelope.header_frame_bytes;
                self.settle(place, Verdict::Rejected(format!(
                    "headers of up to {bytes} bytes: RabbitMQ takes all headers in one frame of \
                     {frame_bytes_max} at most; make them smaller or raise its frame_max"
                )));
            } else if self.suspects.includes(&envelope) {
                self.alone.push_back((place, envelope));
            } else {
                self.send(place, envelope);
            }
        }
    }

    /// Publishes the next suspect once nothing is in flight.
    fn publish_alone(&mut self) {
        if self.alone.is_empty() || !self.confirms.is_empty() {
            return;
        }
        if let Some((place, envelope)) = self.alone.pop_front() {
            let exchange = envelope.exchange.as_str().to_owned();
            self.suspect = Some((place, envelope.identity, exchange));
            self.send(place, envelope);
        }
    }

    fn send(&mut self, place: Place, envelope: Envelope) {
        let sequence = self.confirms.enter(place, envelope.identity);
        let (channel, rules) = (self.channel.clone(), self.rules.clone());
        self.progress.push(Box::pin(async move {
            let Envelope { exchange, routing_key, properties, payload, .. } = envelope;
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let written =
                channel.basic_publish(exchange, routing_key, options, &payload, properties).await;
            Progress::Confirm(
                sequence,
                match written {
                    Ok(confirm) => confirm.await.map(|confirm| seen(confirm, &rules.naming)),
                    Err(error) => Err(error),
                },
            )
        }));
    }

    fn push_marker(&mut self) {
        if self.confirms.push_marker() {
            self.progress.push(Box::pin(std::future::ready(Progress::Marker)));
        }
    }

    fn settle_marked(&mut self) {
        for (place, verdict) in self.confirms.marker() {
            if self.suspect.as_ref().is_some_and(|(suspect, ..)| *suspect == place)
                && let Some((_, identity, exchange)) = self.suspect.take()
            {
                self.suspects.acquit(identity, &exchange);
            }
            let verdict = self.judge(place, verdict);
            self.settle(place, verdict);
        }
    }

    /// Notes what was accepted and what was refused, and says how a refusal goes on.
    fn judge(&mut self, place: Place, verdict: Verdict) -> Verdict {
        let (exchange, routing_key) = &self.batches[place.job].addresses[place.index];
        let route = Route::new(exchange.as_str(), routing_key.as_str());
        match verdict {
            Verdict::Confirmed => {
                self.rules.pauses().accepted(route);
                Verdict::Confirmed
            }
            Verdict::Unknown(reason) => {
                let now = std::time::Instant::now();
                let (times, lasted, pause) = self.rules.pauses().refused(route, now);
                let exchange = self.exchange(place);
                Verdict::Unknown(
                    format!(
                        "{exchange}: {reason}, {times} times in {lasted:.0?}; the next attempt is \
                         in {pause:.0?}. Other queues that are bound there get the row once more \
                         with each attempt"
                    )
                    .into(),
                )
            }
            Verdict::Absent(_) | Verdict::Rejected(_) => verdict,
        }
    }

    /// What a line may call the exchange of a message.
    fn exchange(&self, place: Place) -> String {
        let (exchange, routing_key) = &self.batches[place.job].addresses[place.index];
        self.rules.naming.exchange(exchange.as_str(), routing_key.as_str())
    }

    fn say_blocked(&self) {
        if let Some((reason, _)) = &self.blocked {
            tracing::warn!(
                reason,
                "RabbitMQ blocks the connection: an alarm for memory or disk. Rows wait until it \
                 ends; give the broker more of either"
            );
        }
    }

    fn settle(&mut self, place: Place, verdict: Verdict) {
        let batch = &mut self.batches[place.job];
        let before = batch.verdicts[place.index].replace(verdict);
        assert!(before.is_none(), "a message has one verdict");
        batch.unsettled -= 1;
        if batch.unsettled == 0 {
            let batch = self.batches.remove(place.job);
            let verdicts = batch.verdicts.into_iter().flatten().collect();
            // A lane that is gone needs no answer.
            drop(batch.reply.all.send(Ok(verdicts)));
        }
    }

    /// Whether the broker has been silent for too long, or nobody waits for it any more.
    fn overdue(&mut self, link: &Link, closing: bool) -> Option<Loss> {
        if !link.is_open() {
            return Some(Loss::Broken("the connection to RabbitMQ is closed".to_owned()));
        }
        if closing && self.batches.iter().all(|(_, batch)| batch.reply.all.is_closed()) {
            return Some(Loss::Broken("the sink was closed".to_owned()));
        }
        if let Some((_, said_at)) = &mut self.blocked {
            if said_at.elapsed() >= BLOCKED_LINES {
                *said_at = Instant::now();
                self.say_blocked();
            }
            return None;
        }
        // The slab is as short as there are lanes.
        let oldest = self.batches.iter().map(|(_, batch)| batch.taken_at).min()?;
        if oldest.max(self.flowing_since).elapsed() < self.rules.confirm_timeout {
            return None;
        }
        let seconds = self.rules.confirm_timeout.as_secs_f32();
        Some(Loss::Broken(format!("no confirm from RabbitMQ within {seconds} seconds")))
    }

    fn loss(&self, error: &lapin::Error) -> Loss {
        match reply_code(error) {
            Some(code) if error.is_amqp_soft_error() => {
                let reason = self.rules.naming.reply(code, &error.to_string());
                Loss::Refused { code, reason }
            }
            _ => Loss::Broken(error.to_string()),
        }
    }

    /// Ends the link, settles what was confirmed all the same, and gives up on the rest.
    async fn finish(mut self, link: Link, loss: Loss) {
        // They hold the connection.
        (self.looking, self.asking) = (None, None);
        link.end().await;
        let mut refused = None;
        let reason = match loss {
            Loss::Done => return,
            Loss::Broken(reason) => reason,
            Loss::Refused { code, reason } => {
                refused = Some(code);
                reason
            }
        };
        // Whatever is ever going to be known of this link is known by now.
        while let Ok(Some(progress)) = timeout(DRAIN_TIMEOUT, self.progress.next()).await {
            match progress {
                Progress::Marker => self.settle_marked(),
                Progress::Confirm(sequence, Ok((acked, returned))) => {
                    self.confirms.see(sequence, acked, returned);
                }
                Progress::Confirm(_, Err(error)) if error.is_amqp_soft_error() => {
                    refused = refused.or(reply_code(&error));
                }
                Progress::Confirm(_, Err(_)) => {}
            }
            self.push_marker();
        }
        tracing::warn!(reason, unsettled = self.confirms.unsettled().count(), "lost RabbitMQ");
        if let Some(code) = refused {
            self.accuse(code, &reason);
        }
        for batch in self.batches.drain() {
            let unknown = || Verdict::Unknown(reason.clone().into());
            let verdicts =
                batch.verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(unknown));
            // A lane that is gone needs no answer.
            drop(batch.reply.all.send(Ok(verdicts.collect())));
        }
    }

    /// Notes who may have closed the channel, and rejects who was alone on it.
    fn accuse(&mut self, code: u16, reason: &str) {
        let Some((place, identity, name)) = self.suspect.take() else {
            if code != NOT_FOUND {
                self.suspects.extend(self.confirms.unsettled());
            }
            return;
        };
        self.suspects.convict(identity, &name, code);
        // The name of a missing exchange is looked up before the next attempt.
        if code != NOT_FOUND {
            let exchange = self.exchange(place);
            let reason = format!("RabbitMQ refused it on {exchange}: {reason}");
            self.settle(place, Verdict::Rejected(reason));
        }
    }
}

fn seen(confirmation: Confirmation, naming: &Naming) -> (bool, Option<Returned>) {
    // Confirms are on: `NotRequested` cannot come, and would be no confirm.
    let acked = confirmation.is_ack();
    let returned = confirmation.take_message().map(|message| {
        let delivery = message.delivery;
        let route = naming.route(delivery.exchange.as_str(), delivery.routing_key.as_str());
        let message_id = delivery.properties.message_id().as_ref();
        let message_id = message_id.map(|id| id.as_str().to_owned()).unwrap_or_default();
        let reason = format!(
            "no queue takes row {message_id} of {route} ({} {}); bind one",
            message.reply_code, message.reply_text
        );
        Returned { message_id, reason }
    });
    (acked, returned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ack_is_an_ack() {
        let acked = |confirmation| seen(confirmation, &Naming::default()).0;
        assert!(acked(Confirmation::Ack(None)));
        assert!(!acked(Confirmation::Nack(None)));
        assert!(!acked(Confirmation::NotRequested));
    }
}
